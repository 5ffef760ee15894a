"""Weights in a file that says what they are: read without trusting a byte of it, and put only where they fit."""

import hashlib
import io
import json
import math
import os
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from operators.errors import InputError
from operators.io.array_file import damage_reported
from operators.io.files import replacing

_LARGEST_STATE_BYTES = 500 * 10**6
_LARGEST_FILE_BYTES = _LARGEST_STATE_BYTES + 2**20
_FORMAT_VERSION = 1
_PARTS = {"format_version", "header", "sha256", "state"}
_DTYPES = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}


@dataclass(frozen=True, slots=True)
class Metric:
    """A number with its meaning.

    Parameters
    ----------
    name
        Such as ``"ssim"``.
    definition
        How it was computed, and on what, in one sentence.
    value
        Finite.

    Raises
    ------
    InputError
        If the value is no finite number or a text is empty.
    """

    name: str
    definition: str
    value: float

    def __post_init__(self) -> None:
        for name in ("name", "definition"):
            _check_text(f"metric {name}", getattr(self, name))
        if not _is_number(self.value):
            raise InputError(f"The metric {self.name!r} is {self.value!r}; expected a finite number.")


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Weights, with what is needed to rebuild their module and to know what they may be used for.

    The tensors are copied to the CPU, so that training on does not change them.

    Parameters
    ----------
    state
        What ``model.state_dict()`` returned: dense tensors, finite.
    kind
        Which module the weights are for, such as ``"csc"``.
    config
        The arguments that build the module; anything that JSON can hold.
    data
        What the weights were trained on, in words.
    licence
        Licence of the weights, as the data permit it.
    seed
        Seed of the training.
    n_steps
        Optimiser steps that led to these weights.
    metric
        How good they are.
    version
        Version of the software that trained them.
    trained_ranges
        By name, the lowest and the highest value of what varied in training, such as ``noise_variance``; outside of
        them nothing is known.

    Attributes
    ----------
    sha256
        Digest of everything above in hexadecimal, by which the file's content is checked and known.

    Raises
    ------
    InputError
        If a tensor is not finite or of an unusual type, if they take more than 500 MB, or if a description is empty
        or cannot be written as JSON.
    """

    state: dict[str, torch.Tensor]
    kind: str
    config: dict[str, Any]
    data: str
    licence: str
    seed: int
    n_steps: int
    metric: Metric
    version: str
    trained_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        for name in ("kind", "data", "licence", "version"):
            _check_text(name, getattr(self, name))
        for name in ("seed", "n_steps"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise InputError(f"The checkpoint's {name} is {value!r}; expected a whole number, 0 or more.")
        if not isinstance(self.metric, Metric):
            raise InputError(f"The checkpoint's metric is {self.metric!r}; expected a Metric.")
        put = object.__setattr__  # the dataclass is frozen, and these are its own fields
        put(self, "config", as_json("config", self.config))
        put(self, "trained_ranges", _ranges(self.trained_ranges))
        put(self, "state", _plain_state(self.state))
        put(self, "sha256", _digest(self._header(), self.state))

    def load_into(self, model: nn.Module) -> None:
        """Put the weights into a module, all of them or none.

        Parameters
        ----------
        model
            The module; it keeps its device and its precision, which must not be lower than that of the weights.

        Raises
        ------
        InputError
            If a tensor is missing, superfluous, of another shape, or would lose digits.
        """
        reason = misfit(self.state, model)
        if reason:
            raise InputError(
                f"These weights of kind {self.kind!r} do not fit the model: {reason}; build it from their config."
            )
        model.load_state_dict(self.state)

    def _header(self) -> str:
        header = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("state", "sha256")}
        return json.dumps(header | {"metric": asdict(self.metric)}, sort_keys=True)


def save_checkpoint(path: Path | str, checkpoint: Checkpoint, *, overwrite: bool = False) -> None:
    """Write a checkpoint, whole or not at all; the same checkpoint gives the same bytes.

    Parameters
    ----------
    path
        The file, commonly ``*.pt``.
    checkpoint
        The weights and their description.
    overwrite
        Allow ``path`` to exist.

    Raises
    ------
    InputError
        If the path cannot be written.
    """
    content = {
        "format_version": _FORMAT_VERSION,
        "header": checkpoint._header(),
        "sha256": checkpoint.sha256,
        "state": checkpoint.state,
    }
    write_tensors(path, content, overwrite=overwrite)


def load_checkpoint(path: Path | str, *, kind: str | None = None) -> Checkpoint:
    """Read a checkpoint; no code in the file is run, and nothing is accepted that its digest does not confirm.

    Parameters
    ----------
    path
        A file that `save_checkpoint` wrote.
    kind
        The kind that is expected; any by default.

    Returns
    -------
    Checkpoint
        The weights on the CPU, and their description.

    Raises
    ------
    InputError
        If there is no such file, it is larger than 500 MB, is something else than a checkpoint, is damaged, was
        written by a later version, holds numbers that are not finite, or is of another kind.
    """
    content = read_tensors(path, limit_bytes=_LARGEST_FILE_BYTES)
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise InputError(f"{path} holds tensors but does not say what they are; give a checkpoint of this toolkit.")
    if version != _FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {version}, and this version of the toolkit reads {_FORMAT_VERSION}; update "
            f"the toolkit or the file."
        )
    with damage_reported(path, "a checkpoint"):
        checkpoint = _checked(content)
    if kind is not None and checkpoint.kind != kind:
        raise InputError(f"{path} holds weights of kind {checkpoint.kind!r}; expected {kind!r}.")
    return checkpoint


def misfit(state: Mapping[str, torch.Tensor], model: nn.Module) -> str | None:
    """Why a state cannot be loaded into a module exactly, as part of a sentence; ``None`` if it can.

    Parameters
    ----------
    state
        Tensors by name.
    model
        The module.
    """
    wanted = model.state_dict()
    missing, superfluous = [n for n in wanted if n not in state], [n for n in state if n not in wanted]
    if missing:
        return f"{_listed(missing)} missing"
    if superfluous:
        return f"{_listed(superfluous)} not in the model"
    for name, target in wanted.items():
        tensor = state[name]
        if tensor.shape != target.shape:
            return f"{name} has shape {tuple(tensor.shape)} and the model's {tuple(target.shape)}"
        if not _holds(target.dtype, tensor.dtype):
            return f"{name} is {tensor.dtype} and the model's {target.dtype} holds less"
    return None


def write_tensors(path: Path | str, content: Any, *, overwrite: bool) -> None:
    """Write nested dictionaries and lists of tensors, numbers and texts with torch, whole or not at all.

    Raises
    ------
    InputError
        If the path cannot be written; what stood there is as it was.
    """
    buffer = io.BytesIO()  # torch names its archive after the file and hides the system's errors; so it gets no file
    torch.save(content, buffer)
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_tensors(path: Path | str, *, limit_bytes: int | None = None) -> Any:
    """Read what `write_tensors` wrote, onto the CPU; nothing in the file is run.

    Parameters
    ----------
    path
        The file.
    limit_bytes
        Largest file that is read; any by default.

    Raises
    ------
    InputError
        If there is no such file, it is too large, something else, or damaged.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise InputError(f"{path} is no file; give one that holds weights.")
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if limit_bytes is not None and size > limit_bytes:
                raise InputError(f"{path} has {size / 1e6:.0f} MB, and at most {limit_bytes / 1e6:.0f} MB are read.")
            content = stream.read(size)
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror or error}); check the path.") from error
    if not content.startswith(b"PK\x03\x04"):
        what = "does not begin like a file of torch tensors" if content else "is empty"
        raise InputError(f"{path} {what}; give a file that this toolkit wrote, or copy it again.")
    with damage_reported(path, "a file of torch tensors"), warnings.catch_warnings():
        warnings.simplefilter("error")
        _check_archive(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def as_json(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a description as it comes back from JSON.

    Parameters
    ----------
    name
        What it is, for the message.
    value
        Texts, finite numbers, truth values, ``None``, lists and mappings of them.

    Raises
    ------
    InputError
        If it is no mapping or holds anything else.
    """
    try:
        copy = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"The {name} cannot be written as JSON ({error}); use numbers, texts, lists, tables."
        ) from None
    if not isinstance(copy, dict):
        raise InputError(f"The {name} is {type(value).__name__}; expected a mapping of names to values.")
    return copy


def _check_archive(content: bytes) -> None:
    # torch's own reader allocates what an archive claims; so the claims are added up first.
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(member.file_size for member in archive.infolist()) > len(content):
            raise ValueError("its parts claim more bytes than it has")


def _checked(content: dict[str, Any]) -> Checkpoint:
    if set(content) != _PARTS or not all(isinstance(content[part], str) for part in ("header", "sha256")):
        raise ValueError("its parts are not those of a checkpoint")
    values = json.loads(content["header"])
    try:
        checkpoint = Checkpoint(state=content["state"], **values | {"metric": Metric(**values["metric"])})
    except InputError as error:
        raise ValueError(str(error).rstrip(".")) from None
    if checkpoint.sha256 != content["sha256"]:
        raise ValueError("its digest differs from its content")
    return checkpoint


def _plain_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if not isinstance(state, Mapping):
        raise InputError(f"The state is {type(state).__name__}; expected tensors by name.")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise InputError(f"The state holds {type(tensor).__name__} as {name!r}; expected tensors by name.")
        if tensor.layout != torch.strided or tensor.dtype not in _DTYPES or tensor.is_meta:
            raise InputError(f"The weight {name!r} is {tensor.dtype}, {tensor.layout}; expected dense numbers.")
    n_bytes = sum(tensor.nbytes for tensor in state.values())  # expanded views may claim more than any memory holds
    if n_bytes > _LARGEST_STATE_BYTES:
        raise InputError(f"The weights take {n_bytes / 1e6:.0f} MB; a checkpoint has at most 500 MB.")
    dense = torch.contiguous_format
    plain = {name: tensor.detach().cpu().clone(memory_format=dense) for name, tensor in state.items()}
    for name, tensor in plain.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"The weight {name!r} is not finite; take the weights of an earlier step.")
    return plain


def _digest(header: str, state: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _ranges(ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    checked = {}
    for name, limits in ranges.items():
        if len(limits) != 2 or not all(map(_is_number, limits)) or limits[0] > limits[1]:
            raise InputError(f"The trained range of {name!r} is {limits!r}; expected its lowest and highest value.")
        checked[name] = (float(limits[0]), float(limits[1]))
    return checked


def _holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    same_field = (wide.is_complex, wide.is_floating_point) == (narrow.is_complex, narrow.is_floating_point)
    return same_field and torch.promote_types(narrow, wide) == wide


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"The checkpoint's {name} is {text!r}; say it in words.")


def _listed(names: Any) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
