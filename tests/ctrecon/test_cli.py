"""The command line as a person meets it: files in, files out, one sentence and status 2 when something is wrong."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch

from ctrecon import cli, io
from ctrecon.io.sinogram_file import write_sinogram
from operators.io.nifti import write_nifti
from tests.reference.command_line import Run, files_in, runner


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process."""
    return runner(cli.main, capsys)


@pytest.fixture
def scan(tmp_path: Path, run: Run) -> Path:
    """A small simulated sinogram."""
    path = tmp_path / "scan.h5"
    words = ("simulate", "phantom", "-o", path, "--preset", "sparse-view-60", "--matrix", 48, "--photons", 1e5)
    assert run(*words).status == 0
    return path


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from ctrecon.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'scipy', 'h5py', 'nibabel', 'pydicom', 'matplotlib', 'astra'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "mar" in finished.stdout


def test_a_sinogram_becomes_hounsfield_units_with_a_preview(scan: Path, tmp_path: Path, run: Run) -> None:
    done = run("reconstruct", scan, "-o", tmp_path / "image.nii.gz", "--method", "tv", "--preview")
    assert done.status == 0
    image = nibabel.load(tmp_path / "image.nii.gz")
    assert image.shape == (48, 48, 1)
    values = np.asarray(image.dataobj)
    assert -1100 < values[0, 0, 0] < -900
    assert -150 < np.median(values[18:30, 18:30]) < 200
    assert (tmp_path / "image.png").read_bytes().startswith(b"\x89PNG")
    assert "coverage: full" in done.err


def test_dicom_says_hounsfield_units_and_npy_holds_them(scan: Path, tmp_path: Path, run: Run) -> None:
    assert run("reconstruct", scan, "-o", tmp_path / "series", "--method", "fbp", "--wide-range").status == 0
    (slice_file,) = (tmp_path / "series").iterdir()
    read = pydicom.dcmread(slice_file)
    assert (read.Modality, read.RescaleType, read.RescaleSlope) == ("CT", "HU", 4)
    assert run("reconstruct", scan, "-o", tmp_path / "image.npy", "--method", "fbp").status == 0
    assert np.load(tmp_path / "image.npy").shape == (1, 48, 48)


def test_what_dicom_cannot_hold_is_counted(scan: Path, tmp_path: Path, run: Run) -> None:
    sinogram = io.read(scan)
    write_sinogram(tmp_path / "bright.h5", replace(sinogram, data=4 * sinogram.data, weights=None))
    done = run("reconstruct", tmp_path / "bright.h5", "-o", tmp_path / "series", "--method", "fbp")
    assert done.status == 0
    assert "were clipped; --wide-range keeps" in done.err


def test_metal_is_reduced_with_a_segmented_or_a_given_mask(tmp_path: Path, run: Run) -> None:
    words = (
        "--preset",
        "sparse-view-120",
        "--matrix",
        64,
        "--polyenergetic",
        "--metal",
        "spine",
        "--section",
        "abdomen",
    )
    scan = tmp_path / "metal.h5"
    assert run("simulate", "phantom", "-o", scan, *words).status == 0
    for method in ("li", "nmar"):
        done = run("mar", scan, "-o", tmp_path / f"{method}.nii.gz", "--method", method)
        assert done.status == 0, done.err
    sinogram = io.read(scan)
    mask = torch.zeros(1, 64, 64)
    mask[0, 30:34, 30:34] = 1
    write_nifti(tmp_path / "mask.nii", mask, sinogram.grid(), part="real", geometry_known=True)
    assert run("mar", scan, "-o", tmp_path / "given.nii.gz", "--mask", tmp_path / "mask.nii").status == 0
    automatic, given = (np.asarray(nibabel.load(tmp_path / f"{n}.nii.gz").dataobj) for n in ("nmar", "given"))
    assert not np.allclose(automatic, given)


def test_one_bad_file_of_several_does_not_stop_the_others(scan: Path, tmp_path: Path, run: Run) -> None:
    bad = tmp_path / "bad.h5"
    bad.write_bytes(b"nothing that is a scan")
    done = run("reconstruct", bad, scan, "-o", tmp_path / "images", "--method", "fbp")
    assert done.status == 2
    assert "1 of 2 files failed" in done.err
    assert files_in(tmp_path / "images") == {"scan.nii.gz"}
    again = run("reconstruct", scan, bad, "-o", tmp_path / "images", "--method", "fbp", "--skip-existing")
    assert "scan.nii.gz exists already; skipped" in again.err


