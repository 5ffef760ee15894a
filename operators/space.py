"""Vector spaces of tensors: what an operator accepts and what it returns."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

Field = Literal["real", "complex"]


@dataclass(frozen=True, slots=True)
class Space:
    """A space of real or complex tensors with a fixed trailing shape; leading dimensions are batch.

    Parameters
    ----------
    shape
        Trailing shape of every element.
    field
        ``"real"`` or ``"complex"``.
    axes
        Names of the trailing axes, such as ``("coil", "ky", "kx")``; ``None`` where they carry no meaning.

    Raises
    ------
    ValueError
        If a size is not positive, or the number of axes differs from the number of sizes.

    Examples
    --------
    >>> image = Space((4, 5), "complex", ("y", "x"))
    >>> image.size
    20
    >>> image.check(torch.zeros(3, 4, 5, dtype=torch.complex64), "image")
    >>> image.batch_shape(torch.zeros(3, 4, 5))
    torch.Size([3])
    """

    shape: tuple[int, ...]
    field: Field = "complex"
    axes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if any(n < 1 for n in self.shape):
            raise ValueError(f"Space shape is {self.shape}; every size must be at least 1.")
        if self.field not in ("real", "complex"):
            raise ValueError(f"Space field is {self.field!r}; it must be 'real' or 'complex'.")
        if self.axes is not None:
            object.__setattr__(self, "axes", tuple(self.axes))
            if len(self.axes) != len(self.shape):
                raise ValueError(
                    f"Space has {len(self.shape)} sizes {self.shape} but {len(self.axes)} axes {self.axes}."
                )

    @property
    def n_dims(self) -> int:
        """Number of trailing dimensions that belong to an element."""
        return len(self.shape)

    @property
    def dims(self) -> tuple[int, ...]:
        """The trailing dimensions as negative indices."""
        return tuple(range(-len(self.shape), 0))

    @property
    def size(self) -> int:
        """Number of entries of one element."""
        return math.prod(self.shape)

    def batch_shape(self, x: torch.Tensor) -> torch.Size:
        """Leading shape of ``x``, of shape ``(*batch, *shape)``."""
        return x.shape[: x.ndim - self.n_dims]

    def matches(self, other: "Space") -> bool:
        """Whether elements of one space are elements of the other; axes are compared where both name them."""
        same_axes = self.axes is None or other.axes is None or self.axes == other.axes
        return self.shape == other.shape and self.field == other.field and same_axes

    def check(self, x: torch.Tensor, what: str) -> None:
        """Raise unless ``x`` is an element or a batch of elements.

        Parameters
        ----------
        x
            Anything; a tensor ``(*batch, *shape)`` of this field passes.
        what
            What ``x`` is, for the message.

        Raises
        ------
        TypeError
            If ``x`` is no tensor or of the other field.
        ValueError
            If the trailing shape differs.
        """
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{what} is a {type(x).__name__}; expected a torch.Tensor, convert it first.")
        if self.field == "complex" and not x.is_complex():
            raise TypeError(f"{what} is {x.dtype}; expected a complex tensor, convert it with torch.complex(x, 0 * x).")
        if self.field == "real" and not x.is_floating_point():
            raise TypeError(f"{what} is {x.dtype}; expected a real floating-point tensor, convert it first.")
        if x.ndim < self.n_dims or tuple(x.shape[x.ndim - self.n_dims :]) != self.shape:
            named = f" {self.axes}" if self.axes else ""
            raise ValueError(
                f"{what} has shape {tuple(x.shape)}; expected (*batch, {', '.join(map(str, self.shape))}){named}."
            )

    def randn(
        self,
        *batch: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> torch.Tensor:
        """Draw standard normal elements.

        Parameters
        ----------
        *batch
            Leading shape.
        generator
            Source of randomness; give one, or the global generator is advanced.
        dtype
            Real precision, ``torch.float32`` or ``torch.float64``; a complex space gives the complex dtype of it.
        device
            Where the tensor lives.

        Returns
        -------
        torch.Tensor
            ``(*batch, *shape)``; complex elements have unit variance, split over both parts.
        """
        out = dtype.to_complex() if self.field == "complex" else dtype
        return torch.randn((*batch, *self.shape), generator=generator, dtype=out, device=device)


def inner(a: torch.Tensor, b: torch.Tensor, n_dims: int) -> torch.Tensor:
    """Unweighted inner product Σ conj(a)·b over the trailing dimensions.

    Parameters
    ----------
    a, b
        Tensors ``(*batch, *shape)``, real or complex.
    n_dims
        Number of trailing dimensions to sum over.

    Returns
    -------
    torch.Tensor
        ``(*batch,)``, complex if one of the arguments is.
    """
    product = a.conj() * b
    return product.sum(dim=tuple(range(-n_dims, 0))) if n_dims else product
