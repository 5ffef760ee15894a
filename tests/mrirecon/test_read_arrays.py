"""Reading arrays without a header (numpy, MATLAB, BART, plain HDF5), and everything that is decided for them."""

import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import torch

from mrirecon import KSpace
from mrirecon.io import ReadOptions, read, sniff
from operators import Fourier, InputError
from operators.decision import Decision


def scan(*shape: int, dtype: type = np.complex64) -> np.ndarray:
    """Random k-space whose largest sample is at the centre of the last two axes."""
    rng = np.random.default_rng(7)
    array = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    array[..., shape[-2] // 2, shape[-1] // 2] = 50
    return array.astype(dtype)


def npy(folder: Path, array: Any) -> Path:
    path = folder / "scan"
    with path.open("wb") as stream:
        np.save(stream, array, allow_pickle=True)
    return path


def mat(folder: Path, *, compressed: bool = True, **variables: Any) -> Path:
    path = folder / "scan"
    with path.open("wb") as stream:
        scipy.io.savemat(stream, variables, do_compression=compressed)
    return path


def mat73(folder: Path, array: np.ndarray, name: str = "kspace") -> Path:
    path = folder / "scan"
    parts = np.zeros(array.T.shape, dtype=[("real", "<f8"), ("imag", "<f8")])
    parts["real"], parts["imag"] = array.T.real, array.T.imag
    with h5py.File(path, "w", userblock_size=512) as file:
        file[name] = parts
        file[name].attrs["MATLAB_class"] = np.bytes_("double")
        file["#refs#/a"] = np.zeros(3)
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file".ljust(512))
    return path


def cfl(folder: Path, array: np.ndarray, header: str | None = None) -> Path:
    path = folder / "scan.cfl"
    path.write_bytes(array.astype("<c8").tobytes(order="F"))
    sizes = " ".join(map(str, (*array.shape, *(1,) * (16 - array.ndim))))
    path.with_suffix(".hdr").write_text(header if header is not None else f"# Dimensions\n{sizes}\n# Command\nfft\n")
    return path


def decision(kspace: KSpace, name: str) -> Decision:
    return next(d for d in kspace.decisions if d.name == name)


def same(kspace: KSpace, expected: np.ndarray) -> None:
    torch.testing.assert_close(kspace.data, torch.from_numpy(expected.astype(np.complex64)), rtol=0, atol=0)


# numpy


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128, ">c8", np.clongdouble])
def test_numpy_arrays_of_every_complex_type(tmp_path: Path, dtype: Any) -> None:
    array = scan(2, 8, 6)
    path = npy(tmp_path, array.astype(dtype))
    kspace = read(path)
    assert sniff(path) == "numpy"
    same(kspace, array[None])
    assert kspace.batch_axes == ("slice",)
    assert kspace.acquisition.encoded_shape == (1, 8, 6)


def test_numpy_arrays_in_column_order(tmp_path: Path) -> None:
    array = scan(2, 8, 6)
    same(read(npy(tmp_path, np.asfortranarray(array))), array[None])


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((8, 6), "ky,kx", (1, 1, 8, 6)),
        ((3, 8, 6), "coil,ky,kx", (1, 3, 8, 6)),
        ((5, 3, 8, 6), "slice,coil,ky,kx", (5, 3, 8, 6)),
        ((8, 1, 6, 6), "slice,coil,ky,kx", (8, 1, 6, 6)),
    ],
)
def test_the_axes_of_numpy_arrays_are_guessed_by_shape(tmp_path: Path, shape: Any, axes: str, expected: Any) -> None:
    kspace = read(npy(tmp_path, scan(*shape)))
    assert tuple(kspace.data.shape) == expected
    assert decision(kspace, "axes").value == axes
    assert decision(kspace, "axes").warning == (len(shape) > 2)
    assert decision(kspace, "axes").override == "--axes"


@pytest.mark.parametrize("shape", [(8, 8, 8), (16, 12, 4), (100, 256, 256), (2, 2, 2, 8, 8)])
def test_a_shape_that_does_not_tell_its_axes_asks_for_them(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"not evident; name them .* --axes coil,ky,kx"):
        read(npy(tmp_path, scan(*shape)))


