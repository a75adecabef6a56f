"""Vaults for tests, in a thread of the test or in a process of their own."""

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from secrets import token_hex
from typing import Any

from conftest import ROOT

from fedpp.config.site_policy import EvaluationLimits, SitePolicy
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.files import create_exclusively
from fedpp.keys import key_store
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.key_store import Site
from fedpp.keys.sealed_secret import Passphrase
from fedpp.protocol.membership import NO_BUNDLE
from fedpp.vault_api.vault_channel import TlsFiles
from simulations.benchmarks.bench_vault import certified
from simulations.chaos.vault_process import VaultProcess
from sites.vault.call_guard import IDLE_SECONDS
from sites.vault.vault_server import serve
from sites.vault.vault_service import VaultService

SECONDS = 20.0
PASSPHRASE = b"correct horse battery staple"
FEW = EvaluationLimits(min_patients=1)  # for tiny splits
VAULT = """
import logging, sys
from pathlib import Path
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.keys.key_domain import KeyDomain
from simulations.benchmarks.bench_vault import certified
from sites.vault.vault_server import serve
from sites.vault.vault_service import VaultService

site = certified(KeyDomain.of_secret(bytes(range(32)), n=2), "north")
service = VaultService(site, EncryptedDataset.open(Path(sys.argv[1])), policy=Path(sys.argv[2]))
serve(service, sys.argv[3], ready=lambda: print("ready", flush=True))
print(sorted({"tensorflow", "keras", "flwr", "pydicom"} & set(sys.modules)), logging.getLogger().handlers)
"""


def socket_path(address: str) -> Path:
    return Path(address.removeprefix("unix:"))


def stopped() -> threading.Event:
    """Return a stop that is set: a vault that starts where it should not ends at once, and its test fails."""
    stop = threading.Event()
    stop.set()
    return stop


def policy_of(dataset: EncryptedDataset, evaluation: EvaluationLimits = FEW) -> Path:
    """Write a policy beside a dataset that allows it, with these limits of evaluations."""
    path = dataset.path.with_name(f"{dataset.path.name} policy.yaml")
    path.write_text(SitePolicy((NO_BUNDLE,), (dataset.manifest.fingerprint,), evaluation=evaluation).to_yaml())
    return path


def service(domain: KeyDomain, dataset: EncryptedDataset, *, site: Site | None = None, **options: Any) -> VaultService:
    """Return the methods of a vault for a tiny dataset, whose splits are smaller than the default limits."""
    if "policy" not in options:
        options["policy"] = policy_of(dataset)
    return VaultService(site or certified(domain, "north"), dataset, **options)


@contextmanager
def serving(
    domain: KeyDomain,
    dataset: EncryptedDataset,
    address: str,
    *,
    tls: TlsFiles | None = None,
    users: frozenset[int] = frozenset(),
    idle_seconds: float = IDLE_SECONDS,
    **options: Any,
) -> Iterator[None]:
    """Serve a tiny dataset."""
    ready, stop = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=serve,
        args=(service(domain, dataset, **options), address),
        kwargs={"ready": ready.set, "stop": stop, "tls": tls, "users": users, "idle_seconds": idle_seconds},
        daemon=True,
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
def site_vault(
    domain: KeyDomain,
    dataset: EncryptedDataset,
    address: str,
    *options: object,
    evaluation: EvaluationLimits = FEW,
) -> Iterator[ForkServerProcess]:
    """Run `fedpp-site vault` from its `ready` to the end of the block."""
    arguments = vault_arguments(certified(domain, "north"), dataset, address, *options, evaluation=evaluation)
    vault = VaultProcess(*arguments, errors=errors_of(dataset))
    try:
        vault.await_ready(address)
        yield vault.process
    finally:
        vault.end()


def errors_of(dataset: EncryptedDataset) -> Path:
    """Return the file with what the dataset's `site_vault` writes to stderr."""
    return dataset.path.with_name("vault errors")


def vault_arguments(
    site: Site, dataset: EncryptedDataset, address: str, *options: object, evaluation: EvaluationLimits = FEW
) -> tuple[object, ...]:
    """Return the arguments of a site's vault, whose keys, policy and new audit log lie beside the dataset."""
    folder = dataset.path.with_name(f"keys of {site.identity.name}")
    if not folder.exists():
        key_store.join(folder, site, Passphrase(PASSPHRASE, log2_cost=10))
        create_exclusively(folder / "passphrase", PASSPHRASE)
    secret = ("--domain", folder, "--passphrase-file", folder / "passphrase")
    served = ("--dataset", dataset.path, "--address", address)
    return *secret, *served, *_decisions(dataset, evaluation, options), *options


def _decisions(dataset: EncryptedDataset, evaluation: EvaluationLimits, options: Sequence[object]) -> list[object]:
    """Return a policy and an audit log of its own, unless the options say that the vault is a trial."""
    if "--no-policy" in options:
        return []
    log = dataset.path.with_name(f"audit {token_hex(8)}.jsonl")
    return ["--policy", policy_of(dataset, evaluation), "--audit-log", log]


@contextmanager
def bare_vault_process(dataset: EncryptedDataset, address: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a vault in an interpreter of its own that imports nothing else."""
    command = [sys.executable, "-c", VAULT, str(dataset.path), str(policy_of(dataset)), address]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()
