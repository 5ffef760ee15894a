import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mrirecon import evaluation, models
from mrirecon.cli import main
from mrirecon.config import Candidate, Condition, Data, EvaluationConfig
from mrirecon.datasets import Scenarios, Source, load_slices, operator_of, scan
from mrirecon.evaluation import evaluate, foreground
from mrirecon.phantom import brain_phantom, head_mask
from mrirecon.reconstruction import METHODS, Method
from operators.checkpoint import Checkpoint, Metric, save_checkpoint
from operators.errors import InputError
from operators.filters import dct_filters, gabor_filters
from operators.functionals import nrmse, psnr_slice, ssim_uniform_7x7
from operators.linear_operator import LinearOperator
from operators.priors.csc import ConvolutionalSparseCoding
from operators.priors.sparsity import ExchangingMaps
from operators.reconstructor import Reconstructor

N = 32


class Multiple(Reconstructor):
    """The adjoint image times a number."""

    def __init__(self, *, offset: float = 0.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))
        self.offset = offset

    def _reconstruct(
        self, x0: torch.Tensor, y: torch.Tensor, A: LinearOperator, noise_std: torch.Tensor
    ) -> torch.Tensor:
        return (self.factor + self.offset) * x0


DICTIONARY = "dct-4x3"


def sparse_coding(*, dictionary: str | list[int] = DICTIONARY) -> ConvolutionalSparseCoding:
    filters = models._filters_of(dictionary)
    return ConvolutionalSparseCoding(
        filters, ExchangingMaps(base=4, n_stages=1, context_base=4, n_context_stages=1), n_iterations=2, n_stages=1
    )


def save(path: Path, kind: str, model: nn.Module) -> str:
    facts: dict[str, Any] = {"data": "phantoms", "licence": "CC0-1.0", "seed": 0, "n_steps": 1, "version": "0"}
    metric = Metric("ssim", "as always", 0.5)
    checkpoint = Checkpoint(state=model.state_dict(), kind=kind, config={}, metric=metric, **facts)
    save_checkpoint(path, checkpoint, overwrite=True)
    return str(path)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EvaluationConfig:
    monkeypatch.setitem(models.MODELS, "multiple-test", Multiple)
    monkeypatch.setitem(models.MODELS, "csc-test", sparse_coding)
    for number, patient in enumerate("abc"):
        image = brain_phantom((4, N, N), seed=number, smooth_phase=False).abs().numpy()
        np.savez(tmp_path / f"{patient}.npz", t1=image)
    kept = Scenarios(noise_variance=(0.2, 0.2), box=(0.5, 0.5))
    return EvaluationConfig(
        data=Data(
            description="phantoms",
            licence="CC0-1.0",
            matrix=N,
            train=("a",),
            validation=("b",),
            test=("c",),
            sources=tuple(
                Source(kind="npz", path=f"{patient}.npz", key="t1", patient=patient, contrast="t1") for patient in "abc"
            ),
            folder=str(tmp_path),
        ),
        n_cases=3,
        methods=(
            Candidate(name="adjoint", method="adjoint"),
            Candidate(name="TV", method="tv", regularisation=0.3, n_iterations=5),
            Candidate(name="once", checkpoint=save(tmp_path / "once.pt", "multiple-test", Multiple())),
        ),
        conditions=(
            Condition(name="v = 0.2", in_distribution=True, patients=("c",), scenario=kept),
            Condition(
                name="v = 0.5",
                in_distribution=False,
                patients=("c",),
                scenario=replace(kept, noise_variance=(0.5, 0.5)),
            ),
        ),
        seed=5,
    )


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(words)
    return int(left.value.code or 0)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_slice_has_a_row_whose_numbers_are_those_of_the_definitions(
    config: EvaluationConfig, tmp_path: Path
) -> None:
    evaluate(config, tmp_path / "results", command="mrirecon evaluate small.toml")
    rows = rows_of(tmp_path / "results")
    assert len(rows) == 2 * 3 * 3
    assert [row["seed"] for row in rows[:3]] == ["5", "6", "7"]
    slices = load_slices(config.data.sources, N, tmp_path, patients="c")
    assert [int(row["slice"]) for row in rows[:3]] == [0, 1, 2]
    batch = scan([slices[1].image], config.conditions[1].scenario, torch.Generator().manual_seed(6))
    estimate, target = operator_of(batch).adjoint(batch.y)[0].abs(), slices[1].image
    mask = foreground(target)
    row = next(r for r in rows if (r["condition"], r["method"], r["seed"]) == ("v = 0.5", "adjoint", "6"))
    expected = {
        "ssim": ssim_uniform_7x7(estimate, target, target.amax()),
        "mse": ((estimate - target) * 10 / target.amax()).square().mean(),
        "nrmse_masked": nrmse(estimate, target, mask),
        "mse_masked": ((estimate - target) * 10 / target.amax())[mask].square().mean(),
        "psnr_db": psnr_slice(estimate, target),
    }
    for name, value in expected.items():
        assert float(row[name]) == pytest.approx(float(value), rel=1e-4), name
    # A checkpoint that leaves the adjoint image as it is has the adjoint's numbers.
    own = next(r for r in rows if (r["condition"], r["method"], r["seed"]) == ("v = 0.5", "once", "6"))
    assert float(own["ssim_masked"]) == pytest.approx(float(row["ssim_masked"]), abs=1e-5)


