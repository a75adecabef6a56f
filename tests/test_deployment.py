"""A coordinator, two hospitals, two rounds on ciphertext: real processes from the first key to the second epoch."""

import json
import re
import signal
import subprocess
import sys
import tempfile
import tomllib
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from deployment import (
    COORDINATOR,
    SITE,
    TWO_USERS,
    Hospital,
    User,
    call,
    called,
    guarded,
    processes_of,
    serving,
    wait_for,
)
from hospital import site
from memory import Watch, found_in, found_in_process, watched
from relay import Recording, recorded

from coordinator.server.run_state import RunState
from fedpp.cipher.domain_card import DomainCard
from fedpp.cipher.evaluation_key import EvaluationKey
from fedpp.config.run_config import SiteConfig
from fedpp.keys import key_store
from fedpp.keys.passphrase import from_file
from fedpp.learning.metrics import Metrics, metrics
from fedpp.learning.model_file import EncryptedModel
from fedpp.processes import free_port
from fedpp.protocol.certified_model import CertifiedModel
from fedpp.protocol.membership import NO_BUNDLE
from fedpp.protocol.run_record import FederationRecord
from simulations import in_process_engine, masked_start
from simulations.phantom import write_phantom

SETTINGS = {
    "rounds": 2,
    "epochs": 1,
    "batch-size": 4,
    "seed": 3,
    "dtype": "float64",
    "architecture": "cnn",  # every ClientApp's process traces it anew
    "filters": "4,8",
    "dense": 8,
    "lstm": 8,
}


@dataclass(frozen=True)
class Deployment:
    """A running deployment: its folders, addresses and processes."""

    folder: Path
    east: Hospital  # the domain's founder
    west: Hospital
    address: str  # of the coordinator's proxy
    relay: str  # the same, through the recording relay: East's
    recording: Recording  # of the traffic between East and the coordinator
    services: ExitStack  # the hospitals' vaults and nodes

    @property
    def hospitals(self) -> tuple[Hospital, Hospital]:
        """Return both."""
        return self.east, self.west

    @property
    def state(self) -> Path:
        """Return the coordinator's state."""
        return self.folder / "coordinator"

    @cached_property
    def bundle(self) -> str:
        """Return the hash of this checkout's bundle."""
        return call([*COORDINATOR, "bundle"]).stdout.strip()

    def card(self, epoch: int = 1) -> Path:
        """Return the domain's card."""
        return self.east.domain(epoch) / "domain.card"

    def run(self, out: Path, *, sites: int, more: Sequence[str] = (), epoch: int = 1) -> list[str]:
        """Return the command of a run."""
        return [
            *(*COORDINATOR, "run", "--state", str(self.state), "--domain", str(self.card(epoch))),
            *("--sites", str(sites), "--out", str(out), *more),
        ]


def found_a_domain(east: Hospital, west: Hospital) -> None:
    """East founds a domain and invites West; they compare verification phrases on the telephone."""
    east.secret("keygen", "--site", "East", "--out", east.domain(1))
    west_phrase = phrase_of(west.secret("request", "--site", "West", "--out", west.folder / "secret" / "identity"))
    post = east.folder.parent / "post"  # files sent by mail, readable by anybody
    post.mkdir()
    east.secret_zone.own(post, mode=0o755)
    carry(west.folder / "secret" / "identity" / "site.request", post / "west.request")
    to = ("--to", post / "west.request", "--phrase", west_phrase)
    phrase = phrase_of(east.secret("invite", "--domain", east.domain(1), *to, "--out", post / "west.invitation"))
    carry(post / "west.invitation", post / "west.invitation")
    identity = ("--identity", west.folder / "secret" / "identity", "--phrase", phrase)
    west.secret("accept", post / "west.invitation", *identity, "--out", west.domain(1))


def figures_of(printed: dict[str, Any]) -> dict[str, float | None]:
    """Return the figures among what a command printed of a test."""
    return {field.name: printed[field.name] for field in fields(Metrics)}


def phrase_of(printed: str) -> str:
    """Return the verification phrase that a command printed last."""
    return printed.strip().splitlines()[-1].strip()


