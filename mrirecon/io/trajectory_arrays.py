"""Arrays whose samples lie along a trajectory: which position belongs to which sample, and the record they become."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from mrirecon.io.arrays import (
    BATCH_AXES,
    ArrayLayout,
    axes_needed,
    check_array_memory,
    check_axes,
    choose_array,
    header,
    kept_batch_axes,
    kspace_from_array,
    layout_decisions,
    measured,
    single_precision,
    without_averages,
)
from mrirecon.io.options import ReadOptions
from mrirecon.io.trajectory_files import (
    StoredTrajectory,
    find_trajectory,
    placements,
    sample_axes,
    without_ones,
)
from mrirecon.kspace import KSpace
from mrirecon.trajectory import TrajectoryUnit, in_radians_per_pixel
from operators.decision import Decision
from operators.errors import InputError
from operators.io.array_file import ArrayFile, StoredArray
from operators.io.hdf5 import check_memory
from operators.voxel_grid import Triple

_AXES = ("repetition", "average", "contrast", "slice", "coil", "kz", "shot", "sample")
_POSITION_AXES = tuple(axis for axis in _AXES if axis != "coil")
_READOUT_AXES = ("kz", "shot", "sample")
_COMPONENTS = ("kx", "ky", "kz")
_FEWEST_SAMPLES = 4
_SMALLEST_MATRIX, _LARGEST_MATRIX = 4, 4096
_STRAIGHT = 1e-3  # relative to the distance between two samples of a readout
_ROUNDING = 1e-4  # how far a file may pass a limit by rounding, as in in_radians_per_pixel
_DENSEST = 0.1  # part of the samples by which density weights are scaled: there, neighbouring readouts overlap
_DENSITY_BYTES = 24  # a sample and a point of the kernel, while density weights are scaled
_ASKED_FOR = "It was asked for."


@dataclass(frozen=True, slots=True)
class _Matched:
    """An array and its trajectory with a name for each of their axes, none of which has size 1.

    ``coordinates`` has one axis more than ``position_axes``: the components, in the order of the file.
    """

    array: NDArray[Any]
    axes: tuple[str, ...]
    coordinates: NDArray[np.float64]
    position_axes: tuple[str, ...]
    reason: str
    doubtful: bool


@dataclass(frozen=True, slots=True)
class _Image:
    """Pixels of the image ``([z,] y, x)`` and their size (column, row, slice) in mm, known or a placeholder."""

    shape: tuple[int, ...]
    voxel_mm: Triple
    voxel_reason: str
    voxel_known: bool
    decision: Decision

    @property
    def fov_mm(self) -> tuple[float, ...] | None:
        """Field of view in the order of ``shape``; ``None`` where it is not known."""
        if not self.voxel_known:
            return None
        return tuple(n * d for n, d in zip(self.shape, self.voxel_mm[len(self.shape) - 1 :: -1], strict=True))


def kspace_in(
    file: ArrayFile,
    options: ReadOptions,
    layout: Callable[[StoredArray], ArrayLayout],
    *,
    fastest: Literal["first", "last"] = "last",
) -> KSpace:
    """Read the k-space of an open file, along a trajectory if there is one, otherwise Cartesian.

    Parameters
    ----------
    file
        The file.
    options
        Overrides of decisions.
    layout
        Gives what is known or guessed about the array if it is Cartesian.
    fastest
        As in ``kspace_along_trajectory``.

    Raises
    ------
    InputError
        If the file is damaged, or holds no k-space.
    """
    stored, decisions = choose_array(file.arrays, options, file.path)
    check_array_memory(stored, options, file.path)
    trajectory = find_trajectory(file, stored, options)
    source = f"{stored.name} in {file.path}"
    if trajectory is None:
        known = layout(stored)
        array = file.read(stored, limit_bytes=options.memory_limit_bytes)
        return kspace_from_array(array, options, known, source=source, decisions=decisions)
    array = file.read(stored, limit_bytes=options.memory_limit_bytes)
    return kspace_along_trajectory(array, trajectory, options, source=source, fastest=fastest, decisions=decisions)


def kspace_along_trajectory(
    array: NDArray[Any],
    stored: StoredTrajectory,
    options: ReadOptions,
    *,
    source: str,
    axes: tuple[str, ...] | None = None,
    fastest: Literal["first", "last"] = "last",
    decisions: tuple[Decision, ...] = (),
) -> KSpace:
    """Build the k-space record from an array whose samples lie along a trajectory.

    Parameters
    ----------
    array
        Complex, any axis order.
    stored
        Where its samples lie.
    options
        Overrides of decisions; ``axes`` names the axes of the array as in the file.
    source
        What the array is, for messages.
    axes
        Meaning of the axes, where the format fixes that; otherwise they are told by the trajectory's shape.
    fastest
        Which of two axes that count samples is that within a readout, where nobody says: the last one, or, as MATLAB
        stores arrays, the first one.
    decisions
        What was decided before.

    Returns
    -------
    KSpace
        ``(*batch, coil, sample)`` with unknown geometry, readout after readout, and every assumption in its log.

    Raises
    ------
    InputError
        If array, trajectory and options do not fit each other, or the size of the image cannot be told.
    """
    _check_options(options)
    check_memory(array.size + stored.values.size, 40, options.memory_limit_bytes, what=f"{source} and {stored.source}")
    matched = _match(array, stored, options, axes, fastest, source)
    sign = options.fourier_sign or "inverse"
    samples = single_precision(matched.array, matched.axes, sign, source)
    data = _in_order(samples, matched.axes, _AXES)
    n_kz, n_shots, n_samples = data.shape[-3:]
    if n_kz * n_shots * n_samples < _FEWEST_SAMPLES:
        raise InputError(
            f"{source} has shape {array.shape}, which gives {n_kz * n_shots * n_samples} samples to an image and coil; "
            f"at least {_FEWEST_SAMPLES} are needed. If the axes {','.join(matched.axes)} are wrong, name them with "
            f"--axes."
        )
    mask, mask_decision = _measured(data, source)
    coordinates, component_decisions = _components(matched, stored, options)
    positions = _in_order(torch.from_numpy(coordinates), (*matched.position_axes, "component"), (*_POSITION_AXES, ""))
    image = _image(positions, n_kz, stored, options)
    check_memory(math.prod(image.shape), 16, options.memory_limit_bytes, what=f"An image of {_by(image.shape)} pixels")
    trajectory, unit_decision = _in_radians(positions, image, stored, options)
    trajectory, partitions = _with_partitions(trajectory, n_kz, n_dims=len(image.shape))
    n_dims = len(image.shape)
    if n_dims == 3 and data.shape[3] > 1:
        raise InputError(f"{source} has slices and a trajectory in 3 dimensions; several slabs are not read, give one.")
    dcf, density_decisions = _density(stored, matched, trajectory, image.shape, options)

    data, mask = data.flatten(-3), mask.flatten(-3)
    sizes = tuple(data.shape[:4])
    data, mask, averages = without_averages(data, mask, average=options.average)
    kept = kept_batch_axes(tuple(data.shape), n_dims)
    batch = [data.shape[dim] for dim in kept]
    layout = ArrayLayout(
        matched.axes,
        matched.reason,
        voxel_mm=image.voxel_mm,
        voxel_reason=image.voxel_reason,
        axes_doubtful=matched.doubtful,
    )
    return KSpace(
        data=data.reshape(*batch, *data.shape[-2:]),
        mask=mask.reshape(*batch, *mask.shape[-2:]),
        acquisition=header(image.shape, 1 if n_dims == 3 else data.shape[2], image.voxel_mm),
        batch_axes=tuple(BATCH_AXES[dim] for dim in kept),
        n_dims=n_dims,
        trajectory=_batched(trajectory.flatten(4, 6), sizes, kept, options),
        dcf=None if dcf is None else _batched(dcf.flatten(4, 6), sizes, kept, options),
        readout_length=n_samples if "shot" in (options.axes or axes or matched.axes) else None,
        decisions=(
            *decisions,
            *stored.decisions,
            *layout_decisions(layout, options, matched.axes),
            *component_decisions,
            image.decision,
            unit_decision,
            *partitions,
            *density_decisions,
            *averages,
            mask_decision,
        ),
        counts=(
            ("samples in the file", array.size),
            ("samples measured", int(mask.sum()) * data.shape[-2]),
            ("samples of one image and coil", data.shape[-1]),
        ),
    )


def _check_options(options: ReadOptions) -> None:
    units = get_args(TrajectoryUnit)
    if options.trajectory_unit is not None and options.trajectory_unit not in units:
        raise InputError(f"The trajectory's unit is {options.trajectory_unit!r}; expected one of {', '.join(units)}.")


def _match(
    array: NDArray[Any],
    stored: StoredTrajectory,
    options: ReadOptions,
    axes: tuple[str, ...] | None,
    fastest: Literal["first", "last"],
    source: str,
) -> _Matched:
    reason = _ASKED_FOR if options.axes else "The format gives every axis a fixed meaning."
    named = options.axes or axes
    if named is not None:
        check_axes(named, array.shape, source, known=_AXES)
        if "sample" not in named:
            raise InputError(f"The axes {','.join(named)} lack sample; a scan with a trajectory has it.")
    if 0 in array.shape or 0 in stored.values.shape:
        raise InputError(
            f"{source} has shape {array.shape} and {stored.source} {stored.values.shape}; one of them is empty."
        )
    if named is not None:
        named = tuple(axis for axis, n in zip(named, array.shape, strict=True) if n > 1)
    array = array.reshape(without_ones(array.shape))
    if array.ndim > len(_AXES):
        raise InputError(f"{source} has {array.ndim} axes of shape {array.shape}; at most {len(_AXES)} have a meaning.")
    for coordinates in _with_components_last(stored.values):
        sizes = coordinates.shape[:-1]
        if named is None:
            found = sample_axes(array.shape, sizes)
            names = [_guessed_names(array.ndim, place, fastest) for place in found]
        else:
            found = _named_placements(named, array.shape, coordinates.shape)
            names = [named] * len(found)
        if len(found) == 1:
            place = sorted(found[0], key=lambda dim: _AXES.index(names[0][dim])) if len(sizes) < 2 else found[0]
            return _Matched(
                array,
                names[0],
                coordinates.reshape(*(array.shape[dim] for dim in place), -1),
                tuple(names[0][dim] for dim in place),
                reason if named else _guess_reason(stored, fastest),
                doubtful=named is None and len(place) > 1,
            )
        if found or (named is None and placements(array.shape, sizes)):
            raise InputError(axes_needed(array.shape, source, "coil,shot,sample", _AXES))
    expected = f"the axes {','.join(named)} of shape {array.shape}" if named else f"a shape of {array.shape}"
    raise InputError(
        f"{stored.source} has shape {stored.values.shape}, and {source} has {expected}; expected a position of 2 or 3 "
        f"coordinates, along the first or the last axis, for every sample, in the same order of axes: see that they "
        f"belong together, or name the axes of the samples with --axes."
    )


def _with_components_last(values: NDArray[Any]) -> list[NDArray[np.float64]]:
    """The ways to read an array as positions, float64 ``(…, dim)``; axes of size 1 are dropped."""
    if values.dtype.kind == "c":
        return [np.stack((values.real, values.imag), axis=-1).reshape(*without_ones(values.shape), 2)]
    found = []
    for dim in (-1, 0):
        if values.ndim > 1 and values.shape[dim] in (2, 3):
            moved = np.moveaxis(values, dim, -1).astype(np.float64)
            found.append(moved.reshape(*without_ones(moved.shape[:-1]), moved.shape[-1]))
    return found


def _guessed_names(n_axes: int, place: tuple[int, ...], fastest: Literal["first", "last"]) -> tuple[str, ...]:
    names = ["coil"] * n_axes
    readouts = ("shot", "sample") if fastest == "last" else ("sample", "shot")
    for dim, name in zip(place, readouts if len(place) == 2 else ("sample",), strict=True):
        names[dim] = name
    return tuple(names)


def _guess_reason(stored: StoredTrajectory, fastest: Literal["first", "last"]) -> str:
    reason = f"The shape of {stored.source} tells which axes count samples"
    return f"{reason}; of two, the {fastest} one is taken to run along a readout."


def _named_placements(
    names: tuple[str, ...], shape: tuple[int, ...], coordinates_shape: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """The axes, among named ones, that positions can have: those within an image, and any of the batch."""
    *sizes, n_components = coordinates_shape
    needed = {"shot", "sample"} | ({"kz"} if n_components == 3 else set())
    needed &= set(names)
    found = [
        place
        for place in placements(shape, tuple(sizes))
        if needed <= {names[dim] for dim in place} and "coil" not in {names[dim] for dim in place}
    ]
    in_a_row = tuple(dim for dim, name in enumerate(names) if name in needed)
    if not found and len(sizes) == 1 and math.prod(shape[dim] for dim in in_a_row) == sizes[0]:
        return [in_a_row]
    return found


def _in_order(tensor: torch.Tensor, axes: tuple[str, ...], order: tuple[str, ...]) -> torch.Tensor:
    """Permute named axes to an order; axes that are missing get size 1, and one called "" is kept last."""
    present = [axis for axis in order if axis in axes]
    rest = [dim for dim, axis in enumerate(axes) if axis not in order]
    moved = tensor.permute([axes.index(axis) for axis in present] + rest)
    sizes = [moved.shape[present.index(axis)] if axis in present else 1 for axis in order if axis]
    return moved.reshape(*sizes, *moved.shape[len(present) :]).contiguous()


def _measured(data: torch.Tensor, source: str) -> tuple[torch.Tensor, Decision]:
    """Mask ``(repetition, average, contrast, slice, 1, kz, shot, sample)``, and what to say about it."""
    n_kz, n_shots, n_samples = data.shape[-3:]
    readouts = data.reshape(*data.shape[:5], n_kz * n_shots, n_samples)
    several = n_kz * n_shots > 1
    mask, decision = measured(readouts if several else readouts[..., 0, :], 2 if several else 1, source)
    percent = f"{100 * float(mask.mean()):.3g} % of the samples"
    return mask.reshape(*data.shape[:4], 1, n_kz, n_shots, n_samples), replace(decision, value=percent)


def _components(
    matched: _Matched, stored: StoredTrajectory, options: ReadOptions
) -> tuple[NDArray[np.float64], tuple[Decision, ...]]:
    """Coordinates in the order ``([kz,] ky, kx)``, checked; a kz of zero everywhere is left out."""
    coordinates = matched.coordinates
    n_broken = int((~np.isfinite(coordinates)).sum())
    if n_broken:
        raise InputError(
            f"{n_broken} of {coordinates.size} coordinates in {stored.source} are NaN or infinite; export the "
            f"trajectory again."
        )
    if not coordinates.any():
        raise InputError(
            f"{stored.source} is zero everywhere, so it does not say where the samples lie; give the trajectory with "
            f"--trajectory-file, or name Cartesian axes with --axes."
        )
    n = coordinates.shape[-1]
    axes = options.trajectory_axes or _COMPONENTS[:n]
    if not {"kx", "ky"} <= set(axes) <= set(_COMPONENTS) or len(set(axes)) < len(axes) or len(axes) > n:
        raise InputError(
            f"The trajectory's axes are {','.join(axes)}, but {stored.source} has {n} components; give kx, ky and "
            f"perhaps kz once each, such as --trajectory-axes kx,ky."
        )
    reason = stored.axes_reason or "Files usually hold kx first, but none says so."
    decisions = [
        Decision("trajectory_axes", ",".join(axes), _ASKED_FOR, "--trajectory-axes")
        if options.trajectory_axes
        else Decision("trajectory_axes", ",".join(axes), reason, "--trajectory-axes", warning=not stored.axes_reason)
    ]
    if "kz" in axes and not coordinates[..., axes.index("kz")].any():
        axes = tuple(axis for axis in axes if axis != "kz")
        decisions.append(Decision("trajectory_kz", "left out", "It is zero everywhere; the scan has two dimensions."))
    order = [axes.index(axis) for axis in reversed(_COMPONENTS) if axis in axes]
    return coordinates[..., order], tuple(decisions)


def _image(positions: torch.Tensor, n_kz: int, stored: StoredTrajectory, options: ReadOptions) -> _Image:
    """Size of the image and of its voxels: as asked for, as in the file, or as the trajectory tells."""
    n_in_unit = positions.shape[-1]
    n_dims = 3 if n_kz > 1 else n_in_unit
    given = options.matrix or stored.matrix
    if given is not None:
        shape = _given_matrix(given, n_dims, n_kz if n_in_unit == 2 else None, stored)
        reason = _ASKED_FOR if options.matrix else f"{stored.beside} says so."
        decision = Decision("matrix", _by(shape), reason, "--matrix")
    else:
        in_unit, decision = _decided_matrix(positions, stored, options)
        shape = (n_kz, *in_unit) if n_dims > n_in_unit else in_unit
        decision = replace(decision, value=_by(shape))
    if options.voxel_mm is not None:
        voxel_mm, reason, known = options.voxel_mm, _ASKED_FOR, True
    elif stored.voxel_mm is not None:
        voxel_mm, reason, known = stored.voxel_mm, f"{stored.beside} says so.", True
    elif stored.fov_mm is not None:
        sizes = shape[::-1] if n_dims == 3 else (*shape[::-1], shape[-1] if len(stored.fov_mm) == 1 else 1)
        fov_mm = stored.fov_mm if len(stored.fov_mm) == 3 else stored.fov_mm * 3
        d_x, d_y, d_z = (fov / n for fov, n in zip(fov_mm, sizes, strict=True))
        voxel_mm, known = (d_x, d_y, d_z), True
        reason = f"{stored.beside} gives a field of view."
    else:
        voxel_mm, known = (1.0, 1.0, 1.0), False
        reason = "The file carries no voxel size; 1 mm is a placeholder."
    header(shape, 1, voxel_mm)
    return _Image(shape, voxel_mm, reason, known, decision)


def _given_matrix(given: tuple[int, ...], n_dims: int, n_kz: int | None, stored: StoredTrajectory) -> tuple[int, ...]:
    if len(given) == 1:
        given = given * (2 if n_kz is not None else n_dims)
    if n_dims == 3 and n_kz is not None and len(given) == 2:
        given = (n_kz, *given)
    if len(given) == 3 and n_dims == 2 and given[0] == 1:
        given = given[1:]
    in_plane = all(n >= _SMALLEST_MATRIX for n in given[-2:])
    if len(given) != n_dims or not in_plane or not all(1 <= n <= _LARGEST_MATRIX for n in given):
        raise InputError(
            f"The matrix is {_by(given)}, and {stored.source} has {n_dims} dimensions; give {n_dims} sizes from "
            f"{_SMALLEST_MATRIX} to {_LARGEST_MATRIX}, such as --matrix {'z,y,x' if n_dims == 3 else 'y,x'}."
        )
    if n_kz is not None and n_dims == 3 and given[0] != n_kz:
        raise InputError(f"The matrix is {_by(given)}, but the samples have {n_kz} partitions along kz; give {n_kz}.")
    return given


def _decided_matrix(
    positions: torch.Tensor, stored: StoredTrajectory, options: ReadOptions
) -> tuple[tuple[int, ...], Decision]:
    """Size of the image in the dimensions of the trajectory, from the trajectory alone."""
    n_dims = positions.shape[-1]
    reach = positions.abs().flatten(0, -2).amax(0)
    reach[-2:] = reach[-2:].max()  # pixels are square
    largest = float(reach.max()) / (1 + _ROUNDING)
    unit = options.trajectory_unit or stored.unit
    if unit is None and largest <= math.pi:
        unit = "cycles-per-pixel" if largest <= 0.5 else "radians-per-pixel"
    if unit == "index":
        shape = tuple(2 * math.ceil(float(r) - _ROUNDING) for r in reach)
        reason = f"The trajectory, in index units, reaches {float(reach.max()):.4g}."
    elif unit in ("cycles-per-pixel", "radians-per-pixel"):
        step = _step_of_spokes(positions)
        step_rad = (2 * math.pi if unit == "cycles-per-pixel" else 1) * (step or 0.0)
        shape = (round(2 * math.pi / step_rad),) * n_dims if step_rad > 0 else ()
        reason = "So many samples lie on a diameter of k-space, over-sampling of the readout included."
    else:
        shape, reason = (), ""
    if not shape or not all(_SMALLEST_MATRIX <= n <= _LARGEST_MATRIX for n in shape):
        example = "y,x" if n_dims == 2 else "z,y,x"
        raise InputError(
            f"Neither {stored.source} nor what is beside it tells the size of the image; give its pixels, such as "
            f"--matrix {example}."
        )
    return shape, Decision("matrix", _by(shape), reason, "--matrix", warning=True)


def _step_of_spokes(positions: torch.Tensor) -> float | None:
    """Distance between samples, if the readouts are straight lines through the centre with equal steps."""
    readouts = positions.reshape(-1, *positions.shape[-2:])
    if readouts.shape[1] < _FEWEST_SAMPLES:
        return None
    steps = readouts.diff(dim=1)
    step = float(steps.norm(dim=-1).mean())
    straight = float(steps.diff(dim=1).norm(dim=-1).max()) <= _STRAIGHT * step
    central = float(readouts.norm(dim=-1).amin(dim=1).max()) <= step
    return step if straight and central else None


def _in_radians(
    positions: torch.Tensor, image: _Image, stored: StoredTrajectory, options: ReadOptions
) -> tuple[torch.Tensor, Decision]:
    n = positions.shape[-1]
    fov_mm = None if image.fov_mm is None else image.fov_mm[-n:]
    asked = options.trajectory_unit
    if (asked or stored.unit) == "1/m" and fov_mm is None:
        raise InputError(
            f"{stored.source} is in 1/m, which needs the size of a voxel; give it in mm, such as --voxel-mm 2,2,5."
        )
    trajectory, decision = in_radians_per_pixel(positions, image.shape[-n:], fov_mm, unit=asked or stored.unit)
    if asked is None and stored.unit is not None:
        decision = replace(decision, reason=decision.reason.replace("Given", "The format fixes it", 1))
    return trajectory, decision


def _with_partitions(trajectory: torch.Tensor, n_kz: int, *, n_dims: int) -> tuple[torch.Tensor, tuple[Decision, ...]]:
    """Give a planar trajectory the Cartesian positions of its partitions along kz."""
    if trajectory.shape[-1] == n_dims:
        return trajectory, ()
    kz = 2 * math.pi * (torch.arange(n_kz, dtype=torch.float64) - n_kz // 2) / n_kz
    plane = trajectory.expand(*trajectory.shape[:4], n_kz, *trajectory.shape[5:])
    kz = kz.to(plane)[:, None, None, None].expand(*plane.shape[:-1], 1)
    reason = "The trajectory lies in the plane; the axis kz is taken to be Cartesian, with its origin at n//2."
    return torch.cat((kz, plane), dim=-1), (Decision("partitions", str(n_kz), reason, "--axes"),)


def _density(
    stored: StoredTrajectory,
    matched: _Matched,
    trajectory: torch.Tensor,
    image_shape: tuple[int, ...],
    options: ReadOptions,
) -> tuple[torch.Tensor | None, tuple[Decision, ...]]:
    """Density weights of the file ``(repetition, average, contrast, slice, kz, shot, sample)``, in Cartesian cells."""
    if stored.dcf is None:
        return None, ()
    values = stored.dcf.reshape(without_ones(stored.dcf.shape))
    shape, names = matched.array.shape, matched.axes
    found = _named_placements(names, shape, (*values.shape, 2))
    if len(found) != 1:
        raise InputError(
            f"{stored.dcf_source} has shape {stored.dcf.shape}; expected one weight for every position in "
            f"{stored.source}, or no such array."
        )
    if not (np.isfinite(values).all() and (values >= 0).all() and values.any()):
        raise InputError(
            f"{stored.dcf_source} holds weights that are negative, not finite, or all zero; expected density "
            f"compensation, or no such array."
        )
    place = found[0] if values.ndim == len(found[0]) else sorted(found[0], key=lambda dim: _AXES.index(names[dim]))
    values = values.reshape([shape[dim] for dim in place])
    dcf = _in_order(torch.from_numpy(values.astype(np.float64)), tuple(names[dim] for dim in place), _POSITION_AXES)
    dcf = dcf.expand(*dcf.shape[:4], *trajectory.shape[4:7])
    scale = _cells_per_weight(trajectory[0, 0, 0, 0], dcf[0, 0, 0, 0], image_shape, stored, options)
    reason = "Where samples are densest, the weights of the file, so scaled, are the cells that a sample stands for."
    return dcf * scale, (Decision("density", f"the file's times {scale:.4g}", reason),)


def _cells_per_weight(
    trajectory: torch.Tensor,
    weights: torch.Tensor,
    image_shape: tuple[int, ...],
    stored: StoredTrajectory,
    options: ReadOptions,
) -> float:
    from mrirecon.density import pipe_density

    trajectory, weights = trajectory.reshape(-1, trajectory.shape[-1]), weights.reshape(-1)
    n_bytes = _DENSITY_BYTES * 4 ** trajectory.shape[-1]
    check_memory(len(weights), n_bytes, options.memory_limit_bytes, what=f"Scaling {stored.dcf_source}")
    cells = pipe_density(trajectory, image_shape, 1).double()
    dense = cells.argsort()[: math.ceil(_DENSEST * len(cells))]
    total = float(weights[dense].sum())
    if not total > 0:
        raise InputError(
            f"{stored.dcf_source} is zero where the samples are densest; expected density compensation, or no such "
            f"array."
        )
    return float(cells[dense].sum()) / total


def _batched(values: torch.Tensor, sizes: tuple[int, ...], kept: Sequence[int], options: ReadOptions) -> torch.Tensor:
    """Bring ``(repetition, average, contrast, slice, …)`` of size 1 or as in the data to the batch axes of the record.

    Batch axes are left out where all images share the values.
    """
    if values.shape[1] > 1 and options.average:
        raise InputError(
            "The averages of this scan have trajectories of their own and cannot be averaged sample by sample; keep "
            "them apart with --split-averages."
        )
    if not options.average and sizes[1] > 1 and values.shape[:2] != (1, 1):
        values = values.expand(*sizes[:2], *values.shape[2:])
    values = values.flatten(0, 1)
    if values.shape[:3].numel() == 1:
        return values[0, 0, 0]
    return values.reshape(*(values.shape[dim] for dim in kept), *values.shape[3:])


def _by(sizes: Sequence[float]) -> str:
    return " × ".join(f"{size:g}" for size in sizes)
