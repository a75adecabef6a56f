"""Cases of the chaos suite: each disturbs a deployment, and yields rows with the result and its figures."""

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
from fedpp.protocol.run_record import CLEAR, RECORD, SEALED, FederationRecord
from simulations import masked_start
from simulations.simulated_federation import federate
from sites.cli.pull_command import opened
from sites.node.node_identity import create_identity

from .cluster import Cluster, Run, Settings, altered
from .relay import relay

HALF = 0.5
LONG_RUN = 20  # rounds, which take longer than a cut
MAX_SECONDS = 1800.0  # of a run that is held up
FORGERIES = ("nan", "inf", "shape", "one", "dtype", "examples", "domain", "epoch", "garbage", "old run", "old round")
MASKED_FORGERIES = ("nan", "inf", "shape", "one", "dtype", "garbage", "old run", "old round")
KILLED = {  # case -> programs that are killed
    "ServerApp": ("flwr-serverapp",),
    "SuperLink": ("flower-superlink",),
    "both": ("flwr-serverapp", "flower-superlink"),
}
PATHS = ("/", "/v1/control/list-runs", "/v1/runtime/acquire-task", "/v1/fleet/../control/start-run", "/docs", "/health")
Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """Deployment under test, the settings of its runs, and the number of kills."""

    cluster: Cluster
    settings: Settings
    kills: int  # of each kind
    seed: int = 0

    @property
    def victim(self) -> str:
        """Return the site that a case disturbs."""
        return self.cluster.names[-1]

    def uninterrupted(self, **changes: str | float | bool) -> Run:
        """Return a completed run without any disturbance."""
        run = self.cluster.run({**self.settings, **changes})
        run.completed()
        return run

    def in_clear(self, run: Run) -> Path:
        """Simulate a masked run in clear, from its initial weights; return the folder of the results."""
        cluster, record, out = self.cluster, run.record, self.cluster.folder / f"clear-{self.cluster.runs}"
        domain = cluster.hospitals.domain
        seed = masked_start.run_seed(domain, run.folder.nonce(""), cluster.hospitals.sites[0].vault)
        initial = cluster.folder / f"initial-{cluster.runs}.npz"
        masked_start.initial_model(domain, record.network, record.dtype, seed).save(initial)
        changes = {"secure-aggregation": False, "initial-model": str(initial), "out": str(out)}
        given = {**self.settings, "card": domain.card().to_json(), **changes}
        federate(cluster.hospitals.sites, run_config((), {}, given))
        return out

    def is_undisturbed(self, run: Run) -> bool:
        """Tell whether a run ended with the weights to which it is simulated in clear."""
        return same_rows(self.rows(run), EncryptedModel.load(self.in_clear(run) / CLEAR).rows)

    def rows(self, run: Run) -> Rows:
        """Return the weights at the end of a run, as rows."""
        if (run.out / CLEAR).exists():
            return EncryptedModel.load(run.out / CLEAR).rows
        return opened(run.out / SEALED, self.cluster.hospitals.domain).state.rows


def proxy(trial: Trial) -> Iterator[Row]:
    """Through nginx, with TLS and node authentication, a run equals one in clear; nothing else passes the proxy."""
    run = trial.uninterrupted()
    deployed, simulated = run.record, FederationRecord.load(trial.in_clear(run) / RECORD)
    difference = largest_difference(figures(deployed), figures(simulated))
    yield row("metrics as in clear", difference <= 1e-6, largest_difference=difference, rounds=len(deployed.rounds))
    statuses = {path: status_of_post(trial.cluster, path) for path in PATHS}
    yield row("all but the Fleet API is closed", set(statuses.values()) == {403}, paths=len(statuses))
    create_identity(trial.cluster.identity("stranger"))
    trial.cluster.start_node(trial.cluster.names[0], identity="stranger")
    status = trial.cluster.programs["node stranger"].process.wait(300)
    yield row("an unregistered node is refused", status != 0, status=status)


def kills(trial: Trial) -> Iterator[Row]:
    """Whichever program of the coordinator is killed, at any moment, the run ends with the weights of one in clear."""
    before, started = trial.cluster.trainings(), time.monotonic()
    reference = trial.uninterrupted()
    reference_seconds, reference_trainings = time.monotonic() - started, trial.cluster.trainings() - before
    rounds = int(trial.settings["rounds"])
    round_seconds = reference.record.seconds / rounds
    for number, (what, programs) in enumerate(KILLED.items()):
        before, started, done = trial.cluster.trainings(), time.monotonic(), 0
        run = trial.cluster.run(trial.settings)
        for moment in moments(trial.seed + number, trial.kills, rounds):
            run.wait_until("stepping" if moment % 1 >= HALF else "training", int(moment) + 1)
            time.sleep(moment % HALF * round_seconds)
            while run.is_running() and not trial.cluster.kill(*programs):
                time.sleep(0.05)  # killed before, and not restarted yet
            done += run.is_running()
        same = run.end() == 0 and trial.is_undisturbed(run)
        again = trial.cluster.trainings() - before - reference_trainings
        yield row(
            f"{what} killed",
            same and done == trial.kills and again == 0,
            kills=done,
            same_weights=same,
            retrained=again,
            seconds=time.monotonic() - started,
            seconds_uninterrupted=reference_seconds,
        )


