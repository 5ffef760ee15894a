"""MATLAB 5 files as scipy writes them, and as nobody should."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from operators.errors import InputError
from operators.io.array_file import StoredArray
from operators.io.matlab5 import open_matlab5

LIMIT = 2**20


def mat(folder: Path, *, compressed: bool = False, **variables: Any) -> Path:
    path = folder / "file"
    with path.open("wb") as stream:
        scipy.io.savemat(stream, variables, do_compression=compressed)
    return path


def the_struct(path: Path, *, limit_bytes: int = LIMIT) -> Any:
    with open_matlab5(path) as file:
        return file.read_struct(file.arrays[0], limit_bytes=limit_bytes)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "c16", "c8"])
def test_arrays_of_every_type_come_back(tmp_path: Path, dtype: str, compressed: bool) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    with open_matlab5(mat(tmp_path, compressed=compressed, a=array, b=array[0] * 2)) as file:
        assert [stored.name for stored in file.arrays] == ["a", "b"]
        assert file.arrays[0] == StoredArray("a", (2, 3, 4), np.dtype(dtype).name)
        found = file.read(file.arrays[0], limit_bytes=LIMIT)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, array)
        np.testing.assert_array_equal(file.read(file.arrays[1], limit_bytes=LIMIT), array[0] * 2)


@pytest.mark.parametrize("compressed", [False, True])
def test_structures_texts_and_structures_in_them(tmp_path: Path, compressed: bool) -> None:
    content = {
        "matrix": np.arange(6.0).reshape(2, 3),
        "number": 3.5,
        "flags": np.array([True, False]),
        "text": "Zürich, in mm",
        "nothing": "",
        "lines": np.array(["one", "three"]),
        "inner": {"angles": np.arange(4, dtype=np.uint8), "deeper": {"unit": "kV"}},
        "cells": np.array([1, "a"], dtype=object),
    }
    found = the_struct(mat(tmp_path, compressed=compressed, s=content))
    np.testing.assert_array_equal(found["matrix"], content["matrix"])
    assert found["number"].item() == 3.5
    assert found["flags"].tolist() == [[1, 0]]
    assert found["text"] == "Zürich, in mm"
    assert found["nothing"] == ""
    assert found["lines"] == "one\nthree"
    assert found["inner"]["deeper"] == {"unit": "kV"}
    np.testing.assert_array_equal(found["inner"]["angles"].ravel(), np.arange(4))
    assert "cells" not in found


def test_what_is_no_structure_of_one_element_is_refused(tmp_path: Path) -> None:
    several = np.zeros((1, 2), dtype=[("a", object)])
    for variable in (several, np.eye(3), "text"):
        with pytest.raises(InputError, match="no structure of one element"):
            the_struct(mat(tmp_path, s=variable))


def test_texts_and_structures_are_no_arrays(tmp_path: Path) -> None:
    with open_matlab5(mat(tmp_path, s={"a": 1.0}, t="text")) as file:
        for stored in file.arrays:
            with pytest.raises(InputError, match="holds no numbers"):
                file.read(stored, limit_bytes=LIMIT)


@pytest.mark.parametrize("compressed", [False, True])
def test_the_limit_holds_for_structures_and_their_fields(tmp_path: Path, compressed: bool) -> None:
    path = mat(tmp_path, compressed=compressed, s={"a": np.zeros((100, 100))})
    with pytest.raises(InputError, match="more than memory_limit_bytes"):
        the_struct(path, limit_bytes=1000)
    # MATLAB and scipy store whole numbers in single bytes; as doubles they need eight times as much.
    with pytest.raises(InputError, match="limit"):
        the_struct(mat(tmp_path, compressed=compressed, s={"a": np.zeros((100, 100))}), limit_bytes=79_000)


def test_endless_nesting_is_cut_off(tmp_path: Path) -> None:
    nested: dict[str, Any] = {"end": 1.0}
    for _ in range(20):
        nested = {"in": nested}
    found = the_struct(mat(tmp_path, s=nested))
    depth = 0
    while "in" in found:
        found, depth = found["in"], depth + 1
    assert depth < 10
    assert found == {}


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content.ljust(-(-len(content) // 8) * 8, b"\0")


def structure(field_length: bytes, names: bytes, fields: bytes) -> bytes:
    flags = element(6, struct.pack("<II", 2, 0))
    matrix = flags + element(5, struct.pack("<ii", 1, 1)) + element(1, b"s") + field_length + names + fields
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + element(14, matrix)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (structure(element(5, struct.pack("<i", 0)), element(1, b"abcd"), b""), "damaged field names"),
        (structure(element(5, struct.pack("<i", 3)), element(1, b"abcd"), b""), "damaged field names"),
        (structure(element(5, struct.pack("<i", -4)), element(1, b"abcd"), b""), "damaged field names"),
        (structure(element(5, struct.pack("<i", 1)), element(1, bytes(2000)), b""), "damaged field names"),
        (structure(element(5, struct.pack("<i", 4)), element(1, b"abcd"), b""), "could not be read as MATLAB 5"),
        (
            structure(element(5, struct.pack("<i", 4)), element(1, b"abcd"), element(9, bytes(8))),
            "damaged field 'abcd'",
        ),
        (
            structure(element(5, struct.pack("<i", 4)), element(1, b"abcd"), struct.pack("<II", 14, 2**31)),
            "damaged field 'abcd'",
        ),
    ],
)
def test_damaged_structures_say_so(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=message):
        the_struct(tmp_path / "file")


def test_an_empty_field_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(structure(element(5, struct.pack("<i", 4)), element(1, b"abcd"), element(14, b"")))
    assert the_struct(path) == {}
