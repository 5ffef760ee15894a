"""Models by name: built from the arguments of a configuration, or brought back from a checkpoint."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch

from operators.checkpoint import Checkpoint
from operators.dictionaries import Dictionary
from operators.errors import InputError
from operators.reconstructor import Reconstructor


class Models(dict[str, Callable[..., Reconstructor]]):
    """Name → function that builds a model from keyword arguments that JSON can hold, annotated with their types."""

    def build(self, kind: str, arguments: Mapping[str, Any]) -> Reconstructor:
        """Build a model with the weights it starts from.

        Parameters
        ----------
        kind
            A name in this table.
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
        if kind not in self:
            raise InputError(f"The model {kind!r} is unknown; choose one of {', '.join(self)}.")
        try:
            _check_arguments(self[kind], arguments)
            return self[kind](**arguments)
        except (TypeError, ValueError) as error:
            raise InputError(f"The model {kind!r} cannot be built with {dict(arguments)}: {error}") from error

    def restore(self, checkpoint: Checkpoint) -> Reconstructor:
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
        model = self.build(checkpoint.kind, arguments)
        checkpoint.load_into(model)
        return model.eval()


def filters_of(dictionary: str | list[int], load: Callable[[str | Path], Dictionary]) -> torch.Tensor:
    """Filters by name or from a file; or zeros of a shape, whose place weights will take.

    Parameters
    ----------
    dictionary
        What a model's argument ``dictionary`` says; `Models.restore` replaces a name by the shape.
    load
        Finds a dictionary.

    Returns
    -------
    torch.Tensor
        Real ``(filter, ky, kx)``.
    """
    return load(dictionary).filters if isinstance(dictionary, str) else torch.zeros(dictionary)


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
