"""Measured lines with their counters become k-space; shared by every format that stores lines."""

import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mrirecon.io.ismrmrd_header import HeaderFacts
from mrirecon.io.ismrmrd_table import REVERSE, Heads, Kinds, Plan
from mrirecon.io.lines import add_lines, conjugated, remove_oversampling, with_voxel_mm
from mrirecon.io.options import ReadOptions
from mrirecon.kspace import KSpace
from operators.decision import Decision
from operators.errors import InputError
from operators.io.hdf5 import check_memory


def check_cartesian(facts: HeaderFacts, log: list[Decision]) -> None:
    """Refuse scans without positions that are not Cartesian; log where the header is silent or the scan echo-planar.

    Raises
    ------
    InputError
        If the header names another trajectory.
    """
    if facts.trajectory is None:
        reason = "The header does not name a trajectory."
        log.append(Decision("trajectory", "cartesian", reason, warning=True))
    elif facts.trajectory == "epi":
        reason = "Echo-planar lines are placed as Cartesian ones, without regridding and phase correction."
        log.append(Decision("trajectory", "cartesian", reason, warning=True))
    elif facts.trajectory != "cartesian":
        raise InputError(
            f"The scan's trajectory is {facts.trajectory[:40]!r}, but its lines do not hold the positions of their "
            f"samples; give an ISMRMRD file with trajectories, or a Cartesian scan."
        )


def check_scan_memory(heads: Heads, plan: Plan, options: ReadOptions, path: Path | str) -> None:
    """Refuse a scan that needs too much memory: sum and count on the grid, two copies of the lines, the trajectory.

    Raises
    ------
    InputError
        If the scan needs more than ``options.memory_limit_bytes``.
    """
    n_grids = 2 if len(plan.calibration) else 1
    grid_bytes = n_grids * math.prod((*plan.batch_shape, *plan.shape)) * (8 * int(heads.n_coils[plan.imaging[0]]) + 4)
    line_bytes = 2 * 8 * int((heads.n_samples * heads.n_coils).sum())
    if plan.trajectory is not None:
        line_bytes += 2 * plan.trajectory.nbytes
    check_memory(grid_bytes + line_bytes, 1, options.memory_limit_bytes, what=f"The scan in {path}")


def check_finite_lines(samples: NDArray[np.object_], lines: NDArray[np.int64], path: Path | str) -> None:
    """Refuse lines with samples that are NaN or infinite.

    Parameters
    ----------
    samples
        Real and imaginary parts in turn, one array per line.
    lines
        Indices of the lines that are used.
    path
        The file, for the message.

    Raises
    ------
    InputError
        If there is such a sample; says how many and in which line the first is.
    """
    finite = np.isfinite(np.concatenate(samples[lines]))
    if finite.all():
        return
    ends = np.cumsum([len(samples[line]) for line in lines])
    first = lines[np.searchsorted(ends, np.argmin(finite), side="right")]
    n_broken = int((~finite.reshape(-1, 2).all(axis=1)).sum())
    raise InputError(
        f"{n_broken} of {len(finite) // 2} samples of {path} are NaN or infinite, the first in line {first}; export "
        f"the scan again, or set broken samples to zero on purpose."
    )


def kspace_from_lines(
    samples: NDArray[np.object_],
    heads: Heads,
    kinds: Kinds,
    plan: Plan,
    facts: HeaderFacts,
    options: ReadOptions,
    log: list[Decision],
) -> KSpace:
    """Place lines on the grid, then decide the Fourier sign, remove over-sampling and set the person's voxel size.

    With a trajectory the readouts of an image follow one another, in the order of their recording, and nothing is
    cropped: the positions say what is measured.

    Parameters
    ----------
    samples
        Real and imaginary parts in turn, coil by coil, one array per line.
    heads, kinds, plan
        Counters of the lines, what each line is for, and where it goes.
    facts
        The header.
    options
        Overrides of decisions.
    log
        Decisions so far.

    Returns
    -------
    KSpace
        The scan.
    """
    total, count = _on_grid(samples, heads, plan, plan.imaging)
    _report_repetitions(heads, plan, log)
    calibration = trajectory = readout_length = columns = None
    if len(plan.calibration):
        calibration = _unfolded(_mean(*_on_grid(samples, heads, plan, plan.calibration)), plan)
    if plan.trajectory is not None:
        columns, readout_length = _measured_columns(count, heads.n_samples[plan.imaging])
        trajectory = plan.trajectory.flatten(-3, -2)[..., columns, :]
    kspace = KSpace(
        data=_unfolded(_mean(total, count), plan, columns),
        mask=_unfolded((count > 0).astype(np.float32)[:, None], plan, columns),
        acquisition=plan.acquisition,
        batch_axes=plan.batch_axes,
        n_dims=plan.n_dims,
        noise=_noise(samples, heads, kinds, log),
        calibration=calibration,
        decisions=tuple(log),
        counts=kinds.counts,
        trajectory=trajectory,
        readout_length=readout_length,
    )
    return _finished(kspace, facts, options)


def _finished(kspace: KSpace, facts: HeaderFacts, options: ReadOptions) -> KSpace:
    """Fourier sign, over-sampling and the person's voxel size, in this order."""
    assumed = sign_of(facts.vendor)
    sign = options.fourier_sign or assumed
    if options.fourier_sign:
        reason = "It was asked for."
    elif assumed == "forward":
        reason = f"Raw data of {facts.vendor} have the other sign; the samples were conjugated."
    else:
        reason = "The convention of ISMRMRD: the image is the inverse transform of the samples."
    kspace = kspace.with_decisions(Decision("fourier_sign", sign, reason, "--fourier-sign"))
    if sign == "forward":
        kspace = conjugated(kspace)
    if options.remove_oversampling and kspace.is_cartesian:
        kspace = remove_oversampling(kspace)
    if options.voxel_mm is not None:
        kspace = with_voxel_mm(kspace, options.voxel_mm)
    return kspace


