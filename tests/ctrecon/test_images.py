import gzip
import io
import itertools
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
)

from ctrecon.io.dicom import read_dicom, write_dicom
from ctrecon.io.images import read_hu_image
from operators.errors import InputError
from operators.io.nifti import write_nifti
from operators.voxel_grid import IDENTITY_DIRECTIONS, Triple, VoxelGrid
from tests.grids import oblique_grid, position_by_hand

SHAPE = (3, 5, 4)
ORIGIN = (-30.5, 12.25, 100.0)


def _body(*shape: int) -> torch.Tensor:
    """Different whole Hounsfield units in every voxel."""
    return (torch.arange(int(np.prod(shape))) * 7.0 - 1000).reshape(shape)


def _grid(shape: tuple[int, int, int] = SHAPE) -> VoxelGrid:
    return VoxelGrid(shape, (5.0, 2.0, 1.5), IDENTITY_DIRECTIONS, ORIGIN)


def _series(folder: Path, grid: VoxelGrid | None = None, hu: torch.Tensor | None = None) -> list[Path]:
    grid = _grid() if grid is None else grid
    hu = _body(*grid.shape) if hu is None else hu
    return write_dicom(folder, hu, grid, method="fbp", description="test", mu_water_per_mm=0.02)[0]


def _changed(path: Path, change: Callable[[Dataset], object], *, syntax: str | None = None) -> Path:
    dataset = pydicom.dcmread(path)
    change(dataset)
    meta = dataset.file_meta
    if syntax:
        meta.TransferSyntaxUID = syntax
        dataset = Dataset(dataset)  # forgets its encoding, so that it can be written in another
        dataset.file_meta = meta
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values that no honest writer writes
        dataset.save_as(path, enforce_file_format=True)
    return path


def _set(**values: object) -> Callable[[Dataset], object]:
    return lambda dataset: [setattr(dataset, keyword, value) for keyword, value in values.items()]


def _assert_same_places(hu: torch.Tensor, grid: VoxelGrid, body: torch.Tensor, where: VoxelGrid) -> None:
    """Every value of the body lies in the image where it lay before."""
    assert tuple(hu.shape) == grid.shape
    assert sorted(hu.ravel().tolist()) == sorted(body.ravel().tolist())
    for index in np.ndindex(tuple(body.shape)):
        [found] = np.argwhere(hu.numpy() == body[index].item())
        np.testing.assert_allclose(grid.position_mm(found), position_by_hand(where, index), atol=1e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["hu.nii", "hu.nii.gz", "series"])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("left_handed", [False, True])
def test_images_in_any_orientation_become_axial_and_no_voxel_moves(
    tmp_path: Path, form: str, seed: int, left_handed: bool
) -> None:
    grid, body = oblique_grid(SHAPE, seed=seed, left_handed=left_handed), _body(*SHAPE)
    if form == "series":
        _series(tmp_path / form, grid, body)
    else:
        write_nifti(tmp_path / form, body, grid, part="real", geometry_known=True)
    hu, found, _ = read_hu_image(tmp_path / form)
    _assert_same_places(hu, found, body, grid)
    along = np.array(found.directions) @ np.array(IDENTITY_DIRECTIONS).T
    assert np.diag(along).min() > 0
    assert all(np.trace(along) >= np.trace(np.abs(along)[list(axes)]) for axes in itertools.permutations(range(3)))


def test_the_usual_orientation_of_nifti_is_turned_upright(tmp_path: Path) -> None:
    body = _body(*SHAPE).numpy().T  # (x, y, z), running to the right, the front and the head
    nib.save(nib.Nifti1Image(body, np.diag([1.5, 2.0, 5.0, 1.0])), tmp_path / "hu.nii.gz")
    hu, grid, decisions = read_hu_image(tmp_path / "hu.nii.gz")
    np.testing.assert_array_equal(hu, body.T[:, ::-1, ::-1])
    assert grid.directions == IDENTITY_DIRECTIONS
    assert grid.spacing_mm == (5.0, 2.0, 1.5)
    assert grid.origin_mm == (-4.5, -8.0, 0.0)
    assert [(decision.name, decision.warning) for decision in decisions] == [("orientation", False)]


