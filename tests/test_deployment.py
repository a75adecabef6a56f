"""A coordinator, two hospitals, two rounds on ciphertext: real processes from keygen to metrics.

Every process here has the test's folder in its arguments or its environment, so none can hide when it should
be gone.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedpp.cipher.params import DomainCard
from fedpp.learning.metrics import metrics
from fedpp.protocol.federation import FederationRecord
from simulations.phantom import write_phantom

ROOT = Path(__file__).parents[1]
SITE = [sys.executable, "-m", "sites.cli"]
COORDINATOR = [sys.executable, "-m", "coordinator"]
SETTINGS = {
    "rounds": 2,
    "epochs": 1,
    "batch-size": 4,
    "seed": 3,
    "dtype": "float64",
    "filters": "4,8",
    "dense": 8,
    "lstm": 8,
}


@dataclass(frozen=True)
class Deployment:
    """Where everything of a running deployment lies."""

    folder: Path
    sockets: Path  # a Unix socket's path must be short

    @property
    def state(self) -> Path:
        """Return the coordinator's state."""
        return self.folder / "coordinator"

    @property
    def card(self) -> Path:
        """Return the domain's card."""
        return self.folder / "domain" / "domain.card"

    @property
    def evaluation_key(self) -> Path:
        """Return the trainers' key."""
        return self.folder / "domain" / "trainer" / "domain.eval"

    def dataset(self, site: str) -> Path:
        """Return a site's dataset, under a name with spaces and quotes."""
        return self.folder / f'it\'s the "data" of {site}, x=1'

    def vault(self, site: str) -> str:
        """Return the address of a site's vault."""
        return f"unix:{self.sockets / site}.sock"

    def policy(self, site: str) -> Path:
        """Return what a site allows, in a file of a name with spaces and quotes."""
        return self.folder / f'policy of "{site}".yaml'

    def run(self, out: Path, *, sites: int, more: Sequence[str] = ()) -> list[str]:
        """Return the command of a run."""
        return [
            *(*COORDINATOR, "run", "--state", str(self.state), "--domain", str(self.card)),
            *("--sites", str(sites), "--out", str(out), *more),
        ]


