"""Denoising by groups of similar patches: which part of it pays, at equal parameters and at equal compute.

Run ``MRCTRECON_DATA=folder python -W ignore benchmarks/deepgsr_denoise.py -o FOLDER``. It measures what a step of every
network costs, lets each choose its learning rate, trains what is not trained yet, all networks with the first seed
before any with the second, measures each on the test images, and after each writes ``FOLDER/summary.md`` and
``FOLDER/example.jpg`` with what there is and what is missing. Killed and begun again, it goes on. ``--report`` trains
nothing, ``--only`` and ``--seeds`` choose. Two processes may work on one folder once ``costs.json`` is there, if no
contestant is trained in both.

The contestants, the plan that they share, and who is in which set are in ``benchmarks/configs/denoise.toml``. With
``--quick``, one network of each kind makes two steps on the built-in phantom.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import pywt
import torch
from harness import report_quality
from matplotlib.figure import Figure
from skimage import data as natural_images
from skimage import restoration
from torch import nn

import ctrecon.config
import mrirecon.config
from ctrecon.io.images import read_hu_image
from mrirecon.datasets import load_slices
from mrirecon.phantom import brain_phantom
from operators.checkpoint import as_json, read_tensors, write_tensors
from operators.configuration import read_config
from operators.errors import InputError
from operators.functionals import psnr, ssim_gaussian
from operators.image_sources import chosen_sources, data_folder, spread
from operators.io.files import replacing
from operators.learning import FitResult, TrainingPlan, fit
from operators.priors.deepgsr import GroupSparsePrior
from operators.priors.group_matching import N_BANDS, Matching
from operators.priors.prior import Prior
from operators.priors.published_deepgsr import PublishedDeepGSR
from operators.priors.shrinkers import Groups, LowRankShrinker, Shrinker
from operators.priors.unet import UNet

CONFIG = Path(__file__).parent / "configs" / "denoise.toml"
HU_WINDOW = (-1000.0, 1000.0)
GRAY_LEVELS = 255  # in which σ is given
NOISE_SEED = 20261120  # of the test images, the same for everybody
LEAST_CONTRAST, N_DRAWS = 0.02, 10  # standard deviation of a crop that is worth training on; how often one is drawn
LEAST_BRIGHT, DARK = 0.05, 0.1  # share of the pixels of a test image that are not dark
TUNING_IMAGES = 4
N_PILOT_BATCHES = 16
SHOWN_PIXELS, PANEL_PIXELS = 96, 120
GROUND, TEXT = "#101214", "#e8e8e8"

Method = Callable[[np.ndarray, float, float], np.ndarray]
Rows = list[dict[str, Any]]
Build = Callable[..., nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A network, or a classical method.

    Parameters
    ----------
    name
        How it is called in the tables.
    kind
        One of `NETWORKS` or of `CLASSICAL`.
    words
        What it is, in a few words.
    arguments
        Of the function that builds it.
    same
        Whether it is trained for as many steps as the first contestant, or for as many seconds.
    """

    name: str
    kind: str
    words: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    same: Literal["steps", "seconds"] = "steps"

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its result, but for the plan."""
        return {"kind": self.kind, "arguments": dict(self.arguments)}

    @property
    def is_trained(self) -> bool:
        """Whether it is a network."""
        return self.kind in NETWORKS


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """A set of test images: people of the two configurations of data, or images that come with scikit-image.

    Parameters
    ----------
    name
        How it is called in the tables.
    modality
        Where the images are from.
    images
        The people, or the names of the natural images.
    in_distribution
        Whether training saw such images, of other people.
    kernels
        Which images of CT; all by default.
    """

    name: str
    modality: Literal["ct", "mr", "natural", "phantom"]
    images: tuple[str, ...]
    in_distribution: bool
    kernels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is compared, and how.

    Parameters
    ----------
    ct, mr
        Files with the images and with who is in training, relative to the configuration.
    mr_matrix
        Pixels along each side of an MR image.
    batch_size, crop
        Number of crops of a step, and their side in pixels.
    highest_sigma
        σ of training is drawn uniformly from 0 up to it, in gray levels of 255.
    sigmas
        Those of the test.
    seeds
        Of the trainings; for each of them all networks are trained.
    n_images
        Images of each test set, as many of each of its people.
    training
        The plan that all share but for the learning rate; contestants with the same seconds make another number of
        steps.
    learning_rates
        What each network chooses from, by short trainings with the first seed.
    n_pilot_steps
        Number of steps of these.
    tests
        The test sets.
    contestants
        The first one is what the others are compared with.
    shown
        Names of those in the picture.
    """

    ct: str
    mr: str
    mr_matrix: int
    batch_size: int
    crop: int
    highest_sigma: float
    sigmas: tuple[float, ...]
    seeds: tuple[int, ...]
    n_images: int
    training: TrainingPlan
    learning_rates: tuple[float, ...]
    n_pilot_steps: int
    tests: tuple[ImageSet, ...]
    contestants: tuple[Contestant, ...]
    shown: tuple[str, ...]

    def __post_init__(self) -> None:
        names = [contestant.name for contestant in self.contestants]
        strangers = set(self.shown) - set(names)
        if len(set(names)) < len(names) or strangers:
            raise InputError(f"Of the names {', '.join(names)}, one comes twice, or {strangers} is not among them.")
        for contestant in self.contestants:
            if contestant.kind not in (*NETWORKS, *CLASSICAL):
                raise InputError(f"{contestant.name!r} is of the kind {contestant.kind!r}, which does not exist.")
        if not self.contestants[0].is_trained:
            raise InputError(f"{names[0]!r} comes first, but only a network can be what the others are compared with.")

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides a training beside the contestant and its plan."""
        names = ("ct", "mr", "mr_matrix", "batch_size", "crop", "highest_sigma")
        return {name: getattr(self, name) for name in names}


# Networks: all are told σ, and map (image, y, x) and (image,) to (image, y, x).


class TakenAsPrior(nn.Module):
    """A prior as a denoiser: one step."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, x: torch.Tensor, noise_std: torch.Tensor) -> torch.Tensor:
        """Denoise."""
        denoised: torch.Tensor = self.prior(x, self.prior.init(x, noise_std))[0]
        return denoised


