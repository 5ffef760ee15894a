"""What a scan holds and what was decided about it, as plain data for people and programs."""

import math
from collections.abc import Sequence
from typing import Any

from mrirecon.interference import has_one_trajectory, repeatability
from mrirecon.kspace import KSpace
from mrirecon.prepare import noise_std


def describe(kspace: KSpace) -> dict[str, Any]:
    """Describe a scan.

    Parameters
    ----------
    kspace
        What a reader returned.

    Returns
    -------
    dict
        JSON-ready: ``encoding``, ``counts``, ``noise``, ``geometry``, ``protocol``, ``decisions`` and ``warnings``.
        ``encoding`` of a scan with a trajectory also says the matrix of the image, how many samples a readout has
        (``None`` where readouts differ), and what fraction of k-space the trajectory reaches along ([kz,] ky, kx).
        Identifiers of the person are never part of it.
    """
    acquisition = kspace.acquisition
    grid = acquisition.encoded_grid(n_slices=kspace.n_slices)
    levels, source = noise_std(kspace)
    decisions = (*kspace.decisions, source)
    noise: dict[str, Any] = {
        "std_per_coil": [float(f"{level:.4g}") for level in levels.tolist()],
        "source": source.value,
        "noise_scan": kspace.noise is not None,
    }
    if "repetition" in kspace.batch_axes and has_one_trajectory(kspace):
        noise["repeatability"] = float(f"{repeatability(kspace):.4g}")
    return {
        "encoding": {
            "dimensions": f"{kspace.n_dims}-D",
            "axes": [*kspace.batch_axes, "coil", *kspace.k_axes],
            "shape": list(kspace.data.shape),
            "coils": kspace.n_coils,
            "slices": kspace.n_slices,
            **_trajectory(kspace),
            "fill_rate": round(kspace.fill_rate, 4),
            "encoded_fov_mm": _rounded(acquisition.encoded_fov_mm),
            "recon_fov_mm": _rounded(acquisition.recon_fov_mm),
        },
        "counts": dict(kspace.counts),
        "noise": noise,
        "geometry": {
            "known": acquisition.geometry_known,
            "voxel_mm_zyx": _rounded(grid.spacing_mm),
            "origin_lps_mm": _rounded(grid.origin_mm),
            "directions_lps_zyx": [_rounded(direction) for direction in grid.directions],
        },
        "protocol": {
            name: value
            for name in (
                "field_strength_t",
                "repetition_time_ms",
                "echo_time_ms",
                "inversion_time_ms",
                "flip_angle_deg",
                "manufacturer",
                "sequence_name",
                "protocol_name",
            )
            if (value := getattr(acquisition, name)) is not None
        },
        "decisions": [str(decision) for decision in decisions if not decision.warning],
        "warnings": [str(decision) for decision in decisions if decision.warning],
    }


def _trajectory(kspace: KSpace) -> dict[str, Any]:
    if kspace.trajectory is None:
        return {}
    reach = kspace.trajectory.abs().flatten(end_dim=-2).amax(dim=0) / math.pi
    return {
        "matrix": list(kspace.image_shape),
        "samples_per_readout": kspace.readout_length,
        "trajectory_reach": _rounded(reach.tolist()),
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]
