"""Geometries of published data sets and protocols, by name."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from operators.beam_geometry import BeamGeometry, FanBeam, ParallelBeam
from operators.errors import InputError


@dataclass(frozen=True, slots=True)
class Preset:
    """How a data set was measured or simulated; ``repr`` is code that builds it again.

    Parameters
    ----------
    geometry
        Where the rays run.
    image_shape
        Size of the image, ``(y, x)``.
    mu_water_per_mm
        Attenuation of water that its Hounsfield units rest on, in 1/mm; ``None`` where nobody says.
    reverse_detector
        Whether its files number the detector bins against the direction of ``BeamGeometry``.
    divided_by
        Number by which the line integrals were divided before they were written.
    """

    geometry: BeamGeometry
    image_shape: tuple[int, int]
    mu_water_per_mm: float | None = None
    reverse_detector: bool = False
    divided_by: float = 1.0

    def with_views(self, n_views: int) -> "Preset":
        """The same scan with fewer views, at equal steps.

        Raises
        ------
        InputError
            If their number does not divide that of the views.
        """
        n_all = self.geometry.n_views
        if n_views < 1 or n_all % n_views:
            raise InputError(f"{n_views} views cannot be taken at equal steps from {n_all}; use a divisor of {n_all}.")
        return replace(self, geometry=self.geometry[:: n_all // n_views])

    def with_matrix(self, matrix: int) -> "Preset":
        """The same field of view in a square of so many pixels along each side.

        Raises
        ------
        InputError
            If there is none.
        """
        if matrix < 1:
            raise InputError(f"The matrix is {matrix}; expected at least 1.")
        pixel_mm = self.image_shape[0] * self.geometry.pixel_spacing_mm / matrix
        geometry = replace(self.geometry, pixel_spacing_mm=pixel_mm)
        return replace(self, geometry=geometry, image_shape=(matrix, matrix))


def syndeeplesion() -> Preset:
    """SynDeepLesion, the benchmark of metal artefact reduction: flat fan, 640 views, 641 bins, 416² pixels.

    A pixel of the 512² originals is taken as 0.3 mm wide, so one of 416² has 512/416 · 0.3 mm. Source and detector
    stand 1075 pixels from the isocentre, and the detector is 2√2 · 416 pixels long: its image at the isocentre is the
    diagonal. View k stands at (k + ½) · 2π/640 in the coordinates of the simulation, where the first axis of an image
    is x; the quarter turn between those and rows that run downwards is taken off, so that the image comes out as the
    files store it. Attenuation of water is 0.192 per cm there.

    References
    ----------
    Zhang and Yu, "Convolutional neural network based metal artifact reduction in X-ray computed tomography", IEEE
    TMI 37, 2018 (the simulation); Wang et al., "InDuDoNet", MICCAI 2021 (the data set and the geometry in code).
    """
    n_views, n_pixels, n_detectors = 640, 416, 641
    pixel_mm = 512 / 416 * 0.3
    geometry = FanBeam(
        angles_rad=_half_steps(n_views, 2 * math.pi, start=-math.pi / 2),
        n_detectors=n_detectors,
        detector_spacing_mm=2 * math.sqrt(2) * n_pixels * pixel_mm / n_detectors,
        pixel_spacing_mm=pixel_mm,
        source_to_center_mm=1075 * pixel_mm,
        center_to_detector_mm=1075 * pixel_mm,
    )
    return Preset(geometry, (n_pixels, n_pixels), mu_water_per_mm=0.0192)


def aapm_ct_mar() -> Preset:
    """AAPM CT-MAR as in its published pair of sinogram and image: curved fan, 1000 views of 900 bins, 512² pixels.

    Distances, bins of 1 mm, views and field of view (400 mm) are those of the published configuration. Turning
    direction, start (source at the top), direction of the bins and the *centred* detector were found from the pair:
    among the detector offsets only 0 makes opposite rays agree, and the back-projection then meets the published image.

    References
    ----------
    De Man et al., AAPM CT metal artifact reduction grand challenge, 2023; configuration at github.com/xcist/example.
    """
    geometry = FanBeam(
        angles_rad=tuple(math.pi + view * 2 * math.pi / 1000 for view in range(1000)),
        n_detectors=900,
        detector_spacing_mm=1.0,
        pixel_spacing_mm=400 / 512,
        source_to_center_mm=550.0,
        center_to_detector_mm=400.0,
        curved=True,
    )
    return Preset(geometry, (512, 512), mu_water_per_mm=0.02, reverse_detector=True)


def aapm_ct_mar_offset() -> Preset:
    """AAPM CT-MAR as its published configuration has it: like ``aapm_ct_mar``, with the detector 1.25 bins off centre.

    The configuration says −1.25 bins in its direction of the bins, which is +1.25 in ours. No published sinogram at
    hand has that offset, so it is not verified; opposite rays are compared on reading, and disagreement is reported.
    """
    preset = aapm_ct_mar()
    return replace(preset, geometry=replace(preset.geometry, detector_offset_mm=1.25))


def htc2022() -> Preset:
    """Helsinki Tomography Challenge 2022: flat fan, views every half degree, 560 bins of 0.2 mm, 512² pixels.

    The files carry their own geometry; this is the full circle, for simulations.

    References
    ----------
    Meaney, Silva de Moura and Siltanen, Helsinki Tomography Challenge 2022 open tomographic dataset, Zenodo 6984868.
    """
    source_to_center_mm, source_to_detector_mm = 410.66, 553.74
    geometry = FanBeam(
        angles_rad=tuple(math.radians(view / 2) for view in range(720)),
        n_detectors=560,
        detector_spacing_mm=0.2,
        pixel_spacing_mm=0.2 * source_to_center_mm / source_to_detector_mm,
        source_to_center_mm=source_to_center_mm,
        center_to_detector_mm=source_to_detector_mm - source_to_center_mm,
    )
    return Preset(geometry, (512, 512))


def lodopab() -> Preset:
    """LoDoPaB-CT: parallel beam, 1000 views over half a turn, 513 bins over the diagonal of 26 cm, 362² pixels.

    The published arrays hold line integrals divided by 81.35858, the attenuation of 3071 HU in 1/m, and images with x
    as their first axis and y downwards; the angles here run backwards, so that the image comes out upright, which is
    the transpose of the published one.

    References
    ----------
    Leuschner et al., "LoDoPaB-CT, a benchmark dataset for low-dose computed tomography reconstruction", Scientific
    Data 8, 2021.
    """
    n_views, n_detectors, width_mm = 1000, 513, 260.0
    geometry = ParallelBeam(
        angles_rad=tuple(-angle for angle in _half_steps(n_views, math.pi)),
        n_detectors=n_detectors,
        detector_spacing_mm=width_mm * math.sqrt(2) / n_detectors,
        pixel_spacing_mm=width_mm / 362,
    )
    mu_water_per_m, mu_air_per_m = 20.0, 0.02
    largest_per_m = 3071 * (mu_water_per_m - mu_air_per_m) / 1000 + mu_water_per_m
    return Preset(geometry, (362, 362), mu_water_per_mm=mu_water_per_m / 1000, divided_by=largest_per_m)


def sparse_view(n_views: int = 360) -> Preset:
    """The usual sparse-view protocol: flat fan 600/290 mm, 800 bins of 1.2 mm, 512² pixels of 400 mm together.

    Parameters
    ----------
    n_views
        Number of views that are kept of the 360 at half steps: a divisor of 360, or 60, 90, 120 or 180 in the
        literature.

    Raises
    ------
    InputError
        If ``n_views`` does not divide 360.

    References
    ----------
    Wang et al., "DuDoTrans", 2021; the same geometry in PromptCT and its relatives.
    """
    geometry = FanBeam(
        angles_rad=_half_steps(360, 2 * math.pi),
        n_detectors=800,
        detector_spacing_mm=1.2,
        pixel_spacing_mm=400 / 512,
        source_to_center_mm=600.0,
        center_to_detector_mm=290.0,
    )
    return Preset(geometry, (512, 512)).with_views(n_views)


PRESETS: dict[str, Callable[[], Preset]] = {
    "syndeeplesion": syndeeplesion,
    "aapm-ct-mar": aapm_ct_mar,
    "aapm-ct-mar-offset": aapm_ct_mar_offset,
    "htc2022": htc2022,
    "lodopab": lodopab,
    "sparse-view": sparse_view,
    "sparse-view-180": lambda: sparse_view(180),
    "sparse-view-120": lambda: sparse_view(120),
    "sparse-view-90": lambda: sparse_view(90),
    "sparse-view-60": lambda: sparse_view(60),
}
"""Names that a command line takes, and what they stand for."""


def preset(name: str) -> Preset:
    """The preset of this name.

    Raises
    ------
    InputError
        If there is none; the message names them all.
    """
    if name not in PRESETS:
        raise InputError(f"There is no preset {name!r}; there are {', '.join(PRESETS)}.")
    return PRESETS[name]()


def _half_steps(n_views: int, arc_rad: float, *, start: float = 0.0) -> tuple[float, ...]:
    return tuple(start + (view + 0.5) * arc_rad / n_views for view in range(n_views))
