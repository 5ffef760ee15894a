"""Comparison of metal artefact reduction: its numbers, its conditions, and who must not be shown."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ctrecon.config import Candidate, read_config
from ctrecon.hounsfield import to_hu
from ctrecon.implants import implants
from ctrecon.metal_evaluation import MetalCondition, MetalEvaluationConfig, evaluate_metal, has_metal
from ctrecon.metal_scans import MetalScanner, MetalScenarios, load_bodies
from ctrecon.models import build_model
from operators.checkpoint import Checkpoint, Metric, save_checkpoint
from operators.errors import InputError
from operators.learning import seed_of
from tests.reference.command_line import files_in
from tests.reference.ct_study import data_in, write_people

N = 24
SMALL = {"base": 2, "n_stages": 2}
SCENARIO = MetalScenarios(n_views=(60,), metal=("titanium", "gold"), preset="sparse-view-60")
CONFIGS = Path(__file__).parents[2] / "benchmarks" / "configs"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> MetalEvaluationConfig:
    folder = tmp_path_factory.mktemp("people")
    write_people(folder)
    torch.manual_seed(0)
    state = build_model("unet", SMALL).state_dict()
    metric = Metric("psnr_db", "of nothing", 0.5)
    save_checkpoint(folder / "unet.pt", Checkpoint(state, "unet", SMALL, "nothing", "CC0-1.0", 0, 0, metric, "0"))
    classical = ("uncorrected", "li", "nmar", "tv", "metal-free")
    return MetalEvaluationConfig(
        data=data_in(folder),
        n_cases=2,
        methods=(
            *(Candidate(name=name, method=name) for name in classical),
            Candidate(name="U-Net", checkpoint=str(folder / "unet.pt")),
        ),
        conditions=(
            MetalCondition(name="60 views", in_distribution=True, patients=("c",), scenario=SCENARIO),
            MetalCondition(name="b", in_distribution=False, patients=("b",), shapes="validation", scenario=SCENARIO),
        ),
        seed=5,
    )


@pytest.fixture(scope="module")
def results(config: MetalEvaluationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    evaluate_metal(config, folder, command="ctrecon evaluate metal.toml")
    return folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_rows_are_what_the_definitions_say(config: MetalEvaluationConfig, results: Path) -> None:
    rows = rows_of(results)
    assert len(rows) == 2 * 6 * 2
    own = {row["method"]: row for row in rows if row["condition"] == "60 views" and row["material"] == "gold"}
    scanner = MetalScanner(SCENARIO, N)
    body = load_bodies(config.data.sources, scanner.scanner, config.data.folder, patients="c")[1]
    implant, seed = implants("test")[75], seed_of(5, "metal case", 1)
    scan = scanner.scan(body, implant, "gold", 60, torch.Generator().manual_seed(seed))
    about = ("patient", "slice", "implant", "n_views", "seed", "n_metal_pixels")
    expected = ("c", "1", implant.name, "60", str(seed), str(int(scan.metal.sum())))
    assert tuple(own["nmar"][name] for name in about) == expected
    outside = ~scan.metal
    for method, image in (("nmar", scan.x0), ("uncorrected", scan.uncorrected)):
        error = to_hu(image, 0.0192) - to_hu(scan.target, 0.0192)
        clean = [mu.clamp(0, 0.05) / 0.05 * outside for mu in (image, scan.target)]
        values = {
            "psnr_clean_db": -10 * torch.log10((clean[0] - clean[1]).square().mean()),
            "rmse_hu": error[outside].square().mean().sqrt(),
            "mae_hu": error[outside].abs().mean(),
            "bias_hu": error[outside].mean(),
        }
        for name, value in values.items():
            assert float(own[method][name]) == pytest.approx(float(value), rel=1e-3), (method, name)


def test_the_order_of_the_methods_is_what_physics_says(results: Path) -> None:
    for condition in ("60 views", "b"):
        rmse = {
            method: sum(float(r["rmse_hu"]) for r in rows_of(results) if (r["condition"], r["method"]) == own)
            for method in ("uncorrected", "nmar", "metal-free")
            if (own := (condition, method))
        }
        assert rmse["metal-free"] <= rmse["nmar"] < rmse["uncorrected"]


def test_the_summary_says_what_is_meant(results: Path) -> None:
    text = (results / "summary.md").read_text()
    assert "`ctrecon evaluate metal.toml`" in text
    assert "clipped to [0, 0.5] 1/cm" in text
    assert "### 60 views (in distribution, 2 slices of c, mean ± sd)" in text
    assert "### b (out of distribution, 2 slices of b (of validation), mean ± sd)" in text
    assert "- method metal-free: " in text
    assert {"01-60-views.png", "02-b.png", "metrics.csv", "summary.json"} <= files_in(results)


def test_what_was_computed_is_not_computed_again(config: MetalEvaluationConfig, results: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (results / "parts").iterdir()}
    evaluate_metal(config, results, command="ctrecon evaluate metal.toml")
    assert {path: path.stat().st_mtime_ns for path in (results / "parts").iterdir()} == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"method": "fbp"}, "'fbp' is unknown; choose one of uncorrected, li"),
        ({"method": "nmar", "n_iterations": 3}, "takes no regularisation"),
        ({"checkpoint": "nothing.pt"}, "is no file"),
    ],
)
def test_methods_that_cannot_run_are_named(
    config: MetalEvaluationConfig, tmp_path: Path, words: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        evaluate_metal(replace(config, methods=(Candidate(name="a", **words),)), tmp_path)


def test_nobody_and_nothing_that_trained_is_shown(config: MetalEvaluationConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shows 'a', who is not in the test or validation split"):
        replace(config, conditions=(replace(config.conditions[0], patients=("a",)),))
    text = (CONFIGS / "metal_evaluation.toml").read_text().replace('"metal_data.toml"', f'"{CONFIGS}/metal_data.toml"')
    (tmp_path / "trained.toml").write_text(text.replace('shapes = "aapm"', 'shapes = "train"'))
    with pytest.raises(InputError, match="shapes is 'train'; expected one of 'validation', 'test', 'aapm'"):
        read_config(tmp_path / "trained.toml", MetalEvaluationConfig)


def test_the_committed_configuration_is_valid_and_has_metal() -> None:
    found = read_config(CONFIGS / "metal_evaluation.toml", MetalEvaluationConfig)
    assert found.data.licence
    assert found.data.matrix == 416
    views = {n for condition in found.conditions for n in condition.scenario.n_views}
    assert views == {640, 320, 160, 80}
    assert has_metal(CONFIGS / "metal_evaluation.toml")
    assert not has_metal(CONFIGS / "sparse_ct_evaluation.toml")
    assert not has_metal(CONFIGS / "sparse_ct_unet.toml")


def test_metal_is_found_in_trainings_and_not_in_what_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('scenario = {n_views = [640], metal = ["iron"]}\n')
    assert has_metal(path)
    for text in ("conditions = 3\n", "[nonsense", 'conditions = ["metal"]\n', 'scenario = "metal"\n'):
        path.write_text(text)
        assert not has_metal(path)
    assert not has_metal(tmp_path / "missing.toml")
