"""Reconstruction by total variation, and learned reconstructions that start from it."""

from collections.abc import Callable

import torch

from operators.filtered_start import initial_image
from operators.linear_operator import LinearOperator
from operators.proximal import project_nonnegative
from operators.reconstructor import StagedRefinement, StageInputs, norm_for_steps
from operators.solvers import fista
from operators.total_variation import TotalVariationProx


def total_variation_image(
    y: torch.Tensor,
    A: LinearOperator,
    noise_std: float | torch.Tensor,
    *,
    regularisation: float = 1.0,
    n_iterations: int = 100,
    x0: torch.Tensor | None = None,
    project: Callable[[torch.Tensor], torch.Tensor] | None = project_nonnegative,
) -> torch.Tensor:
    """Argmin ½‖A x − y‖² + λ Σ_r ‖(G x)_r‖₂, λ = regularisation · σ · column norm of A, by FISTA.

    The root mean square of the columns of A is what a unit of noise in the data becomes in Aᵀ(A x − y), so that neither
    the number of views nor the units of length change what a strength means. For projections AᵀA is so ill-conditioned
    that a primal-dual method needs several times as many of them as FISTA with an inner proximal map.

    Parameters
    ----------
    y
        Data, ``(*batch, *A.codomain.shape)``.
    A
        Forward operator.
    noise_std
        σ in the units of ``y``: a number, or real and broadcasting to ``batch``.
    regularisation
        Strength relative to the noise.
    n_iterations
        Number of iterations.
    x0
        Start; by default `operators.filtered_start.initial_image`.
    project
        Projection onto the set of allowed images; non-negative ones by default, for which images are real.

    Returns
    -------
    torch.Tensor
        Images, ``(*batch, *A.domain.shape)``.
    """
    x0 = initial_image(y, A) if x0 is None else x0
    noise = torch.as_tensor(noise_std, dtype=x0.dtype.to_real(), device=y.device)
    strength = regularisation * noise.reshape(*noise.shape, *(1,) * A.domain.n_dims) * column_norm(A, x0)
    return fista(
        A,
        y,
        TotalVariationProx(A.domain, strength, project=project),
        step=step_of(A),
        x0=x0,
        n_iterations=n_iterations,
        rtol=1e-4,
        restart=True,
    ).value


def step_of(A: LinearOperator) -> torch.Tensor:
    """Step of a gradient method: just below 1/‖A‖², whose estimate comes from below.

    Parameters
    ----------
    A
        Forward operator.

    Returns
    -------
    torch.Tensor
        Real, ``A.batch_shape``.
    """
    return 1 / (1.02 * norm_for_steps(A).square())


def column_norm(A: LinearOperator, like: torch.Tensor) -> torch.Tensor:
    """Root mean square of the norms of A's columns, by random signs (Hutchinson's estimator).

    Parameters
    ----------
    A
        Forward operator.
    like
        Images with the dtype and device that it is used with.

    Returns
    -------
    torch.Tensor
        Real, ``A.batch_shape`` with a dimension of size 1 for each of the domain.
    """
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (8, *(1 for _ in A.batch_shape), *A.domain.shape), generator=generator)
    probes = (2 * signs - 1).to(like)
    power = A(probes).abs().square().sum(dim=A.codomain.dims).mean(dim=0) / A.domain.size
    return power.sqrt().reshape(*power.shape, *(1 for _ in A.domain.shape))


class AfterTotalVariation(StagedRefinement):
    """A refinement that starts from `total_variation_image`, whose iterations begin at x₀.

    Parameters
    ----------
    refinement
        What is made of it.
    regularisation
        Strength of the total variation relative to the noise.
    """

    def __init__(self, refinement: StagedRefinement, *, regularisation: float = 1.0) -> None:
        super().__init__()
        self.refinement = refinement
        self.regularisation = regularisation
        self.n_stages = refinement.n_stages

    def forward(
        self, y: torch.Tensor, A: LinearOperator, noise_std: float | torch.Tensor, x0: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Reconstruct images, see `operators.reconstructor.Refinement.forward`."""
        image: torch.Tensor = self.refinement(y, A, noise_std, self._smoothed(y, A, noise_std, x0))
        return image

    def stage_inputs(
        self,
        y: torch.Tensor,
        A: LinearOperator,
        noise_std: float | torch.Tensor,
        x0: torch.Tensor | None = None,
        *,
        n_stages: int | None = None,
    ) -> StageInputs:
        """Reconstruct, and keep what the priors see; see `operators.reconstructor.StagedRefinement.stage_inputs`."""
        start = self._smoothed(y, A, noise_std, x0)
        return self.refinement.stage_inputs(y, A, noise_std, start, n_stages=n_stages)

    def prior_step(self, i: int, x: torch.Tensor, noise_std: torch.Tensor, undersampling: torch.Tensor) -> torch.Tensor:
        """Apply a prior, see `operators.reconstructor.StagedRefinement.prior_step`."""
        return self.refinement.prior_step(i, x, noise_std, undersampling)

    def _data_step(self, i: int, x: torch.Tensor, y: torch.Tensor, A: LinearOperator) -> torch.Tensor:
        return self.refinement._data_step(i, x, y, A)

    def _reconstruct(
        self, x0: torch.Tensor, y: torch.Tensor, A: LinearOperator, noise_std: torch.Tensor
    ) -> torch.Tensor:
        return self.refinement._reconstruct(x0, y, A, noise_std)

    def _smoothed(
        self, y: torch.Tensor, A: LinearOperator, noise_std: float | torch.Tensor, x0: torch.Tensor | None
    ) -> torch.Tensor:
        project = None if y.is_complex() else project_nonnegative
        return total_variation_image(
            y, A, noise_std, regularisation=self.regularisation, x0=self._checked_start(x0, y, A), project=project
        )
