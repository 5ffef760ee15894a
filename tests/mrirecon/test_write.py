import errno
import gzip
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from mrirecon.acquisition import Acquisition
from mrirecon.io.dicom import check_dicom_folder, write_dicom
from operators.errors import InputError
from operators.io.nifti import read_nifti_image, write_nifti
from operators.io.picture import write_comparison, write_preview
from operators.voxel_grid import Triple, VoxelGrid

SHAPES = [(1, 6, 5), (4, 5, 8), (3, 7, 6), (2, 1, 3)]


def _rotation(seed: int, *, left_handed: bool = False) -> tuple[Triple, Triple, Triple]:
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    matrix *= np.sign(np.linalg.det(matrix)) * (-1 if left_handed else 1)
    return tuple(tuple(float(value) for value in row) for row in matrix)  # type: ignore[return-value]


def _oblique(shape: tuple[int, int, int], *, seed: int = 3, left_handed: bool = False) -> VoxelGrid:
    directions = _rotation(seed, left_handed=left_handed)
    return VoxelGrid(shape, (5.3, 1.7, 0.9), directions, (-81.234, 40.567, 123.456))


def _phantom(shape: tuple[int, int, int]) -> tuple[torch.Tensor, list[tuple[int, int, int]]]:
    """A complex image with marked voxels of different brightness at asymmetric places, and their indices."""
    n_z, n_y, n_x = shape
    marks = sorted({(0, 0, 0), (n_z - 1, 0, n_x // 3), (n_z // 2, n_y // 2, n_x // 2), (0, n_y - 1, n_x - 1)})
    image = torch.zeros(shape, dtype=torch.complex64)
    for number, mark in enumerate(marks, start=1):
        image[mark] = number * torch.exp(torch.tensor(1j * number))
    return image, marks


def _by_hand(grid: VoxelGrid, index: tuple[int, int, int]) -> np.ndarray:
    """The LPS position of a voxel, written out as the definition of the grid says it."""
    position = np.array(grid.origin_mm)
    for step, spacing, direction in zip(index, grid.spacing_mm, grid.directions, strict=True):
        position = position + step * spacing * np.array(direction)
    return position


def _acquisition(shape: tuple[int, int, int], **known: object) -> Acquisition:
    fov = (4.0, 200.0, 200.0)
    return Acquisition((1, *shape[1:]), fov, fov, **known)  # type: ignore[arg-type]


def _write_series(folder: Path, image: torch.Tensor, grid: VoxelGrid, **options: object) -> list[Path]:
    defaults: dict[str, object] = {
        "geometry_known": True,
        "acquisition": _acquisition(grid.shape),
        "method": "adjoint",
        "description": "test",
    }
    return write_dicom(folder, image, grid, **(defaults | options))  # type: ignore[arg-type]


def _ramp(*shape: int) -> torch.Tensor:
    return torch.arange(1, 1 + int(np.prod(shape)), dtype=torch.float32).reshape(shape)


def _plain_grid(*shape: int) -> VoxelGrid:
    return VoxelGrid((shape[0], shape[1], shape[2]), (5.0, 2.0, 1.5))


@contextmanager
def _files_at_most(n_bytes: int) -> Iterator[None]:
    """Let the kernel fail writes beyond a size, as a full disk does."""
    resource = pytest.importorskip("resource", reason="only Unix limits the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _full_disk(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("left_handed", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_grid_nifti_and_dicom_agree_on_where_every_mark_is(
    tmp_path: Path, shape: tuple[int, int, int], seed: int, left_handed: bool
) -> None:
    grid = _oblique(shape, seed=seed, left_handed=left_handed)
    image, marks = _phantom(shape)
    write_nifti(tmp_path / "image.nii", image, grid, geometry_known=True)
    nifti = nib.load(tmp_path / "image.nii")
    series = [pydicom.dcmread(path) for path in _write_series(tmp_path / "series", image, grid)]
    for brightness, mark in enumerate(marks, start=1):
        expected = _by_hand(grid, mark)
        np.testing.assert_allclose(grid.position_mm(mark), expected, atol=1e-9)

        (column, row, index) = np.argwhere(np.isclose(nifti.get_fdata(), brightness, rtol=1e-5))[0]
        for affine in (nifti.affine, nifti.header.get_qform(), nifti.header.get_sform()):
            ras = affine @ [column, row, index, 1]
            np.testing.assert_allclose(ras[:3] * [-1, -1, 1], expected, atol=1e-3)

        found = [
            (dataset, *np.argwhere(np.isclose(_values(dataset), brightness, rtol=1e-3))[0])
            for dataset in series
            if np.isclose(_values(dataset), brightness, rtol=1e-3).any()
        ]
        assert len(found) == 1
        dataset, row, column = found[0]
        along_columns, along_rows = np.reshape([float(v) for v in dataset.ImageOrientationPatient], (2, 3))
        row_spacing, column_spacing = (float(v) for v in dataset.PixelSpacing)
        corner = np.array([float(v) for v in dataset.ImagePositionPatient])
        lps = corner + column * column_spacing * along_columns + row * row_spacing * along_rows
        np.testing.assert_allclose(lps, expected, atol=1e-3)


def _values(dataset: pydicom.Dataset) -> np.ndarray:
    return apply_modality_lut(dataset.pixel_array, dataset)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fourier_centre_lies_where_the_header_of_the_scan_says(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    directions, centre = _rotation(7), (12.5, -33.25, 8.125)
    grid = VoxelGrid.around(centre, shape, (4.0, 1.25, 2.5), directions)
    write_nifti(tmp_path / "image.nii.gz", torch.ones(shape), grid, geometry_known=True)
    index = [shape[2] // 2, shape[1] // 2, shape[0] // 2, 1]
    ras = nib.load(tmp_path / "image.nii.gz").affine @ index
    np.testing.assert_allclose(ras[:3], [-12.5, 33.25, 8.125], atol=1e-3)


def test_an_axial_image_has_the_axes_that_viewers_expect(tmp_path: Path) -> None:
    grid = _plain_grid(2, 3, 4)
    write_nifti(tmp_path / "image.nii", _ramp(2, 3, 4), grid, geometry_known=True)
    nifti = nib.load(tmp_path / "image.nii")
    assert nib.aff2axcodes(nifti.affine) == ("L", "P", "S")
    assert nifti.shape == (4, 3, 2)
    np.testing.assert_allclose(nifti.header.get_zooms(), (1.5, 2.0, 5.0))
    assert nifti.get_fdata()[1, 2, 0] == _ramp(2, 3, 4)[0, 2, 1]


def test_cosines_that_a_header_rounded_give_one_place_in_every_form(tmp_path: Path) -> None:
    exact = _rotation(5)
    rounded = tuple(tuple(round(value, 3) for value in row) for row in exact)
    grid = VoxelGrid((20, 200, 200), (5.0, 1.0, 1.0), rounded)  # type: ignore[arg-type]
    np.testing.assert_allclose(np.array(grid.directions) @ np.array(grid.directions).T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(grid.directions, exact, atol=1e-3)
    write_nifti(tmp_path / "image.nii.gz", torch.zeros(grid.shape), grid, geometry_known=True)
    header = nib.load(tmp_path / "image.nii.gz").header
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-4)


def test_directions_that_are_orthonormal_stay_as_they_are() -> None:
    directions = _rotation(11)
    np.testing.assert_allclose(VoxelGrid((1, 2, 3), (1, 1, 1), directions).directions, directions, rtol=0, atol=1e-15)
    identity = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    assert VoxelGrid((1, 2, 3), (1, 1, 1)).directions == identity


@pytest.mark.parametrize("left_handed", [False, True])
def test_a_grid_and_its_affine_determine_each_other(left_handed: bool) -> None:
    grid = _oblique((4, 5, 6), left_handed=left_handed)
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
    grid = _oblique((3, 4, 5))
    write_nifti(tmp_path / "image.nii", _ramp(3, 4, 5), grid, geometry_known=known, description="λ " + "x" * 100)
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
    grid = _plain_grid(2, 3, 4)
    image = _ramp(2, 3, 2, 3, 4)
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
    grid = _plain_grid(2, 3, 4)
    image = torch.randn(2, 3, 4, dtype=torch.complex64, generator=generator).conj().requires_grad_()
    expected = image.detach().resolve_conj().numpy().T
    for part, values in (("magnitude", np.abs(expected)), ("phase", np.angle(expected)), ("complex", expected)):
        path = tmp_path / f"{part}.nii.gz"
        write_nifti(path, image, grid, part=part, geometry_known=True)  # type: ignore[arg-type]
        nifti = nib.load(path)
        assert nifti.header.get_data_dtype() == (np.complex64 if part == "complex" else np.float32)
        np.testing.assert_allclose(np.asarray(nifti.dataobj), values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
def test_the_same_image_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    contents = []
    for now, folder in ((1e9, "first"), (2e9, "second")):
        (tmp_path / folder).mkdir()
        monkeypatch.setattr("time.time", lambda now=now: now)
        write_nifti(tmp_path / folder / name, _ramp(2, 3, 4), _plain_grid(2, 3, 4), geometry_known=True)
        contents.append((tmp_path / folder / name).read_bytes())
    assert contents[0] == contents[1]


def test_nifti_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    grid, image = _plain_grid(2, 3, 4), _ramp(2, 3, 4)
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
        write_nifti(path, torch.ones(1, 1, 40000), _plain_grid(1, 1, 40000), geometry_known=True)
    with pytest.raises(ValueError, match=r"expected \(\*batch, 2, 3, 4\)"):
        write_nifti(path, image[:1], grid, geometry_known=True)
    with pytest.raises(ValueError, match="part is 'real'"):
        write_nifti(path, image, grid, part="real", geometry_known=True)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left_handed", [False, True])
def test_slices_lie_in_order_along_their_positions(tmp_path: Path, left_handed: bool) -> None:
    grid = _oblique((12, 3, 4), left_handed=left_handed)
    paths = _write_series(tmp_path / "series", _ramp(12, 3, 4), grid)
    assert [path.name for path in paths] == [f"slice_{number:04d}.dcm" for number in range(1, 13)]
    series = [pydicom.dcmread(path) for path in paths]
    positions = np.array([[float(v) for v in dataset.ImagePositionPatient] for dataset in series])
    np.testing.assert_allclose(np.diff(positions @ grid.directions[0]), 5.3, atol=1e-3)
    orientation = np.reshape([float(v) for v in series[0].ImageOrientationPatient], (2, 3))
    locations = [float(dataset.SliceLocation) for dataset in series]
    np.testing.assert_allclose(locations, positions @ np.cross(*orientation), atol=1e-3)
    assert [dataset.InstanceNumber for dataset in series] == list(range(1, 13))
    assert {float(dataset.SpacingBetweenSlices) for dataset in series} == {5.3}
    assert {float(dataset.SliceThickness) for dataset in series} == {4.0}


@pytest.mark.parametrize("scale", [1.0, 3e-9, 1e12])
def test_values_come_back_to_half_a_step(tmp_path: Path, generator: torch.Generator, scale: float) -> None:
    image = torch.randn(3, 5, 4, dtype=torch.complex128, generator=generator) * scale
    paths = _write_series(tmp_path / "series", image, _plain_grid(3, 5, 4))
    series = [pydicom.dcmread(path) for path in paths]
    assert len({float(dataset.RescaleSlope) for dataset in series}) == 1
    values = np.stack([_values(dataset) for dataset in series])
    maximum = float(image.abs().max())
    np.testing.assert_allclose(values, image.abs().numpy(), rtol=0, atol=0.5001 * maximum / 65535)
    assert max(int(dataset.pixel_array.max()) for dataset in series) == 65535


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_the_window_shows_the_image_at_any_scale(tmp_path: Path, scale: float) -> None:
    image = _ramp(1, 20, 20) * scale
    dataset = pydicom.dcmread(_write_series(tmp_path / "series", image, _plain_grid(1, 20, 20))[0])
    shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    black, white = shown == shown.min(), shown == shown.max()
    assert 2 <= black.sum() <= 8
    assert 1 <= white.sum() <= 4


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_a_constant_image_is_written(tmp_path: Path, value: float) -> None:
    image = torch.full((2, 3, 4), value)
    series = [pydicom.dcmread(path) for path in _write_series(tmp_path / "series", image, _plain_grid(2, 3, 4))]
    np.testing.assert_allclose(_values(series[1]), value)
    assert float(series[0].WindowWidth) > 0


def test_every_attribute_that_the_standard_demands_is_there(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(_write_series(tmp_path / "series", _ramp(2, 3, 4), _plain_grid(2, 3, 4))[0])
    filled = (
        "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID Modality ImageType "
        "PixelSpacing ImageOrientationPatient ImagePositionPatient SliceThickness SamplesPerPixel "
        "PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation PixelData "
        "ScanningSequence SequenceVariant MRAcquisitionType RescaleSlope RescaleType SeriesNumber InstanceNumber "
        "WindowCenter WindowWidth SpecificCharacterSet DerivationDescription"
    )
    empty = (
        "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID "
        "AccessionNumber PatientPosition PositionReferenceIndicator Manufacturer ScanOptions RepetitionTime EchoTime "
        "EchoTrainLength"
    )
    for keyword in filled.split():
        assert keyword in dataset, keyword
        assert dataset[keyword].value not in (None, ""), keyword
    for keyword in empty.split():
        assert keyword in dataset, keyword
        assert not dataset[keyword].value, keyword
    assert dataset.SOPClassUID == "1.2.840.10008.5.1.4.1.1.4"
    assert list(dataset.ImageType) == ["DERIVED", "SECONDARY"]
    assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation) == (16, 16, 15, 0)
    assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    pydicom.dataset.validate_file_meta(dataset.file_meta, enforce_standard=True)


def test_every_value_obeys_its_representation(tmp_path: Path) -> None:
    acquisition = _acquisition(
        (3, 3, 4),
        manufacturer="Örsted\\scanners " * 10,
        sequence_name="a sequence with a long name",
        protocol_name="two\nlines " * 20,
        repetition_time_ms=1 / 3,
        echo_time_ms=1e-7 / 3,
        inversion_time_ms=150.0,
        flip_angle_deg=180 / 7,
        field_strength_t=0.055,
    )
    paths = _write_series(
        tmp_path / "series",
        _ramp(3, 3, 4) / 3e-7,
        _oblique((3, 3, 4)),
        acquisition=acquisition,
        method="wavelet λ=0.01 " * 200,
        description="d" * 100,
        patient={"name": "Müller^Jörg=x", "id": "7\\8", "birth_date": "1970-02-28", "sex": "f"},
    )
    limits = {"DS": 16, "LO": 64, "SH": 16, "CS": 16, "ST": 1024, "LT": 10240, "PN": 64, "UI": 64, "DA": 8, "IS": 12}
    dataset = pydicom.dcmread(paths[1])
    for element in dataset:
        for value in element.value if element.VM > 1 else [element.value]:
            text = value.original_string if element.VR == "DS" and value is not None else str(value)
            assert len(text) <= limits.get(element.VR, 10**9), element
    assert dataset.PatientName == "Müller^Jörg x"
    assert (dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex) == ("7 8", "19700228", "F")
    assert float(dataset.MagneticFieldStrength) == 0.055
    assert float(dataset.RepetitionTime) == pytest.approx(1 / 3)
    assert float(dataset.InversionTime) == 150
    assert float(dataset.FlipAngle) == pytest.approx(180 / 7)
    assert dataset.MRAcquisitionType == "2D"


def test_no_identifier_is_written_unless_asked(tmp_path: Path) -> None:
    acquisition = _acquisition((2, 3, 4), patient={"name": "Doe^Jane", "id": "4711", "birth_date": "19700228"})
    for path in _write_series(tmp_path / "series", _ramp(2, 3, 4), _plain_grid(2, 3, 4), acquisition=acquisition):
        content = path.read_bytes()
        assert not any(secret in content for secret in (b"Doe", b"4711", b"19700228"))
        dataset = pydicom.dcmread(path)
        assert not any(element.value for element in dataset if element.VR in ("DA", "TM", "DT", "PN", "AS"))


def test_identifiers_are_new_in_every_call_and_shared_within(tmp_path: Path) -> None:
    runs = [
        [pydicom.dcmread(path) for path in _write_series(tmp_path / name, _ramp(3, 3, 4), _plain_grid(3, 3, 4))]
        for name in ("first", "second")
    ]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert [len({dataset[keyword].value for dataset in run}) for run in runs] == [1, 1]
        assert runs[0][0][keyword].value != runs[1][0][keyword].value
    assert len({dataset.SOPInstanceUID for run in runs for dataset in run}) == 6
    assert all(dataset.SOPInstanceUID.is_valid for run in runs for dataset in run)


def test_volumes_of_a_batch_follow_each_other(tmp_path: Path) -> None:
    image = _ramp(2, 2, 3, 4)
    paths = _write_series(tmp_path / "series", image, _plain_grid(2, 3, 4))
    series = [pydicom.dcmread(path) for path in paths]
    assert [(dataset.AcquisitionNumber, dataset.InstanceNumber) for dataset in series] == [
        (1, 1),
        (1, 2),
        (2, 3),
        (2, 4),
    ]
    np.testing.assert_allclose(_values(series[2]), image[1, 0], rtol=1e-3)
    assert series[0].ImagePositionPatient == series[2].ImagePositionPatient


def test_the_derivation_says_method_weights_and_doubts(tmp_path: Path) -> None:
    grid = _plain_grid(1, 3, 4)
    known = pydicom.dcmread(
        _write_series(tmp_path / "a", _ramp(1, 3, 4), grid, method="unrolled", weights_hash="c0ffee")[0]
    )
    assert known.DerivationDescription == "unrolled; weights c0ffee"
    assert not known.ImageComments
    unknown = pydicom.dcmread(_write_series(tmp_path / "b", _ramp(1, 3, 4), grid, geometry_known=False)[0])
    assert [float(v) for v in unknown.ImageOrientationPatient] == [1, 0, 0, 0, 1, 0]
    assert "no position or orientation" in unknown.ImageComments
    assert [float(v) for v in unknown.PixelSpacing] == [2.0, 1.5]


def test_dicom_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    grid, image = _plain_grid(2, 3, 4), _ramp(2, 3, 4)
    folder = tmp_path / "series"
    with pytest.raises(InputError, match="24 of 24 voxels are not finite"):
        _write_series(folder, image * float("inf"), grid)
    with pytest.raises(InputError, match="at most 65535 per side"):
        _write_series(folder, torch.ones(1, 1, 70000), _plain_grid(1, 1, 70000))
    with pytest.raises(InputError, match="echo time is inf"):
        _write_series(folder, image, grid, acquisition=_acquisition((2, 3, 4), echo_time_ms=float("inf")))
    with pytest.raises(InputError, match="birth date is '28 Feb'"):
        _write_series(folder, image, grid, patient={"birth_date": "28 Feb"})
    with pytest.raises(InputError, match="sex is 'x'"):
        _write_series(folder, image, grid, patient={"sex": "x"})
    with pytest.raises(ValueError, match=r"patient has the keys \['address'\]"):
        _write_series(folder, image, grid, patient={"address": "here"})
    with pytest.raises(ValueError, match=r"expected \(\*batch, 2, 3, 4\)"):
        _write_series(folder, image[:1], grid)
    assert list(tmp_path.iterdir()) == []


def test_overwriting_a_series_replaces_it_but_never_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    _write_series(folder, _ramp(5, 3, 4), _plain_grid(5, 3, 4))
    with pytest.raises(InputError, match="exists already"):
        _write_series(folder, _ramp(2, 3, 4), _plain_grid(2, 3, 4))
    _write_series(folder, _ramp(2, 3, 4), _plain_grid(2, 3, 4), overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["slice_0001.dcm", "slice_0002.dcm"]
    (folder / "thesis.docx").write_text("precious")
    with pytest.raises(InputError, match=r"also holds 'thesis\.docx'"):
        _write_series(folder, _ramp(2, 3, 4), _plain_grid(2, 3, 4), overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        check_dicom_folder(folder / "thesis.docx", overwrite=True)
    assert (folder / "thesis.docx").read_text() == "precious"


def _write_any(path: Path, n_pixels: int = 64, *, overwrite: bool = False) -> None:
    image = torch.rand(2, n_pixels, n_pixels, generator=torch.Generator().manual_seed(1))
    grid = _plain_grid(*image.shape)
    if path.name == "series":
        _write_series(path, image, grid, overwrite=overwrite)
    elif path.name == "preview.png":
        write_preview(path, image, grid=grid, overwrite=overwrite)
    elif path.name == "comparison.png":
        write_comparison(path, {"before": image, "after": image / 2}, target="after", overwrite=overwrite)
    else:
        write_nifti(path, image, grid, geometry_known=True, overwrite=overwrite)


def _content(path: Path) -> dict[str, bytes]:
    return {str(entry): entry.read_bytes() for entry in sorted(path.rglob("*")) if entry.is_file()}


WRITERS = pytest.mark.parametrize("name", ["image.nii", "image.nii.gz", "series", "preview.png", "comparison.png"])


@WRITERS
@pytest.mark.parametrize("existing", [False, True])
def test_a_disk_that_fills_up_leaves_everything_as_it_was(tmp_path: Path, name: str, existing: bool) -> None:
    path = tmp_path / name
    if existing:
        _write_any(path, 32)
    before = _content(tmp_path)
    with _files_at_most(3000), pytest.raises(InputError, match="could not be written: File too large"):
        _write_any(path, overwrite=True)
    assert _content(tmp_path) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ([name] if existing else [])


@WRITERS
def test_a_failing_rename_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    _write_any(path, 32)
    before = _content(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _full_disk)
        patch.setattr(os, "rename", _full_disk)
        with pytest.raises(InputError, match="No space left on device"):
            _write_any(path, overwrite=True)
    assert _content(tmp_path) == before


@WRITERS
def test_an_existing_output_is_refused_and_replaced_on_request(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    _write_any(path, 32)
    before = _content(tmp_path)
    with pytest.raises(InputError, match="exists already; pass --overwrite"):
        _write_any(path)
    assert _content(tmp_path) == before
    _write_any(path, overwrite=True)
    assert _content(tmp_path).keys() == before.keys()
    assert all(content != before[file] for file, content in _content(tmp_path).items())


@WRITERS
def test_a_folder_that_cannot_be_written_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with pytest.raises(InputError, match=r"does not exist; create it first"):
        _write_any(tmp_path / "missing" / name)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="is not writable"):
        _write_any(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_was_written_is_read_back(tmp_path: Path, shape: tuple[int, int, int], name: str) -> None:
    grid, image = _oblique(shape, left_handed=True), _ramp(*shape)
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
    grid = _oblique((3, 4, 5))
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
        write_nifti(path, _ramp(3, 4, 5), _oblique((3, 4, 5)), geometry_known=True)
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


def _bright(picture: np.ndarray) -> np.ndarray:
    """Bounding box (top, bottom, left, right) of what is white and not text."""
    rows, columns = np.nonzero(picture[..., :3].min(axis=-1) > 0.97)
    return np.array([rows.min(), rows.max(), columns.min(), columns.max()])


def test_a_preview_has_row_0_on_top_column_0_left_and_the_right_aspect(tmp_path: Path) -> None:
    image = torch.zeros(1, 40, 40)
    image[0, 5:15, 20:40] = 1.0
    grid = VoxelGrid((1, 40, 40), (5.0, 1.0, 2.0))
    write_preview(tmp_path / "image.png", image, grid=grid, titles=[""])
    picture = imread(tmp_path / "image.png")
    height, width = picture.shape[:2]
    assert width / height == pytest.approx(2, rel=0.05)
    top, bottom, left, right = _bright(picture) / [height, height, width, width]
    assert (top, bottom) == (pytest.approx(5 / 40, abs=0.04), pytest.approx(15 / 40, abs=0.04))
    assert (left, right) == (pytest.approx(0.5, abs=0.04), pytest.approx(1.0, abs=0.04))


@pytest.mark.parametrize("shape", [(1, 8, 8), (5, 8, 6), (7, 300, 2), (2, 3, 30, 40), (60, 9, 9), (8, 8)])
def test_any_number_of_slices_fits_on_a_sheet(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_preview(tmp_path / "image.png", _ramp(*shape) * 1j)
    height, width = imread(tmp_path / "image.png").shape[:2]
    assert 60 < height < 2400
    assert 60 < width < 2400


def test_a_comparison_shows_errors_against_the_target(tmp_path: Path) -> None:
    target = torch.ones(3, 50, 50, dtype=torch.complex64)
    worse = target * 0.9
    options = {"target": "truth", "metrics": {"worse": "PSNR $20 dB\nSSIM 0.5"}, "window": (0.0, 1.0)}
    write_comparison(tmp_path / "both.png", {"worse": worse, "truth": target}, **options)  # type: ignore[arg-type]
    write_comparison(tmp_path / "same.png", {"worse": target, "truth": target}, **options)  # type: ignore[arg-type]
    both, same = imread(tmp_path / "both.png"), imread(tmp_path / "same.png")
    height, width = both.shape[:2]
    row, column = round(height * 0.75), round(width * 0.25)
    np.testing.assert_allclose(both[row, column, :3], [0.736, 0.216, 0.330], atol=0.02)  # inferno at 5 · 0.1 of 1
    np.testing.assert_allclose(same[row, column, :3], 0, atol=0.02)
    assert both[round(height * 0.35), round(width * 0.75), :3].min() == 1


def test_constant_images_and_text_of_any_kind_make_pictures(tmp_path: Path) -> None:
    image = torch.zeros(2, 8, 8)
    write_preview(tmp_path / "image.png", image, titles=["$\\frac$", "a_b^{"])
    write_comparison(tmp_path / "columns.png", {"$x": image, "λ = 0.01": image}, metrics={"$x": "100 %"})
    assert len(list(tmp_path.iterdir())) == 2


def test_pictures_are_deterministic_and_change_no_global_setting(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    for name in ("a.png", "b.png"):
        write_preview(tmp_path / name, _ramp(3, 8, 8))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert dict(matplotlib.rcParams) == before


def test_pictures_refuse_what_they_cannot_show(tmp_path: Path) -> None:
    image, path = _ramp(2, 8, 8), tmp_path / "image.png"
    with pytest.raises(InputError, match=r"does not end in \.png"):
        write_preview(tmp_path / "image.jpg", image)
    with pytest.raises(InputError, match="image holds voxels that are not finite"):
        write_preview(path, image * float("nan"))
    with pytest.raises(ValueError, match="1 titles for 2 slices"):
        write_preview(path, image, titles=["one"])
    with pytest.raises(ValueError, match=r"image has shape \(8,\)"):
        write_preview(path, image[0, 0])
    with pytest.raises(ValueError, match="images of one shape"):
        write_comparison(path, {"a": image, "b": image[:1]})
    with pytest.raises(ValueError, match="images of one shape"):
        write_comparison(path, {})
    with pytest.raises(ValueError, match="no column 'truth'"):
        write_comparison(path, {"a": image}, target="truth")
    with pytest.raises(ValueError, match="no column 'b'"):
        write_comparison(path, {"a": image}, metrics={"b": ""})
    with pytest.raises(ValueError, match="expected a lower and a larger"):
        write_comparison(path, {"a": image}, window=(1.0, 1.0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.realdata
def test_measured_images_are_read_as_nibabel_reads_them(data_folder: Path) -> None:
    path = data_folder / "mri" / "images" / "ms_lesion" / "patient01_study2_FLAIR.nii.gz"
    image, grid = read_nifti_image(path)
    expected = nib.load(path)
    np.testing.assert_allclose(image.numpy(), expected.get_fdata(dtype=np.float32).T, rtol=1e-6)
    np.testing.assert_allclose(grid.affine_ras(), expected.affine, atol=1e-3)


@pytest.mark.realdata
def test_our_series_differs_from_a_scanners_in_no_attribute_that_viewers_place_by(
    data_folder: Path, tmp_path: Path
) -> None:
    scanner = pydicom.dcmread(sorted((data_folder / "mri" / "formats" / "dicom_series").glob("*.dcm"))[0])
    along_columns, along_rows = np.reshape([float(v) for v in scanner.ImageOrientationPatient], (2, 3))
    directions = tuple(tuple(map(float, v)) for v in (np.cross(along_columns, along_rows), along_rows, along_columns))
    shape = (1, int(scanner.Rows), int(scanner.Columns))
    spacing = (float(scanner.SliceThickness), *(float(v) for v in scanner.PixelSpacing))
    origin = tuple(float(v) for v in scanner.ImagePositionPatient)
    grid = VoxelGrid(shape, spacing, directions, origin)  # type: ignore[arg-type]
    image = torch.from_numpy(scanner.pixel_array.astype(np.float32))[None]
    ours = pydicom.dcmread(_write_series(tmp_path / "series", image, grid)[0])
    for keyword in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
        np.testing.assert_allclose(
            [float(v) for v in ours[keyword].value], [float(v) for v in scanner[keyword].value], atol=1e-6
        )
    np.testing.assert_allclose(_values(ours), scanner.pixel_array, atol=0.5 * 1281 / 65535 + 1e-9)
