"""What is known about a scan beside its samples: geometry and protocol."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from operators.voxel_grid import IDENTITY_DIRECTIONS, Triple, VoxelGrid

Sizes = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Acquisition:
    """The header of a scan, in the units and axis order of this project: ``(z, y, x)`` and ``(kz, ky, kx)``.

    x is the readout and y the first phase-encoding direction. For a two-dimensional multi-slice scan the first entry
    of every triple belongs to the slices: ``encoded_shape[0]`` is 1, and ``slice_positions_mm`` has one entry per
    slice.

    Parameters
    ----------
    encoded_shape
        Size of the k-space grid (kz, ky, kx) of one slice or volume, as it stands in ``KSpace.data``.
    encoded_fov_mm
        Field of view that the k-space grid encodes, (z, y, x), in mm. For a two-dimensional scan z is the slice
        thickness.
    recon_fov_mm
        Field of view that the image is to be cropped to, (z, y, x), in mm.
    directions
        Unit vectors in LPS along increasing slice, row (y, phase) and column (x, readout) index.
    slice_positions_mm
        LPS position, in mm, of the Fourier centre (row n//2, column n//2) of each slice in the order of the slice
        axis; a single entry, of slice n//2, for a three-dimensional scan.
    slice_spacing_mm
        Distance between the centres of neighbouring slices of a two-dimensional stack, in mm; ``None`` to take it from
        the positions, or from the thickness where there is only one slice.
    geometry_known
        Whether position and directions come from the scan; if not, they are the identity.
    field_strength_t, repetition_time_ms, echo_time_ms, inversion_time_ms, flip_angle_deg
        Protocol, where known.
    manufacturer, sequence_name, protocol_name
        Device and protocol names, where known; no person is identified by them.
    patient
        Identifiers of the person, such as ``{"name": …, "id": …, "birth_date": …, "sex": …}``. Written only on
        request.
    """

    encoded_shape: Sizes
    encoded_fov_mm: Triple
    recon_fov_mm: Triple
    directions: tuple[Triple, Triple, Triple] = IDENTITY_DIRECTIONS
    slice_positions_mm: tuple[Triple, ...] = ((0.0, 0.0, 0.0),)
    slice_spacing_mm: float | None = None
    geometry_known: bool = False
    field_strength_t: float | None = None
    repetition_time_ms: float | None = None
    echo_time_ms: float | None = None
    inversion_time_ms: float | None = None
    flip_angle_deg: float | None = None
    manufacturer: str | None = None
    sequence_name: str | None = None
    protocol_name: str | None = None
    patient: Mapping[str, str] = field(default_factory=dict)

    def encoded_grid(self, *, n_slices: int) -> VoxelGrid:
        """Voxel grid of the uncropped image.

        Parameters
        ----------
        n_slices
            Number of slices of a two-dimensional stack, or of partitions of a volume.

        Raises
        ------
        ValueError
            If the header describes no grid (a size or field of view that is not positive).
        """
        n_z, n_y, n_x = self.encoded_shape
        fov_z, fov_y, fov_x = self.encoded_fov_mm
        two_dimensional = n_z == 1
        spacing_z = self._slice_spacing_mm() if two_dimensional else fov_z / n_z
        return VoxelGrid.around(
            self.slice_positions_mm[0],
            (n_slices, n_y, n_x),
            (spacing_z, fov_y / n_y, fov_x / n_x),
            self.directions,
            slice_centre=0 if two_dimensional else None,
        )

    def _slice_spacing_mm(self) -> float:
        if self.slice_spacing_mm is not None:
            return self.slice_spacing_mm
        if len(self.slice_positions_mm) > 1:
            first, last = self.slice_positions_mm[0], self.slice_positions_mm[-1]
            along = sum((b - a) * d for a, b, d in zip(first, last, self.directions[0], strict=True))
            spacing = abs(along) / (len(self.slice_positions_mm) - 1)
            if spacing > 0:
                return spacing
        return self.encoded_fov_mm[0]
