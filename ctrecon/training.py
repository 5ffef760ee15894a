"""Training of a reconstruction from a configuration, to a checkpoint that says what it is."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ctrecon.config import TrainingConfig
from ctrecon.datasets import Batch, Sampler, Scanner, Slice, load_slices, scan
from ctrecon.hounsfield import to_hu
from ctrecon.metrics import psnr_lodopab, rmse_hu, ssim_lodopab
from ctrecon.models import MODELS, apply_model
from operators.image_sources import spread
from operators.reconstructor import Reconstructor
from operators.staged_training import DrawScan, Scan
from operators.training import starting_model, train_stages_to_checkpoint, train_to_checkpoint

Progress = Callable[[int, int], None]

_VALIDATION_SEED = 20260222  # of the scans for validation, which are the same for every training
_DEFINITIONS = {
    "psnr_db": "mean PSNR in dB, data range: maximum minus minimum of the target slice, whole image",
    "ssim": "mean SSIM, 7×7 uniform window, data range: maximum minus minimum of the target slice, whole image",
    "rmse_hu": "mean over scans of the root mean square error in HU, whole image",
    "loss": "mean squared error in units of 1000 HU, whole image",
}


def train(
    config: TrainingConfig,
    folder: Path | str,
    *,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Path:
    """Train a model, or go on with a training that was stopped, as `operators.learning.fit` does.

    Parameters
    ----------
    config
        What is trained, on what and how.
    folder
        Where the training is kept; it holds the log, the state to go on from, and at the end the checkpoint.
    device
        Where to train.
    progress
        Called with (steps done, steps in all).

    Returns
    -------
    Path
        The checkpoint, ``folder/name.pt``: the weights that were best in validation.

    Raises
    ------
    InputError
        If data or model do not fit the configuration, or the folder holds another training.
    """
    data, scenario = config.data, config.scenario
    model = starting_model(MODELS, config)
    scanner = Scanner(scenario.preset, data.matrix)
    slices, held_out = (
        load_slices(data.sources, scanner, data.folder, patients=people, kernels=data.kernels)
        for people in (data.train, data.validation)
    )
    batches = validation_batches(held_out, scanner, config)
    n_views, matrix = scenario.n_views, float(data.matrix)
    about: dict[str, Any] = {
        "data": data.description,
        "definitions": _DEFINITIONS,
        "trained_ranges": {"n_views": (min(n_views), max(n_views)), "matrix": (matrix, matrix)},
        "device": device,
        "progress": progress,
    }

    def validated(trained: Reconstructor) -> dict[str, float]:
        return validate(trained, batches)

    if config.stages is None:
        sample = Sampler(slices, scanner, n_views, config.training.batch_size)
        return train_to_checkpoint(model, loss_of, sample, validated, config, folder, **about)
    draw_scan = _single_scans(Sampler(slices, scanner, n_views, batch_size=1))
    return train_stages_to_checkpoint(model, draw_scan, config.stages, validated, config, folder, **about)


def _single_scans(sample: Sampler) -> DrawScan:
    """Scans one by one, in the units of `apply_model`."""

    def draw(index: int, generator: torch.Generator) -> Scan:
        batch = sample(index, generator)
        scale = 1 / float(batch.A.norm())
        return Scan(scale * batch.y[0], scale * batch.A, batch.target[0], scale * float(batch.noise_std[0]))

    return draw


def loss_of(model: Reconstructor, batch: Batch) -> torch.Tensor:
    """Mean squared error in units of 1000 HU.

    Parameters
    ----------
    model
        What is trained.
    batch
        The scans.

    Returns
    -------
    torch.Tensor
        Real ``()``.
    """
    return _errors(apply_model(model, batch.y, batch.A, batch.noise_std), batch).mean()


def validation_batches(slices: Sequence[Slice], scanner: Scanner, config: TrainingConfig) -> list[Batch]:
    """Scans that are the same in every training with the same data and scenario.

    Parameters
    ----------
    slices
        Of the people held out for validation.
    scanner
        What they were loaded for.
    config
        Gives the number of scans, their numbers of views, and how many are put together.

    Returns
    -------
    list of Batch
        Of slices that `operators.image_sources.spread` chooses, each with noise of its own; the numbers of views come
        one after the other.
    """
    plan, n_views = config.training, config.scenario.n_views
    groups: dict[int, list[Batch]] = {n: [] for n in n_views}
    for i, chosen in enumerate(spread(slices, plan.n_validation_cases)):
        n = n_views[i % len(n_views)]
        groups[n].append(scan([chosen], scanner, n, torch.Generator().manual_seed(_VALIDATION_SEED + i)))
    return [
        _together(scans[start : start + plan.batch_size])
        for scans in groups.values()
        for start in range(0, len(scans), plan.batch_size)
    ]


def validate(model: Reconstructor, batches: Sequence[Batch]) -> dict[str, float]:
    """Measure a model on fixed scans.

    Parameters
    ----------
    model
        What is trained.
    batches
        The scans.

    Returns
    -------
    dict
        Mean ``"psnr_db"``, ``"ssim"``, ``"rmse_hu"`` and ``"loss"`` over the scans.
    """
    device = next(model.parameters()).device
    measured = [_measured(model, batch.to(device)) for batch in batches]
    return {name: float(torch.cat([each[name] for each in measured]).mean()) for name in measured[0]}


def _together(scans: Sequence[Batch]) -> Batch:
    first = scans[0]
    y, target, noise_std = (torch.cat([getattr(s, name) for s in scans]) for name in ("y", "target", "noise_std"))
    return first._replace(y=y, target=target, noise_std=noise_std)


def _measured(model: Reconstructor, batch: Batch) -> dict[str, torch.Tensor]:
    estimate = apply_model(model, batch.y, batch.A, batch.noise_std)
    hu, target = (to_hu(mu, batch.mu_water_per_mm) for mu in (estimate, batch.target))
    return {
        "psnr_db": psnr_lodopab(hu, target),
        "ssim": ssim_lodopab(hu, target, batch.mu_water_per_mm),
        "rmse_hu": rmse_hu(hu, target),
        "loss": _errors(estimate, batch),
    }


def _errors(estimate: torch.Tensor, batch: Batch) -> torch.Tensor:
    return ((estimate - batch.target) / batch.mu_water_per_mm).square().mean(dim=(-2, -1))