def test_sagittal_slices_become_axial_ones_with_a_warning(tmp_path: Path) -> None:
    sagittal = VoxelGrid(SHAPE, (5.0, 2.0, 1.5), ((1, 0, 0), (0, 0, -1), (0, 1, 0)), ORIGIN)
    _series(tmp_path / "series", sagittal)
    hu, grid, decisions = read_hu_image(tmp_path / "series")
    assert grid.shape == (5, 4, 3)
    assert grid.spacing_mm == (2.0, 1.5, 5.0)
    _assert_same_places(hu, grid, _body(*SHAPE), sagittal)
    assert [(decision.name, decision.warning) for decision in decisions] == [("orientation", True)]


def test_an_image_that_lies_as_it_should_is_left_alone(tmp_path: Path) -> None:
    write_nifti(tmp_path / "hu.nii", _body(*SHAPE), _grid(), part="real", geometry_known=True)
    _series(tmp_path / "series")
    for name in ("hu.nii", "series"):
        hu, grid, decisions = read_hu_image(tmp_path / name)
        assert (hu.dtype, decisions) == (torch.float32, ())
        torch.testing.assert_close(hu, _body(*SHAPE), rtol=0, atol=0)
        np.testing.assert_allclose(grid.affine_lps(), _grid().affine_lps(), atol=1e-4)


def test_slices_are_sorted_by_position_and_not_by_name(tmp_path: Path) -> None:
    paths = _series(tmp_path / "series")
    for path, name in zip(paths, ("c", "a.dcm", "b.ima"), strict=True):
        path.rename(path.with_name(name))
    (tmp_path / "series" / "README").write_text("no image " * 50)
    hu, _, decisions = read_hu_image(tmp_path / "series")
    torch.testing.assert_close(hu, _body(*SHAPE), rtol=0, atol=0)
    assert decisions == ()


def test_one_slice_is_read_alone(tmp_path: Path) -> None:
    paths = _series(tmp_path / "series")
    hu, grid, _ = read_hu_image(paths[1])
    torch.testing.assert_close(hu, _body(*SHAPE)[1:2], rtol=0, atol=0)
    assert grid.spacing_mm == (5.0, 2.0, 1.5)
    assert grid.origin_mm == (-30.5, 12.25, 105.0)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_slices_in_other_encodings_are_read(tmp_path: Path, syntax: str) -> None:
    for path in _series(tmp_path / "series"):
        if syntax == RLELossless:
            _changed(path, lambda dataset: dataset.compress(RLELossless, generate_instance_uid=False))
        else:
            pixels = pydicom.dcmread(path).pixel_array
            order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
            _changed(path, _set(PixelData=pixels.astype(order).tobytes()), syntax=syntax)
    torch.testing.assert_close(read_hu_image(tmp_path / "series")[0], _body(*SHAPE), rtol=0, atol=0)


def test_signed_pixels_and_each_slices_own_scaling_are_understood(tmp_path: Path) -> None:
    body = _body(*SHAPE)
    for number, path in enumerate(_series(tmp_path / "series")):
        stored = (body[number].numpy() / 3.5 + 11 - number).round().astype("<i2")
        scaling = {"RescaleSlope": "3.5", "RescaleIntercept": str(3.5 * (number - 11)), "PixelRepresentation": 1}
        _changed(path, _set(PixelData=stored.tobytes(), BitsStored=16, HighBit=15, **scaling))
    torch.testing.assert_close(read_hu_image(tmp_path / "series")[0], body, rtol=0, atol=1.751)


