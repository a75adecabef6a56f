"""A site's part in a run, played without vault, dataset or network: real masks, seals and states, and updates of one.

Whoever plays holds the domain's secret: it is for measurements and tests of the coordinator, which cannot tell.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedpp.aggregation.global_state import GlobalState, initial
from fedpp.aggregation.ring import CHUNK, EncodedUpdate
from fedpp.aggregation.round_context import Aggregate, Contribution, Round
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
from sites.client.update_path import about

Rows = dict[str, NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class SimulatedClient:
    """A site of `domain` that answers as `sites.client.app` does, whose training adds `step` to every row."""

    description: SiteDescription
    domain: KeyDomain
    step: float = 1.0
    held: dict[str, GlobalState] = field(default_factory=dict)  # by digest

    def initial(self, content: RecordDict) -> RecordDict:
        """Answer the state of round 0: of zeros, or of the model that came."""
        request = messages.InitialRequest.of(content)
        run_spec = request.run_spec
        rows = self.rows_of_round_0(run_spec.network)
        if request.model:
            sent = messages.state_of(content)
            rows = dict(GlobalState.from_bytes(self._opened(sent)[1] if request.model == "sealed" else sent).rows)
        state = initial(
            rows,
            network=run_spec.network,
            domain=run_spec.domain,
            dtype=run_spec.dtype,
            classes=self.description.classes,
            rule=run_spec.rule,
            salt="5a" * 32,
        )
        return RecordDict({messages.ARRAYS: self._closed(content, run_spec, state)})

    def train(self, content: RecordDict) -> RecordDict:
        """Answer the update in words."""
        request = messages.TrainRequest.of(content)
        before = self.base(content, request)
        if before is None:
            return RecordDict({messages.REFUSAL: ConfigRecord({"reason": messages.LOST_BASE})})
        words = self.words(request, before)
        mask = messages.Mask("0" * 64, 0, 1)
        if request.run_spec.masked:
            words, mask = self._masked(content, request, before, words)
        return RecordDict(
            {
                messages.ARRAYS: ArrayRecord({messages.WORDS: Array(words)}),
                messages.MASK: mask.to_record(),
                messages.ORIGIN: messages.Origin(
                    request.run_spec.domain, _round(content, request, before).to_json()
                ).to_record(),
                messages.METRICS: MetricRecord({messages.EXAMPLES: self._examples(request.run_spec)}),
            }
        )

    def accept(self, content: RecordDict, reason: str = "") -> RecordDict:
        """Reply with counts and verdict (this reason, or none) of the new model, and its state if it is to be kept."""
        request = messages.AcceptRequest.of(content)
        before = self.base(content, request)
        if before is None:
            return RecordDict({messages.REFUSAL: ConfigRecord({"reason": messages.LOST_BASE})})
        after = self.advanced(content, request, before)
        self._hold(after)
        reply = self._counts(2)
        reply[messages.VERDICT] = messages.Verdict(after.digest, reason).to_record()
        if request.keep:
            reply[messages.ARRAYS] = self._closed(content, request.run_spec, after)
        return reply

    def evaluate(self, content: RecordDict) -> RecordDict:
        """Reply with the test counts of the final model."""
        self.base(content, messages.EvaluateRequest.of(content))
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
        """Return what training adds to the rows."""
        return {name: np.full(rows.shape, self.step) for name, rows in before.rows.items()}

    def words(self, request: messages.TrainRequest, before: GlobalState) -> EncodedUpdate:
        """Return the update in words, not masked yet."""
        return local_round.encoded(request.run_spec, self.update(before), self._examples(request.run_spec))

    def base(self, content: RecordDict, request: messages.RoundRequest) -> GlobalState | None:
        """Return the state that the question is about; nothing if it is to be held, and is not."""
        if messages.STATE not in content.array_records[messages.ARRAYS]:
            return self.held.get(request.base)
        state = self.state(content, request.run_spec, request.round - 1)
        if request.base not in {"", state.digest}:
            raise FederationError("another state came than the question names")
        self._hold(state)
        return state

    def _hold(self, state: GlobalState) -> None:
        """Hold a state, and no more of those before it than the last round's."""
        for digest in [digest for digest, of in self.held.items() if of.round < state.round - 1]:
            self.held.pop(digest, None)
        self.held[state.digest] = state

    def state(self, content: RecordDict, run_spec: RunSpec, number: int) -> GlobalState:
        """Return the state that came, which must be of this round of this run."""
        sent = messages.state_of(content)
        if run_spec.masked:
            told, sent = self._opened(sent)
            if told != about(_nonce(content), number):
                raise FederationError(f"a sealed state about {told:.200} came, due is that of round {number}")
        state = GlobalState.from_bytes(sent)
        local_round.require_state(run_spec, state, number)
        return state

    def advanced(self, content: RecordDict, request: messages.AcceptRequest, before: GlobalState) -> GlobalState:
        """Return the state after the round, of the sum that came."""
        total, of = Aggregate.from_json(messages.text_of(content, messages.SUM)), _round(content, request, before)
        words = messages.words_of(content, of.ring.bits, of.length)
        if request.run_spec.masked:
            words = self.domain.mask_key().unmask(of, total.parts, words.copy(), total.tag)
        algebra = self.domain.evaluation_key().algebra()
        return local_round.advanced(request.run_spec, before, total, words, algebra, attempt=request.attempt)

    def _masked(
        self, content: RecordDict, request: messages.TrainRequest, before: GlobalState, words: EncodedUpdate
    ) -> tuple[EncodedUpdate, messages.Mask]:
        part = Contribution.fresh(self.description.name, self._examples(request.run_spec), 1)
        masker = self.domain.mask_key().masker(_round(content, request, before), part)
        masked = np.empty_like(words)
        for start in range(0, words.size, CHUNK):
            masked[start : start + CHUNK] = masker.mask(words[start : start + CHUNK])
        return masked, messages.Mask(part.nonce, masker.tag(), part.min_cohort)

    def _examples(self, run_spec: RunSpec) -> int:
        return run_spec.weight(self.description.sequences[0])

    def _closed(self, content: RecordDict, run_spec: RunSpec, state: GlobalState) -> ArrayRecord:
        sent = state.to_bytes()
        if run_spec.masked:
            sent = b"".join(self.domain.state_sealer().seal(about(_nonce(content), state.round), [sent]))
        return ArrayRecord({messages.STATE: messages.pack_state(sent)})

    def _opened(self, sealed: bytes) -> tuple[str, bytes]:
        told, records = self.domain.state_sealer().unseal([sealed])
        return told, b"".join(records)


def counted(description: SiteDescription, examples: int) -> AnyCounts:
    """Return counts of a model that knows nothing; of several findings the first alone is known to one sequence."""
    if description.multi_label:
        return findings(examples, len(description.classes))
    return count(np.zeros(examples, int), np.full((examples, 2), 0.5))


def findings(examples: int, number: int = 2) -> FindingCounts:
    """Return the counts of so many sequences, of which the first knows no finding but the first."""
    states = np.ones((examples, number), int)
    states[0, 1:] = UNKNOWN
    return count_findings(states, np.full((examples, number, 2), 0.5))


def _nonce(content: RecordDict) -> str:
    return Participants.from_record(messages.record(content, messages.PARTICIPANTS, ConfigRecord)).nonce


def _round(content: RecordDict, request: messages.RoundRequest, before: GlobalState) -> Round:
    return local_round.round_of(_nonce(content), request, before)
