"""The total variation image, and refinements that start from it."""

import torch

from operators.consistency import FilteredStep
from operators.elementary import Diagonal
from operators.priors.denoiser import UNetDenoiser
from operators.space import Space
from operators.total_variation_start import AfterTotalVariation, column_norm, total_variation_image
from operators.unrolled import Unrolled
from tests.cases_learned import IMAGING_CASES

_SHAPE = (12, 10)


def refinement() -> Unrolled:
    torch.manual_seed(0)
    denoiser = UNetDenoiser(n_channels=1, base=4, n_stages=2)
    return Unrolled(denoiser, FilteredStep(0.5), 2, noise_levels=[0.3, 0.1], data_first=True).double()


def test_column_norms_of_a_diagonal_are_its_weights(generator: torch.Generator) -> None:
    weights = torch.rand(_SHAPE, generator=generator, dtype=torch.float64)
    norm = column_norm(Diagonal(weights, Space(_SHAPE, "real")), weights)
    torch.testing.assert_close(norm, weights.square().mean().sqrt().reshape(1, 1))


def test_strength_follows_the_noise_and_not_the_units_of_the_operator(generator: torch.Generator) -> None:
    A = IMAGING_CASES["tomography"]()
    y = A(torch.rand(A.domain.shape, generator=generator, dtype=torch.float64))
    image = total_variation_image(y, A, 0.01)
    torch.testing.assert_close(total_variation_image(3 * y, 3 * A, 0.03), image)
    smoother = total_variation_image(y, A, 0.5)
    assert smoother.diff(dim=-1).abs().sum() < 0.5 * image.diff(dim=-1).abs().sum()


def test_samples_of_a_batch_have_noise_levels_of_their_own(generator: torch.Generator) -> None:
    A = IMAGING_CASES["tomography"]()
    y = A(torch.rand(2, *A.domain.shape, generator=generator, dtype=torch.float64))
    levels = torch.tensor([0.02, 0.5], dtype=torch.float64)
    together = total_variation_image(y, A, levels, n_iterations=20)
    apart = torch.stack(
        [total_variation_image(one, A, float(s), n_iterations=20) for one, s in zip(y, levels, strict=True)]
    )
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-3)


def test_a_refinement_starts_from_the_total_variation_image(generator: torch.Generator) -> None:
    A = IMAGING_CASES["tomography"]()
    y = A(torch.rand(A.domain.shape, generator=generator, dtype=torch.float64))
    inner = refinement()
    model = AfterTotalVariation(inner, regularisation=3.0)
    start = total_variation_image(y, A, 0.02, regularisation=3.0)
    torch.testing.assert_close(model(y, A, 0.02), inner(y, A, 0.02, start))
    seen, own = model.stage_inputs(y, A, 0.02), inner.stage_inputs(y, A, 0.02, start)
    torch.testing.assert_close(seen.images, own.images)
    last = model.prior_step(1, seen.images[1], seen.noise_std, seen.undersampling) * seen.scale
    torch.testing.assert_close(last, model(y, A, 0.02))


def test_what_the_data_leave_open_is_taken_from_the_image_it_begins_at(generator: torch.Generator) -> None:
    A = Diagonal(torch.arange(_SHAPE[1]).sub(5).clamp(0, 1).double().expand(_SHAPE), Space(_SHAPE, "real"))
    truth = torch.ones(_SHAPE, dtype=torch.float64)
    model = AfterTotalVariation(refinement())
    torch.testing.assert_close(model(A(truth), A, 0.0, truth), model.refinement(A(truth), A, 0.0, truth))
    assert (model(A(truth), A, 0.0) - model(A(truth), A, 0.0, truth)).abs().max() > 0.1
