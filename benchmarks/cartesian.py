"""Cartesian multi-coil MRI, ``Mask @ Fourier @ Sensitivity``: ours against a naive formulation, MRpro, deepinv, SigPy.

Run ``python benchmarks/cartesian.py``; a peer that is not installed is skipped with a word. All work on the same
centred orthonormal problem, and the error beside each time is against double precision.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from harness import Row, arguments, declare_torchvision_operators, measure, report

from operators import Fourier, LinearOperator, Mask, Sensitivity

Apply = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Candidate:
    """The three maps of one implementation, on complex tensors (batch, y, x) and (batch, coil, ky, kx)."""

    forward: Apply
    adjoint: Apply
    gram: Apply


def ours(csm: torch.Tensor, mask: torch.Tensor) -> Candidate:
    """Build the operator of this project."""
    operator: LinearOperator = _operator(csm, mask)
    return Candidate(operator, operator.adjoint, operator.gram)


def naive(csm: torch.Tensor, mask: torch.Tensor) -> Candidate:
    """Build what one writes first: ``fftshift(fftn(ifftshift(x)))`` on all coils at once."""
    dims = (-2, -1)

    def forward(x: torch.Tensor) -> torch.Tensor:
        coils = torch.fft.ifftshift(csm * x[..., None, :, :], dim=dims)
        return mask * torch.fft.fftshift(torch.fft.fftn(coils, dim=dims, norm="ortho"), dim=dims)

    def adjoint(y: torch.Tensor) -> torch.Tensor:
        coils = torch.fft.ifftn(torch.fft.ifftshift(mask * y, dim=dims), dim=dims, norm="ortho")
        return (csm.conj() * torch.fft.fftshift(coils, dim=dims)).sum(dim=-3)

    return Candidate(forward, adjoint, lambda x: adjoint(forward(x)))


def mrpro(csm: torch.Tensor, mask: torch.Tensor) -> Candidate:
    """Build MRpro's FastFourierOp @ SensitivityOp, masked by multiplication (cheaper than its sampling operator)."""
    declare_torchvision_operators()
    operators = importlib.import_module("mrpro.operators")
    operator = operators.FastFourierOp(dim=(-2, -1)) @ operators.SensitivityOp(csm[:, None])

    def forward(x: torch.Tensor) -> torch.Tensor:
        return mask * operator(x[:, None, None])[0][:, :, 0]

    def adjoint(y: torch.Tensor) -> torch.Tensor:
        return operator.adjoint((mask * y)[:, :, None])[0][:, 0, 0]

    return Candidate(forward, adjoint, lambda x: adjoint(forward(x)))


def deepinv(csm: torch.Tensor, mask: torch.Tensor) -> Candidate:
    """Build deepinv's MultiCoilMRI, in its own layout: real and imaginary part as channels."""
    declare_torchvision_operators()
    physics = importlib.import_module("deepinv.physics").MultiCoilMRI(
        mask=mask.expand(csm.shape[-2:])[None, None], coil_maps=csm[None], img_size=tuple(csm.shape[-2:])
    )

    def channels(z: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(z).movedim(-1, 1)

    def back(z: torch.Tensor) -> torch.Tensor:
        return torch.complex(z[:, 0], z[:, 1])

    return Candidate(
        lambda x: back(physics.A(channels(x))),
        lambda y: back(physics.A_adjoint(channels(y))),
        lambda x: back(physics.A_adjoint(physics.A(channels(x)))),
    )


def sigpy(csm: torch.Tensor, mask: torch.Tensor) -> Candidate:
    """Build SigPy's Sense linop, applied image by image: it has no batch."""
    app = importlib.import_module("sigpy.mri.linop")
    full_mask = mask.expand(csm.shape[-2:]).numpy()
    operator = app.Sense(csm.numpy(), weights=full_mask)  # applies sqrt(weights); 0 and 1 are their own roots

    def batched(apply: Callable[..., object]) -> Apply:
        return lambda z: torch.stack([torch.as_tensor(apply(sample)) for sample in z.numpy()])

    return Candidate(batched(operator), batched(operator.H), batched(operator.N))


def main() -> None:
    """Run every case."""
    options = arguments(__doc__ or "")
    generator = torch.Generator().manual_seed(0)
    rows: list[Row] = []
    cases = [(128, 1, 4)] if options.quick else [(320, 16, 4), (128, 1, 4)]
    for size, n_coils, n_batch in cases:
        csm = torch.randn(n_coils, size, size, generator=generator, dtype=torch.complex64)
        csm = csm / csm.abs().square().sum(dim=0).sqrt()
        x = torch.randn(n_batch, size, size, generator=generator, dtype=torch.complex64)
        lines = (torch.rand(size, 1, generator=generator) < 0.4).float()
        points = (torch.rand(size, size, generator=generator) < 0.4).float()
        for sampling, mask in (("lines", lines), ("points", points)):
            case = f"{size}² {n_coils} coils ×{n_batch} {sampling}"
            rows += _rows(case, csm, mask, x, n_rounds=5 if options.quick else 7)
    report("cartesian", rows)


def _rows(case: str, csm: torch.Tensor, mask: torch.Tensor, x: torch.Tensor, n_rounds: int) -> list[Row]:
    candidates: dict[str, Candidate] = {}
    for build in (ours, naive, mrpro, deepinv, sigpy):
        try:
            candidates[build.__name__] = build(csm, mask)
        except ImportError as error:
            print(f"{build.__name__} is not installed ({error}); skipped.")
    exact = naive(csm.to(torch.complex128), mask.double())
    y = exact.forward(x.to(torch.complex128)).to(x.dtype)
    rows: list[Row] = []
    for what, argument in (("forward", x), ("adjoint", y), ("gram", x)):
        reference = getattr(exact, what)(argument.to(torch.complex128))
        calls = {name: _call(getattr(candidate, what), argument) for name, candidate in candidates.items()}
        rows += measure(case, what, calls, reference, n_rounds=n_rounds)
    reference = exact.gram(x.to(torch.complex128))  # the gradient of ½‖A x‖²
    calls = {name: _gradient_call(candidate.forward, x) for name, candidate in candidates.items() if name != "sigpy"}
    return rows + measure(case, "forward + backward", calls, reference, n_rounds=n_rounds)


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


def _operator(csm: torch.Tensor, mask: torch.Tensor) -> LinearOperator:
    fourier = Fourier(tuple(csm.shape))
    return Mask(mask, fourier.codomain) @ fourier @ Sensitivity(csm)


if __name__ == "__main__":
    main()
