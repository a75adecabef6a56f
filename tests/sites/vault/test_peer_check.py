"""The peer check: who may connect to a vault's Unix socket, and how the log names it."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unprivileged import NOBODY
from vaults import service, serving, site_vault, socket_path, stopped, vault_arguments

from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import ConfigError, VaultError
from fedpp.keys.key_domain import KeyDomain
from fedpp.vault_api import vault_connection
from fedpp.vault_api.vault_client import VaultClient
from simulations.benchmarks.bench_vault import certified
from sites.cli.site_cli import main
from sites.vault import peer_check
from sites.vault.audit.audit_log import AuditLog, Signer
from sites.vault.peer_check import MAX_CONNECTIONS, AdmittedUsers, Peer, PeerRelay
from sites.vault.vault_server import serve

OTHER_GROUP = 23456
CALLED = "called north"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def call_as(address: str, *groups: int) -> str:
    """Call the vault as the user nobody with these groups, whose file modes let everybody connect; return the error."""
    path = socket_path(address)
    for folder in path.parents[:2]:
        folder.chmod(0o755)
    path.chmod(0o666)
    context = get_context("forkserver")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(address, groups, writer), daemon=True)
    process.start()
    process.join()
    return str(reader.recv())


def _call(address: str, groups: tuple[int, ...], result: Connection) -> None:
    os.setgroups(groups)
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    vault_connection.CONNECT_SECONDS = 0.5
    try:
        with VaultClient(address) as vault:
            result.send(f"called {vault.info().site}")
    except VaultError as error:
        result.send(str(error))


def lines(log: Path) -> list[dict[str, Any]]:
    """Return a log's records after its first."""
    return [json.loads(line) for line in log.read_text().splitlines()][1:]


@contextmanager
def logging_vault(domain: KeyDomain, dataset: EncryptedDataset, address: str, log: Path, *users: int) -> Iterator[None]:
    """Serve with an audit log."""
    audit = AuditLog.open(log, Signer.of(certified(domain, "north").identity))
    try:
        with serving(domain, dataset, address, audit=audit, users=frozenset(users)):
            yield
    finally:
        audit.close()


def test_the_log_names_the_user_that_the_kernel_states(
    domain: KeyDomain, dataset: EncryptedDataset, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A caller that claims to be another user and process is named as what it is."""
    monkeypatch.setattr(vault_connection.os, "getuid", lambda: 4242)
    with logging_vault(domain, dataset, address, tmp_path / "log"), VaultClient(address) as client:
        client.info()
    (line,) = lines(tmp_path / "log")
    assert line["who"] == f"uid {os.geteuid()}, pid {os.getpid()}"
    assert line["claims"] == f"uid 4242 pid {os.getpid()}"


@as_root
def test_another_user_is_refused_though_the_file_mode_admits_it(
    domain: KeyDomain, dataset: EncryptedDataset, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It reaches no method, learns what may be wrong, and the log names it once a minute with the number."""
    with logging_vault(domain, dataset, address, tmp_path / "log"):
        reason = call_as(address)
        assert reason.endswith(f"a vault that runs there may not admit user {NOBODY}: see its --allow-user")
        (line,) = lines(tmp_path / "log")
        assert (line["method"], line["connections"]) == ("Connect", 1)
        assert str(line["who"]).startswith(f"uid {NOBODY}, pid ")
        assert line["outcome"] == "refused: this user may not connect, see --allow-user"
        call_as(address)
        assert len(lines(tmp_path / "log")) == 1
        later = time.monotonic() + peer_check.REPORT_SECONDS
        monkeypatch.setattr(peer_check, "monotonic", lambda: later)
        call_as(address)
        assert lines(tmp_path / "log")[1]["connections"] > 1
        with VaultClient(address) as client:
            client.info()


@as_root
def test_the_socket_s_group_is_admitted(domain: KeyDomain, dataset: EncryptedDataset, address: str, tmp_path: Path):
    """A member of it, by a supplementary group, may call; a member of another group may not."""
    path = socket_path(address)
    path.parent.mkdir(mode=0o750)
    os.chown(path.parent, -1, OTHER_GROUP)
    path.parent.chmod(0o2750)  # the socket gets the folder's group
    with logging_vault(domain, dataset, address, tmp_path / "log"):
        assert call_as(address, OTHER_GROUP + 1) != CALLED
        assert call_as(address, OTHER_GROUP + 1, OTHER_GROUP) == CALLED
    assert [line["method"] for line in lines(tmp_path / "log")] == ["Connect", "Info"]


@as_root
def test_with_named_users_the_group_does_not_count(
    domain: KeyDomain, dataset: EncryptedDataset, address: str, tmp_path: Path
):
    """A named user is admitted without the group, and a member of the group that is not named is refused."""
    with logging_vault(domain, dataset, address, tmp_path / "log", NOBODY):
        assert call_as(address) == CALLED
    socket_path(address).parent.rmdir()
    with logging_vault(domain, dataset, address, tmp_path / "log", NOBODY - 1):
        assert call_as(address, os.getegid()) != CALLED
    assert [line["method"] for line in lines(tmp_path / "log")] == ["Info", "Connect"]


@given(
    uid=st.integers(0, 9),
    groups=st.frozensets(st.integers(0, 9), max_size=3),
    users=st.frozensets(st.integers(0, 9), max_size=3),
    group=st.integers(0, 9),
)
def test_admission_is_the_own_user_and_the_named_ones_or_else_the_group(
    uid: int, groups: frozenset[int], users: frozenset[int], group: int
):
    """For every user and its groups, the rule is that of the module's text."""
    expected = {5, *users} if users else {5, *([uid] if group in groups else [])}
    assert (Peer(uid, 1, groups) in AdmittedUsers(5, users, group)) is (uid in expected)


def test_the_kernel_s_credentials_of_a_connection_are_read():
    """User, process and all groups are those of this process."""
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert Peer.of(one) == Peer(os.geteuid(), os.getpid(), frozenset({os.getegid(), *os.getgroups()}))


def test_a_relay_passes_every_byte_both_ways_and_ends_with_either_side(tmp_path: Path):
    """Megabytes in pieces of any size arrive as they were sent; an end on one side is an end on the other."""
    sent = os.urandom(3_000_001)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "behind"))
        server.listen()
        relay = PeerRelay(tmp_path / "front", tmp_path / "behind", frozenset(), print)
        with socket.socket(socket.AF_UNIX) as client, ThreadPoolExecutor(2) as pool:
            client.connect(str(tmp_path / "front"))
            inner, name = server.accept()
            assert peer_check.named_peer(f"unix:{name}") == f"uid {os.geteuid()}, pid {os.getpid()}"
            for source, sink in ((client, inner), (inner, client)):
                sending = pool.submit(source.sendall, sent)
                assert b"".join(received(sink, len(sent))) == sent
                sending.result()
            inner.close()
            assert client.recv(1) == b""
        relay.close()
    assert list(tmp_path.iterdir()) == [tmp_path / "behind"]


