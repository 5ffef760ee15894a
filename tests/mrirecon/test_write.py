from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from mrirecon.acquisition import Acquisition
from mrirecon.io.dicom import write_dicom
from operators.errors import InputError
from operators.voxel_grid import VoxelGrid
from tests.grids import oblique_grid, plain_grid, ramp


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


def _values(dataset: pydicom.Dataset) -> np.ndarray:
    return apply_modality_lut(dataset.pixel_array, dataset)


def test_the_slices_of_a_stack_are_as_thick_as_the_scan_excited_them(tmp_path: Path) -> None:
    series = [pydicom.dcmread(path) for path in _write_series(tmp_path / "a", ramp(3, 3, 4), oblique_grid((3, 3, 4)))]
    assert {float(dataset.SpacingBetweenSlices) for dataset in series} == {5.3}
    assert {float(dataset.SliceThickness) for dataset in series} == {4.0}
    volume = Acquisition((3, 3, 4), (15.9, 200.0, 200.0), (15.9, 200.0, 200.0))
    paths = _write_series(tmp_path / "b", ramp(3, 3, 4), oblique_grid((3, 3, 4)), acquisition=volume)
    assert float(pydicom.dcmread(paths[0]).SliceThickness) == 5.3


def test_volumes_of_a_batch_follow_each_other(tmp_path: Path) -> None:
    image = ramp(2, 2, 3, 4)
    paths = _write_series(tmp_path / "series", image, plain_grid(2, 3, 4))
    series = [pydicom.dcmread(path) for path in paths]
    assert [dataset.AcquisitionNumber for dataset in series] == [1, 1, 2, 2]
    np.testing.assert_allclose(_values(series[2]), image[1, 0], rtol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 3e-9, 1e12])
def test_values_come_back_to_half_a_step(tmp_path: Path, generator: torch.Generator, scale: float) -> None:
    image = torch.randn(3, 5, 4, dtype=torch.complex128, generator=generator) * scale
    paths = _write_series(tmp_path / "series", image, plain_grid(3, 5, 4))
    series = [pydicom.dcmread(path) for path in paths]
    assert len({float(dataset.RescaleSlope) for dataset in series}) == 1
    values = np.stack([_values(dataset) for dataset in series])
    maximum = float(image.abs().max())
    np.testing.assert_allclose(values, image.abs().numpy(), rtol=0, atol=0.5001 * maximum / 65535)
    assert max(int(dataset.pixel_array.max()) for dataset in series) == 65535


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_the_window_shows_the_image_at_any_scale(tmp_path: Path, scale: float) -> None:
    image = ramp(1, 20, 20) * scale
    dataset = pydicom.dcmread(_write_series(tmp_path / "series", image, plain_grid(1, 20, 20))[0])
    shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    black, white = shown == shown.min(), shown == shown.max()
    assert 2 <= black.sum() <= 8
    assert 1 <= white.sum() <= 4


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_a_constant_image_is_written(tmp_path: Path, value: float) -> None:
    image = torch.full((2, 3, 4), value)
    series = [pydicom.dcmread(path) for path in _write_series(tmp_path / "series", image, plain_grid(2, 3, 4))]
    np.testing.assert_allclose(_values(series[1]), value)
    assert float(series[0].WindowWidth) > 0


def test_every_attribute_that_the_standard_demands_is_there(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(_write_series(tmp_path / "series", ramp(2, 3, 4), plain_grid(2, 3, 4))[0])
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
        ramp(3, 3, 4) / 3e-7,
        oblique_grid((3, 3, 4)),
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
    acquisition = _acquisition((2, 3, 4), patient={"name": "Doe^Jane", "id": "MR-4711", "birth_date": "19700228"})
    for path in _write_series(tmp_path / "series", ramp(2, 3, 4), plain_grid(2, 3, 4), acquisition=acquisition):
        content = path.read_bytes()
        assert not any(secret in content for secret in (b"Doe", b"MR-4711", b"19700228"))
        dataset = pydicom.dcmread(path)
        assert not any(element.value for element in dataset if element.VR in ("DA", "TM", "DT", "PN", "AS"))


def test_the_derivation_says_method_weights_and_doubts(tmp_path: Path) -> None:
    grid = plain_grid(1, 3, 4)
    known = pydicom.dcmread(
        _write_series(tmp_path / "a", ramp(1, 3, 4), grid, method="unrolled", weights_hash="c0ffee")[0]
    )
    assert known.DerivationDescription == "unrolled; weights c0ffee"
    assert not known.ImageComments
    unknown = pydicom.dcmread(_write_series(tmp_path / "b", ramp(1, 3, 4), grid, geometry_known=False)[0])
    assert [float(v) for v in unknown.ImageOrientationPatient] == [1, 0, 0, 0, 1, 0]
    assert "no position or orientation" in unknown.ImageComments
    assert [float(v) for v in unknown.PixelSpacing] == [2.0, 1.5]


def test_dicom_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    grid, image = plain_grid(2, 3, 4), ramp(2, 3, 4)
    folder = tmp_path / "series"
    with pytest.raises(InputError, match="24 of 24 voxels are not finite"):
        _write_series(folder, image * float("inf"), grid)
    with pytest.raises(InputError, match="at most 65535 per side"):
        _write_series(folder, torch.ones(1, 1, 70000), plain_grid(1, 1, 70000))
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
