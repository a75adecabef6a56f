"""Hospitals of a masked run as nodes of an in-process grid: real vaults' state machines behind real messages.

There is no trainer and no ClientApp: updates and logits are drawn (`run_hospitals`).
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conftest import TINY
from coordinator_runs import Crashed
from flwr.app import Array, ConfigRecord, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from run_hospitals import DOMAIN, Hospital

from coordinator.server import app
from coordinator.server.run_state import RunState
from fedpp.aggregation.run_stage import RunStage
from fedpp.config.run_config import SPLITS, RunConfig
from fedpp.errors import FedppError
from fedpp.protocol import masked_messages as masked
from fedpp.protocol import messages
from fedpp.protocol.certified_model import CertifiedModel
from fedpp.protocol.coordinator_identity import SIMULATED
from fedpp.protocol.membership import NO_BUNDLE, PROTOCOL, Proof, Statement
from fedpp.protocol.run_record import FederationRecord
from fedpp.protocol.site_description import SiteDescription
from simulations.in_process_engine import InProcessGrid

CARD = DOMAIN.card()


def config(out: Path, **changes: object) -> RunConfig:
    """Return the configuration of a short masked run of three sites."""
    usual = {"rounds": 2, "epochs": 1, "wait_seconds": 2.0, "round_seconds": 1.0, "sites": 3}
    usual |= {"batch_size": 2, "learning_rate": 0.05, "dtype": "float64", **TINY.choices.values()}
    return RunConfig.of(**{"card": CARD.to_json(), "out": str(out), **usual, **changes})


@dataclass
class Node:
    """A hospital as a node; a kind of message may have another reply, or none."""

    of: Hospital
    instead: dict[str, Callable[[RecordDict, Callable[[], RecordDict]], RecordDict | None]] = field(
        default_factory=dict
    )
    asked: list[str] = field(default_factory=list)

    def answer(self, message: Message) -> RecordDict | None:
        kind = message.metadata.message_type
        self.asked.append(kind)

        def usual() -> RecordDict:
            return HANDLERS[kind](self.of, message.content)

        try:
            return self.instead[kind](message.content, usual) if kind in self.instead else usual()
        except FedppError as error:
            return RecordDict({messages.REFUSAL: ConfigRecord({"reason": str(error)})})


def describe(of: Hospital, content: RecordDict) -> RecordDict:
    """Reply with the site's description and its proof of membership."""
    nonce = messages.DescribeRequest.read(content).nonce
    sequences, patients = of.dataset.counts(), of.dataset.patients()
    description = SiteDescription.of(
        **of.dataset.manifest.task.values(),
        name=of.name,
        domain=CARD.fingerprint,
        n=DOMAIN.n,
        sequences=tuple(sequences[split] for split in SPLITS),
        patients=tuple(patients[split] for split in SPLITS),
    )
    facts = (CARD.fingerprint, of.name, of.dataset.manifest.fingerprint, NO_BUNDLE, SIMULATED)
    statement = Statement(nonce, "1", int(time.time()), PROTOCOL, *facts)
    proof = Proof(statement, of.site.identity.sign("statement", statement.content()), of.site.certificate)
    proved = ConfigRecord({"proof": proof.to_json()})
    return RecordDict({messages.SITE: ConfigRecord(description.to_mapping()), messages.PROOF: proved})


def accept_run(of: Hospital, content: RecordDict) -> RecordDict:
    request = masked.AcceptRunRequest.read(content)
    return masked.stated(of.vault.accept(request.contract, request.certificates))


def reveal_coin(of: Hospital, content: RecordDict) -> RecordDict:
    request = masked.StatementsRequest.read(content)
    return masked.stated(of.vault.coin(request.contract, request.statements))


def start_run(of: Hospital, content: RecordDict) -> RecordDict:
    request = masked.StatementsRequest.read(content)
    return masked.stated(of.vault.start(request.contract, request.statements))


