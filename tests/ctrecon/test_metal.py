"""Reduction of metal artefacts: exact where it must be, and better than nothing where it cannot be."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctrecon import reconstruction
from ctrecon.cli import main
from ctrecon.hounsfield import to_hu, to_mu
from ctrecon.io.sinogram_file import write_sinogram
from ctrecon.metal import (
    insert_metal,
    load_metal_method,
    reconstruct_without_metal,
    reduce_metal,
    segment_metal,
)
from ctrecon.method_names import METAL_METHOD_NAMES, MethodNames
from ctrecon.metrics import psnr_clean_mar, rmse_hu
from ctrecon.models import build_model
from ctrecon.prepare import noise_std
from ctrecon.simulation import Scenario, Simulation, simulate, simulate_scenario
from ctrecon.sinogram import Sinogram
from operators.back_projection import filtered_back_projection
from operators.beam_geometry import ParallelBeam
from operators.checkpoint import Checkpoint, Metric, save_checkpoint
from operators.errors import InputError
from operators.metal import masked, metal_trace
from operators.projection import Projection
from tests.reference.command_line import Run, files_in, runner

N = 32
GEOMETRY = ParallelBeam(tuple(math.pi * k / 30 for k in range(30)), 46, 6.0, 8.0)


def with_mask(data: torch.Tensor) -> tuple[Sinogram, torch.Tensor]:
    mask = torch.zeros(N, N, dtype=torch.bool)
    mask[12:15, 18:20] = True
    return Sinogram(data, GEOMETRY, (N, N)), mask


@pytest.fixture(scope="module")
def scan() -> Simulation:
    scenario = Scenario(matrix=128, n_views=360, metal="spine", polyenergetic=True, n_photons=2e7)
    return simulate_scenario(scenario)


def image_of(sinogram: Sinogram) -> torch.Tensor:
    image = filtered_back_projection(sinogram.data, sinogram.geometry, sinogram.image_shape)
    return to_hu(image, sinogram.mu_water_per_mm)


def test_linear_interpolation_is_exact_where_views_are_linear_across_the_trace():
    detector, view = torch.arange(46.0), torch.arange(30.0)[:, None]
    straight = (0.5 + 0.01 * view + (0.02 - 0.001 * view) * detector)[None]
    sinogram, mask = with_mask(straight.clone())
    trace = metal_trace(mask[None], Projection(GEOMETRY, (N, N)))
    sinogram.data[trace == 1] += 3.0
    result = reduce_metal(sinogram, "li", mask=mask)
    torch.testing.assert_close(result.sinogram.data, straight, rtol=1e-5, atol=1e-5)
    assert torch.equal(result.trace, trace)
    assert torch.equal(result.mask[0], mask)


def test_normalised_interpolation_is_exact_where_the_prior_is():
    # Tissue at 0 HU with sharp bone: the prior knows it all, and linear interpolation does not.
    hu = torch.full((1, N, N), -1000.0)
    hu[:, 5:27, 4:28] = 0.0
    hu[:, 8:11, 8:24] = 1200.0
    A = Projection(GEOMETRY, (N, N))
    sinogram, mask = with_mask(A(to_mu(hu, 0.0192)))
    clean = sinogram.data.clone()
    trace = metal_trace(mask[None], A)
    sinogram.data[trace == 1] += 2.0
    errors = {
        method: float((reduce_metal(sinogram, method, mask=mask).sinogram.data - clean)[trace == 1].abs().mean())
        for method in ("li", "nmar")
    }
    assert errors["nmar"] < 0.6 * errors["li"]
    assert errors["li"] < 0.5


@pytest.mark.parametrize("method", ["li", "nmar"])
def test_rays_beside_the_metal_are_untouched(method, generator):
    data = 1 + torch.rand(2, 30, 46, generator=generator)
    sinogram, mask = with_mask(data)
    result = reduce_metal(sinogram, method, mask=mask)
    kept = result.trace == 0
    assert result.trace.shape == data.shape
    assert torch.equal(result.sinogram.data[kept], data[kept])
    assert (result.sinogram.data != data)[~kept].float().mean() > 0.99
    assert result.sinogram.data.isfinite().all()
    assert [d.name for d in result.decisions] == ["metal", "metal_reduction"]
    assert result.sinogram.decisions == result.decisions


def test_weights_are_interpolated_too(scan):
    result = reduce_metal(scan.sinogram, "li", mask=scan.metal_mask)
    assert scan.sinogram.weights is not None
    assert result.sinogram.weights is not None
    shadow = result.trace == 1
    assert torch.equal(result.sinogram.weights[~shadow], scan.sinogram.weights[~shadow])
    assert result.sinogram.weights[shadow].mean() > 2 * scan.sinogram.weights[shadow].mean()


def test_nmar_beats_interpolation_beats_nothing(scan):
    metal = scan.metal_mask == 1
    raw = float(psnr_clean_mar(image_of(scan.sinogram), scan.target_hu, metal))
    li, nmar = (
        float(psnr_clean_mar(image_of(reduce_metal(scan.sinogram, m, mask=metal).sinogram), scan.target_hu, metal))
        for m in ("li", "nmar")
    )
    assert li > raw + 4
    assert nmar > li + 1


def test_total_variation_of_the_rays_beside_the_metal_beats_nmar(scan):
    metal = scan.metal_mask == 1
    nmar, tv = (reconstruct_without_metal(scan.sinogram, method, mask=metal) for method in ("nmar", "tv"))
    gain = psnr_clean_mar(tv.hu, scan.target_hu, metal) - psnr_clean_mar(nmar.hu, scan.target_hu, metal)
    assert float(gain) > 1
    assert tv.method == "tv"
    assert float(tv.residual.mean()) < float(nmar.residual.mean())
    torch.testing.assert_close(tv.hu[metal], nmar.hu[metal])


def test_metal_is_found_by_its_density(scan):
    metal = scan.metal_mask == 1
    result = reduce_metal(scan.sinogram, "li")
    assert (result.mask & metal).sum() > 0.95 * metal.sum()
    assert (result.mask & ~metal).sum() < 0.2 * metal.sum()
    assert "2500" in result.decisions[0].reason
    assert torch.equal(segment_metal(torch.tensor([[2499.0, 2500.0, 2501.0]])), torch.tensor([[False, False, True]]))


def test_the_reconstruction_has_its_metal_back_and_fewer_artefacts(scan):
    metal = scan.metal_mask == 1
    original = image_of(scan.sinogram)
    result = reconstruct_without_metal(scan.sinogram, "nmar", mask=metal)
    torch.testing.assert_close(result.hu[metal], original[metal], rtol=1e-5, atol=0.1)
    assert rmse_hu(result.hu, scan.target_hu, metal) < 0.5 * rmse_hu(original, scan.target_hu, metal)
    assert result.method == "fbp after nmar"
    assert any(d.name == "metal_reduction" for d in result.decisions)
    back = insert_metal(torch.zeros(1, 2), torch.tensor([[1, 0]]), torch.full((1, 2), 7.0))
    assert back.tolist() == [[7.0, 0.0]]


def test_without_metal_nothing_happens_and_that_is_said():
    hu = torch.full((1, N, N), -1000.0)
    hu[:, 8:24, 8:24] = 0.0
    sinogram = simulate(hu, GEOMETRY).sinogram
    result = reduce_metal(sinogram, "nmar")
    assert torch.equal(result.sinogram.data, sinogram.data)
    assert not result.mask.any()
    assert not result.trace.any()
    assert result.decisions[0].warning
    assert "nothing was corrected" in str(result.sinogram.decisions[-1])


def test_what_cannot_be_corrected_is_refused():
    sinogram, mask = with_mask(torch.ones(1, 30, 46))
    with pytest.raises(InputError, match="choose li or nmar"):
        reduce_metal(sinogram, "magic", mask=mask)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="other than 0 and 1"):
        reduce_metal(sinogram, "li", mask=2 * mask)
    with pytest.raises(InputError, match="must fit the image"):
        reduce_metal(sinogram, "li", mask=mask[1:])
    narrow = Sinogram(torch.ones(1, 30, 4), ParallelBeam(GEOMETRY.angles_rad, 4, 6.0, 8.0), (N, N))
    with pytest.raises(InputError, match="every ray of at least one view"):
        reduce_metal(narrow, "li", mask=torch.ones(N, N))
    with pytest.raises(TypeError, match="floating-point"):
        segment_metal(torch.ones(2, 2, dtype=torch.int32))


KINDS: dict[str, dict[str, Any]] = {
    "unet": {"base": 2, "n_stages": 2},
    "unrolled-unet": {"base": 2, "n_stages": 2, "n_iterations": 2},
    "csc": {"dictionary": "dct-4x5", "base": 2, "n_iterations": 4, "n_stages": 2},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny untrained weights."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, (kind, arguments) in enumerate(KINDS.items()):
        torch.manual_seed(seed)
        state = build_model(kind, arguments).state_dict()
        metric = Metric("psnr_db", "of nothing", 0.5)
        save_checkpoint(
            folder / f"{kind}.pt", Checkpoint(state, kind, arguments, "nothing", "CC0-1.0", seed, 0, metric, "0")
        )
    return folder


@pytest.fixture
def small() -> tuple[Sinogram, torch.Tensor]:
    """Two slices with the same metal."""
    hu = torch.full((2, N, N), -1000.0)
    hu[0, 5:27, 4:28] = 0.0
    hu[1, 8:27, 6:24] = 40.0
    mask = torch.zeros(N, N)
    mask[12:15, 18:20] = 1
    sinogram = simulate(hu, GEOMETRY, n_photons=1e5, metal_mask=mask, polyenergetic=True).sinogram
    return replace(sinogram, weights=None), mask == 1


@pytest.mark.parametrize("kind", ["unet", "unrolled-unet", "csc"])
def test_a_trained_model_refines_the_image_of_nmar_with_the_rays_beside_the_metal(
    weights: Path, small: tuple[Sinogram, torch.Tensor], kind: str
) -> None:
    sinogram, mask = small
    method = load_metal_method(weights / f"{kind}.pt")
    steps: list[tuple[int, int]] = []
    result = reconstruct_without_metal(sinogram, method, mask=mask, progress=lambda *done: steps.append(done))
    reduction = reduce_metal(sinogram, "nmar", mask=mask)
    A = Projection(GEOMETRY, (N, N))
    scale = 1 / float(A.norm())
    level = noise_std(replace(sinogram, weights=1 - reduction.trace))[0]
    for i in range(2):
        keep = 1 - reduction.trace[i]
        x0 = filtered_back_projection(reduction.sinogram.data[i], GEOMETRY, (N, N))
        start = (x0[None],) if kind != "csc" else ()
        with torch.no_grad():
            image = method.model(
                scale * (keep * sinogram.data[i])[None], scale * masked(A, 1 - keep), scale * level, *start
            )
        torch.testing.assert_close(result.mu_per_mm[i][~mask], image[0][~mask], rtol=1e-4, atol=1e-6)
        original = filtered_back_projection(sinogram.data[i], GEOMETRY, (N, N))
        torch.testing.assert_close(result.mu_per_mm[i][mask], original[mask])
        difference = keep * (A(image[0]) - sinogram.data[i])
        expected = float(difference.square().sum()) / (level**2 * float(keep.sum()))
        assert float(result.residual[i]) == pytest.approx(expected, rel=1e-3)
    assert result.method.startswith(f"{kind}, weights ")
    (made,) = (d for d in result.decisions if d.name == "metal_free_image")
    assert ("nmar" in made.reason) == (kind != "csc")
    assert result.noise_std == level
    assert steps == [(1, 2), (2, 2)]


def test_what_stands_in_the_trace_changes_nothing_beside_the_metal(
    weights: Path, small: tuple[Sinogram, torch.Tensor]
) -> None:
    sinogram, mask = small
    trace = reduce_metal(sinogram, "li", mask=mask).trace
    other = replace(sinogram, data=torch.where(trace == 1, 9.0, sinogram.data))
    method = load_metal_method(weights / "unrolled-unet.pt")
    one, same = (reconstruct_without_metal(s, method, mask=mask) for s in (sinogram, other))
    assert torch.equal(one.mu_per_mm[:, ~mask], same.mu_per_mm[:, ~mask])
    assert not torch.equal(one.mu_per_mm[:, mask], same.mu_per_mm[:, mask])


def test_rays_that_were_not_measured_are_left_out_like_those_through_metal(
    weights: Path, small: tuple[Sinogram, torch.Tensor]
) -> None:
    sinogram, mask = small
    known = torch.ones_like(sinogram.data)
    known[:, 3, 5] = 0
    method = load_metal_method(weights / "csc.pt")
    changed = sinogram.data.clone()
    changed[:, 3, 5] += 1
    one, same = (
        reconstruct_without_metal(replace(sinogram, data=data, weights=known), method, mask=mask)
        for data in (sinogram.data, changed)
    )
    assert torch.equal(one.mu_per_mm[:, ~mask], same.mu_per_mm[:, ~mask])
    assert torch.equal(one.residual, same.residual)


def test_without_metal_a_trained_model_has_nothing_to_do(weights: Path) -> None:
    hu = torch.full((1, N, N), -1000.0)
    hu[:, 8:24, 8:24] = 0.0
    sinogram = simulate(hu, GEOMETRY).sinogram
    result = reconstruct_without_metal(sinogram, load_metal_method(weights / "unet.pt"))
    torch.testing.assert_close(result.mu_per_mm, filtered_back_projection(sinogram.data, GEOMETRY, (N, N)))
    assert result.method == "fbp after nmar"
    assert any("nothing was corrected" in str(d) for d in result.decisions)


def test_the_operator_is_built_once(small: tuple[Sinogram, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    sinogram, mask = small
    built = []

    def counted(*arguments: Any) -> Projection:
        built.append(arguments)
        return Projection(*arguments)

    monkeypatch.setattr(reconstruction, "Projection", counted)
    reconstruct_without_metal(sinogram, "nmar", mask=mask)
    assert len(built) == 1


def test_the_filter_is_that_of_the_image_and_its_metal(small: tuple[Sinogram, torch.Tensor]) -> None:
    sinogram, mask = small
    result = reconstruct_without_metal(sinogram, "li", mask=mask, filter="hann")
    filled = reduce_metal(sinogram, "li", mask=mask).sinogram.data
    image, original = (
        filtered_back_projection(data, GEOMETRY, (N, N), filter="hann") for data in (filled, sinogram.data)
    )
    torch.testing.assert_close(result.mu_per_mm, torch.where(mask, original, image))


def test_an_image_to_start_from_is_refused_by_models_that_take_none(weights: Path) -> None:
    A = Projection(GEOMETRY, (N, N))
    method = load_metal_method(weights / "csc.pt")
    assert not method.refines
    with pytest.raises(InputError, match=r"csc, weights \w+ takes no image to start from"):
        method.reconstruct(torch.ones(1, 30, 46), A, 0.1, torch.ones(1, N, N))


def test_weights_that_come_with_the_package_are_methods_by_name(
    weights: Path, small: tuple[Sinogram, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    sinogram, mask = small
    monkeypatch.setattr("ctrecon.metal.METAL_METHODS", ("unet", "lost"))
    monkeypatch.setattr("ctrecon.metal.METAL_METHOD_NAMES", MethodNames(("li", "nmar"), ("unet", "lost")))
    (weights / "unet-mar.pt").write_bytes((weights / "unet.pt").read_bytes())
    monkeypatch.setattr("ctrecon.metal._SHIPPED", weights)
    named = reconstruct_without_metal(sinogram, "unet", mask=mask)
    own = reconstruct_without_metal(sinogram, load_metal_method(weights / "unet.pt"), mask=mask)
    assert torch.equal(named.mu_per_mm, own.mu_per_mm)
    with pytest.raises(InputError, match="should have come with ctrecon"):
        reconstruct_without_metal(sinogram, "lost", mask=mask)
    with pytest.raises(InputError, match="'magic' is unknown; choose one of li, nmar, or with trained weights unet"):
        reconstruct_without_metal(sinogram, "magic", mask=mask)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(main, capsys)


def test_the_command_takes_weights_of_ones_own(
    weights: Path, small: tuple[Sinogram, torch.Tensor], run: Run, tmp_path: Path
) -> None:
    sinogram, _ = small
    write_sinogram(tmp_path / "scan.h5", sinogram)
    done = run("mar", tmp_path / "scan.h5", "-o", tmp_path / "a.npy", "--weights", weights / "unrolled-unet.pt")
    assert (done.status, "method unrolled-unet, weights " in done.err) == (0, True)
    assert "metal_free_image" in done.err
    result = reconstruct_without_metal(sinogram, load_metal_method(weights / "unrolled-unet.pt"))
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), result.hu.numpy(), atol=0.1)
    printed = "".join(run("mar", "--help").out.split())
    assert "".join(str(METAL_METHOD_NAMES).split()) in printed
    assert "[default:(nmar)]" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "magic"), "'magic' is unknown; choose one of li, nmar"),
        (("--method", "li", "--weights", "unet.pt"), "leave one of them out"),
        (("--weights", "none.pt"), "none.pt is no file"),
        (("--weights", "scan.h5"), "scan.h5"),
        (("--weights", "unet.pt", "--device", "abacus"), "'abacus' cannot be used here"),
    ],
)
def test_what_the_command_cannot_do_is_one_sentence(
    weights: Path,
    small: tuple[Sinogram, torch.Tensor],
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    write_sinogram(tmp_path / "scan.h5", small[0])
    (tmp_path / "unet.pt").write_bytes((weights / "unet.pt").read_bytes())
    monkeypatch.chdir(tmp_path)
    failed = run("mar", "scan.h5", "-o", "image.nii.gz", *words)
    assert (failed.status, message in failed.err, "Traceback" in failed.err) == (2, True, False)
    assert files_in(tmp_path) == {"scan.h5", "unet.pt"}
