"""The built-in phantom: one fixed head at every resolution, not symmetric, rich in scales; phase and coils smooth."""

import pytest
import torch

from mrirecon.phantom import brain_phantom, coil_sensitivities, head_mask, smooth_phase

SMALL = (64, 60)


def halved(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(x[None], 2)[0]


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


@pytest.mark.parametrize("contrast", ["t1", "t2", "flair"])
@pytest.mark.parametrize("shape", [SMALL, (3, 33, 40), (7, 7), (1, 1, 1)])
def test_the_phantom_is_a_finite_complex_image_of_the_asked_shape(shape, contrast):
    image = brain_phantom(shape, contrast=contrast)
    assert image.shape == shape
    assert image.dtype == torch.complex64
    assert image.abs().isfinite().all()
    assert image.abs().max() < 1.5


def test_the_same_arguments_give_the_same_image_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    assert torch.equal(brain_phantom(SMALL), brain_phantom(SMALL))
    assert torch.equal(smooth_phase(SMALL), smooth_phase(SMALL))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(256, 256), (2, 192, 160)])
def test_two_resolutions_show_the_same_head(shape):
    coarse_shape = (*shape[:-2], shape[-2] // 2, shape[-1] // 2)
    fine, coarse = brain_phantom(shape).abs(), brain_phantom(coarse_shape).abs()
    assert relative_difference(halved(fine), coarse) < 0.02
    assert relative_difference(halved(smooth_phase(shape)), smooth_phase(coarse_shape)) < 0.01
    # At the edge a pixel belongs to both.
    fine_mask, coarse_mask = halved(head_mask(shape).float()), head_mask(coarse_shape).float()
    assert (fine_mask - coarse_mask).abs().mean() < 0.02


def test_contrasts_order_the_tissues_as_they_should():
    t1, t2, flair = (brain_phantom((128, 128), contrast=c).abs() for c in ("t1", "t2", "flair"))
    head = head_mask((128, 128))
    fluid = t2 > 0.9
    assert fluid.sum() > 100
    white = (t1 > 0.62) & (t2 < 0.45) & head
    assert white.sum() > 1000
    assert t1[fluid].median() < 0.5 * t1[white].median()
    assert flair[fluid].median() < 0.5 * flair[white].median()
    assert t2[fluid].median() > 2 * t2[white].median()
    with pytest.raises(ValueError, match="contrast is 'pd'"):
        brain_phantom(SMALL, contrast="pd")


def test_flips_and_turns_are_noticed():
    image = brain_phantom((64, 64)).abs()
    for dims in ((0,), (1,), (0, 1)):
        assert relative_difference(image.flip(dims), image) > 0.2
    assert relative_difference(image.T, image) > 0.2


def test_the_large_lesion_is_in_the_right_half_of_the_picture():
    flair = brain_phantom((128, 128), contrast="flair").abs()
    bright = torch.nn.functional.avg_pool2d(flair[None], 5, 1, 2)[0] > 0.75
    assert bright[:, 64:].sum() > 15
    assert bright[:, :64].sum() == 0


def test_slices_and_seeds_differ_but_belong_together():
    stack = brain_phantom((5, 64, 64)).abs()
    steps = [relative_difference(stack[k + 1], stack[k]) for k in range(4)]
    assert min(steps) > 0.1
    close = brain_phantom((100, 32, 32)).abs()
    assert relative_difference(close[1], close[0]) < 0.5 * min(steps)
    assert relative_difference(brain_phantom((64, 64), seed=1).abs(), brain_phantom((64, 64)).abs()) > 0.1


def test_there_is_energy_at_every_scale():
    image = brain_phantom((256, 256)).abs()
    spectrum = torch.fft.fft2(image, norm="ortho").abs().square()
    f = torch.fft.fftfreq(256) * 256
    radius = torch.hypot(f[:, None], f[None])
    total = spectrum[radius >= 1].sum()
    shares = [float(spectrum[(radius >= low) & (radius < 2 * low)].sum() / total) for low in (1, 2, 4, 8, 16, 32, 64)]
    assert min(shares) > 3e-3


def test_pixels_are_square_and_the_head_fills_the_field_of_view():
    for shape in ((96, 96), (96, 72), (120, 96)):
        rows, columns = head_mask(shape).nonzero().T
        height, width = (int(i.max() - i.min() + 1) for i in (rows, columns))
        assert height <= shape[0] - 2
        assert width <= shape[1] - 2
        assert 1.15 < height / width < 1.4
        assert max(height / shape[0], width / shape[1]) > 0.8


def test_the_mask_holds_the_head_and_nothing_else():
    image, mask = brain_phantom((4, 80, 80)).abs(), head_mask((4, 80, 80))
    assert mask.dtype == torch.bool
    assert (image[~mask] > 0.3).sum() == 0
    assert (image * mask).square().sum() / image.square().sum() > 0.98
    assert 0.2 < mask.float().mean() < 0.6


@pytest.mark.parametrize("shape", [(64, 48), (8, 40, 40)])
def test_the_phase_is_smooth_and_as_large_as_asked(shape):
    phase = smooth_phase(shape, seed=3, amplitude_rad=2.0)
    assert phase.shape == shape
    assert phase.abs().max() == pytest.approx(2.0, rel=0.15)
    assert phase.std() > 0.2
    for dim in range(len(shape)):
        assert phase.diff(dim=dim).abs().max() * shape[dim] < 12 * 2.0
    for dim in (-2, -1):
        assert phase.diff(n=2, dim=dim).abs().max() < 0.2


def test_the_image_carries_its_phase_only_where_asked():
    image = brain_phantom(SMALL, seed=2)
    plain = brain_phantom(SMALL, seed=2, smooth_phase=False)
    assert (plain.imag == 0).all()
    assert (plain.real >= 0).all()
    torch.testing.assert_close(image, plain * torch.exp(1j * smooth_phase(SMALL, seed=2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_coils", [1, 2, 8])
@pytest.mark.parametrize("shape", [(32, 28), (4, 24, 25)])
def test_coil_maps_are_normalised_smooth_and_distinct(n_coils, shape):
    csm = coil_sensitivities(n_coils, shape)
    assert csm.dtype == torch.complex64
    assert csm.shape == (n_coils, *shape)
    torch.testing.assert_close(csm.abs().square().sum(dim=0), torch.ones(shape))
    for dim in (-2, -1):
        assert csm.diff(dim=dim).abs().max() < 0.35
    correlations = torch.einsum("a...,b...->ab", csm.conj(), csm).abs() / csm[0].numel()
    energies = correlations.diagonal()
    closeness = correlations / torch.sqrt(energies[:, None] * energies) - torch.eye(n_coils)
    assert closeness.max() < 0.95


def test_every_coil_sees_its_own_side_best():
    csm = coil_sensitivities(4, (33, 33)).abs()
    brightest = [divmod(int(coil.argmax()), 33) for coil in csm]
    assert len(set(brightest)) == 4
    for row, column in brightest:
        assert max(abs(row - 16), abs(column - 16)) == 16


@pytest.mark.parametrize("shape", [(8,), (0, 8), (1, 2, 3, 4), ()])
def test_impossible_shapes_are_refused(shape):
    for make in (brain_phantom, head_mask, smooth_phase, lambda s: coil_sensitivities(2, s)):
        with pytest.raises(ValueError, match="expected \\(y, x\\) or \\(z, y, x\\)"):
            make(shape)
    with pytest.raises(ValueError, match="n_coils is 0"):
        coil_sensitivities(0, SMALL)
