"""The contract of every linear operator: plain functions that raise AssertionError where an operator breaks it.

Each takes a freshly built operator in double precision and a generator. The contract suite runs them over the registry
of cases; the planted bugs run them over operators that are wrong on purpose.
"""

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from operators.linear_operator import Direction, LinearOperator, stack
from operators.space import Space, inner
from tests.reference.matrices import textbook_matrix

Contract = Callable[[LinearOperator, torch.Generator], None]

BATCHES: tuple[tuple[int, ...], ...] = ((), (2,), (2, 3))
DIRECTIONS: tuple[Direction, ...] = ("forward", "adjoint", "gram")
RTOL = 1e-10

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch warns of itself when forward mode is first used
    torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))


def spaces_of(operator: LinearOperator, direction: Direction) -> tuple[Space, Space]:
    """What a door of the operator accepts and returns."""
    source = operator.codomain if direction == "adjoint" else operator.domain
    target = operator.codomain if direction == "forward" else operator.domain
    return source, target


def draw(space: Space, *batch: int, generator: torch.Generator) -> torch.Tensor:
    return space.randn(*batch, generator=generator, dtype=torch.float64)


def doors(operator: LinearOperator) -> Iterator[tuple[Direction, Callable[[torch.Tensor], torch.Tensor], Space, Space]]:
    """Every door with its name, the space that it accepts and the space that it returns."""
    for direction in DIRECTIONS:
        yield direction, getattr(operator, direction), *spaces_of(operator, direction)


def dense_matrix(operator: LinearOperator, direction: Direction = "forward") -> torch.Tensor:
    """Matrix of an operator from what it does to the basis vectors, ``(*batch_shape, rows, columns)``."""
    source, target = spaces_of(operator, direction)
    own = operator.batch_shape
    dtype = torch.complex128 if source.field == "complex" else torch.float64
    basis = torch.eye(source.size, dtype=dtype).reshape(source.size, *(1,) * len(own), *source.shape)
    with torch.no_grad():
        images = getattr(operator, direction)(basis.expand(source.size, *own, *source.shape))
    return images.reshape(source.size, *own, target.size).movedim(0, -1)


def assert_same(actual: torch.Tensor, expected: torch.Tensor, what: str, rtol: float = RTOL) -> None:
    """Compare field, precision, shape and values, the latter relative to the largest expected value."""
    actual, expected = actual.detach(), expected.detach()
    assert actual.dtype == expected.dtype, f"{what} is {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{what} has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    error = float((actual - expected).abs().max()) if expected.numel() else 0.0
    assert error <= rtol * max(scale, 1e-300) or error <= 1e-14, f"{what} is off by {error:.1e} of {scale:.1e}"


def raises(error: type[Exception], call: Callable[[], object], *parts: str) -> None:
    """Assert that ``call`` raises this type with a message that holds all ``parts``."""
    with pytest.raises(error) as caught:
        call()
    missing = [part for part in parts if part not in str(caught.value)]
    assert not missing, f"the message {str(caught.value)!r} does not say {missing}"


def check_textbook(operator: LinearOperator, generator: torch.Generator) -> None:
    """The operator is the matrix that its definition says."""
    expected = textbook_matrix(operator)
    actual = dense_matrix(operator)
    complex_ = actual.is_complex() or expected.is_complex()
    dtype = torch.complex128 if complex_ else torch.float64
    expected = expected.to(dtype).expand(*operator.batch_shape, *expected.shape[-2:])
    assert_same(actual.to(dtype), expected, "the matrix")


def check_spaces(operator: LinearOperator, generator: torch.Generator) -> None:
    """Every door returns the field, the precision and the shape that its space says, broadcast over the batch."""
    for name, door, source, target in doors(operator):
        for batch in _batches(operator):
            result = door(draw(source, *batch, generator=generator))
            target.check(result, f"{name} output")
            expected = torch.complex128 if target.field == "complex" else torch.float64
            assert result.dtype == expected, f"{name} returns {result.dtype}, expected {expected}"
            whole = torch.broadcast_shapes(batch, operator.batch_shape)
            assert target.batch_shape(result) == whole, f"{name} returns batch {target.batch_shape(result)} for {batch}"


