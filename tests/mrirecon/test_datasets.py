import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch

from mrirecon.config import Data, read_config
from mrirecon.datasets import Batch, Sampler, Scenarios, Slice, Source, load_slices, operator_of, scan
from mrirecon.phantom import brain_phantom, coil_sensitivities
from mrirecon.reconstruction import operator_for
from mrirecon.simulation import simulate
from operators.errors import InputError

N = 32


def magnitudes(n_slices: int = 3, n: int = N) -> np.ndarray:
    return brain_phantom((n_slices, n, n), smooth_phase=False).abs().numpy()


def npz_source(folder: Path, images: np.ndarray, **options: Any) -> Source:
    np.savez(folder / "images.npz", t1=images)
    return Source(kind="npz", path="images.npz", key="t1", patient="a", contrast="t1", **options)


def image_of(source: Source, folder: Path, n: int = N, which: int = 0) -> torch.Tensor:
    return load_slices([source], n, folder)[which].image


def test_an_archive_gives_its_slices_at_full_scale(tmp_path: Path) -> None:
    images = magnitudes()
    slices = load_slices([npz_source(tmp_path, 7 * images)], N, tmp_path)
    scale = np.percentile(images, 99.9)
    for number, (found, image) in enumerate(zip(slices, images, strict=True)):
        torch.testing.assert_close(found.image, torch.from_numpy(image / scale), atol=2e-6, rtol=1e-5)
        assert (found.patient, found.contrast, found.number) == ("a", "t1", number)


def test_resampling_keeps_low_frequencies_and_pads_to_a_square(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :40]
    bump = np.exp(-((y - 32) ** 2 / 300 + (x - 20) ** 2 / 100))[None].astype(np.float32)
    found = image_of(npz_source(tmp_path, bump), tmp_path)
    y, x = np.mgrid[:32, :32]
    expected = np.exp(-((2 * y - 32) ** 2 / 300 + (2 * x - 32) ** 2 / 100))
    shape = found / found.max() - torch.from_numpy(expected)
    assert shape.abs().max() < 0.02  # the bump is not quite zero where the padding begins


def test_empty_slices_are_left_out_and_others_are_chosen_by_number(tmp_path: Path) -> None:
    images = np.concatenate([magnitudes(4), np.zeros((2, N, N), np.float32)])
    assert [s.number for s in load_slices([npz_source(tmp_path, images)], N, tmp_path)] == [0, 1, 2, 3]
    chosen = load_slices([npz_source(tmp_path, images, slices=(1, 6), every=2)], N, tmp_path)
    assert [s.number for s in chosen] == [1, 3]
    with pytest.raises(InputError, match="has 6 slices"):
        load_slices([npz_source(tmp_path, images, slices=(0, 7))], N, tmp_path)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PSR", "SLA"])
def test_every_orientation_of_a_file_shows_the_same_slices(tmp_path: Path, orientation: str) -> None:
    volume = np.random.default_rng(0).random((8, 9, 10)).astype(np.float32)  # (z, y, x) = (S, P, L)
    to_ras = {"L": (0, -1), "R": (0, 1), "P": (1, -1), "A": (1, 1), "S": (2, 1), "I": (2, -1)}
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    file_axes = []  # of the volume, for x, y, z of the file
    stored = volume
    for column, letter in enumerate(orientation):
        axis, sign = to_ras[letter]
        affine[axis, column] = sign
        own = {0: 2, 1: 1, 2: 0}[axis]
        file_axes.append(own)
        if letter in "RAI":
            stored = np.flip(stored, own)
    stored = stored.transpose(file_axes)
    nib.save(nib.Nifti1Image(stored, affine), tmp_path / "file.nii")
    shape = stored.shape[::-1]
    (tmp_path / "file.bin").write_bytes((255 * stored.T).astype(np.uint8).tobytes())
    common = {"patient": "a", "contrast": "t1"}
    nifti = Source(kind="nifti", path="file.nii", **common)
    data = Source(kind="bytes", path="file.bin", shape=shape, orientation=orientation, **common)
    padded = np.zeros((8, 10, 10))
    padded[:, 1:] = volume
    found = torch.stack([s.image for s in load_slices([nifti], 10, tmp_path)])
    scale = np.percentile(padded, 99.9)
    torch.testing.assert_close(found, torch.from_numpy(padded / scale).float(), atol=1e-4, rtol=1e-4)
    quantised = torch.stack([s.image for s in load_slices([data], 10, tmp_path)])
    torch.testing.assert_close(quantised, found, atol=0.01, rtol=0)


