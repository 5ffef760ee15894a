"""Trained weights as a method of reconstruction, and what sparse coding says about an image, as files."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from mrirecon.dictionaries import load_dictionary
from mrirecon.method_names import LEARNED_METHODS, check_method_name
from mrirecon.models import model_of
from mrirecon.reconstruction import METHODS, Method, Reconstruction
from operators.checkpoint import load_checkpoint
from operators.errors import InputError
from operators.io.files import replacing
from operators.io.nifti import write_nifti
from operators.linear_operator import LinearOperator
from operators.priors.csc import ConvolutionalSparseCoding, SparseCoding
from operators.reconstructor import Reconstructor

_SHIPPED = Path(__file__).parent / "weights"


@dataclass(slots=True)
class LearnedMethod:
    """A trained model, to be passed to `mrirecon.reconstruct` as ``method()``.

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

    def __call__(self) -> Method:
        """The method; it has no strength and no iterations that could be chosen."""
        return Method(self.name, self._run, regularisation=0.0, n_iterations=1, adjustable=False)

    def _run(
        self, A: LinearOperator, y: torch.Tensor, noise: float, regularisation: float, n_iterations: int
    ) -> torch.Tensor:
        model = self.model.to(y.device)
        with torch.no_grad():
            if not self.keep_codes or not isinstance(model, ConvolutionalSparseCoding):
                image: torch.Tensor = model(y, A, noise)
                return image
            explained = model.explain(y, A, noise)
        self.parts.append(explained)
        return explained.image


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
    check_method_name(name)
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
    checkpoint = load_checkpoint(checkpoint_path(weights))
    model = model_of(checkpoint)
    if (dictionary is not None or keep_codes) and not isinstance(model, ConvolutionalSparseCoding):
        raise InputError(
            f"The weights {weights} are of kind {checkpoint.kind}, which knows no dictionary and no codes; leave "
            "--dictionary and --save-maps out, or choose weights of convolutional sparse coding."
        )
    kind = weights if weights in LEARNED_METHODS else checkpoint.kind
    name = f"{kind}, weights {checkpoint.sha256[:8]}"
    if dictionary is not None and isinstance(model, ConvolutionalSparseCoding):
        chosen = load_dictionary(dictionary)
        model = model.with_filters(chosen.filters)
        name += f", dictionary {chosen.name}"
    return LearnedMethod(model.eval(), name, keep_codes)


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
    if name not in LEARNED_METHODS:
        return Path(name)
    path = _SHIPPED / f"{name}.pt"
    if not path.is_file():
        raise InputError(
            f"The weights of {name} should have come with mrirecon, but {path} is missing; install it again."
        )
    return path


def write_codes(folder: Path, method: LearnedMethod, result: Reconstruction, *, overwrite: bool = False) -> None:
    """Write what sparse coding found as NIfTI files, one volume for each filter, on the grid of the uncropped image.

    ``maps.nii.gz`` holds the thresholds and ``codes.nii.gz`` the magnitude of the codes, ``contributions.nii.gz`` what
    each filter adds to the image, and ``low_pass.nii.gz`` what they are added to, all in the units of the image
    (magnitudes of complex numbers; their sum is the image only as complex numbers).

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
    if not method.parts:
        raise InputError("No codes were kept; reconstruct with keep_codes first.")
    acquisition = result.acquisition
    n_slices = result.grid.shape[0] if acquisition.encoded_shape[0] == 1 else acquisition.encoded_shape[0]
    grid = acquisition.encoded_grid(n_slices=n_slices)
    with replacing(folder, overwrite=overwrite) as temporary:
        temporary.mkdir()
        for name in ("maps", "codes", "contributions", "low_pass"):
            stacked = torch.cat([getattr(part, name) for part in method.parts]).cpu() * result.unit
            if name != "low_pass":
                stacked = (
                    stacked.movedim(-3, -4) if stacked.ndim == 5 else stacked.unflatten(0, (-1, n_slices)).movedim(2, 1)
                )
            else:
                stacked = stacked.reshape(-1, *grid.shape)
            write_nifti(temporary / f"{name}.nii.gz", stacked, grid, geometry_known=acquisition.geometry_known)
