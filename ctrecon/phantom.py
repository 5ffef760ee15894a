"""The built-in body phantom in Hounsfield units: sections of a person who never was, from formulas; no file.

Lengths are in mm; x grows to the right of the picture (the patient's left) and y downwards (the patient's back).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_Point = tuple[float, float]

FIELD_OF_VIEW_MM = {"thorax": 400.0, "abdomen": 400.0, "pelvis": 400.0, "head": 240.0, "jaw": 240.0}
"""Sections of the body and the size of the square field of view that each is drawn in, in mm."""

METAL_SECTIONS = {"hip": "pelvis", "spine": "abdomen", "dental": "jaw"}
"""Kinds of metal and the section of the body where each one sits."""

_SUPERSAMPLING = 2
_AIR, _FAT, _MUSCLE, _SKIN = -1000.0, -105.0, 55.0, 10.0
_CORTICAL, _SPONGY, _WATER, _BLOOD = 1100.0, 210.0, 5.0, 165.0
_LUNG = -850.0


def body_phantom(
    shape: Sequence[int], *, section: str | None = None, metal: str | None = None, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a CT image of one section of the body, from formulas alone.

    The trunk is about 350 mm wide in a field of 400 mm, the head and jaw are drawn in a field of 240 mm. There are
    cortical and spongy bone, vessels with contrast agent, organs with lesions of low contrast and of falling size, lung
    texture, bowel gas, and in the couch below the trunk groups of bars 3, 2, 1.5 and 1 mm wide. It is one fixed
    function, averaged over each pixel (two samples along y and x, each with the share that a boundary leaves of it),
    so two resolutions show the same body.

    Parameters
    ----------
    shape
        ``(y, x)``. Pixels are square, ``pixel_spacing_mm(shape, section)`` wide.
    section
        ``"thorax"``, ``"abdomen"``, ``"pelvis"``, ``"head"`` (brain) or ``"jaw"``; by default that of the metal, else
        the abdomen.
    metal
        ``"hip"`` (prosthesis, pelvis), ``"spine"`` (pedicle screws, abdomen) or ``"dental"`` (crowns, jaw), or none.
    seed
        Another seed gives other texture, vessels and bowel.

    Returns
    -------
    hu
        Float32 ``(y, x)``, in HU, *without* the metal: the truth beside it and below it.
    metal_mask
        Bool ``(y, x)``, true where the metal is; false everywhere without metal.

    Raises
    ------
    ValueError
        If the shape, the section or the metal is unknown, or the metal does not sit in that section.

    Examples
    --------
    >>> hu, metal_mask = body_phantom((64, 64), metal="hip")
    >>> hu.shape, int(metal_mask.sum()) > 0
    (torch.Size([64, 64]), True)
    """
    if metal is not None and metal not in METAL_SECTIONS:
        raise ValueError(f"metal is {metal!r}; expected one of {tuple(METAL_SECTIONS)} or None.")
    section = section or (METAL_SECTIONS[metal] if metal else "abdomen")
    if metal is not None and section != METAL_SECTIONS[metal]:
        raise ValueError(f"The metal {metal!r} sits in the section {METAL_SECTIONS[metal]!r}, not in {section!r}.")
    canvas = _Canvas(shape, pixel_spacing_mm(shape, section), seed)
    {"thorax": _thorax, "abdomen": _abdomen, "pelvis": _pelvis, "head": _head, "jaw": _jaw}[section](canvas)
    if metal is not None:
        {"hip": _hip_prosthesis, "spine": _pedicle_screws, "dental": _dental_crowns}[metal](canvas)
    return canvas.hu(), canvas.metal_mask()


def pixel_spacing_mm(shape: Sequence[int], section: str = "abdomen") -> float:
    """Pixel size of ``body_phantom(shape, section=section)``, in mm: the field of view over the shorter side.

    Raises
    ------
    ValueError
        If the shape is not ``(y, x)`` with positive sizes, or the section is unknown.
    """
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape is {tuple(shape)}; expected (y, x) with positive sizes.")
    if section not in FIELD_OF_VIEW_MM:
        raise ValueError(f"section is {section!r}; expected one of {tuple(FIELD_OF_VIEW_MM)}.")
    return FIELD_OF_VIEW_MM[section] / min(shape)


@dataclass(frozen=True, slots=True)
class _Shape:
    """A part of the canvas and the depth of its pixels below a surface, in mm; positive inside."""

    window: tuple[slice, slice]
    depth: torch.Tensor

    def inset(self, thickness_mm: float | torch.Tensor) -> "_Shape":
        """What is deeper than a number, or than a tensor on the whole canvas says."""
        by = thickness_mm[self.window] if isinstance(thickness_mm, torch.Tensor) else thickness_mm
        return _Shape(self.window, self.depth - by)

    def shell(self, thickness_mm: float) -> "_Shape":
        return _Shape(self.window, torch.minimum(self.depth, thickness_mm - self.depth))

    def within(self, depth: torch.Tensor) -> "_Shape":
        """The part that is inside another shape, which is given by its depth on the whole canvas."""
        return _Shape(self.window, torch.minimum(self.depth, depth[self.window]))


