"""The orthonormal, periodic wavelet transform as an operator."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pywt
import torch
from numpy.typing import NDArray

from operators.elementary import Crop
from operators.linear_operator import LinearOperator
from operators.space import Space

_Filters = tuple[tuple[float, ...], tuple[float, ...]]
_Tap = tuple[int, int, float]  # phase (0 even, 1 odd), offset in pairs of samples, filter coefficient


class Wavelet(LinearOperator):
    """The orthonormal, periodic discrete wavelet analysis W over the last one to three dimensions.

    One level along one dimension of even size N gives the approximation a_k = Σ_j h_j x_{2k + L/2 − j} and the details
    d_k = Σ_j g_j x_{2k + L/2 − j}, with indices modulo N and the analysis filters h (low pass) and g (high pass) of
    length L; the next level takes the approximation only. Periodic wrapping keeps WᴴW = WWᴴ = 1 exactly, also where the
    filter is longer than the signal, so the adjoint is the synthesis. Numbering and signs are those of PyWavelets' mode
    ``"periodization"``.

    Parameters
    ----------
    domain
        Space of x, real or complex.
    wavelet
        Name of an orthogonal PyWavelets wavelet: ``"haar"``, ``"db1"`` … ``"db38"``, ``"sym2"`` … ``"sym20"``,
        ``"coif1"`` … ``"coif17"``.
    level
        Number of levels. By default as many as the sizes and the length of the filter sensibly allow, at most 4 and at
        least 1.
    n_dims
        Number of trailing dimensions to transform: 1, 2 or 3.

    Raises
    ------
    ValueError
        If the wavelet is unknown or not orthonormal, if ``n_dims`` is not 1 to 3 or exceeds the number of dimensions,
        if ``level`` is below 1, or if a transformed size is not divisible by 2^level.

    Notes
    -----
    The codomain has the domain's shape, in the usual nested layout: the approximation lies in the corner at index 0
    (see `approximation_window`), and along each dimension the details of a level follow the half that holds everything
    coarser. The filters are applied as weighted sums of shifted even and odd samples.

    References
    ----------
    Mallat, A Wavelet Tour of Signal Processing, 3rd ed., theorem 7.10 (analysis and synthesis) and section 7.5.1
    (periodic wavelets).

    Examples
    --------
    >>> image = Space((8, 12), "complex", ("y", "x"))
    >>> W = Wavelet(image, "db2", level=2)
    >>> W.approximation_window()
    (slice(0, 2, None), slice(0, 3, None))
    """

    gradient = "adjoint"

    def __init__(self, domain: Space, wavelet: str = "db4", level: int | None = None, n_dims: int = 2) -> None:
        if not 1 <= n_dims <= min(3, domain.n_dims):
            raise ValueError(
                f"n_dims is {n_dims}; expected 1 to 3 and at most the {domain.n_dims} dimensions of {domain.shape}."
            )
        axes = domain.axes
        if axes is not None:
            axes = (*axes[:-n_dims], *(f"{name}_wavelet" for name in axes[-n_dims:]))
        super().__init__(domain, Space(domain.shape, domain.field, axes))
        self.wavelet = wavelet
        self.n_dims = n_dims
        self._filters = _orthonormal_filters(wavelet)
        self.level = _checked_level(level, domain.shape[-n_dims:], len(self._filters[0]))

    def approximation_window(self) -> tuple[slice, ...]:
        """Where the approximation lies: index the coefficients with ``(..., *W.approximation_window())``.

        Returns
        -------
        tuple of slice
            One slice for each of the ``n_dims`` transformed dimensions.
        """
        return self._corner(self.level)

    def detail_mask(self, device: torch.device | str | None = None) -> torch.Tensor:
        """Which coefficients are details, so that a threshold can leave the approximation as it is.

        Parameters
        ----------
        device
            Where the mask lives.

        Returns
        -------
        torch.Tensor
            Bool, the shape of the ``n_dims`` transformed dimensions; false in the approximation.
        """
        mask = torch.ones(self.domain.shape[-self.n_dims :], dtype=torch.bool, device=device)
        mask[self.approximation_window()] = False
        return mask

    def extra_repr(self) -> str:
        """Wavelet, levels and spaces, for ``repr``."""
        return f"{self.wavelet!r}, level={self.level}, n_dims={self.n_dims}, {super().extra_repr()}"

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        coefficients = self._analysed(x)
        for level in range(1, self.level):
            corner: tuple[Any, ...] = (..., *self._corner(level))
            coefficients[corner] = self._analysed(coefficients[corner])
        return coefficients

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        coefficients = y.clone() if self.level > 1 else y
        for level in reversed(range(1, self.level)):
            corner: tuple[Any, ...] = (..., *self._corner(level))
            coefficients[corner] = self._synthesised(coefficients[corner])
        return self._synthesised(coefficients)

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def _norm(self) -> torch.Tensor:
        return torch.ones(())

    def _corner(self, level: int) -> tuple[slice, ...]:
        return tuple(slice(0, n >> level) for n in self.domain.shape[-self.n_dims :])

    def _analysed(self, x: torch.Tensor) -> torch.Tensor:
        for dim in range(-self.n_dims, 0):
            x = _analysis(x, dim, self._filters)
        return x

    def _synthesised(self, y: torch.Tensor) -> torch.Tensor:
        for dim in range(-self.n_dims, 0):
            y = _synthesis(y, dim, self._filters)
        return y


def _analysis(x: torch.Tensor, dim: int, filters: _Filters) -> torch.Tensor:
    half = x.shape[dim] // 2
    taps = [_taps(coefficients, half) for coefficients in filters]
    before, after = _reach(taps)
    phases = [_wrapped(phase, dim, before, after) for phase in x.unflatten(dim, (half, 2)).unbind(dim)]
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    for band, band_taps in zip(result.split(half, dim), taps, strict=True):
        _weighted_sum([(phases[p].narrow(dim, before + offset, half), h) for p, offset, h in band_taps], out=band)
    return result


def _synthesis(y: torch.Tensor, dim: int, filters: _Filters) -> torch.Tensor:
    half = y.shape[dim] // 2
    taps = [_taps(coefficients, half) for coefficients in filters]
    before, after = _reach(taps)
    bands = [_wrapped(band, dim, after, before) for band in y.split(half, dim)]
    phases = [torch.empty_like(y.narrow(dim, 0, half), memory_format=torch.contiguous_format) for _ in range(2)]
    for phase, out in enumerate(phases):
        parts = [
            (band.narrow(dim, after - offset, half), h)
            for band, band_taps in zip(bands, taps, strict=True)
            for p, offset, h in band_taps
            if p == phase
        ]
        _weighted_sum(parts, out=out)
    return torch.stack(phases, dim=dim).flatten(dim - 1, dim)


def _taps(coefficients: Sequence[float], half: int) -> list[_Tap]:
    """Where each coefficient reads, relative to pair k of samples; taps that wrapping makes coincide are merged."""
    merged: dict[tuple[int, int], float] = {}
    for j, coefficient in enumerate(coefficients):
        offset, phase = divmod(len(coefficients) // 2 - j, 2)
        place = (phase, (offset + half // 2) % half - half // 2)
        merged[place] = merged.get(place, 0.0) + coefficient
    return [(phase, offset, coefficient) for (phase, offset), coefficient in merged.items()]


def _reach(taps: Sequence[Sequence[_Tap]]) -> tuple[int, int]:
    """How many pairs before and after its own a coefficient reads."""
    offsets = [offset for band_taps in taps for _, offset, _ in band_taps]
    return max(0, -min(offsets)), max(0, max(offsets))


def _wrapped(x: torch.Tensor, dim: int, before: int, after: int) -> torch.Tensor:
    """``x``, contiguous, with ``before`` and ``after`` entries continued periodically."""
    size = x.shape[dim]
    return torch.cat((x.narrow(dim, size - before, before), x, x.narrow(dim, 0, after)), dim=dim)


def _weighted_sum(parts: Sequence[tuple[torch.Tensor, float]], *, out: torch.Tensor) -> None:
    (first, weight), *others = parts
    torch.mul(first, weight, out=out)
    for part, weight in others:
        out.add_(part, alpha=weight)


def _orthonormal_filters(name: str) -> _Filters:
    """Low-pass and high-pass analysis filters of a wavelet."""
    if name not in pywt.wavelist(kind="discrete"):
        raise ValueError(f"Wavelet {name!r} is unknown; {_ADVICE}.")
    low, high = (np.asarray(taps) for taps in pywt.Wavelet(name).filter_bank[:2])
    if not _is_orthonormal(low, high):
        raise ValueError(f"Wavelet {name!r} is not orthonormal, so its adjoint is not its inverse; {_ADVICE}.")
    return tuple(low.tolist()), tuple(high.tolist())


def _is_orthonormal(low: NDArray[np.float64], high: NDArray[np.float64]) -> bool:
    """Whether the even translates of both filters form an orthonormal system."""
    if len(low) != len(high):
        return False
    centre = len(low) - 1
    own = [np.correlate(taps, taps, "full")[centre % 2 :: 2] for taps in (low, high)]
    delta = (np.arange(len(own[0])) == centre // 2).astype(float)
    crossed = np.correlate(low, high, "full")[centre % 2 :: 2]
    return all(np.allclose(a, b, atol=1e-10) for a, b in ((own[0], delta), (own[1], delta), (crossed, 0.0)))


def _checked_level(level: int | None, shape: tuple[int, ...], filter_length: int) -> int:
    largest = min((n & -n).bit_length() - 1 for n in shape)
    if largest == 0:
        raise ValueError(f"Wavelet cannot halve the shape {shape}: every transformed size must be even; use Pad first.")
    if level is None:
        sensible = min(pywt.dwt_max_level(n, filter_length) for n in shape)
        return min(4, largest, max(1, sensible))
    if not 1 <= level <= largest:
        raise ValueError(
            f"level is {level}, but the shape {shape} can be halved 1 to {largest} times; choose such a level or use "
            "Pad first."
        )
    return level


_ADVICE = "choose an orthogonal one, such as 'haar', 'db4', 'sym4' or 'coif1'"


def synthesis_frame(domain: Space, wavelet: str = "db4", level: int = 4) -> tuple[Wavelet, LinearOperator]:
    """Build a wavelet synthesis for images of any size: coefficients of a padded image, cropped after synthesis.

    Parameters
    ----------
    domain
        Space of the images.
    wavelet, level
        As for `Wavelet`.

    Returns
    -------
    wavelet
        The orthonormal analysis of the padded image.
    synthesis
        Operator from its coefficients to images; of norm 1.
    """
    block = 2**level
    padded = Space(tuple(-(-n // block) * block for n in domain.shape), domain.field, domain.axes)
    analysis = Wavelet(padded, wavelet, level=level, n_dims=domain.n_dims)
    return analysis, Crop(padded, domain.shape) @ analysis.H
