"""The matrix that each operator stands for, written from its definition and entry by entry, not from its code."""

import itertools
import warnings
from collections.abc import Callable
from functools import reduce

import numpy as np
import pywt
import torch

from operators.dictionary import CartesianDictionary, ConvolutionalDictionary
from operators.elementary import Crop, Diagonal, FiniteDifference, Identity, Pad
from operators.fourier import Fourier, MaskedFourier
from operators.linear_operator import Adjoint, Composition, LinearOperator, Scaled, Stack, Sum
from operators.nufft import NonUniformFourier, StackedNonUniformFourier, ToeplitzGram
from operators.projection import Projection
from operators.sensitivity import CartesianSense, Sensitivity
from operators.wavelet import Wavelet
from operators.weighted_nufft import WeightedNonUniformFourier
from tests.reference.fourier import dft_matrix
from tests.reference.rays import projection_matrix


def textbook_matrix(operator: LinearOperator) -> torch.Tensor:
    """Matrix of an operator from its definition.

    Parameters
    ----------
    operator
        An operator whose class, or a parent of it, has an entry in ``TEXTBOOK``.

    Returns
    -------
    torch.Tensor
        Real or complex ``(*batch, codomain.size, domain.size)``, where the batch broadcasts to the operator's.

    Raises
    ------
    LookupError
        If neither the class nor a parent has an entry.
    """
    for parent in type(operator).__mro__:
        if parent in TEXTBOOK:
            return TEXTBOOK[parent](operator)
    raise LookupError(f"{type(operator).__name__} has no matrix in tests/reference/matrices.py; write it there.")


def _identity(operator: LinearOperator) -> torch.Tensor:
    return torch.eye(operator.domain.size, dtype=torch.float64)


def _diagonal(operator: Diagonal) -> torch.Tensor:
    weights = operator.weights.detach()
    full = weights.expand(*operator.batch_shape, *operator.domain.shape)
    return torch.diag_embed(full.reshape(*operator.batch_shape, -1))


def _pad(operator: Pad) -> torch.Tensor:
    return _placing(operator.codomain.shape, operator.domain.shape)


def _crop(operator: Crop) -> torch.Tensor:
    return _placing(operator.domain.shape, operator.codomain.shape).T


