"""ISMRMRD raw data (``.h5``, ``.mrd``): read tolerantly by index, written in the official layout."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from mrirecon.acquisition import Sizes
from mrirecon.io.arrays import check_cartesian_options
from mrirecon.io.assembly import check_cartesian, check_finite_lines, check_scan_memory, kspace_from_lines, sign_of
from mrirecon.io.ismrmrd_header import LARMOR_HZ_PER_T, parse_header
from mrirecon.io.ismrmrd_table import (
    BATCH_COUNTERS,
    CALIBRATION,
    CALIBRATION_AND_IMAGING,
    NOISE,
    STEPS,
    Heads,
    plan_lines,
    read_heads,
    sort_by_kind,
)
from mrirecon.io.ismrmrd_trajectory import plan_readouts, read_positions
from mrirecon.io.lines import conjugated
from mrirecon.io.options import ReadOptions
from mrirecon.kspace import KSpace
from operators.decision import Decision
from operators.errors import InputError
from operators.io.files import replacing
from operators.io.hdf5 import find_dataset, hdf5_errors, open_hdf5, read_text
from operators.voxel_grid import Triple

_DEFAULTS = ReadOptions()
_LAST_IN_SLICE, _LAST_IN_MEASUREMENT = 8, 25
_LARGEST_INDEX = 2**16 - 1
_MOST_GROUPS = 1000

_COUNTERS_DTYPE = np.dtype(
    [
        *((name, "<u2") for name in STEPS),
        *((name, "<u2") for name in ("average", "slice", "contrast", "phase", "repetition", "set", "segment")),
        ("user", "<u2", (8,)),
    ]
)
_HEAD_DTYPE = np.dtype(
    [
        ("version", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("scan_counter", "<u4"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", (3,)),
        ("number_of_samples", "<u2"),
        ("available_channels", "<u2"),
        ("active_channels", "<u2"),
        ("channel_mask", "<u8", (16,)),
        ("discard_pre", "<u2"),
        ("discard_post", "<u2"),
        ("center_sample", "<u2"),
        ("encoding_space_ref", "<u2"),
        ("trajectory_dimensions", "<u2"),
        ("sample_time_us", "<f4"),
        ("position", "<f4", (3,)),
        ("read_dir", "<f4", (3,)),
        ("phase_dir", "<f4", (3,)),
        ("slice_dir", "<f4", (3,)),
        ("patient_table_position", "<f4", (3,)),
        ("idx", _COUNTERS_DTYPE),
        ("user_int", "<i4", (8,)),
        ("user_float", "<f4", (8,)),
    ]
)
_FLOATS_DTYPE = h5py.vlen_dtype(np.float32)
_TABLE_DTYPE = np.dtype([("head", _HEAD_DTYPE), ("traj", _FLOATS_DTYPE), ("data", _FLOATS_DTYPE)])


def looks_like_ismrmrd(file: h5py.File) -> bool:
    """Whether an HDF5 file has a group with the header and the acquisitions of an ISMRMRD measurement.

    Parameters
    ----------
    file
        The open file.
    """
    return bool(_measurements(file))


def read_ismrmrd(path: Path | str, options: ReadOptions = _DEFAULTS) -> KSpace:
    """Read an ISMRMRD scan, Cartesian or with a trajectory.

    Lines are placed by their encoding counters, never by the order of their arrival; what was not measured stays zero
    and unmarked in the mask. Noise, navigation, phase correction, feedback, dummy and surface coil correction lines are
    not part of the image; lines for calibration only are kept apart. Reversed readouts are flipped: ``center_sample``
    counts along increasing kx, ``discard_pre`` and ``discard_post`` in the order of the recording.

    Lines with a trajectory that is not that of a Cartesian grid stay readouts, with their samples in the order of the
    recording, and lines for calibration only are left out. The encoded matrix is that of the image.

    Parameters
    ----------
    path
        The HDF5 file.
    options
        Overrides of decisions.

    Returns
    -------
    KSpace
        Batch axes are those of ``repetition, set, phase, contrast, average, slice`` that have several entries (a
        two-dimensional scan always has ``slice``).

    Raises
    ------
    InputError
        If the file cannot be read as an ISMRMRD scan within the memory limit, or names a trajectory that it lacks.
    """
    log: list[Decision] = []
    with open_hdf5(path) as file:
        group = _choose_measurement(file, path, options, log)
        xml = find_dataset(group, "xml")
        table = find_dataset(group, "data")
        if xml is None or table is None:
            raise InputError(f"{path} is damaged: its header or its acquisitions cannot be opened; copy it again.")
        facts = parse_header(read_text(xml, path))
        log += [Decision("header", "incomplete", sentence, warning=True) for sentence in facts.warnings[:20]]
        heads = read_heads(table, path, options)
        kinds = sort_by_kind(heads, path, log)
        positions = read_positions(table, heads, kinds, facts, options, path, log)
        if positions is None:
            check_cartesian(facts, log)
            check_cartesian_options(options, str(path))
            plan = plan_lines(heads, kinds, facts, options, path, log)
        else:
            plan = plan_readouts(positions, heads, kinds, facts, options, path, log)
            del positions
        check_scan_memory(heads, plan, options, path)
        samples = _read_samples(table, heads, kinds.used, path)
    return kspace_from_lines(samples, heads, kinds, plan, facts, options, log)


def write_ismrmrd(path: Path | str, kspace: KSpace, *, overwrite: bool = False) -> None:
    """Write a scan as an ISMRMRD file that `read_ismrmrd` reads back as it was.

    Only measured lines are written; a line of which a part was measured gets ``discard_pre`` and ``discard_post``.
    A trajectory is written in cycles per pixel, the one unit that its size cannot be mistaken for another, by readouts
    of ``readout_length``. Identifiers of the person, density compensation, decisions and counts are not written.

    Parameters
    ----------
    path
        The HDF5 file.
    kspace
        The scan; its batch axes are among ``repetition, set, phase, contrast, average, slice``.
    overwrite
        Replace an existing file.

    Raises
    ------
    InputError
        If the path cannot be written, or the scan cannot be put in lines: a readout measured in several pieces, an
        image without any line, more than 65535 entries of an index, a trajectory that is zero everywhere.
    """
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(_file_image(_header_xml(kspace), _acquisitions(kspace)))


def _measurements(file: h5py.File) -> list[str]:
    """Names of the groups, at most two levels deep, that hold ``xml`` and acquisitions."""
    found: list[str] = []
    level: list[h5py.Group] = [file]
    for _ in range(3):
        found += [group.name or "/" for group in level if _is_measurement(group)]
        level = [child for group in level for child in _subgroups(group)][:_MOST_GROUPS]
    return found


def _is_measurement(group: h5py.Group) -> bool:
    xml, table = find_dataset(group, "xml"), find_dataset(group, "data")
    if xml is None or table is None:
        return False
    try:
        with hdf5_errors(group.file.filename, "reading a type"):
            return {"head", "data"} <= set(table.dtype.names or ())
    except InputError:
        return False  # a type that NumPy cannot express is not ours


def _subgroups(group: h5py.Group) -> list[h5py.Group]:
    try:
        with hdf5_errors(group.file.filename, "listing a group"):
            names = [name for name in group if isinstance(group.get(name, getlink=True), h5py.HardLink)]
            return [group[name] for name in names[:_MOST_GROUPS] if group.get(name, getclass=True) is h5py.Group]
    except InputError:
        return []  # what lies below a damaged index cannot be found


def _choose_measurement(file: h5py.File, path: Path | str, options: ReadOptions, log: list[Decision]) -> h5py.Group:
    found = _measurements(file)
    names = [name.strip("/") for name in found]
    if not found:
        raise InputError(f"{path} holds no ISMRMRD data: no group has the datasets 'xml' and 'data'.")
    if options.variable is not None:
        if options.variable.strip("/") not in names:
            raise InputError(f"{path} has no measurement {options.variable!r}; it has {', '.join(names)}.")
        return file[found[names.index(options.variable.strip("/"))]]
    chosen = names.index("dataset") if "dataset" in names else 0
    if len(found) > 1:
        reason = f"The file holds several measurements: {', '.join(names)}."
        log.append(Decision("measurement", names[chosen], reason, "--variable", warning=True))
    return file[found[chosen]]


def _read_samples(table: h5py.Dataset, heads: Heads, used: NDArray[np.bool_], path: Path | str) -> NDArray[np.object_]:
    """Samples of every line as it stands in the file: real and imaginary part in turn, coil by coil."""
    with hdf5_errors(path, "reading the samples"):
        item = h5py.check_vlen_dtype(table.dtype["data"])
        if item is None or item.kind != "f":
            raise InputError(f"The samples of {path} are {item or table.dtype['data']}; expected lists of floats.")
        samples = table.fields("data")[()]
    expected = 2 * heads.n_samples * heads.n_coils
    lengths = np.fromiter((len(line) for line in samples), dtype=np.int64, count=len(samples))
    wrong = np.flatnonzero(used & (lengths != expected))
    if len(wrong):
        line = int(wrong[0])
        raise InputError(
            f"{len(wrong)} lines of {path} do not have the length that they state: line {line} holds {lengths[line]} "
            f"numbers, but 2 × {heads.n_samples[line]} samples × {heads.n_coils[line]} coils are {expected[line]}."
        )
    check_finite_lines(samples, np.flatnonzero(used), path)
    return samples


def _file_image(xml: bytes, acquisitions: NDArray[Any]) -> bytes:
    """The HDF5 file as bytes: written from memory, a full disk is an ordinary error and not HDF5's."""
    with h5py.File("scan.h5", "w", driver="core", backing_store=False) as file:
        group = file.create_group("dataset")
        group.create_dataset("xml", data=np.array([xml], dtype=object), dtype=h5py.string_dtype("ascii"))
        group.create_dataset("data", data=acquisitions, maxshape=(None,))
        file.flush()
        return bytes(file.id.get_file_image())


