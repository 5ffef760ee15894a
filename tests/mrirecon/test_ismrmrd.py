import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from mrirecon.acquisition import Acquisition
from mrirecon.io.ismrmrd import looks_like_ismrmrd, read_ismrmrd, write_ismrmrd
from mrirecon.io.ismrmrd_header import Limit, parse_header
from mrirecon.io.lines import crop_field_of_view, reverse_field_of_view
from mrirecon.io.options import ReadOptions
from mrirecon.kspace import KSpace
from operators.errors import InputError

N_Y, N_X, N_COILS, N_SLICES = 12, 10, 3, 2
OBLIQUE = (
    (0.48, -0.64, 0.6),
    (0.8, 0.6, 0.0),
    (-0.36, 0.48, 0.8),
)


def samples(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.complex64)


def stack_of(data: torch.Tensor, mask: torch.Tensor | None = None, **header: Any) -> KSpace:
    """A two-dimensional scan (slice, coil, ky, kx) with 2 mm × 2 mm × 5 mm voxels, 6 mm apart."""
    n_y, n_x = data.shape[-2:]
    mask = torch.ones(1, 1, n_y, n_x) if mask is None else mask
    positions = tuple(tuple(7.0 + 6.0 * index * d for d in OBLIQUE[0]) for index in range(len(data)))
    facts = {
        "encoded_shape": (1, n_y, n_x),
        "encoded_fov_mm": (5.0, 2.0 * n_y, 2.0 * n_x),
        "recon_fov_mm": (5.0, 2.0 * n_y, 2.0 * n_x),
        "directions": OBLIQUE,
        "slice_positions_mm": positions,
        "geometry_known": True,
    }
    return KSpace(data * mask, mask, Acquisition(**(facts | header)))


def edit_table(path: Path, change: Callable[[np.ndarray], np.ndarray | None]) -> None:
    """Change the acquisition table of a file: in place, or by the table that ``change`` returns."""
    with h5py.File(path, "r+") as file:
        table = file["dataset/data"][()]
        dtype = file["dataset/data"].dtype
        changed = change(table)
        del file["dataset/data"]
        file.create_dataset("dataset/data", data=table if changed is None else changed, dtype=dtype)


def edit_header(path: Path, old: str, new: str) -> None:
    with h5py.File(path, "r+") as file:
        text = file["dataset/xml"][0].decode()
        assert old in text
        file["dataset/xml"][0] = text.replace(old, new)


def add_flag(table: np.ndarray, line: int | slice, flag: int) -> None:
    table["head"]["flags"][line] |= np.uint64(1 << (flag - 1))


def repeated(table: np.ndarray, lines: list[int]) -> np.ndarray:
    """The table with copies of some lines at its end."""
    indices = [*range(len(table)), *lines]
    longer = np.empty(len(indices), dtype=table.dtype)
    for target, source in enumerate(indices):
        longer[target] = table[source]
        longer["data"][target] = table["data"][source].copy()
    return longer


def warnings_of(kspace: KSpace) -> dict[str, str]:
    return {decision.name: str(decision) for decision in kspace.decisions if decision.warning}


