"""Siemens raw data (twix ``.dat``, software VB, VD, VE and XA): the lines of a Cartesian scan."""

import contextlib
import ctypes
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mrirecon.io.arrays import check_cartesian_options
from mrirecon.io.assembly import check_cartesian, check_finite_lines, check_scan_memory, kspace_from_lines
from mrirecon.io.ismrmrd_header import HeaderFacts, Limit
from mrirecon.io.ismrmrd_table import (
    BATCH_COUNTERS,
    CALIBRATION,
    CALIBRATION_AND_IMAGING,
    NOISE,
    REVERSE,
    STEPS,
    Heads,
    plan_lines,
    sort_by_kind,
)
from mrirecon.io.options import ReadOptions
from mrirecon.kspace import KSpace
from operators.decision import Decision
from operators.errors import InputError
from operators.io.array_file import damage_reported

_DEFAULTS = ReadOptions()
_MOST_MEASUREMENTS = 64
_FIRST_ENTRY = 8
_ENTRY_BYTES = 152
_LONGEST_HEADER = 2**26
_BUFFER_NAME = re.compile(rb"\w{4,}\x00")

# Siemens' names of flags and the ISMRMRD bits of the same meaning.
_FLAGS = {
    "NOISEADJSCAN": NOISE,
    "PATREFSCAN": CALIBRATION,
    "PATREFANDIMASCAN": CALIBRATION_AND_IMAGING,
    "REFLECT": REVERSE,
    "REFPHASESTABSCAN": 23,
    "PHASESTABSCAN": 23,
    "PHASCOR": 24,
    "HPFEEDBACK": 26,
    "RETRO_DUMMYSCAN": 27,
    "RTFEEDBACK": 28,
}
_COUNTERS = {
    STEPS[0]: "Lin",
    STEPS[1]: "Par",
    "repetition": "Rep",
    "set": "Set",
    "phase": "Phs",
    "contrast": "Eco",
    "average": "Ave",
    "slice": "Sli",
}
_TRAJECTORIES = {1: "cartesian", 2: "radial", 4: "spiral", 8: "blade"}
_THREE_DIMENSIONAL = 4
_NO_INVERSION = 4


@dataclass(frozen=True, slots=True)
class _Measurement:
    """One measurement of a file: where it lies, and which of the two layouts it has."""

    start: int
    end: int
    newer: bool  # VD and later: one header for all channels of a line


@dataclass(frozen=True, slots=True)
class _Line:
    """A line before its samples are read: its header, and where the samples of the first channel lie."""

    head: Any
    flags: int
    samples_at: int
    dwell_us: float
    newer: bool


def is_twix(path: Path) -> bool:
    """Whether a file has the structure of Siemens raw data; there is no signature.

    Parameters
    ----------
    path
        The file.
    """
    with path.open("rb") as stream:
        return bool(_measurements(stream))


def read_twix(path: Path | str, options: ReadOptions = _DEFAULTS) -> KSpace:
    """Read the last measurement with imaging lines; noise scans of earlier ones in the file go with it.

    Lines are placed by their counters. Siemens' directions hold for the forward transform, so the samples are
    conjugated.

    Parameters
    ----------
    path
        The file.
    options
        Overrides of decisions.

    Returns
    -------
    KSpace
        The scan; axes as for ``read_ismrmrd``.

    Raises
    ------
    InputError
        If twixtools is not installed, the file is damaged, or the scan is not Cartesian.
    """
    path = Path(path)
    _check_installed()
    check_cartesian_options(options, str(path))
    log: list[Decision] = []
    with path.open("rb") as stream:
        with damage_reported(path, "Siemens raw data"), _silence():
            lines, header = _read_lines(stream, path, log)
            heads, facts = _heads(lines), _facts(header, lines)
        check_cartesian(facts, log)
        kinds = sort_by_kind(heads, path, log)
        plan = plan_lines(heads, kinds, facts, options, path, log)
        check_scan_memory(heads, plan, options, path)
        with damage_reported(path, "Siemens raw data"):
            samples = _read_samples(stream, lines, kinds.used)
    check_finite_lines(samples, np.flatnonzero(kinds.used), path)
    return kspace_from_lines(samples, heads, kinds, plan, facts, options, log)


