"""The non-uniform Fourier transform against its defining sum, the Cartesian transform and its own Toeplitz gram."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mrirecon.trajectory import stack_of_stars
from operators import nufft
from operators.fourier import Fourier
from operators.nufft import NonUniformFourier, StackedNonUniformFourier, ToeplitzGram
from operators.sensitivity import Sensitivity
from operators.solvers import cg
from tests.reference.fourier import dft_matrix
from tests.reference.matrices import textbook_matrix

SHAPES = [(16, 16), (15, 17), (12, 21), (1, 8), (6, 7, 8), (9, 5, 6)]


def positions(n_samples: int, n_dims: int, generator: torch.Generator) -> torch.Tensor:
    return (2 * torch.rand(n_samples, n_dims, generator=generator, dtype=torch.float64) - 1) * math.pi


def cartesian(shape: tuple[int, ...]) -> torch.Tensor:
    along = [2 * math.pi * (torch.arange(n, dtype=torch.float64) - n // 2) / n for n in shape]
    return torch.stack(torch.meshgrid(*along, indexing="ij"), dim=-1).view(-1, len(shape))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def explicit(trajectory: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Matrix ``(*batch, sample, pixel)`` of the definition, differentiable in the trajectory."""
    along = [torch.arange(n, dtype=torch.float64) - n // 2 for n in shape]
    pixels = torch.stack(torch.meshgrid(*along, indexing="ij"), dim=-1).view(-1, len(shape))
    return torch.exp(-1j * (trajectory.double() @ pixels.T)) / math.sqrt(len(pixels))


def exact(trajectory: torch.Tensor, shape: tuple[int, ...], **options) -> NonUniformFourier:
    return NonUniformFourier(trajectory, shape, accuracy=1e-12, precision=torch.float64, **options)


@pytest.mark.parametrize("accuracy", [1e-1, 2e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12])
@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_explicit_transform_to_the_accuracy(shape, accuracy, generator):
    A = NonUniformFourier(positions(60, len(shape), generator), shape, accuracy=accuracy, precision=torch.float64)
    matrix = textbook_matrix(A)
    x = A.domain.randn(20, generator=generator, dtype=torch.float64)
    y = A.codomain.randn(20, generator=generator, dtype=torch.float64)
    assert relative_error(A(x), x.flatten(1) @ matrix.T) <= accuracy
    assert relative_error(A.adjoint(y).flatten(1), y @ matrix.conj()) <= accuracy


@pytest.mark.parametrize("accuracy", [2e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("shape", [(24, 25), (9, 8, 10)])
def test_single_precision_reaches_its_accuracy(shape, accuracy, generator):
    A = NonUniformFourier(positions(60, len(shape), generator), shape, accuracy=accuracy)
    x = A.domain.randn(20, generator=generator)
    assert relative_error(A(x), x.to(torch.complex128).flatten(1) @ textbook_matrix(A).T) <= accuracy


@pytest.mark.parametrize("accuracy", [1e-2, 1e-5])
def test_a_single_pixel_at_the_edge_has_at_most_about_twice_the_error(accuracy, generator):
    A = NonUniformFourier(positions(200, 2, generator), (32, 32), accuracy=accuracy, precision=torch.float64)
    x = torch.zeros(A.domain.shape, dtype=torch.complex128)
    x[0, 0] = 1
    assert relative_error(A(x), textbook_matrix(A)[:, 0]) <= 2.5 * accuracy


def test_more_accuracy_is_a_wider_kernel():
    accuracies = [10.0**-n for n in range(1, 13)]
    widths = [
        NonUniformFourier(torch.zeros(1, 2), (4, 4), accuracy=accuracy, precision=torch.float64).width
        for accuracy in accuracies
    ]
    assert widths == sorted(set(widths))


@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_fourier_transform_at_cartesian_positions(shape, generator):
    F = Fourier(shape, len(shape))
    A = NonUniformFourier(cartesian(shape), shape, accuracy=1e-12, precision=torch.float64)
    x = F.domain.randn(2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(A(x), F(x).flatten(1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(A.adjoint(x.flatten(1)), F.adjoint(x), rtol=1e-10, atol=1e-10)
    gram = A.toeplitz_gram()
    torch.testing.assert_close(gram(x), x, rtol=1e-10, atol=1e-10)


def test_the_reference_is_the_reference_of_the_cartesian_transform():
    A = NonUniformFourier(cartesian((4, 5)), (4, 5), accuracy=1e-1)
    torch.testing.assert_close(textbook_matrix(A), dft_matrix((4, 5)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("accuracy", [1e-2, 1e-6])
def test_the_adjoint_is_exact_whatever_the_accuracy(accuracy, generator):
    A = NonUniformFourier(positions(40, 2, generator), (9, 8), accuracy=accuracy, precision=torch.float64)
    x = A.domain.randn(generator=generator, dtype=torch.float64)
    y = A.codomain.randn(generator=generator, dtype=torch.float64)
    left, right = torch.vdot(A(x), y), torch.vdot(x.flatten(), A.adjoint(y).flatten())
    assert abs(left - right) < 1e-13 * A(x).norm() * y.norm()


def test_pi_and_minus_pi_are_the_same_position(generator):
    up = torch.tensor([[math.pi, 0.3], [math.pi, math.pi]], dtype=torch.float64)
    down = torch.tensor([[-math.pi, 0.3], [-math.pi, -math.pi]], dtype=torch.float64)
    x = torch.randn(5, 6, dtype=torch.complex128, generator=generator)
    A, B = (NonUniformFourier(t, (5, 6), accuracy=1e-12, precision=torch.float64) for t in (up, down))
    torch.testing.assert_close(A(x), B(x), rtol=1e-10, atol=1e-10)
    NonUniformFourier(down.float(), (5, 6))  # which is below −π by rounding


def test_many_images_are_the_images_one_by_one(generator):
    """More than are treated together."""
    A = NonUniformFourier(positions(11, 2, generator), (4, 5), n_coils=3, precision=torch.float64)
    x = A.domain.randn(2, 7, generator=generator, dtype=torch.float64)
    y = A.codomain.randn(2, 7, generator=generator, dtype=torch.float64)
    single = NonUniformFourier(A.trajectory, (4, 5), precision=torch.float64)
    forward = torch.stack([single(image) for image in x.reshape(-1, 4, 5)]).view(2, 7, 3, 11)
    adjoint = torch.stack([single.adjoint(samples) for samples in y.view(-1, 11)]).view(2, 7, 3, 4, 5)
    torch.testing.assert_close(A(x), forward, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(A.adjoint(y), adjoint, rtol=1e-12, atol=1e-12)


def test_no_images_are_no_samples():
    A = NonUniformFourier(torch.zeros(3, 2), (4, 5), n_coils=2)
    assert A(torch.zeros(0, 2, 4, 5, dtype=torch.complex64)).shape == (0, 2, 3)
    assert A.adjoint(torch.zeros(0, 2, 3, dtype=torch.complex64)).shape == (0, 2, 4, 5)
    assert A.toeplitz_gram()(torch.zeros(0, 2, 4, 5, dtype=torch.complex64)).shape == (0, 2, 4, 5)


@pytest.mark.parametrize("shape", [(10, 9), (8, 8), (5, 4, 6), (1, 7)])
@pytest.mark.parametrize("accuracy", [1e-3, 1e-6, 1e-12])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_toeplitz_gram_is_the_gram_to_the_accuracy(shape, accuracy, weighted, generator):
    trajectory = positions(300, len(shape), generator)
    weights = torch.rand(300, generator=generator, dtype=torch.float64) if weighted else None
    A = NonUniformFourier(trajectory, shape, n_coils=2, accuracy=accuracy, precision=torch.float64)
    x = A.domain.randn(3, generator=generator, dtype=torch.float64)
    gram = A.toeplitz_gram(weights)
    assert (gram.domain, gram.codomain) == (A.domain, A.domain)
    y = A(x)
    assert relative_error(gram(x), A.adjoint(y if weights is None else weights * y)) <= 3 * accuracy


def test_the_toeplitz_kernel_does_not_depend_on_how_the_samples_are_split(monkeypatch, generator):
    trajectory = positions(50, 2, generator)
    x = torch.randn(6, 7, dtype=torch.complex128, generator=generator)
    whole = ToeplitzGram(trajectory, (6, 7), precision=torch.float64)(x)
    monkeypatch.setattr("operators.nufft._ENTRIES_AT_ONCE", 500)
    split = ToeplitzGram(trajectory, (6, 7), precision=torch.float64)(x)
    torch.testing.assert_close(split, whole, rtol=1e-12, atol=1e-12)


def test_the_toeplitz_gram_is_self_adjoint_whatever_the_accuracy(generator):
    gram = ToeplitzGram(positions(50, 2, generator), (7, 6), accuracy=1e-1, precision=torch.float64)
    a, b = gram.domain.randn(2, generator=generator, dtype=torch.float64)
    difference = torch.vdot(gram(a).flatten(), b.flatten()) - torch.vdot(a.flatten(), gram(b).flatten())
    assert abs(difference) < 1e-13 * gram(a).norm() * b.norm()


def test_the_toeplitz_gram_inverts_radial_coil_data(generator):
    """Conjugate gradients with it give back the image of consistent data."""
    angles = torch.arange(24, dtype=torch.float64)[:, None] * math.pi / 24
    radii = (torch.arange(24, dtype=torch.float64) - 12) * 2 * math.pi / 24
    trajectory = torch.stack((radii * angles.sin(), radii * angles.cos()), dim=-1).view(-1, 2)
    csm = torch.randn(4, 12, 12, dtype=torch.complex128, generator=generator)
    A = NonUniformFourier(trajectory, (12, 12), n_coils=4, accuracy=1e-10, precision=torch.float64)
    C = Sensitivity(csm)
    x = C.domain.randn(generator=generator, dtype=torch.float64)
    gram = C.H @ A.toeplitz_gram() @ C
    rhs = (A @ C).adjoint((A @ C)(x))
    found = cg(gram, rhs, rtol=1e-10, max_iterations=200)
    assert relative_error(found.value, x) < 1e-6


def test_precision_of_the_tables_may_be_changed(generator):
    A = NonUniformFourier(positions(20, 2, generator), (6, 6), accuracy=1e-5)
    x = A.domain.randn(generator=generator, dtype=torch.float64)
    before = A(x)
    assert before.dtype == torch.complex128
    torch.testing.assert_close(A.to_precision(torch.float64)(x), before, rtol=1e-12, atol=1e-12)
    assert A.state_dict() == {}


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        (torch.tensor([[0.0, 4.0]]), "reaches 4; expected radians per pixel .* looks like grid indices"),
        (torch.tensor([[0.0, -300.0]]), "reaches 300; expected radians per pixel .* cycles per metre"),
        (torch.tensor([[0.0, math.nan]]), "not finite"),
        (torch.tensor([[math.inf, 0.0]]), "not finite"),
        (torch.zeros(5, 3), r"shape \(5, 3\); expected \(sample, 2\)"),
        (torch.zeros(2), r"shape \(2,\); expected \(sample, 2\)"),
        (torch.zeros(2, 0, 2), "at least one sample"),
        (torch.zeros(0, 2), "at least one sample"),
    ],
)
def test_a_trajectory_that_cannot_be_meant_is_refused(trajectory, message):
    with pytest.raises(ValueError, match=message):
        NonUniformFourier(trajectory, (8, 8))


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        (torch.zeros(2, 2, dtype=torch.complex64), "complex64"),
        (torch.zeros(2, 2, dtype=torch.int64), "int64"),
        ([[0.0, 0.0]], "list"),
    ],
)
def test_a_trajectory_of_the_wrong_type_is_refused(trajectory, message):
    with pytest.raises(TypeError, match=message):
        NonUniformFourier(trajectory, (8, 8))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"accuracy": 0.5}, ValueError, "accuracy is 0.5"),
        ({"accuracy": 1e-13, "precision": torch.float64}, ValueError, "accuracy is 1e-13"),
        ({"accuracy": math.nan}, ValueError, "accuracy is nan"),
        ({"accuracy": 1e-8}, ValueError, "precision=torch.float64"),
        ({"precision": torch.complex64}, TypeError, "complex64"),
        ({"memory_limit_bytes": 1000}, ValueError, "memory_limit_bytes allows"),
        ({"backend": "fft"}, ValueError, "backend is 'fft'; expected 'gridding', 'finufft' or 'torchkbnufft'"),
    ],
)
def test_options_that_cannot_be_kept_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        NonUniformFourier(torch.zeros(4, 2), (8, 8), **options)


def test_one_dimensional_images_are_refused():
    with pytest.raises(ValueError, match="image_shape"):
        NonUniformFourier(torch.zeros(4, 1), (8,))


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (torch.ones(3), ValueError, r"shape \(3,\)"),
        (torch.full((4,), math.nan), ValueError, "not finite"),
        (torch.ones(4, dtype=torch.complex64), TypeError, "complex64"),
        (torch.ones(4, requires_grad=True), TypeError, "detach"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, error, message):
    with pytest.raises(error, match=message):
        NonUniformFourier(torch.zeros(4, 2), (8, 8)).toeplitz_gram(weights)


@pytest.mark.parametrize("shape", [(8, 9), (4, 5, 3)])
@pytest.mark.parametrize("accuracy", [1e-2, 1e-5, 1e-12])
@pytest.mark.parametrize("direction", ["forward", "adjoint", "gram"])
def test_the_gradient_to_the_trajectory_is_that_of_the_explicit_transform(direction, accuracy, shape, generator):
    trajectory = positions(2 * 40, len(shape), generator).view(2, 40, -1).requires_grad_()
    A = NonUniformFourier(trajectory, shape, n_coils=3, accuracy=accuracy, precision=torch.float64)
    x, y = (space.randn(2, generator=generator, dtype=torch.float64) for space in (A.domain, A.codomain))
    F = explicit(trajectory, shape).transpose(-1, -2)  # (batch, pixel, sample)
    expected = {
        "forward": lambda: (x.flatten(2) @ F, y),
        "adjoint": lambda: ((y @ F.mH).view_as(x), x),
        "gram": lambda: ((x.flatten(2) @ F @ F.mH).view_as(x), x.flip(-1)),
    }[direction]
    actual = getattr(A, direction)(y if direction == "adjoint" else x)
    value, probe = expected()
    assert relative_error(actual.detach(), value.detach()) <= 2 * accuracy
    (reference,) = torch.autograd.grad((probe.conj() * value).sum().real, trajectory)
    (gradient,) = torch.autograd.grad((probe.conj() * actual).sum().real, trajectory)
    assert relative_error(gradient, reference) <= 3 * accuracy


def test_the_gradient_to_a_single_precision_trajectory_is_single(generator):
    trajectory = nn.Parameter(positions(30, 2, generator).float())
    A = NonUniformFourier(trajectory, (9, 8), accuracy=1e-4)
    x, y = A.domain.randn(generator=generator), A.codomain.randn(generator=generator)
    (gradient,) = torch.autograd.grad((y.conj() * A(x)).sum().real, trajectory)
    reference = explicit(trajectory, (9, 8)) @ x.flatten().to(torch.complex128)
    (expected,) = torch.autograd.grad((y.conj() * reference).sum().real, trajectory)
    assert gradient.dtype == torch.float32
    assert relative_error(gradient, expected) <= 2e-4


def test_a_gradient_flows_through_the_trajectory_to_what_it_was_made_of(generator):
    base, scale = positions(12, 2, generator), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 6, dtype=torch.complex128, generator=generator)

    def energy(scale: torch.Tensor) -> torch.Tensor:
        return exact(scale * base, (5, 6))(x)[:6].abs().square().sum()

    assert torch.autograd.gradcheck(energy, (scale,))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch itself, for forward mode
