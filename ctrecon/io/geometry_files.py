"""Geometries from JSON files and presets: everything that stands beside a sinogram which does not describe itself."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctrecon.io.options import ReadOptions
from ctrecon.presets import preset
from operators.beam_geometry import BeamGeometry, FanBeam, ParallelBeam, geometry_from_json
from operators.decision import Decision
from operators.errors import InputError

_MOST_BYTES = 2**26
_MOST_VIEWS = _MOST_BINS = 1_000_000
_LARGEST_MM = 1e6
_LARGEST_IMAGE = 2**14
_EXAMPLE = (
    '{"type": "FanBeam", "angles_rad": [0.0, 0.01], "n_detectors": 900, "detector_spacing_mm": 1.0, '
    '"pixel_spacing_mm": 0.8, "source_to_center_mm": 550.0, "center_to_detector_mm": 400.0, "curved": true}'
)


@dataclass(frozen=True, slots=True)
class Setup:
    """What is known about a scan beside its numbers.

    Parameters
    ----------
    geometry
        Where the rays run.
    image_shape
        Size of the image ``(y, x)``; ``None`` to take what the detector sees.
    mu_water_per_mm
        Attenuation of water, in 1/mm, where it is known.
    reverse_detector
        Whether the bins of the file run against the direction of ``BeamGeometry``.
    divided_by
        Number by which the line integrals of the file were divided.
    reason
        Where all this comes from, in one sentence.
    """

    geometry: BeamGeometry
    image_shape: tuple[int, int] | None = None
    mu_water_per_mm: float | None = None
    reverse_detector: bool = False
    divided_by: float = 1.0
    reason: str = "The file says it."


def setup_for(path: Path, options: ReadOptions) -> tuple[Setup, Decision]:
    """Find the geometry of a file that does not say it: as given, by preset, or in a JSON file of the same name.

    Parameters
    ----------
    path
        The file with the sinogram.
    options
        ``geometry`` and ``preset``; with neither, ``scan.json`` beside ``scan.npy`` (or ``scan.npy.json``) is read.

    Returns
    -------
    setup, decision

    Raises
    ------
    InputError
        If there is none, both are given, or it makes no sense.
    """
    if options.geometry is not None and options.preset is not None:
        raise InputError("Both a geometry and a preset are given; give one of them.")
    if options.preset is not None:
        found = preset(options.preset)
        setup = Setup(
            found.geometry,
            found.image_shape,
            found.mu_water_per_mm,
            found.reverse_detector,
            found.divided_by,
            f"The preset {options.preset!r} was asked for.",
        )
        return setup, _decision(setup)
    if isinstance(options.geometry, BeamGeometry):
        setup = Setup(options.geometry, reason="It was given.")
        return setup, _decision(setup)
    sidecar = Path(options.geometry) if options.geometry is not None else find_sidecar(path)
    if sidecar is None:
        raise InputError(
            f"{path} does not say where its rays run; give --preset, or --geometry with a JSON file like {_EXAMPLE}, "
            f"or put that file beside it as {path.with_suffix('.json').name}."
        )
    setup = read_setup(sidecar)
    return setup, _decision(setup)


def find_sidecar(path: Path) -> Path | None:
    """The JSON file that stands beside a file with a sinogram: ``scan.json`` or ``scan.npy.json`` for ``scan.npy``."""
    for candidate in (path.with_suffix(".json"), path.with_name(path.name + ".json")):
        if candidate != path and candidate.is_file():
            return candidate
    return None


def read_setup(path: Path) -> Setup:
    """Read a JSON file with a geometry.

    Parameters
    ----------
    path
        The file. It holds what ``BeamGeometry.to_json`` writes, with lengths in mm and angles in radians (or
        ``angles_deg`` instead of ``angles_rad``); beside these fields it may have ``image_shape`` and
        ``mu_water_per_mm``.

    Returns
    -------
    Setup

    Raises
    ------
    InputError
        If it is missing or too large, is no JSON, or describes no geometry that makes sense.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} has {path.stat().st_size} bytes; a geometry has at most {_MOST_BYTES}.")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"The geometry {path} does not exist; check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The geometry {path} cannot be read ({error}); expected a text file in JSON.") from error
    return parse_setup(text, str(path))


