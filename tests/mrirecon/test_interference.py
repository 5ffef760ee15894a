import math
from pathlib import Path

import pytest
import torch

from mrirecon.acquisition import Acquisition
from mrirecon.interference import (
    remove_interference_with_references,
    remove_narrow_band_interference,
    repeatability,
    split_reference_coils,
)
from mrirecon.io import read
from mrirecon.kspace import KSpace
from mrirecon.phantom import brain_phantom
from mrirecon.trajectory import radial, spiral
from operators.errors import InputError
from operators.fourier import Fourier
from operators.nufft import NonUniformFourier

SHAPE = (96, 128)
NOISE = 0.02


def scan(data: torch.Tensor, **kwargs: object) -> KSpace:
    n_dims = int(kwargs.get("n_dims", 2))  # type: ignore[call-overload]
    shape = (1, *data.shape[-2:]) if n_dims == 2 else tuple(data.shape[-3:])
    mask = torch.ones((1,) * (data.ndim - n_dims) + tuple(data.shape[-n_dims:]))
    return KSpace(data, mask, Acquisition(shape, (5.0, 200.0, 200.0), (5.0, 200.0, 200.0)), **kwargs)


def randn(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex128, generator=generator)


def head(n_slices: int = 2) -> torch.Tensor:
    """Noise-free k-space of the phantom, ``(slice, coil, ky, kx)``."""
    return Fourier(SHAPE)(brain_phantom(SHAPE).to(torch.complex128)).expand(n_slices, 1, *SHAPE).clone()


def rms(x: torch.Tensor) -> float:
    return float(x.abs().square().mean().sqrt())


def tone(generator: torch.Generator, frequency: float, std: float = 0.3) -> torch.Tensor:
    """A sinusoid along the readout whose amplitude and phase differ from line to line; pixel 64 + frequency is 0."""
    time = torch.arange(SHAPE[-1], dtype=torch.float64)
    turns = -2 * math.pi * frequency / SHAPE[-1] * time
    return std * randn(generator, 2, 1, SHAPE[0], 1) * torch.polar(torch.ones_like(turns), turns)


