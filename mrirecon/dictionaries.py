"""Dictionaries that come with the package, others drawn for a training, and new ones learned from images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from operators import dictionaries
from operators.dictionaries import Dictionary as Dictionary
from operators.dictionaries import family_filters
from operators.dictionaries import write_dictionary as write_dictionary
from operators.dictionary_learning import high_pass
from operators.dictionary_learning import learn_dictionary as learn_filters
from operators.errors import InputError
from operators.io.numpy_files import open_npz

if TYPE_CHECKING:
    from mrirecon.datasets import Source

Progress = Callable[[int, int], None]

_FOLDER = Path(str(files("mrirecon"))) / "weights" / "dictionaries"
_DEFAULT_MATRIX = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnDictionaries:
    """The dictionaries that a training draws besides the model's own: ranges are (lowest, highest).

    Parameters
    ----------
    share
        Of the batches, how many use a drawn one, above 0 and at most 1.
    families
        Which kinds there are; each is as likely as the others. ``"learned"`` are the dictionaries of
        `shipped_dictionaries` within the ranges, one of which may be the model's own; the others are made as
        `load_dictionary` does.
    n
        Range of the number of filters.
    size
        Range of their size, which is odd. Each number and size that the family has is as likely as the others.

    Raises
    ------
    InputError
        If a value is out of its range, or a family has no dictionary of the lowest number and size, or none that is
        shipped in the ranges.
    """

    share: float
    families: tuple[Literal["learned", "dct", "gabor", "wavelet", "random"], ...]
    n: tuple[int, int]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"share is {self.share}; expected a fraction above 0, or leave the dictionaries out.")
        if not self.families or len(set(self.families)) < len(self.families):
            raise InputError(f"families is {list(self.families)}; expected at least one, and each once.")
        for name, (low, high), highest in (("n", self.n, 9999), ("size", self.size, 99)):
            if not 1 <= low <= high <= highest:
                raise InputError(f"{name} is {[low, high]}; expected its lowest and its highest value, 1 to {highest}.")
        if any(size % 2 == 0 for size in self.size):
            raise InputError(f"size is {list(self.size)}; expected odd numbers, so that filters have a centre.")
        if "learned" in self.families and not self.learned:
            raise InputError(
                f"No shipped dictionary has {self.n[0]} to {self.n[1]} filters of size {self.size[0]} to "
                f"{self.size[1]}; there are {', '.join(shipped_dictionaries())}; widen a range or leave 'learned' out."
            )
        for family in self.families:
            if family != "learned":
                load_dictionary(f"{family}-{self.n[0]}x{self.size[0]}")  # raises if there is none

    @property
    def learned(self) -> tuple[str, ...]:
        """Names of the shipped dictionaries in the ranges."""
        return tuple(name for name in shipped_dictionaries() if self._covers(*load_dictionary(name).filters.shape))

    def draw(self, generator: torch.Generator) -> torch.Tensor | None:
        """Draw filters.

        Parameters
        ----------
        generator
            The only source of randomness.

        Returns
        -------
        torch.Tensor or None
            Real float32 ``(filter, ky, kx)`` of unit norm; ``None`` where the model keeps its own.
        """
        if float(torch.rand((), generator=generator)) >= self.share:
            return None
        family = self.families[_drawn(0, len(self.families) - 1, generator)]
        if family == "learned":
            return load_dictionary(self.learned[_drawn(0, len(self.learned) - 1, generator)]).filters
        while True:
            n = _drawn(*self.n, generator)
            size = 2 * _drawn(self.size[0] // 2, self.size[1] // 2, generator) + 1
            try:
                return family_filters(family, n, size, seed=_drawn(0, 10**9 - 1, generator))
            except ValueError:  # no family is endless; the lowest number and size exist, as was checked
                continue

    def _covers(self, n: int, *sizes: int) -> bool:
        return self.n[0] <= n <= self.n[1] and all(self.size[0] <= size <= self.size[1] for size in sizes)


def shipped_dictionaries() -> tuple[str, ...]:
    """Names of the learned dictionaries that come with the package, for `load_dictionary`.

    Returns
    -------
    tuple of str
        Such as ``"learned-32x9"``: number of filters and size.
    """
    return dictionaries.shipped_dictionaries(_FOLDER)


def load_dictionary(name: str | Path) -> Dictionary:
    """Find a dictionary, see `operators.dictionaries.load_dictionary`.

    Parameters
    ----------
    name
        One of `shipped_dictionaries`, a family with number and size such as ``"dct-32x9"``, or a file.

    Returns
    -------
    Dictionary
        The filters, of unit norm.

    Raises
    ------
    InputError
        If it is none of these, the family has no such filters, or the file cannot be used.
    """
    return dictionaries.load_dictionary(name, _FOLDER)


def learn_from_files(
    paths: Sequence[Path | str],
    *,
    n_filters: int = 32,
    filter_size: int = 9,
    sparsity: float = 1.0,
    smoothness: float = 4.0,
    n_steps: int = 120,
    matrix: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Dictionary:
    """Learn a dictionary from image files, as `operators.dictionary_learning.learn_dictionary` does.

    Parameters
    ----------
    paths
        NIfTI images and ``.npz`` files, of which all arrays (slice, y, x) are taken; or one ``.toml`` file that
        describes data as for training, of which the people for training are taken.
    n_filters, filter_size
        Number of filters, and their odd size.
    sparsity
        λ relative to the root mean square of a high-passed image.
    smoothness
        β of the low-pass part that is left out, in pixels².
    n_steps
        Number of steps.
    matrix
        Number of pixels along each side, to which slices are resampled; by default 128, or what the data say.
    seed
        Seed of the choice of crops.
    progress
        Called with (steps done, steps in all).

    Returns
    -------
    Dictionary
        The filters, the most used first.

    Raises
    ------
    InputError
        If a file cannot be used, nothing is seen in it, or an option is out of its range.
    """
    images, data, licence = _images_in([Path(path) for path in paths], matrix)
    try:
        learned = learn_filters(
            high_pass(images, smoothness),
            n_filters=n_filters,
            filter_size=filter_size,
            sparsity=sparsity,
            n_steps=n_steps,
            seed=seed,
            progress=progress,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    names = " ".join(Path(path).name for path in paths)
    settings = {"filters": n_filters, "size": filter_size, "sparsity": sparsity, "smoothness": smoothness}
    settings |= {"steps": n_steps, "matrix": images.shape[-1], "seed": seed}
    options = " ".join(f"--{name} {value}" for name, value in settings.items())
    provenance: dict[str, str | int | float] = {
        "command": f"mrirecon learn-dictionary {names} {options}",
        "data": data,
        "licence": licence,
        **settings,
        "objective": round(float(learned.objective[-len(learned.objective) // 4 :].mean()), 4),
        "density": round(float(learned.density[-len(learned.density) // 4 :].mean()), 4),
        "version": version("mrctrecon"),
    }
    return Dictionary(f"learned-{n_filters}x{filter_size}", learned.filters, provenance)


def _drawn(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _images_in(paths: Sequence[Path], matrix: int | None) -> tuple[torch.Tensor, str, str]:
    """Magnitudes ``(slice, y, x)``, what they are, and the licence of what is made of them."""
    from mrirecon.datasets import load_slices

    described = [path for path in paths if path.suffix == ".toml"]
    if described:
        from mrirecon.config import Data, read_config

        if len(paths) > 1:
            raise InputError(f"{described[0]} describes all the data; give it alone, or images only.")
        data = read_config(described[0], Data)
        slices = load_slices(data.sources, matrix or data.matrix, data.folder, patients=data.train)
        what, licence = f"{data.description} People: {', '.join(data.train)}.", data.licence
    else:
        what, licence = ", ".join(path.name for path in paths), "that of the images"
        slices = tuple(
            entry
            for path in paths
            for entry in load_slices(_sources_in(path), matrix or _DEFAULT_MATRIX, path.absolute().parent)
        )
    if not slices:
        raise InputError(f"Nothing is seen in {what}: all slices are almost empty.")
    return torch.stack([entry.image.abs() for entry in slices]), what, licence


def _sources_in(path: Path) -> "list[Source]":
    from mrirecon.datasets import Source

    name, contrast = path.name, "unknown"
    if path.suffix != ".npz":
        return [Source(kind="nifti", path=name, patient=name, contrast=contrast)]
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    with open_npz(path) as archive:
        keys = [entry.name for entry in archive.arrays if len(entry.shape) == 3]
    if not keys:
        raise InputError(f"{path} holds no stack of images; expected an array (slice, y, x).")
    return [Source(kind="npz", path=name, patient=name, contrast=contrast, key=key) for key in keys]
