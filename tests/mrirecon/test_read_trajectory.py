"""Reading arrays whose samples lie along a trajectory: from every format, and everything that is decided for them."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import torch

from mrirecon import KSpace, pipe_density, radial_density
from mrirecon.cli import main
from mrirecon.io import ReadOptions, read
from mrirecon.trajectory import epi, radial, spiral, stack_of_stars
from operators import InputError
from operators.decision import Decision

SHAPE = (12, 10)
N_COILS, N_SHOTS, N_SAMPLES = 3, 7, 16
RADIANS = radial(N_SHOTS, N_SAMPLES).double().numpy()  # (shot * sample, (ky, kx))
# In the usual order of files, kx first, and by readouts.
FILE_RADIANS = RADIANS[:, ::-1].reshape(N_SHOTS, N_SAMPLES, 2)
MATRIX = ReadOptions(matrix=SHAPE)


def images(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def explicit(image: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Orthonormal transform of ``(…, *shape)`` at ``(sample, dim)``, by its definition."""
    shape = image.shape[-k.shape[1] :]
    grid = np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij"), -1).reshape(-1, k.shape[1])
    return image.reshape(*image.shape[: -k.shape[1]], -1) @ np.exp(-1j * grid @ k.T) / math.sqrt(len(grid))


COILS = images(N_COILS, *SHAPE)
SAMPLES = explicit(COILS, RADIANS).reshape(N_COILS, N_SHOTS, N_SAMPLES)


def explains(kspace: KSpace, image: np.ndarray) -> None:
    """Every sample is the transform of the image at its position, to the precision of the data."""
    assert kspace.trajectory is not None
    k = kspace.trajectory.double().expand(*kspace.data.shape[: len(kspace.batch_axes)], -1, -1)
    k = k.reshape(-1, *k.shape[-2:]).numpy()
    data = kspace.data.reshape(len(k), *kspace.data.shape[-2:])
    image = np.broadcast_to(image, (len(k), *image.shape[-kspace.n_dims - 1 :]))
    for i in range(len(k)):
        np.testing.assert_allclose(data[i], explicit(image[i], k[i]), rtol=0, atol=1e-5)


def npz(folder: Path, **arrays: Any) -> Path:
    with (folder / "scan").open("wb") as stream:
        np.savez(stream, **arrays)
    return folder / "scan"


def npy(folder: Path, array: Any, name: str = "scan") -> Path:
    with (folder / name).open("wb") as stream:
        np.save(stream, array)
    return folder / name


def mat(folder: Path, **arrays: Any) -> Path:
    with (folder / "scan").open("wb") as stream:
        scipy.io.savemat(stream, arrays)
    return folder / "scan"


