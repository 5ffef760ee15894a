"""Error of radial and spiral scans of a real 8-coil brain by acceleration, with every method of the pipeline.

Run ``MRCTRECON_DATA=folder python benchmarks/non_cartesian.py``. The brain is read from
``mri/multicoil_brain/cartesian_kspace_8ch.npy`` in that folder, by default ``../shared/data``. An eighth of its k-space
was measured, so there is no fully sampled image: the reference object is its wavelet reconstruction, seen through its
ESPIRiT maps. Samples along the trajectories are explicit sums over the pixels. Without the file, and with ``--quick``,
the object is the built-in phantom.
"""

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from harness import arguments, report_quality

from mrirecon import reconstruction
from mrirecon.acquisition import Acquisition
from mrirecon.io import read
from mrirecon.kspace import KSpace
from mrirecon.phantom import brain_phantom, coil_sensitivities
from mrirecon.trajectory import radial, spiral
from operators.decision import Decision
from operators.errors import InputError
from operators.fourier import Fourier
from operators.functionals import nrmse, psnr_slice

READOUT_OVERSAMPLING = 2
FULL_SPIRAL_INTERLEAVES = 16
SAMPLES_AT_A_TIME = 4096
NOISE_SAMPLES = 1024
NEXT_TO_NOTHING = 0.01  # of the noise of the scan: what a scan without noise says that it has


@dataclass(frozen=True, slots=True)
class Reference:
    """What is scanned: the image ``(y, x)``, the maps ``(coil, y, x)``, the noise of a Cartesian sample, 1 = inside."""

    image: torch.Tensor
    csm: torch.Tensor
    noise_std: float
    support: torch.Tensor

    @property
    def coil_images(self) -> torch.Tensor:
        """Complex128 ``(coil, y, x)``."""
        return self.csm.to(torch.complex128) * self.image


def brain(file: Path) -> Reference:
    """The wavelet reconstruction of the Cartesian scan, in coils that were whitened."""
    result = reconstruction.reconstruct(read(file), "wavelet")
    if result.csm is None:
        raise InputError(f"{file.name} holds one coil; this benchmark needs several.")
    csm = result.csm.reshape(-1, *result.image.shape[-2:])
    return Reference(result.image[0], csm, result.noise_std, (csm != 0).any(dim=0).float())


def phantom(n: int, n_coils: int) -> Reference:
    """The built-in head without noise of its own; that of the scan is 3 % of its mean intensity."""
    image, csm = brain_phantom((n, n)), coil_sensitivities(n_coils, (n, n))
    strength = torch.linalg.vector_norm(csm, dim=0)
    image, csm = image * strength, csm / strength
    inside = image.abs() > 0.01 * image.abs().max()
    return Reference(image, csm, 0.03 * float(image[inside].abs().mean()), inside.float())


