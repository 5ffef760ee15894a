"""Trained weights behind the command line, with other dictionaries and with what sparse coding explains."""

import inspect
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from mrirecon import cli, learned
from mrirecon.cli import main
from mrirecon.io.ismrmrd import write_ismrmrd
from mrirecon.learned import load_method, write_codes
from mrirecon.method_names import CLASSICAL_METHODS, DEFAULT_METHOD, LEARNED_METHODS
from mrirecon.models import build_model
from mrirecon.reconstruction import METHODS, reconstruct
from mrirecon.simulation import Scenario, simulate_scenario
from operators.checkpoint import Checkpoint, Metric, save_checkpoint
from operators.errors import InputError
from tests.reference.command_line import Run, files_in, runner

SMALL = {
    "csc": {"dictionary": "dct-4x5", "base": 2, "n_iterations": 4, "n_stages": 2},
    "unet": {"base": 2, "n_stages": 2},
}
SHIPPED: dict[str, tuple[str, dict[str, Any]]] = {
    "csc": ("csc", SMALL["csc"]),
    "csc-dictionaries": ("csc", SMALL["csc"]),
    "csc-v1": ("csc-v1", {"dictionary": "dct-4x5", "base": 2, "n_map_stages": 2, "n_iterations": 3}),
    "csc-published": ("csc-published", {"dictionary": "dct-4x5"}),
    "deepgsr": ("deepgsr", {"n_iterations": 1, "n_blocks": 1, "width": 2, "n_token_channels": 4, "n_hidden": 2}),
    "csc-scalar": ("csc-scalar", {"dictionary": "dct-4x5", "n_iterations": 3}),
    "unet": ("unet", SMALL["unet"]),
    "modl": ("modl", {"n_iterations": 2, "n_layers": 2, "width": 2}),
    "varnet": ("varnet", {"n_cascades": 1, "base": 2, "n_stages": 2}),
    "tv-maps": ("tv-maps", {"base": 2, "n_stages": 2, "n_iterations": 4}),
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(main, capsys)


def save_untrained(path: Path, kind: str, arguments: dict[str, Any], seed: int = 0) -> Path:
    torch.manual_seed(seed)
    state = build_model(kind, arguments).state_dict()
    metric = Metric("ssim", "of nothing", 0.5)
    save_checkpoint(path, Checkpoint(state, kind, arguments, "nothing", "CC0-1.0", seed, 0, metric, "0"))
    return path


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Path]:
    return {kind: save_untrained(tmp_path / f"{kind}.pt", kind, arguments) for kind, arguments in SMALL.items()}


@pytest.fixture
def shipped_weights(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tiny untrained weights in the place of those that come with the package."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, (name, (kind, arguments)) in enumerate(SHIPPED.items()):
        save_untrained(folder / f"{name}.pt", kind, arguments, seed)
    monkeypatch.setattr(learned, "_SHIPPED", folder)
    return folder


def scan(**options: object):
    settings = {"matrix": 32, "n_slices": 3, "relative_noise_variance": 0.1, **options}
    return simulate_scenario(Scenario(**settings)).kspace  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"n_coils": 3}, {"trajectory": "spiral"}, {"trajectory": "stack-of-stars"}])
def test_one_set_of_weights_serves_every_kind_of_scan(weights, options) -> None:
    kspace = scan(**options)
    method = load_method(weights["csc"], keep_codes=True)
    result = reconstruct(kspace, method())
    plain = reconstruct(kspace, load_method(weights["csc"])())
    torch.testing.assert_close(result.image, plain.image, rtol=0, atol=1e-5 * float(plain.image.abs().max()))
    explained = [part.low_pass + part.contributions.sum(dim=-3) for part in method.parts]
    together = torch.cat(explained).reshape(result.image.shape) * result.unit
    torch.testing.assert_close(together, result.image, rtol=0, atol=1e-5 * float(plain.image.abs().max()))
    assert result.method.startswith("csc, weights ")


