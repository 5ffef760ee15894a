"""The non-uniform Fourier transform by FINUFFT and by torchkbnufft, in the scale of `operators.nufft`."""

import importlib
import math
import os
import warnings
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any, Literal

import torch

from operators.gridding import kernel_width

_MAX_IMAGES = 16  # transformed together
_MAX_BYTES = 2**27  # of their copy in double precision
_MAX_PLANS = 4
_SMALL_GRID_FROM = 1e-7  # accuracy; below, the adjoint on the grid of factor 1.25 loses too many digits
_ERROR_OF_EPS = 3.3  # by which the error exceeds FINUFFT's eps: the largest measured on noise images, plus a tenth
_PROCESS = os.getpid()


class FinufftTransform:
    """The transform of `operators.nufft.NonUniformFourier` at fixed positions, by FINUFFT on the CPU.

    It always computes in double precision: in single precision the positions alone would add an error of 5e-8 times
    the number of pixels along the longest dimension. Down to an accuracy of 1e-7 the fine grid is 1.25 times the image,
    below it twice. Both directions execute one plan and are adjoint to rounding, which the small grid amplifies: for
    images of 24² to 512² and 24³ to 64³, |⟨A x, y⟩ − ⟨x, Aᴴy⟩| / (‖A x‖ ‖y‖) was at most 2e-15 at an accuracy of 1e-3,
    1e-13 at 1e-5, 2e-13 at 1e-6 and 2e-12 at 1e-7; a tenth of that in two dimensions, and 2e-15 with the large grid.

    Every process makes its own plans, which hold the sorted samples, at its first call; a pickled or copied transform
    starts without any. FINUFFT takes torch's number of threads, but one thread in a process that was forked after this
    module was imported, because OpenMP hangs there if the parent has used it.

    Parameters
    ----------
    trajectory
        k-space positions, float64 ``(sample, dim)`` on the CPU, radians per pixel; whole turns make no difference.
    image_shape
        ``(y, x)`` or ``(z, y, x)``.
    accuracy
        Relative error that is asked for, from 1e-12 to 1e-1.
    precision
        In which the caller works; an accuracy that it cannot reach is refused.

    Raises
    ------
    ImportError
        If FINUFFT is not installed.
    ValueError
        If the accuracy is out of reach.
    """

    def __init__(
        self, trajectory: torch.Tensor, image_shape: tuple[int, ...], accuracy: float, precision: torch.dtype
    ) -> None:
        kernel_width(accuracy, len(image_shape), precision)
        _package("finufft")
        self._made_of = (trajectory, image_shape, accuracy, precision)
        self._process = os.getpid()
        self._plans: dict[tuple[int, int], Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_of

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Transform complex ``(vector, *image_shape)`` to ``(vector, sample)``, on the CPU.

        Raises
        ------
        ValueError
            If the images are not on the CPU.
        """
        trajectory, *_ = self._made_of
        return self._executed("execute", images, (len(trajectory),))

    def adjoint(self, samples: torch.Tensor) -> torch.Tensor:
        """Transform complex ``(vector, sample)`` to ``(vector, *image_shape)``, by the adjoint of `forward`.

        Raises
        ------
        ValueError
            If the samples are not on the CPU.
        """
        _, image_shape, *_ = self._made_of
        return self._executed("execute_adjoint", samples, image_shape)

    def _executed(
        self, direction: Literal["execute", "execute_adjoint"], vectors: torch.Tensor, shape: tuple[int, ...]
    ) -> torch.Tensor:
        _check_on_cpu(vectors, "FINUFFT")
        _, image_shape, *_ = self._made_of
        results = vectors.new_empty(len(vectors), *shape)
        for some in _parts(vectors, math.prod(image_shape)):
            given = vectors[some].detach().to(torch.complex128).resolve_conj().contiguous()
            result = torch.empty(len(given), *shape, dtype=torch.complex128)
            getattr(self._plan(len(given)), direction)(given.numpy(), result.numpy())
            results[some] = result.mul_(math.prod(image_shape) ** -0.5)
        return results

    def _plan(self, n_images: int) -> Any:
        """FINUFFT's plan for so many images; making one sorts the samples."""
        if self._process != os.getpid():
            self._process, self._plans = os.getpid(), {}
        n_threads = torch.get_num_threads() if os.getpid() == _PROCESS else 1
        plan = self._plans.get((n_images, n_threads))
        if plan is None:
            plan = self._new_plan(n_images, n_threads)
            kept = list(self._plans.items())[1 - _MAX_PLANS :]
            self._plans = dict([*kept, ((n_images, n_threads), plan)])
        return plan

    def _new_plan(self, n_images: int, n_threads: int) -> Any:
        trajectory, image_shape, accuracy, _ = self._made_of
        plan = _package("finufft").Plan(
            2,
            image_shape,
            n_images,
            eps=accuracy / _ERROR_OF_EPS,
            isign=-1,
            dtype="complex128",
            upsampfac=1.25 if accuracy >= _SMALL_GRID_FROM else 2.0,
            nthreads=n_threads,
            showwarn=0,
        )
        plan.setpts(*(positions.contiguous().numpy() for positions in trajectory.unbind(dim=1)))
        return plan


class TorchKbNufftTransform:
    """The transform of `operators.nufft.NonUniformFourier` at fixed positions, by torchkbnufft on the CPU.

    It interpolates with torchkbnufft's sparse matrices, of the width that reaches the accuracy: its tables, which are
    its default, have an error of 7e-4 whatever their width, and hang in forked processes. The matrices take
    2 width^dim (16 + 4 or 8) bytes per sample; every process makes them at its first call, and a pickled or copied
    transform starts without them. The adjoint is exact to rounding.

    Parameters
    ----------
    trajectory
        k-space positions, float64 ``(sample, dim)`` on the CPU, radians per pixel; whole turns make no difference.
    image_shape
        ``(y, x)`` or ``(z, y, x)``.
    accuracy
        Relative error that is asked for, from 1e-12 to 1e-1.
    precision
        In which the matrices are stored, ``torch.float32`` or ``torch.float64``. Inputs of the other precision are
        transformed in theirs.

    Raises
    ------
    ValueError
        If the accuracy is out of reach.
    """

    def __init__(
        self, trajectory: torch.Tensor, image_shape: tuple[int, ...], accuracy: float, precision: torch.dtype
    ) -> None:
        self._width = kernel_width(accuracy, len(image_shape), precision)
        self._made_of = (trajectory, image_shape, accuracy, precision)
        self._tables: tuple[torch.Tensor, ...] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_of

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Transform complex ``(vector, *image_shape)`` to ``(vector, sample)``, on the CPU.

        Raises
        ------
        ValueError
            If the images are not on the CPU.
        """
        trajectory, *_ = self._made_of
        return self._applied("kb_spmat_nufft", images, (len(trajectory),))

    def adjoint(self, samples: torch.Tensor) -> torch.Tensor:
        """Transform complex ``(vector, sample)`` to ``(vector, *image_shape)``, by the adjoint of `forward`.

        Raises
        ------
        ValueError
            If the samples are not on the CPU.
        """
        _, image_shape, *_ = self._made_of
        return self._applied("kb_spmat_nufft_adjoint", samples, image_shape)

    def _applied(
        self,
        direction: Literal["kb_spmat_nufft", "kb_spmat_nufft_adjoint"],
        vectors: torch.Tensor,
        shape: tuple[int, ...],
    ) -> torch.Tensor:
        _check_on_cpu(vectors, "torchkbnufft")
        _, image_shape, *_ = self._made_of
        apply = getattr(_package("torchkbnufft").functional, direction)
        if self._tables is None:
            self._tables = self._new_tables()
        scaling, real, imaginary = self._tables
        results = vectors.new_empty(len(vectors), *shape)
        for some in _parts(vectors, math.prod(self._grid_shape)):
            # Without norm=, whose "ortho" is that of its fine grid.
            result = apply(
                vectors[some].detach().resolve_conj().contiguous()[None],
                scaling_coef=scaling.to(vectors.dtype),
                im_size=torch.tensor(image_shape),
                grid_size=torch.tensor(self._grid_shape),
                interp_mats=(real.to(vectors.real.dtype), imaginary.to(vectors.real.dtype)),
            )
            results[some] = result[0].mul_(math.prod(image_shape) ** -0.5)
        return results

    @property
    def _grid_shape(self) -> tuple[int, ...]:
        _, image_shape, *_ = self._made_of
        return tuple(max(2 * n, self._width + self._width % 2) for n in image_shape)  # which has to hold the kernel

    def _new_tables(self) -> tuple[torch.Tensor, ...]:
        """What an image is multiplied by, and real and imaginary part of the interpolation."""
        trajectory, image_shape, _, precision = self._made_of
        package = _package("torchkbnufft")
        options = {"grid_size": self._grid_shape, "numpoints": self._width}
        scaling = package.KbNufft(image_shape, **options, dtype=torch.float64).scaling_coef
        with torch.sparse.check_sparse_tensor_invariants(False):  # or torch warns that it does not check
            matrices = package.calc_tensor_spmatrix(trajectory.T.contiguous(), image_shape, **options)
            return scaling, *(matrix.to(precision).coalesce() for matrix in matrices)


@cache
def _package(name: Literal["finufft", "torchkbnufft"]) -> ModuleType:
    """Import a package without its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name} is not installed; pip install 'mrctrecon[{name}]', or take the backend 'gridding'."
        ) from error


def _check_on_cpu(vectors: torch.Tensor, package: str) -> None:
    if vectors.device.type != "cpu":
        raise ValueError(
            f"{package} transforms on the CPU, but the data are on {vectors.device}; move them there or take the "
            "backend 'gridding'."
        )


def _parts(vectors: torch.Tensor, n_points: int) -> Iterator[slice]:
    step = max(1, min(_MAX_IMAGES, _MAX_BYTES // (16 * n_points)))
    for start in range(0, len(vectors), step):
        yield slice(start, start + step)