def test_derivatives_in_the_trajectory_vectorise(generator):
    """Jacobians by reverse and forward mode agree, also over a batch of trajectories."""
    trajectory, x = positions(3, 2, generator), torch.randn(2, 3, dtype=torch.complex128, generator=generator)
    A = exact(nn.Parameter(trajectory), (2, 3))

    def magnitude(trajectory: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(A, {"trajectory": trajectory}, (x,)).abs()

    many = torch.stack((trajectory, 0.5 * trajectory))
    reverse, forward = torch.func.jacrev(magnitude), torch.func.jacfwd(magnitude)
    torch.testing.assert_close(forward(trajectory), reverse(trajectory), rtol=1e-9, atol=1e-9)
    expected = torch.stack([reverse(one) for one in many])
    torch.testing.assert_close(torch.func.vmap(reverse)(many), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.func.vmap(forward)(many), expected, rtol=1e-9, atol=1e-9)
    twice = torch.func.hessian(lambda t: magnitude(t).sum())(trajectory)
    torch.testing.assert_close(twice, twice.permute(2, 3, 0, 1), rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("own", [(), (3,)])
@pytest.mark.parametrize("direction", ["forward", "adjoint"])
def test_more_images_than_trajectories_are_differentiated_alike_in_both_modes(direction, own, generator):
    trajectory = positions(5 * math.prod(own), 2, generator).view(*own, 5, 2)
    A = exact(nn.Parameter(trajectory), (3, 4), n_coils=2)
    x = (A.codomain if direction == "adjoint" else A.domain).randn(4, 3, generator=generator, dtype=torch.float64)
    shift = positions(5 * math.prod(own), 2, generator).view(*own, 5, 2)

    def applied(trajectory: torch.Tensor) -> torch.Tensor:
        if direction == "forward":
            return torch.func.functional_call(A, {"trajectory": trajectory}, (x,)).real
        return torch.func.functional_call(A.H, {"operator.trajectory": trajectory}, (x,)).real

    value, tangent = torch.func.jvp(applied, (trajectory,), (shift,))
    probe = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.func.vjp(applied, trajectory)[1](probe)
    torch.testing.assert_close((gradient * shift).sum(), (probe * tangent).sum(), rtol=1e-9, atol=1e-9)


def by_optimiser(A: NonUniformFourier, new: torch.Tensor) -> None:
    A.trajectory.grad = A.trajectory.detach() - new
    torch.optim.SGD([A.trajectory], lr=1.0).step()


def in_place(A: NonUniformFourier, new: torch.Tensor) -> None:
    with torch.no_grad():
        A.trajectory.copy_(new)


def past_the_version(A: NonUniformFourier, new: torch.Tensor) -> None:
    A.trajectory.data.copy_(new)


def from_a_state(A: NonUniformFourier, new: torch.Tensor) -> None:
    A.load_state_dict({"trajectory": new})


def assigned(A: NonUniformFourier, new: torch.Tensor) -> None:
    A.trajectory = nn.Parameter(new) if isinstance(A.trajectory, nn.Parameter) else new.clone()


def assert_follows(A: NonUniformFourier, generator: torch.Generator) -> None:
    B = exact(A.trajectory.detach().clone(), A.image_shape)
    x, y = (space.randn(generator=generator, dtype=torch.float64) for space in (A.domain, A.codomain))
    torch.testing.assert_close(A(x), B(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(A.adjoint(y), B.adjoint(y), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(A.gram(x), B.gram(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("change", [by_optimiser, in_place, past_the_version, from_a_state, assigned])
def test_a_learned_trajectory_is_never_stale(change, asks, generator):
    A = exact(nn.Parameter(positions(20, 2, generator), requires_grad=asks), (5, 6))
    assert_follows(A, generator)
    new = positions(20, 2, generator)
    change(A, new)
    torch.testing.assert_close(A.trajectory.detach(), new)
    assert_follows(A, generator)


@pytest.mark.parametrize("change", [in_place, assigned])
def test_a_constant_trajectory_is_never_stale_either(change, generator):
    A = exact(positions(20, 2, generator), (5, 6))
    assert_follows(A, generator)
    for _ in range(3):
        change(A, positions(20, 2, generator))
        for twin in (copy.deepcopy(A), pickle.loads(pickle.dumps(A))):
            assert_follows(twin, generator)
            change(twin, positions(20, 2, generator))
            assert_follows(twin, generator)
        assert_follows(A, generator)


def test_an_operator_keeps_no_tie_to_the_tensor_that_it_was_given(generator):
    given = positions(20, 2, generator)
    A = exact(given, (5, 6))
    x = A.domain.randn(generator=generator, dtype=torch.float64)
    before = A(x)
    given.zero_()
    assert torch.equal(A(x), before)


@pytest.mark.parametrize("backend", ["gridding", "finufft", "torchkbnufft"])
def test_a_learned_trajectory_may_leave_the_first_turn(backend, generator):
    if backend != "gridding":
        pytest.importorskip(backend)
    A = exact(nn.Parameter(positions(20, 2, generator)), (5, 6), backend=backend)
    x = A.domain.randn(generator=generator, dtype=torch.float64)
    before = A(x).detach()
    past_the_version(A, A.trajectory + 2 * math.pi * torch.tensor([[1.0, -3.0]]).double())
    torch.testing.assert_close(A(x).detach(), before, rtol=1e-10, atol=1e-10)
    past_the_version(A, torch.full((20, 2), math.nan))
    with pytest.raises(ValueError, match="stay finite"):
        A(x)


@pytest.mark.parametrize("own", [(3,), (2, 1), (2, 3)])
def test_a_batch_of_trajectories_is_one_operator_for_each(own, generator):
    trajectory = positions(math.prod(own) * 9, 2, generator).view(*own, 9, 2)
    A = NonUniformFourier(trajectory, (4, 5), n_coils=2, precision=torch.float64)
    assert A.batch_shape == own
    x = A.domain.randn(4, 2, 3, generator=generator, dtype=torch.float64)
    samples = torch.empty(4, 2, 3, 2, 9, dtype=torch.complex128)
    grams = torch.empty_like(x)
    whole = trajectory.expand(2, 3, 9, 2)
    for row in range(2):
        for column in range(3):
            B = NonUniformFourier(whole[row, column], (4, 5), n_coils=2, precision=torch.float64)
            samples[:, row, column] = B(x[:, row, column])
            grams[:, row, column] = B.gram(x[:, row, column])
    torch.testing.assert_close(A(x), samples, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(A.gram(x), grams, rtol=1e-12, atol=1e-12)


def test_the_memory_limit_counts_the_whole_batch():
    NonUniformFourier(torch.zeros(5, 2), (8, 8), memory_limit_bytes=10000)
    with pytest.raises(ValueError, match="memory_limit_bytes allows"):
        NonUniformFourier(torch.zeros(4, 5, 2), (8, 8), memory_limit_bytes=10000)


def counted(monkeypatch) -> list[None]:
    """One entry for every Toeplitz kernel that is made."""
    calls: list[None] = []
    original = nufft._toeplitz_kernel

    def count(*arguments):
        calls.append(None)
        return original(*arguments)

    monkeypatch.setattr(nufft, "_toeplitz_kernel", count)
    return calls


def test_the_kernel_of_the_gram_is_made_once_and_kept(monkeypatch, generator):
    made = counted(monkeypatch)
    A = exact(positions(20, 2, generator), (5, 6))
    assert not made
    x = A.domain.randn(generator=generator, dtype=torch.float64)
    first = A.gram(x)
    for twin in (A, copy.deepcopy(A), pickle.loads(pickle.dumps(A)), A.to("cpu")):
        assert torch.equal(twin.gram(x), first)
    assert len(made) == 1
    assert A.state_dict() == {}
    A.trajectory.mul_(0.5)
    A.gram(x)
    assert len(made) == 2


def test_without_the_memory_for_a_kernel_the_gram_is_the_adjoint_after_the_forward(monkeypatch, generator):
    made = counted(monkeypatch)
    A = NonUniformFourier(positions(3, 2, generator), (30, 30), accuracy=1e-1, memory_limit_bytes=60000)
    x = A.domain.randn(generator=generator)
    assert torch.equal(A.gram(x), A.adjoint(A(x)))
    assert not made


def test_a_gram_first_used_in_inference_mode_can_be_differentiated(generator):
    with torch.inference_mode():
        A = exact(positions(20, 2, generator), (5, 6))
        A.gram(A.domain.randn(generator=generator, dtype=torch.float64))
    x = A.domain.randn(generator=generator, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(A.gram(x).abs().square().sum(), x)
    torch.testing.assert_close(gradient, 2 * A.gram(A.gram(x.detach())), rtol=1e-9, atol=1e-9)


def test_a_learned_trajectory_has_no_constant_gram():
    A = NonUniformFourier(nn.Parameter(torch.zeros(3, 2)), (4, 4))
    with pytest.raises(TypeError, match=r"trajectory asks for a gradient.*trajectory\.detach\(\)"):
        A.toeplitz_gram()


class ExplicitTransform:
    """A backend that is the definition, one matrix product each way."""

    def __init__(self, trajectory, image_shape, accuracy, precision):
        self.image_shape, self.matrix = image_shape, explicit(trajectory, image_shape)

    def forward(self, images):
        return images.flatten(1) @ self.matrix.to(images.dtype).T

    def adjoint(self, samples):
        return (samples @ self.matrix.to(samples.dtype).conj()).view(-1, *self.image_shape)


@pytest.mark.parametrize("shape", [(5, 6), (3, 2, 4)])
def test_another_backend_takes_over_everything(monkeypatch, shape, generator):
    original = nufft._transform_class
    monkeypatch.setattr(
        nufft, "_transform_class", lambda backend: ExplicitTransform if backend == "finufft" else original(backend)
    )
    trajectory = positions(2 * 12, len(shape), generator).view(2, 12, -1)
    results = []
    for backend in ("finufft", "gridding"):
        A = exact(nn.Parameter(trajectory.clone()), shape, n_coils=2, backend=backend)
        assert len(list(A.buffers())) == (0 if backend == "finufft" else 12)
        x, y = (s.randn(2, generator=generator.manual_seed(1), dtype=torch.float64) for s in (A.domain, A.codomain))
        (gradient,) = torch.autograd.grad(A.gram(x).abs().sum() + A.adjoint(y).abs().sum(), A.trajectory)
        constant = exact(trajectory, shape, n_coils=2, backend=backend)
        constant = pickle.loads(pickle.dumps(constant))
        gram = constant.toeplitz_gram(torch.rand(12, generator=generator, dtype=torch.float64))
        in_place(A, 0.5 * trajectory)
        results.append((A(x).detach(), gradient, constant.gram(x), constant.adjoint(y), gram(x), constant.norm()))
    for other, own in zip(*results, strict=True):
        torch.testing.assert_close(other, own, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["finufft", "torchkbnufft"])
@pytest.mark.parametrize("shape", [(9, 8), (4, 5, 3)])
@pytest.mark.parametrize("accuracy", [1e-3, 1e-6])
def test_the_packages_agree_with_gridding_to_the_accuracy(backend, shape, accuracy, generator):
    pytest.importorskip(backend)
    trajectory = positions(2 * 25, len(shape), generator).view(2, 25, -1)
    options = {"n_coils": 2, "precision": torch.float64, "backend": backend}
    A = NonUniformFourier(nn.Parameter(trajectory), shape, accuracy=accuracy, **options)
    constant = pickle.loads(pickle.dumps(NonUniformFourier(trajectory, shape, accuracy=accuracy, **options)))
    B = exact(nn.Parameter(trajectory.clone()), shape, n_coils=2)
    x, y = (space.randn(2, generator=generator, dtype=torch.float64) for space in (A.domain, A.codomain))
    reference, back = B(x), B.adjoint(y)
    assert relative_error(A(x).detach(), reference.detach()) <= accuracy
    assert relative_error(A.adjoint(y).detach(), back.detach()) <= accuracy
    assert relative_error(constant.gram(x), B.gram(x).detach()) <= 3 * accuracy
    left, right = torch.vdot(A(x).flatten(), y.flatten()), torch.vdot(x.flatten(), A.adjoint(y).flatten())
    assert abs(complex(left.detach() - right.detach())) <= 1e-11 * float(reference.detach().norm() * y.norm())
    (gradient,) = torch.autograd.grad((y.conj() * A(x)).sum().real, A.trajectory)
    (expected,) = torch.autograd.grad((y.conj() * reference).sum().real, B.trajectory)
    assert relative_error(gradient, expected) <= 3 * accuracy


@pytest.mark.parametrize("partitions", [None, [0, 3, 2, 3]])
@pytest.mark.parametrize("z", [5, 4])
def test_a_stack_is_the_transform_in_three_dimensions(z, partitions, generator):
    plane = positions(11, 2, generator)
    measured = list(range(z)) if partitions is None else partitions
    kz = torch.tensor([2 * math.pi * (k - z // 2) / z for k in measured], dtype=torch.float64)
    volume = torch.cat((kz.repeat_interleave(11)[:, None], plane.repeat(len(kz), 1)), dim=1)
    A = StackedNonUniformFourier(
        plane,
        (z, 6, 7),
        partitions=None if partitions is None else torch.tensor(partitions),
        n_coils=2,
        accuracy=1e-12,
        precision=torch.float64,
    )
    B = exact(volume, (z, 6, 7), n_coils=2)
    assert (A.domain, A.codomain) == (B.domain, B.codomain)
    x, y = (space.randn(3, generator=generator, dtype=torch.float64) for space in (A.domain, A.codomain))
    torch.testing.assert_close(A(x), B(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(A.adjoint(y), B.adjoint(y), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(A.gram(x), B.gram(x), rtol=1e-10, atol=1e-10)


def test_a_stack_takes_the_samples_of_a_stack_of_stars(generator):
    volume = stack_of_stars(4, 3, 8)
    A = StackedNonUniformFourier(volume[:24, 1:], (4, 8, 8))
    x = A.domain.randn(generator=generator)
    assert relative_error(A(x), NonUniformFourier(volume, (4, 8, 8))(x)) < 2e-5


def test_a_stack_with_a_learned_plane_is_differentiated(generator):
    plane = nn.Parameter(positions(7, 2, generator))
    A = StackedNonUniformFourier(plane, (3, 4, 5), accuracy=1e-12, precision=torch.float64)
    x = A.domain.randn(generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(A(x).real.sum(), plane)
    kspace = Fourier((3,), 1)(x.movedim(0, -1)).movedim(-1, 0).reshape(3, 20)
    (expected,) = torch.autograd.grad((kspace @ explicit(plane, (4, 5)).T).real.sum(), plane)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "partitions", "error", "message"),
    [
        ((4, 4), None, ValueError, r"image_shape is \(4, 4\); expected \(z, y, x\)"),
        ((3, 4, 4), torch.tensor([0.0]), TypeError, "partitions is torch.float32"),
        ((3, 4, 4), [0, 1], TypeError, "partitions is list"),
        ((3, 4, 4), torch.tensor([0, 3]), ValueError, "reach from 0 to 3; expected kz indices from 0 to 2"),
        ((3, 4, 4), torch.tensor([-1]), ValueError, "reach from -1"),
        ((3, 4, 4), torch.zeros(0, dtype=torch.int64), ValueError, r"shape \(0,\)"),
        ((3, 4, 4), torch.zeros(1, 1, dtype=torch.int64), ValueError, r"shape \(1, 1\)"),
    ],
)
def test_stacks_that_cannot_be_meant_are_refused(shape, partitions, error, message):
    with pytest.raises(error, match=message):
        StackedNonUniformFourier(torch.zeros(3, 2), shape, partitions=partitions)


class Simulated(Dataset):
    """Samples and their gridded image, made by the worker."""

    def __init__(self, A: NonUniformFourier, images: torch.Tensor) -> None:
        self.A, self.images = A, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.A(self.images[index]), self.A.gram(self.images[index])


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("used", [True, False])
def test_forked_workers_of_a_loader_get_the_same_numbers(used, generator):
    A = NonUniformFourier(positions(30, 2, generator), (8, 9), n_coils=2)
    images = A.domain.randn(6, generator=generator)
    expected = (copy.deepcopy(A) if not used else A)(images), copy.deepcopy(A).gram(images)
    if used:
        A.gram(images)
    loader = DataLoader(Simulated(A, images), batch_size=2, num_workers=2, multiprocessing_context="fork")
    actual = [torch.cat(parts) for parts in zip(*loader, strict=True)]
    for result, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(result, reference)
