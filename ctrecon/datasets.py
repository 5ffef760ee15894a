"""Images of people become sparse-view scans: slices from files in Hounsfield units, and line integrals with noise."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from ctrecon.hounsfield import MU_WATER_PER_MM, to_mu
from ctrecon.io.images import read_hu_image
from ctrecon.prepare import noise_std
from ctrecon.presets import preset
from ctrecon.simulation import sparse_view_noise
from ctrecon.sinogram import Sinogram
from operators.beam_geometry import BeamGeometry, FanBeam
from operators.errors import InputError
from operators.image_sources import ImageSource, chosen_sources, data_folder
from operators.projection import Projection
from operators.voxel_grid import VoxelGrid

Progress = Callable[[int, int], None]

_AIR_HU = -1000.0
_SQUARE = 1e-3  # relative difference of the sides of pixels that are square
_SAME_ANGLE_RAD = 1e-6
_SLICES_AT_A_TIME = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Source(ImageSource):
    """Images of one person in Hounsfield units, any file that `ctrecon.io.images.read_hu_image` knows.

    Parameters
    ----------
    kernel
        Name of the filter that the scanner reconstructed them with, or what else tells a person's images apart.
    pixel_mm
        Size of the pixels, for files that do not say it.
    smoothing_mm
        Standard deviation of a Gaussian that they are smoothed with, as if by a softer kernel.

    Raises
    ------
    InputError
        If a number is out of its range.
    """

    kernel: str = "unknown"
    pixel_mm: float | None = None
    smoothing_mm: float = 0.0

    def __post_init__(self) -> None:
        ImageSource.__post_init__(self)
        if not 0 <= self.smoothing_mm <= 10:
            raise InputError(f"{self.path}: smoothing_mm is {self.smoothing_mm}; expected a size in mm, such as 0.7.")
        if self.pixel_mm is not None and not 0.01 <= self.pixel_mm <= 10:
            raise InputError(f"{self.path}: pixel_mm is {self.pixel_mm}; expected a size in mm, such as 0.7.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenarios:
    """The scans that are drawn.

    Parameters
    ----------
    n_views
        Numbers of views, at equal steps among those of the preset, of which each batch has one.
    preset
        Name of the scanner geometry, see `ctrecon.presets.PRESETS`. The noise is that of the sparse-view protocol,
        see `ctrecon.simulation.simulate`.

    Raises
    ------
    InputError
        If there is no such preset, or it has no such number of views.
    """

    n_views: tuple[int, ...]
    preset: str = "sparse-view"

    def __post_init__(self) -> None:
        if not self.n_views:
            raise InputError("n_views is empty; expected one number of views or several.")
        for n in self.n_views:
            preset(self.preset).with_views(n)


class Scanner:
    """The scans of a preset of images with a certain matrix, with their operators built once.

    Parameters
    ----------
    name
        Name of the preset.
    matrix
        Number of pixels along each side, for the whole field of view.

    Attributes
    ----------
    geometry
        That of all views.
    mu_water_per_mm
        Attenuation of water.

    Raises
    ------
    InputError
        If there is no such preset.
    """

    def __init__(self, name: str, matrix: int) -> None:
        chosen = preset(name).with_matrix(matrix)
        self.geometry: BeamGeometry = chosen.geometry
        self.mu_water_per_mm = chosen.mu_water_per_mm or MU_WATER_PER_MM
        self._matrix = matrix
        self._operators: dict[int, Projection] = {}

    @property
    def field_of_view_mm(self) -> float:
        """Side of the square image."""
        return self._matrix * self.geometry.pixel_spacing_mm

    @property
    def mirrored_views(self) -> list[int] | None:
        """For each view the one that sees the same in a mirrored image, with its bins reversed; ``None`` without."""
        return _mirrored(self.geometry)

    def views(self, n_views: int) -> slice:
        """Which of all views a scan with so many has."""
        return slice(None, None, self.geometry.n_views // n_views)

    def operator(self, n_views: int) -> Projection:
        """The operator of a scan with so many views, from attenuation in 1/mm to line integrals."""
        if n_views not in self._operators:
            shape = (self._matrix, self._matrix)
            self._operators[n_views] = Projection(self.geometry[self.views(n_views)], shape)
        return self._operators[n_views]


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """One image, what a scanner would measure of it without noise, and where it is from.

    Parameters
    ----------
    mu_per_mm
        Attenuation, float32 ``(y, x)``, in 1/mm: the mean of the file's image over each pixel of the scan.
    line_integrals
        Of the file's image, for all views of the scanner, float32 ``(view, detector)``.
    largest_per_mm
        Largest attenuation of the file's image, in 1/mm.
    patient, kernel
        As in its `Source`.
    number
        Its index in the file, from the feet up.
    """

    mu_per_mm: torch.Tensor
    line_integrals: torch.Tensor
    largest_per_mm: float
    patient: str
    kernel: str
    number: int


class Batch(NamedTuple):
    """Scans of several images with the same views.

    Parameters
    ----------
    y
        Line integrals with noise, float32 ``(image, view, detector)``.
    A
        Their operator.
    target
        The images, attenuation in 1/mm, float32 ``(image, y, x)``.
    noise_std
        Noise level of each of ``y`` as `ctrecon.reconstruct` finds it, float32 ``(image,)``. What pixels cannot
        represent counts as noise there.
    mu_water_per_mm
        Attenuation of water.
    """

    y: torch.Tensor
    A: Projection
    target: torch.Tensor
    noise_std: torch.Tensor
    mu_water_per_mm: float

    def to(self, device: str | torch.device) -> "Batch":
        """The batch on another device; the operator is moved there."""
        return Batch(
            self.y.to(device),
            self.A.to(device),
            self.target.to(device),
            self.noise_std.to(device),
            self.mu_water_per_mm,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """Batches for training, each from a generator of its own: slices drawn, mirrored or not, and scanned.

    Mirrored are only scans whose views have mirror images, which the data of a mirrored person are then.

    Parameters
    ----------
    slices
        What to draw from.
    scanner
        What they were loaded for.
    n_views
        Numbers of views, of which a batch has one.
    batch_size
        Number of images of a batch.
    """

    slices: Sequence[Slice]
    scanner: Scanner
    n_views: Sequence[int]
    batch_size: int

    def __call__(self, index: int, generator: torch.Generator) -> Batch:
        """Draw a batch; the index only serves `operators.learning.fit`, whose generators differ with it."""
        n_views = self.n_views[int(torch.randint(len(self.n_views), (), generator=generator))]
        chosen = torch.randint(len(self.slices), (self.batch_size,), generator=generator).tolist()
        mirrored = torch.randint(2, (self.batch_size,), generator=generator).tolist()
        views = self.scanner.mirrored_views
        slices = [
            _mirror_image(self.slices[i], views) if m and views is not None else self.slices[i]
            for i, m in zip(chosen, mirrored, strict=True)
        ]
        return scan(slices, self.scanner, n_views, generator)


def scan(slices: Sequence[Slice], scanner: Scanner, n_views: int, generator: torch.Generator) -> Batch:
    """Scan images with the noise of the sparse-view protocol.

    Parameters
    ----------
    slices
        The images, loaded for this scanner.
    scanner
        Where the rays run.
    n_views
        Number of views.
    generator
        The only source of randomness.

    Returns
    -------
    Batch
        One scan of each.
    """
    clean = torch.stack([s.line_integrals[scanner.views(n_views)] for s in slices])
    largest = torch.tensor([s.largest_per_mm for s in slices], dtype=torch.float64).reshape(-1, 1, 1)
    y = sparse_view_noise(clean, largest, generator).float()
    A = scanner.operator(n_views)
    shape = (A.domain.shape[0], A.domain.shape[1])
    levels = [noise_std(Sinogram(one[None], A.geometry, shape))[0] for one in y]
    return Batch(
        y=y,
        A=A,
        target=torch.stack([s.mu_per_mm for s in slices]),
        noise_std=torch.tensor(levels),
        mu_water_per_mm=scanner.mu_water_per_mm,
    )


def load_slices(
    sources: Sequence[Source],
    scanner: Scanner,
    folder: Path | str | None = None,
    *,
    patients: Collection[str] | None = None,
    kernels: Collection[str] | None = None,
    progress: Progress | None = None,
) -> tuple[Slice, ...]:
    """Read slices, convert them to attenuation, and project them without noise.

    The image keeps its size in mm, in the middle of the field of view; one that is larger is shrunk to fit. What is
    darker than air is air. Reconstructions are made with another model of the rays than the data: these are line
    integrals of the file's image with its own pixels, interpolated linearly between them (``model="joseph"``), while
    `Scanner.operator` sums lengths in the pixels of the scan, where the target is the mean over each pixel.

    Parameters
    ----------
    sources
        The files.
    scanner
        Where the rays run.
    folder
        Where the files are; by default what the environment variable ``MRCTRECON_DATA`` names.
    patients, kernels
        Whose slices, and which; all by default.
    progress
        Called with (files done, files in all).

    Returns
    -------
    tuple of Slice
        In the order of the sources, from the feet up.

    Raises
    ------
    InputError
        If there is no folder, nothing was chosen, or a file cannot be used or does not say how large its pixels are.
    """
    root = data_folder(folder)
    chosen = chosen_sources(sources, patient=patients, kernel=kernels)
    slices: list[Slice] = []
    fine: Projection | None = None
    for n_done, source in enumerate(chosen, start=1):
        mu, pixel_mm = _attenuation(source, root / source.path, scanner)
        geometry, shape = replace(scanner.geometry, pixel_spacing_mm=pixel_mm), tuple(mu.shape[1:])
        if fine is None or (fine.geometry, fine.domain.shape) != (geometry, shape):
            fine = Projection(geometry, shape, model="joseph")
        slices += _slices_of(source, mu, fine, scanner)
        if progress is not None:
            progress(n_done, len(chosen))
    return tuple(slices)


def _attenuation(source: Source, path: Path, scanner: Scanner) -> tuple[torch.Tensor, float]:
    """Attenuation of all slices ``(slice, y, x)`` in 1/mm, and the size of their pixels in the scan, in mm."""
    size = source.pixel_mm
    hu, grid, decisions = read_hu_image(path, voxel_mm=None if size is None else (size, size, 1.0))
    if any(decision.name == "pixel_spacing" for decision in decisions):
        raise InputError(f"{path} does not say how large its pixels are; give its source pixel_mm.")
    mu = to_mu(hu.clamp_min(_AIR_HU), scanner.mu_water_per_mm)
    return _smoothed(mu, source.smoothing_mm / grid.spacing_mm[-1]), _fitting_pixel(grid, path, scanner)


def _smoothed(mu: torch.Tensor, std_pixels: float) -> torch.Tensor:
    """Each slice convolved with a Gaussian; air lies around it."""
    if std_pixels == 0:
        return mu
    radius = math.ceil(4 * std_pixels)
    bell = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / std_pixels).square())
    bell = (bell / bell.sum()).to(mu)
    along_y = torch.nn.functional.conv2d(mu[:, None], bell[None, None, :, None], padding=(radius, 0))
    return torch.nn.functional.conv2d(along_y, bell[None, None, None], padding=(0, radius))[:, 0]


def _slices_of(source: Source, mu: torch.Tensor, fine: Projection, scanner: Scanner) -> list[Slice]:
    numbers = source.numbers(len(mu))
    mu = mu[list(numbers)]
    line_integrals = torch.cat([fine(part) for part in mu.split(_SLICES_AT_A_TIME)])
    images = _averaged(mu, fine.geometry.pixel_spacing_mm, scanner)
    return [
        Slice(image, data, float(own.max()), source.patient, source.kernel, number)
        for number, image, data, own in zip(numbers, images, line_integrals, mu, strict=True)
    ]


def _fitting_pixel(grid: VoxelGrid, path: Path, scanner: Scanner) -> float:
    """Size of the image's pixels, as they are or shrunk so that they fit into the field of view, in mm."""
    _, spacing_y, spacing_x = grid.spacing_mm
    if abs(spacing_y / spacing_x - 1) > _SQUARE:
        raise InputError(f"{path} has pixels of {spacing_y:g} by {spacing_x:g} mm; resample it to square ones.")
    return min(spacing_x, scanner.field_of_view_mm / max(grid.shape[1:]))


