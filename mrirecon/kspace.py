"""The record that every reader returns and every reconstruction takes."""

from dataclasses import dataclass, replace

import torch

from mrirecon.acquisition import Acquisition
from operators.decision import Decision


@dataclass(frozen=True, slots=True)
class KSpace:
    """Samples of one scan on the Cartesian grid, with what is known about them.

    Parameters
    ----------
    data
        Complex64, ``(*batch, coil, [kz,] ky, kx)``, zero where nothing was measured. Entry n//2 of each k axis is the
        origin, and the centred orthonormal *inverse* transform gives the image with row 0 at the top.
    mask
        Float32, 1 = measured, 0 = not; broadcasts to ``data`` (coil axis of size 1).
    acquisition
        Geometry and protocol. ``acquisition.encoded_shape`` agrees with ``data``.
    batch_axes
        Names of the leading axes of ``data``, such as ``("repetition", "slice")``; for two-dimensional data the last
        one is ``"slice"``.
    n_dims
        Number of k-space dimensions: 2 (multi-slice) or 3 (volume).
    noise
        Complex64 ``(coil, sample)`` from a noise scan, or ``None``.
    calibration
        Complex64 like ``data``: lines measured for coil calibration only, zero elsewhere; or ``None``.
    decisions
        What was decided or done on the way, in order.
    counts
        What the file holds, for people: name of a thing (``"imaging lines"``, ``"noise lines"``, …) → how many.

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

    def __post_init__(self) -> None:
        if not self.data.is_complex():
            raise TypeError(f"kspace is {self.data.dtype}; expected a complex tensor.")
        if self.n_dims not in (2, 3):
            raise ValueError(f"kspace has n_dims {self.n_dims}; expected 2 (multi-slice) or 3 (volume).")
        expected = len(self.batch_axes) + 1 + self.n_dims
        if self.data.ndim != expected:
            raise ValueError(
                f"kspace has shape {tuple(self.data.shape)}; expected {expected} dimensions: "
                f"{(*self.batch_axes, 'coil', *('kz', 'ky', 'kx')[-self.n_dims :])}."
            )
        if self.n_dims == 2 and (not self.batch_axes or self.batch_axes[-1] != "slice"):
            raise ValueError(
                f"The batch axes of two-dimensional k-space are {self.batch_axes}; the last must be 'slice'."
            )
        shape = tuple(self.data.shape[-self.n_dims :])
        if self.acquisition.encoded_shape[-self.n_dims :] != shape:
            raise ValueError(f"kspace is {shape}, but its header says {self.acquisition.encoded_shape}.")
        if torch.broadcast_shapes(self.mask.shape, self.data.shape) != self.data.shape:
            raise ValueError(f"mask {tuple(self.mask.shape)} does not broadcast to kspace {tuple(self.data.shape)}.")

    @property
    def n_coils(self) -> int:
        """Number of receive coils."""
        return self.data.shape[-self.n_dims - 1]

    @property
    def n_slices(self) -> int:
        """Number of slices of a stack, or of partitions of a volume."""
        return self.data.shape[-3] if self.n_dims == 3 else self.data.shape[len(self.batch_axes) - 1]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one uncropped image, ``([z,] y, x)``."""
        return tuple(self.data.shape[-self.n_dims :])

    @property
    def fill_rate(self) -> float:
        """Fraction of the grid that was measured."""
        return float(self.mask.expand(*self.data.shape[: -self.n_dims - 1], 1, *self.image_shape).mean())

    def with_decisions(self, *decisions: Decision) -> "KSpace":
        """The same k-space with further decisions in its log."""
        return replace(self, decisions=(*self.decisions, *decisions))
