"""Dictionary learning: planted filters are found again, the objective falls, and what it promises of filters holds."""

from typing import Any

import pytest
import torch

from operators import dictionary_learning
from operators.dictionary import ConvolutionalDictionary
from operators.dictionary_learning import LearnedDictionary, high_pass, learn_dictionary
from operators.elementary import FiniteDifference
from operators.filters import dct_filters, random_filters
from operators.proximal import soft_threshold
from operators.solvers import fista
from operators.space import Space

N_PLANTED, PLANTED_SIZE, SIZE = 4, 5, 7


@pytest.fixture(scope="module")
def planted() -> torch.Tensor:
    return random_filters(N_PLANTED, PLANTED_SIZE, seed=1).double()


@pytest.fixture(scope="module")
def images(planted: torch.Tensor) -> torch.Tensor:
    return sparse_images(planted, seed=3)


@pytest.fixture(scope="module")
def learned(images: torch.Tensor) -> LearnedDictionary:
    return learn(images)


def sparse_images(filters: torch.Tensor, *, seed: int, n: int = 8, size: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, len(filters), size, size)
    used = torch.rand(shape, generator=generator, dtype=torch.float64) < 0.004
    codes = used * torch.randn(shape, generator=generator, dtype=torch.float64)
    return ConvolutionalDictionary(filters, (size, size), field="real")(codes)


def learn(images: torch.Tensor, **changed: Any) -> LearnedDictionary:
    options = {"n_filters": N_PLANTED, "filter_size": SIZE, "sparsity": 1.0, "n_steps": 25, "seed": 5}
    return learn_dictionary(images, **options | changed)


