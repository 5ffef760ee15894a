"""The group-sparse network of its paper as the authors released it: a baseline, with or without what is wrong in it."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from operators.fields import from_channels, reflected, to_channels
from operators.priors.prior import Prior
from operators.priors.shrinkers import WINDOWS_AT_A_TIME

_SIDE, _STRIDE = 3, 2  # of a token, in wavelet coefficients
_DROPOUT = 0.1
_N_PROMPTS = 16


class PublishedDeepGSR(Prior):
    """The published network D(x) = x + N(x), which does not know the noise level; `GroupSparsePrior` is what to use.

    Each block turns features into tokens of 3×3 Haar coefficients, takes for each token t_i the n_members most similar
    ones of its window, t_j, with gates γ_ij, and replaces it by

        P O Σ_j softmax_j((Q γ_i t_i)ᵀ(K γ_ij t_j)/√d) γ_ij t_j,

    then adds a stack of five convolutions. Since members are tokens and gates are numbers, no group is ever put
    together, and yet the result is that of the released code.

    As published, (1) a wrong reinterpretation of memory scrambles bands, channels and pixels; (2) nothing of the
    matching gets a gradient; (3) there is one prompt, so that the gates depend on nothing; (4) they are dealt out in
    raster order; (5) a token may be a member of its own group; (6) the last row and column of each window are not
    covered; (7) the overlap of tokens is not divided out; (8) shifts wrap around the border; (9) there is dropout.

    Parameters
    ----------
    n_channels
        2 for complex images, 1 for real ones.
    published
        Whether it is as published. If not: (1) tokens are patches of one band; (2) similarity is part of the logits;
        (3) there are 16 prompts; (4) gates go by similarity; (5) others only; (6) and (7) tokens cover everything, and
        their overlap is divided out; (8) borders are continued by reflection; (9) there is none.
    n_layers
        Number of layers, of two blocks and a convolution each.
    width
        Features of a pixel.
    window
        Side of a window in coefficients, even.
    n_members
        Tokens in a group, besides its reference.
    n_hidden
        Length of a prompt.
    expansion
        Features within the stack of convolutions, over ``width``.

    Raises
    ------
    ValueError
        If a number is not positive, the window is odd, or it has not tokens enough for a group.

    References
    ----------
    Jiang, Ji and Shi, DeepGSR: deep group-based sparse representation network for solving image inverse problems, 2026,
    and the code released with it, for gray images from 0 to 1.
    """

    def __init__(
        self,
        *,
        n_channels: int = 1,
        published: bool = True,
        n_layers: int = 3,
        width: int = 12,
        window: int = 30,
        n_members: int = 100,
        n_hidden: int = 80,
        expansion: int = 16,
    ) -> None:
        super().__init__()
        if min(n_channels, n_layers, width, n_members, n_hidden, expansion) < 1:
            raise ValueError(
                f"n_channels is {n_channels}, n_layers {n_layers}, width {width}, n_members {n_members}, n_hidden "
                f"{n_hidden} and expansion {expansion}; expected 1 or more of each."
            )
        n_others = ((window - _SIDE) // _STRIDE + 1) ** 2 if published else (window // _STRIDE) ** 2 - 1
        if window % 2 or n_members > n_others:
            raise ValueError(
                f"window is {window} and n_members {n_members}; expected an even window that has so many tokens."
            )
        self.n_channels, self.published, self.window = n_channels, published, window
        layout = _ReleasedLayout if published else _RepairedLayout
        self.head = nn.Conv2d(n_channels, width, 3, padding=1)
        layers: list[nn.Module] = []
        for i in range(n_layers):
            for j, shift in enumerate((0, window // 2)):
                dropped = _DROPOUT * (2 * i + j) / (2 * n_layers - 1) if published else 0.0
                groups = _Aggregation(width * _SIDE**2, n_members, n_hidden, published=published)
                layers.append(_Block(layout(window, shift), groups, width, expansion, dropped))
            layers.append(nn.Conv2d(width, width, 3, padding=1))
        self.body = nn.Sequential(*layers, nn.Conv2d(width, width, 3, padding=1))
        self.tail = nn.Conv2d(width, n_channels, 3, padding=1)

    def forward(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Take one step, see `operators.priors.prior.Prior.forward`.

        Raises
        ------
        ValueError
            If the images are complex but the network is for real ones, or the reverse.
        """
        channels = to_channels(x)
        n_y, n_x = channels.shape[-2:]
        if channels.shape[1] != self.n_channels:
            raise ValueError(
                f"The network was built for {self.n_channels} channels and got {channels.shape[1]}; a complex image "
                "has two, a real one has one."
            )
        if self.published:
            multiple = 2 * self.window
            channels = reflected(channels, 0, (n_y + -n_y % multiple, n_x + -n_x % multiple))
        features = self.head(channels)
        change = self.tail(self.body(features) + features)[..., :n_y, :n_x]
        return x + from_channels(change, x), state


