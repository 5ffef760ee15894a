"""Images in Hounsfield units, in for simulations: NIfTI, DICOM and numpy files, told by their content."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ctrecon.io.dicom import BYTES_PER_VOXEL, is_dicom, read_dicom
from operators.decision import Decision
from operators.errors import InputError
from operators.io.hdf5 import check_memory
from operators.io.nifti import read_nifti_image
from operators.io.numpy_files import open_npy, open_npz
from operators.voxel_grid import IDENTITY_DIRECTIONS, Triple, VoxelGrid

_EXPECTED = "expected a NIfTI image, DICOM CT slices, .npy, or .npz with the array hu"
_NIFTI_HEADER_SIZES = {348, 540}
_AIR_HU = -1000.0
_LOWEST_HU, _HIGHEST_HU = -10_000.0, 100_000.0
_SMALLEST_RANGE_HU = 10.0
_DARKEST_MEASURED_HU = -1500.0
_LEAST_PADDING = 0.01
_EVEN_MM = 0.05


def read_hu_image(
    path: Path | str, *, voxel_mm: Triple | None = None, memory_limit_bytes: int = 8 * 2**30
) -> tuple[torch.Tensor, VoxelGrid, tuple[Decision, ...]]:
    """Read an image in Hounsfield units, as axial slices from the feet up, the patient's front at the top.

    The axes are swapped and reversed to that end, never interpolated, and the grid with them. A NumPy array is
    ``(slice, y, x)`` or ``(y, x)`` and taken to be axial, its centre at x = y = 0; an archive holds it as ``hu``, with
    ``pixel_spacing_mm`` (row, column) and ``z_mm`` (one per slice) where they are known.

    Parameters
    ----------
    path
        A NIfTI image, a DICOM CT slice or a folder of them, an ``.npy`` or an ``.npz`` file.
    voxel_mm
        Voxel size (column, row, slice) = (dx, dy, dz) of the file's axes in mm, for files without one or with a wrong
        one.
    memory_limit_bytes
        Refuse images that would need more than this.

    Returns
    -------
    hu : torch.Tensor
        Hounsfield units, float32 ``(slice, y, x)``.
    grid : VoxelGrid
        Where its voxels lie.
    decisions : tuple of Decision
        What the file did not say, and what was done to the image.

    Raises
    ------
    InputError
        If the file is missing, of another kind, damaged or too large, or if its values are not finite or cannot be
        Hounsfield units.
    """
    path = Path(path)
    hu, grid, decisions = _read(path, voxel_mm is not None, memory_limit_bytes)
    if voxel_mm is not None:
        grid = _resized(grid, voxel_mm)
    _check_hu(hu, path)
    hu, padding = _without_padding(hu)
    hu, grid, turns = _upright(hu, grid)
    return hu, grid, (*decisions, *padding, *turns)


def _resized(grid: VoxelGrid, voxel_mm: Triple) -> VoxelGrid:
    """The grid with other voxels; the centre of its first slice stays where it is."""
    try:
        resized = replace(grid, spacing_mm=(voxel_mm[2], voxel_mm[1], voxel_mm[0]))
    except ValueError as error:
        raise InputError(f"The voxel size {voxel_mm} cannot be used: {error}") from error
    middle = (0.0, (grid.shape[1] - 1) / 2, (grid.shape[2] - 1) / 2)
    shift = np.subtract(grid.position_mm(middle), resized.position_mm(middle))
    return replace(resized, origin_mm=_triple(np.add(resized.origin_mm, shift)))


def _triple(values: NDArray[np.float64]) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])


def _read(
    path: Path, size_known: bool, memory_limit_bytes: int
) -> tuple[torch.Tensor, VoxelGrid, tuple[Decision, ...]]:
    try:
        if path.is_dir() or (path.is_file() and is_dicom(path)):
            return read_dicom(path, memory_limit_bytes=memory_limit_bytes)
        if not path.is_file():
            raise InputError(f"{path} is no file or folder that can be read; {_EXPECTED}.")
        with path.open("rb") as stream:
            start = stream.read(6)
        if start == b"\x93NUMPY" or start[:2] == b"PK":
            return _read_numpy(path, size_known, memory_limit_bytes, archive=start[:2] == b"PK")
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror or error}; {_EXPECTED}.") from error
    header_sizes = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    if start[:2] != b"\x1f\x8b" and not header_sizes & _NIFTI_HEADER_SIZES:
        raise InputError(f"{path} is of an unknown kind; {_EXPECTED}.")
    hu, grid = read_nifti_image(path, memory_limit_bytes=memory_limit_bytes)
    return hu, grid, ()


def _read_numpy(
    path: Path, size_known: bool, memory_limit_bytes: int, *, archive: bool
) -> tuple[torch.Tensor, VoxelGrid, tuple[Decision, ...]]:
    with (open_npz if archive else open_npy)(path) as file:
        found = {stored.name if archive else "hu": stored for stored in file.arrays}
        if "hu" not in found:
            raise InputError(f"{path} holds {', '.join(found) or 'nothing'}; expected the array hu.")
        wanted = {name: found[name] for name in ("hu", "pixel_spacing_mm", "z_mm") if name in found}
        wrong = next((stored for stored in wanted.values() if not stored.is_real), None)
        if wrong is not None:
            raise InputError(f"{path} holds {wrong}; expected real numbers.")
        check_memory(found["hu"].n_elements, BYTES_PER_VOXEL, memory_limit_bytes, what=f"The image {path}")
        arrays: dict[str, NDArray[Any]] = {
            name: file.read(stored, limit_bytes=memory_limit_bytes) for name, stored in wanted.items()
        }
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not finite, and refused where it is used
        return _from_arrays(arrays, path, size_known)


def _from_arrays(
    arrays: dict[str, NDArray[Any]], path: Path, size_known: bool
) -> tuple[torch.Tensor, VoxelGrid, tuple[Decision, ...]]:
    hu = arrays["hu"]
    if hu.ndim not in (2, 3) or hu.size == 0:
        raise InputError(f"hu in {path} has shape {hu.shape}; expected (slice, y, x) or (y, x).")
    hu = hu.reshape(-1, *hu.shape[-2:])
    decisions = []
    row_step, column_step = _pixel_spacing(arrays.get("pixel_spacing_mm"), path)
    if "pixel_spacing_mm" not in arrays and not size_known:
        decisions.append(_assumed("pixel_spacing", row_step))
    z_mm = arrays.get("z_mm")
    origin_z, slice_step, reverse = 0.0, 1.0, False
    if z_mm is not None:
        origin_z, slice_step, reverse, uneven = _slice_places(z_mm.astype(np.float64), len(hu), path)
        decisions.extend(uneven)
    elif len(hu) > 1 and not size_known:
        decisions.append(_assumed("slice_spacing", slice_step))
    along_slices = (0.0, 0.0, -1.0 if reverse else 1.0)
    grid = VoxelGrid(
        (hu.shape[0], hu.shape[1], hu.shape[2]),
        (slice_step, row_step, column_step),
        (along_slices, *IDENTITY_DIRECTIONS[1:]),
        (-(hu.shape[2] - 1) / 2 * column_step, -(hu.shape[1] - 1) / 2 * row_step, origin_z),
    )
    return torch.from_numpy(hu.astype(np.float32)), grid, tuple(decisions)


def _assumed(name: str, value_mm: float) -> Decision:
    return Decision(name, f"{value_mm:g} mm", "the file does not say.", "--voxel-mm", warning=True)


def _pixel_spacing(stored: NDArray[Any] | None, path: Path) -> tuple[float, float]:
    if stored is None:
        return 1.0, 1.0
    steps = [float(step) for step in stored.ravel()]
    if len(steps) not in (1, 2) or not all(0 < step < 1e4 for step in steps):
        raise InputError(f"pixel_spacing_mm in {path} is {steps[:3]}; expected two positive distances (row, column).")
    return steps[0], steps[-1]


def _slice_places(
    z_mm: NDArray[np.float64], n_slices: int, path: Path
) -> tuple[float, float, bool, tuple[Decision, ...]]:
    """First position, distance, whether the positions descend, and a warning where they are not evenly spaced."""
    steps = np.diff(z_mm.ravel())
    if z_mm.size != n_slices or not (np.abs(z_mm) < 1e6).all():
        raise InputError(f"z_mm in {path} has {z_mm.size} positions for {n_slices} slices; expected a finite one each.")
    if not steps.size:
        return float(z_mm.ravel()[0]), 1.0, False, ()
    if not ((steps > 0).all() or (steps < 0).all()):
        raise InputError(f"z_mm in {path} neither ascends nor descends; sort the slices.")
    spacing = float(np.median(np.abs(steps)))
    reason = f"the slices are {np.abs(steps).min():g} to {np.abs(steps).max():g} mm apart; taken as evenly spaced."
    uneven = (Decision("slice_spacing", f"{spacing:g} mm", reason, "--voxel-mm", warning=True),)
    return float(z_mm.ravel()[0]), spacing, bool(steps[0] < 0), uneven if np.ptp(steps) > _EVEN_MM else ()


def _check_hu(hu: torch.Tensor, path: Path) -> None:
    n_bad = int((~hu.isfinite()).sum())
    if n_bad:
        raise InputError(f"{n_bad} of {hu.numel()} voxels of {path} are not finite; replace them first, air is −1000.")
    low, high = float(hu.min()), float(hu.max())
    values = f"The values of {path} run from {low:g} to {high:g}; expected Hounsfield units, with air at −1000."
    if max(abs(low), abs(high)) < _SMALLEST_RANGE_HU:
        raise InputError(
            f"{values} These look like attenuation, or like grey values scaled to 1: "
            "convert attenuation with 1000 · (mu − mu_water)/mu_water, scale grey values back."
        )
    if low == high:
        raise InputError(f"{values} There is nothing in the image.")
    if low >= 0:
        raise InputError(
            f"{values} Nothing is as dark as air: subtract 1024 if these are the stored pixels of a CT, "
            "and give air around the patient −1000 if it was masked with 0."
        )
    if low < _LOWEST_HU or high > _HIGHEST_HU:
        raise InputError(f"{values} No material is so dark or bright: correct the scaling of the file.")


def _without_padding(hu: torch.Tensor) -> tuple[torch.Tensor, tuple[Decision, ...]]:
    """Give air to the surroundings that scanners fill with one value far below air."""
    low = float(hu.min())
    padding = hu == low
    n_padding = int(padding.sum())
    if low > _DARKEST_MEASURED_HU or n_padding < _LEAST_PADDING * hu.numel():
        return hu, ()
    reason = f"{n_padding / hu.numel():.0%} of the voxels are {low:g} HU, which no material has: not measured."
    return hu.masked_fill(padding, _AIR_HU), (Decision("padding", "air", reason, warning=True),)


def _upright(hu: torch.Tensor, grid: VoxelGrid) -> tuple[torch.Tensor, VoxelGrid, tuple[Decision, ...]]:
    """Swap and reverse axes until they run, as nearly as they can, to superior, posterior and left."""
    along = np.asarray(grid.directions) @ np.asarray(IDENTITY_DIRECTIONS).T
    order = max(itertools.permutations(range(3)), key=lambda axes: sum(abs(along[axes[i], i]) for i in range(3)))
    signs = [1.0 if along[axis, place] >= 0 else -1.0 for place, axis in enumerate(order)]
    if order == (0, 1, 2) and min(signs) > 0:
        return hu, grid, ()
    first = [grid.shape[axis] - 1 if sign < 0 else 0 for axis, sign in sorted(zip(order, signs, strict=True))]
    z, y, x = order
    ways = np.asarray(signs)[:, None] * np.asarray(grid.directions)[list(order)]
    turned = VoxelGrid(
        (grid.shape[z], grid.shape[y], grid.shape[x]),
        (grid.spacing_mm[z], grid.spacing_mm[y], grid.spacing_mm[x]),
        (_triple(ways[0]), _triple(ways[1]), _triple(ways[2])),
        grid.position_mm(first),
    )
    reversed_axes = [place for place, sign in enumerate(signs) if sign < 0]
    hu = hu.permute(order).flip(reversed_axes).contiguous()
    reason = "the file has other axes or directions; no value was changed."
    swapped = order != (0, 1, 2)
    return hu, turned, (Decision("orientation", "axial, front at the top", reason, warning=swapped),)
