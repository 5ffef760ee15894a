"""Reading k-space arrays from MATLAB files (version 5 and 7.3) and from HDF5 files that hold plain arrays."""

import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from mrirecon.io.arrays import (
    ArrayLayout,
    StoredArray,
    as_complex,
    axes_needed,
    check_array_memory,
    choose_array,
    damage_reported,
    kind_of,
    kspace_from_array,
    layout_by_shape,
)
from mrirecon.io.options import ReadOptions
from mrirecon.kspace import KSpace
from operators.errors import InputError
from operators.io.hdf5 import check_type, open_hdf5

_DEFAULTS = ReadOptions()
# The 0.055 T scanner: evidence for the field of view is in the reason that is logged with it.
_READOUT_SAMPLES = 128
_READOUT_FOV_MM = 250.0
_PHASE_FOV_MM = 250.0 * 126 / 128
_SLICE_MM = 10.0

_ByteOrder = Literal["<", ">"]
_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_ELEMENT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES = {
    6: "float64",
    7: "float32",
    8: "int8",
    9: "uint8",
    10: "int16",
    11: "uint16",
    12: "int32",
    13: "uint32",
    14: "int64",
    15: "uint64",
}
_OTHER_CLASSES = {1: "cell", 2: "struct", 3: "object", 4: "text", 5: "sparse", 16: "function", 17: "object"}
_COMPLEX_FLAG = 0x0800
_SHAPELESS_CLASS = 17
_DESCRIPTION_BYTES = 2048
_MOST_VARIABLES = 10_000
# Deflate cannot shrink anything by more than this factor; a larger claim is a damaged or hostile file.
_STRONGEST_COMPRESSION = 1032


@dataclass(frozen=True, slots=True)
class _Variable:
    """A variable of a MATLAB 5 file: what it is, and where its bytes are."""

    array: StoredArray
    start: int
    n_stored: int
    compressed: bool


def read_matlab5(path: Path | str, options: ReadOptions = _DEFAULTS) -> KSpace:
    """Read one complex array of a MATLAB 5 file (the default of MATLAB's and Octave's ``save -v6`` and ``-v7``).

    An array called ``kspace`` or ``ksp`` is taken to be laid out like the published 0.055 T scans: (readout, phase,
    slice, repetition), one coil, and its image is the forward transform.

    Parameters
    ----------
    path
        A ``.mat`` file.
    options
        Overrides of decisions; ``variable`` chooses the array, otherwise it is the largest complex one.

    Returns
    -------
    KSpace
        The scan.

    Raises
    ------
    InputError
        If the file is damaged, or holds no k-space.
    """
    path = Path(path)
    with damage_reported(path, "MATLAB 5"), path.open("rb") as stream:
        order = _byte_order(stream.read(_HEADER_BYTES), path)
        variables = list(_variables(stream, order, path))
        stored, decisions = choose_array([variable.array for variable in variables], options, path)
        check_array_memory(stored, options, path)
        chosen = next(variable for variable in variables if variable.array is stored)
        content = memoryview(_content(stream, chosen, order, options, path))
        array = _read_matrix(content, order, stored, path)
    layout = _layout(stored, options, path)
    return kspace_from_array(array, options, layout, source=f"{stored.name} in {path}", decisions=decisions)


def read_hdf5_array(path: Path | str, options: ReadOptions = _DEFAULTS) -> KSpace:
    """Read one complex array of an HDF5 file that follows no raw-data standard, or of a MATLAB 7.3 file.

    Arrays of MATLAB are understood as in ``read_matlab5``, others as in ``read_npy``. Complex numbers may be records
    of a real and an imaginary part.

    Parameters
    ----------
    path
        The file.
    options
        Overrides of decisions; ``variable`` chooses the array by its path, otherwise it is the largest complex one.

    Returns
    -------
    KSpace
        The scan.

    Raises
    ------
    InputError
        If the file is damaged, or holds no k-space.
    """
    path = Path(path)
    with open_hdf5(path) as file, damage_reported(path, "HDF5"):
        datasets = _datasets(file)
        matlab = is_matlab73(file)
        arrays = [
            StoredArray(name, dataset.shape[::-1] if matlab else dataset.shape, _kind_of_dataset(dataset))
            for name, dataset in datasets.items()
        ]
        stored, decisions = choose_array(arrays, options, path)
        check_array_memory(stored, options, path)
        dataset = datasets[stored.name]
        check_type(dataset, path)
        _check_chunks(dataset, options, path)
        array = as_complex(dataset[()])
    layout = _layout(stored, options, path) if matlab else layout_by_shape(stored.shape, options, path)
    return kspace_from_array(
        array.T if matlab else array, options, layout, source=f"{stored.name} in {path}", decisions=decisions
    )


