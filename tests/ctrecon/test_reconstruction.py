"""The pipeline on simulated scans whose truth is known, and on measured ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ctrecon.hounsfield import to_hu
from ctrecon.io import ReadOptions, read
from ctrecon.metal import reconstruct_without_metal
from ctrecon.metrics import bias_hu, rmse_hu
from ctrecon.reconstruction import METHODS, Reconstruction, operator_for, reconstruct
from ctrecon.simulation import Scenario, Simulation, simulate_scenario
from operators.beam_geometry import FanBeam
from operators.errors import InputError


def error(result: Reconstruction, scan: Simulation) -> float:
    return float(rmse_hu(result.hu, scan.target_hu, scan.target_hu <= -500).mean())


@pytest.fixture(scope="module")
def sparse() -> Simulation:
    return simulate_scenario(Scenario(preset="sparse-view-60", matrix=96, n_photons=1e5))


@pytest.fixture(scope="module")
def dense() -> Simulation:
    return simulate_scenario(Scenario(preset="sparse-view", matrix=96, n_photons=1e6))


@pytest.mark.parametrize("method", METHODS)
def test_hounsfield_units_are_right_on_average(method: str, dense: Simulation) -> None:
    result = reconstruct(dense.sinogram, method)
    inside = dense.target_hu <= -500
    assert abs(float(bias_hu(result.hu, dense.target_hu, inside).mean())) < 25
    assert tuple(result.hu.shape) == (1, 96, 96)
    torch.testing.assert_close(result.hu, to_hu(result.mu_per_mm, dense.sinogram.mu_water_per_mm))


@pytest.mark.parametrize("method", ["sirt", "os-sart", "cgls", "tv", "wavelet"])
def test_iterations_beat_back_projection_where_views_are_few_and_noisy(method: str, sparse: Simulation) -> None:
    back_projected = error(reconstruct(sparse.sinogram, "fbp"), sparse)
    assert error(reconstruct(sparse.sinogram, method), sparse) < 0.6 * back_projected


def test_total_variation_is_the_best_of_them_untuned(sparse: Simulation) -> None:
    errors = {method: error(reconstruct(sparse.sinogram, method), sparse) for method in METHODS}
    assert min(errors, key=errors.__getitem__) == "tv"


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_strength_means_the_same_in_other_units_of_length(factor: float, sparse: Simulation) -> None:
    geometry = sparse.sinogram.geometry
    assert isinstance(geometry, FanBeam)
    scaled = replace(
        geometry,
        detector_spacing_mm=geometry.detector_spacing_mm * factor,
        pixel_spacing_mm=geometry.pixel_spacing_mm * factor,
        source_to_center_mm=geometry.source_to_center_mm * factor,
        center_to_detector_mm=geometry.center_to_detector_mm * factor,
    )
    for method in ("tv", "wavelet"):
        small = reconstruct(sparse.sinogram, method).mu_per_mm
        other = reconstruct(replace(sparse.sinogram, geometry=scaled), method).mu_per_mm
        torch.testing.assert_close(other * factor, small, rtol=0, atol=2e-4)


def test_a_slice_does_not_depend_on_its_neighbours(sparse: Simulation) -> None:
    data = torch.cat((sparse.sinogram.data, 0.5 * sparse.sinogram.data))
    both = replace(sparse.sinogram, data=data, weights=None)
    one = replace(both, data=data[:1])
    for method in ("fbp", "sirt", "os-sart", "cgls"):  # tv and wavelet share the noise level, which both slices tell
        torch.testing.assert_close(
            reconstruct(both, method).mu_per_mm[:1], reconstruct(one, method).mu_per_mm, rtol=1e-4, atol=1e-6
        )


def test_attenuation_is_not_negative_unless_allowed(sparse: Simulation) -> None:
    for method in ("sirt", "os-sart", "tv"):
        assert float(reconstruct(sparse.sinogram, method).mu_per_mm.min()) >= 0
    assert float(reconstruct(sparse.sinogram, "tv", nonnegative=False).mu_per_mm.min()) < 0


def test_the_residual_tells_fitted_noise_from_lost_structure(dense: Simulation) -> None:
    assert 0.4 < float(reconstruct(dense.sinogram, "tv").residual.mean()) < 3
    assert float(reconstruct(dense.sinogram, "tv", regularisation=300.0).residual.mean()) > 5


def test_a_limited_angle_is_a_warning(dense: Simulation) -> None:
    views = slice(0, 120)
    sinogram = replace(
        dense.sinogram, data=dense.sinogram.data[:, views], geometry=dense.sinogram.geometry[views], weights=None
    )
    (decision,) = [d for d in reconstruct(sinogram, "fbp").decisions if d.name == "coverage"]
    assert decision.warning
    assert "limited angle" in str(decision)


def test_impossible_wishes_are_refused(sparse: Simulation) -> None:
    with pytest.raises(InputError, match="choose one of fbp, sirt"):
        reconstruct(sparse.sinogram, "magic")
    with pytest.raises(InputError, match="cannot be used here"):
        reconstruct(sparse.sinogram, "fbp", device="abacus")
    geometry = sparse.sinogram.geometry
    assert isinstance(geometry, FanBeam)
    with pytest.raises(InputError, match="source"):
        operator_for(replace(sparse.sinogram, geometry=replace(geometry, source_to_center_mm=50.0)))


def test_metal_is_put_back_and_its_streaks_are_gone() -> None:
    scan = simulate_scenario(
        Scenario(preset="sparse-view", matrix=128, n_photons=1e6, polyenergetic=True, metal="spine")
    )
    assert scan.metal_mask is not None
    metal = scan.metal_mask > 0
    outside = (scan.target_hu <= -500) | metal
    plain = float(rmse_hu(reconstruct(scan.sinogram, "fbp").hu, scan.target_hu, outside).mean())
    for method in ("li", "nmar"):
        result = reconstruct_without_metal(scan.sinogram, method)
        assert float(rmse_hu(result.hu, scan.target_hu, outside).mean()) < 0.7 * plain
        assert float(result.hu[scan.metal_mask > 0.9].mean()) > 2500


@pytest.mark.realdata
def test_the_tooth_is_sharp_and_the_air_around_it_empty(data_folder: Path) -> None:
    result = reconstruct(read(data_folder / "ct" / "tooth_parallel.h5"), "fbp")
    image = result.mu_per_mm[0]
    assert tuple(result.mu_per_mm.shape) == (2, 640, 640)
    assert abs(float(image[40:90, 300:340].mean())) < 0.05 * float(image.max())
    tooth = image > 0.4 * image.quantile(0.99)
    assert 0.02 < float(tooth.float().mean()) < 0.5


@pytest.mark.realdata
def test_the_disc_of_a_limited_angle_is_seen_by_total_variation(data_folder: Path) -> None:
    result = reconstruct(read(data_folder / "ct" / "htc2022" / "tb_subsample_90.mat"), "tv", n_iterations=40)
    image = result.mu_per_mm[0]
    assert tuple(image.shape) == (512, 512)
    assert float(image.quantile(0.9)) > 5 * abs(float(image.quantile(0.05)))


@pytest.mark.realdata
def test_the_curved_fan_of_the_challenge_meets_its_published_image(data_folder: Path) -> None:
    folder = data_folder / "ct" / "aapm_ctmar"
    sinogram = read(folder / "water_logo_sinogram_1000x900_f32.prep", ReadOptions(preset="aapm-ct-mar"))
    content = bytearray((folder / "water_logo_xcist_512x512_f32.raw").read_bytes())
    published = torch.frombuffer(content, dtype=torch.float32).reshape(512, 512)
    difference = (reconstruct(sinogram, "fbp").hu[0] - published)[published > -500]
    assert abs(float(difference.mean())) < 10
    assert float(difference.square().mean().sqrt()) < 60
