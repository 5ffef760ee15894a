"""What removing interference achieves: on a real head scanned without a cage, and on an array with known interference.

Run ``MRCTRECON_DATA=folder python benchmarks/interference.py``. The real scans (0.055 T, FLAIR, two repetitions, once
without and once with a cage) are read from ``mri/lowfield_0p055T/emi`` in that folder, by default ``../shared/data``;
without them only the simulated array is measured.
"""

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import arguments, report_quality

from mrirecon.acquisition import Acquisition
from mrirecon.interference import (
    remove_interference_with_references,
    remove_narrow_band_interference,
    repeatability,
)
from mrirecon.io import read
from mrirecon.kspace import KSpace
from mrirecon.phantom import brain_phantom
from operators.fourier import Fourier

BESIDE_THE_HEAD = 14  # columns at the left and right edge of the image
NOISE = 0.05  # of the coil, by the root mean square of its signal
REFERENCE_NOISE = 0.01  # by the strength of a source


def rows_of_real_scans(folder: Path) -> list[dict[str, Any]]:
    """Background and repeatability of the head without a cage, before and after, and of the head with one."""
    bare, caged = (read(folder / f"flair_{word}_cage_kspace.mat") for word in ("without", "with"))
    scans = {
        "no cage": bare,
        "no cage, removed": remove_narrow_band_interference(bare),
        "cage": caged,
        "cage, removed": remove_narrow_band_interference(caged),
    }
    rows = []
    for name, scan in scans.items():
        rows.append(row("0.055 T head", "background", name, background(scan)))
        rows.append(row("0.055 T head", "repeatability", name, repeatability(scan)))
    return rows


def background(kspace: KSpace) -> float:
    """Standard deviation of one real component beside the head, in units of the file."""
    image = Fourier(kspace.image_shape).adjoint(kspace.data)
    beside = torch.cat((image[..., :BESIDE_THE_HEAD], image[..., -BESIDE_THE_HEAD:]), dim=-1)
    return rms(beside) / math.sqrt(2)


def rows_of_an_array(shape: tuple[int, int], counts: tuple[int, ...], *, moving: bool) -> list[dict[str, Any]]:
    """Interference in one coil with a head, predicted from 1, 2, … coils that hear the same sources and no head."""
    generator = torch.Generator().manual_seed(0)
    head = Fourier(shape)(brain_phantom(shape).to(torch.complex128))[None, None]
    measured = head + NOISE * rms(head) * randn(generator, *head.shape)
    sources = sources_of(shape, generator)
    half_a_turn = torch.exp(1j * math.pi * torch.linspace(0, 1, shape[0], dtype=torch.float64))[:, None]
    interference = rms(head) * heard(sources * half_a_turn if moving else sources, 1, generator)
    corrupted, clean = scan_of(measured + interference), scan_of(measured)
    case = "moving array" if moving else "steady array"
    rows = [row(case, "interference/signal", "as measured", energy(interference) / energy(head))]

    def add(candidate: str, remove: Callable[[KSpace], KSpace]) -> None:
        left, spared = remove(corrupted).data - measured, remove(clean).data - measured
        rows.append(row(case, "left/interference", candidate, energy(left) / energy(interference)))
        rows.append(row(case, "lost/signal", candidate, energy(spared) / energy(head)))

    add("narrow band", remove_narrow_band_interference)
    for n in counts:
        references = heard(sources, n, generator) + REFERENCE_NOISE * randn(generator, 1, n, *shape)
        add(f"{n} references", partial(remove_interference_with_references, references=references))
    return rows


def sources_of(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Two broadband sources, and two tones whose phase and amplitude change from line to line."""
    time = torch.arange(shape[1], dtype=torch.float64)
    tones = [torch.exp(2j * math.pi * cycles * time) * randn(generator, shape[0], 1) for cycles in (0.17, -0.081)]
    return torch.stack([*randn(generator, 2, *shape), *tones])


def heard(sources: torch.Tensor, n_coils: int, generator: torch.Generator) -> torch.Tensor:
    """What coils hear of the sources, each through its own response of three samples, ``(1, coil, ky, kx)``."""
    responses = 0.3 * randn(generator, n_coils, len(sources), 3)
    padded = torch.nn.functional.pad(sources, (1, 1))
    shifted = torch.stack([padded[..., tap : tap + sources.shape[-1]] for tap in range(3)])
    return torch.einsum("cst,tsyx->cyx", responses, shifted)[None]


def scan_of(data: torch.Tensor) -> KSpace:
    """One slice of one coil."""
    shape = (1, *data.shape[-2:])
    mask = torch.ones(1, 1, *data.shape[-2:])
    return KSpace(data, mask, Acquisition(shape, (5.0, 200.0, 200.0), (5.0, 200.0, 200.0)))


def row(case: str, what: str, candidate: str, value: float) -> dict[str, Any]:
    """One line of the table, four significant digits."""
    return {"case": case, "what": what, "candidate": candidate, "value": float(f"{value:.4g}")}


def randn(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Complex noise of unit variance."""
    return torch.randn(shape, dtype=torch.complex128, generator=generator)


def energy(x: torch.Tensor) -> float:
    """Sum of squares."""
    return float(x.abs().square().sum())


def rms(x: torch.Tensor) -> float:
    """Root mean square."""
    return float(x.abs().square().mean().sqrt())


def main() -> None:
    """Measure everything that there are data for."""
    options = arguments(__doc__ or "")
    default = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("MRCTRECON_DATA", default)) / "mri" / "lowfield_0p055T" / "emi"
    rows = []
    if folder.is_dir():
        rows += rows_of_real_scans(folder)
    else:
        print("The real scans are not here: set MRCTRECON_DATA to the folder that holds mri/lowfield_0p055T/emi.")
    shape, counts = ((64, 64), (4,)) if options.quick else ((128, 128), (1, 2, 4, 8))
    for moving in (False, True):
        rows += rows_of_an_array(shape, counts, moving=moving)
    report_quality("interference", rows)


if __name__ == "__main__":
    main()
