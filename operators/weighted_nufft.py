"""Weights on the samples of a non-uniform Fourier transform, whose gram stays a convolution."""

import torch

from operators.elementary import Diagonal
from operators.linear_operator import LinearOperator, asks_for_gradient, broadcast_batch
from operators.nufft import NonUniformFourier, StackedNonUniformFourier, ToeplitzGram


class WeightedNonUniformFourier(LinearOperator):
    """D A: a diagonal of weights after a `NonUniformFourier` or a `StackedNonUniformFourier`.

    ``Diagonal(w, A.codomain) @ A`` becomes one of these where the weights are those of the samples, the same for all
    coils, and nothing is learned. Its gram Aᴴ|D|²A is the Toeplitz gram with the weights inside.

    Parameters
    ----------
    diagonal
        D, whose weights ``(*batch, 1, sample)`` have size 1 along every coil axis.
    transform
        A, whose trajectory is a constant.

    Raises
    ------
    ValueError
        If the weights differ between coils, have batch dimensions that a stack does not take, or the spaces differ.
    TypeError
        If weights or trajectory ask for a gradient.

    Examples
    --------
    >>> A = NonUniformFourier(torch.zeros(3, 2), (4, 4))
    >>> type(Diagonal(torch.ones(3), A.codomain) @ A).__name__
    'WeightedNonUniformFourier'
    """

    gradient = "adjoint"

    def __init__(self, diagonal: Diagonal, transform: NonUniformFourier | StackedNonUniformFourier) -> None:
        super().__init__(transform.domain, diagonal.codomain)
        if diagonal._learns() or transform._learns():
            raise TypeError("Weights or trajectory ask for a gradient; compose Diagonal and transform instead.")
        if not diagonal.domain.matches(transform.codomain):
            raise ValueError(f"The weights are for {diagonal.domain}, but the transform returns {transform.codomain}.")
        if _by_sample(diagonal, transform) is None:
            raise ValueError(
                f"weights have shape {tuple(diagonal.weights.shape)}; expected one per sample, the same for all coils."
            )
        self.diagonal = diagonal
        self.transform = transform
        self._toeplitz: ToeplitzGram | None = None
        self._made_for: tuple[torch.Tensor, torch.Tensor] | None = None  # weights and positions of that gram

    def _batch_shape(self) -> torch.Size:
        return broadcast_batch(self.diagonal.batch_shape, self.transform.batch_shape)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.diagonal._forward(self.transform._forward(x))

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.transform._adjoint(self.diagonal._adjoint(y))

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        toeplitz = self._current_gram()
        if isinstance(self.transform, StackedNonUniformFourier):
            return self.transform._volume_of(toeplitz._forward(self.transform._partitions_of(x)))
        return toeplitz._forward(x)

    def _current_gram(self) -> ToeplitzGram:
        """The gram for what weights and trajectory hold now."""
        plane = self.transform.plane if isinstance(self.transform, StackedNonUniformFourier) else self.transform
        plane._follow(plane.trajectory)
        weights, positions = self.diagonal.weights, plane._prepared
        known = self._made_for
        if self._toeplitz is None or known is None or known[1] is not positions or not _same(known[0], weights):
            self._toeplitz = self._made_gram(plane)
            self._made_for = weights.detach().clone(), positions
        return self._toeplitz

    def _made_gram(self, plane: NonUniformFourier) -> ToeplitzGram:
        weights = _by_sample(self.diagonal, self.transform)
        assert weights is not None
        power = weights.abs().square()
        if plane is self.transform:
            return plane.toeplitz_gram(power)
        one = NonUniformFourier(
            plane.trajectory,
            plane.image_shape,
            accuracy=plane.accuracy,
            precision=plane._precision,
            backend=plane.backend,
        )
        return one.toeplitz_gram(power.reshape(-1, plane.codomain.shape[-1]))


def fused(outer: LinearOperator, transform: NonUniformFourier | StackedNonUniformFourier) -> LinearOperator | None:
    """``outer @ transform`` as one operator where that is a diagonal of sample weights, else ``None``."""
    if not isinstance(outer, Diagonal) or outer._learns() or transform._learns():
        return None
    return None if _by_sample(outer, transform) is None else WeightedNonUniformFourier(outer, transform)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)


def _by_sample(diagonal: Diagonal, transform: NonUniformFourier | StackedNonUniformFourier) -> torch.Tensor | None:
    """Weights ``(*batch, sample)``, or ``None`` if they are something else."""
    weights, space = diagonal.weights, transform.codomain
    if asks_for_gradient(weights):
        return None
    own = weights.reshape(*(1,) * (space.n_dims - weights.ndim), *weights.shape)
    leading = own.shape[: own.ndim - space.n_dims]
    coils = own.shape[own.ndim - space.n_dims : -1]
    stacked = isinstance(transform, StackedNonUniformFourier)
    if any(n != 1 for n in coils) or (stacked and leading.numel() > 1):
        return None
    return own.reshape(*leading, own.shape[-1]).expand(*leading, space.shape[-1])
