"""Losses and metrics: against scikit-image and their formulas, per sample, differentiable, honest about bad input."""

import inspect
from collections.abc import Callable

import numpy as np
import pytest
import torch
from skimage.measure import blur_effect
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from operators import functionals

SHAPES = [(16, 16), (17, 23), (24, 13)]
Metric = Callable[..., torch.Tensor]


def with_range(metric: Metric) -> Metric:
    return lambda estimate, target, mask=None: metric(estimate, target, 0.8, mask)


IMAGE_METRICS = {
    "mse": functionals.mse,
    "mean_absolute_error": functionals.mean_absolute_error,
    "bias": functionals.bias,
    "nrmse": functionals.nrmse,
    "psnr": with_range(functionals.psnr),
    "psnr_slice": functionals.psnr_slice,
    "ssim_uniform_7x7": with_range(functionals.ssim_uniform_7x7),
    "ssim_gaussian": with_range(functionals.ssim_gaussian),
}
VOLUME_METRICS = {
    "nmse_volume": functionals.nmse_volume,
    "psnr_volume": functionals.psnr_volume,
    "ssim_volume": functionals.ssim_volume,
}
METRICS = IMAGE_METRICS | VOLUME_METRICS


def pair(*shape: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    target = torch.rand(shape, generator=generator, dtype=torch.float64)
    return target + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64), target


def as_image_shape(name: str) -> tuple[int, ...]:
    return (3, 15, 14) if name in VOLUME_METRICS else (15, 14)


def every_metric(test: Callable) -> Callable:
    return pytest.mark.parametrize("name", METRICS)(test)


def test_every_public_function_is_tested_here():
    public = {name for name, f in vars(functionals).items() if inspect.isfunction(f) and not name.startswith("_")}
    assert public == {*METRICS, "blur", "total_variation_isotropic"}


@pytest.mark.parametrize("shape", SHAPES)
def test_pixelwise_errors_equal_their_formulas(shape, generator):
    estimate, target = pair(2, *shape, generator=generator)
    for e, t, *results in zip(
        estimate.numpy(),
        target.numpy(),
        functionals.mse(estimate, target),
        functionals.mean_absolute_error(estimate, target),
        functionals.bias(estimate, target),
        functionals.nrmse(estimate, target),
        strict=True,
    ):
        expected = [
            np.mean((e - t) ** 2),
            np.mean(np.abs(e - t)),
            np.mean(e) - np.mean(t),
            np.sqrt(np.sum((e - t) ** 2) / np.sum(t**2)),
        ]
        np.testing.assert_allclose([float(r) for r in results], expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_psnr_equals_scikit_image_for_given_slice_and_volume_range(shape, generator):
    estimate, target = pair(3, *shape, generator=generator)
    e, t = estimate.numpy(), target.numpy()
    given = [peak_signal_noise_ratio(t[i], e[i], data_range=0.7) for i in range(3)]
    own = [peak_signal_noise_ratio(t[i], e[i], data_range=t[i].max()) for i in range(3)]
    np.testing.assert_allclose(functionals.psnr(estimate, target, 0.7), given, rtol=1e-10)
    np.testing.assert_allclose(functionals.psnr_slice(estimate, target), own, rtol=1e-10)
    volume = peak_signal_noise_ratio(t, e, data_range=t.max())
    np.testing.assert_allclose(functionals.psnr_volume(estimate, target), volume, rtol=1e-10)


def test_nmse_volume_is_the_squared_ratio_over_the_whole_volume(generator):
    estimate, target = pair(2, 3, 9, 8, generator=generator)
    e, t = estimate.numpy(), target.numpy()
    expected = [np.linalg.norm(t[i] - e[i]) ** 2 / np.linalg.norm(t[i]) ** 2 for i in range(2)]
    np.testing.assert_allclose(functionals.nmse_volume(estimate, target), expected, rtol=1e-10)


@pytest.mark.parametrize("shape", [*SHAPES, (7, 9)])
def test_ssim_uniform_equals_scikit_image(shape, generator):
    estimate, target = pair(2, *shape, generator=generator)
    expected = [
        structural_similarity(t, e, win_size=7, data_range=0.9)
        for t, e in zip(target.numpy(), estimate.numpy(), strict=True)
    ]
    np.testing.assert_allclose(functionals.ssim_uniform_7x7(estimate, target, 0.9), expected, rtol=1e-10)


@pytest.mark.parametrize("shape", [*SHAPES, (11, 12)])
def test_ssim_gaussian_equals_scikit_image(shape, generator):
    estimate, target = pair(2, *shape, generator=generator)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 0.9}
    expected = [structural_similarity(t, e, **options) for t, e in zip(target.numpy(), estimate.numpy(), strict=True)]
    np.testing.assert_allclose(functionals.ssim_gaussian(estimate, target, 0.9), expected, rtol=1e-10)