def _check_installed() -> None:
    try:
        import twixtools  # noqa: F401
    except ImportError as error:
        raise InputError("Siemens raw data need the extra: pip install 'mrctrecon[siemens]'.") from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the parser's notes to itself."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _measurements(stream: IO[bytes]) -> list[_Measurement]:
    """The measurements of a file, none if it has another structure."""
    size = os.fstat(stream.fileno()).st_size
    stream.seek(0)
    start = stream.read(_FIRST_ENTRY + _MOST_MEASUREMENTS * _ENTRY_BYTES)
    if len(start) < _FIRST_ENTRY:
        return []
    first, n_measurements = (int(n) for n in np.frombuffer(start, "<u4", count=2))
    if first < 10000 and 1 <= n_measurements <= _MOST_MEASUREMENTS:
        if len(start) < _FIRST_ENTRY + n_measurements * _ENTRY_BYTES:
            return []
        found = []
        for i in range(n_measurements):
            offset, length = np.frombuffer(start, "<u8", count=2, offset=_FIRST_ENTRY + i * _ENTRY_BYTES + 8)
            end = min(int(offset) + int(length), size) if length else size
            found.append(_Measurement(int(offset), end, newer=True))
    else:
        found = [_Measurement(0, size, newer=False)]
    return found if all(_has_header(stream, measurement) for measurement in found) else []


def _has_header(stream: IO[bytes], measurement: _Measurement) -> bool:
    """Whether a measurement begins with the length of its header and the first of a few named texts."""
    if measurement.start + 64 > measurement.end:
        return False
    stream.seek(measurement.start)
    head = stream.read(64)
    length, n_buffers = (int(n) for n in np.frombuffer(head, "<u4", count=2))
    plausible = 64 <= length <= _LONGEST_HEADER and 1 <= n_buffers <= _MOST_MEASUREMENTS
    return plausible and _BUFFER_NAME.match(head, 8) is not None


def _read_lines(stream: IO[bytes], path: Path, log: list[Decision]) -> tuple[list[_Line], Mapping[str, Any]]:
    """The lines of the last measurement with imaging lines, noise lines of earlier ones, and its header."""
    from twixtools.twixprot import parse_twix_hdr

    noise: list[_Line] = []
    chosen: tuple[list[_Line], Mapping[str, Any]] | None = None
    measurements = _measurements(stream)
    for number, measurement in enumerate(measurements):
        stream.seek(measurement.start)
        header = parse_twix_hdr(stream)
        dwell_ns = _number(header, "MeasYaps", "sRXSPEC", "alDwellTime", 0) or 0.0
        lines, complete = _walk(stream, measurement, dwell_ns / 1000)
        if not complete and number == len(measurements) - 1:
            reason = f"The last measurement ends after {len(lines)} lines without an end mark."
            log.append(Decision("truncated", "read as far as it goes", reason, warning=True))
        if any(_is_imaging(line) for line in lines):
            chosen = lines, header
        else:
            noise += [line for line in lines if line.flags & 1 << (NOISE - 1)]
    if chosen is None:
        raise InputError(f"{path} holds no imaging lines; it may be an adjustment, or a scan that was stopped.")
    lines, header = chosen
    n_coils = int(lines[-1].head.UsedChannels)
    return [line for line in noise if line.head.UsedChannels == n_coils] + lines, header