def check_adjoint(operator: LinearOperator, generator: torch.Generator) -> None:
    """⟨A x, y⟩ = ⟨x, Aᴴy⟩, per sample; of both sides the real part where one space is real."""
    domain, codomain = operator.domain, operator.codomain
    for batch in _batches(operator):
        whole = torch.broadcast_shapes(batch, operator.batch_shape)
        x, y = draw(domain, *whole, generator=generator), draw(codomain, *whole, generator=generator)
        image, back = operator(x).detach(), operator.adjoint(y).detach()
        left, right = inner(image, y, codomain.n_dims), inner(x, back, domain.n_dims)
        if domain.field == "real":
            left, right = left.real, right.real
        size = _size(image, codomain) * _size(y, codomain) + _size(x, domain) * _size(back, domain)
        error = float(((left - right).abs() / size.clamp_min(1e-300)).max())
        assert error < 1e-12, f"⟨Ax, y⟩ and ⟨x, Aᴴy⟩ differ by {error:.1e} of the norms, for batch {batch}"


def check_linear(operator: LinearOperator, generator: torch.Generator) -> None:
    """Every door is linear: over the complex numbers where both its spaces are complex, else over the reals."""
    real = "real" in (operator.domain.field, operator.codomain.field)
    scalar = -1.7 if real else -1.7 + 0.6j
    for name, door, source, _ in doors(operator):
        batch = operator.batch_shape
        a, b = draw(source, *batch, generator=generator), draw(source, *batch, generator=generator)
        assert_same(door(scalar * a + b), scalar * door(a) + door(b), f"{name} of a combination")
        assert not door(torch.zeros_like(a)).any(), f"{name} of zero is not zero"


def check_batch_independence(operator: LinearOperator, generator: torch.Generator) -> None:
    """A sample's result does not depend on the samples beside it."""
    for name, door, source, target in doors(operator):
        batch = (3, *operator.batch_shape)
        x = draw(source, *batch, generator=generator)
        beside = x.clone()
        beside[1:] = 1e3 * draw(source, 2, *operator.batch_shape, generator=generator) + 7
        assert_same(door(beside)[0], door(x)[0], f"{name} of a sample beside larger ones", rtol=1e-12)
        assert_same(torch.stack([door(part) for part in x]), door(x), f"{name} sample by sample", rtol=1e-12)
        own = operator.batch_shape.numel()
        flat = x[0].reshape(own, *source.shape)
        for sample in range(own if own > 1 else 0):
            alone = torch.zeros_like(flat)
            alone[sample] = flat[sample]
            result = door(alone.reshape(x[0].shape)).reshape(own, *target.shape)[sample]
            assert_same(result, door(x[0]).reshape(own, *target.shape)[sample], f"{name} of sample {sample} alone")


def check_gram(operator: LinearOperator, generator: torch.Generator) -> None:
    """The gram is AᴴA, whatever shortcut it takes."""
    for batch in _batches(operator):
        x = draw(operator.domain, *batch, generator=generator)
        assert_same(operator.gram(x), operator.adjoint(operator(x)), "the gram")


def check_gradients(operator: LinearOperator, generator: torch.Generator) -> None:
    """First and second derivatives, in reverse and forward mode, agree with finite differences."""
    for name, door, source, target in doors(operator):
        x = draw(source, *operator.batch_shape, generator=generator).requires_grad_()
        y = draw(target, *operator.batch_shape, generator=generator).requires_grad_()
        _numerically(lambda: gradcheck(door, (x,), check_forward_ad=True, fast_mode=True), f"{name} gradient")  # noqa: B023
        _numerically(lambda: gradgradcheck(door, (x,), (y,), fast_mode=True), f"{name} second gradient")  # noqa: B023


