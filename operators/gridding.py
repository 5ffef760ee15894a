"""Kaiser–Bessel gridding: the non-uniform Fourier transform of images at fixed positions, by stored weights."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import nn

from operators.fourier import in_precision_of

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

_ROUNDING_RAD = 1e-6  # by which π in single precision exceeds π, and more

_Part = tuple[EllipsisType | slice, ...]


class GriddingTransform(nn.Module):
    """The transform of `operators.nufft.NonUniformFourier` at fixed positions, by gridding.

    An image is divided by the Fourier transform of a Kaiser–Bessel kernel and transformed onto a grid twice as fine,
    from which each sample is interpolated with that kernel. The interpolation weights are real and stored, by samples
    and by grid points.

    Parameters
    ----------
    trajectory
        k-space positions, float64 ``(sample, dim)`` on the CPU, radians per pixel; whole turns make no difference.
    image_shape
        ``(y, x)`` or ``(z, y, x)``.
    accuracy
        Relative error that is asked for, from 1e-12 to 1e-1.
    precision
        In which the weights are stored, ``torch.float32`` or ``torch.float64``.

    References
    ----------
    P. J. Beatty, D. G. Nishimura, J. M. Pauly, "Rapid gridding reconstruction with a minimal oversampling ratio",
    IEEE Transactions on Medical Imaging 24(6), 2005: equation (5) for the kernel's shape, and (4) for its transform.
    """

    _apodisation: torch.Tensor
    _points: torch.Tensor
    _weights: torch.Tensor
    _starts: torch.Tensor
    _samples: torch.Tensor
    _transposed_weights: torch.Tensor

    def __init__(
        self, trajectory: torch.Tensor, image_shape: tuple[int, ...], accuracy: float, precision: torch.dtype
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.grid_shape = fine_grid_shape(image_shape)
        width = kernel_width(accuracy, len(image_shape), precision)
        kernels = [_KaiserBessel.of(width, n, size) for n, size in zip(image_shape, self.grid_shape, strict=True)]
        points, weights = _interpolation(trajectory, kernels)
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
            self.register_buffer(name, table, persistent=False)

    @property
    def precision(self) -> torch.dtype:
        """In which the weights are stored."""
        return self._weights.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._weights.device

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Transform complex ``(vector, *image_shape)`` to ``(vector, sample)``."""
        samples = images.new_empty(len(images), len(self._points))
        for some in self._parts(images):
            samples[some] = self._interpolated(self._on_grid(images[some]))
        return samples

    def adjoint(self, samples: torch.Tensor) -> torch.Tensor:
        """Transform complex ``(vector, sample)`` to ``(vector, *image_shape)``, by the exact adjoint of `forward`."""
        images = samples.new_empty(len(samples), *self.image_shape)
        for some in self._parts(samples):
            images[some] = self._from_grid(self._spread(samples[some]))
        return images

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


def _corners(image_shape: Sequence[int], grid_shape: Sequence[int]) -> Iterator[tuple[_Part, _Part]]:
    """Pairs of slices of grid and image that put the pixel n to the grid point (n − N//2) mod K."""
    along = [
        ((slice(0, n - n // 2), slice(n // 2, n)), (slice(size - n // 2, size), slice(0, n // 2)))
        for n, size in zip(image_shape, grid_shape, strict=True)
    ]
    for choice in itertools.product(*along):
        yield (..., *(on_grid for on_grid, _ in choice)), (..., *(in_image for _, in_image in choice))


def _columns(vectors: torch.Tensor) -> torch.Tensor:
    """Complex ``(vector, *shape)`` as real ``(entry, 2 · vector)``."""
    entries = vectors.flatten(1).T.contiguous().resolve_conj()
    return torch.view_as_real(entries).view(len(entries), -1)


def kernel_width(accuracy: float, n_dims: int, precision: torch.dtype) -> int:
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


def fast_size(at_least: int) -> int:
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


def fine_grid_shape(image_shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of the fine grid."""
    return tuple(fast_size(_GRID_FACTOR * n) for n in image_shape)


def check_table_memory(
    trajectory_shape: Sequence[int],
    image_shape: Sequence[int],
    accuracy: float,
    precision: torch.dtype,
    limit_bytes: int,
) -> None:
    """Raise ValueError where the weights for a trajectory ``(*batch, sample, dim)`` would exceed the limit."""
    *batch, n_samples, n_dims = trajectory_shape
    n_entries = n_samples * kernel_width(accuracy, n_dims, precision) ** n_dims
    n_points = math.prod(fine_grid_shape(image_shape))
    n_bytes = math.prod(batch) * (2 * n_entries * (4 + precision.itemsize) + 4 * n_points)
    if n_bytes > limit_bytes or max(n_entries, n_points) > _MAX_ENTRIES:
        raise ValueError(
            f"The interpolation weights need about {n_bytes / 2**20:.0f} MiB for {math.prod(batch) * n_entries:.3g} "
            f"entries, but memory_limit_bytes allows {limit_bytes / 2**20:.0f} MiB (and an index 2**31 entries); raise "
            "the limit, ask for less accuracy, or split the samples."
        )


def check_trajectory(trajectory: torch.Tensor, image_shape: tuple[int, ...]) -> None:
    """Raise unless the positions are real, finite, in [−π, π] and as many-dimensional as the image."""
    check_real(trajectory, "trajectory")
    n_dims = len(image_shape)
    if n_dims not in (2, 3):
        raise ValueError(f"image_shape is {image_shape}; expected (y, x) or (z, y, x).")
    if trajectory.ndim < 2 or trajectory.shape[-1] != n_dims or not trajectory.numel():
        raise ValueError(
            f"trajectory has shape {tuple(trajectory.shape)}; expected (sample, {n_dims}) or (*batch, sample, "
            f"{n_dims}) with at least one sample for an image of shape {image_shape}."
        )
    if not bool(trajectory.isfinite().all()):
        raise ValueError("trajectory has entries that are not finite; remove these samples.")
    largest = float(trajectory.detach().abs().max())
    if largest > math.pi + _ROUNDING_RAD:
        if largest <= max(image_shape) / 2 + _ROUNDING_RAD:
            advice = "it looks like grid indices: multiply dimension d by 2π/N_d"
        else:
            advice = "if it is in cycles per metre, multiply it by 2π times the pixel size in metres"
        raise ValueError(f"trajectory reaches {largest:.4g}; expected radians per pixel in [−π, π), {advice}.")


def check_constant(tensor: torch.Tensor, name: str) -> None:
    """Raise TypeError unless the tensor is real and asks for no gradient."""
    check_real(tensor, name)
    if tensor.requires_grad:
        raise TypeError(f"{name} asks for a gradient, but none flows to it; pass {name}.detach().")


def check_real(tensor: torch.Tensor, name: str) -> None:
    """Raise TypeError unless the tensor is real."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise TypeError(f"{name} is {kind}; expected a real floating-point torch.Tensor.")
