"""Scans of people with metal, simulated from their images: pairs for training and test, drawn or kept in a folder."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ctrecon.datasets import Scanner, Scenarios, Source, _attenuation, _averaged
from ctrecon.hounsfield import to_hu
from ctrecon.implants import Implant, Shapes, implanted, implants
from ctrecon.metal import fill_trace
from ctrecon.prepare import noise_std
from ctrecon.simulation import _SCATTER_SHARE, _counted, _materials, _polyenergetic, _trace
from ctrecon.sinogram import Sinogram
from ctrecon.spectrum import METALS, tube_spectrum, water_correction
from operators.checkpoint import as_json, read_tensors, write_tensors
from operators.errors import InputError
from operators.evaluation import largest_object
from operators.filtered_start import initial_image
from operators.image_sources import chosen_sources, data_folder
from operators.io.files import replacing
from operators.learning import seed_of
from operators.linear_operator import LinearOperator
from operators.metal import masked, metal_trace
from operators.projection import Projection
from operators.staged_training import DrawScan, Scan

Progress = Callable[[int, int], None]

_BODY_HU, _BODY_CLOSING = -500.0, 3
_ROUNDING = 1e-6  # of the share of metal in a pixel
_TENSORS = ("y", "trace", "x0", "target", "metal", "uncorrected")
_FACTS = ("noise_std", "mu_water_per_mm", "patient", "kernel", "number", "implant", "material")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetalScenarios(Scenarios):
    """The scans with metal that are drawn.

    Parameters
    ----------
    n_views
        Numbers of views, at equal steps among those of the preset, of which each scan has one.
    metal
        What implants are made of; each scan has one of these materials.
    preset
        Name of the scanner geometry, see `ctrecon.presets.PRESETS`.
    n_photons
        Photons per ray without an object; one more in a million is scattered into every ray.

    Raises
    ------
    InputError
        If there is no such preset or metal, it has no such number of views, or the photons are fewer than one.
    """

    metal: tuple[str, ...]
    preset: str = "syndeeplesion"
    n_photons: float = 2e7

    def __post_init__(self) -> None:
        Scenarios.__post_init__(self)
        unknown = [name for name in self.metal if name not in METALS]
        if unknown or not self.metal:
            raise InputError(f"metal is {list(self.metal)}; expected some of {', '.join(METALS)}.")
        if not self.n_photons >= 1:
            raise InputError(f"n_photons is {self.n_photons:g}; expected at least 1.")


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """One image of a person without metal.

    Parameters
    ----------
    hu
        As in the file, not below air, float32 ``(y, x)``, in HU.
    pixel_mm
        Size of its pixels, as they are or shrunk so that it fits into the field of view.
    mu_per_mm
        Attenuation, float32 ``(y, x)``, in 1/mm: the mean over each pixel of the scan.
    patient, kernel
        As in its `ctrecon.datasets.Source`.
    number
        Its index in the file, from the feet up.
    """

    hu: torch.Tensor
    pixel_mm: float
    mu_per_mm: torch.Tensor
    patient: str
    kernel: str
    number: int

    def mirrored(self) -> "Body":
        """The same person with left and right exchanged."""
        return replace(self, hu=self.hu.flip(-1), mu_per_mm=self.mu_per_mm.flip(-1))


@dataclass(frozen=True, slots=True, eq=False)
class MetalScan:
    """A scan of one slice with metal, what is known of it without, and the truth.

    Parameters
    ----------
    y
        Line integrals, corrected for water, zero in the trace of the metal, float32 ``(view, detector)``.
    trace
        Rays through metal, bool ``(view, detector)``.
    projection
        The operator of all rays.
    norm
        Its norm.
    x0
        Image of normalised interpolation (NMAR), without the metal, attenuation in 1/mm, float32 ``(y, x)``.
    target
        The image that the simulation started from, without metal, attenuation in 1/mm, float32 ``(y, x)``.
    metal
        Pixels with any metal in them, bool ``(y, x)``.
    uncorrected
        Filtered back-projection of all rays as they were measured, attenuation in 1/mm, float32 ``(y, x)``.
    noise_std
        Noise level of the rays beside the metal as `ctrecon.metal.reconstruct_without_metal` finds it.
    mu_water_per_mm
        Attenuation of water.
    patient, kernel, number
        As in its `Body`.
    implant
        Name of the implant.
    material
        What it is made of.
    """

    y: torch.Tensor
    trace: torch.Tensor
    projection: Projection
    norm: float
    x0: torch.Tensor
    target: torch.Tensor
    metal: torch.Tensor
    uncorrected: torch.Tensor
    noise_std: float
    mu_water_per_mm: float
    patient: str
    kernel: str
    number: int
    implant: str
    material: str

    @property
    def A(self) -> LinearOperator:
        """The operator of the rays beside the metal, diag(1 − trace) A."""
        return masked(self.projection, self.trace.to(self.y.dtype))

    @property
    def n_views(self) -> int:
        """Number of views."""
        return self.y.shape[0]

    def to(self, device: str | torch.device) -> "MetalScan":
        """The scan on another device; the operator is moved there."""
        moved = {name: getattr(self, name).to(device) for name in (*_TENSORS, "projection")}
        return replace(self, **moved)

    def training_scan(self) -> Scan:
        """What `operators.staged_training.fit_stages` takes: units in which all rays have ‖A‖ = 1, no loss in metal."""
        scale = 1 / self.norm
        return Scan(scale * self.y, scale * self.A, self.target, scale * self.noise_std, self.x0, self.metal)


class MetalScanner:
    """Scans of bodies with metal, by one scanner whose operators are built once.

    The beam has a spectrum (120 kV) and the data are corrected for water, with all else as in
    `ctrecon.simulation.simulate`. The scan is made of the file's image with its own pixels, and of metal in these; the
    operators of reconstructions sum over the pixels of the scan.

    Parameters
    ----------
    scenarios
        Which scanner.
    matrix
        Number of pixels along each side, for the whole field of view.

    Attributes
    ----------
    scanner
        Geometry and operators without metal.
    """

    def __init__(self, scenarios: MetalScenarios, matrix: int) -> None:
        self.scanner = Scanner(scenarios.preset, matrix)
        self.n_photons = scenarios.n_photons
        self._shape = (matrix, matrix)
        self._spectrum = tube_spectrum()
        self._correction = water_correction(self._spectrum)
        self._fine: Projection | None = None
        self._norms: dict[int, float] = {}

    def norm(self, n_views: int) -> float:
        """Norm of the operator with so many views."""
        if n_views not in self._norms:
            self._norms[n_views] = float(self.scanner.operator(n_views).norm())
        return self._norms[n_views]

    def scan(self, body: Body, implant: Implant, material: str, n_views: int, generator: torch.Generator) -> MetalScan:
        """Put metal into a body at random, and scan it.

        Parameters
        ----------
        body
            Loaded for this scanner.
        implant
            What is put into it.
        material
            A name in `ctrecon.spectrum.METALS`.
        n_views
            Number of views.
        generator
            The only source of randomness; place and turn of the implant do not depend on the number of views.

        Returns
        -------
        MetalScan
        """
        scanner, mu_water = self.scanner, self.scanner.mu_water_per_mm
        inside = largest_object(body.hu > _BODY_HU, _BODY_CLOSING)
        share = implanted(implant, inside, scanner.field_of_view_mm / body.pixel_mm, generator)[None].float()
        measured = self._measured(body, share, material, n_views, generator)
        A = scanner.operator(n_views)
        metal = _averaged(share, body.pixel_mm, scanner) > _ROUNDING
        trace = metal_trace(metal, A) == 1
        filled = fill_trace(measured, trace, A, mu_water_per_mm=mu_water)
        uncorrected, x0 = initial_image(torch.cat((measured, filled)), A)
        beside = Sinogram(measured, A.geometry, self._shape, weights=(~trace).float())
        return MetalScan(
            y=torch.where(trace, 0, measured)[0],
            trace=trace[0],
            projection=A,
            norm=self.norm(n_views),
            x0=x0,
            target=body.mu_per_mm,
            metal=metal[0],
            uncorrected=uncorrected,
            noise_std=noise_std(beside)[0],
            mu_water_per_mm=mu_water,
            patient=body.patient,
            kernel=body.kernel,
            number=body.number,
            implant=implant.name,
            material=material,
        )

    def image_without_metal(self, body: Body, n_views: int, generator: torch.Generator) -> torch.Tensor:
        """Filtered back-projection of a scan of the body as it is.

        Parameters
        ----------
        body, n_views
            As for `scan`.
        generator
            Of the noise.

        Returns
        -------
        torch.Tensor
            Attenuation in 1/mm, float32 ``(y, x)``.
        """
        measured = self._measured(body, None, METALS[0], n_views, generator)
        return initial_image(measured, self.scanner.operator(n_views))[0]

    def _measured(
        self, body: Body, share: torch.Tensor | None, material: str, n_views: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Line integrals corrected for water, float32 ``(1, view, detector)``."""
        parts = _materials(body.hu[None], share, material, self.scanner.mu_water_per_mm)
        paths = self._fine_operator(body)(torch.stack(list(parts.values())))[..., self.scanner.views(n_views), :]
        trace = None if share is None else _trace(paths[2], material)
        through = _polyenergetic(paths, trace, list(parts), self._spectrum)
        expected = self.n_photons * (torch.exp(-through) + _SCATTER_SHARE)
        p = _counted(expected, self.n_photons, 0.0, generator).line_integrals
        a, b, c = self._correction
        return (p * (a + p * (b + p * c))).float()

    def _fine_operator(self, body: Body) -> Projection:
        geometry, shape = replace(self.scanner.geometry, pixel_spacing_mm=body.pixel_mm), tuple(body.hu.shape)
        if self._fine is None or (self._fine.geometry, self._fine.domain.shape) != (geometry, shape):
            self._fine = Projection(geometry, shape)
        return self._fine


