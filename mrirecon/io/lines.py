"""Readout lines onto the Cartesian grid, and operations on k-space that only change the field of view of the image."""

import math
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mrirecon.kspace import KSpace
from operators.decision import Decision
from operators.errors import InputError
from operators.fourier import centring_phases, in_precision_of
from operators.voxel_grid import Triple

_T = TypeVar("_T", int, float)


def add_lines(
    total: NDArray[np.complex64],
    count: NDArray[np.int32],
    lines: NDArray[np.complex64],
    targets: NDArray[np.int64],
    start: int,
) -> None:
    """Add readout lines to the grid, in place; lines with the same target add up.

    Parameters
    ----------
    total
        Complex ``(batch, coil, kz, ky, kx)``: sum of the samples.
    count
        Integer ``(batch, kz, ky, kx)``: how often each sample was measured.
    lines
        Complex ``(line, coil, sample)``.
    targets
        Indices ``(line, 3)`` into batch, kz and ky.
    start
        Index along kx of the first sample.
    """
    along_kx = slice(start, start + lines.shape[-1])
    for chosen in _without_repetition(np.ravel_multi_index(tuple(targets.T), (*count.shape[:3],))):
        batch, z, y = targets[chosen].T
        total[batch, :, z, y, along_kx] += lines[chosen]
        count[batch, z, y, along_kx] += 1


