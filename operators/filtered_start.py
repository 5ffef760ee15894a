"""Filtered back-projection where the adjoint would blur: images to start from, and residuals brought into the image."""

import functools
import math
from typing import NamedTuple

import torch

from operators.back_projection import FilteredBackProjection
from operators.beam_geometry import BeamGeometry, FanBeam
from operators.elementary import Diagonal
from operators.linear_operator import Composition, LinearOperator, Scaled
from operators.projection import Projection


def initial_image(y: torch.Tensor, A: LinearOperator) -> torch.Tensor:
    """Make an image to start from: by filtered back-projection where A is a projection, else Aᴴy.

    Numbers and weights in front of a projection (`Scaled`, `Diagonal`, `MetalTrace`) are divided out of the data first,
    so that the image is at the right scale for any number of views; where they are zero, so are the data.

    Parameters
    ----------
    y
        Data, ``(*batch, *A.codomain.shape)``.
    A
        The forward operator.

    Returns
    -------
    torch.Tensor
        Images ``(*batch, *A.domain.shape)``.

    Raises
    ------
    TypeError, ValueError
        If ``y`` does not fit ``A``, or all views of a projection share one angle.

    Examples
    --------
    >>> from operators.beam_geometry import ParallelBeam
    >>> geometry = ParallelBeam(tuple(math.pi * k / 24 for k in range(24)), 47, 1.0, 1.0)
    >>> A = 0.1 * Projection(geometry, (32, 32))
    >>> x = torch.nn.functional.pad(torch.ones(16, 16), (8, 8, 8, 8))
    >>> round(float(initial_image(A(x), A)[12:20, 12:20].mean()), 1)
    1.0
    """
    scan = _weighted_projection(A)
    if scan is None:
        return A.adjoint(y)
    A.codomain.check(y, "y")
    weights = scan.weights.to(y)
    lines = torch.where(weights == 0, 0.0, y / torch.where(weights == 0, 1.0, weights))
    return _filtered_back_projection(scan.projection.geometry, scan.projection.domain.shape, y.device)(lines)


def filtered_adjoint(residual: torch.Tensor, A: LinearOperator) -> torch.Tensor:
    """Bring a residual into the image, so filtered that ``x − filtered_adjoint(A x − y, A)`` soon fits the data.

    Aᴴ, unless A is a projection P with weights W in front of it. Then it is F C Wᴴ/‖W‖², F filtered back-projection.
    The ramp alone would overshoot: at a frequency f along the detector, views Δt apart overlap in an image of diameter
    L only up to f L Δt = 1, and beyond, F P multiplies by f L Δt. So C cuts the ramp there, which leaves the
    eigenvalues of F C P between about 0 and 1½ however few the views. As F is no exact adjoint, some lie just below 0
    (−0.02): that is for tens of steps, not for hundreds.

    Parameters
    ----------
    residual
        A x − y, ``(*batch, *A.codomain.shape)``.
    A
        The forward operator.

    Returns
    -------
    torch.Tensor
        ``(*batch, *A.domain.shape)``.

    Raises
    ------
    TypeError, ValueError
        As for `initial_image`.
    """
    scan = _weighted_projection(A)
    if scan is None:
        return A.adjoint(residual)
    A.codomain.check(residual, "residual")
    geometry, shape = scan.projection.geometry, scan.projection.domain.shape
    weights = scan.weights.to(residual)
    power = weights.square()
    peak = power.amax(dim=tuple(range(-min(power.ndim, 2), 0)), keepdim=True) if power.ndim else power
    lines = residual * weights / torch.where(peak > 0, peak, 1.0)
    gain = _overlap_gain(geometry, shape, residual.device).to(residual)
    n_padded = 2 * (gain.shape[-1] - 1)
    cut = torch.fft.irfft(torch.fft.rfft(lines, n_padded) * gain, n_padded)[..., : lines.shape[-1]]
    return _filtered_back_projection(geometry, shape, residual.device)(cut)


class _WeightedProjection(NamedTuple):
    projection: Projection
    weights: torch.Tensor  # real, broadcasting with the sinogram


def _weighted_projection(A: LinearOperator) -> _WeightedProjection | None:
    """A as weights after a projection, if it is that."""
    if isinstance(A, Projection):
        return _WeightedProjection(A, torch.ones(()))
    if isinstance(A, Scaled):
        scan, weights = _weighted_projection(A.operator), A.scalar
    elif isinstance(A, Composition):
        *front, last = A.factors
        scan, weights = _weighted_projection(last), torch.ones(())  # type: ignore[arg-type]  # a list of modules forgets
        for factor in front:
            if not isinstance(factor, Diagonal):
                return None
            weights = weights * factor.weights
    else:
        return None
    return None if scan is None or weights.is_complex() else scan._replace(weights=weights * scan.weights)


@functools.lru_cache(maxsize=16)
def _filtered_back_projection(
    geometry: BeamGeometry, shape: tuple[int, ...], device: torch.device
) -> FilteredBackProjection:
    return FilteredBackProjection(geometry, shape).to(device)


@functools.lru_cache(maxsize=16)
def _overlap_gain(geometry: BeamGeometry, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """min(1, 1/(f L Δt)) for each view and frequency of ``rfft``, padded to twice the detector."""
    step = _filtered_back_projection(geometry, shape, torch.device("cpu")).weights.amax(dim=-1, keepdim=True)
    spacing = geometry.detector_spacing_mm
    if isinstance(geometry, FanBeam):
        spacing *= geometry.source_to_center_mm / geometry.source_to_detector_mm
    diameter = math.hypot(*shape) * geometry.pixel_spacing_mm
    frequency = torch.fft.rfftfreq(2 * geometry.n_detectors, spacing, dtype=torch.float64)
    return (1 / (frequency * diameter * step).clamp_min(1)).to(device)
