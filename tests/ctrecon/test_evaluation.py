import csv
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch

from ctrecon.cli import main
from ctrecon.config import Candidate, Condition, EvaluationConfig, TrainingConfig, read_config
from ctrecon.datasets import Scanner, Scenarios, load_slices, scan
from ctrecon.evaluation import evaluate
from ctrecon.hounsfield import to_hu
from ctrecon.metrics import psnr_lodopab, rmse_hu
from ctrecon.models import apply_model, build_model
from operators.back_projection import filtered_back_projection
from operators.checkpoint import Checkpoint, Metric, save_checkpoint
from operators.errors import InputError
from tests.reference.command_line import Run, files_in, runner
from tests.reference.ct_study import data_in, write_people

N = 24
SMALL = {"base": 2, "n_stages": 2}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(main, capsys)


@pytest.fixture
def config(tmp_path: Path) -> EvaluationConfig:
    write_people(tmp_path)
    torch.manual_seed(0)
    state = build_model("unet", SMALL).state_dict()
    metric = Metric("psnr_db", "of nothing", 0.5)
    save_checkpoint(tmp_path / "unet.pt", Checkpoint(state, "unet", SMALL, "nothing", "CC0-1.0", 0, 0, metric, "0"))
    return EvaluationConfig(
        data=data_in(tmp_path),
        n_cases=3,
        methods=(
            Candidate(name="FBP", method="fbp"),
            Candidate(name="TV", method="tv", regularisation=0.5, n_iterations=5),
            Candidate(name="U-Net", checkpoint=str(tmp_path / "unet.pt")),
        ),
        conditions=(
            Condition(name="N = 60", in_distribution=True, patients=("c",), scenario=Scenarios(n_views=(60,))),
            Condition(name="both", in_distribution=False, patients=("b", "c"), scenario=Scenarios(n_views=(90,))),
        ),
        seed=5,
    )


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_slice_has_a_row_whose_numbers_are_those_of_the_definitions(
    config: EvaluationConfig, tmp_path: Path
) -> None:
    evaluate(config, tmp_path / "results")
    rows = rows_of(tmp_path / "results")
    assert len(rows) == 2 * 3 * 3
    assert list(rows[0])[:8] == [
        *("condition", "in_distribution", "method", "patient", "kernel", "slice", "n_views", "seed"),
    ]
    row = next(r for r in rows if (r["condition"], r["method"], r["seed"]) == ("N = 60", "FBP", "6"))
    assert (row["patient"], row["kernel"], row["slice"], row["n_views"]) == ("c", "soft", "1", "60")
    scanner = Scanner("sparse-view", N)
    slices = load_slices(config.data.sources, scanner, tmp_path, patients="c")
    batch = scan([slices[1]], scanner, 60, torch.Generator().manual_seed(6))
    target = to_hu(batch.target, 0.0192)
    hu = to_hu(filtered_back_projection(batch.y, batch.A.geometry, (N, N)), 0.0192)
    body = target > -500
    expected = {
        "rmse_hu": (hu - target).square().mean().sqrt(),
        "psnr_db": 20 * torch.log10((target.max() - target.min()) / (hu - target).square().mean().sqrt()),
    }
    for name, value in expected.items():
        assert float(row[name]) == pytest.approx(float(value), rel=1e-4), name
    filled = float(row["rmse_body_hu"])  # the body also has its cavities
    assert filled == pytest.approx(float((hu - target)[body].square().mean().sqrt()), rel=0.2)
    torch.manual_seed(0)
    model = build_model("unet", SMALL)
    with torch.no_grad():
        own = to_hu(apply_model(model.eval(), batch.y, batch.A, batch.noise_std), 0.0192)
    learned = next(r for r in rows if (r["condition"], r["method"], r["seed"]) == ("N = 60", "U-Net", "6"))
    assert float(learned["rmse_hu"]) == pytest.approx(float(rmse_hu(own, target)), rel=1e-4)
    assert float(learned["psnr_db"]) == pytest.approx(float(psnr_lodopab(own, target)), rel=1e-4)


