"""What each ray of a scan has to do with each pixel, one ray and one pixel at a time, from the definitions."""

import math

import numpy as np
import torch

from operators.beam_geometry import BeamGeometry, FanBeam

Point = tuple[float, float]


def projection_matrix(geometry: BeamGeometry, shape: tuple[int, int], model: str) -> torch.Tensor:
    """Matrix ``(view · detector, y · x)``, float64, in mm."""
    rows = []
    for t in geometry.angles_rad:
        for k in range(geometry.n_detectors):
            u = (k - (geometry.n_detectors - 1) / 2) * geometry.detector_spacing_mm + geometry.detector_offset_mm
            rows.append(_row(geometry, shape, model, *_ray(geometry, t, u)))
    return torch.from_numpy(np.stack(rows))


def _ray(geometry: BeamGeometry, t: float, u: float) -> tuple[Point, Point]:
    """Two points of the ray that ends at detector coordinate u, in mm."""
    across, along = np.array([math.cos(t), math.sin(t)]), np.array([math.sin(t), -math.cos(t)])
    if not isinstance(geometry, FanBeam):
        return tuple(u * across), tuple(u * across + along)
    source, distance = (
        geometry.source_to_center_mm * along,
        geometry.source_to_center_mm + geometry.center_to_detector_mm,
    )
    if geometry.curved:
        gamma = u / distance
        return tuple(source), tuple(source + distance * (math.sin(gamma) * across - math.cos(gamma) * along))
    return tuple(source), tuple(u * across - geometry.center_to_detector_mm * along)


def _row(geometry: BeamGeometry, shape: tuple[int, int], model: str, start: Point, end: Point) -> np.ndarray:
    spacing = geometry.pixel_spacing_mm
    direction = np.subtract(end, start) / math.dist(start, end)
    direction[np.abs(direction) < 1e-12] = 0
    result = np.zeros(shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            center = ((column - (shape[1] - 1) / 2) * spacing, ((shape[0] - 1) / 2 - row) * spacing)
            offset = np.subtract(start, center) / spacing
            weight = {"line": _chord, "joseph": _interpolation, "strip": _overlap}[model]
            result[row, column] = spacing * weight(offset, direction, geometry.detector_spacing_mm / spacing)
    return result.ravel()


def _chord(start: np.ndarray, direction: np.ndarray, width: float) -> float:
    """Length of a line in the unit square around the origin; half where it runs along an edge."""
    near, far, share = -math.inf, math.inf, 1.0
    for p, d in zip(start, direction, strict=True):
        if d == 0:
            share = 0.5 if abs(abs(p) - 0.5) < 1e-9 else float(abs(p) < 0.5)
        else:
            ends = sorted(((-0.5 - p) / d, (0.5 - p) / d))
            near, far = max(near, ends[0]), min(far, ends[1])
    return share * max(far - near, 0.0)


def _interpolation(start: np.ndarray, direction: np.ndarray, width: float) -> float:
    """Where the line crosses the middle of the pixel's row (or column, if it crosses more of those): 1 − distance."""
    axis = 1 if abs(direction[1]) > abs(direction[0]) else 0
    across = start[1 - axis] - start[axis] / direction[axis] * direction[1 - axis]
    return max(1 - abs(across), 0.0) / abs(direction[axis])


def _overlap(start: np.ndarray, direction: np.ndarray, width: float) -> float:
    """Area of the unit square within half the width of the line, over the width: clip the square twice."""
    normal = np.array([-direction[1], direction[0]])
    polygon = [np.array(p) for p in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))]
    for side in (1, -1):
        polygon = _clip(polygon, lambda p, side=side: width / 2 - side * float(normal @ (p - start)))
    x, y = np.array(polygon or [(0.0, 0.0)]).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 / width)


def _clip(polygon: list[np.ndarray], inside: object) -> list[np.ndarray]:
    result = []
    for i, here in enumerate(polygon):
        before = polygon[i - 1]
        a, b = inside(before), inside(here)
        if a * b < 0:
            result.append(before + (here - before) * a / (a - b))
        if b >= 0:
            result.append(here)
    return result
