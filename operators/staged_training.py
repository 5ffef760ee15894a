"""Training of reconstructions stage by stage on crops, which needs neither a large memory nor a GPU at full size."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from operators.errors import InputError
from operators.learning import FitResult, Progress, TrainingPlan, Validate, fit, seed_of
from operators.linear_operator import LinearOperator
from operators.reconstructor import Reconstructor, StagedRefinement

_N_TRIES = 8  # to find a crop that shows something
_OBJECT = 0.2  # of the root mean square of the start: brighter than this is an object


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """How a reconstruction is trained stage by stage.

    In each round the reconstruction, as far as it has come, is applied to ``n_scans`` whole scans, and what its priors
    see there is kept. Then the priors are trained on crops of that: in round r those of the first r stages, and in
    rounds after the last stage those of all. Gradients never pass through the operator, so that data steps are not
    trained.

    Parameters
    ----------
    n_rounds
        Number of rounds, each of as many optimiser steps as the plan says; at least the number of stages.
    n_scans
        Number of scans that are reconstructed in each round.
    crop
        Side of the square crops in pixels.
    margin
        Pixels along the sides of a crop on which no loss is taken, for their surroundings are missing.

    References
    ----------
    Chun and Fessler, Deep BCD-Net using identical encoding-decoding CNN structures for iterative image recovery, 2018,
    train stage after stage too, there with a network for each.

    Raises
    ------
    InputError
        If a number is out of its range.
    """

    n_rounds: int
    n_scans: int = 48
    crop: int = 96
    margin: int = 8

    def __post_init__(self) -> None:
        if self.n_rounds < 1 or self.n_scans < 1:
            raise InputError(f"n_rounds is {self.n_rounds} and n_scans {self.n_scans}; expected 1 or more.")
        if not 0 <= 2 * self.margin < self.crop:
            raise InputError(f"A margin of {self.margin} leaves nothing of crops of {self.crop} pixels.")


class Scan(NamedTuple):
    """One scan and the image that it should give.

    Parameters
    ----------
    y
        Data, ``A.codomain.shape``.
    A
        Their operator, to images ``(y, x)``.
    target
        The image, like what A acts on.
    noise_std
        Noise level of the data.
    x0
        Image to start from; by default that of the reconstruction.
    ignored
        Where no loss is taken, bool ``(y, x)``; nowhere by default.
    """

    y: torch.Tensor
    A: LinearOperator
    target: torch.Tensor
    noise_std: float
    x0: torch.Tensor | None = None
    ignored: torch.Tensor | None = None


DrawScan = Callable[[int, torch.Generator], Scan]


def fit_stages(
    model: Reconstructor,
    draw_scan: DrawScan,
    stages: Stages,
    plan: TrainingPlan,
    folder: Path | str,
    *,
    batch_size: int = 4,
    validate: Validate | None = None,
    config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
) -> FitResult:
    """Train a reconstruction stage by stage, or go on with a training that was stopped.

    Each round is a training of `operators.learning.fit` in a folder of its own, with all that this says of being
    stopped; what the priors see is computed again when a round goes on, from the same weights. The loss is the mean
    squared error, relative to that of what the prior sees in this scan at this stage.

    Parameters
    ----------
    model
        A `operators.reconstructor.StagedRefinement`.
    draw_scan
        ``draw_scan(index, generator)`` returns the scan of this index, which depends on nothing but index and
        generator.
    stages
        How.
    plan
        How each round is trained; the learning rate begins anew in each.
    folder
        Where the training is kept.
    batch_size
        Crops in a batch, all of one stage.
    validate, config, progress, device
        As for `operators.learning.fit`; progress counts scans as steps, too.

    Returns
    -------
    FitResult
        Of the last round, with steps and seconds of all.

    Raises
    ------
    InputError
        As for `operators.learning.fit`; and if the reconstruction has no stages or more than there are rounds, or
        images are smaller than crops.
    """
    if not isinstance(model, StagedRefinement):
        raise InputError(f"{type(model).__name__} has no stages to be trained one by one; leave the table stages out.")
    if stages.n_rounds < model.n_stages:
        raise InputError(f"There are {stages.n_rounds} rounds for {model.n_stages} stages; expected as many or more.")
    folder = Path(folder)
    folder.mkdir(exist_ok=True, parents=True)
    per_round, seconds = plan.n_steps + stages.n_scans, 0.0
    for n_done in range(stages.n_rounds):
        # A generator is seeded by the plan's seed and an index, so each round needs a seed of its own.
        own_plan = replace(plan, seed=plan.seed * stages.n_rounds + n_done)
        report = functools.partial(_report, progress, n_done * per_round, stages.n_rounds * per_round)
        n_seen = min(n_done + 1, model.n_stages)
        seen = _Seen(model, n_seen, draw_scan, stages, own_plan.seed, torch.device(device), report)
        result = fit(
            model,
            loss_of,
            functools.partial(seen.crops, batch_size),
            own_plan,
            folder / f"round{n_done + 1}",
            validate=validate,
            config={**(config or {}), "stages": asdict(stages), "round": n_done + 1, "batch_size": batch_size},
            progress=seen.report_step,
            device=device,
        )
        seconds += result.seconds
    return replace(result, seconds=seconds, step=(stages.n_rounds - 1) * plan.n_steps + result.step)


def _report(progress: Progress | None, n_before: int, n_all: int, n: int) -> None:
    if progress is not None:
        progress(n_before + n, n_all)


class Crops(NamedTuple):
    """What one prior sees, and what it should make of it.

    Parameters
    ----------
    stage
        Index of the stage.
    seen, target
        Real or complex ``(crop, y, x)``.
    noise_std, undersampling
        Of their scans, as in `operators.reconstructor.StageInputs`, real ``crop``.
    weights
        Of the squared errors of pixels, real ``(crop, y, x)``.
    """

    stage: int
    seen: torch.Tensor
    target: torch.Tensor
    noise_std: torch.Tensor
    undersampling: torch.Tensor
    weights: torch.Tensor


def loss_of(model: StagedRefinement, crops: Crops) -> torch.Tensor:
    """Weighted mean squared error of one stage.

    Parameters
    ----------
    model
        What is trained.
    crops
        A batch.

    Returns
    -------
    torch.Tensor
        Real ``()``.
    """
    error = model.prior_step(crops.stage, crops.seen, crops.noise_std, crops.undersampling) - crops.target
    return (crops.weights * error.abs().square()).mean()


class _Kept(NamedTuple):
    """What is kept of a scan, all of it scaled."""

    images: torch.Tensor  # (stage, y, x)
    target: torch.Tensor
    noise_std: torch.Tensor
    undersampling: torch.Tensor
    weights: torch.Tensor  # of squared errors, (stage, y, x)


class _Seen:
    """What the priors of the first stages see in some scans; computed when it is first asked for."""

    def __init__(
        self,
        model: StagedRefinement,
        n_stages: int,
        draw_scan: DrawScan,
        stages: Stages,
        seed: int,
        device: torch.device,
        report: Callable[[int], None],
    ) -> None:
        self.model = copy.deepcopy(model).eval()  # a round that goes on begins with other weights
        self.n_stages, self.draw_scan, self.stages = n_stages, draw_scan, stages
        self.seed, self.device, self.report = seed, device, report
        self.kept: list[_Kept] = []

    def report_step(self, n_done: int, _: int) -> None:
        """Tell how many steps of the round are done."""
        if n_done:  # or its scans come first
            self.report(self.stages.n_scans + n_done)

    def crops(self, n: int, _: int, generator: torch.Generator) -> Crops:
        """A batch of one stage; its index tells nothing that its generator does not."""
        if not self.kept:
            self._compute()
        stage = int(torch.randint(self.n_stages, (), generator=generator))
        crops = [self._crop(stage, generator) for _ in range(n)]
        return Crops(stage, *(torch.stack(part) for part in zip(*crops, strict=True)))

    @torch.no_grad()
    def _compute(self) -> None:
        self.model.to(self.device)
        for j in range(self.stages.n_scans):
            scan = self.draw_scan(j, torch.Generator().manual_seed(seed_of(self.seed, "scan", j)))
            self.kept.append(self._kept(scan))
            self.report(j + 1)

    def _kept(self, scan: Scan) -> _Kept:
        if min(scan.target.shape) < self.stages.crop:
            raise InputError(f"Images of {tuple(scan.target.shape)} pixels have no crops of {self.stages.crop}.")
        y, A = scan.y.to(self.device)[None], scan.A.to(self.device)
        x0 = None if scan.x0 is None else scan.x0.to(self.device)[None]
        seen = self.model.stage_inputs(y, A, scan.noise_std, x0, n_stages=self.n_stages)
        images, scale = seen.images[:, 0].cpu(), seen.scale[0].cpu()
        target = scan.target / scale
        used = torch.ones(target.shape) if scan.ignored is None else (~scan.ignored).float()
        power = (used * (images - target).abs().square()).sum(dim=(-2, -1), keepdim=True) / used.sum()
        weights = used / torch.where(power > 0, power, 1.0)
        return _Kept(images, target, seen.noise_std[0].cpu(), seen.undersampling[0].cpu(), weights)

    def _crop(self, stage: int, generator: torch.Generator) -> Sequence[torch.Tensor]:
        kept = self.kept[int(torch.randint(len(self.kept), (), generator=generator))]
        size, margin = self.stages.crop, self.stages.margin
        n_y, n_x = kept.target.shape
        for _ in range(_N_TRIES):
            top, left = (int(torch.randint(n - size + 1, (), generator=generator)) for n in (n_y, n_x))
            if kept.target[top + size // 2, left + size // 2].abs() > _OBJECT:
                break
        window = slice(top, top + size), slice(left, left + size)
        weights = torch.zeros(size, size)
        inner = slice(margin, size - margin)
        weights[inner, inner] = kept.weights[stage][window][inner, inner]
        turns, mirrored = int(torch.randint(4, (), generator=generator)), int(torch.randint(2, (), generator=generator))

        def turned(t: torch.Tensor) -> torch.Tensor:
            return torch.rot90(t.flip(-1) if mirrored else t, turns, (-2, -1)).contiguous()

        seen, target, weights = map(turned, (kept.images[stage][window], kept.target[window], weights))
        return seen, target, kept.noise_std, kept.undersampling, weights
