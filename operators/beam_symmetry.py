"""Symmetries that a scan shares with the pixel grid, so that one stored ray stands for up to eight."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from operators.beam_geometry import BeamGeometry, ParallelBeam

_SAME_ANGLE_RAD = 1e-6  # far below what a gantry holds, above what single precision in a file loses
_MIN_USE = 0.8  # of the symmetric copies; those that no ray needs are computed all the same
_COPYING = 3  # a pixel of a symmetric copy costs as much as so many entries of the matrix


@dataclass(frozen=True, slots=True)
class GridSymmetry:
    """A motion of the plane that maps the pixel grid onto itself: first a mirror x → −x, then quarter turns.

    Parameters
    ----------
    quarter_turns
        Number of counter-clockwise quarter turns.
    mirrored
        Whether the mirror comes before.
    """

    quarter_turns: int
    mirrored: bool

    def pulled_back(self, image: NDArray[np.int32]) -> NDArray[np.int32]:
        """The image, ``(y, x)``, whose integral along a ray is the given image's along the moved ray."""
        turned = np.rot90(image, -self.quarter_turns)
        return turned[:, ::-1] if self.mirrored else turned


@dataclass(frozen=True, slots=True)
class RayOrbits:
    """Few stored views and the symmetries that make all views of a scan from them.

    Parameters
    ----------
    symmetries
        The symmetries, the identity first.
    views
        Onto which view they move each stored view, ``(stored, symmetry)``; −1 where the copy is not needed.
    backwards
        Whether the detector of that view is then read from its end, ``(stored, symmetry)``.
    n_views, n_detectors
        Size of the scan.
    """

    symmetries: tuple[GridSymmetry, ...]
    views: NDArray[np.int64]
    backwards: NDArray[np.bool_]
    n_views: int
    n_detectors: int

    @property
    def stored_views(self) -> list[int]:
        """Indices of the stored views."""
        return [int(view) for view in self.views[:, 0]]

    @property
    def n_stored_rays(self) -> int:
        """Number of stored rays."""
        n_half = (self.n_detectors + 1) // 2
        return int(np.where(self.halved, n_half, self.n_detectors).sum())

    @property
    def use(self) -> float:
        """Which part of the symmetric copies of stored rays is needed."""
        return self.n_views * self.n_detectors / (self.n_stored_rays * len(self.symmetries))

    @property
    def halved(self) -> NDArray[np.bool_]:
        """Of which stored views a symmetry makes one half of the detector from the other, ``(stored,)``."""
        return ((self.views == self.views[:, :1]) & self.backwards).any(axis=1)

    def stored_rays(self) -> NDArray[np.int64]:
        """Which rays of the stored views are stored, ``(ray,)``: all, or the first half of each view."""
        is_in_first_half = np.arange(self.n_detectors) < (self.n_detectors + 1) // 2
        return np.flatnonzero(~self.halved[:, None] | is_in_first_half)

    def rays(self) -> NDArray[np.int32]:
        """Where the symmetries take each stored ray, ``(stored ray, symmetry)``.

        A ray is numbered view · n_detectors + bin; the number behind the last stands where the copy is not needed.
        Every ray of the scan occurs once.
        """
        stored, bins = np.divmod(self.stored_rays(), self.n_detectors)
        bins = bins[:, None]
        views, backwards = self.views[stored], self.backwards[stored]
        moved = views * self.n_detectors + np.where(backwards, self.n_detectors - 1 - bins, bins)
        # The middle bin of a halved view is its own mirror image, and would be made twice.
        unneeded = (views < 0) | (backwards & self.halved[stored, None] & (2 * bins == self.n_detectors - 1))
        return np.where(unneeded, self.n_views * self.n_detectors, moved).astype(np.int32)


