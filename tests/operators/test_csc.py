"""Convolutional sparse coding against its own optimality condition, a dense solve, and what is promised of it."""

import pytest
import torch

from operators.dictionary import CartesianDictionary, ConvolutionalDictionary
from operators.elementary import FiniteDifference, Mask
from operators.filters import dct_filters, random_filters
from operators.fourier import Fourier
from operators.linear_operator import LinearOperator
from operators.priors.csc import ConvolutionalSparseCoding, published
from operators.priors.sparsity import (
    Estimate,
    ExchangingMaps,
    FilterMaps,
    ImageMaps,
    Maps,
    ScalarMaps,
    SparsityMaps,
    band_powers,
    filter_norms,
)
from operators.sensitivity import Sensitivity
from operators.space import Space
from tests.cases_learned import IMAGING_CASES, point_mask

NOISE = 0.6


class GivenMaps(SparsityMaps):
    """Λ as it is given, ``(*batch, filter, y, x)`` and ``(*batch, y, x)``."""

    def __init__(self, maps: torch.Tensor, low_pass: torch.Tensor | None = None) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(maps)
        self.low_pass = low_pass

    def forward(self, known: Estimate, dictionary: ConvolutionalDictionary) -> Maps:
        return Maps(self.values.expand(*known.image.shape[:-2], *dictionary.domain.shape), self.low_pass)


def seeded(maps: type[SparsityMaps], *arguments: int, **options: int) -> SparsityMaps:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return maps(*arguments, **options)


def cartesian(shape: tuple[int, int] = (20, 17), dtype: torch.dtype = torch.float64) -> LinearOperator:
    return Mask(point_mask(*shape).to(dtype), Fourier(shape).codomain) @ Fourier(shape)


def scan_of(A: LinearOperator, *batch: int, generator: torch.Generator) -> torch.Tensor:
    image = A.domain.randn(*batch, generator=generator, dtype=torch.float64)
    return A(image * image.abs().square())


def relative(difference: torch.Tensor, reference: torch.Tensor) -> float:
    return float(difference.detach().abs().max() / reference.detach().abs().max())


def gradients(model: ConvolutionalSparseCoding, y: torch.Tensor, A: LinearOperator) -> torch.Tensor:
    model.zero_grad()
    torch.view_as_real(model(y, A, NOISE)).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_the_published_method_has_the_published_size():
    model = published(dct_filters(4, 5))
    assert sum(p.numel() for p in model.parameters()) == 111_489 + 1
    assert (model.n_iterations, model.n_stages, model.shrinkage) == (64, 1, "parts")
    assert float(model.log_smoothness.detach().exp()) == pytest.approx(20)
    assert sum(p.numel() for p in ImageMaps(32).parameters()) == pytest.approx(8.27e6, rel=1e-3)


@pytest.mark.parametrize("n_dims", [2, 3])
def test_the_image_is_its_parts(n_dims, generator):
    A = IMAGING_CASES["coils" if n_dims == 2 else "volume"]()
    model = ConvolutionalSparseCoding(random_filters(4, 3, seed=0).double(), ScalarMaps(1.0)).double()
    y = scan_of(A, 2, generator=generator)
    with torch.no_grad():
        parts = model.explain(y, A, NOISE)
        torch.testing.assert_close(parts.low_pass + parts.contributions.sum(dim=-3), parts.image)
        torch.testing.assert_close(model(y, A, NOISE), parts.image)
    shape = (*A.domain.shape[:-2], 4, *A.domain.shape[-2:])
    assert parts.codes.shape == parts.maps.shape == parts.contributions.shape == (2, *shape)
    assert 0 < int((parts.codes == 0).sum()) < parts.codes.numel()


