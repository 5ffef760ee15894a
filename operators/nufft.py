"""The Fourier transform at arbitrary k-space positions, its derivative to them, its stacks and its Toeplitz gram."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import nn

from operators.fourier import centring_phases, in_precision_of
from operators.gridding import (
    GriddingTransform,
    check_constant,
    check_table_memory,
    check_trajectory,
    fast_size,
    fine_grid_shape,
    kernel_width,
)
from operators.linear_operator import LinearOperator, asks_for_gradient, broadcast_batch, register_tensor, total
from operators.space import Space

Backend = Literal["gridding", "finufft", "torchkbnufft"]

_ENTRIES_AT_ONCE = 2**24  # of the table that makes a Toeplitz kernel, which is not kept

_TransformDirection = Literal["forward", "adjoint"]


class Transform(Protocol):
    """Both directions at fixed positions: complex ``(vector, *image_shape)`` to ``(vector, sample)`` and back.

    Positions may lie outside [−π, π): whole turns make no difference.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images to samples."""

    def adjoint(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples to images."""


class NonUniformFourier(LinearOperator):
    """The Fourier transform of an image at arbitrary k-space positions, scaled like `operators.fourier.Fourier`.

    (A x)_s = N^(−1/2) Σ_n x_n exp(−i ω_s · (n − c)), with N the number of pixels and c = N_d//2 along dimension d. At
    the Cartesian positions ω = 2π (k − c)/N_d this is the centred orthonormal transform, for even and odd sizes.

    It is approximated by gridding (`operators.gridding.GriddingTransform`), or by another backend. The adjoint is that
    of the approximation, exact to rounding where the backend's is. It carries no density compensation.

    The gram is a Toeplitz convolution (`ToeplitzGram`), whose kernel is made at the first call and kept; it agrees
    with the adjoint after the forward to the accuracy. It *is* the adjoint after the forward where the trajectory asks
    for a gradient, and where making the kernel would exceed the memory limit.

    Parameters
    ----------
    trajectory
        k-space positions, real ``(*batch, sample, dim)``, radians per pixel in [−π, π), in the order
        ``([kz,] ky, kx)``. Leading dimensions are batch and broadcast with that of the images: each entry has its own
        positions. A ``nn.Parameter``, or a tensor that asks for a gradient, is learned; it may leave [−π, π) later,
        since whole turns make no difference. Everything follows its values when they change.
    image_shape
        ``(y, x)`` or ``(z, y, x)``.
    n_coils
        Number of coils, or any leading shape, of image and samples: ``(coil, y, x)`` to ``(coil, sample)``. ``None``
        for a single image without a coil axis.
    accuracy
        Relative error ‖A x − F x‖ / ‖F x‖ against the exact transform F that is asked for, from 1e-12 to 1e-1; it sets
        the width of the kernel. It holds for images that fill their field evenly. The error grows towards the edges,
        where a single pixel has about twice that, and is smaller for objects in the middle; the derivative to the
        trajectory, in which edges count most, is exact to about twice that. In single precision, rounding adds about
        1e-6 to the adjoint where thousands of samples meet, as in the centre of radial spokes.
    memory_limit_bytes
        What the stored weights may take, and apart from them the Toeplitz kernel while it is made; estimated before
        anything is built.
    precision
        In which the weights are stored, ``torch.float32`` or ``torch.float64``. Inputs of the other precision are
        transformed in theirs.
    backend
        What transforms: ``"gridding"`` with stored weights; ``"finufft"`` or ``"torchkbnufft"`` with these packages,
        whose memory is not checked.

    Attributes
    ----------
    trajectory
        The positions ``(*batch, sample, dim)``: those given where they are learned, else float64 on the CPU.
    width
        Of the kernel of gridding, in points of the fine grid.
    grid_shape
        Of that grid.

    Raises
    ------
    TypeError
        If the trajectory is no real tensor, or the precision is neither single nor double.
    ValueError
        If the trajectory is not ``(*batch, sample, dim)`` with the image's number of dimensions, is not finite or
        leaves [−π, π); if the accuracy cannot be reached, the weights would exceed the memory limit, or there is no
        such backend.
    ImportError
        If the backend's package is not installed.

    Notes
    -----
    With p_d = n_d − c_d, the derivative along ω is that of the definition, dy_s = Σ_d dω_{s,d} (A (−i p_d x))_s and
    dx = Σ_d i p_d Aᴴ(dω_d y): further transforms, whose derivatives are of the same form, at every order.

    Examples
    --------
    >>> trajectory = torch.tensor([[0.0, 0.0], [0.5, -1.2]])
    >>> A = NonUniformFourier(trajectory, (8, 8), n_coils=2)
    >>> A(torch.ones(2, 8, 8, dtype=torch.complex64)).shape
    torch.Size([2, 2])
    """

    gradient = "adjoint"
    trajectory: torch.Tensor
    _transforms: Any  # a list of Transform, or a ModuleList where they have tensors of their own
    _prepared: torch.Tensor  # what they were built for
    _followed: tuple[torch.Tensor, int] | None  # the constant that this was read from, and its version
    _toeplitz: "ToeplitzGram | None"

    def __init__(
        self,
        trajectory: torch.Tensor,
        image_shape: Sequence[int],
        *,
        n_coils: int | Sequence[int] | None = None,
        accuracy: float = 1e-5,
        memory_limit_bytes: int = 2 * 2**30,
        precision: torch.dtype = torch.float32,
        backend: Backend = "gridding",
    ) -> None:
        image_shape = tuple(image_shape)
        check_trajectory(trajectory, image_shape)
        width = kernel_width(accuracy, len(image_shape), precision)
        if backend == "gridding":
            check_table_memory(trajectory.shape, image_shape, accuracy, precision, memory_limit_bytes)
        super().__init__(*_spaces(image_shape, n_coils, trajectory.shape[-2]))
        if isinstance(trajectory, nn.Parameter) or trajectory.requires_grad:
            register_tensor(self, "trajectory", trajectory)
        else:
            self.trajectory = _positions(trajectory)
        self.image_shape = image_shape
        self.accuracy = accuracy
        self.memory_limit_bytes = memory_limit_bytes
        self.backend = backend
        self.width = width
        self.grid_shape = fine_grid_shape(image_shape)
        self._precision = precision
        self._prepare(_positions(trajectory), trajectory.device)

    def toeplitz_gram(self, weights: torch.Tensor | None = None) -> "ToeplitzGram":
        """The operator AᴴWA as a convolution, which costs one padded transform and its inverse.

        Parameters
        ----------
        weights
            The diagonal of W, such as the density compensation: real ``(*batch, sample)``; ``None`` for ones.

        Returns
        -------
        ToeplitzGram
            With the same spaces, accuracy and precision. It agrees with AᴴWA to the accuracy only, because both
            approximate the exact product.

        Raises
        ------
        TypeError
            If trajectory or weights ask for a gradient, which would not flow.
        ValueError
            As for `ToeplitzGram`.
        """
        check_constant(self.trajectory, "trajectory")
        self._follow(self.trajectory)
        transform = self._transforms[0]
        device = transform.device if isinstance(transform, GriddingTransform) else self.trajectory.device
        return self._toeplitz_gram(weights, device)

    def _batch_shape(self) -> torch.Size:
        return self.trajectory.shape[:-2]

    def _fuse_under(self, outer: LinearOperator) -> LinearOperator | None:
        from operators.weighted_nufft import fused  # which needs this class

        return fused(outer, self)

    def _learns(self) -> bool:
        return asks_for_gradient(self.trajectory)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._transformed("forward", x)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._transformed("adjoint", y)

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        if self._learns():
            return self._adjoint(self._forward(x))
        self._follow(self.trajectory)
        if self._toeplitz is None:
            if self._kernel_bytes() > self.memory_limit_bytes:
                return self._adjoint(self._forward(x))
            self._toeplitz = self._toeplitz_gram(None, x.device)
        return self._toeplitz._forward(x)

    def _transformed(self, direction: _TransformDirection, x: torch.Tensor) -> torch.Tensor:
        if self._learns():
            return _at_positions(x, self.trajectory, self, direction)
        return self._apply_at(self.trajectory, direction, x)

    def _apply_at(self, trajectory: torch.Tensor, direction: _TransformDirection, x: torch.Tensor) -> torch.Tensor:
        """Apply the transforms of these positions, without a derivative."""
        self._follow(trajectory)
        forward = direction == "forward"
        source, target = (self.domain, self.codomain) if forward else (self.codomain, self.domain)
        vector_shape = self.image_shape if forward else source.shape[-1:]
        own = trajectory.shape[:-2]
        batch = broadcast_batch(own, source.batch_shape(x))
        if len(self._transforms) == 1:
            return _apply(self._transforms[0], direction, x, vector_shape).view(*batch, *target.shape)
        vectors = x.expand(*batch, *source.shape).reshape(batch.numel(), *source.shape)
        result = vectors.new_empty(len(vectors), *target.shape)
        for transform, members in zip(self._transforms, _members(own, batch, x.device), strict=True):
            of_entry = _apply(transform, direction, vectors[members], vector_shape)
            result[members] = of_entry.view(len(members), *target.shape)
        return result.view(*batch, *target.shape)

    def _follow(self, trajectory: torch.Tensor) -> None:
        """Have the transforms of what the trajectory holds now.

        A constant is known by its version, which costs nothing; a learned one by its values, because an optimiser may
        write past the version.
        """
        followed = self._followed
        if followed is not None and followed[0] is trajectory and followed[1] == trajectory._version:
            return
        positions = _positions(trajectory)
        if not torch.equal(positions, self._prepared):
            before = self._transforms[0]
            self._prepare(positions, trajectory.device)
            if isinstance(before, GriddingTransform):
                self._transforms.to(before.device, before.precision)
        learned = "trajectory" in self._parameters or "trajectory" in self._buffers
        self._followed = None if learned else (trajectory, trajectory._version)

    def _prepare(self, positions: torch.Tensor, device: torch.device) -> None:
        """Build one transform for every entry of the batch."""
        if not bool(positions.isfinite().all()):
            raise ValueError("trajectory has entries that are not finite; it must stay finite while it is learned.")
        build = _transform_class(self.backend)
        listed = positions.reshape(-1, *positions.shape[-2:])
        transforms = [build(some, self.image_shape, self.accuracy, self._precision) for some in listed]
        modules = [transform for transform in transforms if isinstance(transform, nn.Module)]
        self._transforms = nn.ModuleList(modules).to(device) if modules else transforms
        self._prepared = positions
        self._followed = None
        self._toeplitz = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._followed = None  # a copy counts its versions anew

    def _toeplitz_gram(self, weights: torch.Tensor | None, device: torch.device) -> "ToeplitzGram":
        positions = _positions(self.trajectory)
        weights = _weights_for(positions, weights)
        padded_shape = tuple(fast_size(2 * n) for n in self.image_shape)
        batch = torch.broadcast_shapes(positions.shape[:-2], weights.shape[:-1])
        index = torch.arange(len(self._transforms)).view(positions.shape[:-2]).expand(batch).flatten().tolist()
        entries = zip(index, *_listed_samples(positions, weights, batch), strict=True)
        kernels = [
            _toeplitz_kernel([(self._transforms[i], *samples)], self.image_shape, padded_shape, device)
            for i, *samples in entries
        ]
        transform = self._transforms[0]
        precision = transform.precision if isinstance(transform, GriddingTransform) else self._precision
        kernel = torch.stack(kernels).view(*batch, *padded_shape).to(precision)
        return ToeplitzGram._of(self.domain, positions, weights, kernel)

    def _kernel_bytes(self) -> int:
        """What the Toeplitz kernels take while the last is made: four complex grids of their size, and all results."""
        n_points = math.prod(fast_size(2 * n) for n in self.image_shape)
        return n_points * (64 + self._precision.itemsize * self.trajectory.shape[:-2].numel())


