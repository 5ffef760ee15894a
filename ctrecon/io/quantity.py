"""Counts of photons or line integrals: which of them numbers are, and how the ones become the others."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctrecon.io.options import Quantity, ReadOptions
from operators.decision import Decision
from operators.errors import InputError

_OVERRIDE = "--quantity"
# exp(−30) of the photons would not be seen by any detector: what is larger cannot be a line integral.
_LARGEST_LINE_INTEGRAL = 30.0
_EDGE_FRACTION = 0.02
_AIR_IS_HIGH = 0.8
_MANY_STARVED = 0.1


def line_integrals(
    array: NDArray[Any], options: ReadOptions, *, source: str
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, tuple[Decision, ...]]:
    """Line integrals from numbers that are counts or line integrals already.

    Numbers beyond 30 are counts. So are smaller ones that are largest at the edges of the detector, where only air is:
    line integrals are smallest there. Counts without an object are the median at these edges, unless
    ``options.incident_counts`` says it.

    Parameters
    ----------
    array
        Real, finite, ``(slice, view, detector)``.
    options
        ``quantity`` and ``incident_counts`` override what is found.
    source
        What the array is, for messages.

    Returns
    -------
    line_integrals, weights, decisions
        Float32 ``(slice, view, detector)``, dimensionless; the weights are counts over I0, ``None`` for line integrals.

    Raises
    ------
    InputError
        If there is nothing but zeros, or no line integrals can be had from the counts.
    """
    if not array.any():
        raise InputError(f"{source} holds nothing but zeros; nothing was measured.")
    quantity, decision = _quantity(array, options, source)
    if quantity == "line-integrals":
        return _single_precision(array, source), None, (decision,)
    incident, incident_decision = _incident_counts(array, options, source)
    with np.errstate(over="ignore"):  # what overflows is refused below
        transmission = array / incident
    integrals, weights, logarithm = from_transmission(transmission, source=source)
    return integrals, weights, (decision, incident_decision, *logarithm)


def from_transmission(
    transmission: NDArray[Any], *, source: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[Decision, ...]]:
    """Line integrals −log(I/I0); where I is zero or negative, the smallest positive I of the scan is taken instead.

    Parameters
    ----------
    transmission
        I/I0, real, any shape; it is overwritten.
    source
        What it is, for messages.

    Returns
    -------
    line_integrals, weights, decisions
        Float32 of the same shape: −log, and I/I0 with 0 where it was not positive.

    Raises
    ------
    InputError
        If no value is positive, or any is beyond the range of single precision.
    """
    starved = transmission <= 0
    n_starved = int(np.count_nonzero(starved))
    if n_starved == transmission.size:
        raise InputError(f"{source} has no positive count; line integrals cannot be had from it.")
    weights = _single_precision(np.where(starved, 0, transmission), source)
    if not n_starved:
        return _single_precision(-np.log(transmission), source), weights, ()
    smallest = float(np.min(transmission, where=~starved, initial=np.inf))
    transmission[starved] = smallest
    decision = Decision(
        "starved_rays",
        f"{n_starved} of {transmission.size}",
        f"Their counts are not positive and have no logarithm; they were set to the smallest positive count, a line "
        f"integral of {-np.log(smallest):.3g}, and have the weight 0.",
        warning=n_starved > _MANY_STARVED * transmission.size,
    )
    return _single_precision(-np.log(transmission), source), weights, (decision,)


def _quantity(array: NDArray[Any], options: ReadOptions, source: str) -> tuple[Quantity, Decision]:
    if options.quantity is not None:
        if options.quantity not in ("counts", "line-integrals"):
            raise InputError(f"The quantity is {options.quantity!r}; expected 'counts' or 'line-integrals'.")
        if options.quantity == "line-integrals" and options.incident_counts is not None:
            raise InputError("Line integrals have no incident counts; leave one of the two out.")
        return options.quantity, Decision("quantity", options.quantity, "It was asked for.", _OVERRIDE)
    if options.incident_counts is not None:
        return "counts", Decision("quantity", "counts", "Incident counts were given.", _OVERRIDE)
    top, air = float(np.percentile(array, 99.5)), float(np.median(_edges(array)))
    air_is_high = air > _AIR_IS_HIGH * top > 0
    seen = f"the largest values are about {top:.3g}, those at the edges of the detector {air:.3g}"
    if top > _LARGEST_LINE_INTEGRAL:
        reason = f"{seen.capitalize()}: too large for line integrals."
        return "counts", Decision("quantity", "counts", reason, _OVERRIDE, warning=not air_is_high)
    if air_is_high and float(array.min()) >= 0:
        reason = f"{seen.capitalize()}: air is where most photons arrive."
        return "counts", Decision("quantity", "counts", reason, _OVERRIDE, warning=True)
    return "line-integrals", Decision("quantity", "line-integrals", f"{seen.capitalize()}.", _OVERRIDE)


def _incident_counts(array: NDArray[Any], options: ReadOptions, source: str) -> tuple[float, Decision]:
    given = options.incident_counts
    if given is not None:
        if not (np.isfinite(given) and given > 0):
            raise InputError(f"The incident counts are {given}; expected a positive number.")
        return float(given), Decision("incident_counts", f"{given:g}", "It was asked for.", "--incident-counts")
    air, top = float(np.median(_edges(array))), float(np.percentile(array, 99.5))
    if air <= 0:
        raise InputError(
            f"{source} holds counts, but those at the edges of the detector are {air:g} and give no I0; give it with "
            f"--incident-counts."
        )
    reason = "It is the median at the edges of the detector, where only air is taken to be"
    reason += "." if air > _AIR_IS_HIGH * top else f"; but counts reach {top:.4g}, so the object may hide the edges."
    decision = Decision("incident_counts", f"{air:.6g}", reason, "--incident-counts", warning=air <= _AIR_IS_HIGH * top)
    return air, decision


def _edges(array: NDArray[Any]) -> NDArray[Any]:
    n = max(1, round(_EDGE_FRACTION * array.shape[-1]))
    return np.concatenate((array[..., :n], array[..., -n:]), axis=-1)


def _single_precision(array: NDArray[Any], source: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(single).all():
        raise InputError(f"{source} has values beyond the range of single precision (3e38); scale it down first.")
    return single if single.flags.writeable else single.copy()
