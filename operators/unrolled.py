"""Reconstruction by a fixed number of alternations between a prior and the data."""

import math
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from operators.consistency import Consistency
from operators.linear_operator import LinearOperator
from operators.priors.prior import Prior
from operators.reconstructor import StagedRefinement, undersampling_of

GradientOf = Literal["iterations", "checkpointed"]


class Unrolled(StagedRefinement):
    """x ← consistency(prior(x), y, A), a fixed number of times.

    With noise levels of its own, the prior is told √(s_i² ρ^2p + σ²) in iteration i. The errors of the image there have
    two sources that know nothing of each other, so their variances add: σ is the noise of the data, and s_i ρ^p is what
    undersampling and the iterations before have left, relative to the root mean square of x₀, with ρ pixels for each
    sample. s_i is learned, and so is p unless it is zero. Where the data determine little, s_i ρ^p is nearly all; where
    they are noisy, σ stays what it is measured to be.

    Parameters
    ----------
    priors
        One prior, shared by all iterations, or one for each.
    consistencies
        Likewise.
    n_iterations
        Number of alternations.
    noise_levels
        s_i at the start, positive, one for each iteration. The prior then makes its state anew in each. Without them,
        it makes its state once, from σ.
    undersampling_power
        p at the start. A positive one is for one reconstruction of scans with different numbers of views.
    data_first
        Take the data step first in each alternation, so that the prior has the last word.
    gradient
        What the backward pass keeps; the image and its gradient are the same. ``"iterations"`` keeps all;
        ``"checkpointed"`` keeps the images between the alternations and repeats one of these at a time (a prior that
        gathers statistics in training, such as batch normalisation, then gathers them twice).

    Raises
    ------
    ValueError
        If there are several priors, consistencies or noise levels, but not one for each iteration, a noise level is not
        positive, or the gradient is unknown.
    """

    log_noise_levels: nn.Parameter | None
    undersampling_power: nn.Parameter | None

    def __init__(
        self,
        priors: Prior | Sequence[Prior],
        consistencies: Consistency | Sequence[Consistency],
        n_iterations: int,
        *,
        noise_levels: Sequence[float] | None = None,
        undersampling_power: float = 0.0,
        data_first: bool = False,
        gradient: GradientOf = "iterations",
    ) -> None:
        super().__init__()
        self.priors = nn.ModuleList([priors] if isinstance(priors, Prior) else priors)
        self.consistencies = nn.ModuleList([consistencies] if isinstance(consistencies, Consistency) else consistencies)
        self.n_iterations = self.n_stages = n_iterations
        self.data_first = data_first
        for name, modules in (("priors", self.priors), ("consistencies", self.consistencies)):
            if len(modules) not in (1, n_iterations):
                raise ValueError(f"There are {len(modules)} {name} for {n_iterations} iterations; give one, or each.")
        if gradient not in get_args(GradientOf):
            raise ValueError(f"gradient is {gradient!r}; expected one of {', '.join(map(repr, get_args(GradientOf)))}.")
        self.gradient: GradientOf = gradient
        levels = None if noise_levels is None else nn.Parameter(_logarithms(noise_levels, n_iterations))
        self.register_parameter("log_noise_levels", levels)
        power = nn.Parameter(torch.tensor(undersampling_power)) if undersampling_power else None
        self.register_parameter("undersampling_power", power)

    def iterates(
        self, y: torch.Tensor, A: LinearOperator, noise_std: float | torch.Tensor, x0: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Reconstruct, and keep the image after every alternation, for losses that look at all of them.

        Parameters
        ----------
        y, A, noise_std, x0
            As in a call.

        Returns
        -------
        torch.Tensor
            ``(iteration, *batch, *A.domain.shape)``; the last is what a call returns.

        Raises
        ------
        TypeError, ValueError
            As in a call.
        """
        return self._in_units(
            lambda *scaled: torch.stack(self._images(*scaled)[1:]),
            y,
            A,
            noise_std,
            self._checked_start(x0, y, A),
            stacked=(self.n_iterations,),
        )

    def prior_step(self, i: int, x: torch.Tensor, noise_std: torch.Tensor, undersampling: torch.Tensor) -> torch.Tensor:
        """Apply the prior of an iteration, with a fresh state; see `StagedRefinement.prior_step`."""
        prior = self._prior(i)
        state = prior.init(x, self._level(i, noise_std, undersampling))
        result: torch.Tensor = prior(x, state)[0]
        return result

    def _data_step(self, i: int, x: torch.Tensor, y: torch.Tensor, A: LinearOperator) -> torch.Tensor:
        if self.data_first:
            return self._consistency(i)(x, y, A)
        return self._consistency(i - 1)(x, y, A) if i else x

    def _prior(self, i: int) -> Prior:
        return cast(Prior, self.priors[i % len(self.priors)])

    def _consistency(self, i: int) -> Consistency:
        return cast(Consistency, self.consistencies[i % len(self.consistencies)])

    def _level(self, i: int, noise_std: torch.Tensor, undersampling: torch.Tensor) -> torch.Tensor:
        """What the prior of an iteration is told."""
        if self.log_noise_levels is None:
            return noise_std
        level = self.log_noise_levels[i].exp()
        if self.undersampling_power is not None:
            level = level * undersampling**self.undersampling_power
        return torch.hypot(noise_std, level)

    def _reconstruct(
        self, x0: torch.Tensor, y: torch.Tensor, A: LinearOperator, noise_std: torch.Tensor
    ) -> torch.Tensor:
        return self._images(x0, y, A, noise_std)[-1]

    def _images(
        self, x0: torch.Tensor, y: torch.Tensor, A: LinearOperator, noise_std: torch.Tensor
    ) -> list[torch.Tensor]:
        """x₀ and the image after each alternation."""
        images, state = [x0], None
        for i in range(self.n_iterations):
            x, state = self._alternation(i, images[-1], state, y, A, noise_std)
            images.append(x)
        return images

    def _alternation(
        self, i: int, x: torch.Tensor, state: Any, y: torch.Tensor, A: LinearOperator, noise_std: torch.Tensor
    ) -> tuple[torch.Tensor, Any]:
        if self.gradient == "checkpointed" and torch.is_grad_enabled():
            result = checkpoint(self._alternate, i, x, state, y, A, noise_std, use_reentrant=False)
            return cast(tuple[torch.Tensor, Any], result)
        return self._alternate(i, x, state, y, A, noise_std)

    def _alternate(
        self, i: int, x: torch.Tensor, state: Any, y: torch.Tensor, A: LinearOperator, noise_std: torch.Tensor
    ) -> tuple[torch.Tensor, Any]:
        prior, consistency = self._prior(i), self._consistency(i)
        if self.data_first:
            x = consistency(x, y, A)
        if self.log_noise_levels is not None or i < len(self.priors):
            ratio = torch.full_like(noise_std, undersampling_of(A))
            state = prior.init(x, self._level(i, noise_std, ratio))
        x, state = prior(x, state)
        return (x if self.data_first else consistency(x, y, A)), state


def _logarithms(noise_levels: Sequence[float], n_iterations: int) -> torch.Tensor:
    if len(noise_levels) != n_iterations:
        raise ValueError(
            f"There are {len(noise_levels)} noise levels for {n_iterations} iterations; give one for each."
        )
    if not all(math.isfinite(level) and level > 0 for level in noise_levels):
        raise ValueError(f"noise_levels are {[*noise_levels]}; expected positive, finite numbers.")
    return torch.tensor([math.log(level) for level in noise_levels])