def trajectories(n: int, acceleration: int) -> Iterator[tuple[str, torch.Tensor, int]]:
    """Name, positions and readout length of scans with so many times fewer readouts than n pixels need.

    The radius of a dense spiral grows with the square of the length: its centre is sampled more closely than its edge.
    """
    n_samples = READOUT_OVERSAMPLING * n
    yield "radial", radial(round(math.pi / 2 * n / acceleration), n_samples), n_samples
    n_turns = n / 2 / FULL_SPIRAL_INTERLEAVES
    n_samples = round(READOUT_OVERSAMPLING * n * (math.pi / 2 * n_turns + 0.5))
    for name, density in (("spiral", 1.0), ("dense spiral", 2.0)):
        arms = spiral(FULL_SPIRAL_INTERLEAVES // acceleration, n_samples, n_turns, density=density)
        yield name, arms, n_samples


def transformed(coil_images: torch.Tensor, trajectory: torch.Tensor) -> torch.Tensor:
    """The centred orthonormal transform ``(coil, sample)`` by its definition, in double precision."""
    n_coils, n_y, n_x = coil_images.shape
    columns = coil_images.permute(2, 0, 1).reshape(n_x, -1)
    parts = []
    for k in trajectory.double().split(SAMPLES_AT_A_TIME):
        along_y, along_x = (
            torch.exp(-1j * torch.outer(k[:, d], torch.arange(n, dtype=torch.float64) - n // 2))
            for d, n in enumerate((n_y, n_x))
        )
        lines = (along_x @ columns).unflatten(1, (n_coils, n_y))
        parts.append((along_y.unsqueeze(1) * lines).sum(dim=-1))
    return torch.cat(parts).T / math.sqrt(n_y * n_x)


def scans(n: int, accelerations: tuple[int, ...]) -> Iterator[tuple[str, torch.Tensor | None, int | None]]:
    """Name, positions and readout length of everything that is compared; the complete Cartesian scan is the anchor."""
    yield "Cartesian R=1", None, None
    for acceleration in accelerations:
        for name, trajectory, readout_length in trajectories(n, acceleration):
            yield f"{name} R={acceleration}", trajectory, readout_length


def scan(reference: Reference, trajectory: torch.Tensor | None, readout_length: int | None) -> KSpace:
    """A scan without noise, on the grid or along a trajectory."""
    n_y, n_x = reference.image.shape
    images = reference.coil_images
    data = Fourier(tuple(images.shape))(images) if trajectory is None else transformed(images, trajectory)
    size = (1, n_y, n_x)
    fov_mm = (5.0, float(n_y), float(n_x))
    return KSpace(
        data=data[None].to(torch.complex64),
        mask=torch.ones((1,) * (data.ndim + 1)),
        acquisition=Acquisition(size, fov_mm, fov_mm),
        trajectory=trajectory,
        readout_length=readout_length,
    )


def with_noise(kspace: KSpace, noise_std: float) -> KSpace:
    """The scan with complex noise of a standard deviation per real component."""
    return replace(kspace, data=kspace.data + noise_std * randn(*kspace.data.shape))


def with_noise_scan(kspace: KSpace, noise_std: float) -> KSpace:
    """The scan as it is, with a noise scan that says that all coils have this noise.

    Without one the edge of a scan without noise would be taken for noise, and coils with less there would count more.
    """
    white = torch.linalg.qr(randn(NOISE_SAMPLES, kspace.n_coils))[0].T * math.sqrt(2 * NOISE_SAMPLES)
    return replace(kspace, noise=noise_std * white)


def randn(*shape: int) -> torch.Tensor:
    """Complex noise with unit variance of its real and imaginary parts."""
    return math.sqrt(2) * torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))


def within_disc(reference: Reference) -> torch.Tensor:
    """Magnitude of the reference without the corners of k-space, which neither radial nor spiral scans measure."""
    n_y, n_x = reference.image.shape
    fourier = Fourier((n_y, n_x)).to(torch.complex128)
    k_y, k_x = (2 * (torch.arange(n) - n // 2) / n for n in (n_y, n_x))
    disc = k_y[:, None].square() + k_x.square() <= 1
    coil_images = fourier.adjoint(disc * fourier(reference.coil_images))
    return (reference.csm.conj() * coil_images).sum(dim=0).abs().float()


def rows_of(reference: Reference, case: str, noise: str, kspace: KSpace, noise_std: float) -> list[dict[str, Any]]:
    """Every method, with maps from the scan and with those of the reference."""
    target, disc = reference.image.abs(), within_disc(reference)
    given = reference.csm[None], Decision("coil_maps", "given", "Those of the reference.")
    rows = []
    for method in reconstruction.METHODS:
        start = time.process_time()
        result = reconstruction.reconstruct(kspace, method)
        seconds = time.process_time() - start
        with mock.patch.object(reconstruction, "estimate_csm", return_value=given):
            informed = reconstruction.reconstruct(kspace, method).image[0].abs()
        estimate = result.image[0].abs()
        inside = reference.support
        scale = (inside * estimate * target).sum() / (inside * target.square()).sum()
        numbers = {
            "fill": kspace.fill_rate,
            "nrmse": nrmse(estimate, target, inside),
            "nrmse of disc": nrmse(estimate, disc, inside),
            "nrmse, given maps": nrmse(informed, target, inside),
            "psnr": psnr_slice(estimate, target, inside),
            "scale": scale,
            "noise level found": result.noise_std / noise_std,
            "seconds": seconds,
        }
        rounded = {name: float(f"{float(value):.3g}") for name, value in numbers.items()}
        rows.append({"case": case, "noise": noise, "method": method} | rounded)
    return rows


def main() -> None:
    """Measure every trajectory at every acceleration, with the noise of the Cartesian scan and without."""
    options = arguments(__doc__ or "")
    default = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("MRCTRECON_DATA", default))
    file = folder / "mri" / "multicoil_brain" / "cartesian_kspace_8ch.npy"
    if options.quick:
        reference = phantom(32, 4)
    elif file.is_file():
        reference = brain(file)
    else:
        print(f"There is no {file.name}: set MRCTRECON_DATA to the folder that holds mri/multicoil_brain.")
        reference = phantom(192, 8)
    rows = []
    for case, trajectory, readout_length in scans(max(reference.image.shape), (4,) if options.quick else (1, 2, 4, 8)):
        kspace = scan(reference, trajectory, readout_length)
        # A readout with twice the samples in the same time has half the dwell time.
        noise_std = reference.noise_std * (1 if trajectory is None else math.sqrt(READOUT_OVERSAMPLING))
        rows += rows_of(reference, case, "as measured", with_noise(kspace, noise_std), noise_std)
        if not options.quick:
            rows += rows_of(reference, case, "none", with_noise_scan(kspace, NEXT_TO_NOTHING * noise_std), noise_std)
    report_quality("non_cartesian", rows)


if __name__ == "__main__":
    main()
