"""Where the rays of a tomographic scan run: parallel and fan beams in the plane, in millimetres and radians."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BeamGeometry(ABC):
    """What parallel and fan beams share: views, a line of detector bins, and the pixels of the image.

    The image lies in the plane with the isocentre at its centre, x along increasing column and y *up*: row 0 is at the
    top, +y. View angles t turn counter-clockwise, and the detector coordinate u grows along (cos t, sin t). Bin k is
    centred at u = (k − (n_detectors − 1)/2) · detector_spacing_mm + detector_offset_mm. ``repr`` is code that builds
    the geometry again.

    Parameters
    ----------
    angles_rad
        Angle of each view, in radians, at least one.
    n_detectors
        Number of detector bins.
    detector_spacing_mm
        Distance between the centres of neighbouring bins, in mm.
    pixel_spacing_mm
        Size of the square image pixels, in mm.
    detector_offset_mm
        Detector coordinate of the detector's centre, in mm; a quarter of the spacing for a quarter offset.

    Raises
    ------
    ValueError
        If the geometry makes no sense; the message says what to pass instead.
    """

    angles_rad: tuple[float, ...]
    n_detectors: int
    detector_spacing_mm: float
    pixel_spacing_mm: float
    detector_offset_mm: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "angles_rad", tuple(float(angle) for angle in self.angles_rad))
        if not self.angles_rad or not all(map(math.isfinite, self.angles_rad)):
            raise ValueError("angles_rad is empty or not finite; give one angle per view, in radians.")
        if max(self.angles_rad) - min(self.angles_rad) > 8 * math.pi:
            raise ValueError(
                f"angles_rad spans {max(self.angles_rad) - min(self.angles_rad):g} radians, more than four turns; "
                "these look like degrees, convert them with math.radians."
            )
        if self.n_detectors < 1:
            raise ValueError(f"n_detectors is {self.n_detectors}; expected at least 1.")
        for name in ("detector_spacing_mm", "pixel_spacing_mm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; expected a positive length in mm.")
        if not math.isfinite(self.detector_offset_mm):
            raise ValueError(f"detector_offset_mm is {self.detector_offset_mm}; expected a length in mm.")

    @property
    def n_views(self) -> int:
        """Number of views."""
        return len(self.angles_rad)

    @property
    def detector_mm(self) -> Array:
        """Detector coordinate u of each bin's centre, ``(detector,)``, in mm (along the arc where it is curved)."""
        index = np.arange(self.n_detectors, dtype=np.float64) - (self.n_detectors - 1) / 2
        return np.asarray(index * self.detector_spacing_mm + self.detector_offset_mm, dtype=np.float64)

    def __getitem__(self, views: slice | Sequence[int]) -> Self:
        """The geometry of a subset of the views."""
        chosen = self.angles_rad[views] if isinstance(views, slice) else tuple(self.angles_rad[v] for v in views)
        return replace(self, angles_rad=chosen)

    @abstractmethod
    def rays(self) -> tuple[Array, Array]:
        """Rays through the centre of every bin.

        Returns
        -------
        points, directions
            A point on each ray, in mm, and its unit direction away from the source, both ``(view, detector, 2)`` with
            last axis (x, y).
        """

    def to_json(self) -> str:
        """Serialise; `geometry_from_json` reads it."""
        return json.dumps({"type": type(self).__name__, **asdict(self)})


@dataclass(frozen=True, slots=True)
class ParallelBeam(BeamGeometry):
    """Parallel rays along (sin t, −cos t); see `BeamGeometry` for the parameters and conventions.

    Examples
    --------
    >>> geometry = ParallelBeam((0.0,), n_detectors=3, detector_spacing_mm=2.0, pixel_spacing_mm=1.0)
    >>> geometry.detector_mm
    array([-2.,  0.,  2.])
    """

    def rays(self) -> tuple[Array, Array]:
        """Rays through the centre of every bin, ``(view, detector, 2)``; see `BeamGeometry.rays`."""
        along, across = _axes(self.angles_rad)
        points = across[:, None] * self.detector_mm[:, None]
        return points, np.broadcast_to(along[:, None], points.shape).copy()


