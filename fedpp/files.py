"""Files that are never half-written, and never readable by others by accident: mode 0600, and whole or not there.

Another mode must be asked for.
"""

import os
import tempfile
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
