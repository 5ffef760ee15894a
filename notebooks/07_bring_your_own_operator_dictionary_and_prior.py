# %% [markdown]
# # Bring your own operator, dictionary and prior
#
# The reconstruction methods of this project are made of parts that know nothing of each other: an **operator** $A$
# (the physics), a **prior** (what images look like), and a loop that alternates between them. So new physics works
# with every prior, and a new prior with all physics. This document brings one of each:
#
# 1. an operator that the project does not have, motion blur, and the tests that tell whether it is right;
# 2. a dictionary of hand-made filters in a file of your own;
# 3. a prior of four numbers, trained in seconds inside an unrolled reconstruction.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from pictures import compare, mosaic
from torch import nn

import mrirecon
from operators import GradientStep, LinearOperator, Space, TrainingPlan, Unrolled, Wavelet, cg, fit, inner, nrmse
from operators.priors import Prior
from operators.proximal import complex_soft_threshold

SMALL = "MRCTRECON_SMALL" in os.environ  # a quick run, for tests
torch.set_num_threads(1)

# %% [markdown]
# ## 1. An operator
#
# An object that moves along y while the picture is taken is seen at several places at once:
#
# $$ (A x)(y, x) = \sum_j h_j\, x(y - j, x), $$
#
# with $h_j$ the share of the time spent $j$ pixels away from the start. A `LinearOperator` has two spaces, each with
# a shape and a field (real or complex), and two hooks: `_forward`, and `_adjoint` with $\langle A x, y\rangle =
# \langle x, A^H y\rangle$. The adjoint of a shift is the shift back. Everything else is inherited: checks of what
# comes in, leading batch dimensions, gradients, `A.H`, `A @ B`, `A.norm()`.


# %%
class MotionBlur(LinearOperator):
    """Σ_j h_j · (x shifted by j pixels along y), circular.

    Parameters
    ----------
    shares
        h, real ``(offset,)``: share of the time at each offset, from 0 on.
    domain
        Space of the image ``(y, x)``.
    """

    def __init__(self, shares: torch.Tensor, domain: Space) -> None:
        super().__init__(domain, domain)
        self.register_buffer("shares", shares)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(h * x.roll(j, dims=-2) for j, h in enumerate(self.shares))

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return sum(h * y.roll(-j, dims=-2) for j, h in enumerate(self.shares))


matrix = 32 if SMALL else 64
shares = torch.tensor([0.35, 0.1, 0.1, 0.1, 0.35])  # a short rest at both ends of the way
A = MotionBlur(shares, Space((matrix, matrix), "complex"))
print(A)
print(f"largest factor by which it amplifies anything: {float(A.norm()):.3f}")

# %% [markdown]
# ## Is it right?
#
# An adjoint with a mistake does not crash. It makes solvers converge to something slightly wrong, and nobody notices.
# The test is cheap: for random $x$ and $y$ the two inner products must agree to rounding. To see it fail, we forget
# to shift back, which is easily done.
#
# The gradient is tested against finite differences, and the norm against the largest singular value of the dense
# matrix. The project runs these and more tests on each of its own operators (`tests/contract`); to add yours, write
# one entry in `tests/cases.py`.


# %%
class WrongBlur(MotionBlur):
    """The same with a mistake."""

    def _adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._forward(y)


tiny = Space((7, 4), "complex")
generator = torch.Generator().manual_seed(0)


def adjoint_mismatch(operator):
    """|⟨A x, y⟩ − ⟨x, Aᴴ y⟩| relative to ‖A x‖ ‖y‖, in double precision."""
    x = operator.domain.randn(3, generator=generator, dtype=torch.float64)
    y = operator.codomain.randn(3, generator=generator, dtype=torch.float64)
    image, n_dims = operator(x), operator.codomain.n_dims
    difference = inner(image, y, n_dims) - inner(x, operator.adjoint(y), n_dims)
    return float((difference.abs() / (image.abs().square().sum() * y.abs().square().sum()).sqrt()).max())


mismatches = {kind.__name__: adjoint_mismatch(kind(shares.double(), tiny)) for kind in (MotionBlur, WrongBlur)}
print(*(f"{name:12} {mismatch:.1e}" for name, mismatch in mismatches.items()), sep="\n")

exact = MotionBlur(shares.double(), tiny)
x = tiny.randn(generator=generator, dtype=torch.float64).requires_grad_()
gradient_is_right = torch.autograd.gradcheck(exact, x)
basis = torch.eye(tiny.size, dtype=torch.complex128).reshape(-1, *tiny.shape)
dense = exact(basis).reshape(tiny.size, tiny.size).T
print("gradient agrees with finite differences:", gradient_is_right)
print(f"norm {float(exact.norm()):.6f}, largest singular value {float(torch.linalg.matrix_norm(dense, 2)):.6f}")

