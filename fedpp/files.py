"""Files that are never half-written, and never readable by others by accident: mode 0600, and whole or not there.

Another mode must be asked for.
"""

import errno
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
    temporary = _written(path, content, mode=mode)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink()


def replace(path: Path, *content: bytes | memoryview, mode: int = 0o600, synced: bool = True) -> None:
    """Write a file, whose content may come in parts; who reads it meanwhile sees the old one or the new one.

    If it is not `synced`, nobody waits for the disk: a machine that loses power may leave a damaged one.
    """
    temporary = _written(path, *content, mode=mode, synced=synced)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise


def read_file(path: Path, most: int) -> bytes:
    """Return the first `most` bytes of a file; raise `OSError` for a folder, a pipe or a device, and wait for none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(descriptor)


def rewrite(path: Path, content: bytes) -> None:
    """Replace a file that is there, and keep its owner, group and mode; raise `PermissionError` if they cannot be."""
    old = path.stat()
    temporary = _written(path, content, mode=0o600)
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
    temporary = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")
    for left in path.parent.iterdir():
        if temporary.fullmatch(left.name) and left.is_dir() and (lock := lock_folder(left)) is not None:
            shutil.rmtree(left)
            os.close(lock)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as outer:
        lock = lock_folder(Path(outer))
        if lock is None:  # another one took it for a leftover in between
            raise FileExistsError(f"another process is writing {path}: try again")
        try:
            folder = Path(outer) / path.name
            make_folder(folder, 0o755)
            yield folder
            folder.replace(path)
        finally:
            os.close(lock)


def lock_folder(folder: Path) -> int | None:
    """Return a descriptor that locks a folder until it is closed, or the process, even a killed one, ends.

    Nothing is returned where another process holds the lock, or took the folder away in between.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
    except BlockingIOError:
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def make_folder(path: Path, mode: int) -> None:
    """Make a folder of this mode, whatever the process's umask; one that is there keeps its own."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return
    path.chmod(mode)


def _written(path: Path, *content: bytes | memoryview, mode: int, synced: bool = True) -> Path:
    """Return a new file of this content beside `path`, on the disk if it is to be `synced`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.writelines(content)
            file.flush()
            if synced:
                os.fsync(file.fileno())
    except BaseException:
        Path(name).unlink()
        raise
    return Path(name)
