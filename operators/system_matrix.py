"""System matrices of tomography: how much of each ray lies in each pixel, many rays at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from operators.beam_geometry import BeamGeometry

Model = Literal["line", "joseph", "strip"]
Floats = NDArray[np.float64]

_NEGLIGIBLE = 1e-12  # a share of a row below this is rounding, not a chord
_ON_GRID_LINE = 1e-9  # pixels: a ray that stays this close to a grid line runs along it
_DIAGONAL = 1e-9  # difference of direction cosines below which a ray runs along a diagonal
_PAIRS_AT_ONCE = 2**17  # pairs of ray and row that are treated together, so that temporaries stay in cache


@dataclass(frozen=True, slots=True)
class SparseRows:
    """A sparse matrix, stored row by row.

    Parameters
    ----------
    starts
        Where each row begins in the other two tables, ``(n_rows + 1,)``, int32.
    columns
        Column of each entry, ``(n_entries,)``, int32.
    values
        The entries, ``(n_entries,)``, float32 or float64.
    n_columns
        Number of columns.
    """

    starts: NDArray[np.int32]
    columns: NDArray[np.int32]
    values: NDArray[Any]
    n_columns: int

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.starts) - 1

    def transposed(self) -> "SparseRows":
        """The transpose, itself stored row by row."""
        from scipy.sparse import csr_array

        by_column = csr_array((self.values, self.columns, self.starts), (self.n_rows, self.n_columns)).tocsc()
        return SparseRows(by_column.indptr, by_column.indices, by_column.data, self.n_rows)

    def take(self, rows: NDArray[np.integer]) -> "SparseRows":
        """Some rows, in the given order."""
        lengths = np.diff(self.starts)[rows]
        starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        entries = np.arange(starts[-1], dtype=np.int32) + np.repeat(self.starts[rows] - starts[:-1], lengths)
        return SparseRows(starts, taken(self.columns, entries), taken(self.values, entries), self.n_columns)


@dataclass(frozen=True, slots=True)
class Rays:
    """Straight lines in units of pixels: column grows with x, row downwards, and (0, 0) is the corner of the image.

    Parameters
    ----------
    start
        A point on each ray, ``(ray, 2)``, last axis (column, row).
    direction
        Unit vectors, ``(ray, 2)``.
    """

    start: Floats
    direction: Floats

    @property
    def along_rows(self) -> NDArray[np.bool_]:
        """Whether each ray crosses more rows than columns; of diagonals, one of the two kinds."""
        column, row = self.direction.T
        steeper = np.abs(row) - np.abs(column)
        # A quarter turn of a diagonal must change its kind, or symmetric scans would not have a symmetric matrix.
        return np.where(np.abs(steeper) < _DIAGONAL, row * column > 0, steeper > 0)

    def __getitem__(self, index: Any) -> "Rays":
        return Rays(self.start[index], self.direction[index])


def taken(table: NDArray[Any], entries: NDArray[np.int32]) -> NDArray[Any]:
    """Entries of a table, ``(n,)``, by their int32 indices; numpy would copy these to 64 bits first."""
    return torch.from_numpy(table).index_select(0, torch.from_numpy(entries)).numpy()


def rays_in_pixels(geometry: BeamGeometry, shape: tuple[int, int]) -> Rays:
    """Rays of all bins of all views, ``(view · detector, 2)``, relative to the grid of an image.

    Parameters
    ----------
    geometry
        The scan.
    shape
        Rows and columns of the image.
    """
    points, directions = geometry.rays()
    start = points.reshape(-1, 2) / geometry.pixel_spacing_mm * (1, -1) + (shape[1] / 2, shape[0] / 2)
    return Rays(start, directions.reshape(-1, 2) * (1, -1))


def count_entries(rays: Rays, shape: tuple[int, int], model: Model, strip_width: float = 0.0) -> int:
    """Estimate the number of entries of a system matrix without building it, to a few per cent and rather above.

    Parameters
    ----------
    rays
        Rays relative to the grid.
    shape
        Rows and columns of the image.
    model
        What an entry is; see `system_matrix`.
    strip_width
        Width of the strips, in pixels.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        to_edges = (np.stack(((0, 0), (shape[1], shape[0])))[:, None] - rays.start) / rays.direction
    # A ray parallel to an edge never meets it: from −∞ to ∞ where it runs between the edges, else nowhere.
    parallel = rays.direction == 0
    between = (rays.start >= 0) & (rays.start <= (shape[1], shape[0]))
    near = np.where(parallel, np.where(between, -np.inf, np.inf), to_edges.min(axis=0)).max(axis=1)
    far = np.where(parallel, np.where(between, np.inf, -np.inf), to_edges.max(axis=0)).min(axis=1)
    crossed = np.abs(rays.direction) * np.where(far > near, far - near, 0)[:, None]
    if model == "line":
        return int(np.ceil(crossed.sum() + 2 * (far > near).sum()))
    per_step = 2 if model == "joseph" else np.ceil(2 * _strip_reach(rays, strip_width)) + 1
    return int(np.ceil(((crossed.max(axis=1) + 1) * per_step).sum()))


