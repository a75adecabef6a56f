"""Benchmark of the coordinator's peak memory by number of sites: SuperLink's process and the ServerApp's.

Both are real, as are SuperLink's database and the proxy. The sites are simulated clients, all in one process
(`simulations.benchmarks.simulated_clients`).
"""

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedpp.imaging.labels import ClassMap
from fedpp.processes import free_port
from simulations.chaos.cluster import Cluster, Program, Settings
from simulations.hospitals import Hospitals
from sites.node.node_identity import PUBLIC_KEY, create_identity

from .measuring import MIB, memory_bytes
from .simulated_clients import CLASSES, DOMAIN, LOST_REPLY, READY

PROGRAMS = {"superlink": "flower-superlink", "serverapp": "flwr-serverapp"}
POLL_SECONDS, START_SECONDS, RUN_SECONDS = 0.2, 300.0, 7200.0


def coordinator_memory(senders: Sequence[int], megabytes: float, settings: Settings) -> list[dict[str, Any]]:
    """Return a row for each number of sites, which send `megabytes` in a run with these settings.

    The ratio is to the first row's peak.
    """
    with tempfile.TemporaryDirectory(prefix="fedpp-bench-") as name:
        folder = Path(name)
        hospitals = Hospitals(DOMAIN, folder, folder, ClassMap(CLASSES), "simulated", (), ())
        cluster = Cluster(folder, hospitals, free_port(), free_port())
        identities = [cluster.identity(f"site-{number:03}") for number in range(1, max(senders) + 1)]
        for identity in identities:
            create_identity(identity)
        rows: list[dict[str, Any]] = []
        for number in senders:
            try:
                cluster.start_up()
                if not rows:
                    _enrol(cluster, identities)
                figures = _peaks(cluster, identities[:number], settings)
            finally:
                cluster.end()
            total = sum(figures[f"{of}_peak_mb"] for of in PROGRAMS)
            first = rows[0]["peak_mb"] if rows else total
            case = f"{number} senders of {megabytes:g} MB"
            rows.append({"case": case, **figures, "peak_mb": total, "to_first": total / first})
        return rows


def _enrol(cluster: Cluster, identities: Sequence[Path]) -> None:
    """Enrol all nodes by SuperLink's own API: `python -m coordinator enrol` for each would take minutes."""
    ca = (cluster.state / "tls" / "ca.pem").read_bytes()
    version = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
    client = ControlHttpClient.from_server_address(f"127.0.0.1:{cluster.superlink}", False, ca, [version])
    try:
        for identity in identities:
            key = cast("ec.EllipticCurvePublicKey", load_ssh_public_key((identity / PUBLIC_KEY).read_bytes()))
            client.RegisterNode(RegisterNodeRequest(public_key=public_key_to_bytes(key), name=identity.name))
    finally:
        client.close()


def _peaks(cluster: Cluster, identities: Sequence[Path], settings: Settings) -> dict[str, float]:
    """Return both programs' peaks over a run, its seconds, and the number of replies that SuperLink did not take."""
    command = [
        *("simulations.benchmarks.simulated_clients", "--superlink", f"127.0.0.1:{cluster.port}"),
        *("--ca", str(cluster.state / "tls" / "ca.pem"), *map(str, identities)),
    ]
    fleet = cluster.programs["fleet"] = Program(command, cluster.folder / f"fleet-{len(identities)}.log")
    number = len(identities)
    failure = "the simulated clients did not connect"
    fleet.wait_until(lambda: fleet.log_text().count(READY) >= number, START_SECONDS, failure)
    started = time.monotonic()
    with _watched(cluster) as peaks:
        cluster.run({**settings, "sites": len(identities)}).completed(RUN_SECONDS)
    seconds, lost = time.monotonic() - started, fleet.log_text().count(LOST_REPLY)
    return {**{f"{name}_peak_mb": peak for name, peak in peaks.items()}, "seconds": seconds, "lost_replies": lost}


@contextmanager
def _watched(cluster: Cluster) -> Iterator[dict[str, float]]:
    """Record each program's largest peak until the block ends, in MB of 2^20 bytes."""
    peaks, ended = dict.fromkeys(PROGRAMS, 0.0), threading.Event()

    def look() -> None:
        while not ended.wait(POLL_SECONDS):
            for name, program in PROGRAMS.items():
                for process in cluster.processes(program):
                    with suppress(OSError):  # it has ended
                        peaks[name] = max(peaks[name], memory_bytes("VmHWM", process) / MIB)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()
