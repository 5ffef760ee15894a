"""The benchmarks run, and their last line is the JSON that they promise."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(p.name for p in (ROOT / "benchmarks").glob("*.py") if p.name != "harness.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_quick_benchmark_reports_errors_beside_times(script: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "benchmarks" / script, "--quick"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["threads"] == 1
    if "ratios" not in result:  # a quality study
        numbers = [value for row in result["rows"] for value in row.values() if not isinstance(value, str)]
        assert numbers
        assert all(math.isfinite(value) for value in numbers)
        return
    ours = [row for row in result["rows"] if row["candidate"] == "ours"]
    assert ours
    for row in ours:
        assert row["ms"] > 0
        assert math.isfinite(row["error"])
    assert all(ratio > 0 for ratio in result["ratios"].values())
