"""Coil sensitivities, and Cartesian multi-coil imaging as one operator."""

import math
from dataclasses import dataclass

import torch

from operators.elementary import Mask
from operators.fourier import Fourier, MaskedFourier, in_precision_of
from operators.linear_operator import Composition, LinearOperator, asks_for_gradient, broadcast_batch, register_tensor
from operators.space import Space


class Sensitivity(LinearOperator):
    """What each receive coil sees of an image: (C x)_c = s_c ⊙ x.

    Parameters
    ----------
    csm
        Coil sensitivity maps, complex ``(*batch, coil, [z,] y, x)``. A ``nn.Parameter`` is learned.
    n_dims
        Number of image dimensions, 1 to 3.

    Raises
    ------
    TypeError
        If the maps are not complex.
    ValueError
        If ``n_dims`` is not 1 to 3, or the maps have fewer than ``n_dims + 1`` dimensions.
    """

    csm: torch.Tensor

    def __init__(self, csm: torch.Tensor, n_dims: int = 2) -> None:
        if not csm.is_complex():
            raise TypeError(f"csm is {csm.dtype}; expected complex coil sensitivity maps.")
        if not 1 <= n_dims <= 3:
            raise ValueError(f"n_dims is {n_dims}; expected 1 to 3 image dimensions.")
        if csm.ndim < n_dims + 1:
            raise ValueError(f"csm has shape {tuple(csm.shape)}; expected (*batch, coil, {n_dims} image dimensions).")
        image_shape, names = tuple(csm.shape[-n_dims:]), ("z", "y", "x")[-n_dims:]
        super().__init__(
            Space(image_shape, "complex", names),
            Space((csm.shape[-n_dims - 1], *image_shape), "complex", ("coil", *names)),
        )
        register_tensor(self, "csm", csm)

    def _batch_shape(self) -> torch.Size:
        return self.csm.shape[: -self.codomain.n_dims]

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.csm * x.unsqueeze(-self.codomain.n_dims)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return (self.csm.conj() * y).sum(dim=-self.codomain.n_dims)

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        return (self.csm.conj() * self.csm).real.sum(dim=-self.codomain.n_dims) * x

    def _norm(self) -> torch.Tensor:
        combined = (self.csm.conj() * self.csm).real.sum(dim=-self.codomain.n_dims)
        return combined.amax(dim=self.domain.dims).sqrt()

    def _fuse_under(self, outer: LinearOperator) -> LinearOperator | None:
        fourier = outer.fourier if isinstance(outer, MaskedFourier) else outer
        if not isinstance(fourier, Fourier) or fourier.n_dims != self.domain.n_dims:
            return None
        return CartesianSense(self, fourier, outer.mask if isinstance(outer, MaskedFourier) else None)


