"""Training of any module on any loss: killed and begun again, or shared among processes, it gives the same weights."""

import atexit
import csv
import hashlib
import io
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import distributed, nn

from operators.checkpoint import as_json, read_tensors, write_tensors
from operators.device import usable_device
from operators.errors import InputError
from operators.io.files import replacing

Loss = Callable[[Any, Any], torch.Tensor]
Sample = Callable[[int, torch.Generator], Any]
Validate = Callable[[Any], Mapping[str, float]]
Progress = Callable[[int, int], None]

_STATE, _SUMMARY, _PICTURE = "training.pt", "summary.json", "loss.png"
_TRAINING_TABLE, _VALIDATION_TABLE = "training.csv", "validation.csv"
_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """How to train. A training goes on only under the plan that it was begun with, but for ``checkpoint_every_s``.

    Parameters
    ----------
    n_steps
        Number of optimiser steps.
    learning_rate
        Of AdamW, at its highest.
    learning_rates
        Learning rates of single parameters by their name in the module, or by the name of a submodule for all that it
        holds.
    weight_decay
        Of AdamW, decoupled from the gradient.
    schedule
        ``"constant"``, or ``"cosine"`` for a fall to 0 along half a period.
    n_warm_up
        Number of steps at the start over which the learning rate rises linearly.
    n_batches
        Number of batches over which each step averages the gradient. They are shared among the processes, so that the
        weights do not depend on how many these are.
    clip_norm
        Longest gradient, as the norm over all parameters; longer ones are shortened.
    ema_decay
        Weight of the past in an exponential moving average of the parameters, which is then the result; no average by
        default. In step t it is at most (1 + t) / (10 + t), so that the average forgets where it started.
    mixed_precision
        Evaluate the loss under bfloat16 autocast where the device is CUDA; elsewhere this changes nothing.
    seed
        Where all randomness comes from.
    validate_every
        Number of steps between validations; by default only the last step is validated.
    metric
        Name of the metric, among those that the validation returns, by which the best weights are chosen.
    metric_goal
        Whether the best is the lowest (``"min"``) or the highest (``"max"``).
    log_every
        Number of steps that each row of the log averages.
    checkpoint_every_s
        Seconds of work that a kill may cost.

    Raises
    ------
    InputError
        If a value is out of its range.
    """

    n_steps: int
    learning_rate: float
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    n_warm_up: int = 0
    n_batches: int = 1
    clip_norm: float | None = None
    ema_decay: float | None = None
    mixed_precision: bool = False
    seed: int = 0
    validate_every: int | None = None
    metric: str | None = None
    metric_goal: Literal["min", "max"] = "min"
    log_every: int = 10
    checkpoint_every_s: float = 120.0

    def __post_init__(self) -> None:
        for name in ("n_steps", "n_batches", "log_every", "validate_every"):
            self._check(name, lambda value: _is_whole(value) and value >= 1, "a whole number, 1 or more")
        for name in ("n_warm_up", "seed"):
            self._check(name, lambda value: _is_whole(value) and value >= 0, "a whole number, 0 or more")
        for name in ("learning_rate", "clip_norm"):
            self._check(name, lambda value: _is_number(value) and value > 0, "a positive number")
        for name in ("weight_decay", "checkpoint_every_s"):
            self._check(name, lambda value: _is_number(value) and value >= 0, "a number, 0 or more")
        self._check("ema_decay", lambda value: _is_number(value) and 0 < value < 1, "a number between 0 and 1")
        self._check("schedule", lambda value: value in ("constant", "cosine"), "constant or cosine")
        self._check("metric_goal", lambda value: value in ("min", "max"), "min or max")
        for name, value in self.learning_rates.items():
            if not _is_number(value) or value < 0:
                raise InputError(f"The learning rate of {name!r} is {value!r}; expected a number, 0 or more.")

    def _check(self, name: str, is_valid: Callable[[Any], bool], expected: str) -> None:
        value = getattr(self, name)
        may_be_none = name in ("validate_every", "clip_norm", "ema_decay")
        if not (value is None and may_be_none) and not is_valid(value):
            raise InputError(f"{name} is {value!r}; expected {expected}.")


