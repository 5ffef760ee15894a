"""Images of people become low-field scans: slices from files, a smooth phase, and samples with noise."""

import gzip
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from mrirecon.phantom import coil_sensitivities, smooth_phase
from mrirecon.sampling import box_mask, line_mask
from mrirecon.simulation import resample
from operators.elementary import Mask, Pad, centred_window
from operators.errors import InputError
from operators.fourier import Fourier
from operators.image_sources import ImageSource, chosen_sources, data_folder
from operators.io.numpy_files import open_npz
from operators.linear_operator import LinearOperator
from operators.sensitivity import Sensitivity
from operators.space import Space
from operators.voxel_grid import VoxelGrid

Progress = Callable[[int, int], None]

_OWN_KEYS = {"nifti": {"plane"}, "npz": {"key"}, "bytes": {"shape", "orientation", "plane"}, "kspace": set[str]()}
_PLANES = {"axial": ("S", "P", "L"), "coronal": ("A", "I", "L"), "sagittal": ("L", "I", "P")}
_LPS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
_FULL_SCALE_PERCENTILE = 99.9
_DARK, _LEAST_BRIGHT = 0.1, 0.05  # of full scale; of the pixels, below which a slice is empty
_MEMORY_LIMIT_BYTES = 8 * 2**30
_COARSE = 32  # pixels across, on which a smooth phase is computed before it is interpolated


@dataclass(frozen=True, slots=True, kw_only=True)
class Source(ImageSource):
    """A file of images of one person; see also `operators.image_sources.ImageSource`.

    Parameters
    ----------
    kind
        ``"nifti"``; ``"npz"``, a real or complex array (slice, y, x) of square pixels that stands upright;
        ``"bytes"``, unsigned bytes of cubic voxels, x fastest, compressed with gzip or not; or ``"kspace"``, any fully
        sampled raw file that `mrirecon.io.read` knows, such as fastMRI's and M4Raw's, whose complex image is taken.
    contrast
        Name of the weighting.
    key
        Name of the array, for ``"npz"``.
    shape
        Number of voxels (z, y, x), for ``"bytes"``.
    orientation
        Where x, y and z point, such as ``"RAS"`` for right, anterior, superior; for ``"bytes"``.
    plane
        Which slices are taken, for ``"nifti"`` and ``"bytes"``; axial by default.
    kept_fraction
        How far k-space was measured, as a fraction of the largest frequency of the image; what lies beyond was filled
        by the scanner. Images are used at matrices only that need none of it.

    Raises
    ------
    InputError
        If a key is missing or means nothing for this kind, or a number is out of its range.
    """

    kind: Literal["nifti", "npz", "bytes", "kspace"]
    contrast: str
    key: str | None = None
    shape: tuple[int, int, int] | None = None
    orientation: str | None = None
    plane: Literal["axial", "coronal", "sagittal"] | None = None
    kept_fraction: float = 1.0

    def __post_init__(self) -> None:
        for name in ("key", "shape", "orientation", "plane"):
            given, own = getattr(self, name) is not None, name in _OWN_KEYS[self.kind]
            if given and not own:
                raise InputError(f"{self.path}: {name} means nothing for a source of kind {self.kind!r}; leave it out.")
            if own and not given and name != "plane":
                raise InputError(f"{self.path}: a source of kind {self.kind!r} needs {name}.")
        ImageSource.__post_init__(self)
        if not 0 < self.kept_fraction <= 1:
            raise InputError(
                f"{self.path}: kept_fraction is {self.kept_fraction}; expected a fraction above 0 and not above 1."
            )


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """One image and where it is from.

    Parameters
    ----------
    image
        ``(y, x)``: a real magnitude, or a complex image with the phase that was measured. Full scale, the 99.9th
        percentile of the magnitude over all slices of the file, is 1.
    patient, contrast
        As in its `Source`.
    number
        Its index in the file.
    """

    image: torch.Tensor
    patient: str
    contrast: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenarios:
    """The scans that are drawn: ranges are (lowest, highest), uniformly drawn for each image.

    Parameters
    ----------
    noise_variance
        Range of the variance of the complex noise over the mean power of the measured noise-free samples.
    box
        Range of the share of ky and of kx, drawn apart, that a central box of k-space keeps.
    acceleration
        Number of lines over the number of lines measured, at random and denser in the centre; 1 for all of them.
    n_centre_lines
        Adjacent central lines that are always measured when accelerating.
    n_coils
        Number of receive coils.
    phase_rad
        Range of the largest deviation of the smooth phase from a constant, which is drawn from a full turn. Complex
        images keep their own phase.

    Raises
    ------
    InputError
        If a value is out of its range.
    """

    noise_variance: tuple[float, float]
    box: tuple[float, float] = (1.0, 1.0)
    acceleration: float = 1.0
    n_centre_lines: int = 16
    n_coils: int = 1
    phase_rad: tuple[float, float] = (0.0, 2.0)

    def __post_init__(self) -> None:
        for name, highest in (("noise_variance", float("inf")), ("box", 1.0), ("phase_rad", float("inf"))):
            low, high = getattr(self, name)
            if not 0 <= low <= high <= highest or (name == "box" and low == 0):
                raise InputError(f"{name} is {(low, high)}; expected its lowest and its highest value.")
        if self.acceleration < 1 or self.n_coils < 1 or self.n_centre_lines < 1:
            raise InputError("acceleration, n_coils and n_centre_lines must be at least 1.")


