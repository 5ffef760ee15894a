"""Sinograms in HDF5: this project's own files, DXchange (TomoPy) and SynDeepLesion."""

import errno
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from ctrecon.io import ReadOptions, read, sniff
from ctrecon.io.alignment import rotation_axis
from ctrecon.io.sinogram_file import write_sinogram
from ctrecon.io.syndeeplesion import read_metal_trace
from ctrecon.presets import syndeeplesion
from ctrecon.sinogram import Sinogram
from operators.beam_geometry import FanBeam, ParallelBeam
from operators.decision import Decision
from operators.errors import InputError
from tests.reference.tomography import disc, sinogram

FAN = FanBeam((0.1, 1.0 / 3.0, math.pi), 7, 1.1, 0.3, 0.275, 100.1, 50.7, True)


def decision(found: Sinogram, name: str) -> Decision:
    return next(d for d in found.decisions if d.name == name)


# own files


def record(generator: torch.Generator, **changes: Any) -> Sinogram:
    data = torch.randn(2, 3, 7, generator=generator)
    return replace(
        Sinogram(
            data,
            FAN,
            (5, 6),
            mu_water_per_mm=0.021,
            mu_water_known=True,
            weights=data.abs(),
            slice_spacing_mm=1.7,
            center_mm=(0.1, -2.0, 3.3),
            directions=((0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (-1.0, 0.0, 0.0)),
            patient=(("name", "Müller"), ("id", "4")),
            decisions=(Decision("a", "b", "C."),),
            counts=(("files", 3),),
        ),
        **changes,
    )


def test_what_was_written_is_read_back_exactly(tmp_path: Path, generator: torch.Generator) -> None:
    written = record(generator)
    path = tmp_path / "scan"
    write_sinogram(path, written)
    assert sniff(path) == "mrctrecon sinogram"
    found = read(path)
    assert torch.equal(found.data, written.data)
    assert torch.equal(found.weights, written.weights)
    for name in (
        *("geometry", "image_shape", "mu_water_per_mm", "mu_water_known"),
        *("slice_spacing_mm", "center_mm", "directions"),
    ):
        assert getattr(found, name) == getattr(written, name), name
    assert found.grid() == written.grid()


def test_identifiers_are_written_only_on_request(tmp_path: Path, generator: torch.Generator) -> None:
    path = tmp_path / "scan"
    write_sinogram(path, record(generator))
    assert "Müller" not in path.read_bytes().decode("latin-1")
    assert b"patient" not in path.read_bytes()
    assert read(path).patient == ()
    write_sinogram(path, record(generator), identifiers=True, overwrite=True)
    assert read(path).patient == (("name", "Müller"), ("id", "4"))


def test_a_scan_without_weights_and_of_double_precision(tmp_path: Path, generator: torch.Generator) -> None:
    written = record(generator, weights=None)
    write_sinogram(tmp_path / "scan", replace(written, data=written.data.double()))
    found = read(tmp_path / "scan")
    assert found.weights is None
    assert torch.equal(found.data, written.data)


def test_only_sinogram_and_geometry_are_needed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "scan", "w") as file:
        file["sinogram"] = np.ones((1, 3, 7))
        file["geometry"] = FAN.to_json()
    found = read(tmp_path / "scan")
    assert found.geometry == FAN
    assert not found.mu_water_known
    assert found.image_shape[0] == found.image_shape[1]


def test_overrides_of_an_own_file(tmp_path: Path, generator: torch.Generator) -> None:
    write_sinogram(tmp_path / "scan", record(generator))
    found = read(tmp_path / "scan", ReadOptions(pixel_mm=0.6, mu_water_per_mm=0.02, image_shape=(9, 9)))
    assert found.geometry.pixel_spacing_mm == 0.6
    assert (found.mu_water_per_mm, found.image_shape) == (0.02, (9, 9))
    with pytest.raises(InputError, match="the option preset does not apply; leave it out"):
        read(tmp_path / "scan", ReadOptions(preset="lodopab"))


