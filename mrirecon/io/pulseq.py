"""The k-space trajectory that a Pulseq file (``.seq``) plays out, by pypulseq."""

import contextlib
import hashlib
import re
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from operators.decision import Decision
from operators.errors import InputError
from operators.io.array_file import damage_reported
from operators.io.signature import head_in_words, head_of

_AXES = ("kz", "ky", "kx")
_NEGLIGIBLE = 1e-3  # of the largest coordinate: what rounding of the file leaves of a rewound slice selection
_MOST_SAMPLES = 2**28
_LONGEST_HEADER = 2**16
_SIGNATURE = b"\n[SIGNATURE]"


def read_pulseq_trajectory(path: Path | str) -> tuple[torch.Tensor, torch.Tensor, Decision]:
    """Compute where in k-space a sequence samples, from its gradients and pulses.

    Readouts are the blocks in which the receiver is on, in the order in which they are played. Those before the first
    excitation measure noise and are left out. So are axes along which nothing moves: coordinates below a thousandth of
    the largest.

    Parameters
    ----------
    path
        The file, Pulseq 1.2 or later.

    Returns
    -------
    trajectory
        Float64 ``(readout, sample, dim)`` in 1/m, of the kernel exp(−2πi k·r), axes in the order ``(kz, ky, kx)``, two
        or all three of them. x, y and z are the gradients' axes.
    time_s
        Time of each sample since the centre of the excitation in seconds, float64 ``(readout, sample)``. Of a spin
        echo, off-resonance counts from the echo instead.
    decision
        What was read and what was taken for granted, with a warning where a person should check that.

    Raises
    ------
    InputError
        If pypulseq is not installed; if the file is missing, no Pulseq file, damaged, or contradicts its own
        signature; if nothing is sampled, k-space is crossed along fewer than two axes, a coordinate is not finite, or
        the readouts differ in length.
    """
    path = Path(path)
    head = head_of(path)
    _check_installed()
    if b"[VERSION]" not in head and b"[VERSION]" not in _bytes(path, _LONGEST_HEADER):
        raise InputError(f"{path} begins with {head_in_words(head)} and names no version; it is no Pulseq file.")
    content = _bytes(path).replace(b"\r\n", b"\n")
    signed = _check_signature(path, content)
    with damage_reported(path, "Pulseq"), _quietly() as notes:
        sequence = _parsed(content)
        lengths = _readout_lengths(path, sequence)
        positions, _, excitations, refocusings, times = sequence.calculate_kspace()
    trajectory, time_s, n_noise = _readouts(path, positions[::-1].T, times, np.asarray(excitations), lengths)
    trajectory, axes, left_out = _moving_axes(path, trajectory)
    reasons = [f"Sampled along {' and '.join(axes)}", *left_out]
    if n_noise:
        reasons.append(f"{n_noise} readouts before the first excitation left out")
    doubts = _doubts(content, sequence, signed=signed, refocused=len(refocusings) > 0) + notes
    decision = Decision(
        "trajectory",
        f"{trajectory.shape[0]} readouts of {trajectory.shape[1]} samples",
        "; ".join([*reasons, *doubts]) + ".",
        warning=bool(doubts),
    )
    return torch.from_numpy(trajectory.copy()), torch.from_numpy(time_s.copy()), decision


def _check_installed() -> None:
    try:
        import pypulseq  # noqa: F401
    except ImportError as error:
        raise InputError("Pulseq files need the extra: pip install 'mrctrecon[pulseq]'.") from error


def _bytes(path: Path, n_bytes: int = -1) -> bytes:
    with path.open("rb") as stream:
        return stream.read(n_bytes)


def _check_signature(path: Path, content: bytes) -> bool:
    """Whether the file carries its own hash; one that does not match is refused."""
    body, found, signature = content.rpartition(_SIGNATURE)
    if not found:
        return False
    wanted = re.search(rb"^Hash\s+([0-9a-fA-F]{32})\s*$", signature, re.MULTILINE)
    if wanted is None or wanted[1].lower() != hashlib.md5(body, usedforsecurity=False).hexdigest().encode():
        raise InputError(
            f"{path} does not match the signature at its end, so it was damaged, truncated or edited; copy it again, "
            "or delete its [SIGNATURE] section if the change was meant."
        )
    return True


