import math
from collections.abc import Callable

import pytest
import torch

from mrirecon.trajectory import (
    TrajectoryUnit,
    as_stack,
    epi,
    in_radians_per_pixel,
    radial,
    rosette,
    spiral,
    stack_of_stars,
)
from operators.errors import InputError

GENERATED = {
    "radial": (lambda: radial(7, 10), 70, 2),
    "radial, odd": (lambda: radial(6, 9), 54, 2),
    "golden": (lambda: radial(200, 8, golden=True), 1600, 2),
    "kooshball": (lambda: radial(50, 8, n_dims=3), 400, 3),
    "spiral": (lambda: spiral(3, 100, 4.5), 300, 2),
    "dense spiral": (lambda: spiral(2, 100, 4, density=2.0), 200, 2),
    "rosette": (lambda: rosette(3, 100, 3, 2), 300, 2),
    "stack of stars": (lambda: stack_of_stars(4, 5, 6), 120, 3),
    "epi": (lambda: epi(6, 8, n_shots=3), 48, 2),
}


@pytest.mark.parametrize("name", GENERATED)
def test_every_trajectory_has_the_promised_size_and_lies_inside_the_half_open_range(name: str) -> None:
    generate, n_samples, n_dims = GENERATED[name]
    k = generate()
    assert k.dtype == torch.float32
    assert k.shape == (n_samples, n_dims)
    assert bool((k.double() >= -math.pi).all())
    assert bool((k.double() < math.pi).all())
    assert float(k.norm(dim=-1).min()) < 1e-6 if name != "spiral" else bool((k[::100] == 0).all())
    assert float(k.abs().max()) > 0.8 * math.pi


