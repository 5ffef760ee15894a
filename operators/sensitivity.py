"""Coil sensitivities, and Cartesian multi-coil imaging as one operator."""

import torch

from operators.elementary import Mask
from operators.fourier import Fourier, MaskedFourier, in_precision_of
from operators.linear_operator import Composition, LinearOperator, register_tensor
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
        If the maps have fewer than ``n_dims + 1`` dimensions.
    """

    csm: torch.Tensor

    def __init__(self, csm: torch.Tensor, n_dims: int = 2) -> None:
        if not csm.is_complex():
            raise TypeError(f"csm is {csm.dtype}; expected complex coil sensitivity maps.")
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
    """

    gradient = "adjoint"

    def __init__(self, sensitivity: Sensitivity, fourier: Fourier, mask: Mask | None = None) -> None:
        super().__init__(sensitivity.domain, fourier.codomain)
        self.sensitivity = sensitivity
        self.fourier = fourier
        self.mask = mask
        self._masked = None if mask is None else MaskedFourier(mask, fourier)

    def _batch_shape(self) -> torch.Size:
        own = self.sensitivity.batch_shape
        return own if self.mask is None else torch.broadcast_shapes(own, self.mask.batch_shape)

    def as_composition(self) -> Composition:
        """The textbook product of the factors, for reading and for tests."""
        factors = [self.fourier, self.sensitivity]
        return Composition(factors if self.mask is None else [self.mask, *factors])

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._learns():
            return self.as_composition()._forward(x)
        batch = torch.broadcast_shapes(self.batch_shape, self.domain.batch_shape(x))
        x = _flat_batch(in_precision_of(self.fourier._image_phase, x) * x, batch, self.domain.shape)
        csm, weights = self._operator_tensors(x, batch, centred=True)
        y = x.new_empty(len(x), *self.codomain.shape)
        for c in range(self.codomain.shape[0]):
            for b in self._chunks(len(x)):
                coil_kspace = torch.fft.fftn(csm[b, c] * x[b], dim=self.fourier.dims, norm="ortho")
                torch.mul(coil_kspace, weights[b, c], out=y[b, c])
        return y.reshape(*batch, *self.codomain.shape)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        if self._learns():
            return self.as_composition()._adjoint(y)
        batch = torch.broadcast_shapes(self.batch_shape, self.codomain.batch_shape(y))
        y = _flat_batch(y, batch, self.codomain.shape)
        csm, weights = self._operator_tensors(y, batch, centred=True)
        x = y.new_zeros(len(y), *self.domain.shape)
        for c in range(self.codomain.shape[0]):
            for b in self._chunks(len(y)):
                coil_image = torch.fft.ifftn(y[b, c] * weights[b, c].conj(), dim=self.fourier.dims, norm="ortho")
                x[b].addcmul_(coil_image, csm[b, c].conj())
        return x.mul_(in_precision_of(self.fourier._image_phase, x).conj()).reshape(*batch, *self.domain.shape)

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        dims = () if self._masked is None else self._masked.varying_dims()
        if self.mask is None:
            return self.sensitivity._gram(x)
        if not dims:
            return self.sensitivity._adjoint(self.mask._gram(self.sensitivity._forward(x)))
        if self._learns():
            return self.as_composition()._gram(x)
        batch = torch.broadcast_shapes(self.batch_shape, self.domain.batch_shape(x))
        phase = in_precision_of(self.fourier._image_phase, x)
        x = _flat_batch(phase * x, batch, self.domain.shape)
        csm, mask = self._operator_tensors(x, batch, centred=False)
        result = torch.zeros_like(x)
        for c in range(self.codomain.shape[0]):
            for b in self._chunks(len(x)):
                maps = csm[b, c]
                coil_kspace = torch.fft.fftn(maps * x[b], dim=dims, norm="ortho").mul_(mask[b, c])
                result[b].addcmul_(torch.fft.ifftn(coil_kspace, dim=dims, norm="ortho"), maps.conj())
        return result.mul_(phase.conj()).reshape(*batch, *self.domain.shape)

    def _operator_tensors(
        self, like: torch.Tensor, batch: torch.Size, *, centred: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps and k-space weights in the precision of ``like``, both viewed as ``(n_samples, coil, *image)``."""
        phase = self.fourier._kspace_phase if centred else torch.ones_like(self.fourier._kspace_phase.real)
        weights = phase if self.mask is None else self.mask.mask * phase
        csm, weights = self.sensitivity.csm.to(like.dtype), in_precision_of(weights, like)
        return _flat_batch(csm, batch, self.codomain.shape), _flat_batch(weights, batch, self.codomain.shape)

    def _chunks(self, n_samples: int) -> list[slice]:
        size = max(1, _CACHED_ENTRIES // self.domain.size)
        return [slice(start, start + size) for start in range(0, n_samples, size)]


_CACHED_ENTRIES = 1 << 17  # complex entries that are transformed at a time: 1 MB in single precision


def _flat_batch(tensor: torch.Tensor, batch: torch.Size, shape: tuple[int, ...]) -> torch.Tensor:
    """``tensor`` broadcast to ``(*batch, *shape)`` with the batch flattened, without a copy where possible."""
    return tensor.expand(*batch, *shape).reshape(batch.numel(), *shape)