def likeness(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """For each filter of ``a`` the largest inner product with one of ``b``, whatever its sign and shift."""
    spectra = [torch.fft.rfft2(filters.double(), s=(16, 16)) for filters in (a, b)]
    return torch.fft.irfft2(spectra[0][:, None] * spectra[1].conj()).abs().amax(dim=(1, 2, 3))


def objective(filters: torch.Tensor, images: torch.Tensor, sparsity: float = 0.02) -> float:
    D = ConvolutionalDictionary(filters.double(), tuple(images.shape[1:]), field="real")
    codes = fista(D, images, lambda v, t: soft_threshold(v, sparsity * t), n_iterations=200).value
    return float((D(codes) - images).square().sum() / 2 + sparsity * codes.abs().sum())


def test_planted_filters_are_found_up_to_sign_shift_and_order(planted, learned):
    assert float(likeness(planted, learned.filters).min()) > 0.98
    assert float(likeness(learned.filters, planted).min()) > 0.98
    assert float(likeness(planted, dct_filters(N_PLANTED, SIZE)).max()) < 0.95


def test_learned_filters_describe_new_images_better_than_others(planted, learned):
    new = sparse_images(planted, seed=4, n=2)
    assert objective(learned.filters, new) < 0.5 * objective(dct_filters(N_PLANTED, SIZE), new)


def test_the_objective_falls_and_codes_get_fewer(learned):
    assert learned.objective.shape == learned.density.shape == (25,)
    assert float(learned.objective[-5:].mean()) < 0.6 * float(learned.objective[0])
    assert float(learned.density[-5:].mean()) < 0.3 * float(learned.density[0])
    assert bool(((learned.objective > 0) & (learned.objective < 1)).all())


def test_filters_have_zero_mean_and_unit_norm_and_the_most_used_come_first(planted):
    weights = torch.tensor([0.4, 1.0], dtype=torch.float64)[:, None, None]
    found = learn(sparse_images(weights * planted[:2], seed=6), n_filters=2).filters
    assert (found.shape, found.dtype) == ((2, SIZE, SIZE), torch.float32)
    assert float(found.sum(dim=(1, 2)).abs().max()) < 1e-6
    torch.testing.assert_close(found.square().sum(dim=(1, 2)), torch.ones(2))
    assert float(likeness(found[:1], planted[1:2])) > 0.98
    assert float(likeness(found[1:], planted[:1])) > 0.98


def test_a_filter_that_serves_nothing_is_replaced(images):
    steps = []
    with_progress = learn(images, n_filters=8, sparsity=8.0, n_steps=10, progress=lambda *done: steps.append(done))
    assert with_progress.n_reseeded > 0
    assert bool(with_progress.filters.isfinite().all())
    assert steps == [(step, 10) for step in range(1, 11)]


def test_the_seed_decides_everything_and_the_global_generator_is_left_alone(images):
    state = torch.get_rng_state()
    first, again, other = (learn(images, n_steps=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.filters, again.filters)
    assert torch.equal(first.objective, again.objective)
    assert not torch.allclose(first.filters, other.filters)


def test_the_scale_of_an_image_does_not_matter(images):
    scales = torch.logspace(-3, 3, len(images), dtype=images.dtype)[:, None, None]
    torch.testing.assert_close(learn(images * scales, n_steps=2).filters, learn(images, n_steps=2).filters)


def test_empty_images_are_never_drawn(images):
    with_empty = torch.cat((torch.zeros_like(images), images))
    assert torch.equal(learn(with_empty, n_steps=2).filters, learn(images, n_steps=2).filters)


def test_what_is_remembered_gives_the_derivative_of_the_squared_error(generator):
    shape, n = (12, 15), 3
    filters = torch.randn(n, 5, 5, generator=generator, dtype=torch.float64)
    codes = torch.randn(2, n, *shape, generator=generator, dtype=torch.float64)
    images = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    memory = dictionary_learning._Memory(filters)
    memory.add(codes, images, kept=1.0)
    learned = torch.nn.Parameter(filters.clone())
    error = ConvolutionalDictionary(learned, shape, field="real")(codes) - images
    (error.square().sum() / 2).backward()
    predicted = torch.nn.functional.conv2d(memory._between, filters.flip(-2, -1)[None])[:, 0]
    torch.testing.assert_close(predicted - memory._with_images, learned.grad)
    torch.testing.assert_close(memory.energy, codes.square().sum(dim=(0, 2, 3)))


def test_improved_filters_have_a_smaller_error_on_what_is_remembered(generator):
    filters = random_filters(3, 5, seed=2).double()
    codes = torch.randn(1, 3, 16, 16, generator=generator, dtype=torch.float64)
    image = ConvolutionalDictionary(random_filters(3, 5, seed=3).double(), (16, 16), field="real")(codes)
    memory = dictionary_learning._Memory(filters)
    memory.add(codes, image, kept=0.0)
    errors = []
    for _ in range(4):
        errors.append(float((ConvolutionalDictionary(filters, (16, 16), field="real")(codes) - image).norm()))
        filters = memory.improved(filters)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]


def test_a_filter_off_its_centre_is_moved_with_its_codes(generator):
    filters = torch.zeros(2, 7, 7, dtype=torch.float64)
    filters[0, 4:6, 1:3] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) / 2
    filters[1, 2:4, 3:5] = filters[0, 4:6, 1:3]
    codes = torch.randn(1, 2, 20, 20, generator=generator, dtype=torch.float64)
    D = ConvolutionalDictionary(filters, (20, 20), field="real")
    memory, moved_memory = (dictionary_learning._Memory(filters) for _ in range(2))
    memory.add(codes, D(codes), kept=0.0)
    centred = memory.centred(filters)
    torch.testing.assert_close(centred[0], filters[0].roll((-1, 1), dims=(0, 1)))
    torch.testing.assert_close(centred[1], filters[1])
    moved = torch.stack((codes[:, 0].roll((1, -1), dims=(1, 2)), codes[:, 1]), dim=1)
    torch.testing.assert_close(D.with_filters(centred)(moved), D(codes))
    moved_memory.add(moved, D(codes), kept=0.0)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(memory._between[inner], moved_memory._between[inner])
    torch.testing.assert_close(memory._with_images[:, 1:-1, 1:-1], moved_memory._with_images[:, 1:-1, 1:-1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_high_pass_is_what_the_smooth_part_leaves(generator, dtype):
    x = torch.randn(7, 10, generator=generator, dtype=dtype)
    space = Space((7, 10), "complex" if dtype.is_complex else "real")
    gradient = FiniteDifference(space, boundary="circular")
    basis = torch.eye(70, dtype=dtype).reshape(70, 7, 10)
    system = basis.reshape(70, 70) + 4.0 * gradient.gram(basis).reshape(70, 70).mT
    smooth = torch.linalg.solve(system, x.flatten()).reshape(7, 10)
    torch.testing.assert_close(high_pass(x, 4.0), x - smooth)
    assert high_pass(x[None, None], 4.0).shape == (1, 1, 7, 10)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"filter_size": 4}, "filter_size is 4; expected an odd number"),
        ({"filter_size": 21}, "expected at least twice the filters' 21"),
        ({"n_filters": 0}, "expected at least one of each"),
        ({"n_steps": 0}, "expected at least one of each"),
        ({"sparsity": 0.0}, "sparsity is 0.0; expected a positive number"),
        ({"sparsity": float("nan")}, "sparsity is nan"),
    ],
)
def test_impossible_options_are_refused(images, changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        learn(images, **changed)


def test_impossible_images_are_refused(images):
    with pytest.raises(TypeError, match=r"images are torch\.complex128; expected real"):
        learn(images.to(torch.complex128))
    with pytest.raises(ValueError, match=r"images have shape \(40, 40\); expected \(image, y, x\)"):
        learn(images[0])
    with pytest.raises(ValueError, match="all zero"):
        learn(torch.zeros_like(images))
    with pytest.raises(ValueError, match="not finite"):
        learn(images / 0)
    with pytest.raises(ValueError, match=r"smoothness is 0\.0; expected a positive number"):
        high_pass(images, 0.0)


def test_flat_images_give_filters_all_the_same():
    steps = torch.zeros(1, 40, 40, dtype=torch.float64)
    steps[:, 20:] = 1.0
    for flat in (torch.ones_like(steps), steps):
        found = learn(flat, n_steps=2).filters
        torch.testing.assert_close(found.square().sum(dim=(1, 2)), torch.ones(N_PLANTED))


def test_too_sparse_images_leave_the_filters_as_they_were_drawn(images):
    untouched = learn(images, sparsity=1e6, n_steps=2)
    assert float(untouched.density.max()) == 0.0
    torch.testing.assert_close(untouched.objective, torch.ones(2, dtype=torch.float64))
    assert bool(untouched.filters.isfinite().all())
