"""`python -m coordinator`: run the SuperLink, enrol sites, and run federations, from a checkout of fedpp.

Exit status 0: done; 1: failed, with one line on stderr; 2: wrong usage. Results go to stdout, notes and logs
to stderr. SuperLink is driven by Flower's own command line, through the connection that `up` writes.
"""

import sys
from collections.abc import Sequence

from fedpp.cli import Command, Program

PROGRAM = Program(
    name="python -m coordinator",
    package="coordinator.operator",
    description="The coordinator of a federation: its SuperLink, its sites and its runs.",
    commands={
        "up": Command("coordinator_commands:up", "Run the SuperLink until SIGTERM or Ctrl-C"),
        "enrol": Command("coordinator_commands:enrol", "Admit the node with this public key, under this name"),
        "bundle": Command("coordinator_commands:bundle", "Print the SHA-256 of the app bundle that `run` submits"),
        "run": Command("coordinator_commands:run", "Run one federation, and print the final test metrics"),
        "status": Command(
            "coordinator_commands:status", "Show the progress of a run, its sites and the connected nodes"
        ),
        "stop": Command("coordinator_commands:stop", "Stop the current run; `run --resume` continues it"),
        "report": Command("coordinator_commands:report", "Write report.json and report.html of a finished federation"),
    },
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    return PROGRAM.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
