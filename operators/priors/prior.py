"""What every prior is: one step from an image to a more likely one."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn


class Prior(nn.Module, ABC):
    """One proximal or denoising step, for images of any size, real or complex.

    A prior keeps what it needs between its steps, such as codes or hidden channels, in a state that it makes itself.
    Images arrive at a scale of about one (`operators.reconstructor.Reconstructor` sees to that).
    """

    def init(self, x: torch.Tensor, noise_std: torch.Tensor) -> Any:
        """Make the state before the first step.

        Parameters
        ----------
        x
            First image, ``(*batch, y, x)``.
        noise_std
            Noise level per real component of the data behind it, real ``batch``.

        Returns
        -------
        Any
            State; by default the noise level.
        """
        return noise_std

    @abstractmethod
    def forward(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Take one step.

        Parameters
        ----------
        x
            Image, real or complex ``(*batch, y, x)``.
        state
            From `init`, or from the step before.

        Returns
        -------
        image, state
            The image after the step, like ``x``, and the state for the next.
        """
