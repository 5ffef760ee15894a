"""What a scan holds and what was decided about it, as plain data for people and programs."""

from typing import Any

from mrirecon.interference import repeatability
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
    if "repetition" in kspace.batch_axes:
        noise["repeatability"] = float(f"{repeatability(kspace):.4g}")
    return {
        "encoding": {
            "dimensions": f"{kspace.n_dims}-D",
            "axes": [*kspace.batch_axes, "coil", *("kz", "ky", "kx")[-kspace.n_dims :]],
            "shape": list(kspace.data.shape),
            "coils": kspace.n_coils,
            "slices": kspace.n_slices,
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


def _rounded(values: tuple[float, ...]) -> list[float]:
    return [round(value, 4) for value in values]
