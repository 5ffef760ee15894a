"""Sinogram files of this project: HDF5 with everything that a reconstruction needs, exact, without identifiers.

==========================  ========================================================================================
dataset                     content
==========================  ========================================================================================
``sinogram``                float32 ``(slice, view, detector)``, line integrals −log(I/I0)
``geometry``                text, JSON as ``BeamGeometry.to_json`` writes it: mm and radians
``image_shape``             two whole numbers ``(y, x)``
``mu_water_per_mm``         number, attenuation of water in 1/mm
``mu_water_known``          1 if the scan itself says it, 0 if it is the usual value
``slice_spacing_mm``        number
``center_mm``               three numbers, LPS position of the isocentre in the first slice
``directions``              3 × 3 numbers, unit vectors in LPS along increasing slice, row and column
``weights``                 optional, float32 like ``sinogram``, proportional to the photons counted
``patient``                 optional, text, JSON object of identifiers; written only on request
==========================  ========================================================================================

Only ``sinogram`` and ``geometry`` are needed to be read.
"""

import json
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from ctrecon.hounsfield import MU_WATER_PER_MM
from ctrecon.io.datasets import read_numbers
from ctrecon.io.geometry_files import (
    check_sense,
    checked_image_shape,
    in_words,
    parse_setup,
    seen_image_shape,
    with_overrides,
)
from ctrecon.io.options import ReadOptions
from ctrecon.sinogram import Sinogram
from operators.decision import Decision
from operators.errors import InputError
from operators.io.files import replacing
from operators.io.hdf5 import check_finite, check_type, find_dataset, hdf5_errors, open_hdf5, read_text
from operators.voxel_grid import IDENTITY_DIRECTIONS, Triple

_DEFAULTS = ReadOptions()
_MOST_IDENTIFIERS = 100


def looks_like_sinogram_file(file: h5py.File) -> bool:
    """Whether an open HDF5 file has the datasets ``sinogram`` and ``geometry``."""
    return find_dataset(file, "sinogram") is not None and find_dataset(file, "geometry") is not None


def read_sinogram(path: Path | str, options: ReadOptions = _DEFAULTS) -> Sinogram:
    """Read what ``write_sinogram`` wrote, as it was.

    Parameters
    ----------
    path
        The HDF5 file; the module says what it holds.
    options
        ``pixel_mm``, ``image_shape``, ``detector_offset_mm`` and ``mu_water_per_mm`` override the file.

    Returns
    -------
    Sinogram

    Raises
    ------
    InputError
        If the file is damaged, or its parts do not agree.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        text = _text(file, "geometry", path)
        data = _volume(file, "sinogram", options, path)
        weights = _volume(file, "weights", options, path) if find_dataset(file, "weights") is not None else None
        image_shape = _numbers(file, "image_shape", (2,), path)
        mu_water = _numbers(file, "mu_water_per_mm", (), path)
        known = _numbers(file, "mu_water_known", (), path)
        slice_spacing = _numbers(file, "slice_spacing_mm", (), path)
        center = _numbers(file, "center_mm", (3,), path)
        directions = _numbers(file, "directions", (3, 3), path)
        patient = _patient(file, path)
    geometry, overrides = with_overrides(parse_setup(text, str(path)).geometry, options)
    shape = options.image_shape or _whole(image_shape, path) or seen_image_shape(geometry)
    shape = checked_image_shape(shape, str(path))
    check_sense(geometry, shape, str(path))
    asked = options.mu_water_per_mm
    try:
        return Sinogram(
            data=data,
            geometry=geometry,
            image_shape=shape,
            mu_water_per_mm=asked if asked is not None else _scalar(mu_water, MU_WATER_PER_MM),
            mu_water_known=asked is not None or bool(_scalar(known, 0.0)),
            weights=weights,
            slice_spacing_mm=_scalar(slice_spacing, 1.0),
            center_mm=(0.0, 0.0, 0.0) if center is None else _triple(center),
            directions=IDENTITY_DIRECTIONS if directions is None else _orthonormal(directions, path),
            patient=patient,
            decisions=(Decision("geometry", in_words(geometry), "The file says it."), *overrides),
            counts=(("slices", len(data)), ("views", geometry.n_views), ("detector bins", geometry.n_detectors)),
        )
    except ValueError as error:
        raise InputError(f"{path} contradicts itself: {error}") from error


def write_sinogram(path: Path | str, sinogram: Sinogram, *, identifiers: bool = False, overwrite: bool = False) -> None:
    """Write a sinogram as an HDF5 file that ``read_sinogram`` reads back as it was; the module says what it holds.

    Decisions and counts are not written.

    Parameters
    ----------
    path
        The HDF5 file.
    sinogram
        The scan.
    identifiers
        Write the identifiers of the person too.
    overwrite
        Replace an existing file.

    Raises
    ------
    InputError
        If the path cannot be written, or the line integrals are not finite.
    """
    content = _file_image(sinogram, identifiers=identifiers)
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(content)


def _file_image(sinogram: Sinogram, *, identifiers: bool) -> bytes:
    """The HDF5 file as bytes: written from memory, a full disk is an ordinary error and not HDF5's."""
    with h5py.File("sinogram.h5", "w", driver="core", backing_store=False) as file:
        file["sinogram"] = _finite(sinogram.data, "The sinogram")
        if sinogram.weights is not None:
            file["weights"] = _finite(sinogram.weights, "The weights")
        file["geometry"] = np.bytes_(sinogram.geometry.to_json())
        file["image_shape"] = np.array(sinogram.image_shape, dtype=np.int64)
        file["mu_water_per_mm"] = np.float64(sinogram.mu_water_per_mm)
        file["mu_water_known"] = np.uint8(sinogram.mu_water_known)
        file["slice_spacing_mm"] = np.float64(sinogram.slice_spacing_mm)
        file["center_mm"] = np.array(sinogram.center_mm, dtype=np.float64)
        file["directions"] = np.array(sinogram.directions, dtype=np.float64)
        if identifiers and sinogram.patient:
            file["patient"] = np.bytes_(json.dumps(dict(sinogram.patient)))
        file.flush()
        return bytes(file.id.get_file_image())


