"""Learned reconstruction from data to image, for whatever linear operator made the data."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from operators.fields import root_mean_square
from operators.filtered_start import initial_image
from operators.linear_operator import LinearOperator, broadcast_batch


class Reconstructor(nn.Module, ABC):
    """A map from data, operator and noise level to an image, of learned parameters; the operator is an argument.

    It is homogeneous: data, noise level and image are divided by one scale per sample before a network sees them, the
    root mean square of x₀ = Aᴴy, and the image is multiplied by it at the end; where x₀ is zero, so is the image. A
    subclass writes ``_reconstruct``, and ``_start`` if it has another x₀.
    """

    @abstractmethod
    def _reconstruct(
        self, x0: torch.Tensor, y: torch.Tensor, A: LinearOperator, noise_std: torch.Tensor
    ) -> torch.Tensor:
        """The image from x0, y and the noise level ``(*batch)``, all of them scaled."""

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
        return self._in_units(self._reconstruct, y, A, noise_std)

    def _start(self, y: torch.Tensor, A: LinearOperator) -> torch.Tensor:
        return A.adjoint(y)

    def _in_units(
        self,
        reconstruct: Callable[[torch.Tensor, torch.Tensor, LinearOperator, torch.Tensor], torch.Tensor],
        y: torch.Tensor,
        A: LinearOperator,
        noise_std: float | torch.Tensor,
        x0: torch.Tensor | None = None,
        stacked: tuple[int, ...] = (),
    ) -> torch.Tensor:
        """What ``reconstruct`` makes of scaled arguments, ``(*stacked, *batch, *shape)``, scaled back."""
        scaled, spread = self._scaled(y, A, noise_std, x0)
        x0 = scaled[0]
        silent = (x0 == 0).flatten(x0.ndim - A.domain.n_dims).all(dim=-1).reshape(spread.shape)
        if bool(silent.all()):
            nothing = x0 + 0 * sum(p.sum() for p in self.parameters())  # so that a training step can be taken
            return nothing.expand(*stacked, *x0.shape)
        return torch.where(silent, x0, reconstruct(*scaled) * spread)

    def _check_precision(self, y: torch.Tensor) -> None:
        for name, p in self.named_parameters():
            if p.dtype.to_real() != y.dtype.to_real():
                raise TypeError(
                    f"The weight {name} is {p.dtype} and the data are {y.dtype}; convert the data, or the model by "
                    ".float() or .double()."
                )

    def _scaled(
        self, y: torch.Tensor, A: LinearOperator, noise_std: float | torch.Tensor, x0: torch.Tensor | None = None
    ) -> tuple[tuple[torch.Tensor, torch.Tensor, LinearOperator, torch.Tensor], torch.Tensor]:
        """Arguments of ``_reconstruct``, and the scale that broadcasts with images."""
        self._check_precision(y)
        x0 = self._start(y, A) if x0 is None else x0
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


class Refinement(Reconstructor):
    """A reconstruction that starts from a good image: one that is given, or else `initial_image`.

    x₀ need not be Aᴴy here. A subclass writes ``_reconstruct``.
    """

    def forward(
        self, y: torch.Tensor, A: LinearOperator, noise_std: float | torch.Tensor, x0: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Reconstruct images.

        Parameters
        ----------
        y, A, noise_std
            As for `Reconstructor.forward`.
        x0
            Images to start from, like the result; by default `operators.filtered_start.initial_image`, which is
            filtered back-projection where A is a projection, else Aᴴy.

        Returns
        -------
        torch.Tensor
            Images ``(*batch, *A.domain.shape)``, in the units of ``y``, or of ``x0``.

        Raises
        ------
        TypeError, ValueError
            As for `Reconstructor.forward`, and if ``x0`` is not like the result.
        """
        return self._in_units(self._reconstruct, y, A, noise_std, self._checked_start(x0, y, A))

    def _start(self, y: torch.Tensor, A: LinearOperator) -> torch.Tensor:
        return initial_image(y, A)

    def _checked_start(self, x0: torch.Tensor | None, y: torch.Tensor, A: LinearOperator) -> torch.Tensor | None:
        if x0 is None:
            return None
        A.codomain.check(y, "y")
        A.domain.check(x0, "x0")
        batch = broadcast_batch(A.codomain.batch_shape(y), A.batch_shape)
        if A.domain.batch_shape(x0) != batch:
            raise ValueError(
                f"x0 has batch shape {tuple(A.domain.batch_shape(x0))} and the reconstruction {tuple(batch)}; give one "
                "image for each."
            )
        if x0.dtype.to_real() != y.dtype.to_real():
            raise TypeError(f"x0 is {x0.dtype} and the data are {y.dtype}; convert one of them.")
        return x0


class StagedRefinement(Refinement):
    """A refinement in stages, x ← prior_i(data_i(x)), whose priors can be trained one by one on parts of images.

    A subclass sets ``n_stages`` and writes ``_data_step`` and ``prior_step``; a call then takes all stages in turn, or
    whatever comes to the same.
    """

    n_stages: int

    @abstractmethod
    def _data_step(self, i: int, x: torch.Tensor, y: torch.Tensor, A: LinearOperator) -> torch.Tensor:
        """What the prior of stage ``i`` sees, from the image of the stage before; all of them scaled."""

    @abstractmethod
    def prior_step(self, i: int, x: torch.Tensor, noise_std: torch.Tensor, undersampling: torch.Tensor) -> torch.Tensor:
        """Apply the prior of a stage, which may be done to parts of images.

        Parameters
        ----------
        i
            The stage.
        x
            What `stage_inputs` returned, or a part of it, ``(*batch, y, x)``.
        noise_std, undersampling
            As `stage_inputs` returned them, real ``batch``.

        Returns
        -------
        torch.Tensor
            Images like ``x``.
        """

    def stage_inputs(
        self,
        y: torch.Tensor,
        A: LinearOperator,
        noise_std: float | torch.Tensor,
        x0: torch.Tensor | None = None,
        *,
        n_stages: int | None = None,
    ) -> "StageInputs":
        """Reconstruct, and keep what the priors see.

        Parameters
        ----------
        y, A, noise_std, x0
            As in a call.
        n_stages
            How many stages; all by default.

        Returns
        -------
        StageInputs

        Raises
        ------
        TypeError, ValueError
            As in a call.
        """
        (x, y, A, noise), spread = self._scaled(y, A, noise_std, self._checked_start(x0, y, A))
        ratio = torch.full_like(noise, undersampling_of(A))
        n_stages = self.n_stages if n_stages is None else n_stages
        images: list[torch.Tensor] = []
        for i in range(n_stages):
            images.append(self._data_step(i, x, y, A))
            if i + 1 < n_stages:
                x = self.prior_step(i, images[i], noise, ratio)
        return StageInputs(torch.stack(images), noise, ratio, spread)


class StageInputs(NamedTuple):
    """What the priors of a `StagedRefinement` see.

    Parameters
    ----------
    images
        ``(stage, *batch, *A.domain.shape)``, divided by ``scale``.
    noise_std
        Noise level of the data, real ``batch``, divided likewise.
    undersampling
        `undersampling_of` the operator, real ``batch``.
    scale
        Real, broadcasting with images of the batch.
    """

    images: torch.Tensor
    noise_std: torch.Tensor
    undersampling: torch.Tensor
    scale: torch.Tensor


def undersampling_of(A: LinearOperator) -> float:
    """How many pixels there are for each sample.

    Parameters
    ----------
    A
        The forward operator; samples that a mask removes count.

    Returns
    -------
    float
        Positive.
    """
    return A.domain.size / A.codomain.size


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
