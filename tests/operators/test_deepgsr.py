"""What the contracts cannot say of the group-sparse prior: its groups, its shrinkers and its frame."""

import math

import numpy as np
import pytest
import torch

from operators.fields import from_channels, reflected, to_channels
from operators.priors.deepgsr import _SHIFTS, GroupSparsePrior, _Convolutions, _frame, _Haar
from operators.priors.group_matching import N_BANDS, SIDE, STRIDE, Matching, TokenGrid
from operators.priors.shrinkers import Groups, LowRankShrinker, PromptShrinker, SingularValueShrinker
from operators.space import Space
from operators.wavelet import Wavelet

SHRINKAGES = "prompt", "lowrank", "svd"
N_MEMBERS, N_CHANNELS = 5, 7


def seeded(make, *arguments, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(*arguments, **options).double()


def tiny_prior(**options):
    options = {"n_channels": 1, "n_blocks": 2, "width": 3, "n_token_channels": 6, "n_members": 4, "rank": 2} | options
    return seeded(GroupSparsePrior, n_hidden=5, **options)


def moved(prior, generator):
    """With a group branch that is no longer zero, as after a step of training."""
    for block in prior.blocks:
        block.back.data = 0.2 * torch.randn(block.back.shape, dtype=torch.float64, generator=generator)
    return prior


def only_the_pixel(prior):
    """With features of a pixel that depend on this pixel alone."""
    for convolution in (prior.head, prior.tail):
        middle = convolution.weight.data[..., 1:2, 1:2].clone()
        convolution.weight.data.zero_()[..., 1:2, 1:2] = middle
    return prior


def tokens_of(generator, *, n_windows=2, n_tokens=9, n_channels=N_CHANNELS):
    return torch.randn(n_windows, N_BANDS, n_tokens, n_channels, dtype=torch.float64, generator=generator)


def noise_of(tokens, level=0.4):
    return level * torch.arange(1, len(tokens) + 1, dtype=torch.float64)


def groups_of(generator, **options):
    tokens = tokens_of(generator, **options)
    return seeded(Matching, tokens.shape[-1], N_MEMBERS, n_features=4)(tokens, noise_of(tokens))


def shrinkers():
    made = {
        "prompt": seeded(PromptShrinker, N_CHANNELS, N_MEMBERS, n_prompts=3),
        "lowrank": seeded(LowRankShrinker, N_MEMBERS, N_BANDS, rank=2),
        "svd": seeded(SingularValueShrinker, N_MEMBERS, N_BANDS),
    }
    for name in ("lowrank", "svd"):
        level = made[name].thresholds.level.data
        level += 0.3 * torch.arange(level.numel(), dtype=torch.float64).reshape(level.shape)
    return made


def softplus(u):
    return math.log1p(math.exp(u))


def softmax(u):
    shares = np.exp(u - u.max())
    return shares / shares.sum()


def gathered_one_by_one(matching, shrinker, tokens, noise_std):
    """The definition, a token at a time: its group as a matrix, shrunk, and aggregated."""
    t = tokens.detach().numpy()
    W, Q, K = (getattr(matching, name).weight.detach().numpy() for name in ("embed", "query", "key"))
    result = np.empty_like(t)
    for window in range(t.shape[0]):
        embedded = t[window].transpose(1, 0, 2).reshape(t.shape[2], -1) @ W.T
        embedded -= embedded.mean(axis=0)
        embedded /= np.sqrt((embedded**2).sum(axis=1, keepdims=True) + 1e-8)
        for token in range(t.shape[2]):
            scores = embedded @ embedded[token]
            others = [j for j in np.argsort(-scores) if j != token][: matching.n_members]
            for band in range(N_BANDS):
                X = t[window, band, others]
                affinity = (X @ K.T) @ (Q @ t[window, band, token])
                weights = softmax(matching.sharpness.item() * scores[others] + affinity)
                result[window, band, token] = weights @ shrunk_one(shrinker, X, float(noise_std[window]), band)
    return torch.from_numpy(result)


def shrunk_one(shrinker, X, noise_std, band):
    if isinstance(shrinker, PromptShrinker):
        V, c, u, P, b = (
            p.detach().numpy()
            for p in (
                shrinker.choice.weight,
                shrinker.choice.bias,
                shrinker.noise.weight[:, 0],
                shrinker.prompts.weight,
                shrinker.prompts.bias,
            )
        )
        gate = 1 / (1 + np.exp(-(P @ softmax(V @ X.mean(axis=0) + c + noise_std * u) + b)))
        return np.diag(gate) @ X
    levels = [softplus(u) * noise_std * math.sqrt(len(X)) for u in shrinker.thresholds.level[band].tolist()]
    if isinstance(shrinker, SingularValueShrinker):
        u, s, vh = np.linalg.svd(X, full_matrices=False)
        return u @ np.diag(np.maximum(s - levels[0], 0)) @ vh
    directions = np.linalg.qr((shrinker.mixtures.detach().numpy() @ X).T)[0].T
    return sum(
        max(0, 1 - level / np.linalg.norm(X @ q)) * np.outer(X @ q, q)
        for level, q in zip(levels, directions, strict=True)
    )


@pytest.mark.parametrize("name", SHRINKAGES)
def test_aggregates_without_groups_are_those_of_gathered_groups(name, generator):
    tokens = tokens_of(generator)
    matching = seeded(Matching, N_CHANNELS, N_MEMBERS, n_features=4)
    shrinker = shrinkers()[name]
    result = shrinker(matching(tokens, noise_of(tokens)))
    expected = gathered_one_by_one(matching, shrinker, tokens, noise_of(tokens))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SHRINKAGES)
