"""The Fourier transform of Cartesian imaging: centred and orthonormal, with or without a sampling mask."""

import math
from collections.abc import Sequence

import torch

from operators.elementary import Mask
from operators.linear_operator import Composition, LinearOperator
from operators.space import Space


class Fourier(LinearOperator):
    """The centred, orthonormal discrete Fourier transform over the last one to three dimensions.

    (F x)_k = N^(−1/2) Σ_n x_n exp(−2πi (k − c)(n − c)/N), with c = N//2, along each transformed dimension. Image to
    k-space has the minus sign, and entry N//2 is the origin of both. This is ``fftshift ∘ fftn ∘ ifftshift`` with
    ``norm="ortho"``; the shifts are folded into two phase factors, which costs less than moving the data.

    Parameters
    ----------
    shape
        Trailing shape of the image, such as ``(y, x)`` or ``(coil, y, x)``.
    n_dims
        Number of trailing dimensions to transform: 1, 2 or 3.

    Raises
    ------
    ValueError
        If ``n_dims`` is not 1 to 3 or exceeds the number of dimensions.
    """

    gradient = "adjoint"
    _image_phase: torch.Tensor
    _kspace_phase: torch.Tensor

    def __init__(self, shape: Sequence[int], n_dims: int = 2) -> None:
        shape = tuple(shape)
        if not 1 <= n_dims <= min(3, len(shape)):
            raise ValueError(f"n_dims is {n_dims}; expected 1 to 3 and at most the {len(shape)} dimensions of {shape}.")
        names = ("z", "y", "x")[-n_dims:]
        leading = ("coil",) if len(shape) == n_dims + 1 else tuple(f"axis{i}" for i in range(len(shape) - n_dims))
        super().__init__(
            Space(shape, "complex", (*leading, *names)),
            Space(shape, "complex", (*leading, *(f"k{name}" for name in names))),
        )
        self.n_dims = n_dims
        image_phase, kspace_phase = centring_phases(shape[-n_dims:])
        self.register_buffer("_image_phase", image_phase, persistent=False)
        self.register_buffer("_kspace_phase", kspace_phase, persistent=False)

    @property
    def dims(self) -> tuple[int, ...]:
        """The transformed dimensions as negative indices."""
        return tuple(range(-self.n_dims, 0))

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._transform(x, self._kspace_phase)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._back_transform(y, self._kspace_phase)

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def _norm(self) -> torch.Tensor:
        return torch.ones(())

    def _fuse_under(self, outer: LinearOperator) -> LinearOperator | None:
        return MaskedFourier(outer, self) if isinstance(outer, Mask) and type(self) is Fourier else None

    def _transform(self, x: torch.Tensor, kspace_weights: torch.Tensor) -> torch.Tensor:
        transformed = torch.fft.fftn(x * in_precision_of(self._image_phase, x), dim=self.dims, norm="ortho")
        return transformed.mul_(in_precision_of(kspace_weights, x))

    def _back_transform(self, y: torch.Tensor, kspace_weights: torch.Tensor) -> torch.Tensor:
        transformed = torch.fft.ifftn(y * in_precision_of(kspace_weights.conj(), y), dim=self.dims, norm="ortho")
        return transformed.mul_(in_precision_of(self._image_phase.conj(), y))


class MaskedFourier(LinearOperator):
    """``Mask @ Fourier`` as one operator, whose gram transforms only along the dimensions in which the mask varies.

    Parameters
    ----------
    mask
        Sampling mask on the Fourier transform's codomain.
    fourier
        The transform.

    Raises
    ------
    ValueError
        If the mask does not act on the transform's codomain.
    """

    gradient = "adjoint"

    def __init__(self, mask: Mask, fourier: Fourier) -> None:
        fitting = Composition((mask, fourier))
        super().__init__(fitting.domain, fitting.codomain)
        self.mask = mask
        self.fourier = fourier
        self._varying: tuple[torch.Tensor, int, tuple[int, ...]] | None = None

    def _batch_shape(self) -> torch.Size:
        return self.mask.batch_shape

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self._with_mask_batch(x)
        return self.fourier._transform(x, self.mask.mask * self.fourier._kspace_phase)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        y = self._with_mask_batch(y)
        return self.fourier._back_transform(y, self.mask.mask * self.fourier._kspace_phase)

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        x, dims = self._with_mask_batch(x), self.varying_dims()
        mask = in_precision_of(self.mask.mask, x)
        if not dims:
            return mask * x
        phase = in_precision_of(self.fourier._image_phase, x)
        transformed = torch.fft.fftn(x * phase, dim=dims, norm="ortho").mul_(mask)
        return torch.fft.ifftn(transformed, dim=dims, norm="ortho").mul_(phase.conj())

    def varying_dims(self) -> tuple[int, ...]:
        """The transformed dimensions, as negative indices, along which the mask is not constant."""
        mask = self.mask.mask
        if self._varying is None or self._varying[0] is not mask or self._varying[1] != mask._version:
            dims = [d for d in self.fourier.dims if -d <= mask.ndim and bool((mask.narrow(d, 0, 1) != mask).any())]
            self._varying = (mask, mask._version, tuple(dims))
        return self._varying[2]

    def _with_mask_batch(self, x: torch.Tensor) -> torch.Tensor:
        batch = torch.broadcast_shapes(self.batch_shape, self.domain.batch_shape(x))
        return x.expand(*batch, *self.domain.shape)


def centring_phases(shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Phase factors that centre an FFT: ``fftshift(fftn(ifftshift(x))) = q · fftn(p · x)``.

    Parameters
    ----------
    shape
        Sizes of the transformed dimensions.

    Returns
    -------
    p, q
        Factors in image space and in k-space, each of this shape; where every size is even they are ±1 in float32
        (exact, and no conversion is needed for single precision), else complex128.

    Notes
    -----
    From (k − c)(n − c) = kn − ck − cn + c² with c = N//2: p_n = exp(2πi c n/N), q_k = exp(2πi (c k − c²)/N).
    """
    p = torch.ones(tuple(shape), dtype=torch.complex128)
    q = torch.ones(tuple(shape), dtype=torch.complex128)
    for d, n in enumerate(shape):
        c = n // 2
        along = [1] * len(shape)
        along[d] = n
        index = torch.arange(n, dtype=torch.float64)
        p = p * torch.exp(2j * math.pi * (c * index % n) / n).reshape(along)
        q = q * torch.exp(2j * math.pi * ((c * index - c * c) % n) / n).reshape(along)
    if all(n % 2 == 0 for n in shape):
        return p.real.round().float(), q.real.round().float()
    return p, q


def in_precision_of(tensor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Real or complex ``tensor`` in the precision (single or double) of ``x``."""
    real = x.dtype.to_real() if x.is_complex() else x.dtype
    return tensor.to(real.to_complex() if tensor.is_complex() else real)
