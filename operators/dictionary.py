"""Convolutional dictionaries: images as sums of filters convolved with codes, and their Cartesian measurement."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from operators.elementary import Mask
from operators.fourier import Fourier, MaskedFourier, in_precision_of
from operators.linear_operator import Composition, LinearOperator, register_tensor
from operators.sensitivity import CartesianSense
from operators.space import Field, Space

Boundary = Literal["circular", "reflect"]
Method = Literal["auto", "fft", "spatial"]


class ConvolutionalDictionary(LinearOperator):
    """Synthesis of images from codes: D s = Σ_k d_k ⊛ s_k; its adjoint is the analysis.

    Entry n of an image is (D s)_n = Σ_k Σ_m d_k[m] s_k[e(n − m + c)] with the filters' centre entry c = size//2, so a
    filter that is 1 there and 0 elsewhere copies its code. What lies outside the image is read at e(i), along each
    dimension of size N:

    - ``"circular"``: e(i) = i modulo N;
    - ``"reflect"``: e(i) = |i| for i < N and 2(N − 1) − i beyond, so that the edge itself is not repeated.

    The adjoint (Dᴴy)_k correlates y with d_k and adds what falls outside to where it was read.

    Parameters
    ----------
    filters
        d, real or complex ``(filter, ky, kx)`` with odd sizes. A ``nn.Parameter`` is learned.
    image_shape
        Size ``(y, x)`` of the images, and of the code of each filter.
    field
        Whether codes and images are ``"complex"`` or ``"real"``.
    boundary
        ``"circular"`` or ``"reflect"``.
    method
        ``"fft"``, ``"spatial"`` or ``"auto"``, whichever was measured to be cheaper. All give the same to rounding.

    Raises
    ------
    TypeError
        If the filters are neither real floating-point nor complex, or complex where the field is real.
    ValueError
        If the filters do not have the shape ``(filter, ky, kx)`` with odd sizes that the image holds, or an option is
        unknown.

    Notes
    -----
    With circular boundary ‖D‖² is the largest of Σ_k |d̂_k(ω)|² over the frequencies ω of the image grid, exactly. The
    spectra of filters that are not learned are kept until the filters change.

    Examples
    --------
    >>> D = ConvolutionalDictionary(torch.ones(2, 3, 3) / 3, (4, 5), field="real")
    >>> D(torch.ones(2, 4, 5))[0, 0]
    tensor(6.)
    >>> round(float(D.norm()), 4)  # 3 √2
    4.2426
    """

    gradient = "adjoint"
    filters: torch.Tensor

    def __init__(
        self,
        filters: torch.Tensor,
        image_shape: Sequence[int],
        *,
        field: Field = "complex",
        boundary: Boundary = "circular",
        method: Method = "auto",
    ) -> None:
        image_shape = tuple(image_shape)
        _check_filters(filters, image_shape, field)
        if boundary not in ("circular", "reflect"):
            raise ValueError(f"boundary is {boundary!r}; expected 'circular' or 'reflect'.")
        if method not in ("auto", "fft", "spatial"):
            raise ValueError(f"method is {method!r}; expected 'auto', 'fft' or 'spatial'.")
        super().__init__(
            Space((filters.shape[0], *image_shape), field, ("filter", "y", "x")), Space(image_shape, field, ("y", "x"))
        )
        register_tensor(self, "filters", filters)
        self.boundary = boundary
        self.method = method
        (m_y, p_y), (m_x, p_x) = map(self._padding, image_shape, filters.shape[1:])
        self._margins, self._grid = (m_y, m_x), (p_y, p_x)
        cheaper = field == "real" and filters[0].numel() <= _SMALL_FILTER
        self._spatial_analysis = method == "spatial" or (method == "auto" and cheaper)
        self._spatial_synthesis = method == "spatial"
        self._kept: _Spectrum | None = None

    @property
    def n_filters(self) -> int:
        """Number of filters."""
        return self.domain.shape[0]

    def contributions(self, codes: torch.Tensor) -> torch.Tensor:
        """Each filter's part of the image, d_k ⊛ s_k; they sum to D s.

        Parameters
        ----------
        codes
            s, real or complex as the field, ``(*batch, filter, y, x)``.

        Returns
        -------
        torch.Tensor
            Same field and shape as the codes.

        Raises
        ------
        TypeError, ValueError
            As for ``D(codes)``.
        """
        self.domain.check(codes, f"{type(self).__name__} contributions input")
        return self._to_images(self._transformed(codes) * self._spectrum(codes).values)

    def with_filters(self, filters: torch.Tensor) -> "ConvolutionalDictionary":
        """Build the dictionary of other filters for the same images; their number and odd size are free.

        Parameters
        ----------
        filters
            Real or complex ``(filter, ky, kx)``.

        Returns
        -------
        ConvolutionalDictionary
            With this one's image shape, field, boundary and method.

        Raises
        ------
        TypeError, ValueError
            As for the class.
        """
        return ConvolutionalDictionary(
            filters, self.codomain.shape, field=self.domain.field, boundary=self.boundary, method=self.method
        )

    def extra_repr(self) -> str:
        """Size of the filters, boundary, method and spaces, for ``repr``."""
        size = "×".join(map(str, self.filters.shape[1:]))
        return f"{self.n_filters} filters {size}, {self.boundary}, method={self.method!r}, {super().extra_repr()}"

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._spatial_synthesis:
            return self._convolved(x)
        return self._to_images(self._summed_spectrum(x))

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        if self._spatial_analysis:
            return self._correlated(y)
        widths = [(m, p - m - n) for m, n, p in zip(self._margins, self.codomain.shape, self._grid, strict=True)]
        return self._codes_of(self._fft(torch.nn.functional.pad(y, (*widths[1], *widths[0]))))

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        if self._spatial_synthesis or self._spatial_analysis or self._grid != self.codomain.shape:
            return self._adjoint(self._forward(x))
        return self._codes_of(self._summed_spectrum(x))

    def _norm(self) -> torch.Tensor:
        if self.boundary != "circular":
            return super()._norm()
        dtype = self.filters.dtype.to_complex() if not self.filters.is_complex() else self.filters.dtype
        spectrum = _filter_spectrum(self.filters, self.codomain.shape, dtype)
        return spectrum.abs().square().sum(dim=0).amax().sqrt()

    def _fuse_under(self, outer: LinearOperator) -> LinearOperator | None:
        if self._grid != self.codomain.shape or self.boundary != "circular":
            return None
        return CartesianDictionary(outer, self) if _uniform_weight(outer) is not None else None

    def _padding(self, n: int, size: int) -> tuple[int, int]:
        """How far codes are continued on each side before an FFT, and the size of that FFT, along one dimension.

        A circular convolution needs no continuation, but an FFT of awkward size costs several times as much as one that
        is a little longer.
        """
        if self.boundary == "circular" and _fast_size(n) == n:
            return 0, n
        return size // 2, _fast_size(n + 2 * (size // 2))

    def _fft(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft2(x, s=self._grid) if self.domain.field == "real" else torch.fft.fft2(x, s=self._grid)

    def _ifft(self, spectrum: torch.Tensor) -> torch.Tensor:
        if self.domain.field == "real":
            return torch.fft.irfft2(spectrum, s=self._grid)
        return torch.fft.ifft2(spectrum)

    def _transformed(self, codes: torch.Tensor) -> torch.Tensor:
        return self._fft(_extended(codes, self._margins, self.boundary))

    def _to_images(self, spectrum: torch.Tensor) -> torch.Tensor:
        n_y, n_x = self.codomain.shape
        return self._ifft(spectrum).narrow(-2, self._margins[0], n_y).narrow(-1, self._margins[1], n_x)

    def _to_codes(self, spectrum: torch.Tensor) -> torch.Tensor:
        n_y, n_x = (n + 2 * m for n, m in zip(self.codomain.shape, self._margins, strict=True))
        return _folded(self._ifft(spectrum).narrow(-2, 0, n_y).narrow(-1, 0, n_x), self._margins, self.boundary)

    def _summed_spectrum(self, codes: torch.Tensor) -> torch.Tensor:
        return _summed(codes, self._spectrum(codes).values, self._transformed, at_once=self._at_once(codes))

    def _codes_of(self, image_spectrum: torch.Tensor) -> torch.Tensor:
        conjugates = self._spectrum(image_spectrum).conjugates
        return _weighted(image_spectrum, conjugates, self._to_codes, self.domain, at_once=self._at_once(image_spectrum))

    def _at_once(self, x: torch.Tensor) -> bool:
        """Whether all filters are worked on together: where torch differentiates, and where there is no cache."""
        return self._learns() or x.device.type != "cpu"

    def _spectrum(self, like: torch.Tensor) -> "_Spectrum":
        dtype = like.dtype if like.is_complex() else like.dtype.to_complex()
        half = self.domain.field == "real"
        if self._learns():
            values = _filter_spectrum(self.filters, self._grid, dtype, half=half)
            return _Spectrum(self.filters, values, values.conj())
        if self._kept is None or not self._kept.holds(self.filters, dtype):
            self._kept = _Spectrum.of(self.filters, _filter_spectrum(self.filters, self._grid, dtype, half=half))
        return self._kept

    def _convolved(self, codes: torch.Tensor) -> torch.Tensor:
        extended = _extended(codes, self._radii, self.boundary)
        return _correlated(extended, self.filters.flip(-2, -1)[None]).squeeze(-3)

    def _correlated(self, images: torch.Tensor) -> torch.Tensor:
        filters, images = self.filters.conj()[:, None], images.unsqueeze(-3)
        if self.boundary == "circular":
            return _correlated(_extended(images, self._radii, self.boundary), filters)
        r_y, r_x = self._radii
        padded = torch.nn.functional.pad(images, (2 * r_x, 2 * r_x, 2 * r_y, 2 * r_y))
        return _folded(_correlated(padded, filters), self._radii, self.boundary)

    @property
    def _radii(self) -> tuple[int, int]:
        n_y, n_x = self.filters.shape[1:]
        return n_y // 2, n_x // 2


class CartesianDictionary(LinearOperator):
    """Cartesian imaging with one uniform coil after a circular dictionary, A D; its gram stays in Fourier space.

    There AᴴA is the mask and D a product with the spectra of the filters, so Dᴴ Aᴴ A D s takes one FFT for each filter
    each way, and these leave out the frequencies beyond the box of what is measured. Build it with ``@``.

    Parameters
    ----------
    imaging
        A: a `Fourier` or `MaskedFourier` on images ``(y, x)``, or a `CartesianSense` with one coil whose sensitivity is
        the same everywhere.
    dictionary
        D, with circular boundary.

    Raises
    ------
    ValueError
        If the factors do not fit, the boundary is not circular, or A is none of these.
    """

    gradient = "adjoint"

    def __init__(self, imaging: LinearOperator, dictionary: ConvolutionalDictionary) -> None:
        fitting = Composition((imaging, dictionary))
        super().__init__(fitting.domain, fitting.codomain)
        if dictionary.boundary != "circular":
            raise ValueError(f"The dictionary's boundary is {dictionary.boundary!r}; expected 'circular'.")
        if _uniform_weight(imaging) is None:
            raise ValueError(
                f"{type(imaging).__name__} to {imaging.codomain} is not Cartesian imaging of two dimensions with one "
                "uniform coil; use Composition, which takes any operator."
            )
        self.imaging = imaging
        self.dictionary = dictionary
        self._sampling: _Sampling | None = None
        self._kept: _Spectrum | None = None

    def _batch_shape(self) -> torch.Size:
        return self.imaging.batch_shape

    def _fuse_under(self, outer: LinearOperator) -> LinearOperator | None:
        imaging = self.imaging._fuse_under(outer)
        return None if imaging is None else CartesianDictionary(imaging, self.dictionary)

    def as_composition(self) -> Composition:
        """The textbook product of the factors, for reading and for tests."""
        return Composition((self.imaging, self.dictionary))

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.imaging._differentiably("forward", self.dictionary._differentiably("forward", x))

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.dictionary._differentiably("adjoint", self.imaging._differentiably("adjoint", y))

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        sampling = None if self._learns() else self._measured()
        if sampling is None:
            return self.as_composition()._gram(x)
        spectrum, at_once = self._spectrum(x, sampling), x.device.type != "cpu"
        summed = _summed(x, spectrum.values, sampling.transformed, at_once=at_once)
        summed = summed * in_precision_of(sampling.ordered(sampling.weights), x)
        return _weighted(summed, spectrum.conjugates, sampling.transformed_back, self.domain, at_once=at_once)

    def _measured(self) -> "_Sampling | None":
        """What is measured, worked out anew when mask or sensitivity have changed; ``None`` for an uneven coil."""
        tensors = _tensors_of(self.imaging)
        if self._sampling is None or not self._sampling.holds(tensors):
            weight = _uniform_weight(self.imaging)
            self._sampling = None if weight is None else _Sampling.of(weight, self.dictionary.codomain.shape, tensors)
            self._kept = None
        return self._sampling

    def _spectrum(self, like: torch.Tensor, sampling: "_Sampling") -> "_Spectrum":
        filters = self.dictionary.filters
        if self._kept is None or not self._kept.holds(filters, like.dtype):
            values = _filter_spectrum(filters, self.dictionary.codomain.shape, like.dtype, sampling.kept)
            self._kept = _Spectrum.of(filters, sampling.ordered(values))
        return self._kept


@dataclass(frozen=True, slots=True, eq=False)
class _Spectrum:
    """Spectra of filters and their conjugates, ``(filter, ky, kx)`` in the order of an FFT."""

    filters: torch.Tensor
    values: torch.Tensor
    conjugates: torch.Tensor

    @classmethod
    def of(cls, filters: torch.Tensor, values: torch.Tensor) -> "_Spectrum":
        """Remember for which filters the spectra are right."""
        return cls(filters.detach().clone(), values, values.conj().resolve_conj())

    def holds(self, filters: torch.Tensor, dtype: torch.dtype) -> bool:
        """Whether these are the spectra; by value, because a filter can change without leaving a trace."""
        same_kind = self.filters.dtype == filters.dtype and self.filters.device == filters.device
        return same_kind and self.values.dtype == dtype and torch.equal(self.filters, filters)


@dataclass(frozen=True, slots=True, eq=False)
class _Sampling:
    """The box of frequencies that holds all measured ones, and how much each counts in AᴴA.

    Along each dimension the first ``kept[d][0]`` and the last ``kept[d][1]`` entries of the FFT are kept.
    """

    tensors: tuple[torch.Tensor, ...]
    versions: tuple[int, ...]
    shape: tuple[int, ...]
    kept: tuple[tuple[int, int], tuple[int, int]]
    weights: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, shape: tuple[int, ...], tensors: tuple[torch.Tensor, ...]) -> "_Sampling":
        """Work out the box for weights that broadcast to ``(*batch, ky, kx)``, centred."""
        weights = torch.fft.ifftshift(weight.expand(*torch.broadcast_shapes(weight.shape, shape)), dim=(-2, -1))
        counts = weights.reshape(-1, *shape).any(dim=0)
        kept = _kept_of(counts.any(dim=1)), _kept_of(counts.any(dim=0))
        for d, ends in zip((-2, -1), kept, strict=True):
            weights = _ends(weights, d, ends)
        return cls(tensors, tuple(t._version for t in tensors), shape, kept, weights.contiguous())

    def holds(self, tensors: tuple[torch.Tensor, ...]) -> bool:
        """Whether the operator's tensors are still those of which the box was worked out."""
        same = all(a is b for a, b in zip(self.tensors, tensors, strict=True))
        return same and self.versions == tuple(t._version for t in tensors)

    def transformed(self, codes: torch.Tensor) -> torch.Tensor:
        """FFT of ``(…, y, x)`` at the kept frequencies, ``(…, ky, kx)`` or, where columns come first, ``(…, kx, ky)``.

        The dimension of which less is kept is transformed first, so that the second transform has less to do; each is
        moved last, where an FFT is cheapest.
        """
        if self.is_whole:
            return torch.fft.fft2(codes)
        first, second = self._order
        lines = torch.fft.fft(codes if first == 1 else codes.mT, dim=-1)
        return _ends(torch.fft.fft(_ends(lines.mT, -2, self.kept[first]), dim=-1), -1, self.kept[second])

    def transformed_back(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Inverse FFT of what is zero at all other frequencies, ``(…, y, x)``."""
        if self.is_whole:
            return torch.fft.ifft2(spectrum)
        first, second = self._order
        lines = torch.fft.ifft(_apart(spectrum, self.kept[second], self.shape[second]), dim=-1)
        codes = torch.fft.ifft(_apart(lines.mT, self.kept[first], self.shape[first]), dim=-1)
        return codes if first == 1 else codes.mT

    def ordered(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Spectrum ``(…, ky, kx)`` at the kept frequencies, with its dimensions as `transformed` leaves them."""
        return spectrum.mT.contiguous() if not self.is_whole and self._order[0] == 1 else spectrum

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return all(sum(ends) == n for ends, n in zip(self.kept, self.shape, strict=True))

    @property
    def _order(self) -> tuple[int, int]:
        columns_first = sum(self.kept[1]) * self.shape[0] <= sum(self.kept[0]) * self.shape[1]
        return (1, 0) if columns_first else (0, 1)


# FFT | spatial, milliseconds on one core in single precision for real filters and a circular boundary:
#                    analysis of complex images             synthesis
#   filters, image   5×5          9×9          15×15        5×5          9×9          15×15
#    8,  64²         0.17 | 0.24  0.18 | 0.38  0.19 | 0.70  0.14 | 0.61  0.14 | 1.65  0.14 | 4.2
#   32,  64²         0.69 | 0.48  0.78 | 0.83  0.75 | 1.4   0.62 | 2.6   0.48 | 6.8   0.48 | 17
#   32, 128²         2.8  | 1.4   2.4  | 4.2   2.5  | 7.0   2.3  | 9.9   1.9  | 28    1.9  | 70
#   64, 128²         7.8  | 3.1   4.8  | 9.1   4.7  | 10    4.0  | 21    4.0  | 57    3.8  | 145
#   32, 320²         16   | 9.4   16   | 27    16   | 45    19   | 58    18   | 177   17   | 443
#   64, 320²         53   | 48    35   | 59    57   | 147   35   | 168   36   | 385   37   | 956
#                    analysis of real images                gram of real images (spatial: its analysis only)
#   filters, image   7×7          11×11        15×15        7×7          11×11        15×15
#   32,  64²         0.45 | 0.32  0.49 | 0.49  0.54 | 0.74  0.68 | 0.68  0.72 | 0.85  0.76 | 1.17
#   32, 128²         2.1  | 0.9   2.2  | 1.8   2.6  | 2.9   3.3  | 2.4   3.8  | 3.2   4.2  | 4.3
#   64, 320²         27   | 10    26   | 18    26   | 31    46   | 32    48   | 40    49   | 55
# With complex images the gram of 5×5 filters costs the same either way. So everything goes through Fourier space but
# the analysis of real images by filters up to 11×11, in the gram too.
_SMALL_FILTER = 121  # pixels

_CACHED_ENTRIES = 1 << 17  # complex entries that are transformed at a time: 1 MB in single precision


def _summed(codes: torch.Tensor, spectrum: torch.Tensor, transform: "_Map", *, at_once: bool) -> torch.Tensor:
    """Σ_k d̂_k ŝ_k for codes ``(*batch, filter, y, x)``; filters are taken in blocks that stay in the cache."""
    if at_once:
        return (transform(codes) * spectrum).sum(dim=-3)
    batch = codes.shape[:-3]
    flat = codes.reshape(batch.numel(), *codes.shape[-3:])
    summed = spectrum.new_zeros(len(flat), *spectrum.shape[1:])
    for b, k in _blocks(len(flat), codes.shape[-3:]):
        summed[b] += transform(flat[b, k]).mul_(spectrum[k]).sum(dim=0)
    return summed.reshape(*batch, *spectrum.shape[1:])


def _weighted(
    images: torch.Tensor, conjugates: torch.Tensor, transform_back: "_Map", domain: Space, *, at_once: bool
) -> torch.Tensor:
    """Codes in ``domain`` with the spectra conj(d̂_k) ŷ for ŷ ``(*batch, ky, kx)``; filters in blocks likewise."""
    if at_once:
        return transform_back(images.unsqueeze(-3) * conjugates)
    batch = images.shape[:-2]
    flat = images.reshape(batch.numel(), *images.shape[-2:])
    dtype = images.dtype if domain.field == "complex" else images.dtype.to_real()
    codes = images.new_empty(len(flat), *domain.shape, dtype=dtype)
    for b, k in _blocks(len(flat), domain.shape):
        codes[b, k] = transform_back(flat[b] * conjugates[k])
    return codes.reshape(*batch, *domain.shape)


def _blocks(n_samples: int, shape: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Pairs of (sample, filters) that cover ``n_samples`` codes of this shape ``(filter, y, x)``."""
    n_together = max(1, _CACHED_ENTRIES // math.prod(shape[1:]))
    for b in range(n_samples):
        for k in range(0, shape[0], n_together):
            yield b, slice(k, k + n_together)


def _filter_spectrum(
    filters: torch.Tensor,
    grid: Sequence[int],
    dtype: torch.dtype,
    kept: Sequence[tuple[int, int]] | None = None,
    *,
    half: bool = False,
) -> torch.Tensor:
    """Spectra Σ_m d_k[m] exp(−2πi ω·(m − c)/N) on a grid of N frequencies in the order of an FFT.

    They are the product of the filters with a small matrix on each side, which is quicker than the FFT of filters that
    are mostly padding. ``kept`` asks for the first and last so many frequencies of each dimension, ``half`` for those
    of `torch.fft.rfft2`.
    """
    sides = []
    for d, (n, size) in enumerate(zip(grid, filters.shape[1:], strict=True)):
        frequencies = torch.arange(n, dtype=torch.float64, device=filters.device)
        if kept is not None:
            frequencies = _ends(frequencies, 0, kept[d])
        elif half and d == 1:
            frequencies = frequencies[: n // 2 + 1]
        positions = torch.arange(size, dtype=torch.float64, device=filters.device) - size // 2
        turns = torch.outer(frequencies, positions) % n / n
        sides.append(torch.exp(-2j * math.pi * turns).to(dtype))
    return sides[0] @ filters.to(dtype) @ sides[1].mT


def _correlated(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Correlation of ``(*batch, n_in, y, x)`` with ``(n_out, n_in, ky, kx)`` where the kernel lies inside."""
    batch, kernel = x.shape[:-3], in_precision_of(kernel, x)
    flat = x.reshape(batch.numel(), *x.shape[-3:])
    if flat.is_complex() and not kernel.is_complex():
        parts = torch.nn.functional.conv2d(torch.cat((flat.real, flat.imag)), kernel)
        result = torch.complex(*parts.chunk(2))
    else:
        result = torch.nn.functional.conv2d(flat, kernel)
    return result.reshape(*batch, *result.shape[1:])


def _extended(x: torch.Tensor, margins: Sequence[int], boundary: Boundary) -> torch.Tensor:
    """``x`` continued by the margins of the last two dimensions on each side."""
    for d, m in zip((-2, -1), margins, strict=True):
        n = x.shape[d]
        if m and boundary == "circular":
            x = torch.cat((x.narrow(d, n - m, m), x, x.narrow(d, 0, m)), dim=d)
        elif m:
            x = torch.cat((x.narrow(d, 1, m).flip(d), x, x.narrow(d, n - 1 - m, m).flip(d)), dim=d)
    return x


def _folded(x: torch.Tensor, margins: Sequence[int], boundary: Boundary) -> torch.Tensor:
    """Adjoint of `_extended`: what lies in the margins is added where it was read."""
    for d, m in zip((-2, -1), margins, strict=True):
        n = x.shape[d] - 2 * m
        if m:
            before, inside, after = x.split((m, n, m), dim=d)
            inside = inside.clone()
            if boundary == "circular":
                inside.narrow(d, n - m, m).add_(before)
                inside.narrow(d, 0, m).add_(after)
            else:
                inside.narrow(d, 1, m).add_(before.flip(d))
                inside.narrow(d, n - 1 - m, m).add_(after.flip(d))
            x = inside
    return x


def _ends(x: torch.Tensor, dim: int, ends: tuple[int, int]) -> torch.Tensor:
    """The first and the last so many entries along a dimension."""
    n = x.shape[dim]
    return x if sum(ends) == n else torch.cat((x.narrow(dim, 0, ends[0]), x.narrow(dim, n - ends[1], ends[1])), dim)


def _apart(x: torch.Tensor, ends: tuple[int, int], n: int) -> torch.Tensor:
    """Adjoint of `_ends` along the last dimension: zeros between the first and the last entries, ``n`` in all."""
    if sum(ends) == n:
        return x
    result = x.new_zeros(*x.shape[:-1], n)
    result[..., : ends[0]] = x[..., : ends[0]]
    result[..., n - ends[1] :] = x[..., ends[0] :]
    return result


def _kept_of(counts: torch.Tensor) -> tuple[int, int]:
    """How many of the first and last entries of an FFT hold all frequencies that count, ``(n,)`` bool."""
    n = len(counts)
    n_first = (n + 1) // 2
    first, last = counts[:n_first].nonzero(), counts[n_first:].nonzero()
    ends = int(first.max()) + 1 if len(first) else 0, n - n_first - int(last.min()) if len(last) else 0
    return ends if sum(ends) else (1, 0)


def _uniform_weight(imaging: LinearOperator) -> torch.Tensor | None:
    """What AᴴA multiplies the centred spectrum of an image by, broadcasting to ``(*batch, ky, kx)``, if it does."""
    if isinstance(imaging, CartesianSense):
        csm = imaging.sensitivity.csm
        if imaging.domain.n_dims != 2 or imaging.codomain.shape[0] != 1 or bool((csm != csm[..., :1, :1]).any()):
            return None
        coil = csm[..., 0, :1, :1].to(torch.complex128).abs().square()
        return coil if imaging.mask is None else coil * _of_one_coil(imaging.mask)
    fourier = imaging.fourier if isinstance(imaging, MaskedFourier) else imaging
    if not isinstance(fourier, Fourier) or fourier.n_dims != 2 or fourier.domain.n_dims != 2:
        return None
    return imaging.mask.mask if isinstance(imaging, MaskedFourier) else fourier._image_phase.new_ones(()).abs()


def _of_one_coil(mask: Mask) -> torch.Tensor:
    """Mask on k-space ``(coil, ky, kx)`` with one coil, without that dimension."""
    return mask.mask.squeeze(-3) if mask.mask.ndim >= 3 else mask.mask


def _tensors_of(imaging: LinearOperator) -> tuple[torch.Tensor, ...]:
    """What `_uniform_weight` depends on."""
    mask = imaging.mask if isinstance(imaging, CartesianSense | MaskedFourier) else None
    csm = (imaging.sensitivity.csm,) if isinstance(imaging, CartesianSense) else ()
    return csm if mask is None else (*csm, mask.mask)


def _check_filters(filters: torch.Tensor, image_shape: tuple[int, ...], field: Field) -> None:
    if not (filters.is_complex() or filters.is_floating_point()):
        raise TypeError(f"filters are {filters.dtype}; expected a floating-point or complex tensor.")
    if filters.is_complex() and field == "real":
        raise TypeError(f"filters are {filters.dtype}, but the field is real; pass real filters or field='complex'.")
    if filters.ndim != 3 or not filters.numel():
        raise ValueError(f"filters have shape {tuple(filters.shape)}; expected (filter, ky, kx).")
    if any(size % 2 == 0 for size in filters.shape[1:]):
        raise ValueError(f"filters have size {tuple(filters.shape[1:])}; it must be odd, so that there is a centre.")
    if len(image_shape) != 2 or any(size > n for size, n in zip(filters.shape[1:], image_shape, strict=True)):
        raise ValueError(
            f"image_shape is {image_shape}; expected (y, x) and at least the filters' size {tuple(filters.shape[1:])}."
        )


def _fast_size(at_least: int) -> int:
    """The smallest size from here on whose only prime factors are 2, 3, 5 and 7."""
    size = at_least
    while math.gcd(size, 210 ** size.bit_length()) != size:
        size += 1
    return size


_Map = Callable[[torch.Tensor], torch.Tensor]
