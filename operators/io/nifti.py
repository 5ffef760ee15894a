"""NIfTI: images out with their place in the patient, and images in for simulations."""

import gzip
import io
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import torch
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from operators.errors import InputError
from operators.io.files import replacing
from operators.voxel_grid import VoxelGrid

_CODE_SCANNER, _CODE_ALIGNED = 1, 2
_LARGEST_AXIS = 32767  # the sizes are 16 bit integers
_DESCRIPTION_LENGTH = 79
_MM_PER_UNIT = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}  # unknown (taken as mm), m, mm, µm
_READ_BYTES = 2**20
_GZIP_LARGEST_RATIO = 1032  # deflate cannot expand further


def write_nifti(
    path: Path | str,
    image: torch.Tensor,
    grid: VoxelGrid,
    *,
    part: Literal["magnitude", "complex", "phase", "real"] = "magnitude",
    geometry_known: bool,
    repetition_time_ms: float | None = None,
    description: str = "",
    overwrite: bool = False,
) -> None:
    """Write an image as NIfTI-1, in index order (x, y, z[, t]), so that ``grid.affine_ras()`` is its affine.

    The same input gives the same bytes, compressed or not. The affine stands in sform and qform; the quaternion of
    the qform is single precision and loses up to 1e-3 rad near half turns, so readers should prefer the sform.

    Parameters
    ----------
    path
        A name that ends in ``.nii`` or ``.nii.gz``.
    image
        Complex or real ``(*batch, z, y, x)``, any unit. The batch axes are flattened, the last one fastest, to the
        fourth axis of the file; where they hold a single volume, the file has three.
    grid
        Where the voxels lie; its shape is ``(z, y, x)``.
    part
        ``"magnitude"`` (float32), ``"phase"`` (float32, rad, in (−π, π]), ``"complex"`` (complex64) or ``"real"``
        (float32): the real part, which of a real image are its values with their signs.
    geometry_known
        Whether the grid comes from the scan: the codes of sform and qform are 1 (scanner) if so, else 2 (aligned).
    repetition_time_ms
        Step of the fourth axis, in ms; written, in s, where there is one. Unknown is written as 0.
    description
        Note for the header; its first 79 characters are kept, and characters outside ASCII become ``?``.
    overwrite
        Allow ``path`` to exist.

    Raises
    ------
    InputError
        If ``path`` has another suffix or cannot be written, or if the image is not finite, or too large for the format.
    ValueError
        If the shapes of image and grid differ.
    """
    path = Path(path)
    suffix = path.name.lower()
    if not suffix.endswith((".nii", ".nii.gz")):
        raise InputError(f"{path} does not end in .nii or .nii.gz; a NIfTI image needs one of these names.")
    volumes = _volumes(image, grid, part)
    n_volumes, size = volumes.shape[0], volumes.shape[:0:-1]
    if max(n_volumes, *size) > _LARGEST_AXIS:
        raise InputError(
            f"The image has the size {(*size, n_volumes)}; NIfTI holds at most {_LARGEST_AXIS} per axis: write DICOM."
        )
    array = volumes.T if n_volumes > 1 else volumes[0].T
    nifti = nib.Nifti1Image(array, None, _header(array, repetition_time_ms, description))
    code = _CODE_SCANNER if geometry_known else _CODE_ALIGNED
    nifti.set_qform(grid.affine_ras(), code)
    nifti.set_sform(grid.affine_ras(), code)
    with replacing(path, overwrite=overwrite) as temporary, ExitStack() as files:
        stream: io.BufferedIOBase = files.enter_context(open(temporary, "wb"))
        if suffix.endswith(".gz"):  # neither name nor time of writing in the gzip header: same input, same bytes
            stream = files.enter_context(gzip.GzipFile("", "wb", compresslevel=1, fileobj=stream, mtime=0))
        nifti.to_stream(stream)


