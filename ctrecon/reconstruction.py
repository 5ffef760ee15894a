"""From sinograms to images: the operator of a scan, the methods, and the pipeline that joins them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ctrecon.hounsfield import to_hu
from ctrecon.method_names import DEFAULT_METHOD
from ctrecon.prepare import noise_std
from ctrecon.sinogram import Sinogram
from operators.back_projection import Filter, coverage, filtered_back_projection
from operators.decision import Decision
from operators.device import usable_device
from operators.elementary import Diagonal
from operators.errors import InputError
from operators.linear_operator import LinearOperator
from operators.projection import Projection
from operators.proximal import project_nonnegative, soft_threshold
from operators.solvers import cgls, fista, os_sart, sirt
from operators.total_variation_start import column_norm, step_of, total_variation_image
from operators.voxel_grid import VoxelGrid
from operators.wavelet import synthesis_frame

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """An image in attenuation and in Hounsfield units, with everything that is needed to trust it and to write it.

    Parameters
    ----------
    mu_per_mm
        Attenuation, float32 ``(slice, y, x)``, in 1/mm.
    mu_water_per_mm
        Attenuation of water that belongs to the scan, in 1/mm.
    grid
        Where the voxels lie in the patient.
    method
        Name of the method.
    noise_std
        Noise level of the line integrals that the reconstruction assumed, dimensionless.
    residual
        Whitened data residual ‖A x − y‖² / (σ² n) per slice; 1 where image and noise level explain the data, below
        where noise was fitted, above where structure was lost.
    decisions
        What was decided or done on the way, in order.
    """

    mu_per_mm: torch.Tensor
    mu_water_per_mm: float
    grid: VoxelGrid
    method: str
    noise_std: float
    residual: torch.Tensor
    decisions: tuple[Decision, ...]

    @property
    def hu(self) -> torch.Tensor:
        """The image in Hounsfield units, float32 ``(slice, y, x)``."""
        return to_hu(self.mu_per_mm, self.mu_water_per_mm)


Run = Callable[[Projection, torch.Tensor, "Settings"], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a method may need beside operator and data.

    Parameters
    ----------
    noise_std
        Noise level of the line integrals, dimensionless.
    weights
        Tempered statistical weights like the data, mean 1, or ``None``.
    regularisation
        Strength relative to the noise level.
    n_iterations
        Number of iterations.
    filter
        Filter of filtered back-projection.
    nonnegative
        Whether attenuation must not be negative.
    """

    noise_std: float
    weights: torch.Tensor | None
    regularisation: float
    n_iterations: int
    filter: Filter
    nonnegative: bool


@dataclass(frozen=True, slots=True)
class Method:
    """A reconstruction method.

    Parameters
    ----------
    summary
        One line for people.
    run
        ``run(A, y, settings)`` with y ``(slice, view, detector)`` returns attenuation ``(slice, y, x)``.
    regularisation
        Default strength, relative to the noise level, so that one number serves every scan.
    n_iterations
        Default number of iterations.
    adjustable
        Whether strength, number of iterations and weights of the rays can be chosen; not with trained weights.
    """

    summary: str
    run: Run
    regularisation: float
    n_iterations: int
    adjustable: bool = True


def operator_for(sinogram: Sinogram) -> Projection:
    """Assemble the forward operator of a scan.

    Parameters
    ----------
    sinogram
        The scan.

    Returns
    -------
    Projection
        From attenuation ``(y, x)``, in 1/mm, to line integrals ``(view, detector)``.

    Raises
    ------
    InputError
        If the geometry does not go with the image, such as a source inside it.
    """
    try:
        return Projection(sinogram.geometry, sinogram.image_shape)
    except ValueError as error:
        raise InputError(str(error)) from error


