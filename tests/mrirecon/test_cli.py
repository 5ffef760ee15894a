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

from mrirecon import cli, io
from operators.errors import InputError
from tests.reference.command_line import Run, files_in, runner


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process."""
    return runner(cli.main, capsys)


@pytest.fixture
def scan(tmp_path: Path, run: Run) -> Path:
    """A small simulated raw file."""
    path = tmp_path / "scan.h5"
    assert run("simulate", "phantom", "-o", path, "--matrix", 32, "--slices", 2, "--noise", 0.05).status == 0
    return path


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from mrirecon.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'scipy', 'h5py', 'nibabel', 'pydicom', 'matplotlib', 'astra'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "reconstruct" in finished.stdout


def test_a_scan_becomes_a_nifti_with_a_preview(scan: Path, tmp_path: Path, run: Run) -> None:
    done = run("reconstruct", scan, "-o", tmp_path / "image.nii.gz", "--preview", "--method", "wavelet")
    assert done.status == 0
    image = nibabel.load(tmp_path / "image.nii.gz")
    assert image.shape == (32, 32, 2)
    np.testing.assert_allclose(image.header.get_zooms(), (7.5, 7.5, 5.0))
    assert (tmp_path / "image.png").read_bytes().startswith(b"\x89PNG")
    assert "method wavelet" in done.err
    assert files_in(tmp_path) == {"scan.h5", "image.nii.gz", "image.png"}


def test_dicom_and_npy_are_told_by_the_name_or_the_option(scan: Path, tmp_path: Path, run: Run) -> None:
    assert run("reconstruct", scan, "-o", tmp_path / "series", "--method", "adjoint").status == 0
    slices = sorted((tmp_path / "series").iterdir())
    assert len(slices) == 2
    assert pydicom.dcmread(slices[0]).Modality == "MR"
    assert run("reconstruct", scan, "-o", tmp_path / "image.npy", "--method", "adjoint").status == 0
    assert np.load(tmp_path / "image.npy").shape == (2, 32, 32)
    assert run("reconstruct", scan, "-o", tmp_path / "x", "--format", "npy", "--method", "adjoint").status == 0
    assert np.iscomplexobj(np.load(tmp_path / "x"))


def test_one_bad_file_of_several_does_not_stop_the_others(scan: Path, tmp_path: Path, run: Run) -> None:
    other, bad = tmp_path / "other.h5", tmp_path / "bad.h5"
    other.write_bytes(scan.read_bytes())
    bad.write_bytes(b"nothing that is a scan")
    done = run("reconstruct", scan, bad, other, "-o", tmp_path / "images", "--method", "adjoint")
    assert done.status == 2
    assert "bad.h5" in done.err
    assert "1 of 3 files failed" in done.err
    assert files_in(tmp_path / "images") == {"scan.nii.gz", "other.nii.gz"}


def test_a_second_call_goes_on_where_the_first_stopped(scan: Path, tmp_path: Path, run: Run) -> None:
    other = tmp_path / "other.h5"
    other.write_bytes(scan.read_bytes())
    words = ("-o", tmp_path / "images", "--method", "adjoint")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "scan.nii.gz").write_bytes(b"done before")
    assert run("reconstruct", scan, other, *words, "--skip-existing").status == 0
    assert (tmp_path / "images" / "scan.nii.gz").read_bytes() == b"done before"
    assert nibabel.load(tmp_path / "images" / "other.nii.gz").shape == (32, 32, 2)


def test_files_of_the_same_name_keep_their_folders_name(scan: Path, tmp_path: Path, run: Run) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "scan.h5").write_bytes(scan.read_bytes())
    files = (tmp_path / "one" / "scan.h5", tmp_path / "two" / "scan.h5")
    assert run("reconstruct", *files, "-o", tmp_path / "images", "--method", "adjoint").status == 0
    assert files_in(tmp_path / "images") == {"one_scan.nii.gz", "two_scan.nii.gz"}


def test_inspect_tells_people_and_programs_the_same(scan: Path, run: Run) -> None:
    table, described = run("inspect", scan), run("inspect", scan, "--json")
    assert table.status == described.status == 0
    facts = json.loads(described.out)
    assert facts["encoding"]["shape"] == [2, 1, 32, 32]
    assert facts["encoding"]["fill_rate"] == 1.0
    assert facts["geometry"]["known"] is True
    assert facts["counts"]
    assert "ISMRMRD" in table.out
    assert "fill_rate" in table.out


def test_interference_is_removed_on_request(tmp_path: Path, run: Run) -> None:
    scan = tmp_path / "larger.h5"
    assert run("simulate", "phantom", "-o", scan, "--matrix", 64, "--slices", 1).status == 0
    words = ("reconstruct", scan, "--method", "adjoint", "-o")
    assert "interference:" not in run(*words, tmp_path / "plain.nii.gz").err
    assert "interference:" in run(*words, tmp_path / "clean.nii.gz", "--remove-interference").err


@pytest.mark.realdata
def test_inspect_tells_how_well_repetitions_agree(data_folder: Path, run: Run) -> None:
    folder = data_folder / "mri" / "lowfield_0p055T" / "emi"
    agreement = {}
    for cage in ("with", "without"):
        described = run("inspect", folder / f"flair_{cage}_cage_kspace.mat", "--json")
        agreement[cage] = json.loads(described.out)["noise"]["repeatability"]
    assert agreement["with"] < 0.2 < agreement["without"]


def test_an_output_that_exists_is_kept_unless_told_otherwise(scan: Path, tmp_path: Path, run: Run) -> None:
    target = tmp_path / "image.nii.gz"
    target.write_bytes(b"precious")
    refused = run("reconstruct", scan, "-o", target, "--method", "adjoint")
    assert (refused.status, target.read_bytes()) == (2, b"precious")
    assert "exists already; pass --overwrite" in refused.err
    assert run("reconstruct", scan, "-o", target, "--method", "adjoint", "--overwrite").status == 0
    assert nibabel.load(target).shape == (32, 32, 2)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("inspect", "nowhere.h5"), "nowhere.h5 does not exist"),
        (("reconstruct", "SCAN", "-o", "image.tiff"), "end it in .nii.gz or .npy, or pass --format"),
        (("reconstruct", "SCAN", "-o", "image.nii.gz", "--method", "magic"), "choose one of adjoint, cg-sense"),
        (("reconstruct", "SCAN", "-o", "image.nii.gz", "--voxel-mm", "1,2"), "expected dx,dy,dz in mm"),
        (("reconstruct", "SCAN", "-o", "image.nii.gz", "--voxel-mm", "1,2,-3"), "every length must be positive"),
        (("reconstruct", "SCAN", "-o", "image.nii.gz", "--device", "abacus"), "cannot be used here"),
        (("reconstruct", "SCAN", "-o", "missing/image.nii.gz"), "does not exist; create it first"),
        (("reconstruct", "SCAN"), "output"),
        (("reconstruct", "SCAN", "-o", "image.nii.gz", "--lambda", "-1"), "--lambda"),
        (("simulate", "phantom", "-o", "new.h5", "--box", "9"), "expected 2 whole numbers"),
        (("simulate", "phantom", "-o", "new.h5", "--contrast", "sepia"), "sepia"),
        (("simulate", "nowhere.nii", "-o", "new.h5"), "nowhere.nii"),
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


def test_debug_shows_the_error_itself(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        cli.main(["inspect", str(tmp_path / "nowhere.h5"), "--debug"])


def test_identifiers_are_written_only_on_request(
    scan: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = io.read(scan)
    known = replace(plain, acquisition=replace(plain.acquisition, patient={"name": "Doe^Jane", "id": "4711"}))
    monkeypatch.setattr(io, "read", lambda path, options: known)
    for name, words in (("without", ()), ("with", ("--identifiers",))):
        done = run("reconstruct", scan, "-o", tmp_path / name, "--method", "adjoint", *words)
        assert done.status == 0
        assert "Doe" not in done.out + done.err
    assert str(pydicom.dcmread(tmp_path / "without" / "slice_0001.dcm").PatientName) == ""
    assert str(pydicom.dcmread(tmp_path / "with" / "slice_0001.dcm").PatientName) == "Doe^Jane"
    assert run("reconstruct", scan, "-o", tmp_path / "image.nii.gz", "--method", "adjoint").status == 0
    assert b"Doe" not in (tmp_path / "image.nii.gz").read_bytes()


def test_the_demo_shows_every_method_and_says_what_to_do_next(tmp_path: Path, run: Run) -> None:
    done = run("demo", "-o", tmp_path / "demo")
    assert done.status == 0
    assert {
        "scan.h5",
        "comparison.png",
        "adjoint.nii.gz",
        "cg-sense.nii.gz",
        "tv.nii.gz",
        "wavelet.nii.gz",
        "csc.nii.gz",
    } == files_in(tmp_path / "demo")
    assert "mrirecon reconstruct YOUR_FILE" in done.out
    scores = {line.split("│")[1].strip(): float(line.split("│")[2]) for line in done.out.splitlines() if "│" in line}
    assert scores["csc"] > scores["tv"] + 0.5 > scores["adjoint"] + 1
    assert run("demo", "-o", tmp_path / "demo").status == 2
