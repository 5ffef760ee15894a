"""Configurations in TOML, read strictly: every key is known and has its type, or one sentence says which has not.

The tables that all modalities share; theirs add what they know of images and scans.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from operators.checkpoint import as_json
from operators.errors import InputError
from operators.image_sources import ImageSource
from operators.learning import TrainingPlan

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Images, and who of the people in them serves for what.

    Parameters
    ----------
    description
        What the images are and where they are from, in words; it goes into every checkpoint.
    licence
        Licence of weights that are trained on them.
    matrix
        Number of pixels along each side, to which they are resampled.
    train, validation, test
        Names of patients; nobody is in two of them.
    sources
        The files.
    folder
        Where the files are; by default what the environment variable ``MRCTRECON_DATA`` names.

    Raises
    ------
    InputError
        If somebody is in two splits, or in a split but in no source.
    """

    description: str
    licence: str
    matrix: int
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    sources: tuple[ImageSource, ...]
    folder: str | None = None

    def __post_init__(self) -> None:
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        seen: dict[str, str] = {}
        known = {source.patient for source in self.sources}
        for split, patients in splits.items():
            for patient in patients:
                if patient in seen:
                    raise InputError(
                        f"The patient {patient!r} is in {seen[patient]} and in {split}; name everybody once, or the "
                        "result says nothing about new people."
                    )
                if patient not in known:
                    raise InputError(f"The patient {patient!r} of {split} is in no source; the sources show {known}.")
                seen[patient] = split


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is trained.

    Parameters
    ----------
    kind
        Name of a model.
    arguments
        Arguments that build it.
    """

    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(TrainingPlan):
    """How it is trained: `operators.learning.TrainingPlan`, with what makes batches of images.

    Parameters
    ----------
    batch_size
        Number of images of each batch.
    n_validation_cases
        Number of fixed scans for validation.

    Raises
    ------
    InputError
        If a value is out of its range.
    """

    batch_size: int = 4
    n_validation_cases: int = 32

    def __post_init__(self) -> None:
        TrainingPlan.__post_init__(self)
        if self.batch_size < 1 or self.n_validation_cases < 1:
            raise InputError("batch_size and n_validation_cases must be at least 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """A training, complete but for the folder it is kept in.

    Parameters
    ----------
    name
        Name of the weights; the checkpoint is ``name.pt``.
    data
        The images; in the file also the name of a file with this table's keys, relative to the configuration.
    model
        What is trained.
    training
        How.
    """

    name: str
    data: Data
    model: Model
    training: Plan

    def identity(self) -> dict[str, Any]:
        """What defines the training beside its plan, as JSON holds it; where the data lie does not."""
        described = asdict(self)
        del described["training"], described["data"]["folder"]
        return as_json("configuration", described)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A method that is evaluated: a classical one, or a checkpoint.

    Parameters
    ----------
    name
        How it is called in the table.
    method
        Name of a classical method.
    checkpoint
        A checkpoint: a file, or the name of weights that are shipped.
    regularisation, n_iterations
        For a classical method; its own by default.
    arguments
        For a checkpoint: arguments of its model to be changed, such as its number of iterations.
    dictionary
        For a checkpoint: other filters, by name or a file, see `operators.dictionaries.load_dictionary`.
    permute_filters
        For a checkpoint: put the filters into another order.

    Raises
    ------
    InputError
        If it names both a method and a checkpoint or neither, or options of the other.
    """

    name: str
    method: str | None = None
    checkpoint: str | None = None
    regularisation: float | None = None
    n_iterations: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    dictionary: str | None = None
    permute_filters: bool = False

    def __post_init__(self) -> None:
        if (self.method is None) == (self.checkpoint is None):
            raise InputError(f"{self.name!r} needs a method or a checkpoint, and not both.")
        if self.checkpoint is not None and (self.regularisation, self.n_iterations) != (None, None):
            raise InputError(f"{self.name!r} is a checkpoint; give its options as arguments.")
        if self.method is not None and (self.arguments or self.dictionary or self.permute_filters):
            raise InputError(f"{self.name!r} is a classical method; it takes regularisation and n_iterations.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What methods are evaluated on.

    Parameters
    ----------
    name
        How it is called in the table.
    in_distribution
        Whether training covered it.
    patients
        Whose slices.
    """

    name: str
    in_distribution: bool
    patients: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """An evaluation, complete but for the folder of its results.

    Parameters
    ----------
    data
        The images, as in a `TrainingConfig`.
    n_cases
        Number of slices for each condition, at equal distances among all of its slices.
    methods
        What is compared.
    conditions
        On what.
    seed
        Of all that is random in the scans; the same for all conditions and methods.

    Raises
    ------
    InputError
        If two methods or conditions have one name, or a condition shows people who must not be shown.
    """

    data: Data
    n_cases: int
    methods: tuple[Candidate, ...]
    conditions: tuple[Condition, ...]
    seed: int = 0
    shown_splits: ClassVar[tuple[str, ...]] = ("test",)

    def __post_init__(self) -> None:
        if self.n_cases < 1 or not self.methods or not self.conditions:
            raise InputError("An evaluation needs at least one case, one method and one condition.")
        for group in (self.methods, self.conditions):
            names = [entry.name for entry in group]
            for name in names:
                if names.count(name) > 1:
                    raise InputError(f"The name {name!r} is given twice; results are kept by name.")
        for condition in self.conditions:
            strangers = sorted(set(condition.patients) - {p for s in self.shown_splits for p in getattr(self.data, s)})
            if strangers:
                splits = " or ".join(self.shown_splits)
                raise InputError(
                    f"The condition {condition.name!r} shows {strangers[0]!r}, who is not in the {splits} split."
                )


def read_config(path: Path | str, kind: type[T]) -> T:
    """Read a configuration.

    Parameters
    ----------
    path
        The TOML file.
    kind
        A dataclass, such as a `TrainingConfig` or an `EvaluationConfig` of a modality. A text as its ``data`` is the
        name of a file with that table's keys, relative to the configuration.

    Returns
    -------
    T
        The configuration, checked.

    Raises
    ------
    InputError
        If there is no such file, it is no TOML, or a key is unknown, missing, of another type or out of its range.
    """
    path = Path(path)
    table = _read_table(path)
    if isinstance(table.get("data"), str):
        table["data"] = _read_table(path.parent / table["data"])
    return _parsed(kind, table, f"{path}: ", "")


def _read_table(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a configuration in TOML.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}.") from error


def _parsed(kind: Any, value: Any, file: str, key: str) -> Any:
    """The value of a key as the type that is annotated; ``file`` begins every sentence, ``key`` is where it stands."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _parsed_table(kind, value, file, key)
    if origin in (Union, UnionType):
        return _parsed(next(k for k in arguments if k is not NoneType), value, file, key)
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{file}{key} is {value!r}; expected one of {', '.join(map(repr, arguments))}.")
        return value
    if origin is tuple:
        return _parsed_list(arguments, value, file, key)
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, dict):
            raise InputError(f"{file}{key} is {value!r}; expected a table.")
        return {name: _parsed(arguments[1], entry, file, f"{key}.{name}") for name, entry in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{file}{key} is {value!r}; expected {_WORDS[kind]}.")
    return value


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def _parsed_table(kind: Any, value: Any, file: str, key: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{file}{key} is {value!r}; expected a table.")
    hints, prefix = get_type_hints(kind), f"{key}." if key else ""
    known = {entry.name: entry for entry in fields(kind)}
    for name in value:
        if name not in known:
            raise InputError(f"{file}{prefix}{name} is unknown; known here are {', '.join(known)}.")
    for name, entry in known.items():
        if name not in value and entry.default is MISSING and entry.default_factory is MISSING:
            raise InputError(f"{file}{prefix}{name} is missing.")
    values = {name: _parsed(hints[name], entry, file, prefix + name) for name, entry in value.items()}
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{file}{key + ': ' if key else ''}{error}") from error


def _parsed_list(kinds: tuple[Any, ...], value: Any, file: str, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise InputError(f"{file}{key} is {value!r}; expected a list.")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise InputError(f"{file}{key} has {len(value)} entries; expected {len(kinds)}.")
    return tuple(_parsed(k, entry, file, f"{key}[{i}]") for i, (k, entry) in enumerate(zip(kinds, value, strict=True)))