def test_the_summary_tells_people_apart_and_who_chose_the_weights(config: EvaluationConfig, tmp_path: Path) -> None:
    summary = evaluate(config, tmp_path / "results", command="ctrecon evaluate small.toml")
    rows = [r for r in rows_of(tmp_path / "results") if (r["condition"], r["method"]) == ("both", "FBP")]
    assert [r["patient"] for r in rows] == ["b", "b", "c"]
    (entry,) = (s for s in summary if (s["condition"], s["method"]) == ("both", "FBP"))
    values = {who: [float(r["rmse_hu"]) for r in rows if r["patient"] == who] for who in "bc"}
    assert entry["rmse_hu"]["mean"] == pytest.approx(fmean(values["b"] + values["c"]))
    assert entry["patients"]["b"]["n_slices"] == 2
    own = entry["patients"]["b"]["rmse_hu"]
    assert (own["mean"], own["sd"]) == (pytest.approx(fmean(values["b"])), pytest.approx(stdev(values["b"])))
    assert json.loads((tmp_path / "results" / "summary.json").read_text())["summary"] == summary
    text = (tmp_path / "results" / "summary.md").read_text()
    assert "`ctrecon evaluate small.toml`" in text
    assert "### N = 60 (in distribution, 3 slices of c, mean ± sd)" in text
    assert "### both (out of distribution, 3 slices of b (of validation), c, mean ± sd)" in text
    assert "| FBP, b | " in text
    assert "- rmse_hu: root mean square error in HU, whole image" in text
    assert "### psnr_db, mean over slices" in text
    assert {"01-N-=-60.png", "02-both.png"} <= files_in(tmp_path / "results")


def test_what_was_computed_is_not_computed_again(config: EvaluationConfig, tmp_path: Path) -> None:
    evaluate(config, tmp_path / "results")
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "parts").iterdir()}
    stronger = replace(config, methods=(*config.methods[:1], replace(config.methods[1], regularisation=2.0)))
    evaluate(stronger, tmp_path / "results")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "parts").iterdir()}
    assert {path: time for path, time in after.items() if path in parts} == parts
    assert len(after) == len(parts) + 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"method": "magic"}, "'magic' is unknown; choose one of fbp"),
        ({"checkpoint": "nothing.pt"}, "is no file"),
        ({"checkpoint": "unet.pt", "dictionary": "dct-4x5"}, "no dictionary to be exchanged"),
    ],
)
def test_methods_that_cannot_run_are_named(
    config: EvaluationConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: dict[str, Any],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=sentence):
        evaluate(replace(config, methods=(Candidate(name="a", **words),)), tmp_path / "results")


def test_nobody_who_trained_is_shown(config: EvaluationConfig) -> None:
    with pytest.raises(InputError, match="shows 'a', who is not in the test or validation split"):
        replace(config, conditions=(replace(config.conditions[0], patients=("a",)),))


CONFIGS = Path(__file__).parents[2] / "benchmarks" / "configs"
COMMITTED = [path for path in sorted(CONFIGS.glob("sparse_ct_*.toml")) if not path.stem.endswith("_data")]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_the_committed_configurations_are_valid(path: Path) -> None:
    found: Any = read_config(path, EvaluationConfig if "evaluation" in path.stem else TrainingConfig)
    assert found.data.licence


def test_the_command_line_trains_evaluates_and_reconstructs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("MRCTRECON_DATA", str(tmp_path))
    write_people(tmp_path)
    sources = "".join(f'[[sources]]\npath = "{p}.npz"\npatient = "{p}"\n' for p in "abc")
    (tmp_path / "data.toml").write_text(
        f'description = "formulas"\nlicence = "CC0-1.0"\nmatrix = {N}\ntrain = ["a"]\nvalidation = ["b"]\n'
        f'test = ["c"]\n{sources}'
    )
    (tmp_path / "train.toml").write_text(
        'name = "small"\ndata = "data.toml"\nscenario = {n_views = [60, 90]}\n'
        'model = {kind = "unet", arguments = {base = 2, n_stages = 2}}\n'
        "[training]\nn_steps = 2\nlearning_rate = 1e-3\nbatch_size = 1\nn_validation_cases = 2\n"
    )
    done = run("train", tmp_path / "train.toml", "-o", tmp_path / "run")
    assert (done.status, "small.pt" in done.err) == (0, True)
    weights = tmp_path / "run" / "small.pt"
    (tmp_path / "evaluation.toml").write_text(
        f'n_cases = 1\ndata = "data.toml"\nmethods = [{{name = "U-Net", checkpoint = "{weights}"}}]\n'
        '[[conditions]]\nname = "few"\nin_distribution = true\npatients = ["c"]\nscenario = {n_views = [60]}\n'
    )
    assert run("evaluate", tmp_path / "evaluation.toml", "-o", tmp_path / "results").status == 0
    assert rows_of(tmp_path / "results")[0]["method"] == "U-Net"
    words = ("simulate", "phantom", "-o", tmp_path / "scan.h5", "--views", 60, "--matrix", N, "--noise", "sparse-view")
    assert run(*words).status == 0
    done = run("reconstruct", tmp_path / "scan.h5", "-o", tmp_path / "image.npy", "--weights", weights)
    assert (done.status, "method unet, weights " in done.err) == (0, True)
    assert np.load(tmp_path / "image.npy").shape == (1, N, N)
    (tmp_path / "train.toml").write_text("nonsense = 1\n")
    failed = run("train", tmp_path / "train.toml", "-o", tmp_path / "run")
    assert (failed.status, "nonsense is unknown" in failed.err) == (2, True)