def mat73(folder: Path, **arrays: Any) -> Path:
    with h5py.File(folder / "scan", "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = np.asarray(array).T
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
    with (folder / "scan").open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file".ljust(512))
    return folder / "scan"


def hdf5(folder: Path, **arrays: Any) -> Path:
    with h5py.File(folder / "scan", "w") as file:
        for name, array in arrays.items():
            file[f"raw/{name}"] = array
    return folder / "scan"


def cfl(folder: Path, array: np.ndarray, name: str = "scan") -> Path:
    path = folder / f"{name}.cfl"
    path.write_bytes(array.astype("<c8").tobytes(order="F"))
    sizes = " ".join(map(str, (*array.shape, *(1,) * (16 - array.ndim))))
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{sizes}\n")
    return path


def decision(kspace: KSpace, name: str) -> Decision:
    return next(d for d in kspace.decisions if d.name == name)


def check_radial(kspace: KSpace) -> None:
    assert kspace.batch_axes == ("slice",)
    assert kspace.image_shape == SHAPE
    assert kspace.readout_length == N_SAMPLES
    assert kspace.trajectory is not None
    np.testing.assert_allclose(kspace.trajectory, RADIANS, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(kspace.data, SAMPLES.reshape(1, N_COILS, -1).astype(np.complex64))
    assert bool((kspace.mask == 1).all())
    explains(kspace, COILS)


# Formats


@pytest.mark.parametrize("write", [npz, hdf5])
@pytest.mark.parametrize("name", ["trajectory", "Traj", "ktraj", "K", "coords"])
def test_a_radial_scan_beside_its_trajectory(tmp_path: Path, write: Callable[..., Path], name: str) -> None:
    check_radial(read(write(tmp_path, kspace=SAMPLES, **{name: FILE_RADIANS}), MATRIX))


@pytest.mark.parametrize("write", [mat, mat73])
@pytest.mark.parametrize("components_first", [True, False])
def test_a_matlab_file_runs_along_readouts_first(
    tmp_path: Path, write: Callable[..., Path], components_first: bool
) -> None:
    trajectory = FILE_RADIANS.transpose(2, 1, 0) if components_first else FILE_RADIANS.transpose(1, 0, 2)
    kspace = read(write(tmp_path, kspace=SAMPLES.transpose(2, 1, 0), traj=trajectory), MATRIX)
    check_radial(kspace)
    assert decision(kspace, "axes").value == "sample,shot,coil"
    assert decision(kspace, "axes").warning
    assert decision(kspace, "fourier_sign").value == "inverse"


@pytest.mark.parametrize("write", [npz, mat])
def test_a_complex_trajectory_is_kx_and_i_ky(tmp_path: Path, write: Callable[..., Path]) -> None:
    k = FILE_RADIANS[..., 0] + 1j * FILE_RADIANS[..., 1]
    turned = write is mat
    samples = SAMPLES[0]
    kspace = read(write(tmp_path, data=samples.T if turned else samples, k=k.T if turned else k), MATRIX)
    explains(kspace, COILS[:1])
    assert not decision(kspace, "trajectory_axes").warning
    assert "kx + i ky" in decision(kspace, "trajectory_axes").reason


@pytest.mark.parametrize("kind", ["npy", "npz", "mat", "mat73", "hdf5", "cfl"])
def test_the_trajectory_may_lie_in_a_file_of_any_format(tmp_path: Path, kind: str) -> None:
    path = npy(tmp_path, SAMPLES)
    (folder := tmp_path / "other").mkdir()
    index = np.concatenate(
        [FILE_RADIANS / (2 * math.pi) * np.array(SHAPE[::-1]), np.zeros((N_SHOTS, N_SAMPLES, 1))], -1
    )
    other = {
        "npy": lambda: npy(folder, FILE_RADIANS),
        "npz": lambda: npz(folder, positions=FILE_RADIANS, dcf=np.ones((N_SHOTS, N_SAMPLES)), other=np.zeros(4)),
        "mat": lambda: mat(folder, traj=FILE_RADIANS),
        "mat73": lambda: mat73(folder, traj=FILE_RADIANS),
        "hdf5": lambda: hdf5(folder, x=np.moveaxis(FILE_RADIANS, -1, 0)),
        "cfl": lambda: cfl(folder, index.transpose(2, 1, 0)),
    }[kind]()
    if kind == "cfl":  # its axes run the other way, and so must those of the samples
        kspace = read(
            npy(tmp_path, SAMPLES.transpose(2, 1, 0)),
            replace(MATRIX, trajectory=other, axes=("sample", "shot", "coil")),
        )
    else:
        kspace = read(path, replace(MATRIX, trajectory=other))
    check_radial(kspace)
    assert (kspace.dcf is not None) == (kind == "npz")


def test_bart(tmp_path: Path) -> None:
    n = 16
    k = radial(N_SHOTS, N_SAMPLES).double().numpy()
    samples = explicit(images(2, N_COILS, n, n), k).reshape(2, N_COILS, N_SHOTS, N_SAMPLES)
    array = np.zeros((1, N_SAMPLES, N_SHOTS, N_COILS, *(1,) * 9, 2), dtype=np.complex64)
    array.reshape(N_SAMPLES, N_SHOTS, N_COILS, 2)[:] = samples.transpose(3, 2, 1, 0)
    index = np.zeros((3, N_SAMPLES, N_SHOTS))
    index[:2] = (k[:, ::-1] * n / (2 * math.pi)).reshape(N_SHOTS, N_SAMPLES, 2).transpose(2, 1, 0)
    path, trajectory = cfl(tmp_path, array), cfl(tmp_path, index, "traj")
    for given in (trajectory, trajectory.with_suffix(".hdr")):
        kspace = read(path, ReadOptions(trajectory=given))
        assert kspace.batch_axes == ("slice",)
        assert tuple(kspace.data.shape) == (2, N_COILS, N_SHOTS * N_SAMPLES)
        assert kspace.image_shape == (n, n)
        assert decision(kspace, "trajectory_unit").value == "index"
        assert decision(kspace, "matrix").warning
        explains(kspace, images(2, N_COILS, n, n))
    with pytest.raises(InputError, match=r"readout dimension of 1, as for spokes .* give the trajectory with --traj"):
        read(path)
    with pytest.raises(InputError, match="is no trajectory of BART"):
        read(path, ReadOptions(trajectory=cfl(tmp_path, array, "other")))
    with pytest.raises(InputError, match="readout dimension of 16, as a Cartesian scan; leave --trajectory-file out"):
        read(cfl(tmp_path, array.reshape(16, 7, 1, 3, 2)), ReadOptions(trajectory=trajectory))


def test_pulseq_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    per_metre = torch.from_numpy(RADIANS / (2 * math.pi) * np.array(SHAPE) / 0.24).reshape(N_SHOTS, N_SAMPLES, 2)
    played = Decision("trajectory", "7 readouts of 16 samples", "Sampled along ky and kx.")
    monkeypatch.setattr(
        "mrirecon.io.pulseq.read_pulseq_trajectory", lambda path: (per_metre, per_metre[..., 0], played)
    )
    (sequence := tmp_path / "a.seq").write_text("# Pulseq sequence file\n[VERSION]\nmajor 1\n")
    options = replace(MATRIX, trajectory=sequence, voxel_mm=(24.0, 20.0, 5.0))
    kspace = read(npy(tmp_path, SAMPLES), options)
    check_radial(kspace)
    assert decision(kspace, "trajectory_unit").value == "1/m"
    assert played in kspace.decisions
    check_radial(read(mat(tmp_path, kspace=SAMPLES.transpose(2, 1, 0)), options))
    with pytest.raises(InputError, match="is in 1/m, which needs the size of a voxel; give it in mm, such as --voxel"):
        read(npy(tmp_path, SAMPLES), replace(options, voxel_mm=None))


def test_formats_that_place_their_samples_take_no_trajectory_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "fastmri", "w") as file:
        file["kspace"], file["reconstruction_rss"] = images(1, 2, 8, 8), np.zeros((1, 8, 8))
    with pytest.raises(InputError, match="is fastMRI, whose samples lie where the file itself says; leave --traj"):
        read(tmp_path / "fastmri", ReadOptions(trajectory=tmp_path / "fastmri"))
    with pytest.raises(InputError, match="for which --matrix has no meaning"):
        read(tmp_path / "fastmri", MATRIX)


def test_the_command_line_names_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cycles = (FILE_RADIANS[..., ::-1] / (2 * math.pi)).swapaxes(0, 1)
    path, other = npy(tmp_path, SAMPLES.swapaxes(0, 2)), npy(tmp_path, cycles, "k")
    options = "--axes sample,shot,coil --matrix 12,10 --trajectory-axes ky,kx --trajectory-unit cycles-per-pixel"
    with pytest.raises(SystemExit, match="0"):
        main(["inspect", str(path), "--json", "--trajectory-file", str(other), *options.split()])
    decided = "\n".join(json.loads(capsys.readouterr().out)["decisions"])
    for text in ("axes: sample,shot,coil", "matrix: 12 × 10", "trajectory_axes: ky,kx", "trajectory_unit: cycles-per"):
        assert text in decided


# Which array, which axis


def test_a_trajectory_without_a_name_is_told_by_its_shape(tmp_path: Path) -> None:
    path = npz(tmp_path, kspace=SAMPLES, positions=FILE_RADIANS, mask=np.ones((N_SHOTS, N_SAMPLES)), n=np.arange(3))
    kspace = read(path, MATRIX)
    check_radial(kspace)
    assert decision(kspace, "trajectory").warning
    assert decision(kspace, "trajectory").value == "positions"


def test_maps_and_magnitudes_beside_a_cartesian_scan_are_no_trajectory(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    grid = images(2, 8, 6)
    for other in (rng.normal(size=(2, 8, 6)), rng.random((3, 8, 6)), rng.random((8, 6, 3)), rng.normal(size=(9, 3))):
        kspace = read(npz(tmp_path, kspace=grid, other=other, k=np.array(3.0)))
        assert kspace.is_cartesian
        assert kspace.image_shape == (8, 6)


def test_cartesian_axes_leave_a_trajectory_aside(tmp_path: Path) -> None:
    path = npz(tmp_path, kspace=images(2, 8, 6), traj=epi(8, 6).reshape(8, 6, 2).numpy())
    assert not read(path, ReadOptions(matrix=(8, 6))).is_cartesian
    assert read(path, ReadOptions(axes=("coil", "ky", "kx"))).is_cartesian
    with pytest.raises(InputError, match=r"those of a Cartesian scan, but there is a --trajectory-file"):
        read(path, ReadOptions(axes=("coil", "ky", "kx"), trajectory=path))


def test_a_complex_trajectory_is_not_taken_for_the_samples(tmp_path: Path) -> None:
    k = FILE_RADIANS[..., 0] + 1j * FILE_RADIANS[..., 1]
    explains(read(npz(tmp_path, ktraj=k, measured=SAMPLES[0].astype(np.complex64)), MATRIX), COILS[:1])


def test_samples_in_one_row(tmp_path: Path) -> None:
    kspace = read(npz(tmp_path, kspace=SAMPLES.reshape(N_COILS, -1), traj=FILE_RADIANS.reshape(-1, 2)), MATRIX)
    assert kspace.readout_length is None
    explains(kspace, COILS)
    kspace = read(npz(tmp_path, kspace=SAMPLES[0].reshape(-1), traj=FILE_RADIANS.reshape(-1, 2).T), MATRIX)
    explains(kspace, COILS[:1])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_positions_in_one_row_follow_readout_after_readout(tmp_path: Path, order: Any) -> None:
    axes = tuple(np.array(["coil", "shot", "sample"])[list(order)])
    path = npz(tmp_path, kspace=SAMPLES.transpose(order), traj=FILE_RADIANS.reshape(-1, 2))
    check_radial(read(path, replace(MATRIX, axes=axes)))


def test_slices_share_a_trajectory_and_repetitions_have_their_own(tmp_path: Path) -> None:
    golden = radial(2 * N_SHOTS, N_SAMPLES, golden=True).double().numpy().reshape(2, N_SHOTS, N_SAMPLES, 2)
    image = images(2, 4, N_COILS, *SHAPE)
    samples = np.stack([explicit(image[i], golden[i].reshape(-1, 2)) for i in range(2)])
    samples = samples.reshape(2, 4, N_COILS, N_SHOTS, N_SAMPLES)
    options = replace(MATRIX, axes=("repetition", "slice", "coil", "shot", "sample"), trajectory_axes=("ky", "kx"))
    kspace = read(npz(tmp_path, kspace=samples, traj=golden), options)
    assert kspace.batch_axes == ("repetition", "slice")
    assert kspace.trajectory is not None
    assert tuple(kspace.trajectory.shape) == (2, 1, N_SHOTS * N_SAMPLES, 2)
    explains(kspace, image.reshape(8, N_COILS, *SHAPE))
    shared = read(npz(tmp_path, kspace=samples[0], traj=golden[0]), replace(options, axes=options.axes[1:]))
    assert shared.batch_axes == ("slice",)
    assert shared.trajectory is not None
    assert shared.trajectory.ndim == 2


def test_averages_share_a_trajectory_or_are_kept_apart(tmp_path: Path) -> None:
    golden = radial(2 * N_SHOTS, N_SAMPLES, golden=True).double().numpy().reshape(2, N_SHOTS, N_SAMPLES, 2)
    options = replace(MATRIX, axes=("average", "shot", "sample"), trajectory_axes=("ky", "kx"))
    image = images(1, *SHAPE)
    samples = np.stack([explicit(image, golden[i].reshape(-1, 2)) for i in range(2)])
    own = npz(tmp_path, kspace=samples.reshape(2, N_SHOTS, N_SAMPLES), traj=golden)
    with pytest.raises(InputError, match="keep them apart with --split-averages"):
        read(own, options)
    apart = read(own, replace(options, average=False))
    assert apart.batch_axes == ("repetition", "slice")
    explains(apart, image)
    same = np.stack([SAMPLES[0] - 1, SAMPLES[0] + 1])
    averaged = read(npz(tmp_path, kspace=same, traj=FILE_RADIANS), replace(MATRIX, axes=options.axes))
    assert averaged.batch_axes == ("slice",)
    explains(averaged, COILS[:1])


def test_three_dimensional_scans(tmp_path: Path) -> None:
    shape, n_shots = (6, 8, 10), 9
    k = radial(n_shots, N_SAMPLES, n_dims=3).double().numpy()
    image = images(2, *shape)
    samples = explicit(image, k).reshape(2, n_shots, N_SAMPLES)
    path = npz(tmp_path, kspace=samples, traj=k[:, ::-1].reshape(n_shots, N_SAMPLES, 3))
    kspace = read(path, ReadOptions(matrix=shape))
    assert kspace.n_dims == 3
    assert kspace.batch_axes == ()
    assert kspace.image_shape == shape
    explains(kspace, image)
    assert read(path).image_shape == (N_SAMPLES,) * 3


@pytest.mark.parametrize("planar", [True, False])
def test_stacks_of_stars(tmp_path: Path, planar: bool) -> None:
    n_z, shape = 4, (4, *SHAPE)
    k = stack_of_stars(n_z, N_SHOTS, N_SAMPLES).double().numpy()
    image = images(2, *shape)
    samples = explicit(image, k).reshape(2, n_z, N_SHOTS, N_SAMPLES)
    file_k = FILE_RADIANS if planar else k[:, ::-1].reshape(n_z, N_SHOTS, N_SAMPLES, 3)
    options = ReadOptions(axes=("coil", "kz", "shot", "sample"), matrix=SHAPE if planar else shape)
    kspace = read(npz(tmp_path, kspace=samples, traj=file_k), options)
    assert kspace.image_shape == shape
    assert kspace.trajectory is not None
    np.testing.assert_allclose(kspace.trajectory, k, rtol=0, atol=1e-6)
    explains(kspace, image)


def test_the_components_are_kx_first_unless_they_are_named(tmp_path: Path) -> None:
    path = npz(tmp_path, kspace=SAMPLES, traj=FILE_RADIANS)
    kspace = read(path, MATRIX)
    assert decision(kspace, "trajectory_axes").value == "kx,ky"
    assert decision(kspace, "trajectory_axes").override == "--trajectory-axes"
    assert decision(kspace, "trajectory_axes").warning
    path = npz(tmp_path, kspace=SAMPLES, traj=FILE_RADIANS[..., ::-1])
    kspace = read(path, replace(MATRIX, trajectory_axes=("ky", "kx")))
    check_radial(kspace)
    assert not decision(kspace, "trajectory_axes").warning


# The image


@pytest.mark.parametrize(
    ("unit", "scale"),
    [("cycles-per-pixel", 1 / (2 * math.pi)), ("radians-per-pixel", 1.0), ("index", 16 / (2 * math.pi))],
)
def test_the_unit_is_decided_or_given(tmp_path: Path, unit: Any, scale: float) -> None:
    path = npz(tmp_path, kspace=SAMPLES, traj=FILE_RADIANS * scale, matrix=16)
    for given in (None, unit):
        kspace = read(path, ReadOptions(trajectory_unit=given))
        assert kspace.image_shape == (16, 16)
        assert decision(kspace, "trajectory_unit").value == unit
        assert kspace.trajectory is not None
        np.testing.assert_allclose(kspace.trajectory, RADIANS, rtol=0, atol=1e-6)


def test_positions_per_metre_need_a_field_of_view(tmp_path: Path) -> None:
    shape, fov_mm = np.array(SHAPE), np.array([240.0, 200.0])
    per_metre = FILE_RADIANS / (2 * math.pi) * (shape / fov_mm)[::-1] * 1000
    path = npz(tmp_path, kspace=SAMPLES, traj=per_metre)
    with pytest.raises(InputError, match="in 1/m, which needs a positive field of view"):
        read(path, MATRIX)
    check_radial(read(path, replace(MATRIX, voxel_mm=(20.0, 20.0, 5.0))))
    kspace = read(npz(tmp_path, kspace=SAMPLES, traj=per_metre, fov_mm=[200.0, 240.0, 5.0], matrix=SHAPE))
    check_radial(kspace)
    assert kspace.acquisition.encoded_fov_mm == pytest.approx((5.0, 240.0, 200.0))
    assert "scan says so" in decision(kspace, "matrix").reason


def test_the_size_of_the_image_is_given_or_told_by_the_spokes(tmp_path: Path) -> None:
    path = npz(tmp_path, kspace=SAMPLES, traj=FILE_RADIANS, image_shape=[20, 22], fov_mm=440.0)
    assert read(path, ReadOptions(matrix=(14, 18))).image_shape == (14, 18)
    kspace = read(path)
    assert kspace.image_shape == (20, 22)
    assert kspace.acquisition.encoded_grid(n_slices=1).spacing_mm == pytest.approx((20.0, 22.0, 20.0))
    kspace = read(npz(tmp_path, kspace=SAMPLES, traj=FILE_RADIANS / (2 * math.pi), voxel_mm=2.0))
    assert kspace.image_shape == (N_SAMPLES, N_SAMPLES)
    assert kspace.acquisition.encoded_grid(n_slices=1).spacing_mm == (2.0, 2.0, 2.0)
    matrix = decision(kspace, "matrix")
    assert matrix.value == f"{N_SAMPLES} × {N_SAMPLES}"
    assert matrix.warning
    assert matrix.override == "--matrix"
    index = read(
        npz(tmp_path, kspace=SAMPLES, traj=FILE_RADIANS * 20 / (2 * math.pi)), ReadOptions(trajectory_unit="index")
    )
    assert index.image_shape == (20, 20)


@pytest.mark.parametrize("kind", ["spiral", "epi", "index", "row"])
def test_a_size_that_nothing_tells_is_asked_for(tmp_path: Path, kind: str) -> None:
    k = {
        "spiral": spiral(4, 50, 3).reshape(4, 50, 2),
        "epi": epi(8, 6).reshape(8, 6, 2),
        "index": torch.from_numpy(FILE_RADIANS.copy()) * 3,
        "row": radial(5, 8),
    }[kind].numpy()
    samples = images(*k.shape[:-1])
    with pytest.raises(InputError, match="tells the size of the image; give its pixels, such as --matrix y,x"):
        read(npz(tmp_path, kspace=samples, traj=k))


def test_the_fourier_sign_conjugates(tmp_path: Path) -> None:
    path = npz(tmp_path, kspace=SAMPLES.conj(), traj=FILE_RADIANS)
    check_radial(read(path, replace(MATRIX, fourier_sign="forward")))


def test_a_trajectory_at_pi_stays_inside(tmp_path: Path) -> None:
    k = FILE_RADIANS.copy()
    k[0, 0] = math.pi
    kspace = read(npz(tmp_path, kspace=SAMPLES, traj=k), MATRIX)
    assert kspace.trajectory is not None
    assert float(kspace.trajectory.abs().max()) <= math.pi


# Density, and what was measured


@pytest.mark.parametrize(
    ("k", "n_samples", "truth"),
    [
        (radial(60, 64), 64, lambda k: radial_density(k, (32, 32), 64)),
        (radial(12, 64), 64, lambda k: radial_density(k, (32, 32), 64)),
        (spiral(8, 200, 3), 200, lambda k: pipe_density(k, (32, 32))),
        (epi(32, 32), 32, lambda k: torch.ones(len(k))),
    ],
)
def test_density_weights_of_any_scale_become_cells(tmp_path: Path, k: torch.Tensor, n_samples: int, truth: Any) -> None:
    cells = truth(k)
    by_readout = k.numpy()[:, ::-1].reshape(-1, n_samples, 2)
    samples = images(*by_readout.shape[:-1])
    weights = (cells * 0.0037).numpy().reshape(-1, n_samples)
    kspace = read(npz(tmp_path, kspace=samples, traj=by_readout, dcf=weights), ReadOptions(matrix=(32, 32)))
    assert kspace.dcf is not None
    ratio = kspace.dcf / cells
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    assert float(ratio[0]) == pytest.approx(1, abs=0.03)
    assert "times" in decision(kspace, "density").value


def test_density_weights_follow_the_batch(tmp_path: Path) -> None:
    golden = radial(2 * N_SHOTS, N_SAMPLES, golden=True).double().numpy().reshape(2, N_SHOTS, N_SAMPLES, 2)
    weights = np.random.default_rng(2).random((2, N_SHOTS, N_SAMPLES)) + 0.5
    options = replace(MATRIX, axes=("repetition", "shot", "sample"))
    kspace = read(npz(tmp_path, kspace=images(2, N_SHOTS, N_SAMPLES), traj=golden, density=weights), options)
    assert kspace.dcf is not None
    assert tuple(kspace.dcf.shape) == (2, 1, N_SHOTS * N_SAMPLES)
    ratio = kspace.dcf.numpy() / weights.reshape(2, 1, -1)
    np.testing.assert_allclose(ratio, ratio[0, 0, 0], rtol=1e-9)


def test_readouts_of_zeros_were_not_measured(tmp_path: Path) -> None:
    samples = SAMPLES.copy()
    samples[:, 2] = 0
    kspace = read(npz(tmp_path, kspace=samples, traj=FILE_RADIANS), MATRIX)
    expected = torch.ones(N_SHOTS, N_SAMPLES)
    expected[2] = 0
    assert torch.equal(kspace.mask.reshape(N_SHOTS, N_SAMPLES), expected)
    assert decision(kspace, "mask").value == "85.7 % of the samples"
    assert dict(kspace.counts)["samples measured"] == N_COILS * 6 * N_SAMPLES


# Bad input


def broken(value: float) -> np.ndarray:
    k = FILE_RADIANS.copy()
    k[1, 2, 0] = value
    return k


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"traj": broken(np.nan)}, "1 of 224 coordinates in traj .* NaN or infinite; export the trajectory again"),
        ({"traj": broken(np.inf)}, "NaN or infinite"),
        ({"traj": np.zeros_like(FILE_RADIANS)}, "is zero everywhere, so it does not say where the samples lie"),
        (
            {"traj": FILE_RADIANS[:-1]},
            r"traj .* has shape \(6, 16, 2\), and kspace .* has .*\(3, 7, 16\); expected a pos",
        ),
        ({"traj": FILE_RADIANS[:, :-1].reshape(-1, 2)}, "see that they belong together"),
        ({"traj": np.ones((N_SHOTS, N_SAMPLES))}, "cannot be a trajectory; expected real numbers with 2 or 3"),
        ({"traj": np.array("text")}, "cannot be a trajectory"),
        ({"traj": np.zeros((0, 2))}, "one of them is empty"),
        ({"k": FILE_RADIANS[:-1]}, "see that they belong together"),
        ({"traj": FILE_RADIANS * 2}, "in 1/m, which needs a positive field of view"),
        ({"traj": FILE_RADIANS, "dcf": np.ones(N_SAMPLES)}, r"dcf .* has shape \(16,\); expected one weight for every"),
        ({"traj": FILE_RADIANS, "dcf": -np.ones((N_SHOTS, N_SAMPLES))}, "dcf .* negative, not finite, or all zero"),
        ({"traj": FILE_RADIANS, "dcf": np.full((N_SHOTS, N_SAMPLES), np.nan)}, "negative, not finite, or all zero"),
        ({"traj": FILE_RADIANS, "fov_mm": [1.0, 2.0]}, "fov_mm .* holds 2 elements; expected 1 or 3 numbers"),
        ({"traj": FILE_RADIANS, "voxel_mm": -1.0}, "voxel_mm .* expected positive numbers"),
    ],
)
def test_trajectories_that_cannot_be_used(tmp_path: Path, arrays: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(npz(tmp_path, kspace=SAMPLES, **arrays), MATRIX)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (2.5, "expected whole numbers"),
        (0, "expected positive numbers"),
        (10**7, "give 2 sizes from 4 to 4096"),
        ([8, 8, 8], "give 2 sizes"),
        ([8, 8, 8, 8], "holds 4 elements"),
        (np.array("eight"), "holds 1 elements"),
    ],
)
def test_sizes_that_cannot_be_used(tmp_path: Path, matrix: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(npz(tmp_path, kspace=SAMPLES, traj=FILE_RADIANS, matrix=matrix))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ReadOptions(axes=("coil", "shot", "kx")), "'kx' is not an axis of k-space; expected names from repetition"),
        (ReadOptions(axes=("coil", "sample")), "has 3 axes of shape .* but 2 are named"),
        (ReadOptions(axes=("shot", "coil", "sample")), "see that they belong together"),
        (ReadOptions(axes=("coil", "ky", "sample")), "'ky' is not an axis of k-space; expected names from repetition"),
        (replace(MATRIX, trajectory_axes=("kx",)), "trajectory's axes are kx, but .* has 2 components"),
        (replace(MATRIX, trajectory_axes=("kx", "ky", "kz")), "has 2 components; give kx, ky and perhaps kz once each"),
        (replace(MATRIX, trajectory_axes=("x", "y")), "give kx, ky and perhaps kz once each"),
        (replace(MATRIX, trajectory_unit="furlongs"), "unit is 'furlongs'; expected one of cycles-per-pixel"),  # type: ignore[arg-type]
        (ReadOptions(matrix=(12,)), None),
        (ReadOptions(matrix=(12, 10, 3)), "give 2 sizes from 4 to 4096, such as --matrix y,x"),
        (ReadOptions(matrix=(12, 0)), "give 2 sizes"),
        (replace(MATRIX, fourier_sign="sideways"), "expected 'inverse' or 'forward'"),  # type: ignore[arg-type]
        (replace(MATRIX, voxel_mm=(1.0, 0.0, 1.0)), "three positive numbers dx, dy, dz"),
        (replace(MATRIX, memory_limit_bytes=5000), "would need .* GiB, and the limit is"),
        (replace(MATRIX, trajectory=Path("nowhere")), "does not exist; check the path"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: ReadOptions, message: str | None) -> None:
    path = npz(tmp_path, kspace=SAMPLES, traj=FILE_RADIANS)
    if message is None:
        assert read(path, options).image_shape == (12, 12)
        return
    with pytest.raises(InputError, match=message):
        read(path, options)