def image_of(kspace: torch.Tensor) -> torch.Tensor:
    """Image by the explicit centred orthonormal inverse transform of the last two dimensions."""
    matrices = []
    for n in kspace.shape[-2:]:
        index = torch.arange(n, dtype=torch.float64) - n // 2
        angle = 2 * torch.pi * torch.outer(index, index) / n
        matrices.append(torch.polar(torch.full_like(angle, n**-0.5), angle))
    return matrices[0] @ kspace.to(torch.complex128) @ matrices[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scan.h5"


@pytest.fixture
def scan(generator: torch.Generator) -> KSpace:
    return stack_of(samples(generator, N_SLICES, N_COILS, N_Y, N_X))


def test_writing_and_reading_changes_nothing(path: Path, generator: torch.Generator) -> None:
    mask = torch.zeros(1, 1, N_Y, N_X)
    mask[..., ::2, :] = 1
    scan = stack_of(samples(generator, N_SLICES, N_COILS, N_Y, N_X), mask, field_strength_t=0.055, echo_time_ms=20.0)
    calibration = samples(generator, N_SLICES, N_COILS, N_Y, N_X)
    calibration[..., :5, :] = 0
    calibration[..., 8:, :] = 0
    calibration[..., 6, :] = scan.data[..., 6, :]  # one line serves both purposes
    scan = replace(scan, noise=samples(generator, N_COILS, 31), calibration=calibration)
    write_ismrmrd(path, scan)
    back = read_ismrmrd(path)
    assert torch.equal(back.data, scan.data)
    assert torch.equal(back.mask, mask.expand(N_SLICES, 1, N_Y, N_X))
    assert back.noise is not None
    assert torch.equal(back.noise, scan.noise)
    assert back.calibration is not None
    assert torch.equal(back.calibration, calibration)
    assert back.batch_axes == ("slice",)
    assert dict(back.counts) == {
        "acquisitions": N_SLICES * (6 + 2) + 1,
        "imaging lines": N_SLICES * 6,
        "calibration lines": N_SLICES * 3,
        "calibration-only lines": N_SLICES * 2,
        "noise lines": 1,
    }
    assert not warnings_of(back)
    for name in ("encoded_shape", "encoded_fov_mm", "recon_fov_mm", "field_strength_t", "echo_time_ms"):
        assert getattr(back.acquisition, name) == getattr(scan.acquisition, name)
    np.testing.assert_allclose(
        back.acquisition.encoded_grid(n_slices=N_SLICES).affine_lps(),
        scan.acquisition.encoded_grid(n_slices=N_SLICES).affine_lps(),
        atol=1e-4,
    )


def test_repetitions_contrasts_and_volumes_come_back(path: Path, generator: torch.Generator) -> None:
    data = samples(generator, 2, 3, N_COILS, 4, 6, 8)
    acquisition = Acquisition((4, 6, 8), (20.0, 12.0, 16.0), (20.0, 12.0, 16.0), OBLIQUE, ((1.0, 2.0, 3.0),))
    mask = (torch.rand(4, 6, 1, generator=generator) < 0.7).float()
    mask[2, 3] = 1
    scan = KSpace(data * mask, mask, replace(acquisition, geometry_known=True), ("repetition", "contrast"), 3)
    write_ismrmrd(path, scan)
    back = read_ismrmrd(path)
    assert back.batch_axes == ("repetition", "contrast")
    assert back.n_dims == 3
    assert torch.equal(back.data, scan.data)
    assert torch.equal(back.mask, mask.expand(2, 3, 1, 4, 6, 8))
    np.testing.assert_allclose(
        back.acquisition.encoded_grid(n_slices=4).affine_lps(),
        scan.acquisition.encoded_grid(n_slices=4).affine_lps(),
        atol=1e-4,
    )


def test_partly_measured_readouts_come_back(path: Path, generator: torch.Generator) -> None:
    mask = torch.zeros(1, 1, N_Y, N_X)
    mask[..., 3:10, 1:7] = 1
    scan = stack_of(samples(generator, N_SLICES, 1, N_Y, N_X), mask)
    write_ismrmrd(path, scan)
    back = read_ismrmrd(path)
    assert torch.equal(back.data, scan.data)
    assert torch.equal(back.mask, mask.expand(N_SLICES, 1, N_Y, N_X))
    assert back.fill_rate == pytest.approx(7 * 6 / (N_Y * N_X))


def test_the_image_of_the_file_is_the_explicit_inverse_transform(path: Path, generator: torch.Generator) -> None:
    image = torch.zeros(1, 1, N_Y, N_X, dtype=torch.complex128)
    image[0, 0, 2, 7] = 1 + 2j
    write_ismrmrd(path, stack_of(image_of(image.conj()).conj().to(torch.complex64)))
    torch.testing.assert_close(image_of(read_ismrmrd(path).data), image, atol=1e-6, rtol=0)


def test_lines_are_placed_by_index_not_by_arrival(path: Path, scan: KSpace) -> None:
    write_ismrmrd(path, scan)
    edit_table(path, lambda table: table[np.random.default_rng(0).permutation(len(table))])
    assert torch.equal(read_ismrmrd(path).data, scan.data)


def test_the_centre_of_the_limits_places_partial_fourier_lines(path: Path, scan: KSpace) -> None:
    write_ismrmrd(path, scan)

    def without_the_first_rows(table: np.ndarray) -> np.ndarray:
        table = table[table["head"]["idx"]["kspace_encode_step_1"] >= 4]
        table["head"]["idx"]["kspace_encode_step_1"] -= 4
        return table

    edit_table(path, without_the_first_rows)
    edit_header(path, f"<maximum>{N_Y - 1}</maximum>\n        <center>6<", "<maximum>7</maximum><center>2<")
    back = read_ismrmrd(path)
    assert torch.equal(back.data[..., 4:, :], scan.data[..., 4:, :])
    assert back.mask[..., 0].tolist() == [[[0.0] * 4 + [1.0] * 8]] * N_SLICES


def test_lines_that_are_no_image_are_left_out_and_counted(path: Path, scan: KSpace) -> None:
    write_ismrmrd(path, scan)
    flags = (19, 20, 23, 24, 26, 27, 28, 29)

    def with_others(table: np.ndarray) -> np.ndarray:
        longer = repeated(table, [5] * len(flags))
        for line, flag in enumerate(flags, start=len(table)):
            longer["data"][line] = np.full_like(longer["data"][line], 1e3)
            add_flag(longer, line, flag)
        return longer

    edit_table(path, with_others)
    back = read_ismrmrd(path)
    assert torch.equal(back.data, scan.data)
    assert dict(back.counts) == {
        "acquisitions": N_SLICES * N_Y + 8,
        "imaging lines": N_SLICES * N_Y,
        "calibration lines": 1,
        "calibration-only lines": 1,
        "noise lines": 1,
        "navigation lines": 1,
        "phase correction lines": 1,
        "feedback lines": 2,
        "dummy lines": 1,
        "surface coil correction lines": 1,
    }
    assert back.noise is not None
    assert back.noise.shape == (N_COILS, N_X)
    assert back.calibration is not None
    assert back.calibration[0, :, 5].eq(1e3 + 1e3j).all()


def test_reversed_readouts_are_flipped(path: Path, generator: torch.Generator) -> None:
    mask = torch.zeros(1, 1, N_Y, N_X)
    mask[..., 2:9] = 1
    scan = stack_of(samples(generator, 1, N_COILS, N_Y, N_X), mask)
    write_ismrmrd(path, scan)

    def reverse_every_other(table: np.ndarray) -> None:
        add_flag(table, slice(1, None, 2), 22)
        for line in range(1, len(table), 2):
            stored = table["data"][line].view(np.complex64).reshape(N_COILS, N_X)[:, ::-1]
            table["data"][line] = np.ascontiguousarray(stored).view(np.float32).ravel()
        head = table["head"][1::2]
        head["discard_pre"], head["discard_post"] = head["discard_post"].copy(), head["discard_pre"].copy()

    edit_table(path, reverse_every_other)
    back = read_ismrmrd(path)
    assert torch.equal(back.data, scan.data)
    assert dict(back.counts)["reversed lines"] == N_Y // 2


def test_averages_are_divided_by_the_count_of_each_line(path: Path, generator: torch.Generator) -> None:
    scan = stack_of(samples(generator, 1, 2, N_Y, N_X))
    write_ismrmrd(path, scan)

    def with_averages(table: np.ndarray) -> np.ndarray:
        longer = repeated(table, [3, 3, 7])
        longer["head"]["idx"]["average"][N_Y:] = [1, 2, 1]
        longer["data"][N_Y] = longer["data"][N_Y] * 4
        return longer

    edit_table(path, with_averages)
    expected = scan.data.clone()
    expected[..., 3, :] *= (1 + 4 + 1) / 3
    back = read_ismrmrd(path)
    torch.testing.assert_close(back.data, expected)
    assert not warnings_of(back)
    assert "averages" in {decision.name for decision in back.decisions}
    split = read_ismrmrd(path, ReadOptions(average=False))
    assert split.batch_axes == ("average", "slice")
    assert torch.equal(split.data[0], scan.data)
    assert split.mask[:, 0, 0, :, 0].sum(dim=1).tolist() == [N_Y, 2, 1]


def test_lines_repeated_without_an_average_counter_are_averaged_with_a_warning(path: Path, scan: KSpace) -> None:
    write_ismrmrd(path, scan)
    edit_table(path, lambda table: repeated(table, [3]))
    back = read_ismrmrd(path)
    torch.testing.assert_close(back.data, scan.data)
    assert "repeated_lines" in warnings_of(back)


def test_oversampling_is_cropped_without_changing_pixels_or_noise(path: Path, generator: torch.Generator) -> None:
    scan = stack_of(samples(generator, 1, 2, 64, 48), recon_fov_mm=(5.0, 128.0, 48.0))
    scan = replace(scan, noise=samples(generator, 2, 100), calibration=scan.data * (torch.arange(64) == 30)[:, None])
    write_ismrmrd(path, scan)
    back = read_ismrmrd(path)
    assert back.data.shape == (1, 2, 64, 24)
    torch.testing.assert_close(image_of(back.data), image_of(scan.data)[..., 12:36], atol=1e-5, rtol=0)
    torch.testing.assert_close(back.data.std(), scan.data.std(), atol=0.02, rtol=0)
    assert back.noise is not None
    assert torch.equal(back.noise, scan.noise)
    assert back.calibration is not None
    torch.testing.assert_close(back.calibration[..., 30, :], back.data[..., 30, :])
    assert back.acquisition.encoded_fov_mm == (5.0, 128.0, 48.0)
    grid, uncropped = (k.acquisition.encoded_grid(n_slices=1) for k in (back, scan))
    np.testing.assert_allclose(grid.position_mm((0, 32, 12)), uncropped.position_mm((0, 32, 24)), atol=1e-4)
    kept = read_ismrmrd(path, ReadOptions(remove_oversampling=False))
    assert torch.equal(kept.data, scan.data)
    (decision,) = [decision for decision in back.decisions if decision.name == "oversampling"]
    assert decision.override == "--keep-oversampling"


def test_partly_measured_readouts_keep_their_oversampling(path: Path, generator: torch.Generator) -> None:
    mask = torch.ones(1, 1, N_Y, N_X)
    mask[..., :2] = 0
    scan = stack_of(samples(generator, 1, 1, N_Y, N_X), mask, recon_fov_mm=(5.0, 24.0, 10.0))
    write_ismrmrd(path, scan)
    back = read_ismrmrd(path)
    assert torch.equal(back.data, scan.data)
    assert "kept" in {decision.value for decision in back.decisions if decision.name == "oversampling"}


def test_cropping_and_reversing_a_field_of_view_match_the_image(generator: torch.Generator) -> None:
    for n in (8, 9):
        image = torch.randn(3, n, generator=generator, dtype=torch.complex128)
        kspace = image_of(image[None].conj()).conj()[0]
        along_x = image_of(kspace[None])[0]
        for m in (3, 4, n):
            cropped = crop_field_of_view(kspace, m)
            torch.testing.assert_close(image_of(cropped[None])[0], along_x[:, n // 2 - m // 2 :][:, :m])
        torch.testing.assert_close(image_of(reverse_field_of_view(kspace)[None])[0], along_x.flip(-1))
        torch.testing.assert_close(reverse_field_of_view(kspace.T, dim=0), reverse_field_of_view(kspace).T)
    with pytest.raises(ValueError, match="cropped to 10 of 9 pixels"):
        crop_field_of_view(kspace, 10)


def test_siemens_samples_are_conjugated_unless_asked_otherwise(path: Path, generator: torch.Generator) -> None:
    scan = replace(stack_of(samples(generator, 1, 2, N_Y, N_X)), noise=samples(generator, 2, 9))
    write_ismrmrd(path, scan)
    edit_header(path, "<receiverChannels>", "<systemVendor>SIEMENS</systemVendor><receiverChannels>")
    back = read_ismrmrd(path)
    assert torch.equal(back.data, scan.data.conj())
    assert back.noise is not None
    assert torch.equal(back.noise, scan.noise.conj())  # type: ignore[union-attr]
    assert ("fourier_sign", "forward") in {(decision.name, decision.value) for decision in back.decisions}
    assert torch.equal(read_ismrmrd(path, ReadOptions(fourier_sign="inverse")).data, scan.data)
    write_ismrmrd(path, back, overwrite=True)
    assert torch.equal(read_ismrmrd(path).data, back.data)


def test_noise_is_scaled_to_the_bandwidth_of_the_image(path: Path, scan: KSpace, generator: torch.Generator) -> None:
    scan = replace(scan, noise=samples(generator, N_COILS, 40))
    write_ismrmrd(path, scan)

    def four_times_slower(table: np.ndarray) -> None:
        table["head"]["sample_time_us"] = 5.0
        table["head"]["sample_time_us"][0] = 20.0

    edit_table(path, four_times_slower)
    back = read_ismrmrd(path)
    assert back.noise is not None
    torch.testing.assert_close(back.noise, 2 * scan.noise)  # type: ignore[operator]


def test_lines_without_directions_give_the_identity_with_a_warning(path: Path, scan: KSpace) -> None:
    write_ismrmrd(path, replace(scan, acquisition=replace(scan.acquisition, geometry_known=False)))
    back = read_ismrmrd(path)
    assert not back.acquisition.geometry_known
    assert back.acquisition.directions == ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    assert "geometry" in warnings_of(back)
    assert torch.equal(back.data, scan.data)


def test_slices_are_ordered_by_position(path: Path, generator: torch.Generator) -> None:
    scan = stack_of(samples(generator, 4, 1, N_Y, N_X))
    affine = scan.acquisition.encoded_grid(n_slices=4).affine_lps()

    def interleave(table: np.ndarray) -> None:
        table["head"]["idx"]["slice"] = np.array([0, 2, 1, 3])[table["head"]["idx"]["slice"]]

    def turn_round(table: np.ndarray) -> None:
        table["head"]["idx"]["slice"] = 3 - table["head"]["idx"]["slice"]

    write_ismrmrd(path, scan)
    edit_table(path, interleave)
    back = read_ismrmrd(path)
    assert torch.equal(back.data, scan.data)
    assert "slice_order" in {decision.name for decision in back.decisions}
    np.testing.assert_allclose(back.acquisition.encoded_grid(n_slices=4).affine_lps(), affine, atol=1e-4)
    write_ismrmrd(path, scan, overwrite=True)
    edit_table(path, turn_round)
    back = read_ismrmrd(path)
    assert torch.equal(back.data, scan.data.flip(0))
    turned = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 3], [0, 0, 0, 1]])
    np.testing.assert_allclose(back.acquisition.encoded_grid(n_slices=4).affine_lps(), turned, atol=1e-4)


