"""The tables of a projection: the order of rays and pixels, the matrix and its transpose, and their cache on disk."""

import hashlib
import json
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.beam_geometry import BeamGeometry
from operators.beam_symmetry import RayOrbits, ray_orbits
from operators.io.files import check_writable, replacing
from operators.system_matrix import Model, Rays, SparseRows, count_entries, rays_in_pixels, system_matrix

Indices = NDArray[np.int32]

_CACHE_VERSION = 1  # to be raised with every change of what the tables hold
_TILE = 16  # pixels, or bins, along the side of a tile
_SECTOR_RAD = 0.3  # views within this angle cross much the same pixels in a tile of bins
_SAMPLED_VIEWS = 64


@dataclass(frozen=True, slots=True)
class ScanLayout:
    """How the matrix of a scan is stored: the rays of some views only, rays and pixels in tiles.

    Neighbouring rows of the matrix then read much the same entries of a vector, which stay in the processor's cache,
    and symmetric copies of an image stand side by side as columns.

    Parameters
    ----------
    geometry, shape, model
        What the matrix is of; ``shape`` is rows and columns of the image.
    orbits
        Stored views and the symmetries that make all views of them.
    """

    geometry: BeamGeometry
    shape: tuple[int, int]
    model: Model
    orbits: RayOrbits

    @classmethod
    def of(cls, geometry: BeamGeometry, shape: tuple[int, int], model: Model) -> "ScanLayout":
        """Find the symmetries of a scan; a mirror would change how Joseph's model treats diagonal rays."""
        return cls(geometry, shape, model, ray_orbits(geometry, shape, mirrors=model != "joseph"))

    @property
    def n_symmetries(self) -> int:
        """By which the stored rays are fewer than all rays."""
        return len(self.orbits.symmetries)

    def estimate(self, dtype: np.dtype[Any]) -> tuple[int, int]:
        """Entries of the stored matrix, and bytes of all tables, to a few per cent and without building them."""
        views = self.orbits.stored_views
        sample = views[:: max(1, len(views) // _SAMPLED_VIEWS)]
        rays = rays_in_pixels(self.geometry[sample], self.shape)
        n_sampled = count_entries(rays, self.shape, self.model, self._strip_width)
        n_entries = math.ceil(n_sampled / (len(sample) * self.geometry.n_detectors) * self.orbits.n_stored_rays)
        maps = 8 * (self.geometry.n_views * self.geometry.n_detectors + self.n_symmetries * math.prod(self.shape))
        return n_entries, 2 * n_entries * (4 + dtype.itemsize) + maps

    def pixel_sources(self) -> Indices:
        """The pixel that each stored pixel stands for under each symmetry, ``(stored pixel, symmetry)``."""
        pixels = np.arange(math.prod(self.shape), dtype=np.int32).reshape(self.shape)
        row, column = np.divmod(pixels.ravel(), self.shape[1])
        order = np.lexsort((column, row, column // _TILE, row // _TILE))
        return np.stack([s.pulled_back(pixels).ravel()[order] for s in self.orbits.symmetries], axis=-1)

    def ray_sources(self) -> Indices:
        """The ray that each stored ray stands for under each symmetry, ``(stored ray, symmetry)``; see `RayOrbits`."""
        return self.orbits.rays()[self._ray_order()]

    def pixel_entries(self) -> Indices:
        """Where each pixel stands in the flat `pixel_sources`, once for every symmetry, ``(pixel, symmetry)``."""
        columns = self.pixel_sources().T
        return np.stack([inverse(column) * len(columns) + k for k, column in enumerate(columns)], axis=-1)

    def ray_entries(self) -> Indices:
        """Where each ray stands in the flat `ray_sources`, ``(ray, 1)``."""
        return inverse(self.ray_sources().ravel())[: self.geometry.n_views * self.geometry.n_detectors, None]

    def build(self, dtype: np.dtype[Any], cache_folder: Path | None) -> tuple[SparseRows, SparseRows]:
        """Build the stored matrix and its transpose, or read them from the cache.

        Parameters
        ----------
        dtype
            Precision of the entries.
        cache_folder
            Existing folder; ``None`` for no cache.

        Raises
        ------
        InputError
            If the folder cannot be written to.
        """
        if cache_folder is None:
            return self._build(dtype)
        path = cache_folder / f"projection-{self._digest(dtype)}.npz"
        check_writable(path, overwrite=True)
        tables = _read(path, dtype, self.orbits.n_stored_rays, math.prod(self.shape))
        if tables is None:
            tables = self._build(dtype)
            _write(path, tables)
        return tables

    @property
    def _strip_width(self) -> float:
        return self.geometry.detector_spacing_mm / self.geometry.pixel_spacing_mm

    def _stored_rays(self) -> Rays:
        return rays_in_pixels(self.geometry[self.orbits.stored_views], self.shape)[self.orbits.stored_rays()]

    def _ray_order(self) -> NDArray[np.int64]:
        """Tiles of bins over sectors of views, apart for rays along rows and along columns."""
        along_rows = self._stored_rays().along_rows
        view, bin_ = np.divmod(self.orbits.stored_rays(), self.geometry.n_detectors)
        angle = np.asarray(self.geometry.angles_rad)[self.orbits.stored_views]
        sector = np.floor((angle - angle.min()) / _SECTOR_RAD)[view]
        return np.lexsort((bin_, view, bin_ // _TILE, along_rows, sector))

    def _build(self, dtype: np.dtype[Any]) -> tuple[SparseRows, SparseRows]:
        rays = self._stored_rays()[self._ray_order()]
        labels = inverse(self.pixel_sources()[:, 0])
        matrix = system_matrix(
            rays,
            self.shape,
            self.geometry.pixel_spacing_mm,
            self.model,
            strip_width=self._strip_width,
            labels=labels,
            dtype=dtype.type,
        )
        return matrix, matrix.transposed()

    def _digest(self, dtype: np.dtype[Any]) -> str:
        key = [_CACHE_VERSION, self.geometry.to_json(), self.shape, self.model, dtype.name]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]


def inverse(numbers: Indices) -> Indices:
    """Where each number stands in a list that holds all from zero to the largest, ``(largest + 1,)``."""
    places = np.zeros(int(numbers.max()) + 1, dtype=np.int32)
    places[numbers] = np.arange(len(numbers), dtype=np.int32)
    return places


def _write(path: Path, tables: tuple[SparseRows, SparseRows]) -> None:
    named = {
        f"{what}{number}": getattr(table, what)
        for number, table in enumerate(tables)
        for what in ("starts", "columns", "values")
    }
    with replacing(path, overwrite=True) as temporary, temporary.open("wb") as file:
        np.savez(file, **named)


def _read(path: Path, dtype: np.dtype[Any], n_rays: int, n_pixels: int) -> tuple[SparseRows, SparseRows] | None:
    """The pair in a file, ``None`` if there is no file or it is not what was written there once."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:  # zip, so with checksums
            matrix, transposed = (
                SparseRows(file[f"starts{k}"], file[f"columns{k}"], file[f"values{k}"], n)
                for k, n in enumerate((n_pixels, n_rays))
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    fits = _is_sound(matrix, dtype, n_rays) and _is_sound(transposed, dtype, n_pixels)
    return (matrix, transposed) if fits else None


def _is_sound(table: SparseRows, dtype: np.dtype[Any], n_rows: int) -> bool:
    kinds = (table.starts.dtype, table.columns.dtype, table.values.dtype) == (np.int32, np.int32, dtype)
    sizes = table.starts.shape == (n_rows + 1,) and table.columns.shape == table.values.shape == (table.starts[-1],)
    if not (kinds and sizes and table.starts[0] == 0 and bool((np.diff(table.starts) >= 0).all())):
        return False
    return not len(table.columns) or bool(table.columns.min() >= 0 and table.columns.max() < table.n_columns)