def test_axes_that_are_not_evident_are_asked_for(tmp_path: Path) -> None:
    for shape, k in (
        ((2, N_COILS, N_SHOTS, N_SAMPLES), FILE_RADIANS),
        ((8, 8, N_SAMPLES), np.repeat(FILE_RADIANS[:1], 8, axis=0)),
        ((100, N_SAMPLES), FILE_RADIANS[0]),
    ):
        with pytest.raises(InputError, match=r"not evident; name them .* --axes coil,shot,sample \(of repetition"):
            read(npz(tmp_path, kspace=images(*shape), traj=k), MATRIX)


def test_samples_without_a_trajectory_and_options_without_use(tmp_path: Path) -> None:
    path = npy(tmp_path, SAMPLES)
    with pytest.raises(InputError, match=r"need a trajectory, and .* holds none .* give it with --trajectory-file"):
        read(path, ReadOptions(axes=("coil", "shot", "sample")))
    with pytest.raises(InputError, match="is read as a Cartesian scan, for which --matrix has no meaning"):
        read(npy(tmp_path, images(8, 8)), MATRIX)


def test_slabs_and_scans_of_nothing_are_refused(tmp_path: Path) -> None:
    k = radial(5, 8, n_dims=3).numpy().reshape(5, 8, 3)
    options = ReadOptions(axes=("slice", "shot", "sample"), matrix=(8, 8, 8))
    with pytest.raises(InputError, match="several slabs are not read"):
        read(npz(tmp_path, kspace=images(2, 5, 8), traj=k), options)
    with pytest.raises(InputError, match="nothing but zeros; nothing was measured"):
        read(npz(tmp_path, kspace=np.zeros_like(SAMPLES), traj=FILE_RADIANS), MATRIX)
    with pytest.raises(InputError, match="gives 3 samples to an image and coil; at least 4 are needed"):
        read(npz(tmp_path, kspace=images(2, 3), traj=FILE_RADIANS[0, :3]), MATRIX)
    with pytest.raises(InputError, match=r"kspace .* has shape \(3, 0, 16\)"):
        read(npz(tmp_path, kspace=SAMPLES[:, :0], traj=FILE_RADIANS), MATRIX)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello world, this is text", "begins with 'hello world,', which is no trajectory that is read"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b" " * 100, "could not be read as numpy"),
        (b"", "is empty"),
    ],
)
def test_trajectory_files_that_cannot_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "k").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(npy(tmp_path, SAMPLES), replace(MATRIX, trajectory=tmp_path / "k"))


def test_a_trajectory_file_must_hold_one_trajectory(tmp_path: Path) -> None:
    path = npy(tmp_path, SAMPLES, "samples")
    with pytest.raises(InputError, match="of which 2 may be a trajectory; expected one, or one called trajectory"):
        read(path, replace(MATRIX, trajectory=npz(tmp_path, a=FILE_RADIANS, b=FILE_RADIANS)))
    with pytest.raises(InputError, match="of which 0 may be a trajectory"):
        read(path, replace(MATRIX, trajectory=npz(tmp_path, a=np.arange(4))))
