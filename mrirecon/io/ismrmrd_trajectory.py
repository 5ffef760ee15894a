"""Trajectories of ISMRMRD lines: whether a scan has one, what its components are, and the readouts of each image."""

import math
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from mrirecon.acquisition import Sizes
from mrirecon.io.ismrmrd_header import HeaderFacts
from mrirecon.io.ismrmrd_table import (
    REVERSE,
    STEPS,
    Heads,
    Kinds,
    Plan,
    check_inside,
    count_dimensions,
    encoded_fov,
    find_images,
    rows_of,
)
from mrirecon.io.lines import occurrences
from mrirecon.io.options import ReadOptions
from mrirecon.trajectory import in_radians_per_pixel
from operators.decision import Decision
from operators.errors import InputError
from operators.io.hdf5 import check_memory, hdf5_errors
from operators.voxel_grid import Triple

_CARTESIAN = (None, "cartesian", "epi")
_AXES = ("kx", "ky", "kz")
_MOST_COMPONENTS = 4
_ROW_BYTES = 160  # a row of positions while it is read, decided on and placed
_SAME_RAD = 1e-6


@dataclass(frozen=True, slots=True)
class Positions:
    """Where the imaging lines sample, as it stands in the file; one row per sample that is not discarded.

    Parameters
    ----------
    values
        Float64 ``(row, component)``, in the file's unit and order.
    line, time
        ``(row,)``: index of the line, and of the sample in its recording.
    """

    values: NDArray[np.float64]
    line: NDArray[np.int64]
    time: NDArray[np.int64]


def read_positions(
    table: h5py.Dataset,
    heads: Heads,
    kinds: Kinds,
    facts: HeaderFacts,
    options: ReadOptions,
    path: Path | str,
    log: list[Decision],
) -> Positions | None:
    """Read the trajectory of a scan that has one beyond what its counters say.

    Where the header names a Cartesian, an echo-planar or no trajectory, the positions decide: they are left aside where
    they are an affine function of the encoding counters, zero everywhere, or broken.

    Parameters
    ----------
    table
        The acquisition table.
    heads, kinds
        Its lines.
    facts
        The header.
    options
        For the memory limit.
    path
        The file, for messages.
    log
        Decisions are appended.

    Returns
    -------
    Positions or None
        ``None`` where the lines are to be placed by their counters.

    Raises
    ------
    InputError
        If the header names a trajectory that is not Cartesian, and the positions are broken.
    """
    lines = np.flatnonzero(kinds.imaging)
    n_components = [] if heads.n_components is None else np.unique(heads.n_components[lines]).tolist()
    if n_components in ([], [0]):
        return None
    may_be_cartesian = facts.trajectory in _CARTESIAN
    try:
        positions = _read(table, heads, lines, n_components, options, path)
    except InputError as error:
        if not may_be_cartesian:
            raise
        log.append(
            Decision("trajectory", "ignored", f"The header names none that is not Cartesian. {error}", warning=True)
        )
        return None
    if not positions.values[:, :2].any():
        log.append(Decision("trajectory", "ignored", "The positions of all samples are zero."))
        return None
    if may_be_cartesian and _follow_counters(positions, heads):
        log.append(Decision("trajectory", "ignored", "The positions of the samples are those of the line counters."))
        return None
    if may_be_cartesian:
        name = "nothing" if facts.trajectory is None else repr(facts.trajectory)
        reason = f"The header says {name}, but the positions of the samples do not follow the line counters."
        log.append(Decision("trajectory", "from the lines", reason, warning=True))
    else:
        reason = f"The lines hold the positions of their {len(positions.values)} samples."
        log.append(Decision("trajectory", str(facts.trajectory)[:40], reason))
    return positions


