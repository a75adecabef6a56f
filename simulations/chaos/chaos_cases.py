"""The cases of the chaos suite: what is done to a deployment, what must come of it, and the figures."""

import http.client
import os
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from coordinator.operator.run_commands import run_config
from fedpp.aggregation.global_state import Rows
from fedpp.errors import FederationError
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning.metrics import metrics
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol.run_record import CLEAR, SEALED, FederationRecord
from simulations.simulated_federation import federate
from sites.cli.pull_command import opened
from sites.node.node_identity import create_identity

from .cluster import CONNECTED, Cluster, Run, Settings, altered
from .relay import relay

HALF = 0.5
OUTLASTING = 20  # rounds that take longer than a cut
MAX_SECONDS = 1800.0  # of a run that is held up
LIES = ("nan", "inf", "shape", "one", "dtype", "examples", "domain", "epoch", "garbage", "old run", "old round")
KILLED = {  # what is killed -> programs
    "ServerApp": ("flwr-serverapp",),
    "SuperLink": ("flower-superlink",),
    "both": ("flwr-serverapp", "flower-superlink"),
}
PATHS = ("/", "/v1/control/list-runs", "/v1/runtime/acquire-task", "/v1/fleet/../control/start-run", "/docs", "/health")
Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A deployment, how its runs are set, and how hard it is shaken."""

    cluster: Cluster
    settings: Settings
    kills: int  # of each kind
    seed: int = 0

    def unbroken(self, **changes: str | float | bool) -> Run:
        """Return a run that was left in peace."""
        run = self.cluster.run({**self.settings, **changes})
        _require(run.end() == 0, f"the run that nobody disturbs failed: {run.program.told()[-500:]}")
        return run

    def rows(self, run: Run) -> Rows:
        """Return the weights that a run ended with, as rows."""
        if (run.out / CLEAR).exists():
            return EncryptedModel.load(run.out / CLEAR).rows
        return opened(run.out / SEALED, self.cluster.hospitals.domain).rows


def proxy(trial: Trial) -> Iterator[Row]:
    """Through nginx, with TLS and node authentication, a run is the simulation's; nothing else gets through."""
    run = trial.unbroken()
    out = trial.cluster.folder / "simulated"
    defaults = {**trial.settings, "out": str(out), "card": trial.cluster.hospitals.domain.card().to_json()}
    simulated = federate(trial.cluster.hospitals.sites, run_config((), {}, {**defaults, "initial-model": ""}))
    deployed = run.record
    far = largest_difference(figures(deployed), figures(simulated))
    yield row("metrics as simulated", far <= 1e-6, largest_difference=far, rounds=len(deployed.rounds))
    answers = {path: answered(trial.cluster, path) for path in PATHS}
    yield row("all but the Fleet API is closed", set(answers.values()) == {403}, paths=len(answers))
    create_identity(trial.cluster.identity("stranger"))
    trial.cluster.start_node(trial.cluster.names[0], identity="stranger")
    refused = trial.cluster.programs["node stranger"].process.wait(300)
    yield row("an unregistered node is refused", refused != 0, status=refused)


def kills(trial: Trial) -> Iterator[Row]:
    """Whatever of the coordinator is killed, and when, the run ends by itself with the same weights."""
    before, began = trial.cluster.trainings(), time.monotonic()
    peace = trial.unbroken()
    seconds, calm = time.monotonic() - began, trial.cluster.trainings() - before
    expected, rounds = trial.rows(peace), int(trial.settings["rounds"])
    a_round = peace.record.seconds / rounds
    for number, (what, programs) in enumerate(KILLED.items()):
        before, began, done = trial.cluster.trainings(), time.monotonic(), 0
        run = trial.cluster.run(trial.settings)
        for moment in moments(trial.seed + number, trial.kills, rounds):
            run.wait_until("judging" if moment % 1 >= HALF else "training", int(moment) + 1)
            time.sleep(moment % HALF * a_round)
            while run.goes_on() and not trial.cluster.kill(*programs):
                time.sleep(0.05)  # it was killed before, and is not back yet
            done += run.goes_on()
        status = run.end()
        same = status == 0 and same_rows(trial.rows(run), expected)
        again = trial.cluster.trainings() - before - calm
        yield row(
            f"{what} killed",
            same and done == trial.kills and again == 0,
            kills=done,
            same_weights=same,
            retrained=again,
            seconds=time.monotonic() - began,
            seconds_in_peace=seconds,
        )


