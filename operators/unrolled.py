"""Reconstruction by a fixed number of alternations between a prior and the data."""

from collections.abc import Sequence

import torch
from torch import nn

from operators.consistency import Consistency
from operators.linear_operator import LinearOperator
from operators.priors.prior import Prior
from operators.reconstructor import Reconstructor


class Unrolled(Reconstructor):
    """x ← consistency(prior(x), y, A), a fixed number of times from x₀ = Aᴴy.

    Parameters
    ----------
    priors
        One prior, shared by all iterations, or one for each.
    consistencies
        Likewise.
    n_iterations
        Number of alternations.

    Raises
    ------
    ValueError
        If there are several priors or consistencies, but not one for each iteration.
    """

    def __init__(
        self, priors: Prior | Sequence[Prior], consistencies: Consistency | Sequence[Consistency], n_iterations: int
    ) -> None:
        super().__init__()
        self.priors = nn.ModuleList([priors] if isinstance(priors, Prior) else priors)
        self.consistencies = nn.ModuleList([consistencies] if isinstance(consistencies, Consistency) else consistencies)
        self.n_iterations = n_iterations
        for name, modules in (("priors", self.priors), ("consistencies", self.consistencies)):
            if len(modules) not in (1, n_iterations):
                raise ValueError(f"There are {len(modules)} {name} for {n_iterations} iterations; give one, or each.")

    def _reconstruct(
        self, x0: torch.Tensor, y: torch.Tensor, A: LinearOperator, noise_std: torch.Tensor
    ) -> torch.Tensor:
        x, state = x0, None
        for i in range(self.n_iterations):
            prior = self.priors[i % len(self.priors)]
            consistency = self.consistencies[i % len(self.consistencies)]
            if i < len(self.priors):
                state = prior.init(x, noise_std)  # type: ignore[operator]  # a list of modules forgets their class
            x, state = prior(x, state)
            x = consistency(x, y, A)
        return x
