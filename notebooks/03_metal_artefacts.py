# %% [markdown]
# # Metal artefacts
#
# A hip prosthesis in the beam ruins a CT image far beyond the prosthesis: dark bands between dense things, bright
# streaks around them, and Hounsfield units that are wrong by hundreds. This document looks for the causes one by one,
# and then removes the artefacts in two classical ways. The scan is simulated from a built-in pelvis whose truth
# without the metal is known, so that every error can be given in HU.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from pictures import compare

import ctrecon
from ctrecon.method_names import METAL_METHODS
from ctrecon.metrics import bias_hu, rmse_hu

SMALL = "MRCTRECON_SMALL" in os.environ  # a quick run, for tests
torch.set_num_threads(1)

# %% [markdown]
# ## Where the artefacts come from
#
# The model of document 02, $y = \int \mu\, dl$, assumes X-rays of one energy. A tube sends a spectrum $f(E)$, and
# what the detector sees is
#
# $$ y = -\log \sum_E f(E)\, e^{-\int \mu(E)\, dl} . $$
#
# Low energies are absorbed first, so the beam *hardens* on its way and $y$ grows more slowly than the path through the
# object. For water this is known and corrected for. Metal hardens the beam much more, and the corrected sinogram is no
# longer that of any image: rays along different directions through the same metal contradict each other. Besides, so
# few photons are left behind metal that the noise explodes (starvation).
#
# We simulate the same pelvis three times: with one energy and no noise, with a spectrum, and with a spectrum and noise.

# %%
matrix, n_views = (80, 120) if SMALL else (256, 360)


def scan_of(**options):
    """A scan of the pelvis with a titanium hip on one side."""
    return ctrecon.simulate_scenario(
        ctrecon.Scenario(preset="sparse-view", n_views=n_views, matrix=matrix, metal="hip", **options)
    )


scans = {
    "one energy,\nno noise": scan_of(),
    "spectrum,\nno noise": scan_of(polyenergetic=True),
    "spectrum\nand noise": scan_of(polyenergetic=True, n_photons=1e6),
}
simulation = scans["spectrum\nand noise"]
sinogram = simulation.sinogram
ideal, hardened, noisy = (scan.sinogram.data.flatten() for scan in scans.values())
through_metal = simulation.metal_trace.flatten() > 0

# %% [markdown]
# Each dot below is a ray. Left, what the spectrum does: rays through tissue (blue) keep the value that they should
# have, thanks to the correction; rays through metal (orange) fall short of it, the more the denser their path. Right,
# what noise does: beyond a line integral of about 10 hardly a photon arrives, and the value is anything.

# %%
some = torch.randperm(len(ideal), generator=torch.Generator().manual_seed(0))[:6000]
figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained", sharex=True, sharey=True)
for place, x, y in ((axes[0], ideal, hardened), (axes[1], hardened, noisy)):
    for rays, label in ((some[~through_metal[some]], "beside metal"), (some[through_metal[some]], "through metal")):
        place.plot(x[rays], y[rays], ".", markersize=2, label=label)
    place.axline((0, 0), slope=1, color="black", linewidth=0.6)
axes[0].set(xlabel="one energy", ylabel="spectrum", title="beam hardening")
axes[1].set(xlabel="spectrum", ylabel="spectrum and noise", title="starvation")
axes[0].legend(fontsize=8, markerscale=4)

# %% [markdown]
# No image has such a sinogram: rays through the same metal contradict each other. This is what filtered back-projection
# makes of it. The truth at the right has no metal; it is what one would like to see *around* the metal.
#
# Even with one energy and no noise there are fine streaks: 360 views are too few for something with thirteen times the
# attenuation of water (see document 02; with 1440 views most of them are gone). With the spectrum comes broad shading:
# too dense around the prosthesis, not dense enough along the longest paths through it. Noise adds streaks along those
# paths. (The prosthesis itself is dark red because the truth has none.)

# %%
target = simulation.target_hu
metal = simulation.metal_mask > 0
excluded = metal | (target <= -500)  # so that errors are counted inside the body, beside the metal
plain = {name: ctrecon.reconstruct(scan.sinogram, "fbp").hu for name, scan in scans.items()}
for name, hu in plain.items():
    print(f"{' '.join(name.split()):22} {float(rmse_hu(hu, target, excluded).mean()):6.0f} HU root mean square error")

# %%
soft_tissue = ctrecon.chosen_window("soft tissue").limits_hu
trunk = (slice(int(0.15 * matrix), int(0.85 * matrix)), slice(None))
compare(
    {name: hu[0] for name, hu in plain.items()}, soft_tissue, target=target[0], error_limit=400.0, unit="HU", crop=trunk
)

