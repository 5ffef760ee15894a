"""Pictures for people: the slices of an image at a glance, and reconstructions side by side."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from operators.errors import InputError
from operators.io.files import replacing
from operators.voxel_grid import VoxelGrid

_DPI = 100
_BACKGROUND, _TEXT, _FAINT_TEXT = "#101214", "#e8e8e8", "#9aa0a6"
_GAP, _LINE = 6, 19  # pixels: between two panels; height of a line of text
_LARGEST_PANEL, _SMALLEST_PANEL, _LARGEST_WIDTH = 360, 64, 1920  # pixels
_MOST_PREVIEWED, _MOST_COMPARED = 24, 3  # slices
_WINDOW_PERCENTILES = (1.0, 99.5)
_ERROR_GAIN = 5
_SCALE_WIDTH, _SCALE_TEXT = 10, 58  # pixels: a colour scale, and the numbers beside it
# Zero is as dark as the ground, so that only errors are seen; blue is too low, red is too high.
_SIGNED_COLOURS = LinearSegmentedColormap.from_list("signed", ["#a6dcff", "#2b7bd6", "#000000", "#d6452b", "#ffd9a6"])


def write_preview(
    path: Path | str,
    image: torch.Tensor,
    *,
    grid: VoxelGrid | None = None,
    titles: Sequence[str] | None = None,
    window: tuple[float, float] | None = None,
    caption: str = "",
    overwrite: bool = False,
) -> None:
    """Write the slices of an image side by side as a PNG, row 0 at the top, with one grey window for all.

    A complex image shows its magnitude, a real one its values with their signs. Of more than 24 slices, 24 are shown
    at equal distances.

    Parameters
    ----------
    path
        A name that ends in ``.png``.
    image
        Complex or real ``(*batch, y, x)``, any unit.
    grid
        Gives the pixels their aspect ratio; square by default.
    titles
        One per slice; by default their numbers, from 1.
    window
        Values shown black and white; by default the 1st and the 99.5th percentile of the image.
    caption
        A line to stand above the slices, such as the window and its unit.
    overwrite
        Allow ``path`` to exist.

    Raises
    ------
    InputError
        If ``path`` has another suffix or cannot be written, or if the image is not finite.
    ValueError
        If the image has no slices, the window is empty, or the number of titles is not that of the slices.
    """
    path = _png(path)
    slices = _values(image, "image")
    titles = [f"slice {number + 1}" for number in range(len(slices))] if titles is None else titles
    if len(titles) != len(slices):
        raise ValueError(f"There are {len(titles)} titles for {len(slices)} slices; expected one each.")
    limits = _window(slices) if window is None else _checked(window)
    shown = _spread(len(slices), _MOST_PREVIEWED)
    n_columns = _column_count(len(shown))
    n_rows = math.ceil(len(shown) / n_columns)
    sheet = _Sheet(slices.shape[-2:], _pixel_aspect(grid), n_rows, n_columns, top=_LINE + _GAP if caption else 0)
    sheet.caption(caption)
    for place, index in enumerate(shown):
        row, column = divmod(place, n_columns)
        sheet.panel(row, column, slices[index], limits, "gray", titles[index])
    sheet.write(path, overwrite=overwrite)


def write_comparison(
    path: Path | str,
    columns: Mapping[str, torch.Tensor],
    *,
    target: str | None = None,
    grid: VoxelGrid | None = None,
    window: tuple[float, float] | None = None,
    error_limit: float | None = None,
    unit: str = "",
    metrics: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write images side by side as a PNG, one column each, with their errors below where there is a target.

    Complex images show their magnitude, real ones their values with their signs, row 0 at the top: the middle slice
    with its errors or, without a target, up to three slices at equal distances. An error is the absolute difference of
    what is shown, multiplied by five; black is 0, and the brightest colour is the width of the grey window. With an
    ``error_limit``, it is the difference with its sign instead: blue where a column is below the target.

    Parameters
    ----------
    path
        A name that ends in ``.png``.
    columns
        Name → complex or real image ``(*batch, y, x)``, all of one shape and unit, from left to right.
    target
        Name of the column that the others are measured against.
    grid
        Gives the pixels their aspect ratio; square by default.
    window
        Values shown black and white; by default the 1st and 99.5th percentile of the target, or of all images.
    error_limit
        Size of an error that has the brightest colour, in the unit of the images.
    unit
        Unit of the images; where it is given, a scale with numbers stands beside every row.
    metrics
        Name of a column → text to stand below the name, of one or more lines.
    overwrite
        Allow ``path`` to exist.

    Raises
    ------
    InputError
        If ``path`` has another suffix or cannot be written, or if an image is not finite.
    ValueError
        If there is no image, the shapes differ, the window is empty, the error limit is not positive, or target or
        metrics name no column.
    """
    path = _png(path)
    images = {name: _values(image, name) for name, image in columns.items()}
    metrics = metrics or {}
    _check_comparison(images, target, metrics)
    reference = images[target] if target is not None else np.stack(list(images.values()))
    limits = _window(reference) if window is None else _checked(window)
    errors = _ErrorScale(limits, error_limit)
    first = next(iter(images.values()))
    shown = _spread(len(first), 1 if target is not None else _MOST_COMPARED)
    rows = [(index, error) for index in shown for error in ([False, True] if target is not None else [False])]
    n_lines = 1 + max((len(text.splitlines()) for text in metrics.values()), default=0)
    top, right = n_lines * _LINE + _GAP, _SCALE_WIDTH + _SCALE_TEXT if unit else 0
    sheet = _Sheet(
        first.shape[-2:], _pixel_aspect(grid), len(rows), len(images), top=top, left=_LINE + _GAP, right=right
    )
    for row, (index, error) in enumerate(rows):
        sheet.row_label(row, errors.label if error else f"slice {index + 1}")
        for column, (name, image) in enumerate(images.items()):
            if not error:
                sheet.panel(row, column, image[index], limits, "gray")
            elif target is not None and name != target:
                sheet.panel(row, column, errors.of(image[index], images[target][index]), errors.limits, errors.colours)
        if unit:
            sheet.scale(row, *((errors.limits, errors.colours) if error else (limits, "gray")), unit)
    for column, name in enumerate(images):
        sheet.heading(column, name, metrics.get(name, ""))
    sheet.write(path, overwrite=overwrite)


