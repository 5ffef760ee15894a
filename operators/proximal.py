"""Proximal maps and projections with thresholds that may be maps; all are differentiable and finite at zero."""

from collections.abc import Sequence
from typing import Any

import torch


def soft_threshold(x: torch.Tensor, threshold: float | torch.Tensor) -> torch.Tensor:
    """Shrink real entries towards zero: argmin_u ½‖u − x‖² + Σ t·|u|, which is sign(x)·max(|x| − t, 0).

    Parameters
    ----------
    x
        Real, any shape.
    threshold
        t, in the units of x; a number, or a real tensor that broadcasts against x.

    Returns
    -------
    torch.Tensor
        The shape of x and threshold broadcast. Entries with |x| ≤ t are exactly zero, and so is their derivative.

    Raises
    ------
    TypeError
        If x or the threshold is complex.
    ValueError
        If a threshold is negative or NaN.

    Examples
    --------
    >>> soft_threshold(torch.tensor([-3.0, 0.5, 2.0]), 1.0)
    tensor([-2.,  0.,  1.])
    """
    if x.is_complex():
        raise TypeError(
            f"soft_threshold got {x.dtype}; for complex tensors choose complex_soft_threshold, which shrinks the "
            "magnitude, or separable_soft_threshold, which shrinks real and imaginary part separately."
        )
    _check_not_negative(threshold, "threshold")
    return x - x.clamp(-threshold, threshold)  # type: ignore[arg-type]  # the stubs know no union


def complex_soft_threshold(x: torch.Tensor, threshold: float | torch.Tensor) -> torch.Tensor:
    """Shrink magnitudes and keep phases: argmin_u ½‖u − x‖² + Σ t·|u|, which is x·max(1 − t/|x|, 0).

    Parameters
    ----------
    x
        Complex, any shape; real tensors are shrunk as by `soft_threshold`.
    threshold
        t, in the units of x; a number, or a real tensor that broadcasts against x.

    Returns
    -------
    torch.Tensor
        The shape of x and threshold broadcast. Entries with |x| ≤ t are exactly zero, and so is their derivative.

    Raises
    ------
    TypeError
        If the threshold is complex.
    ValueError
        If a threshold is negative or NaN.
    """
    _check_not_negative(threshold, "threshold")
    return x * _shrinkage(x.abs(), threshold)


def separable_soft_threshold(x: torch.Tensor, threshold: float | torch.Tensor) -> torch.Tensor:
    """Shrink real and imaginary part separately: argmin_u ½‖u − x‖² + Σ t·(|Re u| + |Im u|).

    Parameters
    ----------
    x
        Complex, any shape; real tensors are shrunk as by `soft_threshold`.
    threshold
        t, in the units of x, the same for both parts; a number, or a real tensor that broadcasts against x.

    Returns
    -------
    torch.Tensor
        The shape of x and threshold broadcast.

    Raises
    ------
    TypeError
        If the threshold is complex.
    ValueError
        If a threshold is negative or NaN.

    References
    ----------
    Schulz et al., Learning spatially adaptive sparsity level maps for arbitrary convolutional dictionaries, 2026,
    which shares one map between both parts.
    """
    if not x.is_complex():
        return soft_threshold(x, threshold)
    return torch.complex(soft_threshold(x.real, threshold), soft_threshold(x.imag, threshold))


def group_soft_threshold(x: torch.Tensor, threshold: float | torch.Tensor, dim: int | Sequence[int]) -> torch.Tensor:
    """Shrink the length of groups: argmin_u ½‖u − x‖² + Σ t·‖u_group‖₂, which is x·max(1 − t/‖x_group‖₂, 0).

    Parameters
    ----------
    x
        Real or complex, any shape.
    threshold
        t, in the units of x; a number, or a real tensor that broadcasts against x with size 1 along ``dim``.
    dim
        The dimension or dimensions that run through a group.

    Returns
    -------
    torch.Tensor
        The shape of x and threshold broadcast. Groups with ‖x_group‖₂ ≤ t are exactly zero, and so is their derivative.

    Raises
    ------
    TypeError
        If the threshold is complex.
    ValueError
        If a threshold is negative or NaN, or varies along ``dim``.
    """
    dims = _negative_dims(x, dim)
    _check_not_negative(threshold, "threshold")
    _check_constant_along(threshold, dims, "threshold")
    return x * _shrinkage(_length(x, dims), threshold)


