"""Checks of a reconstruction that need no ground truth, for any method and any linear operator.

All take the tensors of one object; leading batch dimensions, such as slices, are taken together as parts of it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from scipy.special import gammainc, gammaincc

from operators.linear_operator import LinearOperator
from operators.solvers import cg
from operators.space import Space

Reconstruct = Callable[[torch.Tensor, LinearOperator, float | torch.Tensor], torch.Tensor]
Map = Callable[[torch.Tensor], torch.Tensor]

_SIGNIFICANT = 0.01


class Check(ABC):
    """What a check found: numbers, and what they mean.

    Attributes
    ----------
    name
        Of the check.
    definition
        What its numbers are.
    """

    name: ClassVar[str]
    definition: ClassVar[str]

    @property
    @abstractmethod
    def meaning(self) -> str:
        """What was found, in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataResidual(Check):
    """What an image leaves of the data, beside what noise would leave.

    Parameters
    ----------
    chi2_per_sample
        χ²/n, χ² = ‖(y − A x)/σ‖².
    n_samples
        n, the number of real numbers that were measured; a complex sample is two.
    z
        (χ² − n)/√(2n).
    p_value
        Probability that noise alone lies as far from n or farther, on either side.
    """

    name: ClassVar[str] = "data residual"
    definition: ClassVar[str] = (
        "what the image leaves of the data, χ² = ‖(y − A x)/σ‖² over the n real numbers that were measured, as χ²/n, "
        "as z = (χ² − n)/√(2n) and as the two-sided p-value of χ² with n degrees of freedom, which holds for the true "
        "object: an image that was fitted to the data comes out lower. Below 1 the image follows the noise, above 1 it "
        "contradicts the data"
    )

    chi2_per_sample: float
    n_samples: int
    z: float
    p_value: float

    @property
    def meaning(self) -> str:
        """What was found, in one sentence."""
        found = f"The image leaves {self.chi2_per_sample:.3g} times the power of the noise in the data"
        if self.p_value >= _SIGNIFICANT:
            return f"{found}, as noise alone would: image, operator and noise level agree with the data."
        if self.chi2_per_sample > 1:
            return f"{found}: it contradicts the data, or the operator or the noise level is wrong."
        return f"{found}: it follows the noise, or the noise level is too high."


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionSplit(Check):
    """How well the image of one measurement predicts another one of the same object.

    Parameters
    ----------
    fit
        χ²/n of each image against its own data, mean of both.
    prediction
        χ²/n of each image against the other data, mean of both.
    n_samples
        n, the number of real numbers in each measurement.
    """

    name: ClassVar[str] = "repetition split"
    definition: ClassVar[str] = (
        "two measurements of one object: χ²/n of the image of one against the other (prediction) and against its own "
        "data (fit), mean of both ways. The noise of both is independent, so the prediction is 1 for the true object, "
        "and what exceeds 1 estimates without bias the power of the error A(x − truth) over that of the noise"
    )

    fit: float
    prediction: float
    n_samples: int

    @property
    def error_power(self) -> float:
        """Unbiased estimate of ‖A(x − truth)‖² over the power of the noise; by chance below zero."""
        return self.prediction - 1

    @property
    def meaning(self) -> str:
        """What was found, in one sentence."""
        return (
            f"As the scanner sees it, the error of the image has {self.error_power:.3g} of the power of the noise "
            f"(χ²/n is {self.prediction:.3g} for new data and {self.fit:.3g} for its own)."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivariance(Check):
    """How much more than itself an image changes when something is changed that should not matter.

    Parameters
    ----------
    change
        What was changed.
    error
        ‖undo(x') − x‖/‖x‖.
    """

    name: ClassVar[str] = "equivariance"
    definition: ClassVar[str] = (
        "error ‖undo(x') − x‖/‖x‖ for the image x' of changed data, of a changed operator or by a changed method; "
        "0 where the change does not matter"
    )

    change: str
    error: float

    @property
    def meaning(self) -> str:
        """What was found, in one sentence."""
        return f"After {self.change}, undone in the image, the image differs by {100 * self.error:.3g} %."


@dataclass(frozen=True, slots=True, kw_only=True)
class NullSpaceChange(Check):
    """How much of an image the data cannot have determined.

    Parameters
    ----------
    share
        ‖x − A⁺A x‖/‖x‖.
    over_minimum_norm
        ‖x − A⁺A x‖/‖A⁺y‖.
    residual
        The larger of the relative residuals at which conjugate gradients stopped.
    converged
        Whether they reached their tolerance; else the share is an upper bound.
    """

    name: ClassVar[str] = "null-space change"
    definition: ClassVar[str] = (
        "share ‖x − A⁺A x‖/‖x‖ of the image that A does not see, and the same over the norm of the minimum-norm "
        "solution A⁺y; by conjugate gradients, an upper bound where they did not converge"
    )

    share: float
    over_minimum_norm: float
    residual: float
    converged: bool

    @property
    def meaning(self) -> str:
        """What was found, in one sentence."""
        bound = "" if self.converged else "at most "
        return f"The data cannot have determined {bound}{100 * self.share:.3g} % of the image: it is the method's own."


@dataclass(frozen=True, slots=True, kw_only=True)
class Stability(Check):
    """How much the worst small change of the data changes the image.

    Parameters
    ----------
    worst
        ‖Δx‖·‖A‖/‖δ‖ of the worst δ that was found; a lower bound of the worst there is.
    random
        The same of random δ of the same size, mean.
    radius
        ‖δ‖, in the units of the data.
    n_steps
        Gradient steps that were taken.
    """

    name: ClassVar[str] = "stability"
    definition: ClassVar[str] = (
        "amplification ‖Δx‖·‖A‖/‖δ‖ of the change δ of the data, of a given size, that changes the image most, found "
        "by projected gradient steps (a lower bound), beside the mean over random δ of the same size"
    )

    worst: float
    random: float
    radius: float
    n_steps: int

    @property
    def meaning(self) -> str:
        """What was found, in one sentence."""
        return (
            f"The worst change of the data that was found is amplified {self.worst:.3g} times, random noise of the "
            f"same size {self.random:.3g} times."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LesionInsertion(Check):
    """How much of a lesion that was added to the object is in the image, and how much appears elsewhere.

    Parameters
    ----------
    recovered
        Contrast in the change of the image over that of the lesion.
    invented
        The largest such contrast, without its sign, at places where nothing was added.
    n_places
        Number of such places.
    """

    name: ClassVar[str] = "lesion insertion"
    definition: ClassVar[str] = (
        "a known lesion l is added to the object, and Δx is what that changes in the image: contrast recovered "
        "Re⟨l, Δx⟩/‖l‖², 1 = all of it; contrast invented: the largest size of the same at matched places without a "
        "lesion, 0 = none"
    )

    recovered: float
    invented: float
    n_places: int

    @property
    def meaning(self) -> str:
        """What was found, in one sentence."""
        return (
            f"{100 * self.recovered:.3g} % of the lesion's contrast is in the image, and at most "
            f"{100 * self.invented:.3g} % of it appears at {self.n_places} places without a lesion."
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Change:
    """Something that should not matter, and how it is undone in the image.

    Parameters
    ----------
    name
        What is changed, such as ``"rotation by 90°"``.
    y, A, noise_std
        What the method gets.
    undo
        From the image of these to what it would be without the change; by default nothing is to be undone.
    reconstruct
        A changed method, such as one with its filters in another order; by default the method itself.
    """

    name: str
    y: torch.Tensor
    A: LinearOperator
    noise_std: float | torch.Tensor
    undo: Map = lambda x: x
    reconstruct: Reconstruct | None = None


def data_residual(
    x: torch.Tensor,
    y: torch.Tensor,
    A: LinearOperator,
    noise_std: float | torch.Tensor,
    *,
    measured: torch.Tensor | None = None,
) -> DataResidual:
    """Compare what an image leaves of the data with the noise.

    Parameters
    ----------
    x
        Image, ``(*batch, *A.domain.shape)``.
    y
        Data, ``(*batch, *A.codomain.shape)``, with independent normal noise.
    A
        The forward operator.
    noise_std
        Standard deviation of the noise per real component, in the units of ``y``: a number, real and broadcasting to
        ``batch``, or real and like ``y``.
    measured
        1 = measured, broadcasting to ``y``; all by default. Where the data were filled with zeros, it has to be given.

    Returns
    -------
    DataResidual
        The degrees of freedom are the real numbers that were measured.

    Raises
    ------
    TypeError
        If a tensor is of the wrong field.
    ValueError
        If shapes do not fit, nothing was measured, or a noise level is not positive.
    """
    A.domain.check(x, "x")
    with torch.no_grad():
        chi2, n = _chi2(x, y, A, noise_std, measured)
    # gammainc and gammaincc are the two tails of χ² with n degrees of freedom.
    p_value = min(1.0, 2 * min(float(gammainc(n / 2, chi2 / 2)), float(gammaincc(n / 2, chi2 / 2))))
    return DataResidual(chi2_per_sample=chi2 / n, n_samples=n, z=(chi2 - n) / math.sqrt(2 * n), p_value=p_value)


def repetition_split(
    reconstruct: Reconstruct,
    first: torch.Tensor,
    second: torch.Tensor,
    A: LinearOperator,
    noise_std: float | torch.Tensor,
    *,
    measured: torch.Tensor | None = None,
) -> RepetitionSplit:
    """Predict each of two measurements of one object from the image of the other.

    Parameters
    ----------
    reconstruct
        The method.
    first, second
        Data with independent noise, ``(*batch, *A.codomain.shape)``.
    A, noise_std, measured
        As for `data_residual`, of each measurement.

    Returns
    -------
    RepetitionSplit
        The mean of both ways.

    Raises
    ------
    TypeError, ValueError
        As for `data_residual`.

    References
    ----------
    Batson and Royer, Noise2Self, 2019, proposition 1, with repetitions as the partition of the data.
    """
    with torch.no_grad():
        images = [reconstruct(y, A, noise_std) for y in (first, second)]
        own = [_chi2(x, y, A, noise_std, measured) for x, y in zip(images, (first, second), strict=True)]
        other = [_chi2(x, y, A, noise_std, measured) for x, y in zip(images, (second, first), strict=True)]
    n = own[0][1]
    fit, prediction = (sum(chi2 for chi2, _ in pair) / (2 * n) for pair in (own, other))
    return RepetitionSplit(fit=fit, prediction=prediction, n_samples=n)


def equivariance(
    reconstruct: Reconstruct,
    y: torch.Tensor,
    A: LinearOperator,
    noise_std: float | torch.Tensor,
    changes: Sequence[Change],
) -> tuple[Equivariance, ...]:
    """Compare the image with those after changes that should not matter, undone.

    Parameters
    ----------
    reconstruct
        The method.
    y, A, noise_std
        What it gets, as for `operators.reconstructor.Reconstructor`.
    changes
        See `movements` and `scaling`; a permutation of filters is a `Change` with another ``reconstruct``.

    Returns
    -------
    tuple of Equivariance
        One for each change.

    Raises
    ------
    ValueError
        If the image is zero, or an undone image has another shape.
    """
    with torch.no_grad():
        x = reconstruct(y, A, noise_std)
        length = _positive_norm(x, "The image")
        errors = []
        for change in changes:
            undone = change.undo((change.reconstruct or reconstruct)(change.y, change.A, change.noise_std))
            if undone.shape != x.shape:
                raise ValueError(
                    f"The image after {change.name}, undone, has shape {tuple(undone.shape)}; expected that without, "
                    f"{tuple(x.shape)}."
                )
            errors.append(Equivariance(change=change.name, error=_norm(undone - x) / length))
    return tuple(errors)


def movements(
    y: torch.Tensor, A: LinearOperator, noise_std: float | torch.Tensor, *, shift: tuple[int, int] = (3, 5)
) -> tuple[Change, ...]:
    """Shift, mirror and, where the image is square, rotate the object together with the operator.

    The data stay: A∘T⁻¹ makes of the moved image T x what A makes of x. Pixels that are shifted out of the image come
    in at the other side.

    Parameters
    ----------
    y, A, noise_std
        The data, as for `operators.reconstructor.Reconstructor`; images are ``(..., y, x)``.
    shift
        Along y and x, in pixels.

    Returns
    -------
    tuple of Change
        For `equivariance`. The operator is no more of the class that it was: for methods that ask for a `Projection`,
        make the changes from moved scans.
    """
    back = (-shift[0], -shift[1])
    moves: dict[str, tuple[Map, Map]] = {
        f"shift by {shift} pixels": (lambda x: x.roll(shift, (-2, -1)), lambda x: x.roll(back, (-2, -1))),
        "mirroring": (lambda x: x.flip(-1), lambda x: x.flip(-1)),
    }
    if A.domain.shape[-2] == A.domain.shape[-1]:
        moves["rotation by 90°"] = (lambda x: x.rot90(1, (-2, -1)), lambda x: x.rot90(-1, (-2, -1)))
    return tuple(
        Change(name=name, y=y, A=A @ _Rearranged(A.domain, undo, move), noise_std=noise_std, undo=undo)
        for name, (move, undo) in moves.items()
    )


def scaling(y: torch.Tensor, A: LinearOperator, noise_std: float | torch.Tensor, factor: float = 2.0) -> Change:
    """Multiply data and noise level by a number, by which the image is to be multiplied too.

    Parameters
    ----------
    y, A, noise_std
        The data, as for `operators.reconstructor.Reconstructor`.
    factor
        Positive.

    Returns
    -------
    Change
        For `equivariance`.

    Raises
    ------
    ValueError
        If the factor is not positive.
    """
    if not 0 < factor < math.inf:
        raise ValueError(f"The factor is {factor}; expected a positive number.")
    return Change(
        name=f"multiplication by {factor:g}", y=factor * y, A=A, noise_std=factor * noise_std, undo=lambda x: x / factor
    )


def null_space_change(
    x: torch.Tensor, y: torch.Tensor, A: LinearOperator, *, rtol: float = 1e-5, max_iterations: int = 300
) -> NullSpaceChange:
    """Split an image into what its data can determine and what they cannot.

    Parameters
    ----------
    x
        Image, ``(*batch, *A.domain.shape)``.
    y
        Data, ``(*batch, *A.codomain.shape)``.
    A
        The forward operator.
    rtol, max_iterations
        Of conjugate gradients on AᴴA z = AᴴA x from zero, whose iterates approach A⁺A x from below, and on
        AᴴA z = Aᴴy. What a badly conditioned operator hardly sees is not reached and counts as undetermined.

    Returns
    -------
    NullSpaceChange
        Relative norms.

    Raises
    ------
    TypeError
        If a tensor is of the wrong field.
    ValueError
        If shapes do not fit, or the image or A⁺y is zero.
    """
    A.domain.check(x, "x")
    A.codomain.check(y, "y")
    batch_dims = x.ndim - A.domain.n_dims
    with torch.no_grad():
        seen, least = (
            cg(A.gram, rhs, rtol=rtol, max_iterations=max_iterations, batch_dims=batch_dims)
            for rhs in (A.gram(x), A.adjoint(y))
        )
        unseen = _norm(x - seen.value)
        return NullSpaceChange(
            share=unseen / _positive_norm(x, "The image"),
            over_minimum_norm=unseen / _positive_norm(least.value, "The minimum-norm solution"),
            residual=max(float(solution.residual.max()) for solution in (seen, least)),
            converged=all(bool(solution.converged.all()) for solution in (seen, least)),
        )


def noise_norm(
    y: torch.Tensor, A: LinearOperator, noise_std: float | torch.Tensor, *, measured: torch.Tensor | None = None
) -> float:
    """Expected size of the noise, the root of the expected ‖noise‖², for the radius of `stability`.

    Parameters
    ----------
    y, A, noise_std, measured
        As for `data_residual`.

    Returns
    -------
    float
        In the units of ``y``; σ√n for n real numbers that were measured.

    Raises
    ------
    TypeError, ValueError
        As for `data_residual`.
    """
    std, kept = _noise_like(noise_std, y, A), _kept_like(measured, y, A)
    return math.sqrt(_n_parts(y) * float(std[kept].double().square().sum()))


def stability(
    reconstruct: Reconstruct,
    y: torch.Tensor,
    A: LinearOperator,
    noise_std: float | torch.Tensor,
    *,
    radius: float,
    generator: torch.Generator,
    n_steps: int = 10,
    n_random: int = 4,
    measured: torch.Tensor | None = None,
) -> Stability:
    """Find the small change of the data that changes the image most.

    Each step goes along the gradient of ‖x(y + δ) − x(y)‖² and back to ‖δ‖ = radius, so far that nothing of the old δ
    is left; for a linear method this is power iteration. The best δ of all steps counts.

    Parameters
    ----------
    reconstruct
        The method; torch can differentiate it.
    y, A, noise_std
        What it gets.
    radius
        ‖δ‖, in the units of ``y``; such as a share of ‖y‖, or of `noise_norm`.
    generator
        On the CPU, the only source of randomness.
    n_steps
        Number of gradient steps.
    n_random
        Number of random δ; the first one is where the steps begin.
    measured
        1 = measured, broadcasting to ``y``, where alone the data are changed; all by default.

    Returns
    -------
    Stability
        Amplifications, ‖Δx‖·‖A‖/‖δ‖.

    Raises
    ------
    TypeError
        If ``y`` is of the wrong field.
    ValueError
        If shapes do not fit, a number is not positive, or no gradient comes through the method.

    References
    ----------
    Antun et al., On instabilities of deep learning in image reconstruction, 2020, equation 3, without the penalty for
    large changes, whose size is fixed here.
    """
    if not 0 < radius < math.inf or n_steps < 1 or n_random < 1:
        raise ValueError(
            f"radius is {radius}, n_steps {n_steps} and n_random {n_random}; expected a positive radius, and at least "
            "one of both."
        )
    kept = _kept_like(measured, y, A)

    def on_sphere(delta: torch.Tensor) -> torch.Tensor:
        return delta * (radius / _norm(delta))

    with torch.no_grad():
        unchanged = reconstruct(y, A, noise_std)
        draws = [
            on_sphere(kept * torch.randn(y.shape, dtype=y.dtype, generator=generator).to(y.device))
            for _ in range(n_random)
        ]
        random = [_norm(reconstruct(y + delta, A, noise_std) - unchanged) for delta in draws]
    delta, worst = draws[0], random[0]
    for _ in range(n_steps):
        delta = delta.detach().requires_grad_()
        with torch.enable_grad():
            change = reconstruct(y + delta, A, noise_std) - unchanged
        gradient = kept * _gradient_of(change.abs().square().sum(), delta)
        if not _norm(gradient) > 0:
            break
        delta = on_sphere(gradient)
        with torch.no_grad():
            worst = max(worst, _norm(reconstruct(y + delta, A, noise_std) - unchanged))
    norm = float(A.norm().max())
    return Stability(
        worst=worst * norm / radius, random=sum(random) / n_random * norm / radius, radius=radius, n_steps=n_steps
    )


def draw_lesion(
    shape: tuple[int, int],
    centre: tuple[float, float],
    radius: float,
    *,
    profile: Literal["gaussian", "disc"] = "gaussian",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Draw a lesion of contrast 1, for `lesion_insertion`.

    Parameters
    ----------
    shape
        Of the image, (y, x).
    centre
        Row and column, in pixels from the first.
    radius
        In pixels: of the disc, or where the Gaussian falls to half of its peak.
    profile
        A Gaussian, or a disc with sharp edge.
    dtype
        Real, of the precision of the data.

    Returns
    -------
    torch.Tensor
        Real ``(y, x)``, between 0 and 1.

    Raises
    ------
    ValueError
        If the radius is not positive, or nothing of the lesion is in the image.
    """
    if not 0 < radius < math.inf:
        raise ValueError(f"The radius is {radius}; expected a positive number of pixels.")
    rows, columns = (torch.arange(n, dtype=torch.float64) - middle for n, middle in zip(shape, centre, strict=True))
    squared = (rows[:, None].square() + columns.square()) / radius**2
    drawn = torch.exp2(-squared) if profile == "gaussian" else (squared <= 1).double()
    if not float(drawn.max()) >= 0.5:
        raise ValueError(f"A lesion at {centre} of radius {radius} is not in an image of {shape} pixels.")
    return drawn.to(dtype)


def lesion_insertion(
    reconstruct: Reconstruct,
    y: torch.Tensor,
    A: LinearOperator,
    noise_std: float | torch.Tensor,
    lesion: torch.Tensor,
    elsewhere: Sequence[torch.Tensor],
) -> LesionInsertion:
    """Add a lesion to the object and see what it changes in the image.

    Parameters
    ----------
    reconstruct
        The method.
    y, A, noise_std
        What it gets without the lesion; y + A l is what it gets with it.
    lesion
        l with its contrast (and, where images are complex, the phase of the object), like an image; of no effect on
        the noise.
    elsewhere
        The same lesion at other places of the object that look alike, apart from it.

    Returns
    -------
    LesionInsertion
        Contrasts over that of the lesion.

    Raises
    ------
    TypeError
        If a lesion is of the wrong field or of another precision than the data.
    ValueError
        If a shape does not fit, a lesion is zero, or there is no other place.
    """
    if not elsewhere:
        raise ValueError("No other place is given; what a method invents is seen where no lesion was added.")
    for template in (lesion, *elsewhere):
        A.domain.check(template, "A lesion")
        if template.dtype.to_real() != y.dtype.to_real():
            raise TypeError(f"A lesion is {template.dtype} and the data are {y.dtype}; draw it in their precision.")
    with torch.no_grad():
        change = reconstruct(y + A(lesion), A, noise_std) - reconstruct(y, A, noise_std)
        recovered, *others = (_contrast(change, template) for template in (lesion, *elsewhere))
    return LesionInsertion(recovered=recovered, invented=max(map(abs, others)), n_places=len(others))


class _Rearranged(LinearOperator):
    """A permutation of the pixels of an image; its adjoint is its inverse."""

    def __init__(self, space: Space, move: Map, back: Map) -> None:
        super().__init__(space, space)
        self._move, self._back = move, back

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._move(x)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._back(y)

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _chi2(
    x: torch.Tensor, y: torch.Tensor, A: LinearOperator, noise_std: float | torch.Tensor, measured: torch.Tensor | None
) -> tuple[float, int]:
    """‖(y − A x)/σ‖² over what was measured, and the number of real numbers in it."""
    std, kept = _noise_like(noise_std, y, A), _kept_like(measured, y, A)
    predicted = A(x)
    if predicted.shape != y.shape:
        raise ValueError(
            f"A x has shape {tuple(predicted.shape)} and the data {tuple(y.shape)}; give an image for each."
        )
    residual = ((y - predicted) / std)[kept]
    return float(residual.abs().double().square().sum()), _n_parts(y) * residual.numel()


def _n_parts(y: torch.Tensor) -> int:
    return 2 if y.is_complex() else 1


def _noise_like(noise_std: float | torch.Tensor, y: torch.Tensor, A: LinearOperator) -> torch.Tensor:
    """The noise level of each sample, like y."""
    A.codomain.check(y, "y")
    std = torch.as_tensor(noise_std, dtype=y.dtype.to_real(), device=y.device)
    if std.shape != y.shape:
        batch = A.codomain.batch_shape(y)
        try:
            std = std.expand(batch).reshape(*batch, *(1,) * A.codomain.n_dims).expand(y.shape)
        except RuntimeError:
            raise ValueError(
                f"noise_std has shape {tuple(std.shape)} and the data {tuple(y.shape)}; give one number, one for each "
                "sample of the batch, or one for each datum."
            ) from None
    if not bool(((std > 0) & std.isfinite()).all()):
        raise ValueError(
            f"noise_std is {noise_std}; expected positive finite numbers, the data are compared with noise."
        )
    return std


def _kept_like(measured: torch.Tensor | None, y: torch.Tensor, A: LinearOperator) -> torch.Tensor:
    """Which data were measured, bool and like y."""
    A.codomain.check(y, "y")
    if measured is None:
        return torch.ones(y.shape, dtype=torch.bool, device=y.device)
    try:
        kept = (measured != 0).to(y.device).expand(y.shape)
    except RuntimeError:
        raise ValueError(
            f"measured has shape {tuple(measured.shape)}, which does not broadcast to the data, {tuple(y.shape)}."
        ) from None
    if not bool(kept.any()):
        raise ValueError("measured is zero everywhere; without data there is nothing to check.")
    return kept


def _gradient_of(value: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    gradient = torch.autograd.grad(value, tensor, allow_unused=True)[0] if value.requires_grad else None
    if gradient is None:
        raise ValueError("No gradient comes through the method; give one that runs without torch.no_grad.")
    return gradient


def _contrast(change: torch.Tensor, template: torch.Tensor) -> float:
    """Re⟨l, Δx⟩/‖l‖²."""
    template = template.expand_as(change)
    return float((template.conj() * change).real.double().sum()) / _positive_norm(template, "A lesion") ** 2


def _norm(x: torch.Tensor) -> float:
    return math.sqrt(float(x.detach().abs().double().square().sum()))


def _positive_norm(x: torch.Tensor, what: str) -> float:
    length = _norm(x)
    if not 0 < length < math.inf:
        raise ValueError(f"{what} has norm {length}; a relative number needs one that is positive and finite.")
    return length