def test_aggregates_are_those_of_the_shrunk_groups(name, generator):
    groups = groups_of(generator, n_windows=9)  # more than are computed at a time
    shrinker = shrinkers()[name]
    shrunk = shrinker.shrunk(groups)
    expected = torch.einsum("wbtk,wbtkc->wbtc", groups.weights, shrunk)
    torch.testing.assert_close(shrinker(groups), expected, rtol=0, atol=1e-10)


def test_sums_and_products_of_members_are_those_of_gathered_groups(generator):
    groups = groups_of(generator)
    X = groups.gathered()
    for window, band, token in ((0, 0, 0), (1, 3, 8), (0, 2, 4)):
        members = groups.members[window, token]
        torch.testing.assert_close(X[window, band, token], groups.tokens[window, band, members], rtol=0, atol=0)
    weights = torch.randn(groups.weights.shape, dtype=torch.float64, generator=generator)
    expected = (weights.unsqueeze(-1) * X).sum(dim=-2)
    torch.testing.assert_close(groups.weighted_sum(weights), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(groups.gram(), X @ X.mT, rtol=0, atol=1e-12)


def test_a_group_is_the_most_similar_tokens_without_the_reference(generator):
    tokens = tokens_of(generator)
    matching = seeded(Matching, N_CHANNELS, N_MEMBERS)
    groups = matching(tokens, noise_of(tokens))
    similarities = matching.similarities(tokens)
    n_tokens = tokens.shape[2]
    assert not (groups.members == torch.arange(n_tokens).reshape(-1, 1)).any()
    assert all(len(set(group.tolist())) == N_MEMBERS for group in groups.members.flatten(0, 1))
    assert bool((groups.scores.diff(dim=-1) <= 0).all())
    torch.testing.assert_close(groups.scores, similarities.gather(-1, groups.members))
    left_out = similarities.scatter(-1, groups.members, -torch.inf).amax(dim=-1)
    assert bool((left_out <= groups.scores[..., -1]).all())
    torch.testing.assert_close(groups.weights.sum(dim=-1), torch.ones_like(groups.weights[..., 0]))


def test_gradients_reach_the_matching_and_are_those_of_finite_differences(generator):
    tokens = tokens_of(generator, n_windows=1, n_tokens=7, n_channels=3)
    matching = seeded(Matching, 3, N_MEMBERS, n_features=4)
    names = [name for name, _ in matching.named_parameters()]
    weighted = torch.randn(tokens.shape, dtype=torch.float64, generator=generator)

    def aggregate(*values):
        groups = torch.func.functional_call(matching, dict(zip(names, values, strict=True)), (tokens, noise_of(tokens)))
        return (weighted * groups.weighted_sum(groups.weights)).sum()

    parameters = tuple(p.detach().requires_grad_() for p in matching.parameters())
    assert torch.autograd.gradcheck(aggregate, parameters)
    gradients = torch.autograd.grad(aggregate(*parameters), parameters)
    assert all(float(g.abs().max()) > 1e-4 for g in gradients)


@pytest.mark.parametrize("name", SHRINKAGES)
def test_gradients_of_a_shrinker_are_those_of_finite_differences(name, generator):
    shrinker = shrinkers()[name]
    groups = groups_of(generator, n_windows=1, n_tokens=6)

    def aggregate(tokens, weights, noise_std):
        return shrinker(Groups(tokens, groups.members, groups.scores, weights, noise_std))

    inputs = tuple(t.detach().requires_grad_() for t in (groups.tokens, groups.weights, groups.noise_std))
    assert torch.autograd.gradcheck(aggregate, inputs)


@pytest.mark.parametrize("name", SHRINKAGES)
def test_tokens_may_come_in_any_order(name, generator):
    tokens = tokens_of(generator)
    matching = seeded(Matching, N_CHANNELS, N_MEMBERS)
    shrinker = shrinkers()[name]
    order = torch.randperm(tokens.shape[2], generator=generator)
    expected = shrinker(matching(tokens, noise_of(tokens)))[:, :, order]
    torch.testing.assert_close(shrinker(matching(tokens[:, :, order], noise_of(tokens))), expected)


def test_different_groups_get_different_gates(generator):
    gates = shrinkers()["prompt"].gates(groups_of(generator)).detach().flatten(0, 2)
    assert bool(((gates > 0) & (gates < 1)).all())
    assert float((gates[1:] - gates[:-1]).abs().amax(dim=-1).min()) > 1e-3


def test_a_shrunk_group_has_at_most_the_rank(generator):
    shrinker = shrinkers()["lowrank"]
    groups = groups_of(generator)
    values = torch.linalg.svdvals(shrinker.shrunk(groups))
    assert bool((values[..., 2:] < 1e-12 * values[..., :1]).all())
    assert bool((torch.linalg.svdvals(groups.gathered())[..., 2] > 0.1).all())


def test_equal_members_have_rank_one_and_nothing_breaks(generator):
    groups = groups_of(generator)
    equal = Groups(torch.ones_like(groups.tokens).requires_grad_(), *(getattr(groups, name) for name in _OTHERS))
    for level in (0.0, 1e-3):
        silent = Groups(equal.tokens, *(getattr(groups, name) for name in _OTHERS[:-1]), noise_of(groups.tokens, level))
        for name, shrinker in shrinkers().items():
            result = shrinker(silent)
            if name != "prompt":
                torch.testing.assert_close(result, torch.ones_like(result), rtol=0, atol=0.1 if level else 1e-12)
            (gradient,) = torch.autograd.grad(result.sum(), equal.tokens)
            assert bool(gradient.isfinite().all())


_OTHERS = "members", "scores", "weights", "noise_std"


def test_without_noise_and_with_directions_enough_a_group_stays_what_it_is(generator):
    groups = groups_of(generator)
    silent = Groups(groups.tokens, groups.members, groups.scores, groups.weights, torch.zeros_like(groups.noise_std))
    for shrinker in (LowRankShrinker(N_MEMBERS, N_BANDS, rank=N_MEMBERS), SingularValueShrinker(N_MEMBERS, N_BANDS)):
        torch.testing.assert_close(shrinker.double().shrunk(silent), groups.gathered(), rtol=0, atol=1e-9)


def test_in_its_own_directions_shrinkage_of_few_is_that_of_singular_values(generator):
    """With the left singular vectors as mixtures, the directions are the right ones."""
    groups = groups_of(generator)
    u, _, _ = torch.linalg.svd(groups.gathered()[1, 2, 3], full_matrices=False)
    lowrank = LowRankShrinker(N_MEMBERS, N_BANDS, rank=N_MEMBERS).double()
    lowrank.mixtures.data = u.mT
    expected = SingularValueShrinker(N_MEMBERS, N_BANDS).double().shrunk(groups)
    torch.testing.assert_close(lowrank.shrunk(groups)[1, 2, 3], expected[1, 2, 3])


@pytest.mark.parametrize("name", ["lowrank", "svd"])
def test_thresholds_are_in_proportion_to_the_noise(name, generator):
    groups = groups_of(generator)
    shrinker = shrinkers()[name]
    tripled = Groups(3 * groups.tokens, *(getattr(groups, n) for n in _OTHERS[:-1]), 3 * groups.noise_std)
    assert not torch.allclose(shrinker(groups), shrinkers()["svd" if name == "lowrank" else "lowrank"](groups))
    torch.testing.assert_close(shrinker(tripled), 3 * shrinker(groups))


@pytest.mark.parametrize("shape", [(4, 4), (33, 10), (34, 35), (5, 70)])
def test_tokens_cover_every_coefficient_and_sum_to_one(shape, generator):
    grid = TokenGrid.covering(shape, largest_window=16, n_members=4)
    assert all(covered >= n for covered, n in zip(grid.shape, shape, strict=True))
    assert all(n % size == 0 and size <= 16 for n, size in zip(grid.n_tokens, grid.window, strict=True))
    coefficients = torch.randn(2, N_BANDS, *grid.shape, dtype=torch.float64, generator=generator)
    pixels = torch.eye(SIDE**2, dtype=torch.float64).reshape(-1, 1, SIDE, SIDE)
    tokens = torch.nn.functional.conv2d(coefficients, pixels.repeat(N_BANDS, 1, 1, 1), stride=STRIDE, groups=N_BANDS)
    windows = grid.to_windows(tokens)
    n_windows = math.prod(n // size for n, size in zip(grid.n_tokens, grid.window, strict=True))
    assert windows.shape == (2 * n_windows, N_BANDS, math.prod(grid.window), SIDE**2)
    for token in (0, -1):  # a token is a patch, its rows one after the other
        corner = slice(0, SIDE) if token == 0 else slice(-SIDE, None)
        patch = coefficients[token, :, corner, corner].flatten(1)
        torch.testing.assert_close(windows[token, :, token], patch, rtol=0, atol=0)
    torch.testing.assert_close(grid.from_windows(windows), tokens, rtol=0, atol=0)
    back = torch.nn.functional.conv_transpose2d(tokens, pixels.repeat(N_BANDS, 1, 1, 1), stride=STRIDE, groups=N_BANDS)
    torch.testing.assert_close(back / grid.overlap(coefficients), coefficients, rtol=0, atol=1e-12)


def test_a_delta_lands_in_its_own_tokens(generator):
    """The embedding as it is used: a pixel changes the tokens whose patches hold it, and no others."""
    prior = only_the_pixel(tiny_prior(n_blocks=1))
    x = torch.rand(40, 44, dtype=torch.float64, generator=generator)
    grid = prior._grid(x)
    seen = []
    noise = torch.full((1,), 0.1, dtype=torch.float64)

    def tokens(image):
        prior._noise(image, noise, lambda block, groups, shift: seen.append(groups.tokens.detach()))
        return grid.from_windows(seen[-1]).reshape(N_BANDS, -1, *grid.n_tokens).abs().sum(dim=(0, 1))

    changed = x.clone()
    changed[17, 22] += 1
    tokens(x)
    tokens(changed)
    difference = grid.from_windows(seen[1] - seen[0]).abs().sum(dim=(0, 1))
    references = prior.match_maps(x, noise[0]).references[0]
    near = ((references - torch.tensor([17.0, 22.0], dtype=torch.float64)).abs() < prior.patch_size / 2).all(dim=-1)
    assert int(near.sum()) == 4
    torch.testing.assert_close(difference > 0, near)


@pytest.mark.parametrize("shrinkage", SHRINKAGES)
def test_a_block_is_its_definition(shrinkage, generator):
    """Patches one by one: embedded, replaced by the aggregate of their group, put back and averaged."""
    block = moved(tiny_prior(shrinkage=shrinkage, n_blocks=1), generator).blocks[0]
    block.band_gain.data = 1 + torch.rand(block.band_gain.shape, dtype=torch.float64, generator=generator)
    grid = TokenGrid((6, 3), (3, 3))
    bands = torch.randn(2, N_BANDS * 3, *grid.shape, dtype=torch.float64, generator=generator)
    noise = torch.tensor([0.1, 0.7], dtype=torch.float64)
    with torch.no_grad():
        result, _ = block(bands, grid, noise)
        change = torch.zeros_like(bands).unflatten(1, (N_BANDS, 3))
        covered = torch.zeros(grid.shape, dtype=torch.float64)
        corners = [[(2 * y, 2 * x) for y in range(first, first + 3) for x in range(3)] for first in (0, 3)]
        for image, band_window in ((i, w) for i in range(2) for w in corners):
            patches = torch.stack([bands[image, :, y : y + 4, x : x + 4] for y, x in band_window])
            patches = patches.unflatten(1, (N_BANDS, 3)).transpose(0, 1)  # (band, token, channel, y, x)
            embed = block.band_gain * block.embed  # (band, token channel, channel, y, x)
            tokens = torch.einsum("btcyx,bdcyx->btd", patches, embed).unsqueeze(0)
            expected = gathered_one_by_one(block.matching, block.shrinker, tokens, noise[image : image + 1])
            back = torch.einsum("btd,dcyx->btcyx", (expected - tokens)[0], block.back)
            for token, (y, x) in enumerate(band_window):
                change[image, :, :, y : y + 4, x : x + 4] += back[:, token]
                covered[y : y + 4, x : x + 4] += 1 / 2  # once for each image
        change = (change / covered).flatten(1, 2)
        expected = change + block.mixing(bands + change, noise)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)


def test_the_gated_convolution_is_its_definition(generator):
    mixing = tiny_prior(n_blocks=1).blocks[0].mixing
    u = torch.randn(2, N_BANDS * 3, 5, 6, dtype=torch.float64, generator=generator)
    noise = torch.tensor([0.02, 0.5], dtype=torch.float64)
    known = torch.stack([noise / (noise + s) for s in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)], dim=-1)
    gain, offset = (t[..., None, None] for t in mixing.by_noise(known).chunk(2, dim=-1))
    hidden = (1 + gain) * torch.einsum("hc,ncyx->nhyx", mixing.expand, u) + offset
    value, gate = mixing.depthwise(hidden).chunk(2, dim=1)
    gated = value * gate.sigmoid()
    expected = torch.einsum("ch,nhyx->ncyx", mixing.contract.weight, gated) + mixing.contract.bias[:, None, None]
    torch.testing.assert_close(mixing(u, noise), expected, rtol=0, atol=1e-12)
    assert float((gain[0] - gain[1]).detach().abs().max()) > 0.01


