"""Families of filters for convolutional dictionaries: each real, of odd size, zero mean and unit norm, all distinct."""

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
import pywt
import torch
from numpy.typing import NDArray


def dct_filters(n: int, size: int) -> torch.Tensor:
    """Atoms of the two-dimensional DCT-II in the order of increasing frequency, without the constant.

    Atom (p, q) is cos(π(2y + 1)p/(2 size))·cos(π(2x + 1)q/(2 size)); the order is that of p² + q², then of p.

    Parameters
    ----------
    n
        Number of filters, at most size² − 1.
    size
        Odd number of pixels along each side.

    Returns
    -------
    torch.Tensor
        Float32 ``(n, size, size)``.

    Raises
    ------
    ValueError
        If ``n`` is not positive, the size is no odd number from 3 on, or there are fewer atoms than ``n``.
    """
    _check(n, size)
    pixels = np.arange(size)
    waves = np.cos(np.pi * (2 * pixels + 1) * pixels[:, None] / (2 * size))
    orders = sorted(product(range(size), repeat=2), key=lambda order: (order[0] ** 2 + order[1] ** 2, order[0]))
    return _chosen((np.outer(waves[p], waves[q]) for p, q in orders[1:]), n, size, "DCT")


def gabor_filters(n: int, size: int) -> torch.Tensor:
    """Gaussian windows times plane waves: octaves of wavelength, directions, and an even and an odd phase for each.

    With u = x cos φ + y sin φ from the centre, the filters are g(r)·(cos(2πfu) − κ) and g(r)·sin(2πfu), where the
    constant κ takes away the mean and g is Gaussian with standard deviation 1/(2f), at most size/5.

    Parameters
    ----------
    n
        Number of filters; the directions are as many as it takes.
    size
        Odd number of pixels along each side.

    Returns
    -------
    torch.Tensor
        Float32 ``(n, size, size)``, from the longest wavelength to the shortest.

    Raises
    ------
    ValueError
        If ``n`` is not positive or the size is no odd number from 3 on.
    """
    _check(n, size)
    n_octaves = max(2, round(math.log2(_LARGEST_FREQUENCY * size)) + 1)
    n_directions = math.ceil(n / (2 * n_octaves))
    frequencies = [_LARGEST_FREQUENCY / 2**octave for octave in reversed(range(n_octaves))]
    angles = [math.pi * direction / n_directions for direction in range(n_directions)]
    atoms = (atom for f in frequencies for angle in angles for atom in _gabor_pair(size, f, angle))
    return _chosen(atoms, n, size, "Gabor")


def wavelet_filters(n: int, size: int) -> torch.Tensor:
    """Outer products of the filters of orthogonal wavelets on several scales, without the low-pass.

    First come the three details of each scale and wavelet (Haar, Daubechies, symlets, coiflets), then the other
    products of a wavelet packet, and last all of them mirrored. Filters are centred on their energy; one that does not
    keep 90 % of it within the size is left out.

    Parameters
    ----------
    n
        Number of filters.
    size
        Odd number of pixels along each side.

    Returns
    -------
    torch.Tensor
        Float32 ``(n, size, size)``.

    Raises
    ------
    ValueError
        If ``n`` is not positive, the size is no odd number from 3 on, or there are fewer distinct filters than ``n``.
    """
    _check(n, size)
    return _chosen(_wavelet_products(size), n, size, "wavelet")


