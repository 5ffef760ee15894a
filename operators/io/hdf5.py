"""The boundary to HDF5: every way in which a file can fail leaves here as one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from operators.errors import InputError
from operators.io.hdf5_damage import check_datasets, check_heaps

_FAILURES = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError, MemoryError)


_USUAL_NUMBERS = [
    getattr(h5py.h5t, f"{name}{n_bits}{order}")
    for name, sizes in (("STD_I", (8, 16, 32, 64)), ("STD_U", (8, 16, 32, 64)), ("IEEE_F", (16, 32, 64)))
    for n_bits in sizes
    for order in ("LE", "BE")
]


@contextmanager
def open_hdf5(path: Path | str) -> Iterator[h5py.File]:
    """Open a file for reading, after refusing damage that the HDF5 library itself would not survive.

    Parameters
    ----------
    path
        The file.

    Yields
    ------
    h5py.File
        The open file; it is closed when the block ends.

    Raises
    ------
    InputError
        If the file is missing, empty, not HDF5, or too damaged to be opened.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file; give the path of an existing HDF5 file.")
    with hdf5_errors(path, "opening it"):
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty; copy it again from where it was measured.")
        if not h5py.is_hdf5(path):
            raise InputError(f"{path} is not an HDF5 file: its signature is missing.")
        check_heaps(path)
        file = h5py.File(path, "r")
    try:
        with hdf5_errors(path, "listing its contents"):
            check_datasets(file, path)
        yield file
    finally:
        file.close()


@contextmanager
def hdf5_errors(path: Path | str, doing: str) -> Iterator[None]:
    """Turn whatever the HDF5 library raises in the block into one sentence; keep the block small.

    Parameters
    ----------
    path
        The file, for the message.
    doing
        What the block does, for the message, such as ``"reading the header"``.

    Raises
    ------
    InputError
        If the block fails.
    """
    try:
        yield
    except InputError:
        raise
    except _FAILURES as error:
        reason = str(error).strip("'\"").splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is damaged or incomplete: {doing} failed ({reason}); copy it again.") from error


def find_dataset(group: h5py.Group, name: str) -> h5py.Dataset | None:
    """Return the dataset of this name, or ``None`` if there is none or it cannot be opened.

    Parameters
    ----------
    group
        Where to look; links to other files are not followed.
    name
        Name within the group.
    """
    try:
        if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
            return None
        item = group.get(name)
    except _FAILURES:
        return None
    return item if isinstance(item, h5py.Dataset) else None


def check_type(dataset: h5py.Dataset, path: Path | str) -> None:
    """Refuse a dataset whose numbers are not the usual ones; to be called before its data are read.

    HDF5 can describe numbers of any layout, and writes past its buffers (2.0 and before) when it converts some that
    only damage brings about, such as a 32-bit float with another exponent bias.

    Parameters
    ----------
    dataset
        The dataset.
    path
        The file, for the message.

    Raises
    ------
    InputError
        If its type is not made of IEEE floats, whole numbers of 1, 2, 4 or 8 bytes and texts.
    """
    with hdf5_errors(path, f"reading the type of {dataset.name!r}"):
        if not _is_usual(dataset.id.get_type()):
            raise InputError(f"{dataset.name!r} in {path} has a type that no scanner writes; the file is damaged.")


def _is_usual(kind: h5py.h5t.TypeID) -> bool:
    if isinstance(kind, h5py.h5t.TypeStringID):
        return True
    if isinstance(kind, h5py.h5t.TypeCompoundID):
        return all(_is_usual(kind.get_member_type(i)) for i in range(kind.get_nmembers()))
    if isinstance(kind, h5py.h5t.TypeArrayID | h5py.h5t.TypeVlenID | h5py.h5t.TypeEnumID):
        return _is_usual(kind.get_super())
    return any(kind == usual for usual in _USUAL_NUMBERS)


def read_text(dataset: h5py.Dataset, path: Path | str, *, limit_bytes: int = 2**24) -> bytes:
    """Read a dataset that holds one text, as bytes.

    Parameters
    ----------
    dataset
        A scalar, or an array whose first entry is the text.
    path
        The file, for messages.
    limit_bytes
        Longest text that is accepted.

    Raises
    ------
    InputError
        If it holds something else, is longer than the limit or cannot be read.
    """
    check_type(dataset, path)
    with hdf5_errors(path, f"reading {dataset.name!r}"):
        if h5py.check_string_dtype(dataset.dtype) is None:
            raise InputError(f"{dataset.name!r} in {path} is {dataset.dtype}; expected text.")
        check_memory(dataset.size or 0, dataset.dtype.itemsize, limit_bytes, what=f"{dataset.name!r} in {path}")
        value: Any = dataset[()]
    if isinstance(value, np.ndarray) and value.size:
        value = value.flat[0]
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, bytes):
        raise InputError(f"{dataset.name!r} in {path} holds no text.")
    if len(value) > limit_bytes:
        raise InputError(f"{dataset.name!r} in {path} is {len(value)} bytes long; at most {limit_bytes} are accepted.")
    return value


def check_memory(n_items: int, item_bytes: int, limit_bytes: int, *, what: str) -> None:
    """Refuse to read more than the limit, before anything is allocated.

    Parameters
    ----------
    n_items, item_bytes
        How many items of which size would be allocated.
    limit_bytes
        Most bytes that may be allocated (``ReadOptions.memory_limit_bytes``).
    what
        What would be allocated, for the message.

    Raises
    ------
    InputError
        If the limit is exceeded.
    """
    needed = int(n_items) * int(item_bytes)
    if needed > limit_bytes:
        raise InputError(
            f"{what} would need {needed / 2**30:.3g} GiB, and the limit is {limit_bytes / 2**30:.3g} GiB: the file is "
            f"damaged, or memory_limit_bytes must be raised."
        )


def check_finite(samples: NDArray[Any], names: list[str], *, what: str) -> None:
    """Refuse samples that are not numbers.

    Parameters
    ----------
    samples
        Real or complex array.
    names
        What an index along each axis is called, for the message, such as ``["line", "coil", "sample"]``.
    what
        What the samples are, for the message.

    Raises
    ------
    InputError
        If any sample is NaN or infinite; the message says how many, and where the first one is.
    """
    finite = np.isfinite(samples)
    if finite.all():
        return
    first = np.unravel_index(int(np.argmin(finite)), samples.shape)
    where = ", ".join(f"{name} {index}" for name, index in zip(names, first, strict=True))
    n_broken = samples.size - int(finite.sum())
    raise InputError(
        f"{n_broken} of {samples.size} samples in {what} are NaN or infinite, the first at {where}; "
        f"export the scan again, or set broken samples to zero on purpose."
    )
