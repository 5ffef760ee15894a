"""Models by name: what is built, what is refused, and what a checkpoint brings back."""

from pathlib import Path

import pytest
import torch

from mrirecon.models import MODELS, build_model, model_of
from operators.checkpoint import Checkpoint, Metric
from operators.elementary import Mask
from operators.errors import InputError
from operators.filters import random_filters
from operators.fourier import Fourier
from operators.io.numpy_files import write_npy
from operators.priors.csc import ConvolutionalSparseCoding

DICTIONARY = "gabor-3x5"
SMALL = {
    "unet": {"base": 2, "n_stages": 2},
    "modl": {"n_iterations": 2, "n_layers": 2, "width": 2, "weight": 1},
    "varnet": {"n_cascades": 2, "base": 2, "n_stages": 2},
    "tv-maps": {"base": 2, "n_stages": 2, "n_iterations": 3},
    "deepgsr": {"n_iterations": 2, "n_blocks": 1, "width": 2, "n_token_channels": 4, "n_hidden": 2},
    "csc-scalar": {"dictionary": DICTIONARY, "level": 1.0, "n_iterations": 3},
    "csc-v1": {"dictionary": DICTIONARY, "base": 2, "n_map_stages": 2, "n_iterations": 3, "gradient": "iterations"},
    "csc-published": {"dictionary": DICTIONARY},
    "csc": {"dictionary": DICTIONARY, "base": 2, "n_iterations": 3, "n_stages": 2, "gradient": "fixed-point"},
}


def checkpoint_of(kind: str, arguments: dict) -> Checkpoint:
    state = build_model(kind, arguments).state_dict()
    metric = Metric("ssim", "of nothing", 0.5)
    return Checkpoint(state, kind, arguments, "nothing", "CC0-1.0", 0, 0, metric, "0")


def test_every_model_is_tried_here():
    assert SMALL.keys() == MODELS.keys()


@pytest.mark.parametrize("kind", SMALL)
def test_a_checkpoint_brings_back_its_model(kind, generator):
    A = Mask((torch.rand(8, 9, generator=generator) > 0.3).float(), Fourier((8, 9)).codomain) @ Fourier((8, 9))
    y = A(A.domain.randn(2, generator=generator))
    checkpoint = checkpoint_of(kind, SMALL[kind])
    model = build_model(kind, SMALL[kind])
    assert model.training
    checkpoint.load_into(model)
    back = model_of(checkpoint)
    assert not back.training
    with torch.no_grad():
        torch.testing.assert_close(back(y, A, 0.1), model.eval()(y, A, 0.1), rtol=0, atol=0)


def test_defaults_are_those_that_were_published():
    assert sum(p.numel() for p in build_model("csc-published", {}).parameters()) == 111_490
    assert build_model("modl", {}).n_iterations == 10
    assert build_model("tv-maps", {}).n_iterations == 128


def test_a_checkpoint_needs_no_file_of_filters(tmp_path: Path):
    path = tmp_path / "filters.npy"
    filters = random_filters(4, 5, seed=0)
    write_npy(path, filters.numpy())
    checkpoint = checkpoint_of("csc", {"dictionary": str(path), "base": 2})
    path.unlink()
    model = model_of(checkpoint)
    assert isinstance(model, ConvolutionalSparseCoding)
    torch.testing.assert_close(model.filters, filters, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("cnn", {}, "'cnn' is unknown; choose one of unet, modl"),
        ("unet", {"width": 3}, "cannot be built with .*width is unknown; known are base, n_stages"),
        ("unet", {"base": 2.5}, "base is 2.5, which is not a whole number"),
        ("unet", {"base": True}, "base is True, which is not a whole number"),
        ("unet", {"base": 0}, "base 0"),
        ("modl", {"weight": "a"}, "weight is 'a', which is not a number"),
        ("modl", {"weight": -1.0}, "weight is -1"),
        ("csc", {"gradient": "all"}, "gradient is 'all', which is not one of iterations, checkpointed, fixed-point"),
        ("csc", {"n_iterations": 2}, "each stage needs one"),
        ("csc", {"dictionary": 3}, "dictionary is 3, which is not the name of a dictionary"),
        ("csc", {"dictionary": "dct-3x4"}, "odd"),
        ("csc", {"dictionary": "fourier-3x5"}, "neither a file nor a known dictionary"),
    ],
)
def test_what_cannot_be_built_is_named(kind, arguments, message):
    with pytest.raises(InputError, match=message):
        build_model(kind, arguments)
