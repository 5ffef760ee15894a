"""Removal of radio-frequency interference from scans taken without a shielded room, and how well scans repeat."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch

from mrirecon.density import coil_images
from mrirecon.kspace import KSpace
from operators.decision import Decision
from operators.errors import InputError

Readout = Literal["ky", "kx"]

_OUTER = 0.5  # lines beyond this fraction of the way from the centre to the edge hold little signal
_MIN_OUTER_LINES = 16
_MARGIN = 1.5  # local power above this many times that of noise and interference is signal
_OVERSAMPLING = 2  # frequencies per readout sample at which interference is modelled, as it need not lie on the grid
_RIDGE = 1e-3


def split_reference_coils(kspace: KSpace, coils: Sequence[int]) -> tuple[KSpace, torch.Tensor]:
    """Take the channels out of a scan that were connected to reference coils.

    Parameters
    ----------
    kspace
        The scan as it was read.
    coils
        Numbers of the reference coils, from 0.

    Returns
    -------
    kspace
        The scan without them, with the decision in its log.
    references
        Complex ``(*batch, reference, [kz,] ky, kx)`` or ``(*batch, reference, sample)``, in the given order; see
        ``remove_interference_with_references``.

    Raises
    ------
    InputError
        If no coil is named, one does not exist or is named twice, or no other coil would be left.
    """
    named, n_coils = list(coils), kspace.n_coils
    if not named or len(set(named)) < len(named) or not all(0 <= coil < n_coils for coil in named):
        raise InputError(
            f"The reference coils are {named}; expected different numbers from 0 to {n_coils - 1}, because the scan "
            f"has {n_coils} coils."
        )
    if len(named) == n_coils:
        raise InputError(f"All {n_coils} coils are named as reference coils; leave out those that see the object.")
    kept = [coil for coil in range(n_coils) if coil not in named]
    axis = -kspace.n_k_axes - 1

    def chosen(tensor: torch.Tensor, dim: int, numbers: list[int]) -> torch.Tensor:
        return tensor.index_select(dim, torch.tensor(numbers, device=tensor.device))

    value = ", ".join(map(str, named))
    decision = Decision(
        "reference_coils", value, f"They were taken out; {len(kept)} coils remain.", "--reference-coils"
    )
    remaining = replace(
        kspace,
        data=chosen(kspace.data, axis, kept),
        noise=None if kspace.noise is None else chosen(kspace.noise, 0, kept),
        calibration=None if kspace.calibration is None else chosen(kspace.calibration, axis, kept),
    )
    return remaining.with_decisions(decision), chosen(kspace.data, axis, named)


def remove_interference_with_references(
    kspace: KSpace,
    references: torch.Tensor,
    *,
    window: int = 32,
    kernel_size: tuple[int, int] = (1, 7),
    readout: Readout | None = None,
) -> KSpace:
    """Predict interference from coils that see it but not the object, and subtract it.

    Within a window of neighbouring lines the interference in a coil is a convolution of the references r_j with short
    kernels h_j along the readout and, on request, across lines,

        min_h Σ_l w_l ‖y_l − Σ_j (h_j ∗ r_j)_l‖² + λ ‖h‖²,

    with w_l the inverse of the power of line l, so that lines full of signal do not steer the kernels, and λ one
    thousandth of the mean diagonal of the normal matrix. A window needs many more samples than the kernels have
    entries: what fraction of the signal is lost by chance is entries by samples. The lines of a trajectory are its
    readouts. As each of them may pass the centre, it is not line by line but place by place in the readout that
    they are weighted.

    Parameters
    ----------
    kspace
        The scan.
    references
        Complex ``(*batch, reference, [kz,] ky, kx)`` or ``(*batch, reference, sample)``, measured together with the
        scan and arranged like it; zero where nothing was measured.
    window
        Number of neighbouring lines that share kernels. Small where the surroundings change, large otherwise.
    kernel_size
        Size of the kernels (lines, readout samples), both odd. More than one line only helps where neighbouring lines
        were acquired one right after the other.
    readout
        Axis of the readout; ``None`` for ``kspace.readout``, and with a trajectory.

    Returns
    -------
    KSpace
        The scan without the predicted interference, with the decision in its log. What was not measured stays zero.

    Raises
    ------
    TypeError
        If the references are not complex.
    ValueError
        If the references are not arranged like the scan, window or kernel size is no positive (odd) number, or an axis
        is named although there is a trajectory.
    InputError
        If the references hold nothing, or the readouts of a trajectory are not equally long.

    References
    ----------
    Srinivas et al., External dynamic interference estimation and removal (EDITER) for low field MRI, Magn. Reson. Med.
    87 (2022) 614–628, section 2. Here the windows have a fixed size instead of growing by correlation, and the lines
    are weighted.
    """
    _check_references(kspace, references)
    if window < 1 or any(size < 1 or size % 2 == 0 for size in kernel_size):
        raise ValueError(f"window is {window} and kernel_size {kernel_size}; expected positive, and odd kernel sizes.")
    if not bool((references != 0).any()):
        raise InputError("The reference coils hold only zeros; give the samples measured together with the scan.")
    layout = _layout(kspace, readout)
    target = _as_lines(kspace.data, kspace, layout)
    sources = _as_lines(references.to(kspace.data), kspace, layout)
    half_lines, half_samples = (size // 2 for size in kernel_size)
    sources = torch.nn.functional.pad(sources, (half_samples, half_samples, half_lines, half_lines))
    windows = _windows(target.shape[-2], window)
    parts = []
    for start, stop in windows:
        columns = _shifted(sources[..., start : stop + 2 * half_lines, :], kernel_size)
        if kspace.is_cartesian:
            parts.append(_predicted(target[..., start:stop, :], columns))
        else:
            parts.append(_predicted(target[..., start:stop, :].mT, columns.mT).mT)
    predicted = _from_lines(torch.cat(parts, dim=-2), kspace, layout)
    reason = (
        f"Predicted from {references.shape[-kspace.n_k_axes - 1]} reference coils by kernels of {kernel_size[0]} × "
        f"{kernel_size[1]}, anew in each of {len(windows)} windows of lines, and subtracted."
    )
    return _without(kspace, predicted, reason)


def remove_narrow_band_interference(
    kspace: KSpace, *, threshold: float = 2.0, readout: Readout | None = None
) -> KSpace:
    """Find narrow-band interference in the outer lines of k-space, fit it in every line, and subtract it.

    The frequency of interference during the readout is a position in the image, where it makes a bright line or band
    along the phase direction. Of the object, an image from the lines far from the centre of k-space alone shows edges;
    of interference, which every line has with another phase, it shows noise all along the phase direction. The median
    along that direction tells the noise: frequencies at which its power exceeds ``threshold`` times the median over the
    surrounding half of all frequencies are interference, of power p_f.

    With E the sinusoids of these frequencies (two per sample, so that what lies between pixels and therefore leaks over
    the whole image goes too), transformed to pixels x along the readout, each line h is fitted by

        min_a Σ_x |h_x − (E a)_x|² / (σ_x² + s_x) + Σ_f |a_f|² / p_f,

    the Wiener filter for these powers, and E a is subtracted. σ² is the noise level beside the interference and s the
    power of the signal at this pixel and line, by which the local power exceeds that of the outer lines: where the
    signal is strong, the data stay as they are, interference included; a plain notch would take the object with it.
    Every coil, slice and repetition has its own frequencies. Broadband interference stays; so do separate calibration
    lines and the noise scan.

    A scan with a trajectory is refused: its readouts turn, so that each frequency passes through all of the object, and
    what they have in common in the outer part of k-space is as bright as interference.

    Parameters
    ----------
    kspace
        The scan.
    threshold
        Ratio of powers above which a frequency is interference, above 1.
    readout
        Axis of the readout; see ``remove_interference_with_references``.

    Returns
    -------
    KSpace
        The scan without the interference, with the decision in its log; the same data where none was found.

    Raises
    ------
    ValueError
        If the threshold is not above 1, or the axis is unknown.
    InputError
        If fewer than 16 outer lines were measured completely, or the scan has a trajectory.
    """
    if not threshold > 1:
        raise ValueError(f"threshold is {threshold}; expected a ratio of powers above 1, such as 2.")
    if not kspace.is_cartesian:
        raise InputError(
            "Along a trajectory, interference cannot be told from the object by its frequency; name the coils that see "
            "only the interference (--reference-coils), or leave it in."
        )
    axis = _layout(kspace, readout)
    lines = kspace.data.movedim(axis, -1)  # (*batch, coil, *lines, sample)
    line_dims = kspace.n_dims - 1
    flat = lines.reshape(-1, *lines.shape[-line_dims - 1 :])
    found = torch.zeros_like(flat)
    n_found = 0
    for index, scan in enumerate(flat):
        found[index], n_frequencies = _narrow_band(scan, threshold)
        n_found += n_frequencies
    found = found.reshape(lines.shape).movedim(-1, axis)
    share = n_found / (_OVERSAMPLING * lines.shape[-1] * len(flat))
    if n_found == 0:
        reason = f"At no readout frequency is the power of the outer lines above {threshold:g} times its surroundings."
        return kspace.with_decisions(Decision("interference", "none found", reason))
    reason = (
        f"{100 * share:.2g} % of the readout frequencies hold more than {threshold:g} times the power of their "
        f"surroundings in the outer lines; it was fitted line by line and subtracted."
    )
    return _without(kspace, found, reason)


def repeatability(kspace: KSpace) -> float:
    """Noise between repetitions of a scan, relative to its signal.

    Parameters
    ----------
    kspace
        A scan with a batch axis ``"repetition"`` of at least two entries.

    Returns
    -------
    float
        Standard deviation over the repetitions (of one real component, unbiased, root mean square over all pixels,
        slices and coils; for two repetitions, that of the difference divided by √2) by the 95th percentile of the
        magnitude of the mean image. It counts what changes from one repetition to the next: noise, interference and
        motion.

    Raises
    ------
    InputError
        If there are no repetitions, they hold nothing, or each has a trajectory of its own.
    """
    n_repetitions = kspace.data.shape[kspace.batch_axes.index("repetition")] if "repetition" in kspace.batch_axes else 1
    if n_repetitions < 2:
        raise InputError("The scan holds one repetition; its repeatability needs at least two, kept apart on reading.")
    if not has_one_trajectory(kspace):
        raise InputError(
            "Each repetition has a trajectory of its own, so that their images differ without any noise; repeat the "
            "scan with one trajectory to measure its repeatability."
        )
    image = coil_images(kspace).movedim(kspace.batch_axes.index("repetition"), 0)
    mean = image.mean(dim=0)
    variance = (image - mean).abs().square().sum(dim=0) / (2 * (n_repetitions - 1))
    magnitude = mean.abs().flatten()
    signal = magnitude.kthvalue(math.ceil(0.95 * magnitude.numel())).values
    if not signal > 0:
        raise InputError("The mean of the repetitions holds nothing; its repeatability is not defined.")
    return float(variance.mean().sqrt() / signal)


def has_one_trajectory(kspace: KSpace) -> bool:
    """Tell whether all repetitions were measured at the same positions, so that they can be compared.

    Parameters
    ----------
    kspace
        A scan with a batch axis ``"repetition"``.
    """
    if kspace.trajectory is None or kspace.trajectory.ndim == 2:
        return True
    axis = kspace.batch_axes.index("repetition") - len(kspace.batch_axes) - 2
    if kspace.trajectory.ndim < -axis:
        return True
    return bool((kspace.trajectory == kspace.trajectory.narrow(axis, 0, 1)).all())


def _without(kspace: KSpace, interference: torch.Tensor, reason: str) -> KSpace:
    total = kspace.data.abs().square().sum().clamp_min(torch.finfo(torch.float32).tiny)
    power = float(interference.abs().square().sum() / total)
    decision = Decision("interference", f"{100 * power:.3g} % of the power removed", reason)
    return replace(kspace, data=kspace.data - interference).with_decisions(decision)


def _layout(kspace: KSpace, readout: Readout | None) -> int:
    """Axis of the readout on the grid, −2 or −1; length of the readouts of a trajectory."""
    if readout not in ("ky", "kx", None):
        raise ValueError(f"readout is {readout!r}; expected 'ky', 'kx' or None.")
    if kspace.is_cartesian:
        return -2 if (readout or kspace.readout) == "ky" else -1
    if readout is not None:
        raise ValueError(f"readout is {readout!r}, but the scan has a trajectory; leave it out.")
    if kspace.readout_length is None:
        raise InputError(
            "The readouts of the trajectory are not equally long, so interference cannot be told from one to the next; "
            "give the scan as readouts of one length."
        )
    return kspace.readout_length


def _check_references(kspace: KSpace, references: torch.Tensor) -> None:
    if not references.is_complex():
        raise TypeError(f"references is {references.dtype}; expected a complex tensor.")
    coil = -kspace.n_k_axes - 1
    fits = references.ndim == kspace.data.ndim and all(
        a == b
        for d, (a, b) in enumerate(zip(references.shape, kspace.data.shape, strict=True))
        if d != kspace.data.ndim + coil
    )
    if not fits:
        raise ValueError(
            f"references has shape {tuple(references.shape)}, but kspace {tuple(kspace.data.shape)}; they must agree "
            f"in all but the coils."
        )


def _windows(n_lines: int, window: int) -> list[tuple[int, int]]:
    """Windows of nearly equal size, so that the last one is not left with too few lines."""
    n_windows = max(1, round(n_lines / window))
    edges = [round(i * n_lines / n_windows) for i in range(n_windows + 1)]
    return list(pairwise(edges))


def _as_lines(data: torch.Tensor, kspace: KSpace, layout: int) -> torch.Tensor:
    """``(batch, coil, line, sample)``; the partitions of a volume are further entries of the batch."""
    if not kspace.is_cartesian:
        return data.reshape(-1, data.shape[-2], data.shape[-1] // layout, layout)
    lines = data.movedim(layout, -1)
    return (lines.movedim(-3, -4) if kspace.n_dims == 3 else lines).flatten(end_dim=-4)


def _from_lines(lines: torch.Tensor, kspace: KSpace, layout: int) -> torch.Tensor:
    """The inverse of ``_as_lines`` for the samples of ``kspace``."""
    if not kspace.is_cartesian:
        return lines.reshape(kspace.data.shape)
    shape = kspace.data.movedim(layout, -1).shape
    if kspace.n_dims == 3:
        lines = lines.reshape(*shape[:-4], shape[-3], shape[-4], *shape[-2:]).movedim(-4, -3)
    return lines.reshape(shape).movedim(-1, layout)


def _shifted(padded: torch.Tensor, kernel_size: tuple[int, int]) -> torch.Tensor:
    """References moved by every offset of the kernel, ``(batch, reference · offset, line, sample)``."""
    n_lines, n_samples = (n - size + 1 for n, size in zip(padded.shape[-2:], kernel_size, strict=True))
    moved = [
        padded[..., i : i + n_lines, j : j + n_samples] for i in range(kernel_size[0]) for j in range(kernel_size[1])
    ]
    return torch.cat(moved, dim=1)


def _predicted(target: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Weighted ridge regression of the target, ``(batch, coil, line, sample)``, on the columns of the same lines."""
    measured = (target != 0).any(dim=1, keepdim=True)
    design = (columns * measured).to(torch.complex128).movedim(2, 1)  # (batch, line, column, sample)
    lines = target.to(torch.complex128).movedim(2, 1)
    power = lines.abs().square().mean(dim=-1)
    largest = power.amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    weights = ((power > 0) / power.clamp_min(1e-12 * largest)).to(design)  # (batch, line, coil)
    normal = torch.einsum("blc,blij->bcij", weights, design.conj() @ design.mT)
    right = torch.einsum("blc,blic->bci", weights, design.conj() @ lines.mT)
    diagonal = normal.diagonal(dim1=-2, dim2=-1).real.mean(dim=-1)
    ridge = torch.where(diagonal > 0, _RIDGE * diagonal, 1.0)
    identity = torch.eye(normal.shape[-1], dtype=normal.dtype, device=normal.device)
    kernels = torch.linalg.solve(normal + ridge[..., None, None] * identity, right[..., None])[..., 0]
    predicted = torch.einsum("bci,blis->bcls", kernels, design)
    return (predicted * (target != 0)).to(target.dtype)


