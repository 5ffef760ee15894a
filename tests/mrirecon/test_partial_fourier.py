import pytest
import torch

from mrirecon.partial_fourier import homodyne, is_partial_fourier, pocs
from mrirecon.phantom import brain_phantom
from operators.fourier import Fourier

SHAPE = (96, 75)
METHODS = [pocs, homodyne]


def side_mask(n: int, fraction: float, *, side: str) -> torch.Tensor:
    mask = torch.zeros(n)
    n_kept = round(n * fraction)
    if side == "first":
        mask[:n_kept] = 1
    else:
        mask[n - n_kept :] = 1
    return mask


def error(estimate: torch.Tensor, target: torch.Tensor) -> float:
    return float((estimate - target).norm() / target.norm())


@pytest.mark.parametrize("side", ["first", "last"])
@pytest.mark.parametrize("fraction", [0.55, 0.625, 0.75, 0.875])
@pytest.mark.parametrize("n", [96, 75])
def test_fraction_is_found(n: int, fraction: float, side: str) -> None:
    found = is_partial_fourier(side_mask(n, fraction, side=side)[:, None].expand(2, 1, n, 40))
    assert found is not None
    assert found[0] == -2
    assert found[1] == pytest.approx(fraction, abs=1.5 / n)


def test_partial_readout_and_partitions_are_found() -> None:
    assert is_partial_fourier(side_mask(64, 0.75, side="last")) == (-1, 0.75)
    assert is_partial_fourier(side_mask(64, 0.75, side="last")[:, None, None].expand(64, 8, 9), n_dims=3) == (-3, 0.75)


def test_zero_filled_margins_count_towards_neither_side() -> None:
    mask = torch.zeros(96, 1)
    mask[16:60] = 1  # 32 lines in front of the centre line 48, 11 behind it
    assert is_partial_fourier(mask) == (-2, 44 / 64)


def test_complete_and_symmetric_sampling_is_not_partial(generator: torch.Generator) -> None:
    box, ellipse = torch.zeros(SHAPE), torch.zeros(SHAPE)
    box[24:72, 20:56] = 1
    y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 75), indexing="ij")
    ellipse[y.square() + x.square() < 0.9] = 1
    scattered = (torch.rand(SHAPE, generator=generator) < 0.3).float()
    for mask in (torch.ones(SHAPE), torch.ones(1, 1), box, ellipse, scattered, torch.zeros(SHAPE)):
        assert is_partial_fourier(mask) is None


@pytest.mark.parametrize("step", [2, 3, 4, 6])
@pytest.mark.parametrize("start", [0, 1])
def test_regular_undersampling_is_not_partial(step: int, start: int) -> None:
    mask = torch.zeros(96, 1)
    mask[start::step] = 1
    mask[38:58] = 1
    assert is_partial_fourier(mask) is None


def test_undersampled_partial_fourier_is_partial() -> None:
    mask = torch.zeros(96, 1)
    mask[::3] = 1
    mask[38:58] = 1
    mask[60:] = 0
    found = is_partial_fourier(mask)
    assert found is not None
    assert found[0] == -2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dim", [-2, -1])
@pytest.mark.parametrize("side", ["first", "last"])
@pytest.mark.parametrize("fraction", [0.6, 0.75])
def test_beats_zero_filling_on_an_image_with_smooth_phase(method: object, dim: int, side: str, fraction: float) -> None:
    image = brain_phantom(SHAPE).to(torch.complex128)
    mask = side_mask(SHAPE[dim], fraction, side=side)
    mask = mask[:, None] if dim == -2 else mask
    transform = Fourier(SHAPE)
    zero_filled = transform.adjoint(mask * transform(image))
    estimate = method(mask * transform(image), mask)  # type: ignore[operator]
    assert error(estimate, image) < 0.35 * error(zero_filled, image)
    assert error(estimate.abs(), image.abs()) < 0.35 * error(zero_filled.abs(), image.abs())


def test_pocs_agrees_with_the_measured_samples_and_improves_with_iterations() -> None:
    image = brain_phantom(SHAPE).to(torch.complex128)
    mask, transform = side_mask(96, 0.625, side="first")[:, None], Fourier(SHAPE)
    data = mask * transform(image)
    torch.testing.assert_close(mask * transform(pocs(data, mask)), data)
    errors = [error(pocs(data, mask, n_iterations=n), image) for n in (0, 1, 4, 16)]
    assert errors == sorted(errors, reverse=True)


def test_homodyne_restores_a_real_image_exactly() -> None:
    """With a phase known to be zero, the weights 0–1–2 add up with their mirror image to a constant."""
    image = torch.zeros(64, 64, dtype=torch.complex128)
    image[32, 32] = 1.0  # its low-resolution image is real but for rounding, and its spectrum is flat
    mask, transform = side_mask(64, 0.625, side="last")[:, None], Fourier((64, 64))
    estimate = homodyne(mask * transform(image), mask)
    # Line 0 of an even grid has no counterpart: it is missing here, which costs one part in 64.
    assert estimate[32, 32].abs().item() == pytest.approx(1, abs=1 / 64 + 1e-9)
    assert error(estimate, image) < 0.15


@pytest.mark.parametrize("method", METHODS)
def test_complete_kspace_gives_the_plain_inverse(method: object, generator: torch.Generator) -> None:
    data = torch.randn(2, 3, *SHAPE, dtype=torch.complex128, generator=generator)
    for mask in (torch.ones(SHAPE), torch.ones(1, 1)):
        estimate = method(data, mask)  # type: ignore[operator]
        torch.testing.assert_close(estimate, Fourier(SHAPE).adjoint(data))


@pytest.mark.parametrize("method", METHODS)
def test_samples_of_a_batch_do_not_influence_each_other(method: object, generator: torch.Generator) -> None:
    mask = side_mask(96, 0.625, side="last")[:, None]
    data = mask * torch.randn(2, 3, *SHAPE, dtype=torch.complex128, generator=generator)
    together = method(data, mask)  # type: ignore[operator]
    torch.testing.assert_close(together[1, 2], method(data[1, 2], mask))  # type: ignore[operator]


@pytest.mark.parametrize("method", METHODS)
def test_volume_and_single_precision(method: object) -> None:
    image = brain_phantom((6, 32, 30))
    mask, transform = side_mask(32, 0.7, side="first")[:, None], Fourier((6, 32, 30), 3)
    data = mask * transform(image)
    estimate = method(data, mask, n_dims=3)  # type: ignore[operator]
    assert estimate.dtype == torch.complex64
    assert error(estimate, image) < error(transform.adjoint(data), image)


@pytest.mark.parametrize("method", METHODS)
def test_wrong_input_is_refused(method: object) -> None:
    with pytest.raises(TypeError, match="expected a complex tensor"):
        method(torch.ones(8, 8), torch.ones(8, 8))  # type: ignore[operator]
    with pytest.raises(ValueError, match="does not broadcast"):
        method(torch.ones(8, 8, dtype=torch.complex64), torch.ones(8, 7))  # type: ignore[operator]
