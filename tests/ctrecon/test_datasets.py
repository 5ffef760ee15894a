from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch

from ctrecon.config import Data, read_config
from ctrecon.datasets import Sampler, Scanner, Scenarios, Slice, Source, load_slices, scan
from ctrecon.hounsfield import MU_WATER_PER_MM, to_mu
from ctrecon.metrics import rmse_hu
from ctrecon.prepare import noise_std
from ctrecon.reconstruction import operator_for
from ctrecon.simulation import simulate
from ctrecon.sinogram import Sinogram
from operators.back_projection import filtered_back_projection
from operators.errors import InputError
from tests.reference.ct_study import FINE, data_in, write_people

N = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("people")
    write_people(path)
    return path


@pytest.fixture(scope="module")
def scanner() -> Scanner:
    return Scanner("sparse-view", N)


@pytest.fixture(scope="module")
def slices(folder: Path, scanner: Scanner) -> tuple[Slice, ...]:
    return load_slices(data_in(folder).sources, scanner, folder, patients="a")


def test_slices_know_where_they_are_from_and_are_chosen_by_number(folder: Path, scanner: Scanner) -> None:
    (source,) = (s for s in data_in(folder).sources if s.patient == "b")
    found = load_slices([replace(source, slices=(1, 3))], scanner, folder)
    assert [(s.patient, s.kernel, s.number) for s in found] == [("b", "soft", 1), ("b", "soft", 2)]
    with pytest.raises(InputError, match="has 3 slices"):
        load_slices([replace(source, slices=(1, 4))], scanner, folder)
    with pytest.raises(InputError, match="No source shows b, kernel sharp"):
        load_slices([source], scanner, folder, patients=["b"], kernels=["sharp"])


def test_the_target_is_the_mean_over_each_pixel_in_the_middle_of_the_field(
    folder: Path, slices: tuple[Slice, ...]
) -> None:
    hu = torch.from_numpy(np.load(folder / "a.npz")["hu"]).clamp_min(-1000)
    mu = to_mu(hu, MU_WATER_PER_MM)
    for found, own in zip(slices, mu, strict=True):
        # the attenuation of the whole body, and where its middle lies, do not depend on the pixels
        assert float(found.mu_per_mm.sum()) * (400 / N) ** 2 == pytest.approx(float(own.sum()) * 7.5**2, rel=1e-5)
        for dim in (0, 1):
            middles = []
            for image, step in ((found.mu_per_mm, 400 / N), (own, 7.5)):
                place = (torch.arange(len(image)) - (len(image) - 1) / 2) * step
                middles.append(float((image.sum(dim=1 - dim) * place).sum() / image.sum()))
            assert middles[0] == pytest.approx(middles[1], abs=0.1)  # mm, of pixels of 17 mm
        assert found.largest_per_mm == pytest.approx(float(own.max()))


def test_a_softer_copy_is_the_convolution_with_a_gaussian(folder: Path, scanner: Scanner) -> None:
    (source,) = (s for s in data_in(folder).sources if s.patient == "a")
    (sharp, *_), (soft, *_) = (load_slices([replace(source, smoothing_mm=std)], scanner, folder) for std in (0.0, 9.0))
    hu = torch.from_numpy(np.load(folder / "a.npz")["hu"][0]).clamp_min(-1000)
    expected = scipy.ndimage.gaussian_filter(to_mu(hu, MU_WATER_PER_MM).double().numpy(), 9 / 7.5, mode="constant")
    assert soft.largest_per_mm == pytest.approx(expected.max(), rel=1e-3)
    assert float(soft.mu_per_mm.sum()) == pytest.approx(float(sharp.mu_per_mm.sum()), rel=1e-3)
    assert soft.mu_per_mm.diff(dim=-1).abs().sum() < 0.95 * sharp.mu_per_mm.diff(dim=-1).abs().sum()
    with pytest.raises(InputError, match="smoothing_mm is -1"):
        replace(source, smoothing_mm=-1.0)


