"""The site's node beside a coordinator: enrolment, restarts, bundles that it runs or refuses, its complete end."""

import io
import json
import os
import signal
import ssl
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from http.client import HTTPSConnection
from pathlib import Path
from shutil import copytree
from threading import Timer

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from deployment import COORDINATOR, call, ended, join_command, processes_of, serving
from flwr.cli.build import build_fab_from_disk
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from hospital import site as site_command
from local_server import Handler, replying
from members import TOLD
from strange_bundle import replies, stranger

from coordinator.__main__ import main as coordinate
from coordinator.operator.flower_command import flower
from coordinator.operator.superlink import CONNECTION, State
from fedpp.config.run_config import SiteConfig
from fedpp.errors import ConfigError, FederationError
from fedpp.flower import patient_supernode
from fedpp.flower.patient_supernode import NodeRecord, RejoiningClient, place_of
from fedpp.processes import free_port
from sites.node.app_bundle import Bundle
from sites.node.join import join
from sites.node.launcher import FAILED
from sites.node.node_identity import PRIVATE_KEY, REFUSED, create_identity

JOINED = "note: joined as node "


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Run a coordinator; return its address and its state."""
    folder, port = tmp_path_factory.mktemp("coordinator"), free_port()
    up = [*COORDINATOR, "up", "--state", str(folder / "state"), "--port", str(port)]
    with serving(folder / "up.log", up, "ready"):
        yield f"127.0.0.1:{port}", folder / "state"


def test_a_coordinator_of_another_authority_is_refused(
    tmp_path: Path, coordinator: tuple[str, Path], site: SiteConfig, ca: Path
) -> None:
    """Its certificate is checked before anything starts."""
    identity = create_identity(tmp_path / "identity").parent
    with pytest.raises(FederationError, match=f"is of another authority than {ca}: ask this coordinator for its ca"):
        join(coordinator[0], ca, identity, site)


def test_a_node_that_is_not_enrolled_is_refused(
    tmp_path: Path, coordinator: tuple[str, Path], site: SiteConfig
) -> None:
    """SuperLink refuses its key; `join` ends with status 1, all its processes, and the reason as the last line."""
    address, state = coordinator
    public = create_identity(tmp_path / "identity")
    done = call(join_command(address, state / "tls" / "ca.pem", public.parent, site), status=1)
    assert done.stderr.splitlines()[-1].startswith(
        f"fedpp-site join: this node is not enrolled: give {public} to the coordinator"
    )
    assert processes_of(tmp_path) == {}


def enrolled(folder: Path, state: Path) -> Path:
    """Return a new identity that the coordinator has enrolled."""
    public = create_identity(folder)
    assert coordinate(["enrol", "--state", str(state), str(public), folder.name]) == 0
    return folder


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory, coordinator: tuple[str, Path]) -> Path:
    """Return an enrolled identity, whose node is offline between two tests."""
    return enrolled(tmp_path_factory.mktemp("identities") / "identity", coordinator[1])


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return the notes of SuperNodes in this process, whose waits are short."""
    for name, seconds in (("POLL_SECONDS", 0.05), ("WAIT_SECONDS", 2.0), ("NOTICE_SECONDS", 0.0)):
        monkeypatch.setattr(patient_supernode, name, seconds)
    monkeypatch.setattr(RejoiningClient, "notes", io.StringIO())
    return RejoiningClient.notes