def load_bodies(
    sources: Sequence[Source],
    scanner: Scanner,
    folder: Path | str | None = None,
    *,
    patients: Collection[str] | None = None,
    kernels: Collection[str] | None = None,
) -> tuple[Body, ...]:
    """Read images of people, each in the middle of the field of view.

    Parameters
    ----------
    sources, scanner, folder, patients, kernels
        As for `ctrecon.datasets.load_slices`.

    Returns
    -------
    tuple of Body
        In the order of the sources, from the feet up.

    Raises
    ------
    InputError
        As for `ctrecon.datasets.load_slices`.
    """
    root = data_folder(folder)
    bodies: list[Body] = []
    for source in chosen_sources(sources, patient=patients, kernel=kernels):
        mu, pixel_mm = _attenuation(source, root / source.path, scanner)
        numbers = source.numbers(len(mu))
        own = mu[list(numbers)]
        images = zip(numbers, to_hu(own, scanner.mu_water_per_mm), _averaged(own, pixel_mm, scanner), strict=True)
        bodies += [Body(hu, pixel_mm, image, source.patient, source.kernel, number) for number, hu, image in images]
    return tuple(bodies)


class MetalScans:
    """A number of scans, each drawn when it is asked for, from its index alone: body, metal, views and noise.

    Parameters
    ----------
    sources
        The images.
    scenarios
        How they are scanned.
    matrix
        Number of pixels along each side.
    n_scans
        How many.
    shapes
        Which implants.
    seed
        Of everything that is random.
    folder
        Where the images are; by default what the environment variable ``MRCTRECON_DATA`` names.
    patients, kernels
        Whose images, and which; all by default.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        scenarios: MetalScenarios,
        matrix: int,
        n_scans: int,
        *,
        shapes: Shapes = "train",
        seed: int = 0,
        folder: Path | str | None = None,
        patients: Collection[str] | None = None,
        kernels: Collection[str] | None = None,
    ) -> None:
        self._chosen = chosen_sources(sources, patient=patients, kernel=kernels)
        self._scenarios, self._shapes, self._seed, self._folder = scenarios, shapes, seed, folder
        self._matrix, self._n_scans = matrix, n_scans
        self._bodies: tuple[Body, ...] = ()
        self._implants: tuple[Implant, ...] = ()
        self.scanner = MetalScanner(scenarios, matrix)

    def __len__(self) -> int:
        return self._n_scans

    def __getitem__(self, index: int) -> MetalScan:
        if not 0 <= index < self._n_scans:
            raise IndexError(f"There are {self._n_scans} scans, and none of index {index}.")
        if not self._bodies:
            self._implants = implants(self._shapes, self._folder)
            self._bodies = load_bodies(self._chosen, self.scanner.scanner, self._folder)
        generator = torch.Generator().manual_seed(seed_of(self._seed, "metal scan", index))

        def drawn(n: int) -> int:
            return int(torch.randint(n, (), generator=generator))

        body, implant = self._bodies[drawn(len(self._bodies))], self._implants[drawn(len(self._implants))]
        material = self._scenarios.metal[drawn(len(self._scenarios.metal))]
        n_views = self._scenarios.n_views[drawn(len(self._scenarios.n_views))]
        return self.scanner.scan(body.mirrored() if drawn(2) else body, implant, material, n_views, generator)

    def identity(self) -> dict[str, Any]:
        """What defines each of the scans, as JSON holds it; how many there are and where the images lie does not."""
        return as_json(
            "description of scans",
            {
                "sources": [asdict(source) for source in self._chosen],
                "scenarios": asdict(self._scenarios),
                "shapes": self._shapes,
                "matrix": self._matrix,
                "seed": self._seed,
                "version": version("mrctrecon"),
            },
        )


class PreparedScans:
    """Scans in a folder, read when they are asked for.

    Parameters
    ----------
    folder
        What `prepare_scans` wrote.
    n_scans
        How many.
    scanner
        That of the scans.
    """

    def __init__(self, folder: Path, n_scans: int, scanner: MetalScanner) -> None:
        self._folder, self._n_scans, self.scanner = folder, n_scans, scanner

    def __len__(self) -> int:
        return self._n_scans

    def __getitem__(self, index: int) -> MetalScan:
        if not 0 <= index < self._n_scans:
            raise IndexError(f"There are {self._n_scans} scans, and none of index {index}.")
        path = _scan_path(self._folder, index)
        content = read_tensors(path)
        if not isinstance(content, dict) or set(content) != {*_TENSORS, *_FACTS}:
            raise InputError(f"{path} holds no scan that was prepared here; delete it, and it is made again.")
        n_views = len(content["y"])
        return MetalScan(projection=self.scanner.scanner.operator(n_views), norm=self.scanner.norm(n_views), **content)


def prepare_scans(folder: Path | str, scans: MetalScans, *, progress: Progress | None = None) -> PreparedScans:
    """Write scans to a folder, for each takes seconds to make and milliseconds to read; what is there is kept.

    Parameters
    ----------
    folder
        Where they go, about 4 MB for each of 640 views; created if need be. One that was stopped goes on, and a larger
        number adds to it.
    scans
        The scans.
    progress
        Called with (scans done, scans in all).

    Returns
    -------
    PreparedScans
        The same scans.

    Raises
    ------
    InputError
        If the folder cannot be written to, or holds other scans.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be a folder of scans ({error.strerror}); choose another.") from error
    description = folder / "scans.json"
    text = json.dumps(scans.identity(), indent=2) + "\n"
    if not description.exists():
        with replacing(description) as path:
            path.write_text(text, encoding="utf-8")
    elif description.read_text(encoding="utf-8") != text:
        raise InputError(f"{folder} holds scans of another description, see {description}; choose another folder.")
    for index in range(len(scans)):
        path = _scan_path(folder, index)
        if not path.exists():
            scan = scans[index]
            tensors = {name: getattr(scan, name).clone() for name in _TENSORS}  # a part would be stored with its whole
            write_tensors(path, tensors | {name: getattr(scan, name) for name in _FACTS}, overwrite=False)
        if progress is not None:
            progress(index + 1, len(scans))
    return PreparedScans(folder, len(scans), scans.scanner)


def drawing_from(scans: MetalScans | PreparedScans) -> DrawScan:
    """Scans at random, for `operators.staged_training.fit_stages`.

    Parameters
    ----------
    scans
        What is drawn from.

    Returns
    -------
    Callable
        ``draw_scan(index, generator)``.
    """

    def draw(_: int, generator: torch.Generator) -> Scan:
        return scans[int(torch.randint(len(scans), (), generator=generator))].training_scan()

    return draw


def _scan_path(folder: Path, index: int) -> Path:
    return folder / f"{index:05}.pt"
