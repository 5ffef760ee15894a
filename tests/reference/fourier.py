"""The centred, orthonormal discrete Fourier transform as its defining sum."""

import cmath
import math
from collections.abc import Sequence
from functools import reduce

import torch


def dft_matrix(shape: Sequence[int]) -> torch.Tensor:
    """Matrix of the transform over all dimensions of ``shape``, which are flattened in C order.

    Parameters
    ----------
    shape
        Sizes of the transformed dimensions.

    Returns
    -------
    torch.Tensor
        complex128 ``(N, N)`` with N the product of the sizes: along each dimension entry (k, n) is
        N^(−1/2) exp(−2πi (k − N//2)(n − N//2)/N).
    """
    return reduce(torch.kron, [_dft_matrix_1d(n) for n in shape])


def _dft_matrix_1d(size: int) -> torch.Tensor:
    centre = size // 2
    rows = [
        [cmath.exp(-2j * math.pi * (k - centre) * (n - centre) / size) / math.sqrt(size) for n in range(size)]
        for k in range(size)
    ]
    return torch.tensor(rows, dtype=torch.complex128)
