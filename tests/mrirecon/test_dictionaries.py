"""Dictionaries by name: what is shipped, what is drawn, and how one is learned from images."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from mrirecon import cli
from mrirecon.dictionaries import DrawnDictionaries, learn_from_files, load_dictionary, shipped_dictionaries
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