def call(command: Sequence[str], status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == status, done.stderr
    return done


@contextmanager
def serving(
    log: Path, command: Sequence[str], sign: str, number: int = signal.SIGTERM, status: int = 0
) -> Iterator[subprocess.Popen[str]]:
    """Run a server from the sign in its output to the end of the block, where the signal must end it."""
    with log.open("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True)
        try:
            wait_for(log, process, sign)
            yield process
        finally:
            process.send_signal(number)
            ended = process.wait(timeout=30)
        assert ended == status, log.read_text()


def wait_for(log: Path, process: subprocess.Popen[str], sign: str) -> None:
    deadline = time.monotonic() + 60
    while sign not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def processes_of(folder: Path, program: str = "") -> dict[int, str]:
    """Return the command lines of all live processes that know this folder and run this program."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
            zombie = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
        command, others = arguments.replace(b"\0", b" ").decode(), not zombie and process.name != str(os.getpid())
        if others and program in command and str(folder).encode() in arguments + environment:
            found[int(process.name)] = command
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Keys, two encrypted datasets, two vaults, a coordinator, and two sites that joined; then nothing."""
    folder = tmp_path_factory.mktemp("deployment")
    with ExitStack() as stack:
        d = Deployment(folder, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedpp-"))))
        passphrase = folder / "passphrase"
        passphrase.touch(mode=0o600)
        passphrase.write_text("correct horse battery staple\n")
        secret = ["--domain", str(d.card.parent), "--passphrase-file", str(passphrase)]
        call([*SITE, "keygen", "--out", str(d.card.parent), "--passphrase-file", str(passphrase)])
        raw = write_phantom(folder / "raw", hospitals=2, patients=8, visits=2, size=32, seed=5)
        for site, images in zip("ab", raw, strict=True):
            shape = ["--frames", "2", "--size", "16", "--classes", "stable,growing", "--dtype", "float64"]
            shape += ["--split", "stratified"]  # by hash, one domain in 14 would have no sequence for validation
            call([*SITE, "ingest", str(images), *secret, "--out", str(d.dataset(site)), *shape])
            command = [*SITE, "vault", *secret, "--dataset", str(d.dataset(site)), "--address", d.vault(site)]
            stack.enter_context(serving(folder / f"vault-{site}.log", command, "vault ready"))
        bundle = call([*COORDINATOR, "bundle"]).stdout.strip()
        address = f"127.0.0.1:{free_port()}"
        command = [*COORDINATOR, "up", "--state", str(d.state), "--port", address.rpartition(":")[2]]
        stack.enter_context(serving(folder / "up.log", command, "coordinator ready at"))
        for site in "ab":
            identity = folder / f"identity of {site}"
            call([*SITE, "identity", "--out", str(identity)])
            call([*COORDINATOR, "enrol", "--state", str(d.state), str(identity / "node.pub"), site])
            policy = str(d.policy(site))
            call([*SITE, "policy", "--dataset", str(d.dataset(site)), "--out", policy])
            call([*SITE, "approve", bundle, "--policy", policy])
            command = [
                *(*SITE, "join", "--name", site, "--superlink", address),
                *("--ca", str(d.state / "tls" / "ca.pem"), "--identity", str(identity)),
                *("--dataset", str(d.dataset(site)), "--evaluation-key", str(d.evaluation_key)),
                *("--vault", d.vault(site), "--policy", policy),
            ]
            stack.enter_context(serving(folder / f"join-{site}.log", command, "SuperNode ID"))
        yield d
        assert len(processes_of(folder, "bin/flower-superlink")) == 1
        assert len(processes_of(folder, "bin/flower-supernode")) == 2
    assert processes_of(folder) == {}


@pytest.fixture(scope="module")
def trained(deployment: Deployment) -> tuple[FederationRecord, dict[str, float | None]]:
    """Return the deployment's federation, and the metrics that the coordinator printed."""
    settings = [text for name, value in SETTINGS.items() for text in ("--set", f"{name}={value}")]
    out = deployment.folder / 'out "1" it\'s'
    done = call(deployment.run(out, sites=2, more=[*settings, "--json"]))
    return FederationRecord.load(out / "federation.json"), json.loads(done.stdout)


def test_two_rounds_equal_the_simulation(
    deployment: Deployment, trained: tuple[FederationRecord, dict[str, float | None]]
) -> None:
    """Deployed and simulated federations of the same sites, seed and settings have equal metrics (float64)."""
    out = deployment.folder / "simulated"
    defaults = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    run = {
        **defaults,  # of the deployed run, too
        "domain": DomainCard.load(deployment.card).fingerprint,
        "out": str(out),
        "sites": 2,
        "wait-seconds": 120.0,
        "reply-seconds": 120.0,
        **SETTINGS,
    }
    sites = [
        {
            "name": site,
            "dataset": str(deployment.dataset(site)),
            "evaluation-key": str(deployment.evaluation_key),
            "vault": deployment.vault(site),
            "policy": str(deployment.policy(site)),
        }
        for site in "ab"
    ]
    program = (
        "import json, sys; from fedpp.config import SiteConfig; from simulations.federation import federate; "
        "sites, run = json.loads(sys.argv[1]); federate([SiteConfig.from_mapping(s) for s in sites], run)"
    )
    call([sys.executable, "-c", program, json.dumps([sites, run])])

    deployed, simulated = trained[0], FederationRecord.load(out / "federation.json")
    assert [r.number for r in deployed.rounds] == [1, 2]
    assert [r.sites for r in deployed.rounds] == [("a", "b"), ("a", "b")]
    for ours, theirs in zip(
        [*(r.validation for r in deployed.rounds), deployed.test_counts()],
        [*(r.validation for r in simulated.rounds), simulated.test_counts()],
        strict=True,
    ):
        assert ours.loss_sum == pytest.approx(theirs.loss_sum, abs=1e-6)
        assert ours.confusion == theirs.confusion
        assert ours.examples == theirs.examples > 0
        assert metrics(ours).to_mapping() == pytest.approx(metrics(theirs).to_mapping(), abs=1e-6)


def test_run_prints_the_metrics_of_its_record(
    trained: tuple[FederationRecord, dict[str, float | None]],
) -> None:
    """What `run --json` prints is the metrics of the test counts in federation.json."""
    record, printed = trained
    assert printed == metrics(record.test_counts()).to_mapping()
    assert printed["loss"] is not None


@pytest.mark.usefixtures("trained")
def test_a_site_that_withdraws_its_approval_is_named(deployment: Deployment) -> None:
    """The next run is refused by that site alone, without a restart, and the coordinator's last line says why."""
    approval = [*SITE, "approve", call([*COORDINATOR, "bundle"]).stdout.strip()]
    approval += ["--policy", str(deployment.policy("b"))]
    call([*approval, "--remove"])
    command = deployment.run(deployment.folder / "withdrawn", sites=2, more=["--set", "wait-seconds=10"])
    reason = call(command, status=1).stderr.splitlines()[-1]
    call(approval)
    assert "the run needs 2 sites and admitted 1. node " in reason
    assert reason.endswith(f"no answer: this site has not approved bundle {approval[-3]}: ask its staff to review it")


def test_failed_run_says_why(deployment: Deployment) -> None:
    """A run without enough sites ends with status 1 and the ServerApp's reason as the last line."""
    command = deployment.run(deployment.folder / "failed", sites=3, more=["--set", "wait-seconds=1"])
    done = call(command, status=1)
    assert done.stderr.splitlines()[-1] == (
        "coordinator run: the run ended failed: the run needs 3 sites, 2 connected within 1 s: "
        "check that every site has joined"
    )
    assert done.stdout == ""


def test_sigterm_stops_the_run(deployment: Deployment) -> None:
    """A run that is told to end is stopped at the SuperLink, too, and writes no result."""
    out, log = deployment.folder / "stopped", deployment.folder / "stopped.log"
    with log.open("w+") as output:
        process = subprocess.Popen(deployment.run(out, sites=3), cwd=ROOT, stderr=output, text=True)
        wait_for(log, process, "started")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 1
    assert log.read_text().splitlines()[-1].startswith("coordinator run: the run ended stopped")
    assert not (out / "federation.json").exists()


def test_a_key_is_enrolled_once(deployment: Deployment) -> None:
    """Enrolling a key again fails with one clear line."""
    key = deployment.folder / "identity of a" / "node.pub"
    done = call([*COORDINATOR, "enrol", "--state", str(deployment.state), str(key), "again"], status=1)
    assert done.stderr == f"coordinator enrol: the key {key} is enrolled already\n"


def test_nothing_phones_home(deployment: Deployment) -> None:
    """Every Flower process runs with telemetry, update check and dependency installation off."""
    wanted = {
        b"FLWR_TELEMETRY_ENABLED=0",
        b"FLWR_DISABLE_UPDATE_CHECK=1",
        b"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1",
    }
    processes = processes_of(deployment.folder, "bin/flower-") | processes_of(deployment.folder, "sites.executor")
    assert len(processes) == 6
    for process in processes:
        environment = Path(f"/proc/{process}/environ").read_bytes()
        assert wanted <= set(environment.split(b"\0"))
