"""FINUFFT and torchkbnufft as backends: against the defining sum, as adjoint pairs, copied, and in forked processes."""

import copy
import math
import pickle
import sys
import warnings

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from operators import nufft_backends
from operators.nufft import NonUniformFourier
from operators.nufft_backends import FinufftTransform, TorchKbNufftTransform
from tests.reference.matrices import textbook_matrix

SHAPES = [(16, 16), (15, 17), (12, 21), (1, 8), (4, 4), (6, 7, 8), (9, 5, 6)]


@pytest.fixture(params=[FinufftTransform, TorchKbNufftTransform])
def backend(request):
    if request.param is FinufftTransform:
        pytest.importorskip("finufft")
    return request.param


def positions(n_samples: int, n_dims: int, generator: torch.Generator) -> torch.Tensor:
    return (2 * torch.rand(n_samples, n_dims, generator=generator, dtype=torch.float64) - 1) * math.pi


def explicit_matrix(trajectory: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return textbook_matrix(NonUniformFourier(trajectory, shape, accuracy=1e-1))


def noise(*shape: int, generator: torch.Generator, dtype: torch.dtype = torch.complex128) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=dtype)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("accuracy", [1e-1, 1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12])
@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_explicit_transform_to_the_accuracy(backend, shape, accuracy, generator):
    trajectory = positions(60, len(shape), generator)
    matrix = explicit_matrix(trajectory, shape)
    transform = backend(trajectory, shape, accuracy, torch.float64)
    x, y = noise(20, *shape, generator=generator), noise(20, 60, generator=generator)
    assert relative_error(transform.forward(x), x.flatten(1) @ matrix.T) <= accuracy
    assert relative_error(transform.adjoint(y).flatten(1), y @ matrix.conj()) <= accuracy


@pytest.mark.parametrize("accuracy", [1e-1, 1e-3, 1e-6, 1e-7, 1e-9, 1e-12])
@pytest.mark.parametrize("shape", [(16, 17), (64, 64), (9, 8, 10), (24, 24, 24)])
def test_the_adjoint_is_exact_whatever_the_accuracy(backend, shape, accuracy, generator):
    transform = backend(positions(40, len(shape), generator), shape, accuracy, torch.float64)
    x, y = noise(1, *shape, generator=generator), noise(1, 40, generator=generator)
    Ax = transform.forward(x)
    left, right = torch.vdot(Ax[0], y[0]), torch.vdot(x.flatten(), transform.adjoint(y).flatten())
    tolerance = 5e-12 if backend is FinufftTransform and accuracy >= 1e-7 else 1e-14  # see its docstring
    assert abs(left - right) < tolerance * Ax.norm() * y.norm()


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_inputs_of_both_precisions_keep_theirs(backend, dtype, precision, generator):
    trajectory = positions(50, 2, generator)
    matrix = explicit_matrix(trajectory, (12, 13))
    transform = backend(trajectory, (12, 13), 1e-5, precision)
    x, y = noise(3, 12, 13, generator=generator, dtype=dtype), noise(3, 50, generator=generator, dtype=dtype)
    samples, images = transform.forward(x), transform.adjoint(y)
    assert samples.dtype == images.dtype == dtype
    assert relative_error(samples, x.to(torch.complex128).flatten(1) @ matrix.T) <= 1e-5
    assert relative_error(images.flatten(1), y.to(torch.complex128) @ matrix.conj()) <= 1e-5


def test_single_precision_reaches_its_accuracy_on_large_images(backend, generator):
    trajectory = positions(50, 2, generator)
    x = noise(1, 256, 4, generator=generator, dtype=torch.complex64)
    transform = backend(trajectory, (256, 4), 1e-6, torch.float32)
    expected = x.to(torch.complex128).flatten(1) @ explicit_matrix(trajectory, (256, 4)).T
    assert relative_error(transform.forward(x), expected) <= 1e-6


def test_many_images_are_the_images_one_by_one(backend, generator):
    """More than are transformed together, seen through views."""
    transform = backend(positions(11, 2, generator), (4, 5), 1e-6, torch.float64)
    x = noise(5, 37, 4, generator=generator).movedim(0, -1).conj()
    y = noise(11, 37, generator=generator).T.conj()
    torch.testing.assert_close(
        transform.forward(x), torch.cat([transform.forward(one[None]) for one in x]), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        transform.adjoint(y), torch.cat([transform.adjoint(one[None]) for one in y]), rtol=1e-12, atol=1e-12
    )


def test_no_images_are_no_samples(backend):
    transform = backend(torch.zeros(3, 2, dtype=torch.float64), (4, 5), 1e-3, torch.float32)
    assert transform.forward(torch.zeros(0, 4, 5, dtype=torch.complex64)).shape == (0, 3)
    assert transform.adjoint(torch.zeros(0, 3, dtype=torch.complex64)).shape == (0, 4, 5)


