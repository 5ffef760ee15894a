"""The models that can be trained, by name: what a configuration and a checkpoint call ``kind``."""

import torch

from mrirecon.dictionaries import load_dictionary
from operators.model_building import Models, filters_of
from operators.priors.csc import ConvolutionalSparseCoding, GradientOf, published
from operators.priors.deepgsr import Shrinkage
from operators.priors.networks import ImageUNet, VariationalNetwork, deepgsr, modl, varnet
from operators.priors.sparsity import ExchangingMaps, ImageMaps, ScalarMaps
from operators.priors.tv_maps import TotalVariationMaps
from operators.unrolled import Unrolled

_DICTIONARY = "learned-32x9"


def _unet(*, base: int = 32, n_stages: int = 4) -> ImageUNet:
    return ImageUNet(base=base, n_stages=n_stages)


def _modl(*, n_iterations: int = 10, n_layers: int = 5, width: int = 64, weight: float = 0.05) -> Unrolled:
    return modl(n_iterations=n_iterations, n_layers=n_layers, width=width, weight=weight)


def _varnet(*, n_cascades: int = 12, base: int = 16, n_stages: int = 3) -> VariationalNetwork:
    return varnet(n_cascades=n_cascades, base=base, n_stages=n_stages)


def _tv_maps(*, base: int = 16, n_stages: int = 3, n_iterations: int = 128) -> TotalVariationMaps:
    return TotalVariationMaps(base=base, n_stages=n_stages, n_iterations=n_iterations)


def _deepgsr(
    *,
    n_iterations: int = 5,
    shrinkage: Shrinkage = "lowrank",
    n_blocks: int = 4,
    width: int = 16,
    n_token_channels: int = 48,
    n_hidden: int = 48,
    first_level: float = 0.3,
    last_level: float = 0.05,
) -> Unrolled:
    return deepgsr(
        n_iterations=n_iterations,
        shrinkage=shrinkage,
        n_blocks=n_blocks,
        width=width,
        n_token_channels=n_token_channels,
        n_hidden=n_hidden,
        first_level=first_level,
        last_level=last_level,
    )


def _csc_scalar(
    *,
    dictionary: str | list[int] = _DICTIONARY,
    level: float = 2.0,
    n_iterations: int = 64,
    n_test_iterations: int = 64,
    gradient: GradientOf = "checkpointed",
) -> ConvolutionalSparseCoding:
    return ConvolutionalSparseCoding(
        _filters_of(dictionary),
        ScalarMaps(level),
        n_iterations=n_iterations,
        n_test_iterations=n_test_iterations,
        n_stages=1,
        gradient=gradient,
    )


def _csc_v1(
    *,
    dictionary: str | list[int] = _DICTIONARY,
    base: int = 128,
    n_map_stages: int = 3,
    n_iterations: int = 64,
    n_test_iterations: int = 64,
    gradient: GradientOf = "checkpointed",
) -> ConvolutionalSparseCoding:
    filters = _filters_of(dictionary)
    maps = ImageMaps(len(filters), base=base, n_stages=n_map_stages)
    return ConvolutionalSparseCoding(
        filters,
        maps,
        n_iterations=n_iterations,
        n_test_iterations=n_test_iterations,
        n_stages=1,
        smoothness=20.0,
        shrinkage="parts",
        gradient=gradient,
    )


def _csc_published(*, dictionary: str | list[int] = _DICTIONARY) -> ConvolutionalSparseCoding:
    return published(_filters_of(dictionary))


def _csc(
    *,
    dictionary: str | list[int] = _DICTIONARY,
    base: int = 16,
    n_map_stages: int = 2,
    context_base: int = 48,
    n_context_stages: int = 3,
    n_iterations: int = 30,
    n_test_iterations: int = 48,
    n_stages: int = 3,
    gradient: GradientOf = "iterations",
) -> ConvolutionalSparseCoding:
    maps = ExchangingMaps(
        base=base, n_stages=n_map_stages, context_base=context_base, n_context_stages=n_context_stages
    )
    return ConvolutionalSparseCoding(
        _filters_of(dictionary),
        maps,
        n_iterations=n_iterations,
        n_test_iterations=n_test_iterations,
        n_stages=n_stages,
        gradient=gradient,
    )


MODELS = Models(
    {
        "unet": _unet,
        "modl": _modl,
        "varnet": _varnet,
        "tv-maps": _tv_maps,
        "deepgsr": _deepgsr,
        "csc-scalar": _csc_scalar,
        "csc-v1": _csc_v1,
        "csc-published": _csc_published,
        "csc": _csc,
    }
)
"""Name → function that builds the model, for complex images, from keyword arguments that JSON can hold.

``unet``, ``modl``, ``varnet``, ``deepgsr`` and ``tv-maps`` take the arguments of `operators.priors.networks.ImageUNet`,
`modl`, `varnet`, `deepgsr` and `operators.priors.tv_maps.TotalVariationMaps`. The others are
`operators.priors.csc.ConvolutionalSparseCoding` and take a ``dictionary``, as `operators.model_building.filters_of`
does; their maps are `operators.priors.sparsity.ScalarMaps`, `ImageMaps`, `FilterMaps` and `ExchangingMaps`, with
``n_map_stages`` of the network.
"""

build_model = MODELS.build
model_of = MODELS.restore


def _filters_of(dictionary: str | list[int]) -> torch.Tensor:
    return filters_of(dictionary, load_dictionary)
