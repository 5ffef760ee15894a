"""Reconstruction by convolutional sparse coding, with sparsity-level maps that a network infers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from operators.dictionary import ConvolutionalDictionary
from operators.fields import smoothing_gain
from operators.linear_operator import LinearOperator
from operators.priors.sparsity import Estimate, FilterMaps, SparsityMaps
from operators.proximal import complex_soft_threshold, separable_soft_threshold
from operators.reconstructor import Reconstructor, norm_for_steps
from operators.solvers import fixed_point
from operators.space import Field

GradientOf = Literal["iterations", "checkpointed", "fixed-point"]
Shrinkage = Literal["magnitude", "parts"]
_Map = Callable[[torch.Tensor], torch.Tensor]
_Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class SparseCoding:
    """An image taken apart: image = low_pass + Σ_k contributions_k.

    Parameters
    ----------
    image
        The reconstruction, ``(*batch, y, x)``.
    low_pass
        Its smooth part, shrunk where the maps shrink it.
    maps
        Λ, the threshold of every code, real ``(*batch, filter, y, x)``.
    codes
        s, of which most are exactly zero, ``(*batch, filter, y, x)``.
    contributions
        d_k ⊛ s_k, like the codes.
    """

    image: torch.Tensor
    low_pass: torch.Tensor
    maps: torch.Tensor
    codes: torch.Tensor
    contributions: torch.Tensor


class ConvolutionalSparseCoding(Reconstructor):
    """The image as a smooth part and a sum of few filters: x = x_low + D s, with s sparse where the maps Λ say so.

    x_low = argmin_l ½‖l − Aᴴy‖² + β/2 ‖G l‖², G the circular differences, solved in Fourier space, and

        s = argmin_s ½‖A D s − (y − A x_low)‖² + Σ_k ‖Λ_k s_k‖₁

    by accelerated proximal gradient steps of size 1/(‖A‖² ‖D‖²). Λ comes from a network that sees Aᴴy; with several
    stages it sees the image again after each, and the codes go on from where they are. The network may give the smooth
    part a map too, by which its magnitudes are shrunk before the codes are sought: half of its noise lies where there
    is no object.

    The dictionary is no part of what is learned: `with_filters` gives the same reconstruction with another one, as far
    as the network of the maps serves any.

    Parameters
    ----------
    filters
        The dictionary, real ``(filter, ky, kx)`` with odd sizes.
    maps
        The network that infers Λ.
    n_iterations
        Steps in all, in training mode.
    n_test_iterations
        Steps in all, in evaluation mode; as in training by default. The codes are minimisers, which more steps come
        closer to, while training can do with fewer.
    n_stages
        How often Λ is inferred; the steps are shared out evenly.
    smoothness
        β at the start, positive; learned. It is in units of pixels² and knows no scale.
    shrinkage
        ``"magnitude"`` shrinks complex codes whatever their phase, ``"parts"`` their real and imaginary part apart.
    gradient
        Of what the backward pass takes the derivative; the image is the same. ``"iterations"`` keeps every step;
        ``"checkpointed"`` keeps one of √n and repeats the others, with the same result; ``"fixed-point"`` keeps the
        last only and differentiates the minimiser that the steps approach, once and not twice.

    Raises
    ------
    TypeError
        If the filters are not real.
    ValueError
        If the filters do not have the shape ``(filter, ky, kx)`` with odd sizes, there are fewer iterations than
        stages, β is not positive and finite, or an option is unknown.

    References
    ----------
    Schulz, Schote, Kolbitsch, Papafitsoros and Kofler, Learning spatially adaptive sparsity level maps for arbitrary
    convolutional dictionaries, 2026. `published` builds theirs; there, Λ is inferred once. Departures in both: the soft
    threshold is exact, so that codes are zero; the smooth part is solved for in closed form; the scale of a sample
    comes from its data; the extrapolation is that of Chambolle and Dossal with a = 3, for which iterates converge.
    """

    filters: torch.Tensor

    def __init__(
        self,
        filters: torch.Tensor,
        maps: SparsityMaps,
        *,
        n_iterations: int = 30,
        n_test_iterations: int | None = None,
        n_stages: int = 3,
        smoothness: float = 4.0,
        shrinkage: Shrinkage = "magnitude",
        gradient: GradientOf = "iterations",
    ) -> None:
        super().__init__()
        ConvolutionalDictionary(filters, tuple(filters.shape[1:]), field="real")  # raises if it is none
        n_test_iterations = n_iterations if n_test_iterations is None else n_test_iterations
        if not 1 <= n_stages <= min(n_iterations, n_test_iterations):
            raise ValueError(
                f"There are {n_iterations} iterations in training and {n_test_iterations} after it for {n_stages} "
                "stages; each stage needs one."
            )
        if not (smoothness > 0 and math.isfinite(smoothness)):
            raise ValueError(f"smoothness is {smoothness}; expected a positive, finite number.")
        for name, value, options in (("shrinkage", shrinkage, Shrinkage), ("gradient", gradient, GradientOf)):
            if value not in get_args(options):
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, get_args(options)))}.")
        self.register_buffer("filters", filters.detach().clone())
        self.maps = maps
        self.log_smoothness = nn.Parameter(torch.tensor(math.log(smoothness)))
        self.n_iterations = n_iterations
        self.n_test_iterations = n_test_iterations
        self.n_stages = n_stages
        self.shrinkage: Shrinkage = shrinkage
        self.gradient: GradientOf = gradient

    def with_filters(self, filters: torch.Tensor) -> "ConvolutionalSparseCoding":
        """The same reconstruction, sharing its parameters, with another dictionary.

        Parameters
        ----------
        filters
            Real ``(filter, ky, kx)``, any number and odd size.

        Returns
        -------
        ConvolutionalSparseCoding
            In this one's training mode.
        """
        other = ConvolutionalSparseCoding(
            filters.to(self.filters),
            self.maps,
            n_iterations=self.n_iterations,
            n_test_iterations=self.n_test_iterations,
            n_stages=self.n_stages,
            shrinkage=self.shrinkage,
            gradient=self.gradient,
        )
        other.log_smoothness = self.log_smoothness
        return other.train(self.training)

    def explain(self, y: torch.Tensor, A: LinearOperator, noise_std: float | torch.Tensor) -> SparseCoding:
        """Reconstruct, and take the image apart.

        Parameters
        ----------
        y, A, noise_std
            As in a call.

        Returns
        -------
        SparseCoding
            In the units of ``y``; the maps too, which are thresholds of the codes.
        """
        (x0, y, A, noise), spread = self._scaled(y, A, noise_std)
        D = self._dictionary(x0)
        low_pass, codes, maps = self._coded(x0, A, D, noise)
        contributions = D.contributions(codes)
        image = low_pass + contributions.sum(dim=-3)
        of_codes = (t * spread.unsqueeze(-3) for t in (maps, codes, contributions))
        return SparseCoding(image * spread, low_pass * spread, *of_codes)

    def _reconstruct(
        self, x0: torch.Tensor, y: torch.Tensor, A: LinearOperator, noise_std: torch.Tensor
    ) -> torch.Tensor:
        D = self._dictionary(x0)
        low_pass, codes, _ = self._coded(x0, A, D, noise_std)
        return low_pass + D(codes)

    def _dictionary(self, x: torch.Tensor) -> ConvolutionalDictionary:
        field: Field = "complex" if x.is_complex() else "real"
        return ConvolutionalDictionary(self.filters.to(x.real.dtype), tuple(x.shape[-2:]), field=field)

    def _coded(
        self, x0: torch.Tensor, A: LinearOperator, D: ConvolutionalDictionary, noise_std: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Smooth part ``(*batch, y, x)``, codes and the last maps ``(*batch, filter, y, x)``; slices are batch."""
        slices = x0.shape[:-2]
        noise = noise_std.reshape((*noise_std.shape, *(1,) * (A.domain.n_dims - 2))).expand(slices)
        gram = _gram_of(A, D)
        smooth, smooth_noise = self._smooth(x0, noise)
        step = (1 / (norm_for_steps(A) * D.norm()).square()).to(x0.real)
        step = step.reshape(*step.shape, *(1,) * (A.domain.n_dims + 1))  # one per operator in the batch
        n_iterations = self.n_iterations if self.training else self.n_test_iterations
        codes, x = x0.new_zeros((*slices, *D.domain.shape)), x0
        for stage in range(self.n_stages):
            maps, low_pass_map = self.maps(Estimate(x, smooth, noise, smooth_noise), D)
            low_pass = smooth if low_pass_map is None else complex_soft_threshold(smooth, low_pass_map)
            target = D.adjoint(x0 - A.gram(low_pass))
            n_steps = n_iterations // self.n_stages + (stage < n_iterations % self.n_stages)
            codes = self._minimised(codes, _descent(gram, target, step), step * maps, n_steps)
            if stage + 1 < self.n_stages:
                x = low_pass + D(codes)
        return low_pass, codes, maps

    def _smooth(self, x: torch.Tensor, noise_std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(I + β GᴴG)⁻¹ x, and the noise level that is left in it."""
        gain = smoothing_gain(x, self.log_smoothness.exp())
        smooth = torch.fft.ifft2(torch.fft.fft2(x) * gain)
        return smooth if x.is_complex() else smooth.real, noise_std * gain.square().mean().sqrt()

    def _minimised(
        self, codes: torch.Tensor, descend: _Map, threshold: torch.Tensor, n_iterations: int
    ) -> torch.Tensor:
        """Accelerated proximal gradient steps from ``codes``; ``descend`` takes the step down the gradient."""
        shrink = complex_soft_threshold if self.shrinkage == "magnitude" else separable_soft_threshold

        def update(z: torch.Tensor) -> torch.Tensor:
            return shrink(descend(z), threshold)

        def steps(s: torch.Tensor, z: torch.Tensor, first: int, last: int) -> _Pair:
            for i in range(first, last):
                new = update(z)
                s, z = new, torch.lerp(s, new, 1 + i / (i + 1 + _EXTRAPOLATION))
            return s, z

        if self.gradient == "iterations" or not torch.is_grad_enabled():
            return steps(codes, codes, 0, n_iterations)[0]
        if self.gradient == "fixed-point":
            with torch.no_grad():
                _, z = steps(codes, codes, 0, n_iterations - 1)
            return _with_gradient_of_fixed_point(update, z.detach(), n_iterations)
        length = math.isqrt(n_iterations - 1) + 1
        state: _Pair = codes, codes
        for first in range(0, n_iterations, length):
            last = min(first + length, n_iterations)
            state = checkpoint(steps, *state, first, last, use_reentrant=False, preserve_rng_state=False)
        return state[0]


_EXTRAPOLATION = 3.0  # a in i/(i + 1 + a)


def _gram_of(A: LinearOperator, D: ConvolutionalDictionary) -> _Map:
    """Dᴴ Aᴴ A D; for one Cartesian coil it stays in Fourier space. D applies to each slice of a volume."""
    return (A @ D).gram if A.domain.n_dims == 2 else lambda s: D.adjoint(A.gram(D(s)))


def _descent(gram: _Map, target: torch.Tensor, step: torch.Tensor) -> _Map:
    """A step down the gradient of ½‖A D s − y‖², whose gram and whose Dᴴ Aᴴ y are given."""
    return lambda s: torch.addcmul(s, gram(s) - target, step, value=-1)


def _with_gradient_of_fixed_point(update: _Map, z: torch.Tensor, n_iterations: int) -> torch.Tensor:
    """``update(z)``, differentiated as if it were the fixed point s = update(s).

    The gradient g that arrives becomes u = g + Jᴴu, J the derivative of the update, by at most so many iterations.
    """
    value = update(z)
    if not value.requires_grad:
        return value
    settled = value.detach()

    def solve(gradient: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "gradient='fixed-point' gives first derivatives only, but the backward pass ran with "
                "create_graph=True; choose 'iterations'."
            )
        with torch.enable_grad():
            at = settled.requires_grad_()
            image = update(at)

        def pull_back(u: torch.Tensor) -> torch.Tensor:
            (pulled,) = torch.autograd.grad(image, at, u, retain_graph=True)
            return gradient + pulled

        return fixed_point(pull_back, gradient, max_iterations=n_iterations, batch_dims=z.ndim - 3).value

    value.register_hook(solve)
    return value


def published(filters: torch.Tensor, *, n_channels: int = 2) -> ConvolutionalSparseCoding:
    """The method as it was published, for any dictionary: one map network for each filter alone, 64 steps.

    Parameters
    ----------
    filters
        Real ``(filter, ky, kx)``.
    n_channels
        2 for complex images, 1 for real ones.

    Returns
    -------
    ConvolutionalSparseCoding
        Untrained.
    """
    return ConvolutionalSparseCoding(
        filters,
        FilterMaps(n_channels=n_channels),
        n_iterations=64,
        n_stages=1,
        smoothness=20.0,
        shrinkage="parts",
        gradient="checkpointed",
    )
