"""What the command lines of all modalities share: manners, messages, outputs. Nothing heavy is imported here."""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from operators.decision import Decision
from operators.errors import InputError

out = Console()
log = Console(stderr=True, highlight=False)

Report = Callable[[int, int], None]
"""Called with (items done, items in all)."""


class Format(StrEnum):
    """File formats of an image."""

    nifti = "nifti"
    dicom = "dicom"
    npy = "npy"


Output = Annotated[Path, typer.Option("--output", "-o", help="A file; a directory for DICOM or several files.")]
FileFormat = Annotated[Format | None, typer.Option("--format", help="By default told by the output's name.")]
Strength = Annotated[
    float | None, typer.Option("--lambda", min=0.0, help="Strength relative to the noise level; 0 for none.")
]
Iterations = Annotated[int | None, typer.Option("--iterations", min=1, help="Number of iterations.")]
Device = Annotated[str, typer.Option(help="A torch device, such as cpu or cuda.")]
Preview = Annotated[bool, typer.Option("--preview", help="Also write a PNG beside the output.")]
Identifiers = Annotated[bool, typer.Option("--identifiers", help="Carry the person's identifiers to DICOM.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
SkipExisting = Annotated[bool, typer.Option("--skip-existing", help="Go on where an earlier call stopped.")]
Weights = Annotated[
    str | None, typer.Option(help="Weights of your own to reconstruct with, instead of a method: a file of train.")
]
SaveMaps = Annotated[
    Path | None, typer.Option(help="Write sparsity maps, codes and what each filter adds to this directory.")
]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.toml")]
TrainingFolder = Annotated[
    Path, typer.Option("--output", "-o", help="Folder of the training; one begun there goes on.")
]
ResultsFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder of the results; what is there is kept.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_SUFFIX = {Format.nifti: ".nii.gz", Format.dicom: "", Format.npy: ".npy"}


def command_line(name: str, summary: str) -> typer.Typer:
    """Build an empty command line with the common manners."""
    return typer.Typer(
        name=name,
        help=summary,
        epilog="Any command takes --debug to show the traceback of an error.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> None:
    """Run a command line: what a person can mend is one sentence on stderr and exit status 2.

    Parameters
    ----------
    app
        What `command_line` built, with its commands.
    arguments
        Words after the program's name; by default those of the process. ``--debug`` anywhere shows tracebacks.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # beside other programs, torch's waiting threads would spin
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        app([word for word in words if word != "--debug"], prog_name=app.info.name)
    except (InputError, MemoryError) as error:
        if debug:
            raise
        print_error("Error", str(error) or "The machine has too little memory for this scan.")
        sys.exit(2)


def accepting(build: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of another function, whose result it gets as ``options``.

    Parameters
    ----------
    build
        Takes the options, annotated for typer, and returns what the command needs.

    Returns
    -------
    Callable
        A decorator for commands with a parameter ``options``, to be put below ``app.command()``.
    """
    shared = inspect.signature(build).parameters

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def merged(**words: Any) -> None:
            command(**{name: words.pop(name) for name in own}, options=build(**words))

        own = {name: p for name, p in inspect.signature(command).parameters.items() if name != "options"}
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own.values(), *shared.values())]
        merged.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        merged.__annotations__ = {p.name: p.annotation for p in parameters}
        return merged

    return decorate


def print_error(what: str, sentence: str) -> None:
    """Print a sentence on stderr, after what it is about."""
    log.print(f"{what}: ", style="bold red", markup=False, end="")
    log.print(sentence, markup=False, soft_wrap=True)


def for_each(
    files: Sequence[Path], outputs: Sequence[Path], work: Callable[[Path, Path], None], *, skip_existing: bool
) -> None:
    """Work on files one after the other; of several, one that fails does not stop the others.

    Parameters
    ----------
    files, outputs
        As many of one as of the other.
    work
        Called with a file and its output.
    skip_existing
        Leave out files whose output exists, to go on where an earlier call stopped.

    Raises
    ------
    InputError
        If any file failed.
    """
    n_failed = 0
    for file, output in zip(files, outputs, strict=True):
        if skip_existing and output.exists():
            log.print(f"{output.name} exists already; skipped.", markup=False)
            continue
        try:
            work(file, output)
        except InputError as error:
            if len(files) == 1:
                raise
            n_failed += 1
            print_error(file.name, str(error))
    if n_failed:
        raise InputError(f"{n_failed} of {len(files)} files failed; their messages are above, the others were written.")


def format_told_by(output: Path, *, several: bool) -> Format:
    """The format that an output's name asks for; several inputs give NIfTI files in a directory.

    Raises
    ------
    InputError
        If the name tells none.
    """
    if several or output.name.endswith((".nii", ".nii.gz")):
        return Format.nifti
    if output.suffix == ".npy":
        return Format.npy
    if output.suffix in ("", ".dcm"):
        return Format.dicom
    raise InputError(f"The output {output.name} names no known format; end it in .nii.gz or .npy, or pass --format.")


def output_paths(files: Sequence[Path], output: Path, chosen: Format) -> list[Path]:
    """Where each input's image goes: ``output`` itself for one, files in the directory ``output`` for several.

    Raises
    ------
    InputError
        If several inputs are to go into a file, or cannot be told apart by name and folder.
    """
    if len(files) == 1:
        return [output]
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; several inputs need a directory as output.")
    stems = [file.name.split(".")[0] for file in files]
    names = [
        f"{file.absolute().parent.name}_{stem}" if stems.count(stem) > 1 else stem
        for file, stem in zip(files, stems, strict=True)
    ]
    if len(set(names)) < len(names):
        raise InputError("Several input files have the same name and folder name; reconstruct them one by one.")
    output.mkdir(exist_ok=True)
    return [output / (name + _SUFFIX[chosen]) for name in names]


def preview_path(output: Path) -> Path:
    """The PNG beside an output."""
    return output.with_name(output.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".npy") + ".png")


