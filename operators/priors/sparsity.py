"""Networks that infer the sparsity-level maps of convolutional sparse coding: how much each code may matter, where."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import nn

from operators.dictionary import ConvolutionalDictionary
from operators.fields import pad_to_multiple, to_channels
from operators.priors.unet import UNet


class Estimate(NamedTuple):
    """What is known of images when their maps are inferred, at a scale of about one.

    Parameters
    ----------
    image
        Real or complex ``(*batch, y, x)``.
    low_pass
        The smooth part of Aᴴy, like the image.
    noise_std
        Noise level per real component, real ``batch``.
    low_pass_noise_std
        That of the smooth part, real ``batch``.
    """

    image: torch.Tensor
    low_pass: torch.Tensor
    noise_std: torch.Tensor
    low_pass_noise_std: torch.Tensor


class Maps(NamedTuple):
    """Thresholds Λ, real and not negative.

    Parameters
    ----------
    codes
        Of the codes, ``(*batch, filter, y, x)``.
    low_pass
        Of the smooth part, ``(*batch, y, x)``; ``None`` where it stays as it is.
    """

    codes: torch.Tensor
    low_pass: torch.Tensor | None = None


class SparsityMaps(nn.Module, ABC):
    """A network from what is known of an image to the maps Λ of thresholds."""

    @abstractmethod
    def forward(self, known: Estimate, dictionary: ConvolutionalDictionary) -> Maps:
        """Infer the maps.

        Parameters
        ----------
        known
            The image so far.
        dictionary
            D, for images of this size.

        Returns
        -------
        Maps
            Λ.
        """


class ImageMaps(SparsityMaps):
    """Maps of one fixed dictionary, from the image alone: the network V1 of the paper.

    It knows the filters by their place: another order, number or size of them makes its maps meaningless.

    Parameters
    ----------
    n_filters
        Number of filters of the dictionary it is trained with.
    n_channels
        2 for complex images, 1 for real ones.
    base, n_stages
        As in `operators.priors.unet.UNet`; 128 and 3 in the paper.

    References
    ----------
    Schulz et al., Learning spatially adaptive sparsity level maps for arbitrary convolutional dictionaries, 2026: the
    network of one dictionary, with thresholds 10 · softplus(u) of slope 1.5. Departure: 3 instead of 10, because
    images come at another scale, at which 10 would leave no codes to learn from.
    """

    def __init__(self, n_filters: int, *, n_channels: int = 2, base: int = 128, n_stages: int = 3) -> None:
        super().__init__()
        self.n_filters = n_filters
        self.network = UNet(n_channels, n_filters, base=base, n_stages=n_stages)

    def forward(self, known: Estimate, dictionary: ConvolutionalDictionary) -> Maps:
        """Infer the maps, see `SparsityMaps.forward`.

        Raises
        ------
        ValueError
            If the dictionary has another number of filters.
        """
        if dictionary.n_filters != self.n_filters:
            raise ValueError(
                f"The dictionary has {dictionary.n_filters} filters, but these maps were made for {self.n_filters}; "
                "choose maps per filter to exchange dictionaries."
            )
        u = self.network(to_channels(known.image))
        return Maps(_published_threshold(u).reshape(*known.image.shape[:-2], *dictionary.domain.shape))


class FilterMaps(SparsityMaps):
    """The map of each filter from that filter's correlation with the image: the network V3 of the paper.

    One network serves every filter, so that any dictionary goes, in any order.

    Parameters
    ----------
    n_channels
        2 for complex images, 1 for real ones.
    base, n_stages
        As in `operators.priors.unet.UNet`.

    References
    ----------
    As for `ImageMaps`; the network for arbitrary dictionaries, of 111,489 parameters as here by default.
    """

    def __init__(self, *, n_channels: int = 2, base: int = 32, n_stages: int = 2) -> None:
        super().__init__()
        self.network = UNet(n_channels, 1, base=base, n_stages=n_stages)

    def forward(self, known: Estimate, dictionary: ConvolutionalDictionary) -> Maps:
        """Infer the maps, see `SparsityMaps.forward`."""
        analysis = dictionary.adjoint(known.image)
        return Maps(_published_threshold(self.network(to_channels(analysis)).reshape(analysis.shape)))


class ExchangingMaps(SparsityMaps):
    """The map of each filter, with an eye on the others, on the image and on the noise; thresholds relative to noise.

    Λ_k = 3 σ ‖d_k‖ softplus(u_k), because σ ‖d_k‖ is the noise of a filter's correlation with the image: one network
    serves any number, size and order of filters, and any noise level. The smooth part is treated as one more filter,
    with a map of its own.

    u_k is inferred in two steps. A large `operators.priors.unet.UNet` looks at the image once and says, for each pixel,
    what a filter should be like to matter there: its channels are multiplied by weights that a small network makes of
    the `band_powers` of the filter. A small one, whose filters exchange their mean, looks at these products, at the
    correlation of each filter with the image and at its magnitude.

    Both work at half the resolution, where each 2×2 pixels are channels of one, which costs a quarter.

    Parameters
    ----------
    n_channels
        2 for complex images, 1 for real ones.
    base, n_stages
        Of the network of the filters, as in `operators.priors.unet.UNet`.
    context_base, n_context_stages
        Of the network of the image.
    """

    def __init__(
        self,
        *,
        n_channels: int = 2,
        base: int = 16,
        n_stages: int = 2,
        context_base: int = 48,
        n_context_stages: int = 3,
    ) -> None:
        super().__init__()
        n_products = _N_MATCHED * _N_FEATURES
        self.context = UNet(4 * (2 * n_channels + 1) + 1, n_products, base=context_base, n_stages=n_context_stages)
        self.wanted = nn.Sequential(nn.Linear(N_BANDS + 1, 48), nn.LeakyReLU(0.01), nn.Linear(48, n_products))
        self.network = UNet(4 * (n_channels + 1) + 1 + _N_MATCHED, 4, base=base, n_stages=n_stages, exchange=True)

    def forward(self, known: Estimate, dictionary: ConvolutionalDictionary) -> Maps:
        """Infer the maps, see `SparsityMaps.forward`."""
        image, low_pass, noise_std, low_pass_noise_std = known
        noise = noise_std.reshape(-1, 1, 1, 1)
        context = self.context(_with_constant(_halved(image, low_pass, image.abs()), noise))
        wanted = self.wanted(_descriptions(dictionary.filters).to(noise))
        matched = torch.einsum(
            "bmfyx,kmf->bkmyx",
            context.unflatten(1, (_N_MATCHED, _N_FEATURES)),
            wanted.unflatten(1, (_N_MATCHED, _N_FEATURES)) / math.sqrt(_N_FEATURES),
        )
        analysis = torch.cat((dictionary.adjoint(image), low_pass.unsqueeze(-3)), dim=-3)
        n_all = analysis.shape[-3]
        seen = _with_constant(_halved(analysis, analysis.abs()), noise.repeat_interleave(n_all, dim=0))
        u = nn.functional.pixel_shuffle(self.network(torch.cat((seen, matched.flatten(0, 1)), dim=1), n_all), 2)
        relative = 3 * nn.functional.softplus(u[..., : image.shape[-2], : image.shape[-1]].reshape(analysis.shape))
        of_codes, of_low_pass = relative[..., :-1, :, :], relative[..., -1, :, :]
        return Maps(
            noise_std[..., None, None, None] * filter_norms(dictionary) * of_codes,
            low_pass_noise_std[..., None, None] * of_low_pass,
        )


_N_MATCHED, _N_FEATURES = 8, 12  # products for each filter, and channels that are summed in each


def _halved(*images: torch.Tensor) -> torch.Tensor:
    """Images as channels at half the resolution, ``(image, 4 · channel, y / 2, x / 2)``."""
    channels = torch.cat([to_channels(image) for image in images], dim=1)
    return nn.functional.pixel_unshuffle(pad_to_multiple(channels, 2), 2)


def _with_constant(channels: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One more channel, of one value for each image."""
    return torch.cat((channels, value.expand(-1, 1, *channels.shape[-2:])), dim=1)