def _finite(values: torch.Tensor, what: str) -> NDArray[np.float32]:
    array = values.detach().cpu().to(torch.float32).numpy()
    check_finite(array, ["slice", "view", "detector bin"], what=what.lower())
    return np.asarray(array, dtype=np.float32)


def _text(file: h5py.File, name: str, path: Path) -> str:
    dataset = find_dataset(file, name)
    if dataset is None:
        raise InputError(f"{path} is damaged: its {name} cannot be opened; copy it again.")
    return read_text(dataset, path, limit_bytes=2**26).rstrip(b"\0").decode("utf-8", "replace")


def _volume(file: h5py.File, name: str, options: ReadOptions, path: Path) -> torch.Tensor:
    array = read_numbers(file, name, ("slice", "view", "detector bin"), options, path)
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(single).all():
        raise InputError(f"{name} in {path} has values beyond the range of single precision (3e38).")
    return torch.from_numpy(single)


def _numbers(file: h5py.File, name: str, shape: tuple[int, ...], path: Path) -> NDArray[np.float64] | None:
    dataset = find_dataset(file, name)
    if dataset is None:
        return None
    check_type(dataset, path)
    if dataset.shape != shape or dataset.dtype.kind not in "iuf":
        raise InputError(f"{name} in {path} is {dataset.dtype} of shape {dataset.shape}; expected numbers, {shape}.")
    with hdf5_errors(path, f"reading {name}"):
        values = np.asarray(dataset[()], dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{name} in {path} is not finite; expected numbers.")
    return values


def _patient(file: h5py.File, path: Path) -> tuple[tuple[str, str], ...]:
    if find_dataset(file, "patient") is None:
        return ()
    try:
        fields = json.loads(_text(file, "patient", path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"The patient in {path} is no JSON object; remove it from the file.") from error
    if not isinstance(fields, dict) or len(fields) > _MOST_IDENTIFIERS:
        raise InputError(f"The patient in {path} is no JSON object of identifiers; remove it from the file.")
    return tuple((str(name), value) for name, value in fields.items() if isinstance(value, str))


def _whole(shape: NDArray[np.float64] | None, path: Path) -> tuple[int, int] | None:
    if shape is None:
        return None
    if (shape != np.round(shape)).any() or (np.abs(shape) > 2**31).any():
        raise InputError(f"image_shape in {path} is {shape.tolist()}; expected two whole numbers (y, x).")
    return int(shape[0]), int(shape[1])


def _scalar(value: NDArray[np.float64] | None, default: float) -> float:
    return default if value is None else float(value)


def _triple(values: NDArray[np.float64]) -> Triple:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _orthonormal(directions: NDArray[np.float64], path: Path) -> tuple[Triple, Triple, Triple]:
    if not np.allclose(directions @ directions.T, np.eye(3), atol=1e-3):
        raise InputError(f"directions in {path} are no three unit vectors at right angles.")
    first, second, third = (_triple(row) for row in directions)
    return first, second, third