def site_killed(trial: Trial) -> Iterator[Row]:
    """A site killed in a round is named, the run waits for it, and ends with the weights of an undisturbed one."""
    victim = trial.victim
    run = trial.cluster.run({**trial.settings, "round-seconds": 20.0})
    run.wait_until("training", 2)
    trial.cluster.programs[f"node {victim}"].kill()
    run.wait_until("paused", 2)
    trial.cluster.start_node(victim)
    rounds = run.completed().rounds
    named = paused_for(run, victim)
    yield row(
        "a site killed in a round",
        bool(named) and all(victim in r.sites for r in rounds) and trial.is_undisturbed(run),
        named=named,
        longest_round=max(r.seconds for r in rounds),
    )


def cut(trial: Trial) -> Iterator[Row]:
    """A network that is cut for 90 seconds pauses the run, which ends with the weights of an undisturbed one."""
    victim, seconds = trial.victim, 90.0
    with relay(trial.cluster.port) as stretch:
        trial.cluster.connect_node(victim, stretch.address)
        run = trial.cluster.run({**trial.settings, "round-seconds": 30.0})
        run.wait_until("training", 2)
        stretch.cut(seconds)
        record = run.completed(MAX_SECONDS).rounds
        same = trial.is_undisturbed(run)
        trial.cluster.programs[f"node {victim}"].end()
    trial.cluster.connect_node(victim)
    yield row(
        f"a network cut for {seconds:.0f} s",
        same and all(victim in r.sites for r in record),
        same_weights=same,
        of_rounds=len(record),
        longest_round=max(r.seconds for r in record),
        named=paused_for(run, victim),
    )


def slow(trial: Trial) -> Iterator[Row]:
    """A straggler, ten times slower, is waited for beyond the deadline, and named; no round ends without it."""
    victim = trial.victim
    undisturbed = trial.uninterrupted().record.rounds
    deadline = 1.5 * max(r.seconds for r in undisturbed)
    with slowed(trial.cluster, victim, 10):
        run = trial.cluster.run({**trial.settings, "round-seconds": deadline})
        rounds = run.completed(MAX_SECONDS).rounds
    named = paused_for(run, victim)
    yield row(
        "a site ten times slower",
        bool(named) and all(victim in r.sites for r in rounds) and trial.is_undisturbed(run),
        deadline=deadline,
        longest_round=max(r.seconds for r in rounds),
        named=named,
    )


def paused_for(run: Run, victim: str) -> str:
    """Return the first line of a run's log by which it was paused for this site."""
    lines = run.program.log_text().splitlines()
    return next((line for line in lines if "paused" in line and victim in line), "")


def full_disk(trial: Trial) -> Iterator[Row]:
    """A full disk at the coordinator pauses the run, and no result is lost."""
    disk = trial.cluster.folder / "disk"
    with small_disk(disk, 16) as room:
        run = _on_full_disk(trial, room)
        deadline = time.monotonic() + 180
        while "is full" not in run.program.log_text() and time.monotonic() < deadline:
            time.sleep(0.2)
        reported = "is full" in run.program.log_text()
        (room / "junk").unlink()
        same = run.end() == 0 and trial.is_undisturbed(run)
        yield row("a full disk, for a while", reported and same, reported=reported, same_weights=same)
        (room / "run").rename(room / "first")
        run = _on_full_disk(trial, room, **{"wait-seconds": 5.0})
        failed = run.end() == 1 and "is full" in run.program.log_text()
        (room / "junk").unlink()
        run = trial.cluster.run({"wait-seconds": 600.0}, out=room / "run", resume=True)
        same = run.end() == 0 and trial.is_undisturbed(run)
        yield row("a full disk, for long", failed and same, failed=failed, same_weights_resumed=same)


def _on_full_disk(trial: Trial, room: Path, **changes: float) -> Run:
    """Start a run whose disk is full from the second round on."""
    run = trial.cluster.run({**trial.settings, **changes}, out=room / "run")
    run.wait_until("training", 2)
    fill(room / "junk")
    return run


