"""Cluster: a whole deployment on this machine, the coordinator with nginx, and a vault and a SuperNode a hospital."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

from coordinator.operator.bundle_build import built
from coordinator.server.progress import Progress
from coordinator.server.run_state import RunState
from fedpp.config.run_config import SiteConfig
from fedpp.config.site_policy import SitePolicy
from fedpp.errors import FederationError
from fedpp.processes import QUIET_FLOWER, free_port
from fedpp.protocol.run_record import RECORD, FederationRecord
from simulations.hospitals import Hospitals
from simulations.simulated_federation import ROOT
from sites.node.node_identity import create_identity

ALTERED = ROOT / "simulations" / "chaos" / "altered"
START_SECONDS, CALL_SECONDS = 120.0, 300.0
CONNECTED = "note: joined as node "  # `join` prints it when SuperLink has accepted the node
Settings = Mapping[str, str | int | float]
NO_VARIABLES: Mapping[str, str] = MappingProxyType({})


class Program:
    """Running program, and the log file of its messages."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] = NO_VARIABLES,
        *,
        by: Sequence[str] = (sys.executable, "-m"),
    ) -> None:
        """Start it: a Python module, or any command with an empty `by`."""
        self.log = log
        with log.open("ab") as output:
            self._from = output.tell()
            self.process = subprocess.Popen(
                [*by, *command],
                cwd=ROOT,
                env={**os.environ, **QUIET_FLOWER, "TF_DETERMINISTIC_OPS": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def log_text(self) -> str:
        """Return the messages that it has printed."""
        return self.log.read_bytes()[self._from :].decode(errors="replace")

    def wait_for(self, sign: str) -> None:
        """Wait until it has printed `sign`; raise `FederationError` as `wait_until` does."""
        self.wait_until(lambda: sign in self.log_text(), START_SECONDS, f"no {sign!r} in {self.log}")

    def wait_until(self, reached: Callable[[], bool], seconds: float, failure: str) -> None:
        """Wait for a state; raise `FederationError` if the program ends before, or takes longer than this."""
        deadline = time.monotonic() + seconds
        while not reached():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise FederationError(f"{failure}: {self.log_text()[-500:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill it without its children, as the kernel kills one process."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Terminate it and wait; kill it after 30 seconds."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()


@dataclass
class Cluster:
    """Running deployment; `programs` has `up`, each run, and the vault and the node of each site by name."""

    folder: Path
    hospitals: Hospitals
    port: int  # of the proxy, to which sites connect
    superlink: int
    programs: dict[str, Program] = field(default_factory=dict)
    runs: int = 0

    @property
    def state(self) -> Path:
        """Return the coordinator's state folder."""
        return self.folder / "coordinator"

    @property
    def names(self) -> tuple[str, ...]:
        """Return the sites' names."""
        return tuple(site.dataset.name for site in self.hospitals.sites)

    def end(self) -> None:
        """End all programs, the newest first."""
        for program in reversed(self.programs.values()):
            program.end()

    def start_up(self) -> None:
        """Start the coordinator's servers."""
        ports = ("--port", str(self.superlink), "--listen", f"127.0.0.1:{self.port}")
        self.programs["up"] = Program(["coordinator", "up", "--state", str(self.state), *ports], self.folder / "up.log")
        self.programs["up"].wait_for("coordinator ready at")

    def enrol(self, name: str) -> None:
        """Make a site's node key and enrol it."""
        public = create_identity(self.identity(name))
        call(["coordinator", "enrol", "--state", str(self.state), str(public), name])

    def identity(self, name: str) -> Path:
        """Return the folder of a site's node key."""
        return self.folder / "identities" / name

    def start_vault(self, site: SiteConfig) -> None:
        """Approve this checkout's bundle in a site's policy, and start its vault."""
        name = site.dataset.name
        policy = SitePolicy.load(site.policy)
        bundles = (*policy.bundles, sha256(built()).hexdigest())
        site.policy.write_text(policy.changed(bundles=bundles, min_other_sites=1).to_yaml())
        domain = site.evaluation_key.parents[1]
        self.programs[f"vault {name}"] = Program(
            [
                *("sites", "vault", "--domain", str(domain), "--dataset", str(site.dataset)),
                *("--passphrase-file", str(self.hospitals.passphrase_file), "--address", site.vault),
                *("--policy", str(site.policy), "--audit-log", str(self.folder / f"audit-{name}.log")),
            ],
            self.folder / f"vault-{name}.log",
        )
        self.programs[f"vault {name}"].wait_for("vault ready")

    def start_node(
        self,
        name: str,
        address: str | None = None,
        *,
        identity: str | None = None,
        environment: Mapping[str, str] = NO_VARIABLES,
    ) -> None:
        """Start a site's SuperNode, by default with its own key, without waiting for its connection."""
        site = self.site(name)
        self.programs[f"node {identity or name}"] = Program(
            [
                *("sites", "join", "--superlink", address or f"127.0.0.1:{self.port}"),
                *("--ca", str(self.state / "tls" / "ca.pem"), "--identity", str(self.identity(identity or name))),
                *("--dataset", str(site.dataset), "--evaluation-key", str(site.evaluation_key)),
                *("--vault", site.vault, "--policy", str(site.policy)),
            ],
            self.folder / f"node-{identity or name}.log",
            environment,
        )

    def connect_node(
        self, name: str, address: str | None = None, environment: Mapping[str, str] = NO_VARIABLES
    ) -> None:
        """End a site's SuperNode if it runs, start it, and wait until SuperLink has accepted it."""
        if program := self.programs.get(f"node {name}"):
            program.end()
        self.start_node(name, address, environment=environment)
        self.programs[f"node {name}"].wait_for(CONNECTED)

    def site(self, name: str) -> SiteConfig:
        """Return a site's configuration."""
        return self.hospitals.sites[self.names.index(name)]

    def run(
        self, settings: Settings, *, out: Path | None = None, resume: bool = False, more: Sequence[str] = ()
    ) -> "Run":
        """Start a run, or resume the one in `out`, with `more` options."""
        self.runs += 1
        out = out or self.folder / f"run-{self.runs}"
        card = self.folder / "domain.card"
        card.write_text(self.hospitals.domain.card().to_json())
        texts = [text for name, value in settings.items() if name != "sites" for text in ("--set", _text(name, value))]
        start = ["--resume"] if resume else ["--domain", str(card), "--sites", str(settings["sites"])]
        command = ["coordinator", "run", "--state", str(self.state), "--out", str(out), "--json", *start, *texts, *more]
        program = self.programs[f"run {self.runs}"] = Program(command, self.folder / f"run-{self.runs}.log")
        return Run(program, RunState(out))

    def launchers(self, name: str) -> list[int]:
        """Return the processes of a site's ClientApps."""
        identity, found = str(self.identity(name)), []
        for process in self.processes("multiprocessing.forkserver"):  # and the processes they are forked from
            with suppress(OSError):  # it has ended
                if identity in Path(f"/proc/{process}/environ").read_text():
                    found.append(process)
        return found

    def processes(self, program: str) -> list[int]:
        """Return the ids of the processes of this cluster whose command contains this text."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                environment = (process / "environ").read_bytes()
            except OSError:
                continue
            if program in command and str(self.folder).encode() in environment + command.encode():
                found.append(int(process.name))
        return found

    def kill(self, *programs: str) -> int:
        """Kill all processes of these programs; return their number."""
        victims = [process for program in programs for process in self.processes(program)]
        for victim in victims:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        return len(victims)

    def trainings(self) -> int:
        """Return the number of requests for an update that a vault did not have: each lets its site train."""
        logs = [(self.folder / f"audit-{name}.log").read_text().splitlines() for name in self.names]
        records = [json.loads(line) for log in logs for line in log[1:]]
        return sum(of.get("method") == "TrainRound" and of.get("bytes") == 0 for of in records)


@dataclass
class Run:
    """Run of a cluster."""

    program: Program
    folder: RunState

    @property
    def out(self) -> Path:
        """Return the folder of its results."""
        return self.folder.out

    @property
    def record(self) -> FederationRecord:
        """Return the coordinator's record of the ended run."""
        return FederationRecord.load(self.out / RECORD)

    def is_running(self) -> bool:
        """Return whether it has not ended."""
        return self.program.process.poll() is None

    def progress(self) -> Progress:
        """Return its progress."""
        return Progress.load(self.folder.progress)

    def wait_until(self, phase: str, number: int) -> None:
        """Wait until it has reached this phase of this round."""

        def reached() -> bool:
            progress = self.progress()
            return progress.ended or progress.round > number or (progress.round, progress.phase) == (number, phase)

        self.program.wait_until(reached, CALL_SECONDS, f"the run did not reach {phase} of round {number}")

    def end(self, seconds: float = 900.0) -> int:
        """Wait until it ends; return its exit status."""
        return self.program.process.wait(seconds)

    def completed(self, seconds: float = 900.0) -> FederationRecord:
        """Wait until it ends; return its record, or raise `FederationError` if it has failed."""
        if status := self.end(seconds):
            raise FederationError(f"the run ended with status {status}: {self.program.log_text()[-500:]}")
        return self.record


@contextmanager
def cluster(folder: Path, hospitals: Hospitals, environment: Mapping[str, str] = NO_VARIABLES) -> Iterator[Cluster]:
    """Run a deployment of these hospitals for this block, its nodes with these environment variables."""
    running = Cluster(folder, hospitals, free_port(), free_port())
    with ExitStack() as stack:
        stack.callback(running.end)
        running.start_up()
        for site in hospitals.sites:
            running.enrol(site.dataset.name)
            running.start_vault(site)
            running.start_node(site.dataset.name, environment=environment)
        for name, program in running.programs.items():
            if name.startswith("node "):
                program.wait_for(CONNECTED)
        yield running


def altered(how: str) -> dict[str, str]:
    """Return the environment of a site whose processes are altered: `poison` or `untrained`."""
    return {"PYTHONPATH": os.pathsep.join(map(str, (ALTERED / how, ALTERED)))}


def call(command: Sequence[str]) -> str:
    """Run a command of the project to its end; return its output, raise `FederationError` if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, **QUIET_FLOWER},
        capture_output=True,
        text=True,
        timeout=CALL_SECONDS,
        check=False,
    )
    if done.returncode:
        raise FederationError(f"{' '.join(command[:2])} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def _text(name: str, value: str | float) -> str:
    return f"{name}={str(value).lower() if isinstance(value, bool) else value}"
