"""What the README says holds."""

import re
from pathlib import Path

import pytest

from mrirecon import METHODS, cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("name", METHODS)
def test_every_method_stands_in_the_table_with_its_default(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}`.*$", README, flags=re.MULTILINE)
    stated = row.split("|")[-2].strip()
    assert stated == (f"{METHODS[name].regularisation:g}" if METHODS[name].regularisation else "–")


def test_every_option_in_the_commands_exists(capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^ {4}mrirecon (\w+)(.*?)(?:#.*)?$", README, flags=re.MULTILINE)
    assert commands
    for command, words in commands:
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        printed = capsys.readouterr().out
        for option in re.findall(r"--[a-z-]+", words):
            assert option in printed, f"{command} {option}"
