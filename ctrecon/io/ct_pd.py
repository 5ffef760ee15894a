"""Reading axial scans from folders of DICOM-CT-PD, the vendor-neutral format of raw projections (LDCT archive)."""

import math
import struct
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctrecon.hounsfield import check_mu_water
from ctrecon.io.assembly import assemble, check_array_memory
from ctrecon.io.geometry_files import Setup, in_words, seen_diameter_mm
from ctrecon.io.options import ReadOptions
from ctrecon.sinogram import Sinogram
from operators.beam_geometry import FanBeam
from operators.decision import Decision
from operators.errors import InputError
from operators.io.array_file import damage_reported
from operators.io.hdf5 import check_finite

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_DEFAULTS = ReadOptions()
_PREAMBLE_BYTES = 132
_MOST_FILES = 200_000
_SNIFFED_FILES = 20
_IMAGE_PIXELS = 512
_SAME_ANGLE_RAD = 1e-5
_SAME_MM = 1e-3

_N_ROWS, _N_COLUMNS = 0x70291010, 0x70291011
_TRANSVERSE_SPACING, _AXIAL_SPACING, _SHAPE = 0x70291002, 0x70291006, 0x7029100B
_ANGLE, _AXIAL_POSITION, _SOURCE_TO_CENTER = 0x70311001, 0x70311002, 0x70311003
_SOURCE_TO_DETECTOR, _CENTRAL_ELEMENT = 0x70311031, 0x70311033
_ANGLE_SHIFT, _AXIAL_SHIFT, _RADIAL_SHIFT = 0x7033100B, 0x7033100C, 0x7033100D
_MU_WATER = 0x70411001


@dataclass(frozen=True, slots=True)
class _Detector:
    """What every projection of a scan must have in common."""

    n_rows: int
    n_columns: int
    spacing_mm: float
    axial_spacing_mm: float
    curved: bool
    source_to_center_mm: float
    source_to_detector_mm: float
    central_column: float
    central_row: float


@dataclass(frozen=True, slots=True)
class _Projection:
    """Where one projection was taken, and which file holds it."""

    path: Path
    detector: _Detector
    angle_rad: float
    axial_mm: float
    angle_shift_rad: float
    radial_shift_mm: float

    @property
    def focal_spot(self) -> tuple[int, int]:
        """Where in the plane the focal spot stood, rounded so that equal places compare equal."""
        return round(self.angle_shift_rad / _SAME_ANGLE_RAD), round(self.radial_shift_mm / _SAME_MM)


def looks_like_ct_pd(folder: Path) -> bool:
    """Whether a folder holds files of DICOM-CT-PD.

    Raises
    ------
    InputError
        If it holds DICOM files, and none can be read.
    """
    problem: InputError | None = None
    files = _dicom_files(folder)[:_SNIFFED_FILES]
    for path in files:
        try:
            if _ANGLE in _dataset(path, with_pixels=False):
                return True
        except InputError as error:
            problem = problem or error
    if problem is not None:
        raise problem
    return False


