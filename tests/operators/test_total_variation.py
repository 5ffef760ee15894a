import pytest
import torch

from operators import FiniteDifference, Space, pdhg
from operators.proximal import project_dual_ball, project_nonnegative
from operators.total_variation import TotalVariationProx


def denoised(x: torch.Tensor, strength: float, *, nonnegative: bool = False) -> torch.Tensor:
    """The same problem by an independent primal-dual method, run for long."""
    difference = FiniteDifference(Space(tuple(x.shape[-2:]), "complex" if x.is_complex() else "real"))

    def prox(v: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        z = (v + tau * x) / (1 + tau)
        return project_nonnegative(z) if nonnegative else z

    return pdhg(
        difference,
        lambda p, _: project_dual_ball(p, strength, dim=-3),
        prox,
        x0=x,
        n_iterations=4000,
        rtol=1e-13,
    ).value


@pytest.mark.parametrize("field", ["real", "complex"])
@pytest.mark.parametrize("shape", [(8, 9), (7, 5)])
def test_it_solves_the_denoising_problem(field: str, shape: tuple[int, int], generator: torch.Generator) -> None:
    domain = Space(shape, field)  # type: ignore[arg-type]
    x = domain.randn(2, generator=generator, dtype=torch.float64)
    prox = TotalVariationProx(domain, 0.4, n_iterations=3000)
    torch.testing.assert_close(prox(x, 0.5), denoised(x, 0.2), rtol=1e-6, atol=1e-6)


def test_the_set_is_respected(generator: torch.Generator) -> None:
    domain = Space((6, 7), "real")
    x = domain.randn(generator=generator, dtype=torch.float64)
    z = TotalVariationProx(domain, 0.3, n_iterations=3000, project=project_nonnegative)(x, 1.0)
    assert float(z.min()) >= 0
    torch.testing.assert_close(z, denoised(x, 0.3, nonnegative=True), rtol=0, atol=3e-4)


def test_calls_go_on_from_the_last_dual_variable(generator: torch.Generator) -> None:
    domain = Space((16, 16), "real")
    x = domain.randn(generator=generator, dtype=torch.float64)
    exact = TotalVariationProx(domain, 1.0, n_iterations=5000)(x, 1.0)
    prox = TotalVariationProx(domain, 1.0, n_iterations=5)
    errors = [float((prox(x, 1.0) - exact).norm()) for _ in range(100)]
    assert errors[-1] < 0.04 * errors[0]


def test_each_sample_has_its_own_strength(generator: torch.Generator) -> None:
    domain = Space((6, 6), "real")
    x = domain.randn(2, generator=generator, dtype=torch.float64)
    strengths = torch.tensor([0.1, 2.0], dtype=torch.float64)[:, None, None]
    both = TotalVariationProx(domain, strengths, n_iterations=50)(x, 1.0)
    for sample, strength in enumerate((0.1, 2.0)):
        alone = TotalVariationProx(domain, strength, n_iterations=50)(x[sample], 1.0)
        torch.testing.assert_close(both[sample], alone, rtol=1e-12, atol=1e-12)


def test_a_constant_image_stays_and_no_strength_does_nothing(generator: torch.Generator) -> None:
    domain = Space((5, 6), "real")
    constant = torch.full((5, 6), 3.0, dtype=torch.float64)
    torch.testing.assert_close(TotalVariationProx(domain, 10.0)(constant, 1.0), constant)
    x = domain.randn(generator=generator, dtype=torch.float64)
    torch.testing.assert_close(TotalVariationProx(domain, 0.0)(x, 1.0), x)
    with pytest.raises(ValueError, match="n_iterations is 0"):
        TotalVariationProx(domain, 1.0, n_iterations=0)
