"""The group-sparse prior beside the network of its paper, with every group put together as that is released.

Run ``python benchmarks/deepgsr.py``; the released network alone takes minutes and 13 GB. In "own width" the same
weights are used with and without groups that are put together, and the error is against the former. In "default" ours
is `GroupSparsePrior` as it comes, "ours small" has fewer blocks and features, and the error is against themselves in
double precision. Tokens that are equally similar to within rounding can take each other's place in a group, which makes
errors above 1e-5. No network is trained: branches that start at zero, and the matching, get weights of usual size.

Times are the smallest of the repetitions, in process-CPU milliseconds on one thread; those on two threads are
wall-clock, and a reconstruction that is "first" includes the tables of its projection. Each candidate runs in a process
of its own. Its memory is the largest resident size beyond what the process held before.
"""

import copy
import functools
import importlib
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from harness import Row, arguments, report, report_quality

from ctrecon.datasets import Scanner
from ctrecon.models import apply_model
from operators.consistency import FilteredStep
from operators.fields import reflected
from operators.priors.deepgsr import GroupSparsePrior
from operators.priors.prior import Prior
from operators.priors.published_deepgsr import PublishedDeepGSR
from operators.unrolled import Unrolled

_Result = TypeVar("_Result")

_NOISE_STD = 0.1
_NOISE_OF_LINES = 0.01
_NOISE_LEVELS = 0.5, 0.3, 0.2, 0.1, 0.05
_SMALL = {"n_blocks": 4, "width": 24, "n_token_channels": 64, "n_hidden": 64}
_OURS: dict[str, dict[str, int]] = {"ours": {}, "ours small": _SMALL}
_TINY = {"n_blocks": 1, "width": 2, "n_token_channels": 4, "n_hidden": 2}
_TINY_PUBLISHED = {"n_layers": 1, "width": 2, "window": 4, "n_members": 1, "n_hidden": 2, "expansion": 1}
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a process of its own found out."""

    ms: float
    peak_mb: float
    image: torch.Tensor


def images(*shape: int) -> torch.Tensor:
    """Real noise around a half."""
    return 0.5 + 0.2 * torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))


def prior(options: dict[str, int]) -> GroupSparsePrior:
    """Ours, with a group branch that is no longer zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = GroupSparsePrior(n_channels=1, **options)  # type: ignore[arg-type]  # of numbers only
        for name, p in built.named_parameters():
            if name.endswith(".back"):
                torch.nn.init.normal_(p, std=0.05)
    return built.eval()


