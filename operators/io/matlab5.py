"""Variables of MATLAB 5 files (``save -v6`` and ``-v7``): numeric arrays, texts and structures, read without trust."""

import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from operators.errors import InputError
from operators.io.array_file import ArrayFile, StoredArray, Value, damage_reported

_ByteOrder = Literal["<", ">"]
_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_ELEMENT_TYPES = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
    16: "u1",
    17: "u2",
    18: "u4",  # text in UTF-8, UTF-16 and UTF-32
}
_UTF8 = 16
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
_STRUCT, _TEXT = 2, 4
_COMPLEX_FLAG = 0x0800
_SHAPELESS_CLASS = 17
_DESCRIPTION_BYTES = 2048
_MOST_VARIABLES = 10_000
_MOST_FIELDS = 1000
_DEEPEST_STRUCT = 8
_LONGEST_TEXT = 2**20
# Deflate cannot shrink anything by more than this factor; a larger claim is a damaged or hostile file.
_STRONGEST_COMPRESSION = 1032


@dataclass(frozen=True, slots=True)
class _Variable:
    """What a variable is, and where its bytes are."""

    array: StoredArray
    start: int
    n_stored: int
    compressed: bool


@dataclass(frozen=True, slots=True)
class _Head:
    """What precedes the content of a matrix."""

    flags: int
    shape: tuple[int, ...]
    name: str
    end: int

    @property
    def class_number(self) -> int:
        return self.flags & 0xFF

    @property
    def is_complex(self) -> bool:
        return bool(self.flags & _COMPLEX_FLAG)

    @property
    def kind(self) -> str:
        numeric = _NUMERIC_CLASSES.get(self.class_number)
        if numeric is None:
            return _OTHER_CLASSES.get(self.class_number, "unknown")
        if self.is_complex:
            return "complex64" if numeric == "float32" else "complex128"
        return numeric


class Matlab5File(ArrayFile):
    """The variables of an open MATLAB 5 file.

    Parameters
    ----------
    path
        The file, for messages.
    stream
        The open file.
    """

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._stream = stream
        self._order = _byte_order(stream.read(_HEADER_BYTES), path)
        self._variables = list(_variables(stream, self._order, path))
        super().__init__(path, tuple(variable.array for variable in self._variables))

    def read_struct(self, stored: StoredArray, *, limit_bytes: int) -> dict[str, Value]:
        """Read a structure of one element.

        Parameters
        ----------
        stored
            One of ``arrays``, of kind ``"struct"``.
        limit_bytes
            Most bytes that its content may have.

        Returns
        -------
        dict
            Its fields by name: arrays, texts and structures. Fields of other kinds are left out.

        Raises
        ------
        InputError
            If it is none or has several elements, exceeds the limit, or is damaged.
        """
        content = self._content(stored, limit_bytes)
        value = _read_value(content, self._order, limit_bytes, self.path)
        if not isinstance(value, dict):
            raise InputError(f"{stored} in {self.path} is no structure of one element.")
        return value

    def _read(self, stored: StoredArray, limit_bytes: int) -> NDArray[Any]:
        content = self._content(stored, limit_bytes)
        head = _matrix_head(content, self._order, self.path)
        return _read_numbers(content, head, self._order, str(stored), self.path)

    def _content(self, stored: StoredArray, limit_bytes: int) -> memoryview:
        """The bytes of a matrix, decompressed."""
        variable = next(variable for variable in self._variables if variable.array is stored)
        if variable.n_stored > limit_bytes:
            raise InputError(f"{stored} in {self.path} has {variable.n_stored} bytes, more than memory_limit_bytes.")
        self._stream.seek(variable.start)
        content = self._stream.read(variable.n_stored)
        if not variable.compressed:
            return memoryview(content)
        unpacker = zlib.decompressobj()
        tag = unpacker.decompress(content, 8)
        kind, n_bytes = _integers(tag, self._order)
        if kind != _MATRIX or n_bytes > _STRONGEST_COMPRESSION * variable.n_stored:
            raise InputError(f"{stored} in {self.path} is damaged: it cannot unpack to {n_bytes} bytes.")
        if n_bytes > limit_bytes:
            raise InputError(f"{stored} in {self.path} unpacks to {n_bytes} bytes, more than memory_limit_bytes.")
        unpacked = unpacker.decompress(unpacker.unconsumed_tail, n_bytes + 1)
        if len(unpacked) != n_bytes or not unpacker.eof:
            raise InputError(f"{stored} in {self.path} does not unpack to the {n_bytes} bytes it names; it is damaged.")
        return memoryview(unpacked)


