"""Filtered back-projection of parallel and fan beams, and what the angles of a scan cover."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from operators.beam_geometry import Array, BeamGeometry, FanBeam
from operators.linear_operator import LinearOperator, total
from operators.space import Space

Filter = Literal["ramp", "shepp-logan", "cosine", "hann", "hamming"]
ShortScan = Literal["auto", "plain"]
Kind = Literal["full", "half", "short", "limited"]

_LOGGER = logging.getLogger(__name__)

# Response over that of the ramp, at f cycles per detector bin, 0 ≤ f ≤ ½.
_WINDOWS: dict[str, Callable[[Array], Array]] = {
    "ramp": np.ones_like,
    "shepp-logan": np.sinc,
    "cosine": lambda f: np.cos(np.pi * f),
    "hann": lambda f: 0.5 + 0.5 * np.cos(2 * np.pi * f),
    "hamming": lambda f: 0.54 + 0.46 * np.cos(2 * np.pi * f),
}

_SAME_ANGLE_RAD = 1e-6
_WIDEST_BRIDGED_STEPS = 2.5  # one view that was left out doubles its step; from two on an arc counts as missing
_FINE = 12  # positions per detector bin that a pixel can meet
_MIN_COLUMNS, _MAX_COLUMNS = 8, 32  # of a table, from worth while to too large for the cache
_VIEWS_AT_ONCE, _PIXELS_AT_ONCE = 16, 8192  # what stays in the cache between two passes over it


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the view angles of a scan cover, and so how its back-projection has to be weighted.

    Parameters
    ----------
    kind
        ``"full"``: the whole circle without a missing arc, however few the views. ``"half"``: parallel beams that
        measure every line, but not over the whole circle. ``"short"``: a fan over one arc that measures every line at
        least once. ``"limited"``: less than that; some lines were never measured, and no weight brings them back.
    n_views
        Number of views.
    arc_rad
        Angle that the views cover, each standing for half a step on either side; of parallel beams modulo π unless
        the circle is full.
    required_rad
        Smallest arc that measures every line: π for parallel beams, for a fan π plus its fan angle.
    step_rad
        Widest step between neighbouring views that is no missing arc; 0 where all views share one angle.
    sparse
        Whether that step moves a ray at the edge of the detector by more than four bins: streaks are to be expected.
    """

    kind: Kind
    n_views: int
    arc_rad: float
    required_rad: float
    step_rad: float
    sparse: bool

    def __str__(self) -> str:
        what = {"full": "full circle", "half": "half circle", "short": "short scan", "limited": "limited angle"}
        arc, required, step = (math.degrees(a) for a in (self.arc_rad, self.required_rad, self.step_rad))
        sparse = ", sparse" if self.sparse else ""
        return (
            f"{what[self.kind]}{sparse}: {self.n_views} views over {arc:.1f} degrees, at most {step:.2f} apart; "
            f"{required:.1f} degrees measure every line"
        )


