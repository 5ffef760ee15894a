"""What the README says holds."""

import re
from pathlib import Path

import pytest

import ctrecon.cli
import mrirecon.cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


MODALITIES = {"mrirecon": mrirecon, "ctrecon": ctrecon}


def section(modality: str) -> str:
    """The part of the README that is about one modality."""
    title = {"mrirecon": "## Your own MRI scan", "ctrecon": "## Your own CT scan"}[modality]
    return README.split(title)[1].split("\n## ")[0]


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_method_stands_in_the_table_with_its_default(modality: str) -> None:
    for name, method in MODALITIES[modality].METHODS.items():
        (row,) = [line for line in section(modality).splitlines() if line.startswith("|") and f"`{name}`" in line]
        stated = row.split("|")[-2].strip()
        assert stated == (f"{method.regularisation:g}" if method.regularisation else "–")


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_option_in_the_commands_exists(modality: str, capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(rf"^ {{4}}{modality} ([\w-]+)(.*?)(?:#.*)?$", README, flags=re.MULTILINE)
    assert commands
    for command, words in commands:
        with pytest.raises(SystemExit):
            MODALITIES[modality].cli.main([command, "--help"])
        printed = capsys.readouterr().out
        for option in re.findall(r"--[a-z-]+", words):
            assert option in printed, f"{command} {option}"
