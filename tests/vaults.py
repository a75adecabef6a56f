"""Vaults for tests: in a thread of the test, and in a process of their own."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import ROOT

from fedpp.cipher.dataset import EncryptedDataset
from fedpp.keys.domain import KeyDomain
from sites.vault import serve

SECONDS = 20.0
VAULT = """
import logging, sys
from pathlib import Path
from fedpp.cipher.dataset import EncryptedDataset
from fedpp.keys.domain import KeyDomain
from sites.vault import serve

domain = KeyDomain.of_secret(bytes(range(32)), n=2)
serve(domain, EncryptedDataset.open(Path(sys.argv[1])), sys.argv[2], ready=lambda: print("ready", flush=True))
print(sorted({"tensorflow", "keras", "flwr", "pydicom"} & set(sys.modules)), logging.getLogger().handlers)
"""


def socket_path(address: str) -> Path:
    return Path(address.removeprefix("unix:"))


def stopped() -> threading.Event:
    """Return a stop that is set: a vault that should have been refused ends at once, and its test fails."""
    stop = threading.Event()
    stop.set()
    return stop


@contextmanager
def serving(domain: KeyDomain, dataset: EncryptedDataset, address: str) -> Iterator[None]:
    ready, stop = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=serve, args=(domain, dataset, address), kwargs={"ready": ready.set, "stop": stop}, daemon=True
    )
    thread.start()
    try:
        assert ready.wait(SECONDS)
        yield
    finally:
        stop.set()
        thread.join(SECONDS)
    assert not thread.is_alive()


@contextmanager
def vault_process(dataset: EncryptedDataset, address: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", VAULT, str(dataset.path), address]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()
