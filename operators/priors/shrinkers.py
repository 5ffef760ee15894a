"""Groups of similar tokens, and three ways to shrink them towards low rank; none but the reference gathers them."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import torch
from torch import nn

from operators.proximal import singular_value_shrinkage

WINDOWS_AT_A_TIME = 8


@dataclass(frozen=True, slots=True)
class Groups:
    """For every reference token the group X of its similar tokens, held as indices into the tokens of its window.

    Parameters
    ----------
    tokens
        Real ``(window, band, token, channel)``.
    members
        The group of each token, most similar first, ``(window, token, member)`` of int64; shared by the bands.
    scores
        Similarity of each member, from −1 to 1, real ``(window, token, member)``.
    weights
        Share a of each member in the aggregate, real ``(window, band, token, member)``, with sum 1.
    noise_std
        Noise level of the image, real ``window``.
    """

    tokens: torch.Tensor
    members: torch.Tensor
    scores: torch.Tensor
    weights: torch.Tensor
    noise_std: torch.Tensor

    def split(self, n_windows: int) -> "list[Groups]":
        """The groups of some windows at a time.

        Parameters
        ----------
        n_windows
            Most windows in a part.

        Returns
        -------
        list of Groups
        """
        parts = (getattr(self, field.name).split(n_windows) for field in fields(self))
        return [Groups(*part) for part in zip(*parts, strict=True)]

    def gathered(self) -> torch.Tensor:
        """The groups X themselves: k times the memory of the tokens.

        Returns
        -------
        torch.Tensor
            Real ``(window, band, token, member, channel)``.
        """
        windows = torch.arange(len(self.members), device=self.members.device).reshape(-1, 1, 1)
        return self.tokens.transpose(1, 2)[windows, self.members].movedim(3, 1)

    def weighted_sum(self, weights: torch.Tensor) -> torch.Tensor:
        """Xᵀw of each group, without X.

        Parameters
        ----------
        weights
            w, real ``(window, band, token, member)``.

        Returns
        -------
        torch.Tensor
            Real ``(window, band, token, channel)``.
        """
        n_windows, n_bands, n_tokens, n_channels = self.tokens.shape
        members = self.members.unsqueeze(1)
        if torch.is_grad_enabled():
            # A third slower than the sum of embeddings, but its gradient is several times faster.
            dense = weights.new_zeros(n_windows, n_bands, n_tokens, n_tokens)
            return dense.scatter(-1, members.expand_as(weights), weights) @ self.tokens
        tables = torch.arange(n_windows * n_bands, device=members.device).reshape(n_windows, n_bands, 1, 1)
        rows = (members + n_tokens * tables).flatten(0, 2)
        sums = nn.functional.embedding_bag(
            rows.int(),  # a third of the time of int64
            self.tokens.reshape(-1, n_channels),
            per_sample_weights=weights.reshape(rows.shape),
            mode="sum",
        )
        return sums.reshape(self.tokens.shape)

    def gram(self) -> torch.Tensor:
        """X Xᵀ of each group, without X.

        Returns
        -------
        torch.Tensor
            Real ``(window, band, token, member, member)``.
        """
        n_windows, n_bands, n_tokens, _ = self.tokens.shape
        n_members = self.members.shape[-1]
        products = (self.tokens @ self.tokens.mT).flatten(2)
        pairs = (n_tokens * self.members.unsqueeze(-1) + self.members.unsqueeze(-2)).reshape(n_windows, 1, -1)
        chosen = products.gather(-1, pairs.expand(-1, n_bands, -1))
        return chosen.reshape(n_windows, n_bands, n_tokens, n_members, n_members)


class Shrinker(nn.Module, ABC):
    """A map from each group X to an estimate X̂ of low rank, of which its reference token takes the aggregate X̂ᵀa."""

    def forward(self, groups: Groups) -> torch.Tensor:
        """Shrink and aggregate.

        Parameters
        ----------
        groups
            The groups X and the weights a.

        Returns
        -------
        torch.Tensor
            X̂ᵀa, real ``(window, band, token, channel)``.
        """
        return (groups.weights.unsqueeze(-2) @ self.shrunk(groups)).squeeze(-2)

    @abstractmethod
    def shrunk(self, groups: Groups) -> torch.Tensor:
        """Shrink.

        Parameters
        ----------
        groups
            The groups X.

        Returns
        -------
        torch.Tensor
            X̂, real ``(window, band, token, member, channel)``.
        """


class PromptShrinker(Shrinker):
    """Every member times a gate between 0 and 1, X̂ = diag(γ) X, from how the mean of its group chooses among prompts.

    γ = sigmoid(P softmax(V x̄ + c)) with x̄ the mean member, the prompts P, which know members by their place in the
    order of similarity, and c, which depends on the noise level.

    Parameters
    ----------
    n_channels
        Channels of a token.
    n_members
        Tokens in a group.
    n_prompts
        Number of prompts.

    References
    ----------
    Jiang, Ji and Shi, DeepGSR: deep group-based sparse representation network for solving image inverse problems, 2026:
    the learned low-rank shrinkage. Departures: several prompts, without which the gate would not depend on the group;
    members in the order of similarity; the noise level.
    """

    def __init__(self, n_channels: int, n_members: int, *, n_prompts: int = 64) -> None:
        super().__init__()
        self.choice = nn.Linear(n_channels, n_prompts)
        self.noise = nn.Linear(1, n_prompts, bias=False)
        self.prompts = nn.Linear(n_prompts, n_members)
        nn.init.normal_(self.prompts.weight)  # so that different choices make different gates from the start

    def forward(self, groups: Groups) -> torch.Tensor:
        """Shrink and aggregate, see `Shrinker.forward`."""
        return groups.weighted_sum(groups.weights * self.gates(groups))

    def shrunk(self, groups: Groups) -> torch.Tensor:
        """Shrink, see `Shrinker.shrunk`."""
        return groups.gathered() * self.gates(groups).unsqueeze(-1)

    def gates(self, groups: Groups) -> torch.Tensor:
        """Compute the gates.

        Parameters
        ----------
        groups
            The groups X.

        Returns
        -------
        torch.Tensor
            γ, real ``(window, band, token, member)``.
        """
        mean = groups.weighted_sum(torch.full_like(groups.weights, 1 / groups.members.shape[-1]))
        level = self.noise(groups.noise_std.reshape(-1, 1, 1, 1))
        gates: torch.Tensor = self.prompts((self.choice(mean) + level).softmax(dim=-1)).sigmoid()
        return gates


class LowRankShrinker(Shrinker):
    """The group in few directions that it chooses itself, each shrunk as a whole: exactly of rank r or less.

    The rows of M X, r learned mixtures of the members in their order of similarity, are made orthonormal, which gives
    Q; then X̂ = Σ_m max(1 − λ_m/‖X q_m‖, 0) X q_m q_mᵀ, the proximal map of Σ_m λ_m ‖X q_m‖ among matrices with rows
    in the span of Q. With the right singular vectors of X for q_m it would be `SingularValueShrinker`.

    All of it is computed from the products X Xᵀ of members, because X̂ᵀa = Xᵀw for weights w.

    Parameters
    ----------
    n_members
        Tokens in a group.
    n_bands
        Bands, which have thresholds of their own.
    rank
        r.

    References
    ----------
    Halko, Martinsson and Tropp, Finding structure with randomness, 2011, algorithm 4.1, for the span of mixtures.
    """

    def __init__(self, n_members: int, n_bands: int, *, rank: int = 4) -> None:
        super().__init__()
        self.mixtures = nn.Parameter(_cosines(rank, n_members))
        self.thresholds = _Thresholds(n_members, n_bands, rank)

    def forward(self, groups: Groups) -> torch.Tensor:
        """Shrink and aggregate, see `Shrinker.forward`."""
        # A few windows at a time fit into the cache and need little memory.
        return torch.cat([self._aggregated(part) for part in groups.split(WINDOWS_AT_A_TIME)])

    def shrunk(self, groups: Groups) -> torch.Tensor:
        """Shrink, see `Shrinker.shrunk`."""
        coordinates, directions, kept = (t.flatten(-3).movedim(-1, 0) for t in self._decomposed(groups))
        basis = directions @ self.mixtures @ groups.gathered().flatten(0, 2)
        shrunk = (coordinates.mT * kept.unsqueeze(-2)) @ basis
        return shrunk.unflatten(0, groups.tokens.shape[:3])

    def _aggregated(self, groups: Groups) -> torch.Tensor:
        coordinates, directions, kept = self._decomposed(groups)
        weights = groups.weights.movedim(-1, 0).contiguous()
        aggregate = (coordinates * weights).sum(dim=1) * kept  # of X̂, in the basis Q
        mixed = (aggregate.unsqueeze(1) * directions).sum(dim=0)
        return groups.weighted_sum(mixed.movedim(0, -1) @ self.mixtures)

    def _decomposed(self, groups: Groups) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Q Xᵀ, the matrix E of Q = E M X, and the share of each direction that is kept.

        Real ``(r, member, window, band, token)``, ``(r, r, window, band, token)`` and ``(r, window, band, token)``:
        what is small comes first, so that each operation runs along many tokens.
        """
        correlations = groups.gram() @ self.mixtures.mT  # (window, band, token, member, r): X (M X)ᵀ
        correlations = correlations.permute(4, 3, 0, 1, 2).contiguous()
        n = correlations[0, 0].shape
        gram = (self.mixtures @ correlations.flatten(2)).unflatten(-1, n)
        directions = _orthonormalising(gram)
        coordinates = torch.stack(
            [(directions[m, : m + 1].unsqueeze(1) * correlations[: m + 1]).sum(dim=0) for m in range(len(directions))]
        )
        energy = coordinates.square().sum(dim=1)
        threshold = self.thresholds(groups.noise_std).movedim(-1, 0).unsqueeze(-1)
        above = energy > threshold.square()
        kept = torch.where(above, 1 - threshold * torch.where(above, energy, 1.0).rsqrt(), 0.0)
        return coordinates, directions, kept


