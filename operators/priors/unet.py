"""U-Nets on lists of channels, alone or for many filters at once that exchange what they see."""

import torch
from torch import nn

from operators.fields import pad_to_multiple


class UNet(nn.Module):
    """A U-Net: convolutions 3×3 with leaky rectifiers, max-pooling, bilinear up-sampling, skips by concatenation.

    It has no normalisation layers and treats images of any size.

    Parameters
    ----------
    n_in, n_out
        Numbers of channels.
    base
        Channels at full resolution; doubled at every stage below.
    n_stages
        Number of resolutions.
    exchange
        Whether the images are filters of one dictionary, ``(image · filter, channel, y, x)``, which after every stage
        on the way down add a learned map of their mean: permuting them permutes the result.

    Raises
    ------
    ValueError
        If a number is not positive.

    References
    ----------
    Ronneberger, Fischer and Brox, U-Net: convolutional networks for biomedical image segmentation, 2015; with two
    convolutions a stage on the way down and three on the way up, as in Schulz et al., 2026. The exchange is the
    equivariant layer of Zaheer et al., Deep sets, 2017, equation (4).

    Examples
    --------
    >>> UNet(2, 1, base=4)(torch.zeros(3, 2, 7, 9)).shape
    torch.Size([3, 1, 7, 9])
    """

    def __init__(self, n_in: int, n_out: int, *, base: int = 32, n_stages: int = 2, exchange: bool = False) -> None:
        super().__init__()
        if min(n_in, n_out, base, n_stages) < 1:
            raise ValueError(f"n_in is {n_in}, n_out {n_out}, base {base} and n_stages {n_stages}; expected 1 or more.")
        self.n_in = n_in
        widths = [base * 2**stage for stage in range(n_stages)]
        self.down = nn.ModuleList(_block(c_in, c, 2) for c_in, c in zip([n_in, *widths], widths, strict=False))
        self.up = nn.ModuleList(
            _block(deeper + c, c, 3) for c, deeper in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.context = nn.ModuleList(nn.Conv2d(c, c, 1) for c in widths) if exchange else None
        self.head = nn.Conv2d(base, n_out, 1)
        # Convolves few channels up to twice as fast on a CPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs do not know it

    def forward(self, channels: torch.Tensor, n_filters: int = 1) -> torch.Tensor:
        """Apply the network.

        Parameters
        ----------
        channels
            Real ``(image, n_in, y, x)``, or ``(image · filter, n_in, y, x)`` with the filters of one image together.
        n_filters
            How many filters exchange.

        Returns
        -------
        torch.Tensor
            Real, with ``n_out`` channels.

        Raises
        ------
        ValueError
            If there are more or fewer channels than ``n_in``.
        """
        if channels.shape[1] != self.n_in:
            raise ValueError(
                f"The network was built for {self.n_in} channels and got {channels.shape[1]}; a complex image has two, "
                "a real one has one."
            )
        n_y, n_x = channels.shape[-2:]
        x = pad_to_multiple(channels, 2 ** (len(self.down) - 1)).contiguous(memory_format=torch.channels_last)
        skips = []
        for stage, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if stage else x)
            if self.context is not None:
                together = x.unflatten(0, (-1, n_filters))
                x = (together + self.context[stage](together.mean(dim=1)).unsqueeze(1)).flatten(0, 1)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = block(torch.cat((x, skip), dim=1))
        result: torch.Tensor = self.head(x)[..., :n_y, :n_x]
        return result


def _block(n_in: int, n_out: int, n_convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(n_convolutions):
        layers += [nn.Conv2d(n_in if i == 0 else n_out, n_out, 3, padding=1), nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers)