def test_ssim_volume_is_the_mean_over_slices_with_the_range_of_the_volume(generator):
    estimate, target = pair(2, 3, 14, 15, generator=generator)
    target[1] *= 5
    e, t = estimate.numpy(), target.numpy()
    expected = [
        np.mean([structural_similarity(t[i, s], e[i, s], win_size=7, data_range=t[i].max()) for s in range(3)])
        for i in range(2)
    ]
    np.testing.assert_allclose(functionals.ssim_volume(estimate, target), expected, rtol=1e-10)


@pytest.mark.parametrize("metric", ["ssim_uniform_7x7", "ssim_gaussian"])
def test_masked_ssim_averages_the_map_of_scikit_image(metric, generator):
    estimate, target = pair(18, 21, generator=generator)
    mask = torch.rand(18, 21, generator=generator) < 0.4
    options = {"win_size": 7} if metric == "ssim_uniform_7x7" else {
        "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False
    }  # fmt: skip
    radius = 3 if metric == "ssim_uniform_7x7" else 5
    _, map_ = structural_similarity(target.numpy(), estimate.numpy(), data_range=0.8, full=True, **options)
    inside = np.s_[radius:-radius, radius:-radius]
    expected = map_[inside][mask.numpy()[inside]].mean()
    np.testing.assert_allclose(IMAGE_METRICS[metric](estimate, target, mask), expected, rtol=1e-10)


def test_masked_ssim_volume_may_skip_whole_slices(generator):
    estimate, target = pair(3, 12, 13, generator=generator)
    mask = torch.ones(3, 1, 1)
    mask[1] = 0
    full = functionals.ssim_uniform_7x7(estimate, target, float(target.max()))
    expected = (full[0] + full[2]) / 2
    torch.testing.assert_close(functionals.ssim_volume(estimate, target, mask), expected, rtol=1e-12, atol=0)