def check_vjp(operator: LinearOperator, generator: torch.Generator) -> None:
    """The gradient of each door is its transposed door, at every order, also where the operator's batch broadcasts."""
    transposed: dict[Direction, Direction] = {"forward": "adjoint", "adjoint": "forward", "gram": "gram"}
    for name, door, source, target in doors(operator):
        x = draw(source, *operator.batch_shape, generator=generator).requires_grad_()
        y = draw(target, *operator.batch_shape, generator=generator).requires_grad_()
        gradient = torch.autograd.grad(door(x), x, y, create_graph=True)[0]
        assert_same(gradient.detach(), getattr(operator, transposed[name])(y).detach(), f"vjp of {name}")
        again = torch.autograd.grad(gradient, y, x.detach())[0]
        assert_same(again, door(x).detach(), f"vjp of the vjp of {name}")
        single = draw(source, generator=generator).requires_grad_()
        summed = torch.autograd.grad(door(single), single, y.detach())[0]
        whole = gradient.detach().sum_to_size(single.shape)
        assert_same(summed, whole, f"vjp of {name} for a broadcast sample")


def check_transforms(operator: LinearOperator, generator: torch.Generator) -> None:
    """``torch.func`` sees a linear map: its jvp is itself, and vmap, grad and their nesting work."""
    own = operator.batch_shape
    for name, door, source, _ in doors(operator):
        x, t = draw(source, *own, generator=generator), draw(source, *own, generator=generator)
        value, tangent = torch.func.jvp(door, (x,), (t,))
        assert_same(value, door(x), f"value of the jvp of {name}")
        assert_same(tangent, door(t), f"jvp of {name}")
        many = draw(source, 3, *own, generator=generator)
        assert_same(torch.func.vmap(door)(many), door(many), f"vmap of {name}")
        assert_same(torch.func.vmap(door, in_dims=-1)(many.movedim(0, -1)), door(many), f"vmap of {name}, last axis")
        single = draw(source, 3, generator=generator)
        expected = torch.stack([door(part) for part in single])
        assert_same(torch.func.vmap(door)(single), expected, f"vmap of {name} over samples without batch")

        def energy(part: torch.Tensor, door: Callable[[torch.Tensor], torch.Tensor] = door) -> torch.Tensor:
            return door(part).abs().square().sum()

        expected = torch.stack([torch.func.grad(energy)(part) for part in many])
        assert_same(torch.func.vmap(torch.func.grad(energy))(many), expected, f"vmap of the gradient of {name}")


