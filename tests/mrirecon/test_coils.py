import math

import pytest
import torch

from mrirecon.acquisition import Acquisition
from mrirecon.coils import calibration_region, compress, espirit, estimate_csm, root_sum_of_squares, walsh
from mrirecon.kspace import KSpace
from mrirecon.phantom import brain_phantom, coil_sensitivities, head_mask
from mrirecon.prepare import centre_kspace, prewhiten
from mrirecon.trajectory import radial, spiral, stack_of_stars
from operators.elementary import centred_window
from operators.errors import InputError
from operators.fourier import Fourier
from operators.nufft import NonUniformFourier
from operators.sensitivity import Sensitivity

SHAPE = (64, 60)
N_COILS = 5


def scan(data: torch.Tensor, mask: torch.Tensor | None = None, *, n_dims: int = 2, **kwargs: object) -> KSpace:
    """Scan of ``data``, ``(slice, coil, ky, kx)`` or ``(repetition, coil, kz, ky, kx)``."""
    shape = (1, *data.shape[-2:]) if n_dims == 2 else tuple(data.shape[-3:])
    mask = torch.ones(1, 1, *data.shape[-n_dims:]) if mask is None else mask
    axes = ("slice",) if n_dims == 2 else ("repetition",)
    header = Acquisition(shape, (5.0, 200.0, 200.0), (5.0, 200.0, 200.0))  # type: ignore[arg-type]
    return KSpace(data, mask, header, batch_axes=axes, n_dims=n_dims, **kwargs)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def head() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image ``(y, x)``, maps ``(coil, y, x)`` and k-space ``(coil, ky, kx)`` without noise."""
    image, csm = brain_phantom(SHAPE).to(torch.complex128), coil_sensitivities(N_COILS, SHAPE).to(torch.complex128)
    return image, csm, Fourier((N_COILS, *SHAPE))(csm * image)


def noise(*shape: int, std: float, generator: torch.Generator) -> torch.Tensor:
    return std * 2**0.5 * torch.randn(shape, dtype=torch.complex128, generator=generator)


def centre(data: torch.Tensor, width: int) -> torch.Tensor:
    return data[(..., *centred_window((width, width), data.shape[-2:]))]


def map_error(estimate: torch.Tensor, csm: torch.Tensor, inside: torch.Tensor) -> float:
    """Root mean square over ``inside`` of the error of unit vectors of coils, up to a phase per pixel."""
    aligned = estimate * (csm.conj() * estimate).sum(dim=0).conj().sgn()
    return float((aligned - csm).abs().square().sum(dim=0)[inside].mean().sqrt())


@pytest.mark.parametrize("width", [20, 24, 32])
def test_espirit_finds_the_maps(width: int, head: tuple[torch.Tensor, ...]) -> None:
    _, csm, kspace = head
    estimate = espirit(centre(kspace, width), image_shape=SHAPE)
    inside = head_mask(SHAPE)
    assert map_error(estimate, csm, inside) < 0.01
    torch.testing.assert_close(estimate.abs().square().sum(dim=0)[inside], torch.ones_like(csm[0].real[inside]))


def test_walsh_finds_the_maps(head: tuple[torch.Tensor, ...]) -> None:
    image, csm, _ = head
    estimate = walsh(csm * image, smoothing=5)
    assert map_error(estimate, csm, head_mask(SHAPE)) < 0.03
    torch.testing.assert_close(estimate.abs().square().sum(dim=0), torch.ones(SHAPE, dtype=torch.float64))


def test_espirit_is_the_eigenvector_of_the_projection_that_its_paper_defines(generator: torch.Generator) -> None:
    """The dense way: a row-space projection in k-space, averaged over the patches that cover a sample, then a DFT."""
    shape, k, n_coils = (9, 8), 3, 2
    calibration = torch.randn(n_coils, 7, 6, dtype=torch.complex128, generator=generator)
    calibration[1] = 0.7j * calibration[0] + 0.2 * calibration[1]
    rows = [calibration[:, y : y + k, x : x + k].reshape(-1) for y in range(7 - k + 1) for x in range(6 - k + 1)]
    _, singular, right = torch.linalg.svd(torch.stack(rows), full_matrices=False)
    basis = right[singular > 0.4 * singular[0]]
    assert 0 < len(basis) < k * k * n_coils
    estimate = espirit(calibration, image_shape=shape, kernel_width=k, threshold=0.4, crop=0)
    for r in [(0, 0), (4, 3), (8, 7), (2, 5)]:
        matrix = torch.zeros(n_coils, n_coils, dtype=torch.complex128)
        for c in range(n_coils):
            # The projection of all patches of a plane wave at pixel r in coil c, read off at the patches' own phases.
            a, b = torch.meshgrid(torch.arange(k), torch.arange(k), indexing="ij")
            wave = torch.exp(-2j * math.pi * (a * (r[0] - 4) / 9 + b * (r[1] - 4) / 8)).to(torch.complex128)
            patch = torch.zeros(n_coils, k, k, dtype=torch.complex128)
            patch[c] = wave
            projected = (basis.T @ (basis.conj() @ patch.reshape(-1))).reshape(n_coils, k, k)
            matrix[:, c] = (wave.conj() * projected).mean(dim=(1, 2))
        vector = torch.linalg.eigh(matrix)[1][:, -1]
        overlap = (vector.conj() * estimate[(slice(None), *r)]).sum().abs()
        assert overlap.item() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("method", ["espirit", "walsh"])
def test_maps_combine_the_coils_to_the_true_image(method: str, head: tuple[torch.Tensor, ...]) -> None:
    image, _, kspace = head
    csm, _ = estimate_csm(scan(kspace[None]), method)  # type: ignore[arg-type]
    assert csm is not None
    combined = Sensitivity(csm[0]).adjoint(Fourier((N_COILS, *SHAPE)).adjoint(kspace))
    assert float((combined.abs() - image.abs()).norm() / image.norm()) < 0.005


def test_maps_have_no_signal_outside_the_object(head: tuple[torch.Tensor, ...], generator: torch.Generator) -> None:
    kspace = head[2] + noise(N_COILS, *SHAPE, std=0.05, generator=generator)
    estimate = espirit(centre(kspace, 24), image_shape=SHAPE, noise_std=0.05)
    norm = estimate.abs().square().sum(dim=0)
    assert bool(((norm < 1e-12) | ((norm - 1).abs() < 1e-10)).all())
    assert float((norm[head_mask(SHAPE)] > 0.5).double().mean()) > 0.995
    assert float((norm[:6, :6] < 0.5).double().mean()) > 0.9


def test_espirit_holds_at_the_noise_of_low_field(head: tuple[torch.Tensor, ...], generator: torch.Generator) -> None:
    _, csm, kspace = head
    noisy = kspace + noise(N_COILS, *SHAPE, std=0.1, generator=generator)
    inside = head_mask(SHAPE)
    known, _ = estimate_csm(scan(noisy[None]))
    assert known is not None
    assert map_error(known[0], csm, inside) < 0.1
    assert map_error(espirit(centre(noisy, 32), image_shape=SHAPE, crop=0), csm, inside) > 0.5


def test_slice_with_noise_alone_has_no_maps(generator: torch.Generator) -> None:
    calibration = noise(3, 24, 24, std=0.1, generator=generator)
    assert not bool(espirit(calibration, image_shape=(40, 40), noise_std=0.13).any())


@pytest.mark.parametrize("method", ["espirit", "walsh"])
def test_slices_do_not_influence_each_other(method: str, head: tuple[torch.Tensor, ...]) -> None:
    kspace = head[2]
    batch = torch.stack((kspace, 3j * kspace.flip(-1), kspace.roll(1, 0)))
    if method == "espirit":
        together = espirit(centre(batch, 20).reshape(3, 1, N_COILS, 20, 20), image_shape=SHAPE)[:, 0]
        alone = espirit(centre(batch[1], 20), image_shape=SHAPE)
    else:
        together, alone = walsh(batch), walsh(batch[1])
    torch.testing.assert_close(together[1], alone)


@pytest.mark.parametrize("method", ["espirit", "walsh"])
def test_maps_do_not_depend_on_the_scale_or_phase_of_the_data(method: str, head: tuple[torch.Tensor, ...]) -> None:
    def maps(kspace: torch.Tensor) -> torch.Tensor:
        return espirit(centre(kspace, 20), image_shape=SHAPE) if method == "espirit" else walsh(kspace)

    torch.testing.assert_close(maps(head[2]), maps(1e-4j * head[2]))


def test_maps_of_a_volume(head: tuple[torch.Tensor, ...]) -> None:
    shape = (6, 40, 36)
    image, csm = brain_phantom(shape).to(torch.complex128), coil_sensitivities(4, shape).to(torch.complex128)
    kspace = Fourier((4, *shape), 3)(csm * image)
    estimate, decision = estimate_csm(scan(kspace[None], n_dims=3))
    assert estimate is not None
    assert estimate.shape == (1, 4, *shape)
    assert decision.value == "espirit"
    assert map_error(estimate[0], csm, head_mask(shape)) < 0.05
    adaptive = walsh(csm * image, smoothing=3, n_dims=3)
    assert map_error(adaptive, csm, head_mask(shape)) < 0.05


def test_single_precision_agrees_with_double(head: tuple[torch.Tensor, ...]) -> None:
    double = espirit(centre(head[2], 24), image_shape=SHAPE)
    single = espirit(centre(head[2], 24).to(torch.complex64), image_shape=SHAPE)
    assert single.dtype == torch.complex64
    assert map_error(single.to(torch.complex128), double, head_mask(SHAPE)) < 0.005


def test_calibration_region_is_the_central_block() -> None:
    data = torch.arange(48 * 40, dtype=torch.float64).reshape(1, 1, 48, 40).to(torch.complex128).repeat(2, 2, 1, 1)
    block, lines = torch.zeros(48, 40), torch.zeros(48, 1)
    block[::3, ::2] = 1
    block[14:34, 12:28] = 1  # 20 × 16 about the centre (24, 20)
    lines[::4] = 1
    lines[18:30] = 1
    found, decision = calibration_region(scan(data, block))
    torch.testing.assert_close(found, data[..., 14:34, 12:28])
    assert "20 × 16" in decision.value
    found, _ = calibration_region(scan(data, lines))
    torch.testing.assert_close(found, data[..., 18:30, 4:36])


def test_calibration_region_is_measured_in_every_slice() -> None:
    data = torch.ones(2, 2, 40, 40, dtype=torch.complex64)
    mask = torch.ones(2, 1, 40, 40)
    mask[1, :, :12] = 0
    assert calibration_region(scan(data, mask))[0].shape == (2, 2, 17, 32)


def test_calibration_lines_of_their_own_come_first(head: tuple[torch.Tensor, ...]) -> None:
    kspace, mask = head[2][None], torch.zeros(SHAPE[0], 1)
    mask[::2] = 1
    calibration = torch.zeros_like(kspace)
    calibration[..., 20:44, :] = kspace[..., 20:44, :]
    found, decision = calibration_region(scan(kspace * mask, mask, calibration=calibration))
    torch.testing.assert_close(found, kspace[..., 20:44, 14:46])
    assert "calibration lines" in decision.value


def test_narrow_calibration_falls_back_to_walsh_with_a_warning(head: tuple[torch.Tensor, ...]) -> None:
    _, csm, kspace = head
    mask = torch.zeros(SHAPE[0], 1)
    mask[::2] = 1
    mask[28:37] = 1
    estimate, decision = estimate_csm(scan(kspace[None] * mask, mask))
    assert estimate is not None
    assert decision.value == "walsh"
    assert decision.warning
    assert map_error(estimate[0], csm, head_mask(SHAPE)) < 0.15


def test_missing_centre_is_named(head: tuple[torch.Tensor, ...]) -> None:
    mask = torch.ones(SHAPE[0], 1)
    mask[SHAPE[0] // 2] = 0
    with pytest.raises(InputError, match="centre of k-space was not measured"):
        estimate_csm(scan(head[2][None] * mask, mask))


def test_one_coil_needs_no_maps(head: tuple[torch.Tensor, ...]) -> None:
    csm, decision = estimate_csm(scan(head[2][None, :1]))
    assert csm is None
    assert decision.reason == "One coil needs no maps."


@pytest.mark.parametrize("method", ["none", None])
def test_no_maps_on_request(method: str | None, head: tuple[torch.Tensor, ...]) -> None:
    assert estimate_csm(scan(head[2][None]), method)[0] is None  # type: ignore[arg-type]


def test_wrong_arguments_are_refused(head: tuple[torch.Tensor, ...]) -> None:
    kspace = scan(head[2][None])
    with pytest.raises(ValueError, match="expected 'espirit', 'walsh' or 'none'"):
        estimate_csm(kspace, "grappa")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a complex tensor"):
        espirit(head[2].real, image_shape=SHAPE)
    with pytest.raises(ValueError, match="at most as large as the image"):
        espirit(head[2], image_shape=(32, 32))
    with pytest.raises(ValueError, match="smaller than the kernel"):
        espirit(centre(head[2], 4), image_shape=SHAPE)
    with pytest.raises(TypeError, match="expected a complex tensor"):
        walsh(head[2].real)
    with pytest.raises(ValueError, match="odd number"):
        walsh(head[2], smoothing=4)
    with pytest.raises(ValueError, match="coil_images have shape"):
        walsh(head[2], n_dims=3)
    with pytest.raises(ValueError, match="expected 1 to the 5 coils"):
        compress(kspace, n_coils=6)
    with pytest.raises(ValueError, match="expected a fraction"):
        compress(kspace, energy=0)


def test_compression_keeps_the_best_part_of_the_energy(head: tuple[torch.Tensor, ...]) -> None:
    data = torch.stack((head[2], 0.5j * head[2].flip(0)))
    singular = torch.linalg.svdvals(data.transpose(0, 1).flatten(1)).square()
    for n_coils in range(1, N_COILS + 1):
        compressed = compress(scan(data), n_coils=n_coils)
        assert compressed.n_coils == n_coils
        energy = compressed.data.abs().square().sum()
        torch.testing.assert_close(energy, singular[:n_coils].sum())
    kept = compress(scan(data), energy=0.97)
    fraction = (kept.data.abs().square().sum() / data.abs().square().sum()).item()
    fewer = (singular[: kept.n_coils - 1].sum() / singular.sum()).item()
    assert fewer < 0.97 <= fraction
    assert f"{100 * fraction:.2f} %" in kept.decisions[-1].reason


def test_compression_to_all_coils_is_unitary_and_keeps_noise_white(
    head: tuple[torch.Tensor, ...], generator: torch.Generator
) -> None:
    white = prewhiten(scan(head[2][None], noise=noise(N_COILS, 400, std=0.3, generator=generator)))
    compressed = compress(white, energy=1)
    assert compressed.n_coils == N_COILS
    # Inner products between the samples of k-space, as vectors of coils, stay what they were.
    before, after = white.data.flatten(2)[0, :, ::50], compressed.data.flatten(2)[0, :, ::50]
    torch.testing.assert_close(after.mH @ after, before.mH @ before)
    fewer = compress(white, n_coils=3)
    assert fewer.noise is not None
    torch.testing.assert_close(torch.cov(fewer.noise) / 2, torch.eye(3, dtype=torch.complex128), rtol=0, atol=1e-10)


def test_compressed_calibration_belongs_to_the_compressed_data(head: tuple[torch.Tensor, ...]) -> None:
    compressed = compress(scan(head[2][None], calibration=head[2][None]), n_coils=3)
    torch.testing.assert_close(compressed.calibration, compressed.data)


def test_volume_without_batch_axes_is_prepared_like_one_with(generator: torch.Generator) -> None:
    shape = (4, 32, 30)
    image = coil_sensitivities(3, shape) * brain_phantom(shape)
    data = Fourier((3, *shape), 3)(image.to(torch.complex128)) + noise(3, *shape, std=0.05, generator=generator)
    batched = scan(data[None], n_dims=3)
    bare = KSpace(data, torch.ones(1, *shape), batched.acquisition, batch_axes=(), n_dims=3)
    for step in (prewhiten, compress, centre_kspace):
        torch.testing.assert_close(step(bare).data, step(batched).data[0])
    csm, together = estimate_csm(bare)[0], estimate_csm(batched)[0]
    assert csm is not None
    assert together is not None
    torch.testing.assert_close(csm, together[0])


def test_root_sum_of_squares_of_true_maps_is_the_magnitude(head: tuple[torch.Tensor, ...]) -> None:
    image, csm, _ = head
    torch.testing.assert_close(root_sum_of_squares(csm * image), image.abs(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        root_sum_of_squares((csm * image).movedim(0, -1), dim=-1), image.abs(), rtol=1e-6, atol=1e-9
    )


TRAJECTORIES = {
    "radial": radial(100, 128),
    "a quarter of the spokes": radial(25, 128, golden=True),
    "spiral": spiral(16, 400, 2),
    "dense centre": spiral(16, 400, 2, density=1.5),
}


def along(trajectory: torch.Tensor, data: torch.Tensor, mask: torch.Tensor | None = None) -> KSpace:
    """Slices ``(slice, coil, sample)`` along trajectories ``(slice, sample, dim)`` or one for all."""
    header = Acquisition((1, *SHAPE), (5.0, 200.0, 200.0), (5.0, 200.0, 200.0))
    mask = torch.ones(data.shape[-1]) if mask is None else mask
    return KSpace(data, mask, header, trajectory=trajectory)


def sampled(trajectory: torch.Tensor, head: tuple[torch.Tensor, ...]) -> torch.Tensor:
    image, csm, _ = head
    return NonUniformFourier(trajectory, SHAPE, n_coils=N_COILS)(csm * image)


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_maps_along_a_trajectory_are_those_of_the_grid(name: str, head: tuple[torch.Tensor, ...]) -> None:
    _, csm, kspace = head
    estimate, decision = estimate_csm(along(TRAJECTORIES[name], sampled(TRAJECTORIES[name], head)[None]))
    cartesian, _ = estimate_csm(scan(kspace[None]))
    assert estimate is not None
    assert cartesian is not None
    assert decision.value == "espirit"
    assert not decision.warning
    inside = head_mask(SHAPE)
    assert map_error(estimate[0], csm, inside) < 0.02
    assert map_error(estimate[0], cartesian[0], inside) < 0.02


@pytest.mark.parametrize("method", ["espirit", "walsh"])
def test_maps_along_a_trajectory_hold_at_the_noise_of_low_field(
    method: str, head: tuple[torch.Tensor, ...], generator: torch.Generator
) -> None:
    k = TRAJECTORIES["radial"]
    noisy = sampled(k, head) + noise(N_COILS, len(k), std=0.1, generator=generator)
    estimate, _ = estimate_csm(along(k, noisy[None]), method)  # type: ignore[arg-type]
    assert estimate is not None
    assert map_error(estimate[0], head[1], head_mask(SHAPE)) < 0.1


@pytest.mark.parametrize("name", ["radial", "spiral"])
def test_gridded_calibration_region_is_the_centre_of_the_grid(name: str, head: tuple[torch.Tensor, ...]) -> None:
    found, decision = calibration_region(along(TRAJECTORIES[name], sampled(TRAJECTORIES[name], head)[None]))
    assert "32 × 32" in decision.value
    expected = centre(head[2], 32)
    assert float((found[0] - expected).norm() / expected.norm()) < 0.04
    middle, middle_expected = centre(found[0], 20), centre(expected, 20)
    assert float((middle - middle_expected).norm() / middle_expected.norm()) < 0.02


def test_slices_with_trajectories_and_masks_of_their_own_are_gridded_one_by_one(
    head: tuple[torch.Tensor, ...],
) -> None:
    first, second = radial(100, 128), radial(100, 128, golden=True)
    data = torch.stack([sampled(k, head) for k in (first, second, first)])
    mask = torch.ones(3, 1, len(first))
    mask[2, :, ::5] = 0
    data[2, :, ::5] = 1e3  # nobody may look there
    together, _ = calibration_region(along(torch.stack((first, second, first)), data, mask))
    for i, k in enumerate((first, second, first)):
        alone, _ = calibration_region(along(k, data[i : i + 1], mask[i : i + 1]))
        torch.testing.assert_close(together[i], alone[0], rtol=0, atol=1e-6)


def test_calibration_region_ends_where_spokes_are_too_far_apart(head: tuple[torch.Tensor, ...]) -> None:
    k = radial(16, 128)
    found, decision = calibration_region(along(k, sampled(k, head)[None]))
    # Spokes are 2 cells apart at 20 cells from the centre: the corners of a square of 28.
    assert 14 <= min(found.shape[-2:]) <= max(found.shape[-2:]) <= 29
    assert f"{found.shape[-2]} × {found.shape[-1]}" in decision.value
    for n_spokes, expected in ((8, "walsh"), (4, "none")):
        few = radial(n_spokes, 128)
        estimate, decision = estimate_csm(along(few, sampled(few, head)[None]))
        assert (decision.value, decision.warning) == (expected, True)
        assert (estimate is None) == (expected == "none")


@pytest.mark.parametrize("shape", [(20, 24), (21, 23)])
def test_a_region_as_wide_as_kspace_keeps_its_ends(shape: tuple[int, int], generator: torch.Generator) -> None:
    image = torch.randn(2, *shape, dtype=torch.complex128, generator=generator)
    grid = torch.cartesian_prod(*(2 * math.pi * (torch.arange(n, dtype=torch.float64) - n // 2) / n for n in shape))
    header = Acquisition((1, *shape), (5.0, 200.0, 200.0), (5.0, 200.0, 200.0))
    data = Fourier((2, *shape))(image)
    kspace = KSpace(data.flatten(-2)[None], torch.ones(len(grid)), header, trajectory=grid)
    found, _ = calibration_region(kspace)
    assert found[0].shape == data.shape
    assert float((found[0] - data).abs().max()) < 0.01 * float(data.abs().max())
    every_other = torch.ones(shape)
    every_other[shape[0] // 2 + 2 :: 2] = 0
    masked = KSpace(kspace.data * every_other.flatten(), every_other.flatten(), header, trajectory=grid)
    assert calibration_region(masked)[0].shape[-2:] == (4, shape[1])


def test_a_trajectory_that_leaves_out_the_centre_is_named(head: tuple[torch.Tensor, ...]) -> None:
    k = radial(100, 128)
    ring = k[k.norm(dim=-1) > 0.5]
    with pytest.raises(InputError, match="centre of k-space was not measured"):
        estimate_csm(along(ring, sampled(ring, head)[None]))
    with pytest.raises(InputError, match="centre of k-space was not measured"):
        estimate_csm(along(k, sampled(k, head)[None], (k.norm(dim=-1) > 0.5).float()))


def test_maps_of_a_stack_of_stars() -> None:
    shape = (6, 40, 36)
    image, csm = brain_phantom(shape).to(torch.complex128), coil_sensitivities(4, shape).to(torch.complex128)
    k = stack_of_stars(6, 60, 80)
    data = NonUniformFourier(k, shape, n_coils=4)(csm * image)
    header = Acquisition(shape, (60.0, 200.0, 200.0), (60.0, 200.0, 200.0))
    kspace = KSpace(data, torch.ones(len(k)), header, batch_axes=(), n_dims=3, trajectory=k)
    estimate, decision = estimate_csm(kspace)
    assert estimate is not None
    assert estimate.shape == (4, *shape)
    assert decision.value == "espirit"
    assert map_error(estimate, csm, head_mask(shape)) < 0.05


def test_compression_along_a_trajectory_keeps_the_energy(head: tuple[torch.Tensor, ...]) -> None:
    k = TRAJECTORIES["radial"]
    compressed = compress(along(k, sampled(k, head)[None]), n_coils=3)
    assert compressed.data.shape == (1, 3, len(k))
    singular = torch.linalg.svdvals(sampled(k, head)).square()
    torch.testing.assert_close(compressed.data.abs().square().sum(), singular[:3].sum())


@pytest.mark.realdata
def test_maps_of_a_measured_brain_are_smooth_and_explain_the_data(data_folder: object) -> None:
    import numpy as np

    data = torch.from_numpy(np.load(f"{data_folder}/mri/multicoil_brain/cartesian_kspace_8ch.npy"))[None]
    mask = (data != 0).any(dim=1, keepdim=True).float()
    kspace = prewhiten(scan(data, mask))
    calibration, decision = calibration_region(kspace)
    assert "24 × 24" in decision.value
    csm, _ = estimate_csm(kspace)
    assert csm is not None
    inside = csm[0].abs().square().sum(dim=0) > 0.5
    assert 0.4 < float(inside.float().mean()) < 0.9
    # Neighbouring pixels inside the head have nearly the same sensitivities ...
    pairs = inside[:, 1:] & inside[:, :-1]
    overlap = (csm[0, :, :, 1:].conj() * csm[0, :, :, :-1]).sum(dim=0).abs()[pairs]
    assert float(overlap.quantile(0.01)) > 0.98
    # ... and the coil images lie along them.
    window = torch.hann_window(24, periodic=False)
    low = torch.zeros(1, 8, 230, 180, dtype=torch.complex64)
    low[(..., *centred_window((24, 24), (230, 180)))] = calibration * window * window[:, None]
    images = Fourier((8, 230, 180)).adjoint(low)[0]
    explained = csm[0] * (csm[0].conj() * images).sum(dim=0)
    assert float((images - explained)[:, inside].norm() / images[:, inside].norm()) < 0.05
