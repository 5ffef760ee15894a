"""Plug-and-play reconstruction, against the solutions that are known where the denoiser is linear."""

import math
from typing import Any

import pytest
import torch

from operators.consistency import Consistency, FilteredStep, GradientStep
from operators.filtered_start import initial_image
from operators.half_quadratic import plug_and_play
from operators.linear_operator import LinearOperator
from operators.priors.denoiser import UNetDenoiser
from operators.priors.prior import Prior
from tests.cases_learned import IMAGING_CASES, SHAPE

NOISE = 0.3
over_imaging = pytest.mark.parametrize("imaging", ["one_coil", "coils", "radial", "tomography"])


def precision_of_waves() -> torch.Tensor:
    """What a Gaussian prior expects of each frequency: 1/variance."""
    waves = [2 * math.pi * torch.fft.fftfreq(n, dtype=torch.float64) for n in SHAPE]
    return 0.1 + (2 - 2 * waves[0].cos())[:, None] + (2 - 2 * waves[1].cos())


def filtered(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    result = torch.fft.ifft2(gain * torch.fft.fft2(x))
    return result if x.is_complex() else result.real


class Wiener(Prior):
    """The denoiser (I + s² R)⁻¹ of Gaussian images with the precision R."""

    def forward(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        return filtered(x, 1 / (1 + state.square().unsqueeze(-1).unsqueeze(-1) * precision_of_waves())), state


class Record(Prior):
    """Leaves images as they are, and keeps what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        self.seen.append((x, state))
        return x, state


def scan(A: LinearOperator, *batch: int, generator: torch.Generator) -> torch.Tensor:
    noise = NOISE * A.codomain.randn(*batch, generator=generator, dtype=torch.float64)
    return A(A.domain.randn(*batch, generator=generator, dtype=torch.float64)) + noise


def as_matrix(function: Any, A: LinearOperator) -> torch.Tensor:
    dtype = torch.complex128 if A.domain.field == "complex" else torch.float64
    basis = torch.eye(A.domain.size, dtype=dtype).reshape(-1, *A.domain.shape)
    return function(basis).reshape(A.domain.size, -1).T


def denoiser_matrix(level: float, A: LinearOperator) -> torch.Tensor:
    return as_matrix(lambda x: Wiener()(x, torch.tensor(level, dtype=torch.float64))[0], A)


def largest_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.flatten() - expected.flatten()).abs().max() / expected.abs().max())


@over_imaging
def test_at_one_level_it_finds_the_point_that_both_steps_leave_alone(imaging, generator):
    A = IMAGING_CASES[imaging]()
    y = scan(A, generator=generator)
    level, strength = 0.4, 0.7
    weight = strength * (NOISE / level) ** 2
    D, gram = denoiser_matrix(level, A), as_matrix(A.gram, A)
    identity = torch.eye(len(gram), dtype=gram.dtype)
    expected = D @ torch.linalg.solve(gram + weight * (identity - D), A.adjoint(y).flatten())
    options = {"noise_std": NOISE, "strength": strength, "scale": 1.0, "max_cg_iterations": 100}
    solution = plug_and_play(Wiener(), A, y, [level] * 60, **options)
    assert largest_difference(solution.value, expected) < 1e-4
    assert bool(solution.converged)
    assert solution.n_iterations == 60


@over_imaging
def test_levels_that_fall_lead_to_the_most_probable_image(imaging, generator):
    A = IMAGING_CASES[imaging]()
    y = scan(A, generator=generator)
    R = as_matrix(lambda x: filtered(x, precision_of_waves()), A)
    expected = torch.linalg.solve(as_matrix(A.gram, A) + 0.7 * NOISE**2 * R, A.adjoint(y).flatten())
    levels = torch.logspace(0.5, -1.5, 180).tolist()
    options = {"noise_std": NOISE, "strength": 0.7, "scale": 1.0, "max_cg_iterations": 100}
    slowly = plug_and_play(Wiener(), A, y, levels, **options).value
    assert largest_difference(slowly, expected) < 0.02
    assert largest_difference(plug_and_play(Wiener(), A, y, levels[:20], **options).value, expected) > 0.1


@over_imaging
def test_gradient_steps_lead_to_the_most_probable_image(imaging, generator):
    A = IMAGING_CASES[imaging]()
    y = scan(A, generator=generator)
    R = as_matrix(lambda x: filtered(x, precision_of_waves()), A)
    expected = torch.linalg.solve(0.8 * as_matrix(A.gram, A) + 0.4**2 * R, 0.8 * A.adjoint(y).flatten())
    step = GradientStep(0.8).double()
    options = {"noise_std": NOISE, "scale": 1.0, "data_step": step}
    with torch.no_grad():
        found = plug_and_play(Wiener(), A, y, [0.4] * 300, **options).value
    assert largest_difference(found, expected) < 1e-5


def test_filtered_steps_serve_tomography(generator):
    A = IMAGING_CASES["tomography"]()
    image = Wiener()(3 * A.domain.randn(generator=generator, dtype=torch.float64), torch.tensor(1.0))[0]
    y = A(image)
    with torch.no_grad():
        found = plug_and_play(Wiener(), A, y, [0.3, 0.2, 0.1] + [0.05] * 10, noise_std=0.0, data_step=FilteredStep())
    start = initial_image(y, A)
    assert float((found.value - image).norm()) < 0.7 * float((start - image).norm())


def test_without_noise_the_data_are_fitted(generator):
    A = IMAGING_CASES["coils"]()
    y = A(A.domain.randn(generator=generator, dtype=torch.float64))
    solution = plug_and_play(Record(), A, y, [0.1, 0.1], noise_std=0.0, max_cg_iterations=200)
    assert float((A(solution.value) - y).norm()) < 1e-5 * float(y.norm())


def test_the_denoiser_sees_images_of_its_scale_and_the_levels(generator):
    A = IMAGING_CASES["coils"]()
    y = scan(A, 2, generator=generator) * torch.tensor([1.0, 50.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    start = A.adjoint(y)

    class Stay(Consistency):
        def forward(self, x: torch.Tensor, y: torch.Tensor, A: LinearOperator) -> torch.Tensor:
            return x

    for scale, expected in (
        (None, start.abs().square().mean(dim=(-2, -1)).sqrt()),
        (4.0, torch.tensor([4.0, 4.0], dtype=torch.float64)),
        (torch.tensor([2.0, 3.0]), torch.tensor([2.0, 3.0], dtype=torch.float64)),
    ):
        prior = Record()
        solution = plug_and_play(prior, A, y, [0.3, 0.1], noise_std=NOISE, scale=scale, data_step=Stay())
        torch.testing.assert_close(solution.value, start)
        for (image, level), wanted in zip(prior.seen, (0.3, 0.1), strict=True):
            torch.testing.assert_close(image, start / expected.reshape(2, 1, 1))
            torch.testing.assert_close(level, torch.full((2,), wanted, dtype=torch.float64))


@over_imaging
def test_samples_do_not_know_of_each_other_and_there_is_no_unit(imaging, generator):
    A = IMAGING_CASES[imaging]()
    y = scan(A, 2, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = UNetDenoiser(n_channels=2 if A.domain.field == "complex" else 1, base=2, n_stages=1).double().eval()
    levels = [0.5, 0.2]
    factors = torch.tensor([1.0, 1e4], dtype=torch.float64)
    scaled = y * factors.reshape(2, *(1,) * A.codomain.n_dims)
    with torch.no_grad():
        together = plug_and_play(prior, A, scaled, levels, noise_std=NOISE * factors).value
        for i in range(2):
            alone = plug_and_play(prior, A, y[i], levels, noise_std=NOISE).value
            assert largest_difference(together[i] / factors[i], alone) < 1e-5


def test_volumes_are_denoised_slice_by_slice(generator):
    A = IMAGING_CASES["volume"]()
    y = scan(A, generator=generator)
    prior = UNetDenoiser(n_channels=2, base=2, n_stages=1).double().eval()
    with torch.no_grad():
        solution = plug_and_play(prior, A, y, [0.3], noise_std=NOISE)
    A.domain.check(solution.value, "image")


def test_a_callback_sees_every_iterate_and_stops(generator):
    A = IMAGING_CASES["coils"]()
    y = scan(A, generator=generator)
    seen: list[torch.Tensor] = []

    def callback(n: int, z: torch.Tensor) -> bool:
        seen.append(z)
        return n == 2

    solution = plug_and_play(Wiener(), A, y, [0.5] * 5, noise_std=NOISE, callback=callback)
    assert solution.n_iterations == len(seen) == 2
    assert torch.equal(solution.value, seen[1])
    torch.testing.assert_close(solution.residual, (seen[1] - seen[0]).norm() / seen[1].norm())


def test_a_start_that_is_given_is_used(generator):
    A = IMAGING_CASES["coils"]()
    y = scan(A, generator=generator)
    x0 = A.domain.randn(generator=generator, dtype=torch.float64)
    options = {"noise_std": NOISE, "scale": 1.0, "max_cg_iterations": 100}
    weight = (NOISE / 0.5) ** 2
    gram = as_matrix(A.gram, A)
    expected = torch.linalg.solve(
        gram + weight * torch.eye(len(gram), dtype=gram.dtype), (A.adjoint(y) + weight * x0).flatten()
    )
    found = plug_and_play(Record(), A, y, [0.5], x0=x0, **options).value
    assert largest_difference(found, expected) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_levels": []}, r"noise_levels are \[\]"),
        ({"noise_levels": [0.1, 0.0]}, r"noise_levels are \[0.1, 0.0\]"),
        ({"strength": 0.0}, "strength is 0.0"),
        ({"noise_std": -1.0}, "noise_std is -1.0"),
        ({"noise_std": torch.ones(3)}, r"noise_std has shape \(3,\) and the batch is \(2,\)"),
        ({"scale": 0.0}, "scale is 0.0; expected positive"),
        ({"x0": torch.zeros(7, 10, dtype=torch.complex128)}, r"x0 has shape \(7, 10\)"),
    ],
)
def test_numbers_out_of_range_are_named(options, message):
    A = IMAGING_CASES["coils"]()
    y = torch.ones(2, *A.codomain.shape, dtype=torch.complex128)
    with pytest.raises(ValueError, match=message):
        plug_and_play(Record(), A, y, **({"noise_levels": [0.1], "noise_std": NOISE} | options))


def test_data_and_starts_of_another_type_are_refused():
    A = IMAGING_CASES["coils"]()
    with pytest.raises(TypeError, match="expected a complex tensor"):
        plug_and_play(Record(), A, torch.ones(2, *A.codomain.shape), [0.1], noise_std=NOISE)
    y = torch.ones(*A.codomain.shape, dtype=torch.complex128)
    with pytest.raises(TypeError, match=r"x0 is torch\.complex64"):
        plug_and_play(Record(), A, y, [0.1], noise_std=NOISE, x0=torch.zeros(7, 10, dtype=torch.complex64))
