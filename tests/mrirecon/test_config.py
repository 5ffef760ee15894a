from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mrirecon.config import EvaluationConfig, TrainingConfig, read_config
from mrirecon.datasets import Scenarios
from mrirecon.dictionaries import DrawnDictionaries
from operators.errors import InputError

DATA = """
description = "phantoms"
licence = "CC0-1.0"
matrix = 32
train = ["a"]
validation = ["b"]
test = ["c"]
sources = [
    {kind = "npz", path = "a.npz", key = "t1", patient = "a", contrast = "t1", slices = [0, 3]},
    {kind = "npz", path = "b.npz", key = "t1", patient = "b", contrast = "t1", kept_fraction = 1},
    {kind = "npz", path = "c.npz", key = "t1", patient = "c", contrast = "t1"},
]
"""
TRAINING = """
name = "small"
data = "data.toml"
[scenario]
noise_variance = [0.15, 0.3]
box = [0.25, 0.75]
[model]
kind = "csc"
arguments = {n_filters = 3, family = "dct"}
[training]
n_steps = 10
learning_rate = 1e-3
learning_rates = {maps = 1}
batch_size = 2
"""
EVALUATION = """
n_cases = 3
data = "data.toml"
[[methods]]
name = "TV"
method = "tv"
regularisation = 1
[[methods]]
name = "ours"
checkpoint = "csc.pt"
arguments = {n_iterations = 16}
[[conditions]]
name = "v = 0.2"
in_distribution = true
patients = ["c"]
[conditions.scenario]
noise_variance = [0.2, 0.2]
"""


DICTIONARIES = """
[dictionaries]
share = 0.5
families = ["learned", "dct", "random"]
n = [16, 64]
size = [5, 11]
"""


def read(folder: Path, text: str, kind: type = TrainingConfig, data: str = DATA) -> Any:
    (folder / "data.toml").write_text(data)
    (folder / "config.toml").write_text(text)
    return read_config(folder / "config.toml", kind)


def test_a_training_is_read_with_its_data_from_another_file(tmp_path: Path) -> None:
    config = read(tmp_path, TRAINING)
    assert config.data.sources[0].slices == (0, 3)
    assert config.data.sources[1].kept_fraction == 1.0
    assert config.scenario == Scenarios(noise_variance=(0.15, 0.3), box=(0.25, 0.75))
    assert config.model.arguments == {"n_filters": 3, "family": "dct"}
    assert (config.training.n_steps, config.training.batch_size, config.training.metric) == (10, 2, "ssim")
    assert config.training.learning_rates == {"maps": 1.0}


def test_data_may_also_stand_in_the_file_itself(tmp_path: Path) -> None:
    inline = TRAINING.replace('data = "data.toml"\n', "") + "[data]" + DATA
    assert read(tmp_path, inline) == read(tmp_path, TRAINING)


