"""A whole deployment on this machine: coordinator with nginx, and for each hospital a vault and a SuperNode."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
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
from sites.node.node_identity import create_identity

ROOT = Path(__file__).parents[2]
ALTERED = ROOT / "simulations" / "chaos" / "altered"
START_SECONDS, CALL_SECONDS = 120.0, 300.0
CONNECTED = "SuperNode ID"  # what a SuperNode logs once SuperLink let it in
Settings = Mapping[str, str | int | float]
NOTHING: Mapping[str, str] = MappingProxyType({})


class Program:
    """One program of ours, and its messages in a file."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] = NOTHING,
        *,
        by: Sequence[str] = (sys.executable, "-m"),
    ) -> None:
        """Start it, a module of ours unless it is run `by` nothing."""
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

    def told(self) -> str:
        """Return what it printed."""
        return self.log.read_bytes()[self._from :].decode(errors="replace")

    def wait_for(self, sign: str) -> None:
        """Wait until it printed this; raise `FederationError` if it does not."""
        deadline = time.monotonic() + START_SECONDS
        while sign not in self.told():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise FederationError(f"no {sign!r} in {self.log}: {self.told()[-500:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """Kill it, as a machine that loses power does, and nothing else: its children must see to themselves."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Ask it to end, and wait."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()


@dataclass
class Cluster:
    """The running deployment; programs by name: `up`, each run, and of each site its vault and its node."""

    folder: Path
    hospitals: Hospitals
    port: int  # where sites call
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
        """End all programs, the last one first."""
        for program in reversed(self.programs.values()):
            program.end()

    def start_up(self) -> None:
        """Start the coordinator's servers."""
        ports = ("--port", str(self.superlink), "--listen", f"127.0.0.1:{self.port}")
        self.programs["up"] = Program(["coordinator", "up", "--state", str(self.state), *ports], self.folder / "up.log")
        self.programs["up"].wait_for("coordinator ready at")

    def enrol(self, name: str) -> None:
        """Make a site's node key, and enrol it."""
        public = create_identity(self.identity(name))
        call(["coordinator", "enrol", "--state", str(self.state), str(public), name])

    def identity(self, name: str) -> Path:
        """Return the folder of a site's node key."""
        return self.folder / "identities" / name

    def start_vault(self, site: SiteConfig) -> None:
        """Start a site's vault, and approve this checkout's bundle."""
        name = site.dataset.name
        policy = SitePolicy.load(site.policy)
        site.policy.write_text(
            SitePolicy(
                (*policy.bundles, sha256(built()).hexdigest()),
                policy.datasets,
                evaluation=policy.evaluation,
                min_other_sites=1,
                secure_aggregation=policy.secure_aggregation,
            ).to_yaml()
        )
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
        environment: Mapping[str, str] = NOTHING,
    ) -> None:
        """Start a site's SuperNode, by default with its own key, and do not wait until it is let in."""
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

    def site(self, name: str) -> SiteConfig:
        """Return a site's addresses."""
        return self.hospitals.sites[self.names.index(name)]

    def run(self, settings: Settings, *, out: Path | None = None, resume: bool = False) -> "Run":
        """Begin a run, or go on with the one in `out`."""
        self.runs += 1
        out = out or self.folder / f"run-{self.runs}"
        card = self.folder / "domain.card"
        card.write_text(self.hospitals.domain.card().to_json())
        texts = [text for name, value in settings.items() if name != "sites" for text in ("--set", _text(name, value))]
        begun = ["--resume"] if resume else ["--domain", str(card), "--sites", str(settings["sites"])]
        command = ["coordinator", "run", "--state", str(self.state), "--out", str(out), "--json", *begun, *texts]
        program = self.programs[f"run {self.runs}"] = Program(command, self.folder / f"run-{self.runs}.log")
        return Run(program, RunState(out))

    def launchers(self, name: str) -> list[int]:
        """Return the processes of a site that answer questions."""
        identity, found = str(self.identity(name)), []
        for process in self.processes("multiprocessing.forkserver"):  # and what they are forked from
            with suppress(OSError):  # it ended just now
                if identity in Path(f"/proc/{process}/environ").read_text():
                    found.append(process)
        return found

    def processes(self, program: str) -> list[int]:
        """Return the ids of the processes below this folder whose command has this text."""
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
        """Kill all processes of these programs; return how many there were."""
        victims = [process for program in programs for process in self.processes(program)]
        for victim in victims:
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return len(victims)

    def trainings(self) -> int:
        """Return how many updates the vaults masked so far: one a training that came to its end."""
        return sum((self.folder / f"audit-{name}.log").read_text().count('"method":"Mask"') for name in self.names)


@dataclass
class Run:
    """A run that goes on."""

    program: Program
    folder: RunState

    @property
    def out(self) -> Path:
        """Return the folder of its results."""
        return self.folder.out

    @property
    def record(self) -> FederationRecord:
        """Return what the coordinator wrote of it when it had ended."""
        return FederationRecord.load(self.out / RECORD)

    def goes_on(self) -> bool:
        """Tell whether it has not ended."""
        return self.program.process.poll() is None

    def progress(self) -> Progress:
        """Return where it is."""
        return Progress.load(self.folder.progress)

    def wait_until(self, phase: str, number: int) -> None:
        """Wait until it is in this phase of this round, or beyond."""
        deadline = time.monotonic() + CALL_SECONDS
        while True:
            progress = self.progress()
            if progress.ended or progress.round > number or (progress.round, progress.phase) == (number, phase):
                return
            if not self.goes_on() or time.monotonic() > deadline:
                raise FederationError(
                    f"the run did not come to {phase} of round {number}: {self.program.told()[-500:]}"
                )
            time.sleep(0.05)

    def end(self, seconds: float = 900.0) -> int:
        """Wait until it ends by itself; return its exit status."""
        return self.program.process.wait(seconds)


@contextmanager
def cluster(folder: Path, hospitals: Hospitals, environment: Mapping[str, str] = NOTHING) -> Iterator[Cluster]:
    """Run a deployment of these hospitals, its nodes in this environment; all of it ends with the block."""
    made = Cluster(folder, hospitals, free_port(), free_port())
    with ExitStack() as stack:
        stack.callback(made.end)
        made.start_up()
        for site in hospitals.sites:
            made.enrol(site.dataset.name)
            made.start_vault(site)
            made.start_node(site.dataset.name, environment=environment)
        for name, program in made.programs.items():
            if name.startswith("node "):
                program.wait_for(CONNECTED)
        yield made


def altered(how: str) -> dict[str, str]:
    """Return the environment in which a site's processes are altered: `poison` or `untrained`."""
    return {"PYTHONPATH": os.pathsep.join(map(str, (ALTERED / how, ALTERED)))}


def call(command: Sequence[str]) -> str:
    """Run one of our programs to its end; return what it printed, raise `FederationError` if it fails."""
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
