"""Federated averaging of what the coordinator cannot read: it adds up words, and sends back the sum and whose it is.

McMahan et al. 2017 (arXiv:1602.05629), Algorithm 1, over all admitted sites in every round, but for its last line: the
average is taken, and the server's optimizer runs, at the sites, which see the sum without its masks. A site that drops
out, or abstains, is not in the list. A new global model that the sites do not adopt is thrown away, and the round is
repeated from the last good one. With masking off the words are in clear, and all else is the same.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import INFO
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedpp.config import SPLITS
from fedpp.errors import FederationError, MaskError, ModelError
from fedpp.learning.global_state import GlobalState
from fedpp.learning.metrics import metrics
from fedpp.masking.ring import Ring, Words
from fedpp.masking.rounds import Contribution, Sum
from fedpp.protocol import wire
from fedpp.protocol.counts import Counts
from fedpp.protocol.federation import RoundRecord
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts
from fedpp.protocol.site import SiteDescription

from .admission import Admission, note

T = TypeVar("T")


@dataclass(frozen=True)
class Update:
    """A site's words of one round, and whose they are."""

    part: Contribution
    tag: int
    words: Words


@dataclass(frozen=True)
class Answer:
    """What a site found of a new global model."""

    counts: AnyCounts
    verdict: wire.Verdict
    state: bytes | None  # of the new round, if it was asked to keep it


