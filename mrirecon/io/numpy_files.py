"""Reading k-space arrays from numpy files: ``.npy`` and ``.npz``."""

from pathlib import Path

from mrirecon.io.arrays import check_complex, layout_by_shape
from mrirecon.io.options import ReadOptions
from mrirecon.io.trajectory_arrays import kspace_in
from mrirecon.kspace import KSpace
from operators.io.numpy_files import open_npy, open_npz

_DEFAULTS = ReadOptions()


def read_npy(path: Path | str, options: ReadOptions = _DEFAULTS) -> KSpace:
    """Read one complex array in this project's axis order, ``([slice,] [coil,] ky, kx)``, or as ``options.axes`` says.

    With ``options.trajectory`` it is ``([coil,] [shot,] sample)``, as the shape of the trajectory tells.

    Parameters
    ----------
    path
        An ``.npy`` file.
    options
        Overrides of decisions.

    Returns
    -------
    KSpace
        The scan.

    Raises
    ------
    InputError
        If the file is damaged, or what it holds is no k-space.
    """
    path = Path(path)
    with open_npy(path) as file:
        check_complex(file.arrays[0], path)
        return kspace_in(file, options, lambda stored: layout_by_shape(stored.shape, options, path))


def read_npz(path: Path | str, options: ReadOptions = _DEFAULTS) -> KSpace:
    """Read one complex array of an archive: that of ``options.variable``, or the largest, with its trajectory if any.

    A trajectory is the array called ``trajectory``, ``traj``, ``ktraj``, ``k`` or ``coords``, or else the only one that
    has two or three coordinates for every sample. Beside it count ``dcf``, ``density`` or ``weights``, ``matrix`` or
    ``image_shape``, ``voxel_mm`` and ``fov_mm``.

    Parameters
    ----------
    path
        An ``.npz`` file.
    options
        Overrides of decisions.

    Returns
    -------
    KSpace
        The scan; axes as for ``read_npy``.

    Raises
    ------
    InputError
        If the file is damaged, or holds no k-space.
    """
    path = Path(path)
    with open_npz(path) as file:
        return kspace_in(file, options, lambda stored: layout_by_shape(stored.shape, options, path))