def test_an_existing_file_is_replaced_only_on_request(tmp_path: Path, generator: torch.Generator) -> None:
    path = tmp_path / "scan.h5"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists already; pass --overwrite"):
        write_sinogram(path, record(generator))
    assert path.read_text() == "mine"
    write_sinogram(path, record(generator), overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["scan.h5"]


def test_a_full_disk_is_our_error_and_leaves_nothing(
    tmp_path: Path, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left on device; nothing was left behind"):
        write_sinogram(tmp_path / "scan.h5", record(generator))
    assert list(tmp_path.iterdir()) == []


def test_line_integrals_that_are_not_finite_are_not_written(tmp_path: Path, generator: torch.Generator) -> None:
    written = record(generator)
    written.data[1, 2, 3] = math.nan
    with pytest.raises(InputError, match=r"1 of 42 samples .* at slice 1, view 2, detector bin 3"):
        write_sinogram(tmp_path / "scan.h5", written)
    assert list(tmp_path.iterdir()) == []


def changed(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            for name, value in changes.items():
                del file[name]
                if value is not None:
                    file[name] = value

    return change


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "damaged or incomplete"),
        (
            changed(sinogram=np.ones((3, 7))),
            "sinogram in .* is of shape .3, 7.; expected an array of numbers .slice, vi",
        ),
        (changed(sinogram=np.ones((2, 7, 3))), "contradicts itself: sinogram has shape"),
        (changed(sinogram=np.full((2, 3, 7), np.nan)), "42 of 42 samples .* are NaN or infinite"),
        (changed(sinogram=np.full((2, 3, 7), 1e300)), "beyond the range of single precision"),
        (changed(sinogram=np.ones((2, 3, 7), dtype=complex)), "complex128; expected real numbers"),
        (changed(sinogram=np.ones((0, 3, 7))), "is of shape .0, 3, 7."),
        (changed(geometry=np.ones(3)), "expected text"),
        (changed(geometry="{}"), "type of the geometry .* is None"),
        (changed(geometry=FAN.to_json().replace("1.1", "0.0")), "detector_spacing_mm is 0.0"),
        (changed(weights=np.ones((1, 3, 7))), "contradicts itself: weights are"),
        (changed(image_shape=np.array([5.5, 6])), "expected two whole numbers"),
        (changed(image_shape=np.array([0, 6])), "expected two sizes"),
        (changed(image_shape=np.array([5, 6, 7])), "image_shape in .* of shape .3,.; expected numbers, .2,."),
        (changed(image_shape=np.array([4000, 6000])), "it would be inside the object"),
        (changed(mu_water_per_mm=0.2), "divide it by 10"),
        (changed(mu_water_per_mm="water"), "mu_water_per_mm in .*expected numbers"),
        (changed(center_mm=np.array([0, 0, np.inf])), "center_mm in .* is not finite"),
        (changed(directions=np.ones((3, 3))), "no three unit vectors at right angles"),
        (changed(patient="[1]"), "no JSON object of identifiers"),
        (changed(patient="{"), "no JSON object"),
    ],
)
def test_own_files_that_cannot_be_read_say_why(
    tmp_path: Path, generator: torch.Generator, damage: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "scan"
    write_sinogram(path, record(generator), identifiers=True)
    damage(path)
    with pytest.raises(InputError, match=message):
        read(path)


# DXchange


def exchange(path: Path, geometry: ParallelBeam, *, n_slices: int = 2, **changes: Any) -> np.ndarray:
    """Write counts of a scan; return its line integrals, ``(slice, view, detector)``."""
    discs = [disc(12.0, (9.0, -3.0), 0.04), disc(5.0, (-14.0, 10.0), 0.06)]
    integrals = np.stack([sinogram(geometry, discs).numpy() * (1 + index) for index in range(n_slices)])
    rng = np.random.default_rng(1)
    flat = rng.uniform(8000, 12000, size=(n_slices, geometry.n_detectors))
    dark = rng.uniform(90, 110, size=flat.shape)
    data = flat * np.exp(-integrals.swapaxes(0, 1)) + dark
    fields = {
        "data": data.astype(np.float32),
        "data_white": np.stack([flat + dark - 5, flat + dark + 5]),
        "data_dark": dark[None],
        "theta": np.rad2deg(geometry.angles_rad),
        **changes,
    }
    with h5py.File(path, "w") as file:
        for name, value in fields.items():
            if value is not None:
                file[f"exchange/{name}"] = value
    return integrals


def half_turn(n_views: int = 90, *, n_detectors: int = 81, offset_mm: float = 0.0) -> ParallelBeam:
    angles = tuple(view * math.pi / n_views for view in range(n_views))
    return ParallelBeam(angles, n_detectors, 1.0, 1.0, offset_mm)


def test_a_parallel_scan_is_corrected_and_its_axis_found(tmp_path: Path) -> None:
    path = tmp_path / "scan"
    geometry = half_turn(offset_mm=3.3)
    integrals = exchange(path, geometry)
    assert sniff(path) == "DXchange"
    found = read(path)
    torch.testing.assert_close(found.data, torch.from_numpy(integrals).float(), rtol=0, atol=1e-5)
    assert isinstance(found.geometry, ParallelBeam)
    assert found.geometry.angles_rad == pytest.approx(geometry.angles_rad)
    assert found.geometry.detector_offset_mm == pytest.approx(3.3, abs=0.15)
    assert decision(found, "rotation_axis").override == "--detector-offset-mm"
    assert not decision(found, "rotation_axis").warning
    assert decision(found, "pixel_size").warning
    assert decision(found, "pixel_size").override == "--pixel-mm"
    assert found.image_shape == (81, 81)
    assert found.weights is not None
    assert bool((found.weights > 0).all())
    assert dict(found.counts)["flat fields"] == 2


def test_the_size_of_the_pixels_scales_bins_and_axis(tmp_path: Path) -> None:
    path = tmp_path / "scan"
    exchange(path, half_turn(offset_mm=-4.0))
    found = read(path, ReadOptions(pixel_mm=0.5))
    assert found.geometry.detector_spacing_mm == found.geometry.pixel_spacing_mm == found.slice_spacing_mm == 0.5
    assert found.geometry.detector_offset_mm == pytest.approx(-2.0, abs=0.1)
    assert found.image_shape == (81, 81)
    given = read(path, ReadOptions(pixel_mm=0.5, detector_offset_mm=-1.0))
    assert given.geometry.detector_offset_mm == -1.0
    assert "rotation_axis" not in {d.name for d in given.decisions}


@pytest.mark.parametrize("offset", [-17.25, -0.5, 0.0, 6.4])
@pytest.mark.parametrize("turns", [0.5, 1.0])
def test_the_axis_is_found_within_a_fifth_of_a_bin(offset: float, turns: float) -> None:
    n_views = 181
    angles = np.arange(n_views) * 2 * math.pi * turns / n_views + 0.3
    geometry = replace(half_turn(n_detectors=161, offset_mm=offset), angles_rad=tuple(angles))
    discs = [disc(25.0, (9.0, -3.0), 0.04), disc(5.0, (-14.0, 10.0), 0.06), disc(3.0, (20.0, 20.0), 0.1)]
    found = rotation_axis(sinogram(geometry, discs).numpy(), angles)
    assert found is not None
    assert found[0] == pytest.approx(-offset, abs=0.2)
    assert not found[1]


def test_the_axis_of_a_wide_detector_is_found(generator: torch.Generator) -> None:
    geometry = half_turn(120, n_detectors=701, offset_mm=-41.6)
    views = sinogram(geometry, [disc(150.0, (30.0, 40.0), 0.01), disc(20.0, (-120.0, 80.0), 0.04)])
    noisy = views + 0.02 * torch.randn(views.shape, generator=generator, dtype=torch.float64)
    found = rotation_axis(noisy.numpy(), np.asarray(geometry.angles_rad))
    assert found is not None
    assert found[0] == pytest.approx(41.6, abs=0.4)


def test_a_limited_angle_leaves_the_axis_in_the_middle_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "scan"
    exchange(path, half_turn(90)[:60])
    found = read(path)
    assert found.geometry.detector_offset_mm == 0
    assert decision(found, "rotation_axis").warning


@pytest.mark.parametrize(
    ("unit", "theta", "options", "expected", "warning"),
    [
        (b"degrees", np.linspace(0, 3, 20), ReadOptions(), "degrees", False),
        ("rad", np.linspace(0, 3, 20), ReadOptions(), "radians", False),
        (None, np.linspace(0, 3, 20), ReadOptions(), "radians", True),
        (None, np.linspace(0, 170, 20), ReadOptions(), "degrees", False),
        (3.0, np.linspace(0, 170, 20), ReadOptions(), "degrees", False),
        (b"degrees", np.linspace(0, 3, 20), ReadOptions(angle_unit="radians"), "radians", False),
    ],
)
def test_the_unit_of_the_angles(
    tmp_path: Path, unit: Any, theta: np.ndarray, options: ReadOptions, expected: str, warning: bool
) -> None:
    path = tmp_path / "scan"
    exchange(path, half_turn(20), theta=theta)
    if unit is not None:
        with h5py.File(path, "r+") as file:
            file["exchange/theta"].attrs["units"] = unit
    found = read(path, options)
    assert decision(found, "angle_unit").value == expected
    assert decision(found, "angle_unit").warning == warning
    last = theta[-1] if expected == "radians" else math.radians(theta[-1])
    assert found.geometry.angles_rad[-1] == pytest.approx(last)


def test_zero_counts_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "scan"
    exchange(path, half_turn())
    with h5py.File(path, "r+") as file:
        file["exchange/data"][4, 1, 40:43] = 0
    found = read(path)
    assert decision(found, "starved_rays").value == f"3 of {found.data.numel()}"
    assert found.weights is not None
    assert found.weights[1, 4, 40:43].tolist() == [0, 0, 0]
    assert bool(found.data.isfinite().all())


def test_dead_bins_are_bridged_and_have_no_weight(tmp_path: Path) -> None:
    path = tmp_path / "scan"
    integrals = exchange(path, half_turn())
    with h5py.File(path, "r+") as file:
        file["exchange/data_white"][:, 0, 40] = 0
    found = read(path)
    assert decision(found, "dead_bins").value == "1 of 162"
    assert found.weights is not None
    assert bool((found.weights[0, :, 40] == 0).all())
    middle = (integrals[0, :, 39] + integrals[0, :, 41]) / 2
    np.testing.assert_allclose(found.data[0, :, 40], middle, atol=1e-5)


def test_a_scan_without_flat_field_needs_the_incident_counts(tmp_path: Path) -> None:
    path = tmp_path / "scan"
    geometry = half_turn()
    integrals = sinogram(geometry, [disc(12.0, (9.0, -3.0), 0.04)]).numpy()
    exchange(path, geometry, data=1e4 * np.exp(-integrals)[:, None], data_white=None, data_dark=None)
    with pytest.raises(InputError, match="no exchange/data_white; give the counts without an object"):
        read(path)
    found = read(path, ReadOptions(incident_counts=1e4))
    torch.testing.assert_close(found.data[0], torch.from_numpy(integrals).float(), rtol=0, atol=1e-5)
    assert decision(found, "dark_field").value == "none"


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"data": np.ones((90, 81))}, ReadOptions(), "exchange/data in .* is of shape .90, 81."),
        ({"data": np.full((90, 2, 81), np.nan)}, ReadOptions(), "14580 of 14580 samples .* view 0, slice 0, detector"),
        ({"data": np.zeros((90, 2, 81))}, ReadOptions(), "no positive count"),
        ({"data": np.ones((90, 2, 81), dtype="S3")}, ReadOptions(), "expected real numbers"),
        ({"data_white": np.ones((2, 2, 80))}, ReadOptions(), "shape .2, 2, 80.; expected .frame, 2, 81. as the data"),
        ({"data_white": np.zeros((2, 2, 81))}, ReadOptions(), "162 of 162 detector bins .* the fields are swapped"),
        ({"theta": np.zeros(80)}, ReadOptions(), "90 projections, but 80 angles"),
        ({"theta": np.full(90, np.inf)}, ReadOptions(), "exchange/theta in .* are NaN or infinite"),
        ({"theta": np.arange(90) * 100.0}, ReadOptions(), "spans 24.72 turns in degrees; expected four at most"),
        ({"theta": np.arange(90) * 2.0}, ReadOptions(angle_unit="radians"), "turns in radians; .* check --angle-unit"),
        ({}, ReadOptions(angle_unit="gon"), "expected 'degrees' or 'radians'"),  # type: ignore[arg-type]
        ({}, ReadOptions(pixel_mm=0.0), "expected a positive length in mm"),
        ({}, ReadOptions(incident_counts=5.0), "holds a flat field, .* leave --incident-counts out"),
        ({}, ReadOptions(memory_limit_bytes=1000), "would need .* GiB"),
    ],
)
def test_parallel_scans_that_cannot_be_read_say_why(
    tmp_path: Path, changes: dict[str, Any], options: ReadOptions, message: str
) -> None:
    path = tmp_path / "scan"
    exchange(path, half_turn(), **changes)
    with pytest.raises(InputError, match=message):
        read(path, options)