@pytest.mark.parametrize(
    ("field", "value", "warning"),
    [
        ("position", (1.0, 2.0, 3.0), "slice_positions"),
        ("read_dir", (np.nan, 0.0, 0.0), "geometry"),
        ("read_dir", (0.5, 0.5, 0.5), "geometry"),
    ],
)
def test_contradicting_geometry_is_a_warning(
    path: Path, scan: KSpace, field: str, value: tuple[float, ...], warning: str
) -> None:
    write_ismrmrd(path, scan)
    edit_table(path, lambda table: table["head"].__setitem__(field, value))
    back = read_ismrmrd(path)
    assert warning in warnings_of(back)
    assert np.isfinite(back.acquisition.encoded_grid(n_slices=N_SLICES).affine_lps()).all()


def test_slices_that_are_not_parallel_are_a_warning(path: Path, scan: KSpace) -> None:
    write_ismrmrd(path, scan)

    def turn_the_second(table: np.ndarray) -> None:
        head = table["head"]
        second = head["idx"]["slice"] == 1
        head["read_dir"][second], head["slice_dir"][second] = head["slice_dir"][0], head["read_dir"][0]

    edit_table(path, turn_the_second)
    assert "not parallel" in warnings_of(read_ismrmrd(path))["geometry"]


def test_unflagged_navigators_of_another_length_are_left_out(path: Path, scan: KSpace) -> None:
    write_ismrmrd(path, scan)

    def with_navigators(table: np.ndarray) -> np.ndarray:
        longer = repeated(table, [0, 5])
        longer["head"]["number_of_samples"][-2:] = 4
        longer["head"]["center_sample"][-2:] = 2
        longer["data"][-2:] = [np.ones(2 * 4 * N_COILS, dtype=np.float32)] * 2
        return longer

    edit_table(path, with_navigators)
    back = read_ismrmrd(path)
    assert torch.equal(back.data, scan.data)
    assert dict(back.counts)["navigation lines"] == 2
    assert "navigators" in warnings_of(back)


