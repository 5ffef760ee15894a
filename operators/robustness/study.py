"""What a study of robustness found: methods, shifts with their levels, a score for every case, checks and pictures."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from operators.robustness.checks import Check

N = TypeVar("N", str, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A metric that methods are compared by.

    Parameters
    ----------
    name
        Such as ``"ssim"``.
    definition
        How it is computed, and on what, in one sentence.
    higher_is_better
        Which direction is good.
    """

    name: str
    definition: str
    higher_is_better: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One strength of a shift.

    Parameters
    ----------
    strength
        Where it lies on the axis of its shift; finite.
    in_distribution
        Whether training covered it.
    label
        What it is called; by default its strength.

    Raises
    ------
    ValueError
        If the strength is not finite.
    """

    strength: float
    in_distribution: bool
    label: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise ValueError(f"A level has the strength {self.strength}; expected a finite number.")
        if not self.label:
            object.__setattr__(self, "label", f"{self.strength:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """One thing in which data may differ from those of the training.

    Parameters
    ----------
    name
        Such as ``"noise"``.
    axis
        What the strength is, with its unit; ``None`` where levels have no order, such as anatomies, which then stand
        at strengths of any choice.
    levels
        In the order of the report, of different strengths; one at least is in distribution and one at least is not.
    description
        What is changed, in one sentence.

    Raises
    ------
    ValueError
        If two levels have one strength, or all are in or all out of distribution.
    """

    name: str
    axis: str | None
    levels: tuple[Level, ...]
    description: str = ""

    def __post_init__(self) -> None:
        strengths = _once((level.strength for level in self.levels), f"The shift {self.name!r} has the strength")
        if len({level.in_distribution for level in self.levels}) != 2:
            raise ValueError(
                f"The shift {self.name!r} has the strengths {strengths}; expected some of them in and some out of "
                "distribution, or there is nothing to compare."
            )

    def strengths(self, *, in_distribution: bool) -> tuple[float, ...]:
        """Strengths of the levels in or out of distribution."""
        return tuple(level.strength for level in self.levels if level.in_distribution is in_distribution)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudiedMethod:
    """A method of the study.

    Parameters
    ----------
    name
        How it is called.
    description
        What it is, with its options.
    weights_sha256
        Digest of its weights; ``None`` where it has none.
    trained_ranges
        By name, the lowest and the highest value of what varied in its training.
    """

    name: str
    description: str = ""
    weights_sha256: str | None = None
    trained_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How good one image is.

    Parameters
    ----------
    shift
        Name of the shift.
    strength
        Of the level.
    method
        Name of the method.
    case
        What was scanned, such as person, slice and seed; the same name at two levels means the same object.
    values
        By name of the measure, a finite number.

    Raises
    ------
    ValueError
        If a value is not finite.
    """

    shift: str
    strength: float
    method: str
    case: str
    values: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} of {self.method!r} on {self.case!r} is {value}; expected a finite number.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a check found about a method on one case.

    Parameters
    ----------
    method
        Name of the method.
    case
        What it was applied to.
    result
        What a function of `operators.robustness.checks` returned.
    """

    method: str
    case: str
    result: Check


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Panel:
    """One case as every method shows it, in one window.

    Parameters
    ----------
    title
        What was scanned, and how.
    target
        The truth, real ``(y, x)``.
    images
        By name of the method, real and like the target.
    window
        Values shown black and white.
    error_limit
        Size of the error that has the brightest colour, in the unit of the images.
    unit
        Of the images, such as ``"HU"``.
    captions
        By name of the method, a line about its image, such as its PSNR.

    Raises
    ------
    ValueError
        If an image is not like the target, a value is not finite, or the window or the limit is not positive.
    """

    title: str
    target: torch.Tensor
    images: Mapping[str, torch.Tensor]
    window: tuple[float, float]
    error_limit: float
    unit: str = ""
    captions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, image in {"target": self.target, **self.images}.items():
            if image.ndim != 2 or image.shape != self.target.shape or image.is_complex():
                raise ValueError(
                    f"{name!r} of the panel {self.title!r} is {image.dtype} of shape {tuple(image.shape)}; expected "
                    f"real (y, x) of shape {tuple(self.target.shape)}."
                )
            if not bool(image.isfinite().all()):
                raise ValueError(f"{name!r} of the panel {self.title!r} holds pixels that are not finite.")
        if not -math.inf < self.window[0] < self.window[1] < math.inf or not 0 < self.error_limit < math.inf:
            raise ValueError(
                f"The panel {self.title!r} has the window {self.window} and the error limit {self.error_limit}; "
                "expected a lower and a larger upper value, and a positive limit."
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Study:
    """All that a report is made of.

    Parameters
    ----------
    title
        Heading of the report.
    data
        What the images are and where they are from, in words.
    command
        The command that was given.
    measures
        The first one is shown first.
    shifts, methods
        In the order of the report.
    scores
        Every method on the same cases of each level.
    checks
        What needed no truth.
    panels
        Pictures.
    facts
        Further facts by name, such as versions, device and seed.

    Raises
    ------
    ValueError
        If a name is given twice or is unknown, or a score is missing or given twice.
    """

    title: str
    data: str
    command: str
    measures: tuple[Measure, ...]
    shifts: tuple[Shift, ...]
    methods: tuple[StudiedMethod, ...]
    scores: tuple[Score, ...]
    checks: tuple[Checked, ...] = ()
    panels: tuple[Panel, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        measures = _once((measure.name for measure in self.measures), "The study has the measure")
        methods = _once((method.name for method in self.methods), "The study has the method")
        _once((shift.name for shift in self.shifts), "The study has the shift")
        if not measures or not methods:
            raise ValueError("A study needs at least one measure and one method.")
        for name in [c.method for c in self.checks] + [name for panel in self.panels for name in panel.images]:
            if name not in methods:
                raise ValueError(f"A check or a panel is of {name!r}; the methods of the study are {methods}.")
        self._check_scores(set(measures), methods)

    def _check_scores(self, measures: set[str], methods: list[str]) -> None:
        cases: dict[tuple[str, float], dict[str, list[str]]] = {
            (shift.name, level.strength): {method: [] for method in methods}
            for shift in self.shifts
            for level in shift.levels
        }
        for score in self.scores:
            own = cases.get((score.shift, score.strength), {})
            if score.method not in own or set(score.values) != measures:
                raise ValueError(
                    f"There is a score of {score.method!r} at {score.strength:g} of {score.shift!r} with "
                    f"{sorted(score.values)}; expected a method and a level of the study, and {sorted(measures)}."
                )
            own[score.method].append(score.case)
        for (shift, strength), by_method in cases.items():
            expected = Counter(next(iter(by_method.values())))
            for method, own_cases in by_method.items():
                if not expected or max(expected.values()) > 1 or Counter(own_cases) != expected:
                    raise ValueError(
                        f"At {strength:g} of {shift!r} {method!r} has {len(own_cases)} scores; expected one for each "
                        "case, and the same cases for every method."
                    )


def _once(names: Iterable[N], what: str) -> list[N]:
    counted = Counter(names)
    for name, n in counted.items():
        if n > 1:
            raise ValueError(f"{what} {name!r} {n} times; expected each once.")
    return list(counted)
