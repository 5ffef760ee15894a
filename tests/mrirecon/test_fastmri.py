from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from mrirecon.io.fastmri import looks_like_fastmri, read_fastmri
from mrirecon.io.options import ReadOptions
from mrirecon.kspace import KSpace
from operators.errors import InputError

HEADER = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<subjectInformation><patientID>anonymous</patientID></subjectInformation>
<acquisitionSystemInformation><systemVendor>SIEMENS</systemVendor>
<systemFieldStrength_T>2.8936</systemFieldStrength_T></acquisitionSystemInformation><encoding>
<encodedSpace><matrixSize><x>{0}</x><y>{1}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>{2}</x><y>{3}</y><z>4.5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{4}</x><y>{5}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>{6}</x><y>{7}</y><z>4.5</z></fieldOfView_mm></reconSpace>
<trajectory>cartesian</trajectory></encoding><sequenceParameters><TR>2750.0</TR></sequenceParameters>
</ismrmrdHeader>"""


def transformed(image: np.ndarray, *, inverse: bool = False) -> np.ndarray:
    """Explicit centred orthonormal transform of the last two axes."""
    result = image.astype(np.complex128)
    for axis in (-2, -1):
        n = image.shape[axis]
        index = np.arange(n) - n // 2
        matrix = np.exp((2j if inverse else -2j) * np.pi * np.outer(index, index) / n) / np.sqrt(n)
        result = np.moveaxis(np.tensordot(matrix, result, axes=(1, axis)), 0, axis)
    return result


def image_of(kspace: KSpace) -> np.ndarray:
    return transformed(kspace.data.numpy(), inverse=True)


def write(path: Path, kspace: np.ndarray, header: str | None = None, **datasets: Any) -> None:
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        if header is not None:
            file["ismrmrd_header"] = header
        for name, values in datasets.items():
            file[name] = values


def knee(n_readout: int, n_phase: int, kept: tuple[int, int] = (320, 320)) -> str:
    """A header as fastMRI writes it: 0.5 mm, twice over-sampled along x."""
    shape = (n_readout, n_phase, 0.5 * n_readout, 0.5 * n_phase)
    return HEADER.format(*shape, *kept, 0.25 * n_readout, 0.5 * kept[1])


def warnings_of(kspace: KSpace) -> dict[str, str]:
    return {decision.name: str(decision) for decision in kspace.decisions if decision.warning}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file1000000.h5"


@pytest.fixture
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 3, 16, 9)) + 1j * rng.normal(size=(2, 3, 16, 9))


def test_the_image_is_the_flipped_reconstruction_of_the_data_set(path: Path, image: np.ndarray) -> None:
    write(path, transformed(image).astype(np.complex64), knee(16, 9, (8, 9)), reconstruction_rss=np.zeros((2, 8, 9)))
    with h5py.File(path) as file:
        assert looks_like_fastmri(file)
    kspace = read_fastmri(path)
    published = image[:, :, 4:12]
    np.testing.assert_allclose(image_of(kspace), published[:, :, ::-1], atol=1e-5)
    assert kspace.batch_axes == ("slice",)
    assert kspace.fill_rate == 1
    acquisition = kspace.acquisition
    assert acquisition.encoded_shape == (1, 8, 9)
    assert acquisition.encoded_fov_mm == (4.5, 4.0, 4.5)
    assert acquisition.encoded_grid(n_slices=2).spacing_mm == pytest.approx((4.5, 0.5, 0.5))
    assert acquisition.patient == {"id": "anonymous"}
    assert acquisition.repetition_time_ms == 2750
    assert not acquisition.geometry_known
    names = {decision.name for decision in kspace.decisions}
    assert {"orientation", "oversampling", "fourier_sign", "geometry"} <= names
    assert set(warnings_of(kspace)) == {"geometry"}


def test_every_decision_can_be_taken_otherwise(path: Path, image: np.ndarray) -> None:
    samples = transformed(image).astype(np.complex64)
    write(path, samples, knee(16, 9, (8, 9)))
    as_stored = ReadOptions(axes=("slice", "coil", "ky", "kx"), remove_oversampling=False)
    assert np.array_equal(read_fastmri(path, as_stored).data.numpy(), samples)
    transposed = read_fastmri(path, ReadOptions(axes=("slice", "coil", "kx", "ky")))
    np.testing.assert_allclose(image_of(transposed), image[:, :, 4:12].swapaxes(-1, -2), atol=1e-5)
    assert transposed.acquisition.encoded_shape == (1, 9, 8)
    assert transposed.acquisition.encoded_fov_mm == (4.5, 4.5, 4.0)
    conjugated = ReadOptions(axes=as_stored.axes, remove_oversampling=False, fourier_sign="forward")
    assert np.array_equal(read_fastmri(path, conjugated).data.numpy(), samples.conj())
    sized = read_fastmri(path, ReadOptions(voxel_mm=(1.0, 2.0, 3.0)))
    assert sized.acquisition.encoded_grid(n_slices=2).spacing_mm == pytest.approx((3.0, 2.0, 1.0))
    with pytest.raises(InputError, match="expected slice,coil,ky,kx"):
        read_fastmri(path, ReadOptions(axes=("coil", "slice", "ky", "kx")))


def test_single_coil_files_have_one_coil(path: Path, image: np.ndarray) -> None:
    write(path, transformed(image[:, 0]), knee(16, 9, (8, 9)))
    kspace = read_fastmri(path)
    assert kspace.data.dtype == torch.complex64
    np.testing.assert_allclose(image_of(kspace), image[:, :1, 4:12][:, :, ::-1], atol=1e-5)


def test_the_mask_of_the_file_names_the_measured_lines(path: Path, image: np.ndarray) -> None:
    mask = np.array([1, 0, 0, 1, 1, 1, 0, 1, 0], dtype=bool)
    write(path, (transformed(image) * mask).astype(np.complex64), knee(16, 9, (8, 9)), mask=mask)
    kspace = read_fastmri(path)
    assert kspace.mask.shape == (1, 1, 8, 9)
    assert (kspace.mask[0, 0].numpy() == mask).all()
    assert dict(kspace.counts) == {"slices": 2, "readout samples": 16, "phase-encoding lines": 5}
    assert "mask" not in warnings_of(kspace)
    write(path, transformed(image).astype(np.complex64), knee(16, 9, (8, 9)), mask=mask)
    kspace = read_fastmri(path)
    assert "4 lines hold samples" in warnings_of(kspace)["mask"]
    assert not kspace.data.numpy()[..., ~mask].any()


def test_m4raw_lines_are_told_by_their_zeros_and_its_header_is_corrected(path: Path) -> None:
    rng = np.random.default_rng(1)
    measured = np.zeros(32)
    measured[4:28] = 1
    samples = (rng.normal(size=(2, 4, 32, 32)) + 1j * rng.normal(size=(2, 4, 32, 32))) * measured
    header = HEADER.format(24, 32, 240, 240, 32, 32, 240, 240).replace("SIEMENS", "XGY")
    write(path, samples.astype(np.complex64), header)
    kspace = read_fastmri(path)
    assert (kspace.mask[0, 0].numpy() == measured).all()
    assert kspace.fill_rate == pytest.approx(24 / 32)
    assert kspace.acquisition.encoded_fov_mm == (4.5, 240.0, 240.0)
    assert {"geometry", "header_axes"} == set(warnings_of(kspace))
    published = transformed(samples, inverse=True)
    np.testing.assert_allclose(image_of(kspace), published[:, :, ::-1], atol=1e-5)


def test_partly_measured_readouts_stay_in_place_when_the_image_is_flipped(path: Path, image: np.ndarray) -> None:
    samples = transformed(image)
    samples[:, :, :3] = 0
    write(path, samples.astype(np.complex64), knee(16, 9, (8, 9)))
    kspace = read_fastmri(path)
    assert kspace.data.shape[-2:] == (16, 9)
    measured = kspace.data.abs().sum(dim=(0, 1)) > 0
    assert torch.equal(measured, kspace.mask[0, 0] > 0)
    assert int(measured[:, 0].sum()) == 13
    assert "kept" in {decision.value for decision in kspace.decisions if decision.name == "oversampling"}


def test_a_missing_or_contradicting_header_is_a_warning(path: Path, image: np.ndarray) -> None:
    samples = transformed(image).astype(np.complex64)
    write(path, samples, reconstruction_esc=np.zeros(3))
    kspace = read_fastmri(path)
    assert kspace.acquisition.encoded_grid(n_slices=2).spacing_mm == (1.0, 1.0, 1.0)
    assert {"header", "voxel_size", "geometry"} == set(warnings_of(kspace))
    write(path, samples, knee(640, 9, (8, 9)))
    kspace = read_fastmri(path)
    assert kspace.data.shape[-2] == 16
    assert "readout_size" in warnings_of(kspace)


@pytest.mark.parametrize(
    ("samples", "datasets", "message"),
    [
        (np.zeros((2, 4, 4)), {}, r"is float64 \(2, 4, 4\); expected complex"),
        (np.ones((4, 4), np.complex64), {}, r"complex64 \(4, 4\); expected complex \(slice, coil, readout, phase\)"),
        (np.ones((0, 4, 4), np.complex64), {}, "none of them empty"),
        (np.zeros((2, 4, 4), np.complex64), {}, "All samples .* are zero"),
        (np.full((1, 2, 4, 4), np.nan, np.complex64), {}, "32 of 32 samples .* NaN .* at slice 0, coil 0, readout 0"),
        (np.ones((2, 4, 4), np.complex64), {"mask": np.ones(5)}, r"mask .* \(5,\); expected one entry .* 4 phase"),
        (np.ones((2, 4, 4), np.complex64), {"mask": np.zeros(4)}, "only lines without samples"),
    ],
)
def test_broken_arrays_are_refused(path: Path, samples: np.ndarray, datasets: dict[str, Any], message: str) -> None:
    write(path, samples, knee(4, 4), **datasets)
    with pytest.raises(InputError, match=message):
        read_fastmri(path)


def test_files_that_are_no_fastmri_are_refused(path: Path, image: np.ndarray) -> None:
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        read_fastmri(path)
    with h5py.File(path, "w") as file:
        file["something"] = 1
        assert not looks_like_fastmri(file)
    with pytest.raises(InputError, match="no k-space array 'kspace'; name it with --variable"):
        read_fastmri(path)
    write(path, transformed(image).astype(np.complex64), knee(16, 9))
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(InputError, match="is damaged"):
        read_fastmri(path)


def test_large_arrays_are_refused_before_they_are_read(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", shape=(4000, 1000, 1000), chunks=(1, 1000, 1000), dtype=np.complex64)
        file["ismrmrd_header"] = knee(1000, 1000)
    with pytest.raises(InputError, match=r"would need 29\.8 GiB, and the limit is 8 GiB"):
        read_fastmri(path)
