"""Benchmark of a deployment's rounds: seconds against an empty Flower app on the same SuperLink, and peak memory.

Training is skipped, so the seconds are those of everything else. Real processes on loopback: SuperLink with TLS, node
authentication and a database, nginx, and three sites, each with its vault and its SuperNode; secure aggregation is on.
Runs of both take turns, and each has its own nodes. Of runs of several rounds the first does not count on either side:
in it nodes get the app, and Python compiles it. `coordinator_memory` measures the memory, in runs in clear: with secure
aggregation the coordinator holds one update and their sum at a time, and keeps the others on its disk.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fedpp.cli import note
from fedpp.config.model_spec import ModelChoices, ModelSpec
from fedpp.config.task import Task
from simulations.chaos.cluster import Cluster, Settings, altered, cluster
from simulations.hospitals import prepare
from simulations.scenario import PhantomData, Scenario

from .coordinator_memory import coordinator_memory
from .empty_app import empty_rounds
from .measuring import result

SITES, SLOTS, VALUE_BYTES = 3, 2, 4
POLL_SECONDS = 0.02
UNTRAINED = altered("untrained")
FILTERS, TASK = (4, 8), Task(2, 16, 16, 1, ("no", "yes"))
LIMIT_SECONDS = 3600.0
MEGABYTES, SENDERS, SENT_MEGABYTES = (1.0, 100.0), (4, 16, 64), 50.0
ROUNDS, TURNS, MEMORY_ROUNDS = 5, 2, 2
Moment = tuple[float, int, str]  # of the start of a phase: time, round, phase


@dataclass(frozen=True)
class Seconds:
    """Seconds of a round and of its two parts: until all updates are there, and until their sum is opened."""

    whole: float
    training: float
    opening: float


def rounds(
    megabytes: Sequence[float] | None = None,
    rounds: int | None = None,
    turns: int | None = None,
    senders: Sequence[int] | None = None,
    sent: float | None = None,
) -> dict[str, Any]:
    """Time rounds with updates of these sizes; measure the coordinator's memory with senders of `sent` megabytes."""
    rows = round_seconds(megabytes or MEGABYTES, rounds or ROUNDS, turns or TURNS)
    sent = sent or SENT_MEGABYTES
    in_clear = {**settings(dense_of(round(sent * 1e6)), MEMORY_ROUNDS), "secure-aggregation": False}
    rows += coordinator_memory(senders or SENDERS, sent, in_clear)
    return result("rounds", rows, ("fedpp", "flwr", "tensorflow", "keras", "numpy"))


def round_seconds(megabytes: Sequence[float], rounds: int, turns: int) -> list[dict[str, Any]]:
    """Return a row for each size of an update: medians over `turns` runs of `rounds` rounds, of each side."""
    phantom = PhantomData(patients=6, visits=2, size=32)
    shape = {"frames": TASK.frames, "size": TASK.height}
    scenario = Scenario.of(name="bench", description="", sites=SITES, rounds=rounds, phantom=phantom, **shape)
    with (
        tempfile.TemporaryDirectory(prefix="fedpp-bench-") as name,
        tempfile.TemporaryDirectory(prefix="f-") as sockets,
    ):
        folder = Path(name)
        hospitals = prepare(scenario, None, folder, Path(sockets))
        with cluster(folder, hospitals, UNTRAINED) as running:
            return [_row(running, size, rounds, turns) for size in megabytes]


def _row(running: Cluster, megabytes: float, rounds: int, turns: int) -> dict[str, Any]:
    dense = dense_of(round(megabytes * 1e6))
    first = 1 if rounds > 1 else 0
    ours: list[Seconds] = []
    theirs: list[float] = []
    for turn in range(turns):
        note(f"{megabytes:g} MB, turn {turn + 1} of {turns}")
        with _sites(running):
            ours += our_rounds(running, dense, rounds)[first:]
        theirs += empty_rounds(running, SITES, round(megabytes * 1e6), rounds)[first:]
    seconds, empty = median(of.whole for of in ours), median(theirs)
    return {
        "case": f"{megabytes:g} MB, {SITES} sites",
        "update_mb": update_length(dense) * VALUE_BYTES / 1e6,
        "seconds": seconds,
        "seconds_training": median(of.training for of in ours),
        "seconds_opening": median(of.opening for of in ours),
        "empty_app_seconds": empty,
        "to_empty_app": seconds / empty,
        "rounds": len(ours),
        "load": os.getloadavg()[0],
    }


def our_rounds(running: Cluster, dense: int, rounds: int) -> list[Seconds]:
    """Return the seconds of each round of one run."""
    run = running.run(settings(dense, rounds))
    moments: list[Moment] = []
    deadline = time.monotonic() + LIMIT_SECONDS
    while run.program.process.poll() is None and time.monotonic() < deadline:
        progress = run.progress()
        if not moments or moments[-1][1:] != (progress.round, progress.phase):
            moments.append((time.monotonic(), progress.round, progress.phase))
        time.sleep(POLL_SECONDS)
    run.completed(0)
    return seconds_of(moments)


def seconds_of(moments: Sequence[Moment]) -> list[Seconds]:
    """Return the seconds of each round that trains, from the start of its training to that of the next round.

    For a moment before, the progress file has the next round with the phase of the last one.
    """
    started = [(moment, number) for moment, number, phase in moments if phase == "training"]
    closing = next(moment for moment, _, phase in moments if phase == "evaluating")
    made = []
    for (first, number), after in zip(started, [*(moment for moment, _ in started[1:]), closing], strict=True):
        summed = next(at for at, of, phase in moments if at > first and (of, phase) == (number, "releasing"))
        made.append(Seconds(after - first, summed - first, after - summed))
    return made


def settings(dense: int, rounds: int) -> Settings:
    """Return the settings of a run."""
    return {
        "sites": SITES,
        "rounds": rounds,
        "epochs": 1,
        "batch-size": 1,
        "dtype": "float32",
        "architecture": "cnn",
        "filters": ",".join(map(str, FILTERS)),
        "dense": dense,
    }


def network_of(dense: int) -> ModelSpec:
    """Return the network with so many units in its dense layer."""
    return ModelSpec(TASK, ModelChoices("cnn", filters=FILTERS, dense=dense))


def update_length(dense: int) -> int:
    """Return the number of values of an update of the network."""
    return SLOTS * network_of(dense).parameters()


def dense_of(update_bytes: int) -> int:
    """Return the units of the dense layer for which an update has about `update_bytes` bytes."""
    smallest, step = update_length(1), update_length(2) - update_length(1)
    return max(1, 1 + round((update_bytes / VALUE_BYTES - smallest) / step))


@contextmanager
def _sites(running: Cluster) -> Iterator[None]:
    """Connect the sites' nodes for this block; a new cluster's are connected already."""
    nodes = {name: f"node {name}" for name in running.names}
    for name, node in nodes.items():
        if running.programs[node].process.poll() is not None:
            running.connect_node(name, environment=UNTRAINED)
    try:
        yield
    finally:
        for node in nodes.values():
            running.programs[node].end()
