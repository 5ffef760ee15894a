"""Trained weights as a method of reconstruction, and what sparse coding says about an image, as files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import torch

from operators.checkpoint import load_checkpoint
from operators.dictionaries import Dictionary
from operators.errors import InputError
from operators.io.files import replacing
from operators.io.nifti import write_nifti
from operators.linear_operator import LinearOperator
from operators.model_building import Models
from operators.priors.csc import ConvolutionalSparseCoding, SparseCoding
from operators.reconstructor import Reconstructor, Refinement
from operators.voxel_grid import VoxelGrid


@dataclass(slots=True)
class TrainedModel:
    """A trained model that can be applied to data.

    Parameters
    ----------
    model
        In evaluation mode.
    name
        What the image is said to be made by: method or kind of model, and the beginning of the digest of its weights.
    keep_codes
        Whether codes and maps of convolutional sparse coding are kept in ``parts``, for `write_codes`.
    parts
        What was kept, in the order of the images.
    """

    model: Reconstructor
    name: str
    keep_codes: bool = False
    parts: list[SparseCoding] = field(default_factory=list)

    @classmethod
    def load(
        cls,
        path: Path,
        models: Models,
        *,
        label: str | None = None,
        dictionary: Dictionary | None = None,
        keep_codes: bool = False,
    ) -> Self:
        """Read trained weights.

        Parameters
        ----------
        path
            The checkpoint.
        models
            The models there are.
        label
            What the method is called instead of the kind of its model.
        dictionary
            Filters to put in the place of those of convolutional sparse coding.
        keep_codes
            Keep codes and maps of convolutional sparse coding.

        Returns
        -------
        Self
            On the CPU, in evaluation mode.

        Raises
        ------
        InputError
            If there are no such weights, they are damaged, or a dictionary or codes are asked of a model without them.
        """
        checkpoint = load_checkpoint(path)
        model = models.restore(checkpoint)
        name = f"{label or checkpoint.kind}, weights {checkpoint.sha256[:8]}"
        if dictionary is not None or keep_codes:
            if not isinstance(model, ConvolutionalSparseCoding):
                raise InputError(
                    f"The weights {label or path} are of kind {checkpoint.kind}, which knows no dictionary and no "
                    "codes; leave --dictionary and --save-maps out, or choose weights of convolutional sparse coding."
                )
            if dictionary is not None:
                model = model.with_filters(dictionary.filters)
                name += f", dictionary {dictionary.name}"
        return cls(model.eval(), name, keep_codes)

    @property
    def refines(self) -> bool:
        """Whether the model takes an image to start from."""
        return isinstance(self.model, Refinement)

    def reconstruct(
        self, y: torch.Tensor, A: LinearOperator, noise_std: float | torch.Tensor, x0: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Reconstruct images without gradients, where the data are.

        Parameters
        ----------
        y, A, noise_std
            As for `operators.reconstructor.Reconstructor`.
        x0
            Images to start from, as for `operators.reconstructor.Refinement`.

        Returns
        -------
        torch.Tensor
            Images ``(*batch, *A.domain.shape)``.

        Raises
        ------
        InputError
            If ``x0`` is given to a model that takes none.
        """
        if x0 is not None and not self.refines:
            raise InputError(f"The method {self.name} takes no image to start from; leave x0 out, or choose another.")
        model = self.model.to(y.device)
        with torch.no_grad():
            if not self.keep_codes or not isinstance(model, ConvolutionalSparseCoding):
                image: torch.Tensor = model(y, A, noise_std) if x0 is None else model(y, A, noise_std, x0)
                return image
            explained = model.explain(y, A, noise_std)
        self.parts.append(explained)
        return explained.image


def shipped_weights(name: str, folder: Path, package: str) -> Path:
    """Where weights lie that come with a package.

    Parameters
    ----------
    name
        What they are called.
    folder
        Where.
    package
        Which one, for the message.

    Raises
    ------
    InputError
        If they should have come along and did not.
    """
    path = folder / f"{name}.pt"
    if not path.is_file():
        raise InputError(
            f"The weights of {name} should have come with {package}, but {path} is missing; install it again."
        )
    return path


def write_codes(
    folder: Path,
    parts: Sequence[SparseCoding],
    grid: VoxelGrid,
    *,
    unit: float = 1.0,
    geometry_known: bool = True,
    overwrite: bool = False,
) -> None:
    """Write what sparse coding found as NIfTI files, one volume for each filter.

    ``maps.nii.gz`` holds the thresholds and ``codes.nii.gz`` the magnitude of the codes, ``contributions.nii.gz`` what
    each filter adds to the image, and ``low_pass.nii.gz`` what they are added to, all in the units of the image. Of
    complex images all are magnitudes (their sum is the image only as complex numbers); of real ones all but the codes
    keep their signs.

    Parameters
    ----------
    folder
        To be made.
    parts
        What a `TrainedModel` kept, whose images are slices or volumes, all slices of a grid after one another.
    grid
        Where the slices lie.
    unit
        Number that the images were divided by.
    geometry_known
        Whether the grid is that of the scan.
    overwrite
        Replace the folder if it exists.

    Raises
    ------
    InputError
        If the folder exists or cannot be written, or nothing was kept.
    """
    if not parts:
        raise InputError("No codes were kept; reconstruct with keep_codes first.")
    n_slices = grid.shape[0]
    with replacing(folder, overwrite=overwrite) as temporary:
        temporary.mkdir()
        for name in ("maps", "codes", "contributions", "low_pass"):
            stacked = torch.cat([getattr(part, name) for part in parts]).cpu() * unit
            if name == "low_pass":
                volumes = stacked.reshape(-1, *grid.shape)
            elif stacked.ndim == 5:
                volumes = stacked.movedim(-3, -4)
            else:
                volumes = stacked.unflatten(0, (-1, n_slices)).movedim(2, 1)
            signed: Literal["real", "magnitude"] = "magnitude" if volumes.is_complex() or name == "codes" else "real"
            path = temporary / f"{name}.nii.gz"
            write_nifti(path, volumes, grid, part=signed, geometry_known=geometry_known)
