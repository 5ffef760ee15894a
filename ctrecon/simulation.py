"""Simulated scans: an image in HU becomes a sinogram, noisy, beam-hardened, with metal. Noise is added only here."""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch

from ctrecon.hounsfield import MU_WATER_PER_MM, to_mu
from ctrecon.phantom import FIELD_OF_VIEW_MM, METAL_SECTIONS, body_phantom
from ctrecon.presets import preset
from ctrecon.sinogram import Sinogram
from ctrecon.spectrum import (
    METALS,
    REFERENCE_KEV,
    Spectrum,
    attenuation_per_mm,
    tube_spectrum,
    water_correction,
)
from operators.beam_geometry import BeamGeometry
from operators.decision import Decision
from operators.errors import InputError
from operators.projection import Projection
from operators.voxel_grid import VoxelGrid

_ALL_WATER_HU, _ALL_BONE_HU = 100.0, 1500.0
_RAYS_AT_ONCE = 2**16
_PROTOCOL_PHOTONS, _PROTOCOL_NOISE_STD = 5e6, 0.05
_SCATTER_SHARE = 1e-6  # 20 of 2e7 photons, as in the published simulations of metal
_AIR_HU = -1000.0
_TRACE_MM = 1e-3  # paths through metal below this are rounding, as in operators.metal.metal_trace


@dataclass(frozen=True, slots=True)
class Simulation:
    """A simulated scan beside the truth it was made from.

    Parameters
    ----------
    sinogram
        The scan; its weights are the counts over the photons sent, where photons were counted.
    target_hu
        The image without metal, float32 ``(slice, y, x)``, in HU.
    metal_mask
        Share of metal in each pixel, float32 ``(slice, y, x)``, or ``None`` without metal.
    metal_trace
        1 = the ray meets metal, 0 = not, float32 ``(slice, view, detector)``; ``None`` without metal.
    n_starved
        Number of rays that counted less than one photon, and were set to one.
    """

    sinogram: Sinogram
    target_hu: torch.Tensor
    metal_mask: torch.Tensor | None
    metal_trace: torch.Tensor | None
    n_starved: int


@dataclass(frozen=True, slots=True)
class Scenario:
    """A simulated scan in the words of the command line.

    Parameters
    ----------
    image
        Path of an image in HU (NIfTI, DICOM, NumPy), or ``"phantom"`` for the built-in one.
    preset
        Name of the scanner geometry, see `ctrecon.presets.PRESETS`.
    n_views
        Number of views, at equal steps among those of the preset; ``None`` for all.
    matrix
        Size of the square image; ``None`` for that of the preset.
    n_photons
        Photons per ray without an object (the dose); ``None`` for no noise.
    electronic_noise_std
        Standard deviation of the electronic noise, in photons.
    noise
        ``"counts"`` or ``"sparse-view"``, see `simulate`.
    polyenergetic
        Whether the tube has a spectrum (120 kV), corrected for water, and scatters one photon in a million.
    section
        Section of the built-in phantom; with metal, that of the metal.
    metal
        Metal in the built-in phantom: ``"hip"``, ``"spine"``, ``"dental"`` or ``None``.
    material
        What the metal is made of.
    seed
        Seed of phantom and noise.
    """

    image: str = "phantom"
    preset: str = "sparse-view"
    n_views: int | None = None
    matrix: int | None = None
    n_photons: float | None = None
    electronic_noise_std: float = 0.0
    noise: Literal["counts", "sparse-view"] = "counts"
    polyenergetic: bool = False
    section: str = "abdomen"
    metal: str | None = None
    material: str = "titanium"
    seed: int = 0


