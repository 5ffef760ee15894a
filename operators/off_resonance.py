"""Off-resonance in the forward model: time segmentation with least-squares interpolators, as a sum of compositions."""

import math
from dataclasses import dataclass

import torch

from operators.elementary import Diagonal
from operators.linear_operator import LinearOperator, Sum
from operators.space import Space

_BINS_PER_CYCLE = 32  # the error is a smooth function of frequency, on the scale of one turn during the readout
_FEWEST_BINS = 256
_MOST_CYCLES = 256
_N_CHECKED_TIMES = 512
_ENTRIES_AT_ONCE = 2**22  # of the matrix frequency by time, which is made piece by piece
_SMALLEST_ACCURACY = 1e-9  # what the fit of nearly equal exponentials reaches in double precision, and some room
_CUT_OFF = 0.1  # singular values below this fraction of the accuracy, relative to the largest, are dropped
_CLUSTERING = 0.9  # of the segments' times towards both ends: 0 is that of Chebyshev's nodes, 1 none


def with_off_resonance(
    A: LinearOperator,
    field_map_hz: torch.Tensor,
    time_s: torch.Tensor,
    *,
    n_segments: int | None = None,
    accuracy: float = 1e-3,
) -> LinearOperator:
    """Add the phase that spins off resonance gain during the readout to an encoding operator.

    If A is the sum y_s = Σ_r a_sr x_r, the result is

        y_s = Σ_r a_sr exp(−2πi f_r t_s) x_r ≈ Σ_l b_l(t_s) Σ_r a_sr exp(−2πi f_r τ_l) x_r,

    the sum over l of ``Diagonal(b_l) @ A @ Diagonal(exp(−2πi f τ_l))``: A is applied once per segment. With the kernel
    exp(−i ω·r) of the transforms, positive f is a frequency above that of the receiver, and turns in the same direction
    as a gradient that raises it.

    b(t) minimises Σ_k w_k |exp(−2πi f_k t) − Σ_l b_l(t) exp(−2πi f_k τ_l)|² over the histogram of the map: frequency
    f_k in w_k pixels. Pixels outside the object count like all others, so extend the map smoothly there instead of
    leaving noise. Of the fit, what would need large weights b is left out, because they would multiply the errors of A:
    singular values below a tenth of the accuracy. The times τ_l lie between the first and the last sample, slightly
    denser at both ends; evenly spaced, they would need more segments, and weights that grow with their number.

    Parameters
    ----------
    A
        Encoding without off-resonance, from complex images ``(…, y, x)`` or ``(…, z, y, x)`` to complex samples.
    field_map_hz
        Off-resonance f in Hz, real, ``(y, x)`` or ``(z, y, x)``: what broadcasts to A's domain; leading dimensions
        beyond it are batch. The result has its precision and device. It is a constant: no gradient flows to it.
    time_s
        Time t of each sample in seconds since the excitation, real; what broadcasts to A's codomain, such as
        ``(sample,)``, or ``(kx,)`` for Cartesian lines. Of a spin echo, since the echo.
    n_segments
        Number of segments; ``None`` for the fewest that reach the accuracy, found by bisection.
    accuracy
        Root mean square error over the pixels of exp(−2πi f t), at the time where it is largest; from 1e-9 to 1. Where
        ``n_segments`` is given, more of them than the accuracy needs bring little.

    Returns
    -------
    LinearOperator
        With the spaces of A. Its adjoint is that of the approximation, exact to rounding.

    Raises
    ------
    TypeError
        If A is not complex, or map or times are not real floating-point or ask for a gradient.
    ValueError
        If map or times do not broadcast to A's spaces, are not finite, or span more than 256 turns; if the number of
        segments is not positive or the accuracy out of range.

    References
    ----------
    B. P. Sutton, D. C. Noll, J. A. Fessler, "Fast, iterative image reconstruction for MRI in the presence of field
    inhomogeneities", IEEE Transactions on Medical Imaging 22(2), 2003: time segmentation, and the min–max temporal
    interpolator, which for objects of given norm is this least-squares fit, over the histogram instead of all pixels.
    There, the segments are evenly spaced.

    D. Kosloff, H. Tal-Ezer, "A modified Chebyshev pseudospectral method with an O(N⁻¹) time step restriction", Journal
    of Computational Physics 104(2), 1993: the times τ.

    Examples
    --------
    >>> from operators import Fourier
    >>> A = with_off_resonance(Fourier((8, 8)), torch.linspace(-50, 50, 8), torch.linspace(0, 0.01, 8), n_segments=4)
    >>> len(A.terms), A(torch.ones(8, 8, dtype=torch.complex64)).shape
    (4, torch.Size([8, 8]))
    """
    _check(A, field_map_hz, time_s)
    if n_segments is not None and n_segments < 1:
        raise ValueError(f"n_segments is {n_segments}; expected at least 1, or None to choose.")
    if not _SMALLEST_ACCURACY <= accuracy <= 1:
        raise ValueError(f"accuracy is {accuracy}; expected a number from {_SMALLEST_ACCURACY:g} to 1.")
    field_hz = field_map_hz.detach().double()
    times, at = torch.unique(time_s.detach().to(field_hz), return_inverse=True)
    histogram = _Histogram.of(field_hz, float(times[-1] - times[0]))
    if n_segments is None:
        n_segments = _fewest_segments(histogram, times, accuracy)
    moments = _moments(times, n_segments)
    interpolators = histogram.interpolators(moments, times, accuracy)[:, at]  # (segment, *time_s.shape)
    precision = field_map_hz.dtype.to_complex()
    terms = [
        Diagonal(interpolator.to(precision), A.codomain) @ A @ Diagonal(_turned(field_hz * tau).to(precision), A.domain)
        for interpolator, tau in zip(interpolators, moments, strict=True)
    ]
    return Sum(terms)


