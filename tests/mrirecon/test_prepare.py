import pytest
import torch

from mrirecon.acquisition import Acquisition
from mrirecon.kspace import KSpace
from mrirecon.phantom import brain_phantom, coil_sensitivities
from mrirecon.prepare import centre_kspace, mix_coils, noise_std, prewhiten, signal_to_noise
from mrirecon.trajectory import epi, radial, rosette, spiral
from operators.errors import InputError
from operators.fourier import Fourier
from operators.nufft import NonUniformFourier

SHAPE = (128, 120)


def scan(data: torch.Tensor, mask: torch.Tensor | None = None, **kwargs: object) -> KSpace:
    """Multi-slice scan of ``data``, ``(slice, coil, ky, kx)``."""
    shape = (1, *data.shape[-2:])
    mask = torch.ones(1, 1, *shape[1:]) if mask is None else mask
    return KSpace(data, mask, Acquisition(shape, (5.0, 200.0, 200.0), (5.0, 200.0, 200.0)), **kwargs)


def noise(*shape: int, std: float, generator: torch.Generator) -> torch.Tensor:
    return std * 2**0.5 * torch.randn(shape, dtype=torch.complex128, generator=generator)


def head(n_coils: int = 1, n_slices: int = 1, shape: tuple[int, int] = SHAPE) -> torch.Tensor:
    """Noise-free k-space of the phantom, ``(slice, coil, ky, kx)``."""
    image = brain_phantom(shape).to(torch.complex128)
    return Fourier(shape)(image).expand(n_slices, n_coils, *shape).clone()


def texture(generator: torch.Generator) -> torch.Tensor:
    """Noise-free k-space of an object that fills the field of view."""
    image = 1 + 0.3 * torch.rand(1, 1, 16, 15, dtype=torch.float64, generator=generator)
    image = torch.nn.functional.interpolate(image, SHAPE, mode="bicubic", align_corners=False)
    return Fourier(SHAPE)(image.to(torch.complex128))


def masks(generator: torch.Generator) -> dict[str, torch.Tensor]:
    n_y, n_x = SHAPE
    partial, box, lines, ellipse = (torch.zeros(SHAPE) for _ in range(4))
    partial[48:] = 1
    box[32:96, 30:90] = 1
    lines[torch.rand(n_y, generator=generator) < 0.4] = 1
    lines[52:76] = 1
    y, x = torch.meshgrid(torch.linspace(-1, 1, n_y), torch.linspace(-1, 1, n_x), indexing="ij")
    ellipse[y.square() + x.square() < 1] = 1
    return {"everything": torch.ones(SHAPE), "partial Fourier": partial, "box": box, "lines": lines, "ellipse": ellipse}


@pytest.mark.parametrize("std", [0.02, 0.05, 0.15])
@pytest.mark.parametrize("sampling", ["everything", "partial Fourier", "box", "lines"])
def test_noise_level_is_found_under_signal(sampling: str, std: float, generator: torch.Generator) -> None:
    mask = masks(generator)[sampling]
    data = head(n_slices=3) + noise(3, 1, *SHAPE, std=std, generator=generator)
    found, _ = noise_std(scan(data * mask, mask))
    assert found.shape == (1,)
    assert found.item() == pytest.approx(std, rel=0.05)


def test_noise_level_is_found_where_no_line_is_complete(generator: torch.Generator) -> None:
    mask = masks(generator)["ellipse"]
    data = head(n_slices=3) + noise(3, 1, *SHAPE, std=0.15, generator=generator)
    found, decision = noise_std(scan(data * mask, mask))
    assert "k-space edge" in decision.value
    assert found.item() == pytest.approx(0.15, rel=0.05)


def test_noise_level_of_undersampled_lines_comes_from_beside_the_object(generator: torch.Generator) -> None:
    mask = masks(generator)["lines"]
    data = (head(n_slices=3) + noise(3, 1, *SHAPE, std=0.05, generator=generator)) * mask
    assert "background of the measured lines" in noise_std(scan(data, mask))[1].value


def test_noise_level_comes_from_the_edge_where_the_object_fills_the_image(generator: torch.Generator) -> None:
    data = texture(generator) + noise(2, 1, *SHAPE, std=0.05, generator=generator)
    found, decision = noise_std(scan(data))
    assert "k-space edge" in decision.value
    assert found.item() == pytest.approx(0.05, rel=0.05)


def test_filtered_edge_of_kspace_does_not_hide_the_noise(generator: torch.Generator) -> None:
    data = head() + noise(1, 1, *SHAPE, std=0.1, generator=generator)
    weights = torch.ones(SHAPE[0], 1, dtype=torch.float64)
    weights[:8] = weights[-8:] = 1e-3
    found, decision = noise_std(scan(data * weights))
    image_noise = 0.1 * weights.square().mean().sqrt().item()
    assert "image background" in decision.value
    assert found.item() == pytest.approx(image_noise, rel=0.05)


