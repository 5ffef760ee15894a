from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import SecondaryCaptureImageStorage

from operators.errors import InputError
from operators.io.dicom import check_dicom_folder, check_volumes, decimal, new_series, plain_text, write_series
from operators.voxel_grid import VoxelGrid
from tests.grids import oblique_grid, plain_grid, ramp


def _new_series(grid: VoxelGrid, **options: object) -> pydicom.Dataset:
    defaults: dict[str, object] = {
        "storage": SecondaryCaptureImageStorage,
        "modality": "OT",
        "image_type": ("DERIVED", "SECONDARY"),
        "description": "test",
        "derivation": "ramp",
    }
    return new_series(grid, **(defaults | options))  # type: ignore[arg-type]


def _write_series(folder: Path, image: torch.Tensor, grid: VoxelGrid, **options: object) -> list[Path]:
    slices = image.reshape(-1, *image.shape[-2:]).numpy().astype(np.uint16)
    return write_series(folder, _new_series(grid), slices, grid, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("left_handed", [False, True])
def test_slices_lie_in_order_along_their_positions(tmp_path: Path, left_handed: bool) -> None:
    grid = oblique_grid((12, 3, 4), left_handed=left_handed)
    paths = _write_series(tmp_path / "series", ramp(12, 3, 4), grid)
    assert [path.name for path in paths] == [f"slice_{number:04d}.dcm" for number in range(1, 13)]
    series = [pydicom.dcmread(path) for path in paths]
    positions = np.array([[float(v) for v in dataset.ImagePositionPatient] for dataset in series])
    np.testing.assert_allclose(np.diff(positions @ grid.directions[0]), 5.3, atol=1e-3)
    orientation = np.reshape([float(v) for v in series[0].ImageOrientationPatient], (2, 3))
    locations = [float(dataset.SliceLocation) for dataset in series]
    np.testing.assert_allclose(locations, positions @ np.cross(*orientation), atol=1e-3)
    assert [dataset.InstanceNumber for dataset in series] == list(range(1, 13))
    assert {float(dataset.SpacingBetweenSlices) for dataset in series} == {5.3}
    assert {float(dataset.SliceThickness) for dataset in series} == {5.3}


def test_identifiers_are_new_in_every_call_and_shared_within(tmp_path: Path) -> None:
    runs = [
        [pydicom.dcmread(path) for path in _write_series(tmp_path / name, ramp(3, 3, 4), plain_grid(3, 3, 4))]
        for name in ("first", "second")
    ]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert [len({dataset[keyword].value for dataset in run}) for run in runs] == [1, 1]
        assert runs[0][0][keyword].value != runs[1][0][keyword].value
    assert len({dataset.SOPInstanceUID for run in runs for dataset in run}) == 6
    assert all(dataset.SOPInstanceUID.is_valid for run in runs for dataset in run)


def test_volumes_of_a_batch_follow_each_other(tmp_path: Path) -> None:
    image = ramp(2, 2, 3, 4)
    paths = _write_series(tmp_path / "series", image, plain_grid(2, 3, 4), n_volumes=2)
    series = [pydicom.dcmread(path) for path in paths]
    assert [(dataset.AcquisitionNumber, dataset.InstanceNumber) for dataset in series] == [
        (1, 1),
        (1, 2),
        (2, 3),
        (2, 4),
    ]
    np.testing.assert_array_equal(series[2].pixel_array, image[1, 0])
    assert series[0].ImagePositionPatient == series[2].ImagePositionPatient


def test_overwriting_a_series_replaces_it_but_never_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    _write_series(folder, ramp(5, 3, 4), plain_grid(5, 3, 4))
    with pytest.raises(InputError, match="exists already"):
        _write_series(folder, ramp(2, 3, 4), plain_grid(2, 3, 4))
    _write_series(folder, ramp(2, 3, 4), plain_grid(2, 3, 4), overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["slice_0001.dcm", "slice_0002.dcm"]
    (folder / "thesis.docx").write_text("precious")
    with pytest.raises(InputError, match=r"also holds 'thesis\.docx'"):
        _write_series(folder, ramp(2, 3, 4), plain_grid(2, 3, 4), overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        check_dicom_folder(folder / "thesis.docx", overwrite=True)
    assert (folder / "thesis.docx").read_text() == "precious"


def test_stored_values_come_back_bit_for_bit_and_say_how_many_bits_they_use(tmp_path: Path) -> None:
    image = ramp(1, 3, 4) + 4000
    dataset = pydicom.dcmread(_write_series(tmp_path / "series", image, plain_grid(1, 3, 4), n_bits=12)[0])
    np.testing.assert_array_equal(dataset.pixel_array, image[0])
    assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation) == (16, 12, 11, 0)
    assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    pydicom.dataset.validate_file_meta(dataset.file_meta, enforce_standard=True)


@pytest.mark.parametrize("n_volumes", [1, 3])
def test_a_series_with_slices_missing_or_left_over_is_not_written(tmp_path: Path, n_volumes: int) -> None:
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is"):
        _write_series(tmp_path / "series", ramp(2, 2, 3, 4), plain_grid(2, 3, 4), n_volumes=n_volumes)
    assert list(tmp_path.iterdir()) == []


def test_nothing_identifies_a_person_unless_it_is_given() -> None:
    series = _new_series(plain_grid(2, 3, 4))
    assert not any(element.value for element in series if element.VR in ("DA", "TM", "DT", "PN", "AS"))
    assert (series.PatientName, series.PatientID, series.PatientBirthDate, series.PatientSex) == ("", "", "", "")
    known = {"name": "Müller^Jörg=x", "id": "7\\8", "birth_date": "1970-02-28", "sex": "f"}
    series = _new_series(plain_grid(2, 3, 4), patient=known)
    assert series.PatientName == "Müller^Jörg x"
    assert (series.PatientID, series.PatientBirthDate, series.PatientSex) == ("7 8", "19700228", "F")


def test_a_person_that_dicom_cannot_express_is_refused() -> None:
    grid = plain_grid(2, 3, 4)
    with pytest.raises(InputError, match="birth date is '28 Feb'"):
        _new_series(grid, patient={"birth_date": "28 Feb"})
    with pytest.raises(InputError, match="sex is 'x'"):
        _new_series(grid, patient={"sex": "x"})
    with pytest.raises(ValueError, match=r"patient has the keys \['address'\]"):
        _new_series(grid, patient={"address": "here"})


@pytest.mark.parametrize("value", [1 / 3, -1e-7 / 3, 123456789.123456789, 1e300, -0.0, 5])
def test_a_decimal_string_is_short_and_as_exact_as_it_can_be(value: float) -> None:
    string = decimal(value, "value")
    assert len(str(string)) <= 16
    assert float(string) == pytest.approx(value, rel=1e-8)


def test_numbers_that_no_decimal_string_holds_are_refused() -> None:
    assert decimal(None, "echo time") is None
    for value in (float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"echo time is (nan|inf); DICOM needs a finite number"):
            decimal(value, "echo time")


def test_text_becomes_one_value_of_the_length_allowed() -> None:
    assert plain_text(" two\nlines\\values\x9f ", 64) == "two lines values"
    assert plain_text("λ" * 100, 64) == "λ" * 64


def test_images_become_volumes_or_are_refused() -> None:
    grid, image = plain_grid(2, 3, 4), ramp(5, 3, 2, 3, 4).requires_grad_()
    volumes = check_volumes(image, grid)
    assert volumes.shape == (15, 2, 3, 4)
    assert not volumes.requires_grad
    torch.testing.assert_close(volumes[4], image.detach()[1, 1])
    with pytest.raises(InputError, match="24 of 24 voxels are not finite"):
        check_volumes(image[0, 0] * float("inf"), grid)
    with pytest.raises(InputError, match="at most 65535 per side"):
        check_volumes(torch.ones(1, 1, 70000), plain_grid(1, 1, 70000))
    for wrong in (image[0, 0, :1], image[0, 0, 0], image[:0]):
        with pytest.raises(ValueError, match=r"expected \(\*batch, 2, 3, 4\)"):
            check_volumes(wrong, grid)
