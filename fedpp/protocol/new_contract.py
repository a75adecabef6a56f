"""New contracts: that of a run's admitted sites, and revisions of it by which sites leave a run or join it.

Whoever coordinates a run proposes them; what they say of the sites is public. Members check a proposal on their own.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from fedpp.config.run_config import MIN_HONEST, RunSettings
from fedpp.errors import FederationError
from fedpp.protocol.membership import Certificate
from fedpp.protocol.run_contract import (
    FRESH,
    CohortMember,
    LiftedLock,
    Parent,
    RunContract,
    capped_weights,
    certificate_hash,
)
from fedpp.protocol.run_spec import RunSpec
from fedpp.protocol.site_description import SiteDescription
from fedpp.protocol.state_certificate import StateCertificate

_OF_A_REVISION = frozenset({"cohort", "nonce", "expires", "bundle", "revision", "parent", "changes", "lifted", "spec"})


def first_contract(
    settings: RunSettings,
    domain: str,
    sites: Collection[SiteDescription],
    certificates: Mapping[str, Certificate],
    *,
    nonce: str,
    expires: int,
    bundle: str,
    initial: str = FRESH,
) -> RunContract:
    """Return the contract of a run of these sites, whose certificates stand by name; raise if they are too few.

    `domain` is the fingerprint of their domain, `expires` in seconds since 1970, `initial` as in the contract.

    Law: `first_contract(...).require()` raises nothing.
    """
    _require_enough(len(sites), settings.min_honest, settings.colluders)
    spec = RunSpec.of_settings(settings, domain, next(iter(sites)).task, masked=True)
    cohort = _cohort(spec, sites, certificates)
    contract = RunContract(
        spec=_weighed(spec, cohort),
        nonce=nonce,
        expires=expires,
        bundle=bundle,
        cohort=cohort,
        colluders=0 if len(sites) == 2 else settings.colluders,
        rounds=settings.rounds,
        min_honest=settings.min_honest,
        monitor=settings.monitor,
        patience=settings.patience,
        initial=initial,
        reporting=settings.reporting,
    )
    contract.require()
    return contract


def revised_contract(
    old: RunContract,
    base: StateCertificate,
    sites: Collection[SiteDescription],
    certificates: Mapping[str, Certificate],
    *,
    nonce: str,
    expires: int,
    bundle: str,
    earlier: Iterable[RunContract] = (),
    lifted: Collection[str] = (),
) -> RunContract:
    """Return the contract by which these sites continue a run from a certified state; raise if that cannot be.

    What is trained and how, and what is opened, stays as it was. The weights follow from the new cohort's sizes.
    `earlier` are the contracts that the old one revised.
    `lifted` are sites that leave without a burn, and whose locks the staff of all others lifted.
    """
    cohort, before = _cohort(old.spec, sites, certificates), (old, *earlier)
    contract = old.changed(
        spec=_weighed(old.spec, cohort),
        cohort=cohort,
        nonce=nonce,
        expires=expires,
        bundle=bundle,
        revision=old.revision + 1,
        parent=Parent(old.digest, base.round, base.state),
        changes=old.changes + max(small_changes(of, cohort) for of in before),
        lifted=(*old.lifted, *(LiftedLock(site, base.round + 1) for site in sorted(lifted))),
    )
    require_revision(contract, old, base, before[1:])
    return contract


def require_revision(
    new: RunContract, old: RunContract, base: StateCertificate, earlier: Iterable[RunContract] = ()
) -> None:
    """Raise `FederationError` unless a contract continues an old one from this state, certified under the old one.

    The certificate itself is verified by `StateCertificate.require`. At least t of the old members are in the new
    cohort, so that their signatures under the new contract are also those of the old one's members. `earlier` are the
    contracts that the old one revised, as far as they are known: many sites that leave, and all but one of which come
    back, make two large changes, by which the run has one site less.
    """
    new.require()
    parent = Parent(old.digest, base.round, base.state)
    if (new.parent, new.revision, base.contract) != (parent, old.revision + 1, old.digest):
        raise FederationError(
            f"a revision names its parent contract, round and state, {old.digest[:16]}, {base.round} and "
            f"{base.state[:16]}: the parent of contract {new.digest[:16]} is another"
        )
    kept = {name: value for name, value in old.values().items() if name not in _OF_A_REVISION}
    due = kept | {"spec": new.spec.changed(examples=old.spec.examples, sites=old.spec.sites)}
    if {name: new.values()[name] for name in kept} | {"spec": old.spec} != due:
        raise FederationError("a revision changes the cohort alone: for other settings start another run")
    staying = _members(old.cohort) & _members(new.cohort)
    if len(staying) < old.threshold:
        raise FederationError(
            f"a revision needs {old.threshold} of the {old.n} members before it, with their certificates, got "
            f"{len(staying)}: wait for more of them, or start another run"
        )
    _require_lifted(new, old, base.round + 1)
    due_changes = old.changes + max(small_changes(of, new.cohort) for of in (old, *earlier))
    if new.changes < due_changes:
        raise FederationError(f"a revision counts changes by few sites: {due_changes} are due, got {new.changes}")


def _require_lifted(new: RunContract, old: RunContract, number: int) -> None:
    """Refuse a revision that hides earlier lifted locks, or lifts those of a site that stays or of another round."""
    leaving = {site for site, _ in _members(old.cohort) - _members(new.cohort)}
    added = set(new.lifted) - set(old.lifted)
    if not set(old.lifted) <= set(new.lifted) or any(at.round != number or at.site not in leaving for at in added):
        raise FederationError(
            f"a revision keeps earlier lifted locks, and lifts those of round {number} and of sites that leave, "
            f"{sorted(leaving)!r:.80}: got {[(at.site, at.round) for at in new.lifted]!r:.160}"
        )


def small_changes(old: RunContract, cohort: Iterable[CohortMember]) -> int:
    """Return how many of three changes are small, 0 to 3: the sites that leave, those that join, and other data.

    A change is small if fewer than `min_honest` of its sites may be honest: the sums before and after it differ by few
    sites' updates. A site with another certificate has left and joined.
    """
    before, after = ({_member(of): of for of in members} for members in (old.cohort, cohort))
    resized = {
        key
        for key in before.keys() & after.keys()
        if (before[key].sequences, before[key].patients) != (after[key].sequences, after[key].patients)
    }
    few = old.min_honest + old.colluders
    return sum(0 < len(changed) < few for changed in (before.keys() - after, after.keys() - before, resized))


def lowered_weights(contract: RunContract) -> Mapping[str, tuple[int, int]]:
    """Return the sites whose weight is below their training sequences: the sequences, and the weight."""
    return {
        member.site: (member.sequences[0], member.weight)
        for member in contract.cohort
        if member.weight < member.sequences[0]
    }


def _members(cohort: Iterable[CohortMember]) -> frozenset[tuple[str, str]]:
    return frozenset(map(_member, cohort))


def _member(of: CohortMember) -> tuple[str, str]:
    return of.site, of.certificate


def _cohort(
    spec: RunSpec, sites: Collection[SiteDescription], certificates: Mapping[str, Certificate]
) -> tuple[CohortMember, ...]:
    ordered = sorted(sites, key=lambda site: site.name)
    for site in ordered:
        if site.name not in certificates:
            raise FederationError(f"the certificate of {site.name} is missing: it cannot be a member of a masked run")
        if not site.sequences[0]:
            raise FederationError(f"{site.name} has no training sequences: a member of a masked run needs some")
        if site.task != ordered[0].task:
            raise FederationError(f"{site.name} has data of another task than {ordered[0].name}: {site.task}")
    weights = capped_weights([spec.weight(site.sequences[0]) for site in ordered])
    return tuple(
        CohortMember(site.name, certificate_hash(certificates[site.name]), site.sequences, site.patients, weight)
        for site, weight in zip(ordered, weights, strict=True)
    )


def _weighed(spec: RunSpec, cohort: Sequence[CohortMember]) -> RunSpec:
    return spec.changed(examples=sum(member.weight for member in cohort), sites=len(cohort))


def _require_enough(sites: int, min_honest: int, colluders: int) -> None:
    """Raise `FederationError` for too few sites; two are enough for each other, without any colluder."""
    needed = min_honest + colluders
    if sites < needed and (sites, min_honest) != (2, MIN_HONEST):
        raise FederationError(
            f"{sites} sites are too few for secure aggregation with min-honest={min_honest} and "
            f"colluders={colluders}, which needs {needed}: ask more sites to join, or set secure-aggregation=false if "
            "every site may show its updates to the coordinator"
        )