def test_of_several_series_the_largest_is_read_and_it_is_said(tmp_path: Path) -> None:
    _series(tmp_path / "series")
    other = VoxelGrid((2, 5, 4), (5.0, 2.0, 1.5), IDENTITY_DIRECTIONS, (0.0, 0.0, 0.0))
    for number, path in enumerate(_series(tmp_path / "other", other)):
        path.rename(tmp_path / "series" / f"a_{number}.dcm")
    hu, _, decisions = read_hu_image(tmp_path / "series")
    torch.testing.assert_close(hu, _body(*SHAPE), rtol=0, atol=0)
    [decision] = decisions
    assert (decision.name, decision.value, decision.warning) == ("series", "3 of 5 slices", True)
    assert "2 series or orientations" in decision.reason


def test_localizers_and_other_modalities_are_left_out_and_it_is_said(tmp_path: Path) -> None:
    grid = _grid((5, 5, 4))
    paths = _series(tmp_path / "series", grid)
    _changed(paths[0], _set(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    _changed(paths[4], _set(Modality="PT"))
    hu, found, decisions = read_hu_image(tmp_path / "series")
    torch.testing.assert_close(hu, _body(5, 5, 4)[1:4], rtol=0, atol=0)
    assert found.origin_mm == (-30.5, 12.25, 105.0)
    assert [(d.name, d.value, d.warning) for d in decisions] == [("left_out", "1 × PT image, 1 × localizer", True)]


def test_slices_at_one_place_are_read_once_and_it_is_said(tmp_path: Path) -> None:
    paths = _series(tmp_path / "series")
    repeated = tmp_path / "series" / "again.dcm"
    repeated.write_bytes(paths[1].read_bytes())
    _changed(repeated, _set(InstanceNumber=9, PixelData=bytes(40)))
    hu, _, decisions = read_hu_image(tmp_path / "series")
    torch.testing.assert_close(hu, _body(*SHAPE), rtol=0, atol=0)
    assert [(d.name, d.value, d.warning) for d in decisions] == [("repeated_slices", "3 of 4 slices", True)]


def test_a_missing_slice_and_a_tilted_gantry_are_said(tmp_path: Path) -> None:
    paths = _series(tmp_path / "gap", _grid((5, 5, 4)))
    paths[2].unlink()
    _, grid, [decision] = read_hu_image(tmp_path / "gap")
    assert (decision.name, decision.value, decision.warning) == ("slice_spacing", "5 mm", True)
    assert "5 to 10 mm apart" in decision.reason
    assert grid.spacing_mm[0] == 5
    for number, path in enumerate(_series(tmp_path / "tilt")):
        position = [ORIGIN[0], ORIGIN[1] + 5 * number * np.tan(np.radians(20)), ORIGIN[2] + 5 * number]
        _changed(path, _set(ImagePositionPatient=[f"{coordinate:.6f}" for coordinate in position]))
    _, _, [decision] = read_hu_image(tmp_path / "tilt")
    assert (decision.name, decision.value, decision.warning) == ("gantry_tilt", "20.0°", True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set(PixelSpacing=None), "no PixelSpacing"),
        (lambda d: delattr(d, "ImagePositionPatient"), "no ImagePositionPatient"),
        (lambda d: delattr(d, "RescaleIntercept"), "no RescaleIntercept"),
        (lambda d: delattr(d, "PixelData"), "could not be read as DICOM"),
        (_set(PixelData=bytes(38)), "could not be read as DICOM"),
        (_set(PixelSpacing=["0", "1"]), "pixels of 0×1 mm"),
        (_set(PixelSpacing=["1", "1e9"]), "expected 2 of size up to 10000"),
        (_set(PixelSpacing="1"), "could not be read as DICOM|expected 2"),
        (_set(ImageOrientationPatient=["1", "0", "0", "1", "0", "0"]), "place of .* cannot be used"),
        (_set(ImageOrientationPatient=["0", "0", "0", "0", "0", "0"]), "place of .* cannot be used"),
        (_set(ImageOrientationPatient=["7", "0", "0", "0", "1", "0"]), "expected 6 of size up to"),
        (_set(ImagePositionPatient=["1e300", "0", "0"]), "expected 3 of size up to"),
        (_set(RescaleSlope="1e30"), "expected 1 of size up to"),
        (_set(Rows=0), "it is damaged"),
        (_set(Rows=60000, Columns=60000), "and the limit is"),
        (_set(Rows=6000, Columns=6000), "could not be read as DICOM"),
        (_set(NumberOfFrames="2"), "several frames"),
        (_set(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0), "could not be read|grey"),
        (_set(Modality="MR"), "no CT slice, but 1 × MR image"),
        (_set(Modality=""), "no CT slice, but 1 × no modality image"),
        (lambda d: delattr(d, "Rows"), "no CT slice, but 1 × CT object"),
        (_set(RescaleIntercept="0"), "Nothing is as dark as air: subtract 1024"),
        (_set(RescaleSlope="0"), "from -1024 to -1024; .*nothing in the image"),
    ],
)
def test_dicom_that_cannot_be_used_is_named(tmp_path: Path, change: Callable[[Dataset], object], message: str) -> None:
    [path] = _series(tmp_path / "series", _grid((1, 5, 4)))
    _changed(path, change)
    with pytest.raises(InputError, match=message):
        read_hu_image(path)