def check_parameters(operator: LinearOperator, generator: torch.Generator) -> None:
    """Gradients reach every parameter through every door, and are right."""
    names = [name for name, _ in operator.named_parameters()]
    values = [parameter.detach().clone().requires_grad_() for parameter in operator.parameters()]
    for direction, door, source, _ in doors(operator):
        x = draw(source, *operator.batch_shape, generator=generator)
        if not names:
            assert not door(x).requires_grad, f"{direction} asks for a gradient, but the operator learns nothing"
            continue
        result = door(x)
        assert result.requires_grad, f"{direction} is cut off from the parameters"
        parameters = list(operator.parameters())
        gradients = torch.autograd.grad(result.abs().square().sum(), parameters, allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            assert gradient is not None, f"no gradient of {direction} reaches {name}"
            assert bool(gradient.isfinite().all() and gradient.abs().max() > 0), f"{direction} gradient of {name}"
        probe = _Door(operator, direction)

        def of(x: torch.Tensor, *parameters: torch.Tensor, probe: nn.Module = probe) -> torch.Tensor:
            given = {f"operator.{name}": value for name, value in zip(names, parameters, strict=True)}
            return torch.func.functional_call(probe, given, (x,))

        inputs = (x.requires_grad_(), *values)
        _numerically(
            lambda of=of, inputs=inputs: gradcheck(of, inputs, check_forward_ad=True, fast_mode=True),
            f"{direction} gradient of {names}",
        )
        upstream = of(*inputs).detach().clone().requires_grad_()
        _numerically(
            lambda of=of, inputs=inputs, upstream=upstream: gradgradcheck(of, inputs, (upstream,), fast_mode=True),
            f"{direction} second gradient of {names}",
        )
        constants = tuple(value.detach() for value in inputs)
        tangents = tuple(torch.randn(c.shape, dtype=c.dtype, generator=generator) for c in constants)
        expected = torch.autograd.functional.jvp(of, constants, tangents)[1]
        assert_same(torch.func.jvp(of, constants, tangents)[1], expected, f"jvp of {direction} in {names}")


def check_norm(operator: LinearOperator, generator: torch.Generator) -> None:
    """``norm()`` is the largest singular value of the dense matrix, for each operator in the batch."""
    matrix = dense_matrix(operator)
    if operator.domain.field == "real" and matrix.is_complex():
        matrix = torch.cat((matrix.real, matrix.imag), dim=-2)
    expected = torch.linalg.matrix_norm(matrix, 2)
    norm = operator.norm()
    assert not norm.requires_grad, "the norm is not detached"
    assert not norm.is_complex(), "the norm is complex"
    assert_same(norm.double(), expected, "the norm")


def check_input(operator: LinearOperator, generator: torch.Generator) -> None:
    """The wrong type, field, shape or batch is refused, by a message that names the operator and the values."""
    name = type(operator).__name__
    for direction, door, source, _ in doors(operator):
        x = draw(source, *operator.batch_shape, generator=generator)
        other = x.abs() if source.field == "complex" else torch.complex(x, x)
        raises(TypeError, lambda door=door, x=x: door(x.numpy()), name, direction, "ndarray")
        raises(TypeError, lambda door=door, other=other: door(other), name, direction, str(other.dtype))
        raises(TypeError, lambda door=door, x=x: door(torch.zeros_like(x, dtype=torch.int64)), name, "int64")
        for d in range(source.n_dims):
            wrong = list(source.shape)
            wrong[d] += 1
            bad = draw(Space(tuple(wrong), source.field), *operator.batch_shape, generator=generator)
            raises(ValueError, lambda door=door, bad=bad: door(bad), name, direction, str(tuple(bad.shape)))
        if source.n_dims:
            bad = x[(0,) * (x.ndim - source.n_dims + 1)]
            raises(ValueError, lambda door=door, bad=bad: door(bad), name, direction, str(tuple(bad.shape)))
        if any(n > 1 for n in operator.batch_shape):
            bad = draw(source, *(n + 1 for n in operator.batch_shape), generator=generator)
            own = str(tuple(operator.batch_shape))
            raises(ValueError, lambda door=door, bad=bad: door(bad), name, direction, own, "broadcast")


def check_copies(operator: LinearOperator, generator: torch.Generator) -> None:
    """A pickled and a deep-copied operator do the same, and share nothing with the original."""
    expected = _results(operator, generator)
    for what, twin in (("pickled", pickle.loads(pickle.dumps(operator))), ("copied", copy.deepcopy(operator))):
        assert type(twin) is type(operator), f"the {what} operator is a {type(twin).__name__}"
        assert (twin.domain, twin.codomain) == (operator.domain, operator.codomain), f"spaces of the {what} operator"
        _compare(_results(twin, generator), expected, f"the {what} operator", rtol=0)
        with torch.no_grad():
            for tensor in _tensors(twin):
                tensor.zero_()
        _compare(_results(operator, generator), expected, f"the original of the {what} operator", rtol=0)


def check_state(operator: LinearOperator, generator: torch.Generator) -> None:
    """``state_dict`` goes round strictly, and an operator that was used before does what the new state says."""
    used = copy.deepcopy(operator)
    _results(used, generator), used.norm()
    state = {name: tensor.clone() for name, tensor in operator.state_dict().items()}
    operator.load_state_dict(state, strict=True)
    _compare(_results(operator, generator), _results(used, generator), "the reloaded operator", rtol=0)
    flipped = {name: tensor.flip(tuple(range(tensor.ndim))) for name, tensor in state.items()}
    operator.load_state_dict(flipped, strict=True)
    used.load_state_dict(flipped, strict=True)
    _compare(_results(used, generator), _results(operator, generator), "the used operator with a new state", rtol=0)
    check_adjoint(used, generator)
    check_gram(used, generator)


def check_precision(operator: LinearOperator, generator: torch.Generator) -> None:
    """In single precision, every door stays in single precision and agrees with double precision to 1e-5."""
    _results(operator, generator)
    single = copy.deepcopy(operator)
    assert single.to_precision(torch.float32) is single, "to_precision does not return the operator"
    double = copy.deepcopy(single).to_precision(torch.float64)
    for name, door, source, target in doors(single):
        x = source.randn(*operator.batch_shape, generator=generator, dtype=torch.float32)
        wide = x.to(torch.complex128 if x.is_complex() else torch.float64)
        result = door(x)
        assert result.dtype == (torch.complex64 if target.field == "complex" else torch.float32), f"{name} widens"
        for what, reference in (("the original", operator), ("itself, widened", double)):
            expected = getattr(reference, name)(wide)
            assert_same(result.to(expected.dtype), expected, f"{name} in single precision, against {what}", rtol=1e-5)
    assert_same(single.norm().double(), operator.norm().double(), "the norm in single precision", rtol=1e-4)


def check_purity(operator: LinearOperator, generator: torch.Generator) -> None:
    """Applying changes nothing: not the input, the operator's state, global randomness or the default precision."""
    randomness, precision = torch.get_rng_state(), torch.get_default_dtype()
    state = {name: tensor.clone() for name, tensor in operator.state_dict().items()}
    for name, door, source, _ in doors(operator):
        x = draw(source, *operator.batch_shape, generator=generator)
        before, version = x.clone(), x._version
        with torch.no_grad():
            first = door(x).clone()
            assert torch.equal(door(x), first), f"{name} gives another result the second time"
        assert x._version == version, f"{name} writes into its input"
        assert torch.equal(x, before), f"{name} changes its input"
    operator.norm(), repr(operator)
    assert torch.equal(torch.get_rng_state(), randomness), "the global random state has changed"
    assert torch.get_default_dtype() == precision, "the default precision has changed"
    for name, tensor in operator.state_dict().items():
        assert torch.equal(tensor, state[name]), f"{name} of the operator has changed"


def check_layout(operator: LinearOperator, generator: torch.Generator) -> None:
    """How a tensor lies in memory does not matter: strides, expanded axes and lazy conjugation."""
    for name, door, source, _ in doors(operator):
        x = draw(source, *operator.batch_shape, generator=generator)
        reversed_axes = tuple(reversed(range(x.ndim)))
        strided = x.permute(reversed_axes).contiguous().permute(reversed_axes)
        assert_same(door(strided), door(x), f"{name} of a transposed tensor", rtol=1e-12)
        expanded = x[None].expand(2, *x.shape)
        assert_same(door(expanded), door(expanded.contiguous()), f"{name} of an expanded tensor", rtol=1e-12)
        if x.is_complex():
            assert_same(door(x.conj()), door(x.conj().resolve_conj()), f"{name} of a lazy conjugate", rtol=1e-12)


def check_adjoint_operator(operator: LinearOperator, generator: torch.Generator) -> None:
    """``.H`` is the adjoint as an operator, ``.H.H`` the operator again; ``repr`` shows class and spaces."""
    text = repr(operator)
    for part in (type(operator).__name__, str(operator.domain.shape), str(operator.codomain.shape)):
        assert part in text, f"repr does not show {part}"
    if operator.domain.field != operator.codomain.field:
        raises(TypeError, lambda: operator.H, type(operator).__name__, "adjoint")
        return
    x = draw(operator.domain, *operator.batch_shape, generator=generator)
    y = draw(operator.codomain, *operator.batch_shape, generator=generator)
    assert_same(operator.H(y), operator.adjoint(y), "A.H")
    assert_same(operator.H.adjoint(x), operator(x), "the adjoint of A.H")
    assert_same(operator.H.gram(y), operator(operator.adjoint(y)), "the gram of A.H")
    assert_same(operator.H.H(x), operator(x), "A.H.H")
    assert_same(operator.H.norm().double(), operator.norm().double(), "the norm of A.H")
    assert "H" not in dict(operator.named_modules()), "A.H is stored in A"


def check_algebra(operator: LinearOperator, generator: torch.Generator) -> None:
    """Multiples, sums, differences, products and stacks do what their symbols say, also in the adjoint and gram."""
    batch = operator.batch_shape
    x = draw(operator.domain, *batch, generator=generator)
    y = draw(operator.codomain, *batch, generator=generator)
    forward, adjoint = operator(x), operator.adjoint(y)
    for what, result, factor in (
        ("3 A", 3.0 * operator, 3.0),
        ("−A", -operator, -1.0),
        ("A + A", operator + operator, 2.0),
        ("A − A/2", operator - 0.5 * operator, 0.5),
    ):
        assert_same(result(x), factor * forward, what)
        assert_same(result.adjoint(y), factor * adjoint, f"the adjoint of {what}")
        assert_same(result.gram(x), factor**2 * operator.gram(x), f"the gram of {what}")
    stacked = stack((operator, 2.0 * operator))
    position = -operator.codomain.n_dims - 1
    assert_same(stacked(x), torch.stack((forward, 2 * forward), dim=position), "the stack")
    assert_same(stacked.adjoint(torch.stack((y, y), dim=position)), 3 * adjoint, "the adjoint of the stack")
    if operator.domain.field == operator.codomain.field:
        product = operator.H @ operator
        assert_same(product(x), operator.gram(x), "Aᴴ A")
        assert_same(product.adjoint(x), operator.gram(x), "the adjoint of Aᴴ A")


def check_device(operator: LinearOperator, generator: torch.Generator, device: str = "cuda") -> None:
    """On another device the operator does the same, and everything that it returns is there."""
    moved = copy.deepcopy(operator).to(device)
    for name, door, source, _ in doors(operator):
        x = draw(source, *operator.batch_shape, generator=generator)
        result = getattr(moved, name)(x.to(device))
        assert result.device.type == device, f"{name} returns a tensor on {result.device}"
        assert_same(result.cpu(), door(x), f"{name} on {device}")
    assert_same(moved.norm().cpu().double(), operator.norm().double(), f"the norm on {device}")


CONTRACTS: dict[str, Contract] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_textbook,
        check_spaces,
        check_adjoint,
        check_linear,
        check_batch_independence,
        check_gram,
        check_gradients,
        check_vjp,
        check_transforms,
        check_parameters,
        check_norm,
        check_input,
        check_copies,
        check_state,
        check_precision,
        check_purity,
        check_layout,
        check_adjoint_operator,
        check_algebra,
    )
}