def _placing(large: tuple[int, ...], small: tuple[int, ...]) -> torch.Tensor:
    """Entry n of the small array goes where its distance n − N//2 to the centre entry says."""
    along = []
    for n_large, n_small in zip(large, small, strict=True):
        place = torch.zeros(n_large, n_small, dtype=torch.float64)
        for n in range(n_small):
            place[n - n_small // 2 + n_large // 2, n] = 1
        along.append(place)
    return reduce(torch.kron, along)


def _finite_difference(operator: FiniteDifference) -> torch.Tensor:
    shape, n_directions = operator.domain.shape, operator.codomain.shape[0]
    matrix = torch.zeros(*operator.codomain.shape, *shape, dtype=torch.float64)
    for direction in range(n_directions):
        axis = len(shape) - n_directions + direction
        for index in itertools.product(*map(range, shape)):
            beside = list(index)
            beside[axis] += 1
            if beside[axis] == shape[axis]:
                if operator.boundary == "neumann":
                    continue
                beside[axis] = 0
            matrix[(direction, *index, *beside)] += 1
            matrix[(direction, *index, *index)] -= 1
    return matrix.reshape(operator.codomain.size, operator.domain.size)


def _fourier(operator: Fourier) -> torch.Tensor:
    n_leading = operator.domain.n_dims - operator.n_dims
    leading = torch.eye(int(np.prod(operator.domain.shape[:n_leading])), dtype=torch.complex128)
    return torch.kron(leading, dft_matrix(operator.domain.shape[n_leading:]))


def _masked_fourier(operator: MaskedFourier) -> torch.Tensor:
    return _diagonal(operator.mask).to(torch.complex128) @ _fourier(operator.fourier)


def _sensitivity(operator: Sensitivity) -> torch.Tensor:
    csm = operator.csm.detach()
    per_coil = torch.diag_embed(csm.reshape(*operator.batch_shape, csm.shape[len(operator.batch_shape)], -1))
    return per_coil.flatten(-3, -2)


def _cartesian_sense(operator: CartesianSense) -> torch.Tensor:
    matrix = _fourier(operator.fourier) @ _sensitivity(operator.sensitivity)
    return matrix if operator.mask is None else _diagonal(operator.mask).to(matrix.dtype) @ matrix


def _wavelet(operator: Wavelet) -> torch.Tensor:
    shape, axes = operator.domain.shape, tuple(range(-operator.n_dims, 0))
    columns = []
    for entry in np.eye(operator.domain.size):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PyWavelets warns of wrapping, which is meant here
            bands = pywt.wavedecn(entry.reshape(shape), operator.wavelet, "periodization", operator.level, axes)
        columns.append(pywt.coeffs_to_array(bands, axes=axes)[0].ravel())
    return torch.from_numpy(np.stack(columns, axis=1))


def _projection(operator: Projection) -> torch.Tensor:
    return projection_matrix(operator.geometry, operator.domain.shape, operator.model)


def _nufft(operator: NonUniformFourier) -> torch.Tensor:
    shape = operator.domain.shape
    image_shape = shape[len(shape) - operator.trajectory.shape[-1] :]
    leading = torch.eye(int(np.prod(shape[: len(shape) - len(image_shape)])), dtype=torch.complex128)
    return torch.kron(leading, _non_uniform_dft(operator.trajectory, image_shape))


def _stacked_nufft(operator: StackedNonUniformFourier) -> torch.Tensor:
    *n_leading, n_partitions, n_y, n_x = operator.domain.shape
    leading = torch.eye(int(np.prod(n_leading)), dtype=torch.complex128)
    along_z = dft_matrix((n_partitions,))[operator.partitions]
    return torch.kron(leading, torch.kron(along_z, _non_uniform_dft(operator.plane.trajectory, (n_y, n_x))))


def _weighted_nufft(operator: WeightedNonUniformFourier) -> torch.Tensor:
    return _product(textbook_matrix(operator.diagonal), textbook_matrix(operator.transform))


def _toeplitz_gram(operator: ToeplitzGram) -> torch.Tensor:
    shape = operator.domain.shape
    image_shape = shape[len(shape) - operator.trajectory.shape[-1] :]
    leading = torch.eye(int(np.prod(shape[: len(shape) - len(image_shape)])), dtype=torch.complex128)
    transform = _non_uniform_dft(operator.trajectory, image_shape)
    return torch.kron(leading, transform.mH @ (operator.weights[..., None] * transform))


def _non_uniform_dft(trajectory: torch.Tensor, image_shape: tuple[int, ...]) -> torch.Tensor:
    """Entry (s, n) is N^(−1/2) exp(−i ω_s · (n − c)), with the pixels n in C order and c = N_d//2 along dimension d."""
    pixels = itertools.product(*(range(-(n // 2), n - n // 2) for n in image_shape))
    centred = torch.tensor(list(pixels), dtype=torch.float64)
    return torch.exp(-1j * (trajectory.detach().double() @ centred.T)) / len(centred) ** 0.5


def _convolutional_dictionary(operator: ConvolutionalDictionary) -> torch.Tensor:
    filters, (n_y, n_x) = operator.filters.detach(), operator.codomain.shape
    matrix = filters.new_zeros(n_y, n_x, len(filters), n_y, n_x)
    for k, y, x, row, column in np.ndindex(len(filters), n_y, n_x, *filters.shape[1:]):
        read_y = _read_at(y - row + filters.shape[1] // 2, n_y, operator.boundary)
        read_x = _read_at(x - column + filters.shape[2] // 2, n_x, operator.boundary)
        matrix[y, x, k, read_y, read_x] += filters[k, row, column]
    return matrix.reshape(operator.codomain.size, operator.domain.size)


def _read_at(index: int, n: int, boundary: str) -> int:
    """Where an entry is read that may lie outside."""
    if boundary == "circular":
        return index % n
    return abs(index) if index < n else 2 * (n - 1) - index


def _cartesian_dictionary(operator: CartesianDictionary) -> torch.Tensor:
    return _product(textbook_matrix(operator.imaging), textbook_matrix(operator.dictionary))


def _adjoint(operator: Adjoint) -> torch.Tensor:
    return textbook_matrix(operator.operator).mH


def _composition(operator: Composition) -> torch.Tensor:
    return reduce(_product, [textbook_matrix(factor) for factor in operator.factors])


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype) @ b.to(dtype)


def _sum(operator: Sum) -> torch.Tensor:
    return reduce(torch.add, [textbook_matrix(term) for term in operator.terms])


def _scaled(operator: Scaled) -> torch.Tensor:
    return operator.scalar.detach() * textbook_matrix(operator.operator)


def _stack(operator: Stack) -> torch.Tensor:
    parts = torch.broadcast_tensors(*(textbook_matrix(part) for part in operator.operators))
    return torch.cat(parts, dim=-2)


TEXTBOOK: dict[type, Callable[..., torch.Tensor]] = {
    Identity: _identity,
    Diagonal: _diagonal,
    Pad: _pad,
    Crop: _crop,
    FiniteDifference: _finite_difference,
    Fourier: _fourier,
    MaskedFourier: _masked_fourier,
    Sensitivity: _sensitivity,
    CartesianSense: _cartesian_sense,
    Wavelet: _wavelet,
    Projection: _projection,
    NonUniformFourier: _nufft,
    StackedNonUniformFourier: _stacked_nufft,
    WeightedNonUniformFourier: _weighted_nufft,
    ToeplitzGram: _toeplitz_gram,
    ConvolutionalDictionary: _convolutional_dictionary,
    CartesianDictionary: _cartesian_dictionary,
    Adjoint: _adjoint,
    Composition: _composition,
    Sum: _sum,
    Scaled: _scaled,
    Stack: _stack,
}
