"""DICOM: an image as a series of MR slices that viewers open, at its place in the patient."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from mrirecon.acquisition import Acquisition
from operators.io.dicom import check_dicom_folder, check_volumes, decimal, new_series, plain_text, write_series
from operators.voxel_grid import VoxelGrid

_LARGEST_PIXEL = 2**16 - 1
_WINDOW_PERCENTILES = (1.0, 99.5)
_UNKNOWN_GEOMETRY = "The raw data hold no position or orientation; those in this file are not the patient's."


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
    check_dicom_folder(folder, overwrite=overwrite)
    volumes = check_volumes(image, grid).abs().double().cpu().numpy()
    series = new_series(
        grid,
        storage=MRImageStorage,
        modality="MR",
        image_type=("DERIVED", "SECONDARY"),
        description=description,
        derivation=f"{method}; weights {weights_hash}" if weights_hash else method,
        patient=patient,
    )
    _set_protocol(series, acquisition)
    series.ImageComments = "" if geometry_known else _UNKNOWN_GEOMETRY
    slope = decimal(float(volumes.max()) / _LARGEST_PIXEL or 1.0, "rescale slope")
    series.RescaleSlope, series.RescaleIntercept, series.RescaleType = slope, "0", "US"
    _set_window(series, volumes)
    step = float(series.RescaleSlope)  # as it was rounded to the characters of a decimal string
    slices = volumes.reshape(-1, *volumes.shape[-2:])
    stored = (np.rint(values / step).clip(0, _LARGEST_PIXEL).astype(np.uint16) for values in slices)
    return write_series(folder, series, stored, grid, n_volumes=len(volumes), overwrite=overwrite)


def _set_protocol(series: Dataset, acquisition: Acquisition) -> None:
    series.Manufacturer = plain_text(acquisition.manufacturer or "", 64)
    series.ScanningSequence = "RM"  # research mode: what the sequence was is not known, and the field must not be empty
    series.SequenceVariant = "NONE"
    two_dimensional = acquisition.encoded_shape[0] == 1
    series.MRAcquisitionType = "2D" if two_dimensional else "3D"
    series.RepetitionTime = decimal(acquisition.repetition_time_ms, "repetition time")
    series.EchoTime = decimal(acquisition.echo_time_ms, "echo time")
    series.EchoTrainLength = None
    for keyword, value, words in (
        ("InversionTime", acquisition.inversion_time_ms, "inversion time"),
        ("FlipAngle", acquisition.flip_angle_deg, "flip angle"),
        ("MagneticFieldStrength", acquisition.field_strength_t, "field strength"),
    ):
        if value is not None:
            setattr(series, keyword, decimal(value, words))
    if acquisition.sequence_name:
        series.SequenceName = plain_text(acquisition.sequence_name, 16)
    if acquisition.protocol_name:
        series.ProtocolName = plain_text(acquisition.protocol_name, 64)
    if two_dimensional:
        series.SliceThickness = decimal(acquisition.encoded_fov_mm[0], "slice thickness")


def _set_window(series: Dataset, volumes: NDArray[np.float64]) -> None:
    low, high = (float(bound) for bound in np.percentile(volumes, _WINDOW_PERCENTILES))
    if high <= low:  # almost everything has one value: show the whole range
        low, high = 0.0, float(volumes.max()) or 1.0
    series.WindowCenter = decimal((low + high) / 2, "window centre")
    series.WindowWidth = decimal(high - low, "window width")
    series.VOILUTFunction = "LINEAR_EXACT"
