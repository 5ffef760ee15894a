"""Filtered back-projection with the ramp: ours against scikit-image and ASTRA, and a plain sum for the fan.

Run ``python benchmarks/filtered_back_projection.py``; a peer that is not installed is skipped with a word. The error is
that of the image against the true phantom inside the field of view, so it holds view aliasing as well. Ours has its
tables built beforehand in ``ours``, and starts from the geometry in ``function``.
"""

import importlib
import math
from collections.abc import Callable

import numpy as np
import torch
from harness import Row, arguments, measure, report

from operators.back_projection import FilteredBackProjection, filtered_back_projection
from operators.beam_geometry import BeamGeometry, FanBeam, ParallelBeam

Call = Callable[[], torch.Tensor]
DISCS = ((0.0, 0.0, 0.42, 0.02), (0.12, 0.08, 0.1, 0.004), (-0.2, 0.1, 0.05, 0.01), (-0.1, -0.2, 0.02, 0.01))
"""Centre and radius as parts of the image's width, attenuation in 1/mm."""


def phantom(geometry: BeamGeometry, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Analytic sinogram and true image of some discs."""
    width = size * geometry.pixel_spacing_mm
    points, directions = geometry.rays()
    axis = (np.arange(4 * size) + 0.5 - 2 * size) / 4 * geometry.pixel_spacing_mm
    sinogram, image = np.zeros(points.shape[:2]), np.zeros((4 * size, 4 * size))
    for x, y, radius, mu_per_mm in DISCS:
        start = points - width * np.array([x, y])
        distance = start[..., 0] * directions[..., 1] - start[..., 1] * directions[..., 0]
        sinogram += 2 * mu_per_mm * np.sqrt(np.maximum((radius * width) ** 2 - distance**2, 0))
        image += mu_per_mm * ((axis - x * width) ** 2 + (-axis[:, None] - y * width) ** 2 < (radius * width) ** 2)
    pixels = image.reshape(size, 4, size, 4).mean(axis=(1, 3))
    return torch.from_numpy(sinogram).float(), torch.from_numpy(pixels).float()


def scikit_image(geometry: BeamGeometry, size: int, y: torch.Tensor) -> Call:
    """Build ``iradon`` with linear interpolation, sample by sample; for odd sizes its axis is ours."""
    iradon = importlib.import_module("skimage.transform").iradon
    theta = np.degrees(geometry.angles_rad)
    views = [sample.T.contiguous().numpy() / geometry.pixel_spacing_mm for sample in y]

    def call() -> torch.Tensor:
        images = [iradon(v, theta=theta, filter_name="ramp", circle=False, output_size=size) for v in views]
        return torch.from_numpy(np.stack(images)).float()

    return call


def astra(geometry: BeamGeometry, size: int, y: torch.Tensor) -> Call:
    """Build ASTRA's FBP on the CPU with its linear projector, sample by sample."""
    module = importlib.import_module("astra")
    half = size * geometry.pixel_spacing_mm / 2
    volume = module.create_vol_geom(size, size, -half, half, -half, half)
    angles = np.asarray(geometry.angles_rad)
    rays = module.create_proj_geom("parallel", geometry.detector_spacing_mm, geometry.n_detectors, angles)
    projector = module.create_projector("linear", rays, volume)

    def one(views: torch.Tensor) -> torch.Tensor:
        data, image = module.data2d.create("-sino", rays, views.numpy()), module.data2d.create("-vol", volume)
        settings = module.astra_dict("FBP") | {
            "ProjectorId": projector,
            "ProjectionDataId": data,
            "ReconstructionDataId": image,
            "option": {"FilterType": "ram-lak"},
        }
        algorithm = module.algorithm.create(settings)
        module.algorithm.run(algorithm)
        result = torch.from_numpy(module.data2d.get(image))
        module.algorithm.delete(algorithm)
        module.data2d.delete([data, image])
        return result

    return lambda: torch.stack([one(sample) for sample in y])


def plain_sum(geometry: BeamGeometry, size: int, y: torch.Tensor) -> Call:
    """Build what one writes first: the same filter, then ``numpy.interp`` at every pixel, view by view."""
    if not isinstance(geometry, FanBeam):
        raise ValueError("the plain sum is written for the flat fan")
    filtered = FilteredBackProjection(geometry, (size, size))
    n_padded = 2 * (len(filtered.response) - 1)
    axis = (np.arange(size) - (size - 1) / 2) * geometry.pixel_spacing_mm
    source, total = geometry.source_to_center_mm, geometry.source_to_detector_mm

    def one(views: torch.Tensor) -> np.ndarray:
        spectrum = torch.fft.rfft(views * filtered.weights, n_padded) * filtered.response
        image = np.zeros((size, size))
        for t, view in zip(geometry.angles_rad, torch.fft.irfft(spectrum, n_padded).numpy(), strict=True):
            depth = source - axis * math.sin(t) - axis[:, None] * math.cos(t)
            across = axis * math.cos(t) - axis[:, None] * math.sin(t)
            u = across / depth * total
            values = np.interp(u, geometry.detector_mm, view[: geometry.n_detectors], left=0, right=0)
            image += (source / depth) ** 2 * values
        return image

    return lambda: torch.from_numpy(np.stack([one(sample) for sample in y])).float()


def main() -> None:
    """Run every case."""
    options = arguments(__doc__ or "")
    rows: list[Row] = []
    n_rounds = 5 if options.quick else 7
    for size, n_views, n_batch in [(257, 60, 1)] if options.quick else [(513, 60, 1), (513, 60, 8), (513, 720, 1)]:
        angles = tuple(math.pi * k / n_views for k in range(n_views))
        scan = ParallelBeam(angles, math.ceil(size * 2**0.5) | 1, 400 / size, 400 / size)
        rows += _rows(f"parallel {size}² {n_views} views", scan, size, n_batch, (scikit_image, astra), n_rounds)
    for size, n_views, n_batch in [(208, 160, 1)] if options.quick else [(416, 640, 1), (416, 640, 4)]:
        rows += _rows(f"fan {size}² {n_views} views", _fan(size, n_views), size, n_batch, (plain_sum,), 3)
    report("filtered_back_projection", rows)


def _rows(
    case: str,
    geometry: BeamGeometry,
    size: int,
    n_batch: int,
    peers: tuple[Callable[[BeamGeometry, int, torch.Tensor], Call], ...],
    n_rounds: int,
) -> list[Row]:
    y, truth = phantom(geometry, size)
    y, shape = y.expand(n_batch, *y.shape).contiguous(), (size, size)
    reconstruct = FilteredBackProjection(geometry, shape)
    calls: dict[str, Call] = {
        "ours": lambda: reconstruct(y),
        "function": lambda: filtered_back_projection(y, geometry, shape),
    }
    for build in peers:
        try:
            calls[build.__name__] = build(geometry, size, y)
        except ImportError as error:
            print(f"{build.__name__} is not installed ({error}); skipped.")
    return measure(f"{case} ×{n_batch}", "ramp", calls, truth.expand(n_batch, *shape), n_rounds=n_rounds)


def _fan(size: int, n_views: int) -> FanBeam:
    """The fan of the metal artefact literature, scaled to the size."""
    spacing = 0.3 * 512 / size
    n_detectors = round(641 * size / 416)
    detector = 4 * 2**0.5 * size * spacing / n_detectors
    angles = tuple(2 * math.pi * (k + 0.5) / n_views for k in range(n_views))
    return FanBeam(
        angles, n_detectors, detector, spacing, 0.0, 1075 * 416 / size * spacing, 1075 * 416 / size * spacing
    )


if __name__ == "__main__":
    main()