def read_ct_pd(path: Path | str, options: ReadOptions = _DEFAULTS) -> Sinogram:
    """Read one axial scan: the projections of one table position, in any order and under any names.

    Of a detector with several rows the one nearest to the plane of the source is read. Where the focal spot flies
    within the plane, the views of the place that most of them share are read: the other ones belong to another
    geometry.

    In the coordinates of the format, seen from the feet, x runs to the right of the patient and y to the front, and the
    source stands at (−ρ sin φ, ρ cos φ). Columns of an image run to the left, so that the view angle here is π − φ, and
    the detector columns keep their order.

    Parameters
    ----------
    path
        The folder.
    options
        Overrides of decisions; ``detector_row`` chooses the row, from 1.

    Returns
    -------
    Sinogram

    Raises
    ------
    InputError
        If a file is damaged, a tag is missing, the files belong to several scans, or the scan is helical.

    References
    ----------
    Chen et al., "Technical note: development and validation of an open data format for CT projection data", Medical
    Physics 42, 2015.
    """
    folder = Path(path)
    log: list[Decision] = []
    files = _dicom_files(folder)
    if not files:
        raise InputError(f"{folder} holds no DICOM files; give the folder with the projections.")
    projections, mu_water = _read_headers(files, folder)
    detector = _one_detector(projections, folder)
    _check_axial(projections, detector, folder)
    used = _one_focal_spot(projections, log)
    row = _row(detector, options, log)
    check_array_memory(len(used) * detector.n_columns, options, what=f"The projections in {folder}")
    data = np.stack([_read_row(projection, row, options) for projection in used])[None]
    setup = _setup(used, mu_water, folder)
    log.append(Decision("geometry", in_words(setup.geometry), "The files say it."))
    check_finite(data, ["slice", "view", "detector bin"], what=f"the projections in {folder}")
    if options.reverse_detector:
        log.append(Decision("detector_bins", "counted in reverse", "It was asked for.", "--reverse-detector"))
        data = np.ascontiguousarray(data[..., ::-1])
    return assemble(
        data,
        None,
        setup,
        options,
        source=str(folder),
        decisions=tuple(log),
        slice_spacing_mm=detector.axial_spacing_mm * detector.source_to_center_mm / detector.source_to_detector_mm,
        center_mm=(0.0, 0.0, used[0].axial_mm),
        counts=(("files", len(files)), ("detector rows", detector.n_rows)),
    )


def _dicom_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for entry in sorted(folder.iterdir()):
        if len(found) == _MOST_FILES:
            raise InputError(f"{folder} holds more than {_MOST_FILES} DICOM files; give the folder of one scan.")
        if entry.is_file() and _begins_like_dicom(entry):
            found.append(entry)
    return found


def _begins_like_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(_PREAMBLE_BYTES)[128:] == b"DICM"
    except OSError:
        return False


