"""DICOM: what image series of every modality share — place, identifiers, person, text and a folder written as one."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from operators.errors import InputError
from operators.io.files import check_writable, replacing
from operators.voxel_grid import VoxelGrid

_LARGEST_SIZE = 2**16 - 1
_PATIENT_KEYS = {"name", "id", "birth_date", "sex"}
_UNKNOWN = (
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
    "PatientPosition",
    "PositionReferenceIndicator",
    "Manufacturer",
    "ScanOptions",
)


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


def check_volumes(image: torch.Tensor, grid: VoxelGrid) -> torch.Tensor:
    """Return an image as finite volumes that a series can hold, or say why it cannot be written.

    Parameters
    ----------
    image
        Complex or real ``(*batch, z, y, x)``, any unit.
    grid
        Where the voxels lie; its shape is ``(z, y, x)``.

    Returns
    -------
    torch.Tensor
        The image without its history, ``(volume, z, y, x)``: the last batch axis runs fastest.

    Raises
    ------
    InputError
        If the image is not finite or too large for the format.
    ValueError
        If the shapes of image and grid differ.
    """
    if image.ndim < 3 or tuple(image.shape[-3:]) != grid.shape or image.numel() == 0:
        raise ValueError(f"image has shape {tuple(image.shape)}; expected (*batch, {', '.join(map(str, grid.shape))}).")
    if max(grid.shape[1:]) > _LARGEST_SIZE:
        raise InputError(f"The slices have {grid.shape[1:]} pixels; DICOM holds at most {_LARGEST_SIZE} per side.")
    n_bad = int((~image.isfinite()).sum())
    if n_bad:
        raise InputError(f"{n_bad} of {image.numel()} voxels are not finite; nothing was written.")
    return image.detach().reshape(-1, *grid.shape)


def new_series(
    grid: VoxelGrid,
    *,
    storage: str,
    modality: str,
    image_type: tuple[str, ...],
    description: str,
    derivation: str,
    patient: Mapping[str, str] | None = None,
) -> Dataset:
    """Begin a series: everything that its slices share in every modality.

    Identifiers (UIDs) are new, so no two files of two calls share one. What the standard wants but nobody knows (type
    2) stands there empty, as do dates and whatever else could identify a person. The slices are as thick as they are
    apart: a modality that knows better says so, as it adds everything else of its own.

    Parameters
    ----------
    grid
        Where the voxels lie.
    storage
        UID of the storage class.
    modality
        Its two letters.
    image_type
        Values of the image type, such as ``("DERIVED", "SECONDARY")``.
    description
        Description of the series; its first 64 characters are kept.
    derivation
        How the image came about; its first 1024 characters are kept.
    patient
        What is known of the person and is to be written: ``name``, ``id``, ``birth_date`` (YYYYMMDD or YYYY-MM-DD),
        ``sex`` (M, F or O). Nothing by default.

    Returns
    -------
    pydicom.dataset.Dataset
        The attributes, for ``write_series``.

    Raises
    ------
    InputError
        If a value of the patient cannot be expressed in DICOM.
    ValueError
        If ``patient`` has other keys.
    """
    series = Dataset()
    series.SpecificCharacterSet = "ISO_IR 192"
    series.ImageType = list(image_type)
    series.SOPClassUID = storage
    _set_patient(series, patient or {})
    series.StudyInstanceUID, series.SeriesInstanceUID, series.FrameOfReferenceUID = (
        generate_uid(prefix=None) for _ in range(3)
    )
    for keyword in _UNKNOWN:
        setattr(series, keyword, "")
    series.Modality = modality
    series.SeriesNumber = 1
    series.SeriesDescription = plain_text(description, 64)
    series.DerivationDescription = plain_text(derivation, 1024)
    series.SliceThickness = decimal(grid.spacing_mm[0], "slice thickness")
    series.SpacingBetweenSlices = decimal(grid.spacing_mm[0], "slice spacing")
    series.PixelSpacing = [decimal(step, "pixel spacing") for step in grid.spacing_mm[1:]]
    along_columns, along_rows = grid.directions[2], grid.directions[1]
    series.ImageOrientationPatient = [decimal(cosine, "orientation") for cosine in (*along_columns, *along_rows)]
    return series


def write_series(
    folder: Path | str,
    series: Dataset,
    slices: Iterable[NDArray[np.uint16]],
    grid: VoxelGrid,
    *,
    n_volumes: int = 1,
    n_bits: int = 16,
    overwrite: bool = False,
) -> list[Path]:
    """Write a series as a folder of uncompressed files, one per slice; all of them, or nothing.

    Parameters
    ----------
    folder
        Where the series is to stand; its files are ``slice_0001.dcm`` and so on, in the order of the slices.
    series
        What the slices share, from ``new_series``.
    slices
        Stored values, ``(y, x)`` each, slice after slice and volume after volume.
    grid
        Where the voxels lie; every volume has ``grid.shape[0]`` slices.
    n_volumes
        Number of volumes, which get the acquisition numbers from 1.
    n_bits
        Number of the bits that the stored values use.
    overwrite
        Allow ``folder`` to exist; it is replaced as a whole, and must hold nothing but ``.dcm`` files.

    Returns
    -------
    list of Path
        The files, in the order of the slices.

    Raises
    ------
    InputError
        If the folder cannot be written or holds other files.
    ValueError
        If there are more or fewer slices than announced.
    """
    folder = Path(folder)
    check_dicom_folder(folder, overwrite=overwrite)
    names = _names(n_volumes * grid.shape[0])
    with replacing(folder, overwrite=overwrite) as temporary:
        temporary.mkdir()
        for number, (name, stored) in enumerate(zip(names, slices, strict=True)):
            dataset = _slice(series, grid, number)
            dataset.set_pixel_data(stored, "MONOCHROME2", n_bits, generate_instance_uid=False)
            dataset.save_as(temporary / name, enforce_file_format=True)
    return [folder / name for name in names]


def decimal(value: float | None, name: str) -> DSfloat | None:
    """Return a number as a decimal string of at most 16 characters; ``None`` stays, for an empty attribute.

    Parameters
    ----------
    value
        The number.
    name
        What it is, for the message.

    Raises
    ------
    InputError
        If the number is not finite.
    """
    if value is None:
        return None
    if not np.isfinite(value):
        raise InputError(f"The {name} is {value}; DICOM needs a finite number: correct the header of the raw data.")
    return DSfloat(float(value), auto_format=True)


def plain_text(text: str, limit: int) -> str:
    """Return text as one value that an attribute of at most ``limit`` characters can hold.

    Examples
    --------
    >>> plain_text(" total variation", 10)
    'total vari'
    """
    # A backslash would separate two values, and control characters are not allowed.
    return re.sub(r"[\x00-\x1f\x7f-\x9f\\]+", " ", text).strip()[:limit]


def _names(n_files: int) -> list[str]:
    width = max(4, len(str(n_files)))
    return [f"slice_{number:0{width}d}.dcm" for number in range(1, n_files + 1)]


def _slice(series: Dataset, grid: VoxelGrid, number: int) -> Dataset:
    volume, index = divmod(number, grid.shape[0])
    dataset = Dataset(series)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPInstanceUID = generate_uid(prefix=None)
    dataset.file_meta.MediaStorageSOPClassUID = series.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.AcquisitionNumber = volume + 1
    dataset.InstanceNumber = number + 1
    position = grid.position_mm((index, 0, 0))
    dataset.ImagePositionPatient = [decimal(coordinate, "position") for coordinate in position]
    # Along the normal of the slice, so that it grows with the position also where the slices run against the normal.
    normal = np.cross(grid.directions[2], grid.directions[1])
    dataset.SliceLocation = decimal(float(normal @ np.asarray(position)), "slice location")
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
    series.PatientName = plain_text(patient.get("name", "").replace("=", " "), 64)
    series.PatientID = plain_text(patient.get("id", ""), 64)
    series.PatientBirthDate = birth_date
    series.PatientSex = sex
