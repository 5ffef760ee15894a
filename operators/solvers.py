"""Iterative solvers on plain callables; every quantity (step, inner product, stopping) is per sample."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from operators.space import inner

Map = Callable[[torch.Tensor], torch.Tensor]


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
        Stop when the relative change of the eigenvalue is below this in every sample.
    max_iterations
        Upper bound of the number of steps, and of the vectors kept.

    Returns
    -------
    Solution
        ``value`` and ``residual`` (relative change in the last step) are real, of shape ``batch``.

    References
    ----------
    Golub and Van Loan, Matrix Computations, 4th ed., algorithm 10.1.1.
    """
    batch, n_dims = x0.shape[:batch_dims], x0.ndim - batch_dims
    size = x0[(0,) * batch_dims].numel()
    tiny = torch.finfo(x0.dtype).tiny

    def norm(v: torch.Tensor) -> torch.Tensor:
        return inner(v, v, n_dims).real.sqrt()

    def spread(scalar: torch.Tensor) -> torch.Tensor:
        return scalar.reshape(*batch, *(1,) * n_dims)

    q = x0 / spread(norm(x0))
    basis, diagonal = [q], []
    off_diagonal: list[torch.Tensor] = []
    n_steps = 0
    value = norm(x0) * 0
    residual = torch.full_like(value, float("inf"))
    for _ in range(min(size, max_iterations)):
        n_steps += 1
        w = gram(q)
        diagonal.append(inner(q, w, n_dims).real)
        for _ in range(2):
            for v in basis:
                w = w - spread(inner(v, w, n_dims)) * v
        previous, value = value, _largest_of_tridiagonal(diagonal, off_diagonal)
        residual = (value - previous).abs() / value.abs().clamp_min(tiny)
        beta = norm(w)
        exhausted = beta <= torch.finfo(x0.dtype).eps * size * value.abs()
        if bool(((residual < rtol) | exhausted).all()):
            break
        beta = torch.where(exhausted, torch.zeros_like(beta), beta)
        q = torch.where(spread(exhausted), torch.zeros_like(w), w / spread(beta).clamp_min(tiny))
        basis.append(q)
        off_diagonal.append(beta)
    return Solution(value, n_steps, residual, (residual < rtol) | exhausted)


def _largest_of_tridiagonal(diagonal: list[torch.Tensor], off_diagonal: list[torch.Tensor]) -> torch.Tensor:
    matrix = torch.diag_embed(torch.stack(diagonal, dim=-1))
    if off_diagonal:
        beside = torch.stack(off_diagonal, dim=-1)
        matrix = matrix + torch.diag_embed(beside, offset=1) + torch.diag_embed(beside, offset=-1)
    return torch.linalg.eigvalsh(matrix)[..., -1]