def test_a_header_that_contradicts_the_lines_is_corrected_with_a_warning(path: Path, scan: KSpace) -> None:
    write_ismrmrd(path, scan)
    edit_table(path, lambda table: table["head"].__setitem__("center_sample", 0))
    edit_header(path, "<center>6<", "<center>0<")
    back = read_ismrmrd(path)
    assert torch.equal(back.data, scan.data)
    assert {"readout_centre", "phase_centre"} <= set(warnings_of(back))


def test_readouts_longer_than_the_encoded_matrix_count_as_oversampled(path: Path, scan: KSpace) -> None:
    write_ismrmrd(path, scan)
    with h5py.File(path, "r+") as file:
        text = file["dataset/xml"][0].decode()
        file["dataset/xml"][0] = text.replace("<x>10</x>", "<x>5</x>").replace("<x>20.0</x>", "<x>10.0</x>")
    back = read_ismrmrd(path)
    assert back.data.shape[-1] == 5
    assert back.acquisition.encoded_fov_mm[2] == 10.0
    assert "readout_size" in warnings_of(back)
    torch.testing.assert_close(image_of(back.data), image_of(scan.data)[..., 3:8], atol=1e-5, rtol=0)


def test_few_lines_outside_the_grid_are_left_out_and_many_refused(path: Path, scan: KSpace) -> None:
    write_ismrmrd(path, scan)
    edit_table(path, lambda table: table["head"]["idx"]["kspace_encode_step_1"].__setitem__(3, 40))
    back = read_ismrmrd(path)
    assert "lines_outside" in warnings_of(back)
    assert back.fill_rate == pytest.approx(1 - 1 / (N_SLICES * N_Y))

    def all_elsewhere(table: np.ndarray) -> None:
        table["head"]["idx"]["kspace_encode_step_1"] += 30

    edit_table(path, all_elsewhere)
    with pytest.raises(InputError, match=r"24 of 24 imaging lines .* outside the encoded matrix 1 × 12 × 10"):
        read_ismrmrd(path)


