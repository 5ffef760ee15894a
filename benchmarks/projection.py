"""Tomographic projection and its adjoint: ours against ASTRA, scipy's CSR product, deepinv and scikit-image.

Run ``python benchmarks/projection.py``; a peer that is not installed is skipped with a word (ODL projects on the CPU
with ASTRA or scikit-image). The error of a forward projection is against the exact line integrals of Gaussian blobs,
that of an adjoint is |⟨A x, y⟩ − ⟨x, Aᵀy⟩| / (‖A x‖ ‖y‖) for noise x and y.
"""

import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from harness import Row, arguments, declare_torchvision_operators, measure, report

from operators.beam_geometry import BeamGeometry, FanBeam, ParallelBeam
from operators.projection import Projection
from operators.system_matrix import rays_in_pixels, system_matrix

Apply = Callable[[torch.Tensor], torch.Tensor]

_NO_REFERENCE = torch.ones(1)  # errors are computed apart


@dataclass(frozen=True, slots=True)
class Case:
    """A scan of square images of n² pixels."""

    name: str
    geometry: BeamGeometry
    n: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """Both maps of one implementation, on float32 tensors (image, y, x) and (image, view, detector).

    ``centre`` is where it takes the isocentre to be, in pixels to the right and up from the middle of the image.
    """

    forward: Apply
    adjoint: Apply | None
    centre: tuple[float, float] = (0.0, 0.0)
    largest_batch: int = 16


def ours(case: Case) -> Candidate:
    """Build the operator of this project."""
    operator = Projection(case.geometry, (case.n, case.n), backend="matrix")
    return Candidate(operator, operator.adjoint)


def astra(case: Case) -> Candidate:
    """Use ASTRA's CPU projector by its direct interface, image by image: it has no batch."""
    experimental = importlib.import_module("astra.experimental")
    projector = _astra_projector(case)
    shape = (case.geometry.n_views, case.geometry.n_detectors)

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros(len(x), *shape)
        for image, sinogram in zip(x, y, strict=True):
            experimental.direct_FP2D(projector, image, sinogram)
        return y

    def adjoint(y: torch.Tensor) -> torch.Tensor:
        x = torch.zeros(len(y), case.n, case.n)
        for image, sinogram in zip(x, y, strict=True):
            experimental.direct_BP2D(projector, image, sinogram)
        return x

    return Candidate(forward, adjoint)


def astra_classic(case: Case) -> Candidate:
    """Use ASTRA as a linear operator, as most code does."""
    operator = importlib.import_module("astra").OpTomo(_astra_projector(case))

    def by_image(apply: Callable[[np.ndarray], np.ndarray]) -> Apply:
        return lambda z: torch.stack([torch.from_numpy(apply(sample)) for sample in z.numpy()])

    return Candidate(by_image(operator.FP), by_image(operator.BP), largest_batch=1)


def scipy(case: Case) -> Candidate:
    """Multiply with the whole system matrix, and with its transpose as scipy gives it."""
    sparse = importlib.import_module("scipy.sparse")
    shape = (case.n, case.n)
    table = system_matrix(rays_in_pixels(case.geometry, shape), shape, case.geometry.pixel_spacing_mm)
    matrix = sparse.csr_array((table.values, table.columns, table.starts), (table.n_rows, table.n_columns))

    def product(matrix: object, *shape: int) -> Apply:
        return lambda z: torch.from_numpy((matrix @ z.reshape(len(z), -1).T.numpy()).T).reshape(len(z), *shape)

    forward = product(matrix, case.geometry.n_views, case.geometry.n_detectors)
    return Candidate(forward, product(matrix.T, case.n, case.n))