def _descriptions(filters: torch.Tensor) -> torch.Tensor:
    """What the network is told of each filter and, last, of the smooth part: ``(filter + 1, N_BANDS + 1)``."""
    powers = band_powers(filters)
    told = nn.functional.pad(powers, (0, 1, 0, 1))
    told[-1, -1] = 1
    return told


class ScalarMaps(SparsityMaps):
    """One learned number for all codes: Λ_k = λ σ ‖d_k‖, σ the noise level; classical convolutional sparse coding.

    Parameters
    ----------
    level
        λ at the start, positive.

    Raises
    ------
    ValueError
        If the level is not positive and finite.
    """

    def __init__(self, level: float = 2.0) -> None:
        super().__init__()
        if not (level > 0 and math.isfinite(level)):
            raise ValueError(f"level is {level}; expected a positive, finite number.")
        self.log_level = nn.Parameter(torch.tensor(math.log(level)))

    def forward(self, known: Estimate, dictionary: ConvolutionalDictionary) -> Maps:
        """Infer the maps, see `SparsityMaps.forward`."""
        levels = self.log_level.exp() * known.noise_std[..., None, None, None] * filter_norms(dictionary)
        return Maps(levels.expand(*known.image.shape[:-2], *dictionary.domain.shape))


def filter_norms(dictionary: ConvolutionalDictionary) -> torch.Tensor:
    """‖d_k‖₂ of each filter.

    Parameters
    ----------
    dictionary
        D.

    Returns
    -------
    torch.Tensor
        Real ``(filter, 1, 1)``, which broadcasts with codes.
    """
    return torch.linalg.vector_norm(dictionary.filters, dim=(-2, -1)).reshape(-1, 1, 1)


