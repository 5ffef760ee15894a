"""How much of k-space each sample of a non-Cartesian scan stands for: density compensation.

All weights are areas (volumes in 3-D) in units of one cell of the Cartesian grid, so that the samples of a complete
Cartesian scan have the weight 1, and the density-weighted adjoint of the orthonormal transform returns the image in its
own units, as far as k-space was covered.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from mrirecon.kspace import KSpace
from operators.fourier import Fourier
from operators.nufft import NonUniformFourier

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_KERNEL_POINTS = 4  # on a grid of twice the density: the kernel spans two cells of the Cartesian grid
_OVERSAMPLING = 2
_KERNEL_SHAPE = math.pi * math.sqrt((_KERNEL_POINTS / _OVERSAMPLING) ** 2 - 1)
_RANGE = math.pi * (1 + 1e-6)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Images of a scan that were sampled at the same positions.

    Parameters
    ----------
    trajectory
        Real ``(sample, dim)``, radians per pixel, with the samples that were not measured.
    measured
        Bool ``(sample,)``.
    images
        Numbers of the images, int64 ``(image,)``, counted over the flattened batch axes.
    """

    trajectory: torch.Tensor
    measured: torch.Tensor
    images: torch.Tensor


def samplings(kspace: KSpace) -> list[Sampling]:
    """Group the images of a scan by the positions at which they were measured.

    Parameters
    ----------
    kspace
        A scan with a trajectory.

    Returns
    -------
    list of Sampling
        Every image is in exactly one of them; a single entry where all images share their positions.

    Raises
    ------
    ValueError
        If the scan has no trajectory.

    Examples
    --------
    >>> from mrirecon.acquisition import Acquisition
    >>> from mrirecon.trajectory import radial
    >>> header = Acquisition((1, 8, 8), (5.0, 80.0, 80.0), (5.0, 80.0, 80.0))
    >>> y = torch.zeros(3, 2, 40, dtype=torch.complex64)
    >>> [sampling.images.tolist() for sampling in samplings(KSpace(y, torch.ones(40), header, trajectory=radial(5, 8)))]
    [[0, 1, 2]]
    """
    trajectory, measured = _positions_and_measured(kspace)
    n_images = measured.shape[:-1].numel()
    trajectory, measured = trajectory.reshape(n_images, *trajectory.shape[-2:]), measured.reshape(n_images, -1)
    if _n_images(kspace.trajectory, 2) == _n_images(kspace.mask, 2) == 1:
        return [Sampling(trajectory[0], measured[0], torch.arange(n_images))]
    groups: dict[tuple[bytes, bytes], list[int]] = {}
    for image in range(n_images):
        key = trajectory[image].detach().cpu().numpy().tobytes(), measured[image].cpu().numpy().tobytes()
        groups.setdefault(key, []).append(image)
    return [Sampling(trajectory[group[0]], measured[group[0]], torch.tensor(group)) for group in groups.values()]


def density(kspace: KSpace) -> torch.Tensor:
    """Density compensation of a scan: the file's where it has one, otherwise by `pipe_density`.

    It is computed once for each set of positions that images share. Samples that were not measured get 0, and those
    around them count for more.

    Parameters
    ----------
    kspace
        A scan with a trajectory.

    Returns
    -------
    torch.Tensor
        Real, of the precision of the data, in cells of the Cartesian grid: ``(sample,)`` where all images share their
        positions, otherwise ``(*batch, sample)``.

    Raises
    ------
    ValueError
        If the scan has no trajectory.

    Examples
    --------
    >>> from mrirecon.acquisition import Acquisition
    >>> from mrirecon.trajectory import epi
    >>> header = Acquisition((1, 6, 8), (5.0, 60.0, 80.0), (5.0, 60.0, 80.0))
    >>> y = torch.zeros(3, 2, 48, dtype=torch.complex64)
    >>> density(KSpace(y, torch.ones(48), header, trajectory=epi(6, 8))).round(decimals=2).unique()
    tensor([1.])
    """
    if kspace.dcf is None:
        found = _computed_density(kspace)
    else:
        _, measured = _positions_and_measured(kspace)
        found = kspace.dcf.to(kspace.data.real) * measured
    shared = not any(_n_images(t, axes) > 1 for t, axes in ((kspace.trajectory, 2), (kspace.mask, 2), (kspace.dcf, 1)))
    return found.flatten(end_dim=-2)[0] if shared and found.ndim > 1 else found