def test_the_summary_says_what_its_numbers_mean(config: EvaluationConfig, tmp_path: Path) -> None:
    summary = evaluate(config, tmp_path / "results", command="mrirecon evaluate small.toml")
    rows = [r for r in rows_of(tmp_path / "results") if (r["condition"], r["method"]) == ("v = 0.2", "TV")]
    values = np.array([float(row["nrmse"]) for row in rows])
    assert summary[1]["method"] == "TV"
    assert summary[1]["n_slices"] == 3
    assert summary[1]["nrmse"] == pytest.approx({"mean": values.mean(), "sd": values.std(ddof=1)})
    stored = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert stored["summary"] == summary
    text = (tmp_path / "results" / "summary.md").read_text()
    assert "`mrirecon evaluate small.toml`" in text
    assert "uniform window 7×7" in text
    assert "### v = 0.5 (out of distribution, 3 slices, mean ± sd)" in text
    assert f"{values.mean():.4g} ± " in text
    overview = text[text.index("### mse, mean over slices") : text.index("### blur_masked")]
    assert "| method | v = 0.2 | v = 0.5 |" in overview
    assert f"| TV | {summary[1]['mse']['mean']:.4g} | " in overview
    pictures = sorted(path.name for path in (tmp_path / "results").glob("*.png"))
    assert pictures == ["01-v-=-0.2.png", "02-v-=-0.5.png"]


def test_what_was_computed_is_not_computed_again(
    config: EvaluationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(name: str, method: Method, fail_at: int | None = None) -> Method:
        def run(*arguments: Any) -> torch.Tensor:
            calls.append(name)
            if len(calls) == fail_at:
                raise KeyboardInterrupt
            return method.run(*arguments)

        return replace(method, run=run)

    folder = tmp_path / "results"
    config = replace(config, methods=config.methods[:2], n_cases=2)
    whole = evaluate(config, tmp_path / "whole")
    plain = dict(METHODS)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "METHODS", {name: counted(name, m, fail_at=4) for name, m in plain.items()})
        with pytest.raises(KeyboardInterrupt):
            evaluate(config, folder)
    assert calls == ["adjoint"] * 2 + ["tv"] * 2
    calls.clear()
    monkeypatch.setattr(evaluation, "METHODS", {name: counted(name, m) for name, m in plain.items()})
    reports: list[tuple[int, int]] = []
    parts = evaluate(config, folder, progress=lambda *at: reports.append(at))
    assert calls == ["tv"] * 2 + ["adjoint"] * 2 + ["tv"] * 2
    assert reports[0] == (2, 8)
    assert reports[-1] == (8, 8)
    without_time = [[{k: v for k, v in row.items() if k != "seconds"} for row in table] for table in (parts, whole)]
    assert without_time[0] == without_time[1]
    calls.clear()
    stronger = Candidate(name="TV", method="tv", regularisation=3.0, n_iterations=5)
    evaluate(replace(config, methods=(config.methods[0], stronger)), folder)
    assert calls == ["tv"] * 4


def test_new_weights_are_evaluated_anew(config: EvaluationConfig, tmp_path: Path) -> None:
    ours = replace(config, methods=config.methods[2:], conditions=config.conditions[:1])
    before = evaluate(ours, tmp_path / "results")[0]["mse"]["mean"]
    model = Multiple()
    nn.init.constant_(model.factor, 0.5)
    save(tmp_path / "once.pt", "multiple-test", model)
    after = evaluate(ours, tmp_path / "results")[0]["mse"]["mean"]
    assert abs(after - before) > 0.1
    changed = replace(ours.methods[0], arguments={"offset": 0.5})
    again = evaluate(replace(ours, methods=(changed,)), tmp_path / "results")[0]["mse"]["mean"]
    assert again == pytest.approx(before, rel=1e-5)


