"""Masked federation: admission and contract, then the masked run, then its result and record in the run's folder."""

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from flwr.serverapp import Grid

from coordinator.server.admission import Admission, Admissions
from coordinator.server.progress import ProgressFile
from coordinator.server.run_state import CohortChange, RunState, StoppedError, patiently
from fedpp.cipher.domain_card import DomainCard
from fedpp.config.run_config import RunConfig
from fedpp.errors import FederationError
from fedpp.files import replace
from fedpp.protocol.certified_model import CertifiedModel
from fedpp.protocol.coordinator_identity import CoordinatorNames
from fedpp.protocol.finding_counts import AnyCounts
from fedpp.protocol.membership import NO_BUNDLE, NONCE_BYTES, Run
from fedpp.protocol.new_contract import first_contract, lowered_weights
from fedpp.protocol.run_contract import FRESH, VALIDITY, RunContract
from fedpp.protocol.run_record import SEALED, FederationRecord, RoundRecord

from .abandonment import GivenUp
from .cohort_requests import CohortRequests
from .masked_run import MaskedRun
from .run_course import RunCourse
from .run_rebuild import rebuilt
from .run_revision import EarlierRounds, revised
from .statement_store import Cohort, CohortFile, StatementStore


def federate(grid: Grid, config: RunConfig, folder: RunState, progress: ProgressFile) -> FederationRecord:
    """Carry out a masked run, or what is left of it, and write its result; return its record."""
    card, cohort = DomainCard.from_json(config.card), _known_cohort(folder)
    nonce = folder.nonce(secrets.token_hex(NONCE_BYTES))
    expires = folder.expires(int(time.time() + VALIDITY.total_seconds()))
    bundle, names = grid.run.fab_hash or NO_BUNDLE, CoordinatorNames.of_run(config.coordinator)
    run = Run(card.ca_key, card.fingerprint, nonce, str(grid.run.run_id), bundle, names)
    admissions = Admissions(grid, run, card.n, folder.note, folder.require_not_stopped)
    if cohort is None and folder.is_rebuilding():
        cohort = rebuilt(grid, admissions, run, card, config, folder)
        patiently(partial(CohortFile(folder).write, cohort), config.wait_seconds, folder)
    elif cohort is None:
        cohort = _cohort(config, admissions.wait(config), run, expires)
        _explain(cohort.contract, folder)
        folder.note(f"if this folder is lost, `run --resume --nonce {nonce}` rebuilds the run from the vaults")
        patiently(partial(CohortFile(folder).write, cohort), config.wait_seconds, folder)
    else:
        cohort = _continued(cohort, admissions, folder, config, expires)
    GivenUp(folder).ask(grid, admissions.nodes())
    store = StatementStore(folder, cohort, config.wait_seconds)
    earlier = EarlierRounds.of(folder, cohort, config.wait_seconds)
    requests = CohortRequests(grid, config, admissions, folder, progress, store, cohort)
    masked_run = MaskedRun(cohort, store, requests, folder, progress, n=card.n, earlier=earlier)
    try:
        course, reports = masked_run.carry_out(), masked_run.reports()
    except FederationError as error:
        if _is_given_up(cohort, store, requests, folder, error):
            _give_up(cohort, folder)
            GivenUp(folder).ask(grid, admissions.nodes())
        raise
    model = CertifiedModel(cohort.contract, cohort.certificates, course.certificate, _sealed(requests, course))
    content = model.to_bytes()
    patiently(lambda: replace(folder.out / SEALED, content), config.wait_seconds, folder)
    seconds = {**(earlier.seconds if earlier else {}), **store.seconds}
    return _record(config, card, run, cohort, seconds, course, reports, admissions.admitted.refused)


def _continued(cohort: Cohort, admissions: Admissions, folder: RunState, config: RunConfig, expires: int) -> Cohort:
    """Return the cohort of a resumed run, once its sites are there: with the operator's change, if there is one.

    A change that cannot be made is dropped, so that the run can be resumed as it was.
    """
    change = folder.change()
    if change.contract not in {"", cohort.contract.digest}:
        change = CohortChange()  # a crash came between the revision and its note
        folder.plan(change)
    wanted = set(cohort.contract.names) - set(change.leaving) | set(change.joining)
    try:
        admission = admissions.wait(config, wanted, config.round_seconds)  # they may be busy with the round
        if change:
            until = expires - len(GivenUp(folder).contracts())  # so that it is none that was given up
            cohort = revised(folder, cohort, change, admission, config.wait_seconds, until)
    except StoppedError:
        raise
    except FederationError:
        folder.plan(CohortChange())
        raise
    if change:
        patiently(partial(CohortFile(folder).write, cohort), config.wait_seconds, folder)
        _note_revision(cohort.contract, change, folder)
        folder.plan(CohortChange())
    return cohort


def _note_revision(contract: RunContract, change: CohortChange, folder: RunState) -> None:
    """Log a revision, and what the staff of a site that joins has to do."""
    folder.note(
        f"revision {contract.revision}: the run continues {change} from round {contract.start_round}; changes by few "
        f"sites so far: {contract.changes}"
    )
    if contract.parent is not None and change.joining:
        folder.note(
            f"a new vault joins once its staff has allowed it: `fedpp-site endorse --state {contract.parent.base}`"
        )
    _explain(contract, folder)


