"""Simulated scans: an image becomes noisy, undersampled low-field k-space. The only place where noise is added."""

from dataclasses import dataclass
from pathlib import Path

import torch

from mrirecon.acquisition import Acquisition
from mrirecon.kspace import KSpace
from mrirecon.phantom import brain_phantom, coil_sensitivities, smooth_phase
from mrirecon.sampling import box_mask, line_mask
from operators.decision import Decision
from operators.elementary import Crop, Mask, Pad
from operators.errors import InputError
from operators.fourier import Fourier
from operators.sensitivity import Sensitivity
from operators.voxel_grid import IDENTITY_DIRECTIONS, Triple, VoxelGrid


@dataclass(frozen=True, slots=True)
class Simulation:
    """A simulated scan beside the truth it was made from.

    Parameters
    ----------
    kspace
        The scan.
    target
        The image without noise and undersampling at the scan's matrix, complex64 ``(slice, y, x)``.
    noise_std
        Standard deviation of the noise per real component, in the units of ``kspace.data``.
    """

    kspace: KSpace
    target: torch.Tensor
    noise_std: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """A simulated scan in the words of the command line.

    Parameters
    ----------
    image
        Path of a NIfTI image, or ``"phantom"`` for the built-in one.
    matrix
        Size of the square k-space grid.
    n_slices
        Slices of the built-in phantom; a NIfTI image gives its own.
    box
        Size (ky, kx) of the central box that is measured; ``None`` for all of it.
    acceleration
        Number of lines over the number of lines measured, chosen at random and denser in the centre.
    n_centre_lines
        Adjacent central lines that are always measured when accelerating.
    relative_noise_variance
        Variance of the complex noise over that of the measured noise-free samples.
    n_coils
        Number of receive coils; several also record a noise scan.
    contrast
        Contrast of the built-in phantom.
    seed
        Seed of phase, noise and line selection.
    """

    image: str = "phantom"
    matrix: int = 128
    n_slices: int = 4
    box: tuple[int, ...] | None = None
    acceleration: float = 1.0
    n_centre_lines: int = 16
    relative_noise_variance: float = 0.2
    n_coils: int = 1
    contrast: str = "t2"
    seed: int = 0


def simulate_scenario(scenario: Scenario) -> Simulation:
    """Simulate the scan that a scenario describes.

    Parameters
    ----------
    scenario
        What to simulate.

    Returns
    -------
    Simulation
        K-space, target and noise level.

    Raises
    ------
    InputError
        If the image cannot be read, or matrix, box and acceleration do not go together.
    """
    shape = (scenario.matrix, scenario.matrix)
    image, grid = _image_of(scenario)
    try:
        mask = torch.ones(1, 1) if scenario.box is None else box_mask(shape, scenario.box)
        if scenario.acceleration > 1:
            generator = torch.Generator().manual_seed(scenario.seed)
            mask = mask * line_mask(shape, scenario.acceleration, scenario.n_centre_lines, generator)
    except ValueError as error:
        raise InputError(str(error)) from error
    several = scenario.n_coils > 1
    return simulate(
        image,
        mask.expand(1, *shape),
        csm=coil_sensitivities(scenario.n_coils, shape) if several else None,
        relative_noise_variance=scenario.relative_noise_variance,
        n_noise_samples=1024 if several else 0,
        grid=grid,
        seed=scenario.seed,
    )


_FINER = 2  # the built-in phantom is drawn on a grid so much finer than the scan's, so that it has detail to lose
_HEAD_FOV_MM = 240.0


