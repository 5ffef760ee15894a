"""Running a command line in the test's own process."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest


class Outcome:
    """What a command printed and how it ended; white space in ``err`` is folded."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, " ".join(err.split())


Run = Callable[..., Outcome]


def runner(main: Callable[[Sequence[str]], None], capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs ``main`` with its words and tells the outcome."""

    def run(*words: object) -> Outcome:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        printed = capsys.readouterr()
        return Outcome(int(end.value.code or 0), printed.out, printed.err)

    return run


def files_in(folder: Path) -> set[str]:
    """Names of everything in a folder."""
    return {path.name for path in folder.iterdir()}
