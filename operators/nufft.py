"""The Fourier transform at arbitrary k-space positions, by Kaiser–Bessel gridding, and its Toeplitz gram."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType

import torch

from operators.fourier import in_precision_of
from operators.linear_operator import LinearOperator
from operators.space import Space

# Relative error per √dimension at grid factor 2: the largest measured on noise images of 5 to 40 pixels, plus a tenth.
_ERROR_OF_WIDTH = {
    2: 5.5e-2,
    3: 5.2e-3,
    4: 5.5e-4,
    5: 5.5e-5,
    6: 5.5e-6,
    7: 5.7e-7,
    8: 6.5e-8,
    9: 7e-9,
    10: 8e-10,
    11: 1e-10,
    12: 1e-11,
    13: 1.2e-12,
    14: 1.5e-13,
}
_GRID_FACTOR = 2
_SINGLE_PRECISION = 5e-7  # what single precision can reach, whatever the width
_MAX_IMAGES = 16  # treated together: their entries lie side by side, and more of them leave the cache
_MAX_GRID_BYTES = 2**27
_MAX_ENTRIES = 2**31 - 1
_ENTRIES_AT_ONCE = 2**24  # of the table that makes a Toeplitz kernel, which is not kept
_ROUNDING_RAD = 1e-6  # by which π in single precision exceeds π, and more

_Part = tuple[EllipsisType | slice, ...]


class NonUniformFourier(LinearOperator):
    """The Fourier transform of an image at arbitrary k-space positions, scaled like `operators.fourier.Fourier`.

    (A x)_s = N^(−1/2) Σ_n x_n exp(−i ω_s · (n − c)), with N the number of pixels and c = N_d//2 along dimension d. At
    the Cartesian positions ω = 2π (k − c)/N_d this is the centred orthonormal transform, for even and odd sizes.

    It is approximated by gridding: x is divided by the Fourier transform of a Kaiser–Bessel kernel and transformed
    onto a grid twice as fine, from which each sample is interpolated with that kernel. The interpolation weights are
    real and stored, by samples and by grid points. The adjoint is that of the approximation, exact to rounding. It
    carries no density compensation.

    Parameters
    ----------
    trajectory
        k-space positions, real ``(sample, dim)``, radians per pixel in [−π, π), in the order ``([kz,] ky, kx)``. It is
        a constant: no gradient flows to it.
    image_shape
        ``(y, x)`` or ``(z, y, x)``.
    n_coils
        Number of coils, or any leading shape, of image and samples: ``(coil, y, x)`` to ``(coil, sample)``. ``None``
        for a single image without a coil axis.
    accuracy
        Relative error ‖A x − F x‖ / ‖F x‖ against the exact transform F that is asked for, from 1e-12 to 1e-1; it sets
        the width of the kernel. It holds for images that fill their field evenly. The error grows towards the edges,
        where a single pixel has about twice that, and is smaller for objects in the middle. In single precision,
        rounding adds about 1e-6 to the adjoint where thousands of samples meet, as in the centre of radial spokes.
    memory_limit_bytes
        What the stored weights may take; estimated before anything is built.
    precision
        In which the weights are stored, ``torch.float32`` or ``torch.float64``. Inputs of the other precision are
        transformed in theirs.

    Attributes
    ----------
    trajectory
        The positions, float64 ``(sample, dim)``, on the CPU.
    width
        Of the kernel, in points of the fine grid.
    grid_shape
        Of the fine grid.

    Raises
    ------
    TypeError
        If the trajectory is no real tensor, asks for a gradient, or the precision is neither single nor double.
    ValueError
        If the trajectory is not ``(sample, dim)`` with the image's number of dimensions, is not finite or leaves
        [−π, π); if the accuracy cannot be reached, or the weights would exceed the memory limit.

    References
    ----------
    P. J. Beatty, D. G. Nishimura, J. M. Pauly, "Rapid gridding reconstruction with a minimal oversampling ratio",
    IEEE Transactions on Medical Imaging 24(6), 2005: equation (5) for the kernel's shape, and (4) for its transform.

    Examples
    --------
    >>> trajectory = torch.tensor([[0.0, 0.0], [0.5, -1.2]])
    >>> A = NonUniformFourier(trajectory, (8, 8), n_coils=2)
    >>> A(torch.ones(2, 8, 8, dtype=torch.complex64)).shape
    torch.Size([2, 2])
    """

    gradient = "adjoint"
    _apodisation: torch.Tensor
    _points: torch.Tensor
    _weights: torch.Tensor
    _starts: torch.Tensor
    _samples: torch.Tensor
    _transposed_weights: torch.Tensor

    def __init__(
        self,
        trajectory: torch.Tensor,
        image_shape: Sequence[int],
        *,
        n_coils: int | Sequence[int] | None = None,
        accuracy: float = 1e-5,
        memory_limit_bytes: int = 2 * 2**30,
        precision: torch.dtype = torch.float32,
    ) -> None:
        image_shape = tuple(image_shape)
        _check_trajectory(trajectory, image_shape)
        width = _width(accuracy, len(image_shape), precision)
        domain, codomain = _spaces(image_shape, n_coils, len(trajectory))
        super().__init__(domain, codomain)
        self.trajectory = trajectory.detach().to("cpu", torch.float64).clone()
        self.accuracy = accuracy
        self.width = width
        self.grid_shape = tuple(_fast_size(_GRID_FACTOR * n) for n in image_shape)
        _check_memory(len(trajectory), width, self.grid_shape, memory_limit_bytes, precision)
        kernels = [_KaiserBessel.of(width, n, size) for n, size in zip(image_shape, self.grid_shape, strict=True)]
        points, weights = _interpolation(self.trajectory, kernels)
        starts, samples, transposed_weights = _transposed(points, weights, math.prod(self.grid_shape))
        tables = {
            "_apodisation": _apodisation(kernels).to(precision),
            "_points": points,
            "_weights": weights.to(precision),
            "_starts": starts,
            "_samples": samples,
            "_transposed_weights": transposed_weights.to(precision),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.to(trajectory.device), persistent=False)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``(y, x)`` or ``(z, y, x)``."""
        return self.domain.shape[-len(self.grid_shape) :]

    def toeplitz_gram(self, weights: torch.Tensor | None = None) -> "ToeplitzGram":
        """The operator AᴴWA as a convolution, which costs one padded transform and its inverse.

        Parameters
        ----------
        weights
            The diagonal of W, such as the density compensation: real ``(sample,)``; ``None`` for ones.

        Returns
        -------
        ToeplitzGram
            With the same spaces, accuracy and precision. It agrees with ``A.gram`` to the accuracy only, because both
            approximate the exact product.

        Raises
        ------
        TypeError, ValueError
            As for `ToeplitzGram`.
        """
        gram = ToeplitzGram(
            self.trajectory,
            self.image_shape,
            weights,
            n_coils=self.domain.shape[: -len(self.grid_shape)] or None,
            accuracy=self.accuracy,
            precision=self._weights.dtype,
        )
        return gram.to(self._weights.device)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        images = _listed(x, self.image_shape)
        samples = x.new_empty(len(images), self.codomain.shape[-1])
        for some in self._parts(images):
            samples[some] = self._interpolated(self._on_grid(images[some]))
        return samples.view(*self.domain.batch_shape(x), *self.codomain.shape)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        samples = _listed(y, self.codomain.shape[-1:])
        images = y.new_empty(len(samples), *self.image_shape)
        for some in self._parts(samples):
            images[some] = self._from_grid(self._spread(samples[some]))
        return images.view(*self.codomain.batch_shape(y), *self.domain.shape)

    def _on_grid(self, images: torch.Tensor) -> torch.Tensor:
        weighted = images * in_precision_of(self._apodisation, images)
        grid = images.new_zeros(len(images), *self.grid_shape)
        for on_grid, in_image in self._corners():
            grid[on_grid] = weighted[in_image]
        return torch.fft.fftn(grid, dim=self._dims)

    def _from_grid(self, grid: torch.Tensor) -> torch.Tensor:
        transformed = torch.fft.ifftn(grid, dim=self._dims, norm="forward")
        images = grid.new_empty(len(grid), *self.image_shape)
        for on_grid, in_image in self._corners():
            images[in_image] = transformed[on_grid]
        return images.mul_(in_precision_of(self._apodisation, images))

    def _interpolated(self, grid: torch.Tensor) -> torch.Tensor:
        samples = torch.nn.functional.embedding_bag(
            self._points, _columns(grid), mode="sum", per_sample_weights=in_precision_of(self._weights, grid)
        )
        return torch.view_as_complex(samples.view(len(samples), -1, 2)).T

    def _spread(self, samples: torch.Tensor) -> torch.Tensor:
        grid = torch.nn.functional.embedding_bag(
            self._samples,
            _columns(samples),
            self._starts,
            mode="sum",
            per_sample_weights=in_precision_of(self._transposed_weights, samples),
            include_last_offset=True,
        )
        return torch.view_as_complex(grid.view(len(grid), -1, 2)).T.reshape(-1, *self.grid_shape)

    @property
    def _dims(self) -> tuple[int, ...]:
        return tuple(range(-len(self.grid_shape), 0))

    def _corners(self) -> Iterator[tuple[_Part, _Part]]:
        """Where the image's parts go, so that its centre is the grid's first point and no phase is due."""
        return _corners(self.image_shape, self.grid_shape)

    def _parts(self, vectors: torch.Tensor) -> list[slice]:
        """Images that are treated together."""
        n_bytes = math.prod(self.grid_shape) * vectors.element_size()
        step = max(1, min(_MAX_IMAGES, _MAX_GRID_BYTES // n_bytes))
        return [slice(start, start + step) for start in range(0, len(vectors), step)]


class ToeplitzGram(LinearOperator):
    """The gram AᴴWA of a non-uniform Fourier transform A with weights W on its samples, as a convolution.

    (G x)_n = Σ_m p(n − m) x_m with the point spread p(n) = N^(−1) Σ_s w_s exp(i ω_s · n), applied by an FFT padded to
    twice the size. p is computed once, by the adjoint of a `NonUniformFourier` to the given accuracy; G itself is
    exactly self-adjoint, whatever that accuracy.

    Parameters
    ----------
    trajectory
        k-space positions, real ``(sample, dim)``, radians per pixel in [−π, π), in the order ``([kz,] ky, kx)``.
    image_shape
        ``(y, x)`` or ``(z, y, x)``.
    weights
        The diagonal of W, such as the density compensation: real ``(sample,)``; ``None`` for ones.
    n_coils
        Number of coils, or any leading shape; ``None`` for a single image without a coil axis.
    accuracy
        Relative error that is asked of the transform behind p, from 1e-12 to 1e-1.
    precision
        In which the transform of p is stored, ``torch.float32`` or ``torch.float64``.

    Attributes
    ----------
    trajectory, weights
        As given, float64, on the CPU; ones where no weights were given.

    Raises
    ------
    TypeError
        If trajectory or weights are no real tensors or ask for a gradient.
    ValueError
        If the weights are not finite or not one per sample; for the rest as `NonUniformFourier`.

    Examples
    --------
    >>> G = ToeplitzGram(torch.zeros(4, 2), (2, 2))
    >>> G(torch.ones(2, 2, dtype=torch.complex64)).real.round(decimals=3)
    tensor([[4., 4.],
            [4., 4.]])
    """

    gradient = "adjoint"
    _kernel: torch.Tensor

    def __init__(
        self,
        trajectory: torch.Tensor,
        image_shape: Sequence[int],
        weights: torch.Tensor | None = None,
        *,
        n_coils: int | Sequence[int] | None = None,
        accuracy: float = 1e-5,
        precision: torch.dtype = torch.float32,
    ) -> None:
        image_shape = tuple(image_shape)
        _check_trajectory(trajectory, image_shape)
        _width(accuracy, len(image_shape), precision)
        super().__init__(*_spaces(image_shape, n_coils, None))
        if weights is None:
            weights = torch.ones(len(trajectory), dtype=torch.float64)
        _check_weights(weights, len(trajectory))
        self.trajectory = trajectory.detach().to("cpu", torch.float64).clone()
        self.weights = weights.detach().to("cpu", torch.float64).clone()
        self.padded_shape = tuple(_fast_size(2 * n) for n in image_shape)
        kernel = _toeplitz_kernel(self.trajectory, self.weights, image_shape, self.padded_shape, accuracy)
        self.register_buffer("_kernel", kernel.to(trajectory.device, precision), persistent=False)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        n_dims = len(self.padded_shape)
        dims, image_shape = tuple(range(-n_dims, 0)), self.domain.shape[-n_dims:]
        inside = tuple(slice(0, n) for n in image_shape)
        kernel = in_precision_of(self._kernel, x)
        images = _listed(x, image_shape)
        result = images.new_empty(images.shape)
        for index, one in enumerate(images):  # one at a time: it stays in the cache
            transformed = torch.fft.fftn(one, s=self.padded_shape, dim=dims).mul_(kernel)
            result[index] = torch.fft.ifftn(transformed, dim=dims)[inside]
        return result.view(x.shape)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._forward(y)


@dataclass(frozen=True, slots=True)
class _KaiserBessel:
    """The kernel I₀(β √(1 − (2u/W)²)) / I₀(β) along one dimension of ``size`` pixels, u in points of the fine grid."""

    width: int
    beta: float
    size: int
    grid_size: int

    @classmethod
    def of(cls, width: int, size: int, grid_size: int) -> "_KaiserBessel":
        factor = grid_size / size
        beta = math.pi * math.sqrt((width / factor * (factor - 0.5)) ** 2 - 0.8)  # Beatty's equation (5)
        return cls(width, beta, size, grid_size)

    def __call__(self, distance: torch.Tensor) -> torch.Tensor:
        """The kernel at these distances, within half its width."""
        argument = self.beta * (1 - (2 * distance / self.width).square()).clamp_min(0).sqrt()
        # i0e(z) = exp(−z) I₀(z) keeps the quotient from overflowing.
        scale = torch.special.i0e(torch.tensor(self.beta, dtype=torch.float64))
        return torch.special.i0e(argument) * torch.exp(argument - self.beta) / scale

    def transform(self) -> torch.Tensor:
        """Its Fourier transform, W sinh(z)/z / I₀(β) with z² = β² − (πWm/K)², at the pixels m = n − c."""
        pixels = torch.arange(self.size, dtype=torch.float64) - self.size // 2
        z = (self.beta**2 - (math.pi * self.width * pixels / self.grid_size).square()).sqrt()
        return self.width * torch.sinh(z) / z / torch.special.i0(torch.tensor(self.beta, dtype=torch.float64))


def _interpolation(trajectory: torch.Tensor, kernels: Sequence[_KaiserBessel]) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat grid points, int32, and weights of every sample, ``(sample, width**dim)``."""
    n_samples = len(trajectory)
    points = torch.zeros(n_samples, 1, dtype=torch.int32)
    weights = torch.ones(n_samples, 1, dtype=torch.float64)
    for position_rad, kernel in zip(trajectory.unbind(dim=1), kernels, strict=True):
        position = position_rad * (kernel.grid_size / (2 * math.pi))
        along = torch.ceil(position - kernel.width / 2)[:, None] + torch.arange(kernel.width, dtype=torch.float64)
        weights_along = kernel(position[:, None] - along)
        points_along = along.remainder(kernel.grid_size).to(torch.int32)
        points = (points[:, :, None] * kernel.grid_size + points_along[:, None, :]).view(n_samples, -1)
        weights = (weights[:, :, None] * weights_along[:, None, :]).view(n_samples, -1)
    return points, weights


def _transposed(
    points: torch.Tensor, weights: torch.Tensor, n_points: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same table by grid points: where each point's entries start, their samples and their weights."""
    from scipy.sparse import csr_array  # here, because it takes longer to import than everything else

    starts = torch.arange(0, points.numel() + 1, points.shape[1], dtype=torch.int32)
    by_samples = csr_array(
        (weights.view(-1).numpy(), points.view(-1).numpy(), starts.numpy()), shape=(len(points), n_points)
    )
    by_points = by_samples.tocsc()
    return (
        torch.from_numpy(by_points.indptr).to(torch.int32),
        torch.from_numpy(by_points.indices).to(torch.int32),
        torch.from_numpy(by_points.data),
    )


def _apodisation(kernels: Sequence[_KaiserBessel]) -> torch.Tensor:
    """One over the kernel's transform and the square root of the number of pixels, shaped like the image."""
    result = torch.ones((), dtype=torch.float64)
    for kernel in kernels:
        result = result[..., None] / (kernel.transform() * math.sqrt(kernel.size))
    return result


def _toeplitz_kernel(
    trajectory: torch.Tensor,
    weights: torch.Tensor,
    image_shape: tuple[int, ...],
    padded_shape: tuple[int, ...],
    accuracy: float,
) -> torch.Tensor:
    """Transform of the point spread, real ``padded_shape``."""
    doubled = tuple(2 * n for n in image_shape)
    n_at_once = max(1, _ENTRIES_AT_ONCE // _width(accuracy, len(image_shape), torch.float64) ** len(image_shape))
    spread = torch.zeros(doubled, dtype=torch.complex128)
    for some, weights_of_some in zip(trajectory.split(n_at_once), weights.split(n_at_once), strict=True):
        transform = NonUniformFourier(some, doubled, accuracy=accuracy, precision=torch.float64)
        spread += transform.adjoint(weights_of_some.to(torch.complex128))
    spread *= math.sqrt(math.prod(doubled)) / math.prod(image_shape)
    padded = torch.zeros(padded_shape, dtype=torch.complex128)
    for on_grid, in_image in _corners(doubled, padded_shape):
        padded[on_grid] = spread[in_image]
    return torch.fft.fftn(padded).real  # of the Hermitian part; p(−N) has no partner, but no two pixels are N apart


def _corners(image_shape: Sequence[int], grid_shape: Sequence[int]) -> Iterator[tuple[_Part, _Part]]:
    """Pairs of slices of grid and image that put the pixel n to the grid point (n − N//2) mod K."""
    along = [
        ((slice(0, n - n // 2), slice(n // 2, n)), (slice(size - n // 2, size), slice(0, n // 2)))
        for n, size in zip(image_shape, grid_shape, strict=True)
    ]
    for choice in itertools.product(*along):
        yield (..., *(on_grid for on_grid, _ in choice)), (..., *(in_image for _, in_image in choice))


def _listed(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """All leading dimensions as one, which may be empty: ``(vector, *shape)``."""
    return x.reshape(x.numel() // math.prod(shape), *shape)


def _columns(vectors: torch.Tensor) -> torch.Tensor:
    """Complex ``(vector, *shape)`` as real ``(entry, 2 · vector)``."""
    entries = vectors.flatten(1).T.contiguous().resolve_conj()
    return torch.view_as_real(entries).view(len(entries), -1)


def _spaces(
    image_shape: tuple[int, ...], n_coils: int | Sequence[int] | None, n_samples: int | None
) -> tuple[Space, Space]:
    """Of images and of samples; of images twice where there are no samples."""
    leading = () if n_coils is None else (n_coils,) if isinstance(n_coils, int) else tuple(n_coils)
    names = ("coil",) if len(leading) == 1 else tuple(f"axis{i}" for i in range(len(leading)))
    domain = Space((*leading, *image_shape), "complex", (*names, *("z", "y", "x")[-len(image_shape) :]))
    if n_samples is None:
        return domain, domain
    return domain, Space((*leading, n_samples), "complex", (*names, "sample"))


def _width(accuracy: float, n_dims: int, precision: torch.dtype) -> int:
    """The smallest width that reaches the accuracy; the errors of the dimensions add up as squares."""
    if precision not in (torch.float32, torch.float64):
        raise TypeError(f"precision is {precision}; expected torch.float32 or torch.float64.")
    if not 1e-12 <= accuracy <= 1e-1:
        raise ValueError(f"accuracy is {accuracy:g}; expected a relative error from 1e-12 to 1e-1.")
    if precision == torch.float32 and accuracy < _SINGLE_PRECISION:
        raise ValueError(
            f"accuracy is {accuracy:g}, but single precision reaches {_SINGLE_PRECISION:g} at best; pass "
            "precision=torch.float64 and double-precision images."
        )
    return min(width for width, error in _ERROR_OF_WIDTH.items() if math.sqrt(n_dims) * error <= accuracy)


def _fast_size(at_least: int) -> int:
    """The smallest even size from here on whose only prime factors are 2, 3, 5 and 7."""
    size = at_least + at_least % 2
    while _without_small_factors(size) > 1:
        size += 2
    return size


def _without_small_factors(size: int) -> int:
    for factor in (2, 3, 5, 7):
        while size % factor == 0:
            size //= factor
    return size


def _check_memory(
    n_samples: int, width: int, grid_shape: tuple[int, ...], limit_bytes: int, precision: torch.dtype
) -> None:
    n_entries = n_samples * width ** len(grid_shape)
    n_points = math.prod(grid_shape)
    n_bytes = 2 * n_entries * (4 + precision.itemsize) + 4 * n_points
    if n_bytes > limit_bytes or max(n_entries, n_points) > _MAX_ENTRIES:
        raise ValueError(
            f"The interpolation weights need about {n_bytes / 2**20:.0f} MiB for {n_entries:.3g} entries, but "
            f"memory_limit_bytes allows {limit_bytes / 2**20:.0f} MiB (and an index 2**31 entries); raise the limit, "
            "ask for less accuracy, or split the samples."
        )


def _check_trajectory(trajectory: torch.Tensor, image_shape: tuple[int, ...]) -> None:
    _check_constant(trajectory, "trajectory")
    if len(image_shape) not in (2, 3):
        raise ValueError(f"image_shape is {image_shape}; expected (y, x) or (z, y, x).")
    if trajectory.ndim != 2 or trajectory.shape[1] != len(image_shape) or not len(trajectory):
        raise ValueError(
            f"trajectory has shape {tuple(trajectory.shape)}; expected (sample, {len(image_shape)}) with at least one "
            f"sample for an image of shape {image_shape}."
        )
    if not bool(trajectory.isfinite().all()):
        raise ValueError("trajectory has entries that are not finite; remove these samples.")
    largest = float(trajectory.abs().max())
    if largest > math.pi + _ROUNDING_RAD:
        if largest <= max(image_shape) / 2 + _ROUNDING_RAD:
            advice = "it looks like grid indices: multiply dimension d by 2π/N_d"
        else:
            advice = "if it is in cycles per metre, multiply it by 2π times the pixel size in metres"
        raise ValueError(f"trajectory reaches {largest:.4g}; expected radians per pixel in [−π, π), {advice}.")


def _check_weights(weights: torch.Tensor, n_samples: int) -> None:
    _check_constant(weights, "weights")
    if weights.shape != (n_samples,):
        raise ValueError(f"weights have shape {tuple(weights.shape)}; expected one per sample, ({n_samples},).")
    if not bool(weights.isfinite().all()):
        raise ValueError("weights have entries that are not finite; set them to zero to leave these samples out.")


def _check_constant(tensor: torch.Tensor, name: str) -> None:
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise TypeError(f"{name} is {kind}; expected a real floating-point torch.Tensor.")
    if tensor.requires_grad:
        raise TypeError(f"{name} asks for a gradient, but none flows to it; pass {name}.detach().")
