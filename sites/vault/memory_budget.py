"""Memory budget shared by the calls of one method: a call waits for free memory, and fails after a while."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fedpp.errors import VaultError


class MemoryBudget:
    """A number of bytes that calls share; a call that needs more than the budget waits for all of it."""

    def __init__(self, size: int, wait_seconds: float) -> None:
        self._size, self._free, self._wait = size, size, wait_seconds
        self._changed = threading.Condition()

    @contextmanager
    def taking(self, size: int) -> Iterator[None]:
        """Hold so many bytes; raise `VaultError` if they do not become free in time."""
        held = min(size, self._size)
        with self._changed:
            if not self._changed.wait_for(lambda: self._free >= held, self._wait):
                raise VaultError("the vault is busy: other calls hold its memory; try again later")
            self._free -= held
        try:
            yield
        finally:
            with self._changed:
                self._free += held
                self._changed.notify_all()