def _dataset(path: Path, *, with_pixels: bool) -> "Dataset":
    import pydicom
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    with damage_reported(path, "DICOM"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the library finds odd about a value is no concern of the reader
        syntax = read_file_meta_info(path).get("TransferSyntaxUID")
        # Others are compressed, and a deflated header could unpack to any size.
        if syntax not in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            raise InputError(f"{path} has the transfer syntax {syntax}; expected uncompressed little-endian DICOM.")
        return pydicom.dcmread(path, stop_before_pixels=not with_pixels)


def _read_headers(files: list[Path], folder: Path) -> tuple[list[_Projection], float | None]:
    projections = []
    mu_water: float | None = None
    for path in files:
        header = _dataset(path, with_pixels=False)
        with damage_reported(path, "DICOM-CT-PD"):
            if _ANGLE not in header:
                raise InputError(
                    f"{path} has no angle of the focal spot (7031,1001); it is no projection of DICOM-CT-PD: put the "
                    f"projections in a folder of their own."
                )
            projections.append(_projection(header, path))
            if mu_water is None and _MU_WATER in header:
                mu_water = _plausible_mu_water(header)
    return sorted(projections, key=lambda projection: (projection.angle_rad, str(projection.path))), mu_water


def _projection(header: "Dataset", path: Path) -> _Projection:
    central = _floats(header, _CENTRAL_ELEMENT, 2, path)
    detector = _Detector(
        n_rows=_whole(header, _N_ROWS, path),
        n_columns=_whole(header, _N_COLUMNS, path),
        spacing_mm=_floats(header, _TRANSVERSE_SPACING, 1, path)[0],
        axial_spacing_mm=_floats(header, _AXIAL_SPACING, 1, path)[0] if _AXIAL_SPACING in header else 1.0,
        curved=_text(header, _SHAPE).strip("\0 ").upper() != "FLAT",
        source_to_center_mm=_floats(header, _SOURCE_TO_CENTER, 1, path)[0],
        source_to_detector_mm=_floats(header, _SOURCE_TO_DETECTOR, 1, path)[0],
        central_column=central[0],
        central_row=central[1],
    )
    return _Projection(
        path,
        detector,
        angle_rad=_floats(header, _ANGLE, 1, path)[0],
        axial_mm=_floats(header, _AXIAL_POSITION, 1, path)[0],
        angle_shift_rad=_shift(header, _ANGLE_SHIFT, path),
        radial_shift_mm=_shift(header, _RADIAL_SHIFT, path),
    )


def _shift(header: "Dataset", tag: int, path: Path) -> float:
    return _floats(header, tag, 1, path)[0] if tag in header else 0.0


def _one_detector(projections: list[_Projection], folder: Path) -> _Detector:
    detectors = {projection.detector for projection in projections}
    if len(detectors) > 1:
        raise InputError(
            f"The files in {folder} come from {len(detectors)} different detectors or geometries; give a folder for "
            f"each scan."
        )
    return next(iter(detectors))


def _check_axial(projections: list[_Projection], detector: _Detector, folder: Path) -> None:
    positions = [projection.axial_mm for projection in projections]
    travel_mm = max(positions) - min(positions)
    if travel_mm > 0.1 * detector.axial_spacing_mm:
        raise InputError(
            f"The table moves by {travel_mm:.4g} mm in the scan in {folder}: it is helical or has several stops, and "
            f"one axial rotation is read. Rebin it to fan beams first, or give the files of one position."
        )


def _one_focal_spot(projections: list[_Projection], log: list[Decision]) -> list[_Projection]:
    spots = Counter(projection.focal_spot for projection in projections)
    if len(spots) == 1:
        return projections
    most, n_used = spots.most_common(1)[0]
    reason = f"The focal spot flies between {len(spots)} places in the plane; other views have another geometry."
    log.append(Decision("focal_spot", f"{n_used} of {len(projections)} views", reason, warning=True))
    return [projection for projection in projections if projection.focal_spot == most]


def _row(detector: _Detector, options: ReadOptions, log: list[Decision]) -> int:
    given = options.detector_row
    if given is not None:
        if not 1 <= given <= detector.n_rows:
            raise InputError(f"The detector row is {given}; the detector has the rows 1 to {detector.n_rows}.")
        log.append(Decision("detector_row", f"{given} of {detector.n_rows}", "It was asked for.", "--detector-row"))
        return given - 1
    row = min(max(1, math.ceil(detector.central_row - 0.5)), detector.n_rows)
    if detector.n_rows > 1:
        reason = "It is next to the plane of the source; rows beyond see the object obliquely and are left out."
        log.append(Decision("detector_row", f"{row} of {detector.n_rows}", reason, "--detector-row"))
    return row - 1


def _read_row(projection: _Projection, row: int, options: ReadOptions) -> NDArray[np.float32]:
    """Line integrals along one row of the detector, ``(detector,)``."""
    path, detector = projection.path, projection.detector
    if path.stat().st_size > options.memory_limit_bytes:
        raise InputError(f"{path} has {path.stat().st_size} bytes, more than memory_limit_bytes.")
    dataset = _dataset(path, with_pixels=True)
    with damage_reported(path, "DICOM-CT-PD"):
        stored_shape = (int(dataset.Rows), int(dataset.Columns))
        slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
        pixels = np.frombuffer(dataset.PixelData, dtype="<i2" if dataset.PixelRepresentation else "<u2")
        n_bits = int(dataset.BitsAllocated)
    # The archive stores the columns of the detector as rows of the picture; the other order occurs too.
    n_pixels = detector.n_columns * detector.n_rows
    if n_bits != 16 or stored_shape not in (
        (detector.n_columns, detector.n_rows),
        (detector.n_rows, detector.n_columns),
    ):
        raise InputError(
            f"{path} holds {stored_shape[0]} × {stored_shape[1]} pixels of {n_bits} bits; its detector has "
            f"{detector.n_columns} columns and {detector.n_rows} rows, in 16 bits."
        )
    if pixels.size < n_pixels:
        raise InputError(f"{path} is truncated: {pixels.size} of {n_pixels} pixels are left.")
    picture = pixels[:n_pixels].reshape(stored_shape)
    line = picture[:, row] if stored_shape[0] == detector.n_columns else picture[row]
    with np.errstate(over="ignore", invalid="ignore"):
        return (line * slope + intercept).astype(np.float32)


def _setup(projections: list[_Projection], mu_water: float | None, folder: Path) -> Setup:
    detector, first = projections[0].detector, projections[0]
    n = detector.n_columns
    center_to_detector_mm = detector.source_to_detector_mm - detector.source_to_center_mm
    # A focal spot aside of the detector's focal centre turns the central ray, and the detector stays.
    offset_mm = ((n + 1) / 2 - detector.central_column) * detector.spacing_mm
    offset_mm -= center_to_detector_mm * first.angle_shift_rad
    angles = [math.pi - projection.angle_rad - projection.angle_shift_rad for projection in projections]
    try:
        geometry = FanBeam(
            angles_rad=tuple(angles),
            n_detectors=n,
            detector_spacing_mm=detector.spacing_mm,
            pixel_spacing_mm=1.0,
            detector_offset_mm=offset_mm,
            source_to_center_mm=detector.source_to_center_mm + first.radial_shift_mm,
            center_to_detector_mm=center_to_detector_mm,
            curved=detector.curved,
        )
        geometry = replace(geometry, pixel_spacing_mm=seen_diameter_mm(geometry) / _IMAGE_PIXELS)
    except ValueError as error:
        raise InputError(f"The geometry in {folder} makes no sense: {error}") from error
    return Setup(geometry, (_IMAGE_PIXELS, _IMAGE_PIXELS), mu_water, reason="It covers what the detector sees.")


def _plausible_mu_water(header: "Dataset") -> float | None:
    """The attenuation of water, which is a decimal text in most files; ``None`` if it is none in 1/mm."""
    value: Any = header[_MU_WATER].value
    try:
        return check_mu_water(float(value.decode("latin-1").strip("\0 ") if isinstance(value, bytes) else value))
    except (ValueError, TypeError):
        pass
    try:
        return check_mu_water(struct.unpack("<f", value[:4])[0])
    except (ValueError, TypeError, struct.error):
        return None


def _floats(header: "Dataset", tag: int, n: int, path: Path) -> tuple[float, ...]:
    """Little-endian float32 numbers, which private tags without a known type hold as bytes."""
    if tag not in header:
        raise InputError(f"{path} has no {_name(tag)}; DICOM-CT-PD needs it: export the scan again.")
    value: Any = header[tag].value
    if isinstance(value, bytes | bytearray):
        values = struct.unpack(f"<{n}f", value[: 4 * n]) if len(value) >= 4 * n else ()
    elif isinstance(value, str | int | float):
        values = (float(value),)
    else:
        values = tuple(float(item) for item in value)
    if len(values) < n or not all(map(math.isfinite, values)):
        raise InputError(f"{_name(tag)} of {path} is not {n} finite number(s); the file is damaged.")
    return tuple(float(number) for number in values[:n])


def _whole(header: "Dataset", tag: int, path: Path) -> int:
    if tag not in header:
        raise InputError(f"{path} has no {_name(tag)}; DICOM-CT-PD needs it: export the scan again.")
    value: Any = header[tag].value
    number = int.from_bytes(value[:2], "little") if isinstance(value, bytes | bytearray) else int(value)
    if not 0 < number < 2**16:
        raise InputError(f"{_name(tag)} of {path} is {number}; expected a number of detector elements.")
    return number


def _text(header: "Dataset", tag: int) -> str:
    if tag not in header:
        return ""
    value: Any = header[tag].value
    return value.decode("latin-1") if isinstance(value, bytes | bytearray) else str(value)


def _name(tag: int) -> str:
    return f"tag ({tag >> 16:04x},{tag & 0xFFFF:04x})"