@pytest.mark.parametrize("n_samples", [8, 9])
def test_spokes_pass_through_the_centre_in_equal_steps(n_samples: int) -> None:
    spokes = radial(5, n_samples).double().reshape(5, n_samples, 2)
    assert bool((spokes[:, n_samples // 2] == 0).all())
    steps = spokes.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=0, atol=1e-6)
    torch.testing.assert_close(steps.norm(dim=-1), torch.full_like(steps[..., 0], 2 * math.pi / n_samples))


def test_the_first_spoke_runs_along_kx_and_the_angles_are_equal() -> None:
    ends = radial(6, 8).reshape(6, 8, 2)[:, -1].double()
    torch.testing.assert_close(ends[0], torch.tensor([0.0, 0.75 * math.pi], dtype=torch.float64))
    angles = torch.atan2(ends[:, 0], ends[:, 1])
    torch.testing.assert_close(angles.diff(), torch.full((5,), math.pi / 6, dtype=torch.float64), rtol=0, atol=1e-6)


def test_golden_spokes_turn_by_111_degrees_and_any_run_of_them_covers_all_angles() -> None:
    ends = radial(34, 8, golden=True).reshape(34, 8, 2)[:, -1].double()
    angles = torch.rad2deg(torch.atan2(ends[:, 0], ends[:, 1]))
    torch.testing.assert_close(
        angles.diff() % 360, torch.full((33,), 111.24612, dtype=torch.float64), rtol=0, atol=1e-3
    )
    for start in (0, 5, 13):
        gaps = (angles[start : start + 21] % 180).sort().values.diff()
        assert float(gaps.max()) < 1.7 * 180 / 21  # a Fibonacci number of spokes: two or three sizes of gap


def test_the_kooshball_spreads_its_spokes_evenly() -> None:
    ends = radial(1000, 8, n_dims=3).reshape(1000, 8, 3)[:, 0].double()
    directions = ends / ends.norm(dim=-1, keepdim=True)
    second_moment = directions.T @ directions / 1000
    torch.testing.assert_close(second_moment, torch.eye(3, dtype=torch.float64) / 3, rtol=0, atol=0.01)
    # Increments of the golden means: v² in kz and v in the azimuth, with v³ + v = 1.
    v = float(directions[:, 2].new_tensor(_root_of_v3_plus_v()))
    torch.testing.assert_close(-directions[1, 0], directions.new_tensor(v * v), rtol=0, atol=1e-6)
    azimuth = torch.atan2(-directions[1, 1], -directions[1, 2]) / (2 * math.pi)
    torch.testing.assert_close(azimuth % 1, directions.new_tensor(v), rtol=0, atol=1e-6)


def _root_of_v3_plus_v() -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle**3 + middle < 1 else (low, middle)
    return low


def test_the_turns_of_an_archimedean_spiral_are_equally_far_apart() -> None:
    arms = spiral(2, 4000, 6).double().reshape(2, 4000, 2)
    crossings = _radii_crossing_positive_kx(arms[0])
    torch.testing.assert_close(crossings.diff(), torch.full_like(crossings[1:], math.pi / 6), rtol=0, atol=0.01)
    torch.testing.assert_close(arms[1], -arms[0], rtol=0, atol=1e-6)  # half a turn between two arms


def test_a_spiral_of_higher_density_has_its_turns_closer_at_the_centre() -> None:
    pitch = _radii_crossing_positive_kx(spiral(1, 4000, 6, density=2.0).double()).diff()
    assert bool((pitch.diff() > 0).all())


def _radii_crossing_positive_kx(arm: torch.Tensor) -> torch.Tensor:
    ky, kx = arm[1:].T
    crosses = (ky[:-1] < 0) & (ky[1:] >= 0) & (kx[1:] > 0)
    return arm[2:][crosses].norm(dim=-1)


@pytest.mark.parametrize(("n_turns", "density"), [(10, 1.0), (0.5, 1.0), (4, 2.0)])
def test_a_spiral_moves_at_constant_speed(n_turns: float, density: float) -> None:
    speed = spiral(1, 2000, n_turns, density=density).double().diff(dim=0).norm(dim=-1)
    assert float(speed.max() / speed[3:].min()) < 1.02
    assert float(speed.max() / speed.min()) < 1.15  # the first chords cut the corner where the arm bends most


def test_petals_of_a_rosette_point_in_distinct_even_directions() -> None:
    n_oscillations, n_shots = 3, 2
    k = rosette(n_shots, 12 * 50, n_oscillations, 2).double().reshape(n_shots, 6, 100, 2)
    tips = k[:, :, 50].reshape(-1, 2)
    torch.testing.assert_close(tips.norm(dim=-1), torch.full((12,), math.pi, dtype=torch.float64))
    angles = (torch.rad2deg(torch.atan2(tips[:, 0], tips[:, 1])) % 360).sort().values
    torch.testing.assert_close(angles.diff(), torch.full((11,), 30.0, dtype=torch.float64), rtol=0, atol=1e-4)


def test_a_stack_is_recognised_by_its_partitions_and_its_plane() -> None:
    k = stack_of_stars(4, 5, 6)
    found = as_stack(k, (4, 6, 6))
    assert found is not None
    plane, partitions = found
    torch.testing.assert_close(plane, radial(5, 6), rtol=0, atol=1e-6)
    assert partitions.tolist() == [0, 1, 2, 3]
    some = as_stack(torch.cat((k[60:90], k[30:60], k[60:90])), (4, 6, 6))
    assert some is not None
    assert some[1].tolist() == [2, 1, 2]


def test_what_is_no_stack_is_not_taken_for_one() -> None:
    k = stack_of_stars(4, 5, 6)
    assert as_stack(radial(20, 6, n_dims=3), (6, 6, 6)) is None
    assert as_stack(k, (5, 6, 6)) is None  # off the grid of kz
    assert as_stack(k[:-6], (4, 6, 6)) is None  # a spoke is missing
    turned = k.clone()
    turned[30:, 1:] = -turned[30:, 1:].flip(-1)
    assert as_stack(turned, (4, 6, 6)) is None


def test_a_stack_of_stars_repeats_one_star_in_every_partition() -> None:
    k = stack_of_stars(4, 5, 6, golden=True).reshape(4, 30, 3)
    assert bool((k[..., 1:] == radial(5, 6, golden=True)).all())
    torch.testing.assert_close(k[:, 0, 0], torch.tensor([-math.pi, -math.pi / 2, 0, math.pi / 2]))
    assert bool((k[..., 0] == k[:, :1, 0]).all())


def test_epi_reads_the_cartesian_grid_back_and_forth() -> None:
    lines = epi(6, 5, n_shots=2).reshape(6, 5, 2)
    expected_ky = 2 * math.pi / 6 * (torch.tensor([0, 2, 4, 1, 3, 5]) - 3)
    torch.testing.assert_close(lines[:, 0, 0], expected_ky)
    towards_positive = (lines[:, 1:, 1] > lines[:, :-1, 1]).all(dim=1)
    assert towards_positive.tolist() == [True, False, True, True, False, True]
    grid = torch.unique((lines.reshape(-1, 2).double() * torch.tensor([6, 5]) / (2 * math.pi)).round(), dim=0)
    assert torch.equal(grid, torch.cartesian_prod(torch.arange(-3.0, 3.0), torch.arange(-2.0, 3.0)).double())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: radial(0, 8), "n_spokes is 0"),
        (lambda: radial(4, 1), "n_samples is 1"),
        (lambda: radial(4, 8, n_dims=4), "n_dims is 4"),
        (lambda: spiral(1, 8, 0), "n_turns is 0"),
        (lambda: spiral(1, 8, 2, density=-1), "density is -1"),
        (lambda: spiral(1, 8, math.inf), "n_turns is inf"),
        (lambda: rosette(1, 8, 3, 1), "petals coincide"),
        (lambda: rosette(1, 8, 3, 0), "n_rotations is 0"),
        (lambda: stack_of_stars(0, 4, 8), "n_partitions is 0"),
        (lambda: epi(4, 8, n_shots=5), "5 shots cannot share 4 lines"),
        (lambda: epi(4, 2.5), "n_samples is 2.5"),  # type: ignore[arg-type]
    ],
)
def test_impossible_trajectories_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


