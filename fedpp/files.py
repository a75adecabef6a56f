"""Files that are never half-written, and never readable by others by accident."""

import os
from pathlib import Path


def create_exclusively(path: Path, content: bytes) -> None:
    """Write a new file of mode 0600; raise `FileExistsError` if it is there already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except BaseException:
        path.unlink()
        raise


def replace(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that readers see the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
