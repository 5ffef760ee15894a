"""Statistics of a study: curves against strength, slopes, gaps with confidence intervals, ranks."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from operators.robustness.study import Measure, Shift, Study

_Values = dict[float, dict[str, float]]  # strength → case → value

DEFINITIONS: Mapping[str, str] = {
    "curve": "mean over cases at each strength, ± the standard deviation over cases (n − 1)",
    "slope": "slope of the straight line through the means, fitted by least squares, per unit of strength; the "
    "relative slope is that divided by the size of the mean in distribution",
    "gap": "mean in distribution minus mean out of distribution, with the sign turned where lower is better: above "
    "zero, the method is worse out of distribution. Each case first gets its means over the levels in and out of "
    "distribution",
    "interval": "percentiles of the gap over resamples with replacement of the cases, the same for all methods: of "
    "both groups together where the same objects were scanned in both (paired), else of each group by itself. It "
    "covers the choice among such cases, not other people, scanners or trainings",
    "rank": "1 = best mean out of distribution among the methods; beside it the rank in distribution; equals share the "
    "better rank",
}
"""What the words of the tables mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """A metric at one strength.

    Parameters
    ----------
    shift, measure, method
        Names.
    strength, label, in_distribution
        Of the level.
    mean, sd
        Over cases; the standard deviation is zero for one case.
    n_cases
        Their number.
    """

    shift: str
    measure: str
    method: str
    strength: float
    label: str
    in_distribution: bool
    mean: float
    sd: float
    n_cases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """How a metric changes with the strength.

    Parameters
    ----------
    shift, measure, method
        Names.
    slope
        Of the line of least squares through the means, per unit of strength.
    relative
        That over the size of the mean in distribution; ``None`` where this is zero.
    """

    shift: str
    measure: str
    method: str
    slope: float
    relative: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What is lost out of distribution.

    Parameters
    ----------
    shift, measure, method
        Names.
    inside, outside
        Means in and out of distribution.
    gap
        Inside minus outside, with the sign turned where lower is better; positive = worse outside.
    low, high
        Limits of its confidence interval; ``None`` where there is one case only.
    confidence
        Of the interval, such as 0.95.
    n_inside, n_outside
        Numbers of cases.
    paired
        Whether the same cases are in both.
    """

    shift: str
    measure: str
    method: str
    inside: float
    outside: float
    gap: float
    low: float | None
    high: float | None
    confidence: float
    n_inside: int
    n_outside: int
    paired: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """The place of a method among all.

    Parameters
    ----------
    shift, measure, method
        Names.
    inside, outside
        Place by the mean in and out of distribution, 1 = best; equals share the better place.
    """

    shift: str
    measure: str
    method: str
    inside: int
    outside: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """The statistics of a study.

    Parameters
    ----------
    points, slopes, gaps, ranks
        For each shift, measure and method, in this order; slopes only of shifts with an axis.
    """

    points: tuple[CurvePoint, ...]
    slopes: tuple[Slope, ...]
    gaps: tuple[Gap, ...]
    ranks: tuple[Rank, ...]


def analyse(study: Study, *, n_resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> Analysis:
    """Compute curves, slopes, gaps and ranks of a study.

    Parameters
    ----------
    study
        What was measured.
    n_resamples, confidence, seed
        As for `bootstrap_gap`.

    Returns
    -------
    Analysis
        The same for the same arguments.

    Raises
    ------
    ValueError
        As `bootstrap_gap` does, and where the levels in or out of distribution of a shift have different cases.
    """
    points: list[CurvePoint] = []
    slopes: list[Slope] = []
    gaps: list[Gap] = []
    ranks: list[Rank] = []
    stored = _by_shift_and_method(study)
    for shift in study.shifts:
        for measure in study.measures:
            own: list[Gap] = []
            for method in study.methods:
                values = {
                    strength: {case: scores[measure.name] for case, scores in cases.items()}
                    for strength, cases in stored[shift.name, method.name].items()
                }
                points += _curve(shift, measure, method.name, values)
                own.append(_gap(shift, measure, method.name, values, n_resamples, confidence, seed))
                if shift.axis is not None:
                    slopes.append(_slope(shift, measure, method.name, values, own[-1].inside))
            gaps += own
            ranks += _ranks(own, measure)
    return Analysis(points=tuple(points), slopes=tuple(slopes), gaps=tuple(gaps), ranks=tuple(ranks))


def bootstrap_gap(
    inside: Mapping[str, float],
    outside: Mapping[str, float],
    *,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Confidence interval of mean(inside) − mean(outside) by resampling cases with replacement.

    Where both have the same cases, pairs are drawn; where they have none in common, each is drawn from by itself.

    Parameters
    ----------
    inside, outside
        Values by case.
    n_resamples
        Number of resamples.
    confidence
        Between 0 and 1, both excluded.
    seed
        Of the resamples.

    Returns
    -------
    tuple of float or None
        The percentiles (1 ∓ confidence)/2 of the resampled differences; ``None`` where a group has but one case.

    Raises
    ------
    ValueError
        If the groups share some cases but not all, one is empty, or a number is out of its range.

    References
    ----------
    Efron and Tibshirani, An introduction to the bootstrap, 1993, equation 13.5.
    """
    if not 0 < confidence < 1 or n_resamples < 1:
        raise ValueError(f"confidence is {confidence} and n_resamples {n_resamples}; expected 0 to 1, and 1 or more.")
    paired = _is_paired(inside, outside)
    if min(len(inside), len(outside)) < 2:
        return None
    random = np.random.default_rng(seed)
    if paired:
        resampled = _resampled_means(np.array([inside[case] - outside[case] for case in inside]), n_resamples, random)
    else:
        first, second = (np.array(list(group.values())) for group in (inside, outside))
        resampled = _resampled_means(first, n_resamples, random) - _resampled_means(second, n_resamples, random)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _resampled_means(values: NDArray[np.float64], n_resamples: int, random: np.random.Generator) -> NDArray[np.float64]:
    means: NDArray[np.float64] = values[random.integers(len(values), size=(n_resamples, len(values)))].mean(axis=1)
    return means


