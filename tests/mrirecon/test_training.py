from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mrirecon import models, training
from mrirecon.config import Data, Model, Plan, TrainingConfig
from mrirecon.datasets import Batch, Sampler, Scenarios, Source, load_slices
from mrirecon.dictionaries import DrawnDictionaries, load_dictionary
from mrirecon.models import build_model, model_of
from mrirecon.phantom import brain_phantom
from mrirecon.training import loss_of, train, validate, validation_batches
from operators.checkpoint import load_checkpoint
from operators.errors import InputError
from operators.fields import from_channels, to_channels
from operators.linear_operator import LinearOperator
from operators.reconstructor import Reconstructor

N = 32


class SmallNetwork(Reconstructor):
    """A convolution on the adjoint image."""

    def __init__(self, *, size: int = 3) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 2, size, padding=size // 2)
        nn.init.zeros_(self.convolution.weight)
        nn.init.zeros_(self.convolution.bias)

    def _reconstruct(
        self, x0: torch.Tensor, y: torch.Tensor, A: LinearOperator, noise_std: torch.Tensor
    ) -> torch.Tensor:
        return x0 + from_channels(self.convolution(to_channels(x0)), x0)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingConfig:
    monkeypatch.setitem(models.MODELS, "unrolled-cnn-test", SmallNetwork)
    for number, patient in enumerate("abc"):
        image = brain_phantom((3, N, N), seed=number, smooth_phase=False).abs().numpy()
        np.savez(tmp_path / f"{patient}.npz", t1=image)
    return TrainingConfig(
        name="small",
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
        scenario=Scenarios(noise_variance=(0.15, 0.3), box=(0.25, 0.75)),
        model=Model(kind="unrolled-cnn-test", arguments={"size": 5}),
        training=Plan(n_steps=8, learning_rate=3e-3, batch_size=2, n_validation_cases=5, validate_every=2, seed=3),
    )


@pytest.fixture
def sparse(config: TrainingConfig) -> TrainingConfig:
    """Sparse coding trained with other dictionaries, two batches a step."""
    small = {"dictionary": "dct-4x3", "base": 2, "n_map_stages": 1, "n_iterations": 3, "n_stages": 1}
    return replace(
        config,
        model=Model(kind="csc", arguments=small),
        training=replace(config.training, n_steps=4, n_batches=2, checkpoint_every_s=0.0),
        dictionaries=DrawnDictionaries(share=0.5, families=("learned", "dct", "random"), n=(8, 16), size=(5, 7)),
    )


class Stopped(Exception):
    """A training was ended from outside."""


def stop_after_three_steps(n_done: int, n_total: int) -> None:
    if n_done == 3:
        raise Stopped