def convolved(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Linear convolution along the readout by an explicit sum."""
    half, n = len(kernel) // 2, x.shape[-1]
    out = torch.zeros_like(x)
    for tap in range(len(kernel)):
        for k in range(n):
            if 0 <= k - tap + half < n:
                out[..., k] += kernel[tap] * x[..., k - tap + half]
    return out


def interference(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Broadband noise and two sinusoids, through unknown transfer functions, in a coil and in three references."""
    time = torch.arange(SHAPE[-1], dtype=torch.float64)
    tones = sum(torch.exp(2j * math.pi * f * time) * randn(generator, 2, 1, SHAPE[0], 1) for f in (0.17, -0.081))
    sources = torch.cat([0.4 * randn(generator, 2, 1, *SHAPE), 0.6 * tones], dim=1)
    primary = sum(convolved(sources[:, i], 0.3 * randn(generator, 3)) for i in range(2))
    references = torch.einsum("ri,biyx->bryx", randn(generator, 3, 2), sources)
    return primary[:, None], references + 0.01 * randn(generator, *references.shape)


def test_references_remove_interference_and_keep_the_signal(generator: torch.Generator) -> None:
    clean, noise = head(), NOISE * randn(generator, 2, 1, *SHAPE)
    primary, references = interference(generator)
    corrupted = scan(clean + noise + primary)
    removed = remove_interference_with_references(corrupted, references)
    assert rms(removed.data - clean - noise) < 0.15 * rms(primary)
    assert rms(primary) > 0.5 * rms(clean)
    assert rms(removed.data - clean) < 0.2 * rms(clean)
    assert removed.decisions[-1].name == "interference"
    untouched = remove_interference_with_references(scan(clean + noise), references)
    assert rms(untouched.data - clean - noise) < 0.04 * rms(clean)


def test_without_signal_and_noise_the_references_explain_everything(generator: torch.Generator) -> None:
    source = randn(generator, 2, 1, *SHAPE)
    kernel = randn(generator, 5)
    removed = remove_interference_with_references(scan(convolved(source, kernel)), source, kernel_size=(1, 5))
    assert rms(removed.data) < 2e-3 * rms(convolved(source, kernel))


def test_a_kernel_over_lines_is_found_across_windows(generator: torch.Generator) -> None:
    source = randn(generator, 1, 1, *SHAPE)
    moved = torch.zeros_like(source)
    moved[..., 1:, :] = (0.5 + 2j) * source[..., :-1, :]
    removed = remove_interference_with_references(scan(moved), source, window=20, kernel_size=(3, 1))
    assert rms(removed.data) < 3e-3 * rms(moved)
    kept = remove_interference_with_references(scan(moved), source, window=20, kernel_size=(1, 1))
    assert rms(kept.data) > 0.9 * rms(moved)


def test_windows_follow_transfer_functions_that_change(generator: torch.Generator) -> None:
    source = randn(generator, 1, 1, *SHAPE)
    primary = source.clone()
    primary[..., 48:, :] *= -1
    one = remove_interference_with_references(scan(primary), source, window=96)
    two = remove_interference_with_references(scan(primary), source, window=48)
    assert rms(one.data) > 0.5
    assert rms(two.data) < 2e-3


def test_partitions_and_coils_of_a_volume_are_treated_one_by_one(generator: torch.Generator) -> None:
    source = randn(generator, 2, 3, 40, 24)  # (reference, kz, ky, kx)
    primary = torch.einsum("cr,rzyx->czyx", randn(generator, 4, 2), source)
    volume = scan(primary, n_dims=3, batch_axes=())
    for readout, kernel_size in (("kx", (1, 3)), ("ky", (1, 3))):
        removed = remove_interference_with_references(
            volume, source, window=12, kernel_size=kernel_size, readout=readout
        )
        assert removed.data.shape == primary.shape
        assert rms(removed.data) < 5e-3 * rms(primary)


def test_what_was_not_measured_stays_zero(generator: torch.Generator) -> None:
    primary, references = interference(generator)
    data = head() + primary + tone(generator, 30.3)
    data[..., ::3, :] = 0
    data[..., :20] = 0
    assert (remove_interference_with_references(scan(data), references).data[data == 0] == 0).all()
    assert (remove_narrow_band_interference(scan(data)).data[data == 0] == 0).all()


@pytest.mark.parametrize(("frequency", "factor"), [(40.4, 5), (63.8, 5), (20.3, 3)])
def test_a_sinusoid_is_removed_beside_and_inside_the_head(
    frequency: float, factor: float, generator: torch.Generator
) -> None:
    clean, noise, tones = head(), NOISE * randn(generator, 2, 1, *SHAPE), tone(generator, frequency)
    removed = remove_narrow_band_interference(scan(clean + noise + tones))
    assert rms(removed.data - clean) < rms(noise + tones) / factor
    assert removed.decisions[-1].name == "interference"


def test_the_readout_may_lie_along_the_rows(generator: torch.Generator) -> None:
    data = head() + NOISE * randn(generator, 2, 1, *SHAPE) + tone(generator, 30.3)
    removed = remove_narrow_band_interference(scan(data))
    turned = remove_narrow_band_interference(scan(data.mT), readout="ky")
    torch.testing.assert_close(turned.data.mT, removed.data)
    said = remove_narrow_band_interference(scan(data.mT, readout="ky"))
    torch.testing.assert_close(said.data.mT, removed.data)
    torch.testing.assert_close(
        remove_narrow_band_interference(scan(data, readout="ky"), readout="kx").data, removed.data
    )


def test_a_scan_without_interference_stays_as_it_is(generator: torch.Generator) -> None:
    noise = NOISE * randn(generator, 2, 1, *SHAPE)
    for clean in (head(), torch.zeros_like(noise)):
        removed = remove_narrow_band_interference(scan(clean + noise))
        assert rms(removed.data - clean - noise) < 0.3 * rms(noise)


def test_white_noise_alone_has_no_interference(generator: torch.Generator) -> None:
    kspace = scan(randn(generator, 2, 1, *SHAPE))
    removed = remove_narrow_band_interference(kspace)
    assert removed.decisions[-1].value == "none found"
    assert removed.data is kspace.data


def test_a_sinusoid_is_removed_from_a_volume(generator: torch.Generator) -> None:
    time = torch.arange(32, dtype=torch.float64)
    tones = randn(generator, 2, 12, 20, 1) * torch.exp(0.7j * time)
    noise = 0.1 * randn(generator, 2, 12, 20, 32)
    removed = remove_narrow_band_interference(scan(tones + noise, n_dims=3, batch_axes=()))
    assert rms(removed.data) < 2 * rms(noise)


def test_scale_and_other_slices_do_not_matter(generator: torch.Generator) -> None:
    data = head() + NOISE * randn(generator, 2, 1, *SHAPE) + tone(generator, 30.3)
    both = remove_narrow_band_interference(scan(data)).data
    torch.testing.assert_close(remove_narrow_band_interference(scan(1e3 * data[:1])).data, 1e3 * both[:1])


def test_repeatability_is_the_noise_of_one_repetition(generator: torch.Generator) -> None:
    image = brain_phantom(SHAPE).abs().flatten()
    signal = float(image.kthvalue(math.ceil(0.95 * image.numel())).values)
    for n in (2, 4):
        data = head(1) + 0.01 * 2**0.5 * randn(generator, n, 1, 1, *SHAPE)
        kspace = scan(data, batch_axes=("repetition", "slice"))
        assert repeatability(kspace) == pytest.approx(0.01 / signal, rel=0.05)


N = 64
TRAJECTORIES = {
    "radial": (radial(100, 2 * N), 2 * N),
    "golden": (radial(60, 2 * N, golden=True), 2 * N),
    "spiral": (spiral(16, 400, 2), 400),
}


def along(trajectory: torch.Tensor, data: torch.Tensor, **kwargs: object) -> KSpace:
    header = Acquisition((1, N, N), (5.0, 200.0, 200.0), (5.0, 200.0, 200.0))
    return KSpace(data, torch.ones(data.shape[-1]), header, trajectory=trajectory, **kwargs)


def sampled(trajectory: torch.Tensor) -> torch.Tensor:
    """Noise-free phantom along a trajectory, ``(1, 1, sample)``."""
    return NonUniformFourier(trajectory, (N, N))(brain_phantom((N, N)).to(torch.complex128))[None, None]


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_references_remove_interference_along_a_trajectory_and_keep_the_signal(
    name: str, generator: torch.Generator
) -> None:
    trajectory, n = TRAJECTORIES[name]
    clean = sampled(trajectory)
    noise = NOISE * randn(generator, *clean.shape)
    n_readouts = len(trajectory) // n
    sources = torch.stack(
        (
            0.4 * randn(generator, n_readouts, n),
            0.6 * randn(generator, n_readouts, 1) * torch.exp(2j * math.pi * 0.17 * torch.arange(n)),
        )
    )
    primary = sum(convolved(source, 0.3 * randn(generator, 3)) for source in sources).reshape(clean.shape)  # type: ignore[union-attr]
    references = torch.einsum("rs,sln->rln", randn(generator, 3, 2), sources).reshape(1, 3, -1)
    references = references + 0.01 * randn(generator, *references.shape)
    kspace = along(trajectory, clean + noise + primary, readout_length=n)
    removed = remove_interference_with_references(kspace, references)
    assert rms(removed.data - clean - noise) < 0.1 * rms(primary)
    assert removed.decisions[-1].name == "interference"
    untouched = remove_interference_with_references(along(trajectory, clean + noise, readout_length=n), references)
    assert rms(untouched.data - clean - noise) < 0.01 * rms(clean)


def test_a_volume_along_a_trajectory_is_cleaned_in_one_piece(generator: torch.Generator) -> None:
    trajectory = radial(40, 32, n_dims=3)
    source = randn(generator, 2, len(trajectory))
    primary = randn(generator, 3, 2) @ source
    header = Acquisition((16, 16, 16), (200.0, 200.0, 200.0), (200.0, 200.0, 200.0))
    kspace = KSpace(primary, torch.ones(len(trajectory)), header, (), 3, trajectory=trajectory, readout_length=32)
    removed = remove_interference_with_references(kspace, source, kernel_size=(1, 3))
    assert removed.data.shape == primary.shape
    assert rms(removed.data) < 5e-3 * rms(primary)


def test_reference_coils_are_taken_out_of_everything(generator: torch.Generator) -> None:
    data = randn(generator, 2, 4, *SHAPE)
    kspace = scan(data, noise=randn(generator, 4, 100), calibration=data)
    remaining, references = split_reference_coils(kspace, (3, 1))
    torch.testing.assert_close(references, data[:, [3, 1]])
    torch.testing.assert_close(remaining.data, data[:, [0, 2]])
    torch.testing.assert_close(remaining.calibration, data[:, [0, 2]])
    assert kspace.noise is not None
    torch.testing.assert_close(remaining.noise, kspace.noise[[0, 2]])
    assert remaining.decisions[-1].value == "3, 1"
    trajectory, n = TRAJECTORIES["radial"]
    samples = randn(generator, 1, 3, len(trajectory))
    remaining, references = split_reference_coils(along(trajectory, samples, readout_length=n), [0])
    torch.testing.assert_close(references, samples[:, :1])
    torch.testing.assert_close(remaining.data, samples[:, 1:])


@pytest.mark.parametrize("coils", [[], [4], [-1], [1, 1], [0, 1, 2, 3]])
def test_reference_coils_that_do_not_exist_are_named(coils: list[int], generator: torch.Generator) -> None:
    with pytest.raises(InputError, match=r"reference coils"):
        split_reference_coils(scan(randn(generator, 1, 4, *SHAPE)), coils)


def test_repeatability_along_one_trajectory_is_that_of_the_grid(generator: torch.Generator) -> None:
    trajectory, _ = TRAJECTORIES["radial"]
    clean = sampled(trajectory)
    axes = ("repetition", "slice")
    results = []
    for std in (0.02, 0.04):
        data = clean + std * 2**0.5 * randn(generator, 2, *clean.shape)
        results.append(repeatability(along(trajectory, data, batch_axes=axes)))
        own = trajectory.expand(2, 1, -1, -1)
        assert repeatability(along(own, data, batch_axes=axes)) == pytest.approx(results[-1], rel=1e-6)
    assert results[1] / results[0] == pytest.approx(2, rel=0.1)
    with pytest.raises(InputError, match="a trajectory of its own"):
        repeatability(along(torch.stack((trajectory, trajectory.flip(0)))[:, None], data, batch_axes=axes))


def test_what_cannot_be_done_along_a_trajectory_is_said(generator: torch.Generator) -> None:
    trajectory, n = TRAJECTORIES["radial"]
    data = randn(generator, 1, 2, len(trajectory))
    kspace = along(trajectory, data, readout_length=n)
    with pytest.raises(InputError, match="--reference-coils"):
        remove_narrow_band_interference(kspace)
    with pytest.raises(InputError, match="not equally long"):
        remove_interference_with_references(along(trajectory, data), data)
    with pytest.raises(ValueError, match="leave it out"):
        remove_interference_with_references(kspace, data, readout="kx")
    with pytest.raises(ValueError, match="agree in all but the coils"):
        remove_interference_with_references(kspace, data[..., 1:])


def test_what_cannot_be_done_is_said(generator: torch.Generator) -> None:
    kspace = scan(randn(generator, 2, 1, *SHAPE))
    references = randn(generator, 2, 3, *SHAPE)
    with pytest.raises(TypeError, match="expected a complex tensor"):
        remove_interference_with_references(kspace, references.real)
    with pytest.raises(ValueError, match="agree in all but the coils"):
        remove_interference_with_references(kspace, references[:1])
    with pytest.raises(ValueError, match="odd kernel sizes"):
        remove_interference_with_references(kspace, references, kernel_size=(1, 4))
    with pytest.raises(ValueError, match="window is 0"):
        remove_interference_with_references(kspace, references, window=0)
    with pytest.raises(InputError, match="only zeros"):
        remove_interference_with_references(kspace, 0 * references)
    with pytest.raises(ValueError, match="threshold is 1"):
        remove_narrow_band_interference(kspace, threshold=1.0)
    with pytest.raises(ValueError, match="expected 'ky', 'kx' or None"):
        remove_narrow_band_interference(kspace, readout="y")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="outer lines of k-space"):
        remove_narrow_band_interference(scan(kspace.data[..., :20, :]))
    with pytest.raises(InputError, match="one repetition"):
        repeatability(kspace)
    with pytest.raises(InputError, match="holds nothing"):
        repeatability(scan(torch.zeros(2, 1, 1, *SHAPE, dtype=torch.complex64), batch_axes=("repetition", "slice")))


