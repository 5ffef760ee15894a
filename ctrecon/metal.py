"""Reduction of metal artefacts: find the metal, do without its rays or replace them, and put the metal back."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from ctrecon.hounsfield import MU_WATER_PER_MM, to_hu, to_mu
from ctrecon.method_names import DEFAULT_METAL_METHOD, METAL_METHOD_NAMES, METAL_METHODS
from ctrecon.prepare import noise_std
from ctrecon.reconstruction import Reconstruction, operator_for
from ctrecon.sinogram import Sinogram
from operators.back_projection import Filter, FilteredBackProjection, coverage
from operators.decision import Decision
from operators.device import usable_device
from operators.errors import InputError
from operators.filtered_start import initial_image
from operators.linear_operator import LinearOperator
from operators.metal import interpolate_trace, masked, metal_trace
from operators.projection import Projection
from operators.total_variation_start import total_variation_image

if TYPE_CHECKING:
    from ctrecon.learned import LearnedMethod
    from operators.trained import TrainedModel

MetalMethod = Literal["li", "nmar"]
Progress = Callable[[int, int], None]

METAL_HU = 2500.0
"""What is brighter than this, in HU, is taken for metal."""

_LUNG_BELOW_HU, _BONE_ABOVE_HU = -500.0, 400.0
_AIR_HU, _TISSUE_HU = -1000.0, 0.0
_PRIOR_SMOOTHING_MM = 1.5
_STRENGTH = 4.0  # of total variation; the spectrum makes the data less consistent than their noise says
_LEAST_OF_PRIOR = 0.05  # of the largest line integral of the prior: below, normalising would only amplify noise
_SHIPPED = Path(__file__).parent / "weights"


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

    Parameters
    ----------
    sinogram
        The scan.
    method
        ``"li"`` or ``"nmar"``, see `fill_trace`.
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
    """
    if method not in ("li", "nmar"):
        raise InputError(f"The method {method!r} is unknown; choose li or nmar.")
    return _reduced(sinogram, operator_for(sinogram), method, mask, threshold_hu)


def fill_trace(
    line_integrals: torch.Tensor,
    trace: torch.Tensor,
    A: Projection,
    method: MetalMethod = "nmar",
    *,
    mu_water_per_mm: float = MU_WATER_PER_MM,
) -> torch.Tensor:
    """Replace the line integrals of rays through metal.

    ``"li"`` interpolates each view linearly across the trace. ``"nmar"`` takes the image of that as a prior (tissue at
    0 HU; bone above 400 HU as it is; air and lung below −500 HU smoothed, but not below −1000), divides the sinogram by
    the prior's, interpolates the quotient and multiplies again, so that the edges of bone and skin, which the prior
    knows, survive in the trace.

    Parameters
    ----------
    line_integrals
        Real ``(slice, view, detector)``; what stands in the trace does not matter.
    trace
        1 = metal, bool or 0 and 1, like these.
    A
        The operator of the scan.
    method
        ``"li"`` or ``"nmar"``.
    mu_water_per_mm
        Attenuation of water, in 1/mm.

    Returns
    -------
    torch.Tensor
        Like ``line_integrals``, and the same beside the trace.

    Raises
    ------
    ValueError
        As for `operators.metal.interpolate_trace`.

    References
    ----------
    Kalender, Hebel and Ebersberger, Reduction of CT artifacts caused by metallic implants, Radiology 164 (1987), for
    the interpolation; Meyer et al., Normalized metal artifact reduction (NMAR) in computed tomography, Med. Phys. 37
    (2010), with fixed thresholds, lung kept in the prior, and the place of the metal treated like the rest of the
    image.
    """
    interpolated = interpolate_trace(line_integrals, trace)
    if method == "li":
        return interpolated
    hu = to_hu(initial_image(interpolated, A), mu_water_per_mm)
    prior = A(to_mu(_prior(hu, A.geometry.pixel_spacing_mm), mu_water_per_mm))
    divisor = torch.maximum(prior, _LEAST_OF_PRIOR * prior.amax(dim=(-2, -1), keepdim=True))
    filled = interpolate_trace(line_integrals / divisor, trace) * divisor
    return torch.where(trace == 1, filled, line_integrals)