class FilteredBackProjection(nn.Module):
    """Filtered back-projection for one geometry: weight, filter along the detector, sum over the views.

    For the views t, with detector coordinate s = u·R/(R + D) at the isocentre (R and D the distances of source and
    detector from it; s = u for parallel beams), fan angle γ, and L the distance of a pixel from the source, along the
    central ray (flat detector) or as it is (curved)::

        f(x, y) = Σ_t w(t, γ) · Δt · (R/L)² · (h ∗ cos γ · p)(t, s(x, y))

    h is the ramp as a sampled kernel, 1/(4 Δs²) at 0 and −1/(π k Δs)² at odd k, for curved detectors times
    (γ/sin γ)², and the window of the filter. Δt is half the way to either neighbouring view, so angles need not be
    equally spaced, and repeated ones share theirs. w is 1 for parallel beams (taken modulo π) and ½ for a full fan
    circle; one arc of it has Parker's weights, several have π/arc, at most 1. The filtered views are
    interpolated linearly to a twelfth of a bin, of which a pixel takes the nearest.

    It is linear and differentiable to any order, but no adjoint of anything, and so no `LinearOperator`. The object has
    to lie within the detector's reach in every view: a truncated or one-sided (displaced) detector is not completed.

    Parameters
    ----------
    geometry
        Where the rays run.
    shape
        Size of the image, ``(y, x)``; its pixels are those of the geometry, its centre is the isocentre.
    filter
        ``"ramp"``, or from sharp to smooth ``"shepp-logan"``, ``"cosine"``, ``"hamming"``, ``"hann"``.
    short_scan
        Weights of a fan over one arc. ``"auto"``: Parker's, which let every measured line count once, also where
        `coverage` says ``"limited"`` (there the lines that are missing stay missing, and ever fewer are met twice).
        ``"plain"``: every view alike.

    Attributes
    ----------
    coverage
        What the angles cover; also logged, as a warning where the angle is limited.
    weighting
        ``"parker"`` or ``"plain"``.

    Raises
    ------
    ValueError
        If the filter or the short scan is unknown, the shape is no ``(y, x)``, all views share one angle, or the image
        reaches the source.

    References
    ----------
    Kak and Slaney, Principles of computerized tomographic imaging, 1988, section 3.3 (parallel, equation 61 the
    kernel), section 3.4.1 (curved, equations 99 to 103), section 3.4.2 (flat, equations 125 to 130).
    Parker, Optimal short scan convolution reconstruction for fanbeam CT, 1982, equation 12. Departure: (arc − π)/2
    takes the place of half the fan angle, as in Silver, A method for including redundant data, 2000, and here also for
    shorter arcs.
    """

    weights: torch.Tensor
    response: torch.Tensor

    def __init__(
        self,
        geometry: BeamGeometry,
        shape: Sequence[int],
        *,
        filter: Filter = "ramp",
        short_scan: ShortScan = "auto",
    ) -> None:
        super().__init__()
        if filter not in _WINDOWS:
            raise ValueError(f"filter is {filter!r}; expected one of {', '.join(map(repr, _WINDOWS))}.")
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"shape is {tuple(shape)}; expected two positive sizes (y, x).")
        self.coverage = coverage(geometry)
        if self.coverage.arc_rad == 0:
            raise ValueError("All views share one angle; filtered back-projection needs at least two.")
        self.weighting = _weighting(geometry, short_scan)
        level = logging.WARNING if self.coverage.kind == "limited" else logging.INFO
        _LOGGER.log(level, "Filtered back-projection of a %s; %s weights.", self.coverage, self.weighting)
        self._back_project = _BackProjection(geometry, (int(shape[0]), int(shape[1])))
        self._n_padded = _fast_length(2 * geometry.n_detectors)
        weights, response = _view_weights(geometry, self.weighting), _response(geometry, filter, self._n_padded)
        self.register_buffer("weights", torch.from_numpy(weights), persistent=False)
        self.register_buffer("response", torch.from_numpy(response), persistent=False)

    def forward(self, sinogram: torch.Tensor) -> torch.Tensor:
        """Reconstruct.

        Parameters
        ----------
        sinogram
            Line integrals, real ``(*batch, view, detector)``, dimensionless.

        Returns
        -------
        torch.Tensor
            Attenuation, real ``(*batch, y, x)``, in 1/mm.

        Raises
        ------
        TypeError
            If the sinogram is no real floating-point tensor.
        ValueError
            If its views and detector bins are not those of the geometry.
        """
        self._back_project.domain.check(sinogram, "sinogram")
        spectrum = torch.fft.rfft(sinogram * self.weights.to(sinogram), self._n_padded)
        filtered = torch.fft.irfft(spectrum * self.response.to(sinogram), self._n_padded)
        image: torch.Tensor = self._back_project(filtered[..., : sinogram.shape[-1]])
        return image


