"""Networks in image space, alone and unrolled with the data: DeepGSR, and learned reconstructions to compare with."""

from collections.abc import Sequence

import torch
from torch import nn

from operators.consistency import FilteredStep, GradientStep, ProximalStep
from operators.linear_operator import LinearOperator
from operators.priors.deepgsr import GroupSparsePrior, Shrinkage
from operators.priors.denoiser import ConvolutionalDenoiser, UNetDenoiser
from operators.priors.prior import Prior
from operators.reconstructor import Refinement, StagedRefinement
from operators.unrolled import GradientOf, Unrolled


class ImageUNet(StagedRefinement):
    """The image it starts from plus what a U-Net adds to it; the data are not seen again.

    Parameters
    ----------
    n_channels
        2 for complex images, 1 for real ones.
    base, n_stages
        As in `operators.priors.unet.UNet`.

    References
    ----------
    Jin, McCann, Froustey and Unser, Deep convolutional neural network for inverse problems in imaging, 2017: a U-Net
    after filtered back-projection, known as FBPConvNet.
    """

    def __init__(self, *, n_channels: int = 2, base: int = 32, n_stages: int = 4) -> None:
        super().__init__()
        self.denoiser = UNetDenoiser(n_channels=n_channels, base=base, n_stages=n_stages)
        self.n_stages = 1

    def prior_step(self, i: int, x: torch.Tensor, noise_std: torch.Tensor, undersampling: torch.Tensor) -> torch.Tensor:
        """Apply the network, see `StagedRefinement.prior_step`."""
        image: torch.Tensor = self.denoiser(x, noise_std)[0]
        return image

    def _data_step(self, i: int, x: torch.Tensor, y: torch.Tensor, A: LinearOperator) -> torch.Tensor:
        return x

    def _reconstruct(
        self, x0: torch.Tensor, y: torch.Tensor, A: LinearOperator, noise_std: torch.Tensor
    ) -> torch.Tensor:
        image: torch.Tensor = self.denoiser(x0, noise_std)[0]
        return image


class VariationalNetwork(Refinement):
    """x ← x − τ Aᴴ(A x − y) + (prior(x) − x), with a prior and a learned step τ for each cascade.

    Unlike in an `operators.unrolled.Unrolled` loop, prior and data step see the same image, so that noise that the last
    data step brings in can still be taken out.

    Parameters
    ----------
    priors
        One for each cascade.
    step
        τ at the start, positive.

    Raises
    ------
    ValueError
        If there is no prior, or the step is not positive.

    References
    ----------
    Sriram et al., End-to-end variational networks for accelerated MRI reconstruction, 2020; its refinements, there
    written in k-space. Departure: coil sensitivities belong to A and are not learned.
    """

    def __init__(self, priors: Sequence[Prior], *, step: float = 1.0) -> None:
        super().__init__()
        if not priors:
            raise ValueError("There is no prior; expected one for each cascade.")
        self.priors = nn.ModuleList(priors)
        self.steps = nn.ModuleList(GradientStep(step) for _ in priors)

    def _reconstruct(
        self, x0: torch.Tensor, y: torch.Tensor, A: LinearOperator, noise_std: torch.Tensor
    ) -> torch.Tensor:
        x = x0
        for prior, step in zip(self.priors, self.steps, strict=True):
            state = prior.init(x, noise_std)  # type: ignore[operator]  # a list of modules forgets their class
            x = step(x, y, A) + prior(x, state)[0] - x
        return x


def varnet(*, n_channels: int = 2, n_cascades: int = 12, base: int = 16, n_stages: int = 3) -> VariationalNetwork:
    """A `VariationalNetwork` of U-Nets, one for each cascade.

    Parameters
    ----------
    n_channels
        2 for complex images, 1 for real ones.
    n_cascades
        Number of cascades; 12 as published.
    base, n_stages
        Of each network, as in `operators.priors.unet.UNet`.

    Returns
    -------
    VariationalNetwork
        Untrained.
    """
    return VariationalNetwork(
        [UNetDenoiser(n_channels=n_channels, base=base, n_stages=n_stages) for _ in range(n_cascades)]
    )


def modl(
    *, n_channels: int = 2, n_iterations: int = 10, n_layers: int = 5, width: int = 64, weight: float = 0.05
) -> Unrolled:
    """Alternate one convolutional denoiser, the same in all iterations, with the proximal step of the data.

    For one Cartesian coil AᴴA is a projection, and the conjugate gradients of the proximal step are exact after two.

    Parameters
    ----------
    n_channels
        2 for complex images, 1 for real ones.
    n_iterations
        Number of alternations.
    n_layers, width
        As in `operators.priors.denoiser.ConvolutionalDenoiser`.
    weight
        λ of `operators.consistency.ProximalStep` at the start.

    Returns
    -------
    Unrolled
        Untrained.

    References
    ----------
    Aggarwal, Mani and Jacob, MoDL: model-based deep learning architecture for inverse problems, 2019; the defaults are
    theirs.
    """
    denoiser = ConvolutionalDenoiser(n_channels=n_channels, n_layers=n_layers, width=width)
    return Unrolled(denoiser, ProximalStep(weight), n_iterations)


def deepgsr(
    *,
    n_channels: int = 2,
    n_iterations: int = 5,
    shrinkage: Shrinkage = "lowrank",
    n_blocks: int = 6,
    width: int = 32,
    n_token_channels: int = 96,
    n_hidden: int = 128,
    first_level: float = 0.1,
    last_level: float = 0.02,
    undersampling_power: float = 0.0,
    gradient: GradientOf = "iterations",
) -> Unrolled:
    """Alternate a step towards the data, filtered where A is a projection, with one group-sparse prior.

    Parameters
    ----------
    n_channels
        2 for complex images, 1 for real ones.
    n_iterations
        Number of alternations. The step of each is learned, and so is what the prior takes for noise in it.
    shrinkage, n_blocks, width, n_token_channels, n_hidden
        As in `operators.priors.deepgsr.GroupSparsePrior`.
    first_level, last_level
        Noise levels of the first and the last iteration at the start, in geometric progression between; see
        `operators.unrolled.Unrolled`.
    undersampling_power, gradient
        As in `operators.unrolled.Unrolled`.

    Returns
    -------
    Unrolled
        Untrained.

    References
    ----------
    Jiang, Ji and Shi, DeepGSR: deep group-based sparse representation network for solving image inverse problems, 2026.
    """
    prior = GroupSparsePrior(
        n_channels=n_channels,
        shrinkage=shrinkage,
        n_blocks=n_blocks,
        width=width,
        n_token_channels=n_token_channels,
        n_hidden=n_hidden,
    )
    ratio = (last_level / first_level) ** (1 / max(n_iterations - 1, 1))
    return Unrolled(
        prior,
        [FilteredStep() for _ in range(n_iterations)],
        n_iterations,
        noise_levels=[first_level * ratio**i for i in range(n_iterations)],
        undersampling_power=undersampling_power,
        data_first=True,
        gradient=gradient,
    )
