"""Loops of priors and data steps, and the data steps themselves, against what they are written to compute."""

from typing import Any

import pytest
import torch

from operators.consistency import Consistency, FilteredStep, GradientStep, ProximalStep
from operators.filtered_start import filtered_adjoint, initial_image
from operators.linear_operator import LinearOperator
from operators.priors.denoiser import ConvolutionalDenoiser, UNetDenoiser
from operators.priors.networks import ImageUNet, VariationalNetwork, modl, varnet
from operators.priors.prior import Prior
from operators.unrolled import Unrolled
from tests.cases_learned import IMAGING_CASES, RECONSTRUCTOR_CASES


class Shift(Prior):
    """Adds a number, and counts its steps in the state."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(shift, dtype=torch.float64))
        self.seen: list[Any] = []

    def init(self, x: torch.Tensor, noise_std: torch.Tensor) -> Any:
        return 0

    def forward(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        self.seen.append(state)
        return x + self.shift, state + 1


class Shrink(Prior):
    """Makes the image smaller by the noise level it is told, which it remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        self.told.append(state.detach())
        return x / (1 + state.unsqueeze(-1).unsqueeze(-1)), state


class Stay(Consistency):
    """Leaves the image as it is."""

    def forward(self, x: torch.Tensor, y: torch.Tensor, A: LinearOperator) -> torch.Tensor:
        return x


def scan_of(A: LinearOperator, *batch: int, generator: torch.Generator) -> torch.Tensor:
    return A(A.domain.randn(*batch, generator=generator, dtype=torch.float64))


def dense_gram(A: LinearOperator) -> torch.Tensor:
    dtype = torch.complex128 if A.domain.field == "complex" else torch.float64
    basis = torch.eye(A.domain.size, dtype=dtype).reshape(-1, *A.domain.shape)
    return A.gram(basis).reshape(A.domain.size, -1).T


def test_one_prior_keeps_its_state_and_many_have_their_own(generator):
    A = IMAGING_CASES["coils"]()
    y = scan_of(A, generator=generator)
    shared = Shift(1.0)
    Unrolled(shared, Stay(), 3)(y, A, 0.1)
    assert shared.seen == [0, 1, 2]
    own = [Shift(1.0) for _ in range(3)]
    Unrolled(own, Stay(), 3)(y, A, 0.1)
    assert [prior.seen for prior in own] == [[0], [0], [0]]


def test_the_loop_is_what_it_says(generator):
    A = IMAGING_CASES["coils"]()
    y = scan_of(A, 2, generator=generator)
    model = Unrolled([Shift(0.5), Shift(-0.2)], [GradientStep(0.3), GradientStep(0.6)], 2).double()
    x0 = A.adjoint(y)
    scale = x0.abs().square().mean(dim=(-2, -1)).sqrt().reshape(2, 1, 1)
    x = x0 / scale
    for shift, step in ((0.5, 0.3), (-0.2, 0.6)):
        x = x + shift
        x = x - step * A.adjoint(A(x) - y / scale.unsqueeze(1))
    torch.testing.assert_close(model(y, A, 0.1), x * scale, rtol=1e-6, atol=1e-6)


def test_the_prior_is_told_what_is_left_of_errors_and_noise(generator):
    A = IMAGING_CASES["coils"]()
    y = scan_of(A, 2, generator=generator)
    scale = A.adjoint(y).abs().square().mean(dim=(-2, -1)).sqrt()
    noise_std = torch.tensor([0.0, 0.2], dtype=torch.float64)
    prior = Shrink()
    Unrolled(prior, Stay(), 3, noise_levels=(0.3, 0.2, 0.1)).double()(y, A, noise_std)
    for told, level in zip(prior.told, (0.3, 0.2, 0.1), strict=True):
        torch.testing.assert_close(told, (level**2 + (noise_std / scale) ** 2).sqrt(), rtol=1e-6, atol=0)


def test_without_noise_levels_of_its_own_the_prior_is_told_that_of_the_data(generator):
    A = IMAGING_CASES["coils"]()
    y = scan_of(A, generator=generator)
    prior = Shrink()
    Unrolled(prior, Stay(), 2)(y, A, 0.2)
    expected = 0.2 / A.adjoint(y).abs().square().mean().sqrt()
    torch.testing.assert_close(torch.stack(prior.told), expected.expand(2))


