"""Reading the files of SynDeepLesion: simulated sinograms with and without metal, and the metal's trace."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from ctrecon.io.assembly import sinogram_from_array
from ctrecon.io.datasets import read_numbers
from ctrecon.io.geometry_files import Setup, setup_for
from ctrecon.io.options import ReadOptions
from ctrecon.sinogram import Sinogram
from operators.decision import Decision
from operators.errors import InputError
from operators.io.hdf5 import find_dataset, open_hdf5

_DEFAULTS = ReadOptions()
_SINOGRAMS = ("ma_sinogram", "poly_sinogram", "LI_sinogram")
_TRACE = "metal_trace"
_PRESET = "syndeeplesion"


def looks_like_syndeeplesion(file: h5py.File) -> bool:
    """Whether an open HDF5 file holds one of the sinograms of the data set."""
    return bool(_held(file))


def read_syndeeplesion(path: Path | str, options: ReadOptions = _DEFAULTS) -> Sinogram:
    """Read one sinogram of a file.

    ``ma_sinogram`` is the measurement with metal, ``poly_sinogram`` that without, both after the water correction for
    beam hardening, and ``LI_sinogram`` is the first with the trace of the metal interpolated. The trace is not applied,
    unless ``mask_metal`` asks for it: then its rays get the weight 0. ``read_metal_trace`` reads it.

    Parameters
    ----------
    path
        An HDF5 file of the data set.
    options
        Overrides of decisions; ``variable`` chooses the sinogram, otherwise it is the first in the order above.

    Returns
    -------
    Sinogram

    Raises
    ------
    InputError
        If the file is damaged, or does not fit the geometry.
    """
    path = Path(path)
    setup, geometry_decision = _setup(path, options)
    with open_hdf5(path) as file:
        held = _held(file)
        name = _choose(held, options, path)
        array = _matrix(file, name, options, path)
        trace = _matrix(file, _TRACE, options, path) if options.mask_metal else None
    decisions = [geometry_decision]
    if len(held) > 1 and options.variable is None:
        reason = f"The file holds {', '.join(held)}; the first is what a scanner would measure."
        decisions.append(Decision("variable", name, reason, "--variable"))
    source = f"{name} in {path}"
    if options.quantity is None:
        # Noise makes thin rays negative, but what the data set holds is known.
        options = replace(options, quantity="line-integrals")
    sinogram = sinogram_from_array(array, setup, options, source=source, decisions=tuple(decisions))
    if trace is None:
        return sinogram
    metal = _oriented_trace(trace, setup, options, path)
    percent = f"{100 * float(metal.mean()):.3g} % of the rays"
    decision = Decision("metal_trace", percent, "Rays through metal have the weight 0, as was asked for.")
    return replace(sinogram, weights=1 - metal).with_decisions(decision)


def read_metal_trace(path: Path | str, options: ReadOptions = _DEFAULTS) -> torch.Tensor:
    """Read the trace of the metal that belongs to the sinograms of a file.

    Parameters
    ----------
    path
        An HDF5 file of the data set.
    options
        As for the sinogram.

    Returns
    -------
    torch.Tensor
        Float32 ``(slice, view, detector)``; 1 = the ray runs through metal.

    Raises
    ------
    InputError
        If the file is damaged, holds no trace, or does not fit the geometry.
    """
    path = Path(path)
    setup, _ = _setup(path, options)
    with open_hdf5(path) as file:
        trace = _matrix(file, _TRACE, options, path)
    return _oriented_trace(trace, setup, options, path)


def _setup(path: Path, options: ReadOptions) -> tuple[Setup, Decision]:
    if options.preset is None and options.geometry is None:
        setup, decision = setup_for(path, replace(options, preset=_PRESET))
        setup = replace(setup, reason="It is that of the data set.")
        return setup, replace(decision, reason=setup.reason)
    return setup_for(path, options)


def _held(file: h5py.File) -> list[str]:
    return [name for name in _SINOGRAMS if find_dataset(file, name) is not None]


def _choose(held: list[str], options: ReadOptions, path: Path) -> str:
    if options.variable is None:
        return held[0]
    if options.variable.strip("/") not in held:
        raise InputError(f"{path} has no sinogram {options.variable!r}; it has {', '.join(held)}.")
    return options.variable.strip("/")


def _matrix(file: h5py.File, name: str, options: ReadOptions, path: Path) -> NDArray[Any]:
    return read_numbers(file, name, ("view", "detector bin"), options, path)


def _oriented_trace(trace: NDArray[Any], setup: Setup, options: ReadOptions, path: Path) -> torch.Tensor:
    """The trace in the order of the sinogram, as zeros and ones."""
    source = f"{_TRACE} in {path}"
    geometry = setup.geometry
    wanted = (geometry.n_views, geometry.n_detectors)
    if trace.shape == wanted[::-1]:
        trace = trace.T
    if trace.shape != wanted:
        raise InputError(f"{source} has shape {trace.shape}; expected {wanted} as the sinogram.")
    reverse = setup.reverse_detector if options.reverse_detector is None else options.reverse_detector
    metal = (trace > 0).astype(np.float32)[..., :: -1 if reverse else 1]
    return torch.from_numpy(np.ascontiguousarray(metal[None]))