class Unchanged(torch.nn.Module):
    """A block whose change is what it was given, so that features double."""

    def forward(self, bands, grid, noise_std):
        return bands, None


@pytest.mark.parametrize("wavelet", ["haar", "db2", "sym4"])
@pytest.mark.parametrize("shape", [(1, 2), (37, 38), (39, 40)])
def test_every_phase_sees_every_pixel(wavelet, shape, generator):
    prior = only_the_pixel(tiny_prior(n_blocks=4, wavelet=wavelet))
    x = torch.rand(shape, dtype=torch.float64, generator=generator)
    noise = torch.tensor(0.1, dtype=torch.float64)
    prior.tail.bias.data.zero_()
    blocks, prior.blocks = prior.blocks, torch.nn.ModuleList()
    once = prior(x, noise)[0] - x
    prior.blocks = torch.nn.ModuleList(Unchanged() for _ in blocks)
    torch.testing.assert_close(prior(x, noise)[0] - x, 16 * once, rtol=0, atol=1e-9)


@pytest.mark.parametrize("spread", [0.0, 1e-4, 1e-3])
def test_groups_of_nearly_rank_one_are_safe_in_single_precision(spread, generator):
    """Their mixtures lie along one direction but for rounding, which must not become directions of its own."""
    lengths = 1 + torch.rand(2, N_BANDS, 50, 1, dtype=torch.float64, generator=generator)
    tokens = lengths * torch.randn(N_CHANNELS, dtype=torch.float64, generator=generator)
    tokens = tokens + spread * tokens_of(generator, n_tokens=50)
    noise = torch.zeros(2, dtype=torch.float64)
    groups = seeded(Matching, N_CHANNELS, 16)(tokens, noise)
    shrinker = LowRankShrinker(16, N_BANDS, rank=4)
    single = tokens.float().requires_grad_()
    result = shrinker(Groups(single, groups.members, groups.scores.float(), groups.weights.float(), noise.float()))
    expected = groups.weighted_sum(groups.weights)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5 + 3 * spread)
    (gradient,) = torch.autograd.grad(result.sum(), single)
    assert float(gradient.abs().max()) < 100


