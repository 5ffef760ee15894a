"""Trained weights as a method of reconstruction, and what sparse coding says about an image, as files."""

from pathlib import Path

import torch

from mrirecon.dictionaries import load_dictionary
from mrirecon.method_names import LEARNED_METHODS, METHOD_NAMES
from mrirecon.models import MODELS
from mrirecon.reconstruction import METHODS, Method, Reconstruction
from operators import trained
from operators.linear_operator import LinearOperator

_SHIPPED = Path(__file__).parent / "weights"


class LearnedMethod(trained.TrainedModel):
    """A trained model, to be passed to `mrirecon.reconstruct` as ``method()``; see `operators.trained.TrainedModel`."""

    def __call__(self) -> Method:
        """The method; it has no strength and no iterations that could be chosen.

        Samples of a trajectory weigh by their area of k-space, so that the model meets what it was trained on: an Aᴴy
        that looks like the image.
        """
        return Method(self.name, self._run, regularisation=0.0, n_iterations=1, density_power=1.0, adjustable=False)

    def _run(
        self, A: LinearOperator, y: torch.Tensor, noise: float, regularisation: float, n_iterations: int
    ) -> torch.Tensor:
        return self.reconstruct(y, A, noise)


def method_named(name: str) -> Method:
    """The method of this name, classical or with the trained weights that come with the package.

    Parameters
    ----------
    name
        One of `mrirecon.METHODS` or `mrirecon.method_names.LEARNED_METHODS`.

    Returns
    -------
    Method
        Its own, for one reconstruction or many.

    Raises
    ------
    InputError
        If the name is unknown, or its weights are missing or damaged.
    """
    METHOD_NAMES.check(name)
    return METHODS[name] if name in METHODS else load_method(name)()


def load_method(
    weights: Path | str, *, dictionary: Path | str | None = None, keep_codes: bool = False
) -> LearnedMethod:
    """Read trained weights.

    Parameters
    ----------
    weights
        A checkpoint that `mrirecon.training.train` wrote, or a name in `mrirecon.method_names.LEARNED_METHODS` for
        weights that come with the package.
    dictionary
        Exchange the dictionary of convolutional sparse coding: a name or a file for
        `mrirecon.dictionaries.load_dictionary`.
    keep_codes
        Keep codes and maps of convolutional sparse coding for `write_codes`.

    Returns
    -------
    LearnedMethod
        The model as a method.

    Raises
    ------
    InputError
        If there are no such weights, they are damaged, or a dictionary or codes are asked of a model without them.
    """
    return LearnedMethod.load(
        checkpoint_path(weights),
        MODELS,
        label=str(weights) if weights in LEARNED_METHODS else None,
        dictionary=None if dictionary is None else load_dictionary(dictionary),
        keep_codes=keep_codes,
    )


def checkpoint_path(name: Path | str) -> Path:
    """Where weights lie.

    Parameters
    ----------
    name
        A path; or a name in `mrirecon.method_names.LEARNED_METHODS`, for weights that come with the package.

    Raises
    ------
    InputError
        If they should have come with the package and did not.
    """
    return trained.shipped_weights(str(name), _SHIPPED, "mrirecon") if name in LEARNED_METHODS else Path(name)


def write_codes(folder: Path, method: LearnedMethod, result: Reconstruction, *, overwrite: bool = False) -> None:
    """Write what sparse coding found as NIfTI files on the grid of the uncropped image.

    The files and what they hold: see `operators.trained.write_codes`.

    Parameters
    ----------
    folder
        To be made.
    method
        After the reconstruction.
    result
        What it returned.
    overwrite
        Replace the folder if it exists.

    Raises
    ------
    InputError
        If the folder exists or cannot be written, or nothing was kept.
    """
    acquisition = result.acquisition
    n_slices = result.grid.shape[0] if acquisition.encoded_shape[0] == 1 else acquisition.encoded_shape[0]
    trained.write_codes(
        folder,
        method.parts,
        acquisition.encoded_grid(n_slices=n_slices),
        unit=result.unit,
        geometry_known=acquisition.geometry_known,
        overwrite=overwrite,
    )
