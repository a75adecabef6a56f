"""The site's node: its identity, the inputs it refuses, its restarts, and its complete end."""

import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import vaults
from conftest import ROOT
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from deployment import COORDINATOR, SITE, call, ended, processes_of, serving
from flwr.cli.build import build_fab_from_disk
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.retry import make_simple_http_retry_invoker
from hypothesis import given
from hypothesis import strategies as st

from coordinator.operator.coordinator_certificates import ensure
from coordinator.operator.flower_command import flower
from coordinator.operator.superlink import CONNECTION, State
from fedpp.config.run_config import SiteConfig, to_toml
from fedpp.config.site_policy import starting_text
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import ConfigError, DatasetError, VaultError
from fedpp.flower.patient_supernode import NodeRecord, RejoiningClient
from fedpp.keys.key_domain import KeyDomain
from fedpp.processes import free_port
from sites.node.app_bundle import Bundle
from sites.node.join import join
from sites.node.launch import Launch
from sites.node.launcher import FAILED
from sites.node.node_identity import PRIVATE_KEY, REFUSED, create_identity, require_key

TEXT = st.text(min_size=1)
JOINED = "note: joined as node "
STARTED = "note: SuperNode started; it logs to "


@pytest.fixture
def site(tmp_path: Path, domain: KeyDomain, dataset: EncryptedDataset, address: str) -> Iterator[SiteConfig]:
    """Return a site with a tiny dataset, beside its vault."""
    key, policy = tmp_path / "domain.eval", tmp_path / "site.yaml"
    domain.evaluation_key().save(key)
    policy.write_text(starting_text(dataset.manifest.fingerprint))
    with vaults.serving(domain, dataset, address):
        yield SiteConfig(dataset.path, key, address, policy, tmp_path)


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Run a coordinator; return its address and its state."""
    folder, port = tmp_path_factory.mktemp("coordinator"), free_port()
    up = [*COORDINATOR, "up", "--state", str(folder / "state"), "--port", str(port)]
    with serving(folder / "up.log", up, "ready"):
        yield f"127.0.0.1:{port}", folder / "state"


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    """Return the certificate of a new authority."""
    return ensure(tmp_path / "tls", []).ca


def command(superlink: str, ca: Path, identity: Path, site: SiteConfig) -> list[str]:
    return [
        *(*SITE, "join", "--superlink", superlink, "--ca", str(ca)),
        *("--identity", str(identity), "--dataset", str(site.dataset)),
        *("--evaluation-key", str(site.evaluation_key), "--vault", site.vault, "--policy", str(site.policy)),
    ]


def test_identity_is_a_p384_key_pair(tmp_path: Path) -> None:
    """The key pair is ECDSA P-384 in SSH formats, its private half for the owner alone."""
    public = create_identity(tmp_path / "identity")
    private = tmp_path / "identity" / PRIVATE_KEY
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    key = load_ssh_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert load_ssh_public_key(public.read_bytes()) == key.public_key()


def test_identity_is_not_overwritten(tmp_path: Path) -> None:
    """A second identity in one folder is refused with one line, and the first stays."""
    create_identity(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    done = call([*SITE, "identity", "--out", str(tmp_path)], status=1)
    (line,) = done.stderr.splitlines()
    assert line == (
        f"fedpp-site identity: {tmp_path / PRIVATE_KEY} is there already: "
        "choose another --out, keys are not overwritten"
    )
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@given(TEXT, TEXT, TEXT, TEXT, TEXT)
def test_node_config_keeps_every_character(dataset: str, key: str, vault: str, policy: str, work: str) -> None:
    """Spaces, quotes and control characters in addresses reach the ClientApp unchanged."""
    site = SiteConfig(Path(dataset), Path(key), vault, Path(policy), Path(work))
    assert SiteConfig.from_mapping(tomllib.loads(to_toml(site.to_mapping()))) == site


@pytest.mark.parametrize("missing", ["superlink", "ca", "dataset", "key", "vault", "policy"])
def test_join_refuses_what_is_missing(tmp_path: Path, site: SiteConfig, ca: Path, missing: str) -> None:
    """Every input that is missing is named before anything starts."""
    identity, superlink = create_identity(tmp_path / "identity").parent, "127.0.0.1:8000"
    nowhere = tmp_path / "nowhere"
    if missing == "superlink":
        superlink = "127.0.0.1"
    elif missing == "ca":
        ca = nowhere
    elif missing == "dataset":
        site = replace(site, dataset=nowhere)
    elif missing == "key":
        site = replace(site, evaluation_key=nowhere)
    elif missing == "policy":
        site = replace(site, policy=nowhere)
    else:
        site = replace(site, vault=f"unix:{nowhere}")
    expected = "--superlink must be HOST:PORT, got '127.0.0.1'" if missing == "superlink" else str(nowhere)
    with pytest.raises((ConfigError, DatasetError, VaultError)) as raised:
        join(superlink, ca, identity, site)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_join_makes_the_key_that_must_be_enrolled(tmp_path: Path, site: SiteConfig, ca: Path) -> None:
    """A site without a node's key gets one, with a message where its public half is; nothing starts."""
    done = call(command("127.0.0.1:8000", ca, tmp_path / "identity", site), status=1)
    assert done.stderr == (
        f"fedpp-site join: a key was created for this site's node: give {tmp_path / 'identity' / 'node.pub'} to "
        "the coordinator for `python -m coordinator enrol`, then join again\n"
    )
    require_key(tmp_path / "identity")


