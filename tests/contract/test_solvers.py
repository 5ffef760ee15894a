"""What every solver promises: the dense answer, samples on their own, honest reports, gradients of the solution."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from operators.elementary import Diagonal, FiniteDifference
from operators.linear_operator import LinearOperator
from operators.proximal import (
    complex_soft_threshold,
    project_dual_ball,
    project_nonnegative,
    separable_soft_threshold,
    soft_threshold,
)
from operators.solvers import (
    Solution,
    cg,
    cgls,
    fista,
    fixed_point,
    largest_eigenvalue,
    os_sart,
    pdhg,
    power_iteration,
    sirt,
)
from operators.space import Space

REAL, COMPLEX = torch.float64, torch.complex128
SHAPE, N_DATA = (3, 4), 40


class Dense(LinearOperator):
    """A matrix per sample, ``(*batch, data, y·x)``, on images ``(y, x)``."""

    matrix: torch.Tensor

    def __init__(self, matrix: torch.Tensor) -> None:
        field = "complex" if matrix.is_complex() else "real"
        super().__init__(Space(SHAPE, field), Space((matrix.shape[-2],), field))
        self.register_buffer("matrix", matrix)

    def _batch_shape(self) -> torch.Size:
        return self.matrix.shape[:-2]

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.matrix @ x.flatten(-2).unsqueeze(-1)).squeeze(-1)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return (self.matrix.mH @ y.unsqueeze(-1)).squeeze(-1).unflatten(-1, SHAPE)


@dataclass(frozen=True)
class Problem:
    """Least squares ‖A x − y‖² + weight ‖x‖² for a batch of three samples that differ in matrix, data and scale."""

    A: Dense
    y: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def draw(cls, dtype: torch.dtype, generator: torch.Generator) -> "Problem":
        scale = torch.tensor([1.0, 3.0, 0.2], dtype=REAL) / N_DATA**0.5
        matrix = torch.randn(3, N_DATA, 12, dtype=dtype, generator=generator) * scale.reshape(3, 1, 1)
        y = torch.randn(3, N_DATA, dtype=dtype, generator=generator) * torch.tensor([[1e3], [1.0], [1e-7]])
        return cls(Dense(matrix), y, 0.1 * N_DATA * scale.square())

    def sample(self, i: int) -> "Problem":
        return Problem(Dense(self.A.matrix[i]), self.y[i], self.weight[i])

    def gram(self, x: torch.Tensor) -> torch.Tensor:
        return self.A.gram(x) + self.weight[..., None, None] * x

    def dense(self) -> torch.Tensor:
        eye = torch.eye(12, dtype=self.A.matrix.dtype)
        return self.A.matrix.mH @ self.A.matrix + self.weight[..., None, None] * eye

    def stacked(self) -> tuple[Dense, torch.Tensor]:
        """The same problem as plain least squares: √weight·I below A, zeros below y."""
        eye = torch.eye(12, dtype=self.A.matrix.dtype).expand(*self.A.matrix.shape[:-2], 12, 12)
        matrix = torch.cat((self.A.matrix, self.weight.sqrt()[..., None, None] * eye), dim=-2)
        return Dense(matrix), torch.cat((self.y, self.y.new_zeros(*self.y.shape[:-1], 12)), dim=-1)


def unchanged(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    return x


def vanish(v: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(v)


def solve_cg(problem: Problem, **limits: Any) -> Solution:
    rhs = problem.A.adjoint(problem.y)
    return cg(problem.gram, rhs, batch_dims=rhs.ndim - 2, **limits)


def solve_cgls(problem: Problem, **limits: Any) -> Solution:
    A, y = problem.stacked()
    return cgls(A, y, **limits)


def solve_fixed_point(problem: Problem, **limits: Any) -> Solution:
    rhs = problem.A.adjoint(problem.y)
    step = 1.8 / (problem.A.norm().square() + 2 * problem.weight)[..., None, None]
    return fixed_point(
        lambda x: x - step * (problem.gram(x) - rhs), torch.zeros_like(rhs), batch_dims=rhs.ndim - 2, **limits
    )


def solve_fista(problem: Problem, **limits: Any) -> Solution:
    A, y = problem.stacked()
    return fista(A, y, unchanged, restart=True, rtol=limits["rtol"], n_iterations=limits["max_iterations"])


def solve_pdhg(problem: Problem, **limits: Any) -> Solution:
    """The data term in the dual: f = ½‖· − y‖², g = 0."""
    A, y = problem.stacked()
    return pdhg(
        A,
        lambda v, sigma: (v - sigma * y) / (1 + sigma),
        unchanged,
        x0=torch.zeros_like(A.adjoint(y)),
        rtol=limits["rtol"],
        n_iterations=limits["max_iterations"],
    )


def solve_condat_vu(problem: Problem, **limits: Any) -> Solution:
    """The data term through its gradient, and K = √weight·I in the dual."""
    rhs = problem.A.adjoint(problem.y)
    K = Diagonal(problem.weight.sqrt()[..., None, None], problem.A.domain)
    return pdhg(
        K,
        lambda v, sigma: v / (1 + sigma),
        unchanged,
        x0=torch.zeros_like(rhs),
        gradient=lambda x: problem.A.gram(x) - rhs,
        lipschitz=problem.A.norm().square(),
        rtol=limits["rtol"],
        n_iterations=limits["max_iterations"],
    )


SOLVERS: dict[str, Callable[..., Solution]] = {
    "cg": solve_cg,
    "cgls": solve_cgls,
    "fixed_point": solve_fixed_point,
    "fista": solve_fista,
    "pdhg": solve_pdhg,
    "condat_vu": solve_condat_vu,
}
LIMITS = {"rtol": 1e-13, "max_iterations": 5000}
every_solver = pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS.keys())
both_fields = pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=["real", "complex"])


@pytest.fixture(params=[REAL, COMPLEX], ids=["real", "complex"])
def problem(request: pytest.FixtureRequest, generator: torch.Generator) -> Problem:
    return Problem.draw(request.param, generator)


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@every_solver
def test_equals_the_dense_solve(solve: Callable[..., Solution], problem: Problem) -> None:
    solution = solve(problem, **LIMITS)
    rhs = problem.A.adjoint(problem.y)
    expected = torch.linalg.solve(problem.dense(), rhs.flatten(-2)).unflatten(-1, SHAPE)
    assert bool(solution.converged.all())
    assert solution.residual.shape == solution.converged.shape == (3,)
    assert solution.residual.dtype == REAL
    for i in range(3):
        assert relative_error(solution.value[i], expected[i]) < 1e-8


@every_solver
@pytest.mark.parametrize("limits", [{"rtol": 1e-6, "max_iterations": 5000}, {"rtol": 0.0, "max_iterations": 7}])
def test_a_sample_does_not_depend_on_its_batch(
    solve: Callable[..., Solution], limits: dict[str, Any], problem: Problem
) -> None:
    together = solve(problem, **limits)
    alone = [solve(problem.sample(i), **limits) for i in range(3)]
    assert together.n_iterations == max(s.n_iterations for s in alone)
    for i in range(3):
        assert relative_error(together.value[i], alone[i].value) < 1e-13
        assert bool(together.converged[i]) == bool(alone[i].converged)
        torch.testing.assert_close(together.residual[i], alone[i].residual, rtol=1e-6, atol=1e-14)


BITWISE: dict[str, Callable[[torch.Tensor, torch.Tensor], Solution]] = {
    "cg": lambda d, b: cg(lambda x: d * x, b, rtol=1e-4, batch_dims=b.ndim - 2),
    "cgls": lambda d, b: cgls(Diagonal(d, Space((7, 9), "complex")), b, rtol=1e-4),
    "fixed_point": lambda d, b: fixed_point(lambda x: x - 0.5 * (d * x - b), b, rtol=1e-4, batch_dims=b.ndim - 2),
    "fista": lambda d, b: fista(
        Diagonal(d, Space((7, 9), "complex")),
        b,
        lambda v, t: complex_soft_threshold(v, 0.05 * t),
        step=0.25,
        restart=True,
        rtol=1e-4,
    ),
    "pdhg": lambda d, b: pdhg(
        FiniteDifference(Space((7, 9), "complex")),
        lambda v, sigma: project_dual_ball(v, 0.05, dim=-3),
        unchanged,
        x0=torch.zeros_like(b),
        gradient=lambda x: d * x - b,
        lipschitz=2.0,
        rtol=1e-3,
    ),
}


@pytest.mark.parametrize("solve", BITWISE.values(), ids=BITWISE.keys())
def test_a_sample_is_bitwise_the_same_alone_and_in_a_batch(
    solve: Callable[[torch.Tensor, torch.Tensor], Solution], generator: torch.Generator
) -> None:
    d = torch.rand(3, 7, 9, generator=generator) + torch.tensor([0.01, 0.5, 0.9]).reshape(3, 1, 1)
    b = torch.randn(3, 7, 9, dtype=torch.complex64, generator=generator)
    together = solve(d, b)
    alone = [solve(d[i], b[i]) for i in range(3)]
    assert len({s.n_iterations for s in alone}) > 1
    for i in range(3):
        assert torch.equal(together.value[i], alone[i].value)
        assert torch.equal(together.residual[i], alone[i].residual)


@every_solver
def test_a_zero_right_hand_side_gives_zero_at_once(solve: Callable[..., Solution], problem: Problem) -> None:
    zero = Problem(problem.A, torch.zeros_like(problem.y), problem.weight)
    solution = solve(zero, **LIMITS)
    assert not solution.value.any()
    assert not solution.residual.any()
    assert bool(solution.converged.all())
    assert solution.n_iterations <= 1


@every_solver
def test_a_zero_sample_leaves_the_others_alone(solve: Callable[..., Solution], problem: Problem) -> None:
    y = problem.y.clone()
    y[1] = 0
    solution = solve(Problem(problem.A, y, problem.weight), **LIMITS)
    assert not solution.value[1].any()
    assert bool(solution.converged.all())
    assert relative_error(solution.value[0], solve(problem.sample(0), **LIMITS).value) < 1e-11


@every_solver
def test_reports_non_convergence(solve: Callable[..., Solution], problem: Problem) -> None:
    solution = solve(problem, rtol=1e-13, max_iterations=3)
    assert solution.n_iterations == 3
    assert not solution.converged.any()
    assert bool((solution.residual > 1e-13).all())
    untouched = solve(problem, rtol=1e-13, max_iterations=0)
    assert untouched.n_iterations == 0
    assert not untouched.value.any()
    assert not untouched.converged.any()


@every_solver
def test_a_sample_that_is_not_finite_spoils_only_itself(solve: Callable[..., Solution], problem: Problem) -> None:
    y = problem.y.clone()
    y[1, 0] = float("nan")
    solution = solve(Problem(problem.A, y, problem.weight), rtol=1e-6, max_iterations=300)
    assert not solution.converged[1]
    assert bool(solution.value[[0, 2]].isfinite().all())
    assert bool(solution.converged[[0, 2]].all())


@every_solver
@pytest.mark.parametrize("limits", [{"rtol": -1.0, "max_iterations": 1}, {"rtol": 0.0, "max_iterations": -1}])
def test_negative_limits_are_refused(solve: Callable[..., Solution], limits: dict[str, Any], problem: Problem) -> None:
    with pytest.raises(ValueError, match=r"rtol is -1\.0|number of iterations is -1"):
        solve(problem, **limits)


def learnable(problem: Problem) -> tuple[Problem, tuple[torch.Tensor, ...]]:
    tensors = tuple(t.clone().requires_grad_() for t in (problem.A.matrix, problem.y, problem.weight))
    return Problem(Dense(tensors[0]), tensors[1], tensors[2]), tensors


@every_solver
def test_gradient_equals_that_of_the_dense_solve(solve: Callable[..., Solution], problem: Problem) -> None:
    learned, tensors = learnable(problem)
    weights = torch.linspace(-1, 2, 36, dtype=problem.y.dtype).reshape(3, *SHAPE)
    limits = {"rtol": 1e-12, "max_iterations": 5000} if solve in (solve_cg, solve_fixed_point) else LIMITS
    found = (weights.conj() * solve(learned, **limits).value).sum().abs()
    rhs = learned.A.adjoint(learned.y)
    exact = torch.linalg.solve(learned.dense(), rhs.flatten(-2)).unflatten(-1, SHAPE)
    expected = (weights.conj() * exact).sum().abs()
    gradients = zip(torch.autograd.grad(found, tensors), torch.autograd.grad(expected, tensors), strict=True)
    for ours, reference in gradients:
        for i in range(3):
            assert relative_error(ours[i], reference[i]) < 1e-8


def unrolled_cg(gram: Callable[[torch.Tensor], torch.Tensor], b: torch.Tensor, n_iterations: int) -> torch.Tensor:
    def dot(a: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return (a.conj() * c).real.sum(dim=(-2, -1), keepdim=True)

    x, r, p = torch.zeros_like(b), b, b
    for _ in range(n_iterations):
        q = gram(p)
        alpha = dot(r, r) / dot(p, q)
        x, new = x + alpha * p, r - alpha * q
        r, p = new, new + dot(new, new) / dot(r, r) * p
    return x


def test_cg_implicit_gradient_equals_the_unrolled_one(problem: Problem) -> None:
    learned, tensors = learnable(problem)
    implicit = solve_cg(learned, rtol=1e-12).value
    unrolled = unrolled_cg(learned.gram, learned.A.adjoint(learned.y), 14)
    for loss in (lambda x: (x.abs() ** 4).sum(dim=(1, 2)).log().sum(), lambda x: x[..., 0, :].abs().log().sum()):
        ours, reference = (torch.autograd.grad(loss(x), tensors, retain_graph=True) for x in (implicit, unrolled))
        for a, b in zip(ours, reference, strict=True):
            for i in range(3):
                assert relative_error(a[i], b[i]) < 1e-8


def test_fixed_point_implicit_gradient_equals_the_unrolled_one(problem: Problem) -> None:
    dtype = problem.y.dtype
    matrix = (0.02 * problem.A.matrix[0, :12] / problem.A.matrix.abs().amax()).requires_grad_()
    bias = (problem.y[0, :12] / 1e3).clone().requires_grad_()

    def step(z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(z @ matrix.mT + bias) - 0.4 * z

    z0 = torch.zeros(2, 12, dtype=dtype)
    implicit = fixed_point(step, z0, rtol=1e-14, batch_dims=1, max_iterations=300)
    unrolled = z0
    for _ in range(120):
        unrolled = step(unrolled)
    assert bool(implicit.converged.all())
    ours, reference = (torch.autograd.grad((z.abs() ** 3).sum(), (matrix, bias)) for z in (implicit.value, unrolled))
    for a, b in zip(ours, reference, strict=True):
        assert relative_error(a, b) < 1e-8


@pytest.mark.parametrize("solve", [solve_cg, solve_fixed_point], ids=["cg", "fixed_point"])
def test_stored_memory_does_not_grow_with_the_iterations(solve: Callable[..., Solution], problem: Problem) -> None:
    learned, _ = learnable(problem)

    def stored(max_iterations: int) -> int:
        saved: list[torch.Tensor] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            assert solve(learned, rtol=0.0, max_iterations=max_iterations).value.requires_grad
        return len(saved)

    assert 0 < stored(2) == stored(20)


@pytest.mark.parametrize("solve", [solve_cg, solve_fixed_point], ids=["cg", "fixed_point"])
def test_second_derivatives_are_refused_not_wrong(solve: Callable[..., Solution], problem: Problem) -> None:
    learned, tensors = learnable(problem)
    loss = solve(learned, rtol=1e-3).value.abs().sum()
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(loss, tensors, create_graph=True)


@pytest.mark.parametrize("solve", [solve_cg, solve_fixed_point], ids=["cg", "fixed_point"])
def test_no_graph_without_need(solve: Callable[..., Solution], problem: Problem) -> None:
    assert not solve(problem, rtol=1e-3).value.requires_grad
    learned, _ = learnable(problem)
    with torch.no_grad():
        assert not solve(learned, rtol=1e-3).value.requires_grad


# cg


def test_cg_residual_is_that_of_the_value(problem: Problem) -> None:
    rhs = problem.A.adjoint(problem.y)
    for limits in ({"rtol": 1e-5}, {"rtol": 0.0, "max_iterations": 4}):
        solution = solve_cg(problem, **limits)
        true = (rhs - problem.gram(solution.value)).flatten(1).norm(dim=1) / rhs.flatten(1).norm(dim=1)
        torch.testing.assert_close(solution.residual, true, rtol=1e-8, atol=1e-15)


def test_cg_in_single_precision_claims_only_what_holds(generator: torch.Generator) -> None:
    """The residual that plain conjugate gradients update falls below 1e-6 here, that of the value stays above 1e-5."""
    basis = torch.linalg.qr(torch.randn(200, 200, dtype=REAL, generator=generator)).Q
    matrix = ((basis * torch.logspace(0, -3, 200, dtype=REAL)) @ basis.mT).float()
    rhs = torch.randn(200, generator=generator)
    for rtol, reachable in ((1e-3, True), (1e-6, False)):
        solution = cg(lambda x: matrix @ x, rhs, rtol=rtol, max_iterations=5000)
        true = (rhs - matrix @ solution.value).norm() / rhs.norm()
        assert bool(solution.converged) == reachable
        assert (true <= rtol) == reachable
        torch.testing.assert_close(solution.residual, true, rtol=0.3, atol=0)
        assert solution.n_iterations < 1500


def test_cg_started_at_the_solution_makes_no_iteration(problem: Problem) -> None:
    first = solve_cg(problem, rtol=1e-10)
    again = solve_cg(problem, rtol=1e-9, x0=first.value)
    assert again.n_iterations == 0
    torch.testing.assert_close(again.value, first.value, rtol=1e-15, atol=0)


def test_cg_warm_start_keeps_the_gradient(problem: Problem) -> None:
    learned, tensors = learnable(problem)
    cold = solve_cg(learned, rtol=1e-13)
    start = (cold.value.detach() * 1.3).requires_grad_()
    warm = solve_cg(learned, rtol=1e-13, x0=start)
    ours, reference = (torch.autograd.grad(s.value.abs().sum(), tensors) for s in (warm, cold))
    for a, b in zip(ours, reference, strict=True):
        assert relative_error(a[0], b[0]) < 1e-8


def test_cg_treats_tiny_and_huge_data_alike() -> None:
    matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    b = torch.tensor([1.0, -2.0])
    reference = cg(lambda x: matrix @ x, b).value
    for scale in (2.0**-110, 2.0**100):
        assert torch.equal(cg(lambda x: matrix @ x, b * scale).value, reference * scale)


def test_cg_singular_maps(generator: torch.Generator) -> None:
    diagonal = torch.tensor([2.0, 1.0, 0.0], dtype=REAL)
    in_range = cg(lambda x: diagonal * x, torch.tensor([1.0, 3.0, 0.0], dtype=REAL), rtol=1e-12)
    torch.testing.assert_close(in_range.value, torch.tensor([0.5, 3.0, 0.0], dtype=REAL))
    assert bool(in_range.converged)
    outside = cg(lambda x: 0 * x, torch.ones(3, dtype=REAL))
    assert not outside.converged
    assert outside.residual == 1
    assert not outside.value.any()
    indefinite = cg(lambda x: -x, torch.ones(3, dtype=REAL))
    assert not indefinite.converged


def test_cg_refuses_what_does_not_fit() -> None:
    with pytest.raises(TypeError, match="int64"):
        cg(lambda x: x, torch.ones(3, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"x0 is torch\.float64"):
        cg(lambda x: x, torch.ones(3), x0=torch.ones(3, dtype=REAL))
    with pytest.raises(ValueError, match=r"x0 has shape \(2,\)"):
        cg(lambda x: x, torch.ones(3), x0=torch.ones(2))
    with pytest.raises(ValueError, match="batch_dims is 2"):
        cg(lambda x: x, torch.ones(3), batch_dims=2)
    with pytest.raises(ValueError, match="expand the input to the batch"):
        cg(lambda x: x.expand(2, 3), torch.ones(3))


# cgls


def test_cgls_residual_is_that_of_the_value(problem: Problem) -> None:
    rhs = problem.A.adjoint(problem.y)
    for limits in ({"rtol": 1e-5}, {"rtol": 0.0, "max_iterations": 4}):
        solution = cgls(problem.A, problem.y, **limits)
        true = (rhs - problem.A.gram(solution.value)).flatten(1).norm(dim=1) / rhs.flatten(1).norm(dim=1)
        torch.testing.assert_close(solution.residual, true, rtol=1e-7, atol=1e-15)


def test_cgls_makes_the_iterates_of_cg(problem: Problem) -> None:
    for n in (1, 3, 6):
        ours = cgls(problem.A, problem.y, rtol=0.0, max_iterations=n).value
        reference = cg(problem.A.gram, problem.A.adjoint(problem.y), batch_dims=1, rtol=0.0, max_iterations=n).value
        for i in range(3):
            assert relative_error(ours[i], reference[i]) < 1e-9


def test_cgls_solves_what_the_gram_no_longer_can(generator: torch.Generator) -> None:
    """At a condition of 1e6 the gram loses twelve digits, the operator six."""
    basis = torch.linalg.qr(torch.randn(N_DATA, 12, dtype=REAL, generator=generator)).Q
    turned = torch.linalg.qr(torch.randn(12, 12, dtype=REAL, generator=generator)).Q
    matrix = (basis * torch.tensor([1.0] * 6 + [1e-6] * 6, dtype=REAL)) @ turned
    target = torch.randn(SHAPE, dtype=REAL, generator=generator)
    A = Dense(matrix)
    least_squares = cgls(A, A(target), rtol=1e-15, max_iterations=50).value
    normal_equations = cg(A.gram, A.adjoint(A(target)), rtol=1e-15, max_iterations=50).value
    assert relative_error(least_squares, target) < 1e-9
    assert relative_error(normal_equations, target) > 1e-6


def test_cgls_in_single_precision_claims_only_what_holds(generator: torch.Generator) -> None:
    matrix = torch.randn(N_DATA, 12, generator=generator) * torch.logspace(0, -3, 12)
    A, y = Dense(matrix), torch.randn(N_DATA, generator=generator)
    for rtol, reachable in ((1e-4, True), (1e-10, False)):
        solution = cgls(A, y, rtol=rtol, max_iterations=300)
        true = A.adjoint(y - A(solution.value)).norm() / A.adjoint(y).norm()
        assert bool(solution.converged) == reachable
        assert (true <= 1.01 * rtol) == reachable


def test_cgls_started_at_the_solution_stays_there(problem: Problem) -> None:
    first = cgls(problem.A, problem.y, rtol=1e-13)
    again = cgls(problem.A, problem.y, rtol=1e-9, x0=first.value)
    assert again.n_iterations == 1
    torch.testing.assert_close(again.value, first.value, rtol=1e-9, atol=0)
    with pytest.raises(ValueError, match="x0 has shape"):
        cgls(problem.A, problem.y, x0=first.value[0])


def test_cgls_treats_tiny_and_huge_data_alike() -> None:
    A = Diagonal(torch.tensor([[2.0, 1.0, 0.5]]), Space((1, 3), "real"))
    b = torch.tensor([[1.0, -2.0, 3.0]])
    reference = cgls(A, b).value
    for scale in (2.0**-110, 2.0**100):
        assert torch.equal(cgls(A, b * scale).value, reference * scale)


def test_cgls_leaves_what_no_row_sees_alone() -> None:
    A = Diagonal(torch.tensor([2.0, 1.0, 0.0], dtype=REAL))
    y = torch.tensor([1.0, 3.0, 5.0], dtype=REAL)
    start = torch.tensor([0.0, 0.0, 7.0], dtype=REAL)
    solution = cgls(A, y, x0=start, rtol=1e-12)
    torch.testing.assert_close(solution.value, torch.tensor([0.5, 3.0, 7.0], dtype=REAL))
    assert bool(solution.converged)


# sirt and os_sart


class Rays(LinearOperator):
    """A matrix without negative entries per sample, ``(*batch, view, detector, y·x)``, that gives subsets of views."""

    matrix: torch.Tensor

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__(Space(SHAPE, "real"), Space(tuple(matrix.shape[-3:-1]), "real"))
        self.register_buffer("matrix", matrix)

    def _batch_shape(self) -> torch.Size:
        return self.matrix.shape[:-3]

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.matrix @ x.flatten(-2)[..., None, :, None]).squeeze(-1)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return (self.matrix.mT @ y.unsqueeze(-1)).sum(dim=-3).squeeze(-1).unflatten(-1, SHAPE)

    def __getitem__(self, views: Sequence[int]) -> "Rays":
        return Rays(self.matrix[..., list(views), :, :])


N_VIEWS, N_BINS = 6, 5


@pytest.fixture
def rays(generator: torch.Generator) -> Rays:
    """Three samples; each ray passes through a few pixels."""
    shape = (3, N_VIEWS, N_BINS, 12)
    hit = torch.rand(shape, generator=generator) < 0.3
    scale = torch.tensor([1.0, 3.0, 0.2], dtype=REAL).reshape(3, 1, 1, 1)
    return Rays(torch.rand(shape, dtype=REAL, generator=generator) * hit * scale)


@pytest.fixture
def target(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(3, *SHAPE, dtype=REAL, generator=generator) * torch.tensor([1e3, 1.0, 1e-7])[:, None, None]


ROW_ACTION: dict[str, Callable[..., Solution]] = {
    "sirt": sirt,
    "os_sart": lambda A, y, **options: os_sart(A, y, 3, **options),
    "os_sart_given": lambda A, y, **options: os_sart(A, y, [[4, 0], [5, 2], [1, 3]], **options),
}
every_row_action = pytest.mark.parametrize("solve", ROW_ACTION.values(), ids=ROW_ACTION.keys())


def weighted_least_squares(A: Rays, y: torch.Tensor) -> torch.Tensor:
    matrix = A.matrix.flatten(-3, -2)
    root = _inverse(matrix.sum(dim=-1)).sqrt()
    return torch.linalg.lstsq(root[..., None] * matrix, root * y.flatten(-2)).solution.unflatten(-1, SHAPE)


def _inverse(sums: torch.Tensor) -> torch.Tensor:
    return torch.where(sums > 0, 1 / sums, 0)


@every_row_action
def test_row_action_and_cgls_find_what_consistent_data_say(
    solve: Callable[..., Solution], rays: Rays, target: torch.Tensor
) -> None:
    solution = solve(rays, rays(target), n_iterations=20000, rtol=1e-14)
    exact = cgls(rays, rays(target), rtol=1e-13)
    assert bool(solution.converged.all())
    assert bool(exact.converged.all())
    for i in range(3):
        assert relative_error(solution.value[i], target[i]) < 1e-9
        assert relative_error(exact.value[i], target[i]) < 1e-9


def test_sirt_finds_the_weighted_least_squares(rays: Rays, target: torch.Tensor, generator: torch.Generator) -> None:
    y = rays(target)
    y = y * (1 + 0.3 * torch.randn(y.shape, dtype=REAL, generator=generator))
    for relaxation in (1.0, 1.9):
        solution = sirt(rays, y, relaxation=relaxation, n_iterations=20000, rtol=1e-14)
        assert bool(solution.converged.all())
        for i in range(3):
            expected = weighted_least_squares(rays, y)[i]
            assert relative_error(solution.value[i], expected) < 1e-9


def test_non_negative_sirt_satisfies_the_optimality_conditions(rays: Rays, target: torch.Tensor) -> None:
    y = rays(target)
    weights = _inverse(rays(torch.ones(SHAPE, dtype=REAL)))
    solution = sirt(rays, y, project=project_nonnegative, n_iterations=20000, rtol=1e-15)
    x = solution.value
    slope = rays.adjoint(weights * (rays(x) - y)) / rays.adjoint(weights * y.abs()).amax(dim=(-2, -1), keepdim=True)
    assert bool((x >= 0).all())
    assert 3 < int((x == 0).sum()) < 33
    assert float(slope[x == 0].min()) > -1e-12
    assert float(slope[x > 0].abs().max()) < 1e-9


@every_row_action
def test_non_negative_solutions_are_found_from_consistent_data(
    solve: Callable[..., Solution], rays: Rays, target: torch.Tensor
) -> None:
    positive = target.abs()
    positive[:, 1] = 0
    seen: list[bool] = []

    def watch(n: int, x: torch.Tensor) -> None:
        seen.append(bool((x >= 0).all()))

    solution = solve(rays, rays(positive), project=project_nonnegative, n_iterations=20000, rtol=1e-15, callback=watch)
    assert all(seen)
    for i in range(3):
        assert relative_error(solution.value[i], positive[i]) < 1e-8


def test_the_steps_are_those_of_the_definition(rays: Rays, target: torch.Tensor) -> None:
    matrix, y = rays.matrix[0], rays(target)[0]
    start = target[0] / 2
    x = start.flatten()
    for views in 2 * [[0, 3], [5], [1, 2, 4]]:
        block = matrix[views].flatten(0, 1)
        x = x + 0.7 * _inverse(block.sum(0)) * (block.T @ (_inverse(block.sum(1)) * (y[views].flatten() - block @ x)))
        x = x.clamp_min(-1e2)
    options: dict[str, Any] = {
        "relaxation": 0.7,
        "x0": start,
        "n_iterations": 2,
        "project": lambda v: v.clamp_min(-1e2),
    }
    ours = os_sart(Rays(matrix), y, [[0, 3], [5], [1, 2, 4]], **options).value
    torch.testing.assert_close(ours.flatten(), x, rtol=1e-12, atol=1e-12)
    whole = os_sart(Rays(matrix), y, 1, **options).value
    torch.testing.assert_close(whole, sirt(Rays(matrix), y, **options).value, rtol=1e-13, atol=1e-13)


def test_more_subsets_need_fewer_iterations(rays: Rays, target: torch.Tensor) -> None:
    y = rays(target.abs())
    counts = [os_sart(rays, y, n, n_iterations=20000, rtol=1e-9).n_iterations for n in (1, 3, 6)]
    assert counts == sorted(counts, reverse=True)
    assert counts[2] < counts[0] / 2
    assert counts[0] == sirt(rays, y, n_iterations=20000, rtol=1e-9).n_iterations


@every_row_action
@pytest.mark.parametrize("limits", [{"rtol": 1e-6, "n_iterations": 5000}, {"rtol": 0.0, "n_iterations": 7}])
def test_row_action_samples_do_not_depend_on_their_batch(
    solve: Callable[..., Solution], limits: dict[str, Any], rays: Rays, target: torch.Tensor
) -> None:
    y = rays(target)
    together = solve(rays, y, **limits)
    alone = [solve(Rays(rays.matrix[i]), y[i], **limits) for i in range(3)]
    assert together.n_iterations == max(s.n_iterations for s in alone)
    for i in range(3):
        assert relative_error(together.value[i], alone[i].value) < 1e-13
        torch.testing.assert_close(together.residual[i], alone[i].residual, rtol=1e-6, atol=1e-14)
        assert bool(together.converged[i]) == bool(alone[i].converged)


@every_row_action
def test_row_action_with_one_operator_for_all_samples(
    solve: Callable[..., Solution], rays: Rays, target: torch.Tensor
) -> None:
    A = Rays(rays.matrix[0])
    y = A(target)
    together = solve(A, y, rtol=1e-6, n_iterations=3000, project=project_nonnegative)
    alone = [solve(A, part, rtol=1e-6, n_iterations=3000, project=project_nonnegative) for part in y]
    assert len({s.n_iterations for s in alone}) > 1
    for i in range(3):
        torch.testing.assert_close(together.value[i], alone[i].value, rtol=1e-13, atol=1e-20)


@every_row_action
def test_row_action_special_samples_leave_the_others_alone(
    solve: Callable[..., Solution], rays: Rays, target: torch.Tensor
) -> None:
    y = rays(target)
    y[1], y[2, 0, 0] = 0, float("nan")
    solution = solve(rays, y, rtol=1e-9, n_iterations=5000)
    assert not solution.value[1].any()
    assert solution.converged.tolist() == [True, True, False]
    alone = solve(Rays(rays.matrix[0]), y[0], rtol=1e-9, n_iterations=5000)
    assert relative_error(solution.value[0], alone.value) < 1e-13
    at_once = solve(rays, torch.zeros_like(y), rtol=1e-9, n_iterations=5000)
    assert at_once.n_iterations == 1
    assert bool(at_once.converged.all())


@every_row_action
def test_row_action_reports_and_calls_back(solve: Callable[..., Solution], rays: Rays, target: torch.Tensor) -> None:
    y, seen = rays(target), []

    def watch(n: int, x: torch.Tensor) -> bool:
        seen.append((n, x))
        return n == 3

    solution = solve(rays, y, n_iterations=50, callback=watch)
    assert [n for n, _ in seen] == [1, 2, 3]
    assert solution.n_iterations == 3
    assert not solution.converged.any()
    change = (seen[2][1] - seen[1][1]).flatten(1).norm(dim=1) / seen[2][1].flatten(1).norm(dim=1)
    torch.testing.assert_close(solution.residual, change)
    untouched = solve(rays, y, n_iterations=0, x0=target)
    assert torch.equal(untouched.value, target)


def test_what_no_ray_sees_stays_as_it_is(rays: Rays, target: torch.Tensor) -> None:
    matrix = rays.matrix.clone()
    matrix[..., 4] = 0
    matrix[:, 2] = 0
    A = Rays(matrix)
    y = A(target)
    y[:, 2] = 9.0
    for solve in ROW_ACTION.values():
        solution = solve(A, y, x0=torch.full_like(target, 0.5), n_iterations=40)
        assert bool(solution.value.isfinite().all())
        assert bool((solution.value.flatten(1)[:, 4] == 0.5).all())


@every_row_action
def test_row_action_gradients_are_those_of_the_iterations(
    solve: Callable[..., Solution], rays: Rays, target: torch.Tensor
) -> None:
    y = rays(target)[1:2].clone().requires_grad_()
    matrix = rays.matrix[1:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda y, matrix: solve(Rays(matrix), y, n_iterations=3).value, (y, matrix), fast_mode=True, atol=1e-4
    )


def test_row_action_refuses_what_does_not_fit(rays: Rays, target: torch.Tensor) -> None:
    y = rays(target)
    for solve in ROW_ACTION.values():
        for relaxation in (0.0, 2.0, -1.0, float("nan")):
            with pytest.raises(ValueError, match=r"relaxation is .*; expected a number between 0 and 2"):
                solve(rays, y, relaxation=relaxation)
        with pytest.raises(ValueError, match="rtol is -1"):
            solve(rays, y, rtol=-1.0)
        with pytest.raises(ValueError, match="number of iterations is -1"):
            solve(rays, y, n_iterations=-1)
        with pytest.raises(ValueError, match="x0 has shape"):
            solve(rays, y, x0=target[0])
        with pytest.raises(ValueError, match="project returned shape"):
            solve(rays, y, project=lambda v: v[0])
        with pytest.raises(ValueError, match=r"Rays adjoint input has shape \(3, 6, 4\)"):
            solve(rays, y[..., :4])
        with pytest.raises(ValueError, match="A row of A sums to -"):
            solve(Rays(-rays.matrix), y)
    with pytest.raises(TypeError, match=r"complex128; sirt and os_sart need a real operator"):
        sirt(Diagonal(torch.ones(2, 3, dtype=COMPLEX)), torch.ones(2, 3, dtype=COMPLEX))
    for n in (0, 7):
        with pytest.raises(ValueError, match=rf"subsets is {n}; expected 1 to 6"):
            os_sart(rays, y, n)
    for subsets in ([[0, 1, 2], [3, 4]], [[0, 1, 2], [2, 3, 4, 5]], [[0, 1, 2, 3, 4, 5], []], [[0, 1, 2, 3, 4, 6]]):
        with pytest.raises(ValueError, match="subsets are no partition of the 6 views"):
            os_sart(rays, y, subsets)


# fista


def lasso_violation(A: Dense, y: torch.Tensor, x: torch.Tensor, level: torch.Tensor) -> float:
    """How far −Aᴴ(A x − y) is from the subdifferential of level·‖·‖₁ at x."""
    slope = A.adjoint(y) - A.gram(x)
    alive = x != 0
    on_support = (slope - level * torch.where(alive, x / x.abs().clamp_min(1e-300), 0)).abs()[alive].max()
    off_support = (slope.abs() - level)[~alive].max()
    return max(float(on_support), float(off_support))


@pytest.mark.parametrize("restart", [False, True])
def test_lasso_by_fista_satisfies_the_optimality_conditions(restart: bool, problem: Problem) -> None:
    A, y = problem.A, problem.y[:1] * torch.tensor([[1e-3]])
    A = Dense(A.matrix[:1])
    level = 0.4 * A.adjoint(y).abs().amax() * torch.rand(SHAPE, dtype=REAL, generator=torch.Generator().manual_seed(1))
    solution = fista(
        A, y, lambda v, t: complex_soft_threshold(v, t * level), n_iterations=4000, rtol=1e-15, restart=restart
    )
    n_zero = int((solution.value == 0).sum())
    assert 0 < n_zero < 12
    assert lasso_violation(A, y, solution.value, level.expand_as(solution.value)) < 1e-10 * float(level.max())


def test_fista_with_separable_shrinkage_equals_the_real_problem(generator: torch.Generator) -> None:
    matrix = torch.randn(N_DATA, 12, dtype=REAL, generator=generator)
    y = torch.randn(N_DATA, dtype=COMPLEX, generator=generator)
    level = 2.0
    complex_ = fista(
        Dense(matrix.to(COMPLEX)), y, lambda v, t: separable_soft_threshold(v, t * level), n_iterations=3000
    )
    pair = fista(Dense(matrix), torch.view_as_real(y).T, lambda v, t: soft_threshold(v, t * level), n_iterations=3000)
    torch.testing.assert_close(torch.view_as_real(complex_.value), pair.value.movedim(0, -1), rtol=1e-9, atol=1e-12)


def test_fista_momentum_is_that_of_chambolle_and_dossal(generator: torch.Generator) -> None:
    matrix = torch.randn(N_DATA, 12, dtype=REAL, generator=generator)
    y = torch.randn(N_DATA, dtype=REAL, generator=generator)
    L = float(torch.linalg.matrix_norm(matrix, ord=2) ** 2)
    s = z = torch.zeros(12, dtype=REAL)
    for i in range(9):
        new = z - matrix.T @ (matrix @ z - y) / L
        new = new.sign() * (new.abs() - 0.3 / L).clamp_min(0)
        s, z = new, new + i / (i + 1 + 3) * (new - s)
    ours = fista(Dense(matrix), y, lambda v, t: soft_threshold(v, 0.3 * t), n_iterations=9).value
    torch.testing.assert_close(ours.flatten(), s, rtol=1e-10, atol=1e-12)


def test_restart_removes_the_oscillation_where_conditioning_is_bad() -> None:
    A = Diagonal(torch.logspace(0, -1.5, 12, dtype=REAL).reshape(SHAPE))
    y = A(torch.ones(SHAPE, dtype=REAL))
    plain, restarted = (
        fista(A, y, unchanged, step=1.0, restart=restart, rtol=1e-10, n_iterations=20000) for restart in (False, True)
    )
    assert bool(restarted.converged)
    assert restarted.n_iterations < 0.7 * plain.n_iterations
    # Without momentum the slowest entry falls by 1 − 1/1000 in every iteration.
    assert restarted.n_iterations < 4000


def test_fista_gradients_reach_thresholds_data_and_operator(problem: Problem) -> None:
    learned, (matrix, y, _) = learnable(problem)
    level = torch.full((3, 1, 1), 1e-9, dtype=REAL, requires_grad=True)
    x = fista(learned.A, y, lambda v, t: complex_soft_threshold(v, t * level), n_iterations=4).value
    for gradient in torch.autograd.grad(x.abs().sum(), (matrix, y, level)):
        assert bool(gradient.isfinite().all())
        assert bool(gradient.flatten(1).any(dim=1).all())


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf")])
def test_fista_refuses_steps_that_are_not_positive(step: float, problem: Problem) -> None:
    with pytest.raises(ValueError, match="step is"):
        fista(problem.A, problem.y, unchanged, step=step)


def test_fista_takes_a_step_per_sample_and_a_start(problem: Problem) -> None:
    default = fista(problem.A, problem.y, unchanged, n_iterations=5)
    explicit = fista(problem.A, problem.y, unchanged, n_iterations=5, step=problem.A.norm() ** -2)
    torch.testing.assert_close(explicit.value, default.value, rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match="does not broadcast to the batch shape"):
        fista(problem.A, problem.y, unchanged, step=torch.ones(2))
    start = torch.ones_like(default.value)
    assert torch.equal(fista(problem.A, problem.y, unchanged, n_iterations=0, x0=start).value, start)
    with pytest.raises(ValueError, match="x0 has shape"):
        fista(problem.A, problem.y, unchanged, x0=start[0])


def test_prox_must_keep_the_shape(problem: Problem) -> None:
    with pytest.raises(ValueError, match="prox returned shape"):
        fista(problem.A, problem.y, lambda v, t: v.unsqueeze(0).expand(2, *v.shape))


def test_a_zero_operator_returns_what_the_prior_wants() -> None:
    A, y = Dense(torch.zeros(5, 12, dtype=REAL)), torch.ones(5, dtype=REAL)
    assert not fista(A, y, unchanged, n_iterations=3).value.any()
    ones = torch.ones(SHAPE, dtype=REAL)
    solution = pdhg(A, unchanged, lambda v, t: (v + t * ones) / (1 + t), x0=torch.zeros_like(ones), n_iterations=200)
    torch.testing.assert_close(solution.value, ones)


# callback

ITERATING: dict[str, Callable[..., Solution]] = {
    "cgls": lambda problem, n_iterations, **options: cgls(
        problem.A, problem.y, max_iterations=n_iterations, rtol=0.0, **options
    ),
    "fista": lambda problem, **options: fista(problem.A, problem.y, unchanged, **options),
    "pdhg": lambda problem, **options: pdhg(
        problem.A,
        lambda v, sigma: (v - sigma * problem.y) / (1 + sigma),
        unchanged,
        x0=torch.zeros_like(problem.A.adjoint(problem.y)),
        **options,
    ),
}


@pytest.mark.parametrize("solve", ITERATING.values(), ids=ITERATING.keys())
def test_callback_sees_every_iterate_and_stops(solve: Callable[..., Solution], problem: Problem) -> None:
    seen: list[tuple[int, torch.Tensor]] = []

    def watch(iteration: int, value: torch.Tensor) -> bool | None:
        seen.append((iteration, value))
        return True if iteration == 4 else None

    solution = solve(problem, n_iterations=50, callback=watch)
    assert [n for n, _ in seen] == [1, 2, 3, 4]
    assert solution.n_iterations == 4
    assert torch.equal(solution.value, seen[-1][1])
    for n, value in seen:
        assert torch.equal(solve(problem, n_iterations=n).value, value)
    assert not solution.converged.any()


# pdhg


def total_variation_reference(noisy: torch.Tensor, level: float, n_iterations: int = 4000) -> torch.Tensor:
    """Denoise by accelerated projected gradient ascent on the dual, in one expression per line and no operator."""
    p = q = torch.zeros(2, *noisy.shape, dtype=noisy.dtype)
    t = 1.0

    def divergence(field: torch.Tensor) -> torch.Tensor:
        down, right = field[0].clone(), field[1].clone()
        down[-1], right[:, -1] = 0, 0
        down[1:] -= field[0][:-1]
        right[:, 1:] -= field[1][:, :-1]
        return down + right

    for _ in range(n_iterations):
        u = noisy + divergence(q)
        ascent = torch.zeros_like(p)
        ascent[0, :-1] = u[1:] - u[:-1]
        ascent[1, :, :-1] = u[:, 1:] - u[:, :-1]
        new = q + ascent / 8
        new = new / (new.abs().square().sum(0).sqrt() / level).clamp_min(1)
        t, old = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
        p, q = new, new + (old - 1) / t * (new - p)
    return noisy + divergence(p)


@both_fields
def test_total_variation_denoising_agrees_with_the_dual(dtype: torch.dtype, generator: torch.Generator) -> None:
    noisy = torch.randn(2, 6, 5, dtype=dtype, generator=generator)
    noisy[:, :3] += 2
    level = 0.35
    G = FiniteDifference(Space((6, 5), "complex" if dtype.is_complex else "real"))
    reference = torch.stack([total_variation_reference(image, level) for image in noisy])

    def shrink(v: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return project_dual_ball(v, level, dim=-3)

    chambolle_pock = pdhg(
        G, shrink, lambda x, tau: (x + tau * noisy) / (1 + tau), x0=noisy, n_iterations=6000, rtol=1e-12
    )
    condat_vu = pdhg(
        G, shrink, unchanged, x0=noisy, gradient=lambda x: x - noisy, lipschitz=1.0, n_iterations=6000, rtol=1e-12
    )
    for solution in (chambolle_pock, condat_vu):
        assert bool(solution.converged.all())
        assert relative_error(solution.value, reference) < 1e-7


def test_condat_vu_agrees_with_the_dual_data_term_under_a_constraint(generator: torch.Generator) -> None:
    """½‖W x − y‖² + TV(x), x ≥ 0: once with a cheap gradient, once with everything in one stacked dual."""
    space = Space((5, 6), "real")
    weights = Diagonal(torch.rand(5, 6, dtype=REAL, generator=generator) * 0.7 + 0.3, space)
    y = torch.randn(5, 6, dtype=REAL, generator=generator) + 0.5
    G, level = FiniteDifference(space), 0.2
    condat_vu = pdhg(
        G,
        lambda v, sigma: project_dual_ball(v, level, dim=-3),
        lambda x, tau: project_nonnegative(x),
        x0=torch.zeros_like(y),
        gradient=lambda x: weights.gram(x) - weights.adjoint(y),
        lipschitz=1.0,
        n_iterations=20000,
        rtol=1e-12,
    )

    class Both(LinearOperator):
        def __init__(self) -> None:
            super().__init__(space, Space((3, 5, 6), "real"))

        def _forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat((G(x), weights(x).unsqueeze(-3)), dim=-3)

        def _adjoint(self, v: torch.Tensor) -> torch.Tensor:
            return G.adjoint(v[..., :2, :, :]) + weights.adjoint(v[..., 2, :, :])

    def prox_both(v: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        data = (v[..., 2:, :, :] - sigma * y) / (1 + sigma)
        return torch.cat((project_dual_ball(v[..., :2, :, :], level, dim=-3), data), dim=-3)

    dual = pdhg(
        Both(),
        prox_both,
        lambda x, tau: project_nonnegative(x),
        x0=torch.zeros_like(y),
        n_iterations=20000,
        rtol=1e-12,
    )
    assert bool(condat_vu.converged)
    assert bool(dual.converged)
    assert bool((dual.value == 0).any())
    assert relative_error(condat_vu.value, dual.value) < 1e-7


def test_pdhg_solves_equations_that_only_extrapolation_can(problem: Problem) -> None:
    """K x = b as a constraint: neither side is strongly convex, so that without extrapolation it circles."""
    K = Dense(problem.A.matrix[0, :12] + 4 * torch.eye(12, dtype=problem.y.dtype))
    target = torch.ones(SHAPE, dtype=problem.y.dtype)
    b = K(target)
    solution = pdhg(
        K, lambda v, sigma: v - sigma * b, unchanged, x0=torch.zeros_like(target), n_iterations=5000, rtol=1e-12
    )
    assert bool(solution.converged)
    assert relative_error(solution.value, target) < 1e-8


def test_pdhg_steps_complete_each_other(problem: Problem) -> None:
    norm = problem.A.norm()
    solve = ITERATING["pdhg"]
    default = solve(problem, n_iterations=6).value
    for steps in ({"tau": 1 / norm}, {"sigma": 1 / norm}, {"tau": 1 / norm, "sigma": 1 / norm}):
        torch.testing.assert_close(solve(problem, n_iterations=6, **steps).value, default, rtol=1e-10, atol=0)


def test_pdhg_refuses_steps_that_do_not_fit(problem: Problem) -> None:
    solve = ITERATING["pdhg"]
    with pytest.raises(ValueError, match="lipschitz was given without gradient"):
        solve(problem, lipschitz=1.0)
    with pytest.raises(ValueError, match="gradient was given without lipschitz"):
        solve(problem, gradient=torch.zeros_like)
    with pytest.raises(ValueError, match="no room for a dual step"):
        solve(problem, gradient=torch.zeros_like, lipschitz=4.0, tau=0.5)
    with pytest.raises(ValueError, match=r"sigma is -1\.0"):
        solve(problem, sigma=-1.0)
    with pytest.raises(ValueError, match="expand x0 to the batch"):
        pdhg(problem.A, unchanged, vanish, x0=torch.zeros(SHAPE, dtype=problem.y.dtype))


def test_pdhg_gradients_reach_level_and_data(generator: torch.Generator) -> None:
    noisy = torch.randn(2, 6, 5, dtype=REAL, generator=generator).requires_grad_()
    level = torch.full((2, 1, 6, 5), 0.3, dtype=REAL, requires_grad=True)
    solution = pdhg(
        FiniteDifference(Space((6, 5), "real")),
        lambda v, sigma: project_dual_ball(v, level, dim=-3),
        lambda x, tau: (x + tau * noisy) / (1 + tau),
        x0=noisy.detach(),
        n_iterations=30,
    )
    for gradient in torch.autograd.grad(solution.value.square().sum(), (noisy, level)):
        assert bool(gradient.isfinite().all())
        assert bool(gradient.flatten(1).any(dim=1).all())


# eigenvalues


@pytest.mark.parametrize("find", [power_iteration, largest_eigenvalue])
def test_largest_eigenvalue_equals_the_dense_one(find: Callable[..., Solution], problem: Problem) -> None:
    x0 = torch.randn(3, *SHAPE, dtype=problem.y.dtype, generator=torch.Generator().manual_seed(2))
    options = {"rtol": 1e-7} if find is power_iteration else {}
    solution = find(problem.gram, x0, batch_dims=1, **options)
    assert bool(solution.converged.all())
    torch.testing.assert_close(solution.value, torch.linalg.eigvalsh(problem.dense())[:, -1], rtol=1e-11, atol=0)
    for i in range(3):
        alone = find(problem.sample(i).gram, x0[i], **options)
        assert alone.residual.shape == ()
        torch.testing.assert_close(solution.value[i], alone.value, rtol=1e-13, atol=0)


def test_power_iteration_reports_the_eigenvector_residual() -> None:
    diagonal = torch.tensor([3.0, 1.0], dtype=REAL)
    solution = power_iteration(lambda v: diagonal * v, torch.ones(2, dtype=REAL), rtol=0.0, max_iterations=2)
    v = torch.tensor([3.0, 1.0], dtype=REAL) / 10**0.5
    value = (v * diagonal * v).sum()
    torch.testing.assert_close(solution.value, value)
    torch.testing.assert_close(solution.residual, (diagonal * v - value * v).norm() / value)
    assert not solution.converged


@pytest.mark.parametrize("find", [power_iteration, largest_eigenvalue])
def test_eigenvalue_of_zero_and_from_zero(find: Callable[..., Solution]) -> None:
    solution = find(lambda v: 0 * v, torch.ones(3, dtype=REAL))
    assert solution.value == 0
    assert bool(solution.converged)
    with pytest.raises(ValueError, match="x0 is zero"):
        find(lambda v: v, torch.zeros(3, dtype=REAL))
