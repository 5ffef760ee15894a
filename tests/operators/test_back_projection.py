"""Filtered back-projection against analytic sinograms, an explicit sum and scikit-image, and what coverage reports."""

import copy
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.transform import iradon
from torch.autograd import gradcheck, gradgradcheck

from operators import back_projection
from operators.back_projection import (
    Coverage,
    FilteredBackProjection,
    _BackProjection,
    coverage,
    filtered_back_projection,
)
from operators.beam_geometry import Array, BeamGeometry, FanBeam, ParallelBeam
from tests.contract.contracts import CONTRACTS
from tests.reference.tomography import Ellipse, disc, image, sinogram

MU_WATER = 0.02  # 1/mm
SHAPE = (128, 128)  # of 1.5 mm: 192 mm, about the field of view
FAN_ANGLE = 2 * math.atan(99.5 * 2.2 / 900)


def turn(n_views: int, arc_rad: float = 2 * math.pi, start_rad: float = 0.1) -> tuple[float, ...]:
    return tuple(start_rad + arc_rad * k / n_views for k in range(n_views))


def parallel(angles_rad: tuple[float, ...], offset: float = 0.0) -> ParallelBeam:
    return ParallelBeam(angles_rad, 200, 1.0, 1.5, offset)


def fan(angles_rad: tuple[float, ...], *, curved: bool = False, offset: float = 0.0, n_detectors: int = 200) -> FanBeam:
    """Bins of 2.2 mm, 1.22 mm at the isocentre; the offset is in bins."""
    return FanBeam(angles_rad, n_detectors, 2.2, 1.5, 2.2 * offset, 500.0, 400.0, curved)


def random_angles(arc_rad: float, n_views: int) -> tuple[float, ...]:
    return tuple(np.random.default_rng(7).uniform(0, arc_rad, n_views))


SCANS: dict[str, BeamGeometry] = {
    "parallel_half": parallel(turn(240, math.pi)),
    "parallel_full": parallel(turn(360)),
    "parallel_over_complete": parallel(turn(300, 1.3 * math.pi)),
    "parallel_descending": parallel(turn(240, -math.pi)),
    "parallel_random_angles": parallel(random_angles(math.pi, 400)),
    "parallel_quarter_offset": parallel(turn(360), offset=0.25),
    "flat_full": fan(turn(360)),
    "flat_quarter_offset": fan(turn(360), offset=0.25),
    "flat_random_angles": fan(random_angles(2 * math.pi, 500)),
    "flat_more_than_full": fan(turn(400, 2.2 * math.pi)),
    "flat_short": fan(turn(300, math.pi + FAN_ANGLE + 0.02)),
    "flat_short_descending": fan(turn(300, -math.pi - FAN_ANGLE - 0.02)),
    "flat_short_300_degrees": fan(turn(300, math.radians(300))),
    "curved_full": fan(turn(360), curved=True),
    "curved_quarter_offset": fan(turn(360), curved=True, offset=-0.25),
    "curved_short": fan(turn(300, math.pi + FAN_ANGLE + 0.02), curved=True),
    "curved_short_offset": fan(turn(300, math.pi + FAN_ANGLE + 0.05), curved=True, offset=0.25),
}
every_scan = pytest.mark.parametrize("geometry", SCANS.values(), ids=SCANS.keys())
SOME = ("parallel_half", "parallel_random_angles", "flat_quarter_offset", "curved_short")
some_scans = pytest.mark.parametrize("geometry", [SCANS[name] for name in SOME], ids=SOME)

ASYMMETRIC = [
    disc(60.0, (4.0, -6.0), MU_WATER),
    Ellipse((25.0, 12.0), (22.0, 8.0), 0.5, 0.012),
    disc(8.0, (-30.0, 18.0), 0.015),
    disc(5.0, (-10.0, -42.0), -0.01),
]


