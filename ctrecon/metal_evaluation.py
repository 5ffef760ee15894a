"""Metal artefact reduction compared on many simulated scans: metrics for each slice, a summary and pictures."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch

from ctrecon.config import Candidate, Data
from ctrecon.hounsfield import to_hu
from ctrecon.implants import implants
from ctrecon.metal import (
    fill_trace,
    metal_checkpoint_path,
    reconstruct_beside_metal,
    total_variation_beside_metal,
)
from ctrecon.metal_scans import MetalScan, MetalScanner, MetalScenarios, load_bodies
from ctrecon.metrics import bias_hu, mae_hu, psnr_clean_mar, rmse_hu, ssim_clean_mar
from ctrecon.models import MODELS, load_dictionary
from ctrecon.windows import chosen_window
from operators import configuration
from operators.errors import InputError
from operators.evaluation import Case, Contestant, Evaluation, Row, changed_model
from operators.filtered_start import initial_image
from operators.image_sources import spread
from operators.learning import seed_of
from operators.reconstructor import Refinement

Progress = Callable[[int, int], None]

METRICS: Mapping[str, str] = {
    "psnr_clean_db": "PSNR in dB of attenuation clipped to [0, 0.5] 1/cm and divided by 0.5 1/cm, 0 in the metal, data "
    "range 1, mean over all pixels",
    "ssim_clean": "structural similarity of the same, Gaussian window 11×11, σ = 1.5",
    "rmse_hu": "root mean square error in HU, all pixels outside the metal",
    "mae_hu": "mean absolute error in HU, all pixels outside the metal",
    "bias_hu": "mean of estimate − target in HU, all pixels outside the metal",
}
"""Name → definition."""
_METHODS: Mapping[str, str] = {
    "uncorrected": "filtered back-projection of the rays as they were measured",
    "li": "linear interpolation, filtered back-projection",
    "nmar": "normalised interpolation, filtered back-projection",
    "tv": "total variation from the image of nmar, with the rays beside the metal",
    "metal-free": "filtered back-projection of a scan of the person without metal",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MetalCondition(configuration.Condition):
    """What methods are evaluated on: people and implants that training has not seen, and one way to scan them.

    Parameters
    ----------
    kernels
        Which of their images; all by default.
    shapes
        Which implants.
    scenario
        How they are scanned; of several numbers of views or metals, the slices have one after the other.
    """

    kernels: tuple[str, ...] | None = None
    shapes: Literal["validation", "test", "aapm"] = "test"
    scenario: MetalScenarios


@dataclass(frozen=True, slots=True, kw_only=True)
class MetalEvaluationConfig(configuration.EvaluationConfig):
    """An evaluation of metal artefact reduction; see `operators.configuration.EvaluationConfig`.

    People of the validation may be shown too, because there are few; the summary says so.
    """

    data: Data
    conditions: tuple[MetalCondition, ...]
    shown_splits: ClassVar[tuple[str, ...]] = ("test", "validation")


def has_metal(path: Path | str) -> bool:
    """Whether the scans of a configuration have metal: ``metal`` stands in a table ``scenario``.

    Parameters
    ----------
    path
        A configuration of a training or an evaluation in TOML. What cannot be read has none.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # the reader of configurations says what is wrong
    conditions = table.get("conditions")
    tables = [table, *(conditions if isinstance(conditions, list) else ())]
    scenarios = [entry.get("scenario") for entry in tables if isinstance(entry, dict)]
    return any(isinstance(scenario, dict) and "metal" in scenario for scenario in scenarios)


