"""Seconds of tasks that take turns in one process, so that what else a machine does falls on all of them."""

import statistics
import time
from collections.abc import Callable, Mapping


def alternating(tasks: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Return the median seconds of tasks that take turns; the first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for repetition in range(-1, repetitions):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            if repetition >= 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