class _Door(nn.Module):
    """One door of an operator as a module, so that ``functional_call`` can replace the parameters behind it."""

    def __init__(self, operator: LinearOperator, direction: Direction) -> None:
        super().__init__()
        self.operator = operator
        self.direction = direction

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        door: Callable[[torch.Tensor], torch.Tensor] = getattr(self.operator, self.direction)
        return door(x)


def _batches(operator: LinearOperator) -> Iterator[tuple[int, ...]]:
    """The batch shapes that broadcast with the operator's own, and its own."""
    own = tuple(operator.batch_shape)
    for batch in dict.fromkeys((*BATCHES, own)):
        try:
            torch.broadcast_shapes(batch, own)
        except RuntimeError:
            continue
        yield batch


def _size(x: torch.Tensor, space: Space) -> torch.Tensor:
    return inner(x, x, space.n_dims).real.sqrt()


def _tensors(operator: LinearOperator) -> list[torch.Tensor]:
    return [*operator.parameters(), *operator.buffers()]


def _results(operator: LinearOperator, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """What every door returns for inputs that depend on the spaces only."""
    own = torch.Generator().manual_seed(generator.initial_seed())
    with torch.no_grad():
        return {
            name: door(draw(source, *operator.batch_shape, generator=own)) for name, door, source, _ in doors(operator)
        }


def _compare(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], what: str, rtol: float = RTOL) -> None:
    for name, result in actual.items():
        assert_same(result, expected[name], f"{name} of {what}", rtol=rtol)


def _numerically(check: Callable[[], bool], what: str) -> None:
    """Run one of torch's checks, without letting it advance the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            check()
        except RuntimeError as error:
            raise AssertionError(f"{what}: {error}") from error
