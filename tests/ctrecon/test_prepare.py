import math
from dataclasses import replace

import pytest
import torch

from ctrecon.prepare import noise_std
from ctrecon.sinogram import Sinogram
from operators.beam_geometry import ParallelBeam
from operators.errors import InputError


def sinogram(data: torch.Tensor) -> Sinogram:
    n_views, n_detectors = data.shape[-2:]
    angles = tuple(math.pi * view / n_views for view in range(n_views))
    return Sinogram(data, ParallelBeam(angles, n_detectors, 1.0, 1.0), (n_detectors, n_detectors))


def disc(n_views: int = 90, n_detectors: int = 128) -> torch.Tensor:
    u = torch.arange(n_detectors, dtype=torch.float64) - (n_detectors - 1) / 2
    return (0.02 * 2 * (50**2 - u**2).clamp_min(0).sqrt()).expand(1, n_views, n_detectors)


def test_white_noise_is_measured_on_an_object(generator: torch.Generator) -> None:
    clean = disc()
    noise = 0.05 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    std, decision = noise_std(sinogram((clean + noise).float()))
    assert math.isclose(std, 0.05, rel_tol=0.06)
    assert decision.name == "noise_std"


def test_noise_that_grows_with_attenuation_is_measured_by_its_mean_square(generator: torch.Generator) -> None:
    clean = disc()
    spread = 0.01 * torch.exp(clean / 2)
    noise = spread * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    std, _ = noise_std(sinogram((clean + noise).float()))
    assert math.isclose(std, float(spread.square().mean().sqrt()), rel_tol=0.1)
    weights = torch.exp(-clean).float()
    weighted, _ = noise_std(sinogram((clean + noise).float()), weights)
    assert math.isclose(weighted, 0.01, rel_tol=0.15)


def test_rays_of_weight_zero_are_left_out(generator: torch.Generator) -> None:
    clean = disc()
    noisy = clean + 0.02 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    noisy[:, :, 40:60] += 5 * torch.randn(1, 90, 20, generator=generator, dtype=torch.float64)
    weights = torch.ones(noisy.shape)
    weights[:, :, 40:60] = 0
    scan = replace(sinogram(noisy.float()), weights=weights)
    assert math.isclose(noise_std(scan)[0], 0.02, rel_tol=0.15)


def test_a_flat_sinogram_has_no_noise_and_a_narrow_one_is_refused() -> None:
    assert noise_std(sinogram(torch.zeros(1, 4, 8)))[0] == 0
    with pytest.raises(InputError, match="at least 3 are needed"):
        noise_std(sinogram(torch.zeros(1, 4, 2)))
