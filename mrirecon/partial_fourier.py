"""Images from k-space that was measured on one side of the centre only, assuming that their phase varies slowly."""

from dataclasses import dataclass

import torch

from operators.fourier import Fourier


def is_partial_fourier(mask: torch.Tensor, n_dims: int = 2) -> tuple[int, float] | None:
    """Find out whether one side of k-space was left out.

    A dimension is partial where the measured range reaches clearly farther to one side of the centre n//2 than to the
    other: by more than 3 % of the grid and more than the largest step between measured lines, so that regular
    undersampling is not mistaken for it. Zero filling on both sides is not partial either.

    Parameters
    ----------
    mask
        1 = measured, ``(…, [kz,] ky, kx)``; dimensions of size 1 stand for all entries.
    n_dims
        Number of k-space dimensions.

    Returns
    -------
    tuple of int and float, or None
        The dimension (negative index) with the greatest asymmetry and the measured fraction of the range that is
        symmetric about the centre, above 0.5; ``None`` where no dimension is partial.

    Examples
    --------
    >>> mask = torch.ones(64, 1)
    >>> mask[40:] = 0
    >>> is_partial_fourier(mask)
    (-2, 0.625)
    """
    dims = range(-min(n_dims, mask.ndim), 0)
    found = {d: extent for d in dims if (extent := _extent(mask, d)).asymmetric}
    if not found:
        return None
    dim = min(found, key=lambda d: found[d].fraction)
    return dim, found[dim].fraction


def pocs(kspace_data: torch.Tensor, mask: torch.Tensor, *, n_iterations: int = 20, n_dims: int = 2) -> torch.Tensor:
    """Image from partial k-space by projection onto convex sets.

    Alternates between the set of images with the phase of the symmetrically measured centre and the set of images that
    agree with the measured samples; it ends with the second. Every coil has its own phase. Complete k-space gives the
    plain inverse transform.

    Parameters
    ----------
    kspace_data
        Complex ``(*batch, [kz,] ky, kx)``, coils among the batch, zero where nothing was measured.
    mask
        1 = measured; broadcasts to ``kspace_data``; which side is missing is found from it, over the whole batch.
    n_iterations
        Number of pairs of projections.
    n_dims
        Number of k-space dimensions.

    Returns
    -------
    torch.Tensor
        Complex image, like ``kspace_data``; its transform agrees with the data wherever they were measured.

    Raises
    ------
    TypeError
        If the data are not complex.
    ValueError
        If the mask does not broadcast to the data.

    References
    ----------
    Haacke, Lindskog and Lin, A fast, iterative, partial-Fourier technique capable of local phase recovery, J. Magn.
    Reson. 92 (1991) 126–145; the tapered low-resolution phase is as in Noll et al. (see ``homodyne``).
    """
    fourier = _fourier_for(kspace_data, mask, n_dims)
    measured = mask.to(kspace_data.dtype.to_real())
    image = fourier.adjoint(measured * kspace_data)
    if is_partial_fourier(mask, n_dims) is None:
        return image
    phase = _low_resolution_phase(kspace_data, mask, fourier)
    for _ in range(n_iterations):
        model = fourier(image.abs() * phase)
        image = fourier.adjoint(model + measured * (kspace_data - model))
    return image


def homodyne(kspace_data: torch.Tensor, mask: torch.Tensor, *, n_dims: int = 2) -> torch.Tensor:
    """Image from partial k-space by homodyne detection.

    Lines without a measured counterpart on the other side are counted twice, with a linear ramp from 0 over 1 to 2
    across the symmetrically measured centre. In the image so weighted, the part in phase with the low-resolution image
    is the one sought; the part in quadrature is dropped. It works along the one dimension that
    ``is_partial_fourier`` names. Complete k-space gives the plain inverse transform.

    Parameters
    ----------
    kspace_data
        Complex ``(*batch, [kz,] ky, kx)``, coils among the batch, zero where nothing was measured.
    mask
        1 = measured; broadcasts to ``kspace_data``; which side is missing is found from it, over the whole batch.
    n_dims
        Number of k-space dimensions.

    Returns
    -------
    torch.Tensor
        Complex image, like ``kspace_data``: a real image, which may be negative in places, times the low-resolution
        phase.

    Raises
    ------
    TypeError
        If the data are not complex.
    ValueError
        If the mask does not broadcast to the data.

    References
    ----------
    Noll, Nishimura and Macovski, Homodyne detection in magnetic resonance imaging, IEEE Trans. Med. Imaging 10 (1991)
    154–163, with the linear ramp as the weighting; the phase is put back here, which the paper leaves out.
    """
    fourier = _fourier_for(kspace_data, mask, n_dims)
    samples = mask.to(kspace_data.dtype.to_real()) * kspace_data
    partial = is_partial_fourier(mask, n_dims)
    if partial is None:
        return fourier.adjoint(samples)
    phase = _low_resolution_phase(kspace_data, mask, fourier)
    weights = _homodyne_weights(_extent(mask, partial[0])).to(samples.real)
    weighted = fourier.adjoint(samples * weights.reshape(-1, *(1,) * (-partial[0] - 1)))
    return (weighted * phase.conj()).real * phase


