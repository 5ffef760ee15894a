"""Every writer puts voxels where the grid says, writes all or nothing, and replaces only what it was told to."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from pydicom.pixels import apply_modality_lut

from ctrecon.io.dicom import write_dicom as write_ct_dicom
from mrirecon.acquisition import Acquisition
from mrirecon.io.dicom import write_dicom as write_mr_dicom
from operators.errors import InputError
from operators.io.nifti import write_nifti
from operators.io.picture import write_comparison, write_preview
from operators.voxel_grid import VoxelGrid
from tests.grids import (
    SHAPES,
    content_of,
    files_at_most,
    full_disk,
    marked_image,
    oblique_grid,
    plain_grid,
    position_by_hand,
)


def _write_mr_series(path: Path, image: torch.Tensor, grid: VoxelGrid, *, overwrite: bool = False) -> list[Path]:
    acquisition = Acquisition((1, *grid.shape[1:]), (4.0, 200.0, 200.0), (4.0, 200.0, 200.0))
    known = {"geometry_known": True, "acquisition": acquisition, "method": "adjoint", "description": "test"}
    return write_mr_dicom(path, image, grid, **known, overwrite=overwrite)  # type: ignore[arg-type]


def _write_ct_series(path: Path, image: torch.Tensor, grid: VoxelGrid, *, overwrite: bool = False) -> list[Path]:
    known = {"method": "fbp", "description": "test", "mu_water_per_mm": 0.02}
    return write_ct_dicom(path, image, grid, **known, overwrite=overwrite)[0]  # type: ignore[arg-type]


def _write_any(path: Path, n_pixels: int = 64, *, overwrite: bool = False) -> None:
    image = torch.rand(2, n_pixels, n_pixels, generator=torch.Generator().manual_seed(1)) * 1000
    grid = plain_grid(*image.shape)
    if path.name == "mr_series":
        _write_mr_series(path, image, grid, overwrite=overwrite)
    elif path.name == "ct_series":
        _write_ct_series(path, image, grid, overwrite=overwrite)
    elif path.name == "preview.png":
        write_preview(path, image, grid=grid, overwrite=overwrite)
    elif path.name == "comparison.png":
        write_comparison(path, {"before": image, "after": image / 2}, target="after", overwrite=overwrite)
    else:
        write_nifti(path, image, grid, geometry_known=True, overwrite=overwrite)


OUTPUTS = ["image.nii", "image.nii.gz", "mr_series", "ct_series", "preview.png", "comparison.png"]
WRITERS = pytest.mark.parametrize("name", OUTPUTS)


@WRITERS
@pytest.mark.parametrize("existing", [False, True])
def test_a_disk_that_fills_up_leaves_everything_as_it_was(tmp_path: Path, name: str, existing: bool) -> None:
    path = tmp_path / name
    if existing:
        _write_any(path, 32)
    before = content_of(tmp_path)
    with files_at_most(3000), pytest.raises(InputError, match="could not be written: File too large"):
        _write_any(path, overwrite=True)
    assert content_of(tmp_path) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ([name] if existing else [])


@WRITERS
def test_a_failing_rename_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    _write_any(path, 32)
    before = content_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        patch.setattr(os, "rename", full_disk)
        with pytest.raises(InputError, match="No space left on device"):
            _write_any(path, overwrite=True)
    assert content_of(tmp_path) == before


@WRITERS
def test_an_existing_output_is_refused_and_replaced_on_request(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    _write_any(path, 32)
    before = content_of(tmp_path)
    with pytest.raises(InputError, match="exists already; pass --overwrite"):
        _write_any(path)
    assert content_of(tmp_path) == before
    _write_any(path, overwrite=True)
    assert content_of(tmp_path).keys() == before.keys()
    assert all(content != before[file] for file, content in content_of(tmp_path).items())


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


@pytest.mark.parametrize("left_handed", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_grid_nifti_and_dicom_agree_on_where_every_mark_is(
    tmp_path: Path, shape: tuple[int, int, int], seed: int, left_handed: bool
) -> None:
    grid = oblique_grid(shape, seed=seed, left_handed=left_handed)
    image, marks = marked_image(shape)
    write_nifti(tmp_path / "image.nii", image, grid, geometry_known=True)
    nifti = nib.load(tmp_path / "image.nii")
    series = [pydicom.dcmread(path) for path in _write_mr_series(tmp_path / "mr", image, grid)]
    ct_series = [pydicom.dcmread(path) for path in _write_ct_series(tmp_path / "ct", image.abs(), grid)]
    for brightness, mark in enumerate(marks, start=1):
        expected = position_by_hand(grid, mark)
        np.testing.assert_allclose(grid.position_mm(mark), expected, atol=1e-9)

        (column, row, index) = np.argwhere(np.isclose(nifti.get_fdata(), brightness, rtol=1e-5))[0]
        for affine in (nifti.affine, nifti.header.get_qform(), nifti.header.get_sform()):
            ras = affine @ [column, row, index, 1]
            np.testing.assert_allclose(ras[:3] * [-1, -1, 1], expected, atol=1e-3)

        for stored in (series, ct_series):
            np.testing.assert_allclose(_place_of(brightness, stored), expected, atol=1e-3)


def _place_of(brightness: int, series: list[pydicom.Dataset]) -> np.ndarray:
    """The LPS position of the one voxel that is so bright, from the attributes of its slice."""
    values = [apply_modality_lut(dataset.pixel_array, dataset) for dataset in series]
    [(index, row, column)] = np.argwhere(np.isclose(values, brightness, rtol=1e-3))
    along_columns, along_rows = np.reshape([float(v) for v in series[index].ImageOrientationPatient], (2, 3))
    row_spacing, column_spacing = (float(v) for v in series[index].PixelSpacing)
    corner = np.array([float(v) for v in series[index].ImagePositionPatient])
    return corner + column * column_spacing * along_columns + row * row_spacing * along_rows