def test_zero_filled_margin_does_not_thin_the_noise(generator: torch.Generator) -> None:
    data = torch.zeros(1, 1, *SHAPE, dtype=torch.complex128)
    inner = head() + noise(1, 1, *SHAPE, std=0.1, generator=generator)
    data[..., 20:108, 20:100] = inner[..., 20:108, 20:100]
    assert noise_std(scan(data))[0].item() == pytest.approx(0.1, rel=0.05)


def test_noise_level_of_a_volume(generator: torch.Generator) -> None:
    shape = (12, 48, 40)
    data = noise(1, 2, *shape, std=0.3, generator=generator)
    data[..., 6, 24, 20] += 100
    sizes = Acquisition(shape, (60.0, 200.0, 200.0), (60.0, 200.0, 200.0))
    kspace = KSpace(data, torch.ones(1, 1, *shape), sizes, batch_axes=("repetition",), n_dims=3)
    torch.testing.assert_close(noise_std(kspace)[0], torch.full((2,), 0.3, dtype=torch.float64), rtol=0.05, atol=0)


def test_noise_scan_comes_first_and_its_offset_does_not_count(generator: torch.Generator) -> None:
    measured = noise(2, 20000, std=0.2, generator=generator) * torch.tensor([[1.0], [3.0]]) + 5
    found, decision = noise_std(scan(head(n_coils=2), noise=measured))
    assert decision.value.endswith("from the noise scan")
    torch.testing.assert_close(found, torch.tensor([0.2, 0.6], dtype=torch.float64), rtol=0.02, atol=0)


def test_too_few_samples_for_a_noise_level_are_refused() -> None:
    data = torch.zeros(1, 1, 16, 16, dtype=torch.complex64)
    data[..., 8, :] = 1
    data[..., 3, :] = 1
    with pytest.raises(InputError, match="32 measured samples"):
        noise_std(scan(data))


def test_signal_to_noise_halves_when_noise_doubles(generator: torch.Generator) -> None:
    values = noise(1, 1, *SHAPE, std=1, generator=generator)
    low, high = (signal_to_noise(scan(head() + std * values)) for std in (0.04, 0.02))
    assert high / low == pytest.approx(2, rel=0.05)


