"""Denoising by groups of similar patches that are shrunk towards low rank, in a learned, shifted wavelet frame."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import pywt
import torch
from torch import nn

from operators.fields import from_channels, reflected, to_channels
from operators.priors.group_matching import N_BANDS, SIDE, STRIDE, Matching, TokenGrid
from operators.priors.prior import Prior
from operators.priors.shrinkers import Groups, LowRankShrinker, PromptShrinker, Shrinker, SingularValueShrinker
from operators.space import Space
from operators.wavelet import Wavelet

Shrinkage = Literal["prompt", "lowrank", "svd"]


@dataclass(frozen=True, slots=True)
class Matches:
    """Which patches each patch of an image was grouped with, in every block.

    Positions are those of centres, in pixels along y and x from the first pixel; some lie outside of the image, in its
    reflection.

    Parameters
    ----------
    references
        The patches, real ``(block, token_y, token_x, 2)``.
    members
        Those that each was grouped with, most similar first, real ``(*batch, block, token_y, token_x, member, 2)``.
    scores
        Their similarity, from −1 to 1, real ``(*batch, block, token_y, token_x, member)``.
    patch_size
        Side of a patch in pixels.
    """

    references: torch.Tensor
    members: torch.Tensor
    scores: torch.Tensor
    patch_size: int


class GroupSparsePrior(Prior):
    """A denoiser made of blocks that group similar patches and shrink each group towards low rank.

    D(x, σ) = x + σ N(x, σ) with the network N, so that D(x, 0) = x. N lifts the image to features; each block analyses
    them by an orthonormal wavelet, whose sampling phase changes from block to block, changes the coefficients and
    synthesises. A block adds to the coefficients, in each of the four bands,

        P⁻¹ Eᵀ (X̂_iᵀ a_i − t_i),  t = E c

    where the learned convolution E embeds overlapping patches of coefficients as tokens t_i, X_i is the group of the
    tokens most similar to t_i in its window, X̂_i its shrinkage, a_i the weights by which t_i attends to it, Eᵀ another
    learned convolution, transposed, and P the number of patches that cover a coefficient. Then all bands together pass
    a gated convolutional layer, whose gates know the noise level.

    Eᵀ starts at zero: groups come in as far as they help. Images of any size are continued by reflection.

    Parameters
    ----------
    n_channels
        2 for complex images, 1 for real ones, 3 for colours, which go through `denoise_channels`.
    shrinkage
        ``"lowrank"``: `operators.priors.shrinkers.LowRankShrinker`, ``"prompt"``: `PromptShrinker`, ``"svd"``:
        `SingularValueShrinker`, slow.
    n_blocks
        Number of blocks.
    width
        Features of a pixel.
    n_token_channels
        Length of a token.
    n_members
        Tokens in a group, besides its reference.
    rank
        Largest rank of a group for ``"lowrank"``.
    n_hidden
        Gated features in the convolutional layer.
    window
        Most tokens along each side of the windows in which groups are looked for; tokens are 4 pixels apart.
    wavelet
        Name of an orthogonal PyWavelets wavelet.

    Raises
    ------
    ValueError
        If a number is not positive, a window has not tokens enough for a group, the rank exceeds the members, the
        shrinkage is unknown, or the wavelet is not orthonormal.

    References
    ----------
    Jiang, Ji and Shi, DeepGSR: deep group-based sparse representation network for solving image inverse problems, 2026.
    Departures: the score of the matching is part of the weights, so that it learns; a token is no member of its own
    group; patches cover everything and their overlap is divided out; shifts do not wrap around; shrinkage has a rank;
    groups are never gathered; the noise level is known; no dropout.
    Zhang, Zhao and Gao, Group-based sparse representation for image restoration, 2014, for the groups.

    Examples
    --------
    >>> prior = GroupSparsePrior(n_channels=1, n_blocks=2, width=4, n_token_channels=8, n_hidden=8)
    >>> x = torch.rand(3, 20, 31)
    >>> prior(x, prior.init(x, torch.full((3,), 0.1)))[0].shape
    torch.Size([3, 20, 31])
    """

    def __init__(
        self,
        *,
        n_channels: int = 2,
        shrinkage: Shrinkage = "lowrank",
        n_blocks: int = 6,
        width: int = 32,
        n_token_channels: int = 96,
        n_members: int = 16,
        rank: int = 4,
        n_hidden: int = 128,
        window: int = 16,
        wavelet: str = "haar",
    ) -> None:
        super().__init__()
        numbers = {
            "n_channels": n_channels,
            "n_blocks": n_blocks,
            "width": width,
            "n_token_channels": n_token_channels,
            "n_members": n_members,
            "rank": rank,
            "n_hidden": n_hidden,
            "window": window,
        }
        if min(numbers.values()) < 1:
            raise ValueError(f"{', '.join(f'{k} is {v}' for k, v in numbers.items())}; expected 1 or more of each.")
        if n_members >= window**2:
            raise ValueError(f"n_members is {n_members}, but a window of {window}×{window} tokens has fewer others.")
        if rank > n_members:
            raise ValueError(f"rank is {rank}, but a group has {n_members} members; expected at most that many.")
        Wavelet(Space((2, 2), "real"), wavelet, level=1)  # raises if it is not orthonormal
        self.n_channels, self.n_members = n_channels, n_members
        self.window = window
        self.wavelet = wavelet
        self.margin = pywt.Wavelet(wavelet).dec_len - 1  # pixels beyond the image that its coefficients reach
        self.head = nn.Conv2d(n_channels + 1, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            _Block(
                width,
                n_token_channels,
                n_hidden,
                Matching(n_token_channels, n_members),
                _shrinker(shrinkage, n_token_channels, n_members, rank),
            )
            for _ in range(n_blocks)
        )
        self.tail = nn.Conv2d(width, n_channels, 3, padding=1)

    def forward(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Take one step, see `operators.priors.prior.Prior.forward`.

        Raises
        ------
        ValueError
            If the images are complex but the prior is for real ones, or the reverse, or the noise level does not have
            the leading dimensions of ``x``.
        """
        denoised = self.denoise_channels(self._channels(x), _noise_of_images(state, x).reshape(-1))
        return from_channels(denoised, x), state

    def denoise_channels(self, channels: torch.Tensor, noise_std: torch.Tensor) -> torch.Tensor:
        """Denoise images of any number of channels, such as colours.

        Parameters
        ----------
        channels
            Real ``(image, channel, y, x)``.
        noise_std
            Noise level of each image, the same in its channels, real ``image``.

        Returns
        -------
        torch.Tensor
            D(x, σ), like ``channels``.

        Raises
        ------
        ValueError
            If the prior is for another number of channels, or there is not one noise level for each image.
        """
        n_images, n_channels = channels.shape[:2]
        if channels.ndim != 4 or n_channels != self.n_channels or noise_std.shape != (n_images,):
            raise ValueError(
                f"channels has shape {tuple(channels.shape)} and noise_std {tuple(noise_std.shape)}; expected "
                f"(image, {self.n_channels}, y, x) and (image,)."
            )
        return channels + noise_std.reshape(-1, 1, 1, 1) * self._predicted(channels, noise_std)

    def match_maps(self, x: torch.Tensor, noise_std: torch.Tensor) -> Matches:
        """Show what is similar to what.

        Parameters
        ----------
        x
            Image, real or complex ``(*batch, y, x)``.
        noise_std
            Noise level per real component, real ``batch``.

        Returns
        -------
        Matches
            Of each block.
        """
        grid = self._grid(x)
        places = _places(grid, self.patch_size).to(x.real)
        references, members, scores = [], [], []

        def inspect(block: _Block, groups: Groups, shift: tuple[int, int]) -> None:
            references.append(places + places.new_tensor(shift) - self.margin)
            by_window = grid.to_windows(references[-1].movedim(-1, 0).unsqueeze(0), 1).squeeze(1)  # (window, token, 2)
            by_image = by_window.repeat(len(groups.members) // len(by_window), 1, 1)
            windows = torch.arange(len(by_image), device=x.device).reshape(-1, 1, 1)
            chosen = by_image[windows, groups.members]  # (window, token, member, 2)
            members.append(_of_tokens(chosen, grid, x))
            scores.append(_of_tokens(groups.scores, grid, x))

        with torch.no_grad():
            self._noise(x, _noise_of_images(noise_std, x), inspect)
        block = x.ndim - 2
        return Matches(
            torch.stack(references),
            torch.stack(members, dim=block),
            torch.stack(scores, dim=block),
            self.patch_size,
        )

    def ranks(self, x: torch.Tensor, noise_std: torch.Tensor) -> torch.Tensor:
        """Measure what is left of each group: the effective rank of X̂, exp(−Σ p log p) with p = singular values / sum.

        Parameters
        ----------
        x
            Image, real or complex ``(*batch, y, x)``.
        noise_std
            Noise level per real component, real ``batch``.

        Returns
        -------
        torch.Tensor
            From 1 up, or 0 where nothing is left, real ``(*batch, block, band, token_y, token_x)``, with the low band
            first, then details along x, along y and along both. Tokens are the references of `match_maps`.

        References
        ----------
        Roy and Vetterli, The effective rank: a measure of effective dimensionality, 2007, equation (5).
        """
        grid = self._grid(x)
        ranks: list[torch.Tensor] = []

        def inspect(block: _Block, groups: Groups, shift: tuple[int, int]) -> None:
            effective = _effective_rank(block.shrinker.shrunk(groups))  # (window, band, token)
            ranks.append(_of_tokens(effective.transpose(1, 2), grid, x).movedim(-1, -3))

        with torch.no_grad():
            self._noise(x, _noise_of_images(noise_std, x), inspect)
        return torch.stack(ranks, dim=x.ndim - 2)

    @property
    def patch_size(self) -> int:
        """Side of the patch of pixels that a token stands for."""
        return 2 * SIDE - 1 + self.margin

    def _grid(self, x: torch.Tensor) -> TokenGrid:
        n_y, n_x = ((n + self.margin + 1) // 2 for n in x.shape[-2:])  # coefficients, whatever the phase
        return TokenGrid.covering((n_y, n_x), largest_window=self.window, n_members=self.n_members)

    def _channels(self, x: torch.Tensor) -> torch.Tensor:
        channels = to_channels(x)
        if channels.shape[1] != self.n_channels:
            raise ValueError(
                f"The prior was built for {self.n_channels} channels and got {channels.shape[1]}; a complex image has "
                "two, a real one has one, and colours go through denoise_channels."
            )
        return channels

    def _noise(self, x: torch.Tensor, noise_std: torch.Tensor, inspect: "_Inspect | None" = None) -> torch.Tensor:
        """The network N of images, real ``(image, channel, y, x)``."""
        return self._predicted(self._channels(x), noise_std.reshape(-1), inspect)

    def _predicted(
        self, channels: torch.Tensor, noise: torch.Tensor, inspect: "_Inspect | None" = None
    ) -> torch.Tensor:
        """The network N, real ``(image, channel, y, x)``; ``inspect`` is shown the groups of each block."""
        grid = self._grid(channels)
        # A block sees one pixel less, for the four phases; the first pixel of the image is at (margin, margin).
        n_y, n_x = (2 * n + self.margin for n in grid.shape)
        canvas = reflected(channels, self.margin, (n_y, n_x))
        levels = noise.reshape(-1, 1, 1, 1).expand(-1, 1, *canvas.shape[-2:])
        seen_by_network = torch.cat((canvas, levels), dim=1)
        # Everything after it follows, and convolves several times faster on a CPU.
        features = self.head(seen_by_network.contiguous(memory_format=torch.channels_last))
        frame = _Haar() if self.wavelet == "haar" else _Convolutions(self.wavelet, features)
        for i, block in enumerate(self.blocks):
            shift = _SHIFTS[i % len(_SHIFTS)]
            change, groups = block(frame.analysed(features, shift), grid, noise)
            if inspect is not None:
                inspect(block, groups, shift)  # type: ignore[arg-type]  # a list of modules forgets
            features = frame.added(features, change, shift)
        predicted: torch.Tensor = self.tail(features)
        return predicted[..., self.margin :, self.margin :][..., : channels.shape[-2], : channels.shape[-1]]


class _Block(nn.Module):
    """What a block changes in the coefficients: groups, then a gated convolutional layer."""

    def __init__(
        self, width: int, n_token_channels: int, n_hidden: int, matching: Matching, shrinker: Shrinker
    ) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.empty(n_token_channels, width, SIDE, SIDE))
        self.band_gain = nn.Parameter(torch.ones(N_BANDS, n_token_channels, 1, 1, 1))
        self.matching = matching
        self.shrinker = shrinker
        self.back = nn.Parameter(torch.zeros(n_token_channels, width, SIDE, SIDE))
        self.mixing = _GatedConvolution(N_BANDS * width, n_hidden)
        nn.init.kaiming_uniform_(self.embed, a=5**0.5)

    def forward(self, bands: torch.Tensor, grid: TokenGrid, noise_std: torch.Tensor) -> tuple[torch.Tensor, Groups]:
        """Change of ``bands``, real ``(image, band · channel, y, x)``, and the groups behind it."""
        embed = (self.band_gain * self.embed).flatten(0, 1)
        tokens = grid.to_windows(nn.functional.conv2d(bands, embed, stride=STRIDE, groups=N_BANDS))
        groups: Groups = self.matching(tokens, noise_std.repeat_interleave(len(tokens) // len(bands)))
        shrunk = grid.from_windows(self.shrinker(groups) - tokens)
        back = self.back.repeat(N_BANDS, 1, 1, 1)
        change = nn.functional.conv_transpose2d(shrunk, back, stride=STRIDE, groups=N_BANDS)
        change = change.div_(grid.overlap(bands))
        return change + self.mixing(bands + change, noise_std), groups


class _GatedConvolution(nn.Module):
    """u → C (a ⊙ sigmoid(b)), (a, b) = depthwise convolution of g ⊙ E u + o, with g and o from the noise level."""

    def __init__(self, n_channels: int, n_hidden: int) -> None:
        super().__init__()
        self.expand = nn.Parameter(torch.empty(2 * n_hidden, n_channels))
        self.by_noise = nn.Linear(len(_NOISE_SCALES), 4 * n_hidden)
        self.depthwise = nn.Conv2d(2 * n_hidden, 2 * n_hidden, 3, padding=1, groups=2 * n_hidden)
        self.contract = nn.Linear(n_hidden, n_channels)
        nn.init.kaiming_uniform_(self.expand, a=5**0.5)

    def forward(self, u: torch.Tensor, noise_std: torch.Tensor) -> torch.Tensor:
        scales = noise_std.new_tensor(_NOISE_SCALES)
        known = noise_std.unsqueeze(-1) / (noise_std.unsqueeze(-1) + scales)
        gain, offset = self.by_noise(known).unsqueeze(1).chunk(2, dim=-1)
        weights = self.expand.mT * (1 + gain)
        pixels = u.movedim(1, -1)
        if torch.is_grad_enabled():  # the gradient of a strip would be as large as that of the image
            return self._mixed(pixels, offset, weights).movedim(-1, 1)
        n_y = pixels.shape[1]
        n_rows = max(1, _PIXELS_AT_A_TIME // pixels.shape[:3:2].numel())
        strips = []
        for first in range(0, n_y, n_rows):
            above, below = int(first > 0), int(first + n_rows < n_y)
            strip = pixels[:, first - above : first + n_rows + below]
            strips.append(self._mixed(strip, offset, weights, above, below))
        return torch.cat(strips, dim=1).movedim(-1, 1)

    def _mixed(
        self, pixels: torch.Tensor, offset: torch.Tensor, weights: torch.Tensor, above: int = 0, below: int = 0
    ) -> torch.Tensor:
        """Of ``(image, y, x, channel)``, without the rows that are above and below of it."""
        # As products of matrices, channels last: convolutions 1×1 take several times longer here.
        hidden = torch.baddbmm(offset, pixels.flatten(1, 2), weights).unflatten(1, pixels.shape[1:3])
        hidden = self.depthwise(hidden.movedim(-1, 1)).movedim(1, -1)
        mixed: torch.Tensor = self.contract(nn.functional.glu(hidden[:, above : hidden.shape[1] - below]))
        return mixed


class _Haar:
    """The Haar wavelet: sums and differences, channels last, several times faster than convolutions."""

    def analysed(self, features: torch.Tensor, shift: tuple[int, int]) -> torch.Tensor:
        """Coefficients ``(image, band · channel, y, x)`` of all features but one row and one column."""
        return cast(torch.Tensor, _HaarAnalysis.apply(features, shift))

    def added(self, features: torch.Tensor, change: torch.Tensor, shift: tuple[int, int]) -> torch.Tensor:
        """Features with what a change of their coefficients makes of them; may overwrite them."""
        if torch.is_grad_enabled():
            return cast(torch.Tensor, _HaarAdded.apply(features, change, shift))
        return _add_synthesis(features, change, shift)


class _HaarAnalysis(torch.autograd.Function):
    """Its gradient, one sum like itself, costs less than what autograd makes of slices."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, shift: tuple[int, int]) -> torch.Tensor:
        ctx.shift, ctx.shape = shift, features.shape
        rows = _seen(features, shift).movedim(1, -1).unflatten(1, (-1, 2))
        top, bottom = rows.unbind(2)  # (image, y, 2x, channel)
        n_images, n_y, n_x, n_channels = top.shape
        bands = features.new_empty(n_images, n_y, n_x // 2, 2, 2, n_channels)
        for half, of_half in zip((top + bottom, top - bottom), bands.unbind(3), strict=True):
            left, right = half.unflatten(2, (-1, 2)).unbind(3)
            torch.add(left, right, out=of_half[..., 0, :])
            torch.sub(left, right, out=of_half[..., 1, :])
        return bands.mul_(0.5).flatten(3).movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        n_images, n_channels, n_y, n_x = ctx.shape
        zeros = gradient.new_zeros(n_images, n_y, n_x, n_channels).movedim(-1, 1)
        return _Haar().added(zeros, gradient, ctx.shift), None


class _HaarAdded(torch.autograd.Function):
    """Features, and the transpose of the analysis applied to a change."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, change: torch.Tensor, shift: tuple[int, int]) -> torch.Tensor:
        ctx.shift = shift
        return _add_synthesis(features.clone(), change, shift)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        return gradient, cast(torch.Tensor, _HaarAnalysis.apply(gradient, ctx.shift)), None


def _add_synthesis(features: torch.Tensor, change: torch.Tensor, shift: tuple[int, int]) -> torch.Tensor:
    """The transpose of the analysis, added in place."""
    bands = change.movedim(1, -1).unflatten(-1, (2, 2, -1))  # (image, y, x, band along y, along x, channel)
    n_images, n_y, n_x, _, _, n_channels = bands.shape
    top, bottom = _seen(features, shift).movedim(1, -1).unflatten(1, (-1, 2)).unbind(2)
    for of_half, sign in zip(bands.unbind(3), (0.5, -0.5), strict=True):
        half = change.new_empty(n_images, n_y, n_x, 2, n_channels)
        torch.add(*of_half.unbind(3), out=half[..., 0, :])
        torch.sub(*of_half.unbind(3), out=half[..., 1, :])
        top.add_(half.flatten(2, 3), alpha=0.5)
        bottom.add_(half.flatten(2, 3), alpha=sign)
    return features


class _Convolutions:
    """Any orthonormal wavelet, as `_Haar`."""

    def __init__(self, wavelet: str, like: torch.Tensor) -> None:
        self.frame = _frame(wavelet, like)

    def analysed(self, features: torch.Tensor, shift: tuple[int, int]) -> torch.Tensor:
        """See `_Haar.analysed`."""
        return nn.functional.conv2d(_seen(features, shift), self.frame, stride=2)

    def added(self, features: torch.Tensor, change: torch.Tensor, shift: tuple[int, int]) -> torch.Tensor:
        """See `_Haar.added`."""
        added = features.clone()
        _seen(added, shift).add_(nn.functional.conv_transpose2d(change, self.frame, stride=2))
        return added


def _seen(features: torch.Tensor, shift: tuple[int, int]) -> torch.Tensor:
    """All but one row and one column."""
    y, x = shift
    n_y, n_x = (n - 1 for n in features.shape[-2:])
    return features[..., y : y + n_y, x : x + n_x]


_PIXELS_AT_A_TIME = 2048  # whose hidden features stay in the cache
_Inspect = Callable[[_Block, Groups, tuple[int, int]], None]
_SHIFTS = (0, 0), (1, 1), (0, 1), (1, 0)  # the sampling phases, along y and x
_NOISE_SCALES = 0.003, 0.01, 0.03, 0.1, 0.3, 1.0  # s of σ/(σ + s), smooth steps over log σ that are finite at zero


def _shrinker(shrinkage: Shrinkage, n_token_channels: int, n_members: int, rank: int) -> Shrinker:
    if shrinkage == "prompt":
        return PromptShrinker(n_token_channels, n_members)
    if shrinkage == "lowrank":
        return LowRankShrinker(n_members, N_BANDS, rank=rank)
    if shrinkage == "svd":
        return SingularValueShrinker(n_members, N_BANDS)
    raise ValueError(f"shrinkage is {shrinkage!r}; expected one of {', '.join(map(repr, get_args(Shrinkage)))}.")


def _noise_of_images(noise_std: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One noise level for each image of ``x``; slices of a volume share theirs."""
    batch = x.shape[:-2]
    if noise_std.shape != batch[: noise_std.ndim]:
        raise ValueError(f"The noise level has shape {tuple(noise_std.shape)} for images of {tuple(batch)}.")
    return noise_std.to(x.real)[(..., *(None,) * (len(batch) - noise_std.ndim))].expand(batch)


def _frame(wavelet: str, like: torch.Tensor) -> torch.Tensor:
    """Filters of a convolution of stride 2 that takes features apart into ``band · channel``; transposed, it adds up.

    Dense over channels, most of its weights are zero, and yet channels last it is several times faster than
    `operators.wavelet.Wavelet`; nor does it wrap around.
    """
    filters = like.new_tensor(pywt.Wavelet(wavelet).filter_bank[2:])  # those of the synthesis: correlations analyse
    bands = torch.einsum("ay,bx->abyx", filters, filters).flatten(0, 1)
    each = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
    return torch.einsum("ayx,cd->acdyx", bands, each).flatten(0, 1)


def _places(grid: TokenGrid, patch_size: int) -> torch.Tensor:
    """Centre of each patch in pixels from where a block begins to see, ``(token_y, token_x, 2)``."""
    along = (2 * STRIDE * torch.arange(n) + (patch_size - 1) / 2 for n in grid.n_tokens)
    return torch.stack(torch.meshgrid(*along, indexing="ij"), dim=-1)


def _of_tokens(values: torch.Tensor, grid: TokenGrid, x: torch.Tensor) -> torch.Tensor:
    """``(window, token, *value)`` as ``(*batch, token_y, token_x, *value)``."""
    shape = values.shape[2:]
    maps = grid.from_windows(values.flatten(2).unsqueeze(1)).squeeze(1)  # (image, value, token_y, token_x)
    return maps.movedim(1, -1).reshape(*x.shape[:-2], *grid.n_tokens, *shape)


def _effective_rank(matrices: torch.Tensor) -> torch.Tensor:
    values = torch.linalg.svdvals(matrices)
    total = values.sum(dim=-1)
    share = values / torch.where(total > 0, total, 1.0).unsqueeze(-1)
    return torch.where(total > 0, torch.special.entr(share).sum(dim=-1).exp(), 0.0)