def reconstruct(
    sinogram: Sinogram,
    method: str | Method = DEFAULT_METHOD,
    *,
    regularisation: float | None = None,
    n_iterations: int | None = None,
    filter: Filter = "ramp",
    nonnegative: bool = True,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Reconstruction:
    """Reconstruct the images of a scan.

    Parameters
    ----------
    sinogram
        What a reader returned.
    method
        A name in `METHODS`, the name of a method whose trained weights come with the package, or a method such as
        `ctrecon.learned.load_method` makes from weights.
    regularisation
        Strength relative to the noise level; by default the method's. Trained weights take none.
    n_iterations
        By default the method's; likewise.
    filter
        Filter of filtered back-projection, and of the start of iterative methods.
    nonnegative
        Keep iterative images from falling below zero attenuation.
    device
        Where to compute.
    progress
        Called with (slices done, slices in all).

    Returns
    -------
    Reconstruction
        Images, grid, log.

    Raises
    ------
    InputError
        If the method or the device is unknown, its weights are missing, an option or a ray that was not measured does
        not go with trained weights, or the geometry does not go with the image.
    """
    chosen, name = _named(method)
    if not chosen.adjustable:
        _check_for_trained(name, sinogram, regularisation, n_iterations)
    weights = _tempered(sinogram.weights) if chosen.adjustable else None
    noise, noise_decision = noise_std(sinogram, weights)
    swept = coverage(sinogram.geometry)
    coverage_decision = Decision("coverage", swept.kind, str(swept), warning=swept.kind == "limited")
    target = usable_device(device)
    data, weights = sinogram.data.to(target), None if weights is None else weights.to(target)
    A = operator_for(sinogram).to(target)
    images, residuals = [], []
    for start in range(0, sinogram.n_slices, _SLICES_AT_A_TIME):
        part = slice(start, start + _SLICES_AT_A_TIME)
        settings = Settings(
            noise_std=noise,
            weights=None if weights is None else weights[part],
            regularisation=chosen.regularisation if regularisation is None else regularisation,
            n_iterations=n_iterations or chosen.n_iterations,
            filter=filter,
            nonnegative=nonnegative,
        )
        image = chosen.run(A, data[part], settings)
        images.append(image.cpu())
        residuals.append(_whitened_residual(A, image, data[part], settings).cpu())
        if progress is not None:
            progress(min(start + _SLICES_AT_A_TIME, sinogram.n_slices), sinogram.n_slices)
    return Reconstruction(
        mu_per_mm=torch.cat(images),
        mu_water_per_mm=sinogram.mu_water_per_mm,
        grid=sinogram.grid(),
        method=name,
        noise_std=noise,
        residual=torch.cat(residuals),
        decisions=(*sinogram.decisions, noise_decision, coverage_decision),
    )


def _named(method: str | Method) -> tuple[Method, str]:
    """The method, and what the image is said to be made by."""
    if not isinstance(method, str):
        return method, method.summary
    if method in METHODS:
        return METHODS[method], method
    from ctrecon.learned import method_named  # it imports this module, and networks that others do without

    chosen = method_named(method)
    return chosen, chosen.summary


def _check_for_trained(name: str, sinogram: Sinogram, regularisation: float | None, n_iterations: int | None) -> None:
    if regularisation is not None or n_iterations is not None:
        raise InputError(
            f"The method {name} takes no strength and no number of iterations; leave them out (--lambda, --iterations)."
        )
    if sinogram.weights is not None and not bool((sinogram.weights > 0).all()):
        raise InputError(
            f"Some rays of the scan were not measured, and the method {name} was trained on whole sinograms; choose tv."
        )


def _fbp(A: Projection, y: torch.Tensor, settings: Settings) -> torch.Tensor:
    return filtered_back_projection(y, A.geometry, A.domain.shape, filter=settings.filter)


def _sirt(A: Projection, y: torch.Tensor, settings: Settings) -> torch.Tensor:
    return sirt(A, y, n_iterations=settings.n_iterations, project=_positive_part(settings)).value


def _os_sart(A: Projection, y: torch.Tensor, settings: Settings) -> torch.Tensor:
    n_subsets = max(1, A.geometry.n_views // 10)
    return os_sart(A, y, n_subsets, n_iterations=settings.n_iterations, project=_positive_part(settings)).value


def _cgls(A: Projection, y: torch.Tensor, settings: Settings) -> torch.Tensor:
    return cgls(A, y, max_iterations=settings.n_iterations).value


def _tv(A: Projection, y: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Argmin ½‖√W (A x − y)‖² + λ Σ_r ‖(G x)_r‖₂, see `total_variation_image`."""
    weighted, data = _weighted(A, y, settings)
    return total_variation_image(
        data,
        weighted,
        settings.noise_std,
        regularisation=settings.regularisation,
        n_iterations=settings.n_iterations,
        x0=_fbp(A, y, settings),
        project=_positive_part(settings),
    )


def _wavelet(A: Projection, y: torch.Tensor, settings: Settings) -> torch.Tensor:
    """S argmin ½‖√W (A S c − y)‖² + λ ‖detail part of c‖₁, S the wavelet synthesis, λ as for ``tv``, by FISTA."""
    weighted, data = _weighted(A, y, settings)
    wavelet, synthesis = synthesis_frame(A.domain)
    threshold = settings.regularisation * settings.noise_std * column_norm(weighted, y)
    thresholds = threshold * wavelet.detail_mask().to(y.device)
    codes = fista(
        weighted @ synthesis,
        data,
        lambda c, step: soft_threshold(c, step * thresholds),
        step=step_of(weighted),
        x0=synthesis.adjoint(_fbp(A, y, settings)),
        n_iterations=settings.n_iterations,
        rtol=1e-4,
        restart=True,
    ).value
    return synthesis(codes)


METHODS: Mapping[str, Method] = {
    "fbp": Method("filtered back-projection", _fbp, regularisation=0.0, n_iterations=1),
    "sirt": Method("simultaneous iterative reconstruction", _sirt, regularisation=0.0, n_iterations=100),
    "os-sart": Method("ordered-subset algebraic reconstruction", _os_sart, regularisation=0.0, n_iterations=10),
    "cgls": Method("least squares by conjugate gradients, stopped early", _cgls, regularisation=0.0, n_iterations=12),
    "tv": Method("total variation", _tv, regularisation=1.0, n_iterations=100),
    "wavelet": Method("wavelet sparsity", _wavelet, regularisation=2.0, n_iterations=100),
}

_SLICES_AT_A_TIME = 8


def _tempered(weights: torch.Tensor | None) -> torch.Tensor | None:
    """The fourth root of statistical weights, with mean 1.

    Counts vary a thousandfold within a body. Full weights make AᵀWA so ill-conditioned that a hundred iterations get
    nowhere; their fourth root still tells starved rays from open ones. Weights of 0 and 1 stay as they are.
    """
    if weights is None:
        return None
    tempered = weights**0.25
    return tempered / tempered.mean()


def _positive_part(settings: Settings) -> Callable[[torch.Tensor], torch.Tensor] | None:
    return project_nonnegative if settings.nonnegative else None


def _weighted(A: Projection, y: torch.Tensor, settings: Settings) -> tuple[LinearOperator, torch.Tensor]:
    """√W A and √W y."""
    if settings.weights is None:
        return A, y
    roots = settings.weights.sqrt()
    return Diagonal(roots, A.codomain) @ A, roots * y


def _whitened_residual(A: Projection, image: torch.Tensor, y: torch.Tensor, settings: Settings) -> torch.Tensor:
    weighted, data = _weighted(A, y, settings)
    n_measured = y[0].numel() if settings.weights is None else (settings.weights > 0).flatten(1).sum(dim=1)
    difference = (weighted(image) - data).flatten(1).square().sum(dim=1)
    return difference / (max(settings.noise_std, torch.finfo(y.dtype).tiny) ** 2 * n_measured)