class MaskedAveraging(Strategy):
    """Add up the updates of all admitted sites in each round; keep each round's counts and seconds."""

    def __init__(
        self,
        admission: Admission,
        plan: wire.Plan,
        *,
        length: int,
        repeats: int,
        joined: Callable[[], Admission],
        keep: Callable[[bytes], None],
    ) -> None:
        """Take the run's plan; an update has `length` words, and a round is repeated so many times at most.

        Each round asks `joined` for the sites, which are those of the round before and others, and gives the state
        that the sites adopted to `keep`: what comes later must not cost it.
        """
        self._length, self._repeats, self._joined, self._keep = length, repeats, joined, keep
        self._with(admission, plan)
        self._attempt, self._before, self._sum = 1, wire.pack_state(b""), Sum((), 0)
        self._answers: Mapping[str, Answer] = {}
        self._left_out: dict[str, str] = {}
        self.rounds: list[RoundRecord] = []

    def _with(self, admission: Admission, plan: wire.Plan) -> None:
        """Go on with these sites; raise `MaskError` if no word holds a sum of theirs."""
        self._ring = Ring.of(plan.dtype, examples=plan.examples, sites=plan.sites, bound=plan.bound)
        self.admission, self._plan = admission, plan
        self._participants = admission.participants.to_record()

    @property
    def sites(self) -> Mapping[int, SiteDescription]:
        """Return the sites that take part, by node."""
        return self.admission.sites

    def summary(self) -> None:
        """Log who takes part."""
        log(INFO, "\t└──> Sites: %s", ", ".join(site.name for site in self.sites.values()))

    def federate(self, grid: Grid, state: bytes, *, rounds: int, timeout: float) -> bytes:
        """Return the state after all rounds, as a site answered it; raise `FederationError` if a round cannot be done.

        It is Flower's `Strategy.start`, with rounds that may be repeated.
        """
        for number in range(1, rounds + 1):
            for attempt in range(1, self._repeats + 2):
                self._attempt = attempt
                if adopted := self._try(grid, number, state, timeout):
                    state = adopted
                    self._keep(state)
                    break
            else:
                kept = "the models of the last rounds are kept, to go on from" if number > 1 else "there is no model"
                raise FederationError(
                    f"round {number} was tried {self._repeats + 1} times, and the sites adopted no model of it, as the "
                    f"lines above say; {kept}"
                )
        return state

    def _try(self, grid: Grid, number: int, state: bytes, timeout: float) -> bytes | None:
        started, self._left_out, nothing = time.monotonic(), {}, ConfigRecord()
        self._take_in()
        before = ArrayRecord({wire.STATE: wire.pack_state(state)})
        asked = self.configure_train(number, before, nothing, grid)
        arrays, _ = self.aggregate_train(number, grid.send_and_receive(asked, timeout=timeout))
        if arrays is None:
            return None
        asked = self.configure_evaluate(number, arrays, nothing, grid)
        self.aggregate_evaluate(number, grid.send_and_receive(asked, timeout=timeout))
        after = self._adopted(number, arrays, grid, timeout)
        if after is not None:
            self._close(number, time.monotonic() - started)
        return after

    def _take_in(self) -> None:
        """Let sites that joined since the last round take part: the state that they are sent is all that they need."""
        admission = self._joined()
        try:
            self._with(admission, self._plan.of_sites(admission.sites.values()))
        except (FederationError, MaskError) as error:
            note(f"the run goes on without the sites that joined: {error}")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the state of the round before to every site."""
        self._before = arrays[wire.STATE]
        request = wire.TrainRequest(self._plan, server_round, self._attempt)
        return self._messages(MessageType.TRAIN, arrays, request)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add up the accepted updates, modulo 2^32 or 2^64; return nothing if there is none."""
        updates = self._accepted(f"round {server_round}: update", replies, self._update)
        if not updates:
            return None, None
        words = np.zeros(self._length, self._ring.dtype)
        for update in updates.values():
            self._ring.add(words, update.words)
        self._sum = Sum.of([(update.part, update.tag) for update in updates.values()])
        return ArrayRecord({wire.STATE: self._before, wire.WORDS: Array(words)}), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the sum for the new model, to be scored on the validation split; the first site keeps its state."""
        first, *others = self.sites
        return [
            *self._evaluation(server_round, arrays, [first], keep=True),
            *self._evaluation(server_round, arrays, others, keep=False),
        ]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Take the sites' counts and verdicts."""
        self._answers = self._accepted(f"round {server_round}: validation counts", replies, self._answer)
        return None

    def test(self, grid: Grid, state: bytes, timeout: float) -> Mapping[str, AnyCounts]:
        """Return each site's counts of the final model on the test split; raise `FederationError` if there are none."""
        request = wire.EvaluateRequest(self._plan, "test", len(self.rounds) + 1)
        asked = self._messages(MessageType.EVALUATE, ArrayRecord({wire.STATE: wire.pack_state(state)}), request)
        tested = self._accepted(
            "test counts",
            grid.send_and_receive(asked, timeout=timeout),
            lambda reply, site: accept_counts(wire.content_of(reply), site, "test"),
        )
        if not tested:
            raise FederationError("test counts: no site sent one that fits; the model is kept, to go on from")
        return tested

    def _adopted(self, number: int, arrays: ArrayRecord, grid: Grid, timeout: float) -> bytes | None:
        """Return the new state if the sites adopt one, and a site that does sent it."""
        digest = self._digest(number)
        if digest is None:
            note(f"round {number}, attempt {self._attempt}: not adopted")
            return None
        for node, site in self.sites.items():
            answer = self._answers.get(site.name)
            if answer is None or answer.verdict.reason:
                continue
            if answer.state is None:
                answer = self._asked_to_keep(number, node, arrays, grid, timeout)
            if answer is not None and answer.state is not None and answer.verdict == wire.Verdict(digest, ""):
                return answer.state
        note(f"round {number}, attempt {self._attempt}: no site that adopts the new model answered its state")
        return None

    def _digest(self, number: int) -> str | None:
        """Return which state more than half of the sites that answered computed and adopt; go on with its answers."""
        for name, answer in self._answers.items():
            if answer.verdict.reason:
                note(f"round {number}: {name} does not adopt the new model: {answer.verdict.reason}")
                self._left_out[name] = f"it did not adopt the model: {answer.verdict.reason}"
        computed = Counter(answer.verdict.digest for answer in self._answers.values())
        if len(computed) > 1:
            note(f"round {number}: the sites computed {len(computed)} different models: do all run one fedpp?")
        adopted = Counter(answer.verdict.digest for answer in self._answers.values() if not answer.verdict.reason)
        for digest, votes in adopted.most_common(1):
            if 2 * votes > len(self._answers):
                others = {name for name, answer in self._answers.items() if answer.verdict.digest != digest}
                self._left_out |= dict.fromkeys(others - self._left_out.keys(), "it computed another model")
                self._answers = {name: answer for name, answer in self._answers.items() if name not in others}
                return digest
        return None

    def _asked_to_keep(self, number: int, node: int, arrays: ArrayRecord, grid: Grid, timeout: float) -> Answer | None:
        asked = self._evaluation(number, arrays, [node], keep=True)
        replies = grid.send_and_receive(asked, timeout=timeout)
        return self._accepted(f"round {number}: state", replies, self._answer, [node]).get(self.sites[node].name)

    def _close(self, number: int, seconds: float) -> None:
        trained = tuple(part.site for part in self._sum.parts)
        validation = {site: answer.counts for site, answer in self._answers.items()}
        closed = RoundRecord(number, trained, validation, seconds, self._attempt, self._left_out)
        self.rounds.append(closed)
        took = f"{len(trained)} sites, {seconds:.1f} s"
        note(f"round {number}: {_figures(closed.together)} on validation, {took}")

    def _evaluation(self, number: int, arrays: ArrayRecord, nodes: Sequence[int], *, keep: bool) -> list[Message]:
        request = wire.EvaluateRequest(self._plan, "validation", number, self._attempt, keep)
        return self._messages(
            MessageType.EVALUATE, arrays, request, {wire.SUM: ConfigRecord({wire.SUM: self._sum.to_json()})}, nodes
        )

    def _messages(
        self,
        kind: str,
        arrays: ArrayRecord,
        request: wire.Request,
        more: Mapping[str, ConfigRecord] | None = None,
        nodes: Iterable[int] | None = None,
    ) -> list[Message]:
        content = RecordDict(
            {
                wire.ARRAYS: arrays,
                wire.CONFIG: request.to_record(),
                wire.PARTICIPANTS: self._participants,
                **(more or {}),
            }
        )
        to = self.sites if nodes is None else nodes
        return [Message(content, dst_node_id=node, message_type=kind) for node in to]

    def _accepted(
        self,
        what: str,
        replies: Iterable[Message],
        accept: Callable[[Message | None, SiteDescription], T],
        nodes: Iterable[int] | None = None,
    ) -> dict[str, T]:
        """Return what fits by site, and note why the others are left out."""
        answered = {reply.metadata.src_node_id: reply for reply in replies}
        accepted: dict[str, T] = {}
        # In the order of the sites' names: nothing may depend on who answers first.
        for node in self.sites if nodes is None else nodes:
            site = self.sites[node]
            try:
                accepted[site.name] = accept(answered.get(node), site)
            except (FederationError, MaskError) as error:
                self._left_out[site.name] = f"{what}: {error}"
                note(f"{what} of {site.name} left out: {error}")
        return accepted

    def _update(self, reply: Message | None, site: SiteDescription) -> Update:
        """Return a site's words; raise `FederationError` or `MaskError` if they do not fit the round."""
        content = wire.content_of(reply)
        mask, examples = wire.Mask.of(content), wire.record(content, wire.METRICS, MetricRecord).get(wire.EXAMPLES)
        if examples != site.sequences[0]:
            raise FederationError(f"it counts {examples!r:.40} examples and announced {site.sequences[0]}")
        words = wire.words_of(content, self._ring.bits, self._length)
        return Update(Contribution(site.name, mask.nonce, site.sequences[0], mask.least), mask.tag, words)

    def _answer(self, reply: Message | None, site: SiteDescription) -> Answer:
        content = wire.content_of(reply)
        counts = accept_counts(content, site, "validation")
        state, verdict = wire.state_of(content) if wire.ARRAYS in content else None, wire.Verdict.of(content)
        if state is not None and not self._plan.masked:
            _require_state(state, verdict.digest)
        return Answer(counts, verdict, state)