def coil_images(kspace: KSpace) -> torch.Tensor:
    """Image of every coil, straight from what was measured: the zero-filled inverse transform, or gridding.

    Parameters
    ----------
    kspace
        The scan; along a trajectory its samples are weighted by `density`.

    Returns
    -------
    torch.Tensor
        Complex ``(*batch, coil, [z,] y, x)``, in the units of the data.
    """
    if kspace.is_cartesian:
        return Fourier(kspace.image_shape, kspace.n_dims).to(kspace.data.device).adjoint(kspace.data)
    weighted = (kspace.data * density(kspace).unsqueeze(-2)).reshape(-1, kspace.n_coils, kspace.n_samples)
    images = weighted.new_zeros(*weighted.shape[:2], *kspace.image_shape)
    for group in samplings(kspace):
        A = NonUniformFourier(group.trajectory, kspace.image_shape, n_coils=kspace.n_coils)
        images[group.images] = A.to(weighted.device).adjoint(weighted[group.images])
    return images.reshape(*kspace.data.shape[:-1], *kspace.image_shape)


def radial_density(trajectory: torch.Tensor, image_shape: Sequence[int], n_samples: int) -> torch.Tensor:
    """Areas of the samples of a radial scan, from its geometry alone.

    A sample stands for the part of its spoke from half-way to the previous to half-way to the next one, [a, b] in
    signed radius, and for the angle Ω between the neighbouring spokes: ∫ₐᵇ |r|^(d − 1) dr · Ω · Π n/(2π)^d. Away from
    the centre that is |k|^(d − 1) Δk Ω, the usual ramp; at the centre it is the spoke's share of the central disc or
    ball, and not zero. In 2-D, Ω reaches half-way to the next angle on either side, whatever the order; in 3-D the
    spokes are taken to be evenly spread, so that each has the same solid angle. Spokes that start at the centre, and
    those that pass through it, are told apart.

    Parameters
    ----------
    trajectory
        Real, ``(spoke * n_samples, dim)``, radians per pixel, spoke after spoke; every spoke is straight and points at
        the centre, to within half a cell.
    image_shape
        Pixels of the image, ``([z,] y, x)``.
    n_samples
        Samples of each spoke, at least 2.

    Returns
    -------
    torch.Tensor
        ``(sample,)`` in the trajectory's dtype, in cells of the Cartesian grid.

    Raises
    ------
    TypeError
        If the trajectory is not of floating-point numbers.
    ValueError
        If a shape does not match, a coordinate lies outside [−π, π], or the spokes are not straight lines that point at
        the centre and move steadily.

    Examples
    --------
    >>> from mrirecon.trajectory import radial
    >>> radial_density(radial(50, 32), (32, 32), 32).reshape(50, 32)[0, 15:18]
    tensor([0.0628, 0.0157, 0.0628])
    """
    _check(trajectory, image_shape)
    n_dims = len(image_shape)
    if not isinstance(n_samples, int) or n_samples < 2 or len(trajectory) % n_samples:
        raise ValueError(
            f"{len(trajectory)} samples cannot be spokes of n_samples = {n_samples}; give the length of one readout."
        )
    spokes = trajectory.detach().double().reshape(-1, n_samples, n_dims)
    radius, direction = _signed_radius(spokes, image_shape)
    edges = _interval_edges(radius)
    one_sided = bool((radius >= -(edges[:, 1:] - edges[:, :-1]).abs() / 2 - 1e-6).all())
    if one_sided:
        edges = edges.clamp(min=0)
    primitive = edges.sign() * edges.abs() ** n_dims / n_dims
    shell = (primitive[:, 1:] - primitive[:, :-1]).abs()
    angle = _angular_shares(direction, one_sided)
    return (shell * angle[:, None] * _cells_per_unit(image_shape)).flatten().to(trajectory.dtype)