def test_dictionaries_to_draw_are_read(tmp_path: Path) -> None:
    assert read(tmp_path, TRAINING).dictionaries is None
    drawn = DrawnDictionaries(share=0.5, families=("learned", "dct", "random"), n=(16, 64), size=(5, 11))
    assert read(tmp_path, TRAINING + DICTIONARIES).dictionaries == drawn


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("share = 0.5", "", r"dictionaries\.share is missing"),
        ("share = 0.5", "share = 0", r"config\.toml: dictionaries: share is 0\.0; expected a fraction above 0"),
        ("share = 0.5", "share = 1.1", r"share is 1\.1"),
        ("share = 0.5", "share = nan", "share is nan"),
        ('"dct"', '"fourier"', r"dictionaries\.families\[1\] is 'fourier'; expected one of 'learned', 'dct', 'gabor'"),
        ('"dct"', '"random"', "expected at least one, and each once"),
        ('"learned", "dct", "random"', "", r"families is \[\]; expected at least one"),
        ("[16, 64]", "[64, 16]", r"n is \[64, 16\]; expected its lowest and its highest value, 1 to 9999"),
        ("[16, 64]", "[0, 64]", r"n is \[0, 64\]"),
        ("[16, 64]", "[16, 10000]", r"n is \[16, 10000\]"),
        ("[5, 11]", "[4, 11]", r"size is \[4, 11\]; expected odd numbers"),
        ("[5, 11]", "[5, 10]", r"size is \[5, 10\]; expected odd numbers"),
        ("[5, 11]", "[5, 101]", r"size is \[5, 101\]; expected its lowest and its highest value, 1 to 99"),
        ("[5, 11]", "[1, 11]", "dct-16x1: size is 1; expected an odd number of pixels from 3 on"),
        ("[16, 64]", "[32, 64]", "dct-32x5: There are 24 distinct DCT filters of size 5; 32 were asked for"),
        ("[5, 11]", "[13, 15]", "No shipped dictionary has 16 to 64 filters of size 13 to 15; there are learned-16x7"),
    ],
)
def test_dictionaries_that_do_not_exist_are_refused(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in DICTIONARIES
    with pytest.raises(InputError, match=sentence):
        read(tmp_path, TRAINING + DICTIONARIES.replace(old, new))


def test_an_evaluation_is_read(tmp_path: Path) -> None:
    config = read(tmp_path, EVALUATION, EvaluationConfig)
    assert [method.name for method in config.methods] == ["TV", "ours"]
    assert config.methods[0].regularisation == 1.0
    assert config.conditions[0].scenario.noise_variance == (0.2, 0.2)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("n_steps = 10", "n_step = 10", r"config\.toml: training\.n_step is unknown; known here are n_steps, "),
        ("n_steps = 10", "", r"training\.n_steps is missing"),
        ("n_steps = 10", "n_steps = 1.5", r"training\.n_steps is 1\.5; expected a whole number"),
        ("n_steps = 10", "n_steps = true", r"training\.n_steps is True; expected a whole number"),
        ("n_steps = 10", "n_steps = 0", r"config\.toml: training: n_steps is 0; expected a whole number, 1 or more"),
        ("batch_size = 2", "batch_size = 0", "batch_size and n_validation_cases must be"),
        ("batch_size = 2", 'metric = "mse"', r"training\.metric is 'mse'; expected one of 'ssim', 'psnr_db', 'loss'"),
        ("{maps = 1}", "3", r"training\.learning_rates is 3; expected a table"),
        ("{maps = 1}", '{maps = "a"}', r"training\.learning_rates\.maps is 'a'; expected a number"),
        ("[0.25, 0.75]", "0.5", r"scenario\.box is 0\.5; expected a list"),
        ("[0.25, 0.75]", "[0.5]", r"scenario\.box has 1 entries; expected 2"),
        ("[0.25, 0.75]", '[0.5, "a"]', r"scenario\.box\[1\] is 'a'; expected a number"),
        ("[0.25, 0.75]", "[0.75, 0.25]", r"scenario: box is \(0\.75, 0\.25\)"),
        ('name = "small"', "name = 3", "name is 3; expected a text"),
        ('data = "data.toml"', 'data = "nothing.toml"', r"nothing\.toml cannot be read"),
        ('data = "data.toml"', "data = 3", "data is 3; expected a table"),
        ("[training]", "[training", "is no TOML"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_key(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in TRAINING
    with pytest.raises(InputError, match=sentence):
        read(tmp_path, TRAINING.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('validation = ["b"]', 'validation = ["a"]', "'a' is in train and in validation"),
        ('validation = ["b"]', 'validation = ["d"]', "'d' of validation is in no source"),
        ('"npz", path = "b.npz"', '"png", path = "b.npz"', r"data\.sources\[1\]\.kind is 'png'"),
        ('path = "c.npz", key = "t1",', 'path = "c.npz",', r"data\.sources\[2\]: c\.npz: .* needs key"),
        ("slices = [0, 3]", "slices = [3, 0]", r"slices is \(3, 0\)"),
    ],
)
def test_data_must_be_split_by_patient_and_described(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in DATA
    with pytest.raises(InputError, match=sentence):
        read(tmp_path, TRAINING, data=DATA.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('name = "ours"', 'name = "TV"', "'TV' is given twice"),
        ('patients = ["c"]', 'patients = ["a"]', "shows 'a', who is not in the test split"),
        ('method = "tv"', 'method = "tv"\ncheckpoint = "a"', "'TV' needs a method or a checkpoint, and not both"),
        ('method = "tv"', 'checkpoint = "a"', "'TV' is a checkpoint"),
        ('checkpoint = "csc.pt"', 'method = "tv"', "'ours' is a classical method"),
        ("n_cases = 3", "n_cases = 0", "at least one case"),
    ],
)
def test_an_evaluation_that_means_nothing_is_refused(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in EVALUATION
    with pytest.raises(InputError, match=sentence):
        read(tmp_path, EVALUATION.replace(old, new), EvaluationConfig)


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path / "nothing.toml", TrainingConfig)
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is no TOML"):
        read_config(tmp_path / "config.toml", TrainingConfig)


CONFIGS = Path(__file__).parents[2] / "benchmarks" / "configs"
COMMITTED = [path for path in sorted(CONFIGS.glob("lowfield_*.toml")) if not path.stem.endswith("_data")]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_the_committed_configurations_are_valid(path: Path) -> None:
    config: Any = read_config(path, EvaluationConfig if "evaluation" in path.stem else TrainingConfig)
    assert config.data.licence


def test_training_with_many_dictionaries_leaves_one_family_unseen_and_changes_nothing_else() -> None:
    many, one = (read_config(CONFIGS / f"lowfield_csc{name}.toml", TrainingConfig) for name in ("_dictionaries", ""))
    assert many.dictionaries is not None
    assert "gabor" not in many.dictionaries.families
    assert replace(many, name=one.name, dictionaries=None) == one