def _parsed(content: bytes) -> Any:
    import pypulseq

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "sequence.seq"
        # A comment may be in any encoding, and at the end of a truncated file the parser would wait for an empty line.
        copy.write_text(content.decode("ascii", "replace").replace("\ufffd", "?") + "\n\n", encoding="ascii")
        sequence = pypulseq.Sequence()
        sequence.read(str(copy), detect_rf_use=None)  # None: guess from flip angles in the versions that do not say
    return sequence


def _readout_lengths(path: Path, sequence: Any) -> list[int]:
    """Number of samples of each block in which the receiver is on."""
    numbers = [int(events[5]) for events in sequence.block_events.values()]
    lengths = [int(sequence.adc_library.data[number][0]) for number in numbers if number]
    if not lengths:
        raise InputError(f"{path} never switches the receiver on; expected a sequence with ADC events.")
    if min(lengths) < 1 or sum(lengths) > _MOST_SAMPLES:
        raise InputError(f"{path} has readouts of {min(lengths)} to {max(lengths)} samples; it is damaged.")
    return lengths


def _readouts(
    path: Path, positions: NDArray[Any], times: NDArray[Any], excitations: NDArray[Any], lengths: list[int]
) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Positions ``(readout, sample, 3)``, times since the excitation, and how many readouts came before the first."""
    starts = np.cumsum([0, *lengths[:-1]])
    latest = np.searchsorted(excitations, times, side="right") - 1
    excited = latest[starts] >= 0
    if not excited.any():
        raise InputError(f"{path} excites nothing before it samples; expected a sequence with excitation pulses.")
    kept = np.array(lengths)[excited]
    if (kept != kept[0]).any():
        raise InputError(
            f"{path} has readouts of {kept.min()} to {kept.max()} samples; expected all of the same length, so take "
            "out those that make no image."
        )
    used = np.repeat(excited, lengths)
    shape = (len(kept), int(kept[0]))
    time_s = (times - excitations[latest])[used].reshape(shape)
    trajectory = positions[used].reshape(*shape, 3)
    if not (np.isfinite(trajectory).all() and np.isfinite(time_s).all()):
        raise InputError(f"{path} gives positions that are not finite, as where a pulse falls into a readout.")
    return trajectory, time_s, int((~excited).sum())


def _moving_axes(path: Path, trajectory: NDArray[Any]) -> tuple[NDArray[Any], list[str], list[str]]:
    """The axes that are used, their names, and words about the others."""
    reach = np.abs(trajectory).max(axis=(0, 1))
    moves = reach > _NEGLIGIBLE * reach.max()
    axes = [axis for axis, used in zip(_AXES, moves, strict=True) if used]
    if len(axes) < 2:
        along = f"along {axes[0]} only" if axes else "nowhere"
        raise InputError(f"{path} moves {along} in k-space; an image needs two or three axes.")
    left_out = [
        f"{axis}, which stays within {distance:.2g} per metre, left out"
        for axis, distance, used in zip(_AXES, reach, moves, strict=True)
        if not used
    ]
    return trajectory[..., moves], axes, left_out


def _doubts(content: bytes, sequence: Any, *, signed: bool, refocused: bool) -> list[str]:
    doubts = [] if signed else ["the file carries no signature, so a change of it cannot be told"]
    version = [int(number) for number in re.findall(rb"^(?:major|minor)\s+(\d+)", content, re.MULTILINE)[:2]]
    if version < [1, 5] and refocused:
        doubts.append("its version does not say what pulses are for, and those above 90° are taken to refocus")
    n_unknown = sum(use == "u" for use in sequence.rf_library.type.values())
    if n_unknown:
        doubts.append(f"{n_unknown} pulses of no stated use are taken to excite")
    return doubts


@contextlib.contextmanager
def _quietly() -> Iterator[list[str]]:
    """Collect what pypulseq warns of, and close the file that it leaves open when it fails."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for category in (ResourceWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
        try:
            yield notes
        except Exception as error:
            traceback.clear_frames(error.__traceback__)
            raise
    told = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    notes += [f"pypulseq warns: {' '.join(text.split()).rstrip('.')}" for text in dict.fromkeys(told)]