class StackedNonUniformFourier(LinearOperator):
    """A 3-D `NonUniformFourier` whose trajectory repeats the same plane at Cartesian positions along kz.

    An FFT along z, centred and orthonormal, and a 2-D `NonUniformFourier` of every measured partition. The samples
    are those of ``mrirecon.trajectory.stack_of_stars``, partition after partition, so that it takes the place of the
    3-D operator on the positions kz = 2π (partition − z//2)/z. Its gram is the Toeplitz gram of the plane in every
    measured partition.

    Parameters
    ----------
    plane_trajectory
        Positions in the plane, real ``(*batch, sample, 2)``, radians per pixel in [−π, π), in the order ``(ky, kx)``;
        learned and batched as for `NonUniformFourier`.
    image_shape
        ``(z, y, x)``.
    partitions
        Measured kz indices, an integer tensor ``(partition,)`` from 0 to z − 1, z//2 being the centre, in the order of
        the samples; one that is listed twice was measured twice. ``None`` for all.
    n_coils
        Number of coils, or any leading shape; ``None`` for a single image without a coil axis.
    accuracy, precision, backend
        Of the plane's `NonUniformFourier`.
    memory_limit_bytes
        What the plane's stored weights may take.

    Attributes
    ----------
    plane
        The `NonUniformFourier` of all partitions, ``(*coils, partition, y, x)`` to ``(*coils, partition, sample)``.

    Raises
    ------
    TypeError
        If the partitions are no integer tensor; for the rest as `NonUniformFourier`.
    ValueError
        If the image has no three dimensions, or the partitions are not a list of indices along z; for the rest as
        `NonUniformFourier`.

    Examples
    --------
    >>> A = StackedNonUniformFourier(torch.zeros(5, 2), (6, 8, 8), partitions=torch.tensor([2, 3]), n_coils=4)
    >>> A(torch.ones(4, 6, 8, 8, dtype=torch.complex64)).shape
    torch.Size([4, 10])
    """

    gradient = "adjoint"
    _partitions: torch.Tensor
    _image_phase: torch.Tensor
    _kspace_phase: torch.Tensor

    def __init__(
        self,
        plane_trajectory: torch.Tensor,
        image_shape: Sequence[int],
        *,
        partitions: torch.Tensor | None = None,
        n_coils: int | Sequence[int] | None = None,
        accuracy: float = 1e-5,
        memory_limit_bytes: int = 2 * 2**30,
        precision: torch.dtype = torch.float32,
        backend: Backend = "gridding",
    ) -> None:
        image_shape = tuple(image_shape)
        if len(image_shape) != 3:
            raise ValueError(f"image_shape is {image_shape}; expected (z, y, x).")
        if partitions is None:
            partitions = torch.arange(image_shape[0])
        _check_partitions(partitions, image_shape[0])
        plane = NonUniformFourier(
            plane_trajectory,
            image_shape[1:],
            n_coils=(*_leading(n_coils), len(partitions)),
            accuracy=accuracy,
            memory_limit_bytes=memory_limit_bytes,
            precision=precision,
            backend=backend,
        )
        super().__init__(*_spaces(image_shape, n_coils, len(partitions) * plane.codomain.shape[-1]))
        self.plane = plane
        image_phase, kspace_phase = centring_phases(image_shape[:1])
        device = plane_trajectory.device
        self.register_buffer("_partitions", partitions.detach().clone().to(device, torch.int64), persistent=False)
        self.register_buffer("_image_phase", image_phase[:, None, None].to(device), persistent=False)
        self.register_buffer("_kspace_phase", kspace_phase[:, None, None].to(device), persistent=False)

    @property
    def partitions(self) -> torch.Tensor:
        """Measured kz indices, ``(partition,)``."""
        return self._partitions

    def _batch_shape(self) -> torch.Size:
        return self.plane.batch_shape

    def _fuse_under(self, outer: LinearOperator) -> LinearOperator | None:
        from operators.weighted_nufft import fused  # which needs this class

        return fused(outer, self)

    def _learns(self) -> bool:
        return self.plane._learns()

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.plane._forward(self._partitions_of(x)).flatten(-2)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        samples = y.unflatten(-1, self.plane.codomain.shape[-2:])
        return self._volume_of(self.plane._adjoint(samples))

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        return self._volume_of(self.plane._gram(self._partitions_of(x)))

    def _partitions_of(self, x: torch.Tensor) -> torch.Tensor:
        """What of an image lies in the measured partitions: ``(…, z, y, x)`` to ``(…, partition, y, x)``."""
        transformed = torch.fft.fft(x * in_precision_of(self._image_phase, x), dim=-3, norm="ortho")
        return transformed.mul_(in_precision_of(self._kspace_phase, x)).index_select(-3, self._partitions)

    def _volume_of(self, planes: torch.Tensor) -> torch.Tensor:
        """The adjoint of `_partitions_of`."""
        kspace = planes.new_zeros(*planes.shape[:-3], *self.domain.shape[-3:])
        kspace = kspace.index_add(-3, self._partitions, planes)
        transformed = torch.fft.ifft(kspace * in_precision_of(self._kspace_phase.conj(), planes), dim=-3, norm="ortho")
        return transformed.mul_(in_precision_of(self._image_phase.conj(), planes))


