from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from ctrecon.io.dicom import read_dicom, write_dicom
from ctrecon.windows import WINDOWS, chosen_window
from operators.errors import InputError
from operators.io.nifti import read_nifti_image, write_nifti
from operators.voxel_grid import VoxelGrid
from tests.grids import SHAPES, oblique_grid, plain_grid, position_by_hand


def _write_series(folder: Path, hu: torch.Tensor, grid: VoxelGrid, **options: object) -> tuple[list[Path], int]:
    defaults: dict[str, object] = {"method": "fbp", "description": "test", "mu_water_per_mm": 0.02}
    return write_dicom(folder, hu, grid, **(defaults | options))  # type: ignore[arg-type]


def _values(paths: list[Path]) -> np.ndarray:
    datasets = [pydicom.dcmread(path) for path in paths]
    return np.stack([apply_modality_lut(dataset.pixel_array, dataset) for dataset in datasets])


def _body(*shape: int) -> torch.Tensor:
    """Whole Hounsfield units over the whole range, at asymmetric places."""
    n = int(np.prod(shape))
    return torch.linspace(-1024, 3071, n).round().reshape(shape)


def test_whole_hounsfield_units_come_back_exactly(tmp_path: Path) -> None:
    hu = torch.arange(-1024.0, 3072.0).reshape(1, 64, 64)
    paths, n_clipped = _write_series(tmp_path / "series", hu, plain_grid(1, 64, 64))
    np.testing.assert_array_equal(_values(paths), hu.numpy())
    assert n_clipped == 0
    dataset = pydicom.dcmread(paths[0])
    assert (dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType) == (1, -1024, "HU")
    assert (dataset.pixel_array.min(), dataset.pixel_array.max()) == (0, 4095)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16, torch.int64])
def test_any_real_type_is_rounded_to_the_nearest(tmp_path: Path, dtype: torch.dtype) -> None:
    hu = torch.tensor([[[-1000.4, -0.6], [40.3, 3071.2]]]).to(dtype)
    paths, n_clipped = _write_series(tmp_path / "series", hu, plain_grid(1, 2, 2))
    np.testing.assert_array_equal(_values(paths), hu.double().round())
    assert n_clipped == 0


@pytest.mark.parametrize(
    ("wide", "lowest", "highest", "step"), [(False, -1024.0, 3071.0, 1.0), (True, -1024.0, 15356.0, 4.0)]
)
def test_what_is_beyond_the_range_is_clipped_and_counted(
    tmp_path: Path, wide: bool, lowest: float, highest: float, step: float
) -> None:
    inside = [lowest - 0.49 * step, lowest, 0.0, highest, highest + 0.49 * step]
    beyond = [lowest - 0.51 * step, -3024.0, highest + 0.51 * step, 1e6, -1e30]
    hu = torch.tensor([[inside, beyond]], dtype=torch.float64)
    paths, n_clipped = _write_series(tmp_path / "series", hu, plain_grid(1, 2, 5), wide_range=wide)
    assert n_clipped == 5
    values = _values(paths)[0]
    np.testing.assert_array_equal(values[0], [lowest, lowest, 0, highest, highest])
    np.testing.assert_array_equal(values[1], [lowest, lowest, highest, highest, lowest])


def test_the_wide_range_holds_metal_to_half_a_step(tmp_path: Path, generator: torch.Generator) -> None:
    hu = torch.rand(2, 16, 16, dtype=torch.float64, generator=generator) * 16000 - 1024
    hu = hu.clamp(max=15356)
    paths, n_clipped = _write_series(tmp_path / "series", hu, plain_grid(2, 16, 16), wide_range=True)
    np.testing.assert_allclose(_values(paths), hu, rtol=0, atol=2)
    assert n_clipped == 0
    assert pydicom.dcmread(paths[0]).RescaleSlope == 4


@pytest.mark.parametrize("left_handed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_grid_nifti_dicom_and_their_readers_agree_on_every_voxel(
    tmp_path: Path, shape: tuple[int, int, int], left_handed: bool
) -> None:
    grid, hu = oblique_grid(shape, left_handed=left_handed), _body(*shape)
    write_nifti(tmp_path / "hu.nii.gz", hu, grid, part="real", geometry_known=True)
    nifti = nib.load(tmp_path / "hu.nii.gz")
    _write_series(tmp_path / "series", hu, grid)
    from_dicom, dicom_grid, decisions = read_dicom(tmp_path / "series")
    from_nifti, nifti_grid = read_nifti_image(tmp_path / "hu.nii.gz")
    assert decisions == ()
    assert len(set(hu.ravel().tolist())) == hu.numel()
    for index in np.ndindex(shape):
        expected = position_by_hand(grid, index)  # type: ignore[arg-type]
        ras = nifti.affine @ [*index[::-1], 1]
        np.testing.assert_allclose(ras[:3] * [-1, -1, 1], expected, atol=1e-3)
        assert nifti.dataobj[index[::-1]] == hu[index]
        for image, its_grid in ((from_dicom, dicom_grid), (from_nifti, nifti_grid)):
            [found] = np.argwhere(image.numpy() == hu[index].item())
            np.testing.assert_allclose(its_grid.position_mm(found), expected, atol=1e-3)


