"""Reduction of metal artefacts: exact where it must be, and better than nothing where it cannot be."""

import math

import pytest
import torch

from ctrecon.hounsfield import to_hu, to_mu
from ctrecon.metal import insert_metal, reconstruct_without_metal, reduce_metal, segment_metal
from ctrecon.metrics import psnr_clean_mar, rmse_hu
from ctrecon.simulation import Scenario, Simulation, simulate, simulate_scenario
from ctrecon.sinogram import Sinogram
from operators.back_projection import filtered_back_projection
from operators.beam_geometry import ParallelBeam
from operators.errors import InputError
from operators.metal import metal_trace
from operators.projection import Projection

N = 32
GEOMETRY = ParallelBeam(tuple(math.pi * k / 30 for k in range(30)), 46, 6.0, 8.0)


def with_mask(data: torch.Tensor) -> tuple[Sinogram, torch.Tensor]:
    mask = torch.zeros(N, N, dtype=torch.bool)
    mask[12:15, 18:20] = True
    return Sinogram(data, GEOMETRY, (N, N)), mask


@pytest.fixture(scope="module")
def scan() -> Simulation:
    scenario = Scenario(matrix=128, n_views=360, metal="spine", polyenergetic=True, n_photons=2e7)
    return simulate_scenario(scenario)


def image_of(sinogram: Sinogram) -> torch.Tensor:
    image = filtered_back_projection(sinogram.data, sinogram.geometry, sinogram.image_shape)
    return to_hu(image, sinogram.mu_water_per_mm)


def test_linear_interpolation_is_exact_where_views_are_linear_across_the_trace():
    detector, view = torch.arange(46.0), torch.arange(30.0)[:, None]
    straight = (0.5 + 0.01 * view + (0.02 - 0.001 * view) * detector)[None]
    sinogram, mask = with_mask(straight.clone())
    trace = metal_trace(mask[None], Projection(GEOMETRY, (N, N)))
    sinogram.data[trace == 1] += 3.0
    result = reduce_metal(sinogram, "li", mask=mask)
    torch.testing.assert_close(result.sinogram.data, straight, rtol=1e-5, atol=1e-5)
    assert torch.equal(result.trace, trace)
    assert torch.equal(result.mask[0], mask)


def test_normalised_interpolation_is_exact_where_the_prior_is():
    # Tissue at 0 HU with sharp bone: the prior knows it all, and linear interpolation does not.
    hu = torch.full((1, N, N), -1000.0)
    hu[:, 5:27, 4:28] = 0.0
    hu[:, 8:11, 8:24] = 1200.0
    A = Projection(GEOMETRY, (N, N))
    sinogram, mask = with_mask(A(to_mu(hu, 0.0192)))
    clean = sinogram.data.clone()
    trace = metal_trace(mask[None], A)
    sinogram.data[trace == 1] += 2.0
    errors = {
        method: float((reduce_metal(sinogram, method, mask=mask).sinogram.data - clean)[trace == 1].abs().mean())
        for method in ("li", "nmar")
    }
    assert errors["nmar"] < 0.6 * errors["li"]
    assert errors["li"] < 0.5


@pytest.mark.parametrize("method", ["li", "nmar"])
def test_rays_beside_the_metal_are_untouched(method, generator):
    data = 1 + torch.rand(2, 30, 46, generator=generator)
    sinogram, mask = with_mask(data)
    result = reduce_metal(sinogram, method, mask=mask)
    kept = result.trace == 0
    assert result.trace.shape == data.shape
    assert torch.equal(result.sinogram.data[kept], data[kept])
    assert (result.sinogram.data != data)[~kept].float().mean() > 0.99
    assert result.sinogram.data.isfinite().all()
    assert [d.name for d in result.decisions] == ["metal", "metal_reduction"]
    assert result.sinogram.decisions == result.decisions


def test_weights_are_interpolated_too(scan):
    result = reduce_metal(scan.sinogram, "li", mask=scan.metal_mask)
    assert scan.sinogram.weights is not None
    assert result.sinogram.weights is not None
    shadow = result.trace == 1
    assert torch.equal(result.sinogram.weights[~shadow], scan.sinogram.weights[~shadow])
    assert result.sinogram.weights[shadow].mean() > 2 * scan.sinogram.weights[shadow].mean()


def test_nmar_beats_interpolation_beats_nothing(scan):
    metal = scan.metal_mask == 1
    raw = float(psnr_clean_mar(image_of(scan.sinogram), scan.target_hu, metal))
    li, nmar = (
        float(psnr_clean_mar(image_of(reduce_metal(scan.sinogram, m, mask=metal).sinogram), scan.target_hu, metal))
        for m in ("li", "nmar")
    )
    assert li > raw + 4
    assert nmar > li + 1


def test_metal_is_found_by_its_density(scan):
    metal = scan.metal_mask == 1
    result = reduce_metal(scan.sinogram, "li")
    assert (result.mask & metal).sum() > 0.95 * metal.sum()
    assert (result.mask & ~metal).sum() < 0.2 * metal.sum()
    assert "2500" in result.decisions[0].reason
    assert torch.equal(segment_metal(torch.tensor([[2499.0, 2500.0, 2501.0]])), torch.tensor([[False, False, True]]))


def test_the_reconstruction_has_its_metal_back_and_fewer_artefacts(scan):
    metal = scan.metal_mask == 1
    original = image_of(scan.sinogram)
    result = reconstruct_without_metal(scan.sinogram, "nmar", mask=metal)
    torch.testing.assert_close(result.hu[metal], original[metal], rtol=1e-5, atol=0.1)
    assert rmse_hu(result.hu, scan.target_hu, metal) < 0.5 * rmse_hu(original, scan.target_hu, metal)
    assert result.method == "fbp after nmar"
    assert any(d.name == "metal_reduction" for d in result.decisions)
    back = insert_metal(torch.zeros(1, 2), torch.tensor([[1, 0]]), torch.full((1, 2), 7.0))
    assert back.tolist() == [[7.0, 0.0]]


def test_without_metal_nothing_happens_and_that_is_said():
    hu = torch.full((1, N, N), -1000.0)
    hu[:, 8:24, 8:24] = 0.0
    sinogram = simulate(hu, GEOMETRY).sinogram
    result = reduce_metal(sinogram, "nmar")
    assert torch.equal(result.sinogram.data, sinogram.data)
    assert not result.mask.any()
    assert not result.trace.any()
    assert result.decisions[0].warning
    assert "nothing was corrected" in str(result.sinogram.decisions[-1])


def test_what_cannot_be_corrected_is_refused():
    sinogram, mask = with_mask(torch.ones(1, 30, 46))
    with pytest.raises(InputError, match="choose li or nmar"):
        reduce_metal(sinogram, "magic", mask=mask)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="other than 0 and 1"):
        reduce_metal(sinogram, "li", mask=2 * mask)
    with pytest.raises(InputError, match="must fit the image"):
        reduce_metal(sinogram, "li", mask=mask[1:])
    narrow = Sinogram(torch.ones(1, 30, 4), ParallelBeam(GEOMETRY.angles_rad, 4, 6.0, 8.0), (N, N))
    with pytest.raises(InputError, match="every ray of at least one view"):
        reduce_metal(narrow, "li", mask=torch.ones(N, N))
    with pytest.raises(TypeError, match="floating-point"):
        segment_metal(torch.ones(2, 2, dtype=torch.int32))