def band_powers(filters: torch.Tensor) -> torch.Tensor:
    """How the power of each filter is spread over rings and directions of spatial frequency.

    The rings are triangles of width 0.4 around 0.1, 0.3, … 1.1 of the largest frequency along an axis, the directions
    cos⁴ around 0°, 45°, 90° and 135° from y. Neither size, position nor strength of a filter matters.

    Parameters
    ----------
    filters
        Real or complex ``(filter, ky, kx)``.

    Returns
    -------
    torch.Tensor
        Real ``(filter, N_BANDS)``, ring by ring; shares of the power, zero for a filter that is zero.

    Examples
    --------
    >>> along_x = torch.tensor([[[1.0, -1.0]]])
    >>> band_powers(along_x).unflatten(1, (6, 4)).sum(dim=1).round(decimals=2)
    tensor([[0.1600, 0.3600, 0.4600, 0.3600]])
    """
    sizes = [max(32, 2 * size) for size in filters.shape[-2:]]  # of a grid of frequencies that is fine enough for all
    power = torch.fft.fft2(filters.detach(), s=sizes).abs().square()
    along_y, along_x = (2 * torch.fft.fftfreq(size, dtype=power.dtype, device=power.device) for size in sizes)
    radius = (along_y[:, None].square() + along_x.square()).sqrt()
    angle = torch.atan2(along_x.expand_as(radius), along_y[:, None].expand_as(radius))
    rings = torch.stack([(1 - (radius - centre).abs() / 0.2).clamp_min(0) for centre in _RINGS])
    directions = torch.stack([(angle - math.pi * i / _N_DIRECTIONS).cos() ** 4 for i in range(_N_DIRECTIONS)])
    directions[:, 0, 0] = 3 / 8  # no frequency has no direction, and so the mean of all
    total = power.sum(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(power.dtype).tiny)
    return torch.einsum("kyx,ryx,dyx->krd", power / total, rings, directions).flatten(1)


_RINGS, _N_DIRECTIONS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.1), 4
N_BANDS = len(_RINGS) * _N_DIRECTIONS


def _published_threshold(u: torch.Tensor) -> torch.Tensor:
    # 10 in the paper, where the largest magnitude of an image is 10; it is about 3 where the root mean square is 1.
    return 3 * nn.functional.softplus(u, beta=1.5)