@pytest.mark.realdata
def test_the_tooth(data_folder: Path) -> None:
    from operators.back_projection import filtered_back_projection

    found = read(data_folder / "ct" / "tooth_parallel.h5")
    assert tuple(found.data.shape) == (2, 181, 640)
    assert "starved_rays" not in {d.name for d in found.decisions}
    air = found.data[..., :50]
    assert abs(float(air.mean())) < 0.01
    # Bin 296 is what the authors of the data use, and what gives the sharpest image.
    axis = 319.5 - found.geometry.detector_offset_mm
    assert axis == pytest.approx(296.0, abs=0.3)
    variations = []
    for offset_mm in (found.geometry.detector_offset_mm, 22.0, 25.0):
        geometry = replace(found.geometry, detector_offset_mm=offset_mm)
        image = filtered_back_projection(found.data[:1], geometry, (640, 640))[0]
        variations.append(float(image.diff(dim=0).abs().sum() + image.diff(dim=1).abs().sum()))
    assert variations[0] < min(variations[1:])


# SynDeepLesion


def lesion(path: Path, **changes: Any) -> dict[str, np.ndarray]:
    geometry = syndeeplesion().geometry
    integrals = sinogram(geometry, [disc(50.0, (20.0, -10.0), 0.0192)]).numpy().astype(np.float32)
    trace = np.zeros_like(integrals)
    trace[:, 300:320] = 1
    held = {
        "ma_sinogram": integrals + 2 * trace,
        "LI_sinogram": integrals * 0.99,
        "poly_sinogram": integrals,
        "metal_trace": trace,
        "ma_CT": np.zeros((4, 4), dtype=np.float32),
        **changes,
    }
    with h5py.File(path, "w") as file:
        for name, value in held.items():
            if value is not None:
                file[name] = value
    return held


