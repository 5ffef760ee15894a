"""Dictionaries by name and in files: what is shipped, what is refused, and how one is learned from images."""

import json
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from mrirecon import cli
from mrirecon.dictionaries import (
    Dictionary,
    DrawnDictionaries,
    learn_from_files,
    load_dictionary,
    read_dictionary,
    shipped_dictionaries,
    write_dictionary,
    write_mosaic,
)
from operators.errors import InputError
from operators.filters import dct_filters, gabor_filters, random_filters, wavelet_filters
from tests.reference.command_line import Run, files_in, runner


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process."""
    return runner(cli.main, capsys)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A volume of three slices with edges in it."""
    path = tmp_path / "image.nii.gz"
    y, x = np.mgrid[:48, :48] - 23.5
    slices = [(np.hypot(y, x * (1 + n / 5)) < 18) + 0.5 * (np.hypot(y - 4, x + n) < 7) for n in range(3)]
    nibabel.save(nibabel.Nifti1Image(np.stack(slices, axis=-1).astype(np.float32), np.diag([2.0, 2.0, 5.0, 1.0])), path)
    return path


def stored(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_every_shipped_dictionary_says_what_it_is():
    names = shipped_dictionaries()
    assert "learned-32x9" in names
    assert len(names) == 6
    for name in names:
        found = load_dictionary(name)
        n, size = map(int, name.split("-")[1].split("x"))
        assert found.name == name
        assert (found.filters.shape, found.filters.dtype) == ((n, size, size), torch.float32)
        torch.testing.assert_close(found.filters.square().sum(dim=(1, 2)), torch.ones(n))
        assert float(found.filters.sum(dim=(1, 2)).abs().max()) < 1e-5
        assert found.decisions == ()
        assert found.provenance["command"].startswith("mrirecon learn-dictionary lowfield_data.toml")
        assert found.provenance["licence"] == "CC BY 4.0"
        assert "ms-04" not in found.provenance["data"]
        assert "low-field-4" not in found.provenance["data"]
        assert {"seed", "sparsity", "smoothness", "steps", "version"} <= set(found.provenance)


def test_families_are_built_by_name():
    assert torch.equal(load_dictionary("dct-32x9").filters, dct_filters(32, 9))
    assert torch.equal(load_dictionary("gabor-16x5").filters, gabor_filters(16, 5))
    assert torch.equal(load_dictionary("wavelet-24x7").filters, wavelet_filters(24, 7))
    assert torch.equal(load_dictionary("random-8x5").filters, random_filters(8, 5, seed=0))
    assert torch.equal(load_dictionary("random-8x5-7").filters, random_filters(8, 5, seed=7))
    assert load_dictionary("dct-32x9").name == "dct-32x9"


FAMILIES = ("learned", "dct", "gabor", "wavelet", "random")


def test_dictionaries_are_drawn_in_their_share_and_ranges(generator):
    drawn = DrawnDictionaries(share=0.7, families=FAMILIES, n=(8, 32), size=(5, 9))
    found = [drawn.draw(generator) for _ in range(300)]
    given = [filters for filters in found if filters is not None]
    assert len(given) == pytest.approx(0.7 * 300, abs=24)  # three standard deviations
    for filters in given:
        n, size, other = filters.shape
        assert size == other
        assert 8 <= n <= 32
        assert size in (5, 7, 9)
        assert filters.dtype == torch.float32
        torch.testing.assert_close(filters.square().sum(dim=(1, 2)), torch.ones(n))
    assert {filters.shape[1] for filters in given} == {5, 7, 9}
    assert len({filters.shape[0] for filters in given}) > 15
    assert len({filters.numpy().tobytes() for filters in given}) > 100


@pytest.mark.parametrize("family", FAMILIES[:-1])
def test_only_the_families_asked_for_are_drawn(family, generator):
    drawn = DrawnDictionaries(share=1, families=(family,), n=(16, 40), size=(5, 9))
    for _ in range(8):
        filters = drawn.draw(generator)
        n, size, _ = filters.shape
        names = shipped_dictionaries() if family == "learned" else [f"{family}-{n}x{size}"]
        assert any(torch.equal(load_dictionary(name).filters, filters) for name in names)


def test_the_same_generator_draws_the_same_dictionaries_and_leaves_the_global_one_alone():
    drawn = DrawnDictionaries(share=1, families=("random",), n=(8, 32), size=(5, 9))
    state = torch.get_rng_state()
    one, same, other = (drawn.draw(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert one.shape != other.shape or not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_learned_dictionaries_out_of_the_ranges_stay_unseen():
    within = DrawnDictionaries(share=1, families=("learned",), n=(16, 32), size=(7, 7))
    assert within.learned == ("learned-16x7", "learned-24x7")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("dct-32x8", "dct-32x8: size is 8; expected an odd number"),
        ("dct-25x5", "There are 24 distinct DCT filters of size 5"),
        ("random-0x5", "n is 0"),
        ("dct-8x5-3", "dct filters have no seed"),
        ("learned-9x9", "neither a file nor a known dictionary"),
        ("dct-99999x9", "neither a file nor a known dictionary"),
        ("", "neither a file nor a known dictionary"),
    ],
)
def test_unknown_names_are_refused(name, sentence):
    with pytest.raises(InputError, match=sentence):
        load_dictionary(name)


def test_a_dictionary_is_read_as_it_was_written(tmp_path):
    written = Dictionary("mine", random_filters(6, 5, seed=1), {"seed": 3, "licence": "CC BY 4.0", "β": 0.5})
    path = tmp_path / "mine.npz"
    write_dictionary(path, written)
    found = load_dictionary(path)
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


WORDS = ("--filters", 4, "--size", 5, "--steps", 2, "--matrix", 32)


def test_the_command_learns_and_the_file_says_how(image, tmp_path, run):
    done = run("learn-dictionary", image, "-o", tmp_path / "mine.npz", *WORDS, "--preview")
    assert done.status == 0, done.err
    assert "4 filters of 5 × 5" in done.err
    assert files_in(tmp_path) == {"image.nii.gz", "mine.npz", "mine.png"}
    found = load_dictionary(tmp_path / "mine.npz")
    assert found.filters.shape == (4, 5, 5)
    assert found.provenance["data"] == "image.nii.gz"
    again = found.provenance["command"].split()[1:]
    assert run(again[0], image, *again[2:], "-o", tmp_path / "again.npz").status == 0
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "mine.npz").read_bytes()
    assert run("learn-dictionary", image, "-o", tmp_path / "mine.npz", *WORDS).status == 2


