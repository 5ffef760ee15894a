import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from operators import learning
from operators.checkpoint import read_tensors
from operators.errors import InputError
from operators.learning import TrainingPlan, fit

ROOT = Path(__file__).resolve().parents[2]
PLAN = TrainingPlan(n_steps=12, learning_rate=0.02, log_every=2, seed=3)
# Everything that has a state of its own, so that forgetting one of them shows.
FULL_PLAN = replace(
    PLAN,
    learning_rates={"beta": 0.1},
    weight_decay=0.01,
    schedule="cosine",
    n_warm_up=3,
    n_batches=2,
    clip_norm=0.5,
    ema_decay=0.9,
    validate_every=3,
    metric="error",
    log_every=5,
)
SHARED_PLAN = replace(PLAN, n_batches=2, ema_decay=0.8, clip_norm=0.5, metric="error", validate_every=5)
_write_picture = learning._write_picture


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "_write_picture", lambda folder, metric: None)


class _Model(nn.Module):
    """Draws numbers itself (dropout), keeps running means and has complex parameters."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 1))
        self.beta = nn.Parameter(torch.tensor(1.0))
        self.phase = nn.Parameter(torch.tensor([0.5 + 0.5j]))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        with torch.no_grad():
            for p in self.layers.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.beta * self.layers(x)[:, 0] + (self.phase * x[:, 0]).real


class _Linear(nn.Module):
    """Has no state besides its parameters, so that the processes must agree to rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.1, -0.2, 0.3, 0.4], dtype=torch.float64))
        self.phase = nn.Parameter(torch.tensor([0.5 + 0.5j], dtype=torch.complex128))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.weight) @ self.weight + (self.phase * x[:, 0]).real


def _sample(index: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(8, 4, generator=generator)
    return x, x.sum(1) + index % 3


def _loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    x, target = batch
    return (model(x) - target).square().mean()


def _validate(model: nn.Module) -> dict[str, float]:
    assert not model.training
    return {"error": float(_loss(model, _sample(0, torch.Generator().manual_seed(99)))), "beta": float(model.beta)}


def _validate_linear(model: nn.Module) -> dict[str, float]:
    return {"error": float(_loss(model, _sample(0, torch.Generator().manual_seed(9))))}


def _failing(at_call: int, act: Callable[[], Any]) -> Callable[[nn.Module, Any], torch.Tensor]:
    n_calls = 0

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        nonlocal n_calls
        n_calls += 1
        if n_calls == at_call:
            act()
        return _loss(model, batch)

    return loss


def _stop() -> None:
    raise RuntimeError("stopped")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def _without_seconds(path: Path) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in _rows(path)]


def _assert_same_training(a: Path, b: Path) -> None:
    first, second = read_tensors(a / "training.pt"), read_tensors(b / "training.pt")
    for stored in (first, second):
        del stored["seconds"], stored["table_bytes"]
    _assert_equal(first, second)
    for name in ("training.csv", "validation.csv"):
        assert (a / name).exists() == (b / name).exists()
        if (a / name).exists():
            assert _without_seconds(a / name) == _without_seconds(b / name)


def _assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for name in a:
            _assert_equal(a[name], b[name])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _assert_equal(x, y)
    else:
        assert a == b


def test_a_module_learns(tmp_path: Path) -> None:
    model = _Linear()
    plan = replace(PLAN, n_steps=100)
    result = fit(model, _loss, lambda _, generator: _sample(0, generator), plan, tmp_path / "run")
    losses = [float(row["loss"]) for row in _rows(tmp_path / "run" / "training.csv")]
    assert losses[-1] < 0.01 * losses[0]
    _assert_equal(result.state, dict(model.state_dict()))
    assert (result.step, result.metrics) == (100, {})


