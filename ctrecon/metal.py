"""Reduction of metal artefacts in the sinogram: find the metal, replace its trace, and put the metal back."""

import math
from dataclasses import replace
from typing import Literal, NamedTuple

import torch

from ctrecon.hounsfield import to_hu, to_mu
from ctrecon.reconstruction import Reconstruction, operator_for, reconstruct
from ctrecon.sinogram import Sinogram
from operators.back_projection import Filter, filtered_back_projection
from operators.decision import Decision
from operators.errors import InputError
from operators.metal import interpolate_trace, metal_trace
from operators.projection import Projection

MetalMethod = Literal["li", "nmar"]

METAL_HU = 2500.0
"""What is brighter than this, in HU, is taken for metal."""

_LUNG_BELOW_HU, _BONE_ABOVE_HU = -500.0, 400.0
_AIR_HU, _TISSUE_HU = -1000.0, 0.0
_PRIOR_SMOOTHING_MM = 1.5
_LEAST_OF_PRIOR = 0.05  # of the largest line integral of the prior: below, normalising would only amplify noise


class MetalReduction(NamedTuple):
    """A sinogram without its metal, and where that was.

    Parameters
    ----------
    sinogram
        The scan with the trace replaced; the rest is untouched.
    mask
        1 = metal, bool ``(slice, y, x)``.
    trace
        1 = replaced, 0 = not, real ``(slice, view, detector)``.
    decisions
        What was decided or done here, in order; also at the end of the sinogram's own.
    """

    sinogram: Sinogram
    mask: torch.Tensor
    trace: torch.Tensor
    decisions: tuple[Decision, ...]


def segment_metal(hu: torch.Tensor, threshold_hu: float = METAL_HU) -> torch.Tensor:
    """Find the metal in an image: all pixels above a threshold.

    Parameters
    ----------
    hu
        Real ``(*batch, y, x)``, in HU, with the metal in it.
    threshold_hu
        In HU. Enamel and dense bone reach 2000, titanium has more than 8000.

    Returns
    -------
    torch.Tensor
        Bool, the shape of the image.

    Raises
    ------
    TypeError
        If the image is not real.
    """
    if not hu.is_floating_point():
        raise TypeError(f"hu is {hu.dtype}; expected real floating-point Hounsfield units.")
    return hu > threshold_hu