def poison(trial: Trial) -> Iterator[Row]:
    """One of four sites sends forged updates: in clear it is excluded; masked, the run pauses, and names it."""
    trial.cluster.programs[f"node {trial.victim}"].end()
    yield from _in_clear(trial)
    for forgery in MASKED_FORGERIES:
        yield _masked(trial, forgery)
    trial.cluster.programs[f"node {trial.victim}"].end()


def _in_clear(trial: Trial) -> Iterator[Row]:
    clear = {**trial.settings, "secure-aggregation": False, "rounds": 2, "sites": 3}
    of_four = {**clear, "sites": 4, "quorum": 3}
    expected = dict.fromkeys(FORGERIES, trial.rows(trial.uninterrupted(**clear)))
    forge(trial, "nan later")
    expected["old round"] = trial.rows(trial.uninterrupted(**of_four))  # its first round is an honest one
    forge(trial, "old run")
    trial.uninterrupted(**of_four)  # honest: it keeps its update
    for forgery in FORGERIES:
        forge(trial, forgery)
        run = trial.cluster.run(of_four)
        if run.end():
            yield row(f"in clear: {forgery}", False, log=run.program.log_text()[-300:])
            continue
        quarantined, rows = run.record.quarantined, trial.rows(run).items()
        difference = max(float(np.abs(values - expected[forgery][name]).max()) for name, values in rows)
        yield row(
            f"in clear: {forgery}",
            list(quarantined) == [trial.victim] and difference <= 1e-12,
            named=quarantined.get(trial.victim, ""),
            largest_difference=difference,
        )


def _masked(trial: Trial, forgery: str) -> Row:
    """Return what a forgery does to a masked run, and whether it ends undisturbed once the site is honest again."""
    forge(trial, forgery)
    run = trial.cluster.run({**trial.settings, "round-seconds": 60.0, "wait-seconds": 10.0})
    status, log = run.end(), run.program.log_text()
    named = next((line for line in log.splitlines() if f"still missing is {trial.victim} (" in line), "")
    trial.cluster.connect_node(trial.victim)
    resumed = trial.cluster.run({"wait-seconds": 600.0}, out=run.out, resume=True)
    same = resumed.end() == 0 and trial.is_undisturbed(resumed)
    return row(f"masked: {forgery}", status == 1 and bool(named) and same, named=named or log[-300:], same_weights=same)


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
    """Return sorted random moments of a run, in rounds: the first half of each round is its training."""
    drawn = Random(seed)  # noqa: S311  no secret depends on it
    return sorted(drawn.uniform(0.0, rounds) for _ in range(number))


def row(case: str, as_designed: bool, **figures: Any) -> Row:  # noqa: FBT001  the first thing a row says
    """Return one row of the suite's report."""
    return {"case": case, "as designed": as_designed, **figures}


def figures(record: FederationRecord) -> list[float]:
    """Return the figures of each round and of the test."""
    counts = [*(r.together for r in record.rounds), record.test_counts()]
    return [value for of in counts for value in metrics(of).to_mapping().values() if isinstance(value, float)]


def largest_difference(one: list[float], other: list[float]) -> float:
    """Return the largest difference of two lists of figures; infinity if their lengths differ."""
    return float(np.abs(np.array(one) - other).max()) if len(one) == len(other) else float("inf")


def same_rows(one: Rows, other: Rows) -> bool:
    """Return whether two models are equal bit for bit."""
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def status_of_post(cluster: Cluster, path: str) -> int:
    """Return the status of the proxy's response to a POST of this path, which is sent as it is."""
    context = ssl.create_default_context(cafile=str(cluster.state / "tls" / "ca.pem"))
    connection = http.client.HTTPSConnection("127.0.0.1", cluster.port, context=context, timeout=20)
    connection.request("POST", path, body=b"")
    return connection.getresponse().status


def forge(trial: Trial, forgery: str) -> None:
    """Restart the victim's node so that it sends this forgery from now on."""
    cluster, domain = trial.cluster, trial.cluster.hospitals.domain
    other = KeyDomain.of_secret(bytes(32), n=domain.n, scheme=domain.scheme)
    if forgery == "epoch":
        other = domain.successor(domain.card().ca_key)
    variables = {
        "FEDPP_POISON": forgery,
        "FEDPP_POISON_DOMAIN": other.card().fingerprint,
        "FEDPP_POISON_KEPT": str(cluster.folder / "kept"),
    }
    cluster.connect_node(trial.victim, environment={**altered("poison"), **variables})


@contextmanager
def slowed(cluster: Cluster, name: str, times: int) -> Iterator[None]:
    """Make a site's ClientApps `times` slower for this block."""
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
    """Yield a folder with room for `megabytes`; raise `FederationError` where none can be made."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise FederationError(f"cannot mount a small disk ({done.stderr.strip()}): run as root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
