"""Files that are never half-written, and never readable by others by accident: mode 0600, and whole or not there.

Another mode must be asked for.
"""

import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def create_exclusively(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a new file; raise `FileExistsError` if it is there already."""
    temporary = _written(path, content, mode)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink()


def replace(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file; who reads it meanwhile sees the old one or the new one."""
    temporary = _written(path, content, mode)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise


def rewrite(path: Path, content: bytes) -> None:
    """Replace a file that is there, and keep its owner, group and mode; raise `PermissionError` if they cannot be."""
    old = path.stat()
    temporary = _written(path, content, 0o600)
    try:
        new = temporary.stat()
        if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
            os.chown(temporary, old.st_uid, old.st_gid)
        temporary.chmod(stat.S_IMODE(old.st_mode))  # after chown, which takes bits away
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder, mode 0755, that becomes `path` in the end; after an error nothing of it is left.

    What a killed process left is removed by the next one, which knows it by the lock that nobody holds any more.
    Raises `FileExistsError` if something is at `path` already.
    """
    if path.exists():
        raise FileExistsError(f"{path} is there already: choose another --out, nothing is overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.iterdir():
        if (
            re.fullmatch(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp", left.name)
            and left.is_dir()
            and not left.is_symlink()
        ):
            with _lock(left) as ours:
                if ours:
                    shutil.rmtree(left)
    with (
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as outer,
        _lock(Path(outer)) as ours,
    ):
        if not ours or not Path(outer).exists():  # between its two first lines another one took it for a leftover
            raise FileExistsError(f"another process is writing {path}: try again")
        folder = Path(outer) / path.name
        make_folder(folder, 0o755)
        yield folder
        folder.replace(path)


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock, which ends with the process, even a killed one; tell whether nobody else has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = True
        except BlockingIOError:
            ours = False
        yield ours
    finally:
        os.close(descriptor)


def make_folder(path: Path, mode: int) -> None:
    """Make a folder of this mode, whatever the process's umask; one that is there keeps its own."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return
    path.chmod(mode)


def _written(path: Path, content: bytes, mode: int) -> Path:
    """Return a new file of this content beside `path`, on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        Path(name).unlink()
        raise
    return Path(name)