def test_calibration_lines_of_no_image_are_left_out(path: Path, scan: KSpace) -> None:
    write_ismrmrd(path, scan)

    def with_another(table: np.ndarray) -> np.ndarray:
        longer = repeated(table, [4, 5])
        add_flag(longer, slice(-2, None), 20)
        longer["head"]["idx"]["contrast"][-1] = 3
        return longer

    edit_table(path, with_another)
    back = read_ismrmrd(path)
    assert "1 calibration lines" in warnings_of(back)["calibration_elsewhere"]
    assert back.calibration is not None
    assert back.calibration.abs().sum(dim=(1, 3)).nonzero().tolist() == [[0, 4]]


def test_lines_of_a_second_encoding_are_left_out(path: Path, scan: KSpace) -> None:
    write_ismrmrd(path, scan)

    def with_another(table: np.ndarray) -> np.ndarray:
        longer = repeated(table, [4])
        longer["head"]["encoding_space_ref"][-1] = 1
        return longer

    edit_table(path, with_another)
    back = read_ismrmrd(path)
    assert torch.equal(back.data, scan.data)
    assert "encoding_space" in warnings_of(back)


def test_partitions_without_a_second_phase_encoding_are_slices(path: Path, scan: KSpace) -> None:
    write_ismrmrd(path, scan)
    with h5py.File(path, "r+") as file:
        text = file["dataset/xml"][0].decode()
        file["dataset/xml"][0] = text.replace("<z>1</z>", "<z>2</z>").replace("<z>5.0</z>", "<z>10.0</z>")
    back = read_ismrmrd(path)
    assert back.n_dims == 2
    assert torch.equal(back.data, scan.data)
    assert back.acquisition.encoded_fov_mm[0] == 5.0
    assert "dimensions" in warnings_of(back)