class _Canvas:
    """The section while it is painted; later tissue covers earlier tissue."""

    def __init__(self, shape: Sequence[int], pixel_mm: float, seed: int) -> None:
        self.step = pixel_mm / _SUPERSAMPLING
        n_y, n_x = (_SUPERSAMPLING * n for n in shape)
        self.y = self.step * (torch.arange(n_y) - (n_y - 1) / 2)
        self.x = self.step * (torch.arange(n_x) - (n_x - 1) / 2)
        self.generator = torch.Generator().manual_seed(seed)
        self.value = torch.full((n_y, n_x), _AIR)
        self.metal = torch.zeros(n_y, n_x)
        # Organs are drawn in slightly bent coordinates, so that no outline is a perfect curve.
        self.v = self.y[:, None] + 1.1 * self.waves(110) + 0.25 * self.waves(20)
        self.u = self.x + 1.1 * self.waves(110) + 0.25 * self.waves(20)
        self.trabeculae = 45 * self.waves(2.6) + 30 * self.waves(7)
        self.streaks = torch.minimum(0.3 - 1.8 * self.waves(17).abs(), 0.8 * self.waves(25) - 0.3)
        self.grain = 2.5 * self.waves(4) + 2.5 * self.waves(10) + 3 * self.waves(30)

    def hu(self) -> torch.Tensor:
        return _pooled(self.value)

    def metal_mask(self) -> torch.Tensor:
        return _pooled(self.metal) > 0.5

    def paint(self, hu: float | torch.Tensor, *shapes: _Shape) -> None:
        """Cover with a tissue; a tensor holds one value per pixel of the canvas."""
        for shape in shapes:
            part = self.value[shape.window]
            wanted = hu[shape.window] if isinstance(hu, torch.Tensor) else hu
            part += self.cover(shape) * (wanted - part)

    def place_metal(self, *shapes: _Shape) -> None:
        for shape in shapes:
            part = self.metal[shape.window]
            torch.maximum(part, self.cover(shape), out=part)

    def cover(self, shape: _Shape) -> torch.Tensor:
        """Share of each sample that is inside: a boundary is a step, averaged over the sample."""
        return (0.5 + shape.depth / max(self.step, 0.3)).clamp(0, 1)

    def full(self, shape: _Shape) -> torch.Tensor:
        """The depth of a shape on the whole canvas."""
        depth = torch.full_like(self.value, -100.0)
        depth[shape.window] = shape.depth
        return depth

    def organ(self, centre: _Point, radii: Sequence[float], turn: float = 0.0) -> _Shape:
        """A star-shaped outline: smooth through radii at equal angles, counted from +x (right) towards +y (down)."""
        window = self.around(centre, 1.15 * max(radii) + 5)
        u, v = self.u[window] - centre[0], self.v[window] - centre[1]
        angle = torch.atan2(v, u) - turn
        spectrum = torch.fft.rfft(torch.tensor(radii, dtype=torch.float64)) / len(radii)
        radius, slope = torch.full_like(angle, float(spectrum[0].real)), torch.zeros_like(angle)
        for k, term in enumerate(spectrum[1:].tolist(), start=1):
            twice = 1 if 2 * k == len(radii) else 2
            cos, sin = torch.cos(k * angle), torch.sin(k * angle)
            radius += twice * (term.real * cos - term.imag * sin)
            slope += twice * k * (-term.real * sin - term.imag * cos)
        return _Shape(window, (radius - torch.hypot(u, v)) * radius / torch.hypot(radius, slope).clamp_min(1e-3))

    def ellipse(self, centre: _Point, radii: _Point, turn: float = 0.0, *, bent: bool = True) -> _Shape:
        """A turned ellipse; its depth is correct to first order at the boundary."""
        window = self.around(centre, max(radii) + 5)
        grid = (self.u[window], self.v[window]) if bent else (self.x[window[1]][None], self.y[window[0]][:, None])
        u, v = grid[0] - centre[0], grid[1] - centre[1]
        p = (math.cos(turn) * u + math.sin(turn) * v) / radii[0]
        q = (math.cos(turn) * v - math.sin(turn) * u) / radii[1]
        norm = torch.hypot(p, q) + 1e-6
        return _Shape(window, (1 - norm) * norm / (torch.hypot(p / radii[0], q / radii[1]) + 1e-6 / min(radii)))

    def disc(self, centre: _Point, radius: float) -> _Shape:
        return self.ellipse(centre, (radius, radius))

    def rod(self, points: Sequence[_Point], radii: Sequence[float], *, bent: bool = True) -> _Shape:
        """Tapered rods from point to point, as one shape."""
        across = [[p[axis] for p in points] for axis in (0, 1)]
        centre = ((min(across[0]) + max(across[0])) / 2, (min(across[1]) + max(across[1])) / 2)
        reach = (centre[0] - min(across[0]), centre[1] - min(across[1]))
        window = self.around(centre, max(radii) + 5, reach)
        grid = (self.u[window], self.v[window]) if bent else (self.x[window[1]][None], self.y[window[0]][:, None])
        depth = torch.full((len(self.y[window[0]]), len(self.x[window[1]])), -100.0)
        for start, end, first, last in zip(points, points[1:], radii, radii[1:], strict=False):
            du, dv = end[0] - start[0], end[1] - start[1]
            u, v = grid[0] - start[0], grid[1] - start[1]
            along = ((u * du + v * dv) / (du * du + dv * dv)).clamp(0, 1)
            depth = torch.maximum(depth, first + along * (last - first) - torch.hypot(u - along * du, v - along * dv))
        return _Shape(window, depth)

    def box(self, left: float, right: float, top: float, bottom: float) -> _Shape:
        """An upright rectangle, not bent."""
        centre, reach = ((left + right) / 2, (top + bottom) / 2), ((right - left) / 2, (bottom - top) / 2)
        window = self.around(centre, 2, reach)
        x, y = (self.x[window[1]] - centre[0]).abs(), (self.y[window[0]] - centre[1]).abs()
        return _Shape(window, torch.minimum(reach[0] - x[None], reach[1] - y[:, None]))

    def around(self, centre: _Point, margin: float, reach: _Point = (0.0, 0.0)) -> tuple[slice, slice]:
        """The part of the canvas within a margin of a rectangle around a point; at least one row and column."""
        margin = margin + self.step
        spans = []
        for positions, middle, half in ((self.y, centre[1], reach[1]), (self.x, centre[0], reach[0])):
            bounds = torch.tensor([middle - half - margin, middle + half + margin])
            first, last = torch.searchsorted(positions, bounds).tolist()
            spans.append(slice(min(first, len(positions) - 1), max(last, first + 1)))
        return spans[0], spans[1]

    def waves(self, length_mm: float, n_waves: int = 24) -> torch.Tensor:
        """Smooth noise of unit variance with structures of about this size, each sample an average over its area."""
        turn, length, offset = torch.rand(3, n_waves, generator=self.generator)
        k = (0.6 + 0.8 * length) / length_mm
        k_y, k_x = k * torch.sin(2 * math.pi * turn), k * torch.cos(2 * math.pi * turn)
        along_y = 2 * math.pi * (self.y[:, None] * k_y + offset)
        along_x = 2 * math.pi * self.x[:, None] * k_x
        weight = math.sqrt(2 / n_waves) * torch.sinc(k_y * self.step) * torch.sinc(k_x * self.step)
        # cos(a + b) as two products of matrices, which is what makes it fast
        return (weight * along_y.cos()) @ along_x.cos().T - (weight * along_y.sin()) @ along_x.sin().T

    def random(self, *size: int) -> list[Any]:
        return torch.rand(*size, generator=self.generator).tolist()