def test_one_step_is_that_of_adamw_with_the_mean_gradient(tmp_path: Path) -> None:
    seen: list[Any] = []

    def sample(index: int, generator: torch.Generator) -> Any:
        seen.append(_sample(index, generator))
        return seen[-1]

    plan = replace(
        PLAN, n_steps=3, n_batches=2, weight_decay=0.1, clip_norm=0.7, n_warm_up=2, learning_rates={"phase": 0.5}
    )
    model, other = _Linear(), _Linear()
    fit(model, _loss, sample, plan, tmp_path / "run")
    groups = [{"params": [other.weight], "lr": 0.02}, {"params": [other.phase], "lr": 0.5}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.1)
    for step, factor in enumerate((0.5, 1.0, 1.0)):
        optimiser.zero_grad()
        (sum(_loss(other, batch) for batch in seen[2 * step : 2 * step + 2]) / 2).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.7)
        optimiser.param_groups[0]["lr"], optimiser.param_groups[1]["lr"] = 0.02 * factor, 0.5 * factor
        optimiser.step()
    torch.testing.assert_close(dict(model.state_dict()), dict(other.state_dict()), rtol=1e-12, atol=1e-14)


def test_the_average_is_that_of_its_definition(tmp_path: Path) -> None:
    path: list[torch.Tensor] = []

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        path.append(model.weight.detach().clone())
        return _loss(model, batch)

    result = fit(_Linear(), loss, _sample, replace(PLAN, ema_decay=0.5), tmp_path / "run")
    path.append(read_tensors(tmp_path / "run" / "training.pt")["model"]["weight"])
    average = path[0]
    for t, weight in enumerate(path[1:], 1):
        decay = min(0.5, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(result.state["weight"], average, rtol=1e-12, atol=1e-14)


def test_the_learning_rate_rises_and_falls_as_planned(tmp_path: Path) -> None:
    plan = replace(PLAN, n_steps=8, learning_rate=1.0, schedule="cosine", n_warm_up=4, log_every=1)
    fit(_Linear(), _loss, _sample, plan, tmp_path / "run")
    rates = [float(row["learning_rate"]) for row in _rows(tmp_path / "run" / "training.csv")]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])


