"""The record that every CT reader returns and every reconstruction takes."""

from dataclasses import dataclass, replace

import torch

from ctrecon.hounsfield import MU_WATER_PER_MM, check_mu_water
from operators.beam_geometry import BeamGeometry
from operators.decision import Decision
from operators.voxel_grid import IDENTITY_DIRECTIONS, Triple, VoxelGrid


@dataclass(frozen=True, slots=True)
class Sinogram:
    """Line integrals of one scan, with what is known about them.

    Parameters
    ----------
    data
        Line integrals −log(I/I0), float32, ``(slice, view, detector)``, dimensionless.
    geometry
        Where the rays run; the same for every slice.
    image_shape
        Size of the image to reconstruct, ``(y, x)``; its pixel is ``geometry.pixel_spacing_mm``.
    mu_water_per_mm
        Attenuation of water for this scan, in 1/mm.
    mu_water_known
        Whether the file says it; if not, it is the usual value, and Hounsfield units are only as good.
    weights
        Statistical weight of each line integral, proportional to the photons counted, float32 like ``data``, or
        ``None`` where all count alike. 0 marks what was not measured.
    slice_spacing_mm
        Distance between the centres of neighbouring slices, in mm.
    center_mm
        LPS position of the isocentre in the first slice, in mm.
    directions
        Unit vectors in LPS along increasing slice, row and column index.
    patient
        Identifiers of the person; written only on request.
    decisions
        What was decided or done on the way, in order.
    counts
        What the file holds, for people: name of a thing (``"views"``, ``"dark fields"``, …) → how many.

    Raises
    ------
    TypeError
        If the data are not real floating-point.
    ValueError
        If shapes and geometry do not agree, or the attenuation of water is implausible.
    """

    data: torch.Tensor
    geometry: BeamGeometry
    image_shape: tuple[int, int]
    mu_water_per_mm: float = MU_WATER_PER_MM
    mu_water_known: bool = False
    weights: torch.Tensor | None = None
    slice_spacing_mm: float = 1.0
    center_mm: Triple = (0.0, 0.0, 0.0)
    directions: tuple[Triple, Triple, Triple] = IDENTITY_DIRECTIONS
    patient: tuple[tuple[str, str], ...] = ()
    decisions: tuple[Decision, ...] = ()
    counts: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.data.is_floating_point():
            raise TypeError(f"sinogram is {self.data.dtype}; expected real floating-point line integrals.")
        expected = (self.geometry.n_views, self.geometry.n_detectors)
        if self.data.ndim != 3 or tuple(self.data.shape[1:]) != expected:
            raise ValueError(
                f"sinogram has shape {tuple(self.data.shape)}; expected (slice, {expected[0]}, {expected[1]})."
            )
        if self.weights is not None and self.weights.shape != self.data.shape:
            raise ValueError(
                f"weights are {tuple(self.weights.shape)}, the sinogram {tuple(self.data.shape)}; they must agree."
            )
        if len(self.image_shape) != 2 or any(n < 1 for n in self.image_shape):
            raise ValueError(f"image_shape is {self.image_shape}; expected two positive sizes (y, x).")
        check_mu_water(self.mu_water_per_mm)

    @property
    def n_slices(self) -> int:
        """Number of slices."""
        return self.data.shape[0]

    def grid(self) -> VoxelGrid:
        """Voxel grid of the reconstructed image; the isocentre is at the centre of the image."""
        n_y, n_x = self.image_shape
        spacing = self.geometry.pixel_spacing_mm
        grid = VoxelGrid(
            (self.n_slices, n_y, n_x), (self.slice_spacing_mm, spacing, spacing), self.directions, (0.0, 0.0, 0.0)
        )
        center = grid.position_mm((0, (n_y - 1) / 2, (n_x - 1) / 2))
        origin = tuple(wanted - found for wanted, found in zip(self.center_mm, center, strict=True))
        return replace(grid, origin_mm=(origin[0], origin[1], origin[2]))

    def with_decisions(self, *decisions: Decision) -> "Sinogram":
        """The same sinogram with further decisions in its log."""
        return replace(self, decisions=(*self.decisions, *decisions))
