"""The vault as a process: its socket, its end, and its client's errors when it is missing."""

import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import TINY
from vaults import SECONDS, bare_vault_process, service, serving, site_vault, socket_path, stopped

from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import ConfigError, VaultError
from fedpp.keys.key_domain import KeyDomain
from fedpp.vault_api import vault_client, vault_connection, vault_pb2, vault_pb2_grpc
from fedpp.vault_api.vault_client import VaultClient
from sites.vault.vault_server import serve


def test_the_socket_is_for_a_group_and_gone_after_the_stop(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """The folder is 0750 and the socket 0660, however permissive the process; others cannot connect."""
    path, before = socket_path(address), os.umask(0)
    try:
        with serving(domain, dataset, address):
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert os.umask(0) == 0
        assert not path.exists()
    finally:
        os.umask(before)


def test_ctrl_c_stops_a_vault(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """SIGINT ends it cleanly."""
    with site_vault(domain, dataset, address) as process:
        os.kill(process.pid, signal.SIGINT)
        process.join(SECONDS)
        assert process.exitcode == 0
    assert not socket_path(address).exists()


def test_sigterm_stops_a_vault_that_never_loaded_tensorflow(dataset: EncryptedDataset, address: str):
    """A vault in its own interpreter serves all three calls without TensorFlow, and ends cleanly on a signal."""
    with bare_vault_process(dataset, address) as process:
        with VaultClient(address) as client:
            assert client.info().task.frames == 2
            assert len(client.initial_weights(TINY, 0, "float32")) == len(TINY.weights())
            assert client.evaluate("test", np.zeros((3, 2, 2))).examples == 3
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=SECONDS)
        assert (process.returncode, output) == (0, "[] []\n")
    assert not socket_path(address).exists()


def test_a_second_vault_does_not_take_a_live_socket(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """The second is refused with one line, and the first continues."""
    with serving(domain, dataset, address), VaultClient(address) as client:
        with pytest.raises(VaultError, match=r"a vault is running at unix:.* already: stop it"):
            serve(service(domain, dataset), address, stop=stopped())
        with VaultClient(address) as another:
            assert another.info() == client.info()


def test_a_vault_that_ends_leaves_the_next_one_s_socket(
    domain: KeyDomain, dataset: EncryptedDataset, address: str, monkeypatch: pytest.MonkeyPatch
):
    """A vault that waits for a running call has released its address: its end does not unlink the next socket."""
    monkeypatch.setattr("sites.vault.vault_server.GRACE_SECONDS", 2.0)
    ready, stop, more = threading.Event(), threading.Event(), threading.Event()
    arguments = {"ready": ready.set, "stop": stop}
    first = threading.Thread(target=serve, args=(service(domain, dataset), address), kwargs=arguments, daemon=True)
    first.start()
    assert ready.wait(SECONDS)

    def requests() -> Iterator[vault_pb2.EvaluateRequest]:
        yield vault_pb2.EvaluateRequest(split="test")
        more.wait(SECONDS)

    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(SECONDS)
        running = vault_pb2_grpc.VaultStub(channel).Evaluate.future(requests(), timeout=SECONDS)
        time.sleep(0.5)  # until the call is at the vault
        assert not running.done()
        stop.set()
        while socket_path(address).exists():
            time.sleep(0.01)
        with serving(domain, dataset, address):
            assert first.is_alive()
            first.join(SECONDS)
            more.set()
            with VaultClient(address) as client:
                assert client.info().task.frames == 2
    assert not socket_path(address).exists()


def test_a_killed_vault_s_socket_is_replaced(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """The socket of a killed vault does not keep the next one from starting."""
    with site_vault(domain, dataset, address) as process:
        process.kill()
        process.join(SECONDS)
    assert socket_path(address).is_socket()
    with serving(domain, dataset, address), VaultClient(address) as client:
        assert client.info().task.frames == 2


def test_a_busy_socket_is_not_taken_for_a_stale_one(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """A socket that neither accepts nor refuses may be alive: it is left alone."""
    path = socket_path(address)
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as owner, socket.socket(socket.AF_UNIX) as waiting:
        owner.bind(str(path))
        owner.listen(0)
        waiting.connect(str(path))  # nobody accepts: the queue is full
        with pytest.raises(VaultError, match="may belong to a running vault"):
            serve(service(domain, dataset), address, stop=stopped())
    assert path.is_socket()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("localhost:50051", "a vault at localhost:50051 needs certificates: give --tls"),
        ("{folder}/vault.sock", "must be unix:/absolute/path.sock"),
        ("unix:vault.sock", "must be unix:/absolute/path.sock, or HOST:PORT with --tls, got 'unix:vault.sock'"),
        ("unix:{folder}/" + 107 * "x", "is longer than 107 bytes: choose a shorter one"),
        ("unix:{folder}/a%41.sock", "must have no %"),
        ("unix:{folder}/file", "is a file and no socket"),
        ("unix:{folder}/file/vault.sock", "cannot make the socket's folder"),
    ],
)
def test_addresses_that_cannot_be_served_are_refused(
    wrong: str, reason: str, domain: KeyDomain, dataset: EncryptedDataset, address: str
):
    """They are named before anything is created."""
    folder = socket_path(address).parents[1]
    (folder / "file").write_text("not a socket")
    with pytest.raises(ConfigError, match=reason):
        serve(service(domain, dataset), wrong.format(folder=folder), stop=stopped())
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("file", "not a socket")]


def test_a_missing_vault_is_named(address: str, monkeypatch: pytest.MonkeyPatch):
    """The client says where it looked and how to start a vault."""
    monkeypatch.setattr(vault_connection, "CONNECT_SECONDS", 0.3)
    with pytest.raises(VaultError, match=f"no vault answers at {address}: start it with `fedpp-site vault`"):
        VaultClient(address).__enter__()


def test_a_vault_that_goes_away_is_named(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """A vault that dies between two calls is one clear line, not gRPC's."""
    with site_vault(domain, dataset, address) as process, VaultClient(address) as client:
        client.info()
        process.kill()
        process.join(SECONDS)
        with pytest.raises(VaultError) as gone:
            client.info()
    assert str(gone.value) == f"the vault at {address} went away: start it again with `fedpp-site vault`"


def test_a_vault_that_hangs_is_a_timeout(
    domain: KeyDomain, dataset: EncryptedDataset, address: str, monkeypatch: pytest.MonkeyPatch
):
    """Every call has a deadline: a stopped process does not block the trainer for ever."""
    monkeypatch.setattr(vault_client, "SECONDS", 0.2)
    monkeypatch.setattr(vault_connection, "TRANSFER_SECONDS", 0.2)
    with site_vault(domain, dataset, address) as process, VaultClient(address) as client:
        client.info()
        os.kill(process.pid, signal.SIGSTOP)
        deadline = time.monotonic() + SECONDS
        while not all(") T " in file.read_text() for file in Path(f"/proc/{process.pid}/task").glob("*/stat")):
            assert time.monotonic() < deadline
            time.sleep(0.001)  # until its last thread has stopped
        for call in (
            client.info,
            lambda: client.initial_weights(TINY, 0, "float32"),
            lambda: client.evaluate("test", np.zeros((3, 2, 2))),
        ):
            started = time.monotonic()
            with pytest.raises(VaultError, match="did not answer in time"):
                call()
            assert time.monotonic() - started < SECONDS / 2
        process.kill()  # no other signal reaches it
