"""Methods compared on many scans: a row for each slice, a summary that says what its numbers mean, and pictures."""

import csv
import hashlib
import json
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from mrirecon.config import Candidate, Condition, Data, EvaluationConfig
from mrirecon.datasets import Batch, Slice, load_slices, operator_of, scan, spread
from mrirecon.dictionaries import load_dictionary
from mrirecon.learned import checkpoint_path
from mrirecon.models import model_of
from mrirecon.reconstruction import METHODS
from operators.checkpoint import as_json, load_checkpoint, read_tensors, write_tensors
from operators.device import usable_device
from operators.errors import InputError
from operators.functionals import blur, mse, nrmse, psnr_slice, ssim_uniform_7x7
from operators.io.files import replacing
from operators.io.picture import write_comparison
from operators.priors.csc import ConvolutionalSparseCoding
from operators.reconstructor import Reconstructor

Progress = Callable[[int, int], None]
Row = dict[str, Any]
_Run = Callable[[Batch], torch.Tensor]

_FULL_SCALE = 10.0
_MASK_THRESHOLD, _MASK_CLOSING = 0.05, 3
METRICS: Mapping[str, str] = {
    "ssim": "structural similarity of magnitudes, uniform window 7×7, sample covariance n/(n − 1), K₁ = 0.01, "
    "K₂ = 0.03, data range: maximum of the target slice",
    "mse": f"mean squared error of magnitudes, scaled so that the maximum of the target slice is {_FULL_SCALE:g}",
    "nrmse": "‖estimate − target‖ / ‖target‖ of magnitudes",
    "psnr_db": "PSNR of magnitudes in dB, data range: maximum of the target slice",
    "blur": "no-reference blur of Crété-Roffet, 0 sharp to 1 blurred, of the estimate's magnitude",
}
"""Name → definition; with ``_masked`` the same inside `foreground`."""
_MASK_DEFINITION = (
    f"masked: where the target exceeds {100 * _MASK_THRESHOLD:g} % of its file's full scale, closed by {_MASK_CLOSING} "
    "pixels, holes filled, largest piece; for blur, the rest of the image is set to 0"
)
_COLUMNS = [name + suffix for name in METRICS for suffix in ("", "_masked")]
_OVERVIEW = ("ssim_masked", "mse_masked", "ssim", "mse", "blur_masked")