def test_other_planes_stand_upright(tmp_path: Path) -> None:
    volume = np.zeros((6, 7, 8), np.uint8)  # superior, posterior, left
    volume[4:, :, :] = 100
    (tmp_path / "file.bin.gz").write_bytes(gzip.compress(volume.tobytes()))
    for plane in ("coronal", "sagittal"):
        source = Source(
            kind="bytes",
            path="file.bin.gz",
            patient="a",
            contrast="t1",
            shape=(6, 7, 8),
            orientation="LPS",
            plane=plane,
        )
        image = image_of(source, tmp_path, 6)
        assert image[:3].mean() > 5 * image[3:].mean()


def test_anisotropic_pixels_become_square(tmp_path: Path) -> None:
    y, x = np.mgrid[:N, : N // 2]
    disc = np.exp(-((y - N / 2) ** 2 + (2 * x - N / 2) ** 2) / 40).astype(np.float32)
    nib.save(nib.Nifti1Image(disc[None].T, np.diag([-2.0, -1.0, 3.0, 1.0])), tmp_path / "file.nii")
    image = image_of(Source(kind="nifti", path="file.nii", patient="a", contrast="t1"), tmp_path, 16)
    torch.testing.assert_close(image, image.T, atol=1e-3, rtol=0)


def test_an_image_that_was_not_measured_finely_enough_is_refused(tmp_path: Path) -> None:
    source = npz_source(tmp_path, magnitudes(), kept_fraction=0.65)
    assert image_of(source, tmp_path, 20).shape == (20, 20)
    with pytest.raises(InputError, match="matrix of 20 only, and 24"):
        image_of(source, tmp_path, 24)


def centred_fft(image: np.ndarray) -> np.ndarray:
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes), norm="ortho"), axes)


def write_fastmri(path: Path, measured: slice = slice(None)) -> np.ndarray:
    image = brain_phantom((2, N, N)).numpy()
    samples = np.zeros((2, 1, N, N), np.complex64)
    samples[..., measured] = centred_fft(image)[:, None][..., measured]
    with h5py.File(path, "w") as file:
        file["kspace"] = samples
        file["reconstruction_esc"] = np.abs(image)
    return image


def test_a_fully_sampled_scan_gives_its_complex_image(tmp_path: Path) -> None:
    image = write_fastmri(tmp_path / "scan.h5")
    source = Source(kind="kspace", path="scan.h5", patient="a", contrast="t1")
    found = load_slices([source], N, tmp_path)
    assert len(found) == 2
    expected = torch.from_numpy(image[:, ::-1].copy())
    expected /= np.percentile(expected.abs().numpy(), 99.9)
    torch.testing.assert_close(torch.stack([s.image for s in found]), expected, atol=1e-4, rtol=1e-4)
    batch = scan([found[0].image], Scenarios(noise_variance=(0.0, 0.0)), torch.Generator().manual_seed(0))
    torch.testing.assert_close(batch.target[0], found[0].image)


