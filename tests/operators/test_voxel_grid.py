"""Where voxels lie: affines, LPS and RAS, Fourier centres and crops."""

import math

import numpy as np
import pytest

from operators.elementary import centred_window
from operators.voxel_grid import VoxelGrid


def _rotation(seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    return q * np.sign(np.diag(r))


def _directions(seed: int) -> tuple[tuple[float, float, float], ...]:
    return tuple(tuple(float(v) for v in row) for row in _rotation(seed))


@pytest.fixture(params=[1, 2, 3])
def grid(request) -> VoxelGrid:
    """An oblique, anisotropic grid away from the origin; every third one is left-handed."""
    return VoxelGrid((4, 6, 5), (5.0, 1.5, 0.75), _directions(request.param), (10.0, -20.0, 30.0))


def _apply(affine: np.ndarray, index: tuple[float, ...]) -> np.ndarray:
    """Position of the voxel (slice, row, column) under an affine in (column, row, slice) order."""
    return (affine @ np.array([*index[::-1], 1.0]))[:3]


def test_affine_columns_are_steps_of_column_row_and_slice(grid):
    affine = grid.affine_lps()
    for column, axis in ((0, 2), (1, 1), (2, 0)):
        step = np.asarray(grid.directions[axis]) * grid.spacing_mm[axis]
        np.testing.assert_allclose(affine[:3, column], step, atol=1e-12)
    np.testing.assert_allclose(affine[:3, 3], grid.origin_mm)
    np.testing.assert_array_equal(affine[3], [0, 0, 0, 1])


def test_affine_and_position_agree(grid):
    for index in ((0, 0, 0), (3, 5, 4), (1.5, 2.25, -1)):
        np.testing.assert_allclose(_apply(grid.affine_lps(), index), grid.position_mm(index), atol=1e-12)


def test_neighbours_lie_one_spacing_apart(grid):
    origin = np.asarray(grid.position_mm((0, 0, 0)))
    for axis, spacing in enumerate(grid.spacing_mm):
        beside = np.asarray(grid.position_mm(np.eye(3)[axis]))
        assert math.dist(origin, beside) == pytest.approx(spacing, rel=1e-12)


def test_ras_is_lps_with_the_first_two_coordinates_negated(grid):
    for index in ((0, 0, 0), (3, 5, 4)):
        x, y, z = grid.position_mm(index)
        np.testing.assert_allclose(_apply(grid.affine_ras(), index), (-x, -y, z), atol=1e-12)


def test_default_grid_is_axial_with_rows_to_posterior_and_columns_to_left():
    grid = VoxelGrid((2, 3, 4), (5.0, 2.0, 1.0))
    np.testing.assert_array_equal(grid.affine_lps(), np.diag([1.0, 2, 5, 1]))
    np.testing.assert_array_equal(grid.affine_ras(), np.diag([-1.0, -2, 5, 1]))


def test_volume_of_a_voxel_is_the_determinant(grid):
    assert abs(np.linalg.det(grid.affine_lps())) == pytest.approx(5.0 * 1.5 * 0.75, rel=1e-9)


def test_affine_goes_round(grid):
    again = VoxelGrid.from_affine_ras(grid.affine_ras(), grid.shape)
    np.testing.assert_allclose(again.affine_lps(), grid.affine_lps(), atol=1e-12)
    np.testing.assert_allclose(again.spacing_mm, grid.spacing_mm)


@pytest.mark.parametrize("shape", [(1, 4, 5), (5, 6, 7), (4, 5, 6)])
def test_around_puts_the_fourier_centre_where_it_was_asked(shape):
    centre = (3.0, -7.0, 11.0)
    grid = VoxelGrid.around(centre, shape, (4.0, 1.5, 2.0), _directions(1))
    np.testing.assert_allclose(grid.position_mm([n // 2 for n in shape]), centre, atol=1e-12)
    stack = VoxelGrid.around(centre, shape, (4.0, 1.5, 2.0), _directions(1), slice_centre=0)
    np.testing.assert_allclose(stack.position_mm((0, shape[1] // 2, shape[2] // 2)), centre, atol=1e-12)


def test_around_is_exact_for_directions_that_were_rounded():
    rounded = tuple(tuple(round(v, 4) for v in row) for row in _directions(2))
    centre = (3.0, -7.0, 11.0)
    grid = VoxelGrid.around(centre, (64, 256, 256), (1.0, 1.0, 1.0), rounded)
    np.testing.assert_allclose(grid.position_mm((32, 128, 128)), centre, atol=1e-9)


def test_cropped_voxels_stay_where_they_were(grid):
    window = (slice(1, 3), slice(2, 6), slice(0, 4))
    cropped = grid.cropped(window)
    assert cropped.shape == (2, 4, 4)
    for index in ((0, 0, 0), (1, 3, 2)):
        whole = tuple(i + part.start for i, part in zip(index, window, strict=True))
        np.testing.assert_allclose(cropped.position_mm(index), grid.position_mm(whole), atol=1e-12)


@pytest.mark.parametrize("outer", [(4, 6, 8), (5, 7, 9), (4, 7, 8)])
def test_central_crop_keeps_the_fourier_centre_in_place(outer):
    spacing, directions, centre = (2.0, 1.0, 0.5), _directions(3), (1.0, 2.0, 3.0)
    for inner in ((4, 4, 4), (3, 5, 7), (1, 1, 1)):
        cropped = VoxelGrid.around(centre, outer, spacing, directions).cropped(centred_window(inner, outer))
        expected = VoxelGrid.around(centre, inner, spacing, directions)
        assert cropped.shape == expected.shape
        np.testing.assert_allclose(cropped.affine_lps(), expected.affine_lps(), atol=1e-12)


def test_open_and_negative_slices_crop_as_they_index(grid):
    whole = grid.cropped((slice(None), slice(-4, None), slice(None, -1)))
    assert whole.shape == (4, 4, 4)
    np.testing.assert_allclose(whole.origin_mm, grid.position_mm((0, 2, 0)), atol=1e-12)


@pytest.mark.parametrize("window", [(slice(0, 4, 2),) + (slice(None),) * 2, (slice(2, 2),) + (slice(None),) * 2])
def test_a_window_with_a_step_or_without_voxels_is_refused(grid, window):
    with pytest.raises(ValueError, match=r"step|positive numbers"):
        grid.cropped(window)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (0, 3, 4)}, "Grid shape"),
        ({"shape": (3, 4)}, "Grid shape"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "Grid spacing"),
        ({"spacing_mm": (1.0, math.nan, 1.0)}, "Grid spacing"),
        ({"spacing_mm": (1.0, 1.0)}, "Grid spacing"),
        ({"directions": ((1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))}, "Grid directions"),
        ({"directions": ((2.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))}, "Grid directions"),
        ({"directions": ((math.nan, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))}, "Grid directions"),
        ({"origin_mm": (0.0, math.inf, 0.0)}, "Grid origin"),
    ],
)
def test_what_is_no_grid_is_refused(change, message):
    given = {"shape": (2, 3, 4), "spacing_mm": (1.0, 1.0, 1.0)} | change
    with pytest.raises(ValueError, match=message):
        VoxelGrid(**given)


@pytest.mark.parametrize("affine", [np.diag([1.0, 0, 1, 1]), np.full((4, 4), np.nan), np.eye(4) + np.eye(4, k=1)])
def test_what_is_no_affine_of_a_grid_is_refused(affine):
    with pytest.raises(ValueError, match=r"affine|directions"):
        VoxelGrid.from_affine_ras(affine, (2, 3, 4))
