"""Trained weights as a method of reconstruction, and what sparse coding says about an image, as files."""

from pathlib import Path

import torch

from ctrecon.method_names import LEARNED_METHODS, METHOD_NAMES
from ctrecon.models import MODELS, apply_model, load_dictionary
from ctrecon.reconstruction import METHODS, Method, Reconstruction, Settings
from operators import trained
from operators.projection import Projection

_SHIPPED = Path(__file__).parent / "weights"


class LearnedMethod(trained.TrainedModel):
    """A trained model, to be passed to `ctrecon.reconstruct` as ``method()``; see `operators.trained.TrainedModel`."""

    def __call__(self) -> Method:
        """The method; it has no strength, no iterations and no weights of rays that could be chosen."""
        return Method(self.name, self._run, regularisation=0.0, n_iterations=1, adjustable=False)

    def _run(self, A: Projection, y: torch.Tensor, settings: Settings) -> torch.Tensor:
        return apply_model(self.reconstruct, y, A, settings.noise_std)


def method_named(name: str) -> Method:
    """The method of this name, classical or with the trained weights that come with the package.

    Parameters
    ----------
    name
        One of `ctrecon.METHODS` or `ctrecon.method_names.LEARNED_METHODS`.

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
        A checkpoint that `ctrecon.training.train` wrote, or a name in `ctrecon.method_names.LEARNED_METHODS` for
        weights that come with the package.
    dictionary
        Exchange the dictionary of convolutional sparse coding: a name or a file for `ctrecon.models.load_dictionary`.
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
        A path; or a name in `ctrecon.method_names.LEARNED_METHODS`, for weights that come with the package.

    Raises
    ------
    InputError
        If they should have come with the package and did not.
    """
    return trained.shipped_weights(str(name), _SHIPPED, "ctrecon") if name in LEARNED_METHODS else Path(name)


def write_codes(folder: Path, method: LearnedMethod, result: Reconstruction, *, overwrite: bool = False) -> None:
    """Write what sparse coding found as NIfTI files on the grid of the image, in 1/mm.

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
    trained.write_codes(folder, method.parts, result.grid, overwrite=overwrite)
