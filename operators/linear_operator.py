"""Linear operators as differentiable layers: the base class and the algebra of operators."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn
from torch.autograd import forward_ad

from operators.solvers import largest_eigenvalue
from operators.space import Space


class LinearOperator(nn.Module, ABC):
    """A linear map between two spaces with its exact adjoint, differentiable in both directions.

    A subclass writes ``_forward`` and ``_adjoint`` (and ``_gram`` where AᴴA has a cheaper form). Users call
    ``A(x)``, ``A.adjoint(y)`` and ``A.gram(x)``, which check field and shape first. Leading dimensions are batch, and
    tensors of the operator (maps, masks) may carry leading batch dimensions of their own, which broadcast.

    The inner product is the unweighted ⟨a, b⟩ = Σ conj(a)·b, and the adjoint is exact with respect to it. Where the
    domain is real and the codomain complex, it is the real-linear adjoint: Re⟨A x, y⟩ = ⟨x, Aᴴy⟩.

    Parameters
    ----------
    domain
        Space of ``x`` in ``A(x)``.
    codomain
        Space of ``A(x)``.

    Attributes
    ----------
    gradient
        ``"autograd"`` where torch differentiates the hooks; ``"adjoint"`` where it cannot see them, or where applying
        the adjoint is cheaper. Where a tensor of the operator itself asks for a gradient, torch always differentiates
        the hooks.
    """

    gradient: ClassVar[Literal["autograd", "adjoint"]] = "autograd"

    def __init__(self, domain: Space, codomain: Space) -> None:
        super().__init__()
        self.domain = domain
        self.codomain = codomain

    @abstractmethod
    def _forward(self, x: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def _adjoint(self, y: torch.Tensor) -> torch.Tensor: ...

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        return self._adjoint(self._forward(x))

    def _batch_shape(self) -> torch.Size:
        return torch.Size()

    @property
    def batch_shape(self) -> torch.Size:
        """Leading batch shape of the operator's own tensors; empty for one operator for all samples."""
        return self._batch_shape()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the operator: ``A(x)``.

        Parameters
        ----------
        x
            Element or batch of the domain, ``(*batch, *domain.shape)``.

        Returns
        -------
        torch.Tensor
            ``(*batch, *codomain.shape)``.

        Raises
        ------
        TypeError
            If ``x`` is no tensor or of the wrong field.
        ValueError
            If the trailing shape is not the domain's, or the batch does not broadcast with the operator's own.
        """
        return self._checked("forward", self.domain, x)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """Apply the exact adjoint: Aᴴy.

        Parameters
        ----------
        y
            Element or batch of the codomain, ``(*batch, *codomain.shape)``.

        Returns
        -------
        torch.Tensor
            ``(*batch, *domain.shape)``.

        Raises
        ------
        TypeError, ValueError
            As for ``A(x)``.
        """
        return self._checked("adjoint", self.codomain, y)

    def gram(self, x: torch.Tensor) -> torch.Tensor:
        """Apply AᴴA, in its cheapest form.

        Parameters
        ----------
        x
            Element or batch of the domain, ``(*batch, *domain.shape)``.

        Returns
        -------
        torch.Tensor
            ``(*batch, *domain.shape)``.

        Raises
        ------
        TypeError, ValueError
            As for ``A(x)``.
        """
        return self._checked("gram", self.domain, x)

    def norm(self) -> torch.Tensor:
        """Spectral norm ‖A‖₂ (never squared), one per operator in the operator's batch.

        Returns
        -------
        torch.Tensor
            Real, of shape ``batch_shape``, detached.
        """
        with torch.no_grad():
            return self._norm()

    def _norm(self) -> torch.Tensor:
        own = chain(self.parameters(), self.buffers())
        tensors = [t for t in own if t.ndim and (t.is_floating_point() or t.is_complex())]
        precisions = {t.dtype.to_real() for t in tensors} or {torch.float64}
        precision = max(precisions, key=lambda dtype: torch.finfo(dtype).bits)
        device = tensors[0].device if tensors else None
        x = self.domain.randn(*self.batch_shape, generator=torch.Generator().manual_seed(0), dtype=precision).to(device)
        rtol = 1e-12 if precision == torch.float64 else 1e-6
        largest = largest_eigenvalue(self._gram, x, batch_dims=len(self.batch_shape), rtol=rtol).value
        return largest.clamp_min(0).sqrt()

    @property
    def H(self) -> "LinearOperator":
        """The adjoint as an operator."""
        return Adjoint(self)

    def to_precision(self, precision: torch.dtype) -> Self:
        """Convert all real *and complex* tensors in place; ``.double()`` leaves complex ones as they are.

        Parameters
        ----------
        precision
            ``torch.float32`` or ``torch.float64``; complex tensors get the complex dtype of it.
        """
        if not precision.is_floating_point:
            raise TypeError(f"precision is {precision}; expected a real floating-point dtype such as torch.float64.")

        def convert(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.is_complex():
                return tensor.to(precision.to_complex())
            return tensor.to(precision) if tensor.is_floating_point() else tensor

        return self._apply(convert)

    def extra_repr(self) -> str:
        """Spaces, for ``repr``."""
        return f"{self.domain.field} {self.domain.shape} → {self.codomain.field} {self.codomain.shape}"

    def _fuse_under(self, outer: "LinearOperator") -> "LinearOperator | None":
        """``outer @ self`` as one cheaper operator, or ``None`` where there is none."""
        return None

    def __matmul__(self, other: "LinearOperator") -> "LinearOperator":
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return compose((*_factors(self), *_factors(other)))

    def __add__(self, other: "LinearOperator") -> "LinearOperator":
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return Sum((self, other))

    def __rmul__(self, scalar: float | complex | torch.Tensor) -> "LinearOperator":
        return Scaled(scalar, self)

    def __neg__(self) -> "LinearOperator":
        return Scaled(-1.0, self)

    def __sub__(self, other: "LinearOperator") -> "LinearOperator":
        return self + (-other)

    def _checked(self, direction: "Direction", space: Space, x: torch.Tensor) -> torch.Tensor:
        space.check(x, f"{type(self).__name__} {direction} input")
        batch, own = space.batch_shape(x), self.batch_shape
        if own and own != batch:
            try:
                torch.broadcast_shapes(batch, own)
            except RuntimeError:
                raise ValueError(
                    f"{type(self).__name__} {direction} input has batch shape {tuple(batch)}, but the operator's own "
                    f"tensors have {tuple(own)}; they must broadcast."
                ) from None
        return self._differentiably(direction, x)

    def _differentiably(self, direction: "Direction", x: torch.Tensor) -> torch.Tensor:
        if self.gradient == "adjoint" and not self._learns():
            return apply_with_adjoint_gradient(self, direction, x)
        hook: Callable[[torch.Tensor], torch.Tensor] = getattr(self, f"_{direction}")
        return hook(x)

    def _learns(self) -> bool:
        return any(asks_for_gradient(t) for t in chain(self.parameters(), self.buffers()))


Direction = Literal["forward", "adjoint", "gram"]
_TRANSPOSED: dict[Direction, Direction] = {"forward": "adjoint", "adjoint": "forward", "gram": "gram"}


class _ApplyHook(torch.autograd.Function):
    """Apply a hook of an operator; its gradient is the transposed hook, applied through this same Function.

    Nothing is stored but the operator, so memory is that of the result alone, and double backward, forward mode
    and vmap hold because every derivative is again a call of this Function.
    """

    @staticmethod
    def forward(x: torch.Tensor, operator: LinearOperator, direction: Direction) -> torch.Tensor:
        hook: Callable[[torch.Tensor], torch.Tensor] = getattr(operator, f"_{direction}")
        return hook(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.input_shape, ctx.operator, ctx.direction = inputs[0].shape, inputs[1], inputs[2]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient = apply_with_adjoint_gradient(ctx.operator, _TRANSPOSED[ctx.direction], gradients[0])
        return gradient.sum_to_size(ctx.input_shape), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> torch.Tensor:
        return apply_with_adjoint_gradient(ctx.operator, ctx.direction, tangents[0])

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: torch.Tensor, operator: LinearOperator, direction: Direction
    ) -> tuple[torch.Tensor, int]:
        position = in_dims[0]
        assert position is not None
        space = operator.codomain if direction == "adjoint" else operator.domain
        x = x.movedim(position, 0)
        missing = len(operator.batch_shape) - (x.ndim - 1 - space.n_dims)
        for _ in range(max(missing, 0)):
            x = x.unsqueeze(1)
        return apply_with_adjoint_gradient(operator, direction, x), 0


# torch asks for this signature at every call, and working it out costs more than a small transform.
_ApplyHook.forward.__signature__ = inspect.signature(_ApplyHook.forward)  # type: ignore[attr-defined]


def apply_with_adjoint_gradient(operator: LinearOperator, direction: Direction, x: torch.Tensor) -> torch.Tensor:
    """Apply a hook so that its derivative is the transposed hook, whatever the hook does inside.

    Parameters
    ----------
    operator
        Its ``_forward``, ``_adjoint`` or self-adjoint ``_gram`` is applied.
    direction
        Which of them.
    x
        Checked input, ``(*batch, *shape)``.

    Returns
    -------
    torch.Tensor
        The hook's result; no gradient flows to tensors of the operator.
    """
    result: torch.Tensor = _ApplyHook.apply(x, operator, direction)
    return result


class Adjoint(LinearOperator):
    """The adjoint Aᴴ of an operator, as an operator.

    Parameters
    ----------
    operator
        A; its own ``.H`` gives it back.
    """

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator.codomain, operator.domain)
        if operator.domain.field == "real" and operator.codomain.field == "complex":
            raise TypeError(
                f"{type(operator).__name__} maps real to complex, so its adjoint is linear over the reals only and "
                "is no operator between these spaces; call .adjoint(y) instead of .H."
            )
        self.operator = operator

    def _batch_shape(self) -> torch.Size:
        return self.operator.batch_shape

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operator._differentiably("adjoint", x)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.operator._differentiably("forward", y)

    def _norm(self) -> torch.Tensor:
        return self.operator._norm()

    @property
    def H(self) -> LinearOperator:
        """The operator itself."""
        return self.operator


class Composition(LinearOperator):
    """The product A₁ A₂ … Aₙ; the last factor acts first.

    Build it with ``A @ B``, which also replaces neighbours by a cheaper operator where one exists.

    Parameters
    ----------
    factors
        Operators from left to right; the domain of each is the codomain of the next.

    Raises
    ------
    ValueError
        If two neighbours do not fit; the message names both.
    """

    def __init__(self, factors: Sequence[LinearOperator]) -> None:
        for outer, inner_ in pairwise(factors):
            if not outer.domain.matches(inner_.codomain):
                raise ValueError(
                    f"{type(outer).__name__} expects {outer.domain}, but {type(inner_).__name__} returns "
                    f"{inner_.codomain}; they cannot be composed."
                )
        super().__init__(factors[-1].domain, factors[0].codomain)
        self.factors = nn.ModuleList(factors)

    def _batch_shape(self) -> torch.Size:
        return torch.broadcast_shapes(*(f.batch_shape for f in _factors(self)))

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        for factor in reversed(_factors(self)):
            x = factor._differentiably("forward", x)
        return x

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        for factor in _factors(self):
            y = factor._differentiably("adjoint", y)
        return y

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        outer, *inner_ = _factors(self)
        for factor in reversed(inner_):
            x = factor._differentiably("forward", x)
        x = outer._differentiably("gram", x)
        for factor in inner_:
            x = factor._differentiably("adjoint", x)
        return x


class Sum(LinearOperator):
    """The sum A₁ + A₂ + … of operators between the same spaces; build it with ``A + B``.

    Parameters
    ----------
    terms
        At least one operator.

    Raises
    ------
    ValueError
        If the spaces differ; the message names both operators.
    """

    def __init__(self, terms: Sequence[LinearOperator]) -> None:
        _check_same_spaces(terms, "added")
        super().__init__(terms[0].domain, terms[0].codomain)
        self.terms = nn.ModuleList(terms)

    def _batch_shape(self) -> torch.Size:
        return torch.broadcast_shapes(*(t.batch_shape for t in self._terms))

    @property
    def _terms(self) -> list[LinearOperator]:
        return [t for t in self.terms if isinstance(t, LinearOperator)]

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return total([t._differentiably("forward", x) for t in self._terms])

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return total([t._differentiably("adjoint", y) for t in self._terms])


class Scaled(LinearOperator):
    """A scalar times an operator; build it with ``2.0 * A``.

    Parameters
    ----------
    scalar
        A number, or a tensor of shape ``()``; a ``nn.Parameter`` is learned.
    operator
        A.

    Raises
    ------
    ValueError
        If the scalar is a tensor with more than one entry.
    TypeError
        If the scalar is complex and the codomain real.
    """

    scalar: torch.Tensor

    def __init__(self, scalar: float | complex | torch.Tensor, operator: LinearOperator) -> None:
        super().__init__(operator.domain, operator.codomain)
        if not isinstance(scalar, torch.Tensor):
            scalar = torch.tensor(scalar, dtype=torch.complex128 if isinstance(scalar, complex) else torch.float64)
        if scalar.ndim:
            raise ValueError(f"scalar has shape {tuple(scalar.shape)}; expected a number, use Diagonal for weights.")
        if scalar.is_complex() and operator.codomain.field == "real":
            raise TypeError(f"A complex scalar cannot scale {type(operator).__name__}, whose codomain is real.")
        register_tensor(self, "scalar", scalar)
        self.operator = operator

    def _batch_shape(self) -> torch.Size:
        return self.operator.batch_shape

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scalar * self.operator._differentiably("forward", x)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.operator._differentiably("adjoint", self.scalar.conj() * y)

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        return (self.scalar.conj() * self.scalar).real * self.operator._differentiably("gram", x)

    def _norm(self) -> torch.Tensor:
        return self.scalar.abs() * self.operator._norm()


class Stack(LinearOperator):
    """Operators on the same domain, their results stacked along a new leading axis of the codomain.

    Parameters
    ----------
    operators
        At least one operator; all with the same domain and codomain.

    Raises
    ------
    ValueError
        If the spaces differ; the message names both operators.
    """

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        _check_same_spaces(operators, "stacked")
        codomain = operators[0].codomain
        axes = None if codomain.axes is None else ("operator", *codomain.axes)
        super().__init__(operators[0].domain, Space((len(operators), *codomain.shape), codomain.field, axes))
        self.operators = nn.ModuleList(operators)

    def _batch_shape(self) -> torch.Size:
        return torch.broadcast_shapes(*(o.batch_shape for o in self._operators))

    @property
    def _operators(self) -> list[LinearOperator]:
        return [o for o in self.operators if isinstance(o, LinearOperator)]

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = torch.broadcast_tensors(*(o._differentiably("forward", x) for o in self._operators))
        return torch.stack(parts, dim=-self.codomain.n_dims)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        parts = y.unbind(dim=-self.codomain.n_dims)
        return total([o._differentiably("adjoint", part) for o, part in zip(self._operators, parts, strict=True)])

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        return total([o._differentiably("gram", x) for o in self._operators])


def compose(factors: Sequence[LinearOperator]) -> LinearOperator:
    """Multiply operators from left to right, fusing neighbours into a cheaper operator where one exists.

    Parameters
    ----------
    factors
        At least one operator.

    Returns
    -------
    LinearOperator
        A single operator where everything fused, else a `Composition`.

    Raises
    ------
    ValueError
        If two neighbours do not fit.
    """
    checked = Composition(factors) if len(factors) > 1 else None
    fused: list[LinearOperator] = []
    for factor in reversed(factors):
        merged = fused[-1]._fuse_under(factor) if fused else None
        if merged is None:
            fused.append(factor)
        else:
            fused[-1] = merged
    if len(fused) == len(factors) and checked is not None:
        return checked
    return fused[0] if len(fused) == 1 else Composition(fused[::-1])


def stack(operators: Sequence[LinearOperator]) -> Stack:
    """Stack operators on the same domain; see `Stack`."""
    return Stack(operators)


def register_tensor(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Register a tensor under ``name``: as a parameter if it is one, else as a buffer of the state."""
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)