def test_dictionaries_are_exchanged_and_permuted(config: EvaluationConfig, tmp_path: Path) -> None:
    path = save(tmp_path / "csc.pt", "csc-test", sparse_coding())
    names = {
        "own": Candidate(name="own", checkpoint=path),
        "permuted": Candidate(name="permuted", checkpoint=path, permute_filters=True),
        "gabor": Candidate(name="gabor", checkpoint=path, dictionary="gabor-6x5"),
    }
    quiet = replace(config.conditions[0], scenario=Scenarios(noise_variance=(0.001, 0.001)))  # so that codes live
    comparison = replace(config, methods=tuple(names.values()), conditions=(quiet,))
    own, permuted, gabor = (row["mse"]["mean"] for row in evaluate(comparison, tmp_path / "results"))
    assert permuted == pytest.approx(own, rel=1e-4)
    assert gabor != pytest.approx(own, rel=1e-4)
    model, _ = evaluation._model(names["gabor"])
    assert isinstance(model, ConvolutionalSparseCoding)
    torch.testing.assert_close(model.filters, gabor_filters(6, 5))
    shuffled, _ = evaluation._model(names["permuted"])
    assert isinstance(shuffled, ConvolutionalSparseCoding)
    assert not torch.equal(shuffled.filters, dct_filters(4, 3))


def test_the_foreground_is_the_head(generator: torch.Generator) -> None:
    target = brain_phantom((128, 128), smooth_phase=False).abs()
    target = target + 0.02 * torch.rand(target.shape, generator=generator)  # noise in the background
    target[4:8, 4:8] = 1.0  # something that is not the head
    agree = foreground(target) == head_mask((128, 128))
    assert agree.float().mean() > 0.97
    assert not foreground(target)[4:8, 4:8].any()
    with pytest.raises(InputError, match="is empty"):
        foreground(0 * target)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"method": "magic"}, "'magic' is unknown"),
        ({"checkpoint": "nothing.pt"}, "is no file"),
        ({"checkpoint": "once.pt", "permute_filters": True}, "no dictionary to be exchanged"),
        ({"checkpoint": "csc.pt", "dictionary": "dct-4x4"}, "odd"),
        ({"checkpoint": "once.pt", "arguments": {"colour": 1}}, "cannot be built"),
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
    save(tmp_path / "csc.pt", "csc-test", sparse_coding())
    with pytest.raises(InputError, match=sentence):
        evaluate(replace(config, methods=(Candidate(name="a", **words),)), tmp_path / "results")


def test_the_command_line_trains_and_evaluates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(models.MODELS, "csc-test", sparse_coding)
    monkeypatch.setenv("MRCTRECON_DATA", str(tmp_path))
    for number, patient in enumerate("abc"):
        image = brain_phantom((2, N, N), seed=number, smooth_phase=False).abs().numpy()
        np.savez(tmp_path / f"{patient}.npz", t1=image)
    sources = "".join(
        f'[[sources]]\nkind = "npz"\npath = "{p}.npz"\nkey = "t1"\npatient = "{p}"\ncontrast = "t1"\n' for p in "abc"
    )
    (tmp_path / "data.toml").write_text(
        f'description = "phantoms"\nlicence = "CC0-1.0"\nmatrix = {N}\ntrain = ["a"]\nvalidation = ["b"]\n'
        f'test = ["c"]\n{sources}'
    )
    (tmp_path / "train.toml").write_text(
        'name = "small"\ndata = "data.toml"\nscenario = {noise_variance = [0.1, 0.2]}\nmodel = {kind = "csc-test"}\n'
        "[training]\nn_steps = 2\nlearning_rate = 1e-3\nbatch_size = 1\nn_validation_cases = 2\n"
    )
    assert run("train", str(tmp_path / "train.toml"), "-o", str(tmp_path / "run")) == 0
    (tmp_path / "evaluation.toml").write_text(
        f'n_cases = 1\ndata = "data.toml"\nmethods = [{{name = "CSC", checkpoint = "{tmp_path}/run/small.pt"}}]\n'
        '[[conditions]]\nname = "low"\nin_distribution = true\npatients = ["c"]\n'
        "scenario = {noise_variance = [0.2, 0.2], n_coils = 2, acceleration = 2, n_centre_lines = 4}\n"
    )
    assert run("evaluate", str(tmp_path / "evaluation.toml"), "-o", str(tmp_path / "results")) == 0
    assert rows_of(tmp_path / "results")[0]["method"] == "CSC"
    (tmp_path / "train.toml").write_text("nonsense = 1\n")
    capsys.readouterr()
    assert run("train", str(tmp_path / "train.toml"), "-o", str(tmp_path / "run")) == 2
    assert "nonsense is unknown" in capsys.readouterr().err.replace("\n", " ")
