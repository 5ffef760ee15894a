"""Training of metal artefact reduction from a configuration, to a checkpoint that says what it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ctrecon.config import Data, Plan
from ctrecon.hounsfield import to_hu
from ctrecon.metal_scans import MetalScan, MetalScans, MetalScenarios, PreparedScans, drawing_from, prepare_scans
from ctrecon.metrics import psnr_clean_mar, rmse_hu, ssim_clean_mar
from ctrecon.models import MODELS
from operators import configuration
from operators.errors import InputError
from operators.learning import Progress
from operators.reconstructor import Reconstructor, Refinement
from operators.staged_training import Stages
from operators.training import starting_model, train_stages_to_checkpoint

_VALIDATION_SEED = 20260222
_DEFINITIONS = {
    "psnr_db": "mean PSNR in dB, clean convention of metal artefact reduction: attenuation clipped to [0, 0.5] 1/cm, "
    "divided by 0.5, times 1 − metal, data range 1, whole image",
    "ssim": "mean SSIM of these, Gaussian window 11×11, σ = 1.5",
    "rmse_hu": "mean over scans of the root mean square error in HU beside the metal",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MetalTrainingConfig(configuration.TrainingConfig):
    """A training of metal artefact reduction; see also `operators.configuration.TrainingConfig`.

    Parameters
    ----------
    scenario
        The scans that are drawn from the images.
    n_scans
        Number of scans that are simulated, before the training begins.
    stages
        How it is trained stage by stage.

    Raises
    ------
    InputError
        If there are no scans.
    """

    data: Data
    scenario: MetalScenarios
    training: Plan
    stages: Stages
    n_scans: int

    def __post_init__(self) -> None:
        if self.n_scans < 1:
            raise InputError(f"n_scans is {self.n_scans}; expected 1 or more.")
        if self.training.metric not in _DEFINITIONS:
            raise InputError(f"metric is {self.training.metric!r}; expected one of {', '.join(_DEFINITIONS)}.")


def train_metal(
    config: MetalTrainingConfig,
    folder: Path | str,
    *,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Path:
    """Train metal artefact reduction, or go on with a training that was stopped.

    The scans are simulated first and kept in the folder.

    Parameters
    ----------
    config
        What is trained, on what and how.
    folder
        Where the training is kept.
    device
        Where to train.
    progress
        Called with (steps done, steps in all), for the scans first and then for the training.

    Returns
    -------
    Path
        The checkpoint, ``folder/name.pt``.

    Raises
    ------
    InputError
        If data or model do not fit the configuration, or the folder holds another training.
    """
    data, scenario, plan = config.data, config.scenario, config.training
    model = starting_model(MODELS, config)
    folder = Path(folder)
    folder.mkdir(exist_ok=True, parents=True)

    def prepared(
        name: Literal["train", "validation"], people: tuple[str, ...], n_scans: int, seed: int
    ) -> PreparedScans:
        scans = MetalScans(
            data.sources,
            scenario,
            data.matrix,
            n_scans,
            shapes=name,
            seed=seed,
            folder=data.folder,
            patients=people,
            kernels=data.kernels,
        )
        return prepare_scans(folder / f"scans-{name}", scans, progress=progress)

    held_out = prepared("validation", data.validation, plan.n_validation_cases, _VALIDATION_SEED)
    scans = prepared("train", data.train, config.n_scans, plan.seed)
    n_views, matrix = scenario.n_views, float(data.matrix)
    return train_stages_to_checkpoint(
        model,
        drawing_from(scans),
        config.stages,
        lambda trained: validate(trained, held_out),
        config,
        folder,
        data=data.description,
        definitions=_DEFINITIONS,
        trained_ranges={"n_views": (min(n_views), max(n_views)), "matrix": (matrix, matrix)},
        device=device,
        progress=progress,
    )


def validate(model: Reconstructor, scans: PreparedScans) -> dict[str, float]:
    """Measure a model on fixed scans.

    Parameters
    ----------
    model
        What is trained.
    scans
        The scans.

    Returns
    -------
    dict
        Mean ``"psnr_db"``, ``"ssim"`` and ``"rmse_hu"`` over the scans.
    """
    device = next(model.parameters()).device
    measured = [_measured(model, scans[i].to(device)) for i in range(len(scans))]
    return {name: sum(each[name] for each in measured) / len(measured) for name in measured[0]}


def _measured(model: Reconstructor, scan: MetalScan) -> dict[str, float]:
    given = scan.training_scan()
    start = [scan.x0[None]] if isinstance(model, Refinement) else []
    mu = model(given.y[None], given.A, given.noise_std, *start)[0]
    estimate, target = (to_hu(image, scan.mu_water_per_mm) for image in (mu, scan.target))
    return {
        "psnr_db": float(psnr_clean_mar(estimate, target, scan.metal, scan.mu_water_per_mm)),
        "ssim": float(ssim_clean_mar(estimate, target, scan.metal, scan.mu_water_per_mm)),
        "rmse_hu": float(rmse_hu(estimate, target, scan.metal)),
    }
