"""From numbers and a geometry to the sinogram record: what every reader does in the same way."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ctrecon.hounsfield import MU_WATER_PER_MM, check_mu_water
from ctrecon.io.alignment import opposite_rays
from ctrecon.io.geometry_files import Setup, check_sense, checked_image_shape, seen_image_shape, with_overrides
from ctrecon.io.options import ReadOptions
from ctrecon.io.quantity import line_integrals
from ctrecon.sinogram import Sinogram
from operators.beam_geometry import BeamGeometry
from operators.decision import Decision
from operators.errors import InputError
from operators.io.hdf5 import check_finite, check_memory

# Beside the numbers of the file: line integrals and weights in single precision, and work in double precision.
_WORKING_BYTES = 32


def check_array_memory(n_elements: int, options: ReadOptions, *, what: str) -> None:
    """Refuse an array that is too large to be read, before anything is allocated.

    Raises
    ------
    InputError
        If the numbers as stored and as used exceed ``options.memory_limit_bytes``.
    """
    check_memory(n_elements, _WORKING_BYTES, options.memory_limit_bytes, what=what)


def sinogram_from_array(
    array: NDArray[Any],
    setup: Setup,
    options: ReadOptions,
    *,
    source: str,
    decisions: tuple[Decision, ...] = (),
) -> Sinogram:
    """Build the record from an array of counts or line integrals.

    Parameters
    ----------
    array
        Real, ``(slice, view, detector)`` or ``(view, detector)``, or with the last two axes swapped where the geometry
        shows it.
    setup
        Geometry, and what else is known.
    options
        Overrides of decisions.
    source
        What the array is, for messages, such as ``"sinogram in scan.npz"``.
    decisions
        What was decided before.

    Returns
    -------
    Sinogram

    Raises
    ------
    InputError
        If the array does not fit the geometry, is not finite, or holds nothing.
    """
    log = list(decisions)
    array = _in_order(as_real(array, source), setup.geometry, log, source)
    check_finite(array, ["slice", "view", "detector bin"], what=source)
    array = _in_direction(array, setup, options, log)
    data, weights, steps = line_integrals(array, options, source=source)
    log += steps
    if setup.divided_by != 1:
        data *= np.float32(setup.divided_by)
        reason = "The files of this data set hold line integrals divided by this number."
        log.append(Decision("multiplied_by", f"{setup.divided_by:.7g}", reason))
    return assemble(data, weights, setup, options, source=source, decisions=tuple(log))


def assemble(
    data: NDArray[np.float32],
    weights: NDArray[np.float32] | None,
    setup: Setup,
    options: ReadOptions,
    *,
    source: str,
    decisions: tuple[Decision, ...] = (),
    slice_spacing_mm: float = 1.0,
    center_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    counts: tuple[tuple[str, int], ...] = (),
) -> Sinogram:
    """Build the record from line integrals in the order and direction of this project.

    Parameters
    ----------
    data, weights
        Line integrals and their weights, ``(slice, view, detector)``.
    setup
        Geometry, and what else is known.
    options
        Overrides of decisions.
    source
        What the data are, for messages.
    decisions
        What was decided before.
    slice_spacing_mm, center_mm
        As in ``Sinogram``.
    counts
        What the file holds beside views, bins and slices.

    Returns
    -------
    Sinogram

    Raises
    ------
    InputError
        If the geometry makes no sense.
    """
    geometry, overrides = with_overrides(setup.geometry, options)
    log = [*decisions, *overrides]
    image_shape = _image_shape(geometry, setup, options, log)
    check_sense(geometry, image_shape, source)
    mu_water, known = _mu_water(setup, options, log)
    if opposite := opposite_rays(data[len(data) // 2].astype(np.float64), geometry):
        log.append(opposite)
    if suspicion := _looks_like_degrees(geometry):
        log.append(suspicion)
    if not np.isfinite(data).all() or (weights is not None and not np.isfinite(weights).all()):
        raise InputError(f"{source} has values beyond the range of single precision (3e38); scale it down first.")
    n_slices, n_views, n_detectors = data.shape
    return Sinogram(
        data=torch.from_numpy(data),
        geometry=geometry,
        image_shape=image_shape,
        mu_water_per_mm=mu_water,
        mu_water_known=known,
        weights=None if weights is None else torch.from_numpy(weights),
        slice_spacing_mm=slice_spacing_mm,
        center_mm=center_mm,
        decisions=tuple(log),
        counts=(("slices", n_slices), ("views", n_views), ("detector bins", n_detectors), *counts),
    )


def as_real(array: NDArray[Any], source: str) -> NDArray[Any]:
    """The array, if it holds real numbers.

    Raises
    ------
    InputError
        If it does not.
    """
    if array.dtype.kind not in "iuf":
        raise InputError(f"{source} is {array.dtype}; a sinogram is an array of real numbers.")
    return array


def _in_order(array: NDArray[Any], geometry: BeamGeometry, log: list[Decision], source: str) -> NDArray[Any]:
    """Bring an array to ``(slice, view, detector)``."""
    wanted = (geometry.n_views, geometry.n_detectors)
    if array.ndim in (2, 3) and 0 not in array.shape:
        if array.shape[-2:] == wanted:
            return array.reshape(-1, *wanted)
        if array.shape[-2:] == wanted[::-1]:
            reason = "Its last two axes are as long as the geometry has detector bins and views."
            log.append(Decision("axes", "(slice, detector, view)", reason))
            return array.reshape(-1, *wanted[::-1]).swapaxes(-1, -2)
    raise InputError(
        f"{source} has shape {array.shape}, but its geometry has {wanted[0]} views of {wanted[1]} detector bins; "
        f"expected ({wanted[0]}, {wanted[1]}) or (slice, {wanted[0]}, {wanted[1]})."
    )


def _in_direction(array: NDArray[Any], setup: Setup, options: ReadOptions, log: list[Decision]) -> NDArray[Any]:
    asked = options.reverse_detector is not None
    reverse = options.reverse_detector if options.reverse_detector is not None else setup.reverse_detector
    if reverse or asked:
        reason = "It was asked for." if asked else "Its files number the bins against the direction of the geometry."
        value = "counted in reverse" if reverse else "as they stand"
        log.append(Decision("detector_bins", value, reason, "--reverse-detector"))
    return array[..., ::-1] if reverse else array


def _image_shape(geometry: BeamGeometry, setup: Setup, options: ReadOptions, log: list[Decision]) -> tuple[int, int]:
    override = "--image-shape"
    if options.image_shape is not None:
        shape = checked_image_shape(options.image_shape, "the options")
        reason = "It was asked for."
    elif setup.image_shape is not None and options.pixel_mm is None:
        shape, reason = setup.image_shape, setup.reason
    elif setup.image_shape is not None:
        scale = setup.geometry.pixel_spacing_mm / geometry.pixel_spacing_mm
        shape = tuple(max(1, round(n * scale)) for n in setup.image_shape)  # type: ignore[assignment]
        shape, reason = checked_image_shape(shape, "the options"), "The image is as wide as before."
    else:
        shape, reason = seen_image_shape(geometry), "It covers what the detector sees in every view."
    value = f"{shape[0]} × {shape[1]} pixels of {geometry.pixel_spacing_mm:.4g} mm"
    log.append(Decision("image", value, reason, f"{override} and --pixel-mm"))
    return shape


def _mu_water(setup: Setup, options: ReadOptions, log: list[Decision]) -> tuple[float, bool]:
    given = options.mu_water_per_mm
    value = given if given is not None else setup.mu_water_per_mm
    if value is None:
        reason = "The file does not say it; this is the usual value, and Hounsfield units are only as good."
        log.append(Decision("mu_water", f"{MU_WATER_PER_MM} per mm", reason, "--mu-water", warning=True))
        return MU_WATER_PER_MM, False
    try:
        check_mu_water(value)
    except ValueError as error:
        raise InputError(str(error)) from error
    reason = "It was asked for." if given is not None else setup.reason
    log.append(Decision("mu_water", f"{value:.5g} per mm", reason, "--mu-water"))
    return value, True


def _looks_like_degrees(geometry: BeamGeometry) -> Decision | None:
    """Suspect angles that turn by tens of degrees from view to view, as degrees taken for radians do."""
    steps = np.abs(np.diff(geometry.angles_rad))
    if geometry.n_views < 8 or float(np.median(steps)) < 0.4:
        return None
    reason = (
        f"Neighbouring views are {np.degrees(np.median(steps)):.0f} degrees apart; if the angles are in degrees, they "
        f"were taken for radians."
    )
    return Decision("angles", "radians", reason, "--angle-unit degrees", warning=True)