def test_an_archive_gives_its_largest_complex_array_or_the_chosen_one(tmp_path: Path) -> None:
    path = tmp_path / "scan"
    small, large = scan(8, 6), scan(2, 8, 6)
    with path.open("wb") as stream:
        np.savez(stream, small=small, large=large, weights=np.zeros((50, 50)))
    kspace = read(path)
    assert sniff(path) == "numpy archive"
    same(kspace, large[None])
    assert decision(kspace, "variable").value == "large"
    assert decision(kspace, "variable").override == "--variable"
    same(read(path, ReadOptions(variable="small")), small[None, None])
    with pytest.raises(InputError, match=r"no array named 'k'; it holds small \(8 × 6 complex64\), large"):
        read(path, ReadOptions(variable="k"))
    with pytest.raises(InputError, match=r"weights .* is not complex; k-space is: combine"):
        read(path, ReadOptions(variable="weights"))


# MATLAB


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_matlab_files_agree_with_scipy(tmp_path: Path, compressed: bool, dtype: type) -> None:
    array = scan(8, 6, 3, dtype=dtype)
    path = mat(tmp_path, compressed=compressed, kspace=array, note="text", other={"a": np.eye(3)}, n=np.int16([1, 2]))
    kspace = read(path, ReadOptions(fourier_sign="inverse"))
    assert sniff(path) == "MATLAB 5"
    same(kspace, scipy.io.loadmat(path)["kspace"].transpose(2, 0, 1)[:, None])


def test_matlab_files_beside_sparse_cell_and_struct_variables(tmp_path: Path) -> None:
    array = scan(8, 6)
    cells = np.empty((1, 2), dtype=object)
    cells[0, 0], cells[0, 1] = "a", np.zeros(3)
    sparse = scipy.sparse.csc_matrix(np.eye(4) * 1j)
    path = mat(tmp_path, sparse=sparse, cells=cells, logical=np.array([True]), data=array)
    same(read(path), array[None, None])
    with pytest.raises(InputError, match=r"no array named 'x'; it holds sparse .*sparse.*, cells .*cell.*logical"):
        read(path, ReadOptions(variable="x"))


def test_matlab_files_that_store_complex_integers_in_big_endian_order(tmp_path: Path) -> None:
    real, imaginary = np.arange(30).reshape(5, 6), np.arange(30)[::-1].reshape(5, 6)

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content.ljust(-(-len(content) // 8) * 8, b"\x00")

    matrix = (
        element(6, struct.pack(">II", 0x0806, 0))
        + element(5, struct.pack(">ii", 5, 6))
        + struct.pack(">HH4s", 3, 1, b"abc")
        + element(2, real.astype("u1").tobytes(order="F"))
        + element(3, imaginary.astype(">i2").tobytes(order="F"))
    )
    path = tmp_path / "scan"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI" + element(14, matrix))
    same(read(path), (real + 1j * imaginary)[None, None])


def test_matlab_73_files_are_read_in_the_order_of_matlab(tmp_path: Path) -> None:
    array = scan(8, 6, 3, dtype=np.complex128)
    path = mat73(tmp_path, array)
    assert sniff(path) == "MATLAB 7.3"
    kspace = read(path)
    same(kspace, array.transpose(2, 0, 1)[:, None].conj())
    assert decision(kspace, "fourier_sign").value == "forward"


def test_the_layout_of_the_low_field_scans(tmp_path: Path) -> None:
    array = scan(128, 21, 2, dtype=np.complex128)
    kspace = read(mat(tmp_path, ksp=array))
    image = Fourier(kspace.image_shape).adjoint(kspace.data)[:, 0].abs()
    shifted = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(array, axes=(0, 1)), axes=(0, 1), norm="ortho"), axes=(0, 1))
    np.testing.assert_allclose(image, np.abs(shifted).transpose(2, 0, 1), rtol=1e-4, atol=1e-4)
    grid = kspace.acquisition.encoded_grid(n_slices=2)
    assert grid.spacing_mm == pytest.approx((10.0, 250 / 128, 250 * 126 / 128 / 21))
    voxel = decision(kspace, "voxel_size")
    assert voxel.warning
    assert voxel.override == "--voxel-mm dx,dy,dz"
    assert "published protocol" in voxel.reason
    assert decision(kspace, "orientation").value == "image rows = readout, as published"
    assert not kspace.acquisition.geometry_known


