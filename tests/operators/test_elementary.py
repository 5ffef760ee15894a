"""What the contracts cannot say of the elementary operators: placement, centres and refusals."""

import pytest
import torch
from torch import nn

from operators.elementary import Crop, Diagonal, FiniteDifference, Identity, Mask, Pad, centred_window
from operators.space import Space

IMAGE = Space((4, 5), "complex", ("y", "x"))


def test_identity_returns_what_it_gets(generator):
    x = IMAGE.randn(2, generator=generator)
    assert torch.equal(Identity(IMAGE)(x), x)


@pytest.mark.parametrize("inside", [3, 4])
@pytest.mark.parametrize("outside", [5, 6])
def test_pad_and_crop_keep_the_centre_entry(inside, outside):
    x = torch.zeros(inside)
    x[inside // 2] = 1
    padded = Pad(Space((inside,), "real"), (outside,))(x)
    assert padded.argmax() == outside // 2
    cropped = Crop(Space((outside,), "real"), (inside,))(padded)
    assert torch.equal(cropped, x)


def test_centred_window_of_equal_sizes_is_everything():
    assert centred_window((4, 5), (4, 5)) == (slice(0, 4), slice(0, 5))


def test_pad_leaves_leading_dimensions_alone(generator):
    x = Space((2, 3, 4), "real").randn(5, generator=generator)
    padded = Pad(Space((2, 3, 4), "real"), (5, 4))(x)
    assert padded.shape == (5, 2, 5, 4)
    assert torch.equal(padded[:, :, 1:4], x)


def test_pad_names_the_axes_of_its_domain():
    assert Pad(IMAGE, (6, 6)).codomain == Space((6, 6), "complex", ("y", "x"))
    assert Crop(IMAGE, (2,)).codomain == Space((4, 2), "complex", ("y", "x"))


@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (2, 4, 5)])
def test_pad_refuses_what_it_cannot_hold(shape):
    with pytest.raises(ValueError, match=r"Cannot pad \(4, 5\) to"):
        Pad(IMAGE, shape)


@pytest.mark.parametrize("shape", [(5, 5), (4, 6), (2, 4, 5)])
def test_crop_refuses_what_is_not_there(shape):
    with pytest.raises(ValueError, match=r"Cannot crop \(4, 5\) to"):
        Crop(IMAGE, shape)


def test_mask_takes_bool_and_integers_and_keeps_what_is_one(generator):
    x = IMAGE.randn(generator=generator)
    keep = torch.tensor([True, False, True, False, False])
    expected = x * keep
    for mask in (keep, keep.int(), keep.double()):
        assert torch.equal(Mask(mask, IMAGE)(x).to(x.dtype), expected)


def test_mask_refuses_weights():
    with pytest.raises(ValueError, match="other than 0 and 1; use Diagonal"):
        Mask(torch.tensor([0.0, 0.5, 1.0, 1.0, 1.0]), IMAGE)


@pytest.mark.parametrize("shape", [(4, 4), (3, 1), (5, 4)])
def test_weights_that_do_not_broadcast_are_refused(shape):
    with pytest.raises(ValueError, match=r"does not broadcast to \(4, 5\)"):
        Diagonal(torch.ones(shape), IMAGE)
    with pytest.raises(ValueError, match=r"mask has|weights has|does not broadcast"):
        Mask(torch.ones(shape), IMAGE)


def test_weights_may_not_enlarge_the_domain():
    with pytest.raises(ValueError, match="does not broadcast"):
        Diagonal(torch.ones(4, 5), Space((1, 5)))


def test_integer_weights_are_refused():
    with pytest.raises(TypeError, match="int64; expected a floating-point or complex"):
        Diagonal(torch.ones(5, dtype=torch.int64), IMAGE)


def test_diagonal_takes_its_space_from_its_weights():
    assert Diagonal(torch.ones(2, 3)).domain == Space((2, 3), "real")
    assert Diagonal(torch.ones(2, 3, dtype=torch.complex64)).domain == Space((2, 3), "complex")


def test_complex_weights_on_a_real_space_give_a_complex_one():
    operator = Diagonal(torch.tensor([1j, 2.0]), Space((2,), "real"))
    assert operator.codomain.field == "complex"
    assert torch.equal(operator.adjoint(torch.tensor([1j, 1j])), torch.tensor([1.0, 0.0]))


def test_a_parameter_is_learned_and_a_tensor_is_part_of_the_state():
    learned, fixed = Diagonal(nn.Parameter(torch.ones(3))), Diagonal(torch.ones(3))
    assert [name for name, _ in learned.named_parameters()] == ["weights"]
    assert not list(fixed.parameters())
    assert list(fixed.state_dict()) == ["weights"]


def test_finite_difference_of_a_ramp():
    ramp = torch.arange(4.0).expand(3, 4)
    along_y, along_x = FiniteDifference(Space((3, 4), "real"))(ramp)
    assert torch.equal(along_y, torch.zeros(3, 4))
    assert torch.equal(along_x, torch.tensor([1.0, 1, 1, 0]).expand(3, 4))
    wrapped = FiniteDifference(Space((3, 4), "real"), 1, "circular")(ramp)[0]
    assert torch.equal(wrapped, torch.tensor([1.0, 1, 1, -3]).expand(3, 4))


def test_finite_difference_names_its_directions():
    assert FiniteDifference(IMAGE).codomain.axes == ("direction", "y", "x")


@pytest.mark.parametrize("n_dims", [0, 3])
def test_finite_difference_refuses_dimensions_that_are_not_there(n_dims):
    with pytest.raises(ValueError, match=f"n_dims is {n_dims}; expected 1 to 2"):
        FiniteDifference(IMAGE, n_dims)


def test_finite_difference_refuses_an_unknown_boundary():
    with pytest.raises(ValueError, match="'dirichlet'; expected 'circular' or 'neumann'"):
        FiniteDifference(IMAGE, boundary="dirichlet")


def test_norm_of_the_difference_operator_is_below_its_bound():
    space = Space((6, 6), "real")
    assert FiniteDifference(space, boundary="circular").norm() == pytest.approx(8**0.5, rel=1e-9)
    assert FiniteDifference(space).norm() < 8**0.5
