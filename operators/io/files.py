"""Write beside, then rename: a reader never meets a half-written file, and a failure leaves nothing behind."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from operators.errors import InputError


def check_writable(path: Path | str, *, overwrite: bool = False) -> None:
    """Refuse an output early, before any work is spent on it.

    Parameters
    ----------
    path
        The file or directory that is going to be written.
    overwrite
        Allow ``path`` to exist.

    Raises
    ------
    InputError
        If ``path`` is no name for an output, if it exists and ``overwrite`` is false, if its folder does not exist
        or if the folder cannot be written to.
    """
    path = Path(path)
    if path.name in ("", "..") or "\0" in path.name:
        raise InputError(f"{str(path)!r} does not name an output; give the file or the folder to be written.")
    folder = path.absolute().parent
    try:
        occupied = os.path.lexists(path)
        found = folder.is_dir()
    except OSError as error:
        raise InputError(f"{path} cannot be an output: {error.strerror or error}; choose another.") from error
    if occupied and not overwrite:
        raise InputError(f"{path} exists already; pass --overwrite (overwrite=True) to replace it.")
    if not found:
        raise InputError(f"The folder {folder} does not exist; create it first or choose another output.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"The folder {folder} is not writable; choose another output.")


@contextmanager
def replacing(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what was written there becomes ``path`` when the block succeeds.

    The block may write a file or create a directory there. The temporary name keeps every suffix of ``path``
    (libraries choose formats by suffix). A file replaces only a file and a directory only a directory; the old one
    stays in place until the new one is complete.

    Parameters
    ----------
    path
        Where the result is to stand.
    overwrite
        Allow ``path`` to exist.

    Raises
    ------
    InputError
        If ``path`` cannot be written (exists, no folder, no permission, disk full, a directory where a file is to
        stand). What stood there before is as it was, and nothing else is left behind.
    """
    path = Path(path)
    check_writable(path, overwrite=overwrite)
    temporary = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        _remove(temporary)
        yield temporary
        _put_in_place(temporary, path, overwrite=overwrite)
    except OSError as error:
        raise InputError(f"{path} could not be written: {_reason(error)}; nothing was left behind.") from error
    finally:
        with suppress(OSError):  # the error that brought us here says more than a failing clean-up
            _remove(temporary)


def _put_in_place(temporary: Path, path: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(path):
        os.rename(temporary, path)
        return
    if not overwrite:
        raise InputError(f"{path} appeared while it was being computed; it was left as it is.")
    if path.is_dir() != temporary.is_dir():
        kind, wanted = ("folder", "file") if path.is_dir() else ("file", "folder")
        raise InputError(f"{path} is a {kind}, but a {wanted} is to be written there; choose another output.")
    if not path.is_dir():
        os.replace(temporary, path)
        return
    retired = path.with_name(f".retired-{os.getpid()}-{path.name}")
    os.rename(path, retired)
    try:
        os.rename(temporary, path)
    except OSError:
        os.rename(retired, path)
        raise
    _remove(retired)


def _reason(error: OSError) -> str:
    # Libraries wrap the system's error in pages of their own; the system's word is the one that helps.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return str(error)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
