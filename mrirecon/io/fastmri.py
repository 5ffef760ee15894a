"""fastMRI and M4Raw files (``.h5``): a k-space array (slice, coil, readout, phase) with an ISMRMRD header beside it."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from mrirecon.acquisition import Acquisition
from mrirecon.io.arrays import check_cartesian_options
from mrirecon.io.ismrmrd_header import HeaderFacts, parse_header
from mrirecon.io.lines import conjugated, remove_oversampling, reverse_field_of_view, with_voxel_mm
from mrirecon.io.options import ReadOptions
from mrirecon.kspace import KSpace
from operators.decision import Decision
from operators.errors import InputError
from operators.io.hdf5 import check_finite, check_memory, check_type, find_dataset, hdf5_errors, open_hdf5, read_text

_DEFAULTS = ReadOptions()
_FILE_AXES = ("slice", "coil", "readout", "phase")
_COMPANIONS = ("ismrmrd_header", "reconstruction_rss", "reconstruction_esc")


def looks_like_fastmri(file: h5py.File) -> bool:
    """Whether an HDF5 file has a ``kspace`` array and one of the datasets that fastMRI puts beside it.

    Parameters
    ----------
    file
        The open file.
    """
    return find_dataset(file, "kspace") is not None and any(
        find_dataset(file, name) is not None for name in _COMPANIONS
    )


def read_fastmri(path: Path | str, options: ReadOptions = _DEFAULTS) -> KSpace:
    """Read a fastMRI or M4Raw file.

    The array keeps its layout, so that the image stands as the data set shows it: rows (ky) are the *readout*, columns
    (kx) the phase encoding, and the image is flipped up-down (``numpy.flipud`` of the file's own reconstruction).
    ``directions`` and fields of view of the header follow the rows and columns. With ``options.axes``, in which
    ``"kx"`` is the readout of the result, the array is only transposed and never flipped.

    Parameters
    ----------
    path
        The HDF5 file.
    options
        Overrides of decisions.

    Returns
    -------
    KSpace
        ``(slice, coil, ky, kx)``; measured are the lines that the file's mask names, or else those that are not zero.

    Raises
    ------
    InputError
        If the file cannot be read as a fastMRI file within the memory limit.
    """
    check_cartesian_options(options, str(path))
    log: list[Decision] = []
    with open_hdf5(path) as file:
        name = options.variable or "kspace"
        dataset = find_dataset(file, name)
        if dataset is None:
            raise InputError(f"{path} has no k-space array {name!r}; name it with --variable.")
        facts = _read_facts(file, path, log)
        samples = _read_samples(dataset, path, options)
        lines = _read_mask(file, path, samples.shape[-1])
    mask = _measured(samples, lines, path, log)
    acquisition = _acquisition(facts, samples.shape, log)
    kspace = KSpace(
        data=torch.from_numpy(samples),
        mask=torch.from_numpy(mask),
        acquisition=acquisition,
        readout="ky",
        decisions=tuple(log),
        counts=(
            ("slices", samples.shape[0]),
            ("readout samples", int(mask.any(axis=-1).sum())),
            ("phase-encoding lines", int(mask.any(axis=-2).sum())),
        ),
    )
    return _finish(kspace, options)


def _read_facts(file: h5py.File, path: Path | str, log: list[Decision]) -> HeaderFacts:
    dataset = find_dataset(file, "ismrmrd_header")
    if dataset is None:
        log.append(Decision("header", "none", "The file has no ismrmrd_header.", "--voxel-mm", warning=True))
        return HeaderFacts()
    facts = parse_header(read_text(dataset, path))
    log += [Decision("header", "incomplete", sentence, warning=True) for sentence in facts.warnings[:20]]
    return facts


def _read_samples(dataset: h5py.Dataset, path: Path | str, options: ReadOptions) -> NDArray[np.complex64]:
    """Samples as complex64 ``(slice, coil, readout, phase)``."""
    check_type(dataset, path)
    with hdf5_errors(path, "reading the k-space"):
        shape, dtype = dataset.shape, dataset.dtype
        if dtype.kind != "c" or shape is None or len(shape) not in (3, 4) or 0 in shape:
            raise InputError(
                f"{dataset.name!r} of {path} is {dtype} {shape}; expected complex (slice, coil, readout, phase) or "
                f"(slice, readout, phase), none of them empty."
            )
        check_memory(dataset.size, max(dtype.itemsize, 8), options.memory_limit_bytes, what=f"The k-space of {path}")
        samples = dataset[()].astype(np.complex64, copy=False)
    samples = samples[:, None] if samples.ndim == 3 else samples
    check_finite(samples, list(_FILE_AXES), what=f"{path}")
    if not np.any(samples):
        raise InputError(f"All samples of {path} are zero; there is nothing to reconstruct.")
    return np.ascontiguousarray(samples)


def _read_mask(file: h5py.File, path: Path | str, n_lines: int) -> NDArray[np.bool_] | None:
    dataset = find_dataset(file, "mask")
    if dataset is None:
        return None
    check_type(dataset, path)
    with hdf5_errors(path, "reading the mask"):
        if dataset.size != n_lines or dataset.dtype.kind not in "biuf":
            raise InputError(
                f"The mask of {path} is {dataset.dtype} {dataset.shape}; expected one entry for each of the {n_lines} "
                f"phase-encoding lines."
            )
        return np.asarray(dataset[()]).reshape(-1) != 0


def _measured(
    samples: NDArray[np.complex64], lines: NDArray[np.bool_] | None, path: Path | str, log: list[Decision]
) -> NDArray[np.float32]:
    """Mask ``(1, 1, readout, phase)``: what is not zero, and named by the file's own mask."""
    there = np.logical_or.reduce(samples != 0, axis=(0, 1))
    rows, columns = there.any(axis=1), there.any(axis=0)
    if lines is not None:
        n_unexpected = int((columns & ~lines).sum())
        if n_unexpected:
            reason = f"{n_unexpected} lines hold samples, but the file's mask does not name them."
            log.append(Decision("mask", "the file's", reason, warning=True))
        columns &= lines
        if not columns.any():
            raise InputError(f"The mask of {path} names only lines without samples; mask and k-space do not belong.")
    elif not (rows.all() and columns.all()):
        reason = f"{(~columns).sum()} lines and {(~rows).sum()} readout samples are zero in every slice and coil."
        log.append(Decision("mask", "what is not zero", reason))
    samples *= rows[:, None] & columns
    return (rows[:, None] & columns)[None, None].astype(np.float32)


def _acquisition(facts: HeaderFacts, shape: tuple[int, ...], log: list[Decision]) -> Acquisition:
    """Header in the order of the array: z, readout, phase."""
    n_readout, n_phase = shape[-2:]
    encoded = dict(zip("zyx", facts.encoded_fov_mm, strict=True))
    recon = dict(zip("zyx", facts.recon_fov_mm, strict=True))
    stated = dict(zip("zyx", facts.encoded_shape, strict=True))
    if n_readout == stated["y"] != stated["x"]:
        reason = f"The header encodes {n_readout} samples along y, and so many does the array have along the readout."
        log.append(Decision("header_axes", "x and y exchanged", reason, "--voxel-mm", warning=True))
        encoded["x"], encoded["y"] = encoded["y"], encoded["x"]
        recon["x"], recon["y"] = recon["y"], recon["x"]
        stated["x"] = n_readout
    if stated["x"] is not None and stated["x"] != n_readout:
        reason = (
            f"The header encodes {stated['x']} samples, the array has {n_readout}: the samples are trusted, and they "
            f"were taken to show the field of view of the image."
        )
        log.append(Decision("readout_size", str(n_readout), reason, "--voxel-mm", warning=True))
        encoded["x"] = recon["x"]
    sizes = {"z": 1, "y": n_phase, "x": n_readout}
    unknown = [axis for axis in "zyx" if (encoded[axis] or recon[axis]) is None]
    if unknown:
        reason = f"The header gives no field of view along {', '.join(unknown)}."
        log.append(Decision("voxel_size", "1 mm", reason, "--voxel-mm", warning=True))
    fov = {axis: encoded[axis] or recon[axis] or float(sizes[axis]) for axis in "zyx"}
    shown = {axis: min(recon[axis] or fov[axis], fov[axis]) for axis in "zyx"}
    log.append(
        Decision(
            "geometry",
            "identity",
            "The file holds neither position nor directions; left and right of the person are unknown.",
            warning=True,
        )
    )
    return Acquisition(
        encoded_shape=(1, n_readout, n_phase),
        encoded_fov_mm=(fov["z"], fov["x"], fov["y"]),
        recon_fov_mm=(shown["z"], shown["x"], shown["y"]),
        field_strength_t=facts.field_strength_t,
        repetition_time_ms=facts.repetition_time_ms,
        echo_time_ms=facts.echo_time_ms,
        inversion_time_ms=facts.inversion_time_ms,
        flip_angle_deg=facts.flip_angle_deg,
        manufacturer=facts.vendor,
        sequence_name=facts.sequence_name,
        protocol_name=facts.protocol_name,
        patient=facts.patient,
    )


def _finish(kspace: KSpace, options: ReadOptions) -> KSpace:
    """Fourier sign, over-sampling, orientation and the person's voxel size, in this order."""
    sign = options.fourier_sign or "inverse"
    reason = "It was asked for." if options.fourier_sign else "The data set's images are the inverse transform."
    kspace = kspace.with_decisions(Decision("fourier_sign", sign, reason, "--fourier-sign"))
    if sign == "forward":
        kspace = conjugated(kspace)
    if options.remove_oversampling:
        kspace = remove_oversampling(kspace, dim=-2)
    kspace = _oriented(kspace, options)
    return kspace if options.voxel_mm is None else with_voxel_mm(kspace, options.voxel_mm)


def _oriented(kspace: KSpace, options: ReadOptions) -> KSpace:
    """Turn the image upright, or as ``options.axes`` asks."""
    if options.axes is None:
        reason = "Shown as the data set shows it: numpy.flipud of the file's own reconstruction."
        upright = Decision(
            "orientation", "rows are the readout, flipped up-down", reason, "--axes slice,coil,ky,kx (not flipped)"
        )
        n = kspace.image_shape[-2]
        reverse = (n // 2 - (torch.arange(n) - n // 2)) % n
        return replace(
            kspace, data=reverse_field_of_view(kspace.data, dim=-2), mask=kspace.mask[..., reverse, :]
        ).with_decisions(upright)
    if options.axes[:-2] not in (("slice", "coil"), ("slice",)) or set(options.axes[-2:]) != {"ky", "kx"}:
        raise InputError(
            f"The axes of a fastMRI file are {','.join(options.axes)}; expected slice,coil,ky,kx (rows are the "
            f"readout) or slice,coil,kx,ky (columns are)."
        )
    asked = Decision("orientation", ",".join(options.axes), "It was asked for.", "--axes")
    return (kspace if options.axes[-1] == "kx" else _transposed(kspace)).with_decisions(asked)


def _transposed(kspace: KSpace) -> KSpace:
    acquisition = kspace.acquisition
    n_z, n_y, n_x = acquisition.encoded_shape
    encoded_mm, recon_mm = acquisition.encoded_fov_mm, acquisition.recon_fov_mm
    return replace(
        kspace,
        data=kspace.data.transpose(-1, -2).contiguous(),
        mask=kspace.mask.transpose(-1, -2).contiguous(),
        acquisition=replace(
            acquisition,
            encoded_shape=(n_z, n_x, n_y),
            encoded_fov_mm=(encoded_mm[0], encoded_mm[2], encoded_mm[1]),
            recon_fov_mm=(recon_mm[0], recon_mm[2], recon_mm[1]),
        ),
        readout="kx",
    )
