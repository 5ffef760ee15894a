import gzip
import os
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators.errors import InputError
from operators.io.nifti import read_nifti_image, write_nifti
from operators.voxel_grid import VoxelGrid
from tests.grids import SHAPES, oblique_grid, plain_grid, ramp, rotation


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fourier_centre_lies_where_the_header_of_the_scan_says(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    directions, centre = rotation(7), (12.5, -33.25, 8.125)
    grid = VoxelGrid.around(centre, shape, (4.0, 1.25, 2.5), directions)
    write_nifti(tmp_path / "image.nii.gz", torch.ones(shape), grid, geometry_known=True)
    index = [shape[2] // 2, shape[1] // 2, shape[0] // 2, 1]
    ras = nib.load(tmp_path / "image.nii.gz").affine @ index
    np.testing.assert_allclose(ras[:3], [-12.5, 33.25, 8.125], atol=1e-3)


def test_an_axial_image_has_the_axes_that_viewers_expect(tmp_path: Path) -> None:
    grid = plain_grid(2, 3, 4)
    write_nifti(tmp_path / "image.nii", ramp(2, 3, 4), grid, geometry_known=True)
    nifti = nib.load(tmp_path / "image.nii")
    assert nib.aff2axcodes(nifti.affine) == ("L", "P", "S")
    assert nifti.shape == (4, 3, 2)
    np.testing.assert_allclose(nifti.header.get_zooms(), (1.5, 2.0, 5.0))
    assert nifti.get_fdata()[1, 2, 0] == ramp(2, 3, 4)[0, 2, 1]


def test_cosines_that_a_header_rounded_give_one_place_in_every_form(tmp_path: Path) -> None:
    exact = rotation(5)
    rounded = tuple(tuple(round(value, 3) for value in row) for row in exact)
    grid = VoxelGrid((20, 200, 200), (5.0, 1.0, 1.0), rounded)  # type: ignore[arg-type]
    np.testing.assert_allclose(np.array(grid.directions) @ np.array(grid.directions).T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(grid.directions, exact, atol=1e-3)
    write_nifti(tmp_path / "image.nii.gz", torch.zeros(grid.shape), grid, geometry_known=True)
    header = nib.load(tmp_path / "image.nii.gz").header
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-4)


def test_directions_that_are_orthonormal_stay_as_they_are() -> None:
    directions = rotation(11)
    np.testing.assert_allclose(VoxelGrid((1, 2, 3), (1, 1, 1), directions).directions, directions, rtol=0, atol=1e-15)
    identity = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    assert VoxelGrid((1, 2, 3), (1, 1, 1)).directions == identity


@pytest.mark.parametrize("left_handed", [False, True])
def test_a_grid_and_its_affine_determine_each_other(left_handed: bool) -> None:
    grid = oblique_grid((4, 5, 6), left_handed=left_handed)
    other = VoxelGrid.from_affine_ras(grid.affine_ras(), grid.shape)
    np.testing.assert_allclose(other.affine_ras(), grid.affine_ras(), atol=1e-12)
    np.testing.assert_allclose(other.directions, grid.directions, atol=1e-12)


def test_affines_that_are_no_grid_are_refused() -> None:
    shape = (2, 3, 4)
    sheared = np.eye(4)
    sheared[0, 1] = 0.1
    for affine, message in (
        (sheared, "orthogonal"),
        (np.diag([1.0, 0, 1, 1]), "singular"),
        (np.eye(4) * np.nan, "fin"),
    ):
        with pytest.raises(ValueError, match=message):
            VoxelGrid.from_affine_ras(affine, shape)
    with pytest.raises(ValueError, match="origin"):
        VoxelGrid(shape, (1, 1, 1), origin_mm=(0, float("inf"), 0))
    with pytest.raises(ValueError, match="step"):
        VoxelGrid(shape, (1, 1, 1)).cropped((slice(None), slice(0, 3, 2), slice(None)))


@pytest.mark.parametrize(("known", "code"), [(True, 1), (False, 2)])
def test_a_nifti_header_says_what_is_known(tmp_path: Path, known: bool, code: int) -> None:
    grid = oblique_grid((3, 4, 5))
    write_nifti(tmp_path / "image.nii", ramp(3, 4, 5), grid, geometry_known=known, description="λ " + "x" * 100)
    header = nib.load(tmp_path / "image.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (code, code)
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-4)
    np.testing.assert_allclose(header["pixdim"][1:4], np.linalg.norm(header.get_sform()[:3, :3], axis=0), rtol=1e-6)
    assert header.get_xyzt_units() == ("mm", "sec")
    assert header["descrip"].item() == b"? " + b"x" * 77
    assert header.get_data_dtype() == np.float32


def test_half_turns_lose_no_more_than_the_quaternion_of_the_format_does(tmp_path: Path) -> None:
    angle = 4e-4
    directions = (
        (0.0, 0.0, 1.0),
        (-float(np.sin(angle)), float(np.cos(angle)), 0.0),
        (float(np.cos(angle)), float(np.sin(angle)), 0.0),
    )
    grid = VoxelGrid((1, 2, 2), (1, 1, 1), directions)
    write_nifti(tmp_path / "image.nii", torch.ones(1, 2, 2), grid, geometry_known=True)
    header = nib.load(tmp_path / "image.nii").header
    np.testing.assert_allclose(header.get_sform(), grid.affine_ras(), atol=1e-6)
    np.testing.assert_allclose(header.get_qform(), grid.affine_ras(), atol=2e-3)


def test_batch_axes_become_the_fourth_axis_in_order(tmp_path: Path) -> None:
    grid = plain_grid(2, 3, 4)
    image = ramp(2, 3, 2, 3, 4)
    write_nifti(tmp_path / "image.nii", image, grid, geometry_known=True, repetition_time_ms=1250)
    nifti = nib.load(tmp_path / "image.nii")
    assert nifti.shape == (4, 3, 2, 6)
    np.testing.assert_allclose(nifti.header.get_zooms(), (1.5, 2.0, 5.0, 1.25))
    np.testing.assert_array_equal(nifti.get_fdata()[..., 4], image[1, 1].numpy().T)

    write_nifti(tmp_path / "unknown.nii", image, grid, geometry_known=True)
    assert nib.load(tmp_path / "unknown.nii").header["pixdim"][4] == 0
    write_nifti(tmp_path / "one.nii", image[:1, :1], grid, geometry_known=True, repetition_time_ms=1250)
    assert nib.load(tmp_path / "one.nii").shape == (4, 3, 2)


def test_each_part_of_a_complex_image_comes_back(tmp_path: Path, generator: torch.Generator) -> None:
    grid = plain_grid(2, 3, 4)
    image = torch.randn(2, 3, 4, dtype=torch.complex64, generator=generator).conj().requires_grad_()
    expected = image.detach().resolve_conj().numpy().T
    parts = {"magnitude": np.abs(expected), "phase": np.angle(expected), "complex": expected, "real": expected.real}
    for part, values in parts.items():
        path = tmp_path / f"{part}.nii.gz"
        write_nifti(path, image, grid, part=part, geometry_known=True)  # type: ignore[arg-type]
        nifti = nib.load(path)
        assert nifti.header.get_data_dtype() == (np.complex64 if part == "complex" else np.float32)
        np.testing.assert_allclose(np.asarray(nifti.dataobj), values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16])
def test_the_real_part_keeps_the_signs_of_a_real_image(tmp_path: Path, dtype: torch.dtype) -> None:
    grid = plain_grid(2, 3, 4)
    image = (ramp(2, 3, 4) * 100 - 1024).to(dtype)
    write_nifti(tmp_path / "image.nii", image, grid, part="real", geometry_known=True)
    nifti = nib.load(tmp_path / "image.nii")
    assert nifti.header.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(nifti.dataobj), image.numpy().T)
    torch.testing.assert_close(read_nifti_image(tmp_path / "image.nii")[0], image.float(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
def test_the_same_image_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    contents = []
    for now, folder in ((1e9, "first"), (2e9, "second")):
        (tmp_path / folder).mkdir()
        monkeypatch.setattr("time.time", lambda now=now: now)
        write_nifti(tmp_path / folder / name, ramp(2, 3, 4), plain_grid(2, 3, 4), geometry_known=True)
        contents.append((tmp_path / folder / name).read_bytes())
    assert contents[0] == contents[1]


def test_nifti_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    grid, image = plain_grid(2, 3, 4), ramp(2, 3, 4)
    bad = image.clone()
    bad[0, 0, 0] = float("nan")
    path = tmp_path / "image.nii.gz"
    for name in ("image.png", "image", "image.gz", "image.nii.bz2"):
        with pytest.raises(InputError, match=r"does not end in \.nii"):
            write_nifti(tmp_path / name, image, grid, geometry_known=True)
    with pytest.raises(InputError, match="1 of 24 voxels are not finite"):
        write_nifti(path, bad, grid, geometry_known=True)
    with pytest.raises(InputError, match="not finite in single precision"):
        write_nifti(path, image.double() * 1e300, grid, geometry_known=True)
    with pytest.raises(InputError, match="repetition time is nan"):
        write_nifti(path, image, grid, geometry_known=True, repetition_time_ms=float("nan"))
    with pytest.raises(InputError, match="at most 32767 per axis"):
        write_nifti(path, torch.ones(1, 1, 40000), plain_grid(1, 1, 40000), geometry_known=True)
    with pytest.raises(ValueError, match=r"expected \(\*batch, 2, 3, 4\)"):
        write_nifti(path, image[:1], grid, geometry_known=True)
    with pytest.raises(ValueError, match="part is 'imaginary'"):
        write_nifti(path, image, grid, part="imaginary", geometry_known=True)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_was_written_is_read_back(tmp_path: Path, shape: tuple[int, int, int], name: str) -> None:
    grid, image = oblique_grid(shape, left_handed=True), ramp(*shape)
    write_nifti(tmp_path / name, image, grid, geometry_known=True)
    other, other_grid = read_nifti_image(tmp_path / name)
    assert other.dtype == torch.float32
    torch.testing.assert_close(other, image, rtol=0, atol=0)
    np.testing.assert_allclose(other_grid.affine_ras(), grid.affine_ras(), atol=1e-4)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_reading_agrees_with_nibabel(tmp_path: Path, kind: type[nib.Nifti1Image], order: str, dtype: str) -> None:
    values = np.arange(60).reshape(5, 4, 3).astype(order + dtype)
    affine = np.diag([-2.0, 3, 4, 1])
    affine[:3, 3] = 7, 8, 9
    header = kind.header_class(endianness=order)
    header.set_data_dtype(order + dtype)
    header["scl_slope"], header["scl_inter"] = 0.5, -3
    nifti = kind(values, affine, header)
    nifti.header.set_slope_inter(0.5, -3)
    nifti.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"an extension moves the data"))
    nib.save(nifti, tmp_path / "image.nii.gz")
    expected = nib.load(tmp_path / "image.nii.gz")
    image, grid = read_nifti_image(tmp_path / "image.nii.gz")
    np.testing.assert_allclose(image.numpy(), expected.get_fdata().T, rtol=1e-6)
    np.testing.assert_allclose(grid.affine_ras(), expected.affine, atol=1e-6)