def random_filters(n: int, size: int, *, seed: int) -> torch.Tensor:
    """Independent Gaussian pixels without their mean.

    Parameters
    ----------
    n
        Number of filters.
    size
        Odd number of pixels along each side.
    seed
        Of the generator; the global one is left alone.

    Returns
    -------
    torch.Tensor
        Float32 ``(n, size, size)``.

    Raises
    ------
    ValueError
        If ``n`` is not positive or the size is no odd number from 3 on.
    """
    _check(n, size)
    drawn = torch.randn(n, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return _chosen(iter(drawn.numpy()), n, size, "random")


_Filter = NDArray[np.float64]

_LARGEST_FREQUENCY = 0.35  # cycles per pixel, below the 0.5 at which directions can no longer be told apart
_LARGEST_COHERENCE = 0.995  # two filters are distinct where their inner product is smaller
_WAVELETS = ("haar", "db2", "sym4", "db3", "coif1", "db4", "sym5", "db6", "coif2", "sym6", "db5", "db8")
_N_SCALES = 3
_KEPT_ENERGY = 0.9


def _gabor_pair(size: int, frequency: float, angle_rad: float) -> tuple[_Filter, _Filter]:
    along = np.arange(size) - size // 2
    y, x = np.meshgrid(along, along, indexing="ij")
    phase = 2 * np.pi * frequency * (x * math.cos(angle_rad) + y * math.sin(angle_rad))
    window = np.exp(-(x**2 + y**2) / (2 * min(0.5 / frequency, size / 5) ** 2))
    even = window * np.cos(phase)
    return even - window * even.sum() / window.sum(), window * np.sin(phase)


def _wavelet_products(size: int) -> Iterator[_Filter]:
    """Candidates in their order; some repeat others."""
    packets = [_packet(name, scale) for name in _WAVELETS for scale in range(1, _N_SCALES + 1)]
    for mirrored in (False, True):
        for whole_packet in (False, True):
            for packet in packets:
                bands = [_fitted(band[::-1] if mirrored else band, size) for band in packet]
                for i, j in product(range(len(bands) if whole_packet else 2), repeat=2):
                    column, row = bands[i], bands[j]
                    if (i or j) and column is not None and row is not None:
                        yield np.outer(column, row)


def _packet(name: str, scale: int) -> list[_Filter]:
    """Filters of all bands of a wavelet packet: first the low-pass, second the detail of this scale."""
    low, high = (np.asarray(taps) for taps in pywt.Wavelet(name).filter_bank[2:])
    bands = [np.ones(1)]
    for level in range(scale):
        spread = [np.zeros((len(low) - 1) * 2**level + 1) for _ in range(2)]
        for stretched, taps in zip(spread, (low, high), strict=True):
            stretched[:: 2**level] = taps
        bands = [np.convolve(band, stretched) for stretched in spread for band in bands]
    return sorted(bands, key=_centre_frequency)


def _centre_frequency(taps: _Filter) -> float:
    spectrum = np.abs(np.fft.rfft(taps, 512)) ** 2
    return float(np.arange(len(spectrum)) @ spectrum / spectrum.sum())


def _fitted(taps: _Filter, size: int) -> _Filter | None:
    """Filter padded or cropped around its energy, ``None`` where too much would be lost; details stay without mean."""
    energy = taps**2 / (taps @ taps)
    centre = round(float(np.arange(len(taps)) @ energy))
    padded = np.pad(taps, size)
    start = centre + size - size // 2
    kept = padded[start : start + size]
    if kept @ kept < _KEPT_ENERGY * (taps @ taps):
        return None
    is_low_pass = abs(taps.sum()) > 1e-6 * np.abs(taps).sum()
    return kept if is_low_pass else kept - kept.mean()


def _chosen(candidates: Iterator[_Filter], n: int, size: int, family: str) -> torch.Tensor:
    """The first ``n`` candidates that differ from all before them, without mean and of unit norm."""
    found = np.empty((n, size * size))
    n_found = 0
    for candidate in candidates:
        atom = (candidate - candidate.mean()).ravel()
        length = np.linalg.norm(atom)
        if length < 1e-6:
            continue
        atom = atom / length
        if (np.abs(found[:n_found] @ atom) < _LARGEST_COHERENCE).all():
            found[n_found] = atom
            n_found += 1
        if n_found == n:
            return torch.from_numpy(found.reshape(n, size, size)).float()
    raise ValueError(
        f"There are {n_found} distinct {family} filters of size {size}; {n} were asked for, ask for fewer."
    )


def _check(n: int, size: int) -> None:
    if n < 1:
        raise ValueError(f"n is {n}; expected at least one filter.")
    if size < 3 or size % 2 == 0:
        raise ValueError(f"size is {size}; expected an odd number of pixels from 3 on, so that there is a centre.")
