"""Benchmark of a deployment's rounds: seconds against an empty Flower app's, and the coordinator's peak memory."""

from collections.abc import Sequence
from typing import Any

from .coordinator_memory import coordinator_memory
from .measuring import result
from .round_seconds import round_seconds

MEGABYTES, SENDERS = (1.0, 100.0), (4, 16, 64)
ROUNDS, TURNS, MEMORY_ROUNDS = 5, 2, 2
SENT_MEGABYTES = 50.0


def rounds(
    megabytes: Sequence[float] | None = None,
    rounds: int | None = None,
    turns: int | None = None,
    senders: Sequence[int] | None = None,
    sent: float | None = None,
) -> dict[str, Any]:
    """Time rounds with updates of these sizes; measure the coordinator's memory with senders of `sent` megabytes."""
    rows = round_seconds(megabytes or MEGABYTES, rounds or ROUNDS, turns or TURNS)
    rows += coordinator_memory(senders or SENDERS, sent or SENT_MEGABYTES, MEMORY_ROUNDS)
    return result("rounds", rows, ("fedpp", "flwr", "tensorflow", "keras", "numpy"))
