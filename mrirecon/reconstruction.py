"""From k-space to images: the operator of a scan, the methods, and the pipeline that joins them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from mrirecon.acquisition import Acquisition
from mrirecon.coils import compress, estimate_csm, root_sum_of_squares
from mrirecon.density import density
from mrirecon.kspace import KSpace
from mrirecon.method_names import DEFAULT_METHOD
from mrirecon.partial_fourier import homodyne, is_partial_fourier, pocs
from mrirecon.prepare import noise_std, prewhiten
from mrirecon.trajectory import non_uniform_fourier
from operators.decision import Decision
from operators.device import usable_device
from operators.elementary import Diagonal, FiniteDifference, Mask, centred_window
from operators.errors import InputError
from operators.fourier import Fourier
from operators.linear_operator import LinearOperator
from operators.proximal import complex_soft_threshold, project_dual_ball
from operators.sensitivity import Sensitivity
from operators.solvers import cg, fista, pdhg
from operators.voxel_grid import VoxelGrid
from operators.wavelet import synthesis_frame

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """An image with everything that is needed to trust it and to write it.

    Parameters
    ----------
    image
        Complex64 ``(*batch, z, y, x)``, in the units of the data (of the average coil, where there are several); z is
        the slice of a two-dimensional stack.
    grid
        Where the voxels lie in the patient.
    method
        Name of the method.
    acquisition
        Header of the scan.
    noise_std
        Noise level per real component that the reconstruction assumed, in the units of the data.
    residual
        Whitened data residual ‖M(A x − y)‖² / (2 σ² n) per image, real ``batch``; 1 where image and noise level
        explain the data, below where noise was fitted, above where structure was lost.
    csm
        Coil sensitivity maps that were used, or ``None``.
    decisions
        What was decided or done on the way, in order.
    unit
        What 1 of the whitened data, in which methods compute, is in the units of the image.
    """

    image: torch.Tensor
    grid: VoxelGrid
    method: str
    acquisition: Acquisition
    noise_std: float
    residual: torch.Tensor
    csm: torch.Tensor | None
    decisions: tuple[Decision, ...]
    unit: float = 1.0


Run = Callable[[LinearOperator, torch.Tensor, float, float, int], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Method:
    """A reconstruction method.

    Parameters
    ----------
    summary
        One line for people.
    run
        ``run(A, y, noise_std, regularisation, n_iterations)`` with y ``(image, coil, [kz,] ky, kx)`` or ``(image, coil,
        sample)`` returns the images ``(image, [z,] y, x)``.
    regularisation
        Default strength, relative to the noise level, so that one number serves every scan.
    n_iterations
        Default number of iterations.
    density_power
        Samples of a trajectory weigh the data term by their area of k-space to this power: 1 for gridding. 0 would be
        the likelihood, which takes hundreds of iterations where thousands of samples meet in the centre; 0.5 is as
        good after tens, and makes the noise in the gradient that of a Cartesian scan.
    adjustable
        Whether strength and number of iterations can be chosen.
    """

    summary: str
    run: Run
    regularisation: float
    n_iterations: int
    density_power: float = 0.5
    adjustable: bool = True


def operator_for(kspace: KSpace, csm: torch.Tensor | None = None) -> LinearOperator:
    """Assemble the forward operator of a scan: ``Mask @ Fourier @ Sensitivity``.

    Along a trajectory the transform is a `NonUniformFourier`, of a plane for every partition where a volume was
    measured as a stack, and there is a mask only if samples are missing.

    Parameters
    ----------
    kspace
        The scan.
    csm
        Coil sensitivity maps, complex ``(*batch, coil, [z,] y, x)``; ``None`` for a single coil of sensitivity 1.

    Returns
    -------
    LinearOperator
        From images ``([z,] y, x)`` to k-space ``(coil, [kz,] ky, kx)`` or ``(coil, sample)``.

    Raises
    ------
    ValueError
        If the number of coils differs.
    """
    return _assembled(kspace, csm, _transform(kspace))


def _assembled(kspace: KSpace, csm: torch.Tensor | None, transform: LinearOperator) -> LinearOperator:
    csm = _maps_or_one(kspace, csm)
    n_maps = csm.shape[-kspace.n_dims - 1]
    if n_maps != kspace.n_coils:
        raise ValueError(f"kspace has {kspace.n_coils} coils but csm has {n_maps}; both must come from the same scan.")
    sense = transform @ Sensitivity(csm, n_dims=kspace.n_dims)
    if not kspace.is_cartesian and bool((kspace.mask != 0).all()):
        return sense
    return Mask(kspace.mask, transform.codomain) @ sense


_ACCURACY = 1e-4  # far below the noise of any scan


def _transform(kspace: KSpace) -> LinearOperator:
    """From coil images to all samples of the grid, or of the trajectory."""
    if kspace.trajectory is None:
        return Fourier((kspace.n_coils, *kspace.image_shape), n_dims=kspace.n_dims)
    return non_uniform_fourier(kspace.trajectory, kspace.image_shape, n_coils=kspace.n_coils, accuracy=_ACCURACY)


def reconstruct(
    kspace: KSpace,
    method: str | Method = DEFAULT_METHOD,
    *,
    regularisation: float | None = None,
    n_iterations: int | None = None,
    coil_maps: Literal["espirit", "walsh", "none"] = "espirit",
    n_virtual_coils: int | None = None,
    partial_fourier: Literal["auto", "pocs", "homodyne", "none"] = "auto",
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Reconstruction:
    """Reconstruct the images of a scan.

    Parameters
    ----------
    kspace
        What a reader returned.
    method
        A name in `METHODS`, the name of a method whose trained weights come with the package, or a method such as
        `mrirecon.learned.load_method` makes from weights.
    regularisation
        Strength relative to the noise level; by default the method's. Trained weights and ``adjoint`` take none.
    n_iterations
        By default the method's; likewise.
    coil_maps
        How sensitivities are estimated where there are several coils; with ``"none"`` each coil is reconstructed on
        its own and the results are combined by the root of the sum of squares.
    n_virtual_coils
        Compress the prewhitened coils to so many before anything else; by default all are kept.
    partial_fourier
        What the method ``adjoint`` does about k-space that was measured on one side only: ``"auto"`` is POCS where
        that is so, ``"none"`` leaves zeros. Iterative methods treat what is missing as not measured.
    device
        Where to compute.
    progress
        Called with (images done, images in all).

    Returns
    -------
    Reconstruction
        Images, grid, log.

    Raises
    ------
    InputError
        If the method or the device is unknown, its weights are missing, or an option does not go with the method.
    """
    chosen, name = _named(method)
    _check_options(chosen, name, regularisation, n_iterations, partial_fourier)
    strength = chosen.regularisation if regularisation is None else regularisation
    kspace, noise, unit = _whitened(_on_device(kspace, device))
    if n_virtual_coils is not None and n_virtual_coils < kspace.n_coils:
        kspace = compress(kspace, n_coils=n_virtual_coils)
    csm, decision = estimate_csm(kspace, method=coil_maps)
    kspace = kspace.with_decisions(decision)
    n_separate = kspace.n_coils if csm is None else 1
    kspace, completion = _partial_fourier_step(kspace, chosen, partial_fourier)
    kspace = _with_density(kspace)

    images, residuals = [], []
    samples = list(_samples(kspace, csm))
    n_done, n_images = 0, sum(len(part.data) for part, _ in samples)
    transform = None
    for part, maps in samples:
        if transform is None or not _shares_trajectory(part):
            transform = _transform(part)
        A = _assembled(part, maps, transform)
        if completion is None:
            balanced = _balanced(A, part, noise, chosen.density_power)
            image = chosen.run(*balanced, strength, n_iterations or chosen.n_iterations)
        else:
            coil_images = completion(part.data, part.mask, n_dims=part.n_dims)
            image = Sensitivity(_maps_or_one(part, maps), n_dims=part.n_dims).adjoint(coil_images)
        images.append(image)
        residuals.append(_whitened_residual(A, image, part.data, part.mask, noise))
        n_done += len(image)
        if progress is not None:
            progress(n_done, n_images)

    batch = tuple(kspace.data.shape[: len(kspace.batch_axes)])
    image = torch.cat(images).reshape(*batch, n_separate, *kspace.image_shape)
    residual = torch.cat(residuals).reshape(*batch, n_separate).mean(dim=-1)
    image = image.squeeze(len(batch)) if n_separate == 1 else root_sum_of_squares(image, dim=len(batch)).to(image.dtype)
    image, grid, cropping = _cropped_to_recon_fov(image, kspace)
    return Reconstruction(
        image=(unit * image).cpu(),
        grid=grid,
        method=name,
        acquisition=kspace.acquisition,
        noise_std=unit * noise,
        residual=residual.cpu(),
        csm=None if csm is None else csm.cpu(),
        decisions=(*kspace.decisions, *cropping),
        unit=unit,
    )


def _adjoint(
    A: LinearOperator, y: torch.Tensor, noise: float, regularisation: float, n_iterations: int
) -> torch.Tensor:
    return A.adjoint(y)


def _cg_sense(
    A: LinearOperator, y: torch.Tensor, noise: float, regularisation: float, n_iterations: int
) -> torch.Tensor:
    """Argmin ½‖A x − y‖² + ½ Σ_k w_k |(F x)_k|², w = regularisation · σ²/S with S the power spectrum of such an image.

    With regularisation 2 that is the Wiener filter of a complete scan, whose noise has the variance 2σ²; less is
    better, because edges do not follow the spectrum. One weight for all frequencies would let noise through at the
    high ones, or shrink the low ones.
    """
    x0 = A.adjoint(y)
    fourier = Fourier(A.domain.shape, n_dims=A.domain.n_dims)
    weight = regularisation * noise**2 / _power_spectrum(A, fourier, x0, noise)

    def normal(x: torch.Tensor) -> torch.Tensor:
        return A.gram(x) + fourier.adjoint(weight * fourier(x))

    return cg(normal, x0, max_iterations=n_iterations, rtol=1e-4, batch_dims=1).value


_N_SHELLS = 12
_STEEPEST = -4.0


def _power_spectrum(A: LinearOperator, fourier: Fourier, x0: torch.Tensor, noise: float) -> torch.Tensor:
    """S(k) = a |k|^b of each image, fitted to its adjoint image x0 = Aᴴy, ``(image, *k)``.

    In shells of |k|, x0 has the power c (S + 2σ²), where c is the mean eigenvalue of AᴴA there: the part that was
    measured. Shells that hold little but noise are left out, and a slope that no image has is not believed.
    """
    radius = _distance_from_centre(fourier.codomain.shape).to(x0.device)
    innermost = 2 / max(fourier.codomain.shape)
    shell = ((radius.log() / math.log(innermost)).neg().add(1) * _N_SHELLS).long().clamp(0, _N_SHELLS - 1).flatten()
    count = torch.bincount(shell, minlength=_N_SHELLS)

    def by_shell(values: torch.Tensor) -> torch.Tensor:
        total = values.new_zeros(len(values), _N_SHELLS, dtype=torch.float64)
        return total.index_add_(1, shell, values.flatten(1).double()) / count.clamp_min(1)

    probe = A.domain.randn(len(x0), generator=torch.Generator().manual_seed(0), dtype=x0.real.dtype).to(x0.device)
    transformed = fourier(probe)
    measured = by_shell((transformed.conj() * fourier(A.gram(probe))).real) / by_shell(transformed.abs().square())
    power = by_shell(fourier(x0).abs().square()) / measured.clamp_min(1e-3) - 2 * noise**2
    known = (power > 0.4 * noise**2) & (measured > 1e-2) & (count >= 4)
    log_radius = by_shell(radius.log().expand(1, *radius.shape))
    log_power = torch.where(known, power, 1.0).log()
    n = known.sum(dim=1, keepdim=True).clamp_min(1)
    centre = torch.where(known, log_radius, 0.0).sum(dim=1, keepdim=True) / n
    height = torch.where(known, log_power, 0.0).sum(dim=1, keepdim=True) / n
    along = torch.where(known, log_radius - centre, 0.0)
    spread = along.square().sum(dim=1, keepdim=True)
    slope = (along * (log_power - height)).sum(dim=1, keepdim=True) / spread.clamp_min(1e-6)
    slope, centre, height = (t.reshape(-1, *(1,) * radius.ndim) for t in (slope.clamp(_STEEPEST, 0.0), centre, height))
    return (height + slope * (radius.log() - centre)).exp().to(x0.real.dtype)


def _distance_from_centre(shape: Sequence[int]) -> torch.Tensor:
    """|k| as a fraction of the edge along an axis, at least that of the second sample from the centre."""
    along = [(torch.arange(n, dtype=torch.float64) - n // 2) / (n / 2) for n in shape]
    squared = torch.zeros(())
    for k in along:
        squared = squared[..., None] + k.square()
    return squared.sqrt().clamp_min(2 / max(shape))


def _tv(A: LinearOperator, y: torch.Tensor, noise: float, regularisation: float, n_iterations: int) -> torch.Tensor:
    """Argmin ½‖A x − y‖² + λ Σ_r ‖(G x)_r‖₂, λ = regularisation · σ: isotropic total variation, by PDHG."""
    difference = FiniteDifference(A.domain)
    radius = regularisation * noise
    x0 = A.adjoint(y)
    return pdhg(
        difference,
        lambda p, _: project_dual_ball(p, radius, dim=-difference.codomain.n_dims),
        lambda x, _: x,
        x0=x0,
        gradient=lambda x: A.gram(x) - x0,
        lipschitz=A.norm().square(),
        n_iterations=n_iterations,
        rtol=1e-4,
    ).value


def _wavelet(
    A: LinearOperator, y: torch.Tensor, noise: float, regularisation: float, n_iterations: int
) -> torch.Tensor:
    """S argmin ½‖A S c − y‖² + λ ‖detail part of c‖₁, S the wavelet synthesis, λ = regularisation · σ, by FISTA."""
    wavelet, synthesis = synthesis_frame(A.domain)
    threshold = regularisation * noise * wavelet.detail_mask().to(y.device)
    codes = fista(
        A @ synthesis,
        y,
        lambda c, step: complex_soft_threshold(c, step * threshold),
        step=1 / A.norm().square(),
        n_iterations=n_iterations,
        rtol=1e-4,
        restart=True,
    ).value
    return synthesis(codes)


METHODS: Mapping[str, Method] = {
    "adjoint": Method(
        "zero-filled inverse transform, or gridding",
        _adjoint,
        regularisation=0.0,
        n_iterations=1,
        density_power=1.0,
        adjustable=False,
    ),
    "cg-sense": Method("least squares with a Wiener weight", _cg_sense, regularisation=1.0, n_iterations=30),
    "tv": Method("total variation", _tv, regularisation=0.4, n_iterations=200),
    "wavelet": Method("wavelet sparsity", _wavelet, regularisation=0.7, n_iterations=100),
}


def _named(method: str | Method) -> tuple[Method, str]:
    """The method, and what the image is said to be made by."""
    if not isinstance(method, str):
        return method, method.summary
    if method in METHODS:
        return METHODS[method], method
    from mrirecon.learned import method_named  # it imports this module, and networks that others do without

    chosen = method_named(method)
    return chosen, chosen.summary


def _check_options(
    chosen: Method, name: str, regularisation: float | None, n_iterations: int | None, partial_fourier: str
) -> None:
    if not chosen.adjustable and (regularisation is not None or n_iterations is not None):
        raise InputError(
            f"The method {name} takes no strength and no number of iterations; leave them out (--lambda, --iterations)."
        )
    if partial_fourier in ("pocs", "homodyne") and chosen.run is not _adjoint:
        raise InputError(
            f"Partial Fourier filling by {partial_fourier} belongs to the method adjoint; {name} takes what is missing "
            "as not measured. Leave one of the two options out."
        )


def _on_device(kspace: KSpace, device: str | torch.device) -> KSpace:
    target = usable_device(device)
    moved = {
        name: value.to(target)
        for name in ("data", "mask", "noise", "calibration", "trajectory", "dcf")
        if (value := getattr(kspace, name)) is not None
    }
    return replace(kspace, **moved)


def _whitened(kspace: KSpace) -> tuple[KSpace, float, float]:
    """The scan with coils of equal, uncorrelated noise, the noise level they then have, and the unit to go back."""
    levels, decision = noise_std(kspace)
    noise = float(levels.square().mean().sqrt())
    kspace = kspace.with_decisions(decision)
    if kspace.n_coils == 1:
        return kspace, noise, 1.0
    return prewhiten(kspace), 1.0, noise


Completion = Callable[..., torch.Tensor]


def _partial_fourier_step(kspace: KSpace, method: Method, choice: str) -> tuple[KSpace, Completion | None]:
    """How the adjoint fills a missing side of k-space, logged; ``None`` where nothing is filled."""
    if not kspace.is_cartesian:
        if choice in ("pocs", "homodyne"):
            raise InputError(
                f"Partial Fourier filling by {choice} needs k-space on the Cartesian grid, but this scan has a "
                "trajectory; leave the option out."
            )
        return kspace, None
    found = is_partial_fourier(kspace.mask, kspace.n_dims)
    if method.run is not _adjoint or choice == "none" or (found is None and choice == "auto"):
        return kspace, None
    completion = homodyne if choice == "homodyne" else pocs
    extent = "no side is missing" if found is None else f"{100 * found[1]:.0f} % of dimension {found[0]} was measured"
    decision = Decision("partial_fourier", completion.__name__, extent, "--partial-fourier")
    return kspace.with_decisions(decision), completion


def _with_density(kspace: KSpace) -> KSpace:
    """The scan with the area of k-space that each sample of its trajectory stands for."""
    if kspace.trajectory is None:
        return kspace
    source = "computed by Pipe's iteration" if kspace.dcf is None else "given with the scan"
    kspace = replace(kspace, dcf=density(kspace))
    return kspace.with_decisions(Decision("density_compensation", source, "Samples are unevenly dense in k-space."))


def _balanced(
    A: LinearOperator, part: KSpace, noise: float, density_power: float
) -> tuple[LinearOperator, torch.Tensor, float]:
    """Operator, data and noise level of the scan as a method sees it; on the grid they are what they are.

    The samples of a trajectory are weighted by w = (area of k-space)^power, divided by the mean eigenvalue that AᴴWA
    then has over the measured part of k-space, Σ w / Σ area. So every method sees AᴴA ≈ 1 where k-space was measured,
    as on the grid, and the noise that AᴴW y has per measured cell, σ √(Σ w² / Σ area).
    """
    if part.dcf is None:
        return A, part.data, noise
    area = part.dcf.sum(dim=-1, keepdim=True)
    w = part.dcf**density_power
    w = w * area / w.sum(dim=-1, keepdim=True)
    gain = float((w.square().sum(dim=-1, keepdim=True) / area).sqrt().mean())
    root = w.sqrt().unsqueeze(-2)  # (*image, 1, sample)
    return Diagonal(root, A.codomain) @ A, root * part.data, gain * noise


def _shares_trajectory(kspace: KSpace) -> bool:
    return kspace.trajectory is None or kspace.trajectory.ndim == 2


_ENTRIES_AT_A_TIME = 1 << 22


def _samples(kspace: KSpace, csm: torch.Tensor | None) -> Iterator[tuple[KSpace, torch.Tensor | None]]:
    """The scan in parts of a few images each, with one leading batch axis; without maps every coil is an image."""
    batch, n_dims = tuple(kspace.data.shape[: len(kspace.batch_axes)]), kspace.n_dims
    n_images, n_coils = math.prod(batch), kspace.n_coils
    data = kspace.data.reshape(n_images, n_coils, *kspace.k_shape)
    mask = kspace.mask.expand(*batch, 1, *kspace.k_shape).reshape(n_images, 1, *kspace.k_shape)
    along = {
        name: value.expand(*batch, *value.shape[-n_own:]).reshape(n_images, *value.shape[-n_own:])
        for name, n_own in (("trajectory", 2), ("dcf", 1))
        if (value := getattr(kspace, name)) is not None and value.shape[:-n_own].numel() > 1
    }
    shared = {
        name: value.reshape(value.shape[-n_own:])
        for name, n_own in (("trajectory", 2), ("dcf", 1))
        if (value := getattr(kspace, name)) is not None and name not in along
    }
    if csm is None:
        mask = mask.repeat_interleave(n_coils, dim=0)
        along = {name: value.repeat_interleave(n_coils, dim=0) for name, value in along.items()}
        data = data.reshape(n_images * n_coils, 1, *kspace.k_shape)
    elif csm.ndim > n_dims + 1:
        csm = csm.expand(*batch, n_coils, *kspace.image_shape).flatten(0, len(batch) - 1)
    size = max(1, _ENTRIES_AT_A_TIME // data[0].numel())
    for start in range(0, len(data), size):
        some = slice(start, start + size)
        record = replace(
            kspace,
            data=data[some],
            mask=mask[some],
            batch_axes=("slice",),
            noise=None,
            calibration=None,
            **shared,
            **{name: value[some] for name, value in along.items()},
        )
        yield record, csm if csm is None or csm.ndim == n_dims + 1 else csm[some]


def _maps_or_one(kspace: KSpace, csm: torch.Tensor | None) -> torch.Tensor:
    if csm is not None:
        return csm
    return torch.ones(1, *kspace.image_shape, dtype=kspace.data.dtype, device=kspace.data.device)


def _whitened_residual(
    A: LinearOperator, image: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, noise: float
) -> torch.Tensor:
    difference = A(image) - mask * y
    n_measured = mask.expand_as(y).flatten(1).sum(dim=1)
    return difference.flatten(1).abs().square().sum(dim=1) / (2 * noise**2 * n_measured)


def _cropped_to_recon_fov(image: torch.Tensor, kspace: KSpace) -> tuple[torch.Tensor, VoxelGrid, tuple[Decision, ...]]:
    """Crop to the field of view that the header asks for; the voxel size stays what was measured."""
    acquisition = kspace.acquisition
    grid = acquisition.encoded_grid(n_slices=kspace.n_slices)
    sizes = [
        min(n, max(1, round(n * wanted / encoded)))
        for n, wanted, encoded in zip(grid.shape, acquisition.recon_fov_mm, acquisition.encoded_fov_mm, strict=True)
    ]
    if kspace.n_dims == 2:
        sizes[0] = grid.shape[0]
    if tuple(sizes) == grid.shape:
        return image, grid, ()
    window = centred_window(sizes, grid.shape)
    index: tuple[Any, ...] = (..., *window)
    decision = Decision("field_of_view", f"cropped from {grid.shape} to {tuple(sizes)}", "the header asks for it")
    return image[index], grid.cropped(window), (decision,)
