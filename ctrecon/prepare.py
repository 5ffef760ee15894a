"""What is found out about a sinogram before it is reconstructed."""

import torch

from ctrecon.sinogram import Sinogram
from operators.decision import Decision
from operators.errors import InputError

_MEDIAN_TO_STD = 1.482602218505602  # of the absolute deviation of a normal distribution
_N_GROUPS = 16


def noise_std(sinogram: Sinogram, weights: torch.Tensor | None = None) -> tuple[float, Decision]:
    """Root mean square of the noise of the line integrals.

    Second differences along the detector cancel what varies smoothly; their median absolute deviation, over
    √(1 + 4 + 1), is robust against the edges of the object. The noise grows with the attenuation, so that this is done
    in groups of similar line integrals, and the mean square over the groups is taken. Rays of weight 0 are left out.

    Parameters
    ----------
    sinogram
        The scan.
    weights
        Statistical weights that the noise is scaled with, real like the data; ``None`` for none.

    Returns
    -------
    noise_std
        Dimensionless, like the line integrals.
    decision
        The value and how it was found.

    Raises
    ------
    InputError
        If there are fewer than three detector bins.
    """
    data = sinogram.data.to(torch.float64)
    if data.shape[-1] < 3:
        raise InputError(f"The sinogram has {data.shape[-1]} detector bins; at least 3 are needed to find its noise.")
    second = data[..., 2:] - 2 * data[..., 1:-1] + data[..., :-2]
    second = (second if weights is None else second * weights[..., 1:-1].sqrt()).flatten()
    # The mean of three is independent of their second difference where the noise is white, so grouping does not bias.
    level = (data[..., 2:] + data[..., 1:-1] + data[..., :-2]).flatten()
    if sinogram.weights is not None:
        known = sinogram.weights > 0
        measured = (known[..., 2:] & known[..., 1:-1] & known[..., :-2]).flatten()
        second, level = second[measured], level[measured]
    groups = second[level.argsort()].tensor_split(_N_GROUPS) if len(second) else ()
    spreads = [(group - group.median()).abs().median() for group in groups if len(group)]
    power = torch.stack(spreads).square().mean() if spreads else torch.zeros(())
    std = float(power.sqrt()) * _MEDIAN_TO_STD / 6**0.5
    return std, Decision("noise_std", f"{std:.3g}", "it is what second differences along the detector show")
