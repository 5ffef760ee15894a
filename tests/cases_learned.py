"""Registries of tiny learned priors, data steps and reconstructions, and of operators that they are tried with.

To put a new class under contract, add a factory here: the contract suite runs over it, and a meta-test fails until it
is here.
"""

import math
from collections.abc import Callable

import torch

from operators.beam_geometry import ParallelBeam
from operators.consistency import Consistency, FilteredStep, GradientStep, ProximalStep
from operators.elementary import Mask
from operators.fourier import Fourier
from operators.linear_operator import LinearOperator
from operators.nufft import NonUniformFourier
from operators.priors.csc import ConvolutionalSparseCoding
from operators.priors.deepgsr import GroupSparsePrior, Shrinkage
from operators.priors.denoiser import ConvolutionalDenoiser, UNetDenoiser
from operators.priors.networks import ImageUNet, modl, varnet
from operators.priors.primal_dual import LearnedPrimalDual
from operators.priors.prior import Prior
from operators.priors.published_deepgsr import PublishedDeepGSR
from operators.priors.sparsity import ExchangingMaps, FilterMaps, ImageMaps, ScalarMaps, SparsityMaps
from operators.priors.tv_maps import TotalVariationMaps
from operators.projection import Projection
from operators.reconstructor import Reconstructor
from operators.sensitivity import Sensitivity
from operators.total_variation_start import AfterTotalVariation
from operators.unrolled import Unrolled

SHAPE = (7, 10)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def tiny_filters(n: int = 3, size: tuple[int, int] = (3, 5)) -> torch.Tensor:
    """Random filters of unit norm, float64."""
    filters = torch.randn(n, *size, dtype=torch.float64, generator=_generator())
    return filters / filters.flatten(1).norm(dim=1).reshape(-1, 1, 1)


def point_mask(*shape: int) -> torch.Tensor:
    """A float64 mask that keeps about two thirds of k-space, with its centre."""
    mask = (torch.rand(*shape, generator=_generator()) > 0.35).double()
    mask[..., shape[-2] // 2, shape[-1] // 2] = 1
    return mask


def sense(csm: torch.Tensor, mask: torch.Tensor, n_dims: int = 2) -> LinearOperator:
    sensitivity = Sensitivity(csm, n_dims)
    fourier = Fourier(sensitivity.codomain.shape, n_dims)
    return Mask(mask, fourier.codomain) @ fourier @ sensitivity


def coil_maps(n_coils: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Random coil sensitivity maps whose squares sum to one."""
    csm = torch.randn(n_coils, *shape, dtype=torch.complex128, generator=_generator())
    return csm / csm.abs().square().sum(dim=0).sqrt()


def _of_unit_norm(A: LinearOperator) -> LinearOperator:
    return float(1 / A.norm()) * A


def _nufft() -> LinearOperator:
    trajectory = (2 * torch.rand(60, 2, dtype=torch.float64, generator=_generator()) - 1) * math.pi
    transform = NonUniformFourier(trajectory, SHAPE, n_coils=2, accuracy=1e-10, precision=torch.float64)
    return _of_unit_norm(transform @ Sensitivity(coil_maps(2, SHAPE)))


def _projection() -> LinearOperator:
    geometry = ParallelBeam(tuple(math.pi * view / 6 for view in range(6)), 11, 1.0, 1.0)
    return _of_unit_norm(Projection(geometry, SHAPE, precision=torch.float64))


IMAGING_CASES: dict[str, Callable[[], LinearOperator]] = {
    "one_coil": lambda: Mask(point_mask(*SHAPE), Fourier(SHAPE).codomain) @ Fourier(SHAPE),
    "coils": lambda: sense(coil_maps(2, SHAPE), point_mask(*SHAPE)),
    "volume": lambda: sense(coil_maps(2, (2, *SHAPE)), point_mask(2, *SHAPE), 3),
    "radial": _nufft,
    "tomography": _projection,
}


def n_channels_of(A: LinearOperator) -> int:
    return 2 if A.domain.field == "complex" else 1


def _group_sparse(n_channels: int, shrinkage: Shrinkage) -> GroupSparsePrior:
    """With a group branch that is no longer zero, as after a step of training."""
    prior = GroupSparsePrior(
        n_channels=n_channels,
        shrinkage=shrinkage,
        n_blocks=2,
        width=3,
        n_token_channels=6,
        n_members=4,
        rank=2,
        n_hidden=5,
    )
    for name, p in prior.named_parameters():
        if name.endswith(".back"):
            torch.nn.init.normal_(p, std=0.2)
    return prior


PRIOR_CASES: dict[str, Callable[[int], Prior]] = {
    "convolutions": lambda c: ConvolutionalDenoiser(n_channels=c, n_layers=3, width=4),
    "u_net": lambda c: UNetDenoiser(n_channels=c, base=3, n_stages=3),
    "groups_prompt": lambda c: _group_sparse(c, "prompt"),
    "groups_lowrank": lambda c: _group_sparse(c, "lowrank"),
    "groups_svd": lambda c: _group_sparse(c, "svd"),
    "groups_repaired": lambda c: PublishedDeepGSR(
        n_channels=c, published=False, n_layers=1, width=2, window=4, n_members=3, n_hidden=3, expansion=2
    ),
}
"""Name → prior for a number of channels."""

CONSISTENCY_CASES: dict[str, Callable[[], Consistency]] = {
    "gradient": lambda: GradientStep(0.7),
    "filtered": lambda: FilteredStep(0.7),
    "proximal": lambda: ProximalStep(0.3, n_iterations=60),
}


def _coding(maps: SparsityMaps, **options: object) -> ConvolutionalSparseCoding:
    options = {"n_iterations": 5, "n_stages": 2} | options
    return ConvolutionalSparseCoding(tiny_filters(), maps, **options)  # type: ignore[arg-type]


RECONSTRUCTOR_CASES: dict[str, Callable[[int], Reconstructor]] = {
    "image_u_net": lambda c: ImageUNet(n_channels=c, base=3, n_stages=2),
    "modl": lambda c: modl(n_channels=c, n_iterations=2, n_layers=3, width=4, weight=0.5),
    "groups": lambda c: Unrolled(
        _group_sparse(c, "prompt"),
        FilteredStep(0.7),
        2,
        noise_levels=(0.3, 0.1),
        data_first=True,
        gradient="checkpointed",
    ),
    "after_total_variation": lambda c: AfterTotalVariation(ImageUNet(n_channels=c, base=3, n_stages=2)),
    "primal_dual": lambda c: LearnedPrimalDual(
        n_channels=c, n_iterations=2, n_variables=2, width=4, gradient="checkpointed"
    ),
    "varnet": lambda c: varnet(n_channels=c, n_cascades=2, base=3, n_stages=2),
    "tv_maps": lambda c: TotalVariationMaps(n_channels=c, base=3, n_stages=2, n_iterations=8),
    "csc_scalar": lambda c: _coding(ScalarMaps(1.0), n_stages=1),
    "csc_image": lambda c: _coding(ImageMaps(3, n_channels=c, base=3, n_stages=2), shrinkage="parts"),
    "csc_filter": lambda c: _coding(FilterMaps(n_channels=c, base=3), shrinkage="parts", gradient="checkpointed"),
    "csc_exchanging": lambda c: _coding(ExchangingMaps(n_channels=c, base=3, context_base=3)),
    "csc_fixed_point": lambda c: _coding(ExchangingMaps(n_channels=c, base=3, context_base=3), gradient="fixed-point"),
}
"""Name → reconstruction for a number of channels."""
