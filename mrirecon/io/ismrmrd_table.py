"""What the acquisition table of an ISMRMRD file says: kinds of lines, their places on the grid, the geometry."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from mrirecon.acquisition import Acquisition, Sizes
from mrirecon.io.ismrmrd_header import HeaderFacts
from mrirecon.io.options import ReadOptions
from operators.decision import Decision
from operators.errors import InputError
from operators.io.hdf5 import check_memory, check_type, hdf5_errors
from operators.voxel_grid import IDENTITY_DIRECTIONS, Triple

STEPS = ("kspace_encode_step_1", "kspace_encode_step_2")
BATCH_COUNTERS = ("repetition", "set", "phase", "contrast", "average", "slice")

# Flags are 1-based bits.
NOISE, CALIBRATION, CALIBRATION_AND_IMAGING, REVERSE = 19, 20, 21, 22
_SKIPPED_KINDS = {
    "noise lines": (NOISE,),
    "navigation lines": (23,),
    "phase correction lines": (24,),
    "feedback lines": (26, 28),
    "dummy lines": (27,),
    "surface coil correction lines": (29,),
}


@dataclass(frozen=True, slots=True)
class Heads:
    """Columns of the acquisition table that matter, one row per line.

    Parameters
    ----------
    flags
        Bits of the acquisition flags.
    n_samples, n_coils
        Size of the line.
    discard_pre, discard_post
        Samples to leave out at the start and the end of the recording.
    center_sample
        Sample of the k-space centre, counted along increasing kx.
    encoding_space
        Which encoding of the header the line belongs to.
    dwell_us
        Time between samples, in µs; 0 where unknown.
    position_mm
        ``(line, 3)``: LPS position of the centre of slice or slab, in mm.
    directions
        ``(line, 3, 3)``: unit vectors in LPS along slice, phase and readout.
    counters
        ``(line, 8)``: encoding counters, those of ``STEPS`` and of ``BATCH_COUNTERS``.
    n_components
        Components of the trajectory of each line, 0 where it has none; ``None`` in formats without trajectories.
    """

    flags: NDArray[np.uint64]
    n_samples: NDArray[np.int64]
    n_coils: NDArray[np.int64]
    discard_pre: NDArray[np.int64]
    discard_post: NDArray[np.int64]
    center_sample: NDArray[np.int64]
    encoding_space: NDArray[np.int64]
    dwell_us: NDArray[np.float64]
    position_mm: NDArray[np.float64]
    directions: NDArray[np.float64]
    counters: NDArray[np.int64]
    n_components: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.flags)

    @property
    def n_kept(self) -> NDArray[np.int64]:
        """Samples of each line that are not discarded."""
        return self.n_samples - self.discard_pre - self.discard_post

    def counter(self, name: str) -> NDArray[np.int64]:
        """One encoding counter of each line."""
        return self.counters[:, (*STEPS, *BATCH_COUNTERS).index(name)]

    def flagged(self, *flags: int) -> NDArray[np.bool_]:
        """Whether each line has any of these flags, counted from 1."""
        bits = np.uint64(sum(1 << (flag - 1) for flag in flags))
        return (self.flags & bits) != 0


def read_heads(table: h5py.Dataset, path: Path | str, options: ReadOptions) -> Heads:
    """Read the headers of all lines, without their samples.

    Parameters
    ----------
    table
        The acquisition table.
    path
        The file, for messages.
    options
        For the memory limit.

    Raises
    ------
    InputError
        If there are no lines, or the table is not ISMRMRD's.
    """
    check_type(table, path)
    with hdf5_errors(path, "reading the acquisition headers"):
        n_lines = table.shape[0] if table.ndim == 1 else 0
        if n_lines == 0:
            raise InputError(f"{path} holds zero acquisitions; the scan may have been stopped before it began.")
        check_memory(n_lines, table.dtype.itemsize, options.memory_limit_bytes, what=f"The acquisition table of {path}")
        heads = table.fields("head")[()]
    columns = _Columns(heads, path)
    counters = _Columns(columns.raw("idx"), path)
    return Heads(
        flags=columns.integers("flags").astype(np.uint64),
        n_samples=columns.integers("number_of_samples"),
        n_coils=columns.integers("active_channels"),
        discard_pre=columns.integers("discard_pre"),
        discard_post=columns.integers("discard_post"),
        center_sample=columns.integers("center_sample"),
        encoding_space=columns.integers("encoding_space_ref"),
        dwell_us=columns.numbers("sample_time_us"),
        position_mm=columns.numbers("position", 3),
        directions=np.stack([columns.numbers(name, 3) for name in ("slice_dir", "phase_dir", "read_dir")], axis=1),
        counters=np.stack([counters.integers(name) for name in (*STEPS, *BATCH_COUNTERS)], axis=1),
        n_components=columns.integers("trajectory_dimensions"),
    )


@dataclass(frozen=True, slots=True)
class _Columns:
    """Checked access to the fields of a compound table, whatever a file made of them."""

    table: NDArray[Any]
    path: Path | str

    def raw(self, name: str) -> NDArray[Any]:
        if name not in (self.table.dtype.names or ()):
            raise InputError(f"The acquisitions of {self.path} have no field {name!r}; they are not ISMRMRD's.")
        return np.asarray(self.table[name])

    def integers(self, name: str) -> NDArray[Any]:
        values = self.raw(name)
        if values.dtype.kind not in "iu" or values.ndim != 1:
            raise InputError(f"Field {name!r} of the acquisitions of {self.path} does not hold one integer each.")
        if name == "flags":
            return values
        if values.min() < 0 or values.max() >= 2**31:
            raise InputError(f"Field {name!r} of the acquisitions of {self.path} is out of range; the file is damaged.")
        return values.astype(np.int64)

    def numbers(self, name: str, n: int | None = None) -> NDArray[np.float64]:
        values = self.raw(name)
        if values.dtype.kind not in "iuf" or values.shape[1:] != (() if n is None else (n,)):
            raise InputError(
                f"Field {name!r} of the acquisitions of {self.path} does not hold {n or 1} number(s) each."
            )
        return values.astype(np.float64)


@dataclass(frozen=True, slots=True)
class Kinds:
    """Which lines are of which kind, as masks over the table; imaging and calibration may overlap.

    Parameters
    ----------
    imaging, calibration, noise
        Lines that are read.
    counts
        How many lines of each kind there are, for people.
    """

    imaging: NDArray[np.bool_]
    calibration: NDArray[np.bool_]
    noise: NDArray[np.bool_]
    counts: tuple[tuple[str, int], ...]

    @property
    def used(self) -> NDArray[np.bool_]:
        """Lines whose samples are needed."""
        return self.imaging | self.calibration | self.noise


def sort_by_kind(heads: Heads, path: Path | str, log: list[Decision]) -> Kinds:
    """Tell imaging lines from the others by their flags.

    Parameters
    ----------
    heads
        The lines.
    path
        The file, for messages.
    log
        Decisions are appended.

    Raises
    ------
    InputError
        If there are no imaging lines, the lines disagree on the number of coils, or a line discards all its samples.
    """
    skipped = np.zeros(len(heads), dtype=bool)
    counts: dict[str, int] = {"acquisitions": len(heads)}
    kinds = {}
    for name, flags in _SKIPPED_KINDS.items():
        kinds[name] = heads.flagged(*flags) & ~skipped
        skipped |= kinds[name]
    elsewhere = (heads.encoding_space != 0) & ~skipped
    if elsewhere.any():
        reason = f"{elsewhere.sum()} lines belong to a second encoding, such as a separate calibration scan."
        log.append(Decision("encoding_space", "0", reason, warning=True))
    kinds["lines of other encodings"] = elsewhere
    skipped |= elsewhere
    # Siemens sets both flags on lines that serve both purposes.
    calibration = heads.flagged(CALIBRATION, CALIBRATION_AND_IMAGING) & ~skipped
    calibration_only = calibration & ~heads.flagged(CALIBRATION_AND_IMAGING)
    imaging = ~skipped & ~calibration_only
    navigators = _unflagged_navigators(heads, imaging, log)
    kinds["navigation lines"] |= navigators
    imaging &= ~navigators
    counts["imaging lines"] = int(imaging.sum())
    counts["calibration lines"] = int(calibration.sum())
    counts["calibration-only lines"] = int(calibration_only.sum())
    counts["reversed lines"] = int((imaging & heads.flagged(REVERSE)).sum())
    counts |= {name: int(mask.sum()) for name, mask in kinds.items()}
    present = tuple((name, n) for name, n in counts.items() if n or name == "imaging lines")
    if not imaging.any():
        others = ", ".join(f"{n} {name}" for name, n in present if n)
        raise InputError(f"{path} holds no imaging lines, only {others}.")
    found = Kinds(imaging, calibration & ~navigators, kinds["noise lines"], present)
    _check_lines(heads, found, path)
    return found


def _unflagged_navigators(heads: Heads, imaging: NDArray[np.bool_], log: list[Decision]) -> NDArray[np.bool_]:
    """Lines of an unusual length that repeat the indices of a usual one, as OSI² ONE consoles record navigators."""
    lengths, n_lines = np.unique(heads.n_samples[imaging], return_counts=True)
    if len(lengths) < 2:
        return np.zeros(len(heads), dtype=bool)
    usual = imaging & (heads.n_samples == lengths[np.argmax(n_lines)])
    _, place = np.unique(heads.counters, axis=0, return_inverse=True)
    place = place.reshape(-1)
    navigators = imaging & ~usual & np.isin(place, place[usual])
    if navigators.any():
        reason = f"{navigators.sum()} lines repeat the indices of others with another length, without any flag."
        log.append(Decision("navigators", "left out", reason, warning=True))
    return navigators


def _check_lines(heads: Heads, kinds: Kinds, path: Path | str) -> None:
    coils, n_lines = np.unique(heads.n_coils[kinds.used], return_counts=True)
    if len(coils) > 1:
        found = ", ".join(f"{n} with {c}" for c, n in zip(coils, n_lines, strict=True))
        raise InputError(f"The lines of {path} disagree on the number of coils ({found}); all must have the same.")
    if coils[0] == 0:
        raise InputError(f"The lines of {path} have no coils; the file is damaged or holds no samples.")
    empty = kinds.used & (heads.n_kept < 1)
    if empty.any():
        line = int(np.argmax(empty))
        raise InputError(
            f"Line {line} of {path} has {heads.n_samples[line]} samples and discards {heads.discard_pre[line]} + "
            f"{heads.discard_post[line]} of them; at least one must remain."
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """The grid, and the place of each line on it; with a trajectory its readouts take the place of the grid.

    Parameters
    ----------
    shape
        Size of the grid (kz, ky, kx); (1, readout, sample) with a trajectory.
    n_dims
        Number of k-space dimensions.
    batch_axes, batch_shape
        Names and sizes of the batch axes of the result.
    targets
        ``(line, 3)``: flat batch index and first two indices on the grid of every line.
    starts
        ``(line,)``: last index on the grid of the first kept sample.
    imaging, calibration
        Indices of the lines that are on the grid.
    acquisition
        Geometry and protocol.
    trajectory
        Float64 ``([*batch,] readout, sample, dim)``, radians per pixel, ([kz,] ky, kx); batch axes that share it have
        size 1. ``None`` on the Cartesian grid.
    """

    shape: Sizes
    n_dims: int
    batch_axes: tuple[str, ...]
    batch_shape: tuple[int, ...]
    targets: NDArray[np.int64]
    starts: NDArray[np.int64]
    imaging: NDArray[np.int64]
    calibration: NDArray[np.int64]
    acquisition: Acquisition
    trajectory: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Images:
    """The images of a scan, and which of them each line belongs to.

    Parameters
    ----------
    batch_axes, batch_shape
        Names and sizes of the batch axes.
    index
        ``(line,)``: flat batch index of every line.
    known
        ``(line,)``: whether the counters of a line are those of an image.
    acquisition
        Geometry and protocol.
    """

    batch_axes: tuple[str, ...]
    batch_shape: tuple[int, ...]
    index: NDArray[np.int64]
    known: NDArray[np.bool_]
    acquisition: Acquisition


def plan_lines(
    heads: Heads, kinds: Kinds, facts: HeaderFacts, options: ReadOptions, path: Path | str, log: list[Decision]
) -> Plan:
    """Decide on the grid and place every line on it, by its counters.

    Parameters
    ----------
    heads, kinds
        The lines.
    facts
        The header.
    options
        Overrides of decisions.
    path
        The file, for messages.
    log
        Decisions are appended.

    Raises
    ------
    InputError
        If half of the lines or more fall outside the grid.
    """
    n_dims, n_z = count_dimensions(heads, kinds.imaging, facts, log)
    shape, encoded_fov_mm = _grid(heads, kinds.imaging, facts, n_z, log)
    starts = _starts(heads, kinds.imaging, shape[2], log)
    rows = rows_of(heads, kinds.imaging, facts, STEPS[0], shape[1], log)
    if n_dims == 3:
        partitions = rows_of(heads, kinds.imaging, facts, STEPS[1], n_z, log)
    else:
        step = heads.counter(STEPS[1])
        partitions = step - step[kinds.imaging].min()
    inside = (starts >= 0) & (starts + heads.n_kept <= shape[2])
    inside &= (rows >= 0) & (rows < shape[1]) & (partitions >= 0) & (partitions < n_z)
    check_inside(inside, kinds, shape, path, log)
    imaging = kinds.imaging & inside
    n_averages = len(np.unique(heads.counter("average")[imaging]))
    if options.average and n_averages > 1:
        reason = "The file marks them as averages of the same image; each line is divided by its own count."
        log.append(Decision("averages", f"{n_averages} averaged", reason, "--split-averages"))
    images = find_images(heads, imaging, facts, shape, encoded_fov_mm, options, log)
    calibration = kinds.calibration & inside & images.known
    n_elsewhere = int((kinds.calibration & ~calibration).sum())
    if n_elsewhere:
        reason = f"{n_elsewhere} calibration lines have counters that no image of the scan has."
        log.append(Decision("calibration_elsewhere", "left out", reason, warning=True))
    return Plan(
        shape=shape,
        n_dims=n_dims,
        batch_axes=images.batch_axes,
        batch_shape=images.batch_shape,
        targets=np.stack([images.index, partitions, rows], axis=1),
        starts=starts,
        imaging=np.flatnonzero(imaging),
        calibration=np.flatnonzero(calibration),
        acquisition=images.acquisition,
    )


def find_images(
    heads: Heads,
    imaging: NDArray[np.bool_],
    facts: HeaderFacts,
    shape: Sizes,
    encoded_fov_mm: Triple,
    options: ReadOptions,
    log: list[Decision],
) -> Images:
    """Tell the images of a scan apart by the counters of the imaging lines.

    Parameters
    ----------
    heads, imaging
        The lines, and which of them are on the grid.
    facts
        The header.
    shape
        Matrix of an uncropped image, (z, y, x).
    encoded_fov_mm
        Its field of view, (z, y, x), in mm.
    options
        Whether averages become one image.
    log
        Decisions are appended.

    Returns
    -------
    Images
        Slices are in the order of their positions.
    """
    n_dims = 2 if shape[0] == 1 else 3
    axes = _batch(heads, imaging, options, log)
    geometry = _geometry(heads, imaging, encoded_fov_mm[0], n_dims, log)
    batch, known = _flat_batch(heads, axes, geometry.slice_order)
    kept = tuple(name for name, values in axes.items() if len(values) > 1 or (name == "slice" and n_dims == 2))
    return Images(
        batch_axes=kept,
        batch_shape=tuple(len(axes[name]) for name in kept),
        index=batch,
        known=known,
        acquisition=_acquisition(facts, shape, encoded_fov_mm, geometry, log),
    )


def count_dimensions(
    heads: Heads, imaging: NDArray[np.bool_], facts: HeaderFacts, log: list[Decision]
) -> tuple[int, int]:
    """Decide between a stack of slices and a volume by header and second phase encoding.

    Parameters
    ----------
    heads, imaging
        The lines, and which of them are for imaging.
    facts
        The header.
    log
        Decisions are appended.

    Returns
    -------
    n_dims
        Number of k-space dimensions, 2 or 3.
    n_partitions
        Size of the grid along kz.
    """
    stated = facts.encoded_shape[0]
    steps = np.unique(heads.counter("kspace_encode_step_2")[imaging])
    if stated is None:
        n_z = int(steps[-1]) + 1
    elif stated > 1 and len(steps) == 1 and not facts.limit("kspace_encoding_step_2").maximum:
        reason = f"The header says {stated} partitions, but no line has a second phase-encoding step."
        log.append(Decision("dimensions", "2", reason, warning=True))
        n_z = 1
    else:
        n_z = stated
    return (2 if n_z == 1 else 3), n_z


def _grid(
    heads: Heads, imaging: NDArray[np.bool_], facts: HeaderFacts, n_z: int, log: list[Decision]
) -> tuple[Sizes, Triple]:
    """Size of the k-space grid, and the field of view that it encodes."""
    longest = int(heads.n_kept[imaging].max())
    n_rows = int(heads.counter("kspace_encode_step_1")[imaging].max()) + 1
    stated = dict(zip("zyx", facts.encoded_shape, strict=True))
    missing = [axis for axis in "yx" if stated[axis] is None]
    shape = (n_z, stated["y"] or n_rows, stated["x"] or longest)
    if missing:
        reason = f"The header gives no encoded matrix along {' and '.join(missing)}; it was taken from the lines."
        log.append(Decision("matrix", f"{shape}", reason, warning=True))
    fov_mm = list(encoded_fov(facts, shape, log)[0])
    if longest > shape[2]:
        reason = (
            f"Lines have {longest} samples, the header's encoded matrix {shape[2]}: it was taken for an over-sampled "
            f"readout, and the encoded field of view for {fov_mm[2] * longest / shape[2]:g} mm."
        )
        log.append(Decision("readout_size", str(longest), reason, "--voxel-mm", warning=True))
        fov_mm[2] *= longest / shape[2]
        shape = (shape[0], shape[1], longest)
    return shape, (fov_mm[0], fov_mm[1], fov_mm[2])


def encoded_fov(facts: HeaderFacts, shape: Sizes, log: list[Decision]) -> tuple[Triple, bool]:
    """Field of view of the encoded matrix.

    Parameters
    ----------
    facts
        The header.
    shape
        The encoded matrix, (z, y, x).
    log
        A decision is appended where the header does not say.

    Returns
    -------
    fov_mm
        (z, y, x), in mm: pixels of 1 mm along axes of which the header does not say.
    known
        Whether the header says for all axes.
    """
    fov_mm, unknown = [], []
    for axis, n, encoded_n, encoded, recon_n, recon in zip(
        "zyx",
        shape,
        facts.encoded_shape,
        facts.encoded_fov_mm,
        facts.recon_shape,
        facts.recon_fov_mm,
        strict=True,
    ):
        if encoded is not None:
            fov_mm.append(encoded * n / (encoded_n or n))
        elif recon is not None:
            fov_mm.append(recon * n / (recon_n or n))
        else:
            fov_mm.append(float(n))
            unknown.append(axis)
    if unknown:
        reason = f"The header gives no field of view along {', '.join(unknown)}."
        log.append(Decision("voxel_size", "1 mm", reason, "--voxel-mm", warning=True))
    return (fov_mm[0], fov_mm[1], fov_mm[2]), not unknown


def _starts(heads: Heads, imaging: NDArray[np.bool_], n_x: int, log: list[Decision]) -> NDArray[np.int64]:
    """Index along kx of the first kept sample of each line."""

    def placed(center: NDArray[np.int64]) -> NDArray[np.int64]:
        return n_x // 2 - center + np.where(heads.flagged(REVERSE), heads.discard_post, heads.discard_pre)

    def fits(starts: NDArray[np.int64]) -> bool:
        return bool(((starts >= 0) & (starts + heads.n_kept <= n_x))[imaging].all())

    stated, middle = placed(heads.center_sample), placed(heads.n_samples // 2)
    if fits(stated) or not fits(middle):
        return stated
    reason = "With the centre sample that the lines state, they do not fit the grid; with the middle one they do."
    log.append(Decision("readout_centre", "middle of each line", reason, warning=True))
    return middle


def rows_of(
    heads: Heads, imaging: NDArray[np.bool_], facts: HeaderFacts, step: str, n: int, log: list[Decision]
) -> NDArray[np.int64]:
    """Index on the grid of each line's phase-encoding step.

    Parameters
    ----------
    heads, imaging
        The lines, and which of them are for imaging.
    facts
        The header, for the centre of the counter.
    step
        The counter, one of ``STEPS``.
    n
        Size of the grid along it; n//2 is the k-space centre.
    log
        Decisions are appended.

    Returns
    -------
    NDArray
        ``(line,)``, outside [0, n) where header and lines contradict each other.
    """

    def fits(rows: NDArray[np.int64]) -> bool:
        return bool(((rows >= 0) & (rows < n))[imaging].all())

    steps, centre = heads.counter(step), facts.limit(step.replace("encode", "encoding")).center
    if centre is None:
        reason = f"The header gives no centre of {step}; partial Fourier lines may be displaced."
        log.append(Decision("phase_centre", str(n // 2), reason, warning=True))
        return steps
    rows = steps - centre + n // 2
    if fits(rows) or not fits(steps):
        return rows
    reason = f"With the header's centre {centre} of {step}, lines fall outside the {n} rows; with {n // 2} none does."
    log.append(Decision("phase_centre", str(n // 2), reason, warning=True))
    return steps


def check_inside(inside: NDArray[np.bool_], kinds: Kinds, shape: Sizes, path: Path | str, log: list[Decision]) -> None:
    """Refuse a header that contradicts most lines; say how many lines contradict the header otherwise.

    Parameters
    ----------
    inside
        Whether each line is on the grid.
    kinds
        What each line is for.
    shape
        Size of the grid, (z, y, x).
    path
        The file, for the message.
    log
        A decision is appended where lines are left out.

    Raises
    ------
    InputError
        If half of the imaging lines or more are outside.
    """
    n_outside, n_lines = int((kinds.imaging & ~inside).sum()), int(kinds.imaging.sum())
    grid = " × ".join(map(str, shape))
    if 2 * n_outside >= n_lines:
        raise InputError(
            f"{n_outside} of {n_lines} imaging lines of {path} fall outside the encoded matrix {grid} (z, y, x); "
            f"header and lines contradict each other."
        )
    if n_outside:
        reason = f"{n_outside} of {n_lines} imaging lines fall outside the encoded matrix {grid} (z, y, x)."
        log.append(Decision("lines_outside", "left out", reason, warning=True))


def _batch(
    heads: Heads, imaging: NDArray[np.bool_], options: ReadOptions, log: list[Decision]
) -> dict[str, NDArray[np.int64]]:
    """Values of each counter that makes an axis, in the order of the axes."""
    axes = {name: np.unique(heads.counter(name)[imaging]) for name in BATCH_COUNTERS}
    if options.average:
        axes["average"] = axes["average"][:0]
    for name, values in axes.items():
        if len(values) and values[-1] - values[0] + 1 > len(values):
            reason = f"The {name} counter goes from {values[0]} to {values[-1]} with gaps."
            log.append(Decision(f"missing_{name}", f"{len(values)} found", reason, warning=True))
    return axes


def _flat_batch(
    heads: Heads, axes: dict[str, NDArray[np.int64]], slice_order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Flat batch index of every line, and whether its counters are among those of the imaging lines."""
    flat = np.zeros(len(heads), dtype=np.int64)
    known = np.ones(len(heads), dtype=bool)
    for name, values in axes.items():
        if len(values) == 0:
            continue
        index = np.minimum(np.searchsorted(values, heads.counter(name)), len(values) - 1)
        known &= values[index] == heads.counter(name)
        if name == "slice":
            index = np.argsort(slice_order)[index]
        flat = flat * len(values) + index
    return flat, known


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Directions, positions of the slices along their axis, and the slice counters in that order."""

    directions: tuple[Triple, Triple, Triple]
    positions_mm: tuple[Triple, ...]
    slice_order: NDArray[np.int64]
    known: bool


def _geometry(
    heads: Heads, imaging: NDArray[np.bool_], thickness_mm: float, n_dims: int, log: list[Decision]
) -> _Geometry:
    lines = np.flatnonzero(imaging)
    first = lines[np.unique(heads.counter("slice")[lines], return_index=True)[1]]
    directions, positions = heads.directions[first[0]], heads.position_mm[first]
    known = bool(
        np.isfinite(positions).all()
        and np.isfinite(directions).all()
        and np.allclose(directions @ directions.T, np.eye(3), atol=1e-3)
    )
    if not known:
        reason = "The lines hold no orthonormal directions; where the image lies in the patient is unknown."
        log.append(Decision("geometry", "identity", reason, warning=True))
        directions = np.array(IDENTITY_DIRECTIONS)
        positions = np.where(np.isfinite(positions), positions, 0.0)
    elif not np.allclose(heads.directions[first], directions, atol=1e-3):
        reason = "The slices are not parallel, which one image volume cannot express."
        log.append(Decision("geometry", "directions of the first slice", reason, warning=True))
    if n_dims == 3:
        if len(first) > 1:
            reason = f"There are {len(first)} slabs, and one volume has one position."
            log.append(Decision("geometry", "position of the first slab", reason, warning=True))
        return _Geometry(_triples(directions), _triples(positions[:1]), np.arange(len(first)), known)
    return _stack_geometry(directions, positions, thickness_mm, known, log)


def _stack_geometry(
    directions: NDArray[np.float64],
    positions: NDArray[np.float64],
    thickness_mm: float,
    known: bool,
    log: list[Decision],
) -> _Geometry:
    """Order a stack of slices by position; the slice direction is to point along increasing slice index."""
    along = positions @ directions[0]
    order = np.arange(len(along))
    if len(along) == 1:
        return _Geometry(_triples(directions), _triples(positions), order, known)
    if np.ptp(along) < 1e-3:
        if known:
            reason = "All slices state the same position; they were taken for neighbours without gaps."
            log.append(Decision("slice_positions", f"{thickness_mm:g} mm apart", reason, "--voxel-mm", warning=True))
        positions = positions[0] + order[:, None] * thickness_mm * directions[0]
    elif (np.diff(along) < 0).all():
        directions = np.concatenate([-directions[:1], directions[1:]])
    elif (np.diff(along) < 0).any():
        order = np.argsort(along, kind="stable")
        log.append(Decision("slice_order", "by position", "The slice counter does not follow the slices' positions."))
    steps = np.abs(np.diff((positions @ directions[0])[order]))
    if np.ptp(steps) > 0.01 * steps.mean():
        reason = f"The slices are between {steps.min():g} and {steps.max():g} mm apart; an image has one spacing."
        log.append(Decision("slice_spacing", f"{steps.mean():g} mm", reason, "--voxel-mm", warning=True))
    return _Geometry(_triples(directions), _triples(positions[order]), order, known)


def _triples(vectors: NDArray[np.float64]) -> Any:
    return tuple((float(x), float(y), float(z)) for x, y, z in vectors)


def _acquisition(
    facts: HeaderFacts, shape: Sizes, encoded_fov_mm: Triple, geometry: _Geometry, log: list[Decision]
) -> Acquisition:
    recon_fov_mm = [recon or encoded for recon, encoded in zip(facts.recon_fov_mm, encoded_fov_mm, strict=True)]
    larger = [axis for axis, r, e in zip("zyx", recon_fov_mm, encoded_fov_mm, strict=True) if r > 1.001 * e]
    if larger:
        reason = f"The header asks for an image larger than what is encoded along {', '.join(larger)}."
        log.append(Decision("recon_fov", "as encoded", reason, warning=True))
    recon = [min(r, e) for r, e in zip(recon_fov_mm, encoded_fov_mm, strict=True)]
    return Acquisition(
        encoded_shape=shape,
        encoded_fov_mm=encoded_fov_mm,
        recon_fov_mm=(recon[0], recon[1], recon[2]),
        directions=geometry.directions,
        slice_positions_mm=geometry.positions_mm,
        geometry_known=geometry.known,
        manufacturer=facts.vendor,
        patient=facts.patient,
        **{name: getattr(facts, name) for name in _PROTOCOL},
    )


_PROTOCOL = (
    "field_strength_t",
    "repetition_time_ms",
    "echo_time_ms",
    "inversion_time_ms",
    "flip_angle_deg",
    "sequence_name",
    "protocol_name",
)