@dataclass(frozen=True, slots=True, eq=False)
class FitResult:
    """What a training led to.

    Parameters
    ----------
    state
        The weights, on the CPU: the best by the plan's metric where there is a validation, otherwise those after the
        last step; averaged where the plan averages.
    step
        Number of steps that led to them.
    metrics
        What their validation returned; empty without one.
    seconds
        Time spent on training, validation included, over all calls.
    """

    state: dict[str, torch.Tensor]
    step: int
    metrics: dict[str, float]
    seconds: float


def fit(
    model: nn.Module,
    loss: Loss,
    sample: Sample,
    plan: TrainingPlan,
    folder: Path | str,
    *,
    validate: Validate | None = None,
    config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
) -> FitResult:
    """Train a module with AdamW, or go on with a training that was stopped.

    The folder holds all that is needed to go on; a second call with the same arguments goes on where the last one was
    saved. On a CPU (with the same number of threads and processes) its weights are then those of a training that was
    never stopped, bit by bit. Ctrl-C finishes the step, saves it and raises ``KeyboardInterrupt``; a second one stops
    at once. Started by ``torchrun``, the processes share the batches of each step, and only the first one writes.

    The folder gets ``training.pt`` (the state), ``training.csv`` and ``validation.csv`` (the log, row by row), and at
    the end ``summary.json`` and ``loss.png``.

    Parameters
    ----------
    model
        The module. Its parameters that require a gradient are trained; at the end it holds the state of the result.
    loss
        ``loss(model, batch)`` returns the loss as a real tensor of shape ``()``. The global generators of torch are
        seeded before each call, for modules that draw numbers themselves, and are as before when ``fit`` returns.
    sample
        ``sample(index, generator)`` returns the batch of this index, which counts all batches of all steps from 0. It
        depends on nothing but the index and the CPU generator, which is seeded anew for each index. Tensors and
        modules, also those in lists, tuples and dictionaries, are moved to the device.
    plan
        How to train.
    folder
        Where the training is kept; created if need be.
    validate
        ``validate(model)`` returns metrics by name. It is called without gradients, with the averaged weights where
        there are any, by the first process alone.
    config
        What else defines this training, such as the model and the data; anything that JSON can hold. A folder with
        another is refused.
    progress
        Called with (steps done, steps in all).
    device
        Where to train. Under ``torchrun``, ``"cuda"`` is the device of the process's local rank.

    Returns
    -------
    FitResult
        The weights and how good they are.

    Raises
    ------
    InputError
        If the folder holds a training with another plan, config or model, if it cannot be used, if the loss, its
        gradient or the metric is not finite (the folder then keeps the state saved last), or if the plan does not fit
        the model, the validation or the number of processes.
    ValueError
        If the loss has another shape or field.
    """
    if (validate is None) != (plan.metric is None):
        raise InputError(f"metric is {plan.metric!r}; expected its name with a validation, and None without.")
    processes = _processes(device)
    model.to(processes.device)
    with _global_generators_kept(processes.device), _mode(model, training=True):
        training = _Training(model, plan, config or {}, Path(folder), processes)
        training.begin()
        _run(training, loss, sample, validate, progress)
        return training.finish()


def seed_of(seed: int, purpose: str, index: int) -> int:
    """Seed of a generator of its own, which no other index of a purpose shares.

    Parameters
    ----------
    seed
        Of the training.
    purpose
        What the numbers are for.
    index
        Which one.

    Returns
    -------
    int
        Below 2³²: torch's CPU generator uses no more of its seed.
    """
    start = int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:4])
    return (start + index * 0x9E3779B1) % 2**32  # an odd stride visits all before one comes a second time


def _run(
    training: "_Training", loss: Loss, sample: Sample, validate: Validate | None, progress: Progress | None
) -> None:
    plan, processes = training.plan, training.processes

    def report() -> None:
        if progress is not None and processes.is_first:
            progress(training.step, plan.n_steps)

    report()
    with _interrupts_deferred() as is_interrupted:
        while training.step < plan.n_steps:
            training.advance(loss, sample)
            is_last = training.step == plan.n_steps
            is_validated = is_last or (plan.validate_every is not None and training.step % plan.validate_every == 0)
            if validate is not None and is_validated and processes.is_first:
                training.validate(validate)
            report()
            interrupted = processes.any(is_interrupted())
            training.save(at_once=interrupted or is_last)
            if interrupted:
                raise KeyboardInterrupt