def plan_readouts(
    positions: Positions,
    heads: Heads,
    kinds: Kinds,
    facts: HeaderFacts,
    options: ReadOptions,
    path: Path | str,
    log: list[Decision],
) -> Plan:
    """Decide on the image, the unit of the trajectory and the order of the readouts.

    The readouts of an image follow one another by second and first encoding step, then as they arrived. Where the
    counters run on from image to image, readouts of different images correspond by their rank. Averages with the same
    trajectory are averaged; with different ones they are further readouts of the image.

    Parameters
    ----------
    positions
        The trajectory as it stands in the file.
    heads, kinds
        The lines.
    facts
        The header.
    options
        Overrides of decisions.
    path
        The file, for messages.
    log
        Decisions are appended.

    Returns
    -------
    Plan
        With ``trajectory``; samples that were not measured have position 0.

    Raises
    ------
    InputError
        If the image has no known matrix, components or unit do not fit it, another trajectory is given, or too much
        memory would be needed.
    """
    if options.trajectory is not None:
        raise InputError(f"The lines of {path} hold the positions of their samples; leave --trajectory-file out.")
    facts = _with_matrix(facts, options)
    planar, kz = _components(positions, options, log)
    kz, n_z = _through_plane(kz, positions, heads, kinds, facts, options, path, log)
    shape, fov_mm, fov_known = _image(facts, n_z, options, path, log)
    inside = np.ones(len(heads), dtype=bool)
    if kz is None and n_z > 1:
        partitions = rows_of(heads, kinds.imaging, facts, STEPS[1], n_z, log)
        inside = (partitions >= 0) & (partitions < n_z)
        check_inside(inside, kinds, shape, path, log)
    kept = inside[positions.line]
    line, time = positions.line[kept], positions.time[kept]
    values = (planar if kz is None else np.concatenate([kz[:, None], planar], axis=1))[kept]
    values = _in_radians(values, shape, fov_mm if fov_known else None, options, log)
    if kz is None and n_z > 1:
        values = np.concatenate([(2 * math.pi * (partitions[line] - n_z // 2) / n_z)[:, None], values], axis=1)
        reason = "The trajectory is planar; the partitions are those of kspace_encode_step_2."
        log.append(Decision("partitions", str(n_z), reason, "--trajectory-axes"))
    placed = Positions(values, line, time)
    return _plan(placed, heads, kinds, kinds.imaging & inside, facts, shape, fov_mm, options, path, log)


def _in_radians(
    values: NDArray[np.float64], shape: Sizes, fov_mm: Triple | None, options: ReadOptions, log: list[Decision]
) -> NDArray[np.float64]:
    if options.voxel_mm is not None:
        dx, dy, dz = options.voxel_mm
        fov_mm = (shape[0] * dz, shape[1] * dy, shape[2] * dx)
    n_dims = values.shape[1]
    trajectory, decision = in_radians_per_pixel(
        torch.from_numpy(values),
        shape[-n_dims:],
        None if fov_mm is None else fov_mm[-n_dims:],
        unit=options.trajectory_unit,
    )
    log.append(decision)
    return trajectory.double().numpy()


def _read(
    table: h5py.Dataset,
    heads: Heads,
    lines: NDArray[np.int64],
    stated: list[int],
    options: ReadOptions,
    path: Path | str,
) -> Positions:
    """Positions of the lines' kept samples, checked; ``stated`` are the numbers of components that the lines state."""
    if len(stated) > 1 or not 2 <= stated[0] <= _MOST_COMPONENTS:
        raise InputError(
            f"The imaging lines of {path} have trajectories with {' or '.join(map(str, stated[:8]))} components; "
            f"expected 2 or 3 everywhere, or 4 with a weight."
        )
    n_samples, n_components = heads.n_samples[lines], stated[0]
    check_memory(int(n_samples.sum()), _ROW_BYTES, options.memory_limit_bytes, what=f"The trajectory in {path}")
    with hdf5_errors(path, "reading the trajectory"):
        item = h5py.check_vlen_dtype(table.dtype["traj"]) if "traj" in (table.dtype.names or ()) else None
        if item is None or item.kind != "f":
            raise InputError(f"The acquisitions of {path} have no field 'traj' with lists of floats.")
        stored = table.fields("traj")[()][lines]
    lengths = np.fromiter((len(line) for line in stored), dtype=np.int64, count=len(stored))
    wrong = np.flatnonzero(lengths != n_samples * n_components)
    if len(wrong):
        first = wrong[0]
        raise InputError(
            f"The trajectories of {len(wrong)} lines of {path} do not have the length that they state: line "
            f"{lines[first]} holds {lengths[first]} numbers for {n_samples[first]} samples × {n_components} components."
        )
    values = np.concatenate(stored).astype(np.float64).reshape(-1, n_components)
    line = np.repeat(lines, n_samples)
    time = np.arange(len(values)) - np.repeat(np.cumsum(n_samples) - n_samples, n_samples)
    kept = (time >= heads.discard_pre[line]) & (time < (heads.n_samples - heads.discard_post)[line])
    values, line, time = values[kept], line[kept], time[kept]
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(broken):
        raise InputError(
            f"{len(broken)} of {len(values)} positions in the trajectory of {path} are NaN or infinite, the first "
            f"in line {line[broken[0]]}; export the scan again."
        )
    return Positions(values, line, time)


def _follow_counters(positions: Positions, heads: Heads) -> bool:
    """Whether the positions are an affine function of sample and encoding steps, in whatever unit and direction."""
    line, time = positions.line, positions.time
    forwards = np.where(heads.flagged(REVERSE)[line], heads.n_samples[line] - 1 - time, time)
    design = np.stack([forwards, np.ones_like(time), *(heads.counter(step)[line] for step in STEPS)], axis=1)
    scale = np.maximum(np.abs(design).max(axis=0), 1).astype(np.float64)
    scaled = design / scale
    found = np.linalg.pinv(scaled.T @ scaled, rcond=1e-12) @ (scaled.T @ positions.values[:, :3])
    step = np.linalg.norm(found[0]) / scale[0]
    return bool(np.abs(scaled @ found - positions.values[:, :3]).max() <= 0.1 * step)


def _with_matrix(facts: HeaderFacts, options: ReadOptions) -> HeaderFacts:
    """The header with the person's matrix."""
    if options.matrix is None:
        return facts
    if len(options.matrix) not in (2, 3) or min(options.matrix) < 1:
        raise InputError(f"The matrix is {options.matrix}; give two or three positive sizes, such as --matrix 128,128.")
    n_y, n_x = options.matrix[-2:]
    return replace(facts, encoded_shape=(options.matrix[0] if len(options.matrix) == 3 else 1, n_y, n_x))


def _components(
    positions: Positions, options: ReadOptions, log: list[Decision]
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """In-plane components ``(row, 2)`` as (ky, kx), and the one that may be kz."""
    n_components = positions.values.shape[1]
    axes = options.trajectory_axes or _AXES[:n_components]
    if not {"kx", "ky"} <= set(axes) <= set(_AXES) or len(set(axes)) < len(axes) or len(axes) > n_components:
        raise InputError(
            f"The trajectory's axes are {','.join(axes)}, but its lines have {n_components} components; "
            f"give kx, ky and perhaps kz once each, such as --trajectory-axes kx,ky."
        )
    if options.trajectory_axes is not None:
        log.append(Decision("trajectory_axes", ",".join(axes), "It was asked for.", "--trajectory-axes"))
    if n_components > len(_AXES):
        reason = f"The trajectory has {n_components} components."
        log.append(Decision("trajectory_components", "those beyond the third left out", reason))
    planar = positions.values[:, [axes.index("ky"), axes.index("kx")]]
    return planar, positions.values[:, axes.index("kz")] if "kz" in axes else None


def _through_plane(
    kz: NDArray[np.float64] | None,
    positions: Positions,
    heads: Heads,
    kinds: Kinds,
    facts: HeaderFacts,
    options: ReadOptions,
    path: Path | str,
    log: list[Decision],
) -> tuple[NDArray[np.float64] | None, int]:
    """The component kz, ``None`` where there is none, and the number of partitions of the image."""
    n_z = facts.encoded_shape[0]
    asked_for = "kz" in (options.trajectory_axes or ())
    if kz is not None and not asked_for:
        kz = _unless_weight(kz, positions, heads, kinds, n_z, log)
    if kz is None:
        return None, count_dimensions(heads, kinds.imaging, facts, log)[1]
    if n_z is None or n_z == 1:
        raise InputError(
            f"The trajectory of {path} has three components, but its header encodes {n_z or 'no'} partition; give the "
            f"pixels of the image by --matrix z,y,x, or leave the third out by --trajectory-axes kx,ky."
        )
    return kz, n_z


def _unless_weight(
    kz: NDArray[np.float64],
    positions: Positions,
    heads: Heads,
    kinds: Kinds,
    n_z: int | None,
    log: list[Decision],
) -> NDArray[np.float64] | None:
    """The third component, or ``None`` where it is constant or a density weight."""
    if np.ptp(kz) == 0:
        if kz[0] != 0:
            reason = f"The third component is {kz[0]:g} everywhere."
            log.append(Decision("trajectory_components", "third left out", reason, "--trajectory-axes"))
        return None
    same_line = np.diff(positions.line) == 0
    along_readouts = bool((np.diff(kz)[same_line] != 0).any())
    has_partitions = bool(np.ptp(heads.counter(STEPS[1])[kinds.imaging]) > 0)
    planar = n_z is None or n_z == 1
    if (kz >= 0).all() and (planar or (along_readouts and has_partitions)):
        other = "the header encodes one partition" if planar else "kspace_encode_step_2 counts the partitions"
        reason = f"The third component is never negative, and {other}: it was taken for a density weight."
        log.append(Decision("trajectory_components", "third left out", reason, "--trajectory-axes", warning=True))
        return None
    return kz


def _image(
    facts: HeaderFacts, n_z: int, options: ReadOptions, path: Path | str, log: list[Decision]
) -> tuple[Sizes, Triple, bool]:
    """Matrix of the uncropped image, its field of view in mm, and whether the header states that."""
    n_y, n_x = (facts.encoded_shape[axis] or facts.recon_shape[axis] for axis in (1, 2))
    if n_y is None or n_x is None:
        raise InputError(f"The header of {path} gives no matrix of the image; give its pixels by --matrix y,x.")
    if None in facts.encoded_shape[1:]:
        reason = "The header gives no encoded matrix; that of the reconstructed image was taken."
        log.append(Decision("matrix", f"{n_y} × {n_x}", reason, "--matrix", warning=True))
    fov_mm, known = encoded_fov(facts, (n_z, n_y, n_x), log)
    square = max(round(fov_mm[1] * n_x / fov_mm[2]), 1)
    if options.matrix is None and known and not _is_near(n_y, square) and _shows_square_pixels(facts):
        reason = (
            f"With {n_y} rows, as many as the header encodes, pixels would be oblong; those of the image are square."
        )
        log.append(Decision("matrix", f"{square} × {n_x}", reason, "--matrix", warning=True))
        n_y = square
    check_memory(n_z * n_y * n_x, 8, options.memory_limit_bytes, what=f"An image of {n_z} × {n_y} × {n_x} from {path}")
    return (n_z, n_y, n_x), fov_mm, known


def _shows_square_pixels(facts: HeaderFacts) -> bool:
    """Whether the header asks for an image with square pixels."""
    _, n_y, n_x = facts.recon_shape
    _, fov_y_mm, fov_x_mm = facts.recon_fov_mm
    if n_y is None or n_x is None or fov_y_mm is None or fov_x_mm is None:
        return False
    return _is_near(n_y, fov_y_mm * n_x / fov_x_mm)


def _is_near(n: int, wanted: float) -> bool:
    return abs(n - wanted) <= max(1, 0.02 * wanted)


def _plan(
    positions: Positions,
    heads: Heads,
    kinds: Kinds,
    imaging: NDArray[np.bool_],
    facts: HeaderFacts,
    shape: Sizes,
    fov_mm: Triple,
    options: ReadOptions,
    path: Path | str,
    log: list[Decision],
) -> Plan:
    """Place of every readout, from positions in radians per pixel."""
    images = find_images(heads, imaging, facts, shape, fov_mm, options, log)
    n_calibration = int((kinds.calibration & ~kinds.imaging).sum())
    if n_calibration:
        reason = f"{n_calibration} lines are for calibration only; coils are calibrated from the centre of k-space."
        log.append(Decision("calibration_lines", "left out", reason))
    lines = np.flatnonzero(imaging)
    readout, trajectory = _placed(positions, heads, lines, images.index, options, path, log)
    trajectory = trajectory.reshape(*(images.batch_shape if len(trajectory) > 1 else ()), *trajectory.shape[1:])
    n_readouts = int(readout[lines].max()) + 1
    n_places = math.prod(images.batch_shape) * n_readouts
    n_missing = n_places - len(np.unique(images.index[lines] * n_readouts + readout[lines]))
    if n_missing:
        reason = f"The images of the scan do not hold equally many readouts: {n_missing} of {n_places} are missing."
        log.append(Decision("missing_readouts", "unmarked in the mask", reason, warning=True))
    return Plan(
        shape=(1, n_readouts, trajectory.shape[-2]),
        n_dims=trajectory.shape[-1],
        batch_axes=images.batch_axes,
        batch_shape=images.batch_shape,
        targets=np.stack([images.index, np.zeros_like(readout), readout], axis=1),
        starts=heads.discard_pre,
        imaging=lines,
        calibration=lines[:0],
        acquisition=images.acquisition,
        trajectory=torch.from_numpy(_shared(trajectory, len(images.batch_shape))),
    )


def _placed(
    positions: Positions,
    heads: Heads,
    lines: NDArray[np.int64],
    image: NDArray[np.int64],
    options: ReadOptions,
    path: Path | str,
    log: list[Decision],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Readout of every line ``(line,)``, and the trajectory ``(image or 1, readout, sample, dim)``."""
    n_averages = len(np.unique(heads.counter("average")[lines])) if options.average else 1
    for averaged, together in product((True, False), repeat=2):
        readout = np.zeros(len(heads), dtype=np.int64)
        readout[lines] = _readouts(heads, lines, image[lines], averaged=averaged)
        trajectory, agrees = _spread(positions, image * (not together), readout, options, path)
        if agrees:
            break
    if n_averages > 1:
        done, why = ("averaged", "agree") if averaged else ("as further readouts", "differ")
        reason = f"The file marks them as averages of the same image, and their trajectories {why}."
        log.append(Decision("averages", f"{n_averages} {done}", reason, "--split-averages"))
    return readout, trajectory


def _readouts(heads: Heads, lines: NDArray[np.int64], image: NDArray[np.int64], *, averaged: bool) -> NDArray[np.int64]:
    """Place of each line among the readouts of its image; lines of several averages may have the same."""
    first, second = (heads.counter(step)[lines] for step in STEPS)
    average = heads.counter("average")[lines]
    _, group = np.unique(np.stack([image, average, second, first], axis=1), axis=0, return_inverse=True)
    order = [second, first, occurrences(group.reshape(-1))]
    if not averaged:
        order.insert(2, average)
    _, place = np.unique(np.stack(order, axis=1), axis=0, return_inverse=True)
    place = place.reshape(-1)
    n_places = int(place.max()) + 1
    present = np.unique(image * n_places + place)
    of_image = present // n_places
    if np.bincount(of_image).max() == n_places:
        return place
    rank = np.arange(len(present)) - np.searchsorted(of_image, of_image)
    return rank[np.searchsorted(present, image * n_places + place)]


def _spread(
    positions: Positions,
    image: NDArray[np.int64],
    readout: NDArray[np.int64],
    options: ReadOptions,
    path: Path | str,
) -> tuple[NDArray[np.float64], bool]:
    """Trajectory ``(image, readout, sample, dim)`` and whether lines with the same place have the same one."""
    line = positions.line
    shape = int(image[line].max()) + 1, int(readout[line].max()) + 1, int(positions.time.max()) + 1
    n_dims = positions.values.shape[1]
    # Once as it is, twice while images are compared.
    check_memory(math.prod(shape), 3 * 8 * n_dims, options.memory_limit_bytes, what=f"The trajectory in {path}")
    trajectory = np.zeros((*shape, n_dims))
    place = image[line], readout[line], positions.time
    trajectory[place] = positions.values
    return trajectory, bool(np.abs(trajectory[place] - positions.values).max() <= _SAME_RAD)


def _shared(trajectory: NDArray[np.float64], n_batch_axes: int) -> NDArray[np.float64]:
    """The trajectory ``(*batch, readout, sample, dim)`` with size 1 along batch axes that share it."""
    for axis in range(trajectory.ndim - 3):
        first = trajectory.take([0], axis=axis)
        if np.abs(trajectory - first).max() <= _SAME_RAD:
            trajectory = first
    is_same = trajectory.shape[:-3] == (1,) * n_batch_axes
    return trajectory.reshape(trajectory.shape[-3:]) if is_same else trajectory