def carry(source: Path, target: Path) -> None:
    """Copy a file to where everybody can read it."""
    content = source.read_bytes()
    target.write_bytes(content)
    target.chmod(0o644)


@contextmanager
def running(d: Deployment, hospital: Hospital, epoch: int) -> Iterator[None]:
    """Run a hospital's vault and its SuperNode, each as its own user."""
    log = d.folder / f"{hospital.name}-{epoch}"
    superlink = d.relay if hospital is d.east else d.address
    vault, join = hospital.vault_command(epoch), hospital.join_command(epoch, superlink, d.folder / "post" / "ca.pem")
    with (
        serving(log.with_suffix(".vault"), vault, "vault ready", user=hospital.secret_zone),
        serving(log.with_suffix(".join"), join, "note: joined as node ", user=hospital.trainer),
    ):
        yield


def decide(hospital: Hospital, epoch: int, bundle: str) -> None:
    """Write a hospital's policy: this dataset, this checkout's bundle, and evaluation of few sequences."""
    policy = hospital.policy(epoch)
    hospital.zone("policy", "--dataset", hospital.dataset(epoch), "--out", policy)
    text = policy.read_text().replace("min-patients: 10", "min-patients: 1")
    text = text.replace("server-learning-rate: 0.001", "server-learning-rate: 1.0e-9")  # a model moves to a new epoch
    policy.write_text(text.replace("two-sites: refused", "two-sites: accepted"))
    hospital.zone("approve", bundle, "--policy", policy)


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    """Run two hospitals of one domain, with datasets, vaults and nodes, and a coordinator; no process is left after."""
    with tempfile.TemporaryDirectory(prefix="fedpp-") as name:
        folder = Path(name)  # other users cannot enter pytest's own folders
        folder.chmod(0o755)
        with guarded(folder / "calls"), ExitStack() as stack:
            yield built(folder, stack)
        assert processes_of(folder) == {}


def built(folder: Path, stack: ExitStack) -> Deployment:
    """Set up two hospitals that wait for a run; all processes end with the stack."""
    east, west = (Hospital.make(name, folder, number) for number, name in enumerate(("east", "west"), 1))
    found_a_domain(east, west)
    raw = write_phantom(folder / "raw", hospitals=2, patients=8, visits=2, size=32, seed=5)
    for hospital, images in zip((east, west), raw, strict=True):
        shape = ("--frames", 2, "--size", 16, "--classes", "stable,growing", "--dtype", "float64")
        shape += ("--split", "stratified")  # by hash, one domain in 14 would have no sequence for validation
        hospital.secret("ingest", images, "--domain", hospital.domain(1), "--out", hospital.dataset(1), *shape)
        hospital.hand_over(1)
    port = free_port()  # nginx, for the sites
    up = [*COORDINATOR, "up", "--state", str(folder / "coordinator"), "--port", str(free_port())]
    up += ["--listen", f"127.0.0.1:{port}"]
    stack.enter_context(serving(folder / "up.log", up, "coordinator ready at"))
    tls = folder / "coordinator" / "tls"
    carry(tls / "ca.pem", folder / "post" / "ca.pem")
    relay, recording = stack.enter_context(recorded(port, tls))
    services = stack.enter_context(ExitStack())
    d = Deployment(folder, east, west, f"127.0.0.1:{port}", f"127.0.0.1:{relay}", recording, services)
    for hospital in d.hospitals:
        hospital.train("identity", "--out", hospital.identity)
        call([*COORDINATOR, "enrol", "--state", str(d.state), str(hospital.identity / "node.pub"), hospital.name])
        decide(hospital, 1, d.bundle)
        services.enter_context(running(d, hospital, 1))
    return d


