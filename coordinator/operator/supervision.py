"""Servers that are started again when one of them ends: all of them, since each stands on the others."""

import sys
import time
from collections.abc import Callable
from math import inf

from fedpp.errors import FederationError
from fedpp.processes import ProcessGroup

QUICK_SECONDS = 5.0  # servers that end sooner after they answered have not come up
MAX_FAILURES = 5  # to come up, in a row


def supervise(group: ProcessGroup, start: Callable[[], None], ready: Callable[[], None]) -> None:
    """Start servers, and anew whenever one ends, until the group is told to stop; call `ready` once they answered.

    None of the old ones, and nothing that they started, lives when the new ones start: what is left of a run that
    failed must not write beside its successor. `start` returns when the servers answer. Raises `FederationError`
    or `OSError` where they do not the first time, or do not come up `MAX_FAILURES` times in a row.
    """
    failures, answered = 0, False
    while not group.stopped.is_set():
        since = inf
        try:
            start()
            if group.stopped.is_set():
                return
            if answered:
                _note("the servers answer again")
            else:
                ready()
            answered, since = True, time.monotonic()
            _serve(group)
        except (FederationError, OSError) as error:  # OSError: a full machine starts no process
            failures = 1 if time.monotonic() - since > QUICK_SECONDS else failures + 1
            if not answered:
                raise
            if failures > MAX_FAILURES:
                raise FederationError(f"{error}, {failures} times in a row: see the messages above") from None
            _note(f"{error}: all servers are started again")
            group.end()
            group.stopped.wait(failures - 1.0)


def _serve(group: ProcessGroup) -> None:
    """Return when the group is told to stop; raise `FederationError` when a command ends."""
    if not group.wait():
        raise FederationError(f"{' and '.join(group.ended())} ended by itself")


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)