def test_every_attribute_that_the_standard_demands_is_there(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(_write_series(tmp_path / "series", _body(2, 3, 4), plain_grid(2, 3, 4))[0][0])
    filled = (
        "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID Modality ImageType "
        "PixelSpacing ImageOrientationPatient ImagePositionPatient SliceThickness SamplesPerPixel "
        "PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit PixelData SeriesNumber InstanceNumber "
        "AcquisitionNumber RescaleSlope RescaleIntercept RescaleType WindowCenter WindowWidth "
        "WindowCenterWidthExplanation SpecificCharacterSet DerivationDescription SeriesDescription"
    )
    empty = (
        "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID "
        "AccessionNumber PatientPosition PositionReferenceIndicator Manufacturer KVP"
    )
    for keyword in filled.split():
        assert keyword in dataset, keyword
        assert dataset[keyword].value not in (None, ""), keyword
    for keyword in empty.split():
        assert keyword in dataset, keyword
        assert not dataset[keyword].value, keyword
    assert dataset.SOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
    assert dataset.Modality == "CT"
    assert list(dataset.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
    assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation) == (16, 12, 11, 0)
    assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert [float(v) for v in dataset.PixelSpacing] == [2.0, 1.5]
    pydicom.dataset.validate_file_meta(dataset.file_meta, enforce_standard=True)


def test_every_value_obeys_its_representation(tmp_path: Path) -> None:
    paths, _ = _write_series(
        tmp_path / "series",
        _body(3, 3, 4),
        oblique_grid((3, 3, 4)),
        method="wavelet λ=0.01 " * 200,
        description="d" * 100,
        mu_water_per_mm=0.1 / 6,
        kvp=1000 / 9,
        patient={"name": "Müller^Jörg=x", "id": "7\\8", "birth_date": "1970-02-28", "sex": "f"},
    )
    limits = {"DS": 16, "LO": 64, "SH": 16, "CS": 16, "ST": 1024, "LT": 10240, "PN": 64, "UI": 64, "DA": 8, "IS": 12}
    dataset = pydicom.dcmread(paths[1])
    for element in dataset:
        for value in element.value if element.VM > 1 else [element.value]:
            text = value.original_string if element.VR == "DS" and value is not None else str(value)
            assert len(text) <= limits.get(element.VR, 10**9), element
    assert dataset.PatientName == "Müller^Jörg x"
    assert float(dataset.KVP) == pytest.approx(1000 / 9)


def test_no_identifier_is_written_unless_asked(tmp_path: Path) -> None:
    for path in _write_series(tmp_path / "series", _body(2, 3, 4), plain_grid(2, 3, 4))[0]:
        dataset = pydicom.dcmread(path)
        assert not any(element.value for element in dataset if element.VR in ("DA", "TM", "DT", "PN", "AS"))
        assert not dataset.PatientID
    known = _write_series(tmp_path / "known", _body(2, 3, 4), plain_grid(2, 3, 4), patient={"id": "4711"})[0]
    assert pydicom.dcmread(known[0]).PatientID == "4711"


def test_the_derivation_says_method_water_and_weights(tmp_path: Path) -> None:
    hu, grid = _body(1, 3, 4), plain_grid(1, 3, 4)
    [plain], _ = _write_series(tmp_path / "plain", hu, grid, method="nmar, fbp", mu_water_per_mm=0.0192)
    assert pydicom.dcmread(plain).DerivationDescription == "nmar, fbp; water 0.0192 per mm"
    [learned], _ = _write_series(tmp_path / "learned", hu, grid, weights_hash="c0ffee", kvp=120)
    dataset = pydicom.dcmread(learned)
    assert dataset.DerivationDescription == "fbp; water 0.02 per mm; weights c0ffee"
    assert dataset.KVP == 120


def test_viewers_are_offered_every_window_by_its_name(tmp_path: Path) -> None:
    hu = torch.tensor([[[-1000.0, -170.0, 40.0, 250.0, 1000.0]]])
    dataset = pydicom.dcmread(_write_series(tmp_path / "series", hu, plain_grid(1, 1, 5))[0][0])
    assert list(dataset.WindowCenterWidthExplanation) == [window.name for window in WINDOWS]
    assert [float(v) for v in dataset.WindowCenter] == [40, -600, 400, 40]
    assert [float(v) for v in dataset.WindowWidth] == [400, 1500, 1800, 80]
    for number, window in enumerate(WINDOWS):
        shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset, index=number)[0]
        expected = (hu[0, 0].clamp(*window.limits_hu) - window.low_hu) / window.width_hu
        np.testing.assert_allclose((shown + 1024) / 4095, expected, atol=0.015)


