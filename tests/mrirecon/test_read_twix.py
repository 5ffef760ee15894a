"""Reading Siemens raw data: a tiny synthetic file whose image is known, and the measured fixture."""

import builtins
import ctypes
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mrirecon.io import ReadOptions, read, sniff
from operators import Fourier, InputError

mdh_def = pytest.importorskip("twixtools.mdh_def")

N_Y, N_X, N_COILS = 6, 8, 2
PROTOCOL = """### ASCCONV BEGIN ###
sSliceArray.asSlice[0].dReadoutFOV = 160.0
sSliceArray.asSlice[0].dPhaseFOV = 120.0
sSliceArray.asSlice[0].dThickness = 5.0
sKSpace.lBaseResolution = 8
sKSpace.lPhaseEncodingLines = 6
sKSpace.lPartitions = 4
sKSpace.ucDimension = {dimension}
sKSpace.ucTrajectory = {trajectory}
sProtConsistencyInfo.flNominalB0 = 0.55
sRXSPEC.alDwellTime[0] = 10000
alTR[0] = 500000
alTE[0] = 15000
alTI[0] = 900000
sPrepPulses.ucInversion = 4
adFlipAngleDegree[0] = 70.0
tProtocolName = "test"
### ASCCONV END ###
"""


def synthetic_kspace() -> np.ndarray:
    """Complex64 ``(slice, coil, ky, kx)`` with a two-fold over-sampled readout, in this project's convention."""
    rng = np.random.default_rng(0)
    shape = (2, N_COILS, N_Y, 2 * N_X)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def line(samples: np.ndarray, *flags: str, **head: Any) -> bytes:
    """One line of the layout of VD and later; ``samples`` are ``(coil, sample)`` as the scanner stores them."""
    scan = mdh_def.Scan_header()
    scan.UsedChannels, scan.SamplesInScan = samples.shape
    scan.CenterCol = samples.shape[1] // 2
    scan.CenterLin = N_Y // 2
    for name in flags:
        mdh_def.add_flag(scan, name)
    for name, value in head.items():
        setattr(scan.Counter if hasattr(scan.Counter, name) else scan, name, value)
    # Rotation about z by 90°: phase (0, 1, 0), readout (−1, 0, 0), slice (0, 0, 1).
    scan.SliceData.Quaternion[:] = [np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5)]
    scan.SliceData.SlicePos.Sag, scan.SliceData.SlicePos.Cor = 1.0, 2.0
    scan.SliceData.SlicePos.Tra = 30.0 - 8.0 * scan.Counter.Sli
    channels = [bytes(mdh_def.Channel_header()) + channel.astype("<c8").tobytes() for channel in samples]
    return bytes(scan) + b"".join(channels)


def end_mark() -> bytes:
    scan = mdh_def.Scan_header(FlagsAndDMALength=ctypes.sizeof(mdh_def.Scan_header))
    mdh_def.add_flag(scan, "ACQEND")
    return bytes(scan)


def measurement(lines: list[bytes], *, dimension: int = 2, trajectory: int = 1) -> bytes:
    text = PROTOCOL.format(dimension=dimension, trajectory=trajectory).encode()
    buffer = b"MeasYaps\x00" + struct.pack("<I", len(text)) + text
    header = struct.pack("<II", 8 + len(buffer) + 64, 1) + buffer + bytes(64)
    return header + b"".join(lines) + end_mark()


def raid(*measurements: bytes) -> bytes:
    """The container of VD and later."""
    start = struct.pack("<II", 0, len(measurements))
    offset, content = 10240, b""
    for part in measurements:
        start += struct.pack("<IIQQ64s64s", 1, 1, offset + len(content), len(part), b"", b"")
        content += part
    return start.ljust(offset, b"\x00") + content


def imaging_lines(kspace: np.ndarray) -> list[bytes]:
    return [line(kspace[s, :, y].conj(), Lin=y, Sli=s) for y in range(N_Y) for s in range(len(kspace))]


def twix_bytes() -> bytes:
    """A valid file: a noise scan, then two slices."""
    noise = np.random.default_rng(1).normal(size=(N_COILS, 32)).astype(np.complex64)
    return raid(measurement([line(noise, "NOISEADJSCAN")]), measurement(imaging_lines(synthetic_kspace())))


