"""Scans along a trajectory, from the operator to the image."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import nibabel
import numpy as np
import pytest
import torch

from mrirecon.cli import main
from mrirecon.io import read
from mrirecon.io.ismrmrd import write_ismrmrd
from mrirecon.kspace import KSpace
from mrirecon.phantom import brain_phantom, coil_sensitivities, head_mask
from mrirecon.reconstruction import METHODS, operator_for, reconstruct
from mrirecon.simulation import Scenario, Simulation, TrajectoryKind, simulate, simulate_along, simulate_scenario
from mrirecon.trajectory import epi, radial
from operators.errors import InputError
from operators.functionals import nrmse
from operators.nufft import StackedNonUniformFourier
from tests.reference.command_line import Run, runner

N = 32
NON_CARTESIAN = [kind for kind in get_args(TrajectoryKind) if kind != "cartesian"]


def explicit_dft(trajectory: torch.Tensor, n: int) -> torch.Tensor:
    """Matrix (sample, pixel) of the defining sum for images of n × n pixels."""
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) - n // 2,) * 2, indexing="ij")
    pixels = torch.stack((y.flatten(), x.flatten()))
    return torch.exp(-1j * (trajectory.double() @ pixels)) / n


def scan(kind: TrajectoryKind = "radial", **options: object) -> Simulation:
    settings = {"matrix": N, "n_slices": 2, "relative_noise_variance": 0.0, "trajectory": kind, **options}
    return simulate_scenario(Scenario(**settings))  # type: ignore[arg-type]


def error(simulation: Simulation, method: str, kspace: KSpace | None = None, **options: object) -> float:
    image = reconstruct(kspace or simulation.kspace, method, **options).image.abs()  # type: ignore[arg-type]
    target = simulation.target.abs()
    return float(nrmse(image, target, mask=head_mask(tuple(target.shape))).mean())


def test_the_operator_of_a_scan_is_the_explicit_transform_of_its_coil_images() -> None:
    trajectory, csm = radial(5, 8).double(), coil_sensitivities(2, (8, 8))
    kspace = simulate_along(brain_phantom((3, 8, 8)), trajectory, csm=csm).kspace
    x = torch.randn(3, 8, 8, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    expected = (csm * x[:, None]).flatten(2).to(torch.complex128) @ explicit_dft(trajectory, 8).T
    error = operator_for(kspace, csm)(x) - expected
    assert float(error.abs().max()) < 1e-3 * float(expected.abs().max())


@pytest.mark.parametrize("kind", NON_CARTESIAN)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_recovers_the_phantom_from_every_trajectory(kind: TrajectoryKind, method: str) -> None:
    # What is missing are the corners of k-space, and with gridding the accuracy of the areas at its edge.
    limit = 0.16 if method == "adjoint" else 0.1
    simulation = scan(kind)
    # At this size the object reaches the edge of k-space and would be taken for noise.
    assert error(simulation, method, replace(simulation.kspace, noise=cartesian_noise(1e-3))) < limit


@pytest.mark.parametrize("kind", ["radial", "spiral"])
def test_regularised_methods_suppress_noise_that_gridding_keeps(kind: TrajectoryKind) -> None:
    noisy = scan(kind, matrix=64, relative_noise_variance=1.0)
    gridded = error(noisy, "adjoint")
    assert error(noisy, "tv") < 0.75 * gridded
    assert error(noisy, "wavelet") < 0.85 * gridded


def test_undersampled_spokes_of_several_coils_are_unfolded() -> None:
    fast = scan(matrix=64, acceleration=4.0, n_coils=6, relative_noise_variance=0.001)
    assert error(fast, "cg-sense") < 0.6 * error(fast, "cg-sense", coil_maps="none")
    assert error(fast, "tv") < 0.8 * error(fast, "adjoint")


@pytest.mark.parametrize("method", METHODS)
def test_samples_on_the_grid_give_the_cartesian_image(method: str) -> None:
    image = brain_phantom((2, N, N))
    cartesian = reconstruct(simulate(image, torch.ones(N, N), relative_noise_variance=0.05).kspace, method)
    along = simulate_along(image, epi(N, N), relative_noise_variance=0.05).kspace
    # The same samples in the order of EPI, every second line backwards.
    lines = simulate(image, torch.ones(N, N), relative_noise_variance=0.05).kspace.data
    lines = torch.where((torch.arange(N) % 2 == 1)[:, None], lines.flip(-1), lines)
    result = reconstruct(replace(along, data=lines.flatten(-2), noise=cartesian_noise(cartesian.noise_std)), method)
    difference = (
        result.image - cartesian.image
    ).abs().square().sum().sqrt() / cartesian.image.abs().square().sum().sqrt()
    assert float(difference) < 0.02


def cartesian_noise(std: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return math.sqrt(2) * std * torch.randn(1, 20000, dtype=torch.complex64, generator=generator)


def test_images_with_trajectories_of_their_own_are_reconstructed_each_with_its_own() -> None:
    image = brain_phantom((2, N, N))
    spokes = radial(100, 2 * N, golden=True)
    parts = [
        simulate_along(image, k, readout_length=2 * N).kspace for k in (spokes[: 50 * 2 * N], spokes[50 * 2 * N :])
    ]
    both = replace(
        parts[0],
        data=torch.stack([part.data for part in parts]),
        trajectory=torch.stack([part.trajectory for part in parts])[:, None],  # type: ignore[misc]
        dcf=None,
        mask=torch.ones(1, 1),
        noise=cartesian_noise(0.02),
        batch_axes=("repetition", "slice"),
    )
    together = reconstruct(both, "cg-sense")
    for index, part in enumerate(parts):
        alone = reconstruct(replace(part, dcf=None, noise=cartesian_noise(0.02)), "cg-sense").image
        torch.testing.assert_close(together.image[index], alone, rtol=0, atol=0.01 * float(alone.abs().max()))


def test_readouts_that_are_marked_missing_do_not_count() -> None:
    simulation = scan(relative_noise_variance=0.01)
    kspace = simulation.kspace
    assert kspace.trajectory is not None
    length = 2 * N
    kept = torch.ones(kspace.n_samples // length)
    kept[::5] = 0
    mask = kept.repeat_interleave(length)
    damaged = replace(kspace, data=torch.where(mask > 0, kspace.data, 1e3), mask=mask[None], dcf=None)
    without = replace(
        kspace, data=kspace.data[..., mask > 0], trajectory=kspace.trajectory[mask > 0], mask=torch.ones(1, 1), dcf=None
    )
    for method in ("adjoint", "tv"):
        expected = reconstruct(without, method).image
        result = reconstruct(damaged, method).image
        assert float((result - expected).abs().max()) < 0.02 * float(expected.abs().max())


def test_a_stack_of_stars_is_one_volume_with_a_transform_for_each_partition() -> None:
    kspace = scan("stack-of-stars", n_slices=4).kspace
    assert (kspace.n_dims, kspace.image_shape, kspace.batch_axes) == (3, (4, N, N), ())
    factors = operator_for(kspace).factors  # type: ignore[attr-defined]
    assert any(isinstance(factor, StackedNonUniformFourier) for factor in factors)
    image = reconstruct(kspace, "cg-sense").image
    assert image.shape == (4, N, N)


def test_slices_of_a_stack_of_stars_lie_where_those_of_single_planes_do() -> None:
    volume, planes = scan("stack-of-stars", n_slices=4), scan("radial", n_slices=4)
    a, b = (reconstruct(simulation.kspace, "adjoint") for simulation in (volume, planes))
    assert a.grid == b.grid
    assert float((a.image.abs() - b.image.abs()).abs().max()) < 0.02 * float(b.image.abs().max())


def test_what_belongs_to_the_grid_is_refused_along_a_trajectory() -> None:
    with pytest.raises(InputError, match="needs k-space on the Cartesian grid"):
        reconstruct(scan().kspace, "adjoint", partial_fourier="pocs")
    with pytest.raises(InputError, match="box"):
        scan("spiral", box=(16, 16))
    with pytest.raises(InputError, match="EPI"):
        scan("epi", acceleration=2.0)
    with pytest.raises(InputError, match="zigzag"):
        scan("zigzag")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["spiral", "stack-of-stars"])
def test_a_written_scan_gives_the_same_image(tmp_path: Path, kind: TrajectoryKind) -> None:
    simulation = scan(kind, n_coils=3, relative_noise_variance=0.01)
    write_ismrmrd(tmp_path / "scan.h5", simulation.kspace)
    # Maps of ESPIRiT end at a threshold, which a rounded trajectory may cross.
    result = reconstruct(read(tmp_path / "scan.h5"), "cg-sense", coil_maps="none")
    expected = reconstruct(replace(simulation.kspace, dcf=None), "cg-sense", coil_maps="none")
    assert result.grid.spacing_mm == pytest.approx(expected.grid.spacing_mm, abs=1e-4)
    torch.testing.assert_close(result.image, expected.image, rtol=0, atol=1e-3 * float(expected.image.abs().max()))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(main, capsys)


def test_the_commands_are_those_of_a_cartesian_scan(tmp_path: Path, run: Run) -> None:
    raw, image = tmp_path / "scan.h5", tmp_path / "image.nii.gz"
    options = ["--trajectory", "spiral", "--matrix", 32, "--slices", 2, "--acceleration", 2]
    assert run("simulate", "phantom", "-o", raw, *options).status == 0
    described = run("inspect", raw, "--json")
    assert described.status == 0
    assert json.loads(described.out)["encoding"]["axes"] == ["slice", "coil", "sample"]
    assert run("reconstruct", raw, "-o", image).status == 0
    assert nibabel.load(image).shape == (32, 32, 2)


def test_reference_coils_are_used_and_taken_out(tmp_path: Path, run: Run) -> None:
    simulation = simulate(brain_phantom((2, N, N)), torch.ones(N, N))
    generator = torch.Generator().manual_seed(2)
    emi = torch.randn(2, 1, N, N, dtype=torch.complex64, generator=generator)
    disturbed = torch.cat((simulation.kspace.data + 0.8 * emi, emi), dim=1)
    write_ismrmrd(tmp_path / "scan.h5", replace(simulation.kspace, data=disturbed, mask=torch.ones(1, N, N)))
    words = ("reconstruct", tmp_path / "scan.h5", "--method", "adjoint", "--format", "npy")
    assert run(*words, "-o", tmp_path / "cleaned.npy", "--reference-coils", "1").status == 0
    cleaned = torch.from_numpy(np.load(tmp_path / "cleaned.npy"))
    clean = reconstruct(simulation.kspace, "adjoint").image
    assert float((cleaned - clean).norm() / clean.norm()) < 0.3
    failed = run(*words, "-o", tmp_path / "other.npy", "--reference-coils", "7")
    assert (failed.status, "Traceback" in failed.err) == (2, False)
    assert not (tmp_path / "other.npy").exists()
