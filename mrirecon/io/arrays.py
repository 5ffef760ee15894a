"""Arrays without a header: which axis is what, which samples were measured, and the k-space record they become."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mrirecon.acquisition import Acquisition
from mrirecon.io.options import ReadOptions
from mrirecon.kspace import KSpace
from operators.decision import Decision
from operators.errors import InputError
from operators.io.array_file import StoredArray
from operators.io.hdf5 import check_finite, check_memory
from operators.voxel_grid import Triple

FourierSign = Literal["inverse", "forward"]

TRAJECTORY_NAMES = ("trajectory", "traj", "ktraj", "k", "coords")
"""What arrays that hold a trajectory are called, in lower case."""
BATCH_AXES = ("repetition", "contrast", "slice")
"""Leading axes of every array once its averages are gone, whether they stay or not."""

_AXES = ("repetition", "average", "contrast", "slice", "coil", "kz", "ky", "kx")
_SMALLEST_MATRIX = 4
_MOST_COILS = 64
# A scan of thousands of samples holds a handful of exact zeros where the converter reads nothing; an undersampled one
# holds mostly zeros.
_SCATTERED_ZEROS = 0.02


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """What a format says, or a reader guesses, about an array that carries no header.

    Parameters
    ----------
    axes
        Meaning of the axes in the order of the file, named as in ``ReadOptions.axes``.
    axes_reason
        Why, in one sentence.
    fourier_sign, sign_reason
        As in ``ReadOptions.fourier_sign``, and why.
    voxel_mm, voxel_reason
        Voxel size (column, row, slice), in mm, and why.
    axes_doubtful
        Whether a person should look at the axes.
    orientation, orientation_reason
        How the image lies with respect to the file, and why; ``None`` where nothing is known.
    readout
        Axis along which the samples of a line follow one another in time.
    """

    axes: tuple[str, ...]
    axes_reason: str
    fourier_sign: FourierSign = "inverse"
    sign_reason: str = "The image is taken to be the inverse transform of the samples, as is usual."
    voxel_mm: Triple = (1.0, 1.0, 1.0)
    voxel_reason: str = "The file carries no voxel size; 1 mm is a placeholder."
    axes_doubtful: bool = False
    orientation: str | None = None
    orientation_reason: str = ""
    readout: Literal["ky", "kx"] = "kx"


def choose_array(
    arrays: Sequence[StoredArray], options: ReadOptions, path: Path
) -> tuple[StoredArray, tuple[Decision, ...]]:
    """Choose the array that holds the k-space among those of a file.

    Parameters
    ----------
    arrays
        What the file holds.
    options
        ``variable`` decides; otherwise the largest complex array is taken that is not called a trajectory.
    path
        The file, for messages.

    Returns
    -------
    array, decisions
        The array, and a decision if there was a choice.

    Raises
    ------
    InputError
        If there is no complex array, or none of the given name.
    """
    held = ", ".join(map(str, arrays[:12])) + (", …" if len(arrays) > 12 else "")
    if not arrays:
        raise InputError(f"{path} holds no array; k-space is one complex array.")
    candidates = [array for array in arrays if array.is_complex]
    candidates = [array for array in candidates if short_name(array) not in TRAJECTORY_NAMES] or candidates
    if options.variable is not None:
        candidates = [array for array in arrays if array.name.strip("/") == options.variable.strip("/")]
        if not candidates:
            raise InputError(f"{path} holds no array named {options.variable!r}; it holds {held}.")
        check_complex(candidates[0], path)
        return candidates[0], ()
    if not candidates:
        raise InputError(
            f"{path} holds no complex array but {held}; k-space is complex: store real + 1j * imaginary as one array."
        )
    chosen = max(candidates, key=lambda array: array.n_elements)
    if len(candidates) == 1:
        return chosen, ()
    named = ", ".join(str(array) for array in candidates[:12])
    reason = f"It is the largest of {len(candidates)} complex arrays: {named}."
    return chosen, (Decision("variable", chosen.name, reason, "--variable", warning=True),)


def short_name(array: StoredArray) -> str:
    """The last part of an array's name, in lower case."""
    return array.name.rsplit("/", 1)[-1].lower()


