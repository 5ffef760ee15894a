"""Families of filters: what they promise, for every number and size that they serve, and what they refuse."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.fft
import torch

from operators.filters import dct_filters, gabor_filters, random_filters, wavelet_filters


def _random(n: int, size: int) -> torch.Tensor:
    return random_filters(n, size, seed=1)


FAMILIES: dict[str, Callable[[int, int], torch.Tensor]] = {
    "dct": dct_filters,
    "gabor": gabor_filters,
    "wavelet": wavelet_filters,
    "random": _random,
}
WANTED = [(n, size) for size in (5, 7, 9, 11, 13, 15) for n in (16, 24, 32, 64, 128)]


@pytest.mark.parametrize("family", FAMILIES)
def test_filters_have_zero_mean_and_unit_norm_and_are_distinct(family):
    for n, size in WANTED:
        if family == "dct" and n >= size**2:
            continue
        filters = FAMILIES[family](n, size)
        assert (filters.shape, filters.dtype) == ((n, size, size), torch.float32)
        flat = filters.double().flatten(1)
        assert float(flat.sum(dim=1).abs().max()) < 1e-6
        assert float((flat.norm(dim=1) - 1).abs().max()) < 1e-6
        assert float((flat @ flat.T).fill_diagonal_(0).abs().max()) < 0.996, (n, size)


@pytest.mark.parametrize("family", FAMILIES)
def test_filters_are_the_same_every_time_and_leave_the_global_generator_alone(family):
    state = torch.get_rng_state()
    assert torch.equal(FAMILIES[family](24, 9), FAMILIES[family](24, 9))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", ["dct", "wavelet"])
def test_fewer_filters_are_the_first_of_more(family):
    assert torch.equal(FAMILIES[family](16, 9), FAMILIES[family](64, 9)[:16])


def test_dct_filters_are_orthonormal_and_what_scipy_says():
    filters = dct_filters(48, 7).double()
    torch.testing.assert_close(
        filters.flatten(1) @ filters.flatten(1).T, torch.eye(48, dtype=torch.float64), atol=1e-6, rtol=0
    )
    coefficients = scipy.fft.dctn(filters.numpy(), axes=(1, 2), norm="ortho")
    places = [np.unravel_index(np.abs(c).argmax(), c.shape) for c in coefficients]
    assert np.isclose(np.abs(coefficients).max(axis=(1, 2)), 1, atol=1e-6).all()
    frequencies = [int(p) ** 2 + int(q) ** 2 for p, q in places]
    assert frequencies == sorted(frequencies)
    assert places[:3] == [(0, 1), (1, 0), (1, 1)]


def test_gabor_filters_come_in_even_and_odd_pairs():
    filters = gabor_filters(32, 11)
    torch.testing.assert_close(filters[0::2].flip(1, 2), filters[0::2])
    torch.testing.assert_close(filters[1::2].flip(1, 2), -filters[1::2])


def test_gabor_filters_reach_all_directions_and_octaves():
    spectra = torch.fft.fft2(gabor_filters(64, 15), s=(64, 64)).abs()
    peaks = [np.unravel_index(int(s.argmax()), (64, 64)) for s in spectra]
    frequencies = np.fft.fftfreq(64)
    radii = np.array([np.hypot(frequencies[p], frequencies[q]) for p, q in peaks])
    directions = np.array([np.arctan2(frequencies[p], frequencies[q]) % np.pi for p, q in peaks])
    assert radii.min() < 0.12 < 0.3 < radii.max()
    assert np.unique(np.round(directions / (np.pi / 8))).size >= 8


def test_the_first_wavelet_filters_are_the_haar_details():
    horizontal, vertical, diagonal = (f[f != 0].reshape(2, 2) for f in wavelet_filters(3, 5))
    half = torch.tensor([[0.5, 0.5], [-0.5, -0.5]])
    for found, expected in ((horizontal, half.T), (vertical, half), (diagonal, half * torch.tensor([1.0, -1.0]))):
        torch.testing.assert_close(found * found[0, 0].sign(), expected)


def test_wavelet_filters_hold_several_scales():
    widths = {int((f.abs().sum(dim=0) > 1e-6).sum()) for f in wavelet_filters(16, 11)}
    assert {2, 4, 8} <= widths


def test_random_filters_depend_on_the_seed_alone():
    assert torch.equal(random_filters(8, 5, seed=3), random_filters(8, 5, seed=3))
    assert not torch.allclose(random_filters(8, 5, seed=3), random_filters(8, 5, seed=4))


@pytest.mark.parametrize("family", FAMILIES)
def test_impossible_requests_are_refused(family):
    with pytest.raises(ValueError, match="n is 0; expected at least one filter"):
        FAMILIES[family](0, 5)
    for size in (1, 4, -3):
        with pytest.raises(ValueError, match=f"size is {size}; expected an odd number"):
            FAMILIES[family](4, size)


def test_more_filters_than_there_are_is_refused():
    with pytest.raises(ValueError, match="There are 24 distinct DCT filters of size 5; 25 were asked for"):
        dct_filters(25, 5)
    with pytest.raises(ValueError, match=r"There are \d+ distinct wavelet filters of size 3; 500 were asked for"):
        wavelet_filters(500, 3)