def _require_state(state: bytes, digest: str) -> None:
    """Raise `FederationError` for a state in clear that is none, or another than its site says."""
    try:
        computed = GlobalState.from_bytes(state).digest
    except ModelError as error:
        raise FederationError(f"its state does not fit: {error}") from None
    if computed != digest:
        raise FederationError("its state is another than its verdict names")


def _figures(counts: AnyCounts) -> str:
    figures = metrics(counts)
    shown = {"loss": figures.loss, "accuracy": figures.accuracy, "AUC": figures.auc}
    return ", ".join(f"{name} {'not defined' if v is None else f'{v:.3f}'}" for name, v in shown.items())


def accept_counts(content: RecordDict, site: SiteDescription, split: str) -> AnyCounts:
    """Return a site's counts of a split; raise `FederationError` if they do not fit the site's description."""
    kind = FindingCounts if site.multi_label else Counts
    counts = kind.from_mapping(wire.record(content, wire.METRICS, MetricRecord))
    announced = site.sequences[SPLITS.index(split)]
    classes = len(counts.findings if isinstance(counts, FindingCounts) else counts.confusion)
    if (counts.examples, classes) != (announced, len(site.classes)):
        raise FederationError(
            f"it counts {counts.examples} examples of {classes} {'findings' if site.multi_label else 'classes'} and "
            f"announced {announced} of {len(site.classes)}"
        )
    return counts