def test_masked_pixelwise_metrics_see_only_the_masked_pixels(generator):
    estimate, target = pair(12, 13, generator=generator)
    mask = torch.rand(12, 13, generator=generator) < 0.5
    target[0, 0], mask[0, 0] = 3.0, False
    e, t = estimate[mask].numpy(), target[mask].numpy()
    spoiled = torch.where(mask, estimate, torch.nan)
    mean_square = np.mean((e - t) ** 2)
    expected = {
        "mse": mean_square,
        "mean_absolute_error": np.mean(np.abs(e - t)),
        "bias": np.mean(e - t),
        "nrmse": np.linalg.norm(e - t) / np.linalg.norm(t),
        "psnr": 10 * np.log10(0.8**2 / mean_square),
        "psnr_slice": 10 * np.log10(9 / mean_square),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(IMAGE_METRICS[name](spoiled, target, mask.double()), value, rtol=1e-10)
    volume = functionals.nmse_volume(spoiled[None], target[None], mask)
    np.testing.assert_allclose(volume, expected["nrmse"] ** 2, rtol=1e-10)
    np.testing.assert_allclose(functionals.psnr_volume(spoiled[None], target[None], mask), expected["psnr_slice"])


@pytest.mark.parametrize("shape", [*SHAPES, (11, 12)])
@pytest.mark.parametrize("h_size", [3, 11])
def test_blur_equals_scikit_image(shape, h_size, generator):
    _, images = pair(2, *shape, generator=generator)
    expected = [blur_effect(image, h_size=h_size) for image in images.numpy()]
    np.testing.assert_allclose(functionals.blur(images, h_size), expected, rtol=1e-10)


def test_blur_grows_with_blurring_and_ignores_the_unit(generator):
    _, image = pair(30, 31, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(image[None], 5, stride=1)[0]
    assert functionals.blur(smooth) > 1.5 * functionals.blur(image)
    torch.testing.assert_close(functionals.blur(1e-30 * image), functionals.blur(image), rtol=1e-10, atol=0)
    assert functionals.blur(torch.full((12, 12), 3.0)) == 1
    with pytest.raises(ValueError, match="h_size is 4"):
        functionals.blur(image, 4)
    with pytest.raises(ValueError, match="needs at least 11"):
        functionals.blur(image[:10])


def test_total_variation_equals_its_formula_for_real_and_complex(generator):
    _, real = pair(2, 7, 6, generator=generator)
    for x in (real, torch.complex(real, real.flip(-1).square())):
        y_difference = np.diff(x.numpy(), axis=-2, append=x.numpy()[..., -1:, :])
        x_difference = np.diff(x.numpy(), axis=-1, append=x.numpy()[..., -1:])
        expected = np.sqrt(np.abs(y_difference) ** 2 + np.abs(x_difference) ** 2).sum((-2, -1))
        np.testing.assert_allclose(functionals.total_variation_isotropic(x), expected, rtol=1e-10)
    flat = torch.ones(5, 6, dtype=torch.float64, requires_grad=True)
    functionals.total_variation_isotropic(flat).backward()
    assert flat.grad is not None
    assert (flat.grad == 0).all()


@every_metric
def test_samples_of_a_batch_do_not_meet(name, generator):
    estimate, target = pair(2, 3, *as_image_shape(name), generator=generator)
    scale = torch.rand(2, 3, *(1 for _ in as_image_shape(name)), generator=generator, dtype=torch.float64) + 0.5
    estimate, target = estimate * scale, target * scale
    together = METRICS[name](estimate, target)
    assert together.shape == (2, 3)
    alone = [METRICS[name](e, t) for e, t in zip(estimate.flatten(0, 1), target.flatten(0, 1), strict=True)]
    torch.testing.assert_close(together.flatten(), torch.stack(alone), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("metric", [functionals.psnr, functionals.ssim_uniform_7x7, functionals.ssim_gaussian])
def test_a_data_range_may_be_given_per_sample(metric, generator):
    estimate, target = pair(2, 12, 13, generator=generator)
    together = metric(estimate, target, torch.tensor([0.5, 2.0]))
    alone = torch.stack([metric(estimate[0], target[0], 0.5), metric(estimate[1], target[1], 2.0)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match=r"data_range has shape \(3,\)"):
        metric(estimate, target, torch.ones(3))


@every_metric
def test_gradients_are_those_of_finite_differences(name, generator):
    shape = (2, 9, 10) if name in VOLUME_METRICS else (14, 13)
    estimate, target = pair(*shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.8
    estimate.requires_grad_()
    assert torch.autograd.gradcheck(lambda e: METRICS[name](e, target), (estimate,), fast_mode=True)
    assert torch.autograd.gradcheck(lambda e: METRICS[name](e, target, mask), (estimate,), fast_mode=True)


def test_blur_and_total_variation_pass_gradcheck(generator):
    _, image = pair(12, 13, generator=generator)
    image.requires_grad_()
    assert torch.autograd.gradcheck(functionals.blur, (image,), fast_mode=True)
    assert torch.autograd.gradcheck(functionals.total_variation_isotropic, (image,), fast_mode=True)


@every_metric
def test_an_equal_estimate_has_no_error(name, generator):
    _, target = pair(*as_image_shape(name), generator=generator)
    best = {"psnr": torch.inf, "ssim": 1.0}.get(name.split("_")[0], 0.0)
    assert METRICS[name](target, target).item() == pytest.approx(best, abs=1e-12)


def test_ssim_of_constant_and_of_tiny_float32_images_is_finite(generator):
    estimate, target = pair(16, 17, generator=generator)
    flat = torch.full((16, 17), 0.3, dtype=torch.float64)
    assert functionals.ssim_uniform_7x7(flat, flat, 0.3).item() == pytest.approx(1)
    tiny = functionals.ssim_uniform_7x7(1e-20 * estimate.float(), 1e-20 * target.float(), 1e-20)
    assert tiny.item() == pytest.approx(functionals.ssim_uniform_7x7(estimate, target, 1.0).item(), rel=1e-5)


@every_metric
def test_wrong_types_and_shapes_are_refused(name, generator):
    estimate, target = pair(*as_image_shape(name), generator=generator)
    metric = METRICS[name]
    with pytest.raises(TypeError, match=r"estimate is torch.complex128; .*\.abs\(\)"):
        metric(torch.complex(estimate, estimate), target)
    with pytest.raises(TypeError, match=r"target is torch.int64; expected a real floating-point"):
        metric(estimate, target.long())
    with pytest.raises(TypeError, match="convert one of them"):
        metric(estimate.float(), target)
    with pytest.raises(ValueError, match="they must be the same"):
        metric(estimate[..., :-1], target)
    with pytest.raises(ValueError, match=r"estimate has shape \(14,\)"):
        metric(estimate.flatten()[:14], target)


@every_metric
def test_bad_masks_are_refused(name, generator):
    estimate, target = pair(2, *as_image_shape(name), generator=generator)
    metric = METRICS[name]
    empty = torch.ones_like(target)
    empty[1] = 0
    with pytest.raises(ValueError, match="mask is empty"):
        metric(estimate, target, empty)
    with pytest.raises(ValueError, match="other than 0 and 1"):
        metric(estimate, target, empty / 2)
    with pytest.raises(ValueError, match="must broadcast"):
        metric(estimate, target, torch.ones(13))
    if name.startswith("ssim"):
        border = torch.zeros_like(target)
        border[..., :2, :] = 1
        with pytest.raises(ValueError, match="pixels from the edge"):
            metric(estimate, target, border)


@pytest.mark.parametrize("name", ["ssim_uniform_7x7", "ssim_gaussian", "ssim_volume"])
def test_images_smaller_than_the_window_are_refused(name, generator):
    size = 10 if name == "ssim_gaussian" else 6
    estimate, target = pair(2, 20, size, generator=generator)
    with pytest.raises(ValueError, match=f"needs at least {size + 1}"):
        METRICS[name](estimate, target)


@pytest.mark.parametrize("name", ["nrmse", "psnr_slice", *VOLUME_METRICS])
def test_zero_targets_are_refused_where_the_result_is_relative_to_them(name, generator):
    estimate, target = pair(2, *as_image_shape(name), generator=generator)
    target[1] = 0
    with pytest.raises(ValueError, match=r"target is zero|must be positive"):
        METRICS[name](estimate, target)


@pytest.mark.parametrize("data_range", [0.0, -1.0, torch.nan])
@pytest.mark.parametrize("metric", [functionals.psnr, functionals.ssim_uniform_7x7, functionals.ssim_gaussian])
def test_a_data_range_that_is_not_positive_is_refused(metric, data_range, generator):
    estimate, target = pair(12, 13, generator=generator)
    with pytest.raises(ValueError, match=r"data_range is .* must be positive"):
        metric(estimate, target, data_range)


def test_total_variation_refuses_integers_and_vectors():
    with pytest.raises(TypeError, match=r"x is torch\.int64"):
        functionals.total_variation_isotropic(torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected \(\*batch, y, x\)"):
        functionals.total_variation_isotropic(torch.ones(3, dtype=torch.complex64))
