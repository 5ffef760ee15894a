"""Damaged files, made from sound ones and read in a worker process with a memory limit.

So a crash or a hang of a library is a failure of the test and not the end of it. A test module with a reader calls
``serve`` where it is run as a script, and starts a ``Worker`` with its own path.
"""

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MEMORY_LIMIT_BYTES = 2**26
GROWTH_LIMIT_BYTES = 2**29
PATIENCE_S = 30.0
HEADER_BYTES = 64


@dataclass
class Worker:
    """A process that reads files, is started when needed, and has to answer in time."""

    folder: Path
    script: str
    name: str = "scan"
    process: Any = field(default=None)

    def read(self, content: bytes, *, companion: str | None = None) -> dict[str, Any]:
        """What came of reading a file: ``outcome``, and ``grown_bytes``, the growth of the worker's memory.

        With ``companion``, a suffix, the first 64 bytes of the content are the file of that suffix beside it.
        """
        path = self.folder / self.name
        path.write_bytes(content[HEADER_BYTES:] if companion else content)
        for other in self.folder.glob(f"{self.name}.*"):
            other.unlink()
        if companion:
            path.with_suffix(companion).write_bytes(content[:HEADER_BYTES])
        return self.ask(path)

    def ask(self, path: Path) -> dict[str, Any]:
        """What came of reading a file or folder that stands already."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", self.script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            )
        try:
            self.process.stdin.write(f"{path}\n".encode())
            self.process.stdin.flush()
            answered, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
            answer = self.process.stdout.readline() if answered else b""
        except BrokenPipeError:
            answer = b""
        if answer:
            return json.loads(answer)
        code = self.stop()
        return {"outcome": f"died with exit status {code}" if answered else "hung", "grown_bytes": 0}

    def stop(self) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.stdin.close()
        try:
            return process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            process.stdout.close()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
        self.stop()


def serve(is_sound: Callable[[str], bool]) -> None:
    """The worker: a path on every line of the standard input, an outcome on every line of the standard output."""
    import resource

    import torch

    from operators.errors import InputError

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing that a library prints may get between the answers
    with open("/proc/self/statm") if os.path.exists("/proc/self/statm") else open(os.devnull) as status:
        pages = status.read().split()
    if pages:
        in_use = int(pages[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + 2 * GROWTH_LIMIT_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = None
    for name in sys.stdin:
        try:
            outcome = "read" if is_sound(name.strip()) else "read, but not finite"
        except InputError as error:
            outcome = "refused" if str(error).strip() else "refused without a word"
        except BaseException as error:
            outcome = f"raised {type(error).__name__}: {error}"
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        before = used if before is None else before
        print(json.dumps({"outcome": outcome, "grown_bytes": used - before}), file=answers, flush=True)


SPECIAL = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
PLACES = st.one_of(st.floats(0, 1), st.floats(0, 0.1))


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """A few edits of a file; places are given as fractions of its length."""
    edit = st.one_of(
        st.tuples(st.just("overwrite"), PLACES, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("number"), PLACES, st.sampled_from(SPECIAL), st.sampled_from((1, 2, 4, 8))),
        st.tuples(st.just("cut"), PLACES),
        st.tuples(st.just("insert"), PLACES, st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("copy"), PLACES, PLACES, st.sampled_from((1, 4, 8, 16, 64, 256))),
    )
    return draw(st.lists(edit, min_size=1, max_size=4))


def edited(content: bytes, changes: list[tuple[Any, ...]]) -> bytes:
    for kind, place, *rest in changes:
        at = min(int(place * len(content)), max(len(content) - 1, 0))
        if kind == "cut":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + rest[0] + content[at:]
        else:
            if kind == "overwrite":
                patch = rest[0]
            elif kind == "number":
                patch = (rest[0] % 256 ** rest[1]).to_bytes(rest[1], "little")
            else:
                start = int(rest[0] * len(content))
                patch = content[start : start + rest[1]]
            content = content[:at] + patch + content[at + len(patch) :]
    return content


def check(answer: dict[str, Any]) -> None:
    assert answer["outcome"] in ("read", "refused")
    assert answer["grown_bytes"] < GROWTH_LIMIT_BYTES


def for_damaged(content: bytes, read: Callable[[bytes], dict[str, Any]], *, max_examples: int = 200) -> None:
    """Check the answers to damaged copies of a file; the same ones in every run."""

    @settings(
        max_examples=max_examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(edits())
    def damaged(changes: list[tuple[Any, ...]]) -> None:
        check(read(edited(content, changes)))

    damaged()
