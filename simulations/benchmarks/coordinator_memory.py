"""Peak memory of the coordinator, by how many sites send to it: SuperLink's process and the ServerApp's.

Both are real, as are SuperLink's database and the proxy; `simulations.benchmarks.simulated_clients` plays the sites,
in one process.
"""

import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedpp.errors import FederationError
from fedpp.imaging.labels import ClassMap
from fedpp.processes import free_port
from simulations.chaos.cluster import Cluster, Program
from simulations.hospitals import Hospitals
from sites.node.node_identity import PUBLIC_KEY, create_identity

from .round_seconds import dense_of, settings
from .simulated_clients import CLASSES, DOMAIN, LOST_ANSWER, READY

PROGRAMS = {"superlink": "flower-superlink", "serverapp": "flwr-serverapp"}
LOOK_SECONDS, START_SECONDS, RUN_SECONDS = 0.2, 300.0, 7200.0
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


def coordinator_memory(senders: Sequence[int], megabytes: float, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each number of sites; the ratio is to the first row's peak."""
    with tempfile.TemporaryDirectory(prefix="fedpp-bench-") as name:
        folder = Path(name)
        nobody = Hospitals(DOMAIN, folder, folder, ClassMap(CLASSES), "played", (), ())
        cluster = Cluster(folder, nobody, free_port(), free_port())
        identities = [cluster.identity(f"site-{number:03}") for number in range(1, max(senders) + 1)]
        for identity in identities:
            create_identity(identity)
        rows: list[dict[str, Any]] = []
        for number in senders:
            try:
                cluster.start_up()
                if not rows:
                    _enrol(cluster, identities)
                figures = _peaks(cluster, identities[:number], megabytes, rounds)
            finally:
                cluster.end()
            total = sum(figures[f"{of}_peak_mb"] for of in PROGRAMS)
            first = rows[0]["peak_mb"] if rows else total
            case = f"{number} senders of {megabytes:g} MB"
            rows.append({"case": case, **figures, "peak_mb": total, "to_first": total / first})
        return rows


def _enrol(cluster: Cluster, identities: Sequence[Path]) -> None:
    """Enrol all nodes by SuperLink's own API: a `python -m coordinator enrol` each would take minutes."""
    ca = (cluster.state / "tls" / "ca.pem").read_bytes()
    version = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
    client = ControlHttpClient.from_server_address(f"127.0.0.1:{cluster.superlink}", False, ca, [version])
    try:
        for identity in identities:
            key = cast("ec.EllipticCurvePublicKey", load_ssh_public_key((identity / PUBLIC_KEY).read_bytes()))
            client.RegisterNode(RegisterNodeRequest(public_key=public_key_to_bytes(key), name=identity.name))
    finally:
        client.close()


def _peaks(cluster: Cluster, identities: Sequence[Path], megabytes: float, rounds: int) -> dict[str, float]:
    """Return both programs' peaks over a run, the seconds that it took, and how many answers SuperLink did not take."""
    command = [
        *("simulations.benchmarks.simulated_clients", "--superlink", f"127.0.0.1:{cluster.port}"),
        *("--ca", str(cluster.state / "tls" / "ca.pem"), *map(str, identities)),
    ]
    fleet = cluster.programs["fleet"] = Program(command, cluster.folder / f"fleet-{len(identities)}.log")
    deadline = time.monotonic() + START_SECONDS
    while fleet.told().count(READY) < len(identities):
        if fleet.process.poll() is not None or time.monotonic() > deadline:
            raise FederationError(f"the played sites did not join: {fleet.told()[-500:]}")
        time.sleep(LOOK_SECONDS)
    began = time.monotonic()
    chosen = {**settings(dense_of(round(megabytes * 1e6)), rounds), "sites": len(identities)}
    with _watched(cluster) as peaks:
        run = cluster.run(chosen)
        if status := run.end(RUN_SECONDS):
            raise FederationError(f"the run ended with status {status}: {run.program.told()[-500:]}")
    seconds, lost = time.monotonic() - began, fleet.told().count(LOST_ANSWER)
    return {**{f"{name}_peak_mb": peak for name, peak in peaks.items()}, "seconds": seconds, "lost_answers": lost}


@contextmanager
def _watched(cluster: Cluster) -> Iterator[dict[str, float]]:
    """Keep each program's largest peak until the block ends, in MB of 2^20 bytes."""
    peaks, ended = dict.fromkeys(PROGRAMS, 0.0), threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            for name, program in PROGRAMS.items():
                for process in cluster.processes(program):
                    peaks[name] = max(peaks[name], _peak_mb(process))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def _peak_mb(process: int) -> float:
    try:
        found = _PEAK.search(Path(f"/proc/{process}/status").read_text())
    except OSError:  # it ended
        return 0.0
    return int(found[1]) / 1024 if found else 0.0