# %% [markdown]
# ## Use it
#
# A blurred and noisy head. Without a prior, the least-squares image is what conjugate gradients approach; blur makes
# some frequencies nearly vanish, so noise is amplified there without bound and one has to stop early. With the prior
# of convolutional sparse coding it is one call more: its weights were trained on undersampled k-space and never saw a
# blur, but they ask the operator for nothing except `A(x)` and `A.adjoint(y)`.

# %%
noise_level = 0.05


def blurred(seed):
    """A head, its blurred and noisy picture."""
    target = mrirecon.brain_phantom((1, matrix, matrix), seed=seed)
    noise = 2**0.5 * A.codomain.randn(1, generator=torch.Generator().manual_seed(seed))  # 1 in each component
    return target, A(target) + noise_std(target) * noise


def noise_std(target):
    """Noise level per real component: 5 % of the brightest pixel."""
    return noise_level * float(target.abs().max())


target, y = blurred(100)
sparse_coding = mrirecon.load_method("csc").model
with torch.no_grad():
    results = {
        "blurred": y,
        "least squares,\n8 steps": cg(A.gram, A.adjoint(y), max_iterations=8, batch_dims=1).value,
        "least squares,\n60 steps": cg(A.gram, A.adjoint(y), max_iterations=60, batch_dims=1).value,
        "csc": sparse_coding(y, A, noise_std(target)),
    }


def error(image, truth=None):
    """Relative error of the magnitude."""
    return float(nrmse(image.abs(), (target if truth is None else truth).abs()))


bright = float(target.abs().max())
compare(
    {f"{name}\n{100 * error(image):.0f} % error": image[0].abs() for name, image in results.items()},
    (0.0, 0.9 * bright),
    target=target[0].abs(),
    error_limit=0.4 * bright,
)

# %% [markdown]
# ## 2. A dictionary
#
# A dictionary is a file with an array `filters` (filter, ky, kx) of odd size. Here are twelve lines and edges, drawn
# by a formula: the first and second derivative of a Gaussian in six directions. `mrirecon` takes the file wherever it
# takes a name: in Python as below, on the command line as `--dictionary mine.npz`. To learn filters from your own
# images instead: `mrirecon learn-dictionary images/*.nii.gz -o mine.npz`.

# %%
offset = torch.arange(-4, 5, dtype=torch.float32)
rows, columns = torch.meshgrid(offset, offset, indexing="ij")
drawn = []
for angle in torch.arange(6) * torch.pi / 6:
    across = columns * angle.cos() + rows * angle.sin()
    bell = torch.exp(-(rows.square() + columns.square()) / (2 * 1.3**2))
    drawn += [across * bell, (across.square() / 1.3**2 - 1) * bell]
filters = torch.stack([d - d.mean() for d in drawn])
np.savez("mine.npz", filters=filters.numpy())
mosaic(list(filters), n_columns=12, width_inches=7)

mine = mrirecon.load_dictionary("mine.npz")
print(*mine.decisions, sep="\n")