def check_complex(array: StoredArray, path: Path) -> None:
    """Refuse an array that cannot be k-space because of what it holds.

    Raises
    ------
    InputError
        If it is not complex; the message says how to make it so.
    """
    if not array.is_complex:
        raise InputError(
            f"{array} in {path} is not complex; k-space is: combine its parts as real + 1j * imaginary and store that "
            f"as one array. (A magnitude image cannot be reconstructed again.)"
        )


def check_cartesian_options(options: ReadOptions, source: str) -> None:
    """Refuse options that only a trajectory needs, for an array that is read as Cartesian.

    Raises
    ------
    InputError
        If there are any.
    """
    for name, flag in (
        ("trajectory", "--trajectory-file"),
        ("matrix", "--matrix"),
        ("trajectory_unit", "--trajectory-unit"),
        ("trajectory_axes", "--trajectory-axes"),
    ):
        if getattr(options, name) is not None:
            raise InputError(
                f"{source} is read as a Cartesian scan, for which {flag} has no meaning; leave it out, or see that the "
                f"file or --trajectory-file gives a trajectory."
            )


def check_array_memory(array: StoredArray, options: ReadOptions, path: Path) -> None:
    """Refuse an array that is too large to be read, before anything is allocated.

    Raises
    ------
    InputError
        If the samples as stored and as used exceed ``options.memory_limit_bytes``.
    """
    # As stored (at most 16 bytes a sample), twice in single precision while it is reordered, and its mask.
    check_memory(array.n_elements, 36, options.memory_limit_bytes, what=f"{array} in {path}")


def layout_by_shape(shape: tuple[int, ...], options: ReadOptions, path: Path) -> ArrayLayout:
    """Take the axes that were given, or guess those of an array in this project's own order, (slice, coil, ky, kx).

    Raises
    ------
    InputError
        If the shape does not say; the message says how to give the axes.
    """
    if options.axes:
        return ArrayLayout(options.axes, "It was asked for.")
    axes = {2: ("ky", "kx"), 3: ("coil", "ky", "kx"), 4: ("slice", "coil", "ky", "kx")}.get(len(shape))
    coils = shape[-3] if len(shape) > 2 else 1
    if axes is None or coils > _MOST_COILS or (coils > 1 and 2 * coils > min(shape[-2:])):
        raise InputError(axes_needed(shape, path, "coil,ky,kx"))
    if len(shape) == 2:
        return ArrayLayout(axes, "An array of two axes is one slice of one coil.")
    reason = f"An array of shape {shape}, with few entries along its third-last axis, is taken to be in this order."
    return ArrayLayout(axes, reason, axes_doubtful=True)


def axes_needed(shape: tuple[int, ...], path: Path | str, example: str, known: Sequence[str] = _AXES) -> str:
    """Say that the axes of an array cannot be guessed, and how to give them."""
    return (
        f"The axes of the array of shape {shape} in {path} are not evident; name them in the order of the file, "
        f"such as --axes {example} (of {', '.join(known)})."
    )


def kspace_from_array(
    array: NDArray[Any],
    options: ReadOptions,
    layout: ArrayLayout,
    *,
    source: str,
    decisions: tuple[Decision, ...] = (),
) -> KSpace:
    """Build the k-space record from a Cartesian array that carries no header.

    Parameters
    ----------
    array
        Complex, any axis order; entry n//2 of each k axis is the origin; exact zeros where nothing was measured.
    options
        ``axes``, ``fourier_sign``, ``voxel_mm`` and ``average`` override the layout.
    layout
        What is known or guessed about the array.
    source
        What the array is, for messages, such as ``"kspace in scan.mat"``.
    decisions
        What was decided before.

    Returns
    -------
    KSpace
        With unknown geometry (identity directions, centred), and every assumption in its log.

    Raises
    ------
    InputError
        If the array is not complex, not finite, too small, all zero, or does not fit its axes, or if options are given
        that only a trajectory needs.
    """
    check_cartesian_options(options, source)
    axes = options.axes or layout.axes
    check_axes(axes, array.shape, source, known=_AXES)
    _check_grid(axes, array.shape, source)
    samples = single_precision(array, axes, options.fourier_sign or layout.fourier_sign, source)
    data, n_dims = _in_canonical_order(samples, axes, source)
    mask, mask_decision = measured(data, n_dims, source)
    data, mask, averages = without_averages(data, mask, average=options.average)
    data, mask, batch_axes = _without_single_axes(data, mask, n_dims)
    shape = tuple(data.shape[-n_dims:])
    n_slices = 1 if n_dims == 3 else data.shape[-4]
    return KSpace(
        data=data,
        mask=mask,
        acquisition=header(shape, n_slices, options.voxel_mm or layout.voxel_mm),
        batch_axes=batch_axes,
        n_dims=n_dims,
        readout=layout.readout,
        decisions=(
            *decisions,
            *layout_decisions(layout, options, axes),
            *averages,
            mask_decision,
            *peak_decision(data, n_dims),
        ),
        counts=(("samples in the file", array.size), ("samples measured", int(mask.sum()) * data.shape[-n_dims - 1])),
    )


