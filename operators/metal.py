"""Metal in a scan: which rays it corrupts, the data operator without them, and interpolation across them."""

import torch

from operators.elementary import Diagonal
from operators.linear_operator import LinearOperator
from operators.space import Space


class MetalTrace(Diagonal):
    """Leave the rays through metal out, and weight the others: W y = (1 − trace) ⊙ √weights ⊙ y.

    ``W @ A`` is the data operator of ‖W(A x − y)‖²; apply W to the data as well.

    Parameters
    ----------
    trace
        1 = corrupted, 0 = not, bool or numeric; ``(*batch, view, detector)``, or what broadcasts to that.
    domain
        Space of the sinogram, real ``(view, detector)``.
    weights
        Statistical weights of the line integrals, such as photon counts, real and not negative, of a shape that
        broadcasts to the trace's; by default 1.

    Raises
    ------
    ValueError
        If the trace holds anything but 0 and 1, a weight is negative, or a shape does not broadcast.

    Examples
    --------
    >>> trace = torch.tensor([[0.0, 1.0, 0.0]])
    >>> MetalTrace(trace, Space((1, 3), "real"))(torch.tensor([[2.0, 3.0, 4.0]]))
    tensor([[2., 0., 4.]])
    """

    def __init__(self, trace: torch.Tensor, domain: Space, weights: torch.Tensor | None = None) -> None:
        keep = 1 - _checked_trace(trace)
        if weights is not None:
            if bool((weights < 0).any()):
                raise ValueError(f"weights go down to {float(weights.min()):g}; expected no negative ones.")
            keep = keep * weights.sqrt()
        super().__init__(keep, domain)


def metal_trace(mask: torch.Tensor, projection: LinearOperator, *, threshold_mm: float = 1e-3) -> torch.Tensor:
    """Find the rays that metal corrupts.

    Parameters
    ----------
    mask
        Metal in the image, 1 = metal, 0 = not, bool or numeric, ``(*batch, y, x)``; or between, the part of a pixel.
    projection
        Line integrals, real image ``(y, x)`` to sinogram ``(view, detector)``, lengths in mm.
    threshold_mm
        A ray is corrupted where its path through metal is longer, in mm; the default only guards against rounding.

    Returns
    -------
    torch.Tensor
        1 = corrupted, 0 = not, real ``(*batch, view, detector)``, of the mask's precision where it has one.

    Raises
    ------
    TypeError, ValueError
        If the mask does not fit the projection.
    """
    mask = mask if mask.is_floating_point() else mask.to(torch.get_default_dtype())
    with torch.no_grad():
        return (projection(mask) > threshold_mm).to(mask.dtype)


def masked(projection: LinearOperator, trace: torch.Tensor, weights: torch.Tensor | None = None) -> LinearOperator:
    """Data operator without the rays through metal, ``MetalTrace(trace, …, weights) @ projection``.

    Parameters
    ----------
    projection
        Image to sinogram ``(view, detector)``.
    trace, weights
        As for `MetalTrace`; apply that to the data as well where there are weights.

    Returns
    -------
    LinearOperator
        With its exact adjoint.

    Raises
    ------
    ValueError
        As for `MetalTrace`.
    """
    return MetalTrace(trace, projection.codomain, weights) @ projection


def interpolate_trace(sinogram: torch.Tensor, trace: torch.Tensor) -> torch.Tensor:
    """Replace what metal corrupted by interpolating linearly along the detector, view by view.

    Parameters
    ----------
    sinogram
        Line integrals, real ``(*batch, view, detector)``, dimensionless.
    trace
        1 = corrupted, 0 = not, bool or numeric, of a shape that broadcasts to the sinogram's.

    Returns
    -------
    torch.Tensor
        Of the sinogram's shape, equal to it outside the trace. A trace that touches the end of the detector takes the
        nearest value that is left.

    Raises
    ------
    TypeError
        If the sinogram is no real floating-point tensor.
    ValueError
        If the shapes do not broadcast, the trace holds anything but 0 and 1, or it covers a whole view.

    References
    ----------
    Kalender, Hebel and Ebersberger, Reduction of CT artifacts caused by metallic implants, 1987.
    """
    if not sinogram.is_floating_point():
        raise TypeError(f"sinogram is {sinogram.dtype}; expected a real floating-point tensor.")
    try:
        corrupted = _checked_trace(trace).to(torch.bool).expand(sinogram.shape)
    except RuntimeError:
        raise ValueError(
            f"trace has shape {tuple(trace.shape)}, which does not broadcast to the sinogram's {tuple(sinogram.shape)}."
        ) from None
    if bool(corrupted.all(dim=-1).any()):
        raise ValueError("trace covers a whole view, which leaves nothing to interpolate from; leave that view out.")
    n = sinogram.shape[-1]
    bins = torch.arange(n, device=sinogram.device)
    # The nearest bins that are left, on either side; where a side has none, both are the one of the other side.
    left = torch.where(corrupted, -1, bins).cummax(dim=-1).values
    right = torch.where(corrupted, n, bins).flip(-1).cummin(dim=-1).values.flip(-1)
    left, right = torch.where(left < 0, right, left), torch.where(right == n, left, right)
    fraction = (bins - left).to(sinogram.dtype) / (right - left).clamp_min(1)
    start, end = sinogram.gather(-1, left), sinogram.gather(-1, right)
    return torch.where(corrupted, torch.lerp(start, end, fraction), sinogram)


def _checked_trace(trace: torch.Tensor) -> torch.Tensor:
    trace = trace if trace.is_floating_point() else trace.to(torch.get_default_dtype())
    if not bool(((trace == 0) | (trace == 1)).all()):
        raise ValueError("trace holds values other than 0 and 1; expected 1 where metal corrupts the ray, else 0.")
    return trace
