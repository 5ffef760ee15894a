# %% [markdown]
# # What sparsity maps and matched patches show
#
# A network that turns data into an image cannot say why. Two priors of this project can, because they *are* a model of
# images, with a network only in the place where such models used to have a number to tune:
#
# - **convolutional sparse coding** (`csc`) takes an image apart into a smooth part and what each of some dozens of
#   filters adds, and a *map* says how reluctantly each filter was used at each pixel;
# - **groups of similar patches** (`GroupSparsePrior`) say which patches of the image they took for repetitions of the
#   same thing, and how much of each group they kept.
#
# This document looks at both, and at what happens to the first when its dictionary is exchanged or shuffled.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from pictures import compare, mosaic

import mrirecon
from mrirecon import LEARNED_METHODS
from operators import nrmse, psnr_slice
from operators.priors import GroupSparsePrior

SMALL = "MRCTRECON_SMALL" in os.environ  # a quick run, for tests
torch.set_num_threads(1)

# %% [markdown]
# ## An image taken apart
#
# Convolutional sparse coding writes an image as
#
# $$ x = x_\text{low} + \sum_k d_k \circledast s_k . $$
#
# $x_\text{low}$ is smooth. The filters $d_k$ form the dictionary; the *codes* $s_k$ say where each is placed and how
# strongly. They are found by minimising
#
# $$ \tfrac12 \| A x - y \|^2 + \sum_k \| \Lambda_k s_k \|_1 , $$
#
# and the second term sets all codes to exactly zero but those that are worth it. The maps $\Lambda_k$ are thresholds:
# where $\Lambda_k$ is high, filter $k$ must explain a lot of data to be used. Only they come from a network.
#
# We scan the built-in head at low field, as in document 01, and keep the parts.

# %%
matrix = 64 if SMALL else 128
simulation = mrirecon.simulate_scenario(
    mrirecon.Scenario(
        matrix=matrix, n_slices=1, acceleration=1.5, n_centre_lines=24 * matrix // 128, relative_noise_variance=0.1
    )
)
scan, target = simulation.kspace, simulation.target.abs()
head = mrirecon.head_mask(tuple(target.shape))


def psnr(image):
    """In dB, of magnitudes inside the head."""
    return float(psnr_slice(image.abs(), target, mask=head).mean())


method = mrirecon.load_method("csc", keep_codes=True)
image = mrirecon.reconstruct(scan, method()).image
parts = method.parts[0]
filters = method.model.filters
used = (parts.codes[0] != 0).float().mean(dim=(-2, -1))
n_filters, *size = filters.shape
print(f"{n_filters} filters of {size[0]}×{size[1]}; {100 * float(used.mean()):.1f} % of all codes are not zero")

# %% [markdown]
# The smooth part and the details add up to the reconstruction. The network treats the smooth part too: outside of the
# head, where it is only noise, it is shrunk to nothing.

# %%
bright = float(target.max())
compare(
    {
        "smooth part": parts.low_pass[0].abs(),
        "details\n(sum of all filters)": parts.contributions[0].sum(dim=0).abs(),
        f"both\n{psnr(image):.1f} dB": image[0].abs(),
        "truth": target[0],
    },
    (0.0, 0.9 * bright),
)

# %% [markdown]
# The dictionary was learned from MR images: edges and ridges in all directions, and a few textures. Each filter is
# drawn from its own black to white, the most used in this scan first, with the share of pixels where its code is not
# zero.

# %%
order = used.argsort(descending=True)
mosaic([filters[k] for k in order], [f"{100 * float(used[k]):.0f} %" for k in order], n_columns=16)

# %% [markdown]
# Below, for four filters (columns): the filter; its map Λ, dark where it may be used; its code; what it adds to the
# image. The thresholds are highest in the air, so that noise cannot get in, and lowest where the head has a boundary
# *of the direction of the filter*. Codes are few and sit there.

