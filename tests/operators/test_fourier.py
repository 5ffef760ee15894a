"""The Fourier transform against its defining sum, and the fused Cartesian operators against their textbook product."""

import math

import pytest
import torch
from torch import nn

import operators.sensitivity as sensitivity_module
from operators.elementary import Mask
from operators.fourier import Fourier, MaskedFourier, centring_phases
from operators.linear_operator import Composition, LinearOperator
from operators.sensitivity import CartesianSense, Sensitivity
from operators.space import Space
from tests.reference.fourier import dft_matrix

SHAPES = [(1,), (4,), (5,), (8,), (4, 6), (5, 7), (6, 5), (1, 4), (2, 3, 4), (3, 5, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_defining_sum(shape, generator):
    F = Fourier(shape, len(shape))
    x = F.domain.randn(2, generator=generator, dtype=torch.float64)
    matrix = dft_matrix(shape)
    torch.testing.assert_close(F(x).flatten(1), x.flatten(1) @ matrix.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(F.adjoint(x).flatten(1), x.flatten(1) @ matrix.conj(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_shifted_fft(shape, generator):
    F = Fourier(shape, len(shape))
    x = F.domain.randn(2, generator=generator, dtype=torch.float64)
    expected = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(x, F.dims), dim=F.dims, norm="ortho"), F.dims)
    torch.testing.assert_close(F(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (6, 5)])
def test_delta_at_the_centre_is_constant_and_a_constant_is_a_delta(shape):
    F = Fourier(shape)
    centre = tuple(n // 2 for n in shape)
    delta = torch.zeros(shape, dtype=torch.complex128)
    delta[centre] = 1
    constant = torch.full(shape, 1 / math.sqrt(math.prod(shape)), dtype=torch.complex128)
    torch.testing.assert_close(F(delta), constant)
    torch.testing.assert_close(F(constant), delta)


@pytest.mark.parametrize("shape", [(4, 6), (5, 7)])
def test_delta_one_row_below_the_centre_winds_negatively_along_ky(shape):
    n_y, n_x = shape
    delta = torch.zeros(shape, dtype=torch.complex128)
    delta[n_y // 2 + 1, n_x // 2] = 1
    ky = torch.arange(n_y, dtype=torch.float64) - n_y // 2
    expected = torch.exp(-2j * math.pi * ky / n_y)[:, None].expand(shape) / math.sqrt(n_y * n_x)
    torch.testing.assert_close(Fourier(shape)(delta), expected)


def test_moving_an_image_down_multiplies_kspace_by_a_ramp(generator):
    F = Fourier((6, 5))
    x = F.domain.randn(generator=generator, dtype=torch.float64)
    ky = torch.arange(6, dtype=torch.float64) - 3
    ramp = torch.exp(-2j * math.pi * ky / 6)[:, None]
    torch.testing.assert_close(F(x.roll(1, dims=0)), ramp * F(x))


def test_a_real_image_has_hermitian_kspace(generator):
    F = Fourier((5, 7))
    x = torch.randn(5, 7, dtype=torch.float64, generator=generator)
    y = F(torch.complex(x, 0 * x))
    torch.testing.assert_close(y.flip(0, 1).conj(), y)


def test_leading_dimensions_are_left_alone(generator):
    x = Space((2, 3, 4, 5)).randn(generator=generator, dtype=torch.float64)
    whole = Fourier((2, 3, 4, 5), 2)(x)
    torch.testing.assert_close(whole[1, 2], Fourier((4, 5))(x[1, 2]))


def test_spaces_name_image_and_kspace_axes():
    F = Fourier((8, 4, 5))
    assert (F.domain.axes, F.codomain.axes) == (("coil", "y", "x"), ("coil", "ky", "kx"))
    assert Fourier((4, 5, 6), 3).codomain.axes == ("kz", "ky", "kx")
    with pytest.raises(ValueError, match="cannot be composed"):
        F @ F


@pytest.mark.parametrize(("shape", "n_dims"), [((4, 4), 0), ((4,), 2), ((2, 2, 2, 2), 4)])
def test_dimensions_that_cannot_be_transformed_are_refused(shape, n_dims):
    with pytest.raises(ValueError, match=f"n_dims is {n_dims}; expected 1 to 3"):
        Fourier(shape, n_dims)


def test_centring_phases_are_real_signs_for_even_sizes_only():
    assert all(not phase.is_complex() and set(phase.unique().tolist()) <= {-1, 1} for phase in centring_phases((4, 6)))
    assert all(phase.is_complex() for phase in centring_phases((4, 5)))


def test_double_precision_survives_where_every_size_is_even(generator):
    F = Fourier((8, 6))
    x = F.domain.randn(generator=generator, dtype=torch.float64)
    assert float((F.adjoint(F(x)) - x).abs().max()) < 1e-14


MASKS = {
    "full": None,
    "point": (6, 5),
    "line_y": (6, 1),
    "line_x": (1, 5),
    "constant": (1, 1),
    "per_coil": (3, 1, 1),
    "per_coil_point": (3, 6, 5),
    "batched_point": (2, 1, 6, 5),
    "batched_line": (2, 1, 1, 5),
}


def _mask(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return (torch.rand(shape, generator=generator) > 0.4).double()


def _fused_and_textbook(
    csm: torch.Tensor, mask: torch.Tensor | None, n_dims: int
) -> tuple[LinearOperator, LinearOperator]:
    sensitivity = Sensitivity(csm, n_dims)
    factors: list[LinearOperator] = [Fourier(sensitivity.codomain.shape, n_dims), sensitivity]
    if mask is not None:
        factors.insert(0, Mask(mask, factors[0].codomain))
    product = factors[0] @ factors[1] if mask is None else factors[0] @ factors[1] @ factors[2]
    return product, Composition(factors)


def _assert_same_in_all_doors_and_gradients(
    fused: LinearOperator, textbook: LinearOperator, csm: torch.Tensor, generator: torch.Generator
) -> None:
    """Values, gradients to the input and to the csm, and the gradients of those gradients."""
    for batch in ((), (2,), (3, 2)):
        for name in ("forward", "adjoint", "gram"):
            space = fused.codomain if name == "adjoint" else fused.domain
            x = space.randn(*batch, generator=generator, dtype=torch.float64).requires_grad_()
            wanted = [x, csm] if csm.requires_grad else [x]
            results = []
            for operator in (fused, textbook):
                value = getattr(operator, name)(x)
                weights = torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(1))
                energy = (value * weights).abs().square().sum()
                gradients = torch.autograd.grad(energy, wanted, create_graph=True)
                second = torch.autograd.grad(sum(g.abs().square().sum() for g in gradients), wanted)
                results.append((value, *gradients, *second))
            for actual, expected in zip(*results, strict=True):
                torch.testing.assert_close(
                    actual, expected, rtol=1e-12, atol=1e-12 * float(expected.detach().abs().max())
                )


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_fused_sense_equals_its_textbook_product(mask, learned, generator):
    csm = torch.randn(3, 6, 5, dtype=torch.complex128, generator=generator)
    csm = nn.Parameter(csm) if learned else csm
    sampling = None if MASKS[mask] is None else _mask(MASKS[mask], generator)
    fused, textbook = _fused_and_textbook(csm, sampling, 2)
    assert isinstance(fused, CartesianSense)
    _assert_same_in_all_doors_and_gradients(fused, textbook, csm, generator)


@pytest.mark.parametrize(
    ("n_dims", "image", "mask"), [(1, (6,), (6,)), (3, (2, 4, 3), (2, 4, 1)), (3, (2, 3, 2), (3, 2))]
)
def test_fused_sense_equals_its_textbook_product_in_one_and_three_dimensions(n_dims, image, mask, generator):
    csm = nn.Parameter(torch.randn(2, 2, *image, dtype=torch.complex128, generator=generator))
    fused, textbook = _fused_and_textbook(csm, _mask(mask, generator), n_dims)
    assert isinstance(fused, CartesianSense)
    _assert_same_in_all_doors_and_gradients(fused, textbook, csm, generator)


@pytest.mark.parametrize("n_cached", [1, 30, 70, 200])
@pytest.mark.parametrize("maps", [(3, 6, 5), (2, 3, 6, 5)])
@pytest.mark.parametrize("mask", ["line_y", "batched_point"])
def test_fused_sense_equals_its_textbook_product_however_it_is_cut_into_blocks(
    mask, maps, n_cached, generator, monkeypatch
):
    monkeypatch.setattr(sensitivity_module, "_CACHED_ENTRIES", n_cached)
    csm = torch.randn(maps, dtype=torch.complex128, generator=generator)
    fused, textbook = _fused_and_textbook(csm, _mask(MASKS[mask], generator), 2)
    _assert_same_in_all_doors_and_gradients(fused, textbook, csm, generator)


@pytest.mark.parametrize("mask", [m for m in MASKS if m != "full"])
def test_fused_masked_fourier_equals_its_textbook_product(mask, generator):
    F = Fourier((3, 6, 5))
    M = Mask(_mask(MASKS[mask], generator), F.codomain)
    fused = M @ F
    assert isinstance(fused, MaskedFourier)
    _assert_same_in_all_doors_and_gradients(fused, Composition((M, F)), M.mask, generator)


def test_every_way_of_multiplying_fuses(generator):
    S = Sensitivity(torch.randn(2, 4, 3, dtype=torch.complex128, generator=generator))
    F = Fourier(S.codomain.shape)
    M = Mask(_mask((4, 1), generator), F.codomain)
    for product in (M @ F @ S, (M @ F) @ S, M @ (F @ S)):
        assert isinstance(product, CartesianSense)
        assert product.mask is M


def test_a_transform_over_other_dimensions_does_not_compose():
    with pytest.raises(ValueError, match="cannot be composed"):
        Fourier((2, 4, 3), 1) @ Sensitivity(torch.ones(2, 4, 3, dtype=torch.complex64))


def test_factors_that_do_not_fit_are_refused(generator):
    S, F = Sensitivity(torch.ones(2, 4, 3, dtype=torch.complex64)), Fourier((2, 4, 4))
    with pytest.raises(ValueError, match=r"Fourier expects .* but Sensitivity returns"):
        CartesianSense(S, F)
    with pytest.raises(ValueError, match=r"Mask expects .* but Fourier returns"):
        MaskedFourier(Mask(torch.ones(3, 3), Space((2, 3, 3))), F)


def test_gram_transforms_along_varying_dimensions_only():
    F = Fourier((2, 4, 5))
    for mask, dims in (
        ((4, 1), (-2,)),
        ((1, 5), (-1,)),
        ((4, 5), (-2, -1)),
        ((2, 1, 1), ()),
    ):
        kept = torch.zeros(mask)
        kept.view(-1)[0] = 1
        assert (Mask(kept, F.codomain) @ F).varying_dims() == dims


def test_new_mask_values_are_noticed(generator):
    F = Fourier((4, 5))
    lines = torch.tensor([1.0, 0, 1, 0])[:, None].expand(4, 5).contiguous()
    A = Mask(lines, F.codomain) @ F
    x = A.domain.randn(generator=generator, dtype=torch.float64)
    A.gram(x)
    points = Mask(_mask((4, 5), generator).float(), F.codomain)
    A.mask.load_state_dict(points.state_dict())
    torch.testing.assert_close(A.gram(x), A.adjoint(A(x)), rtol=1e-12, atol=1e-12)


def test_maps_must_be_complex_and_have_a_coil_dimension():
    with pytest.raises(TypeError, match=r"csm is torch\.float32; expected complex"):
        Sensitivity(torch.ones(2, 4, 4))
    with pytest.raises(ValueError, match=r"csm has shape \(4, 4\); expected"):
        Sensitivity(torch.ones(4, 4, dtype=torch.complex64))
    with pytest.raises(ValueError, match="n_dims is 0"):
        Sensitivity(torch.ones(4, 4, dtype=torch.complex64), 0)