def _acquisitions(kspace: KSpace) -> NDArray[Any]:
    """The acquisition table: noise, lines for calibration only, and measured lines."""
    unknown = [axis for axis in kspace.batch_axes if axis not in BATCH_COUNTERS]
    if unknown:
        raise InputError(f"ISMRMRD has no counter for the axis {unknown[0]!r}; it has {', '.join(BATCH_COUNTERS)}.")
    if sign_of(kspace.acquisition.manufacturer) == "forward":
        kspace = conjugated(kspace)
    batch_shape = kspace.data.shape[: len(kspace.batch_axes)]
    shape = _shape_in_lines(kspace)
    largest = max(*batch_shape, *shape, kspace.n_coils, 1)
    if largest > _LARGEST_INDEX:
        hint = "" if kspace.is_cartesian else "; give the length of its readouts, if that is missing"
        raise InputError(f"The scan has {largest} entries along an axis; ISMRMRD counts to {_LARGEST_INDEX}{hint}.")
    n_batch = math.prod(batch_shape)
    grid = (n_batch, kspace.n_coils, *shape)
    data = kspace.data.detach().cpu().to(torch.complex64).reshape(grid).numpy()
    mask = kspace.mask.detach().cpu().expand(*batch_shape, 1, *kspace.k_shape)
    measured = mask.reshape(n_batch, *shape).numpy() != 0
    first, last = _extent(measured)
    imaging = measured.any(axis=-1)  # (batch, kz, ky)
    if not imaging.any(axis=(1, 2)).all():
        empty = int(np.argmin(imaging.any(axis=(1, 2))))
        raise InputError(f"Image {empty} of the scan has no measured line; leave it out before writing.")
    serves_both = np.zeros_like(imaging)
    parts = []
    if kspace.noise is not None:
        parts.append(_noise_table(kspace.noise.detach().cpu().to(torch.complex64).numpy()))
    if kspace.calibration is not None:
        calibration = kspace.calibration.detach().cpu().to(torch.complex64).reshape(grid).numpy()
        present = (calibration != 0).any(axis=(1, -1))
        serves_both = present & imaging & (calibration == data).all(axis=(1, -1))
        table = _line_table(calibration, np.argwhere(present & ~serves_both), kspace)
        table["head"]["flags"] = _bit(CALIBRATION)
        parts.append(table)
    places = np.argwhere(imaging)
    table = _line_table(data, places, kspace)
    head = table["head"]
    head["flags"] = np.where(serves_both[tuple(places.T)], _bit(CALIBRATION_AND_IMAGING), _bit())
    head["flags"][np.flatnonzero(np.diff(places[:, 0], append=n_batch))] |= _bit(_LAST_IN_SLICE)
    head["flags"][-1] |= _bit(_LAST_IN_MEASUREMENT)
    head["discard_pre"] = first[tuple(places.T)]
    head["discard_post"] = shape[2] - last[tuple(places.T)]
    if kspace.trajectory is not None:
        _add_trajectory(table, kspace.trajectory, places, (*batch_shape, *shape[1:]))
    parts.append(table)
    acquisitions = np.empty(sum(map(len, parts)), dtype=_TABLE_DTYPE)
    acquisitions[:] = np.concatenate(parts)  # which forgets what the lists of floats are made of
    acquisitions["head"]["scan_counter"] = np.arange(len(acquisitions))
    return acquisitions


