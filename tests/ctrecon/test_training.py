from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ctrecon import models
from ctrecon.config import Data, Model, Plan, TrainingConfig, read_config
from ctrecon.datasets import Batch, Sampler, Scanner, Scenarios, load_slices
from ctrecon.models import MODELS, model_of
from ctrecon.training import loss_of, train, validate, validation_batches
from operators.checkpoint import load_checkpoint
from operators.errors import InputError
from operators.linear_operator import LinearOperator
from operators.reconstructor import Reconstructor
from operators.staged_training import Stages
from tests.reference.ct_study import data_in, write_people


class Multiple(Reconstructor):
    """The adjoint image times a number."""

    def __init__(self, *, factor: float = 0.5) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def _reconstruct(
        self, x0: torch.Tensor, y: torch.Tensor, A: LinearOperator, noise_std: torch.Tensor
    ) -> torch.Tensor:
        return self.factor * x0


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingConfig:
    monkeypatch.setitem(models.MODELS, "multiple-test", Multiple)
    write_people(tmp_path)
    return TrainingConfig(
        name="small",
        data=data_in(tmp_path),
        scenario=Scenarios(n_views=(60, 90)),
        model=Model(kind="multiple-test", arguments={"factor": 2.0}),
        training=Plan(
            n_steps=6,
            learning_rate=0.05,
            batch_size=2,
            n_validation_cases=5,
            validate_every=2,
            seed=3,
            checkpoint_every_s=0.0,
        ),
    )


class Stopped(Exception):
    """A training was ended from outside."""


def stop_after_three_steps(n_done: int, n_total: int) -> None:
    if n_done == 3:
        raise Stopped


def test_a_training_ends_in_a_checkpoint_that_says_what_it_is(config: TrainingConfig, tmp_path: Path) -> None:
    path = train(config, tmp_path / "run")
    checkpoint = load_checkpoint(path, kind="multiple-test")
    assert path == tmp_path / "run" / "small.pt"
    assert checkpoint.config == {"factor": 2.0}
    assert (checkpoint.data, checkpoint.licence, checkpoint.seed) == ("bodies made of formulas", "CC0-1.0", 3)
    assert checkpoint.trained_ranges == {"n_views": (60.0, 90.0), "matrix": (24.0, 24.0)}
    assert checkpoint.metric.name == "psnr_db"
    assert "maximum minus minimum of the target slice" in checkpoint.metric.definition
    assert "5 scans of people held out" in checkpoint.metric.definition
    table = (tmp_path / "run" / "validation.csv").read_text().splitlines()
    assert table[0] == "step,psnr_db,ssim,rmse_hu,loss"
    assert float(table[-1].split(",")[4]) < float(table[1].split(",")[4])  # the factor comes down from 2

    scanner = Scanner("sparse-view", 24)
    held_out = load_slices(config.data.sources, scanner, tmp_path, patients="b")
    with torch.no_grad():
        measured = validate(model_of(checkpoint), validation_batches(held_out, scanner, config))
    assert measured["psnr_db"] == pytest.approx(checkpoint.metric.value, abs=1e-4)


def test_a_training_goes_on_bit_by_bit_wherever_its_data_now_lie(config: TrainingConfig, tmp_path: Path) -> None:
    whole = load_checkpoint(train(config, tmp_path / "whole"))
    with pytest.raises(Stopped):
        train(config, tmp_path / "parts", progress=stop_after_three_steps)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for person in "abc":
        (tmp_path / f"{person}.npz").rename(moved / f"{person}.npz")
    there = replace(config, data=replace(config.data, folder=str(moved)))
    assert load_checkpoint(train(there, tmp_path / "parts")).sha256 == whole.sha256
    with pytest.raises(InputError, match=r"holds another training: .*n_views"):
        train(replace(there, scenario=Scenarios(n_views=(60,))), tmp_path / "parts")


