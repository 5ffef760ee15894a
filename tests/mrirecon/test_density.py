import math

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull, Voronoi

from mrirecon.acquisition import Acquisition
from mrirecon.density import coil_images, density, pipe_density, radial_density, samplings
from mrirecon.kspace import KSpace
from mrirecon.trajectory import epi, radial, rosette, spiral, stack_of_stars

N = 24
SHAPE = (N, N)
TRAJECTORIES = {
    "radial": radial(38, N),
    "golden": radial(55, N, golden=True),
    "spiral": spiral(4, 400, 4),
    "dense spiral": spiral(12, 300, 3, density=2.5),
}
OVERSAMPLED = {
    "radial": radial(38, 2 * N),
    "golden": radial(55, 2 * N, golden=True),
    "spiral": TRAJECTORIES["spiral"],
    "dense spiral": TRAJECTORIES["dense spiral"],
}


def voronoi_areas(trajectory: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Areas of the Voronoi cells in cells of the Cartesian grid, shared by coinciding samples; NaN where unbounded."""
    points, index, counts = np.unique(
        trajectory.double().numpy().round(6), axis=0, return_inverse=True, return_counts=True
    )
    diagram = Voronoi(points)
    areas = np.full(len(points), np.nan)
    for i, region in enumerate(diagram.point_region):
        corners = diagram.regions[region]
        if -1 not in corners:
            areas[i] = ConvexHull(diagram.vertices[corners]).volume
    return torch.from_numpy((areas / counts)[index.ravel()] * math.prod(shape) / (2 * math.pi) ** 2)


def inside(trajectory: torch.Tensor) -> torch.Tensor:
    """Samples at least two cells away from the outer edge of the covered disc."""
    return trajectory.norm(dim=-1) < math.pi * (1 - 4 / N)


def explicit_dft(trajectory: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The matrix of the centred, orthonormal transform, complex128 ``(sample, pixel)``."""
    positions = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) - n // 2 for n in shape))
    phase = trajectory.double() @ positions.T
    return torch.exp(-1j * phase) / math.sqrt(len(positions))


def test_analytic_areas_equal_the_voronoi_areas_of_a_uniform_radial_scan() -> None:
    k = TRAJECTORIES["radial"]
    expected, found = voronoi_areas(k, SHAPE), radial_density(k, SHAPE, N).double()
    # The Voronoi cells have straight outlines where the analytic ones are arcs.
    torch.testing.assert_close(found[inside(k)], expected[inside(k)], rtol=2e-3, atol=0)


def test_analytic_areas_equal_the_voronoi_areas_of_a_golden_angle_scan_away_from_the_centre() -> None:
    k = TRAJECTORIES["golden"]
    expected, found = voronoi_areas(k, SHAPE), radial_density(k, SHAPE, N).double()
    relative = ((found - expected) / expected)[inside(k) & (k.norm(dim=-1) > 1)]
    assert float(relative.abs().quantile(0.9)) < 0.01
    assert abs(float(found[inside(k)].sum() / expected[inside(k)].sum()) - 1) < 2e-3


