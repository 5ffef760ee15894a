"""The published group-sparse network with every group put together, in the order of its description."""

import torch
from torch import nn

from operators.priors.published_deepgsr import PublishedDeepGSR

HAAR = torch.tensor([[1.0, 1, 1, 1], [-1, -1, 1, 1], [-1, 1, -1, 1], [1, -1, -1, 1]]) / 2
"""Of the pixels (0, 0), (1, 0), (0, 1), (1, 1) of each square; an orthogonal matrix."""


def denoised(network: PublishedDeepGSR, x: torch.Tensor) -> torch.Tensor:
    """Real images ``(image, y, x)``, sizes multiples of two windows, by a network in evaluation mode."""
    first = network.head(x.unsqueeze(1))
    features = first
    for part in network.body:
        features = part(features) if isinstance(part, nn.Conv2d) else _block(part, features, network.window)
    return x + network.tail(features + first).squeeze(1)


def _block(block: nn.Module, x: torch.Tensor, window: int) -> torch.Tensor:
    shift = block.layout.shift
    u = torch.roll(block.norms[0](x.movedim(1, -1)).movedim(-1, 1), (-shift, -shift), (2, 3))
    image, width, n_y, n_x = u.shape
    squares = torch.stack((u[..., ::2, ::2], u[..., 1::2, ::2], u[..., ::2, 1::2], u[..., 1::2, 1::2]))
    bands = torch.einsum("bs,sicyx->ibcyx", HAAR.to(u), squares).contiguous()
    by_pixel = bands.view(image, 4, n_y // 2, n_x // 2, width)
    places = [
        (slice(None), slice(None), slice(top, top + window), slice(left, left + window))
        for top in range(0, n_y // 2, window)
        for left in range(0, n_x // 2, window)
    ]
    tokens = torch.stack([_tokens(by_pixel[place]) for place in places], dim=2)
    made = torch.zeros_like(by_pixel)
    for place, changed in zip(places, gathered(block.groups, tokens).unbind(dim=2), strict=True):
        made[place] = _coefficients(changed, by_pixel[place])
    squares = torch.einsum("bs,ibcyx->sicyx", HAAR.to(u), made.view_as(bands))
    joined = torch.zeros_like(u)
    for square, (row, column) in zip(squares, ((0, 0), (1, 0), (0, 1), (1, 1)), strict=True):
        joined[..., row::2, column::2] = square
    x = x + torch.roll(joined, (shift, shift), (2, 3))
    return x + block.mixing(block.norms[1](x.movedim(1, -1)).movedim(-1, 1))


def _corners(window: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(0, window - 2, 2) for j in range(0, window - 2, 2)]


def _tokens(coefficients: torch.Tensor) -> torch.Tensor:
    """``(image, band, token, feature · 3 · 3)`` of one window of each band, ``(image, band, y, x, feature)``."""
    patches = [coefficients[:, :, i : i + 3, j : j + 3] for i, j in _corners(coefficients.shape[-2])]
    return torch.stack([patch.permute(0, 1, 4, 2, 3).flatten(2) for patch in patches], dim=2)


def _coefficients(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    window, width = like.shape[-2:]
    made = like.new_zeros(*like.shape[:2], width, window, window)
    for token, (i, j) in zip(tokens.unbind(dim=2), _corners(window), strict=True):
        made[..., i : i + 3, j : j + 3] += token.unflatten(-1, (width, 3, 3))
    return made.view_as(like)


def gathered(groups: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens ``(*batch, token, feature)`` by groups ``(*batch, token, 1 + member, feature)`` that are put together."""
    n_features = tokens.shape[-1]
    queries, keys = groups.match(tokens).split(n_features, dim=-1)
    similarities = (queries @ keys.transpose(-2, -1) * n_features**-0.5).softmax(dim=-1)
    chosen = torch.zeros_like(similarities).scatter(-1, similarities.topk(groups.n_members, dim=-1).indices, 1.0)
    everything = tokens.unsqueeze(-3) * chosen.unsqueeze(-1)  # (*batch, token, token, feature)
    members = everything[chosen == 1].reshape(*tokens.shape[:-1], groups.n_members, n_features)
    group = torch.cat((tokens.unsqueeze(-2), members), dim=-2)
    shares = (groups.to_prompt(group.mean(dim=-1)) @ groups.prompts / len(groups.prompts) ** 0.5).softmax(dim=-1)
    group = group * groups.to_gates(shares @ groups.prompts.T).sigmoid().unsqueeze(-1)
    reference, members = group[..., :1, :], group[..., 1:, :]
    logits = groups.query(reference) @ groups.key(members).transpose(-2, -1) / n_features**0.5
    return groups.project(groups.out((logits.softmax(dim=-1) @ members).squeeze(-2)))