class TakenAsNoise(nn.Module):
    """x + σ N(x, σ), as in the group prior, with a network N from two channels to one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor, noise_std: torch.Tensor) -> torch.Tensor:
        """Denoise."""
        level = noise_std.reshape(-1, 1, 1)
        channels = torch.stack((x, level.expand_as(x)), dim=1)
        return x + level * self.network(channels.contiguous(memory_format=torch.channels_last)).squeeze(1)


class ToldAsImaginary(nn.Module):
    """A prior for complex images, whose imaginary part is σ on the way in and is dropped on the way out."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, x: torch.Tensor, noise_std: torch.Tensor) -> torch.Tensor:
        """Denoise."""
        told = torch.complex(x, noise_std.reshape(-1, 1, 1).expand_as(x).contiguous())
        denoised: torch.Tensor = self.prior(told, self.prior.init(told, noise_std))[0].real
        return denoised


class MixingAlone(nn.Module):
    """A block of the group prior without its groups: nothing of them is computed, and they have no parameters."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.mixing = block.mixing

    def forward(self, bands: torch.Tensor, grid: Any, noise_std: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Change of the bands, and no groups."""
        return self.mixing(bands, noise_std), None


class OnPhases(nn.Module):
    """A block that gets the four sampling phases of the features where it would get their four Haar bands."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        filters = torch.tensor(pywt.Wavelet("haar").filter_bank[2:], dtype=torch.float32)
        self.register_buffer("bands_of_phases", torch.kron(filters, filters), persistent=False)  # orthonormal

    def forward(self, bands: torch.Tensor, grid: Any, noise_std: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Change of the bands, and the groups behind it."""
        change, groups = self.block(_mixed(self.bands_of_phases.mT, bands), grid, noise_std)
        return _mixed(self.bands_of_phases, change), groups


class MatchingByBand(nn.Module):
    """Each band finds members of its own; the embedding has as many parameters as that of all bands together."""

    def __init__(self, n_channels: int, n_members: int) -> None:
        super().__init__()
        self.bands = nn.ModuleList(Matching(n_channels, n_members) for _ in range(N_BANDS))
        for matching in self.bands:
            matching.embed = nn.Linear(n_channels, matching.embed.out_features, bias=False)
            matching.query, matching.key = self.bands[0].query, self.bands[0].key
            matching.sharpness = self.bands[0].sharpness

    def forward(self, tokens: torch.Tensor, noise_std: torch.Tensor) -> list[Groups]:
        """The groups of each band, with one band each."""
        return [matching(tokens[:, i : i + 1], noise_std) for i, matching in enumerate(self.bands)]


class LowRankByBand(nn.Module):
    """What `LowRankShrinker` does, for groups of `MatchingByBand`."""

    def __init__(self, n_members: int, rank: int) -> None:
        super().__init__()
        self.bands = nn.ModuleList(LowRankShrinker(n_members, 1, rank=rank) for _ in range(N_BANDS))
        for shrinker in self.bands:
            shrinker.mixtures = self.bands[0].mixtures

    def forward(self, groups: Sequence[Groups]) -> torch.Tensor:
        """Shrink and aggregate."""
        return torch.cat([shrinker(part) for shrinker, part in zip(self.bands, groups, strict=True)], dim=1)


class NoShrinkage(Shrinker):
    """X̂ = X: attention to similar tokens, and nothing else."""

    def forward(self, groups: Groups) -> torch.Tensor:
        """Aggregate, see `Shrinker.forward`."""
        return groups.weighted_sum(groups.weights)

    def shrunk(self, groups: Groups) -> torch.Tensor:
        """The members, see `Shrinker.shrunk`."""
        return groups.gathered()


class ConstantGates(Shrinker):
    """X̂ = diag(γ) X with learned gates γ for each place in the order of similarity, the same for all groups."""

    def __init__(self, n_members: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_members))

    def forward(self, groups: Groups) -> torch.Tensor:
        """Aggregate, see `Shrinker.forward`."""
        return groups.weighted_sum(groups.weights * self.logits.sigmoid())

    def shrunk(self, groups: Groups) -> torch.Tensor:
        """The members, see `Shrinker.shrunk`."""
        return groups.gathered() * self.logits.sigmoid().unsqueeze(-1)


def group_prior(
    *,
    groups: bool = True,
    shrinkage: str = "lowrank",
    matching: Literal["learned", "random", "by band"] = "learned",
    haar: bool = True,
    **sizes: Any,
) -> nn.Module:
    """The group prior, or what is left of it."""
    is_own = shrinkage in ("none", "constant")
    prior = GroupSparsePrior(n_channels=1, shrinkage="lowrank" if is_own else shrinkage, **sizes)
    for i, block in enumerate(prior.blocks):
        if matching == "random":
            block.matching.embed.weight.requires_grad_(False)
        elif matching == "by band":
            block.matching = MatchingByBand(len(block.embed), prior.n_members)
            block.shrinker = LowRankByBand(prior.n_members, len(block.shrinker.mixtures))
        if is_own:
            block.shrinker = NoShrinkage() if shrinkage == "none" else ConstantGates(prior.n_members)
        if not groups:
            prior.blocks[i] = MixingAlone(block)
        elif not haar:
            prior.blocks[i] = OnPhases(block)
    return TakenAsPrior(prior)


def convolutions(*, n_layers: int, width: int) -> nn.Module:
    """Convolutions 3×3 with rectifiers, like DnCNN's, without normalisation."""
    layers: list[nn.Module] = [nn.Conv2d(2, width, 3, padding=1), nn.ReLU(inplace=True)]
    for _ in range(n_layers - 2):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True)]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return TakenAsNoise(nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1)))


