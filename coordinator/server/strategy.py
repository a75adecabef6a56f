"""Federated averaging of a run in clear: the coordinator adds encoded updates and returns their aggregate.

McMahan et al. 2017 (arXiv:1602.05629), Algorithm 1, over all admitted sites in every round, but for its last line: the
sites divide the aggregate and run the server optimizer. A site that drops out or abstains is not in the list of
contributors. If the sites reject a new global model, the round is retried from the last accepted one. Or a strategy of
Flower makes the new model from the updates (`coordinator.server.flower_strategies`), which the sites evaluate like any
other.

Each step is on the disk before a request is sent (`coordinator.server.run_state`), so that after a crash the next
coordinator resumes it: the same round, attempt, run specification and aggregate.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache

from flwr.app import DEFAULT_TTL, Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedpp.aggregation.round_context import ring_of, round_of
from fedpp.config.run_config import RunConfig
from fedpp.errors import FederationError, MaskError
from fedpp.learning.metrics import metrics
from fedpp.protocol import messages
from fedpp.protocol.finding_counts import AnyCounts
from fedpp.protocol.label_counts import LabelCounts, described, total
from fedpp.protocol.run_record import RoundRecord
from fedpp.protocol.run_spec import RunSpec
from fedpp.protocol.site_description import SiteDescription

from .admission import Admissions
from .aggregate import MakeAggregation
from .gathering import Accept, ClientStateIndex, Gathering, Requests
from .progress import ProgressFile
from .replies import Reply, accept_counts, accept_evaluation, accept_labels, accept_update, base_of
from .run_state import Checkpoint, JournalEntry, RoundAggregate, RunState, patiently


class FederatedAveraging:
    """Rounds of a run: training, aggregation, evaluation and acceptance of each new model, then the test."""

    def __init__(
        self,
        grid: Grid,
        config: RunConfig,
        admissions: Admissions,
        run_spec: RunSpec,
        folder: RunState,
        progress: ProgressFile,
        *,
        n: int,
        aggregate: MakeAggregation,
        keep: Callable[[bytes], None],
    ) -> None:
        """Take the run specification; a row has `n` slots, and `aggregate` makes a round's aggregation.

        Each accepted state is passed to `keep`, so that a later failure cannot lose it.
        """
        self._config, self._admissions, self._n = config, admissions, n
        self._folder, self._progress, self._keep = folder, progress, keep
        self._known: dict[str, SiteDescription] = {}
        self._datasets: dict[str, str] = {}
        if journal := folder.journal():
            self._known, self._datasets = dict(journal.sites), dict(journal.datasets)
        self._client_states = ClientStateIndex()
        quarantined = journal.quarantined if journal else {}
        self._gathering = Gathering(grid, config, folder, progress, self._client_states, quarantined)
        self._run_spec, self._attempt = run_spec, 1
        self._aggregate = aggregate
        self._ttl = max(DEFAULT_TTL, config.rounds * config.round_seconds + config.wait_seconds)
        self._replies: dict[str, Reply] = {}
        self._join(() if journal else self._admissions.admitted.sites.values())

    @property
    def known(self) -> Mapping[str, SiteDescription]:
        """Return all sites admitted so far, by name."""
        return dict(sorted(self._known.items()))

    @property
    def datasets(self) -> Mapping[str, str]:
        """Return the fingerprints of the datasets that they signed for, by site."""
        return self._datasets

    @property
    def quarantined(self) -> Mapping[str, str]:
        """Return the sites that get no more requests, and why."""
        return self._gathering.quarantined

    @property
    def sites(self) -> Mapping[int, SiteDescription]:
        """Return the sites that get requests, by node, in the order of their names."""
        admitted = self._admissions.admitted.sites
        return {
            node: site
            for node, site in admitted.items()
            if site.name in self._known and site.name not in self.quarantined
        }

    def federate(self, start: Checkpoint) -> Checkpoint:
        """Run the rounds after `start` and return the last; raise `FederationError` if a round fails."""
        at = start
        while at.round < self._config.rounds:
            at = self._round(at)
        return at

    def test(self, last: Checkpoint) -> Mapping[str, AnyCounts]:
        """Return each site's evaluation counts of the final model on its test split.

        Raises `FederationError` if there are none.
        """
        request = messages.EvaluateRequest(self._run_spec, last.round + 1, base=last.digest)
        arrays = ArrayRecord({messages.STATE: messages.pack_state(last.state)})  # sites keep the final one
        tested: dict[str, AnyCounts] = {}

        def accept(content: RecordDict, site: SiteDescription) -> None:
            tested[site.name] = accept_counts(content, site, "test")

        self._progress.update(phase="testing")

        def requests(nodes: Iterable[int]) -> list[Message]:
            return [self._message(MessageType.EVALUATE, node, request, arrays) for node in nodes]

        self._gathering.gather("test counts", self.sites, requests, accept, min_replies=1)
        if not tested:
            raise FederationError(
                "test counts: no site sent valid ones; the model is kept, and can be the initial model of a new run"
            )
        return dict(sorted(tested.items()))

    def local_baseline(self) -> Mapping[str, AnyCounts]:
        """Return the test counts of each site's local baseline, of the sites that reply within the time of a run."""
        request, counted = messages.LocalBaselineRequest(self._run_spec, self._config.rounds), dict[str, AnyCounts]()

        def accept(content: RecordDict, site: SiteDescription) -> None:
            counted[site.name] = accept_counts(content, site, "test")

        def requests(nodes: Iterable[int]) -> list[Message]:
            kind = f"{MessageType.QUERY}.{messages.LOCAL_BASELINE}"
            return [self._message(kind, node, request, ArrayRecord()) for node in nodes]

        self._folder.note("each site trains a local baseline, on its own data alone")
        self._gathering.gather("local baseline", self.sites, requests, accept, min_replies=0, times=self._config.rounds)
        return dict(sorted(counted.items()))

    def _round(self, before: Checkpoint) -> Checkpoint:
        number, started = before.round + 1, time.monotonic()
        resumed = self._folder.journal()
        if resumed is not None and resumed.round != number:
            resumed = None
        for attempt in range(resumed.attempt if resumed else 1, self._config.retries + 2):
            if resumed is not None and attempt == resumed.attempt:
                entry = resumed  # with the sites of that time, so that updates of this attempt still fit
            else:
                self._admit_new()
                entry = self._start_attempt(number, attempt)
            self._attempt, self._replies = attempt, {}
            self._gathering.start_attempt({name: f"quarantined: {reason}" for name, reason in self.quarantined.items()})
            aggregate = self._folder.aggregate(entry) or self._trained(before)
            accepted = None if aggregate is None else self._evaluated(before, aggregate)
            if aggregate is not None and accepted is not None:
                return self._complete(before, aggregate, *accepted, time.monotonic() - started)
            self._folder.note(f"round {number}, attempt {attempt}: no model accepted")
        kept = "the models of the last rounds are kept" if number > 1 else "there is no model"
        raise FederationError(
            f"round {number} was tried {self._config.retries + 1} times, and the sites accepted no model of it: the "
            f"lines above say why; {kept}"
        )

    def _start_attempt(self, number: int, attempt: int) -> JournalEntry:
        self._client_states.prune(number - 1)
        entry = JournalEntry(number, attempt, self._known, self._datasets, self.quarantined)
        self._write(lambda: self._folder.write_journal(entry))
        return entry

    def _write(self, write: Callable[[], None]) -> None:
        patiently(write, self._config.wait_seconds, self._folder)

    def _join(self, sites: Iterable[SiteDescription]) -> None:
        """Add these sites to the run; raise `FederationError` or `MaskError` if the ring cannot hold a sum of all."""
        known = self._known | {site.name: site for site in sites}
        run_spec = self._run_spec.of_sites(known.values())
        ring_of(run_spec)
        self._known, self._run_spec = known, run_spec
        for proof in self._admissions.admitted.participants.proofs:
            self._datasets[proof.statement.site] = proof.statement.dataset

    def _admit_new(self) -> None:
        """Admit the sites that joined since the last round: the state that they are sent is all that they need."""
        before = self._admissions.admitted
        admission = self._admissions.poll()
        try:
            self._join(admission.sites.values())
        except (FederationError, MaskError) as error:
            self._admissions.withdraw(before)
            self._folder.note(f"the run continues without the sites that joined: {error}")

    def _trained(self, before: Checkpoint) -> RoundAggregate | None:
        """Gather and aggregate a round's updates; return None if there are too few, or no aggregate of them."""
        number = before.round + 1
        due = round_of(
            self._run_spec,
            run=self._admissions.nonce,
            number=number,
            attempt=self._attempt,
            base=before.digest,
            n=self._n,
        )
        updates, labels = self._aggregate(due, before), dict[str, LabelCounts]()
        counting = number == 1 and self._run_spec.training.hyperparameters.balanced

        def accept(content: RecordDict, site: SiteDescription) -> None:
            counted = {site.name: accept_labels(content, site)} if counting else {}
            updates.add(*accept_update(content, site, self._run_spec, due))
            labels.update(counted)
            self._client_states.add(site.name, before.round, base_of(content))

        def request(_: int, base: str) -> messages.Request:
            return messages.TrainRequest(self._run_spec, number, self._attempt, base, before.labels)

        self._progress.update(
            phase="training",
            round=number,
            attempt=self._attempt,
            sites={site.name: "pending" for site in self.sites.values()}
            | dict.fromkeys(self.quarantined, "quarantined"),
        )
        requests, quarantined = self._requests(MessageType.TRAIN, before, request), len(self.quarantined)
        self._gathering.gather(f"round {number}: update", self.sites, requests, accept)
        if len(self.quarantined) > quarantined:  # a coordinator that resumes must know
            self._start_attempt(number, self._attempt)
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
        aggregate = RoundAggregate(
            number,
            self._attempt,
            updates.contributions(),
            *result,
            dict(self._gathering.excluded),
            updates.flagged(),
            updates.strategy_state(),
            total(list(labels.values())) if labels else before.labels,
        )
        self._write(lambda: self._folder.write_aggregate(aggregate))
        return aggregate

    def _evaluated(self, before: Checkpoint, aggregate: RoundAggregate) -> tuple[str, bytes] | None:
        """Let the sites evaluate the new model; return its digest and state if they accept it."""
        number, stragglers = aggregate.round, self._gathering.stragglers  # not waited for a second time
        self._gathering.excluded = dict(aggregate.excluded)
        sites = {node: site for node, site in self.sites.items() if node not in stragglers}
        first = next(iter(sites), None)
        requests = self._evaluations(before, aggregate, lambda node: node == first)  # one returns its state
        self._progress.update(phase="evaluating", sites={site.name: "pending" for site in sites.values()})
        self._gathering.gather(
            f"round {number}: validation counts", sites, requests, self._taking(number, self._replies)
        )
        if len(self._replies) < self._config.min_sites():
            self._folder.note(
                f"round {number}: {len(self._replies)} of the {self._config.min_sites()} sites of its quorum evaluated "
                "the new model"
            )
            return None
        return self._accepted(before, aggregate)

    def _evaluations(self, before: Checkpoint, aggregate: RoundAggregate, keep: Callable[[int], bool]) -> Requests:
        """Return the requests to evaluate a new model, which make the nodes that `keep` it return its state."""

        def request(node: int, base: str) -> messages.Request:
            return messages.AcceptRequest(self._run_spec, aggregate.round, self._attempt, base, keep(node))

        contributions = {messages.SUM: ConfigRecord({messages.SUM: aggregate.contributions.to_json()})}
        kind, arrays = f"{MessageType.QUERY}.{messages.ACCEPT}", {aggregate.name: Array(aggregate.content)}
        return self._requests(kind, before, request, arrays, contributions)

    def _taking(self, number: int, replies: dict[str, Reply]) -> Accept:
        """Return the function that takes a site's evaluation of a round's model, which the site holds from then on."""

        def accept(content: RecordDict, site: SiteDescription) -> None:
            reply = replies[site.name] = accept_evaluation(content, site)
            self._client_states.add(site.name, number, reply.verdict.digest)

        return accept

    def _accepted(self, before: Checkpoint, aggregate: RoundAggregate) -> tuple[str, bytes] | None:
        """Return digest and content of the new state if the sites accept one, and one of them returned it."""
        number = aggregate.round
        digest = self._digest(number)
        if digest is None:
            return None
        again: dict[str, Reply] = {}
        requests = self._evaluations(before, aggregate, lambda _: True)
        for node, site in self.sites.items():
            reply = self._replies.get(site.name)
            if reply is None or reply.verdict.reason:
                continue
            if reply.state is None:
                self._gathering.gather(
                    f"round {number}: state", {node: site}, requests, self._taking(number, again), min_replies=0
                )
                reply = again.get(site.name, reply)
            if reply.state is not None and reply.verdict == messages.Verdict(digest, ""):
                return digest, reply.state
        self._folder.note(
            f"round {number}, attempt {self._attempt}: no site that accepts the new model returned its state"
        )
        return None

    def _digest(self, number: int) -> str | None:
        """Return the digest of the state that most replies computed and accept, and drop the other replies."""
        replies = dict(sorted(self._replies.items()))
        for name, reply in replies.items():
            if reply.verdict.reason:
                self._folder.note(f"round {number}: {name} rejects the new model: {reply.verdict.reason}")
                self._gathering.excluded[name] = f"it rejected the model: {reply.verdict.reason}"
        computed = Counter(reply.verdict.digest for reply in replies.values())
        if len(computed) > 1:
            self._folder.note(
                f"round {number}: the sites computed {len(computed)} different models: do all run one fedpp?"
            )
        accepted = Counter(reply.verdict.digest for reply in replies.values() if not reply.verdict.reason)
        for digest, votes in accepted.most_common(1):
            if 2 * votes > len(replies):
                others = {name for name, reply in replies.items() if reply.verdict.digest != digest}
                self._gathering.excluded = dict.fromkeys(others, "it computed another model") | self._gathering.excluded
                self._replies = {name: reply for name, reply in replies.items() if name not in others}
                return digest
        return None

    def _complete(
        self, before: Checkpoint, aggregate: RoundAggregate, digest: str, state: bytes, seconds: float
    ) -> Checkpoint:
        """Record an accepted round; return its checkpoint."""
        number, trained = aggregate.round, tuple(part.site for part in aggregate.contributions.parts)
        counts = {name: reply.counts for name, reply in sorted(self._replies.items())}
        made = RoundRecord(number, trained, counts, seconds, self._attempt, self._gathering.excluded, aggregate.flagged)
        lasted = before.seconds + seconds
        of_next = aggregate.strategy_state, aggregate.labels
        after = Checkpoint(number, digest, state, (*before.rounds, made), lasted, *of_next)
        self._write(lambda: self._folder.write_checkpoint(after))
        self._keep(state)
        self._folder.note(
            f"round {number}: {_figures(made.together)} on validation, {len(trained)} sites, {seconds:.1f} s"
        )
        if after.labels and not before.labels:
            self._folder.note(f"round {number}: {described(after.labels, self._run_spec.task)}")
        self._progress.update(round=number + 1, round_seconds=lasted / number)
        return after

    def _requests(
        self,
        kind: str,
        before: Checkpoint,
        request: Callable[[int, str], messages.Request],
        results: Mapping[str, Array] | None = None,
        more: Mapping[str, ConfigRecord] | None = None,
    ) -> Requests:
        """Return the requests about the last state: a site that holds it is sent its digest alone."""

        @cache
        def arrays(*, with_state: bool) -> ArrayRecord:
            state = {messages.STATE: messages.pack_state(before.state)} if with_state else {}
            return ArrayRecord({**state, **(results or {})})

        def one(node: int, name: str) -> Message:
            held = self._client_states.holds(name, before.round, before.digest)
            return self._message(kind, node, request(node, before.digest), arrays(with_state=not held), more)

        def requests(nodes: Iterable[int]) -> list[Message]:
            sites = self.sites
            return [one(node, sites[node].name) for node in nodes]

        return requests

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


def _figures(counts: AnyCounts) -> str:
    figures = metrics(counts)
    shown = {"loss": figures.loss, "accuracy": figures.accuracy, "AUC": figures.auc}
    return ", ".join(f"{name} {'not defined' if v is None else f'{v:.3f}'}" for name, v in shown.items())
