"""Make the notebooks from their scripts, with what these print and draw: ``python notebooks/build.py [NAME …]``."""

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

FOLDER = Path(__file__).resolve().parent
LARGEST_PICTURE_BYTES, LARGEST_NOTEBOOK_BYTES = 60_000, 400_000

_MARKERS: dict[str, Literal["code", "markdown"]] = {"# %%": "code", "# %% [markdown]": "markdown"}
_DPI = 80
_JPEG_QUALITIES = (88, 78, 68, 58, 48, 40)


class Cell(NamedTuple):
    """A part of a script.

    Parameters
    ----------
    kind
        Whether it is run or read.
    text
        Code, or Markdown without its comment signs.
    line
        Where it starts in the script, from 1.
    """

    kind: Literal["code", "markdown"]
    text: str
    line: int


def scripts() -> list[Path]:
    """The scripts of all notebooks, in the order in which they are read."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def cells_of(script: Path) -> list[Cell]:
    """Divide a percent script at its ``# %%`` and ``# %% [markdown]`` lines.

    Parameters
    ----------
    script
        The file.

    Returns
    -------
    list of Cell
        In order.

    Raises
    ------
    ValueError
        If there is text before the first cell, or a line of Markdown is no comment.
    """
    cells: list[Cell] = []
    lines = script.read_text(encoding="utf-8").splitlines()
    starts = [number for number, line in enumerate(lines) if line in _MARKERS]
    if not starts or any(line.strip() for line in lines[: starts[0]]):
        raise ValueError(f"{script} does not start with a cell; its first line must be '# %%' or '# %% [markdown]'.")
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        kind, body = _MARKERS[lines[start]], lines[start + 1 : end]
        if kind == "markdown":
            for line in body:
                if line and line != "#" and not line.startswith("# "):
                    raise ValueError(f"{script} has the line {line!r} in a cell of Markdown; begin it with '# '.")
            body = [line[2:] for line in body]
        n_blank = next((i for i, line in enumerate(body) if line), 0)
        cells.append(Cell(kind, "\n".join(body).strip("\n"), start + 2 + n_blank))
    return cells


def executed(script: Path) -> Iterator[list[dict[str, Any]]]:
    """Run a script cell by cell, with warnings as errors, in the present working directory.

    Parameters
    ----------
    script
        The file.

    Yields
    ------
    list of dict
        Outputs of each cell as a notebook stores them: what it printed, and the figures it left open.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    matplotlib.use("agg")
    plt.close("all")
    for cell in cells_of(script):
        if cell.kind == "markdown":
            yield []
            continue
        tree = ast.parse(cell.text, str(script))
        ast.increment_lineno(tree, cell.line - 1)  # so that a traceback points into the script
        printed = io.StringIO()
        with _importable(), contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("error")
            exec(compile(tree, str(script), "exec"), namespace)
        yield [*_as_text(printed.getvalue()), *(_as_picture(plt.figure(number)) for number in plt.get_fignums())]
        plt.close("all")


def notebook(cells: Sequence[Cell], outputs: Sequence[list[dict[str, Any]]]) -> dict[str, Any]:
    """The notebook of cells and their outputs, as JSON of nbformat 4.5."""
    count = 0
    stored = []
    for number, (cell, shown) in enumerate(zip(cells, outputs, strict=True), start=1):
        entry: dict[str, Any] = {"cell_type": cell.kind, "id": f"cell-{number}", "metadata": {}}
        if cell.kind == "code":
            count += 1
            entry |= {"execution_count": count, "outputs": shown}
        stored.append(entry | {"source": cell.text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": stored, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def build(script: Path) -> Path:
    """Run a script in an empty folder without measured data, and write the notebook beside it.

    Parameters
    ----------
    script
        The file.

    Returns
    -------
    Path
        The notebook.

    Raises
    ------
    ValueError
        If the notebook is too large for a repository.
    """
    for name in ("MRCTRECON_DATA", "MRCTRECON_SMALL"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        outputs = list(executed(script))
    written = json.dumps(notebook(cells_of(script), outputs), ensure_ascii=False, indent=1) + "\n"
    if len(written.encode()) > LARGEST_NOTEBOOK_BYTES:
        raise ValueError(f"{script.stem} has {len(written.encode())} bytes; draw fewer or smaller pictures.")
    path = script.with_suffix(".ipynb")
    path.write_text(written, encoding="utf-8")
    return path


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """What lies beside the scripts can be imported, as it can in Jupyter."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield
    finally:
        sys.path.remove(str(FOLDER))


def _as_text(printed: str) -> list[dict[str, Any]]:
    if not printed:
        return []
    return [{"output_type": "stream", "name": "stdout", "text": printed.splitlines(keepends=True)}]


def _as_picture(figure: Figure) -> dict[str, Any]:
    """A PNG where that is small, as of curves; otherwise a JPEG of the best quality that is small enough."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI)
    kind, content = "image/png", stream.getvalue()
    drawn = Image.open(stream).convert("RGB")
    for quality in _JPEG_QUALITIES:
        if len(content) <= LARGEST_PICTURE_BYTES:
            break
        stream = io.BytesIO()
        drawn.save(stream, format="jpeg", quality=quality, optimize=True)
        kind, content = "image/jpeg", stream.getvalue()
    if len(content) > LARGEST_PICTURE_BYTES:
        raise ValueError(f"A picture has {len(content)} bytes; make it smaller.")
    data = {kind: base64.b64encode(content).decode(), "text/plain": ["a picture"]}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def _main(names: Sequence[str]) -> None:
    chosen = [script for script in scripts() if not names or script.stem in names or script.name in names]
    if not chosen:
        sys.exit(f"There is no such notebook; there are {', '.join(script.stem for script in scripts())}.")
    for script in chosen:
        start = time.monotonic()
        path = build(script)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    _main(sys.argv[1:])
