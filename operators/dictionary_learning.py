"""On-line convolutional dictionary learning: filters of which few, placed anywhere, make up images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from operators.dictionary import ConvolutionalDictionary
from operators.fields import root_mean_square, smoothing_gain
from operators.proximal import soft_threshold
from operators.solvers import fista

Progress = Callable[[int, int], None]
Callback = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True, slots=True, eq=False)
class LearnedDictionary:
    """Filters, and how learning went.

    Parameters
    ----------
    filters
        Float32 ``(filter, y, x)``, each of zero mean and unit norm, the most used first.
    objective
        For each step (½‖D s − x‖² + λ‖s‖₁)/(½‖x‖²) of the crops x that were drawn, with the filters before the step;
        without any codes it is 1. Float64 ``(step,)``.
    density
        For each step the fraction of the codes that are not zero. Float64 ``(step,)``.
    n_reseeded
        How often a filter that served nothing was replaced.
    """

    filters: torch.Tensor
    objective: torch.Tensor
    density: torch.Tensor
    n_reseeded: int


def high_pass(images: torch.Tensor, smoothness: float) -> torch.Tensor:
    """What convolutional sparse coding leaves to the codes: x − (I + β GᴴG)⁻¹ x, G the circular differences.

    Parameters
    ----------
    images
        x, real or complex ``(*batch, y, x)``.
    smoothness
        β, in pixels², positive; the larger, the lower the frequencies that are kept.

    Returns
    -------
    torch.Tensor
        Like the images; its mean is zero.

    Raises
    ------
    ValueError
        If the smoothness is not positive.
    """
    if not smoothness > 0:
        raise ValueError(f"smoothness is {smoothness}; expected a positive number.")
    passed = torch.fft.ifft2(torch.fft.fft2(images) * (1 - smoothing_gain(images, smoothness)))
    return passed if images.is_complex() else passed.real


def learn_dictionary(
    images: torch.Tensor,
    *,
    n_filters: int,
    filter_size: int,
    sparsity: float,
    n_steps: int,
    seed: int,
    progress: Progress | None = None,
    callback: Callback | None = None,
) -> LearnedDictionary:
    """Learn filters d_k with which crops x of the images have small ½‖Σ_k d_k ⊛ s_k − x‖² + λ‖s‖₁.

    Each step draws a few crops, more often where there is something to see, finds their codes s by FISTA, adds the
    correlations of the codes with one another and with the crops to what it remembers, and lowers the mean objective
    over all that is remembered, filter by filter.

    Parameters
    ----------
    images
        Real ``(image, y, x)``, high-passed: see `high_pass`. Each is divided by its root mean square first.
    n_filters
        Number of filters.
    filter_size
        Their size along each side, odd.
    sparsity
        λ, in units of the root mean square of an image.
    n_steps
        Number of steps.
    seed
        Of the generator of crops; the global one is left alone.
    progress
        Called with (steps done, steps in all).
    callback
        Called with the number of steps done and the filters ``(filter, y, x)`` so far.

    Returns
    -------
    LearnedDictionary
        The filters and the history.

    Raises
    ------
    TypeError
        If the images are not real floating-point.
    ValueError
        If the images have another shape, are smaller than a filter, not finite or all zero, or an option is out of its
        range.

    References
    ----------
    Mairal, Bach, Ponce and Sapiro, Online learning for matrix factorization and sparse coding, 2010: the surrogate, its
    minimisation by block-coordinate descent, and forgetting the past. Liu, Garcia-Cardona, Wohlberg and Yin, First- and
    second-order methods for online convolutional dictionary learning, 2018: the same with convolutions, on crops.
    Departures: the correlations are kept at the few lags that the filters' size needs, not in Fourier space, so that
    memory does not depend on the crops; a filter has norm 1, not at most 1, and zero mean; crops fade out at their
    edges, so that a circular convolution meets no jump there; a filter without codes is replaced.
    """
    _check(images, n_filters, filter_size, sparsity, n_steps)
    images = images / root_mean_square(images, 2)[:, None, None]
    images = images[images.flatten(1).any(dim=1)]
    generator = torch.Generator().manual_seed(seed)
    crop_size = max(_CROP_SIZE, _CROP_PER_FILTER * filter_size)
    filters = _seeds(images, n_filters, filter_size, generator)
    memory = _Memory(filters)
    n_unused = torch.zeros(n_filters, dtype=torch.long)
    history = []
    n_reseeded = 0
    for step in range(n_steps):
        crops = _faded(_drawn(images, _N_CROPS, (crop_size, crop_size), generator), images.shape[1:], filter_size)
        D = ConvolutionalDictionary(filters, tuple(crops.shape[1:]), field="real")
        codes = fista(D, crops, lambda v, t: soft_threshold(v, sparsity * t), n_iterations=_N_CODING_STEPS).value
        residual = crops - D(codes)
        history.append(_shares(residual, codes, crops, sparsity))
        memory.add(codes, crops, kept=(1 - 1 / (step + 1)) ** _FORGETTING)
        filters = memory.improved(filters)
        if step < _LAST_CHANGE * n_steps:
            filters = memory.centred(filters)
        n_unused = torch.where(codes.abs().amax(dim=(0, 2, 3)).cpu() > 0, 0, n_unused + 1)
        dead = (n_unused >= _PATIENCE).nonzero().flatten()
        if len(dead) and step < _LAST_CHANGE * n_steps:
            filters[dead] = _seeds(residual, len(dead), filter_size, generator)
            memory.forget(dead)
            n_unused[dead] = 0
            n_reseeded += len(dead)
        if callback is not None:
            callback(step + 1, filters.clone())
        if progress is not None:
            progress(step + 1, n_steps)
    objective, density = torch.tensor(history, dtype=torch.float64).reshape(-1, 2).T
    return LearnedDictionary(filters[memory.energy.argsort(descending=True)].float(), objective, density, n_reseeded)


_CROP_SIZE, _CROP_PER_FILTER = 64, 4  # pixels; the least, in sizes of a filter
_N_CROPS = 2
_N_CODING_STEPS = 80  # after 25, three times as many codes are not yet zero, and filters came out 1.8 dB worse
_N_SWEEPS = 3
_FORGETTING = 10.0  # half of what is remembered is from the last 6 % of the steps
_PATIENCE = 5  # steps that a filter may go without codes
_LAST_CHANGE = 0.75  # of the steps: filters are moved and replaced until then, so that they settle


class _Memory:
    """Correlations of codes with one another and with images, at the lags u that filters of this size meet.

    With r_kl[u] = Σ_p s_k[p] s_l[p + u] and b_k[u] = Σ_p s_k[p] x[p + u], the derivative of ½‖D s − x‖² by d_k[u] is
    Σ_l (r_kl ∗ d_l)[u] − b_k[u].
    """

    def __init__(self, filters: torch.Tensor) -> None:
        n, size = filters.shape[:2]
        self._between = filters.new_zeros(n, n, 2 * size - 1, 2 * size - 1)
        self._with_images = filters.new_zeros(n, size, size)

    @property
    def energy(self) -> torch.Tensor:
        """Of each filter's codes, ``(filter,)``."""
        centre = self._between.shape[-1] // 2
        return self._between[:, :, centre, centre].diagonal()

    def add(self, codes: torch.Tensor, images: torch.Tensor, *, kept: float) -> None:
        """Take in codes ``(image, filter, y, x)``, and keep so much of what was there before."""
        grid, size = images.shape[1:], self._with_images.shape[-1]
        spectra = torch.fft.rfft2(codes).movedim(1, 0)
        self._between *= kept
        self._with_images *= kept
        image_spectra = torch.fft.rfft2(images)
        for k, conjugate in enumerate(spectra.conj()):
            with_others = (conjugate * spectra[k:]).sum(dim=1)
            correlation = _around_zero(torch.fft.irfft2(with_others, s=grid), size - 1)
            self._between[k, k:] += correlation
            self._between[k + 1 :, k] += correlation[1:].flip(-2, -1)
            with_images = torch.fft.irfft2((conjugate * image_spectra).sum(dim=0), s=grid)
            self._with_images[k] += _around_zero(with_images, size // 2)

    def forget(self, which: torch.Tensor) -> None:
        """Drop what is remembered of some filters."""
        self._between[which] = 0
        self._between[:, which] = 0
        self._with_images[which] = 0

    def centred(self, filters: torch.Tensor) -> torch.Tensor:
        """Filters moved by a pixel where their energy lies more than that off their centre, as the memory is then."""
        size = filters.shape[-1]
        from_centre = torch.arange(size, dtype=filters.dtype, device=filters.device) - size // 2
        energy = filters.square()
        filters = filters.clone()
        for d in (1, 2):
            places = energy.sum(dim=3 - d) @ from_centre
            for k in (places.abs() > 1).nonzero().flatten().tolist():
                towards = -1 if places[k] > 0 else 1
                filters[k] = _normalised(_moved(filters[k], towards, d - 3))
                self._between[k] = _moved(self._between[k], towards, d - 3)
                self._between[:, k] = _moved(self._between[:, k], -towards, d - 3)
                self._with_images[k] = _moved(self._with_images[k], towards, d - 3)
        return filters

    def improved(self, filters: torch.Tensor) -> torch.Tensor:
        """Filters with a smaller objective over what is remembered: projected gradient steps, one filter at a time."""
        filters = filters.clone()
        curvature = torch.stack([own.abs().sum() for own in self._between.diagonal().movedim(-1, 0)])
        for _ in range(_N_SWEEPS):
            for k in curvature.nonzero().flatten().tolist():
                predicted = torch.nn.functional.conv2d(self._between[k, None], filters.flip(-2, -1)[None])[0, 0]
                filters[k] = _normalised(filters[k] - (predicted - self._with_images[k]) / curvature[k])
        return filters


def _drawn(images: torch.Tensor, n: int, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Crops ``(n, y, x)`` of at most this size, whose centres are more likely where images are far from zero."""
    shape = images.shape[1:]
    weights = images.detach().abs().cpu()
    chosen = torch.multinomial(weights.sum(dim=(1, 2)), n, replacement=True, generator=generator).tolist()
    crops = []
    for index in chosen:
        centre = int(torch.multinomial(weights[index].flatten(), 1, generator=generator))
        spans = [
            slice(start := max(0, min(place - extent // 2, total - extent)), start + extent)
            for place, extent, total in zip(divmod(centre, shape[1]), size, shape, strict=True)
        ]
        crops.append(images[index, spans[0], spans[1]])
    return torch.stack(crops)


def _seeds(images: torch.Tensor, n: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Filters to begin with: patches of the images, or noise where a patch is flat."""
    patches = _drawn(images, n, (size, size), generator)
    flat = patches.amax(dim=(1, 2)) == patches.amin(dim=(1, 2))
    noise = torch.randn(int(flat.sum()), size, size, generator=generator, dtype=images.dtype)
    patches[flat] = noise.to(images.device)
    return _normalised(patches)


def _faded(crops: torch.Tensor, image_shape: torch.Size, margin: int) -> torch.Tensor:
    """Crops that fall to zero within a margin where they were cut; an image that is whole is left as it is."""
    for d, n_image in zip((-2, -1), image_shape, strict=True):
        n = crops.shape[d]
        if n < n_image:
            from_edge = torch.arange(n, dtype=crops.dtype, device=crops.device) + 0.5
            from_edge = torch.minimum(from_edge, from_edge.flip(0)).clamp(max=margin)
            window = (torch.pi / 2 * from_edge / margin).sin().square()
            crops = crops * (window[:, None] if d == -2 else window)
    return crops


def _normalised(filters: torch.Tensor) -> torch.Tensor:
    """Filters ``(*batch, y, x)`` without their mean, of norm 1."""
    filters = filters - filters.mean(dim=(-2, -1), keepdim=True)
    return filters / filters.square().sum(dim=(-2, -1), keepdim=True).sqrt()


def _moved(x: torch.Tensor, by: int, dim: int) -> torch.Tensor:
    """Entries moved by one along a dimension, with zero where nothing comes from."""
    x = x.roll(by, dims=dim)
    x.select(dim, 0 if by > 0 else -1).zero_()
    return x


def _shares(residual: torch.Tensor, codes: torch.Tensor, crops: torch.Tensor, sparsity: float) -> tuple[float, float]:
    """Objective relative to that of no codes, and fraction of codes that are not zero."""
    objective = residual.square().sum() / 2 + sparsity * codes.abs().sum()
    return float(2 * objective / crops.square().sum()), float(codes.count_nonzero() / codes.numel())


def _around_zero(correlation: torch.Tensor, radius: int) -> torch.Tensor:
    """Lags from −radius to radius of circular correlations ``(*batch, y, x)``."""
    rolled = correlation.roll((radius, radius), dims=(-2, -1))
    return rolled[..., : 2 * radius + 1, : 2 * radius + 1]


def _check(images: torch.Tensor, n_filters: int, filter_size: int, sparsity: float, n_steps: int) -> None:
    if not images.is_floating_point():
        raise TypeError(f"images are {images.dtype}; expected real floating-point images, such as magnitudes.")
    if images.ndim != 3 or not images.numel():
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (image, y, x).")
    if not images.isfinite().all():
        raise ValueError("images hold values that are not finite; replace them first.")
    if not images.any():
        raise ValueError("images are all zero; there is nothing to learn from.")
    if filter_size < 3 or filter_size % 2 == 0:
        raise ValueError(f"filter_size is {filter_size}; expected an odd number of pixels from 3 on.")
    if 2 * filter_size > min(images.shape[1:]):
        raise ValueError(f"images are {tuple(images.shape[1:])}; expected at least twice the filters' {filter_size}.")
    if n_filters < 1 or n_steps < 1:
        raise ValueError(f"n_filters is {n_filters} and n_steps {n_steps}; expected at least one of each.")
    if not 0 < sparsity < float("inf"):
        raise ValueError(f"sparsity is {sparsity}; expected a positive number.")
