"""Published geometries: numbers against their sources, and what comes out upright."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctrecon.presets import (
    PRESETS,
    Preset,
    aapm_ct_mar,
    aapm_ct_mar_offset,
    htc2022,
    lodopab,
    preset,
    sparse_view,
    syndeeplesion,
)
from operators.back_projection import filtered_back_projection
from operators.beam_geometry import BeamGeometry, FanBeam, ParallelBeam
from operators.errors import InputError
from tests.reference.tomography import disc, sinogram


def small(found: Preset, factor: int, *, views: int = 1) -> tuple[BeamGeometry, tuple[int, int]]:
    """The same scan with larger pixels and bins and fewer views, to be reconstructed in no time."""
    geometry = found.geometry
    geometry = replace(
        geometry,
        angles_rad=geometry.angles_rad[::views],
        n_detectors=geometry.n_detectors // factor,
        detector_spacing_mm=geometry.detector_spacing_mm * geometry.n_detectors / (geometry.n_detectors // factor),
        pixel_spacing_mm=geometry.pixel_spacing_mm * factor,
    )
    return geometry, (found.image_shape[0] // factor, found.image_shape[1] // factor)


def centroid_of_discs(data: torch.Tensor, geometry: BeamGeometry, shape: tuple[int, int]) -> tuple[float, float]:
    """Row and column of the centre of mass of what is reconstructed."""
    image = filtered_back_projection(data[None].float(), geometry, shape)[0].double().clamp(min=0.3)
    image = image - 0.3
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in shape)
    total = image.sum()
    return float((image.sum(1) * rows).sum() / total), float((image.sum(0) * columns).sum() / total)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_code_and_makes_sense(name: str) -> None:
    found = preset(name)
    names = {"Preset": Preset, "FanBeam": FanBeam, "ParallelBeam": ParallelBeam}
    assert eval(repr(found), names) == found
    assert found == preset(name)
    geometry = found.geometry
    reach_mm = math.hypot(*found.image_shape) / 2 * geometry.pixel_spacing_mm
    if isinstance(geometry, FanBeam):
        assert reach_mm < geometry.source_to_center_mm


def test_an_unknown_preset_names_those_that_there_are() -> None:
    with pytest.raises(InputError, match=r"no preset 'aapm'; there are syndeeplesion, aapm-ct-mar, .*sparse-view-60"):
        preset("aapm")


def test_syndeeplesion_in_numbers() -> None:
    geometry = syndeeplesion().geometry
    assert (geometry.n_views, geometry.n_detectors, syndeeplesion().image_shape) == (640, 641, (416, 416))
    assert geometry.pixel_spacing_mm == pytest.approx(0.3692, abs=1e-4)
    assert isinstance(geometry, FanBeam)
    assert geometry.source_to_center_mm == geometry.center_to_detector_mm == pytest.approx(396.92, abs=0.01)
    # At the isocentre, half way to the detector, the bins reach from corner to corner of the image.
    at_isocentre_mm = geometry.n_detectors * geometry.detector_spacing_mm / 2
    assert at_isocentre_mm == pytest.approx(math.sqrt(2) * 416 * geometry.pixel_spacing_mm)


def test_syndeeplesion_images_come_out_as_the_files_store_them() -> None:
    """The files hold the fan-beam transform, at (k + ½) 2π/640, of an array whose first axis is x."""
    found = syndeeplesion()
    row, column = 130, 250
    spacing = found.geometry.pixel_spacing_mm
    x_mm, y_mm = (row - 207.5) * spacing, (column - 207.5) * spacing
    angles = tuple((view + 0.5) * 2 * math.pi / 640 for view in range(640))
    geometry, shape = small(found, 4, views=4)
    simulated = sinogram(replace(geometry, angles_rad=angles[::4]), [disc(12.0, (x_mm, y_mm))])
    found_row, found_column = centroid_of_discs(simulated, geometry, shape)
    assert (found_row * 4 + 1.5, found_column * 4 + 1.5) == pytest.approx((row, column), abs=1.0)


def test_lodopab_in_numbers() -> None:
    geometry = lodopab().geometry
    assert (geometry.n_views, geometry.n_detectors, lodopab().image_shape) == (1000, 513, (362, 362))
    assert geometry.detector_spacing_mm == pytest.approx(0.71675, abs=1e-5)
    assert lodopab().divided_by == pytest.approx(81.35858)


def test_lodopab_images_come_out_upright() -> None:
    """Published arrays: x first, then the rows of the picture, the last of them at y = +13 cm."""
    found = lodopab()
    row, column = 90, 240
    spacing = found.geometry.pixel_spacing_mm
    x_mm, y_mm = (column - 180.5) * spacing, (row - 180.5) * spacing
    geometry, shape = small(found, 4, views=8)
    theta = (np.arange(1000)[::8] + 0.5) * math.pi / 1000
    distance = geometry.detector_mm - (x_mm * np.cos(theta) + y_mm * np.sin(theta))[:, None]
    simulated = torch.from_numpy(2 * np.sqrt(np.maximum(20.0**2 - distance**2, 0)))
    found_row, found_column = centroid_of_discs(simulated, geometry, shape)
    assert (found_row * 4 + 1.5, found_column * 4 + 1.5) == pytest.approx((row, column), abs=1.5)


def test_aapm_ct_mar_in_numbers() -> None:
    geometry = aapm_ct_mar().geometry
    assert isinstance(geometry, FanBeam)
    assert geometry.curved
    assert (geometry.n_views, geometry.n_detectors) == (1000, 900)
    assert geometry.pixel_spacing_mm * 512 == pytest.approx(400.0)
    assert geometry.source_to_detector_mm == 950.0
    # The first view has its source at the top.
    points, _ = geometry[:1].rays()
    assert points[0, 0] == pytest.approx((0.0, 550.0), abs=1e-9)
    offset = aapm_ct_mar_offset().geometry
    assert offset.detector_offset_mm == 1.25
    assert replace(offset, detector_offset_mm=0.0) == geometry


def test_htc2022_in_numbers() -> None:
    geometry = htc2022().geometry
    assert isinstance(geometry, FanBeam)
    assert geometry.pixel_spacing_mm == pytest.approx(0.1483223)
    assert geometry.source_to_detector_mm == pytest.approx(553.74)
    assert geometry.angles_rad[181] == pytest.approx(math.radians(90.5))


@pytest.mark.parametrize("n_views", [60, 90, 120, 180, 360])
def test_the_sparse_views_are_equally_spaced_ones_of_360(n_views: int) -> None:
    geometry = sparse_view(n_views).geometry
    steps = np.diff(geometry.angles_rad)
    assert geometry.n_views == n_views
    np.testing.assert_allclose(steps, 2 * math.pi / n_views)
    assert geometry.angles_rad[0] == pytest.approx(math.pi / 360)
    assert geometry.pixel_spacing_mm * 512 == pytest.approx(400.0)
    assert geometry.n_detectors * geometry.detector_spacing_mm == pytest.approx(960.0)


@pytest.mark.parametrize("n_views", [0, -60, 100, 361])
def test_views_that_do_not_divide_360_are_refused(n_views: int) -> None:
    with pytest.raises(InputError, match="cannot be taken at equal steps from 360"):
        sparse_view(n_views)