@dataclass(frozen=True, slots=True)
class _Extent:
    """Which lines 0 … n − 1 of a dimension were measured: the first, the last, and the largest step between them."""

    n: int
    first: int
    last: int
    step: int

    @property
    def before(self) -> int:
        """Number of lines in front of the centre line, down to the first."""
        return self.n // 2 - self.first

    @property
    def after(self) -> int:
        """Number of lines behind the centre line, up to the last."""
        return self.last - self.n // 2

    @property
    def asymmetric(self) -> bool:
        """Whether one side was left out."""
        if min(self.before, self.after) < 0:
            return False
        # An even grid has one line more in front of the centre.
        difference = abs(self.before - self.after)
        return difference > 1 + max(self.step - 1, 0.03 * self.n)

    @property
    def fraction(self) -> float:
        """Measured range by the symmetric one."""
        whole = max(2 * self.before, 2 * (self.after + 1)) if self.n % 2 == 0 else 2 * max(self.before, self.after) + 1
        return (self.last - self.first + 1) / whole


def _extent(mask: torch.Tensor, dim: int) -> _Extent:
    lines = (mask.movedim(dim, 0).reshape(mask.shape[dim], -1) != 0).any(dim=1).nonzero().flatten()
    n = mask.shape[dim]
    if n == 1 or len(lines) == 0:
        return _Extent(1, 0, 0, 1)
    step = int(lines.diff().max()) if len(lines) > 1 else n
    return _Extent(n, int(lines[0]), int(lines[-1]), step)


def _fourier_for(kspace_data: torch.Tensor, mask: torch.Tensor, n_dims: int) -> Fourier:
    if not kspace_data.is_complex():
        raise TypeError(f"kspace_data is {kspace_data.dtype}; expected a complex tensor.")
    try:
        fits = torch.broadcast_shapes(mask.shape, kspace_data.shape) == kspace_data.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, which does not broadcast to kspace_data {tuple(kspace_data.shape)}."
        )
    return Fourier(kspace_data.shape[-n_dims:], n_dims).to(kspace_data.device)


def _low_resolution_phase(kspace_data: torch.Tensor, mask: torch.Tensor, fourier: Fourier) -> torch.Tensor:
    """Unit phase factors of the image from the symmetrically measured centre, tapered so that it does not ring."""
    centre = kspace_data * mask.to(kspace_data.dtype.to_real())
    for dim in fourier.dims[-mask.ndim :]:
        extent = _extent(mask, dim)
        if extent.asymmetric:
            half_width = min(extent.before, extent.after)
            offset = torch.arange(extent.n, device=centre.device, dtype=centre.dtype.to_real()) - extent.n // 2
            taper = torch.cos(offset * torch.pi / (2 * half_width + 2)).square() * (offset.abs() <= half_width)
            centre = centre * taper.reshape(-1, *(1,) * (-dim - 1))
    return torch.exp(1j * fourier.adjoint(centre).angle())


def _homodyne_weights(extent: _Extent) -> torch.Tensor:
    """0 on the missing side, a ramp through 1 at the centre, 2 on the measured side, ``(line,)``."""
    half_width = min(extent.before, extent.after)
    ramp = (torch.arange(extent.n, dtype=torch.float64) - extent.n // 2) / (half_width + 1)
    return 1 + (ramp if extent.after > extent.before else -ramp).clamp(-1, 1)
