"""The non-uniform Fourier transform at like accuracy: ours against FINUFFT, torchkbnufft, MRpro and SigPy.

Run ``python benchmarks/nufft.py``; a peer that is not installed is skipped with a word. Trajectories are radial, but a
spiral for 192×192. Rows are grouped by the accuracy that ours is asked for, and the error of the first coil is against
the explicit transform in double precision. A gram is a Toeplitz convolution where the package has one, else forward and
adjoint; that of "ours finufft" is forward and adjoint too, although the operator's is the convolution. Data are in
single precision. Peers take the trajectory in it too, which puts a floor under their error whatever is asked of them;
ours takes it in double, and so does "finufft f64", which converts the data.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from harness import Row, arguments, declare_torchvision_operators, measure, report

from operators.nufft import Backend, NonUniformFourier

Apply = Callable[[torch.Tensor], torch.Tensor]

_NO_REFERENCE = torch.ones(1)  # errors are computed apart
_N_PIXELS = 64  # at which adjoint and gram are compared
_SAMPLES_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Case:
    """Images ``(coil, *image_shape)`` and a trajectory, with what the explicit transform makes of coil 0."""

    name: str
    trajectory: torch.Tensor
    x: torch.Tensor
    samples: torch.Tensor
    pixels: torch.Tensor
    gram: torch.Tensor

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``([z,] y, x)``."""
        return tuple(self.x.shape[1:])


@dataclass(frozen=True, slots=True)
class Candidate:
    """The maps of one implementation, on complex64 ``(coil, *image_shape)`` and ``(coil, sample)``.

    ``scale`` brings its forward transform to the centred orthonormal one; ``gram_scale`` its gram.
    """

    forward: Apply
    adjoint: Apply
    gram: Apply
    scale: float = 1.0
    gram_scale: float = 1.0
    differentiable: bool = True


def ours(case: Case, accuracy: float) -> Candidate:
    """Build the operator of this project, and its Toeplitz gram."""
    operator = _operator(case, accuracy)
    return Candidate(operator, operator.adjoint, operator.toeplitz_gram())


def ours_exact_gram(case: Case, accuracy: float) -> Candidate:
    """Build the same with AᴴA by forward and adjoint."""
    operator = _operator(case, accuracy)
    return Candidate(operator, operator.adjoint, lambda x: operator.adjoint(operator(x)))


def ours_by_finufft(case: Case, accuracy: float) -> Candidate:
    """Build the operator of this project with FINUFFT as its backend, and AᴴA by forward and adjoint."""
    operator = _operator(case, accuracy, "finufft")
    return Candidate(operator, operator.adjoint, lambda x: operator.adjoint(operator(x)))


def _operator(case: Case, accuracy: float, backend: Backend = "gridding") -> NonUniformFourier:
    return NonUniformFourier(case.trajectory, case.image_shape, n_coils=len(case.x), accuracy=accuracy, backend=backend)


def finufft(case: Case, accuracy: float) -> Candidate:
    """Build pytorch-finufft's functions, which sort the samples at every call."""
    return _pytorch_finufft(case, accuracy, torch.complex64)


def finufft_double(case: Case, accuracy: float) -> Candidate:
    """Build the same for data that are converted to double precision and back."""
    return _pytorch_finufft(case, accuracy, torch.complex128)


def _pytorch_finufft(case: Case, accuracy: float, dtype: torch.dtype) -> Candidate:
    functional = importlib.import_module("pytorch_finufft.functional")
    points = case.trajectory.T.to(dtype.to_real()).contiguous()
    options = {"modeord": 0, "eps": accuracy, "nthreads": torch.get_num_threads()}

    def forward(x: torch.Tensor) -> torch.Tensor:
        return functional.finufft_type2(points, x.to(dtype), isign=-1, **options).to(x.dtype)

    def adjoint(y: torch.Tensor) -> torch.Tensor:
        return functional.finufft_type1(points, y.to(dtype), case.image_shape, isign=1, **options).to(y.dtype)

    n_pixels = math.prod(case.image_shape)
    return Candidate(forward, adjoint, lambda x: adjoint(forward(x)), n_pixels**-0.5, 1 / n_pixels)


