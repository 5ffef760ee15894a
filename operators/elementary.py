"""The elementary operators: identity, weights, masks, padding, cropping and finite differences."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch

from operators.linear_operator import LinearOperator, register_tensor, total
from operators.space import Field, Space


class Identity(LinearOperator):
    """The identity x ↦ x.

    Parameters
    ----------
    domain
        Any space.
    """

    def __init__(self, domain: Space) -> None:
        super().__init__(domain, domain)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return y

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def _norm(self) -> torch.Tensor:
        return torch.ones(())


class Diagonal(LinearOperator):
    """Entry-wise weights x ↦ w ⊙ x.

    Complex weights on a real domain give a complex codomain, with the real-linear adjoint Re(w̄ ⊙ y).

    Parameters
    ----------
    weights
        Real or complex; its trailing dimensions broadcast to the domain's shape, leading ones are batch. A
        ``nn.Parameter`` is learned.
    domain
        Space of x; by default the space that has the weights' shape and field.

    Raises
    ------
    ValueError
        If the weights do not broadcast to the domain.
    TypeError
        If the weights are neither real floating-point nor complex.
    """

    weights: torch.Tensor

    def __init__(self, weights: torch.Tensor, domain: Space | None = None) -> None:
        if not (weights.is_complex() or weights.is_floating_point()):
            raise TypeError(f"weights are {weights.dtype}; expected a floating-point or complex tensor.")
        if domain is None:
            domain = Space(tuple(weights.shape), "complex" if weights.is_complex() else "real")
        _check_broadcasts(weights, domain, "weights")
        field: Field = "complex" if weights.is_complex() else domain.field
        super().__init__(domain, Space(domain.shape, field, domain.axes))
        register_tensor(self, "weights", weights)

    def _batch_shape(self) -> torch.Size:
        return self.weights.shape[: max(self.weights.ndim - self.domain.n_dims, 0)]

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weights * x

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        x = self.weights.conj() * y
        return x if self.domain.field == "complex" or not x.is_complex() else x.real

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        return _squared_magnitude(self.weights) * x

    def _norm(self) -> torch.Tensor:
        own = self.weights.abs()
        trailing = min(self.domain.n_dims, own.ndim)
        return own.amax(dim=tuple(range(-trailing, 0))) if trailing else own


class Mask(Diagonal):
    """Keep the measured entries and set the others to zero; an orthogonal projection.

    Parameters
    ----------
    mask
        1 = measured, 0 = not; bool or numeric. Trailing dimensions broadcast to the domain's shape (a mask
        ``(y, x)`` serves every coil), leading ones are batch.
    domain
        Space of x.

    Raises
    ------
    ValueError
        If the mask holds anything but 0 and 1 or does not broadcast to the domain.
    """

    def __init__(self, mask: torch.Tensor, domain: Space) -> None:
        mask = mask.to(torch.get_default_dtype()) if not mask.is_floating_point() else mask
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("mask holds values other than 0 and 1; use Diagonal for weights.")
        super().__init__(mask, domain)

    @property
    def mask(self) -> torch.Tensor:
        """The mask, 1 = measured, real, as it was given."""
        return self.weights

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(x)


class Pad(LinearOperator):
    """Zero-pad the trailing dimensions; the centre entry n//2 stays the centre entry.

    Parameters
    ----------
    domain
        Space of x.
    shape
        Padded sizes of the last ``len(shape)`` dimensions.

    Raises
    ------
    ValueError
        If a padded size is smaller than the original, or there are more sizes than dimensions.
    """

    def __init__(self, domain: Space, shape: Sequence[int]) -> None:
        inner_shape, outer_shape = domain.shape[len(domain.shape) - len(shape) :], tuple(shape)
        if len(shape) > domain.n_dims or any(n > m for n, m in zip(inner_shape, outer_shape, strict=True)):
            raise ValueError(
                f"Cannot pad {domain.shape} to {outer_shape}; every padded size must be at least as large."
            )
        super().__init__(domain, Space((*domain.shape[: -len(shape)], *outer_shape), domain.field, domain.axes))
        self._window = centred_window(inner_shape, outer_shape)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        widths: list[int] = []
        for inside, size in zip(reversed(self._window), reversed(self.codomain.shape), strict=False):
            widths += [inside.start, size - inside.stop]
        return torch.nn.functional.pad(x, widths)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        index: tuple[Any, ...] = (..., *self._window)
        return y[index]

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def _norm(self) -> torch.Tensor:
        return torch.ones(())


class Crop(LinearOperator):
    """Cut out the central part of the trailing dimensions; the centre entry n//2 stays the centre entry.

    Parameters
    ----------
    domain
        Space of x.
    shape
        Cropped sizes of the last ``len(shape)`` dimensions.

    Raises
    ------
    ValueError
        If a cropped size is larger than the original, or there are more sizes than dimensions.
    """

    def __init__(self, domain: Space, shape: Sequence[int]) -> None:
        outer_shape, inner_shape = domain.shape[len(domain.shape) - len(shape) :], tuple(shape)
        if len(shape) > domain.n_dims or any(n > m for n, m in zip(inner_shape, outer_shape, strict=True)):
            raise ValueError(
                f"Cannot crop {domain.shape} to {inner_shape}; every cropped size must be at most as large."
            )
        codomain = Space((*domain.shape[: -len(shape)], *inner_shape), domain.field, domain.axes)
        super().__init__(domain, codomain)
        self._pad = Pad(codomain, outer_shape)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._pad._adjoint(x)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._pad._forward(y)

    def _norm(self) -> torch.Tensor:
        return torch.ones(())


class FiniteDifference(LinearOperator):
    """Forward differences along the trailing dimensions: (G x)_d = x_{n+1} − x_n along dimension d.

    Parameters
    ----------
    domain
        Space of x.
    n_dims
        Differences are taken along the last ``n_dims`` dimensions; by default along all.
    boundary
        ``"circular"``: the last difference wraps around; ``"neumann"``: it is zero.

    Raises
    ------
    ValueError
        If ``n_dims`` is not between 1 and the number of dimensions, or the boundary is unknown.

    Notes
    -----
    The codomain is ``(n_dims, *domain.shape)``, with axis name ``"direction"`` in front; direction i belongs to
    dimension ``i − n_dims``.
    """

    def __init__(
        self, domain: Space, n_dims: int | None = None, boundary: Literal["circular", "neumann"] = "neumann"
    ) -> None:
        n_dims = domain.n_dims if n_dims is None else n_dims
        if not 1 <= n_dims <= domain.n_dims:
            raise ValueError(f"n_dims is {n_dims}; expected 1 to {domain.n_dims} for shape {domain.shape}.")
        if boundary not in ("circular", "neumann"):
            raise ValueError(f"boundary is {boundary!r}; expected 'circular' or 'neumann'.")
        axes = None if domain.axes is None else ("direction", *domain.axes)
        super().__init__(domain, Space((n_dims, *domain.shape), domain.field, axes))
        self.boundary = boundary
        self._dims = tuple(range(-n_dims, 0))

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.boundary == "circular":
            differences = [x.roll(-1, dims=d) - x for d in self._dims]
        else:
            differences = [torch.cat((x.diff(dim=d), torch.zeros_like(x.narrow(d, 0, 1))), dim=d) for d in self._dims]
        return torch.stack(differences, dim=-self.codomain.n_dims)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        parts = y.unbind(dim=-self.codomain.n_dims)
        return total([self._adjoint_along(part, d) for part, d in zip(parts, self._dims, strict=True)])

    def _norm(self) -> torch.Tensor:
        # The eigenvalues of a one-dimensional GᴴG are 4 sin²(ω/2) on the grid of its cosine or Fourier basis.
        sizes = [self.domain.shape[d] for d in self._dims]
        if self.boundary == "circular":
            frequencies = [math.pi * (n // 2) / n for n in sizes]
        else:
            frequencies = [math.pi * (n - 1) / (2 * n) for n in sizes]
        return torch.tensor(2 * math.sqrt(sum(math.sin(w) ** 2 for w in frequencies)), dtype=torch.float64)

    def _adjoint_along(self, y: torch.Tensor, dim: int) -> torch.Tensor:
        if self.boundary == "circular":
            return y.roll(1, dims=dim) - y
        zero = torch.zeros_like(y.narrow(dim, 0, 1))
        inside = y.narrow(dim, 0, y.shape[dim] - 1)
        return torch.cat((zero, inside), dim=dim) - torch.cat((inside, zero), dim=dim)


def centred_window(inner_shape: Sequence[int], outer_shape: Sequence[int]) -> tuple[slice, ...]:
    """Where a smaller array lies in a larger one when their centre entries n//2 coincide.

    Parameters
    ----------
    inner_shape, outer_shape
        Sizes, as many of one as of the other, the inner ones not larger.

    Returns
    -------
    tuple of slice
        One slice per dimension.

    Examples
    --------
    >>> centred_window((2, 3), (5, 4))
    (slice(1, 3, None), slice(1, 4, None))
    """
    starts = [m // 2 - n // 2 for n, m in zip(inner_shape, outer_shape, strict=True)]
    return tuple(slice(start, start + n) for start, n in zip(starts, inner_shape, strict=True))


def _check_broadcasts(tensor: torch.Tensor, domain: Space, what: str) -> None:
    trailing = tuple(tensor.shape[max(tensor.ndim - domain.n_dims, 0) :])
    try:
        fits = torch.broadcast_shapes(trailing, domain.shape) == domain.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"{what} has shape {tuple(tensor.shape)}, which does not broadcast to {domain.shape}.")


def _squared_magnitude(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.conj() * tensor).real if tensor.is_complex() else tensor * tensor