def test_stacks_in_an_archive_are_all_used(tmp_path, run):
    drawn = torch.rand(2, 40, 40, generator=torch.Generator().manual_seed(1)).numpy()
    path = stored(tmp_path / "stacks.npz", t1=drawn, t2=drawn[:, ::-1], spacing=np.ones(3))
    learned = learn_from_files([path], n_filters=4, filter_size=5, n_steps=1, matrix=32)
    assert learned.filters.shape == (4, 5, 5)
    assert learned.name == "learned-4x5"


@pytest.mark.realdata
def test_data_for_training_are_described_in_one_file(data_folder, tmp_path, run, monkeypatch):
    monkeypatch.setenv("MRCTRECON_DATA", str(data_folder))
    archive = "mri/lowfield_0p055T/patient{}/3T.npz"
    people = {f"person-{n}": archive.format(n) for n in (1, 3, 4)}
    lines = ['description = "Three heads."', 'licence = "CC0"', "matrix = 64"]
    lines += [f'{split} = ["{name}"]' for split, name in zip(("train", "validation", "test"), people, strict=True)]
    for name, path in people.items():
        lines += ["[[sources]]", 'kind = "npz"', f'path = "{path}"', 'key = "t1w"', f'patient = "{name}"']
        lines += ['contrast = "t1"']
    (tmp_path / "data.toml").write_text("\n".join(lines))
    assert run("learn-dictionary", tmp_path / "data.toml", "-o", tmp_path / "d.npz", *WORDS[:6]).status == 0
    provenance = load_dictionary(tmp_path / "d.npz").provenance
    assert provenance["data"] == "Three heads. People: person-1."
    assert (provenance["licence"], provenance["matrix"]) == ("CC0", 64)


def test_what_cannot_be_learned_from_is_one_sentence(image, tmp_path, run):
    target = ("-o", tmp_path / "d.npz")
    cases = {
        "There is no file": ("nothing.nii.gz", *target, *WORDS),
        "matrix of 48 only": (image, *target, *WORDS[:6]),
        "expected an odd number": (image, *target, *WORDS, "--size", 4),
        "sparsity is 0": (image, *target, *WORDS, "--sparsity", 0),
        "smoothness is -1": (image, *target, *WORDS, "--smoothness", -1),
        "does not end in .npz": (image, "-o", tmp_path / "d.npy", *WORDS),
        "holds no stack of images": (stored(tmp_path / "none.npz", a=np.ones(3)), *target, *WORDS),
        "give it alone": (image, tmp_path / "data.toml", *target, *WORDS),
    }
    for sentence, words in cases.items():
        done = run("learn-dictionary", *words)
        assert (done.status, sentence in done.err) == (2, True), (sentence, done.err)
    assert not (tmp_path / "d.npz").exists()


def test_provenance_is_json_in_bytes_that_anybody_can_read(tmp_path):
    write_dictionary(tmp_path / "d.npz", Dictionary("d", torch.from_numpy(GOOD), {"seed": 1}))
    with np.load(tmp_path / "d.npz", allow_pickle=False) as archive:
        assert json.loads(archive["provenance"].tobytes()) == {"seed": 1}
        assert archive["filters"].dtype == np.float32
