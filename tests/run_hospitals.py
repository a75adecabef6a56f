"""Hospitals of masked runs for tests: real vaults in one process, and a plain coordinator that relays and adds.

There is no trainer: updates and logits are drawn, since a vault masks whatever rows its trainer hands it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from conftest import SPLIT, TINY, write_dataset
from vaults import FEW

from fedpp.aggregation.linear_check import ExactSum
from fedpp.aggregation.round_context import ring_of
from fedpp.aggregation.run_stage import RunStage
from fedpp.config.contract_limits import RunLimits
from fedpp.config.run_config import SPLITS
from fedpp.config.site_policy import EvaluationLimits, SitePolicy
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.keys.domain_ca import DomainCA
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.key_store import Site
from fedpp.keys.site_identity import SiteIdentity
from fedpp.protocol.membership import NO_BUNDLE
from fedpp.protocol.new_contract import small_changes
from fedpp.protocol.run_contract import CohortMember, Parent, RunContract, capped_weights, certificate_hash
from fedpp.protocol.run_spec import RunSpec
from fedpp.protocol.run_statements import SignedStatement
from fedpp.protocol.state_certificate import StateCertificate
from sites.vault.masked_runs.run_journal import RunJournal
from sites.vault.masked_runs.run_member import RunMember

DOMAIN = KeyDomain.of_secret(bytes(range(32)), n=2)
parsed = lru_cache(1024)(SignedStatement.from_json)  # tests that drive vaults at random look at all of them each time
NOW = datetime(2027, 1, 1, tzinfo=UTC)
NAMES = ("East", "North", "South", "West", "Xenia", "York", "Zenith", "Zion", "Zoe", "Zug")
SPEC = RunSpec.of(
    **TINY.values(),
    domain=DOMAIN.card().fingerprint,
    dtype="float64",
    learning_rate=0.05,
    batch_size=2,
    server_optimizer="fedavgm",
    server_learning_rate=0.7,
    epochs=1,
    seed=3,
    masked=True,
    examples=18,
    sites=3,
)


@dataclass
class Hospital:
    """One site: its keys, dataset, folder of runs and, while it is open, its vault's state machine."""

    name: str
    site: Site
    dataset: EncryptedDataset
    folder: Path
    limits: RunLimits = RunLimits()
    now: datetime = NOW
    evaluation: EvaluationLimits = FEW
    bundles: tuple[str, ...] = (NO_BUNDLE,)
    journal: RunJournal = field(init=False)
    vault: RunMember = field(init=False)

    def open(self, kind: type[RunJournal] = RunJournal) -> "Hospital":
        """Start the vault, with this kind of journal."""
        self.journal = kind.open(self.folder, self.site)
        self.vault = RunMember(self.site, self.dataset, self.journal, policy=self.policy, now=lambda: self.now)
        return self

    def restart(self, kind: type[RunJournal] = RunJournal) -> "Hospital":
        """End the vault and start it again."""
        self.journal.close()
        return self.open(kind)

    def seen(self, vault: Any) -> "Hospital":
        """Return this hospital with another vault to be asked."""
        shown = Hospital(self.name, self.site, self.dataset, self.folder, self.limits, self.now, self.evaluation)
        shown.vault = vault
        return shown

    def policy(self) -> SitePolicy:
        """Return the site's policy."""
        return SitePolicy(
            self.bundles, (self.dataset.manifest.fingerprint,), evaluation=self.evaluation, limits=self.limits
        )

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

    def update(self, number: int) -> np.ndarray:
        """Return the drawn update of a round: rows of small slots, as one vector."""
        generator = np.random.default_rng([number, *self.name.encode()])
        slots = generator.normal(scale=0.01, size=(TINY.parameters(), DOMAIN.n))
        return (slots @ np.linalg.inv(DOMAIN.matrix())).reshape(-1)

    def logits(self, number: int, split: str) -> np.ndarray:
        """Return drawn logits of a split, encrypted."""
        generator = np.random.default_rng([100 + number, *self.name.encode()])
        slots = generator.normal(size=(len(self.dataset.indices(split)), 2, DOMAIN.n))
        return slots @ np.linalg.inv(DOMAIN.matrix())


@contextmanager
def opened(folder: Path, count: int = 3) -> Iterator[list[Hospital]]:
    """Yield so many hospitals, their vaults started, and end the vaults."""
    made = hospitals(folder, count)
    try:
        yield made
    finally:
        for of in made:
            of.journal.close()


def certified(name: str, seed: int) -> Site:
    """Return a site with the identity of this seed."""
    identity = SiteIdentity(name, bytes([seed] * 32))
    return Site(DOMAIN, identity, DomainCA(DOMAIN.ca_seed()).certify(identity.request(), DOMAIN.card()))


def hospitals(folder: Path, count: int = 3) -> list[Hospital]:
    """Return so many hospitals, with the folders that they have there, their vaults started."""
    made = []
    for place, name in enumerate(NAMES[:count]):
        generator = np.random.default_rng(place)
        data = generator.normal(size=(len(SPLIT), 2, 8, 8, 1)), np.arange(len(SPLIT)) % 2
        path = folder / f"data of {name}"
        dataset = EncryptedDataset.open(path) if path.exists() else write_dataset(path, DOMAIN, data)
        made.append(Hospital(name, certified(name, place + 1), dataset, folder / f"runs of {name}").open())
    return made