def train(of: Hospital, content: RecordDict) -> RecordDict:
    request = masked.RoundRequest.read(content)
    reply = of.vault.train(request.contract, request.round, request.statements)
    if reply is None:
        stage = RunStage.from_bytes(of.vault.stage(request.contract))
        update = of.update(request.round) if stage.due == "train" else None
        logits = of.logits(request.round, stage.split)
        reply = of.vault.train(request.contract, request.round, request.statements, update, logits)
    assert reply is not None
    return masked.stated(reply[1], arrays={masked.MASKED: Array(reply[0])})


def release(of: Hospital, content: RecordDict) -> RecordDict:
    request = masked.ReleaseRequest.read(content)
    return masked.stated(*of.vault.release(request.contract, request.round, request.statements, request.sum_hash))


def step(of: Hospital, content: RecordDict) -> RecordDict:
    request = masked.StepRequest.read(content)
    (length,) = of.vault.shapes(request.contract, request.round).sum
    bits = 64
    low, carry = masked.sum_of(content, bits, length)
    sealed = [bytes.fromhex(text) for text in request.sealed]
    return masked.stated(of.vault.step(request.contract, request.round, request.statements, sealed, low, carry))


def where(of: Hospital, content: RecordDict) -> RecordDict:
    nonce = masked.WhereRequest.read(content).nonce
    return masked.all_stated(of.vault.where(nonce), of.vault.contracts(nonce))


def fetch(of: Hospital, content: RecordDict) -> RecordDict:
    sealed = b"".join(of.vault.sealed_stage(masked.ContractRequest.read(content).contract))
    return RecordDict({messages.ARRAYS: masked.sealed_state(sealed)})


def load(of: Hospital, content: RecordDict) -> RecordDict:
    request = masked.StatementsRequest.read(content)
    of.vault.load_stage(request.contract, request.statements, [messages.state_of(content)])
    return masked.stated("")


def abandon(of: Hospital, content: RecordDict) -> RecordDict:
    return masked.stated(of.vault.abandon(masked.ContractRequest.read(content).contract))


HANDLERS: Mapping[str, Callable[[Hospital, RecordDict], RecordDict]] = {
    "query.describe": describe,
    masked.ACCEPT_RUN: accept_run,
    masked.REVEAL_COIN: reveal_coin,
    masked.START_RUN: start_run,
    masked.TRAIN: train,
    masked.RELEASE: release,
    masked.STEP: step,
    masked.WHERE: where,
    masked.FETCH: fetch,
    masked.LOAD: load,
    masked.ABANDON: abandon,
}


class MaskedGrid(InProcessGrid):
    """In-process grid whose nodes may be away, and are activated anew when they come back."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        super().__init__(nodes)
        self.away: set[int] = set()
        self.returned: set[int] = set()

    def get_nodes(self) -> list[NodeInfo]:
        return [
            NodeInfo(node_id=node, last_activated_at="again" if node in self.returned else "at first")
            for node in self.get_node_ids()
        ]

    def get_node_ids(self) -> list[int]:
        return [node for node in self.sites if node not in self.away]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            if message.metadata.dst_node_id not in self.away:
                ids += super().push_messages([message])
        return ids


class CrashingGrid(MaskedGrid):
    """Grid that fails after so many calls of the coordinator; a reply that was pulled then is lost."""

    def __init__(self, nodes: Iterable[Node], calls: int) -> None:
        super().__init__(list(nodes))
        self.left = calls

    def _call(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crashed

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self._call()
        pushed = super().push_messages(messages)
        self._call()
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        pulled = super().pull_messages(message_ids)
        self._call()
        return pulled


def federate(nodes: Sequence[Node], out: Path, **changes: object) -> FederationRecord:
    """Carry out a masked run of these nodes."""
    return app.federate(MaskedGrid(nodes), config(out, **changes))


def log_of(out: Path) -> str:
    """Return what the run logged."""
    return RunState(out).log.read_text()


def model_of(out: Path) -> CertifiedModel:
    """Return the model of a run's results."""
    return CertifiedModel.from_bytes((out / "model.sealed").read_bytes())