def deepinv(case: Case) -> Candidate:
    """Build deepinv's Tomography with the exact adjoint, image by image: one needs gigabytes."""
    declare_torchvision_operators()
    geometry = case.geometry
    padded = math.ceil(math.sqrt(2) * case.n)
    options: dict[str, object] = {}
    if isinstance(geometry, FanBeam):
        options["fan_beam"] = True
        options["fan_parameters"] = {
            "pixel_spacing": geometry.pixel_spacing_mm * (padded - 1) / padded,
            "source_radius": geometry.source_to_center_mm,
            "detector_radius": geometry.center_to_detector_mm,
            "n_detector_pixels": geometry.n_detectors,
            "detector_spacing": geometry.detector_spacing_mm,
        }
    elif geometry.n_detectors != padded or geometry.detector_spacing_mm != geometry.pixel_spacing_mm:
        raise ImportError("deepinv's detector has one bin per pixel of the diagonal")
    angles = torch.rad2deg(torch.tensor(geometry.angles_rad)) + (90 if options else 0)
    physics = importlib.import_module("deepinv.physics").Tomography(
        angles=angles, img_width=case.n, normalize=False, **options
    )
    scale = geometry.pixel_spacing_mm

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([scale * physics.A(image[None, None])[0, 0].T for image in x])

    def adjoint(y: torch.Tensor) -> torch.Tensor:
        return torch.stack([scale * physics.A_adjoint(sinogram.T[None, None])[0, 0] for sinogram in y])

    return Candidate(forward, adjoint, _corner_centre(padded), largest_batch=1 if options else 16)


def skimage(case: Case) -> Candidate:
    """Use scikit-image's radon, which has no adjoint."""
    if isinstance(case.geometry, FanBeam):
        raise ImportError("scikit-image projects parallel beams only")
    transform = importlib.import_module("skimage.transform")
    angles, scale = np.rad2deg(case.geometry.angles_rad), case.geometry.pixel_spacing_mm

    def forward(x: torch.Tensor) -> torch.Tensor:
        sinograms = [scale * transform.radon(image, angles, circle=False).T for image in x.numpy()]
        return torch.from_numpy(np.stack(sinograms))

    return Candidate(forward, None, _corner_centre(math.ceil(math.sqrt(2) * case.n)))


def main() -> None:
    """Run every case."""
    options = arguments(__doc__ or "")
    rows: list[Row] = []
    cases = [_fan(128, 160, 201), _parallel(126, 30)] if options.quick else [_fan(416, 640, 641), _parallel(512, 60)]
    for case in cases:
        candidates: dict[str, Candidate] = {}
        for build in (ours, astra, astra_classic, scipy, deepinv, skimage):
            start = time.process_time()
            try:
                candidates[build.__name__] = build(case)
            except ImportError as error:
                print(f"{case.name}: {build.__name__} is skipped ({error}).")
            else:
                print(f"{case.name}: {build.__name__} was built in {time.process_time() - start:.2f} s.")
        for n_batch, n_rounds in ((1, 5), (4, 3), (16, 3)):
            rows += _rows(case, candidates, n_batch, min(n_rounds, 3) if options.quick else n_rounds)
    report("projection", rows)


def _rows(case: Case, candidates: dict[str, Candidate], n_batch: int, n_rounds: int) -> list[Row]:
    name = f"{case.name} ×{n_batch}"
    some = {what: candidate for what, candidate in candidates.items() if candidate.largest_batch >= n_batch}
    x = _image(case).float().expand(n_batch, -1, -1).contiguous()
    y = _noise(n_batch, case.geometry.n_views, case.geometry.n_detectors)
    rows = measure(
        name, "forward", {what: _call(c.forward, x) for what, c in some.items()}, _NO_REFERENCE, n_rounds=n_rounds
    )
    rows = [replace(row, error=_error(case, some[row.candidate], x)) for row in rows]
    paired = {what: candidate for what, candidate in some.items() if candidate.adjoint}
    back = measure(
        name, "adjoint", {what: _call(c.adjoint, y) for what, c in paired.items()}, _NO_REFERENCE, n_rounds=n_rounds
    )
    return rows + [
        replace(row, error=_adjointness(some[row.candidate], _noise(1, case.n, case.n), y[:1])) for row in back
    ]


def _fan(n: int, n_views: int, n_detectors: int) -> Case:
    """The full circle of the metal artefact literature: the detector spans the diagonal, magnified by two."""
    pixel_mm = 512 / n * 0.3
    distance_mm = 1075 / 416 * n * pixel_mm
    angles = tuple((view + 0.5) * 2 * math.pi / n_views for view in range(n_views))
    spacing_mm = 2 * math.sqrt(2) * n * pixel_mm / n_detectors
    geometry = FanBeam(angles, n_detectors, spacing_mm, pixel_mm, 0.0, distance_mm, distance_mm)
    return Case(f"fan {n}² {n_views}×{n_detectors}", geometry, n)


