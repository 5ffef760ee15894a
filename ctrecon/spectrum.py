"""The spectrum of an X-ray tube, what materials attenuate at each energy, and the correction for water."""

import functools
import math
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch

DENSITIES_G_PER_CM3 = {
    "water": 1.0,
    "bone": 1.92,
    "aluminium": 2.699,
    "titanium": 4.5,
    "iron": 7.874,
    "copper": 8.96,
    "gold": 19.32,
}
"""Materials with tabulated attenuation, and their density in g/cm³ (bone: cortical, ICRU-44)."""

METALS = ("titanium", "iron", "copper", "gold")
"""Materials an implant can be made of."""

REFERENCE_KEV = 70.0
"""Energy that attenuation images and corrected sinograms refer to, in keV."""

_LOWEST_KEV, _HIGHEST_KEV = 20, 120
_ALUMINIUM_MM = 4.0
_K_EDGE_KEV = 69.525
# Energy (keV) and relative intensity of the K lines of tungsten (NIST, Deslattes et al. 2003; Thompson et al. 2001).
_K_LINES = ((59.318, 100.0), (57.981, 57.6), (67.244, 22.4), (66.951, 11.6), (69.100, 8.0))
_K_LINES_PER_CONTINUUM = 0.087  # photons behind the filter at 120 kV
_LARGEST_WATER_MM, _WATER_STEP_MM = 500.0, 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """How the photons of a beam are distributed over energy.

    Parameters
    ----------
    energies_kev
        Float64 ``(energy,)``, in keV, within 20 to 120.
    fractions
        Share of the photons at each energy, float64 ``(energy,)``; the sum is 1.

    Raises
    ------
    ValueError
        If the shapes differ, an energy is outside the tables, a share is negative, or the sum is not 1.
    """

    energies_kev: torch.Tensor
    fractions: torch.Tensor

    def __post_init__(self) -> None:
        if self.energies_kev.ndim != 1 or self.energies_kev.shape != self.fractions.shape:
            raise ValueError(
                f"energies have shape {tuple(self.energies_kev.shape)} and fractions {tuple(self.fractions.shape)}; "
                "expected one axis, the same for both."
            )
        _check_energies(self.energies_kev)
        total = float(self.fractions.sum())
        if not bool((self.fractions >= 0).all()) or not math.isclose(total, 1, rel_tol=1e-6):
            raise ValueError(f"fractions sum to {total:g}; expected shares of at least 0 that sum to 1: divide by it.")

    @property
    def mean_kev(self) -> float:
        """Mean energy of the photons, in keV."""
        return float((self.energies_kev * self.fractions).sum())


def tube_spectrum(tube_voltage_kv: float = 120.0) -> Spectrum:
    """Photons that a CT tube emits at a voltage, behind a filter of 4 mm of aluminium.

    The continuum is Kramers' law for a thick tungsten target, N(E) ∝ V/E − 1, times the transmission of the filter; the
    K lines of tungsten are 8.7 % of it at 120 kV and follow (V/E_K − 1)^1.67/V² at other voltages (none below the K
    edge). At 120 kV the mean energy is 54.8 keV and the half-value layer 7.9 mm of aluminium, like measured CT spectra.
    Photons below 20 keV do not leave a patient and are left out.

    Parameters
    ----------
    tube_voltage_kv
        40 to 120 kV.

    Returns
    -------
    Spectrum
        At 20, 21, …, 120 keV.

    Raises
    ------
    ValueError
        If the voltage is outside that range.

    References
    ----------
    Kramers, Phil. Mag. 46 (1923) 836; Green and Cosslett, J. Phys. D 1 (1968) 425, for the exponent.

    Examples
    --------
    >>> round(tube_spectrum(120.0).mean_kev, 1)
    54.8
    """
    if not 40 <= tube_voltage_kv <= _HIGHEST_KEV:
        raise ValueError(f"tube_voltage_kv is {tube_voltage_kv:g}; the attenuation tables allow 40 to 120 kV.")
    energies = torch.arange(_LOWEST_KEV, _HIGHEST_KEV + 1, dtype=torch.float64)
    filtered = torch.exp(-attenuation_per_mm("aluminium", energies) * _ALUMINIUM_MM)
    continuum = (tube_voltage_kv / energies - 1).clamp_min(0) * filtered
    lines = torch.zeros_like(energies)
    for energy, intensity in _K_LINES:
        below = int(energy)
        share = energy - below
        lines[below - _LOWEST_KEV] += (1 - share) * intensity
        lines[below - _LOWEST_KEV + 1] += share * intensity
    lines = lines * filtered
    excess = max(tube_voltage_kv / _K_EDGE_KEV - 1, 0) / (_HIGHEST_KEV / _K_EDGE_KEV - 1)
    n_lines = _K_LINES_PER_CONTINUUM * excess**1.67 * (_HIGHEST_KEV / tube_voltage_kv) ** 2
    photons = continuum / continuum.sum() + n_lines * lines / lines.sum()
    return Spectrum(energies, photons / photons.sum())


