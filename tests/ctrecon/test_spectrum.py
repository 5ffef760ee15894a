"""The tube spectrum, the tables of attenuation, and the water correction against the published one."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ctrecon.spectrum import (
    DENSITIES_G_PER_CM3,
    Spectrum,
    attenuation_per_mm,
    effective_attenuation,
    tube_spectrum,
    water_correction,
)

# NIST XCOM, cm²/g at 60 keV and 100 keV.
MASS_ATTENUATION = {
    "water": (0.2059, 0.1707),
    "bone": (0.3148, 0.1855),
    "aluminium": (0.2778, 0.1704),
    "titanium": (0.7661, 0.2721),
    "iron": (1.205, 0.3717),
    "copper": (1.593, 0.4584),
    "gold": (4.528, 5.158),
}


@pytest.mark.parametrize("material", DENSITIES_G_PER_CM3)
def test_attenuation_is_what_nist_says_at_the_density(material):
    found = attenuation_per_mm(material, torch.tensor([60.0, 100.0]))
    expected = torch.tensor(MASS_ATTENUATION[material], dtype=torch.float64) * DENSITIES_G_PER_CM3[material] / 10
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_titanium_at_70_kev_is_the_published_constant():
    assert math.isclose(float(attenuation_per_mm("titanium", 70.0)), 0.241245, rel_tol=1e-6)


def test_attenuation_is_interpolated_between_integers_and_jumps_at_the_edge_of_gold():
    assert attenuation_per_mm("water", 40) > attenuation_per_mm("water", 40.5) > attenuation_per_mm("water", 41)
    assert attenuation_per_mm("gold", 81) > 3.5 * attenuation_per_mm("gold", 80)


def test_the_spectrum_has_lines_above_the_k_edge_only_and_ends_at_the_voltage():
    spectrum = tube_spectrum(120.0)
    peaks = {59: (57, 62), 67: (66, 70)}
    for peak, (below, above) in peaks.items():
        assert spectrum.fractions[peak - 20] > 1.5 * spectrum.fractions[[below - 21, above - 19]].max()
    low = tube_spectrum(60.0)
    assert float(low.fractions[low.energies_kev >= 60].sum()) == 0
    assert 20 < low.mean_kev < tube_spectrum(90.0).mean_kev < spectrum.mean_kev < 120
    assert bool((low.fractions[20:40].diff() < 0).all())


def test_the_beam_hardens():
    spectrum = tube_spectrum()
    values = [effective_attenuation(spectrum, "water", thickness) for thickness in (0.0, 1e-3, 50.0, 200.0, 500.0)]
    assert math.isclose(values[0], values[1], rel_tol=1e-4)
    assert values[1] > values[2] > values[3] > values[4] > float(attenuation_per_mm("water", 120.0))
    line = Spectrum(torch.tensor([70.0], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    assert math.isclose(effective_attenuation(line, "bone", 30.0), float(attenuation_per_mm("bone", 70.0)))


def test_the_half_value_layer_is_that_of_a_ct_tube():
    spectrum = tube_spectrum()
    energy = spectrum.energies_kev
    left = torch.exp(-attenuation_per_mm("aluminium", energy) * 7.9) * spectrum.fractions * energy
    assert math.isclose(float(left.sum() / (spectrum.fractions * energy).sum()), 0.5, abs_tol=0.005)


def test_the_water_correction_makes_water_monoenergetic():
    spectrum = tube_spectrum()
    a, b, c = water_correction(spectrum)
    for thickness in (20.0, 100.0, 200.0, 350.0, 500.0):
        p = thickness * effective_attenuation(spectrum, "water", thickness)
        wanted = thickness * float(attenuation_per_mm("water", 70.0))
        assert abs(a * p + b * p**2 + c * p**3 - wanted) < 0.014
        assert thickness < 50 or abs(p - wanted) > 0.1
    line = Spectrum(torch.tensor([70.0], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    np.testing.assert_allclose(water_correction(line), (1, 0, 0), atol=1e-9)


def test_what_the_tables_do_not_hold_is_refused():
    with pytest.raises(ValueError, match="material is 'lead'"):
        attenuation_per_mm("lead", 60.0)
    with pytest.raises(ValueError, match="reach from 10 to 60 keV"):
        attenuation_per_mm("water", torch.tensor([10.0, 60.0]))
    with pytest.raises(ValueError, match="tube_voltage_kv is 140"):
        tube_spectrum(140.0)
    with pytest.raises(ValueError, match="thickness_mm is -1"):
        effective_attenuation(tube_spectrum(), "water", -1.0)
    energies = torch.tensor([60.0, 70.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="sum to 2"):
        Spectrum(energies, torch.ones_like(energies))
    with pytest.raises(ValueError, match="expected one axis"):
        Spectrum(energies, energies[:1])


@pytest.mark.realdata
def test_spectrum_and_correction_agree_with_the_published_ones(data_folder: Path):
    path = data_folder / "ct" / "attenuation" / "spectrum_and_mass_attenuation_1_120keV.csv"
    table = np.genfromtxt(path, delimiter=",", names=True)[19:]
    photons = torch.from_numpy(table["S_GE_120kVp"].copy())
    published = Spectrum(torch.from_numpy(table["E_keV"].copy()), photons / photons.sum())
    np.testing.assert_allclose(water_correction(published), (0.80370341, 0.02301414, -0.0008444), atol=5e-9)
    own = tube_spectrum()
    assert abs(own.mean_kev - published.mean_kev) < 0.5
    for thickness in (0.0, 50.0, 200.0, 400.0):
        ours, theirs = (effective_attenuation(s, "water", thickness) for s in (own, published))
        assert math.isclose(ours, theirs, rel_tol=0.015)
    np.testing.assert_allclose(water_correction(own)[0], 0.80370341, rtol=0.015)
    for ours, theirs in (("water", "H2O"), ("bone", "bone_ICRU44"), ("titanium", "Ti"), ("gold", "Au")):
        expected = table[f"mu_rho_{theirs}"] * DENSITIES_G_PER_CM3[ours] / 10
        np.testing.assert_allclose(attenuation_per_mm(ours, published.energies_kev), expected, rtol=1e-12)