def filtered_back_projection(
    sinogram: torch.Tensor,
    geometry: BeamGeometry,
    shape: Sequence[int],
    *,
    filter: Filter = "ramp",
    short_scan: ShortScan = "auto",
) -> torch.Tensor:
    """Reconstruct an image by filtered back-projection; see `FilteredBackProjection`, which can be used again.

    Parameters
    ----------
    sinogram
        Line integrals, real ``(*batch, view, detector)``, dimensionless.
    geometry, shape, filter, short_scan
        As for `FilteredBackProjection`.

    Returns
    -------
    torch.Tensor
        Attenuation, real ``(*batch, y, x)``, in 1/mm.

    Raises
    ------
    TypeError
        If the sinogram is no real floating-point tensor.
    ValueError
        If its views and detector bins are not those of the geometry, or as for `FilteredBackProjection`.

    Examples
    --------
    >>> from operators.beam_geometry import ParallelBeam
    >>> geometry = ParallelBeam(tuple(math.pi * k / 90 for k in range(90)), 63, 1.0, 1.0)
    >>> chords = torch.from_numpy(2 * np.sqrt(np.maximum(400 - geometry.detector_mm**2, 0)))
    >>> image = filtered_back_projection(0.02 * chords.expand(90, 63), geometry, (64, 64))
    >>> round(float(image[24:40, 24:40].mean()), 3)
    0.02
    """
    return FilteredBackProjection(geometry, shape, filter=filter, short_scan=short_scan)(sinogram)


def coverage(geometry: BeamGeometry) -> Coverage:
    """Tell what the view angles of a scan cover.

    Parameters
    ----------
    geometry
        Parallel beams or a fan; the angles may have any order and spacing, and may repeat.

    Returns
    -------
    Coverage
        An arc counts as missing where it is wider than 2.5 times the next narrower step (one view that was left out is
        bridged), and at most a fifth of the steps can. A short scan may lack half a step.

    Examples
    --------
    >>> from operators.beam_geometry import ParallelBeam
    >>> print(coverage(ParallelBeam(tuple(math.pi * k / 90 for k in range(90)), 63, 1.0, 1.0)))
    half circle: 90 views over 180.0 degrees, at most 2.00 apart; 180.0 degrees measure every line
    """
    kind: Kind
    sweep = _sweep(geometry.angles_rad, 2 * math.pi)
    required = math.pi + (2 * float(np.abs(geometry.fan_angles_rad).max()) if isinstance(geometry, FanBeam) else 0.0)
    if not sweep.n_missing:
        kind = "full"
    elif isinstance(geometry, FanBeam):
        enough = sweep.n_missing == 1 and sweep.arc_rad + sweep.step_rad / 2 >= required
        kind = "short" if enough else "limited"
    else:
        sweep = _sweep(geometry.angles_rad, math.pi)
        kind = "limited" if sweep.n_missing else "half"
    sparse = sweep.step_rad * geometry.n_detectors / 2 > 4
    return Coverage(kind, geometry.n_views, sweep.arc_rad, required, sweep.step_rad, sparse)


class _Sweep(NamedTuple):
    """Views around a circle of some period, from behind its widest gap; arrays ``(view,)`` in the views' own order."""

    offset_rad: Array  # angle behind the first view
    weights_rad: Array  # arc that each view stands for, half the way to either neighbour
    step_rad: float  # widest step that is no missing arc
    n_missing: int

    @property
    def arc_rad(self) -> float:
        return float(self.weights_rad.sum())


def _sweep(angles_rad: Sequence[float], period: float) -> _Sweep:
    angles = np.asarray(angles_rad) % period
    order = np.argsort(angles, kind="stable")
    gaps = np.diff(angles[order], append=angles[order[0]] + period)  # behind each view
    start = int(np.argmax(gaps)) + 1
    order, gaps = np.roll(order, -start), np.roll(gaps, -start)
    offset = np.empty_like(angles)
    offset[order] = np.cumsum(gaps) - gaps
    last_of_group = gaps > _SAME_ANGLE_RAD
    group: NDArray[np.int64] = np.cumsum(last_of_group) - last_of_group
    steps = gaps[last_of_group]
    missing = _missing(steps)
    widest = float(steps[~missing].max(initial=0.0))
    # An arc that is missing is replaced by the step on the other side, so that all views reach as far.
    behind = np.where(missing, np.nan, steps)
    before = np.roll(behind, 1)
    behind, before = np.where(np.isnan(behind), before, behind), np.where(np.isnan(before), behind, before)
    reach = np.nan_to_num((behind + before) / 2, nan=widest)
    weights = np.empty_like(angles)
    weights[order] = (reach / np.bincount(group))[group]
    return _Sweep(offset, weights, widest, int(missing.sum()))


