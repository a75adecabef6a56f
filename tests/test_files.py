"""Files are whole or absent, and for their owner alone."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fedpp import files

WRITERS = pytest.mark.parametrize("write", [files.create_exclusively, files.replace])


@WRITERS
def test_a_file_is_for_its_owner_alone(write: Callable[[Path, bytes], None], tmp_path: Path):
    """Whatever the umask, the mode is 0600; folders are made, and no temporary file remains."""
    before = os.umask(0)
    try:
        write(tmp_path / "a" / "file", b"content")
    finally:
        os.umask(before)
    (file,) = (tmp_path / "a").iterdir()
    assert file.read_bytes() == b"content"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@WRITERS
def test_a_failed_write_leaves_nothing(write: Callable[[Path, bytes], None], tmp_path: Path, monkeypatch):
    """On a full disk neither the file nor a part of it remains."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_or_replaced(tmp_path: Path):
    """`create_exclusively` refuses it and `replace` replaces it, and a symlink is not followed."""
    old, link = tmp_path / "old", tmp_path / "link"
    old.write_bytes(b"old")
    link.symlink_to(old)
    for path in (old, link):
        with pytest.raises(FileExistsError):
            files.create_exclusively(path, b"new")
        assert old.read_bytes() == b"old"
    files.replace(link, b"new")
    assert (old.read_bytes(), link.read_bytes(), link.is_symlink()) == (b"old", b"new", False)
    assert sorted(tmp_path.iterdir()) == [link, old]


def test_a_content_may_come_in_parts(tmp_path: Path):
    """The file is all parts, one after another, of the given mode."""
    files.replace(tmp_path / "file", b"a", b"", b"bc", b"d", mode=0o640, synced=False)
    assert (tmp_path / "file").read_bytes() == b"abcd"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_new_folder_is_whole_or_absent(tmp_path: Path):
    """Until the end nothing is at its path, an error leaves nothing, and an existing folder is kept."""
    path = tmp_path / "new"
    with pytest.raises(ZeroDivisionError), files.new_folder(path) as folder:
        (folder / "file").write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with files.new_folder(path) as folder:
        (folder / "file").write_text("whole")
        assert not path.exists()
    assert [file.read_text() for file in path.iterdir()] == ["whole"]
    with pytest.raises(FileExistsError, match="nothing is overwritten"), files.new_folder(path):
        raise AssertionError("it must not begin")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0, 0o002, 0o077])
def test_a_folder_has_its_mode_whatever_the_umask(umask: int, tmp_path: Path):
    """The mode does not depend on who runs the command; an existing folder keeps its own."""
    before = os.umask(umask)
    try:
        with files.new_folder(tmp_path / "new") as folder:
            files.make_folder(folder / "private", 0o700)
            files.make_folder(folder / "private", 0o755)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "new/private")]
    assert modes == [0o755, 0o700]


def test_folders_of_killed_processes_are_removed(tmp_path: Path):
    """The next process removes those that no process locks, and no folder of another name."""
    left, other, named = (tmp_path / name for name in (".new.abcdefgh.tmp", ".newer.abcdefgh.tmp", ".new.notes.tmp"))
    for folder in (left, other, named):
        (folder / "new").mkdir(parents=True)
        (folder / "new" / "secret").write_text("left")
    with files.new_folder(tmp_path / "new") as first:
        (first / "key").write_text("mine")
        with pytest.raises(ZeroDivisionError), files.new_folder(tmp_path / "new"):
            raise ZeroDivisionError
        assert (first / "key").read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == sorted([other, named, tmp_path / "new"])