def test_compression_that_nothing_can_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [path] = _series(tmp_path / "series", _grid((1, 5, 4)))
    frame = pydicom.encaps.encapsulate([b"not a JPEG stream."])
    _changed(path, _set(PixelData=frame), syntax=JPEGLosslessSV1)

    class Missing:
        is_available = False

    monkeypatch.setattr("ctrecon.io.dicom.get_decoder", lambda syntax: Missing)
    with pytest.raises(InputError, match=r"compressed as JPEG Lossless.*install pylibjpeg"):
        read_hu_image(path)


def test_a_deflated_file_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    [path] = _series(tmp_path / "series", _grid((1, 5, 4)))
    _changed(path, _set(), syntax=DeflatedExplicitVRLittleEndian)
    with pytest.raises(InputError, match="is deflated as a whole; save it uncompressed"):
        read_hu_image(path)


def test_folders_without_a_ct_slice_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no CT slice, but no DICOM file"):
        read_hu_image(tmp_path)
    (tmp_path / "empty.dcm").write_bytes(b"")
    with pytest.raises(InputError, match="holds no CT slice"):
        read_hu_image(tmp_path)
    with pytest.raises(InputError, match="no file or folder that can be read"):
        read_dicom(tmp_path / "missing")
    with pytest.raises(InputError, match="could not be read as DICOM"):
        read_dicom(tmp_path / "empty.dcm")


def test_more_than_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    body = _body(*SHAPE).numpy()
    _series(tmp_path / "series")
    write_nifti(tmp_path / "hu.nii", _body(*SHAPE), _grid(), part="real", geometry_known=True)
    np.save(tmp_path / "hu.npy", body)
    np.savez_compressed(tmp_path / "hu.npz", hu=body)
    for name in ("series", "series/slice_0001.dcm", "hu.nii", "hu.npy", "hu.npz"):
        with pytest.raises(InputError, match=r"limit (of|is) .* GiB"):
            read_hu_image(tmp_path / name, memory_limit_bytes=200)


def test_an_archive_with_spacing_and_positions_is_read(tmp_path: Path) -> None:
    body = _body(*SHAPE).numpy().astype(np.int16)
    np.savez_compressed(tmp_path / "a.npz", hu=body, pixel_spacing_mm=[2.0, 1.5], z_mm=[7.0, 10.0, 13.0], case=[1])
    hu, grid, decisions = read_hu_image(tmp_path / "a.npz")
    np.testing.assert_array_equal(hu, body)
    assert (hu.dtype, decisions) == (torch.float32, ())
    assert grid == VoxelGrid(SHAPE, (3.0, 2.0, 1.5), IDENTITY_DIRECTIONS, (-2.25, -4.0, 7.0))