def pipe_density(trajectory: torch.Tensor, image_shape: Sequence[int], n_iterations: int = 30) -> torch.Tensor:
    """Weights that make the convolved sampling density one at every sample, for any trajectory.

    w ← w / (ψ ∗ w), with ψ ∗ w evaluated at the samples. ψ is the correlation of a Kaiser–Bessel kernel with itself,
    of unit area, computed through a periodic grid of twice the Cartesian density. The kernel spans two Cartesian cells,
    and the first zero of its transform lies one field of view from the centre, so that aliases are suppressed there and
    the weights of a complete Cartesian scan are 1. At the outer edge of the covered region, beyond which nothing
    pulls the density up, the weights exceed the areas; isolated samples get at most what the kernel covers.

    The interpolation matrix and its transpose are held in memory, in single precision: 16 bytes × 4^d per sample.

    Parameters
    ----------
    trajectory
        Real, ``(sample, dim)``, radians per pixel in [−π, π), dim 2 or 3.
    image_shape
        Pixels of the image, ``([z,] y, x)``, at least 2 each.
    n_iterations
        Number of iterations, at least 1. Ten come near the areas; thirty halve the error of a smooth image again.

    Returns
    -------
    torch.Tensor
        ``(sample,)`` in the trajectory's dtype, positive, in cells of the Cartesian grid.

    Raises
    ------
    TypeError
        If the trajectory is not of floating-point numbers.
    ValueError
        If a shape does not match, a coordinate lies outside [−π, π], or ``n_iterations`` is below 1.

    References
    ----------
    "Sampling density compensation in MRI: rationale and an iterative numerical solution", 1999 (the iteration; the
    kernel differs).

    Examples
    --------
    >>> from mrirecon.trajectory import epi
    >>> pipe_density(epi(6, 8), (6, 8), 3).round(decimals=3).unique()
    tensor([1.])
    """
    _check(trajectory, image_shape)
    if not isinstance(n_iterations, int) or n_iterations < 1:
        raise ValueError(f"n_iterations is {n_iterations}; expected an integer of at least 1.")
    if min(image_shape) < 2:
        raise ValueError(f"image_shape is {tuple(image_shape)}; expected at least 2 pixels along each axis.")
    matrix = _interpolation_matrix(trajectory.detach().double().cpu().numpy(), image_shape)
    transposed = matrix.T.tocsr()
    n_per_cell = _OVERSAMPLING ** len(image_shape)
    weights = np.ones(len(trajectory), dtype=np.float32)
    for _ in range(n_iterations):
        weights /= n_per_cell * (matrix @ (transposed @ weights))
    return torch.from_numpy(weights).to(trajectory)


def _positions_and_measured(kspace: KSpace) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions ``(*batch, sample, dim)`` and which of them were measured, bool ``(*batch, sample)``, as views."""
    if kspace.trajectory is None:
        raise ValueError("kspace lies on the Cartesian grid; expected a scan with a trajectory.")
    batch = tuple(kspace.data.shape[: len(kspace.batch_axes)])
    mask = kspace.mask.broadcast_to(*batch, 1, kspace.n_samples)[..., 0, :]
    return kspace.trajectory.broadcast_to(*batch, kspace.n_samples, kspace.n_dims), mask > 0


def _n_images(tensor: torch.Tensor | None, n_trailing: int) -> int:
    """Number of different images that the batch axes of a tensor tell apart, at most."""
    return 1 if tensor is None else tensor.shape[:-n_trailing].numel()


def _computed_density(kspace: KSpace) -> torch.Tensor:
    """`pipe_density` of the measured samples of every image, ``(*batch, sample)``."""
    batch = tuple(kspace.data.shape[: len(kspace.batch_axes)])
    found = kspace.data.real.new_zeros(math.prod(batch), kspace.n_samples)
    for group in samplings(kspace):
        weights = found.new_zeros(kspace.n_samples)
        if bool(group.measured.any()):
            weights[group.measured] = pipe_density(group.trajectory[group.measured], kspace.image_shape).to(found)
        found[group.images] = weights
    return found.reshape(*batch, -1)


def _check(trajectory: torch.Tensor, image_shape: Sequence[int]) -> None:
    if not trajectory.is_floating_point():
        raise TypeError(f"The trajectory has dtype {trajectory.dtype}; expected real floating-point numbers.")
    n_dims = len(image_shape)
    if n_dims not in (2, 3) or min(image_shape) < 1:
        raise ValueError(f"image_shape is {tuple(image_shape)}; expected two or three positive sizes.")
    if trajectory.ndim != 2 or trajectory.shape[1] != n_dims or not len(trajectory):
        raise ValueError(f"The trajectory has shape {tuple(trajectory.shape)}; expected (sample, {n_dims}).")
    largest = float(trajectory.detach().abs().max())
    if not largest <= _RANGE:
        raise ValueError(f"The trajectory reaches {largest:.4g}; expected radians per pixel in [−π, π).")


def _cells_per_unit(image_shape: Sequence[int]) -> float:
    """Cells of the Cartesian grid per unit of area or volume, (radians per pixel)^d."""
    return math.prod(n / (2 * math.pi) for n in image_shape)


def _signed_radius(spokes: torch.Tensor, image_shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions along the spokes ``(spoke, sample)`` and their directions ``(spoke, dim)``, towards the farther end."""
    first, last = spokes[:, 0], spokes[:, -1]
    outwards = torch.where(last.norm(dim=-1) >= first.norm(dim=-1), 1.0, -1.0).to(spokes)
    chord = (last - first) * outwards[:, None]
    direction = chord / chord.norm(dim=-1, keepdim=True)
    radius = (spokes * direction[:, None, :]).sum(-1)
    steps = radius.diff(dim=-1) * outwards[:, None]
    distance = (spokes - radius[..., None] * direction[:, None, :]).norm(dim=-1)
    # Written so that the NaN of a spoke whose ends coincide is refused, too.
    if not bool((distance <= math.pi / max(image_shape)).all()) or not bool((steps > 0).all()):
        raise ValueError(
            "The readouts are not straight lines that point at the centre of k-space and move steadily; "
            "check n_samples, or use pipe_density."
        )
    return radius, direction


