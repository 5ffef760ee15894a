"""The models that can be trained, by name: what a configuration and a checkpoint call ``kind``."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin

import torch

from mrirecon.dictionaries import load_dictionary
from operators.checkpoint import Checkpoint
from operators.errors import InputError
from operators.priors.csc import ConvolutionalSparseCoding, GradientOf, published
from operators.priors.networks import ImageUNet, VariationalNetwork, modl, varnet
from operators.priors.sparsity import ExchangingMaps, ImageMaps, ScalarMaps
from operators.priors.tv_maps import TotalVariationMaps
from operators.reconstructor import Reconstructor
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


def _csc_scalar(
    *,
    dictionary: str | list[int] = _DICTIONARY,
    level: float = 2.0,
    n_iterations: int = 64,
    gradient: GradientOf = "checkpointed",
) -> ConvolutionalSparseCoding:
    return ConvolutionalSparseCoding(
        _filters_of(dictionary), ScalarMaps(level), n_iterations=n_iterations, n_stages=1, gradient=gradient
    )


def _csc_v1(
    *,
    dictionary: str | list[int] = _DICTIONARY,
    base: int = 128,
    n_map_stages: int = 3,
    n_iterations: int = 64,
    gradient: GradientOf = "checkpointed",
) -> ConvolutionalSparseCoding:
    filters = _filters_of(dictionary)
    maps = ImageMaps(len(filters), base=base, n_stages=n_map_stages)
    return ConvolutionalSparseCoding(
        filters,
        maps,
        n_iterations=n_iterations,
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
        n_stages=n_stages,
        gradient=gradient,
    )


MODELS: dict[str, Callable[..., Reconstructor]] = {
    "unet": _unet,
    "modl": _modl,
    "varnet": _varnet,
    "tv-maps": _tv_maps,
    "csc-scalar": _csc_scalar,
    "csc-v1": _csc_v1,
    "csc-published": _csc_published,
    "csc": _csc,
}
"""Name → function that builds the model, for complex images, from keyword arguments that JSON can hold.

``unet``, ``modl``, ``varnet`` and ``tv-maps`` take the arguments of `operators.priors.networks.ImageUNet`, `modl`,
`varnet` and `operators.priors.tv_maps.TotalVariationMaps`. The others are
`operators.priors.csc.ConvolutionalSparseCoding` and take a ``dictionary``, as `filters_of` does; their maps are
`operators.priors.sparsity.ScalarMaps`, `ImageMaps`, `FilterMaps` and `ExchangingMaps`, with ``n_map_stages`` of the
network.
"""


def build_model(kind: str, arguments: Mapping[str, Any]) -> Reconstructor:
    """Build a model with the weights it starts from.

    Parameters
    ----------
    kind
        A name in `MODELS`.
    arguments
        Arguments of the function there.

    Returns
    -------
    Reconstructor
        The model, in training mode.

    Raises
    ------
    InputError
        If the kind is unknown, or the arguments are not those that it takes.
    """
    if kind not in MODELS:
        raise InputError(f"The model {kind!r} is unknown; choose one of {', '.join(MODELS)}.")
    try:
        _check_arguments(MODELS[kind], arguments)
        return MODELS[kind](**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"The model {kind!r} cannot be built with {dict(arguments)}: {error}") from error


def model_of(checkpoint: Checkpoint) -> Reconstructor:
    """Build the model of a checkpoint with its weights; filters are part of these, and no other file is read.

    Parameters
    ----------
    checkpoint
        The weights.

    Returns
    -------
    Reconstructor
        The model, in evaluation mode.

    Raises
    ------
    InputError
        If the kind is unknown, or its arguments or the weights do not fit.
    """
    arguments = dict(checkpoint.config)
    if "filters" in checkpoint.state:
        arguments["dictionary"] = list(checkpoint.state["filters"].shape)
    model = build_model(checkpoint.kind, arguments)
    checkpoint.load_into(model)
    return model.eval()


def _filters_of(dictionary: str | list[int]) -> torch.Tensor:
    """Filters by name or from a file; or zeros of a shape, whose place weights will take."""
    if isinstance(dictionary, str):
        return load_dictionary(dictionary).filters
    return torch.zeros(dictionary)


def _check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    known = inspect.signature(function).parameters
    for name, value in arguments.items():
        if name not in known:
            raise TypeError(f"{name} is unknown; known are {', '.join(known)}")
        kind = known[name].annotation
        if not _is_a(kind, value):
            expected = _WORDS.get(kind) or f"one of {', '.join(get_args(kind))}"
            raise TypeError(f"{name} is {value!r}, which is not {expected}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise TypeError(f"{name} is missing")


def _is_a(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is float:
        return type(value) in (int, float)
    if kind is int:
        return type(value) is int
    if kind == str | list[int]:
        return isinstance(value, str) or (isinstance(value, list) and all(type(n) is int for n in value))
    return isinstance(value, get_origin(kind) or kind)


_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", str | list[int]: "the name of a dictionary"}
