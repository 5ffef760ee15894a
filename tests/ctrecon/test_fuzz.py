"""Damaged files of every format: reading gives a sinogram or our error, and never hangs or grows."""

import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from operators.beam_geometry import FanBeam
from tests.reference.damaged_files import (
    GROWTH_LIMIT_BYTES,
    MEMORY_LIMIT_BYTES,
    Worker,
    check,
    for_damaged,
    serve,
)

resource = pytest.importorskip("resource", reason="memory limits of processes need a POSIX system")

GEOMETRY = FanBeam(tuple(view * 2 * math.pi / 18 for view in range(18)), 16, 2.0, 2.0, 0.0, 100.0, 50.0)


def scan(*leading: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(0, 3, size=(*leading, 18, 16)).astype(np.float32)


def npy(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, scan(2))


def npz(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez_compressed(stream, sinogram=scan(), other=np.arange(4))


def raw(path: Path) -> None:
    path.write_bytes(scan().tobytes())


def hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("raw/scan", data=scan(2), chunks=(1, 9, 8), compression="gzip", shuffle=True)


def own(path: Path) -> None:
    import torch

    from ctrecon.io.sinogram_file import write_sinogram
    from ctrecon.sinogram import Sinogram

    data = torch.from_numpy(scan(1))
    found = Sinogram(data, GEOMETRY, (8, 8), weights=data, patient=(("name", "A"),))
    write_sinogram(path, found, identifiers=True, overwrite=True)


def dxchange(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["exchange/data"] = (1000 * np.exp(-scan(1))).swapaxes(0, 1)
        file["exchange/data_white"] = np.full((2, 1, 16), 1000, dtype=np.uint16)
        file["exchange/data_dark"] = np.zeros((2, 1, 16), dtype=np.uint16)
        file["exchange/theta"] = np.arange(18) * 10.0
        file["exchange/theta"].attrs["units"] = "degrees"


def htc(path: Path, *, compressed: bool = False) -> None:
    parameters = {
        "distanceSourceOrigin": 100.0,
        "distanceSourceDetector": 150.0,
        "distanceUnit": "mm",
        "angles": np.arange(18) * 20.0,
        "pixelSizePost": 2.0,
    }
    content = {"type": "2d", "sinogram": scan().astype(np.float64), "parameters": parameters}
    with path.open("wb") as stream:
        scipy.io.savemat(stream, {"CtDataLimited": content}, do_compression=compressed)


def htc_compressed(path: Path) -> None:
    htc(path, compressed=True)


FORMATS: dict[str, Callable[[Path], None]] = {
    function.__name__: function for function in (npy, npz, raw, hdf5, own, dxchange, htc, htc_compressed)
}
EXAMPLES = {"own": 150, "htc": 150}


def is_sound(path: str) -> bool:
    """What the worker does with a path."""
    import torch

    from ctrecon.io import ReadOptions, read, sniff
    from ctrecon.io.geometry_files import read_setup
    from ctrecon.sinogram import Sinogram

    if path.endswith("geometry"):
        return read_setup(Path(path)).geometry.n_views > 0
    options = ReadOptions(memory_limit_bytes=MEMORY_LIMIT_BYTES)
    with_geometry = ReadOptions(memory_limit_bytes=MEMORY_LIMIT_BYTES, geometry=GEOMETRY)
    plain = sniff(path, with_geometry) in ("numpy", "numpy archive", "raw float32", "HDF5 array", "MATLAB 5")
    found = read(path, with_geometry if plain else options)
    weights = found.data if found.weights is None else found.weights
    return isinstance(found, Sinogram) and bool(torch.isfinite(found.data).all() and torch.isfinite(weights).all())


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("fuzz"), __file__)
    yield worker
    worker.kill()


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    contents = {}
    for name, build in FORMATS.items():
        build(folder / name)
        contents[name] = (folder / name).read_bytes()
    return contents


@pytest.mark.parametrize("name", FORMATS)
def test_the_undamaged_file_is_read(name: str, worker: Worker, originals: dict[str, bytes]) -> None:
    assert worker.read(originals[name])["outcome"] == "read"


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_or_refused(name: str, worker: Worker, originals: dict[str, bytes]) -> None:
    for_damaged(originals[name], worker.read, max_examples=EXAMPLES.get(name, 80))


def test_every_length_of_a_truncated_file_is_refused_or_read(worker: Worker, originals: dict[str, bytes]) -> None:
    for content in originals.values():
        for length in range(0, len(content), max(1, len(content) // 15)):
            check(worker.read(content[:length]))


def test_damaged_geometries_are_read_or_refused(worker: Worker) -> None:
    def read(content: bytes) -> dict[str, object]:
        path = worker.folder / "geometry"
        path.write_bytes(content)
        return worker.ask(path)

    assert read(GEOMETRY.to_json().encode())["outcome"] == "read"
    for_damaged(GEOMETRY.to_json().encode(), read, max_examples=150)


def test_damaged_projections_of_a_folder_are_read_or_refused(worker: Worker, tmp_path: Path) -> None:
    from tests.ctrecon.test_read_ct_pd import turn, write

    folder = write(tmp_path / "scan", turn(4))
    path = sorted(folder.iterdir())[1]

    def read(content: bytes) -> dict[str, object]:
        path.write_bytes(content)
        return worker.ask(folder)

    content = path.read_bytes()
    assert read(content)["outcome"] == "read"
    for_damaged(content, read, max_examples=80)


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (4096, 8192)}".ljust(118)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("sinogram.npy", "w") as stream:
        stream.write(header)
        for _ in range(128):
            stream.write(bytes(2**20))
    answer = worker.read(path.read_bytes())
    assert answer["outcome"] == "refused"
    assert answer["grown_bytes"] < MEMORY_LIMIT_BYTES


def test_a_geometry_of_a_huge_detector_is_refused_before_anything_grows(worker: Worker) -> None:
    path = worker.folder / "geometry"
    for bins in (10**7, 10**12, 10**40):
        path.write_text(GEOMETRY.to_json().replace('"n_detectors": 16', f'"n_detectors": {bins}'))
        answer = worker.ask(path)
        assert answer["outcome"] == "refused"
        assert answer["grown_bytes"] < GROWTH_LIMIT_BYTES


if __name__ == "__main__":
    serve(is_sound)