def test_the_executor_makes_the_folder_of_fedpp_importable_and_no_other(tmp_path: Path) -> None:
    """Neither its parent, where others may write, however the package is installed and reached."""
    code = "import {0}.node.executor as e, {0}.node.launcher as l; print(e.ROOT, l.ROOT)"
    for package, folder in (("sites", ROOT), ("fedpp.sites", tmp_path)):
        found = subprocess.run(
            [sys.executable, "-c", code.format(package)], cwd=folder, capture_output=True, text=True, check=True
        )
        roots = {Path(text) for text in found.stdout.split()}
        assert len(roots) == 1
        assert [(root / "fedpp" / "__init__.py").is_file() for root in roots] == [True]


def test_two_nodes_wait_side_by_side_and_end(tmp_path: Path, site: SiteConfig, ca: Path) -> None:
    """Two nodes of one machine wait for a coordinator that is not there yet; a signal ends both, status 0."""
    address = f"127.0.0.1:{free_port()}"
    with ExitStack() as stack:
        for name in "ab":
            identity = create_identity(tmp_path / name).parent
            start = command(address, ca, identity, site)
            stack.enter_context(serving(tmp_path / f"{name}.log", start, STARTED, signal.SIGINT))
        assert len(processes_of(tmp_path, "bin/flower-supernode")) == 2
        assert len(processes_of(tmp_path, "sites.node.executor")) == 2
    assert processes_of(tmp_path) == {}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("key", "this node is not enrolled: give {}/identity/node.pub to the coordinator"),
        ("authority", "is of another authority than {}/tls/ca.pem: ask this coordinator for its ca.pem"),
    ],
)
def test_unknown_nodes_and_coordinators_are_refused(
    tmp_path: Path, coordinator: tuple[str, Path], site: SiteConfig, ca: Path, wrong: str, reason: str
) -> None:
    """SuperLink refuses a key that was not enrolled, and a site refuses a SuperLink of another CA."""
    address, state = coordinator
    public = create_identity(tmp_path / "identity")
    if wrong != "key":
        call([*COORDINATOR, "enrol", "--state", str(state), str(public), "a"])
    trusted = ca if wrong == "authority" else state / "tls" / "ca.pem"
    done = call(command(address, trusted, public.parent, site), status=1)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fedpp-site join: ")
    assert reason.format(tmp_path) in last
    assert processes_of(tmp_path) == {}


def enrolled(folder: Path, state: Path) -> Path:
    """Return a new identity that the coordinator has enrolled."""
    public = create_identity(folder)
    call([*COORDINATOR, "enrol", "--state", str(state), str(public), folder.name])
    return folder


def test_a_killed_site_joins_again(tmp_path: Path, coordinator: tuple[str, Path], site: SiteConfig) -> None:
    """SIGKILL of all of a site's processes costs it seconds, not the minute in which SuperLink misses heartbeats."""
    address, state = coordinator
    start = command(address, state / "tls" / "ca.pem", enrolled(tmp_path / "identity", state), site)
    with serving(tmp_path / "1.log", start, JOINED, signal.SIGKILL, -signal.SIGKILL):
        killed = processes_of(tmp_path, "sites.")
    for process in killed:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    with serving(tmp_path / "2.log", start, JOINED):
        pass
    log = (tmp_path / "2.log").read_text()
    assert "note: this site's SuperNode was killed: joining again in 5 s\n" in log
    assert not [text for text in ("INFO", "SuperNode ID", "Uvicorn") if text in log]  # Flower's messages are in a file
    for name in ("supernode.log", "supernode.log.1"):
        assert "SuperNode ID" in (tmp_path / "identity" / name).read_text()
    assert "still counts this node as online" not in log
    ended = NodeRecord.load(tmp_path / "identity")
    assert ended is not None
    assert ended.running == ""  # after a clean end there is no process to replace