@dataclass(frozen=True, slots=True)
class _Histogram:
    """Frequencies in Hz that occur in a map, and the share of pixels that have each; both float64 ``(bin,)``."""

    frequencies: torch.Tensor
    shares: torch.Tensor

    @classmethod
    def of(cls, field_hz: torch.Tensor, duration_s: float) -> "_Histogram":
        values = field_hz.flatten()
        lowest, span = values.min(), float(values.max() - values.min())
        cycles = span * duration_s
        if cycles > _MOST_CYCLES:
            raise ValueError(
                f"The field map spans {span:.4g} Hz and the times {duration_s:.4g} s, which is {cycles:.4g} turns; "
                f"expected at most {_MOST_CYCLES}, with the map in Hz, the times in seconds, and no outliers."
            )
        n_bins = max(_FEWEST_BINS, math.ceil(_BINS_PER_CYCLE * cycles))
        position = (values - lowest) * (n_bins / span if span else 0.0)
        index = position.long().clamp_max(n_bins - 1)
        counts = torch.bincount(index, minlength=n_bins)
        sums = torch.zeros(n_bins, dtype=values.dtype, device=values.device).index_add(0, index, values - lowest)
        used = counts > 0
        return cls(lowest + sums[used] / counts[used], counts[used] / values.numel())

    def interpolators(self, moments: torch.Tensor, times: torch.Tensor, accuracy: float) -> torch.Tensor:
        """The least-squares weights of the segments, complex128 ``(segment, time)``."""
        left, singular, right = torch.linalg.svd(self._weighted(moments), full_matrices=False)
        used = singular > _CUT_OFF * accuracy * singular[0]
        left, singular, right = left[:, used], singular[used, None], right[used]
        # Multiplied out, the pseudo-inverse would lose the digits that nearly equal segments leave.
        parts = [right.mH @ (left.mH @ self._weighted(some) / singular) for some in self._pieces(times)]
        return torch.cat(parts, dim=1)

    def error(self, moments: torch.Tensor, times: torch.Tensor, accuracy: float) -> float:
        """Root mean square over the pixels at the worst time."""
        residual = self._weighted(times) - self._weighted(moments) @ self.interpolators(moments, times, accuracy)
        return float(torch.linalg.vector_norm(residual, dim=0).max())

    def _weighted(self, times: torch.Tensor) -> torch.Tensor:
        """The phases of each frequency at these times, by the root of its share, ``(bin, time)``."""
        return self.shares.sqrt()[:, None] * _turned(self.frequencies[:, None] * times)

    def _pieces(self, times: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return times.split(max(1, _ENTRIES_AT_ONCE // len(self.frequencies)))


def _fewest_segments(histogram: _Histogram, times: torch.Tensor, accuracy: float) -> int:
    """The error falls with the number of segments, so bisection finds where it passes the accuracy."""
    checked = torch.linspace(float(times[0]), float(times[-1]), _N_CHECKED_TIMES).to(times)

    def reaches(n_segments: int) -> bool:
        return histogram.error(_moments(times, n_segments), checked, accuracy) <= accuracy

    enough = 1
    while not reaches(enough):
        enough *= 2
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        too_few, enough = (too_few, middle) if reaches(middle) else (middle, enough)
    return enough


def _moments(times: torch.Tensor, n_segments: int) -> torch.Tensor:
    """The times τ of the segments in seconds, ``(segment,)``: Chebyshev's nodes, mapped to be nearly even."""
    angles_rad = math.pi * (torch.arange(n_segments, dtype=times.dtype, device=times.device) + 0.5) / n_segments
    position = (_CLUSTERING * angles_rad.cos()).asin() / math.asin(_CLUSTERING)  # in (−1, 1)
    return (times[0] + times[-1] - position * (times[-1] - times[0])) / 2


def _turned(cycles: torch.Tensor) -> torch.Tensor:
    """exp(−2πi cycles)."""
    return torch.polar(torch.ones_like(cycles), -2 * math.pi * cycles)


def _check(A: LinearOperator, field_map_hz: torch.Tensor, time_s: torch.Tensor) -> None:
    if A.domain.field != "complex" or A.codomain.field != "complex":
        raise TypeError(
            f"{type(A).__name__} maps {A.domain.field} to {A.codomain.field}; off-resonance turns complex numbers, "
            "so both must be complex."
        )
    _check_given("field_map_hz", field_map_hz, A.domain)
    _check_given("time_s", time_s, A.codomain)


def _check_given(name: str, given: torch.Tensor, space: Space) -> None:
    if not given.is_floating_point() or given.requires_grad:
        what = "asks for a gradient, which it cannot get; detach it" if given.requires_grad else f"is {given.dtype}"
        raise TypeError(f"{name} {what}; expected a real floating-point constant.")
    trailing = given.shape[max(given.ndim - space.n_dims, 0) :]
    try:
        fits = torch.broadcast_shapes(trailing, space.shape) == space.shape
    except RuntimeError:
        fits = False
    if not fits or not given.numel():
        raise ValueError(f"{name} has shape {tuple(given.shape)}, which does not broadcast to {space.shape}.")
    if not bool(given.isfinite().all()):
        raise ValueError(f"{name} holds values that are not finite; set them to a number first.")
