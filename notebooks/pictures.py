"""Pictures of the notebooks: images side by side through one window, and their errors below."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

_WIDTH_INCHES, _LARGEST_INCHES, _MOST_COLUMNS = 9.4, 2.4, 5


def compare(
    images: Mapping[str, torch.Tensor],
    window: tuple[float, float],
    *,
    target: torch.Tensor | None = None,
    error_limit: float = 1.0,
    unit: str = "",
    crop: tuple[slice, slice] = (slice(None), slice(None)),
) -> None:
    """Draw images through the same window and, where there is a target, how far each is from it.

    Parameters
    ----------
    images
        Title, of one or more lines → real ``(y, x)``.
    window
        Values shown black and white.
    target
        The truth, like the images; drawn last. Errors have their sign: red is too much, blue too little.
    error_limit
        Error of the strongest colour, in the unit of the images.
    unit
        Stands beside the scales.
    crop
        Part of the images to draw.
    """
    shown = {title: (image, target) for title, image in images.items()}
    if target is not None:
        shown["truth"] = (target, None)
    rows = 1 if target is None else 2
    n_blocks = -(-len(shown) // _MOST_COLUMNS)
    n_columns = -(-len(shown) // n_blocks)
    first = next(iter(images.values()))[crop]
    side = min((_WIDTH_INCHES - 0.8) / n_columns, _LARGEST_INCHES)
    n_lines = max(title.count("\n") + 1 for title in shown)
    height = n_blocks * (rows * side * first.shape[0] / first.shape[1] + 0.35 + 0.17 * n_lines)
    figure, axes = plt.subplots(
        rows * n_blocks, n_columns, figsize=(n_columns * side + 0.8, height), squeeze=False, layout="constrained"
    )
    for place in axes.flat:
        place.set_axis_off()
    for number, (title, (image, truth)) in enumerate(shown.items()):
        block, column = divmod(number, n_columns)
        grey = _draw(axes[rows * block, column], image[crop], window, "gray", title)
        if truth is not None:
            difference = (image - truth)[crop]
            error = _draw(axes[rows * block + 1, column], difference, (-error_limit, error_limit), "RdBu_r")
    for block in range(n_blocks):
        _scale(figure, grey, list(axes[rows * block]), unit)
        if target is not None:
            _scale(figure, error, list(axes[rows * block + 1]), f"error {unit}".rstrip())


def mosaic(
    images: Sequence[torch.Tensor],
    titles: Sequence[str] = (),
    *,
    n_columns: int,
    limits: tuple[float, float] | None = None,
    colours: str = "gray",
    width_inches: float = _WIDTH_INCHES,
) -> None:
    """Draw small images in rows.

    Parameters
    ----------
    images
        Real ``(y, x)``.
    titles
        One for each, or none.
    n_columns
        Images in a row.
    limits
        Values of the first and last colour; by default each image has its own, symmetric around 0.
    colours
        Name of a map of matplotlib.
    width_inches
        Of the picture.
    """
    n_rows = -(-len(images) // n_columns)
    side = width_inches / n_columns * images[0].shape[0] / images[0].shape[1]
    size = (width_inches, n_rows * (side + (0.22 if titles else 0.0)))
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for place in axes.flat:
        place.set_axis_off()
    for number, image in enumerate(images):
        largest = float(image.abs().max()) or 1.0
        title = titles[number] if titles else ""
        _draw(axes.flat[number], image, limits or (-largest, largest), colours, title)


def _draw(axes: Axes, image: torch.Tensor, window: tuple[float, float], colours: str, title: str = "") -> AxesImage:
    axes.set_title(title, fontsize=9)
    return axes.imshow(image.detach().numpy(), cmap=colours, vmin=window[0], vmax=window[1])


def _scale(figure: Figure, image: AxesImage, beside: list[Axes], label: str) -> None:
    bar = figure.colorbar(image, ax=beside, pad=0.01, aspect=30)
    bar.ax.tick_params(labelsize=8)
    bar.set_label(label, fontsize=9)