def _on_grid(
    samples: NDArray[np.object_], heads: Heads, plan: Plan, lines: NDArray[np.int64]
) -> tuple[NDArray[np.complex64], NDArray[np.int32]]:
    """Sum and number of the samples on the grid, ``(batch, coil, *plan.shape)`` and ``(batch, *plan.shape)``."""
    n_batch, n_coils = math.prod(plan.batch_shape), int(heads.n_coils[lines[0]])
    total = np.zeros((n_batch, n_coils, *plan.shape), dtype=np.complex64)
    count = np.zeros((n_batch, *plan.shape), dtype=np.int32)
    reverse = heads.flagged(REVERSE) & (plan.trajectory is None)
    layout = (heads.n_samples, heads.discard_pre, heads.discard_post, plan.starts, reverse)
    layouts, members = np.unique(np.stack(layout, axis=1)[lines], axis=0, return_inverse=True)
    for index, (_, pre, post, start, is_reverse) in enumerate(layouts):
        chosen = lines[members.reshape(-1) == index]
        stacked = _stacked(samples, chosen, n_coils)
        kept = stacked[..., pre : stacked.shape[-1] - post]
        add_lines(total, count, kept[..., ::-1] if is_reverse else kept, plan.targets[chosen], int(start))
    return total, count


def _stacked(samples: NDArray[np.object_], lines: NDArray[np.int64], n_coils: int) -> NDArray[np.complex64]:
    """Lines of equal length as ``(line, coil, sample)``."""
    flat = np.concatenate(samples[lines]).astype(np.float32, copy=False)
    return flat.view(np.complex64).reshape(len(lines), n_coils, -1)


def _mean(total: NDArray[np.complex64], count: NDArray[np.int32]) -> NDArray[np.complex64]:
    if count.max() > 1:
        total /= np.maximum(count, 1)[:, None].astype(np.float32)
    return total


def _unfolded(
    grid: NDArray[np.complex64 | np.float32], plan: Plan, columns: torch.Tensor | None = None
) -> torch.Tensor:
    """``(batch, coil, *plan.shape)`` with the axes of the result; of readouts the chosen columns, one after another."""
    tensor = torch.from_numpy(grid)
    if columns is None:
        return tensor.reshape(*plan.batch_shape, grid.shape[1], *plan.shape[-plan.n_dims :])
    return tensor.flatten(2)[..., columns].reshape(*plan.batch_shape, grid.shape[1], len(columns))


def _measured_columns(count: NDArray[np.int32], n_samples: NDArray[np.int64]) -> tuple[torch.Tensor, int | None]:
    """Flat indices of the readouts' samples that any image has, and the length of a readout where all have the same.

    Readouts that were recorded equally long stay so, whatever each of them discards.
    """
    measured = count.max(axis=(0, 1)) > 0  # (readout, sample)
    if (n_samples == n_samples[0]).all():
        measured = np.tile(measured.any(axis=0), (len(measured), 1))
    lengths = measured.sum(axis=1)
    columns = torch.from_numpy(np.flatnonzero(measured))
    return columns, int(lengths[0]) if (lengths == lengths[0]).all() else None


def _report_repetitions(heads: Heads, plan: Plan, log: list[Decision]) -> None:
    places = np.column_stack([plan.targets, plan.starts, heads.counter("average")])[plan.imaging]
    n_repeated = len(places) - len(np.unique(places, axis=0))
    if n_repeated:
        reason = f"{n_repeated} lines repeat the indices of others, their average counter included."
        log.append(Decision("repeated_lines", "averaged", reason, warning=True))


def _noise(samples: NDArray[np.object_], heads: Heads, kinds: Kinds, log: list[Decision]) -> torch.Tensor | None:
    """Noise scan ``(coil, sample)``, scaled to the bandwidth of the imaging lines."""
    lines = np.flatnonzero(kinds.noise)
    if not len(lines):
        return None
    n_coils = int(heads.n_coils[lines[0]])
    parts = []
    for line in lines:
        stacked = _stacked(samples, np.array([line]), n_coils)[0]
        parts.append(stacked[:, heads.discard_pre[line] : stacked.shape[-1] - heads.discard_post[line]])
    noise = np.concatenate(parts, axis=1)
    dwell_us, imaging_us = heads.dwell_us[lines[0]], heads.dwell_us[np.argmax(kinds.imaging)]
    if 0 < dwell_us < np.inf and 0 < imaging_us < np.inf and dwell_us != imaging_us:
        # The variance of white noise is proportional to the bandwidth, the inverse of the dwell time.
        noise = noise * np.float32(np.sqrt(dwell_us / imaging_us))
        reason = f"The noise scan was sampled every {dwell_us:g} µs, the image every {imaging_us:g} µs."
        log.append(Decision("noise_bandwidth", f"scaled by {np.sqrt(dwell_us / imaging_us):.4g}", reason))
    return torch.from_numpy(np.ascontiguousarray(noise))


def sign_of(vendor: str | None) -> Literal["inverse", "forward"]:
    """Which transform of the samples is the image, by the habit of the vendor."""
    return "forward" if vendor is not None and "siemens" in vendor.lower() else "inverse"
