"""The built-in phantom: one body per section at every resolution, not symmetric, in HU, with its metal beside it."""

import pytest
import torch

from ctrecon.phantom import FIELD_OF_VIEW_MM, METAL_SECTIONS, body_phantom, pixel_spacing_mm

SECTIONS = tuple(FIELD_OF_VIEW_MM)


def averaged(x: torch.Tensor, n: int) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(x[None], n)[0]


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b + 1000))


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("shape", [(64, 64), (33, 40), (7, 7), (1, 1)])
def test_the_phantom_is_a_finite_image_in_hu(shape, section):
    hu, metal = body_phantom(shape, section=section)
    assert hu.shape == metal.shape == shape
    assert hu.dtype == torch.float32
    assert metal.dtype == torch.bool
    assert not metal.any()
    assert hu.isfinite().all()
    assert hu.min() >= -1001
    assert hu.max() < 3000


@pytest.mark.parametrize("section", SECTIONS)
def test_resolutions_show_the_same_body(section):
    fine, coarse = body_phantom((256, 256), section=section)[0], body_phantom((128, 128), section=section)[0]
    assert relative_difference(averaged(fine, 2), coarse) < 0.025
    assert relative_difference(averaged(fine, 4), body_phantom((64, 64), section=section)[0]) < 0.045


def test_the_same_arguments_give_the_same_image_and_another_seed_another_texture():
    state = torch.get_rng_state()
    one, other = body_phantom((96, 96))[0], body_phantom((96, 96), seed=1)[0]
    assert torch.equal(one, body_phantom((96, 96))[0])
    assert 0.005 < relative_difference(one, other) < 0.5
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("section", SECTIONS)
def test_flips_and_turns_are_noticed(section):
    hu = body_phantom((96, 96), section=section)[0]
    for turned in (hu.flip(0), hu.flip(1), hu.flip(0, 1), hu.T):
        assert relative_difference(turned, hu) > 0.05


def test_the_trunk_is_350_mm_wide_in_a_field_of_400_mm():
    for section in ("thorax", "abdomen", "pelvis"):
        assert pixel_spacing_mm((160, 200), section) == 2.5
        body = body_phantom((200, 200), section=section)[0][:150] > -300
        columns = body.any(dim=0).nonzero()
        width_mm = float(columns.max() - columns.min() + 1) * pixel_spacing_mm((200, 200), section)
        assert 335 < width_mm < 365
    y, x = torch.meshgrid(*2 * [torch.arange(200) - 99.5], indexing="ij")
    for section in SECTIONS:  # all of it is in the circle that every view sees
        assert (body_phantom((200, 200), section=section)[0][torch.hypot(y, x) > 100] < -999).all()


def test_tissues_are_there_with_their_hounsfield_units():
    def share(hu: torch.Tensor, low: float, high: float) -> float:
        return float(((hu > low) & (hu < high)).sum() / (hu > -950).sum())

    abdomen, thorax, head = (body_phantom((256, 256), section=s)[0] for s in ("abdomen", "thorax", "head"))
    assert share(abdomen, -130, -80) > 0.15  # fat
    assert share(abdomen, 30, 80) > 0.15  # muscle
    assert share(abdomen, 85, 135) > 0.08  # liver, spleen
    assert share(abdomen, 600, 1200) > 0.005  # cortical bone
    assert share(thorax, -930, -760) > 0.15  # lung
    assert share(head, 20, 45) > 0.4  # brain
    assert share(head, 400, 1400) > 0.08  # skull
    for hu in (abdomen, thorax):
        assert ((hu < -990) & (torch.arange(256)[:, None] > 100)).any()


def test_lesions_of_low_contrast_are_darker_than_the_liver_by_what_they_should():
    hu, _ = body_phantom((512, 512))
    step = pixel_spacing_mm((512, 512))

    def mean(x_mm: float, y_mm: float) -> float:
        row, column = round(y_mm / step + 255.5), round(x_mm / step + 255.5)
        return float(hu[row - 3 : row + 4, column - 3 : column + 4].mean())

    contrasts = [110 - mean(-102 - 6 * row, -50 + 23 * row) for row in range(3)]
    assert contrasts == pytest.approx([40, 20, 10], abs=6)


def test_the_finest_bars_are_resolved_at_512_and_not_at_128():
    def modulation(n: int) -> float:
        hu, _ = body_phantom((n, n))
        step = pixel_spacing_mm((n, n))
        row = round(129 / step + (n - 1) / 2)
        first, last = (round(x / step + (n - 1) / 2) for x in (25, 34))
        values = hu[row, first : last + 1]
        return float(values.max() - values.min())

    assert modulation(512) > 500
    assert modulation(128) < 400


@pytest.mark.parametrize("metal", METAL_SECTIONS)
def test_metal_sits_in_its_section_and_leaves_the_image_alone(metal):
    hu, mask = body_phantom((256, 256), metal=metal)
    assert torch.equal(hu, body_phantom((256, 256), section=METAL_SECTIONS[metal])[0])
    area_mm2 = float(mask.sum()) * pixel_spacing_mm((256, 256), METAL_SECTIONS[metal]) ** 2
    assert 80 < area_mm2 < 2500
    assert (hu[mask] > -300).all()
    coarse = body_phantom((64, 64), metal=metal)[1]
    assert (averaged(mask.float(), 4) - coarse.float()).abs().max() <= 0.75


def test_what_is_unknown_is_refused():
    with pytest.raises(ValueError, match="section is 'foot'"):
        body_phantom((8, 8), section="foot")
    with pytest.raises(ValueError, match="metal is 'knee'"):
        body_phantom((8, 8), metal="knee")
    with pytest.raises(ValueError, match="sits in the section 'pelvis', not in 'thorax'"):
        body_phantom((8, 8), section="thorax", metal="hip")
    for shape in ((8,), (2, 8, 8), (0, 8)):
        with pytest.raises(ValueError, match="expected \\(y, x\\)"):
            body_phantom(shape)