def written(folder: Path, content: bytes, name: str = "scan.dat") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_lines_are_placed_conjugated_and_sorted_by_slice_position(tmp_path: Path) -> None:
    path = written(tmp_path, twix_bytes(), "no_suffix")
    kspace = read(path, ReadOptions(remove_oversampling=False))
    assert sniff(path) == "Siemens twix"
    assert kspace.batch_axes == ("slice",)
    expected = torch.from_numpy(synthetic_kspace())
    along = [position[2] for position in kspace.acquisition.slice_positions_mm]
    in_file_order = along == sorted(along, reverse=True)
    torch.testing.assert_close(kspace.data, expected if in_file_order else expected.flip(0))
    assert kspace.fill_rate == 1.0


def test_geometry_and_protocol_come_from_the_header(tmp_path: Path) -> None:
    acquisition = read(written(tmp_path, twix_bytes())).acquisition
    assert acquisition.geometry_known
    assert acquisition.encoded_shape == (1, N_Y, N_X)
    assert acquisition.encoded_fov_mm == pytest.approx((5.0, 120.0, 160.0))
    slice_direction, phase, readout = np.round(acquisition.directions, 6)
    assert phase.tolist() == [0, 1, 0]
    assert readout.tolist() == [-1, 0, 0]
    step = np.subtract(acquisition.slice_positions_mm[1], acquisition.slice_positions_mm[0])
    assert step @ slice_direction == pytest.approx(8.0)
    assert np.abs(slice_direction).tolist() == [0, 0, 1]
    assert acquisition.field_strength_t == 0.55
    assert acquisition.repetition_time_ms == 500.0
    assert acquisition.echo_time_ms == 15.0
    assert acquisition.inversion_time_ms is None
    assert acquisition.flip_angle_deg == 70.0
    assert acquisition.protocol_name == "test"