def test_the_measurement_with_metal_is_taken_and_the_others_on_request(tmp_path: Path) -> None:
    path = tmp_path / "scan"
    held = lesion(path)
    assert sniff(path) == "SynDeepLesion"
    found = read(path)
    torch.testing.assert_close(found.data[0], torch.from_numpy(held["ma_sinogram"]), rtol=0, atol=0)
    assert found.geometry == syndeeplesion().geometry
    assert (found.mu_water_per_mm, found.mu_water_known, found.image_shape) == (0.0192, True, (416, 416))
    assert decision(found, "variable").override == "--variable"
    assert found.weights is None
    for name in ("LI_sinogram", "poly_sinogram"):
        other = read(path, ReadOptions(variable=name))
        torch.testing.assert_close(other.data[0], torch.from_numpy(held[name]), rtol=0, atol=0)
    with pytest.raises(InputError, match="no sinogram 'ma_CT'; it has ma_sinogram, poly_sinogram, LI_sinogram"):
        read(path, ReadOptions(variable="ma_CT"))


def test_the_metal_trace_is_read_and_masks_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "scan"
    held = lesion(path)
    trace = read_metal_trace(path)
    assert torch.equal(trace[0], torch.from_numpy(held["metal_trace"]))
    found = read(path, ReadOptions(mask_metal=True))
    assert found.weights is not None
    assert torch.equal(found.weights, 1 - trace)
    assert decision(found, "metal_trace").value == "3.12 % of the rays"