def test_the_smooth_part_solves_its_equation(generator):
    A = cartesian((5, 6))
    model = ConvolutionalSparseCoding(dct_filters(2, 3), ScalarMaps(), smoothness=3.0).double()
    y = scan_of(A, generator=generator)
    low_pass = model.explain(y, A, NOISE).low_pass
    G = FiniteDifference(A.domain, boundary="circular")
    x0 = A.adjoint(y)
    torch.testing.assert_close(low_pass + 3 * G.gram(low_pass), x0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shrinkage", ["magnitude", "parts"])
@pytest.mark.parametrize("imaging", ["one_coil", "coils", "radial", "tomography"])
def test_many_steps_lead_to_the_minimiser(imaging, shrinkage, generator):
    A = IMAGING_CASES[imaging]()
    filters = random_filters(3, 3, seed=1).double()
    model = ConvolutionalSparseCoding(
        filters, ScalarMaps(2.0), n_iterations=700, n_stages=1, shrinkage=shrinkage
    ).double()
    y = scan_of(A, generator=generator)
    with torch.no_grad():
        parts = model.explain(y, A, NOISE)
    D = ConvolutionalDictionary(filters, A.domain.shape, field=A.domain.field)
    slope = D.adjoint(A.adjoint(A(D(parts.codes)) - (y - A(parts.low_pass))))
    torch.testing.assert_close(parts.maps, 2 * NOISE * filter_norms(D).expand_as(parts.maps), rtol=1e-6, atol=0)
    pairs = [(slope, parts.codes)]
    if shrinkage == "parts" and slope.is_complex():
        pairs = [(slope.real, parts.codes.real), (slope.imag, parts.codes.imag)]
    for s, code in pairs:
        active = code != 0
        assert active.any()
        assert not active.all()
        expected = -parts.maps[active] * code[active] / code[active].abs()
        assert float((s[active] - expected).abs().max()) < 1e-5 * float(parts.maps.max())
        assert float((s.abs() - parts.maps)[~active].max()) < 1e-5 * float(parts.maps.max())


def test_steps_after_training_may_be_more_than_in_it(generator):
    A = cartesian((9, 8))
    y = scan_of(A, generator=generator)
    few, many, both = (
        ConvolutionalSparseCoding(dct_filters(4, 5), ScalarMaps(2.0), n_stages=1, **steps).double()
        for steps in ({"n_iterations": 3}, {"n_iterations": 20}, {"n_iterations": 3, "n_test_iterations": 20})
    )
    with torch.no_grad():
        assert torch.equal(both.train()(y, A, NOISE), few.eval()(y, A, NOISE))
        assert torch.equal(both.eval()(y, A, NOISE), many(y, A, NOISE))
        assert torch.equal(both.with_filters(both.filters)(y, A, NOISE), many(y, A, NOISE))
    assert not torch.equal(few(y, A, NOISE), many(y, A, NOISE))
    with pytest.raises(ValueError, match="1 after it for 2 stages"):
        ConvolutionalSparseCoding(dct_filters(4, 5), ScalarMaps(2.0), n_stages=2, n_test_iterations=1)


@pytest.mark.parametrize("n_iterations", [16, 256])
def test_more_steps_come_closer_to_the_minimiser(n_iterations, generator):
    A = cartesian((9, 8))
    y = scan_of(A, generator=generator)

    def image(n: int) -> torch.Tensor:
        model = ConvolutionalSparseCoding(dct_filters(4, 5), ScalarMaps(2.0), n_iterations=n, n_stages=1).double()
        with torch.no_grad():
            return model(y, A, NOISE)

    minimiser = image(1000)
    bound = {16: 0.4, 256: 2e-3}[n_iterations]
    assert relative(image(n_iterations) - minimiser, minimiser) < bound
    assert relative(image(2 * n_iterations) - minimiser, minimiser) < 0.7 * relative(
        image(n_iterations) - minimiser, minimiser
    )


def test_few_filters_that_make_up_an_image_are_found(generator):
    A = Fourier((32, 32))
    filters = random_filters(4, 7, seed=3).double()
    D = ConvolutionalDictionary(filters, A.domain.shape)
    codes = torch.zeros(4, 32, 32, dtype=torch.complex128)
    for k, (y, x) in enumerate(((4, 20), (13, 5), (22, 25), (27, 12))):
        codes[k, y, x] = 5 * torch.exp(torch.tensor(1j * (k + 1)))
    model = ConvolutionalSparseCoding(
        filters, GivenMaps(torch.full((), 0.05)), n_iterations=600, n_stages=1, smoothness=1e6
    ).double()
    with torch.no_grad():
        found = model.explain(A(D(codes)), A, NOISE)
    assert torch.equal(found.codes.abs() > 1, codes != 0)
    strongest = codes != 0
    assert relative(found.codes[strongest] - codes[strongest], codes) < 0.02
    assert relative(found.image - D(codes), D(codes)) < 0.03


@pytest.mark.parametrize("maps", [FilterMaps, ExchangingMaps])
@pytest.mark.parametrize("imaging", ["one_coil", "coils"])
def test_the_order_of_the_filters_is_no_matter(maps, imaging, generator):
    A = IMAGING_CASES[imaging]().to_precision(torch.float32)
    filters = random_filters(8, 5, seed=0)
    model = ConvolutionalSparseCoding(filters, seeded(maps, base=8))
    order = torch.randperm(8, generator=generator)
    y = scan_of(A, 3, generator=generator).to(torch.complex64)
    with torch.no_grad():
        ordered, permuted = (m.explain(y, A, NOISE) for m in (model, model.with_filters(filters[order])))
    assert relative(permuted.image - ordered.image, ordered.image) < 1e-5
    assert relative(permuted.maps - ordered.maps[:, order], ordered.maps) < 1e-4
    assert relative(ordered.maps - ordered.maps[:, order], ordered.maps) > 1e-3


def test_maps_of_the_image_alone_know_their_filters_by_place(generator):
    A = cartesian()
    filters = random_filters(8, 5, seed=0)
    model = ConvolutionalSparseCoding(filters, seeded(ImageMaps, 8, base=8)).double()
    y = scan_of(A, generator=generator)
    with torch.no_grad():
        image, permuted = (m(y, A, NOISE) for m in (model, model.with_filters(filters.flip(0))))
    assert relative(permuted - image, image) > 1e-3
    with pytest.raises(ValueError, match="has 5 filters, but these maps were made for 8"):
        model.with_filters(filters[:5])(y, A, NOISE)


@pytest.mark.parametrize("maps", [FilterMaps, ExchangingMaps, ScalarMaps])
def test_another_dictionary_takes_its_place(maps, generator):
    A = cartesian()
    model = ConvolutionalSparseCoding(dct_filters(4, 5), seeded(maps)).double().eval()
    other = model.with_filters(random_filters(7, 9, seed=2))
    y = scan_of(A, 2, generator=generator)
    with torch.no_grad():
        assert other.explain(y, A, NOISE).codes.shape == (2, 7, *A.domain.shape)
    assert {id(p) for p in other.parameters()} == {id(p) for p in model.parameters()}
    assert not other.training
    back = other.with_filters(model.filters)
    with torch.no_grad():
        torch.testing.assert_close(back(y, A, NOISE), model(y, A, NOISE), rtol=0, atol=0)


@pytest.mark.parametrize(("n_iterations", "n_stages"), [(1, 1), (2, 1), (7, 1), (16, 1), (3, 3), (16, 3)])
def test_repeated_steps_give_the_gradient_of_the_kept_ones(n_iterations, n_stages, generator):
    A = cartesian((9, 8))
    y = scan_of(A, 2, generator=generator)
    options = {"n_iterations": n_iterations, "n_stages": n_stages}
    maps = seeded(ExchangingMaps, base=4, context_base=4)
    kept, repeated = (
        gradients(ConvolutionalSparseCoding(dct_filters(4, 5), maps, gradient=g, **options).double(), y, A)
        for g in ("iterations", "checkpointed")
    )
    assert relative(repeated - kept, kept) < 1e-6
    assert kept.any()


@pytest.mark.parametrize("shrinkage", ["magnitude", "parts"])
@pytest.mark.parametrize("n_stages", [1, 2])
def test_the_gradient_of_the_minimiser_is_that_of_many_steps(n_stages, shrinkage, generator):
    A = Fourier((7, 6))
    y = scan_of(A, 2, generator=generator)
    filters = random_filters(2, 3, seed=4)
    maps = seeded(ExchangingMaps, base=4, context_base=4)
    torch.nn.init.constant_(maps.network.head.bias, 1.0)  # high thresholds: few codes, and few steps until they settle
    models = [
        ConvolutionalSparseCoding(
            filters,
            maps,
            n_iterations=300 * n_stages,
            n_stages=n_stages,
            gradient=g,
            shrinkage=shrinkage,
        ).double()
        for g in ("iterations", "fixed-point")
    ]
    kept, implicit = (gradients(model, y, A) for model in models)
    assert relative(implicit - kept, kept) < 1e-3
    torch.testing.assert_close(models[1](y, A, NOISE), models[0](y, A, NOISE), rtol=0, atol=0)


def test_the_gradient_of_the_minimiser_is_no_second_derivative(generator):
    A = cartesian((6, 6))
    model = ConvolutionalSparseCoding(dct_filters(2, 3), ScalarMaps(0.1), gradient="fixed-point").double()
    image = model(scan_of(A, generator=generator), A, NOISE)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(image.abs().sum(), list(model.parameters()), create_graph=True)


def test_gradients_are_those_of_finite_differences(generator):
    A = cartesian((4, 5))
    y = scan_of(A, generator=generator)
    filters = random_filters(2, 3, seed=0)

    def image(maps: torch.Tensor, log_smoothness: torch.Tensor) -> torch.Tensor:
        model = ConvolutionalSparseCoding(filters, GivenMaps(maps.detach()), n_iterations=6, n_stages=1).double()
        return torch.func.functional_call(model, {"maps.values": maps, "log_smoothness": log_smoothness}, (y, A, NOISE))

    maps = (0.1 + 0.2 * torch.rand(2, 4, 5, dtype=torch.float64, generator=generator)).requires_grad_()
    torch.autograd.gradcheck(image, (maps, torch.tensor(0.3, dtype=torch.float64, requires_grad=True)))


def test_one_cartesian_coil_stays_in_fourier_space(generator, monkeypatch):
    shape = (12, 10)
    csm = torch.ones(1, *shape, dtype=torch.complex128)
    A = Mask(point_mask(*shape), Space((1, *shape))) @ Fourier((1, *shape)) @ Sensitivity(csm)
    model = ConvolutionalSparseCoding(dct_filters(3, 5), ScalarMaps(1.0)).double()
    y = scan_of(A, generator=generator)
    calls = []
    gram = CartesianDictionary._gram
    monkeypatch.setattr(CartesianDictionary, "_gram", lambda self, x: (calls.append(1), gram(self, x))[1])
    with torch.no_grad():
        image = model(y, A, NOISE)
        assert len(calls) == 30
        monkeypatch.setattr(ConvolutionalDictionary, "_fuse_under", lambda self, outer: None)
        torch.testing.assert_close(model(y, A, NOISE), image)
        assert len(calls) == 30


def test_an_operator_of_other_precision_does_not_change_that_of_the_image(generator):
    masks = torch.stack([point_mask(8, 9), point_mask(8, 9).flip(0)])
    A = Mask(masks, Fourier((8, 9)).codomain) @ Fourier((8, 9))
    model = ConvolutionalSparseCoding(dct_filters(3, 3), seeded(ExchangingMaps, base=4, context_base=4))
    assert model(scan_of(A, 3, 2, generator=generator).to(torch.complex64), A, NOISE).dtype == torch.complex64


def test_thresholds_follow_the_noise_and_the_filters(generator):
    A = cartesian()
    x = A.domain.randn(generator=generator, dtype=torch.float64)
    D = ConvolutionalDictionary(dct_filters(3, 5).double() * torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1), (20, 17))
    noise = torch.tensor(0.2, dtype=torch.float64)
    maps, low_pass = ScalarMaps(1.5).double()(Estimate(x, x, noise, noise), D)
    assert low_pass is None
    expected = 0.3 * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).reshape(3, 1, 1).expand(maps.shape)
    torch.testing.assert_close(maps, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("maps", [ExchangingMaps])
def test_twice_the_noise_is_twice_the_threshold_of_the_same_network(maps, generator):
    A = cartesian()
    x = A.domain.randn(2, generator=generator, dtype=torch.float64)
    D = ConvolutionalDictionary(dct_filters(3, 5).double(), (20, 17))
    network = seeded(maps, base=4, context_base=4).double()
    for module in (network.context, network.network):
        torch.nn.init.zeros_(module.head.weight)
    noise = torch.tensor([0.1, 0.2], dtype=torch.float64)
    codes, low_pass = network(Estimate(x, x, noise, noise / 2), D)
    assert codes.shape == (2, 3, 20, 17)
    assert low_pass.shape == (2, 20, 17)
    torch.testing.assert_close(2 * codes[0], codes[1])
    torch.testing.assert_close(2 * low_pass[0], low_pass[1])
    torch.testing.assert_close(2 * low_pass[..., ::2, ::2], codes[:, 0, ::2, ::2])  # filters of norm 1


def test_the_smooth_part_is_shrunk_by_its_map_and_the_codes_explain_the_rest(generator):
    A = cartesian()
    y = scan_of(A, generator=generator)
    threshold = torch.rand(20, 17, generator=generator, dtype=torch.float64)
    codes = torch.rand(3, 1, 1, generator=generator, dtype=torch.float64)
    filters = random_filters(3, 3, seed=1).double()
    plain, shrunk = (
        ConvolutionalSparseCoding(filters, GivenMaps(codes, low), n_iterations=400, n_stages=1).double()
        for low in (None, threshold)
    )
    with torch.no_grad():
        smooth, parts = plain.explain(y, A, NOISE).low_pass, shrunk.explain(y, A, NOISE)
    scale = A.adjoint(y).abs().square().mean().sqrt()
    expected = smooth * (1 - scale * threshold / smooth.abs()).clamp_min(0)
    torch.testing.assert_close(parts.low_pass, expected)
    assert bool((parts.low_pass == 0).any())
    D = ConvolutionalDictionary(filters, (20, 17))
    slope = D.adjoint(A.adjoint(A(D(parts.codes)) - (y - A(parts.low_pass))))
    assert float((slope.abs() - parts.maps).max()) < 1e-3 * float(parts.maps.max())


def test_the_noise_of_the_smooth_part_is_what_is_told_of_it(generator):
    class Listening(GivenMaps):
        def forward(self, known: Estimate, dictionary: ConvolutionalDictionary) -> Maps:
            self.known = known
            return super().forward(known, dictionary)

    maps = Listening(torch.ones(2, 1, 1, dtype=torch.float64))
    A = Fourier((64, 64))
    y = 2**0.5 * NOISE * A.codomain.randn(20, generator=generator, dtype=torch.float64)
    ConvolutionalSparseCoding(dct_filters(2, 3), maps, smoothness=3.0, n_stages=1).double()(y, A, NOISE)
    for image, level in (
        (maps.known.image, maps.known.noise_std),
        (maps.known.low_pass, maps.known.low_pass_noise_std),
    ):
        measured = torch.view_as_real(image).square().mean(dim=(-3, -2, -1)).sqrt()
        torch.testing.assert_close(measured.mean(), level.mean(), rtol=0.1, atol=0)


@pytest.mark.parametrize("size", [3, 7, 41])
def test_bands_tell_filters_apart_by_frequency_and_direction(size):
    wave = torch.cos(torch.pi * (torch.arange(size, dtype=torch.float64) - size // 2))
    even = torch.ones(size, size, dtype=torch.float64)
    along_x, along_y, constant = band_powers(torch.stack([wave * even, wave[:, None] * even, 3 * even])).unflatten(
        1, (6, 4)
    )
    assert int(along_x.sum(dim=1).argmax()) in (4, 5)
    assert int(constant.sum(dim=1).argmax()) in (0, 1)
    assert int(along_x.sum(dim=0).argmax()) == 2
    torch.testing.assert_close(along_y[:, [2, 1, 0, 3]], along_x)
    shifted = torch.nn.functional.pad(5 * wave * even, (2, 0, 0, 4))
    torch.testing.assert_close(
        band_powers(shifted[None, : size + 4]).unflatten(1, (6, 4))[0], along_x, rtol=0.05, atol=0.01
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_iterations": 2, "n_stages": 3}, "each stage needs one"),
        ({"n_stages": 0}, "each stage needs one"),
        ({"smoothness": 0.0}, "smoothness is 0.0"),
        ({"smoothness": float("inf")}, "smoothness is inf"),
        ({"gradient": "all"}, "gradient is 'all'; expected one of 'iterations'"),
        ({"shrinkage": "some"}, "shrinkage is 'some'"),
        ({"filters": torch.ones(2, 4, 3)}, "must be odd"),
        ({"filters": torch.ones(3, 3)}, r"expected \(filter, ky, kx\)"),
    ],
)
def test_what_cannot_be_built_is_named(options, message):
    arguments = {"filters": dct_filters(2, 3), "maps": ScalarMaps()} | options
    with pytest.raises(ValueError, match=message):
        ConvolutionalSparseCoding(arguments.pop("filters"), arguments.pop("maps"), **arguments)
    with pytest.raises(ValueError, match="level is -1"):
        ScalarMaps(-1)
    with pytest.raises(TypeError, match="field is real"):
        ConvolutionalSparseCoding(torch.ones(1, 3, 3, dtype=torch.complex64), ScalarMaps())
