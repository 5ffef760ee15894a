"""Dictionaries of filters by name or in files, with what is known of how they came about."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from operators.decision import Decision
from operators.errors import InputError
from operators.filters import dct_filters, gabor_filters, random_filters, wavelet_filters
from operators.io.array_file import ArrayFile, StoredArray, damage_reported
from operators.io.files import replacing
from operators.io.numpy_files import open_npy, open_npz

_FAMILIES: Mapping[str, Callable[[int, int], torch.Tensor]] = {
    "dct": dct_filters,
    "gabor": gabor_filters,
    "wavelet": wavelet_filters,
}
_NAME = re.compile(r"(dct|gabor|wavelet|random)-([0-9]{1,4})x([0-9]{1,2})(?:-([0-9]{1,9}))?")
_LARGEST_FILTERS_BYTES, _LARGEST_PROVENANCE_BYTES = 2**24, 2**16
_NORM_TOLERANCE = 1e-4
_MAGNIFICATION = 8  # pixels of the picture for one of a filter


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


def shipped_dictionaries(folder: Path) -> tuple[str, ...]:
    """Names of the dictionaries that come with a package, for `load_dictionary`.

    Parameters
    ----------
    folder
        Where they lie, if there are any.

    Returns
    -------
    tuple of str
        Such as ``"learned-32x9"``: number of filters and size.
    """
    return tuple(sorted(path.stem for path in folder.glob("*.npz")))


def load_dictionary(name: str | Path, folder: Path) -> Dictionary:
    """Find a dictionary.

    Parameters
    ----------
    name
        One of `shipped_dictionaries`; a family with number and size of its filters, such as ``"dct-32x9"``,
        ``"gabor-32x9"``, ``"wavelet-32x9"``, ``"random-32x9"`` or, with a seed, ``"random-32x9-7"``; or a file that
        `read_dictionary` knows.
    folder
        Where those that come with a package lie.

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
    shipped = shipped_dictionaries(folder)
    if text in shipped:
        return read_dictionary(folder / f"{text}.npz")
    match = _NAME.fullmatch(text)
    if match is not None:
        return _of_family(text, match)
    if not Path(name).is_file():
        raise InputError(
            f"{text!r} is neither a file nor a known dictionary; give an .npz or .npy file, "
            f"{'one of ' + ', '.join(shipped) + ', ' if shipped else ''}or a family such as dct-32x9, gabor-32x9, "
            "wavelet-32x9, random-32x9."
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


def family_filters(family: str, n: int, size: int, *, seed: int = 0) -> torch.Tensor:
    """Filters of a family.

    Parameters
    ----------
    family
        ``"dct"``, ``"gabor"``, ``"wavelet"`` or ``"random"``.
    n, size
        Their number and odd size.
    seed
        Of random ones.

    Returns
    -------
    torch.Tensor
        Real float32 ``(n, size, size)``, of unit norm.

    Raises
    ------
    ValueError
        If the family has no such filters.
    """
    return random_filters(n, size, seed=seed) if family == "random" else _FAMILIES[family](n, size)


def _of_family(name: str, match: re.Match[str]) -> Dictionary:
    family, n, size, seed = match[1], int(match[2]), int(match[3]), match[4]
    if seed is not None and family != "random":
        raise InputError(f"{name}: {family} filters have no seed; leave out -{seed}.")
    try:
        return Dictionary(name, family_filters(family, n, size, seed=int(seed or 0)))
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error


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


def _with_suffix(path: Path | str, suffix: str) -> Path:
    path = Path(path)
    if path.suffix != suffix:
        raise InputError(f"{path} does not end in {suffix}; give it this ending.")
    return path
