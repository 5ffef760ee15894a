"""Which samples of the Cartesian grid are measured: boxes, lines and partial Fourier."""

from collections.abc import Sequence

import torch

from operators.elementary import centred_window


def box_mask(shape: Sequence[int], kept: Sequence[int]) -> torch.Tensor:
    """Keep a central box of k-space: low resolution, the usual compromise at low field.

    Parameters
    ----------
    shape
        Size of the k-space grid, ``([kz,] ky, kx)``.
    kept
        Size of the box, one entry per dimension, centred on the origin n//2.

    Returns
    -------
    torch.Tensor
        Float32 ``shape``, 1 = measured.

    Raises
    ------
    ValueError
        If the box is larger than the grid, empty or of another dimension.

    Examples
    --------
    >>> int(box_mask((8, 8), (4, 6)).sum())
    24
    """
    if len(kept) != len(shape) or any(not 1 <= k <= n for k, n in zip(kept, shape, strict=True)):
        raise ValueError(f"A box of {tuple(kept)} does not fit a k-space of {tuple(shape)}; give 1 to n per dimension.")
    mask = torch.zeros(tuple(shape))
    index: tuple[slice, ...] = centred_window(kept, shape)
    mask[index] = 1
    return mask


def line_mask(
    shape: Sequence[int], acceleration: float, n_centre: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Keep whole readout lines: a fully sampled centre and random phase encodes, denser towards the centre.

    Parameters
    ----------
    shape
        Size of the k-space grid, ``([kz,] ky, kx)``; lines run along kx and are drawn along ky.
    acceleration
        n_ky divided by the number of lines kept, at least 1.
    n_centre
        Number of adjacent central lines that are always kept.
    generator
        Source of randomness; ``None`` spaces the outer lines regularly instead.

    Returns
    -------
    torch.Tensor
        Float32 ``(ky, 1)``, 1 = measured; it broadcasts over kx.

    Raises
    ------
    ValueError
        If the acceleration is below 1, or the centre has more lines than are kept.
    """
    n_lines = shape[-2]
    n_kept = round(n_lines / acceleration) if acceleration >= 1 else 0
    if not 1 <= n_centre <= n_kept:
        raise ValueError(
            f"Acceleration {acceleration} with {n_centre} central lines is impossible for {n_lines} lines; "
            f"the acceleration must be at least 1 and keep at least the centre."
        )
    mask = torch.zeros(n_lines, 1)
    mask[centred_window((n_centre,), (n_lines,))] = 1
    outer = torch.nonzero(mask[:, 0] == 0)[:, 0]
    n_outer = n_kept - n_centre
    if n_outer and generator is None:
        chosen = outer[(torch.arange(n_outer) * len(outer)) // n_outer]
        mask[chosen] = 1
    elif n_outer:
        distance = (outer - n_lines // 2).abs() / (n_lines / 2)
        mask[outer[torch.multinomial((1 - 0.9 * distance) ** 2, n_outer, generator=generator)]] = 1
    return mask


def partial_fourier_mask(shape: Sequence[int], fraction: float) -> torch.Tensor:
    """Leave out the last phase-encoding lines of one side.

    Parameters
    ----------
    shape
        Size of the k-space grid, ``([kz,] ky, kx)``.
    fraction
        Fraction of the lines that are kept, above one half and at most 1.

    Returns
    -------
    torch.Tensor
        Float32 ``(ky, 1)``, 1 = measured.

    Raises
    ------
    ValueError
        If the fraction is out of range.
    """
    if not 0.5 < fraction <= 1:
        raise ValueError(f"The partial Fourier fraction is {fraction}; it must lie above 0.5 and not above 1.")
    mask = torch.zeros(shape[-2], 1)
    mask[: round(shape[-2] * fraction)] = 1
    return mask