def mrpro(case: Case, accuracy: float) -> Candidate:
    """Build MRpro's NonUniformFastFourierOp, whose accuracy is fixed."""
    declare_torchvision_operators()
    data = importlib.import_module("mrpro.data")
    operators = importlib.import_module("mrpro.operators")
    shape = case.image_shape
    indices = [
        (w * n / (2 * math.pi)).float().view(1, 1, 1, 1, -1)
        for w, n in zip(case.trajectory.unbind(dim=1), shape, strict=True)
    ]
    trajectory = data.KTrajectory(*([torch.zeros(1, 1, 1, 1, 1)] * (3 - len(shape))), *indices)
    operator = operators.NonUniformFastFourierOp(("z", "y", "x")[-len(shape) :], shape, shape, trajectory)
    gram = operator.gram
    leading = (1, len(case.x), *(1,) * (3 - len(shape)))

    def forward(x: torch.Tensor) -> torch.Tensor:
        return operator(x.view(*leading, *shape))[0].view(len(x), -1)

    def adjoint(y: torch.Tensor) -> torch.Tensor:
        return operator.adjoint(y.view(1, len(y), 1, 1, -1))[0].view(-1, *shape)

    return Candidate(forward, adjoint, lambda x: gram(x.view(*leading, *shape))[0].view(-1, *shape))


def sigpy(case: Case, accuracy: float) -> Candidate:
    """Build SigPy's NUFFT linop with its default width and grid, whose accuracy is fixed."""
    linop = importlib.import_module("sigpy").linop
    sizes = torch.tensor(case.image_shape) / (2 * math.pi)
    operator = linop.NUFFT(tuple(case.x.shape), (case.trajectory * sizes).float().numpy())

    def wrapped(apply: Callable[..., Any]) -> Apply:
        return lambda z: torch.as_tensor(apply(z.numpy()))

    return Candidate(wrapped(operator), wrapped(operator.H), wrapped(operator.N), differentiable=False)


def torchkbnufft_table(case: Case, accuracy: float) -> Candidate:
    """Build torchkbnufft with its interpolation table, which is the default."""
    return _torchkbnufft(case, sparse=False)


def torchkbnufft_sparse(case: Case, accuracy: float) -> Candidate:
    """Build torchkbnufft with sparse interpolation matrices."""
    return _torchkbnufft(case, sparse=True)


def _torchkbnufft(case: Case, *, sparse: bool) -> Candidate:
    package = importlib.import_module("torchkbnufft")
    omega, shape = case.trajectory.T.float().contiguous(), case.image_shape
    transform = package.KbNufft(im_size=shape)
    back, toeplitz = package.KbNufftAdjoint(im_size=shape), package.ToepNufft()
    matrices = package.calc_tensor_spmatrix(omega, im_size=shape) if sparse else None
    kernel = package.calc_toeplitz_kernel(omega, im_size=shape, norm="ortho")
    n_pixels = math.prod(shape)
    return Candidate(
        lambda x: transform(x[None], omega, interp_mats=matrices)[0],
        lambda y: back(y[None], omega, interp_mats=matrices)[0],
        lambda x: toeplitz(x[None], kernel, norm="ortho")[0],
        n_pixels**-0.5,
        2.0 ** len(shape),
    )


Build = Callable[[Case, float], Candidate]

