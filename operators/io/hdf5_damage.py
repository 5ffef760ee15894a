"""Damage on which the HDF5 library itself would hang, crash or exhaust the memory, found before it reads any data."""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from operators.errors import InputError

_HEAP_SIGNATURE = b"GCOL"
_SMALLEST_HEAP = 4096
_HEAP_HEADER = struct.Struct("<4sB3xQ")
_OBJECT_HEADER = struct.Struct("<HHIQ")
# A variable-length entry is a count, an address and an index: 4 + 8 + 4 bytes.
_ENTRY_BYTES = 16
_MOST_DATASETS = 10_000
_DEEPEST_TYPE = 32


def check_heaps(path: Path | str) -> None:
    """Refuse a file with a damaged heap of variable-length data; to be called before the file is opened.

    Reading such data, HDF5 (2.0 and before) steps from object to object by the sizes they state, and a size of zero
    keeps it stepping on the spot for ever. Text headers and the samples of ISMRMRD files lie in such heaps.

    Parameters
    ----------
    path
        An HDF5 file that is not empty.

    Raises
    ------
    InputError
        If the objects of a heap do not fill it.
    """
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(_HEAP_SIGNATURE)
        while start >= 0:
            if start + _HEAP_HEADER.size <= len(content):
                _, version, size = _HEAP_HEADER.unpack_from(content, start)
                # A larger size than the file the library refuses by itself; or these bytes are samples and no heap.
                is_heap = version == 1 and _SMALLEST_HEAP <= size <= len(content)
                if is_heap and not _is_filled(content, start, size):
                    raise InputError(f"{path} is damaged: a block of data at byte {start} is broken; copy it again.")
            start = content.find(_HEAP_SIGNATURE, start + len(_HEAP_SIGNATURE))


def check_datasets(file: h5py.File, path: Path | str) -> None:
    """Refuse an open file with an impossible data type or length; to be called before data are read.

    HDF5 (2.0 and before) writes past its buffers where the members of a record overlap or leave it, calls null pointers
    for lists of an unknown kind, and allocates whatever an entry of variable length claims. What the numbers themselves
    are like is checked by `operators.io.hdf5.check_type` before they are read.

    Parameters
    ----------
    file
        The open file.
    path
        Its path, for messages.

    Raises
    ------
    InputError
        If a type contradicts itself, or an entry claims to be longer than the file.
    """
    with open(path, "rb") as stream:
        datasets: list[h5py.Dataset] = []

        def collect(_: str, item: Any) -> bool | None:
            if isinstance(item, h5py.Dataset):
                datasets.append(item)
            return True if len(datasets) == _MOST_DATASETS else None

        file.visititems(collect)
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for dataset in datasets:
                kind = dataset.id.get_type()
                if not _is_sound(kind):
                    raise InputError(f"{path} is damaged: the type of {dataset.name!r} is impossible; copy it again.")
                _check_lengths(dataset, kind, content, path)


def _is_filled(content: mmap.mmap, start: int, size: int) -> bool:
    """Whether the objects of a heap, one after the other, reach its end."""
    position, end = start + _HEAP_HEADER.size, start + size
    if end > len(content):
        return False
    while position + _OBJECT_HEADER.size <= end:
        index, _, _, n_bytes = _OBJECT_HEADER.unpack_from(content, position)
        # Index 0 is the free space at the end; its size counts its own header, and sizes are padded to 8 bytes.
        step = n_bytes if index == 0 else _OBJECT_HEADER.size + (n_bytes + 7) // 8 * 8
        if step < _OBJECT_HEADER.size:
            return False
        position += step
    return position <= end


def _is_sound(kind: h5py.h5t.TypeID, depth: int = 0) -> bool:
    """Whether the members of a record lie side by side inside it, and variable-length entries have their one size."""
    if depth > _DEEPEST_TYPE:
        return False
    if isinstance(kind, h5py.h5t.TypeVlenID):
        # The low half of byte 3 says what the entries are: 0 = sequences; texts (1) are no TypeVlenID.
        is_sequence = kind.get_size() == _ENTRY_BYTES and kind.encode()[3] & 0x0F == 0
        return is_sequence and _is_sound(kind.get_super(), depth + 1)
    if isinstance(kind, h5py.h5t.TypeArrayID):
        element = kind.get_super()
        n = int(np.prod(kind.get_array_dims(), dtype=object))
        return n * element.get_size() == kind.get_size() and _is_sound(element, depth + 1)
    if isinstance(kind, h5py.h5t.TypeCompoundID):
        end = 0
        for start, member in sorted(_members(kind), key=lambda member: member[0]):
            if start < end or not _is_sound(member, depth + 1):
                return False
            end = start + member.get_size()
        return end <= kind.get_size()
    return True


def _check_lengths(dataset: h5py.Dataset, kind: h5py.h5t.TypeID, content: mmap.mmap, path: Path | str) -> None:
    """Compare the variable-length entries of a dataset, as stored without compression, with the size of the file."""
    members = _members(kind) if isinstance(kind, h5py.h5t.TypeCompoundID) else [(0, kind)]
    variable = [(start, member) for start, member in members if _is_variable_length(member)]
    if not variable or dataset.id.get_create_plist().get_nfilters():
        return
    item_bytes = _ENTRY_BYTES if _is_variable_length(kind) else kind.get_size()
    for block in _stored_blocks(dataset, item_bytes, content):
        for start, member in variable:
            is_text = isinstance(member, h5py.h5t.TypeStringID)
            longest = int(block[:, start : start + 4].copy().view("<u4").max(initial=0))
            n_bytes = longest * (1 if is_text else member.get_super().get_size())
            if n_bytes > len(content):
                raise InputError(
                    f"{path} is damaged: an entry of {dataset.name!r} claims {n_bytes} bytes, and the whole file has "
                    f"{len(content)}; copy it again."
                )


def _stored_blocks(dataset: h5py.Dataset, item_bytes: int, content: mmap.mmap) -> Iterator[NDArray[np.uint8]]:
    """The bytes of a dataset as they stand in the file, ``(item, byte)``, block by block."""
    places: list[tuple[int, int]] = []
    if dataset.chunks:
        dataset.id.chunk_iter(lambda chunk: places.append((chunk.byte_offset, chunk.size)))
    elif dataset.id.get_offset() is not None:
        places.append((dataset.id.get_offset(), dataset.id.get_storage_size()))
    for start, size in places:
        block = np.frombuffer(content[start : start + size], dtype=np.uint8)
        yield block[: block.size // item_bytes * item_bytes].reshape(-1, item_bytes)


def _members(kind: h5py.h5t.TypeCompoundID) -> list[tuple[int, h5py.h5t.TypeID]]:
    return [(kind.get_member_offset(i), kind.get_member_type(i)) for i in range(kind.get_nmembers())]


def _is_variable_length(kind: h5py.h5t.TypeID) -> bool:
    return isinstance(kind, h5py.h5t.TypeVlenID) or (
        isinstance(kind, h5py.h5t.TypeStringID) and bool(kind.is_variable_str())
    )
