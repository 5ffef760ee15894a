"""Cross-sections of metal implants, made from formulas or read from a file, and put into images of bodies."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from operators.errors import InputError
from operators.image_sources import data_folder
from operators.learning import seed_of

Shapes = Literal["train", "validation", "test", "aapm"]
"""Implants for training, for choosing weights, for the test, and those of a file, which no training sees."""

_NUMBERS = {"train": range(800), "validation": range(800, 850), "test": range(850, 1000)}
_AAPM_FILE = "ct/aapm_ctmar/metal_masks.mat"
_AAPM_LIMIT_BYTES = 2**28
_SEED = 20260222
_N_PLACES = 256  # that are tried before an implant is made smaller
_SMALLER = 0.8
_Point = tuple[float, float]


class Part(Protocol):
    """A piece of metal; lengths are relative to the side of the field of view, places to the implant's middle."""

    def covers(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Whether points lie in it: bool, of the shape that the coordinates broadcast to."""


@dataclass(frozen=True, slots=True)
class Implant:
    """The metal of one cross-section of a body.

    Parameters
    ----------
    name
        What it is and its number, such as ``"wires 17"``.
    parts
        Its pieces, around (0, 0).
    reach
        No point of it is further from the middle, relative to the side of the field of view.
    """

    name: str
    parts: tuple[Part, ...]
    reach: float

    def mask(self, side: float, turn_rad: float = 0.0, offset: _Point = (0.0, 0.0)) -> torch.Tensor:
        """Draw it: a pixel is metal where its middle is.

        Parameters
        ----------
        side
            Side of the field of view in pixels.
        turn_rad
            By which it is turned.
        offset
            ``(y, x)`` by which its middle is moved, in pixels, less than one.

        Returns
        -------
        torch.Tensor
            Bool ``(y, x)``, of an odd number of pixels along each side, just large enough.
        """
        radius = math.ceil(self.reach * side) + 1
        place = torch.arange(-radius, radius + 1, dtype=torch.float64)
        y, x = (place[:, None] - offset[0]) / side, (place - offset[1]) / side
        cosine, sine = math.cos(turn_rad), math.sin(turn_rad)
        covered = [part.covers(cosine * y - sine * x, sine * y + cosine * x) for part in self.parts]
        return torch.stack(covered).any(dim=0)


def implants(shapes: Shapes, folder: Path | str | None = None) -> tuple[Implant, ...]:
    """All implants of one kind; none is in two kinds.

    Made from formulas are heads of hip prostheses with and without a stem, rods, screws one by one and in pairs, wires
    and clips, and crowns along a jaw: from a few pixels of 416² to some thousand.

    Parameters
    ----------
    shapes
        Which.
    folder
        For ``"aapm"``, where the data are; by default what the environment variable ``MRCTRECON_DATA`` names.

    Returns
    -------
    tuple of Implant
        Always the same ones.

    Raises
    ------
    InputError
        If the kind is unknown, or its file is missing or damaged.
    """
    if shapes == "aapm":
        return _read_aapm(data_folder(folder) / _AAPM_FILE)
    if shapes not in _NUMBERS:
        raise InputError(f"Implants are for {', '.join(_NUMBERS)} or of aapm, not for {shapes!r}.")
    return tuple(_made_up(number) for number in _NUMBERS[shapes])


def implanted(implant: Implant, inside: torch.Tensor, side: float, generator: torch.Generator) -> torch.Tensor:
    """Put an implant into a body, turned and moved at random; one that does not fit is made smaller until it does.

    Parameters
    ----------
    implant
        What.
    inside
        The body, bool ``(y, x)``.
    side
        Side of the field of view in pixels of that.
    generator
        The only source of randomness.

    Returns
    -------
    torch.Tensor
        1 = metal, bool ``(y, x)``, all of it in the body.

    Raises
    ------
    InputError
        If there is no body.
    """
    if not bool(inside.any()):
        raise InputError("An image shows no body that metal could be in; leave its slice out.")
    turn, *offset = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    body = inside.nonzero()
    places = body[torch.randint(len(body), (_N_PLACES,), generator=generator)]
    bounds = torch.tensor(inside.shape)
    while True:
        mask = implant.mask(side, 2 * math.pi * turn, (offset[0] - 0.5, offset[1] - 0.5))
        pixels = mask.nonzero() - len(mask) // 2
        if not len(pixels):  # it has become smaller than a pixel
            pixels = torch.zeros(1, 2, dtype=torch.long)
        for place in places:
            covered = place + pixels
            if bool(((covered >= 0) & (covered < bounds)).all()) and bool(inside[covered[:, 0], covered[:, 1]].all()):
                metal = torch.zeros_like(inside)
                metal[covered[:, 0], covered[:, 1]] = True
                return metal
        side *= _SMALLER


@dataclass(frozen=True, slots=True)
class _Ellipse:
    middle: _Point
    semi_axes: _Point
    turn_rad: float

    def covers(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        y, x = y - self.middle[0], x - self.middle[1]
        cosine, sine = math.cos(self.turn_rad), math.sin(self.turn_rad)
        along, across = cosine * y + sine * x, cosine * x - sine * y
        return (along / self.semi_axes[0]).square() + (across / self.semi_axes[1]).square() <= 1


@dataclass(frozen=True, slots=True)
class _Rod:
    """A rod with round ends, whose radius waves along it by ``thread``, as a share, in steps of the radius."""

    start: _Point
    end: _Point
    radius: float
    thread: float = 0.0

    def covers(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        step_y, step_x = self.end[0] - self.start[0], self.end[1] - self.start[1]
        length = math.hypot(step_y, step_x)
        y, x = y - self.start[0], x - self.start[1]
        along = ((y * step_y + x * step_x) / length).clamp(0, length)
        distance = torch.hypot(y - along * step_y / length, x - along * step_x / length)
        return distance <= self.radius * (1 - self.thread * torch.sin(2 * math.pi * along / self.radius).square())


@dataclass(frozen=True, slots=True, eq=False)
class _Outline:
    """What an image of a piece of metal shows, its larger side as long as ``size``."""

    pixels: torch.Tensor  # bool (y, x), cut to the metal
    size: float

    def covers(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        step = self.size / max(self.pixels.shape)
        row, column = (
            torch.floor(place / step + n / 2).long() for place, n in zip((y, x), self.pixels.shape, strict=True)
        )
        known = (row >= 0) & (row < self.pixels.shape[0]) & (column >= 0) & (column < self.pixels.shape[1])
        row, column = (i.clamp(0, n - 1) for i, n in zip((row, column), self.pixels.shape, strict=True))
        return known & self.pixels[row, column]


class _Draw:
    """Random numbers of one implant."""

    def __init__(self, number: int) -> None:
        self._generator = torch.Generator().manual_seed(seed_of(_SEED, "implant", number))

    def real(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def size(self, low: float, high: float) -> float:
        """Of all magnitudes alike."""
        return low * (high / low) ** self.real(0, 1)

    def whole(self, low: int, high: int) -> int:
        """From ``low`` to ``high``, both possible."""
        return int(torch.randint(low, high + 1, (), generator=self._generator))


def _made_up(number: int) -> Implant:
    kinds = (_hip, _ellipses, _rods, _screws, _screw_pair, _wires, _crowns)
    draw = _Draw(number)
    make = kinds[number % len(kinds)]
    parts = make(draw)
    return Implant(f"{make.__name__[1:].replace('_', ' ')} {number}", tuple(parts), max(map(_reach, parts)))


def _reach(part: _Ellipse | _Rod) -> float:
    if isinstance(part, _Ellipse):
        return math.hypot(*part.middle) + max(part.semi_axes)
    return max(math.hypot(*part.start), math.hypot(*part.end)) + part.radius


def _polar(radius: float, angle_rad: float) -> _Point:
    return radius * math.cos(angle_rad), radius * math.sin(angle_rad)


def _hip(draw: _Draw) -> list[_Ellipse | _Rod]:
    radius = draw.size(0.025, 0.075)
    head = _Ellipse((0.0, 0.0), (radius, radius * draw.real(0.75, 1.0)), 0.0)
    if draw.real(0, 1) < 0.5:
        return [head]
    angle = draw.real(0, 2 * math.pi)
    stem = _Rod(_polar(0.5 * radius, angle), _polar(radius * draw.real(1.8, 3.0), angle), radius * draw.real(0.25, 0.5))
    return [head, stem]


def _ellipses(draw: _Draw) -> list[_Ellipse | _Rod]:
    parts: list[_Ellipse | _Rod] = []
    for _ in range(draw.whole(1, 3)):
        size = draw.size(0.005, 0.03)
        middle = _polar(draw.real(0, 0.15), draw.real(0, 2 * math.pi))
        parts.append(_Ellipse(middle, (size, size * draw.real(0.4, 1.0)), draw.real(0, math.pi)))
    return parts


def _rods(draw: _Draw) -> list[_Ellipse | _Rod]:
    radius, length, distance = draw.size(0.004, 0.014), draw.size(0.04, 0.25), draw.size(0.05, 0.15)
    lines = [0.0] if draw.real(0, 1) < 0.5 else [-distance / 2, distance / 2]
    return [_Rod((-length / 2, x), (length / 2, x), radius) for x in lines]


def _screw(draw: _Draw, tip: _Point, angle_rad: float, length: float, radius: float) -> list[_Ellipse | _Rod]:
    step_y, step_x = _polar(length, angle_rad)
    end = tip[0] + step_y, tip[1] + step_x
    head = _Ellipse(end, (radius * 1.2, radius * 2.0), angle_rad)
    return [_Rod(tip, end, radius, thread=draw.real(0.1, 0.4)), head]


def _screws(draw: _Draw) -> list[_Ellipse | _Rod]:
    radius, length = draw.size(0.005, 0.012), draw.size(0.04, 0.14)
    parts: list[_Ellipse | _Rod] = []
    for _ in range(draw.whole(1, 2)):
        tip = _polar(draw.real(0, 0.08), draw.real(0, 2 * math.pi))
        parts += _screw(draw, tip, draw.real(0, 2 * math.pi), length, radius)
    return parts


def _screw_pair(draw: _Draw) -> list[_Ellipse | _Rod]:
    radius, length = draw.size(0.006, 0.013), draw.size(0.06, 0.14)
    half_gap, slant = draw.real(0.02, 0.06), draw.real(0.1, 0.7)
    left = _screw(draw, (-length / 2, -half_gap), -slant, length, radius)
    return left + _screw(draw, (-length / 2, half_gap), slant, length, radius)


def _wires(draw: _Draw) -> list[_Ellipse | _Rod]:
    parts: list[_Ellipse | _Rod] = []
    for _ in range(draw.whole(2, 6)):
        radius, middle = draw.size(0.002, 0.005), _polar(draw.real(0, 0.12), draw.real(0, 2 * math.pi))
        step = _polar(draw.size(0.002, 0.03), draw.real(0, 2 * math.pi))
        parts.append(_Rod(middle, (middle[0] + step[0], middle[1] + step[1]), radius))
    return parts


def _crowns(draw: _Draw) -> list[_Ellipse | _Rod]:
    arch, start, step = draw.real(0.08, 0.14), draw.real(0, 2 * math.pi), draw.real(0.25, 0.5)
    parts: list[_Ellipse | _Rod] = []
    for i in range(draw.whole(2, 5)):
        size, angle = draw.size(0.008, 0.018), start + i * step
        parts.append(_Ellipse(_polar(arch, angle), (size, size * draw.real(0.6, 1.0)), angle))
    return parts


def _read_aapm(path: Path) -> tuple[Implant, ...]:
    """The outlines of the AAPM challenge, which fill their images, each at a size of its own."""
    from operators.io.matlab5 import open_matlab5

    with open_matlab5(path) as file:
        stacks = [stored for stored in file.arrays if len(stored.shape) == 3]
        if len(stacks) != 1:
            raise InputError(f"{path} holds no stack of outlines of metal; expected one array (number, y, x).")
        images = torch.from_numpy(file.read(stacks[0], limit_bytes=_AAPM_LIMIT_BYTES))
    outlines = images > images.max() // 2
    return tuple(_outlined(number, outline) for number, outline in enumerate(outlines))


def _outlined(number: int, outline: torch.Tensor) -> Implant:
    rows, columns = (_extent(outline.any(dim=dim)) for dim in (1, 0))
    size = _Draw(1000 + number).size(0.02, 0.14)
    return Implant(f"aapm {number}", (_Outline(outline[rows, columns], size),), size / math.sqrt(2))


def _extent(covered: torch.Tensor) -> slice:
    found = covered.nonzero()[:, 0]
    return slice(int(found[0]), int(found[-1]) + 1)