def _averaged(mu: torch.Tensor, pixel_mm: float, scanner: Scanner) -> torch.Tensor:
    """Mean over each pixel of the scan, nothing outside of the image, ``(slice, y, x)``."""
    n, size = round(scanner.field_of_view_mm / scanner.geometry.pixel_spacing_mm), scanner.geometry.pixel_spacing_mm
    along_y, along_x = (_shares(n_own, pixel_mm, n, size) for n_own in mu.shape[1:])
    return (along_y @ mu.double() @ along_x.T).float()


def _shares(n_own: int, own_mm: float, n: int, size_mm: float) -> torch.Tensor:
    """Share of each of ``n`` intervals that each of ``n_own`` others covers, both around the same middle."""

    def edges(count: int, step: float) -> torch.Tensor:
        return (torch.arange(count + 1, dtype=torch.float64) - count / 2) * step

    own, wanted = edges(n_own, own_mm), edges(n, size_mm)[:, None]
    overlap = torch.minimum(own[1:], wanted[1:]) - torch.maximum(own[:-1], wanted[:-1])
    return overlap.clamp_min(0) / size_mm


def _mirrored(geometry: BeamGeometry) -> list[int] | None:
    angles = torch.tensor(geometry.angles_rad, dtype=torch.float64)
    apart = torch.remainder(angles[:, None] + angles + torch.pi, 2 * torch.pi) - torch.pi  # of −t and the other
    smallest, place = apart.abs().min(dim=1)
    is_centred = isinstance(geometry, FanBeam) and geometry.detector_offset_mm == 0
    return place.tolist() if is_centred and float(smallest.max()) < _SAME_ANGLE_RAD else None


def _mirror_image(image: Slice, views: Sequence[int]) -> Slice:
    return replace(image, mu_per_mm=image.mu_per_mm.flip(-1), line_integrals=image.line_integrals[list(views)].flip(-1))
