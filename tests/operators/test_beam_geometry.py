"""Geometries say where the rays run, refuse what makes no sense, and go round through repr and JSON."""

import math

import numpy as np
import pytest

from operators.beam_geometry import FanBeam, ParallelBeam, geometry_from_json

PARALLEL = ParallelBeam((0.0, 0.5, 2.0), 5, 0.8, 0.7, 0.2)
FLAT = FanBeam((0.0, 0.5, 2.0), 5, 1.5, 0.7, 0.2, 60.0, 40.0)
CURVED = FanBeam((0.0, 0.5, 2.0), 5, 1.5, 0.7, 0.2, 60.0, 40.0, curved=True)
EVERY = pytest.mark.parametrize("geometry", [PARALLEL, FLAT, CURVED], ids=["parallel", "flat", "curved"])


@EVERY
def test_directions_are_unit_vectors_for_every_bin_of_every_view(geometry):
    points, directions = geometry.rays()
    assert points.shape == directions.shape == (3, 5, 2)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1)


def test_parallel_rays_of_view_zero_run_down_and_the_detector_to_the_right():
    points, directions = PARALLEL.rays()
    np.testing.assert_allclose(directions[0], np.tile((0, -1), (5, 1)), atol=1e-15)
    np.testing.assert_allclose(points[0], [(u, 0) for u in (-1.4, -0.6, 0.2, 1.0, 1.8)], atol=1e-15)


def test_views_turn_counter_clockwise():
    _, directions = PARALLEL[1:].rays()
    np.testing.assert_allclose(directions[:, 0], [(math.sin(t), -math.cos(t)) for t in (0.5, 2.0)])


@pytest.mark.parametrize("geometry", [FLAT, CURVED], ids=["flat", "curved"])
def test_fan_rays_start_at_the_source_below_the_object_and_meet_the_bins(geometry):
    points, directions = geometry.rays()
    np.testing.assert_allclose(points[0], np.tile((0, -60), (5, 1)), atol=1e-12)
    middle = directions[0, 2]  # the offset turns the middle ray to the right by 0.2 mm over 100 mm
    assert math.atan2(middle[0], middle[1]) == pytest.approx(0.002 if geometry.curved else math.atan(0.002))


def test_flat_bins_lie_on_a_line_and_curved_bins_at_equal_angles():
    _, directions = FLAT.rays()
    bins = directions[0] * (100 / directions[0, :, 1:])  # where the rays are 100 mm above the source
    np.testing.assert_allclose(np.diff(bins[:, 0]), 1.5)
    np.testing.assert_allclose(np.diff(CURVED.fan_angles_rad), 0.015)
    _, directions = CURVED.rays()
    np.testing.assert_allclose(np.diff(np.arctan2(directions[1, :, 0], -directions[1, :, 1])), -0.015)


@EVERY
def test_repr_is_code_and_json_goes_round(geometry):
    assert eval(repr(geometry)) == geometry
    assert geometry_from_json(geometry.to_json()) == geometry
    assert hash(geometry_from_json(geometry.to_json())) == hash(geometry)


@EVERY
def test_a_subset_keeps_everything_but_the_other_views(geometry):
    assert geometry[1:].angles_rad == (0.5, 2.0)
    assert geometry[[2, 0]].angles_rad == (2.0, 0.0)
    points, directions = geometry.rays()
    chosen = geometry[[2, 0]].rays()
    np.testing.assert_array_equal(chosen[0], points[[2, 0]])
    np.testing.assert_array_equal(chosen[1], directions[[2, 0]])


def test_arrays_of_angles_become_plain_numbers():
    geometry = ParallelBeam(np.linspace(0, 3, 4, dtype=np.float32), 3, 1.0, 1.0)
    assert geometry.angles_rad == (0.0, 1.0, 2.0, 3.0)
    assert eval(repr(geometry)) == geometry


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"angles_rad": ()}, "angles_rad is empty"),
        ({"angles_rad": (0.0, math.nan)}, "not finite"),
        ({"angles_rad": tuple(range(0, 360, 10))}, "look like degrees.*math.radians"),
        ({"n_detectors": 0}, "n_detectors is 0"),
        ({"detector_spacing_mm": 0.0}, "detector_spacing_mm is 0.0; expected a positive length in mm"),
        ({"detector_spacing_mm": math.inf}, "detector_spacing_mm is inf"),
        ({"pixel_spacing_mm": -1.0}, "pixel_spacing_mm is -1.0"),
        ({"detector_offset_mm": math.nan}, "detector_offset_mm is nan"),
        ({"source_to_center_mm": 0.0}, "source_to_center_mm is 0.0"),
        ({"center_to_detector_mm": -1.0}, "center_to_detector_mm is -1.0"),
        ({"detector_spacing_mm": 100.0, "curved": True}, "fan angles up to 115 degrees; every bin must lie in front"),
    ],
)
def test_geometries_that_make_no_sense_are_refused(changes, message):
    fields = {
        "angles_rad": (0.0,),
        "n_detectors": 5,
        "detector_spacing_mm": 1.0,
        "pixel_spacing_mm": 1.0,
        "source_to_center_mm": 60.0,
        "center_to_detector_mm": 40.0,
    }
    with pytest.raises(ValueError, match=message):
        FanBeam(**{**fields, **changes})


def test_a_fan_without_distances_is_refused():
    with pytest.raises(ValueError, match="source_to_center_mm is nan"):
        FanBeam((0.0,), 5, 1.0, 1.0)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", '{"type": "ConeBeam"}', '{"type": "ParallelBeam"}', '{"type": "ParallelBeam", "angle": 3}'],
)
def test_json_that_is_no_geometry_is_refused(text):
    with pytest.raises(ValueError, match=r"geometry cannot be read.*lengths in mm and angles in radians"):
        geometry_from_json(text)
