"""Simulated scans: the projection without noise, the statistics with it, beam hardening and metal against sums."""

import math
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from ctrecon.hounsfield import to_hu, to_mu
from ctrecon.phantom import body_phantom
from ctrecon.presets import preset
from ctrecon.simulation import Scenario, simulate, simulate_scenario
from ctrecon.spectrum import Spectrum, attenuation_per_mm, tube_spectrum, water_correction
from operators.back_projection import filtered_back_projection
from operators.beam_geometry import BeamGeometry, FanBeam, ParallelBeam
from operators.errors import InputError
from operators.metal import metal_trace
from operators.projection import Projection

N = 48
FAN = FanBeam(
    tuple(2 * math.pi * (k + 0.5) / 40 for k in range(40)),
    n_detectors=90,
    detector_spacing_mm=10.0,
    pixel_spacing_mm=400 / N,
    source_to_center_mm=550.0,
    center_to_detector_mm=400.0,
)


def disc(n: int, radius_mm: float, pixel_mm: float, hu: float = 0.0) -> torch.Tensor:
    """A water disc in air, ``(1, n, n)``, with partial volume at its edge."""
    axis = ((torch.arange(4 * n) + 0.5) / 4 - n / 2) * pixel_mm
    inside = (torch.hypot(axis[:, None], axis) < radius_mm).float()
    return -1000 + (hu + 1000) * torch.nn.functional.avg_pool2d(inside[None], 4)


def reconstructed(sinogram) -> torch.Tensor:
    image = filtered_back_projection(sinogram.data, sinogram.geometry, sinogram.image_shape)
    return to_hu(image, sinogram.mu_water_per_mm)


