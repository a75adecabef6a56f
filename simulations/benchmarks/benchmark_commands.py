"""Benchmarks by name, each loaded on use. The module of each says what its ratios are of, and how they are taken."""

from importlib import import_module
from typing import Any

BENCHMARKS = {  # name -> module and function
    "step": "bench_step:step",
    "ingest": "bench_ingest:ingest",
    "drift": "bench_drift:drift",
    "vault": "bench_vault:vault",
    "mask": "bench_mask:mask",
    "rounds": "bench_rounds:rounds",
}


def measure(name: str, **options: Any) -> dict[str, Any]:
    """Run a benchmark with its options; return its name, rows and the versions of what it measured."""
    module, _, function = BENCHMARKS[name].partition(":")
    result: dict[str, Any] = getattr(import_module(f"{__package__}.{module}"), function)(**options)
    return result