# Accuracy asked of ours → name of each candidate, how it is built, and the accuracy asked of it.
GROUPS: Mapping[float, Mapping[str, tuple[Build, float]]] = {
    1e-3: {
        "ours": (ours, 1e-3),
        "ours AᴴA": (ours_exact_gram, 1e-3),
        "ours finufft": (ours_by_finufft, 1e-3),
        "finufft 1e-3": (finufft, 1e-3),
        "finufft 3e-4": (finufft, 3e-4),
        "kb table": (torchkbnufft_table, 1e-3),
        "sigpy": (sigpy, 1e-2),
    },
    1e-5: {
        "ours": (ours, 1e-5),
        "ours AᴴA": (ours_exact_gram, 1e-5),
        "ours finufft": (ours_by_finufft, 1e-5),
        "finufft 1e-5": (finufft, 1e-5),
        "finufft 1e-6": (finufft, 1e-6),
        "mrpro": (mrpro, 1e-6),
        "kb sparse": (torchkbnufft_sparse, 1e-5),
    },
    1e-6: {
        "ours": (ours, 1e-6),
        "ours AᴴA": (ours_exact_gram, 1e-6),
        "ours finufft": (ours_by_finufft, 1e-6),
        "finufft 1e-6": (finufft, 1e-6),
        "finufft f64": (finufft_double, 1e-6),
        "mrpro": (mrpro, 1e-6),
    },
}


def main() -> None:
    """Run every case."""
    options = arguments(__doc__ or "")
    rows: list[Row] = []
    if options.quick:
        cases = [((64, 64), 1, _radial(60, 128), (1e-3, 1e-5))]
    else:
        cases = [
            ((256, 256), 8, _radial(402, 512), tuple(GROUPS)),
            ((192, 192), 8, _spiral(12, 4800), tuple(GROUPS)),
            ((128, 128), 1, _radial(201, 256), tuple(GROUPS)),
            ((64, 64, 64), 1, _radial_3d(256, 128), tuple(GROUPS)),
            ((64, 64, 64), 8, _radial_3d(256, 128), (1e-6,)),
        ]
    for shape, n_coils, trajectory, accuracies in cases:
        case = _case(shape, n_coils, trajectory)
        for accuracy in accuracies:
            rows += _rows(replace(case, name=f"{case.name} {accuracy:.0e}"), GROUPS[accuracy], n_rounds=5)
    report("nufft", rows)


def _rows(case: Case, group: Mapping[str, tuple[Build, float]], n_rounds: int) -> list[Row]:
    candidates: dict[str, Candidate] = {}
    for name, (build, accuracy) in group.items():
        try:
            candidates[name] = build(case, accuracy)
        except ImportError as error:
            print(f"{name} is skipped: {error}")
    y = NonUniformFourier(case.trajectory, case.image_shape, n_coils=len(case.x), accuracy=1e-6)(case.x)
    adjoint = _at_pixels(y[0], case)
    rows: list[Row] = []
    for what, argument in (("forward", case.x), ("adjoint", y), ("gram", case.x)):
        chosen = candidates if what == "gram" else {n: c for n, c in candidates.items() if n != "ours AᴴA"}
        calls = {name: _call(getattr(candidate, what), argument) for name, candidate in chosen.items()}
        for row in measure(case.name, what, calls, _NO_REFERENCE, n_rounds=n_rounds):
            result = calls[row.candidate]()[0]
            scale = candidates[row.candidate].gram_scale if what == "gram" else candidates[row.candidate].scale
            expected = {"forward": case.samples, "adjoint": adjoint, "gram": case.gram}[what]
            compared = result if what == "forward" else result.flatten()[case.pixels]
            rows.append(replace(row, error=_relative_error(scale * compared, expected)))
    calls = {
        name: _gradient_call(candidate.forward, case.x)
        for name, candidate in candidates.items()
        if candidate.differentiable and name != "ours AᴴA"
    }
    for row in measure(case.name, "forward + backward", calls, _NO_REFERENCE, n_rounds=n_rounds):
        gradient = calls[row.candidate]()[0].flatten()[case.pixels]
        scale = candidates[row.candidate].scale ** 2
        rows.append(replace(row, error=_relative_error(scale * gradient, case.gram)))
    return rows


def _call(apply: Apply, argument: torch.Tensor) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        with torch.no_grad():
            return apply(argument)

    return call