class ToeplitzGram(LinearOperator):
    """The gram AᴴWA of a non-uniform Fourier transform A with weights W on its samples, as a convolution.

    (G x)_n = Σ_m p(n − m) x_m with the point spread p(n) = N^(−1) Σ_s w_s exp(i ω_s · n), applied by an FFT padded to
    twice the size. p is computed once, by the adjoint of a `NonUniformFourier` to the given accuracy; G itself is
    exactly self-adjoint, whatever that accuracy.

    Parameters
    ----------
    trajectory
        k-space positions, real ``(*batch, sample, dim)``, radians per pixel in [−π, π), in the order
        ``([kz,] ky, kx)``. It is a constant: no gradient flows to it.
    image_shape
        ``(y, x)`` or ``(z, y, x)``.
    weights
        The diagonal of W, such as the density compensation: real ``(*batch, sample)``, whose batch broadcasts with
        the trajectory's; ``None`` for ones.
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
    trajectory: torch.Tensor
    weights: torch.Tensor
    padded_shape: tuple[int, ...]
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
        check_constant(trajectory, "trajectory")
        check_trajectory(trajectory, image_shape)
        width = kernel_width(accuracy, len(image_shape), precision)
        super().__init__(*_spaces(image_shape, n_coils, None))
        positions = _positions(trajectory)
        weights = _weights_for(positions, weights)
        batch = torch.broadcast_shapes(positions.shape[:-2], weights.shape[:-1])
        padded_shape = tuple(fast_size(2 * n) for n in image_shape)
        n_at_once = max(1, _ENTRIES_AT_ONCE // width ** len(image_shape))
        kernels = []
        for samples in zip(*_listed_samples(positions, weights, batch), strict=True):
            parts = _gridded_in_parts(*samples, image_shape, accuracy, n_at_once)
            kernels.append(_toeplitz_kernel(parts, image_shape, padded_shape, torch.device("cpu")))
        kernel = torch.stack(kernels).view(*batch, *padded_shape)
        self._keep(positions, weights, kernel.to(trajectory.device, precision))

    @classmethod
    def _of(
        cls, domain: Space, trajectory: torch.Tensor, weights: torch.Tensor, kernel: torch.Tensor
    ) -> "ToeplitzGram":
        """The operator with a kernel that was made already."""
        gram = cls.__new__(cls)
        LinearOperator.__init__(gram, domain, domain)
        gram._keep(trajectory, weights, kernel)
        return gram

    def _keep(self, trajectory: torch.Tensor, weights: torch.Tensor, kernel: torch.Tensor) -> None:
        self.trajectory = trajectory
        self.weights = weights
        self.padded_shape = tuple(kernel.shape[-trajectory.shape[-1] :])
        self.register_buffer("_kernel", kernel, persistent=False)

    def _batch_shape(self) -> torch.Size:
        return self._kernel.shape[: -len(self.padded_shape)]

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        n_dims = len(self.padded_shape)
        dims, image_shape = tuple(range(-n_dims, 0)), self.domain.shape[-n_dims:]
        inside = tuple(slice(0, n) for n in image_shape)
        batch = broadcast_batch(self.batch_shape, self.domain.batch_shape(x))
        x = x.expand(*batch, *x.shape[-self.domain.n_dims :])
        kernels = in_precision_of(self._kernel, x).reshape(-1, *self.padded_shape)
        images = _listed(x, image_shape)
        result = images.new_empty(images.shape)
        n_each = max(1, len(images) // max(1, batch.numel()))
        for entry, members in enumerate(_members(self.batch_shape, batch, torch.device("cpu"))):
            for member, leading in itertools.product(members.tolist(), range(n_each)):
                index = member * n_each + leading  # one at a time: it stays in the cache
                transformed = torch.fft.fftn(images[index], s=self.padded_shape, dim=dims).mul_(kernels[entry])
                result[index] = torch.fft.ifftn(transformed, dim=dims)[inside]
        return result.view(x.shape)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._forward(y)


class _AtPositions(torch.autograd.Function):
    """Transform at positions that are an input too; every derivative is again a call of this Function."""

    @staticmethod
    def forward(
        x: torch.Tensor, trajectory: torch.Tensor, operator: NonUniformFourier, direction: _TransformDirection
    ) -> torch.Tensor:
        return operator._apply_at(trajectory, direction, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, trajectory, ctx.operator, ctx.direction = inputs
        ctx.save_for_backward(x, trajectory)
        ctx.save_for_forward(x, trajectory)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        x, trajectory = ctx.saved_tensors
        operator, (upstream,) = ctx.operator, gradients
        for_x = for_trajectory = None
        if ctx.needs_input_grad[0]:
            transposed: _TransformDirection = "adjoint" if ctx.direction == "forward" else "forward"
            for_x = _at_positions(upstream, trajectory, operator, transposed).sum_to_size(x.shape)
        if ctx.needs_input_grad[1]:
            image, samples = (x, upstream) if ctx.direction == "forward" else (upstream, x)
            batch = broadcast_batch(trajectory.shape[:-2], operator.domain.batch_shape(image))
            image = image.expand(*batch, *operator.domain.shape)
            moved = _at_positions(_by_positions(image, -1j, operator.image_shape), trajectory, operator, "forward")
            per_sample = (samples.conj() * moved).real.movedim(0, -1)  # (*batch, *leading, sample, dim)
            leading = tuple(range(len(batch), per_sample.ndim - 2))
            per_sample = per_sample.sum(dim=leading) if leading else per_sample
            for_trajectory = per_sample.sum_to_size(trajectory.shape).to(trajectory.dtype)
        return for_x, for_trajectory, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> torch.Tensor:
        x, trajectory = ctx.saved_tensors
        operator, direction = ctx.operator, ctx.direction
        of_x, of_trajectory = tangents[:2]
        result = None
        if of_x is not None:
            result = _at_positions(of_x, trajectory, operator, direction)
        if of_trajectory is not None:
            source = operator.domain if direction == "forward" else operator.codomain
            batch = broadcast_batch(trajectory.shape[:-2], source.batch_shape(x))
            x = x.expand(*batch, *source.shape)
            step = in_precision_of(of_trajectory, x).expand(*batch, *trajectory.shape[-2:]).movedim(-1, 0)
            ones = (1,) * (operator.codomain.n_dims - 1)
            step = step.unflatten(-1, (*ones, step.shape[-1]))  # (dim, *batch, *leading, sample)
            if direction == "forward":
                moved = _at_positions(_by_positions(x, -1j, operator.image_shape), trajectory, operator, direction)
                moved = (step * moved).sum(dim=0)
            else:
                moved = _at_positions(step * x, trajectory, operator, direction)
                places = _pixels(moved, operator.image_shape)
                moved = total([1j * p * part for p, part in zip(places, moved, strict=True)])
            result = moved if result is None else result + moved
        assert result is not None
        return result

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: torch.Tensor,
        trajectory: torch.Tensor,
        operator: NonUniformFourier,
        direction: _TransformDirection,
    ) -> tuple[torch.Tensor, int]:
        source = operator.domain if direction == "forward" else operator.codomain
        tensors = ((x, in_dims[0], source.n_dims), (trajectory, in_dims[1], 2))
        n_batch = max(tensor.ndim - (position is not None) - n for tensor, position, n in tensors)
        first = []
        for tensor, position, n_dims in tensors:
            if position is not None:
                tensor = tensor.movedim(position, 0)
                for _ in range(n_batch - (tensor.ndim - 1 - n_dims)):
                    tensor = tensor.unsqueeze(1)
            first.append(tensor)
        return _at_positions(first[0], first[1], operator, direction), 0


def _at_positions(
    x: torch.Tensor, trajectory: torch.Tensor, operator: NonUniformFourier, direction: _TransformDirection
) -> torch.Tensor:
    result: torch.Tensor = _AtPositions.apply(x, trajectory, operator, direction)
    return result


def _by_positions(image: torch.Tensor, factor: complex, image_shape: tuple[int, ...]) -> torch.Tensor:
    """The image times ``factor`` times the pixel's place along each dimension: ``(dim, *image.shape)``."""
    return torch.stack([factor * p * image for p in _pixels(image, image_shape)])


