import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from mrirecon.phantom import brain_phantom, coil_sensitivities
from mrirecon.sampling import box_mask
from mrirecon.simulation import Scenario, resample, simulate, simulate_scenario
from operators import Fourier
from operators.errors import InputError


def test_noise_has_the_variance_that_was_asked_for() -> None:
    image = brain_phantom((2, 64, 64))
    mask = box_mask((64, 64), (48, 40))
    clean = simulate(image, mask).kspace.data
    scan = simulate(image, mask, relative_noise_variance=0.2, seed=1)
    measured = mask.expand_as(clean) != 0
    noise = (scan.kspace.data - clean)[measured]
    signal_power = float(clean[measured].abs().square().mean())
    assert math.isclose(float(noise.abs().square().mean()), 0.2 * signal_power, rel_tol=0.05)
    assert math.isclose(float(noise.real.std()), scan.noise_std, rel_tol=0.05)
    assert math.isclose(float(noise.imag.std()), scan.noise_std, rel_tol=0.05)
    assert float((scan.kspace.data * (1 - mask)).abs().max()) == 0


def test_noise_free_complete_kspace_is_the_fourier_transform_of_every_coil_image() -> None:
    image, csm = brain_phantom((1, 32, 34)), coil_sensitivities(3, (32, 34))
    scan = simulate(image, torch.ones(32, 34), csm=csm)
    expected = Fourier((3, 32, 34))(csm * image[:, None])
    torch.testing.assert_close(scan.kspace.data, expected, rtol=1e-5, atol=1e-4)


def test_the_noise_scan_has_the_noise_of_the_scan() -> None:
    scan = simulate(
        brain_phantom((1, 32, 32)),
        torch.ones(32, 32),
        csm=coil_sensitivities(2, (32, 32)),
        relative_noise_variance=0.1,
        n_noise_samples=4096,
    )
    assert scan.kspace.noise is not None
    assert math.isclose(float(scan.kspace.noise.real.std()), scan.noise_std, rel_tol=0.05)


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    scans = [simulate_scenario(Scenario(matrix=32, n_slices=1, acceleration=1.5, seed=seed)) for seed in (5, 5, 6)]
    assert torch.equal(scans[0].kspace.data, scans[1].kspace.data)
    assert not torch.equal(scans[0].kspace.data, scans[2].kspace.data)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("shape", [(24, 20), (40, 44), (24, 44)])
def test_resampling_keeps_a_smooth_image(shape: tuple[int, int]) -> None:
    def wave(n_y: int, n_x: int) -> torch.Tensor:
        y = (torch.arange(n_y, dtype=torch.float64) - n_y // 2)[:, None] / n_y
        x = (torch.arange(n_x, dtype=torch.float64) - n_x // 2)[None] / n_x
        return torch.polar(2 + torch.cos(2 * math.pi * (y + 2 * x)), torch.sin(2 * math.pi * x) * 0)

    torch.testing.assert_close(resample(wave(32, 32), shape), wave(*shape), rtol=1e-10, atol=1e-10)


def test_a_nifti_image_becomes_a_scan_with_its_geometry(tmp_path: Path) -> None:
    affine = np.array([[-1.5, 0, 0, 30.0], [0, -1.5, 0, 40.0], [0, 0, 4.0, -7.0], [0, 0, 0, 1]])
    volume = brain_phantom((3, 48, 48)).abs().numpy().transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "image.nii")
    scan = simulate_scenario(Scenario(image=str(tmp_path / "image.nii"), matrix=24, relative_noise_variance=0.0))
    grid = scan.kspace.acquisition.encoded_grid(n_slices=3)
    np.testing.assert_allclose(grid.spacing_mm, (4.0, 3.0, 3.0))
    # The Fourier centre (voxel n//2) stays where it was.
    np.testing.assert_allclose(grid.affine_ras() @ [12, 12, 1, 1], affine @ [24, 24, 1, 1], atol=1e-9)
    assert scan.kspace.acquisition.geometry_known
    assert torch.angle(scan.target[1, 8:16, 8:16]).std() > 0.01


def test_a_scan_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="box of"):
        simulate_scenario(Scenario(matrix=32, box=(64, 16)))
    with pytest.raises(InputError, match="Acceleration 8"):
        simulate_scenario(Scenario(matrix=32, acceleration=8.0, n_centre_lines=16))
    with pytest.raises(TypeError, match="complex tensor"):
        simulate(torch.ones(1, 8, 8), torch.ones(8, 8))
    with pytest.raises(ValueError, match="must not be negative"):
        simulate(torch.ones(1, 8, 8, dtype=torch.complex64), torch.ones(8, 8), relative_noise_variance=-1.0)
