"""Receive coils: sensitivity maps from calibration data, compression, combination without maps."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch

from mrirecon.density import Sampling, samplings
from mrirecon.kspace import KSpace
from mrirecon.prepare import mix_coils, noise_std
from operators.decision import Decision
from operators.elementary import Pad, centred_window
from operators.errors import InputError
from operators.fourier import Fourier
from operators.nufft import NonUniformFourier
from operators.solvers import cg
from operators.space import Space

_CALIBRATION_WIDTH = 32  # lines; more of them add little to maps that are smooth
_KERNEL_WIDTH = 6
_MARGIN = 8  # samples beyond the calibration region that are gridded with it, because its edge would be off
# How far, in cells, a point of the grid may be from a sample. Between spokes, twice the Nyquist distance still gives
# better maps than a smaller region; but not where even the centre is sampled like that, as by an accelerated spiral.
_REACH, _REACH_OF_CENTRE = 1.0, 0.75
_GRIDDING_ITERATIONS = 8
_GRIDDING_ACCURACY = 1e-3


def estimate_csm(
    kspace: KSpace, method: Literal["espirit", "walsh", "none"] | None = "espirit"
) -> tuple[torch.Tensor | None, Decision]:
    """Coil sensitivity maps of a scan, from its own calibration data.

    Parameters
    ----------
    kspace
        The scan, prewhitened.
    method
        ``"espirit"``, ``"walsh"`` (of low-resolution images), or ``"none"`` (``None``) for no maps. Where the
        calibration region is narrower than twice the kernel of ESPIRiT, the maps are those of Walsh, and where it is
        narrower than the kernel there are none.

    Returns
    -------
    csm
        Complex ``(*batch, coil, [z,] y, x)`` with Σ_c |s_c|² = 1 (ESPIRiT: zero outside the object); ``None`` for a
        single coil and on request.
    decision
        What was estimated from what.

    Raises
    ------
    ValueError
        If the method is unknown.
    InputError
        If the centre of k-space was not measured, so that there is nothing to calibrate with.
    """
    name, override = "coil_maps", "--coil-maps"
    if method not in ("espirit", "walsh", "none", None):
        raise ValueError(f"method is {method!r}; expected 'espirit', 'walsh' or 'none'.")
    if kspace.n_coils == 1:
        return None, Decision(name, "none", "One coil needs no maps.")
    if method in ("none", None):
        return None, Decision(name, "none", "No maps were asked for.", override)
    calibration, region, noise_gain = _calibration(kspace)
    if method == "espirit" and min(calibration.shape[-2:]) >= 2 * _KERNEL_WIDTH:
        noise = noise_gain * float(noise_std(kspace)[0].square().mean().sqrt())
        csm = espirit(calibration, image_shape=kspace.image_shape, noise_std=noise)
        return csm, Decision(name, "espirit", f"{kspace.n_coils} coils, {region.value}.", override)
    if method == "espirit" and min(calibration.shape[-2:]) < _KERNEL_WIDTH:
        reason = f"The calibration region ({region.value}) is too narrow for any maps; every coil is on its own."
        return None, Decision(name, "none", reason, override, warning=True)
    csm = walsh(_low_resolution(calibration, kspace.image_shape), n_dims=kspace.n_dims)
    if method == "espirit":
        reason = f"The calibration region ({region.value}) is narrower than the {2 * _KERNEL_WIDTH} lines of ESPIRiT."
        return csm, Decision(name, "walsh", reason, override, warning=True)
    return csm, Decision(name, "walsh", f"{kspace.n_coils} coils, {region.value}.", override)


def calibration_region(kspace: KSpace) -> tuple[torch.Tensor, Decision]:
    """The central block of k-space that was measured completely in every slice.

    Along a trajectory it is gridded from the samples in it and a little around it, by a few steps of weighted least
    squares on a grid of its own size, an image of low resolution. Complete it is as far as every cell of the Cartesian
    grid has a sample less than one cell away.

    Parameters
    ----------
    kspace
        The scan. If it has calibration lines of their own, they alone are used.

    Returns
    -------
    calibration
        Complex ``(*batch, coil, [kz,] ky, kx)``; its entry n//2 of each k axis is the centre of k-space. The block is
        at most 32 wide along each axis, which is plenty for smooth maps.
    decision
        Size and source of the block.

    Raises
    ------
    InputError
        If the centre of k-space was not measured.
    """
    calibration, decision, _ = _calibration(kspace)
    return calibration, decision


def espirit(
    calibration: torch.Tensor,
    *,
    image_shape: Sequence[int],
    kernel_width: int = _KERNEL_WIDTH,
    threshold: float = 0.02,
    noise_std: float = 0.0,
    crop: float = 0.8,
) -> torch.Tensor:
    """Coil sensitivity maps by ESPIRiT: the eigenvectors, pixel by pixel, of what all small patches of k-space share.

    All kernel-sized patches of the calibration region, over all coils, lie close to a subspace, spanned by the right
    singular vectors v_j of the calibration matrix whose singular values exceed ``threshold`` times the largest, and
    what noise alone would reach: √2 σ (√m + √n) for m patches of n samples. (Without the second bound, noise fills the
    whole space at the signal-to-noise ratio of low field, and the maps are meaningless.) With P the projection onto the
    subspace, the sensitivities s(r) at a pixel solve G(r) s(r) = s(r) with

        G_cd(r) = (1/k²) Σ_{a,b} P_{(c,a),(d,b)} exp(2πi (a − b)·r/N),

    where a, b run over the positions in the k × k kernel. G(r) has eigenvalues between 0 and 1, and 1 only where there
    is signal. The sum runs over differences a − b alone, so that it is the transform of (2k − 1)² coefficients per
    pair of coils.

    Three-dimensional data are transformed along kz first (zero-filled to the number of partitions), and every
    partition gets its two-dimensional maps.

    Parameters
    ----------
    calibration
        Central, completely measured part of k-space, complex ``(*batch, coil, [kz,] ky, kx)``.
    image_shape
        Size of the maps, ``(y, x)`` or ``(z, y, x)``.
    kernel_width
        k, in samples.
    threshold
        Singular values below this fraction of the largest are left out.
    noise_std
        σ, noise level per real component of the calibration data, the same in all coils (prewhitened); 0 if unknown.
    crop
        Maps are zero where the largest eigenvalue of G is not above this; 0 keeps the maps everywhere.

    Returns
    -------
    torch.Tensor
        Complex ``(*batch, coil, *image_shape)``, Σ_c |s_c|² = 1 inside and 0 outside. Their common phase is such that
        the strongest virtual coil (the dominant combination in the calibration data) sees a phase of zero.

    Raises
    ------
    TypeError
        If the calibration data are not complex.
    ValueError
        If they do not fit the image or are smaller than the kernel.

    References
    ----------
    Uecker et al., ESPIRiT — an eigenvalue approach to autocalibrating parallel MRI: where SENSE meets GRAPPA, Magn.
    Reson. Med. 71 (2014) 990–1001, section "Theory". The coefficients of G are summed over differences before they are
    transformed, as in Lobos et al., arXiv:2302.13431. The bound from the noise is not in the paper: it is the largest
    singular value of a random matrix (Marchenko and Pastur, Math. USSR Sb. 1 (1967) 457–483).
    """
    shape, n_dims = tuple(image_shape), len(image_shape)
    _check_calibration(calibration, shape)
    if min(calibration.shape[-2:]) < min(kernel_width, *shape[-2:]):
        raise ValueError(
            f"The calibration region is {tuple(calibration.shape[-2:])}, smaller than the kernel of {kernel_width}."
        )
    reference = _virtual_coil(calibration, n_dims)
    if n_dims == 3:
        noise_std *= math.sqrt(calibration.shape[-3] / shape[0])  # zero filling spreads the noise over all partitions
        calibration = _transformed_along_kz(calibration, shape[0])  # (*batch, z, coil, ky, kx)
        reference = reference.unsqueeze(-2).expand(*calibration.shape[:-2])
    batch = calibration.shape[:-3]
    # Pixel-wise matrices of one slice already take coil² images of memory: the slices are done one after another.
    maps = [
        _espirit_slice(y, r, shape[-2:], kernel_width, threshold, noise_std, crop)
        for y, r in zip(
            calibration.reshape(-1, *calibration.shape[-3:]), reference.reshape(-1, reference.shape[-1]), strict=True
        )
    ]
    csm = torch.stack(maps).reshape(*batch, *maps[0].shape)
    return csm.transpose(-3, -4) if n_dims == 3 else csm


def walsh(coil_images: torch.Tensor, *, smoothing: int = 7, n_dims: int = 2) -> torch.Tensor:
    """Coil sensitivity maps by adaptive combination: the dominant eigenvector of the local coil covariance.

    R(r) = Σ_q x(q) x(q)ᴴ over a box around r, with x(q) the vector of coil images at a pixel; the map s(r) is its
    eigenvector with the largest eigenvalue. This is the matched filter of the paper for noise that is white, so
    prewhiten first.

    Parameters
    ----------
    coil_images
        Complex ``(*batch, coil, [z,] y, x)``.
    smoothing
        Width of the box in pixels, odd, the same along every dimension.
    n_dims
        Number of image dimensions, 2 or 3.

    Returns
    -------
    torch.Tensor
        Complex, like ``coil_images``, Σ_c |s_c|² = 1 everywhere. The strongest virtual coil (the dominant combination)
        sees a phase of zero.

    Raises
    ------
    TypeError
        If the images are not complex.
    ValueError
        If the width is even or not positive, or a dimension is missing.

    References
    ----------
    Walsh, Gmitro and Marcellin, Adaptive reconstruction of phased array MR imagery, Magn. Reson. Med. 43 (2000)
    682–690, section "Theory", with the noise correlation matrix the identity.
    """
    if not coil_images.is_complex():
        raise TypeError(f"coil_images are {coil_images.dtype}; expected a complex tensor.")
    if n_dims not in (2, 3) or coil_images.ndim < n_dims + 1:
        raise ValueError(
            f"coil_images have shape {tuple(coil_images.shape)}; expected (*batch, coil, {n_dims} dimensions), 2 or 3."
        )
    if smoothing < 1 or smoothing % 2 == 0:
        raise ValueError(f"smoothing is {smoothing}; expected an odd number of pixels.")
    reference = _virtual_coil(coil_images, n_dims)
    maps = [
        _walsh_volume(x, r, smoothing)
        for x, r in zip(
            coil_images.reshape(-1, *coil_images.shape[-n_dims - 1 :]),
            reference.reshape(-1, reference.shape[-1]),
            strict=True,
        )
    ]
    return torch.stack(maps).reshape(coil_images.shape)


def compress(kspace: KSpace, *, n_coils: int | None = None, energy: float = 0.99) -> KSpace:
    """Replace many coils by few virtual ones that hold most of the signal.

    The virtual coils are the dominant principal components of the coils over the whole scan: orthonormal combinations,
    one set for all slices, so that noise which was white before (see ``prewhiten``) stays white.

    Parameters
    ----------
    kspace
        The scan, prewhitened.
    n_coils
        Number of virtual coils; by default as few as hold ``energy``.
    energy
        Fraction of the energy Σ |y|² to keep.

    Returns
    -------
    KSpace
        The scan with fewer coils, with the energy kept in its log.

    Raises
    ------
    ValueError
        If ``n_coils`` or ``energy`` is out of range.

    References
    ----------
    Buehrer et al., Array compression for MRI with large coil arrays, Magn. Reson. Med. 57 (2007) 1131–1139; here the
    combinations are optimal for the energy of the data (principal components), which needs no maps.
    """
    if n_coils is not None and not 1 <= n_coils <= kspace.n_coils:
        raise ValueError(f"n_coils is {n_coils}; expected 1 to the {kspace.n_coils} coils of the scan.")
    if not 0 < energy <= 1:
        raise ValueError(f"energy is {energy}; expected a fraction above 0 and at most 1.")
    samples = kspace.data.reshape(-1, kspace.n_coils, *kspace.k_shape)
    covariance = _coil_covariance(samples, kspace.n_k_axes).sum(dim=0)
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    kept = values.cumsum(0) / values.sum()
    if n_coils is None:
        # The last entry is 1 but for rounding, so that energy = 1 keeps all coils that hold anything.
        n_coils = int((kept < energy - 1e-12).sum()) + 1
    fraction = float(kept[n_coils - 1])
    reason = f"They hold {100 * fraction:.2f} % of the energy of {kspace.n_coils} coils."
    decision = Decision("coil_compression", f"{n_coils} virtual coils", reason)
    return mix_coils(kspace, vectors[:, :n_coils].mH).with_decisions(decision)


def root_sum_of_squares(coil_images: torch.Tensor, dim: int = -3) -> torch.Tensor:
    """Combine coil images without maps: √Σ_c |x_c|².

    Parameters
    ----------
    coil_images
        Complex or real, with the coils along ``dim``.
    dim
        The coil dimension; −3 for ``(*batch, coil, y, x)``.

    Returns
    -------
    torch.Tensor
        Real magnitude without the coil dimension.
    """
    return torch.linalg.vector_norm(coil_images, dim=dim)


def _calibration(kspace: KSpace) -> tuple[torch.Tensor, Decision, float]:
    """`calibration_region`, and its noise level relative to that of the samples."""
    if not kspace.is_cartesian:
        return _gridded_calibration(kspace)
    n_dims, shape = kspace.n_dims, kspace.image_shape
    data, source = kspace.data, "imaging lines"
    mask = kspace.mask.expand(*data.shape[: -n_dims - 1], 1, *shape) > 0
    if kspace.calibration is not None:
        data, source = kspace.calibration, "calibration lines"
        mask = (data != 0).any(dim=-n_dims - 1, keepdim=True)
    widths = _fully_measured_widths(mask.flatten(end_dim=-n_dims - 1).all(dim=0))
    index: tuple[Any, ...] = (..., *centred_window(widths, shape))
    return data[index], _region(widths, f"the {source}", "Measured fully."), 1.0


def _region(widths: Sequence[int], source: str, reason: str) -> Decision:
    size = " × ".join(str(n) for n in widths)
    return Decision("calibration_region", f"central {size} of {source}", reason)


def _gridded_calibration(kspace: KSpace) -> tuple[torch.Tensor, Decision, float]:
    """`_calibration` of a scan with a trajectory."""
    low = tuple(min(n, _CALIBRATION_WIDTH + 2 * _MARGIN) for n in kspace.image_shape)
    scale = torch.tensor([n / m for n, m in zip(kspace.image_shape, low, strict=True)], dtype=torch.float64)
    central = [_central(group, scale) for group in samplings(kspace)]
    of_centre, widths = (
        _fully_measured_widths(torch.stack([_covered(group.trajectory, low, reach) for group in central]).all(dim=0))
        for reach in (_REACH_OF_CENTRE, _REACH)
    )
    if min(of_centre) < min(2 * _KERNEL_WIDTH, *low):
        widths = of_centre
    index: tuple[Any, ...] = (..., *centred_window(widths, low))
    flat = kspace.data.reshape(-1, kspace.n_coils, kspace.n_samples)
    gridded = flat.new_zeros(*flat.shape[:2], *widths)
    gains = []
    for group in central:
        dcf = _shares_of_cells(group.trajectory, low).to(flat.real)
        samples = flat[group.images][..., group.measured]
        gridded[group.images] = _gridded(samples, group.trajectory, dcf, low)[index]
        # Of the density-weighted sum of samples with equal noise; what the iterations change is a few per cent.
        gains.append(float((dcf.square().sum() / dcf.sum()).sqrt()))
    decision = _region(widths, "k-space, gridded", "Measured densely enough.")
    return gridded.reshape(*kspace.data.shape[:-1], *widths), decision, max(gains)


def _central(group: Sampling, scale: torch.Tensor) -> Sampling:
    """What a sampling has in the centre, in radians per pixel of an image of low resolution."""
    scaled = group.trajectory.detach().to(torch.float64) * scale.to(group.trajectory.device)
    inside = group.measured & ((scaled >= -math.pi) & (scaled < math.pi)).all(dim=-1)
    return Sampling(scaled[inside], inside, group.images)


def _covered(trajectory: torch.Tensor, shape: Sequence[int], reach: float) -> torch.Tensor:
    """Which points of the Cartesian grid have a sample within so many cells, bool ``shape``."""
    sizes = torch.tensor(shape, device=trajectory.device)
    position = trajectory * sizes / (2 * math.pi) + sizes // 2
    covered = torch.zeros(tuple(shape), dtype=torch.bool, device=trajectory.device)
    for corner in torch.cartesian_prod(*[torch.arange(2, device=trajectory.device)] * len(shape)):
        point = position.floor().long() + corner
        inside = ((point >= 0) & (point < sizes)).all(dim=-1)
        near = inside & ((position - point).square().sum(dim=-1) < reach**2)
        covered[tuple(point[near].T)] = True
    return covered


def _shares_of_cells(trajectory: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """One over the number of samples in the same cell of the Cartesian grid: density compensation for least squares."""
    sizes = torch.tensor(shape, device=trajectory.device)
    cell = torch.zeros(len(trajectory), dtype=torch.long, device=trajectory.device)
    for n, along in zip(shape, (trajectory * sizes / (2 * math.pi)).round().long().unbind(dim=-1), strict=True):
        cell = cell * n + along % n
    return 1 / torch.bincount(cell)[cell]


def _gridded(
    samples: torch.Tensor, trajectory: torch.Tensor, dcf: torch.Tensor, shape: tuple[int, ...]
) -> torch.Tensor:
    """k-space ``(*batch, *shape)`` on the Cartesian grid that agrees best with samples ``(*batch, sample)``."""
    fourier = Fourier(shape, len(shape)).to(samples.device)
    A = NonUniformFourier(trajectory, shape, accuracy=_GRIDDING_ACCURACY)
    normal = A.toeplitz_gram(dcf)
    rhs = A.adjoint(dcf * samples).flatten(end_dim=-len(shape) - 1)
    image = cg(normal, rhs, max_iterations=_GRIDDING_ITERATIONS, rtol=1e-4, batch_dims=1).value
    return fourier(image).reshape(*samples.shape[:-1], *shape)


def _check_calibration(calibration: torch.Tensor, image_shape: tuple[int, ...]) -> None:
    if not calibration.is_complex():
        raise TypeError(f"calibration is {calibration.dtype}; expected a complex tensor.")
    n_dims = len(image_shape)
    fits = n_dims in (2, 3) and calibration.ndim > n_dims
    if not fits or any(n > m for n, m in zip(calibration.shape[-n_dims:], image_shape, strict=True)):
        raise ValueError(
            f"calibration has shape {tuple(calibration.shape)}; expected (*batch, coil, [kz,] ky, kx), at most as "
            f"large as the image {image_shape}."
        )


def _fully_measured_widths(measured: torch.Tensor) -> tuple[int, ...]:
    """Largest central block of the bool tensor ``measured`` that is all true, found by growing one axis at a time."""
    shape = tuple(measured.shape)
    widths, growing = [1] * len(shape), set(range(len(shape)))

    def complete(sizes: Sequence[int]) -> bool:
        return bool(measured[centred_window(sizes, shape)].all())

    if not complete(widths):
        raise InputError(
            "The centre of k-space was not measured, so there is nothing to estimate coil maps from; choose none "
            "(--coil-maps none)."
        )
    while growing:
        for d in sorted(growing):
            larger = [n + (i == d) for i, n in enumerate(widths)]
            if larger[d] <= min(shape[d], _CALIBRATION_WIDTH) and complete(larger):
                widths = larger
            else:
                growing.discard(d)
    return tuple(widths)


def _low_resolution(calibration: torch.Tensor, image_shape: tuple[int, ...]) -> torch.Tensor:
    """Images of the calibration region, tapered so that they do not ring."""
    n_dims = len(image_shape)
    for d in range(-n_dims, 0):
        n = calibration.shape[d]
        offset = torch.arange(n, dtype=calibration.dtype.to_real(), device=calibration.device) - n // 2
        calibration = calibration * torch.cos(torch.pi * offset / (n + 1)).square().reshape(-1, *(1,) * (-d - 1))
    pad = Pad(Space(tuple(calibration.shape[-n_dims - 1 :])), image_shape)
    return Fourier(pad.codomain.shape, n_dims).to(calibration.device).adjoint(pad(calibration))


def _transformed_along_kz(calibration: torch.Tensor, n_z: int) -> torch.Tensor:
    """``(*batch, coil, kz, ky, kx)`` → ``(*batch, z, coil, ky, kx)``, zero-filled to ``n_z`` partitions."""
    along = calibration.movedim(-3, -1)
    pad = Pad(Space(tuple(along.shape[-4:])), (n_z,))
    hybrid = Fourier(pad.codomain.shape, 1).to(along.device).adjoint(pad(along))
    return hybrid.movedim(-1, -4)


def _coil_covariance(data: torch.Tensor, n_dims: int) -> torch.Tensor:
    """Σ y yᴴ over the last ``n_dims`` dimensions, ``(*batch, coil, coil)``."""
    flat = data.flatten(-n_dims)
    return flat @ flat.mH


def _virtual_coil(data: torch.Tensor, n_dims: int) -> torch.Tensor:
    """Dominant combination of the coils, ``(*batch, coil)``, with its largest weight real and positive."""
    weights = torch.linalg.eigh(_coil_covariance(data, n_dims))[1][..., -1]
    largest = weights.gather(-1, weights.abs().argmax(dim=-1, keepdim=True))
    return weights * largest.conj().sgn()


def _espirit_slice(
    calibration: torch.Tensor,
    reference: torch.Tensor,
    shape: tuple[int, ...],
    kernel_width: int,
    threshold: float,
    noise_std: float,
    crop: float,
) -> torch.Tensor:
    n_coils, *sizes = calibration.shape
    k_y, k_x = (min(kernel_width, n) for n in sizes)
    patches = calibration.unfold(1, k_y, 1).unfold(2, k_x, 1)  # (coil, position y, position x, kernel y, kernel x)
    patches = patches.movedim(0, 2).reshape(-1, n_coils * k_y * k_x)
    values, vectors = torch.linalg.eigh(patches.mT @ patches.conj())
    noise_power = 2 * noise_std**2 * (math.sqrt(patches.shape[0]) + math.sqrt(patches.shape[1])) ** 2
    signal = vectors[:, values > torch.clamp(threshold**2 * values[-1], min=noise_power)]
    if signal.shape[1] == 0:
        return calibration.new_zeros(n_coils, *shape)
    kernels = torch.fft.fft2(signal.mT.unflatten(-1, (n_coils, k_y, k_x)), s=(2 * k_y - 1, 2 * k_x - 1))
    kernels = kernels.permute(2, 3, 1, 0)  # (frequency y, frequency x, coil, singular vector)
    coefficients = torch.fft.fftshift(torch.fft.ifft2(kernels @ kernels.mH, dim=(0, 1)), dim=(0, 1))
    coefficients = coefficients.permute(2, 3, 0, 1) / (k_y * k_x)  # (coil, coil, difference y, difference x)
    phase_y, phase_x = (_difference_phases(n, k, calibration) for n, k in zip(shape, (k_y, k_x), strict=True))
    matrices = (phase_y @ (coefficients @ phase_x.mT)).permute(2, 3, 0, 1)  # (y, x, coil, coil)
    values, vectors = torch.linalg.eigh(matrices)
    csm = _with_reference_phase(vectors[..., -1].movedim(-1, 0), reference)
    return csm * (values[..., -1] > crop) if crop > 0 else csm


def _difference_phases(n: int, kernel_width: int, like: torch.Tensor) -> torch.Tensor:
    """exp(2πi δ (r − n//2)/n) for pixels r and differences δ of positions in the kernel, ``(r, δ)``."""
    pixel = torch.arange(n, dtype=torch.float64) - n // 2
    difference = torch.arange(1 - kernel_width, kernel_width, dtype=torch.float64)
    return torch.exp(2j * math.pi / n * torch.outer(pixel, difference)).to(like)


def _walsh_volume(coil_images: torch.Tensor, reference: torch.Tensor, smoothing: int) -> torch.Tensor:
    n_coils, *shape = coil_images.shape
    products = coil_images.unsqueeze(1) * coil_images.conj().unsqueeze(0)  # (coil, coil, [z,] y, x)
    planes = torch.view_as_real(products).movedim(-1, 0).flatten(0, 2).unsqueeze(0)
    average = torch.nn.functional.avg_pool2d if len(shape) == 2 else torch.nn.functional.avg_pool3d
    planes = average(planes, smoothing, stride=1, padding=smoothing // 2)
    real, imaginary = planes.reshape(2, n_coils, n_coils, -1)
    covariance = torch.complex(real, imaginary).movedim(-1, 0)
    csm = torch.linalg.eigh(covariance)[1][..., -1].mT.reshape(n_coils, *shape)
    return _with_reference_phase(csm, reference)


def _with_reference_phase(csm: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Maps ``(coil, *image)`` with the common phase at which the virtual coil ``(coil,)`` sees a phase of zero."""
    seen = torch.tensordot(reference.conj(), csm, dims=1)
    return csm * torch.where(seen == 0, torch.ones_like(seen), seen.conj().sgn())
