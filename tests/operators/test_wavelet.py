"""The wavelet transform against PyWavelets, its layout, and what it refuses."""

import warnings

import numpy as np
import pytest
import pywt
import torch

from operators.elementary import Diagonal
from operators.space import Space
from operators.wavelet import Wavelet

SHAPES = [(8,), (12,), (32,), (8, 12), (16, 8), (32, 32), (8, 8, 8), (4, 8, 12)]


def _pywt_coefficients(x: np.ndarray, wavelet: str, level: int, n_dims: int) -> np.ndarray:
    axes = tuple(range(-n_dims, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of wrapping, which is meant
        return pywt.coeffs_to_array(pywt.wavedecn(x, wavelet, "periodization", level, axes), axes=axes)[0]


@pytest.mark.parametrize("wavelet", ["haar", "db2", "db4", "sym4", "coif1", "db10"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_pywavelets_in_its_own_layout_at_every_level(shape, wavelet, generator):
    largest = min((n & -n).bit_length() - 1 for n in shape)
    for level in range(1, largest + 1):
        W = Wavelet(Space(shape), wavelet, level, n_dims=len(shape))
        x = W.domain.randn(generator=generator, dtype=torch.float64)
        expected = torch.from_numpy(_pywt_coefficients(x.numpy(), wavelet, level, len(shape)))
        torch.testing.assert_close(W(x), expected, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(W.adjoint(W(x)), x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("field", ["real", "complex"])
def test_equals_pywavelets_for_a_batch_of_images_with_coils(field, generator):
    W = Wavelet(Space((3, 8, 16), field), "db2", 2)
    x = W.domain.randn(2, generator=generator, dtype=torch.float64)
    expected = torch.from_numpy(_pywt_coefficients(x.numpy(), "db2", 2, 2))
    torch.testing.assert_close(W(x), expected, rtol=1e-11, atol=1e-11)


def test_all_orthogonal_wavelets_of_the_named_families_are_orthonormal(generator):
    names = [n for n in pywt.wavelist(kind="discrete") if n == "haar" or n.startswith(("db", "sym", "coif"))]
    x = Space((8,), "real").randn(generator=generator, dtype=torch.float64)
    for name in names:
        W = Wavelet(Space((8,), "real"), name, 2, n_dims=1)
        torch.testing.assert_close(W.adjoint(W(x)), x, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(W(W.adjoint(x)), x, rtol=1e-9, atol=1e-9)


def test_a_constant_lives_in_the_approximation_alone():
    W = Wavelet(Space((16, 8), "real"), "db4", 2)
    coefficients = W(torch.ones(16, 8, dtype=torch.float64))
    window = W.approximation_window()
    torch.testing.assert_close(coefficients[window], torch.full((4, 2), 4.0, dtype=torch.float64))
    assert float(coefficients[W.detail_mask()].abs().max()) < 1e-10


def test_detail_mask_is_the_complement_of_the_approximation_window():
    W = Wavelet(Space((3, 16, 8)), "haar", 3)
    mask = W.detail_mask()
    assert (mask.shape, mask.dtype) == ((16, 8), torch.bool)
    assert not mask[W.approximation_window()].any()
    assert int((~mask).sum()) == 2 * 1


def test_level_defaults_to_what_the_size_and_the_filter_allow():
    assert Wavelet(Space((320, 320)), "db4").level == 4
    assert Wavelet(Space((16, 320)), "db4").level == 1
    assert Wavelet(Space((16, 320)), "haar").level == 4
    assert Wavelet(Space((230, 180)), "haar").level == 1
    assert Wavelet(Space((2, 2)), "db4").level == 1


def test_a_level_that_would_halve_an_odd_size_is_refused():
    with pytest.raises(ValueError, match=r"level is 3, but the shape \(12, 16\) can be halved 1 to 2 times"):
        Wavelet(Space((12, 16)), "haar", 3)


@pytest.mark.parametrize("level", [0, -1])
def test_a_level_below_one_is_refused(level):
    with pytest.raises(ValueError, match=f"level is {level}"):
        Wavelet(Space((12, 16)), "haar", level)


def test_an_odd_size_is_refused_with_the_advice_to_pad():
    with pytest.raises(ValueError, match=r"cannot halve the shape \(8, 5\).*use Pad"):
        Wavelet(Space((8, 5)), "haar")


@pytest.mark.parametrize("wavelet", ["bior2.2", "rbio3.1", "dmey"])
def test_a_wavelet_that_is_not_orthonormal_is_refused(wavelet):
    with pytest.raises(ValueError, match=f"'{wavelet}' is not orthonormal"):
        Wavelet(Space((8, 8)), wavelet)


@pytest.mark.parametrize("wavelet", ["daubechies", "gaus1", ""])
def test_an_unknown_wavelet_is_refused(wavelet):
    with pytest.raises(ValueError, match=f"'{wavelet}' is unknown; choose"):
        Wavelet(Space((8, 8)), wavelet)


@pytest.mark.parametrize(("shape", "n_dims"), [((8,), 2), ((8, 8), 0), ((2, 2, 2, 2), 4)])
def test_dimensions_that_cannot_be_transformed_are_refused(shape, n_dims):
    with pytest.raises(ValueError, match=f"n_dims is {n_dims}; expected 1 to 3"):
        Wavelet(Space(shape), "haar", 1, n_dims)


def test_coefficients_are_no_image_and_the_spaces_say_so():
    W = Wavelet(Space((2, 4, 4), "complex", ("coil", "y", "x")), "haar", 1)
    assert W.codomain.axes == ("coil", "y_wavelet", "x_wavelet")
    with pytest.raises(ValueError, match="cannot be composed"):
        Diagonal(torch.ones(4, 4), W.domain) @ W


def test_input_survives_the_in_place_levels(generator):
    W = Wavelet(Space((8, 8)), "db2", 3)
    y = W.codomain.randn(generator=generator)
    before = y.clone()
    W.adjoint(y)
    assert torch.equal(y, before)