@contextmanager
def open_matlab5(path: Path | str) -> Iterator[Matlab5File]:
    """Open a MATLAB 5 file.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    path = Path(path)
    with damage_reported(path, "MATLAB 5"), path.open("rb") as stream:
        yield Matlab5File(path, stream)


def _byte_order(header: bytes, path: Path) -> _ByteOrder:
    mark = header[126:128]
    if mark == b"IM":
        return "<"
    if mark == b"MI":
        return ">"
    raise InputError(f"{path} has a MATLAB header without a byte order mark; it is damaged or truncated.")


def _variables(stream: IO[bytes], order: _ByteOrder, path: Path) -> Iterator[_Variable]:
    """Walk over the variables of a file without reading their content."""
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
            content = stream.read(min(n_stored, _DESCRIPTION_BYTES))
            if compressed:
                content = zlib.decompressobj().decompress(content, _DESCRIPTION_BYTES)[8:]
            head = _matrix_head(memoryview(content), order, path)
            yield _Variable(StoredArray(head.name, head.shape, head.kind), start, n_stored, compressed)
        position = start + (n_stored if kind == _COMPRESSED else _padded(n_stored))


def _matrix_head(content: memoryview, order: _ByteOrder, path: Path) -> _Head:
    flags, position, _ = _element(content, 0, order, path)
    shape: NDArray[Any] = np.ones(2, dtype=np.int32)
    if flags.size and int(flags[0]) & 0xFF != _SHAPELESS_CLASS:
        shape, position, _ = _element(content, position, order, path)
    name, position, _ = _element(content, position, order, path)
    if flags.size != 2 or shape.dtype.itemsize != 4 or not 2 <= shape.size <= 32 or (shape < 0).any():
        raise InputError(f"{path} has a variable with a damaged description; copy the file again.")
    return _Head(int(flags[0]), tuple(int(n) for n in shape), name.tobytes().decode("latin-1"), position)


def _element(content: memoryview, position: int, order: _ByteOrder, path: Path) -> tuple[NDArray[Any], int, int]:
    """One element of a matrix as an array, where the next one begins, and the number of its type."""
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
    return np.frombuffer(content[start : start + n_bytes], dtype), following, kind


def _read_numbers(content: memoryview, head: _Head, order: _ByteOrder, what: str, path: Path) -> NDArray[Any]:
    n = math.prod(head.shape)
    real, position, _ = _element(content, head.end, order, path)
    if not head.is_complex:
        if real.size != n:
            raise InputError(f"{what} in {path} has {real.size} numbers; {n} are needed.")
        return real.astype(_NUMERIC_CLASSES[head.class_number]).reshape(head.shape, order="F")
    imaginary, _, _ = _element(content, position, order, path)
    if real.size != n or imaginary.size != n:
        raise InputError(
            f"{what} in {path} has {real.size} real and {imaginary.size} imaginary parts; {n} of each are needed."
        )
    array = np.empty(n, dtype=head.kind)
    array.real, array.imag = real, imaginary
    return array.reshape(head.shape, order="F")


def _read_value(content: memoryview, order: _ByteOrder, limit_bytes: int, path: Path, depth: int = 0) -> "Value | None":
    """A matrix as an array, a text or a structure; ``None`` if it is none of these."""
    head = _matrix_head(content, order, path)
    n = math.prod(head.shape)
    if head.class_number in _NUMERIC_CLASSES:
        if n * np.dtype(head.kind).itemsize > limit_bytes:
            raise InputError(f"{path} has a field with {n} elements, more than memory_limit_bytes allows.")
        return _read_numbers(content, head, order, "A field", path)
    if head.class_number == _TEXT:
        return _read_text(content, head, order, path) if 0 < n <= _LONGEST_TEXT else ""
    if head.class_number == _STRUCT and n == 1 and depth < _DEEPEST_STRUCT:
        return _read_fields(content, head, order, limit_bytes, path, depth)
    return None


def _read_text(content: memoryview, head: _Head, order: _ByteOrder, path: Path) -> str:
    """A text of one or more lines; MATLAB keeps one character per element, column by column."""
    codes, _, kind = _element(content, head.end, order, path)
    text = codes.tobytes().decode("utf-8", "replace") if kind == _UTF8 else "".join(map(_character, codes.tolist()))
    n_lines = head.shape[0]
    if n_lines == 1 or len(text) != math.prod(head.shape):
        return text
    return "\n".join(text[line::n_lines].rstrip() for line in range(n_lines))


def _character(code: int) -> str:
    return chr(code) if 0 <= code < 0x110000 and not 0xD800 <= code < 0xE000 else "\ufffd"


def _read_fields(
    content: memoryview, head: _Head, order: _ByteOrder, limit_bytes: int, path: Path, depth: int
) -> dict[str, Value]:
    length, position, _ = _element(content, head.end, order, path)
    names, position, _ = _element(content, position, order, path)
    n_bytes = int(length[0]) if length.size == 1 else 0
    if n_bytes < 1 or names.dtype.itemsize != 1 or names.size % n_bytes or names.size // n_bytes > _MOST_FIELDS:
        raise InputError(f"{path} has a structure with damaged field names; copy the file again.")
    fields: dict[str, Value] = {}
    for name in _split(names.tobytes(), n_bytes):
        kind, size = _integers(content[position : position + 8], order)
        start = position + 8
        if kind != _MATRIX or start + size > len(content):
            raise InputError(f"{path} has a damaged field {name!r} in a structure; copy the file again.")
        if size:  # an empty field is a matrix without content
            value = _read_value(content[start : start + size], order, limit_bytes, path, depth + 1)
            if value is not None:
                fields[name] = value
        position = start + _padded(size)
    return fields


def _split(names: bytes, n_bytes: int) -> list[str]:
    pieces = [names[start : start + n_bytes] for start in range(0, len(names), n_bytes)]
    return [piece.split(b"\0", 1)[0].decode("latin-1") for piece in pieces]


def _integers(tag: bytes | memoryview, order: _ByteOrder) -> tuple[int, int]:
    kind, n_bytes = np.frombuffer(tag, dtype=np.dtype(order + "u4"), count=2)
    return int(kind), int(n_bytes)


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // 8) * 8