def test_a_relay_that_is_out_of_threads_serves_the_next_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that no thread is free for is closed, as often as there are places, and costs none of them."""
    start = threading.Thread.start

    def none_left(thread: threading.Thread) -> None:
        if "_relay" in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "behind"))
        server.listen()
        relay = PeerRelay(tmp_path / "front", tmp_path / "behind", frozenset(), print)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", none_left)
            for _ in range(MAX_CONNECTIONS + 1):
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(5)
                    client.connect(str(tmp_path / "front"))
                    assert client.recv(1) == b""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "front"))
            client.sendall(b"!")
            inner, _ = server.accept()
            with inner:
                assert inner.recv(1) == b"!"
        relay.close()


def received(connection: socket.socket, size: int) -> Iterator[bytes]:
    """Yield what comes, up to so many bytes."""
    while size > 0:
        data = connection.recv(70_001)
        assert data
        size -= len(data)
        yield data


def test_ended_connections_make_room(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """Many more connections than fit at once are served one after another."""
    with serving(domain, dataset, address):
        for _ in range(MAX_CONNECTIONS + 10):
            with VaultClient(address) as client:
                assert client.info().site == "north"


def test_a_vault_admits_users_by_name(
    domain: KeyDomain, dataset: EncryptedDataset, address: str, capsys: pytest.CaptureFixture[str]
):
    """`--allow-user` takes names and numbers; an unknown name, and a TCP port, are refused in one line."""
    users = ("--allow-user", "nobody", "--allow-user", "123")
    with site_vault(domain, dataset, address, *users), VaultClient(address) as client:
        assert client.info().site == "north"
    arguments = vault_arguments(certified(domain, "north"), dataset, address)
    assert main(["vault", *map(str, arguments), "--allow-user", "no one"]) == 1
    assert "there is no user 'no one': give --allow-user its name or number" in capsys.readouterr().err


def test_users_of_a_port_are_refused(domain: KeyDomain, dataset: EncryptedDataset):
    """Users are known at a Unix socket only."""
    with pytest.raises(ConfigError, match="--allow-user is for a Unix socket, got 'localhost:1'"):
        serve(service(domain, dataset), "localhost:1", users=frozenset({1}), stop=stopped())