@contextmanager
def connected(coordinator: tuple[str, Path], identity: Path) -> Iterator[tuple[RejoiningClient, ActivateNodeRequest]]:
    """Yield the client of an identity's SuperNode, and its request to be activated."""
    address, state = coordinator
    key = load_ssh_private_key((identity / PRIVATE_KEY).read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signing = NodeAuthHttpInterceptor(key, key.public_key())
    version = RuntimeVersionHttpInterceptor(component_name="SuperNode")
    client = RejoiningClient.from_server_address(address, False, str(state / "tls" / "ca.pem"), [version, signing])
    client.coordinator = TOLD.to_json()
    client.identity, client.public_key, client.hopeless = identity, identity / "node.pub", identity / "hopeless"
    with client:
        yield client, ActivateNodeRequest(public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=30)


@pytest.mark.parametrize("before", [None, NodeRecord(7)], ids=["new", "unregistered"])
def test_a_stranger_gives_up(
    tmp_path: Path, coordinator: tuple[str, Path], notes: io.StringIO, before: NodeRecord | None
) -> None:
    """A key that was never enrolled, or is no longer, ends the SuperNode with the reason for `join`."""
    public = create_identity(tmp_path)
    if before is not None:
        before.save(tmp_path)
    with connected(coordinator, tmp_path) as (client, activation):
        with pytest.raises(FederationError, match=f"this node is not enrolled: give {public} to the coordinator"):
            client.ActivateNode(activation)
        assert client.hopeless.read_text().startswith("this node is not enrolled")
    assert notes.getvalue() == ""


def test_a_copied_identity_waits_while_its_node_is_online(
    tmp_path: Path, coordinator: tuple[str, Path], identity: Path, notes: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It joins once the node is offline, and gives up after a while; a restarted SuperNode replaces its predecessor."""
    waiting = "note: the coordinator still counts this node as online"
    with connected(coordinator, identity) as (first, activation):
        node = first.ActivateNode(activation).node_id
        assert notes.getvalue() == f"{JOINED}{node}\n"
        copytree(identity, tmp_path / "copy")
        with connected(coordinator, tmp_path / "copy") as (second, _):
            Timer(0.3, first.DeactivateNode, [DeactivateNodeRequest(node_id=node)]).start()
            assert second.ActivateNode(activation).node_id == node
            assert notes.getvalue().count(waiting) == 1

        monkeypatch.setattr(patient_supernode, "WAIT_SECONDS", 0.1)
        with pytest.raises(FederationError, match="another process uses this node's identity"):
            first.ActivateNode(activation)

        NodeRecord(node, place_of(identity)).save(identity)
        assert first.ActivateNode(activation).node_id == node
        assert "note: this site's SuperNode was killed: joining again in 0 s\n" in notes.getvalue()
        first.DeactivateNode(DeactivateNodeRequest(node_id=node))
    assert NodeRecord.load(identity) == NodeRecord(node, coordinator=TOLD.to_json())


@pytest.mark.slow
def test_a_supernode_that_ends_is_restarted(tmp_path: Path, coordinator: tuple[str, Path], site: SiteConfig) -> None:
    """A SuperNode is restarted after a kill, and after a reply that ends Flower's heartbeat or wait for work.

    One that the coordinator unregisters while it runs ends with a message of what to do.
    """
    address, state = coordinator
    log, identity = tmp_path / "log", enrolled(tmp_path / "identity", state)
    refused = ["heartbeat"]
    with refusing(refused, int(address.partition(":")[2]), state / "tls") as port:
        start = join_command(f"127.0.0.1:{port}", state / "tls" / "ca.pem", identity, site)
        lost = "note: the SuperNode lost one of its threads: HTTPStatusError"
        with serving(log, start, lost, status=1) as join_:
            until(log, join_, JOINED, 2)
            refused.append("pull-messages")
            until(log, join_, "note: the SuperNode gave up\n", 1)
            until(log, join_, JOINED, 3)
            (supernode,) = processes_of(tmp_path, "bin/flower-supernode")
            os.kill(supernode, signal.SIGKILL)
            until(log, join_, JOINED, 4)
            assert len(processes_of(tmp_path, "bin/flower-supernode")) == 1
            number = json.loads((identity / "node.json").read_text())["number"]
            flower(State(state), "supernode", "unregister", str(number), CONNECTION)
            join_.wait(60)
    last = log.read_text().splitlines()[-1]
    assert last.startswith(f"fedpp-site join: this node is not enrolled: give {identity / 'node.pub'}")
    assert processes_of(tmp_path, "sites.") == {}


def until(log: Path, process: "subprocess.Popen[str]", sign: str, times: int) -> None:
    """Wait until a process's log holds a text so often."""
    deadline = time.monotonic() + 180
    while log.read_text().count(sign) < times:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@contextmanager
def refusing(once: list[str], upstream: int, tls: Path) -> Iterator[int]:
    """Pass calls on to a coordinator, but reply 400 to one of these, and strike it out: Flower does not foresee it."""

    class Refusing(Handler):
        def respond(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if once and self.path.endswith(once[0]):
                once.pop()
                self.reply(400)
                return
            trusted = ssl.create_default_context(cafile=tls / "ca.pem")
            with closing(HTTPSConnection("127.0.0.1", upstream, context=trusted)) as connection:
                connection.request("POST", self.path, content, dict(self.headers))
                reply = connection.getresponse()
                self.reply(reply.status, reply.read(), {"Content-Type": reply.getheader("Content-Type", "")})

    with replying(Refusing, tls) as port:
        yield port


FATAL = ("cancelled", "no message", "a message that cannot be sent")
HARMLESS = ("a state that cannot be kept", "no folder")


@dataclass(frozen=True)
class Run:
    """A run of a strange bundle on two sites: both replied to a query before and after the second one approved it.

    The first site's processes were killed before, while another `join` of the same identity was tried.
    """

    folder: Path
    refused: str  # the other `join`'s error
    number: str
    bundle: Bundle
    first: list[dict[str, object] | list[str]]
    second: list[dict[str, object] | list[str]]
    unapproved: str  # the second site's log before its approval
    executed: int  # processes that had imported the bundle's ClientApp by then
    programs: tuple[int, int]  # SuperNodes and executors
    left: dict[int, str]  # processes after the signals to both sites

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, coordinator: tuple[str, Path], site: SiteConfig) -> Run:
    """Run the bundle on sites a and b; all of it has ended."""
    (address, state), folder = coordinator, tmp_path_factory.mktemp("run")
    bundle = Bundle(build_fab_from_disk(stranger(folder, [["none"], ["none", *FATAL, *HARMLESS]])))
    with ExitStack() as stack:
        for name, number in (("a", signal.SIGINT), ("b", signal.SIGTERM)):
            mine = replace(site, policy=folder / f"{name}.yaml")
            mine.policy.write_text(site.policy.read_text())
            given = address, state / "tls" / "ca.pem", enrolled(folder / name, state), mine
            if name == "a":
                refused = killed(folder, *given)
            stack.enter_context(serving(folder / f"{name}.log", join_command(*given), JOINED, number))
        programs = ("bin/flower-supernode", "sites.node.executor")
        supernodes, executors = (len(processes_of(folder, program)) for program in programs)
        site_command("approve", bundle.hash, "--policy", folder / "a.yaml")
        run = flower(State(state), "run", str(folder / "app"), CONNECTION)["run-id"]
        first, executed = replies(folder, 1), len(list(folder.glob("ran *")))
        unapproved = (folder / "b.log").read_text()
        site_command("approve", bundle.hash, "--policy", folder / "b.yaml")
        second = replies(folder, 2)
        assert ended(State(state), run) == "finished:completed"
    left = processes_of(folder)
    return Run(folder, refused, run, bundle, first, second, unapproved, executed, (supernodes, executors), left)


def killed(folder: Path, address: str, ca: Path, identity: Path, site: SiteConfig) -> str:
    """Start a site, and kill all its processes; return the error of another `join` of the same identity meanwhile."""
    start = join_command(address, ca, identity, site)
    with serving(folder / "killed.log", start, JOINED, signal.SIGKILL, -signal.SIGKILL):
        with pytest.raises(ConfigError) as refused:
            join(address, ca, identity, site)
        processes = processes_of(folder, "sites.")
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return str(refused.value)


def test_an_identity_is_used_by_one_join(run: Run) -> None:
    """While a site runs, another `join` with its folder is refused."""
    assert run.refused == (
        f"another `fedpp-site join` uses {run.folder / 'a'} already: stop it, or give this one an identity of its own"
    )


def test_a_killed_site_joins_again(run: Run) -> None:
    """SIGKILL of all of a site's processes costs it seconds, not the minute in which SuperLink misses heartbeats."""
    log, unapproved = run.log("a"), run.unapproved
    assert "note: this site's SuperNode was killed: joining again in 5 s\n" in log
    assert "still counts this node as online" not in log
    flowers = ("INFO", "SuperNode ID", "Uvicorn")  # messages, which are in a file
    assert not [text for text in flowers if text in unapproved]
    for name in ("supernode.log", "supernode.log.1"):
        assert "SuperNode ID" in (run.folder / "a" / name).read_text()
    record = NodeRecord.load(run.folder / "a")
    assert record is not None
    assert record.running == ""  # after a clean end there is no process to replace


def test_two_sites_run_side_by_side_and_end(run: Run) -> None:
    """Each has a SuperNode and an executor; SIGINT or SIGTERM ends all its processes, status 0."""
    assert run.programs == (2, 2)
    assert run.left == {}
    for name in "ab":  # without a proxy
        assert "note: /v1/control/list-runs, /v1/runtime/acquire-task, /health can be reached" in run.log(name)


def test_the_site_decides_which_code_runs(run: Run) -> None:
    """A bundle that a site has not approved is refused at once and kept; none of its code runs before the approval.

    The other site, which has approved it, is not affected; the approval needs no restart, not even of the run. The
    bundle imports its own `fedpp`, and finds no module of the launcher's loaded.
    """
    (refusal,) = [reply for reply in run.first if isinstance(reply, list)]
    assert refusal == [f"this site has not approved bundle {run.bundle.hash}: ask its staff to review it"]
    assert (len(run.first), run.executed) == (2, 1)
    ran = [reply for reply in (*run.first, *run.second) if isinstance(reply, dict)]
    expected = {"bundle": run.bundle.hash, "fedpp": "the bundle's", "ours": False}
    assert all(reply.items() >= expected.items() for reply in ran)
    assert len({reply["node"] for reply in run.second if isinstance(reply, dict) and reply["fault"] == "none"}) == 2

    kept = run.folder / "b" / REFUSED / f"{run.bundle.hash}.fab"
    assert kept.read_bytes() == run.bundle.content
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert not (run.folder / "a" / REFUSED).exists()
    (line,) = [line for line in run.log("b").splitlines() if run.bundle.hash in line]
    assert line == (
        f"bundle {run.bundle.hash} of run {run.number} is not approved here: review it with `fedpp-site review {kept} "
        f"--out FOLDER`, approve it with `fedpp-site approve {kept} --policy {run.folder / 'b.yaml'}`"
    )
    assert line in run.unapproved
    assert "Traceback" not in run.unapproved


def test_every_failure_of_a_bundle_gets_a_reply(run: Run) -> None:
    """A failure at any step gets one constant text as its reply; the site's log has a line and its details.

    Two tasks draw different numbers, though they come of one process.
    """
    assert [reply for reply in run.second if isinstance(reply, list)] == [[FAILED]] * len(FATAL) * 2
    ran = [reply for reply in run.second if isinstance(reply, dict)]
    assert sorted(str(reply["fault"]) for reply in ran) == sorted(("none", *HARMLESS) * 2)
    assert len({reply["drawn"] for reply in ran}) == len(ran)
    for log in map(run.log, "ab"):
        for line in (
            f"run {run.number} failed",
            f"the reply to run {run.number} could not",
            f"the state of run {run.number} could not be saved",
        ):
            assert [each.startswith(line) for each in log.splitlines()].count(True) >= 1, log
        assert log.count("Traceback") == 4  # of a reply that is no message, and of one that cannot be sent, too
        assert "CancelledError" in log
