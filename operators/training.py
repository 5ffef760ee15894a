"""Training of a reconstruction from a configuration, to a checkpoint that says what it is."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from torch import distributed

from operators.checkpoint import Checkpoint, Metric, save_checkpoint
from operators.configuration import TrainingConfig
from operators.learning import FitResult, Loss, Progress, Sample, Validate, fit
from operators.model_building import Models
from operators.reconstructor import Reconstructor
from operators.staged_training import DrawScan, Stages, fit_stages


def starting_model(models: Models, config: TrainingConfig) -> Reconstructor:
    """Build the model of a configuration with weights that its seed decides; the global generator is left alone.

    Parameters
    ----------
    models
        The models there are.
    config
        What is trained.

    Returns
    -------
    Reconstructor
        The model, in training mode.

    Raises
    ------
    InputError
        If it cannot be built.
    """
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(config.training.seed)
        return models.build(config.model.kind, config.model.arguments)


def train_to_checkpoint(
    model: Reconstructor,
    loss: Loss,
    sample: Sample,
    validate: Validate,
    config: TrainingConfig,
    folder: Path | str,
    *,
    data: str,
    definitions: Mapping[str, str],
    trained_ranges: Mapping[str, tuple[float, float]],
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Path:
    """Train a model, or go on with a training that was stopped, as `operators.learning.fit` does.

    Parameters
    ----------
    model
        What `starting_model` returned.
    loss, sample, validate
        As for `operators.learning.fit`.
    config
        What is trained, on what and how.
    folder
        Where the training is kept; it holds the log, the state to go on from, and at the end the checkpoint.
    data
        What the weights have seen, in words.
    definitions
        What each metric of the validation is.
    trained_ranges
        By name, the lowest and the highest value of what varied.
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
        If the folder holds another training, or the training fails.
    """
    identity = config.identity()
    plan = config.training
    result = fit(
        model, loss, sample, plan, folder, validate=validate, config=identity, progress=progress, device=device
    )
    return _written(_checkpoint(config, result, data, definitions, trained_ranges), config, folder)


def train_stages_to_checkpoint(
    model: Reconstructor,
    draw_scan: DrawScan,
    stages: Stages,
    validate: Validate,
    config: TrainingConfig,
    folder: Path | str,
    *,
    data: str,
    definitions: Mapping[str, str],
    trained_ranges: Mapping[str, tuple[float, float]],
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Path:
    """Train a model stage by stage, or go on with that, as `operators.staged_training.fit_stages` does.

    Parameters
    ----------
    model
        What `starting_model` returned.
    draw_scan, stages, validate
        As for `operators.staged_training.fit_stages`.
    config, folder, data, definitions, trained_ranges, device, progress
        As for `train_to_checkpoint`.

    Returns
    -------
    Path
        The checkpoint, ``folder/name.pt``.

    Raises
    ------
    InputError
        If the folder holds another training, or the training fails.
    """
    result = fit_stages(
        model,
        draw_scan,
        stages,
        config.training,
        folder,
        batch_size=config.training.batch_size,
        validate=validate,
        config=config.identity(),
        progress=progress,
        device=device,
    )
    return _written(_checkpoint(config, result, data, definitions, trained_ranges), config, folder)


def _written(checkpoint: Checkpoint, config: TrainingConfig, folder: Path | str) -> Path:
    path = Path(folder) / f"{config.name}.pt"
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        save_checkpoint(path, checkpoint, overwrite=True)
    return path


def _checkpoint(
    config: TrainingConfig,
    result: FitResult,
    data: str,
    definitions: Mapping[str, str],
    trained_ranges: Mapping[str, tuple[float, float]],
) -> Checkpoint:
    name, n_cases = config.training.metric or "", config.training.n_validation_cases
    definition = f"{definitions[name]}; {n_cases} scans of people held out"
    return Checkpoint(
        state=result.state,
        kind=config.model.kind,
        config=dict(config.model.arguments),
        data=data,
        licence=config.data.licence,
        seed=config.training.seed,
        n_steps=result.step,
        metric=Metric(name, definition, result.metrics[name]),
        version=version("mrctrecon"),
        trained_ranges=dict(trained_ranges),
    )