class _Layout(ABC):
    """How features become tokens in windows, and tokens features."""

    @abstractmethod
    def split(self, features: torch.Tensor) -> torch.Tensor:
        """Tokens ``(window, token, feature · 3 · 3)`` of ``(image, feature, y, x)``."""

    @abstractmethod
    def join(self, tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Features like ``like`` of tokens like those of ``split(like)``."""


@dataclass(frozen=True)
class _ReleasedLayout(_Layout):
    window: int
    shift: int

    def split(self, features: torch.Tensor) -> torch.Tensor:
        bands = _analysed(features.roll((-self.shift, -self.shift), (-2, -1)))
        # Memory ordered by (band, feature, y, x), read as if by (band, y, x, feature).
        scrambled = bands.reshape(-1, *bands.shape[-2:], features.shape[1])
        windows = scrambled.unflatten(2, (-1, self.window)).unflatten(1, (-1, self.window))
        windows = windows.permute(0, 1, 3, 5, 2, 4).flatten(0, 2)  # (window, feature, y, x)
        return nn.functional.unfold(windows, _SIDE, stride=_STRIDE).mT

    def join(self, tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        n_images, width, n_y, n_x = like.shape
        counts = n_y // 2 // self.window, n_x // 2 // self.window
        windows = nn.functional.fold(tokens.mT, (self.window, self.window), _SIDE, stride=_STRIDE)
        # Memory ordered by (feature, y, x), read as if by (y, x, feature): not the inverse of what ``split`` did.
        scrambled = windows.reshape(-1, *counts, self.window, self.window, width).transpose(2, 3)
        bands = scrambled.reshape(n_images, -1, n_y // 2, n_x // 2)
        return _synthesised(bands).roll((self.shift, self.shift), (-2, -1))


@dataclass(frozen=True)
class _RepairedLayout(_Layout):
    window: int
    shift: int

    def split(self, features: torch.Tensor) -> torch.Tensor:
        n_tokens = self._n_tokens(features)
        n_y, n_x = (2 * (_STRIDE * n + 1) for n in n_tokens)
        bands = _analysed(reflected(features, self.shift, (n_y, n_x))).unflatten(1, (4, -1)).flatten(0, 1)
        tokens = nn.functional.unfold(bands, _SIDE, stride=_STRIDE).mT.unflatten(1, n_tokens)  # (band, y, x, ·)
        side = self.window // _STRIDE
        windows = tokens.unflatten(2, (-1, side)).unflatten(1, (-1, side))
        return windows.transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def join(self, tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        n_tokens = self._n_tokens(like)
        side = self.window // _STRIDE
        counts = [n // side for n in n_tokens]
        windows = tokens.unflatten(1, (side, side)).unflatten(0, (-1, *counts))  # (band, window, window, y, x, ·)
        flat = windows.transpose(2, 3).flatten(1, 4)
        shape = _STRIDE * n_tokens[0] + 1, _STRIDE * n_tokens[1] + 1
        bands = nn.functional.fold(flat.mT, shape, _SIDE, stride=_STRIDE) / _overlap(shape, like)
        features = _synthesised(bands.unflatten(0, (-1, 4)).flatten(1, 2))
        return features[..., self.shift :, self.shift :][..., : like.shape[-2], : like.shape[-1]]

    def _n_tokens(self, features: torch.Tensor) -> tuple[int, int]:
        """Tokens that cover the features, along y and x: whole windows, with three coefficients in each token."""
        side = self.window // _STRIDE
        needed = (math.ceil(((n + self.shift) / 2 - 1) / _STRIDE) for n in features.shape[-2:])
        n_y, n_x = (max(1, math.ceil(n / side)) * side for n in needed)
        return n_y, n_x


class _Aggregation(nn.Module):
    """From tokens to what their groups make of them."""

    def __init__(self, n_features: int, n_members: int, n_hidden: int, *, published: bool) -> None:
        super().__init__()
        self.n_members, self.published = n_members, published
        self.match = nn.Linear(n_features, 2 * n_features)
        self.to_prompt = nn.Linear(n_members + 1, n_hidden)
        self.prompts = nn.Parameter(torch.randn(n_hidden, 1 if published else _N_PROMPTS))
        self.to_gates = nn.Linear(n_hidden, n_members + 1)
        self.query = nn.Linear(n_features, n_features)
        self.key = nn.Linear(n_features, n_features, bias=published)  # adds the same to all logits, so does nothing
        self.out = nn.Linear(n_features, n_features)
        self.project = nn.Linear(n_features, n_features)
        self.dropout = nn.Dropout(_DROPOUT if published else 0.0)
        for module in self.children():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens like ``(window, token, feature)``, a few windows at a time, which fit into the cache."""
        return torch.cat([self._aggregated(part) for part in tokens.split(WINDOWS_AT_A_TIME)])

    def similarities(self, tokens: torch.Tensor) -> torch.Tensor:
        """How similar tokens are, real ``(window, token, token)``."""
        queries, keys = self.match(tokens).chunk(2, dim=-1)
        return queries @ keys.mT / tokens.shape[-1] ** 0.5

    def members(self, similarities: torch.Tensor) -> torch.Tensor:
        """Which tokens are grouped with each, in the order of their gates, ``(window, token, member)``."""
        if self.published:
            return similarities.topk(self.n_members, dim=-1).indices.sort(dim=-1).values
        itself = torch.eye(similarities.shape[-1], dtype=torch.bool, device=similarities.device)
        return similarities.masked_fill(itself, -torch.inf).topk(self.n_members, dim=-1).indices

    def gates(self, tokens: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
        """Gates of each token and of its members, real ``(window, token, 1 + member)``."""
        means = tokens.mean(dim=-1)
        of_members = means.unsqueeze(1).expand(-1, tokens.shape[1], -1).gather(-1, members)
        pooled = torch.cat((means.unsqueeze(-1), of_members), dim=-1)
        logits = self.to_prompt(pooled) @ self.prompts / len(self.prompts) ** 0.5
        gates: torch.Tensor = self.to_gates(logits.softmax(dim=-1) @ self.prompts.mT).sigmoid()
        return gates

    def _aggregated(self, tokens: torch.Tensor) -> torch.Tensor:
        similarities = self.similarities(tokens)
        members = self.members(similarities)
        own, others = self.gates(tokens, members).tensor_split([1], dim=-1)
        gates = torch.zeros_like(similarities).scatter(-1, members, others)
        # (K γ t + b)ᵀq = γ (K t)ᵀq + bᵀq, and the softmax does not see what all members have in common.
        affinities = self.query(own * tokens) @ (tokens @ self.key.weight.mT).mT
        logits = gates * affinities / tokens.shape[-1] ** 0.5
        if not self.published:
            logits = logits + similarities
        chosen = torch.zeros_like(similarities, dtype=torch.bool).scatter(-1, members, True)
        weights = self.dropout(logits.masked_fill(~chosen, -torch.inf).softmax(dim=-1))
        result: torch.Tensor = self.project(self.dropout(self.out((weights * gates) @ tokens)))
        return result


class _Block(nn.Module):
    """x ← x + groups(norm(x)), then x ← x + convolutions(norm(x)); in training, each is left out now and then."""

    def __init__(self, layout: _Layout, groups: _Aggregation, width: int, expansion: int, dropped: float) -> None:
        super().__init__()
        self.layout = layout
        self.groups = groups
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        sizes = width, *(expansion * width,) * 4, width
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU()]
        self.mixing = nn.Sequential(*layers[:-1])
        self.dropped = dropped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normalised = self._normalised(0, x)
        x = x + self._kept(x) * self.layout.join(self.groups(self.layout.split(normalised)), x)
        mixed: torch.Tensor = self.mixing(self._normalised(1, x))
        return x + self._kept(x) * mixed

    def _normalised(self, i: int, x: torch.Tensor) -> torch.Tensor:
        normalised: torch.Tensor = self.norms[i](x.movedim(1, -1))
        return normalised.movedim(-1, 1)

    def _kept(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x.new_ones(len(x), 1, 1, 1), self.dropped, self.training)


def _analysed(features: torch.Tensor) -> torch.Tensor:
    """Haar coefficients ``(image, band · feature, y, x)``: low, then details along x, along y and along both."""
    split = nn.functional.conv2d(features.flatten(0, 1).unsqueeze(1), _haar(features), stride=2)
    return split.unflatten(0, features.shape[:2]).transpose(1, 2).flatten(1, 2)


def _synthesised(bands: torch.Tensor) -> torch.Tensor:
    split = bands.unflatten(1, (4, -1)).transpose(1, 2)  # (image, feature, band, y, x)
    features = nn.functional.conv_transpose2d(split.flatten(0, 1), _haar(bands), stride=2)
    return features.squeeze(1).unflatten(0, split.shape[:2])


def _haar(like: torch.Tensor) -> torch.Tensor:
    filters = like.new_tensor([[1.0, 1.0], [-1.0, 1.0]]) / 2**0.5
    return torch.einsum("ay,bx->abyx", filters, filters).flatten(0, 1).unsqueeze(1)


def _overlap(shape: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """How many tokens cover each coefficient, ``(y, x)``."""
    along = [like.new_ones(n) for n in shape]
    for counts in along:
        counts[_STRIDE:-1:_STRIDE] = 2
    return along[0].unsqueeze(-1) * along[1]