def unet(*, base: int, n_stages: int) -> nn.Module:
    """A U-Net."""
    return TakenAsNoise(UNet(2, 1, base=base, n_stages=n_stages))


def published(**arguments: Any) -> nn.Module:
    """The published network, or the repaired one."""
    return ToldAsImaginary(PublishedDeepGSR(n_channels=2, **arguments))


NETWORKS: Mapping[str, Build] = {
    "groups": group_prior,
    "convolutions": convolutions,
    "unet": unet,
    "published": published,
}


def built(contestant: Contestant, seed: int) -> nn.Module:
    """The network with weights that the seed decides; the global generator is left alone."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return NETWORKS[contestant.kind](**dict(contestant.arguments))


def _mixed(matrix: torch.Tensor, bands: torch.Tensor) -> torch.Tensor:
    mixed = torch.einsum("ab,nbcyx->nacyx", matrix, bands.unflatten(1, (N_BANDS, -1))).flatten(1, 2)
    return mixed.contiguous(memory_format=torch.channels_last)


# Classical methods: image, σ, and a factor that is tuned.


def total_variation(image: np.ndarray, sigma: float, factor: float) -> np.ndarray:
    return restoration.denoise_tv_chambolle(image, weight=factor * sigma)


def non_local_means(image: np.ndarray, sigma: float, factor: float) -> np.ndarray:
    return restoration.denoise_nl_means(image, patch_size=5, patch_distance=6, h=factor * sigma, sigma=sigma)


def wavelet(image: np.ndarray, sigma: float, factor: float) -> np.ndarray:
    return restoration.denoise_wavelet(image, sigma=factor * sigma, wavelet="db2", method="BayesShrink")


def bm3d(image: np.ndarray, sigma: float, factor: float) -> np.ndarray:
    return importlib.import_module("bm3d").bm3d(image, sigma_psd=factor * sigma)


CLASSICAL: Mapping[str, tuple[Method, tuple[float, ...]]] = {
    "tv": (total_variation, (0.5, 0.7, 1.0, 1.4, 2.0)),
    "non-local means": (non_local_means, (0.4, 0.6, 0.8, 1.0, 1.4)),
    "wavelet": (wavelet, (0.7, 1.0, 1.4)),
    "bm3d": (bm3d, (0.9, 1.0, 1.1)),
}
HAS_BM3D = importlib.util.find_spec("bm3d") is not None


# Images


@dataclass(frozen=True, slots=True)
class Images:
    """Gray images ``(y, x)`` from 0 to 1: those for training by modality, those of each test by its name."""

    training: Mapping[str, Sequence[torch.Tensor]]
    tests: Mapping[str, Sequence[torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Crops:
    """Batches of (noisy, σ, clean) crops; each modality has the same share."""

    images: Mapping[str, Sequence[torch.Tensor]]
    batch_size: int
    side: int
    highest_noise_std: float

    def __call__(self, index: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw a batch; the index only serves `operators.learning.fit`, whose generators differ with it."""
        clean = torch.stack([self._crop(generator) for _ in range(self.batch_size)])
        noise_std = self.highest_noise_std * torch.rand(self.batch_size, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        return clean + noise_std.reshape(-1, 1, 1) * noise, noise_std, clean

    def _crop(self, generator: torch.Generator) -> torch.Tensor:
        """A crop that shows something, mirrored and rotated by multiples of 90°, or not."""

        def draw(n: int) -> int:
            return int(torch.randint(n, (), generator=generator))

        for _ in range(N_DRAWS):
            images = list(self.images.values())[draw(len(self.images))]
            image = images[draw(len(images))]
            y, x = (draw(n - self.side + 1) for n in image.shape)
            crop = image[y : y + self.side, x : x + self.side]
            if crop.std() > LEAST_CONTRAST:
                break
        crop = crop.rot90(draw(4))
        return crop.flip(-1) if draw(2) else crop


def load_images(study: Study, config: Path) -> Images:
    """Read all images."""
    ct = read_config(config.parent / study.ct, ctrecon.config.Data)
    mr = read_config(config.parent / study.mr, mrirecon.config.Data)
    trained = {"ct": ct.train, "mr": mr.train}
    for test in study.tests:
        both = set(test.images) & set(trained.get(test.modality, ()))
        if both:
            raise InputError(f"{test.name!r} shows {', '.join(both)}, whom training sees; choose other people.")
    return Images(
        {"ct": _ct_images(ct, ct.train, ct.kernels), "mr": _mr_images(mr, mr.train, study.mr_matrix)},
        {test.name: _test_images(test, study, ct, mr) for test in study.tests},
    )


def phantom_images(n: int) -> Images:
    """The built-in phantom, for a quick run."""
    image = brain_phantom((n, n), smooth_phase=False).abs()
    return Images({"phantom": [image]}, {"phantom": [image]})


def _test_images(
    test: ImageSet, study: Study, ct: ctrecon.config.Data, mr: mrirecon.config.Data
) -> Sequence[torch.Tensor]:
    """As many of each person, or name of a natural image."""
    chosen: list[torch.Tensor] = []
    for name in test.images:
        if test.modality == "natural":
            found = [_halved(torch.from_numpy(getattr(natural_images, name)()).float() / 255)]
        elif test.modality == "ct":
            found = _ct_images(ct, [name], test.kernels)
        else:
            found = _mr_images(mr, [name], study.mr_matrix)
        shows_something = [image for image in found if (image > DARK).float().mean() >= LEAST_BRIGHT]
        chosen += spread(shows_something, max(1, study.n_images // len(test.images)))
    return chosen


def _ct_images(data: ctrecon.config.Data, patients: Sequence[str], kernels: Sequence[str] | None) -> list[torch.Tensor]:
    root = data_folder(data.folder)
    low, high = HU_WINDOW
    images: list[torch.Tensor] = []
    for source in chosen_sources(data.sources, patient=patients, kernel=kernels):
        hu = read_hu_image(root / source.path)[0]
        chosen = hu[list(source.numbers(len(hu)))].clamp(low, high)
        images += _halved((chosen - low) / (high - low))
    return images


def _mr_images(data: mrirecon.config.Data, patients: Sequence[str], matrix: int) -> list[torch.Tensor]:
    slices = load_slices(data.sources, matrix, data.folder, patients=patients)
    return [slice_.image.abs().clamp(max=1) for slice_ in slices]


def _halved(images: torch.Tensor) -> torch.Tensor:
    """The mean of every 2×2 pixels of ``(*batch, y, x)``."""
    means = nn.functional.avg_pool2d(images.reshape(-1, 1, *images.shape[-2:]), 2)
    return means.reshape(*images.shape[:-2], *means.shape[-2:])


# What networks cost


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters that are trained, and process-CPU milliseconds of a step of training and of an image."""

    n_parameters: int
    step_ms: float
    image_ms: float


class Costs:
    """What each network costs, measured once in a folder; what was measured later is relative to the first contestant.

    Parameters
    ----------
    study
        What is compared.
    folder
        Where ``costs.json`` is, or will be.
    image_side, n_rounds
        Pixels along each side of the image that is timed, and how often everything is timed, beside once for warming.
    """

    def __init__(self, study: Study, folder: Path, *, image_side: int, n_rounds: int) -> None:
        self.study, self.path = study, folder / "costs.json"
        stored = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.costs = {key: Cost(**cost) for key, cost in stored.items()}
        networks = [contestant for contestant in study.contestants if contestant.is_trained]
        first = networks[0]
        missing = [contestant for contestant in networks if self._key(contestant) not in self.costs]
        if not missing:
            return
        print(f"Measuring what {len(missing)} networks cost.", flush=True)
        measured = self._measured([first, *(c for c in missing if c != first)], image_side, n_rounds)
        known, now = self.costs.get(self._key(first)), measured[first.name]
        steps, images = (known.step_ms / now.step_ms, known.image_ms / now.image_ms) if known else (1.0, 1.0)
        for contestant in missing:
            cost = measured[contestant.name]
            self.costs[self._key(contestant)] = replace(
                cost, step_ms=steps * cost.step_ms, image_ms=images * cost.image_ms
            )
        self._write()

    def __getitem__(self, contestant: Contestant) -> Cost:
        """Of a network."""
        return self.costs[self._key(contestant)]

    def n_steps(self, contestant: Contestant) -> int:
        """How long it is trained."""
        n, first = self.study.training.n_steps, self[self.study.contestants[0]]
        return n if contestant.same == "steps" else max(1, round(n * first.step_ms / self[contestant].step_ms))

    def _measured(self, contestants: Sequence[Contestant], side: int, n_rounds: int) -> dict[str, Cost]:
        """All in turn, A B C A B C …, so that all of them see the same machine."""
        study = self.study
        models = {c.name: built(c, 0) for c in contestants}
        optimisers = {
            name: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-6)
            for name, model in models.items()
        }
        crops = torch.rand(study.batch_size, study.crop, study.crop, generator=torch.Generator().manual_seed(0))
        levels = torch.full((study.batch_size,), 0.1)
        image = torch.rand(1, side, side, generator=torch.Generator().manual_seed(0))

        def step(name: str) -> None:
            optimisers[name].zero_grad(set_to_none=True)
            loss_of(models[name].train(), (crops, levels, crops)).backward()
            optimisers[name].step()

        def denoise(name: str) -> None:
            with torch.no_grad():
                models[name].eval()(image, levels[:1])

        steps: dict[str, list[float]] = {name: [] for name in models}
        images: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(n_rounds + 1):
            for name in models:
                steps[name].append(_cpu_ms(lambda name=name: step(name)))
                images[name].append(_cpu_ms(lambda name=name: denoise(name)))
        return {
            name: Cost(
                sum(p.numel() for p in model.parameters() if p.requires_grad),
                statistics.median(steps[name][1:]),
                statistics.median(images[name][1:]),
            )
            for name, model in models.items()
        }

    def _write(self) -> None:
        with replacing(self.path, overwrite=True) as temporary:
            temporary.write_text(json.dumps({key: asdict(cost) for key, cost in self.costs.items()}, indent=1) + "\n")

    @staticmethod
    def _key(contestant: Contestant) -> str:
        return json.dumps(contestant.identity, sort_keys=True)


def _cpu_ms(call: Callable[[], None]) -> float:
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


# Training and measuring


def loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Mean squared error over all pixels of a batch (noisy, σ, clean)."""
    noisy, noise_std, clean = batch
    return (model(noisy, noise_std) - clean).square().mean()


class Progress:
    """Prints how far a training is, and how fast."""

    def __init__(self, words: str, every_s: float = 30.0) -> None:
        self.words, self.every_s = words, every_s
        self.first: tuple[int, float] | None = None
        self.said_at = time.monotonic()

    def __call__(self, n_done: int, n_all: int) -> None:
        """Called with (steps done, steps in all)."""
        now = time.monotonic()
        if self.first is None:
            self.first = n_done, now
            return
        if n_done == n_all or now - self.said_at >= self.every_s:
            rate = (n_done - self.first[0]) / (now - self.first[1])
            left = (n_all - n_done) / rate / 60
            print(f"{self.words}: step {n_done} of {n_all}, {rate:.2f} a second, {left:.1f} minutes left", flush=True)
            self.said_at = now


class Work:
    """The folder of a study: what was measured of whom, and how to get what is missing.

    Parameters
    ----------
    study
        What is compared.
    folder
        Where everything is kept.
    costs
        What networks cost.
    images
        Reads the images, when they are needed.
    """

    def __init__(self, study: Study, folder: Path, costs: Costs, images: Callable[[], Images]) -> None:
        self.study, self.folder, self.costs = study, folder, costs
        self._load, self._images = images, None
        (folder / "results").mkdir(parents=True, exist_ok=True)

    @property
    def images(self) -> Images:
        """All images, read once."""
        if self._images is None:
            self._images = self._load()
        return self._images

    def rows(self, contestant: Contestant, seed: int, *, train: bool = False) -> Rows | None:
        """A row for each test image and σ, as stored or computed now; ``None`` where nothing is trained yet.

        Without ``train`` nothing is trained. Classical methods have no seed, and the same rows for all.
        """
        plan = self._plan(contestant, seed, train=train) if contestant.is_trained else None
        if contestant.is_trained and plan is None:
            return None
        path = self.folder / "results" / f"{_file_name(contestant, seed)}.json"
        described = self._described(contestant, plan)
        if path.exists():
            stored = json.loads(path.read_text())
            if stored["of"] == described:
                return stored["rows"]
        is_finished = contestant.is_trained and (self.folder / "trainings" / path.stem / "summary.json").exists()
        if not train and not is_finished:
            return None
        denoise = self._tuned(contestant) if plan is None else self._network(contestant, plan)
        rows, shown = self._measured(denoise)
        if contestant.name in self.study.shown and seed == self.study.seeds[0]:
            write_tensors(self._shown_path(contestant.name), shown, overwrite=True)
        with replacing(path, overwrite=True) as temporary:
            temporary.write_text(json.dumps({"of": described, "rows": rows}) + "\n")
        return rows

    def shown(self, name: str) -> dict[str, Any] | None:
        """Of each test, a part of an image as a contestant leaves it, with its PSNR; ``None`` without a result."""
        path = self._shown_path(name)
        return read_tensors(path) if path.exists() else None

    def noisy(self, name: str, number: int, sigma: float) -> torch.Tensor:
        """A test image with its noise."""
        image = self.images.tests[name][number]
        generator = torch.Generator().manual_seed(NOISE_SEED + 1000 * number + round(sigma))
        return image + sigma / GRAY_LEVELS * torch.randn(image.shape, generator=generator)

    def learning_rate(self, contestant: Contestant, *, train: bool = False) -> float | None:
        """The one that is best after a short training, on crops of training images that no training draws."""
        study = self.study
        n_steps = max(1, round(study.n_pilot_steps * self.costs.n_steps(contestant) / study.training.n_steps))
        path = self.folder / "results" / f"{_file_name(contestant, 0)}-rates.json"
        plan = replace(study.training, n_steps=n_steps, n_warm_up=min(study.training.n_warm_up, n_steps // 4))
        plan = replace(plan, seed=study.seeds[0], metric="psnr_db", metric_goal="max")
        described = as_json(
            "pilot", {"contestant": contestant.identity, "recipe": study.recipe, "rates": study.learning_rates}
        ) | {"plan": as_json("plan", asdict(plan))}
        if path.exists():
            stored = json.loads(path.read_text())
            if stored["of"] == described:
                return max(study.learning_rates, key=lambda rate: stored["psnr_db"][f"{rate:g}"])
        if not train:
            return None
        quality = {}
        for rate in study.learning_rates:
            words = f"{_file_name(contestant, 0)}-rate-{rate:g}"
            result = self._fitted(
                built(contestant, plan.seed), contestant, replace(plan, learning_rate=rate), words, self._pilot_psnr
            )
            quality[f"{rate:g}"] = result.metrics["psnr_db"]
        with replacing(path, overwrite=True) as temporary:
            temporary.write_text(json.dumps({"of": described, "psnr_db": quality}) + "\n")
        return max(study.learning_rates, key=lambda rate: quality[f"{rate:g}"])

    def _pilot_psnr(self, model: nn.Module) -> dict[str, float]:
        batches = (self._crops(0, torch.Generator().manual_seed(NOISE_SEED + i)) for i in range(N_PILOT_BATCHES))
        measured = [psnr(model(noisy, noise_std), clean, 1.0) for noisy, noise_std, clean in batches]
        return {"psnr_db": float(torch.cat(measured).mean())}

    @property
    def _crops(self) -> Crops:
        study = self.study
        return Crops(self.images.training, study.batch_size, study.crop, study.highest_sigma / GRAY_LEVELS)

    def _described(self, contestant: Contestant, plan: TrainingPlan | None) -> dict[str, Any]:
        study = self.study
        described = {
            "contestant": contestant.identity,
            "tests": [asdict(test) for test in study.tests],
            "recipe": study.recipe,
            "sigmas": study.sigmas,
            "n_images": study.n_images,
        }
        if plan is not None:
            described["plan"] = asdict(plan)
        return as_json("study", described)

    def _plan(self, contestant: Contestant, seed: int, *, train: bool) -> TrainingPlan | None:
        rate = self.learning_rate(contestant, train=train)
        if rate is None:
            return None
        return replace(self.study.training, seed=seed, n_steps=self.costs.n_steps(contestant), learning_rate=rate)

    def _shown_path(self, name: str) -> Path:
        return self.folder / "results" / f"{name.replace(' ', '-')}-shown.pt"

    def _network(self, contestant: Contestant, plan: TrainingPlan) -> Callable[[torch.Tensor, float], torch.Tensor]:
        """Train, or go on, or take what is trained."""
        model = built(contestant, plan.seed)
        self._fitted(model, contestant, plan, _file_name(contestant, plan.seed))
        model.eval()

        def denoise(noisy: torch.Tensor, noise_std: float) -> torch.Tensor:
            with torch.no_grad():
                denoised: torch.Tensor = model(noisy.unsqueeze(0), torch.tensor([noise_std]))[0]
                return denoised

        return denoise

    def _fitted(
        self,
        model: nn.Module,
        contestant: Contestant,
        plan: TrainingPlan,
        words: str,
        validate: Callable[[nn.Module], dict[str, float]] | None = None,
    ) -> FitResult:
        folder = self.folder / "trainings" / words
        folder.parent.mkdir(exist_ok=True)
        described = {"contestant": contestant.identity, "recipe": self.study.recipe}
        return fit(
            model, loss_of, self._crops, plan, folder, validate=validate, config=described, progress=Progress(words)
        )

    def _tuned(self, contestant: Contestant) -> Callable[[torch.Tensor, float], torch.Tensor]:
        """A classical method with the factor that is best, in mean PSNR, for images of training at all σ."""
        method, factors = CLASSICAL[contestant.kind]
        each = max(1, TUNING_IMAGES // len(self.images.training))
        images = [image for group in self.images.training.values() for image in spread(group, each)]
        noise = [torch.randn(i.shape, generator=torch.Generator().manual_seed(n)) for n, i in enumerate(images)]

        def denoise(noisy: torch.Tensor, noise_std: float, factor: float) -> torch.Tensor:
            return torch.from_numpy(method(noisy.double().numpy(), noise_std, factor)).float()

        def quality(factor: float) -> float:
            return fmean(
                float(psnr(denoise(image + s / GRAY_LEVELS * draw, s / GRAY_LEVELS, factor), image, 1.0))
                for image, draw in zip(images, noise, strict=True)
                for s in self.study.sigmas
            )

        best = max(factors, key=quality)
        others = ", ".join(f"{factor:g}" for factor in factors)
        print(f"{contestant.name}: the factor {best:g} is the best of {others}", flush=True)
        return lambda noisy, noise_std: denoise(noisy, noise_std, best)

    def _measured(self, denoise: Callable[[torch.Tensor, float], torch.Tensor]) -> tuple[Rows, dict[str, Any]]:
        rows, shown = [], {}
        highest = max(self.study.sigmas)
        for name, images in self.images.tests.items():
            for number, image in enumerate(images):
                for sigma in self.study.sigmas:
                    estimate = denoise(self.noisy(name, number, sigma), sigma / GRAY_LEVELS)
                    quality = float(psnr(estimate, image, 1.0))
                    similarity = float(ssim_gaussian(estimate, image, 1.0))
                    rows.append({"set": name, "number": number, "sigma": sigma, "psnr": quality, "ssim": similarity})
                    if number == len(images) // 2 and sigma == highest:
                        shown[name] = {"part": _shown_part(estimate).clone(), "psnr": quality}
        return rows, shown


def _file_name(contestant: Contestant, seed: int) -> str:
    name = contestant.name.replace(" ", "-").replace(",", "")
    return f"{name}-seed-{seed}" if contestant.is_trained else name


def _shown_part(image: torch.Tensor) -> torch.Tensor:
    y, x = ((n - min(n, SHOWN_PIXELS)) // 4 for n in image.shape)  # where the edge of a body is
    return image[y : y + SHOWN_PIXELS, x : x + SHOWN_PIXELS]


# Tables


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean, and its standard deviations over seeds and over images, where there are two or more."""

    mean: float
    over_seeds: float | None
    over_images: float | None

    @classmethod
    def of(cls, by_seed: Sequence[Sequence[float]]) -> "Spread":
        """Of numbers of each image, for each seed."""
        by_image = [fmean(values) for values in zip(*by_seed, strict=True)]
        return cls(fmean(by_image), _deviation([fmean(values) for values in by_seed]), _deviation(by_image))

    def words(self, n_digits: int) -> str:
        """The mean ± over seeds."""
        beside = "" if self.over_seeds is None else f" ± {self.over_seeds:.{n_digits}f}"
        return f"{self.mean:.{n_digits}f}{beside}"


class Tables:
    """What there is, as tables.

    Parameters
    ----------
    work
        Where the results are.
    """

    def __init__(self, work: Work) -> None:
        self.study, self.costs = work.study, work.costs
        self.rates = {c.name: work.learning_rate(c) for c in self.study.contestants if c.is_trained}
        self.rows: dict[str, dict[int, Rows]] = {}
        self.missing: list[str] = []
        for contestant in self.study.contestants:
            seeds = self.study.seeds if contestant.is_trained else self.study.seeds[:1]
            found = {seed: rows for seed in seeds if (rows := work.rows(contestant, seed)) is not None}
            self.missing += [_file_name(contestant, seed) for seed in seeds if seed not in found]
            if found:
                self.rows[contestant.name] = found
        self.present = [c for c in self.study.contestants if c.name in self.rows]

    def measured(self, name: str, metric: str, tests: Sequence[str], sigma: float) -> Spread:
        """A metric of a contestant over all images of some tests."""
        return Spread.of([_values(rows, metric, tests, sigma) for rows in self.rows[name].values()])

    def ahead(self, name: str, tests: Sequence[str], sigma: float) -> Spread | None:
        """PSNR minus that of the first contestant, image by image and seed by seed."""
        first = self.rows.get(self.study.contestants[0].name, {})
        own = self.rows[name]
        is_trained = next(c for c in self.study.contestants if c.name == name).is_trained
        pairs = [(own.get(seed) if is_trained else next(iter(own.values())), rows) for seed, rows in first.items()]
        both = [
            [a - b for a, b in zip(*(_values(r, "psnr", tests, sigma) for r in pair), strict=True)]
            for pair in pairs
            if pair[0] is not None
        ]
        return Spread.of(both) if both else None

    def full(self) -> Rows:
        """A row for each contestant, test and σ."""
        rows = []
        for contestant in self.present:
            for test in self.study.tests:
                for sigma in self.study.sigmas:
                    row = {"contestant": contestant.name, "set": test.name, "sigma": sigma}
                    row["seeds"] = len(self.rows[contestant.name]) if contestant.is_trained else ""
                    for metric, n_digits in (("psnr", 3), ("ssim", 4)):
                        spread_ = self.measured(contestant.name, metric, [test.name], sigma)
                        row[metric] = round(spread_.mean, n_digits)
                        row[f"{metric} sd seeds"] = _rounded(spread_.over_seeds, n_digits)
                        row[f"{metric} sd images"] = _rounded(spread_.over_images, n_digits)
                    rows.append(row)
        return rows

    def markdown(self, command: str) -> str:
        """Everything, with what the words mean."""
        study = self.study
        names = [test.name for test in study.tests]
        groups = {
            "in distribution": [test.name for test in study.tests if test.in_distribution],
            "out of distribution": [test.name for test in study.tests if not test.in_distribution],
        }
        groups = {name: tests for name, tests in groups.items() if tests}
        parts = [
            f"# Denoising\n\nCommand: `{command}`",
            f"Versions: mrctrecon {version('mrctrecon')}, torch {torch.__version__}, "
            f"python {sys.version.split()[0]}; {torch.get_num_threads()} thread",
            _definitions(study),
            f"Missing so far: {', '.join(self.missing)}." if self.missing else "Nothing is missing.",
            "## Contestants\n\n" + self._contestants(),
        ]
        columns = [(f"{name}, σ = {s:g}", tests, s) for name, tests in groups.items() for s in study.sigmas]
        ahead = [
            [c.name, *("" if (a := self.ahead(c.name, tests, s)) is None else _signed(a) for _, tests, s in columns)]
            for c in self.present
        ]
        first = study.contestants[0].name
        parts.append(
            f"## PSNR minus that of {first!r} in dB, mean over images ± sd over seeds\n\n"
            + _table(["contestant", *(title for title, _, _ in columns)], ahead)
        )
        for metric, n_digits in (("psnr", 2), ("ssim", 4)):
            for sigma in study.sigmas:
                body = [
                    [c.name, *(self.measured(c.name, metric, [name], sigma).words(n_digits) for name in names)]
                    for c in self.present
                ]
                title = f"## {metric.upper()}, σ = {sigma:g}, mean over images ± sd over seeds"
                parts.append(f"{title}\n\n" + _table(["contestant", *names], body))
        full = self.full()
        if full:
            parts.append("## All numbers\n\n" + _table(list(full[0]), [[*map(str, row.values())] for row in full]))
        return "\n\n".join(parts) + "\n"

    def _contestants(self) -> str:
        first = self.costs[self.study.contestants[0]]
        headers = (
            "contestant",
            "what it is",
            "parameters",
            "rate",
            "steps",
            "training, s",
            "relative",
            "image, ms",
            "relative",
        )
        rows = []
        for contestant in self.study.contestants:
            row = [contestant.name, contestant.words]
            if contestant.is_trained:
                cost, n_steps = self.costs[contestant], self.costs.n_steps(contestant)
                seconds = n_steps * cost.step_ms / 1e3
                relative = seconds / (self.study.training.n_steps * first.step_ms / 1e3)
                rate = self.rates[contestant.name]
                row += [str(cost.n_parameters), "" if rate is None else f"{rate:g}", str(n_steps)]
                row += [f"{seconds:.0f}", f"{relative:.2f}"]
                row += [f"{cost.image_ms:.0f}", f"{cost.image_ms / first.image_ms:.2f}"]
            else:
                row += [""] * 7
            rows.append(row)
        return _table(headers, rows)


def _definitions(study: Study) -> str:
    plan = study.training
    tests = "; ".join(f"{t.name}: {', '.join(t.images)}" for t in study.tests)
    lines = (
        f"images: gray, from 0 to 1. CT from {HU_WINDOW[0]:g} to {HU_WINDOW[1]:g} HU, clipped, the mean of every 2×2 "
        f"of 512² pixels. MR magnitude, full scale (the 99.9th percentile of its file) is 1, resampled to "
        f"{study.mr_matrix}². Both have noise of their own, which counts as image. Natural images, 512², as CT",
        f"tests: {study.n_images} images of each, as many of each name, at equal distances. {tests}. Nobody of them is "
        "in training, and nothing was chosen on them: there is no validation, the last weights count",
        f"training: σ uniform from 0 to {study.highest_sigma:g} of {GRAY_LEVELS}, which every network is told; "
        f"{study.batch_size} crops of {study.crop}², half of them CT, half MR, mirrored and rotated; a crop with a "
        f"standard deviation below {LEAST_CONTRAST} is drawn again, up to {N_DRAWS} times; mean squared error; AdamW, "
        f"{plan.n_warm_up} steps of warm-up and one cosine, weight decay {plan.weight_decay:g}, gradients of norm "
        f"{plan.clip_norm} at most, moving average {plan.ema_decay} of the weights. With one seed, all networks see "
        "the same crops and noise in the same order",
        f"learning rate: each network has that of {', '.join(f'{rate:g}' for rate in study.learning_rates)} which is "
        f"best, in mean PSNR of {N_PILOT_BATCHES} batches of training images, after a training of "
        f"{study.n_pilot_steps} steps, or of as many seconds, with the first seed; not counted as training time",
        "networks: convolutions and U-Nets get σ as a second channel and predict the noise in units of σ, as the group "
        "prior does; none has normalisation layers. The published network gets σ as imaginary part of its image and "
        "keeps its dropout. Random matching: the embedding that finds members stays as it starts, all else learns",
        "psnr, ssim: data range 1, nothing is clipped; SSIM with an 11×11 Gaussian window, σ = 1.5 pixels",
        "sd seeds: standard deviation, over trainings with different seeds, of the mean over images. sd images: over "
        "images, of the mean over seeds",
        "parameters: those that are trained. training: process-CPU seconds, number of steps times the median of steps "
        "that were timed in turn with those of all others. image: process-CPU milliseconds for one of 256². relative: "
        "to the first contestant",
        "non-local means, TV and wavelet: of scikit-image, told σ, one factor tuned on four images of training"
        + ("" if HAS_BM3D else ". BM3D is left out: the package bm3d is not installed"),
    )
    return "\n".join(f"- {line}" for line in lines)


def _values(rows: Rows, metric: str, tests: Sequence[str], sigma: float) -> list[float]:
    return [row[metric] for row in rows if row["set"] in tests and row["sigma"] == sigma]


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _rounded(value: float | None, n_digits: int) -> float | str:
    return "" if value is None else round(value, n_digits)


def _signed(difference: Spread) -> str:
    words = difference.words(2)
    return words if words.startswith("-") or not difference.mean else f"+{words}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_picture(path: Path, work: Work) -> None:
    """A row for each test: part of an image, with the most noise, and what contestants make of it."""
    sigma = max(work.study.sigmas)
    columns: dict[str, dict[str, Any]] = {}
    numbers = {name: len(images) // 2 for name, images in work.images.tests.items()}
    clean = {name: work.images.tests[name][number] for name, number in numbers.items()}
    noisy = {name: work.noisy(name, number, sigma) for name, number in numbers.items()}
    columns["image"] = {name: {"part": _shown_part(image)} for name, image in clean.items()}
    columns[f"noisy, σ = {sigma:g}"] = {
        name: {"part": _shown_part(image), "psnr": float(psnr(image, clean[name], 1.0))}
        for name, image in noisy.items()
    }
    columns |= {name: shown for name in work.study.shown if (shown := work.shown(name)) is not None}
    gap, top, left, dpi = 3, 22, 20, 100
    width, height = left + len(columns) * (PANEL_PIXELS + gap), top + len(numbers) * (PANEL_PIXELS + gap)
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor=GROUND)
    style = {"fontsize": 7, "color": TEXT, "ha": "center", "va": "center"}
    for j, (title, parts) in enumerate(columns.items()):
        before = left + j * (PANEL_PIXELS + gap)
        figure.text((before + PANEL_PIXELS / 2) / width, 1 - top / 2 / height, title, **style)
        for i, name in enumerate(numbers):
            below = height - top - (i + 1) * (PANEL_PIXELS + gap)
            axes = figure.add_axes((before / width, below / height, PANEL_PIXELS / width, PANEL_PIXELS / height))
            axes.imshow(parts[name]["part"].numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()
            if "psnr" in parts[name]:
                words = f"{parts[name]['psnr']:.2f} dB"
                axes.text(0.03, 0.04, words, transform=axes.transAxes, fontsize=6, color="#ffd400")
            if j == 0:
                figure.text(left / 2 / width, (below + PANEL_PIXELS / 2) / height, name, rotation=90, **style)
    figure.savefig(path, facecolor=GROUND, pil_kwargs={"quality": 80, "optimize": True})


# The command


def quick(study: Study) -> Study:
    """One network of each kind and one classical method, two steps, the phantom."""
    wanted = (*NETWORKS, "wavelet")
    first = {contestant.kind: contestant for contestant in reversed(study.contestants)}
    chosen = tuple(first[kind] for kind in wanted if kind in first)
    return replace(
        study,
        batch_size=1,
        crop=32,
        sigmas=(25.0,),
        seeds=(0,),
        n_images=1,
        training=replace(study.training, n_steps=2, n_warm_up=0),
        learning_rates=study.learning_rates[:1],
        n_pilot_steps=1,
        tests=(ImageSet(name="phantom", modality="phantom", images=(), in_distribution=True),),
        contestants=chosen,
        shown=(chosen[0].name,),
    )


def run(study: Study, work: Work, options: argparse.Namespace) -> Tables:
    """Train and measure what is wanted and missing, and write what there is after each."""
    command = f"python benchmarks/deepgsr_denoise.py -o FOLDER --budget-steps {study.training.n_steps}"
    seeds = study.seeds if options.seeds is None else options.seeds
    wanted = [c for c in study.contestants if options.only is None or c.name in options.only]
    for seed in () if options.report else seeds:
        for contestant in wanted:
            work.rows(contestant, seed, train=True)
            write_report(work, command)
    return write_report(work, command)


def write_report(work: Work, command: str) -> Tables:
    """Tables and picture of what there is."""
    tables = Tables(work)
    with replacing(work.folder / "summary.md", overwrite=True) as temporary:
        temporary.write_text(tables.markdown(command), encoding="utf-8")
    with replacing(work.folder / "example.jpg", overwrite=True) as temporary:
        write_picture(temporary, work)
    return tables


def arguments() -> argparse.Namespace:
    """Options of this benchmark; those of every one are among them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="where everything is kept")
    parser.add_argument("--config", type=Path, default=CONFIG, help="what is compared (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train only these contestants")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="train only with these seeds")
    parser.add_argument("--budget-steps", type=int, metavar="N", help="number of steps, instead of the plan's")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--quick", action="store_true", help="two steps on the phantom, under 40 seconds")
    parser.add_argument("--threads", type=int, default=1, help="number of threads")
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    if parsed.output is None and not parsed.quick:
        parser.error("-o FOLDER is needed, but for --quick.")
    return parsed


def main() -> None:
    """Do what is asked for."""
    options = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            study = read_config(options.config, Study)
            if not HAS_BM3D:
                there = tuple(contestant for contestant in study.contestants if contestant.kind != "bm3d")
                study = replace(study, contestants=there)
            if options.budget_steps is not None:
                study = replace(study, training=replace(study.training, n_steps=options.budget_steps))
            for chosen, known in ((options.only, [c.name for c in study.contestants]), (options.seeds, study.seeds)):
                strangers = set(chosen or ()) - set(known)
                if strangers:
                    raise InputError(f"{strangers} is not in the study; it has {', '.join(map(str, known))}.")
            study = quick(study) if options.quick else study
            folder = options.output or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            sizes = {"image_side": 48, "n_rounds": 1} if options.quick else {"image_side": 256, "n_rounds": 5}
            costs = Costs(study, folder, **sizes)
            images = (lambda: phantom_images(48)) if options.quick else (lambda: load_images(study, options.config))
            tables = run(study, Work(study, folder, costs, images), options)
        except InputError as error:
            raise SystemExit(str(error)) from error
    rows = tables.full()
    if not rows:
        raise SystemExit(f"There is no result yet; missing are {', '.join(tables.missing)}.")
    report_quality("deepgsr_denoise", rows)


if __name__ == "__main__":
    main()
