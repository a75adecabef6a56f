"""Masked federation: admission and contract, then the masked run, then its result and record in the run's folder."""

import secrets
import time
from collections.abc import Mapping
from functools import partial

from flwr.serverapp import Grid

from coordinator.server.admission import Admission, Admissions
from coordinator.server.progress import ProgressFile
from coordinator.server.run_state import RunState, StoppedError, patiently
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

from .cohort_requests import CohortRequests
from .masked_run import MaskedRun
from .run_course import RunCourse
from .run_revision import EarlierRounds, without
from .statement_store import Cohort, CohortFile, StatementStore


def federate(grid: Grid, config: RunConfig, folder: RunState, progress: ProgressFile) -> FederationRecord:
    """Carry out a masked run, or what is left of it, and write its result; return its record."""
    card = DomainCard.from_json(config.card)
    nonce = folder.nonce(secrets.token_hex(NONCE_BYTES))
    expires = folder.expires(int(time.time() + VALIDITY.total_seconds()))
    bundle, names = grid.run.fab_hash or NO_BUNDLE, CoordinatorNames.of_run(config.coordinator)
    run = Run(card.ca_key, card.fingerprint, nonce, str(grid.run.run_id), bundle, names)
    admissions = Admissions(grid, run, card.n, folder.note, folder.require_not_stopped)
    cohort = CohortFile(folder).load()
    if cohort is None:
        cohort = _cohort(config, admissions.wait(config), run, expires)
        _explain(cohort.contract, folder)
        patiently(partial(CohortFile(folder).write, cohort), config.wait_seconds, folder)
    else:
        cohort = _revised(cohort, folder, config)
        # Its sites may be busy with the round.
        admissions.wait(config, set(cohort.contract.names), config.round_seconds)
    store = StatementStore(folder, cohort, config.wait_seconds)
    earlier = EarlierRounds.of(folder, cohort, config.wait_seconds)
    requests = CohortRequests(grid, config, admissions, folder, progress, store, cohort)
    masked_run = MaskedRun(cohort, store, requests, folder, progress, n=card.n, earlier=earlier)
    try:
        course, reports = masked_run.carry_out(), masked_run.reports()
    except FederationError as error:
        _require_revision(cohort, store, folder, error)
        raise
    model = CertifiedModel(cohort.contract, cohort.certificates, course.certificate, _sealed(requests, course))
    content = model.to_bytes()
    patiently(lambda: replace(folder.out / SEALED, content), config.wait_seconds, folder)
    seconds = {**(earlier.seconds if earlier else {}), **store.seconds}
    return _record(config, card, run, cohort, seconds, course, reports, admissions.admitted.refused)


def _revised(cohort: Cohort, folder: RunState, config: RunConfig) -> Cohort:
    """Return the cohort without the sites that the operator left out of the resumed run."""
    leaving = set(folder.left_out()) & set(cohort.contract.names)
    if leaving:
        cohort = without(folder, cohort, leaving, config.wait_seconds)
        patiently(partial(CohortFile(folder).write, cohort), config.wait_seconds, folder)
        contract = cohort.contract
        folder.note(
            f"revision {contract.revision}: the run continues without {', '.join(sorted(leaving))} from round "
            f"{contract.start_round}; changes by few sites so far: {contract.changes}"
        )
        _explain(contract, folder)
    folder.leave_out(())
    return cohort


def _require_revision(cohort: Cohort, store: StatementStore, folder: RunState, error: FederationError) -> None:
    """Return to the contract before a revision that not all its members accepted."""
    accepted = store.chains.of("accept").keys() >= set(cohort.contract.names)
    if cohort.parent is not None and not accepted and not isinstance(error, StoppedError):
        CohortFile(folder).write(cohort.parent)
        folder.note(f"revision {cohort.contract.revision} was not accepted: a resumed run has all its sites again")


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
    )
