"""Laboratory of attacks: hospitals with real vaults on sockets of this machine, in threads of this process.

A vault's trainer draws an update from the weights that it gets and from the hospital's name: like a training, it
repeats itself on equal weights, and on others has other results.
"""

import secrets
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpp.aggregation.run_stage import RunStage
from fedpp.config.contract_limits import RunLimits
from fedpp.config.model_spec import ModelChoices, ModelSpec
from fedpp.config.run_config import SPLITS, SiteConfig
from fedpp.config.site_policy import SecureAggregation, SitePolicy
from fedpp.config.task import Task
from fedpp.dataset.dataset_manifest import SequenceRecord
from fedpp.dataset.dataset_writer import DatasetWriter
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import VaultError
from fedpp.keys import key_store
from fedpp.keys.domain_ca import DomainCA
from fedpp.keys.encryption import SequenceCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.key_store import Site
from fedpp.keys.sealed_secret import Passphrase
from fedpp.keys.site_identity import SiteIdentity
from fedpp.protocol.membership import NO_BUNDLE
from fedpp.protocol.run_contract import CohortMember, certificate_hash
from fedpp.protocol.site_description import SiteDescription
from fedpp.vault_api.vault_client import VaultClient
from sites.vault.audit.audit_log import AuditLog, Signer
from sites.vault.call_guard import IDLE_SECONDS
from sites.vault.masked_runs.run_journal import RunJournal
from sites.vault.vault_server import serve
from sites.vault.vault_service import VaultService

DOMAIN = KeyDomain.of_secret(bytes(range(32)), n=2)
NETWORK = ModelSpec(Task(1, 8, 8, 1, ("no", "yes")), ModelChoices(filters=(3, 4), dense=5, lstm=4))
SEQUENCES = {"train": 12, "validation": 12, "test": 12}  # each of a patient of its own
SECURE_AGGREGATION: SecureAggregation = "required"  # in all policies
READY_SECONDS = 20.0
NAMES = ("East", "North", "South", "West", "Xenia", "Zenith")


@dataclass
class Hospital:
    """One site: its keys, its dataset, and its vault while it runs."""

    site: Site
    dataset: EncryptedDataset
    folder: Path
    address: str
    limits: RunLimits = RunLimits()
    idle_seconds: float = IDLE_SECONDS  # longest wait of the vault for a caller
    scale: float = 1.0  # of its updates: an honest trainer's are of 1
    vault: VaultClient = field(init=False)
    journal: RunJournal = field(init=False)
    _running: ExitStack = field(init=False, default_factory=ExitStack)

    @property
    def name(self) -> str:
        """Return the site's name."""
        return self.site.identity.name

    @property
    def runs(self) -> Path:
        """Return the vault's folder of runs."""
        return self.folder / "runs"

    @property
    def log(self) -> Path:
        """Return the vault's audit log."""
        return self.folder / "audit.log"

    @property
    def labels(self) -> NDArray[np.int64]:
        """Return the classes of the validation split, in the dataset's order."""
        return _labels(self.name, len(self.dataset))[self.dataset.indices("validation")]

    def images(self, split: str) -> NDArray[np.float64]:
        """Return the images of a split, `[sequences, height, width]`."""
        frames = _frames(self.name, len(self.dataset))[self.dataset.indices(split)]
        return frames.reshape(len(frames), NETWORK.task.height, NETWORK.task.width)

    @property
    def config(self) -> SiteConfig:
        """Return the configuration of the site's ClientApp, whose evaluation key is written if it is not there."""
        keys = self.folder / "keys"
        if not keys.exists():
            key_store.join(keys, self.site, Passphrase(secrets.token_bytes(24), log2_cost=10))
        key, policy = keys / key_store.EVALUATION_KEY, self.folder / "site.yaml"
        return SiteConfig(self.dataset.path, key, self.address, policy, self.folder / "work")

    def start(self) -> "Hospital":
        """Start the vault."""
        with ExitStack() as stack:
            audit = AuditLog.open(self.log, Signer.of(self.site.identity))
            stack.callback(audit.close)
            self.journal = RunJournal.open(self.runs, self.site)
            stack.callback(self.journal.close)
            policy = self.folder / "site.yaml"
            policy.write_text(self.policy().to_yaml())
            service = VaultService(self.site, self.dataset, policy=policy, audit=audit, journal=self.journal)
            stack.enter_context(_served(service, self.address, self.idle_seconds))
            self.vault = stack.enter_context(VaultClient(self.address))
            self._running = stack.pop_all()
        return self

    def stop(self) -> None:
        """End the vault."""
        self._running.close()

    def policy(self) -> SitePolicy:
        """Return the site's policy."""
        datasets = (self.dataset.manifest.fingerprint,)
        return SitePolicy((NO_BUNDLE,), datasets, limits=self.limits, secure_aggregation=SECURE_AGGREGATION)

    def member(self, weight: int) -> CohortMember:
        """Return the site's entry of a contract."""
        sequences, patients = self.dataset.counts(), self.dataset.patients()
        return CohortMember(
            self.name,
            certificate_hash(self.site.certificate),
            tuple(sequences[split] for split in SPLITS),
            tuple(patients[split] for split in SPLITS),
            weight,
        )

    def describe(self) -> SiteDescription:
        """Return what the site tells every coordinator of itself."""
        own = self.member(1)
        return SiteDescription(
            self.name, DOMAIN.card().fingerprint, DOMAIN.n, NETWORK.task, own.sequences, own.patients
        )

    def update(self, stage: RunStage) -> NDArray[np.float64]:
        """Return what training from a stage's weights adds to them, as one vector of rows."""
        slots = self._drawn(stage, "update").normal(scale=0.01 * self.scale, size=(NETWORK.parameters(), DOMAIN.n))
        rows: NDArray[np.float64] = (slots @ np.linalg.inv(DOMAIN.matrix())).reshape(-1)
        return rows

    def logits(self, stage: RunStage) -> NDArray[np.float64]:
        """Return encrypted predictions of a stage's weights on the split that is due."""
        count = len(self.dataset.indices(stage.split))
        slots = self._drawn(stage, "logits").normal(size=(count, len(NETWORK.task.classes), DOMAIN.n))
        return encrypted(slots)

    def _drawn(self, stage: RunStage, what: str) -> np.random.Generator:
        weights = b"".join(rows.tobytes() for rows in stage.state.rows.values())
        return np.random.default_rng(list(sha256(f"{self.name} {what} ".encode() + weights).digest()))


