"""Images to start from and filtered residuals: right scale and stable steps, however few the views."""

import logging
import math

import pytest
import torch

from operators.back_projection import FilteredBackProjection, filtered_back_projection
from operators.beam_geometry import BeamGeometry, FanBeam, ParallelBeam
from operators.elementary import Diagonal, Mask
from operators.filtered_start import filtered_adjoint, initial_image
from operators.linear_operator import LinearOperator, stack
from operators.metal import MetalTrace, masked
from operators.projection import Projection
from tests.cases_learned import IMAGING_CASES
from tests.reference.tomography import disc, image, sinogram

N = 24


def parallel(n_views: int, arc_rad: float = math.pi) -> ParallelBeam:
    return ParallelBeam(tuple(arc_rad * (k + 0.5) / n_views for k in range(n_views)), 35, 1.0, 1.0)


def fan(n_views: int, arc_rad: float = 2 * math.pi, *, curved: bool = False) -> FanBeam:
    angles = tuple(arc_rad * (k + 0.5) / n_views for k in range(n_views))
    return FanBeam(angles, 45, 1.4, 1.0, source_to_center_mm=50.0, center_to_detector_mm=30.0, curved=curved)


def projection(geometry: BeamGeometry) -> Projection:
    return Projection(geometry, (N, N), precision=torch.float64)


def data(A: LinearOperator, *batch: int, generator: torch.Generator) -> torch.Tensor:
    return A.codomain.randn(*batch, generator=generator, dtype=torch.float64)


def matrix_of(A: Projection) -> torch.Tensor:
    """``filtered_adjoint`` after A, as a matrix."""
    basis = torch.eye(N * N, dtype=torch.float64).reshape(-1, N, N)
    return filtered_adjoint(A(basis), A).reshape(N * N, -1).T


@pytest.mark.parametrize("n_views", [10, 20, 60])
@pytest.mark.parametrize("make", [parallel, fan])
def test_the_start_has_the_right_scale_for_any_number_of_views(make, n_views):
    geometry = make(n_views)
    body = [disc(9.0, mu_per_mm=0.02)]
    y = sinogram(geometry, body)
    core = image(geometry, (N, N), [disc(6.0)]) == 1
    for A, measured in ((projection(geometry), y), (5.0 * projection(geometry), 5 * y)):
        assert float(initial_image(measured, A)[core].mean()) == pytest.approx(0.02, rel=0.05)


def test_the_start_is_filtered_back_projection(generator):
    geometry = fan(12)
    A = projection(geometry)
    y = data(A, 2, generator=generator)
    assert torch.equal(initial_image(y, A), filtered_back_projection(y, geometry, (N, N)))


def test_numbers_and_weights_are_divided_out_of_the_data(generator):
    A = projection(parallel(12))
    y = data(A, 2, generator=generator)
    weights = 0.1 + torch.rand(2, 1, 35, generator=generator, dtype=torch.float64)
    expected = initial_image(y, A)
    for front in (
        Diagonal(weights, A.codomain),
        Diagonal(weights, A.codomain) @ Diagonal(weights[0], A.codomain),
        MetalTrace(torch.zeros(12, 35, dtype=torch.float64), A.codomain, weights),
    ):
        for weighted, factor in ((front @ A, 1.0), (front @ (3.0 * A), 3.0), (-2.0 * (front @ A), -2.0)):
            torch.testing.assert_close(initial_image(factor * front(y), weighted), expected)


def test_rays_through_metal_are_left_out(generator):
    A = projection(parallel(12))
    y, other = data(A, 2, generator=generator)
    trace = (torch.rand(12, 35, generator=generator) < 0.2).double()
    W = MetalTrace(trace, A.codomain)
    spoiled = torch.where(trace == 1, other, y)
    for function in (initial_image, filtered_adjoint):
        assert torch.equal(function(spoiled, masked(A, trace)), function(y, masked(A, trace)))
        torch.testing.assert_close(function(W(y), masked(A, trace)), function(W(y), A))


def test_a_scan_of_metal_only_starts_from_nothing(generator):
    A = projection(parallel(12))
    nothing = masked(A, torch.ones(12, 35))
    y = data(A, generator=generator)
    assert not bool(initial_image(y, nothing).any())
    assert not bool(filtered_adjoint(y, nothing).any())


@pytest.mark.parametrize("imaging", ["one_coil", "coils", "radial", "volume"])
def test_for_other_operators_both_are_the_adjoint(imaging, generator):
    A = IMAGING_CASES[imaging]()
    y = data(A, 2, generator=generator)
    assert torch.equal(initial_image(y, A), A.adjoint(y))
    assert torch.equal(filtered_adjoint(y, A), A.adjoint(y))


def test_what_is_no_weighted_projection_keeps_its_adjoint(generator):
    A = projection(parallel(6))
    inside = Mask(torch.ones(N, N, dtype=torch.float64), A.domain)
    rotated = Diagonal(torch.full((6, 35), 1j, dtype=torch.complex128), A.codomain) @ A
    for other in (A @ inside, A + A, stack((A, A)), rotated):
        y = data(other, generator=generator)
        assert torch.equal(initial_image(y, other), other.adjoint(y))