def test_an_image_wider_than_the_field_is_shrunk_to_it(folder: Path, scanner: Scanner) -> None:
    np.savez(folder / "wide.npz", **{**np.load(folder / "a.npz"), "pixel_spacing_mm": np.full(2, 900 / FINE)})
    source = Source(path="wide.npz", patient="a")
    (wide, *_) = load_slices([source], scanner, folder)
    (fitting, *_) = load_slices([replace(source, path="a.npz", pixel_mm=400 / FINE)], scanner, folder)
    torch.testing.assert_close(wide.mu_per_mm, fitting.mu_per_mm, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(wide.line_integrals, fitting.line_integrals, rtol=1e-4, atol=1e-4)


def test_data_and_reconstruction_use_different_models_of_the_same_body(
    slices: tuple[Slice, ...], scanner: Scanner
) -> None:
    A = scanner.operator(360)
    for found in slices:
        own = A(found.mu_per_mm)
        error = (own - found.line_integrals).square().mean().sqrt() / found.line_integrals.square().mean().sqrt()
        assert 1e-3 < float(error) < 0.1
        views = own.sum(dim=1) / found.line_integrals.sum(dim=1)
        assert float((views - 1).abs().max()) < 0.02


def test_the_mirrored_scan_is_the_scan_of_the_mirrored_body(folder: Path, scanner: Scanner) -> None:
    hu = np.load(folder / "a.npz")["hu"]
    np.savez(folder / "mirrored.npz", hu=hu[..., ::-1], pixel_spacing_mm=np.full(2, 360 / FINE))
    plain, mirrored = (
        load_slices([Source(path=f"{name}.npz", patient="a")], scanner, folder)[0] for name in ("a", "mirrored")
    )
    views = scanner.mirrored_views
    assert views is not None
    turned = plain.line_integrals[views].flip(-1)
    torch.testing.assert_close(turned, mirrored.line_integrals, rtol=0, atol=2e-4 * float(turned.max()))
    torch.testing.assert_close(plain.mu_per_mm.flip(-1), mirrored.mu_per_mm, rtol=1e-5, atol=1e-8)


def test_scans_without_mirrored_views_are_not_mirrored() -> None:
    assert Scanner("aapm-ct-mar-offset", N).mirrored_views is None
    assert Scanner("lodopab", N).mirrored_views is None


def test_batches_have_one_number_of_views_and_a_generator_of_their_own(
    slices: tuple[Slice, ...], scanner: Scanner
) -> None:
    state = torch.random.get_rng_state()
    sampler = Sampler(slices, scanner, (60, 90), 4)
    batches = [sampler(0, torch.Generator().manual_seed(seed)) for seed in range(12)]
    again = sampler(7, torch.Generator().manual_seed(5))
    torch.testing.assert_close(again.y, batches[5].y, rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {batch.y.shape[1] for batch in batches} == {60, 90}
    assert all(batch.A.codomain.shape == batch.y.shape[1:] for batch in batches)
    assert len({id(batch.A) for batch in batches}) == 2
    known = torch.stack([s.mu_per_mm for s in slices])
    known = torch.cat((known, known.flip(-1)))
    drawn = torch.cat([batch.target for batch in batches])
    distance = (drawn[:, None] - known).abs().amax(dim=(-2, -1))
    assert float(distance.amin(dim=1).max()) == 0
    assert len(distance.argmin(dim=1).unique()) == 6  # every slice was drawn, mirrored and not
    for batch in batches:  # mirrored or not, data and target belong together
        error = (batch.A(batch.target) - batch.y).square().mean().sqrt() / batch.y.square().mean().sqrt()
        assert float(error) < 0.1


def test_the_noise_is_that_of_the_simulator(slices: tuple[Slice, ...], scanner: Scanner) -> None:
    batch = scan(slices, scanner, 180, torch.Generator().manual_seed(3))
    clean = torch.stack([s.line_integrals[::2] for s in slices])
    measured = (batch.y - clean).square().mean(dim=(-2, -1)).sqrt()
    s_max = clean.amax(dim=(-2, -1)) / torch.tensor([s.largest_per_mm for s in slices])
    largest = torch.tensor([s.largest_per_mm for s in slices])
    relative = (clean / clean.amax(dim=(-2, -1), keepdim=True)).exp().mean(dim=(-2, -1))
    expected = largest * (0.05**2 + s_max**2 * relative / 5e6).sqrt()
    torch.testing.assert_close(measured, expected, rtol=0.02, atol=0)
    geometry = scanner.operator(180).geometry
    simulated = simulate(
        1000 * (batch.target / MU_WATER_PER_MM - 1), geometry, noise="sparse-view", mu_water_per_mm=MU_WATER_PER_MM
    )
    other = (simulated.sinogram.data - batch.A(batch.target)).square().mean(dim=(-2, -1)).sqrt()
    torch.testing.assert_close(other, expected, rtol=0.25, atol=0)  # the largest attenuation differs with the pixels


def test_operator_and_noise_level_are_those_of_the_product_path(slices: tuple[Slice, ...], scanner: Scanner) -> None:
    batch = scan(slices[:1], scanner, 90, torch.Generator().manual_seed(0))
    sinogram = Sinogram(batch.y, scanner.operator(90).geometry, (N, N))
    torch.testing.assert_close(operator_for(sinogram)(batch.target), batch.A(batch.target))
    assert float(batch.noise_std) == pytest.approx(noise_std(sinogram)[0])
    assert batch.mu_water_per_mm == MU_WATER_PER_MM


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"path": "nothing.npz"}, r"nothing\.npz is no file"),
        ({"path": "unknown.npz"}, r"does not say how large its pixels are; give its source pixel_mm"),
        ({"path": "oblong.npz"}, r"pixels of 7\.5 by 8 mm"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    folder: Path, scanner: Scanner, change: dict[str, Any], sentence: str
) -> None:
    hu = np.load(folder / "a.npz")["hu"]
    np.savez(folder / "unknown.npz", hu=hu)
    np.savez(folder / "oblong.npz", hu=hu, pixel_spacing_mm=np.array([7.5, 8.0]))
    with pytest.raises(InputError, match=sentence):
        load_slices([Source(patient="a", **change)], scanner, folder)