def test_the_layout_follows_when_its_axes_are_swapped(tmp_path: Path) -> None:
    array = scan(128, 21, 2)
    kspace = read(mat(tmp_path, kspace=array), ReadOptions(axes=("kx", "ky", "slice")))
    same(kspace, array.transpose(2, 1, 0)[:, None].conj())
    spacing_mm = kspace.acquisition.encoded_grid(n_slices=2).spacing_mm
    assert spacing_mm == pytest.approx((10.0, 250 * 126 / 128 / 21, 250 / 128))


def test_repetitions_of_the_low_field_scans_are_a_batch_axis(tmp_path: Path) -> None:
    array = scan(16, 12, 4, 2)
    kspace = read(mat(tmp_path, ksp=array))
    assert kspace.batch_axes == ("repetition", "slice")
    same(kspace, array.transpose(3, 2, 0, 1)[:, :, None].conj())
    assert decision(kspace, "axes").warning


def test_other_matlab_arrays_with_more_than_two_axes_ask_for_them(tmp_path: Path) -> None:
    path = mat(tmp_path, data=scan(16, 12, 4))
    with pytest.raises(InputError, match="not evident; name them in the order of the file"):
        read(path)
    kspace = read(path, ReadOptions(axes=("ky", "kx", "coil")))
    same(kspace, scan(16, 12, 4).transpose(2, 0, 1)[None])


# BART and HDF5


def test_bart_gives_every_dimension_its_meaning(tmp_path: Path) -> None:
    array = np.zeros((8, 6, 1, 3, 1, 1, 1, 1, 1, 1, 2, 1, 1, 4), dtype=np.complex64)
    array[:] = scan(8, 6, 3, 2, 4).reshape(array.shape)
    path = cfl(tmp_path, array)
    for given in (path, path.with_suffix(".hdr")):
        assert sniff(given) == "BART"
        kspace = read(given)
        assert kspace.batch_axes == ("repetition", "slice")
        same(kspace, array.reshape(8, 6, 3, 2, 4).transpose(3, 4, 2, 1, 0))


def test_bart_volumes(tmp_path: Path) -> None:
    array = scan(8, 6, 5, 3)
    kspace = read(cfl(tmp_path, array))
    assert kspace.n_dims == 3
    assert kspace.batch_axes == ()
    same(kspace, array.transpose(3, 2, 1, 0))
    assert kspace.acquisition.encoded_grid(n_slices=5).shape == (5, 6, 8)


def test_bart_axes_can_be_named_for_the_dimensions_larger_than_one(tmp_path: Path) -> None:
    array = scan(1, 8, 6, 2)
    kspace = read(cfl(tmp_path, array), ReadOptions(axes=("kx", "ky", "coil")))
    same(kspace, array[0].transpose(2, 1, 0)[None])


