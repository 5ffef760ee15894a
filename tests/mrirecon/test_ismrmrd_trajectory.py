import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from mrirecon.acquisition import Acquisition
from mrirecon.io import read
from mrirecon.io.ismrmrd import read_ismrmrd, write_ismrmrd
from mrirecon.io.options import ReadOptions
from mrirecon.kspace import KSpace
from mrirecon.trajectory import radial
from operators.errors import InputError

N_Y, N_X, N_COILS, N_SPOKES, N_SAMPLES = 12, 10, 2, 7, 16
FOV_Y_MM, FOV_X_MM = 36.0, 25.0
OBLIQUE = ((0.48, -0.64, 0.6), (0.8, 0.6, 0.0), (-0.36, 0.48, 0.8))
NOISE, CALIBRATION, REVERSE, NAVIGATION = 19, 20, 22, 23

# Written from the description of the format, not from the writer.
COUNTERS = (
    "kspace_encode_step_1 kspace_encode_step_2 average slice contrast phase repetition set segment".split()  # noqa: SIM905
)
HEAD = np.dtype(
    [
        ("version", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("scan_counter", "<u4"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", (3,)),
        ("number_of_samples", "<u2"),
        ("available_channels", "<u2"),
        ("active_channels", "<u2"),
        ("channel_mask", "<u8", (16,)),
        ("discard_pre", "<u2"),
        ("discard_post", "<u2"),
        ("center_sample", "<u2"),
        ("encoding_space_ref", "<u2"),
        ("trajectory_dimensions", "<u2"),
        ("sample_time_us", "<f4"),
        ("position", "<f4", (3,)),
        ("read_dir", "<f4", (3,)),
        ("phase_dir", "<f4", (3,)),
        ("slice_dir", "<f4", (3,)),
        ("patient_table_position", "<f4", (3,)),
        ("idx", [*((name, "<u2") for name in COUNTERS), ("user", "<u2", (8,))]),
        ("user_int", "<i4", (8,)),
        ("user_float", "<f4", (8,)),
    ]
)
FLOATS = h5py.vlen_dtype(np.float32)
TABLE = np.dtype([("head", HEAD), ("traj", FLOATS), ("data", FLOATS)])


class Line:
    """One acquisition: complex (coil, sample), positions (sample, component), flags from 1 and counters."""

    def __init__(self, data: np.ndarray, positions: np.ndarray | None, *flags: int, **fields: int) -> None:
        self.data, self.positions, self.flags, self.fields = data, positions, flags, fields


def space(name: str, shape: tuple[int, int, int], fov_mm: tuple[float, float, float]) -> str:
    sizes = "".join(f"<{axis}>{n}</{axis}>" for axis, n in zip("zyx", shape, strict=True))
    extents = "".join(f"<{axis}>{extent}</{axis}>" for axis, extent in zip("zyx", fov_mm, strict=True))
    return f"<{name}><matrixSize>{sizes}</matrixSize><fieldOfView_mm>{extents}</fieldOfView_mm></{name}>"


def header(
    *, kind: str = "radial", n_z: int = 1, n_y: int = N_Y, limits: str = "", recon_y: int = N_Y, vendor: str = ""
) -> str:
    fov_mm = (4.0 * n_z, FOV_Y_MM, FOV_X_MM)
    return (
        f'<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><acquisitionSystemInformation>'
        f"<systemVendor>{vendor}</systemVendor></acquisitionSystemInformation><encoding>"
        f"{space('encodedSpace', (n_z, n_y, N_X), fov_mm)}{space('reconSpace', (n_z, recon_y, N_X), fov_mm)}"
        f"<encodingLimits>{limits}</encodingLimits><trajectory>{kind}</trajectory></encoding></ismrmrdHeader>"
    )


def write_by_hand(path: Path, lines: list[Line], xml: str) -> None:
    table = np.zeros(len(lines), dtype=TABLE)
    for entry, line in zip(table, lines, strict=True):
        head = entry["head"]
        head["version"], head["flags"] = 1, sum(1 << (flag - 1) for flag in line.flags)
        head["active_channels"], head["number_of_samples"] = line.data.shape
        head["slice_dir"], head["phase_dir"], head["read_dir"] = OBLIQUE
        positions = np.zeros((0, 0)) if line.positions is None else line.positions
        head["trajectory_dimensions"] = positions.shape[1]
        for name, value in line.fields.items():
            (head["idx"] if name in COUNTERS else head)[name] = value
        entry["traj"] = positions.astype(np.float32).ravel()
        entry["data"] = np.ascontiguousarray(line.data.astype(np.complex64)).view(np.float32).ravel()
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset/xml", data=np.array([xml], dtype=object), dtype=h5py.string_dtype("ascii"))
        file.create_dataset("dataset/data", data=table, dtype=TABLE, maxshape=(None,))


def spokes(generator: torch.Generator, *, n_spokes: int = N_SPOKES, scale: float = 1.0) -> np.ndarray:
    """Radial positions (spoke, sample, 2) as (kx, ky) in radians per pixel, each spoke a little displaced."""
    k = radial(n_spokes, N_SAMPLES, golden=True).double().reshape(n_spokes, N_SAMPLES, 2).flip(-1) * 0.99
    return (scale * (k + 0.01 * torch.rand(n_spokes, 1, 2, generator=generator))).numpy()


def noise(generator: torch.Generator, *shape: int) -> np.ndarray:
    return torch.randn(*shape, generator=generator, dtype=torch.complex64).numpy()


def lines_of(generator: torch.Generator, k: np.ndarray, **fields: int) -> list[Line]:
    """One line per spoke with its number as the first encoding step."""
    return [
        Line(noise(generator, N_COILS, N_SAMPLES), positions, kspace_encode_step_1=step, **fields)
        for step, positions in enumerate(k)
    ]


def transform(image: torch.Tensor, trajectory: torch.Tensor) -> torch.Tensor:
    """The centred orthonormal transform of ([z,] y, x) at ``trajectory`` (sample, dim), term by term."""
    axes = [torch.arange(n, dtype=torch.float64) - n // 2 for n in image.shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    angle = -trajectory.double() @ grid.T
    waves = torch.polar(torch.full_like(angle, image.numel() ** -0.5), angle)
    return waves @ image.flatten()


def decisions_of(kspace: KSpace) -> dict[str, str]:
    return {decision.name: str(decision) for decision in kspace.decisions}


def warnings_of(kspace: KSpace) -> dict[str, str]:
    return {decision.name: str(decision) for decision in kspace.decisions if decision.warning}


def stacked(lines: list[Line]) -> torch.Tensor:
    """Samples of the lines one after another, (coil, sample)."""
    return torch.from_numpy(np.concatenate([line.data for line in lines], axis=1))


def scan_along(
    generator: torch.Generator, trajectory: torch.Tensor, batch: tuple[int, ...], axes: tuple[str, ...]
) -> KSpace:
    n_dims = trajectory.shape[-1]
    shape = (4, N_Y, N_X) if n_dims == 3 else (1, N_Y, N_X)
    fov_mm = (6.0 * shape[0], FOV_Y_MM, FOV_X_MM)
    n_slices = 1 if n_dims == 3 else batch[-1]
    positions = tuple(tuple(3.0 + 6.0 * index * d for d in OBLIQUE[0]) for index in range(n_slices))
    data = torch.randn(*batch, N_COILS, trajectory.shape[-2], generator=generator, dtype=torch.complex64)
    acquisition = Acquisition(shape, fov_mm, fov_mm, OBLIQUE, positions, geometry_known=True, echo_time_ms=0.1)
    mask = torch.ones(1)
    return KSpace(data, mask, acquisition, axes, n_dims, trajectory=trajectory, readout_length=N_SAMPLES, decisions=())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scan.h5"


def check_same(back: KSpace, scan: KSpace) -> None:
    mask = scan.mask.expand(*scan.data.shape[: len(scan.batch_axes)], 1, scan.n_samples)
    assert torch.equal(back.mask, mask)
    assert torch.equal(back.data, scan.data * mask)
    assert back.trajectory is not None
    assert scan.trajectory is not None
    assert back.trajectory.dtype == torch.float64
    batch = scan.data.shape[: len(scan.batch_axes)]
    there, here = (k.expand(*batch, -1, -1) * mask.movedim(-2, -1) for k in (back.trajectory, scan.trajectory))
    torch.testing.assert_close(there, here.double(), atol=1e-6, rtol=0)
    assert back.readout_length == scan.readout_length
    assert (back.batch_axes, back.n_dims) == (scan.batch_axes, scan.n_dims)
    assert back.acquisition.encoded_shape == scan.acquisition.encoded_shape
    assert back.acquisition.echo_time_ms == 0.1
    np.testing.assert_allclose(
        *(k.acquisition.encoded_grid(n_slices=scan.n_slices).affine_lps() for k in (back, scan)), atol=1e-4
    )


def test_writing_and_reading_a_stack_of_slices_changes_nothing(path: Path, generator: torch.Generator) -> None:
    scan = scan_along(generator, radial(N_SPOKES, N_SAMPLES, golden=True), (3,), ("slice",))
    mask = torch.ones(3, 1, N_SPOKES, N_SAMPLES)
    mask[1, :, 2] = 0  # a readout that one slice lacks
    mask[:, :, 4, :3] = 0  # one that begins late, and one that ends early
    mask[:, :, 5, -2:] = 0
    scan = replace(
        scan,
        mask=mask.flatten(2),
        noise=torch.randn(N_COILS, 31, generator=generator, dtype=torch.complex64),
    )
    write_ismrmrd(path, scan)
    back = read(path)
    check_same(back, scan)
    assert back.trajectory is not None
    assert back.trajectory.shape == (N_SPOKES * N_SAMPLES, 2)
    assert back.noise is not None
    assert torch.equal(back.noise, scan.noise)
    assert set(warnings_of(back)) == {"missing_readouts"}
    assert "1 of 21" in warnings_of(back)["missing_readouts"]


def test_writing_and_reading_a_volume_changes_nothing(path: Path, generator: torch.Generator) -> None:
    scan = scan_along(generator, radial(N_SPOKES, N_SAMPLES, n_dims=3), (2,), ("contrast",))
    write_ismrmrd(path, scan)
    back = read_ismrmrd(path)
    check_same(back, scan)
    assert not warnings_of(back)


@pytest.mark.parametrize("shape", [(3, 1), (3, 2), (1, 2)])
def test_writing_and_reading_keeps_one_trajectory_per_image(
    path: Path, generator: torch.Generator, shape: tuple[int, int]
) -> None:
    k = radial(6 * N_SPOKES, N_SAMPLES, golden=True).reshape(3, 2, -1, 2)[: shape[0], : shape[1]]
    scan = scan_along(generator, k, (3, 2), ("repetition", "slice"))
    write_ismrmrd(path, scan)
    back = read_ismrmrd(path)
    check_same(back, scan)
    assert back.trajectory is not None
    assert back.trajectory.shape[:2] == shape


def test_a_trajectory_without_readouts_is_written_as_one(path: Path, generator: torch.Generator) -> None:
    scan = replace(scan_along(generator, radial(N_SPOKES, N_SAMPLES), (1,), ("slice",)), readout_length=None)
    write_ismrmrd(path, scan)
    back = read_ismrmrd(path)
    assert back.readout_length == N_SPOKES * N_SAMPLES
    check_same(replace(back, readout_length=None), scan)


def test_a_small_trajectory_keeps_its_size(path: Path, generator: torch.Generator) -> None:
    scan = scan_along(generator, 0.01 * radial(N_SPOKES, N_SAMPLES), (1,), ("slice",))
    write_ismrmrd(path, scan)
    back = read_ismrmrd(path)
    check_same(back, scan)
    assert "cycles-per-pixel" in warnings_of(back)["trajectory_unit"]


@pytest.mark.parametrize(
    ("unit", "x", "y"),
    [
        ("cycles-per-pixel", 1 / (2 * math.pi), 1 / (2 * math.pi)),
        ("radians-per-pixel", 1.0, 1.0),
        ("index", N_X / (2 * math.pi), N_Y / (2 * math.pi)),
        ("1/m", N_X / (2 * math.pi * FOV_X_MM / 1000), N_Y / (2 * math.pi * FOV_Y_MM / 1000)),
    ],
)
def test_samples_of_every_unit_are_those_of_the_explicit_transform(
    path: Path, generator: torch.Generator, unit: str, x: float, y: float
) -> None:
    image = torch.randn(N_Y, N_X, generator=generator, dtype=torch.complex128)
    k = spokes(generator)
    lines = [
        Line(transform(image, torch.from_numpy(spoke[:, ::-1].copy())).numpy()[None], spoke * [x, y]) for spoke in k
    ]
    write_by_hand(path, lines, header())
    back = read(path)
    assert back.trajectory is not None
    assert f"trajectory_unit: {unit}" in decisions_of(back)["trajectory_unit"]
    assert back.data.shape == (1, 1, N_SPOKES * N_SAMPLES)
    assert back.acquisition.encoded_shape == (1, N_Y, N_X)
    torch.testing.assert_close(
        transform(image, back.trajectory), back.data[0, 0].to(torch.complex128), atol=2e-5, rtol=0
    )
    assert not warnings_of(back)
    assert torch.equal(read(path, ReadOptions(trajectory_unit=unit)).trajectory, back.trajectory)  # type: ignore[arg-type]


def test_the_unit_and_the_order_of_components_can_be_stated(path: Path, generator: torch.Generator) -> None:
    k = spokes(generator, scale=0.05)
    write_by_hand(path, lines_of(generator, k), header())
    expected = torch.from_numpy(k.reshape(-1, 2)).flip(-1)
    assert "trajectory_unit" in warnings_of(read(path))
    back = read(path, ReadOptions(trajectory_unit="radians-per-pixel"))
    torch.testing.assert_close(back.trajectory, expected, atol=1e-6, rtol=0)
    swapped = read(path, ReadOptions(trajectory_unit="radians-per-pixel", trajectory_axes=("ky", "kx")))
    torch.testing.assert_close(swapped.trajectory, expected.flip(-1), atol=1e-6, rtol=0)
    for axes in (("kx",), ("kx", "kx"), ("kx", "ky", "kz"), ("kx", "time")):
        with pytest.raises(InputError, match="its lines have 2 components; give kx, ky"):
            read(path, ReadOptions(trajectory_axes=axes))


def test_options_that_contradict_the_lines_are_refused(path: Path, generator: torch.Generator) -> None:
    write_by_hand(path, lines_of(generator, spokes(generator)), header())
    with pytest.raises(InputError, match="leave --trajectory-file out"):
        read(path, ReadOptions(trajectory=path))
    write_by_hand(path, cartesian_lines(generator, np.eye(2)), header(kind="cartesian"))
    with pytest.raises(InputError, match="--trajectory-unit has no meaning"):
        read(path, ReadOptions(trajectory_unit="index"))


def test_reciprocal_metres_need_a_field_of_view(path: Path, generator: torch.Generator) -> None:
    k = spokes(generator)
    per_radian = np.array([1 / (2 * math.pi * 0.002), 1 / (2 * math.pi * 0.003)])  # pixels of 2 mm and 3 mm
    write_by_hand(path, lines_of(generator, k * per_radian), header().replace(f"<x>{FOV_X_MM}</x>", ""))
    with pytest.raises(InputError, match="needs a positive field of view"):
        read(path)
    back = read(path, ReadOptions(voxel_mm=(2.0, 3.0, 4.0)))
    torch.testing.assert_close(back.trajectory, torch.from_numpy(k.reshape(-1, 2)).flip(-1), atol=2e-6, rtol=0)
    assert back.acquisition.encoded_fov_mm == (4.0, 36.0, 20.0)


def test_a_person_states_the_matrix_that_the_header_lacks(path: Path, generator: torch.Generator) -> None:
    k = spokes(generator)
    xml = header().replace(f"<y>{N_Y}</y>", "")
    write_by_hand(path, lines_of(generator, k), xml)
    with pytest.raises(InputError, match=r"no matrix of the image; give its pixels by --matrix y,x"):
        read(path)
    assert read(path, ReadOptions(matrix=(20, 24))).acquisition.encoded_shape == (1, 20, 24)
    with pytest.raises(InputError, match="two or three positive sizes"):
        read(path, ReadOptions(matrix=(20,)))
    write_by_hand(path, lines_of(generator, k), header().replace(f"<y>{N_Y}</y>", "", 1))
    back = read(path)
    assert back.acquisition.encoded_shape == (1, N_Y, N_X)
    assert "matrix" in warnings_of(back)


def test_a_matrix_that_counts_spokes_is_not_that_of_the_image(path: Path, generator: torch.Generator) -> None:
    n_y = round(N_X * FOV_Y_MM / FOV_X_MM)
    write_by_hand(path, lines_of(generator, spokes(generator)), header(n_y=402, recon_y=n_y))
    back = read(path)
    assert back.acquisition.encoded_shape == (1, n_y, N_X)
    assert back.acquisition.encoded_fov_mm == (4.0, FOV_Y_MM, FOV_X_MM)
    assert "402 rows" in warnings_of(back)["matrix"]
    assert read(path, ReadOptions(matrix=(402, N_X))).acquisition.encoded_shape == (1, 402, N_X)


def with_column(k: np.ndarray, column: np.ndarray | float) -> np.ndarray:
    return np.concatenate([k, np.broadcast_to(column, k.shape[:2])[..., None]], axis=-1)


def test_a_third_component_of_one_slice_is_no_dimension(path: Path, generator: torch.Generator) -> None:
    k = spokes(generator)
    write_by_hand(path, lines_of(generator, k), header())
    planar = read(path)
    radius = np.linalg.norm(k, axis=-1)
    for column, logged in ((0.0, False), (0.25, True), (radius, True)):
        write_by_hand(path, lines_of(generator, with_column(k, column)), header())
        back = read(path)
        assert back.n_dims == 2
        assert torch.equal(back.trajectory, planar.trajectory)  # type: ignore[arg-type]
        assert ("trajectory_components" in decisions_of(back)) == logged
    assert "density weight" in warnings_of(back)["trajectory_components"]
    write_by_hand(path, lines_of(generator, with_column(with_column(k, 0.0), radius)), header())
    assert torch.equal(read(path).trajectory, planar.trajectory)  # type: ignore[arg-type]
    write_by_hand(path, lines_of(generator, with_column(k, k[..., 0])), header())
    with pytest.raises(InputError, match=r"three components, but its header encodes 1 partition"):
        read(path)
    as_asked = read(path, ReadOptions(trajectory_axes=("kx", "ky")))
    assert torch.equal(as_asked.trajectory, planar.trajectory)  # type: ignore[arg-type]
    assert read(path, ReadOptions(matrix=(4, N_Y, N_X))).n_dims == 3


def test_a_volume_samples_where_its_three_components_say(path: Path, generator: torch.Generator) -> None:
    image = torch.randn(4, N_Y, N_X, generator=generator, dtype=torch.complex128)
    k = radial(N_SPOKES, N_SAMPLES, n_dims=3).double().reshape(N_SPOKES, N_SAMPLES, 3) * 0.99
    data = [transform(image, spoke).numpy()[None] for spoke in k]
    cycles = (k / (2 * math.pi)).flip(-1).numpy()
    write_by_hand(path, [Line(y, spoke) for y, spoke in zip(data, cycles, strict=True)], header(n_z=4))
    back = read(path)
    assert back.n_dims == 3
    assert back.batch_axes == ()
    assert back.trajectory is not None
    torch.testing.assert_close(transform(image, back.trajectory), back.data[0].to(torch.complex128), atol=2e-5, rtol=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_partitions_of_a_planar_trajectory_are_counted(path: Path, generator: torch.Generator, weighted: bool) -> None:
    n_z = 5
    image = torch.randn(n_z, N_Y, N_X, generator=generator, dtype=torch.complex128)
    k = spokes(generator, n_spokes=3)
    lines = []
    for partition in (4, 1, 2, 0, 3):
        kz = 2 * math.pi * (partition - n_z // 2) / n_z
        for spoke, positions in enumerate(k):
            volume = torch.from_numpy(np.concatenate([np.full((N_SAMPLES, 1), kz), positions[:, ::-1]], axis=1))
            stored = np.concatenate([positions, np.linalg.norm(positions, axis=1, keepdims=True)], axis=1)
            steps = {"kspace_encode_step_1": spoke, "kspace_encode_step_2": partition + 1}
            data = transform(image, volume).numpy()[None]
            lines.append(Line(data, stored if weighted else positions, **steps))
    limits = (
        "<kspace_encoding_step_2><minimum>1</minimum><maximum>5</maximum><center>3</center></kspace_encoding_step_2>"
    )
    write_by_hand(path, lines, header(n_z=n_z, limits=limits))
    back = read(path)
    assert back.trajectory is not None
    assert back.trajectory.shape == (n_z * 3 * N_SAMPLES, 3)
    assert (back.trajectory[:, 0].diff() >= 0).all()
    torch.testing.assert_close(transform(image, back.trajectory), back.data[0].to(torch.complex128), atol=2e-5, rtol=0)
    assert ("trajectory_components" in warnings_of(back)) == weighted
    lines[0].fields["kspace_encode_step_2"] = 9
    lines[5].fields["kspace_encode_step_2"] = 9
    write_by_hand(path, lines, header(n_z=n_z, limits=limits))
    back = read(path)
    assert "2 of 15 imaging lines" in warnings_of(back)["lines_outside"]
    assert back.data.shape[-1] == 13 * N_SAMPLES


def cartesian_lines(generator: torch.Generator, turn: np.ndarray) -> list[Line]:
    """All rows of a slice, every other one reversed, with positions turned by a matrix (component, (kx, ky))."""
    lines = []
    for row in range(N_Y):
        positions = np.stack([np.arange(N_X) - N_X / 2, np.full(N_X, row - N_Y / 2)], axis=1) @ turn.T
        flags = (REVERSE,) if row % 2 else ()
        positions = positions[::-1] if row % 2 else positions
        data = noise(generator, N_COILS, N_X)
        lines.append(Line(data, positions, *flags, kspace_encode_step_1=row, center_sample=N_X // 2))
    return lines


@pytest.mark.parametrize("kind", ["cartesian", "epi"])
@pytest.mark.parametrize(
    "turn", [np.diag([40.0, 30.0]), np.array([[0.0, 1.0], [7.0, 0.0], [1.0, 1.0]]), np.zeros((3, 2))]
)
def test_positions_that_the_counters_tell_already_are_left_aside(
    path: Path, generator: torch.Generator, kind: str, turn: np.ndarray
) -> None:
    lines = cartesian_lines(generator, turn)
    write_by_hand(path, lines, header(kind=kind))
    back = read(path)
    for line in lines:
        line.positions = None
    write_by_hand(path, lines, header(kind=kind))
    assert back.is_cartesian
    assert torch.equal(back.data, read(path).data)
    assert "trajectory: ignored" in [str(decision)[:19] for decision in back.decisions]
    assert ("trajectory" in warnings_of(back)) == (kind == "epi")


def test_positions_of_another_kind_than_the_header_names_are_believed(path: Path, generator: torch.Generator) -> None:
    lines = lines_of(generator, spokes(generator))
    write_by_hand(path, lines, header())
    stated = read(path)
    for xml in (header(kind="cartesian"), header(kind="epi"), header().replace("<trajectory>radial</trajectory>", "")):
        write_by_hand(path, lines, xml)
        back = read(path)
        assert torch.equal(back.data, stated.data)
        assert torch.equal(back.trajectory, stated.trajectory)  # type: ignore[arg-type]
        assert "do not follow the line counters" in warnings_of(back)["trajectory"]


def test_broken_positions_of_a_cartesian_scan_are_a_warning(path: Path, generator: torch.Generator) -> None:
    lines = cartesian_lines(generator, np.eye(2))
    write_by_hand(path, lines, header(kind="cartesian"))
    whole = read(path)
    lines[3].positions = np.full((N_X, 2), np.nan)
    write_by_hand(path, lines, header(kind="cartesian"))
    back = read(path)
    assert torch.equal(back.data, whole.data)
    assert "10 of 120 positions" in warnings_of(back)["trajectory"]


def test_reversed_readouts_stay_in_the_order_of_their_recording(path: Path, generator: torch.Generator) -> None:
    k = spokes(generator)
    lines = lines_of(generator, k)
    lines[3] = Line(lines[3].data, k[3], REVERSE, kspace_encode_step_1=3)
    write_by_hand(path, lines, header())
    back = read(path)
    assert torch.equal(back.data[0], stacked(lines))
    torch.testing.assert_close(back.trajectory, torch.from_numpy(k.reshape(-1, 2)).flip(-1), atol=1e-6, rtol=0)


def test_discarded_samples_take_their_positions_with_them(path: Path, generator: torch.Generator) -> None:
    k = spokes(generator)
    k[:, :2] = 50.0  # a ramp outside of k-space
    lines = lines_of(generator, k, discard_pre=2, discard_post=3)
    lines[4].fields["discard_post"] = 5
    write_by_hand(path, lines, header())
    back = read(path)
    assert back.readout_length == N_SAMPLES - 5
    measured = back.mask[0, 0].bool().reshape(N_SPOKES, -1)
    assert measured.sum(dim=1).tolist() == [11, 11, 11, 11, 9, 11, 11]
    expected = np.concatenate([line.data[:, 2 : 16 - line.fields["discard_post"]] for line in lines], axis=1)
    np.testing.assert_array_equal(back.data[0][:, measured.flatten()].numpy(), expected)
    positions = np.concatenate([line.positions[2 : 16 - line.fields["discard_post"], ::-1] for line in lines])  # type: ignore[index]
    assert back.trajectory is not None
    np.testing.assert_allclose(back.trajectory[measured.flatten()], positions, atol=1e-6)
    assert back.data[0, :, ~measured.flatten()].abs().max() == 0


def test_readouts_of_several_lengths_follow_one_another(path: Path, generator: torch.Generator) -> None:
    lines = lines_of(generator, spokes(generator))
    for line, n in zip(lines, (16, 9, 16, 3, 16, 16, 1), strict=True):
        line.data, line.positions = line.data[:, :n], line.positions[:n]  # type: ignore[index]
    write_by_hand(path, lines, header())
    back = read(path)
    assert back.readout_length is None
    assert torch.equal(back.data[0], stacked(lines))
    assert back.mask.min() == 1
    assert back.trajectory is not None
    np.testing.assert_allclose(back.trajectory.flip(-1), np.concatenate([line.positions for line in lines]), atol=1e-6)  # type: ignore[misc]


def test_readouts_are_placed_by_their_counters_and_shared_among_repetitions(
    path: Path, generator: torch.Generator
) -> None:
    k = spokes(generator)
    lines = [line for repetition in range(2) for line in lines_of(generator, k, repetition=repetition)]
    write_by_hand(path, lines, header())
    sorted_by_counter = read(path)
    assert sorted_by_counter.batch_axes == ("repetition", "slice")
    assert torch.equal(sorted_by_counter.data[1, 0], stacked(lines[N_SPOKES:]))
    assert sorted_by_counter.trajectory is not None
    assert sorted_by_counter.trajectory.shape == (N_SPOKES * N_SAMPLES, 2)
    order = np.random.default_rng(0).permutation(len(lines))
    write_by_hand(path, [lines[index] for index in order], header())
    back = read(path)
    assert torch.equal(back.data, sorted_by_counter.data)
    assert torch.equal(back.trajectory, sorted_by_counter.trajectory)  # type: ignore[arg-type]


@pytest.mark.parametrize("counted", [True, False])
def test_counters_that_run_on_and_counters_that_stand_still_leave_the_order(
    path: Path, generator: torch.Generator, counted: bool
) -> None:
    k = spokes(generator, n_spokes=3 * N_SPOKES)
    lines = lines_of(generator, k)
    for index, line in enumerate(lines):
        line.fields = {"repetition": index // N_SPOKES, "kspace_encode_step_1": index * counted}
    write_by_hand(path, lines, header(kind="goldenangle"))
    back = read(path)
    assert back.data.shape == (3, 1, N_COILS, N_SPOKES * N_SAMPLES)
    assert torch.equal(torch.cat(tuple(back.data[:, 0]), -1), stacked(lines))
    assert back.trajectory is not None
    assert back.trajectory.shape == (3, 1, N_SPOKES * N_SAMPLES, 2)
    np.testing.assert_allclose(back.trajectory.flip(-1).reshape(k.shape), k, atol=1e-6)
    assert not warnings_of(back)


def test_averages_with_the_same_trajectory_are_averaged(path: Path, generator: torch.Generator) -> None:
    k = spokes(generator)
    lines = [line for average in range(2) for line in lines_of(generator, k, average=average)]
    del lines[-1]
    write_by_hand(path, lines, header())
    back = read(path)
    assert back.batch_axes == ("slice",)
    expected = stacked(lines[:N_SPOKES])
    measured = (N_SPOKES - 1) * N_SAMPLES
    expected[:, :measured] = (expected[:, :measured] + stacked(lines[N_SPOKES:])) / 2
    torch.testing.assert_close(back.data[0], expected)
    assert "2 averaged" in decisions_of(back)["averages"]
    assert not warnings_of(back)
    split = read(path, ReadOptions(average=False))
    assert split.batch_axes == ("average", "slice")
    assert torch.equal(split.data[0, 0], stacked(lines[:N_SPOKES]))
    assert split.mask.sum().item() == len(lines) * N_SAMPLES


def test_averages_with_trajectories_of_their_own_are_further_readouts(path: Path, generator: torch.Generator) -> None:
    lines = [line for average in range(2) for line in lines_of(generator, spokes(generator), average=average)]
    write_by_hand(path, lines, header())
    back = read(path)
    assert back.data.shape == (1, N_COILS, 2 * N_SPOKES * N_SAMPLES)
    order = [average * N_SPOKES + spoke for spoke in range(N_SPOKES) for average in range(2)]
    assert torch.equal(back.data[0], stacked([lines[index] for index in order]))
    assert "2 as further readouts" in decisions_of(back)["averages"]


def test_lines_that_are_no_image_are_left_out(path: Path, generator: torch.Generator) -> None:
    k = spokes(generator)
    lines = lines_of(generator, k, sample_time_us=5)
    others = [
        Line(noise(generator, N_COILS, 40), None, NOISE, sample_time_us=20),
        Line(noise(generator, N_COILS, 20), None, NAVIGATION),
        Line(noise(generator, N_COILS, N_SAMPLES), k[0], CALIBRATION),
    ]
    write_by_hand(path, others + lines, header())
    back = read(path)
    assert torch.equal(back.data[0], stacked(lines))
    assert back.calibration is None
    assert "1 lines are for calibration only" in decisions_of(back)["calibration_lines"]
    assert back.noise is not None
    torch.testing.assert_close(back.noise, 2 * torch.from_numpy(others[0].data))


def test_siemens_samples_are_conjugated_as_those_of_cartesian_scans_are(path: Path, generator: torch.Generator) -> None:
    image = torch.randn(N_Y, N_X, generator=generator, dtype=torch.complex128)
    k = spokes(generator)
    lines = [Line(transform(image, -torch.from_numpy(s[:, ::-1].copy())).numpy()[None], s) for s in k]
    write_by_hand(path, lines, header(vendor="SIEMENS"))
    back = read(path)
    assert back.trajectory is not None
    expected = transform(image.conj(), back.trajectory)
    torch.testing.assert_close(back.data[0, 0].to(torch.complex128), expected, atol=2e-5, rtol=0)
    assert "conjugated" in decisions_of(back)["fourier_sign"]
    back = replace(back, acquisition=replace(back.acquisition, echo_time_ms=0.1))
    write_ismrmrd(path, back, overwrite=True)
    check_same(read(path), back)


def nan_position(lines: list[Line]) -> None:
    lines[2].positions = lines[2].positions * 1.0  # type: ignore[operator]
    lines[2].positions[4:6, 1] = np.nan


def no_position_in_one_line(lines: list[Line]) -> None:
    lines[2].positions = None


def nine_components(lines: list[Line]) -> None:
    for line in lines:
        line.positions = np.ones((N_SAMPLES, 9))


def one_component(lines: list[Line]) -> None:
    for line in lines:
        line.positions = line.positions[:, :1]  # type: ignore[index]


def too_few_positions(lines: list[Line]) -> None:
    lines[5].positions = lines[5].positions[:-1]  # type: ignore[index]


def all_zero(lines: list[Line]) -> None:
    for line in lines:
        line.positions = np.zeros((N_SAMPLES, 2))


def no_trajectory(lines: list[Line]) -> None:
    for line in lines:
        line.positions = None


def beyond_the_image(lines: list[Line]) -> None:
    for line in lines:
        line.positions = line.positions * 1e5  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan_position, "2 of 112 positions in the trajectory of .* NaN or infinite, the first in line 2"),
        (no_position_in_one_line, "trajectories with 0 or 2 components; expected 2 or 3 everywhere"),
        (nine_components, "trajectories with 9 components"),
        (one_component, "trajectories with 1 components"),
        (too_few_positions, "of 1 lines of .* line 5 holds 30 numbers for 16 samples × 2 components"),
        (all_zero, "'radial', but its lines do not hold the positions"),
        (no_trajectory, "'radial', but its lines do not hold the positions"),
        (beyond_the_image, "reaches .* beyond π"),
    ],
)
def test_broken_trajectories_are_refused(
    path: Path, generator: torch.Generator, change: Callable[[list[Line]], Any], message: str
) -> None:
    lines = lines_of(generator, spokes(generator))
    change(lines)
    write_by_hand(path, lines, header())
    with pytest.raises(InputError, match=message):
        read(path)


def test_a_table_without_lists_of_positions_is_refused(path: Path, generator: torch.Generator) -> None:
    write_by_hand(path, lines_of(generator, spokes(generator)), header())
    with h5py.File(path, "r+") as file:
        table = file["dataset/data"][()]
        del file["dataset/data"]
        dtype = np.dtype([("head", HEAD), ("data", FLOATS)])
        without = np.empty(len(table), dtype=dtype)
        without["head"], without["data"] = table["head"], table["data"]
        file.create_dataset("dataset/data", data=without, dtype=dtype)
    with pytest.raises(InputError, match="no field 'traj' with lists of floats"):
        read(path)


def test_absurd_sizes_are_refused_before_anything_is_allocated(path: Path, generator: torch.Generator) -> None:
    lines = lines_of(generator, spokes(generator))
    write_by_hand(path, lines, header(n_y=2_000_000_000, recon_y=2_000_000_000))
    with pytest.raises(InputError, match=r"image of 1 × 2000000000 × 10 from .* would need 149 GiB"):
        read(path)
    write_by_hand(path, lines, header())
    with pytest.raises(InputError, match=r"The trajectory in .* would need"):
        read(path, ReadOptions(memory_limit_bytes=10_000))
    wide = [Line(np.tile(line.data, (10, 1)), line.positions) for line in lines]
    write_by_hand(path, wide, header())
    with pytest.raises(InputError, match=r"The scan in .* would need"):
        read(path, ReadOptions(memory_limit_bytes=20_000))
    # One readout in each of many images would be padded to all readouts of the first.
    few = [Line(lines[0].data, lines[0].positions * (1 - index / 3000)) for index in range(3000)]  # type: ignore[operator]
    many = [Line(line.data, line.positions, repetition=index) for index, line in enumerate(few)]
    write_by_hand(path, few + many, header())
    with pytest.raises(InputError, match=r"The trajectory in .* would need"):
        read(path, ReadOptions(memory_limit_bytes=2**30))


def test_writing_refuses_what_readers_would_misunderstand(path: Path, generator: torch.Generator) -> None:
    scan = scan_along(generator, torch.zeros(N_SPOKES * N_SAMPLES, 2), (1,), ("slice",))
    with pytest.raises(InputError, match="trajectory is zero everywhere"):
        write_ismrmrd(path, scan)
    long = replace(scan_along(generator, radial(2, 40_000), (1,), ("slice",)), readout_length=None)
    with pytest.raises(InputError, match=r"80000 entries along an axis; .* give the length of its readouts"):
        write_ismrmrd(path, long)
    assert not path.exists()