class SingularValueShrinker(Shrinker):
    """X̂ = argmin ½‖X̂ − X‖² + λ‖X̂‖_*, the group with its singular values soft-thresholded; slow, a reference.

    Parameters
    ----------
    n_members
        Tokens in a group.
    n_bands
        Bands, which have thresholds of their own.

    References
    ----------
    Zhang, Zhao and Gao, Group-based sparse representation for image restoration, 2014; there the values are
    hard-thresholded.
    """

    def __init__(self, n_members: int, n_bands: int) -> None:
        super().__init__()
        self.thresholds = _Thresholds(n_members, n_bands, 1)

    def shrunk(self, groups: Groups) -> torch.Tensor:
        """Shrink, see `Shrinker.shrunk`."""
        level = self.thresholds(groups.noise_std).reshape(*groups.tokens.shape[:2], 1, 1, 1)
        return singular_value_shrinkage(groups.gathered(), level)


class _Thresholds(nn.Module):
    """λ = σ √k softplus(u): relative to what noise of level σ, in k members, has along one direction."""

    def __init__(self, n_members: int, n_bands: int, n_directions: int) -> None:
        super().__init__()
        self.root = math.sqrt(n_members)
        # At the start 1/4, about the noise of a token that a fresh embedding makes of noise 1.
        self.level = nn.Parameter(torch.full((n_bands, n_directions), math.log(math.expm1(0.25))))

    def forward(self, noise_std: torch.Tensor) -> torch.Tensor:
        """Thresholds, real ``(window, band, direction)``."""
        return self.root * noise_std.reshape(-1, 1, 1) * nn.functional.softplus(self.level)