def _magnitudes(kspace: KSpace) -> torch.Tensor:
    return Fourier(kspace.image_shape).adjoint(kspace.data)[:, :, 0].abs()  # (repetition, slice, y, x)


def _background(kspace: KSpace) -> float:
    """Noise beside the head, left and right."""
    images = _magnitudes(kspace)
    return rms(torch.cat([images[..., :14], images[..., -14:]], dim=-1)) / 2**0.5


@pytest.mark.realdata
def test_a_head_scanned_without_a_cage_comes_out_cleaner(data_folder: Path) -> None:
    folder = data_folder / "mri" / "lowfield_0p055T" / "emi"
    without, shielded = (read(folder / f"flair_{word}_cage_kspace.mat") for word in ("without", "with"))
    cleaned = remove_narrow_band_interference(without)
    assert _background(cleaned) < 0.5 * _background(without)
    assert _background(cleaned) > _background(shielded)
    assert repeatability(cleaned) < 0.65 * repeatability(without)
    reference = _magnitudes(shielded).mean(dim=0)
    smooth = torch.nn.functional.avg_pool2d(reference, 5, stride=1, padding=2)
    inside = smooth > 0.25 * smooth.max()
    before, after = (torch.corrcoef(_magnitudes(k)[:, inside])[0, 1] for k in (without, cleaned))
    assert after > before


@pytest.mark.realdata
def test_a_shielded_scan_is_hardly_touched(data_folder: Path) -> None:
    kspace = read(data_folder / "mri" / "lowfield_0p055T" / "emi" / "flair_with_cage_kspace.mat")
    removed = remove_narrow_band_interference(kspace)
    assert rms(removed.data - kspace.data) < 0.12 * rms(kspace.data)
    assert repeatability(removed) <= repeatability(kspace)
