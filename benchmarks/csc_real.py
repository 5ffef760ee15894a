"""Real scans at 0.055 T by every method: whether the image says what the data say, is blurred, and repeats.

Run ``MRCTRECON_DATA=folder python benchmarks/csc_real.py --weights NAME_OR_FILE … --picture FILE``. The scans of four
patients, and that of a head with two repetitions in a cage, whose narrow bands are removed from each repetition alone,
are read from ``mri/lowfield_0p055T`` in that folder, by default ``../shared/data``. Without them, and with ``--quick``,
it is the built-in phantom with two repetitions. All scans have one coil and complete k-space. A number behind the name
of a method is its strength, otherwise that is the default.

``chi2`` is the mean of |A x − y|² / (2 σ²) over the measured complex samples, each with two degrees of freedom of which
none is subtracted. σ is the noise level per real component that the pipeline found in the scan by itself, one for all
slices, and handed to the method. It is 0 for an image that fits the noise, too, and more than that of the true image
where structure is lost. ``centre`` is the box of half of k-space along each axis, ``rest`` what is outside. ``blur`` is
that of Crété-Roffet, of the magnitude inside the head.

``cross`` is that of the image of one repetition and the data of the other, in the mean of both directions. The noise of
the two is independent, so its expectation is χ² of the true image + ‖x − truth‖² / (2 σ² n), to which noise that was
fitted adds as much as structure that was lost. ``mse in head`` is the second term alone, inside the head, by that of
the adjoint: 0 for the true image, 1 for the adjoint. ``repeatability`` is the root mean square, in the head, of the
difference of two repetitions by that of their mean, of complex images; losing structure does not show in it.

Of the ``true image``, ``chi2`` and ``cross`` are the power of the noise alone by 2 σ²: 1 if σ is right everywhere, and
then 2 is the ``cross`` of the adjoint. But σ is the lowest level that many blocks of the background agree on, and the
noise of this scanner changes along the readout. So the rows of that name measure it: half of the power of the
difference of two repetitions, or the power beside the head where there is but one.
"""

import argparse
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from harness import report_quality
from matplotlib.figure import Figure

from mrirecon.acquisition import Acquisition
from mrirecon.evaluation import foreground
from mrirecon.interference import remove_narrow_band_interference
from mrirecon.io import read
from mrirecon.kspace import KSpace
from mrirecon.learned import load_method
from mrirecon.phantom import brain_phantom
from mrirecon.prepare import noise_std
from mrirecon.reconstruction import METHODS, Method, operator_for, reconstruct
from operators.fourier import Fourier
from operators.functionals import blur

CONVENTIONAL: Mapping[str, str | Method] = {
    "adjoint": "adjoint",
    "tv": "tv",
    "tv 0.8": replace(METHODS["tv"], regularisation=0.8),
    "wavelet": "wavelet",
    "wavelet 1.4": replace(METHODS["wavelet"], regularisation=1.4),
}
CONTRASTS = ("fse", "flair", "gre")
BESIDE_THE_HEAD = 0.11  # of the columns, at the left and at the right edge
HEAD_MM = (216.0, 188.0)  # what the picture shows of the field of view
PANEL_PIXELS = (173, 150)
GROUND, TEXT = "#101214", "#e8e8e8"


