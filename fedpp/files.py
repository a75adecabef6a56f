"""Atomic files and folders: whole or absent after any failure, and of mode 0600 unless another is given."""

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
    """Write a new file; raise `FileExistsError` if it exists."""
    temporary = _written(path, content, mode=mode)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink()


def replace(path: Path, *content: bytes | memoryview, mode: int = 0o600, synced: bool = True) -> None:
    """Write a file from one or more parts; a concurrent reader sees the old content or the new.

    Without `synced` the data may not be on the disk yet: a power failure may leave a damaged file.
    """
    temporary = _written(path, *content, mode=mode, synced=synced)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise


def read_file(path: Path, most: int) -> bytes:
    """Return at most `most` bytes of a file; raise `OSError` for a folder, a pipe or a device, without blocking."""
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
    """Replace an existing file and keep its owner, group and mode; raise `PermissionError` if they cannot be kept."""
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
    """Yield a temporary folder, mode 0755, that is renamed to `path` at the end, or removed after an error.

    Folders that killed processes left are recognised by their free lock, and removed.
    Raises `FileExistsError` if `path` exists.
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
    """Return a descriptor that locks a folder until it is closed or the process ends, killed or not.

    Return None where another process holds the lock, or removed the folder in between.
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
    """Make a folder of this mode, whatever the umask; an existing folder keeps its mode."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return
    path.chmod(mode)


def _written(path: Path, *content: bytes | memoryview, mode: int, synced: bool = True) -> Path:
    """Return a new temporary file of this content beside `path`, flushed to the disk if `synced`."""
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


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk: a new file in it is then found after a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
