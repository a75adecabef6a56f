"""Federated averaging of what the coordinator cannot read: it adds up words, and sends back the sum and whose it is.

McMahan et al. 2017 (arXiv:1602.05629), Algorithm 1, over all admitted sites in every round, but for its last line: the
average is taken, and the server's optimizer runs, at the sites, which see the sum without its masks. A site that drops
out, or abstains, is not in the list. A new global model that the sites do not adopt is thrown away, and the round is
repeated from the last good one. With masking off the words are in clear, and all else is the same; or a strategy of
Flower makes the new model of the updates (`coordinator.server.flower_strategies`), which the sites judge as any other.

What is done next is on the disk before a site hears of it (`coordinator.server.run_state`), so that a coordinator
that died
goes on where it was: the same round, attempt, plan and sum.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache

from flwr.app import DEFAULT_TTL, Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedpp.aggregation.ring import Ring
from fedpp.aggregation.round_context import Round
from fedpp.config.run_config import RunConfig
from fedpp.errors import FederationError, MaskError
from fedpp.learning.metrics import metrics
from fedpp.protocol import messages
from fedpp.protocol.finding_counts import AnyCounts
from fedpp.protocol.run_record import RoundRecord
from fedpp.protocol.run_spec import RunSpec
from fedpp.protocol.site_description import SiteDescription

from .admission import Admissions
from .aggregate import Begin
from .gathering import Accept, ClientStateIndex, Gathering, Requests
from .progress import ProgressFile
from .replies import UNKNOWN, Reply, accept_answer, accept_counts, accept_update, base_of
from .run_state import Checkpoint, ClosedAggregate, Position, RunState, patiently


class FederatedAveraging:
    """The rounds of a run."""

    def __init__(
        self,
        grid: Grid,
        config: RunConfig,
        admissions: Admissions,
        run_spec: RunSpec,
        folder: RunState,
        progress: ProgressFile,
        *,
        length: int,
        aggregate: Begin,
        keep: Callable[[bytes], None],
    ) -> None:
        """Take the run's plan; an update has `length` words, and `aggregate` begins what becomes of a round's.

        Each state that the sites adopt is given to `keep`: what comes later must not cost it.
        """
        self._config, self._admissions, self._length = config, admissions, length
        self._folder, self._progress, self._keep = folder, progress, keep
        self._known: dict[str, SiteDescription] = {}
        self._datasets: dict[str, str] = {}
        if position := folder.position():
            self._known, self._datasets = dict(position.sites), dict(position.datasets)
        self._client_states = ClientStateIndex()
        quarantined = position.quarantined if position else {}
        self._gathering = Gathering(grid, config, folder, progress, self._client_states, quarantined)
        self._run_spec, self._attempt = run_spec, 1
        self._aggregate = aggregate
        self._ttl = max(DEFAULT_TTL, config.rounds * config.round_seconds + config.wait_seconds)
        self._answers: dict[str, Reply] = {}
        self._join(() if position else self._admissions.admitted.sites.values())

    @property
    def known(self) -> Mapping[str, SiteDescription]:
        """Return all sites that were admitted so far, by name."""
        return dict(sorted(self._known.items()))

    @property
    def datasets(self) -> Mapping[str, str]:
        """Return the fingerprints of the datasets that they signed for."""
        return self._datasets

    @property
    def quarantined(self) -> Mapping[str, str]:
        """Return the sites that are asked nothing more, and why."""
        return self._gathering.quarantined

    @property
    def sites(self) -> Mapping[int, SiteDescription]:
        """Return the sites that are asked, by node, in the order of their names."""
        admitted = self._admissions.admitted.sites
        return {
            node: site
            for node, site in admitted.items()
            if site.name in self._known and site.name not in self.quarantined
        }

    def federate(self, start: Checkpoint) -> Checkpoint:
        """Return the last round, of a run that is at `start`; raise `FederationError` if a round cannot be done."""
        at = start
        while at.round < self._config.rounds:
            at = self._round(at)
        return at

    def test(self, last: Checkpoint) -> Mapping[str, AnyCounts]:
        """Return each site's counts of the final model on the test split; raise `FederationError` if there are none."""
        request = messages.EvaluateRequest(self._run_spec, last.round + 1, base=_name(last))
        arrays = ArrayRecord({messages.STATE: messages.pack_state(last.state)})  # sites keep the last one as it comes
        tested: dict[str, AnyCounts] = {}

        def accept(content: RecordDict, site: SiteDescription) -> None:
            tested[site.name] = accept_counts(content, site, "test")

        self._progress.tell(phase="testing")

        def questions(nodes: Iterable[int]) -> list[Message]:
            return [self._message(MessageType.EVALUATE, node, request, arrays) for node in nodes]

        self._gathering.gather("test counts", self.sites, questions, accept, least=1)
        if not tested:
            raise FederationError("test counts: no site sent one that fits; the model is kept, to go on from")
        return dict(sorted(tested.items()))

    def local_baseline(self) -> Mapping[str, AnyCounts]:
        """Return each site's test counts of a model that it trains alone, of those that answer in the time of a run."""
        request, counted = messages.LocalBaselineRequest(self._run_spec, self._config.rounds), dict[str, AnyCounts]()

        def accept(content: RecordDict, site: SiteDescription) -> None:
            counted[site.name] = accept_counts(content, site, "test")

        def questions(nodes: Iterable[int]) -> list[Message]:
            kind = f"{MessageType.QUERY}.{messages.LOCAL_BASELINE}"
            return [self._message(kind, node, request, ArrayRecord()) for node in nodes]

        self._folder.note("each site trains a model of its own, to be compared with")
        self._gathering.gather("own model", self.sites, questions, accept, least=0, times=self._config.rounds)
        return dict(sorted(counted.items()))

    def _round(self, before: Checkpoint) -> Checkpoint:
        number, started = before.round + 1, time.monotonic()
        begun = self._folder.position()
        if begun is not None and begun.round != number:
            begun = None
        for attempt in range(begun.attempt if begun else 1, self._config.retries + 2):
            if begun is not None and attempt == begun.attempt:
                position = begun  # its plan is that of the sites of then: who has trained has not trained in vain
            else:
                self._take_in()
                position = self._begin(number, attempt)
            self._attempt, self._answers = attempt, {}
            self._gathering.begin({name: f"quarantined: {reason}" for name, reason in self.quarantined.items()})
            closed = self._folder.closed(position) or self._trained(before)
            adopted = None if closed is None else self._judged(before, closed)
            if closed is not None and adopted is not None:
                return self._adopt(before, closed, *adopted, time.monotonic() - started)
            self._folder.note(f"round {number}, attempt {attempt}: not adopted")
        kept = "the models of the last rounds are kept, to go on from" if number > 1 else "there is no model"
        raise FederationError(
            f"round {number} was tried {self._config.retries + 1} times, and the sites adopted no model of it, as the "
            f"lines above say; {kept}"
        )

    def _begin(self, number: int, attempt: int) -> Position:
        self._client_states.prune(number - 1)
        position = Position(number, attempt, self._known, self._datasets, self.quarantined)
        self._write(lambda: self._folder.begin(position))
        return position

    def _write(self, write: Callable[[], None]) -> None:
        patiently(write, self._config.wait_seconds, self._folder)

    def _join(self, sites: Iterable[SiteDescription]) -> None:
        """Go on with these sites as well; raise `FederationError` or `MaskError` if no word holds a sum of theirs."""
        known = self._known | {site.name: site for site in sites}
        run_spec = self._run_spec.of_sites(known.values())
        Ring.of(run_spec.dtype, examples=run_spec.examples, sites=run_spec.sites, bound=run_spec.bound)
        self._known, self._run_spec = known, run_spec
        for proof in self._admissions.admitted.participants.proofs:
            self._datasets[proof.statement.site] = proof.statement.dataset

    def _take_in(self) -> None:
        """Let sites that joined since the last round take part: the state that they are sent is all that they need."""
        before = self._admissions.admitted
        admission = self._admissions.poll()
        try:
            self._join(admission.sites.values())
        except (FederationError, MaskError) as error:
            self._admissions.withdraw(before)
            self._folder.note(f"the run goes on without the sites that joined: {error}")

    def _ring(self) -> Ring:
        run_spec = self._run_spec
        return Ring.of(run_spec.dtype, examples=run_spec.examples, sites=run_spec.sites, bound=run_spec.bound)

    def _trained(self, before: Checkpoint) -> ClosedAggregate | None:
        """Take the updates of a round as they come; return nothing if there are too few, or nothing comes of them."""
        number, ring = before.round + 1, self._ring()
        due = Round(
            self._admissions.nonce, number, self._attempt, before.digest, self._run_spec.digest, self._length, ring
        )
        updates = self._aggregate(due, before)

        def accept(content: RecordDict, site: SiteDescription) -> None:
            updates.add(*accept_update(content, site, self._run_spec, due))
            self._client_states.name(site.name, before.round, base_of(content))

        def request(_: int, base: str) -> messages.Request:
            return messages.TrainRequest(self._run_spec, number, self._attempt, base)

        self._progress.tell(
            phase="training",
            round=number,
            attempt=self._attempt,
            sites={site.name: "asked" for site in self.sites.values()} | dict.fromkeys(self.quarantined, "quarantined"),
        )
        questions, quarantined = self._questions(MessageType.TRAIN, before, request), len(self.quarantined)
        self._gathering.gather(f"round {number}: update", self.sites, questions, accept)
        if len(self.quarantined) > quarantined:  # who goes on in our place must know
            self._begin(number, self._attempt)
        if len(updates) < self._config.min_sites():
            self._folder.note(
                f"round {number}: {len(updates)} of the {self._config.min_sites()} sites of its quorum sent an update"
            )
            return None
        for name, reason in updates.flagged().items():
            self._folder.note(f"round {number}: look at {name}: {reason}")
        try:
            result = updates.result()
        except FederationError as error:
            self._folder.note(f"round {number}: {error}")
            return None
        closed = ClosedAggregate(
            number,
            self._attempt,
            updates.total(),
            *result,
            dict(self._gathering.left_out),
            updates.flagged(),
            updates.memory(),
        )
        self._write(lambda: self._folder.close(closed))
        return closed

    def _judged(self, before: Checkpoint, closed: ClosedAggregate) -> tuple[str, bytes] | None:
        """Send the sum for the new model, to be scored; return its digest and state if it is adopted."""
        number, late = closed.round, self._gathering.late  # who trains yet would be waited for a second time
        self._gathering.left_out = dict(closed.left_out)
        sites = {node: site for node, site in self.sites.items() if node not in late}
        first = next(iter(sites), None)
        questions = self._evaluations(before, closed, lambda node: node == first)  # one answers its state
        self._progress.tell(phase="judging", sites={site.name: "asked" for site in sites.values()})
        self._gathering.gather(
            f"round {number}: validation counts", sites, questions, self._judge(number, self._answers)
        )
        if len(self._answers) < self._config.min_sites():
            self._folder.note(
                f"round {number}: {len(self._answers)} of the {self._config.min_sites()} sites of its quorum judged "
                "the new model"
            )
            return None
        return self._adopted(before, closed)

    def _evaluations(self, before: Checkpoint, closed: ClosedAggregate, keep: Callable[[int], bool]) -> Requests:
        """Return what asks nodes to judge a new model, and those that `keep` it to answer its state."""

        def request(node: int, base: str) -> messages.Request:
            return messages.AcceptRequest(self._run_spec, closed.round, self._attempt, base, keep(node))

        total = {messages.SUM: ConfigRecord({messages.SUM: closed.total.to_json()})}
        kind, arrays = f"{MessageType.QUERY}.{messages.ACCEPT}", {closed.name: Array(closed.words)}
        return self._questions(kind, before, request, arrays, total)

    def _judge(self, number: int, answers: dict[str, Reply]) -> Accept:
        """Return what takes an answer to the new model of a round, whose state its site holds from then on."""

        def accept(content: RecordDict, site: SiteDescription) -> None:
            answer = answers[site.name] = accept_answer(content, site, masked=self._run_spec.masked)
            self._client_states.name(site.name, number, answer.verdict.digest)

        return accept

    def _adopted(self, before: Checkpoint, closed: ClosedAggregate) -> tuple[str, bytes] | None:
        """Return digest and content of the new state if the sites adopt one, and a site that does sent it."""
        number = closed.round
        digest = self._digest(number)
        if digest is None:
            return None
        again: dict[str, Reply] = {}
        questions = self._evaluations(before, closed, lambda _: True)
        for node, site in self.sites.items():
            answer = self._answers.get(site.name)
            if answer is None or answer.verdict.reason:
                continue
            if answer.state is None:
                self._gathering.gather(
                    f"round {number}: state", {node: site}, questions, self._judge(number, again), least=0
                )
                answer = again.get(site.name, answer)
            if answer.state is not None and answer.verdict == messages.Verdict(digest, ""):
                return digest, answer.state
        self._folder.note(
            f"round {number}, attempt {self._attempt}: no site that adopts the new model answered its state"
        )
        return None

    def _digest(self, number: int) -> str | None:
        """Return which state more than half of the sites that answered computed and adopt; go on with its answers."""
        answers = dict(sorted(self._answers.items()))
        for name, answer in answers.items():
            if answer.verdict.reason:
                self._folder.note(f"round {number}: {name} does not adopt the new model: {answer.verdict.reason}")
                self._gathering.left_out[name] = f"it did not adopt the model: {answer.verdict.reason}"
        computed = Counter(answer.verdict.digest for answer in answers.values())
        if len(computed) > 1:
            self._folder.note(
                f"round {number}: the sites computed {len(computed)} different models: do all run one fedpp?"
            )
        adopted = Counter(answer.verdict.digest for answer in answers.values() if not answer.verdict.reason)
        for digest, votes in adopted.most_common(1):
            if 2 * votes > len(answers):
                others = {name for name, answer in answers.items() if answer.verdict.digest != digest}
                self._gathering.left_out = dict.fromkeys(others, "it computed another model") | self._gathering.left_out
                self._answers = {name: answer for name, answer in answers.items() if name not in others}
                return digest
        return None

    def _adopt(
        self, before: Checkpoint, closed: ClosedAggregate, digest: str, state: bytes, seconds: float
    ) -> Checkpoint:
        trained = tuple(part.site for part in closed.total.parts)
        counts = {name: answer.counts for name, answer in sorted(self._answers.items())}
        made = RoundRecord(
            closed.round, trained, counts, seconds, self._attempt, self._gathering.left_out, closed.flagged
        )
        after = Checkpoint(closed.round, digest, state, (*before.rounds, made), before.seconds + seconds, closed.memory)
        self._write(lambda: self._folder.keep(after))
        self._keep(state)
        self._folder.note(
            f"round {closed.round}: {_figures(made.together)} on validation, {len(trained)} sites, {seconds:.1f} s"
        )
        self._progress.tell(round=closed.round + 1, round_seconds=after.seconds / after.round)
        return after

    def _questions(
        self,
        kind: str,
        before: Checkpoint,
        request: Callable[[int, str], messages.Request],
        results: Mapping[str, Array] | None = None,
        more: Mapping[str, ConfigRecord] | None = None,
    ) -> Requests:
        """Return what asks nodes about the state of the round before: who named it is sent its digest alone."""

        @cache
        def arrays(*, with_state: bool) -> ArrayRecord:
            state = {messages.STATE: messages.pack_state(before.state)} if with_state else {}
            return ArrayRecord({**state, **(results or {})})

        def question(node: int, name: str) -> Message:
            held = self._client_states.base(name, before.round, before.digest)
            return self._message(kind, node, request(node, held or _name(before)), arrays(with_state=not held), more)

        def questions(nodes: Iterable[int]) -> list[Message]:
            sites = self.sites
            return [question(node, sites[node].name) for node in nodes]

        return questions

    def _message(
        self,
        kind: str,
        node: int,
        request: messages.Request,
        arrays: ArrayRecord,
        more: Mapping[str, ConfigRecord] | None = None,
    ) -> Message:
        participants = self._admissions.admitted.participants.to_record()
        content = RecordDict(
            {
                messages.ARRAYS: arrays,
                messages.CONFIG: request.to_record(),
                messages.PARTICIPANTS: participants,
                **(more or {}),
            }
        )
        return Message(content, dst_node_id=node, message_type=kind, ttl=self._ttl)


def _name(of: Checkpoint) -> str:
    """Return the digest of a checkpoint's state, or nothing if the sites alone know it."""
    return "" if of.digest == UNKNOWN else of.digest


def _figures(counts: AnyCounts) -> str:
    figures = metrics(counts)
    shown = {"loss": figures.loss, "accuracy": figures.accuracy, "AUC": figures.auc}
    return ", ".join(f"{name} {'not defined' if v is None else f'{v:.3f}'}" for name, v in shown.items())
