"""Off-resonance against its defining sum, and a blurred spiral image that the model makes sharp."""

import math
from itertools import pairwise

import pytest
import torch

from operators.elementary import Identity, Mask
from operators.fourier import Fourier
from operators.linear_operator import LinearOperator, Sum, stack
from operators.nufft import NonUniformFourier
from operators.off_resonance import with_off_resonance
from operators.sensitivity import Sensitivity
from operators.solvers import cg
from operators.space import Space, inner

SHAPE = (7, 8)


def trajectory(n_samples: int, n_dims: int, generator: torch.Generator) -> torch.Tensor:
    return (2 * torch.rand(n_samples, n_dims, generator=generator, dtype=torch.float64) - 1) * math.pi


def nufft(positions: torch.Tensor, shape: tuple[int, ...], **options: object) -> NonUniformFourier:
    return NonUniformFourier(positions, shape, accuracy=1e-12, precision=torch.float64, **options)  # type: ignore[arg-type]


def field_map(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Unevenly spread from −60 to 120 Hz."""
    return 180 * torch.rand(shape, generator=generator, dtype=torch.float64).square() - 60


def times(n_samples: int) -> torch.Tensor:
    return torch.linspace(0.002, 0.022, n_samples, dtype=torch.float64)


def explicit(positions: torch.Tensor, field_hz: torch.Tensor, time_s: torch.Tensor) -> torch.Tensor:
    """The matrix of y_s = N^(−1/2) Σ_r x_r exp(−i ω_s·(r − c)) exp(−2πi f_r t_s)."""
    grid = [torch.arange(n, dtype=torch.float64) - n // 2 for n in field_hz.shape]
    pixels = torch.stack(torch.meshgrid(*grid, indexing="ij"), -1).reshape(-1, field_hz.ndim)
    phase = positions @ pixels.T + 2 * math.pi * time_s[:, None] * field_hz.reshape(-1)
    return torch.exp(-1j * phase) / math.sqrt(field_hz.numel())


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def n_segments(A: LinearOperator) -> int:
    assert isinstance(A, Sum)
    return len(A.terms)


@pytest.mark.parametrize("shape", [SHAPE, (3, 4, 5)])
@pytest.mark.parametrize("accuracy", [1e-2, 1e-4, 1e-8])
def test_is_the_explicit_sum_to_the_accuracy(shape, accuracy, generator):
    positions, time_s = trajectory(60, len(shape), generator), times(60)
    field_hz = field_map(shape, generator)
    A = with_off_resonance(nufft(positions, shape), field_hz, time_s, accuracy=accuracy)
    matrix = explicit(positions, field_hz, time_s)
    x = A.domain.randn(20, generator=generator, dtype=torch.float64)
    y = A.codomain.randn(20, generator=generator, dtype=torch.float64)
    assert relative_error(A(x), x.flatten(1) @ matrix.T) < accuracy
    assert relative_error(A.adjoint(y).flatten(1), y @ matrix.conj()) < accuracy


def test_coils_share_the_map_and_the_times(generator):
    positions, time_s, field_hz = trajectory(30, 2, generator), times(30), field_map(SHAPE, generator)
    matrix = explicit(positions, field_hz, time_s)
    csm = torch.randn(3, *SHAPE, generator=generator, dtype=torch.complex128)
    encoding = nufft(positions, SHAPE, n_coils=3)
    coils = with_off_resonance(encoding, field_hz, time_s, accuracy=1e-8)
    x = coils.domain.randn(2, generator=generator, dtype=torch.float64)
    assert relative_error(coils(x), x.flatten(2) @ matrix.T) < 1e-7
    sense = with_off_resonance(encoding @ Sensitivity(csm), field_hz, time_s, accuracy=1e-8)
    x = sense.domain.randn(2, generator=generator, dtype=torch.float64)
    assert relative_error(sense(x), (csm * x[:, None]).flatten(2) @ matrix.T) < 1e-7


@pytest.mark.parametrize("along", ["line", "grid"])
def test_cartesian_lines_have_the_times_of_their_samples(along, generator):
    fourier = Fourier(SHAPE)
    mask = (torch.rand(SHAPE[0], 1, generator=generator) > 0.4).double()
    time_s = times(SHAPE[1]) if along == "line" else times(SHAPE[0] * SHAPE[1]).view(SHAPE)
    field_hz = field_map(SHAPE, generator)
    A = with_off_resonance(Mask(mask, fourier.codomain) @ fourier, field_hz, time_s, accuracy=1e-8)
    steps = [2 * math.pi * (torch.arange(n, dtype=torch.float64) - n // 2) / n for n in SHAPE]
    positions = torch.stack(torch.meshgrid(*steps, indexing="ij"), -1).view(-1, 2)
    matrix = explicit(positions, field_hz, time_s.expand(SHAPE).reshape(-1))
    x = A.domain.randn(2, generator=generator, dtype=torch.float64)
    assert relative_error(A(x), mask * (x.flatten(1) @ matrix.T).view(2, *SHAPE)) < 1e-7


def test_a_constant_map_needs_one_segment_and_turns_the_samples(generator):
    encoding, time_s = nufft(trajectory(30, 2, generator), SHAPE), times(30)
    A = with_off_resonance(encoding, torch.full(SHAPE, 80.0, dtype=torch.float64), time_s)
    assert n_segments(A) == 1
    x = A.domain.randn(generator=generator, dtype=torch.float64)
    torch.testing.assert_close(A(x), torch.exp(-2j * math.pi * 80 * time_s) * encoding(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [None, 1, 4])
def test_a_map_of_zeros_changes_nothing(n, generator):
    encoding = nufft(trajectory(30, 2, generator), SHAPE)
    A = with_off_resonance(encoding, torch.zeros(SHAPE, dtype=torch.float64), times(30), n_segments=n)
    x = A.domain.randn(generator=generator, dtype=torch.float64)
    torch.testing.assert_close(A(x), encoding(x), rtol=1e-13, atol=1e-13)


def test_the_adjoint_is_exact_however_coarse_the_approximation(generator):
    encoding = nufft(trajectory(30, 2, generator), SHAPE, n_coils=2)
    A = with_off_resonance(encoding, field_map(SHAPE, generator), times(30), n_segments=2)
    x = A.domain.randn(3, generator=generator, dtype=torch.float64)
    y = A.codomain.randn(3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(inner(A(x), y, 2), inner(x, A.adjoint(y), 3), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(A.gram(x), A.adjoint(A(x)), rtol=1e-12, atol=1e-12)


def test_the_error_falls_with_every_segment(generator):
    positions, time_s, field_hz = trajectory(60, 2, generator), times(60), field_map(SHAPE, generator)
    matrix = explicit(positions, field_hz, time_s)
    x = torch.randn(20, *SHAPE, generator=generator, dtype=torch.complex128)
    errors = [
        relative_error(
            with_off_resonance(nufft(positions, SHAPE), field_hz, time_s, n_segments=n, accuracy=1e-8)(x),
            x.flatten(1) @ matrix.T,
        )
        for n in range(1, 11)
    ]
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert errors[0] > 0.3
    assert errors[-1] < 1e-4


def phases(field_hz: torch.Tensor, time_s: torch.Tensor, **options: object) -> tuple[LinearOperator, torch.Tensor]:
    """The operator that does nothing but turn, and exp(−2πi f t) as it approximates it, ``(time, pixel)``."""
    same = stack([Identity(Space(tuple(field_hz.shape)))] * len(time_s))
    A = with_off_resonance(same, field_hz, time_s[:, None], **options)  # type: ignore[arg-type]
    return A, A(torch.ones(field_hz.shape, dtype=torch.complex128))


@pytest.mark.parametrize("accuracy", [1e-1, 1e-3, 1e-6])
def test_as_many_segments_are_taken_as_the_accuracy_needs(accuracy):
    field_hz, time_s = torch.linspace(-150, 150, 1000, dtype=torch.float64), torch.linspace(-0.01, 0.03, 41).double()
    exact = torch.exp(-2j * math.pi * time_s[:, None] * field_hz)

    def worst(approximation: torch.Tensor) -> float:
        return float((approximation - exact).abs().square().mean(dim=1).sqrt().max())

    A, chosen = phases(field_hz, time_s, accuracy=accuracy)
    _, one_less = phases(field_hz, time_s, accuracy=accuracy, n_segments=n_segments(A) - 1)
    assert worst(chosen) < 1.01 * accuracy < worst(one_less)


def test_frequencies_that_many_pixels_have_are_fitted_best():
    """Fat and water: what lies between them does not count."""
    water, fat = torch.linspace(-5, 5, 900, dtype=torch.float64), torch.linspace(-225, -215, 100, dtype=torch.float64)
    time_s = torch.linspace(0, 0.03, 31, dtype=torch.float64)
    two, _ = phases(torch.cat((water, fat)), time_s)
    evenly, _ = phases(torch.linspace(-225, 5, 1000, dtype=torch.float64), time_s)
    assert n_segments(two) < n_segments(evenly)


@pytest.mark.parametrize("accuracy", [1e-2, 1e-6])
def test_errors_of_the_encoding_are_not_multiplied(accuracy):
    field_hz, time_s = torch.linspace(-250, 250, 1000, dtype=torch.float64), torch.linspace(0, 0.06, 61).double()
    A, _ = phases(field_hz, time_s, accuracy=accuracy)
    weights = sum(term.factors[0].weights.abs() for term in A.terms)  # type: ignore[union-attr]
    assert float(weights.max()) < 50  # evenly spaced and without the cut-off: above 1e5 at 1e-6


def test_every_sample_of_a_batch_may_have_its_own_map(generator):
    encoding, time_s = nufft(trajectory(30, 2, generator), SHAPE), times(30)
    maps = torch.stack([field_map(SHAPE, generator), -field_map(SHAPE, generator)])
    A = with_off_resonance(encoding, maps, time_s, accuracy=1e-8)
    x = A.domain.randn(2, generator=generator, dtype=torch.float64)
    for i in range(2):
        matrix = explicit(encoding.trajectory, maps[i], time_s)
        assert relative_error(A(x)[i], matrix @ x[i].flatten()) < 1e-7


def test_single_precision_stays_single(generator):
    positions, time_s, field_hz = trajectory(60, 2, generator), times(60), field_map(SHAPE, generator)
    A = with_off_resonance(NonUniformFourier(positions, SHAPE), field_hz.float(), time_s, accuracy=1e-5)
    x = A.domain.randn(20, generator=generator)
    assert A(x).dtype == torch.complex64
    assert relative_error(A(x), x.to(torch.complex128).flatten(1) @ explicit(positions, field_hz, time_s).T) < 5e-5


def test_a_spiral_image_blurred_by_the_field_becomes_sharp():
    """One arm of 30 ms through a field that rises to 50 Hz in the middle of a disc."""
    n, n_samples = 32, 3000
    progress = (torch.arange(n_samples, dtype=torch.float64) / n_samples).sqrt()
    angle_rad = 2 * math.pi * 20 * progress
    spiral = math.pi * progress[:, None] * torch.stack((angle_rad.sin(), angle_rad.cos()), -1)
    time_s = torch.linspace(0.002, 0.032, n_samples, dtype=torch.float64)
    distance = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64) - n // 2] * 2).square().sum(-1).sqrt()
    disc = ((distance < 11) * (1 - 0.6 * ((distance > 4) & (distance < 7)))).to(torch.complex128).view(n, n)
    field_hz = 50 * torch.exp(-(distance.view(n, n) / 8).square())
    y = explicit(spiral, field_hz, time_s) @ disc.flatten()
    encoding = NonUniformFourier(spiral, (n, n), accuracy=1e-6, precision=torch.float64)

    def nrmse(A: LinearOperator) -> float:
        solution = cg(A.gram, A.adjoint(y), rtol=1e-6, max_iterations=20, batch_dims=0)
        return relative_error(solution.value, disc)

    without, modelled = nrmse(encoding), nrmse(with_off_resonance(encoding, field_hz, time_s))
    assert modelled < 0.5 * without
    assert without > 0.2


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.zeros(7, 9), times(30)), {}, ValueError, r"field_map_hz has shape \(7, 9\), which does not broadcast"),
        ((torch.zeros(SHAPE), times(29)), {}, ValueError, r"time_s has shape \(29,\), which does not broadcast"),
        ((torch.zeros(SHAPE), times(30).log10() * math.inf), {}, ValueError, "time_s holds values that are not finite"),
        ((torch.zeros(SHAPE, dtype=torch.complex64), times(30)), {}, TypeError, "field_map_hz is torch.complex64"),
        ((torch.zeros(SHAPE).requires_grad_(), times(30)), {}, TypeError, "asks for a gradient, which it cannot get"),
        ((torch.zeros(SHAPE), torch.arange(30)), {}, TypeError, "time_s is torch.int64; expected a real floating"),
        ((torch.zeros(SHAPE), times(30)), {"n_segments": 0}, ValueError, "n_segments is 0; expected at least 1"),
        ((torch.zeros(SHAPE), times(30)), {"accuracy": 0.0}, ValueError, "accuracy is 0.0; expected a number from"),
        ((torch.linspace(-50, 50, 8), 1e3 * times(30)), {}, ValueError, "spans 100 Hz and the times 20 s"),
    ],
)
def test_what_cannot_be_modelled_is_said(arguments, options, error, message, generator):
    with pytest.raises(error, match=message):
        with_off_resonance(nufft(trajectory(30, 2, generator), SHAPE), *arguments, **options)


def test_real_operators_cannot_be_turned():
    with pytest.raises(TypeError, match="Identity maps real to real; off-resonance turns complex numbers"):
        with_off_resonance(Identity(Space((4, 5), "real")), torch.zeros(4, 5), torch.zeros(5))