def test_positions_that_descend_are_sorted_and_uneven_ones_are_said(tmp_path: Path) -> None:
    body = _body(*SHAPE).numpy()
    np.savez(tmp_path / "a.npz", hu=body, pixel_spacing_mm=2.0, z_mm=[13.0, 10.0, 7.0])
    hu, grid, decisions = read_hu_image(tmp_path / "a.npz")
    np.testing.assert_array_equal(hu, body[::-1])
    assert (grid.directions, grid.origin_mm[2]) == (IDENTITY_DIRECTIONS, 7.0)
    assert [decision.name for decision in decisions] == ["orientation"]
    np.savez(tmp_path / "b.npz", hu=body, pixel_spacing_mm=2.0, z_mm=[0.0, 3.0, 9.0])
    _, grid, [decision] = read_hu_image(tmp_path / "b.npz")
    assert (decision.name, decision.value, decision.warning) == ("slice_spacing", "4.5 mm", True)


def test_what_an_array_does_not_say_is_assumed_aloud_or_given(tmp_path: Path) -> None:
    body = _body(*SHAPE).numpy()
    np.save(tmp_path / "a.npy", np.asfortranarray(body.astype(">f8")))
    hu, grid, decisions = read_hu_image(tmp_path / "a.npy")
    np.testing.assert_array_equal(hu, body)
    assert grid.spacing_mm == (1.0, 1.0, 1.0)
    assert [(d.name, d.value, d.override) for d in decisions] == [
        ("pixel_spacing", "1 mm", "--voxel-mm"),
        ("slice_spacing", "1 mm", "--voxel-mm"),
    ]
    _, grid, decisions = read_hu_image(tmp_path / "a.npy", voxel_mm=(1.5, 2.0, 5.0))
    assert decisions == ()
    assert grid == VoxelGrid(SHAPE, (5.0, 2.0, 1.5), IDENTITY_DIRECTIONS, (-2.25, -4.0, 0.0))
    np.save(tmp_path / "b.npy", body[0])
    hu, grid, decisions = read_hu_image(tmp_path / "b.npy")
    assert tuple(hu.shape) == (1, 5, 4)
    assert [decision.name for decision in decisions] == ["pixel_spacing"]


def test_a_given_voxel_size_replaces_that_of_the_file_around_its_centre(tmp_path: Path) -> None:
    _series(tmp_path / "series")
    _, grid, _ = read_hu_image(tmp_path / "series", voxel_mm=(3.0, 3.0, 4.0))
    assert grid.spacing_mm == (4.0, 3.0, 3.0)
    np.testing.assert_allclose(grid.position_mm((0, 2, 1.5)), _grid().position_mm((0, 2, 1.5)))
    wrong: list[Triple] = [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, float("nan"))]
    for voxel_mm in wrong:
        with pytest.raises(InputError, match=r"voxel size .* cannot be used"):
            read_hu_image(tmp_path / "series", voxel_mm=voxel_mm)