@pytest.mark.parametrize("wavelet", ["haar", "db2", "sym4"])
def test_the_frame_takes_apart_and_puts_together(wavelet, generator):
    features = torch.randn(2, 3, 20, 24, dtype=torch.float64, generator=generator)
    frame = _frame(wavelet, features)
    bands = torch.nn.functional.conv2d(features, frame, stride=2)
    back = torch.nn.functional.conv_transpose2d(bands, frame, stride=2)
    margin = frame.shape[-1] - 2
    inside = ..., slice(margin, 20 - margin), slice(margin, 24 - margin)
    torch.testing.assert_close(back[inside], features[inside], rtol=0, atol=1e-10)

    W = Wavelet(Space((20, 24), "real"), wavelet, level=1)
    periodic = W(features).unflatten(-1, (2, -1)).unflatten(-3, (2, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 3)
    begin = frame.shape[-1] // 2 - 1  # its first coefficient reads from that far before the first sample
    phase, first = begin % 2, (begin + 1) // 2
    inner = torch.nn.functional.conv2d(features[..., phase:, phase:], frame, stride=2)
    expected = periodic[..., first : first + inner.shape[-2], first : first + inner.shape[-1]]
    torch.testing.assert_close(inner, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shift", _SHIFTS)
def test_sums_and_differences_are_the_convolutions_of_the_haar_wavelet(shift, generator):
    features = torch.randn(2, 3, 7, 9, dtype=torch.float64, generator=generator).requires_grad_()
    change = torch.randn(2, N_BANDS * 3, 3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    haar, convolutions = _Haar(), _Convolutions("haar", features)
    torch.testing.assert_close(haar.analysed(features, shift), convolutions.analysed(features, shift))
    expected = convolutions.added(features, change, shift)
    torch.testing.assert_close(haar.added(features, change, shift), expected)
    with torch.no_grad():
        torch.testing.assert_close(haar.added(features.clone(), change, shift), expected)
    for call, inputs in ((haar.analysed, (features,)), (haar.added, (features, change))):
        assert torch.autograd.gradcheck(lambda *x, call=call: call(*x, shift), inputs)
        assert torch.autograd.gradgradcheck(lambda *x, call=call: call(*x, shift), inputs)


def test_an_image_is_the_same_without_gradients_a_strip_at_a_time(generator, monkeypatch):
    prior = moved(tiny_prior(), generator)
    x = torch.rand(2, 37, 42, dtype=torch.float64, generator=generator)
    noise = torch.tensor([0.1, 0.3], dtype=torch.float64)
    expected = prior(x, noise)[0]
    for pixels in (1, 200, 2048):  # rows of one, of some, and all of them
        monkeypatch.setattr("operators.priors.deepgsr._PIXELS_AT_A_TIME", pixels)
        with torch.no_grad():
            torch.testing.assert_close(prior(x, noise)[0], expected, rtol=0, atol=1e-12)


def test_images_are_continued_by_reflection(generator):
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=generator)
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (3, 11), (3, 6)), mode="reflect")
    np.testing.assert_array_equal(reflected(x, 3, (19, 13)).numpy(), expected)
    single = torch.full((1, 1, 1, 2), 4.0)
    torch.testing.assert_close(reflected(single, 1, (6, 6)), torch.full((1, 1, 6, 6), 4.0))


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_nothing_wraps_around_the_border(wavelet, generator):
    prior = tiny_prior(n_blocks=4, wavelet=wavelet)  # at its start, where it sees no further than its convolutions
    x = torch.rand(64, 70, dtype=torch.float64, generator=generator)
    noise = torch.tensor(0.3, dtype=torch.float64)
    changed = x.clone()
    changed[0, 0] += 1
    changed[-1, -1] += 1
    difference = (prior(changed, noise)[0] - prior(x, noise)[0]).abs() > 1e-12
    assert bool(difference[0, 0] & difference[-1, -1])
    assert not bool(difference[:30, 40:].any())
    assert not bool(difference[34:, :30].any())


