"""The first bytes of a file, by which its container is told; names never matter."""

from pathlib import Path

from operators.errors import InputError

_HEAD_BYTES = 16384
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def head_of(path: Path) -> bytes:
    """The first bytes of a file.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    InputError
        If there is no such file, it is empty, no regular file, or cannot be read.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path} is a directory; give the raw-data file in it.")
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is a device or a pipe; give a file.")
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path.") from error
    except PermissionError as error:
        raise InputError(f"{path} may not be read by this user; change its permissions or copy it.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be opened ({error}); check the path.") from error
    if not head:
        raise InputError(f"{path} is empty; copy it again from where it was measured.")
    return head


def container_of(head: bytes) -> str | None:
    """Name the general container that a file begins with.

    Parameters
    ----------
    head
        Its first bytes.

    Returns
    -------
    str or None
        ``"HDF5"``, ``"MATLAB 5"``, ``"numpy"`` or ``"numpy archive"``; ``None`` for anything else.
    """
    # HDF5 may begin after a block of other content; MATLAB 7.3 writes 512 bytes of text first.
    if any(head.startswith(_HDF5_SIGNATURE, start) for start in (0, 512, 1024, 2048, 4096, 8192)):
        return "HDF5"
    if head.startswith(b"MATLAB 5.0 MAT-file"):
        return "MATLAB 5"
    if head.startswith(b"\x93NUMPY"):
        return "numpy"
    return "numpy archive" if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) else None


def head_in_words(head: bytes) -> str:
    """The first bytes as text where they are text, otherwise in hexadecimal."""
    start = head[:12]
    if all(32 <= byte < 127 for byte in start):
        return repr(start.decode("ascii"))
    return "the bytes " + start.hex(" ")