def test_padding_around_the_field_of_view_becomes_air(tmp_path: Path) -> None:
    body = np.full((1, 20, 20), -1000.0)
    body[0, 5:15, 5:15] = 40
    body[0, 0, :10] = -3024
    np.save(tmp_path / "padded.npy", body)
    hu, _, decisions = read_hu_image(tmp_path / "padded.npy")
    np.testing.assert_array_equal(hu, np.maximum(body, -1000))
    [padding] = [decision for decision in decisions if decision.name == "padding"]
    assert padding.warning
    assert "2% of the voxels are -3024 HU" in padding.reason
    body[0, 0, 1:10] = -1300  # dark streaks are no padding, nor is a single voxel
    np.save(tmp_path / "streaks.npy", body)
    hu, _, decisions = read_hu_image(tmp_path / "streaks.npy")
    np.testing.assert_array_equal(hu, body)
    assert [decision.name for decision in decisions] == ["pixel_spacing"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, 0.02, 0.05], r"run from 0 to 0\.05; expected Hounsfield.*look like attenuation.*mu_water"),
        ([-0.1, 0.5, 1.0], "grey values scaled to 1"),
        ([0.0, 0.0, 0.0], "grey values scaled to 1"),
        ([0.0, 1024.0, 4095.0], "run from 0 to 4095; .*subtract 1024"),
        ([0.0, 40.0, 80.0], "masked with 0"),
        ([-1000.0, 0.0, 1e6], "No material is so dark or bright"),
        ([-32768.0, 0.0, 40.0], "No material is so dark or bright"),
        ([-1000.0, float("nan"), 40.0], "1 of 3 voxels .* are not finite"),
        ([-1000.0, 1e300, 40.0], "1 of 3 voxels .* are not finite"),
    ],
)
def test_values_that_are_no_hounsfield_units_are_refused_with_advice(
    tmp_path: Path, values: list[float], message: str
) -> None:
    np.save(tmp_path / "a.npy", np.array([values]))
    with pytest.raises(InputError, match=message):
        read_hu_image(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros((2, 2))}, "holds image; expected the array hu"),
        ({}, "holds nothing; expected the array hu"),
        ({"hu": np.zeros((2, 2), np.complex64)}, r"hu \(2 × 2 complex64\); expected real"),
        ({"hu": np.zeros((2, 2), bool)}, r"hu \(2 × 2 bool\); expected real"),
        ({"hu": np.array([[None]])}, r"hu \(1 × 1 objects\); expected real"),
        ({"hu": np.zeros(4)}, r"shape \(4,\); expected"),
        ({"hu": np.zeros((1, 2, 3, 4))}, r"shape \(1, 2, 3, 4\); expected"),
        ({"hu": np.zeros((0, 4))}, r"shape \(0, 4\)"),
        ({"hu": -np.ones((2, 2)), "pixel_spacing_mm": np.array([1.0, 0.0])}, r"\[1\.0, 0\.0\]; expected two"),
        ({"hu": -np.ones((2, 2)), "pixel_spacing_mm": np.array([np.nan])}, "expected two positive"),
        ({"hu": -np.ones((2, 2)), "pixel_spacing_mm": np.ones(3)}, "expected two positive"),
        ({"hu": -np.ones((2, 2, 2)), "z_mm": np.zeros(3)}, "3 positions for 2 slices"),
        ({"hu": -np.ones((2, 2, 2)), "z_mm": np.zeros(2)}, "neither ascends nor descends"),
        ({"hu": -np.ones((2, 2, 2)), "z_mm": np.array([0, np.inf])}, "expected a finite one each"),
    ],
)
def test_archives_that_are_no_image_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", allow_pickle=True, **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        read_hu_image(tmp_path / "a.npz")