def attenuation_per_mm(material: str, energies_kev: torch.Tensor | float) -> torch.Tensor:
    """Attenuation of a material at its usual density, from the tables of NIST.

    Parameters
    ----------
    material
        A key of ``DENSITIES_G_PER_CM3``.
    energies_kev
        Any shape, in keV, within 20 to 120; between the tabulated integers the logarithm is interpolated linearly.

    Returns
    -------
    torch.Tensor
        Float64, the shape of the energies, in 1/mm.

    Raises
    ------
    ValueError
        If the material is unknown or an energy is outside the tables.

    Examples
    --------
    >>> round(float(attenuation_per_mm("water", 70.0)), 5)
    0.01929
    """
    if material not in DENSITIES_G_PER_CM3:
        raise ValueError(f"material is {material!r}; expected one of {tuple(DENSITIES_G_PER_CM3)}.")
    energies = torch.as_tensor(energies_kev, dtype=torch.float64)
    _check_energies(energies)
    table = _tables()
    logarithm = np.interp(energies.numpy(), table["energy_kev"], np.log(table[material]))
    return torch.as_tensor(np.exp(logarithm)) * DENSITIES_G_PER_CM3[material] / 10


def effective_attenuation(spectrum: Spectrum, material: str, thickness_mm: float = 0.0) -> float:
    """Attenuation −log(I/I0)/L that a detector which counts photons sees behind a thickness L of a material.

    Parameters
    ----------
    spectrum
        The photons in front of the material.
    material
        A key of ``DENSITIES_G_PER_CM3``.
    thickness_mm
        L; 0 for the limit of thin layers, which is the mean attenuation.

    Returns
    -------
    float
        In 1/mm; it falls as L grows, which is beam hardening.

    Raises
    ------
    ValueError
        If the material is unknown or the thickness is negative.
    """
    if thickness_mm < 0:
        raise ValueError(f"thickness_mm is {thickness_mm:g}; expected at least 0.")
    attenuation = attenuation_per_mm(material, spectrum.energies_kev)
    if thickness_mm == 0:
        return float((spectrum.fractions * attenuation).sum())
    return -math.log(float((spectrum.fractions * torch.exp(-attenuation * thickness_mm)).sum())) / thickness_mm


def water_correction(spectrum: Spectrum, reference_kev: float = REFERENCE_KEV) -> tuple[float, float, float]:
    """Polynomial a p + b p² + c p³ that turns line integrals of water into those at one energy.

    p = −log(I/I0) of 0, 0.5, …, 500 mm of water under the spectrum is fitted, by least squares without a constant, to
    mu_water(reference_kev)·L. Both sides are dimensionless. What a cubic cannot follow is left: up to 0.013, most in
    thin layers.

    Parameters
    ----------
    spectrum
        The photons in front of the object.
    reference_kev
        Energy the corrected line integrals refer to, in keV.

    Returns
    -------
    a, b, c
        Coefficients, dimensionless.

    Notes
    -----
    For the GE 120 kVp spectrum of the SynDeepLesion simulations this gives their published 0.80370341, 0.02301414 and
    −0.0008444.
    """
    n_steps = round(_LARGEST_WATER_MM / _WATER_STEP_MM)
    thickness = _WATER_STEP_MM * torch.arange(n_steps + 1, dtype=torch.float64)
    attenuation = attenuation_per_mm("water", spectrum.energies_kev)
    p = -torch.log(torch.exp(-thickness[:, None] * attenuation) @ spectrum.fractions)
    wanted = thickness * attenuation_per_mm("water", reference_kev)
    a, b, c = torch.linalg.lstsq(torch.stack((p, p**2, p**3), dim=1), wanted[:, None]).solution[:, 0].tolist()
    return a, b, c


@functools.cache
def _tables() -> dict[str, np.ndarray]:
    """Energy in keV and mass attenuation in cm²/g by column of the data file."""
    text = resources.files("ctrecon").joinpath("data", "mass_attenuation.csv").read_text()
    names, *rows = (line.split(",") for line in text.splitlines())
    columns = np.array(rows, dtype=np.float64).T
    return dict(zip(names, columns, strict=True))


def _check_energies(energies_kev: torch.Tensor) -> None:
    if energies_kev.numel() and not bool(((energies_kev >= _LOWEST_KEV) & (energies_kev <= _HIGHEST_KEV)).all()):
        raise ValueError(
            f"Energies reach from {energies_kev.min().item():g} to {energies_kev.max().item():g} keV; the attenuation "
            f"tables hold {_LOWEST_KEV} to {_HIGHEST_KEV} keV."
        )