def correlated_noise(n_samples: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixing matrix of three coils and noise that it coloured, ``(coil, sample)``."""
    mixing = torch.randn(3, 3, dtype=torch.complex128, generator=generator) + 2 * torch.eye(3)
    return mixing, mixing @ noise(3, n_samples, std=0.4, generator=generator)


def test_noise_covariance_after_whitening_is_the_identity(generator: torch.Generator) -> None:
    mixing, measured = correlated_noise(5000, generator)
    kspace = prewhiten(scan(head(n_coils=3), noise=measured, calibration=head(n_coils=3)))
    assert kspace.noise is not None
    covariance = torch.cov(torch.cat((kspace.noise.real, kspace.noise.imag), dim=1))
    complex_covariance = torch.cov(kspace.noise) / 2
    torch.testing.assert_close(complex_covariance, torch.eye(3, dtype=torch.complex128), rtol=0, atol=1e-10)
    torch.testing.assert_close(covariance, torch.eye(3, dtype=torch.float64), rtol=0, atol=0.05)
    torch.testing.assert_close(noise_std(kspace)[0], torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(kspace.calibration, kspace.data)
    # Fresh noise of the same coils is white as well: the matrix is right, not only for the samples it was made from.
    fresh = mixing @ noise(3, 20 * 20, std=0.4, generator=generator)
    whitened = prewhiten(scan(fresh.reshape(1, 3, 20, 20), noise=measured)).data.flatten(2)[0]
    torch.testing.assert_close(torch.cov(whitened) / 2, torch.eye(3, dtype=torch.complex128), rtol=0, atol=0.15)


def test_one_coil_is_left_as_it_is_and_the_log_says_so(generator: torch.Generator) -> None:
    kspace = prewhiten(scan(head(), noise=noise(1, 100, std=0.2, generator=generator)))
    assert torch.equal(kspace.data, head())
    assert kspace.decisions[-1].value == "none"


@pytest.mark.parametrize("kind", ["no scan", "dependent coils", "few samples"])
def test_without_a_usable_covariance_every_coil_is_scaled(kind: str, generator: torch.Generator) -> None:
    gains = torch.tensor([1.0, 4.0, 0.1], dtype=torch.float64).reshape(3, 1, 1)
    data = gains * (head(n_coils=3) + noise(1, 3, *SHAPE, std=0.1, generator=generator))
    single = noise(1, 1000, std=0.1, generator=generator).expand(3, -1) * gains[:, 0]
    scans = {"no scan": None, "dependent coils": single, "few samples": single[:, :5]}
    kspace = prewhiten(scan(data, noise=scans[kind]))
    assert kspace.decisions[-1].value == "scaling only"
    assert kspace.decisions[-1].warning == (kind != "no scan")
    torch.testing.assert_close(noise_std(kspace)[0], torch.ones(3, dtype=torch.float64))


def test_levels_that_no_array_has_scale_all_coils_alike(generator: torch.Generator) -> None:
    gains = torch.tensor([1.0, 4.0, 1e-5], dtype=torch.float64).reshape(3, 1, 1)
    before = scan(gains * (head(n_coils=3) + noise(1, 3, *SHAPE, std=0.1, generator=generator)))
    kspace = prewhiten(before)
    assert kspace.decisions[-1].warning
    ratio = kspace.data / before.data
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))


def test_whitening_matrix_survives_coils_of_very_different_gain(generator: torch.Generator) -> None:
    measured = noise(2, 5000, std=1, generator=generator) * torch.tensor([[1.0], [1e-6]])
    kspace = prewhiten(scan(head(n_coils=2), noise=measured))
    assert kspace.decisions[-1].value == "noise covariance"
    torch.testing.assert_close(noise_std(kspace)[0], torch.ones(2, dtype=torch.float64))


def test_dead_coil_is_named(generator: torch.Generator) -> None:
    measured = noise(2, 1000, std=0.1, generator=generator)
    measured[1] = 0
    with pytest.raises(InputError, match="Coil 1 of 2"):
        prewhiten(scan(head(n_coils=2), noise=measured))


def test_matrix_with_the_wrong_number_of_coils_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(new coil, 2\)"):
        mix_coils(scan(head(n_coils=2)), torch.eye(3))


@pytest.mark.parametrize("offset", [(2, -1), (-3, 0), (0, 4)])
def test_centring_moves_the_peak_and_keeps_the_magnitude(offset: tuple[int, int]) -> None:
    off_centre = head(n_slices=2).roll(offset, (-2, -1))
    kspace = centre_kspace(scan(off_centre))
    torch.testing.assert_close(kspace.data, head(n_slices=2))
    transform = Fourier(SHAPE)
    torch.testing.assert_close(transform.adjoint(kspace.data).abs(), transform.adjoint(off_centre).abs())
    assert str(tuple(-n for n in offset)) in kspace.decisions[-1].value


def test_centring_moves_mask_and_calibration_along() -> None:
    mask = torch.ones(SHAPE)
    mask[::3] = 0
    mask[0] = mask[-1] = 1
    mask[50:80] = 1
    data = head().roll((2, 1), (-2, -1)) * mask
    kspace = centre_kspace(scan(data, mask, calibration=data))
    torch.testing.assert_close(kspace.data * kspace.mask, kspace.data)
    torch.testing.assert_close(kspace.calibration, kspace.data)
    assert kspace.fill_rate == pytest.approx(scan(data, mask).fill_rate)


def test_incomplete_axis_is_not_shifted_and_the_log_says_so() -> None:
    mask = torch.zeros(SHAPE)
    mask[48:] = 1
    data = head().roll((2, 1), (-2, -1)) * mask
    kspace = centre_kspace(scan(data, mask))
    torch.testing.assert_close(kspace.data, data.roll(-1, -1))
    unmoved = centre_kspace(scan(head().roll(2, -2) * mask, mask))
    assert "incomplete" in unmoved.decisions[-1].reason


def test_centred_kspace_stays_the_same() -> None:
    kspace = centre_kspace(scan(head()))
    assert torch.equal(kspace.data, head())
    assert kspace.decisions[-1].value == "none"


N = 96
TRAJECTORIES = {
    "radial": (radial(150, 2 * N), 2 * N),
    "few golden spokes": (radial(40, 2 * N, golden=True), 2 * N),
    "spiral": (spiral(N // 8, 8 * N, 4), 8 * N),
    "four arms": (spiral(4, 3000, 12), 3000),
    "epi": (epi(N, N), N),
}


def along(
    trajectory: torch.Tensor, readout_length: int | None, std: float, generator: torch.Generator, **kwargs: object
) -> KSpace:
    """Noisy scan of the phantom along a trajectory, with two coils in one slice."""
    image = (coil_sensitivities(2, (N, N)) * brain_phantom((N, N))).to(torch.complex128)
    data = NonUniformFourier(trajectory, (N, N), n_coils=2)(image) + noise(
        2, len(trajectory), std=std, generator=generator
    )
    header = Acquisition((1, N, N), (5.0, 200.0, 200.0), (5.0, 200.0, 200.0))
    mask = torch.ones(len(trajectory))
    return KSpace(data[None], mask, header, trajectory=trajectory, readout_length=readout_length, **kwargs)


@pytest.mark.parametrize("std", [0.01, 0.05, 0.15, 0.5])
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_noise_level_is_found_along_a_trajectory(name: str, std: float, generator: torch.Generator) -> None:
    found, decision = noise_std(along(*TRAJECTORIES[name], std, generator))
    torch.testing.assert_close(found, torch.full((2,), std, dtype=torch.float64), rtol=0.1, atol=0)
    assert "background of the measured lines" in decision.value or std > 0.01


@pytest.mark.parametrize(
    ("trajectory", "readout_length"),
    [(radial(150, N), N), (radial(150, N), None), (radial(150, N), 1), (rosette(N // 2, 4 * N, 3, 2), 4 * N)],
)
def test_noise_level_comes_from_the_edge_where_readouts_have_no_background(
    trajectory: torch.Tensor, readout_length: int | None, generator: torch.Generator
) -> None:
    # Less noise would hide under what a bright object has at the edge, as on the grid.
    found, decision = noise_std(along(trajectory, readout_length, 0.3, generator))
    assert "k-space edge" in decision.value
    torch.testing.assert_close(found, torch.full((2,), 0.3, dtype=torch.float64), rtol=0.1, atol=0)


def test_noise_level_of_images_with_trajectories_of_their_own(generator: torch.Generator) -> None:
    scans = [along(radial(n, 60 * N // n), None, 0.3, generator) for n in (60, 30)]
    header = scans[0].acquisition
    trajectory = torch.stack([one.trajectory for one in scans])  # type: ignore[misc]
    data = torch.cat([one.data for one in scans])
    kspace = KSpace(data, torch.ones(1, 1, 60 * N), header, trajectory=trajectory)
    torch.testing.assert_close(noise_std(kspace)[0], torch.full((2,), 0.3, dtype=torch.float64), rtol=0.05, atol=0)


def test_samples_that_were_not_measured_do_not_thin_the_noise(generator: torch.Generator) -> None:
    kspace = along(*TRAJECTORIES["radial"], 0.1, generator)
    mask = torch.ones(150, 2 * N)
    mask[::3] = 0
    mask[:, -20:] = 0
    masked = KSpace(
        kspace.data * mask.flatten(),
        mask.flatten(),
        kspace.acquisition,
        trajectory=kspace.trajectory,
        readout_length=2 * N,
    )
    torch.testing.assert_close(noise_std(masked)[0], torch.full((2,), 0.1, dtype=torch.float64), rtol=0.1, atol=0)


def test_a_scan_along_a_trajectory_is_whitened_and_mixed_like_one_on_the_grid(generator: torch.Generator) -> None:
    mixing = torch.tensor([[1.0, 0.5j], [0.2, 3.0]], dtype=torch.complex128)
    measured = mixing @ noise(2, 4000, std=0.2, generator=generator)
    kspace = prewhiten(along(*TRAJECTORIES["radial"], 0.05, generator, noise=measured))
    assert kspace.data.shape == (1, 2, 150 * 2 * N)
    assert kspace.noise is not None
    torch.testing.assert_close(torch.cov(kspace.noise) / 2, torch.eye(2, dtype=torch.complex128), rtol=0, atol=1e-10)
    swapped = mix_coils(kspace, torch.eye(2).flip(0))
    torch.testing.assert_close(swapped.data, kspace.data.flip(1))


def test_a_trajectory_is_not_centred() -> None:
    kspace = along(*TRAJECTORIES["epi"], 0.0, torch.Generator())
    centred = centre_kspace(kspace)
    assert centred.data is kspace.data
    assert centred.decisions[-1].value == "none"


def test_signal_to_noise_does_not_depend_on_how_kspace_was_sampled(generator: torch.Generator) -> None:
    cartesian = along(*TRAJECTORIES["epi"], 0.05, generator)
    on_grid = scan(cartesian.data.reshape(1, 2, N, N).clone())
    on_grid.data[..., 1::2, :] = on_grid.data[..., 1::2, :].flip(-1)
    assert signal_to_noise(cartesian) == pytest.approx(signal_to_noise(on_grid), rel=0.05)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["patient1/fse", "patient2/flair", "patient3/gre", "patient4/flair", "patient4/gre"])
def test_noise_of_low_field_scans_is_three_to_eight_percent(name: str, data_folder: object) -> None:
    from scipy.io import loadmat

    samples = loadmat(f"{data_folder}/mri/lowfield_0p055T/{name}_kspace.mat")["kspace"]
    data = torch.from_numpy(samples).permute(2, 1, 0).unsqueeze(1).conj().resolve_conj()
    found, decision = noise_std(scan(data))
    signal = Fourier(data.shape[-2:]).adjoint(data).abs().quantile(0.95).item()
    assert "image background" in decision.value
    assert 0.03 < found.item() / signal < 0.08
