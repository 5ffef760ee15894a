"""Training of metal artefact reduction, on bodies made of formulas."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ctrecon.cli import main
from ctrecon.config import Model, Plan, read_config
from ctrecon.metal import load_metal_method
from ctrecon.metal_scans import MetalScans, MetalScenarios, prepare_scans
from ctrecon.metal_training import MetalTrainingConfig, train_metal, validate
from ctrecon.models import MODELS, model_of
from operators.checkpoint import load_checkpoint
from operators.errors import InputError
from operators.staged_training import Stages
from tests.reference.ct_study import data_in, write_people

N = 24
ARGUMENTS = {"n_iterations": 1, "n_blocks": 1, "width": 4, "n_token_channels": 8, "n_hidden": 4, "start": "fbp"}
SCENARIO = MetalScenarios(n_views=(30, 60), metal=("titanium",), preset="sparse-view-60")
CONFIGS = Path(__file__).parents[2] / "benchmarks" / "configs"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> MetalTrainingConfig:
    folder = tmp_path_factory.mktemp("people")
    write_people(folder)
    return MetalTrainingConfig(
        name="small",
        data=data_in(folder),
        scenario=SCENARIO,
        model=Model(kind="deepgsr", arguments=ARGUMENTS),
        training=Plan(n_steps=4, learning_rate=0.01, batch_size=2, n_validation_cases=2, seed=3),
        stages=Stages(n_rounds=1, n_scans=2, crop=20, margin=2),
        n_scans=2,
    )


def test_a_training_ends_in_weights_for_metal(config: MetalTrainingConfig, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = train_metal(config, tmp_path / "run", progress=lambda *n: seen.append(n))
    checkpoint = load_checkpoint(path)
    assert (checkpoint.kind, checkpoint.n_steps) == ("deepgsr", 4)
    assert checkpoint.trained_ranges == {"n_views": (30.0, 60.0), "matrix": (24.0, 24.0)}
    assert seen[-1] == (6, 6)
    assert load_metal_method(path).refines
    held_out = MetalScans(
        config.data.sources, SCENARIO, N, 2, shapes="validation", seed=20260222, folder=config.data.folder, patients="b"
    )
    scans = prepare_scans(tmp_path / "again", held_out)
    model = model_of(checkpoint).eval()
    with torch.no_grad():
        assert validate(model, scans)["psnr_db"] == pytest.approx(checkpoint.metric.value, rel=1e-5)
    assert train_metal(config, tmp_path / "run") == path  # nothing is left to be done
    assert load_checkpoint(path).sha256 == checkpoint.sha256


def test_the_committed_training_is_one_of_metal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = read_config(CONFIGS / "metal_deepgsr.toml", MetalTrainingConfig)
    MODELS.build(config.model.kind, config.model.arguments)
    chosen: list[str] = []
    monkeypatch.setattr("ctrecon.metal_training.train_metal", lambda config, *_, **__: chosen.append(config.name))
    with pytest.raises(SystemExit) as end:
        main(["train", str(CONFIGS / "metal_deepgsr.toml"), "-o", str(tmp_path / "run")])
    assert end.value.code in (None, 0)
    assert chosen == ["deepgsr-mar"]


def test_what_cannot_be_trained_is_refused(config: MetalTrainingConfig) -> None:
    with pytest.raises(InputError, match="n_scans is 0"):
        replace(config, n_scans=0)
    with pytest.raises(InputError, match="metric is 'loss'"):
        replace(config, training=replace(config.training, metric="loss", metric_goal="min"))
