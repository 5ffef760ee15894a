"""Dictionaries in files: what is read, what is refused, and how they are shown."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from operators.dictionaries import (
    Dictionary,
    load_dictionary,
    read_dictionary,
    shipped_dictionaries,
    write_dictionary,
    write_mosaic,
)
from operators.errors import InputError
from operators.filters import dct_filters, random_filters


def stored(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_a_package_without_dictionaries_knows_families_and_files(tmp_path):
    nowhere = tmp_path / "nowhere"
    assert shipped_dictionaries(nowhere) == ()
    assert torch.equal(load_dictionary("dct-4x5", nowhere).filters, dct_filters(4, 5))
    with pytest.raises(InputError, match=r"give an \.npz or \.npy file, or a family such as"):
        load_dictionary("learned-4x5", nowhere)
    write_dictionary(tmp_path / "learned-4x5.npz", Dictionary("any", random_filters(4, 5, seed=1)))
    assert shipped_dictionaries(tmp_path) == ("learned-4x5",)
    torch.testing.assert_close(load_dictionary("learned-4x5", tmp_path).filters, random_filters(4, 5, seed=1))


def test_a_dictionary_is_read_as_it_was_written(tmp_path):
    written = Dictionary("mine", random_filters(6, 5, seed=1), {"seed": 3, "licence": "CC BY 4.0", "β": 0.5})
    path = tmp_path / "mine.npz"
    write_dictionary(path, written)
    found = read_dictionary(path)
    torch.testing.assert_close(found.filters, written.filters)
    assert (found.name, found.provenance, found.decisions) == ("mine", written.provenance, ())
    content = path.read_bytes()
    write_dictionary(path, written, overwrite=True)
    assert path.read_bytes() == content
    with pytest.raises(InputError, match="exists already"):
        write_dictionary(path, written)
    with pytest.raises(InputError, match=r"does not end in \.npz"):
        write_dictionary(tmp_path / "mine.npy", written)


@pytest.mark.parametrize("scale", [1e-300, 0.3, 2, 1e300])
def test_filters_of_another_norm_are_divided_by_it_and_that_is_said(tmp_path, scale):
    path = tmp_path / "filters.npy"
    np.save(path, random_filters(4, 5, seed=1).double().numpy() * scale)
    found = read_dictionary(path)
    torch.testing.assert_close(found.filters, random_filters(4, 5, seed=1))
    (decision,) = found.decisions
    assert decision.name == "filter_norm"
    assert "filters.npy have norms from" in decision.reason


def test_whole_numbers_and_oblong_filters_are_read(tmp_path):
    np.save(tmp_path / "sobel.npy", np.array([[[1, 0, -1]], [[1, -2, 1]]], dtype=np.int16))
    filters = read_dictionary(tmp_path / "sobel.npy").filters
    torch.testing.assert_close(filters[0, 0], torch.tensor([1.0, 0.0, -1.0]) / 2**0.5)
    assert filters.shape == (2, 1, 3)


GOOD = random_filters(3, 5, seed=0).numpy()
WITH_NAN, WITH_ZERO = GOOD.copy(), GOOD.copy()
WITH_NAN[1, 2, 2] = np.nan
WITH_ZERO[1] = 0


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"filters": WITH_NAN}, "hold values that are not finite"),
        ({"filters": WITH_ZERO}, "The filter 2 of 3 in .* is zero"),
        ({"filters": GOOD[:, :4]}, "of even size"),
        ({"filters": GOOD[0]}, r"expected real numbers \(filter, ky, kx\)"),
        ({"filters": GOOD[:0]}, r"expected real numbers \(filter, ky, kx\)"),
        ({"filters": GOOD.astype(complex)}, "expected real numbers"),
        ({"filters": GOOD.astype(object)}, "expected real numbers"),
        ({"filters": np.full((2, 3, 3), "a")}, "expected real numbers"),
        ({"filters": np.zeros((2, 4097, 2049), np.uint8)}, "limit|too large|memory"),
        ({"atoms": GOOD}, "has no array 'filters'; it has atoms"),
        ({"filters": GOOD, "provenance": np.zeros(3)}, "is no provenance"),
        ({"filters": GOOD, "provenance": np.frombuffer(b"{not json", np.uint8)}, "could not be read"),
        ({"filters": GOOD, "provenance": np.frombuffer(b"[1]", np.uint8)}, "no JSON object of texts and numbers"),
        ({"filters": GOOD, "provenance": np.frombuffer(b'{"a": [1]}', np.uint8)}, "no JSON object of texts"),
        ({"filters": GOOD, "provenance": np.frombuffer(b"[" * 60000, np.uint8)}, "could not be read"),
        ({"filters": GOOD, "provenance": np.zeros(2**17, np.uint8)}, "limit|too large|memory"),
    ],
)
def test_what_is_no_dictionary_is_refused(tmp_path, arrays, sentence):
    with pytest.raises(InputError, match=sentence):
        read_dictionary(stored(tmp_path / "bad.npz", **arrays))


def test_missing_foreign_and_truncated_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_dictionary(tmp_path / "missing.npz")
    with pytest.raises(InputError, match="cannot be read"):
        read_dictionary(tmp_path)
    for content in (b"", b"PK", b"weights", b"\x93NUMPY"):
        (tmp_path / "foreign.npz").write_bytes(content)
        with pytest.raises(InputError):
            read_dictionary(tmp_path / "foreign.npz")
    whole = stored(tmp_path / "whole.npz", filters=GOOD).read_bytes()
    for length in range(0, len(whole), 37):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_dictionary(tmp_path / "cut.npz")
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    with pytest.raises(InputError, match="has no array 'filters'; it has none"):
        read_dictionary(tmp_path / "empty.npz")


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_changed_byte_gives_filters_or_one_sentence(tmp_path_factory, place, value):
    folder = tmp_path_factory.mktemp("changed")
    content = bytearray(stored(folder / "whole.npz", filters=GOOD).read_bytes())
    content[place % len(content)] = value
    (folder / "changed.npz").write_bytes(content)
    try:
        filters = read_dictionary(folder / "changed.npz").filters
    except InputError:
        return
    assert bool(filters.isfinite().all())


def test_the_mosaic_shows_every_filter(tmp_path):
    filters = torch.zeros(10, 3, 5)
    filters[:, 1, 2] = torch.where(torch.arange(10) == 9, -0.5, 0.5)
    write_mosaic(tmp_path / "filters.png", filters)
    picture = imread(tmp_path / "filters.png")[::8, ::8, 0]
    assert picture.shape == (2 * 4 + 1, 8 * 6 + 1)
    assert (picture[2, 3::6] == 1).all()
    assert picture[6, 3] == 1
    assert picture[6, 9] == 0
    assert abs(float(picture[1, 1]) - 0.5) < 0.01
    assert (picture[5:, 14:] == 0).all()
    with pytest.raises(InputError, match=r"does not end in \.png"):
        write_mosaic(tmp_path / "filters.jpg", filters)


def test_provenance_is_json_in_bytes_that_anybody_can_read(tmp_path):
    write_dictionary(tmp_path / "d.npz", Dictionary("d", torch.from_numpy(GOOD), {"seed": 1}))
    with np.load(tmp_path / "d.npz", allow_pickle=False) as archive:
        assert json.loads(archive["provenance"].tobytes()) == {"seed": 1}
        assert archive["filters"].dtype == np.float32