def _interval_edges(radius: torch.Tensor) -> torch.Tensor:
    """Half-way points between the samples, and as far beyond the outer ones, ``(spoke, sample + 1)``."""
    middle = (radius[:, 1:] + radius[:, :-1]) / 2
    return torch.cat((2 * radius[:, :1] - middle[:, :1], middle, 2 * radius[:, -1:] - middle[:, -1:]), -1)


def _angular_shares(direction: torch.Tensor, one_sided: bool) -> torch.Tensor:
    """Angle or solid angle of each spoke (of either half of it), float64 ``(spoke,)``."""
    n_spokes, n_dims = direction.shape
    if n_dims == 3:
        return direction.new_full((n_spokes,), (4 if one_sided else 2) * math.pi / n_spokes)
    period = 2 * math.pi if one_sided else math.pi
    angle = torch.atan2(direction[:, 0], direction[:, 1]) % period
    # Repeated spokes share their angle; rounding may not make two of them, nor part 0 from the period.
    angle = torch.where(period - angle < 1e-5, 0, angle)
    order = angle.argsort()
    is_new = torch.cat((angle.new_zeros(1), (angle[order].diff() > 1e-5).to(angle)))
    group = torch.empty_like(order)
    group[order] = is_new.cumsum(0).long()
    counts = torch.bincount(group)
    distinct = torch.zeros_like(counts, dtype=angle.dtype).index_add_(0, group, angle) / counts
    gaps = torch.cat((distinct, distinct[:1] + period)).diff()
    return ((gaps + gaps.roll(1)) / 2 / counts)[group]


def _interpolation_matrix(trajectory: np.ndarray, image_shape: Sequence[int]) -> "csr_array":
    """Kaiser–Bessel weights of every sample on the finer grid, rows of sum 1, scipy CSR ``(sample, grid point)``."""
    from scipy.sparse import csr_array

    n_samples = len(trajectory)
    n_grid = math.prod(_OVERSAMPLING * n for n in image_shape)
    n_entries = n_samples * _KERNEL_POINTS ** len(image_shape)
    integer = np.int32 if max(n_grid, n_entries) < 2**31 else np.int64
    index = np.zeros((n_samples, 1), dtype=integer)
    weight = np.ones((n_samples, 1), dtype=np.float32)
    for axis, n in enumerate(image_shape):
        size = _OVERSAMPLING * n
        points, values = _kernel_row(trajectory[:, axis] * size / (2 * math.pi))
        points, values = (points % size).astype(integer), values.astype(np.float32)
        index = (index[:, :, None] * integer(size) + points[:, None, :]).reshape(n_samples, -1)
        weight = (weight[:, :, None] * values[:, None, :]).reshape(n_samples, -1)
    starts = np.arange(0, n_entries + 1, index.shape[1], dtype=integer)
    return csr_array((weight.ravel(), index.ravel(), starts), shape=(n_samples, n_grid))


def _kernel_row(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grid points around each position and their weights, both ``(sample, point)``."""
    from scipy.special import i0

    half = _KERNEL_POINTS / 2
    points = np.ceil(position - half).astype(np.int64)[:, None] + np.arange(_KERNEL_POINTS)
    distance = (points - position[:, None]) / half
    # Less its value at the edge: continuous, so that rounding a position changes nothing. The transform of what is
    # subtracted, a box of two cells, is zero one field of view from the centre, too.
    values = i0(_KERNEL_SHAPE * np.sqrt(np.clip(1 - distance**2, 0, None))) - 1
    return points, values / values.sum(-1, keepdims=True)
