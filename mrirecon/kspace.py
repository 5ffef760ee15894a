"""The record that every reader returns and every reconstruction takes."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from mrirecon.acquisition import Acquisition
from operators.decision import Decision


@dataclass(frozen=True, slots=True)
class KSpace:
    """Samples of one scan with what is known about them: on the Cartesian grid, or along a trajectory.

    Parameters
    ----------
    data
        Complex64. On the grid ``(*batch, coil, [kz,] ky, kx)``, zero where nothing was measured: entry n//2 of each k
        axis is the origin, and the centred orthonormal *inverse* transform gives the image with row 0 at the top. With
        a trajectory ``(*batch, coil, sample)``, the values of that same transform at its positions.
    mask
        Float32, 1 = measured, 0 = not; broadcasts to ``data`` (coil axis of size 1).
    acquisition
        Geometry and protocol. ``acquisition.encoded_shape`` is the matrix of the uncropped image, and on the grid that
        of ``data``.
    batch_axes
        Names of the leading axes of ``data``, such as ``("repetition", "slice")``; for two-dimensional data the last
        one is ``"slice"``.
    n_dims
        Number of k-space dimensions: 2 (multi-slice) or 3 (volume).
    noise
        Complex64 ``(coil, sample)`` from a noise scan, or ``None``.
    calibration
        Complex64 like ``data``: lines measured for coil calibration only, zero elsewhere; or ``None``, as always with
        a trajectory.
    decisions
        What was decided or done on the way, in order.
    counts
        What the file holds, for people: name of a thing (``"imaging lines"``, ``"noise lines"``, …) → how many.
    readout
        Axis along which the samples of a line on the grid follow one another in time.
    trajectory
        Positions of the samples, real ``(*batch, sample, dim)``, radians per pixel in [−π, π), in the order
        ``([kz,] ky, kx)``; batch axes may be left out or have size 1 where all images share them. ``None`` on the grid.
    dcf
        Density compensation in cells of the Cartesian grid, real ``(*batch, sample)`` like ``trajectory``; ``None``
        where it is to be computed, and on the grid.
    readout_length
        Number of samples of each readout of a trajectory, which follow one another; ``None`` where readouts differ, and
        on the grid.

    Raises
    ------
    TypeError
        If the data are not complex.
    ValueError
        If shapes, axes and header do not agree.
    """

    data: torch.Tensor
    mask: torch.Tensor
    acquisition: Acquisition
    batch_axes: tuple[str, ...] = ("slice",)
    n_dims: int = 2
    noise: torch.Tensor | None = None
    calibration: torch.Tensor | None = None
    decisions: tuple[Decision, ...] = ()
    counts: tuple[tuple[str, int], ...] = ()
    readout: Literal["ky", "kx"] = "kx"
    trajectory: torch.Tensor | None = None
    dcf: torch.Tensor | None = None
    readout_length: int | None = None

    def __post_init__(self) -> None:
        if not self.data.is_complex():
            raise TypeError(f"kspace is {self.data.dtype}; expected a complex tensor.")
        if self.n_dims not in (2, 3):
            raise ValueError(f"kspace has n_dims {self.n_dims}; expected 2 (multi-slice) or 3 (volume).")
        expected = len(self.batch_axes) + 1 + self.n_k_axes
        if self.data.ndim != expected:
            raise ValueError(
                f"kspace has shape {tuple(self.data.shape)}; expected {expected} dimensions: "
                f"{(*self.batch_axes, 'coil', *self.k_axes)}."
            )
        if self.n_dims == 2 and (not self.batch_axes or self.batch_axes[-1] != "slice"):
            raise ValueError(
                f"The batch axes of two-dimensional k-space are {self.batch_axes}; the last must be 'slice'."
            )
        if self.is_cartesian and self.image_shape != self.k_shape:
            raise ValueError(f"kspace is {self.k_shape}, but its header says {self.acquisition.encoded_shape}.")
        if torch.broadcast_shapes(self.mask.shape, self.data.shape) != self.data.shape:
            raise ValueError(f"mask {tuple(self.mask.shape)} does not broadcast to kspace {tuple(self.data.shape)}.")
        self._check_trajectory()

    def _check_trajectory(self) -> None:
        if self.trajectory is None:
            for name in ("dcf", "readout_length"):
                if getattr(self, name) is not None:
                    raise ValueError(f"kspace has {name} but no trajectory; give both or neither.")
            return
        positions = (*self.data.shape[: len(self.batch_axes)], self.n_samples, self.n_dims)
        if not _broadcasts(self.trajectory, positions) or self.trajectory.shape[-2:] != positions[-2:]:
            raise ValueError(
                f"trajectory has shape {tuple(self.trajectory.shape)}; kspace {tuple(self.data.shape)} expects "
                f"{positions}, with or without its batch axes."
            )
        if self.dcf is not None and (not _broadcasts(self.dcf, positions[:-1]) or len(self.dcf.shape) < 1):
            raise ValueError(f"dcf has shape {tuple(self.dcf.shape)}; the trajectory expects {positions[:-1]}.")
        if self.calibration is not None:
            raise ValueError("kspace has calibration lines and a trajectory; calibrate from the centre of k-space.")
        if self.readout_length is not None and self.n_samples % self.readout_length:
            raise ValueError(f"{self.n_samples} samples are no whole number of readouts of {self.readout_length}.")

    @property
    def is_cartesian(self) -> bool:
        """Whether the samples lie on the Cartesian grid."""
        return self.trajectory is None

    @property
    def k_axes(self) -> tuple[str, ...]:
        """Names of the trailing axes of ``data``: ``([kz,] ky, kx)`` or ``(sample,)``."""
        return ("kz", "ky", "kx")[-self.n_dims :] if self.is_cartesian else ("sample",)

    @property
    def n_k_axes(self) -> int:
        """Number of trailing axes of ``data`` that count samples."""
        return len(self.k_axes)

    @property
    def k_shape(self) -> tuple[int, ...]:
        """Sizes of ``k_axes``."""
        return tuple(self.data.shape[-self.n_k_axes :])

    @property
    def n_samples(self) -> int:
        """Number of entries of one coil and image, measured or not."""
        return math.prod(self.k_shape)

    @property
    def n_coils(self) -> int:
        """Number of receive coils."""
        return self.data.shape[-self.n_k_axes - 1]

    @property
    def n_slices(self) -> int:
        """Number of slices of a stack, or of partitions of a volume."""
        return self.image_shape[0] if self.n_dims == 3 else self.data.shape[len(self.batch_axes) - 1]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one uncropped image, ``([z,] y, x)``."""
        return tuple(self.acquisition.encoded_shape[-self.n_dims :])

    @property
    def fill_rate(self) -> float:
        """Fraction of the Cartesian grid that was measured: of its cells that hold a sample, with a trajectory."""
        mask = self.mask.expand(*self.data.shape[: len(self.batch_axes)], 1, *self.k_shape)
        if self.trajectory is None:
            return float(mask.mean())
        sizes = torch.tensor(self.image_shape, device=self.trajectory.device)
        index = torch.round(self.trajectory.double() * sizes / (2 * math.pi)).long() % sizes
        cell = torch.zeros_like(index[..., 0])
        for n, along in zip(self.image_shape, index.unbind(dim=-1), strict=True):
            cell = cell * n + along
        cells = cell.expand(*mask.shape[:-2], mask.shape[-1]).reshape(-1, mask.shape[-1])
        hit = torch.zeros(len(cells), math.prod(self.image_shape), device=mask.device)
        hit.scatter_reduce_(1, cells, mask.reshape(cells.shape), "amax")
        return float(hit.mean())

    def with_decisions(self, *decisions: Decision) -> "KSpace":
        """The same k-space with further decisions in its log."""
        return replace(self, decisions=(*self.decisions, *decisions))


def _broadcasts(tensor: torch.Tensor, shape: tuple[int, ...]) -> bool:
    try:
        return torch.broadcast_shapes(tensor.shape, shape) == shape
    except RuntimeError:
        return False