@pytest.mark.slow
def test_a_supernode_that_ends_is_restarted(tmp_path: Path, coordinator: tuple[str, Path], site: SiteConfig) -> None:
    """A SuperNode is restarted after a kill, and after a reply that ends Flower's heartbeat or wait for work."""
    address, state = coordinator
    log, identity = tmp_path / "log", enrolled(tmp_path / "identity", state)
    refused = ["heartbeat"]
    with refusing(refused, int(address.partition(":")[2]), state / "tls") as port:
        start = command(f"127.0.0.1:{port}", state / "tls" / "ca.pem", identity, site)
        with serving(log, start, "note: the SuperNode lost one of its threads: HTTPStatusError") as join_:
            until(log, join_, JOINED, 2)
            refused.append("pull-messages")
            until(log, join_, "note: the SuperNode gave up\n", 1)
            until(log, join_, JOINED, 3)
            (supernode,) = processes_of(tmp_path, "bin/flower-supernode")
            os.kill(supernode, signal.SIGKILL)
            until(log, join_, JOINED, 4)
            assert len(processes_of(tmp_path, "bin/flower-supernode")) == 1
    assert processes_of(tmp_path, "sites.") == {}


def test_an_identity_is_used_by_one_join(tmp_path: Path, coordinator: tuple[str, Path], site: SiteConfig) -> None:
    """A second `join` with a folder is refused; with a copy of it, it waits while the node counts as online."""
    address, state = coordinator
    identity, ca = enrolled(tmp_path / "identity", state), state / "tls" / "ca.pem"
    with serving(tmp_path / "1.log", command(address, ca, identity, site), JOINED) as first:
        done = call(command(address, ca, identity, site), status=1)
        assert done.stderr == (
            f"fedpp-site join: another `fedpp-site join` uses {identity} already: stop it, or give this one an "
            "identity of its own\n"
        )
        shutil.copytree(identity, tmp_path / "copy")
        waiting = "note: the coordinator still counts this node as online"
        with serving(tmp_path / "2.log", command(address, ca, tmp_path / "copy", site), waiting):
            assert first.poll() is None
        assert JOINED not in (tmp_path / "2.log").read_text()


def test_an_unregistered_site_gives_up(tmp_path: Path, coordinator: tuple[str, Path], site: SiteConfig) -> None:
    """A node that the coordinator unregisters while it runs ends with a message of what to do."""
    address, state = coordinator
    identity = enrolled(tmp_path / "identity", state)
    with serving(
        tmp_path / "log", command(address, state / "tls" / "ca.pem", identity, site), JOINED, status=1
    ) as join_:
        number = json.loads((identity / "node.json").read_text())["number"]
        flower(State(state), "supernode", "unregister", str(number), CONNECTION)
        join_.wait(60)
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith(f"fedpp-site join: this node is not enrolled: give {identity / 'node.pub'}")
    assert processes_of(tmp_path) == {}