@pytest.mark.parametrize(
    ("shape", "header", "message"),
    [
        ((1, 8, 6), None, "readout dimension of 1, as for spokes or spirals"),
        ((8, 6, 1, 2, 2), None, "2 entries in its maps dimension"),
        ((8, 6), "# Dimensions\n8 7\n", "has 384 bytes, but the dimensions in scan.hdr need 448"),
        ((8, 6), "# Dimensions\n8 six\n", "names no dimensions in its second line"),
        ((8, 6), "# Dimensions\n8 0\n", "every one must be at least 1"),
        ((8, 6), "# Dimensions\n", "names no dimensions"),
        ((8, 6), "# Dimensions\n99999999 99999999\n", "would need .* GiB, and the limit is"),
    ],
)
def test_bart_files_that_do_not_fit(tmp_path: Path, shape: Any, header: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(cfl(tmp_path, scan(*shape), header))


def test_bart_files_need_each_other(tmp_path: Path) -> None:
    path = cfl(tmp_path, scan(8, 6))
    path.unlink()
    with pytest.raises(InputError, match=r"pair of files, and .*scan\.cfl is missing"):
        read(path.with_suffix(".hdr"))


@pytest.mark.parametrize("names", [("r", "i"), ("real", "imag")])
def test_plain_hdf5_arrays(tmp_path: Path, names: tuple[str, str]) -> None:
    path = tmp_path / "scan"
    array = scan(2, 8, 6)
    parts = np.zeros(array.shape, dtype=[(name, "<f4") for name in names])
    parts[names[0]], parts[names[1]] = array.real, array.imag
    with h5py.File(path, "w") as file:
        file["raw/samples"] = parts
        file["raw/mask"] = np.ones((8, 6))
    assert sniff(path) == "HDF5 array"
    same(read(path), array[None])
    same(read(path, ReadOptions(variable="/raw/samples")), array[None])


def test_hdf5_types_that_numpy_lacks_do_not_hinder(tmp_path: Path) -> None:
    path = tmp_path / "scan"
    with h5py.File(path, "w") as file:
        kind = h5py.h5t.UNIX_D32LE.copy()
        h5py.h5d.create(file.id, b"time", kind, h5py.h5s.create_simple((3,)))
        file["data"] = scan(8, 6)
    same(read(path), scan(8, 6)[None, None])


# What is decided for every array


def test_axes_in_any_order_end_up_in_the_usual_one(tmp_path: Path) -> None:
    array = scan(6, 2, 5, 3, 8)
    kspace = read(npy(tmp_path, array), ReadOptions(axes=("kx", "contrast", "slice", "coil", "ky")))
    assert kspace.batch_axes == ("contrast", "slice")
    same(kspace, array.transpose(1, 2, 3, 4, 0))
    assert decision(kspace, "axes").reason == "It was asked for."


def test_averages_are_averaged_over_what_was_measured(tmp_path: Path) -> None:
    array = scan(3, 8, 6)
    array[1, 2] = array[2, 2] = array[2, 3] = 0
    array[:, 5] = 0
    path, axes = npy(tmp_path, array), ("average", "ky", "kx")
    kspace = read(path, ReadOptions(axes=axes))
    expected = array.sum(axis=0) / np.array([3, 3, 1, 2, 3, 1, 3, 3])[:, None]
    torch.testing.assert_close(kspace.data[0, 0], torch.from_numpy(expected.astype(np.complex64)))
    assert kspace.mask[0, 0, :, 0].tolist() == [1, 1, 1, 1, 1, 0, 1, 1]
    apart = read(path, ReadOptions(axes=axes, average=False))
    assert apart.batch_axes == ("repetition", "slice")
    same(apart, array[:, None, None])
    assert apart.mask[:, 0, 0, 2, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("sign", ["forward", "inverse"])
def test_the_fourier_sign_can_be_chosen(tmp_path: Path, sign: Any) -> None:
    array = scan(8, 6)
    kspace = read(mat(tmp_path, kspace=array), ReadOptions(fourier_sign=sign))
    same(kspace, (array.conj() if sign == "forward" else array)[None, None])
    assert decision(kspace, "fourier_sign").value == sign


def test_the_voxel_size_is_a_placeholder_unless_it_is_given(tmp_path: Path) -> None:
    path = npy(tmp_path, scan(2, 1, 8, 6))
    assumed, given = read(path), read(path, ReadOptions(voxel_mm=(2.0, 3.0, 5.0)))
    assert assumed.acquisition.encoded_grid(n_slices=2).spacing_mm == (1.0, 1.0, 1.0)
    assert decision(assumed, "voxel_size").warning
    assert given.acquisition.encoded_grid(n_slices=2).spacing_mm == (5.0, 3.0, 2.0)
    assert not decision(given, "voxel_size").warning
    assert decision(given, "geometry").warning


def test_lines_of_zeros_were_not_measured(tmp_path: Path) -> None:
    array = scan(2, 16, 12)
    array[:, ::2] = 0
    array[:, :, :3] = 0
    kspace = read(npy(tmp_path, array))
    expected = torch.ones(16, 12)
    expected[::2] = 0
    expected[:, :3] = 0
    assert torch.equal(kspace.mask[0, 0], expected)
    assert "lines" in decision(kspace, "mask").reason
    assert dict(kspace.counts)["samples measured"] == 2 * int(expected.sum())


def test_a_few_scattered_zeros_were_measured(tmp_path: Path) -> None:
    array = scan(16, 12)
    array[3, 4] = array[9, 2] = 0
    array[5] = 0
    kspace = read(npy(tmp_path, array))
    assert kspace.mask[0, 0, :, 0].tolist() == [1.0] * 5 + [0.0] + [1.0] * 10
    assert bool((kspace.mask == kspace.mask[..., :1]).all())
    assert "Scattered zeros (2 of them)" in decision(kspace, "mask").reason


def test_many_scattered_zeros_were_not_measured(tmp_path: Path) -> None:
    array = scan(2, 16, 12)
    pattern = np.random.default_rng(3).random((16, 12)) < 0.4
    pattern[8, 6] = True
    array *= pattern
    array[0, 0, 0] = 0
    kspace = read(npy(tmp_path, array))
    assert torch.equal(kspace.mask[0, 0], torch.from_numpy(pattern).float())


def test_every_slice_has_its_own_mask(tmp_path: Path) -> None:
    array = scan(2, 1, 8, 6)
    array[0, 0, 1] = array[1, 0, 2] = 0
    mask = read(npy(tmp_path, array)).mask[:, 0, :, 0]
    assert mask[0].tolist() == [1, 0, 1, 1, 1, 1, 1, 1]
    assert mask[1].tolist() == [1, 1, 0, 1, 1, 1, 1, 1]


def test_unmeasured_lines_of_volumes(tmp_path: Path) -> None:
    array = scan(4, 6, 8)
    pattern = np.random.default_rng(4).random((4, 6)) < 0.5
    pattern[2, 3] = True
    array *= pattern[..., None]
    kspace = read(npy(tmp_path, array), ReadOptions(axes=("kz", "ky", "kx")))
    assert torch.equal(kspace.mask[0, :, :, 0], torch.from_numpy(pattern).float())
    assert "lines" in decision(kspace, "mask").reason


def test_a_single_partition_makes_a_slice(tmp_path: Path) -> None:
    kspace = read(npy(tmp_path, scan(1, 8, 6)), ReadOptions(axes=("kz", "ky", "kx")))
    assert kspace.n_dims == 2
    assert kspace.batch_axes == ("slice",)


def test_a_peak_off_the_centre_is_reported_and_left_there(tmp_path: Path) -> None:
    centred, shifted = scan(8, 6), np.roll(scan(8, 6), (2, -1), axis=(0, 1))
    assert not any(d.name == "kspace_peak" for d in read(npy(tmp_path, centred)).decisions)
    kspace = read(npy(tmp_path, shifted))
    assert decision(kspace, "kspace_peak").value == "ky +2, kx -1"
    same(kspace, shifted[None, None])


# Bad input


def with_nan() -> np.ndarray:
    array = scan(2, 8, 6)
    array[1, 3, 4] = np.nan
    array[1, 5, 0] = complex(0, np.inf)
    return array


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((8, 6)), "float64.* is not complex; k-space is: combine its parts as real"),
        (np.ones((8, 6), dtype=np.int16), "int16.* is not complex"),
        (np.ones((8, 6), dtype=[("a", "f4"), ("b", "f4")]), "records.* is not complex"),
        (np.array([[{}] * 6] * 8), "objects.* is not complex"),
        (with_nan(), "2 of 96 samples .* NaN or infinite, the first at coil 1, ky 3, kx 4"),
        (scan(2, 3, 20), "not evident|3 samples along ky; at least 4"),
        (scan(8, 2), "2 samples along kx; at least 4"),
        (np.zeros((8, 6), dtype=np.complex64), "nothing but zeros; nothing was measured"),
        (np.zeros((0, 6), dtype=np.complex64), "0 samples along ky"),
        (scan(8, 6, dtype=np.complex128) * 1e60, "beyond the range of single precision"),
        (scan(8, 6, dtype=np.complex128) * 1e-60, "below the range of single precision"),
        (np.full((8, 6), 3e38, dtype=np.complex64), None),
        (np.ones(24, dtype=np.complex64), "not evident"),
    ],
)
def test_arrays_that_are_no_kspace(tmp_path: Path, array: np.ndarray, message: str | None) -> None:
    path = npy(tmp_path, array)
    if message is None:
        assert read(path).data.isfinite().all()
        return
    with pytest.raises(InputError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ReadOptions(axes=("ky", "kx")), "has 3 axes of shape .* but 2 are named"),
        (ReadOptions(axes=("coil", "kx", "kx")), "name one axis twice"),
        (ReadOptions(axes=("coil", "slice", "kx")), "lack ky"),
        (ReadOptions(axes=("coil", "row", "kx")), "'row' is not an axis of k-space; expected names from repetition"),
        (ReadOptions(axes=("ky", "coil", "kx")), "2 samples along ky; .* name them with --axes"),
        (ReadOptions(voxel_mm=(1.0, 0.0, 1.0)), "three positive numbers dx, dy, dz"),
        (ReadOptions(fourier_sign="sideways"), "expected 'inverse' or 'forward'"),  # type: ignore[arg-type]
        (ReadOptions(memory_limit_bytes=100), "would need .* GiB, and the limit is"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: ReadOptions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(npy(tmp_path, scan(2, 8, 6)), options)


def test_slabs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="several slabs"):
        read(npy(tmp_path, scan(2, 5, 8, 6)), ReadOptions(axes=("slice", "kz", "ky", "kx")))