def _shape_in_lines(kspace: KSpace) -> Sizes:
    """Size of the grid, or (1, readout, sample) of a trajectory, which is one readout where they differ in length."""
    if kspace.is_cartesian:
        return kspace.acquisition.encoded_shape
    length = kspace.readout_length or kspace.n_samples
    return 1, kspace.n_samples // length, length


def _add_trajectory(
    table: NDArray[Any], trajectory: torch.Tensor, places: NDArray[np.int64], shape: tuple[int, ...]
) -> None:
    """Give the lines at ``places`` (batch, 0, readout) of a scan (*batch, readout, sample) their positions."""
    n_dims = trajectory.shape[-1]
    positions = trajectory.detach().cpu().double().expand(*shape[:-2], -1, -1).reshape(-1, *shape[-2:], n_dims).numpy()
    cycles = (positions[places[:, 0], places[:, 2]] / (2 * math.pi))[..., ::-1].astype(np.float32)
    if not cycles[..., :2].any():
        raise InputError("The trajectory is zero everywhere, which ISMRMRD readers take for none; give its positions.")
    table["head"]["trajectory_dimensions"] = n_dims
    table["head"]["center_sample"] = np.square(cycles).sum(axis=-1).argmin(axis=-1)
    for line, values in enumerate(cycles.reshape(len(cycles), -1)):
        table["traj"][line] = values