def is_matlab73(file: h5py.File) -> bool:
    """Whether an open HDF5 file was written by MATLAB: by its text before the HDF5 part, or by marked variables."""
    if file.userblock_size:
        with open(file.filename, "rb") as stream:
            if stream.read(10) == b"MATLAB 7.3":
                return True
    return any("MATLAB_class" in item.attrs for item in map(file.get, list(file)[:100]) if item is not None)


def _layout(stored: StoredArray, options: ReadOptions, path: Path) -> ArrayLayout:
    shape, name = stored.shape, stored.name.rsplit("/", 1)[-1].lower()
    if name not in ("kspace", "ksp") or not 2 <= len(shape) <= 4:
        if len(shape) > 2 and not options.axes:
            raise InputError(axes_needed(shape, path, "ky,kx,coil"))
        return layout_by_shape(shape, options, path)
    axes = options.axes or ("ky", "kx", "slice", "repetition")[: len(shape)]
    as_published = ArrayLayout(
        axes,
        "An array called kspace or ksp is taken to be (readout, phase, slice, repetition) of one coil, as published "
        "for the 0.055 T scanner.",
        fourier_sign="forward",
        sign_reason="The published images are the forward transform; the samples were conjugated.",
        axes_doubtful=shape[0] != _READOUT_SAMPLES,
        orientation="image rows = readout, as published",
        orientation_reason="The published images show heads upright.",
    )
    if shape[0] != _READOUT_SAMPLES or set(axes[:2]) != {"ky", "kx"}:
        return as_published
    spacing_mm = {axes[0]: _READOUT_FOV_MM / _READOUT_SAMPLES, axes[1]: _PHASE_FOV_MM / shape[1]}
    return replace(
        as_published,
        voxel_mm=(spacing_mm["kx"], spacing_mm["ky"], _SLICE_MM),
        voxel_reason="The file carries none; the published protocol of the 0.055 T scanner has a field of view of "
        "250 mm over 128 readout samples and slices of 10 mm, and its phase field of view measures 0.984 of that.",
    )


def _byte_order(header: bytes, path: Path) -> _ByteOrder:
    mark = header[126:128]
    if mark == b"IM":
        return "<"
    if mark == b"MI":
        return ">"
    raise InputError(f"{path} has a MATLAB header without a byte order mark; it is damaged or truncated.")


def _variables(stream: IO[bytes], order: _ByteOrder, path: Path) -> Iterator[_Variable]:
    """Walk over the variables of a MATLAB 5 file without reading their samples."""
    size = os.fstat(stream.fileno()).st_size
    position = _HEADER_BYTES
    for _ in range(_MOST_VARIABLES):
        if position + 8 > size:
            return
        stream.seek(position)
        kind, n_stored = _integers(stream.read(8), order)
        start = position + 8
        if start + n_stored > size:
            raise InputError(
                f"{path} is truncated: its variable at byte {position} needs {n_stored} bytes and {size - start} are "
                f"left; copy the file again."
            )
        if kind in (_MATRIX, _COMPRESSED):
            compressed = kind == _COMPRESSED
            head = stream.read(min(n_stored, _DESCRIPTION_BYTES))
            if compressed:
                head = zlib.decompressobj().decompress(head, _DESCRIPTION_BYTES)[8:]
            yield _Variable(_describe(head, order, path), start, n_stored, compressed)
        position = start + (n_stored if kind == _COMPRESSED else _padded(n_stored))


def _describe(content: bytes, order: _ByteOrder, path: Path) -> StoredArray:
    flags, shape, name, _ = _matrix_head(memoryview(content), order, path)
    kind = _NUMERIC_CLASSES.get(flags & 0xFF)
    if kind is None:
        kind = _OTHER_CLASSES.get(flags & 0xFF, "unknown")
    elif flags & _COMPLEX_FLAG:
        kind = "complex64" if kind == "float32" else "complex128"
    return StoredArray(name, shape, kind)


