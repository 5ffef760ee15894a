"""Metal implants: always the same, of sensible sizes, inside of bodies, and never in two splits."""

import math
from pathlib import Path

import pytest
import torch

from ctrecon.implants import Implant, _Ellipse, implanted, implants
from operators.errors import InputError

SIDE = 416.0


@pytest.fixture
def body() -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 200), torch.linspace(-1, 1, 200), indexing="ij")
    return (y / 0.5).square() + (x / 0.8).square() < 1


def test_nothing_that_trains_is_in_the_test() -> None:
    names = {shapes: [implant.name for implant in implants(shapes)] for shapes in ("train", "validation", "test")}
    assert {shapes: len(own) for shapes, own in names.items()} == {"train": 800, "validation": 50, "test": 150}
    assert len({name for own in names.values() for name in own}) == 1000
    kinds = {shapes: {name.rsplit(" ", 1)[0] for name in own} for shapes, own in names.items()}
    expected = {"hip", "ellipses", "rods", "screws", "screw pair", "wires", "crowns"}
    assert all(own == expected for own in kinds.values())


def test_an_implant_is_always_the_same() -> None:
    first, again = implants("test"), implants("test")
    assert first == again
    assert first[0].parts != first[7].parts


def test_implants_have_from_a_few_to_some_thousand_pixels_within_their_reach() -> None:
    sizes = []
    for implant in implants("validation"):
        mask = implant.mask(SIDE)
        assert mask.shape[0] == mask.shape[1]
        border = torch.cat((mask[0], mask[-1], mask[:, 0], mask[:, -1]))
        assert not border.any(), implant.name
        sizes.append(int(mask.sum()))
    assert min(sizes) >= 4
    assert max(sizes) < 6000
    assert min(sizes) < 100
    assert max(sizes) > 1000


def test_a_mask_has_the_area_of_its_formula_and_turns_with_it() -> None:
    implant = Implant("one", (_Ellipse((0.02, 0.01), (0.03, 0.015), 0.4),), 0.06)
    mask = implant.mask(2000.0)
    assert float(mask.sum()) == pytest.approx(math.pi * 60 * 30, rel=0.01)
    assert torch.equal(implant.mask(2000.0, math.pi / 2), mask.rot90(-1)) or torch.equal(
        implant.mask(2000.0, math.pi / 2), mask.rot90(1)
    )
    moved = implant.mask(200.0, offset=(0.4, 0.0)).nonzero().double().mean(dim=0)
    still = implant.mask(200.0).nonzero().double().mean(dim=0)
    torch.testing.assert_close(moved - still, torch.tensor([0.4, 0.0], dtype=torch.float64), atol=0.15, rtol=0)


def test_metal_lies_inside_of_the_body_and_the_generator_decides_where(body: torch.Tensor) -> None:
    before = torch.random.get_rng_state()
    for number, implant in enumerate(implants("test")[:14]):
        metal = implanted(implant, body, 200.0, torch.Generator().manual_seed(number))
        again = implanted(implant, body, 200.0, torch.Generator().manual_seed(number))
        elsewhere = implanted(implant, body, 200.0, torch.Generator().manual_seed(number + 100))
        assert metal.any()
        assert not (metal & ~body).any()
        assert torch.equal(metal, again)
        assert not torch.equal(metal, elsewhere)
    assert torch.equal(before, torch.random.get_rng_state())


def test_what_does_not_fit_is_made_smaller(generator: torch.Generator) -> None:
    largest = max(implants("validation"), key=lambda implant: implant.reach)
    narrow = torch.zeros(64, 64, dtype=torch.bool)
    narrow[30:33, 30:33] = True
    metal = implanted(largest, narrow, 1000.0, generator)
    assert metal.any()
    assert not (metal & ~narrow).any()


def test_without_a_body_or_a_kind_there_is_a_sentence(generator: torch.Generator, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no body that metal could be in"):
        implanted(implants("test")[0], torch.zeros(4, 4, dtype=torch.bool), 4.0, generator)
    with pytest.raises(InputError, match="not for 'exam'"):
        implants("exam")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="metal_masks"):
        implants("aapm", tmp_path)


@pytest.mark.realdata
def test_the_shapes_of_the_aapm_challenge(data_folder: Path) -> None:
    found = implants("aapm", data_folder)
    assert len(found) == 97
    sizes = [int(implant.mask(SIDE).sum()) for implant in found]
    assert 20 < min(sizes) < 200
    assert 1500 < max(sizes) < 4000
    shares = [float(i.mask(1e4 / i.reach / 100).double().mean()) for i in found[:10]]
    assert all(0.2 < share < 0.5 for share in shares)  # compact blobs, within the circle of their reach
