"""Finding a trajectory: beside the samples in their file, or in a file of its own."""

import importlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrirecon.io.arrays import TRAJECTORY_NAMES, short_name
from mrirecon.io.options import ReadOptions
from mrirecon.trajectory import TrajectoryUnit
from operators.decision import Decision
from operators.errors import InputError
from operators.io.array_file import ArrayFile, StoredArray
from operators.io.signature import container_of, head_in_words, head_of
from operators.voxel_grid import Triple

_CLEAR_NAMES = ("trajectory", "traj", "ktraj")
_MOST_AXES = 8
_MOST_COILS = 64
_DENSITY_NAMES = ("dcf", "density", "weights")
_MATRIX_NAMES = ("matrix", "image_shape")
_OPENERS = {
    "numpy": ("operators.io.numpy_files", "open_npy"),
    "numpy archive": ("operators.io.numpy_files", "open_npz"),
    "MATLAB 5": ("operators.io.matlab5", "open_matlab5"),
    "HDF5": ("operators.io.hdf5_arrays", "open_hdf5_arrays"),
}


@dataclass(frozen=True, slots=True)
class StoredTrajectory:
    """A trajectory as it stands in a file, and what the file says beside it.

    Parameters
    ----------
    values
        Real, with the coordinates along the first or the last axis; or complex, kx + i ky.
    source
        What it is, for messages, such as ``"traj in scan.npz"``.
    unit
        Its unit, where the format fixes that.
    axes_reason
        Why its coordinates are kx, ky[, kz], where the format fixes that; otherwise empty.
    dcf, dcf_source
        Density compensation, real, of any scale, and what it is, for messages; ``None`` where there is none.
    matrix
        Pixels of the image, ``([z,] y, x)``, or one number for every axis.
    voxel_mm, fov_mm
        Voxel size, and field of view or one number for every axis of the image, (column, row, slice) in mm.
    beside
        Which file says so, for messages.
    decisions
        What was decided on the way.
    """

    values: NDArray[Any]
    source: str
    unit: TrajectoryUnit | None = None
    axes_reason: str = ""
    dcf: NDArray[Any] | None = None
    dcf_source: str = ""
    matrix: tuple[int, ...] | None = None
    voxel_mm: Triple | None = None
    fov_mm: tuple[float, ...] | None = None
    beside: str = ""
    decisions: tuple[Decision, ...] = ()


def find_trajectory(file: ArrayFile, stored: StoredArray, options: ReadOptions) -> StoredTrajectory | None:
    """Find the trajectory of an array: in the file of ``options.trajectory``, or beside the array.

    Parameters
    ----------
    file
        The open file that holds the samples.
    stored
        The samples.
    options
        ``trajectory`` names another file; Cartesian ``axes`` say that there is none.

    Returns
    -------
    StoredTrajectory or None
        ``None`` if the array is Cartesian.

    Raises
    ------
    InputError
        If a trajectory is announced, and there is none that can be used.
    """
    others = [array for array in file.arrays if array is not stored]
    if options.trajectory is not None:
        refuse_cartesian_axes(options)
        found = read_trajectory_file(options.trajectory, options)
        return _with_facts(found, file, others, options)
    if _are_cartesian(options.axes):
        return None
    chosen, decisions = _named_trajectory(others, file.path)
    if chosen is not None:
        found = _stored_trajectory(file, chosen, options, decisions)
    else:
        unnamed = _trajectory_by_shape(file, others, stored, options)
        if unnamed is None and options.axes is not None:
            raise InputError(
                f"The axes {','.join(options.axes)} need a trajectory, and {file.path} holds none that is called "
                f"{', '.join(TRAJECTORY_NAMES)}; give it with --trajectory-file."
            )
        if unnamed is None:
            return None
        found = unnamed
    return _with_facts(found, file, others, options)


def read_trajectory_file(path: Path | str, options: ReadOptions) -> StoredTrajectory:
    """Read a trajectory from a file of its own: numpy, MATLAB, HDF5, BART (index units), Pulseq (1/m).

    Parameters
    ----------
    path
        The file; its name does not matter, except that BART's are a pair.
    options
        The memory limit.

    Returns
    -------
    StoredTrajectory
        The trajectory, and the density compensation and sizes beside it.

    Raises
    ------
    InputError
        If the file is damaged, of another format, or holds no trajectory.
    """
    path = Path(path)
    head = head_of(path)
    container = container_of(head)
    if container is not None:
        module, function = _OPENERS[container]
        opened: AbstractContextManager[ArrayFile] = getattr(importlib.import_module(module), function)(path)
        with opened as file:
            chosen, decisions = _only_trajectory(file)
            others = [array for array in file.arrays if array is not chosen]
            return _with_facts(_stored_trajectory(file, chosen, options, decisions), file, others, options)
    from mrirecon.io.bart import is_bart, read_bart_trajectory

    if is_bart(path, head):
        values = read_bart_trajectory(path, options)
        return StoredTrajectory(values, str(path), "index", "BART's trajectories are kx, ky, kz.")
    if b"[VERSION]" in head:
        from mrirecon.io.pulseq import read_pulseq_trajectory

        trajectory, _, decision = read_pulseq_trajectory(path)
        # In one row, which fits samples of any axis order.
        in_a_row = trajectory.flatten(0, -2).flip(-1).numpy()
        return StoredTrajectory(in_a_row, str(path), "1/m", "Pulseq names its gradients.", decisions=(decision,))
    raise InputError(
        f"{path} begins with {head_in_words(head)}, which is no trajectory that is read; numpy, MATLAB, HDF5, BART and "
        f"Pulseq files are."
    )