def test_validation_scans_do_not_depend_on_how_they_are_grouped(config: TrainingConfig, tmp_path: Path) -> None:
    scanner = Scanner("sparse-view", 24)
    slices = load_slices(config.data.sources, scanner, tmp_path, patients="b")
    alone = replace(config, training=replace(config.training, batch_size=1))
    groups, singles = (validation_batches(slices, scanner, c) for c in (config, alone))
    assert [tuple(batch.y.shape[:2]) for batch in groups] == [(2, 60), (1, 60), (2, 90)]
    for n_views in (60, 90):
        one, other = (torch.cat([b.y for b in bs if b.y.shape[1] == n_views]) for bs in (groups, singles))
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_only_the_kernels_of_the_study_train(config: TrainingConfig, tmp_path: Path) -> None:
    (first, *others) = config.data.sources
    named = replace(config, data=replace(config.data, kernels=("soft",)))
    train(named, tmp_path / "run")
    sharp = replace(named, data=replace(named.data, sources=(replace(first, kernel="sharp"), *others)))
    with pytest.raises(InputError, match="No source shows a, kernel soft"):
        train(sharp, tmp_path / "other")


def test_the_loss_is_the_squared_error_in_thousands_of_hu(config: TrainingConfig, tmp_path: Path) -> None:
    scanner = Scanner("sparse-view", 24)
    slices = load_slices(config.data.sources, scanner, tmp_path, patients="a")
    batch: Batch = Sampler(slices, scanner, (60,), 2)(0, torch.Generator().manual_seed(0))
    A, model = batch.A, Multiple(factor=1.5)
    estimate = 1.5 * A.adjoint(batch.y) / A.norm().square()
    expected = ((estimate - batch.target) / 0.0192).square().mean()
    torch.testing.assert_close(loss_of(model, batch), expected, rtol=1e-4, atol=0)


def test_the_goal_of_a_metric_is_checked() -> None:
    plan = {"n_steps": 1, "learning_rate": 1.0}
    assert Plan(metric="rmse_hu", metric_goal="min", **plan).metric == "rmse_hu"
    with pytest.raises(InputError, match="best rmse_hu has metric_goal = 'min', not 'max'"):
        Plan(metric="rmse_hu", **plan)


def test_a_reconstruction_is_trained_stage_by_stage(config: TrainingConfig, tmp_path: Path) -> None:
    arguments = {"n_iterations": 2, "n_blocks": 1, "width": 4, "n_token_channels": 8, "n_hidden": 4}
    staged = replace(
        config,
        model=Model(kind="deepgsr", arguments=arguments),
        training=replace(config.training, validate_every=None),
        stages=Stages(n_rounds=2, n_scans=2, crop=20, margin=2),
    )
    checkpoint = load_checkpoint(train(staged, tmp_path / "staged"))
    assert checkpoint.n_steps == 12
    untrained = MODELS.build("deepgsr", arguments).state_dict()
    bias = "refinement.priors.0.tail.bias"
    assert not torch.equal(checkpoint.state[bias], untrained[bias])
    with pytest.raises(InputError, match="Multiple has no stages"):
        train(replace(config, stages=Stages(n_rounds=2)), tmp_path / "none")


@pytest.mark.realdata
def test_the_committed_training_runs_on_real_people(data_folder: Path, tmp_path: Path) -> None:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "configs" / "sparse_ct_unet.toml"
    config = read_config(path, TrainingConfig)
    lidc, _, own, sharp, *_ = config.data.sources
    assert "unet" in MODELS
    assert config.stages is not None
    data: Data = replace(
        config.data,
        matrix=32,
        train=("lidc-0314",),
        sources=(replace(lidc, slices=(20, 22)), replace(own, slices=(7, 8)), sharp),
        test=(),
        folder=str(data_folder),
    )
    small = replace(
        config,
        data=data,
        model=Model(kind="unet", arguments={"base": 4, "n_stages": 2}),
        training=replace(config.training, n_steps=3, n_warm_up=0, batch_size=1, n_validation_cases=2),
        stages=replace(config.stages, n_scans=2, crop=16, margin=2),
    )
    checkpoint = load_checkpoint(train(small, tmp_path / "run"))
    assert checkpoint.trained_ranges["n_views"] == (60.0, 180.0)
    assert 0 < checkpoint.metric.value < 60
