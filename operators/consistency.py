"""Steps that bring an image closer to the data; `operators.unrolled.Unrolled` alternates them with a prior."""

import math
from abc import ABC, abstractmethod

import torch
from torch import nn

from operators.filtered_start import filtered_adjoint
from operators.linear_operator import LinearOperator
from operators.solvers import cg


class Consistency(nn.Module, ABC):
    """One step towards the data; the operator is an argument, never a part of it."""

    @abstractmethod
    def forward(self, x: torch.Tensor, y: torch.Tensor, A: LinearOperator) -> torch.Tensor:
        """Take one step.

        Parameters
        ----------
        x
            Image, ``(*batch, *A.domain.shape)``.
        y
            Data, ``(*batch, *A.codomain.shape)``.
        A
            The forward operator.

        Returns
        -------
        torch.Tensor
            Image like ``x``.
        """


class GradientStep(Consistency):
    """A step of learned size down the gradient of ½‖A x − y‖²: x − τ Aᴴ(A x − y).

    Parameters
    ----------
    step
        τ at the start, positive; stable below 2/‖A‖².

    Raises
    ------
    ValueError
        If the step is not positive.
    """

    def __init__(self, step: float = 1.0) -> None:
        super().__init__()
        self.log_step = nn.Parameter(torch.tensor(_log(step, "step")))

    def forward(self, x: torch.Tensor, y: torch.Tensor, A: LinearOperator) -> torch.Tensor:
        """Take one step, see `Consistency.forward`."""
        return x - self.log_step.exp() * (A.gram(x) - A.adjoint(y))


class FilteredStep(Consistency):
    """A step of learned size along the filtered residual: x − η F(A x − y), F `filtered_adjoint`.

    For projections a few of these steps come as close to the data as tens down the gradient, and η = 1 suits any number
    of views and any units of A; for other operators it is the gradient step.

    Parameters
    ----------
    step
        η at the start, positive.

    Raises
    ------
    ValueError
        If the step is not positive.
    """

    def __init__(self, step: float = 1.0) -> None:
        super().__init__()
        self.log_step = nn.Parameter(torch.tensor(_log(step, "step")))

    def forward(self, x: torch.Tensor, y: torch.Tensor, A: LinearOperator) -> torch.Tensor:
        """Take one step, see `Consistency.forward`."""
        return x - self.log_step.exp() * filtered_adjoint(A(x) - y, A)


class ProximalStep(Consistency):
    """The image that fits the data but stays near: argmin_z ½‖A z − y‖² + λ/2 ‖z − x‖², by conjugate gradients.

    Parameters
    ----------
    weight
        λ at the start, positive; learned.
    n_iterations
        Largest number of conjugate-gradient steps. Gradients are those of the solution, not of the steps.

    Raises
    ------
    ValueError
        If the weight is not positive.
    """

    def __init__(self, weight: float = 0.05, *, n_iterations: int = 10) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.tensor(_log(weight, "weight")))
        self.n_iterations = n_iterations

    def forward(self, x: torch.Tensor, y: torch.Tensor, A: LinearOperator) -> torch.Tensor:
        """Take one step, see `Consistency.forward`."""
        weight = self.log_weight.exp()
        batch_dims = x.ndim - A.domain.n_dims
        rhs = A.adjoint(y) + weight * x
        return cg(
            lambda z: A.gram(z) + weight * z,
            rhs,
            x0=x.detach(),
            rtol=1e-5,
            max_iterations=self.n_iterations,
            batch_dims=batch_dims,
        ).value


def _log(value: float, name: str) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} is {value}; expected a positive, finite number.")
    return math.log(value)
