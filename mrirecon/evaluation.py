"""Methods compared on many scans at low field: metrics for each slice, a summary and pictures."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import torch

from mrirecon.config import Candidate, Condition, EvaluationConfig
from mrirecon.datasets import Batch, load_slices, operator_of, scan
from mrirecon.dictionaries import load_dictionary
from mrirecon.learned import checkpoint_path
from mrirecon.models import MODELS
from mrirecon.reconstruction import METHODS
from operators.evaluation import Case, Contestant, Evaluation, Row, changed_model, chosen_method, largest_object
from operators.functionals import blur, mse, nrmse, psnr_slice, ssim_uniform_7x7
from operators.image_sources import spread
from operators.reconstructor import Reconstructor

Progress = Callable[[int, int], None]

_FULL_SCALE = 10.0
_MASK_THRESHOLD, _MASK_CLOSING = 0.05, 3
METRICS: Mapping[str, str] = {
    "ssim": "structural similarity of magnitudes, uniform window 7×7, sample covariance n/(n − 1), K₁ = 0.01, "
    "K₂ = 0.03, data range: maximum of the target slice",
    "mse": f"mean squared error of magnitudes, scaled so that the maximum of the target slice is {_FULL_SCALE:g}",
    "nrmse": "‖estimate − target‖ / ‖target‖ of magnitudes",
    "psnr_db": "PSNR of magnitudes in dB, data range: maximum of the target slice",
    "blur": "no-reference blur of Crété-Roffet, 0 sharp to 1 blurred, of the estimate's magnitude",
}
"""Name → definition; with ``_masked`` the same inside `foreground`."""
_MASK_DEFINITION = (
    f"masked: where the target exceeds {100 * _MASK_THRESHOLD:g} % of its file's full scale, closed by {_MASK_CLOSING} "
    "pixels, holes filled, largest piece; for blur, the rest of the image is set to 0"
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

    The folder gets ``metrics.csv`` (a row for each slice), ``summary.json`` and ``summary.md``, a picture of one case
    for each condition, and ``parts``, from which a later call takes what it has computed before; whatever changes in a
    method, its weights, its condition or the version of the software is computed anew.

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
        The summary: condition, method, number of slices, and the mean and standard deviation of each metric.

    Raises
    ------
    InputError
        If a method, a checkpoint or an image cannot be used, or the folder cannot be written to.
    """
    return _LowField(config, device).run(folder, command=command, progress=progress)


def foreground(target: torch.Tensor) -> torch.Tensor:
    """Where an image shows something: above 5 % of full scale, closed, holes filled, the largest piece.

    Parameters
    ----------
    target
        Magnitude, real ``(y, x)``; full scale is 1.

    Returns
    -------
    torch.Tensor
        Bool ``(y, x)``.

    Raises
    ------
    InputError
        If nothing is above.
    """
    return largest_object(target > _MASK_THRESHOLD, _MASK_CLOSING)


class _LowField(Evaluation[Condition]):
    """Magnitudes of low-field scans."""

    definitions: ClassVar = {**METRICS, "masked": _MASK_DEFINITION}
    columns: ClassVar = [name + suffix for name in METRICS for suffix in ("", "_masked")]
    overview = ("ssim_masked", "mse_masked", "ssim", "mse", "blur_masked")
    config: EvaluationConfig

    def contestant(self, candidate: Candidate) -> Contestant:
        described = asdict(candidate)
        if candidate.checkpoint is not None:
            model, digest = _model(candidate)
            model = model.to(self.device)

            def run_model(batch: Batch) -> torch.Tensor:
                with torch.no_grad():
                    image: torch.Tensor = model(batch.y, operator_of(batch), batch.noise_std)
                return image[0].abs()

            return Contestant(candidate.name, run_model, described | {"checkpoint": digest})
        method, strength, n_iterations = chosen_method(candidate, METHODS)

        def run(batch: Batch) -> torch.Tensor:
            image = method.run(operator_of(batch), batch.y, float(batch.noise_std), strength, n_iterations)
            return image[0].abs()

        resolved = {"regularisation": strength, "n_iterations": n_iterations}
        return Contestant(candidate.name, run, described | resolved)

    def cases(self, condition: Condition) -> list[Case]:
        data = self.config.data
        slices = load_slices(
            data.sources, data.matrix, data.folder, patients=condition.patients, contrasts=condition.contrasts
        )
        cases = []
        for seed, chosen in enumerate(spread(slices, self.config.n_cases), start=self.config.seed):
            batch = scan([chosen.image], condition.scenario, torch.Generator().manual_seed(seed))
            facts = {"patient": chosen.patient, "contrast": chosen.contrast, "slice": chosen.number, "seed": seed}
            cases.append(Case(batch, batch.target[0].abs(), foreground(chosen.image.abs()), facts))
        return cases

    def measure(self, estimate: torch.Tensor, case: Case) -> Row:
        target = case.target
        peak = target.amax()
        unit = _FULL_SCALE / peak
        row: Row = {}
        for suffix, mask in (("", None), ("_masked", case.mask)):
            row |= {
                f"ssim{suffix}": float(ssim_uniform_7x7(estimate, target, peak, mask)),
                f"mse{suffix}": float(mse(unit * estimate, unit * target, mask)),
                f"nrmse{suffix}": float(nrmse(estimate, target, mask)),
                f"psnr_db{suffix}": float(psnr_slice(estimate, target, mask)),
                f"blur{suffix}": float(blur(estimate if mask is None else estimate * mask)),
            }
        return row

    def caption(self, estimate: torch.Tensor, case: Case) -> str:
        ssim = ssim_uniform_7x7(estimate, case.target, case.target.amax())
        return f"{float(psnr_slice(estimate, case.target)):.1f} dB · SSIM {float(ssim):.3f}"


def _model(candidate: Candidate) -> tuple[Reconstructor, str]:
    """The model of a checkpoint with the changes asked for, and the digest of its weights."""
    return changed_model(candidate, checkpoint_path(candidate.checkpoint or ""), MODELS, load_dictionary)
