"""Every proximal map against its definition, its closed form and what any proximal map must satisfy."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from operators.proximal import (
    complex_soft_threshold,
    group_soft_threshold,
    project_box,
    project_dual_ball,
    project_nonnegative,
    separable_soft_threshold,
    singular_value_shrinkage,
    soft_threshold,
)

REAL, COMPLEX = torch.float64, torch.complex128


@dataclass(frozen=True)
class Case:
    """A proximal map with level t and the convex function it belongs to (infinite outside a constraint)."""

    name: str
    prox: Callable[[torch.Tensor, float], torch.Tensor]
    function: Callable[[torch.Tensor, float], torch.Tensor]
    dtypes: tuple[torch.dtype, ...]


def barrier(allowed: torch.Tensor) -> torch.Tensor:
    return torch.where(allowed.all(), 0.0, float("inf"))


def parts(u: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(u).abs() if u.is_complex() else u.abs()


def lengths(u: torch.Tensor) -> torch.Tensor:
    return (u.conj() * u).real.sum(dim=(0, 2)).sqrt()


CASES = [
    Case("soft", soft_threshold, lambda u, t: t * u.abs().sum(), (REAL,)),
    Case("magnitude", complex_soft_threshold, lambda u, t: t * u.abs().sum(), (REAL, COMPLEX)),
    Case("parts", separable_soft_threshold, lambda u, t: t * parts(u).sum(), (REAL, COMPLEX)),
    Case(
        "group",
        lambda x, t: group_soft_threshold(x, t, dim=(0, -1)),
        lambda u, t: t * lengths(u).sum(),
        (REAL, COMPLEX),
    ),
    Case(
        "dual ball",
        lambda x, t: project_dual_ball(x, t, dim=(0, -1)),
        lambda u, t: barrier(lengths(u) <= t * (1 + 1e-12)),
        (REAL, COMPLEX),
    ),
    Case(
        "nuclear",
        singular_value_shrinkage,
        lambda u, t: t * torch.linalg.svdvals(u).sum(),
        (REAL, COMPLEX),
    ),
    Case("box", lambda x, t: project_box(x, -0.5 * t, t), lambda u, t: barrier((u >= -0.5 * t) & (u <= t)), (REAL,)),
    Case("nonnegative", lambda x, t: project_nonnegative(x), lambda u, t: barrier(u >= 0), (REAL,)),
]
EACH = [pytest.param(c, d, id=f"{c.name}-{str(d).split('.')[1]}") for c in CASES for d in c.dtypes]
SHRINKING = [p for p in EACH if p.values[0].name not in ("box", "nonnegative")]
each = pytest.mark.parametrize(("case", "dtype"), EACH)


@each
@pytest.mark.parametrize("level", [0.0, 0.3, 1.1, 40.0])
def test_no_other_point_is_better(case: Case, dtype: torch.dtype, level: float, generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 4, dtype=dtype, generator=generator)
    u = case.prox(x, level)

    def objective(v: torch.Tensor) -> torch.Tensor:
        return 0.5 * (v - x).abs().square().sum() + case.function(v, level)

    best = objective(u)
    assert torch.isfinite(best)
    for size in (1e-4, 1e-2, 1.0):
        for _ in range(40):
            d = size * torch.randn(x.shape, dtype=dtype, generator=generator)
            keep = torch.rand(x.shape, generator=generator) < 0.3
            for v in (u + d, u + d * keep, u - size * torch.rand((), generator=generator) * u):
                # Strong convexity: the distance itself bounds the gain from below.
                assert objective(v) >= best + 0.5 * (v - u).abs().square().sum() - 1e-12


@each
def test_is_firmly_nonexpansive(case: Case, dtype: torch.dtype, generator: torch.Generator) -> None:
    for scale in (0.1, 1.0, 5.0):
        a, b = (scale * torch.randn(2, 3, 4, dtype=dtype, generator=generator) for _ in range(2))
        difference = case.prox(a, 0.7) - case.prox(b, 0.7)
        product = (difference.conj() * (a - b)).real.sum()
        assert difference.abs().square().sum() <= product * (1 + 1e-12)


@each
@pytest.mark.parametrize("level", [0.0, 0.6, 40.0])
def test_gradient_is_finite_at_zero_and_in_tiny_single_precision(case: Case, dtype: torch.dtype, level: float) -> None:
    for precision, size in ((dtype, 0.0), (torch.complex64 if dtype.is_complex else torch.float32, 1e-30)):
        x = torch.full((2, 3, 4), size, dtype=precision, requires_grad=True)
        case.prox(x, level).abs().sum().backward()
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize(("case", "dtype"), SHRINKING)
def test_gradient_of_the_threshold_is_finite_at_zero(case: Case, dtype: torch.dtype) -> None:
    for level in (0.0, 0.6):
        t = torch.full((1, 1, 1), level, dtype=REAL, requires_grad=True)
        case.prox(torch.zeros(2, 3, 4, dtype=dtype), t).abs().sum().backward()
        assert t.grad is not None
        assert bool(t.grad.isfinite().all())


@each
def test_gradcheck_away_from_kinks(case: Case, dtype: torch.dtype, generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 4, dtype=dtype, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: case.prox(v, 0.45), (x,), atol=1e-7)


@pytest.mark.parametrize(("case", "dtype"), SHRINKING)
def test_gradcheck_of_the_threshold(case: Case, dtype: torch.dtype, generator: torch.Generator) -> None:
    x = torch.randn(3, 3, 4, dtype=dtype, generator=generator)
    maps = {"group": (1, 3, 1), "dual ball": (1, 3, 1), "nuclear": (3, 1, 1)}
    t = torch.rand(maps.get(case.name, (3, 4)), dtype=REAL, generator=generator).add(0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda level: case.prox(x, level), (t,), atol=1e-7)


@pytest.mark.parametrize(("case", "dtype"), [p for p in EACH if p.values[0].name not in ("group", "dual ball")])
def test_each_sample_is_on_its_own(case: Case, dtype: torch.dtype, generator: torch.Generator) -> None:
    x = torch.randn(3, 2, 5, dtype=dtype, generator=generator)
    together = case.prox(x, 0.5)
    alone = torch.stack([case.prox(sample, 0.5) for sample in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-14)


def test_soft_threshold_closed_form(generator: torch.Generator) -> None:
    x = torch.randn(4, 5, dtype=REAL, generator=generator)
    t = torch.rand(2, 1, 5, dtype=REAL, generator=generator)
    expected = x.sign() * (x.abs() - t).clamp_min(0)
    torch.testing.assert_close(soft_threshold(x, t), expected, rtol=0, atol=1e-15)
    assert torch.equal(soft_threshold(x, 0.4) == 0, x.abs() <= 0.4)


def test_complex_soft_threshold_keeps_the_phase(generator: torch.Generator) -> None:
    x = torch.randn(50, dtype=COMPLEX, generator=generator)
    u = complex_soft_threshold(x, 0.5)
    torch.testing.assert_close(u.abs(), (x.abs() - 0.5).clamp_min(0), rtol=1e-13, atol=1e-15)
    alive = u != 0
    assert 0 < alive.sum() < 50
    torch.testing.assert_close(u[alive].angle(), x[alive].angle(), rtol=0, atol=1e-13)


def test_complex_and_group_shrinkage_agree_on_real_and_imaginary_pairs(generator: torch.Generator) -> None:
    x = torch.randn(4, 5, dtype=COMPLEX, generator=generator)
    t = torch.rand(5, dtype=REAL, generator=generator)
    pairs = group_soft_threshold(torch.view_as_real(x), t.unsqueeze(-1), dim=-1)
    torch.testing.assert_close(complex_soft_threshold(x, t), torch.view_as_complex(pairs), rtol=1e-13, atol=1e-15)


def test_separable_shrinks_the_parts_of_a_conjugated_view(generator: torch.Generator) -> None:
    x = torch.randn(4, 5, dtype=COMPLEX, generator=generator)
    expected = torch.complex(soft_threshold(x.real, 0.3), soft_threshold(-x.imag, 0.3))
    torch.testing.assert_close(separable_soft_threshold(x.conj(), 0.3), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_moreau_links_group_shrinkage_and_dual_ball(dtype: torch.dtype, generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=dtype, generator=generator)
    radius = torch.rand(3, 1, 5, dtype=REAL, generator=generator) * 2
    both = group_soft_threshold(x, radius, dim=2) + project_dual_ball(x, radius, dim=-2)
    torch.testing.assert_close(both, x, rtol=0, atol=1e-14)


def test_dual_ball_closed_form(generator: torch.Generator) -> None:
    y = torch.randn(2, 6, 7, dtype=REAL, generator=generator)
    length = torch.hypot(y[0], y[1])
    projected = project_dual_ball(y, 0.8, dim=0)
    torch.testing.assert_close(projected, y / (length / 0.8).clamp_min(1), rtol=1e-14, atol=1e-15)
    assert not project_dual_ball(y, 0.0, dim=0).any()


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (3, 3)])
def test_nuclear_norm_gradient_equals_that_of_the_decomposition(
    dtype: torch.dtype, shape: tuple[int, int], generator: torch.Generator
) -> None:
    weights = torch.randn(2, *shape, dtype=dtype, generator=generator)
    t = torch.rand(2, 1, 1, dtype=REAL, generator=generator).requires_grad_()
    x = torch.randn(2, *shape, dtype=dtype, generator=generator, requires_grad=True)

    def by_decomposition(v: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        u, s, vh = torch.linalg.svd(v, full_matrices=False)
        return (u * (s.unsqueeze(-2) - level).clamp_min(0)) @ vh

    results = [f(x, t) for f in (singular_value_shrinkage, by_decomposition)]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)
    ours, reference = (torch.autograd.grad((weights.conj() * r).sum().abs(), (x, t)) for r in results)
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_nuclear_norm_gradient_holds_where_singular_values_coincide_or_vanish(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    left, right = (torch.linalg.qr(torch.randn(n, n, dtype=dtype, generator=generator)).Q for n in (4, 5))
    values = torch.tensor([2.0, 2.0, 0.0, 0.0], dtype=REAL)
    x = ((left * values) @ right[:4]).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: singular_value_shrinkage(v, 0.5), (x,), atol=1e-6)


def test_box_bounds_may_be_maps_or_infinite(generator: torch.Generator) -> None:
    x = 3 * torch.randn(4, 5, dtype=REAL, generator=generator)
    upper = torch.rand(5, dtype=REAL, generator=generator)
    assert torch.equal(project_box(x, -float("inf"), upper), torch.minimum(x, upper))
    assert torch.equal(project_box(x, 0.1, float("inf")), x.clamp_min(0.1))


ALL_WITH_LEVEL = [
    pytest.param(soft_threshold, id="soft"),
    pytest.param(complex_soft_threshold, id="magnitude"),
    pytest.param(separable_soft_threshold, id="parts"),
    pytest.param(lambda x, t: group_soft_threshold(x, t, dim=-1), id="group"),
    pytest.param(lambda x, t: project_dual_ball(x, t, dim=-1), id="dual ball"),
    pytest.param(singular_value_shrinkage, id="nuclear"),
]


@pytest.mark.parametrize("prox", ALL_WITH_LEVEL)
@pytest.mark.parametrize("bad", [-1e-9, float("nan"), torch.tensor([[0.1], [-0.2]]), torch.tensor(float("nan"))])
def test_negative_and_nan_levels_are_refused(prox: Callable[..., torch.Tensor], bad: float | torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected values that are not negative"):
        prox(torch.ones(2, 3), bad)


@pytest.mark.parametrize("prox", ALL_WITH_LEVEL)
def test_complex_levels_are_refused(prox: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(TypeError, match="complex64"):
        prox(torch.ones(2, 3), torch.ones((), dtype=torch.complex64))


@pytest.mark.parametrize("prox", ALL_WITH_LEVEL[3:])
def test_levels_that_vary_within_a_group_are_refused(prox: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="size 1 along the dimensions"):
        prox(torch.ones(2, 3), torch.ones(3))


def test_complex_tensors_are_refused_where_order_is_needed() -> None:
    x = torch.ones(2, dtype=COMPLEX)
    with pytest.raises(TypeError, match=r"complex_soft_threshold.*separable_soft_threshold"):
        soft_threshold(x, 0.1)
    with pytest.raises(TypeError, match="project_box got"):
        project_box(x, 0.0, 1.0)
    with pytest.raises(TypeError, match="project_nonnegative got"):
        project_nonnegative(x)


def test_other_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="expected lower <= upper"):
        project_box(torch.ones(2), 1.0, 0.5)
    with pytest.raises(ValueError, match="expected lower <= upper"):
        project_box(torch.ones(2), float("nan"), 0.5)
    with pytest.raises(ValueError, match="expected dimensions of a tensor"):
        group_soft_threshold(torch.ones(2, 3), 0.1, dim=2)
    with pytest.raises(ValueError, match="at least two dimensions"):
        singular_value_shrinkage(torch.ones(2), 0.1)


def test_nuclear_norm_refuses_second_derivatives() -> None:
    x = torch.eye(3, dtype=REAL, requires_grad=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(singular_value_shrinkage(x, 0.1).sum(), x, create_graph=True)
