"""Revision of a masked run: the members that stay continue it from its last certified state, under another contract.

The vaults decide whether the cohort may change: their policies bound how often, and locks forbid it where a sum with an
absent member's update may still be opened.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from coordinator.server.run_state import RunState
from fedpp.errors import FederationError
from fedpp.protocol.new_contract import revised_contract
from fedpp.protocol.run_contract import RunContract
from fedpp.protocol.run_statements import SignedStatement

from .run_course import RunCourse, course_of
from .statement_store import Cohort, StatementStore


@dataclass(frozen=True)
class EarlierRounds:
    """Rounds of a run under its earlier contracts: course, statements and durations."""

    course: RunCourse
    statements: Sequence[SignedStatement]  # of the state that the revision starts from, and later ones
    seconds: Mapping[int, float]  # round -> duration

    @classmethod
    def of(cls, folder: RunState, cohort: Cohort, wait_seconds: float) -> "EarlierRounds | None":
        """Read the journals of the earlier contracts; None for a run that has one contract."""
        if cohort.parent is None:
            return None
        before = cls.of(folder, cohort.parent, wait_seconds)
        store, until = StatementStore(folder, cohort.parent, wait_seconds), cohort.contract.start_round
        course = course_of(store.chains, before.course if before else None, until)
        if course is None or course.number != until:
            raise FederationError(f"the journal of the run ends before round {until}: it cannot be resumed")
        seconds = {number: of for number, of in store.seconds.items() if number <= until}
        return cls(course, store.since(until - 1), {**(before.seconds if before else {}), **seconds})


def without(folder: RunState, cohort: Cohort, leaving: Collection[str], wait_seconds: float) -> Cohort:
    """Return the cohort of a revision that these sites are not in; raise `FederationError` if there can be none."""
    contract, before = cohort.contract, EarlierRounds.of(folder, cohort, wait_seconds)
    course = course_of(StatementStore(folder, cohort, wait_seconds).chains, before.course if before else None)
    if course is None:
        raise FederationError("the run has not started: start a new one without the site that is away")
    staying = tuple(site for site in cohort.sites if site.name not in leaving)
    certificates = {name: of for name, of in cohort.by_site().items() if name not in leaving}
    revised = revised_contract(
        contract,
        course.certificate,
        staying,
        certificates,
        nonce=contract.nonce,
        expires=contract.expires,  # so that a repeated request makes the same contract
        bundle=contract.bundle,
        earlier=_contracts(cohort.parent),
    )
    datasets = {name: of for name, of in cohort.datasets.items() if name not in leaving}
    return Cohort(revised, tuple(certificates[name] for name in revised.names), staying, datasets, cohort)


def _contracts(cohort: Cohort | None) -> list[RunContract]:
    """Return the contracts of a cohort and of those before it."""
    return [] if cohort is None else [cohort.contract, *_contracts(cohort.parent)]