def broadcast_batch(a: torch.Size, b: torch.Size) -> torch.Size:
    """Batch shapes broadcast against each other; quick in the usual case that one is empty or both are equal."""
    if not a or a == b:
        return b
    return a if not b else torch.broadcast_shapes(a, b)


def asks_for_gradient(tensor: torch.Tensor) -> bool:
    """Whether reverse or forward mode wants a derivative with respect to a tensor of an operator."""
    return tensor.requires_grad or forward_ad.unpack_dual(tensor).tangent is not None


def _factors(operator: LinearOperator) -> list[LinearOperator]:
    if isinstance(operator, Composition):
        return [f for f in operator.factors if isinstance(f, LinearOperator)]
    return [operator]


def total(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of at least one tensor."""
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result


def _check_same_spaces(operators: Sequence[LinearOperator], verb: str) -> None:
    if not operators:
        raise ValueError(f"No operator was given; at least one is needed to be {verb}.")
    first = operators[0]
    for other in operators[1:]:
        if not first.domain.matches(other.domain) or not first.codomain.matches(other.codomain):
            raise ValueError(
                f"{type(first).__name__} maps {first.domain} to {first.codomain}, but {type(other).__name__} maps "
                f"{other.domain} to {other.codomain}; only operators between the same spaces can be {verb}."
            )
