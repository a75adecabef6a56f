"""What a round of a deployment costs: its seconds beside an empty Flower app's, and the coordinator's memory."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from .coordinator_memory import coordinator_memory
from .round_seconds import round_seconds

MEGABYTES, SENDERS = (1.0, 100.0), (4, 16, 64)
ROUNDS, TURNS, MEMORY_ROUNDS = 5, 2, 2
SENT_MEGABYTES = 50.0


def rounds(
    megabytes: Sequence[float] | None = None,
    rounds_a_run: int | None = None,
    turns: int | None = None,
    senders: Sequence[int] | None = None,
    sent: float | None = None,
) -> dict[str, Any]:
    """Time rounds with updates of these sizes, and weigh the coordinator with so many senders of `sent` megabytes."""
    rows = round_seconds(megabytes or MEGABYTES, rounds_a_run or ROUNDS, turns or TURNS)
    rows += coordinator_memory(senders or SENDERS, sent or SENT_MEGABYTES, MEMORY_ROUNDS)
    names = ("fedpp", "flwr", "tensorflow", "keras", "numpy")
    return {"name": "rounds", "rows": rows, "versions": {name: version(name) for name in names}}
