"""Reading raw scans, whatever their format, and writing images; formats are told by content, never by name."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from mrirecon.io.options import ReadOptions as ReadOptions
from operators.errors import InputError

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
_HEAD_BYTES = 16384
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def read(path: Path | str, options: ReadOptions = _DEFAULTS) -> "KSpace":
    """Read a raw scan of any supported format.

    Parameters
    ----------
    path
        The file: ISMRMRD, fastMRI, M4Raw, Siemens twix, BART (either of the two files), MATLAB 5 and 7.3, numpy, or
        HDF5 with one complex array. Its name does not matter.
    options
        Overrides of the decisions that reading takes.

    Returns
    -------
    KSpace
        The scan, with a log of everything that was decided.

    Raises
    ------
    InputError
        If there is no such file, its format is unknown, it is damaged, or it holds no Cartesian k-space.
    """
    module, function = _READERS[sniff(path)]
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
    head = _head(path)
    # HDF5 may begin after a block of other content; MATLAB 7.3 writes 512 bytes of text first.
    if any(head.startswith(_HDF5_SIGNATURE, start) for start in (0, 512, 1024, 2048, 4096, 8192)):
        return _sniff_hdf5(path)
    if head.startswith(b"MATLAB 5.0 MAT-file"):
        return "MATLAB 5"
    if head.startswith(b"\x93NUMPY"):
        return "numpy"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "numpy archive"
    from mrirecon.io.bart import is_bart
    from mrirecon.io.twix import is_twix

    if is_twix(path):
        return "Siemens twix"
    if is_bart(path, head):
        return "BART"
    raise InputError(
        f"{path} begins with {_in_words(head)}, which is no raw-data format that is read: ISMRMRD, fastMRI, M4Raw, "
        f"Siemens twix, BART, MATLAB 5 and 7.3, numpy and HDF5 arrays are."
    )


def _head(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise InputError(f"{path} is a directory; give the raw-data file in it.")
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is a device or a pipe; give a file.")
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path.") from error
    except PermissionError as error:
        raise InputError(f"{path} may not be read by this user; change its permissions or copy it.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error}); check the path.") from error
    if not head:
        raise InputError(f"{path} is empty; copy it again from the scanner.")
    return head


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


def _in_words(head: bytes) -> str:
    """The first bytes as text where they are text, otherwise in hexadecimal."""
    start = head[:12]
    if all(32 <= byte < 127 for byte in start):
        return repr(start.decode("ascii"))
    return "the bytes " + start.hex(" ")