def project_dual_ball(y: torch.Tensor, radius: float | torch.Tensor, dim: int | Sequence[int]) -> torch.Tensor:
    """Project groups onto balls: argmin_u ½‖u − y‖² subject to ‖u_group‖₂ ≤ r, which is y/max(1, ‖y_group‖₂/r).

    This is the proximal map of the convex conjugate of Σ r·‖·‖₂, for every step: with ``dim`` the direction of finite
    differences, that of isotropic total variation.

    Parameters
    ----------
    y
        Real or complex, any shape.
    radius
        r, in the units of y; a number, or a real tensor that broadcasts against y with size 1 along ``dim``.
    dim
        The dimension or dimensions that run through a group.

    Returns
    -------
    torch.Tensor
        The shape of y and radius broadcast.

    Raises
    ------
    TypeError
        If the radius is complex.
    ValueError
        If a radius is negative or NaN, or varies along ``dim``.
    """
    dims = _negative_dims(y, dim)
    _check_not_negative(radius, "radius")
    _check_constant_along(radius, dims, "radius")
    length = _length(y, dims)
    outside = length > radius
    level = torch.as_tensor(radius, dtype=length.dtype, device=length.device)
    return y * torch.where(outside, level / torch.where(outside, length, 1.0), 1.0)


def singular_value_shrinkage(x: torch.Tensor, threshold: float | torch.Tensor) -> torch.Tensor:
    """Shrink the singular values of matrices: argmin_u ½‖u − x‖² + t·‖u‖_*, with the nuclear norm ‖u‖_* = Σ σ_i(u).

    The derivative is the map's own, not that of the decomposition: it is exact and finite also where singular values
    are zero or coincide. First derivatives only.

    Parameters
    ----------
    x
        Real or complex, ``(*batch, row, column)``.
    threshold
        t, in the units of x; a number, or a real tensor that broadcasts against x with trailing sizes (1, 1).

    Returns
    -------
    torch.Tensor
        The shape of x and threshold broadcast.

    Raises
    ------
    TypeError
        If the threshold is complex.
    ValueError
        If a threshold is negative or NaN, or varies within a matrix, or x has fewer than two dimensions.
    RuntimeError
        In a backward pass with ``create_graph=True``, because there are no second derivatives.

    References
    ----------
    Cai, Candès and Shen, A singular value thresholding algorithm for matrix completion, 2010, theorem 2.1.
    Lewis and Sendov, Nonsmooth analysis of singular values II, 2005, for the derivative.
    """
    if x.ndim < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected at least two dimensions, row and column.")
    _check_not_negative(threshold, "threshold")
    _check_constant_along(threshold, (-2, -1), "threshold")
    level = torch.as_tensor(threshold, dtype=x.dtype.to_real(), device=x.device)
    level = level.reshape(*(1,) * (2 - level.ndim), *level.shape)
    batch = torch.broadcast_shapes(x.shape[:-2], level.shape[:-2])
    result: torch.Tensor = _SingularValueShrinkage.apply(
        x.expand(*batch, *x.shape[-2:]), level.expand(*batch, 1, 1).squeeze(-1)
    )
    return result


def project_box(x: torch.Tensor, lower: float | torch.Tensor, upper: float | torch.Tensor) -> torch.Tensor:
    """Project onto a box: argmin_u ½‖u − x‖² subject to lower ≤ u ≤ upper.

    Parameters
    ----------
    x
        Real, any shape.
    lower, upper
        Bounds in the units of x; numbers, or real tensors that broadcast against x. Infinite ones bound nothing.

    Returns
    -------
    torch.Tensor
        The shape of x and the bounds broadcast.

    Raises
    ------
    TypeError
        If x is complex.
    ValueError
        If a lower bound exceeds the upper one, or a bound is NaN.
    """
    _check_real(x, "project_box")
    low, high = (b if isinstance(b, torch.Tensor) else x.new_tensor(b) for b in (lower, upper))
    if not bool((low <= high).all()):
        raise ValueError("Some lower bound exceeds the upper one, or a bound is NaN; expected lower <= upper.")
    return x.clamp(min=low, max=high)


def project_nonnegative(x: torch.Tensor) -> torch.Tensor:
    """Project onto the non-negative numbers: argmin_u ½‖u − x‖² subject to u ≥ 0, which is max(x, 0).

    Parameters
    ----------
    x
        Real, any shape.

    Returns
    -------
    torch.Tensor
        Shape of x.

    Raises
    ------
    TypeError
        If x is complex.
    """
    _check_real(x, "project_nonnegative")
    return x.clamp_min(0)