@dataclass(frozen=True, slots=True)
class FanBeam(BeamGeometry):
    """Rays from a point source to a flat or curved detector; see `BeamGeometry` for the other parameters.

    The source of view t stands at source_to_center_mm · (sin t, −cos t); its central ray meets the isocentre.

    Parameters
    ----------
    source_to_center_mm
        Distance from source to isocentre, in mm.
    center_to_detector_mm
        Distance from isocentre to detector, in mm; spacing and offset are those *at the detector*.
    curved
        Whether the detector is an arc around the source with equal angles between bins (third generation CT); u is
        then the length along the arc.
    """

    source_to_center_mm: float = math.nan
    center_to_detector_mm: float = math.nan
    curved: bool = False

    def __post_init__(self) -> None:
        BeamGeometry.__post_init__(self)
        if not (math.isfinite(self.source_to_center_mm) and self.source_to_center_mm > 0):
            raise ValueError(f"source_to_center_mm is {self.source_to_center_mm}; expected a positive length in mm.")
        if not (math.isfinite(self.center_to_detector_mm) and self.center_to_detector_mm >= 0):
            raise ValueError(f"center_to_detector_mm is {self.center_to_detector_mm}; expected a length in mm.")
        if np.abs(self.fan_angles_rad).max() >= math.pi / 2:
            raise ValueError(
                f"The detector spans fan angles up to {math.degrees(np.abs(self.fan_angles_rad).max()):.0f} degrees; "
                "every bin must lie in front of the source, check the distances and the spacing."
            )

    @property
    def source_to_detector_mm(self) -> float:
        """Distance from source to detector, in mm."""
        return self.source_to_center_mm + self.center_to_detector_mm

    @property
    def fan_angles_rad(self) -> Array:
        """Angle γ between each bin's ray and the central ray, ``(detector,)``, in radians."""
        ratio = self.detector_mm / self.source_to_detector_mm
        return ratio if self.curved else np.arctan(ratio)

    def rays(self) -> tuple[Array, Array]:
        """Rays through the centre of every bin, ``(view, detector, 2)``; see `BeamGeometry.rays`."""
        along, across = _axes(self.angles_rad)
        gamma = self.fan_angles_rad[:, None]
        directions = np.sin(gamma) * across[:, None] - np.cos(gamma) * along[:, None]
        points = np.broadcast_to(self.source_to_center_mm * along[:, None], directions.shape).copy()
        return points, directions


def geometry_from_json(text: str) -> BeamGeometry:
    """Build a geometry from what ``to_json`` wrote.

    Parameters
    ----------
    text
        A JSON object with ``type`` (``"ParallelBeam"`` or ``"FanBeam"``) and the fields of that class.

    Raises
    ------
    ValueError
        If the text is no such object, a field is missing or unknown, or the geometry makes no sense.
    """
    classes: dict[str, type[BeamGeometry]] = {"ParallelBeam": ParallelBeam, "FanBeam": FanBeam}
    try:
        fields: dict[str, Any] = dict(json.loads(text))
        return classes[fields.pop("type")](**fields)
    except (TypeError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"The geometry cannot be read ({error}); expected a JSON object with 'type' ParallelBeam or FanBeam and "
            "the fields of that class, lengths in mm and angles in radians."
        ) from error


def _axes(angles_rad: Sequence[float]) -> tuple[Array, Array]:
    """Unit vectors along the central rays and along the detector, each ``(view, 2)``."""
    t = np.asarray(angles_rad)
    return np.stack((np.sin(t), -np.cos(t)), axis=-1), np.stack((np.cos(t), np.sin(t)), axis=-1)
