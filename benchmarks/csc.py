"""Convolutional sparse coding with 64 steps: ours, a straightforward implementation, and one of MRpro's operators.

Run ``python benchmarks/csc.py``; MRpro is skipped with a word where it is not installed. The scan keeps the central
half of k-space along each side, and all candidates have the same filters, weights and extrapolation. The error of image
or gradient is against ours in double precision, which for 128² and 64 filters in training and for 320² is too large:
there against ours. The others estimate the step size by 16 power iterations and the smooth part by 16 steps of CG, so
theirs are a little different; "converged" is the naive one with the exact step size and 300 steps of CG. "given maps"
leaves out the network of the maps.

Times are the smallest of the repetitions, in process-CPU milliseconds; those on two threads are wall-clock. A training
step (image, loss, backward pass) runs in a process of its own. Its memory is the largest resident size beyond what the
process held before, for "ours" with checkpoints, "ours iters" with all steps kept, "ours fixed-pt" with the gradient of
the fixed point.
"""

import copy
import functools
import importlib
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from harness import Row, arguments, declare_torchvision_operators, report, report_quality
from torch.nn import functional

from mrirecon.models import build_model
from operators.dictionary import ConvolutionalDictionary
from operators.elementary import Mask
from operators.fields import root_mean_square
from operators.filters import random_filters
from operators.fourier import Fourier
from operators.linear_operator import LinearOperator
from operators.priors.csc import ConvolutionalSparseCoding, GradientOf, published
from operators.priors.sparsity import Estimate, FilterMaps, Maps, SparsityMaps
from operators.priors.unet import UNet

Apply = Callable[[torch.Tensor], torch.Tensor]
_Result = TypeVar("_Result")

_NOISE_STD = 0.05
_GRADIENTS: dict[str, GradientOf] = {
    "ours": "checkpointed",
    "ours iters": "iterations",
    "ours fixed-pt": "fixed-point",
}