@pytest.fixture(scope="module")
def canaries(deployment: Deployment) -> dict[str, bytes]:
    """Return all secrets of the secret zones, in bytes, hexadecimal and base64."""
    secrets: dict[str, bytes] = {}
    for hospital in deployment.hospitals:
        passphrase = from_file(hospital.passphrase)
        site = key_store.open_site(hospital.domain(1), passphrase)
        secrets[f"{hospital.name}'s identity"] = site.identity.seed_bytes()
        secrets[f"{hospital.name}'s passphrase"] = hospital.passphrase.read_bytes().strip()
        if hospital is deployment.east:
            secrets["certifying key"] = key_store.open_domain_ca(hospital.domain(1), passphrase).seed_bytes()
            secrets["domain secret"] = site.domain.secret_bytes()[:32]
            for label in (
                *("pseudonym patient", "pseudonym sequence", "pseudonym split", "certifying key"),
                *("run initial weights", "run states", "sealed states"),
            ):
                secrets[f"derived: {label}"] = site.domain.derive(label)
            for label in ("decoy digest", "decoy keystream"):
                secrets[f"derived: {label}"] = site.domain.derive(label, 16)
            secrets["derived: initial weights"] = site.domain.derive(f"initial weights {SETTINGS['seed']}", 8)
    forms = {"bytes": bytes, "hex": lambda s: s.hex().encode(), "base64": lambda s: b64encode(s)[:-3]}
    return {f"{name} ({form})": of(secret) for name, secret in secrets.items() for form, of in forms.items()}


def controls(d: Deployment) -> dict[str, bytes]:
    """Return values that a trainer does have: a search that misses them would find nothing."""
    key = EvaluationKey.load(d.east.evaluation_key(1))
    return {"evaluation key": key.matrix.tobytes(), "domain": key.domain.encode()}


@pytest.fixture(scope="module")
def seen(deployment: Deployment, canaries: Mapping[str, bytes]) -> tuple[FederationRecord, dict[str, Any], Watch]:
    """Return the first federation, its printed metrics, and the findings in its ClientApps' memory."""
    settings = [text for name, value in SETTINGS.items() for text in ("--set", f"{name}={value}")]
    out = deployment.folder / 'out "1" it\'s'

    def servers() -> dict[int, int]:
        return {found: parent(found) for found in processes_of(deployment.folder, "multiprocessing.forkserver")}

    def launched() -> Iterator[int]:
        parents = servers()
        return (launcher for launcher, server in parents.items() if server in parents)  # forked, and not a fork server

    patterns = {**canaries, **controls(deployment)}
    with watched(launched, patterns) as watch:
        done = call(deployment.run(out, sites=2, more=[*settings, "--json"]))
    watch.found |= {server: found_in_process(server, patterns) for server in servers()}  # what launchers share with it
    return FederationRecord.load(out / "federation.json"), json.loads(done.stdout), watch


def parent(process: int) -> int:
    """Return the process that started this one; 0 if it ended."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


@pytest.fixture(scope="module")
def trained(
    seen: tuple[FederationRecord, dict[str, Any], Watch],
) -> tuple[FederationRecord, dict[str, Any]]:
    """Return the first federation, and the metrics that the coordinator printed."""
    return seen[:2]


@pytest.mark.skipif(not TWO_USERS, reason="needs root")
def test_the_secret_zone_is_out_of_the_trainers_reach(deployment: Deployment) -> None:
    """Trainer and secret zone are different users; the trainer can read only its own key and the dataset."""
    for hospital, other in (deployment.hospitals, deployment.hospitals[::-1]):
        zone = hospital.folder / "secret"
        for path in (
            zone / "passphrase",
            hospital.domain(1) / "secret" / "domain.key",
            hospital.domain(1) / "domain.card",
        ):
            assert path.is_file()
            assert not hospital.trainer.can_read(path)
        for path in (hospital.evaluation_key(1), hospital.dataset(1) / "manifest.json"):
            assert hospital.trainer.can_read(path)
            assert not other.trainer.can_read(path)
    users = {name: owners(deployment, name) for name in ("-m sites vault", "sites.node.executor", "flower-supernode")}
    zones, trainers = ({getattr(h, part).uid for h in deployment.hospitals} for part in ("secret_zone", "trainer"))
    assert users == {"-m sites vault": zones, "sites.node.executor": trainers, "flower-supernode": trainers}


@pytest.mark.skipif(not TWO_USERS, reason="needs root")
def test_programs_that_a_user_cannot_reach_fail_the_tests(tmp_path: Path) -> None:
    """As root the tests never fall back to one user: an unreachable checkout or interpreter is named."""
    (tmp_path / "sites").mkdir()
    (tmp_path / "python").symlink_to(sys.executable)
    tmp_path.chmod(0o700)
    for programs in ({"checkout": tmp_path}, {"interpreter": tmp_path / "python"}):
        with pytest.raises(
            AssertionError, match=rf"user 20001 cannot reach .*{tmp_path}.*: give others search permission"
        ):
            User(20001, 20100).require_reach(**programs)
    User(20001, 20100).require_reach()


def owners(d: Deployment, program: str) -> set[int]:
    return {Path(f"/proc/{process}").stat().st_uid for process in processes_of(d.folder, program)}


def test_no_secret_of_the_domain_is_in_a_client_app_s_memory(
    seen: tuple[FederationRecord, dict[str, Any], Watch],
) -> None:
    """During training each ClientApp's memory has the evaluation key, found by the same search, and no canary."""
    watch = seen[2]
    trainers = [found for found in watch.found.values() if "evaluation key" in found]
    assert len(trainers) >= 4  # two sites, two rounds
    assert set().union(*watch.found.values()) == {"evaluation key", "domain"}


