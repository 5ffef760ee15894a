"""The demonstration: simulate a sparse-view and a metal scan, reconstruct them, and show how well it went."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ctrecon.io import read
from ctrecon.io.sinogram_file import write_sinogram
from ctrecon.metal import reconstruct_without_metal
from ctrecon.metrics import bias_hu, rmse_hu
from ctrecon.reconstruction import METHODS, Progress, Reconstruction, reconstruct
from ctrecon.simulation import Scenario, Simulation, simulate_scenario
from ctrecon.windows import chosen_window
from operators.functionals import ssim_uniform_7x7
from operators.io.files import replacing
from operators.io.nifti import write_nifti
from operators.io.picture import write_comparison

SPARSE = Scenario(preset="sparse-view", n_views=90, matrix=256, n_photons=1e5)
METAL = Scenario(preset="sparse-view", n_views=360, matrix=256, n_photons=1e6, polyenergetic=True, metal="hip")
_BODY_HU = -500.0
_SSIM_RANGE_HU = 400.0

Rows = list[dict[str, Any]]


def run_demo(
    output: Path, *, seed: int = 0, overwrite: bool = False, progress: Progress | None = None
) -> tuple[Rows, Rows]:
    """Simulate → write → read → reconstruct → compare, all into one directory.

    Parameters
    ----------
    output
        Directory to create: the sinograms, an image per method, ``sparse.png`` and ``metal.png``.
    seed
        Seed of the scans.
    overwrite
        Replace the directory if it exists.
    progress
        Called with (steps done, steps in all).

    Returns
    -------
    sparse, metal
        One row per method: root mean square error and bias in HU and SSIM (7×7, range 400 HU) inside the body, metal
        excluded.
    """
    n_steps = len(METHODS) + 5
    n_done = 0

    def step() -> None:
        nonlocal n_done
        n_done += 1
        if progress is not None:
            progress(n_done, n_steps)

    with replacing(output, overwrite=overwrite) as folder:
        folder.mkdir()
        sparse = _scan(SPARSE, seed, folder / "sparse.h5")
        step()
        results = {}
        for method in METHODS:
            results[method] = reconstruct(read(folder / "sparse.h5"), method)
            _write(results[method], folder / f"{method}.nii.gz")
            step()
        sparse_rows = _compare(results, sparse, folder / "sparse.png")
        metal = _scan(METAL, seed, folder / "metal.h5")
        step()
        scan = read(folder / "metal.h5")
        corrected = {"uncorrected": reconstruct(scan, "fbp")}
        step()
        for name in ("li", "nmar"):
            corrected[name] = reconstruct_without_metal(scan, name)
            step()
        for name, result in corrected.items():
            _write(result, folder / f"metal_{name}.nii.gz")
        metal_rows = _compare(corrected, metal, folder / "metal.png")
    return sparse_rows, metal_rows


def _scan(scenario: Scenario, seed: int, path: Path) -> Simulation:
    simulation = simulate_scenario(replace(scenario, seed=seed))
    write_sinogram(path, simulation.sinogram)
    return simulation


def _write(result: Reconstruction, path: Path) -> None:
    write_nifti(path, result.hu, result.grid, part="real", geometry_known=True, description=result.method)


def _compare(results: Mapping[str, Reconstruction], simulation: Simulation, path: Path) -> Rows:
    target = simulation.target_hu
    outside = target <= _BODY_HU
    excluded = outside if simulation.metal_mask is None else outside | (simulation.metal_mask > 0)
    inside = ~excluded
    rows, texts = [], {}
    for name, result in results.items():
        hu = result.hu
        row = {
            "method": name,
            "RMSE (HU)": float(rmse_hu(hu, target, excluded).mean()),
            "bias (HU)": float(bias_hu(hu, target, excluded).mean()),
            "SSIM": float(ssim_uniform_7x7(hu, target, _SSIM_RANGE_HU, mask=inside).mean()),
        }
        rows.append(row)
        texts[name] = f"{row['RMSE (HU)']:.0f} HU · SSIM {row['SSIM']:.2f}"
    columns: dict[str, torch.Tensor] = {**{name: result.hu for name, result in results.items()}, "truth": target}
    write_comparison(
        path,
        columns,
        target="truth",
        grid=next(iter(results.values())).grid,
        window=chosen_window("soft tissue").limits_hu,
        metrics=texts,
        error_limit=200.0,
        unit="HU",
    )
    return rows