@pytest.mark.parametrize("shrinkage", SHRINKAGES)
def test_without_noise_the_image_is_left_alone(shrinkage, generator):
    prior = moved(tiny_prior(shrinkage=shrinkage), generator)
    x = torch.rand(2, 9, 11, dtype=torch.float64, generator=generator)
    noise = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    result, _ = prior(x, noise)
    torch.testing.assert_close(result, x, rtol=0, atol=0)
    result.square().sum().backward()
    assert bool(noise.grad.isfinite().all())
    assert bool(noise.grad.any())
    change = (prior(x, torch.full((2,), 1e-4, dtype=torch.float64))[0] - x).detach().abs()
    assert 0 < float(change.max()) < 1e-3


@pytest.mark.parametrize("shrinkage", SHRINKAGES)
def test_groups_start_at_zero_and_learn_from_the_second_step_on(shrinkage, generator):
    prior = tiny_prior(shrinkage=shrinkage)
    x = torch.rand(2, 13, 18, dtype=torch.float64, generator=generator)
    noise = torch.tensor([0.1, 0.2], dtype=torch.float64)
    noisy = x + noise.reshape(2, 1, 1) * torch.randn(x.shape, dtype=torch.float64, generator=generator)
    before = prior(noisy, noise)[0]
    for block in prior.blocks:
        assert not block.back.any()
        block.embed.data += 0.1
    torch.testing.assert_close(prior(noisy, noise)[0], before, rtol=0, atol=0)

    optimiser = torch.optim.SGD(prior.parameters(), lr=0.1)
    for step in range(2):
        optimiser.zero_grad()
        (prior(noisy, noise)[0] - x).square().sum().backward()
        without = {name for name, p in prior.named_parameters() if not p.grad.any()}
        assert all(bool(p.grad.isfinite().all()) for p in prior.parameters())
        if step == 0:
            assert not {name for name in without if "back" in name or "mixing" in name}
            assert any("matching" in name for name in without)
        else:
            assert not without
        optimiser.step()


