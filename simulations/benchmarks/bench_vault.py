"""Benchmark of a vault under load: latency and memory with many clients, alone and beside three malicious ones.

The vault is a process of its own with an identity and an audit log, on a Unix socket.
"""

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedpp.config.site_policy import EvaluationLimits, SitePolicy
from fedpp.config.task import Task
from fedpp.dataset.dataset_manifest import SequenceRecord
from fedpp.dataset.dataset_writer import DatasetWriter
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import VaultError
from fedpp.keys.domain_ca import DomainCA
from fedpp.keys.encryption import SequenceCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.key_store import Site
from fedpp.keys.site_identity import SiteIdentity
from fedpp.protocol.coordinator_identity import SIMULATED
from fedpp.protocol.membership import NO_BUNDLE, PROTOCOL
from fedpp.vault_api.vault_client import VaultClient
from simulations.simulated_federation import ROOT

from .measuring import MIB, memory_bytes, result

CALLS, CLIENTS = 10_000, 32
SEQUENCES = 200  # of the evaluated split
READY_SECONDS = 60.0
WITHOUT_LIMITS = 10**9
_KINDS = ("Info", "Info", "Evaluate", "Evaluate", "Sign")  # equally likely


def vault(calls: int | None = None, clients: int | None = None) -> dict[str, Any]:
    """Send a vault mixed requests, without and with bad clients beside."""
    with tempfile.TemporaryDirectory(prefix="fedpp-bench-") as name:
        folder = Path(name)
        _write_dataset(folder / "dataset")
        cases = ("alone", "beside garbage, 1 GB messages and silence")
        rows = [_case(folder, case, calls or CALLS, clients or CLIENTS) for case in cases]
    return result("vault", rows, ("fedpp", "grpcio", "numpy", "cryptography"))


def _case(folder: Path, case: str, calls: int, clients: int) -> dict[str, Any]:
    address = f"unix:{folder}/{'a' if case == 'alone' else 'b'}.sock"
    with running(["bench_vault", str(folder), address], "ready") as process:
        if case == "alone":
            figures = _load(address, calls, clients)
        else:
            with running(["bad_clients", address, str(READY_SECONDS)], "started") as others:
                figures = {**_load(address, calls, clients), **rounds_of(others)}
        peak, final = memory_bytes("VmHWM", process.pid) / MIB, memory_bytes("VmRSS", process.pid) / MIB
    memory = {"peak_mb": peak, "final_mb": final}
    return {"case": f"{calls:,} calls of {clients} clients, {case}", **figures, **memory}


def _load(address: str, calls: int, clients: int) -> dict[str, Any]:
    def client(number: int) -> tuple[list[float], list[str]]:
        kinds, seconds, errors = random.Random(number), [], []  # noqa: S311
        logits = np.zeros((SEQUENCES, 2, 2))
        with VaultClient(address) as connection:
            for _ in range(calls // clients):
                started = time.perf_counter()
                try:
                    match kinds.choice(_KINDS):
                        case "Info":
                            connection.info()
                        case "Evaluate":
                            connection.evaluate("test", logits)
                        case _:
                            connection.sign("0" * 64, "1", PROTOCOL, NO_BUNDLE, SIMULATED)
                except VaultError as error:
                    errors.append(str(error))
                seconds.append(time.perf_counter() - started)
        return seconds, errors

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        replies = list(pool.map(client, range(clients)))
    took = time.perf_counter() - started
    seconds = sorted(1000 * value for values, _ in replies for value in values)
    return {
        "errors": sum(len(errors) for _, errors in replies),
        "calls_per_second": len(seconds) / took,
        "p50_ms": statistics.median(seconds),
        "p99_ms": seconds[int(0.99 * len(seconds))],
        "max_ms": seconds[-1],
    }


def rounds_of(bad_clients: "subprocess.Popen[str]") -> dict[str, int]:
    """End the bad clients, and return how often each reached the vault; raise `VaultError` if one ended before."""
    bad_clients.terminate()
    printed = bad_clients.communicate(timeout=READY_SECONDS)[0].strip()
    if bad_clients.returncode:
        raise VaultError(f"a bad client failed, so nothing was measured: exit {bad_clients.returncode} {printed}")
    return {f"{name}_rounds": number for name, number in json.loads(printed).items()}


@contextmanager
def running(command: list[str], sign: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a module of `simulations.benchmarks` for this block, which begins when the module has printed `sign`.

    Raises `VaultError` if it does not start.
    """
    module = [sys.executable, "-m", f"simulations.benchmarks.{command[0]}", *command[1:]]
    with subprocess.Popen(module, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            first = process.stdout.readline() if process.stdout else ""
            if first != f"{sign}\n":
                raise VaultError(
                    f"simulations.benchmarks.{command[0]} did not start, so nothing was measured: {first.strip()}"
                )
            yield process
        finally:
            process.kill()


_DOMAIN = KeyDomain.of_secret(bytes(range(32)), n=2)


def _write_dataset(path: Path) -> None:
    cipher = SequenceCipher(_DOMAIN, "float32")
    with DatasetWriter(path, _DOMAIN.card(), Task(1, 4, 4, 1, ("no", "yes")), "float32") as writer:
        for number in range(SEQUENCES):
            record = SequenceRecord(f"{number:032x}", f"{number:032x}", 1, "test")
            writer.add(record, cipher.frames(record.id, np.zeros((1, 4, 4, 1))), cipher.label(record.id, number % 2, 2))


def certified(domain: KeyDomain, name: str) -> Site:
    """Return a site with a constant identity, and the domain's certificate of it."""
    identity = SiteIdentity(name, bytes(32))
    return Site(domain, identity, DomainCA(domain.ca_seed()).certify(identity.request(), domain.card()))


def _serve(folder: Path, address: str) -> None:
    from sites.vault.audit.audit_log import AuditLog, Signer
    from sites.vault.vault_server import serve
    from sites.vault.vault_service import VaultService

    site, dataset = certified(_DOMAIN, "bench"), EncryptedDataset.open(folder / "dataset")
    socket = Path(address.removeprefix("unix:"))
    log = AuditLog.open(socket.with_suffix(".log"), Signer.of(site.identity))
    policy = socket.with_suffix(".yaml")
    limits = EvaluationLimits(per_day=WITHOUT_LIMITS)
    policy.write_text(SitePolicy((NO_BUNDLE,), (dataset.manifest.fingerprint,), evaluation=limits).to_yaml())
    service = VaultService(site, dataset, policy=policy, audit=log)
    serve(service, address, ready=lambda: print("ready", flush=True))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2])
