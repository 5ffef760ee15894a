"""Arrays of numbers in HDF5 files, read within the memory limit and without trusting their description."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ctrecon.io.assembly import check_array_memory
from ctrecon.io.options import ReadOptions
from operators.errors import InputError
from operators.io.hdf5 import check_finite, check_type, find_dataset, hdf5_errors


def read_numbers(file: h5py.File, name: str, axes: Sequence[str], options: ReadOptions, path: Path) -> NDArray[Any]:
    """Read a dataset of finite real numbers.

    Parameters
    ----------
    file
        The open file.
    name
        Path of the dataset in it.
    axes
        What its axes are, for the check of their number and for messages.
    options
        ``memory_limit_bytes``.
    path
        The file, for messages.

    Returns
    -------
    NDArray
        The numbers, in the type of the file.

    Raises
    ------
    InputError
        If it is missing, empty, too large, or holds something else.
    """
    dataset = find_dataset(file, name)
    if dataset is None or dataset.shape is None or len(dataset.shape) != len(axes) or 0 in dataset.shape:
        found = "missing" if dataset is None else f"of shape {dataset.shape}"
        raise InputError(f"{name} in {path} is {found}; expected an array of numbers ({', '.join(axes)}).")
    check_type(dataset, path)
    if dataset.dtype.kind not in "iuf":
        raise InputError(f"{name} in {path} is {dataset.dtype}; expected real numbers.")
    check_array_memory(math.prod(dataset.shape), options, what=f"{name} in {path}")
    if math.prod(dataset.chunks or ()) * dataset.dtype.itemsize > options.memory_limit_bytes:
        raise InputError(f"{name} in {path} is stored in chunks larger than memory_limit_bytes; the file is damaged.")
    with hdf5_errors(path, f"reading {name}"):
        array = np.asarray(dataset[()])
    check_finite(array, list(axes), what=f"{name} in {path}")
    return array