class _Training:
    """The state of a training, in memory and in its folder."""

    def __init__(
        self,
        model: nn.Module,
        plan: TrainingPlan,
        config: Mapping[str, Any],
        folder: Path,
        processes: "_Processes",
    ) -> None:
        if plan.n_batches % processes.n:
            raise InputError(
                f"n_batches is {plan.n_batches}, which cannot be shared equally among {processes.n} processes; make it "
                f"a multiple of their number."
            )
        self.model, self.plan, self.folder, self.processes = model, plan, folder, processes
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise InputError("The model has no parameter that requires a gradient; there is nothing to train.")
        self.optimiser = torch.optim.AdamW(
            [
                {"params": [p], "lr": rate, "highest_lr": rate}
                for p, rate in zip(self.parameters.values(), _learning_rates(plan, self.parameters), strict=True)
            ],
            weight_decay=plan.weight_decay,
        )
        self.average = {name: p.detach().clone() for name, p in self.parameters.items() if plan.ema_decay is not None}
        self.identity = _identity(model, plan, config)
        self.step = 0
        self.best: dict[str, Any] | None = None
        self.unlogged: list[tuple[float, float]] = []  # loss and norm of the gradient
        self.tables = {name: _Table(folder / name) for name in (_TRAINING_TABLE, _VALIDATION_TABLE)}
        self.saved_step = -1
        self.saved_at = self.started_at = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started_at

    def begin(self) -> None:
        """Take up the state of the folder, or put the present one there."""
        stored = self.processes.from_first(lambda: self._stored() or self._snapshot())
        self.model.load_state_dict(stored["model"])
        self.optimiser.load_state_dict(stored["optimiser"])
        for name, average in self.average.items():
            average.copy_(stored["average"][name])
        self.step, self.best, self.unlogged = stored["step"], stored["best"], [tuple(row) for row in stored["unlogged"]]
        self.started_at -= stored["seconds"]
        if not self.processes.is_first:
            return
        for name, table in self.tables.items():
            table.cut(stored["table_bytes"][name])
        if (self.folder / _STATE).exists():
            self.saved_step = self.step
        else:
            self.save(at_once=True)

    def advance(self, loss: Loss, sample: Sample) -> None:
        """Make one step."""
        plan, processes = self.plan, self.processes
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=processes.device)
        for n_before in range(processes.rank, plan.n_batches, processes.n):
            total += self._add_gradient(loss, sample, self.step * plan.n_batches + n_before)
        self._share_gradients(total)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), plan.clip_norm or math.inf)
        value, length = torch.stack((total, norm.to(total))).tolist()
        self._check_finite(value, length)
        factor = _schedule(plan, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = group["highest_lr"] * factor
        self.optimiser.step()
        self.step += 1
        self._update_average()
        self._log(value, length, plan.learning_rate * factor)

    def validate(self, validate: Validate) -> None:
        """Validate the present weights, and keep them if they are the best so far."""
        name, sign = self.plan.metric, 1 if self.plan.metric_goal == "min" else -1
        _seed_global_generators(seed_of(self.plan.seed, "validation", 0), self.processes.device)
        with self._averaged(), _mode(self.model, training=False), torch.no_grad():
            metrics = {key: float(value) for key, value in validate(self.model).items()}
        if name not in metrics:
            raise InputError(f"The validation returned {', '.join(metrics)}, but not the metric {name!r} of the plan.")
        if math.isnan(metrics[name]):
            raise InputError(f"The metric {name!r} is nan after step {self.step}; {self._what_is_kept()}.")
        self.tables[_VALIDATION_TABLE].append({"step": self.step} | metrics)
        if self.best is None or sign * metrics[name] < sign * self.best["metrics"][name]:
            self.best = {"step": self.step, "metrics": metrics, "state": self._present_weights()}

    def save(self, *, at_once: bool) -> None:
        """Write the state to the folder, if it is time or has to be at once; in the first process."""
        is_due = at_once or time.monotonic() - self.saved_at >= self.plan.checkpoint_every_s
        if not is_due or not self.processes.is_first:
            return
        write_tensors(self.folder / _STATE, self._snapshot(), overwrite=True)
        self.saved_step, self.saved_at = self.step, time.monotonic()

    def finish(self) -> FitResult:
        """Put the result into the module and describe it in the folder."""
        self.optimiser.zero_grad(set_to_none=True)
        result = self.processes.from_first(
            lambda: self.best or {"step": self.step, "metrics": {}, "state": self._present_weights()}
        )
        self.model.load_state_dict(result["state"])
        if self.processes.is_first:
            self._write_summary(result["step"], result["metrics"])
            _write_picture(self.folder, self.plan.metric)
        return FitResult(seconds=self.seconds, **result)

    def _add_gradient(self, loss: Loss, sample: Sample, index: int) -> torch.Tensor:
        plan, device = self.plan, self.processes.device
        _seed_global_generators(seed_of(plan.seed, "model", index), device)
        generator = torch.Generator().manual_seed(seed_of(plan.seed, "sample", index))
        batch = _moved(sample(index, generator), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=plan.mixed_precision and device.type == "cuda"):
            value = loss(self.model, batch)
        if value.shape != () or not value.is_floating_point():
            raise ValueError(f"The loss has shape {tuple(value.shape)} and is {value.dtype}; expected a real scalar.")
        share = value / plan.n_batches
        share.backward()
        return share.detach()

    def _share_gradients(self, total: torch.Tensor) -> None:
        # A parameter that no batch needed counts as one with gradient 0, in one process as in several.
        for p in self.parameters.values():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad.contiguous()
            self.processes.sum_(p.grad)
        self.processes.sum_(total)
        for buffer in self.model.buffers():  # such as running means, which each process updated with its own batches
            self.processes.take_from_first_(buffer)

    def _update_average(self) -> None:
        if self.plan.ema_decay is None:
            return
        decay = min(self.plan.ema_decay, (1 + self.step) / (10 + self.step))
        for name, average in self.average.items():
            average.lerp_(self.parameters[name].detach(), 1 - decay)

    def _log(self, loss: float, norm: float, learning_rate: float) -> None:
        self.unlogged.append((loss, norm))
        if not self.processes.is_first:
            self.unlogged.clear()
        elif self.step % self.plan.log_every == 0 or self.step == self.plan.n_steps:
            losses, norms = zip(*self.unlogged, strict=True)
            row = {
                "step": self.step,
                "loss": math.fsum(losses) / len(losses),
                "gradient_norm": math.fsum(norms) / len(norms),
                "learning_rate": learning_rate,
                "seconds": round(self.seconds, 3),
            }
            self.tables[_TRAINING_TABLE].append(row)
            self.unlogged.clear()

    def _check_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = "gradient" if math.isfinite(loss) else "loss"
        raise InputError(
            f"The {what} is not finite in step {self.step + 1} of {self.plan.n_steps}; {self._what_is_kept()}, lower "
            f"the learning rate or limit the gradient (clip_norm)."
        )

    def _what_is_kept(self) -> str:
        return f"{self.folder} keeps the training after step {self.saved_step}"

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Let the module have the averaged weights for a while."""
        present = {name: self.parameters[name].detach().clone() for name in self.average}
        _copy_into(self.parameters, self.average)
        try:
            yield
        finally:
            _copy_into(self.parameters, present)

    def _present_weights(self) -> dict[str, torch.Tensor]:
        with self._averaged():
            return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}

    def _snapshot(self) -> dict[str, Any]:
        return {
            "format_version": _FORMAT_VERSION,
            "identity": json.dumps(self.identity),
            "step": self.step,
            "seconds": self.seconds,
            "unlogged": [list(row) for row in self.unlogged],
            "model": dict(self.model.state_dict()),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
            "table_bytes": {name: table.n_bytes for name, table in self.tables.items()},
        }

    def _stored(self) -> dict[str, Any] | None:
        """What the folder holds, if it belongs to this training; ``None`` where nothing was begun."""
        path = self.folder / _STATE
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be the folder of a training ({error.strerror}).") from error
        if not path.exists():
            for table in self.tables.values():
                if table.n_bytes:
                    raise InputError(f"{table.path} exists, but no {_STATE} beside it; give an empty folder.")
            return None
        stored = read_tensors(path)
        if not isinstance(stored, dict) or stored.get("format_version") != _FORMAT_VERSION:
            raise InputError(f"{path} holds no training that this version can go on with; give another folder.")
        difference = _difference(json.loads(stored["identity"]), self.identity)
        if difference:
            raise InputError(
                f"{self.folder} holds another training: {difference}; give another folder, or what it was begun with."
            )
        return stored

    def _write_summary(self, step: int, metrics: dict[str, float]) -> None:
        summary = {
            "plan": self.identity["plan"],
            "config": self.identity["config"],
            "n_parameters": sum(p.numel() for p in self.parameters.values()),
            "seconds": round(self.seconds, 3),
            "result": {"step": step, "metrics": metrics, "averaged": bool(self.average)},
            "device": str(self.processes.device),
            "n_processes": self.processes.n,
            "torch": torch.__version__,
        }
        with replacing(self.folder / _SUMMARY, overwrite=True) as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


class _Table:
    """A CSV file that only grows, but for rows that were written after the state that a training goes on from."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def n_bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def cut(self, n_bytes: int) -> None:
        if self.n_bytes < n_bytes:
            raise InputError(f"{self.path} has lost rows since {_STATE} was saved; put it back, or begin anew.")
        if self.n_bytes > n_bytes:
            os.truncate(self.path, n_bytes)

    def append(self, row: Mapping[str, float]) -> None:
        try:
            with self.path.open("a+", newline="", encoding="utf-8") as stream:
                stream.seek(0)
                header = next(csv.reader(stream), None)
                if header is not None and header != list(row):
                    raise InputError(f"{self.path} has the columns {', '.join(header)}, not {', '.join(row)}.")
                writer = csv.writer(stream, lineterminator="\n")
                writer.writerows([row.values()] if header else [row.keys(), row.values()])
        except OSError as error:
            raise InputError(f"{self.path} could not be written: {error.strerror}.") from error

    def columns(self) -> dict[str, list[float]]:
        if not self.n_bytes:
            return {}
        with self.path.open(newline="", encoding="utf-8") as stream:
            header, *rows = csv.reader(stream)
        return {name: [float(row[i]) for row in rows] for i, name in enumerate(header)}


@dataclass(frozen=True, slots=True)
class _Processes:
    """The processes that train together, as one of them sees it."""

    rank: int
    n: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum_(self, tensor: torch.Tensor) -> None:
        if self.n > 1:
            distributed.all_reduce(_sendable(tensor))

    def take_from_first_(self, tensor: torch.Tensor) -> None:
        if self.n > 1:
            received = tensor.clone(memory_format=torch.contiguous_format)
            distributed.broadcast(_sendable(received), 0)
            tensor.copy_(received)

    def any(self, flag: bool) -> bool:
        count = torch.tensor(float(flag), device=self.device if self.n > 1 else "cpu")
        self.sum_(count)
        return bool(count)

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What the first process makes of tensors, numbers and texts, or its InputError; in all of them."""
        if self.n == 1:
            return make()
        box: list[Any] = [None]
        if self.is_first:
            try:
                buffer = io.BytesIO()
                torch.save(make(), buffer)
                box = [buffer.getvalue()]
            except InputError as error:
                box = [error]
        distributed.broadcast_object_list(box, device=self.device)
        if isinstance(box[0], InputError):
            raise box[0]
        return torch.load(io.BytesIO(box[0]), map_location="cpu", weights_only=True)


def _processes(device: str | torch.device) -> _Processes:
    """The processes that torchrun started; where nobody joined them before, they stay joined until they end."""
    if str(device) == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    usable = usable_device(device)
    if usable.type == "cuda" and usable.index is None:
        usable = torch.device("cuda", torch.cuda.current_device())
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if usable.type == "cuda" else "gloo")
        atexit.register(_leave_processes)
    if distributed.is_initialized():
        return _Processes(distributed.get_rank(), distributed.get_world_size(), usable)
    return _Processes(0, 1, usable)


def _leave_processes() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def _interrupts_deferred() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C wait until somebody asks whether there was one."""
    # Only Python's main thread hears signals, and only a handler that Python installed can be put back.
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield lambda: False
        return
    interrupts: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if interrupts:
            raise KeyboardInterrupt
        interrupts.append(number)

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(interrupts)
    finally:
        signal.signal(signal.SIGINT, previous)
    if interrupts:
        raise KeyboardInterrupt


@contextmanager
def _global_generators_kept(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _seed_global_generators(seed: int, device: torch.device) -> None:
    # torch.manual_seed would seed every GPU of the machine; only this one's generator is put back at the end.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _schedule(plan: TrainingPlan, step: int) -> float:
    """The factor of the learning rate in a step, counted from 0."""
    if step < plan.n_warm_up:
        return (step + 1) / plan.n_warm_up
    if plan.schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * (step - plan.n_warm_up) / (plan.n_steps - plan.n_warm_up))) / 2