def _missing(steps: Array) -> NDArray[np.bool_]:
    ascending = np.sort(steps)
    for i in range(len(steps) - max(1, len(steps) // 5), len(steps)):
        if i == 0 or ascending[i] > _WIDEST_BRIDGED_STEPS * ascending[i - 1]:
            return np.asarray(steps >= ascending[i])
    return np.zeros(len(steps), dtype=np.bool_)


def _weighting(geometry: BeamGeometry, short_scan: ShortScan) -> Literal["parker", "plain"]:
    if short_scan not in ("auto", "plain"):
        raise ValueError(f"short_scan is {short_scan!r}; expected 'auto' or 'plain'.")
    one_arc = isinstance(geometry, FanBeam) and _sweep(geometry.angles_rad, 2 * math.pi).n_missing == 1
    return "parker" if one_arc and short_scan == "auto" else "plain"


def _view_weights(geometry: BeamGeometry, weighting: str) -> Array:
    """w(t, γ) · Δt · cos γ, ``(view, detector)``."""
    if not isinstance(geometry, FanBeam):
        weights = _sweep(geometry.angles_rad, math.pi).weights_rad[:, None]
        return np.broadcast_to(weights, (geometry.n_views, geometry.n_detectors)).copy()
    sweep, gamma = _sweep(geometry.angles_rad, 2 * math.pi), geometry.fan_angles_rad
    redundancy = _parker(sweep, gamma) if weighting == "parker" else min(1.0, math.pi / sweep.arc_rad)
    return np.asarray(redundancy * sweep.weights_rad[:, None] * np.cos(gamma))


def _parker(sweep: _Sweep, gamma: Array) -> Array:
    """Weights that sum to 1 over the views that measure a line, ``(view, detector)``.

    The ray (t, γ) runs along the same line as (t + π − 2γ, −γ), so an arc of π + 2Γ meets those with t < 2(Γ + γ) again
    at its end. Where it is too short for that, the weight is 1.
    """
    arc = sweep.arc_rad
    t = sweep.offset_rad - sweep.offset_rad.max() / 2 + arc / 2  # the first and last view stand half a step inside
    return _rise(t[:, None], arc - math.pi + 2 * gamma) * _rise(arc - t[:, None], arc - math.pi - 2 * gamma)


def _rise(t: Array, length: Array) -> Array:
    """Smooth rise from 0 at t = 0 to 1 at t = length; 1 where the length is not positive."""
    return np.asarray(np.sin(np.pi / 2 * (t / np.maximum(length, 1e-12)).clip(0, 1)) ** 2)


def _response(geometry: BeamGeometry, filter: Filter, n_padded: int) -> Array:
    """Response of the filter at the frequencies of ``rfft``, in 1/mm at the isocentre."""
    lag = np.fft.fftfreq(n_padded, 1 / n_padded).round()
    spacing, correction = geometry.detector_spacing_mm, np.ones_like(lag)
    if isinstance(geometry, FanBeam):
        spacing *= geometry.source_to_center_mm / geometry.source_to_detector_mm
        if geometry.curved:
            used = (np.abs(lag) < geometry.n_detectors) & (lag != 0)
            gamma = lag[used] * geometry.detector_spacing_mm / geometry.source_to_detector_mm
            correction[used] = (gamma / np.sin(gamma)) ** 2
    odd = lag % 2 == 1
    kernel = np.zeros(n_padded)
    kernel[0] = 1 / (4 * spacing)
    kernel[odd] = -correction[odd] / (np.pi * lag[odd]) ** 2 / spacing
    response = np.fft.rfft(kernel).real
    return np.asarray(response * _WINDOWS[filter](np.arange(len(response)) / n_padded))


def _fast_length(n: int) -> int:
    """Smallest even length from n on that has no prime factor above 5."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and n % 2 == 0:
            return n
        n += 1


class _BackProjection(LinearOperator):
    """Sum over the views of (R/L)² q(t, s(x, y)), with its exact adjoint for the gradient.

    The views are interpolated to a table, of which every pixel takes one row per view. What one row can serve lies
    side by side in it: the samples; the views that are quarter turns apart, which meet the turned image in the same
    places; and for parallel beams some neighbouring pixels, which are the same distance apart all over a view.
    """

    gradient = "adjoint"
    _turns: torch.Tensor

    def __init__(self, geometry: BeamGeometry, shape: tuple[int, int]) -> None:
        domain = Space((geometry.n_views, geometry.n_detectors), "real", ("view", "detector"))
        super().__init__(domain, Space(shape, "real", ("y", "x")))
        corner = geometry.pixel_spacing_mm * math.hypot(*(n - 1 for n in shape)) / 2
        if isinstance(geometry, FanBeam) and corner >= geometry.source_to_center_mm:
            raise ValueError(
                f"The image reaches {corner:g} mm from the isocentre, but the source stands at "
                f"{geometry.source_to_center_mm:g} mm; choose a smaller shape or check the lengths in mm."
            )
        turns = _quarter_turns(geometry, shape)
        self._first_turn = geometry[turns[0].tolist()]
        self.register_buffer("_turns", torch.from_numpy(turns), persistent=False)  # (turn, view)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        images = [self._image(part) for part in x.reshape(-1, *self.domain.shape).split(self._n_samples_at_once)]
        return torch.cat(images).reshape(*self.domain.batch_shape(x), *self.codomain.shape)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        views = [self._views(part) for part in y.reshape(-1, *self.codomain.shape).split(self._n_samples_at_once)]
        return torch.cat(views).reshape(*self.codomain.batch_shape(y), *self.domain.shape)

    @property
    def _n_samples_at_once(self) -> int:
        return max(1, _MAX_COLUMNS // len(self._turns))

    def _image(self, samples: torch.Tensor) -> torch.Tensor:
        views = samples[:, self._turns]  # (sample, turn, view, detector)
        columns = views.permute(2, 3, 1, 0).flatten(2)  # (view, detector, turn · sample)
        n_samples, n_turns = views.shape[:2]
        sight = _sight(self._first_turn, self.codomain.shape, _MIN_COLUMNS // n_turns, samples)
        image = samples.new_zeros(len(sight.start_mm), sight.n_together * columns.shape[2])
        for chosen in _blocks(len(columns), _VIEWS_AT_ONCE):
            table = sight.tabulate(columns[chosen], chosen)
            for block, row, weights in sight.meetings(chosen):
                image[block] += nn.functional.embedding_bag(row, table, mode="sum", per_sample_weights=weights)
        n_y, n_x = self.codomain.shape
        lines = image.reshape(n_y, -1, sight.n_together, n_turns, n_samples).permute(3, 4, 0, 1, 2)
        parts = lines.flatten(3)[..., :n_x]  # (turn, sample, y, x)
        return total([torch.rot90(part, k, dims=(-2, -1)) for k, part in enumerate(parts)])

    def _views(self, samples: torch.Tensor) -> torch.Tensor:
        parts = torch.stack([torch.rot90(samples, -k, dims=(-2, -1)) for k in range(len(self._turns))])
        sight = _sight(self._first_turn, self.codomain.shape, _MIN_COLUMNS // len(parts), samples)
        lines = nn.functional.pad(parts, (0, -self.codomain.shape[1] % sight.n_together))
        lines = lines.unflatten(3, (-1, sight.n_together))  # (turn, sample, y, group, pixel)
        image = lines.permute(4, 0, 1, 2, 3).reshape(-1, len(sight.start_mm))  # (column of the table, group)
        columns = samples.new_empty(self._first_turn.n_views, self.domain.shape[1], parts.shape[:2].numel())
        for chosen in _blocks(len(columns), _VIEWS_AT_ONCE):
            table = samples.new_zeros(len(image), len(columns[chosen]) * sight.n_rows)
            for block, row, weights in sight.meetings(chosen):
                place = row.flatten().to(torch.int64)
                for entries, values in zip(table, image[:, block, None], strict=True):
                    seen = values.expand(row.shape) if weights is None else weights * values
                    entries.scatter_add_(0, place, seen.flatten())
            columns[chosen] = sight.collect(table.T, chosen)
        views = samples.new_empty(len(samples), *self.domain.shape)
        views[:, self._turns] = columns.unflatten(2, parts.shape[:2]).permute(3, 2, 0, 1)
        return views


class _Meeting(NamedTuple):
    """Where a block of pixels meets some views."""

    block: slice
    row: torch.Tensor  # of the table of these views, (group, view)
    weights: torch.Tensor | None  # (R/L)², (group, view); 1 for parallel beams


@dataclass(frozen=True, slots=True)
class _Sight:
    """How views see the pixels, in groups of neighbours along x, as linear maps of homogeneous coordinates (x, y, 1).

    A table has, for each view, rows for every fraction of a bin: row (k + margin)·_FINE lies on bin k, and there are
    zeros on either side of the detector. Its columns are those of the views, for each pixel of a group in turn.
    """

    start_mm: torch.Tensor  # (group, 3): the first pixel of each group
    to_row: torch.Tensor  # (3, view): row of the table, or tan γ where the detector is curved, times the depth
    to_depth: torch.Tensor | None  # (3, view): L/R along the central ray; 1 for parallel beams
    arc: tuple[float, float] | None  # rows per radian of γ, and the row of γ = 0, where the detector is curved
    rows_apart: list[list[float]]  # (view, pixel of the group): rows from the first pixel to each
    margin: int  # bins of zeros on either side of the detector
    n_rows: int  # of the table, per view

    @property
    def n_together(self) -> int:
        return len(self.rows_apart[0])

    def meetings(self, chosen: slice) -> Iterator[_Meeting]:
        to_row = self.to_row[:, chosen]
        to_depth = None if self.to_depth is None else self.to_depth[:, chosen]
        first = torch.arange(to_row.shape[1], dtype=torch.int32, device=to_row.device) * self.n_rows
        for block in _blocks(len(self.start_mm), _PIXELS_AT_ONCE):
            position, weights = self.start_mm[block] @ to_row, None
            if to_depth is not None:
                nearness = (self.start_mm[block] @ to_depth).reciprocal_()
                position.mul_(nearness)
                weights = nearness.square_()
            if self.arc is not None and weights is not None:
                weights.div_(position.square().add_(1))
                position.atan_().mul_(self.arc[0]).add_(self.arc[1])
            yield _Meeting(block, position.clamp_(0, self.n_rows - 1).to(torch.int32).add_(first), weights)

    def tabulate(self, columns: torch.Tensor, chosen: slice) -> torch.Tensor:
        """Table ``(view · row, pixel of the group · column)`` of views ``(view, detector, column)``."""
        padded = nn.functional.pad(columns, (0, 0, self.margin, self.margin + 1))[:, :, None]
        fine = torch.lerp(padded[:, :-1], padded[:, 1:], _fractions(columns)).flatten(1, 2)  # (view, row, column)
        if self.n_together == 1:
            return fine.flatten(0, 1)
        table = fine.new_zeros(len(fine), self.n_rows, self.n_together, fine.shape[2])
        for view, pixel, rows, source, beyond, fraction in self._shifts(chosen):
            torch.lerp(fine[view, source], fine[view, beyond], fraction, out=table[view, rows, pixel])
        return table.flatten(2).flatten(0, 1)

    def collect(self, table: torch.Tensor, chosen: slice) -> torch.Tensor:
        """Adjoint of ``tabulate``."""
        fine = table.unflatten(0, (-1, self.n_rows))
        if self.n_together > 1:
            table = fine.unflatten(2, (self.n_together, -1))
            fine = torch.zeros_like(table[:, :, 0])
            for view, pixel, rows, source, beyond, fraction in self._shifts(chosen):
                fine[view, source] += (1 - fraction) * table[view, rows, pixel]
                fine[view, beyond] += fraction * table[view, rows, pixel]
        fine, to_right = fine.unflatten(1, (-1, _FINE)), _fractions(table)
        from_left, from_right = ((1 - to_right) * fine).sum(dim=2), (to_right * fine).sum(dim=2)
        return from_left[:, self.margin : -self.margin] + from_right[:, self.margin - 1 : -self.margin - 1]

    def _shifts(self, chosen: slice) -> Iterator[tuple[int, int, slice, slice, slice, float]]:
        """View, pixel of the group, rows, and between which other rows of the first pixel they lie, and where."""
        for view, apart in enumerate(self.rows_apart[chosen]):
            for pixel, distance in enumerate(apart):
                k = math.floor(distance)
                start, stop = max(0, -k), min(self.n_rows, self.n_rows - 1 - k)
                source, beyond = slice(start + k, stop + k), slice(start + k + 1, stop + k + 1)
                yield view, pixel, slice(start, stop), source, beyond, distance - k


def _sight(geometry: BeamGeometry, shape: tuple[int, ...], n_neighbours: int, like: torch.Tensor) -> _Sight:
    spacing, fan = geometry.pixel_spacing_mm, geometry if isinstance(geometry, FanBeam) else None
    n_together = max(1, n_neighbours) if fan is None else 1
    x, y = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (shape[1], shape[0]))
    start_mm = torch.stack(torch.meshgrid(x[::n_together], -y, indexing="xy"), dim=-1) * spacing
    start_mm = nn.functional.pad(start_mm, (0, 1), value=1.0).flatten(0, 1).to(like)
    t = torch.tensor(geometry.angles_rad, dtype=torch.float64)
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    across = torch.stack((t.cos(), t.sin(), zero))
    rows_per_mm = _FINE / geometry.detector_spacing_mm
    rows_apart = (torch.arange(n_together) * t.cos()[:, None] * spacing * rows_per_mm).tolist()
    margin = 1 + math.ceil((n_together - 1) * spacing / geometry.detector_spacing_mm)
    n_rows = (geometry.n_detectors + 2 * margin) * _FINE
    middle = margin * _FINE - float(geometry.detector_mm[0]) * rows_per_mm + 0.5  # row of u = 0; ½, as it is truncated
    to_depth, arc = None, None
    if fan is None:
        to_row = rows_per_mm * across + middle * torch.stack((zero, zero, one))
    else:
        to_depth = torch.stack((-t.sin() / fan.source_to_center_mm, t.cos() / fan.source_to_center_mm, one))
        tangent, rows_per_rad = across / fan.source_to_center_mm, rows_per_mm * fan.source_to_detector_mm
        to_row = tangent if fan.curved else rows_per_rad * tangent + middle * to_depth
        arc = (rows_per_rad, middle) if fan.curved else None
        to_depth = to_depth.to(like)
    return _Sight(start_mm, to_row.to(like), to_depth, arc, rows_apart, margin, n_rows)


def _fractions(like: torch.Tensor) -> torch.Tensor:
    return torch.arange(_FINE, dtype=like.dtype, device=like.device)[:, None] / _FINE


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))


def _quarter_turns(geometry: BeamGeometry, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Views ``(turn, view)`` such that the angles of each turn are those of the first plus its quarter turns."""
    offset = _sweep(geometry.angles_rad, 2 * math.pi).offset_rad
    order = np.argsort(offset, kind="stable").astype(np.int64)
    for n_turns in (4, 2):
        if shape[0] == shape[1] and len(order) % n_turns == 0:
            turns = order.reshape(n_turns, -1)
            expected = offset[turns[0]] + np.arange(n_turns)[:, None] * math.pi / 2
            if np.abs(offset[turns] - expected).max() < _SAME_ANGLE_RAD:
                return turns
    return order[None]