# %%
chosen = [int(k) for k in order[:4]]
rows = [
    ("filter", [filters[k] for k in chosen], "gray", None),
    ("map Λ", [parts.maps[0, k] / simulation.noise_std for k in chosen], "magma", (0.0, 8.0)),
    ("|code|", [parts.codes[0, k].abs() for k in chosen], "inferno", (0.0, 0.15 * bright)),
    ("adds", [parts.contributions[0, k].abs() for k in chosen], "gray", (0.0, 0.1 * bright)),
]
figure, axes = plt.subplots(4, 4, figsize=(7.6, 7.2), layout="constrained")
for line, (name, images, colours, limits) in zip(axes, rows, strict=True):
    for place, shown in zip(line, images, strict=True):
        low, high = limits or (-float(shown.abs().max()), float(shown.abs().max()))
        drawn = place.imshow(shown.numpy(), cmap=colours, vmin=low, vmax=high)
        place.set(xticks=[], yticks=[])
    line[0].set_ylabel(name)
    if limits:
        figure.colorbar(drawn, ax=list(line), label="in units of the noise" if name == "map Λ" else "a.u.")

# %% [markdown]
# On disk the same is `mrirecon reconstruct scan.h5 -o image.nii.gz --save-maps maps/`: four NIfTI files with one
# volume for each filter.
#
# ## Another dictionary
#
# The network never saw a filter by its number. It sees each filter's correlation with the image, and a description of
# the filter (how its power is spread over frequencies and directions), so the dictionary is an argument. We try ones
# that it was not trained with: another learned one, cosines, and random numbers.
#
# And we shuffle: the same filters in another order are the same dictionary, so nothing may change. That is not
# self-evident. `csc-v1` has the network that was published first, which knows filter 7 as "channel 7": shuffled, it
# applies the threshold of one filter to another.

# %%
permutation = torch.randperm(len(filters), generator=torch.Generator().manual_seed(1))
mrirecon.write_dictionary(Path("shuffled.npz"), mrirecon.Dictionary("shuffled", filters[permutation]), overwrite=True)
attempts = {
    "csc": ("csc", None),
    "csc, shuffled": ("csc", "shuffled.npz"),
    "csc, learned-16x7": ("csc", "learned-16x7"),
    "csc, dct-32x9": ("csc", "dct-32x9"),
    "csc, random-32x9": ("csc", "random-32x9"),
    "csc-v1": ("csc-v1", None),
    "csc-v1, shuffled": ("csc-v1", "shuffled.npz"),
}
if SMALL:
    del attempts["csc, learned-16x7"]
images = {"adjoint": mrirecon.reconstruct(scan, "adjoint").image}
for name, (weights, dictionary) in attempts.items():
    images[name] = mrirecon.reconstruct(scan, mrirecon.load_method(weights, dictionary=dictionary)()).image
quality = {name: psnr(shown) for name, shown in images.items()}
print(f"{'':20} PSNR (dB)   difference from its own dictionary")
for name, shown in images.items():
    own = images["csc-v1" if "v1" in name else "csc"]
    change = "" if name == "adjoint" else f"{100 * float(nrmse(shown.abs(), own.abs())):10.3f} %"
    print(f"{name:20} {quality[name]:9.2f}   {change}")

# %% [markdown]
# Shuffled, `csc` gives the same image up to rounding, and `csc-v1` does not. Other sensible dictionaries cost about
# one decibel. Random filters look like nothing that is in an image: they need many codes for an edge, blur it, and
# let noise through. So the dictionary may be exchanged, but not for anything.

# %%
compare(
    {
        f"{name}\n{quality[name]:.1f} dB": images[name][0].abs()
        for name in ("csc", "csc, dct-32x9", "csc, random-32x9", "csc-v1, shuffled")
    },
    (0.0, 0.9 * bright),
    target=target[0],
    error_limit=0.3 * bright,
)

# %% [markdown]
# ## Matched patches
#
# `GroupSparsePrior` rests on another property of images: patches repeat. For every patch it looks for the most similar
# ones in its neighbourhood, stacks them as a matrix and shrinks its singular values. If the patches are one structure
# under different noise, the matrix is nearly of rank one, and the shrinkage removes the noise and keeps the structure.
# The similarity is not that of pixels but of learned tokens, in a wavelet frame.
#
# `match_maps` returns who was grouped with whom, `ranks` how much of each group was left. Where trained weights
# (`deepgsr`) come with the package we look at those. **Otherwise the prior below has random weights: then the
# pictures show the mechanics only**, and say nothing about what a trained prior finds.

# %%
trained = "deepgsr" in LEARNED_METHODS
if trained:
    model = mrirecon.load_method("deepgsr").model
    prior = next(module for module in model.modules() if isinstance(module, GroupSparsePrior))