def evaluate(
    config: EvaluationConfig,
    folder: Path | str,
    *,
    device: str | torch.device = "cpu",
    command: str = "",
    progress: Progress | None = None,
) -> list[Row]:
    """Compare methods, or go on with a comparison that was stopped: a kill costs one method on one condition.

    The folder gets ``metrics.csv`` (a row for each slice), ``summary.json`` and ``summary.md``, a picture of one case
    for each condition, and ``parts``, from which a later call takes what it has computed before; whatever changes in a
    method, its weights, its condition or the version of the software is computed anew.

    Parameters
    ----------
    config
        What is compared, and on what.
    folder
        Where the results go; created if need be.
    device
        Where to compute.
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
    target_device = usable_device(device)
    contestants = [_contestant(candidate, target_device) for candidate in config.methods]
    n_all = len(config.conditions) * len(contestants) * config.n_cases
    rows: list[Row] = []
    n_done = 0
    for number, condition in enumerate(config.conditions, start=1):
        cases = _cases(condition, config)
        columns: dict[str, torch.Tensor] = {}
        for contestant in contestants:
            n_before = n_done
            part = _part(contestant, condition, config, cases, folder, target_device, _from(progress, n_before, n_all))
            n_done += len(cases)
            rows += part["rows"]
            columns[contestant.name] = part["image"]
        _write_picture(folder / f"{number:02}-{_file_name(condition.name)}.png", columns, cases[_shown(cases)])
        summary = _summarised(rows)
        _write_tables(folder, rows, summary, config, command, target_device)
    return summary


def foreground(target: torch.Tensor) -> torch.Tensor:
    """Where an image shows something: above 5 % of full scale, closed, holes filled, the largest piece.

    Parameters
    ----------
    target
        Magnitude, real ``(y, x)``; full scale is 1.

    Returns
    -------
    torch.Tensor
        Bool ``(y, x)``.

    Raises
    ------
    InputError
        If nothing is above.
    """
    from scipy import ndimage

    above = (target > _MASK_THRESHOLD).cpu().numpy()
    closed = ndimage.binary_closing(above, iterations=_MASK_CLOSING) | above
    pieces, n_pieces = ndimage.label(ndimage.binary_fill_holes(closed))
    if n_pieces == 0:
        raise InputError("An image of the evaluation is empty; leave its slice out.")
    sizes = ndimage.sum_labels(closed, pieces, range(1, n_pieces + 1))
    return torch.from_numpy(pieces == 1 + int(sizes.argmax())).to(target.device)


@dataclass(frozen=True, slots=True, eq=False)
class _Contestant:
    """A method, ready to run, and all that its results depend on."""

    name: str
    run: _Run
    identity: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class _Case:
    """A scan, where it is from, and what of it counts."""

    slice: Slice
    seed: int
    batch: Batch
    mask: torch.Tensor


def _contestant(candidate: Candidate, device: torch.device) -> _Contestant:
    described = asdict(candidate)
    if candidate.checkpoint is not None:
        model, digest = _model(candidate)
        return _Contestant(candidate.name, _runner(model.to(device)), described | {"checkpoint": digest})
    if candidate.method is None or candidate.method not in METHODS:
        raise InputError(f"The method {candidate.method!r} is unknown; choose one of {', '.join(METHODS)}.")
    method = METHODS[candidate.method]
    strength = method.regularisation if candidate.regularisation is None else candidate.regularisation
    n_iterations = candidate.n_iterations or method.n_iterations

    def run(batch: Batch) -> torch.Tensor:
        return method.run(operator_of(batch), batch.y, float(batch.noise_std), strength, n_iterations)

    resolved = {"regularisation": strength, "n_iterations": n_iterations}
    return _Contestant(candidate.name, run, described | resolved)


def _runner(model: Reconstructor) -> _Run:
    def run(batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            return model(batch.y, operator_of(batch), batch.noise_std)

    return run


def _model(candidate: Candidate) -> tuple[Reconstructor, str]:
    """The model of a checkpoint with the changes asked for, and the digest of its weights."""
    checkpoint = load_checkpoint(checkpoint_path(candidate.checkpoint or ""))
    model = model_of(replace(checkpoint, config={**checkpoint.config, **candidate.arguments}))
    if candidate.dictionary is None and not candidate.permute_filters:
        return model, checkpoint.sha256
    if not isinstance(model, ConvolutionalSparseCoding):
        raise InputError(f"{candidate.name!r} is of kind {checkpoint.kind!r}, which has no dictionary to be exchanged.")
    filters = model.filters if candidate.dictionary is None else load_dictionary(candidate.dictionary).filters
    if candidate.permute_filters:
        filters = filters[torch.randperm(len(filters), generator=torch.Generator().manual_seed(0))]
    return model.with_filters(filters), checkpoint.sha256


def _cases(condition: Condition, config: EvaluationConfig) -> list[_Case]:
    data = config.data
    slices = load_slices(
        data.sources, data.matrix, data.folder, patients=condition.patients, contrasts=condition.contrasts
    )
    cases = []
    for seed, chosen in enumerate(spread(slices, config.n_cases), start=config.seed):
        batch = scan([chosen.image], condition.scenario, torch.Generator().manual_seed(seed))
        cases.append(_Case(chosen, seed, batch, foreground(chosen.image.abs())))
    return cases


def _part(
    contestant: _Contestant,
    condition: Condition,
    config: EvaluationConfig,
    cases: Sequence[_Case],
    folder: Path,
    device: torch.device,
    progress: Progress,
) -> dict[str, Any]:
    """Rows of one method on one condition and its image of the case to be shown: as stored, or computed now."""
    identity = json.dumps(
        as_json(
            "evaluation",
            {
                "method": contestant.identity,
                "condition": asdict(condition),
                "images": _images(config.data, condition),
                "n_cases": config.n_cases,
                "seed": config.seed,
                "version": version("mrctrecon"),
            },
        ),
        sort_keys=True,
    )
    path = folder / "parts" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.pt"
    if path.exists():
        progress(len(cases), len(cases))
        return read_tensors(path)
    rows, image = [], torch.empty(0)
    for number, case in enumerate(cases):
        magnitude, seconds = _timed(contestant.run, case.batch, device)
        rows.append(_row(condition, contestant.name, case, magnitude) | {"seconds": seconds})
        if number == _shown(cases):
            image = magnitude
        progress(number + 1, len(cases))
    part = {"identity": identity, "rows": rows, "image": image}
    write_tensors(path, part, overwrite=True)
    return part


def _shown(cases: Sequence[_Case]) -> int:
    """The case that is shown as a picture: the one with the largest foreground."""
    return max(range(len(cases)), key=lambda number: int(cases[number].mask.sum()))


def _images(data: Data, condition: Condition) -> dict[str, Any]:
    shown = [asdict(source) for source in data.sources if source.patient in condition.patients]
    return {"matrix": data.matrix, "sources": shown}


def _timed(run: _Run, batch: Batch, device: torch.device) -> tuple[torch.Tensor, float]:
    moved = batch.to(device)
    start = time.perf_counter()
    magnitude = run(moved)[0].abs().cpu()  # the copy waits for the device
    return magnitude, time.perf_counter() - start


def _row(condition: Condition, method: str, case: _Case, estimate: torch.Tensor) -> Row:
    target = case.batch.target[0].abs()
    peak = target.amax()
    unit = _FULL_SCALE / peak
    row: Row = {
        "condition": condition.name,
        "in_distribution": condition.in_distribution,
        "method": method,
        "patient": case.slice.patient,
        "contrast": case.slice.contrast,
        "slice": case.slice.number,
        "seed": case.seed,
    }
    for suffix, mask in (("", None), ("_masked", case.mask)):
        row |= {
            f"ssim{suffix}": float(ssim_uniform_7x7(estimate, target, peak, mask)),
            f"mse{suffix}": float(mse(unit * estimate, unit * target, mask)),
            f"nrmse{suffix}": float(nrmse(estimate, target, mask)),
            f"psnr_db{suffix}": float(psnr_slice(estimate, target, mask)),
            f"blur{suffix}": float(blur(estimate if mask is None else estimate * mask)),
        }
    return row


def _summarised(rows: Sequence[Row]) -> list[Row]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["condition"], row["method"]), []).append(row)
    return [
        {
            "condition": condition,
            "in_distribution": group[0]["in_distribution"],
            "method": method,
            "n_slices": len(group),
            **{name: _spread_of([row[name] for row in group]) for name in (*_COLUMNS, "seconds")},
        }
        for (condition, method), group in groups.items()
    ]


def _spread_of(values: Sequence[float]) -> dict[str, float]:
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else 0.0}


def _write_tables(
    folder: Path,
    rows: Sequence[Row],
    summary: Sequence[Row],
    config: EvaluationConfig,
    command: str,
    device: torch.device,
) -> None:
    with (
        replacing(folder / "metrics.csv", overwrite=True) as path,
        path.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    facts = {
        "command": command,
        "versions": {
            "mrctrecon": version("mrctrecon"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "data": config.data.description,
        "definitions": {**METRICS, "masked": _MASK_DEFINITION, "seconds": "wall time of one slice, one at a time"},
    }
    with replacing(folder / "summary.json", overwrite=True) as path:
        path.write_text(json.dumps({**facts, "summary": summary}, indent=2) + "\n", encoding="utf-8")
    with replacing(folder / "summary.md", overwrite=True) as path:
        path.write_text(_markdown(facts, summary), encoding="utf-8")


def _markdown(facts: Mapping[str, Any], summary: Sequence[Row]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    lines = [f"Command: `{facts['command']}`", "", f"Versions: {versions}; device: {facts['device']}", ""]
    lines += [f"- {name}: {definition}" for name, definition in facts["definitions"].items()]
    for name in _OVERVIEW:
        lines += ["", f"### {name}, mean over slices", "", *_overview(summary, name)]
    for condition in dict.fromkeys(row["condition"] for row in summary):
        group = [row for row in summary if row["condition"] == condition]
        where = "in" if group[0]["in_distribution"] else "out of"
        lines += ["", f"### {condition} ({where} distribution, {group[0]['n_slices']} slices, mean ± sd)", ""]
        lines += [_table_line(["method", *_COLUMNS, "seconds"]), _table_line(["---"] * (len(_COLUMNS) + 2))]
        for row in group:
            values = [f"{row[name]['mean']:.4g} ± {row[name]['sd']:.2g}" for name in (*_COLUMNS, "seconds")]
            lines.append(_table_line([row["method"], *values]))
    return "\n".join(lines) + "\n"


def _overview(summary: Sequence[Row], metric: str) -> list[str]:
    """One metric, a row for each method and a column for each condition."""
    conditions, methods = (list(dict.fromkeys(row[key] for row in summary)) for key in ("condition", "method"))
    means = {(row["method"], row["condition"]): row[metric]["mean"] for row in summary}
    lines = [_table_line(["method", *conditions]), _table_line(["---"] * (len(conditions) + 1))]
    return lines + [_table_line([m, *(f"{means[m, condition]:.4g}" for condition in conditions)]) for m in methods]


def _table_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _write_picture(path: Path, columns: Mapping[str, torch.Tensor], case: _Case) -> None:
    """One case as every method shows it, beside the truth."""
    target = case.batch.target[0].abs()
    peak = target.amax()
    texts = {
        name: f"{float(psnr_slice(image, target)):.1f} dB · SSIM {float(ssim_uniform_7x7(image, target, peak)):.3f}"
        for name, image in columns.items()
    }
    write_comparison(path, {**columns, "truth": target}, target="truth", metrics=texts, overwrite=True)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.=-]+", "-", name).strip("-")


def _from(progress: Progress | None, n_before: int, n_all: int) -> Progress:
    def report(n_done: int, n_total: int) -> None:
        if progress is not None:
            progress(n_before + n_done, n_all)

    return report
