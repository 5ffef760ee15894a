"""Reading k-space arrays from numpy files: ``.npy`` and ``.npz``."""

from pathlib import Path

from mrirecon.io.arrays import check_array_memory, check_complex, choose_array, kspace_from_array, layout_by_shape
from mrirecon.io.options import ReadOptions
from mrirecon.kspace import KSpace
from operators.io.numpy_files import open_npy, open_npz

_DEFAULTS = ReadOptions()


def read_npy(path: Path | str, options: ReadOptions = _DEFAULTS) -> KSpace:
    """Read one complex array in this project's axis order, ``([slice,] [coil,] ky, kx)``, or as ``options.axes`` says.

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
        (stored,) = file.arrays
        check_complex(stored, path)
        check_array_memory(stored, options, path)
        array = file.read(stored, limit_bytes=options.memory_limit_bytes)
    return kspace_from_array(array, options, layout_by_shape(stored.shape, options, path), source=str(path))


def read_npz(path: Path | str, options: ReadOptions = _DEFAULTS) -> KSpace:
    """Read one complex array of an archive: that of ``options.variable``, or the largest.

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
        stored, decisions = choose_array(file.arrays, options, path)
        check_array_memory(stored, options, path)
        array = file.read(stored, limit_bytes=options.memory_limit_bytes)
    layout = layout_by_shape(stored.shape, options, path)
    return kspace_from_array(array, options, layout, source=f"{stored.name} in {path}", decisions=decisions)
