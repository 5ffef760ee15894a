"""Total variation whose strength is a map that a network infers from the image."""

import torch
from torch import nn

from operators.elementary import FiniteDifference
from operators.fields import to_channels
from operators.linear_operator import LinearOperator
from operators.priors.unet import UNet
from operators.proximal import project_dual_ball
from operators.reconstructor import Reconstructor, norm_for_steps
from operators.solvers import pdhg


class TotalVariationMaps(Reconstructor):
    """argmin_x ½‖A x − y‖² + Σ_r Λ_r ‖(G x)_r‖₂, G the forward differences along y and x, Λ inferred from Aᴴy.

    A fixed number of primal-dual steps, through which the network that infers Λ is trained. Slices of a volume have
    maps and differences of their own.

    Parameters
    ----------
    n_channels
        2 for complex images, 1 for real ones.
    base, n_stages
        Of the network, as in `operators.priors.unet.UNet`.
    n_iterations
        Number of primal-dual steps.

    Raises
    ------
    ValueError
        If a number is not positive.

    References
    ----------
    Kofler, Altekrüger, Antarou Ba, Kolbitsch, Papoutsellis, Schote, Sirotenko, Zimmermann and Papafitsoros, Learning
    regularization parameter-maps for variational image reconstruction using deep neural networks and algorithm
    unrolling, 2023. Departures: the norm of the two differences is isotropic, and the data term enters the steps by its
    gradient (Condat and Vũ) instead of a dual variable.
    """

    def __init__(self, *, n_channels: int = 2, base: int = 16, n_stages: int = 3, n_iterations: int = 128) -> None:
        super().__init__()
        if n_iterations < 1:
            raise ValueError(f"n_iterations is {n_iterations}; expected 1 or more.")
        self.network = UNet(n_channels, 1, base=base, n_stages=n_stages)
        self.n_iterations = n_iterations

    def maps(self, x0: torch.Tensor) -> torch.Tensor:
        """Infer Λ.

        Parameters
        ----------
        x0
            Image at a scale of about one, ``(*batch, y, x)``.

        Returns
        -------
        torch.Tensor
            Real and positive, like the image.
        """
        strengths: torch.Tensor = _STRENGTH * nn.functional.softplus(self.network(to_channels(x0)))
        return strengths.reshape(x0.shape)

    def _reconstruct(
        self, x0: torch.Tensor, y: torch.Tensor, A: LinearOperator, noise_std: torch.Tensor
    ) -> torch.Tensor:
        difference = FiniteDifference(A.domain, 2)
        direction = -difference.codomain.n_dims
        radius = self.maps(x0).unsqueeze(direction)  # (*batch, 1, [z,] y, x)
        return pdhg(
            difference,
            lambda p, _: project_dual_ball(p, radius, dim=direction),
            lambda x, _: x,
            x0=x0,
            gradient=lambda x: A.gram(x) - x0,
            lipschitz=norm_for_steps(A).square(),
            n_iterations=self.n_iterations,
        ).value


_STRENGTH = 0.5  # with softplus(0) = 0.7, about what suits images of root mean square 1 at low field