def test_without_spectrum_and_noise_the_sinogram_is_the_projection():
    hu = torch.stack([body_phantom((N, N), section=s)[0] for s in ("abdomen", "thorax")])
    scan = simulate(hu, FAN, mu_water_per_mm=0.02)
    expected = Projection(FAN, (N, N))(to_mu(hu, 0.02))
    torch.testing.assert_close(scan.sinogram.data, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(scan.target_hu, hu)
    assert scan.sinogram.mu_water_per_mm == 0.02
    assert scan.sinogram.weights is None
    assert scan.metal_trace is None
    assert scan.n_starved == 0


def test_counted_photons_have_the_variance_of_poisson_and_electronic_noise():
    hu = disc(N, 120.0, 400 / N).expand(12, N, N)
    clean = simulate(hu, FAN).sinogram.data.double()
    for electronic in (0.0, 40.0):
        scan = simulate(hu, FAN, n_photons=1e5, electronic_noise_std=electronic, seed=3)
        counts = 1e5 * torch.exp(-clean)
        error = (scan.sinogram.data.double() - clean) * counts / (counts + electronic**2).sqrt()
        assert abs(float(error.mean())) < 0.03
        assert math.isclose(float(error.square().mean()), 1, abs_tol=0.03)
        inside = clean > 3
        assert math.isclose(float(error[inside].square().mean()), 1, abs_tol=0.06)
        torch.testing.assert_close(scan.sinogram.weights, torch.exp(-scan.sinogram.data), rtol=1e-4, atol=1e-9)


def test_scattered_photons_are_counted_too():
    hu = disc(N, 150.0, 400 / N).expand(4, N, N)
    clean = simulate(hu, FAN).sinogram.data.double()
    scan = simulate(hu, FAN, n_photons=1e6, n_scatter_photons=5e4)
    expected = torch.exp(-clean) + 0.05
    assert math.isclose(float((torch.exp(-scan.sinogram.data.double()) / expected).mean()), 1, abs_tol=1e-3)


def test_starved_rays_count_one_photon_and_are_reported():
    scan = simulate(disc(N, 150.0, 400 / N), FAN, n_photons=20.0)
    assert 0 < scan.n_starved < scan.sinogram.data.numel()
    assert scan.sinogram.data.isfinite().all()
    assert math.isclose(float(scan.sinogram.data.max()), math.log(20), rel_tol=1e-6)
    decision = next(d for d in scan.sinogram.decisions if d.name == "noise")
    assert decision.warning
    assert str(scan.n_starved) in decision.reason


def test_the_noise_of_the_sparse_view_protocol_has_its_two_parts():
    hu = disc(N, 120.0, 400 / N, 200.0).expand(16, N, N)
    clean = simulate(hu, FAN).sinogram.data.double()
    scan = simulate(hu, FAN, noise="sparse-view", seed=1)
    largest = 0.0192 * 1.2
    s = clean / largest
    variance = 0.05**2 + s.max() ** 2 * torch.exp(s / s.max()) / 5e6
    error = (scan.sinogram.data.double() - clean) / largest
    ratio = (error.square() / variance).mean(dim=0)
    assert math.isclose(float(ratio.mean()), 1, abs_tol=0.03)
    assert math.isclose(float(ratio[clean[0] > 0.9 * clean.max()].mean()), 1, abs_tol=0.1)


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    hu = disc(N, 100.0, 400 / N)
    scans = [simulate(hu, FAN, n_photons=1e4, seed=seed).sinogram.data for seed in (5, 5, 6)]
    assert torch.equal(scans[0], scans[1])
    assert not torch.equal(scans[0], scans[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_spectrum_attenuates_as_an_explicit_sum_over_energies_and_materials_says():
    hu = body_phantom((N, N))[0][None]
    metal = torch.zeros(N, N)
    metal[20:26, 30:33] = 1
    metal[26, 30:33] = 0.4
    scan = simulate(hu, FAN, polyenergetic=True, correct_water=False, metal_mask=metal, metal="iron")
    A, mu = Projection(FAN, (N, N)), (0.0192 * (1 + hu[0] / 1000)) * (1 - metal)
    bone_share = ((hu[0] - 100) / 1400).clamp(0, 1)
    steel = float(attenuation_per_mm("iron", 70.0)) * metal
    water, bone, iron = A(torch.stack((mu * (1 - bone_share), mu * bone_share, steel))).double().numpy()
    shadow = iron > 0
    inner = shadow.copy()
    inner[:, 1:] &= shadow[:, :-1]
    inner[:, :-1] &= shadow[:, 1:]
    iron[shadow & ~inner] /= 4
    assert (shadow & ~inner).sum() >= 2 * 40
    intensity = np.zeros_like(water)
    spectrum = tube_spectrum()
    for energy, fraction in zip(spectrum.energies_kev.tolist(), spectrum.fractions.tolist(), strict=True):
        ratios = [float(attenuation_per_mm(m, energy) / attenuation_per_mm(m, 70.0)) for m in ("water", "bone", "iron")]
        intensity += fraction * np.exp(-ratios[0] * water - ratios[1] * bone - ratios[2] * iron)
    np.testing.assert_allclose(scan.sinogram.data[0], -np.log(intensity), rtol=1e-5, atol=1e-5)
    a, b, c = water_correction(spectrum)
    corrected = simulate(hu, FAN, polyenergetic=True, metal_mask=metal, metal="iron").sinogram.data[0]
    p = -np.log(intensity)
    np.testing.assert_allclose(corrected, a * p + b * p**2 + c * p**3, rtol=1e-5, atol=1e-5)
    assert scan.metal_trace is not None
    np.testing.assert_array_equal(scan.metal_trace[0], shadow)
    assert torch.equal(scan.metal_trace[0], metal_trace(metal, A))


def test_metal_without_a_spectrum_is_dense_and_displaces_tissue():
    hu = disc(N, 100.0, 400 / N)
    metal = torch.zeros(N, N, dtype=torch.bool)
    metal[22:25, 24:27] = True
    scan = simulate(hu, FAN, metal_mask=metal, metal="titanium")
    mu = torch.where(metal, 0.241245, to_mu(hu[0], 0.0192))
    torch.testing.assert_close(scan.sinogram.data[0], Projection(FAN, (N, N))(mu), rtol=1e-5, atol=1e-5)
    assert scan.metal_mask is not None
    assert torch.equal(scan.metal_mask[0] == 1, metal)


def test_a_spectrum_cups_a_water_disc_and_the_correction_flattens_it():
    n, pixel_mm = 64, 4.0
    geometry = ParallelBeam(tuple(math.pi * k / 120 for k in range(120)), 130, 2.0, pixel_mm)
    water = disc(n, 100.0, pixel_mm)
    axis = (torch.arange(n) - (n - 1) / 2) * pixel_mm
    radius = torch.hypot(axis[:, None], axis)

    def centre_and_rim(**options: bool) -> tuple[float, float]:
        hu = reconstructed(simulate(water, geometry, **options).sinogram)[0]
        return float(hu[radius < 25].mean()), float(hu[(radius > 70) & (radius < 85)].mean())

    plain = centre_and_rim()
    hard = centre_and_rim(polyenergetic=True, correct_water=False)
    flat = centre_and_rim(polyenergetic=True)
    assert max(map(abs, plain)) < 3
    assert hard[0] > 30  # without the correction water is too dense, and
    assert hard[1] - hard[0] > 30  # less so in the middle, where the beam is harder
    assert abs(flat[1] - flat[0]) < 10
    assert max(map(abs, flat)) < 15


def test_the_size_of_the_image_is_that_of_the_person():
    head = simulate_scenario(Scenario(matrix=64, n_views=20, section="head")).target_hu[0]
    rows, columns = (head > -500).nonzero().T
    height_mm, width_mm = (float(i.max() - i.min() + 1) * 400 / 64 for i in (rows, columns))
    assert 170 < height_mm < 210
    assert 135 < width_mm < 170
    shrunk = simulate_scenario(Scenario(matrix=64, n_views=20, preset="syndeeplesion"))
    torch.testing.assert_close(shrunk.target_hu[0], body_phantom((64, 64))[0])
    decision = next(d for d in shrunk.sinogram.decisions if d.name == "size")
    assert decision.warning
    assert "400 mm" in decision.reason
    assert shrunk.sinogram.mu_water_per_mm == 0.0192


def test_a_scenario_with_metal_has_it_in_its_section_and_scatters():
    scenario = Scenario(matrix=64, n_views=40, metal="hip", section="abdomen", polyenergetic=True, n_photons=2e7)
    scan = simulate_scenario(scenario)
    expected_hu, expected_mask = body_phantom((64, 64), metal="hip")
    assert torch.equal(scan.target_hu[0], expected_hu)
    assert scan.metal_mask is not None
    assert torch.equal(scan.metal_mask[0] == 1, expected_mask)
    assert {d.name for d in scan.sinogram.decisions} >= {"simulated", "beam", "metal", "noise"}
    raw = reconstructed(scan.sinogram)[0]
    assert raw[expected_mask].median() > 2500
    assert scan.sinogram.geometry.n_views == 40


def test_images_from_files_keep_their_place(tmp_path: Path):
    hu = torch.stack([body_phantom((50, 50))[0], body_phantom((50, 50), section="thorax")[0]])
    affine = np.array([[-7.2, 0, 0, 170.0], [0, -7.2, 0, 190.0], [0, 0, 3.0, -60.0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(hu.numpy().transpose(2, 1, 0), affine), tmp_path / "hu.nii.gz")
    scan = simulate_scenario(Scenario(image=str(tmp_path / "hu.nii.gz"), matrix=64, n_views=20))
    assert scan.target_hu.shape == (2, 64, 64)
    grid = scan.sinogram.grid()
    np.testing.assert_allclose(grid.spacing_mm, (3.0, 6.25, 6.25))
    np.testing.assert_allclose(grid.affine_ras() @ [31.5, 31.5, 1, 1], affine @ [24.5, 24.5, 1, 1], atol=1e-4)
    # 360 mm in a field of 400 mm: a margin of air, and the same mass inside.
    assert (scan.target_hu[:, :3] == -1000).all()
    before, after = ((x + 1000).sum() * area for x, area in ((hu, 7.2**2), (scan.target_hu, 6.25**2)))
    assert math.isclose(float(before), float(after), rel_tol=0.02)


def test_what_does_not_go_together_is_refused():
    hu = disc(N, 100.0, 400 / N)
    with pytest.raises(TypeError, match="floating-point"):
        simulate(hu.int(), FAN)
    with pytest.raises(ValueError, match="slice, y, x"):
        simulate(hu[0], FAN)
    with pytest.raises(ValueError, match="finite"):
        simulate(torch.full_like(hu, math.nan), FAN)
    with pytest.raises(ValueError, match="n_photons is 0"):
        simulate(hu, FAN, n_photons=0.0)
    with pytest.raises(ValueError, match="give n_photons"):
        simulate(hu, FAN, electronic_noise_std=3.0)
    with pytest.raises(ValueError, match="must not be negative"):
        simulate(hu, FAN, n_photons=1e5, electronic_noise_std=-3.0)
    with pytest.raises(ValueError, match="its own number of photons"):
        simulate(hu, FAN, noise="sparse-view", n_photons=1e5)
    with pytest.raises(ValueError, match="polyenergetic is false"):
        simulate(hu, FAN, spectrum=tube_spectrum())
    with pytest.raises(ValueError, match="metal is 'lead'"):
        simulate(hu, FAN, metal_mask=hu > 0, metal="lead")
    with pytest.raises(ValueError, match="outside \\[0, 1\\]"):
        simulate(hu, FAN, metal_mask=hu)
    with pytest.raises(ValueError, match="must broadcast"):
        simulate(hu, FAN, metal_mask=torch.zeros(N, N + 1))
    for scenario, message in (
        (Scenario(preset="mars"), "no preset 'mars'"),
        (Scenario(n_views=7), "use a divisor of 360"),
        (Scenario(metal="knee"), "metal is 'knee'"),
        (Scenario(section="foot"), "section is 'foot'"),
        (Scenario(image="there/is/none.nii", metal="hip"), "phantom only"),
        (Scenario(image="there/is/none.nii"), "none.nii"),
        (Scenario(matrix=32, n_views=4, noise="sparse-view", n_photons=1e4), "its own number of photons"),
    ):
        with pytest.raises(InputError, match=message):
            simulate_scenario(scenario)


@pytest.mark.realdata
def test_the_artefacts_of_metal_are_those_of_a_published_case(data_folder: Path):
    folder = data_folder / "ct" / "metal" / "abdomen"
    target, raw, mask = (
        torch.nn.functional.avg_pool2d(torch.from_numpy(np.load(folder / f"{name}.npy")).float()[None], 4)
        for name in ("gt", "ma_02", "mask_02")
    )
    n = target.shape[-1]
    geometry: BeamGeometry = preset("syndeeplesion").geometry
    geometry = replace(geometry, pixel_spacing_mm=416 * geometry.pixel_spacing_mm / n)[::2]
    table = np.genfromtxt(
        data_folder / "ct" / "attenuation" / "spectrum_and_mass_attenuation_1_120keV.csv", delimiter=",", names=True
    )[19:]
    photons = torch.from_numpy(table["S_GE_120kVp"].copy())
    spectrum = Spectrum(torch.from_numpy(table["E_keV"].copy()), photons / photons.sum())
    options = {"polyenergetic": True, "spectrum": spectrum, "n_photons": 2e7, "n_scatter_photons": 20.0}
    with_metal, without = (
        reconstructed(simulate(target, geometry, metal_mask=m, **options).sinogram) for m in (mask, None)
    )  # type: ignore[arg-type]
    far = torch.nn.functional.max_pool2d((mask > 0).float(), 5, 1, 2)[0] == 0
    inside = far & (target[0] > -500)
    ours, theirs = (torch.nn.functional.avg_pool2d(x, 3, 1, 1)[0][inside] for x in (with_metal - without, raw - target))
    assert float(torch.corrcoef(torch.stack((ours, theirs)))[0, 1]) > 0.7
    assert 0.5 < float(ours.std() / theirs.std()) < 2