def _is_paired(inside: Mapping[str, float], outside: Mapping[str, float]) -> bool:
    if not inside or not outside:
        raise ValueError("There is no case in or none out of distribution; a gap needs both.")
    if inside.keys() == outside.keys():
        return True
    common = sorted(inside.keys() & outside.keys())
    if common:
        raise ValueError(
            f"The case {common[0]!r} is in both groups, but others are in one only; give both the same cases, or none "
            "in common."
        )
    return False


def _by_shift_and_method(study: Study) -> dict[tuple[str, str], dict[float, dict[str, Mapping[str, float]]]]:
    stored: dict[tuple[str, str], dict[float, dict[str, Mapping[str, float]]]] = {}
    for score in study.scores:
        stored.setdefault((score.shift, score.method), {}).setdefault(score.strength, {})[score.case] = score.values
    return stored


def _curve(shift: Shift, measure: Measure, method: str, values: _Values) -> list[CurvePoint]:
    curve = []
    for level in shift.levels:
        own = list(values[level.strength].values())
        point = CurvePoint(
            shift=shift.name,
            measure=measure.name,
            method=method,
            strength=level.strength,
            label=level.label,
            in_distribution=level.in_distribution,
            mean=fmean(own),
            sd=stdev(own) if len(own) > 1 else 0.0,
            n_cases=len(own),
        )
        curve.append(point)
    return curve


def _slope(shift: Shift, measure: Measure, method: str, values: _Values, inside: float) -> Slope:
    strengths = np.array([level.strength for level in shift.levels])
    means = np.array([fmean(values[strength].values()) for strength in strengths.tolist()])
    centred = strengths - strengths.mean()
    slope = float(centred @ means / (centred @ centred))
    relative = slope / abs(inside) if inside else None
    return Slope(shift=shift.name, measure=measure.name, method=method, slope=slope, relative=relative)


def _gap(
    shift: Shift, measure: Measure, method: str, values: _Values, n_resamples: int, confidence: float, seed: int
) -> Gap:
    inside, outside = (_mean_of_cases(shift, values, in_distribution=where) for where in (True, False))
    paired = _is_paired(inside, outside)
    interval = bootstrap_gap(inside, outside, n_resamples=n_resamples, confidence=confidence, seed=seed)
    gap = fmean(inside.values()) - fmean(outside.values())
    if not measure.higher_is_better:
        gap, interval = -gap, None if interval is None else (-interval[1], -interval[0])
    low, high = interval or (None, None)
    return Gap(
        shift=shift.name,
        measure=measure.name,
        method=method,
        inside=fmean(inside.values()),
        outside=fmean(outside.values()),
        gap=gap,
        low=low,
        high=high,
        confidence=confidence,
        n_inside=len(inside),
        n_outside=len(outside),
        paired=paired,
    )


def _mean_of_cases(shift: Shift, values: _Values, *, in_distribution: bool) -> dict[str, float]:
    """For each case its mean over levels; where levels show different people, all of them are cases."""
    levels = [values[strength] for strength in shift.strengths(in_distribution=in_distribution)]
    cases = list(dict.fromkeys(case for level in levels for case in level))
    means = {case: [level[case] for level in levels if case in level] for case in cases}
    counts = {len(own) for own in means.values()}
    if counts not in ({1}, {len(levels)}):
        raise ValueError(
            f"The levels of {shift.name!r} share some cases but not all; give them the same cases, or none in common."
        )
    return {case: fmean(own) for case, own in means.items()}


def _ranks(gaps: list[Gap], measure: Measure) -> list[Rank]:
    def place(mean: float, means: list[float]) -> int:
        return 1 + sum(other > mean if measure.higher_is_better else other < mean for other in means)

    inside, outside = [gap.inside for gap in gaps], [gap.outside for gap in gaps]
    return [
        Rank(
            shift=gap.shift,
            measure=measure.name,
            method=gap.method,
            inside=place(gap.inside, inside),
            outside=place(gap.outside, outside),
        )
        for gap in gaps
    ]
