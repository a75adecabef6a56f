"""Simulated client: a site's part in a run in clear without vault, dataset or training, but with real states.

It serves measurements and tests of the coordinator, which sees no difference.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedpp.aggregation.global_state import GlobalState, initial
from fedpp.aggregation.ring import EncodedUpdate
from fedpp.aggregation.round_context import Aggregate, Round
from fedpp.config.model_spec import ModelSpec
from fedpp.errors import FederationError
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning.metrics import count, count_findings
from fedpp.protocol import messages
from fedpp.protocol.counts import UNKNOWN
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts
from fedpp.protocol.participants import Participants
from fedpp.protocol.run_spec import RunSpec
from fedpp.protocol.site_description import SiteDescription
from sites.client import local_round

Rows = dict[str, NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class SimulatedClient:
    """Site of `domain` that replies as `sites.client.app` does; its training adds `step` to every row."""

    description: SiteDescription
    domain: KeyDomain
    step: float = 1.0
    held: dict[str, GlobalState] = field(default_factory=dict)  # by digest

    def initial(self, content: RecordDict) -> RecordDict:
        """Reply with the state of round 0: of zeros, or of the initial model in the request."""
        request = messages.InitialRequest.read(content)
        run_spec = request.run_spec
        rows = self.rows_of_round_0(run_spec.network)
        if messages.ARRAYS in content:
            rows = dict(GlobalState.from_bytes(messages.state_of(content)).rows)
        state = initial(
            rows,
            network=run_spec.network,
            domain=run_spec.domain,
            dtype=run_spec.training.dtype,
            classes=self.description.task.classes,
            rule=run_spec.server_optimizer,
            salt="5a" * 32,
        )
        return RecordDict({messages.ARRAYS: _record(state)})

    def train(self, content: RecordDict) -> RecordDict:
        """Reply with the encoded update."""
        request = messages.TrainRequest.read(content)
        before = self.base(content, request)
        if before is None:
            return RecordDict({messages.REFUSAL: ConfigRecord({"reason": messages.LOST_BASE})})
        update = self.encoded_update(request, before)
        return RecordDict(
            {
                messages.ARRAYS: ArrayRecord({messages.WORDS: Array(update)}),
                messages.ORIGIN: messages.Origin(
                    request.run_spec.domain, _round(content, request, before).to_json()
                ).to_record(),
                messages.METRICS: MetricRecord({messages.EXAMPLES: self._examples(request.run_spec)}),
            }
        )

    def accept(self, content: RecordDict, reason: str = "") -> RecordDict:
        """Reply with counts and verdict (this reason, or none) of the new model, and its state if it is to be kept."""
        request = messages.AcceptRequest.read(content)
        before = self.base(content, request)
        if before is None:
            return RecordDict({messages.REFUSAL: ConfigRecord({"reason": messages.LOST_BASE})})
        after = self.advanced(content, request, before)
        self._hold(after)
        reply = self._counts(2)
        reply[messages.VERDICT] = messages.Verdict(after.digest, reason).to_record()
        if request.keep:
            reply[messages.ARRAYS] = _record(after)
        return reply

    def evaluate(self, content: RecordDict) -> RecordDict:
        """Reply with the test counts of the final model."""
        self.base(content, messages.EvaluateRequest.read(content))
        return self._counts(1)

    def local_baseline(self) -> RecordDict:
        """Reply with the test counts of a local baseline."""
        return self._counts(1)

    def _counts(self, examples: int) -> RecordDict:
        return RecordDict({messages.METRICS: MetricRecord(counted(self.description, examples).to_mapping())})

    def rows_of_round_0(self, network: ModelSpec) -> Rows:
        """Return the initial weights."""
        n = self.domain.card().n
        return {spec.name: np.zeros((*spec.shape, n)) for spec in network.weights()}

    def update(self, before: GlobalState) -> Rows:
        """Return the change of the rows in training."""
        return {name: np.full(rows.shape, self.step) for name, rows in before.rows.items()}

    def encoded_update(self, request: messages.TrainRequest, before: GlobalState) -> EncodedUpdate:
        """Return the encoded update."""
        return local_round.encoded(request.run_spec, self.update(before), self._examples(request.run_spec))

    def base(self, content: RecordDict, request: messages.RoundRequest) -> GlobalState | None:
        """Return the state to which the request applies; None if the request expects a held state that is missing."""
        if messages.STATE not in content.array_records[messages.ARRAYS]:
            return self.held.get(request.base)
        state = self.state(content, request.run_spec, request.round - 1)
        if request.base not in {"", state.digest}:
            raise FederationError("the state in the request is not the one that the request names")
        self._hold(state)
        return state

    def _hold(self, state: GlobalState) -> None:
        """Hold a state, and drop the states before that of the round before."""
        for digest in [digest for digest, of in self.held.items() if of.round < state.round - 1]:
            self.held.pop(digest, None)
        self.held[state.digest] = state

    def state(self, content: RecordDict, run_spec: RunSpec, number: int) -> GlobalState:
        """Return the state in the request, which must be of this round of this run."""
        state = GlobalState.from_bytes(messages.state_of(content))
        local_round.require_state(run_spec, state, number)
        return state

    def advanced(self, content: RecordDict, request: messages.AcceptRequest, before: GlobalState) -> GlobalState:
        """Return the state after the round, computed from the aggregate in the request."""
        total, of = Aggregate.from_json(messages.text_of(content, messages.SUM)), _round(content, request, before)
        words = messages.words_of(content, of.ring.bits, of.length)
        algebra = self.domain.evaluation_key().algebra()
        return local_round.advanced(request.run_spec, before, total, words, algebra, attempt=request.attempt)

    def _examples(self, run_spec: RunSpec) -> int:
        return run_spec.weight(self.description.sequences[0])


def counted(description: SiteDescription, examples: int) -> AnyCounts:
    """Return evaluation counts of an untrained model; of several findings one sequence has only the first known."""
    if description.task.multi_label:
        return findings(examples, len(description.task.classes))
    return count(np.zeros(examples, int), np.full((examples, 2), 0.5))


def findings(examples: int, number: int = 2) -> FindingCounts:
    """Return evaluation counts of `examples` sequences; of the first sequence only the first finding is known."""
    states = np.ones((examples, number), int)
    states[0, 1:] = UNKNOWN
    return count_findings(states, np.full((examples, number, 2), 0.5))


def _record(state: GlobalState) -> ArrayRecord:
    return ArrayRecord({messages.STATE: messages.pack_state(state.to_bytes())})


def _nonce(content: RecordDict) -> str:
    return Participants.from_record(messages.record(content, messages.PARTICIPANTS, ConfigRecord)).nonce


def _round(content: RecordDict, request: messages.RoundRequest, before: GlobalState) -> Round:
    return local_round.round_of(_nonce(content), request, before)
