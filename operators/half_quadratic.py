"""Reconstruction with a denoiser that was trained for denoising only, whatever the operator."""

import math
from collections.abc import Sequence

import torch

from operators.consistency import Consistency
from operators.fields import root_mean_square
from operators.filtered_start import initial_image
from operators.linear_operator import LinearOperator
from operators.priors.prior import Prior
from operators.solvers import Callback, Solution, cg


def plug_and_play(
    prior: Prior,
    A: LinearOperator,
    y: torch.Tensor,
    noise_levels: Sequence[float],
    *,
    noise_std: float | torch.Tensor,
    strength: float = 1.0,
    scale: float | torch.Tensor | None = None,
    data_step: Consistency | None = None,
    max_cg_iterations: int = 20,
    x0: torch.Tensor | None = None,
    rtol: float = 1e-3,
    callback: Callback | None = None,
) -> Solution:
    """Reconstruct by half-quadratic splitting, with a denoiser for the proximal map of the prior.

    In iteration k, with noise level s_k of the image and σ of the data, the image is brought to the data and denoised::

        x = argmin_x ½‖A x − y‖² + μ_k/2 ‖x − z‖²,  μ_k = strength · (σ/s_k)²
        z = D(x, s_k)

    For a D that is the proximal map of s² R and levels that fall slowly to zero, z goes to the minimiser of
    ½‖A x − y‖² + strength · σ² R(x).

    Parameters
    ----------
    prior
        D, in evaluation mode; it makes its state anew in each iteration. Nothing of it is trained here: call under
        ``torch.no_grad()`` unless gradients are wanted, which are those of the iterations.
    A
        Forward operator of any kind.
    y
        Data, ``(*batch, *A.codomain.shape)``.
    noise_levels
        s_k/scale, positive, usually falling from what the start is wrong by to about σ; as many as iterations.
    noise_std
        σ, per real component, in the units of ``y``: a number, or real and broadcasting to ``batch``; 0 asks for images
        that fit the data exactly.
    strength
        Weight of the prior, positive.
    scale
        What the images are divided by before the denoiser sees them, positive: a number, or real and broadcasting to
        ``batch``. By default the root mean square of each start, as in an `operators.reconstructor.Reconstructor`; for
        a denoiser of images from 0 to 1, the value that stands for 1.
    data_step
        Step from z to x that takes the place of the proximal map, such as `operators.consistency.GradientStep`, of
        at most 1/‖A‖², or `operators.consistency.FilteredStep`; strength and noise level then play no part.
    max_cg_iterations
        Upper bound of the conjugate-gradient steps that solve for x, from z.
    x0
        Start, ``(*batch, *A.domain.shape)``; by default `operators.filtered_start.initial_image`.
    rtol
        Residual up to which a sample counts as converged; all levels are gone through in any case.
    callback
        Called with the number of iterations made and z; stops by returning ``True``.

    Returns
    -------
    Solution
        ``value`` is z, ``(*batch, *A.domain.shape)``; ``residual`` is its relative change in the last iteration.

    Raises
    ------
    TypeError
        If ``y`` or ``x0`` does not fit ``A``.
    ValueError
        Likewise, or if there are no noise levels, or one of the numbers is out of its range.

    References
    ----------
    Venkatakrishnan, Bouman and Wohlberg, Plug-and-play priors for model based reconstruction, 2013.
    Zhang, Li, Zuo, Zhang, Van Gool and Timofte, Plug-and-play image restoration with deep denoiser prior, 2021,
    equations (6) and (7).
    """
    _check(noise_levels, strength)
    back_projected = A.adjoint(y)
    z = initial_image(y, A) if x0 is None else _checked_start(x0, back_projected)
    n_dims, batch = A.domain.n_dims, A.domain.batch_shape(z)
    noise = _per_sample(noise_std, "noise_std", z, batch)
    unit = root_mean_square(z, n_dims) if scale is None else _per_sample(scale, "scale", z, batch)
    if not bool((unit > 0).all()):
        raise ValueError(f"scale is {scale}; expected positive numbers.")
    spread = unit.reshape(*batch, *(1,) * n_dims)
    residual = torch.full_like(unit, math.inf)
    n_iterations = 0
    for level in noise_levels:
        n_iterations += 1
        if data_step is None:
            weight = strength * (noise / (level * unit)).square()
            x = _nearest(z, back_projected, A, weight.reshape(spread.shape), max_cg_iterations)
        else:
            x = data_step(z, y, A)
        seen = x / spread
        denoised = spread * prior(seen, prior.init(seen, torch.full_like(unit, level)))[0]
        with torch.no_grad():
            residual = _length(denoised - z, A) / _length(denoised, A).clamp_min(torch.finfo(unit.dtype).tiny)
        z = denoised
        if callback is not None and callback(n_iterations, z):
            break
    return Solution(z, n_iterations, residual, residual <= rtol)


def _nearest(
    z: torch.Tensor, back_projected: torch.Tensor, A: LinearOperator, weight: torch.Tensor, max_iterations: int
) -> torch.Tensor:
    """The image that fits the data but stays near z."""
    return cg(
        lambda x: A.gram(x) + weight * x,
        back_projected + weight * z,
        x0=z.detach(),
        max_iterations=max_iterations,
        batch_dims=z.ndim - A.domain.n_dims,
    ).value


def _length(x: torch.Tensor, A: LinearOperator) -> torch.Tensor:
    return torch.linalg.vector_norm(x, dim=A.domain.dims)


def _check(noise_levels: Sequence[float], strength: float) -> None:
    if not len(noise_levels) or not all(math.isfinite(level) and level > 0 for level in noise_levels):
        raise ValueError(f"noise_levels are {[*noise_levels]}; expected positive, finite numbers, at least one.")
    if not (strength > 0 and math.isfinite(strength)):
        raise ValueError(f"strength is {strength}; expected a positive, finite number.")


def _checked_start(x0: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if x0.shape != like.shape:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}; expected that of the result, {tuple(like.shape)}.")
    if x0.dtype != like.dtype:
        raise TypeError(f"x0 is {x0.dtype}; expected {like.dtype}, the dtype of the result.")
    return x0


def _per_sample(value: float | torch.Tensor, name: str, x: torch.Tensor, batch: torch.Size) -> torch.Tensor:
    tensor = torch.as_tensor(value, dtype=x.real.dtype, device=x.device)
    try:
        tensor = tensor.expand(batch)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} and the batch is {tuple(batch)}; give one number, or one for each "
            "sample."
        ) from None
    if not bool((tensor.isfinite() & (tensor >= 0)).all()):
        raise ValueError(f"{name} is {value}; expected finite numbers that are not negative.")
    return tensor