def until(log: Path, process: "subprocess.Popen[str]", sign: str, times: int) -> None:
    """Wait until a process's log holds a text so often."""
    deadline = time.monotonic() + 180
    while log.read_text().count(sign) < times:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_passing_failures_are_retried(tmp_path: Path) -> None:
    """Flower retries a broken handshake and a status 500, but not a certificate that does not verify."""
    content = GetRunResponse().SerializeToString()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(500 if server.failures else 200)
            server.failures = max(0, server.failures - 1)
            self.send_header("Content-Type", PROTOBUF_MEDIA_TYPE)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(HTTPServer):
        cut, failures = 2, 1

        def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
            connection, address = self.socket.accept()
            if self.cut:
                self.cut -= 1
                connection.recv(2**16)
                connection.close()
                raise ConnectionAbortedError
            return ours.wrap_socket(connection, server_side=True), address

    tls, stranger = (ensure(tmp_path / name, []) for name in "ab")
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(tls.server, tls.server_key)
    with Server(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        for authority in (tls, stranger):
            tries = make_simple_http_retry_invoker()
            tries.max_tries = 5
            client = RejoiningClient.from_server_address(
                f"127.0.0.1:{server.server_port}", False, str(authority.ca), []
            )
            with client, nullcontext() if authority is tls else pytest.raises(httpx.ConnectError, match="CERTIFICATE"):
                assert tries.invoke(client.GetRun, GetRunRequest()) == GetRunResponse()
        server.shutdown()
    assert (server.cut, server.failures) == (0, 0)


@contextmanager
def refusing(once: list[str], upstream: int, tls: Path) -> Iterator[int]:
    """Pass calls on to a coordinator, but answer 400 to one of these, and strike it out: Flower does not foresee it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if once and self.path.endswith(once[0]):
                once.pop()
                self.send_error(400)
                return
            trusted = ssl.create_default_context(cafile=tls / "ca.pem")
            with closing(HTTPSConnection("127.0.0.1", upstream, context=trusted)) as connection:
                connection.request("POST", self.path, content, dict(self.headers))
                answer = connection.getresponse()
                body = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.getheader("Content-Type", ""))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(tls / "server.pem", tls / "server.key")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = ours.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # a SuperNode that is killed meanwhile
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_port
        server.shutdown()


PYPROJECT = """\
[project]
name = "stranger"
version = "1.0.0"
dependencies = ["flwr>=1.41"]
[tool.flwr.app]
publisher = "stranger"
[tool.flwr.app.components]
serverapp = "stranger.server:app"
clientapp = "stranger.client:app"
"""
SERVER = """\
import json, time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < {nodes}:
        time.sleep(0.1)
    for number in range(1, {questions} + 1):
        while not Path({folder!r}, f"ask {{number}}").exists():
            time.sleep(0.1)
        asked = [Message(RecordDict(), dst_node_id=node, message_type="query.describe") for node in nodes]
        replies = [
            [reply.error.reason] if reply.has_error() else dict(reply.content["answer"])
            for reply in grid.send_and_receive(asked, timeout=60)
        ]
        Path({folder!r}, "part").write_text(json.dumps(replies))
        Path({folder!r}, "part").rename(Path({folder!r}, f"answers {{number}}"))
"""
CLIENT = """\
import os, sys
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
import fedpp

Path({folder!r}, f"ran {{os.getpid()}}").touch()
app = ClientApp()


@app.query("describe")
def describe(message, context):
    ours = "fedpp.config.site_policy" in sys.modules or {root!r} in sys.path
    facts = ConfigRecord({{"bundle": os.environ["FEDPP_BUNDLE"], "fedpp": fedpp.WHOSE, "ours": ours}})
    return Message(RecordDict({{"answer": facts}}), reply_to=message)
"""


def test_the_site_decides_which_code_runs(tmp_path: Path, coordinator: tuple[str, Path], site: SiteConfig) -> None:
    """A bundle that a site has not approved is refused at once and kept; none of its code runs before the approval.

    The other site, which has approved it, is not affected; the approval needs no restart, not even of the run. The
    bundle imports its own `fedpp`, and finds no module of the launcher's loaded.
    """
    address, state = coordinator
    bundle = Bundle(build_fab_from_disk(_stranger(tmp_path, CLIENT, nodes=2, questions=2)))
    approve = [*SITE, "approve", bundle.hash, "--policy"]
    with ExitStack() as stack:
        for name in "ab":
            mine = replace(site, policy=tmp_path / f"{name}.yaml")
            mine.policy.write_text(site.policy.read_text())
            public = create_identity(tmp_path / name)
            call([*COORDINATOR, "enrol", "--state", str(state), str(public), f"site {name}"])
            start = command(address, state / "tls" / "ca.pem", public.parent, mine)
            stack.enter_context(serving(tmp_path / f"{name}.log", start, JOINED))
        call([*approve, str(tmp_path / "a.yaml")])
        run = flower(State(state), "run", str(tmp_path / "app"), CONNECTION)["run-id"]
        first = _answers(tmp_path, 1)
        ran_first = len(list(tmp_path.glob("ran *")))
        call([*approve, str(tmp_path / "b.yaml")])
        second = _answers(tmp_path, 2)
        assert ended(State(state), run) == "finished:completed"

    answer = {"bundle": bundle.hash, "fedpp": "the bundle's", "ours": False}
    refusal = [f"this site has not approved bundle {bundle.hash}: ask its staff to review it"]
    assert sorted(first, key=str) == sorted([answer, refusal], key=str)
    assert second == [answer, answer]
    assert (ran_first, len(list(tmp_path.glob("ran *")))) == (1, 3)

    kept = tmp_path / "b" / REFUSED / f"{bundle.hash}.fab"
    assert kept.read_bytes() == bundle.content
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert not (tmp_path / "a" / REFUSED).exists()
    log = (tmp_path / "b.log").read_text()
    (line,) = [line for line in log.splitlines() if bundle.hash in line]
    assert line == (
        f"bundle {bundle.hash} of run {run} is not approved here: review it with `fedpp-site review {kept} --out "
        f"FOLDER`, approve it with `fedpp-site approve {kept} --policy {tmp_path / 'b.yaml'}`"
    )
    assert "Traceback" not in log


MISCHIEF = """\
import asyncio, shutil
from pathlib import Path
import numpy
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("describe")
def describe(message, context):
    mischief = Path({folder!r}, "mischief").read_text()
    reply = Message(RecordDict({{"answer": ConfigRecord({{"drawn": numpy.random.random()}})}}), reply_to=message)
    if mischief == "cancelled":
        raise asyncio.CancelledError({folder!r})
    if mischief == "no message":
        return {folder!r}
    if mischief == "a message that cannot be sent":
        reply.metadata.__dict__["_ttl"] = {folder!r}
    if mischief == "a state that cannot be kept":
        context.node_config["x"] = object()
    if mischief == "no folder":
        own = Path(__file__).parents[1]
        shutil.rmtree(own)
        own.touch()
    return reply
"""


def test_every_failure_of_a_bundle_gets_a_reply(
    tmp_path: Path, coordinator: tuple[str, Path], site: SiteConfig
) -> None:
    """A failure at any step gets one constant text as its reply; the site's log has a line and its details.

    Two tasks draw different numbers, though they come of one process.
    """
    address, state = coordinator
    failing = ("cancelled", "no message", "a message that cannot be sent")
    fine = ("a state that cannot be kept", "no folder")
    bundle = Bundle(build_fab_from_disk(_stranger(tmp_path, MISCHIEF, nodes=1, questions=5)))
    call([*SITE, "approve", bundle.hash, "--policy", str(site.policy)])
    public = create_identity(tmp_path / "identity")
    call([*COORDINATOR, "enrol", "--state", str(state), str(public), "mischief"])
    start = command(address, state / "tls" / "ca.pem", public.parent, site)
    with serving(tmp_path / "site.log", start, JOINED):
        run = flower(State(state), "run", str(tmp_path / "app"), CONNECTION)["run-id"]
        found: dict[str, Any] = {}
        for number, mischief in enumerate((*failing, *fine), 1):
            (tmp_path / "mischief").write_text(mischief)
            (found[mischief],) = _answers(tmp_path, number)
        assert ended(State(state), run) == "finished:completed"
    assert [found[name] for name in failing] == [[FAILED]] * 3
    assert len({found[name]["drawn"] for name in fine}) == 2
    log = (tmp_path / "site.log").read_text()
    for line in (
        f"run {run} failed",
        f"the reply to run {run} could not",
        f"the state of run {run} could not be saved",
    ):
        assert [each.startswith(line) for each in log.splitlines()].count(True) >= 1, log
    assert log.count("Traceback") == 4  # of a reply that is no message, and of one that cannot be sent, too
    assert "CancelledError" in log


def test_a_task_that_cannot_be_taken_is_one_line(tmp_path: Path) -> None:
    """A launcher that gets no task from the SuperNode logs one line, and fails."""

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(400, "no task")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        runtime = f"127.0.0.1:{server.server_port}"
        launch = Launch(runtime, os.getpid(), tmp_path / "site.yaml", tmp_path, tmp_path)
        code = f"from pathlib import *; from sites.node.launch import Launch; {launch!r}.run('token')"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
        )
        server.shutdown()
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("a task could not be taken")]
    assert len(lines) == 1, done.stderr
    assert "400" in lines[0]
    assert "Traceback" not in done.stderr


def _stranger(folder: Path, client: str, *, nodes: int, questions: int) -> Path:
    """Write an app of this ClientApp, and of a ServerApp that queries so many nodes so often; return its project."""
    for name, text in {
        "pyproject.toml": PYPROJECT,
        "fedpp/__init__.py": 'WHOSE = "the bundle\'s"\n',
        "stranger/__init__.py": "",
        "stranger/server.py": SERVER.format(folder=str(folder), nodes=nodes, questions=questions),
        "stranger/client.py": client.format(folder=str(folder), root=str(ROOT)),
    }.items():
        (folder / "app" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "app" / name).write_text(text)
    return folder / "app"


def _answers(folder: Path, number: int) -> list[object]:
    """Let the app's ServerApp query all sites, and return their replies."""
    (folder / f"ask {number}").touch()
    deadline = time.monotonic() + 60
    while not (folder / f"answers {number}").is_file():
        assert time.monotonic() < deadline, [log.read_text() for log in folder.glob("*.log")]
        time.sleep(0.1)
    found: list[object] = json.loads((folder / f"answers {number}").read_text())
    return found