@pytest.mark.parametrize("n_samples", [16, 17])
@pytest.mark.parametrize("golden", [False, True])
def test_areas_of_a_radial_scan_add_up_to_the_disc(n_samples: int, golden: bool) -> None:
    k = radial(21, n_samples, golden=golden)
    step = 2 * math.pi / n_samples
    outer = [abs(position) + step / 2 for position in (step * (n_samples // 2), step * ((n_samples - 1) // 2))]
    covered = math.pi * sum(r**2 for r in outer) / 2 * (n_samples / (2 * math.pi)) ** 2
    assert float(radial_density(k, (n_samples, n_samples), n_samples).sum()) == pytest.approx(covered, rel=1e-5)


def test_volumes_of_a_kooshball_add_up_to_the_ball_and_grow_with_the_square_of_the_radius() -> None:
    k = radial(30, 15, n_dims=3)
    density = radial_density(k, (15, 15, 15), 15).double().reshape(30, 15)
    assert float(density.sum()) == pytest.approx(4 / 3 * math.pi * 7.5**3, rel=1e-5)
    cells = torch.arange(-7.0, 8.0, dtype=torch.float64)
    expected = 2 * math.pi / 30 * (cells.square() + 1 / 12)  # |k|² Δk Ω and the exact term of a shell
    torch.testing.assert_close(density, expected.expand(30, 15), rtol=1e-5, atol=0)


def test_spokes_that_start_at_the_centre_cover_the_same_disc() -> None:
    angle_rad = 2 * math.pi * torch.arange(40, dtype=torch.float64) / 40
    direction = torch.stack((angle_rad.sin(), angle_rad.cos()), -1)
    radius = 2 * math.pi / N * torch.arange(N // 2, dtype=torch.float64)
    outwards = radius[:, None] * direction[:, None]
    expected = math.pi * (N / 2 - 0.5) ** 2
    found = radial_density(outwards.reshape(-1, 2), SHAPE, N // 2)
    assert float(found.sum()) == pytest.approx(expected, rel=1e-9)
    inwards = radial_density(outwards.flip(1).reshape(-1, 2), SHAPE, N // 2)
    torch.testing.assert_close(inwards.reshape(40, -1).flip(1), found.reshape(40, -1))


def test_repeated_spokes_share_their_area_equally() -> None:
    k = radial(12, N)
    once = radial_density(k, SHAPE, N)
    torch.testing.assert_close(radial_density(k.repeat(3, 1), SHAPE, N), once.repeat(3) / 3)


def test_an_echo_off_the_middle_of_the_readout_keeps_the_ramp() -> None:
    spokes = radial(12, N).reshape(12, N, 2)
    whole = radial_density(spokes.reshape(-1, 2), SHAPE, N).reshape(12, N)
    partial = radial_density(spokes[:, 6:].reshape(-1, 2), SHAPE, N - 6).reshape(12, N - 6)
    torch.testing.assert_close(partial, whole[:, 6:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_the_iteration_reaches_the_voronoi_areas(name: str) -> None:
    k = TRAJECTORIES[name]
    chosen = inside(k)
    expected, found = voronoi_areas(k, SHAPE)[chosen], pipe_density(k, SHAPE).double()[chosen]
    assert bool((found > 0).all())
    assert float(found.sum() / expected.sum()) == pytest.approx(1, abs=0.01)
    # The gaps of a golden-angle scan alternate, and the kernel sees their mean.
    limit = 0.12 if name == "golden" else 0.04
    assert float((found - expected).norm() / expected.norm()) < limit


def test_the_iteration_agrees_with_the_analytic_areas() -> None:
    k = radial(38, 2 * N)
    chosen = inside(k)
    analytic, iterated = radial_density(k, SHAPE, 2 * N)[chosen], pipe_density(k, SHAPE)[chosen]
    assert float((iterated - analytic).norm() / analytic.norm()) < 0.04


def test_the_iteration_agrees_with_the_analytic_volumes() -> None:
    k = radial(300, 12, n_dims=3)
    chosen = inside(k) & (k.norm(dim=-1) > 1)
    analytic, iterated = radial_density(k, (12, 12, 12), 12)[chosen], pipe_density(k, (12, 12, 12))[chosen]
    assert float(iterated.sum() / analytic.sum()) == pytest.approx(1, abs=0.03)
    assert float((iterated - analytic).norm() / analytic.norm()) < 0.3


@pytest.mark.parametrize("shape", [(8, 10), (7, 9), (2, 3)])
def test_a_complete_cartesian_scan_has_the_weight_one(shape: tuple[int, int]) -> None:
    torch.testing.assert_close(pipe_density(epi(*shape), shape), torch.ones(math.prod(shape)), rtol=0, atol=1e-3)


def test_a_cartesian_scan_read_twice_has_half_the_weight() -> None:
    twice = pipe_density(epi(8, 10).repeat(2, 1), (8, 10))
    torch.testing.assert_close(twice, torch.full((160,), 0.5), rtol=0, atol=1e-3)


def test_weights_of_a_stack_of_stars_are_those_of_its_plane() -> None:
    stack, plane = stack_of_stars(4, 16, 10), radial(16, 10)
    expected = pipe_density(plane, (10, 10), 5).repeat(4)
    torch.testing.assert_close(pipe_density(stack, (4, 10, 10), 5), expected, rtol=1e-3, atol=0)


def test_every_iteration_changes_the_weights_less() -> None:
    # An iteration divides by the convolved density, so the change is how far that is from one at the samples.
    k = rosette(12, 160, 5, 2)
    weights = [pipe_density(k, SHAPE, n) for n in (1, 2, 20, 21)]
    early, late = (float((weights[i + 1] / weights[i] - 1).abs().mean()) for i in (0, 2))
    assert late < 0.5 * early


def disc_point_spread() -> torch.Tensor:
    """Point spread of a disc of radius π sampled eight times finer than the Cartesian grid, real ``SHAPE``."""
    fine = (torch.arange(8 * N, dtype=torch.float64) + 0.5) * 2 * math.pi / (8 * N) - math.pi
    in_disc = (fine[:, None].square() + fine.square()).sqrt() < math.pi
    ramp = torch.exp(1j * fine[:, None] * (torch.arange(N) - N // 2))
    return (ramp.T @ in_disc.to(ramp) @ ramp).real / (8 * N) ** 2


COMPENSATED = [
    *((name, "radial", 0.01, 0.1) for name in ("radial", "golden")),
    *((name, "pipe", 0.1, 0.3) for name in TRAJECTORIES),  # the iteration raises the outer edge of the disc
]


@pytest.mark.parametrize(("name", "method", "peak_tolerance", "limit"), COMPENSATED)
def test_compensation_makes_the_point_spread_that_of_the_covered_disc(
    name: str, method: str, peak_tolerance: float, limit: float
) -> None:
    k = TRAJECTORIES[name]
    dcf = (radial_density(k, SHAPE, N) if method == "radial" else pipe_density(k, SHAPE)).double()
    dft = explicit_dft(k, SHAPE)
    origin = dft[:, (N // 2) * N + N // 2]
    with_dcf, without = ((dft.mH @ (w * origin)).reshape(SHAPE).real for w in (dcf, torch.ones_like(dcf)))
    ideal = disc_point_spread()
    # Weights are areas, so that the peak is the covered part of k-space: a disc is π/4 of the square.
    assert float(with_dcf.max()) == pytest.approx(float(ideal.max()), rel=peak_tolerance)
    assert float(ideal.max()) == pytest.approx(math.pi / 4, rel=0.01)
    # The circular field of view; beyond it the spokes of one sample per cell alias.
    y, x = torch.meshgrid(*(torch.arange(n) - n // 2 for n in SHAPE), indexing="ij")
    side = (torch.hypot(y.double(), x.double()) > 0) & (torch.hypot(y.double(), x.double()) < N / 2)
    error, error_without = (float((psf / psf.max() - ideal / ideal.max())[side].norm()) for psf in (with_dcf, without))
    assert error < limit
    assert error_without > 3 * error or name == "spiral"  # constant speed on an even pitch is nearly uniform


@pytest.mark.parametrize("name", OVERSAMPLED)
def test_the_weighted_adjoint_returns_a_smooth_image_in_its_own_units(name: str) -> None:
    k = OVERSAMPLED[name]
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) - n // 2 for n in SHAPE), indexing="ij")
    image = (torch.exp(-((y - 2).square() + (x + 3).square()) / 18) + 0j).flatten()
    dft = explicit_dft(k, SHAPE)
    found = dft.mH @ (pipe_density(k, SHAPE).double() * (dft @ image))
    assert float((found - image).norm() / image.norm()) < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_have_the_dtype_of_the_trajectory(dtype: torch.dtype) -> None:
    k = radial(5, 8).to(dtype)
    assert radial_density(k, (8, 8), 8).dtype == dtype
    assert pipe_density(k, (8, 8)).dtype == dtype


@pytest.mark.parametrize("density", [lambda k, s: radial_density(k, s, 8), pipe_density])
def test_what_is_no_trajectory_is_refused(density) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TypeError, match="dtype"):
        density(torch.zeros(16, 2, dtype=torch.complex64), (8, 8))
    with pytest.raises(ValueError, match="shape"):
        density(torch.zeros(16, 3), (8, 8))
    with pytest.raises(ValueError, match="image_shape"):
        density(torch.zeros(16, 2), (8,))
    with pytest.raises(ValueError, match="reaches"):
        density(torch.full((16, 2), 4.0), (8, 8))
    with pytest.raises(ValueError, match="reaches"):
        density(torch.full((16, 2), math.nan), (8, 8))


def test_readouts_that_are_no_spokes_are_refused() -> None:
    with pytest.raises(ValueError, match="length of one readout"):
        radial_density(radial(4, 8), (8, 8), 7)
    with pytest.raises(ValueError, match="not straight"):
        radial_density(spiral(4, 100, 3), SHAPE, 100)
    with pytest.raises(ValueError, match="not straight"):
        radial_density(radial(8, 8), (8, 8), 16)
    with pytest.raises(ValueError, match="not straight"):
        radial_density(torch.zeros(16, 2), (8, 8), 8)


def test_the_number_of_iterations_and_the_grid_are_checked() -> None:
    with pytest.raises(ValueError, match="n_iterations is 0"):
        pipe_density(radial(4, 8), (8, 8), 0)
    with pytest.raises(ValueError, match="at least 2 pixels"):
        pipe_density(radial(4, 8), (8, 1))


def scan(data: torch.Tensor, mask: torch.Tensor, **kwargs: object) -> KSpace:
    """Repetitions of one slice, ``(repetition, slice, coil, …)``."""
    header = Acquisition((1, *SHAPE), (5.0, 200.0, 200.0), (5.0, 200.0, 200.0))
    return KSpace(data, mask, header, batch_axes=("repetition", "slice"), **kwargs)  # type: ignore[arg-type]


def test_images_on_one_trajectory_share_their_weights() -> None:
    k = TRAJECTORIES["radial"]
    kspace = scan(torch.zeros(3, 2, 4, len(k), dtype=torch.complex64), torch.ones(1, 1, 1, len(k)), trajectory=k)
    assert [group.images.tolist() for group in samplings(kspace)] == [list(range(6))]
    torch.testing.assert_close(density(kspace), pipe_density(k, SHAPE))


def test_every_distinct_trajectory_has_its_own_weights() -> None:
    first, second = radial(38, N), radial(38, N, golden=True)
    trajectory = torch.stack((first, second, first))[:, None]
    data = torch.zeros(3, 2, 1, len(first), dtype=torch.complex64)
    kspace = scan(data, torch.ones(len(first)), trajectory=trajectory)
    assert [group.images.tolist() for group in samplings(kspace)] == [[0, 1, 4, 5], [2, 3]]
    found = density(kspace)
    assert found.shape == (3, 2, len(first))
    for repetition, k in enumerate((first, second, first)):
        torch.testing.assert_close(found[repetition], pipe_density(k, SHAPE).expand(2, -1))


def test_samples_that_were_not_measured_have_no_weight_and_do_not_count() -> None:
    k = TRAJECTORIES["radial"]
    mask = torch.ones(38, N)
    mask[::2] = 0
    kspace = scan(torch.zeros(1, 1, 1, 38 * N, dtype=torch.complex64), mask.flatten(), trajectory=k)
    expected = torch.zeros(38 * N)
    expected[mask.flatten() > 0] = pipe_density(k[mask.flatten() > 0], SHAPE)
    torch.testing.assert_close(density(kspace), expected)
    nothing = scan(kspace.data, 0 * mask.flatten(), trajectory=k)
    assert not bool(density(nothing).any())


def test_masks_of_their_own_make_weights_of_their_own() -> None:
    k, mask = TRAJECTORIES["radial"], torch.ones(2, 1, 1, 38 * N)
    mask[1, ..., : 19 * N] = 0
    found = density(scan(torch.zeros(2, 1, 1, 38 * N, dtype=torch.complex64), mask, trajectory=k))
    torch.testing.assert_close(found[0, 0], pipe_density(k, SHAPE))
    torch.testing.assert_close(found[1, 0, 19 * N :], pipe_density(k[19 * N :], SHAPE))
    assert not bool(found[1, 0, : 19 * N].any())


def test_weights_of_the_file_come_first() -> None:
    k, mask = TRAJECTORIES["radial"], torch.ones(38 * N)
    mask[5] = 0
    data = torch.zeros(2, 1, 1, 38 * N, dtype=torch.complex64)
    given = torch.arange(38 * N, dtype=torch.float64)
    torch.testing.assert_close(density(scan(data, mask, trajectory=k, dcf=given)), given.float() * mask)
    own = torch.stack((given, 2 * given))[:, None]
    torch.testing.assert_close(density(scan(data, mask, trajectory=k, dcf=own)), own.float() * mask)


def test_the_grid_needs_no_density_compensation() -> None:
    with pytest.raises(ValueError, match="expected a scan with a trajectory"):
        density(scan(torch.zeros(1, 1, 1, *SHAPE, dtype=torch.complex64), torch.ones(SHAPE)))


def test_coil_images_are_the_weighted_adjoint_of_every_trajectory(generator: torch.Generator) -> None:
    trajectory = torch.stack((radial(38, N), radial(38, N, golden=True)))[:, None]
    data = torch.randn(2, 1, 3, 38 * N, dtype=torch.complex128, generator=generator)
    kspace = scan(data, torch.ones(38 * N), trajectory=trajectory)
    found = coil_images(kspace)
    for repetition in range(2):
        k = trajectory[repetition, 0]
        weighted = pipe_density(k, SHAPE).double() * data[repetition, 0]
        expected = (weighted @ explicit_dft(k, SHAPE).conj()).reshape(3, *SHAPE)
        assert float((found[repetition, 0] - expected).norm() / expected.norm()) < 1e-4


def test_coil_images_of_the_grid_are_the_inverse_transform(generator: torch.Generator) -> None:
    data = torch.randn(1, 2, 3, *SHAPE, dtype=torch.complex128, generator=generator)
    grid = epi(N, N).reshape(N, N, 2).clone()
    grid[1::2] = grid[1::2].flip(1)
    expected = (data.flatten(-2) @ explicit_dft(grid.flatten(0, 1), SHAPE).conj()).reshape(1, 2, 3, *SHAPE)
    torch.testing.assert_close(coil_images(scan(data, torch.ones(SHAPE))), expected, rtol=0, atol=1e-5)