def truncated(build: Callable[[Path], Path], keep: float) -> Callable[[Path], Path]:
    def path(folder: Path) -> Path:
        path = build(folder)
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])
        return path

    return path


def raw(content: bytes) -> Callable[[Path], Path]:
    def path(folder: Path) -> Path:
        path = folder / "scan"
        path.write_bytes(content)
        return path

    return path


def archive_without_arrays(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "scan", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    return folder / "scan"


def hdf5_without_arrays(folder: Path) -> Path:
    with h5py.File(folder / "scan", "w") as file:
        file.create_group("empty")
    return folder / "scan"


def matlab_that_unpacks_to_too_much(folder: Path) -> Path:
    content = zlib.compress(struct.pack("<II", 14, 2**31) + bytes(4096))
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    return raw(head + struct.pack("<II", 15, len(content)) + content)(folder)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (raw(b""), "is empty; copy it again"),
        (raw(b"hello world, this is text"), "begins with 'hello world,', which is no raw-data format"),
        (raw(bytes(range(128, 200))), "begins with the bytes 80 81 82 .* ISMRMRD, fastMRI, M4Raw, Siemens twix, BART"),
        (raw(b"\x89HDF\r\n\x1a\n"), "damaged or incomplete"),
        (raw(b"\x93NUMPY\x01\x00\xff\xff" + b" " * 100), "could not be read as numpy"),
        (raw(b"\x93NUMPY\x02\x00\xff\xff\xff\xff"), "header of 4294967295 bytes; it is damaged"),
        (raw(b"MATLAB 5.0 MAT-file".ljust(128)), "without a byte order mark"),
        (raw(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"), "holds no array; k-space is one complex array"),
        (raw(b"PK\x03\x04"), "could not be read as a numpy archive .* damaged or truncated"),
        (archive_without_arrays, "holds no array"),
        (hdf5_without_arrays, "holds no array"),
        (matlab_that_unpacks_to_too_much, "a damaged variable at byte 0"),
        (lambda folder: mat(folder, n=np.eye(4), note="x"), r"no complex array but n \(4 × 4 float64\), note"),
        (truncated(lambda folder: npy(folder, scan(8, 6)), 0.9), "is truncated: it needs 384 bytes and 332 are left"),
        (truncated(lambda folder: mat(folder, kspace=scan(8, 6)), 0.8), "truncated: its variable at byte 128 needs"),
        (truncated(lambda folder: mat73(folder, scan(8, 6)), 0.6), "damaged or incomplete"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path: Path, build: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(build(tmp_path))


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; check the path"):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a directory; give the raw-data file in it"):
        read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_are_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a device or a pipe; give a file"):
        read(tmp_path / "pipe")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = npy(tmp_path, scan(8, 6))

    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(InputError, match="may not be read by this user; change its permissions"):
        read(path)


def test_importing_the_readers_costs_nothing() -> None:
    heavy = "torch", "numpy", "h5py", "scipy", "twixtools"
    code = f"import mrirecon.io, sys; print([name for name in {heavy} if name in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['numpy']")


# Measured data

LOW_FIELD = {
    **{
        f"patient{i}/{name}_kspace.mat": (4, 1, 128, n) for i in range(1, 5) for name, n in (("fse", 126), ("gre", 196))
    },
    **{f"patient{i}/flair_kspace.mat": (4, 1, 128, 126) for i in range(1, 5)},
    "emi/flair_with_cage_kspace.mat": (2, 4, 1, 128, 117),
    "emi/flair_without_cage_kspace.mat": (2, 4, 1, 128, 117),
    "human_fisp/fisp_fa50_kspace.mat": (4, 1, 96, 96),
    "phantom/fse_10mm_kspace.mat": (1, 1, 128, 126),
}


@pytest.mark.realdata
@pytest.mark.parametrize("name", LOW_FIELD)
def test_every_low_field_scan(name: str, data_folder: Path) -> None:
    path = data_folder / "mri" / "lowfield_0p055T" / name
    kspace = read(path)
    assert tuple(kspace.data.shape) == LOW_FIELD[name]
    assert kspace.batch_axes[-1] == "slice"
    assert kspace.fill_rate == 1.0
    assert decision(kspace, "fourier_sign").value == "forward"
    assert decision(kspace, "voxel_size").warning
    file = scipy.io.loadmat(path)
    array = file["kspace"] if "kspace" in file else file["ksp"]
    array = array.reshape(*array.shape, *(1,) * (4 - array.ndim)).transpose(3, 2, 0, 1)
    torch.testing.assert_close(
        kspace.data.reshape(array.shape), torch.from_numpy(array).to(torch.complex64).conj().resolve_conj()
    )
    if LOW_FIELD[name][-2] == 128:
        grid = kspace.acquisition.encoded_grid(n_slices=kspace.n_slices)
        assert grid.spacing_mm == pytest.approx((10.0, 250 / 128, 250 * 126 / 128 / LOW_FIELD[name][-1]))


def boxed(image: torch.Tensor) -> torch.Tensor:
    """The head in an image, smoothed and scaled to one size, so that scans of two devices can be compared."""
    image = torch.nn.functional.interpolate(image[None, None], size=(256, 256), mode="area")
    smooth = torch.nn.functional.avg_pool2d(image, 7, stride=1, padding=3)[0, 0]
    head = smooth > 0.25 * smooth.quantile(0.98)
    rows, columns = (torch.where(head.any(dim=dim))[0] for dim in (1, 0))
    image = image[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = torch.nn.functional.interpolate(image, size=(128, 96), mode="area")
    return torch.nn.functional.avg_pool2d(image, 5, stride=1, padding=2)[0, 0]


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.realdata
@pytest.mark.parametrize("patient", range(1, 5))
def test_low_field_heads_lie_as_in_the_images_of_the_same_patients_at_3_t(patient: int, data_folder: Path) -> None:
    folder = data_folder / "mri" / "lowfield_0p055T" / f"patient{patient}"
    kspace = read(folder / "fse_kspace.mat")
    images = Fourier(kspace.image_shape).adjoint(kspace.data)[:, 0].abs()
    references = torch.from_numpy(np.load(folder / "3T.npz")["t2w"].astype(np.float32))
    for image, reference in zip(map(boxed, images), map(boxed, references), strict=True):
        upright = correlation(image, reference)
        assert upright > 0.8
        for flipped in (image.flip(0), image.flip(1), image.flip(0, 1)):
            assert upright > correlation(flipped, reference) + 0.02


@pytest.mark.realdata
@pytest.mark.parametrize("patient", range(1, 5))
def test_low_field_contrasts_of_a_patient_have_one_field_of_view(patient: int, data_folder: Path) -> None:
    """The gradient echo has 196 lines and the others 126, and yet heads of one size in mm."""
    widths_mm = []
    for contrast in ("fse", "gre"):
        kspace = read(data_folder / "mri" / "lowfield_0p055T" / f"patient{patient}" / f"{contrast}_kspace.mat")
        image = Fourier(kspace.image_shape).adjoint(kspace.data)[2, 0].abs()
        smooth = torch.nn.functional.avg_pool2d(image[None, None], 7, stride=1, padding=3)[0, 0]
        columns = torch.where((smooth > 0.25 * smooth.quantile(0.98)).any(dim=0))[0]
        spacing_mm = kspace.acquisition.encoded_grid(n_slices=4).spacing_mm[2]
        widths_mm.append(float(columns[-1] - columns[0]) * spacing_mm)
    assert widths_mm[0] == pytest.approx(widths_mm[1], rel=0.08)
    assert 120 < widths_mm[0] < 190


@pytest.mark.realdata
def test_the_eight_coil_brain(data_folder: Path) -> None:
    kspace = read(data_folder / "mri" / "multicoil_brain" / "cartesian_kspace_8ch.npy")
    assert tuple(kspace.data.shape) == (1, 8, 230, 180)
    assert kspace.n_coils == 8
    # Every sample of the variable-density pattern is marked, and nothing else.
    assert torch.equal(kspace.mask[0, 0] > 0, (kspace.data[0] != 0).any(dim=0))
    assert 0.12 < kspace.fill_rate < 0.13
    assert bool((kspace.mask[0, 0, 105:125, 80:100] == 1).all())
