"""Folders of DICOM-CT-PD, written here from the coordinates of the format and not from those of this project."""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from ctrecon.io import ReadOptions, read, sniff
from ctrecon.sinogram import Sinogram
from operators.back_projection import filtered_back_projection
from operators.beam_geometry import FanBeam
from operators.decision import Decision
from operators.errors import InputError

N_COLUMNS, N_ROWS = 48, 4
SPACING_MM, AXIAL_MM = 6.0, 2.0
RADIUS_MM, DISTANCE_MM = 300.0, 540.0
CENTRAL = (24.75, 2.5)
SLOPE, INTERCEPT = 1e-4, -0.1
# A disc of water towards the right of the patient (x of the format) and to the front (y).
DISC_MM, DISC_RADIUS_MM, MU_PER_MM = (35.0, 15.0), 20.0, 0.02


def line_integrals(
    phi: float, *, angle_shift: float = 0.0, radial_shift: float = 0.0, flat: bool = False, flip: float = 1.0
) -> np.ndarray:
    """Chords of the disc, in the format's coordinates, from the focal spot to each column of the detector.

    The detector lies opposite to its focal centre (−ρ sin φ, ρ cos φ); its columns run to +x where φ = 0.
    """
    center = RADIUS_MM * np.array([-math.sin(phi), math.cos(phi)])
    spot_angle, spot_radius = phi + angle_shift, RADIUS_MM + radial_shift
    spot = spot_radius * np.array([-math.sin(spot_angle), math.cos(spot_angle)])
    across, away = np.array([math.cos(phi), math.sin(phi)]), -center / RADIUS_MM
    u = (np.arange(1, N_COLUMNS + 1) - CENTRAL[0]) * SPACING_MM * flip
    if flat:
        elements = center + DISTANCE_MM * away + u[:, None] * across
    else:
        gamma = (u / DISTANCE_MM)[:, None]
        elements = center + DISTANCE_MM * (np.cos(gamma) * away + np.sin(gamma) * across)
    along = elements - spot
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    offset = np.array(DISC_MM) - spot
    distance = along[:, 0] * offset[1] - along[:, 1] * offset[0]
    return 2 * MU_PER_MM * np.sqrt(np.maximum(DISC_RADIUS_MM**2 - distance**2, 0))


