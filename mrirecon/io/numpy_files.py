"""Reading k-space arrays from numpy files: ``.npy`` and ``.npz``."""

import io
import os
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mrirecon.io.arrays import (
    StoredArray,
    as_complex,
    check_array_memory,
    check_complex,
    choose_array,
    damage_reported,
    kind_of,
    kspace_from_array,
    layout_by_shape,
)
from mrirecon.io.options import ReadOptions
from mrirecon.kspace import KSpace
from operators.errors import InputError

_DEFAULTS = ReadOptions()
_LONGEST_HEADER = 2**16


def read_npy(path: Path | str, options: ReadOptions = _DEFAULTS) -> KSpace:
    """Read one complex array in this project's axis order, ``([slice,] [coil,] ky, kx)``, or as ``options.axes`` says.

    Parameters
    ----------
    path
        An ``.npy`` file.
    options
        Overrides of decisions.

    Returns
    -------
    KSpace
        The scan.

    Raises
    ------
    InputError
        If the file is damaged, or what it holds is no k-space.
    """
    path = Path(path)
    with damage_reported(path, "numpy"), path.open("rb") as stream:
        stored, dtype, fortran = _read_header(stream, "array", path)
        check_complex(stored, path)
        check_array_memory(stored, options, path)
        n_left = os.fstat(stream.fileno()).st_size - stream.tell()
        array = _read_samples(stream, stored, dtype, fortran, n_left, path)
    return kspace_from_array(array, options, layout_by_shape(stored.shape, options, path), source=str(path))


def read_npz(path: Path | str, options: ReadOptions = _DEFAULTS) -> KSpace:
    """Read one complex array of an archive: that of ``options.variable``, or the largest.

    Parameters
    ----------
    path
        An ``.npz`` file.
    options
        Overrides of decisions.

    Returns
    -------
    KSpace
        The scan; axes as for ``read_npy``.

    Raises
    ------
    InputError
        If the file is damaged, or holds no k-space.
    """
    path = Path(path)
    with damage_reported(path, "a numpy archive"), zipfile.ZipFile(path) as archive:
        members = {name: name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
        arrays = []
        for member, name in members.items():
            with archive.open(member) as stream:
                arrays.append(_read_header(stream, name, path)[0])
        stored, decisions = choose_array(arrays, options, path)
        check_array_memory(stored, options, path)
        member = next(member for member, name in members.items() if name == stored.name)
        with archive.open(member) as stream:
            stored, dtype, fortran = _read_header(stream, stored.name, path)
            n_left = archive.getinfo(member).file_size - stream.tell()
            array = _read_samples(stream, stored, dtype, fortran, n_left, path)
    layout = layout_by_shape(stored.shape, options, path)
    return kspace_from_array(array, options, layout, source=f"{stored.name} in {path}", decisions=decisions)


def _read_header(stream: IO[bytes], name: str, path: Path) -> tuple[StoredArray, np.dtype[Any], bool]:
    """Read what precedes the samples: the array's description, its type, and whether it is stored column by column."""
    start = stream.read(8)
    if start[:6] != b"\x93NUMPY":
        raise InputError(f"{name} in {path} does not begin like a numpy array; it is damaged or truncated.")
    size = stream.read(2 if start[6] == 1 else 4)
    length = int.from_bytes(size, "little")
    if length > _LONGEST_HEADER:
        raise InputError(f"{name} in {path} has a header of {length} bytes; it is damaged.")
    header = io.BytesIO(start + size + stream.read(length))
    version = np.lib.format.read_magic(header)
    if version not in ((1, 0), (2, 0)):
        raise InputError(f"{name} in {path} is of numpy format {version}; versions 1.0 and 2.0 hold k-space.")
    parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shape, fortran, dtype = parse(header)
    if any(n < 0 for n in shape):
        raise InputError(f"{name} in {path} has shape {shape}; it is damaged.")
    return StoredArray(name, shape, kind_of(dtype)), dtype, fortran


def _read_samples(
    stream: IO[bytes], stored: StoredArray, dtype: np.dtype[Any], fortran: bool, n_left: int, path: Path
) -> NDArray[Any]:
    needed = int(np.prod(stored.shape, dtype=object)) * dtype.itemsize
    content = stream.read(needed) if needed <= n_left else b""
    if len(content) < needed:
        raise InputError(f"{stored} in {path} is truncated: it needs {needed} bytes and {n_left} are left.")
    return as_complex(np.frombuffer(content, dtype).reshape(stored.shape, order="F" if fortran else "C"))
