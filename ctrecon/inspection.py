"""What a sinogram holds and what was decided about it, as plain data for people and programs."""

import math
from typing import Any

from ctrecon.prepare import noise_std
from ctrecon.sinogram import Sinogram
from operators.back_projection import coverage
from operators.beam_geometry import FanBeam


def describe(sinogram: Sinogram) -> dict[str, Any]:
    """Describe a scan.

    Parameters
    ----------
    sinogram
        What a reader returned.

    Returns
    -------
    dict
        JSON-ready: ``encoding``, ``counts``, ``noise``, ``geometry``, ``decisions`` and ``warnings``. Identifiers of
        the person are never part of it.
    """
    geometry, data = sinogram.geometry, sinogram.data
    level, source = noise_std(sinogram)
    decisions = (*sinogram.decisions, source)
    grid = sinogram.grid()
    facts: dict[str, Any] = {
        "beam": type(geometry).__name__ + (" curved" if isinstance(geometry, FanBeam) and geometry.curved else ""),
        "coverage": str(coverage(geometry)),
        "first_and_last_angle_deg": [round(math.degrees(geometry.angles_rad[view]), 3) for view in (0, -1)],
        "detector_spacing_mm": round(geometry.detector_spacing_mm, 6),
        "detector_offset_mm": round(geometry.detector_offset_mm, 6),
        "voxel_mm_zyx": [round(size, 4) for size in grid.spacing_mm],
        "image_shape": list(sinogram.image_shape),
    }
    if isinstance(geometry, FanBeam):
        facts["source_to_center_mm"] = round(geometry.source_to_center_mm, 4)
        facts["center_to_detector_mm"] = round(geometry.center_to_detector_mm, 4)
    return {
        "encoding": {
            "axes": ["slice", "view", "detector"],
            "shape": list(data.shape),
            "slices": sinogram.n_slices,
            "line_integrals": f"{float(data.min()):.3g} to {float(data.max()):.3g}",
            "weighted": sinogram.weights is not None,
            "mu_water_per_mm": sinogram.mu_water_per_mm,
            "mu_water_known": sinogram.mu_water_known,
        },
        "counts": dict(sinogram.counts),
        "noise": {"std": float(f"{level:.4g}"), "source": source.reason},
        "geometry": facts,
        "decisions": [str(decision) for decision in decisions if not decision.warning],
        "warnings": [str(decision) for decision in decisions if decision.warning],
    }
