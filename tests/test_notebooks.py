"""The notebooks are made from their scripts, and what these claim holds."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from notebooks import build

SCRIPTS = build.scripts()
WITH_DATA = [script for script in SCRIPTS if "MRCTRECON_DATA" in script.read_text(encoding="utf-8")]

every_notebook = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


@pytest.fixture
def quick_and_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, small sizes, no measured data, and no network."""

    def refused(*arguments: Any) -> None:
        raise AssertionError("A notebook reached for the network.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MRCTRECON_SMALL", "1")
    monkeypatch.delenv("MRCTRECON_DATA", raising=False)
    monkeypatch.setattr(socket.socket, "connect", refused)


def stored(script: Path) -> dict[str, Any]:
    return json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))


def test_there_are_notebooks_and_each_has_its_script() -> None:
    assert SCRIPTS
    assert sorted(path.stem for path in build.FOLDER.glob("*.ipynb")) == [script.stem for script in SCRIPTS]


@every_notebook
def test_code_and_text_are_those_of_the_script(script: Path) -> None:
    expected = build.notebook(build.cells_of(script), [[]] * len(build.cells_of(script)))
    found = stored(script)
    for cell in found["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = []
    assert found == expected, f"Run python notebooks/build.py {script.stem}"


@every_notebook
def test_the_stored_outputs_are_there_and_small(script: Path) -> None:
    path = script.with_suffix(".ipynb")
    assert path.stat().st_size <= build.LARGEST_NOTEBOOK_BYTES
    outputs = [output for cell in stored(script)["cells"] for output in cell.get("outputs", [])]
    pictures = [
        content for output in outputs for kind, content in output.get("data", {}).items() if kind.startswith("image/")
    ]
    assert len(pictures) >= 3
    assert max(map(len, pictures)) <= build.LARGEST_PICTURE_BYTES * 4 / 3 + 4  # in base64
    assert outputs[-1]["text"] == ["All claims hold.\n"]


@every_notebook
def test_the_first_cell_has_the_title_and_the_last_one_checks_the_claims(script: Path) -> None:
    first, *_, before, last = build.cells_of(script)
    assert first.kind == "markdown"
    assert first.text.startswith("# ")
    assert before.text == "## What was claimed"
    assert last.text.count("assert ") >= 5


@every_notebook
@pytest.mark.usefixtures("quick_and_offline")
def test_the_script_runs_and_its_claims_hold(script: Path) -> None:
    state = torch.random.get_rng_state()
    outputs = list(build.executed(script))
    torch.random.set_rng_state(state)
    assert outputs[-1] == [{"output_type": "stream", "name": "stdout", "text": ["All claims hold.\n"]}]


@pytest.mark.realdata
@pytest.mark.parametrize("script", WITH_DATA, ids=lambda script: script.stem)
@pytest.mark.usefixtures("quick_and_offline")
def test_measured_data_are_shown_where_they_are(
    script: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRCTRECON_DATA", str(data_folder))
    cells = zip(build.cells_of(script), build.executed(script), strict=True)
    pictures = [shown for cell, shown in cells if "MRCTRECON_DATA" in cell.text and cell.kind == "code"]
    assert len(pictures) == 1
    assert "image/jpeg" in pictures[0][0]["data"] or "image/png" in pictures[0][0]["data"]


def write(folder: Path, text: str) -> Path:
    path = folder / "00_example.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_script_is_divided_at_its_markers(tmp_path: Path) -> None:
    script = write(
        tmp_path, "# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1  # not a marker: # %%\n\nprint(x)\n"
    )
    assert build.cells_of(script) == [
        build.Cell("markdown", "# Title\n\nText.", 2),
        build.Cell("code", "x = 1  # not a marker: # %%\n\nprint(x)", 7),
    ]


@pytest.mark.parametrize("text", ["x = 1\n", "import os\n# %%\n", "# %% [markdown]\nnot a comment\n"])
def test_what_is_no_percent_script_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="00_example"):
        build.cells_of(write(tmp_path, text))


def test_a_warning_stops_a_notebook_and_names_the_line(tmp_path: Path) -> None:
    script = write(tmp_path, "# %%\nimport warnings\n\n# %%\n\nwarnings.warn('no', stacklevel=1)\n")
    with pytest.raises(UserWarning) as caught:
        list(build.executed(script))
    assert caught.traceback[-1].lineno == 5  # counted from 0


def test_outputs_are_what_was_printed_and_the_open_figures(tmp_path: Path) -> None:
    code = "import matplotlib.pyplot as plt\nprint('a')\nprint('b')\nplt.figure(figsize=(1, 1))\n"
    ((printed, picture),) = build.executed(write(tmp_path, f"# %%\n{code}"))
    assert printed["text"] == ["a\n", "b\n"]
    assert list(picture["data"]) == ["image/png", "text/plain"]


def test_a_large_picture_becomes_a_jpeg(tmp_path: Path) -> None:
    code = "import matplotlib.pyplot as plt\nimport numpy as np\nplt.subplots(figsize=(4, 4))\n"
    noise = "plt.imshow(np.random.default_rng(0).random((300, 300)), cmap='viridis')\n"
    ((picture,),) = build.executed(write(tmp_path, f"# %%\n{code}{noise}"))
    assert list(picture["data"]) == ["image/jpeg", "text/plain"]
    assert len(picture["data"]["image/jpeg"]) <= build.LARGEST_PICTURE_BYTES * 4 / 3 + 4
