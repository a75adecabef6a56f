"""Revision of a masked run: members that stay and sites that join continue it, from its last certified state.

The vaults decide whether the cohort may change: their policies bound how often, and locks forbid it where a sum with an
absent member's update may still be opened. A vault that joins gets the state, sealed, from a member.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from coordinator.server.admission import Admission
from coordinator.server.run_state import CohortChange, RunState
from fedpp.errors import FederationError
from fedpp.protocol.membership import Proof
from fedpp.protocol.new_contract import revised_contract
from fedpp.protocol.run_contract import RunContract, certificate_hash
from fedpp.protocol.run_statements import SignedStatement
from fedpp.protocol.site_description import SiteDescription
from fedpp.protocol.statement_chains import listed

from .run_course import RunCourse, course_of
from .statement_store import Cohort, StatementStore

NOT_STARTED = "the run has not started: resume it with the sites that are there, without --without and --with"


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


def newest_course(folder: RunState, cohort: Cohort, wait_seconds: float) -> RunCourse | None:
    """Return what a run came to under its newest contract; None before all members have started it."""
    before = EarlierRounds.of(folder, cohort, wait_seconds)
    return course_of(StatementStore(folder, cohort, wait_seconds).chains, before.course if before else None)


def started(folder: RunState, cohort: Cohort, wait_seconds: float) -> Cohort:
    """Return the newest cohort of a run that has started; raise `FederationError` if there is none."""
    if newest_course(folder, cohort, wait_seconds) is not None:
        return cohort
    if cohort.parent is None:
        raise FederationError(NOT_STARTED)
    return started(folder, cohort.parent, wait_seconds)


def take_burn(folder: RunState, cohort: Cohort, text: str, leaving: Collection[str]) -> None:
    """Verify and keep the statements of a leaving site, the last of which burns the round that is next.

    `text` is what `fedpp-site burn --out` wrote; raises `FederationError` for anything else.
    """
    course, signed = newest_course(folder, cohort, 0.0), listed(text)
    digest = cohort.contract.digest
    if course is None or not signed or any(each.statement.contract != digest for each in signed):
        raise FederationError(f"it has no statement of the run's contract, {digest}, alone: burn that one")
    of = max(signed, key=lambda each: each.statement.place).statement
    due = ("burn", course.number + 1, course.certificate.state)
    if (of.purpose, of.round, of.base) != due or of.site not in leaving:
        raise FederationError(
            f"it ends with {of.purpose} of round {of.round} by {of.site}: due is a burn of round {due[1]} by a site of "
            "--without"
        )
    StatementStore(folder, cohort, 0.0).add_all(signed)


def require_unlocked(folder: RunState, cohort: Cohort, leaving: Collection[str], lifted: Collection[str]) -> None:
    """Raise `FederationError` if members released their masks for the next round, and a leaving site did not burn it.

    The vaults decide; this says before they are asked what is missing, as far as it is known here.
    """
    course, chains = newest_course(folder, cohort, 0.0), StatementStore(folder, cohort, 0.0).chains
    if course is None:
        return
    number, digest = course.number + 1, cohort.contract.digest
    released, burned = chains.of("release", number), chains.of("burn", number)
    if done := sorted(released.keys() & set(leaving)):
        raise FederationError(
            f"{done[0]} has released its mask for round {number}, which needs it no more: resume the run with all its "
            "sites, and leave it out after that round"
        )
    missing = sorted(set(leaving) - burned.keys() - set(lifted))
    if released and missing:
        aggregate = next(iter(released.values())).statement.facts["aggregate"]
        raise FederationError(
            f"{len(released)} sites have released their masks for round {number}, and {missing[0]} has not burned it: "
            f"--burn takes what `fedpp-site burn {digest} {aggregate} --out FILE` writes there; if it cannot, "
            f"--lifted {missing[0]} after `fedpp-site lift {digest} {number} {missing[0]!r}` at all others, at its risk"
        )


def revised(
    folder: RunState, cohort: Cohort, change: CohortChange, admission: Admission, wait_seconds: float, expires: int
) -> Cohort:
    """Return the cohort of a revision by a change of the sites; raise `FederationError` if there can be none.

    A site that joins is described by its admission; one of a member's name takes that member's place. `expires` is the
    end of the contract.
    """
    contract, course = cohort.contract, newest_course(folder, cohort, wait_seconds)
    if course is None:
        raise FederationError(NOT_STARTED)
    if course.schedule.due == "end":
        raise FederationError("the run has ended, and its sites stay as they are: start another one")
    joined = {name: _joining(name, cohort, admission) for name in sorted(set(change.joining))}
    gone = {*change.leaving, *joined}
    sites = {site.name: site for site in cohort.sites if site.name not in gone}
    sites |= {name: site for name, (site, _) in joined.items()}
    certificates = cohort.by_site() | {name: proof.certificate for name, (_, proof) in joined.items()}
    datasets = {**cohort.datasets, **{name: proof.statement.dataset for name, (_, proof) in joined.items()}}
    made = revised_contract(
        contract,
        course.certificate,
        tuple(sites.values()),
        certificates,
        nonce=contract.nonce,
        expires=expires,
        bundle=contract.bundle,
        earlier=_contracts(cohort.parent),
        lifted=change.lifted,
    )
    return Cohort(
        made,
        tuple(certificates[name] for name in made.names),
        tuple(sites[name] for name in made.names),
        {name: datasets[name] for name in made.names},
        cohort,
    )


def _joining(name: str, cohort: Cohort, admission: Admission) -> tuple[SiteDescription, Proof]:
    """Return what a site that joins has proved; raise `FederationError` for one that is not there, or is a member."""
    proofs = {proof.statement.site: proof for proof in admission.participants.proofs}
    site = next((site for site in admission.sites.values() if site.name == name), None)
    if site is None:
        refused = [reason for known, reason in admission.refused.items() if _is_of(name, known)]
        for reason in refused[:1]:
            raise FederationError(f"{name} cannot join, since it was not admitted: {reason}")
        raise FederationError(f"{name} cannot join, since it is not connected: see that it runs, and try again")
    known = {(of.site, of.certificate, of.sequences, of.patients) for of in cohort.contract.cohort}
    if (name, certificate_hash(proofs[name].certificate), site.sequences, site.patients) in known:
        raise FederationError(f"{name} is a member already, with this certificate and these data: leave out --with")
    return site, proofs[name]


def _is_of(name: str, refused: str) -> bool:
    """Tell whether a refused node was enrolled for this site, or says that it is; its label may follow in brackets."""
    return refused in {name, f"node {name}"} or refused.startswith(f"{name} (")


def _contracts(cohort: Cohort | None) -> list[RunContract]:
    """Return the contracts of a cohort and of those before it."""
    return [] if cohort is None else [cohort.contract, *_contracts(cohort.parent)]
