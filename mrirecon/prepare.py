"""What is done to k-space before it is reconstructed: find the noise level, whiten the coils, centre the echo."""

import math
from dataclasses import replace

import torch

from mrirecon.density import coil_images
from mrirecon.kspace import KSpace
from operators.decision import Decision
from operators.errors import InputError

_OUTER_FRACTION = 0.25
_BACKGROUND_FRACTION = 0.05
_BLOCK = 8  # noise power is counted in groups of 8 × 8 complex samples, which tell it to one part in eight
_MIN_GROUPS = 8
_MIN_LINES = 8 * _BLOCK  # fewer readouts of a trajectory are cut into parts
_MIN_PART = 8 * _BLOCK


def noise_std(kspace: KSpace) -> tuple[torch.Tensor, Decision]:
    """Standard deviation of the noise per real component, one per coil.

    It is taken from the first of these that the scan offers:

    1. the noise scan (its mean removed);
    2. the empty background. K-space is transformed along the axes on which every measured line is complete: all axes
       of a complete scan (also with partial Fourier, or of low resolution), the readout of one with missing lines.
       Only the measured range is transformed, so that zero filling does not thin the noise. Along a trajectory it is
       the readouts, tapered, that are transformed: at frequencies that no pixel has lies noise alone. Signal only adds
       power, so it is the lowest level at which many blocks of pixels agree, within counting statistics, that counts;
    3. the edge of k-space: the quarter of the measured samples farthest from the centre, with the extent measured along
       each axis as the unit, in groups of neighbours. Again the lowest level at which groups agree counts: structure
       of the object reaches the edge in some directions only, and partial Fourier leaves one edge. Along a trajectory
       groups are neighbours in k-space, too, not in time.

    The background comes before the edge because many scanners filter or fill the edge of k-space, and a noise level
    read there would then be far below what the image shows. If there is no background (less than a twentieth of the
    field of view, or without the statistics of noise), the edge decides; it may be too high where fine structure of a
    bright object reaches it. Nobody fills the edge of a trajectory: there the lower of the two counts, because few
    readouts, or samples far apart, may have no background.

    Parameters
    ----------
    kspace
        The scan.

    Returns
    -------
    noise_std
        Real, ``(coil,)``, in the units of ``kspace.data``; what one sample of k-space, and one pixel of the image of a
        completely measured scan, have as noise in their real and in their imaginary part.
    decision
        The source and the value (root mean square over the coils).

    Raises
    ------
    InputError
        If there are fewer than 64 measured samples that are not zero.
    """
    if kspace.noise is not None:
        return _decided(_std_of_noise_scan(kspace.noise), "noise scan", "The file has a noise scan.")
    coils, measured = _by_coil(kspace), _measured(kspace)
    background, axes = _background_powers(kspace, coils, measured)
    edge = torch.full_like(background, math.inf)
    wanted = background.isinf() | (not kspace.is_cartesian)
    if bool(wanted.any()):
        outwards = _outwards(kspace, measured)
        edge[wanted] = torch.stack([_edge_power(coil, measured, *outwards) for coil in coils[wanted]])
    found = background <= edge
    if bool(found.all()):
        source = "image background" if len(axes) == kspace.n_dims else "background of the measured lines"
        reason = "There is no noise scan, and part of the field of view is empty."
    elif bool(found.any()):
        source, reason = "background or k-space edge", "There is no noise scan, and not every coil has a background."
    else:
        source, reason = "k-space edge", "There is no noise scan, and no empty background was found."
    return _decided(torch.minimum(background, edge).div(2).sqrt(), source, reason)


def signal_to_noise(kspace: KSpace) -> float:
    """Signal-to-noise ratio of the zero-filled or gridded image: a figure to compare scans with.

    Parameters
    ----------
    kspace
        The scan.

    Returns
    -------
    float
        95th percentile of the root-sum-of-squares magnitude, over all slices, by the root mean square of
        ``noise_std`` over the coils.

    Raises
    ------
    InputError
        As for ``noise_std``.
    """
    magnitude = torch.linalg.vector_norm(coil_images(kspace), dim=-kspace.n_dims - 1).flatten()
    rank = max(1, math.ceil(0.95 * magnitude.numel()))
    return float(magnitude.kthvalue(rank).values / _root_mean_square(noise_std(kspace)[0]))