class _ErrorScale:
    """How differences become colours: with their sign up to a limit, or their size beside the grey window."""

    def __init__(self, window: tuple[float, float], limit: float | None) -> None:
        if limit is not None and not 0 < limit < math.inf:
            raise ValueError(f"error_limit is {limit}; expected a positive number in the unit of the images.")
        self._signed = limit is not None
        self.label = "error" if limit is not None else f"error ×{_ERROR_GAIN}"
        self.limits = (-limit, limit) if limit is not None else (0.0, (window[1] - window[0]) / _ERROR_GAIN)
        self.colours: str | Colormap = _SIGNED_COLOURS if limit is not None else "inferno"

    def of(self, image: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
        return image - target if self._signed else np.abs(image - target)


def _check_comparison(
    images: Mapping[str, NDArray[np.float64]],
    target: str | None,
    metrics: Mapping[str, str],
) -> None:
    shapes = {name: image.shape for name, image in images.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"The columns have the shapes {shapes}; expected one or more images of one shape.")
    strangers = ({target} if target is not None else set()) | set(metrics)
    if not strangers <= set(images):
        raise ValueError(f"There is no column {sorted(strangers - set(images))[0]!r}; the columns are {list(images)}.")


class _Sheet:
    """Panels of one size on a dark ground, placed by the pixel, so that no margin is wasted."""

    def __init__(
        self,
        shape: tuple[int, ...],
        aspect: float,
        n_rows: int,
        n_columns: int,
        *,
        top: int = 0,
        left: int = 0,
        right: int = 0,
    ) -> None:
        relative_height = shape[0] * aspect / shape[1]
        largest = min(_LARGEST_PANEL, (_LARGEST_WIDTH - left - right) / n_columns * max(1.0, relative_height))
        self.width = max(_SMALLEST_PANEL, round(largest / max(1.0, relative_height)))
        self.height = max(_SMALLEST_PANEL, round(largest * min(1.0, relative_height)))
        self.aspect = aspect
        self.top, self.left, self.n_columns = top, left, n_columns
        self.sheet_width = left + n_columns * (self.width + _GAP) + _GAP + right
        self.sheet_height = top + n_rows * (self.height + _GAP) + _GAP
        size = (self.sheet_width / _DPI, self.sheet_height / _DPI)
        self.figure = Figure(figsize=size, dpi=_DPI, facecolor=_BACKGROUND)
        self.canvas = FigureCanvasAgg(self.figure)

    def panel(
        self,
        row: int,
        column: int,
        values: NDArray[np.float64],
        window: tuple[float, float],
        colours: str | Colormap,
        title: str = "",
    ) -> None:
        left, top = self._corner(row, column)
        self._picture(left, top, self.width, values, window, colours, self.aspect)
        if title:
            self._text(left + 5, top + 4, title, size=9, colour=_TEXT, vertical="top", box=True)

    def scale(self, row: int, window: tuple[float, float], colours: str | Colormap, unit: str) -> None:
        left, top = self._corner(row, self.n_columns)
        self._picture(left, top, _SCALE_WIDTH, np.linspace(*window[::-1], 256)[:, None], window, colours, "auto")
        for height, value in ((0.0, window[1]), (1.0, window[0])):
            middle = top + height * self.height + (0.5 - height) * _LINE
            number = f"{value:.4g}".replace("-", "−")
            self._text(left + _SCALE_WIDTH + 4, middle, number, size=9, colour=_FAINT_TEXT)
        self._text(left + _SCALE_WIDTH + 4, top + self.height / 2, unit, size=9, colour=_FAINT_TEXT)

    def caption(self, words: str) -> None:
        if words:
            self._text(_GAP, _GAP + _LINE / 2, words, size=10, colour=_TEXT)

    def row_label(self, row: int, label: str) -> None:
        middle = self._corner(row, 0)[1] + self.height / 2
        self._text(self.left / 2 + 2, middle, label, size=9, colour=_FAINT_TEXT, horizontal="center", rotation=90)

    def heading(self, column: int, name: str, details: str) -> None:
        middle = self._corner(0, column)[0] + self.width / 2
        self._text(middle, _GAP + _LINE / 2, name, size=11, colour=_TEXT, horizontal="center", weight="bold")
        for number, line in enumerate(details.splitlines(), start=1):
            self._text(middle, _GAP + (number + 0.5) * _LINE, line, size=9, colour=_FAINT_TEXT, horizontal="center")

    def write(self, path: Path, *, overwrite: bool) -> None:
        with replacing(path, overwrite=overwrite) as temporary:
            self.canvas.print_png(temporary, metadata={"Software": None})

    def _picture(
        self,
        left: float,
        top: float,
        width: float,
        values: NDArray[np.float64],
        window: tuple[float, float],
        colours: str | Colormap,
        aspect: float | Literal["auto"],
    ) -> None:
        bottom = 1 - (top + self.height) / self.sheet_height
        axes = self.figure.add_axes(
            (left / self.sheet_width, bottom, width / self.sheet_width, self.height / self.sheet_height)
        )
        axes.set_axis_off()
        axes.imshow(values, cmap=colours, vmin=window[0], vmax=window[1], origin="upper", aspect=aspect)

    def _corner(self, row: int, column: int) -> tuple[int, int]:
        return self.left + _GAP + column * (self.width + _GAP), self.top + _GAP + row * (self.height + _GAP)

    def _text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int,
        colour: str,
        horizontal: str = "left",
        vertical: str = "center",
        rotation: int = 0,
        weight: str = "normal",
        box: bool = False,
    ) -> None:
        self.figure.text(
            x / self.sheet_width,
            1 - y / self.sheet_height,
            words,
            fontsize=size,
            color=colour,
            ha=horizontal,
            va=vertical,
            rotation=rotation,
            fontweight=weight,
            fontfamily="DejaVu Sans",
            parse_math=False,
            bbox={"facecolor": _BACKGROUND, "alpha": 0.6, "edgecolor": "none", "pad": 2} if box else None,
        )