else:
    torch.manual_seed(0)
    prior = GroupSparsePrior(n_blocks=2, width=8, n_token_channels=24, n_hidden=16).eval()
scale = float(simulation.target.abs().square().mean().sqrt())  # a prior sees images at a scale of about one
x = images["adjoint"] / scale
noise_std = torch.tensor([simulation.noise_std / scale])
matches = prior.match_maps(x, noise_std)
ranks = prior.ranks(x, noise_std)
print("weights:", "trained" if trained else "random, mechanics only")
n_blocks, n_tokens_y, n_tokens_x = matches.scores.shape[1:4]
side = matches.patch_size
print(f"{n_blocks} blocks, {n_tokens_y}×{n_tokens_x} patches of {side}×{side} pixels, {prior.n_members} matches each")

# %% [markdown]
# Three patches (squares with a dot) and their six best matches, on the noisy zero-filled image, which is all that the
# prior sees. Right: the effective rank of what is left of each group in the low band of the first block, from 1 (all
# patches became multiples of one) upwards. With the shipped weights it is lowest inside the head, where patches repeat,
# and as high as the shrinkage allows in the air, where patches of noise have nothing in common.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 4.1), layout="constrained")
axes[0].imshow(images["adjoint"][0].abs().numpy(), cmap="gray", vmin=0, vmax=0.9 * bright)
half = matches.patch_size / 2
for colour, (part_y, part_x) in zip(("C1", "C2", "C9"), ((0.3, 0.35), (0.5, 0.62), (0.75, 0.4)), strict=True):
    i, j = int(part_y * n_tokens_y), int(part_x * n_tokens_x)
    for place, (y, x_) in enumerate([matches.references[0, i, j], *matches.members[0, 0, i, j, :6]]):
        corner = (float(x_) - half, float(y) - half)
        width = 2.5 if place == 0 else 1.0
        axes[0].add_patch(plt.Rectangle(corner, 2 * half, 2 * half, fill=False, edgecolor=colour, linewidth=width))
    y, x_ = matches.references[0, i, j]
    axes[0].plot(float(x_), float(y), "o", color=colour, markersize=3)
axes[0].set(
    title="matches of three patches", xlim=(-0.5, matrix - 0.5), ylim=(matrix - 0.5, -0.5), xticks=[], yticks=[]
)
drawn = axes[1].imshow(ranks[0, 0, 0].numpy(), cmap="viridis")
axes[1].set(title="effective rank of each group", xticks=[], yticks=[])
figure.colorbar(drawn, ax=axes[1])

# %% [markdown]
# ## What was claimed

# %%
# The parts add up to the image.
together = parts.low_pass + parts.contributions.sum(dim=1)
assert torch.allclose(together, image, atol=1e-4 * bright)
# Few codes are used, and thresholds are never negative.
assert float(used.mean()) < 0.25
assert float(parts.maps.min()) >= 0
# Thresholds are higher in the air than where the image has edges.
where = parts.contributions[0].sum(dim=0).abs()
edges = where > where.quantile(0.95)
assert float(parts.maps[0][:, edges].mean()) < float(parts.maps[0][:, ~head[0]].mean())
# The order of filters means nothing to csc, and everything to csc-v1.
assert float(nrmse(images["csc, shuffled"].abs(), images["csc"].abs())) < 1e-3
assert float(nrmse(images["csc-v1, shuffled"].abs(), images["csc-v1"].abs())) > 0.01
assert quality["csc-v1, shuffled"] < quality["csc-v1"]
# Its own dictionary serves it best; cosines come next.
assert quality["csc"] > quality["csc, dct-32x9"] > max(quality["adjoint"], quality["csc, random-32x9"])
# Matches come in order of their similarity, a cosine; ranks are between 0 and the number of members.
assert bool((matches.scores.diff(dim=-1) <= 1e-6).all())
assert float(matches.scores.abs().max()) <= 1 + 1e-5
assert float(ranks.min()) >= 0
assert float(ranks.max()) <= prior.n_members
# Told that there is no noise, the prior changes nothing.
with torch.no_grad():
    assert torch.equal(prior(x, prior.init(x, torch.zeros(1)))[0], x)
print("All claims hold.")
