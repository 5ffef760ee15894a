"""Metrics of CT images, the convention in the name: the same image scores 25 to 45 dB under different ones.

Images are real ``(*batch, y, x)`` in Hounsfield units; results have the shape of the batch. Metal (``metal_mask``, 1 =
metal, bool or 0 and 1, broadcast to the images) is excluded. Every function raises TypeError if the images are not real
floating-point of one dtype, and ValueError if shapes differ or the mask is not 0 and 1 or leaves nothing.
"""

import torch

from ctrecon.hounsfield import MU_WATER_PER_MM, to_mu
from operators import functionals

_CLEAN_MAR_TOP_PER_MM = 0.05
_DUDONET_WINDOW_HU = (-175.0, 275.0)


def rmse_hu(estimate_hu: torch.Tensor, target_hu: torch.Tensor, metal_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Root-mean-square error √mean (x̂ − x)², over the pixels outside the metal.

    Parameters
    ----------
    estimate_hu, target_hu
        Real ``(*batch, y, x)``, in HU.
    metal_mask
        1 = metal.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, in HU.
    """
    return functionals.mse(estimate_hu, target_hu, _evaluated(metal_mask)).sqrt()


def mae_hu(estimate_hu: torch.Tensor, target_hu: torch.Tensor, metal_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean absolute error, mean |x̂ − x|, over the pixels outside the metal.

    Parameters
    ----------
    estimate_hu, target_hu
        Real ``(*batch, y, x)``, in HU.
    metal_mask
        1 = metal.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, in HU.
    """
    return functionals.mean_absolute_error(estimate_hu, target_hu, _evaluated(metal_mask))


def bias_hu(estimate_hu: torch.Tensor, target_hu: torch.Tensor, metal_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean signed error, mean (x̂ − x), over the pixels outside the metal; positive where the estimate is too dense.

    Parameters
    ----------
    estimate_hu, target_hu
        Real ``(*batch, y, x)``, in HU.
    metal_mask
        1 = metal.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, in HU.
    """
    return functionals.bias(estimate_hu, target_hu, _evaluated(metal_mask))


def psnr_clean_mar(
    estimate_hu: torch.Tensor,
    target_hu: torch.Tensor,
    metal_mask: torch.Tensor | None = None,
    mu_water_per_mm: float = MU_WATER_PER_MM,
) -> torch.Tensor:
    """Peak signal-to-noise ratio of the clean metal-artefact convention.

    Attenuation is clipped to [0, 0.5] 1/cm and divided by 0.5 1/cm; the metal is set to 0 in both images; the data
    range is 1 and the mean runs over *all* pixels, metal included.

    Parameters
    ----------
    estimate_hu, target_hu
        Real ``(*batch, y, x)``, in HU.
    metal_mask
        1 = metal.
    mu_water_per_mm
        Attenuation of water, in 1/mm.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, in dB.
    """
    estimate, target = (_clean(hu, metal_mask, mu_water_per_mm) for hu in (estimate_hu, target_hu))
    return functionals.psnr(estimate, target, 1.0)


def ssim_clean_mar(
    estimate_hu: torch.Tensor,
    target_hu: torch.Tensor,
    metal_mask: torch.Tensor | None = None,
    mu_water_per_mm: float = MU_WATER_PER_MM,
) -> torch.Tensor:
    """Structural similarity (Gaussian window 11×11, σ = 1.5, range 1) of the images that `psnr_clean_mar` compares.

    Parameters
    ----------
    estimate_hu, target_hu
        Real ``(*batch, y, x)``, in HU, at least 11×11.
    metal_mask
        1 = metal.
    mu_water_per_mm
        Attenuation of water, in 1/mm.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``.
    """
    estimate, target = (_clean(hu, metal_mask, mu_water_per_mm) for hu in (estimate_hu, target_hu))
    return functionals.ssim_gaussian(estimate, target, 1.0)


def psnr_dudonet_window(
    estimate_hu: torch.Tensor, target_hu: torch.Tensor, metal_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Peak signal-to-noise ratio in the soft-tissue window of DuDoNet.

    HU are clipped to [−175, 275], scaled to [0, 1], and the metal is set to 0 in both images; the data range is 1 and
    the mean runs over *all* pixels. Errors in bone, lung and air do not count.

    Parameters
    ----------
    estimate_hu, target_hu
        Real ``(*batch, y, x)``, in HU.
    metal_mask
        1 = metal.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, in dB.

    References
    ----------
    Lin et al., DuDoNet: dual domain network for CT metal artifact reduction, CVPR 2019.
    """
    estimate, target = (_windowed(hu, metal_mask) for hu in (estimate_hu, target_hu))
    return functionals.psnr(estimate, target, 1.0)


def ssim_dudonet_window(
    estimate_hu: torch.Tensor, target_hu: torch.Tensor, metal_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Structural similarity (Gaussian window 11×11, σ = 1.5, range 1) of what `psnr_dudonet_window` compares.

    Parameters
    ----------
    estimate_hu, target_hu
        Real ``(*batch, y, x)``, in HU, at least 11×11.
    metal_mask
        1 = metal.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``.
    """
    estimate, target = (_windowed(hu, metal_mask) for hu in (estimate_hu, target_hu))
    return functionals.ssim_gaussian(estimate, target, 1.0)


def psnr_lodopab(
    estimate_hu: torch.Tensor, target_hu: torch.Tensor, metal_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Peak signal-to-noise ratio of LoDoPaB-CT: the data range is the maximum minus the minimum of the target.

    It is the same in HU and in attenuation. Pixels outside the metal count; the range is that of all pixels.

    Parameters
    ----------
    estimate_hu, target_hu
        Real ``(*batch, y, x)``, in HU or in attenuation.
    metal_mask
        1 = metal.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, in dB.

    Raises
    ------
    ValueError
        Also if a target is constant.

    References
    ----------
    Leuschner et al., LoDoPaB-CT, a benchmark dataset for low-dose computed tomography reconstruction, Sci. Data 8
    (2021), section Evaluation.
    """
    return functionals.psnr(estimate_hu, target_hu, _spread(target_hu), _evaluated(metal_mask))


def ssim_lodopab(
    estimate_hu: torch.Tensor, target_hu: torch.Tensor, mu_water_per_mm: float = MU_WATER_PER_MM
) -> torch.Tensor:
    """Structural similarity of LoDoPaB-CT: uniform window 7×7 on attenuation, range as for `psnr_lodopab`.

    Parameters
    ----------
    estimate_hu, target_hu
        Real ``(*batch, y, x)``, in HU, at least 7×7.
    mu_water_per_mm
        Attenuation of water, in 1/mm; it cancels, but for the zero of the scale.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``.
    """
    estimate, target = to_mu(estimate_hu, mu_water_per_mm), to_mu(target_hu, mu_water_per_mm)
    return functionals.ssim_uniform_7x7(estimate, target, _spread(target))


def psnr_per_image(
    estimate_hu: torch.Tensor, target_hu: torch.Tensor, metal_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Peak signal-to-noise ratio after each image was scaled to [0, 1] by *its own* minimum and maximum.

    The sparse-view and older metal literature does so. It hides errors of offset and scale, and one bright pixel of the
    estimate changes it: compare it with nothing else.

    Parameters
    ----------
    estimate_hu, target_hu
        Real ``(*batch, y, x)``, in HU or in attenuation.
    metal_mask
        1 = metal. Pixels outside the metal count; the scaling is that of all pixels.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, in dB.

    Raises
    ------
    ValueError
        Also if an image is constant.
    """
    return functionals.psnr(_to_unit(estimate_hu), _to_unit(target_hu), 1.0, _evaluated(metal_mask))


def ssim_per_image(estimate_hu: torch.Tensor, target_hu: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Gaussian window 11×11, σ = 1.5, range 1) of images scaled as by `psnr_per_image`.

    Parameters
    ----------
    estimate_hu, target_hu
        Real ``(*batch, y, x)``, in HU or in attenuation, at least 11×11.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``.
    """
    return functionals.ssim_gaussian(_to_unit(estimate_hu), _to_unit(target_hu), 1.0)


def _evaluated(metal_mask: torch.Tensor | None) -> torch.Tensor | None:
    return None if metal_mask is None else 1 - _checked_mask(metal_mask).to(torch.float32)


def _checked_mask(metal_mask: torch.Tensor) -> torch.Tensor:
    if metal_mask.is_complex() or not bool(((metal_mask == 0) | (metal_mask == 1)).all()):
        raise ValueError("metal_mask holds values other than 0 and 1; 1 = metal.")
    return metal_mask


def _without_metal(image: torch.Tensor, metal_mask: torch.Tensor | None) -> torch.Tensor:
    return image if metal_mask is None else image * (1 - _checked_mask(metal_mask).to(image.dtype))


def _clean(hu: torch.Tensor, metal_mask: torch.Tensor | None, mu_water_per_mm: float) -> torch.Tensor:
    scaled = to_mu(hu, mu_water_per_mm).clamp(0, _CLEAN_MAR_TOP_PER_MM) / _CLEAN_MAR_TOP_PER_MM
    return _without_metal(scaled, metal_mask)


def _windowed(hu: torch.Tensor, metal_mask: torch.Tensor | None) -> torch.Tensor:
    low, high = _DUDONET_WINDOW_HU
    return _without_metal((hu.clamp(low, high) - low) / (high - low), metal_mask)


def _spread(image: torch.Tensor) -> torch.Tensor:
    low, high = _extremes(image)
    return high - low


def _to_unit(image: torch.Tensor) -> torch.Tensor:
    low, high = (extreme[..., None, None] for extreme in _extremes(image))
    if bool((high == low).any()):
        raise ValueError("An image is constant, so it cannot be scaled to [0, 1] by its own range.")
    return (image - low) / (high - low)


def _extremes(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if image.is_complex() or image.ndim < 2:
        raise TypeError(f"image is {image.dtype} {tuple(image.shape)}; expected a real tensor (*batch, y, x).")
    return torch.aminmax(image.flatten(-2), dim=-1)