_LARGEST_RATIO = 1000.0


def prewhiten(kspace: KSpace) -> KSpace:
    """Decorrelate the coils and give their noise unit variance.

    With Ψ the covariance of the noise per real component and Ψ = L Lᴴ, the coils become L⁻¹ y: afterwards the noise of
    every coil has ``noise_std`` 1 and no correlation with that of another. Samples, calibration lines and noise scan
    are treated alike. Without a usable noise scan, every coil is divided by its own ``noise_std``, which leaves
    correlations; where these levels differ more than a thousandfold, by one level for all. A single coil has nothing to
    decorrelate and stays as it is, in its own units.

    Parameters
    ----------
    kspace
        The scan.

    Returns
    -------
    KSpace
        The scan in units of the noise (for several coils), with the decision in its log.

    Raises
    ------
    InputError
        If a coil has no noise at all (it is dead), so that it cannot be scaled.

    References
    ----------
    Pruessmann et al., Advances in sensitivity encoding with arbitrary k-space trajectories, Magn. Reson. Med. 46
    (2001) 638–651, appendix A ("noise decorrelation").
    """
    if kspace.n_coils == 1:
        return kspace.with_decisions(Decision("prewhitening", "none", "One coil has nothing to decorrelate."))
    factor = None if kspace.noise is None else _cholesky_factor(kspace.noise)
    if factor is not None:
        reason = "The covariance of the noise scan was inverted; the noise of every coil now has unit variance."
        decision = Decision("prewhitening", "noise covariance", reason)
        whiten = torch.linalg.inv(factor)
    else:
        std, source = noise_std(kspace)
        dead = [c for c in range(len(std)) if not std[c] > 0]
        if dead:
            raise InputError(
                f"Coil {dead[0]} of {len(std)} holds no noise at all, so it received nothing; remove it from the file."
            )
        lacking = "There is no noise scan" if kspace.noise is None else "The noise covariance cannot be inverted"
        reason = f"{lacking}; every coil was divided by its own noise level ({source.value}), correlations remain."
        doubtful = kspace.noise is None and float(std.max() / std.min()) > _LARGEST_RATIO
        if doubtful:
            # What was measured is the object or rounding: coils of one array do not differ so much.
            reason = (
                f"{lacking}, and the noise levels found in the coils differ by a factor of "
                f"{float(std.max() / std.min()):.0f}; all coils were divided by the same one ({source.value})."
            )
            std = std.square().mean().sqrt().expand(std.shape)
        decision = Decision("prewhitening", "scaling only", reason, warning=doubtful or kspace.noise is not None)
        whiten = torch.diag(1 / std)
    return mix_coils(kspace, whiten).with_decisions(decision)


