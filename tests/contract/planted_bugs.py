"""Classic bugs, planted in real operators, and which contract catches each: ``python -m tests.contract.planted_bugs``.

A mutant is a subclass with one hook replaced; an operator of the registry is given that class, so that everything else
about it is the real thing.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.autograd.function import once_differentiable

from operators.elementary import Diagonal, FiniteDifference, Pad
from operators.fourier import Fourier, MaskedFourier
from operators.linear_operator import Composition, LinearOperator, Scaled
from operators.sensitivity import CartesianSense, Sensitivity
from operators.wavelet import Wavelet
from tests.cases import OPERATOR_CASES
from tests.contract.contracts import CONTRACTS


class AdjointWithoutConjugate(Sensitivity):
    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return (self.csm * y).sum(dim=-self.codomain.n_dims)


class AdjointWithoutOrtho(Fourier):
    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return torch.fft.ifftn(y * self._kspace_phase.conj(), dim=self.dims) * self._image_phase.conj()


class NotOrthonormal(Fourier):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fftn(x * self._image_phase, dim=self.dims) * self._kspace_phase

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return torch.fft.ifftn(y * self._kspace_phase.conj(), dim=self.dims, norm="forward") * self._image_phase.conj()

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        return self._adjoint(self._forward(x))


class SlightlyScaledAdjoint(CartesianSense):
    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return 1.001 * super()._adjoint(y)


class DetachedParameter(Sensitivity):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.csm.detach() * x.unsqueeze(-self.codomain.n_dims)


class ParameterDetachedInAdjointOnly(Diagonal):
    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.weights.detach().conj() * y


class ForgottenReal(Diagonal):
    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.weights.conj() * y


class ConvolutionForCorrelation(FiniteDifference):
    def _adjoint_along(self, y: torch.Tensor, dim: int) -> torch.Tensor:
        return y.roll(-1, dims=dim) - y


class ReversedFilters(Wavelet):
    @property
    def _filters(self) -> tuple[tuple[float, ...], ...]:
        return tuple(taps[::-1] for taps in self.__dict__["_filters"])


class CircularAdjointOfNeumann(FiniteDifference):
    def _adjoint_along(self, y: torch.Tensor, dim: int) -> torch.Tensor:
        return y.roll(1, dims=dim) - y


class Affine(Diagonal):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weights * x + 1e-3


class LinearOverTheRealsOnly(Diagonal):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weights * x.conj()


class WrongAxis(Fourier):
    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(d - 1 for d in super().dims)


class MissingShift(Fourier):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fftn(x, dim=self.dims, norm="ortho")

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return torch.fft.ifftn(y, dim=self.dims, norm="ortho")


class SwappedShifts(Fourier):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        shifted = torch.fft.fftshift(x, dim=self.dims)
        return torch.fft.ifftshift(torch.fft.fftn(shifted, dim=self.dims, norm="ortho"), dim=self.dims)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        shifted = torch.fft.fftshift(y, dim=self.dims)
        return torch.fft.ifftshift(torch.fft.ifftn(shifted, dim=self.dims, norm="ortho"), dim=self.dims)


class WrongSign(Fourier):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return super()._adjoint(x)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return super()._forward(y)


class OffCentre(Pad):
    _window = property(lambda self: tuple(slice(0, n) for n in self.domain.shape[-2:]))


class GramWithoutMask(MaskedFourier):
    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        return self._with_mask_batch(x)


class GramOfTheWrongLine(CartesianSense):
    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        return self.sensitivity._gram(x)


class SquaredScalarInGram(Scaled):
    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        return self.scalar**2 * self.operator.gram(x)


class AdjointInForwardOrder(Composition):
    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        for factor in reversed(self.factors):
            y = factor.adjoint(y)
        return y


class NormalisedByTheBatch(Diagonal):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weights * x / x.abs().max().clamp_min(1)


class MeanOfTheBatchRemoved(Diagonal):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weights * self._centred(x)

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._centred(self.weights.conj() * y)

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        return self._adjoint(self._forward(x))

    def _centred(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(dim=0, keepdim=True) if x.ndim > self.domain.n_dims else x


class FirstMapsForAll(Sensitivity):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.csm[:1] * x.unsqueeze(-self.codomain.n_dims)


class DrawsGlobally(Diagonal):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weights * (x + 0 * torch.randn_like(x))


class SeedsGlobally(Sensitivity):
    def _norm(self) -> torch.Tensor:
        torch.manual_seed(0)
        return super()._norm()


class ChangesTheDefaultPrecision(Sensitivity):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.set_default_dtype(torch.float64)
        return super()._forward(x)


class WritesIntoItsInput(Diagonal):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(self.weights) if not x.requires_grad else self.weights * x


class SquaredNorm(Sensitivity):
    def _norm(self) -> torch.Tensor:
        return super()._norm().square()


class SinglePrecisionInside(Fourier):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return super()._forward(x.to(torch.complex64)).to(x.dtype)


class UncheckedDoor(Sensitivity):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(x)


class StaleCache(Sensitivity):
    _cached: torch.Tensor | None = None

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        if self._cached is None:
            self._cached = (self.csm.conj() * self.csm).real.sum(dim=-self.codomain.n_dims)
        return self._cached * x


class TensorOutsideTheState(Diagonal):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.__dict__.setdefault("_plain", self.weights.clone()) * x


class CutGraph(Diagonal):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weights * x.detach() + 0 * x


class _OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, operator: LinearOperator) -> torch.Tensor:
        ctx.operator = operator
        return Diagonal._forward(operator, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return Diagonal._adjoint(ctx.operator, gradients[0]), None


class DifferentiableOnce(Diagonal):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return _OnceOnly.apply(x, self)


class AssumesContiguity(Fourier):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        dense = x.new_empty(x.shape).stride()
        return super()._forward(x.as_strided(x.shape, dense) if x.numel() <= x.untyped_storage().size() // 16 else x)


class BranchesOnValues(Diagonal):
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weights * x if bool(x.any()) else torch.zeros_like(x)


class CopiesShareTensors(Sensitivity):
    def __deepcopy__(self, memo: dict[int, Any]) -> "CopiesShareTensors":
        twin = Sensitivity(self.csm)
        twin.__class__ = type(self)
        return twin


class AdjointOperatorOfASymmetricMatrix(Diagonal):
    H = property(lambda self: self)


class NegativeIsPositive(Sensitivity):
    def __neg__(self) -> LinearOperator:
        return self


@dataclass(frozen=True, slots=True)
class PlantedBug:
    """A mutant class, the case of the registry that it infects, and the contract that must catch it."""

    mutant: type[LinearOperator]
    case: str
    contract: str

    def planted(self) -> LinearOperator:
        """The operator of the case, with the bug."""
        operator = self.healthy()
        operator.__class__ = self.mutant
        return operator

    def healthy(self) -> LinearOperator:
        """The operator of the case as it is."""
        return OPERATOR_CASES[self.case]()


PLANTED_BUGS: dict[str, PlantedBug] = {
    "adjoint without conj": PlantedBug(AdjointWithoutConjugate, "sensitivity", "adjoint"),
    "missing ortho in the adjoint": PlantedBug(AdjointWithoutOrtho, "fourier_2d_mixed", "adjoint"),
    "missing ortho in both directions": PlantedBug(NotOrthonormal, "fourier_2d_mixed", "textbook"),
    "adjoint × 1.001": PlantedBug(SlightlyScaledAdjoint, "cartesian_sense_line", "adjoint"),
    "detached parameter": PlantedBug(DetachedParameter, "sensitivity_learned", "parameters"),
    "parameter detached in the adjoint only": PlantedBug(
        ParameterDetachedInAdjointOnly, "diagonal_learned", "parameters"
    ),
    ".real forgotten": PlantedBug(ForgottenReal, "diagonal_complex_on_real", "spaces"),
    "convolution for correlation": PlantedBug(ConvolutionForCorrelation, "difference_circular", "adjoint"),
    "filters reversed in both directions": PlantedBug(ReversedFilters, "wavelet_db2_2d", "textbook"),
    "circular adjoint of a Neumann boundary": PlantedBug(CircularAdjointOfNeumann, "difference_neumann", "adjoint"),
    "affine instead of linear": PlantedBug(Affine, "diagonal_complex", "linear"),
    "antilinear instead of linear": PlantedBug(LinearOverTheRealsOnly, "diagonal_complex", "linear"),
    "wrong axis": PlantedBug(WrongAxis, "fourier_2d_mixed", "textbook"),
    "missing shift": PlantedBug(MissingShift, "fourier_2d_odd", "textbook"),
    "fftshift and ifftshift swapped": PlantedBug(SwappedShifts, "fourier_2d_odd", "textbook"),
    "wrong sign of the exponent": PlantedBug(WrongSign, "fourier_2d_odd", "textbook"),
    "padding off centre": PlantedBug(OffCentre, "pad_even_to_odd", "textbook"),
    "gram forgets the mask": PlantedBug(GramWithoutMask, "masked_fourier_point", "gram"),
    "fused gram forgets the mask": PlantedBug(GramOfTheWrongLine, "cartesian_sense_line", "gram"),
    "gram with the scalar squared, not its magnitude": PlantedBug(SquaredScalarInGram, "scaled_complex", "gram"),
    "adjoint in the order of the forward": PlantedBug(AdjointInForwardOrder, "composition_square", "adjoint"),
    "normalised by the batch's maximum": PlantedBug(NormalisedByTheBatch, "diagonal_real", "batch_independence"),
    "mean of the batch removed": PlantedBug(MeanOfTheBatchRemoved, "diagonal_real", "batch_independence"),
    "first maps for every sample": PlantedBug(FirstMapsForAll, "sensitivity_batched", "spaces"),
    "draws from the global generator": PlantedBug(DrawsGlobally, "diagonal_complex", "purity"),
    "seeds the global generator": PlantedBug(SeedsGlobally, "sensitivity", "purity"),
    "changes the default precision": PlantedBug(ChangesTheDefaultPrecision, "sensitivity", "purity"),
    "writes into its input": PlantedBug(WritesIntoItsInput, "diagonal_complex", "purity"),
    "norm squared": PlantedBug(SquaredNorm, "sensitivity", "norm"),
    "single precision inside": PlantedBug(SinglePrecisionInside, "fourier_1d_odd", "textbook"),
    "door without checks": PlantedBug(UncheckedDoor, "sensitivity", "input"),
    "stale cache": PlantedBug(StaleCache, "sensitivity", "state"),
    "tensor outside the state": PlantedBug(TensorOutsideTheState, "diagonal_complex", "precision"),
    "graph cut": PlantedBug(CutGraph, "diagonal_complex", "vjp"),
    "differentiable once only": PlantedBug(DifferentiableOnce, "diagonal_complex", "gradients"),
    "assumes contiguous memory": PlantedBug(AssumesContiguity, "fourier_1d_even", "layout"),
    "branches on values": PlantedBug(BranchesOnValues, "diagonal_complex", "transforms"),
    "copies share tensors": PlantedBug(CopiesShareTensors, "sensitivity", "copies"),
    ".H without conj": PlantedBug(AdjointOperatorOfASymmetricMatrix, "diagonal_complex", "adjoint_operator"),
    "−A is A": PlantedBug(NegativeIsPositive, "sensitivity", "algebra"),
}


def catches(contract: str, operator: LinearOperator) -> bool:
    """Whether an operator breaks a contract; global state that the operator changed is put back."""
    with _global_state_restored():
        try:
            CONTRACTS[contract](operator, torch.Generator().manual_seed(20260222))
        except (Exception, pytest.fail.Exception):
            return True
    return False


def table() -> str:
    """Markdown table of every planted bug and all contracts that catch it, the expected one in bold."""
    rows = ["| planted bug | operator | caught by |", "|---|---|---|"]
    for name, bug in PLANTED_BUGS.items():
        caught = [contract for contract in CONTRACTS if catches(contract, bug.planted())]
        shown = ", ".join(f"**{contract}**" if contract == bug.contract else contract for contract in caught)
        rows.append(f"| {name} | {type(bug.healthy()).__name__} | {shown or 'nothing'} |")
    return "\n".join(rows)


@contextlib.contextmanager
def _global_state_restored() -> Iterator[None]:
    precision = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            torch.set_default_dtype(precision)


if __name__ == "__main__":
    print(table())