def _reduced(
    sinogram: Sinogram, A: Projection, method: MetalMethod, mask: torch.Tensor | None, threshold_hu: float
) -> MetalReduction:
    if mask is None:
        hu = to_hu(initial_image(sinogram.data, A), sinogram.mu_water_per_mm)
        mask = segment_metal(hu, threshold_hu)
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
    data = fill_trace(sinogram.data, trace, A, method, mu_water_per_mm=sinogram.mu_water_per_mm)
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
    method: "str | TrainedModel" = DEFAULT_METAL_METHOD,
    *,
    mask: torch.Tensor | None = None,
    threshold_hu: float = METAL_HU,
    filter: Filter = "ramp",
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Reconstruction:
    """Reconstruct without the rays through metal, and put the metal back.

    ``"li"`` and ``"nmar"`` replace the trace of the metal and reconstruct by filtered back-projection. ``"tv"`` and
    trained models start from the image of ``"nmar"`` (with the ramp, and if they take one), and see the rays beside the
    metal only.

    Parameters
    ----------
    sinogram
        The scan.
    method
        ``"li"``, ``"nmar"``, ``"tv"``, the name of a method whose trained weights come with the package, or a trained
        model such as `load_metal_method` reads.
    mask, threshold_hu
        As for `reduce_metal`.
    filter
        Filter of filtered back-projection.
    device
        Where to compute.
    progress
        Called with (slices done, slices in all).

    Returns
    -------
    Reconstruction
        Images with the metal of the uncorrected ones, grid, log. Noise level and residual are those of the rays beside
        the metal.

    Raises
    ------
    InputError
        As for `reduce_metal`, and if the device or the method is unknown, or its weights are missing.
    """
    target = usable_device(device)
    filling, model = _chosen(method)
    A = operator_for(sinogram)
    reduction = _reduced(sinogram, A, filling, mask, threshold_hu)
    decisions, name = reduction.sinogram.decisions, f"fbp after {filling}"
    if not bool(reduction.mask.any()):
        model = None
    if model is not None:
        start = "the image of nmar and the rays beside the metal" if model.refines else "the rays beside the metal"
        decisions = (*decisions, Decision("metal_free_image", model.name, f"made from {start}", override="--method"))
        name = model.name
    kept = reduction.trace == 0 if sinogram.weights is None else (reduction.trace == 0) & (sinogram.weights > 0)
    noise, noise_decision = noise_std(replace(sinogram, weights=kept.to(torch.float32)))
    swept = coverage(sinogram.geometry)
    coverage_decision = Decision("coverage", swept.kind, str(swept), warning=swept.kind == "limited")
    back_project = _back_projection(A, filter, target)
    A = A.to(target)
    norm = None if model is None else float(A.norm())
    images, residuals = [], []
    for i in range(sinogram.n_slices):
        y, filled, rays, metal = (
            t[i : i + 1].to(target) for t in (sinogram.data, reduction.sinogram.data, kept, reduction.mask)
        )
        image = back_project(filled)
        if model is not None:
            x0 = initial_image(filled, A) if model.refines else None
            image = reconstruct_beside_metal(model.reconstruct, y, A, ~rays, noise, x0, norm=norm)
        residuals.append(_whitened_residual(A(image) - y, rays, noise).cpu())
        images.append(insert_metal(image, metal, back_project(y)).cpu())
        if progress is not None:
            progress(i + 1, sinogram.n_slices)
    return Reconstruction(
        mu_per_mm=torch.cat(images),
        mu_water_per_mm=sinogram.mu_water_per_mm,
        grid=sinogram.grid(),
        method=name,
        noise_std=noise,
        residual=torch.cat(residuals),
        decisions=(*decisions, noise_decision, coverage_decision),
    )


def reconstruct_beside_metal(
    model: Callable[..., torch.Tensor],
    y: torch.Tensor,
    A: Projection,
    trace: torch.Tensor,
    noise_std: float | torch.Tensor,
    x0: torch.Tensor | None = None,
    *,
    norm: float | None = None,
) -> torch.Tensor:
    """Apply a model to the rays beside metal, in units in which the projection has norm 1.

    Parameters
    ----------
    model
        An `operators.reconstructor.Reconstructor`, or what is called like it; with ``x0`` a
        `operators.reconstructor.Refinement`.
    y
        Line integrals, real ``(*batch, view, detector)``; what stands in the trace does not matter.
    A
        The operator of all rays.
    trace
        Rays to leave out, bool ``(*batch, view, detector)``.
    noise_std
        Root mean square of the noise of the others.
    x0
        Images to start from, attenuation in 1/mm, real ``(*batch, y, x)``.
    norm
        ‖A‖, where it is known.

    Returns
    -------
    torch.Tensor
        Attenuation, real ``(*batch, y, x)``, in 1/mm.
    """
    scale = 1 / (float(A.norm()) if norm is None else norm)
    data = scale * torch.where(trace, 0, y)
    beside = scale * masked(A, trace.to(y.dtype))
    noise = scale * torch.as_tensor(noise_std, dtype=y.dtype, device=y.device)
    return model(data, beside, noise) if x0 is None else model(data, beside, noise, x0)


