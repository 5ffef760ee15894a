"""What a person may decide for a reader."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from operators.beam_geometry import BeamGeometry

Quantity = Literal["counts", "line-integrals"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Overrides of the decisions that readers take; every default means "decide, and log it".

    Parameters
    ----------
    variable
        Name of the array to read, where a file holds several (``--variable``).
    geometry
        Where the rays run, for files that do not say it: a geometry, or the path of a JSON file with one
        (``--geometry``).
    preset
        Name of a geometry of ``ctrecon.presets`` (``--preset``).
    quantity
        What the numbers are: ``"counts"``, of photons or in any unit proportional to their number, or
        ``"line-integrals"`` (``--quantity``).
    incident_counts
        Counts without an object, I0, for files of counts that hold no flat field (``--incident-counts``).
    angle_unit
        Unit of the angles of files that do not say it (``--angle-unit``).
    detector_offset_mm
        Detector coordinate of the detector's centre, in mm (``--detector-offset-mm``).
    reverse_detector
        Whether the file numbers its detector bins against this project's direction (``--reverse-detector``).
    detector_row
        Row of a detector with several, from 1 (``--detector-row``).
    pixel_mm
        Size of the image pixels, in mm (``--pixel-mm``); for a parallel beam of unknown size that of the detector bins
        at the same time.
    image_shape
        Size of the image, ``(y, x)`` (``--image-shape 512,512``).
    mu_water_per_mm
        Attenuation of water, in 1/mm (``--mu-water``).
    mask_metal
        Give the rays of a metal trace that the file holds the weight 0 (``--mask-metal``).
    memory_limit_bytes
        Refuse files that would need more than this.
    """

    variable: str | None = None
    geometry: BeamGeometry | Path | str | None = None
    preset: str | None = None
    quantity: Quantity | None = None
    incident_counts: float | None = None
    angle_unit: Literal["degrees", "radians"] | None = None
    detector_offset_mm: float | None = None
    reverse_detector: bool | None = None
    detector_row: int | None = None
    pixel_mm: float | None = None
    image_shape: tuple[int, int] | None = None
    mu_water_per_mm: float | None = None
    mask_metal: bool = False
    memory_limit_bytes: int = 8 * 2**30
