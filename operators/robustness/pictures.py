"""Pictures of a report as data URIs: images in one window, signed errors, and curves that follow the page's colours."""

import base64
import io
import re
import warnings
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.lines import Line2D

from operators.robustness.statistics import CurvePoint
from operators.robustness.study import Shift

_LARGEST_SIDE, _JPEG_QUALITY = 256, 85
# Zero is as dark as the ground, so that only errors are seen; blue is too low, red is too high.
_SIGNED_COLOURS = LinearSegmentedColormap.from_list("signed", ["#a6dcff", "#2b7bd6", "#000000", "#d6452b", "#ffd9a6"])
_INK = "#010203"  # stands for the colour of the page's text until the file is written
_INK_OF_SCHEMES = "<style>svg{color:#1d2126}@media(prefers-color-scheme:dark){svg{color:#e4e6e8}}</style>"
_COLOURS = [f"C{number}" for number in range(10)]
_MARKERS = "osD^vP*X"
_LONGEST_NAME = 28
_INCHES = (4.6, 3.1)
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def grey_image(image: torch.Tensor, window: tuple[float, float]) -> str:
    """An image in a grey window as a JPEG of at most 256 pixels along each side.

    Parameters
    ----------
    image
        Real ``(y, x)``; row 0 is at the top.
    window
        Values shown black and white.

    Returns
    -------
    str
        Data URI.
    """
    return _jpeg(image, window, "gray")


def error_image(error: torch.Tensor, limit: float) -> str:
    """Errors with their sign as a JPEG of at most 256 pixels along each side: blue is too low, red is too high.

    Parameters
    ----------
    error
        Estimate minus target, real ``(y, x)``.
    limit
        Size of the error that has the brightest colour.

    Returns
    -------
    str
        Data URI.
    """
    return _jpeg(error, (-limit, limit), _SIGNED_COLOURS)


def shown_size(image: torch.Tensor) -> tuple[int, int]:
    """Height and width at which an image ``(y, x)`` is shown, in pixels."""
    shrinking = max(1.0, max(image.shape) / _LARGEST_SIDE)
    return max(1, round(image.shape[0] / shrinking)), max(1, round(image.shape[1] / shrinking))


def curves(points: Sequence[CurvePoint], shift: Shift) -> str:
    """Means against strength, with the standard deviation over cases, one line for each method, as an SVG.

    Parameters
    ----------
    points
        Of one measure on one shift, for all methods.
    shift
        Their shift; without an axis the levels stand side by side and are not joined.

    Returns
    -------
    str
        Data URI.
    """
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 11.0, "axes.unicode_minus": True}
    ):
        figure = Figure(figsize=_INCHES, facecolor="none")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(facecolor="none")
        _draw_levels(axes, shift)
        handles = _draw_methods(axes, points, shift)
        axes.set_ylabel(printable(points[0].measure), parse_math=False, color=_INK)
        axes.tick_params(colors=_INK)
        axes.grid(color=_INK, alpha=0.15)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_INK)
        legend = axes.legend(
            list(handles.values()),
            [_short(name) for name in handles],
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
            ncols=2,
            frameon=False,
            labelcolor=_INK,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        return _svg(figure)


def _draw_levels(axes: Axes, shift: Shift) -> None:
    if shift.axis is None:
        labels = [_short(level.label) for level in shift.levels]
        axes.set_xticks(range(len(labels)), labels, parse_math=False)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        return
    covered = shift.strengths(in_distribution=True)
    axes.axvspan(min(covered), max(covered), color=_INK, alpha=0.12, linewidth=3)
    axes.set_xlabel(printable(shift.axis), parse_math=False, color=_INK)


def _draw_methods(axes: Axes, points: Sequence[CurvePoint], shift: Shift) -> Mapping[str, Line2D]:
    methods = list(dict.fromkeys(point.method for point in points))
    handles = {}
    for number, method in enumerate(methods):
        own = sorted((point for point in points if point.method == method), key=lambda point: point.strength)
        if shift.axis is None:
            places = {level.strength: place for place, level in enumerate(shift.levels)}
            aside = 0.5 * ((number + 0.5) / len(methods) - 0.5)  # side by side, because the place between means nothing
            x = [places[point.strength] + aside for point in own]
        else:
            x = [point.strength for point in own]
        handles[method] = axes.errorbar(
            x,
            [point.mean for point in own],
            yerr=[point.sd for point in own],
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            linestyle="none" if shift.axis is None else "-",
            markersize=5,
            elinewidth=0.8,
            capsize=2,
        )[0]
    return handles


def printable(text: str) -> str:
    """The text without the characters that no document may hold; � stands in their place."""
    return _UNPRINTABLE.sub("\ufffd", text)


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing"
        )  # the browser's font is drawn, not the measured one
        figure.savefig(stream, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    text = stream.getvalue().replace(_INK, "currentColor")
    start = text.index(">", text.index("<svg")) + 1
    return _data_uri("image/svg+xml", (text[:start] + _INK_OF_SCHEMES + text[start:]).encode())


def _jpeg(image: torch.Tensor, window: tuple[float, float], colours: str | Colormap) -> str:
    size = shown_size(image)
    shown = image.detach().double().cpu()
    if size != tuple(image.shape):
        shown = torch.nn.functional.adaptive_avg_pool2d(shown[None], size)[0]
    stream = io.BytesIO()
    options = {"quality": _JPEG_QUALITY}
    imsave(stream, shown.numpy(), vmin=window[0], vmax=window[1], cmap=colours, format="jpeg", pil_kwargs=options)
    return _data_uri("image/jpeg", stream.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