def _walk(stream: IO[bytes], measurement: _Measurement, dwell_us: float) -> tuple[list[_Line], bool]:
    """The lines of a measurement without their samples, and whether its end mark was met."""
    from twixtools import mdh_def

    layout = mdh_def.Scan_header if measurement.newer else mdh_def.VB17_header
    head_bytes = ctypes.sizeof(layout)
    stream.seek(measurement.start)
    position = measurement.start + int(np.frombuffer(stream.read(4), "<u4")[0])
    lines: list[_Line] = []
    while position + head_bytes <= measurement.end:
        stream.seek(position)
        head = layout.from_buffer_copy(stream.read(head_bytes))
        if mdh_def.is_flag_set(head, "ACQEND"):
            return lines, True
        if mdh_def.is_flag_set(head, "SYNCDATA"):
            length = int(mdh_def.get_dma_len(head))
        else:
            # The older layout repeats the header for every channel.
            length = int(head.UsedChannels) * _channel_bytes(head, measurement.newer)
            length += head_bytes if measurement.newer else 0
            if length and position + length <= measurement.end:
                flags = sum({1 << (bit - 1) for name, bit in _FLAGS.items() if mdh_def.is_flag_set(head, name)})
                at = position + (head_bytes if measurement.newer else 0)
                lines.append(_Line(head, flags, at, dwell_us, measurement.newer))
        if length < head_bytes or position + length > measurement.end:
            return lines, False
        position += length
    return lines, False


def _channel_bytes(head: Any, newer: bool) -> int:
    from twixtools import mdh_def

    return ctypes.sizeof(mdh_def.Channel_header if newer else mdh_def.VB17_header) + 8 * int(head.SamplesInScan)


def _is_imaging(line: _Line) -> bool:
    from twixtools import mdh_def

    return bool(mdh_def.is_image_scan(line.head)) and line.head.SamplesInScan > 0


def _heads(lines: list[_Line]) -> Heads:
    from twixtools.geometry import quat_to_rotmat

    def column(value: Callable[[Any], Any], dtype: type = np.int64) -> NDArray[Any]:
        return np.array([value(line.head) for line in lines], dtype=dtype)

    quaternions = column(lambda head: head.SliceData.Quaternion, np.float64)
    distinct, which = np.unique(quaternions, axis=0, return_inverse=True)
    # The columns of the matrix are the directions of phase, readout and slice.
    rotations = np.stack([quat_to_rotmat(*quaternion)[:, [2, 0, 1]].T for quaternion in distinct])
    counters = column(lambda head: [getattr(head.Counter, _COUNTERS[name]) for name in (*STEPS, *BATCH_COUNTERS)])
    return Heads(
        flags=np.array([line.flags for line in lines], dtype=np.uint64),
        n_samples=column(lambda head: head.SamplesInScan),
        n_coils=column(lambda head: head.UsedChannels),
        discard_pre=column(lambda head: head.CutOff.Pre),
        discard_post=column(lambda head: head.CutOff.Post),
        center_sample=column(lambda head: head.CenterCol),
        encoding_space=np.zeros(len(lines), dtype=np.int64),
        dwell_us=np.array([line.dwell_us for line in lines]),
        position_mm=column(
            lambda head: [getattr(head.SliceData.SlicePos, a) for a in ("Sag", "Cor", "Tra")], np.float64
        ),
        directions=rotations[which.reshape(-1)],
        counters=counters,
    )


