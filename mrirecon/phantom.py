"""The built-in head phantom: formulas for a brain-like object, its smooth phase and the coils around it; no file.

Lengths are in head units: the head is 1.8 high and about 1.4 wide, so one unit is about 105 mm. Every shape is
``(y, x)`` for one slice or ``(z, y, x)`` for a stack; a shape that is neither is a ValueError.
"""

import math
from collections.abc import Sequence

import torch

_Point = tuple[float, float]
_Rod = tuple[_Point, _Point, float, float]  # start, end, radius at the start and at the end

# Signal (a.u.) for T1, T2 and FLAIR weighting, and the relative depth of the texture.
_TISSUES: dict[str, tuple[float, float, float, float]] = {
    "skin": (0.42, 0.30, 0.28, 0.10),
    "fat": (0.92, 0.70, 0.48, 0.07),
    "muscle": (0.36, 0.20, 0.30, 0.20),
    "bone": (0.05, 0.04, 0.04, 0.30),
    "marrow": (0.58, 0.38, 0.28, 0.25),
    "fluid": (0.13, 1.00, 0.09, 0.04),
    "dura": (0.34, 0.22, 0.32, 0.10),
    "grey": (0.47, 0.56, 0.64, 0.06),
    "white": (0.68, 0.38, 0.48, 0.05),
    "striatum": (0.53, 0.50, 0.62, 0.04),
    "pallidum": (0.62, 0.34, 0.50, 0.05),
    "thalamus": (0.57, 0.47, 0.58, 0.05),
    "lesion": (0.40, 0.82, 0.90, 0.06),
    "halo": (0.57, 0.60, 0.76, 0.05),
    "vessel": (0.10, 0.06, 0.08, 0.00),
}
_CONTRASTS = ("t1", "t2", "flair")
_SUPERSAMPLING = 2
_EDGE = 0.0025  # half-width of a tissue boundary; a pixel of a 256² image is 0.008
_LEVEL_2D = -0.3  # a single slice shows ventricles and deep nuclei


def brain_phantom(
    shape: Sequence[int], *, contrast: str = "t1", seed: int = 0, smooth_phase: bool = True
) -> torch.Tensor:
    """Make a complex image of a head that never was, from formulas alone.

    It has scalp, skull with marrow, fluid, folded cortex, white matter, ventricles, deep nuclei, vessels, a lesion in
    one hemisphere, and texture at four scales. It is one fixed function, averaged over each pixel (by two samples
    along y and x), so two resolutions show the same head. Pixels are square and the head fills the field of view.

    Parameters
    ----------
    shape
        ``(y, x)`` for one slice through the ventricles, or ``(z, y, x)`` for slices from the basal ganglia (first)
        up to the vertex (last).
    contrast
        Weighting: ``"t1"``, ``"t2"`` or ``"flair"``.
    seed
        Another seed folds another cortex.
    smooth_phase
        Whether the image carries the phase ``smooth_phase(shape, seed=seed)``; otherwise it is real and non-negative.

    Returns
    -------
    torch.Tensor
        Complex64 of that shape, a.u., with magnitudes of about 0 to 1; the forehead is at row 0, and the lesion is in
        the right half of the picture.

    Raises
    ------
    ValueError
        If the contrast is unknown.

    Examples
    --------
    >>> brain_phantom((4, 32, 32), contrast="flair").shape
    torch.Size([4, 32, 32])
    """
    if contrast not in _CONTRASTS:
        raise ValueError(f"contrast is {contrast!r}; expected one of {_CONTRASTS}.")
    levels, y, x, pixel = _head_grid(shape, _SUPERSAMPLING)
    slices = [_Canvas(contrast, z, y, x, pixel, seed).painted() for z in levels]
    magnitude = torch.nn.functional.avg_pool2d(torch.stack(slices)[:, None], _SUPERSAMPLING).reshape(*shape)
    phase = _unit_phase(shape, seed) if smooth_phase else torch.zeros(())
    return torch.polar(magnitude, phase.expand_as(magnitude))