def centre_kspace(kspace: KSpace) -> KSpace:
    """Put the echo peak on the centre sample n//2 by a circular shift of k-space and mask.

    A circular shift by whole samples is the exact multiplication of the image by a linear phase: nothing is lost, the
    magnitude does not change, and shifting back restores the data. An off-centre peak is harmless for a magnitude
    image, so this is only worth doing before a method that assumes a real or slowly varying image. Along an axis that
    was not measured up to both of its ends (partial Fourier, zero filling) there is no shift, because measured lines
    would wrap around to the other side; the phase estimates of partial-Fourier methods include the linear phase anyway.
    Samples along a trajectory stay where they are.

    Parameters
    ----------
    kspace
        The scan; one shift is found for all its slices and coils.

    Returns
    -------
    KSpace
        The scan with its peak in the centre, as far as it could be moved, with the shift in its log.
    """
    shape, n_dims = kspace.image_shape, kspace.n_dims
    name = "kspace_centring"
    if not kspace.is_cartesian:
        return kspace.with_decisions(Decision(name, "none", "The trajectory says where its samples lie."))
    power = kspace.data.abs().square().flatten(end_dim=-n_dims - 1).sum(dim=0)
    peak = tuple(int(i) for i in torch.unravel_index(power.argmax(), shape))
    centre = tuple(n // 2 for n in shape)
    if peak == centre:
        return kspace.with_decisions(Decision(name, "none", f"The echo peak is at the centre {centre}."))
    mask = kspace.mask.expand(*kspace.data.shape[: -n_dims - 1], 1, *shape)
    touches_ends = [bool(mask.narrow(d, 0, 1).any() and mask.narrow(d, -1, 1).any()) for d in range(-n_dims, 0)]
    shift = tuple(c - p if free else 0 for c, p, free in zip(centre, peak, touches_ends, strict=True))
    far = any(abs(c - p) > max(2, n // 8) for c, p, n in zip(centre, peak, shape, strict=True))
    reason = f"The echo peak is at {peak}, the centre at {centre}" + ("" if any(shift) else ", on an incomplete axis")
    decision = Decision(name, f"shift by {shift}", f"{reason}.", warning=far)
    if not any(shift):
        return kspace.with_decisions(decision)
    dims = tuple(range(-n_dims, 0))
    return replace(
        kspace,
        data=kspace.data.roll(shift, dims),
        mask=mask.roll(shift, dims),
        calibration=None if kspace.calibration is None else kspace.calibration.roll(shift, dims),
    ).with_decisions(decision)


def mix_coils(kspace: KSpace, matrix: torch.Tensor) -> KSpace:
    """Replace the coils by linear combinations of them: samples, calibration lines and noise scan alike.

    Parameters
    ----------
    kspace
        The scan.
    matrix
        Real or complex, ``(new coil, coil)``.

    Returns
    -------
    KSpace
        The scan with as many coils as the matrix has rows.

    Raises
    ------
    ValueError
        If the number of columns is not the number of coils.
    """
    if matrix.ndim != 2 or matrix.shape[1] != kspace.n_coils:
        raise ValueError(f"matrix has shape {tuple(matrix.shape)}; expected (new coil, {kspace.n_coils}).")
    matrix = matrix.to(kspace.data)

    def mix(tensor: torch.Tensor, n_axes: int) -> torch.Tensor:
        return (matrix @ tensor.flatten(-n_axes)).unflatten(-1, tensor.shape[-n_axes:])

    return replace(
        kspace,
        data=mix(kspace.data, kspace.n_k_axes),
        noise=None if kspace.noise is None else mix(kspace.noise, 1),
        calibration=None if kspace.calibration is None else mix(kspace.calibration, kspace.n_k_axes),
    )


def _decided(std: torch.Tensor, source: str, reason: str) -> tuple[torch.Tensor, Decision]:
    return std, Decision("noise_std", f"{_root_mean_square(std):.4g} from the {source}", reason)


def _root_mean_square(std: torch.Tensor) -> float:
    return float(std.square().mean().sqrt())


def _std_of_noise_scan(noise: torch.Tensor) -> torch.Tensor:
    return _covariance(noise).diagonal().real.sqrt()


def _covariance(noise: torch.Tensor) -> torch.Tensor:
    """Covariance ``(coil, coil)`` per real component of a noise scan ``(coil, sample)``; its mean is removed."""
    noise = noise.to(torch.complex128)
    noise = noise - noise.mean(dim=-1, keepdim=True)
    return noise @ noise.mH / (2 * max(noise.shape[-1] - 1, 1))


def _cholesky_factor(noise: torch.Tensor) -> torch.Tensor | None:
    """L with Ψ = L Lᴴ, or ``None`` if the covariance is singular or known from too few samples."""
    if noise.shape[-1] < 2 * noise.shape[0]:
        return None
    covariance = _covariance(noise)
    scale = covariance.diagonal().real.sqrt()
    if not bool((scale > 0).all()):
        return None
    # Coils may differ by orders of magnitude without being dependent: the correlation, not the covariance, tells.
    if torch.linalg.eigvalsh(covariance / torch.outer(scale, scale))[0] < 1e-6:
        return None
    return torch.linalg.cholesky(covariance)


def _by_coil(kspace: KSpace) -> torch.Tensor:
    """Samples as ``(coil, sample of the batch, *k)``."""
    return kspace.data.movedim(-kspace.n_k_axes - 1, 0).reshape(kspace.n_coils, -1, *kspace.k_shape)


def _measured(kspace: KSpace) -> torch.Tensor:
    """Which samples were measured, bool ``(sample of the batch, *k)``; what is zero in all coils was not."""
    coil = -kspace.n_k_axes - 1
    mask = kspace.mask.expand(*kspace.data.shape[:coil], 1, *kspace.k_shape) > 0
    measured = mask & (kspace.data != 0).any(dim=coil, keepdim=True)
    return measured.reshape(-1, *kspace.k_shape)


def _background_powers(
    kspace: KSpace, coils: torch.Tensor, measured: torch.Tensor
) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Noise power of each coil where nothing is seen, ∞ without such a place, and the axes that were transformed."""
    box: tuple[slice, ...] = (slice(None),) * 3
    axes: tuple[int, ...] = (-1,)
    if kspace.is_cartesian:
        box, axes = _complete_axes(measured)
    elif kspace.readout_length is None or kspace.readout_length < 2 * _BLOCK:
        axes = ()
    else:
        coils, measured = _tapered_readouts(coils, measured, kspace.readout_length)
    powers = [_background_power(coil, measured, box, axes) for coil in coils]
    none = torch.tensor(math.inf, dtype=torch.float64, device=coils.device)
    return torch.stack([none if power is None else power for power in powers]), axes


def _tapered_readouts(
    coils: torch.Tensor, measured: torch.Tensor, readout_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Readouts, or equal parts of few long ones, made ready for a transform of every other frequency.

    Readouts that start in the centre of k-space begin with a jump, which without a taper leaks into all frequencies.
    The taper correlates neighbouring frequencies; every other one, all that is left once the second half is added to
    the first, is nearly independent.

    Returns
    -------
    parts
        ``(coil, sample of the batch, part, sample / 2)``, with the noise power of the samples.
    complete
        Bool ``(sample of the batch, part, sample / 2)``: whether all of the part was measured.
    """
    n_readouts = measured.numel() // readout_length
    n_parts = max(1, min(math.ceil(_MIN_LINES / n_readouts), readout_length // _MIN_PART))
    length = readout_length // n_parts // 2 * 2
    coils, measured = (
        t.unflatten(-1, (-1, readout_length))[..., readout_length - n_parts * length :].unflatten(-1, (n_parts, length))
        for t in (coils, measured)
    )
    taper = torch.hann_window(length, dtype=coils.real.dtype, device=coils.device)
    folded = (coils * (taper / taper.square().sum().mul(2 / length).sqrt())).unflatten(-1, (2, -1)).sum(dim=-2)
    complete = measured.all(dim=-1, keepdim=True).expand(*measured.shape[:-1], length // 2)
    return folded.flatten(2, 3), complete.flatten(1, 2)


def _complete_axes(measured: torch.Tensor) -> tuple[tuple[slice, ...], tuple[int, ...]]:
    """Box that holds all measured samples, and the axes (negative) along which its measured lines are complete."""
    box = [slice(None)]
    for d in range(1, measured.ndim):
        along = measured.movedim(d, 0).flatten(1).any(dim=1).nonzero().flatten()
        box.append(slice(int(along[0]), int(along[-1]) + 1) if len(along) else slice(0, 0))
    inside = measured[tuple(box)]
    n_measured = int(inside.sum())
    axes = []
    for d in range(1 - measured.ndim, 0):
        n_in_lines = int(inside.any(dim=d).sum()) * inside.shape[d]
        # A few stray zeros among measured samples do not matter; a missing line does.
        if n_measured > 0.999 * n_in_lines:
            axes.append(d)
    return tuple(box), tuple(axes)


def _background_power(
    samples: torch.Tensor, measured: torch.Tensor, box: tuple[slice, ...], axes: tuple[int, ...]
) -> torch.Tensor | None:
    """Noise power E|n|² where nothing is seen after a transform of one coil, ``(sample, *k)``, along complete axes."""
    if not axes:
        return None
    seen = torch.fft.ifftn(samples[box], dim=axes, norm="ortho").abs().square().to(torch.float64)
    last = tuple(range(-len(axes), 0))
    lines = measured[box].movedim(axes, last).flatten(-len(axes)).any(dim=-1)
    power = seen.movedim(axes, last)[lines]  # (line, *complete axes)
    n_y, n_x = (n // _BLOCK * _BLOCK for n in power.shape[-2:])
    blocks = power[..., :n_y, :n_x].unflatten(-1, (-1, _BLOCK)).unflatten(-3, (-1, _BLOCK))
    blocks = blocks.movedim(-3, -2).reshape(-1, _BLOCK**2)
    if len(blocks) < _MIN_GROUPS:
        return None
    means = blocks.mean(dim=1)
    floor = _is_floor(means)
    level = means[floor].mean()
    if int(floor.sum()) < max(_BACKGROUND_FRACTION * len(blocks), _MIN_GROUPS) or not level > 0:
        return None
    # Noise is the same everywhere, and its powers are exponential: E p² = 2 (E p)². An even object has neither.
    even = float(means[floor].std() / level) < 1.5 / _BLOCK
    exponential = float((blocks[floor].square().mean(dim=1) / means[floor].square()).mean()) > 1.8
    return level if even and exponential else None


def _edge_power(
    samples: torch.Tensor, measured: torch.Tensor, radius: torch.Tensor, region: torch.Tensor
) -> torch.Tensor:
    """Noise power E|n|² from the outer measured samples of one coil, ``(sample, *k)``; see `_outwards`."""
    index = measured.flatten(1).nonzero()
    if len(index) < _BLOCK**2:
        raise InputError(
            f"k-space holds {len(index)} measured samples that are not zero; the noise level needs {_BLOCK**2}."
        )
    radius, region = (t.expand(len(measured), -1)[index[:, 0], index[:, 1]] for t in (radius, region))
    n_outer = max(_BLOCK**2, math.ceil(_OUTER_FRACTION * len(index)))
    outer = radius.argsort(descending=True)[:n_outer]
    index = index[outer[region[outer].argsort(stable=True)]]
    power = samples.flatten(1)[index[:, 0], index[:, 1]].abs().square().to(torch.float64)
    groups = power[: len(power) // _BLOCK**2 * _BLOCK**2].unflatten(0, (-1, _BLOCK**2))
    return groups[_is_floor(groups.mean(dim=1))].mean()


def _is_floor(power: torch.Tensor) -> torch.Tensor:
    """Which of the mean powers of groups of 64 samples are the lowest that agree within counting statistics."""
    width = 1 + 2.5 / _BLOCK  # the mean of 64 exponential variables varies by one part in eight
    level, previous = power.kthvalue(math.ceil(0.05 * len(power))).values, power.new_full((), -1.0)
    while level > previous:
        previous, level = level, torch.maximum(level, power[power <= level * width].mean())
    return power <= level * width


def _outwards(kspace: KSpace, measured: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance from the centre in units of the measured extent, and number of the region, of every entry of k-space.

    Both are ``(sample of the batch, entry)``, of size 1 where the batch shares its positions. There are eight regions
    along each axis, numbered such that neighbours in number are neighbours in k-space.
    """
    n_dims, shared = kspace.n_dims, kspace.trajectory is None or kspace.trajectory.shape[:-2].numel() == 1
    any_sample = measured.any(dim=0, keepdim=True) if shared else measured
    if kspace.trajectory is None:
        along = [torch.arange(n, dtype=torch.float64, device=measured.device) - n // 2 for n in kspace.k_shape]
        offsets = [offset.reshape(-1, *(1,) * (n_dims - 1 - d)) for d, offset in enumerate(along)]
    else:
        positions = kspace.trajectory.detach().to(torch.float64)
        if not shared:
            positions = positions.expand(*kspace.data.shape[: len(kspace.batch_axes)], -1, -1)
        offsets = list(positions.reshape(len(any_sample), kspace.n_samples, n_dims).unbind(dim=-1))
    radius = torch.zeros(any_sample.shape, dtype=torch.float64, device=measured.device)
    region = torch.zeros(any_sample.shape, dtype=torch.int64, device=measured.device)
    for offset in offsets:
        extent = (offset.abs() * any_sample).amax()
        offset = offset / torch.where(extent > 0, extent, 1)
        radius = radius + offset.square()
        eighth = (4 * (1 + offset)).long().clamp(0, 7)
        region = 8 * region + torch.where(region % 2 == 0, eighth, 7 - eighth)
    return radius.flatten(1), region.flatten(1)