def test_training_and_evaluation_do_the_same(generator):
    prior = moved(tiny_prior(), generator)
    x = torch.rand(12, 15, dtype=torch.float64, generator=generator)
    noise = torch.tensor(0.1, dtype=torch.float64)
    torch.testing.assert_close(prior.train()(x, noise)[0], prior.eval()(x, noise)[0], rtol=0, atol=0)


def test_single_precision_agrees(generator):
    prior = moved(tiny_prior(), generator)
    x = torch.rand(2, 12, 15, dtype=torch.float64, generator=generator)
    noise = torch.tensor([0.05, 0.3], dtype=torch.float64)
    expected = prior(x, noise)[0]
    result = prior.float()(x.float(), noise.float())[0]
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5)


def test_slices_of_a_volume_share_its_noise_level(generator):
    prior = moved(tiny_prior(n_channels=2), generator)
    x = torch.randn(2, 3, 9, 8, dtype=torch.complex128, generator=generator)
    noise = torch.tensor([0.1, 0.3], dtype=torch.float64)
    result = prior(x, prior.init(x, noise))[0]
    for i in range(2):
        torch.testing.assert_close(result[i], prior(x[i], noise[i].expand(3))[0])


def test_patches_that_repeat_are_matched_with_each_other(generator):
    prior = tiny_prior(n_blocks=5, n_members=3)
    tile = torch.rand(16, 16, dtype=torch.float64, generator=generator)
    x = torch.stack((torch.rand(96, 80, dtype=torch.float64, generator=generator), tile.repeat(6, 5)))[:, None]
    matches = prior.match_maps(x, torch.full((2, 1), 0.1, dtype=torch.float64))
    n_y, n_x = prior._grid(x).n_tokens
    assert matches.references.shape == (5, n_y, n_x, 2)
    assert matches.members.shape == (2, 1, 5, n_y, n_x, 3, 2)
    assert matches.scores.shape == (2, 1, 5, n_y, n_x, 3)
    assert matches.patch_size == 8
    # The first phase sees from one pixel before the image, the second from its first.
    torch.testing.assert_close(matches.references[0, 0, 0], torch.tensor([2.5, 2.5], dtype=torch.float64))
    torch.testing.assert_close(matches.references[1, 2, 3], torch.tensor([11.5, 15.5], dtype=torch.float64))

    first = matches.references[0]
    inside = ((first > 6) & (first < torch.tensor([96.0, 80.0]) - 7)).all(dim=-1)
    offsets = (matches.members[1, 0, 0] - first.unsqueeze(-2))[inside]
    torch.testing.assert_close(offsets.remainder(16), torch.zeros_like(offsets))
    assert bool((offsets.abs().amax(dim=-1) >= 16).all())
    assert bool((offsets.abs() < 4 * 16).all())  # in its window
    assert bool((matches.scores[1, 0, 0][inside] > 1 - 1e-6).all())
    assert not bool((matches.scores[0, 0, 0][inside] > 1 - 1e-6).any())


