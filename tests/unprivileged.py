"""What a user without rights meets: tests may run as root, to whom no permission matters."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def unprivileged(*, locked: int) -> Iterator[Path]:
    """Give a folder of that mode, and be a user who owns nothing if this is root."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others as a whole
        Path(name).chmod(0o755)
        folder = Path(name) / "locked"
        folder.mkdir()
        folder.chmod(locked)
        user, effective, saved = os.getresuid()
        if effective == 0:
            os.setresuid(NOBODY, NOBODY, 0)
        try:
            yield folder
        finally:
            if effective == 0:
                os.setresuid(user, effective, saved)
            folder.chmod(0o700)