def test_scans_and_sources_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="n_views is empty"):
        Scenarios(n_views=())
    with pytest.raises(InputError, match="7 views cannot be taken at equal steps from 360"):
        Scenarios(n_views=(60, 7))
    with pytest.raises(InputError, match="There is no preset 'magic'"):
        Scenarios(n_views=(60,), preset="magic")
    with pytest.raises(InputError, match="pixel_mm is 0"):
        Source(path="a", patient="a", pixel_mm=0.0)
    with pytest.raises(InputError, match="every is 0"):
        Source(path="a", patient="a", every=0)


@pytest.mark.realdata
def test_a_real_person_is_projected_and_comes_back(data_folder: Path) -> None:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "configs" / "sparse_ct_data.toml"
    data = read_config(path, Data)
    assert {source.patient for source in data.sources} == {*data.train, *data.validation, *data.test}
    (source,) = (s for s in data.sources if s.kernel == "b40f")
    scanner = Scanner("sparse-view", 128)
    (found,) = load_slices([replace(source, slices=(7, 8))], scanner, data_folder)
    assert found.line_integrals.shape == (360, 800)
    batch = scan([found], scanner, 180, torch.Generator().manual_seed(0))
    image = filtered_back_projection(batch.y, batch.A.geometry, (128, 128), filter="hann")
    hu, target = (1000 * (mu / MU_WATER_PER_MM - 1) for mu in (image, batch.target))
    own, mirrored = float(rmse_hu(hu, target)), float(rmse_hu(hu.flip(-1), target))
    assert own < 120
    assert mirrored > 2 * own
