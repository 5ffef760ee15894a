"""What the contracts cannot say of networks and of total variation with maps."""

import pytest
import torch

from operators.elementary import FiniteDifference
from operators.fourier import Fourier
from operators.priors.denoiser import ConvolutionalDenoiser
from operators.priors.networks import ImageUNet
from operators.priors.tv_maps import TotalVariationMaps
from operators.priors.unet import UNet
from operators.proximal import project_dual_ball
from operators.solvers import pdhg
from tests.cases_learned import IMAGING_CASES

NOISE = 0.1


def seeded(make, *arguments, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(*arguments, **options).double()


def test_exchanging_filters_may_come_in_any_order_and_images_do_not_mix(generator):
    network = seeded(UNet, 3, 2, base=4, n_stages=3, exchange=True)
    x = torch.randn(2, 5, 3, 9, 7, dtype=torch.float64, generator=generator)
    result = network(x.flatten(0, 1), 5).unflatten(0, (2, 5))
    order = torch.randperm(5, generator=generator)
    torch.testing.assert_close(network(x[:, order].flatten(0, 1), 5).unflatten(0, (2, 5)), result[:, order])
    torch.testing.assert_close(network(x[1], 5), result[1])
    changed = x.clone()
    changed[0, 0] += 1
    difference = network(changed.flatten(0, 1), 5).unflatten(0, (2, 5)) - result
    assert difference[0, 1:].any()
    assert not difference[1].any()


def test_without_exchange_images_do_not_know_of_each_other(generator):
    network = seeded(UNet, 3, 2, base=4)
    x = torch.randn(4, 3, 8, 6, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(network(x)[2:3], network(x[2:3]))


def test_a_network_tells_how_many_channels_it_takes():
    with pytest.raises(ValueError, match="built for 2 channels and got 1"):
        UNet(2, 1, base=2)(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="base 0"):
        UNet(2, 1, base=0)


def test_statistics_of_training_are_kept_for_evaluation(generator):
    prior = seeded(ConvolutionalDenoiser, n_layers=3, width=4)
    x = 5 + torch.randn(4, 8, 8, dtype=torch.complex128, generator=generator)
    noise = torch.zeros(4, dtype=torch.float64)
    before = prior.eval()(x, noise)[0]
    prior.train()(x, noise)
    after = prior.eval()(x, noise)[0]
    assert not torch.allclose(before, after)
    torch.testing.assert_close(prior(x[:1], noise[:1])[0], after[:1])


def test_a_network_in_image_space_adds_to_the_adjoint(generator):
    A = IMAGING_CASES["coils"]()
    y = A(A.domain.randn(generator=generator, dtype=torch.float64))
    model = seeded(ImageUNet, base=2, n_stages=2)
    for p in model.denoiser.network.head.parameters():
        torch.nn.init.zeros_(p)
    torch.testing.assert_close(model(y, A, NOISE), A.adjoint(y))


@pytest.mark.parametrize("imaging", ["one_coil", "coils", "radial", "tomography"])
def test_total_variation_with_maps_is_a_minimiser(imaging, generator):
    """Optimal: Aᴴ(A x − y) = −Gᴴ p with ‖p_r‖ ≤ Λ_r, and p_r along (G x)_r where that is not zero."""
    A = IMAGING_CASES[imaging]()
    model = seeded(TotalVariationMaps, n_channels=2 if A.domain.field == "complex" else 1, base=2, n_iterations=800)
    image = A.domain.randn(generator=generator, dtype=torch.float64)
    y = A(image / 10 + 1)
    x0 = A.adjoint(y)
    scale = x0.abs().square().mean().sqrt()
    with torch.no_grad():
        x = model(y, A, NOISE) / scale
        maps = model.maps(x0 / scale)
    G = FiniteDifference(A.domain)
    slope = A.gram(x) - x0 / scale

    def project(p, step):
        return project_dual_ball(p, maps, dim=-3)

    def objective(z):
        data = (A(z) - y / scale).abs().square().sum() / 2
        return data + (maps * G(z).abs().square().sum(dim=-3).sqrt()).sum()

    best = float(objective(x))
    for _ in range(20):
        direction = A.domain.randn(generator=generator, dtype=torch.float64)
        for length in (1e-1, 1e-3):
            assert float(objective(x + length * direction)) > best
    # The dual variable: the point of the balls whose Gᴴ p is nearest to −slope gets there.
    dual = pdhg(
        G,
        project,
        lambda v, step: v,
        x0=torch.zeros_like(x),
        gradient=lambda z: z - (x - slope),
        lipschitz=1.0,
        n_iterations=800,
    ).value
    torch.testing.assert_close(dual, x, rtol=0, atol=1e-3)


def test_gradients_to_the_map_network_are_those_of_finite_differences(generator):
    A = IMAGING_CASES["coils"]()
    model = seeded(TotalVariationMaps, base=2, n_stages=2, n_iterations=6)
    y = A(A.domain.randn(generator=generator, dtype=torch.float64))
    names = ["network.head.bias", "network.down.0.0.bias", "network.head.weight"]
    parameters = dict(model.named_parameters())

    def image(*values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (y, A, NOISE))

    torch.autograd.gradcheck(image, tuple(parameters[name] for name in names), atol=1e-6)


def test_slices_of_a_volume_have_maps_of_their_own(generator):
    stack, single = Fourier((3, 6, 7)), Fourier((6, 7))
    model = seeded(TotalVariationMaps, base=2, n_iterations=5)
    volume = stack.domain.randn(2, generator=generator, dtype=torch.float64)
    volume = volume / volume.abs().square().mean(dim=(-2, -1), keepdim=True).sqrt()  # so that each has the same scale
    images = model(stack(volume), stack, NOISE)
    torch.testing.assert_close(images, model(single(volume), single, NOISE))


def test_total_variation_needs_a_step():
    with pytest.raises(ValueError, match="n_iterations is 0"):
        TotalVariationMaps(n_iterations=0)
