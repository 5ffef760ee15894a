import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from operators.errors import InputError
from operators.io.files import check_writable, replacing


def _full_disk(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def _write_file(path: Path, then: Callable[[], object], *, overwrite: bool = False) -> None:
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_text("new")
        then()


def _write_folder(path: Path, names: list[str], *, overwrite: bool = False) -> None:
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.mkdir()
        for name in names:
            (temporary / name).write_text(name)


def test_a_file_appears_complete_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "out.nii.gz"
    with replacing(path) as temporary:
        assert temporary.suffixes == [".nii", ".gz"]
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert _names(tmp_path) == ["out.nii.gz"]


def test_an_existing_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_text("old")
    with pytest.raises(InputError, match=r"exists already; pass --overwrite"), replacing(path):
        pytest.fail("the work was begun")
    assert path.read_text() == "old"
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert _names(tmp_path) == ["out.png"]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    with pytest.raises(InputError, match="appeared while"):
        _write_file(path, lambda: path.write_text("somebody else's"))
    assert path.read_text() == "somebody else's"
    assert _names(tmp_path) == ["out.png"]


def test_an_error_in_the_block_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        _write_file(tmp_path / "out.png", lambda: 1 // 0)
    assert _names(tmp_path) == []


def _wrapped_full_disk() -> None:
    try:
        _full_disk()
    except OSError as error:
        raise OSError("a library's pages\nand pages") from error


@pytest.mark.parametrize("failure", [_full_disk, _wrapped_full_disk])
def test_a_full_disk_leaves_nothing_and_keeps_the_old_file(tmp_path: Path, failure: Callable[[], None]) -> None:
    path = tmp_path / "out.png"
    path.write_text("old")
    with pytest.raises(InputError, match=r"could not be written: No space left on device; nothing was left behind"):
        _write_file(path, failure, overwrite=True)
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["out.png"]


@pytest.mark.parametrize("existing", [False, True])
def test_a_failing_rename_leaves_nothing_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    path = tmp_path / "out.png"
    if existing:
        path.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _full_disk)
        patch.setattr(os, "rename", _full_disk)
        with pytest.raises(InputError, match="No space left"), replacing(path, overwrite=True) as temporary:
            temporary.write_text("new")
    assert _names(tmp_path) == (["out.png"] if existing else [])
    assert not existing or path.read_text() == "old"


def test_a_folder_replaces_a_folder_completely(tmp_path: Path) -> None:
    path = tmp_path / "series"
    _write_folder(path, ["a", "b", "c"])
    _write_folder(path, ["a", "d"], overwrite=True)
    assert _names(path) == ["a", "d"]
    assert _names(tmp_path) == ["series"]


@pytest.mark.parametrize("n_good", [0, 1])
def test_the_old_folder_returns_when_a_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_good: int
) -> None:
    path = tmp_path / "series"
    _write_folder(path, ["a", "b"])
    rename, calls = os.rename, []

    def failing(source: Path, destination: Path) -> None:
        calls.append(destination)
        if len(calls) == n_good + 1:
            _full_disk()
        rename(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing)
        with pytest.raises(InputError, match="No space left"):
            _write_folder(path, ["c"], overwrite=True)
    assert _names(path) == ["a", "b"]
    assert _names(tmp_path) == ["series"]


def test_a_file_never_replaces_a_folder_nor_a_folder_a_file(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    _write_folder(folder, ["precious"])
    file.write_text("precious")
    with pytest.raises(InputError, match="is a folder, but a file"), replacing(folder, overwrite=True) as temporary:
        temporary.write_text("new")
    with pytest.raises(InputError, match="is a file, but a folder"):
        _write_folder(file, ["new"], overwrite=True)
    assert _names(folder) == ["precious"]
    assert file.read_text() == "precious"
    assert _names(tmp_path) == ["file", "folder"]


def test_leftovers_of_a_killed_run_do_not_disturb(tmp_path: Path) -> None:
    path = tmp_path / "series"
    (tmp_path / f".partial-{os.getpid()}-series").mkdir()
    _write_folder(path, ["a"])
    assert _names(tmp_path) == ["series"]


def test_a_folder_that_is_missing_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing" / "out.png", tmp_path / "file" / "out.png"):
        with pytest.raises(InputError, match="does not exist; create it first"):
            check_writable(path)


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="is not writable"):
        check_writable(tmp_path / "out.png")


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a\0b"])
def test_a_path_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="does not name an output"):
        check_writable(name, overwrite=True)


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="File name too long"), replacing(tmp_path / ("a" * 300)) as temporary:
        temporary.write_text("new")
    assert _names(tmp_path) == []


def test_a_link_is_replaced_and_what_it_points_to_is_kept(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("old")
    link = tmp_path / "out.png"
    link.symlink_to("elsewhere")
    with pytest.raises(InputError, match="exists already"):
        check_writable(link)
    with replacing(link, overwrite=True) as temporary:
        temporary.write_text("new")
    assert link.read_text() == "new"
    assert (tmp_path / "elsewhere").read_text() == "old"