def float_bytes(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def projection(
    phi: float,
    *,
    angle_shift: float = 0.0,
    radial_shift: float = 0.0,
    axial_mm: float = 12.0,
    flat: bool = False,
    flip: float = 1.0,
    transposed: bool = True,
    changes: dict[int, Any] | None = None,
    syntax: str = ExplicitVRLittleEndian,
    typed: bool = False,
) -> Dataset:
    """One file of a scan. Rows of the detector beside the middle hold twice the line integrals, as a mark."""
    line = line_integrals(phi, angle_shift=angle_shift, radial_shift=radial_shift, flat=flat, flip=flip)
    rows = np.stack([line * (1 if row == 1 else 2) for row in range(N_ROWS)])  # (row, column)
    stored = np.round((rows.T if transposed else rows).clip(0, None) / SLOPE - INTERCEPT / SLOPE).astype("<u2")
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.66", generate_uid()
    dataset.PatientName = "Somebody"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 15, 0, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = SLOPE, INTERCEPT
    tags: dict[int, Any] = {
        0x70291002: (SPACING_MM,),
        0x70291006: (AXIAL_MM,),
        0x7029100B: b"FLAT" if flat else b"CYLINDRICAL ",
        0x70291010: struct.pack("<H", N_ROWS),
        0x70291011: struct.pack("<H", N_COLUMNS),
        0x70311001: (phi,),
        0x70311002: (axial_mm,),
        0x70311003: (RADIUS_MM,),
        0x70311031: (DISTANCE_MM,),
        0x70311033: CENTRAL,
        0x7033100B: (angle_shift,),
        0x7033100C: (0.0,),
        0x7033100D: (radial_shift,),
        0x70411001: b"0.0192",
        **(changes or {}),
    }
    for tag, value in tags.items():
        if value is None:
            continue
        if typed and isinstance(value, tuple):
            dataset.add_new(tag, "FL", list(value))
        else:
            dataset.add_new(tag, "UN", float_bytes(*value) if isinstance(value, tuple) else value)
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def write(folder: Path, projections: list[Dataset]) -> Path:
    """Write a scan; the names are in no order that means anything."""
    folder.mkdir(exist_ok=True)
    for number, dataset in enumerate(projections):
        dataset.save_as(folder / f"{(number * 7) % 100:03d}_{number}.img", enforce_file_format=True)
    return folder


def turn(n_views: int = 60, **changes: Any) -> list[Dataset]:
    return [projection(view * 2 * math.pi / n_views, **changes) for view in range(n_views)]


def decision(found: Sinogram, name: str) -> Decision:
    return next(d for d in found.decisions if d.name == name)


def disc_in(found: Sinogram) -> tuple[float, float, float]:
    """Where in the image the disc lies: to the right of the picture and upwards, in mm; and its attenuation."""
    image = filtered_back_projection(found.data, found.geometry, found.image_shape)[0].double()
    spacing = found.geometry.pixel_spacing_mm
    inside = image > MU_PER_MM / 2
    rows, columns = torch.nonzero(inside).double().unbind(1)
    n_y, n_x = found.image_shape
    return (
        (float(columns.mean()) - (n_x - 1) / 2) * spacing,
        ((n_y - 1) / 2 - float(rows.mean())) * spacing,
        float(image[inside].median()),
    )


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_an_axial_scan_lies_where_the_format_says(tmp_path: Path, flat: bool, transposed: bool, syntax: str) -> None:
    folder = write(tmp_path / "scan", turn(flat=flat, transposed=transposed, syntax=syntax))
    assert sniff(folder) == "DICOM-CT-PD"
    found = read(folder, ReadOptions(pixel_mm=2.0))
    assert isinstance(found.geometry, FanBeam)
    assert found.geometry.curved is not flat
    assert found.geometry.detector_spacing_mm == SPACING_MM
    assert found.geometry.detector_offset_mm == pytest.approx((24.5 - 24.75) * SPACING_MM)
    assert found.geometry.source_to_center_mm == pytest.approx(RADIUS_MM)
    assert found.geometry.source_to_detector_mm == pytest.approx(DISTANCE_MM)
    assert (found.mu_water_per_mm, found.mu_water_known) == (0.0192, True)
    assert found.slice_spacing_mm == pytest.approx(AXIAL_MM * RADIUS_MM / DISTANCE_MM)
    assert found.center_mm == pytest.approx((0.0, 0.0, 12.0))
    # Columns of the image run to the left of the patient, against x of the format.
    assert disc_in(found) == pytest.approx((-DISC_MM[0], DISC_MM[1], MU_PER_MM), abs=0.7)
    assert disc_in(found)[2] == pytest.approx(MU_PER_MM, rel=0.03)
    assert "opposite_rays" not in {d.name for d in found.decisions}
    assert found.patient == ()


def test_line_integrals_are_rescaled_and_sorted_by_angle(tmp_path: Path) -> None:
    found = read(write(tmp_path / "scan", turn(12)[::-1]))
    expected = np.stack([line_integrals(view * 2 * math.pi / 12) for view in range(12)])
    np.testing.assert_allclose(found.data[0], expected, atol=SLOPE)
    np.testing.assert_allclose(found.geometry.angles_rad, math.pi - np.arange(12) * 2 * math.pi / 12, atol=1e-6)


def test_tags_of_a_known_type_are_read_too(tmp_path: Path) -> None:
    found = read(write(tmp_path / "scan", turn(12, typed=True)))
    assert found.geometry == read(write(tmp_path / "raw", turn(12))).geometry


def test_the_row_next_to_the_plane_of_the_source_is_read_or_another(tmp_path: Path) -> None:
    folder = write(tmp_path / "scan", turn(12))
    found = read(folder)
    assert decision(found, "detector_row").value == "2 of 4"
    assert decision(found, "detector_row").override == "--detector-row"
    other = read(folder, ReadOptions(detector_row=3))
    torch.testing.assert_close(other.data, 2 * found.data, rtol=1e-3, atol=3 * SLOPE)
    with pytest.raises(InputError, match="detector row is 5; the detector has the rows 1 to 4"):
        read(folder, ReadOptions(detector_row=5))


def test_of_a_flying_focal_spot_one_place_is_read_in_its_own_geometry(tmp_path: Path) -> None:
    n_views, shift = 120, -0.004
    projections = [
        projection(view * 2 * math.pi / n_views, angle_shift=-shift if view % 2 else shift, radial_shift=1.0)
        for view in range(n_views - 1)
    ]
    found = read(write(tmp_path / "scan", projections), ReadOptions(pixel_mm=2.0))
    assert found.geometry.n_views == n_views // 2
    assert decision(found, "focal_spot").value == "60 of 119 views"
    assert decision(found, "focal_spot").warning
    assert isinstance(found.geometry, FanBeam)
    assert found.geometry.source_to_center_mm == pytest.approx(RADIUS_MM + 1)
    # Every ray of the geometry runs from the focal spot to its element of the detector.
    rays, along = found.geometry.rays()
    for view, angle in enumerate(found.geometry.angles_rad):
        phi = math.pi - angle - shift
        spot_phi = math.pi - angle
        spot = (RADIUS_MM + 1) * np.array([math.sin(spot_phi), math.cos(spot_phi)])
        np.testing.assert_allclose(rays[view, 0], spot, atol=1e-3)
        gamma = ((np.arange(1, N_COLUMNS + 1) - CENTRAL[0]) * SPACING_MM / DISTANCE_MM)[:, None]
        center = RADIUS_MM * np.array([math.sin(phi), math.cos(phi)])
        across, away = np.array([-math.cos(phi), math.sin(phi)]), -center / RADIUS_MM
        elements = center + DISTANCE_MM * (np.cos(gamma) * away + np.sin(gamma) * across)
        wanted = elements - spot
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        cross = wanted[:, 0] * along[view, :, 1] - wanted[:, 1] * along[view, :, 0]
        assert float(np.abs(cross).max()) * DISTANCE_MM < 0.1 * SPACING_MM
    assert disc_in(found)[:2] == pytest.approx((-DISC_MM[0], DISC_MM[1]), abs=0.7)


def test_a_detector_that_counts_the_other_way_is_noticed_and_can_be_reversed(tmp_path: Path) -> None:
    folder = write(tmp_path / "scan", turn(120, flip=-1.0))
    found = read(folder)
    assert decision(found, "opposite_rays").override == "--reverse-detector"
    reversed_ = read(folder, ReadOptions(reverse_detector=True))
    assert torch.equal(reversed_.data, found.data.flip(-1))


@pytest.mark.parametrize("value", [b"0.0200", float_bytes(0.02)])
def test_the_attenuation_of_water_is_text_or_number(tmp_path: Path, value: bytes) -> None:
    found = read(write(tmp_path / "scan", turn(12, changes={0x70411001: value})))
    assert found.mu_water_per_mm == pytest.approx(0.02)


@pytest.mark.parametrize("value", [b"0.192", b"many", b"", None])
def test_an_attenuation_of_water_that_is_none_is_not_believed(tmp_path: Path, value: bytes | None) -> None:
    found = read(write(tmp_path / "scan", turn(12, changes={0x70411001: value})))
    assert not found.mu_water_known
    assert decision(found, "mu_water").warning


def helical(_: Path) -> list[Dataset]:
    return [projection(view * 0.1, axial_mm=view * 0.5) for view in range(20)]


def two_scans(_: Path) -> list[Dataset]:
    return [*turn(6), projection(0.3, changes={0x70311003: (310.0,)})]


def with_tag(tag: int, value: Any) -> Callable[[Path], list[Dataset]]:
    return lambda _: turn(4, changes={tag: value})


def a_stranger(_: Path) -> list[Dataset]:
    return [*turn(4), projection(0.0, changes={0x70311001: None})]


def pixels(**changes: Any) -> Callable[[Path], list[Dataset]]:
    def build(_: Path) -> list[Dataset]:
        projections = turn(4)
        for name, value in changes.items():
            setattr(projections[1], name, value)
        return projections

    return build


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (helical, "The table moves by 9.5 mm .*: it is helical .* Rebin it to fan beams first"),
        (two_scans, "come from 2 different detectors or geometries; give a folder for each"),
        (a_stranger, "has no angle of the focal spot .7031,1001.; it is no projection"),
        (with_tag(0x70311003, None), r"has no tag \(7031,1003\)"),
        (with_tag(0x70311003, (math.nan,)), r"tag \(7031,1003\) of .* is not 1 finite number"),
        (with_tag(0x70311003, b"\x00"), r"tag \(7031,1003\) of .* is not 1 finite number"),
        (with_tag(0x70311033, (1.0,)), r"tag \(7031,1033\) of .* is not 2 finite number"),
        (with_tag(0x70291011, struct.pack("<H", 0)), r"tag \(7029,1011\) of .* is 0"),
        (
            with_tag(0x70291011, struct.pack("<H", 40)),
            "48 × 4 pixels of 16 bits; its detector has 40 columns and 4 rows",
        ),
        (with_tag(0x70291002, (0.0,)), "makes no sense: detector_spacing_mm is 0.0"),
        (with_tag(0x70311003, (-300.0,)), "makes no sense: source_to_center_mm is -300.0"),
        (with_tag(0x70311031, (200.0,)), "makes no sense: center_to_detector_mm is -100.0"),
        (with_tag(0x70291002, (60.0,)), "every bin must lie in front of the source"),
        (pixels(BitsAllocated=8), "pixels of 8 bits"),
        (pixels(PixelData=bytes(100)), "is truncated: 50 of 192 pixels are left"),
        (pixels(RescaleSlope="1e300"), "are NaN or infinite"),
        (lambda _: turn(4, syntax=DeflatedExplicitVRLittleEndian), "expected uncompressed little-endian DICOM"),
    ],
)
def test_scans_that_cannot_be_read_say_why(
    tmp_path: Path, build: Callable[[Path], list[Dataset]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read(write(tmp_path / "scan", build(tmp_path)))


def test_a_file_of_a_scan_asks_for_its_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "scan", turn(2))
    with pytest.raises(InputError, match="the projections of a scan are a folder of them: give the folder"):
        read(next(folder.iterdir()))


def test_a_truncated_file_and_the_memory_limit(tmp_path: Path) -> None:
    folder = write(tmp_path / "scan", turn(4))
    with pytest.raises(InputError, match="limit"):
        read(folder, ReadOptions(memory_limit_bytes=300))
    path = sorted(folder.iterdir())[0]
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"could not be read|truncated|no angle|has no tag"):
        read(folder)


def test_folders_without_projections_and_options_that_do_not_apply(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="holds no projections of DICOM-CT-PD"):
        read(tmp_path)
    folder = write(tmp_path / "scan", turn(2))
    with pytest.raises(InputError, match="DICOM-CT-PD, to which the option quantity does not apply"):
        read(folder, ReadOptions(quantity="counts"))