def test_the_commands_take_weights_a_dictionary_and_a_folder_for_the_maps(weights, run: Run, tmp_path: Path) -> None:
    raw, image, maps = tmp_path / "scan.h5", tmp_path / "image.nii.gz", tmp_path / "maps"
    write_ismrmrd(raw, scan())
    words = ("reconstruct", raw, "--weights", weights["csc"], "--dictionary", "dct-6x7", "--save-maps", maps)
    done = run(*words, "-o", image)
    assert (done.status, "dictionary dct-6x7" in done.err) == (0, True)
    assert files_in(maps) == {"maps.nii.gz", "codes.nii.gz", "contributions.nii.gz", "low_pass.nii.gz"}
    written = {name: nibabel.load(maps / f"{name}.nii.gz") for name in ("maps", "codes", "contributions", "low_pass")}
    assert {name: volume.shape for name, volume in written.items()} == {
        **dict.fromkeys(("maps", "codes", "contributions"), (32, 32, 3, 6)),
        "low_pass": (32, 32, 3),
    }
    np.testing.assert_allclose(written["codes"].affine, nibabel.load(image).affine, atol=1e-4)
    assert float(written["maps"].get_fdata().min()) > 0
    again = run(*words, "-o", tmp_path / "again.nii.gz")
    assert (again.status, "maps" in again.err) == (2, True)
    assert not (tmp_path / "again.nii.gz").exists()


def test_filters_stand_in_the_files_one_after_another(weights, tmp_path: Path) -> None:
    kspace = scan()
    method = load_method(weights["csc"], keep_codes=True)
    result = reconstruct(kspace, method())
    write_codes(tmp_path / "maps", method, result)
    stored = nibabel.load(tmp_path / "maps" / "codes.nii.gz").get_fdata()
    (part,) = method.parts
    for index in range(4):
        expected = part.codes[1, index].abs() * result.unit
        np.testing.assert_allclose(stored[:, :, 1, index].T, expected.numpy(), rtol=1e-5, atol=1e-7)


def test_another_dictionary_gives_another_image_and_the_same_filters_the_same(weights) -> None:
    kspace = scan()
    own, same, other = (
        reconstruct(kspace, load_method(weights["csc"], dictionary=name)()).image
        for name in (None, "dct-4x5", "gabor-8x7")
    )
    torch.testing.assert_close(own, same, rtol=0, atol=1e-5 * float(own.abs().max()))
    assert float((own - other).abs().max()) > 1e-3 * float(own.abs().max())


def test_the_names_of_methods_are_known_before_the_methods(run: Run) -> None:
    assert tuple(METHODS) == CLASSICAL_METHODS
    assert set(SHIPPED) == set(LEARNED_METHODS)
    assert inspect.signature(reconstruct).parameters["method"].default == DEFAULT_METHOD
    printed = "".join(run("reconstruct", "--help").out.split())
    assert ",".join(CLASSICAL_METHODS) in printed
    assert ",".join(LEARNED_METHODS) in printed
    assert f"[default:({DEFAULT_METHOD})]" in printed


@pytest.mark.parametrize("name", LEARNED_METHODS)
def test_weights_that_come_with_the_package_are_methods(shipped_weights: Path, name: str) -> None:
    kspace = scan()
    result = reconstruct(kspace, name)
    expected = reconstruct(kspace, load_method(shipped_weights / f"{name}.pt")())
    torch.testing.assert_close(result.image, expected.image, rtol=0, atol=0)
    assert result.method.startswith(f"{name}, weights ")
    assert result.method[-8:] == expected.method[-8:]


def test_a_trained_method_is_named_like_any_other(shipped_weights: Path, run: Run, tmp_path: Path) -> None:
    raw = tmp_path / "scan.h5"
    write_ismrmrd(raw, scan())
    by_name = run("reconstruct", raw, "--method", "varnet", "-o", tmp_path / "a.nii.gz")
    by_weights = run("reconstruct", raw, "--weights", shipped_weights / "varnet.pt", "-o", tmp_path / "b.nii.gz")
    assert (by_name.status, by_weights.status, "method varnet, weights" in by_name.err) == (0, 0, True)
    a, b = (nibabel.load(tmp_path / name).get_fdata() for name in ("a.nii.gz", "b.nii.gz"))
    np.testing.assert_array_equal(a, b)


def test_a_trained_default_takes_a_dictionary_and_a_folder_for_the_maps(
    shipped_weights: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "DEFAULT_METHOD", "csc")
    raw, maps = tmp_path / "scan.h5", tmp_path / "maps"
    write_ismrmrd(raw, scan())
    done = run("reconstruct", raw, "--dictionary", "dct-6x7", "--save-maps", maps, "-o", tmp_path / "image.nii.gz")
    assert (done.status, "method csc, weights" in done.err, "dictionary dct-6x7" in done.err) == (0, True, True)
    assert nibabel.load(maps / "codes.nii.gz").shape == (32, 32, 3, 6)


