"""Where the axis of rotation meets the detector, and whether opposite rays agree: found from the numbers alone."""

import math

import numpy as np
from numpy.typing import NDArray

from operators.beam_geometry import BeamGeometry, FanBeam
from operators.decision import Decision

Array = NDArray[np.float64]

_COARSE_BINS = 256
_MOST_VIEWS = 256
_SLOWEST_FREQUENCY = 4  # turns per scan; below lies the scan as a whole, not its detail
_DOUBTFUL = 0.5
_FARTHEST = 0.25  # of the detector
_SEARCHED_BINS = 6
_CLEARLY_BETTER = 1.3


def rotation_axis(views: Array, angles_rad: Array) -> tuple[float, bool] | None:
    """Find the axis of rotation of a parallel scan over half a turn or more.

    A scan continued by its mirror image is one over the whole turn, and the Fourier transform of such a sinogram is
    all but empty outside a double wedge, if the mirror stands at the axis. The axis with the emptiest outside is taken.

    Parameters
    ----------
    views
        Line integrals, ``(view, detector)``.
    angles_rad
        Angles of the views, ``(view,)``, in radians.

    Returns
    -------
    axis, doubtful
        Distance of the axis from the middle of the detector, in bins, and whether the search found no clear minimum;
        ``None`` if the scan covers less than 160 degrees or has fewer than 8 views or bins.

    References
    ----------
    Vo, Drakopoulos, Atwood and Reinhard, "Reliable method for calculating the center of rotation in parallel-beam
    tomography", Optics Express 22, 2014, section 3. Here the wedge is that of an object as wide as the detector, and
    shifts are exact in Fourier space.
    """
    chosen = _half_turn(angles_rad)
    n = views.shape[-1]
    if chosen is None or len(chosen) < 8 or n < 8:
        return None
    views = views[chosen]
    step = math.ceil(n / _COARSE_BINS)
    coarse = views[:: math.ceil(len(views) / _MOST_VIEWS), : n // step * step]
    coarse = coarse.reshape(len(coarse), -1, step).mean(axis=-1)
    # The middle of what was cut to whole groups is not quite that of the detector.
    cut = (n // step * step - n) / 2
    farthest = max(1, int(_FARTHEST * coarse.shape[1]))
    shifts = np.arange(-farthest, farthest + 1, dtype=np.float64)
    outside = np.array([_outside_wedge(coarse, shift) for shift in shifts])
    axis = shifts[outside.argmin()] * step + cut
    doubtful = bool(outside.min() > _DOUBTFUL * np.median(outside)) or abs(axis) >= (farthest - 1) * step
    for width in (step, step / 4, step / 16) if step > 1 else (1.0, 0.25, 0.0625):
        shifts = axis + width * np.linspace(-1, 1, 9)
        axis = float(shifts[np.argmin([_outside_wedge(views, shift) for shift in shifts])])
    return axis, doubtful


def opposite_rays(views: Array, geometry: BeamGeometry) -> Decision | None:
    """Compare the rays of a full circle with those that run along the same lines the other way.

    Parameters
    ----------
    views
        Line integrals, ``(view, detector)``.
    geometry
        Where the rays are said to run.

    Returns
    -------
    Decision or None
        A warning, if opposite rays agree clearly better with the bins in reverse or with another detector offset.
        Nothing is changed. ``None`` too if the scan is no full circle at equal steps.
    """
    n_views, n = views.shape
    angles = np.asarray(geometry.angles_rad)
    steps = np.diff(angles)
    turn = 2 * math.pi / n_views
    if n_views < 16 or n < 16 or not np.allclose(np.abs(steps), turn, rtol=1e-3) or np.ptp(np.sign(steps)):
        return None
    spacing = geometry.detector_spacing_mm
    trials = geometry.detector_offset_mm + spacing * np.arange(-_SEARCHED_BINS, _SEARCHED_BINS + 0.01, 0.25)
    stated = _disagreement(views, geometry, geometry.detector_offset_mm)
    found = np.array([_disagreement(views, geometry, offset) for offset in trials])
    reversed_ = np.array([_disagreement(views[:, ::-1], geometry, offset) for offset in trials])
    if reversed_.min() * _CLEARLY_BETTER < found.min():
        reason = "Rays and their opposites agree better when the detector bins are counted the other way."
        return Decision("opposite_rays", "they disagree", reason, "--reverse-detector", warning=True)
    best = float(trials[found.argmin()])
    if found.min() * _CLEARLY_BETTER < stated and abs(best - geometry.detector_offset_mm) >= 0.5 * spacing:
        reason = (
            f"Rays and their opposites agree best at a detector offset of {best:.3g} mm, and the geometry says "
            f"{geometry.detector_offset_mm:.3g} mm; nothing was changed."
        )
        return Decision("opposite_rays", "they disagree", reason, f"--detector-offset-mm {best:.3g}", warning=True)
    return None


def _half_turn(angles_rad: Array) -> NDArray[np.intp] | None:
    """Indices of views over half a turn, or ``None`` if the scan covers too little."""
    order = np.argsort(angles_rad)
    ahead = angles_rad[order] - angles_rad[order[0]]
    chosen = order[ahead < math.pi - 1e-9]
    if len(chosen) < 2:
        return None
    covered = float(angles_rad[chosen].max() - angles_rad[chosen].min()) * len(chosen) / (len(chosen) - 1)
    return chosen if covered > math.radians(160) else None


def _outside_wedge(views: Array, axis: float) -> float:
    """Mean amplitude outside the double wedge of views continued by their mirror image about an axis, in bins."""
    n = views.shape[1]
    frequency = np.fft.rfftfreq(n)
    centred = np.fft.irfft(np.fft.rfft(views, axis=1) * np.exp(2j * np.pi * frequency * axis), n, axis=1)
    turn = np.concatenate((centred, centred[:, ::-1]))
    amplitude = np.abs(np.fft.rfft2(turn))
    along = frequency * 2 * math.pi * n / 2
    around = np.abs(np.fft.fftfreq(len(turn)) * len(turn))[:, None]
    outside = (around > along) & (around > _SLOWEST_FREQUENCY)
    return float(amplitude[outside].mean())


def _disagreement(views: Array, geometry: BeamGeometry, offset_mm: float) -> float:
    """Root mean square difference between rays and their opposites, for a detector offset in mm."""
    n_views, n = views.shape
    spacing = geometry.detector_spacing_mm
    u_mm = (np.arange(n) - (n - 1) / 2) * spacing + offset_mm
    rows = np.arange(0, n_views, math.ceil(n_views / 64))[:, None]
    if isinstance(geometry, FanBeam):
        ratio = u_mm / geometry.source_to_detector_mm
        gamma = ratio if geometry.curved else np.arctan(ratio)
    else:
        gamma = np.zeros(n)
    direction = 1 if geometry.angles_rad[1] > geometry.angles_rad[0] else -1
    # The ray at (t, γ) runs back along the one at (t + π − 2γ, −γ).
    view = (rows + direction * (math.pi - 2 * gamma) / (2 * math.pi / n_views)) % n_views
    detector = (-u_mm - offset_mm) / spacing + (n - 1) / 2
    inside = (detector >= 0) & (detector <= n - 1)
    if np.count_nonzero(inside) < n // 4:
        return math.inf
    opposite = _bilinear(views, view[:, inside], np.broadcast_to(detector[inside], view[:, inside].shape))
    return float(np.sqrt(np.mean((opposite - views[rows, np.flatnonzero(inside)]) ** 2)))


def _bilinear(views: Array, row: Array, column: Array) -> Array:
    """Interpolate in views that repeat after a turn."""
    n_views, n = views.shape
    first, left = np.floor(row).astype(int), np.minimum(np.floor(column).astype(int), n - 2)
    down, across = row - first, column - left
    first, second = first % n_views, (first + 1) % n_views
    top = views[first, left] * (1 - across) + views[first, left + 1] * across
    bottom = views[second, left] * (1 - across) + views[second, left + 1] * across
    return np.asarray(top * (1 - down) + bottom * down)