def pulled(d: Deployment, hospital: Hospital, epoch: int) -> EncryptedModel:
    """Return the first run's model, which a member pulls and unseals in its secret zone."""
    model = hospital.folder / "secret" / f"model-{epoch}.npz"
    if not model.exists():
        carry(d.folder / 'out "1" it\'s' / "model.sealed", d.folder / "post" / "model.sealed")
        hospital.secret("pull", d.folder / "post" / "model.sealed", "--domain", hospital.domain(epoch), "--out", model)
    return EncryptedModel.load(model)


@pytest.mark.usefixtures("trained")
def test_both_sites_certify_the_model(deployment: Deployment) -> None:
    """The coordinator's file has both signatures, and both sites read the same model from it."""
    model = CertifiedModel.from_bytes((deployment.folder / 'out "1" it\'s' / "model.sealed").read_bytes())
    model.require(DomainCard.load(deployment.card()).ca_key)
    assert model.certificate.signers == ("East", "West")
    east, west = (pulled(deployment, hospital, 1).rows for hospital in deployment.hospitals)
    for name, rows in east.items():
        np.testing.assert_array_equal(rows, west[name])


@pytest.mark.usefixtures("trained")
def test_no_secret_of_the_domain_is_on_the_wire(deployment: Deployment, canaries: Mapping[str, bytes]) -> None:
    """The traffic between East and the coordinator, without TLS, has no canary, and no row of the model.

    The search does find the domain's fingerprint, and a part of the sealed model.
    """
    sealed = CertifiedModel.from_bytes((deployment.folder / 'out "1" it\'s' / "model.sealed").read_bytes()).sealed
    wire = deployment.recording.content()
    present = {"domain": controls(deployment)["domain"], "model, sealed": sealed[-64:]}
    model = pulled(deployment, deployment.east, 1).rows
    rows = {name: first_rows(of) for name, of in model.items()}
    assert sum(map(len, rows.values())) > 30
    assert rows_in(wire, rows) == []
    assert found_in(wire, {**canaries, **present}) == set(present)


def first_rows(weight: np.ndarray) -> np.ndarray:
    """Return the first rows `[k, 2]` of a weight without the zero ones, which are everywhere."""
    rows = weight.reshape(-1, 2)[:8]
    return rows[np.abs(rows).min(axis=1) > 0]


def rows_in(content: bytes, rows: Mapping[str, np.ndarray]) -> list[str]:
    """Return the names of weights with a row in the content, up to the last two bytes of each float64.

    There, rows that went through a trainer's slots differ from those of the state.
    """

    def found(row: bytes) -> bool:
        return re.search(re.escape(row[2:8]) + b".." + re.escape(row[10:]), content, re.DOTALL) is not None

    return [name for name, of in rows.items() if any(found(row.astype("<f8").tobytes()) for row in of)]


def test_a_row_is_found_among_others() -> None:
    """At another alignment, with another rounding; another row is not found."""
    row = np.array([[0.1, -2.3]])
    content = b"\n.." + (row * (1 + 1e-14)).tobytes() + b"..."
    assert rows_in(content, {"near": row, "far": row * (1 + 1e-9), "turned": row[:, ::-1]}) == ["near"]


