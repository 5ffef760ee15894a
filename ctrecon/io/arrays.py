"""Reading sinograms that are plain arrays, in numpy, MATLAB, HDF5 and raw files, with a geometry beside them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctrecon.io.assembly import check_array_memory, sinogram_from_array
from ctrecon.io.geometry_files import setup_for
from ctrecon.io.options import ReadOptions
from ctrecon.sinogram import Sinogram
from operators.beam_geometry import BeamGeometry
from operators.decision import Decision
from operators.errors import InputError
from operators.io.array_file import ArrayFile, StoredArray, damage_reported
from operators.io.hdf5_arrays import open_hdf5_arrays
from operators.io.matlab5 import open_matlab5
from operators.io.numpy_files import open_npy, open_npz

_DEFAULTS = ReadOptions()
_RAW_BYTES = 4


def read_npy(path: Path | str, options: ReadOptions = _DEFAULTS) -> Sinogram:
    """Read an ``.npy`` file, ``(view, detector)`` or ``(slice, view, detector)``; see ``read_raw`` for the geometry.

    Parameters
    ----------
    path
        The file.
    options
        Overrides of decisions.

    Returns
    -------
    Sinogram

    Raises
    ------
    InputError
        If the file is damaged, or does not fit its geometry.
    """
    return _read(open_npy, path, options)


def read_npz(path: Path | str, options: ReadOptions = _DEFAULTS) -> Sinogram:
    """Read one array of an ``.npz`` archive: that of ``options.variable``, or the one that fits the geometry.

    Parameters
    ----------
    path
        The file.
    options
        Overrides of decisions.

    Returns
    -------
    Sinogram

    Raises
    ------
    InputError
        If the file is damaged, or nothing in it fits the geometry.
    """
    return _read(open_npz, path, options)


def read_matlab5_array(path: Path | str, options: ReadOptions = _DEFAULTS) -> Sinogram:
    """Read one matrix of a MATLAB 5 file; see ``read_npz``.

    Parameters
    ----------
    path
        The file.
    options
        Overrides of decisions.

    Returns
    -------
    Sinogram

    Raises
    ------
    InputError
        If the file is damaged, or nothing in it fits the geometry.
    """
    return _read(open_matlab5, path, options)


def read_hdf5_array(path: Path | str, options: ReadOptions = _DEFAULTS) -> Sinogram:
    """Read one array of an HDF5 file that follows no standard, such as those of LoDoPaB-CT; see ``read_npz``.

    Parameters
    ----------
    path
        The file.
    options
        Overrides of decisions.

    Returns
    -------
    Sinogram

    Raises
    ------
    InputError
        If the file is damaged, or nothing in it fits the geometry.
    """
    return _read(open_hdf5_arrays, path, options)


def read_raw(path: Path | str, options: ReadOptions = _DEFAULTS) -> Sinogram:
    """Read a file of little-endian float32 numbers without a header, slice after slice and view after view.

    Parameters
    ----------
    path
        The file.
    options
        ``geometry`` or ``preset`` says where the rays run; otherwise a JSON file of the same name does.

    Returns
    -------
    Sinogram

    Raises
    ------
    InputError
        If there is no geometry, or the size of the file does not fit it.
    """
    return _read(_open_raw_for(options), path, options)


def _read(
    opened: Callable[[Path], AbstractContextManager[ArrayFile]], path: Path | str, options: ReadOptions
) -> Sinogram:
    path = Path(path)
    setup, geometry_decision = setup_for(path, options)
    with opened(path) as file:
        stored, decisions = _choose(file.arrays, setup.geometry, options, path)
        check_array_memory(stored.n_elements, options, what=f"{stored} in {path}")
        array = file.read(stored, limit_bytes=options.memory_limit_bytes)
    source = f"{stored.name} in {path}"
    return sinogram_from_array(array, setup, options, source=source, decisions=(geometry_decision, *decisions))


def _choose(
    arrays: tuple[StoredArray, ...], geometry: BeamGeometry, options: ReadOptions, path: Path
) -> tuple[StoredArray, tuple[Decision, ...]]:
    """The array that was asked for, or the one that fits the geometry."""
    held = ", ".join(map(str, arrays[:12])) + (", …" if len(arrays) > 12 else "")
    if options.variable is not None:
        named = [array for array in arrays if array.name.strip("/") == options.variable.strip("/")]
        if not named:
            raise InputError(f"{path} holds no array named {options.variable!r}; it holds {held or 'none'}.")
        return _real(named[0], path), ()
    if len(arrays) == 1:
        return _real(arrays[0], path), ()
    wanted = {geometry.n_views, geometry.n_detectors}
    fitting = [
        array for array in arrays if array.is_real and len(array.shape) in (2, 3) and set(array.shape[-2:]) == wanted
    ]
    if not fitting:
        raise InputError(
            f"{path} holds no array of {geometry.n_views} views and {geometry.n_detectors} detector bins, which its "
            f"geometry has; it holds {held or 'nothing'}."
        )
    if len(fitting) == 1:
        return fitting[0], ()
    named_all = ", ".join(map(str, fitting[:12]))
    reason = f"It is the first of {len(fitting)} arrays that fit the geometry: {named_all}."
    return fitting[0], (Decision("variable", fitting[0].name, reason, "--variable", warning=True),)


def _real(array: StoredArray, path: Path) -> StoredArray:
    if not array.is_real:
        raise InputError(f"{array} in {path} holds no real numbers; a sinogram does.")
    return array


class _RawFile(ArrayFile):
    def _read(self, stored: StoredArray, limit_bytes: int) -> NDArray[Any]:
        return np.fromfile(self.path, dtype="<f4", count=stored.n_elements).reshape(stored.shape)


def _open_raw_for(options: ReadOptions) -> Callable[[Path], AbstractContextManager[ArrayFile]]:
    @contextmanager
    def open_raw(path: Path) -> Iterator[ArrayFile]:
        geometry = setup_for(path, options)[0].geometry
        n_bytes = path.stat().st_size
        view_bytes = geometry.n_views * geometry.n_detectors * _RAW_BYTES
        n_slices, rest = divmod(n_bytes, view_bytes)
        if rest or not n_slices:
            raise InputError(
                f"{path} has {n_bytes} bytes, but {geometry.n_views} views of {geometry.n_detectors} bins in float32 "
                f"need {view_bytes}, or a multiple for several slices; it is truncated, or the geometry is another's."
            )
        with damage_reported(path, "raw float32"):
            stored = StoredArray("the array", (n_slices, geometry.n_views, geometry.n_detectors), "float32")
            yield _RawFile(path, (stored,))

    return open_raw
