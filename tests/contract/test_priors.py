"""What every learned prior, data step and reconstruction promises, for every kind of imaging."""

import copy
import pickle
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

import operators
from operators.consistency import Consistency
from operators.linear_operator import LinearOperator
from operators.priors.prior import Prior
from operators.reconstructor import Reconstructor
from tests.cases import public_subclasses
from tests.cases_learned import (
    CONSISTENCY_CASES,
    IMAGING_CASES,
    PRIOR_CASES,
    RECONSTRUCTOR_CASES,
    SHAPE,
    coil_maps,
    n_channels_of,
    sense,
)

NOISE = 0.1


def prepared(make: Callable[[], nn.Module]) -> Any:
    """The module in double precision and evaluation mode, its weights always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make().double().eval()


def reconstruction(name: str, A: LinearOperator) -> Reconstructor:
    return prepared(lambda: RECONSTRUCTOR_CASES[name](n_channels_of(A)))


def data(A: LinearOperator, *batch: int, generator: torch.Generator) -> torch.Tensor:
    """Of images with a few high peaks, which no threshold takes away altogether."""
    image = A.domain.randn(*batch, generator=generator, dtype=torch.float64)
    image = image * image.abs() ** 3
    noise = NOISE * A.codomain.randn(*batch, generator=generator, dtype=torch.float64)
    return A(image) + noise


over_reconstructions = pytest.mark.parametrize(("case", "imaging"), [*product(RECONSTRUCTOR_CASES, IMAGING_CASES)])
over_consistencies = pytest.mark.parametrize(("case", "imaging"), [*product(CONSISTENCY_CASES, IMAGING_CASES)])
over_priors = pytest.mark.parametrize(("case", "n_channels"), [*product(PRIOR_CASES, (1, 2))])


def same(actual: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-10) -> None:
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=rtol * scale)


def reaches_every_parameter(module: nn.Module, result: torch.Tensor) -> None:
    result.abs().square().sum().backward()
    without = [name for name, p in module.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not without
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters())


def round_trip(module: nn.Module, fresh: nn.Module, apply: Callable[[Any], torch.Tensor]) -> None:
    """The state holds all that makes the module: another one with it, a pickle and a copy give the same."""
    expected = apply(module)
    for p in fresh.parameters():
        nn.init.normal_(p)
    fresh.load_state_dict(module.state_dict(), strict=True)
    for other in (fresh, pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        same(apply(other), expected)


@over_reconstructions
def test_a_reconstruction_gives_images_of_the_domain(case, imaging, generator):
    A = IMAGING_CASES[imaging]()
    model = reconstruction(case, A)
    for batch in ((), (2,), (1, 2)):
        image = model(data(A, *batch, generator=generator), A, NOISE)
        A.domain.check(image, "image")
        assert image.shape == (*batch, *A.domain.shape)
        assert image.dtype.to_real() == torch.float64


@over_reconstructions
def test_samples_of_a_reconstruction_do_not_know_of_each_other(case, imaging, generator):
    A = IMAGING_CASES[imaging]()
    model = reconstruction(case, A)
    y = data(A, 3, generator=generator) * torch.tensor([1.0, 1e3, 1e-3]).reshape(3, *(1,) * A.codomain.n_dims)
    noise = torch.tensor([0.1, 200.0, 1e-4], dtype=torch.float64)
    together = model(y, A, noise)
    for i in range(3):
        same(together[i], model(y[i], A, float(noise[i])), rtol=1e-9)


@over_reconstructions
def test_a_reconstruction_knows_no_unit(case, imaging, generator):
    A = IMAGING_CASES[imaging]()
    model = reconstruction(case, A)
    y = data(A, 2, generator=generator)
    same(model(3e4 * y, A, 3e4 * NOISE), 3e4 * model(y, A, NOISE), rtol=1e-9)


@over_reconstructions
def test_gradients_of_a_reconstruction_reach_every_parameter_and_the_data(case, imaging, generator):
    A = IMAGING_CASES[imaging]()
    model = reconstruction(case, A)
    y = data(A, 2, generator=generator).requires_grad_()
    reaches_every_parameter(model, model(y, A, NOISE))
    assert bool(y.grad.isfinite().all())
    assert bool(y.grad.any())


@over_reconstructions
def test_a_reconstruction_of_nothing_is_nothing(case, imaging, generator):
    A = IMAGING_CASES[imaging]()
    model = reconstruction(case, A)
    y = data(A, 2, generator=generator)
    y[0] = 0
    for given, noise in product((y, torch.zeros_like(y)), (NOISE, 0.0)):
        gives_zero_for_the_first(model, given, A, noise)


@pytest.mark.parametrize("case", RECONSTRUCTOR_CASES)
def test_a_reconstruction_of_nothing_measured_is_nothing(case, generator):
    nothing, everything = torch.zeros(1, *SHAPE, dtype=torch.float64), torch.ones(1, *SHAPE, dtype=torch.float64)
    for mask in (nothing, torch.stack((nothing, everything))):
        A = sense(coil_maps(2, SHAPE), mask)
        y = A.codomain.randn(2, generator=generator, dtype=torch.float64)
        gives_zero_for_the_first(reconstruction(case, A), y, A, NOISE)


def gives_zero_for_the_first(model: Reconstructor, y: torch.Tensor, A: LinearOperator, noise: float) -> None:
    y = y.clone().requires_grad_()
    model.zero_grad()
    image = model(y, A, noise)
    image.abs().square().sum().backward()
    assert not bool(image[0].any())
    assert bool(image.isfinite().all())
    assert bool(y.grad.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("case", RECONSTRUCTOR_CASES)
def test_weights_and_data_of_different_precision_are_refused(case, generator):
    A = IMAGING_CASES["coils"]()
    y = data(A, 2, generator=generator)
    model = reconstruction(case, A)
    with pytest.raises(TypeError, match=r"float64 and the data are torch\.complex64"):
        model(y.to(torch.complex64), A, NOISE)
    with pytest.raises(TypeError, match=r"float32 and the data are torch\.complex128"):
        model.float()(y, A, NOISE)


@pytest.mark.parametrize("shape", [(3,), (1, 2), (2, 1)])
def test_noise_levels_that_do_not_fit_the_batch_are_refused(shape, generator):
    A = IMAGING_CASES["coils"]()
    model = reconstruction("image_u_net", A)
    with pytest.raises(ValueError, match=r"noise_std has shape \(.*\) and the batch is \(2,\)"):
        model(data(A, 2, generator=generator), A, torch.full(shape, NOISE))


@pytest.mark.parametrize("case", RECONSTRUCTOR_CASES)
def test_a_reconstruction_is_its_state(case, generator):
    A = IMAGING_CASES["coils"]()
    y = data(A, 2, generator=generator)
    fresh = RECONSTRUCTOR_CASES[case](2).double().eval()
    round_trip(reconstruction(case, A), fresh, lambda model: model(y, A, NOISE))


@pytest.mark.parametrize("case", RECONSTRUCTOR_CASES)
def test_single_precision_stays_single_and_agrees(case, generator):
    A = IMAGING_CASES["coils"]()
    y = data(A, 2, generator=generator)
    model = reconstruction(case, A)
    expected = model(y, A, NOISE)
    single = model.float()(y.to(torch.complex64), A, NOISE)
    assert single.dtype == torch.complex64
    same(single.to(torch.complex128), expected, rtol=2e-4)


@pytest.mark.parametrize("case", RECONSTRUCTOR_CASES)
def test_every_scan_of_a_batch_may_have_its_own_mask(case, generator):
    masks = (torch.rand(2, 1, *SHAPE, generator=generator) > 0.4).double()
    csm = coil_maps(2, SHAPE)
    A = sense(csm, masks)
    model = reconstruction(case, A)
    y = data(A, 3, 2, generator=generator)
    together = model(y, A, NOISE)
    for i in range(2):
        same(together[:, i], model(y[:, i], sense(csm, masks[i]), NOISE), rtol=1e-6)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", RECONSTRUCTOR_CASES)
def test_a_reconstruction_does_the_same_on_a_gpu(case, generator):
    A = IMAGING_CASES["coils"]()
    y = data(A, 2, generator=generator)
    model = reconstruction(case, A)
    expected = model(y, A, NOISE)
    same(model.cuda()(y.cuda(), A.cuda(), NOISE).cpu(), expected, rtol=1e-6)


def images(n_channels: int, *shape: int, generator: torch.Generator) -> torch.Tensor:
    dtype = torch.complex128 if n_channels == 2 else torch.float64
    return torch.randn(*shape, dtype=dtype, generator=generator)


def step_of(prior: Prior, x: torch.Tensor) -> torch.Tensor:
    noise = torch.full(x.shape[:-2], NOISE, dtype=torch.float64)
    return prior(x, prior.init(x, noise))[0]


@over_priors
@pytest.mark.parametrize("shape", [(5, 7), (8, 8), (1, 3), (2, 3, 9, 4)])
def test_a_prior_takes_any_size(case, n_channels, shape, generator):
    x = images(n_channels, *shape, generator=generator)
    result = step_of(prepared(lambda: PRIOR_CASES[case](n_channels)), x)
    assert result.shape == x.shape
    assert result.dtype == x.dtype


@over_priors
def test_samples_of_a_prior_do_not_know_of_each_other(case, n_channels, generator):
    prior = prepared(lambda: PRIOR_CASES[case](n_channels))
    x = images(n_channels, 3, 6, 5, generator=generator)
    x[1] *= 1e3
    together = step_of(prior, x)
    for i in range(3):
        same(together[i], step_of(prior, x[i]))


@over_priors
def test_gradients_of_a_prior_reach_every_parameter(case, n_channels, generator):
    prior = prepared(lambda: PRIOR_CASES[case](n_channels))
    reaches_every_parameter(prior, step_of(prior, images(n_channels, 2, 6, 5, generator=generator)))


@over_priors
def test_a_prior_is_finite_at_zero(case, n_channels, generator):
    prior = prepared(lambda: PRIOR_CASES[case](n_channels))
    x = torch.zeros_like(images(n_channels, 2, 6, 5, generator=generator)).requires_grad_()
    result = step_of(prior, x)
    result.abs().square().sum().backward()
    assert bool(result.isfinite().all())
    assert bool(x.grad.isfinite().all())


@over_priors
def test_a_prior_is_its_state(case, n_channels, generator):
    x = images(n_channels, 2, 6, 5, generator=generator)
    fresh = PRIOR_CASES[case](n_channels).double().eval()
    round_trip(prepared(lambda: PRIOR_CASES[case](n_channels)), fresh, lambda prior: step_of(prior, x))


@over_consistencies
def test_samples_of_a_data_step_do_not_know_of_each_other(case, imaging, generator):
    A = IMAGING_CASES[imaging]()
    step = prepared(CONSISTENCY_CASES[case])
    y = data(A, 2, generator=generator)
    x = A.domain.randn(2, generator=generator, dtype=torch.float64)
    y[1] *= 1e3
    together = step(x, y, A)
    for i in range(2):
        same(together[i], step(x[i], y[i], A), rtol=1e-4)


@over_consistencies
def test_a_data_step_comes_closer_to_the_data(case, imaging, generator):
    A = IMAGING_CASES[imaging]()
    step = prepared(CONSISTENCY_CASES[case])
    y = data(A, 2, generator=generator)
    x = A.domain.randn(2, generator=generator, dtype=torch.float64)
    assert float((A(step(x, y, A)) - y).detach().norm()) < float((A(x) - y).norm())


@over_consistencies
def test_gradients_of_a_data_step_reach_every_parameter(case, imaging, generator):
    A = IMAGING_CASES[imaging]()
    step = prepared(CONSISTENCY_CASES[case])
    x = A.domain.randn(2, generator=generator, dtype=torch.float64)
    reaches_every_parameter(step, step(x, data(A, 2, generator=generator), A))


@over_consistencies
def test_a_data_step_is_its_state(case, imaging, generator):
    A = IMAGING_CASES[imaging]()
    y = data(A, 2, generator=generator)
    x = A.domain.randn(2, generator=generator, dtype=torch.float64)
    fresh = CONSISTENCY_CASES[case]().double()
    round_trip(prepared(CONSISTENCY_CASES[case]), fresh, lambda step: step(x, y, A))


@pytest.mark.parametrize(
    ("base", "made"),
    [
        (Prior, lambda: [make(2) for make in PRIOR_CASES.values()]),
        (Consistency, lambda: [make() for make in CONSISTENCY_CASES.values()]),
        (Reconstructor, lambda: [make(2) for make in RECONSTRUCTOR_CASES.values()]),
    ],
)
def test_every_public_class_has_a_case(base, made):
    covered = {type(case) for case in made()}
    assert not sorted(cls.__qualname__ for cls in public_subclasses(operators, base) - covered)
