"""Reading fan-beam scans of the Helsinki Tomography Challenge 2022: structures in MATLAB 5 files."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctrecon.io.assembly import check_array_memory, sinogram_from_array
from ctrecon.io.geometry_files import Setup, in_words
from ctrecon.io.options import ReadOptions
from ctrecon.sinogram import Sinogram
from operators.beam_geometry import FanBeam
from operators.decision import Decision
from operators.errors import InputError
from operators.io.array_file import StoredArray, Value
from operators.io.hdf5 import check_finite
from operators.io.matlab5 import Matlab5File, open_matlab5

_DEFAULTS = ReadOptions()
_IMAGE_PIXELS, _CHALLENGE_BINS = 512, 560
_MOST_VIEWS = 1_000_000


def looks_like_htc2022(file: Matlab5File) -> bool:
    """Whether an open MATLAB 5 file holds a structure that is called ``CtData…``."""
    return bool(_structures(file))


def read_htc2022(path: Path | str, options: ReadOptions = _DEFAULTS) -> Sinogram:
    """Read a fan-beam scan with a flat detector.

    The sinogram is taken as the file holds it: line integrals after the correction for dark and flat field that its
    authors made, and nothing beyond.

    Parameters
    ----------
    path
        A MATLAB 5 file with a structure such as ``CtDataLimited``: ``sinogram`` (view, detector), and ``parameters``
        with angles in degrees, distances and the size of the detector bins in mm.
    options
        Overrides of decisions; ``variable`` chooses the structure if there are several.

    Returns
    -------
    Sinogram

    Raises
    ------
    InputError
        If the file is damaged, or a field is missing or makes no sense.
    """
    path = Path(path)
    with open_matlab5(path) as file:
        stored, decisions = _choose(file, options, path)
        structure = file.read_struct(stored, limit_bytes=options.memory_limit_bytes)
    parameters = structure.get("parameters")
    array = structure.get("sinogram")
    if not isinstance(parameters, Mapping) or not isinstance(array, np.ndarray) or array.ndim != 2:
        raise InputError(f"{stored.name} in {path} has no matrix 'sinogram' or no structure 'parameters'.")
    source = f"{stored.name}.sinogram in {path}"
    check_array_memory(array.size, options, what=source)
    setup = _setup(parameters, array, path)
    decision = Decision("geometry", in_words(setup.geometry), setup.reason)
    return sinogram_from_array(array, setup, options, source=source, decisions=(*decisions, decision))


def _structures(file: Matlab5File) -> list[StoredArray]:
    return [array for array in file.arrays if array.kind == "struct" and array.name.lower().startswith("ctdata")]


def _choose(file: Matlab5File, options: ReadOptions, path: Path) -> tuple[StoredArray, tuple[Decision, ...]]:
    found = _structures(file)
    names = ", ".join(array.name for array in found)
    if options.variable is not None:
        found = [array for array in found if array.name == options.variable]
        if not found:
            raise InputError(f"{path} has no scan {options.variable!r}; it has {names}.")
        return found[0], ()
    if not found:
        raise InputError(f"{path} holds no structure CtData….")
    if len(found) == 1:
        return found[0], ()
    return found[0], (Decision("variable", found[0].name, f"The file holds {names}.", "--variable", warning=True),)


def _setup(parameters: Mapping[str, Value], array: NDArray[Any], path: Path) -> Setup:
    unit = parameters.get("distanceUnit", "mm")
    if unit != "mm":
        raise InputError(f"The distances in {path} are in {unit!r:.20}; expected 'mm'.")
    angles = parameters.get("angles")
    if not isinstance(angles, np.ndarray) or not 0 < angles.size <= _MOST_VIEWS or angles.dtype.kind not in "iuf":
        raise InputError(f"parameters.angles in {path} is missing or no list of angles.")
    check_finite(angles.reshape(-1), ["view"], what=f"parameters.angles in {path}")
    source_to_center = _number(parameters, "distanceSourceOrigin", path)
    source_to_detector = _number(parameters, "distanceSourceDetector", path)
    if source_to_detector < source_to_center:
        raise InputError(
            f"{path} has its detector {source_to_detector:g} mm from the source and the axis of rotation at "
            f"{source_to_center:g} mm; the axis must be the nearer of the two."
        )
    name = "pixelSizePost" if "pixelSizePost" in parameters else "pixelSize"
    spacing = _number(parameters, name, path)
    try:
        geometry = FanBeam(
            angles_rad=tuple(math.radians(float(angle)) for angle in angles.reshape(-1)),
            n_detectors=array.shape[1],
            detector_spacing_mm=spacing,
            pixel_spacing_mm=spacing * source_to_center / source_to_detector,
            source_to_center_mm=source_to_center,
            center_to_detector_mm=source_to_detector - source_to_center,
        )
    except ValueError as error:
        raise InputError(f"The geometry in {path} makes no sense: {error}") from error
    if array.shape[0] != geometry.n_views:
        raise InputError(f"{path} has {array.shape[0]} views, but {geometry.n_views} angles; it is damaged.")
    image_shape = (_IMAGE_PIXELS, _IMAGE_PIXELS) if array.shape[1] == _CHALLENGE_BINS else None
    return Setup(geometry, image_shape, reason="The file says it; images of the challenge have 512².")


def _number(parameters: Mapping[str, Value], name: str, path: Path) -> float:
    value = parameters.get(name)
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "iuf":
        number = float(value.reshape(-1)[0])
        if math.isfinite(number) and number > 0:
            return number
    raise InputError(f"parameters.{name} in {path} is missing or no positive number.")
