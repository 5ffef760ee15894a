"""The models that can be trained, by name: what a configuration and a checkpoint call ``kind``."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch

from operators import dictionaries
from operators.consistency import FilteredStep
from operators.dictionaries import Dictionary
from operators.linear_operator import LinearOperator
from operators.model_building import Models, filters_of
from operators.priors.csc import ConvolutionalSparseCoding, GradientOf
from operators.priors.deepgsr import Shrinkage
from operators.priors.denoiser import UNetDenoiser
from operators.priors.networks import ImageUNet, deepgsr
from operators.priors.primal_dual import LearnedPrimalDual
from operators.priors.sparsity import ExchangingMaps
from operators.priors.tv_maps import TotalVariationMaps
from operators.projection import Projection
from operators.reconstructor import StagedRefinement
from operators.total_variation_start import AfterTotalVariation
from operators.unrolled import Unrolled

Start = Literal["fbp", "tv"]

_DICTIONARIES = Path(__file__).parent / "weights" / "dictionaries"
_DICTIONARY = "dct-32x9"
_STRENGTH = 4.0  # of total variation where little noise lies over many unknowns


def load_dictionary(name: str | Path) -> Dictionary:
    """Find a dictionary, see `operators.dictionaries.load_dictionary`.

    Parameters
    ----------
    name
        A family with number and size such as ``"dct-32x9"``, or a file.

    Returns
    -------
    Dictionary
        The filters, of unit norm.

    Raises
    ------
    InputError
        If it is none of these, the family has no such filters, or the file cannot be used.
    """
    return dictionaries.load_dictionary(name, _DICTIONARIES)


def apply_model(
    model: Callable[[torch.Tensor, LinearOperator, torch.Tensor], torch.Tensor],
    y: torch.Tensor,
    A: Projection,
    noise_std: float | torch.Tensor,
) -> torch.Tensor:
    """Apply a model to line integrals, with an operator of norm 1: A/‖A‖, y/‖A‖ and the noise level likewise.

    Parameters
    ----------
    model
        A `operators.reconstructor.Reconstructor`, or what is called like it.
    y
        Line integrals, real ``(*batch, view, detector)``.
    A
        Their operator.
    noise_std
        Root mean square of their noise.

    Returns
    -------
    torch.Tensor
        Attenuation, real ``(*batch, y, x)``, in 1/mm.
    """
    scale = 1 / float(A.norm())
    noise = torch.as_tensor(noise_std, dtype=y.dtype, device=y.device)
    return model(scale * y, scale * A, scale * noise)


def _unet(*, start: Start = "fbp", base: int = 32, n_stages: int = 4) -> StagedRefinement:
    return _started(start, ImageUNet(n_channels=1, base=base, n_stages=n_stages))


def _started(start: Start, refinement: StagedRefinement) -> StagedRefinement:
    if start not in get_args(Start):
        raise ValueError(f"start is {start!r}; expected one of {', '.join(map(repr, get_args(Start)))}.")
    return AfterTotalVariation(refinement, regularisation=_STRENGTH) if start == "tv" else refinement


def _unrolled_unet(*, n_iterations: int = 5, base: int = 16, n_stages: int = 4, step: float = 1.0) -> Unrolled:
    denoiser = UNetDenoiser(n_channels=1, base=base, n_stages=n_stages)
    return Unrolled(denoiser, FilteredStep(step), n_iterations, data_first=True)


def _primal_dual(*, n_iterations: int = 10, width: int = 32) -> LearnedPrimalDual:
    return LearnedPrimalDual(n_channels=1, n_iterations=n_iterations, width=width)


def _deepgsr(
    *,
    start: Start = "tv",
    n_iterations: int = 2,
    shrinkage: Shrinkage = "lowrank",
    n_blocks: int = 4,
    width: int = 24,
    n_token_channels: int = 64,
    n_hidden: int = 64,
    first_level: float = 0.02,
    last_level: float = 0.015,
    undersampling_power: float = 0.7,
) -> StagedRefinement:
    return _started(
        start,
        deepgsr(
            n_channels=1,
            n_iterations=n_iterations,
            shrinkage=shrinkage,
            n_blocks=n_blocks,
            width=width,
            n_token_channels=n_token_channels,
            n_hidden=n_hidden,
            first_level=first_level,
            last_level=last_level,
            undersampling_power=undersampling_power,
        ),
    )


def _tv_maps(*, base: int = 16, n_stages: int = 3, n_iterations: int = 128) -> TotalVariationMaps:
    return TotalVariationMaps(n_channels=1, base=base, n_stages=n_stages, n_iterations=n_iterations)


def _csc(
    *,
    dictionary: str | list[int] = _DICTIONARY,
    base: int = 16,
    n_map_stages: int = 2,
    context_base: int = 48,
    n_context_stages: int = 3,
    n_iterations: int = 30,
    n_stages: int = 3,
    gradient: GradientOf = "iterations",
) -> ConvolutionalSparseCoding:
    maps = ExchangingMaps(
        n_channels=1, base=base, n_stages=n_map_stages, context_base=context_base, n_context_stages=n_context_stages
    )
    filters = filters_of(dictionary, load_dictionary)
    return ConvolutionalSparseCoding(filters, maps, n_iterations=n_iterations, n_stages=n_stages, gradient=gradient)


MODELS = Models(
    {
        "unet": _unet,
        "unrolled-unet": _unrolled_unet,
        "primal-dual": _primal_dual,
        "deepgsr": _deepgsr,
        "tv-maps": _tv_maps,
        "csc": _csc,
    }
)
"""Name → function that builds the model, for real images, from keyword arguments that JSON can hold.

``unet`` is `operators.priors.networks.ImageUNet`, after filtered back-projection (FBPConvNet) or, with ``start="tv"``,
after total variation; ``unrolled-unet`` is
`operators.unrolled.Unrolled` of one U-Net and `operators.consistency.FilteredStep`, whose ``step`` it takes;
``primal-dual`` is `operators.priors.primal_dual.LearnedPrimalDual`; ``deepgsr`` is `operators.priors.networks.deepgsr`,
from either start;
``tv-maps`` is `operators.priors.tv_maps.TotalVariationMaps`; ``csc`` is
`operators.priors.csc.ConvolutionalSparseCoding` with `operators.priors.sparsity.ExchangingMaps` and takes a
``dictionary``, as `operators.model_building.filters_of` does. Further kinds are added here.
"""

build_model = MODELS.build
model_of = MODELS.restore