def _parallel(n: int, n_views: int) -> Case:
    """Half a circle, with as many bins of a pixel's size as the diagonal needs."""
    n_detectors = math.ceil(math.sqrt(2) * n)
    angles = tuple(view * math.pi / n_views for view in range(n_views))
    return Case(f"parallel {n}² {n_views}×{n_detectors}", ParallelBeam(angles, n_detectors, 1.0, 1.0), n)


def _blobs(case: Case) -> list[tuple[float, float, float, float]]:
    """Centre to the right and up, standard deviation, and attenuation of Gaussian blobs, in mm and 1/mm."""
    unit = case.n * case.geometry.pixel_spacing_mm
    blobs = ((0.16, 0.08, 0.05, 0.02), (-0.23, 0.2, 0.03, 0.03), (0.04, -0.27, 0.06, 0.01))
    return [(unit * x, unit * y, unit * std, mu) for x, y, std, mu in blobs]


def _image(case: Case) -> torch.Tensor:
    middle = torch.arange(case.n, dtype=torch.float64) - (case.n - 1) / 2
    x, y = middle * case.geometry.pixel_spacing_mm, -middle[:, None] * case.geometry.pixel_spacing_mm
    blobs = [mu * torch.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * std**2)) for cx, cy, std, mu in _blobs(case)]
    return torch.stack(blobs).sum(dim=0)


def _sinogram(case: Case, centre: tuple[float, float]) -> torch.Tensor:
    points, directions = (torch.from_numpy(table) for table in case.geometry.rays())
    offset_x, offset_y = (length * case.geometry.pixel_spacing_mm for length in centre)
    result = torch.zeros(points.shape[:2], dtype=torch.float64)
    for x, y, std, mu in _blobs(case):
        dx, dy = points[..., 0] - (x - offset_x), points[..., 1] - (y - offset_y)
        distance = dx * directions[..., 1] - dy * directions[..., 0]
        result += mu * std * math.sqrt(2 * math.pi) * torch.exp(-(distance**2) / (2 * std**2))
    return result


def _error(case: Case, candidate: Candidate, x: torch.Tensor) -> float:
    exact = _sinogram(case, candidate.centre)
    return float((candidate.forward(x[:1])[0].double() - exact).norm() / exact.norm())


def _adjointness(candidate: Candidate, x: torch.Tensor, y: torch.Tensor) -> float:
    assert candidate.adjoint is not None
    image, back = candidate.forward(x).double(), candidate.adjoint(y).double()
    difference = (image * y.double()).sum() - (x.double() * back).sum()
    return float(difference.abs() / (image.norm() * y.double().norm()))


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _call(apply: Apply | None, argument: torch.Tensor) -> Callable[[], torch.Tensor]:
    assert apply is not None

    def call() -> torch.Tensor:
        with torch.no_grad():
            return apply(argument)

    return call


def _corner_centre(n_padded: int) -> tuple[float, float]:
    """Where a centre at index n//2 of an odd number of pixels lies that pad an even number of them."""
    return (0.5, -0.5) if n_padded % 2 else (0.0, 0.0)


def _astra_projector(case: Case) -> int:
    module = importlib.import_module("astra")
    geometry = case.geometry
    half = case.n * geometry.pixel_spacing_mm / 2
    bins = (geometry.detector_spacing_mm, geometry.n_detectors, np.array(geometry.angles_rad))
    if isinstance(geometry, FanBeam):
        distances = (geometry.source_to_center_mm, geometry.center_to_detector_mm)
        kind, scan = "line_fanflat", module.create_proj_geom("fanflat", *bins, *distances)
    else:
        kind, scan = "line", module.create_proj_geom("parallel", *bins)
    number: int = module.create_projector(kind, scan, module.create_vol_geom(case.n, case.n, -half, half, -half, half))
    return number


if __name__ == "__main__":
    main()
