"""The site's node without a coordinator: its identity, the inputs it refuses, and calls that fail."""

import os
import socket
import ssl
import stat
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from dataclasses import replace
from http.server import HTTPServer
from itertools import repeat
from pathlib import Path
from threading import Thread

import httpx
import pytest
from conftest import ROOT
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from deployment import SITE, join_command
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.retry import make_simple_http_retry_invoker
from hospital import error_of
from hypothesis import given
from hypothesis import strategies as st
from local_server import Handler, replying

from coordinator.operator.coordinator_certificates import ensure
from fedpp.config.run_config import SiteConfig, to_toml
from fedpp.errors import ConfigError, DatasetError, FederationError, VaultError
from fedpp.flower.patient_supernode import NodeRecord, RejoiningClient
from fedpp.vault_api import vault_connection
from sites.node.join import join
from sites.node.launch import Launch
from sites.node.node_identity import PRIVATE_KEY, create_identity, require_coordinator, require_key
from sites.node.reachability import Coordinator

TEXT = st.text(min_size=1)


def test_identity_is_a_p384_key_pair(tmp_path: Path) -> None:
    """The key pair is ECDSA P-384 in SSH formats, its private half for the owner alone."""
    public = create_identity(tmp_path / "identity")
    private = tmp_path / "identity" / PRIVATE_KEY
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    key = load_ssh_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert load_ssh_public_key(public.read_bytes()) == key.public_key()


def test_an_identity_that_was_used_with_another_coordinator_is_refused(
    tmp_path: Path, site: SiteConfig, ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another CA, or another name of the same CA, is another coordinator; nothing is started for it."""
    monkeypatch.setattr("sites.node.join.require_flower", lambda: pytest.fail("it would start"))
    identity = tmp_path / "identity"
    create_identity(identity)
    known = Coordinator.parse("127.0.0.1:9", ca).identity()
    for before in (replace(known, name="hub.example.org"), replace(known, authority="ab" * 32)):
        NodeRecord(7, coordinator=before.to_json()).save(identity)
        with pytest.raises(FederationError, match=f"was used with the coordinator {before}, not with {known}: make"):
            join("127.0.0.1:9", ca, identity, site)


@pytest.mark.parametrize("record", [None, NodeRecord(7), "own"], ids=["new", "before protocol 2", "the same"])
def test_an_identity_may_join_its_coordinator_again(tmp_path: Path, ca: Path, record: NodeRecord | str | None) -> None:
    """One that joined none, or that fedpp did not record a coordinator of, is anybody's."""
    identity = Coordinator.parse("[::1]:9", ca).identity()
    if record is not None:
        (record if isinstance(record, NodeRecord) else NodeRecord(7, coordinator=identity.to_json())).save(tmp_path)
    require_coordinator(tmp_path, identity)


def test_identity_is_not_overwritten(tmp_path: Path) -> None:
    """A second identity in one folder is refused with one line, and the first stays."""
    create_identity(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert error_of("identity", "--out", tmp_path) == (
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
def test_join_refuses_what_is_missing(
    tmp_path: Path, site: SiteConfig, ca: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        monkeypatch.setattr(vault_connection, "CONNECT_SECONDS", 0.1)
        site = replace(site, vault=f"unix:{nowhere}")
    expected = "--superlink must be HOST:PORT, got '127.0.0.1'" if missing == "superlink" else str(nowhere)
    with pytest.raises((ConfigError, DatasetError, VaultError)) as raised:
        join(superlink, ca, identity, site)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_join_makes_the_key_that_must_be_enrolled(tmp_path: Path, site: SiteConfig, ca: Path) -> None:
    """A site without a node's key gets one, with a message where its public half is; nothing starts."""
    assert error_of(*join_command("127.0.0.1:8000", ca, tmp_path / "identity", site)[len(SITE) :]) == (
        f"fedpp-site join: a key was created for this site's node: give {tmp_path / 'identity' / 'node.pub'} to "
        "the coordinator for `python -m coordinator enrol`, then join again"
    )
    require_key(tmp_path / "identity")


def test_the_executor_makes_the_folder_of_fedpp_importable_and_no_other(tmp_path: Path) -> None:
    """Neither its parent, where others may write, however the package is installed and reached."""
    code = "import {0}.node.executor as e, {0}.node.launch as l; print(e.ROOT, l.ROOT)"
    for package, folder in (("sites", ROOT), ("fedpp.sites", tmp_path)):
        found = subprocess.run(
            [sys.executable, "-c", code.format(package)], cwd=folder, capture_output=True, text=True, check=True
        )
        roots = {Path(text) for text in found.stdout.split()}
        assert len(roots) == 1
        assert [(root / "fedpp" / "__init__.py").is_file() for root in roots] == [True]


def test_passing_failures_are_retried(tmp_path: Path) -> None:
    """Flower retries a broken handshake and a status 500, but not a certificate that does not verify."""
    content = GetRunResponse().SerializeToString()

    class Replying(Handler):
        def respond(self) -> None:
            self.reply(500 if server.failures else 200, content, {"Content-Type": PROTOBUF_MEDIA_TYPE})
            server.failures = max(0, server.failures - 1)

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
    with Server(("127.0.0.1", 0), Replying) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        for authority in (tls, stranger):
            tries = make_simple_http_retry_invoker()
            tries.max_tries, tries.wait_gen_factory = 5, lambda: iter(repeat(0.01))
            client = RejoiningClient.from_server_address(
                f"127.0.0.1:{server.server_port}", False, str(authority.ca), []
            )
            with client, nullcontext() if authority is tls else pytest.raises(httpx.ConnectError, match="CERTIFICATE"):
                assert tries.invoke(client.GetRun, GetRunRequest()) == GetRunResponse()
        server.shutdown()
    assert (server.cut, server.failures) == (0, 0)


def test_a_task_that_cannot_be_taken_is_one_line(tmp_path: Path) -> None:
    """A launcher that gets no task from the SuperNode logs one line, and fails."""

    class Refusing(Handler):
        def respond(self) -> None:
            self.send_error(400, "no task")

    with replying(Refusing) as port:
        launch = Launch(f"127.0.0.1:{port}", os.getpid(), tmp_path / "site.yaml", tmp_path, tmp_path)
        code = f"from pathlib import *; from sites.node.launch import Launch; {launch!r}.run('token')"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("a task could not be taken")]
    assert len(lines) == 1, done.stderr
    assert "400" in lines[0]
    assert "Traceback" not in done.stderr
