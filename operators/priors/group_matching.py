"""Tokens that overlap and cover everything, the windows they are compared in, and the learned comparison."""

from dataclasses import dataclass

import torch
from torch import nn

from operators.priors.shrinkers import WINDOWS_AT_A_TIME, Groups

N_BANDS = 4
SIDE, STRIDE = 4, 2  # of a token, in wavelet coefficients


@dataclass(frozen=True, slots=True)
class TokenGrid:
    """How tokens of 4×4 coefficients at every second one cover a band, in windows of equal size.

    Parameters
    ----------
    n_tokens
        Number of tokens along y and x.
    window
        Number of them in a window, along y and x.
    """

    n_tokens: tuple[int, int]
    window: tuple[int, int]

    @classmethod
    def covering(cls, shape: tuple[int, int], *, largest_window: int, n_members: int) -> "TokenGrid":
        """The smallest grid for bands of at least a shape, where each window has tokens enough for a group.

        Parameters
        ----------
        shape
            Coefficients along y and x.
        largest_window
            Most tokens of a window along y and x.
        n_members
            Tokens in a group, the reference not among them.

        Returns
        -------
        TokenGrid
        """
        least = next(n for n in range(1, largest_window + 1) if n * n > n_members)
        windows, numbers = [], []
        for n_coefficients in shape:
            needed = max(least, -(-(n_coefficients - SIDE) // STRIDE) + 1)
            n_windows = -(-needed // largest_window)
            windows.append(max(least, -(-needed // n_windows)))
            numbers.append(n_windows * windows[-1])
        return cls((numbers[0], numbers[1]), (windows[0], windows[1]))

    @property
    def shape(self) -> tuple[int, int]:
        """Coefficients that the tokens cover, along y and x."""
        n_y, n_x = self.n_tokens
        return (n_y - 1) * STRIDE + SIDE, (n_x - 1) * STRIDE + SIDE

    def overlap(self, like: torch.Tensor) -> torch.Tensor:
        """How many tokens cover each coefficient.

        Parameters
        ----------
        like
            Of the data type and device to return.

        Returns
        -------
        torch.Tensor
            Real ``(y, x)``.
        """
        along = [like.new_full((n,), SIDE // STRIDE) for n in self.shape]
        for counts in along:
            counts[:STRIDE] = counts[-STRIDE:] = 1
        return along[0].unsqueeze(-1) * along[1]

    def to_windows(self, tokens: torch.Tensor, n_bands: int = N_BANDS) -> torch.Tensor:
        """Sort tokens by window.

        Parameters
        ----------
        tokens
            ``(image, band · channel, y, x)``.
        n_bands
            Number of bands.

        Returns
        -------
        torch.Tensor
            ``(window, band, token, channel)``, the windows of one image together and rows of tokens one by one.
        """
        split = tokens.unflatten(-1, (-1, self.window[1])).unflatten(-3, (-1, self.window[0]))
        split = split.unflatten(1, (n_bands, -1))  # (image, band, channel, window, y, window, x)
        return split.permute(0, 3, 5, 1, 4, 6, 2).flatten(4, 5).flatten(0, 2)

    def from_windows(self, tokens: torch.Tensor) -> torch.Tensor:
        """The inverse of `to_windows`.

        Parameters
        ----------
        tokens
            ``(window, band, token, channel)``.

        Returns
        -------
        torch.Tensor
            ``(image, band · channel, y, x)``, channels last in memory.
        """
        counts = [n // size for n, size in zip(self.n_tokens, self.window, strict=True)]
        split = tokens.unflatten(2, self.window).unflatten(0, (-1, *counts))  # (image, window, window, band, y, x, c)
        return split.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4).flatten(1, 2).movedim(-1, 1)


class Matching(nn.Module):
    """Which tokens of its window are similar to a token, and what share each has in its aggregate.

    All bands of a token together are embedded, e = W t, taken relative to the mean of the window and normalised; the
    similarity of two tokens is s_ij = e_iᵀe_j. The k most similar to a token, itself excluded, are its group in every
    band, with weights softmax_j(α s_ij + (Q t_i)ᵀ(K t_j)) in each. Through s in the weights, gradients reach W.

    Parameters
    ----------
    n_channels
        Channels of a token.
    n_members
        k.
    n_features
        m, the length of e and of queries and keys.
    """

    def __init__(self, n_channels: int, n_members: int, *, n_features: int = 32) -> None:
        super().__init__()
        self.n_members = n_members
        self.embed = nn.Linear(N_BANDS * n_channels, n_features, bias=False)
        self.query = nn.Linear(n_channels, n_features, bias=False)
        self.key = nn.Linear(n_channels, n_features, bias=False)
        self.sharpness = nn.Parameter(torch.tensor(4.0))

    def forward(self, tokens: torch.Tensor, noise_std: torch.Tensor) -> Groups:
        """Match.

        Parameters
        ----------
        tokens
            Real ``(window, band, token, channel)``.
        noise_std
            Noise level, real ``window``.

        Returns
        -------
        Groups
            With this matching's members and weights.
        """
        # A few windows at a time fit into the cache.
        matched = zip(*(self._matched(part) for part in tokens.split(WINDOWS_AT_A_TIME)), strict=True)
        members, scores, weights = (torch.cat(parts) for parts in matched)
        return Groups(tokens, members, scores, weights, noise_std)

    def similarities(self, tokens: torch.Tensor) -> torch.Tensor:
        """Compare all tokens of each window.

        Parameters
        ----------
        tokens
            Real ``(window, band, token, channel)``.

        Returns
        -------
        torch.Tensor
            s, real ``(window, token, token)``, with −∞ on the diagonal.
        """
        embedded = self.embed(tokens.transpose(1, 2).flatten(2))
        # Otherwise the mean grey value, common to all, would make all of them similar.
        embedded = embedded - embedded.mean(dim=1, keepdim=True)
        embedded = embedded * (embedded.square().sum(dim=-1, keepdim=True) + _TINY).rsqrt()
        itself = torch.eye(tokens.shape[2], dtype=torch.bool, device=tokens.device)
        return (embedded @ embedded.mT).masked_fill(itself, -torch.inf)

    def _matched(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Members, their scores and their weights."""
        scores, members = self.similarities(tokens).topk(self.n_members, dim=-1)
        affinities = self.query(tokens) @ self.key(tokens).mT
        affinities = affinities.gather(-1, members.unsqueeze(1).expand(-1, tokens.shape[1], -1, -1))
        weights = (self.sharpness * scores.unsqueeze(1) + affinities).softmax(dim=-1)
        return members, scores, weights


_TINY = 1e-8