def _image_of(scenario: Scenario) -> tuple[torch.Tensor, VoxelGrid]:
    """Complex image ``(slice, y, x)`` at the scan's matrix, and where it lies."""
    shape = (scenario.matrix, scenario.matrix)
    if scenario.image == "phantom":
        fine = (scenario.n_slices, *(_FINER * n for n in shape))
        image = brain_phantom(fine, contrast=scenario.contrast, seed=scenario.seed)
        spacing = _HEAD_FOV_MM / scenario.matrix
        return resample(image, shape), _identity_grid((scenario.n_slices, *shape), (5.0, spacing, spacing))
    from operators.io.nifti import read_nifti_image

    magnitude, grid = read_nifti_image(Path(scenario.image))
    phase = smooth_phase(tuple(magnitude.shape), seed=scenario.seed)
    image = torch.polar(magnitude, phase)
    spacing_z, spacing_y, spacing_x = grid.spacing_mm
    fov = (spacing_y * grid.shape[1], spacing_x * grid.shape[2])
    finer = VoxelGrid.around(
        grid.position_mm((0, grid.shape[1] // 2, grid.shape[2] // 2)),
        (grid.shape[0], *shape),
        (spacing_z, fov[0] / scenario.matrix, fov[1] / scenario.matrix),
        grid.directions,
        slice_centre=0,
    )
    return resample(image, shape), finer


def simulate(
    image: torch.Tensor,
    mask: torch.Tensor,
    *,
    csm: torch.Tensor | None = None,
    relative_noise_variance: float = 0.0,
    n_noise_samples: int = 0,
    grid: VoxelGrid | None = None,
    seed: int = 0,
) -> Simulation:
    """Simulate a Cartesian multi-slice scan of a complex image.

    Parameters
    ----------
    image
        Complex ``(slice, y, x)``, in a.u.
    mask
        1 = measured, broadcasts to ``(slice, coil, ky, kx)``.
    csm
        Coil sensitivity maps, complex ``(coil, y, x)``; by default one coil of sensitivity 1.
    relative_noise_variance
        Variance of the complex noise over the variance of the measured noise-free samples, per scan; 0.2 (7 dB) and
        0.3 (5.2 dB) are usual low-field values.
    n_noise_samples
        Length of an additional noise scan; 0 for none.
    grid
        Where the image lies in the patient; by default 2 mm × 2 mm × 5 mm around the isocentre.
    seed
        Seed of the noise.

    Returns
    -------
    Simulation
        K-space, target and noise level.

    Raises
    ------
    TypeError, ValueError
        If the image is not a complex stack of slices, or the noise variance is negative.
    """
    if not image.is_complex() or image.ndim != 3:
        raise TypeError(f"image is {image.dtype} {tuple(image.shape)}; expected a complex tensor (slice, y, x).")
    if relative_noise_variance < 0:
        raise ValueError(f"relative_noise_variance is {relative_noise_variance}; it must not be negative.")
    n_slices, n_y, n_x = image.shape
    maps = torch.ones(1, n_y, n_x, dtype=image.dtype) if csm is None else csm
    fourier = Fourier((len(maps), n_y, n_x))
    acquire = Mask(mask.to(torch.float32), fourier.codomain) @ fourier @ Sensitivity(maps)
    clean = acquire(image)
    measured = mask.expand_as(clean) != 0
    noise_std = float((relative_noise_variance / 2 * clean[measured].abs().square().mean()).sqrt())
    generator = torch.Generator().manual_seed(seed)
    noise = noise_std * 2**0.5 * fourier.codomain.randn(n_slices, generator=generator)
    noise_scan = (
        noise_std * 2**0.5 * torch.randn(len(maps), n_noise_samples, generator=generator, dtype=torch.complex64)
    )
    grid = grid or _identity_grid((n_slices, n_y, n_x), (5.0, 2.0, 2.0))
    decision = Decision(
        "simulated",
        f"relative noise variance {relative_noise_variance:g}, seed {seed}",
        "this scan was simulated from an image",
    )
    kspace = KSpace(
        data=(clean + noise * measured).to(torch.complex64),
        mask=mask.to(torch.float32),
        acquisition=_acquisition_on(grid),
        noise=noise_scan if n_noise_samples else None,
        decisions=(decision,),
    )
    return Simulation(kspace, image, noise_std)


def resample(image: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Resample an image in k-space: crop or zero-pad its spectrum, keeping the field of view and the intensity.

    Parameters
    ----------
    image
        Complex ``(*batch, y, x)``.
    shape
        New size (y, x).

    Returns
    -------
    torch.Tensor
        Complex ``(*batch, *shape)``.
    """
    fourier, finer = Fourier(tuple(image.shape[-2:])), Fourier(shape)
    kept = tuple(min(n, m) for n, m in zip(image.shape[-2:], shape, strict=True))
    crop = Crop(fourier.codomain, kept)
    pad = Pad(crop.codomain, shape)
    intensity = (finer.domain.size / fourier.domain.size) ** 0.5
    return finer.adjoint(pad(crop(fourier(image)))) * intensity


def _identity_grid(shape: tuple[int, int, int], spacing_mm: Triple) -> VoxelGrid:
    return VoxelGrid.around((0.0, 0.0, 0.0), shape, spacing_mm, IDENTITY_DIRECTIONS)


def _acquisition_on(grid: VoxelGrid) -> Acquisition:
    n_slices, n_y, n_x = grid.shape
    thickness, spacing_y, spacing_x = grid.spacing_mm
    fov = (thickness, spacing_y * n_y, spacing_x * n_x)
    centre = (n_y // 2, n_x // 2)
    return Acquisition(
        encoded_shape=(1, n_y, n_x),
        encoded_fov_mm=fov,
        recon_fov_mm=fov,
        directions=grid.directions,
        slice_positions_mm=tuple(grid.position_mm((index, *centre)) for index in range(n_slices)),
        slice_spacing_mm=thickness,
        geometry_known=True,
        sequence_name="simulated",
    )