def system_matrix(
    rays: Rays,
    shape: tuple[int, int],
    pixel_spacing_mm: float,
    model: Model = "line",
    *,
    strip_width: float = 0.0,
    labels: NDArray[np.int32] | None = None,
    dtype: type[np.floating] = np.float32,
) -> SparseRows:
    """Build the matrix of which row r, column i says how much of ray r lies in pixel i, in mm.

    Every ray is followed row by row of the image (or column by column, where it crosses more of these). Within one
    row it meets two pixels at most, and the grid line between them divides its chord: that is Siddon's result without
    sorting intersections, in array operations over rays and rows.

    Parameters
    ----------
    rays
        Rays relative to the grid; faster where neighbours in this list are of one kind (``along_rows``).
    shape
        Rows and columns of the image.
    pixel_spacing_mm
        Size of a pixel, in mm.
    model
        ``"line"``: length of the ray in the pixel; a ray along a grid line belongs to both sides by half.
        ``"joseph"``: linear interpolation between the two nearest pixels of each row. ``"strip"``: area that a strip
        around the ray shares with the pixel, divided by the strip's width.
    strip_width
        Width of the strips, in pixels.
    labels
        Column number of each pixel, ``(y · x,)``; by default row by row.
    dtype
        Precision of the entries, ``numpy.float32`` or ``numpy.float64``; they are computed in double precision.

    Returns
    -------
    SparseRows
        ``(ray, pixel)``.

    References
    ----------
    .. [1] R. L. Siddon, "Fast calculation of the exact radiological path for a three-dimensional CT array", Med. Phys.
       12, 252–255, 1985, Eq. 13.
    .. [2] P. M. Joseph, "An improved algorithm for reprojecting rays through pixel images", IEEE Trans. Med. Imaging
       1, 192–196, 1982.
    """
    n_pixels = shape[0] * shape[1]
    labels = np.arange(n_pixels, dtype=np.int32) if labels is None else labels
    counts, columns, values = [np.zeros(1, np.int64)], [np.empty(0, np.int32)], [np.empty(0, dtype)]
    for part, along_rows in _runs(rays, shape):
        first, shares = _shares(part, shape if along_rows else shape[::-1], along_rows, model, strip_width)
        scale = pixel_spacing_mm / np.abs(part.direction[:, 1 if along_rows else 0])
        count, column, value = _entries(first, shares, scale, shape, along_rows)
        counts.append(count)
        columns.append(labels[column])
        values.append(value.astype(dtype))
    starts = np.cumsum(np.concatenate(counts)).astype(np.int32)
    return SparseRows(starts, np.concatenate(columns), np.concatenate(values), n_pixels)


