import math
from dataclasses import replace

import pytest
import torch

from ctrecon.hounsfield import MU_WATER_PER_MM
from ctrecon.sinogram import Sinogram
from operators.beam_geometry import ParallelBeam
from operators.decision import Decision

GEOMETRY = ParallelBeam((0.0, 0.5, 1.0), n_detectors=5, detector_spacing_mm=1.0, pixel_spacing_mm=2.0)


def scan(**changes: object) -> Sinogram:
    return replace(Sinogram(torch.zeros(2, 3, 5), GEOMETRY, image_shape=(4, 6)), **changes)


def test_what_nobody_says_has_the_usual_value() -> None:
    assert scan().mu_water_per_mm == MU_WATER_PER_MM
    assert not scan().mu_water_known
    assert scan().weights is None
    assert scan().n_slices == 2


def test_the_isocentre_is_the_centre_of_the_image_and_its_position_is_kept() -> None:
    grid = scan(center_mm=(10.0, -20.0, 30.0), slice_spacing_mm=3.0).grid()
    assert grid.shape == (2, 4, 6)
    assert grid.spacing_mm == (3.0, 2.0, 2.0)
    assert grid.position_mm((0, 1.5, 2.5)) == pytest.approx((10.0, -20.0, 30.0))
    assert grid.position_mm((1, 1.5, 2.5)) == pytest.approx((10.0, -20.0, 33.0))


def test_the_directions_turn_the_grid_about_the_isocentre() -> None:
    directions = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (-1.0, 0.0, 0.0))
    grid = scan(center_mm=(1.0, 2.0, 3.0), directions=directions).grid()
    assert grid.position_mm((0, 1.5, 2.5)) == pytest.approx((1.0, 2.0, 3.0))
    assert grid.position_mm((0, 2.5, 2.5)) == pytest.approx((1.0, 2.0, 1.0))
    assert grid.position_mm((0, 1.5, 3.5)) == pytest.approx((-1.0, 2.0, 3.0))


def test_decisions_are_appended() -> None:
    first, second = Decision("a", "1", "Because."), Decision("b", "2", "Because.")
    assert scan(decisions=(first,)).with_decisions(second).decisions == (first, second)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": torch.zeros(3, 5)}, r"shape \(3, 5\); expected \(slice, 3, 5\)"),
        ({"data": torch.zeros(1, 5, 3)}, r"shape \(1, 5, 3\); expected \(slice, 3, 5\)"),
        ({"weights": torch.zeros(1, 3, 5)}, "they must agree"),
        ({"image_shape": (4, 0)}, "two positive sizes"),
        ({"image_shape": (4, 4, 4)}, "two positive sizes"),
        ({"mu_water_per_mm": 0.192}, "divide it by 10"),
        ({"mu_water_per_mm": math.nan}, "expected about 0.02"),
    ],
)
def test_parts_that_do_not_agree_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scan(**changes)


def test_counts_are_no_sinogram() -> None:
    with pytest.raises(TypeError, match=r"torch.int32; expected real floating-point line integrals"):
        scan(data=torch.zeros(2, 3, 5, dtype=torch.int32))
    with pytest.raises(TypeError, match="complex64"):
        scan(data=torch.zeros(2, 3, 5, dtype=torch.complex64))
