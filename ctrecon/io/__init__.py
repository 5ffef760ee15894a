"""Reading sinograms, whatever their format, and writing images; formats are told by content, never by name."""

import importlib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from ctrecon.io.options import ReadOptions as ReadOptions
from operators.errors import InputError
from operators.io.signature import container_of, head_in_words, head_of

if TYPE_CHECKING:
    from ctrecon.sinogram import Sinogram

_DEFAULTS = ReadOptions()
_READERS = {
    "mrctrecon sinogram": ("ctrecon.io.sinogram_file", "read_sinogram"),
    "DXchange": ("ctrecon.io.dxchange", "read_dxchange"),
    "SynDeepLesion": ("ctrecon.io.syndeeplesion", "read_syndeeplesion"),
    "HDF5 array": ("ctrecon.io.arrays", "read_hdf5_array"),
    "HTC2022": ("ctrecon.io.htc2022", "read_htc2022"),
    "MATLAB 5": ("ctrecon.io.arrays", "read_matlab5_array"),
    "numpy": ("ctrecon.io.arrays", "read_npy"),
    "numpy archive": ("ctrecon.io.arrays", "read_npz"),
    "DICOM-CT-PD": ("ctrecon.io.ct_pd", "read_ct_pd"),
    "raw float32": ("ctrecon.io.arrays", "read_raw"),
}
_EVERYWHERE = {"pixel_mm", "image_shape", "mu_water_per_mm", "detector_offset_mm", "memory_limit_bytes"}
_ARRAY_OPTIONS = {"variable", "geometry", "preset", "quantity", "incident_counts", "reverse_detector"}
_HONOURED: dict[str, set[str]] = {
    "mrctrecon sinogram": set(),
    "DXchange": {"angle_unit", "incident_counts"},
    "SynDeepLesion": _ARRAY_OPTIONS | {"mask_metal"},
    "HTC2022": {"variable", "quantity", "incident_counts", "reverse_detector"},
    "DICOM-CT-PD": {"detector_row", "reverse_detector"},
}


def read(path: Path | str, options: ReadOptions = _DEFAULTS) -> "Sinogram":
    """Read a sinogram of any supported format.

    Parameters
    ----------
    path
        The file, or the folder of a DICOM-CT-PD scan: this project's own HDF5, DXchange (TomoPy), HTC2022,
        SynDeepLesion, and plain arrays in numpy, MATLAB, HDF5 or raw float32 with a geometry in JSON. Names do not
        matter.
    options
        Overrides of the decisions that reading takes.

    Returns
    -------
    Sinogram
        The scan, with a log of everything that was decided.

    Raises
    ------
    InputError
        If there is no such file, its format is unknown, it is damaged, it does not fit its geometry, or an option does
        not apply to it.
    """
    found = sniff(path, options)
    _check_options(found, path, options)
    module, function = _READERS[found]
    sinogram: Sinogram = getattr(importlib.import_module(module), function)(Path(path), options)
    return sinogram


def sniff(path: Path | str, options: ReadOptions = _DEFAULTS) -> str:
    """Name the format of a sinogram by its content.

    Parameters
    ----------
    path
        The file or folder.
    options
        A file without any signature is taken for raw numbers if ``geometry`` or ``preset`` say where its rays run, or
        a JSON file beside it does.

    Returns
    -------
    str
        ``"mrctrecon sinogram"``, ``"DXchange"``, ``"SynDeepLesion"``, ``"HDF5 array"``, ``"HTC2022"``,
        ``"MATLAB 5"``, ``"numpy"``, ``"numpy archive"``, ``"DICOM-CT-PD"`` or ``"raw float32"``.

    Raises
    ------
    InputError
        If there is no such file, it cannot be read, or its format is unknown.
    """
    path = Path(path)
    if path.is_dir():
        return _sniff_folder(path)
    head = head_of(path)
    container = container_of(head)
    if container == "HDF5":
        return _sniff_hdf5(path)
    if container is not None:
        return _sniff_matlab5(path) if container == "MATLAB 5" else container
    if head[128:132] == b"DICM":
        raise InputError(f"{path} is a DICOM file; the projections of a scan are a folder of them: give the folder.")
    if head.lstrip()[:1] in (b"{", b"["):
        raise InputError(f"{path} is a text in JSON; give the file with the sinogram, and this one as --geometry.")
    from ctrecon.io.geometry_files import find_sidecar

    if options.geometry is not None or options.preset is not None or find_sidecar(path) is not None:
        return "raw float32"
    raise InputError(
        f"{path} begins with {head_in_words(head)}, which is no format of sinograms that is read: HDF5 (own, DXchange, "
        f"SynDeepLesion), HTC2022 and MATLAB 5, numpy and folders of DICOM-CT-PD are. Raw float32 numbers need "
        f"--preset, --geometry or a JSON file beside them."
    )


def _check_options(found: str, path: Path | str, options: ReadOptions) -> None:
    """Refuse what would otherwise be asked for in vain."""
    honoured = _EVERYWHERE | _HONOURED.get(found, _ARRAY_OPTIONS)
    for field in fields(options):
        if field.name not in honoured and getattr(options, field.name) != field.default:
            raise InputError(f"{path} is {found}, to which the option {field.name} does not apply; leave it out.")


def _sniff_folder(path: Path) -> str:
    from ctrecon.io.ct_pd import looks_like_ct_pd

    try:
        if looks_like_ct_pd(path):
            return "DICOM-CT-PD"
    except OSError as error:
        raise InputError(f"The folder {path} cannot be listed ({error}); check its permissions.") from error
    raise InputError(f"The folder {path} holds no projections of DICOM-CT-PD; give the file with the sinogram in it.")


def _sniff_matlab5(path: Path) -> str:
    from ctrecon.io.htc2022 import looks_like_htc2022
    from operators.io.matlab5 import open_matlab5

    with open_matlab5(path) as file:
        return "HTC2022" if looks_like_htc2022(file) else "MATLAB 5"


def _sniff_hdf5(path: Path) -> str:
    from ctrecon.io.dxchange import looks_like_dxchange
    from ctrecon.io.sinogram_file import looks_like_sinogram_file
    from ctrecon.io.syndeeplesion import looks_like_syndeeplesion
    from operators.io.hdf5 import hdf5_errors, open_hdf5

    with open_hdf5(path) as file, hdf5_errors(path, "finding out what it holds"):
        for name, fits in (
            ("mrctrecon sinogram", looks_like_sinogram_file),
            ("DXchange", looks_like_dxchange),
            ("SynDeepLesion", looks_like_syndeeplesion),
        ):
            if fits(file):
                return name
    return "HDF5 array"
