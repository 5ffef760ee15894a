"""The report of a study as files: a page that opens by double click, and its numbers as CSV and JSON."""

import csv
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from operators.errors import InputError
from operators.io.files import replacing
from operators.robustness.page import number_names, page
from operators.robustness.statistics import DEFINITIONS, Analysis, analyse
from operators.robustness.study import Study

_PAGE, _DESCRIPTION = "index.html", "study.json"


def write_report(
    folder: Path | str, study: Study, *, n_resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Analysis:
    """Write ``index.html``, which needs no other file and no network, and its numbers as CSV and JSON.

    Parameters
    ----------
    folder
        Where the files go; created if need be. Files of an earlier report are replaced.
    study
        What was measured.
    n_resamples, confidence, seed
        As for `operators.robustness.bootstrap_gap`.

    Returns
    -------
    Analysis
        The statistics that the page shows.

    Raises
    ------
    InputError
        If a file cannot be written.
    ValueError
        As `operators.robustness.analyse` does.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be the folder of a report ({error.strerror}).") from error
    analysis = analyse(study, n_resamples=n_resamples, confidence=confidence, seed=seed)
    tables = {name: rows for name, rows in _tables(study, analysis).items() if rows}
    versions = {name: version(name) for name in ("mrctrecon", "torch", "numpy")} | {"python": platform.python_version()}
    facts = {**study.facts, "versions": ", ".join(f"{name} {number}" for name, number in versions.items())}
    facts["bootstrap"] = f"{n_resamples} resamples, {100 * confidence:g} % intervals, seed {seed}"
    for name, rows in tables.items():
        _write_csv(folder / name, rows)
    _write_text(folder / _DESCRIPTION, json.dumps(_description(study, analysis, facts), indent=2) + "\n")
    _write_text(folder / _PAGE, page(study, analysis, facts, [*tables, _DESCRIPTION]))
    return analysis


def _tables(study: Study, analysis: Analysis) -> dict[str, list[dict[str, Any]]]:
    levels = {(shift.name, level.strength): level for shift in study.shifts for level in shift.levels}
    scores = []
    for score in study.scores:
        level = levels[score.shift, score.strength]
        about = {"shift": score.shift, "strength": score.strength, "label": level.label}
        about |= {"in_distribution": level.in_distribution, "method": score.method, "case": score.case}
        scores.append(about | {measure.name: score.values[measure.name] for measure in study.measures})
    return {
        "scores.csv": scores,
        "curves.csv": [asdict(point) for point in analysis.points],
        "slopes.csv": [asdict(slope) for slope in analysis.slopes],
        "gaps.csv": [asdict(gap) for gap in analysis.gaps],
        "ranks.csv": [asdict(rank) for rank in analysis.ranks],
        "checks.csv": _check_rows(study),
    }


def _check_rows(study: Study) -> list[dict[str, Any]]:
    """A row for each number of each check."""
    return [
        {
            "method": checked.method,
            "case": checked.case,
            "check": checked.result.name,
            "number": number,
            "value": getattr(checked.result, number),
        }
        for checked in study.checks
        for number in number_names(checked.result)
    ]


def _description(study: Study, analysis: Analysis, facts: Mapping[str, str]) -> dict[str, Any]:
    checks = [
        {"method": c.method, "case": c.case, "check": c.result.name, "meaning": c.result.meaning}
        | {number: getattr(c.result, number) for number in number_names(c.result)}
        for c in study.checks
    ]
    return {
        "title": study.title,
        "data": study.data,
        "command": study.command,
        "facts": dict(facts),
        "definitions": dict(DEFINITIONS) | {c.result.name: c.result.definition for c in study.checks},
        "measures": [asdict(measure) for measure in study.measures],
        "methods": [asdict(method) for method in study.methods],
        "shifts": [asdict(shift) for shift in study.shifts],
        **asdict(analysis),
        "checks": checks,
    }


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with (
        replacing(path, overwrite=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_text(path: Path, text: str) -> None:
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
