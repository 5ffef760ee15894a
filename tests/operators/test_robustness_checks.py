"""Checks without ground truth, against cases whose answer is known in closed form."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from scipy import stats

from operators.consistency import GradientStep
from operators.elementary import Diagonal, Identity, Mask
from operators.fourier import Fourier
from operators.linear_operator import LinearOperator
from operators.priors.denoiser import ConvolutionalDenoiser
from operators.robustness import (
    Change,
    DataResidual,
    LesionInsertion,
    data_residual,
    draw_lesion,
    equivariance,
    lesion_insertion,
    movements,
    noise_norm,
    null_space_change,
    repetition_split,
    scaling,
    stability,
)
from operators.space import Space
from operators.unrolled import Unrolled

SHAPE = (6, 6)
SIGMA = 0.3


def adjoint(y: torch.Tensor, A: LinearOperator, noise_std: float | torch.Tensor) -> torch.Tensor:
    return A.adjoint(y)


def complex_draw(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex128, generator=generator)


def masked_fourier(generator: torch.Generator) -> tuple[LinearOperator, torch.Tensor]:
    mask = (torch.rand(SHAPE, generator=generator, dtype=torch.float64) < 0.6).double()
    fourier = Fourier(SHAPE)
    return Mask(mask, fourier.codomain) @ fourier, mask


def test_the_residual_of_the_truth_is_chi_squared_with_the_measured_real_numbers(generator: torch.Generator) -> None:
    A, mask = masked_fourier(generator)
    x = complex_draw(generator, *SHAPE)
    noise = 2**0.5 * SIGMA * complex_draw(generator, *SHAPE) * mask
    found = data_residual(x, A(x) + noise, A, SIGMA, measured=mask)
    n = 2 * int(mask.sum())
    chi2 = float((noise.abs() / SIGMA).square().sum())
    assert found.n_samples == n
    assert found.chi2_per_sample == pytest.approx(chi2 / n, rel=1e-12)
    assert found.z == pytest.approx((chi2 - n) / (2 * n) ** 0.5, rel=1e-12)
    assert found.p_value == pytest.approx(2 * min(stats.chi2.cdf(chi2, n), stats.chi2.sf(chi2, n)), rel=1e-10)
    assert "agree" in found.meaning


def test_p_values_of_the_truth_are_uniform(generator: torch.Generator) -> None:
    A = Identity(Space((50,), "real"))
    x = torch.zeros(50, dtype=torch.float64)
    draws = [SIGMA * torch.randn(50, dtype=torch.float64, generator=generator) for _ in range(400)]
    values = [data_residual(x, y, A, SIGMA).p_value for y in draws]
    assert stats.kstest(values, "uniform").pvalue > 0.05


def test_an_image_that_is_the_data_follows_the_noise_and_another_contradicts_them(generator: torch.Generator) -> None:
    A = Identity(Space((200,), "real"))
    y = torch.randn(200, dtype=torch.float64, generator=generator)
    overfitted = data_residual(y, y, A, SIGMA)
    assert (overfitted.chi2_per_sample, overfitted.p_value) == (0.0, 0.0)
    assert overfitted.z == pytest.approx(-10.0)
    assert "follows the noise" in overfitted.meaning
    assert "contradicts" in data_residual(0 * y, y, A, SIGMA).meaning


def test_a_noise_level_may_be_one_for_each_sample_or_for_each_datum(generator: torch.Generator) -> None:
    A = Identity(Space((4, 5), "real"))
    y = torch.randn(3, 4, 5, dtype=torch.float64, generator=generator)
    x = torch.zeros_like(y)
    levels = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    expected = (y / levels[:, None, None]).square().mean()
    for noise_std in (levels, levels[:, None, None].expand(3, 4, 5)):
        assert data_residual(x, y, A, noise_std).chi2_per_sample == pytest.approx(float(expected), rel=1e-12)


def test_residuals_refuse_what_cannot_be_compared(generator: torch.Generator) -> None:
    A = Identity(Space((4,), "real"))
    y = torch.ones(4, dtype=torch.float64)
    with pytest.raises(ValueError, match="expected positive finite numbers"):
        data_residual(y, y, A, 0.0)
    with pytest.raises(ValueError, match="measured is zero everywhere"):
        data_residual(y, y, A, 1.0, measured=torch.zeros(4))
    with pytest.raises(ValueError, match="does not broadcast to the data"):
        data_residual(y, y, A, 1.0, measured=torch.ones(3))
    with pytest.raises(ValueError, match="give one number"):
        data_residual(y, y, A, torch.ones(3))
    with pytest.raises(ValueError, match="give an image for each"):
        data_residual(y, torch.ones(2, 4, dtype=torch.float64), A, 1.0)
    with pytest.raises(TypeError):
        data_residual(y + 0j, y, A, 1.0)


def test_the_identity_fits_its_own_data_and_predicts_others_with_twice_the_noise(generator: torch.Generator) -> None:
    A = Identity(Space((30,), "complex"))
    first, second = complex_draw(generator, 30), complex_draw(generator, 30)
    found = repetition_split(adjoint, first, second, A, SIGMA)
    assert found.fit == 0
    assert found.prediction == pytest.approx(float((first - second).abs().square().sum()) / (60 * SIGMA**2), rel=1e-12)
    assert found.n_samples == 60


def test_what_the_prediction_exceeds_one_by_is_the_power_of_the_error(generator: torch.Generator) -> None:
    n, shrinkage = 40_000, 0.7
    A = Identity(Space((n,), "real"))
    truth = torch.randn(n, dtype=torch.float64, generator=generator)
    first, second = (truth + SIGMA * torch.randn(n, dtype=torch.float64, generator=generator) for _ in range(2))
    found = repetition_split(lambda y, A, noise_std: shrinkage * y, first, second, A, SIGMA)
    error = sum(float((shrinkage * y - truth).square().mean()) for y in (first, second)) / (2 * SIGMA**2)
    assert found.error_power == pytest.approx(error, abs=0.05)
    expected = (1 - shrinkage) ** 2 * float(truth.square().mean()) / SIGMA**2 + shrinkage**2
    assert found.error_power == pytest.approx(expected, abs=0.05)
    assert f"{found.error_power:.3g}" in found.meaning


def test_the_adjoint_is_equivariant_to_everything(generator: torch.Generator) -> None:
    A, _ = masked_fourier(generator)
    y = A(complex_draw(generator, *SHAPE))
    changes = (*movements(y, A, SIGMA), scaling(y, A, SIGMA))
    found = equivariance(adjoint, y, A, SIGMA, changes)
    assert [f.change for f in found] == [c.name for c in changes]
    assert len(found) == 4
    assert max(f.error for f in found) < 1e-12


def test_a_method_that_knows_places_is_not_equivariant_to_movements(generator: torch.Generator) -> None:
    A, _ = masked_fourier(generator)
    x0 = A.gram(complex_draw(generator, *SHAPE))
    places = torch.rand(SHAPE, dtype=torch.float64, generator=generator)
    moved_back = {
        "shift by (1, 2) pixels": places.roll((-1, -2), (0, 1)),
        "mirroring": places.flip(1),
        "rotation by 90°": places.rot90(-1, (0, 1)),
    }
    found = equivariance(
        lambda y, A, noise_std: places * A.adjoint(y), A(x0), A, SIGMA, movements(A(x0), A, SIGMA, shift=(1, 2))
    )
    for result in found:
        other = moved_back[result.change]
        expected = torch.linalg.norm((other - places) * x0) / torch.linalg.norm(places * x0)
        assert result.error == pytest.approx(float(expected), rel=1e-12)
        assert f"{100 * result.error:.3g} %" in result.meaning


def test_images_that_are_not_square_are_not_rotated(generator: torch.Generator) -> None:
    A = Fourier((4, 6))
    y = complex_draw(generator, 4, 6)
    assert [change.name for change in movements(y, A, SIGMA)] == ["shift by (3, 5) pixels", "mirroring"]


def test_movements_keep_a_batch_of_operators(generator: torch.Generator) -> None:
    fourier = Fourier(SHAPE)
    mask = (torch.rand((2, *SHAPE), generator=generator, dtype=torch.float64) < 0.5).double()
    A = Mask(mask, fourier.codomain) @ fourier
    y = A(complex_draw(generator, 2, *SHAPE))
    assert max(f.error for f in equivariance(adjoint, y, A, SIGMA, movements(y, A, SIGMA))) < 1e-12


def test_a_constant_that_is_added_breaks_scale_and_a_changed_method_is_compared(generator: torch.Generator) -> None:
    A = Identity(Space((5,), "real"))
    y, added = (torch.rand(5, dtype=torch.float64, generator=generator) for _ in range(2))
    permuted = Change(
        name="permutation", y=y, A=A, noise_std=SIGMA, reconstruct=lambda y, A, noise_std: 2 * (y + added)
    )
    scale, permutation = equivariance(
        lambda y, A, noise_std: y + added, y, A, SIGMA, [scaling(y, A, SIGMA, 4.0), permuted]
    )
    expected = torch.linalg.norm(0.75 * added) / torch.linalg.norm(y + added)
    assert scale.error == pytest.approx(float(expected), rel=1e-12)
    assert permutation.error == pytest.approx(1.0)


def test_scaling_scales_the_noise_level_too() -> None:
    y = torch.ones(3, dtype=torch.float64)
    change = scaling(y, Identity(Space((3,), "real")), 0.5, 4.0)
    assert (change.noise_std, float(change.y[0])) == (2.0, 4.0)
    with pytest.raises(ValueError, match="positive"):
        scaling(y, change.A, 0.5, -1.0)


def test_equivariance_of_a_zero_image_is_refused() -> None:
    y = torch.zeros(3, dtype=torch.float64)
    A = Identity(Space((3,), "real"))
    with pytest.raises(ValueError, match="The image has norm 0"):
        equivariance(adjoint, y, A, SIGMA, [scaling(y, A, SIGMA)])


def test_the_null_space_of_a_masked_transform_is_what_was_not_measured(generator: torch.Generator) -> None:
    A, mask = masked_fourier(generator)
    x, y = complex_draw(generator, *SHAPE), complex_draw(generator, *SHAPE) * mask
    unseen = torch.linalg.norm((1 - mask) * Fourier(SHAPE)(x))
    found = null_space_change(x, y, A)
    assert found.share == pytest.approx(float(unseen / torch.linalg.norm(x)), rel=1e-10)
    assert found.over_minimum_norm == pytest.approx(float(unseen / torch.linalg.norm(y)), rel=1e-10)
    assert found.converged
    assert null_space_change(A.adjoint(y), y, A).share < 1e-10


def test_the_null_space_of_a_diagonal_is_where_it_is_zero(generator: torch.Generator) -> None:
    weights = torch.tensor([3.0, 0.0, 1.0, 0.5, 0.0, 2.0], dtype=torch.float64)
    A = Diagonal(weights, Space((6,), "real"))
    x, y = (torch.randn(2, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    seen = weights != 0
    expected = torch.linalg.norm(x[:, ~seen])
    found = null_space_change(x, y, A, rtol=1e-12)
    assert found.share == pytest.approx(float(expected / torch.linalg.norm(x)), rel=1e-9)
    least = y[:, seen] / weights[seen]
    assert found.over_minimum_norm == pytest.approx(float(expected / torch.linalg.norm(least)), rel=1e-9)
    stopped = null_space_change(x, y, A, max_iterations=1)
    assert not stopped.converged
    assert stopped.share > found.share
    assert "at most" in stopped.meaning
    assert "at most" not in found.meaning


def test_the_worst_change_of_a_filter_is_where_its_gain_is_largest(generator: torch.Generator) -> None:
    gains = torch.full(SHAPE, 0.2, dtype=torch.float64)
    gains[2, 3] = 0.9
    y = complex_draw(generator, *SHAPE)
    seed = generator.get_state()
    found = stability(
        lambda y, A, noise_std: A.adjoint(gains * y),
        y,
        Fourier(SHAPE),
        SIGMA,
        radius=0.01,
        generator=generator,
        n_steps=20,
        n_random=3,
    )
    generator.set_state(seed)
    draws = [complex_draw(generator, *SHAPE) for _ in range(3)]
    random = [float(torch.linalg.norm(gains * d) / torch.linalg.norm(d)) for d in draws]
    assert found.worst == pytest.approx(0.9, rel=1e-9)
    assert found.random == pytest.approx(sum(random) / 3, rel=1e-9)
    assert found.radius == 0.01


def test_amplification_does_not_depend_on_the_scale_of_the_operator(generator: torch.Generator) -> None:
    A = 2.0 * Fourier(SHAPE)
    y = complex_draw(generator, *SHAPE)
    found = stability(lambda y, A, noise_std: A.adjoint(y) / 4, y, A, SIGMA, radius=1.0, generator=generator, n_steps=1)
    assert found.worst == pytest.approx(1.0, rel=1e-9)
    assert found.random == pytest.approx(1.0, rel=1e-9)


def test_only_what_was_measured_is_changed_and_by_the_radius(generator: torch.Generator) -> None:
    A, mask = masked_fourier(generator)
    y = A(complex_draw(generator, *SHAPE))
    changes: list[torch.Tensor] = []

    def recording(data: torch.Tensor, A: LinearOperator, noise_std: float | torch.Tensor) -> torch.Tensor:
        changes.append((data - y).detach())
        return A.domain.randn(generator=torch.Generator().manual_seed(0), dtype=torch.float64) * data.sum()

    found = stability(recording, y, A, SIGMA, radius=0.5, generator=generator, n_steps=2, measured=mask)
    made = [change for change in changes if bool(change.any())]
    assert len(made) == 4 + 2 * 2
    for change in made:
        assert float(torch.linalg.norm(change)) == pytest.approx(0.5)
        assert not bool((change * (1 - mask)).any())
    assert found.worst > found.random


def test_the_worst_change_of_a_threshold_is_where_it_lets_through(generator: torch.Generator) -> None:
    y = torch.zeros(20, dtype=torch.float64)
    y[7] = 3.0
    A = Identity(Space((20,), "real"))
    found = stability(
        lambda y, A, noise_std: torch.relu(y - 1.0), y, A, SIGMA, radius=0.1, generator=generator, n_steps=2
    )
    assert found.worst == pytest.approx(1.0, rel=1e-9)
    assert found.random < 0.9


def test_a_learned_reconstruction_is_differentiated_and_its_worst_change_is_worse_than_noise(
    generator: torch.Generator,
) -> None:
    torch.manual_seed(0)
    model = Unrolled(ConvolutionalDenoiser(n_layers=2, width=4), GradientStep(), n_iterations=2).double().eval()
    A, mask = masked_fourier(generator)
    y = A(complex_draw(generator, 1, *SHAPE))
    radius = 0.1 * noise_norm(y, A, SIGMA, measured=mask)
    found = stability(model, y, A, SIGMA, radius=radius, generator=generator, n_steps=5, measured=mask)
    assert found.worst > 1.01 * found.random
    assert "amplified" in found.meaning


def test_stability_says_when_no_gradient_comes_through(generator: torch.Generator) -> None:
    y = torch.ones(4, dtype=torch.float64)
    A = Identity(Space((4,), "real"))

    @torch.no_grad()
    def closed(y: torch.Tensor, A: LinearOperator, noise_std: float | torch.Tensor) -> torch.Tensor:
        return 2 * y

    with pytest.raises(ValueError, match="No gradient comes through"):
        stability(closed, y, A, SIGMA, radius=0.1, generator=generator)
    with pytest.raises(ValueError, match="expected a positive radius"):
        stability(adjoint, y, A, SIGMA, radius=0.0, generator=generator)
    constant = stability(lambda y, A, noise_std: 0 * y, y, A, SIGMA, radius=0.1, generator=generator)
    assert (constant.worst, constant.random) == (0.0, 0.0)


def test_the_norm_of_the_noise_counts_what_was_measured() -> None:
    y = torch.zeros(2, 3, dtype=torch.complex128)
    A = Identity(Space((3,), "complex"))
    assert noise_norm(y, A, 0.5) == pytest.approx(0.5 * 12**0.5)
    assert noise_norm(y, A, 0.5, measured=torch.tensor([1, 0, 1])) == pytest.approx(0.5 * 8**0.5)
    levels = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert noise_norm(y, A, levels) == pytest.approx(math.sqrt(6 * 1 + 6 * 4))


def test_a_lesion_that_is_shrunk_and_copied_is_recovered_and_invented_so(generator: torch.Generator) -> None:
    shape = (12, 16)
    A = Identity(Space(shape, "real"))
    y = torch.rand(shape, dtype=torch.float64, generator=generator)
    lesion = 0.2 * draw_lesion(shape, (6, 4), 2.0, profile="disc", dtype=torch.float64)
    elsewhere = [0.2 * draw_lesion(shape, (6, 12), 2.0, profile="disc", dtype=torch.float64)]
    found = lesion_insertion(lambda y, A, noise_std: 0.8 * y - 0.3 * y.roll(8, 1), y, A, SIGMA, lesion, elsewhere)
    assert found.recovered == pytest.approx(0.8, rel=1e-12)
    assert found.invented == pytest.approx(0.3, rel=1e-12)
    assert found == LesionInsertion(recovered=found.recovered, invented=found.invented, n_places=1)
    assert "80 %" in found.meaning
    assert "30 %" in found.meaning


def test_a_lesion_with_a_phase_is_recovered_through_a_transform(generator: torch.Generator) -> None:
    A, mask = masked_fourier(generator)
    lesion = draw_lesion(SHAPE, (3, 2), 1.0, dtype=torch.float64) * torch.polar(
        torch.ones(SHAPE, dtype=torch.float64), torch.rand(SHAPE, dtype=torch.float64, generator=generator)
    )
    other = lesion.roll(3, 1)
    found = lesion_insertion(adjoint, A(complex_draw(generator, *SHAPE)), A, SIGMA, lesion, [other])
    spectrum, other_spectrum = Fourier(SHAPE)(lesion), Fourier(SHAPE)(other)
    power = lesion.abs().square().sum()
    assert found.recovered == pytest.approx(float((mask * spectrum.abs().square()).sum() / power), rel=1e-10)
    expected = (other_spectrum.conj() * mask * spectrum).real.sum().abs() / power
    assert found.invented == pytest.approx(float(expected), rel=1e-10)


def test_lesions_have_their_shape_and_must_be_seen() -> None:
    disc = draw_lesion((9, 9), (4, 4), 2.0, profile="disc", dtype=torch.float64)
    assert int(disc.sum()) == 13
    gaussian = draw_lesion((9, 9), (4, 4), 2.0, dtype=torch.float64)
    assert (float(gaussian[4, 4]), float(gaussian[4, 6])) == (1.0, 0.5)
    with pytest.raises(ValueError, match="is not in an image"):
        draw_lesion((9, 9), (30, 4), 2.0, dtype=torch.float64)
    with pytest.raises(ValueError, match="radius"):
        draw_lesion((9, 9), (4, 4), 0.0, dtype=torch.float64)
    y = torch.ones(9, 9, dtype=torch.float64)
    A = Identity(Space((9, 9), "real"))
    with pytest.raises(TypeError, match="draw it in their precision"):
        lesion_insertion(adjoint, y, A, SIGMA, draw_lesion((9, 9), (4, 4), 2.0), [gaussian])
    with pytest.raises(ValueError, match="No other place"):
        lesion_insertion(adjoint, y, A, SIGMA, gaussian, [])


def test_results_are_plain_numbers() -> None:
    found = data_residual(
        torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64), Identity(Space((4,), "real")), 1.0
    )
    assert DataResidual(**json.loads(json.dumps(asdict(found)))) == found