def total_variation_beside_metal(
    y: torch.Tensor, A: LinearOperator, noise_std: float | torch.Tensor, x0: torch.Tensor
) -> torch.Tensor:
    """Reconstruct by total variation, from an image that says what the data leave open.

    Parameters
    ----------
    y
        Line integrals, zero in the trace of the metal, real ``(*batch, view, detector)``.
    A
        Their operator, zero there too.
    noise_std
        Noise level of the others.
    x0
        Images to begin at, such as those of NMAR, real ``(*batch, y, x)``.

    Returns
    -------
    torch.Tensor
        Attenuation, real ``(*batch, y, x)``.
    """
    return total_variation_image(y, A, noise_std, regularisation=_STRENGTH, x0=x0)


def load_metal_method(weights: Path | str) -> "LearnedMethod":
    """Read trained weights for `reconstruct_without_metal`.

    Parameters
    ----------
    weights
        A checkpoint, or a name in `ctrecon.method_names.METAL_METHODS` for weights that come with the package.

    Returns
    -------
    LearnedMethod
        The model.

    Raises
    ------
    InputError
        If there are no such weights, or they are damaged.
    """
    from ctrecon.learned import LearnedMethod  # networks, which the classical methods do without
    from ctrecon.models import MODELS

    label = str(weights) if weights in METAL_METHODS else None
    return LearnedMethod.load(metal_checkpoint_path(weights), MODELS, label=label)


def metal_checkpoint_path(name: Path | str) -> Path:
    """Where weights lie.

    Parameters
    ----------
    name
        As for `load_metal_method`.

    Raises
    ------
    InputError
        If they should have come with the package and did not.
    """
    from operators.trained import shipped_weights

    # A method may have other weights where there is no metal.
    return shipped_weights(f"{name}-mar", _SHIPPED, "ctrecon") if name in METAL_METHODS else Path(name)


class _TotalVariation:
    """`total_variation_beside_metal` in the shape of a trained model."""

    name = "tv"
    refines = True
    reconstruct = staticmethod(total_variation_beside_metal)


def _chosen(method: "str | TrainedModel") -> "tuple[MetalMethod, TrainedModel | _TotalVariation | None]":
    """How the trace is filled, and the model that starts from there."""
    if not isinstance(method, str):
        return "nmar", method
    METAL_METHOD_NAMES.check(method)
    if method in METAL_METHODS:
        return "nmar", load_metal_method(method)
    if method == "tv":
        return "nmar", _TotalVariation()
    return "li" if method == "li" else "nmar", None


def _back_projection(A: Projection, filter: Filter, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    if filter == "ramp":
        return lambda y: initial_image(y, A)
    return FilteredBackProjection(A.geometry, A.domain.shape, filter=filter).to(device)


def _whitened_residual(difference: torch.Tensor, kept: torch.Tensor, noise: float) -> torch.Tensor:
    """‖A x − y‖²/(σ² n) of the rays that are kept, per slice."""
    power = (kept * difference.square()).flatten(1).sum(dim=1)
    return power / (max(noise, torch.finfo(difference.dtype).tiny) ** 2 * kept.flatten(1).sum(dim=1))


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


def _extent(mask: torch.Tensor) -> str:
    n_pixels = int(mask.sum())
    return f"{n_pixels} pixels" if n_pixels else "none found, nothing was corrected"


def _fitting_mask(mask: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    if mask.is_complex() or not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError("The metal mask holds values other than 0 and 1; 1 = metal.")
    if mask.ndim > 3 or any(n not in (1, m) for n, m in zip(mask.shape[::-1], shape[::-1], strict=False)):
        raise InputError(f"The metal mask has shape {tuple(mask.shape)}; it must fit the image, {shape} (slice, y, x).")
    return (mask == 1).expand(shape)