@pytest.mark.usefixtures("trained")
def test_no_secret_of_the_domain_is_in_a_file(deployment: Deployment, canaries: Mapping[str, bytes]) -> None:
    """Logs, reports, models, databases, datasets and trainers' folders have no canary; the secret zones do."""
    zones = [hospital.folder / "secret" for hospital in deployment.hospitals]
    patterns = {**canaries, **controls(deployment)}
    outside: dict[Path, set[str]] = {}
    inside: set[str] = set()
    for path in deployment.folder.rglob("*"):
        if path.is_file():
            found = found_in(path.read_bytes(), patterns)
            if any(zone in path.parents for zone in zones):
                inside |= found
            else:
                outside[path] = found
    assert {"federation.json", "model.sealed", "superlink.sqlite", "east-1.join", "east-1.vault", "domain.eval"} <= {
        path.name for path in outside
    }
    assert set().union(*outside.values()) == {"domain"}  # its fingerprint
    assert any("passphrase" in name for name in inside)


def first_weights(d: Deployment, record: FederationRecord) -> EncryptedModel:
    """Return the initial weights that both sites drew together for the first run."""
    domain = key_store.open_domain(d.east.domain(1), from_file(d.east.passphrase))
    nonce = RunState(d.folder / 'out "1" it\'s').nonce("none")
    seed = masked_start.run_seed(domain, nonce, d.east.vault)
    return masked_start.initial_model(domain, record.network, record.dtype, seed)


@pytest.mark.parametrize(
    "engine", ["in_process_engine", pytest.param("simulated_federation", marks=pytest.mark.slow, id="ray")]
)
def test_two_rounds_equal_the_simulation(
    engine: str, deployment: Deployment, trained: tuple[FederationRecord, dict[str, Any]]
) -> None:
    """A deployed run with secure aggregation, and a simulated one in clear from its initial weights, are equal.

    Sites, seed and settings are the same: so are the figures of each round (float64).
    """
    out = deployment.folder / engine
    for hospital in deployment.hospitals:  # a simulation has no bundle
        if NO_BUNDLE not in hospital.policy(1).read_text():
            hospital.zone("approve", NO_BUNDLE, "--policy", hospital.policy(1))
        text = hospital.policy(1).read_text()
        hospital.policy(1).write_text(text.replace("secure-aggregation: required", "secure-aggregation: optional"))
    initial = deployment.folder / f"initial-{engine}.npz"
    first_weights(deployment, trained[0]).save(initial)
    defaults = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    run = {
        **defaults,  # of the deployed run, too
        "card": deployment.card().read_text(),
        "out": str(out),
        "sites": 2,
        "wait-seconds": 600.0,
        "round-seconds": 120.0,
        "secure-aggregation": False,
        "initial-model": str(initial),
        **SETTINGS,
    }
    sites = [
        {
            "dataset": str(hospital.dataset(1)),
            "evaluation-key": str(hospital.evaluation_key(1)),
            "vault": hospital.vault,
            "policy": str(hospital.policy(1)),
            "work": str(hospital.folder / engine),
        }
        for hospital in deployment.hospitals
    ]
    if engine == "in_process_engine":
        in_process_engine.federate([SiteConfig.from_mapping(site) for site in sites], run)
    else:
        program = (
            "import json, sys; from fedpp.config.run_config import SiteConfig; "
            f"from simulations.{engine} import federate; "
            "sites, run = json.loads(sys.argv[1]); federate([SiteConfig.from_mapping(s) for s in sites], run)"
        )
        with pytest.MonkeyPatch.context() as unguarded:  # Ray checks whether it runs in a cloud, whatever its settings
            unguarded.delenv("FEDPP_SOCKET_GUARD")
            call([sys.executable, "-c", program, json.dumps([sites, run])])

    deployed, simulated = trained[0], FederationRecord.load(out / "federation.json")
    assert [r.number for r in deployed.rounds] == [1, 2]
    assert [r.sites for r in deployed.rounds] == [("East", "West"), ("East", "West")]
    assert deployed.bundle == deployment.bundle != simulated.bundle
    for ours, theirs in zip(
        [*(r.together for r in deployed.rounds), deployed.test_counts()],
        [*(r.together for r in simulated.rounds), simulated.test_counts()],
        strict=True,
    ):
        assert ours.loss_sum == pytest.approx(theirs.loss_sum, abs=1e-6)
        assert ours.confusion == theirs.confusion
        assert ours.examples == theirs.examples > 0
        assert metrics(ours).to_mapping() == pytest.approx(metrics(theirs).to_mapping(), abs=1e-6)