@pytest.mark.parametrize(
    "geometry",
    [parallel(6), parallel(40), parallel(9, 2.3), fan(7), fan(40), fan(9, 4.6), fan(8, curved=True), fan(8, 2.0)],
    ids=lambda g: f"{type(g).__name__}-{g.n_views}",
)
def test_steps_along_the_filtered_residual_are_stable_for_any_number_of_views(geometry):
    eigenvalues = torch.linalg.eigvals(matrix_of(projection(geometry)))
    assert float(eigenvalues.abs().max()) < 1.7
    assert float(eigenvalues.real.max()) > 0.9
    assert float(eigenvalues.real.min()) > -0.03


def test_without_the_cut_few_views_would_overshoot():
    A = projection(parallel(6))
    basis = torch.eye(N * N, dtype=torch.float64).reshape(-1, N, N)
    plain = FilteredBackProjection(A.geometry, (N, N))(A(basis)).reshape(N * N, -1)
    assert float(torch.linalg.eigvals(plain).abs().max()) > 4


def test_many_views_are_filtered_by_the_ramp_alone(generator):
    A = projection(parallel(120))
    y = data(A, generator=generator)
    torch.testing.assert_close(filtered_adjoint(y, A), filtered_back_projection(y, A.geometry, (N, N)))


@pytest.mark.parametrize("geometry", [parallel(12), fan(12)], ids=["parallel", "fan"])
def test_three_filtered_steps_are_worth_more_than_ten_down_the_gradient(geometry):
    A = projection(geometry)
    y = A(image(geometry, (N, N), [disc(9.0), disc(3.0, (3.0, 2.0), 0.5)]))
    filtered = plain = torch.zeros(N, N, dtype=torch.float64)
    for _ in range(3):
        filtered = filtered - filtered_adjoint(A(filtered) - y, A)
    for _ in range(10):
        plain = plain - A.adjoint(A(plain) - y) / A.norm() ** 2
    assert float((A(filtered) - y).norm()) < float((A(plain) - y).norm())


def test_the_filtered_residual_knows_no_unit_of_the_data(generator):
    A = projection(parallel(8))
    residual = data(A, generator=generator)
    W = Diagonal(torch.full((8, 1), 0.2, dtype=torch.float64), A.codomain)
    expected = filtered_adjoint(residual, A)
    torch.testing.assert_close(filtered_adjoint(7 * residual, 7.0 * A), expected)
    torch.testing.assert_close(filtered_adjoint(W(residual), W @ A), expected)


def test_weights_let_some_rays_count_less(generator):
    A = projection(parallel(8))
    residual = data(A, generator=generator)
    weights = 0.1 + 0.9 * torch.rand(8, 35, generator=generator, dtype=torch.float64)
    weights[3, 4] = 1
    W = MetalTrace(torch.zeros(8, 35), A.codomain, weights)
    torch.testing.assert_close(filtered_adjoint(W(residual), W @ A), filtered_adjoint(weights * residual, A))


def test_samples_and_gradients_are_those_of_a_linear_map(generator):
    A = projection(fan(5))
    y = data(A, 2, generator=generator).requires_grad_()
    for function in (initial_image, filtered_adjoint):
        both = function(y, A)
        torch.testing.assert_close(both[1], function(y[1], A))
        weights = torch.randn(2, N, N, dtype=torch.float64, generator=generator)
        (gradient,) = torch.autograd.grad((weights * both).sum(), y)
        direction = data(A, 2, generator=generator)
        torch.testing.assert_close((gradient * direction).sum(), (weights * function(direction, A)).sum())


def test_single_precision_stays_single(generator):
    A = Projection(parallel(8), (N, N))
    y = A.codomain.randn(generator=generator)
    for function in (initial_image, filtered_adjoint):
        single = function(y, 2.0 * A)
        assert single.dtype == torch.float32
        expected = function(y.double(), 2.0 * A)
        torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_limited_angle_warns_once_and_not_in_every_step(caplog, generator):
    A = projection(parallel(9, 2.2))
    y = data(A, generator=generator)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            filtered_adjoint(y, A)
    assert len(caplog.records) <= 1


@pytest.mark.parametrize("function", [initial_image, filtered_adjoint])
def test_data_that_do_not_fit_are_refused(function):
    A = projection(parallel(8))
    with pytest.raises(ValueError, match=r"has shape \(8, 34\); expected \(\*batch, 8, 35\)"):
        function(torch.zeros(8, 34), 2.0 * A)
    with pytest.raises(TypeError, match=r"complex64; expected a real"):
        function(torch.zeros(8, 35, dtype=torch.complex64), A)
    with pytest.raises(ValueError, match="All views share one angle"):
        function(torch.zeros(1, 35), projection(parallel(1)))