def published_network(options: dict[str, int]) -> PublishedDeepGSR:
    """The published one, with groups that change the image and similarities that differ by more than rounding."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PublishedDeepGSR(**options)  # type: ignore[arg-type]  # published is a bool
        for name, p in network.named_parameters():
            if ".groups." in name and p.ndim == 2:
                torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
    return network.eval()


def released(network: PublishedDeepGSR, x: torch.Tensor) -> torch.Tensor:
    """What the network computes, with groups put together, as the tests check it."""
    if str(_ROOT) not in sys.path:
        sys.path.append(str(_ROOT))
    denoised = importlib.import_module("tests.reference.published_deepgsr").denoised
    n_y, n_x = x.shape[-2:]
    multiple = 2 * network.window
    sizes = n_y + -n_y % multiple, n_x + -n_x % multiple
    result: torch.Tensor = denoised(network, reflected(x.unsqueeze(1), 0, sizes).squeeze(1))[..., :n_y, :n_x]
    return result


def main() -> None:
    """Run every case."""
    options = arguments(__doc__ or "")
    rows: list[Row] = []
    memory: list[dict[str, str | float]] = []
    for shape in ((60, 60),) if options.quick else ((180, 180), (481, 321)):
        of_case, memory_of_case = _denoising(shape, n_rounds=1 if options.quick else 5)
        rows += of_case
        memory += memory_of_case
    # Threads that wait for each other where other jobs run would not be quick.
    scan = (48, 20, 1, 1) if options.quick else (512, 60, 2, 5)
    for name in _OURS:
        rows += _announced(_in_another_process(_reconstruction, name, *scan))
    report_quality("deepgsr memory", memory)
    report("deepgsr", rows)


def _denoising(shape: tuple[int, int], *, n_rounds: int) -> tuple[list[Row], list[dict[str, str | float]]]:
    case, x = "×".join(map(str, shape)), images(*shape)
    peer = _in_another_process(_once, "released", shape, 1)
    same = _in_another_process(_once, "as published", shape, n_rounds)
    rows = _announced(
        [
            Row(case, "own width", "ours", same.ms, _error_of_change(same.image, peer.image, x)),
            Row(case, "own width", "released", peer.ms, 0.0),
        ]
    )
    memory = [
        _memory_row(case, "own width", "ours", same, peer),
        _memory_row(case, "own width", "released", peer, peer),
    ]
    for name, sizes in _OURS.items():
        own = _in_another_process(_once, name, shape, n_rounds)
        error = _error_of_change(own.image, _in_double_precision(sizes, x), x)
        rows += _announced([Row(case, "default", name, own.ms, error)])
        memory.append(_memory_row(case, "default", name, own, peer))
    rows.append(Row(case, "default", "released", peer.ms, 0.0))
    return rows, memory


@torch.no_grad()
def _once(candidate: str, shape: tuple[int, int], n_rounds: int) -> Measured:
    """Time and largest memory of one image."""
    torch.set_num_threads(1)
    _denoiser(candidate, tiny=True)(images(8, 8))  # what the first call imports
    call, x = _denoiser(candidate), images(*shape)
    before, fastest = _largest_memory_mb(), float("inf")
    for _ in range(n_rounds):
        start = time.process_time()
        image = call(x)
        fastest = min(fastest, 1e3 * (time.process_time() - start))
    return Measured(fastest, _largest_memory_mb() - before, image)


def _denoiser(candidate: str, *, tiny: bool = False) -> Callable[[torch.Tensor], torch.Tensor]:
    if candidate in _OURS:
        return functools.partial(_denoised, prior(_TINY if tiny else _OURS[candidate]))
    network = published_network(_TINY_PUBLISHED if tiny else {})
    return functools.partial(released if candidate == "released" else _denoised, network)


def _denoised(network: Prior, x: torch.Tensor) -> torch.Tensor:
    noise_std = torch.full((len(x),), _NOISE_STD, dtype=x.dtype)
    image: torch.Tensor = network(x, network.init(x, noise_std))[0]
    return image


@torch.no_grad()
def _in_double_precision(sizes: dict[str, int], x: torch.Tensor) -> torch.Tensor:
    return _denoised(prior(sizes).double(), x.double())


@torch.no_grad()
def _reconstruction(name: str, n: int, n_views: int, n_threads: int, n_rounds: int) -> list[Row]:
    """One call of the prior, and a reconstruction from few views by five iterations with it."""
    torch.set_num_threads(n_threads)
    x = images(n, n)
    call = functools.partial(_denoised, prior(_OURS[name]), x)
    image, ms = _fastest(call, n_rounds)
    error = _error_of_change(image, _in_double_precision(_OURS[name], x), x)
    rows = [Row(f"{n}²", f"prior, {n_threads} threads", name, ms, error)]

    scanner = Scanner("sparse-view", n)
    model = Unrolled(prior(_OURS[name]), FilteredStep(), 5, noise_levels=_NOISE_LEVELS, data_first=True)
    mu_per_mm = scanner.mu_water_per_mm * x

    def from_nothing() -> torch.Tensor:
        A = scanner.operator(n_views)
        return apply_model(model, A(mu_per_mm), A, _NOISE_OF_LINES)

    _, first_ms = _fastest(from_nothing, 1)
    image, ms = _fastest(from_nothing, n_rounds)
    A = copy.deepcopy(scanner.operator(n_views)).double()
    expected = apply_model(model.double(), A(mu_per_mm.double()), A, _NOISE_OF_LINES)
    error = float((image - expected).norm() / expected.norm())
    case = f"{n}² {n_views} views"
    rows.append(Row(case, f"first, {n_threads} threads", name, first_ms, error))
    return [*rows, Row(case, f"again, {n_threads} threads", name, ms, error)]


def _fastest(call: Callable[[], torch.Tensor], n_rounds: int) -> tuple[torch.Tensor, float]:
    """The image and wall-clock milliseconds; other jobs can only add to the smallest time."""
    fastest = float("inf")
    for _ in range(n_rounds):
        start = time.perf_counter()
        image = call()
        fastest = min(fastest, 1e3 * (time.perf_counter() - start))
    return image, fastest


def _memory_row(case: str, what: str, candidate: str, measured: Measured, peer: Measured) -> dict[str, str | float]:
    return {
        "case": case,
        "what": what,
        "candidate": candidate,
        "MB": round(measured.peak_mb, 1),
        "released over it": round(peer.peak_mb / measured.peak_mb, 2),
    }


def _error_of_change(image: torch.Tensor, expected: torch.Tensor, x: torch.Tensor) -> float:
    """Relative error of what was added to the image, not of the image, most of which nothing changes."""
    return float((image - expected).norm() / (expected - x).norm())


def _announced(rows: list[Row]) -> list[Row]:
    """Say at once what was measured: the tables come at the end, after minutes."""
    for row in rows:
        print(f"{row.case}, {row.what}, {row.candidate}: {row.ms:.0f} ms, error {row.error:.1e}", file=sys.stderr)
    return rows


def _in_another_process(work: Callable[..., _Result], *arguments: Any) -> _Result:
    """Run where no memory was taken before. Each process is forked from one that has taken hardly any."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", GroupSparsePrior.__module__])
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def _largest_memory_mb() -> float:
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (1 << 20 if sys.platform == "darwin" else 1 << 10)


if __name__ == "__main__":
    main()
