"""Windows of Hounsfield units that radiologists look through, by name."""

import math
from dataclasses import dataclass

from operators.errors import InputError


@dataclass(frozen=True, slots=True)
class Window:
    """A range of Hounsfield units shown from black to white.

    Parameters
    ----------
    name
        What it is good for.
    low_hu, high_hu
        Values shown black and white.

    Examples
    --------
    >>> bone = chosen_window("bone")
    >>> bone.caption, bone.centre_hu, bone.width_hu
    ('bone: −500 … 1300 HU', 400.0, 1800.0)
    """

    name: str
    low_hu: float
    high_hu: float

    @property
    def limits_hu(self) -> tuple[float, float]:
        """Values shown black and white."""
        return self.low_hu, self.high_hu

    @property
    def centre_hu(self) -> float:
        """Value shown in the middle grey."""
        return (self.low_hu + self.high_hu) / 2

    @property
    def width_hu(self) -> float:
        """Distance from black to white."""
        return self.high_hu - self.low_hu

    @property
    def caption(self) -> str:
        """The window in words, for a picture."""
        limits = " … ".join(f"{limit:g}".replace("-", "−") for limit in self.limits_hu)
        return f"{self.name}: {limits} HU"


WINDOWS = (
    Window("soft tissue", -160.0, 240.0),
    Window("lung", -1350.0, 150.0),
    Window("bone", -500.0, 1300.0),
    Window("brain", 0.0, 80.0),
)
"""The named windows; a viewer shows a series through the first."""


def chosen_window(choice: str | tuple[float, float]) -> Window:
    """Find a window by its name, or make one of two numbers.

    Parameters
    ----------
    choice
        The name of one of ``WINDOWS``, a text such as ``"-1000,1000"``, or the two values (black, white) in HU.

    Returns
    -------
    Window
        The window.

    Raises
    ------
    InputError
        If there is no such name, or if the numbers are not finite and ascending.

    Examples
    --------
    >>> chosen_window("-1000,1000").caption
    'window: −1000 … 1000 HU'
    """
    named = {window.name: window for window in WINDOWS}
    if isinstance(choice, str) and choice in named:
        return named[choice]
    try:
        low, high = (float(limit) for limit in (choice.split(",") if isinstance(choice, str) else choice))
    except ValueError as error:
        raise InputError(
            f"The window is {choice!r}; expected one of {', '.join(named)}, or two numbers of HU such as -160,240."
        ) from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"The window is {choice!r}; expected a lower and a larger upper number of HU.")
    return Window("window", low, high)
