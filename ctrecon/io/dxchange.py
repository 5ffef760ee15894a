"""Reading parallel-beam scans in the DXchange layout of synchrotrons, which TomoPy uses: counts and flat fields."""

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ctrecon.io.alignment import rotation_axis
from ctrecon.io.assembly import assemble
from ctrecon.io.datasets import read_numbers
from ctrecon.io.geometry_files import Setup
from ctrecon.io.options import ReadOptions
from ctrecon.io.quantity import from_transmission
from ctrecon.sinogram import Sinogram
from operators.beam_geometry import ParallelBeam
from operators.decision import Decision
from operators.errors import InputError
from operators.io.hdf5 import find_dataset, open_hdf5

_DEFAULTS = ReadOptions()
_MOST_DEAD = 0.05
_LONGEST_UNIT = 64
# Half a turn in radians ends at 3.14; in degrees no scan stops there.
_LARGEST_RADIANS = 2 * math.pi * 1.01


def looks_like_dxchange(file: h5py.File) -> bool:
    """Whether an open HDF5 file has the dataset ``exchange/data``."""
    return find_dataset(file, "exchange/data") is not None


def read_dxchange(path: Path | str, options: ReadOptions = _DEFAULTS) -> Sinogram:
    """Read a parallel-beam scan.

    The dark field is taken off data and flat field, −log(data/flat) are the line integrals, and what cannot have a
    logarithm is counted. The axis of rotation is found from the data, in the middle slice.

    Parameters
    ----------
    path
        An HDF5 file with ``exchange/data`` ``(view, slice, detector)`` in counts, ``exchange/data_white`` and
        ``exchange/data_dark`` (frame, slice, detector), and ``exchange/theta`` in degrees.
    options
        Overrides of decisions; ``pixel_mm`` is the size of bins and pixels, which such files seldom say.

    Returns
    -------
    Sinogram

    Raises
    ------
    InputError
        If the file is damaged, or its parts do not agree.
    """
    path = Path(path)
    log: list[Decision] = []
    with open_hdf5(path) as file:
        counts = read_numbers(file, "exchange/data", ("view", "slice", "detector bin"), options, path)
        white = _mean_field(file, "data_white", counts.shape[1:], options, path)
        dark = _mean_field(file, "data_dark", counts.shape[1:], options, path)
        angles = _angles(file, counts.shape[0], options, path, log)
    data, weights = _line_integrals(counts, white, dark, options, path, log)
    spacing_mm = _pixel_mm(options, log)
    offset_mm = _detector_offset_mm(data[len(data) // 2], angles, spacing_mm, options, log)
    geometry = ParallelBeam(tuple(angles.tolist()), data.shape[-1], spacing_mm, spacing_mm, offset_mm)
    n = data.shape[-1]
    log.append(Decision("orientation", "unknown", "Such files do not say how the sample lies."))
    return assemble(
        data,
        weights,
        Setup(geometry, (n, n), reason="It is as wide as the detector."),
        options,
        source=str(path),
        decisions=tuple(log),
        slice_spacing_mm=spacing_mm,
        counts=(("flat fields", white[1]), ("dark fields", dark[1])),
    )


def _mean_field(
    file: h5py.File, name: str, shape: tuple[int, ...], options: ReadOptions, path: Path
) -> tuple[NDArray[np.float64] | None, int]:
    """Mean of the frames of a flat or dark field, ``(slice, detector)``, and their number."""
    if find_dataset(file, f"exchange/{name}") is None:
        return None, 0
    frames = read_numbers(file, f"exchange/{name}", ("frame", "slice", "detector bin"), options, path)
    if frames.shape[1:] != shape:
        raise InputError(
            f"exchange/{name} in {path} has shape {frames.shape}; expected (frame, {shape[0]}, {shape[1]}) as the data."
        )
    return frames.mean(axis=0, dtype=np.float64), len(frames)


def _line_integrals(
    counts: NDArray[Any],
    white: tuple[NDArray[np.float64] | None, int],
    dark: tuple[NDArray[np.float64] | None, int],
    options: ReadOptions,
    path: Path,
    log: list[Decision],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Line integrals and weights, ``(slice, view, detector)``."""
    mean_dark = dark[0] if dark[0] is not None else np.zeros(counts.shape[1:])
    if dark[0] is None:
        log.append(Decision("dark_field", "none", "The file holds none; the detector is taken to be free of offset."))
    if white[0] is not None and options.incident_counts is not None:
        raise InputError(f"{path} holds a flat field, which says the incident counts; leave --incident-counts out.")
    if white[0] is not None:
        flat = white[0] - mean_dark
        log.append(Decision("flat_field", f"mean of {white[1]} frames", f"Minus {dark[1]} dark frames."))
    elif options.incident_counts is not None:
        flat = np.full(counts.shape[1:], float(options.incident_counts))
        log.append(Decision("incident_counts", f"{options.incident_counts:g}", "It was asked for."))
    else:
        raise InputError(f"{path} has no exchange/data_white; give the counts without an object: --incident-counts.")
    dead = ~(flat > 0)
    if dead.mean() > _MOST_DEAD:
        raise InputError(
            f"{int(dead.sum())} of {dead.size} detector bins in {path} see no more light in the flat field than in the "
            f"dark field; the fields are swapped, or belong to another scan."
        )
    with np.errstate(over="ignore"):  # what overflows is refused below
        transmission = (counts - mean_dark) / np.where(dead, 1.0, flat)
    transmission[:, dead] = 1.0  # replaced below
    source = f"exchange/data in {path}"
    integrals, weights, decisions = from_transmission(transmission, source=source)
    log += decisions
    with np.errstate(over="ignore", invalid="ignore"):
        weights *= (np.where(dead, 0.0, flat) / np.median(flat)).astype(np.float32)
    if dead.any():
        _bridge(integrals, dead)
        reason = "Their flat field is no brighter than the dark field; their neighbours were taken, with the weight 0."
        log.append(Decision("dead_bins", f"{int(dead.sum())} of {dead.size}", reason, warning=True))
    return np.ascontiguousarray(integrals.swapaxes(0, 1)), np.ascontiguousarray(weights.swapaxes(0, 1))


def _bridge(integrals: NDArray[np.float32], dead: NDArray[np.bool_]) -> None:
    """Interpolate over dead bins along the detector, in place."""
    index = np.arange(dead.shape[1])
    for row, missing in enumerate(dead):
        if missing.any() and not missing.all():
            for view in integrals[:, row]:
                view[missing] = np.interp(index[missing], index[~missing], view[~missing])


def _angles(
    file: h5py.File, n_views: int, options: ReadOptions, path: Path, log: list[Decision]
) -> NDArray[np.float64]:
    override = "--angle-unit"
    dataset = find_dataset(file, "exchange/theta")
    if dataset is None:
        reason = "The file has no exchange/theta; equal steps are the usual scan."
        log.append(Decision("angles", f"{n_views} over 180 degrees", reason, warning=True))
        return np.arange(n_views) * math.pi / n_views
    theta = read_numbers(file, "exchange/theta", ("view",), options, path).astype(np.float64)
    if len(theta) != n_views:
        raise InputError(f"{path} has {n_views} projections, but {len(theta)} angles; one of them is incomplete.")
    unit, reason, doubtful = _unit(dataset, theta, options)
    log.append(Decision("angle_unit", unit, reason, override, warning=doubtful))
    if unit == "degrees":
        theta = np.deg2rad(theta)
    if np.ptp(theta) > 8 * math.pi:
        raise InputError(
            f"exchange/theta in {path} spans {np.ptp(theta) / (2 * math.pi):.4g} turns in {unit}; expected four at "
            f"most: check {override}."
        )
    return theta


def _unit(dataset: h5py.Dataset, theta: NDArray[np.float64], options: ReadOptions) -> tuple[str, str, bool]:
    if options.angle_unit is not None:
        if options.angle_unit not in ("degrees", "radians"):
            raise InputError(f"The unit of the angles is {options.angle_unit!r}; expected 'degrees' or 'radians'.")
        return options.angle_unit, "It was asked for.", False
    said = _unit_attribute(dataset)
    if said.startswith("deg"):
        return "degrees", "The file says it.", False
    if said.startswith("rad"):
        return "radians", "The file says it.", False
    if len(theta) > 8 and np.ptp(theta) <= _LARGEST_RADIANS:
        return "radians", f"They span {np.ptp(theta):.3g}, which in degrees would be no scan.", True
    return "degrees", "It is the convention of the format.", False


def _unit_attribute(dataset: h5py.Dataset) -> str:
    try:
        kind = dataset.attrs.get_id("units").get_type()
        if not isinstance(kind, h5py.h5t.TypeStringID) or (
            not kind.is_variable_str() and kind.get_size() > _LONGEST_UNIT
        ):
            return ""
        unit = dataset.attrs["units"]
    except (KeyError, OSError, RuntimeError, ValueError, TypeError):
        return ""  # a missing or damaged attribute says nothing
    return (unit.decode("latin-1") if isinstance(unit, bytes) else str(unit)).strip().lower()


def _pixel_mm(options: ReadOptions, log: list[Decision]) -> float:
    given = options.pixel_mm
    if given is None:
        reason = "The file carries no size; 1 mm is a placeholder, and so are attenuation per mm and Hounsfield units."
        log.append(Decision("pixel_size", "1 mm", reason, "--pixel-mm", warning=True))
        return 1.0
    if not (math.isfinite(given) and given > 0):
        raise InputError(f"The pixel size is {given}; expected a positive length in mm.")
    return float(given)


def _detector_offset_mm(
    views: NDArray[np.float32],
    angles: NDArray[np.float64],
    spacing_mm: float,
    options: ReadOptions,
    log: list[Decision],
) -> float:
    override = "--detector-offset-mm"
    if options.detector_offset_mm is not None:
        return options.detector_offset_mm  # logged with the other overrides
    found = rotation_axis(views.astype(np.float64), angles)
    middle = (views.shape[-1] - 1) / 2
    if found is None:
        reason = "The scan covers too little to find the axis of rotation; it is taken to be in the middle."
        log.append(Decision("rotation_axis", f"bin {middle:g}", reason, override, warning=True))
        return 0.0
    axis, doubtful = found
    reason = "There the scan and its mirror image fit together best (Vo et al. 2014)"
    reason += ", but the minimum is not clear." if doubtful else "."
    value = f"bin {middle + axis:.2f} ({axis:+.2f} from the middle)"
    log.append(Decision("rotation_axis", value, reason, override, warning=doubtful))
    return -axis * spacing_mm
