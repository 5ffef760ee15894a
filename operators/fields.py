"""What every prior does to images: channels for networks and back, one scale per sample, the split by frequency."""

import torch

from operators.space import inner


def to_channels(x: torch.Tensor) -> torch.Tensor:
    """Images as a list of real channels.

    Parameters
    ----------
    x
        Real or complex ``(*batch, y, x)``.

    Returns
    -------
    torch.Tensor
        Real ``(image, channel, y, x)``, all leading dimensions as one: the real and the imaginary part of a complex
        image, one channel of a real one.

    Examples
    --------
    >>> to_channels(torch.zeros(3, 4, 5, 6, dtype=torch.complex64)).shape
    torch.Size([12, 2, 5, 6])
    """
    images = x.reshape(-1, *x.shape[-2:])
    return torch.view_as_real(images).movedim(-1, 1) if x.is_complex() else images.unsqueeze(1)


def from_channels(channels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_channels`.

    Parameters
    ----------
    channels
        Real ``(image, channel, y, x)``.
    like
        Image of the shape and field to return, ``(*batch, y, x)``.

    Returns
    -------
    torch.Tensor
        Like ``like``.

    Examples
    --------
    >>> x = torch.randn(2, 3, 4, dtype=torch.complex64)
    >>> bool((from_channels(to_channels(x), x) == x).all())
    True
    """
    if not like.is_complex():
        return channels.reshape(like.shape)
    return torch.view_as_complex(channels.movedim(1, -1).contiguous()).reshape(like.shape)


def pad_to_multiple(channels: torch.Tensor, multiple: int) -> torch.Tensor:
    """Extend images at the bottom and the right, by their edges, to sizes that a network can halve.

    Parameters
    ----------
    channels
        Real ``(image, channel, y, x)``.
    multiple
        What both sizes become a multiple of. Undo it by ``[..., :y, :x]``.

    Returns
    -------
    torch.Tensor
        The extended images.

    Examples
    --------
    >>> pad_to_multiple(torch.zeros(1, 1, 5, 8), 4).shape
    torch.Size([1, 1, 8, 8])
    """
    missing = [-n % multiple for n in channels.shape[-2:]]
    if not any(missing):
        return channels
    return torch.nn.functional.pad(channels, (0, missing[1], 0, missing[0]), mode="replicate")


def reflected(channels: torch.Tensor, before: int, sizes: tuple[int, int]) -> torch.Tensor:
    """Images continued by reflection at their edge pixels, as often as it takes.

    Parameters
    ----------
    channels
        Real ``(image, channel, y, x)``.
    before
        Pixels to add at the top and at the left.
    sizes
        Height and width of the result.

    Returns
    -------
    torch.Tensor
        Images whose pixel (before, before) is the first of ``channels``.

    Examples
    --------
    >>> reflected(torch.arange(3.0).reshape(1, 1, 1, 3), 1, (1, 8))
    tensor([[[[1., 0., 1., 2., 1., 0., 1., 2.]]]])
    """
    for dim, size in zip((-2, -1), sizes, strict=True):
        n = channels.shape[dim]
        places = (torch.arange(size, device=channels.device) - before).remainder(max(2 * n - 2, 1))
        channels = channels.index_select(dim, torch.minimum(places, (2 * n - 2) - places).clamp_min(0))
    return channels


def root_mean_square(x: torch.Tensor, n_dims: int) -> torch.Tensor:
    """Scale of each sample, by which data and estimates are divided before a network and multiplied after it.

    Parameters
    ----------
    x
        Real or complex ``(*batch, *shape)``.
    n_dims
        Number of trailing dimensions of one sample.

    Returns
    -------
    torch.Tensor
        Real ``batch``: √(mean |x|²), or 1 where all entries are zero.

    Examples
    --------
    >>> root_mean_square(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), 1)
    tensor([3.5355, 1.0000])
    """
    power = inner(x, x, n_dims).real / x.shape[-n_dims:].numel()
    return torch.where(power > 0, power, torch.ones_like(power)).sqrt()


def smoothing_gain(like: torch.Tensor, smoothness: float | torch.Tensor) -> torch.Tensor:
    """(I + β GᴴG)⁻¹ in Fourier space, G the circular differences: what a smooth part keeps of each frequency.

    Parameters
    ----------
    like
        Image ``(*batch, y, x)`` whose shape, precision and device are taken.
    smoothness
        β, in pixels², positive: a number, or real ``()``.

    Returns
    -------
    torch.Tensor
        Real ``(y, x)``, from 0 to 1, in the order of ``torch.fft.fft2``.

    Examples
    --------
    >>> smoothing_gain(torch.zeros(1, 4), 1.0)
    tensor([[1.0000, 0.3333, 0.2000, 0.3333]])
    """
    waves = [2 * torch.pi * torch.fft.fftfreq(n, dtype=torch.float64, device=like.device) for n in like.shape[-2:]]
    eigenvalues = (2 - 2 * waves[0].cos())[:, None] + (2 - 2 * waves[1].cos())
    return 1 / (1 + smoothness * eigenvalues.to(like.real.dtype))