def test_a_series_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    grid, hu, folder = plain_grid(2, 3, 4), _body(2, 3, 4), tmp_path / "series"
    bad = hu.clone()
    bad[0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="1 of 24 voxels are not finite"):
        _write_series(folder, bad, grid)
    for kvp in (0.0, -120.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"tube voltage is {kvp} kV"):
            _write_series(folder, hu, grid, kvp=kvp)
    with pytest.raises(InputError, match="at most 65535 per side"):
        _write_series(folder, torch.ones(1, 1, 70000), plain_grid(1, 1, 70000))
    with pytest.raises(TypeError, match=r"hu is torch\.complex64"):
        _write_series(folder, hu.to(torch.complex64), grid)
    with pytest.raises(ValueError, match=r"expected \(slice, y, x\)"):
        _write_series(folder, hu[None], grid)
    with pytest.raises(ValueError, match=r"expected \(\*batch, 2, 3, 4\)"):
        _write_series(folder, hu[:1], grid)
    with pytest.raises(ValueError, match=r"mu_water is 0\.2 per mm"):
        _write_series(folder, hu, grid, mu_water_per_mm=0.2)
    with pytest.raises(ValueError, match=r"patient has the keys \['address'\]"):
        _write_series(folder, hu, grid, patient={"address": "here"})
    assert list(tmp_path.iterdir()) == []


def test_overwriting_replaces_the_whole_series(tmp_path: Path) -> None:
    _write_series(tmp_path / "series", _body(5, 3, 4), plain_grid(5, 3, 4))
    with pytest.raises(InputError, match="exists already"):
        _write_series(tmp_path / "series", _body(2, 3, 4), plain_grid(2, 3, 4))
    paths, _ = _write_series(tmp_path / "series", _body(2, 3, 4), plain_grid(2, 3, 4), overwrite=True)
    assert sorted((tmp_path / "series").iterdir()) == paths


def test_windows_are_found_by_name_or_made_of_numbers() -> None:
    assert chosen_window("soft tissue").limits_hu == (-160.0, 240.0)
    assert chosen_window("brain").caption == "brain: 0 … 80 HU"
    assert chosen_window((-100.5, 300)).limits_hu == (-100.5, 300.0)
    assert chosen_window(" -1000, 1e3 ").limits_hu == (-1000.0, 1000.0)


@pytest.mark.parametrize("choice", ["kidney", "", "1,2,3", "5", "1;2", (1.0, 2.0, 3.0)])
def test_unknown_windows_are_refused_with_the_names(choice: str | tuple[float, float]) -> None:
    with pytest.raises(InputError, match="expected one of soft tissue, lung, bone, brain, or two numbers"):
        chosen_window(choice)


@pytest.mark.parametrize("choice", ["240,-160", "1,1", "nan,1", "0,inf", (1.0, 1.0)])
def test_windows_that_show_nothing_are_refused(choice: str | tuple[float, float]) -> None:
    with pytest.raises(InputError, match="a lower and a larger upper number"):
        chosen_window(choice)


@pytest.mark.realdata
def test_a_scanners_image_survives_the_way_through_dicom(data_folder: Path, tmp_path: Path) -> None:
    measured = np.load(data_folder / "ct" / "images" / "chest_lungdx_a0002_kernel_b70f_512.npz")
    hu = torch.from_numpy(measured["hu"][:3].astype(np.float32))
    grid = VoxelGrid((3, 512, 512), (5.0, *map(float, measured["pixel_spacing_mm"])), origin_mm=(-160.0, -150.0, 20.0))
    _, n_clipped = _write_series(tmp_path / "series", hu, grid)
    other, other_grid, decisions = read_dicom(tmp_path / "series")
    assert (n_clipped, decisions) == (0, ())
    torch.testing.assert_close(other, hu, rtol=0, atol=0)
    np.testing.assert_allclose(other_grid.affine_lps(), grid.affine_lps(), atol=1e-6)
