"""Losses and metrics as differentiable functions, each with its definition in its name.

Images are real, ``(*batch, y, x)``; volumes are ``(*batch, slice, y, x)``. Results have the shape of the batch: nothing
is averaged over it. A mask (1 = evaluate) restricts the pixels that enter.
"""

import math

import torch

from operators.elementary import FiniteDifference
from operators.space import Space

_K1, _K2 = 0.01, 0.03
_BELL = [math.exp(-0.5 * (offset / 1.5) ** 2) for offset in range(-5, 6)]
# Weights of a window along one axis, and the factor that makes of its covariance the one that is wanted.
_UNIFORM_7 = ([1 / 7] * 7, 49 / 48)
_GAUSSIAN_11 = ([weight / sum(_BELL) for weight in _BELL], 1.0)


def mse(estimate: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error of each image, mean |x̂ − x|².

    Parameters
    ----------
    estimate, target
        Real ``(*batch, y, x)``, in the same unit.
    mask
        1 = evaluate, 0 = not; broadcasts to the images.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, in that unit squared.

    Raises
    ------
    TypeError
        If the images are not real floating-point tensors of one dtype (take the magnitude of complex ones first).
    ValueError
        If the shapes differ, or the mask is empty, not 0 and 1, or does not broadcast. Every function of this module
        raises these two.
    """
    mask = _checked(estimate, target, mask, 2)
    return _mean((estimate - target).square(), mask, 2)


def mean_absolute_error(estimate: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean absolute error of each image, mean |x̂ − x|.

    Parameters
    ----------
    estimate, target
        Real ``(*batch, y, x)``, in the same unit.
    mask
        1 = evaluate, 0 = not; broadcasts to the images.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, in that unit.
    """
    mask = _checked(estimate, target, mask, 2)
    return _mean((estimate - target).abs(), mask, 2)


def bias(estimate: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean signed error of each image, mean (x̂ − x); positive where the estimate is too large.

    Parameters
    ----------
    estimate, target
        Real ``(*batch, y, x)``, in the same unit.
    mask
        1 = evaluate, 0 = not; broadcasts to the images.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, in that unit.
    """
    mask = _checked(estimate, target, mask, 2)
    return _mean(estimate - target, mask, 2)


def nrmse(estimate: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Normalised root-mean-square error of each image, ‖x̂ − x‖ / ‖x‖.

    Parameters
    ----------
    estimate, target
        Real ``(*batch, y, x)``, in the same unit.
    mask
        1 = evaluate, 0 = not; broadcasts to the images. Both norms are taken over it.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, dimensionless.

    Raises
    ------
    ValueError
        Also if a target is zero (within the mask): a relative error is not defined there.
    """
    return _relative_error(estimate, target, mask, 2)


def nmse_volume(estimate: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Normalised mean squared error of each volume, ‖x̂ − x‖² / ‖x‖², as fastMRI defines it.

    Parameters
    ----------
    estimate, target
        Real ``(*batch, slice, y, x)``, in the same unit.
    mask
        1 = evaluate, 0 = not; broadcasts to the volumes. Both norms are taken over it.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, dimensionless.

    Raises
    ------
    ValueError
        Also if a target is zero (within the mask): a relative error is not defined there.

    References
    ----------
    Zbontar et al., fastMRI: an open dataset and benchmarks for accelerated MRI, arXiv:1811.08839 (metrics).
    """
    return _relative_error(estimate, target, mask, 3).square()


def psnr(
    estimate: torch.Tensor,
    target: torch.Tensor,
    data_range: float | torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image, 10 log₁₀(R² / mean |x̂ − x|²), with a given data range R.

    Parameters
    ----------
    estimate, target
        Real ``(*batch, y, x)``, in the same unit.
    data_range
        R > 0 in that unit: one number, or one per sample ``(*batch,)``.
    mask
        1 = evaluate, 0 = not; broadcasts to the images.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, in dB; infinite where estimate and target are equal.

    Raises
    ------
    ValueError
        Also if a data range is not positive, or its shape is not that of the batch.
    """
    mask = _checked(estimate, target, mask, 2)
    return _psnr(estimate, target, data_range, mask, 2)


def psnr_slice(estimate: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image; the data range is the maximum of its own target.

    Parameters
    ----------
    estimate, target
        Real ``(*batch, y, x)``, in the same unit.
    mask
        1 = evaluate, 0 = not; broadcasts to the images. It restricts the error, not the data range.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, in dB; infinite where estimate and target are equal.

    Raises
    ------
    ValueError
        Also if the maximum of a target is not positive.
    """
    mask = _checked(estimate, target, mask, 2)
    return _psnr(estimate, target, target.amax(dim=(-2, -1)), mask, 2)


def psnr_volume(estimate: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Peak signal-to-noise ratio of each volume; the data range is the maximum of its target, as in fastMRI.

    Parameters
    ----------
    estimate, target
        Real ``(*batch, slice, y, x)``, in the same unit.
    mask
        1 = evaluate, 0 = not; broadcasts to the volumes. It restricts the error, not the data range.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, in dB; infinite where estimate and target are equal.

    Raises
    ------
    ValueError
        Also if the maximum of a target is not positive.

    References
    ----------
    Zbontar et al., fastMRI: an open dataset and benchmarks for accelerated MRI, arXiv:1811.08839 (metrics).
    """
    mask = _checked(estimate, target, mask, 3)
    return _psnr(estimate, target, target.amax(dim=(-3, -2, -1)), mask, 3)


def ssim_uniform_7x7(
    estimate: torch.Tensor,
    target: torch.Tensor,
    data_range: float | torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Structural similarity of each image: 7×7 uniform window, sample covariance n/(n − 1), K₁ = 0.01, K₂ = 0.03.

    Parameters
    ----------
    estimate, target
        Real ``(*batch, y, x)``, in the same unit, at least 7×7.
    data_range
        R > 0 in that unit: one number, or one per sample ``(*batch,)``.
    mask
        1 = evaluate, 0 = not; broadcasts to the images. The SSIM map is averaged over it.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, the mean of the SSIM map where the window lies inside the image; 1 for equal images, also
        for constant ones.

    Raises
    ------
    ValueError
        Also if an image is smaller than the window, a data range is not positive or not shaped like the batch, or the
        mask has no pixel at least 3 away from the edge.

    References
    ----------
    Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE Trans. Image Process.
    13 (2004), eq. (13), with the uniform window and sample covariance of scikit-image's default.
    """
    mask = _checked(estimate, target, mask, 2)
    return _ssim(estimate, target, data_range, mask, 2, *_UNIFORM_7)


def ssim_volume(estimate: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Structural similarity of each volume as in fastMRI: mean over slices, data range = maximum of the target volume.

    The map of each slice is that of ``ssim_uniform_7x7``.

    Parameters
    ----------
    estimate, target
        Real ``(*batch, slice, y, x)``, in the same unit, slices at least 7×7.
    mask
        1 = evaluate, 0 = not; broadcasts to the volumes. The SSIM maps of all slices are averaged over it together;
        it does not restrict the data range.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``.

    Raises
    ------
    ValueError
        Also if a slice is smaller than the window, the maximum of a target is not positive, or the mask has no pixel
        at least 3 away from the edge.

    References
    ----------
    Zbontar et al., fastMRI: an open dataset and benchmarks for accelerated MRI, arXiv:1811.08839 (metrics).
    """
    mask = _checked(estimate, target, mask, 3)
    data_range = target.amax(dim=(-3, -2, -1)).unsqueeze(-1).expand(target.shape[:-2])
    return _ssim(estimate, target, data_range, mask, 3, *_UNIFORM_7)


def ssim_gaussian(
    estimate: torch.Tensor,
    target: torch.Tensor,
    data_range: float | torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Structural similarity of each image: 11×11 Gaussian window, σ = 1.5 pixels, K₁ = 0.01, K₂ = 0.03.

    Variances and covariance are those of the weighted population, without n/(n − 1).

    Parameters
    ----------
    estimate, target
        Real ``(*batch, y, x)``, in the same unit, at least 11×11.
    data_range
        R > 0 in that unit: one number, or one per sample ``(*batch,)``.
    mask
        1 = evaluate, 0 = not; broadcasts to the images. The SSIM map is averaged over it.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, the mean of the SSIM map where the window lies inside the image; 1 for equal images, also
        for constant ones.

    Raises
    ------
    ValueError
        Also if an image is smaller than the window, a data range is not positive or not shaped like the batch, or the
        mask has no pixel at least 5 away from the edge.

    References
    ----------
    Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE Trans. Image Process.
    13 (2004), eq. (13) and section III-C.
    """
    mask = _checked(estimate, target, mask, 2)
    return _ssim(estimate, target, data_range, mask, 2, *_GAUSSIAN_11)


def blur(image: torch.Tensor, h_size: int = 11) -> torch.Tensor:
    """No-reference blur of each image, from 0 (sharp) to 1 (blurred).

    The image is blurred once more, along one axis, with a uniform filter; what share of its Sobel gradient along that
    axis survives is the blur along it, and the larger of the two axes counts. Where an image has no gradient along
    an axis, such as a constant one, that is 1. The value does not depend on the unit of the image.

    Parameters
    ----------
    image
        Real ``(*batch, y, x)``, at least ``h_size`` (and 4) along both axes.
    h_size
        Odd length of the uniform filter in pixels; values of different lengths cannot be compared.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, dimensionless.

    Raises
    ------
    TypeError
        If the image is not real floating-point.
    ValueError
        If the filter is longer than an axis, or its length is not odd and at least 3.

    References
    ----------
    Crété-Roffet et al., The blur effect: perception and estimation with a new no-reference perceptual blur metric,
    Proc. SPIE 6492 (2007); with the Sobel gradient, the mirrored edge and the larger axis of
    scikit-image's ``blur_effect`` instead of neighbour differences.
    """
    _check_real(image, "image", 2)
    if h_size < 3 or h_size % 2 == 0:
        raise ValueError(f"h_size is {h_size}; expected an odd filter length of at least 3.")
    _check_window(image, max(h_size, 4))
    along_y = _blur_along_x(image.transpose(-2, -1), h_size)
    return torch.maximum(along_y, _blur_along_x(image, h_size))


def total_variation_isotropic(x: torch.Tensor) -> torch.Tensor:
    """Isotropic total variation of each image, Σ √(|∂y x|² + |∂x x|²), by forward differences, zero at the last edge.

    Its gradient is zero where the image is flat, which is an element of the subdifferential.

    Parameters
    ----------
    x
        Real or complex ``(*batch, y, x)``.

    Returns
    -------
    torch.Tensor
        Real ``(*batch,)``, in the unit of ``x``.

    Raises
    ------
    TypeError
        If ``x`` is neither complex nor real floating-point.
    ValueError
        If ``x`` has fewer than two dimensions.
    """
    if not x.is_complex():
        _check_real(x, "x", 2)
    if x.ndim < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (*batch, y, x).")
    gradient = FiniteDifference(Space(tuple(x.shape[-2:]), "complex" if x.is_complex() else "real"))
    return torch.linalg.vector_norm(gradient(x), dim=-3).sum(dim=(-2, -1))


def _checked(
    estimate: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, n_dims: int
) -> torch.Tensor | None:
    """Raise unless the images can be compared; return the mask as bool, shaped like them."""
    _check_real(estimate, "estimate", n_dims)
    _check_real(target, "target", n_dims)
    if estimate.shape != target.shape:
        raise ValueError(
            f"estimate has shape {tuple(estimate.shape)} but target has {tuple(target.shape)}; they must be the same."
        )
    if estimate.dtype != target.dtype:
        raise TypeError(f"estimate is {estimate.dtype} but target is {target.dtype}; convert one of them.")
    if mask is None:
        return None
    evaluated = mask == 1
    if mask.is_complex() or not bool((evaluated | (mask == 0)).all()):
        raise ValueError("mask holds values other than 0 and 1; 1 = evaluate, 0 = not.")
    if mask.ndim > target.ndim or any(
        own not in (1, size) for own, size in zip(mask.shape[::-1], target.shape[::-1], strict=False)
    ):
        raise ValueError(f"mask has shape {tuple(mask.shape)}; it must broadcast to {tuple(target.shape)}.")
    evaluated = evaluated.expand(target.shape)
    _check_not_empty(evaluated, n_dims)
    return evaluated


def _check_real(x: torch.Tensor, what: str, n_dims: int) -> None:
    if x.is_complex():
        raise TypeError(f"{what} is {x.dtype}; expected a real tensor, take its magnitude with .abs() first.")
    if not x.is_floating_point():
        raise TypeError(f"{what} is {x.dtype}; expected a real floating-point tensor, convert it first.")
    if x.ndim < n_dims:
        axes = ", ".join(("slice", "y", "x")[-n_dims:])
        raise ValueError(f"{what} has shape {tuple(x.shape)}; expected (*batch, {axes}).")


def _check_not_empty(mask: torch.Tensor, n_dims: int, where: str = "") -> None:
    if not bool(mask.flatten(mask.ndim - n_dims).any(dim=-1).all()):
        raise ValueError(f"mask is empty{where} for at least one sample; it needs a pixel to evaluate in each.")


def _check_window(x: torch.Tensor, size: int) -> None:
    if min(x.shape[-2:]) < size:
        raise ValueError(
            f"The image is {tuple(x.shape[-2:])} pixels; the window needs at least {size} along each axis."
        )


def _mean(values: torch.Tensor, mask: torch.Tensor | None, n_dims: int) -> torch.Tensor:
    dims = tuple(range(-n_dims, 0))
    if mask is None:
        return values.mean(dim=dims)
    return torch.where(mask, values, 0).sum(dim=dims) / mask.sum(dim=dims)


def _relative_error(
    estimate: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, n_dims: int
) -> torch.Tensor:
    mask = _checked(estimate, target, mask, n_dims)
    error = estimate - target
    if mask is not None:
        error, target = torch.where(mask, error, 0), torch.where(mask, target, 0)
    dims = tuple(range(-n_dims, 0))
    size = torch.linalg.vector_norm(target, dim=dims)
    if bool((size == 0).any()):
        raise ValueError("A target is zero, so its relative error is not defined; use mse there.")
    return torch.linalg.vector_norm(error, dim=dims) / size


def _positive_range(data_range: float | torch.Tensor, target: torch.Tensor, n_dims: int) -> torch.Tensor:
    """The data range as a tensor that broadcasts to the batch of ``target``."""
    data_range = torch.as_tensor(data_range, dtype=target.dtype, device=target.device)
    batch = target.shape[: target.ndim - n_dims]
    if data_range.ndim and data_range.shape != batch:
        raise ValueError(
            f"data_range has shape {tuple(data_range.shape)}; expected one number or one per sample, {tuple(batch)}."
        )
    if not bool((data_range > 0).all()):
        raise ValueError(
            f"data_range is {data_range.min().item():.6g}; it must be positive. By default it is the maximum of the "
            "target, which must hold something."
        )
    return data_range


def _psnr(
    estimate: torch.Tensor,
    target: torch.Tensor,
    data_range: float | torch.Tensor,
    mask: torch.Tensor | None,
    n_dims: int,
) -> torch.Tensor:
    data_range = _positive_range(data_range, target, n_dims)
    spread = data_range.reshape(data_range.shape + (1,) * n_dims)
    return -10 * _mean(((estimate - target) / spread).square(), mask, n_dims).log10()


def _ssim(
    estimate: torch.Tensor,
    target: torch.Tensor,
    data_range: float | torch.Tensor,
    mask: torch.Tensor | None,
    n_dims: int,
    weights: list[float],
    covariance_factor: float,
) -> torch.Tensor:
    """Mean over the last ``n_dims`` dimensions of the SSIM map, which is that of each slice."""
    _check_window(target, len(weights))
    spread = _positive_range(data_range, target, 2)[..., None, None]
    # In units of the data range, products of four pixels neither underflow nor overflow in single precision.
    a, b = estimate / spread, target / spread
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = _windowed(torch.stack((a, b, a * a, b * b, a * b)), weights)
    covariance = covariance_factor * (mean_ab - mean_a * mean_b)
    variances = covariance_factor * (mean_aa - mean_a.square() + mean_bb - mean_b.square())
    luminance = (2 * mean_a * mean_b + _K1**2) / (mean_a.square() + mean_b.square() + _K1**2)
    ssim = luminance * (2 * covariance + _K2**2) / (variances + _K2**2)
    if mask is not None:
        radius = len(weights) // 2
        mask = mask[..., radius:-radius, radius:-radius]
        _check_not_empty(mask, n_dims, f" where the SSIM map is defined, {radius} pixels from the edge,")
    return _mean(ssim, mask, n_dims)


def _windowed(x: torch.Tensor, weights: list[float]) -> torch.Tensor:
    """Weighted mean over a separable window, where it lies inside; weights are those along one axis."""
    # Not a convolution: on a GPU those may run in TF32, whose 1e-3 would be visible in a metric; and it is faster.
    for dim in (-2, -1):
        size = x.shape[dim] - len(weights) + 1
        mean = x.narrow(dim, 0, size) * weights[0]
        for offset, weight in enumerate(weights[1:], start=1):
            mean = torch.add(mean, x.narrow(dim, offset, size), alpha=weight)
        x = mean
    return x


def _blur_along_x(image: torch.Tensor, h_size: int) -> torch.Tensor:
    radius = h_size // 2
    mirrored = torch.cat((image[..., :radius].flip(-1), image, image[..., -radius:].flip(-1)), dim=-1)
    windows = [mirrored.narrow(-1, offset, image.shape[-1]) for offset in range(h_size)]
    blurred = torch.stack(windows).sum(dim=0) / h_size
    sharp_edges, blurred_edges = _sobel_along_x(image).abs(), _sobel_along_x(blurred).abs()
    edges = sharp_edges.sum(dim=(-2, -1))
    lost = (sharp_edges - blurred_edges).clamp_min(0).sum(dim=(-2, -1))
    return 1 - lost / torch.where(edges == 0, torch.ones_like(edges), edges)


def _sobel_along_x(image: torch.Tensor) -> torch.Tensor:
    """Derivative along x, smoothed along y, at the pixels 2 to n − 2 of both axes."""
    inside = image[..., 1:, 1:]
    difference = inside[..., 2:] - inside[..., :-2]
    return (difference[..., :-2, :] + 2 * difference[..., 1:-1, :] + difference[..., 2:, :]) / 4