def head_mask(shape: Sequence[int], *, seed: int = 0) -> torch.Tensor:
    """Where the head of ``brain_phantom(shape, seed=seed)`` is, scalp included.

    Parameters
    ----------
    shape
        ``(y, x)`` or ``(z, y, x)``.
    seed
        That of the phantom.

    Returns
    -------
    torch.Tensor
        Bool of that shape, true inside.
    """
    levels, y, x, pixel = _head_grid(shape, 1)
    return torch.stack([_Canvas("t1", z, y, x, pixel, seed).depth > 0 for z in levels]).reshape(*shape)


def smooth_phase(shape: Sequence[int], *, seed: int = 0, amplitude_rad: float = 1.0) -> torch.Tensor:
    """Phase that varies slowly over the field of view: polynomials to third order and a few long waves.

    Parameters
    ----------
    shape
        ``(y, x)`` or ``(z, y, x)``.
    seed
        Another seed gives another phase.
    amplitude_rad
        Largest absolute phase.

    Returns
    -------
    torch.Tensor
        Float32 of that shape, in radians.
    """
    return amplitude_rad * _unit_phase(shape, seed)


def coil_sensitivities(n_coils: int, shape: Sequence[int]) -> torch.Tensor:
    """Sensitivity maps of coils on a ring around the field of view, with a root-sum-of-squares of 1.

    Each coil receives like a magnetic dipole that points to the centre: with r the in-plane position relative to the
    coil and m its direction, as complex numbers, conj(3 r² conj(m)/|r|² + m) / (|r|² + dz²)^(3/2). In a volume the
    coils stand alternately in the lower and the upper half.

    Parameters
    ----------
    n_coils
        Number of coils.
    shape
        ``(y, x)`` or ``(z, y, x)``.

    Returns
    -------
    torch.Tensor
        Complex64 ``(coil, *shape)``, dimensionless.

    Raises
    ------
    ValueError
        If there is no coil.
    """
    if n_coils < 1:
        raise ValueError(f"n_coils is {n_coils}; expected at least 1.")
    z, y, x = _unit_grid(shape)
    maps = []
    for coil in range(n_coils):
        outward = torch.polar(torch.tensor(1.0), torch.tensor(2 * math.pi * (coil + 0.25) / n_coils))
        height = 0.5 * (-1) ** coil if len(shape) == 3 else 0.0
        r = torch.complex(x, torch.zeros_like(x)) + 1j * y - 1.7 * outward
        squared = r.abs().square()
        dipole = 3 * r.square() * outward.conj() / squared + outward
        maps.append(dipole.conj() / (squared + (z - height).square()) ** 1.5)
    csm = torch.stack(maps)
    return (csm / torch.linalg.vector_norm(csm, dim=0)).reshape(n_coils, *shape)


