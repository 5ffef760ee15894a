"""Plain arrays in HDF5 files that follow no standard, and in the HDF5 files of MATLAB (version 7.3)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
from numpy.typing import NDArray

from operators.errors import InputError
from operators.io.array_file import ArrayFile, StoredArray, damage_reported, kind_of, with_complex_pairs
from operators.io.hdf5 import check_type, open_hdf5

_MOST_ARRAYS = 10_000


class Hdf5Arrays(ArrayFile):
    """The arrays of an open HDF5 file by their paths, without MATLAB's own bookkeeping.

    Arrays that MATLAB wrote have their axes in the order of MATLAB.

    Parameters
    ----------
    path
        The file, for messages.
    file
        The open file.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.is_matlab = is_matlab73(file)
        self._datasets = _datasets(file)
        turned = slice(None, None, -1) if self.is_matlab else slice(None)
        arrays = (StoredArray(name, dataset.shape[turned], _kind(dataset)) for name, dataset in self._datasets.items())
        super().__init__(path, tuple(arrays))

    def _read(self, stored: StoredArray, limit_bytes: int) -> NDArray[Any]:
        dataset = self._datasets[stored.name]
        check_type(dataset, self.path)
        n_bytes = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
        if n_bytes > limit_bytes:
            raise InputError(
                f"{dataset.name} in {self.path} is stored in chunks of {n_bytes} bytes; the file is damaged."
            )
        array = with_complex_pairs(dataset[()])
        return array.T if self.is_matlab else array


@contextmanager
def open_hdf5_arrays(path: Path | str) -> Iterator[Hdf5Arrays]:
    """Open an HDF5 file as a set of arrays.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    path = Path(path)
    with open_hdf5(path) as file, damage_reported(path, "HDF5"):
        yield Hdf5Arrays(path, file)


def is_matlab73(file: h5py.File) -> bool:
    """Whether an open HDF5 file was written by MATLAB: by its text before the HDF5 part, or by marked variables."""
    if file.userblock_size:
        with open(file.filename, "rb") as stream:
            if stream.read(10) == b"MATLAB 7.3":
                return True
    return any("MATLAB_class" in item.attrs for item in map(file.get, list(file)[:100]) if item is not None)


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}

    def collect(name: str, item: Any) -> bool | None:
        if isinstance(item, h5py.Dataset) and item.shape is not None and not name.startswith("#"):
            found[name] = item
        return True if len(found) == _MOST_ARRAYS else None

    file.visititems(collect)
    return found


def _kind(dataset: h5py.Dataset) -> str:
    try:
        return kind_of(dataset.dtype)
    except (TypeError, ValueError):
        return "of a type without equivalent"
