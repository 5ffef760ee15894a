"""DICOM: CT slices in Hounsfield units, out as a series that viewers open, and in for simulations."""

import io
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian

from ctrecon.hounsfield import check_mu_water
from ctrecon.windows import WINDOWS
from operators.decision import Decision
from operators.errors import InputError
from operators.io.array_file import damage_reported
from operators.io.dicom import check_dicom_folder, check_volumes, decimal, new_series, plain_text, write_series
from operators.io.hdf5 import check_memory
from operators.voxel_grid import Triple, VoxelGrid

_N_BITS = 12
_LARGEST_PIXEL = 2**_N_BITS - 1
_LOWEST_HU = -1024
_STEP_HU, _WIDE_STEP_HU = 1, 4
BYTES_PER_VOXEL = 12
"""Most bytes per voxel that reading an image takes: its values, those of a file, and masks of what is refused."""
_MAGIC, _MAGIC_OFFSET = b"DICM", 128
_SAME_PLACE_MM = 1e-3
_UNEVEN_MM = 0.05


def write_dicom(
    folder: Path | str,
    hu: torch.Tensor,
    grid: VoxelGrid,
    *,
    method: str,
    description: str,
    mu_water_per_mm: float,
    kvp: float | None = None,
    weights_hash: str | None = None,
    patient: Mapping[str, str] | None = None,
    wide_range: bool = False,
    overwrite: bool = False,
) -> tuple[list[Path], int]:
    """Write an image in Hounsfield units as a folder of CT Image Storage files, one per slice.

    The pixels are what scanners write and every viewer expects: unsigned, 12 of 16 bits, HU = pixel − 1024. They hold
    whole HU from −1024 to 3071, which metal exceeds; with ``wide_range`` they hold every fourth from −1024 to 15356.
    What lies beyond is clipped, and counted. The windows of ``ctrecon.windows`` are offered by their names, the first
    of them first. Identifiers (UIDs) are new, so no two files of two calls share one; dates, and whatever else could
    identify a person, stay empty.

    Parameters
    ----------
    folder
        Where the series is to stand; its files are ``slice_0001.dcm`` and so on, in the order of the image.
    hu
        Hounsfield units, real ``(slice, y, x)``.
    grid
        Where the voxels lie; its shape is ``(slice, y, x)``.
    method
        Name of the reconstruction method, for the derivation description.
    description
        Description of the series; its first 64 characters are kept.
    mu_water_per_mm
        Attenuation of water that the Hounsfield units rest on, in 1/mm, for the derivation description.
    kvp
        Peak voltage of the tube, in kV, where it is known.
    weights_hash
        Identifies the trained weights that took part, if any.
    patient
        What is known of the person and is to be written: ``name``, ``id``, ``birth_date`` (YYYYMMDD or YYYY-MM-DD),
        ``sex`` (M, F or O). Nothing by default.
    wide_range
        Store steps of 4 HU, for metal.
    overwrite
        Allow ``folder`` to exist; it is replaced as a whole, and must hold nothing but ``.dcm`` files.

    Returns
    -------
    paths : list of Path
        The files, in the order of the slices.
    n_clipped : int
        How many voxels are beyond the range by more than rounding, and were moved to its end.

    Raises
    ------
    InputError
        If the folder cannot be written or holds other files, the image is not finite or too large for the format, or
        the voltage or a value of the patient cannot be expressed in DICOM.
    TypeError
        If the image is complex.
    ValueError
        If the shapes of image and grid differ, ``patient`` has other keys, or the attenuation of water is implausible.
    """
    check_dicom_folder(folder, overwrite=overwrite)
    if hu.is_complex():
        raise TypeError(f"hu is {hu.dtype}; expected real Hounsfield units.")
    if hu.ndim != 3:
        raise ValueError(f"hu has shape {tuple(hu.shape)}; expected (slice, y, x).")
    if kvp is not None and not 0 < kvp < float("inf"):
        raise InputError(f"The tube voltage is {kvp} kV; expected a positive number, or none.")
    step = _WIDE_STEP_HU if wide_range else _STEP_HU
    pixels = ((check_volumes(hu, grid)[0].double() - _LOWEST_HU) / step).round()
    n_clipped = int(((pixels < 0) | (pixels > _LARGEST_PIXEL)).sum())
    stored = pixels.clamp(0, _LARGEST_PIXEL).cpu().numpy().astype(np.uint16)
    derivation = f"{method}; water {check_mu_water(mu_water_per_mm):g} per mm"
    series = new_series(
        grid,
        storage=CTImageStorage,
        modality="CT",
        image_type=("DERIVED", "SECONDARY", "AXIAL"),
        description=description,
        derivation=f"{derivation}; weights {weights_hash}" if weights_hash else derivation,
        patient=patient,
    )
    series.KVP = decimal(kvp, "tube voltage")
    series.RescaleSlope, series.RescaleIntercept, series.RescaleType = step, _LOWEST_HU, "HU"
    series.WindowCenter = [decimal(window.centre_hu, "window centre") for window in WINDOWS]
    series.WindowWidth = [decimal(window.width_hu, "window width") for window in WINDOWS]
    series.WindowCenterWidthExplanation = [plain_text(window.name, 64) for window in WINDOWS]
    paths = write_series(folder, series, stored, grid, n_bits=_N_BITS, overwrite=overwrite)
    return paths, n_clipped


