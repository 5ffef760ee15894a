"""Dictionaries by name or in files: filters with what is known of how they came about, and learned from images."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from operators.decision import Decision
from operators.dictionary_learning import high_pass
from operators.dictionary_learning import learn_dictionary as learn_filters
from operators.errors import InputError
from operators.filters import dct_filters, gabor_filters, random_filters, wavelet_filters
from operators.io.array_file import ArrayFile, StoredArray, damage_reported
from operators.io.files import replacing
from operators.io.numpy_files import open_npy, open_npz

if TYPE_CHECKING:
    from mrirecon.datasets import Source

Progress = Callable[[int, int], None]

_FOLDER = Path(str(files("mrirecon"))) / "weights" / "dictionaries"
_FAMILIES: Mapping[str, Callable[[int, int], torch.Tensor]] = {
    "dct": dct_filters,
    "gabor": gabor_filters,
    "wavelet": wavelet_filters,
}
_NAME = re.compile(r"(dct|gabor|wavelet|random)-([0-9]{1,4})x([0-9]{1,2})(?:-([0-9]{1,9}))?")
_LARGEST_FILTERS_BYTES, _LARGEST_PROVENANCE_BYTES = 2**24, 2**16
_NORM_TOLERANCE = 1e-4
_DEFAULT_MATRIX = 128


@dataclass(frozen=True, slots=True, eq=False)
class Dictionary:
    """Filters, and where they come from.

    Parameters
    ----------
    name
        How they are called.
    filters
        Real float32 ``(filter, ky, kx)`` with odd sizes, each of norm 1.
    provenance
        What is known of them by name: numbers and texts such as ``command``, ``data``, ``licence``, ``seed``.
    decisions
        What was changed when they were read.
    """

    name: str
    filters: torch.Tensor
    provenance: Mapping[str, str | int | float] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()


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
                return _family_filters(family, n, size, seed=_drawn(0, 10**9 - 1, generator))
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
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.npz")))


def load_dictionary(name: str | Path) -> Dictionary:
    """Find a dictionary.

    Parameters
    ----------
    name
        One of `shipped_dictionaries`; a family with number and size of its filters, such as ``"dct-32x9"``,
        ``"gabor-32x9"``, ``"wavelet-32x9"``, ``"random-32x9"`` or, with a seed, ``"random-32x9-7"``; or a file that
        `read_dictionary` knows.

    Returns
    -------
    Dictionary
        The filters, of unit norm.

    Raises
    ------
    InputError
        If it is none of these, the family has no such filters, or the file cannot be used.
    """
    text = str(name)
    if text in shipped_dictionaries():
        return read_dictionary(_FOLDER / f"{text}.npz")
    match = _NAME.fullmatch(text)
    if match is not None:
        return _of_family(text, match)
    if not Path(name).is_file():
        raise InputError(
            f"{text!r} is neither a file nor a known dictionary; give an .npz or .npy file, one of "
            f"{', '.join(shipped_dictionaries())}, or a family such as dct-32x9, gabor-32x9, wavelet-32x9, random-32x9."
        )
    return read_dictionary(name)


def read_dictionary(path: Path | str) -> Dictionary:
    """Read filters from a file.

    Parameters
    ----------
    path
        An ``.npz`` file with an array ``filters`` ``(filter, ky, kx)``, and ``provenance`` as `write_dictionary`
        stores it, if any; or an ``.npy`` file with the filters.

    Returns
    -------
    Dictionary
        Filters of another norm are divided by it, with a decision that says so.

    Raises
    ------
    InputError
        If the file is missing, damaged, too large or no numpy file, or the filters are not real, not finite, zero, of
        even size or of another shape.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            signature = stream.read(6)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give an .npz or .npy file of filters.") from error
    if signature == b"\x93NUMPY":
        with open_npy(path) as file:
            array, provenance = _filters_in(file, file.arrays[0]), {}
    elif signature.startswith(b"PK"):
        with open_npz(path) as file:
            stored = {entry.name: entry for entry in file.arrays}
            if "filters" not in stored:
                raise InputError(f"{path} has no array 'filters'; it has {', '.join(stored) or 'none'}.")
            array = _filters_in(file, stored["filters"])
            provenance = _provenance_in(file, stored["provenance"]) if "provenance" in stored else {}
    else:
        raise InputError(f"{path} is no numpy file; expected filters (filter, ky, kx) in an .npz or .npy file.")
    filters, decisions = _of_unit_norm(array, path)
    return Dictionary(path.stem, filters, provenance, decisions)


def write_dictionary(path: Path | str, dictionary: Dictionary, *, overwrite: bool = False) -> None:
    """Write filters and their provenance; the same dictionary gives the same bytes.

    Parameters
    ----------
    path
        A name that ends in ``.npz``. The arrays in it are ``filters``, float32 ``(filter, ky, kx)``, and
        ``provenance``, the bytes of a JSON object.
    dictionary
        What is written; its name is that of the file when it is read.
    overwrite
        Allow ``path`` to exist.

    Raises
    ------
    InputError
        If ``path`` has another suffix or cannot be written.
    """
    path = _with_suffix(path, ".npz")
    described = json.dumps(dict(dictionary.provenance), ensure_ascii=False, indent=1).encode()
    with replacing(path, overwrite=overwrite) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            filters=dictionary.filters.detach().cpu().float().numpy(),
            provenance=np.frombuffer(described, dtype=np.uint8),
        )