def _runs(rays: Rays, shape: tuple[int, int]) -> Iterator[tuple[Rays, bool]]:
    """Stretches of rays of one kind, not too long."""
    along_rows = rays.along_rows
    edges = [0, *(np.flatnonzero(np.diff(along_rows)) + 1), len(along_rows)]
    for begin, end in pairwise(edges):
        step = max(1, _PAIRS_AT_ONCE // shape[0 if along_rows[begin] else 1])
        for start in range(begin, end, step):
            yield rays[start : min(start + step, end)], bool(along_rows[begin])


def _shares(
    rays: Rays, sizes: tuple[int, int], along_rows: bool, model: Model, strip_width: float
) -> tuple[NDArray[np.int32], list[Floats]]:
    """First pixel that each ray meets in each row, ``(ray, row)``, and the shares of this and the following pixels."""
    axis = 1 if along_rows else 0
    slope = rays.direction[:, 1 - axis] / rays.direction[:, axis]
    intercept = rays.start[:, 1 - axis] - slope * rays.start[:, axis]
    if model == "line":
        return _line_shares(intercept, slope, sizes[0])
    middle = intercept[:, None] + slope[:, None] * (np.arange(sizes[0]) + 0.5) - 0.5  # pixel i is centred at i here
    if model == "joseph":
        first = np.floor(middle)
        second = middle - first
        return first.astype(np.int32), [1 - second, second]
    return _strip_shares(middle, rays, strip_width)


def _line_shares(intercept: Floats, slope: Floats, n_along: int) -> tuple[NDArray[np.int32], list[Floats]]:
    steepness = np.abs(slope)
    low = np.minimum(intercept, intercept + slope)[:, None] + slope[:, None] * np.arange(n_along)
    first = np.floor(low)
    beyond = low + (steepness[:, None] - 1) - first  # how far the ray gets across the next grid line
    second = np.maximum(beyond, 0) / np.where(steepness == 0, 1, steepness)[:, None]
    line = np.rint(intercept)
    along_line = (steepness * n_along < _ON_GRID_LINE) & (np.abs(intercept - line) < _ON_GRID_LINE)
    if along_line.any():
        first[along_line] = line[along_line, None] - 1
        second[along_line] = 0.5
    return first.astype(np.int32), [1 - second, second]


def _strip_shares(middle: Floats, rays: Rays, width: float) -> tuple[NDArray[np.int32], list[Floats]]:
    reach = float(_strip_reach(rays, width).max())
    first = np.ceil(middle - reach)
    across = np.abs(rays.direction).max(axis=1)[:, None]  # distance between the rays of neighbouring pixels in a row
    offset = (first - middle) * across
    shares = []
    for _ in range(int(np.ceil(2 * reach)) + 1):
        area = _area_beside(offset + width / 2, rays) - _area_beside(offset - width / 2, rays)
        shares.append(area * across / width)
        offset = offset + across
    return first.astype(np.int32), shares


def _strip_reach(rays: Rays, width: float) -> Floats:
    """How far from its middle a strip touches pixels of a row, in pixels: up to their centres."""
    cosines = np.abs(rays.direction)
    return np.asarray((width + cosines.sum(axis=1)) / 2 / cosines.max(axis=1))


def _area_beside(offset: Floats, rays: Rays) -> Floats:
    """Area of a unit pixel on one side of a line that passes its centre at the given distance, ``(ray, row)``."""
    cosines = np.sort(np.abs(rays.direction), axis=1)[:, :, None]
    small, large = cosines[:, 0], cosines[:, 1]
    distance = np.minimum(np.abs(offset), (large + small) / 2)
    ramp = np.maximum(distance - (large - small) / 2, 0)  # the chord falls linearly over the last stretch
    area = distance / large - ramp**2 / np.where(small == 0, 1, 2 * small * large)
    return 0.5 + np.copysign(area, offset)


def _entries(
    first: NDArray[np.int32], shares: list[Floats], scale_mm: Floats, shape: tuple[int, int], along_rows: bool
) -> tuple[NDArray[np.int64], NDArray[np.int32], Floats]:
    """Number of entries of each ray, and their pixels and values, ray by ray."""
    n_along, n_across = shape if along_rows else shape[::-1]
    stride_along, stride_across = (shape[1], 1) if along_rows else (1, shape[1])
    across = np.stack([first + i for i in range(len(shares))], axis=-1)  # (ray, row, pixel)
    share = np.stack(shares, axis=-1)
    kept = (across >= 0) & (across < n_across) & (share > _NEGLIGIBLE)
    counts = np.count_nonzero(kept, axis=(1, 2))
    pixel = across * np.int32(stride_across) + (np.arange(n_along, dtype=np.int32) * stride_along)[:, None]
    return counts, pixel[kept], share[kept] * np.repeat(scale_mm, counts)