class _SingularValueShrinkage(torch.autograd.Function):
    """U·max(σ − t, 0)·Vᴴ. Its derivative is self-adjoint (it is a proximal map) and has only divided differences.

    With M = Uᴴ G V it is U (Γ⁺ ∘ (M + Mᴴ)/2 + Γ⁻ ∘ (M − Mᴴ)/2) Vᴴ, with Γ± = (f_i ∓ f_j)/(σ_i ∓ σ_j) for the
    shrunk values f, plus, for what of G lies outside the span of U or V, a factor f_i/σ_i.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        ctx.save_for_backward(u, s, vh, threshold)
        return (u * (s - threshold).clamp_min(0).unsqueeze(-2)) @ vh

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "singular_value_shrinkage gives first derivatives only, but the backward pass ran with "
                "create_graph=True; run it without."
            )
        u, s, vh, threshold = ctx.saved_tensors
        gradient = gradients[0]
        kept = s > threshold
        shrunk = torch.where(kept, s - threshold, 0.0)
        ratio = torch.where(kept, shrunk / torch.where(kept, s, 1.0), 0.0)

        projected = u.mH @ gradient @ vh.mH
        even, odd = (projected + projected.mH) / 2, (projected - projected.mH) / 2
        inside = _divided_difference(s, shrunk, kept) * even + _divided_sum(s, shrunk, kept) * odd
        beyond_rows = (gradient @ vh.mH - u @ projected) * ratio.unsqueeze(-2)
        beyond_columns = ratio.unsqueeze(-1) * (u.mH @ gradient - projected @ vh)
        gradient_x = (u @ inside + beyond_rows) @ vh + u @ beyond_columns

        diagonal = projected.diagonal(dim1=-2, dim2=-1).real
        gradient_threshold = -torch.where(kept, diagonal, 0.0).sum(dim=-1, keepdim=True)
        return gradient_x, gradient_threshold


def _divided_difference(s: torch.Tensor, shrunk: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    mixed = kept.unsqueeze(-1) ^ kept.unsqueeze(-2)
    both = kept.unsqueeze(-1) & kept.unsqueeze(-2)
    gap = torch.where(mixed, s.unsqueeze(-1) - s.unsqueeze(-2), 1.0)
    return torch.where(mixed, (shrunk.unsqueeze(-1) - shrunk.unsqueeze(-2)) / gap, both.to(s.dtype))


def _divided_sum(s: torch.Tensor, shrunk: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    some = kept.unsqueeze(-1) | kept.unsqueeze(-2)
    return torch.where(
        some,
        (shrunk.unsqueeze(-1) + shrunk.unsqueeze(-2)) / torch.where(some, s.unsqueeze(-1) + s.unsqueeze(-2), 1.0),
        0.0,
    )


def _length(x: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    # As torch.linalg.vector_norm, which takes many times longer along dimensions that are not the last ones.
    squared = x.real.square() + x.imag.square() if x.is_complex() else x.square()
    squared = squared.sum(dim=dims, keepdim=True)
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)


def _shrinkage(length: torch.Tensor, threshold: float | torch.Tensor) -> torch.Tensor:
    # Chosen before the division, so that no derivative passes through 1/0.
    kept = length > threshold
    return torch.where(kept, (length - threshold) / torch.where(kept, length, 1.0), 0.0)


def _negative_dims(x: torch.Tensor, dim: int | Sequence[int]) -> tuple[int, ...]:
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    if not dims or any(not -x.ndim <= d < x.ndim for d in dims):
        raise ValueError(f"dim is {dim}; expected dimensions of a tensor of shape {tuple(x.shape)}.")
    return tuple(d if d < 0 else d - x.ndim for d in dims)


def _check_not_negative(level: float | torch.Tensor, name: str) -> None:
    if isinstance(level, torch.Tensor):
        if level.is_complex():
            raise TypeError(f"{name} is {level.dtype}; expected a real tensor or a number.")
        valid = bool((level >= 0).all())
    else:
        valid = level >= 0
    if not valid:
        shown = "a tensor with negative or NaN entries" if isinstance(level, torch.Tensor) else level
        raise ValueError(f"{name} is {shown}; expected values that are not negative.")


def _check_constant_along(level: float | torch.Tensor, dims: Sequence[int], name: str) -> None:
    if isinstance(level, torch.Tensor) and any(level.ndim >= -d and level.shape[d] != 1 for d in dims):
        raise ValueError(f"{name} has shape {tuple(level.shape)}; expected size 1 along the dimensions {tuple(dims)}.")


def _check_real(x: torch.Tensor, name: str) -> None:
    if x.is_complex():
        raise TypeError(f"{name} got {x.dtype}; expected a real tensor, take the part that is meant first.")