def measured(data: torch.Tensor, n_dims: int, source: str) -> tuple[torch.Tensor, Decision]:
    """Tell measured samples from those that were never filled, in k-space without a mask.

    A line along any k axis that is exactly zero in every coil was not measured. Further zeros in every coil count as
    not measured only if there are many; a few of them are readings of the converter.

    Parameters
    ----------
    data
        Complex ``(*batch, coil, [kz,] ky, kx)``.
    n_dims
        Number of k-space dimensions.
    source
        What the array is, for messages.

    Returns
    -------
    mask, decision
        Float32 ``(*batch, 1, [kz,] ky, kx)``, 1 = measured.

    Raises
    ------
    InputError
        If everything is zero.
    """
    zero = (data == 0).all(dim=-n_dims - 1, keepdim=True)
    empty = torch.zeros_like(zero)
    for dim in range(-n_dims, 0):
        empty |= zero.all(dim=dim, keepdim=True)
    n_filled = int((~empty).sum())
    if n_filled == 0:
        raise InputError(f"{source} holds nothing but zeros; nothing was measured.")
    n_scattered = int((zero & ~empty).sum())
    by_point = n_scattered > _SCATTERED_ZEROS * n_filled
    mask = ~zero if by_point else ~empty
    percent = f"{100 * float(mask.float().mean()):.3g} % of the grid"
    if by_point:
        reason = "The file has no mask; samples that are exactly zero in every coil count as not measured."
    elif n_filled < zero.numel():
        reason = "The file has no mask; lines that are exactly zero in every coil count as not measured."
    else:
        reason = "No line is exactly zero."
    if n_scattered and not by_point:
        reason += f" Scattered zeros ({n_scattered} of them) are taken as measured."
    return mask.to(torch.float32), Decision("mask", percent, reason)