def is_dicom(path: Path) -> bool:
    """Tell whether a file begins like DICOM.

    Parameters
    ----------
    path
        An existing file.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with path.open("rb") as stream:
        return stream.read(_MAGIC_OFFSET + len(_MAGIC))[_MAGIC_OFFSET:] == _MAGIC


def read_dicom(
    path: Path | str, *, memory_limit_bytes: int = 8 * 2**30
) -> tuple[torch.Tensor, VoxelGrid, tuple[Decision, ...]]:
    """Read a CT slice, or the CT slices of a folder, in Hounsfield units.

    The slices stand in the order of their positions along their normal (for axial slices from the feet to the head).
    Of a folder that holds several series or orientations, the one with most slices is read. Multi-frame files are not.

    Parameters
    ----------
    path
        A DICOM file, or a folder of them; what else is in the folder is left out.
    memory_limit_bytes
        Refuse files that would need more than this.

    Returns
    -------
    hu : torch.Tensor
        Pixel · RescaleSlope + RescaleIntercept, float32 ``(slice, y, x)``; Hounsfield units if the series holds them.
    grid : VoxelGrid
        Where its voxels lie.
    decisions : tuple of Decision
        What was left out, and in what the slices differ from a regular grid.

    Raises
    ------
    InputError
        If there is no CT slice, a file is damaged, is compressed in a way that nothing installed can read or does not
        say where its slice lies, or if all would need too much memory.
    """
    path = Path(path)
    slices, decisions = _chosen_slices(path, memory_limit_bytes)
    n_rows, n_columns = slices[0].shape
    what = f"Reading {len(slices)} slices of {n_rows}×{n_columns} pixels from {path}"
    check_memory(len(slices) * n_rows * n_columns, BYTES_PER_VOXEL, memory_limit_bytes, what=what)
    grid, geometry_decisions = _grid_of(slices, path)
    return torch.from_numpy(_pixels_of(slices)), grid, (*decisions, *geometry_decisions)


@dataclass(frozen=True, slots=True)
class _StoredSlice:
    """Where the slice of a file lies, and what it belongs to."""

    path: Path
    series: str
    number: float
    shape: tuple[int, int]
    spacing_mm: tuple[float, float]
    cosines: tuple[float, ...]
    position_mm: tuple[float, ...]
    thickness_mm: float

    @property
    def group(self) -> tuple[object, ...]:
        """What slices of one volume have in common."""
        steps, cosines = (tuple(np.round(v, 3) + 0.0) for v in (self.spacing_mm, self.cosines))  # + 0.0: no negative 0
        return self.series, self.shape, steps, cosines

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.cross(self.cosines[:3], self.cosines[3:])

    @property
    def location_mm(self) -> float:
        return float(self.normal @ np.asarray(self.position_mm))


def _chosen_slices(path: Path, memory_limit_bytes: int) -> tuple[list[_StoredSlice], list[Decision]]:
    files = [path]
    try:
        if not (path.is_dir() or path.is_file()):
            raise InputError(f"{path} is no file or folder that can be read; give the folder of a CT series.")
        if path.is_dir():
            files = sorted(entry for entry in path.iterdir() if entry.is_file() and is_dicom(entry))
        large = next((file for file in files if file.stat().st_size > memory_limit_bytes), None)
        if large is not None:
            raise InputError(f"{large} is larger than the limit of {memory_limit_bytes / 2**30:.1f} GiB; leave it out.")
        found = [_stored_slice(file) for file in files]
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror or error}.") from error
    slices = [entry for entry in found if isinstance(entry, _StoredSlice)]
    others = Counter(entry for entry in found if isinstance(entry, str))
    summary = ", ".join(f"{n} × {kind}" for kind, n in sorted(others.items()))
    if not slices:
        raise InputError(f"{path} holds no CT slice, but {summary or 'no DICOM file'}; give the folder of a CT series.")
    decisions = []
    if others:
        decisions.append(Decision("left_out", summary, "only CT slices are read.", warning=True))
    groups: dict[tuple[object, ...], list[_StoredSlice]] = {}
    for entry in slices:
        groups.setdefault(entry.group, []).append(entry)
    chosen = max(groups.values(), key=len)
    if len(groups) > 1:
        value = f"{len(chosen)} of {len(slices)} slices"
        reason = f"the folder holds {len(groups)} series or orientations; the one with most slices was taken."
        decisions.append(Decision("series", value, reason, warning=True))
    chosen.sort(key=lambda entry: (entry.location_mm, entry.number))
    kept = chosen[:1]
    for entry in chosen[1:]:
        if entry.location_mm - kept[-1].location_mm > _SAME_PLACE_MM:
            kept.append(entry)
    if len(kept) < len(chosen):
        value, reason = f"{len(kept)} of {len(chosen)} slices", "others lie at the same place; the first were taken."
        decisions.append(Decision("repeated_slices", value, reason, warning=True))
    return kept, decisions


def _grid_of(slices: list[_StoredSlice], path: Path) -> tuple[VoxelGrid, list[Decision]]:
    first, decisions = slices[0], []
    spacing = first.thickness_mm
    if len(slices) > 1:
        steps = np.diff([entry.location_mm for entry in slices])
        spacing = float(np.median(steps))
        if np.ptp(steps) > _UNEVEN_MM:
            reason = f"the slices are {steps.min():g} to {steps.max():g} mm apart; they are taken as evenly spaced."
            decisions.append(Decision("slice_spacing", f"{spacing:g} mm", reason, warning=True))
        way = np.subtract(slices[-1].position_mm, first.position_mm)
        sideways = float(np.linalg.norm(way - (way @ first.normal) * first.normal))
        if sideways > first.spacing_mm[0]:
            tilt = f"{np.degrees(np.arctan2(sideways, way @ first.normal)):.1f}°"
            reason = "the slices are shifted against each other; they are taken as a straight stack."
            decisions.append(Decision("gantry_tilt", tilt, reason, warning=True))
    directions = (_triple(first.normal), _triple(first.cosines[3:]), _triple(first.cosines[:3]))
    shape = (len(slices), *first.shape)
    try:
        grid = VoxelGrid(shape, (spacing, *first.spacing_mm), directions, _triple(first.position_mm))
    except ValueError as error:
        raise InputError(f"The place of {path} in the patient cannot be used: {error}") from error
    return grid, decisions


def _triple(values: "NDArray[np.float64] | tuple[float, ...]") -> Triple:
    return float(values[0]), float(values[1]), float(values[2])


def _content(path: Path) -> io.BytesIO:
    # From memory, because a length that only the file claims must never make a stream allocate as much.
    content = path.read_bytes()
    if DeflatedExplicitVRLittleEndian.encode() in content:
        raise InputError(f"{path} is deflated as a whole; save it uncompressed, as explicit VR little endian.")
    return io.BytesIO(content)


def _stored_slice(path: Path) -> _StoredSlice | str:
    """Where the slice of a file lies; or in a few words what the file is, if it is no CT slice."""
    content = _content(path)
    with damage_reported(path, "DICOM"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values that are unused, or refused when they are used
        dataset = pydicom.dcmread(content, stop_before_pixels=True)
        modality = str(dataset.get("Modality", "")) or "no modality"
        if "Rows" not in dataset or modality != "CT":
            return f"{modality[:16]} {'image' if 'Rows' in dataset else 'object'}"
        if "LOCALIZER" in str(dataset.get("ImageType", "")):
            return "localizer"
        if int(dataset.get("NumberOfFrames") or 1) != 1:
            raise InputError(f"{path} holds several frames; convert it to NIfTI, or to one file per slice.")
        n_rows, n_columns = (int(_numbers(dataset, name, 1, 2**16, path)[0]) for name in ("Rows", "Columns"))
        row_step, column_step = _numbers(dataset, "PixelSpacing", 2, 1e4, path)
        thickness = next(
            (
                _numbers(dataset, name, 1, 1e4, path)[0]
                for name in ("SpacingBetweenSlices", "SliceThickness")
                if dataset.get(name)
            ),
            1.0,
        )
        if min(n_rows, n_columns, row_step, column_step) <= 0:
            size = f"{row_step:g}×{column_step:g} mm"
            raise InputError(f"{path} has {n_rows}×{n_columns} pixels of {size}; it is damaged: export it again.")
        return _StoredSlice(
            path,
            str(dataset.get("SeriesInstanceUID", "")),
            float(dataset.get("InstanceNumber") or 0),
            (n_rows, n_columns),
            (row_step, column_step),
            _numbers(dataset, "ImageOrientationPatient", 6, 1.01, path),
            _numbers(dataset, "ImagePositionPatient", 3, 1e6, path),
            abs(thickness) or 1.0,
        )


def _numbers(dataset: Dataset, keyword: str, n: int, largest: float, path: Path) -> tuple[float, ...]:
    value = dataset.get(keyword)
    if value is None or value == "":
        raise InputError(f"{path} has no {keyword}; a CT slice needs it: export it again, or convert it to NIfTI.")
    numbers = tuple(float(number) for number in (value if n > 1 else [value]))
    if len(numbers) != n or not all(abs(number) <= largest for number in numbers):
        raise InputError(f"{path} has {keyword} = {value}; expected {n} of size up to {largest:g}: export it again.")
    return numbers


def _pixels_of(slices: list[_StoredSlice]) -> NDArray[np.float32]:
    hu = np.empty((len(slices), *slices[0].shape), np.float32)
    for values, entry in zip(hu, slices, strict=True):
        content = _content(entry.path)
        with damage_reported(entry.path, "DICOM"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(content)
            syntax = dataset.file_meta.TransferSyntaxUID
            if syntax.is_compressed and not get_decoder(syntax).is_available:
                raise InputError(
                    f"{entry.path} is compressed as {syntax.name}, which nothing installed here can read; "
                    "install pylibjpeg with its plugins, or save the series uncompressed."
                )
            slope = _numbers(dataset, "RescaleSlope", 1, 1e6, entry.path)[0]
            intercept = _numbers(dataset, "RescaleIntercept", 1, 1e6, entry.path)[0]
            stored = np.asarray(dataset.pixel_array)
            if stored.shape != entry.shape:
                raise InputError(f"{entry.path} has pixels of shape {stored.shape}; expected one grey image.")
            values[...] = stored * slope + intercept
    return hu