def _known_cohort(folder: RunState) -> Cohort | None:
    """Return the cohort of a run that is resumed, or None; complete what a crash left of giving a contract up."""
    cohort = CohortFile(folder).load()
    if cohort is not None and cohort.contract.digest in GivenUp(folder).contracts():
        _give_up(cohort, folder)
        return cohort.parent
    return cohort


def _is_given_up(
    cohort: Cohort, store: StatementStore, requests: CohortRequests, folder: RunState, error: FederationError
) -> bool:
    """Tell whether a contract did not start, and is not worth keeping: a resumed run makes another one.

    A revision is kept once all coins are known, since its members may have left the run before it, and if the operator
    stopped it. Where statements are missing here alone, the members that are there have them.
    """
    stopped, names = isinstance(error, StoppedError), set(cohort.contract.names)

    def is_started() -> bool:
        first = cohort.contract.start_round
        signed = store.chains.of("start", first) if cohort.parent is None else store.chains.of("coin")
        return signed.keys() >= names

    if is_started() or (stopped and cohort.parent is not None):
        return False
    if not stopped:
        with suppress(FederationError):
            requests.compared()
    return not is_started() and (cohort.parent is not None or not (folder.folder / "updates").exists())


def _give_up(cohort: Cohort, folder: RunState) -> None:
    """Return to the contract before one that did not start, or to none."""
    contract = cohort.contract
    GivenUp(folder).add(contract)
    if cohort.parent is None:
        folder.renew(secrets.token_hex(NONCE_BYTES))
        CohortFile(folder).remove()
        folder.note(f"contract {contract.digest[:16]} did not start: a resumed run makes another one")
    else:
        CohortFile(folder).write(cohort.parent)
        folder.note(f"revision {contract.revision} was not accepted: a resumed run has all its sites again")


def _cohort(config: RunConfig, admission: Admission, run: Run, expires: int) -> Cohort:
    """Return the cohort of all admitted sites; raise `FederationError` if they cannot make a contract."""
    sites, proofs = tuple(admission.sites.values()), admission.participants.proofs
    certificates = {proof.certificate.member.site: proof.certificate for proof in proofs}
    contract = first_contract(
        config,
        run.domain,
        sites,
        certificates,
        nonce=run.nonce,
        expires=expires,
        bundle=run.bundle,
        initial=config.initial_model or FRESH,
    )
    datasets = {proof.statement.site: proof.statement.dataset for proof in proofs}
    return Cohort(contract, tuple(certificates[name] for name in contract.names), sites, datasets)


def _explain(contract: RunContract, folder: RunState) -> None:
    """Log what an operator should know of a contract."""
    folder.note(f"contract {contract.digest}")
    for lock in contract.lifted:
        folder.note(f"{lock.site} has not burned round {lock.round}, and its lock was lifted: its update is at risk")
    for site, (sequences, weight) in lowered_weights(contract).items():
        folder.note(f"{site} counts {weight} of its {sequences} training sequences: no site outweighs the others")
    if contract.n == 2:
        folder.note("two sites hide nothing from each other: each can compute the other's update from the sum")


def _sealed(requests: CohortRequests, course: RunCourse) -> bytes:
    """Return the certified state, sealed by one of the members that signed it; raise `FederationError` if none does."""
    reasons = []
    for site in course.certificate.signers:
        try:
            return requests.sealed_state(site)
        except FederationError as error:
            reasons.append(f"{site} ({error})")
    raise FederationError(
        f"the run is complete, and no member sends its model: {', '.join(reasons)}: resume with run --resume"
    )


def _record(
    config: RunConfig,
    card: DomainCard,
    run: Run,
    cohort: Cohort,
    seconds: Mapping[int, float],
    course: RunCourse,
    reports: Mapping[str, Mapping[str, AnyCounts]],
    refused: Mapping[str, str],
) -> FederationRecord:
    spec, names = cohort.contract.spec, cohort.contract.names

    def of_sites(figure: str) -> dict[str, AnyCounts]:
        return {site: counts[figure] for site, counts in reports.items() if figure in counts}

    rounds = tuple(
        RoundRecord(number, names, of_sites(f"{number} validation"), seconds.get(number, 0.0), counts=counts)
        for number, counts in sorted(course.validation.items())
        if number
    )
    return FederationRecord(
        domain=card.fingerprint,
        scheme=card.scheme,
        bundle=run.bundle,
        run=run.number,
        masked=True,
        seed=config.training.seed,
        dtype=config.training.dtype,
        network=spec.network,
        sites=cohort.sites,
        datasets=cohort.datasets,
        refused=dict(refused),
        rounds=rounds,
        test=of_sites(f"{course.schedule.chosen} test"),
        seconds=sum(seconds.values()),
        settings=config.reported(),
        counts=course.test,
        chosen=course.schedule.chosen,
        contract=cohort.contract.digest,
        certified=course.certificate.signers,
        changes=cohort.contract.changes,
        lifted=tuple(f"{lock.site}, round {lock.round}" for lock in cohort.contract.lifted),
        labels=course.labels or (),
    )