@pytest.mark.parametrize("shrinkage", SHRINKAGES)
def test_ranks_tell_what_is_left_of_a_group(shrinkage, generator):
    prior = moved(tiny_prior(shrinkage=shrinkage), generator)
    x = torch.randn(2, 21, 18, dtype=torch.float64, generator=generator)
    noise = torch.full((2,), 0.1, dtype=torch.float64)
    grid = prior._grid(x)
    largest = 2 if shrinkage == "lowrank" else 4

    def ranks(level):
        if shrinkage != "prompt":
            for block in prior.blocks:
                block.shrinker.thresholds.level.data[:] = level
        return prior.ranks(x, noise)

    kept = ranks(-100.0)
    assert kept.shape == (2, 2, N_BANDS, *grid.n_tokens)
    assert bool(((kept > 1) & (kept < largest + 1e-9)).all())
    torch.testing.assert_close(prior.ranks(x[1], noise[1]), kept[1])
    if shrinkage != "prompt":
        assert not ranks(100.0).any()


def test_ranks_belong_to_the_bands_they_are_given_for(generator):
    """Of an image that changes along x only, no details along y are left."""
    prior = only_the_pixel(tiny_prior(n_blocks=1))
    x = torch.rand(18, dtype=torch.float64, generator=generator).expand(21, 18)
    prior.blocks[0].shrinker.thresholds.level.data[:] = -10.0
    low, along_x, along_y, along_both = prior.ranks(x, torch.tensor(0.1, dtype=torch.float64))[0]
    assert bool(low.all() & along_x.all())
    assert not bool(along_y.any() | along_both.any())


