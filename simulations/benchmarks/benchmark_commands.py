"""Benchmarks: commands that print figures. Each one's file says what its ratios are of, and how they were taken."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def step() -> dict[str, Any]:
    """Time and weigh a training step on ciphertext against one on plaintext."""
    from .bench_step import step as measure

    return measure()


def ingest() -> dict[str, Any]:
    """Time the encryption of frames and whole ingests."""
    from .bench_ingest import ingest as measure

    return measure()


def drift(out: Path | None = None, data: Path | None = None) -> dict[str, Any]:
    """Measure how far 2,000 steps on ciphertext lead from the plaintext reference, and the twin from itself."""
    from .bench_drift import drift as measure

    return measure(out, data)


def vault(calls: int | None = None, clients: int | None = None) -> dict[str, Any]:
    """Ask a vault for mixed answers, alone and beside bad clients."""
    from .bench_vault import vault as measure

    return measure(calls, clients)


def mask(words: int | None = None) -> dict[str, Any]:
    """Time masking, adding and unmasking of updates, beside memcpy and CKKS."""
    from .bench_mask import mask as measure

    return measure(words)


def rounds(
    megabytes: Sequence[float] | None = None,
    rounds: int | None = None,
    turns: int | None = None,
    senders: Sequence[int] | None = None,
    sent: float | None = None,
) -> dict[str, Any]:
    """Time the rounds of a deployment beside an empty Flower app's, and weigh its coordinator."""
    from .bench_rounds import rounds as measure

    return measure(megabytes, rounds, turns, senders, sent)


BENCHMARKS: dict[str, Callable[..., dict[str, Any]]] = {
    "step": step,
    "ingest": ingest,
    "drift": drift,
    "vault": vault,
    "mask": mask,
    "rounds": rounds,
}