def contract_of(cohort: Sequence[Hospital], **changes: Any) -> RunContract:
    """Return a contract of these hospitals, with these changes; those of a name of `RunSpec` change that."""
    weights = capped_weights([SPEC.weight(of.dataset.counts()["train"]) for of in cohort])
    of_spec = {name: changes.pop(name) for name in list(changes) if name in SPEC.values()}
    spec = SPEC.changed(examples=sum(weights), sites=len(cohort), **of_spec)
    values: dict[str, Any] = {
        "spec": spec,
        "nonce": sha256(b"nonce").hexdigest(),
        "expires": int((NOW + timedelta(days=30)).timestamp()),
        "bundle": NO_BUNDLE,
        "cohort": tuple(of.member(weight) for of, weight in zip(cohort, weights, strict=True)),
        "colluders": 0 if len(cohort) == 2 else 1,
        "rounds": 2,
    }
    return RunContract(**{**values, **changes})


@dataclass
class Coordinator:
    """A coordinator that keeps all statements and sends all of them with each request."""

    cohort: Sequence[Hospital]
    contract: RunContract
    statements: list[str] = field(default_factory=list)
    masked: dict[str, np.ndarray] = field(default_factory=dict)
    sealed: dict[str, bytes] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Return the contract's digest."""
        return self.contract.digest

    @property
    def certificates(self) -> list[str]:
        """Return the cohort's certificates."""
        return [of.site.certificate.to_json() for of in self.cohort]

    def all_state(self, phase: Callable[[Hospital], str]) -> None:
        """Ask every hospital, and then keep what they stated."""
        self.keep([phase(of) for of in self.cohort])

    def keep(self, statements: Iterable[str]) -> None:
        """Keep statements that are not known."""
        self.statements += [each for each in statements if each not in self.statements]

    def begin(self) -> "Coordinator":
        """Start the run: contract, coins, state."""
        self.all_state(lambda of: of.vault.accept(self.contract.to_json(), self.certificates))
        self.all_state(lambda of: of.vault.coin(self.digest, self.statements))
        self.all_state(lambda of: of.vault.start(self.digest, self.statements))
        return self

    def train(self, number: int) -> None:
        """Ask for the masked updates of a round."""
        replies = {of.name: self.trained(of, number) for of in self.cohort}
        self.masked = {name: values for name, (values, _) in replies.items()}
        self.keep(statement for _, statement in replies.values())

    def trained(self, of: Hospital, number: int) -> tuple[np.ndarray, str]:
        """Let a hospital train as its newest stage says, if its vault has no update."""
        reply = of.vault.train(self.digest, number, self.statements)
        if reply is None:
            stage = RunStage.from_bytes(of.vault.stage(self.digest))
            update = of.update(number) if stage.due == "train" else None
            reply = of.vault.train(self.digest, number, self.statements, update, of.logits(number, stage.split))
        assert reply is not None
        return reply

    def sum(self) -> ExactSum:
        """Return the sum of the masked updates."""
        values = next(iter(self.masked.values()))
        total = ExactSum(values.size, ring_of(self.contract.spec))
        for each in self.masked.values():
            total.add(each)
        return total

    def release(self, number: int) -> None:
        """Ask for the own masks of a round."""
        hashed = self.sum().hash
        replies = {of.name: of.vault.release(self.digest, number, self.statements, hashed) for of in self.cohort}
        self.sealed = {name: sealed for name, (_, sealed) in replies.items()}
        self.keep(statement for statement, _ in replies.values())

    def step(self, number: int) -> None:
        """Ask for the next state."""
        total, sealed = self.sum(), [self.sealed[of.name] for of in self.cohort]
        self.all_state(lambda of: of.vault.step(self.digest, number, self.statements, sealed, total.low, total.carry))

    def round(self, number: int) -> None:
        """Do a whole round."""
        self.train(number)
        self.release(number)
        self.step(number)

    def finish(self) -> list[RunStage]:
        """Do the rounds that are left; return the last stage of each hospital."""
        while any(stage.due != "end" for stage in self.stages()):
            self.round(min(stage.number for stage in self.stages()) + 1)
        return self.stages()

    def signed(self) -> list[SignedStatement]:
        """Return all statements."""
        return [parsed(text) for text in self.statements]

    def stages(self) -> list[RunStage]:
        """Return the newest stage of each hospital."""
        return [RunStage.from_bytes(of.vault.stage(self.digest)) for of in self.cohort]


def revision_of(run: Coordinator, number: int, cohort: Sequence[Hospital], **changes: Any) -> RunContract:
    """Return the contract by which a cohort continues from the certified state of a round."""
    purpose = "step" if number else "start"
    signed = [s for s in run.signed() if (s.statement.purpose, s.statement.round) == (purpose, number)]
    base = StateCertificate.made_of(run.contract, signed)
    made = contract_of(cohort, rounds=run.contract.rounds, nonce="cd" * 32)
    values: dict[str, Any] = {
        "revision": run.contract.revision + 1,
        "parent": Parent(run.digest, number, base.state),
        "changes": run.contract.changes + small_changes(run.contract, made.cohort),
    }
    return made.changed(**{**values, **changes})
