"""Scans of the Helsinki Tomography Challenge: structures in MATLAB files."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch

from ctrecon.io import ReadOptions, read, sniff
from ctrecon.presets import htc2022
from operators.beam_geometry import FanBeam
from operators.errors import InputError
from tests.reference.tomography import disc, sinogram

PARAMETERS = {
    "projectName": "htc2022_",
    "distanceSourceOrigin": 410.66,
    "distanceSourceDetector": 553.74,
    "distanceUnit": "mm",
    "angles": np.arange(10.0, 50.0, 0.5),
    "pixelSize": 0.05,
    "pixelSizePost": 4.0,
    "freeRayAtDetector": np.array([1, 128, 1, 128], dtype=np.uint8),
}
GEOMETRY = FanBeam(
    tuple(math.radians(a) for a in np.arange(10.0, 50.0, 0.5)),
    28,
    4.0,
    4.0 * 410.66 / 553.74,
    0.0,
    410.66,
    553.74 - 410.66,
)


def scan() -> np.ndarray:
    return sinogram(GEOMETRY, [disc(20.0, (5.0, 3.0), 0.04)]).numpy()


def mat(folder: Path, name: str = "CtDataLimited", *, array: Any = None, **changes: Any) -> Path:
    path = folder / "scan"
    parameters = {key: value for key, value in {**PARAMETERS, **changes}.items() if value is not None}
    content = {"type": "2d", "sinogram": scan() if array is None else array, "parameters": parameters}
    with path.open("wb") as stream:
        scipy.io.savemat(stream, {name: content, "other": np.eye(2)})
    return path


@pytest.mark.parametrize("name", ["CtDataLimited", "CtDataFull"])
def test_a_scan_brings_its_geometry(tmp_path: Path, name: str) -> None:
    path = mat(tmp_path, name)
    assert sniff(path) == "HTC2022"
    found = read(path)
    torch.testing.assert_close(found.data[0], torch.from_numpy(scan()).float(), rtol=0, atol=0)
    assert found.geometry == GEOMETRY
    assert not found.mu_water_known
    assert read(path, ReadOptions(variable=name)).geometry == GEOMETRY


def test_without_binning_the_bins_are_the_pixels_of_the_detector(tmp_path: Path) -> None:
    found = read(mat(tmp_path, pixelSizePost=None, pixelSize=0.4))
    assert found.geometry.detector_spacing_mm == 0.4


def test_other_structures_are_no_scan(tmp_path: Path) -> None:
    path = mat(tmp_path, "data")
    assert sniff(path) == "MATLAB 5"
    with pytest.raises(InputError, match=r"no array of 80 views .* it holds data .1 × 1 struct., other"):
        read(path, ReadOptions(geometry=GEOMETRY))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"array": np.ones((79, 28))}, ReadOptions(), "has 79 views, but 80 angles"),
        ({"array": np.full((80, 28), np.nan)}, ReadOptions(), "are NaN or infinite"),
        ({"array": "text"}, ReadOptions(), "no matrix 'sinogram'"),
        ({"array": np.ones((2, 80, 28))}, ReadOptions(), "no matrix 'sinogram'"),
        ({"angles": "many"}, ReadOptions(), "parameters.angles in .* is missing or no list"),
        ({"angles": None}, ReadOptions(), "parameters.angles in .* is missing"),
        ({"angles": np.full(80, np.nan)}, ReadOptions(), "80 of 80 samples in parameters.angles"),
        ({"angles": np.arange(80) * 100.0}, ReadOptions(), "more than four turns"),
        ({"distanceUnit": "cm"}, ReadOptions(), "distances in .* are in 'cm'; expected 'mm'"),
        ({"distanceSourceOrigin": -410.66}, ReadOptions(), "distanceSourceOrigin in .* is missing or no positive"),
        ({"distanceSourceOrigin": 600.0}, ReadOptions(), "the axis must be the nearer of the two"),
        ({"distanceSourceDetector": np.nan}, ReadOptions(), "distanceSourceDetector in .* no positive number"),
        ({"distanceSourceDetector": None}, ReadOptions(), "distanceSourceDetector in .* is missing"),
        ({"pixelSizePost": np.array([1.0, 2.0])}, ReadOptions(), "pixelSizePost in .* no positive number"),
        (
            {"distanceSourceOrigin": 10.0},
            ReadOptions(pixel_mm=1.0, image_shape=(20, 20)),
            "it would be inside the object",
        ),
        ({}, ReadOptions(variable="CtDataFull"), "no scan 'CtDataFull'; it has CtDataLimited"),
        ({}, ReadOptions(geometry=GEOMETRY), "the option geometry does not apply"),
        ({}, ReadOptions(memory_limit_bytes=1000), "more than memory_limit_bytes|would need"),
    ],
)
def test_scans_that_cannot_be_read_say_why(
    tmp_path: Path, changes: dict[str, Any], options: ReadOptions, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read(mat(tmp_path, **changes), options)


def test_a_structure_without_parameters(tmp_path: Path) -> None:
    path = tmp_path / "scan"
    with path.open("wb") as stream:
        scipy.io.savemat(stream, {"CtDataLimited": {"sinogram": scan(), "parameters": "lost"}})
    with pytest.raises(InputError, match="no structure 'parameters'"):
        read(path)


@pytest.mark.realdata
@pytest.mark.parametrize("degrees", [30, 40, 50, 60, 70, 80, 90])
def test_every_measured_disc(degrees: int, data_folder: Path) -> None:
    path = data_folder / "ct" / "htc2022" / f"tb_subsample_{degrees}.mat"
    file = scipy.io.loadmat(path, simplify_cells=True)["CtDataLimited"]
    found = read(path)
    assert tuple(found.data.shape) == (1, 2 * degrees + 1, 560)
    assert found.image_shape == (512, 512)
    np.testing.assert_array_equal(found.data[0].numpy(), file["sinogram"].astype(np.float32))
    np.testing.assert_allclose(np.rad2deg(found.geometry.angles_rad), file["parameters"]["angles"], rtol=1e-12)
    assert found.geometry.pixel_spacing_mm == pytest.approx(file["parameters"]["effectivePixelSizePost"])
    full = htc2022().geometry
    for name in ("n_detectors", "detector_spacing_mm", "source_to_center_mm", "center_to_detector_mm"):
        assert getattr(found.geometry, name) == pytest.approx(getattr(full, name))


@pytest.mark.realdata
def test_opposite_rays_of_the_measured_disc_agree_only_when_it_turns_this_way(data_folder: Path) -> None:
    """The ray at (t, γ) runs back along the one at (t + π − 2γ, −γ); turned back, at (t + π + 2γ, −γ)."""
    views: dict[int, np.ndarray] = {}
    for path in sorted((data_folder / "ct" / "htc2022").glob("tb_subsample_*.mat")):
        found = read(path)
        half_degrees = np.round(2 * np.rad2deg(found.geometry.angles_rad)).astype(int)
        views |= dict(zip(half_degrees.tolist(), found.data[0].numpy(), strict=True))
    assert len(views) == 549
    gamma = np.rad2deg(found.geometry.fan_angles_rad)  # type: ignore[attr-defined]
    differences: dict[int, list[float]] = {1: [], -1: []}
    for sign, found_differences in differences.items():
        for half_degree in range(60, 300, 5):
            for k in range(60, 500, 7):
                opposite = half_degree + 360 - round(sign * 4 * gamma[k])
                if half_degree in views and opposite in views:
                    found_differences.append(float(views[opposite][559 - k] - views[half_degree][k]))
        assert len(found_differences) > 1000
    this_way, back = (float(np.sqrt(np.mean(np.square(differences[sign])))) for sign in (1, -1))
    assert this_way < 0.25 * back


@pytest.mark.realdata
def test_a_segmentation_is_no_scan(data_folder: Path) -> None:
    with pytest.raises(InputError, match="does not say where its rays run"):
        read(data_folder / "ct" / "htc2022" / "tb_truth.mat")