def test_inspect_tells_people_and_programs_the_same(scan: Path, run: Run) -> None:
    table, described = run("inspect", scan), run("inspect", scan, "--json")
    assert table.status == described.status == 0
    facts = json.loads(described.out)
    assert facts["encoding"]["shape"] == [1, 60, 800]
    assert facts["geometry"]["beam"] == "FanBeam"
    assert facts["geometry"]["coverage"].startswith("full circle")
    assert "FanBeam" in table.out


def test_an_image_in_hounsfield_units_is_simulated(scan: Path, tmp_path: Path, run: Run) -> None:
    assert run("reconstruct", scan, "-o", tmp_path / "image.nii.gz", "--method", "sirt").status == 0
    words = ("--preset", "sparse-view-60", "--matrix", 32)
    assert run("simulate", tmp_path / "image.nii.gz", "-o", tmp_path / "again.h5", *words).status == 0
    assert io.read(tmp_path / "again.h5").image_shape == (32, 32)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("inspect", "nowhere.h5"), "nowhere.h5"),
        (("reconstruct", "SCAN", "-o", "image.tiff"), "end it in .nii.gz or .npy, or pass --format"),
        (("reconstruct", "SCAN", "-o", "image.nii.gz", "--method", "magic"), "choose one of fbp, sirt"),
        (("reconstruct", "SCAN", "-o", "image.nii.gz", "--image-shape", "64"), "expected 2 whole numbers"),
        (("reconstruct", "SCAN", "-o", "image.nii.gz", "--mu-water", "0.2"), "per cm"),
        (("reconstruct", "SCAN", "-o", "image.nii.gz", "--preview", "--window", "rainbow"), "rainbow"),
        (("reconstruct", "SCAN", "-o", "missing/image.nii.gz"), "does not exist; create it first"),
        (("simulate", "phantom", "-o", "new.h5", "--preset", "unheard-of"), "unheard-of"),
        (("simulate", "phantom", "-o", "new.h5", "--section", "tail"), "tail"),
        (("simulate", "nowhere.nii", "-o", "new.h5"), "nowhere.nii"),
        (("mar", "SCAN", "-o", "image.nii.gz", "--mask", "nowhere.nii"), "nowhere.nii"),
        (("teleport",), "teleport"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    words: tuple[str, ...], sentence: str, scan: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run(*(scan if word == "SCAN" else word for word in words))
    assert outcome.status == 2
    assert sentence in outcome.err
    assert "Traceback" not in outcome.err
    assert files_in(tmp_path) == {"scan.h5"}


def test_identifiers_are_written_only_on_request(scan: Path, tmp_path: Path, run: Run) -> None:
    known = replace(io.read(scan), patient=(("name", "Doe^Jane"), ("id", "4711")))
    write_sinogram(tmp_path / "known.h5", known, identifiers=True)
    for name, words in (("without", ()), ("with", ("--identifiers",))):
        done = run("reconstruct", tmp_path / "known.h5", "-o", tmp_path / name, "--method", "fbp", *words)
        assert done.status == 0
        assert "Doe" not in done.out + done.err
    assert str(pydicom.dcmread(tmp_path / "without" / "slice_0001.dcm").PatientName) == ""
    assert str(pydicom.dcmread(tmp_path / "with" / "slice_0001.dcm").PatientName) == "Doe^Jane"


def test_the_demo_shows_every_method_and_says_what_to_do_next(tmp_path: Path, run: Run) -> None:
    done = run("demo", "-o", tmp_path / "demo")
    assert done.status == 0
    assert {"sparse.h5", "metal.h5", "sparse.png", "metal.png", "tv.nii.gz", "metal_nmar.nii.gz"} <= files_in(
        tmp_path / "demo"
    )
    assert "ctrecon reconstruct YOUR_FILE" in done.out
    errors = {row.split("│")[1].strip(): float(row.split("│")[2]) for row in done.out.splitlines() if "│" in row}
    assert errors["tv"] < 0.5 * errors["fbp"]
    assert errors["nmar"] < 0.6 * errors["uncorrected"]