def test_phases_are_the_four_of_sampling_by_two():
    assert sorted(_SHIFTS) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_colours_are_denoised_together(generator):
    prior = moved(tiny_prior(n_channels=3), generator)
    x = torch.rand(2, 3, 13, 18, dtype=torch.float64, generator=generator)
    noise = torch.tensor([0.1, 0.3], dtype=torch.float64)
    result = prior.denoise_channels(x, noise)
    for i in range(2):
        torch.testing.assert_close(result[i : i + 1], prior.denoise_channels(x[i : i + 1], noise[i : i + 1]))
    changed = x.clone()
    changed[:, 0] += 0.1
    assert bool((prior.denoise_channels(changed, noise) != result)[:, 2].any())
    torch.testing.assert_close(prior.denoise_channels(x, torch.zeros_like(noise)), x, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_an_image_is_denoised_as_its_channels(dtype, generator):
    x = torch.randn(2, 9, 14, dtype=dtype, generator=generator)
    noise = torch.tensor([0.1, 0.3], dtype=torch.float64)
    prior = moved(tiny_prior(n_channels=2 if x.is_complex() else 1), generator)
    expected = from_channels(prior.denoise_channels(to_channels(x), noise), x)
    torch.testing.assert_close(prior(x, noise)[0], expected, rtol=0, atol=0)
    assert not torch.equal(expected, x)


@pytest.mark.parametrize("shrinkage", SHRINKAGES)
def test_the_default_has_a_million_parameters(shrinkage):
    prior = GroupSparsePrior(shrinkage=shrinkage)
    assert 1.0e6 < sum(p.numel() for p in prior.parameters()) < 1.5e6


def test_a_prior_says_what_does_not_fit():
    with pytest.raises(ValueError, match="n_blocks is 0"):
        GroupSparsePrior(n_blocks=0)
    with pytest.raises(ValueError, match="n_members is 16, but a window of 4×4"):
        GroupSparsePrior(window=4)
    with pytest.raises(ValueError, match="rank is 5, but a group has 4"):
        GroupSparsePrior(n_members=4, rank=5)
    with pytest.raises(ValueError, match="'hard'; expected one of 'prompt', 'lowrank', 'svd'"):
        GroupSparsePrior(shrinkage="hard")
    with pytest.raises(ValueError, match="not orthonormal"):
        GroupSparsePrior(wavelet="bior2.2")
    prior = tiny_prior(n_channels=2)
    with pytest.raises(ValueError, match="built for 2 channels and got 1"):
        prior(torch.zeros(5, 5, dtype=torch.float64), torch.tensor(0.1))
    with pytest.raises(ValueError, match=r"noise level has shape \(3,\) for images of \(2,\)"):
        prior(torch.zeros(2, 5, 5, dtype=torch.complex128), torch.zeros(3))
    for shape, n_levels in (((2, 1, 5, 5), 2), ((2, 2, 5), 2), ((2, 2, 5, 5), 1)):
        with pytest.raises(ValueError, match=r"expected \(image, 2, y, x\) and \(image,\)"):
            prior.denoise_channels(torch.zeros(shape, dtype=torch.float64), torch.zeros(n_levels))