class CartesianSense(LinearOperator):
    """``Mask @ Fourier @ Sensitivity`` as one operator that works coil by coil and stores nothing for the gradient.

    A coil at a time stays in the cache, no shift moves data, and the gram transforms only along the dimensions in
    which the mask varies (one dimension where whole lines are measured). Build it with ``@``.

    Parameters
    ----------
    sensitivity
        C, the coil sensitivities.
    fourier
        F on the coil images.
    mask
        M on k-space, or ``None`` where everything is measured.

    Raises
    ------
    ValueError
        If the factors do not fit; the message names both.
    """

    gradient = "adjoint"

    def __init__(self, sensitivity: Sensitivity, fourier: Fourier, mask: Mask | None = None) -> None:
        super().__init__(sensitivity.domain, fourier.codomain)
        self.sensitivity = sensitivity
        self.fourier = fourier
        self.mask = mask
        self._masked = None if mask is None else MaskedFourier(mask, fourier)
        self._prepared: _Prepared | None = None
        self.as_composition()  # raises where the factors do not fit

    def _batch_shape(self) -> torch.Size:
        own = self.sensitivity.batch_shape
        return own if self.mask is None else broadcast_batch(own, self.mask.batch_shape)

    def _fuse_under(self, outer: LinearOperator) -> LinearOperator | None:
        if isinstance(outer, Mask) and self.mask is None:
            return CartesianSense(self.sensitivity, self.fourier, outer)
        return None

    def as_composition(self) -> Composition:
        """The textbook product of the factors, for reading and for tests."""
        factors = [self.fourier, self.sensitivity]
        return Composition(factors if self.mask is None else [self.mask, *factors])

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._learns():
            return self.as_composition()._forward(x)
        if self._is_small(x):
            prepared = self._tensors_for(x)
            coil_images = prepared.maps * x.unsqueeze(-self.codomain.n_dims)
            return torch.fft.fftn(coil_images, dim=self.fourier.dims).mul_(prepared.weights)
        batch = broadcast_batch(self.batch_shape, self.domain.batch_shape(x))
        x = _flat_batch(in_precision_of(self.fourier._image_phase, x) * x, batch, self.domain.shape)[:, None]
        csm, weights = self._maps(x, batch), self._weights(x, batch, self.fourier._kspace_phase, self._scale)
        y = x.new_empty(len(x), *self.codomain.shape)
        for c, b in self._blocks(len(x)):
            torch.mul(torch.fft.fftn(csm[b, c] * x[b], dim=self.fourier.dims), weights[b, c], out=y[b, c])
        return y.reshape(*batch, *self.codomain.shape)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        if self._learns():
            return self.as_composition()._adjoint(y)
        if self._is_small(y):
            prepared = self._tensors_for(y)
            coil_images = torch.fft.ifftn(y * prepared.weights_conj, dim=self.fourier.dims, norm="forward")
            return coil_images.mul_(prepared.maps_conj).sum(dim=-self.codomain.n_dims)
        batch = broadcast_batch(self.batch_shape, self.codomain.batch_shape(y))
        y = _flat_batch(y, batch, self.codomain.shape)
        csm = self._maps(y, batch)
        weights = self._weights(y, batch, self.fourier._kspace_phase.conj(), self._scale)
        x = y.new_zeros(len(y), *self.domain.shape)
        for c, b in self._blocks(len(y)):
            coil_images = torch.fft.ifftn(y[b, c] * weights[b, c], dim=self.fourier.dims, norm="forward")
            _add_coils(x[b], coil_images, csm[b, c])
        return x.mul_(in_precision_of(self.fourier._image_phase.conj(), x)).reshape(*batch, *self.domain.shape)

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        if self.mask is None or self._masked is None:
            return self.sensitivity._gram(x)
        if self._learns():
            return self.as_composition()._gram(x)
        dims = self._masked.varying_dims()
        if not dims:
            return self.sensitivity._adjoint(self.mask._gram(self.sensitivity._forward(x)))
        if self._is_small(x):
            prepared = self._tensors_for(x)
            coil_images = prepared.maps * x.unsqueeze(-self.codomain.n_dims)
            coil_kspace = torch.fft.fftn(coil_images, dim=dims, norm="ortho").mul_(prepared.mask)
            coil_images = torch.fft.ifftn(coil_kspace, dim=dims, norm="ortho").mul_(prepared.maps_conj)
            return coil_images.sum(dim=-self.codomain.n_dims)
        batch = broadcast_batch(self.batch_shape, self.domain.batch_shape(x))
        phase = in_precision_of(self.fourier._image_phase, x)
        scale = 1 / math.prod(self.domain.shape[d] for d in dims)
        # The transformed dimensions go last, where an FFT is cheapest; they are few and the coils many.
        last = tuple(range(-len(dims), 0))
        moved = _flat_batch(phase * x, batch, self.domain.shape).movedim(dims, last).contiguous()
        csm = self._maps(x, batch).movedim(dims, last)
        mask = self._weights(x, batch, None, scale).movedim(dims, last)
        result = torch.zeros_like(moved)
        for c, b in self._blocks(len(moved)):
            if b.start == 0 or csm.stride(0):
                maps = csm[b if csm.stride(0) else slice(1), c].contiguous()
            coil_kspace = torch.fft.fftn(maps * moved[b, None], dim=last).mul_(mask[b, c])
            _add_coils(result[b], torch.fft.ifftn(coil_kspace, dim=last, norm="forward"), maps)
        return (result.movedim(last, dims) * phase.conj()).reshape(*batch, *self.domain.shape)

    def _norm(self) -> torch.Tensor:
        return self.sensitivity._norm() if self.mask is None else super()._norm()

    def _learns(self) -> bool:
        return asks_for_gradient(self.sensitivity.csm) or (self.mask is not None and asks_for_gradient(self.mask.mask))

    def _is_small(self, samples: torch.Tensor) -> bool:
        """Whether everything fits the cache at once, so that looping over coils would only cost."""
        n_samples = max(1, samples.numel() // self.domain.size)
        return not self.batch_shape and n_samples * self.codomain.size <= _CACHED_ENTRIES

    def _tensors_for(self, like: torch.Tensor) -> "_Prepared":
        """Products of the operator's tensors in the precision of ``like``, kept until one of them changes."""
        csm, mask = self.sensitivity.csm, None if self.mask is None else self.mask.mask
        if self._prepared is None or not self._prepared.holds(csm, mask, like.dtype):
            self._prepared = _Prepared.of(self.fourier, csm, mask, like.dtype)
        return self._prepared

    @property
    def _scale(self) -> float:
        """What makes both transforms orthonormal; it rides on the k-space weights, the FFTs themselves are unscaled."""
        return math.prod(self.domain.shape) ** -0.5

    def _maps(self, like: torch.Tensor, batch: torch.Size) -> torch.Tensor:
        """Sensitivities ``(n_samples, coil, *image)``."""
        return _flat_batch(self.sensitivity.csm.to(like.dtype), batch, self.codomain.shape)

    def _weights(self, like: torch.Tensor, batch: torch.Size, phase: torch.Tensor | None, scale: float) -> torch.Tensor:
        """Mask, phase and scale in one: ``(n_samples, coil, *image)``."""
        ones = torch.ones((), device=like.device) if phase is None else phase
        weights = scale * in_precision_of(ones, like)
        if self.mask is not None:
            weights = in_precision_of(self.mask.mask, like) * weights
        return _flat_batch(weights, batch, self.codomain.shape)

    def _blocks(self, n_samples: int) -> list[tuple[slice, slice]]:
        """Pairs of (coils, samples) that cover everything, each small enough to stay in the cache."""
        n_images = max(1, _CACHED_ENTRIES // self.domain.size)
        n_coils = min(n_images, self.codomain.shape[0])
        n_together = max(1, n_images // n_coils)
        return [
            (slice(c, c + n_coils), slice(b, b + n_together))
            for c in range(0, self.codomain.shape[0], n_coils)
            for b in range(0, n_samples, n_together)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """What a small scan needs in every call: maps with the image phase, and mask with k-space phase and scale."""

    csm: torch.Tensor
    mask_source: torch.Tensor | None
    versions: tuple[int, int]
    dtype: torch.dtype
    maps: torch.Tensor
    maps_conj: torch.Tensor
    weights: torch.Tensor
    weights_conj: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def of(cls, fourier: Fourier, csm: torch.Tensor, mask: torch.Tensor | None, dtype: torch.dtype) -> "_Prepared":
        """Multiply out."""
        with torch.no_grad():
            like = torch.empty((), dtype=dtype)
            maps = csm.to(dtype) * in_precision_of(fourier._image_phase, like)
            ones = torch.ones((), device=csm.device) if mask is None else mask
            kept = in_precision_of(ones, like)
            weights = (
                kept * in_precision_of(fourier._kspace_phase, like) * math.prod(csm.shape[-fourier.n_dims :]) ** -0.5
            )
            conj = maps.conj().resolve_conj(), weights.conj().resolve_conj()
        return cls(csm, mask, _versions(csm, mask), dtype, maps, conj[0], weights, conj[1], kept)

    def holds(self, csm: torch.Tensor, mask: torch.Tensor | None, dtype: torch.dtype) -> bool:
        """Whether the operator's tensors are still those that were multiplied out."""
        same = self.csm is csm and self.mask_source is mask and self.dtype == dtype
        return same and self.versions == _versions(csm, mask)


def _versions(csm: torch.Tensor, mask: torch.Tensor | None) -> tuple[int, int]:
    return csm._version, 0 if mask is None else mask._version


_CACHED_ENTRIES = 1 << 17  # complex entries that are transformed at a time: 1 MB in single precision


def _add_coils(images: torch.Tensor, coil_images: torch.Tensor, csm: torch.Tensor) -> None:
    """Add Σ_c conj(s_c) x_c to ``images`` in place."""
    for c in range(coil_images.shape[1]):
        images.addcmul_(coil_images[:, c], csm[:, c].conj())


def _flat_batch(tensor: torch.Tensor, batch: torch.Size, shape: tuple[int, ...]) -> torch.Tensor:
    """``tensor`` broadcast to ``(*batch, *shape)`` with the batch flattened, without a copy where possible."""
    return tensor.expand(*batch, *shape).reshape(batch.numel(), *shape)
