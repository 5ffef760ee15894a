"""Methods compared on many images: a row for each, a summary that says what its numbers mean, and pictures."""

import csv
import hashlib
import json
import platform
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch

from operators.checkpoint import as_json, load_checkpoint, read_tensors, write_tensors
from operators.configuration import Candidate, Condition, EvaluationConfig
from operators.device import usable_device
from operators.dictionaries import Dictionary
from operators.errors import InputError
from operators.io.files import replacing
from operators.io.picture import write_comparison
from operators.model_building import Models
from operators.priors.csc import ConvolutionalSparseCoding
from operators.reconstructor import Reconstructor

Progress = Callable[[int, int], None]
Row = dict[str, Any]
C = TypeVar("C", bound=Condition)
M = TypeVar("M", bound="Adjustable")


@dataclass(frozen=True, slots=True, eq=False)
class Contestant:
    """A method, ready to run.

    Parameters
    ----------
    name
        How it is called in the table.
    run
        From the data of a `Case` to the image ``(y, x)`` that is compared with its target, on any device.
    identity
        All that its results depend on, as far as JSON can hold it.
    """

    name: str
    run: Callable[[Any], torch.Tensor]
    identity: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """An image, what was measured of it, and what of it counts.

    Parameters
    ----------
    data
        What contestants get; its method ``to`` brings it to a device.
    target
        The truth, real ``(y, x)``.
    mask
        1 = foreground, bool ``(y, x)``; the case with most of it is the one that is shown.
    facts
        Where it is from, in the order of the table: its ``patient`` and what else there is to know.
    """

    data: Any
    target: torch.Tensor
    mask: torch.Tensor
    facts: Row


