"""Damaged files of every format: reading gives a scan or our error, never anything else, and never hangs or grows.

The files are read in a worker process with a memory limit, so that a crash or a hang of a library is a failure of the
test and not the end of it.
"""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from tests.reference.damaged_files import (
    GROWTH_LIMIT_BYTES,
    MEMORY_LIMIT_BYTES,
    Worker,
    check,
    for_damaged,
    serve,
)

resource = pytest.importorskip("resource", reason="memory limits of processes need a POSIX system")


def scan(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def npy(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, scan(2, 8, 8))


def npz(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez_compressed(stream, kspace=scan(8, 8), other=np.arange(4))


def matlab5(path: Path) -> None:
    with path.open("wb") as stream:
        scipy.io.savemat(stream, {"kspace": scan(8, 8, 2), "text": "head", "cells": {"a": 1}}, do_compression=False)


def matlab5_compressed(path: Path) -> None:
    with path.open("wb") as stream:
        scipy.io.savemat(stream, {"kspace": scan(8, 8, 2), "n": 3}, do_compression=True)


def matlab73(path: Path) -> None:
    parts = np.zeros((2, 8, 8), dtype=[("real", "<f8"), ("imag", "<f8")])
    parts["real"], parts["imag"] = scan(2, 8, 8).real, scan(2, 8, 8).imag
    with h5py.File(path, "w", userblock_size=512) as file:
        file["kspace"] = parts
        file["kspace"].attrs["MATLAB_class"] = np.bytes_("double")
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))


def hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("raw/scan", data=scan(2, 16, 16), chunks=(1, 8, 8), compression="gzip", shuffle=True)
        file["raw"].attrs["comment"] = "a text of variable length"


def bart(path: Path) -> None:
    """Both files in one, so that either is mutated; the worker takes them apart again."""
    path.write_bytes(b"# Dimensions\n8 8 1 2\n".ljust(64) + scan(8, 8, 2).tobytes(order="F"))


def ismrmrd(path: Path) -> None:
    import torch

    from mrirecon import Acquisition, KSpace
    from mrirecon.io.ismrmrd import write_ismrmrd

    data = torch.from_numpy(scan(1, 2, 8, 8))
    acquisition = Acquisition(encoded_shape=(1, 8, 8), encoded_fov_mm=(5.0, 8.0, 8.0), recon_fov_mm=(5.0, 8.0, 8.0))
    write_ismrmrd(path, KSpace(data, torch.ones(1, 1, 8, 8), acquisition), overwrite=True)


def fastmri(path: Path) -> None:
    space = "<matrixSize><x>8</x><y>8</y><z>1</z></matrixSize><fieldOfView_mm><x>8</x><y>8</y><z>5</z></fieldOfView_mm>"
    with h5py.File(path, "w") as file:
        file["kspace"] = scan(2, 2, 8, 8)
        file["ismrmrd_header"] = (
            f"<ismrmrdHeader><encoding><encodedSpace>{space}</encodedSpace><reconSpace>{space}</reconSpace>"
            f"<trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"
        )


def twix(path: Path) -> None:
    from tests.mrirecon.test_read_twix import twix_bytes

    path.write_bytes(twix_bytes())


FORMATS: dict[str, Callable[[Path], None]] = {
    function.__name__: function
    for function in (npy, npz, matlab5, matlab5_compressed, matlab73, hdf5, bart, ismrmrd, fastmri, twix)
}


def is_sound(path: str) -> bool:
    """What the worker does with a path."""
    import torch

    from mrirecon import KSpace
    from mrirecon.io import ReadOptions, read, sniff

    kspace = read(path, ReadOptions(memory_limit_bytes=MEMORY_LIMIT_BYTES))
    finite = isinstance(kspace, KSpace) and bool(torch.isfinite(torch.view_as_real(kspace.data)).all())
    return finite and bool(sniff(path))


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
        if name == "twix" and not has_twixtools():
            continue
        build(folder / name)
        contents[name] = (folder / name).read_bytes()
    return contents


def has_twixtools() -> bool:
    try:
        import twixtools  # noqa: F401
    except ImportError:
        return False
    return True


def companion(name: str) -> str | None:
    return ".hdr" if name == "bart" else None


@pytest.mark.parametrize("name", FORMATS)
def test_the_undamaged_file_is_read(name: str, worker: Worker, originals: dict[str, bytes]) -> None:
    if name not in originals:
        pytest.skip("twixtools is not installed")
    assert worker.read(originals[name], companion=companion(name))["outcome"] == "read"


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_or_refused(name: str, worker: Worker, originals: dict[str, bytes]) -> None:
    if name not in originals:
        pytest.skip("twixtools is not installed")
    for_damaged(originals[name], lambda content: worker.read(content, companion=companion(name)))


def test_every_length_of_a_truncated_file_is_refused_or_read(worker: Worker, originals: dict[str, bytes]) -> None:
    for name, content in originals.items():
        for length in range(0, len(content), max(1, len(content) // 40)):
            check(worker.read(content[:length], companion=companion(name)))


def with_empty_free_space(content: bytes) -> bytes:
    """The heap's free space states a size of zero; HDF5 2.0 would look for the next object for ever."""
    at = content.index(b"GCOL") + 16
    while int.from_bytes(content[at : at + 2], "little"):
        at += 16 + -(-int.from_bytes(content[at + 8 : at + 16], "little") // 8) * 8
    return content[: at + 8] + bytes(8) + content[at + 16 :]


def with_an_endless_text(content: bytes) -> bytes:
    """The header claims 2 GiB; HDF5 2.0 would allocate and clear them."""
    length = content.index(b"</ismrmrdHeader>") + len(b"</ismrmrdHeader>") - content.index(b"<?xml")
    heap = content.index(b"GCOL").to_bytes(8, "little")
    entry = length.to_bytes(4, "little") + heap
    assert content.count(entry) == 1
    return content.replace(entry, (2**31 - 1).to_bytes(4, "little") + heap)


def with_an_unknown_kind_of_list(content: bytes) -> bytes:
    """A list of variable length that is neither sequence nor text; HDF5 2.0 would call a null pointer."""
    entry = b"\x19\x00\x00\x00\x10\x00\x00\x00"
    assert entry in content
    return content.replace(entry, b"\x19\x06\x00\x00\x10\x00\x00\x00")


def with_an_odd_number(content: bytes) -> bytes:
    """The real part has a bias that no type of numpy has; h5py 3 would widen it over the imaginary part and beyond."""
    number = b"\x00\x00\x20\x00\x17\x08\x00\x17\x7f"
    assert content.count(number) == 2
    return content.replace(number, number[:-1] + b"\x27", 1)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("ismrmrd", with_empty_free_space),
        ("ismrmrd", with_an_endless_text),
        ("ismrmrd", with_an_unknown_kind_of_list),
        ("hdf5", with_an_odd_number),
    ],
)
def test_damage_that_hdf5_would_not_survive(
    name: str, damage: Callable[[bytes], bytes], worker: Worker, originals: dict[str, bytes]
) -> None:
    answer = worker.read(damage(originals[name]))
    assert answer["outcome"] == "refused"
    assert answer["grown_bytes"] < GROWTH_LIMIT_BYTES


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<c8', 'fortran_order': False, 'shape': (4096, 4096)}".ljust(118)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("kspace.npy", "w") as stream:
        stream.write(header)
        for _ in range(128):
            stream.write(bytes(2**20))
    answer = worker.read(path.read_bytes())
    assert answer["outcome"] == "refused"
    assert answer["grown_bytes"] < MEMORY_LIMIT_BYTES


if __name__ == "__main__":
    serve(is_sound)