def test_run_prints_the_metrics_of_its_record(
    trained: tuple[FederationRecord, dict[str, Any]],
) -> None:
    """`run --json` prints the metrics of the test counts in federation.json."""
    record, printed = trained
    assert figures_of(printed) == metrics(record.test_counts()).to_mapping()
    assert printed["intervals"]["accuracy"]["whole"] == record.test_counts().examples
    assert printed["loss"] is not None


@pytest.mark.usefixtures("trained")
def test_a_site_that_withdraws_its_approval_is_named(deployment: Deployment) -> None:
    """The next run is refused by that site alone, without a restart; a line names it and the reason.

    SIGTERM to `run` then stops the run at the SuperLink, too, and no result is written.
    """
    west, bundle = deployment.west, deployment.bundle
    approval = ("approve", bundle, "--policy", west.policy(1))
    west.zone(*approval, "--remove")
    out, log = deployment.folder / "stopped", deployment.folder / "stopped.log"
    with log.open("w+") as output:
        process = subprocess.Popen(deployment.run(out, sites=2), cwd=ROOT, stderr=output, text=True)
        wait_for(log, process, "refused node west: ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 1
    west.zone(*approval)
    lines = log.read_text().splitlines()
    (reason,) = [line for line in lines if "refused node " in line]
    assert reason.endswith(f"no reply: this site has not approved bundle {bundle}: ask its staff to review it")
    assert lines[-1].startswith(
        "coordinator run: the run was stopped; resume it with `python -m coordinator run --state "
    )
    assert lines[-1].endswith(f"--out {out} --resume`")
    assert not (out / "federation.json").exists()


def test_failed_run_says_why(deployment: Deployment) -> None:
    """A run without enough sites ends with status 1 and the ServerApp's reason as the last line."""
    command = deployment.run(deployment.folder / "failed", sites=3, more=["--set", "wait-seconds=1"])
    done = call(command, status=1)
    assert done.stderr.splitlines()[-1] == (
        "coordinator run: the run failed: the run needs 3 sites, 2 connected within 1 s: "
        "check that every site has joined"
    )
    assert done.stdout == ""


def test_a_key_is_enrolled_once(deployment: Deployment) -> None:
    """Enrolling a key again fails with one clear line."""
    key = deployment.east.identity / "node.pub"
    done = call([*COORDINATOR, "enrol", "--state", str(deployment.state), str(key), "again"], status=1)
    assert done.stderr == (
        f"coordinator enrol: the key {key} is enrolled already: its site may join, another site needs its own\n"
    )


@pytest.mark.usefixtures("trained")
def test_nothing_phones_home(deployment: Deployment) -> None:
    """No process of our commands, from a shell without settings, called or looked up another machine.

    Each kind of process was watched; and Flower's processes have telemetry, update check and dependency installation
    switched off, which also covers processes that are not Python.
    """
    for program in (SITE, COORDINATOR, [sys.executable, "-m", "simulations"]):
        call([*program, "--help"])
    commands, calls = called(deployment.folder / "calls")
    assert calls == []
    for kind in (
        *(" -m coordinator up", " -m coordinator enrol", " -m coordinator run", " -m coordinator bundle", "/flwr run"),
        *("/flower-superlink", "/flower-superexec", "/flwr-serverapp", "/flower-supernode"),
        *(
            "sites.node.executor",
            "multiprocessing.forkserver",
            " -m sites join",
            " -m sites vault",
            " -m simulations --help",
        ),
    ):
        assert [command for command in commands if kind in command], kind
    wanted = {
        b"FLWR_TELEMETRY_ENABLED=0",
        b"FLWR_DISABLE_UPDATE_CHECK=1",
        b"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1",
    }
    processes = processes_of(deployment.folder, "bin/flower-") | processes_of(deployment.folder, "sites.node.executor")
    assert len(processes) == 6
    for process in processes:
        environment = Path(f"/proc/{process}/environ").read_bytes()
        assert wanted <= set(environment.split(b"\0"))


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from flwr.supercore import telemetry as t; t.create_event(t.EventType.PING, None)", ["telemetry.flower.ai"]),
        ("from flwr.supercore import update_check as u; u.warn_if_flwr_update_available('x')", ["api.flower.ai"]),
        ("import socket as s; s.socket(type=s.SOCK_DGRAM).connect(('192.0.2.1', 9))", ["192.0.2.1"]),
        ("import socket as s; s.create_connection(('localhost', 9)); s.socket(s.AF_UNIX).connect('/none')", []),
    ],
)
def test_the_guard_sees_a_call(tmp_path: Path, code: str, found: list[str]) -> None:
    """Flower's own calls would be found, and sockets that leave the machine, but not those that stay on it."""
    with guarded(tmp_path / "calls"):
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    calls = called(tmp_path / "calls")[1]
    assert [call.split("'")[1] for call in calls] == found


