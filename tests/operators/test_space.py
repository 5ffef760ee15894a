"""Spaces: what they accept, what they draw, and the inner product."""

import pytest
import torch

from operators.space import Space, inner


def test_sizes_and_dims():
    space = Space([2, 3, 4], "real", ["coil", "y", "x"])
    assert (space.shape, space.axes) == ((2, 3, 4), ("coil", "y", "x"))
    assert (space.n_dims, space.dims, space.size) == (3, (-3, -2, -1), 24)


def test_scalar_space():
    space = Space((), "real")
    assert (space.n_dims, space.dims, space.size) == (0, (), 1)
    space.check(torch.zeros(5), "x")
    assert space.batch_shape(torch.zeros(5)) == (5,)


@pytest.mark.parametrize("shape", [(0,), (3, -1)])
def test_sizes_must_be_positive(shape):
    with pytest.raises(ValueError, match="every size must be at least 1"):
        Space(shape)


def test_field_must_be_known():
    with pytest.raises(ValueError, match="'quaternion'; it must be 'real' or 'complex'"):
        Space((3,), "quaternion")


def test_axes_must_fit_the_shape():
    with pytest.raises(ValueError, match=r"2 sizes \(3, 4\) but 1 axes"):
        Space((3, 4), "real", ("x",))


def test_spaces_match_by_shape_field_and_the_axes_that_both_name():
    image = Space((3, 4), "complex", ("y", "x"))
    assert image.matches(Space((3, 4)))
    assert image.matches(image)
    assert not image.matches(Space((3, 4), "complex", ("ky", "kx")))
    assert not image.matches(Space((3, 4), "real", ("y", "x")))
    assert not image.matches(Space((4, 3), "complex", ("y", "x")))


def test_equal_spaces_hash_equally():
    assert len({Space((3, 4)), Space([3, 4]), Space((3, 4), "real")}) == 2


@pytest.mark.parametrize(
    ("field", "x", "error", "message"),
    [
        ("complex", [1.0], TypeError, "x is a list"),
        ("complex", torch.zeros(3, 4), TypeError, "float32; expected a complex tensor"),
        ("real", torch.zeros(3, 4, dtype=torch.complex64), TypeError, "complex64; expected a real"),
        ("real", torch.zeros(3, 4, dtype=torch.int32), TypeError, "int32; expected a real"),
        ("real", torch.zeros(3, 4, dtype=torch.bool), TypeError, "bool; expected a real"),
        ("real", torch.zeros(4, 3), ValueError, r"shape \(4, 3\); expected \(\*batch, 3, 4\) \('y', 'x'\)"),
        ("real", torch.zeros(4), ValueError, r"shape \(4,\); expected"),
    ],
)
def test_check_says_what_arrived_and_what_was_expected(field, x, error, message):
    with pytest.raises(error, match=message):
        Space((3, 4), field, ("y", "x")).check(x, "x")


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_randn_is_standard_normal_in_the_precision_asked_for(precision, generator):
    real = Space((100, 100), "real").randn(2, generator=generator, dtype=precision)
    complex_ = Space((100, 100), "complex").randn(generator=generator, dtype=precision)
    assert (real.shape, real.dtype) == ((2, 100, 100), precision)
    assert (complex_.shape, complex_.dtype) == ((100, 100), precision.to_complex())
    assert abs(float(real.square().mean()) - 1) < 0.05
    assert abs(float(complex_.abs().square().mean()) - 1) < 0.05
    assert abs(float(complex_.real.square().mean()) - 0.5) < 0.05


def test_randn_repeats_with_its_generator_and_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    a, b = (Space((5,)).randn(3, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)


def test_inner_product_conjugates_its_first_argument():
    a, b = torch.tensor([1j, 2.0]), torch.tensor([1.0 + 0j, 3j])
    assert inner(a, b, 1) == -1j + 6j


def test_inner_product_is_per_sample():
    a = torch.arange(12.0).reshape(3, 2, 2)
    assert torch.equal(inner(a, a, 2), torch.stack([part.square().sum() for part in a]))


def test_inner_product_of_a_real_and_a_complex_tensor_is_complex(generator):
    a, b = Space((4,), "real").randn(generator=generator), Space((4,)).randn(generator=generator)
    torch.testing.assert_close(inner(a, b, 1), (a * b).sum())
    torch.testing.assert_close(inner(b, a, 1), (b.conj() * a).sum())


def test_inner_product_over_no_dimension_is_the_product():
    a = torch.tensor([1j, 2.0])
    assert torch.equal(inner(a, a, 0), torch.tensor([1.0 + 0j, 4.0]))