def _pixels(like: torch.Tensor, image_shape: tuple[int, ...]) -> list[torch.Tensor]:
    """Places n − c along each dimension, each shaped to broadcast with an image."""
    return [
        (torch.arange(n, dtype=like.dtype.to_real(), device=like.device) - n // 2).view(
            n, *(1,) * (len(image_shape) - 1 - d)
        )
        for d, n in enumerate(image_shape)
    ]


def _toeplitz_kernel(
    parts: Iterable[tuple[Transform, torch.Tensor, torch.Tensor]],
    image_shape: tuple[int, ...],
    padded_shape: tuple[int, ...],
    device: torch.device,
) -> torch.Tensor:
    """Transform of the point spread, real float64 ``padded_shape``, from transforms of all positions and weights.

    The point spread reaches from −N to N. Each of its halves along a dimension is an image of its own, which the
    adjoint gives of samples with a phase; the last dimension's other half follows from p(−n) = conj p(n).
    """
    starts = list(itertools.product(*((-n, 0) for n in image_shape[:-1]), (0,)))
    centres = torch.tensor(starts, dtype=torch.float64) + torch.tensor([n // 2 for n in image_shape])
    pieces = torch.zeros(len(starts), *image_shape, dtype=torch.complex128, device=device)
    for transform, positions, weights in parts:
        samples = weights * torch.exp(1j * (centres @ positions.T))
        pieces += transform.adjoint(samples.to(device))
    pieces /= math.sqrt(math.prod(image_shape))
    half = torch.zeros(*padded_shape[:-1], padded_shape[-1] // 2 + 1, dtype=torch.complex128, device=device)
    for piece, start in zip(pieces, starts, strict=True):
        ends = zip(start, image_shape, padded_shape, strict=True)
        half[tuple(slice(first % size, first % size + n) for first, n, size in ends)] = piece
    # p(−N) has no partner and is wrong, but no two pixels are N apart.
    return torch.fft.hfftn(half, s=padded_shape)


def _gridded_in_parts(
    positions: torch.Tensor, weights: torch.Tensor, image_shape: tuple[int, ...], accuracy: float, n_at_once: int
) -> Iterator[tuple[Transform, torch.Tensor, torch.Tensor]]:
    """Transforms of some samples at a time, so that their tables need not exist together."""
    for some, weights_of_some in zip(positions.split(n_at_once), weights.split(n_at_once), strict=True):
        yield GriddingTransform(some, image_shape, accuracy, torch.float64), some, weights_of_some


def _transform_class(backend: Backend) -> Any:
    """What builds a `Transform` from positions, image shape, accuracy and precision."""
    if backend == "gridding":
        return GriddingTransform
    if backend not in ("finufft", "torchkbnufft"):
        raise ValueError(f"backend is {backend!r}; expected 'gridding', 'finufft' or 'torchkbnufft'.")
    from operators import nufft_backends  # here, because it imports the packages

    return nufft_backends.FinufftTransform if backend == "finufft" else nufft_backends.TorchKbNufftTransform


def _apply(
    transform: Transform, direction: _TransformDirection, x: torch.Tensor, vector_shape: tuple[int, ...]
) -> torch.Tensor:
    vectors = _listed(x, vector_shape)
    return transform.forward(vectors) if direction == "forward" else transform.adjoint(vectors)


def _members(own: torch.Size, batch: torch.Size, device: torch.device) -> list[torch.Tensor]:
    """For every entry of an operator's batch, the flat places of the whole batch that it serves."""
    if own.numel() == 1:
        return [torch.arange(batch.numel(), device=device)]
    entries = torch.arange(own.numel(), device=device).view(own).expand(batch).flatten()
    return [(entries == entry).nonzero()[:, 0] for entry in range(own.numel())]


@torch.inference_mode(False)  # in which tensors have no version
def _positions(trajectory: torch.Tensor) -> torch.Tensor:
    """A copy that nothing else writes to, float64, on the CPU."""
    return trajectory.detach().to("cpu", torch.float64).clone()


def _weights_for(positions: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Float64 on the CPU, ``(*batch, sample)``; ones where there are none."""
    if weights is None:
        return torch.ones(positions.shape[-2], dtype=torch.float64)
    _check_weights(weights, positions)
    return _positions(weights)


def _listed_samples(
    positions: torch.Tensor, weights: torch.Tensor, batch: torch.Size
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and weights of every entry of the batch, flattened."""
    n_samples, n_dims = positions.shape[-2:]
    return (
        positions.expand(*batch, n_samples, n_dims).reshape(-1, n_samples, n_dims),
        weights.expand(*batch, n_samples).reshape(-1, n_samples),
    )


def _listed(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """All leading dimensions as one, which may be empty: ``(vector, *shape)``."""
    return x.reshape(x.numel() // math.prod(shape), *shape).resolve_conj()


def _leading(n_coils: int | Sequence[int] | None) -> tuple[int, ...]:
    return () if n_coils is None else (n_coils,) if isinstance(n_coils, int) else tuple(n_coils)


def _spaces(
    image_shape: tuple[int, ...], n_coils: int | Sequence[int] | None, n_samples: int | None
) -> tuple[Space, Space]:
    """Of images and of samples; of images twice where there are no samples."""
    leading = _leading(n_coils)
    names = ("coil",) if len(leading) == 1 else tuple(f"axis{i}" for i in range(len(leading)))
    domain = Space((*leading, *image_shape), "complex", (*names, *("z", "y", "x")[-len(image_shape) :]))
    if n_samples is None:
        return domain, domain
    return domain, Space((*leading, n_samples), "complex", (*names, "sample"))


def _check_weights(weights: torch.Tensor, positions: torch.Tensor) -> None:
    check_constant(weights, "weights")
    *batch, n_samples, _ = positions.shape
    try:
        fits = weights.shape[-1:] == (n_samples,) and bool(torch.broadcast_shapes(weights.shape[:-1], batch) or True)
    except RuntimeError:
        fits = False
    if not fits:
        whole = f" or {(*batch, n_samples)}" if batch else ""
        raise ValueError(f"weights have shape {tuple(weights.shape)}; expected one per sample, ({n_samples},){whole}.")
    if not bool(weights.isfinite().all()):
        raise ValueError("weights have entries that are not finite; set them to zero to leave these samples out.")


def _check_partitions(partitions: torch.Tensor, n_partitions: int) -> None:
    if not isinstance(partitions, torch.Tensor) or partitions.dtype not in (torch.int64, torch.int32):
        kind = partitions.dtype if isinstance(partitions, torch.Tensor) else type(partitions).__name__
        raise TypeError(f"partitions is {kind}; expected a tensor of integers, such as torch.tensor([0, 2]).")
    if partitions.ndim != 1 or not len(partitions):
        raise ValueError(f"partitions has shape {tuple(partitions.shape)}; expected (partition,), at least one.")
    if int(partitions.min()) < 0 or int(partitions.max()) >= n_partitions:
        raise ValueError(
            f"partitions reach from {int(partitions.min())} to {int(partitions.max())}; expected kz indices from 0 to "
            f"{n_partitions - 1}."
        )