def test_what_undersampling_leaves_grows_with_it(generator):
    A = IMAGING_CASES["tomography"]()
    y = scan_of(A, generator=generator)
    prior = Shrink()
    model = Unrolled(prior, Stay(), 2, noise_levels=(0.3, 0.2), undersampling_power=0.7).double()
    model(y, A, 0.0)
    ratio = A.domain.size / A.codomain.size
    assert ratio != 1
    expected = ratio**0.7 * torch.tensor([0.3, 0.2], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(prior.told), expected, rtol=1e-6, atol=0)
    model(y, A, 0.1).square().sum().backward()
    assert model.undersampling_power.grad != 0


def test_noise_levels_learn(generator):
    A = IMAGING_CASES["coils"]()
    y = scan_of(A, generator=generator)
    model = Unrolled(Shrink(), GradientStep(0.3), 2, noise_levels=(0.3, 0.1)).double()

    def loss(log_levels: torch.Tensor) -> torch.Tensor:
        swapped = torch.func.functional_call(model, {"log_noise_levels": log_levels}, (y, A, 0.1))
        return swapped.abs().square().sum()

    levels = model.log_noise_levels.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, levels)
    assert bool(torch.autograd.grad(loss(levels), levels)[0].all())


def test_the_prior_may_have_the_last_word(generator):
    A = IMAGING_CASES["coils"]()
    y = scan_of(A, 2, generator=generator)
    x0 = A.adjoint(y)
    scale = x0.abs().square().mean(dim=(-2, -1)).sqrt().reshape(2, 1, 1)
    x = x0 / scale
    for shift, step in ((0.5, 0.3), (-0.2, 0.6)):
        x = x - step * A.adjoint(A(x) - y / scale.unsqueeze(1)) + shift
    steps = [GradientStep(0.3), GradientStep(0.6)]
    model = Unrolled([Shift(0.5), Shift(-0.2)], steps, 2, data_first=True).double()
    torch.testing.assert_close(model(y, A, 0.1), x * scale, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("imaging", ["coils", "volume", "tomography"])
@pytest.mark.parametrize("gradient", ["iterations", "checkpointed"])
def test_all_iterates_can_be_seen(imaging, gradient, generator):
    A = IMAGING_CASES[imaging]()
    y = scan_of(A, 2, generator=generator)
    y[1] = 0
    shifts = [Shift(0.5), Shift(-0.2), Shift(0.1)]
    images = Unrolled(shifts, FilteredStep(0.6), 3, gradient=gradient).double().iterates(y, A, 0.1)
    assert images.shape == (3, 2, *A.domain.shape)
    assert not bool(images[:, 1].any())
    for n in (1, 2, 3):
        expected = Unrolled(shifts[:n], FilteredStep(0.6), n).double()(y, A, 0.1)
        torch.testing.assert_close(images[n - 1], expected, rtol=1e-12, atol=0)


def test_iterates_of_nothing_are_nothing():
    A = IMAGING_CASES["coils"]()
    y = torch.zeros(2, *A.codomain.shape, dtype=torch.complex128)
    images = Unrolled(Shift(0.5), GradientStep(), 3).double().iterates(y, A, 0.1)
    assert images.shape == (3, 2, *A.domain.shape)
    assert not bool(images.any())


@pytest.mark.parametrize("imaging", ["coils", "tomography"])
@pytest.mark.parametrize("consistency", [FilteredStep, ProximalStep])
def test_checkpoints_change_neither_image_nor_gradient(imaging, consistency, generator):
    A = IMAGING_CASES[imaging]()
    y = scan_of(A, 2, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = UNetDenoiser(n_channels=2 if imaging == "coils" else 1, base=2, n_stages=2).double()
        shrink = Shrink()
    results = []
    for gradient in ("iterations", "checkpointed"):
        steps = [consistency(0.5) for _ in range(3)]
        model = Unrolled([prior, shrink, prior], steps, 3, noise_levels=(0.3, 0.2, 0.1), gradient=gradient).double()
        measured = y.clone().requires_grad_()
        images = model.iterates(measured, A, 0.1)
        learned = (*prior.parameters(), *(p for step in steps for p in step.parameters()), model.log_noise_levels)
        gradients = torch.autograd.grad(images.abs().square().sum(), (measured, *learned))
        results.append((images, *gradients))
    for kept, repeated in zip(*results, strict=True):
        torch.testing.assert_close(repeated, kept, rtol=1e-10, atol=1e-12)
    assert len(shrink.told) == 3  # once, and once more again for the backward pass


def test_checkpoints_are_not_made_where_there_is_no_gradient(generator):
    A = IMAGING_CASES["coils"]()
    y = scan_of(A, generator=generator)
    model = Unrolled(Shrink(), GradientStep(0.5), 2, gradient="checkpointed").double()
    with torch.no_grad():
        expected = model(y, A, 0.1)
    torch.testing.assert_close(model(y, A, 0.1).detach(), expected)


def test_a_start_that_is_given_is_used_and_sets_the_scale(generator):
    A = IMAGING_CASES["tomography"]()
    y = scan_of(A, 2, generator=generator)
    x0 = A.domain.randn(2, generator=generator, dtype=torch.float64)
    model = Unrolled(Shift(0.5), GradientStep(0.3), 1).double()
    scale = x0.square().mean(dim=(-2, -1), keepdim=True).sqrt()
    x = x0 / scale + 0.5
    expected = scale * (x - 0.3 * A.adjoint(A(x) - y / scale))
    torch.testing.assert_close(model(y, A, 0.1, x0), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.iterates(y, A, 0.1, x0)[0], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model(50 * y, A, 5.0, 50 * x0), 50 * model(y, A, 0.1, x0))


@pytest.mark.parametrize("case", ["image_u_net", "varnet", "groups"])
def test_reconstructions_start_from_filtered_back_projection(case, generator):
    A = IMAGING_CASES["tomography"]()
    y = scan_of(A, 2, generator=generator)
    model = RECONSTRUCTOR_CASES[case](1).double().eval()
    expected = model(y, A, 0.1, initial_image(y, A))
    torch.testing.assert_close(model(y, A, 0.1), expected, rtol=1e-12, atol=0)
    assert not torch.allclose(model(y, A, 0.1, A.adjoint(y)), expected)


def test_a_start_that_does_not_fit_is_refused(generator):
    A = IMAGING_CASES["tomography"]()
    y = scan_of(A, 2, generator=generator)
    model = ImageUNet(n_channels=1, base=2, n_stages=1).double()
    for x0, message in (
        (torch.zeros(7, 10, dtype=torch.float64), r"x0 has batch shape \(\) and the reconstruction \(2,\)"),
        (torch.zeros(2, 7, 9, dtype=torch.float64), r"x0 has shape \(2, 7, 9\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model(y, A, 0.1, x0)
    with pytest.raises(TypeError, match=r"x0 is torch\.float32 and the data are torch\.float64"):
        model(y, A, 0.1, torch.zeros(2, 7, 10))
    with pytest.raises(ValueError, match="y has shape"):
        model(y[..., :5], A, 0.1, torch.zeros(2, 7, 10, dtype=torch.float64))


def test_the_filtered_step_is_what_it_says(generator):
    A = IMAGING_CASES["tomography"]()
    y = scan_of(A, generator=generator)
    x = A.domain.randn(generator=generator, dtype=torch.float64)
    expected = x - 0.7 * filtered_adjoint(A(x) - y, A)
    torch.testing.assert_close(FilteredStep(0.7).double()(x, y, A), expected, rtol=1e-6, atol=1e-6)


def test_the_filtered_step_is_the_gradient_step_without_projections(generator):
    A = IMAGING_CASES["coils"]()
    y = scan_of(A, generator=generator)
    x = A.domain.randn(generator=generator, dtype=torch.float64)
    torch.testing.assert_close(FilteredStep(0.7)(x, y, A), GradientStep(0.7)(x, y, A))


def test_a_loop_without_priors_finds_the_image(generator):
    A = IMAGING_CASES["coils"]()
    image = A.domain.randn(generator=generator, dtype=torch.float64)
    y = A(image)
    found = Unrolled(Shift(0.0), ProximalStep(0.02, n_iterations=50), 60).double()(y, A, 0.1)
    assert float((A(found.detach()) - y).norm()) < 1e-4 * float(y.norm())


@pytest.mark.parametrize("imaging", ["one_coil", "coils", "radial", "tomography"])
def test_the_proximal_step_is_the_dense_solution(imaging, generator):
    A = IMAGING_CASES[imaging]()
    y = scan_of(A, generator=generator)
    x = A.domain.randn(generator=generator, dtype=torch.float64)
    gram = dense_gram(A)
    matrix = gram + 0.3 * torch.eye(len(gram), dtype=gram.dtype)
    expected = torch.linalg.solve(matrix, (A.adjoint(y) + 0.3 * x).flatten()).reshape(x.shape)
    step = ProximalStep(0.3, n_iterations=60).double()
    torch.testing.assert_close(step(x, y, A).detach(), expected, rtol=0, atol=1e-4)
    if imaging == "one_coil":
        two = ProximalStep(0.3, n_iterations=2).double()
        torch.testing.assert_close(two(x, y, A).detach(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("imaging", ["one_coil", "coils"])
def test_the_gradient_of_the_proximal_step_is_that_of_the_solution(imaging, generator):
    A = IMAGING_CASES[imaging]()
    y = scan_of(A, generator=generator)
    x = A.domain.randn(generator=generator, dtype=torch.float64).requires_grad_()
    step = ProximalStep(0.3, n_iterations=60).double()
    weights = A.domain.randn(generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad((weights.conj() * step(x, y, A)).real.sum(), (x, step.log_weight))
    log_weight = step.log_weight.detach().clone().requires_grad_()
    gram = dense_gram(A)
    matrix = gram + log_weight.exp() * torch.eye(len(gram), dtype=gram.dtype)
    solution = torch.linalg.solve(matrix, (A.adjoint(y) + log_weight.exp() * x).flatten()).reshape(x.shape)
    expected = torch.autograd.grad((weights.conj() * solution).real.sum(), (x, log_weight))
    for actual, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-4)


def test_a_variational_network_adds_both_changes(generator):
    A = IMAGING_CASES["coils"]()
    y = scan_of(A, generator=generator)
    model = VariationalNetwork([Shift(0.5), Shift(-0.2)], step=0.3).double()
    x0 = A.adjoint(y)
    scale = x0.abs().square().mean().sqrt()
    x = x0 / scale
    for shift in (0.5, -0.2):
        x = x - 0.3 * A.adjoint(A(x) - y / scale) + shift
    torch.testing.assert_close(model(y, A, 0.1), x * scale, rtol=1e-6, atol=1e-6)


def test_published_networks_have_their_parts():
    network = modl()
    (denoiser,), (step,) = network.priors, network.consistencies
    assert isinstance(denoiser, ConvolutionalDenoiser)
    assert isinstance(step, ProximalStep)
    assert network.n_iterations == 10
    assert [tuple(m.weight.shape[:2]) for m in denoiser.modules() if isinstance(m, torch.nn.Conv2d)] == [
        (64, 2),
        (64, 64),
        (64, 64),
        (64, 64),
        (2, 64),
    ]
    cascades = varnet(base=2).priors
    assert len(cascades) == 12
    assert all(isinstance(prior, UNetDenoiser) for prior in cascades)
    assert len({id(p) for prior in cascades for p in prior.parameters()}) == sum(
        len(list(prior.parameters())) for prior in cascades
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Unrolled([Shift(0.0)] * 2, Stay(), 3), "There are 2 priors for 3 iterations"),
        (lambda: Unrolled(Shift(0.0), [Stay()] * 2, 3), "There are 2 consistencies"),
        (lambda: Unrolled(Shift(0.0), Stay(), 2, noise_levels=[0.1]), "There are 1 noise levels for 2 iterations"),
        (lambda: Unrolled(Shift(0.0), Stay(), 1, noise_levels=[0.0]), r"noise_levels are \[0.0\]"),
        (lambda: Unrolled(Shift(0.0), Stay(), 1, gradient="none"), "gradient is 'none'; expected one of 'iterations'"),
        (lambda: GradientStep(0.0), "step is 0.0"),
        (lambda: FilteredStep(-2.0), "step is -2.0"),
        (lambda: ProximalStep(-1.0), "weight is -1.0"),
        (lambda: VariationalNetwork([]), "There is no prior"),
        (lambda: ConvolutionalDenoiser(n_layers=1), "n_layers is 1"),
    ],
)
def test_what_cannot_be_built_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("noise_std", [-0.1, float("nan"), float("inf")])
def test_a_noise_level_that_is_none_is_refused(noise_std, generator):
    A = IMAGING_CASES["coils"]()
    with pytest.raises(ValueError, match="noise_std is"):
        varnet(n_cascades=1, base=2).double()(scan_of(A, generator=generator), A, noise_std)