def write_mosaic(path: Path | str, filters: torch.Tensor, *, overwrite: bool = False) -> None:
    """Write a picture of filters as a PNG: row by row, each from its own −max|d| in black to max|d| in white.

    Parameters
    ----------
    path
        A name that ends in ``.png``.
    filters
        Real ``(filter, ky, kx)``.
    overwrite
        Allow ``path`` to exist.

    Raises
    ------
    InputError
        If ``path`` has another suffix or cannot be written.
    """
    from matplotlib.image import imsave

    path = _with_suffix(path, ".png")
    n, k_y, k_x = filters.shape
    n_columns = min(n, max(8, round(n**0.5)))
    tiles = np.full((-(-n // n_columns) * n_columns, k_y + 1, k_x + 1), -1.0)
    tiles[:n, 1:, 1:] = filters / filters.abs().amax(dim=(1, 2), keepdim=True)
    sheet = tiles.reshape(-1, n_columns, k_y + 1, k_x + 1).swapaxes(1, 2).reshape(-1, n_columns * (k_x + 1))
    sheet = np.pad(sheet, ((0, 1), (0, 1)), constant_values=-1.0)
    with replacing(path, overwrite=overwrite) as temporary:
        magnified = np.kron(sheet, np.ones((_MAGNIFICATION, _MAGNIFICATION)))
        imsave(temporary, magnified, cmap="gray", vmin=-1, vmax=1)


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


_MAGNIFICATION = 8  # pixels of the picture for one of a filter


def _of_family(name: str, match: re.Match[str]) -> Dictionary:
    family, n, size, seed = match[1], int(match[2]), int(match[3]), match[4]
    if seed is not None and family != "random":
        raise InputError(f"{name}: {family} filters have no seed; leave out -{seed}.")
    try:
        return Dictionary(name, _family_filters(family, n, size, seed=int(seed or 0)))
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error


def _family_filters(family: str, n: int, size: int, *, seed: int) -> torch.Tensor:
    return random_filters(n, size, seed=seed) if family == "random" else _FAMILIES[family](n, size)


def _drawn(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _filters_in(file: ArrayFile, stored: StoredArray) -> NDArray[np.float64]:
    if not stored.is_real or len(stored.shape) != 3 or stored.n_elements == 0:
        raise InputError(f"{stored} in {file.path} are no filters; expected real numbers (filter, ky, kx).")
    if any(size % 2 == 0 for size in stored.shape[1:]):
        raise InputError(f"{stored} in {file.path} are of even size; pad them to an odd one, which has a centre.")
    array = file.read(stored, limit_bytes=_LARGEST_FILTERS_BYTES).astype(np.float64)
    if not np.isfinite(array).all():
        raise InputError(f"{stored} in {file.path} hold values that are not finite; learn them anew.")
    return array


def _provenance_in(file: ArrayFile, stored: StoredArray) -> dict[str, str | int | float]:
    if stored.kind != "uint8" or len(stored.shape) != 1:
        raise InputError(f"{stored} in {file.path} is no provenance; expected the bytes of a JSON object, or leave it.")
    content = file.read(stored, limit_bytes=_LARGEST_PROVENANCE_BYTES).tobytes()
    with damage_reported(file.path, "a dictionary with provenance"):
        described: Any = json.loads(content)
    if not isinstance(described, dict) or not all(isinstance(v, str | int | float) for v in described.values()):
        raise InputError(f"The provenance in {file.path} is no JSON object of texts and numbers; write it anew.")
    return described


def _of_unit_norm(array: NDArray[np.float64], path: Path) -> tuple[torch.Tensor, tuple[Decision, ...]]:
    largest = np.abs(array).max(axis=(1, 2), keepdims=True)
    if not largest.all():
        raise InputError(f"The filter {int(np.argmin(largest)) + 1} of {len(array)} in {path} is zero; leave it out.")
    scaled = array / largest  # squares of the largest and of the smallest numbers would not be numbers
    norms = np.sqrt(np.square(scaled).sum(axis=(1, 2), keepdims=True))
    filters = torch.from_numpy((scaled / norms).astype(np.float32))
    with np.errstate(over="ignore"):
        found = (norms * largest).ravel()
    if (np.abs(found - 1) <= _NORM_TOLERANCE).all():
        return filters, ()
    reason = (
        f"The filters of {path.name} have norms from {found.min():.3g} to {found.max():.3g}; each was divided by it."
    )
    return filters, (Decision("filter_norm", "1", reason),)


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


def _with_suffix(path: Path | str, suffix: str) -> Path:
    path = Path(path)
    if path.suffix != suffix:
        raise InputError(f"{path} does not end in {suffix}; give it this ending.")
    return path