def pixel_mm(shape: tuple[int, int], spacing_mm: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y of the pixel centres, broadcastable to the shape."""
    x, y = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in reversed(shape))
    return x * spacing_mm, -y[:, None] * spacing_mm


def inside(radius_mm: float, center_mm: tuple[float, float] = (0.0, 0.0)) -> torch.Tensor:
    x, y = pixel_mm(SHAPE)
    return (x - center_mm[0]) ** 2 + (y - center_mm[1]) ** 2 < radius_mm**2


def hu(mu_per_mm: torch.Tensor) -> torch.Tensor:
    return 1000 * (mu_per_mm / MU_WATER - 1)


@every_scan
def test_water_is_zero_hu_and_air_minus_thousand(geometry: BeamGeometry) -> None:
    center = (10.0, -6.0)
    found = hu(filtered_back_projection(sinogram(geometry, [disc(60.0, center, MU_WATER)]), geometry, SHAPE))
    assert abs(float(found[inside(48.0, center)].mean())) < 0.3
    assert abs(float(found[~inside(70.0, center) & inside(90.0)].mean()) + 1000) < 1


@every_scan
def test_a_disc_is_found_where_and_as_large_as_it_is(geometry: BeamGeometry) -> None:
    center, radius = (30.0, 22.0), 20.0
    found = filtered_back_projection(sinogram(geometry, [disc(radius, center, MU_WATER)]), geometry, SHAPE)
    weights = found * inside(1.4 * radius, center)
    x, y = pixel_mm(SHAPE)
    mass = float(weights.sum())
    assert float((weights * x).sum()) / mass == pytest.approx(center[0], abs=0.05)
    assert float((weights * y).sum()) / mass == pytest.approx(center[1], abs=0.05)
    assert mass * 1.5**2 / MU_WATER == pytest.approx(math.pi * radius**2, rel=2e-3)
    half = (found > MU_WATER / 2) & inside(1.4 * radius, center)
    assert float(half.sum()) * 1.5**2 == pytest.approx(math.pi * radius**2, rel=2e-2)


@every_scan
def test_the_image_lies_the_right_way_round(geometry: BeamGeometry) -> None:
    check_orientation(geometry, SHAPE)


@some_scans
@pytest.mark.parametrize("shape", [(120, 127), (127, 127)])
def test_other_shapes_have_the_isocentre_in_their_middle(shape: tuple[int, int], geometry: BeamGeometry) -> None:
    check_orientation(geometry, shape)


def check_orientation(geometry: BeamGeometry, shape: tuple[int, int]) -> None:
    found = filtered_back_projection(sinogram(geometry, ASYMMETRIC), geometry, shape)
    x, y = pixel_mm(shape)
    near = x**2 + y**2 < 80**2

    def error(other: torch.Tensor) -> float:
        return float((found - other)[near].norm() / found[near].norm())

    truth = image(geometry, shape, ASYMMETRIC)
    assert error(truth) < 0.12
    for wrong in (truth.flip(0), truth.flip(1), truth.flip(0, 1)):
        assert error(wrong) > 0.3


def explicit(geometry: BeamGeometry, filtered: Array, shape: tuple[int, int]) -> torch.Tensor:
    """Linear interpolation of every view at every pixel, in one expression per line."""
    x, y = (c.numpy() for c in pixel_mm(shape))
    result = np.zeros(shape)
    for t, view in zip(geometry.angles_rad, filtered, strict=True):
        u, weight = x * np.cos(t) + y * np.sin(t), 1.0
        if isinstance(geometry, FanBeam):
            R, total = geometry.source_to_center_mm, geometry.source_to_detector_mm
            depth = R - x * np.sin(t) + y * np.cos(t)
            weight = R**2 / (depth**2 + u**2 if geometry.curved else depth**2)
            u = np.arctan2(u, depth) * total if geometry.curved else u / depth * total
        result += weight * np.interp(u, geometry.detector_mm, view, left=0, right=0)
    return torch.from_numpy(result)


def filtered_views(reconstruct: FilteredBackProjection, y: torch.Tensor) -> torch.Tensor:
    """The circular convolution of the weighted and zero-padded views with the kernel of the response."""
    padded = torch.nn.functional.pad(y * reconstruct.weights, (0, 2 * (len(reconstruct.response) - 1) - y.shape[-1]))
    kernel = torch.fft.irfft(reconstruct.response, padded.shape[-1])
    return torch.fft.ifft(torch.fft.fft(padded) * torch.fft.fft(kernel)).real[..., : y.shape[-1]]


@some_scans
def test_the_fine_table_becomes_linear_interpolation(
    geometry: BeamGeometry, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    y = sinogram(geometry, ASYMMETRIC)
    y += 0.02 * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    reconstruct, truth = FilteredBackProjection(geometry, SHAPE), image(geometry, SHAPE, ASYMMETRIC)
    expected = explicit(geometry, filtered_views(reconstruct, y).numpy(), SHAPE)

    def error(found: torch.Tensor, other: torch.Tensor) -> float:
        return float((found - other)[inside(90)].norm())

    assert error(reconstruct(y), truth) == pytest.approx(error(expected, truth), rel=0.01)
    monkeypatch.setattr(back_projection, "_FINE", 120)
    assert error(reconstruct(y), expected) < 3e-3 * float(expected.norm())


def test_as_accurate_as_scikit_image() -> None:
    """iradon puts the axis on pixel n//2, ours between the middle two: each is compared with its own truth."""
    n, angles = 128, turn(180, math.pi, 0.0)
    shifted = [replace(e, center_mm=(e.center_mm[0] + 0.75, e.center_mm[1] - 0.75)) for e in ASYMMETRIC]
    ours = ParallelBeam(angles, n, 1.5, 1.5)
    theirs = replace(ours, detector_offset_mm=-0.75)
    views = sinogram(theirs, ASYMMETRIC).numpy().T
    reference = torch.from_numpy(iradon(views, theta=np.degrees(angles), filter_name="ramp") / 1.5)
    found = filtered_back_projection(sinogram(ours, ASYMMETRIC), ours, (n, n))
    error = (found - image(ours, (n, n), ASYMMETRIC))[inside(80)].norm()
    reference_error = (reference - image(ours, (n, n), shifted))[inside(80)].norm()
    assert float(error / reference_error) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("curved", [False, True])
def test_a_short_scan_equals_the_full_one(curved: bool) -> None:
    full, short = fan(turn(720), curved=curved), fan(turn(500, math.pi + FAN_ANGLE + 0.05), curved=curved)
    images = [filtered_back_projection(sinogram(g, ASYMMETRIC), g, SHAPE) for g in (full, short)]
    difference = 1000 * (images[0] - images[1]) / MU_WATER
    flat = inside(15, (-15.0, -15.0))
    assert abs(float(difference[flat].mean())) < 0.2
    assert float(difference[flat].square().mean().sqrt()) < 3
    assert float(difference[inside(85)].square().mean().sqrt()) < 10
    plain = filtered_back_projection(sinogram(short, ASYMMETRIC), short, SHAPE, short_scan="plain")
    assert float((1000 * (images[0] - plain) / MU_WATER)[inside(85)].square().mean().sqrt()) > 50


def test_a_wide_detector_does_not_spoil_a_scan_that_is_enough_for_the_object() -> None:
    """205 degrees are too few for the fan of 213, but measure every line through a disc of 60 mm."""
    geometry = fan(turn(340, math.radians(205)), n_detectors=245)
    reconstruct = FilteredBackProjection(geometry, SHAPE)
    assert reconstruct.coverage.kind == "limited"
    found = hu(reconstruct(sinogram(geometry, [disc(60.0, (0.0, 0.0), MU_WATER)])))
    assert abs(float(found[inside(48)].mean())) < 1
    assert float(found[inside(48)].std()) < 1


# coverage

DEGREE = math.radians(1)
COVERAGES: dict[str, tuple[BeamGeometry, str, float, float, bool]] = {
    "parallel_half": (parallel(turn(180, math.pi)), "half", 180, 1, False),
    "parallel_both_ends": (parallel(tuple(k * DEGREE for k in range(181))), "half", 180, 1, False),
    "parallel_200": (parallel(turn(200, 200 * DEGREE)), "half", 180, 1, False),
    "parallel_full": (parallel(turn(360)), "full", 360, 1, False),
    "parallel_limited": (parallel(turn(120, 120 * DEGREE)), "limited", 120, 1, False),
    "parallel_one_view_left_out": (parallel(turn(180, math.pi)[:90] + turn(180, math.pi)[91:]), "half", 180, 2, False),
    "parallel_sparse": (parallel(turn(30, math.pi)), "half", 180, 6, True),
    "flat_full": (fan(turn(360)), "full", 360, 1, False),
    "flat_unsorted": (fan(turn(360)[::2] + turn(360)[1::2]), "full", 360, 1, False),
    "flat_both_ends": (fan(tuple(k * DEGREE for k in range(361))), "full", 360, 1, False),
    "flat_two_turns": (fan(turn(720, 4 * math.pi)), "full", 360, 1, False),
    "flat_golden": (fan(tuple(k * math.pi * (3 - 5**0.5) for k in range(9))), "full", 360, 52.52, True),
    "flat_sparse_is_not_short": (fan(turn(12)), "full", 360, 30, True),
    "flat_three_views": (fan(turn(3)), "full", 360, 120, True),
    "flat_short": (fan(turn(220, 220 * DEGREE)), "short", 220, 1, False),
    "flat_short_across_zero": (fan(turn(220, 220 * DEGREE, -2.0)), "short", 220, 1, False),
    "flat_limited": (fan(turn(120, 120 * DEGREE)), "limited", 120, 1, False),
    "flat_half": (fan(turn(180, math.pi)), "limited", 180, 1, False),
    "flat_sparse_short": (fan(turn(44, 220 * DEGREE)), "short", 220, 5, True),
    "flat_two_arcs": (fan(turn(90, 90 * DEGREE) + turn(90, 90 * DEGREE, math.pi)), "limited", 180, 1, False),
    "one_view": (parallel((0.3,)), "limited", 0, 0, False),
}


@pytest.mark.parametrize("case", COVERAGES.values(), ids=COVERAGES.keys())
def test_coverage_reports_what_the_angles_cover(case: tuple[BeamGeometry, str, float, float, bool]) -> None:
    geometry, kind, arc_deg, step_deg, sparse = case
    found = coverage(geometry)
    required = math.pi + (2 * max(geometry.fan_angles_rad) if isinstance(geometry, FanBeam) else 0)
    assert (found.kind, found.n_views, found.sparse) == (kind, geometry.n_views, sparse)
    assert math.degrees(found.arc_rad) == pytest.approx(arc_deg, abs=1e-6)
    assert math.degrees(found.step_rad) == pytest.approx(step_deg, abs=0.01)
    assert found.required_rad == pytest.approx(required)


def test_a_short_scan_may_lack_half_a_step() -> None:
    n, step = 100, (math.pi + FAN_ANGLE) / 100
    kinds = [coverage(fan(turn(n, n * (step - lack * step / n)))).kind for lack in (0.0, 0.45, 0.55)]
    assert kinds == ["short", "short", "limited"]


def test_coverage_is_told_in_words() -> None:
    assert str(coverage(fan(turn(60)))) == (
        "full circle, sparse: 60 views over 360.0 degrees, at most 6.00 apart; 207.3 degrees measure every line"
    )


@pytest.mark.parametrize(
    ("geometry", "level", "words"),
    [
        (fan(turn(30, 2.0)), logging.WARNING, ("limited angle", "parker weights")),
        (fan(turn(90, math.radians(270))), logging.INFO, ("short scan", "parker weights")),
        (fan(turn(12)), logging.INFO, ("full circle, sparse", "plain weights")),
        (parallel(turn(20, 2.0)), logging.WARNING, ("limited angle", "plain weights")),
    ],
)
def test_what_was_decided_is_logged(
    geometry: BeamGeometry, level: int, words: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        reconstruct = FilteredBackProjection(geometry, (8, 8))
    (record,) = caplog.records
    assert record.levelno == level
    for part in (*words, str(reconstruct.coverage), reconstruct.weighting):
        assert part in record.getMessage()
    assert isinstance(reconstruct.coverage, Coverage)


def test_a_limited_angle_keeps_what_was_measured() -> None:
    """Over 150 of 180 degrees parallel beams give 5/6 of the mean: nothing is made up for what is missing."""
    geometry = parallel(turn(300, math.radians(150)))
    found = filtered_back_projection(sinogram(geometry, [disc(60.0, (0.0, 0.0), MU_WATER)]), geometry, SHAPE)
    assert float(found[inside(10)].mean() / MU_WATER) == pytest.approx(5 / 6, abs=5e-3)


@pytest.mark.parametrize("geometry", [SCANS["parallel_half"], SCANS["flat_full"], SCANS["flat_short"]])
def test_repeated_and_shuffled_views_change_nothing(geometry: BeamGeometry) -> None:
    y = sinogram(geometry, ASYMMETRIC)
    expected = filtered_back_projection(y, geometry, SHAPE)
    order = np.random.default_rng(3).permutation(np.repeat(np.arange(geometry.n_views), 3)).tolist()
    found = filtered_back_projection(y[order], geometry[order], SHAPE)
    assert float((found - expected).abs().max()) < 0.02 * MU_WATER


# filters


@some_scans
def test_each_filter_keeps_water_and_lowers_the_noise_further(
    geometry: BeamGeometry, generator: torch.Generator
) -> None:
    y = sinogram(geometry, [disc(60.0, (0.0, 0.0), MU_WATER)])
    noise = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    stds = []
    for name in ("ramp", "shepp-logan", "cosine", "hamming", "hann"):
        reconstruct = FilteredBackProjection(geometry, SHAPE, filter=name)  # type: ignore[arg-type]
        assert abs(float(hu(reconstruct(y))[inside(48)].mean())) < 1
        stds.append(float(reconstruct(noise)[inside(80)].std()))
    assert stds == sorted(stds, reverse=True)
    assert stds[-1] < 0.5 * stds[0]


# tensors

TINY: dict[str, BeamGeometry] = {
    "parallel": ParallelBeam(turn(5, math.pi, 0.05), 7, 1.1, 1.0, 0.2),
    "parallel_symmetric": ParallelBeam(turn(8, math.pi, 0.0), 6, 1.0, 1.3),
    "flat": FanBeam(turn(8), 7, 2.0, 1.0, 0.5, 12.0, 9.0),
    "flat_mirrored": FanBeam(turn(8, start_rad=math.pi / 8), 7, 2.0, 1.0, 0.0, 12.0, 9.0),
    "curved_short": FanBeam(turn(7, 4.8), 6, 2.0, 1.0, 0.0, 12.0, 9.0, True),
}
every_tiny = pytest.mark.parametrize("geometry", TINY.values(), ids=TINY.keys())


@every_tiny
@pytest.mark.parametrize(
    "contract", ["adjoint", "linear", "batch_independence", "gradients", "vjp", "transforms", "spaces"]
)
def test_the_back_projection_keeps_the_contract_of_operators(
    contract: str, geometry: BeamGeometry, generator: torch.Generator
) -> None:
    CONTRACTS[contract](_BackProjection(geometry, (5, 5)), generator)


@every_tiny
def test_the_back_projection_of_other_shapes_is_an_exact_pair(
    geometry: BeamGeometry, generator: torch.Generator
) -> None:
    for shape in ((4, 6), (1, 7), (6, 6)):
        CONTRACTS["adjoint"](_BackProjection(geometry, shape), generator)


@every_tiny
def test_gradients_agree_with_finite_differences(geometry: BeamGeometry, generator: torch.Generator) -> None:
    reconstruct = FilteredBackProjection(geometry, (4, 5), filter="hann")
    y = torch.randn(2, geometry.n_views, geometry.n_detectors, generator=generator, dtype=torch.float64)
    y.requires_grad_()
    assert gradcheck(reconstruct, (y,), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(reconstruct, (y,), fast_mode=True)


@some_scans
def test_samples_do_not_depend_on_their_batch(geometry: BeamGeometry, generator: torch.Generator) -> None:
    y = torch.randn(3, 2, geometry.n_views, geometry.n_detectors, generator=generator, dtype=torch.float64)
    reconstruct = FilteredBackProjection(geometry, (33, 33))
    found = reconstruct(y)
    assert found.shape == (3, 2, 33, 33)
    for i in range(3):
        torch.testing.assert_close(found[i, 1], reconstruct(y[i, 1]), rtol=1e-11, atol=1e-13)


@every_scan
def test_single_precision_is_enough(geometry: BeamGeometry) -> None:
    y = sinogram(geometry, ASYMMETRIC)
    reconstruct = FilteredBackProjection(geometry, SHAPE)
    single = reconstruct(y.float())
    assert single.dtype == torch.float32
    difference = 1000 * (single.double() - reconstruct(y)) / MU_WATER
    assert float(difference[inside(90)].square().mean().sqrt()) < 1


def test_many_samples_at_once_are_split() -> None:
    geometry = TINY["flat_mirrored"]
    y = torch.eye(56, dtype=torch.float64).reshape(56, 8, 7)
    together = filtered_back_projection(y, geometry, (5, 5))
    alone = torch.stack([filtered_back_projection(part, geometry, (5, 5)) for part in y])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)


def test_a_copy_reconstructs_the_same_and_needs_no_state(generator: torch.Generator) -> None:
    reconstruct = FilteredBackProjection(TINY["flat"], (5, 5))
    y = torch.randn(8, 7, generator=generator, dtype=torch.float64)
    assert torch.equal(copy.deepcopy(reconstruct)(y), reconstruct(y))
    assert not reconstruct.state_dict()
    torch.testing.assert_close(copy.deepcopy(reconstruct).float()(y), reconstruct(y), rtol=1e-5, atol=1e-6)


# refusals


def test_what_does_not_fit_is_refused() -> None:
    geometry = TINY["flat"]
    with pytest.raises(ValueError, match=r"sinogram has shape \(7, 8\); expected \(\*batch, 8, 7\)"):
        filtered_back_projection(torch.zeros(7, 8), geometry, (5, 5))
    with pytest.raises(TypeError, match=r"sinogram is torch\.complex64; expected a real"):
        filtered_back_projection(torch.zeros(8, 7, dtype=torch.complex64), geometry, (5, 5))
    for shape in ((5,), (5, 5, 5), (0, 5)):
        with pytest.raises(ValueError, match=r"shape is \(.*two positive sizes"):
            FilteredBackProjection(geometry, shape)
    with pytest.raises(ValueError, match="filter is 'ram-lak'; expected one of 'ramp', 'shepp-logan'"):
        FilteredBackProjection(geometry, (5, 5), filter="ram-lak")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="short_scan is True; expected 'auto' or 'plain'"):
        FilteredBackProjection(geometry, (5, 5), short_scan=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"reaches .* mm from the isocentre, but the source stands at 12 mm"):
        FilteredBackProjection(geometry, (19, 19))
    with pytest.raises(ValueError, match="All views share one angle"):
        FilteredBackProjection(ParallelBeam((0.3, 0.3), 5, 1.0, 1.0), (5, 5))
