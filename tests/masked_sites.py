"""A site's part in masked rounds, played without a vault or a network: real masks and seals, and updates of one."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from conftest import TINY
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from members import founded

from fedpp.keys.domain import KeyDomain
from fedpp.learning.global_state import GlobalState, initial
from fedpp.learning.metrics import count, count_findings
from fedpp.masking.ring import CHUNK, Words
from fedpp.masking.rounds import Contribution, Round, Sum
from fedpp.network import NetworkSpec
from fedpp.protocol import wire
from fedpp.protocol.counts import UNKNOWN
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts
from fedpp.protocol.participants import Participants
from fedpp.protocol.site import SiteDescription
from sites import rounds
from sites.aggregation import about

DOMAIN = founded()
ROWS = {spec.name: np.zeros((*spec.shape, 2)) for spec in TINY.weights()}


@dataclass(frozen=True)
class Player:
    """A site of `DOMAIN` that answers as `sites.app` does, whose training adds `step` to every row."""

    description: SiteDescription
    step: float = 1.0

    def initial(self, content: RecordDict) -> RecordDict:
        """Answer the state of round 0: of zeros, or of the model that came."""
        request = wire.InitialRequest.of(content)
        plan = request.plan
        rows = self.rows_of_round_0(plan.network)
        if request.model:
            sent = wire.state_of(content)
            rows = dict(GlobalState.from_bytes(_opened(sent)[1] if request.model == "sealed" else sent).rows)
        state = initial(
            rows,
            network=plan.network,
            domain=plan.domain,
            dtype=plan.dtype,
            classes=self.description.classes,
            rule=plan.rule,
            salt="5a" * 32,
        )
        return RecordDict({wire.ARRAYS: self._closed(content, plan, state)})

    def train(self, content: RecordDict) -> RecordDict:
        """Answer the update in words."""
        request = wire.TrainRequest.of(content)
        before = self._state(content, request.plan, request.round - 1)
        update = self.update(before)
        examples = request.plan.weight(self.description.sequences[0])
        words = rounds.encoded(request.plan, update, examples)
        mask = wire.Mask("0" * 64, 0, 1)
        if request.plan.masked:
            words, mask = self._masked(content, request, before, words)
        return RecordDict(
            {
                wire.ARRAYS: ArrayRecord({wire.WORDS: Array(words)}),
                wire.MASK: mask.to_record(),
                wire.ORIGIN: wire.Origin(request.plan.domain, _round(content, request, before).to_json()).to_record(),
                wire.METRICS: MetricRecord({wire.EXAMPLES: examples}),
            }
        )

    def rows_of_round_0(self, network: NetworkSpec) -> dict[str, np.ndarray]:
        """Return the initial weights."""
        return {spec.name: np.zeros((*spec.shape, 2)) for spec in network.weights()}

    def update(self, before: GlobalState) -> dict[str, np.ndarray]:
        """Return what training adds to the rows."""
        return {name: np.full(rows.shape, self.step) for name, rows in before.rows.items()}

    def evaluate(self, content: RecordDict, reason: str = "") -> RecordDict:
        """Answer counts, and of a sum the verdict, with this reason, and the state if it is to be kept."""
        request = wire.EvaluateRequest.of(content)
        before = self._state(content, request.plan, request.round - 1)
        counts = counted(self.description, {"validation": 2, "test": 1}[request.split])
        answer = RecordDict({wire.METRICS: MetricRecord(counts.to_mapping())})
        if wire.SUM in content:
            after = self._advanced(content, request, before)
            answer[wire.VERDICT] = wire.Verdict(after.digest, reason).to_record()
            if request.keep:
                answer[wire.ARRAYS] = self._closed(content, request.plan, after)
        return answer

    def alone(self) -> RecordDict:
        """Answer the test counts of a model of its own."""
        return RecordDict({wire.METRICS: MetricRecord(counted(self.description, 1).to_mapping())})

    def _masked(
        self, content: RecordDict, request: wire.TrainRequest, before: GlobalState, words: Words
    ) -> tuple[Words, wire.Mask]:
        part = Contribution.fresh(self.description.name, request.plan.weight(self.description.sequences[0]), 1)
        of = _round(content, request, before)
        masker = DOMAIN.mask_key().masker(of, part)
        masked = np.concatenate([masker.mask(words[s : s + CHUNK]) for s in range(0, words.size, CHUNK)])
        return masked, wire.Mask(part.nonce, masker.tag(), part.least)

    def _advanced(self, content: RecordDict, request: wire.EvaluateRequest, before: GlobalState) -> GlobalState:
        total, of = Sum.from_json(wire.text_of(content, wire.SUM)), _round(content, request, before)
        words = wire.words_of(content, of.ring.bits, of.length)
        if request.plan.masked:
            words = DOMAIN.mask_key().unmask(of, total.parts, words.copy(), total.tag)
        return rounds.advanced(
            request.plan, before, total, words, DOMAIN.evaluation_key().algebra(), attempt=request.attempt
        )

    def _state(self, content: RecordDict, plan: wire.Plan, number: int) -> GlobalState:
        sent = wire.state_of(content)
        if plan.masked:
            told, sent = _opened(sent)
            assert told == about(_nonce(content), number)
        state = GlobalState.from_bytes(sent)
        rounds.require_state(plan, state, number)
        return state

    def _closed(self, content: RecordDict, plan: wire.Plan, state: GlobalState) -> ArrayRecord:
        sent = state.to_bytes()
        if plan.masked:
            sent = b"".join(DOMAIN.envelope().close(about(_nonce(content), state.round), [sent]))
        return ArrayRecord({wire.STATE: wire.pack_state(sent)})


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


def opened(sealed: bytes, domain: KeyDomain = DOMAIN) -> GlobalState:
    """Return the state in a sealed file."""
    told, records = domain.envelope().open([sealed])
    assert told
    return GlobalState.from_bytes(b"".join(records))


def plan(**changes: Any) -> wire.Plan:
    """Return a plan of tiny rounds in `DOMAIN`."""
    from fedpp.recipe import Recipe, ServerRule

    made = wire.Plan(
        domain=DOMAIN.card().fingerprint,
        network=TINY,
        dtype="float64",
        recipe=Recipe(learning_rate=0.1, batch_size=2),
        rule=ServerRule(),
        epochs=1,
        seed=0,
        masked=True,
        examples=6,
        sites=2,
        most_examples=0,
        bound=8.0,
        most_norm=10.0,
        most_loss_rise=1.0,
    )
    return replace(made, **changes)


def _opened(sealed: bytes) -> tuple[str, bytes]:
    told, records = DOMAIN.envelope().open([sealed])
    return told, b"".join(records)


def _nonce(content: RecordDict) -> str:
    return Participants.from_record(wire.record(content, wire.PARTICIPANTS, ConfigRecord)).nonce


def _round(content: RecordDict, request: wire.TrainRequest | wire.EvaluateRequest, before: GlobalState) -> Round:
    at = rounds.Position(_nonce(content), request.round, request.attempt)
    return rounds.round_of(request.plan, at, before)
