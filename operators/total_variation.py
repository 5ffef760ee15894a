"""The proximal map of total variation, by a warm-started dual method."""

from collections.abc import Callable

import torch

from operators.elementary import FiniteDifference
from operators.proximal import project_dual_ball
from operators.space import Space


class TotalVariationProx:
    """argmin_z ½‖z − x‖² + step · λ Σ_r ‖(G z)_r‖₂ over a convex set, G forward differences; isotropic.

    The dual problem is solved by fast gradient projection. Each call starts from the dual variable of the one before,
    so that a few inner iterations suffice inside an iterative method whose argument changes little from call to call.

    Parameters
    ----------
    domain
        Space of the images, ``(y, x)`` or with more dimensions; differences are taken along all of them.
    strength
        λ, not negative: a number, or real ``(*batch, 1, …, 1)``.
    n_iterations
        Inner iterations per call.
    project
        Projection onto the convex set, such as `operators.proximal.project_nonnegative`; ``None`` for all images.

    Raises
    ------
    ValueError
        If there is no inner iteration.

    References
    ----------
    Beck and Teboulle, Fast gradient-based algorithms for constrained total variation image denoising and deblurring
    problems, IEEE Trans. Image Process. 18 (2009), algorithm FGP, with the differences' own norm for the step.
    """

    def __init__(
        self,
        domain: Space,
        strength: float | torch.Tensor,
        *,
        n_iterations: int = 5,
        project: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        if n_iterations < 1:
            raise ValueError(f"n_iterations is {n_iterations}; expected at least 1.")
        self._difference = FiniteDifference(domain)
        self._lipschitz = float(self._difference.norm()) ** 2
        self._strength = strength
        self._n_iterations = n_iterations
        self._project = project
        self._dual: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, step: float | torch.Tensor) -> torch.Tensor:
        """Apply the proximal map.

        Parameters
        ----------
        x
            Real or complex ``(*batch, *domain.shape)``.
        step
            Positive: a number, or real ``(*batch, 1, …, 1)``.

        Returns
        -------
        torch.Tensor
            Like ``x``.
        """
        radius = torch.as_tensor(step * self._strength, dtype=x.real.dtype, device=x.device)
        directions = self._difference.codomain
        if radius.ndim >= self._difference.domain.n_dims:
            wide = radius.unsqueeze(-directions.n_dims)  # over the axis of the directions
        else:
            wide = radius
        batch = self._difference.domain.batch_shape(x)
        if self._dual is None or self._dual.shape[: len(batch)] != batch:
            self._dual = x.new_zeros(*batch, *directions.shape)
        dual = ahead = self._dual
        momentum = 1.0
        for _ in range(self._n_iterations):
            ascent = ahead + self._difference(self._primal(x, ahead)) / self._lipschitz
            previous, dual = dual, project_dual_ball(ascent, wide, dim=-directions.n_dims)
            following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead = dual + (momentum - 1) / following * (dual - previous)
            momentum = following
        self._dual = dual.detach()
        return self._primal(x, dual)

    def _primal(self, x: torch.Tensor, dual: torch.Tensor) -> torch.Tensor:
        z = x - self._difference.adjoint(dual)
        return z if self._project is None else self._project(z)