def evaluate_metal(
    config: MetalEvaluationConfig,
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
        What is compared, and on what. The classical methods are ``"uncorrected"``, ``"li"``, ``"nmar"`` and
        ``"metal-free"``, which is how good filtered back-projection would be without any metal.
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
    return _MetalEvaluation(config, device).run(folder, command=command, progress=progress)


class _Measured(NamedTuple):
    """A scan, and the image of one without metal ``(y, x)``."""

    scan: MetalScan
    without_metal: torch.Tensor

    def to(self, device: str | torch.device) -> "_Measured":
        return _Measured(self.scan.to(device), self.without_metal.to(device))


class _MetalEvaluation(Evaluation[MetalCondition]):
    definitions: ClassVar = {
        **METRICS,
        **{f"method {name}": words for name, words in _METHODS.items()},
    }
    columns: ClassVar = tuple(METRICS)
    overview: ClassVar = ("psnr_clean_db", "ssim_clean", "rmse_hu")
    by_patient: ClassVar = True
    picture: ClassVar = {"window": chosen_window("soft tissue").limits_hu, "error_limit": 200.0, "unit": "HU"}
    config: MetalEvaluationConfig

    def contestant(self, candidate: Candidate) -> Contestant:
        described = asdict(candidate)
        if candidate.checkpoint is not None:
            path = metal_checkpoint_path(candidate.checkpoint)
            model, digest = changed_model(candidate, path, MODELS, load_dictionary)
            model = model.to(self.device)

            def run_model(data: _Measured) -> torch.Tensor:
                with torch.no_grad():
                    mu = _beside_metal(model, data.scan, refines=isinstance(model, Refinement))
                return to_hu(mu, data.scan.mu_water_per_mm)

            return Contestant(candidate.name, run_model, described | {"checkpoint": digest})
        method = candidate.method
        if method is None or method not in _METHODS:
            raise InputError(f"The method {method!r} is unknown; choose one of {', '.join(_METHODS)}.")
        if (candidate.regularisation, candidate.n_iterations) != (None, None):
            raise InputError(f"The method {method} takes no regularisation and no n_iterations.")

        def run(data: _Measured) -> torch.Tensor:
            return to_hu(_classical(method, data), data.scan.mu_water_per_mm)

        return Contestant(candidate.name, run, described)

    def cases(self, condition: MetalCondition) -> list[Case]:
        data, scenario = self.config.data, condition.scenario
        scanner = MetalScanner(scenario, data.matrix)
        bodies = load_bodies(
            data.sources, scanner.scanner, data.folder, patients=condition.patients, kernels=condition.kernels
        )
        chosen = spread(bodies, self.config.n_cases)
        shapes = spread(implants(condition.shapes, data.folder), self.config.n_cases)
        cases = []
        for number, (body, implant) in enumerate(zip(chosen, shapes, strict=True)):
            seed = seed_of(self.config.seed, "metal case", number)
            n_views = scenario.n_views[number % len(scenario.n_views)]
            material = scenario.metal[number % len(scenario.metal)]
            scan = scanner.scan(body, implant, material, n_views, torch.Generator().manual_seed(seed))
            clean = scanner.image_without_metal(body, n_views, torch.Generator().manual_seed(seed))
            facts = {"patient": body.patient, "kernel": body.kernel, "slice": body.number}
            facts |= {"implant": implant.name, "material": material, "n_metal_pixels": int(scan.metal.sum())}
            facts |= {"n_views": n_views, "seed": seed}
            target = to_hu(scan.target, scan.mu_water_per_mm)
            cases.append(Case(_Measured(scan, clean), target, scan.metal, facts))
        return cases

    def measure(self, estimate: torch.Tensor, case: Case) -> Row:
        target, metal, mu_water = case.target, case.mask, case.data.scan.mu_water_per_mm
        values = {
            "psnr_clean_db": psnr_clean_mar(estimate, target, metal, mu_water),
            "ssim_clean": ssim_clean_mar(estimate, target, metal, mu_water),
            "rmse_hu": rmse_hu(estimate, target, metal),
            "mae_hu": mae_hu(estimate, target, metal),
            "bias_hu": bias_hu(estimate, target, metal),
        }
        return {name: float(value) for name, value in values.items()}

    def caption(self, estimate: torch.Tensor, case: Case) -> str:
        row = self.measure(estimate, case)
        return f"{row['psnr_clean_db']:.1f} dB · {row['rmse_hu']:.0f} HU"


def _beside_metal(model: Callable[..., torch.Tensor], scan: MetalScan, *, refines: bool) -> torch.Tensor:
    """Attenuation ``(y, x)`` in 1/mm; a model that refines starts from the image of NMAR."""
    y, trace, x0 = scan.y[None], scan.trace[None], scan.x0[None] if refines else None
    return reconstruct_beside_metal(model, y, scan.projection, trace, scan.noise_std, x0, norm=scan.norm)[0]


def _classical(method: str, data: _Measured) -> torch.Tensor:
    """Attenuation ``(y, x)`` in 1/mm."""
    scan = data.scan
    if method == "tv":
        return _beside_metal(total_variation_beside_metal, scan, refines=True)
    if method == "li":
        return initial_image(fill_trace(scan.y[None], scan.trace[None], scan.projection, "li"), scan.projection)[0]
    return {"uncorrected": scan.uncorrected, "nmar": scan.x0, "metal-free": data.without_metal}[method]