def test_a_training_ends_in_a_checkpoint_that_says_what_it_is(config: TrainingConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    path = train(config, folder)
    checkpoint = load_checkpoint(path, kind="unrolled-cnn-test")
    assert path == folder / "small.pt"
    assert checkpoint.config == {"size": 5}
    assert (checkpoint.data, checkpoint.licence, checkpoint.seed) == ("phantoms", "CC0-1.0", 3)
    assert checkpoint.trained_ranges["noise_variance"] == (0.15, 0.3)
    assert checkpoint.trained_ranges["box"] == (0.25, 0.75)
    assert checkpoint.trained_ranges["matrix"] == (32.0, 32.0)
    assert "7×7" in checkpoint.metric.definition
    assert (folder / "validation.csv").read_text().splitlines()[0] == "step,ssim,psnr_db,loss"

    model = build_model(checkpoint.kind, checkpoint.config)
    checkpoint.load_into(model)
    held_out = load_slices(config.data.sources, N, tmp_path, patients="b")
    with torch.no_grad():
        measured = validate(model, validation_batches(held_out, config))
    assert measured["ssim"] == pytest.approx(checkpoint.metric.value, abs=1e-6)
    best = max(float(row.split(",")[1]) for row in (folder / "validation.csv").read_text().splitlines()[1:])
    assert checkpoint.metric.value == pytest.approx(best)


def test_training_lowers_the_loss(config: TrainingConfig, tmp_path: Path) -> None:
    train(replace(config, training=replace(config.training, n_steps=40)), tmp_path / "run")
    rows = [line.split(",") for line in (tmp_path / "run" / "validation.csv").read_text().splitlines()[1:]]
    assert float(rows[-1][3]) < 0.8 * float(rows[0][3])


def test_a_training_goes_on_wherever_its_data_now_lie(config: TrainingConfig, tmp_path: Path) -> None:
    quick = replace(config, training=replace(config.training, checkpoint_every_s=0.0))
    whole = train(quick, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(quick, tmp_path / "parts", progress=stop_after_three_steps)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for patient in "abc":
        (tmp_path / f"{patient}.npz").rename(moved / f"{patient}.npz")
    parts = train(replace(quick, data=replace(config.data, folder=str(moved))), tmp_path / "parts")
    assert load_checkpoint(parts).sha256 == load_checkpoint(whole).sha256
    other = replace(quick, scenario=Scenarios(noise_variance=(0.1, 0.3)), data=replace(config.data, folder=str(moved)))
    with pytest.raises(InputError, match="holds another training"):
        train(other, tmp_path / "parts")


def test_the_loss_does_not_depend_on_the_unit_of_the_data(config: TrainingConfig, tmp_path: Path) -> None:
    slices = load_slices(config.data.sources, N, tmp_path, patients="a")
    batch = Sampler(slices, config.scenario, 2)(0, torch.Generator().manual_seed(0))
    model = SmallNetwork()
    larger = batch._replace(y=9 * batch.y, target=9 * batch.target, noise_std=9 * batch.noise_std)
    value = loss_of(model, batch)
    torch.testing.assert_close(loss_of(model, larger), value)
    x0 = torch.fft.fftshift(
        torch.fft.ifft2(torch.fft.ifftshift(batch.y[:, 0], dim=(-2, -1)), norm="ortho"), dim=(-2, -1)
    )
    errors = torch.view_as_real(x0 - batch.target).square().mean(dim=(1, 2, 3)) / x0.abs().square().mean(dim=(1, 2))
    torch.testing.assert_close(value, errors.mean())


def test_validation_scans_do_not_depend_on_how_they_are_grouped(config: TrainingConfig, tmp_path: Path) -> None:
    slices = load_slices(config.data.sources, N, tmp_path, patients="b")
    alone = replace(config, training=replace(config.training, batch_size=1))
    groups, singles = validation_batches(slices, config), validation_batches(slices, alone)
    assert [len(batch.y) for batch in groups] == [2, 2, 1]
    torch.testing.assert_close(torch.cat([b.y for b in groups]), torch.cat([b.y for b in singles]), rtol=0, atol=0)
    few = replace(config, training=replace(config.training, n_validation_cases=2, batch_size=1))
    targets = [batch.target[0].abs() for batch in validation_batches(slices, few)]
    torch.testing.assert_close(targets, [slices[0].image, slices[1].image])


def test_models_that_cannot_be_built_are_named(config: TrainingConfig) -> None:
    with pytest.raises(InputError, match=r"'nothing' is unknown; choose one of .*unrolled-cnn-test"):
        build_model("nothing", {})
    with pytest.raises(InputError, match="cannot be built"):
        build_model("unrolled-cnn-test", {"colour": 1})
    with pytest.raises(InputError, match="cannot be built"):
        build_model("unrolled-cnn-test", {"size": "a"})


def recorded(
    config: TrainingConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Batch, torch.Tensor | None]]:
    """What each batch of a training consists of."""
    seen = []

    def record(model: nn.Module, batch: Batch, filters: torch.Tensor | None) -> torch.Tensor:
        seen.append((batch, filters))
        return loss_of(model, batch, filters)

    with monkeypatch.context() as patch:
        patch.setattr(training, "loss_of", record)
        train(config, folder)
    return seen


def test_other_dictionaries_are_drawn_by_the_batch_and_change_no_scan(
    sparse: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = recorded(sparse, tmp_path / "many", monkeypatch)
    one = recorded(replace(sparse, dictionaries=None), tmp_path / "one", monkeypatch)
    assert len(many) == len(one) == 8
    for (batch, _), (alone, filters) in zip(many, one, strict=True):
        assert filters is None
        torch.testing.assert_close(batch, alone, rtol=0, atol=0)
    shapes = [None if filters is None else tuple(filters.shape) for _, filters in many]
    assert None in shapes
    assert len(set(shapes)) > 2


def test_what_is_drawn_depends_on_the_number_of_the_batch_and_not_on_who_shares_the_step(
    sparse: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = replace(sparse, training=replace(sparse.training, n_steps=8, n_batches=1))
    runs = [recorded(c, tmp_path / str(n), monkeypatch) for n, c in enumerate((sparse, single))]
    for (batch, filters), (other_batch, other_filters) in zip(*runs, strict=True):
        torch.testing.assert_close(batch, other_batch, rtol=0, atol=0)
        assert filters is other_filters is None or torch.equal(filters, other_filters)


def test_the_seed_decides_the_weights_at_the_start(sparse: TrainingConfig, tmp_path: Path) -> None:
    frozen = replace(sparse.training, n_steps=1, n_batches=1, learning_rate=1e-12)
    state = torch.get_rng_state()
    one, same, other = (
        load_checkpoint(train(replace(sparse, training=replace(frozen, seed=seed)), tmp_path / name)).state
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert torch.equal(torch.get_rng_state(), state)
    weights = "maps.network.head.weight"
    assert torch.equal(one[weights], same[weights])
    assert not torch.allclose(one[weights], other[weights])


def test_a_training_with_other_dictionaries_goes_on_bit_by_bit_and_says_what_it_saw(
    sparse: TrainingConfig, tmp_path: Path
) -> None:
    whole = load_checkpoint(train(sparse, tmp_path / "whole"))
    with pytest.raises(Stopped):
        train(sparse, tmp_path / "parts", progress=stop_after_three_steps)
    parts = load_checkpoint(train(sparse, tmp_path / "parts"))
    assert parts.sha256 == whole.sha256
    assert whole.data == (
        "phantoms In 50 % of the batches the dictionary was drawn from learned (learned-16x7), dct, random: 8 to 16 "
        "filters of size 5 to 7."
    )
    assert whole.trained_ranges["n_filters"] == (8.0, 16.0)
    assert whole.trained_ranges["filter_size"] == (5.0, 7.0)
    assert torch.equal(whole.state["filters"], load_dictionary("dct-4x3").filters)
    held_out = load_slices(sparse.data.sources, N, tmp_path, patients="b")
    with torch.no_grad():
        measured = validate(model_of(whole), validation_batches(held_out, sparse))
    assert measured["ssim"] == pytest.approx(whole.metric.value, abs=1e-6)

    for dictionaries in (None, DrawnDictionaries(share=0.5, families=("dct",), n=(8, 16), size=(5, 7))):
        with pytest.raises(InputError, match=r"holds another training: .*dictionaries"):
            train(replace(sparse, dictionaries=dictionaries), tmp_path / "parts")


def test_a_configuration_without_dictionaries_goes_on_with_trainings_begun_before_there_were_any(
    config: TrainingConfig, tmp_path: Path
) -> None:
    train(config, tmp_path / "run")
    assert "dictionaries" not in (tmp_path / "run" / "summary.json").read_text()


def test_the_loss_with_another_dictionary_reaches_every_parameter(sparse: TrainingConfig, tmp_path: Path) -> None:
    slices = load_slices(sparse.data.sources, N, tmp_path, patients="a")
    batch = Sampler(slices, sparse.scenario, 2)(0, torch.Generator().manual_seed(0))
    model = build_model(sparse.model.kind, sparse.model.arguments)
    own, same, other = (
        loss_of(model, batch, filters) for filters in (None, model.filters, load_dictionary("random-8x5").filters)
    )
    torch.testing.assert_close(same, own, rtol=0, atol=0)
    assert not torch.isclose(other, own, rtol=1e-4)
    other.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert model.filters.shape == (4, 3, 3)


def test_models_that_serve_one_dictionary_or_none_are_refused(sparse: TrainingConfig, tmp_path: Path) -> None:
    fixed = Model(kind="csc-v1", arguments={"dictionary": "dct-4x3", "base": 2, "n_map_stages": 1})
    for model in (fixed, Model(kind="unrolled-cnn-test")):
        with pytest.raises(
            InputError, match=r"cannot be trained with others; leave \[dictionaries\] out, or train csc"
        ):
            train(replace(sparse, model=model), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    scalar = Model(kind="csc-scalar", arguments={"dictionary": "dct-4x3", "n_iterations": 2})
    assert train(replace(sparse, model=scalar), tmp_path / "run").exists()
