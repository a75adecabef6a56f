"""Masked runs of real ClientApps beside real vaults, and a plain coordinator that relays and adds."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import RecordDict
from site_nodes import NONCE, Node, reason, run_spec_of

from fedpp.aggregation import round_vector
from fedpp.aggregation.linear_check import ExactSum
from fedpp.aggregation.round_context import ring_of
from fedpp.aggregation.run_stage import RunStage
from fedpp.config.run_config import SPLITS
from fedpp.protocol import masked_messages, messages
from fedpp.protocol.membership import NO_BUNDLE
from fedpp.protocol.run_contract import CohortMember, RunContract, capped_weights, certificate_hash
from fedpp.protocol.run_statements import SignedStatement
from fedpp.vault_api.vault_client import VaultClient
from sites.vault.masked_runs.run_journal import RunJournal


@contextmanager
def beside_vaults(nodes: Sequence[Node]) -> Iterator[None]:
    """Run the nodes' vaults, which keep their runs beside the nodes."""
    with ExitStack() as stack:
        for node in nodes:
            journal = stack.enter_context(closing(RunJournal.open(node.folder / "vault", node.site)))
            stack.enter_context(node.beside_vault(journal=journal))
        yield


def contract_of(nodes: Sequence[Node], *, rounds: int = 1, **changes: Any) -> RunContract:
    """Return a contract of these nodes; changes are of its run specification."""
    sequences = [node.dataset.counts() for node in nodes]
    weights = capped_weights([of["train"] for of in sequences])
    spec = run_spec_of(
        nodes[0].site.domain, **{"examples": sum(weights), "sites": len(nodes), "masked": True, **changes}
    )
    members = [
        CohortMember(
            node.site.identity.name,
            certificate_hash(node.site.certificate),
            tuple(counts[split] for split in SPLITS),
            tuple(node.dataset.patients()[split] for split in SPLITS),
            weight,
        )
        for node, counts, weight in zip(nodes, sequences, weights, strict=True)
    ]
    cohort = tuple(sorted(members, key=lambda member: member.site))
    return RunContract(spec, NONCE, int(time.time()) + 3600, NO_BUNDLE, cohort, 1, rounds)


@dataclass
class MaskedRun:
    """A run of nodes, in the order of their names, whose coordinator sends all statements with each request."""

    nodes: Sequence[Node]
    contract: RunContract
    statements: list[str] = field(default_factory=list)
    replies: dict[str, Mapping[str, RecordDict]] = field(default_factory=dict)  # of the last phase of each kind

    def accept(self, node: Node) -> RecordDict:
        """Return the reply to the contract."""
        certificates = tuple(each.site.certificate.to_json() for each in self.nodes)
        return self.send(node, masked_messages.ACCEPT_RUN, (self.contract.to_json(), certificates))

    def ask(self, node: Node, kind: str, *more: Any) -> RecordDict:
        """Return the reply to a request with all statements."""
        return self.send(node, kind, (self.contract.digest, tuple(self.statements), *more))

    @staticmethod
    def send(node: Node, kind: str, fields: tuple[Any, ...], **records: Any) -> RecordDict:
        """Return the reply to a request of this kind, with these fields."""
        request = REQUESTS[kind](*fields)
        return node.send(kind, RecordDict({messages.CONFIG: request.to_record(), **records}))

    def all_reply(self, kind: str, *more: Any, **records: Any) -> None:
        """Take the statements of all nodes."""
        asked = (self.contract.digest, tuple(self.statements), *more)
        accepting = kind == masked_messages.ACCEPT_RUN
        replies = {
            node.site.identity.name: self.accept(node) if accepting else self.send(node, kind, asked, **records)
            for node in self.nodes
        }
        assert [reason(reply) for reply in replies.values() if messages.REFUSAL in reply] == []
        self.statements += [masked_messages.statement_of(reply) for reply in replies.values()]
        self.replies[kind] = replies

    def start(self) -> "MaskedRun":
        """Carry out the phases before the first round."""
        for kind in (masked_messages.ACCEPT_RUN, masked_messages.REVEAL_COIN, masked_messages.START_RUN):
            self.all_reply(kind)
        return self

    def sum(self) -> ExactSum:
        """Return the sum of the masked updates."""
        ring, spec = ring_of(self.contract.spec), self.contract.spec
        stage, hyperparameters = self.stage(self.nodes[0]), spec.training.hyperparameters
        labels = round_vector.opens_labels(stage.due, hyperparameters, stage.labels)
        length = round_vector.length(stage.due, spec.network, stage.state.n, labels=labels)
        total = ExactSum(length, ring)
        for reply in self.replies[masked_messages.TRAIN].values():
            total.add(masked_messages.masked_of(reply, ring.bits, length))
        return total

    def round(self, number: int) -> None:
        """Carry out a round."""
        self.all_reply(masked_messages.TRAIN, number)
        total = self.sum()
        self.all_reply(masked_messages.RELEASE, number, total.hash)
        sealed = tuple(masked_messages.seed_of(reply) for reply in self.replies[masked_messages.RELEASE].values())
        arrays = {messages.ARRAYS: masked_messages.summed(total.low, total.carry)}
        self.all_reply(masked_messages.STEP, number, sealed, **arrays)

    def finish(self) -> None:
        """Carry out all rounds."""
        while (stage := self.stage(self.nodes[0])).due != "end":
            self.round(stage.number + 1)

    def stage(self, node: Node) -> RunStage:
        """Return the newest stage in a node's vault."""
        with VaultClient(str(node.context.node_config["vault"])) as vault:
            return RunStage.from_bytes(vault.run_stage(self.contract.digest))

    def signed(self) -> list[SignedStatement]:
        """Return all statements."""
        return list(map(SignedStatement.from_json, self.statements))


REQUESTS = {
    masked_messages.ACCEPT_RUN: masked_messages.AcceptRunRequest,
    masked_messages.REVEAL_COIN: masked_messages.StatementsRequest,
    masked_messages.START_RUN: masked_messages.StatementsRequest,
    masked_messages.TRAIN: masked_messages.RoundRequest,
    masked_messages.RELEASE: masked_messages.ReleaseRequest,
    masked_messages.STEP: masked_messages.StepRequest,
    masked_messages.WHERE: masked_messages.WhereRequest,
    masked_messages.FETCH: masked_messages.ContractRequest,
    masked_messages.LOAD: masked_messages.StatementsRequest,
    masked_messages.REPORT: masked_messages.StatementsRequest,
    masked_messages.ABANDON: masked_messages.ContractRequest,
}


def values(reply: RecordDict) -> np.ndarray:
    """Return the masked update in a reply."""
    array = reply.array_records[messages.ARRAYS][masked_messages.MASKED]
    return masked_messages.masked_of(reply, int(array.dtype.removeprefix("uint")), array.shape[0])