def insert_metal(image: torch.Tensor, mask: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Put the metal of the uncorrected image back into the corrected one.

    Parameters
    ----------
    image, original
        Corrected and uncorrected image, real ``(*batch, y, x)``, in the same unit.
    mask
        1 = metal, broadcasts to the images.

    Returns
    -------
    torch.Tensor
        ``original`` where the metal is, ``image`` elsewhere.
    """
    return torch.where(mask == 1, original, image)


def reduce_metal(
    sinogram: Sinogram,
    method: MetalMethod = "nmar",
    *,
    mask: torch.Tensor | None = None,
    threshold_hu: float = METAL_HU,
) -> MetalReduction:
    """Replace the trace of metal in a sinogram.

    ``"li"`` interpolates each view linearly across the trace. ``"nmar"`` takes the image of that as a prior (tissue at
    0 HU; bone above 400 HU as it is; air and lung below −500 HU smoothed, but not below −1000), divides the sinogram by
    the prior's, interpolates the quotient and multiplies again, so that the edges of bone and skin, which the prior
    knows, survive in the trace.

    Parameters
    ----------
    sinogram
        The scan.
    method
        ``"li"`` or ``"nmar"``.
    mask
        1 = metal, bool or 0 and 1, broadcasts to ``(slice, y, x)``; by default what `segment_metal` finds in the
        filtered back-projection.
    threshold_hu
        Threshold of that segmentation, in HU.

    Returns
    -------
    MetalReduction
        Corrected sinogram, mask, trace and log. Without any metal the sinogram is unchanged, and the log says so.

    Raises
    ------
    InputError
        If the method is unknown, the mask does not fit, or metal covers a whole view.

    References
    ----------
    Kalender, Hebel and Ebersberger, Reduction of CT artifacts caused by metallic implants, Radiology 164 (1987), for
    the interpolation; Meyer et al., Normalized metal artifact reduction (NMAR) in computed tomography, Med. Phys. 37
    (2010), with fixed thresholds, lung kept in the prior, and
    the place of the metal treated like the rest of the image.
    """
    if method not in ("li", "nmar"):
        raise InputError(f"The method {method!r} is unknown; choose li or nmar.")
    A = operator_for(sinogram)
    if mask is None:
        mask = segment_metal(_hu(sinogram, sinogram.data), threshold_hu)
        found = Decision(
            "metal", _extent(mask), f"pixels above {threshold_hu:g} HU", override="--mask or --threshold-hu"
        )
    else:
        mask = _fitting_mask(mask, (sinogram.n_slices, *sinogram.image_shape))
        found = Decision("metal", _extent(mask), "the mask that was given")
    if not bool(mask.any()):
        found = replace(found, warning=True)
        return MetalReduction(sinogram.with_decisions(found), mask, torch.zeros_like(sinogram.data), (found,))
    trace = metal_trace(mask, A)
    if bool(trace.all(dim=-1).any()):
        raise InputError("Metal covers every ray of at least one view, so nothing is left to interpolate from.")
    data = interpolate_trace(sinogram.data, trace)
    if method == "nmar":
        data = _normalised(sinogram, data, trace, A)
    weights = None if sinogram.weights is None else interpolate_trace(sinogram.weights, trace)
    reason = {"li": "linear interpolation in each view", "nmar": "interpolation after division by a prior image"}[
        method
    ]
    share = f"{method}, {100 * float(trace.mean()):.2g} % of the rays"
    decisions = (found, Decision("metal_reduction", share, reason, override="--method"))
    corrected = replace(sinogram, data=data, weights=weights).with_decisions(*decisions)
    return MetalReduction(corrected, mask, trace, decisions)


def reconstruct_without_metal(
    sinogram: Sinogram,
    method: MetalMethod = "nmar",
    *,
    mask: torch.Tensor | None = None,
    threshold_hu: float = METAL_HU,
    filter: Filter = "ramp",
) -> Reconstruction:
    """Reduce metal, reconstruct by filtered back-projection, and put the metal back.

    Parameters
    ----------
    sinogram
        The scan.
    method, mask, threshold_hu
        As for `reduce_metal`.
    filter
        Filter of filtered back-projection.

    Returns
    -------
    Reconstruction
        Images with the metal of the uncorrected ones, grid, log.

    Raises
    ------
    InputError
        As for `reduce_metal`.
    """
    reduction = reduce_metal(sinogram, method, mask=mask, threshold_hu=threshold_hu)
    result = reconstruct(reduction.sinogram, "fbp", filter=filter)
    original = filtered_back_projection(sinogram.data, sinogram.geometry, sinogram.image_shape, filter=filter)
    whole = insert_metal(result.mu_per_mm, reduction.mask, original)
    return replace(result, mu_per_mm=whole, method=f"fbp after {method}")


def _normalised(sinogram: Sinogram, interpolated: torch.Tensor, trace: torch.Tensor, A: Projection) -> torch.Tensor:
    """NMAR, from the sinogram of linear interpolation."""
    prior = A(to_mu(_prior(_hu(sinogram, interpolated), sinogram.geometry.pixel_spacing_mm), sinogram.mu_water_per_mm))
    divisor = torch.maximum(prior, _LEAST_OF_PRIOR * prior.amax(dim=(-2, -1), keepdim=True))
    filled = interpolate_trace(sinogram.data / divisor, trace) * divisor
    return torch.where(trace == 1, filled, sinogram.data)


def _prior(hu: torch.Tensor, pixel_spacing_mm: float) -> torch.Tensor:
    """Tissue as a constant, bone as it is, air and lung smoothed."""
    smooth = _smoothed(hu, _PRIOR_SMOOTHING_MM / pixel_spacing_mm)
    prior = torch.where(smooth > _BONE_ABOVE_HU, hu, _TISSUE_HU)
    return torch.where(smooth < _LUNG_BELOW_HU, smooth.clamp_min(_AIR_HU), prior)


def _smoothed(image: torch.Tensor, std_pixels: float) -> torch.Tensor:
    """Gaussian mean of ``(slice, y, x)``, replicated at the border."""
    radius = math.ceil(3 * std_pixels)
    offsets = torch.arange(-radius, radius + 1, dtype=image.dtype)
    bell = torch.exp(-0.5 * (offsets / std_pixels).square())
    window = torch.outer(bell, bell)[None, None] / bell.sum().square()
    padded = torch.nn.functional.pad(image[:, None], (radius,) * 4, mode="replicate")
    return torch.nn.functional.conv2d(padded, window)[:, 0]


def _hu(sinogram: Sinogram, data: torch.Tensor) -> torch.Tensor:
    image = filtered_back_projection(data, sinogram.geometry, sinogram.image_shape)
    return to_hu(image, sinogram.mu_water_per_mm)


def _extent(mask: torch.Tensor) -> str:
    n_pixels = int(mask.sum())
    return f"{n_pixels} pixels" if n_pixels else "none found, nothing was corrected"


def _fitting_mask(mask: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    if mask.is_complex() or not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError("The metal mask holds values other than 0 and 1; 1 = metal.")
    if mask.ndim > 3 or any(n not in (1, m) for n, m in zip(mask.shape[::-1], shape[::-1], strict=False)):
        raise InputError(f"The metal mask has shape {tuple(mask.shape)}; it must fit the image, {shape} (slice, y, x).")
    return (mask == 1).expand(shape)