def _pooled(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(values[None], _SUPERSAMPLING)[0]


def _oval(width: float, front: float, back: float, power: float = 2.0, n_angles: int = 32) -> list[float]:
    """Radii of an oval with given half axes, counted as ``_Canvas.organ`` does."""
    radii = []
    for k in range(n_angles):
        cos, sin = math.cos(2 * math.pi * k / n_angles), math.sin(2 * math.pi * k / n_angles)
        depth = back if sin > 0 else front
        radii.append((abs(cos / width) ** power + abs(sin / depth) ** power) ** (-1 / power))
    return radii


def _on_oval(radii: Sequence[float], angle_deg: float, inset: float) -> _Point:
    """A point at an angle, so many mm inside an oval (towards its centre)."""
    place = angle_deg / 360 * len(radii) % len(radii)
    k, share = int(place), place % 1
    radius = (1 - share) * radii[k] + share * radii[(k + 1) % len(radii)] - inset
    return radius * math.cos(math.radians(angle_deg)), radius * math.sin(math.radians(angle_deg))


def _bone(c: _Canvas, shape: _Shape, cortex_mm: float, marrow: float = _SPONGY, cortical: float = _CORTICAL) -> None:
    c.paint(cortical, shape)
    c.paint(marrow + c.trabeculae, shape.inset(cortex_mm))


def _contents(c: _Canvas, lumen: _Shape, level: float | None, fluid: float | torch.Tensor) -> None:
    """Fill a hollow organ: gas above the level of the fluid, for the person lies on the back."""
    c.paint(fluid, lumen)
    if level is not None:
        c.paint(-970.0, _Shape(lumen.window, torch.minimum(lumen.depth, (level - c.y[lumen.window[0]])[:, None])))


def _branches(
    c: _Canvas, start: _Point, heading: float, length: float, radius: float, n_levels: int
) -> list[tuple[list[_Point], list[float]]]:
    """A tree of vessels: bent stems that fork into two thinner ones."""
    bend, fork, share = c.random(3)
    points, radii = [start], [radius]
    for k in range(3):
        heading += 0.35 * (bend - 0.5)
        points.append((points[-1][0] + length / 3 * math.cos(heading), points[-1][1] + length / 3 * math.sin(heading)))
        radii.append(radius * (1 - 0.08 * (k + 1)))
    tree = [(points, radii)]
    if n_levels > 1:
        turns = (0.3 + 0.45 * fork, -0.3 - 0.45 * (1 - fork))
        for turn, thinner in zip(turns, (0.55 + 0.22 * share, 0.77 - 0.22 * share), strict=True):
            tree += _branches(c, points[-1], heading + turn, 0.8 * length, radius * thinner, n_levels - 1)
    return tree


def _trunk(c: _Canvas, radii: Sequence[float], fat_mm: float, wall_mm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Paint couch, skin, fat and the muscles of the wall; return the depth below the skin and inside the wall."""
    _couch(c)
    body = c.organ((0, 0), radii)
    depth = c.full(body)
    c.paint(_SKIN, body)
    c.paint(_FAT + 5 * c.waves(9) + 5 * c.waves(30), body.inset(1.8))
    septa = _Shape(body.window, torch.minimum(0.35 - 3 * c.waves(24).abs(), depth - 4)[body.window])
    c.paint(-60.0, septa)
    side = (c.u / max(radii)).square()
    fat = fat_mm * (0.75 + 0.5 * (1 - side).clamp(0, 1)) + 1.5 * c.waves(110)
    muscle = body.inset(fat)
    c.paint(_MUSCLE + c.grain, muscle)
    planes = 0.5 - (torch.remainder(muscle.depth, wall_mm / 3) - wall_mm / 6).abs()
    c.paint(-70.0, _Shape(body.window, torch.minimum(planes, muscle.depth - wall_mm / 6)))
    inside = body.inset(fat + wall_mm)
    c.paint(_FAT + 6 * c.waves(12) + 6 * c.waves(35), inside)
    return depth, c.full(inside)


def _couch(c: _Canvas) -> None:
    """Two thin shells with foam between them, and in it bars for the resolution."""
    centre, radius = (0.0, -190.0), 309.0
    outer = c.ellipse(centre, (radius + 24, radius + 24), bent=False)
    for hu, thickness in ((40.0, 0.0), (-930.0, 1.5), (40.0, 22.5), (_AIR, 24.0)):
        layer = outer.inset(thickness)
        edge = torch.minimum(150 - c.x.abs()[None], c.y[:, None] - 55)
        c.paint(hu, layer.within(edge if thickness in (0.0, 22.5, 24.0) else edge - 1.5))
    for left, width, n_bars in ((-38.0, 3.0, 3), (-15.0, 2.0, 4), (7.0, 1.5, 4), (25.0, 1.0, 5)):
        for k in range(n_bars):
            c.paint(120.0, c.box(left + 2 * k * width, left + (2 * k + 1) * width, 123.0, 135.0))


def _ribs(c: _Canvas, radii: Sequence[float], inset: float, angles_deg: Sequence[float]) -> None:
    for k, angle in enumerate(angles_deg):
        point = _on_oval(radii, angle, inset)
        ahead = _on_oval(radii, angle + 2, inset)
        turn = math.atan2(ahead[1] - point[1], ahead[0] - point[0])
        _bone(c, c.ellipse(point, (10.0 - k % 3, 5.2), turn + 0.1), 1.3, 180.0, 900.0)


def _vertebra(c: _Canvas, centre: _Point, scale: float = 1.0) -> None:
    """Paint a vertebra with its processes, the canal with the cord, and no muscle around it."""
    x, y = centre

    def at(dx: float, dy: float) -> _Point:
        return x + scale * dx, y + scale * dy

    for side in (-1, 1):
        process = c.rod(
            [at(16 * side, 22), at(28 * side, 26), at(43 * side, 25)], [4.5 * scale, 3.6 * scale, 2.8 * scale]
        )
        _bone(c, process, 1.2, 250.0)
        _bone(c, c.rod([at(14 * side, 8), at(15 * side, 26)], [5.5 * scale, 5.0 * scale]), 1.4)
        _bone(c, c.rod([at(17 * side, 30), at(9 * side, 38)], [5.5 * scale, 4.0 * scale]), 1.6, 300.0)
        c.paint(-20.0, c.rod([at(15 * side, 27), at(20 * side, 33)], [0.7, 0.7]))
        _bone(c, c.rod([at(13 * side, 32), at(2 * side, 41)], [3.6 * scale, 3.4 * scale]), 1.3, 300.0)
    _bone(c, c.rod([at(0, 40), at(0.8, 50), at(1.5, 58)], [3.2 * scale, 2.6 * scale, 3.6 * scale]), 1.1, 260.0)
    shape = [24, 24.5, 23, 20, 17.5, 16, 15.5, 17, 17.5, 17, 15.5, 16, 17.5, 20, 23, 24.5]
    outline = [shape[(k + 8) % 16] * scale * (0.93 if 9 <= k <= 15 else 1.0) for k in range(16)]
    body = c.organ(centre, outline)
    _bone(c, body, 1.3, 190.0, 750.0)
    c.paint(330.0, c.disc(at(-6, 3), 2.2 * scale))
    canal = c.ellipse(at(0, 25), (11.5 * scale, 8.5 * scale))
    c.paint(-60.0, canal)
    c.paint(15.0, canal.inset(1.6))
    c.paint(45.0, c.ellipse(at(0, 24.5), (5.5 * scale, 4.2 * scale)))


def _muscle(c: _Canvas, centre: _Point, radii: _Point, turn: float = 0.0) -> None:
    """A muscle with streaks of fat along it."""
    shape = c.ellipse(centre, radii, turn)
    c.paint(_MUSCLE + c.grain, shape)
    c.paint(5.0, shape.inset(1.0).within(c.streaks))


def _back_muscles(c: _Canvas, y: float, scale: float = 1.0) -> None:
    for side in (-1, 1):
        _muscle(c, (27 * scale * side, y), (23 * scale, 17 * scale), 0.1 * side)
        _muscle(c, (50 * scale * side, y - 4), (12 * scale, 13 * scale), 0.3 * side)
        c.paint(-70.0, c.rod([(38 * scale * side, y - 14), (41 * scale * side, y + 12)], [0.8, 0.6]))
        _muscle(c, (9 * scale * side, y + 3), (6 * scale, 12 * scale), 0.0)


def _kidney(c: _Canvas, centre: _Point, side: int, stone: bool) -> None:
    """Cortex and pyramids around the sinus fat; ``side`` +1 where the hilum faces −x."""
    x, y = centre
    outline = [26, 28, 31, 33, 34, 33, 29, 22, 17, 21, 28, 32, 33, 33, 31, 28]
    radii = outline if side > 0 else [outline[(8 - k) % 16] for k in range(16)]
    kidney = c.organ(centre, [0.92 * r for r in radii], 0.35 * side)
    c.paint(195 + 1.5 * c.grain, kidney)
    for k in range(7):
        angle = (-2.1 + 0.7 * k) + (0 if side > 0 else math.pi)
        c.paint(150.0, c.disc((x + 16.5 * math.cos(angle), y + 18.5 * math.sin(angle)), 4.6))
    c.paint(-85.0, c.ellipse((x - 4 * side, y), (11, 14), 0.2 * side))
    c.paint(-85.0, c.rod([(x - 4 * side, y), (x - 22 * side, y - 3)], [8.0, 5.0]))
    c.paint(12.0, c.rod([(x + 2 * side, y + 5), (x - 5 * side, y + 2), (x - 18 * side, y + 3)], [3.0, 4.0, 2.5]))
    for end, hu in (((x - 40 * side, y - 14), 190.0), ((x - 38 * side, y - 9), 160.0)):
        c.paint(hu, c.rod([(x + 2 * side, y - 7), (x - 16 * side, y - 6), end], [1.6, 2.4, 3.0]))
    if stone:
        c.paint(850.0, c.ellipse((x + 3 * side, y + 8), (2.6, 1.8), 0.5))
    else:
        c.paint(6.0, c.disc((x + 21 * side, y + 15), 7.5))


def _abdomen(c: _Canvas) -> None:
    radii = _oval(175, 112, 106, 2.35)
    _, inside = _trunk(c, radii, 15, 15)
    for side in (-1, 1):  # the straight muscles of the belly bulge inwards beside the midline
        c.paint(_MUSCLE + c.grain, c.ellipse((33 * side, -92), (30, 6.5), 0.10 * side))
    c.paint(-75.0, c.rod([(0, -99), (0, -86)], [1.6, 1.2]))
    _ribs(c, radii, 24, (-31, -13, 5, 22, 39, 143, 160, 177, 195, 213))
    _back_muscles(c, 79)
    for side in (-1, 1):
        _muscle(c, (63 * side, 66), (15, 9), 0.35 * side)
        _muscle(c, (35 * side, 49), (13.5, 18), 0.25 * side)
    _vertebra(c, (0.0, 44.0))
    _liver(c, inside)
    _kidney(c, (-74.0, 42.0), -1, stone=False)
    _kidney(c, (77.0, 36.0), 1, stone=True)
    spleen = c.organ((128, -12), [19, 22, 27, 33, 38, 33, 24, 17, 14, 14, 18, 26, 36, 32, 24, 20], 0.25).within(
        inside - 2
    )
    c.paint(125 + 1.5 * c.grain, spleen)
    _upper_bowel(c)
    pancreas = c.rod([(-30, 4), (-14, -8), (8, -16), (40, -14), (72, -4), (92, 2)], [13, 10, 8, 9, 9, 7])
    lobules = 0.9 * c.waves(7)
    c.paint(95 + 2 * c.grain, pancreas.inset(1.5 + lobules))
    c.paint(15.0, c.rod([(-24, -1), (10, -15), (70, -5)], [1.5, 1.1, 0.8]))
    c.paint(_BLOOD, c.rod([(92, -6), (50, -7), (14, -9), (-6, -12)], [3.0, 3.6, 4.2, 5.5]))
    _great_vessels(c, (9.0, 15.0), (-21.0, 17.0))
    _mesentery(c, inside)


def _great_vessels(c: _Canvas, aorta: _Point, cava: _Point) -> None:
    c.paint(_MUSCLE, c.disc(aorta, 11.2))
    c.paint(190 + 0.5 * c.grain, c.disc(aorta, 10.0))
    c.paint(750.0, c.rod([(aorta[0] + 9.0, aorta[1] + 4.0), (aorta[0] + 5.5, aorta[1] + 9.0)], [1.0, 1.3]))
    c.paint(650.0, c.disc((aorta[0] - 9.5, aorta[1] - 3.0), 0.9))
    c.paint(_BLOOD + 0.5 * c.grain, c.ellipse(cava, (13.5, 9.5), 0.2))
    c.paint(195.0, c.disc((aorta[0] - 1, aorta[1] - 19), 3.8))
    c.paint(_BLOOD, c.disc((aorta[0] - 15, aorta[1] - 25), 6.0))


def _liver(c: _Canvas, inside: torch.Tensor) -> None:
    """The liver with its vessels, and in it the lesions of low contrast and the enhancing spots."""
    outline = [66, 62, 60, 60, 58, 58, 60, 60, 56, 62, 70, 74, 70, 70, 92, 88, 74, 68]
    liver = c.organ((-98, -24), outline).within(inside - 1.5)
    c.paint(110 + 1.6 * c.grain, liver)
    depth = c.full(liver) - 3
    for heading, start, n_levels in (
        (2.9, (-52, -18), 4),
        (-2.4, (-50, -24), 4),
        (-0.7, (-60, -34), 3),
        (2.2, (-62, -8), 3),
    ):
        for points, thick in _branches(c, start, heading, 27, 3.6, n_levels):
            c.paint(142.0, c.rod(points, thick).within(depth))
    c.paint(-60.0, c.rod([(-34, -88), (-46, -58), (-44, -40)], [2.0, 2.5, 4.0]))
    gallbladder = c.ellipse((-52, -2), (17, 11), -0.5)
    c.paint(75.0, gallbladder)
    c.paint(8.0, gallbladder.inset(1.8))
    c.paint(340.0, c.disc((-46, 2), 2.6))
    for k, radius in enumerate((7.5, 5.0, 3.5, 2.5)):  # three rows: 40, 20 and 10 HU below the liver
        for row, contrast in enumerate((40.0, 20.0, 10.0)):
            c.paint(
                110 - contrast + 0.6 * c.grain, c.disc((-120 - 6 * row + 18 * k, -50 + 23 * row), radius).within(depth)
            )
    for x, y, radius in ((-74, -62, 2.2), (-84, 22, 3.0), (-112, 26, 1.5), (-66, -46, 1.2)):
        c.paint(240.0, c.disc((x, y), radius))
    c.paint(5.0, c.disc((-88, -56), 5.5).within(depth))


def _upper_bowel(c: _Canvas) -> None:
    stomach = c.organ((72, -56), [46, 44, 38, 30, 26, 25, 27, 33, 42, 46, 40, 32, 27, 26, 30, 38], 0.15)
    folds = 1.1 * c.waves(9)
    c.paint(85.0, stomach)
    _contents(c, stomach.inset(4.0 + folds), -63.0, 25 + 5 * c.waves(20) + 4 * c.waves(7))
    duodenum = c.rod([(-33, -34), (-42, -16), (-40, 10)], [10, 11, 10])
    c.paint(90.0, duodenum)
    _contents(c, duodenum.inset(2.6), -30.0, 20.0)
    colon = c.organ((136, 36), [15, 17, 16, 14, 16, 18, 16, 14])
    c.paint(70.0, colon)
    _contents(c, colon.inset(2.0), 27.0, _faeces(c))
    transverse = c.rod([(-28, -74), (-8, -80), (14, -76)], [13, 15, 13])
    c.paint(70.0, transverse)
    _contents(c, transverse.inset(2.0), -77.0, 25 + 8 * c.waves(12))


def _faeces(c: _Canvas) -> torch.Tensor:
    bubbles = (c.waves(5) - 1.5).clamp_min(0)
    return 20 + 15 * c.waves(9) + 12 * c.waves(3.5) - 500 * bubbles


def _mesentery(c: _Canvas, inside: torch.Tensor) -> None:
    """Loops of small bowel, and vessels in the fat between them."""
    depth = inside - 3
    for heading in (-0.3, 0.15, 0.55):
        for points, thick in _branches(c, (14.0, -28.0), heading - 0.5, 22, 2.2, 3):
            c.paint(150.0, c.rod(points, thick).within(depth))
    loops = [(104, 18), (108, 44), (46, 6), (30, -40), (6, -52), (-10, -40)]
    for (x, y), draw in zip(loops, c.random(len(loops), 4), strict=True):
        radius, turn = 10 + 4 * draw[0], 6.3 * draw[1]
        loop = c.rod(
            [(x - 7 * math.cos(turn), y - 5 * math.sin(turn)), (x + 7 * math.cos(turn), y + 5 * math.sin(turn))],
            [radius, 0.9 * radius],
        )
        c.paint(100.0, loop)
        _contents(c, loop.inset(2.4 + 0.7 * c.waves(5)), y - 6 if draw[2] > 0.75 else None, 22 + 30 * draw[3])


def _thorax(c: _Canvas) -> None:
    radii = _oval(174, 108, 108, 2.45)
    _, inside = _trunk(c, radii, 9, 17)
    for side in (-1, 1):
        _muscle(c, (72 * side, -88), (46, 8), 0.24 * side)
        _muscle(c, (142 * side, 38), (9, 30), -0.35 * side)
        _bone(c, c.rod([(92 * side, 86), (124 * side, 66)], [3.2, 4.2]), 1.2)
        _muscle(c, (100 * side, 92), (30, 6), -0.42 * side)
    _lungs(c, inside - 6)
    _mediastinum(c)
    _ribs(c, radii, 27, (-62, -45, -28, -9, 10, 28, 45, 61, 119, 136, 153, 170, 189, 208, 225, 243))
    _bone(c, c.ellipse((1, -88), (17, 6), 0.03), 1.2, 130.0, 700.0)
    _back_muscles(c, 90, 0.85)
    _vertebra(c, (0.0, 56.0), 0.86)
    c.paint(_MUSCLE, c.disc((27, 34), 12.6))
    c.paint(225 + 0.5 * c.grain, c.disc((27, 34), 11.4))
    c.paint(800.0, c.rod([(37.5, 30), (38, 36)], [0.9, 1.2]))


def _lungs(c: _Canvas, inside: torch.Tensor) -> None:
    """Fill the cavity with lung: denser behind, with vessels, airways, a fissure, nodules and two bullae."""
    whole = (slice(None), slice(None))
    cavity = _Shape(whole, inside)
    gradient = 45 * (c.y[:, None] / 100) + 14 * c.waves(60) + 16 * c.waves(9) + 22 * c.waves(3.5)
    c.paint(_LUNG + gradient, cavity)
    depth = inside - 2
    fissure = _Shape(whole, 0.4 - (c.v - 18 - 0.35 * (c.u.abs() - 70) - 3 * c.waves(60)).abs())
    c.paint(-700.0, fissure.within(depth))
    for side in (-1, 1):
        for heading, length in ((-1.35, 26), (-0.8, 28), (-0.25, 30), (0.3, 30), (0.8, 28), (1.3, 24)):
            direction = heading if side > 0 else math.pi - heading
            start = (side * (44 if side < 0 else 58) + 4 * math.cos(direction), 12 + 14 * math.sin(heading))
            for points, thick in _branches(c, start, direction, length, 3.4, 5):
                c.paint(45.0, c.rod(points, thick).within(depth))
        for x, y, size in c.random(60, 3):  # vessels across the plane
            point = (side * (50 + 90 * x), -75 + 150 * y)
            c.paint(30.0, c.disc(point, 0.7 + 0.9 * size**3).within(depth))
        for heading in (-0.7, 0.1, 0.9):
            direction = heading + 0.15 if side > 0 else math.pi - heading - 0.15
            for points, thick in _branches(c, (side * 50, 12 + 9 * heading), direction, 17, 3.8, 3):
                airway = c.rod(points, thick)
                c.paint(-150.0, airway.within(depth))
                c.paint(-990.0, airway.inset(1.1).within(depth))
    c.paint(-610 + 60 * c.waves(3), c.ellipse((-104, 48), (12, 9), 0.4).inset(1.5 * c.waves(7)))
    for x, y, radius in ((118, -22, 5.0), (-122, 4, 2.6), (96, 52, 1.8), (-84, -52, 1.4)):
        c.paint(40.0, c.disc((x, y), radius))
    c.paint(260.0, c.disc((-112, -36), 2.2))
    for x, y, radius in ((134, 22, 6.0), (128, 6, 4.0)):
        bulla = c.disc((x, y), radius)
        c.paint(-700.0, bulla.within(depth))
        c.paint(-985.0, bulla.inset(0.7).within(depth))


def _mediastinum(c: _Canvas) -> None:
    outline = [73, 66, 57, 50, 50, 55, 52, 46, 44, 43, 46, 54, 66, 78, 80, 76]
    fat = c.organ((8, -16), outline)
    c.paint(_FAT + 6 * c.waves(14), fat)
    c.paint(_FAT + 6 * c.waves(14), c.rod([(6, -84), (12, -60), (8, 0), (2, 62)], [6, 34, 34, 27]))
    heart = c.organ((16, -26), [60, 56, 46, 36, 33, 38, 44, 47, 48, 47, 45, 42, 40, 42, 48, 56])
    c.paint(100 + c.grain, heart)
    left = c.ellipse((45, -24), (21, 14), 0.5)
    c.paint(225 + 0.7 * c.grain, left)
    c.paint(105.0, c.disc((53, -14), 3.6))
    c.paint(105.0, c.disc((42, -31), 3.0))
    c.paint(
        190 + 0.7 * c.grain, c.organ((10, -49), [30, 25, 18, 14, 14, 17, 22, 25, 21, 13, 10, 10, 12, 15, 18, 24], 0.35)
    )
    c.paint(185 + 0.7 * c.grain, c.ellipse((-18, -24), (13, 19), 0.2))
    c.paint(220 + 0.7 * c.grain, c.ellipse((10, 1), (25, 10), 0.05))
    c.paint(-70.0, c.rod([(-4, -40), (12, -22), (34, -44)], [1.2, 1.8, 1.0]))
    c.paint(190.0, c.disc((20, -20), 1.8))
    for side in (-1, 1):
        for y, length in ((2, 26), (18, 20)):
            c.paint(210.0, c.rod([(side * 30 + 8, y), (side * (34 + length) + 8, y + 5)], [5.5, 2.8]))
    oesophagus = c.ellipse((10, 22), (8, 5.5))
    c.paint(60.0, oesophagus)
    c.paint(-900.0, c.ellipse((10, 21.5), (3.4, 1.6)))
    c.paint(180.0, c.disc((-12, 36), 4.2))
    for x, y, radius in ((-6, 20, 3.0), (34, 12, 3.6), (-28, 10, 4.5)):
        c.paint(60.0, c.disc((x, y), radius))


def _pelvis(c: _Canvas) -> None:
    radii = _oval(176, 104, 106, 2.3)
    _trunk(c, radii, 20, 3)
    for side in (-1, 1):
        _pelvic_muscles(c, side)
    for side in (-1, 1):
        _hip_joint(c, side)
        c.paint(185.0, c.disc((59 * side, -62), 5.4))
        c.paint(_BLOOD - 20, c.ellipse((47 * side, -59), (7.6, 6.4)))
        c.paint(70.0, c.ellipse((62 * side, -76), (4.5, 3.0)))
    c.paint(900.0, c.rod([(-63, -60), (-61, -57.5)], [1.0, 1.0]))
    bladder = c.organ((1, -28), [41, 38, 32, 28, 27, 28, 32, 37, 40, 36, 30, 27, 26, 27, 31, 37])
    c.paint(45.0, bladder)
    jet = 6 + 3 * c.waves(40) + 210 * torch.exp(-((c.v + 8) / 5).square() - ((c.u - 14) / 18).square())
    c.paint(jet, bladder.inset(3.2 + 0.5 * c.waves(12)))
    gland = c.organ((0, 16), [23, 20, 16, 14, 14, 15, 19, 22, 21, 17, 14, 13, 13, 14, 17, 21])
    c.paint(75 + 2.5 * c.grain, gland)
    for x, y, contrast in ((-9, 15, 25.0), (4, 12, -20.0), (11, 18, 12.0)):
        c.paint(75 + contrast, c.disc((x, y), 4.0))
    rectum = c.organ((4, 48), [17, 15, 15, 16, 16, 14, 15, 17])
    c.paint(65.0, rectum)
    _contents(c, rectum.inset(3.4), 42.0, _faeces(c))
    coccyx = c.organ((0, 82), [15, 13, 8, 6, 6, 7, 8, 13])
    _bone(c, coccyx, 1.6, 160.0, 800.0)


def _pelvic_muscles(c: _Canvas, side: int) -> None:
    for (x, y), size, turn in (
        ((92, 68), (62, 17), -0.55),  # gluteus maximus
        ((130, -14), (15, 40), 0.22),
        ((108, -46), (20, 15), 0.5),
        ((78, -50), (21, 17), 0.3),  # iliopsoas
        ((98, -76), (13, 8), 0.3),
        ((124, -60), (10, 14), -0.5),
        ((46, 10), (6.5, 32), 0.10),  # obturator internus
        ((34, -60), (18, 8), -0.35),
        ((22, 60), (6, 26), 0.45),
    ):
        _muscle(c, (x * side, y), size, turn * side)


def _hip_joint(c: _Canvas, side: int) -> None:
    """The socket around the head of the thigh bone, its neck and the greater trochanter."""

    def at(x: float, y: float) -> _Point:
        return x * side, y

    _bone(c, c.rod([at(58, -26), at(66, -32), at(78, -32)], [8.5, 10, 6]), 1.8, 230.0)
    _bone(c, c.rod([at(64, 30), at(72, 40), at(88, 36)], [9, 12, 5]), 1.8, 230.0)
    _bone(c, c.rod([at(57, -24), at(54, 2), at(62, 32)], [5.5, 4.0, 6.5]), 1.8, 250.0)
    c.paint(80.0, c.disc(at(88, 3), 28.5))
    c.paint(_MUSCLE, c.ellipse(at(114, 0), (12, 26)))
    neck = c.rod([at(88, 3), at(112, 14), at(128, 22)], [15, 13, 15])
    head = c.disc(at(88, 3), 25)
    femur = _Shape(neck.window, torch.maximum(neck.depth, c.full(head)[neck.window]))
    c.paint(_CORTICAL, head, neck)
    c.paint(260 + 1.3 * c.trabeculae, femur.inset(1.7), head.inset(1.5))
    c.paint(480 + c.trabeculae, c.ellipse(at(83, -3), (11, 15), 0.4 * side))
    _bone(c, c.rod([at(130, 16), at(136, 30)], [9, 7]), 1.3, 150.0, 800.0)


def _head(c: _Canvas) -> None:
    scalp = c.organ((0, 0), [r * f for r, f in zip(_oval(74, 93, 92, 2.15), _egg(32), strict=True)])
    depth = c.full(scalp)
    c.paint(40.0, scalp)
    c.paint(-70 + 10 * c.waves(9), scalp.inset(1.6).within(4.2 + 1.0 * c.waves(50) - depth))
    temporal = 7.0 * torch.exp(-((c.v + 22) / 30).square()) * (c.u.abs() / 70).clamp(0, 1) ** 4
    skull = depth - 5.2 - temporal - 0.5 * c.waves(40)
    thickness = 7.0 + 1.1 * c.waves(60) + 1.6 * (c.v / 90)
    whole = (slice(None), slice(None))
    c.paint(1300.0, _Shape(whole, skull))
    c.paint(550 + 130 * c.waves(3), _Shape(whole, torch.minimum(skull - 2.0, thickness - 2.0 - skull)))
    brain = skull - thickness
    c.paint(_WATER + 6, _Shape(whole, brain))
    _brain(c, whole, brain - 1.6)
    c.paint(62.0, c.rod([(0, -78), (0.5, -34)], [0.9, 0.8]), c.rod([(0, 40), (0.5, 84)], [0.9, 1.6]))
    c.paint(70.0, c.ellipse((0, 77), (5, 5)))
    bleed = _Shape(whole, brain).shell(5.5).within(c.full(c.ellipse((60, 22), (16, 36), 0.1)))
    c.paint(63 + 2 * c.waves(6), bleed)


def _egg(n_angles: int) -> list[float]:
    """Broader behind than in front."""
    return [1 + 0.05 * math.sin(2 * math.pi * k / n_angles) for k in range(n_angles)]


def _brain(c: _Canvas, whole: tuple[slice, slice], surface: torch.Tensor) -> None:
    """Cortex of one thickness below the surface and along the furrows, white matter, nuclei and ventricles."""
    near = torch.exp(-(surface / 16).clamp_min(0).square())
    furrows = c.waves(15).abs() * 5.0 + 12 * (1 - near)
    depth = torch.minimum(surface, furrows - 1.0)
    depth = torch.minimum(depth, c.u.abs() - 0.8 + 8 * torch.exp(-((c.v + 2) / 26).square()))
    c.paint(37 + 0.4 * c.grain, _Shape(whole, depth))
    c.paint(28 + 0.4 * c.grain, _Shape(whole, depth - 3.6 - 0.6 * c.waves(10)))
    for side in (-1, 1):
        c.paint(37.5, c.ellipse((27 * side, -4), (6.5, 15), -0.25 * side))
        c.paint(37.5, c.ellipse((14 * side, -20), (5, 8), -0.3 * side))
        c.paint(37.0, c.ellipse((10.5 * side, 10), (8, 12), 0.35 * side))
        large = 1.0 if side < 0 else 0.85
        c.paint(_WATER, c.rod([(3 * side, -14), (9 * side, -28), (14 * side, -36)], [2.6, 3.6 * large, 2.0]))
        c.paint(_WATER, c.rod([(15 * side, 22), (22 * side, 32), (20 * side, 48)], [3.0, 5.4 * large, 2.0]))
        c.paint(130.0, c.ellipse((18 * side, 28), (1.8, 3.6), -0.5 * side))
        c.paint(22.0 if side > 0 else 25.0, c.disc((38 * side, -40), 5.0))
    c.paint(_WATER, c.rod([(0, -10), (0, 14)], [1.5, 1.8]))
    c.paint(180.0, c.disc((0.5, 23), 2.0))
    infarct = c.organ((-45, 18), [15, 14, 17, 14, 12, 15, 16, 13])
    c.paint(20 + 1.0 * c.waves(8), infarct.within(surface))


def _jaw(c: _Canvas) -> None:
    skin = c.organ((0, 0), [r * f for r, f in zip(_oval(70, 86, 84, 2.1), _egg(32), strict=True)])
    c.paint(_SKIN + 20, skin)
    c.paint(_FAT + 8 * c.waves(10), skin.inset(1.8))
    c.paint(_MUSCLE + c.grain, skin.inset(6 + 2.0 * c.waves(40) + 5 * (c.v / 80).clamp_min(0)))
    for side in (-1, 1):
        for (x, y), size, turn in (((14, 62), (12, 14), 0.2), ((34, 54), (14, 10), -0.5), ((50, 30), (9, 17), 0.3)):
            c.paint(-75.0, c.ellipse((x * side, y), (size[0] + 1.2, size[1] + 1.2), turn * side))
            _muscle(c, (x * side, y), size, turn * side)
        _muscle(c, (57 * side, -10), (7, 20), 0.12 * side)
        c.paint(-20 + 2 * c.grain, c.ellipse((54 * side, 14), (9, 12)))
        c.paint(190.0, c.disc((33 * side, 16), 3.2))
        c.paint(_BLOOD, c.disc((38 * side, 22), 4.6))
    _neck_vertebra(c)
    c.paint(_FAT + 10, c.ellipse((0, -22), (33, 34)))
    tongue = c.organ((0, -30), [24, 24, 26, 27, 26, 27, 26, 24, 24, 22, 22, 26, 30, 26, 22, 22])
    c.paint(60 + 2 * c.grain, tongue)
    c.paint(-10.0, c.rod([(0, -52), (0, -14)], [0.7, 0.5]))
    airway = c.organ((1, 2), [17, 12, 7, 6, 6, 7, 11, 16, 13, 8, 6, 6, 6, 6, 8, 13])
    c.paint(70.0, airway.inset(-2.5))
    c.paint(-985.0, airway)
    arch = [(50.0, 2.0), (48.0, -18.0), (42.0, -40.0), (30.0, -58.0), (15.0, -68.0), (0.0, -71.0)]
    bend = arch + [(-x, y) for x, y in arch[-2::-1]]
    _bone(c, c.rod(bend, [5.0, 6.0, 6.5, 6.0, 5.5, 5.5, 5.5, 6.0, 6.5, 6.0, 5.0]), 2.2, 280.0, 1350.0)
    for side in (-1, 1):
        for k, tooth in enumerate(_TEETH):
            if side > 0 and k == 5:
                continue  # one is missing
            enamel = c.ellipse((tooth[0] * side, tooth[1]), (tooth[2], tooth[3]), tooth[4] * side)
            c.paint(2300.0, enamel)
            c.paint(1500.0, enamel.inset(1.2))
            c.paint(200.0, enamel.inset(min(tooth[2], tooth[3]) - 0.9))


# Teeth of one side: centre x, y, half width, half depth (mm), turn (rad), from the middle to the last molar.
_TEETH = (
    (3.2, -71.5, 2.6, 3.2, 0.0),
    (9.3, -70.2, 2.7, 3.2, 0.2),
    (15.8, -67.4, 3.1, 3.8, 0.45),
    (22.2, -62.8, 3.3, 4.0, 0.7),
    (28.4, -57.0, 3.4, 4.2, 0.85),
    (35.6, -48.5, 5.2, 4.8, 0.55),
    (42.0, -37.5, 5.0, 4.8, 0.45),
    (46.2, -26.0, 4.8, 4.6, 0.25),
)


def _neck_vertebra(c: _Canvas) -> None:
    _bone(c, c.rod([(0, 52), (0, 66)], [3.0, 3.4]), 1.2)
    for side in (-1, 1):
        _bone(c, c.rod([(9 * side, 26), (22 * side, 28)], [5.0, 4.0]), 1.3)
        _bone(c, c.rod([(17 * side, 32), (19 * side, 40), (3 * side, 53)], [6.0, 5.5, 3.0]), 1.4, 300.0)
        c.paint(120.0, c.disc((18.5 * side, 27), 2.6))
    _bone(c, c.organ((0, 24), [11.5, 11, 9.5, 8.5, 8, 8.5, 9.5, 11, 11.5, 11, 10, 9.5, 9.5, 9.5, 10, 11]), 1.2)
    canal = c.ellipse((0, 41), (11.5, 8.5))
    c.paint(10.0, canal)
    c.paint(45.0, c.ellipse((0, 40.5), (6.5, 4.4)))


def _hip_prosthesis(c: _Canvas) -> None:
    """Cup, head and neck in the hip at the left of the picture."""
    cup = c.ellipse((-88, 3), (27, 27), bent=False).shell(3.5)
    side = torch.minimum(-(c.x[None] + 82) + 0.0 * c.y[:, None] + 24, (c.x[None] + 100) + 0.5 * (c.y[:, None] - 3) + 6)
    c.place_metal(cup.within(side))
    c.place_metal(c.ellipse((-88, 3), (15, 15), bent=False))
    c.place_metal(c.rod([(-88, 3), (-112, 14), (-126, 21)], [6.5, 7.0, 9.0], bent=False))


def _pedicle_screws(c: _Canvas) -> None:
    """Two screws through the pedicles, one of them turned a little, with their heads and rods."""
    for side, end in ((-1, (-7.0, 33.0)), (1, (10.0, 36.0))):
        head = (25.0 * side, 87.0 + side)
        c.place_metal(c.rod([head, (14.0 * side, 60.0), end], [3.3, 3.0, 2.2], bent=False))
        c.place_metal(c.rod([(head[0] - 2.5, head[1]), (head[0] + 2.5, head[1] + 1.5)], [5.5, 5.5], bent=False))


def _dental_crowns(c: _Canvas) -> None:
    """Crowns on two molars and a bridge, and one filling."""
    for side, k in ((-1, 5), (-1, 6), (1, 6), (1, 4)):
        x, y, width, depth, turn = _TEETH[k]
        c.place_metal(c.ellipse((x * side, y), (width, depth), turn * side))
    c.place_metal(c.ellipse((46.2, -26.0), (2.2, 1.6), 0.3))
