"""What every benchmark shares: interleaved timing, one table, and one JSON object as the last line."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement: process-CPU milliseconds, median over rounds, with the error against the reference beside."""

    case: str
    what: str
    candidate: str
    ms: float
    error: float


def arguments(description: str, parts: Sequence[str] = ()) -> argparse.Namespace:
    """Options that every benchmark has; and which of its parts to run, all by default."""
    parser = argparse.ArgumentParser(description=description)
    if parts:
        parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="what to run")
    parser.add_argument("--quick", action="store_true", help="smaller cases, under 40 seconds")
    parser.add_argument("--threads", type=int, default=1, help="number of threads (1: ratios hold across machines)")
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    return parsed


def measure(
    case: str,
    what: str,
    candidates: Mapping[str, Callable[[], torch.Tensor]],
    reference: torch.Tensor,
    *,
    n_rounds: int = 7,
) -> list[Row]:
    """Time candidates in turn, A B C A B C …, so that all of them see the same machine.

    Parameters
    ----------
    case, what
        Names for the table.
    candidates
        Name → a call that does the work once and returns its result.
    reference
        What the result should be.
    n_rounds
        Counted rounds, after one that is not.

    Returns
    -------
    list of Row
        Median process-CPU time and relative error ‖result − reference‖ / ‖reference‖ of each candidate.
    """
    errors = {name: _relative_error(call(), reference) for name, call in candidates.items()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(n_rounds):
        for name, call in candidates.items():
            start = time.process_time()
            call()
            times[name].append(1e3 * (time.process_time() - start))
    return [Row(case, what, name, statistics.median(times[name]), errors[name]) for name in candidates]


def report(benchmark: str, rows: list[Row], *, ours: str = "ours") -> None:
    """Print the table, and as the last line the JSON object with rows and ratios (peer's time over ours)."""
    print(f"{'case':<28}{'what':<22}{'candidate':<14}{'ms':>10}{'error':>12}{'ratio':>9}")
    own = {(row.case, row.what): row.ms for row in rows if row.candidate == ours}
    ratios = {}
    for row in rows:
        ratio = row.ms / own[row.case, row.what]
        if row.candidate != ours:
            ratios[f"{row.case}/{row.what}/{row.candidate}"] = round(ratio, 2)
        print(f"{row.case:<28}{row.what:<22}{row.candidate:<14}{row.ms:>10.2f}{row.error:>12.1e}{ratio:>9.2f}")
    listed = [
        {
            "case": row.case,
            "what": row.what,
            "candidate": row.candidate,
            "ms": round(row.ms, 3),
            "error": float(f"{row.error:.2e}"),
        }
        for row in rows
    ]
    print(json.dumps({"benchmark": benchmark, "threads": torch.get_num_threads(), "rows": listed, "ratios": ratios}))


def report_quality(benchmark: str, rows: list[dict[str, Any]]) -> None:
    """Print a table of a quality study, and as the last line the JSON object with its rows."""
    names = list(rows[0])
    print("".join(f"{name:<22}" for name in names))
    for row in rows:
        print("".join(f"{row[name]!s:<22}" for name in names))
    print(json.dumps({"benchmark": benchmark, "threads": torch.get_num_threads(), "rows": rows}))


def declare_torchvision_operators() -> None:
    """Let packages import torchvision beside a CPU torch: declare the two operators that it expects to find."""
    for name, signature in (
        ("nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
        ("qnms", "(Tensor dets) -> Tensor"),
    ):
        try:
            torch.library.define(f"torchvision::{name}", signature)
        except RuntimeError:
            return


def _relative_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    return float((result - reference).norm() / reference.norm())
