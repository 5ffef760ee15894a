"""Where the voxels of an image lie in the patient; the one place for orientation and affine conventions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Triple = tuple[float, float, float]
IDENTITY_DIRECTIONS: tuple[Triple, Triple, Triple] = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))


@dataclass(frozen=True, slots=True)
class VoxelGrid:
    """A regular grid of voxels in patient coordinates: LPS (x to the left, y to posterior, z to superior), in mm.

    Everything is in the axis order of images, ``(z, y, x)`` = (slice, row, column): ``directions[2]`` points along
    increasing column index, ``directions[1]`` along increasing row index, ``directions[0]`` from slice to slice.

    Parameters
    ----------
    shape
        Number of slices, rows and columns.
    spacing_mm
        Distance between the centres of neighbouring slices, rows and columns, in mm.
    directions
        Unit vectors in LPS along increasing slice, row and column index. Headers round them: vectors that are
        orthonormal to 1e-3 are replaced by the nearest orthonormal ones, so that every way of storing the grid
        (matrix, quaternion, cosines) says the same.
    origin_mm
        Centre of voxel (0, 0, 0) in LPS, in mm.

    Raises
    ------
    ValueError
        If a size or spacing is not positive, the origin is not finite, or the directions are not orthonormal
        (tolerance 1e-3).
    """

    shape: tuple[int, int, int]
    spacing_mm: Triple
    directions: tuple[Triple, Triple, Triple] = IDENTITY_DIRECTIONS
    origin_mm: Triple = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or any(n < 1 for n in self.shape):
            raise ValueError(
                f"Grid shape is {self.shape}; expected three positive numbers of slices, rows and columns."
            )
        if len(self.spacing_mm) != 3 or not all(np.isfinite(d) and d > 0 for d in self.spacing_mm):
            raise ValueError(f"Grid spacing is {self.spacing_mm} mm; expected three positive distances.")
        if len(self.origin_mm) != 3 or not np.isfinite(self.origin_mm).all():
            raise ValueError(f"Grid origin is {self.origin_mm} mm; expected three finite coordinates.")
        matrix = self._matrix
        if matrix.shape != (3, 3) or not np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-3):
            raise ValueError(f"Grid directions {self.directions} are not three orthogonal unit vectors.")
        if not np.allclose(matrix @ matrix.T, np.eye(3), rtol=0, atol=1e-12):
            left, _, right = np.linalg.svd(matrix)
            slices, rows, columns = (_triple(vector) for vector in left @ right)
            object.__setattr__(self, "directions", (slices, rows, columns))

    @property
    def _matrix(self) -> NDArray[np.float64]:
        return np.asarray(self.directions, dtype=np.float64)

    @classmethod
    def around(
        cls,
        centre_mm: Sequence[float],
        shape: tuple[int, int, int],
        spacing_mm: Triple,
        directions: tuple[Triple, Triple, Triple],
        *,
        slice_centre: int | None = None,
    ) -> "VoxelGrid":
        """Build a grid from the position of its Fourier centre, the voxel with row n//2 and column n//2.

        Parameters
        ----------
        centre_mm
            LPS position, in mm, of that voxel in slice ``slice_centre``.
        shape, spacing_mm, directions
            As for the class.
        slice_centre
            Slice index the position belongs to; by default n_slices//2 (the Fourier centre of a 3-D scan). A
            two-dimensional stack passes 0 with the position of its first slice.
        """
        index = (shape[0] // 2 if slice_centre is None else slice_centre, shape[1] // 2, shape[2] // 2)
        grid = cls(shape, spacing_mm, directions)
        return replace(grid, origin_mm=_triple(np.asarray(centre_mm, dtype=np.float64) - grid.position_mm(index)))

    @classmethod
    def from_affine_ras(cls, affine: NDArray[np.float64], shape: tuple[int, int, int]) -> "VoxelGrid":
        """Build a grid from an affine as NIfTI gives it; the inverse of ``affine_ras``.

        Parameters
        ----------
        affine
            Real ``(4, 4)``, from the index (column, row, slice, 1) to RAS in mm.
        shape
            Number of slices, rows and columns.

        Raises
        ------
        ValueError
            If the affine is not finite, is singular, or shears (its columns are not orthogonal to 1e-3).
        """
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, dtype=np.float64)
        steps = lps[:3, 2::-1].T
        spacing = np.linalg.norm(steps, axis=1)
        if not np.isfinite(spacing).all() or not (spacing > 0).all():
            raise ValueError(f"The affine {np.asarray(affine).tolist()} is singular or not finite.")
        slices, rows, columns = (_triple(vector) for vector in steps / spacing[:, None])
        return cls(shape, _triple(spacing), (slices, rows, columns), _triple(lps[:3, 3]))

    def affine_lps(self) -> NDArray[np.float64]:
        """Affine ``(4, 4)`` from the index (column, row, slice, 1) to LPS in mm."""
        affine = np.eye(4)
        affine[:3, :3] = (self._matrix * np.asarray(self.spacing_mm)[:, None])[::-1].T
        affine[:3, 3] = self.origin_mm
        return affine

    def affine_ras(self) -> NDArray[np.float64]:
        """Affine ``(4, 4)`` from the index (column, row, slice, 1) to RAS in mm, as NIfTI wants it."""
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.affine_lps()

    def position_mm(self, index: Sequence[float]) -> Triple:
        """LPS position, in mm, of the voxel with index (slice, row, column)."""
        step = self._matrix * np.asarray(self.spacing_mm)[:, None]
        return _triple(np.asarray(self.origin_mm) + np.asarray(index, dtype=np.float64) @ step)

    def cropped(self, window: Sequence[slice]) -> "VoxelGrid":
        """The grid of ``image[window]``, one slice with unit step per axis (slice, row, column).

        Raises
        ------
        ValueError
            If a slice has another step or selects nothing.
        """
        if any(part.step not in (None, 1) for part in window):
            raise ValueError(f"The window {tuple(window)} has a step; expected three slices with unit step.")
        starts = [part.indices(n)[0] for part, n in zip(window, self.shape, strict=True)]
        stops = [part.indices(n)[1] for part, n in zip(window, self.shape, strict=True)]
        shape = tuple(stop - start for start, stop in zip(starts, stops, strict=True))
        return replace(self, shape=(shape[0], shape[1], shape[2]), origin_mm=self.position_mm(starts))


def _triple(vector: NDArray[np.float64]) -> Triple:
    return float(vector[0]), float(vector[1]), float(vector[2])
