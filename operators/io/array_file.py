"""Files that hold named arrays: what each of them tells about its arrays, and how these are read within a limit."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from operators.errors import InputError
from operators.io.hdf5 import check_memory

Value: TypeAlias = NDArray[Any] | str | Mapping[str, "Value"]
"""What a variable of a file can be: an array, a text, or a structure of such values by name."""


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array in a file, before it is read.

    Parameters
    ----------
    name
        Its name in the file.
    shape
        Its shape in the order of the file.
    kind
        What it holds, such as ``"complex128"``, ``"float32"`` or ``"text"``.
    """

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def is_complex(self) -> bool:
        """Whether it holds complex numbers."""
        return self.kind.startswith("complex")

    @property
    def is_real(self) -> bool:
        """Whether it holds real numbers, whole or not."""
        return self.kind.startswith(("float", "int", "uint"))

    @property
    def n_elements(self) -> int:
        """Number of its elements, whatever the header claims."""
        return math.prod(int(n) for n in self.shape)

    def __str__(self) -> str:
        return f"{self.name} ({' × '.join(map(str, self.shape)) or 'scalar'} {self.kind})"


class ArrayFile(ABC):
    """An open file that holds named arrays.

    Parameters
    ----------
    path
        The file, for messages.
    arrays
        What it holds, in its order.
    """

    def __init__(self, path: Path, arrays: tuple[StoredArray, ...]) -> None:
        self.path = path
        self.arrays = arrays

    def read(self, stored: StoredArray, *, limit_bytes: int) -> NDArray[Any]:
        """Read one of the arrays.

        Parameters
        ----------
        stored
            One of ``arrays``.
        limit_bytes
            Most bytes that may be allocated for it.

        Returns
        -------
        NDArray
            The array in the order of the file; complex pairs of reals are complex numbers.

        Raises
        ------
        InputError
            If it holds no numbers, exceeds the limit, or is damaged or truncated.
        """
        if not (stored.is_complex or stored.is_real):
            raise InputError(f"{stored} in {self.path} holds no numbers.")
        check_memory(stored.n_elements, _item_bytes(stored.kind), limit_bytes, what=f"{stored} in {self.path}")
        return self._read(stored, limit_bytes)

    @abstractmethod
    def _read(self, stored: StoredArray, limit_bytes: int) -> NDArray[Any]: ...


@contextmanager
def damage_reported(path: Path | str, format_name: str) -> Iterator[None]:
    """Turn whatever a parser raises on a damaged file into one sentence; keep the block small.

    Parameters
    ----------
    path
        The file, for the message.
    format_name
        The format it was taken for, for the message.

    Raises
    ------
    InputError
        If the block fails.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # parsers raise what they like on bytes that nobody foresaw
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} could not be read as {format_name} ({reason}); it is damaged or truncated, copy it again."
        ) from error


def kind_of(dtype: np.dtype[Any]) -> str:
    """Name of what an array of this type holds, for ``StoredArray``; complex pairs of reals count as complex."""
    if dtype.kind == "c":
        return f"complex{8 * dtype.itemsize}"
    pair = _complex_pair(dtype)
    if pair is not None:
        return f"complex{16 * pair[1].itemsize}"
    if dtype.hasobject:
        return "objects"
    return "records" if dtype.names is not None else dtype.name


def with_complex_pairs(array: NDArray[Any]) -> NDArray[Any]:
    """The array; if it consists of records of a real and an imaginary part, as complex numbers."""
    pair = _complex_pair(array.dtype)
    if pair is None:
        return array
    (real, imaginary), part = pair
    combined = np.empty(array.shape, dtype=np.complex128 if part.itemsize == 8 else np.complex64)
    combined.real, combined.imag = array[real], array[imaginary]
    return combined


def _item_bytes(kind: str) -> int:
    digits = "".join(filter(str.isdigit, kind))
    return int(digits) // 8 if digits else 1


def _complex_pair(dtype: np.dtype[Any]) -> tuple[tuple[str, str], np.dtype[Any]] | None:
    """Names and type of the parts where a record type is a complex number of two equal floats side by side."""
    if dtype.names is None or len(dtype.names) != 2 or dtype.fields is None:
        return None
    first, second = dtype.names
    (part, start), (other, next_start) = dtype.fields[first][:2], dtype.fields[second][:2]
    names_fit = (first.lower(), second.lower()) in (("r", "i"), ("re", "im"), ("real", "imag"))
    same = part == other and part.kind == "f" and part.itemsize in (4, 8)
    return ((first, second), part) if names_fit and same and next_start >= start + part.itemsize else None