class _Canvas:
    """One slice while it is painted, from the outside in; later tissue covers earlier tissue.

    Shapes are distances in head units, positive inside. Random numbers are drawn in an order that does not depend on
    the level of the slice, so the slices of a stack belong together.
    """

    def __init__(self, contrast: str, z: float, y: torch.Tensor, x: torch.Tensor, pixel: float, seed: int) -> None:
        self.z, self.y, self.x, self.pixel = z, y, x, pixel
        self.generator = torch.Generator().manual_seed(seed)
        self.column = _CONTRASTS.index(contrast)
        self.signal, self.roughness = torch.zeros(2, y.numel(), x.numel())
        self.size = math.sqrt(1 - 0.40 * ((z + 0.5) / 1.5) ** 2)
        # Tissues are drawn in bent coordinates (an egg, broad at the back), and the brain is bent once more.
        self.v = y[:, None] + 0.012 * self.waves(0.6)
        self.u = (x + 0.012 * self.waves(0.6)) / (1 + 0.1 * self.v)
        self.depth = self.blob((0, 0), (0.70 * self.size, 0.90 * self.size))

    def painted(self) -> torch.Tensor:
        """The magnitude, ``(y, x)``."""
        surface = self.paint_shell()
        self.u = self.u + 0.018 * self.waves(1.5) + 0.006 * self.waves(4.5)
        self.v = self.v + 0.018 * self.waves(1.5) + 0.006 * self.waves(4.5)
        self.paint_cortex(surface)
        self.paint_nuclei()
        self.paint_ventricles()
        self.paint_lesions_and_vessels()
        octaves = ((2, 0.6), (6, 0.5), (16, 0.5), (40, 0.5))
        texture = sum(weight * self.waves(frequency) for frequency, weight in octaves)
        return (self.signal * (1 + self.roughness * texture)).clamp_min(0)

    def paint_shell(self) -> torch.Tensor:
        """Paint scalp, skull and fluid; return the depth below the surface of the brain."""
        muscle = 0.045 * math.exp(-(((self.z + 0.9) / 0.9) ** 2)) * torch.exp(-(((self.v + 0.15) / 0.22) ** 2))
        muscle = muscle * (1 - torch.exp(-((self.u / 0.45) ** 4)))
        skull = self.depth - 0.045 - 0.012 * self.v - muscle - 0.004 * self.waves(1.5)
        marrow = 0.022 + 0.005 * self.waves(2.5)
        self.paint("skin", self.depth)
        self.paint("fat", self.depth - 0.015)
        self.paint("muscle", torch.minimum(self.depth - 0.036, muscle - 0.008))
        self.paint("bone", skull)
        self.paint("marrow", torch.minimum(skull - 0.016, 0.016 + marrow - skull))
        self.paint("dura", skull - 0.030 - marrow)
        self.paint("fluid", skull - 0.037 - marrow)
        return skull - 0.058 - marrow - 0.006 * self.waves(2) - 0.003 * self.waves(5)

    def paint_cortex(self, surface: torch.Tensor) -> None:
        """Paint the cortex: grey matter of one thickness under the surface and along every sulcus."""
        fissures = self.fissures()
        depth = torch.minimum(surface, self.distance(fissures + self.sulci()))
        self.paint("grey", depth)
        self.paint("white", depth - 0.027 - 0.003 * self.waves(6))
        falx = [(*rod[:2], 0.0, 0.0) for rod in fissures[:2]]
        self.paint("dura", torch.minimum(0.003 - self.distance(falx), surface))

    def fissures(self) -> list[_Rod]:
        """The midline, open where no corpus callosum bridges it, and the two Sylvian fissures."""
        bridge = 0.31 * math.sqrt(max(0.0, 1 - max(0.0, self.z / 0.42) ** 2))
        rods = _rods([(0, -0.9), (0, -0.06 - bridge)], [0.012, 0.008])
        rods += _rods([(0, 0.9), (0, -0.04 + bridge)], [0.012, 0.008])
        width = 0.017 * self.fade(-0.6, 0.8)
        for side in (-1, 1) if width > 0 else ():
            fork = (0.44 * side, -0.03)
            rods += _rods([(0.66 * side, 0.03), (0.52 * side, -0.04), fork], [width, width, 0.7 * width])
            rods += _rods([fork, (0.39 * side, -0.10), (0.40 * side, -0.19)], [0.7 * width, 0.6 * width, 0.4 * width])
            rods += _rods([fork, (0.40 * side, 0.06), (0.43 * side, 0.14)], [0.7 * width, 0.6 * width, 0.4 * width])
        return rods

    def sulci(self) -> list[_Rod]:
        """Folds that start at the surface and at the midline, wind, sometimes branch, and keep apart."""
        rods: list[_Rod] = []
        taken: list[_Point] = [(0, 0.04 * k) for k in range(-20, 21)]
        if self.z < 0.4:  # leave room for nuclei and ventricles
            taken += [(u, 0.04 * k) for u in (-0.24, 0.24) for k in range(-8, 12)]
        for side in (-1, 1):
            for k, draw in enumerate(torch.rand(24, 6, generator=self.generator).tolist()):
                angle = math.pi * (k + 0.25 + 0.5 * draw[0]) / 24 + 0.06 * math.sin(3 * self.z + 6.3 * draw[4])
                mouth = (0.62 * self.size * side * math.sin(angle), -0.80 * self.size * math.cos(angle))
                if self.z < 0.2 and abs(mouth[1]) < 0.06:
                    continue  # here the Sylvian fissure opens
                heading = math.atan2(-0.6 * mouth[1], 0.15 * side - mouth[0])
                length = (0.20 + 0.17 * draw[1]) * (0.6 if k % 2 else 1) * (1 + 0.4 * max(self.z, 0))
                rods += _fold(mouth, heading, length, draw[2], draw[3], taken)
            for k, draw in enumerate(torch.rand(9, 6, generator=self.generator).tolist()):
                mouth = (0.0, self.size * (-0.72 + 1.4 * (k + draw[0]) / 9))
                if self.z < 0.3 and -0.45 < mouth[1] < 0.34:
                    continue  # here lie the corpus callosum and what is below it
                heading = (0.0 if side > 0 else math.pi) + 0.8 * (draw[4] - 0.5)
                rods += _fold(mouth, heading, 0.08 + 0.10 * draw[1], draw[2], draw[3], taken)
        return rods

    def paint_nuclei(self) -> None:
        """Paint the grey matter in the depth of both hemispheres."""
        for side in (-1, 1):
            self.paint("striatum", self.blob((0.255 * side, -0.06), (0.048, 0.135), -0.22 * side, -0.5, 0.6))
            self.paint("pallidum", self.blob((0.195 * side, -0.025), (0.034, 0.075), -0.35 * side, -0.6, 0.5))
            self.paint("striatum", self.blob((0.130 * side, -0.205), (0.040, 0.080), -0.25 * side, -0.35, 0.65))
            self.paint("thalamus", self.blob((0.088 * side, 0.085), (0.068, 0.105), 0.35 * side, -0.45, 0.5))

    def paint_ventricles(self) -> None:
        """Paint the butterfly: frontal horns, bodies, atria with their plexus, and the third ventricle."""
        third = 0.015 * self.fade(-0.7, 0.6)
        rods = _rods([(0, -0.05), (0, 0.15)], [third, third])
        for side, large in ((-1, 1.0), (1, 1.2)):
            a, b, c = (large * self.fade(*where) for where in ((-0.25, 0.65), (0.2, 0.42), (-0.3, 0.65)))
            horn = [(0.04, -0.13), (0.105, -0.27), (0.15, -0.31)]
            body = [(0.1, -0.24), (0.062, -0.06), (0.11, 0.16), (0.18, 0.3)]
            atrium = [(0.165, 0.235), (0.205, 0.32), (0.19, 0.45)]
            rods += _rods([(side * u, v) for u, v in horn], [0.027 * a, 0.034 * a, 0.01 * a])
            rods += _rods([(side * u, v) for u, v in body], [0.04 * b, 0.04 * b, 0.04 * b, 0.02 * b])
            rods += _rods([(side * u, v) for u, v in atrium], [0.046 * c, 0.046 * c, 0.014 * c])
        self.paint("fluid", -self.distance(rods))
        for side in (-1, 1):
            self.paint("thalamus", self.blob((0.185 * side, 0.27), (0.014, 0.034), -0.4 * side, -0.3, 0.5))

    def paint_lesions_and_vessels(self) -> None:
        """Paint one large lesion, small ones, widened perivascular spaces and vessels."""
        lesion = self.blob((0.27, 0.165), (0.062, 0.044), 0.6, -0.2, 0.6)
        lesion = lesion + 0.010 * self.waves(5) + 0.004 * self.waves(12)
        self.paint("halo", lesion + 0.022)
        self.paint("lesion", lesion)
        small: list[_Rod] = []
        spaces: list[_Rod] = []
        for k, (a, b, radius, level) in enumerate(torch.rand(20, 4, generator=self.generator).tolist()):
            radius = (0.005 + 0.006 * radius) * self.fade(2 * level - 1, 0.5)
            u, v = (1 if k % 2 else -1) * (0.20 + 0.18 * a), -0.42 + 0.85 * b
            dots = small if k < 6 else spaces
            dots += _rods([(u, v - radius), (u, v + radius)], [radius, radius])
        self.paint("lesion", -self.distance(small))
        self.paint("fluid", -self.distance(spaces))
        radius = 0.011 * self.fade(-0.6, 0.9)
        vessels = _rods([(-0.01, 0.745 * self.size), (0.03, 0.745 * self.size)], [0.02, 0.02])
        for u, v in ((-0.015, -0.42), (0.018, -0.43), (-0.455, -0.035), (0.445, -0.05), (0.40, -0.10), (0.02, 0.30)):
            vessels += _rods([(u, v), (u, v + 0.002)], [radius, radius])
        self.paint("vessel", -self.distance(vessels))

    def paint(self, tissue: str, inside: torch.Tensor) -> None:
        """Cover with a tissue where ``inside`` is positive."""
        values = _TISSUES[tissue]
        cover = torch.sigmoid(inside / _EDGE)
        self.signal = self.signal + cover * (values[self.column] - self.signal)
        self.roughness = self.roughness + cover * (values[3] - self.roughness)

    def fade(self, level: float, reach: float) -> float:
        """Relative width at this slice of something centred on a level; negative beyond its reach."""
        return 1 - ((self.z - level) / reach) ** 2

    def blob(
        self, centre: _Point, radii: _Point, angle: float = 0.0, level: float = 0.0, reach: float = math.inf
    ) -> torch.Tensor:
        """Distance, to first order, to the section of a turned ellipsoid."""
        scale = math.sqrt(max(self.fade(level, reach), 0))
        if scale == 0:
            return torch.full_like(self.u, -1.0)
        a, b = scale * radii[0], scale * radii[1]
        u, v = self.u - centre[0], self.v - centre[1]
        p, q = (math.cos(angle) * u + math.sin(angle) * v) / a, (math.cos(angle) * v - math.sin(angle) * u) / b
        norm = torch.hypot(p, q) + 1e-6
        return (1 - norm) * norm / (torch.hypot(p / a, q / b) + 1e-6 / min(a, b))

    def distance(self, rods: Sequence[_Rod]) -> torch.Tensor:
        """Distance to the nearest of some tapered rods, negative inside; at most 0.1. A negative radius is no rod."""
        nearest = torch.full_like(self.u, 0.1)
        for (start_u, start_v), (end_u, end_v), start_radius, end_radius in rods:
            if max(start_radius, end_radius) < 0:
                continue
            rows, columns = _between(self.y, start_v, end_v), _between(self.x, start_u, end_u)
            du, dv = end_u - start_u, end_v - start_v
            u, v = self.u[rows, columns] - start_u, self.v[rows, columns] - start_v
            along = ((u * du + v * dv) / (du * du + dv * dv)).clamp(0, 1)
            away = torch.hypot(u - along * du, v - along * dv) - start_radius - along * (end_radius - start_radius)
            nearest[rows, columns] = torch.minimum(nearest[rows, columns], away)
        return nearest

    def waves(self, frequency: float) -> torch.Tensor:
        """Smooth noise of unit variance: random plane waves of about ``frequency`` cycles per unit, pixel averages."""
        turn, length, offset, climb = torch.rand(4, 24, generator=self.generator)
        k = frequency * (0.6 + 0.8 * length)
        k_y, k_x = k * torch.sin(2 * math.pi * turn), k * torch.cos(2 * math.pi * turn)
        along_y = 2 * math.pi * (self.y[:, None] * k_y + offset + frequency * (climb - 0.5) * self.z)
        along_x = 2 * math.pi * self.x[:, None] * k_x
        weight = math.sqrt(2 / 24) * torch.sinc(k_y * self.pixel) * torch.sinc(k_x * self.pixel)
        # cos(a + b) as two products of matrices, which is what makes it fast
        return (weight * along_y.cos()) @ along_x.cos().T - (weight * along_y.sin()) @ along_x.sin().T


