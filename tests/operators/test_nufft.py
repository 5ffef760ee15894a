"""The non-uniform Fourier transform against its defining sum, the Cartesian transform and its own Toeplitz gram."""

import math

import pytest
import torch

from operators.fourier import Fourier
from operators.nufft import NonUniformFourier, ToeplitzGram
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
        (torch.zeros(2, 2, requires_grad=True), "detach"),
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
