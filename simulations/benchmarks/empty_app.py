"""Baseline of the round benchmark: an empty Flower app, which only sends arrays, on SuperNodes of its own.

The nodes are Flower's with their defaults but for a key and TLS; they call the same SuperLink through the same proxy.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

from coordinator.operator.flower_command import flower
from coordinator.operator.superlink import CONNECTION, State
from fedpp.config.run_config import to_toml
from fedpp.errors import FederationError
from fedpp.processes import flower_environment, free_port
from simulations.chaos.cluster import Cluster, Program
from sites.node.node_identity import PRIVATE_KEY

APP = Path(__file__).parent / "empty"
POLL_SECONDS, STATUS_SECONDS = 0.2, 10.0
ACCEPTED = "SuperNode ID"  # Flower's SuperNode logs it when SuperLink has accepted it


def empty_rounds(cluster: Cluster, nodes: int, model_bytes: int, rounds: int) -> list[float]:
    """Return the seconds of each round of one run; the first call makes and enrols the nodes' keys."""
    names = [f"empty-{number}" for number in range(1, nodes + 1)]
    for name in names:
        if not cluster.identity(name).exists():
            cluster.enrol(name)
    with _nodes(cluster, names):
        out = cluster.folder / "empty" / f"{time.monotonic_ns()}.json"
        out.parent.mkdir(exist_ok=True)
        settings: dict[str, str | int] = {"out": str(out), "bytes": model_bytes, "nodes": nodes, "rounds": rounds}
        _run(cluster, settings, out)
    measured = json.loads(out.read_text())
    if measured["replies"] != [rounds, rounds]:
        raise FederationError(f"the empty app's nodes did not reply in all {rounds} rounds: see {cluster.folder}")
    return [after - before for before, after in pairwise(measured["moments"])]


@contextmanager
def _nodes(cluster: Cluster, names: list[str]) -> Iterator[None]:
    with ExitStack() as stack:
        started = []
        for name in names:
            command = [
                *("flower-supernode", "--superlink", f"127.0.0.1:{cluster.port}"),
                *("--root-certificates", str(cluster.state / "tls" / "ca.pem")),
                *("--auth-supernode-private-key", str(cluster.identity(name) / PRIVATE_KEY)),
                *("--host", "127.0.0.1", "--port", str(free_port())),
            ]
            environment = flower_environment(cluster.identity(name) / "flwr")
            del environment["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"]  # Flower's default
            started.append(Program(command, cluster.folder / f"node-{name}.log", environment, by=()))
            stack.callback(started[-1].end)
        for program in started:
            program.wait_for(ACCEPTED)
        yield


def _run(cluster: Cluster, settings: dict[str, str | int], out: Path) -> None:
    """Run the app until it has written its moments; raise `FederationError` if it ends without."""
    state = State(cluster.state)
    app = cluster.folder / "emptyapp"
    shutil.copytree(APP, app, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    overrides = cluster.folder / "empty.toml"
    overrides.write_text(to_toml(settings))
    run = flower(state, "run", str(app), CONNECTION, "--run-config", str(overrides))["run-id"]
    checked = time.monotonic()
    while not out.exists():
        time.sleep(POLL_SECONDS)
        if time.monotonic() - checked > STATUS_SECONDS:
            status = flower(state, "list", CONNECTION, "--run-id", str(run))["runs"][0]["status"]
            if status.startswith("finished") and not out.exists():
                raise FederationError(f"the empty app's run ended without its figures: {status}")
            checked = time.monotonic()
