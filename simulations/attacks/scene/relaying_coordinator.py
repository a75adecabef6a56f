"""Coordinator under an attacker's hand: it relays, adds and keeps as the protocol says, and more in an attack."""

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpp.aggregation.linear_check import ExactSum
from fedpp.aggregation.ring import EncodedUpdate, Ring
from fedpp.aggregation.round_context import ring_of
from fedpp.aggregation.run_stage import RunStage
from fedpp.protocol.membership import NO_BUNDLE
from fedpp.protocol.run_contract import RunContract, capped_weights
from fedpp.protocol.run_spec import RunSpec

from .laboratory import DOMAIN, NETWORK, Hospital

DAY = 86_400


def contract_of(cohort: Sequence[Hospital], **changes: Any) -> RunContract:
    """Return a contract of these hospitals, with these changes; those of a name of `RunSpec` change that."""
    spec = RunSpec.of(
        **NETWORK.values(),
        domain=DOMAIN.card().fingerprint,
        dtype="float64",
        learning_rate=0.05,
        batch_size=4,
        epochs=1,
        seed=3,
        masked=True,
        examples=1,
        sites=len(cohort),
    )
    spec = spec.changed(**{name: changes.pop(name) for name in list(changes) if name in spec.values()})
    weights = capped_weights([spec.weight(of.dataset.counts()["train"]) for of in cohort])
    values: dict[str, Any] = {
        "spec": spec.changed(examples=sum(weights)),
        "nonce": secrets.token_hex(32),
        "expires": int(time.time()) + DAY,
        "bundle": NO_BUNDLE,
        "cohort": tuple(of.member(weight) for of, weight in zip(cohort, weights, strict=True)),
        "colluders": 1,
        "rounds": 3,
    }
    return RunContract(**{**values, **changes})


@dataclass
class Coordinator:
    """A run as its coordinator sees it."""

    cohort: Sequence[Hospital]
    contract: RunContract
    statements: list[str] = field(default_factory=list)  # also those of the run that this one revises
    masked: dict[str, EncodedUpdate] = field(default_factory=dict)  # y_i of the newest round, by site
    sealed: dict[str, bytes] = field(default_factory=dict)  # b_i of the newest round, by site

    @property
    def digest(self) -> str:
        """Return the contract's digest."""
        return self.contract.digest

    @property
    def ring(self) -> Ring:
        """Return the ring of the run's updates."""
        return ring_of(self.contract.spec)

    def all_state(self, phase: Callable[[Hospital], str]) -> None:
        """Request a statement of every hospital, and then keep them."""
        self.keep([phase(of) for of in self.cohort])

    def keep(self, statements: Iterable[str]) -> None:
        """Keep statements that are not known."""
        self.statements += [each for each in statements if each not in self.statements]

    def agree(self) -> None:
        """Let all members accept the contract."""
        certificates = [of.site.certificate.to_json() for of in self.cohort]
        self.all_state(lambda of: of.vault.accept_run(self.contract.to_json(), certificates))

    def begin(self) -> "Coordinator":
        """Start the run: contract, coins, state."""
        self.agree()
        self.all_state(lambda of: of.vault.reveal_coin(self.digest, self.statements))
        self.all_state(lambda of: of.vault.start_run(self.digest, self.statements))
        return self

    def train(self, number: int) -> None:
        """Ask for the masked updates of a round."""
        replies = {of.name: self.trained(of, number) for of in self.cohort}
        self.masked = {name: values for name, (values, _) in replies.items()}
        self.keep(statement for _, statement in replies.values())

    def trained(
        self, of: Hospital, number: int, logits: NDArray[np.float64] | None = None
    ) -> tuple[EncodedUpdate, str]:
        """Let a hospital's trainer hand an update to its vault, and return the vault's reply."""
        stage = self.stage(of)
        update = of.update(stage) if stage.due == "train" else None
        predicted = of.logits(stage) if logits is None else logits
        reply = of.vault.train_round(self.digest, number, self.statements, update, predicted)
        if reply is None:
            raise ValueError("the vault wants an update, and got one")
        return reply

    def sum(self) -> ExactSum:
        """Return the sum of the masked updates."""
        total = ExactSum(next(iter(self.masked.values())).size, self.ring)
        for each in self.masked.values():
            total.add(each)
        return total

    def release(self, number: int, hashed: str = "", of: Sequence[Hospital] = ()) -> None:
        """Ask for the own masks of a round, for the sum of a hash; of all members, if none are named."""
        named = hashed or self.sum().hash
        asked = of or self.cohort
        replies = [each.vault.release(self.digest, number, self.statements, named) for each in asked]
        self.sealed |= {each.name: sealed for each, (_, sealed) in zip(asked, replies, strict=True)}
        self.keep(statement for statement, _ in replies)

    def stepped(self, of: Hospital, number: int, low: EncodedUpdate, carry: NDArray[np.uint16]) -> str:
        """Ask one hospital for the next state, from this sum."""
        sealed = [self.sealed[name] for name in self.contract.names]
        return of.vault.step(self.digest, number, self.statements, sealed, low, carry)

    def step(self, number: int) -> None:
        """Ask for the next state."""
        total = self.sum()
        self.all_state(lambda of: self.stepped(of, number, total.low, total.carry))

    def round(self, number: int) -> None:
        """Do a whole round."""
        self.train(number)
        self.release(number)
        self.step(number)

    def stage(self, of: Hospital) -> RunStage:
        """Return a hospital's newest stage, as its trainer gets it."""
        return RunStage.from_bytes(of.vault.run_stage(self.digest))