def test_a_missing_voxel_size_is_one_millimetre_with_a_warning_and_can_be_stated(path: Path, scan: KSpace) -> None:
    write_ismrmrd(path, scan)
    with h5py.File(path, "r+") as file:
        text = file["dataset/xml"][0].decode()
        file["dataset/xml"][0] = text.replace("<x>20.0</x>", "<x>0</x>").replace("<y>24.0</y>", "<y>0</y>")
    back = read_ismrmrd(path)
    assert back.acquisition.encoded_fov_mm == (5.0, 12.0, 10.0)
    assert "--voxel-mm" in warnings_of(back)["voxel_size"]
    stated = read_ismrmrd(path, ReadOptions(voxel_mm=(1.5, 2.5, 7.0)))
    assert stated.acquisition.encoded_grid(n_slices=N_SLICES).spacing_mm == pytest.approx((7.0, 2.5, 1.5))
    with pytest.raises(InputError, match="three positive sizes"):
        read_ismrmrd(path, ReadOptions(voxel_mm=(0.0, 1.0, 1.0)))


def test_one_of_several_measurements_is_chosen(path: Path, scan: KSpace, generator: torch.Generator) -> None:
    write_ismrmrd(path, scan)
    other = path.with_name("other.h5")
    write_ismrmrd(other, stack_of(samples(generator, 1, 1, 4, 6)))
    with h5py.File(path, "r+") as file, h5py.File(other) as source:
        source.copy("dataset", file, name="raids/dataset_2")
    back = read_ismrmrd(path)
    assert torch.equal(back.data, scan.data)
    assert "raids/dataset_2" in warnings_of(back)["measurement"]
    assert read_ismrmrd(path, ReadOptions(variable="raids/dataset_2")).data.shape == (1, 1, 4, 6)
    with pytest.raises(InputError, match="no measurement 'third'; it has dataset, raids/dataset_2"):
        read_ismrmrd(path, ReadOptions(variable="third"))


def test_the_table_has_the_official_layout(path: Path, scan: KSpace) -> None:
    write_ismrmrd(path, scan)
    with h5py.File(path) as file:
        assert looks_like_ismrmrd(file)
        dtype = file["dataset/data"].dtype
        assert dtype.names == ("head", "traj", "data")
        assert h5py.check_vlen_dtype(dtype["data"]) == np.float32
        assert dtype["head"].itemsize == 340  # sizeof(ISMRMRD_AcquisitionHeader), packed
        assert dtype["head"]["idx"].itemsize == 34
        head = file["dataset/data"]["head"]
        assert (head["version"] == 1).all()
        assert (head["channel_mask"][:, 0] == 0b111).all()
        assert head["flags"][-1] == (1 << 7) | (1 << 24)


def test_reading_tolerates_other_namespaces_gaps_and_wrong_types() -> None:
    xml = b"""<?xml version="1.0" encoding="utf-16"?><m:ismrmrdHeader xmlns:m="urn:other"><m:encoding>
        <m:encodedSpace><m:matrixSize><m:x>64</m:x><m:y>many</m:y></m:matrixSize>
        <m:fieldOfView_mm><m:x>1e99</m:x><m:y>2.5e2</m:y></m:fieldOfView_mm></m:encodedSpace>
        <m:encodingLimits><m:kspace_encoding_step_1><m:center>-3</m:center><m:maximum>9</m:maximum>
        </m:kspace_encoding_step_1></m:encodingLimits></m:encoding>
        <m:experimentalConditions><m:H1resonanceFrequency_Hz>2341761</m:H1resonanceFrequency_Hz>
        </m:experimentalConditions></m:ismrmrdHeader>\0"""
    facts = parse_header(xml)
    assert facts.encoded_shape == (None, None, 64)
    assert facts.encoded_fov_mm == (None, 250.0, None)
    assert facts.limit("kspace_encoding_step_1") == Limit(None, 9, None)
    assert facts.limit("kspace_encoding_step_2") == Limit()
    assert facts.field_strength_t == pytest.approx(0.055, abs=1e-5)
    assert len(facts.warnings) == 3


