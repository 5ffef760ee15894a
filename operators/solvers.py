"""Iterative solvers on plain callables; every quantity (step, inner product, stopping) is per sample."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from operators.space import inner

Map = Callable[[torch.Tensor], torch.Tensor]
Prox = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Callback = Callable[[int, torch.Tensor], bool | None]
_State = tuple[torch.Tensor, ...]


class SpaceLike(Protocol):
    """What a solver asks of a space: how many trailing dimensions belong to one sample."""

    @property
    def n_dims(self) -> int:
        """Number of trailing dimensions of an element."""
        ...


class OperatorLike(Protocol):
    """What a solver asks of a linear operator; every `LinearOperator` fits."""

    @property
    def domain(self) -> SpaceLike:
        """Space of x in A(x)."""
        ...

    @property
    def codomain(self) -> SpaceLike:
        """Space of A(x)."""
        ...

    def __call__(self, x: torch.Tensor, /) -> torch.Tensor:
        """A x."""
        ...

    def adjoint(self, y: torch.Tensor, /) -> torch.Tensor:
        """Aᴴ y."""
        ...

    def gram(self, x: torch.Tensor, /) -> torch.Tensor:
        """AᴴA x."""
        ...

    def norm(self) -> torch.Tensor:
        """‖A‖₂, of a shape that broadcasts to the batch."""
        ...


class SubsetOperatorLike(OperatorLike, Protocol):
    """What `os_sart` asks of a linear operator besides; every `Projection` fits."""

    def __getitem__(self, views: Sequence[int], /) -> OperatorLike:
        """The operator of some entries of the codomain's first axis, in the given order."""
        ...


@dataclass(frozen=True, slots=True)
class Solution:
    """What a solver found, with how it got there.

    Parameters
    ----------
    value
        The result.
    n_iterations
        Iterations that were made; the largest over the batch.
    residual
        Relative residual per sample, real; each solver says of what.
    converged
        Per sample, whether the residual reached the tolerance.
    """

    value: torch.Tensor
    n_iterations: int
    residual: torch.Tensor
    converged: torch.Tensor


def cg(
    gram: Map,
    rhs: torch.Tensor,
    *,
    x0: torch.Tensor | None = None,
    rtol: float = 1e-6,
    max_iterations: int = 100,
    batch_dims: int = 0,
) -> Solution:
    """Solve A x = b for a self-adjoint positive (semi-)definite map A by conjugate gradients.

    The gradient is that of the solution, not of the iterations: for ``rhs`` and for every tensor that ``gram`` closes
    over it takes one more solve with the same map, and the memory does not grow with the iterations. It is as exact
    as both solves are, and it is a first derivative only.

    Parameters
    ----------
    gram
        A, on tensors of the shape of ``rhs``; it treats the leading ``batch_dims`` dimensions as samples. Often
        ``A.gram``, or ``lambda x: A.gram(x) + weight * x``.
    rhs
        b, ``(*batch, *shape)``, real or complex. Where A is singular, b must lie in its range.
    x0
        Start, of the shape of ``rhs``; by default zero. No gradient flows to it.
    rtol
        A sample stops, and stays as it is, once ‖b − A x‖ ≤ rtol·‖b‖.
    max_iterations
        Upper bound of the number of iterations.
    batch_dims
        Number of leading dimensions that are samples.

    Returns
    -------
    Solution
        ``residual`` is ‖b − A x‖/‖b‖, of shape ``batch``, computed afresh from the value. A sample with b = 0 gives
        zero at once. A sample stops unconverged where A is not positive, and where the precision reaches no further.

    Raises
    ------
    TypeError
        If ``rhs`` is neither real floating-point nor complex, or ``x0`` has another dtype.
    ValueError
        If a shape does not fit, or ``rtol`` or ``max_iterations`` is negative.
    RuntimeError
        In a backward pass with ``create_graph=True``, because there are no second derivatives.

    References
    ----------
    Hestenes and Stiefel, Methods of conjugate gradients for solving linear systems, 1952, equations 3:1. Departure:
    when the updated residual reaches the tolerance it is computed afresh; where that does not hold the sample restarts,
    as long as this halves its residual.
    """
    samples = _samples(rhs, batch_dims)
    _check_limits(rtol, max_iterations)
    start = None if x0 is None else _checked_start(x0, rhs)
    checked_gram = _shape_preserving(gram, "gram")

    def solve(b: torch.Tensor, x: torch.Tensor | None) -> Solution:
        with torch.no_grad():
            return _conjugate_gradients(checked_gram, b, x, rtol, max_iterations, samples)

    solution = solve(rhs, start)
    if not torch.is_grad_enabled():
        return solution
    defect = rhs - checked_gram(solution.value)
    value = _with_implicit_gradient(solution.value, defect, lambda gradient: solve(gradient, None).value)
    return Solution(value, solution.n_iterations, solution.residual, solution.converged)