def occurrences(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count how often the value of each entry stands before it.

    Parameters
    ----------
    values
        One-dimensional.

    Examples
    --------
    >>> occurrences(np.array([7, 3, 7, 7, 3])).tolist()
    [0, 0, 1, 2, 1]
    """
    order = np.argsort(values, kind="stable")
    is_first = np.diff(values[order], prepend=values[order[:1]] - 1) != 0
    firsts = np.flatnonzero(is_first)
    found = np.empty_like(order)
    found[order] = np.arange(len(values)) - firsts[np.cumsum(is_first) - 1]
    return found


def _without_repetition(values: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Indices of all values, split such that no part holds a value twice: as many parts as the commonest occurs."""
    occurrence = occurrences(values)
    return np.split(np.argsort(occurrence, kind="stable"), np.cumsum(np.bincount(occurrence))[:-1])


def crop_field_of_view(kspace: torch.Tensor, n: int, *, dim: int = -1) -> torch.Tensor:
    """K-space of the central ``n`` pixels of the image along one dimension: removes over-sampling.

    The image keeps its pixel values, and white noise keeps its standard deviation per sample, because both transforms
    are orthonormal: y' = F_n C F_N^H y, with C the crop that takes pixel N//2 to n//2.

    Parameters
    ----------
    kspace
        Complex, any shape, fully sampled along ``dim``.
    n
        Pixels to keep.
    dim
        The dimension.

    Returns
    -------
    torch.Tensor
        Complex, ``n`` long along ``dim``.

    Raises
    ------
    ValueError
        If ``n`` is not between 1 and the size of the dimension.
    """
    size = kspace.shape[dim]
    if not 1 <= n <= size:
        raise ValueError(f"The field of view is cropped to {n} of {size} pixels; expected 1 to {size}.")
    y = kspace.movedim(dim, -1)
    image_phase, kspace_phase = (in_precision_of(phase, y) for phase in centring_phases((size,)))
    image = torch.fft.ifft(y * kspace_phase.conj(), norm="ortho") * image_phase.conj()
    image_phase, kspace_phase = (in_precision_of(phase, y) for phase in centring_phases((n,)))
    image = image.narrow(-1, size // 2 - n // 2, n)
    return (torch.fft.fft(image * image_phase, norm="ortho") * kspace_phase).movedim(-1, dim).contiguous()


def reverse_field_of_view(kspace: torch.Tensor, *, dim: int = -1) -> torch.Tensor:
    """K-space of the image in reversed order along one dimension, pixel n−1−i in place of pixel i.

    With u the distance from the k-space centre: y'(u) = exp(−2πi u s/n) y(−u), s = n − 1 − 2 (n//2).

    Parameters
    ----------
    kspace
        Complex, any shape.
    dim
        The dimension.

    Returns
    -------
    torch.Tensor
        Complex, same shape.
    """
    n = kspace.shape[dim]
    u = torch.arange(n) - n // 2
    angle_rad = -2 * math.pi * (n - 1 - 2 * (n // 2)) / n * u.to(torch.float64)
    phase = torch.polar(torch.ones_like(angle_rad), angle_rad)
    y = kspace.movedim(dim, -1)[..., (n // 2 - u) % n] * in_precision_of(phase, kspace)
    return y.movedim(-1, dim).contiguous()


def remove_oversampling(kspace: KSpace, *, dim: int = -1) -> KSpace:
    """Crop the readout to the field of view of the image, where the scanner measured a larger one.

    Parameters
    ----------
    kspace
        The scan.
    dim
        The readout dimension of ``kspace.data``, −1 (kx) or −2 (ky).

    Returns
    -------
    KSpace
        With fewer samples along ``dim`` and the header to match (see `crop_field_of_view` for the scale), and a
        decision that says so; unchanged where the fields of view agree, and where a readout is measured only in part.
    """
    acquisition, n = kspace.acquisition, kspace.data.shape[dim]
    encoded_mm, recon_mm = acquisition.encoded_fov_mm[dim], acquisition.recon_fov_mm[dim]
    kept = max(round(n * recon_mm / encoded_mm), 1)
    if kept >= n:
        return kspace
    mask = kspace.mask
    if mask.shape[dim] > 1:
        if bool((mask != mask.narrow(dim, 0, 1)).any()):
            return kspace.with_decisions(
                Decision("oversampling", "kept", "Readouts that are measured only in part cannot be cropped.")
            )
        mask = mask.narrow(dim, 0, kept)
    fov_mm = kept * encoded_mm / n
    cropped = replace(
        acquisition,
        encoded_shape=_with_entry(acquisition.encoded_shape, dim, kept),
        encoded_fov_mm=_with_entry(acquisition.encoded_fov_mm, dim, fov_mm),
        recon_fov_mm=_with_entry(acquisition.recon_fov_mm, dim, fov_mm),
    )
    reason = f"The readout encodes {encoded_mm:g} mm, the image is to show {recon_mm:g} mm."
    done = Decision("oversampling", f"removed, {n} to {kept} samples", reason, "--keep-oversampling")
    return replace(
        kspace,
        data=crop_field_of_view(kspace.data, kept, dim=dim),
        mask=mask,
        acquisition=cropped,
        calibration=None if kspace.calibration is None else crop_field_of_view(kspace.calibration, kept, dim=dim),
        decisions=(*kspace.decisions, done),
    )


def conjugated(kspace: KSpace) -> KSpace:
    """Complex conjugate of samples, calibration lines and noise: for scans whose image is the forward transform."""
    return replace(
        kspace,
        data=kspace.data.conj().resolve_conj(),
        calibration=None if kspace.calibration is None else kspace.calibration.conj().resolve_conj(),
        noise=None if kspace.noise is None else kspace.noise.conj().resolve_conj(),
    )


def with_voxel_mm(kspace: KSpace, voxel_mm: Triple) -> KSpace:
    """Give a scan the voxel size that a person states, and log it.

    Parameters
    ----------
    kspace
        The scan.
    voxel_mm
        Voxel size (dx, dy, dz) on the grid of ``kspace``, in mm; dz is the slice spacing of a two-dimensional scan.

    Raises
    ------
    InputError
        If a size is not positive.
    """
    if not all(math.isfinite(d) and d > 0 for d in voxel_mm):
        raise InputError(f"The voxel size is {voxel_mm} mm; give three positive sizes, such as --voxel-mm 2,2,5.")
    acquisition = kspace.acquisition
    dx, dy, dz = voxel_mm
    n_z, n_y, n_x = acquisition.encoded_shape
    fov_mm = (n_z * dz, n_y * dy, n_x * dx)
    shown = [f * r / e for f, r, e in zip(fov_mm, acquisition.recon_fov_mm, acquisition.encoded_fov_mm, strict=True)]
    sized = replace(
        acquisition,
        encoded_fov_mm=fov_mm,
        recon_fov_mm=(shown[0], shown[1], shown[2]),
        slice_spacing_mm=dz if kspace.n_dims == 2 else None,
    )
    decision = Decision("voxel_size", f"{dx:g} × {dy:g} × {dz:g}", "It was asked for.", "--voxel-mm")
    return replace(kspace, acquisition=sized).with_decisions(decision)


def _with_entry(triple: tuple[_T, _T, _T], index: int, value: _T) -> tuple[_T, _T, _T]:
    entries = list(triple)
    entries[index] = value
    return entries[0], entries[1], entries[2]