def peak_decision(data: torch.Tensor, n_dims: int) -> tuple[Decision, ...]:
    """Report where the largest sample lies if it is not the origin of k-space; nothing is moved.

    Parameters
    ----------
    data
        Complex ``(*batch, coil, [kz,] ky, kx)``.
    n_dims
        Number of k-space dimensions.
    """
    shape = tuple(data.shape[-n_dims:])
    energy = data.abs().square().reshape(-1, *shape).sum(dim=0)
    peak = np.unravel_index(int(energy.argmax()), shape)
    offsets = [int(index) - n // 2 for index, n in zip(peak, shape, strict=True)]
    if not any(offsets):
        return ()
    named = zip(("kz", "ky", "kx")[-n_dims:], offsets, strict=True)
    value = ", ".join(f"{axis} {offset:+d}" for axis, offset in named if offset)
    return (Decision("kspace_peak", value, "The largest sample is off the centre of the grid; nothing was moved."),)


def check_axes(axes: tuple[str, ...], shape: tuple[int, ...], source: str, *, known: Sequence[str]) -> None:
    """Refuse names of axes that are unknown, repeated, or too few or too many for an array.

    Raises
    ------
    InputError
        If so.
    """
    unknown = [axis for axis in axes if axis not in known]
    if unknown:
        raise InputError(f"{unknown[0]!r} is not an axis of k-space; expected names from {', '.join(known)}.")
    if len(set(axes)) != len(axes):
        raise InputError(f"The axes {','.join(axes)} name one axis twice; every axis has a meaning of its own.")
    if len(axes) != len(shape):
        raise InputError(
            f"{source} has {len(shape)} axes of shape {shape}, but {len(axes)} are named ({','.join(axes)}); name each "
            f"with --axes in the order of the file."
        )


def single_precision(array: NDArray[Any], axes: tuple[str, ...], sign: FourierSign, source: str) -> torch.Tensor:
    """Complex64 samples of which the image is the inverse transform.

    Parameters
    ----------
    array
        Complex, of any precision.
    axes
        What an index along each axis is called, for messages.
    sign
        ``"forward"`` conjugates.
    source
        What the array is, for messages.

    Raises
    ------
    InputError
        If the array is not complex or not finite, or lies beyond single precision.
    """
    if array.dtype.kind != "c":
        raise InputError(f"{source} is {array.dtype}; k-space is complex: combine real + 1j * imaginary first.")
    if sign not in ("inverse", "forward"):
        raise InputError(f"The Fourier sign is {sign!r}; expected 'inverse' or 'forward'.")
    check_finite(array, list(axes), what=source)
    with np.errstate(over="ignore", under="ignore"):
        samples = np.ascontiguousarray(array, dtype=np.complex64)
    if not np.isfinite(samples).all():
        raise InputError(f"{source} has samples beyond the range of single precision (3e38); scale it down first.")
    if not samples.any() and array.any():
        raise InputError(f"{source} has only samples below the range of single precision (1e-38); scale it up first.")
    if not samples.flags.writeable:
        samples = samples.copy()
    tensor = torch.from_numpy(samples)
    return tensor.conj().resolve_conj() if sign == "forward" else tensor


def kept_batch_axes(shape: tuple[int, ...], n_dims: int) -> list[int]:
    """Which of the leading axes ``BATCH_AXES`` stay: those larger than 1, and the slices of two-dimensional data."""
    return [dim for dim, name in enumerate(BATCH_AXES) if shape[dim] > 1 or (name == "slice" and n_dims == 2)]


def header(image_shape: tuple[int, ...], n_slices: int, voxel_mm: Triple) -> Acquisition:
    """The header of a scan without geometry: identity directions, and the centre of the stack at the origin.

    Parameters
    ----------
    image_shape
        Pixels of one image, ``([z,] y, x)``.
    n_slices
        Number of slices of a stack; 1 for a volume.
    voxel_mm
        Voxel size (column, row, slice), in mm.

    Raises
    ------
    InputError
        If the voxel size is not three positive numbers.
    """
    if len(voxel_mm) != 3 or not all(np.isfinite(d) and d > 0 for d in voxel_mm):
        raise InputError(f"The voxel size is {voxel_mm}; expected three positive numbers dx, dy, dz in mm.")
    d_x, d_y, d_z = voxel_mm
    n_y, n_x = image_shape[-2:]
    volume = len(image_shape) == 3
    n_z = image_shape[0] if volume else 1
    fov_mm = (n_z * d_z, n_y * d_y, n_x * d_x)
    return Acquisition(
        encoded_shape=(n_z, n_y, n_x),
        encoded_fov_mm=fov_mm,
        recon_fov_mm=fov_mm,
        slice_positions_mm=tuple((0.0, 0.0, (i - n_slices // 2) * d_z) for i in range(n_slices)),
        slice_spacing_mm=None if volume else d_z,
    )


def _check_grid(axes: tuple[str, ...], shape: tuple[int, ...], source: str) -> None:
    for axis in ("ky", "kx"):
        if axis not in axes:
            raise InputError(f"The axes {','.join(axes)} lack {axis}; a Cartesian scan has ky and kx.")
        n = shape[axes.index(axis)]
        if n < _SMALLEST_MATRIX:
            raise InputError(
                f"{source} has shape {shape}, which gives {n} samples along {axis}; at least {_SMALLEST_MATRIX} are "
                f"needed. If the axes {','.join(axes)} are wrong, name them with --axes."
            )
    if 0 in shape:
        raise InputError(f"{source} has shape {shape}; it is empty.")


def _in_canonical_order(samples: torch.Tensor, axes: tuple[str, ...], source: str) -> tuple[torch.Tensor, int]:
    """Permute to ``(repetition, average, contrast, slice, coil, [kz,] ky, kx)``, and say how many are k axes."""
    n_dims = 3 if "kz" in axes and samples.shape[axes.index("kz")] > 1 else 2
    if n_dims == 2 and "kz" in axes:
        samples = samples.squeeze(axes.index("kz"))
        axes = tuple(axis for axis in axes if axis != "kz")
    if n_dims == 3 and "slice" in axes and samples.shape[axes.index("slice")] > 1:
        raise InputError(f"{source} has slices and kz; several slabs in one array are not read, give one slab.")
    order = [axis for axis in _AXES if axis != "kz" or n_dims == 3]
    present = [axis for axis in order if axis in axes]
    data = samples.permute([axes.index(axis) for axis in present])
    data = data.reshape([data.shape[present.index(axis)] if axis in present else 1 for axis in order])
    return data.contiguous(), n_dims


def without_averages(
    data: torch.Tensor, mask: torch.Tensor, *, average: bool
) -> tuple[torch.Tensor, torch.Tensor, tuple[Decision, ...]]:
    """Average over the measured samples of axis 1, or append it to the repetitions of axis 0.

    Parameters
    ----------
    data, mask
        ``(repetition, average, …)``.
    average
        Whether to average.

    Returns
    -------
    data, mask, decisions
        ``(repetition, …)``, and what was done where there was more than one average.
    """
    n_averages = data.shape[1]
    if n_averages == 1:
        return data[:, 0], mask[:, 0], ()
    if not average:
        reason = "It was asked for."
        return data.flatten(0, 1), mask.flatten(0, 1), (Decision("averages", "kept as repetitions", reason),)
    count = mask.sum(dim=1)
    decision = Decision("averages", f"{n_averages} averaged", "The axes name them as averages.", "--split-averages")
    return (data * mask).sum(dim=1) / count.clamp(min=1), (count > 0).to(mask.dtype), (decision,)


def _without_single_axes(
    data: torch.Tensor, mask: torch.Tensor, n_dims: int
) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Drop the batch axes (repetition, contrast, slice) of size 1, except the slice axis of two-dimensional data."""
    kept = kept_batch_axes(tuple(data.shape), n_dims)
    batch = [data.shape[dim] for dim in kept]
    n_batch = len(BATCH_AXES)
    return (
        data.reshape(*batch, *data.shape[n_batch:]),
        mask.reshape(*batch, *mask.shape[n_batch:]),
        tuple(BATCH_AXES[dim] for dim in kept),
    )


def layout_decisions(layout: ArrayLayout, options: ReadOptions, axes: tuple[str, ...]) -> tuple[Decision, ...]:
    """What was decided about the axes, the Fourier sign, the voxel size and the geometry, for the log."""
    given = "It was asked for."
    size = options.voxel_mm or layout.voxel_mm
    decisions = [
        Decision("axes", ",".join(axes), given, "--axes")
        if options.axes
        else Decision("axes", ",".join(axes), layout.axes_reason, "--axes", warning=layout.axes_doubtful),
        Decision("fourier_sign", options.fourier_sign, given, "--fourier-sign")
        if options.fourier_sign
        else Decision("fourier_sign", layout.fourier_sign, layout.sign_reason, "--fourier-sign"),
        Decision(
            "voxel_size",
            " × ".join(f"{d:.4g}" for d in size) + " mm",
            given if options.voxel_mm else layout.voxel_reason,
            "--voxel-mm dx,dy,dz",
            warning=options.voxel_mm is None,
        ),
        Decision(
            "geometry",
            "identity",
            "The file carries no position and no direction; left and right are not known.",
            warning=True,
        ),
    ]
    if layout.orientation is not None and not options.axes:
        decisions.append(Decision("orientation", layout.orientation, layout.orientation_reason, "--axes"))
    return tuple(decisions)