@dataclass(frozen=True)
class Laboratory:
    """A folder of this attempt, and the hospitals that it starts there; `is_short` for a quick check."""

    folder: Path
    is_short: bool
    stack: ExitStack

    def hospitals(self, count: int, limits: RunLimits | None = None, largest: int = 1) -> list[Hospital]:
        """Return so many hospitals, whose vaults run until the attempt ends; the first has `largest` times the data."""
        return [self.hospital(name, limits, 1 if place else largest) for place, name in enumerate(NAMES[:count])]

    def hospital(
        self, name: str, limits: RunLimits | None = None, times: int = 1, idle_seconds: float = IDLE_SECONDS
    ) -> Hospital:
        """Return a hospital of this name, whose vault runs."""
        folder = self.folder / name
        folder.mkdir()
        address, dataset = f"unix:{folder}/vault.sock", _dataset(folder / "dataset", name, times)
        of = Hospital(site_of(name), dataset, folder, address, limits or RunLimits(), idle_seconds)
        self.stack.callback(of.stop)
        return of.start()

    def drawn(self, what: str) -> np.random.Generator:
        """Return a generator of this purpose, for what an attacker draws."""
        return np.random.default_rng(list(sha256(what.encode()).digest()))


def site_of(name: str) -> Site:
    """Return the keys of a hospital of this name, certified by the domain."""
    identity = SiteIdentity(name, sha256(f"hospital {name}".encode()).digest())
    return Site(DOMAIN, identity, DomainCA(DOMAIN.ca_seed()).certify(identity.request(), DOMAIN.card()))


def encrypted(slots: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows of these slots under the domain's key."""
    rows: NDArray[np.float64] = slots @ np.linalg.inv(DOMAIN.matrix())
    return rows


def _labels(name: str, count: int) -> NDArray[np.int64]:
    return np.random.default_rng(list(name.encode())).integers(2, size=count)


def _frames(name: str, count: int) -> NDArray[np.float64]:
    task = NETWORK.task
    return np.random.default_rng(list(name.encode())).normal(
        size=(count, task.frames, task.height, task.width, task.channels)
    )


def _dataset(path: Path, name: str, times: int) -> EncryptedDataset:
    """Write and open an encrypted dataset of noise."""
    splits = [split for split, count in SEQUENCES.items() for _ in range(times * count)]
    cipher, labels, images = SequenceCipher(DOMAIN, "float64"), _labels(name, len(splits)), _frames(name, len(splits))
    with DatasetWriter(path, DOMAIN.card(), NETWORK.task, "float64") as writer:
        for number, (split, label, frames) in enumerate(zip(splits, labels, images, strict=True)):
            record = SequenceRecord(f"{number:032x}", f"{1000 + number:032x}", NETWORK.task.frames, split)
            writer.add(record, cipher.frames(record.id, frames), cipher.label(record.id, int(label), 2))
    return EncryptedDataset.open(path)


@contextmanager
def _served(service: VaultService, address: str, idle_seconds: float) -> Iterator[None]:
    ready, stop = threading.Event(), threading.Event()
    options: dict[str, Any] = {"ready": ready.set, "stop": stop, "idle_seconds": idle_seconds}
    thread = threading.Thread(target=serve, args=(service, address), kwargs=options, daemon=True)
    thread.start()
    try:
        if not ready.wait(READY_SECONDS):
            raise VaultError(f"the vault at {address} did not start: see the messages above")
        yield
    finally:
        stop.set()
        thread.join(READY_SECONDS)
