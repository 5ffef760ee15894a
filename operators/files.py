"""Write beside, then rename: a reader never meets a half-written file, and a failure leaves nothing behind."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from operators.errors import InputError


def check_writable(path: Path, *, overwrite: bool = False) -> None:
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
        If ``path`` exists and ``overwrite`` is false, if its folder does not exist or if the folder
        cannot be written to.
    """
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; pass --overwrite (overwrite=True) to replace it.")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"The folder {folder} does not exist; create it first or choose another output.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"The folder {folder} is not writable; choose another output.")


@contextmanager
def replacing(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what was written there becomes ``path`` when the block succeeds.

    The block may write a file or create a directory there. The temporary name keeps every suffix of ``path``
    (libraries choose formats by suffix). Where a directory replaces a directory, the old one goes only after the
    new one is complete.

    Parameters
    ----------
    path
        Where the result is to stand.
    overwrite
        Allow ``path`` to exist.

    Raises
    ------
    InputError
        If ``path`` cannot be written (exists, no folder, no permission, disk full). Nothing is left behind.
    """
    path = Path(path)
    check_writable(path, overwrite=overwrite)
    temporary = path.with_name(f".partial-{os.getpid()}-{path.name}")
    _remove(temporary)
    try:
        yield temporary
        if path.exists() and not overwrite:
            raise InputError(f"{path} appeared while it was being computed; it was left as it is.")
        if path.is_dir():
            retired = path.with_name(f".retired-{os.getpid()}-{path.name}")
            os.rename(path, retired)
            os.rename(temporary, path)
            _remove(retired)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} could not be written: {error.strerror or error}; nothing was left behind.") from error
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