def fixed_point(
    step: Map, z0: torch.Tensor, *, rtol: float = 1e-6, max_iterations: int = 100, batch_dims: int = 0
) -> Solution:
    """Iterate z ← step(z) until it stays, with the gradient of the fixed point instead of that of the iterations.

    For every tensor that ``step`` closes over, the backward pass solves u = g + Jᴴu for the incoming gradient g, J the
    derivative of ``step`` at the fixed point, by the same iteration; so ``step`` should be a contraction. The memory
    does not grow with the iterations. First derivatives only.

    Parameters
    ----------
    step
        The map, on tensors of the shape of ``z0``; it treats the leading ``batch_dims`` dimensions as samples.
    z0
        Start, ``(*batch, *shape)``, real or complex. No gradient flows to it.
    rtol
        A sample stops, and stays as it is, once its relative change in one iteration is at most this.
    max_iterations
        Upper bound of the number of iterations, forward and backward.
    batch_dims
        Number of leading dimensions that are samples.

    Returns
    -------
    Solution
        ``residual`` is ‖step(z) − z‖/‖step(z)‖ in the sample's last iteration, of shape ``batch``.

    Raises
    ------
    TypeError
        If ``z0`` is neither real floating-point nor complex.
    ValueError
        If a shape does not fit, or ``rtol`` or ``max_iterations`` is negative.
    RuntimeError
        In a backward pass with ``create_graph=True``, because there are no second derivatives.

    References
    ----------
    Bai, Kolter and Koltun, Deep equilibrium models, 2019, theorem 1.
    """
    samples = _samples(z0, batch_dims)
    _check_limits(rtol, max_iterations)
    checked_step = _shape_preserving(step, "step")

    def settle(update: Map, start: torch.Tensor) -> Solution:
        def advance(state: _State) -> tuple[_State, torch.Tensor]:
            (old,) = state
            new = update(old)
            return (new,), _ratio(samples.norm(new - old), samples.norm(new))

        with torch.no_grad():
            return _iterate(advance, (start,), samples, max_iterations, rtol)

    solution = settle(checked_step, z0)
    if not torch.is_grad_enabled():
        return solution

    def solve(gradient: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            z = solution.value.detach().requires_grad_()
            image = checked_step(z)

        def update(u: torch.Tensor) -> torch.Tensor:
            (pulled_back,) = torch.autograd.grad(image, z, u, retain_graph=True, materialize_grads=True)
            return gradient + pulled_back

        return settle(update, gradient).value

    value = _with_implicit_gradient(solution.value, checked_step(solution.value), solve)
    return Solution(value, solution.n_iterations, solution.residual, solution.converged)


def fista(
    A: OperatorLike,
    y: torch.Tensor,
    prox: Prox,
    *,
    step: float | torch.Tensor | None = None,
    n_iterations: int = 100,
    x0: torch.Tensor | None = None,
    restart: bool = False,
    rtol: float = 0.0,
    callback: Callback | None = None,
) -> Solution:
    """Minimise ½‖A x − y‖² + g(x) by the accelerated proximal gradient method.

    Parameters
    ----------
    A
        Linear operator; only its gram, its adjoint and, without ``step``, its norm are used.
    y
        Data, ``(*batch, *codomain.shape)``.
    prox
        ``prox(v, step)`` is argmin_x ½‖x − v‖² + step·g(x); ``step`` arrives with shape ``(*batch, 1, …, 1)``.
    step
        Step size, a number or one per sample, of a shape that broadcasts to ``batch``; by default 1/‖A‖².
    n_iterations
        Number of iterations, fewer if every sample reaches ``rtol`` before.
    x0
        Start, ``(*batch, *domain.shape)``; by default zero.
    restart
        Whether a sample drops its momentum as soon as that points uphill.
    rtol
        A sample stops, and stays as it is, once its residual is at most this.
    callback
        Called with the number of iterations made and the iterate; stops by returning ``True``.

    Returns
    -------
    Solution
        ``residual`` is ‖x − z‖/‖x‖ of shape ``batch``, where x is the last proximal gradient step and z the
        extrapolated point it was made from; it is zero only at a minimiser. Gradients are those of the iterations.

    Raises
    ------
    TypeError
        If ``x0`` has another dtype than Aᴴy.
    ValueError
        If a shape does not fit, a step is not positive, or ``rtol`` or ``n_iterations`` is negative.

    References
    ----------
    Chambolle and Dossal, On the convergence of the iterates of FISTA, 2015, section 3.1, with a = 3:
    z_{i+1} = x_{i+1} + i/(i + 1 + a)·(x_{i+1} − x_i), counted from i = 0.
    O'Donoghue and Candès, Adaptive restart for accelerated gradient schemes, 2015, section 3.2, gradient scheme.
    """
    _check_limits(rtol, n_iterations)
    back_projected = A.adjoint(y)
    samples = _samples(back_projected, back_projected.ndim - A.domain.n_dims)
    x = torch.zeros_like(back_projected) if x0 is None else _checked_start(x0, back_projected)
    if step is None:
        norm = A.norm()
        step = torch.where(norm > 0, 1 / norm**2, torch.ones_like(norm))
    size = samples.spread(_positive(step, "step", back_projected, samples))
    shrink = _shape_preserving(lambda v: prox(v, size), "prox")
    a = 3.0

    def advance(state: _State) -> tuple[_State, torch.Tensor]:
        x, z, i = state
        new = shrink(z - size * (A.gram(z) - back_projected))
        change = new - x
        with torch.no_grad():
            residual = _ratio(samples.norm(new - z), samples.norm(new))
            if restart:
                i = torch.where(samples.inner(z - new, change) > 0, torch.zeros_like(i), i)
        return (new, new + samples.spread(i / (i + 1 + a)) * change, i + 1), residual

    return _iterate(advance, (x, x, samples.scalar(x, 0.0)), samples, n_iterations, rtol, callback)


def pdhg(
    K: OperatorLike,
    prox_f_conjugate: Prox,
    prox_g: Prox,
    *,
    x0: torch.Tensor,
    gradient: Map | None = None,
    lipschitz: float | torch.Tensor | None = None,
    tau: float | torch.Tensor | None = None,
    sigma: float | torch.Tensor | None = None,
    n_iterations: int = 100,
    rtol: float = 0.0,
    callback: Callback | None = None,
) -> Solution:
    """Minimise f(K x) + g(x) + h(x) by the primal-dual hybrid gradient method; h is smooth and may be absent.

    Without ``gradient`` this is the method of Chambolle and Pock, with it that of Condat and Vũ: use it for a data
    term h = ½‖A x − y‖² that has a cheap gradient ``A.gram(x) − A.adjoint(y)`` and no cheap proximal map.

    Parameters
    ----------
    K
        Linear operator, for total variation `FiniteDifference`.
    prox_f_conjugate
        ``prox_f_conjugate(v, sigma)`` is the proximal map of σ·f*, f* the convex conjugate of f; for total variation
        `project_dual_ball`. ``sigma`` arrives with shape ``(*batch, 1, …, 1)``, trailing ones as many as v has.
    prox_g
        ``prox_g(x, tau)`` is the proximal map of τ·g; ``tau`` arrives with shape ``(*batch, 1, …, 1)``.
    x0
        Start, ``(*batch, *domain.shape)``; the dual variable starts at zero.
    gradient
        ∇h, on tensors of the shape of ``x0``; it treats leading dimensions as samples.
    lipschitz
        Lipschitz constant L of ∇h, a number or one per sample; for ½‖A x − y‖² it is ‖A‖².
    tau, sigma
        Primal and dual step, numbers or one per sample, of a shape that broadcasts to ``batch``. The method converges
        if 1/τ − σ‖K‖² ≥ L/2. By default σ = 1/‖K‖ and τ as large as that allows (1/‖K‖ without h); where one is given
        the other is as large as allowed; where both are given they are used as they are.
    n_iterations
        Number of iterations, fewer if every sample reaches ``rtol`` before.
    rtol
        A sample stops, and stays as it is, once its residual is at most this.
    callback
        Called with the number of iterations made and the iterate; stops by returning ``True``.

    Returns
    -------
    Solution
        ``residual`` is the relative change of both variables in the last iteration, of shape ``batch``, in the norm
        (‖x‖²/τ + ‖y‖²/σ)^½ with y the dual one; it is zero only at a minimiser. Gradients are those of the iterations.

    Raises
    ------
    TypeError
        If ``x0`` is neither real floating-point nor complex.
    ValueError
        If a shape does not fit, a step is not positive, ``tau`` leaves no room for a dual step, ``lipschitz`` is
        missing or not wanted, or ``rtol`` or ``n_iterations`` is negative.

    References
    ----------
    Chambolle and Pock, A first-order primal-dual algorithm for convex problems, 2011, algorithm 1 with θ = 1.
    Condat, A primal-dual splitting method, 2013, algorithm 3.1 with ρ = 1; its order (primal step first) is used for
    both, which shifts the dual iterates of the former by one.
    """
    _check_limits(rtol, n_iterations)
    samples = _samples(x0, x0.ndim - K.domain.n_dims)
    y0 = torch.zeros_like(K(x0))
    dual_samples = _samples(y0, y0.ndim - K.codomain.n_dims)
    if y0.shape[: dual_samples.batch_dims] != x0.shape[: samples.batch_dims]:
        raise ValueError(
            f"x0 has batch shape {tuple(x0.shape[: samples.batch_dims])} but K(x0) has "
            f"{tuple(y0.shape[: dual_samples.batch_dims])}; expand x0 to the batch of K."
        )
    if gradient is None and lipschitz is not None:
        raise ValueError("lipschitz was given without gradient; give both or neither.")
    primal_step, dual_step = _primal_dual_steps(K, x0, gradient is not None, lipschitz, tau, sigma, samples)
    primal_size, dual_size = samples.spread(primal_step), dual_samples.spread(dual_step)

    def length(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.hypot(samples.norm(x) / primal_step.sqrt(), dual_samples.norm(y) / dual_step.sqrt())

    primal_prox = _shape_preserving(lambda v: prox_g(v, primal_size), "prox_g")
    dual_prox = _shape_preserving(lambda v: prox_f_conjugate(v, dual_size), "prox_f_conjugate")

    def advance(state: _State) -> tuple[_State, torch.Tensor]:
        x, y = state
        slope = K.adjoint(y) if gradient is None else K.adjoint(y) + gradient(x)
        new_x = primal_prox(x - primal_size * slope)
        new_y = dual_prox(y + dual_size * K(2 * new_x - x))
        with torch.no_grad():
            residual = _ratio(length(new_x - x, new_y - y), length(new_x, new_y))
        return (new_x, new_y), residual

    return _iterate(advance, (x0, y0), samples, n_iterations, rtol, callback)


def cgls(
    A: OperatorLike,
    y: torch.Tensor,
    *,
    x0: torch.Tensor | None = None,
    rtol: float = 1e-6,
    max_iterations: int = 100,
    callback: Callback | None = None,
) -> Solution:
    """Minimise ‖A x − y‖² by conjugate gradients, without forming AᴴA.

    Where noise must not be fitted, few iterations regularise: give a small ``max_iterations``, or a stopping callback.

    Parameters
    ----------
    A
        Linear operator; only it and its adjoint are used.
    y
        Data, ``(*batch, *codomain.shape)``.
    x0
        Start, ``(*batch, *domain.shape)``; by default zero.
    rtol
        A sample stops, and stays as it is, once its residual is at most this.
    max_iterations
        Upper bound of the number of iterations.
    callback
        Called with the number of iterations made and the iterate; stops by returning ``True``.

    Returns
    -------
    Solution
        ``residual`` is ‖Aᴴ(y − A x)‖/‖Aᴴy‖, of shape ``batch``. A sample with Aᴴy = 0 gives zero at once. Gradients are
        those of the iterations.

    Raises
    ------
    TypeError
        If ``x0`` has another dtype than Aᴴy.
    ValueError
        If a shape does not fit, or ``rtol`` or ``max_iterations`` is negative.

    References
    ----------
    Björck, Numerical methods for least squares problems, 1996, algorithm 7.4.1. Departure: when the updated residual
    reaches the tolerance it is computed afresh; where that does not hold the sample restarts.
    """
    _check_limits(rtol, max_iterations)
    back_projected = A.adjoint(y)
    samples = _samples(back_projected, back_projected.ndim - A.domain.n_dims)
    data_samples = _Samples(samples.batch_dims, A.codomain.n_dims)
    x = torch.zeros_like(back_projected) if x0 is None else _checked_start(x0, back_projected)
    # Scaled to order one, so that squared norms of small data do not underflow in single precision.
    scale = samples.largest(back_projected).detach()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    length = samples.norm(back_projected / samples.spread(scale))
    x = torch.where(samples.spread(length) == 0, torch.zeros_like(x), x)

    def remainder(x: torch.Tensor) -> torch.Tensor:
        return (y - A(x)) / data_samples.spread(scale)

    def advance(state: _State) -> tuple[_State, torch.Tensor]:
        x, r, p, squared, verified = state
        image = A(p)
        alpha = _ratio(squared, data_samples.inner(image, image))
        x = x + samples.spread(alpha * scale) * p
        r = r - data_samples.spread(alpha) * image
        s = A.adjoint(r)
        updated = samples.inner(s, s)
        reached = (updated.sqrt() <= rtol * length) & ~verified
        if bool(reached.any()):
            r = torch.where(data_samples.spread(reached), remainder(x), r)
            s = A.adjoint(r)
            updated = samples.inner(s, s)
        beta = torch.where(reached, torch.zeros_like(updated), _ratio(updated, squared))
        with torch.no_grad():
            residual = _ratio(updated.sqrt(), length)
        return (x, r, s + samples.spread(beta) * p, updated, verified | (residual <= rtol)), residual

    r = remainder(x)
    s = A.adjoint(r)
    start = (x, r, s, samples.inner(s, s), torch.zeros_like(length, dtype=torch.bool))
    return _iterate(advance, start, samples, max_iterations, rtol, callback)


def sirt(
    A: OperatorLike,
    y: torch.Tensor,
    *,
    relaxation: float = 1.0,
    project: Map | None = None,
    x0: torch.Tensor | None = None,
    n_iterations: int = 100,
    rtol: float = 0.0,
    callback: Callback | None = None,
) -> Solution:
    """Minimise Σ_r (A x − y)_r²/R_r over a convex set by simultaneous iterative reconstruction.

    With R = A 1 and C = Aᵀ1, the sums of A's rows and columns, an iteration is
    x ← project(x + relaxation · C⁻¹Aᵀ R⁻¹(y − A x)). What no row or no column sees is left as it is.

    Parameters
    ----------
    A
        Real linear operator without negative entries, as a projection.
    y
        Data, ``(*batch, *codomain.shape)``.
    relaxation
        Between 0 and 2, exclusive.
    project
        Projection onto the set, such as `project_nonnegative`; by default every x is allowed. It treats leading
        dimensions as samples.
    x0
        Start, ``(*batch, *domain.shape)``; by default zero.
    n_iterations
        Number of iterations, fewer if every sample reaches ``rtol`` before. Few regularise.
    rtol
        A sample stops, and stays as it is, once its residual is at most this.
    callback
        Called with the number of iterations made and the iterate; stops by returning ``True``.

    Returns
    -------
    Solution
        ``residual`` is the relative change of x in the last iteration, of shape ``batch``. Gradients are those of the
        iterations.

    Raises
    ------
    TypeError
        If ``x0`` has another dtype than Aᵀy, or A or the data is complex.
    ValueError
        If a shape does not fit, a sum is negative, or the relaxation, ``rtol`` or ``n_iterations`` is out of range.

    References
    ----------
    Gregor and Benson, Computational analysis and improvement of SIRT, 2008, equation 3.
    """
    x = _row_action_start(A, y, relaxation, x0)
    return _row_action([(A, y)], x, A.domain.n_dims, relaxation, project, n_iterations, rtol, callback)


def os_sart(
    A: SubsetOperatorLike,
    y: torch.Tensor,
    subsets: int | Sequence[Sequence[int]] = 10,
    *,
    relaxation: float = 1.0,
    project: Map | None = None,
    x0: torch.Tensor | None = None,
    n_iterations: int = 20,
    rtol: float = 0.0,
    callback: Callback | None = None,
) -> Solution:
    """Solve A x = y over a convex set by the simultaneous algebraic technique on ordered subsets of the views.

    An iteration makes the step of `sirt` with each subset in turn. It approaches the solution about as many times
    faster as there are subsets where the data are consistent; else it ends in a cycle around it, the smaller the
    smaller the relaxation.

    Parameters
    ----------
    A
        Real linear operator without negative entries that gives subsets of its views as ``A[views]``, as a projection.
    y
        Data, ``(*batch, view, …)``.
    subsets
        Number of interleaved subsets, which are visited in an order that keeps consecutive ones apart; or the views of
        each subset, in the order to visit, every view in exactly one of them.
    relaxation, project, x0, rtol, callback
        As for `sirt`.
    n_iterations
        Number of iterations through all subsets, fewer if every sample reaches ``rtol`` before.

    Returns
    -------
    Solution
        ``residual`` is the relative change of x in the last iteration, of shape ``batch``. Gradients are those of the
        iterations.

    Raises
    ------
    TypeError
        As for `sirt`.
    ValueError
        As for `sirt`, or if the subsets are no partition of the views.

    References
    ----------
    Wang and Jiang, Ordered-subset simultaneous algebraic reconstruction techniques, 2004, equation 2.
    """
    x = _row_action_start(A, y, relaxation, x0)
    axis = y.ndim - A.codomain.n_dims
    chosen = _subsets(subsets, y.shape[axis])
    blocks = [(A[views], y.index_select(axis, torch.tensor(views, device=y.device))) for views in chosen]
    return _row_action(blocks, x, A.domain.n_dims, relaxation, project, n_iterations, rtol, callback)


def power_iteration(
    gram: Map, x0: torch.Tensor, *, batch_dims: int = 0, rtol: float = 1e-4, max_iterations: int = 1000
) -> Solution:
    """Largest eigenvalue of a self-adjoint positive semi-definite map, by power iteration.

    It keeps one vector; where memory allows a few dozen, `largest_eigenvalue` needs far fewer applications.

    Parameters
    ----------
    gram
        The map, on tensors of the shape of ``x0``; it treats the leading ``batch_dims`` dimensions as samples.
    x0
        Start, ``(*batch, *shape)``, not zero.
    batch_dims
        Number of leading dimensions that are samples.
    rtol
        A sample stops, and stays as it is, once its residual is at most this.
    max_iterations
        Upper bound of the number of iterations.

    Returns
    -------
    Solution
        ``value`` λ and ``residual`` ‖A v − λ v‖/λ, for the unit vector v, are real, of shape ``batch``. Some eigenvalue
        lies within λ·residual of λ; near convergence the error of λ falls with the square of the residual. Detached.

    Raises
    ------
    TypeError
        If ``x0`` is neither real floating-point nor complex.
    ValueError
        If a shape does not fit, a sample of ``x0`` is zero, or ``rtol`` or ``max_iterations`` is negative.

    References
    ----------
    Golub and Van Loan, Matrix Computations, 4th ed., section 8.2.1.
    """
    samples = _samples(x0, batch_dims)
    _check_limits(rtol, max_iterations)
    checked_gram = _shape_preserving(gram, "gram")

    def advance(state: _State) -> tuple[_State, torch.Tensor]:
        _, v = state
        w = checked_gram(v)
        value, length = samples.inner(v, w), samples.norm(w)
        residual = _ratio(samples.norm(w - samples.spread(value) * v), value.abs())
        return (value, torch.where(samples.spread(length) > 0, _ratio(w, samples.spread(length)), v)), residual

    with torch.no_grad():
        start = (samples.scalar(x0, 0.0), _unit(x0, samples))
        return _iterate(advance, start, samples, max_iterations, rtol)


def largest_eigenvalue(
    gram: Map, x0: torch.Tensor, *, batch_dims: int = 0, rtol: float = 1e-12, max_iterations: int = 128
) -> Solution:
    """Largest eigenvalue of a self-adjoint positive semi-definite map, by Lanczos with full reorthogonalisation.

    Parameters
    ----------
    gram
        The map, on tensors of the shape of ``x0``; it treats the leading ``batch_dims`` dimensions as samples.
    x0
        Start, ``(*batch, *shape)``, not zero.
    batch_dims
        Number of leading dimensions that are samples.
    rtol
        A sample stops once the relative change of its eigenvalue is below this.
    max_iterations
        Upper bound of the number of steps, and of the vectors kept.

    Returns
    -------
    Solution
        ``value`` and ``residual`` (relative change in the last step) are real, of shape ``batch``.

    Raises
    ------
    TypeError
        If ``x0`` is neither real floating-point nor complex.
    ValueError
        If ``batch_dims`` does not fit, a sample of ``x0`` is zero, or ``rtol`` or ``max_iterations`` is negative.

    References
    ----------
    Golub and Van Loan, Matrix Computations, 4th ed., algorithm 10.1.1.
    """
    samples = _samples(x0, batch_dims)
    _check_limits(rtol, max_iterations)
    size = math.prod(x0.shape[batch_dims:])
    q = _unit(x0, samples)
    basis, diagonal = [q], []
    off_diagonal: list[torch.Tensor] = []
    n_steps = 0
    value, residual = samples.scalar(x0, 0.0), samples.scalar(x0, math.inf)
    done = torch.zeros_like(value, dtype=torch.bool)
    for _ in range(min(size, max_iterations)):
        n_steps += 1
        w = gram(q)
        diagonal.append(samples.inner(q, w))
        for _ in range(2):
            for v in basis:
                w = w - samples.spread(inner(v, w, samples.n_dims)) * v
        largest = _largest_of_tridiagonal(diagonal, off_diagonal)
        residual = torch.where(done, residual, _ratio((largest - value).abs(), largest.abs()))
        value = torch.where(done, value, largest)
        beta = samples.norm(w)
        exhausted = beta <= torch.finfo(x0.dtype).eps * size * value.abs()
        done = done | (residual < rtol) | exhausted
        if bool(done.all()):
            break
        beta = torch.where(exhausted, torch.zeros_like(beta), beta)
        q = torch.where(samples.spread(exhausted), torch.zeros_like(w), _ratio(w, samples.spread(beta)))
        basis.append(q)
        off_diagonal.append(beta)
    return Solution(value, n_steps, residual, done)


def _largest_of_tridiagonal(diagonal: list[torch.Tensor], off_diagonal: list[torch.Tensor]) -> torch.Tensor:
    matrix = torch.diag_embed(torch.stack(diagonal, dim=-1))
    if off_diagonal:
        beside = torch.stack(off_diagonal, dim=-1)
        matrix = matrix + torch.diag_embed(beside, offset=1) + torch.diag_embed(beside, offset=-1)
    return torch.linalg.eigvalsh(matrix)[..., -1]


def _conjugate_gradients(
    gram: Map, rhs: torch.Tensor, x0: torch.Tensor | None, rtol: float, max_iterations: int, samples: "_Samples"
) -> Solution:
    # Scaled to order one, so that squared norms of small data do not underflow in single precision.
    scale = samples.largest(rhs)
    scale = samples.spread(torch.where(scale > 0, scale, torch.ones_like(scale)))
    b = rhs / scale
    length = samples.norm(b)
    bound = rtol * length
    x, r = torch.zeros_like(b), b.clone()
    if x0 is not None:
        x = torch.where(samples.spread(length) > 0, x0 / scale, x)
        r = b - gram(x)
    p = r.clone()
    squared = samples.inner(r, r)
    active = squared.sqrt() > bound
    verified = samples.scalar(b, math.inf)
    n_iterations = 0
    while n_iterations < max_iterations and bool(active.any()):
        n_iterations += 1
        image = gram(p)
        curvature = samples.inner(p, image)
        active = active & (curvature > 0)
        # A stopped sample takes steps of length zero: what it holds stays as it is.
        alpha = samples.spread(torch.where(active, _ratio(squared, curvature), torch.zeros_like(squared)))
        x += alpha * p
        r -= alpha * image
        updated = samples.inner(r, r)
        beta = _ratio(updated, squared)
        reached = active & (updated.sqrt() <= bound)
        if bool(reached.any()):
            r = torch.where(samples.spread(reached), b - gram(x), r)
            updated = samples.inner(r, r)
            beta = torch.where(reached, torch.zeros_like(beta), beta)
            fresh = updated.sqrt()
            active = active & ~(reached & ((fresh <= bound) | (fresh > 0.5 * verified)))
            verified = torch.where(reached, fresh, verified)
        p = r + samples.spread(beta) * p
        squared = updated
    remainder = squared.sqrt()
    if not bool((remainder <= bound).all()):
        remainder = torch.where(remainder <= bound, remainder, samples.norm(b - gram(x)))
    return Solution(x * scale, n_iterations, _ratio(remainder, length), remainder <= bound)


def _primal_dual_steps(
    K: OperatorLike,
    x0: torch.Tensor,
    smooth: bool,
    lipschitz: float | torch.Tensor | None,
    tau: float | torch.Tensor | None,
    sigma: float | torch.Tensor | None,
    samples: "_Samples",
) -> tuple[torch.Tensor, torch.Tensor]:
    if tau is not None and sigma is not None:
        return _positive(tau, "tau", x0, samples), _positive(sigma, "sigma", x0, samples)
    if smooth and lipschitz is None:
        raise ValueError("gradient was given without lipschitz; give its Lipschitz constant, or both tau and sigma.")
    # Only 1/τ − σ‖K‖² ≥ L/2 is asked, so for K = 0 any ‖K‖ > 0 will do.
    norm = _per_sample(K.norm(), "norm", x0, samples)
    norm = torch.where(norm > 0, norm, torch.ones_like(norm))
    half = 0.5 * _positive(lipschitz, "lipschitz", x0, samples) if lipschitz is not None else torch.zeros_like(norm)
    if tau is None:
        dual = 1 / norm if sigma is None else _positive(sigma, "sigma", x0, samples)
        return 1 / (half + dual * norm**2), dual
    primal = _positive(tau, "tau", x0, samples)
    dual = (1 / primal - half) / norm**2
    if not bool((dual > 0).all()):
        raise ValueError(f"tau is {tau}, which leaves no room for a dual step; choose tau < 2/lipschitz.")
    return primal, dual


def _iterate(
    advance: Callable[[_State], tuple[_State, torch.Tensor]],
    state: _State,
    samples: "_Samples",
    n_iterations: int,
    rtol: float,
    callback: Callback | None = None,
) -> Solution:
    """Advance the state, freezing each sample whose residual is at most rtol; the value is the first of the state."""
    residual = samples.scalar(state[0], math.inf)
    active = torch.ones_like(residual, dtype=torch.bool)
    n = 0
    while n < n_iterations and bool(active.any()):
        n += 1
        new_state, new_residual = advance(state)
        if not bool(active.all()):
            new_state = tuple(_where(active, new, old) for new, old in zip(new_state, state, strict=True))
            new_residual = torch.where(active, new_residual, residual)
        state, residual = new_state, new_residual
        active = active & ~(residual <= rtol)
        if callback is not None and callback(n, state[0]):
            break
    return Solution(state[0], n, residual, residual <= rtol)


def _row_action_start(A: OperatorLike, y: torch.Tensor, relaxation: float, x0: torch.Tensor | None) -> torch.Tensor:
    if not 0 < relaxation < 2:
        raise ValueError(f"relaxation is {relaxation}; expected a number between 0 and 2.")
    back_projected = A.adjoint(y)
    if back_projected.is_complex() or y.is_complex():
        raise TypeError(f"The data are {y.dtype}; sirt and os_sart need a real operator without negative entries.")
    return torch.zeros_like(back_projected) if x0 is None else _checked_start(x0, back_projected)


def _row_action(
    blocks: Sequence[tuple[OperatorLike, torch.Tensor]],
    x0: torch.Tensor,
    n_dims: int,
    relaxation: float,
    project: Map | None,
    n_iterations: int,
    rtol: float,
    callback: Callback | None,
) -> Solution:
    """Iterate the step of `sirt` with each block of rows, (operator, data), in turn."""
    _check_limits(rtol, n_iterations)
    samples = _samples(x0, x0.ndim - n_dims)
    constrain = None if project is None else _shape_preserving(project, "project")
    one = torch.ones_like(x0[(0,) * samples.batch_dims])
    weights = []
    for A, _ in blocks:
        rows = A(one)
        weights.append(
            (_inverse_sum(rows, "row"), relaxation * _inverse_sum(A.adjoint(torch.ones_like(rows)), "column"))
        )

    def advance(state: _State) -> tuple[_State, torch.Tensor]:
        x = state[0]
        for (A, y), (row_weights, column_weights) in zip(blocks, weights, strict=True):
            x = x + column_weights * A.adjoint(row_weights * (y - A(x)))
            x = x if constrain is None else constrain(x)
        with torch.no_grad():
            residual = _ratio(samples.norm(x - state[0]), samples.norm(x))
        return (x,), residual

    return _iterate(advance, (x0,), samples, n_iterations, rtol, callback)


def _inverse_sum(sums: torch.Tensor, what: str) -> torch.Tensor:
    if bool((sums < 0).any()):
        raise ValueError(f"A {what} of A sums to {float(sums.min()):g}; sirt and os_sart need entries of at least 0.")
    return torch.where(sums > 0, 1 / sums, torch.zeros_like(sums))


def _subsets(subsets: int | Sequence[Sequence[int]], n_views: int) -> list[list[int]]:
    if isinstance(subsets, int):
        if not 1 <= subsets <= n_views:
            raise ValueError(f"subsets is {subsets}; expected 1 to {n_views}, the number of views.")
        golden = (5**0.5 - 1) / 2
        order = sorted(range(subsets), key=lambda first: first * golden % 1)
        return [list(range(first, n_views, subsets)) for first in order]
    chosen = [list(views) for views in subsets]
    if sorted(view for views in chosen for view in views) != list(range(n_views)) or not all(chosen):
        raise ValueError(f"subsets are no partition of the {n_views} views; every view has to be in exactly one.")
    return chosen


def _where(per_sample: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.where(per_sample.reshape(*per_sample.shape, *(1,) * (a.ndim - per_sample.ndim)), a, b)


class _ImplicitGradient(torch.autograd.Function):
    """Passes a value on and gives its gradient, solved for, to the tensor that the value depends on."""

    @staticmethod
    def forward(ctx: Any, attachment: torch.Tensor, value: torch.Tensor, solve: Map) -> torch.Tensor:
        ctx.solve = solve
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "cg and fixed_point give first derivatives only, but the backward pass ran with create_graph=True; "
                "run it without, or write out the iterations."
            )
        return ctx.solve(gradients[0]), None, None


def _with_implicit_gradient(value: torch.Tensor, attachment: torch.Tensor, solve: Map) -> torch.Tensor:
    if not attachment.requires_grad:
        return value
    result: torch.Tensor = _ImplicitGradient.apply(attachment, value, solve)
    return result


@dataclass(frozen=True, slots=True)
class _Samples:
    """Reductions over a sample and broadcasting back to it, for tensors with ``batch_dims`` leading dimensions."""

    batch_dims: int
    n_dims: int

    def inner(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Real part of the inner product; without complex products, whose rounding depends on the position."""
        if a.is_complex():
            return inner(_real_view(a), _real_view(b), self.n_dims + 1)
        return inner(a, b, self.n_dims)

    def norm(self, v: torch.Tensor) -> torch.Tensor:
        return self.inner(v, v).sqrt()

    def largest(self, v: torch.Tensor) -> torch.Tensor:
        return v.abs().amax(dim=tuple(range(-self.n_dims, 0))) if self.n_dims else v.abs()

    def spread(self, scalar: torch.Tensor) -> torch.Tensor:
        return scalar.reshape(*scalar.shape, *(1,) * self.n_dims)

    def scalar(self, like: torch.Tensor, value: float) -> torch.Tensor:
        return torch.full(like.shape[: self.batch_dims], value, dtype=like.dtype.to_real(), device=like.device)


def _real_view(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(x.resolve_conj())


def _samples(x: torch.Tensor, batch_dims: int) -> _Samples:
    if not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"The solver got a {x.dtype} tensor; expected a real floating-point or complex one.")
    if not 0 <= batch_dims <= x.ndim:
        raise ValueError(f"batch_dims is {batch_dims}; expected 0 to {x.ndim} for a tensor of shape {tuple(x.shape)}.")
    return _Samples(batch_dims, x.ndim - batch_dims)


def _ratio(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a/b for b ≥ 0, finite where b is zero; 0/0 is 0."""
    return a / b.clamp_min(torch.finfo(b.dtype).tiny)


def _unit(x0: torch.Tensor, samples: _Samples) -> torch.Tensor:
    length = samples.norm(x0)
    if not bool((length > 0).all()):
        raise ValueError("x0 is zero or not finite in some sample; start from random values instead.")
    return x0 / samples.spread(length)


def _per_sample(value: float | torch.Tensor, name: str, like: torch.Tensor, samples: _Samples) -> torch.Tensor:
    tensor = torch.as_tensor(value, dtype=like.dtype.to_real(), device=like.device)
    batch = like.shape[: samples.batch_dims]
    try:
        return tensor.broadcast_to(batch)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, which does not broadcast to the batch shape {tuple(batch)}; "
            "give a number or one value per sample."
        ) from None


def _positive(value: float | torch.Tensor, name: str, like: torch.Tensor, samples: _Samples) -> torch.Tensor:
    tensor = _per_sample(value, name, like, samples)
    if not bool(((tensor > 0) & tensor.isfinite()).all()):
        raise ValueError(f"{name} is {value}; expected positive finite values.")
    return tensor


def _checked_start(x0: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if x0.shape != like.shape:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}; expected that of the solution, {tuple(like.shape)}.")
    if x0.dtype != like.dtype:
        raise TypeError(f"x0 is {x0.dtype}; expected {like.dtype}, the dtype of the solution.")
    return x0


def _check_limits(rtol: float, n_iterations: int) -> None:
    if not rtol >= 0:
        raise ValueError(f"rtol is {rtol}; expected a number that is not negative.")
    if n_iterations < 0:
        raise ValueError(f"The number of iterations is {n_iterations}; expected zero or more.")


def _shape_preserving(function: Map, name: str) -> Map:
    def checked(x: torch.Tensor) -> torch.Tensor:
        result = function(x)
        if result.shape != x.shape:
            raise ValueError(
                f"{name} returned shape {tuple(result.shape)} for input of shape {tuple(x.shape)}; both must be the "
                "same: expand the input to the batch of the operator."
            )
        return result

    return checked