def test_identifiers_go_to_the_patient_only(path: Path, scan: KSpace) -> None:
    write_ismrmrd(path, scan)
    subject = "<subjectInformation><patientName>Doe</patientName><patientID>7</patientID></subjectInformation>"
    edit_header(path, "<acquisitionSystemInformation>", subject + "<acquisitionSystemInformation>")
    back = read_ismrmrd(path)
    assert back.acquisition.patient == {"name": "Doe", "id": "7"}
    assert "Doe" not in str(back.decisions)
    write_ismrmrd(path, back, overwrite=True)
    assert b"Doe" not in path.read_bytes()


def test_a_header_that_is_no_xml_leaves_the_lines_to_speak(path: Path, scan: KSpace) -> None:
    write_ismrmrd(path, scan)
    edit_header(path, "</encoding>", "</encodin")
    back = read_ismrmrd(path)
    assert torch.equal(back.data, scan.data)
    assert {"header", "matrix", "voxel_size", "trajectory"} <= set(warnings_of(back))


@pytest.mark.parametrize(
    "xml",
    [
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><ismrmrdHeader>&b;</ismrmrdHeader>',
        b'<?xml version="1.0"?><! doctype x SYSTEM "file:///etc/passwd"><x/>',
    ],
)
def test_hostile_headers_are_refused(xml: bytes) -> None:
    with pytest.raises(InputError, match="document type or entities"):
        parse_header(xml)
    with pytest.raises(InputError, match="bytes long; at most"):
        parse_header(xml + b" " * 2**24)


def no_lines(table: np.ndarray) -> np.ndarray:
    return table[:0]


def only_noise(table: np.ndarray) -> None:
    add_flag(table, slice(None), 19)


def fewer_coils(table: np.ndarray) -> None:
    table["head"]["active_channels"][4] = 2


def no_coils(table: np.ndarray) -> None:
    table["head"]["active_channels"] = 0


def short_line(table: np.ndarray) -> None:
    table["data"][5] = table["data"][5][:7]


def nan_samples(table: np.ndarray) -> None:
    table["data"][6][[2, 3, 8]] = np.nan, np.nan, np.inf


def all_discarded(table: np.ndarray) -> None:
    table["head"]["discard_pre"][2] = N_X


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_lines, "zero acquisitions"),
        (only_noise, "no imaging lines, only 24 acquisitions, 24 noise lines"),
        (fewer_coils, r"disagree on the number of coils \(1 with 2, 23 with 3\)"),
        (no_coils, "have no coils"),
        (short_line, "line 5 holds 7 numbers, but 2 × 10 samples × 3 coils are 60"),
        (nan_samples, "2 of 720 samples .* NaN or infinite, the first in line 6"),
        (all_discarded, r"Line 2 .* has 10 samples and discards 10 \+ 0"),
    ],
)
def test_broken_lines_are_refused(
    path: Path, scan: KSpace, change: Callable[[np.ndarray], np.ndarray | None], message: str
) -> None:
    write_ismrmrd(path, scan)
    edit_table(path, change)
    with pytest.raises(InputError, match=message):
        read_ismrmrd(path)


@pytest.mark.parametrize("trajectory", ["radial", "spiral", "goldenangle", "other"])
def test_other_trajectories_are_refused_without_positions(path: Path, scan: KSpace, trajectory: str) -> None:
    write_ismrmrd(path, scan)
    edit_header(path, ">cartesian<", f">{trajectory}<")
    with pytest.raises(InputError, match=f"'{trajectory}', but its lines do not hold the positions"):
        read_ismrmrd(path)


def test_absurd_sizes_are_refused_before_anything_is_allocated(path: Path, scan: KSpace) -> None:
    write_ismrmrd(path, scan)
    edit_header(path, "<y>12</y>", "<y>2000000000</y>")
    with pytest.raises(InputError, match=r"scan in .* would need 1\.\d+e\+03 GiB, and the limit is 8 GiB"):
        read_ismrmrd(path)
    with pytest.raises(InputError, match=r"acquisition table of .* would need"):
        read_ismrmrd(path, ReadOptions(memory_limit_bytes=1000))


def test_files_that_are_no_ismrmrd_are_refused(path: Path, scan: KSpace) -> None:
    with pytest.raises(InputError, match="is not a file"):
        read_ismrmrd(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        read_ismrmrd(path)
    path.write_bytes(b"not HDF5 at all")
    with pytest.raises(InputError, match="is not an HDF5 file"):
        read_ismrmrd(path)
    with h5py.File(path, "w") as file:
        file["dataset/data"] = np.zeros(3)
        file["dataset/xml"] = "<ismrmrdHeader/>"
    with pytest.raises(InputError, match="holds no ISMRMRD data"):
        read_ismrmrd(path)
    write_ismrmrd(path, scan, overwrite=True)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match="damaged or incomplete: opening it failed"):
        read_ismrmrd(path)


