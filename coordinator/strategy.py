"""Federated averaging of what the coordinator cannot read: it adds up words, and sends back the sum and whose it is.

McMahan et al. 2017 (arXiv:1602.05629), Algorithm 1, over all admitted sites in every round, but for its last line: the
average is taken, and the server's optimizer runs, at the sites, which see the sum without its masks. A site that drops
out, or abstains, is not in the list. A new global model that the sites do not adopt is thrown away, and the round is
repeated from the last good one. With masking off the words are in clear, and all else is the same; or a strategy of
Flower makes the new model of the updates (`coordinator.flower_strategies`), which the sites judge as any other.

What is done next is on the disk before a site hears of it (`coordinator.run_folder`), so that a coordinator that died
goes on where it was: the same round, attempt, plan and sum.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedpp.config import RunConfig
from fedpp.errors import FederationError, MaskError
from fedpp.learning.metrics import metrics
from fedpp.masking.ring import Ring
from fedpp.masking.rounds import Round
from fedpp.protocol import wire
from fedpp.protocol.federation import RoundRecord
from fedpp.protocol.finding_counts import AnyCounts
from fedpp.protocol.site import SiteDescription

from .admission import Admissions
from .aggregation import Begin
from .answers import UNKNOWN, Answer, MisfitError, accept_answer, accept_counts, accept_update, base_of
from .exchange import Exchange
from .progress import ProgressFile
from .run_folder import Checkpoint, ClosedSum, Position, RunFolder, patiently

Questions = Callable[[Iterable[int]], list[Message]]

AWAY_SECONDS = 1.0  # between two looks at who is back


class FederatedAveraging:
    """The rounds of a run."""

    def __init__(
        self,
        grid: Grid,
        config: RunConfig,
        admissions: Admissions,
        plan: wire.Plan,
        folder: RunFolder,
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
        self._grid, self._exchange = grid, Exchange(grid, folder.require_going)
        self._known: dict[str, SiteDescription] = {}
        self._datasets: dict[str, str] = {}
        self.quarantined: dict[str, str] = {}
        if position := folder.position():
            self._known, self._datasets = dict(position.sites), dict(position.datasets)
            self.quarantined = dict(position.quarantined)
        self._plan, self._attempt = plan, 1
        self._aggregate = aggregate
        self._left_out: dict[str, str] = {}
        self._answers: dict[str, Answer] = {}
        self._late: set[int] = set()  # nodes that still train, as far as is known
        self._holds: dict[tuple[str, int], str] = {}  # site and round -> the state of it that the site named
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
        request = wire.EvaluateRequest(self._plan, "test", last.round + 1)
        arrays = ArrayRecord({wire.STATE: wire.pack_state(last.state)})  # sites keep the last one as it comes
        tested: dict[str, AnyCounts] = {}

        def accept(content: RecordDict, site: SiteDescription) -> None:
            tested[site.name] = accept_counts(content, site, "test")

        self._progress.tell(phase="testing")

        def questions(nodes: Iterable[int]) -> list[Message]:
            return [self._message(MessageType.EVALUATE, node, request, arrays) for node in nodes]

        self._gather("test counts", questions, accept, least=1)
        if not tested:
            raise FederationError("test counts: no site sent one that fits; the model is kept, to go on from")
        return dict(sorted(tested.items()))

    def alone(self) -> Mapping[str, AnyCounts]:
        """Return each site's test counts of a model that it trains alone, of those that answer in the time of a run."""
        request, counted = wire.AloneRequest(self._plan, self._config.rounds), dict[str, AnyCounts]()

        def accept(content: RecordDict, site: SiteDescription) -> None:
            counted[site.name] = accept_counts(content, site, "test")

        def questions(nodes: Iterable[int]) -> list[Message]:
            return [self._message(f"{MessageType.QUERY}.{wire.ALONE}", node, request, ArrayRecord()) for node in nodes]

        self._folder.note("each site trains a model of its own, to be compared with")
        self._gather("own model", questions, accept, least=0, times=self._config.rounds)
        return dict(sorted(counted.items()))

    def _round(self, before: Checkpoint) -> Checkpoint:
        number, started = before.round + 1, time.monotonic()
        begun = self._folder.position()
        if begun is not None and begun.round != number:
            begun = None
        for attempt in range(begun.attempt if begun else 1, self._config.repeats + 2):
            if begun is not None and attempt == begun.attempt:
                position = begun  # its plan is that of the sites of then: who has trained has not trained in vain
            else:
                self._take_in()
                position = self._begin(number, attempt)
            self._attempt, self._answers, self._late = attempt, {}, set()
            self._left_out = {name: f"quarantined: {reason}" for name, reason in self.quarantined.items()}
            closed = self._folder.closed(position) or self._trained(before)
            adopted = None if closed is None else self._judged(before, closed)
            if closed is not None and adopted is not None:
                return self._adopt(before, closed, *adopted, time.monotonic() - started)
            self._folder.note(f"round {number}, attempt {attempt}: not adopted")
        kept = "the models of the last rounds are kept, to go on from" if number > 1 else "there is no model"
        raise FederationError(
            f"round {number} was tried {self._config.repeats + 1} times, and the sites adopted no model of it, as the "
            f"lines above say; {kept}"
        )

    def _begin(self, number: int, attempt: int) -> Position:
        self._holds = {(name, of): digest for (name, of), digest in self._holds.items() if of >= number - 1}
        position = Position(number, attempt, self._known, self._datasets, self.quarantined)
        self._write(lambda: self._folder.begin(position))
        return position

    def _write(self, write: Callable[[], None]) -> None:
        patiently(write, self._config.wait_seconds, self._folder)

    def _join(self, sites: Iterable[SiteDescription]) -> None:
        """Go on with these sites as well; raise `FederationError` or `MaskError` if no word holds a sum of theirs."""
        known = self._known | {site.name: site for site in sites}
        plan = self._plan.of_sites(known.values())
        Ring.of(plan.dtype, examples=plan.examples, sites=plan.sites, bound=plan.bound)
        self._known, self._plan = known, plan
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
        plan = self._plan
        return Ring.of(plan.dtype, examples=plan.examples, sites=plan.sites, bound=plan.bound)

    def _trained(self, before: Checkpoint) -> ClosedSum | None:
        """Take the updates of a round as they come; return nothing if there are too few, or nothing comes of them."""
        number, ring = before.round + 1, self._ring()
        due = Round(self._admissions.nonce, number, self._attempt, before.digest, self._plan.digest, self._length, ring)
        updates = self._aggregate(due, before)

        def accept(content: RecordDict, site: SiteDescription) -> None:
            updates.add(*accept_update(content, site, self._plan, due))
            self._holds[site.name, before.round] = base_of(content)

        def request(_: int, base: str) -> wire.Request:
            return wire.TrainRequest(self._plan, number, self._attempt, base)

        self._progress.tell(
            phase="training",
            round=number,
            attempt=self._attempt,
            sites={site.name: "asked" for site in self.sites.values()} | dict.fromkeys(self.quarantined, "quarantined"),
        )
        self._gather(f"round {number}: update", self._questions(MessageType.TRAIN, before, request), accept)
        if len(updates) < self._config.least_sites():
            self._folder.note(
                f"round {number}: {len(updates)} of the {self._config.least_sites()} sites of its quorum sent an update"
            )
            return None
        for name, reason in updates.flagged().items():
            self._folder.note(f"round {number}: look at {name}: {reason}")
        try:
            result = updates.result()
        except FederationError as error:
            self._folder.note(f"round {number}: {error}")
            return None
        closed = ClosedSum(
            number,
            self._attempt,
            updates.total(),
            *result,
            dict(self._left_out),
            updates.flagged(),
            updates.memory(),
        )
        self._write(lambda: self._folder.close(closed))
        return closed

    def _judged(self, before: Checkpoint, closed: ClosedSum) -> tuple[str, bytes] | None:
        """Send the sum for the new model, to be scored; return its digest and state if it is adopted."""
        number, self._left_out = closed.round, dict(closed.left_out)
        nodes = [
            node for node in self.sites if node not in self._late
        ]  # the others train yet: it would be a second wait
        first = next(iter(nodes), None)
        questions = self._evaluations(before, closed, lambda node: node == first)  # one answers its state
        self._progress.tell(phase="judging", sites={self.sites[node].name: "asked" for node in nodes})
        self._gather(f"round {number}: validation counts", questions, self._judge(number, self._answers), nodes)
        if len(self._answers) < self._config.least_sites():
            self._folder.note(
                f"round {number}: {len(self._answers)} of the {self._config.least_sites()} sites of its quorum judged "
                "the new model"
            )
            return None
        return self._adopted(before, closed)

    def _evaluations(self, before: Checkpoint, closed: ClosedSum, keep: Callable[[int], bool]) -> Questions:
        """Return what asks nodes to judge a new model, and those that `keep` it to answer its state."""

        def request(node: int, base: str) -> wire.Request:
            return wire.EvaluateRequest(self._plan, "validation", closed.round, self._attempt, keep(node), base)

        total = {wire.SUM: ConfigRecord({wire.SUM: closed.total.to_json()})}
        return self._questions(MessageType.EVALUATE, before, request, {closed.name: Array(closed.words)}, total)

    def _judge(self, number: int, answers: dict[str, Answer]) -> Callable[[RecordDict, SiteDescription], None]:
        """Return what takes an answer to the new model of a round, whose state its site holds from then on."""

        def accept(content: RecordDict, site: SiteDescription) -> None:
            answer = answers[site.name] = accept_answer(content, site, masked=self._plan.masked)
            self._holds[site.name, number] = answer.verdict.digest

        return accept

    def _adopted(self, before: Checkpoint, closed: ClosedSum) -> tuple[str, bytes] | None:
        """Return digest and content of the new state if the sites adopt one, and a site that does sent it."""
        number = closed.round
        digest = self._digest(number)
        if digest is None:
            return None
        again: dict[str, Answer] = {}
        questions = self._evaluations(before, closed, lambda _: True)
        for node, site in self.sites.items():
            answer = self._answers.get(site.name)
            if answer is None or answer.verdict.reason:
                continue
            if answer.state is None:
                self._gather(f"round {number}: state", questions, self._judge(number, again), [node], least=0)
                answer = again.get(site.name, answer)
            if answer.state is not None and answer.verdict == wire.Verdict(digest, ""):
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
                self._left_out[name] = f"it did not adopt the model: {answer.verdict.reason}"
        computed = Counter(answer.verdict.digest for answer in answers.values())
        if len(computed) > 1:
            self._folder.note(
                f"round {number}: the sites computed {len(computed)} different models: do all run one fedpp?"
            )
        adopted = Counter(answer.verdict.digest for answer in answers.values() if not answer.verdict.reason)
        for digest, votes in adopted.most_common(1):
            if 2 * votes > len(answers):
                others = {name for name, answer in answers.items() if answer.verdict.digest != digest}
                self._left_out |= dict.fromkeys(others - self._left_out.keys(), "it computed another model")
                self._answers = {name: answer for name, answer in answers.items() if name not in others}
                return digest
        return None

    def _adopt(self, before: Checkpoint, closed: ClosedSum, digest: str, state: bytes, seconds: float) -> Checkpoint:
        trained = tuple(part.site for part in closed.total.parts)
        counts = {name: answer.counts for name, answer in sorted(self._answers.items())}
        made = RoundRecord(closed.round, trained, counts, seconds, self._attempt, self._left_out, closed.flagged)
        after = Checkpoint(closed.round, digest, state, (*before.rounds, made), before.seconds + seconds, closed.memory)
        self._write(lambda: self._folder.keep(after))
        self._write(lambda: self._keep(state))
        self._folder.note(
            f"round {closed.round}: {_figures(made.together)} on validation, {len(trained)} sites, {seconds:.1f} s"
        )
        self._progress.tell(round=closed.round + 1, round_seconds=after.seconds / after.round)
        return after

    def _questions(
        self,
        kind: str,
        before: Checkpoint,
        request: Callable[[int, str], wire.Request],
        results: Mapping[str, Array] | None = None,
        more: Mapping[str, ConfigRecord] | None = None,
    ) -> Questions:
        """Return what asks nodes about the state of the round before: who named it is sent its digest alone."""

        @cache
        def arrays(base: str) -> ArrayRecord:
            state = {} if base else {wire.STATE: wire.pack_state(before.state)}
            return ArrayRecord({**state, **(results or {})})

        def questions(nodes: Iterable[int]) -> list[Message]:
            bases = {node: self._base(self.sites[node].name, before) for node in nodes}
            return [self._message(kind, node, request(node, base), arrays(base), more) for node, base in bases.items()]

        return questions

    def _base(self, name: str, before: Checkpoint) -> str:
        """Return the digest by which a site knows the state of the round before, or nothing if it must be sent it."""
        held = self._holds.get((name, before.round), "")
        return held if before.digest in {held, UNKNOWN} else ""

    def _message(
        self,
        kind: str,
        node: int,
        request: wire.Request,
        arrays: ArrayRecord,
        more: Mapping[str, ConfigRecord] | None = None,
    ) -> Message:
        participants = self._admissions.admitted.participants.to_record()
        content = RecordDict(
            {wire.ARRAYS: arrays, wire.CONFIG: request.to_record(), wire.PARTICIPANTS: participants, **(more or {})}
        )
        return Message(content, dst_node_id=node, message_type=kind)

    def _gather(
        self,
        what: str,
        questions: Questions,
        accept: Callable[[RecordDict, SiteDescription], None],
        nodes: Iterable[int] | None = None,
        least: int | None = None,
        times: int = 1,
    ) -> None:
        """Ask the sites, and give each answer to `accept` as it comes, until all have answered or the deadline is over.

        Where fewer than `least`, by default the quorum, were accepted, and who is away or late could make it, they are
        waited for, and who is back is asked again. The deadline is so many `times` a round's. Raises
        `FederationError` if they do not come.
        """
        sites = {node: self.sites[node] for node in (self.sites if nodes is None else nodes)}
        accepted: set[int] = set()
        away: set[int] = set()

        def hear(seconds: float) -> None:
            for node, answer in self._exchange.answers(seconds):
                if answer is None:
                    self._folder.note(f"{what}: {sites[node].name} restarted, and is asked again")
                    self._exchange.ask(questions([node]))
                    continue
                if wire.lost_base(answer) and self._forget(sites[node].name):
                    self._folder.note(f"{what}: {sites[node].name} has lost the last model, and is sent it again")
                    self._exchange.ask(questions([node]))
                    continue
                said = self._heard(what, sites[node], answer, accept)
                (accepted if said == "answered" else away if said == "away" else set()).add(node)
                self._progress.site(sites[node].name, said)

        seconds = times * self._config.round_seconds
        self._progress.tell(deadline=time.time() + seconds)
        self._exchange.ask(questions(sites))
        away |= sites.keys() - self._exchange.unanswered  # SuperLink knows them no longer
        hear(seconds)
        quorum = self._config.least_sites() if least is None else least
        if len(accepted) < quorum <= len(accepted | away | self._exchange.unanswered):
            self._wait_for(what, quorum, accepted, away, questions, hear, sites)
        self._late |= self._exchange.unanswered
        for node in sorted((self._exchange.unanswered | away) - accepted, key=lambda node: sites[node].name):
            late = "no answer in time" if node in self._exchange.unanswered else "it is away"
            self._leave_out(what, sites[node], late)
            self._progress.site(sites[node].name, "late" if node in self._exchange.unanswered else "away")
        self._exchange.give_up()

    def _forget(self, name: str) -> bool:
        """Take it that a site holds no state; tell whether it was taken to hold one."""
        lost = [held for held in self._holds if held[0] == name]
        for held in lost:
            del self._holds[held]
        return bool(lost)

    def _wait_for(
        self,
        what: str,
        quorum: int,
        accepted: set[int],
        away: set[int],
        questions: Questions,
        hear: Callable[[float], None],
        sites: Mapping[int, SiteDescription],
    ) -> None:
        until = time.monotonic() + self._config.wait_seconds
        missing = ", ".join(sorted(sites[node].name for node in away | self._exchange.unanswered))
        self._folder.note(
            f"{what}: {len(accepted)} of a quorum of {quorum} sites; waiting for {missing}, "
            f"{self._config.wait_seconds:.0f} s at most"
        )
        self._progress.tell(deadline=time.time() + self._config.wait_seconds)
        while len(accepted) < quorum <= len(accepted | away | self._exchange.unanswered):
            if time.monotonic() >= until:
                raise FederationError(
                    f"{what}: {len(accepted)} sites answered within {self._config.wait_seconds:.0f} s more, the quorum "
                    f"is {quorum}; missing are {missing}: see that they run, and go on with run --resume"
                )
            back = away & set(self._grid.get_node_ids())
            away -= back
            self._exchange.ask(questions(sorted(back)))
            hear(AWAY_SECONDS)
            if not self._exchange.unanswered:
                time.sleep(AWAY_SECONDS)
                self._folder.require_going()

    def _heard(
        self,
        what: str,
        site: SiteDescription,
        answer: Message,
        accept: Callable[[RecordDict, SiteDescription], None],
    ) -> str:
        """Take one answer; return what became of it, in a word."""
        if wire.is_away(answer):
            return "away"
        try:
            accept(wire.content_of(answer), site)
        except MisfitError as error:
            self.quarantined[site.name] = f"{what}: {error}"
            self._leave_out(what, site, str(error))
            self._folder.note(f"{site.name} is quarantined: it is asked nothing more in this run")
            return "quarantined"
        except (FederationError, MaskError) as error:
            self._leave_out(what, site, str(error))
            return "left out"
        return "answered"

    def _leave_out(self, what: str, site: SiteDescription, reason: str) -> None:
        self._left_out[site.name] = f"{what}: {reason}"
        self._folder.note(f"{what} of {site.name} left out: {reason}")


def _figures(counts: AnyCounts) -> str:
    figures = metrics(counts)
    shown = {"loss": figures.loss, "accuracy": figures.accuracy, "AUC": figures.auc}
    return ", ".join(f"{name} {'not defined' if v is None else f'{v:.3f}'}" for name, v in shown.items())