# %% [markdown]
# ## Do without the rays through metal
#
# The metal itself is easy to find: it is brighter than anything else, and pixels above 2500 HU are taken for it. Its
# projection is the **trace**, the part of the sinogram that cannot be trusted. The classical methods replace it:
#
# - `li` draws, in each view, a straight line from one side of the trace to the other. That removes the metal, and
#   with it every edge of bone that the same rays crossed; where those edges are missing, new streaks begin.
# - `nmar` first divides the sinogram by that of a rough image of the patient (air, tissue, bone, taken from the
#   result of `li`), interpolates the quotient, which is nearly flat, and multiplies again. The edges that the rough
#   image knows survive.
#
# Both then run filtered back-projection. A third way is to replace nothing and to say less: `tv` looks for the image
# with little total variation (document 02) that agrees with the rays *beside* the metal, and starts from the image of
# `nmar`. Trained methods do the same with a learned prior, where their weights come with the package
# (`METAL_METHODS`). All of them put the metal back in the end.

# %%
reduced = {name: ctrecon.reduce_metal(sinogram, name) for name in ("li", "nmar")}
trace = reduced["nmar"].trace[0]
bins, top = slice(250, 550), float(sinogram.data.max())
figure, axes = plt.subplots(1, 4, figsize=(9.4, 3.2), layout="constrained", sharey=True)
shown = {
    "measured": sinogram.data[0],
    "trace of the metal": trace * top,
    "li": reduced["li"].sinogram.data[0],
    "nmar": reduced["nmar"].sinogram.data[0],
}
for place, (title, image) in zip(axes, shown.items(), strict=True):
    picture = place.imshow(image[:, bins].numpy(), cmap="gray", aspect="auto", vmin=0, vmax=top)
    place.set(title=title, xlabel="detector bin", xticks=[])
axes[0].set_ylabel("view")
figure.colorbar(picture, ax=axes, label="line integral")

# %% [markdown]
# ## What it brings
#
# Errors are counted inside the body and beside the metal: over all of it, and over the soft tissue within 30 mm of the
# metal, where somebody would look for a loosened implant. The mean error is given with its sign, because a bias is what
# spoils a density or a dose calculation.
#
# One row is for insight only: `nmar` with the true outline of the metal, which nobody has. In the uncorrected image the
# edge of the metal is blurred, so a threshold misses the rays that only graze it, and each of those leaves a streak.

