"""No caller of the vault blocks others: silence, floods, garbage, large messages, slow readers."""

import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import ROOT, TINY
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hospital import error_of, site
from vaults import SECONDS, serving, site_vault

from fedpp.config.site_policy import EvaluationLimits
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import VaultError
from fedpp.keys.key_domain import KeyDomain
from fedpp.vault_api import vault_pb2, vault_pb2_grpc
from fedpp.vault_api.vault_client import VaultClient
from simulations.benchmarks import bad_clients, bench_vault
from simulations.benchmarks.bench_vault import certified
from sites.vault.audit.audit_chain import verify
from sites.vault.audit.audit_log import AuditLog, Signer
from sites.vault.call_guard import MAX_CALLS_PER_METHOD
from sites.vault.memory_budget import MemoryBudget
from sites.vault.vault_server import MAX_CONNECTIONS

LOGITS = np.zeros((3, 2, 2))  # of split test


def test_an_idle_call_is_cancelled(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """A call whose caller sends nothing is cancelled after the idle limit; others continue meanwhile."""
    with serving(domain, dataset, address, idle_seconds=0.3), VaultClient(address) as client:
        quiet: list[grpc.StatusCode] = []
        thread = threading.Thread(target=lambda: quiet.extend(bad_clients.silence(address, 30.0)))
        started = time.monotonic()
        thread.start()
        while thread.is_alive():
            assert client.info().task.frames == 2
        assert time.monotonic() - started < 15
        assert quiet == [grpc.StatusCode.CANCELLED] * bad_clients.STREAMS


def test_a_slow_but_steady_caller_is_served(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """The limit is on the time between messages, and not on a call's time."""
    with serving(domain, dataset, address, idle_seconds=0.6), grpc.insecure_channel(address) as channel:

        def requests() -> Iterator[vault_pb2.EvaluateRequest]:
            yield vault_pb2.EvaluateRequest(split="test")
            data = LOGITS.tobytes()
            header = vault_pb2.ArrayChunk(name="logits", dtype="float64", shape=LOGITS.shape)
            parts = [header, *(vault_pb2.ArrayChunk(data=data[i : i + 24]) for i in range(0, len(data), 24))]
            for part in parts:
                time.sleep(0.2)
                yield vault_pb2.EvaluateRequest(logits=part)

        assert vault_pb2_grpc.VaultStub(channel).Evaluate(requests(), timeout=SECONDS).examples == 3


def test_a_caller_that_does_not_read_is_cancelled(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """Weights that nobody takes do not stay in the vault's memory."""
    request = vault_pb2.InitialWeightsRequest(network=TINY.changed(dense=65536).to_json(), seed=1, dtype="float64")
    with serving(domain, dataset, address, idle_seconds=0.2), grpc.insecure_channel(address) as channel:
        replies = vault_pb2_grpc.VaultStub(channel).InitialWeights(request, timeout=SECONDS)
        next(replies)
        time.sleep(1.0)
        with pytest.raises(grpc.RpcError) as ended:
            list(replies)
        assert ended.value.code() is grpc.StatusCode.CANCELLED


def test_a_flood_of_one_method_leaves_room_for_the_others(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """So many streams to Evaluate are open, and one more is refused; Info, weights and health reply."""
    over = threading.Event()

    def nothing() -> Iterator[vault_pb2.EvaluateRequest]:
        yield vault_pb2.EvaluateRequest(split="test")
        over.wait(SECONDS)

    with serving(domain, dataset, address), grpc.insecure_channel(address) as channel, VaultClient(address) as client:
        stub = vault_pb2_grpc.VaultStub(channel)
        calls = [stub.Evaluate.future(nothing(), timeout=SECONDS) for _ in range(MAX_CALLS_PER_METHOD)]
        deadline, refusal = time.monotonic() + SECONDS, ""
        while not refusal and time.monotonic() < deadline:
            time.sleep(0.05)  # the streams open meanwhile, before the day's evaluations are used up
            try:
                client.evaluate("test", LOGITS)
            except VaultError as full:
                refusal = str(full)
            # An evaluation that came before the last stream took its place: open that stream again.
            calls = [stub.Evaluate.future(nothing(), timeout=SECONDS) if call.done() else call for call in calls]
        assert refusal.endswith(f"refused: {MAX_CALLS_PER_METHOD} calls of Evaluate run: try again later")
        assert client.info().task.frames == 2
        assert client.initial_weights(TINY, 0, "float32")
        assert site("health", address).stdout == "serving\n"
        over.set()
        for call in calls:
            assert call.exception(SECONDS).code() is grpc.StatusCode.INVALID_ARGUMENT  # the stream had no logits
        assert client.evaluate("test", LOGITS).examples == 3


def test_a_message_of_a_gigabyte_is_refused(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """Announced and sent to methods of each kind, it costs the vault no memory, and the next caller no time."""
    methods = ("Evaluate", "Info", "InitialWeights", "Nothing")
    with site_vault(domain, dataset, address) as process, VaultClient(address) as client:
        client.info()
        with ThreadPoolExecutor(len(methods)) as pool:
            sent = list(pool.map(lambda method: bad_clients.announce_a_gigabyte(address, method), methods))
        assert all(size > 0 for size in sent)
        assert client.info().task.frames == 2
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert int(status.partition("VmHWM:")[2].split()[0]) < 300 * 1024


def test_a_message_above_the_limit_is_named(domain: KeyDomain, dataset: EncryptedDataset, address: str, tmp_path: Path):
    """A caller learns that its message is too large, and the call is recorded once."""
    log = AuditLog.open(tmp_path / "log", Signer.of(certified(domain, "north").identity))
    request = vault_pb2.EvaluateRequest(split="test", logits=vault_pb2.ArrayChunk(data=bytes(5 * 2**20)))
    with serving(domain, dataset, address, audit=log), grpc.insecure_channel(address) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            vault_pb2_grpc.VaultStub(channel).Evaluate(iter([request]), timeout=SECONDS)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    log.close()
    assert verify(tmp_path / "log").records == 2


def test_idle_connections_are_few_and_end(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """Connections without a call are bounded in number, and end; a client whose own has ended connects again."""
    with serving(domain, dataset, address, idle_seconds=0.5), VaultClient(address) as idle, ExitStack() as opened:
        connections = [opened.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(MAX_CONNECTIONS + 44)]
        for number, connection in enumerate(connections):
            connection.connect(address.removeprefix("unix:"))
            with suppress(OSError):  # it may be closed already
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0" if number % 2 else b"")
        open_now, most, deadline = len(connections), 0, time.monotonic() + SECONDS
        while open_now and time.monotonic() < deadline:
            time.sleep(0.2)
            open_now = sum(map(is_open, connections))
            most = max(most, open_now)
        assert open_now == 0
        assert 0 < most <= MAX_CONNECTIONS
        assert idle.info().task.frames == 2  # it connects again by itself
        with VaultClient(address) as client:
            assert client.info().task.frames == 2


def is_open(connection: socket.socket) -> bool:
    """Tell whether the vault has not closed a connection."""
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def test_garbage_harms_nobody(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """Random bytes, before and after HTTP/2's greeting, end their own connection and no other."""
    generator = random.Random(0)
    with serving(domain, dataset, address), VaultClient(address) as client:
        for _ in range(100):
            bad_clients.garbage(address, generator)
            assert client.info().task.frames == 2


def test_memory_is_shared_in_turn():
    """Taken memory is free again afterwards; a larger request gets all of it, alone; too long a wait is an error."""
    room = MemoryBudget(10, 0.05)
    with room.taking(6):
        with room.taking(4), pytest.raises(VaultError, match="the vault is busy: .*; try again later"):
            room.taking(1).__enter__()
        with pytest.raises(VaultError, match="busy"):
            room.taking(100).__enter__()
    with room.taking(100), pytest.raises(VaultError, match="busy"):
        room.taking(1).__enter__()
    with room.taking(10):
        pass


def test_memory_that_becomes_free_is_taken_by_a_waiting_call():
    """A call that waits for another's end is served, and not refused."""
    room, taken = MemoryBudget(10, SECONDS), threading.Event()

    def wait() -> None:
        with room.taking(10):
            taken.set()

    with room.taking(1):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not taken.wait(0.2)
    thread.join(SECONDS / 4)
    assert taken.is_set()


def test_weights_that_nobody_reads_delay_no_evaluation(
    domain: KeyDomain, dataset: EncryptedDataset, address: str, monkeypatch: pytest.MonkeyPatch
):
    """While a slow reader holds all memory for weights, others are refused after a wait; evaluations are served."""
    monkeypatch.setattr("sites.vault.vault_service.MEMORY_BYTES", 1)
    monkeypatch.setattr("sites.vault.vault_service.MEMORY_SECONDS", 0.3)
    large = TINY.changed(dense=65536).to_json()
    request = vault_pb2.InitialWeightsRequest(network=large, seed=1, dtype="float64")
    with serving(domain, dataset, address), grpc.insecure_channel(address) as channel, VaultClient(address) as client:
        unread = vault_pb2_grpc.VaultStub(channel).InitialWeights(request, timeout=SECONDS)
        next(unread)
        with pytest.raises(VaultError, match="the vault is busy"):
            client.initial_weights(TINY, 0, "float32")
        assert client.evaluate("test", LOGITS).examples == 3
        assert client.info().task.frames == 2
        with pytest.raises(VaultError, match="the vault is busy"):
            client.initial_weights(TINY, 0, "float32")
        unread.cancel()
        until("replied", lambda: client.initial_weights(TINY, 0, "float32"))


def test_evaluations_wait_for_each_other(
    domain: KeyDomain, dataset: EncryptedDataset, address: str, monkeypatch: pytest.MonkeyPatch
):
    """While one caller's predictions fill the memory for evaluations, another's are refused after a wait."""
    monkeypatch.setattr("sites.vault.vault_service.MEMORY_BYTES", 1)
    monkeypatch.setattr("sites.vault.vault_service.MEMORY_SECONDS", 0.3)
    header, more = vault_pb2.ArrayChunk(name="logits", dtype="float64", shape=LOGITS.shape), threading.Event()

    def requests() -> Iterator[vault_pb2.EvaluateRequest]:
        yield vault_pb2.EvaluateRequest(split="test")
        yield vault_pb2.EvaluateRequest(logits=header)
        more.wait(SECONDS)
        yield vault_pb2.EvaluateRequest(logits=vault_pb2.ArrayChunk(data=LOGITS.tobytes()))

    with serving(domain, dataset, address), grpc.insecure_channel(address) as channel, VaultClient(address) as client:
        slow = vault_pb2_grpc.VaultStub(channel).Evaluate.future(requests(), timeout=SECONDS)
        until("the vault is busy", lambda: client.evaluate("test", LOGITS))
        more.set()
        assert slow.result(SECONDS).examples == 3
        assert client.evaluate("test", LOGITS).examples == 3


def until(outcome: str, call: Callable[[], object]) -> None:
    """Call until it ends so: "replied", or with what a refusal says."""
    deadline, found = time.monotonic() + SECONDS, ""
    while outcome not in found:
        assert time.monotonic() < deadline, found
        try:
            call()
            found = "replied"
        except VaultError as error:
            found = str(error)


def test_the_policy_s_limits_are_the_vault_s(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """Each of `evaluation` in site.yaml is kept by `fedpp-site vault --policy`."""
    limits = EvaluationLimits(min_patients=1, per_round=1, rounds=5, per_day=3)
    with site_vault(domain, dataset, address, "--read-only", evaluation=limits), VaultClient(address) as client:
        with pytest.raises(VaultError, match="this vault is read-only"):
            client.initial_weights(TINY, 0, "float32")
        client.evaluate("test", LOGITS, "run", 5)
        for run, number, reason in (("run", 5, "and 1 are allowed"), ("run", 6, "beyond the 5")):
            with pytest.raises(VaultError, match=reason):
                client.evaluate("test", LOGITS, run, number)
        for number in (1, 2):
            client.evaluate("test", LOGITS, "run", number)
        with pytest.raises(VaultError, match="3 evaluations were made within 24 hours, and 3 are allowed"):
            client.evaluate("test", LOGITS, "run", 3)
    with (
        site_vault(domain, dataset, address, evaluation=EvaluationLimits(min_patients=4)),
        VaultClient(address) as client,
        pytest.raises(VaultError, match="has 3 patients, and counts of fewer than 4"),
    ):
        client.evaluate("test", LOGITS)


def test_health_is_the_standard_service(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """grpc.health.v1 replies for the whole server and for the vault's service, and serves no `Watch`."""
    with serving(domain, dataset, address), grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "fedpp.vault.v1.Vault"):
            reply = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=SECONDS)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=SECONDS)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError) as unserved:
            list(stub.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS))
        assert unserved.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert site("health", address).stdout == "serving\n"
    assert "no healthy vault at" in error_of("health", address)


def test_many_clients_are_answered_beside_bad_ones():
    """The benchmark's short form: no call fails, whatever three bad clients do meanwhile, and memory stays bounded.

    Each of the three reached the vault, and the row says how often.
    """
    command = [sys.executable, "-m", "simulations", "bench", "vault", "--calls", "96", "--clients", "16", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["name"] == "vault"
    alone, beside = result["rows"]
    assert ("alone" in alone["case"], "beside" in beside["case"]) == (True, True)
    assert all(beside[f"{name}_rounds"] > 0 for name in ("garbage", "gigabyte", "silence"))
    for row in (alone, beside):
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["max_ms"]
        assert row["errors"] == 0
        assert row["max_ms"] < 10_000
        assert row["peak_mb"] < 400


@pytest.mark.parametrize("what", ["no vault", "killed"])
def test_bad_clients_that_do_nothing_fail_the_benchmark(
    what: str, domain: KeyDomain, dataset: EncryptedDataset, address: str
):
    """Clients that never reach the vault, or die, do not test it: no figure is reported."""
    command = ["bad_clients", address, "2" if what == "no vault" else "30"]
    if what == "no vault":
        with pytest.raises(VaultError, match=r"bad_clients did not start, .*: {\"garbage\": 0, \"gigabyte\": 0, \"sil"):
            bench_vault.running(command, "started").__enter__()
        return
    with serving(domain, dataset, address), bench_vault.running(command, "started") as others:
        others.kill()
        with pytest.raises(VaultError, match="a bad client failed, so nothing was measured: exit -9"):
            bench_vault.rounds_of(others)
