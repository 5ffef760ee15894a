"""The demonstration: simulate a low-field scan, reconstruct it, and show how well it went."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mrirecon.io import read
from mrirecon.io.ismrmrd import write_ismrmrd
from mrirecon.method_names import CLASSICAL_METHODS, DEFAULT_METHOD
from mrirecon.phantom import head_mask
from mrirecon.reconstruction import Progress, reconstruct
from mrirecon.simulation import Scenario, TrajectoryKind, simulate_scenario
from operators.functionals import nrmse, psnr_slice, ssim_uniform_7x7
from operators.io.files import replacing
from operators.io.nifti import write_nifti
from operators.io.picture import write_comparison

_METHODS = (*CLASSICAL_METHODS, DEFAULT_METHOD)
SCENARIO = Scenario(matrix=160, n_slices=4, acceleration=1.5, n_centre_lines=24, relative_noise_variance=0.05)


def run_demo(
    output: Path,
    *,
    trajectory: TrajectoryKind = "cartesian",
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Simulate → write → read → reconstruct → compare, all into one directory.

    Parameters
    ----------
    output
        Directory to create: the raw scan, an image per method and ``comparison.png``.
    trajectory
        How the scan samples k-space.
    seed
        Seed of the scan.
    overwrite
        Replace the directory if it exists.
    progress
        Called with (steps done, steps in all).

    Returns
    -------
    list of dict
        One row per method: PSNR (range: maximum of the target slice), SSIM (7×7) and NRMSE inside the head, each the
        mean over slices of the magnitude's.
    """
    n_steps = len(_METHODS) + 1
    with replacing(output, overwrite=overwrite) as folder:
        folder.mkdir()
        simulation = simulate_scenario(replace(SCENARIO, trajectory=trajectory, seed=seed))
        write_ismrmrd(folder / "scan.h5", simulation.kspace)
        if progress:
            progress(1, n_steps)
        target = simulation.target.abs()
        head = head_mask(tuple(target.shape))
        rows: list[dict[str, Any]] = []
        columns: dict[str, torch.Tensor] = {}
        texts: dict[str, str] = {}
        for step, method in enumerate(_METHODS, start=2):
            result = reconstruct(read(folder / "scan.h5"), method)
            write_nifti(folder / f"{method}.nii.gz", result.image, result.grid, geometry_known=True, description=method)
            row = {"method": method, **_scores(result.image.abs(), target, head)}
            rows.append(row)
            columns[method] = result.image.abs()
            texts[method] = f"{row['PSNR (dB)']:.1f} dB · SSIM {row['SSIM']:.2f}"
            if progress:
                progress(step, n_steps)
        columns["truth"] = target
        write_comparison(folder / "comparison.png", columns, target="truth", grid=result.grid, metrics=texts)
    return rows


def _scores(estimate: torch.Tensor, target: torch.Tensor, head: torch.Tensor) -> dict[str, float]:
    data_range = target.amax(dim=(-2, -1))
    return {
        "PSNR (dB)": float(psnr_slice(estimate, target, mask=head).mean()),
        "SSIM": float(ssim_uniform_7x7(estimate, target, data_range, mask=head).mean()),
        "NRMSE": float(nrmse(estimate, target, mask=head).mean()),
    }