def test_a_scan_is_used_as_far_as_it_is_complete(tmp_path: Path) -> None:
    write_fastmri(tmp_path / "scan.h5", slice(4, 28))
    source = Source(kind="kspace", path="scan.h5", patient="a", contrast="t1")
    assert image_of(source, tmp_path, 24).shape == (24, 24)
    with pytest.raises(InputError, match="matrix of 24 only"):
        image_of(source, tmp_path, 26)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"path": "nothing.npz"}, "There is no file"),
        ({"key": "t2"}, "no array 't2'; it has t1, flat, bad, dark"),
        ({"key": "flat"}, "no stack of images"),
        ({"key": "bad"}, "not finite"),
        ({"key": "dark"}, "shows nothing"),
        ({"kind": "nifti", "key": None}, "not a NIfTI image"),
        ({"kind": "bytes", "key": None, "shape": (3, 32, 32), "orientation": "RAS"}, "does not have the 3072 bytes"),
        ({"kind": "bytes", "key": None, "shape": (3, 32, 32), "orientation": "RAX", "path": "b"}, "expected three of"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    images = magnitudes()
    bad = np.where(images > 0.5, np.nan, images)
    np.savez(tmp_path / "images.npz", t1=images, flat=images[0], bad=bad, dark=0 * images)
    (tmp_path / "b").write_bytes(bytes(3 * 32 * 32))
    words: dict[str, Any] = {"kind": "npz", "path": "images.npz", "key": "t1", "patient": "a", "contrast": "t1"}
    with pytest.raises(InputError, match=sentence):
        load_slices([Source(**words | change)], N, tmp_path)


def test_options_that_mean_nothing_are_refused() -> None:
    words: dict[str, Any] = {"path": "a", "patient": "a", "contrast": "t1"}
    with pytest.raises(InputError, match="needs key"):
        Source(kind="npz", **words)
    with pytest.raises(InputError, match="plane means nothing"):
        Source(kind="npz", key="a", plane="axial", **words)
    with pytest.raises(InputError, match="expected a whole number"):
        Source(kind="kspace", every=0, **words)


def test_people_and_contrasts_are_chosen_and_the_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "images.npz", t1=magnitudes())
    sources = [
        Source(kind="npz", path="images.npz", key="t1", patient=patient, contrast=contrast)
        for patient in "ab"
        for contrast in ("t1", "t2")
    ]
    monkeypatch.setenv("MRCTRECON_DATA", str(tmp_path))
    reports: list[tuple[int, int]] = []
    found = load_slices(sources, N, patients=["b"], contrasts=["t2"], progress=lambda *at: reports.append(at))
    assert {(s.patient, s.contrast) for s in found} == {("b", "t2")}
    assert reports == [(1, 1)]
    with pytest.raises(InputError, match="No source shows c"):
        load_slices(sources, N, patients=["c"])
    monkeypatch.setenv("MRCTRECON_DATA", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="does not exist"):
        load_slices(sources, N)
    monkeypatch.delenv("MRCTRECON_DATA")
    with pytest.raises(InputError, match="No folder of data"):
        load_slices(sources, N)


SCENARIOS = Scenarios(noise_variance=(0.15, 0.3), box=(0.25, 0.75))


@pytest.fixture
def slices() -> list[Slice]:
    return [Slice(torch.from_numpy(image), "a", "t1", i) for i, image in enumerate(magnitudes(5))]