def _facts(header: Mapping[str, Any], lines: list[_Line]) -> HeaderFacts:
    """What the protocol says, in the words of an ISMRMRD header."""

    def protocol(*keys: str | int) -> float | None:
        return _number(header, "MeasYaps", *keys)

    first = next(line.head for line in lines if _is_imaging(line))
    oversampling = _number(header, "Meas", "flReadoutOSFactor") or 2.0
    n_x = protocol("sKSpace", "lBaseResolution")
    n_y = _number(header, "Meas", "iPEFTLength") or protocol("sKSpace", "lPhaseEncodingLines")
    three_dimensional = protocol("sKSpace", "ucDimension") == _THREE_DIMENSIONAL
    n_z = protocol("sKSpace", "lPartitions") if three_dimensional else 1
    fov_x, fov_y, fov_z = (
        protocol("sSliceArray", "asSlice", 0, name) for name in ("dReadoutFOV", "dPhaseFOV", "dThickness")
    )
    more_y = 1 + (protocol("sKSpace", "dPhaseOversamplingForDialog") or 0.0)
    more_z = 1 + (protocol("sKSpace", "dSliceOversamplingForDialog") or 0.0) if three_dimensional else 1.0
    echo_planar = (protocol("sFastImaging", "lEPIFactor") or 1) > 1
    inverted = protocol("sPrepPulses", "ucInversion") not in (None, _NO_INVERSION)
    return HeaderFacts(
        encoded_shape=(_count(n_z), _count(n_y), _count(n_x, oversampling)),
        encoded_fov_mm=(_scaled(fov_z, more_z), _scaled(fov_y, more_y), _scaled(fov_x, oversampling)),
        recon_shape=(None, None, _count(n_x)),
        recon_fov_mm=(fov_z, fov_y, fov_x),
        trajectory="epi"
        if echo_planar
        else _TRAJECTORIES.get(int(protocol("sKSpace", "ucTrajectory") or 1), "unknown"),
        limits={
            "kspace_encoding_step_1": Limit(center=int(first.CenterLin)),
            "kspace_encoding_step_2": Limit(center=int(first.CenterPar), maximum=_count(n_z)),
        },
        field_strength_t=protocol("sProtConsistencyInfo", "flNominalB0"),
        repetition_time_ms=_scaled(protocol("alTR", 0), 1e-3),
        echo_time_ms=_scaled(protocol("alTE", 0), 1e-3),
        inversion_time_ms=_scaled(protocol("alTI", 0), 1e-3) if inverted else None,
        flip_angle_deg=protocol("adFlipAngleDegree", 0),
        vendor="Siemens",
        model=_text(header, "Dicom", "ManufacturersModelName"),
        sequence_name=_text(header, "MeasYaps", "tSequenceFileName"),
        protocol_name=_text(header, "MeasYaps", "tProtocolName"),
        patient={
            key: value
            for key, name in (("name", "tPatientName"), ("id", "PatientID"), ("birth_date", "PatientBirthDay"))
            if (value := _text(header, "Meas", name)) and value.strip("x")
        },
    )


def _read_samples(stream: IO[bytes], lines: list[_Line], used: NDArray[np.bool_]) -> NDArray[np.object_]:
    """Samples of the used lines: real and imaginary part in turn, coil by coil."""
    samples = np.empty(len(lines), dtype=object)
    for i in np.flatnonzero(used):
        line = lines[i]
        n_coils, n_samples = int(line.head.UsedChannels), int(line.head.SamplesInScan)
        channel_bytes = _channel_bytes(line.head, line.newer)
        stream.seek(line.samples_at)
        block = np.frombuffer(stream.read(n_coils * channel_bytes), np.uint8).reshape(n_coils, channel_bytes)
        samples[i] = block[:, channel_bytes - 8 * n_samples :].copy().view("<f4").reshape(-1)
    return samples


def _at(header: Any, keys: tuple[str | int, ...]) -> Any:
    for key in keys:
        try:
            header = header[key]
        except (KeyError, IndexError, TypeError):
            return None
    return header


def _number(header: Any, *keys: str | int) -> float | None:
    value = _at(header, keys)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
    return float(value) if is_number else None


def _text(header: Any, *keys: str | int) -> str | None:
    value = _at(header, keys)
    return value if isinstance(value, str) and value else None


def _count(number: float | None, factor: float = 1.0) -> int | None:
    return round(number * factor) if number is not None and number >= 1 else None


def _scaled(number: float | None, factor: float) -> float | None:
    return None if number is None or number <= 0 else number * factor