def test_the_input_stays_as_it_was(backend, generator):
    transform = backend(positions(11, 2, generator), (4, 5), 1e-3, torch.float64)
    x, y = noise(2, 4, 5, generator=generator), noise(2, 11, generator=generator)
    before = x.clone(), y.clone()
    transform.forward(x)
    transform.adjoint(y)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda transform: pickle.loads(pickle.dumps(transform))])
def test_a_copy_gives_the_same_bits_and_takes_no_plans_along(backend, twin_of, generator):
    transform = backend(positions(500, 2, generator), (16, 16), 1e-6, torch.float64)
    fresh = len(pickle.dumps(transform))
    x = noise(2, 16, 16, generator=generator)
    expected = transform.forward(x)
    assert len(pickle.dumps(transform)) == fresh
    assert torch.equal(twin_of(transform).forward(x), expected)


class _Samples(Dataset):
    def __init__(self, transform: FinufftTransform | TorchKbNufftTransform) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        images = torch.full((2, 32, 32), float(index), dtype=torch.complex64)
        return self.transform.adjoint(self.transform.forward(images))


def _in_forked_workers(dataset: _Samples, n_threads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the parent computes in two threads, and after it two workers with so many."""
    try:
        torch.set_num_threads(2)
        expected = torch.stack([dataset[i] for i in range(4)])
    finally:
        torch.set_num_threads(1)
    loader = DataLoader(
        dataset,
        batch_size=2,
        num_workers=2,
        worker_init_fn=lambda worker: torch.set_num_threads(n_threads),
        multiprocessing_context="fork",
        timeout=30,  # so that a hang is a failure
    )
    return expected, torch.cat(list(loader))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # newer Pythons warn of every fork with threads
def test_works_in_forked_data_loader_workers_after_threads_in_the_parent(backend, generator):
    dataset = _Samples(backend(positions(3000, 2, generator), (32, 32), 1e-5, torch.float32))
    expected, actual = _in_forked_workers(dataset, n_threads=1)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_finufft_does_not_hang_in_workers_that_are_given_threads(generator):
    """OpenMP would, so it gets one."""
    pytest.importorskip("finufft")
    dataset = _Samples(FinufftTransform(positions(3000, 2, generator), (32, 32), 1e-5, torch.float32))
    expected, actual = _in_forked_workers(dataset, n_threads=2)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_finufft_keeps_few_plans(generator):
    pytest.importorskip("finufft")
    transform = FinufftTransform(positions(20, 2, generator), (4, 5), 1e-3, torch.float64)
    for n_images in range(1, 9):
        transform.forward(noise(n_images, 4, 5, generator=generator))
        latest = transform._plan(n_images)
    assert len(transform._plans) == 4
    assert transform._plan(8) is latest
    try:
        torch.set_num_threads(2)
        assert transform._plan(8) is not latest
    finally:
        torch.set_num_threads(1)


def test_the_packages_print_and_warn_nothing(backend, capfd, generator):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for accuracy in (1e-1, 1e-7, 1e-12):
            transform = backend(positions(20, 3, generator), (4, 5, 6), accuracy, torch.float64)
            transform.adjoint(transform.forward(noise(3, 4, 5, 6, generator=generator)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["finufft", "torchkbnufft"])
def test_the_operator_agrees_with_its_own_gridding(name, generator):
    pytest.importorskip(name)
    trajectory = positions(40, 2, generator)
    A, B = (
        NonUniformFourier(trajectory, (9, 8), n_coils=2, accuracy=1e-6, precision=torch.float64, backend=backend)
        for backend in ("gridding", name)
    )
    x = A.domain.randn(3, generator=generator, dtype=torch.float64)
    assert relative_error(B(x), A(x)) < 2e-6
    assert relative_error(B.adjoint(A(x)), A.adjoint(A(x))) < 2e-6


def test_a_missing_package_is_one_sentence(monkeypatch):
    nufft_backends._package.cache_clear()
    monkeypatch.setitem(sys.modules, "finufft", None)
    with pytest.raises(ImportError, match=r"^finufft is not installed; pip install 'mrctrecon\[finufft\]'"):
        FinufftTransform(torch.zeros(3, 2, dtype=torch.float64), (4, 5), 1e-3, torch.float32)


def test_an_accuracy_out_of_reach_is_refused(backend):
    trajectory = torch.zeros(3, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="from 1e-12 to 1e-1"):
        backend(trajectory, (4, 5), 1e-13, torch.float64)
    with pytest.raises(ValueError, match="single precision reaches"):
        backend(trajectory, (4, 5), 1e-8, torch.float32)


def test_data_elsewhere_than_on_the_cpu_are_refused(backend):
    transform = backend(torch.zeros(3, 2, dtype=torch.float64), (4, 5), 1e-3, torch.float32)
    with pytest.raises(ValueError, match=r"on the CPU, but the data are on meta"):
        transform.forward(torch.zeros(1, 4, 5, dtype=torch.complex64, device="meta"))
