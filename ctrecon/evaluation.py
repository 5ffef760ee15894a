"""Methods compared on many simulated scans: metrics for each slice, a summary and pictures."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import torch

from ctrecon.config import Candidate, Condition, EvaluationConfig
from ctrecon.datasets import Batch, Scanner, load_slices, scan
from ctrecon.hounsfield import to_hu
from ctrecon.learned import checkpoint_path
from ctrecon.metrics import bias_hu, psnr_lodopab, psnr_per_image, rmse_hu, ssim_lodopab, ssim_per_image
from ctrecon.models import MODELS, apply_model, load_dictionary
from ctrecon.reconstruction import METHODS, Settings
from ctrecon.windows import chosen_window
from operators.evaluation import Case, Contestant, Evaluation, Row, changed_model, chosen_method, largest_object
from operators.image_sources import spread

Progress = Callable[[int, int], None]

_BODY_HU, _BODY_CLOSING = -500.0, 3
METRICS: Mapping[str, str] = {
    "psnr_db": "PSNR in dB, data range: maximum minus minimum of the target slice (LoDoPaB-CT), whole image",
    "ssim": "structural similarity, uniform window 7×7, data range: maximum minus minimum of the target slice "
    "(LoDoPaB-CT), whole image",
    "rmse_hu": "root mean square error in HU, whole image",
    "rmse_body_hu": "the same inside the body",
    "bias_body_hu": "mean of estimate − target in HU, inside the body",
    "psnr_per_image_db": "PSNR in dB after estimate and target were scaled to [0, 1], each by its own minimum and "
    "maximum, whole image",
    "ssim_per_image": "structural similarity of these, Gaussian window 11×11, σ = 1.5, data range 1",
}
"""Name → definition."""
_BODY_DEFINITION = (
    f"where the target exceeds {_BODY_HU:g} HU, closed by {_BODY_CLOSING} pixels, holes filled, largest piece"
)


def evaluate(
    config: EvaluationConfig,
    folder: Path | str,
    *,
    device: str | torch.device = "cpu",
    command: str = "",
    progress: Progress | None = None,
) -> list[Row]:
    """Compare methods, or go on with a comparison that was stopped: a kill costs one method on one condition.

    What the folder gets: see `operators.evaluation.Evaluation.run`.

    Parameters
    ----------
    config
        What is compared, and on what.
    folder
        Where the results go; created if need be.
    device
        Where to compute.
    command
        The command that was given, for the summary.
    progress
        Called with (reconstructions done, reconstructions in all).

    Returns
    -------
    list of dict
        The summary: condition, method, number of slices, the mean and standard deviation of each metric, and the same
        for each person.

    Raises
    ------
    InputError
        If a method, a checkpoint or an image cannot be used, or the folder cannot be written to.
    """
    return _SparseView(config, device).run(folder, command=command, progress=progress)


class _SparseView(Evaluation[Condition]):
    """Hounsfield units of sparse-view scans."""

    definitions: ClassVar = {**METRICS, "body": _BODY_DEFINITION}
    columns: ClassVar = tuple(METRICS)
    overview: ClassVar = ("psnr_db", "ssim", "rmse_hu", "rmse_body_hu")
    by_patient: ClassVar = True
    picture: ClassVar = {"window": chosen_window("soft tissue").limits_hu, "error_limit": 200.0, "unit": "HU"}
    config: EvaluationConfig

    def contestant(self, candidate: Candidate) -> Contestant:
        described = asdict(candidate)
        if candidate.checkpoint is not None:
            path = checkpoint_path(candidate.checkpoint)
            model, digest = changed_model(candidate, path, MODELS, load_dictionary)
            model = model.to(self.device)

            def run_model(batch: Batch) -> torch.Tensor:
                with torch.no_grad():
                    image = apply_model(model, batch.y, batch.A, batch.noise_std)
                return to_hu(image[0], batch.mu_water_per_mm)

            return Contestant(candidate.name, run_model, described | {"checkpoint": digest})
        method, strength, n_iterations = chosen_method(candidate, METHODS)

        def run(batch: Batch) -> torch.Tensor:
            settings = Settings(
                noise_std=float(batch.noise_std),
                weights=None,
                regularisation=strength,
                n_iterations=n_iterations,
                filter="ramp",
                nonnegative=True,
            )
            return to_hu(method.run(batch.A, batch.y, settings)[0], batch.mu_water_per_mm)

        return Contestant(candidate.name, run, described | {"regularisation": strength, "n_iterations": n_iterations})

    def cases(self, condition: Condition) -> list[Case]:
        data, scenario = self.config.data, condition.scenario
        scanner = Scanner(scenario.preset, data.matrix)
        slices = load_slices(data.sources, scanner, data.folder, patients=condition.patients, kernels=condition.kernels)
        cases = []
        for number, chosen in enumerate(spread(slices, self.config.n_cases)):
            seed, n_views = self.config.seed + number, scenario.n_views[number % len(scenario.n_views)]
            batch = scan([chosen], scanner, n_views, torch.Generator().manual_seed(seed))
            target = to_hu(batch.target[0], batch.mu_water_per_mm)
            facts = {"patient": chosen.patient, "kernel": chosen.kernel, "slice": chosen.number}
            facts |= {"n_views": n_views, "seed": seed}
            cases.append(Case(batch, target, largest_object(target > _BODY_HU, _BODY_CLOSING), facts))
        return cases

    def measure(self, estimate: torch.Tensor, case: Case) -> Row:
        target, outside = case.target, ~case.mask
        values = {
            "psnr_db": psnr_lodopab(estimate, target),
            "ssim": ssim_lodopab(estimate, target, case.data.mu_water_per_mm),
            "rmse_hu": rmse_hu(estimate, target),
            "rmse_body_hu": rmse_hu(estimate, target, outside),
            "bias_body_hu": bias_hu(estimate, target, outside),
            "psnr_per_image_db": psnr_per_image(estimate, target),
            "ssim_per_image": ssim_per_image(estimate, target),
        }
        return {name: float(value) for name, value in values.items()}

    def caption(self, estimate: torch.Tensor, case: Case) -> str:
        return f"{float(psnr_lodopab(estimate, case.target)):.1f} dB · {float(rmse_hu(estimate, case.target)):.0f} HU"
