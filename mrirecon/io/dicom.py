"""DICOM: an image as a series of MR slices that viewers open, at its place in the patient."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat

from mrirecon.acquisition import Acquisition
from operators.errors import InputError
from operators.io.files import check_writable, replacing
from operators.voxel_grid import VoxelGrid

_LARGEST_PIXEL = 2**16 - 1
_LARGEST_SIZE = 2**16 - 1
_WINDOW_PERCENTILES = (1.0, 99.5)
_PATIENT_KEYS = {"name", "id", "birth_date", "sex"}
_UNKNOWN_GEOMETRY = "The raw data hold no position or orientation; those in this file are not the patient's."


def check_dicom_folder(folder: Path | str, *, overwrite: bool = False) -> None:
    """Refuse a folder for a series early, before any work is spent on it.

    Parameters
    ----------
    folder
        The folder that is going to be written.
    overwrite
        Allow ``folder`` to exist. It is going to be replaced as a whole, so it must hold nothing but ``.dcm`` files.

    Raises
    ------
    InputError
        If ``folder`` exists and ``overwrite`` is false, holds anything else or is a file, or if it cannot be written.
    """
    folder = Path(folder)
    check_writable(folder, overwrite=overwrite)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, but a DICOM series is a folder of files; choose another output.")
    others = sorted(entry.name for entry in folder.iterdir() if entry.suffix != ".dcm" or not entry.is_file())
    if others:
        raise InputError(
            f"{folder} also holds {others[0]!r}; overwriting would delete it: choose another folder for the series."
        )


def write_dicom(
    folder: Path | str,
    image: torch.Tensor,
    grid: VoxelGrid,
    *,
    geometry_known: bool,
    acquisition: Acquisition,
    method: str,
    description: str,
    weights_hash: str | None = None,
    patient: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write the magnitude of an image as a folder of MR Image Storage files, one per slice.

    The pixels are 16 bit; one rescale slope for the whole series makes its maximum the largest pixel value, and
    pixel · slope gives the values back to half a slope. The window, the 1st to the 99.5th percentile of the series, is
    in the units of the values (``LINEAR_EXACT``, because they may all lie below 1). Identifiers (UIDs) are new, so no
    two files of two calls share one; dates, and whatever else could identify a person, stay empty.

    Parameters
    ----------
    folder
        Where the series is to stand; its files are ``slice_0001.dcm`` and so on, in the order of the image.
    image
        Complex or real ``(*batch, z, y, x)``, any unit. The volumes of the batch follow each other, the last batch
        axis fastest, with acquisition numbers from 1.
    grid
        Where the voxels lie; its shape is ``(z, y, x)``.
    geometry_known
        Whether the grid comes from the scan; if not, the image comments say so.
    acquisition
        Protocol and device. Its ``patient`` is not written.
    method
        Name of the reconstruction method, for the derivation description.
    description
        Description of the series; its first 64 characters are kept.
    weights_hash
        Identifies the trained weights that took part, if any.
    patient
        What is known of the person and is to be written: ``name``, ``id``, ``birth_date`` (YYYYMMDD or YYYY-MM-DD),
        ``sex`` (M, F or O). Nothing by default.
    overwrite
        Allow ``folder`` to exist; it is replaced as a whole, and must hold nothing but ``.dcm`` files.

    Returns
    -------
    list of Path
        The files, in the order of the slices.

    Raises
    ------
    InputError
        If the folder cannot be written or holds other files, the image is not finite or too large for the format, or
        a value of the protocol or the patient cannot be expressed in DICOM.
    ValueError
        If the shapes of image and grid differ, or ``patient`` has other keys.
    """
    folder = Path(folder)
    check_dicom_folder(folder, overwrite=overwrite)
    volumes = _volumes(image, grid)
    slope = DSfloat(float(volumes.max()) / _LARGEST_PIXEL or 1.0, auto_format=True)
    series = _series(grid, acquisition, description, patient or {})
    series.DerivationDescription = _words(f"{method}; weights {weights_hash}" if weights_hash else method, 1024)
    series.ImageComments = "" if geometry_known else _UNKNOWN_GEOMETRY
    series.RescaleSlope, series.RescaleIntercept, series.RescaleType = slope, "0", "US"
    _set_window(series, volumes)
    names = _names(len(volumes) * grid.shape[0])
    with replacing(folder, overwrite=overwrite) as temporary:
        temporary.mkdir()
        for number, name in enumerate(names):
            volume, index = divmod(number, grid.shape[0])
            pixels = np.rint(volumes[volume, index] / float(slope)).clip(0, _LARGEST_PIXEL).astype(np.uint16)
            _slice(series, pixels, grid, index, volume, number).save_as(temporary / name, enforce_file_format=True)
    return [folder / name for name in names]


def _volumes(image: torch.Tensor, grid: VoxelGrid) -> NDArray[np.float64]:
    if image.ndim < 3 or tuple(image.shape[-3:]) != grid.shape or image.numel() == 0:
        raise ValueError(f"image has shape {tuple(image.shape)}; expected (*batch, {', '.join(map(str, grid.shape))}).")
    if max(grid.shape[1:]) > _LARGEST_SIZE:
        raise InputError(f"The slices have {grid.shape[1:]} pixels; DICOM holds at most {_LARGEST_SIZE} per side.")
    volumes = image.detach().reshape(-1, *grid.shape).abs().double()
    n_bad = int((~volumes.isfinite()).sum())
    if n_bad:
        raise InputError(f"{n_bad} of {volumes.numel()} voxels are not finite; nothing was written.")
    return volumes.cpu().numpy()