def _rods(points: Sequence[_Point], radii: Sequence[float]) -> list[_Rod]:
    return list(zip(points, points[1:], radii, radii[1:], strict=False))


def _fold(mouth: _Point, heading: float, length: float, turn: float, branch: float, taken: list[_Point]) -> list[_Rod]:
    """One sulcus: rods that wind inwards and thin out, up to another one, with a side branch in two of five cases."""
    n_rods = max(2, round(length / 0.045))
    winding = [heading + 0.65 * math.sin(6.3 * turn + 1.1 * k) for k in range(n_rods)]
    stem = _grow(mouth, winding, length / n_rods, taken)
    rods = _rods(stem, [0.011 - 0.006 * k / n_rods for k in range(n_rods + 1)])
    if branch < 0.4 and len(stem) > 2:
        aside = heading + (1.2 if branch < 0.2 else -1.2)
        twig = _grow(stem[len(stem) // 2], [aside, aside - 0.5 + turn], 0.045, taken)
        rods += _rods(twig, [0.007, 0.006, 0.004])
        taken += twig
    taken += stem
    return rods


def _grow(start: _Point, headings: Sequence[float], step: float, taken: Sequence[_Point]) -> list[_Point]:
    """Points step by step from a start, up to the first that would come close to those that are taken."""
    points = [start]
    for k, heading in enumerate(headings):
        point = (points[-1][0] + step * math.cos(heading), points[-1][1] + step * math.sin(heading))
        if k > 0 and any(math.dist(point, other) < 0.047 for other in taken):
            break
        points.append(point)
    return points


def _between(positions: torch.Tensor, one: float, other: float) -> slice:
    """The positions between two values and near them: what is nearer than 0.05 to a rod, in spite of the bending."""
    bounds = torch.tensor([min(one, other) - 0.2, max(one, other) + 0.2])
    return slice(*torch.searchsorted(positions, bounds).tolist())


def _check_shape(shape: Sequence[int]) -> None:
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"shape is {tuple(shape)}; expected (y, x) or (z, y, x) with positive sizes.")


def _head_grid(shape: Sequence[int], n_parts: int) -> tuple[list[float], torch.Tensor, torch.Tensor, float]:
    """Levels, rows, columns and pixel size in head units, each pixel divided into parts along y and x."""
    _check_shape(shape)
    n_y, n_x = shape[-2:]
    pixel = max(2 / n_y, 1.6 / n_x) / n_parts
    y, x = (pixel * (torch.arange(n * n_parts) - (n * n_parts - 1) / 2) for n in (n_y, n_x))
    return _centres(shape[0]).tolist() if len(shape) == 3 else [_LEVEL_2D], y, x, pixel


def _centres(n: int) -> torch.Tensor:
    """Centres of n equal parts of [-1, 1]."""
    return (2 * torch.arange(n) + 1) / n - 1


def _unit_grid(shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z, y and x in [-1, 1] over the field of view, ``(z, y, x)``; z is 0 for a single slice."""
    _check_shape(shape)
    z = _centres(shape[0]) if len(shape) == 3 else torch.zeros(1)
    return torch.meshgrid(z, _centres(shape[-2]), _centres(shape[-1]), indexing="ij")  # type: ignore[return-value]


def _unit_phase(shape: Sequence[int], seed: int) -> torch.Tensor:
    """Phase with a largest absolute value of 1, the same at every resolution."""
    generator = torch.Generator().manual_seed(seed)
    powers = [(i, j, k) for i in range(3) for j in range(4) for k in range(4) if 1 <= i + j + k <= 3]
    weights = torch.randn(len(powers), generator=generator).tolist()
    turns = (2 * torch.rand(4, 4, generator=generator) - 1).tolist()

    def phase(z: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        terms = [w / (i + j + k) * z**i * y**j * x**k for w, (i, j, k) in zip(weights, powers, strict=True)]
        waves = [torch.cos(4 * (a * x + b * y) + c * z + math.pi * d) for a, b, c, d in turns]
        return torch.stack(terms).sum(dim=0) + 0.4 * torch.stack(waves).sum(dim=0)

    largest = phase(*_unit_grid([25] * len(shape))).abs().max()
    return (phase(*_unit_grid(shape)) / largest).reshape(*shape)