class Batch(NamedTuple):
    """Scans of several images.

    Parameters
    ----------
    y
        K-space with noise, complex64 ``(image, coil, ky, kx)``, zero where nothing was measured.
    mask
        1 = measured, float32 ``(image, 1, ky, kx)``.
    csm
        Coil sensitivity maps, complex64 ``(coil, y, x)``.
    target
        The images, complex64 ``(image, y, x)``.
    noise_std
        Noise level per real component in the units of ``y``, float32 ``(image,)``.
    """

    y: torch.Tensor
    mask: torch.Tensor
    csm: torch.Tensor
    target: torch.Tensor
    noise_std: torch.Tensor

    def to(self, device: str | torch.device) -> "Batch":
        """The batch on another device."""
        return Batch(*(tensor.to(device) for tensor in self))


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """Batches for training, each from a generator of its own: slices drawn, mirrored or not, and scanned.

    Parameters
    ----------
    slices
        What to draw from.
    scenarios
        How they are scanned.
    batch_size
        Number of images of a batch.
    """

    slices: Sequence[Slice]
    scenarios: Scenarios
    batch_size: int

    def __call__(self, index: int, generator: torch.Generator) -> Batch:
        """Draw a batch; the index only serves `operators.learning.fit`, whose generators differ with it."""
        chosen = torch.randint(len(self.slices), (self.batch_size,), generator=generator).tolist()
        mirrored = torch.randint(2, (self.batch_size,), generator=generator).tolist()
        images = [
            self.slices[i].image.flip(-1) if m else self.slices[i].image for i, m in zip(chosen, mirrored, strict=True)
        ]
        return scan(images, self.scenarios, generator)


def scan(images: Sequence[torch.Tensor], scenarios: Scenarios, generator: torch.Generator) -> Batch:
    """Scan images at low field.

    Parameters
    ----------
    images
        Each ``(y, x)``, all of one shape; a real one gets a smooth phase.
    scenarios
        How they are scanned.
    generator
        The only source of randomness. Phase and noise do not depend on the mask that is drawn.

    Returns
    -------
    Batch
        One scan of each.

    Raises
    ------
    InputError
        If no line mask has the acceleration and central lines asked for.
    """
    shape = tuple(images[0].shape)
    n = len(images)
    target = torch.stack([_with_phase(image, scenarios.phase_rad, generator) for image in images])
    variance = _uniform(scenarios.noise_variance, n, generator)
    noise = torch.randn(n, scenarios.n_coils, *shape, dtype=torch.complex64, generator=generator)
    mask = torch.stack([_mask(shape, scenarios, generator) for _ in images]).unsqueeze(1)
    csm = torch.ones(1, *shape, dtype=torch.complex64)
    if scenarios.n_coils > 1:
        csm = coil_sensitivities(scenarios.n_coils, shape)
    batch = Batch(noise, mask, csm, target, variance)
    clean = operator_of(batch)(target)
    power = clean.abs().square().sum(dim=(1, 2, 3)) / (scenarios.n_coils * mask.sum(dim=(1, 2, 3)))
    noise_std = (variance / 2 * power).sqrt()
    level = noise_std.reshape(n, 1, 1, 1) * 2**0.5
    return batch._replace(y=clean + level * noise * mask, noise_std=noise_std)


def operator_of(batch: Batch) -> LinearOperator:
    """The forward operator of a batch, as `mrirecon.reconstruction.operator_for` makes it of a scan.

    Parameters
    ----------
    batch
        The scans.

    Returns
    -------
    LinearOperator
        From images ``(y, x)`` to k-space ``(coil, ky, kx)``; its mask has a batch dimension.
    """
    fourier = Fourier(tuple(batch.csm.shape))
    return Mask(batch.mask, fourier.codomain) @ fourier @ Sensitivity(batch.csm)


