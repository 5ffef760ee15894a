"""Learned reconstruction from data to image, for whatever linear operator made the data."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from operators.fields import root_mean_square
from operators.linear_operator import LinearOperator


class Reconstructor(nn.Module, ABC):
    """A map from data, operator and noise level to an image, of learned parameters; the operator is an argument.

    It is homogeneous: data, noise level and image are divided by one scale per sample before a network sees them, the
    root mean square of Aᴴy, and the image is multiplied by it at the end; where Aᴴy is zero, so is the image. A
    subclass writes ``_reconstruct``.
    """

    @abstractmethod
    def _reconstruct(
        self, x0: torch.Tensor, y: torch.Tensor, A: LinearOperator, noise_std: torch.Tensor
    ) -> torch.Tensor:
        """The image from x0 = Aᴴy, y and the noise level ``(*batch)``, all of them scaled."""

    def forward(self, y: torch.Tensor, A: LinearOperator, noise_std: float | torch.Tensor) -> torch.Tensor:
        """Reconstruct images.

        Parameters
        ----------
        y
            Data, ``(*batch, *A.codomain.shape)``.
        A
            The forward operator; its norm is about 1.
        noise_std
            Standard deviation of the noise per real component, in the units of ``y``: a number, or real and
            broadcasting to ``batch``.

        Returns
        -------
        torch.Tensor
            Images ``(*batch, *A.domain.shape)``, in the units of ``y``.

        Raises
        ------
        TypeError
            If ``y`` is not of the field of ``A``, or has another precision than the weights.
        ValueError
            If ``y`` does not fit ``A``, or a noise level is negative or not finite or does not fit the batch.
        """
        scaled, spread = self._scaled(y, A, noise_std)
        x0 = scaled[0]
        silent = (x0 == 0).flatten(x0.ndim - A.domain.n_dims).all(dim=-1).reshape(spread.shape)
        if bool(silent.all()):
            return x0 + 0 * sum(p.sum() for p in self.parameters())  # so that a training step can be taken
        return torch.where(silent, x0, self._reconstruct(*scaled) * spread)

    def _check_precision(self, y: torch.Tensor) -> None:
        for name, p in self.named_parameters():
            if p.dtype.to_real() != y.dtype.to_real():
                raise TypeError(
                    f"The weight {name} is {p.dtype} and the data are {y.dtype}; convert the data, or the model by "
                    ".float() or .double()."
                )

    def _scaled(
        self, y: torch.Tensor, A: LinearOperator, noise_std: float | torch.Tensor
    ) -> tuple[tuple[torch.Tensor, torch.Tensor, LinearOperator, torch.Tensor], torch.Tensor]:
        """Arguments of ``_reconstruct``, and the scale that broadcasts with images."""
        self._check_precision(y)
        x0 = A.adjoint(y)
        n_dims = A.domain.n_dims
        scale = root_mean_square(x0, n_dims)
        noise = torch.as_tensor(noise_std, dtype=scale.dtype, device=scale.device)
        try:
            noise = noise.expand(scale.shape)
        except RuntimeError:
            raise ValueError(
                f"noise_std has shape {tuple(noise.shape)} and the batch is {tuple(scale.shape)}; give one number, or "
                "one for each sample."
            ) from None
        if not bool((noise.isfinite() & (noise >= 0)).all()):
            raise ValueError(f"noise_std is {noise_std}; expected finite numbers that are not negative.")
        spread = scale.reshape(*scale.shape, *(1,) * n_dims)
        data_scale = scale.reshape(*scale.shape, *(1,) * A.codomain.n_dims)
        return (x0 / spread, y / data_scale, A, noise / scale), spread


def norm_for_steps(A: LinearOperator) -> torch.Tensor:
    """‖A‖, from which step sizes are made; 1 where nothing was measured, for which any step will do.

    Parameters
    ----------
    A
        The forward operator.

    Returns
    -------
    torch.Tensor
        Real, positive, of the shape of ``A.batch_shape``.
    """
    norm = A.norm()
    return torch.where(norm > 0, norm, torch.ones_like(norm))