def check_outputs(output: Path, chosen: Format, *, preview: bool, overwrite: bool) -> None:
    """Refuse outputs early, before any work is spent on them.

    Raises
    ------
    InputError
        If the output, or the preview beside it, exists or cannot be written.
    """
    from operators.io.files import check_writable

    if chosen is Format.dicom:
        from operators.io.dicom import check_dicom_folder

        check_dicom_folder(output, overwrite=overwrite)
    else:
        check_writable(output, overwrite=overwrite)
    if preview:
        check_writable(preview_path(output), overwrite=overwrite)


def lengths_mm(text: str, option: str, names: str) -> tuple[float, ...]:
    """Parse positive lengths separated by commas.

    Parameters
    ----------
    text
        What the person wrote.
    option
        The option, for the message.
    names
        What is expected, such as ``"dx,dy,dz"``.

    Raises
    ------
    InputError
        If there are more or fewer, or one is not a length between 0 and 1000 mm.
    """
    try:
        lengths = tuple(float(word) for word in text.split(","))
    except ValueError:
        lengths = ()
    if len(lengths) != len(names.split(",")):
        raise InputError(f"{option} is {text!r}; expected {names} in mm, numbers separated by commas.")
    if not all(0 < length < 1000 for length in lengths):
        raise InputError(f"{option} is {text!r}; every length must be positive and below 1000 mm.")
    return lengths


def whole_numbers(text: str, option: str, n: int | None = None) -> tuple[int, ...]:
    """Parse ``n`` whole numbers separated by commas, or any number of them.

    Raises
    ------
    InputError
        If the text is something else.
    """
    words = text.split(",")
    if (n is not None and len(words) != n) or not all(word.strip().isdigit() for word in words):
        how_many = "" if n is None else f"{n} "
        raise InputError(f"{option} is {text!r}; expected {how_many}whole numbers separated by commas.")
    return tuple(int(word) for word in words)


@contextmanager
def progress(name: str) -> Iterator[Report]:
    """Show a bar with count, rate and remaining time on stderr while the block works.

    Yields
    ------
    Report
        To be called with (items done, items in all).
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=log, transient=True) as bar:
        task = bar.add_task(name, total=None, rate="")

        def report(n_done: int, n_total: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=n_done, total=n_total, rate=f"{speed:.1f}/s" if speed else "")

        yield report


def print_decisions(decisions: Sequence[Decision]) -> None:
    """Print decisions on stderr, those to look at in yellow."""
    for decision in decisions:
        log.print(f"  {decision}", style="yellow" if decision.warning else "dim", markup=False, soft_wrap=True)


def print_description(name: str, description: dict[str, Any]) -> None:
    """Print what a file holds: a table of its sections, then decisions and warnings.

    Parameters
    ----------
    name
        The file's name.
    description
        ``format``, sections (dict), ``decisions`` and ``warnings`` (list of str).
    """
    from rich.table import Table

    table = Table(title=f"{name} · {description['format']}", show_header=False, title_justify="left")
    for section, facts in description.items():
        if isinstance(facts, dict) and facts:
            for key, value in facts.items():
                table.add_row(section, key, " ".join(map(str, value)) if isinstance(value, list) else str(value))
            table.add_section()
    out.print(table)
    for text in description["decisions"]:
        out.print(f"  {text}", style="dim", markup=False)
    for text in description["warnings"]:
        out.print(f"! {text}", style="yellow", markup=False)


def print_scores(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Print a table of metrics, a row per method; the keys are the columns."""
    from rich.table import Table

    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.3f}" for value in row.values()))
    out.print(table)
