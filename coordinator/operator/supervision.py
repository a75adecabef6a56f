"""Supervision of the servers: when one of them ends, all are restarted, since each depends on the others."""

import time
from collections.abc import Callable
from math import inf

from fedpp.cli import note
from fedpp.errors import FederationError
from fedpp.processes import ProcessGroup

QUICK_SECONDS = 5.0  # servers that end sooner after they answered count as failed to start
MAX_FAILURES = 5  # to start, in a row


def supervise(group: ProcessGroup, start: Callable[[], None], ready: Callable[[], None]) -> None:
    """Start servers, and restart them whenever one ends, until the group is stopped; call `ready` once they answer.

    All old servers, and all that they started, have ended before new ones start: the rest of a failed run must not
    write beside its successor. `start` returns when the servers answer. Raises `FederationError` or `OSError` if the
    first start fails, or `MAX_FAILURES` restarts in a row.
    """
    failures, answered = 0, False
    while not group.stopped.is_set():
        since = inf
        try:
            start()
            if group.stopped.is_set():
                return
            if answered:
                note("the servers answer again")
            else:
                ready()
            answered, since = True, time.monotonic()
            _serve(group)
        except (FederationError, OSError) as error:  # OSError: an overloaded machine starts no process
            failures = 1 if time.monotonic() - since > QUICK_SECONDS else failures + 1
            if not answered:
                raise
            if failures > MAX_FAILURES:
                raise FederationError(f"{error}, {failures} times in a row") from None
            note(f"{error}: all servers are restarted")
            group.end()
            group.stopped.wait(failures - 1.0)


def _serve(group: ProcessGroup) -> None:
    """Return when the group is stopped; raise `FederationError` when a command ends."""
    if not group.wait():
        raise FederationError(f"{' and '.join(group.ended())} ended by itself")
