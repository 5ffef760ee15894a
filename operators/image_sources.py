"""Files of images of people, as data sets name them: which are taken, whose, and where they lie."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from operators.errors import InputError

S = TypeVar("S", bound="ImageSource")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """A file of images of one person.

    Parameters
    ----------
    path
        The file, relative to the folder of the data.
    patient
        Name of the person, by which data are split.
    slices
        Take slices from the first of these numbers up to, but without, the second; all by default.
    every
        Take every so many-th of them.

    Raises
    ------
    InputError
        If a number is out of its range.
    """

    path: str
    patient: str
    slices: tuple[int, int] | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.slices is not None and not 0 <= self.slices[0] < self.slices[1]:
            raise InputError(f"{self.path}: slices is {self.slices}; expected the first one and one past the last.")
        if self.every < 1:
            raise InputError(f"{self.path}: every is {self.every}; expected a whole number from 1 on.")

    def numbers(self, n_slices: int) -> range:
        """Which slices are taken of a file that has so many.

        Raises
        ------
        InputError
            If the file has fewer.
        """
        first, end = self.slices or (0, n_slices)
        if end > n_slices:
            raise InputError(f"{self.path} has {n_slices} slices; slices {first} to {end} are asked for.")
        return range(first, end, self.every)


def chosen_sources(sources: Sequence[S], **wanted: Collection[str] | None) -> list[S]:
    """The sources whose ``patient``, or whatever else describes them, is among those wanted.

    Parameters
    ----------
    sources
        What to choose from.
    wanted
        For the name of a description, such as ``patient``, the values that are wanted; ``None`` for all.

    Returns
    -------
    list of ImageSource
        In their order.

    Raises
    ------
    InputError
        If there is none.
    """
    asked = {name: values for name, values in wanted.items() if values is not None}
    chosen = [s for s in sources if all(getattr(s, name) in values for name, values in asked.items())]
    if not chosen:
        people = ", ".join(asked.pop("patient", ("a person",)))
        rest = "".join(f", {name} {' or '.join(values)}" for name, values in asked.items())
        raise InputError(f"No source shows {people}{rest}.")
    return chosen


def data_folder(folder: Path | str | None) -> Path:
    """Where images lie.

    Parameters
    ----------
    folder
        As a configuration names it; by default what the environment variable ``MRCTRECON_DATA`` names.

    Raises
    ------
    InputError
        If none is named, or it does not exist.
    """
    named = folder if folder is not None else os.environ.get("MRCTRECON_DATA")
    if named is None:
        raise InputError("No folder of data is known; set folder in the configuration, or MRCTRECON_DATA.")
    path = Path(named)
    if not path.is_dir():
        raise InputError(
            f"The folder of data {path} does not exist; correct it in the configuration or MRCTRECON_DATA."
        )
    return path


def spread(items: Sequence[T], n: int) -> list[T]:
    """Choose some at equal distances; where there are fewer than wanted, all of them come again and again.

    Parameters
    ----------
    items
        What to choose from.
    n
        How many are wanted.

    Returns
    -------
    list
        ``n`` of them.

    Examples
    --------
    >>> spread("abcdef", 3), spread("ab", 3)
    (['a', 'c', 'e'], ['a', 'b', 'a'])
    """
    n_items = len(items)
    return [items[i * n_items // n if n <= n_items else i % n_items] for i in range(n)]