def _names(n_files: int) -> list[str]:
    width = max(4, len(str(n_files)))
    return [f"slice_{number:0{width}d}.dcm" for number in range(1, n_files + 1)]


def _series(grid: VoxelGrid, acquisition: Acquisition, description: str, patient: Mapping[str, str]) -> Dataset:
    """Everything that the slices share; attributes of type 2 stand there empty where nothing is known."""
    series = Dataset()
    series.SpecificCharacterSet = "ISO_IR 192"
    series.ImageType = ["DERIVED", "SECONDARY"]
    series.SOPClassUID = MRImageStorage
    _set_patient(series, patient)
    series.StudyInstanceUID, series.SeriesInstanceUID, series.FrameOfReferenceUID = (
        generate_uid(prefix=None) for _ in range(3)
    )
    for keyword in ("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"):
        setattr(series, keyword, "")
    series.Modality = "MR"
    series.SeriesNumber = 1
    series.SeriesDescription = _words(description, 64)
    series.PatientPosition = ""
    series.PositionReferenceIndicator = ""
    series.Manufacturer = _words(acquisition.manufacturer or "", 64)
    series.ScanningSequence = "RM"  # research mode: what the sequence was is not known, and the field must not be empty
    series.SequenceVariant = "NONE"
    series.ScanOptions = ""
    two_dimensional = acquisition.encoded_shape[0] == 1
    series.MRAcquisitionType = "2D" if two_dimensional else "3D"
    series.RepetitionTime = _decimal(acquisition.repetition_time_ms, "repetition time")
    series.EchoTime = _decimal(acquisition.echo_time_ms, "echo time")
    series.EchoTrainLength = None
    for keyword, value, words in (
        ("InversionTime", acquisition.inversion_time_ms, "inversion time"),
        ("FlipAngle", acquisition.flip_angle_deg, "flip angle"),
        ("MagneticFieldStrength", acquisition.field_strength_t, "field strength"),
    ):
        if value is not None:
            setattr(series, keyword, _decimal(value, words))
    if acquisition.sequence_name:
        series.SequenceName = _words(acquisition.sequence_name, 16)
    if acquisition.protocol_name:
        series.ProtocolName = _words(acquisition.protocol_name, 64)
    thickness = acquisition.encoded_fov_mm[0] if two_dimensional else grid.spacing_mm[0]
    series.SliceThickness = _decimal(thickness, "slice thickness")
    series.SpacingBetweenSlices = _decimal(grid.spacing_mm[0], "slice spacing")
    series.PixelSpacing = [_decimal(step, "pixel spacing") for step in grid.spacing_mm[1:]]
    along_columns, along_rows = grid.directions[2], grid.directions[1]
    series.ImageOrientationPatient = [_decimal(cosine, "orientation") for cosine in (*along_columns, *along_rows)]
    return series


def _slice(
    series: Dataset, pixels: NDArray[np.uint16], grid: VoxelGrid, index: int, volume: int, number: int
) -> Dataset:
    dataset = Dataset(series)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPInstanceUID = generate_uid(prefix=None)
    dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.AcquisitionNumber = volume + 1
    dataset.InstanceNumber = number + 1
    position = grid.position_mm((index, 0, 0))
    dataset.ImagePositionPatient = [_decimal(coordinate, "position") for coordinate in position]
    # Along the normal of the slice, so that it grows with the position also where the slices run against the normal.
    normal = np.cross(grid.directions[2], grid.directions[1])
    dataset.SliceLocation = _decimal(float(normal @ np.asarray(position)), "slice location")
    dataset.set_pixel_data(pixels, "MONOCHROME2", 16, generate_instance_uid=False)
    return dataset


def _set_patient(series: Dataset, patient: Mapping[str, str]) -> None:
    unknown = sorted(set(patient) - _PATIENT_KEYS)
    if unknown:
        raise ValueError(f"patient has the keys {unknown}; expected some of {sorted(_PATIENT_KEYS)}.")
    birth_date = patient.get("birth_date", "").strip().replace("-", "")
    if not re.fullmatch(r"([0-9]{8})?", birth_date):
        raise InputError(f"The birth date is {patient['birth_date']!r}; expected YYYYMMDD or YYYY-MM-DD.")
    sex = patient.get("sex", "").strip().upper()
    if sex not in ("", "M", "F", "O"):
        raise InputError(f"The patient's sex is {patient['sex']!r}; DICOM knows M, F and O: leave it out.")
    series.PatientName = _words(patient.get("name", "").replace("=", " "), 64)
    series.PatientID = _words(patient.get("id", ""), 64)
    series.PatientBirthDate = birth_date
    series.PatientSex = sex


def _set_window(series: Dataset, volumes: NDArray[np.float64]) -> None:
    low, high = (float(bound) for bound in np.percentile(volumes, _WINDOW_PERCENTILES))
    if high <= low:  # almost everything has one value: show the whole range
        low, high = 0.0, float(volumes.max()) or 1.0
    series.WindowCenter = _decimal((low + high) / 2, "window centre")
    series.WindowWidth = _decimal(high - low, "window width")
    series.VOILUTFunction = "LINEAR_EXACT"


def _decimal(value: float | None, name: str) -> DSfloat | None:
    if value is None:
        return None
    if not np.isfinite(value):
        raise InputError(f"The {name} is {value}; DICOM needs a finite number: correct the header of the raw data.")
    return DSfloat(float(value), auto_format=True)


def _words(text: str, limit: int) -> str:
    # A backslash would separate two values, and control characters are not allowed.
    return re.sub(r"[\x00-\x1f\x7f-\x9f\\]+", " ", text).strip()[:limit]
