"""Vault that is flooded: a process of its own, with as many descriptors as a process has by default.

    python -m simulations.attacks.scene.flooded_vault FOLDER bounded|unbounded

`unbounded` takes away what limits connections, for the control.
"""

import resource
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from threading import Event

from sites.vault import peer_check, vault_server

from .laboratory import Laboratory

DESCRIPTORS = 1024
IDLE_SECONDS = 2.0  # in place of 20: so that the check takes seconds
NEVER = 10**6


def main(folder: Path, *, bounded: bool) -> None:
    """Serve until SIGTERM; print the address first."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    if not bounded:
        peer_check.MAX_CONNECTIONS = NEVER
        setattr(vault_server, "OPTIONS", vault_server.OPTIONS[:2])  # noqa: B010  of another length
    stopped = Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    with ExitStack() as stack:
        idle = IDLE_SECONDS if bounded else NEVER / 1000
        print(Laboratory(folder, is_short=True, stack=stack).hospital("East", idle_seconds=idle).address, flush=True)
        stopped.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), bounded=sys.argv[2] == "bounded")
