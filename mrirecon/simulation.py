"""Simulated scans: an image becomes noisy, undersampled low-field k-space. The only place where noise is added."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch

from mrirecon.acquisition import Acquisition
from mrirecon.density import density
from mrirecon.kspace import KSpace
from mrirecon.phantom import brain_phantom, coil_sensitivities, smooth_phase
from mrirecon.sampling import box_mask, line_mask
from mrirecon.trajectory import epi, non_uniform_fourier, radial, rosette, spiral, stack_of_stars
from operators.decision import Decision
from operators.elementary import Crop, Mask, Pad
from operators.errors import InputError
from operators.fourier import Fourier
from operators.sensitivity import Sensitivity
from operators.voxel_grid import IDENTITY_DIRECTIONS, Triple, VoxelGrid

TrajectoryKind = Literal["cartesian", "radial", "golden-radial", "spiral", "rosette", "epi", "stack-of-stars"]


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
    trajectory
        How k-space is sampled. All but ``"cartesian"`` pass the centre and reach the edge; a stack of stars is one
        three-dimensional scan of all slices.
    acceleration
        Number of lines over the number of lines measured, chosen at random and denser in the centre; or number of
        spokes, interleaves or petals of a fully sampled scan over that of this one.
    n_centre_lines
        Adjacent central lines that are always measured when accelerating.
    relative_noise_variance
        Variance of the complex noise over that of the measured noise-free samples, weighted by their density.
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
    trajectory: TrajectoryKind = "cartesian"
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
    if scenario.trajectory not in get_args(TrajectoryKind):
        raise InputError(
            f"The trajectory {scenario.trajectory!r} is unknown; choose one of {', '.join(get_args(TrajectoryKind))}."
        )
    image, grid = _image_of(scenario)
    several = scenario.n_coils > 1
    csm = coil_sensitivities(scenario.n_coils, shape) if several else None
    n_noise_samples = 1024 if several else 0
    if scenario.trajectory != "cartesian":
        trajectory, readout_length = _trajectory_of(scenario, len(image))
        return simulate_along(
            image,
            trajectory,
            csm=csm,
            relative_noise_variance=scenario.relative_noise_variance,
            n_noise_samples=n_noise_samples,
            readout_length=readout_length,
            grid=grid,
            seed=scenario.seed,
        )
    try:
        mask = torch.ones(1, 1) if scenario.box is None else box_mask(shape, scenario.box)
        if scenario.acceleration > 1:
            generator = torch.Generator().manual_seed(scenario.seed)
            mask = mask * line_mask(shape, scenario.acceleration, scenario.n_centre_lines, generator)
    except ValueError as error:
        raise InputError(str(error)) from error
    return simulate(
        image,
        mask.expand(1, *shape),
        csm=csm,
        relative_noise_variance=scenario.relative_noise_variance,
        n_noise_samples=n_noise_samples,
        grid=grid,
        seed=scenario.seed,
    )


_READOUT_OVERSAMPLING = 2
_FULL_SPIRAL_INTERLEAVES = 16
_PETALS = {"n_oscillations": 8, "n_rotations": 3}


def _trajectory_of(scenario: Scenario, n_slices: int) -> tuple[torch.Tensor, int]:
    """Trajectory ``(sample, dim)`` in radians per pixel, and the length of its readouts."""
    n, acceleration = scenario.matrix, scenario.acceleration
    if scenario.box is not None:
        raise InputError("A box is cut out of the Cartesian grid; leave it out, or choose the Cartesian trajectory.")
    n_samples = _READOUT_OVERSAMPLING * n
    n_spokes = max(1, round(math.pi / 2 * n / acceleration))
    match scenario.trajectory:
        case "spiral":
            n_turns = n / 2 / _FULL_SPIRAL_INTERLEAVES
            n_interleaves = max(1, round(_FULL_SPIRAL_INTERLEAVES / acceleration))
            # An Archimedean arm of many turns is about π/2 · n · n_turns cells long.
            n_samples = round(_READOUT_OVERSAMPLING * n * (math.pi / 2 * n_turns + 0.5))
            # With fewer arms, a dense centre leaves something to calibrate the coils with.
            return spiral(n_interleaves, n_samples, n_turns, density=2.0 if acceleration > 1 else 1.0), n_samples
        case "rosette":
            # A petal goes out and comes back on another way: like two half spokes.
            n_shots = max(1, round(n_spokes / _PETALS["n_oscillations"]))
            n_samples = round(_READOUT_OVERSAMPLING * math.pi * n * _PETALS["n_oscillations"])
            return rosette(n_shots, n_samples, **_PETALS), n_samples
        case "epi":
            if acceleration > 1:
                raise InputError("An EPI scan measures all lines; leave the acceleration out, or choose Cartesian.")
            return epi(n, n), n
        case "stack-of-stars":
            return stack_of_stars(n_slices, n_spokes, n_samples), n_samples
        case _:
            return radial(n_spokes, n_samples, golden=scenario.trajectory == "golden-radial"), n_samples


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
    _check_image(image, relative_noise_variance)
    n_slices, n_y, n_x = image.shape
    maps = torch.ones(1, n_y, n_x, dtype=image.dtype) if csm is None else csm
    fourier = Fourier((len(maps), n_y, n_x))
    acquire = Mask(mask.to(torch.float32), fourier.codomain) @ fourier @ Sensitivity(maps)
    clean = acquire(image)
    measured = mask.expand_as(clean) != 0
    power = clean[measured].abs().square().mean()
    data, noise_scan, noise_std = _with_noise(clean, power, relative_noise_variance, (len(maps), n_noise_samples), seed)
    grid = grid or _identity_grid((n_slices, n_y, n_x), (5.0, 2.0, 2.0))
    kspace = KSpace(
        data=data * measured,
        mask=mask.to(torch.float32),
        acquisition=_acquisition_on(grid),
        noise=noise_scan,
        decisions=(_simulated(relative_noise_variance, seed),),
    )
    return Simulation(kspace, image, noise_std)


def simulate_along(
    image: torch.Tensor,
    trajectory: torch.Tensor,
    *,
    csm: torch.Tensor | None = None,
    relative_noise_variance: float = 0.0,
    n_noise_samples: int = 0,
    readout_length: int | None = None,
    grid: VoxelGrid | None = None,
    seed: int = 0,
) -> Simulation:
    """Simulate a scan of a complex image along a trajectory: of every slice, or of the volume.

    Parameters
    ----------
    image
        Complex ``(slice, y, x)``, in a.u.
    trajectory
        Real ``(sample, dim)``, radians per pixel, the same for all slices if dim is 2; with dim 3, the image is one
        volume.
    csm
        Coil sensitivity maps, complex ``(coil, y, x)``; by default one coil of sensitivity 1.
    relative_noise_variance
        Variance of the complex noise over that of the noise-free samples, each weighted by the area of k-space that it
        stands for, so that a dense centre does not count more than in a Cartesian scan.
    n_noise_samples
        Length of an additional noise scan; 0 for none.
    readout_length
        Samples of each readout.
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
        If the image is not a complex stack of slices, the trajectory does not fit, or the noise variance is negative.
    """
    _check_image(image, relative_noise_variance)
    n_dims = trajectory.shape[-1]
    shape = tuple(image.shape[-n_dims:])
    maps = torch.ones(1, *image.shape[-2:], dtype=image.dtype) if csm is None else csm
    if n_dims == 3:
        maps = maps.unsqueeze(-3).expand(len(maps), *shape)
    transform = non_uniform_fourier(trajectory, shape, n_coils=len(maps), accuracy=1e-6)
    clean = (transform @ Sensitivity(maps, n_dims=n_dims))(image)
    grid = grid or _identity_grid((image.shape[0], image.shape[1], image.shape[2]), (5.0, 2.0, 2.0))
    kspace = KSpace(
        data=clean,
        mask=torch.ones(1, trajectory.shape[0]),
        acquisition=_acquisition_on(grid, n_dims=n_dims),
        batch_axes=("slice",) if n_dims == 2 else (),
        n_dims=n_dims,
        trajectory=trajectory.double(),
        readout_length=readout_length,
        decisions=(_simulated(relative_noise_variance, seed),),
    )
    area = density(kspace)
    power = (area * clean.abs().square()).mean() / area.mean()
    data, noise_scan, noise_std = _with_noise(clean, power, relative_noise_variance, (len(maps), n_noise_samples), seed)
    return Simulation(replace(kspace, data=data, noise=noise_scan, dcf=area), image, noise_std)


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


def _check_image(image: torch.Tensor, relative_noise_variance: float) -> None:
    if not image.is_complex() or image.ndim != 3:
        raise TypeError(f"image is {image.dtype} {tuple(image.shape)}; expected a complex tensor (slice, y, x).")
    if relative_noise_variance < 0:
        raise ValueError(f"relative_noise_variance is {relative_noise_variance}; it must not be negative.")


def _with_noise(
    clean: torch.Tensor, power: torch.Tensor, relative_noise_variance: float, scan_shape: tuple[int, int], seed: int
) -> tuple[torch.Tensor, torch.Tensor | None, float]:
    """Samples with noise, a noise scan ``(coil, sample)`` or ``None`` if it has no samples, and the level of both."""
    noise_std = float((relative_noise_variance / 2 * power).sqrt())
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.complex64)
    noise_scan = torch.randn(scan_shape, generator=generator, dtype=torch.complex64)
    scale = noise_std * 2**0.5
    return (clean + scale * noise).to(torch.complex64), scale * noise_scan if scan_shape[1] else None, noise_std


def _simulated(relative_noise_variance: float, seed: int) -> Decision:
    value = f"relative noise variance {relative_noise_variance:g}, seed {seed}"
    return Decision("simulated", value, "this scan was simulated from an image")


def _identity_grid(shape: tuple[int, int, int], spacing_mm: Triple) -> VoxelGrid:
    return VoxelGrid.around((0.0, 0.0, 0.0), shape, spacing_mm, IDENTITY_DIRECTIONS)


def _acquisition_on(grid: VoxelGrid, *, n_dims: int = 2) -> Acquisition:
    n_slices, n_y, n_x = grid.shape
    thickness, spacing_y, spacing_x = grid.spacing_mm
    volume = n_dims == 3
    fov = (thickness * n_slices if volume else thickness, spacing_y * n_y, spacing_x * n_x)
    shown = [n_slices // 2] if volume else range(n_slices)
    return Acquisition(
        encoded_shape=(n_slices if volume else 1, n_y, n_x),
        encoded_fov_mm=fov,
        recon_fov_mm=fov,
        directions=grid.directions,
        slice_positions_mm=tuple(grid.position_mm((index, n_y // 2, n_x // 2)) for index in shown),
        slice_spacing_mm=None if volume else thickness,
        geometry_known=True,
        sequence_name="simulated",
    )
