"""Measuring: tasks timed in turns, steps in processes of their own, peak memory, and the form of a result."""

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

from simulations.simulated_federation import ROOT

MIB = 2**20
Name = TypeVar("Name", bound=str)
Memory = Literal["VmHWM", "VmRSS"]  # the peak, and what is resident now


@dataclass(frozen=True)
class Seconds:
    """Seconds of each turn of a task, by the clock and of the processor."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def in_turns(
    tasks: Mapping[Name, Callable[[], object]], repetitions: int, *, warm_up: int = 1, label: str = ""
) -> dict[Name, Seconds]:
    """Time tasks that take turns, so that other load falls on all of them; the first `warm_up` turns do not count."""
    seconds = {name: Seconds() for name in tasks}
    for repetition in range(-warm_up, repetitions):
        for name, task in tasks.items():
            started = time.perf_counter(), time.process_time()
            task()
            ended = time.perf_counter(), time.process_time()
            if repetition >= 0:
                seconds[name].wall.append(ended[0] - started[0])
                seconds[name].processor.append(ended[1] - started[1])
        if label:
            show_progress(f"{label}: {max(0, repetition + 1)} of {repetitions}")
    return seconds


def alternating(tasks: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Return the median seconds of tasks that take turns; the first turn does not count."""
    return {name: statistics.median(seconds.wall) for name, seconds in in_turns(tasks, repetitions).items()}


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median ratio of neighbouring turns."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def in_own_process(module: str, *arguments: object) -> Any:
    """Run a module of `simulations.benchmarks`, and return the JSON value that it prints."""
    command = [sys.executable, "-m", f"simulations.benchmarks.{module}", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout)


def memory_bytes(kind: Memory, process: int | Literal["self"] = "self") -> int:
    """Return a process's memory; `ru_maxrss` would begin with that of the process that started it.

    Raises `OSError` if the process has ended.
    """
    found = re.search(rf"^{kind}:\s+(\d+) kB$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0  # 0: it has ended, and waits for its parent


def result(name: str, rows: Sequence[Mapping[str, Any]], packages: Sequence[str]) -> dict[str, Any]:
    """Return a benchmark's result: its rows, and the versions of the packages that they depend on."""
    return {"name": name, "rows": list(rows), "versions": {package: version(package) for package in packages}}


def show_progress(text: str) -> None:
    """Overwrite the last line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text}", end="", file=sys.stderr, flush=True)
