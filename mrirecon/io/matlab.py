"""Reading k-space arrays from MATLAB files (version 5 and 7.3) and from HDF5 files that hold plain arrays."""

from dataclasses import replace
from pathlib import Path

from mrirecon.io.arrays import ArrayLayout, axes_needed, layout_by_shape, short_name
from mrirecon.io.options import ReadOptions
from mrirecon.io.trajectory_arrays import kspace_in
from mrirecon.kspace import KSpace
from operators.errors import InputError
from operators.io.array_file import StoredArray
from operators.io.hdf5_arrays import open_hdf5_arrays
from operators.io.matlab5 import open_matlab5

_DEFAULTS = ReadOptions()
# The 0.055 T scanner: evidence for the field of view is in the reason that is logged with it.
_READOUT_SAMPLES = 128
_READOUT_FOV_MM = 250.0
_PHASE_FOV_MM = 250.0 * 126 / 128
_SLICE_MM = 10.0


def read_matlab5(path: Path | str, options: ReadOptions = _DEFAULTS) -> KSpace:
    """Read one complex array of a MATLAB 5 file (the default of MATLAB's and Octave's ``save -v6`` and ``-v7``).

    An array called ``kspace`` or ``ksp`` is taken to be laid out like the published 0.055 T scans: (readout, phase,
    slice, repetition), one coil, and its image is the forward transform. With a trajectory, found as in ``read_npz``,
    it is (sample, [shot,] [coil]), and its image the inverse transform.

    Parameters
    ----------
    path
        A ``.mat`` file.
    options
        Overrides of decisions; ``variable`` chooses the array, otherwise it is the largest complex one.

    Returns
    -------
    KSpace
        The scan.

    Raises
    ------
    InputError
        If the file is damaged, or holds no k-space.
    """
    path = Path(path)
    with open_matlab5(path) as file:
        return kspace_in(file, options, lambda stored: _layout(stored, options, path), fastest="first")


def read_hdf5_array(path: Path | str, options: ReadOptions = _DEFAULTS) -> KSpace:
    """Read one complex array of an HDF5 file that follows no raw-data standard, or of a MATLAB 7.3 file.

    Arrays of MATLAB are understood as in ``read_matlab5``, others as in ``read_npy``. Complex numbers may be records
    of a real and an imaginary part.

    Parameters
    ----------
    path
        The file.
    options
        Overrides of decisions; ``variable`` chooses the array by its path, otherwise it is the largest complex one.

    Returns
    -------
    KSpace
        The scan.

    Raises
    ------
    InputError
        If the file is damaged, or holds no k-space.
    """
    path = Path(path)
    with open_hdf5_arrays(path) as file:
        if file.is_matlab:
            return kspace_in(file, options, lambda stored: _layout(stored, options, path), fastest="first")
        return kspace_in(file, options, lambda stored: layout_by_shape(stored.shape, options, path))


def _layout(stored: StoredArray, options: ReadOptions, path: Path) -> ArrayLayout:
    shape, name = stored.shape, short_name(stored)
    if name not in ("kspace", "ksp") or not 2 <= len(shape) <= 4:
        if len(shape) > 2 and not options.axes:
            raise InputError(axes_needed(shape, path, "ky,kx,coil"))
        return layout_by_shape(shape, options, path)
    axes = options.axes or ("ky", "kx", "slice", "repetition")[: len(shape)]
    as_published = ArrayLayout(
        axes,
        "An array called kspace or ksp is taken to be (readout, phase, slice, repetition) of one coil, as published "
        "for the 0.055 T scanner.",
        fourier_sign="forward",
        sign_reason="The published images are the forward transform; the samples were conjugated.",
        axes_doubtful=shape[0] != _READOUT_SAMPLES,
        orientation="image rows = readout, as published",
        orientation_reason="The published images show heads upright.",
        readout="ky" if axes[0] == "ky" else "kx",
    )
    if shape[0] != _READOUT_SAMPLES or set(axes[:2]) != {"ky", "kx"}:
        return as_published
    spacing_mm = {axes[0]: _READOUT_FOV_MM / _READOUT_SAMPLES, axes[1]: _PHASE_FOV_MM / shape[1]}
    return replace(
        as_published,
        voxel_mm=(spacing_mm["kx"], spacing_mm["ky"], _SLICE_MM),
        voxel_reason="The file carries none; the published protocol of the 0.055 T scanner is taken to have a field of "
        "view of 250 mm over 128 readout samples and slices of 10 mm; its phase field of view measures 0.984 of that.",
    )