def test_oversampling_is_removed_in_the_image(tmp_path: Path) -> None:
    path = written(tmp_path, twix_bytes())
    full, cropped = read(path, ReadOptions(remove_oversampling=False)), read(path)
    image = Fourier(full.image_shape).adjoint(full.data)[..., N_X // 2 : N_X // 2 + N_X]
    torch.testing.assert_close(Fourier(cropped.image_shape).adjoint(cropped.data), image)


def test_noise_of_an_earlier_measurement_goes_with_the_scan(tmp_path: Path) -> None:
    kspace = read(written(tmp_path, twix_bytes()))
    assert kspace.noise is not None
    assert kspace.noise.shape == (N_COILS, 32)
    assert dict(kspace.counts)["noise lines"] == 1


def test_reversed_and_foreign_lines(tmp_path: Path) -> None:
    kspace = synthetic_kspace()[:1]
    lines = imaging_lines(kspace)
    lines[2] = line(kspace[0, :, 2, ::-1].conj(), "REFLECT", Lin=2)
    lines.append(line(100 * kspace[0, :, 0], "PHASCOR", Lin=3))
    lines.append(line(100 * kspace[0, :, 0], "RTFEEDBACK", Lin=3))
    read_back = read(written(tmp_path, raid(measurement(lines))), ReadOptions(remove_oversampling=False))
    torch.testing.assert_close(read_back.data, torch.from_numpy(kspace))


def test_lines_for_calibration_only_are_kept_apart(tmp_path: Path) -> None:
    kspace = synthetic_kspace()[:1]
    lines = imaging_lines(kspace)
    lines[1] = line(kspace[0, :, 1].conj(), "PATREFSCAN", Lin=1)
    lines[3] = line(kspace[0, :, 3].conj(), "PATREFSCAN", "PATREFANDIMASCAN", Lin=3)
    read_back = read(written(tmp_path, raid(measurement(lines))))
    assert read_back.calibration is not None
    assert read_back.mask[0, 0, :, 0].tolist() == [1, 0, 1, 1, 1, 1]
    assert (read_back.calibration.abs().amax(dim=(0, 1, 3)) > 0).tolist() == [False, True, False, True, False, False]


def test_missing_lines_stay_unmeasured(tmp_path: Path) -> None:
    kspace = synthetic_kspace()[:1]
    read_back = read(written(tmp_path, raid(measurement(imaging_lines(kspace)[:4]))))
    assert read_back.mask[0, 0, :, 0].tolist() == [1, 1, 1, 1, 0, 0]
    assert read_back.fill_rate == pytest.approx(4 / 6)


def test_averages_are_averaged_unless_they_are_to_be_kept(tmp_path: Path) -> None:
    kspace = synthetic_kspace()[:1]
    lines = imaging_lines(kspace) + [line(3 * kspace[0, :, y].conj(), Lin=y, Ave=1) for y in range(N_Y)]
    path = written(tmp_path, raid(measurement(lines)))
    torch.testing.assert_close(
        read(path, ReadOptions(remove_oversampling=False)).data, 2 * torch.from_numpy(kspace), rtol=1e-5, atol=1e-5
    )
    apart = read(path, ReadOptions(average=False))
    assert apart.batch_axes == ("average", "slice")
    assert apart.data.shape[0] == 2


def test_the_older_layout_is_read(tmp_path: Path) -> None:
    kspace = synthetic_kspace()[:1]

    def old_line(y: int) -> bytes:
        head = mdh_def.VB17_header(SamplesInScan=2 * N_X, UsedChannels=N_COILS, CenterCol=N_X, CenterLin=N_Y // 2)
        head.Counter.Lin = y
        head.SliceData.Quaternion[:] = [1.0, 0.0, 0.0, 0.0]
        return b"".join(bytes(head) + kspace[0, c, y].conj().astype("<c8").tobytes() for c in range(N_COILS))

    end = mdh_def.VB17_header(FlagsAndDMALength=ctypes.sizeof(mdh_def.VB17_header))
    mdh_def.add_flag(end, "ACQEND")
    text = PROTOCOL.format(dimension=2, trajectory=1).encode() + b" " * 10000
    buffer = b"MeasYaps\x00" + struct.pack("<I", len(text)) + text
    header = struct.pack("<II", 8 + len(buffer), 1) + buffer
    path = written(tmp_path, header + b"".join(old_line(y) for y in range(N_Y)) + bytes(end))
    assert sniff(path) == "Siemens twix"
    torch.testing.assert_close(read(path, ReadOptions(remove_oversampling=False)).data, torch.from_numpy(kspace))


def test_a_file_cut_off_in_the_middle_is_read_with_a_warning(tmp_path: Path) -> None:
    content = raid(measurement(imaging_lines(synthetic_kspace()[:1])))
    kspace = read(written(tmp_path, content[:-1000]))
    assert 0 < kspace.fill_rate < 1
    assert any(decision.name == "truncated" and decision.warning for decision in kspace.decisions)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: raid(measurement([])), "no imaging lines"),
        (lambda: raid(measurement(imaging_lines(synthetic_kspace()), trajectory=2)), "trajectory is 'radial'"),
        (lambda: raid(measurement([line(np.full((2, 16), np.nan + 0j), Lin=1)])), "NaN or infinite"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(written(tmp_path, content()))


def test_a_missing_extra_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, twix_bytes())
    plain_import = builtins.__import__

    def without_twixtools(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("twixtools"):
            raise ImportError(name)
        return plain_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_twixtools)
    with pytest.raises(InputError, match=r"pip install 'mrctrecon\[siemens\]'"):
        read(path)


@pytest.mark.realdata
def test_the_measured_gradient_echo(data_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data_folder / "mri" / "formats" / "siemens_vd_gre.dat"
    kspace = read(path)
    assert capsys.readouterr() == ("", "")
    assert tuple(kspace.data.shape) == (1, 2, 160, 160)
    assert kspace.fill_rate == 1.0
    acquisition = kspace.acquisition
    assert acquisition.geometry_known
    assert acquisition.encoded_fov_mm == pytest.approx((4.0, 200.0, 200.0))
    assert acquisition.slice_positions_mm[0] == pytest.approx((-2.58970, 53.92242, -53.99947), abs=1e-4)
    assert np.allclose(acquisition.directions[0], (0, 0.03839, 0.99926), atol=1e-4)
    assert acquisition.field_strength_t == pytest.approx(2.89362)
    assert acquisition.patient == {}
    image = Fourier(kspace.image_shape).adjoint(kspace.data).abs().square().sum(dim=1).sqrt()[0]
    # A disc that fills most of the field of view, with the bar of resolution patterns in its lower half.
    assert image[80, 20:140].median() > 5 * image[:10, :10].median()
    lower, upper = image[90:115, 40:120].mean(), image[30:60, 40:120].mean()
    assert lower < 0.7 * upper