def test_one_set_of_weights_serves_many_files(shipped_weights: Path, run: Run, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one.h5", "two.h5")]
    for seed, file in enumerate(files):
        write_ismrmrd(file, scan(seed=seed))
    assert run("reconstruct", *files, "-o", tmp_path / "images", "--method", "csc").status == 0
    for file in files:
        alone = tmp_path / "alone.nii.gz"
        assert run("reconstruct", file, "-o", alone, "--method", "csc", "--overwrite").status == 0
        together = nibabel.load(tmp_path / "images" / f"{file.stem}.nii.gz").get_fdata()
        np.testing.assert_array_equal(together, nibabel.load(alone).get_fdata())


def test_a_folder_with_the_name_of_a_method_does_not_hide_it(
    shipped_weights: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_ismrmrd("scan.h5", scan())
    Path("csc").mkdir()
    for option in ("--method", "--weights"):
        assert run("reconstruct", "scan.h5", "-o", f"{option}.nii.gz", option, "csc").status == 0


def test_weights_that_should_have_come_along_are_missed_in_a_sentence(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "_SHIPPED", tmp_path / "nothing")
    write_ismrmrd(tmp_path / "scan.h5", scan())
    failed = run("reconstruct", tmp_path / "scan.h5", "-o", tmp_path / "image.nii.gz", "--method", "unet")
    assert (failed.status, files_in(tmp_path)) == (2, {"scan.h5"})
    assert "The weights of unet should have come with mrirecon" in failed.err
    assert "install it again" in failed.err
    with pytest.raises(InputError, match="weights of csc should have come"):
        reconstruct(scan(), "csc")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "tv", "--dictionary", "dct-4x5"), "and the method is tv"),
        (("--method", "adjoint", "--save-maps", "maps"), "and the method is adjoint"),
        (("--method", "varnet", "--dictionary", "dct-4x5"), "no dictionary and no codes"),
        (("--method", "tv-maps", "--save-maps", "maps"), "no dictionary and no codes"),
        (("--method", "csc", "--lambda", "0.5"), "takes no strength and no number of iterations"),
        (("--method", "unet", "--iterations", "3"), "takes no strength and no number of iterations"),
        (("--weights", "csc.pt", "--lambda", "0"), "takes no strength and no number of iterations"),
        (("--method", "adjoint", "--iterations", "3"), "takes no strength and no number of iterations"),
        (("--method", "csc", "--weights", "csc.pt"), "leave one of them out"),
        (("--method", "magic"), f"wavelet, or with trained weights {', '.join(LEARNED_METHODS)}."),
        (("--weights", "unet.pt", "--dictionary", "dct-4x5"), "no dictionary and no codes"),
        (("--weights", "unet.pt", "--save-maps", "maps"), "no dictionary and no codes"),
        (("--weights", "csc.pt", "--dictionary", "dct-4x4"), "odd"),
        (("--weights", "csc.pt", "--partial-fourier", "pocs"), "belongs to the method adjoint"),
        (("--weights", "none.pt"), "none.pt"),
        (("--weights", "scan.h5"), "scan.h5"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    weights, shipped_weights, run: Run, tmp_path: Path, monkeypatch, words, message
) -> None:
    monkeypatch.chdir(tmp_path)
    write_ismrmrd("scan.h5", scan())
    failed = run("reconstruct", "scan.h5", "-o", "image.nii.gz", *words)
    assert (failed.status, message in failed.err, "Traceback" in failed.err) == (2, True, False)
    assert files_in(tmp_path) == {"scan.h5", "csc.pt", "unet.pt"}


def test_codes_must_have_been_kept(weights, tmp_path: Path) -> None:
    method = load_method(weights["csc"])
    result = reconstruct(scan(), method())
    with pytest.raises(InputError, match="No codes were kept"):
        write_codes(tmp_path / "maps", method, result)


def test_a_classical_method_may_be_given_as_itself() -> None:
    kspace = scan()
    torch.testing.assert_close(reconstruct(kspace, METHODS["tv"]).image, reconstruct(kspace, "tv").image)
