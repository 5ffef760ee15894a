"""Networks that infer the sparsity-level maps of convolutional sparse coding: how much each code may matter, where."""

import math
from abc import ABC, abstractmethod

import torch
from torch import nn

from operators.dictionary import ConvolutionalDictionary
from operators.fields import pad_to_multiple, to_channels
from operators.priors.unet import UNet


class SparsityMaps(nn.Module, ABC):
    """A network from what is known of an image to the map Λ of thresholds of its codes."""

    @abstractmethod
    def forward(self, x: torch.Tensor, dictionary: ConvolutionalDictionary, noise_std: torch.Tensor) -> torch.Tensor:
        """Infer the maps.

        Parameters
        ----------
        x
            Image that is known so far, real or complex ``(*batch, y, x)``, at a scale of about one.
        dictionary
            D, for images of this size.
        noise_std
            Noise level per real component, real ``batch``.

        Returns
        -------
        torch.Tensor
            Λ, real and positive, ``(*batch, filter, y, x)``.
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

    def forward(self, x: torch.Tensor, dictionary: ConvolutionalDictionary, noise_std: torch.Tensor) -> torch.Tensor:
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
        maps = self.network(to_channels(x)).reshape(*x.shape[:-2], self.n_filters, *x.shape[-2:])
        return _published_threshold(maps)


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

    def forward(self, x: torch.Tensor, dictionary: ConvolutionalDictionary, noise_std: torch.Tensor) -> torch.Tensor:
        """Infer the maps, see `SparsityMaps.forward`."""
        analysis = dictionary.adjoint(x)
        return _published_threshold(self.network(to_channels(analysis)).reshape(analysis.shape))


class ExchangingMaps(SparsityMaps):
    """The map of each filter, with an eye on the others, on the image and on the noise; thresholds relative to noise.

    Λ_k = 3 σ ‖d_k‖ softplus(u_k), because σ ‖d_k‖ is the noise of a filter's correlation with the image: one network
    serves any number, size and order of filters, and any noise level. u_k comes from a `operators.priors.unet.UNet`
    whose filters exchange their mean. It sees, for each filter, the correlation with the image and its magnitude, the
    magnitude of the image, the noise level, and the mean frequency of the filter.

    The network works at half the resolution, where each 2×2 pixels are channels of one, which costs a quarter.

    Parameters
    ----------
    n_channels
        2 for complex images, 1 for real ones.
    base, n_stages
        As in `operators.priors.unet.UNet`.
    """

    def __init__(self, *, n_channels: int = 2, base: int = 16, n_stages: int = 2) -> None:
        super().__init__()
        self.network = UNet(4 * (n_channels + 2) + 2, 4, base=base, n_stages=n_stages, exchange=True)

    def forward(self, x: torch.Tensor, dictionary: ConvolutionalDictionary, noise_std: torch.Tensor) -> torch.Tensor:
        """Infer the maps, see `SparsityMaps.forward`."""
        analysis = dictionary.adjoint(x)  # (*batch, filter, y, x)
        noise = noise_std.reshape(*noise_std.shape, 1, 1, 1)
        magnitudes = analysis.abs(), x.abs().unsqueeze(-3).expand(analysis.shape)
        seen = torch.cat((to_channels(analysis), *(m.reshape(-1, 1, *x.shape[-2:]) for m in magnitudes)), dim=1)
        seen = nn.functional.pixel_unshuffle(pad_to_multiple(seen, 2), 2)  # (batch · filter, channel, y, x)
        frequencies = mean_frequency(dictionary.filters).reshape(-1, 1, 1).to(noise)
        known = (
            c.expand(*analysis.shape[:-2], 1, 1).reshape(-1, 1, 1, 1).expand(-1, 1, *seen.shape[-2:])
            for c in (noise, frequencies)
        )
        u = nn.functional.pixel_shuffle(self.network(torch.cat((seen, *known), dim=1), dictionary.n_filters), 2)
        relative = nn.functional.softplus(u[..., : x.shape[-2], : x.shape[-1]].reshape(analysis.shape))
        return 3 * noise * filter_norms(dictionary) * relative


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

    def forward(self, x: torch.Tensor, dictionary: ConvolutionalDictionary, noise_std: torch.Tensor) -> torch.Tensor:
        """Infer the maps, see `SparsityMaps.forward`."""
        levels = self.log_level.exp() * noise_std.reshape(*noise_std.shape, 1, 1, 1) * filter_norms(dictionary)
        return levels.expand(*x.shape[:-2], *dictionary.domain.shape)


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


def mean_frequency(filters: torch.Tensor) -> torch.Tensor:
    """Root mean square frequency of each filter, as a fraction of the largest along an axis.

    Parameters
    ----------
    filters
        Real or complex ``(filter, ky, kx)``.

    Returns
    -------
    torch.Tensor
        Real ``(filter,)``, from 0 to √2.

    Examples
    --------
    >>> mean_frequency(torch.tensor([[[1.0, -1.0]], [[1.0, 1.0]]])).round(decimals=2)
    tensor([0.9300, 0.6800])
    """
    sizes = [max(32, 2 * size) for size in filters.shape[-2:]]  # of a grid of frequencies that is fine enough for all
    power = torch.fft.fft2(filters.detach(), s=sizes).abs().square()
    along_y, along_x = (
        (2 * torch.fft.fftfreq(size, dtype=power.dtype, device=power.device)).square() for size in sizes
    )
    total = power.sum(dim=(-2, -1)).clamp_min(torch.finfo(power.dtype).tiny)
    return ((power * (along_y[:, None] + along_x)).sum(dim=(-2, -1)) / total).sqrt()


def _published_threshold(u: torch.Tensor) -> torch.Tensor:
    # 10 in the paper, where the largest magnitude of an image is 10; it is about 3 where the root mean square is 1.
    return 3 * nn.functional.softplus(u, beta=1.5)