SHAPE, FOV_MM = (32, 48), (160.0, 240.0)
INDEX = torch.tensor([[-16.0, 3.0], [7.5, -24.0], [0.0, 23.0], [4.0, 0.0]], dtype=torch.float64)
AS_RADIANS = INDEX * 2 * math.pi / torch.tensor(SHAPE)
IN_UNIT = {
    "cycles-per-pixel": INDEX / torch.tensor(SHAPE),
    "radians-per-pixel": AS_RADIANS,
    "index": INDEX,
    "1/m": INDEX / (torch.tensor(FOV_MM) / 1000),
}


@pytest.mark.parametrize("unit", IN_UNIT)
@pytest.mark.parametrize("given", [False, True])
def test_each_unit_is_recognised_and_converted(unit: TrajectoryUnit, given: bool) -> None:
    k, decision = in_radians_per_pixel(IN_UNIT[unit], SHAPE, FOV_MM, unit=unit if given else None)
    torch.testing.assert_close(k, AS_RADIANS, rtol=1e-7, atol=0)
    assert bool((k >= -math.pi).all())
    assert (decision.name, decision.value, decision.override) == ("trajectory_unit", unit, "--trajectory-unit")
    assert decision.reason.startswith("Given" if given else "The largest coordinate")
    assert not decision.warning


@pytest.mark.parametrize(("largest", "unit"), [(0.5, "cycles-per-pixel"), (3.1416, "radians-per-pixel"), (16, "index")])
def test_a_limit_belongs_to_the_unit_below_it_despite_rounding(largest: float, unit: str) -> None:
    k, decision = in_radians_per_pixel(torch.tensor([[largest, 0.0]]), (32, 32), None)
    assert decision.value == unit
    assert math.pi - 1e-6 < float(k.max()) < math.pi


def test_the_unit_can_be_overridden_and_a_doubtful_one_warns() -> None:
    k = torch.tensor([[0.4, 0.0], [0.0, -0.1]], dtype=torch.float64)
    decided, _ = in_radians_per_pixel(k, (32, 32), None)
    overridden, decision = in_radians_per_pixel(k, (32, 32), None, unit="radians-per-pixel")
    torch.testing.assert_close(decided, 2 * math.pi * k)
    torch.testing.assert_close(overridden, k)
    assert decision.warning
    assert "12.7 %" in str(decision)
    assert in_radians_per_pixel(torch.tensor([[0.6, 0.0]]), (32, 32), None)[1].warning


def test_batches_and_three_dimensions_keep_their_shape() -> None:
    k = radial(4, 8, n_dims=3).reshape(2, 16, 3).double()
    converted, decision = in_radians_per_pixel(k, (8, 8, 8), None)
    assert (converted.dtype, converted.shape, decision.value) == (torch.float64, k.shape, "radians-per-pixel")
    torch.testing.assert_close(converted, k, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("k", "fov_mm", "unit", "message"),
    [
        (torch.zeros(5, 2), FOV_MM, None, "zero everywhere"),
        (torch.full((5, 2), math.nan), FOV_MM, None, "not finite"),
        (torch.zeros(0, 2), FOV_MM, None, "is empty"),
        (torch.full((5, 2), 90.0), None, None, "needs a positive field of view"),
        (torch.full((5, 2), 90.0), (0.0, 240.0), None, "needs a positive field of view"),
        (torch.full((5, 2), 200.0), FOV_MM, None, "at least 64 × 96 pixels"),
        (torch.full((5, 2), 4.0), FOV_MM, "radians-per-pixel", "beyond π"),
    ],
)
def test_what_a_file_cannot_mean_is_an_input_error(
    k: torch.Tensor, fov_mm: tuple[float, float] | None, unit: TrajectoryUnit | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        in_radians_per_pixel(k, SHAPE, fov_mm, unit=unit)


@pytest.mark.parametrize(
    ("k", "shape", "fov_mm", "unit", "error"),
    [
        (torch.ones(5, 2, dtype=torch.complex64), SHAPE, None, None, TypeError),
        (torch.ones(5, 2, dtype=torch.int64), SHAPE, None, None, TypeError),
        (torch.ones(5, 3), SHAPE, None, None, ValueError),
        (torch.ones(5), SHAPE, None, None, ValueError),
        (torch.ones(5, 1), (32,), None, None, ValueError),
        (torch.ones(5, 2), SHAPE, (200.0,), None, ValueError),
        (torch.ones(5, 2), SHAPE, None, "degrees", ValueError),
    ],
)
def test_wrong_arguments_are_refused(
    k: torch.Tensor, shape: tuple[int, ...], fov_mm: tuple[float, ...] | None, unit: TrajectoryUnit, error: type
) -> None:
    with pytest.raises(error, match=r"expected"):
        in_radians_per_pixel(k, shape, fov_mm, unit=unit)
