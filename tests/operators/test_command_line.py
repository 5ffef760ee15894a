"""What the command lines of all modalities share, where no command of theirs shows it."""

import os

import pytest

from operators.command_line import command_line, run


def policy_after_a_command() -> str:
    app = command_line("tool", "A tool.")
    app.command()(lambda: None)
    with pytest.raises(SystemExit):
        run(app, [])
    return os.environ["OMP_WAIT_POLICY"]


def test_waiting_threads_sleep_unless_a_person_decides_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert policy_after_a_command() == "active"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert policy_after_a_command() == "passive"