def _bit(*flags: int) -> np.uint64:
    return np.uint64(sum(1 << (flag - 1) for flag in flags))


def _extent(measured: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First measured sample of each line, and the one after the last."""
    n_x = measured.shape[-1]
    first, last = measured.argmax(axis=-1), n_x - measured[..., ::-1].argmax(axis=-1)
    pieces = measured.any(axis=-1) & (measured.sum(axis=-1) != last - first)
    if pieces.any():
        raise InputError(
            f"{pieces.sum()} readouts are measured in several pieces; an ISMRMRD line holds one, so choose a mask of "
            f"whole lines or a box."
        )
    return first, last


def _empty_table(n_lines: int, n_coils: int) -> NDArray[Any]:
    table = np.zeros(n_lines, dtype=_TABLE_DTYPE)
    head = table["head"]
    head["version"] = 1
    head["available_channels"] = head["active_channels"] = n_coils
    channels = np.zeros(16, dtype=np.uint64)
    for channel in range(min(n_coils, 1024)):
        channels[channel // 64] |= np.uint64(1 << channel % 64)
    head["channel_mask"] = channels
    for line in range(n_lines):
        table["traj"][line] = np.zeros(0, dtype=np.float32)
    return table


def _line_table(grid: NDArray[np.complex64], places: NDArray[np.int64], kspace: KSpace) -> NDArray[Any]:
    """Whole lines of ``grid`` at ``places`` (batch, kz, ky), with their counters and geometry."""
    n_x, acquisition = grid.shape[-1], kspace.acquisition
    batch, z, y = places.T
    table = _empty_table(len(places), grid.shape[1])
    head = table["head"]
    head["number_of_samples"] = n_x
    head["center_sample"] = n_x // 2
    counters = head["idx"]
    counters[STEPS[0]], counters[STEPS[1]] = y, z
    index = np.unravel_index(batch, kspace.data.shape[: len(kspace.batch_axes)]) if kspace.batch_axes else ()
    for axis, values in zip(kspace.batch_axes, index, strict=True):
        counters[axis] = values
    if acquisition.geometry_known:
        head["slice_dir"], head["phase_dir"], head["read_dir"] = acquisition.directions
    head["position"] = np.array(_slice_positions_mm(kspace))[counters["slice"] if kspace.n_dims == 2 else 0]
    lines = np.ascontiguousarray(grid[batch, :, z, y]).view(np.float32).reshape(len(places), 2 * n_x * grid.shape[1])
    for line, samples in enumerate(lines):
        table["data"][line] = samples
    return table


def _slice_positions_mm(kspace: KSpace) -> tuple[Triple, ...]:
    positions = kspace.acquisition.slice_positions_mm
    if kspace.n_dims == 3 or len(positions) == kspace.n_slices:
        return positions
    if len(positions) != 1:
        raise InputError(f"The scan has {kspace.n_slices} slices, but {len(positions)} slice positions.")
    grid = kspace.acquisition.encoded_grid(n_slices=kspace.n_slices)
    centre = (grid.shape[1] // 2, grid.shape[2] // 2)
    return tuple(grid.position_mm((index, *centre)) for index in range(kspace.n_slices))


def _noise_table(noise: NDArray[np.complex64]) -> NDArray[Any]:
    starts = range(0, noise.shape[1], _LARGEST_INDEX)
    table = _empty_table(len(starts), len(noise))
    for line, start in enumerate(starts):
        samples = np.ascontiguousarray(noise[:, start : start + _LARGEST_INDEX])
        table["head"]["number_of_samples"][line] = samples.shape[1]
        table["data"][line] = samples.view(np.float32).reshape(-1)
    table["head"]["flags"] = _bit(NOISE)
    return table


def _header_xml(kspace: KSpace) -> bytes:
    acquisition = kspace.acquisition
    root = ElementTree.Element("ismrmrdHeader", xmlns="http://www.ismrm.org/ISMRMRD")
    system = _added(root, "acquisitionSystemInformation")
    _add_text(system, "systemVendor", acquisition.manufacturer)
    _add_text(system, "systemFieldStrength_T", acquisition.field_strength_t)
    _add_text(system, "receiverChannels", kspace.n_coils)
    frequency_hz = round(LARMOR_HZ_PER_T * (acquisition.field_strength_t or 0.0))
    _add_text(_added(root, "experimentalConditions"), "H1resonanceFrequency_Hz", frequency_hz)
    encoding = _added(root, "encoding")
    shape, encoded_mm, recon_mm = acquisition.encoded_shape, acquisition.encoded_fov_mm, acquisition.recon_fov_mm
    recon_shape = [max(round(n * r / e), 1) for n, r, e in zip(shape, recon_mm, encoded_mm, strict=True)]
    _add_space(encoding, "encodedSpace", shape, encoded_mm)
    _add_space(encoding, "reconSpace", recon_shape, recon_mm)
    _add_text(encoding, "trajectory", "cartesian" if kspace.is_cartesian else "other")
    limits = _added(encoding, "encodingLimits")
    for step, n in enumerate(reversed(_shape_in_lines(kspace))):
        _add_limit(limits, f"kspace_encoding_step_{step}", n, n // 2)
    for axis, n in zip(kspace.batch_axes, kspace.data.shape, strict=False):
        _add_limit(limits, axis, n, 0)
    sequence = _added(root, "sequenceParameters")
    _add_text(sequence, "TR", acquisition.repetition_time_ms)
    _add_text(sequence, "TE", acquisition.echo_time_ms)
    _add_text(sequence, "TI", acquisition.inversion_time_ms)
    _add_text(sequence, "flipAngle_deg", acquisition.flip_angle_deg)
    _add_text(sequence, "sequence_type", acquisition.sequence_name)
    ElementTree.indent(root)
    return b'<?xml version="1.0" encoding="us-ascii"?>\n' + ElementTree.tostring(root, encoding="us-ascii")


def _added(parent: ElementTree.Element, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(parent, name)


def _add_text(parent: ElementTree.Element, name: str, value: str | float | None) -> None:
    if value is not None:
        _added(parent, name).text = str(value)


def _add_space(parent: ElementTree.Element, name: str, shape: Sequence[int], fov_mm: Sequence[float]) -> None:
    space = _added(parent, name)
    matrix, fov = _added(space, "matrixSize"), _added(space, "fieldOfView_mm")
    for axis, n, extent_mm in zip("xyz", reversed(shape), reversed(fov_mm), strict=True):
        _add_text(matrix, axis, n)
        _add_text(fov, axis, extent_mm)


def _add_limit(parent: ElementTree.Element, name: str, n: int, centre: int) -> None:
    limit = _added(parent, name)
    for bound, value in (("minimum", 0), ("maximum", n - 1), ("center", centre)):
        _add_text(limit, bound, value)