@dataclass(frozen=True, slots=True)
class Case:
    """A scan of n × n pixels to be reconstructed with ``n_filters`` of ``size`` × ``size`` pixels."""

    n: int
    n_filters: int
    size: int
    n_iterations: int = 64
    n_rounds: int = 3
    is_large: bool = False

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.n}² {self.n_filters} filters {self.size}×{self.size}"

    def scan(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Complex data ``(ky, kx)`` of a random image whose spectrum falls off, and the mask."""
        n, generator = self.n, torch.Generator().manual_seed(0)
        mask = torch.zeros(n, n)
        mask[n // 4 : -(n // 4), n // 4 : -(n // 4)] = 1
        along = torch.arange(n) - n // 2
        envelope = 1 / (1 + along[:, None].square() + along.square()).sqrt()
        spectrum = torch.randn(n, n, dtype=torch.complex64, generator=generator) * envelope
        noise = torch.randn(n, n, dtype=torch.complex64, generator=generator) * 2**0.5
        spectrum = spectrum * n / torch.linalg.vector_norm(spectrum)  # a root mean square of one
        return mask * (spectrum + _NOISE_STD * noise), mask

    def imaging(self) -> LinearOperator:
        """The operator of the scan."""
        return _imaging(self.scan()[1])

    def filters(self) -> torch.Tensor:
        """Real ``(filter, ky, kx)``."""
        return random_filters(self.n_filters, self.size, seed=0)

    def model(self, gradient: GradientOf, *, given_maps: bool) -> ConvolutionalSparseCoding:
        """The published method, untrained, with thresholds that leave codes alive."""
        maps = GivenMaps(self) if given_maps else _seeded_network()
        model = published(self.filters())
        model.maps, model.gradient, model.n_iterations = maps, gradient, self.n_iterations
        return model


class GivenMaps(SparsityMaps):
    """Maps that do not depend on the image; learned themselves."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        values = 0.4 + 1.6 * torch.rand(case.n_filters, case.n, case.n, generator=generator)
        self.values = torch.nn.Parameter(values)

    def forward(self, known: Estimate, dictionary: ConvolutionalDictionary) -> Maps:
        """Return the values."""
        return Maps(self.values)


def _seeded_network() -> FilterMaps:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        maps = FilterMaps()
    torch.nn.init.constant_(maps.network.head.bias, -1.0)  # or all codes of random data would be zero
    return maps


@dataclass(frozen=True, slots=True)
class Parts:
    """What the straightforward implementation is made of, on images ``(y, x)`` and codes ``(filter, y, x)``."""

    forward: Apply
    adjoint: Apply
    synthesis: Apply
    analysis: Apply
    difference_gram: Apply
    largest_eigenvalue: Callable[[Apply, torch.Tensor], torch.Tensor]
    solve: Callable[[Apply, torch.Tensor], torch.Tensor]


def naive(mask: torch.Tensor, filters: torch.Tensor) -> Parts:
    """What one writes first: shifts around every FFT, circular padding around every convolution."""
    dims = (-2, -1)
    radius = filters.shape[-1] // 2
    kernel = filters[:, None]

    def forward(x: torch.Tensor) -> torch.Tensor:
        shifted = torch.fft.ifftshift(x, dim=dims)
        return mask * torch.fft.fftshift(torch.fft.fftn(shifted, dim=dims, norm="ortho"), dim=dims)

    def adjoint(y: torch.Tensor) -> torch.Tensor:
        shifted = torch.fft.ifftshift(mask * y, dim=dims)
        return torch.fft.fftshift(torch.fft.ifftn(shifted, dim=dims, norm="ortho"), dim=dims)

    def padded(x: torch.Tensor) -> torch.Tensor:
        return functional.pad(torch.stack((x.real, x.imag)), (radius,) * 4, mode="circular")

    def analysis(x: torch.Tensor) -> torch.Tensor:
        return torch.complex(*functional.conv2d(padded(x[None]), kernel))

    def synthesis(codes: torch.Tensor) -> torch.Tensor:
        return torch.complex(*functional.conv_transpose2d(padded(codes), kernel, padding=2 * radius))[0]

    def difference_gram(x: torch.Tensor) -> torch.Tensor:
        return 4 * x - sum((torch.roll(x, shift, dim) for dim in dims for shift in (-1, 1)), torch.zeros_like(x))

    return Parts(forward, adjoint, synthesis, analysis, difference_gram, _power_iterations, _conjugate_gradients)


def mrpro(mask: torch.Tensor, filters: torch.Tensor) -> Parts:
    """The same of MRpro's operators and solvers; the mask is a product, which is cheaper than its sampling operator."""
    declare_torchvision_operators()
    operators = importlib.import_module("mrpro.operators")
    cg = importlib.import_module("mrpro.algorithms.optimizers").cg
    fourier = operators.FastFourierOp(dim=(-2, -1))
    synthesis = operators.ConvSynthesisDictionaryOp(filters.flip(-2, -1), pad_mode="circular")
    analysis = operators.ConvAnalysisDictionaryOp(filters, pad_mode="circular")  # cheaper than the other's adjoint
    differences = operators.FiniteDifferenceOp(dim=(-2, -1), mode="forward", pad_mode="circular")

    def largest_eigenvalue(gram: Apply, start: torch.Tensor) -> torch.Tensor:
        class Gram(operators.LinearOperator):
            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
                return (gram(x),)

            adjoint = forward

        options = {"max_iterations": 8, "relative_tolerance": 0.0, "absolute_tolerance": 0.0}  # each applies it twice
        return Gram().operator_norm(start, dim=None, **options).squeeze()

    return Parts(
        lambda x: mask * fourier(x)[0],
        lambda y: fourier.adjoint(mask * y)[0],
        lambda codes: synthesis(codes)[0],
        lambda x: analysis(x)[0],
        lambda x: differences.adjoint(differences(x)[0])[0],
        largest_eigenvalue,
        lambda gram, rhs: cg(lambda x: (gram(x),), rhs, max_iterations=16, tolerance=0.0)[0],
    )


def _power_iterations(gram: Apply, start: torch.Tensor) -> torch.Tensor:
    x = start
    for _ in range(16):
        x = gram(x / torch.linalg.vector_norm(x))
    return torch.linalg.vector_norm(x)


def _conjugate_gradients(gram: Apply, rhs: torch.Tensor, n_iterations: int = 16) -> torch.Tensor:
    x, residual, direction = torch.zeros_like(rhs), rhs, rhs
    power = torch.vdot(residual.flatten(), residual.flatten()).real
    for _ in range(n_iterations):
        image = gram(direction)
        length = power / torch.vdot(direction.flatten(), image.flatten()).real
        x, residual = x + length * direction, residual - length * image
        previous, power = power, torch.vdot(residual.flatten(), residual.flatten()).real
        direction = residual + power / previous * direction
    return x


def straightforward(model: ConvolutionalSparseCoding, y: torch.Tensor, parts: Parts) -> torch.Tensor:
    """What ``model`` computes, step by step with the weights of it and nothing else, for autograd to differentiate."""
    x0 = parts.adjoint(y)
    scale = root_mean_square(x0, 2)
    x0, y = x0 / scale, y / scale
    smoothness = model.log_smoothness.exp()
    low_pass = parts.solve(lambda x: x + smoothness * parts.difference_gram(x), x0)
    maps = _maps(model.maps, parts.analysis(x0))
    with torch.no_grad():
        start = torch.randn(maps.shape, dtype=x0.dtype, generator=torch.Generator().manual_seed(2))
        step = 1 / parts.largest_eigenvalue(
            lambda s: parts.analysis(parts.adjoint(parts.forward(parts.synthesis(s)))), start
        )
    target = y - parts.forward(low_pass)
    codes = extrapolated = torch.zeros_like(start)
    for i in range(model.n_iterations):
        gradient = parts.analysis(parts.adjoint(parts.forward(parts.synthesis(extrapolated)) - target))
        descended = extrapolated - step * gradient
        new = torch.complex(*(_shrunk(part, step * maps) for part in (descended.real, descended.imag)))
        codes, extrapolated = new, new + i / (i + 4) * (new - codes)
    return scale * (low_pass + parts.synthesis(codes))


def _shrunk(x: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    return x.sign() * (x.abs() - threshold).relu()


def _maps(maps: SparsityMaps, analysis: torch.Tensor) -> torch.Tensor:
    if not isinstance(maps, FilterMaps):
        return maps.get_parameter("values")
    u = _plain_network(maps.network, torch.view_as_real(analysis).movedim(-1, 1).contiguous())
    return 3 * functional.softplus(u[:, 0], beta=1.5)


def _plain_network(network: UNet, x: torch.Tensor) -> torch.Tensor:
    """The network in the memory format in which torch creates it."""
    skips = []
    for stage, block in enumerate(network.down):
        x = _plain_block(block, functional.max_pool2d(x, 2) if stage else x)
        skips.append(x)
    for block, skip in zip(network.up, skips[-2::-1], strict=True):
        x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = _plain_block(block, torch.cat((x, skip), dim=1))
    return _plain_convolution(network.head, x)


def _plain_block(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    for layer in block.children():
        x = _plain_convolution(layer, x) if isinstance(layer, torch.nn.Conv2d) else layer(x)
    return x


def _plain_convolution(layer: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return functional.conv2d(x, layer.weight.contiguous(), layer.bias, padding=layer.padding)


def main() -> None:
    """Run every case."""
    options = arguments(__doc__ or "", parts=("training", "inference", "threads"))
    if options.quick:
        inference = [Case(64, 8, 7, n_iterations=16, n_rounds=2)]
        training = [Case(48, 4, 5, n_iterations=8, n_rounds=1)]
    else:
        inference = [
            Case(128, 32, 9),
            Case(128, 64, 11),
            Case(320, 32, 9, n_rounds=1, is_large=True),
            Case(320, 64, 11, n_rounds=1, is_large=True),
        ]
        training = [Case(128, 32, 9, n_rounds=2), Case(128, 64, 11, n_rounds=1, is_large=True)]
    rows: list[Row] = []
    memory: list[dict[str, str | float]] = []
    for case in training if "training" in options.parts else ():
        for given_maps in (True, False):
            steps = _training_steps(case, given_maps=given_maps)
            rows += _announced([row for row, _ in steps])
            memory += _memory_rows(steps)
    for case in inference if "inference" in options.parts else ():
        for given_maps in (True, False):
            rows += _announced(_inference(case, given_maps=given_maps))
        rows += _announced(_inference_by_default(case))
    if "threads" in options.parts and not options.quick:
        rows += _announced(_in_another_process(_on_two_threads, inference[0]))
    if memory:
        report_quality("csc memory", memory)
    report("csc", rows)


def _announced(rows: list[Row]) -> list[Row]:
    """Say at once what was measured: the tables come at the end, after half an hour."""
    for row in rows:
        print(f"{row.case}, {row.what}, {row.candidate}: {row.ms:.0f} ms, error {row.error:.1e}", file=sys.stderr)
    return rows


@torch.no_grad()
def _inference(case: Case, *, given_maps: bool) -> list[Row]:
    model = case.model("iterations", given_maps=given_maps)
    (y, mask), A = case.scan(), case.imaging()
    calls: dict[str, Callable[[], torch.Tensor]] = {"ours": functools.partial(model, y, A, _NOISE_STD)}
    for name in _peers(case):
        calls[name] = functools.partial(straightforward, model, y, _PEERS[name](mask, case.filters()))
    if given_maps and not case.is_large:
        calls["converged"] = functools.partial(straightforward, model, y, _converged(case, mask))
    reference = calls["ours"]() if case.is_large else _in_double_precision(model, y, mask)
    return _fastest(case, "inference, given maps" if given_maps else "inference", calls, reference)


@torch.no_grad()
def _inference_by_default(case: Case) -> list[Row]:
    """The network that reconstructs without options, untrained; no peer has it."""
    model, (y, mask), A = _default_model(case), case.scan(), case.imaging()
    call = functools.partial(model, y, A, _NOISE_STD)
    reference = call() if case.is_large else _in_double_precision(model, y, mask)
    return _fastest(case, "inference, default", {"ours": call}, reference)


@torch.no_grad()
def _on_two_threads(case: Case) -> list[Row]:
    torch.set_num_threads(2)
    (y, _), A = case.scan(), case.imaging()
    rows: list[Row] = []
    for what, model in (("published", case.model("iterations", given_maps=False)), ("default", _default_model(case))):
        call = functools.partial(model, y, A, _NOISE_STD)
        reference = call()
        repeated = replace(case, n_rounds=2 * case.n_rounds)
        rows += _fastest(repeated, f"{what}, 2 threads", {"ours": call}, reference, clock=time.perf_counter)
    return rows


def _training_steps(case: Case, *, given_maps: bool) -> list[tuple[Row, float]]:
    """Time and largest memory of a step for each candidate, with the error of its gradient."""
    what = "training, given maps" if given_maps else "training"
    precision = torch.float32 if case.is_large else torch.float64
    _, _, reference = _in_another_process(_training_step, case, "ours", given_maps, precision)
    steps = []
    for name in (*_GRADIENTS, *_peers(case)):
        ms, peak_mb, gradient = _in_another_process(_training_step, case, name, given_maps, torch.float32)
        steps.append((Row(case.name, what, name, ms, _relative_error(gradient, reference)), peak_mb))
    return steps


def _training_step(
    case: Case, candidate: str, given_maps: bool, precision: torch.dtype
) -> tuple[float, float, torch.Tensor]:
    """Milliseconds, largest memory in MB beyond what was there before, and the gradient of a step."""
    torch.set_num_threads(1)
    _prepared(Case(16, 2, 3, n_iterations=4), candidate, given_maps, precision)()  # what the first step imports
    step = _prepared(case, candidate, given_maps, precision)
    before, fastest = _largest_memory_mb(), float("inf")
    for _ in range(case.n_rounds):
        start = time.process_time()
        gradient = step()
        fastest = min(fastest, 1e3 * (time.process_time() - start))
    return fastest, _largest_memory_mb() - before, gradient.double()


def _prepared(case: Case, candidate: str, given_maps: bool, precision: torch.dtype) -> Callable[[], torch.Tensor]:
    """A training step that returns the gradient of all parameters."""
    model = case.model(_GRADIENTS.get(candidate, "iterations"), given_maps=given_maps).to(precision)
    y, mask = case.scan()
    y, mask = y.to(precision.to_complex()), mask.to(precision)
    if candidate in _GRADIENTS:
        reconstruct = functools.partial(model, y, _imaging(mask), _NOISE_STD)
    else:
        reconstruct = functools.partial(straightforward, model, y, _PEERS[candidate](mask, case.filters()))

    def step() -> torch.Tensor:
        loss = torch.view_as_real(reconstruct()).square().sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    return step


def _memory_rows(steps: list[tuple[Row, float]]) -> list[dict[str, str | float]]:
    own = steps[0][1]
    return [
        {
            "case": row.case,
            "what": row.what,
            "candidate": row.candidate,
            "MB": round(peak_mb, 1),
            "ratio": round(peak_mb / own, 2),
        }
        for row, peak_mb in steps
    ]


def _fastest(
    case: Case,
    what: str,
    calls: Mapping[str, Callable[[], torch.Tensor]],
    reference: torch.Tensor,
    *,
    clock: Callable[[], float] = time.process_time,
) -> list[Row]:
    """Time candidates in turn; other jobs can only add to the smallest time, and that takes no round to warm up."""
    ms, errors = dict.fromkeys(calls, float("inf")), dict.fromkeys(calls, 0.0)
    for _ in range(case.n_rounds):
        for name, call in calls.items():
            start = clock()
            image = call()
            ms[name] = min(ms[name], 1e3 * (clock() - start))
            errors[name] = _relative_error(image, reference)
    return [Row(case.name, what, name, ms[name], errors[name]) for name in calls]


def _in_double_precision(model: ConvolutionalSparseCoding, y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    image: torch.Tensor = copy.deepcopy(model).double()(y.to(torch.complex128), _imaging(mask.double()), _NOISE_STD)
    return image


def _default_model(case: Case) -> ConvolutionalSparseCoding:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("csc", {"n_iterations": 24, "n_stages": 2})  # as configs/lowfield_csc.toml
    assert isinstance(model, ConvolutionalSparseCoding)
    return model.with_filters(case.filters()).eval()


def _converged(case: Case, mask: torch.Tensor) -> Parts:
    """The naive parts with the exact step and smooth part, which shows that all solve the same problem."""
    norm = ConvolutionalDictionary(case.filters(), (case.n, case.n)).norm()
    return replace(
        naive(mask, case.filters()),
        largest_eigenvalue=lambda gram, start: norm.square(),
        solve=functools.partial(_conjugate_gradients, n_iterations=300),
    )


def _imaging(mask: torch.Tensor) -> LinearOperator:
    fourier = Fourier(tuple(mask.shape))
    return Mask(mask, fourier.codomain) @ fourier


def _peers(case: Case) -> list[str]:
    """Peers that are installed; of a large case, only the naive one."""
    installed = []
    for name, build in _PEERS.items():
        try:
            build(torch.ones(1, 1), torch.ones(1, 1, 1))
        except ImportError as error:
            print(f"{name} is skipped: {error}")
        else:
            installed.append(name)
    return installed[:1] if case.is_large else installed


def _in_another_process(work: Callable[..., _Result], *arguments: Any) -> _Result:
    """Run where no memory was taken before. Each process is forked from one that has taken hardly any."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", ConvolutionalSparseCoding.__module__])
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def _largest_memory_mb() -> float:
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _relative_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    return float((result - reference).norm() / reference.norm())


_PEERS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], Parts]] = {"naive": naive, "mrpro": mrpro}


if __name__ == "__main__":
    main()
