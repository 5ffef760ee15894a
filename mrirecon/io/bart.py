"""Reading BART's pairs of files: ``.hdr``, a text with the dimensions, and ``.cfl``, the samples."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrirecon.io.arrays import ArrayLayout, check_array_memory, kspace_from_array
from mrirecon.io.options import ReadOptions
from mrirecon.io.trajectory_arrays import kspace_along_trajectory
from mrirecon.io.trajectory_files import read_trajectory_file, refuse_cartesian_axes
from mrirecon.kspace import KSpace
from operators.errors import InputError
from operators.io.array_file import StoredArray, damage_reported

_DEFAULTS = ReadOptions()
_HEADER_START = b"# Dimensions"
_LONGEST_HEADER = 2**20
_DIMENSIONS = (
    *("readout", "phase encoding 1", "phase encoding 2", "coil", "maps", "echo time", "coefficient", "coefficient 2"),
    *("iteration", "chemical shift", "time", "time 2", "level", "slice", "average", "batch"),
)
_AXES = {0: "kx", 1: "ky", 2: "kz", 3: "coil", 5: "contrast", 10: "repetition", 13: "slice", 14: "average"}
_TRAJECTORY_AXES = {1: "sample", 2: "shot", **{d: name for d, name in _AXES.items() if d > 2}}


def read_bart(path: Path | str, options: ReadOptions = _DEFAULTS) -> KSpace:
    """Read a scan; BART fixes what each of its 16 dimensions means.

    A first dimension of 1 is that of a scan with a trajectory, ``(1, sample, shot, coil, …)``, which
    ``options.trajectory`` names.

    Parameters
    ----------
    path
        Either file of the pair.
    options
        Overrides of decisions; ``axes`` then names the dimensions that are larger than 1.

    Returns
    -------
    KSpace
        The scan.

    Raises
    ------
    InputError
        If one of the files is missing or damaged, or a trajectory is missing or does not fit.
    """
    header, samples = _pair(Path(path))
    shape = _read_shape(header)
    kept = [d for d, n in enumerate(shape) if n > 1]
    if options.trajectory is not None:
        if shape[0] != 1:
            raise InputError(
                f"{header} has a readout dimension of {shape[0]}, as a Cartesian scan; leave --trajectory-file out."
            )
        refuse_cartesian_axes(options)
        kept = kept if options.axes else sorted({1, 2, *kept})
        axes = None if options.axes else _axes(shape, kept, header, _TRAJECTORY_AXES)
        trajectory = read_trajectory_file(options.trajectory, options)
        array = _read_samples(header, samples, shape, kept, options)
        return kspace_along_trajectory(array, trajectory, options, source=str(samples), axes=axes)
    if options.axes is None:
        kept = sorted({0, 1, *kept})
        layout = ArrayLayout(_axes(shape, kept, header, _AXES), "BART gives every dimension a fixed meaning.")
    else:
        layout = ArrayLayout(options.axes, "It was asked for.")
    array = _read_samples(header, samples, shape, kept, options)
    return kspace_from_array(array, options, layout, source=str(samples))


def read_bart_trajectory(path: Path | str, options: ReadOptions) -> NDArray[np.float32]:
    """Read a trajectory as BART's ``traj`` writes it.

    Parameters
    ----------
    path
        Either file of the pair.
    options
        The memory limit.

    Returns
    -------
    NDArray
        ``(3, sample, shot, …)``, coordinates kx, ky, kz in units of the index on the grid of the image.

    Raises
    ------
    InputError
        If one of the files is missing or damaged, or holds no trajectory.
    """
    header, samples = _pair(Path(path))
    shape = _read_shape(header)
    array = _read_samples(header, samples, shape, list(range(len(shape))), options)
    if shape[0] != 3 or np.any(array.imag):
        raise InputError(
            f"{samples} has the dimensions {shape}, or an imaginary part, and is no trajectory of BART; expected real "
            f"values with 3 coordinates along the first dimension, as its traj command writes them."
        )
    return array.real


def is_bart(path: Path, head: bytes) -> bool:
    """Whether a file is one of a pair; samples carry no signature and are known by the header beside them.

    Parameters
    ----------
    path
        The file.
    head
        Its first bytes.
    """
    if head.startswith(_HEADER_START):
        return True
    header = path.with_suffix(".hdr")
    if header == path or not header.is_file():
        return False
    with header.open("rb") as stream:
        return stream.read(len(_HEADER_START)) == _HEADER_START


def _pair(path: Path) -> tuple[Path, Path]:
    """The header and the samples, given either."""
    with path.open("rb") as stream:
        is_header = stream.read(len(_HEADER_START)) == _HEADER_START
    header, samples = (path, path.with_suffix(".cfl")) if is_header else (path.with_suffix(".hdr"), path)
    for wanted in (header, samples):
        if not wanted.is_file():
            raise InputError(f"BART data are a pair of files, and {wanted} is missing; put it beside {path.name}.")
    return header, samples


def _read_shape(header: Path) -> tuple[int, ...]:
    with header.open("rb") as stream:
        lines = stream.read(_LONGEST_HEADER).decode("latin-1").splitlines()
    words = lines[1].split() if len(lines) > 1 else []
    if not 1 <= len(words) <= len(_DIMENSIONS) or not all(word.isascii() and word.isdigit() for word in words):
        raise InputError(f"{header} names no dimensions in its second line; expected up to 16 numbers.")
    shape = tuple(int(word[:20]) for word in words)
    if 0 in shape:
        raise InputError(f"{header} has the dimensions {shape}; every one must be at least 1.")
    return shape + (1,) * (2 - len(shape))


def _read_samples(
    header: Path, samples: Path, shape: tuple[int, ...], kept: list[int], options: ReadOptions
) -> NDArray[np.complex64]:
    """The samples with the dimensions that are kept, of which all others have size 1."""
    check_array_memory(StoredArray("the array", tuple(n for n in shape if n > 1), "complex64"), options, samples)
    n_bytes, needed = samples.stat().st_size, 8 * math.prod(shape)
    if n_bytes != needed:
        raise InputError(
            f"{samples} has {n_bytes} bytes, but the dimensions in {header.name} need {needed}; one of the two is "
            f"truncated or belongs to another scan."
        )
    with damage_reported(samples, "BART"):
        return np.fromfile(samples, dtype="<c8").reshape([shape[d] for d in kept], order="F")


def _axes(shape: tuple[int, ...], kept: list[int], header: Path, names: Mapping[int, str]) -> tuple[str, ...]:
    if shape[0] == 1 and 0 in names:
        raise InputError(
            f"{header} has a readout dimension of 1, as for spokes or spirals; give the trajectory with "
            f"--trajectory-file."
        )
    for d in kept:
        if d not in names:
            raise InputError(
                f"{header} has {shape[d]} entries in its {_DIMENSIONS[d]} dimension; k-space has none, choose one with "
                f"BART's slice command."
            )
    return tuple(names[d] for d in kept)
