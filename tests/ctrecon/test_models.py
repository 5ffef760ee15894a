"""Models by name: what is built, and what a checkpoint brings back."""

import math
from typing import Any

import pytest
import torch

from ctrecon.models import MODELS, apply_model, build_model, load_dictionary, model_of
from operators.beam_geometry import FanBeam
from operators.checkpoint import Checkpoint, Metric
from operators.errors import InputError
from operators.filters import dct_filters
from operators.linear_operator import LinearOperator
from operators.projection import Projection

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"base": 2, "n_stages": 2},
    "unrolled-unet": {"n_iterations": 2, "base": 2, "n_stages": 2, "step": 1},
    "primal-dual": {"n_iterations": 2, "width": 4},
    "deepgsr": {"n_iterations": 2, "n_blocks": 1, "width": 4, "n_token_channels": 8, "n_hidden": 4},
    "tv-maps": {"base": 2, "n_stages": 2, "n_iterations": 3},
    "csc": {"dictionary": "gabor-3x5", "base": 2, "n_iterations": 3, "n_stages": 2},
}


@pytest.fixture(scope="module")
def A() -> Projection:
    angles = tuple(2 * math.pi * k / 12 for k in range(12))
    return Projection(FanBeam(angles, 20, 8.0, 10.0, source_to_center_mm=300, center_to_detector_mm=100), (11, 12))


def test_every_model_is_tried_here() -> None:
    assert SMALL.keys() == MODELS.keys()


@pytest.mark.parametrize("kind", SMALL)
def test_a_checkpoint_brings_back_its_model(kind: str, A: Projection, generator: torch.Generator) -> None:
    y = A(0.02 * torch.rand(2, 11, 12, generator=generator))
    model = build_model(kind, SMALL[kind])
    metric = Metric("psnr_db", "of nothing", 0.5)
    back = model_of(Checkpoint(model.state_dict(), kind, SMALL[kind], "nothing", "CC0-1.0", 0, 0, metric, "0"))
    assert (model.training, back.training) == (True, False)
    with torch.no_grad():
        image = apply_model(back, y, A, 0.01)
        torch.testing.assert_close(image, apply_model(model.eval(), y, A, 0.01), rtol=0, atol=0)
    assert image.shape == (2, 11, 12)


@pytest.mark.parametrize("kind", SMALL)
def test_the_unit_of_attenuation_does_not_matter(kind: str, A: Projection, generator: torch.Generator) -> None:
    y = A(0.02 * torch.rand(1, 11, 12, generator=generator))
    model = build_model(kind, SMALL[kind]).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            apply_model(model, 10 * y, A, 0.1), 10 * apply_model(model, y, A, 0.01), rtol=1e-3, atol=1e-6
        )


def test_models_get_an_operator_of_norm_one_and_the_same_image(A: Projection, generator: torch.Generator) -> None:
    x = torch.rand(2, 11, 12, generator=generator)

    def look(y: torch.Tensor, scaled: LinearOperator, noise_std: torch.Tensor) -> torch.Tensor:
        assert float(scaled.norm()) == pytest.approx(1, rel=1e-4)
        torch.testing.assert_close(scaled(x), y)
        assert float(noise_std) == pytest.approx(0.3 / float(A.norm()), rel=1e-4)
        return x

    assert apply_model(look, A(x), A, 0.3) is x


def test_dictionaries_are_families_and_files() -> None:
    assert torch.equal(load_dictionary("dct-4x5").filters, dct_filters(4, 5))
    with pytest.raises(InputError, match="neither a file nor a known dictionary"):
        load_dictionary("fourier-3x5")


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("cnn", {}, "'cnn' is unknown; choose one of unet, unrolled-unet"),
        ("unet", {"n_channels": 2}, "n_channels is unknown; known are start, base, n_stages"),
        ("unet", {"start": "sirt"}, "start is 'sirt'"),
        ("csc", {"dictionary": "dct-3x4"}, "odd"),
    ],
)
def test_what_cannot_be_built_is_named(kind: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model(kind, arguments)