def site_killed(trial: Trial) -> Iterator[Row]:
    """A site that is killed in a round is named, the round closes with the others, and it is back after a restart."""
    victim = trial.cluster.names[-1]
    deadline = 120.0
    run = trial.cluster.run({**trial.settings, "round-seconds": deadline})
    run.wait_until("training", 2)
    trial.cluster.programs[f"node {victim}"].kill()
    run.wait_until("training", 3)
    trial.cluster.start_node(victim)
    status = run.end()
    _require(status == 0, run.program.told()[-500:])
    rounds = run.record.rounds
    second = rounds[1]
    back = [r.number for r in rounds[2:] if victim in r.sites]
    yield row(
        "a site killed in a round",
        victim not in second.sites and victim in second.left_out and second.seconds < deadline and bool(back),
        named=second.left_out.get(victim, ""),
        round_seconds=second.seconds,
        back_in_round=back[0] if back else None,
    )


def cut(trial: Trial) -> Iterator[Row]:
    """A network that passes nothing for 90 seconds costs its site the rounds of that time, and nobody else any."""
    victim, seconds = trial.cluster.names[-1], 90.0
    with relay(trial.cluster.port) as stretch:
        trial.cluster.programs[f"node {victim}"].end()
        trial.cluster.start_node(victim, stretch.address)
        trial.cluster.programs[f"node {victim}"].wait_for(CONNECTED)
        rounds = max(OUTLASTING, int(trial.settings["rounds"]))
        run = trial.cluster.run({**trial.settings, "rounds": rounds, "round-seconds": 240.0})
        run.wait_until("training", 2)
        stretch.cut(seconds)
        status = run.end(MAX_SECONDS)
        trial.cluster.programs[f"node {victim}"].end()
    trial.cluster.start_node(victim)
    trial.cluster.programs[f"node {victim}"].wait_for(CONNECTED)
    _require(status == 0, run.program.told()[-500:])
    record = run.record.rounds
    missed = [r.number for r in record if victim not in r.sites]
    yield row(
        f"a network cut for {seconds:.0f} s",
        all(len(r.sites) >= 2 for r in record)
        and all(victim in record[number - 1].left_out for number in missed)
        and sum(record[number - 1].seconds for number in missed) < 2 * seconds
        and victim in record[-1].sites,
        missed_rounds=missed,
        of_rounds=len(record),
        seconds_missed=sum(record[number - 1].seconds for number in missed),
        named=[record[number - 1].left_out.get(victim, "") for number in missed],
    )


def slow(trial: Trial) -> Iterator[Row]:
    """A site that is ten times slower is late, named, and asked again in the next round; the others go on."""
    victim = trial.cluster.names[-1]
    calm = trial.unbroken().record.rounds
    deadline = 1.5 * max(r.seconds for r in calm)
    with slowed(trial.cluster, victim, 10):
        run = trial.cluster.run({**trial.settings, "round-seconds": deadline})
        status = run.end(3 * deadline * (len(calm) + 1))
    _require(status == 0, run.program.told()[-500:])
    rounds = run.record.rounds
    late = [r.number for r in rounds if victim not in r.sites]
    yield row(
        "a site ten times slower",
        bool(late) and all(victim in rounds[number - 1].left_out for number in late),
        late_in=late,
        deadline=deadline,
        longest_round=max(r.seconds for r in rounds),
        named=rounds[late[0] - 1].left_out.get(victim, "") if late else "",
    )


def full_disk(trial: Trial) -> Iterator[Row]:
    """A disk that is full at the coordinator stops the run for a while, and costs nothing."""
    expected = trial.rows(trial.unbroken())
    disk = trial.cluster.folder / "disk"
    with small_disk(disk, 16) as room:
        run = trial.cluster.run(trial.settings, out=room / "run")
        run.wait_until("training", 2)
        fill(room / "junk")
        deadline = time.monotonic() + 180
        while "is full" not in run.program.told() and time.monotonic() < deadline:
            time.sleep(0.2)
        told = "is full" in run.program.told()
        (room / "junk").unlink()
        status = run.end()
        same = status == 0 and same_rows(trial.rows(run), expected)
        yield row("a full disk, for a while", told and same, told=told, same_weights=same)
        (room / "run").rename(room / "first")
        run = trial.cluster.run({**trial.settings, "wait-seconds": 5.0}, out=room / "run")
        run.wait_until("training", 2)
        fill(room / "junk")
        status = run.end()
        failed = status == 1 and "is full" in run.program.told()
        (room / "junk").unlink()
        run = trial.cluster.run({"wait-seconds": 600.0}, out=room / "run", resume=True)
        same = run.end() == 0 and same_rows(trial.rows(run), expected)
        yield row("a full disk, for long", failed and same, failed=failed, same_weights_resumed=same)