def parse_setup(text: str, source: str) -> Setup:
    """Understand a geometry in JSON without trusting it; see ``read_setup``.

    Parameters
    ----------
    text
        The JSON object.
    source
        Where it comes from, for messages.

    Raises
    ------
    InputError
        If it is no JSON, or describes no geometry that makes sense.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"The geometry in {source} is no JSON ({reason}); expected an object like {_EXAMPLE}."
        ) from error
    if not isinstance(fields, dict):
        raise InputError(f"The geometry in {source} is a {type(fields).__name__}; expected an object like {_EXAMPLE}.")
    image_shape = fields.pop("image_shape", None)
    mu_water = fields.pop("mu_water_per_mm", None)
    geometry = checked_geometry(_plain(fields, source), source)
    if image_shape is not None:
        image_shape = checked_image_shape(image_shape, source)
    if mu_water is not None:
        mu_water = _number(mu_water, "mu_water_per_mm", source)
    return Setup(geometry, image_shape, mu_water, reason=f"{source} says it.")


def checked_geometry(fields: dict[str, Any], source: str) -> BeamGeometry:
    """Build a geometry from fields of the right types, or say what makes no sense.

    Parameters
    ----------
    fields
        ``type`` and the fields of that class.
    source
        Where they come from, for messages.

    Raises
    ------
    InputError
        If the geometry makes no sense.
    """
    try:
        return geometry_from_json(json.dumps(fields))
    except ValueError as error:
        raise InputError(f"The geometry in {source} makes no sense: {error}") from error


def checked_image_shape(value: Any, source: str) -> tuple[int, int]:
    """An image shape of two sensible sizes, or an error.

    Raises
    ------
    InputError
        If it is something else.
    """
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(type(n) is int and 0 < n < 2**16 for n in value)
    ):
        raise InputError(
            f"The image_shape in {source} is {_short(value)}; expected two sizes [y, x], such as [512, 512]."
        )
    return value[0], value[1]


def seen_image_shape(geometry: BeamGeometry) -> tuple[int, int]:
    """Size of the square image that covers what the detector sees in every view.

    Raises
    ------
    InputError
        If the pixels are so small that no memory holds it.
    """
    n = max(1, math.ceil(seen_diameter_mm(geometry) / geometry.pixel_spacing_mm - 1e-6))
    if n > _LARGEST_IMAGE:
        raise InputError(
            f"Pixels of {geometry.pixel_spacing_mm:g} mm give an image of {n} × {n}, because the detector sees "
            f"{seen_diameter_mm(geometry):.4g} mm; give a larger --pixel-mm, or an --image-shape."
        )
    return n, n


def seen_diameter_mm(geometry: BeamGeometry) -> float:
    """Diameter of the circle around the isocentre that the wider side of the detector sees, in mm."""
    half_mm = geometry.n_detectors / 2 * geometry.detector_spacing_mm + abs(geometry.detector_offset_mm)
    if isinstance(geometry, FanBeam):
        angle = half_mm / geometry.source_to_detector_mm
        half_mm = geometry.source_to_center_mm * math.sin(
            min(angle, math.pi / 2) if geometry.curved else math.atan(angle)
        )
    return 2 * half_mm


def check_sense(geometry: BeamGeometry, image_shape: tuple[int, int], source: str) -> None:
    """Refuse a scan whose source would stand inside the image.

    Raises
    ------
    InputError
        If it does.
    """
    if not isinstance(geometry, FanBeam):
        return
    reach_mm = math.hypot(*image_shape) / 2 * geometry.pixel_spacing_mm
    if reach_mm >= geometry.source_to_center_mm:
        raise InputError(
            f"The image of {source}, {image_shape[0]} × {image_shape[1]} pixels of {geometry.pixel_spacing_mm:.4g} mm, "
            f"reaches {reach_mm:.4g} mm from the isocentre, and the source stands at "
            f"{geometry.source_to_center_mm:.4g} mm: it would be inside the object. Check source_to_center_mm, the "
            f"pixel size and the image shape."
        )


def with_overrides(geometry: BeamGeometry, options: ReadOptions) -> tuple[BeamGeometry, tuple[Decision, ...]]:
    """Apply the pixel size and the detector offset that were asked for.

    Raises
    ------
    InputError
        If they make no sense.
    """
    log = []
    try:
        if options.pixel_mm is not None:
            geometry = replace(geometry, pixel_spacing_mm=options.pixel_mm)
            log.append(Decision("pixel_size", f"{options.pixel_mm:g} mm", "It was asked for.", "--pixel-mm"))
        if options.detector_offset_mm is not None:
            geometry = replace(geometry, detector_offset_mm=options.detector_offset_mm)
            value = f"{options.detector_offset_mm:g} mm"
            log.append(Decision("detector_offset", value, "It was asked for.", "--detector-offset-mm"))
    except ValueError as error:
        raise InputError(f"The geometry that was asked for makes no sense: {error}") from error
    return geometry, tuple(log)


def _decision(setup: Setup) -> Decision:
    return Decision("geometry", in_words(setup.geometry), setup.reason, "--geometry or --preset")


def in_words(geometry: BeamGeometry) -> str:
    """What a geometry is, in one line for people."""
    bins = f"{geometry.n_views} views of {geometry.n_detectors} bins of {geometry.detector_spacing_mm:.4g} mm"
    if not isinstance(geometry, FanBeam):
        return f"parallel beam, {bins}"
    shape = "curved" if geometry.curved else "flat"
    distances = f"{geometry.source_to_center_mm:.5g} + {geometry.center_to_detector_mm:.5g} mm"
    return f"fan beam of {distances}, {shape} detector, {bins}"


def _plain(fields: dict[str, Any], source: str) -> dict[str, Any]:
    """The fields with their types and sizes checked: a wrong type must not be taken for a number of another."""
    kinds = {"ParallelBeam": ParallelBeam, "FanBeam": FanBeam}
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in kinds:
        raise InputError(
            f"The type of the geometry in {source} is {_short(kind)}; expected 'ParallelBeam' or 'FanBeam'."
        )
    plain: dict[str, Any] = {"type": kind}
    for name, value in fields.items():
        if name in ("angles_rad", "angles_deg"):
            plain["angles_rad"] = _angles(value, name, source)
        elif name == "n_detectors":
            if type(value) is not int or not 0 < value <= _MOST_BINS:
                raise InputError(f"n_detectors in {source} is {_short(value)}; expected a whole number from 1.")
            plain[name] = value
        elif name == "curved":
            if not isinstance(value, bool):
                raise InputError(f"curved in {source} is {_short(value)}; expected true or false.")
            plain[name] = value
        elif name != "type":
            number = _number(value, name, source)
            if abs(number) > _LARGEST_MM:
                raise InputError(f"{name} in {source} is {number:g}; expected a length below {_LARGEST_MM:g} mm.")
            plain[name] = number
    if "angles_rad" in fields and "angles_deg" in fields:
        raise InputError(f"The geometry in {source} has angles_rad and angles_deg; give one of them.")
    return plain


def _angles(value: Any, name: str, source: str) -> list[float]:
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_VIEWS:
        raise InputError(f"{name} in {source} is {_short(value)}; expected a list with one angle per view.")
    angles = [_number(angle, name, source) for angle in value]
    return [math.radians(angle) for angle in angles] if name == "angles_deg" else angles


def _number(value: Any, name: str, source: str) -> float:
    if type(value) in (int, float):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise InputError(f"{name} in {source} is {_short(value)}; expected a finite number.")


def _short(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if type(value) is int and abs(value) > 10**18:
        return "a huge number"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
