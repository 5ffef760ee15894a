"""The learned primal-dual reconstruction, against the iterations written out."""

import pytest
import torch

from operators.linear_operator import LinearOperator
from operators.priors.primal_dual import LearnedPrimalDual
from tests.cases_learned import IMAGING_CASES, n_channels_of


def built(n_channels: int, **options: object) -> LearnedPrimalDual:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return LearnedPrimalDual(n_channels=n_channels, **({"n_iterations": 2, "width": 3} | options)).double()


def scan(A: LinearOperator, *batch: int, generator: torch.Generator) -> torch.Tensor:
    return A(A.domain.randn(*batch, generator=generator, dtype=torch.float64))


def test_the_defaults_have_the_published_size():
    n_parameters = sum(p.numel() for p in LearnedPrimalDual(n_channels=1).parameters())
    assert 2.4e5 < n_parameters < 2.6e5


def test_the_iterations_are_what_they_say(generator):
    A = IMAGING_CASES["tomography"]()
    y = scan(A, generator=generator)
    x0 = A.domain.randn(generator=generator, dtype=torch.float64)
    model = built(1, n_variables=3)
    scale, norm = x0.square().mean().sqrt(), A.norm()
    f, h = (x0 / scale).expand(3, -1, -1), torch.zeros(3, *A.codomain.shape, dtype=torch.float64)
    g = y / scale / norm
    for i in range(2):
        h = h + model.dual[i](torch.cat((h, (A(f[1]) / norm)[None], g[None]))[None])[0]
        f = f + model.primal[i](torch.cat((f, (A.adjoint(h[0]) / norm)[None]))[None])[0]
    torch.testing.assert_close(model(y, A, 0.1, x0), scale * f[0])


@pytest.mark.parametrize("imaging", ["coils", "radial", "volume", "tomography"])
def test_the_unit_of_the_operator_does_not_matter(imaging, generator):
    A = IMAGING_CASES[imaging]()
    y = scan(A, 2, generator=generator)
    model = built(n_channels_of(A))
    x0 = A.domain.randn(2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(model(300 * y, 300.0 * A, 30.0, x0), model(y, A, 0.1, x0))


def test_checkpoints_change_neither_image_nor_gradient(generator):
    A = IMAGING_CASES["coils"]()
    y = scan(A, 2, generator=generator)
    results = []
    for gradient in ("iterations", "checkpointed"):
        model = built(2, gradient=gradient)
        image = model(y, A, 0.1)
        results.append((image, *torch.autograd.grad(image.abs().square().sum(), tuple(model.parameters()))))
    for kept, repeated in zip(*results, strict=True):
        torch.testing.assert_close(repeated, kept, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_variables": 1}, "n_variables is 1"),
        ({"width": 0}, "width 0"),
        ({"gradient": "none"}, "gradient is 'none'"),
    ],
)
def test_what_cannot_be_built_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        LearnedPrimalDual(**options)