def test_a_training_that_failed_goes_on_bit_by_bit(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = fit(_Model(), _loss, _sample, FULL_PLAN, whole, validate=_validate)
    # The second call is saved on Ctrl-C, the third fails with rows in the log that no state knows of.
    for checkpoint_every_s, at_call, act, error in (
        (0.0, 6, _stop, RuntimeError),
        (1e9, 6, lambda: os.kill(os.getpid(), signal.SIGINT), KeyboardInterrupt),
        (1e9, 10, _stop, RuntimeError),
        (0.0, 2, _stop, RuntimeError),
    ):
        plan = replace(FULL_PLAN, checkpoint_every_s=checkpoint_every_s)
        with pytest.raises(error):
            fit(_Model(), _failing(at_call, act), _sample, plan, parts, validate=_validate)
    model = _Model()
    result = fit(model, _loss, _sample, FULL_PLAN, parts, validate=_validate)
    _assert_equal(result.state, expected.state)
    assert (result.step, result.metrics) == (expected.step, expected.metrics)
    _assert_same_training(whole, parts)
    assert [row["step"] for row in _rows(parts / "training.csv")] == ["5", "10", "12"]
    assert [row["step"] for row in _rows(parts / "validation.csv")] == ["3", "6", "9", "12"]


KILLED_WHILE_SAVING = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
sys.path.insert(0, {root!r})
from operators.learning import fit
from tests.operators.test_learning import FULL_PLAN, _loss, _Model, _sample, _validate

def kill_while_saving(content, stream, save=torch.save):
    save(content, stream)
    if content["step"] == 7:  # half of the new state is on the disk
        with replacing_path.open("wb") as half:
            half.write(stream.getvalue()[: len(stream.getvalue()) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

folder = Path({folder!r})
replacing_path = folder / f".partial-{{os.getpid()}}-training.pt"
torch.set_num_threads(1)
torch.save = kill_while_saving
fit(_Model(), _loss, _sample, replace(FULL_PLAN, checkpoint_every_s=0.0), folder, validate=_validate)
"""


def test_a_training_that_was_killed_while_saving_goes_on_bit_by_bit(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    script = tmp_path / "train.py"
    script.write_text(KILLED_WHILE_SAVING.format(root=str(ROOT), folder=str(killed)))
    process = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert read_tensors(killed / "training.pt")["step"] == 6
    expected = fit(_Model(), _loss, _sample, FULL_PLAN, whole, validate=_validate)
    _assert_equal(fit(_Model(), _loss, _sample, FULL_PLAN, killed, validate=_validate).state, expected.state)
    _assert_same_training(whole, killed)


TWO_PROCESSES = """
import os, sys
from dataclasses import replace
import torch
sys.path.insert(0, {root!r})
from operators.errors import InputError
from operators.learning import fit
from tests.operators.test_learning import PLAN, SHARED_PLAN, _Linear, _loss, _sample, _validate_linear

torch.set_num_threads(1)
model = _Linear()
with torch.no_grad():
    model.weight += int(os.environ["RANK"])  # the first process decides
result = fit(model, _loss, _sample, SHARED_PLAN, {folder!r}, validate=_validate_linear)
torch.save(result.state, {folder!r} + "-" + os.environ["RANK"] + ".pt")
try:
    fit(model, _loss, _sample, replace(SHARED_PLAN, seed=1), {folder!r}, validate=_validate_linear)
except InputError as error:
    print(error)
try:
    fit(model, _loss, _sample, PLAN, {folder!r} + "2")
except InputError as error:
    print(error, flush=True)
os._exit(0)  # a thread of gloo that lets go of a tensor while Python shuts down aborts the process now and then
"""


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    folder, script = tmp_path / "two", tmp_path / "train.py"
    script.write_text(TWO_PROCESSES.format(root=str(ROOT), folder=str(folder)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with ExitStack() as stack:
        processes = [
            stack.enter_context(_started(script, common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}))
            for rank in range(2)
        ]
        for process in processes:
            printed, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
            assert "plan.seed is 3 there and 1 here" in printed
            assert "n_batches is 1, which cannot be shared equally among 2 processes" in printed
    one = fit(_Linear(), _loss, _sample, SHARED_PLAN, tmp_path / "one", validate=_validate_linear)
    for rank in range(2):
        torch.testing.assert_close(read_tensors(tmp_path / f"two-{rank}.pt"), one.state, rtol=1e-10, atol=1e-12)
    for name in ("training.csv", "validation.csv"):
        rows = [_without_seconds(path / name) for path in (folder, tmp_path / "one")]
        for shared, alone in zip(*rows, strict=True):
            assert {k: float(v) for k, v in shared.items()} == pytest.approx({k: float(v) for k, v in alone.items()})


@contextmanager
def _started(script: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first = fit(_Linear(), _loss, _sample, PLAN, tmp_path / "run")
    state = (tmp_path / "run" / "training.pt").read_bytes()
    again = fit(_Linear(), _failing(1, _stop), _sample, PLAN, tmp_path / "run")
    _assert_equal(again.state, first.state)
    assert (tmp_path / "run" / "training.pt").read_bytes() == state


def test_ctrl_c_saves_the_step_and_stops(tmp_path: Path) -> None:
    interrupt = _failing(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(_Linear(), interrupt, _sample, PLAN, tmp_path / "run")
    assert read_tensors(tmp_path / "run" / "training.pt")["step"] == 5
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def interrupt_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the step went on")

    with pytest.raises(KeyboardInterrupt):
        fit(_Linear(), _failing(5, interrupt_twice), _sample, PLAN, tmp_path / "run")
    assert read_tensors(tmp_path / "run" / "training.pt")["step"] == 0


def test_a_training_runs_outside_of_the_main_thread(tmp_path: Path) -> None:
    steps: list[int] = []
    thread = threading.Thread(target=lambda: steps.append(fit(_Linear(), _loss, _sample, PLAN, tmp_path / "run").step))
    thread.start()
    thread.join()
    assert steps == [12]


def test_each_index_has_a_generator_of_its_own(tmp_path: Path) -> None:
    drawn: dict[int, float] = {}

    def sample(index: int, generator: torch.Generator) -> Any:
        drawn[index] = float(torch.rand((), generator=generator, dtype=torch.float64))
        return _sample(index, generator)

    fit(_Linear(), _loss, sample, replace(PLAN, n_batches=3), tmp_path / "run")
    assert list(drawn) == list(range(36))
    assert len(set(drawn.values())) == 36
    seeds = {learning.seed_of(3, "sample", index) for index in range(10**5)}
    assert len(seeds) == 10**5


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    states = [fit(_Linear(), _loss, _sample, replace(PLAN, seed=s), tmp_path / f"{s}").state for s in (1, 2)]
    assert not torch.equal(states[0]["weight"], states[1]["weight"])


def test_modes_gradients_and_global_generators_are_left_as_they_were(tmp_path: Path) -> None:
    model = _Model().eval()
    model.beta.requires_grad_(True)
    model.layers[3].train()
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    fit(model, _loss, _sample, FULL_PLAN, tmp_path / "run", validate=_validate)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert [module.training for module in model.modules()].count(True) == 1
    assert all(p.grad is None for p in model.parameters())


def test_the_best_weights_by_the_metric_are_the_result(tmp_path: Path) -> None:
    def validate(model: nn.Module) -> dict[str, float]:
        seen.append(model.weight.detach().clone())
        return {"score": next(scores)}

    for goal, best in (("min", 1), ("max", 0)):
        scores, seen = iter([3.0, 1.0, 2.0, 1.0]), []
        model, plan = _Linear(), replace(PLAN, validate_every=3, metric="score", metric_goal=goal, ema_decay=0.5)
        result = fit(model, _loss, _sample, plan, tmp_path / goal, validate=validate)
        assert result.step == 3 * best + 3
        assert torch.equal(result.state["weight"], seen[best])
        assert torch.equal(model.weight, seen[best])


def test_without_an_interval_only_the_last_step_is_validated(tmp_path: Path) -> None:
    plan = replace(PLAN, metric="error")
    fit(_Model(), _loss, _sample, plan, tmp_path / "run", validate=_validate)
    assert [row["step"] for row in _rows(tmp_path / "run" / "validation.csv")] == ["12"]


def test_the_validation_leaves_the_training_as_it_was(tmp_path: Path) -> None:
    plan = replace(FULL_PLAN, validate_every=None, metric=None)
    fit(_Model(), _loss, _sample, plan, tmp_path / "without")
    fit(_Model(), _loss, _sample, FULL_PLAN, tmp_path / "with", validate=_validate)
    states = [read_tensors(tmp_path / name / "training.pt") for name in ("without", "with")]
    for part in ("model", "average", "optimiser"):
        _assert_equal(states[0][part], states[1][part])


def test_a_validation_that_draws_numbers_draws_the_same_ones_each_time(tmp_path: Path) -> None:
    plan = replace(PLAN, metric="drawn", validate_every=6)
    result = fit(_Linear(), _loss, _sample, plan, tmp_path / "run", validate=lambda _: {"drawn": torch.rand(())})
    first, second = (float(row["drawn"]) for row in _rows(tmp_path / "run" / "validation.csv"))
    assert first == second == result.metrics["drawn"]


def test_progress_begins_where_the_training_does(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    plan = replace(PLAN, n_steps=4, checkpoint_every_s=0.0)
    with pytest.raises(RuntimeError):
        fit(_Linear(), _failing(3, _stop), _sample, plan, tmp_path / "run", progress=lambda *n: steps.append(n))
    fit(_Linear(), _loss, _sample, plan, tmp_path / "run", progress=lambda *n: steps.append(n))
    assert steps == [(0, 4), (1, 4), (2, 4), (2, 4), (3, 4), (4, 4)]


def test_the_folder_describes_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "_write_picture", _write_picture)
    folder = tmp_path / "run"
    result = fit(_Model(), _loss, _sample, FULL_PLAN, folder, validate=_validate, config={"model": "small"})
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["plan"]["learning_rates"] == {"beta": 0.1}
    assert summary["config"] == {"model": "small"}
    assert summary["result"] == {"step": result.step, "metrics": result.metrics, "averaged": True}
    assert summary["n_parameters"] == 4 * 6 + 6 + 6 + 6 + 6 + 1 + 1 + 1
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    names = {entry.name for entry in folder.iterdir()}
    assert names == {"training.pt", "training.csv", "validation.csv", "summary.json", "loss.png"}


def test_a_row_of_the_log_is_the_mean_over_its_steps(tmp_path: Path) -> None:
    fit(_Linear(), _loss, _sample, replace(PLAN, log_every=1), tmp_path / "one")
    fit(_Linear(), _loss, _sample, replace(PLAN, log_every=5), tmp_path / "five")
    ones = [float(row["loss"]) for row in _rows(tmp_path / "one" / "training.csv")]
    fives = [float(row["loss"]) for row in _rows(tmp_path / "five" / "training.csv")]
    assert fives == pytest.approx([sum(ones[:5]) / 5, sum(ones[5:10]) / 5, sum(ones[10:]) / 2])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"learning_rate": 0.03}, "plan.learning_rate is 0.02 there and 0.03 here"),
        ({"learning_rates": {"phase": 0.1}}, "plan.learning_rates.phase is absent there and 0.1 here"),
        ({"n_steps": 13, "seed": 4}, "plan.n_steps is 12 there and 13 here, plan.seed is 3 there and 4 here"),
    ],
)
def test_a_folder_with_another_plan_is_refused(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    fit(_Linear(), _loss, _sample, PLAN, tmp_path / "run")
    before = {entry.name: entry.read_bytes() for entry in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match=match):
        fit(_Linear(), _loss, _sample, replace(PLAN, **change), tmp_path / "run")
    assert {entry.name: entry.read_bytes() for entry in (tmp_path / "run").iterdir()} == before


def test_a_folder_with_another_config_or_model_is_refused(tmp_path: Path) -> None:
    fit(_Linear(), _loss, _sample, PLAN, tmp_path / "run", config={"data": {"patients": [1, 2]}})
    with pytest.raises(InputError, match=r"config.data.patients is \[1, 2\] there and \[1, 3\] here"):
        fit(_Linear(), _loss, _sample, PLAN, tmp_path / "run", config={"data": {"patients": [1, 3]}})
    with pytest.raises(InputError, match=r"model\.weight is float64 \(4,\) there and float32 \(4,\) here"):
        fit(_Linear().float(), _loss, _sample, PLAN, tmp_path / "run", config={"data": {"patients": [1, 2]}})


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    def begin(name: str) -> None:
        fit(_Linear(), _loss, _sample, PLAN, tmp_path / name)

    (tmp_path / "file").write_text("")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "training.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / "other").mkdir()
    torch.save({"weight": torch.ones(2)}, tmp_path / "other" / "training.pt")
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "training.csv").write_text("mine\n")
    for name, match in (
        ("file", "cannot be the folder"),
        ("absent/run", "cannot be the folder"),
        ("damaged", "is damaged"),
        ("other", "holds no training"),
        ("log", "give an empty folder"),
    ):
        with pytest.raises(InputError, match=match):
            begin(name)
    begin("run")
    (tmp_path / "run" / "training.csv").write_text("step\n")
    with pytest.raises(InputError, match="has lost rows"):
        begin("run")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path, value: float) -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return _loss(model, batch) * (value if broken and float(model.weight.detach()[0]) != 0.1 else 1)

    broken = True
    with pytest.raises(InputError, match=r"loss is not finite in step 2 of 12; .*run keeps the training after step 0"):
        fit(_Linear(), loss, _sample, PLAN, tmp_path / "run")
    broken = False
    result = fit(_Linear(), loss, _sample, PLAN, tmp_path / "run")
    _assert_equal(result.state, fit(_Linear(), _loss, _sample, PLAN, tmp_path / "whole").state)


def test_a_gradient_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gradient is not finite in step 1"):
        fit(_Linear(), lambda model, _: (0 * model.weight).sum().sqrt(), _sample, PLAN, tmp_path / "run")


def test_a_metric_that_is_missing_or_no_number_stops_the_training(tmp_path: Path) -> None:
    plan = replace(PLAN, metric="psnr", validate_every=6)
    with pytest.raises(InputError, match="returned ssim, but not the metric 'psnr'"):
        fit(_Linear(), _loss, _sample, plan, tmp_path / "a", validate=lambda _: {"ssim": 1.0})
    with pytest.raises(InputError, match="'psnr' is nan after step 6"):
        fit(_Linear(), _loss, _sample, plan, tmp_path / "b", validate=lambda _: {"psnr": float("nan")})
    names = iter("xy")
    with pytest.raises(InputError, match="has the columns step, psnr, x, not step, psnr, y"):
        fit(_Linear(), _loss, _sample, plan, tmp_path / "c", validate=lambda _: {"psnr": 1.0, next(names): 1.0})
    with pytest.raises(InputError, match="metric is None"):
        fit(_Linear(), _loss, _sample, PLAN, tmp_path / "d", validate=lambda _: {})
    with pytest.raises(InputError, match="metric is 'psnr'"):
        fit(_Linear(), _loss, _sample, plan, tmp_path / "e")


def test_a_loss_is_a_real_scalar(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        fit(_Linear(), lambda model, _: model.weight, _sample, PLAN, tmp_path / "a")
    with pytest.raises(ValueError, match="complex128"):
        fit(_Linear(), lambda model, _: model.phase.sum(), _sample, PLAN, tmp_path / "b")


def test_learning_rates_are_found_by_parameter_and_by_submodule(tmp_path: Path) -> None:
    model = _Model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    plan = replace(PLAN, learning_rates={"layers": 0.0, "layers.4.bias": 0.1})
    fit(model, _loss, _sample, plan, tmp_path / "run")
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"layers.4.bias", "beta", "phase"}
    for name in ("gamma", "frozen", "lay"):
        with pytest.raises(InputError, match=f"names '{name}', which the model does not train"):
            fit(_Model(), _loss, _sample, replace(PLAN, learning_rates={name: 0.1}), tmp_path / name)


def test_a_model_without_parameters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to train"):
        fit(nn.Identity(), _loss, _sample, PLAN, tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        {"n_steps": 0},
        {"n_steps": 1.5},
        {"n_batches": True},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate": "fast"},
        {"learning_rates": {"beta": -1.0}},
        {"weight_decay": -0.1},
        {"schedule": "linear"},
        {"n_warm_up": -1},
        {"clip_norm": 0},
        {"ema_decay": 1.0},
        {"seed": None},
        {"validate_every": 0},
        {"metric_goal": "best"},
        {"checkpoint_every_s": -1},
    ],
)
def test_a_plan_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"expected"):
        replace(PLAN, **change)


def test_batches_of_any_structure_are_moved() -> None:
    Pair = namedtuple("Pair", "x y")
    batch = {"a": [torch.ones(1), "text"], "b": (nn.Linear(1, 1), 3), "c": Pair(torch.ones(2), None)}
    moved = learning._moved(batch, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["a"][1] == "text"
    assert moved["b"][0].weight.is_meta
    assert moved["b"][1] == 3
    assert moved["c"].x.is_meta
    assert moved["c"].y is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_in_mixed_precision_and_goes_on(tmp_path: Path) -> None:
    plan = replace(FULL_PLAN, mixed_precision=True, checkpoint_every_s=0.0)
    state = torch.cuda.get_rng_state()
    with pytest.raises(RuntimeError):
        fit(_Model(), _failing(8, _stop), _sample, plan, tmp_path / "run", validate=_validate_on_gpu, device="cuda")
    model = _Model()
    result = fit(model, _loss, _sample, plan, tmp_path / "run", validate=_validate_on_gpu, device="cuda")
    assert model.beta.is_cuda
    assert result.state["beta"].device.type == "cpu"
    assert torch.equal(torch.cuda.get_rng_state(), state)
    on_cpu = fit(_Model(), _loss, _sample, plan, tmp_path / "cpu", validate=_validate)
    assert result.metrics["error"] == pytest.approx(on_cpu.metrics["error"], rel=0.5)


def _validate_on_gpu(model: nn.Module) -> dict[str, float]:
    x, target = _sample(0, torch.Generator().manual_seed(99))
    return {"error": float(_loss(model, (x.cuda(), target.cuda())))}
