"""Arrays in numpy files, ``.npy`` and ``.npz``: read without trusting a byte of them, written whole or not at all."""

import io
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from operators.errors import InputError
from operators.io.array_file import ArrayFile, StoredArray, damage_reported, kind_of, with_complex_pairs
from operators.io.files import replacing

_LONGEST_HEADER = 2**16


def write_npy(path: Path | str, array: NDArray[Any], *, overwrite: bool = False) -> None:
    """Write one array as ``.npy``, whatever the suffix of the path.

    Parameters
    ----------
    path
        The file.
    array
        Any array of numbers.
    overwrite
        Allow ``path`` to exist.

    Raises
    ------
    InputError
        If the path cannot be written; nothing is left behind.
    """
    with replacing(path, overwrite=overwrite) as temporary, temporary.open("wb") as stream:
        np.save(stream, array)


@contextmanager
def open_npy(path: Path | str) -> Iterator[ArrayFile]:
    """Open an ``.npy`` file, which holds one array, named ``"array"``.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    path = Path(path)
    with damage_reported(path, "numpy"), path.open("rb") as stream:
        yield _NpyFile(path, stream)


@contextmanager
def open_npz(path: Path | str) -> Iterator[ArrayFile]:
    """Open an ``.npz`` archive.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    path = Path(path)
    with damage_reported(path, "a numpy archive"), zipfile.ZipFile(path) as archive:
        yield _NpzFile(path, archive)


class _NpyFile(ArrayFile):
    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._stream = stream
        stored, self._dtype, self._fortran = _read_header(stream, "array", path)
        self._start = stream.tell()
        super().__init__(path, (stored,))

    def _read(self, stored: StoredArray, limit_bytes: int) -> NDArray[Any]:
        n_left = os.fstat(self._stream.fileno()).st_size - self._start
        self._stream.seek(self._start)
        return _read_samples(self._stream, stored, self._dtype, self._fortran, n_left, self.path)


class _NpzFile(ArrayFile):
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        members: Mapping[str, str] = {
            name: name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")
        }
        arrays = []
        for member, name in members.items():
            with archive.open(member) as stream:
                arrays.append(_read_header(stream, name, path)[0])
        super().__init__(path, tuple(arrays))

    def _read(self, stored: StoredArray, limit_bytes: int) -> NDArray[Any]:
        member = f"{stored.name}.npy"
        with self._archive.open(member) as stream:
            stored, dtype, fortran = _read_header(stream, stored.name, self.path)
            n_left = self._archive.getinfo(member).file_size - stream.tell()
            return _read_samples(stream, stored, dtype, fortran, n_left, self.path)


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
        raise InputError(f"{name} in {path} is of numpy format {version}; versions 1.0 and 2.0 hold numbers.")
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
    needed = stored.n_elements * dtype.itemsize
    content = stream.read(needed) if needed <= n_left else b""
    if len(content) < needed:
        raise InputError(f"{stored} in {path} is truncated: it needs {needed} bytes and {n_left} are left.")
    array = np.frombuffer(content, dtype).reshape(stored.shape, order="F" if fortran else "C")
    return with_complex_pairs(array)
