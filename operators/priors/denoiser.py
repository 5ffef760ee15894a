"""Denoising steps by convolutional networks, without a state: the image plus what a network adds to it."""

from typing import Any

import torch
from torch import nn

from operators.fields import from_channels, to_channels
from operators.priors.prior import Prior
from operators.priors.unet import UNet


class _NetworkDenoiser(Prior):
    """x + network(x); a subclass makes the network, from channels to channels."""

    network: nn.Module

    def forward(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Take one step, see `operators.priors.prior.Prior.forward`."""
        return x + from_channels(self.network(to_channels(x)), x), state


class ConvolutionalDenoiser(_NetworkDenoiser):
    """A plain stack of convolutions 3×3 with batch normalisation and rectifiers between them, which adds to the image.

    In training mode, statistics are those of all images of the batch; in evaluation mode images do not depend on one
    another.

    Parameters
    ----------
    n_channels
        2 for complex images, 1 for real ones.
    n_layers
        Number of convolutions, at least 2.
    width
        Number of channels between them.

    Raises
    ------
    ValueError
        If there are fewer than two layers, or a number is not positive.

    References
    ----------
    Aggarwal, Mani and Jacob, MoDL: model-based deep learning architecture for inverse problems, 2019, equation (5) and
    figure 1. Departure: the last convolution is not normalised.
    """

    def __init__(self, *, n_channels: int = 2, n_layers: int = 5, width: int = 64) -> None:
        super().__init__()
        if n_layers < 2 or n_channels < 1 or width < 1:
            raise ValueError(
                f"n_layers is {n_layers}, n_channels {n_channels} and width {width}; expected at least 2, 1 and 1."
            )
        layers: list[nn.Module] = []
        for n_in in (n_channels, *(width,) * (n_layers - 2)):
            layers += [nn.Conv2d(n_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.Conv2d(width, n_channels, 3, padding=1))


class UNetDenoiser(_NetworkDenoiser):
    """A U-Net that adds to the image.

    Parameters
    ----------
    n_channels
        2 for complex images, 1 for real ones.
    base, n_stages
        As in `operators.priors.unet.UNet`.
    """

    def __init__(self, *, n_channels: int = 2, base: int = 32, n_stages: int = 3) -> None:
        super().__init__()
        self.network = UNet(n_channels, n_channels, base=base, n_stages=n_stages)