def test_a_foreign_table_or_header_is_refused(path: Path, scan: KSpace) -> None:
    floats = h5py.vlen_dtype(np.float32)
    with h5py.File(path, "w") as file:
        file["dataset/xml"] = "<ismrmrdHeader/>"
        file.create_dataset("dataset/data", (2,), dtype=[("head", [("flags", "<u8")]), ("data", floats)])
    with pytest.raises(InputError, match="have no field 'idx'"):
        read_ismrmrd(path)
    write_ismrmrd(path, scan, overwrite=True)
    with h5py.File(path, "r+") as file:
        del file["dataset/xml"]
        file["dataset/xml"] = np.arange(3)
    with pytest.raises(InputError, match="expected text"):
        read_ismrmrd(path)


def test_writing_refuses_what_lines_cannot_hold(path: Path, scan: KSpace) -> None:
    pieces = torch.ones(1, 1, N_Y, N_X)
    pieces[..., 4, 5] = 0
    with pytest.raises(InputError, match="1 readouts are measured in several pieces"):
        write_ismrmrd(path, replace(scan, mask=pieces[:, :, :, :].expand(1, 1, N_Y, N_X), data=scan.data[:1]))
    nothing = torch.ones(N_SLICES, 1, 1, 1)
    nothing[1] = 0
    with pytest.raises(InputError, match="Image 1 of the scan has no measured line"):
        write_ismrmrd(path, replace(scan, mask=nothing))
    with pytest.raises(InputError, match="no counter for the axis 'direction'"):
        write_ismrmrd(path, replace(scan, data=scan.data[None], batch_axes=("direction", "slice")))
    positions = scan.acquisition.slice_positions_mm * 2
    with pytest.raises(InputError, match="2 slices, but 4 slice positions"):
        write_ismrmrd(path, replace(scan, acquisition=replace(scan.acquisition, slice_positions_mm=positions)))
    assert not list(path.parent.iterdir())


def test_an_output_is_never_replaced_unasked_nor_left_half_written(
    path: Path, scan: KSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(InputError, match="exists already"):
        write_ismrmrd(path, scan)

    def disk_full(self: Path, data: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(InputError, match="No space left on device"):
        write_ismrmrd(path, scan, overwrite=True)
    assert path.read_bytes() == b"precious"
    assert list(path.parent.iterdir()) == [path]


def share_of_the_frame(kspace: torch.Tensor) -> float:
    """Energy of the root-sum-of-squares image in a frame of 8 pixels around it."""
    energy = image_of(kspace).abs().square().sum(dim=(0, 1))
    return float(1 - energy[8:-8, 8:-8].sum() / energy.sum())


@pytest.mark.realdata
def test_the_official_grappa_example_is_read(data_folder: Path) -> None:
    kspace = read_ismrmrd(data_folder / "mri/formats/ismrmrd_grappa2.h5")
    assert kspace.data.shape == (1, 4, 256, 256)
    assert dict(kspace.counts) == {
        "acquisitions": 143,
        "imaging lines": 128,
        "calibration lines": 28,
        "calibration-only lines": 14,
        "noise lines": 1,
    }
    assert kspace.fill_rate == 0.5
    assert kspace.mask[0, 0, :, 0].nonzero()[:, 0].tolist() == list(range(0, 256, 2))
    assert kspace.noise is not None
    assert kspace.noise.shape == (4, 256)
    assert kspace.calibration is not None
    measured = kspace.calibration.abs().sum(dim=(0, 1, 3)).nonzero()[:, 0]
    assert measured.tolist() == list(range(114, 142))
    peak = kspace.data.abs().sum(dim=(0, 1)).argmax()
    assert divmod(int(peak), 256) == (128, 128)
    assert not warnings_of(kspace)
    assert kspace.acquisition.geometry_known
    assert share_of_the_frame(kspace.calibration) < 0.02


@pytest.mark.realdata
def test_a_file_with_an_invalid_header_is_read_with_warnings(data_folder: Path) -> None:
    kspace = read_ismrmrd(data_folder / "mri/formats/ismrmrd_invalid_header.h5")
    assert kspace.data.shape == (1, 1, 256, 256)
    assert dict(kspace.counts) == {"acquisitions": 256, "imaging lines": 256}
    assert kspace.fill_rate == 1
    assert kspace.noise is None
    assert {"header", "voxel_size", "phase_centre"} <= set(warnings_of(kspace))
    assert share_of_the_frame(kspace.data) < 0.01
