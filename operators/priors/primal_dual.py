"""Learned primal-dual reconstruction: networks in the image and in the data take turns, joined by the operator."""

from typing import get_args

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from operators.fields import from_channels, to_channels
from operators.linear_operator import LinearOperator
from operators.reconstructor import Refinement, norm_for_steps
from operators.unrolled import GradientOf


class LearnedPrimalDual(Refinement):
    """Primal-dual iterations whose proximal maps are networks that see several past variables, for any operator.

    With K = A/‖A‖ and g = y/‖A‖, from dual variables h = 0 and primal variables f, all equal to x₀::

        h ← h + Γ(h, K f₂, g)
        f ← f + Λ(f, Kᴴ h₁)

    The image is f₁. Γ convolves the data along their last two axes, such as view and detector; what is before them,
    such as coils, is treated alike.

    Parameters
    ----------
    n_channels
        2 for complex images and data, 1 for real ones.
    n_iterations
        Number of iterations, each with networks of its own.
    n_variables
        Number of primal variables, and of dual ones: at least 2.
    width
        Channels of the networks.
    gradient
        As in `operators.unrolled.Unrolled`.

    Raises
    ------
    ValueError
        If a number is too small, or the gradient is unknown.

    References
    ----------
    Adler and Öktem, Learned primal-dual reconstruction, 2018, algorithm 3 and section 3.3; the defaults are theirs.
    Departures: operator and data are divided by ‖A‖, and primal variables start from x₀ instead of zero.
    """

    def __init__(
        self,
        *,
        n_channels: int = 2,
        n_iterations: int = 10,
        n_variables: int = 5,
        width: int = 32,
        gradient: GradientOf = "iterations",
    ) -> None:
        super().__init__()
        if n_variables < 2 or min(n_channels, n_iterations, width) < 1:
            raise ValueError(
                f"n_variables is {n_variables}, n_channels {n_channels}, n_iterations {n_iterations}, width {width}; "
                "expected at least 2, 1, 1 and 1."
            )
        if gradient not in get_args(GradientOf):
            raise ValueError(f"gradient is {gradient!r}; expected one of {', '.join(map(repr, get_args(GradientOf)))}.")
        self.n_variables = n_variables
        self.gradient: GradientOf = gradient
        inner, outer = n_variables * n_channels, n_channels
        self.dual = nn.ModuleList(_network(inner + 2 * outer, inner, width) for _ in range(n_iterations))
        self.primal = nn.ModuleList(_network(inner + outer, inner, width) for _ in range(n_iterations))

    def _reconstruct(
        self, x0: torch.Tensor, y: torch.Tensor, A: LinearOperator, noise_std: torch.Tensor
    ) -> torch.Tensor:
        scale = 1 / norm_for_steps(A).to(x0.real)
        to_data, to_image = (scale.reshape(*scale.shape, *(1,) * space.n_dims) for space in (A.codomain, A.domain))
        g = y * to_data
        f, h = [x0] * self.n_variables, [torch.zeros_like(g)] * self.n_variables

        def iterate(
            dual: nn.Module, primal: nn.Module, f: list[torch.Tensor], h: list[torch.Tensor]
        ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
            h = _added(h, dual, [to_data * A(f[1]), g])
            return _added(f, primal, [to_image * A.adjoint(h[0])]), h

        for networks in zip(self.dual, self.primal, strict=True):
            if self.gradient == "checkpointed" and torch.is_grad_enabled():
                f, h = checkpoint(iterate, *networks, f, h, use_reentrant=False)
            else:
                f, h = iterate(*networks, f, h)
        return f[0]


def _network(n_in: int, n_out: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, width, 3, padding=1),
        nn.PReLU(width),
        nn.Conv2d(width, width, 3, padding=1),
        nn.PReLU(width),
        nn.Conv2d(width, n_out, 3, padding=1),
    )


def _added(variables: list[torch.Tensor], network: nn.Module, seen: list[torch.Tensor]) -> list[torch.Tensor]:
    """Variables plus what a network makes of them and of what else it sees."""
    channels = torch.cat([to_channels(v) for v in (*variables, *seen)], dim=1)
    changes = network(channels).chunk(len(variables), dim=1)
    return [v + from_channels(change, v) for v, change in zip(variables, changes, strict=True)]
