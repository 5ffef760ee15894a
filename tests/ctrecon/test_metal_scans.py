"""Simulated scans with metal: what they are made of, that they come again, and how they are kept."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ctrecon.datasets import Scanner
from ctrecon.hounsfield import MU_WATER_PER_MM, to_hu
from ctrecon.implants import implants
from ctrecon.metal import reconstruct_beside_metal
from ctrecon.metal_scans import (
    Body,
    MetalScan,
    MetalScanner,
    MetalScans,
    MetalScenarios,
    drawing_from,
    load_bodies,
    prepare_scans,
)
from ctrecon.metrics import rmse_hu
from ctrecon.models import build_model
from ctrecon.simulation import simulate
from operators.errors import InputError
from tests.reference.ct_study import data_in, write_people

N = 48
SCENARIOS = MetalScenarios(n_views=(30, 60), metal=("titanium", "iron"), preset="sparse-view-60", n_photons=1e7)
HIP = implants("test")[4]
assert HIP.name.startswith("hip")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("people")
    write_people(path)
    return path


@pytest.fixture(scope="module")
def scanner() -> MetalScanner:
    return MetalScanner(SCENARIOS, N)


@pytest.fixture(scope="module")
def bodies(folder: Path, scanner: MetalScanner) -> tuple[Body, ...]:
    return load_bodies(data_in(folder).sources, scanner.scanner, folder, patients="a")


@pytest.fixture(scope="module")
def scan(scanner: MetalScanner, bodies: tuple[Body, ...]) -> MetalScan:
    return scanner.scan(bodies[2], HIP, "iron", 60, torch.Generator().manual_seed(3))


def scans(folder: Path, n_scans: int, **changed: object) -> MetalScans:
    words = {"shapes": "train", "seed": 7, "patients": "a", **changed}
    return MetalScans(data_in(folder).sources, SCENARIOS, N, n_scans, folder=folder, **words)  # type: ignore[arg-type]


def equal(one: MetalScan, other: MetalScan) -> bool:
    names = ("y", "trace", "x0", "target", "metal", "uncorrected")
    facts = ("noise_std", "patient", "number", "implant", "material", "n_views", "norm")
    return all(torch.equal(getattr(one, n), getattr(other, n)) for n in names) and all(
        getattr(one, n) == getattr(other, n) for n in facts
    )


def test_rays_beside_the_metal_are_those_of_the_body_alone(
    scan: MetalScan, scanner: MetalScanner, bodies: tuple[Body, ...]
) -> None:
    geometry = replace(scanner.scanner.geometry, pixel_spacing_mm=bodies[2].pixel_mm)
    clean = simulate(bodies[2].hu[None], geometry, polyenergetic=True).sinogram.data[0]
    beside = ~scan.trace
    assert 0.02 < scan.trace.float().mean() < 0.5
    noise = (clean.exp() / SCENARIOS.n_photons).sqrt()  # of counts, before the correction for water
    whitened = ((scan.y - clean) / noise)[beside]
    assert abs(float(whitened.mean())) < 0.05
    assert 0.7 < float(whitened.std()) < 1.3
    assert not scan.y[scan.trace].any()


def test_the_operator_leaves_the_trace_out_and_meets_the_data(scan: MetalScan) -> None:
    projected = scan.projection(scan.target)
    torch.testing.assert_close(scan.A(scan.target), torch.where(scan.trace, 0, projected))
    difference = (scan.A(scan.target) - scan.y).abs()
    assert float(difference.mean()) < 0.1 * float(scan.y.abs().mean())
    # the target was never projected with the pixels of the scan: that alone leaves more than the noise
    assert float(difference.square().mean().sqrt()) > 3 * scan.noise_std
    y = torch.rand(scan.y.shape, generator=torch.Generator().manual_seed(0))
    left, right = (scan.A(scan.target) * y).sum(), (scan.target * scan.A.adjoint(y)).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-4)


def test_normalised_interpolation_is_a_start_without_metal(scan: MetalScan) -> None:
    hu, raw, target = (to_hu(mu, scan.mu_water_per_mm) for mu in (scan.x0, scan.uncorrected, scan.target))
    assert float(raw[scan.metal].max()) > 3000
    assert float(hu[scan.metal].max()) < 2000
    assert rmse_hu(hu, target, scan.metal) < rmse_hu(raw, target, scan.metal)
    assert (scan.patient, scan.kernel, scan.number, scan.material, scan.n_views) == ("a", "soft", 2, "iron", 60)
    assert scan.implant == HIP.name


def test_the_target_is_the_mean_over_each_pixel(bodies: tuple[Body, ...], folder: Path) -> None:
    own, shown = bodies[0].hu / 1000 + 1, bodies[0].mu_per_mm / MU_WATER_PER_MM
    assert float(shown.sum()) * (400 / N) ** 2 == pytest.approx(float(own.sum()) * 7.5**2, rel=1e-4)
    # in the field of view of 153.6 mm the image of 360 mm is shrunk, and its pixels are those of the scan
    (shrunk, *_) = load_bodies(data_in(folder).sources, Scanner("syndeeplesion", N), folder, patients="a")
    assert shrunk.pixel_mm == pytest.approx(153.6 / N)
    torch.testing.assert_close(to_hu(shrunk.mu_per_mm, MU_WATER_PER_MM), shrunk.hu, rtol=0, atol=0.01)


def test_place_and_turn_do_not_depend_on_the_views(scan: MetalScan, scanner: MetalScanner, bodies: tuple[Body, ...]):
    fewer = scanner.scan(bodies[2], HIP, "iron", 30, torch.Generator().manual_seed(3))
    assert torch.equal(fewer.metal, scan.metal)
    assert torch.equal(fewer.trace, scan.trace[::2])
    other = scanner.scan(bodies[2], HIP, "iron", 30, torch.Generator().manual_seed(4))
    assert not torch.equal(other.metal, scan.metal)


def test_without_metal_the_image_is_that_of_the_body(scanner: MetalScanner, bodies: tuple[Body, ...], scan: MetalScan):
    image = scanner.image_without_metal(bodies[2], 60, torch.Generator().manual_seed(3))
    hu, target = to_hu(image, scan.mu_water_per_mm), to_hu(scan.target, scan.mu_water_per_mm)
    assert rmse_hu(hu, target) < rmse_hu(to_hu(scan.x0, scan.mu_water_per_mm), target)


def test_an_index_is_all_that_a_scan_depends_on(folder: Path) -> None:
    some, more = scans(folder, 2), scans(folder, 3)
    assert equal(more[1], some[1])
    assert not equal(more[1], more[0])
    assert not equal(scans(folder, 2, seed=8)[1], some[1])
    assert len(more) == 3
    with pytest.raises(IndexError, match="none of index 3"):
        more[3]
    assert {more[i].implant for i in range(3)} <= {implant.name for implant in implants("train")}


def test_prepared_scans_are_the_same_and_are_made_once(folder: Path, tmp_path: Path) -> None:
    drawn = scans(folder, 2)
    steps: list[tuple[int, int]] = []
    kept = prepare_scans(tmp_path / "kept", drawn, progress=lambda *done: steps.append(done))
    assert steps == [(1, 2), (2, 2)]
    assert all(equal(kept[i], drawn[i]) for i in range(2))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    (tmp_path / "kept" / "00000.pt").unlink()
    more = prepare_scans(tmp_path / "kept", scans(folder, 3))
    assert equal(more[0], drawn[0])
    assert len(more) == 3
    unchanged = tmp_path / "kept" / "00001.pt"
    assert unchanged.stat().st_mtime_ns == files[unchanged]
    assert unchanged.stat().st_size < 60 * 800 * 5 + 48 * 48 * 13 + 20_000  # nothing but this scan


def test_a_folder_of_other_scans_and_damaged_files_are_refused(folder: Path, tmp_path: Path) -> None:
    kept = prepare_scans(tmp_path / "kept", scans(folder, 1))
    with pytest.raises(InputError, match="scans of another description"):
        prepare_scans(tmp_path / "kept", scans(folder, 1, seed=8))
    (tmp_path / "kept" / "00000.pt").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(InputError, match="damaged"):
        kept[0]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be a folder of scans"):
        prepare_scans(tmp_path / "file", scans(folder, 1))
    with pytest.raises(IndexError, match="There are 1 scans"):
        kept[1]


def test_training_sees_operators_of_norm_one_and_no_loss_in_the_metal(folder: Path, scan: MetalScan) -> None:
    trained = scan.training_scan()
    assert float(scan.projection.norm() / scan.norm) == pytest.approx(1, rel=1e-5)
    assert 0.7 < float(trained.A.norm()) <= 1
    torch.testing.assert_close(trained.A(scan.target) * scan.norm, scan.A(scan.target))
    torch.testing.assert_close(trained.y * scan.norm, scan.y)
    assert trained.noise_std * scan.norm == pytest.approx(scan.noise_std)
    assert trained.x0 is scan.x0
    assert trained.ignored is scan.metal
    draw = drawing_from(scans(folder, 2))
    one, same = (draw(i, torch.Generator().manual_seed(1)) for i in (0, 5))
    assert torch.equal(one.y, same.y)


def test_a_model_sees_in_training_what_it_sees_afterwards(scan: MetalScan) -> None:
    torch.manual_seed(0)
    model = build_model("unrolled-unet", {"base": 2, "n_stages": 2, "n_iterations": 2}).eval()
    y, A, _, level, x0, _ = scan.training_scan()
    assert x0 is not None
    with torch.no_grad():
        seen = model.stage_inputs(y[None], A, level, x0[None])
        trained = model.prior_step(1, seen.images[1], seen.noise_std, seen.undersampling) * seen.scale
        words = (scan.y[None], scan.projection, scan.trace[None], scan.noise_std, scan.x0[None])
        applied = reconstruct_beside_metal(model, *words, norm=scan.norm)
    torch.testing.assert_close(trained, applied, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"metal": ()}, "expected some of titanium"),
        ({"metal": ("steel",)}, "steel"),
        ({"n_views": (7,)}, "divisor of 60"),
        ({"n_photons": 0.0}, "at least 1"),
        ({"preset": "unheard-of"}, "unheard-of"),
    ],
)
def test_scenarios_that_make_no_sense_are_refused(words: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        replace(SCENARIOS, **words)  # type: ignore[arg-type]