def test_metres_and_a_qform_alone_are_understood(tmp_path: Path) -> None:
    grid = oblique_grid((3, 4, 5))
    affine = grid.affine_ras()
    affine[:3] /= 1000
    nifti = nib.Nifti1Image(np.ones((5, 4, 3), np.float32), None)
    nifti.set_qform(affine, 1)
    nifti.header.set_xyzt_units("meter")
    nib.save(nifti, tmp_path / "image.nii")
    np.testing.assert_allclose(read_nifti_image(tmp_path / "image.nii")[1].affine_ras(), grid.affine_ras(), atol=1e-3)


def _valid_file(tmp_path: Path) -> bytearray:
    path = tmp_path / "valid.nii"
    if not path.exists():
        write_nifti(path, ramp(3, 4, 5), oblique_grid((3, 4, 5)), geometry_known=True)
    return bytearray(path.read_bytes())


def _patched(tmp_path: Path, fmt: str, offset: int, *values: float) -> Path:
    content = _valid_file(tmp_path)
    struct.pack_into("<" + fmt, content, offset, *values)
    path = tmp_path / "patched.nii"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("fmt", "offset", "values", "message"),
    [
        ("8h", 40, (4, 5, 4, 3, 7, 1, 1, 1), "holds a series of size 5×4×3×7; expected one volume"),
        ("8h", 40, (7, *[32767] * 7), "holds a series"),
        ("8h", 40, (3, 32767, 32767, 32767, 1, 1, 1, 1), "too short for the 32767×32767×32767 voxels"),
        ("8h", 40, (3, 5, -4, 3, 1, 1, 1, 1), "describes no image"),
        ("8h", 40, (3, 5, 0, 3, 1, 1, 1, 1), "describes no image"),
        ("h", 40, (99,), "describes no image"),
        ("h", 70, (32,), "voxels of type complex64; expected real"),
        ("h", 70, (128,), "expected real"),
        ("h", 70, (1536,), "expected real"),
        ("h", 70, (77,), "unknown data type 77"),
        ("f", 108, (float("nan"),), "places the voxels at byte nan"),
        ("f", 108, (-4.0,), "places the voxels at byte"),
        ("f", 108, (1e30,), "places the voxels at byte"),
        ("f", 108, (1e9,), "too short"),
        ("f", 108, (0.0,), "too short"),
        ("2f", 112, (1e38, 0.0), "not finite"),
        ("2f", 112, (1.0, float("nan")), "60 of 60 voxels .* are not finite"),
        ("B", 123, (7,), "unknown unit of length 7"),
        ("4f", 280, (0.0, 0.0, 0.0, 0.0), "affine .* cannot be used.*resample"),
        ("4f", 280, (float("inf"), 0.0, 0.0, 0.0), "affine .* cannot be used"),
        ("4f", 280, (3.0, 2.0, 1.0, 0.0), "affine .* cannot be used.*not three orthogonal"),
        ("f", 352, (float("nan"),), "1 of 60 voxels .* not finite"),
        ("4s", 344, (b"ni1\0",), "NIfTI pair"),
        ("4s", 344, (b"????",), "is not a NIfTI image"),
    ],
)
def test_hostile_headers_are_named(
    tmp_path: Path, fmt: str, offset: int, values: tuple[float, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_nifti_image(_patched(tmp_path, fmt, offset, *values))


def test_files_that_are_no_image_are_named(tmp_path: Path) -> None:
    valid = bytes(_valid_file(tmp_path))
    packed = gzip.compress(valid)
    contents = {
        "empty": b"",
        "short": valid[:200],
        "truncated": valid[:-1],
        "text": b"once upon a time " * 50,
        "packed_text": gzip.compress(b"once upon a time " * 50),
        "packed_truncated": packed[:-20],
        "packed_damaged": packed[:40] + bytes(20) + packed[60:],
        "packed_nothing": b"\x1f\x8b",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_nifti_image(tmp_path / name)
    unreadable = [tmp_path / "missing.nii", tmp_path]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        unreadable.append(tmp_path / "pipe")
    for path in unreadable:
        with pytest.raises(InputError, match="could not be read"):
            read_nifti_image(path)


def test_a_size_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    _valid_file(tmp_path)
    with pytest.raises(InputError, match="more than the limit"):
        read_nifti_image(tmp_path / "valid.nii", memory_limit_bytes=500)
    packed = tmp_path / "bomb.nii.gz"
    packed.write_bytes(gzip.compress(bytes(_patched(tmp_path, "8h", 40, 3, 2000, 2000, 900, 1, 1, 1, 1).read_bytes())))
    with pytest.raises(InputError, match="too short"):
        read_nifti_image(packed)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
    n_cut=st.sampled_from([0, 0, 1, 300]),
    packed=st.booleans(),
    mutate_packed=st.booleans(),
)
def test_damaged_files_are_read_or_refused_but_nothing_else(
    tmp_path: Path, changes: list[tuple[int, bytes]], n_cut: int, packed: bool, mutate_packed: bool
) -> None:
    content = _valid_file(tmp_path)
    if packed and mutate_packed:
        content = bytearray(gzip.compress(bytes(content)))
    for offset, piece in changes:
        content[offset : offset + len(piece)] = piece
    content = content[: len(content) - n_cut]
    path = tmp_path / "damaged.nii"
    path.write_bytes(gzip.compress(bytes(content), 1) if packed and not mutate_packed else bytes(content))
    try:
        image, grid = read_nifti_image(path, memory_limit_bytes=2**20)
    except InputError:
        return
    assert tuple(image.shape) == grid.shape
    assert image.isfinite().all()


@pytest.mark.realdata
def test_measured_images_are_read_as_nibabel_reads_them(data_folder: Path) -> None:
    path = data_folder / "mri" / "images" / "ms_lesion" / "patient01_study2_FLAIR.nii.gz"
    image, grid = read_nifti_image(path)
    expected = nib.load(path)
    np.testing.assert_allclose(image.numpy(), expected.get_fdata(dtype=np.float32).T, rtol=1e-6)
    np.testing.assert_allclose(grid.affine_ras(), expected.affine, atol=1e-3)