def ray_orbits(geometry: BeamGeometry, shape: tuple[int, int], *, mirrors: bool = True) -> RayOrbits:
    """Find the grid symmetries by which few stored views generate a whole scan at the least cost.

    A full circle with a number of views divisible by four has four on a square grid, whatever its first angle and its
    detector offset, and eight where the detector is centred and the first angle is 0 or half a step. Parallel views
    with a centred detector have eight over half a circle already. Single views that a symmetry lacks do no harm. Of a
    scan with few views, fewer symmetries are used, since the symmetric copies of the image cost time as well.

    Parameters
    ----------
    geometry
        The scan.
    shape
        Rows and columns of the image.
    mirrors
        Whether mirrors may be used, too.

    Returns
    -------
    RayOrbits
        With the identity alone where the scan has no symmetry. Angles within 1e-6 rad count as equal.
    """
    useful = [orbits for group in _groups(shape, mirrors) if (orbits := _orbits(geometry, group)).use >= _MIN_USE]
    return min(useful, key=lambda orbits: orbits.n_stored_rays + _COPYING * len(orbits.symmetries) * min(shape))


def _groups(shape: tuple[int, int], mirrors: bool) -> Iterator[tuple[GridSymmetry, ...]]:
    """The groups of motions that keep a square or a rectangle of pixels."""
    square = shape[0] == shape[1]
    for turns in ((0,), (0, 2), (0, 1, 2, 3)) if square else ((0,), (0, 2)):
        rotations = tuple(GridSymmetry(k, False) for k in turns)
        yield rotations
        for first in range(4 // len(turns)) if mirrors else ():
            if square or first % 2 == 0:  # the others swap rows and columns
                yield rotations + tuple(GridSymmetry((first + k) % 4, True) for k in turns)


def _orbits(geometry: BeamGeometry, group: tuple[GridSymmetry, ...]) -> RayOrbits:
    """Go through the views, and store each that the stored ones do not generate."""
    moved = [_moved_views(geometry, symmetry) for symmetry in group]
    views, backwards = (np.stack(table, axis=-1) for table in zip(*moved, strict=True))
    views[:, 0] = np.arange(geometry.n_views)  # not another view at the same angle
    covered: set[int] = set()
    stored = []
    for view, (images, sides) in enumerate(zip(views.tolist(), backwards.tolist(), strict=True)):
        if view in covered:
            continue
        stored.append(view)
        made: set[tuple[int, bool]] = set()
        for k, image in enumerate(zip(images, sides, strict=True)):
            if image in made or image[0] in covered:
                views[view, k] = -1
            made.add(image)
        covered.update(images)
    needed = np.flatnonzero((views[stored] >= 0).any(axis=0))
    symmetries = tuple(group[k] for k in needed)
    return RayOrbits(
        symmetries, views[stored][:, needed], backwards[stored][:, needed], geometry.n_views, geometry.n_detectors
    )


def _moved_views(geometry: BeamGeometry, symmetry: GridSymmetry) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Onto which view a symmetry moves each view (−1: none), and whether with the detector read backwards."""
    angles = np.asarray(geometry.angles_rad)
    moved = (-angles if symmetry.mirrored else angles) + symmetry.quarter_turns * math.pi / 2
    reversible = abs(geometry.detector_offset_mm) <= 1e-9 * geometry.detector_spacing_mm
    backwards = np.full(len(angles), symmetry.mirrored)
    views = _views_at(angles, moved)
    if isinstance(geometry, ParallelBeam):  # the same lines are seen from behind, with the detector the other way round
        views_behind = _views_at(angles, moved + math.pi)
        backwards = np.where(views < 0, ~backwards, backwards)
        views = np.where(views < 0, views_behind, views)
    return np.where(backwards & ~np.bool_(reversible), -1, views), backwards


def _views_at(angles_rad: NDArray[np.float64], wanted_rad: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the view at each wanted angle, −1 where there is none."""
    turned, wanted = np.mod(angles_rad, 2 * math.pi), np.mod(wanted_rad, 2 * math.pi)
    order = np.argsort(turned, kind="stable")
    above = np.searchsorted(turned[order], wanted)
    neighbours = order[np.stack((above - 1, above % len(order)))]  # −1 is the last, a turn earlier
    distances = np.abs(np.mod(turned[neighbours] - wanted + math.pi, 2 * math.pi) - math.pi)
    nearest = np.where(distances[0] <= distances[1], neighbours[0], neighbours[1])
    return np.where(distances.min(axis=0) <= _SAME_ANGLE_RAD, nearest, -1)