def test_transposed_files_are_turned_together_with_their_trace(tmp_path: Path) -> None:
    path = tmp_path / "scan"
    held = lesion(path)
    lesion(path, **{name: array.T for name, array in held.items()})
    found = read(path, ReadOptions(mask_metal=True))
    torch.testing.assert_close(found.data[0], torch.from_numpy(held["ma_sinogram"]), rtol=0, atol=0)
    assert found.weights is not None
    assert torch.equal(found.weights[0], 1 - torch.from_numpy(held["metal_trace"]))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"ma_sinogram": np.ones((600, 641))},
            ReadOptions(),
            "has shape .600, 641., but its geometry has 640 views of 641",
        ),
        ({"ma_sinogram": np.full((640, 641), np.nan)}, ReadOptions(), "are NaN or infinite"),
        ({"metal_trace": None}, ReadOptions(mask_metal=True), "metal_trace in .* is missing"),
        (
            {"metal_trace": np.ones((4, 4))},
            ReadOptions(mask_metal=True),
            "metal_trace in .* has shape .4, 4.; expected",
        ),
        ({}, ReadOptions(memory_limit_bytes=1000), "would need .* GiB"),
    ],
)
def test_lesion_files_that_cannot_be_read_say_why(
    tmp_path: Path, changes: dict[str, Any], options: ReadOptions, message: str
) -> None:
    lesion(tmp_path / "scan", **changes)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "scan", options)


def test_json_of_a_geometry_survives_its_file(tmp_path: Path, generator: torch.Generator) -> None:
    write_sinogram(tmp_path / "scan", record(generator))
    with h5py.File(tmp_path / "scan") as file:
        assert json.loads(file["geometry"][()]) == json.loads(FAN.to_json())
