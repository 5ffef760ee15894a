"""Trained weights behind the command line, with other dictionaries and with what sparse coding explains."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from ctrecon.cli import main
from ctrecon.io.sinogram_file import write_sinogram
from ctrecon.learned import load_method, write_codes
from ctrecon.method_names import CLASSICAL_METHODS, DEFAULT_METHOD, LEARNED_METHODS
from ctrecon.metrics import rmse_hu
from ctrecon.models import apply_model, build_model
from ctrecon.reconstruction import METHODS, operator_for, reconstruct
from ctrecon.simulation import Scenario, simulate_scenario
from ctrecon.sinogram import Sinogram
from operators.checkpoint import Checkpoint, Metric, save_checkpoint
from operators.errors import InputError
from tests.reference.command_line import Run, files_in, runner

N = 24
KINDS: dict[str, dict[str, Any]] = {
    "unet": {"base": 2, "n_stages": 2},
    "unrolled-unet": {"base": 2, "n_stages": 2, "n_iterations": 2},
    "tv-maps": {"base": 2, "n_stages": 2, "n_iterations": 3},
    "csc": {"dictionary": "dct-4x5", "base": 2, "n_iterations": 4, "n_stages": 2},
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(main, capsys)


@pytest.fixture
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny untrained weights."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, (kind, arguments) in enumerate(KINDS.items()):
        torch.manual_seed(seed)
        state = build_model(kind, arguments).state_dict()
        metric = Metric("psnr_db", "of nothing", 0.5)
        checkpoint = Checkpoint(state, kind, arguments, "nothing", "CC0-1.0", seed, 0, metric, "0")
        save_checkpoint(folder / f"{kind}.pt", checkpoint)
    return folder


@pytest.fixture(scope="module")
def scan() -> Sinogram:
    one, other = (
        simulate_scenario(Scenario(n_views=60, matrix=N, n_photons=1e5, seed=seed)).sinogram for seed in (0, 1)
    )
    assert one.weights is not None
    assert other.weights is not None
    return replace(one, data=torch.cat((one.data, other.data)), weights=torch.cat((one.weights, other.weights)))


def test_the_names_of_methods_are_known_before_the_methods(run: Run) -> None:
    assert tuple(METHODS) == CLASSICAL_METHODS
    assert inspect.signature(reconstruct).parameters["method"].default == DEFAULT_METHOD
    printed = "".join(run("reconstruct", "--help").out.split())
    assert ",".join(CLASSICAL_METHODS) in printed
    assert f"[default:({DEFAULT_METHOD})]" in printed


@pytest.mark.parametrize("name", KINDS)
def test_weights_are_methods(weights: Path, scan: Sinogram, name: str) -> None:
    method = load_method(weights / f"{name}.pt")
    result = reconstruct(scan, method())
    image = apply_model(method.reconstruct, scan.data, operator_for(scan), result.noise_std)
    torch.testing.assert_close(result.mu_per_mm, image, rtol=1e-4, atol=1e-7)
    assert result.mu_per_mm.shape == (2, N, N)
    assert result.method.startswith(f"{name}, weights ")


def test_weights_of_rays_do_not_reach_trained_methods_and_missing_rays_are_refused(
    weights: Path, scan: Sinogram
) -> None:
    method = load_method(weights / "unet.pt")()
    plain = reconstruct(replace(scan, weights=None), method)
    weighted = reconstruct(scan, method)
    torch.testing.assert_close(plain.mu_per_mm, weighted.mu_per_mm, rtol=0, atol=0)
    assert scan.weights is not None
    missing = scan.weights.clone()
    missing[0, 0, 0] = 0
    with pytest.raises(InputError, match="Some rays of the scan were not measured"):
        reconstruct(replace(scan, weights=missing), method)


def test_the_commands_take_weights_a_dictionary_and_a_folder_for_the_maps(
    weights: Path, scan: Sinogram, run: Run, tmp_path: Path
) -> None:
    raw, image, maps = tmp_path / "scan.h5", tmp_path / "image.nii.gz", tmp_path / "maps"
    write_sinogram(raw, scan)
    words = ("reconstruct", raw, "--weights", weights / "csc.pt", "--dictionary", "dct-6x7", "--save-maps", maps)
    done = run(*words, "-o", image)
    assert (done.status, "dictionary dct-6x7" in done.err) == (0, True)
    written = {name: nibabel.load(maps / f"{name}.nii.gz") for name in ("maps", "codes", "contributions", "low_pass")}
    assert {name: volume.shape for name, volume in written.items()} == {
        **dict.fromkeys(("maps", "codes", "contributions"), (N, N, 2, 6)),
        "low_pass": (N, N, 2),
    }
    np.testing.assert_allclose(written["codes"].affine, nibabel.load(image).affine, atol=1e-4)
    mu = written["low_pass"].get_fdata() + written["contributions"].get_fdata().sum(axis=-1)
    hu = nibabel.load(image).get_fdata()
    np.testing.assert_allclose(1000 * (mu / scan.mu_water_per_mm - 1), hu, atol=0.1)
    again = run(*words, "-o", tmp_path / "again.nii.gz")
    assert (again.status, "maps" in again.err) == (2, True)
    assert not (tmp_path / "again.nii.gz").exists()


def test_codes_must_have_been_kept(weights: Path, scan: Sinogram, tmp_path: Path) -> None:
    method = load_method(weights / "csc.pt")
    result = reconstruct(scan, method())
    with pytest.raises(InputError, match="No codes were kept"):
        write_codes(tmp_path / "maps", method, result)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "tv", "--dictionary", "dct-4x5"), "and the method is tv"),
        (("--save-maps", "maps"), f"and the method is {DEFAULT_METHOD}"),
        (("--weights", "unet.pt", "--dictionary", "dct-4x5"), "no dictionary and no codes"),
        (("--weights", "csc.pt", "--lambda", "0.5"), "takes no strength and no number of iterations"),
        (("--method", "tv", "--weights", "csc.pt"), "leave one of them out"),
        (("--method", "magic"), "cgls, tv, wavelet, or with trained weights deepgsr"),
        (("--weights", "none.pt"), "none.pt"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    weights: Path,
    scan: Sinogram,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(weights)
    write_sinogram(tmp_path / "scan.h5", scan)
    failed = run("reconstruct", tmp_path / "scan.h5", "-o", "image.nii.gz", *words)
    assert (failed.status, message in failed.err, "Traceback" in failed.err) == (2, True, False)
    assert files_in(tmp_path) == {"scan.h5"}


@pytest.mark.parametrize("name", LEARNED_METHODS)
def test_weights_that_come_along_beat_filtered_back_projection(name: str) -> None:
    scenario = Scenario(preset="sparse-view", n_views=60, matrix=128, noise="sparse-view", seed=3)
    simulation = simulate_scenario(scenario)
    images = {method: reconstruct(simulation.sinogram, method) for method in ("fbp", name)}
    errors = {method: float(rmse_hu(result.hu, simulation.target_hu).mean()) for method, result in images.items()}
    assert errors[name] < 0.7 * errors["fbp"]
    assert images[name].method.startswith(f"{name}, weights ")