def test_files_that_are_no_image_are_named(tmp_path: Path) -> None:
    stored = io.BytesIO()
    np.save(stored, _body(*SHAPE).numpy())
    npy = stored.getvalue()
    huge = npy.replace(b"(3, 5, 4), }", b"(99999999999, 5), }")
    assert huge != npy
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("hu.npy", huge + bytes(10**6))
    contents = {
        "empty": (b"", "is of an unknown kind; expected a NIfTI image"),
        "text": (b"once upon a time", "is of an unknown kind"),
        "packed_text": (gzip.compress(b"once upon a time " * 50), "not a NIfTI image"),
        "huge": (huge, "and the limit is"),
        "bomb": (bomb.getvalue(), "and the limit is"),
        "truncated": (npy[:-1], "is truncated"),
        "version": (npy[:6] + b"\x07" + npy[7:], "it is damaged"),
        "header": (npy[:20] + b"\xff" * 20 + npy[40:], r"could not be read as (numpy|a numpy archive)"),
        "zip": (b"PK\x03\x04" + bytes(50), r"could not be read as (numpy|a numpy archive)"),
        "empty_zip": (b"PK\x05\x06" + bytes(18), "holds nothing"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_hu_image(tmp_path / name)
    unreadable = [tmp_path / "missing.nii"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        unreadable.append(tmp_path / "pipe")
    for path in unreadable:
        with pytest.raises(InputError, match="no file or folder that can be read"):
            read_hu_image(path)
        with pytest.raises(InputError, match="no file or folder that can be read"):
            read_dicom(path)


def _valid(tmp_path: Path, kind: str) -> bytes:
    path = tmp_path / f"valid.{kind}"
    if not path.exists():
        body = _body(*SHAPE)
        if kind == "npy":
            np.save(path, body.numpy())
        elif kind == "npz":
            np.savez_compressed(path, hu=body.numpy(), pixel_spacing_mm=[1.0, 2.0], z_mm=[1.0, 2.0, 3.0])
        elif kind == "nii":
            write_nifti(path, body, _grid(), part="real", geometry_known=True)
        else:
            [slice_path] = _series(tmp_path / "valid_series", _grid((1, 5, 4)))
            if kind == "rle":
                _changed(slice_path, lambda d: d.compress(RLELossless, generate_instance_uid=False))
            slice_path.rename(path)
            slice_path.parent.rmdir()
    return path.read_bytes()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["npy", "npz", "nii", "dcm", "dcm", "dcm", "rle"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
    n_cut=st.sampled_from([0, 0, 0, 1, 100]),
)
def test_damaged_files_are_read_or_refused_but_nothing_else(
    tmp_path: Path, kind: str, changes: list[tuple[float, bytes]], n_cut: int
) -> None:
    content = bytearray(_valid(tmp_path, kind))
    for place, piece in changes:
        offset = int(place * (len(content) - 1))
        content[offset : offset + len(piece)] = piece
    path = tmp_path / "damaged"
    path.write_bytes(content[: len(content) - n_cut])
    try:
        hu, grid, _ = read_hu_image(path, memory_limit_bytes=2**20)
    except InputError:
        return
    assert tuple(hu.shape) == grid.shape
    assert hu.isfinite().all()


@pytest.mark.realdata
def test_measured_images_are_read_with_plausible_units(data_folder: Path) -> None:
    paths = [*sorted((data_folder / "ct" / "images").glob("*.np[yz]"))]
    assert len(paths) >= 8
    for path in paths:
        hu, grid, decisions = read_hu_image(path)
        assert tuple(hu.shape) == grid.shape
        assert -1100 <= hu.min() <= -1000
        assert 1000 < hu.max() <= 5000
        assert (hu.abs() < 150).double().mean() > 0.05  # soft tissue
        names = {decision.name for decision in decisions}
        assert names <= {"pixel_spacing", "slice_spacing"}
        stored = np.load(path)
        if path.suffix == ".npz" and "z_mm" in stored:
            assert grid.spacing_mm == pytest.approx((6.0, 0.78125, 0.78125))
            assert names == set()


@pytest.mark.realdata
def test_real_metal_is_kept_and_real_padding_is_air(data_folder: Path) -> None:
    path = data_folder / "ct" / "metal" / "spine_real_metal" / "patient0156_hu_256.npy"
    hu, _, decisions = read_hu_image(path)
    assert hu.max() == 3071
    assert hu.min() == -1024
    assert "21% of the voxels are -3024 HU" in next(d.reason for d in decisions if d.name == "padding")


@pytest.mark.realdata
def test_other_measured_files_are_refused_with_advice(data_folder: Path) -> None:
    with pytest.raises(InputError, match="run from 0 to 1; expected Hounsfield units"):
        read_hu_image(data_folder / "ct" / "metal" / "abdomen" / "mask_02.npy")
    with pytest.raises(InputError, match="no CT slice, but 2 × MR image"):
        read_hu_image(data_folder / "mri" / "formats" / "dicom_series")
    with pytest.raises(InputError, match="Nothing is as dark as air"):
        read_hu_image(data_folder / "mri" / "images" / "ms_lesion" / "patient01_study2_FLAIR.nii.gz")
    with pytest.raises(InputError, match="unknown kind"):
        read_hu_image(data_folder / "ct" / "tooth_parallel.h5")