class Evaluation(ABC, Generic[C]):
    """A comparison of methods; a subclass knows how cases are made and what is measured.

    Parameters
    ----------
    config
        What is compared, and on what.
    device
        Where to compute.

    Attributes
    ----------
    definitions
        What each metric, and each word in the names of columns, means.
    columns
        The metrics of the table.
    overview
        Those of which the summary has a table of all methods and conditions.
    by_patient
        Whether the summary has the means of each person.
    picture
        Further arguments of `operators.io.picture.write_comparison`.

    Raises
    ------
    InputError
        If the device cannot be used.
    """

    definitions: ClassVar[Mapping[str, str]]
    columns: ClassVar[Sequence[str]]
    overview: ClassVar[Sequence[str]]
    by_patient: ClassVar[bool] = False
    picture: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, config: EvaluationConfig, device: str | torch.device = "cpu") -> None:
        self.config = config
        self.device = usable_device(device)

    @abstractmethod
    def contestant(self, candidate: Candidate) -> Contestant:
        """Make a method ready to run."""

    @abstractmethod
    def cases(self, condition: C) -> list[Case]:
        """Make the cases of a condition, ``config.n_cases`` of them."""

    @abstractmethod
    def measure(self, estimate: torch.Tensor, case: Case) -> Row:
        """Measure an image ``(y, x)``: a number for each column."""

    @abstractmethod
    def caption(self, estimate: torch.Tensor, case: Case) -> str:
        """How good an image is, in a line below its picture."""

    def run(self, folder: Path | str, *, command: str = "", progress: Progress | None = None) -> list[Row]:
        """Compare, or go on with a comparison that was stopped: a kill costs one method on one condition.

        The folder gets ``metrics.csv`` (a row for each slice), ``summary.json`` and ``summary.md``, a picture of one
        case for each condition, and ``parts``, from which a later call takes what it has computed before; whatever
        changes in a method, its weights, its condition or the version of the software is computed anew.

        Parameters
        ----------
        folder
            Where the results go; created if need be.
        command
            The command that was given, for the summary.
        progress
            Called with (reconstructions done, reconstructions in all).

        Returns
        -------
        list of dict
            The summary: condition, method, number of slices, and the mean and standard deviation of each metric.

        Raises
        ------
        InputError
            If a method, a checkpoint or an image cannot be used, or the folder cannot be written to.
        """
        folder = Path(folder)
        try:
            (folder / "parts").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be the folder of an evaluation ({error.strerror}).") from error
        contestants = [self.contestant(candidate) for candidate in self.config.methods]
        n_all = len(self.config.conditions) * len(contestants) * self.config.n_cases
        rows: list[Row] = []
        n_done = 0
        for number, condition in enumerate(self.config.conditions, start=1):
            cases = self.cases(condition)  # type: ignore[arg-type]  # a subclass takes conditions of its own config
            columns: dict[str, torch.Tensor] = {}
            for contestant in contestants:
                part = self._part(contestant, condition, cases, folder, _from(progress, n_done, n_all))
                n_done += len(cases)
                rows += part["rows"]
                columns[contestant.name] = part["image"]
            self._write_picture(folder / f"{number:02}-{_file_name(condition.name)}.png", columns, cases[_shown(cases)])
            summary = self._summarised(rows)
            self._write_tables(folder, rows, summary, command)
        return summary

    def _part(
        self,
        contestant: Contestant,
        condition: Condition,
        cases: Sequence[Case],
        folder: Path,
        progress: Progress,
    ) -> dict[str, Any]:
        """Rows of one method on one condition and its image of the case to be shown: as stored, or computed now."""
        data = self.config.data
        described = {
            "method": contestant.identity,
            "condition": asdict(condition),
            "images": {
                "matrix": data.matrix,
                "sources": [asdict(source) for source in data.sources if source.patient in condition.patients],
            },
            "n_cases": self.config.n_cases,
            "seed": self.config.seed,
            "version": version("mrctrecon"),
        }
        identity = json.dumps(as_json("evaluation", described), sort_keys=True)
        path = folder / "parts" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.pt"
        if path.exists():
            progress(len(cases), len(cases))
            return read_tensors(path)
        rows, image = [], torch.empty(0)
        for number, case in enumerate(cases):
            estimate, seconds = _timed(contestant.run, case.data, self.device)
            about = {"condition": condition.name, "in_distribution": condition.in_distribution}
            about |= {"method": contestant.name, **case.facts}
            rows.append(about | self.measure(estimate, case) | {"seconds": seconds})
            if number == _shown(cases):
                image = estimate
            progress(number + 1, len(cases))
        part = {"identity": identity, "rows": rows, "image": image}
        write_tensors(path, part, overwrite=True)
        return part

    def _summarised(self, rows: Sequence[Row]) -> list[Row]:
        summary = []
        for (condition, method), group in _grouped(rows, "condition", "method").items():
            row: Row = {
                "condition": condition,
                "in_distribution": group[0]["in_distribution"],
                "method": method,
                "n_slices": len(group),
                **self._spread_over(group),
            }
            if self.by_patient:
                people = _grouped(group, "patient")
                row["patients"] = {
                    name: {"n_slices": len(own), **self._spread_over(own)} for (name,), own in people.items()
                }
            summary.append(row)
        return summary

    def _spread_over(self, rows: Sequence[Row]) -> Row:
        return {name: _spread_of([row[name] for row in rows]) for name in (*self.columns, "seconds")}

    def _write_tables(self, folder: Path, rows: Sequence[Row], summary: Sequence[Row], command: str) -> None:
        with (
            replacing(folder / "metrics.csv", overwrite=True) as path,
            path.open("w", newline="", encoding="utf-8") as stream,
        ):
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        device = self.device
        facts = {
            "command": command,
            "versions": {
                "mrctrecon": version("mrctrecon"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "data": self.config.data.description,
            "definitions": {**self.definitions, "seconds": "wall time of one slice, one at a time"},
        }
        with replacing(folder / "summary.json", overwrite=True) as path:
            path.write_text(json.dumps({**facts, "summary": summary}, indent=2) + "\n", encoding="utf-8")
        with replacing(folder / "summary.md", overwrite=True) as path:
            path.write_text(self._markdown(facts, summary), encoding="utf-8")

    def _markdown(self, facts: Mapping[str, Any], summary: Sequence[Row]) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
        lines = [f"Command: `{facts['command']}`", "", f"Versions: {versions}; device: {facts['device']}", ""]
        lines += [f"- {name}: {definition}" for name, definition in facts["definitions"].items()]
        for name in self.overview:
            lines += ["", f"### {name}, mean over slices", "", *_overview(summary, name)]
        for (condition,), group in _grouped(summary, "condition").items():
            where = "in" if group[0]["in_distribution"] else "out of"
            people = group[0].get("patients", {})
            named = [f"{name} (of validation)" if name in self.config.data.validation else name for name in people]
            whose = f" of {', '.join(named)}" if people else ""
            lines += [
                "",
                f"### {condition} ({where} distribution, {group[0]['n_slices']} slices{whose}, mean ± sd)",
                "",
            ]
            lines += self._table("method", {row["method"]: row for row in group})
            if len(people) > 1:
                own = {f"{row['method']}, {name}": row["patients"][name] for row in group for name in people}
                lines += ["", *self._table("method, person", own)]
        return "\n".join(lines) + "\n"

    def _table(self, heading: str, rows: Mapping[str, Row]) -> list[str]:
        names = (*self.columns, "seconds")
        lines = [_table_line([heading, *names]), _table_line(["---"] * (len(names) + 1))]
        for name, row in rows.items():
            lines.append(_table_line([name, *(f"{row[c]['mean']:.4g} ± {row[c]['sd']:.2g}" for c in names)]))
        return lines

    def _write_picture(self, path: Path, columns: Mapping[str, torch.Tensor], case: Case) -> None:
        """One case as every method shows it, beside the truth."""
        texts = {name: self.caption(image, case) for name, image in columns.items()}
        shown = {**columns, "truth": case.target}
        write_comparison(path, shown, target="truth", metrics=texts, overwrite=True, **self.picture)


class Adjustable(Protocol):
    """A classical method with the strength and the number of iterations that it has by default."""

    @property
    def regularisation(self) -> float:
        """Its strength."""

    @property
    def n_iterations(self) -> int:
        """Number of its iterations."""


def chosen_method(candidate: Candidate, methods: Mapping[str, M]) -> tuple[M, float, int]:
    """The classical method of a candidate, its strength and its number of iterations.

    Parameters
    ----------
    candidate
        What is evaluated.
    methods
        The methods there are.

    Returns
    -------
    method, float, int
        The method; the candidate's strength and number of iterations, or else the method's.

    Raises
    ------
    InputError
        If there is no such method.
    """
    if candidate.method is None or candidate.method not in methods:
        raise InputError(f"The method {candidate.method!r} is unknown; choose one of {', '.join(methods)}.")
    method = methods[candidate.method]
    strength = method.regularisation if candidate.regularisation is None else candidate.regularisation
    return method, strength, candidate.n_iterations or method.n_iterations


def changed_model(
    candidate: Candidate, path: Path, models: Models, load_dictionary: Callable[[str], Dictionary]
) -> tuple[Reconstructor, str]:
    """The model of a checkpoint with the changes that a candidate asks for, and the digest of its weights.

    Parameters
    ----------
    candidate
        What is evaluated.
    path
        Its checkpoint.
    models
        The models there are.
    load_dictionary
        Finds a dictionary.

    Returns
    -------
    Reconstructor, str
        The model in evaluation mode, and the digest.

    Raises
    ------
    InputError
        If the checkpoint cannot be used, or it has no dictionary to be exchanged.
    """
    checkpoint = load_checkpoint(path)
    model = models.restore(replace(checkpoint, config={**checkpoint.config, **candidate.arguments}))
    if candidate.dictionary is None and not candidate.permute_filters:
        return model, checkpoint.sha256
    if not isinstance(model, ConvolutionalSparseCoding):
        raise InputError(f"{candidate.name!r} is of kind {checkpoint.kind!r}, which has no dictionary to be exchanged.")
    filters = model.filters if candidate.dictionary is None else load_dictionary(candidate.dictionary).filters
    if candidate.permute_filters:
        filters = filters[torch.randperm(len(filters), generator=torch.Generator().manual_seed(0))]
    return model.with_filters(filters), checkpoint.sha256


def largest_object(inside: torch.Tensor, n_closing: int) -> torch.Tensor:
    """The largest connected piece of a mask, its gaps closed and its holes filled.

    Parameters
    ----------
    inside
        Bool ``(y, x)``.
    n_closing
        Half the width of gaps that are closed, in pixels.

    Returns
    -------
    torch.Tensor
        Bool ``(y, x)``.

    Raises
    ------
    InputError
        If nothing is inside.
    """
    from scipy import ndimage

    own = inside.cpu().numpy()
    closed = ndimage.binary_closing(own, iterations=n_closing) | own
    pieces, n_pieces = ndimage.label(ndimage.binary_fill_holes(closed))
    if n_pieces == 0:
        raise InputError("An image of the evaluation is empty; leave its slice out.")
    sizes = ndimage.sum_labels(closed, pieces, range(1, n_pieces + 1))
    return torch.from_numpy(pieces == 1 + int(sizes.argmax())).to(inside.device)


def _shown(cases: Sequence[Case]) -> int:
    """The case that is shown as a picture: the one with the largest foreground."""
    return max(range(len(cases)), key=lambda number: int(cases[number].mask.sum()))


def _timed(run: Callable[[Any], torch.Tensor], data: Any, device: torch.device) -> tuple[torch.Tensor, float]:
    moved = data.to(device)
    start = time.perf_counter()
    estimate = run(moved).cpu()  # the copy waits for the device
    return estimate, time.perf_counter() - start


def _grouped(rows: Sequence[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _spread_of(values: Sequence[float]) -> dict[str, float]:
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else 0.0}


def _overview(summary: Sequence[Row], metric: str) -> list[str]:
    """One metric, a row for each method and a column for each condition."""
    conditions, methods = (list(dict.fromkeys(row[key] for row in summary)) for key in ("condition", "method"))
    means = {(row["method"], row["condition"]): row[metric]["mean"] for row in summary}
    lines = [_table_line(["method", *conditions]), _table_line(["---"] * (len(conditions) + 1))]
    return lines + [_table_line([m, *(f"{means[m, condition]:.4g}" for condition in conditions)]) for m in methods]


def _table_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.=-]+", "-", name).strip("-")


def _from(progress: Progress | None, n_before: int, n_all: int) -> Progress:
    def report(n_done: int, n_total: int) -> None:
        if progress is not None:
            progress(n_before + n_done, n_all)

    return report
