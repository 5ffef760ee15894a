"""Projection of an image along the rays of a scan, and its exact adjoint: by a stored matrix, or with ASTRA."""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from operators.astra_backend import AstraProjector
from operators.beam_geometry import BeamGeometry, FanBeam, ParallelBeam
from operators.linear_operator import LinearOperator
from operators.projection_tables import ScanLayout, inverse
from operators.solvers import largest_eigenvalue
from operators.space import Space
from operators.system_matrix import Model, SparseRows, taken

Backend = Literal["auto", "matrix", "astra", "cuda"]

_MAX_ENTRIES = 2**31 - 1
_MAX_COLUMNS = 32  # more columns at once leave the processor's cache
_MAX_BYTES = 24 * 2**20  # larger buffers go back to the system after every use, and cost page faults at the next
_MAX_CSR_COLUMNS = 8  # up to here the sparse product is faster, beyond it the sum of embeddings
_DTYPES: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


class Projection(LinearOperator):
    """Line integrals of an image along the rays of a scan: (A x)_r = Σ_i a_ri x_i, with a_ri in mm.

    ``model="line"`` takes for a_ri the length of ray r in pixel i, ``"joseph"`` interpolates linearly in each row that
    the ray crosses, and ``"strip"`` (parallel beams only) averages over the width of the detector bin. The matrix and
    its transpose are stored, 8 bytes per entry and direction in single precision.

    Where quarter turns or mirrors of the pixel grid map the scan onto itself (`operators.beam_symmetry.ray_orbits`),
    one ray is stored for two, four or eight, and applied to turned images side by side. That deviates from the full
    matrix by rounding only, below 1e-12 of ‖A x‖ in double and 1e-6 in single precision, and by the 1e-6 rad within
    which angles count as equal.

    Parameters
    ----------
    geometry
        The scan.
    domain
        Real space of images ``(y, x)``, or its shape.
    backend
        ``"matrix"``: the stored matrix, on whatever device the module is. ``"astra"``: ASTRA's projectors on the CPU,
        in single precision; many times slower, without tables. ``"cuda"``: the matrix, moved to a GPU at once.
        ``"auto"``: the matrix where it keeps the memory limit, else ASTRA. ``A.backend`` says which of the first two
        it is.
    model
        What a ray weights a pixel with.
    memory_limit_bytes
        What the tables may take; estimated before anything is built.
    cache_folder
        Existing folder in which the tables are kept for the next time; ``None`` for no cache. A damaged file there
        is replaced.
    precision
        In which the tables are built, ``torch.float32`` or ``torch.float64``. Inputs of the other precision are
        projected in theirs.

    Raises
    ------
    TypeError
        If the geometry is none, the domain complex or the precision neither single nor double.
    ValueError
        If the domain is no image, the source lies inside the circle around the image, there is no such model or
        backend, or the matrix would exceed the memory limit.
    InputError
        If the cache folder cannot be written.

    Notes
    -----
    ``A[views]`` is the projection of some views only, with its rows copied from the tables at hand.

    Examples
    --------
    >>> geometry = ParallelBeam((0.0,), n_detectors=2, detector_spacing_mm=1.0, pixel_spacing_mm=1.0)
    >>> Projection(geometry, (2, 2))(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[4., 6.]])
    """

    gradient = "adjoint"
    _starts: torch.Tensor
    _columns: torch.Tensor
    _values: torch.Tensor
    _transposed_starts: torch.Tensor
    _transposed_columns: torch.Tensor
    _transposed_values: torch.Tensor
    _pixel_sources: torch.Tensor
    _pixel_entries: torch.Tensor
    _ray_sources: torch.Tensor
    _ray_entries: torch.Tensor

    def __init__(
        self,
        geometry: BeamGeometry,
        domain: Space | Sequence[int],
        *,
        backend: Backend = "auto",
        model: Model = "line",
        memory_limit_bytes: int = 2 * 2**30,
        cache_folder: Path | str | None = None,
        precision: torch.dtype = torch.float32,
    ) -> None:
        if not isinstance(domain, Space):
            domain = Space(tuple(domain), "real", ("y", "x") if len(domain) == 2 else None)
        _check_scan(geometry, domain)
        _check_choices(geometry, backend, model, precision)
        self._begin(geometry, domain, model)
        if backend == "astra":
            self._set_astra()
            return
        layout = ScanLayout.of(geometry, self._shape, model)
        n_entries, n_bytes = layout.estimate(_DTYPES[precision])
        too_large = n_bytes > memory_limit_bytes or n_entries > _MAX_ENTRIES
        if too_large and backend == "auto" and precision == torch.float32:
            self._set_astra()
            return
        if too_large:
            raise ValueError(
                f"The system matrix needs about {n_bytes / 2**20:.0f} MiB for {n_entries:.3g} entries, but "
                f"memory_limit_bytes allows {memory_limit_bytes / 2**20:.0f} MiB (and an index 2**31 entries); raise "
                "the limit, take fewer views or larger pixels, or pass backend='astra' in single precision."
            )
        folder = None if cache_folder is None else Path(cache_folder)
        self._set_tables(layout, *layout.build(_DTYPES[precision], folder))
        if backend == "cuda":
            self.to("cuda")

    def __getitem__(self, views: slice | Sequence[int]) -> "Projection":
        """The projection of some views, in the given order.

        Parameters
        ----------
        views
            A slice or a list of view indices, at least one view.

        Returns
        -------
        Projection
            With codomain ``(len(views), detector)``, on the same device and in the same precision.

        Raises
        ------
        ValueError
            If no view is left.
        IndexError
            If there is no such view.
        """
        chosen = np.arange(self.geometry.n_views)[views]
        geometry = self.geometry[chosen.tolist()]
        if self.backend == "astra":
            return Projection(geometry, self.domain, backend="astra", model=self.model)
        part = Projection.__new__(Projection)
        part._begin(geometry, self.domain, self.model)
        layout = ScanLayout.of(geometry, self._shape, self.model)
        matrix = self._rows_for(layout, chosen)
        part._set_tables(layout, matrix, matrix.transposed())
        return part.to(self._values.device)

    def extra_repr(self) -> str:
        """Spaces, backend and model, for ``repr``."""
        return f"{super().extra_repr()}, backend={self.backend!r}, model={self.model!r}"

    @property
    def _shape(self) -> tuple[int, int]:
        return cast(tuple[int, int], self.domain.shape)

    def _begin(self, geometry: BeamGeometry, domain: Space, model: Model) -> None:
        codomain = Space((geometry.n_views, geometry.n_detectors), "real", ("view", "detector"))
        super().__init__(domain, codomain)
        self.geometry = geometry
        self.model = model
        self.backend: Literal["matrix", "astra"] = "matrix"
        self._known_norms: dict[torch.dtype, float] = {}

    def _set_astra(self) -> None:
        self.backend = "astra"
        self._astra = AstraProjector(self.geometry, self._shape, self.model)

    def _set_tables(self, layout: ScanLayout, matrix: SparseRows, transposed: SparseRows) -> None:
        tables = {
            "_starts": matrix.starts,
            "_columns": matrix.columns,
            "_values": matrix.values,
            "_transposed_starts": transposed.starts,
            "_transposed_columns": transposed.columns,
            "_transposed_values": transposed.values,
            "_pixel_sources": layout.pixel_sources(),
            "_pixel_entries": layout.pixel_entries(),
            "_ray_sources": layout.ray_sources(),
            "_ray_entries": layout.ray_entries(),
        }
        for name, table in tables.items():
            self.register_buffer(name, torch.from_numpy(table), persistent=False)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.backend == "astra":
            return self._by_astra(self._astra.project, x)
        images = x.reshape(-1, self.domain.size)
        sinograms = x.new_empty(len(images), self.codomain.size)
        for some in self._parts(len(images)):
            columns = _gathered(images[some], self._pixel_sources)
            rows = _product(self._starts, self._columns, self._values, columns)
            sinograms[some] = _summed(rows, self._ray_entries, len(images[some]))
        return sinograms.view(*self.domain.batch_shape(x), *self.codomain.shape)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        if self.backend == "astra":
            return self._by_astra(self._astra.back_project, y)
        sinograms = y.reshape(-1, self.codomain.size)
        images = y.new_empty(len(sinograms), self.domain.size)
        for some in self._parts(len(sinograms)):
            with_nothing = torch.nn.functional.pad(sinograms[some], (0, 1))  # for copies of rays that are not needed
            columns = _gathered(with_nothing, self._ray_sources)
            rows = _product(self._transposed_starts, self._transposed_columns, self._transposed_values, columns)
            images[some] = _summed(rows, self._pixel_entries, len(sinograms[some]))
        return images.view(*self.codomain.batch_shape(y), *self.domain.shape)

    def _norm(self) -> torch.Tensor:
        if self.backend == "matrix":
            dtype = self._values.dtype
            if dtype not in self._known_norms:  # the tables do not change, and steps of every loop ask for it
                self._known_norms[dtype] = float(super()._norm())
            return self._values.new_tensor(self._known_norms[dtype])
        x = self.domain.randn(generator=torch.Generator().manual_seed(0))  # ASTRA has single precision only
        return largest_eigenvalue(self._gram, x, rtol=1e-6).value.clamp_min(0).sqrt()

    def _parts(self, n_images: int) -> list[slice]:
        """Images that are treated together: every one of them makes a column per symmetry."""
        n_rows, n_symmetries = self._pixel_sources.shape
        n_columns = min(_MAX_COLUMNS, _MAX_BYTES // (n_rows * self._values.element_size()))
        step = max(1, n_columns // n_symmetries)
        return [slice(start, min(start + step, n_images)) for start in range(0, n_images, step)]

    def _by_astra(self, apply: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu":
            raise ValueError(f"ASTRA projects on the CPU, but the input is on {x.device}; build with backend='cuda'.")
        result = apply(x.reshape(-1, *x.shape[-2:]).float())
        return result.to(x.dtype).view(*x.shape[:-2], *result.shape[-2:])

    def _rows_for(self, layout: ScanLayout, views: NDArray[np.int64]) -> SparseRows:
        """The stored matrix of another layout, that of some of the views, from the rows at hand."""
        n_pixels, n_symmetries = self._pixel_sources.shape
        starts, columns, values = (t.numpy(force=True) for t in (self._starts, self._columns, self._values))
        own = SparseRows(starts, columns, values, n_pixels)
        view, bin_ = np.divmod(layout.ray_sources()[:, 0], self.geometry.n_detectors)
        entries = self._ray_entries.numpy(force=True)[views[view] * self.geometry.n_detectors + bin_, 0]
        row, symmetry = np.divmod(entries, n_symmetries)
        matrix = own.take(row)
        sources = self._pixel_sources.numpy(force=True)
        stored = inverse(sources[:, 0])  # tiles are the same whatever the symmetries
        moved = stored[sources].T.ravel()  # the stored pixel that (symmetry, stored pixel) stands for
        first = np.repeat(symmetry * np.int32(n_pixels), np.diff(matrix.starts))
        return SparseRows(matrix.starts, taken(moved, first + matrix.columns), matrix.values, n_pixels)


def _gathered(vectors: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Entries of vectors ``(vector, entry)`` as columns, ``(row, symmetry · vector)``, by their indices."""
    if len(vectors) == 1:
        return vectors[0].index_select(0, sources.view(-1)).view(sources.shape)
    return vectors.T.contiguous().index_select(0, sources.view(-1)).view(len(sources), -1)


def _summed(rows: torch.Tensor, entries: torch.Tensor, n_vectors: int) -> torch.Tensor:
    """Vectors ``(vector, entry)``, each entry the sum of those of the columns that ``(entry, summand)`` points to."""
    if n_vectors == 1:
        return rows.view(-1).index_select(0, entries.view(-1)).view(entries.shape).sum(dim=1)[None]
    return torch.nn.functional.embedding_bag(entries, rows.view(-1, n_vectors), mode="sum").T


def _product(starts: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Sparse matrix, stored by rows, times dense ``(column, k)``."""
    values = values.to(x.dtype)
    if x.shape[1] > _MAX_CSR_COLUMNS and x.device.type == "cpu":
        return torch.nn.functional.embedding_bag(
            columns, x, starts, mode="sum", per_sample_weights=values, include_last_offset=True
        )
    _accept_sparse_tensors()
    matrix = torch.sparse_csr_tensor(starts, columns, values, (len(starts) - 1, len(x)), check_invariants=False)
    return matrix @ x if x.shape[1] > 1 else (matrix @ x[:, 0])[:, None]


@functools.cache
def _accept_sparse_tensors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch announces once per process that CSR is in beta
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)


def _check_scan(geometry: BeamGeometry, domain: Space) -> None:
    if not isinstance(geometry, BeamGeometry):
        raise TypeError(f"geometry is a {type(geometry).__name__}; expected a ParallelBeam or a FanBeam.")
    if domain.field != "real":
        raise TypeError("The domain is complex; attenuation is real, expected Space((y, x), 'real').")
    if domain.n_dims != 2:
        raise ValueError(f"The domain has shape {domain.shape}; expected an image (y, x).")
    radius = math.hypot(*domain.shape) / 2 * geometry.pixel_spacing_mm
    if isinstance(geometry, FanBeam) and geometry.source_to_center_mm <= radius:
        raise ValueError(
            f"The source is {geometry.source_to_center_mm:g} mm from the isocentre, but the image's corners are at "
            f"{radius:g} mm; the source must lie outside, so take a smaller image or smaller pixels, or check that "
            "all lengths are in mm."
        )


def _check_choices(geometry: BeamGeometry, backend: str, model: str, precision: torch.dtype) -> None:
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(map(repr, get_args(Backend)))}.")
    if model not in get_args(Model):
        raise ValueError(f"model is {model!r}; expected one of {', '.join(map(repr, get_args(Model)))}.")
    if model == "strip" and not isinstance(geometry, ParallelBeam):
        raise ValueError("model 'strip' exists for parallel beams only; pass model='line' or 'joseph' for a fan.")
    if precision not in _DTYPES:
        raise TypeError(f"precision is {precision}; expected torch.float32 or torch.float64.")
    if backend == "astra" and precision != torch.float32:
        raise ValueError("ASTRA computes in single precision; pass backend='matrix' for double.")
    if backend == "cuda" and not torch.cuda.is_available():
        raise ValueError("backend is 'cuda', but torch sees no CUDA device; pass backend='matrix'.")