def _volumes(image: torch.Tensor, grid: VoxelGrid, part: str) -> NDArray[np.generic]:
    if image.ndim < 3 or tuple(image.shape[-3:]) != grid.shape or image.numel() == 0:
        raise ValueError(f"image has shape {tuple(image.shape)}; expected (*batch, {', '.join(map(str, grid.shape))}).")
    image = image.detach().reshape(-1, *grid.shape)
    if part == "magnitude":
        image = image.abs().to(torch.float32)
    elif part == "phase":
        image = image.angle().to(torch.float32)
    elif part == "complex":
        image = image.to(torch.complex64)
    elif part == "real":
        image = image.real.to(torch.float32)
    else:
        raise ValueError(f"part is {part!r}; expected 'magnitude', 'complex', 'phase' or 'real'.")
    n_bad = int((~image.isfinite()).sum())
    if n_bad:
        raise InputError(f"{n_bad} of {image.numel()} voxels are not finite in single precision; nothing was written.")
    return image.cpu().resolve_conj().resolve_neg().numpy()


def _header(array: NDArray[np.generic], repetition_time_ms: float | None, description: str) -> nib.Nifti1Header:
    if repetition_time_ms is not None and not 0 <= repetition_time_ms < float("inf"):
        raise InputError(f"The repetition time is {repetition_time_ms} ms; expected a positive time, or none.")
    header = nib.Nifti1Header()
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header.set_xyzt_units("mm", "sec")
    if array.ndim == 4:
        header["pixdim"][4] = (repetition_time_ms or 0.0) / 1000
    header["descrip"] = description.encode("ascii", "replace")[:_DESCRIPTION_LENGTH]
    return header


