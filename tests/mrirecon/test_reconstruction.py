"""The pipeline on simulated scans whose truth is known, and on the measured ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mrirecon.io import read
from mrirecon.phantom import brain_phantom, head_mask
from mrirecon.reconstruction import METHODS, Reconstruction, operator_for, reconstruct
from mrirecon.sampling import partial_fourier_mask
from mrirecon.simulation import Scenario, Simulation, simulate, simulate_scenario
from operators import nrmse
from operators.errors import InputError


def error(result: Reconstruction, scan: Simulation) -> float:
    target = scan.target.abs()
    return float(nrmse(result.image.abs(), target, mask=head_mask(tuple(target.shape))).mean())


@pytest.fixture(scope="module")
def noisy() -> Simulation:
    return simulate_scenario(Scenario(matrix=64, n_slices=2, relative_noise_variance=0.15))


@pytest.fixture(scope="module")
def parallel() -> Simulation:
    return simulate_scenario(
        Scenario(matrix=64, n_slices=2, n_coils=6, acceleration=2.0, n_centre_lines=16, relative_noise_variance=0.02)
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_complete_noise_free_scan_comes_back_as_it_was(method: str) -> None:
    scan = simulate(brain_phantom((2, 48, 50)), torch.ones(48, 50), relative_noise_variance=1e-8)
    result = reconstruct(scan.kspace, method)
    torch.testing.assert_close(result.image, scan.target, rtol=0, atol=5e-3 * float(scan.target.abs().max()))


@pytest.mark.parametrize("method", ["tv", "wavelet"])
def test_regularisation_that_scales_with_the_noise_beats_the_adjoint_untuned(method: str, noisy: Simulation) -> None:
    assert error(reconstruct(noisy.kspace, method), noisy) < 0.95 * error(reconstruct(noisy.kspace, "adjoint"), noisy)


@pytest.mark.parametrize("method", ["cg-sense", "tv", "wavelet"])
def test_iterative_methods_unfold_what_the_adjoint_leaves_folded(method: str, parallel: Simulation) -> None:
    adjoint = error(reconstruct(parallel.kspace, "adjoint"), parallel)
    assert error(reconstruct(parallel.kspace, method), parallel) < 0.9 * adjoint


def test_intensities_keep_the_units_of_the_data(noisy: Simulation, parallel: Simulation) -> None:
    for scan in (noisy, parallel):
        image, target = reconstruct(scan.kspace, "tv").image.abs(), scan.target.abs()
        scale = float((image * target).sum() / (image * image).sum())
        assert 0.93 < scale < 1.07


def test_scaling_the_data_scales_the_image_and_nothing_else(noisy: Simulation) -> None:
    scaled = replace(noisy.kspace, data=noisy.kspace.data * 1e-6)
    for method in METHODS:
        torch.testing.assert_close(
            reconstruct(scaled, method).image * 1e6, reconstruct(noisy.kspace, method).image, rtol=1e-3, atol=1e-3
        )


def test_a_slice_does_not_depend_on_its_neighbours(parallel: Simulation) -> None:
    kspace = parallel.kspace
    alone = replace(
        kspace,
        data=kspace.data[:1],
        acquisition=replace(
            kspace.acquisition, slice_positions_mm=kspace.acquisition.slice_positions_mm[:1], slice_spacing_mm=5.0
        ),
    )
    for method in METHODS:
        both = reconstruct(kspace, method, coil_maps="walsh").image[:1]
        torch.testing.assert_close(reconstruct(alone, method, coil_maps="walsh").image, both, rtol=1e-4, atol=1e-4)


def test_without_maps_coils_are_combined_by_the_root_of_the_sum_of_squares(parallel: Simulation) -> None:
    result = reconstruct(parallel.kspace, "adjoint", coil_maps="none")
    assert result.csm is None
    assert result.image.shape == parallel.target.shape
    assert float(result.image.imag.abs().max()) == 0
    assert float(result.image.real.min()) >= 0


def test_fewer_virtual_coils_keep_the_image(parallel: Simulation) -> None:
    result = reconstruct(parallel.kspace, "cg-sense", n_virtual_coils=4)
    assert result.csm is not None
    assert result.csm.shape[-3] == 4
    assert error(result, parallel) < 1.2 * error(reconstruct(parallel.kspace, "cg-sense"), parallel)


def test_the_residual_tells_fitted_noise_from_lost_structure(noisy: Simulation) -> None:
    assert float(reconstruct(noisy.kspace, "adjoint").residual.max()) < 1e-6
    explained = reconstruct(noisy.kspace, "tv").residual
    assert bool(((explained > 0.1) & (explained < 1.0)).all())
    assert float(reconstruct(noisy.kspace, "tv", regularisation=10.0).residual.min()) > 1.5


def test_pocs_fills_the_missing_side_of_partial_fourier() -> None:
    image = brain_phantom((1, 64, 64))
    scan = simulate(image, partial_fourier_mask((64, 64), 0.65), relative_noise_variance=1e-6)
    filled = reconstruct(scan.kspace, "adjoint")
    zero_filled = reconstruct(scan.kspace, "adjoint", partial_fourier="none")
    assert error(filled, scan) < 0.7 * error(zero_filled, scan)
    assert any(decision.name == "partial_fourier" for decision in filled.decisions)
    assert error(reconstruct(scan.kspace, "adjoint", partial_fourier="homodyne"), scan) < error(zero_filled, scan)


def test_the_image_is_cropped_to_the_field_of_view_of_the_header(noisy: Simulation) -> None:
    acquisition = noisy.kspace.acquisition
    z, y, x = acquisition.encoded_fov_mm
    kspace = replace(noisy.kspace, acquisition=replace(acquisition, recon_fov_mm=(z, y / 2, x)))
    whole, cropped = reconstruct(noisy.kspace, "adjoint"), reconstruct(kspace, "adjoint")
    assert tuple(cropped.image.shape) == (2, 32, 64)
    assert torch.equal(cropped.image, whole.image[:, 16:48])
    np.testing.assert_allclose(cropped.grid.position_mm((1, 0, 5)), whole.grid.position_mm((1, 16, 5)))
    assert cropped.grid.spacing_mm == whole.grid.spacing_mm


def test_a_volume_is_reconstructed_as_one() -> None:
    image = brain_phantom((6, 32, 32))
    flat = simulate(image, torch.ones(32, 32), relative_noise_variance=0.01).kspace
    data = torch.fft.fftshift(torch.fft.fft(torch.fft.ifftshift(flat.data, dim=0), dim=0, norm="ortho"), dim=0)
    acquisition = replace(
        flat.acquisition,
        encoded_shape=(6, 32, 32),
        encoded_fov_mm=(30.0, 240.0, 240.0),
        recon_fov_mm=(30.0, 240.0, 240.0),
        slice_positions_mm=((0.0, 0.0, 0.0),),
    )
    volume = replace(
        flat, data=data.movedim(0, 1), mask=torch.ones(1, 6, 32, 32), acquisition=acquisition, batch_axes=(), n_dims=3
    )
    for method in METHODS:
        result = reconstruct(volume, method)
        assert tuple(result.image.shape) == (6, 32, 32)
        assert float(nrmse(result.image.abs(), image.abs()).max()) < 0.3
    assert result.grid.spacing_mm == (5.0, 7.5, 7.5)


def test_progress_counts_every_image(noisy: Simulation) -> None:
    seen: list[tuple[int, int]] = []
    reconstruct(noisy.kspace, "adjoint", progress=lambda n_done, n_all: seen.append((n_done, n_all)))
    assert seen[-1] == (2, 2)


def test_the_operator_is_adjoint_and_knows_its_coils(parallel: Simulation, generator: torch.Generator) -> None:
    result = reconstruct(parallel.kspace, "adjoint")
    A = operator_for(parallel.kspace, result.csm)
    x, y = A.domain.randn(2, generator=generator), A.codomain.randn(2, generator=generator)
    left, right = (A(x).conj() * y).sum(), (x.conj() * A.adjoint(y)).sum()
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-2)
    with pytest.raises(ValueError, match="kspace has 6 coils but csm has 2"):
        operator_for(parallel.kspace, torch.ones(2, 64, 64, dtype=torch.complex64))


def test_impossible_wishes_are_refused(noisy: Simulation) -> None:
    with pytest.raises(InputError, match="choose one of adjoint, cg-sense, tv, wavelet"):
        reconstruct(noisy.kspace, "magic")
    with pytest.raises(InputError, match="Leave one of the two options out"):
        reconstruct(noisy.kspace, "tv", partial_fourier="pocs")
    with pytest.raises(InputError, match="cannot be used here"):
        reconstruct(noisy.kspace, device="abacus")


@pytest.mark.realdata
@pytest.mark.parametrize("patient", [1, 2, 3, 4])
def test_measured_heads_stand_upright_in_the_middle(data_folder: Path, patient: int) -> None:
    folder = data_folder / "mri" / "lowfield_0p055T"
    result = reconstruct(read(folder / f"patient{patient}" / "fse_kspace.mat"), "tv")
    image = result.image.abs()
    assert tuple(image.shape) == (4, 128, 126)
    np.testing.assert_allclose(result.grid.spacing_mm, (10.0, 1.953125, 1.953125))
    # The head is in the middle, longer from front to back (rows) than wide (columns).
    head = image > 0.15 * image.quantile(0.99)
    rows, columns = head.any(dim=-1).float().sum(dim=-1), head.any(dim=-2).float().sum(dim=-1)
    assert bool((rows > columns).all())
    weights = image.sum(dim=0)
    centre_y = float((weights.sum(dim=1) * torch.arange(128)).sum() / weights.sum())
    centre_x = float((weights.sum(dim=0) * torch.arange(126)).sum() / weights.sum())
    assert abs(centre_y - 64) < 12
    assert abs(centre_x - 63) < 12
