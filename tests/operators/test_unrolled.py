"""Loops of priors and data steps, and the data steps themselves, against what they are written to compute."""

from typing import Any

import pytest
import torch

from operators.consistency import Consistency, GradientStep, ProximalStep
from operators.linear_operator import LinearOperator
from operators.priors.denoiser import ConvolutionalDenoiser, UNetDenoiser
from operators.priors.networks import VariationalNetwork, modl, varnet
from operators.priors.prior import Prior
from operators.unrolled import Unrolled
from tests.cases_learned import IMAGING_CASES


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
        (lambda: GradientStep(0.0), "step is 0.0"),
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