def read_nifti_image(path: Path | str, *, memory_limit_bytes: int = 8 * 2**30) -> tuple[torch.Tensor, VoxelGrid]:
    """Read one real volume from a NIfTI file (NIfTI-1 or -2, compressed or not).

    The axes of the file are kept: its first axis, which runs fastest, is x (the last of the result). The grid is the
    file's own affine: the sform, else the qform, else the voxel size alone.

    Parameters
    ----------
    path
        The file; what it is, is decided by its content.
    memory_limit_bytes
        Refuse images that would need more than this.

    Returns
    -------
    image
        Float32 ``(z, y, x)``, with the scaling of the header applied, in the unit of the file.
    grid
        Where its voxels lie.

    Raises
    ------
    InputError
        If the file is missing, no NIfTI image, damaged, too large, not real, not one volume, not finite, or if its
        affine is singular or shears.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} could not be read: it is a folder, a device or a pipe; give a NIfTI file.")
        with ExitStack() as files:
            stream: io.BufferedIOBase = files.enter_context(open(path, "rb"))
            n_stored = path.stat().st_size
            compressed = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            if compressed:
                stream = files.enter_context(gzip.GzipFile(fileobj=stream))
            header, n_read = _read_header(stream, path)
            shape = _volume_shape(header, path)
            dtype = _real_dtype(header, path)
            n_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
            n_available = n_stored * (_GZIP_LARGEST_RATIO if compressed else 1)
            n_skip = _data_offset(header, path) - n_read
            if n_skip < 0 or n_skip + n_bytes > n_available:
                raise InputError(
                    f"{path} is too short for the {_text(shape[::-1])} voxels of type {dtype} that its header "
                    "describes; it is truncated or damaged: copy it again."
                )
            n_needed = n_bytes + 12 * (n_bytes // dtype.itemsize)  # the scaling is applied in double precision
            if n_needed > memory_limit_bytes:
                raise InputError(
                    f"{path} has {_text(shape[::-1])} voxels; reading them needs {n_needed / 2**30:.1f} GiB, more "
                    f"than the limit of {memory_limit_bytes / 2**30:.1f} GiB: cut it to the region that is needed."
                )
            _read_exactly(stream, n_skip, path, keep=False)
            raw = np.frombuffer(_read_exactly(stream, n_bytes, path), dtype=dtype).reshape(shape)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} could not be read: {reason}; expected a NIfTI image (.nii or .nii.gz).") from error
    return torch.from_numpy(_scaled(raw, header, path)), _grid(header, shape, path)


def _read_header(stream: io.BufferedIOBase, path: Path) -> tuple[nib.Nifti1Header, int]:
    start = _read_exactly(stream, 4, path)
    for kind, n_bytes in ((nib.Nifti1Header, 348), (nib.Nifti2Header, 540)):
        if n_bytes in (int.from_bytes(start, "little"), int.from_bytes(start, "big")):
            block = bytes(start + _read_exactly(stream, n_bytes - 4, path))
            order = "<" if int.from_bytes(start, "little") == n_bytes else ">"
            header = kind(block, endianness=order, check=False)
            magic = bytes(header["magic"])[:3]
            if magic in (b"n+1", b"n+2"):
                return header, n_bytes
            if magic in (b"ni1", b"ni2"):
                raise InputError(f"{path} is the header of a NIfTI pair; convert it to a single .nii file first.")
    raise InputError(f"{path} is not a NIfTI image; expected a .nii or .nii.gz file.")


def _volume_shape(header: nib.Nifti1Header, path: Path) -> tuple[int, int, int]:
    n_axes = int(header["dim"][0])
    size = [int(n) for n in header["dim"][1 : n_axes + 1]] if 2 <= n_axes <= 7 else []
    if not size or any(n < 1 for n in size):
        raise InputError(f"The header of {path} describes no image (dim = {header['dim'].tolist()}); it is damaged.")
    n_columns, n_rows, n_slices, *others = [*size, 1] if n_axes == 2 else size
    if any(n > 1 for n in others):
        raise InputError(
            f"{path} holds a series of size {_text(size)}; expected one volume: save one of its "
            "volumes as a file of its own."
        )
    return n_slices, n_rows, n_columns


def _real_dtype(header: nib.Nifti1Header, path: Path) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise InputError(f"{path} has the unknown data type {int(header['datatype'])}; it is damaged.") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(f"{path} has voxels of type {dtype}; expected real numbers of at most 64 bit.")
    return dtype


def _data_offset(header: nib.Nifti1Header, path: Path) -> int:
    offset = float(header["vox_offset"])
    if not 0 <= offset < 2**53 or offset != int(offset):
        raise InputError(f"The header of {path} places the voxels at byte {offset}; it is damaged.")
    return int(offset)


def _read_exactly(stream: io.BufferedIOBase, n_bytes: int, path: Path, *, keep: bool = True) -> bytearray:
    # Piece by piece, so that a size that only the header claims never allocates memory.
    content = bytearray()
    while n_bytes > 0:
        piece = stream.read(min(n_bytes, _READ_BYTES))
        if not piece:
            raise InputError(f"{path} ends too early; it is truncated, or not a NIfTI image: copy it again.")
        n_bytes -= len(piece)
        if keep:
            content += piece
    return content


def _scaled(raw: NDArray[np.generic], header: nib.Nifti1Header, path: Path) -> NDArray[np.float32]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not finite, and refused below
        if slope == 0 or not np.isfinite(slope):  # the standard's mark for "not scaled"
            image = raw.astype(np.float32)
        else:
            image = (raw.astype(np.float64) * slope + intercept).astype(np.float32)
    n_bad = int(np.count_nonzero(~np.isfinite(image)))
    if n_bad:
        raise InputError(f"{n_bad} of {image.size} voxels of {path} are not finite; replace them first.")
    return image


def _grid(header: nib.Nifti1Header, shape: tuple[int, int, int], path: Path) -> VoxelGrid:
    unit = int(header["xyzt_units"]) & 0b111
    if unit not in _MM_PER_UNIT:
        raise InputError(f"The header of {path} has the unknown unit of length {unit}; it is damaged.")
    try:
        with np.errstate(all="ignore"):
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
            affine[:3] *= _MM_PER_UNIT[unit]
            return VoxelGrid.from_affine_ras(affine, shape)
    except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        raise InputError(
            f"The affine of {path} cannot be used: {error} Expected rotation and voxel size only: resample the image."
        ) from error


def _text(size: "list[int] | tuple[int, ...]") -> str:
    return "×".join(map(str, size))