def _narrow_band(scan: torch.Tensor, threshold: float) -> tuple[torch.Tensor, int]:
    """Interference of one coil image's lines, ``(*lines, sample)``, and at how many frequencies it was found."""
    box, complete = _complete_lines(scan)
    samples = scan[..., box].to(torch.complex128)
    outer = complete & _is_outer(complete.shape, scan.device)
    n, n_outer = samples.shape[-1], int(outer.sum())
    if n_outer < _MIN_OUTER_LINES:
        raise InputError(
            f"{n_outer} outer lines of k-space were measured completely; telling interference from signal needs "
            f"{_MIN_OUTER_LINES}."
        )
    # A window keeps strong frequencies where they are.
    taper = torch.hann_window(n, dtype=torch.float64, device=scan.device)
    power = _even_power(_OVERSAMPLING * n, samples * taper / taper.square().mean().sqrt(), outer)
    level = _circular_median(power, _OVERSAMPLING * (n // 2) + 1).clamp_min(1e-12 * float(power.max()))
    # The median of few exponential variables fluctuates; five standard deviations are no interference.
    deviation = 1 / (n_outer**0.5 * math.log(2))
    frequencies = (power > level * max(threshold, 1 + 5 * deviation)).nonzero().flatten()
    interference = torch.zeros_like(scan)
    if len(frequencies) == 0:
        return interference, 0
    excess = (power - level)[frequencies] / _OVERSAMPLING
    noise = level[::_OVERSAMPLING]
    pixels = torch.fft.ifft(samples, norm="ortho")
    outer_power = _even_power(n, samples, outer)
    local_power = pixels.abs().square()
    for dim in range(local_power.ndim):
        local_power = (local_power.roll(1, dim) + local_power + local_power.roll(-1, dim)) / 3
    # The mean of nine exponential variables varies by a third, which must not pass for signal.
    weights = 1 / (noise + (local_power - _MARGIN * outer_power).clamp_min(0))
    fitted = torch.zeros_like(samples)
    sinusoids = _sinusoids(frequencies, n)
    fitted[complete] = _fit(pixels[complete], weights[complete], sinusoids, excess)
    interference[..., box] = fitted.to(scan.dtype)
    return interference, len(frequencies)


def _complete_lines(scan: torch.Tensor) -> tuple[slice, torch.Tensor]:
    """Measured range of the readout, and which lines, bool ``(*lines)``, were measured in all of it."""
    measured = scan != 0
    along = measured.flatten(end_dim=-2).any(dim=0).nonzero().flatten()
    if len(along) == 0:
        return slice(0, 1), measured.any(dim=-1)
    box = slice(int(along[0]), int(along[-1]) + 1)
    # A stray zero among the samples does not matter.
    return box, measured[..., box].to(torch.float64).mean(dim=-1) > 0.9


def _is_outer(shape: torch.Size, device: torch.device) -> torch.Tensor:
    outer = torch.zeros(shape, dtype=torch.bool, device=device)
    for dim, n in enumerate(shape):
        distance = (torch.arange(n, device=device) - n // 2).abs()
        outer = outer | (distance > _OUTER * (n // 2)).reshape([-1 if d == dim else 1 for d in range(len(shape))])
    return outer


def _even_power(n: int, samples: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    """Power per sample, at n readout frequencies, of what fills the field of view evenly along the phase direction.

    Lines that know nothing of each other make complex Gaussian noise in the image, whose power is exponential, with a
    median of ln 2 times its mean. Edges of the object, all that outer lines see of it, cover less than half the pixels.
    """
    lines = torch.where(outer[..., None], samples, 0)
    image = torch.fft.ifftn(torch.fft.ifft(lines, n=n), dim=tuple(range(outer.ndim)), norm="ortho")
    power = image.abs().square().flatten(end_dim=-2)
    rank = (len(power) + 1) // 2
    scale = n**2 / samples.shape[-1] * outer.numel() / outer.sum()
    return power.kthvalue(rank, dim=0).values / math.log(2) * scale


def _circular_median(values: torch.Tensor, width: int) -> torch.Tensor:
    index = torch.arange(len(values), device=values.device)
    offsets = torch.arange(width, device=values.device) - width // 2
    return values[(index[:, None] + offsets) % len(values)].median(dim=1).values


def _sinusoids(frequencies: torch.Tensor, n: int) -> torch.Tensor:
    """Sinusoids of unit energy over the readout, seen along pixels, ``(pixel, frequency)``."""
    time = torch.arange(n, dtype=torch.float64, device=frequencies.device)
    phase = -2 * math.pi / (_OVERSAMPLING * n) * time[:, None] * frequencies
    return torch.fft.ifft(torch.polar(torch.ones_like(phase), phase) / n**0.5, dim=0, norm="ortho")


def _fit(pixels: torch.Tensor, weights: torch.Tensor, sinusoids: torch.Tensor, powers: torch.Tensor) -> torch.Tensor:
    """Interference of every line ``(line, pixel)`` as samples, by least squares with a ridge of 1 / power."""
    ridge = torch.diag(1 / powers)
    fitted = []
    for line, weight in zip(pixels, weights, strict=True):
        weighted = sinusoids.conj().T * weight
        fitted.append(sinusoids @ torch.linalg.solve(weighted @ sinusoids + ridge, weighted @ line))
    return torch.fft.fft(torch.stack(fitted), norm="ortho")
