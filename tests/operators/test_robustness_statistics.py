"""Statistics of robustness: curves, slopes, gaps and ranks against numbers computed by hand or otherwise."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from operators.robustness import (
    Checked,
    DataResidual,
    Level,
    Measure,
    Panel,
    Score,
    Shift,
    StudiedMethod,
    Study,
    analyse,
    bootstrap_gap,
)

NOISE = Shift(
    name="noise",
    axis="noise variance",
    levels=(
        Level(strength=0.1, in_distribution=True),
        Level(strength=0.2, in_distribution=True),
        Level(strength=0.5, in_distribution=False),
        Level(strength=1.0, in_distribution=False),
    ),
)
ANATOMY = Shift(
    name="anatomy",
    axis=None,
    levels=(
        Level(strength=0, in_distribution=True, label="brain"),
        Level(strength=1, in_distribution=False, label="knee"),
    ),
)
MEASURES = (
    Measure(name="ssim", definition="similarity", higher_is_better=True),
    Measure(name="mse", definition="error", higher_is_better=False),
)


def study_of(
    ssim: Callable[[str, float, int], float], shift: Shift = NOISE, *, same_cases: bool = True, methods: str = "ab"
) -> Study:
    """A study with 6 cases at each level; the error is 1 − SSIM."""
    scores = tuple(
        Score(
            shift=shift.name,
            strength=level.strength,
            method=method,
            case=f"case {case}" if same_cases else f"case {case} of {level.label}",
            values={"ssim": ssim(method, level.strength, case), "mse": 1 - ssim(method, level.strength, case)},
        )
        for level in shift.levels
        for method in methods
        for case in range(6)
    )
    return Study(
        title="title",
        data="data",
        command="command",
        measures=MEASURES,
        shifts=(shift,),
        methods=tuple(StudiedMethod(name=method) for method in methods),
        scores=scores,
    )


def test_curves_are_means_and_standard_deviations_over_cases() -> None:
    found = analyse(study_of(lambda method, strength, case: strength + case**2 + (method == "b")))
    assert len(found.points) == 2 * 2 * 4
    point = next(p for p in found.points if (p.measure, p.method, p.strength) == ("ssim", "b", 0.5))
    values = 0.5 + np.arange(6.0) ** 2 + 1
    assert point.mean == pytest.approx(values.mean(), rel=1e-12)
    assert point.sd == pytest.approx(values.std(ddof=1), rel=1e-12)
    assert (point.n_cases, point.in_distribution, point.label) == (6, False, "0.5")


def test_the_slope_of_a_straight_line_is_its_slope_and_relative_to_the_mean_inside() -> None:
    found = analyse(study_of(lambda method, strength, case: 3 - 2 * strength + case - 2.5))
    ssim = next(s for s in found.slopes if s.measure == "ssim")
    assert ssim.slope == pytest.approx(-2.0, rel=1e-12)
    assert ssim.relative == pytest.approx(-2 / (3 - 2 * 0.15), rel=1e-12)


def test_the_slope_of_a_curve_is_that_of_least_squares(generator: torch.Generator) -> None:
    drawn = torch.rand(4, dtype=torch.float64, generator=generator).tolist()
    at = dict(zip((0.1, 0.2, 0.5, 1.0), drawn, strict=True))
    found = analyse(study_of(lambda method, strength, case: at[strength]))
    expected = np.polyfit(list(at), drawn, 1)[0]
    assert found.slopes[0].slope == pytest.approx(expected, rel=1e-10)


def test_a_slope_relative_to_zero_is_left_out() -> None:
    found = analyse(study_of(lambda method, strength, case: strength - 0.15))
    assert found.slopes[0].slope == pytest.approx(1.0)
    exact = analyse(study_of(lambda method, strength, case: 0.0 if strength < 0.3 else 1.0))
    assert exact.slopes[0].relative is None


def test_shifts_without_an_axis_have_no_slope() -> None:
    found = analyse(study_of(lambda method, strength, case: strength, ANATOMY))
    assert found.slopes == ()
    assert len(found.gaps) == 4


def test_gaps_are_positive_where_a_method_is_worse_outside() -> None:
    found = analyse(study_of(lambda method, strength, case: 1 - strength * (1 + 0.1 * case)))
    by_measure = {gap.measure: gap for gap in found.gaps if gap.method == "a"}
    inside, outside = 1 - 0.15 * 1.25, 1 - 0.75 * 1.25
    ssim, mse = by_measure["ssim"], by_measure["mse"]
    assert (ssim.inside, ssim.outside) == (pytest.approx(inside), pytest.approx(outside))
    assert ssim.gap == pytest.approx(inside - outside)
    assert mse.gap == pytest.approx(ssim.gap)
    assert ssim.low is not None
    assert ssim.high is not None
    assert 0.6 < ssim.low < ssim.gap < ssim.high < 0.9
    assert (mse.low, mse.high) == (pytest.approx(ssim.low), pytest.approx(ssim.high))
    assert ssim.paired


def test_a_pair_is_drawn_together_so_that_what_is_common_to_it_does_not_count(generator: torch.Generator) -> None:
    brightness = {f"{i}": v for i, v in enumerate(torch.randn(40, dtype=torch.float64, generator=generator).tolist())}
    darker = {case: value - 0.25 for case, value in brightness.items()}
    assert bootstrap_gap(brightness, darker) == (pytest.approx(0.25), pytest.approx(0.25))
    strangers = {f"other {case}": value for case, value in darker.items()}
    low, high = bootstrap_gap(brightness, strangers) or (0, 0)
    assert high - low > 0.5


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_of_normal_values_are_those_of_the_normal_approximation(
    generator: torch.Generator, paired: bool
) -> None:
    first, second = torch.randn(2, 300, dtype=torch.float64, generator=generator)
    inside = {f"{i}": v for i, v in enumerate(first.tolist())}
    outside = {f"{i}" if paired else f"o{i}": v for i, v in enumerate(second.tolist())}
    variance = (first - second).var() if paired else first.var() + second.var()
    half = 1.645 * float(variance / 300) ** 0.5
    low, high = bootstrap_gap(inside, outside, n_resamples=20_000, confidence=0.9) or (0, 0)
    gap = float((first - second).mean())
    assert low == pytest.approx(gap - half, abs=0.06 * half)
    assert high == pytest.approx(gap + half, abs=0.06 * half)


def test_intervals_cover_the_truth_about_as_often_as_they_say(generator: torch.Generator) -> None:
    differences = 1 + torch.randn(300, 25, dtype=torch.float64, generator=generator)
    covered = 0
    for number, own in enumerate(differences.tolist()):
        inside = {f"{i}": v for i, v in enumerate(own)}
        low, high = bootstrap_gap(inside, dict.fromkeys(inside, 0.0), n_resamples=500, seed=number) or (0, 0)
        covered += low <= 1 <= high
    assert 0.90 <= covered / 300 <= 0.97


def test_the_same_seed_gives_the_same_interval_and_methods_share_their_resamples() -> None:
    study = study_of(lambda method, strength, case: case**3 * strength + (method == "b"))
    assert analyse(study) == analyse(study)
    assert analyse(study, seed=1, n_resamples=100) != analyse(study, n_resamples=100)
    first, second = (next(g for g in analyse(study).gaps if g.method == method) for method in "ab")
    assert (first.low, first.high) == (pytest.approx(second.low), pytest.approx(second.high))


def test_different_people_are_not_paired_and_some_common_ones_are_refused() -> None:
    found = analyse(study_of(lambda method, strength, case: strength + case, ANATOMY, same_cases=False))
    assert not found.gaps[0].paired
    assert (found.gaps[0].n_inside, found.gaps[0].n_outside) == (6, 6)
    with pytest.raises(ValueError, match="in both groups"):
        bootstrap_gap({"1": 0.0, "2": 0.0}, {"2": 0.0, "3": 0.0})
    with pytest.raises(ValueError, match="none out"):
        bootstrap_gap({"1": 0.0}, {})
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_gap({"1": 0.0}, {"1": 0.0}, confidence=1.0)


def test_levels_that_share_some_cases_only_are_refused() -> None:
    study = study_of(lambda method, strength, case: strength)
    renamed = tuple(
        replace(score, case="new") if (score.strength, score.case) == (0.5, "case 0") else score
        for score in study.scores
    )
    with pytest.raises(ValueError, match="share some cases but not all"):
        analyse(replace(study, scores=renamed))


def test_one_case_has_no_interval() -> None:
    assert bootstrap_gap({"1": 1.0}, {"1": 0.0}) is None


def test_ranks_follow_the_direction_of_the_measure_and_equals_share_a_place() -> None:
    quality = {"a": (0.9, 0.2), "b": (0.8, 0.5), "c": (0.7, 0.5)}
    found = analyse(study_of(lambda method, strength, case: quality[method][strength > 0.3], methods="abc"))
    for measure in ("ssim", "mse"):
        places = {r.method: (r.inside, r.outside) for r in found.ranks if r.measure == measure}
        assert places == {"a": (1, 3), "b": (2, 1), "c": (3, 1)}


def test_records_are_json() -> None:
    found = analyse(study_of(lambda method, strength, case: strength + case))
    assert json.loads(json.dumps(asdict(found)))["gaps"][0]["shift"] == "noise"


def test_studies_say_what_is_missing_or_unknown() -> None:
    study = study_of(lambda method, strength, case: strength)
    with pytest.raises(ValueError, match="'b' has 5 scores"):
        replace(study, scores=study.scores[:11] + study.scores[12:])
    with pytest.raises(ValueError, match="expected one for each case"):
        replace(study, scores=(*study.scores, study.scores[0]))
    with pytest.raises(ValueError, match="expected a method and a level"):
        replace(study, scores=(replace(study.scores[0], method="stranger"), *study.scores[1:]))
    with pytest.raises(ValueError, match="has the method 'a' 2 times"):
        replace(study, methods=(StudiedMethod(name="a"), StudiedMethod(name="a")))
    residual = DataResidual(chi2_per_sample=1.0, n_samples=1, z=0.0, p_value=1.0)
    with pytest.raises(ValueError, match="A check or a panel is of 'x'"):
        replace(study, checks=(Checked(method="x", case="", result=residual),))
    with pytest.raises(ValueError, match="nothing to compare"):
        replace(NOISE, levels=NOISE.levels[:2])
    with pytest.raises(ValueError, match="each once"):
        replace(NOISE, levels=(*NOISE.levels, NOISE.levels[0]))
    with pytest.raises(ValueError, match="finite"):
        replace(study.scores[0], values={"ssim": float("inf")})


def test_panels_hold_real_images_of_one_shape() -> None:
    target = torch.zeros(4, 5)
    for image in (torch.zeros(5, 4), torch.zeros(4, 5, dtype=torch.complex64), torch.full((4, 5), torch.nan)):
        with pytest.raises(ValueError, match="panel 'p'"):
            Panel(title="p", target=target, images={"a": image}, window=(0, 1), error_limit=1)
    with pytest.raises(ValueError, match="window"):
        Panel(title="p", target=target, images={}, window=(1, 1), error_limit=1)
