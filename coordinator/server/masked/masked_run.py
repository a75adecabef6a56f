"""Masked run: its contract, then rounds of train, release and step, until the schedule is at its end.

The coordinator relays the members' statements and adds their masked updates. It reads no state, and cannot choose what
is computed: all members sign one contract, and what is due follows from what they open together. Each thing is on the
disk before the request that depends on it (`statement_store`), and a part that is on the disk is not requested again.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256

from flwr.app import ArrayRecord, RecordDict

from coordinator.server.progress import Phase, ProgressFile
from coordinator.server.run_state import RunState
from fedpp.aggregation.linear_check import vector_hash
from fedpp.aggregation.round_context import ring_of
from fedpp.aggregation.run_schedule import Due
from fedpp.errors import FederationError
from fedpp.learning.metrics import metrics
from fedpp.protocol import masked_messages, messages
from fedpp.protocol.counts import Counts
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts
from fedpp.protocol.label_counts import described
from fedpp.protocol.run_contract import NO_HASH
from fedpp.protocol.run_statements import Purpose, SignedStatement, aggregate_id, context
from fedpp.protocol.state_certificate import needed

from .cohort_requests import CohortRequests, NewStatementsError, PhaseRequest, contract_request
from .round_sum import RoundSum
from .run_course import RunCourse, course_of
from .run_revision import EarlierRounds
from .statement_store import Cohort, StatementStore

PHASES: dict[Due, Phase] = {"train": "training", "validation": "evaluating", "test": "testing"}


class MaskedRun:
    """The phases of one run."""

    def __init__(
        self,
        cohort: Cohort,
        store: StatementStore,
        requests: CohortRequests,
        folder: RunState,
        progress: ProgressFile,
        *,
        n: int,
        earlier: EarlierRounds | None = None,
    ) -> None:
        """Take the run where its journal ends; a row has `n` slots, and a revision has `earlier` rounds."""
        self._earlier = earlier
        self._cohort, self._contract, self._store, self._requests = cohort, cohort.contract, store, requests
        self._folder, self._progress, self._n = folder, progress, n
        self._ring = ring_of(cohort.contract.spec)

    def carry_out(self) -> RunCourse:
        """Start the run and carry out its rounds, as far as they are not yet; return its whole course.

        Raises `FederationError` if the run cannot continue now.
        """
        while True:
            with suppress(NewStatementsError):
                self._start()
                course = self._course()
                if course is None:
                    raise FederationError(self._unlike("start", self._contract.start_round))
                while course.schedule.due != "end":
                    course = self._round(course)
                return course

    def _course(self) -> RunCourse | None:
        return course_of(self._store.chains, self._earlier.course if self._earlier else None)

    def reports(self) -> Mapping[str, Mapping[str, AnyCounts]]:
        """Gather all members' own figures, by site, state and split (`3 validation`), if they all report theirs."""
        contract, kind = self._contract, FindingCounts if self._contract.spec.task.multi_label else Counts
        course = self._course()
        if contract.reporting != "per-site" or course is None:
            return {}

        self._sign("reports", "testing", masked_messages.REPORT, "report", course.number, self._with)
        signed = self._store.chains.all_of("report", course.number)
        figures = {site: json.loads(of.statement.facts["figures"] or "{}") for site, of in signed.items()}
        return {site: {name: kind.from_mapping(of) for name, of in read.items()} for site, read in figures.items()}

    def _start(self) -> None:
        """Let all members accept the contract, reveal their coins and sign the state that the run starts from."""
        contract = self._contract

        def accept(_: Sequence[str]) -> RecordDict:
            return contract_request(self._cohort)

        first = contract.start_round
        self._sign("contract", "starting", masked_messages.ACCEPT_RUN, "accept", 0, accept)
        earlier = self._earlier.statements if self._earlier else ()
        self._sign("coins", "starting", masked_messages.REVEAL_COIN, "coin", 0, self._with, earlier=earlier)
        self._sign("first state", "starting", masked_messages.START_RUN, "start", first, self._with)

    def _round(self, before: RunCourse) -> RunCourse:
        started, number, due = time.monotonic(), before.number + 1, before.schedule.due
        base = before.certificate.state
        self._progress.update(round=number)
        length = before.length(self._contract, self._n)
        self._train(number, base, due, length)
        trained = self._store.chains.all_of("train", number)
        total = RoundSum.of(self._store, trained, self._ring, length)
        at = context(before.certificate.run, number, base)
        aggregate = aggregate_id(at, self._ring.bits, length, trained, total.hash)
        self._release(number, base, total.hash, aggregate)
        total.require_tags(self._store, aggregate, trained, self._store.chains.all_of("release", number))
        self._step(number, base, masked_messages.summed(total.low, total.carry))
        after = self._course()
        if after is None or after.number < number:
            raise FederationError(self._unlike("step", number))
        self._store.complete(number, time.monotonic() - started)
        self._note(before, after)
        return after

    def _train(self, number: int, base: str, due: Due, length: int) -> None:
        """Gather the masked updates of all members, of so many values."""
        signed = self._store.chains.of("train", number)
        whole = {site for site, of in signed.items() if self._store.update(of, self._ring) is not None}

        def take(site: str, content: RecordDict) -> None:
            of = self._read(site, content, "train", number, base)
            values = masked_messages.masked_of(content, self._ring.bits, length)
            if vector_hash(values) != of.statement.facts["masked"]:
                raise FederationError("its masked update is another one than it signed")
            self._store.keep_update(site, values)
            self._store.add(of)
            whole.add(site)

        def content(statements: Sequence[str]) -> RecordDict:
            request = masked_messages.RoundRequest(self._contract.digest, tuple(statements), number)
            return RecordDict({messages.CONFIG: request.to_record()})

        self._requests.carry_out(
            PhaseRequest(
                what=f"round {number}: update" if due == "train" else f"round {number}: {due} counts",
                phase=PHASES[due],
                number=number,
                kind=masked_messages.TRAIN,
                statements=self._store.since(number - 1),
                missing=lambda: set(self._contract.names) - whole,
                content=content,
                take=take,
                enough=self._contract.n,
            )
        )

    def _release(self, number: int, base: str, sum_hash: str, aggregate: str) -> None:
        """Gather the seeds of the members' own masks, each sealed and released for this sum."""

        def take(site: str, content: RecordDict) -> None:
            of, seed = self._read(site, content, "release", number, base), masked_messages.seed_of(content)
            if of.statement.facts["aggregate"] != aggregate:
                raise FederationError("it released its mask for another sum")
            if sha256(bytes.fromhex(seed)).hexdigest() != of.statement.facts["sealed"]:
                raise FederationError("its sealed seed is another one than it signed")
            self._store.add(of, seed)

        def content(statements: Sequence[str]) -> RecordDict:
            request = masked_messages.ReleaseRequest(self._contract.digest, tuple(statements), number, sum_hash)
            return RecordDict({messages.CONFIG: request.to_record()})

        self._requests.carry_out(
            PhaseRequest(
                what=f"round {number}: release",
                phase="releasing",
                number=number,
                kind=masked_messages.RELEASE,
                statements=self._store.since(number - 1),
                missing=lambda: {site for site in self._contract.names if self._store.seed(site, number) is None},
                content=content,
                take=take,
                enough=self._contract.n,
            )
        )

    def _step(self, number: int, base: str, arrays: ArrayRecord) -> None:
        """Let the members compute the next state, until t of them signed the same one, or all have signed."""
        seeds = tuple(self._store.seed(site, number) or "" for site in self._contract.names)

        def content(statements: Sequence[str]) -> RecordDict:
            request = masked_messages.StepRequest(self._contract.digest, tuple(statements), number, seeds)
            return RecordDict({messages.CONFIG: request.to_record(), messages.ARRAYS: arrays})

        for enough in (needed(self._contract, number), self._contract.n):
            course = self._course()
            if course is None or course.number < number:
                what = f"round {number}: step"
                self._sign(what, "stepping", masked_messages.STEP, "step", number, content, base, enough)

    def _sign(
        self,
        what: str,
        phase: Phase,
        kind: str,
        purpose: Purpose,
        number: int,
        content: Callable[[Sequence[str]], RecordDict],
        base: str = NO_HASH,
        enough: int = 0,
        earlier: Sequence[SignedStatement] = (),
    ) -> None:
        """Gather the members' statements of one purpose; `enough` of them, by default all.

        The request also carries these `earlier` statements, of the contract before.
        """
        chains = self._store.chains

        def take(site: str, reply: RecordDict) -> None:
            self._store.add(self._read(site, reply, purpose, number, base))

        self._requests.carry_out(
            PhaseRequest(
                what=what,
                phase=phase,
                number=number,
                kind=kind,
                statements=[*earlier, *self._store.since(number - 1 if base != NO_HASH else 0)],
                missing=lambda: set(self._contract.names) - chains.of(purpose, number).keys(),
                content=content,
                take=take,
                enough=enough or self._contract.n,
            )
        )

    def _with(self, statements: Sequence[str]) -> RecordDict:
        """Return the content of a request that has these statements alone."""
        request = masked_messages.StatementsRequest(self._contract.digest, tuple(statements))
        return RecordDict({messages.CONFIG: request.to_record()})

    def _read(self, site: str, content: RecordDict, purpose: Purpose, number: int, base: str) -> SignedStatement:
        """Return the statement in a member's reply; raise `FederationError` if it is about something else."""
        signed = SignedStatement.from_json(masked_messages.statement_of(content))
        of = signed.statement
        stated, due = (of.site, of.purpose, of.round, of.base), (site, purpose, number, base)
        if stated != due:
            raise FederationError(f"its statement is of {stated!r:.200}, due is {due!r:.200}")
        return signed

    def _unlike(self, purpose: Purpose, number: int) -> str:
        """Return what to say where members signed different states."""
        states = {site: of.statement.facts["state"] for site, of in self._store.chains.of(purpose, number).items()}
        listed = ", ".join(f"{site} {state[:16]}" for site, state in states.items())
        return (
            f"round {number}: the members computed different states ({listed}), and too few the same one: do all run "
            "one fedpp?"
        )

    def _note(self, before: RunCourse, after: RunCourse) -> None:
        number, seconds = after.number, self._store.seconds[after.number]
        split = "test" if before.schedule.due == "test" else "validation"
        state = after.schedule.chosen if split == "test" else before.schedule.state
        counts = after.test if split == "test" else after.validation[state]
        self._folder.note(
            f"round {number}: model of round {state}: {figures(counts)} on {split}, {self._contract.n} sites, "
            f"{seconds:.1f} s"
        )
        if after.labels and not before.labels:
            self._folder.note(f"round {number}: {described(after.labels, self._contract.spec.task)}")
        self._progress.update(
            round=number + 1, round_seconds=sum(self._store.seconds.values()) / len(self._store.seconds)
        )


def figures(counts: AnyCounts | None) -> str:
    """Return the figures of counts as a log shows them."""
    if counts is None:
        return "no figures"
    of = metrics(counts)
    shown = {"loss": of.loss, "accuracy": of.accuracy, "AUC": of.auc}
    return ", ".join(f"{name} {'not defined' if value is None else f'{value:.3f}'}" for name, value in shown.items())
