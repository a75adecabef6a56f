"""SuperNode process of one site: holds the identity's lock and runs Flower's SuperNode, patched to rejoin.

Flower's messages go to a log file in the identity's folder; our own notes go to stderr as well.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from fedpp.files import lock_folder
from fedpp.flower import patient_supernode

from .node_identity import PUBLIC_KEY, SUPERNODE_LOG

ORPHAN_SECONDS = 20.0  # for a SuperNode whose `join` was killed to end


def main() -> int:
    """Run `flower-supernode` with the arguments after `--`; return the exit status."""
    own, flower = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    parser = argparse.ArgumentParser(prog="node", description=__doc__.split("\n")[0])
    for name in ("identity", "hopeless"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--coordinator", required=True)
    options = parser.parse_args(own)
    lock = _locked(options.identity / "flwr")  # held as long as this process lives
    if lock is None:
        options.hopeless.write_text("a SuperNode that an earlier `fedpp-site join` started still runs: end it first")
        return 1
    terminal = os.fdopen(os.dup(2), "w")
    with (options.identity / SUPERNODE_LOG).open("ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    patient_supernode.RejoiningClient.notes = terminal
    public_key = options.identity / PUBLIC_KEY
    patient_supernode.run(options.identity, public_key, options.coordinator, options.hopeless, flower)
    return 1


def _locked(folder: Path) -> int | None:
    """Return the descriptor of the folder's lock, or None if another process keeps holding it."""
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + ORPHAN_SECONDS
    while (lock := lock_folder(folder)) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    return lock