@pytest.mark.slow
def test_a_model_moves_to_a_new_key_epoch(
    deployment: Deployment, trained: tuple[FederationRecord, dict[str, Any]]
) -> None:
    """East rotates, West accepts, data and model are re-encrypted, and the next run starts from the model.

    A run that learns nothing tests its initial model: its figures are those of the last run's model to 1e-6.
    """
    d = deployment
    pulled(d, d.east, 1)
    d.services.close()
    east, west = d.hospitals
    east.secret("rotate", "--domain", east.domain(1), "--out", east.domain(2))
    (invitation,) = (east.domain(2) / "invitations").iterdir()
    carry(invitation, d.folder / "post" / "west-2.invitation")
    carry(d.east.folder / "secret" / "model-1.npz", d.folder / "post" / "model.npz")
    west.secret(
        "accept", d.folder / "post" / "west-2.invitation", "--identity", west.domain(1), "--out", west.domain(2)
    )
    figures = {}
    for hospital in d.hospitals:
        epochs = ("--domain", hospital.domain(1), "--to", hospital.domain(2))
        moved = hospital.folder / "secret" / "model-2.npz"
        hospital.secret("reencrypt", hospital.dataset(1), *epochs, "--out", hospital.dataset(2))
        hospital.secret("reencrypt", d.folder / "post" / "model.npz", *epochs, "--out", moved)
        for epoch, weights in ((1, d.folder / "post" / "model.npz"), (2, moved)):
            secret = ("--domain", hospital.domain(epoch), "--passphrase-file", hospital.passphrase)
            evaluate = ("evaluate", weights, hospital.dataset(epoch), *secret, "--json")
            figures[hospital.name, epoch] = figures_of(json.loads(site(*evaluate).stdout))
        assert figures[hospital.name, 2] == pytest.approx(figures[hospital.name, 1], abs=1e-6)
        hospital.hand_over(2)
        decide(hospital, 2, d.bundle)
        d.services.enter_context(running(d, hospital, 2))
    carry(east.folder / "secret" / "model-2.npz", d.folder / "post" / "model-2.npz")

    model = d.folder / "post" / "model-2.npz"
    (digest,) = {of.secret("endorse", model, "--domain", of.domain(2)).strip() for of in d.hospitals}
    out = d.folder / "second"  # starts from the model that both have endorsed
    settings = {**SETTINGS, "rounds": 1, "server-learning-rate": 1e-9}
    chosen = [text for name, value in settings.items() for text in ("--set", f"{name}={value}")]
    initial = ["--model", digest, *chosen, "--json"]
    second = json.loads(call(d.run(out, sites=2, more=initial, epoch=2)).stdout)
    assert figures_of(second) == pytest.approx(figures_of(trained[1]), abs=1e-6)
    record = FederationRecord.load(out / "federation.json")
    assert record.domain != trained[0].domain