def simulate_scenario(scenario: Scenario) -> Simulation:
    """Simulate the scan that a scenario describes.

    The image keeps its size in mm and is placed in the middle of the preset's field of view. One that is larger is
    shrunk to fit, which is said: a person of 400 mm in a field of 154 mm attenuates too little, as in that literature.

    Parameters
    ----------
    scenario
        What to simulate.

    Returns
    -------
    Simulation
        Sinogram, target, and metal.

    Raises
    ------
    InputError
        If the image cannot be read, a name is unknown, or what was asked for does not go together.
    """
    chosen = preset(scenario.preset)
    if scenario.n_views is not None:
        chosen = chosen.with_views(scenario.n_views)
    if scenario.matrix is not None:
        chosen = chosen.with_matrix(scenario.matrix)
    draw = _phantom if scenario.image == "phantom" else _image
    scanned = draw(scenario, chosen.image_shape[0], chosen.geometry.pixel_spacing_mm)
    try:
        simulation = simulate(
            scanned.hu,
            chosen.geometry,
            n_photons=scenario.n_photons,
            n_scatter_photons=_SCATTER_SHARE * (scenario.n_photons or 0) if scenario.polyenergetic else 0.0,
            electronic_noise_std=scenario.electronic_noise_std,
            noise=scenario.noise,
            polyenergetic=scenario.polyenergetic,
            metal_mask=scanned.metal_mask,
            metal=scenario.material,
            mu_water_per_mm=chosen.mu_water_per_mm or MU_WATER_PER_MM,
            grid=scanned.grid,
            seed=scenario.seed,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    sinogram = replace(simulation.sinogram, decisions=(*scanned.decisions, *simulation.sinogram.decisions))
    return replace(simulation, sinogram=sinogram)


def simulate(
    hu: torch.Tensor,
    geometry: BeamGeometry,
    *,
    n_photons: float | None = None,
    n_scatter_photons: float = 0.0,
    electronic_noise_std: float = 0.0,
    noise: Literal["counts", "sparse-view"] = "counts",
    polyenergetic: bool = False,
    spectrum: Spectrum | None = None,
    correct_water: bool = True,
    metal_mask: torch.Tensor | None = None,
    metal: str = "titanium",
    mu_water_per_mm: float = MU_WATER_PER_MM,
    grid: VoxelGrid | None = None,
    seed: int = 0,
) -> Simulation:
    """Simulate a scan of a stack of slices.

    Without a spectrum, p = A mu, with mu that of the image (at 70 keV). With one, tissue is split into water and bone,
    all water up to 100 HU, all bone from 1500 HU, in between in proportion, the metal displaces tissue, and::

        p = −log Σ_E f(E) exp(−Σ_m mu_m(E)/mu_m(70 keV) · (A mu_m)(70 keV)),    p ← a p + b p² + c p³

    with the photon fractions f, the materials m, and the polynomial of `ctrecon.spectrum.water_correction`, after which
    water of HU 0 has ``mu_water_per_mm`` again. At either edge of the metal's shadow in a view the outermost ray (what
    an erosion by three bins takes away) sees a quarter of it, for a bin is wider than a line.

    Counted photons are Poisson(n_photons · exp(−p) + n_scatter_photons) plus normal electronic noise. Counts below 1
    become 1, and how many is reported. The noise of the sparse-view protocol is, with s the line integrals in mm of the
    image divided by its largest attenuation, and s_max the largest of each slice: Poisson of 5e6 photons on
    exp(−s/s_max), its logarithm times −s_max, plus N(0, 0.05²).

    Parameters
    ----------
    hu
        The image without metal, real floating-point ``(slice, y, x)``, in HU.
    geometry
        Where the rays run; the pixels are ``geometry.pixel_spacing_mm`` wide.
    n_photons
        Photons per ray without an object; ``None`` for no noise.
    n_scatter_photons
        Photons that every ray counts in addition, on average.
    electronic_noise_std
        Standard deviation of the electronic noise, in photons.
    noise
        ``"counts"``, or ``"sparse-view"`` for the protocol above, which has its own photons.
    polyenergetic
        Whether the beam has a spectrum.
    spectrum
        By default ``tube_spectrum()``, 120 kV.
    correct_water
        Whether the sinogram of a spectrum is corrected for water.
    metal_mask
        Bool, or share of metal in [0, 1], broadcasts to the image.
    metal
        ``"titanium"``, ``"iron"``, ``"copper"`` or ``"gold"``.
    mu_water_per_mm
        Attenuation of water, in 1/mm.
    grid
        Where the image lies in the patient (its spacing in the plane is the geometry's); by default around the
        isocentre with slices 1 mm apart.
    seed
        Seed of the noise; the global generator is left alone.

    Returns
    -------
    Simulation
        Sinogram, target, and metal.

    Raises
    ------
    TypeError
        If the image is not real floating-point.
    ValueError
        If the image is no stack of slices, is not finite, or a number or a name makes no sense.

    References
    ----------
    Zhang and Yu, Convolutional neural network based metal artifact reduction in X-ray computed tomography, IEEE Trans.
    Med. Imaging 37 (2018), for constants and the edge of the metal; there metal does not displace tissue.
    """
    _check_image(hu)
    _check_dose(n_photons, n_scatter_photons, electronic_noise_std, noise)
    if metal not in METALS:
        raise ValueError(f"metal is {metal!r}; expected one of {METALS}.")
    if spectrum is not None and not polyenergetic:
        raise ValueError("A spectrum was given, but polyenergetic is false; set it, or leave the spectrum away.")
    beam = (spectrum or tube_spectrum()) if polyenergetic else None
    target = hu.to(torch.float32)
    share = None if metal_mask is None else _metal_share(metal_mask, target)
    parts = _materials(target, share, metal, mu_water_per_mm)
    # One projection of all materials side by side: water, bone and, where there is any, the metal.
    paths = Projection(geometry, tuple(hu.shape[1:]))(torch.stack(list(parts.values())))
    trace = None if share is None else _trace(paths[2], metal)
    line_integrals = paths.sum(dim=0) if beam is None else _polyenergetic(paths, trace, list(parts), beam)
    generator = torch.Generator().manual_seed(seed)
    if noise == "sparse-view":
        largest = to_mu(target, mu_water_per_mm).amax(dim=(-2, -1)).reshape(-1, 1, 1)
        measured = _Measured(sparse_view_noise(line_integrals, largest, generator))
    elif n_photons is not None:
        expected = n_photons * torch.exp(-line_integrals.to(torch.float64)) + n_scatter_photons
        measured = _counted(expected, n_photons, electronic_noise_std, generator)
    else:
        measured = _Measured(line_integrals)
    data = measured.line_integrals
    if beam is not None and correct_water:
        a, b, c = water_correction(beam)
        data = data * (a + data * (b + data * c))
    sinogram = Sinogram(
        data=data.to(torch.float32),
        geometry=geometry,
        image_shape=(hu.shape[1], hu.shape[2]),
        mu_water_per_mm=mu_water_per_mm,
        mu_water_known=True,
        weights=measured.weights,
        decisions=(
            Decision("simulated", f"seed {seed}", "this scan was simulated from an image"),
            *_beam_decisions(beam, correct_water),
            *_metal_decisions(trace, metal),
            *_noise_decisions(noise, n_photons, measured),
        ),
    )
    if grid is not None:
        sinogram = replace(
            sinogram,
            slice_spacing_mm=grid.spacing_mm[0],
            center_mm=_centre_of_first_slice(grid),
            directions=grid.directions,
        )
    return Simulation(sinogram, target, share, trace, measured.n_starved)


def sparse_view_noise(line_integrals: torch.Tensor, largest: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Add the noise of the sparse-view protocol, see `simulate`.

    Parameters
    ----------
    line_integrals
        Without noise, real ``(*batch, view, detector)``, dimensionless.
    largest
        Largest attenuation of each image, ``(*batch, 1, 1)``, in 1/mm.
    generator
        The only source of randomness.

    Returns
    -------
    torch.Tensor
        Line integrals with noise, float64.
    """
    s = line_integrals.to(torch.float64) / largest
    s_max = s.amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(s.dtype).tiny)
    counts = torch.poisson(_PROTOCOL_PHOTONS * torch.exp(-s / s_max), generator=generator)
    noise = _PROTOCOL_NOISE_STD * torch.randn(s.shape, generator=generator, dtype=s.dtype)
    return largest * (noise - s_max * torch.log(counts / _PROTOCOL_PHOTONS))


class _Measured(NamedTuple):
    """Line integrals with noise, the weights of counted photons, and the number of rays without one."""

    line_integrals: torch.Tensor
    weights: torch.Tensor | None = None
    n_starved: int = 0


def _materials(
    hu: torch.Tensor, metal_share: torch.Tensor | None, metal: str, mu_water_per_mm: float
) -> dict[str, torch.Tensor]:
    """Attenuation at the reference energy that each material contributes, ``(slice, y, x)``, in 1/mm."""
    tissue = to_mu(hu, mu_water_per_mm)
    if metal_share is not None:
        tissue = tissue * (1 - metal_share)
    bone = ((hu - _ALL_WATER_HU) / (_ALL_BONE_HU - _ALL_WATER_HU)).clamp(0, 1) * tissue
    parts = {"water": tissue - bone, "bone": bone}
    if metal_share is not None:
        parts[metal] = float(attenuation_per_mm(metal, REFERENCE_KEV)) * metal_share
    return parts


def _trace(path: torch.Tensor, metal: str) -> torch.Tensor:
    return (path > _TRACE_MM * float(attenuation_per_mm(metal, REFERENCE_KEV))).to(torch.float32)


def _thin_edges(path: torch.Tensor, trace: torch.Tensor) -> torch.Tensor:
    """A quarter of the metal where a bin of the trace has a neighbour along the detector that is outside."""
    outside = torch.nn.functional.max_pool1d((1 - trace).flatten(0, -2)[:, None], 3, 1, 1)
    edge = trace * outside[:, 0].reshape(trace.shape)
    return torch.where(edge == 1, path / 4, path)


def _polyenergetic(
    paths: torch.Tensor, trace: torch.Tensor | None, materials: list[str], spectrum: Spectrum
) -> torch.Tensor:
    """−log of the transmitted share of a spectrum, float64 ``(slice, view, detector)``.

    ``paths`` are the line integrals of each material at the reference energy, ``(material, slice, view, detector)``.
    """
    if trace is not None:
        paths = torch.cat((paths[:2], _thin_edges(paths[2], trace)[None]))
    tables = [attenuation_per_mm(m, spectrum.energies_kev) / attenuation_per_mm(m, REFERENCE_KEV) for m in materials]
    relative = torch.stack(tables)  # (material, energy)
    rays = paths.to(torch.float64).flatten(1).T
    transmitted = [torch.exp(-(part @ relative)) @ spectrum.fractions for part in rays.split(_RAYS_AT_ONCE)]
    return -torch.log(torch.cat(transmitted)).reshape(paths.shape[1:])


def _counted(
    expected: torch.Tensor, n_photons: float, electronic_noise_std: float, generator: torch.Generator
) -> _Measured:
    counts = torch.poisson(expected, generator=generator)
    if electronic_noise_std > 0:
        counts += electronic_noise_std * torch.randn(counts.shape, generator=generator, dtype=counts.dtype)
    n_starved = int((counts < 1).sum())
    transmitted = counts.clamp_min(1) / n_photons
    return _Measured(-torch.log(transmitted), transmitted.to(torch.float32), n_starved)


def _beam_decisions(spectrum: Spectrum | None, correct_water: bool) -> tuple[Decision, ...]:
    if spectrum is None:
        return ()
    reason = "line integrals refer to 70 keV" if correct_water else "the sinogram is not corrected for water"
    value = f"spectrum with a mean of {spectrum.mean_kev:.1f} keV"
    return (Decision("beam", value, reason, warning=not correct_water),)


def _metal_decisions(trace: torch.Tensor | None, metal: str) -> tuple[Decision, ...]:
    if trace is None:
        return ()
    return (Decision("metal", metal, f"{100 * float(trace.mean()):.2g} % of the rays meet it"),)


def _noise_decisions(noise: str, n_photons: float | None, measured: _Measured) -> tuple[Decision, ...]:
    if noise == "sparse-view":
        return (Decision("noise", "sparse-view protocol", "5e6 photons on exp(−s/s_max), and N(0, 0.05²)"),)
    if n_photons is None:
        return ()
    n_starved, n_rays = measured.n_starved, measured.line_integrals.numel()
    reason = f"{n_starved} of {n_rays} rays counted less than one photon and were set to one"
    return (Decision("noise", f"{n_photons:g} photons per ray", reason, warning=n_starved > 0),)


def _check_image(hu: torch.Tensor) -> None:
    if not hu.is_floating_point():
        raise TypeError(f"hu is {hu.dtype}; expected real floating-point Hounsfield units.")
    if hu.ndim != 3 or not bool(hu.isfinite().all()):
        raise ValueError(f"hu has shape {tuple(hu.shape)}; expected finite values (slice, y, x).")


def _check_dose(n_photons: float | None, n_scatter: float, electronic_noise_std: float, noise: str) -> None:
    if noise not in ("counts", "sparse-view"):
        raise ValueError(f"noise is {noise!r}; expected 'counts' or 'sparse-view'.")
    if n_photons is not None and not (math.isfinite(n_photons) and n_photons >= 1):
        raise ValueError(f"n_photons is {n_photons:g}; expected at least 1, or None for no noise.")
    if min(n_scatter, electronic_noise_std) < 0:
        raise ValueError("Scattered photons and electronic noise must not be negative.")
    if noise == "sparse-view" and n_photons is not None:
        raise ValueError("The sparse-view protocol has its own number of photons; leave n_photons away.")
    if (n_scatter > 0 or electronic_noise_std > 0) and (n_photons is None or noise == "sparse-view"):
        raise ValueError("Scattered photons and electronic noise need a number of photons: give n_photons.")


def _metal_share(mask: torch.Tensor, hu: torch.Tensor) -> torch.Tensor:
    share = mask.to(torch.float32)
    if mask.is_complex() or not bool(((share >= 0) & (share <= 1)).all()):
        raise ValueError("metal_mask holds values outside [0, 1]; it is the share of metal in each pixel.")
    if share.ndim > 3 or any(n not in (1, m) for n, m in zip(share.shape[::-1], hu.shape[::-1], strict=False)):
        raise ValueError(f"metal_mask has shape {tuple(mask.shape)}; it must broadcast to {tuple(hu.shape)}.")
    return share.expand(hu.shape)


def _centre_of_first_slice(grid: VoxelGrid) -> tuple[float, float, float]:
    x, y, z = grid.position_mm((0, (grid.shape[1] - 1) / 2, (grid.shape[2] - 1) / 2))
    return float(x), float(y), float(z)


@dataclass(frozen=True, slots=True)
class _Object:
    """What is scanned, at the matrix of the scan: image in HU, metal, place in the patient, and what was decided."""

    hu: torch.Tensor
    metal_mask: torch.Tensor | None
    grid: VoxelGrid | None
    decisions: tuple[Decision, ...]


def _phantom(scenario: Scenario, matrix: int, pixel_mm: float) -> _Object:
    section = METAL_SECTIONS.get(scenario.metal or "", scenario.section)
    field_mm = FIELD_OF_VIEW_MM.get(section, matrix * pixel_mm)
    size, decisions = _fitting((field_mm, field_mm), matrix, pixel_mm)
    try:
        hu, metal = body_phantom(size, section=section, metal=scenario.metal, seed=scenario.seed)
    except ValueError as error:
        raise InputError(str(error)) from error
    mask = _centred(metal[None].to(torch.float32), matrix, 0.0) if scenario.metal else None
    return _Object(_centred(hu[None], matrix, _AIR_HU), mask, None, decisions)


def _image(scenario: Scenario, matrix: int, pixel_mm: float) -> _Object:
    if scenario.metal is not None:
        raise InputError("Metal can be put into the built-in phantom only; leave it away, or simulate 'phantom'.")
    from ctrecon.io.images import read_hu_image

    hu, grid, decisions = read_hu_image(scenario.image)
    n_slices, n_y, n_x = grid.shape
    spacing_z, spacing_y, spacing_x = grid.spacing_mm
    size, fit = _fitting((n_y * spacing_y, n_x * spacing_x), matrix, pixel_mm)
    if size != (n_y, n_x):
        hu = torch.nn.functional.interpolate(hu[None], size=size, mode="bilinear", antialias=True)[0]
    place = VoxelGrid((n_slices, matrix, matrix), (spacing_z, pixel_mm, pixel_mm), grid.directions)
    x, y, z = (a - b for a, b in zip(_centre_of_first_slice(grid), _centre_of_first_slice(place), strict=True))
    return _Object(_centred(hu, matrix, _AIR_HU), None, replace(place, origin_mm=(x, y, z)), (*decisions, *fit))


def _fitting(
    field_mm: tuple[float, float], matrix: int, pixel_mm: float
) -> tuple[tuple[int, int], tuple[Decision, ...]]:
    """Number of pixels that an image's field of view takes at the scan's pixel size; at most the matrix."""
    shrunk = max(max(field_mm) / (matrix * pixel_mm), 1.0)
    sizes = [max(1, round(length / pixel_mm / shrunk)) for length in field_mm]
    even = [n + (matrix - n) % 2 if n < matrix else matrix for n in sizes]  # so that its middle is that of the field
    if shrunk < 1 + 1 / matrix:
        return (even[0], even[1]), ()
    decision = Decision(
        "size",
        f"shrunk {shrunk:.2f} times",
        f"the image is {max(field_mm):.0f} mm wide, the field of view of the geometry {matrix * pixel_mm:.0f} mm",
        warning=True,
    )
    return (even[0], even[1]), (decision,)


def _centred(image: torch.Tensor, matrix: int, background: float) -> torch.Tensor:
    """The image in the middle of a square."""
    missing_y, missing_x = matrix - image.shape[-2], matrix - image.shape[-1]
    margins = (missing_x // 2, missing_x - missing_x // 2, missing_y // 2, missing_y - missing_y // 2)
    return torch.nn.functional.pad(image, margins, value=background)
