"""Sinograms of discs and ellipses as their chord lengths along the rays of a geometry, in millimetres."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from operators.beam_geometry import BeamGeometry


@dataclass(frozen=True)
class Ellipse:
    """An ellipse of constant attenuation, x to the right and y up, in mm; turned counter-clockwise by ``angle_rad``."""

    center_mm: tuple[float, float]
    semi_axes_mm: tuple[float, float]
    angle_rad: float = 0.0
    mu_per_mm: float = 1.0


def disc(radius_mm: float, center_mm: tuple[float, float] = (0.0, 0.0), mu_per_mm: float = 1.0) -> Ellipse:
    return Ellipse(center_mm, (radius_mm, radius_mm), 0.0, mu_per_mm)


def sinogram(geometry: BeamGeometry, ellipses: Sequence[Ellipse]) -> torch.Tensor:
    """Line integrals through the centre of every bin, float64 ``(view, detector)``, dimensionless.

    A ray p + r d meets the ellipse where |M (p + r d − c)| = 1, with M scaling its semi-axes to 1; between the roots
    lies the chord 2 √(b² − a e)/a, a = |M d|², b = M d · M (p − c), e = |M (p − c)|² − 1.
    """
    points, directions = geometry.rays()
    result = np.zeros(points.shape[:2])
    for ellipse in ellipses:
        cos, sin = math.cos(ellipse.angle_rad), math.sin(ellipse.angle_rad)
        scale = np.array([[cos, sin], [-sin, cos]]) / np.array(ellipse.semi_axes_mm)[:, None]
        start, along = (points - np.array(ellipse.center_mm)) @ scale.T, directions @ scale.T
        a, b, e = (along**2).sum(-1), (along * start).sum(-1), (start**2).sum(-1) - 1
        result += ellipse.mu_per_mm * 2 * np.sqrt(np.maximum(b**2 - a * e, 0)) / a
    return torch.from_numpy(result)


def image(geometry: BeamGeometry, shape: tuple[int, int], ellipses: Sequence[Ellipse], n_sub: int = 8) -> torch.Tensor:
    """The same ellipses on pixels, each the mean over ``n_sub``² points, float64 ``(y, x)``, in 1/mm."""
    y, x = ((np.arange(n * n_sub) + 0.5 - n * n_sub / 2) / n_sub * geometry.pixel_spacing_mm for n in shape)
    x, y = np.meshgrid(x, -y)
    result = np.zeros(x.shape)
    for ellipse in ellipses:
        cos, sin = math.cos(ellipse.angle_rad), math.sin(ellipse.angle_rad)
        dx, dy = x - ellipse.center_mm[0], y - ellipse.center_mm[1]
        u, v = (cos * dx + sin * dy) / ellipse.semi_axes_mm[0], (cos * dy - sin * dx) / ellipse.semi_axes_mm[1]
        result += ellipse.mu_per_mm * (u**2 + v**2 <= 1)
    return torch.from_numpy(result.reshape(shape[0], n_sub, shape[1], n_sub).mean(axis=(1, 3)))