def load_slices(
    sources: Sequence[Source],
    matrix: int,
    folder: Path | str | None = None,
    *,
    patients: Collection[str] | None = None,
    contrasts: Collection[str] | None = None,
    progress: Progress | None = None,
) -> tuple[Slice, ...]:
    """Read slices, resampled in k-space to a square matrix; the square field of view holds all that the file shows.

    Slices that are almost empty are left out.

    Parameters
    ----------
    sources
        The files.
    matrix
        Number of pixels along each side.
    folder
        Where the files are; by default what the environment variable ``MRCTRECON_DATA`` names.
    patients, contrasts
        Whose slices, and which; all by default.
    progress
        Called with (files read, files in all).

    Returns
    -------
    tuple of Slice
        In the order of the sources and of the slices.

    Raises
    ------
    InputError
        If there is no folder, nothing was chosen, or a file is missing, damaged, empty, not what the source says, or
        not fine enough for the matrix.
    """
    root = data_folder(folder)
    chosen = chosen_sources(sources, patient=patients, contrast=contrasts)
    slices: list[Slice] = []
    for n_done, source in enumerate(chosen, start=1):
        slices += _slices_of(source, root / source.path, matrix)
        if progress is not None:
            progress(n_done, len(chosen))
    return tuple(slices)


class _Stack(NamedTuple):
    """Images (slice, y, x), the spacing of their pixels, and how far along y and x k-space was measured."""

    images: torch.Tensor
    spacing: tuple[float, float]
    measured: tuple[float, float] = (1.0, 1.0)


def _slices_of(source: Source, path: Path, matrix: int) -> list[Slice]:
    if not path.is_file():
        raise InputError(f"There is no file {path}; check the path of the source and the folder of the data.")
    read = {"nifti": _read_nifti, "npz": _read_npz, "bytes": _read_bytes, "kspace": _read_kspace}[source.kind]
    stack = read(source, path)
    numbers = source.numbers(len(stack.images))
    images = _resampled(stack._replace(images=stack.images[numbers]), source, path, matrix)
    full_scale = float(np.percentile(images.abs().numpy(), _FULL_SCALE_PERCENTILE))
    if not full_scale > 0:
        raise InputError(f"{path} shows nothing: its {_FULL_SCALE_PERCENTILE}th percentile is {full_scale}.")
    images = images / full_scale
    is_bright = (images.abs() > _DARK).float().mean(dim=(-2, -1)) >= _LEAST_BRIGHT
    return [
        Slice(image, source.patient, source.contrast, number)
        for number, image, bright in zip(numbers, images, is_bright.tolist(), strict=True)
        if bright
    ]


def _resampled(stack: _Stack, source: Source, path: Path, matrix: int) -> torch.Tensor:
    """The stack on a square matrix that shows a square field of view; magnitudes stay real."""
    size = stack.images.shape[-2:]
    field_of_view = max(n * d for n, d in zip(size, stack.spacing, strict=True))
    padded = [max(n, round(field_of_view / d)) for n, d in zip(size, stack.spacing, strict=True)]
    finest = min(int(n * m * source.kept_fraction) for n, m in zip(padded, stack.measured, strict=True))
    if finest < matrix:
        raise InputError(
            f"{path} was measured up to a matrix of {finest} only, and {matrix} is asked for; choose a smaller matrix "
            "or leave the source out."
        )
    pad = Pad(Space(tuple(size), "complex"), padded)
    images = resample(pad(stack.images.to(torch.complex64)), (matrix, matrix))
    return images if stack.images.is_complex() else images.abs()


def _read_nifti(source: Source, path: Path) -> _Stack:
    from operators.io.nifti import read_nifti_image

    volume, grid = read_nifti_image(path)
    return _in_plane(volume, grid, source.plane or "axial")


def _read_npz(source: Source, path: Path) -> _Stack:
    with open_npz(path) as archive:
        stored = {array.name: array for array in archive.arrays}.get(source.key or "")
        if stored is None:
            raise InputError(f"{path} has no array {source.key!r}; it has {', '.join(a.name for a in archive.arrays)}.")
        if len(stored.shape) != 3 or stored.n_elements == 0:
            raise InputError(f"{stored} in {path} is no stack of images; expected (slice, y, x).")
        images = torch.from_numpy(archive.read(stored, limit_bytes=_MEMORY_LIMIT_BYTES).astype(np.complex64))
    if not images.isfinite().all():
        raise InputError(f"{stored} in {path} holds values that are not finite; replace them first.")
    return _Stack(images if stored.is_complex else images.abs(), (1.0, 1.0))


