"""Convolutional dictionaries against SciPy, their own variants and the plain product with Cartesian imaging."""

import copy

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import nn

import operators.dictionary as dictionary_module
from operators.dictionary import CartesianDictionary, ConvolutionalDictionary
from operators.elementary import Mask
from operators.fourier import Fourier
from operators.linear_operator import Composition, LinearOperator
from operators.sensitivity import Sensitivity

MODES = {"circular": "grid-wrap", "reflect": "mirror"}


def _filters(n: int, *size: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, *size, dtype=dtype, generator=generator)


def _codes(D: LinearOperator, *batch: int, generator: torch.Generator) -> torch.Tensor:
    return D.domain.randn(*batch, generator=generator, dtype=torch.float64)


def _same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11 * float(expected.detach().abs().max()))


def _box(shape: tuple[int, int], kept: tuple[int, int]) -> torch.Tensor:
    mask = torch.zeros(shape)
    mask[tuple(slice(n // 2 - k // 2, n // 2 - k // 2 + k) for n, k in zip(shape, kept, strict=True))] = 1
    return mask


@pytest.mark.parametrize("method", ["fft", "spatial"])
@pytest.mark.parametrize("boundary", MODES)
@pytest.mark.parametrize("shape", [(12, 15), (16, 16), (11, 23)])
@pytest.mark.parametrize("size", [(5, 5), (3, 7), (11, 9)])
def test_equals_scipys_convolution(size, shape, boundary, method, generator):
    filters = _filters(3, *size, generator=generator)
    D = ConvolutionalDictionary(filters, shape, field="real", boundary=boundary, method=method)
    codes = _codes(D, 2, generator=generator)
    parts = [
        [scipy.ndimage.convolve(c.numpy(), d.numpy(), mode=MODES[boundary]) for c, d in zip(code, filters, strict=True)]
        for code in codes
    ]
    expected = torch.from_numpy(np.array(parts))
    _same(D(codes), expected.sum(dim=1))
    _same(D.contributions(codes), expected)


@pytest.mark.parametrize("boundary", MODES)
@pytest.mark.parametrize("field", ["real", "complex", "complex filters"])
@pytest.mark.parametrize("shape", [(9, 10), (17, 22)])
def test_every_method_gives_the_same(shape, field, boundary, generator):
    dtype = torch.complex128 if field == "complex filters" else torch.float64
    field = field.split()[0]
    filters = _filters(4, 5, 3, generator=generator, dtype=dtype)
    fft, spatial, auto = (
        ConvolutionalDictionary(filters, shape, field=field, boundary=boundary, method=method)
        for method in ("fft", "spatial", "auto")
    )
    codes, images = _codes(fft, 2, generator=generator), fft.codomain.randn(3, generator=generator, dtype=torch.float64)
    for other in (spatial, auto):
        _same(other(codes), fft(codes))
        _same(other.adjoint(images), fft.adjoint(images))
        _same(other.gram(codes), fft.gram(codes))
        _same(other.contributions(codes), fft.contributions(codes))


@pytest.mark.parametrize("boundary", MODES)
def test_a_delta_at_the_centre_copies_its_code(boundary, generator):
    filters = torch.zeros(2, 3, 5, dtype=torch.float64)
    filters[:, 1, 2] = torch.tensor([1.0, -2.0])
    D = ConvolutionalDictionary(filters, (6, 7), boundary=boundary)
    codes = _codes(D, generator=generator)
    _same(D(codes), codes[0] - 2 * codes[1])


@pytest.mark.parametrize("boundary", MODES)
def test_contributions_sum_to_the_image(boundary, generator):
    D = ConvolutionalDictionary(_filters(5, 7, 7, generator=generator), (12, 11), boundary=boundary)
    codes = _codes(D, 2, 3, generator=generator)
    assert D.contributions(codes).shape == (2, 3, 5, 12, 11)
    _same(D.contributions(codes).sum(dim=-3), D(codes))
    with pytest.raises(ValueError, match=r"contributions input has shape \(12, 11\)"):
        D.contributions(codes[0, 0, 0])


@pytest.mark.parametrize("n_cached", [1, 400, 1000])
@pytest.mark.parametrize("boundary", MODES)
@pytest.mark.parametrize("field", ["real", "complex"])
def test_how_filters_are_cut_into_blocks_does_not_matter(field, boundary, n_cached, generator, monkeypatch):
    D = ConvolutionalDictionary(_filters(5, 3, 7, generator=generator), (12, 11), field=field, boundary=boundary)
    codes, images = _codes(D, 2, generator=generator), D.codomain.randn(2, generator=generator, dtype=torch.float64)
    expected = D(codes), D.adjoint(images), D.gram(codes)
    monkeypatch.setattr(dictionary_module, "_CACHED_ENTRIES", n_cached)
    for actual, whole in zip((D(codes), D.adjoint(images), D.gram(codes)), expected, strict=True):
        _same(actual, whole)


def test_norm_of_one_smoothing_filter_is_its_gain_at_frequency_zero():
    D = ConvolutionalDictionary(torch.full((1, 5, 5), 0.25, dtype=torch.float64), (320, 314))
    torch.testing.assert_close(D.norm(), torch.tensor(25 / 4, dtype=torch.float64), rtol=1e-14, atol=0)


def test_norm_agrees_with_power_iteration_at_awkward_sizes(generator):
    D = ConvolutionalDictionary(_filters(6, 5, 5, generator=generator), (22, 17))
    torch.testing.assert_close(D.norm(), LinearOperator._norm(D), rtol=1e-8, atol=0)


def test_other_filters_for_the_same_images(generator):
    D = ConvolutionalDictionary(_filters(3, 5, 5, generator=generator), (12, 11), boundary="reflect", field="real")
    other = D.with_filters(_filters(7, 9, 3, generator=generator))
    assert (other.n_filters, other.codomain, other.boundary) == (7, D.codomain, "reflect")
    assert other.domain.shape == (7, 12, 11)
    assert D.n_filters == 3


def test_permuted_filters_permute_the_codes(generator):
    D = ConvolutionalDictionary(_filters(4, 5, 5, generator=generator), (12, 10))
    order = torch.tensor([2, 0, 3, 1])
    image = D.codomain.randn(generator=generator, dtype=torch.float64)
    _same(D.with_filters(D.filters[order]).adjoint(image), D.adjoint(image)[order])


def _in_place(D: ConvolutionalDictionary, new: torch.Tensor) -> None:
    with torch.no_grad():
        D.filters.copy_(new)


def _behind_the_back(D: ConvolutionalDictionary, new: torch.Tensor) -> None:
    D.filters.data.copy_(new)


def _as_state(D: ConvolutionalDictionary, new: torch.Tensor) -> None:
    D.load_state_dict({"filters": new})


def _as_attribute(D: ConvolutionalDictionary, new: torch.Tensor) -> None:
    D.filters = nn.Parameter(new, D.filters.requires_grad) if isinstance(D.filters, nn.Parameter) else new


@pytest.mark.parametrize("change", [_in_place, _behind_the_back, _as_state, _as_attribute])
@pytest.mark.parametrize("kind", ["buffer", "learned", "frozen"])
def test_changed_filters_are_never_stale(kind, change, generator):
    old, new = (_filters(3, 7, 7, generator=generator) for _ in range(2))
    given = old.clone() if kind == "buffer" else nn.Parameter(old.clone(), requires_grad=kind == "learned")
    D = ConvolutionalDictionary(given, (10, 12))
    F = Fourier((10, 12))
    A = Mask(_box((10, 12), (6, 6)), F.codomain) @ F
    AD = A @ D
    codes = _codes(D, generator=generator)
    before = D(codes).detach(), AD.gram(codes).detach()
    change(D, new.clone())
    fresh = D.with_filters(new)
    _same(D(codes).detach(), fresh(codes))
    _same(D.adjoint(D(codes)).detach(), fresh.gram(codes))
    _same(AD.gram(codes).detach(), (A @ fresh).gram(codes))
    _same(D.norm(), fresh.norm())
    assert not torch.allclose(before[0], fresh(codes))
    assert not torch.allclose(before[1], AD.gram(codes).detach())


def test_filters_can_be_learned_from_an_image(generator):
    true = ConvolutionalDictionary(_filters(2, 5, 5, generator=generator), (16, 16), field="real")
    codes = _codes(true, 4, generator=generator)
    images = true(codes)
    D = true.with_filters(nn.Parameter(torch.zeros(2, 5, 5, dtype=torch.float64)))
    optimiser = torch.optim.LBFGS(D.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def misfit() -> torch.Tensor:
        optimiser.zero_grad()
        loss = (D(codes) - images).square().sum()
        loss.backward()
        return loss

    optimiser.step(misfit)
    torch.testing.assert_close(D.filters.detach(), true.filters, rtol=1e-4, atol=1e-4)


MASKS = {
    "box": _box((12, 10), (6, 4)),
    "box_off_centre": _box((12, 10), (6, 4)).roll((2, -1), dims=(0, 1)),
    "odd_box": _box((12, 10), (5, 3)),
    "rows": _box((12, 10), (4, 10))[:, :1],
    "columns": _box((12, 10), (12, 5))[:1],
    "point": (torch.arange(120).reshape(12, 10) % 3 == 0).float(),
    "corner": _box((12, 10), (12, 10)) - _box((12, 10), (12, 10)).roll((1, 1), dims=(0, 1)).tril(20),
    "nothing": torch.zeros(12, 10),
    "batched": torch.stack((_box((12, 10), (6, 4)), _box((12, 10), (2, 8)))),
}
MASKS["corner"][0, 0] = 1


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("coil", [False, True])
def test_fused_gram_equals_the_plain_product(coil, mask, generator):
    D = ConvolutionalDictionary(_filters(3, 5, 7, generator=generator), (12, 10))
    F = Fourier((1, 12, 10) if coil else (12, 10))
    kept = MASKS[mask].unsqueeze(-3) if coil else MASKS[mask]
    A = Mask(kept, F.codomain) @ F
    if coil:
        A = A @ Sensitivity(torch.full((1, 12, 10), 0.6 - 1.1j, dtype=torch.complex128))
    fused, plain = A @ D, Composition((A, D))
    assert isinstance(fused, CartesianDictionary)
    for batch in ((), (2,), (3, 2)):
        codes = _codes(D, *batch, generator=generator).requires_grad_()
        y = fused.codomain.randn(*batch, generator=generator, dtype=torch.float64)
        _same(fused.gram(codes), plain.gram(codes))
        _same(fused(codes), plain(codes))
        _same(fused.adjoint(y), plain.adjoint(y))
        upstream = torch.randn(fused.gram(codes).shape, dtype=codes.dtype, generator=generator)
        gradients = [torch.autograd.grad(operator.gram(codes), codes, upstream)[0] for operator in (fused, plain)]
        _same(*gradients)


@pytest.mark.parametrize("shape", [(12, 15), (9, 9), (14, 8), (15, 10)])
def test_fused_gram_holds_for_odd_and_even_sizes(shape, generator):
    D = ConvolutionalDictionary(_filters(3, 5, 5, generator=generator, dtype=torch.complex128), shape)
    F = Fourier(shape)
    for kept in ((5, 4), (4, 5), (shape[0], 3), (3, shape[1]), shape):
        A = Mask(_box(shape, kept), F.codomain) @ F
        codes = _codes(D, generator=generator)
        _same((A @ D).gram(codes), D.adjoint(A.gram(D(codes))))


def test_every_way_of_multiplying_fuses():
    D, F = ConvolutionalDictionary(torch.ones(2, 3, 3), (8, 6)), Fourier((8, 6))
    M = Mask(_box((8, 6), (4, 4)), F.codomain)
    for product in (M @ F @ D, (M @ F) @ D, M @ (F @ D)):
        assert isinstance(product, CartesianDictionary)
        assert product.dictionary is D


def test_what_does_not_fuse_stays_a_product(generator):
    D = ConvolutionalDictionary(torch.ones(2, 3, 3), (8, 6))
    F, F1 = Fourier((8, 6)), Fourier((2, 8, 6))
    uneven = torch.randn(1, 8, 6, dtype=torch.complex64, generator=generator)
    for product in (
        F @ ConvolutionalDictionary(D.filters, (8, 6), boundary="reflect"),
        Fourier((8, 11)) @ ConvolutionalDictionary(D.filters, (8, 11)),
        F1 @ Sensitivity(torch.ones(2, 8, 6, dtype=torch.complex64)) @ D,
        Fourier((1, 8, 6)) @ Sensitivity(uneven) @ D,
    ):
        assert isinstance(product, Composition)


def test_a_new_mask_or_an_uneven_coil_is_noticed(generator):
    D = ConvolutionalDictionary(_filters(2, 3, 3, generator=generator), (8, 6))
    F = Fourier((1, 8, 6))
    A = Mask(_box((8, 6), (4, 2)), F.codomain) @ F @ Sensitivity(torch.ones(1, 8, 6, dtype=torch.complex128))
    AD, codes = A @ D, _codes(D, generator=generator)
    assert isinstance(AD, CartesianDictionary)
    AD.gram(codes)
    state = copy.deepcopy(AD.state_dict())
    state["imaging.mask.weights"] = _box((8, 6), (8, 3))
    AD.load_state_dict(state)
    _same(AD.gram(codes), D.adjoint(A.gram(D(codes))))
    state["imaging.sensitivity.csm"] = torch.randn(1, 8, 6, dtype=torch.complex128, generator=generator)
    AD.load_state_dict(state)
    _same(AD.gram(codes), D.adjoint(A.gram(D(codes))))


def test_imaging_that_cannot_be_fused_is_refused():
    D = ConvolutionalDictionary(torch.ones(2, 3, 3), (8, 6))
    with pytest.raises(ValueError, match=r"CartesianSense to .* is not Cartesian imaging .* one uniform coil"):
        CartesianDictionary(Fourier((2, 8, 6)) @ Sensitivity(torch.ones(2, 8, 6, dtype=torch.complex64)), D)
    with pytest.raises(ValueError, match="boundary is 'reflect'; expected 'circular'"):
        CartesianDictionary(Fourier((8, 6)), ConvolutionalDictionary(D.filters, (8, 6), boundary="reflect"))
    with pytest.raises(ValueError, match=r"Fourier expects .* but ConvolutionalDictionary returns"):
        CartesianDictionary(Fourier((8, 8)), D)


@pytest.mark.parametrize(
    ("filters", "shape", "options", "error", "message"),
    [
        (torch.ones(2, 4, 3), (8, 8), {}, ValueError, r"size \(4, 3\); it must be odd"),
        (torch.ones(3, 3), (8, 8), {}, ValueError, r"shape \(3, 3\); expected \(filter, ky, kx\)"),
        (torch.ones(0, 3, 3), (8, 8), {}, ValueError, r"shape \(0, 3, 3\)"),
        (torch.ones(2, 9, 3), (8, 8), {}, ValueError, r"image_shape is \(8, 8\).* size \(9, 3\)"),
        (torch.ones(2, 3, 3), (8, 8, 8), {}, ValueError, r"image_shape is \(8, 8, 8\)"),
        (torch.ones(2, 3, 3, dtype=torch.int64), (8, 8), {}, TypeError, r"torch\.int64"),
        (torch.ones(2, 3, 3) * 1j, (8, 8), {"field": "real"}, TypeError, "the field is real"),
        (torch.ones(2, 3, 3), (8, 8), {"field": "quaternion"}, ValueError, "'quaternion'"),
        (torch.ones(2, 3, 3), (8, 8), {"boundary": "zero"}, ValueError, "boundary is 'zero'"),
        (torch.ones(2, 3, 3), (8, 8), {"method": "gpu"}, ValueError, "method is 'gpu'"),
    ],
)
def test_what_makes_no_dictionary_is_refused(filters, shape, options, error, message):
    with pytest.raises(error, match=message):
        ConvolutionalDictionary(filters, shape, **options)
