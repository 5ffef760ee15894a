from collections.abc import Callable

import pytest
import torch

from mrirecon.sampling import box_mask, line_mask, partial_fourier_mask


def test_a_box_is_centred_on_the_origin_of_even_and_odd_grids() -> None:
    mask = box_mask((8, 7), (4, 3))
    rows, columns = torch.nonzero(mask, as_tuple=True)
    assert mask.sum() == 12
    assert (int(rows.min()), int(rows.max())) == (2, 5)
    assert (int(columns.min()), int(columns.max())) == (2, 4)


def test_lines_keep_the_centre_and_the_wanted_number(generator: torch.Generator) -> None:
    for source in (generator, None):
        mask = line_mask((96, 80), 3.0, 12, source)
        assert mask.shape == (96, 1)
        assert int(mask.sum()) == 32
        assert bool(mask[42:54].all())


def test_random_lines_depend_on_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = (line_mask((64, 64), 2.0, 8, torch.Generator().manual_seed(seed)) for seed in (3, 3))
    other = line_mask((64, 64), 2.0, 8, torch.Generator().manual_seed(4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_partial_fourier_misses_one_side() -> None:
    mask = partial_fourier_mask((80, 64), 0.75)[:, 0]
    assert int(mask.sum()) == 60
    assert bool(mask[:60].all())


@pytest.mark.parametrize(
    "call",
    [
        lambda: box_mask((8, 8), (9, 4)),
        lambda: box_mask((8, 8), (4,)),
        lambda: line_mask((32, 32), 0.5, 4),
        lambda: line_mask((32, 32), 8.0, 8),
        lambda: partial_fourier_mask((32, 32), 0.5),
        lambda: partial_fourier_mask((32, 32), 1.2),
    ],
)
def test_impossible_masks_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"fit|impossible|fraction"):
        call()