def _orthonormalising(gram: torch.Tensor) -> torch.Tensor:
    """E such that the rows of E B are orthonormal, from B Bᵀ, by Gram and Schmidt; real ``(r, r, *batch)``, both.

    A row that depends on those before it gives zero. The products tell so up to their rounding: in single precision,
    what of a row is 1/1000 of the longest row or less counts as dependent.
    """
    n = len(gram)
    floor = 4 * torch.finfo(gram.dtype).eps * torch.stack([gram[m, m] for m in range(n)]).amax(dim=0)
    rest = gram
    remaining = torch.eye(n, dtype=gram.dtype, device=gram.device).reshape(n, n, *(1,) * (gram.ndim - 2))
    rows = []
    for m in range(n):
        squared = rest[m, m]
        independent = squared > floor
        inverse = torch.where(independent, torch.where(independent, squared, 1.0).rsqrt(), 0.0)
        rows.append(remaining[m] * inverse)
        along = rest[:, m] * inverse
        rest = rest - along.unsqueeze(1) * along
        remaining = remaining - along.unsqueeze(1) * rows[-1]
    return torch.stack(rows)


def _cosines(n_rows: int, n: int) -> torch.Tensor:
    """The first rows of the orthonormal discrete cosine transform: the mean, then ever finer differences."""
    phase = math.pi / n * torch.arange(n_rows).unsqueeze(-1) * (torch.arange(n) + 0.5)
    rows = phase.cos()
    return rows / rows.norm(dim=-1, keepdim=True)