def poison(trial: Trial) -> Iterator[Row]:
    """One of four sites lies: in clear it is refused and named; masked, no lie gets into a model."""
    liar = trial.cluster.names[-1]
    clear = {**trial.settings, "secure-aggregation": False, "rounds": 2, "sites": 3}
    of_four = {**clear, "sites": 4, "quorum": 3}
    trial.cluster.programs[f"node {liar}"].end()
    expected = dict.fromkeys(LIES, trial.rows(trial.unbroken(**clear)))
    lying(trial, liar, "nan later")
    expected["old round"] = trial.rows(trial.unbroken(**of_four))  # its first round is an honest one
    lying(trial, liar, "old run")
    trial.unbroken(**of_four)  # honest, but that it keeps its update
    for lie in LIES:
        lying(trial, liar, lie)
        run = trial.cluster.run(of_four)
        status = run.end()
        if status:
            yield row(f"in clear: {lie}", False, told=run.program.told()[-300:])
            continue
        record = run.record
        rows = trial.rows(run).items()
        far = max(float(np.abs(values - expected[lie][name]).max()) for name, values in rows)
        yield row(
            f"in clear: {lie}",
            list(record.quarantined) == [liar] and far <= 1e-12,
            named=record.quarantined.get(liar, ""),
            largest_difference=far,
        )
    masked = {**trial.settings, "rounds": 2, "sites": 4, "quorum": 3, "retries": 1}
    for lie in LIES:
        lying(trial, liar, lie)
        run = trial.cluster.run(masked)
        status = run.end()
        told = run.program.told()
        quarantined = f"{liar} is quarantined" in told
        loud = status == 1 and "adopted no model of it" in told
        yield row(
            f"masked: {lie}",
            (status == 0 and quarantined) or loud,
            outcome="quarantined" if quarantined else "ended loudly" if loud else told[-300:],
        )
    trial.cluster.programs[f"node {liar}"].end()


CASES: Mapping[str, Callable[[Trial], Iterator[Row]]] = {
    "proxy": proxy,
    "kills": kills,
    "site": site_killed,
    "cut": cut,
    "slow": slow,
    "disk": full_disk,
    "poison": poison,
}


def moments(seed: int, number: int, rounds: int) -> list[float]:
    """Return random moments of a run in its order, in rounds: the first half of each is its training."""
    drawn = Random(seed)  # noqa: S311  no secret depends on it
    return sorted(drawn.uniform(0.0, rounds) for _ in range(number))


def row(case: str, as_designed: bool, **figures: Any) -> Row:  # noqa: FBT001  it is what a row says first
    """Return one line of the suite's report."""
    return {"case": case, "as designed": as_designed, **figures}


def figures(record: FederationRecord) -> list[float]:
    """Return the figures of each round, and of the test."""
    counts = [*(r.together for r in record.rounds), record.test_counts()]
    return [value for of in counts for value in metrics(of).to_mapping().values() if isinstance(value, float)]


def largest_difference(one: list[float], other: list[float]) -> float:
    """Return by how much two lists of figures differ at most; infinity if they are not the same figures."""
    return float(np.abs(np.array(one) - other).max()) if len(one) == len(other) else float("inf")


def same_rows(one: Rows, other: Rows) -> bool:
    """Tell whether two models are the same, bit for bit."""
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def answered(cluster: Cluster, path: str) -> int:
    """Return the status that the proxy answers to a POST of this path, as it stands."""
    context = ssl.create_default_context(cafile=str(cluster.state / "tls" / "ca.pem"))
    connection = http.client.HTTPSConnection("127.0.0.1", cluster.port, context=context, timeout=20)
    connection.request("POST", path, body=b"")
    return connection.getresponse().status


def lying(trial: Trial, name: str, lie: str) -> None:
    """Let a site lie from now on."""
    cluster, domain = trial.cluster, trial.cluster.hospitals.domain
    other = KeyDomain.of_secret(bytes(32), n=domain.n, scheme=domain.scheme)
    if lie == "epoch":
        other = domain.successor(domain.card().certifying_key)
    if program := cluster.programs.get(f"node {name}"):
        program.end()
    told = {
        "FEDPP_POISON": lie,
        "FEDPP_POISON_DOMAIN": other.card().fingerprint,
        "FEDPP_POISON_KEPT": str(cluster.folder / "kept"),
    }
    cluster.start_node(name, environment={**altered("poison"), **told})
    cluster.programs[f"node {name}"].wait_for(CONNECTED)


@contextmanager
def slowed(cluster: Cluster, name: str, times: int) -> Iterator[None]:
    """Give a site's ClientApps one share of the time in so many."""
    ended = threading.Event()

    def hold() -> None:
        while not ended.is_set():
            for number, seconds in ((signal.SIGSTOP, 0.09 * (times - 1)), (signal.SIGCONT, 0.09)):
                for process in cluster.launchers(name):
                    with suppress(ProcessLookupError):
                        os.kill(process, number)
                time.sleep(seconds)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Path]:
    """Yield a folder with room for so many megabytes; raise `FederationError` where none can be made."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise FederationError(f"no small disk can be made here ({done.stderr.strip()}): it takes root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def _require(holds: bool, otherwise: str) -> None:  # noqa: FBT001
    if not holds:
        raise FederationError(otherwise)
