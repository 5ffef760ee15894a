"""Trained weights behind the command line, with other dictionaries and with what sparse coding explains."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from mrirecon.cli import main
from mrirecon.io.ismrmrd import write_ismrmrd
from mrirecon.learned import load_method, write_codes
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


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(main, capsys)


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Path]:
    paths = {}
    for kind, arguments in SMALL.items():
        torch.manual_seed(0)
        paths[kind] = tmp_path / f"{kind}.pt"
        state = build_model(kind, arguments).state_dict()
        metric = Metric("ssim", "of nothing", 0.5)
        save_checkpoint(paths[kind], Checkpoint(state, kind, arguments, "nothing", "CC0-1.0", 0, 0, metric, "0"))
    return paths


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dictionary", "dct-4x5"), "belong to trained weights"),
        (("--save-maps", "maps"), "belong to trained weights"),
        (("--weights", "unet.pt", "--dictionary", "dct-4x5"), "no dictionary and no codes"),
        (("--weights", "unet.pt", "--save-maps", "maps"), "no dictionary and no codes"),
        (("--weights", "csc.pt", "--dictionary", "dct-4x4"), "odd"),
        (("--weights", "csc.pt", "--partial-fourier", "pocs"), "belongs to the method adjoint"),
        (("--weights", "none.pt"), "none.pt"),
        (("--weights", "scan.h5"), "scan.h5"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    weights, run: Run, tmp_path: Path, monkeypatch, words, message
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
