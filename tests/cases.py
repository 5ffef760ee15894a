"""Registries of tiny examples of everything that has a contract, and the means to find classes that lack one.

To put a new class under contract, add a factory here: the contract suite runs over it, and a meta-test fails until it
is here.
"""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import nn

from operators.beam_geometry import FanBeam, ParallelBeam
from operators.dictionary import ConvolutionalDictionary
from operators.elementary import Crop, Diagonal, FiniteDifference, Identity, Mask, Pad
from operators.fourier import Fourier
from operators.linear_operator import Adjoint, Composition, LinearOperator, Scaled, Stack, Sum
from operators.metal import MetalTrace
from operators.nufft import NonUniformFourier, StackedNonUniformFourier, ToeplitzGram
from operators.projection import Projection
from operators.sensitivity import Sensitivity
from operators.space import Space
from operators.wavelet import Wavelet
from operators.weighted_nufft import WeightedNonUniformFourier

N_COILS = 2
IMAGE = Space((4, 5), "complex", ("y", "x"))


def _complex(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(3))


def _real(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def _mask(*shape: int) -> torch.Tensor:
    """A float64 mask with both kept and lost entries."""
    mask = (torch.rand(*shape, generator=torch.Generator().manual_seed(5)) > 0.4).double()
    mask.view(-1)[0], mask.view(-1)[-1] = 1, 0
    return mask


def _box(*shape: int) -> torch.Tensor:
    """A float64 mask that keeps the middle half of each dimension."""
    mask = torch.zeros(shape, dtype=torch.float64)
    mask[tuple(slice(n // 4, n - n // 4) for n in shape)] = 1
    return mask


def _masked_fourier(shape: tuple[int, ...], mask: torch.Tensor, n_dims: int = 2) -> LinearOperator:
    fourier = Fourier(shape, n_dims)
    return Mask(mask, fourier.codomain) @ fourier


def _parallel(n_views: int, n_detectors: int = 6, first_rad: float = 0.3, offset_mm: float = 0.0) -> ParallelBeam:
    angles = tuple(first_rad + math.pi * view / n_views for view in range(n_views))
    return ParallelBeam(angles, n_detectors, 0.9, 0.7, offset_mm)


def _fan(
    n_views: int, n_detectors: int = 6, start: float = 0.3, offset_mm: float = 0.0, curved: bool = False
) -> FanBeam:
    """A full circle that starts at a fraction of a step."""
    angles = tuple(2 * math.pi * (view + start) / n_views for view in range(n_views))
    return FanBeam(angles, n_detectors, 1.3, 0.7, offset_mm, 6.0, 3.0, curved)


def _projection(geometry: FanBeam | ParallelBeam, shape: tuple[int, int], **options: Any) -> Projection:
    return Projection(geometry, shape, precision=torch.float64, **options)


def _trajectory(n_samples: int, n_dims: int = 2) -> torch.Tensor:
    """Positions in [−π, π), the first of them its lower end."""
    generator = torch.Generator().manual_seed(6)
    positions = (2 * torch.rand(n_samples, n_dims, dtype=torch.float64, generator=generator) - 1) * math.pi
    positions[0] = -math.pi
    return positions


def _nufft(
    n_samples: int, image_shape: tuple[int, ...], *, batch: tuple[int, ...] = (), learned: bool = False, **options: Any
) -> NonUniformFourier:
    """As accurate as it gets, so that it is the matrix of its definition to the contract's tolerance."""
    trajectory = _trajectory(math.prod(batch) * n_samples, len(image_shape)).view(*batch, n_samples, -1)
    trajectory = nn.Parameter(trajectory) if learned else trajectory
    return NonUniformFourier(trajectory, image_shape, accuracy=1e-12, precision=torch.float64, **options)


def _weighted(transform: NonUniformFourier | StackedNonUniformFourier, weights: torch.Tensor) -> LinearOperator:
    operator = Diagonal(weights, transform.codomain) @ transform
    assert isinstance(operator, WeightedNonUniformFourier)
    return operator


def _stacked_nufft(trajectory: torch.Tensor, image_shape: tuple[int, ...], **options: Any) -> StackedNonUniformFourier:
    return StackedNonUniformFourier(trajectory, image_shape, accuracy=1e-12, precision=torch.float64, **options)


def _dictionary(shape: tuple[int, int], filters: torch.Tensor, **options: Any) -> ConvolutionalDictionary:
    return ConvolutionalDictionary(filters, shape, **options)


def _cartesian_sense(csm: torch.Tensor, mask: torch.Tensor | None = None, n_dims: int = 2) -> LinearOperator:
    sensitivity = Sensitivity(csm, n_dims)
    fourier = Fourier(sensitivity.codomain.shape, n_dims)
    if mask is None:
        return fourier @ sensitivity
    return Mask(mask, fourier.codomain) @ fourier @ sensitivity


OPERATOR_CASES: dict[str, Callable[[], LinearOperator]] = {
    "identity_real": lambda: Identity(Space((3, 2), "real")),
    "identity_complex": lambda: Identity(IMAGE),
    "diagonal_real": lambda: Diagonal(_real(3, 4)),
    "diagonal_real_on_complex": lambda: Diagonal(_real(1, 5), IMAGE),
    "diagonal_complex": lambda: Diagonal(_complex(4, 5)),
    "diagonal_complex_on_real": lambda: Diagonal(_complex(3, 4), Space((3, 4), "real")),
    "diagonal_batched": lambda: Diagonal(_complex(2, 4, 1), IMAGE),
    "diagonal_learned": lambda: Diagonal(nn.Parameter(_complex(3, 4))),
    "diagonal_learned_on_real": lambda: Diagonal(nn.Parameter(_complex(4)), Space((3, 4), "real")),
    "mask": lambda: Mask(_mask(4, 5), IMAGE),
    "mask_bool_line": lambda: Mask(_mask(4, 1).bool(), IMAGE),
    "mask_batched": lambda: Mask(_mask(2, 3, 4), Space((3, 4), "real")),
    "pad_even_to_odd": lambda: Pad(Space((4, 2), "real"), (7, 5)),
    "pad_odd_to_even": lambda: Pad(IMAGE, (6,)),
    "pad_with_coils": lambda: Pad(Space((2, 3, 3)), (4, 3)),
    "crop_even_to_odd": lambda: Crop(Space((6, 4)), (3, 3)),
    "crop_odd_to_even": lambda: Crop(Space((2, 3, 5), "real"), (4,)),
    "metal_trace": lambda: MetalTrace(_mask(3, 4), Space((3, 4), "real", ("view", "detector"))),
    "metal_trace_weighted": lambda: MetalTrace(_mask(2, 3, 4).bool(), Space((3, 4), "real"), _real(3, 4).square()),
    "difference_circular": lambda: FiniteDifference(IMAGE, boundary="circular"),
    "difference_neumann": lambda: FiniteDifference(Space((3, 4), "real")),
    "difference_3d": lambda: FiniteDifference(Space((2, 3, 1), "real")),
    "difference_last_dim": lambda: FiniteDifference(Space((2, 3, 4)), 1, "circular"),
    "fourier_1d_odd": lambda: Fourier((5,), 1),
    "fourier_1d_even": lambda: Fourier((3, 4), 1),
    "fourier_2d_odd": lambda: Fourier((3, 5)),
    "fourier_2d_mixed": lambda: Fourier((2, 4, 3)),
    "fourier_3d_mixed": lambda: Fourier((2, 3, 4), 3),
    "fourier_3d_even": lambda: Fourier((2, 4, 2), 3),
    "masked_fourier_point": lambda: _masked_fourier((4, 5), _mask(4, 5)),
    "masked_fourier_line": lambda: _masked_fourier((2, 4, 4), _mask(4, 1)),
    "masked_fourier_bool": lambda: _masked_fourier((4, 3), _mask(1, 3).bool()),
    "masked_fourier_batched": lambda: _masked_fourier((2, 4, 3), _mask(2, 1, 4, 3)),
    "masked_fourier_per_coil": lambda: _masked_fourier((2, 4, 3), _mask(2, 1, 1)),
    "sensitivity": lambda: Sensitivity(_complex(N_COILS, 4, 3)),
    "sensitivity_3d": lambda: Sensitivity(_complex(N_COILS, 2, 2, 3), 3),
    "sensitivity_batched": lambda: Sensitivity(_complex(2, N_COILS, 3, 3)),
    "sensitivity_learned": lambda: Sensitivity(nn.Parameter(_complex(N_COILS, 3, 4))),
    "cartesian_sense_full": lambda: _cartesian_sense(_complex(N_COILS, 4, 3)),
    "cartesian_sense_point": lambda: _cartesian_sense(_complex(N_COILS, 4, 3), _mask(4, 3)),
    "cartesian_sense_line": lambda: _cartesian_sense(_complex(N_COILS, 4, 4), _mask(4, 1)),
    "cartesian_sense_odd": lambda: _cartesian_sense(_complex(3, 3, 5), _mask(1, 5)),
    "cartesian_sense_3d": lambda: _cartesian_sense(_complex(N_COILS, 2, 2, 3), _mask(2, 2, 1), 3),
    "cartesian_sense_constant_mask": lambda: _cartesian_sense(_complex(N_COILS, 4, 3), _mask(2, 1, 1)),
    "cartesian_sense_batched_mask": lambda: _cartesian_sense(_complex(N_COILS, 4, 3), _mask(2, 1, 4, 3)),
    "cartesian_sense_batched_csm": lambda: _cartesian_sense(_complex(2, N_COILS, 4, 3), _mask(4, 1)),
    "cartesian_sense_batched_both": lambda: _cartesian_sense(_complex(2, 1, N_COILS, 3, 2), _mask(3, 1, 3, 2)),
    "cartesian_sense_learned_full": lambda: _cartesian_sense(nn.Parameter(_complex(N_COILS, 2, 3))),
    "cartesian_sense_learned_point": lambda: _cartesian_sense(nn.Parameter(_complex(N_COILS, 2, 3)), _mask(2, 3)),
    "cartesian_sense_learned_line": lambda: _cartesian_sense(nn.Parameter(_complex(N_COILS, 3, 2)), _mask(3, 1)),
    "cartesian_sense_learned_batched": lambda: _cartesian_sense(
        nn.Parameter(_complex(2, N_COILS, 2, 2)), _mask(2, 1, 2, 2)
    ),
    "wavelet_haar_1d": lambda: Wavelet(Space((3, 8), "real"), "haar", 3, n_dims=1),
    "wavelet_db2_2d": lambda: Wavelet(Space((4, 8)), "db2", 2),
    "wavelet_db4_wrapped": lambda: Wavelet(Space((2, 6), "real"), "db4"),
    "wavelet_sym4_3d": lambda: Wavelet(Space((4, 2, 2), "real"), "sym4", 1, n_dims=3),
    "projection_parallel": lambda: _projection(_parallel(3), (4, 5)),
    "projection_parallel_offset": lambda: _projection(_parallel(3, 5, offset_mm=0.2), (3, 4)),
    "projection_parallel_along_grid": lambda: _projection(ParallelBeam((0.0, math.pi / 2, 2.5), 4, 0.7, 0.7), (3, 3)),
    "projection_parallel_twofold": lambda: _projection(_parallel(6, 5, offset_mm=-0.1), (2, 2)),
    "projection_parallel_halves": lambda: _projection(_parallel(12, 5), (2, 2)),
    "projection_joseph": lambda: _projection(_parallel(4), (4, 4), model="joseph"),
    "projection_strip": lambda: _projection(_parallel(3), (4, 3), model="strip"),
    "projection_fan_flat": lambda: _projection(_fan(3), (4, 3)),
    "projection_fan_curved": lambda: _projection(_fan(3, curved=True), (3, 5)),
    "projection_fan_joseph": lambda: _projection(_fan(4, offset_mm=0.3), (3, 3), model="joseph"),
    "projection_fan_fourfold": lambda: _projection(_fan(16, offset_mm=0.3), (2, 2)),
    "projection_fan_eightfold": lambda: _projection(_fan(40, start=0.0), (2, 2)),
    "projection_fan_views": lambda: _projection(_fan(32, 7, start=0.5), (2, 2))[1::3],
    "projection_fan_misses": lambda: _projection(FanBeam((0.5,), 3, 1.0, 0.7, 30.0, 6.0, 3.0), (2, 3)),
    "adjoint": lambda: Adjoint(Sensitivity(_complex(N_COILS, 3, 4))),
    "adjoint_learned": lambda: Adjoint(Diagonal(nn.Parameter(_complex(2, 3)))),
    "adjoint_batched": lambda: _cartesian_sense(_complex(2, N_COILS, 2, 3), _mask(2, 3)).H,
    "composition": lambda: Fourier((5, 6)) @ Pad(IMAGE, (5, 6)) @ Diagonal(_complex(4, 5), IMAGE),
    "composition_square": lambda: Diagonal(_complex(3, 4)) @ Diagonal(_real(1, 4), Space((3, 4))) @ Fourier((3, 4)),
    "composition_real_to_complex": lambda: (
        Fourier((3, 4)) @ Diagonal(_complex(3, 4), Space((3, 4), "real", ("y", "x")))
    ),
    "composition_batched": lambda: Mask(_mask(2, 1, 5), IMAGE) @ Diagonal(_complex(4, 5), IMAGE),
    "composition_unfused": lambda: Composition(
        [
            Mask(_mask(4, 1).bool(), Space((N_COILS, 4, 3))),
            Fourier((N_COILS, 4, 3)),
            Sensitivity(nn.Parameter(_complex(N_COILS, 4, 3))),
        ]
    ),
    "sum": lambda: Diagonal(_complex(4, 5), IMAGE) + Mask(_mask(2, 4, 5), IMAGE) + Identity(IMAGE),
    "sum_real_to_complex": lambda: Sum([Diagonal(_complex(n, 3)[:2], Space((2, 3), "real")) for n in (2, 4)]),
    "difference_of_operators": lambda: (
        Fourier((3, 4)) @ Fourier((3, 4)).H - Mask(_mask(3, 4), Fourier((3, 4)).codomain)
    ),
    "scaled_real": lambda: 0.5 * Diagonal(_real(3, 4)),
    "scaled_complex": lambda: Scaled(0.5 - 2j, Sensitivity(_complex(2, N_COILS, 3, 2))),
    "scaled_complex_on_real": lambda: (1 + 1j) * Diagonal(_complex(3, 4), Space((3, 4), "real")),
    "scaled_learned": lambda: Scaled(nn.Parameter(torch.tensor(-1.5, dtype=torch.float64)), Fourier((3, 4))),
    "scaled_learned_complex": lambda: Scaled(nn.Parameter(_complex(1)[0]), Identity(IMAGE)),
    "stack": lambda: Stack([Fourier((3, 4)), 2j * Fourier((3, 4)), _masked_fourier((3, 4), _mask(3, 1))]),
    "stack_batched": lambda: Stack([Mask(_mask(2, 3, 4), Space((3, 4), "real")), Identity(Space((3, 4), "real"))]),
    "nufft_even": lambda: _nufft(7, (4, 6)),
    "nufft_odd_coils": lambda: _nufft(5, (3, 5), n_coils=N_COILS),
    "nufft_leading_shape": lambda: _nufft(3, (2, 3), n_coils=(1, 2)),
    "nufft_3d": lambda: _nufft(4, (2, 3, 4)),
    "nufft_batched": lambda: _nufft(5, (3, 4), batch=(2, 1), n_coils=N_COILS),
    "nufft_learned": lambda: _nufft(5, (4, 3), n_coils=N_COILS, learned=True),
    "nufft_learned_batched_3d": lambda: _nufft(3, (2, 3, 2), batch=(2,), learned=True),
    "nufft_stacked": lambda: _stacked_nufft(_trajectory(4), (5, 3, 4), partitions=torch.tensor([3, 0, 2, 3])),
    "nufft_stacked_coils": lambda: _stacked_nufft(_trajectory(3), (2, 3, 2), n_coils=N_COILS),
    "nufft_stacked_learned": lambda: _stacked_nufft(nn.Parameter(_trajectory(3)), (3, 2, 3)),
    "nufft_stacked_batched": lambda: _stacked_nufft(_trajectory(6).view(2, 3, 2), (2, 2, 3), n_coils=(1, 2)),
    "nufft_sense": lambda: _nufft(6, (4, 3), n_coils=N_COILS) @ Sensitivity(_complex(N_COILS, 4, 3)),
    "nufft_weighted": lambda: _weighted(_nufft(6, (4, 3), n_coils=N_COILS), _complex(1, 6)),
    "nufft_weighted_evenly": lambda: _weighted(_nufft(4, (2, 3)), _real(1)),
    "nufft_weighted_batched": lambda: _weighted(_nufft(4, (3, 2), batch=(2,), n_coils=N_COILS), _real(3, 1, 1, 4)),
    "nufft_weighted_stack": lambda: _weighted(_stacked_nufft(_trajectory(3), (2, 3, 2), n_coils=N_COILS), _real(1, 6)),
    "nufft_weighted_sense": lambda: (
        Diagonal(_real(1, 6), Space((N_COILS, 6)))
        @ _nufft(6, (4, 3), n_coils=N_COILS)
        @ Sensitivity(_complex(N_COILS, 4, 3))
    ),
    "toeplitz": lambda: _nufft(9, (4, 3), n_coils=N_COILS).toeplitz_gram(),
    "toeplitz_batched": lambda: _nufft(4, (3, 4), batch=(3, 1)).toeplitz_gram(_real(2, 4).square()),
    "toeplitz_weighted_3d": lambda: ToeplitzGram(
        _trajectory(4, 3), (2, 3, 2), _real(4).square(), accuracy=1e-12, precision=torch.float64
    ),
    "dictionary_even": lambda: _dictionary((4, 6), _real(2, 3, 3), method="fft"),
    "dictionary_odd": lambda: _dictionary((3, 5), _complex(2, 3, 5)),
    "dictionary_auto": lambda: _dictionary((4, 5), _real(2, 3, 1), field="real"),
    "dictionary_real": lambda: _dictionary((4, 5), _real(3, 3, 3), field="real", method="fft"),
    "dictionary_real_even": lambda: _dictionary((3, 4), _real(2, 3, 3), field="real", method="fft"),
    "dictionary_awkward": lambda: _dictionary((11, 3), _real(1, 3, 3), method="fft"),
    "dictionary_spatial": lambda: _dictionary((4, 5), _real(2, 3, 5), method="spatial"),
    "dictionary_spatial_complex": lambda: _dictionary((3, 4), _complex(2, 3, 3), method="spatial"),
    "dictionary_spatial_real": lambda: _dictionary((3, 4), _real(2, 1, 3), field="real", method="spatial"),
    "dictionary_reflect": lambda: _dictionary((4, 5), _real(2, 3, 5), boundary="reflect", method="fft"),
    "dictionary_reflect_complex": lambda: _dictionary((3, 4), _complex(2, 3, 3), boundary="reflect"),
    "dictionary_reflect_real": lambda: _dictionary(
        (5, 3), _real(2, 3, 3), field="real", boundary="reflect", method="fft"
    ),
    "dictionary_reflect_spatial": lambda: _dictionary((3, 4), _real(2, 3, 3), boundary="reflect", method="spatial"),
    "dictionary_reflect_spatial_complex": lambda: _dictionary(
        (4, 3), _complex(2, 3, 3), boundary="reflect", method="spatial"
    ),
    "dictionary_learned": lambda: _dictionary((3, 4), nn.Parameter(_real(2, 3, 3)), method="fft"),
    "dictionary_learned_complex": lambda: _dictionary((4, 3), nn.Parameter(_complex(2, 3, 1))),
    "dictionary_learned_real": lambda: _dictionary(
        (3, 4), nn.Parameter(_real(2, 3, 3)), field="real", boundary="reflect", method="fft"
    ),
    "dictionary_learned_spatial": lambda: _dictionary((3, 3), nn.Parameter(_real(2, 3, 1)), method="spatial"),
    "dictionary_learned_spatial_complex": lambda: _dictionary(
        (3, 3), nn.Parameter(_complex(1, 3, 3)), boundary="reflect", method="spatial"
    ),
    "cartesian_dictionary": lambda: Fourier((3, 4)) @ _dictionary((3, 4), _real(2, 3, 3)),
    "cartesian_dictionary_box": lambda: _masked_fourier((5, 6), _box(5, 6)) @ _dictionary((5, 6), _complex(2, 3, 3)),
    "cartesian_dictionary_point": lambda: _masked_fourier((4, 3), _mask(4, 3)) @ _dictionary((4, 3), _real(2, 3, 1)),
    "cartesian_dictionary_line": lambda: _masked_fourier((4, 5), _mask(2, 1, 5)) @ _dictionary((4, 5), _real(2, 1, 3)),
    "cartesian_dictionary_coil": lambda: (
        _cartesian_sense(_complex(2, 1, 1, 1).repeat(1, 1, 4, 5), _box(4, 5)) @ _dictionary((4, 5), _real(2, 3, 3))
    ),
    "cartesian_dictionary_learned": lambda: (
        _masked_fourier((4, 4), _box(4, 4)) @ _dictionary((4, 4), nn.Parameter(_real(2, 3, 1)))
    ),
}


def public_subclasses(package: ModuleType, base: type) -> set[type]:
    """Concrete public classes derived from ``base`` that are defined in ``package``, in whatever module.

    Parameters
    ----------
    package
        An imported package; all its modules are imported.
    base
        A class; it is not part of the result.

    Returns
    -------
    set of type
        The classes.
    """
    found: set[type] = set()
    for module_info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module_info.name.rpartition(".")[2].startswith("__"):
            found |= _public_subclasses_in(importlib.import_module(module_info.name), base)
    return found


def _public_subclasses_in(module: ModuleType, base: type) -> set[type]:
    return {
        cls
        for name, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, base)
        and cls is not base
        and cls.__module__ == module.__name__
        and not name.startswith("_")
        and not inspect.isabstract(cls)
    }


def without_case(classes: Iterable[type], cases: dict[str, Callable[[], Any]]) -> list[str]:
    """Names of the classes of which no case is an instance; a case of a subclass does not count."""
    covered = {type(factory()) for factory in cases.values()}
    return sorted(f"{cls.__module__}.{cls.__name__}" for cls in set(classes) - covered)