def _matrix_head(content: memoryview, order: _ByteOrder, path: Path) -> tuple[int, tuple[int, ...], str, int]:
    """Flags, shape and name of a matrix, and where its samples begin."""
    flags, position = _element(content, 0, order, path)
    shape: NDArray[Any] = np.ones(2, dtype=np.int32)
    if flags.size and int(flags[0]) & 0xFF != _SHAPELESS_CLASS:
        shape, position = _element(content, position, order, path)
    name, position = _element(content, position, order, path)
    if flags.size != 2 or shape.dtype.itemsize != 4 or not 2 <= shape.size <= 32 or (shape < 0).any():
        raise InputError(f"{path} has a variable with a damaged description; copy the file again.")
    return int(flags[0]), tuple(int(n) for n in shape), name.tobytes().decode("latin-1"), position


def _element(content: memoryview, position: int, order: _ByteOrder, path: Path) -> tuple[NDArray[Any], int]:
    """One element of a matrix as an array, and where the next one begins."""
    kind, n_bytes = _integers(content[position : position + 8], order)
    start = position + 8
    if kind >> 16:  # up to four bytes are kept inside the tag
        kind, n_bytes, start = kind & 0xFFFF, kind >> 16, position + 4
        following = position + 8
    else:
        following = start + _padded(n_bytes)
    if kind not in _ELEMENT_TYPES or start + n_bytes > len(content) or (following == position + 8 and n_bytes > 4):
        raise InputError(f"{path} has a damaged variable at byte {position} of its description; copy the file again.")
    dtype = np.dtype(order + _ELEMENT_TYPES[kind])
    if n_bytes % dtype.itemsize:
        raise InputError(f"{path} has a damaged variable at byte {position} of its description; copy the file again.")
    return np.frombuffer(content[start : start + n_bytes], dtype), following


def _content(stream: IO[bytes], variable: _Variable, order: _ByteOrder, options: ReadOptions, path: Path) -> bytes:
    """The bytes of a matrix, decompressed."""
    stream.seek(variable.start)
    content = stream.read(variable.n_stored)
    if not variable.compressed:
        return content
    unpacker = zlib.decompressobj()
    tag = unpacker.decompress(content, 8)
    kind, n_bytes = _integers(tag, order)
    if kind != _MATRIX or n_bytes > _STRONGEST_COMPRESSION * variable.n_stored:
        raise InputError(f"{variable.array} in {path} is damaged: it cannot unpack to {n_bytes} bytes.")
    if n_bytes > options.memory_limit_bytes:
        raise InputError(f"{variable.array} in {path} unpacks to {n_bytes} bytes, more than memory_limit_bytes.")
    unpacked = unpacker.decompress(unpacker.unconsumed_tail, n_bytes + 1)
    if len(unpacked) != n_bytes or not unpacker.eof:
        raise InputError(f"{variable.array} in {path} does not unpack to the {n_bytes} bytes it names; it is damaged.")
    return unpacked


def _read_matrix(content: memoryview, order: _ByteOrder, stored: StoredArray, path: Path) -> NDArray[Any]:
    _, shape, _, position = _matrix_head(content, order, path)
    real, position = _element(content, position, order, path)
    imaginary, _ = _element(content, position, order, path)
    n = math.prod(shape)
    if real.size != n or imaginary.size != n:
        raise InputError(
            f"{stored} in {path} has {real.size} real and {imaginary.size} imaginary parts; {n} of each are needed."
        )
    array = np.empty(n, dtype=np.complex64 if stored.kind == "complex64" else np.complex128)
    array.real, array.imag = real, imaginary
    return array.reshape(shape, order="F")


def _integers(tag: bytes | memoryview, order: _ByteOrder) -> tuple[int, int]:
    kind, n_bytes = np.frombuffer(tag, dtype=np.dtype(order + "u4"), count=2)
    return int(kind), int(n_bytes)


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // 8) * 8


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Every array in the file by its path, without MATLAB's own bookkeeping."""
    found: dict[str, h5py.Dataset] = {}

    def collect(name: str, item: Any) -> bool | None:
        if isinstance(item, h5py.Dataset) and item.shape is not None and not name.startswith("#"):
            found[name] = item
        return True if len(found) == _MOST_VARIABLES else None

    file.visititems(collect)
    return found


def _kind_of_dataset(dataset: h5py.Dataset) -> str:
    try:
        return kind_of(dataset.dtype)
    except (TypeError, ValueError):
        return "of a type without equivalent"


def _check_chunks(dataset: h5py.Dataset, options: ReadOptions, path: Path) -> None:
    n_bytes = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if n_bytes > options.memory_limit_bytes:
        raise InputError(f"{dataset.name} in {path} is stored in chunks of {n_bytes} bytes; the file is damaged.")
