"""Reading raw scans, whatever their format, and writing images; formats are told by content, never by name."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from mrirecon.io.options import ReadOptions as ReadOptions
from operators.errors import InputError
from operators.io.signature import container_of, head_in_words, head_of

if TYPE_CHECKING:
    from mrirecon.kspace import KSpace

_DEFAULTS = ReadOptions()
_READERS = {
    "ISMRMRD": ("mrirecon.io.ismrmrd", "read_ismrmrd"),
    "fastMRI": ("mrirecon.io.fastmri", "read_fastmri"),
    "MATLAB 7.3": ("mrirecon.io.matlab", "read_hdf5_array"),
    "HDF5 array": ("mrirecon.io.matlab", "read_hdf5_array"),
    "MATLAB 5": ("mrirecon.io.matlab", "read_matlab5"),
    "numpy": ("mrirecon.io.numpy_files", "read_npy"),
    "numpy archive": ("mrirecon.io.numpy_files", "read_npz"),
    "BART": ("mrirecon.io.bart", "read_bart"),
    "Siemens twix": ("mrirecon.io.twix", "read_twix"),
}


def read(path: Path | str, options: ReadOptions = _DEFAULTS) -> "KSpace":
    """Read a raw scan of any supported format.

    Parameters
    ----------
    path
        The file: ISMRMRD, fastMRI, M4Raw, Siemens twix, BART (either of the two files), MATLAB 5 and 7.3, numpy, or
        HDF5 with one complex array, Cartesian or with a trajectory. Its name does not matter.
    options
        Overrides of the decisions that reading takes.

    Returns
    -------
    KSpace
        The scan, with a log of everything that was decided.

    Raises
    ------
    InputError
        If there is no such file, its format is unknown, it is damaged, or it holds no k-space that can be placed.
    """
    format_name = sniff(path)
    if options.trajectory is not None and format_name in ("ISMRMRD", "fastMRI", "Siemens twix"):
        raise InputError(
            f"{path} is {format_name}, whose samples lie where the file itself says; leave --trajectory-file out, "
            f"which is for arrays."
        )
    module, function = _READERS[format_name]
    kspace: KSpace = getattr(importlib.import_module(module), function)(Path(path), options)
    if not kspace.data.isfinite().all():
        raise InputError(f"{path} has samples so large that their sums overflow (3e38); scale them down first.")
    return kspace


def sniff(path: Path | str) -> str:
    """Name the format of a raw scan by its content.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    str
        ``"ISMRMRD"``, ``"fastMRI"``, ``"MATLAB 7.3"``, ``"HDF5 array"``, ``"MATLAB 5"``, ``"numpy"``,
        ``"numpy archive"``, ``"BART"`` or ``"Siemens twix"``.

    Raises
    ------
    InputError
        If there is no such file, it cannot be read, or its format is unknown.
    """
    path = Path(path)
    head = head_of(path)
    container = container_of(head)
    if container is not None:
        return _sniff_hdf5(path) if container == "HDF5" else container
    from mrirecon.io.bart import is_bart
    from mrirecon.io.twix import is_twix

    if is_twix(path):
        return "Siemens twix"
    if is_bart(path, head):
        return "BART"
    raise InputError(
        f"{path} begins with {head_in_words(head)}, which is no raw-data format that is read: ISMRMRD, fastMRI, M4Raw, "
        f"Siemens twix, BART, MATLAB 5 and 7.3, numpy and HDF5 arrays are."
    )


def _sniff_hdf5(path: Path) -> str:
    from mrirecon.io.fastmri import looks_like_fastmri
    from mrirecon.io.ismrmrd import looks_like_ismrmrd
    from operators.io.hdf5 import hdf5_errors, open_hdf5
    from operators.io.hdf5_arrays import is_matlab73

    with open_hdf5(path) as file, hdf5_errors(path, "finding out what it holds"):
        for name, fits in (
            ("ISMRMRD", looks_like_ismrmrd),
            ("fastMRI", looks_like_fastmri),
            ("MATLAB 7.3", is_matlab73),
        ):
            if fits(file):
                return name
    return "HDF5 array"
