"""The published group-sparse network: exactly what groups put together give, with its defects, and without them."""

import pytest
import torch
from torch import nn

from operators.priors.published_deepgsr import PublishedDeepGSR
from tests.reference.published_deepgsr import denoised


def built(published: bool = True, *, n_channels: int = 1) -> PublishedDeepGSR:
    """A tiny network with weights that are far from zero, in evaluation mode."""
    network = PublishedDeepGSR(
        n_channels=n_channels,
        published=published,
        n_layers=2,
        width=3,
        window=8,
        n_members=4,
        n_hidden=5,
        expansion=2,
    )
    generator = torch.Generator().manual_seed(5)
    for p in network.parameters():
        nn.init.normal_(p, std=0.3, generator=generator)
    return network.double().eval()


def step(network: PublishedDeepGSR, x: torch.Tensor) -> torch.Tensor:
    return network(x, network.init(x, torch.zeros(x.shape[:-2])))[0]


def random(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def test_it_has_as_many_parameters_as_were_released():
    assert sum(p.numel() for p in PublishedDeepGSR().parameters()) == 6_753_547


@pytest.mark.parametrize("shape", [(16, 16), (2, 16, 48), (1, 2, 32, 16)])
def test_it_is_what_groups_that_are_put_together_give(shape, generator):
    network = built()
    x = random(*shape, generator=generator)
    expected = denoised(network, x.reshape(-1, *shape[-2:])).reshape(shape)
    change = float((expected - x).detach().abs().max())
    torch.testing.assert_close(step(network, x), expected, rtol=0, atol=1e-12 * change)


def test_so_it_is_at_its_own_size(generator):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PublishedDeepGSR(n_layers=1, expansion=1).double().eval()
    x = random(1, 60, 60, generator=generator)
    with torch.no_grad():
        expected = denoised(network, x)
        torch.testing.assert_close(step(network, x), expected, rtol=0, atol=1e-12)


def test_an_image_of_another_size_is_continued_by_reflection(generator):
    network = built()
    x = random(13, 18, generator=generator)
    continued = nn.functional.pad(x.reshape(1, 1, 13, 18), (0, 14, 0, 3), mode="reflect").squeeze(1)
    torch.testing.assert_close(step(network, x), denoised(network, continued)[0, :13, :18])


def test_as_published_the_matching_and_the_prompt_learn_nothing(generator):
    network = built()
    step(network, random(16, 16, generator=generator)).square().sum().backward()
    for name, p in network.named_parameters():
        idle = ".match." in name or ".to_prompt." in name or name.endswith("key.bias")
        assert idle == (p.grad is None or not bool(p.grad.any())), name


@pytest.mark.parametrize("published", [True, False])
def test_gates_depend_on_the_group_once_repaired(published, generator):
    groups = built(published).body[0].groups
    tokens = random(2, 9, 27, generator=generator)
    gates = groups.gates(tokens, groups.members(groups.similarities(tokens)))
    spread = float((gates - gates[0, 0]).detach().abs().max())
    assert spread == 0 if published else spread > 1e-3


def test_members_are_sorted_by_place_as_published_and_by_similarity_once_repaired(generator):
    tokens = random(2, 9, 27, generator=generator)
    itself = torch.arange(9).reshape(9, 1)
    as_published, repaired = built().body[0].groups, built(False).body[0].groups
    places = as_published.members(as_published.similarities(tokens))
    assert bool((places.diff(dim=-1) > 0).all())
    assert bool((places == itself).any())
    similarities = repaired.similarities(tokens)
    places = repaired.members(similarities)
    assert bool((similarities.gather(-1, places).diff(dim=-1) < 0).all())
    assert not bool((places == itself).any())


@pytest.mark.parametrize("shift", [0, 4])
@pytest.mark.parametrize("shape", [(16, 16), (7, 21), (1, 2), (33, 16)])
def test_once_repaired_tokens_cover_everything_and_their_overlap_is_divided_out(shift, shape, generator):
    layout = built(False).body[int(shift > 0)].layout
    assert layout.shift == shift
    features = random(2, 3, *shape, generator=generator)
    tokens = layout.split(features)
    assert tokens.shape[1:] == (16, 27)
    torch.testing.assert_close(layout.join(tokens, features), features)


def test_as_published_tokens_are_no_patches_and_do_not_add_up(generator):
    layout = built().body[0].layout
    features = random(1, 3, 16, 16, generator=generator)
    tokens = layout.split(features)
    assert tokens.shape == (4, 9, 27)
    assert not torch.allclose(layout.join(tokens, features), features, atol=0.1)
    flat = layout.split(torch.stack([torch.full((16, 16), value) for value in (0.0, 1.0, 2.0)]).unsqueeze(0))
    assert len(flat[0, :, :9].unique()) > 1  # the low band of a constant feature is not constant in a token


@pytest.mark.parametrize("published", [True, False])
def test_shifts_wrap_around_the_border_as_published_only(published, generator):
    network = built(published)
    x = random(1, 32, 32, generator=generator)
    other = x.clone()
    other[..., -1] += 1
    layout = network.body[1].layout
    change = layout.split(other.unsqueeze(1).expand(1, 3, 32, 32)) - layout.split(x.unsqueeze(1).expand(1, 3, 32, 32))
    touched = change.flatten(1).any(dim=1)  # (window)
    if published:
        assert bool(touched.all())
    else:
        assert bool(touched.any())
        assert not bool(touched.all())


@pytest.mark.parametrize("published", [True, False])
def test_there_is_dropout_as_published_only(published, generator):
    network = built(published).train()
    x = random(16, 16, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        once, again = step(network, x), step(network, x)
    assert torch.equal(once, again) != published


@pytest.mark.parametrize("published", [True, False])
def test_complex_images_are_two_channels(published, generator):
    x = torch.complex(random(2, 9, 10, generator=generator), random(2, 9, 10, generator=generator))
    result = step(built(published, n_channels=2), x)
    assert result.shape == x.shape
    assert result.dtype == x.dtype
    with pytest.raises(ValueError, match="built for 1 channels and got 2"):
        step(built(published), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width 0"),
        ({"window": 31}, "window is 31"),
        ({"n_members": 197}, "n_members 197"),
        ({"n_members": 225, "published": False}, "n_members 225"),
    ],
)
def test_what_cannot_be_built_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        PublishedDeepGSR(**options)