def refuse_cartesian_axes(options: ReadOptions) -> None:
    """Refuse a trajectory for axes that are those of a Cartesian scan.

    Raises
    ------
    InputError
        If they are.
    """
    if _are_cartesian(options.axes):
        raise InputError(
            f"The axes {','.join(options.axes or ())} are those of a Cartesian scan, but there is a --trajectory-file; "
            f"name them such as --axes coil,shot,sample, or leave that file out."
        )


def placements(shape: tuple[int, ...], sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The axes of a shape that have the given sizes, in the same order: every choice."""
    if len(shape) > _MOST_AXES:
        return []
    dims = combinations(range(len(shape)), len(sizes))
    return [place for place in dims if tuple(shape[dim] for dim in place) == sizes]


def sample_axes(shape: tuple[int, ...], sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Guess the axes of k-space that count samples from the sizes of the trajectory's axes but the components.

    Parameters
    ----------
    shape
        Of the k-space, without axes of size 1.
    sizes
        One size, or two for readouts; one may also count the samples of all readouts in a row.

    Returns
    -------
    list of tuple
        Every choice of one or two axes that leaves at most one other axis, small enough for coils.
    """
    if not 1 <= len(sizes) <= 2 or len(shape) > _MOST_AXES:
        return []
    found = placements(shape, sizes)
    if not found and len(sizes) == 1:
        found = [two for two in combinations(range(len(shape)), 2) if shape[two[0]] * shape[two[1]] == sizes[0]]
    n_left = math.prod(shape) // math.prod(sizes)
    return [place for place in found if len(shape) - len(place) <= 1 and n_left <= _MOST_COILS]


def without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without its axes of size 1."""
    return tuple(n for n in shape if n != 1)


def _are_cartesian(axes: tuple[str, ...] | None) -> bool:
    return axes is not None and not {"shot", "sample"} & set(axes)


def _trajectory_by_shape(
    file: ArrayFile, arrays: Sequence[StoredArray], kspace: StoredArray, options: ReadOptions
) -> StoredTrajectory | None:
    """The only real array that has a position for every sample; unlike a mask or a map, positions change sign."""
    fitting = [array for array in arrays if array.kind.startswith("float") and _is_evident(kspace.shape, array.shape)]
    if len(fitting) != 1:
        return None
    reason = f"Nothing is called a trajectory, but {fitting[0]} has a position for every sample of {kspace}."
    decision = Decision("trajectory", fitting[0].name, reason, "--axes ky,kx", warning=True)
    found = _stored_trajectory(file, fitting[0], options, (decision,))
    return found if (found.values < 0).any() else None


def _is_evident(shape: tuple[int, ...], trajectory_shape: tuple[int, ...]) -> bool:
    sizes = without_ones(shape)
    if placements(sizes, without_ones(trajectory_shape)):  # as a map on the grid of the samples has it
        return False
    for dim in (-1, 0):
        if len(trajectory_shape) < 2 or trajectory_shape[dim] not in (2, 3):
            continue
        others = trajectory_shape[:-1] if dim else trajectory_shape[1:]
        n_coils = math.prod(sizes) / max(math.prod(others), 1)
        if len(sample_axes(sizes, without_ones(others))) == 1 and n_coils <= math.prod(others) / 4:
            return True
    return False


def _named_trajectory(arrays: Sequence[StoredArray], path: Path) -> tuple[StoredArray | None, tuple[Decision, ...]]:
    """The array that is called a trajectory, by the order of ``TRAJECTORY_NAMES``."""
    named = sorted(
        (array for array in arrays if short_name(array) in TRAJECTORY_NAMES),
        key=lambda array: TRAJECTORY_NAMES.index(short_name(array)),
    )
    fitting = [array for array in named if _may_hold_positions(array)]
    broken = [array for array in named if array not in fitting and short_name(array) in _CLEAR_NAMES]
    if not fitting and broken:
        raise InputError(
            f"{broken[0]} in {path} cannot be a trajectory; expected real numbers with 2 or 3 coordinates along the "
            f"first or the last axis, or complex ones, kx + i ky."
        )
    if len(fitting) < 2:
        return (fitting[0] if fitting else None), ()
    reason = f"It is the first of {', '.join(map(str, fitting[:8]))} by its name."
    return fitting[0], (Decision("trajectory", fitting[0].name, reason, "--trajectory-file", warning=True),)


def _only_trajectory(file: ArrayFile) -> tuple[StoredArray, tuple[Decision, ...]]:
    """The trajectory of a file that was given as one: by its name, or the only array that can be it."""
    named, decisions = _named_trajectory(file.arrays, file.path)
    if named is not None:
        return named, decisions
    fitting = [array for array in file.arrays if array.is_real and _may_hold_positions(array)]
    fitting = fitting or [array for array in file.arrays if array.is_complex]
    fitting = [array for array in fitting if short_name(array) not in _DENSITY_NAMES]
    if len(fitting) != 1:
        held = ", ".join(map(str, file.arrays[:12])) or "nothing"
        raise InputError(
            f"{file.path} holds {held}, of which {len(fitting)} may be a trajectory; expected one, or one called "
            f"{', '.join(TRAJECTORY_NAMES)}: real with 2 or 3 coordinates along the first or the last axis, or complex."
        )
    return fitting[0], ()


def _may_hold_positions(array: StoredArray) -> bool:
    if array.is_complex:
        return True
    return array.is_real and len(array.shape) > 1 and (array.shape[0] in (2, 3) or array.shape[-1] in (2, 3))


def _stored_trajectory(
    file: ArrayFile, chosen: StoredArray, options: ReadOptions, decisions: tuple[Decision, ...]
) -> StoredTrajectory:
    values = file.read(chosen, limit_bytes=options.memory_limit_bytes)
    reason = "Complex trajectories are kx + i ky." if chosen.is_complex else ""
    return StoredTrajectory(values, f"{chosen.name} in {file.path}", axes_reason=reason, decisions=decisions)


def _with_facts(
    found: StoredTrajectory, file: ArrayFile, arrays: Sequence[StoredArray], options: ReadOptions
) -> StoredTrajectory:
    """Add density weights and sizes from a file, as far as they are not there yet."""
    dcf = _first_named(arrays, _DENSITY_NAMES)
    if found.dcf is None and dcf is not None and dcf.is_real:
        values = file.read(dcf, limit_bytes=options.memory_limit_bytes)
        found = replace(found, dcf=values, dcf_source=f"{dcf.name} in {file.path}")
    if found.matrix is None:
        matrix = _numbers(file, arrays, _MATRIX_NAMES, (1, 2, 3))
        if matrix is not None:
            if not all(n == int(n) for n in matrix):
                raise InputError(f"The matrix in {file.path} is {matrix}; expected whole numbers.")
            found = replace(found, matrix=tuple(int(n) for n in matrix), beside=str(file.path))
    if found.voxel_mm is None and found.fov_mm is None:
        voxel_mm, fov_mm = (_numbers(file, arrays, (name,), (1, 3)) for name in ("voxel_mm", "fov_mm"))
        found = replace(found, voxel_mm=_three(voxel_mm), fov_mm=fov_mm)
        found = replace(found, beside=str(file.path)) if voxel_mm or fov_mm else found
    return found


def _first_named(arrays: Sequence[StoredArray], names: tuple[str, ...]) -> StoredArray | None:
    return next((array for name in names for array in arrays if short_name(array) == name), None)


def _numbers(
    file: ArrayFile, arrays: Sequence[StoredArray], names: tuple[str, ...], counts: tuple[int, ...]
) -> tuple[float, ...] | None:
    """The few positive numbers of an array of one of these names; ``None`` where there is none."""
    array = _first_named(arrays, names)
    if array is None:
        return None
    if not array.is_real or array.n_elements not in counts:
        raise InputError(f"{array} in {file.path} holds {array.n_elements} elements; expected {_or(counts)} numbers.")
    values = tuple(float(n) for n in file.read(array, limit_bytes=2**20).reshape(-1))
    if not all(np.isfinite(n) and n > 0 for n in values):
        raise InputError(f"{array} in {file.path} is {values}; expected positive numbers.")
    return values


def _three(values: tuple[float, ...] | None) -> Triple | None:
    """Column, row, slice; one number counts for all of them."""
    if values is None:
        return None
    x, y, z = values * 3 if len(values) == 1 else values
    return x, y, z


def _or(counts: Sequence[int]) -> str:
    return " or ".join(map(str, counts))
