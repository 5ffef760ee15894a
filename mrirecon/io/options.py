"""What a person may decide for a reader."""

from dataclasses import dataclass
from typing import Literal

from operators.voxel_grid import Triple


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Overrides of the decisions that readers take; every default means "decide, and log it".

    Parameters
    ----------
    variable
        Name of the array or group to read, where a file holds several (``--variable``).
    axes
        Meaning of an array's axes in the order of the file, from ``repetition``, ``average``, ``contrast``, ``slice``,
        ``coil``, ``kz``, ``ky``, ``kx``, such as ``("kx", "ky", "slice")`` (``--axes kx,ky,slice``).
    fourier_sign
        ``"inverse"``: the image is the inverse transform of the samples (this project's convention); ``"forward"``:
        it is the forward transform, and the samples are conjugated on reading (``--fourier-sign``).
    voxel_mm
        Voxel size (column, row, slice) = (dx, dy, dz) in mm, for files without one or with a wrong one
        (``--voxel-mm 2,2,5``).
    remove_oversampling
        Crop the readout to the field of view of the image (``--keep-oversampling`` switches it off).
    average
        Average repeated measurements that the file marks as averages.
    memory_limit_bytes
        Refuse files that would need more than this.
    """

    variable: str | None = None
    axes: tuple[str, ...] | None = None
    fourier_sign: Literal["inverse", "forward"] | None = None
    voxel_mm: Triple | None = None
    remove_oversampling: bool = True
    average: bool = True
    memory_limit_bytes: int = 8 * 2**30
