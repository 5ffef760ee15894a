"""Attenuation and Hounsfield units; the only place where one becomes the other."""

import torch

MU_WATER_PER_MM = 0.0192
"""Attenuation of water, in 1/mm, where a scan does not carry its own: the value of the metal artefact literature."""


def to_hu(mu_per_mm: torch.Tensor, mu_water_per_mm: float) -> torch.Tensor:
    """Hounsfield units 1000 · (mu − mu_water)/mu_water.

    Parameters
    ----------
    mu_per_mm
        Attenuation, real, any shape, in 1/mm.
    mu_water_per_mm
        Attenuation of water that belongs to the scan, in 1/mm.

    Returns
    -------
    torch.Tensor
        HU, same shape.

    Raises
    ------
    ValueError
        If the attenuation of water is no plausible number of 1/mm.

    Examples
    --------
    >>> to_hu(torch.tensor([0.0, 0.02, 0.04]), 0.02).tolist()
    [-1000.0, 0.0, 1000.0]
    """
    return 1000 * (mu_per_mm / check_mu_water(mu_water_per_mm) - 1)


def to_mu(hu: torch.Tensor, mu_water_per_mm: float) -> torch.Tensor:
    """Attenuation mu_water · (1 + HU/1000).

    Parameters
    ----------
    hu
        Hounsfield units, real, any shape.
    mu_water_per_mm
        Attenuation of water that belongs to the scan, in 1/mm.

    Returns
    -------
    torch.Tensor
        Attenuation in 1/mm, same shape.

    Raises
    ------
    ValueError
        If the attenuation of water is no plausible number of 1/mm.
    """
    return check_mu_water(mu_water_per_mm) * (1 + hu / 1000)


def check_mu_water(mu_water_per_mm: float) -> float:
    """Return the attenuation of water, or say why it cannot be one.

    Raises
    ------
    ValueError
        If it is not between 0.005 and 0.1 per mm, which X-rays of 15 keV to several MeV cover; 0.19 is in 1/cm.
    """
    if not 0.005 <= mu_water_per_mm <= 0.1:
        raise ValueError(
            f"mu_water is {mu_water_per_mm:g} per mm; expected about 0.02. A value near 0.2 is per cm: divide it by 10."
        )
    return mu_water_per_mm