def test_the_same_seed_gives_the_same_batch_and_leaves_the_global_generator(slices: list[Slice]) -> None:
    state = torch.random.get_rng_state()
    sampler = Sampler(slices, SCENARIOS, 3)
    one, same, other = (sampler(0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    for a, b in zip(one, same, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(one.y, other.y)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_drawn_scans_stay_in_their_ranges(slices: list[Slice]) -> None:
    batch = Sampler(slices, SCENARIOS, 40)(0, torch.Generator().manual_seed(0))
    heights, widths = batch.mask[:, 0].amax(-1).sum(-1), batch.mask[:, 0].amax(-2).sum(-1)
    torch.testing.assert_close(batch.mask.sum(dim=(1, 2, 3)), heights * widths)
    for sizes in (heights, widths):
        assert 8 <= sizes.min() <= sizes.max() <= 24
        assert len(sizes.unique()) > 8
    clean = operator_of(batch)(batch.target)
    power = clean.abs().square().sum(dim=(1, 2, 3)) / batch.mask.sum(dim=(1, 2, 3))
    variance = 2 * batch.noise_std.square() / power
    assert 0.15 <= variance.min() < 0.2 < 0.25 < variance.max() <= 0.3
    assert not batch.y[batch.mask == 0].any()
    known = torch.stack([s.image for s in slices])
    known = torch.cat((known, known.flip(-1)))
    distance = (batch.target.abs()[:, None] - known).abs().amax(dim=(-2, -1))
    assert distance.amin(dim=1).max() < 1e-5
    assert len(distance.argmin(dim=1).unique()) == 10  # every slice was drawn, mirrored and not


def test_noise_has_the_level_that_is_told(slices: list[Slice], generator: torch.Generator) -> None:
    batch = scan([slices[0].image] * 20, Scenarios(noise_variance=(0.2, 0.2)), generator)
    noise = batch.y - operator_of(batch)(batch.target)
    whitened = noise / batch.noise_std.reshape(-1, 1, 1, 1)
    assert float(whitened.real.var()) == pytest.approx(1, abs=0.02)
    assert float(whitened.imag.var()) == pytest.approx(1, abs=0.02)


def test_the_phase_is_smooth_and_spans_what_is_asked(slices: list[Slice], generator: torch.Generator) -> None:
    flat = torch.ones(64, 64)
    batch = scan([flat] * 6, Scenarios(noise_variance=(0, 0), phase_rad=(1.0, 1.0)), generator)
    torch.testing.assert_close(batch.target.abs(), flat.expand(6, 64, 64))
    steps = (batch.target[..., 1:] * batch.target[..., :-1].conj()).angle()
    assert steps.abs().max() < 0.3
    mean = batch.target.mean(dim=(-2, -1), keepdim=True)
    assert (batch.target * mean.conj()).angle().abs().amax(dim=(-2, -1)).max() < 2.1
    assert len(mean.angle().unique()) == 6


def test_the_operator_is_that_of_the_product_path(generator: torch.Generator, slices: list[Slice]) -> None:
    batch = scan([slices[0].image], Scenarios(noise_variance=(0.2, 0.2), box=(0.5, 0.5)), generator)
    simulation = simulate(batch.target, batch.mask, relative_noise_variance=0.2)
    A = operator_for(simulation.kspace)
    torch.testing.assert_close(A(batch.target), operator_of(batch)(batch.target))
    assert A.codomain == operator_of(batch).codomain
    torch.testing.assert_close(torch.tensor([simulation.noise_std]), batch.noise_std)


def test_several_coils_and_random_lines(generator: torch.Generator, slices: list[Slice]) -> None:
    scenarios = Scenarios(noise_variance=(0.1, 0.1), n_coils=3, acceleration=2.0, n_centre_lines=4)
    batch = scan([slices[0].image, slices[1].image], scenarios, generator)
    assert batch.y.shape == (2, 3, N, N)
    torch.testing.assert_close(batch.csm, coil_sensitivities(3, (N, N)))
    assert batch.mask[:, 0, :, 0].sum(dim=-1).tolist() == [16, 16]
    assert not torch.equal(batch.mask[0], batch.mask[1])
    with pytest.raises(InputError, match="Acceleration 10"):
        scan([slices[0].image], Scenarios(noise_variance=(0.1, 0.1), acceleration=10.0), generator)


def test_phase_and_noise_are_the_same_whatever_is_measured(slices: list[Slice]) -> None:
    def scanned(box: float, variance: float) -> Batch:
        scenarios = Scenarios(noise_variance=(variance, variance), box=(box, box))
        return scan([slices[0].image], scenarios, torch.Generator().manual_seed(4))

    a, b = scanned(1.0, 0.2), scanned(0.5, 0.3)
    torch.testing.assert_close(a.target, b.target, rtol=0, atol=0)
    noises = [(c.y - operator_of(c)(c.target)) / c.noise_std for c in (a, b)]
    torch.testing.assert_close(noises[0] * b.mask, noises[1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("words", [{"box": (0.0, 0.5)}, {"box": (0.5, 1.1)}, {"phase_rad": (2.0, 1.0)}, {"n_coils": 0}])
def test_impossible_scenarios_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Scenarios(noise_variance=(0.1, 0.2), **words)


@pytest.mark.realdata
def test_every_kind_of_the_real_folder_is_read(data_folder: Path) -> None:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "configs" / "lowfield_data.toml"
    data = read_config(path, Data)
    wanted: list[Callable[[Source], bool]] = [
        lambda s: s.patient == "brainweb",
        lambda s: s.patient == "ms-03" and s.contrast == "t1",
        lambda s: s.patient == "low-field-3" and s.contrast == "flair",
        lambda s: s.patient == "knee" and s.contrast == "t2",
    ]
    chosen = [next(filter(condition, data.sources)) for condition in wanted]
    slices = load_slices(chosen, 128, data_folder)
    assert {s.patient for s in slices} == {"brainweb", "ms-03", "low-field-3", "knee"}
    assert all(s.image.shape == (128, 128) and bool(s.image.isfinite().all()) for s in slices)
    for s in slices:
        if s.patient == "brainweb" and 60 <= s.number <= 120:  # the head stands in the middle, its front at the top
            assert s.image[20:108, 30:98].mean() > 5 * s.image[:, :12].mean()