def _png(path: Path | str) -> Path:
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} does not end in .png; a picture is written in this format only.")
    return path


def _values(image: torch.Tensor, name: str) -> NDArray[np.float64]:
    if image.ndim < 2 or image.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(image.shape)}; expected (*batch, y, x).")
    image = image.detach().reshape(-1, *image.shape[-2:])
    values = image.abs().double() if image.is_complex() else image.double()
    if not values.isfinite().all():
        raise InputError(f"{name} holds voxels that are not finite; no picture was made.")
    return values.cpu().resolve_neg().numpy()


def _checked(window: tuple[float, float]) -> tuple[float, float]:
    if not -math.inf < window[0] < window[1] < math.inf:
        raise ValueError(f"The window is {window}; expected a lower and a larger upper value.")
    return window


def _window(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = (float(bound) for bound in np.percentile(values, _WINDOW_PERCENTILES))
    if low < high:
        return low, high
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))  # almost everything has one value
    return (low, high) if low < high else (0.0, 1.0)


def _pixel_aspect(grid: VoxelGrid | None) -> float:
    return 1.0 if grid is None else grid.spacing_mm[1] / grid.spacing_mm[2]


def _spread(n_items: int, n_most: int) -> list[int]:
    """Indices of at most ``n_most`` items, at equal distances and away from the ends."""
    n_shown = min(n_items, n_most)
    return [(2 * place + 1) * n_items // (2 * n_shown) for place in range(n_shown)]


def _column_count(n_panels: int) -> int:
    """Columns of a sheet that is wider than high and leaves few places empty."""
    if n_panels <= 5:
        return n_panels
    candidates = range(math.ceil(math.sqrt(n_panels)), math.ceil(math.sqrt(2 * n_panels)) + 1)
    return min(candidates, key=lambda n_columns: -n_panels % n_columns)