def _read_bytes(source: Source, path: Path) -> _Stack:
    shape, orientation = source.shape or (0, 0, 0), source.orientation or ""
    n_bytes = int(np.prod(shape))
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            with gzip.open(path) as stream:
                content = stream.read(n_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} could not be read ({error}); copy it again.") from error
    if min(shape) < 1 or len(content) != n_bytes:
        raise InputError(f"{path} does not have the {n_bytes} bytes of the shape {shape}; give its shape (z, y, x).")
    volume = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(shape).float()
    if sorted(_LPS.get(letter, (-1, 0))[0] for letter in orientation) != [0, 1, 2]:
        raise InputError(f"{path}: orientation is {orientation!r}; expected three of L/R, A/P, S/I, such as RAS.")
    x, y, z = (_direction(letter) for letter in orientation)
    return _in_plane(volume, VoxelGrid(shape, (1.0, 1.0, 1.0), (z, y, x)), source.plane or "axial")


def _read_kspace(source: Source, path: Path) -> _Stack:
    from mrirecon.io import read
    from mrirecon.reconstruction import reconstruct

    kspace = read(path)
    if not kspace.is_cartesian or kspace.n_dims != 2:
        raise InputError(f"{path} is no stack of Cartesian slices; only these serve as images to train on.")
    result = reconstruct(kspace, "adjoint", partial_fourier="none")
    images = result.image.reshape(-1, *result.image.shape[-2:])
    mask = kspace.mask.flatten(0, -3).amin(dim=0).expand(kspace.k_shape)
    measured = (_complete(mask.amax(dim=1)), _complete(mask.amax(dim=0)))
    return _Stack(images, result.grid.spacing_mm[1:], measured)


def _complete(measured: torch.Tensor) -> float:
    """Share of an axis of k-space, around its centre, on which nothing is missing."""
    n = len(measured)
    whole = (k for k in range(n, 0, -1) if bool(measured[centred_window((k,), (n,))].all()))
    return next(whole, 0) / n


def _in_plane(volume: torch.Tensor, grid: VoxelGrid, plane: str) -> _Stack:
    """Slices of a volume as radiologists look at them: the axes nearest to those of the plane, turned upright."""
    directions = np.asarray(grid.directions)  # (axis of the volume, axis of the patient)
    wanted = np.asarray([_direction(letter) for letter in _PLANES[plane]])
    along = directions @ wanted.T  # (axis of the volume, axis of the slices)
    axes = [int(axis) for axis in np.abs(along).argmax(axis=0)]
    if sorted(axes) != [0, 1, 2]:
        raise InputError(f"The image is too oblique to have {plane} slices; turn it first.")
    reversed_axes = [i for i, axis in enumerate(axes) if along[axis, i] < 0]
    upright = volume.permute(axes).flip(reversed_axes)
    return _Stack(upright, (grid.spacing_mm[axes[1]], grid.spacing_mm[axes[2]]))


def _direction(letter: str) -> tuple[float, float, float]:
    axis, sign = _LPS[letter]
    x, y, z = (float(sign) if i == axis else 0.0 for i in range(3))
    return x, y, z


def _with_phase(image: torch.Tensor, phase_rad: tuple[float, float], generator: torch.Generator) -> torch.Tensor:
    amplitude = float(_uniform(phase_rad, 1, generator))
    constant = float(_uniform((-torch.pi, torch.pi), 1, generator))
    seed = int(torch.randint(2**31, (), generator=generator))
    if image.is_complex():
        return image
    coarse = tuple(min(n, _COARSE) for n in image.shape)
    phase = smooth_phase(coarse, seed=seed, amplitude_rad=amplitude) + constant
    fine = torch.nn.functional.interpolate(phase[None, None], size=tuple(image.shape), mode="bicubic")[0, 0]
    return torch.polar(image, fine)


def _mask(shape: tuple[int, ...], scenarios: Scenarios, generator: torch.Generator) -> torch.Tensor:
    shares = _uniform(scenarios.box, len(shape), generator).tolist()
    mask = box_mask(shape, [max(1, round(n * share)) for n, share in zip(shape, shares, strict=True)])
    if scenarios.acceleration == 1:
        return mask
    try:
        return mask * line_mask(shape, scenarios.acceleration, scenarios.n_centre_lines, generator)
    except ValueError as error:
        raise InputError(str(error)) from error


def _uniform(limits: tuple[float, float], n: int, generator: torch.Generator) -> torch.Tensor:
    low, high = limits
    return low + (high - low) * torch.rand(n, generator=generator)