def _gradient_call(forward: Apply, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        variable = x.clone().requires_grad_()
        loss = 0.5 * torch.view_as_real(forward(variable)).square().sum()
        (gradient,) = torch.autograd.grad(loss, variable)
        return gradient

    return call


def _relative_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    return float((result - reference).norm() / reference.norm())


def _case(image_shape: tuple[int, ...], n_coils: int, trajectory: torch.Tensor) -> Case:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_coils, *image_shape, generator=generator, dtype=torch.complex64)
    pixels = torch.randperm(math.prod(image_shape), generator=generator)[:_N_PIXELS]
    sizes = "×".join(map(str, image_shape))
    name = f"{sizes}, {n_coils} {'coils' if n_coils > 1 else 'coil'}"
    case = Case(name, trajectory, x, _NO_REFERENCE, pixels, _NO_REFERENCE)
    samples = _explicit_samples(x[0], trajectory)
    return replace(case, samples=samples, gram=_at_pixels(samples, case))


def _explicit_samples(image: torch.Tensor, trajectory: torch.Tensor) -> torch.Tensor:
    """Explicit transform of one image, one dimension after the other."""
    parts = []
    for some in trajectory.split(_SAMPLES_AT_ONCE):
        partial = image.to(torch.complex128)[..., None].expand(*image.shape, 1)
        for position_rad, n in zip(reversed(some.unbind(dim=1)), reversed(image.shape), strict=True):
            phase = torch.exp(-1j * position_rad * (torch.arange(n)[:, None] - n // 2))  # (pixel, sample)
            if partial.shape[-1] == 1:
                partial = partial[..., 0] @ phase
            else:
                partial = (partial * phase).sum(dim=-2)
        parts.append(partial)
    return torch.cat(parts) / math.sqrt(image.numel())


def _at_pixels(samples: torch.Tensor, case: Case) -> torch.Tensor:
    """Explicit adjoint of the samples of one coil, at the pixels of the case only."""
    shape = case.image_shape
    indices = torch.stack(torch.unravel_index(case.pixels, shape)) - torch.tensor(shape)[:, None] // 2
    total = torch.zeros(len(case.pixels), dtype=torch.complex128)
    for positions, values in zip(
        case.trajectory.split(_SAMPLES_AT_ONCE), samples.to(torch.complex128).split(_SAMPLES_AT_ONCE), strict=True
    ):
        total += values @ torch.exp(1j * (positions @ indices.double()))
    return total / math.sqrt(math.prod(shape))


def _radial(n_spokes: int, n_samples: int) -> torch.Tensor:
    """Spokes through the origin, uniform over half a turn."""
    angles = torch.arange(n_spokes, dtype=torch.float64)[:, None] * math.pi / n_spokes
    radii = (torch.arange(n_samples, dtype=torch.float64) - n_samples // 2) * 2 * math.pi / n_samples
    return torch.stack((radii * angles.sin(), radii * angles.cos()), dim=-1).view(-1, 2)


def _spiral(n_interleaves: int, n_samples: int) -> torch.Tensor:
    """Archimedean spirals of 8 turns from the origin to the edge, at constant linear speed but for their first turn."""
    progress = (torch.arange(n_samples, dtype=torch.float64) + 0.5) / n_samples
    radii = math.pi * progress.sqrt()
    starts = torch.arange(n_interleaves, dtype=torch.float64)[:, None] * 2 * math.pi / n_interleaves
    angles = starts + 16 * math.pi * progress.sqrt()
    return torch.stack((radii * angles.sin(), radii * angles.cos()), dim=-1).view(-1, 2)


def _radial_3d(n_spokes: int, n_samples: int) -> torch.Tensor:
    """Spokes whose ends spiral over half a sphere by the golden angle."""
    index = torch.arange(n_spokes, dtype=torch.float64)
    height = (index + 0.5) / n_spokes
    angles = index * math.pi * (3 - math.sqrt(5))
    across = (1 - height.square()).sqrt()
    directions = torch.stack((height, across * angles.sin(), across * angles.cos()), dim=-1)
    radii = (torch.arange(n_samples, dtype=torch.float64) - n_samples // 2) * 2 * math.pi / n_samples
    return (directions[:, None, :] * radii[:, None]).view(-1, 3)


if __name__ == "__main__":
    main()