@dataclass(frozen=True, slots=True)
class Scan:
    """Repetitions of one scan, ``(slice, coil, ky, kx)`` each."""

    name: str
    repetitions: tuple[KSpace, ...]

    @property
    def zero_filled(self) -> torch.Tensor:
        """Aᴴy, complex ``(repetition, slice, y, x)``."""
        return torch.stack([operator_for(kspace).adjoint(kspace.data) for kspace in self.repetitions])

    @property
    def noise_std(self) -> list[float]:
        """What the pipeline finds in each repetition by itself."""
        return [float(noise_std(kspace)[0]) for kspace in self.repetitions]

    @property
    def head(self) -> torch.Tensor:
        """Where the mean of the repetitions, smoothed, is above a tenth of its maximum; bool ``(slice, y, x)``."""
        image = self.zero_filled.mean(dim=0)
        window = torch.ones(())
        for n in image.shape[-2:]:
            along = (torch.arange(n) - n // 2) / (n / 4)
            window = window[..., None] * torch.cos(math.pi / 2 * along.clamp(-1, 1)).square()
        fourier = Fourier(tuple(image.shape[-2:]))
        smooth = fourier.adjoint(window * fourier(image)).abs()
        # The foreground begins at 5 % of full scale, and noise may reach that.
        return torch.stack([foreground(slice_ / (2 * slice_.amax())) for slice_ in smooth])


@dataclass(frozen=True, slots=True)
class Panel:
    """A slice of an image, ``(y, x)``, with what is written on it."""

    magnitude: torch.Tensor
    fov_mm: tuple[float, float]
    words: str


def real_scans(folder: Path) -> Iterator[Scan]:
    """The patients, and the head in a cage."""
    for patient in sorted(folder.glob("patient*")):
        for contrast in CONTRASTS:
            yield Scan(
                f"{patient.name.replace('patient', 'patient ')} {contrast.upper()}",
                (read(patient / f"{contrast}_kspace.mat"),),
            )
    caged = read(folder / "emi" / "flair_with_cage_kspace.mat")
    repetitions = (
        replace(caged, data=data, mask=mask, batch_axes=("slice",))
        for data, mask in zip(caged.data, caged.mask, strict=True)
    )
    yield Scan("caged FLAIR", tuple(remove_narrow_band_interference(kspace) for kspace in repetitions))


def phantom(n: int) -> Scan:
    """Two repetitions of the built-in head; the noise is a tenth of its root mean square."""
    generator = torch.Generator().manual_seed(0)
    data = Fourier((n, n))(brain_phantom((n, n)))[None, None]
    noise = 0.1 * data.abs().square().mean().sqrt()
    mask, acquisition = torch.ones(1, 1, n, n), Acquisition((1, n, n), (5.0, 216.0, 216.0), (5.0, 216.0, 216.0))
    draws = torch.randn(2, *data.shape, dtype=data.dtype, generator=generator)
    return Scan("phantom", tuple(KSpace(data + noise * draw, mask, acquisition) for draw in draws))


def rows_of(scan: Scan, methods: Mapping[str, str | Method]) -> tuple[list[dict[str, Any]], dict[str, Panel]]:
    """A row of the table for the true image and each method, and a row of the picture."""
    head = scan.head
    shown = int(head.flatten(1).sum(dim=1).argmax())
    fov_mm = scan.repetitions[0].acquisition.encoded_fov_mm[1:]
    rows, panels = [row(scan, "true image", true_image(scan))], {}
    for name, method in methods.items():
        results = [reconstruct(kspace, method) for kspace in scan.repetitions]
        images = torch.stack([result.image for result in results])
        numbers = scores(scan, images, head)
        rows.append(row(scan, name, numbers))
        crossed = f", cross {numbers['cross']:.2f}" if "cross" in numbers else ""
        panels[name] = Panel(images[0, shown].abs(), fov_mm, f"χ² {numbers['chi2']:.2f}{crossed}")
    return rows, panels


def row(scan: Scan, method: str, numbers: Mapping[str, float]) -> dict[str, Any]:
    """A line of the table, four significant digits; what a scan does not say stays empty."""
    bands = ("", " centre", " rest")
    names = (*(f"chi2{band}" for band in bands), "blur", *(f"cross{band}" for band in bands))
    columns = (*names, "mse in head", "repeatability")
    rounded = {name: float(f"{numbers[name]:.4g}") if name in numbers else "" for name in columns}
    return {"scan": scan.name, "method": method} | rounded


def true_image(scan: Scan) -> dict[str, float]:
    """What the true image would have, by the noise itself."""
    noise = scan.noise_std
    if len(scan.repetitions) == 1:
        image = scan.zero_filled
        n_columns = round(BESIDE_THE_HEAD * image.shape[-1])
        beside = torch.cat((image[..., :n_columns], image[..., -n_columns:]), dim=-1)
        level = float(beside.abs().square().mean()) / (2 * noise[0] ** 2)
        return {f"chi2{band}": level for band in ("", " centre", " rest")}
    # The difference of two repetitions has twice the power of the noise of one.
    halves = [chi2(first, last, std) for first, last, std in _pairs(scan, scan.zero_filled)]
    of_noise = {band: sum(half[band] for half in halves) / 2 / len(halves) for band in halves[0]}
    numbers = {f"{what}{band}": value for what in ("chi2", "cross") for band, value in of_noise.items()}
    return numbers | {"mse in head": 0.0, "repeatability": 0.0}


def scores(scan: Scan, images: torch.Tensor, head: torch.Tensor) -> dict[str, float]:
    """What is said about the images ``(repetition, slice, y, x)`` of a method."""
    parts = [
        chi2(image, kspace, std) for image, kspace, std in zip(images, scan.repetitions, scan.noise_std, strict=True)
    ]
    numbers = {f"chi2{band}": sum(part[band] for part in parts) / len(parts) for band in parts[0]}
    numbers["blur"] = float(blur(images.abs() * head).mean())
    if len(images) == 1:
        return numbers
    crossed = [chi2(*pair) for pair in _pairs(scan, images)]
    numbers |= {f"cross{band}": sum(part[band] for part in crossed) / len(crossed) for band in crossed[0]}
    measured = scan.zero_filled
    of_noise = power(measured[0] - measured[1], head) / 2
    of_difference = (power(images[0] - measured[1], head) + power(images[1] - measured[0], head)) / 2
    numbers["mse in head"] = of_difference / of_noise - 1
    repeated = power(images[0] - images[1], head) / power(images.mean(dim=0), head)
    return numbers | {"repeatability": math.sqrt(repeated)}


def chi2(image: torch.Tensor, kspace: KSpace, noise_std: float) -> dict[str, float]:
    """Mean of |A x − y|² / (2 σ²) over the measured samples: of all k-space, its central quarter, and the rest."""
    residual = (operator_for(kspace)(image) - kspace.mask * kspace.data).abs().square() / (2 * noise_std**2)
    central = torch.zeros(kspace.k_shape)
    central[tuple(slice(n // 2 - n // 4, n // 2 + n // 4) for n in kspace.k_shape)] = 1
    bands = {"": torch.ones_like(central), " centre": central, " rest": 1 - central}
    weights = {band: (kspace.mask * chosen).expand_as(residual).double() for band, chosen in bands.items()}
    return {band: float((residual * weight).sum() / weight.sum()) for band, weight in weights.items()}


def power(image: torch.Tensor, mask: torch.Tensor) -> float:
    """Mean of |x|² inside a mask."""
    return float(image[mask].abs().square().double().mean())


def _pairs(scan: Scan, images: torch.Tensor) -> list[tuple[torch.Tensor, KSpace, float]]:
    """The image of each of two repetitions beside the data and the noise level of the other."""
    return list(zip(images, scan.repetitions[::-1], scan.noise_std[::-1], strict=True))


def means_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean of the scans with one repetition, by method."""
    single = [row for row in rows if row["cross"] == ""]
    means = []
    for method in dict.fromkeys(row["method"] for row in single):
        group = [row for row in single if row["method"] == method]
        numbers = {
            name: float(f"{sum(row[name] for row in group) / len(group):.4g}") if value != "" else ""
            for name, value in group[0].items()
            if name not in ("scan", "method")
        }
        means.append({"scan": f"mean of {len(group)}", "method": method} | numbers)
    return means


def write_picture(path: Path, pictures: Mapping[str, dict[str, Panel]]) -> None:
    """A row for each scan, from black at zero to the 99th percentile of its first column; a column for each method."""
    names = list(next(iter(pictures.values())))
    height, width = PANEL_PIXELS
    left, top, gap, dpi = 22, 24, 3, 100
    size = (left + len(names) * (width + gap), top + len(pictures) * (height + gap))
    figure = Figure(figsize=(size[0] / dpi, size[1] / dpi), dpi=dpi, facecolor=GROUND)
    for i, (scan, panels) in enumerate(pictures.items()):
        above = top + i * (height + gap)
        brightest = float(panels[names[0]].magnitude.quantile(0.99))
        figure.text(left / 2 / size[0], 1 - (above + height / 2) / size[1], scan, rotation=90, **_style(9))
        for j, name in enumerate(names):
            before = left + j * (width + gap)
            box = (before / size[0], 1 - (above + height) / size[1], width / size[0], height / size[1])
            axes = figure.add_axes(box)
            fov_y, fov_x = panels[name].fov_mm
            axes.imshow(
                panels[name].magnitude,
                cmap="gray",
                vmin=0,
                vmax=brightest,
                extent=(-fov_x / 2, fov_x / 2, fov_y / 2, -fov_y / 2),
                interpolation="bicubic",
            )
            axes.set(xlim=(-HEAD_MM[1] / 2, HEAD_MM[1] / 2), ylim=(HEAD_MM[0] / 2, -HEAD_MM[0] / 2), aspect="auto")
            axes.set_axis_off()
            axes.text(0.03, 0.03, panels[name].words, transform=axes.transAxes, fontsize=7, color=TEXT)
            if i == 0:
                figure.text((before + width / 2) / size[0], 1 - top / 2 / size[1], name, **_style(10))
    figure.savefig(path, facecolor=GROUND, pil_kwargs={"quality": 80, "optimize": True})


def _style(size: int) -> dict[str, Any]:
    return {"fontsize": size, "color": TEXT, "ha": "center", "va": "center"}


def arguments() -> argparse.Namespace:
    """Options of this benchmark; those of every one are among them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="*", default=[], metavar="NAME_OR_FILE", help="trained weights to compare")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write all images side by side, as a .jpg or .png")
    parser.add_argument("--quick", action="store_true", help="the phantom alone, small")
    parser.add_argument("--threads", type=int, default=1, help="number of threads")
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    return parsed


def main() -> None:
    """Reconstruct everything that there are data for."""
    options = arguments()
    methods = dict(CONVENTIONAL)
    for weights in options.weights:
        methods[Path(weights).name.removesuffix(".pt")] = load_method(weights)()
    if len(methods) < len(CONVENTIONAL) + len(options.weights):
        raise SystemExit(f"Two of these methods have the same name: {', '.join((*CONVENTIONAL, *options.weights))}.")
    default = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("MRCTRECON_DATA", default)) / "mri" / "lowfield_0p055T"
    if not options.quick and not folder.is_dir():
        print("The real scans are not here: set MRCTRECON_DATA to the folder that holds mri/lowfield_0p055T.")
    rows, pictures = [], {}
    for scan in [phantom(64)] if options.quick or not folder.is_dir() else real_scans(folder):
        of_scan, pictures[scan.name] = rows_of(scan, methods)
        rows += of_scan
    if options.picture is not None:
        write_picture(options.picture, pictures)
    report_quality("csc_real", rows + means_of(rows))


if __name__ == "__main__":
    main()
