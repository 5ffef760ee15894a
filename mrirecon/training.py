"""Training of a reconstruction from a configuration, to a checkpoint that says what it is."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from mrirecon.config import TrainingConfig
from mrirecon.datasets import Batch, Sampler, Slice, load_slices, operator_of, scan
from mrirecon.models import MODELS
from operators.errors import InputError
from operators.fields import root_mean_square
from operators.functionals import psnr_slice, ssim_uniform_7x7
from operators.image_sources import spread
from operators.linear_operator import LinearOperator
from operators.priors.csc import ConvolutionalSparseCoding
from operators.priors.sparsity import ImageMaps
from operators.training import starting_model, train_to_checkpoint

Progress = Callable[[int, int], None]

_VALIDATION_SEED = 20260222  # of the scans for validation, which are the same for every training
_DEFINITIONS = {
    "ssim": "mean SSIM of magnitudes, 7×7 uniform window, data range: maximum of the target slice, whole image",
    "psnr_db": "mean PSNR of magnitudes in dB, data range: maximum of the target slice, whole image",
    "loss": "mean over scans of |estimate − target|²/2, both divided by the root mean square of the adjoint image",
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
        If data or model do not fit the configuration, the folder holds another training, or dictionaries are to be
        drawn for a model that has none or knows its filters by their place.
    """
    data, plan, dictionaries = config.data, config.training, config.dictionaries
    model = starting_model(MODELS, config)
    if dictionaries is not None:
        _exchangeable(model)
    slices, held_out = (
        load_slices(data.sources, data.matrix, data.folder, patients=people) for people in (data.train, data.validation)
    )
    sampler, batches = Sampler(slices, config.scenario, plan.batch_size), validation_batches(held_out, config)

    def sample(index: int, generator: torch.Generator) -> tuple[Batch, torch.Tensor | None]:
        batch = sampler(index, generator)  # first, so that the scans are the same with and without dictionaries
        return batch, None if dictionaries is None else dictionaries.draw(generator)

    return train_to_checkpoint(
        model,
        lambda trained, drawn: loss_of(trained, *drawn),
        sample,
        lambda trained: validate(trained, batches),
        config,
        folder,
        data=_data_of(config),
        definitions=_DEFINITIONS,
        trained_ranges=_ranges_of(config),
        device=device,
        progress=progress,
    )


def loss_of(model: nn.Module, batch: Batch, filters: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error of real and imaginary part, each scan divided by a scale that its data give.

    Parameters
    ----------
    model
        A `operators.reconstructor.Reconstructor`.
    batch
        The scans.
    filters
        A dictionary in place of the model's own, real ``(filter, ky, kx)``.

    Returns
    -------
    torch.Tensor
        Real ``()``.

    Raises
    ------
    InputError
        If there are filters, but the model has no dictionary that can be exchanged.
    """
    if filters is not None:
        model = _exchangeable(model).with_filters(filters)
    A = operator_of(batch)
    return _relative_error(model(batch.y, A, batch.noise_std), batch, A).mean()


def validation_batches(slices: Sequence[Slice], config: TrainingConfig) -> list[Batch]:
    """Scans that are the same in every training with the same data and scenario.

    Parameters
    ----------
    slices
        Of the people held out for validation.
    config
        Gives the number of scans, how they are made, and how many are put together.

    Returns
    -------
    list of Batch
        Of slices that `operators.image_sources.spread` chooses, each with noise of its own.
    """
    n, size = config.training.n_validation_cases, config.training.batch_size
    scans = [
        scan([chosen.image], config.scenario, torch.Generator().manual_seed(_VALIDATION_SEED + i))
        for i, chosen in enumerate(spread(slices, n))
    ]
    return [_together(scans[start : start + size]) for start in range(0, n, size)]


def validate(model: nn.Module, batches: Sequence[Batch]) -> dict[str, float]:
    """Measure a model on fixed scans.

    Parameters
    ----------
    model
        A `operators.reconstructor.Reconstructor`.
    batches
        The scans.

    Returns
    -------
    dict
        Mean ``"ssim"``, ``"psnr_db"`` and ``"loss"`` over the scans.
    """
    device = next(model.parameters()).device
    measured = [_measured(model, batch.to(device)) for batch in batches]
    return {name: float(torch.cat([each[name] for each in measured]).mean()) for name in measured[0]}


def _exchangeable(model: nn.Module) -> ConvolutionalSparseCoding:
    if not isinstance(model, ConvolutionalSparseCoding) or isinstance(model.maps, ImageMaps):
        raise InputError(
            "The model has no dictionary, or knows its filters by their place, so that it cannot be trained with "
            "others; leave [dictionaries] out, or train csc, csc-published or csc-scalar."
        )
    return model


def _together(scans: Sequence[Batch]) -> Batch:
    y, mask, _, target, noise_std = (torch.cat(parts) for parts in zip(*scans, strict=True))
    return Batch(y, mask, scans[0].csm, target, noise_std)


def _measured(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    A = operator_of(batch)
    estimate = model(batch.y, A, batch.noise_std)
    magnitude, target = estimate.abs(), batch.target.abs()
    return {
        "ssim": ssim_uniform_7x7(magnitude, target, target.amax(dim=(-2, -1))),
        "psnr_db": psnr_slice(magnitude, target),
        "loss": _relative_error(estimate, batch, A),
    }


def _relative_error(estimate: torch.Tensor, batch: Batch, A: LinearOperator) -> torch.Tensor:
    scale = root_mean_square(A.adjoint(batch.y), 2)
    return (estimate - batch.target).abs().square().mean(dim=(-2, -1)) / (2 * scale.square())


def _data_of(config: TrainingConfig) -> str:
    """What the weights have seen, in words."""
    drawn = config.dictionaries
    if drawn is None:
        return config.data.description
    families = [f"learned ({', '.join(drawn.learned)})" if name == "learned" else name for name in drawn.families]
    return (
        f"{config.data.description} In {100 * drawn.share:g} % of the batches the dictionary was drawn from "
        f"{', '.join(families)}: {drawn.n[0]} to {drawn.n[1]} filters of size {drawn.size[0]} to {drawn.size[1]}."
    )


def _ranges_of(config: TrainingConfig) -> dict[str, tuple[float, float]]:
    scenario, drawn, matrix = config.scenario, config.dictionaries, float(config.data.matrix)
    return {
        "noise_variance": scenario.noise_variance,
        "box": scenario.box,
        "acceleration": (scenario.acceleration, scenario.acceleration),
        "n_coils": (scenario.n_coils, scenario.n_coils),
        "matrix": (matrix, matrix),
        **({} if drawn is None else {"n_filters": drawn.n, "filter_size": drawn.size}),
    }
