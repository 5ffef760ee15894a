"""Metrics against numpy and scikit-image, their conventions, and the values of a published case."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ctrecon import metrics

MU_WATER = 0.192  # 1/cm


@pytest.fixture
def pair(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    target = 900 * torch.randn(2, 24, 20, generator=generator, dtype=torch.float64)
    estimate = target + 80 * torch.randn(2, 24, 20, generator=generator, dtype=torch.float64) + 15
    metal = torch.zeros(24, 20, dtype=torch.bool)
    metal[5:9, 11:14] = True
    estimate[:, metal] += 9000
    return estimate, target, metal


def clean(hu: np.ndarray, metal: np.ndarray) -> np.ndarray:
    return np.clip(MU_WATER * (1 + hu / 1000), 0, 0.5) / 0.5 * (1 - metal)


def window(hu: np.ndarray, metal: np.ndarray) -> np.ndarray:
    return (np.clip(hu, -175, 275) + 175) / 450 * (1 - metal)


def gaussian_ssim(a: np.ndarray, b: np.ndarray) -> float:
    return structural_similarity(a, b, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)


def test_errors_in_hu_are_those_outside_the_metal(pair):
    estimate, target, metal = pair
    error = (estimate - target).numpy()[:, ~metal.numpy()]
    for found, expected in (
        (metrics.rmse_hu, np.sqrt((error**2).mean(axis=1))),
        (metrics.mae_hu, np.abs(error).mean(axis=1)),
        (metrics.bias_hu, error.mean(axis=1)),
    ):
        np.testing.assert_allclose(found(estimate, target, metal), expected, rtol=1e-6)
        np.testing.assert_allclose(found(estimate, target, metal.to(torch.uint8)), expected, rtol=1e-6)
    assert (metrics.rmse_hu(estimate, target) > 500).all()


@pytest.mark.parametrize(
    ("psnr", "ssim", "scaled"),
    [
        (metrics.psnr_clean_mar, metrics.ssim_clean_mar, clean),
        (metrics.psnr_dudonet_window, metrics.ssim_dudonet_window, window),
    ],
)
def test_conventions_of_metal_are_those_of_scikit_image_on_the_scaled_images(pair, psnr, ssim, scaled):
    estimate, target, metal = pair
    a, b = scaled(estimate.numpy(), metal.numpy()), scaled(target.numpy(), metal.numpy())
    expected = [peak_signal_noise_ratio(y, x, data_range=1) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(psnr(estimate, target, metal), expected, rtol=1e-9)
    # scikit-image drops five pixels at each edge, where the window leaves the image.
    expected = [gaussian_ssim(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim(estimate, target, metal), expected, rtol=1e-9)


def test_lodopab_takes_the_range_of_the_target(pair):
    estimate, target, metal = pair
    a, b = estimate.numpy(), target.numpy()
    expected = [peak_signal_noise_ratio(y, x, data_range=np.ptp(y)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.psnr_lodopab(estimate, target), expected, rtol=1e-9)
    mu_a, mu_b = (0.0192 * (1 + x / 1000) for x in (a, b))
    np.testing.assert_allclose(metrics.psnr_lodopab(torch.tensor(mu_a), torch.tensor(mu_b)), expected, rtol=1e-9)
    expected = [structural_similarity(x, y, data_range=np.ptp(y)) for x, y in zip(mu_a, mu_b, strict=True)]
    np.testing.assert_allclose(metrics.ssim_lodopab(estimate, target), expected, rtol=1e-9)
    assert (metrics.psnr_lodopab(estimate, target, metal) > metrics.psnr_lodopab(estimate, target) + 10).all()


def test_per_image_scaling_is_blind_to_offset_and_scale(pair):
    estimate, target, _ = pair
    a, b = (
        (x - x.min((1, 2), keepdims=True)) / np.ptp(x, (1, 2), keepdims=True)
        for x in (estimate.numpy(), target.numpy())
    )
    expected = [peak_signal_noise_ratio(y, x, data_range=1) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.psnr_per_image(estimate, target), expected, rtol=1e-9)
    np.testing.assert_allclose(metrics.psnr_per_image(3 * estimate - 400, target), expected, rtol=1e-9)
    expected = [gaussian_ssim(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.ssim_per_image(estimate, target), expected, rtol=1e-9)


def test_what_cannot_be_compared_is_refused(pair):
    estimate, target, metal = pair
    with pytest.raises(ValueError, match="other than 0 and 1"):
        metrics.psnr_clean_mar(estimate, target, 0.5 * metal)
    with pytest.raises(ValueError, match="other than 0 and 1"):
        metrics.rmse_hu(estimate, target, 2 * metal.int())
    with pytest.raises(ValueError, match="must be the same"):
        metrics.mae_hu(estimate, target[0])
    with pytest.raises(ValueError, match="is constant"):
        metrics.psnr_per_image(torch.ones_like(target), target)
    with pytest.raises(TypeError, match="complex"):
        metrics.psnr_per_image(estimate.to(torch.complex128), target)
    with pytest.raises(ValueError, match="empty"):
        metrics.bias_hu(estimate, target, torch.ones_like(metal))


@pytest.mark.realdata
def test_a_published_case_scores_near_the_published_mean_over_masks(data_folder):
    folder = data_folder / "ct" / "metal" / "abdomen"
    target, raw, li, mask = (
        torch.from_numpy(np.load(folder / f"{n}.npy")) for n in ("gt", "ma_02", "li_02", "mask_02")
    )
    # Published, mean of ten masks on another slice: input 29.87 dB and 0.606, linear interpolation 36.71 dB and 0.872.
    assert float(metrics.psnr_clean_mar(raw, target, mask)) == pytest.approx(31.806, abs=0.002)
    assert float(metrics.psnr_clean_mar(li, target, mask)) == pytest.approx(34.262, abs=0.002)
    assert float(metrics.ssim_clean_mar(raw, target, mask)) == pytest.approx(0.8457, abs=0.0002)
    assert float(metrics.ssim_clean_mar(li, target, mask)) == pytest.approx(0.9196, abs=0.0002)
    scores = [metrics.psnr_clean_mar, metrics.psnr_dudonet_window, metrics.psnr_lodopab, metrics.psnr_per_image]
    values = [float(score(li, target, mask)) for score in scores]
    assert max(values) - min(values) > 8
