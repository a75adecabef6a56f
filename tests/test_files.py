"""Files are whole or not there, and for their owner alone."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fedpp import files

WRITERS = pytest.mark.parametrize("write", [files.create_exclusively, files.replace])


@WRITERS
def test_a_file_is_its_owners_alone(write: Callable[[Path, bytes], None], tmp_path: Path):
    """Whatever the umask, the mode is 0600; folders are made, and nothing else is left."""
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
    """If the disk does not take it, neither the file nor a part of it is there."""

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