# %%
spacing_mm = sinogram.geometry.pixel_spacing_mm
reach = 2 * round(30 / spacing_mm) + 1
near = torch.nn.functional.max_pool2d(metal.float(), reach, stride=1, padding=reach // 2) > 0
elsewhere = excluded | ~near

results = {"uncorrected": ctrecon.reconstruct(sinogram, "fbp")}
for name in ("li", "nmar", "tv", *METAL_METHODS):
    results[name] = ctrecon.reconstruct_without_metal(sinogram, name)
outlined = ctrecon.reconstruct_without_metal(sinogram, "nmar", mask=metal)
table = {
    name: (
        float(rmse_hu(result.hu, target, excluded).mean()),
        float(rmse_hu(result.hu, target, elsewhere).mean()),
        float(bias_hu(result.hu, target, elsewhere).mean()),
    )
    for name, result in {**results, "nmar, true outline": outlined}.items()
}
print(f"{'':18}  RMSE (HU)  RMSE near the metal  mean error near the metal")
for name, (everywhere, close, bias) in table.items():
    print(f"{name:18}  {everywhere:9.0f}  {close:19.0f}  {bias:+25.0f}")

# %% [markdown]
# All methods remove the bands, and the mean error with them. In this pelvis `nmar` is hardly better than `li`: what is
# left of streaks comes from the outline of the metal, not from how the trace is filled. `tv` also removes the noise and
# the fine streaks. Right beside the metal all have the same error: they believe rays that graze it.

# %%
compare(
    {f"{name}\n{table[name][0]:.0f} HU": result.hu[0] for name, result in results.items()},
    soft_tissue,
    target=target[0],
    error_limit=400.0,
    unit="HU",
    crop=trunk,
)

# %% [markdown]
# The same as numbers: HU along the row through both hips. Grey marks the metal.

# %%
row = int(metal[0].sum(dim=1).argmax())
position_mm = (torch.arange(matrix) - (matrix - 1) / 2) * spacing_mm
figure, axes = plt.subplots(figsize=(9, 3), layout="constrained")
axes.plot(position_mm, target[0, row], color="black", linewidth=1.5, label="truth")
for name, result in results.items():
    axes.plot(position_mm, torch.where(metal[0, row], torch.nan, result.hu[0, row]), linewidth=1, label=name)
axes.fill_between(position_mm.numpy(), -1000, 1500, where=metal[0, row].numpy(), color="0.85", step="mid")
axes.set(xlabel="x (mm)", ylabel="HU", ylim=(-900, 1400), xlim=(-190, 190))
axes.legend(ncols=3, fontsize=8)

# %% [markdown]
# ## What the methods say about themselves
#
# The log of a reconstruction names what was taken for metal and what was done about it. The residual counts only the
# rays beside the metal. It is far above 1 for `li` and `nmar`: filtered back-projection does not fit the data, it
# only inverts them, and the rays that were replaced pull the image away from those that were measured. `tv`, which
# fits them, has about 1. So the residual says that an image agrees with the rays that were believed, and not that the
# right ones were: the rays that graze the metal are among them.

# %%
print(*results["nmar"].decisions, sep="\n")
print(
    "whitened residual beside the metal:",
    {name: round(float(results[name].residual[0]), 1) for name in ("li", "nmar", "tv")},
)

# %% [markdown]
# ## A real patient's image
#
# With `MRCTRECON_DATA`: a real abdominal image in which metal was simulated by others (rise-mar), beside their own
# linear interpolation. Only images were published, so we scan the image without the metal ourselves, with their metal
# in it.

# %%
folder = Path(os.environ.get("MRCTRECON_DATA", "")) / "ct/metal/abdomen"
if "MRCTRECON_DATA" in os.environ and (folder / "gt.npy").is_file():
    import numpy as np

    every = 4 if SMALL else 2
    truth, mask = (torch.from_numpy(np.load(folder / f"{name}.npy")).float().squeeze() for name in ("gt", "mask_02"))
    truth, mask = truth[None, ::every, ::every].contiguous(), mask[None, ::every, ::every].contiguous() > 0
    geometry = ctrecon.preset("sparse-view").with_matrix(truth.shape[-1]).geometry
    scanned = ctrecon.simulate(truth, geometry, n_photons=1e6, polyenergetic=True, metal_mask=mask)
    outside = mask | (truth <= -500)
    real = {"uncorrected": ctrecon.reconstruct(scanned.sinogram, "fbp").hu}
    real |= {name: ctrecon.reconstruct_without_metal(scanned.sinogram, name).hu for name in ("li", "nmar")}
    compare(
        {f"{name}\n{float(rmse_hu(hu, truth, outside)[0]):.0f} HU": hu[0] for name, hu in real.items()},
        soft_tissue,
        target=truth[0],
        error_limit=400.0,
        unit="HU",
    )

# %% [markdown]
# ## What was claimed

# %%
# Beam hardening: rays beside the metal are right to a few per cent, dense rays through it fall far short.
dense = ideal > 8
assert float((hardened / ideal)[(ideal > 1) & ~through_metal].mean() - 1) < 0.05
assert float((hardened / ideal)[dense & through_metal].mean()) < 0.85
# Starvation: the error of dense rays is many times that of the others, and it spoils the image.
rough = (noisy - hardened).abs()
assert float(rough[dense].mean()) > 10 * float(rough[~through_metal].mean())
assert float(rmse_hu(plain["spectrum\nand noise"], target, excluded)) > float(
    rmse_hu(plain["spectrum,\nno noise"], target, excluded)
)
# Both methods remove most of the error, and neither touches the rays beside the metal.
assert max(table["li"][0], table["nmar"][0]) < 0.6 * table["uncorrected"][0]
assert max(table["li"][1], table["nmar"][1]) < 0.6 * table["uncorrected"][1]
assert abs(table["nmar"][2]) < 0.5 * abs(table["uncorrected"][2])
# The outline of the metal matters more than the choice between the two.
assert table["nmar, true outline"][1] < 0.8 * min(table["li"][1], table["nmar"][1])
assert abs(table["nmar"][1] / table["li"][1] - 1) < 0.1
for reduction in reduced.values():
    beside = reduction.trace == 0
    assert torch.equal(reduction.sinogram.data[beside], sinogram.data[beside])
# The trace is where the metal was, as far as the image can show it.
found = float((reduced["nmar"].trace * simulation.metal_trace).sum() / simulation.metal_trace.sum())
assert found > 0.9
# What needs no replacement, and what was learned, is better than what was interpolated.
assert all(table[name][0] < table["li"][0] for name in ("tv", *METAL_METHODS))
print("All claims hold.")