def _learning_rates(plan: TrainingPlan, parameters: Mapping[str, nn.Parameter]) -> list[float]:
    def rate(name: str) -> float:
        holders = [".".join(name.split(".")[:n]) for n in range(name.count(".") + 1, 0, -1)]
        return next((plan.learning_rates[holder] for holder in holders if holder in plan.learning_rates), default)

    default = plan.learning_rate
    for wanted in plan.learning_rates:
        if not any(name == wanted or name.startswith(f"{wanted}.") for name in parameters):
            raise InputError(
                f"learning_rates names {wanted!r}, which the model does not train; it trains {', '.join(parameters)}."
            )
    return [rate(name) for name in parameters]


def _identity(model: nn.Module, plan: TrainingPlan, config: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for a training to be the same."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    tensors = {
        name: f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}{' frozen' * (name in frozen)}"
        for name, tensor in model.state_dict().items()
    }
    decisive = {name: value for name, value in asdict(plan).items() if name != "checkpoint_every_s"}
    return {"plan": as_json("plan", decisive), "config": as_json("config", config), "model": tensors}


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    old, new = dict(_leaves(there)), dict(_leaves(here))
    nothing = "absent"
    names = [name for name in {**old, **new} if old.get(name, nothing) != new.get(name, nothing)]
    described = [f"{name} is {old.get(name, nothing)} there and {new.get(name, nothing)} here" for name in names[:3]]
    return ", ".join(described) + (f", and {len(names) - 3} more differ" if len(names) > 3 else "")


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, torch.Tensor | nn.Module):
        return batch.to(device)
    if isinstance(batch, dict):
        return {name: _moved(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_make"):
        return type(batch)._make(_moved(value, device) for value in batch)
    if isinstance(batch, list | tuple):
        return type(batch)(_moved(value, device) for value in batch)
    return batch


def _copy_into(targets: Mapping[str, nn.Parameter], sources: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, source in sources.items():
            targets[name].copy_(source)


def _sendable(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a type that every backend of torch.distributed takes."""
    if tensor.is_complex():
        return torch.view_as_real(tensor)
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _write_picture(folder: Path, metric: str | None) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    training, validation = (_Table(folder / name).columns() for name in (_TRAINING_TABLE, _VALIDATION_TABLE))
    curves = [("training loss", training["step"], training["loss"])]
    if metric is not None:
        curves.append((f"validation {metric}", validation["step"], validation[metric]))
    figure = Figure(figsize=(5 * len(curves), 3.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, steps, values) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        axes.plot(steps, values, marker="." if len(steps) < 50 else "")
        axes.set(xlabel="step", ylabel=name, yscale="log" if min(values) > 0 else "linear")
        axes.grid(alpha=0.3)
    with replacing(folder / _PICTURE, overwrite=True) as temporary:
        figure.savefig(temporary)
