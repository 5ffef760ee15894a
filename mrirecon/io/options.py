"""What a person may decide for a reader."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from operators.voxel_grid import Triple

if TYPE_CHECKING:
    from mrirecon.trajectory import TrajectoryUnit


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Overrides of the decisions that readers take; every default means "decide, and log it".

    Parameters
    ----------
    variable
        Name of the array or group to read, where a file holds several (``--variable``).
    axes
        Meaning of an array's axes in the order of the file, from ``repetition``, ``average``, ``contrast``, ``slice``,
        ``coil``, ``kz``, ``ky``, ``kx``, such as ``("kx", "ky", "slice")`` (``--axes kx,ky,slice``); with a trajectory
        the last two are ``shot`` (one readout) and ``sample``, such as ``("coil", "shot", "sample")``.
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
    trajectory
        A file with the trajectory of an array, where the one with the samples has none (``--trajectory-file``).
    trajectory_unit
        Unit of a trajectory (``--trajectory-unit``); otherwise decided from its largest coordinate.
    trajectory_axes
        Order of the components of a trajectory in the file, such as ``("ky", "kx")`` (``--trajectory-axes ky,kx``);
        otherwise kx, ky[, kz].
    matrix
        Pixels of the image of a scan with a trajectory, ``([z,] y, x)``, where the file does not say (``--matrix``).
    """

    variable: str | None = None
    axes: tuple[str, ...] | None = None
    fourier_sign: Literal["inverse", "forward"] | None = None
    voxel_mm: Triple | None = None
    remove_oversampling: bool = True
    average: bool = True
    memory_limit_bytes: int = 8 * 2**30
    trajectory: Path | None = None
    trajectory_unit: "TrajectoryUnit | None" = None
    trajectory_axes: tuple[str, ...] | None = None
    matrix: tuple[int, ...] | None = None