# %%
simulation = mrirecon.simulate_scenario(
    mrirecon.Scenario(matrix=2 * matrix, n_slices=1, acceleration=1.5, n_centre_lines=matrix // 3)
)
scans = {"adjoint": mrirecon.reconstruct(simulation.kspace, "adjoint").image}
scans["csc, learned filters"] = mrirecon.reconstruct(simulation.kspace, "csc").image
scans["csc, mine"] = mrirecon.reconstruct(simulation.kspace, mrirecon.load_method("csc", dictionary="mine.npz")()).image
scan_errors = {name: error(image, simulation.target) for name, image in scans.items()}
compare(
    {f"{name}\n{100 * scan_errors[name]:.0f} % error": image[0].abs() for name, image in scans.items()},
    (0.0, 0.9 * float(simulation.target.abs().max())),
    target=simulation.target[0].abs(),
    error_limit=0.4 * float(simulation.target.abs().max()),
)

# %% [markdown]
# ## 3. A prior
#
# A prior takes one step from an image to a more likely one, and is told the noise level. This one shrinks the wavelet
# coefficients of the image, each level by its own threshold, in units of the noise. It has three numbers to learn.
#
# `Unrolled` alternates it with a step towards the data, $x \leftarrow x - \tau A^H (A x - y)$, whose length $\tau$ is
# learned too. It also takes care of the scale: a prior sees images of about unit size, whatever the units of the data.


# %%
class WaveletShrinkage(Prior):
    """Soft thresholds of Haar coefficients, one for each level, relative to the noise level.

    Parameters
    ----------
    n_levels
        Levels of the transform.
    """

    def __init__(self, n_levels: int = 3) -> None:
        super().__init__()
        self.log_thresholds = nn.Parameter(torch.full((n_levels,), -2.0))

    def forward(self, x, state):
        """One step; the state is the noise level, as `Prior.init` makes it."""
        n_levels = len(self.log_thresholds)
        noise = state[..., None, None]
        levels = [Wavelet(Space(tuple(x.shape[-2:]), "complex"), "haar", level=n + 1) for n in range(n_levels)]
        threshold = torch.zeros(x.shape[-2:])
        inside = torch.ones(x.shape[-2:], dtype=torch.bool)
        for W, log_threshold in zip(levels, self.log_thresholds, strict=True):
            threshold = torch.where(W.detail_mask() & inside, log_threshold.exp(), threshold)
            inside = ~W.detail_mask()
        coefficients = complex_soft_threshold(levels[-1](x), noise * threshold)
        return levels[-1].adjoint(coefficients), state


torch.manual_seed(0)
model = Unrolled(WaveletShrinkage(), GradientStep(1.0), n_iterations=8)
print(*(f"{name}: {tuple(p.shape) or 'one number'}" for name, p in model.named_parameters()), sep="\n")

# %% [markdown]
# Training is any loss on any samples. `fit` keeps everything in a folder, so that a training that was killed goes on
# where it was, with the same weights in the end, bit by bit. Called again after the end, it returns what is there.

# %%
n_steps = 10 if SMALL else 60
examples = [blurred(seed) for seed in range(4)]


def sample(index, generator):
    """Batch of this index: one of the pairs of truth and data."""
    return examples[index % len(examples)]


def loss(module, batch):
    """Mean squared error, relative to the power of the truth."""
    truth, data = batch
    difference = module(data, A, noise_std(truth)) - truth
    return difference.abs().square().mean() / truth.abs().square().mean()


with torch.no_grad():
    before = error(model(y, A, noise_std(target)))
plan = TrainingPlan(n_steps=n_steps, learning_rate=0.1, schedule="cosine", log_every=1)
fit(model, loss, sample, plan, "training")
learned = {name: p.detach().clone() for name, p in model.named_parameters()}
again = fit(model, loss, sample, plan, "training")
with torch.no_grad():
    deblurred = model(y, A, noise_std(target))
after = error(deblurred)
print(f"relative error of a head that was not trained on: {100 * before:.1f} % → {100 * after:.1f} %")
thresholds = learned["priors.0.log_thresholds"].exp().tolist()
print("thresholds in units of the noise, finest level first:", *(f"{threshold:.2f}" for threshold in thresholds))
print(f"step: {float(learned['consistencies.0.log_step'].exp()):.2f}")

# %%
log = np.genfromtxt(Path("training") / "training.csv", delimiter=",", names=True)
figure, axes = plt.subplots(figsize=(6, 2.4), layout="constrained")
axes.plot(log["step"], log["loss"])
axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
compare(
    {
        f"blurred\n{100 * error(y):.0f} % error": y[0].abs(),
        f"four learned numbers\n{100 * after:.0f} % error": deblurred[0].abs(),
        f"csc\n{100 * error(results['csc']):.0f} % error": results["csc"][0].abs(),
    },
    (0.0, 0.9 * bright),
    target=target[0].abs(),
    error_limit=0.4 * bright,
)

# %% [markdown]
# ## What was claimed

# %%
# The test tells the right operator from the wrong one; gradient and norm are right.
assert mismatches["MotionBlur"] < 1e-12
assert mismatches["WrongBlur"] > 1e-3
assert gradient_is_right
assert abs(float(exact.norm()) / float(torch.linalg.matrix_norm(dense, 2)) - 1) < 1e-3
# Composition and batch come for free.
assert A.H(A(torch.stack((target, y)))).shape == (2, *target.shape)
# Least squares amplifies noise; sparse coding, which never saw a blur, removes it.
assert error(results["least squares,\n60 steps"]) > error(results["least squares,\n8 steps"])
assert error(results["csc"]) < error(y)
# Hand-made filters serve the shipped weights.
assert scan_errors["csc, mine"] < scan_errors["adjoint"]
assert torch.allclose(mine.filters.square().sum(dim=(1, 2)), torch.ones(12), atol=1e-5)
# A few steps of training help on an image that was not trained on, and a finished training is not begun anew.
assert after < before
assert after < error(y)
assert again.step == n_steps
assert all(torch.equal(p, learned[name]) for name, p in model.named_parameters())
print("All claims hold.")
