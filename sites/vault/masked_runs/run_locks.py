"""Locks of a vault: records of its releases, each of which forbids another release for the same weights.

A released update is in one sum, for ever: a second sum with it, or of the same model over other sites, would show by
their difference what a single site added. A lock moves to a smaller cohort of a revision only after every site that is
left out has burned the round: the first sum can then never be opened.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from fedpp.errors import VaultError
from fedpp.keys.key_store import Site
from fedpp.protocol.run_contract import NO_HASH, RunContract
from fedpp.protocol.run_statements import context

from . import run_refusals
from .accepted_contract import ENDED, AcceptedContract
from .own_update import UpdateInputs
from .run_journal import RunJournal
from .run_site import JournalSite, RunSite, refused


@dataclass(frozen=True)
class RoundContext:
    """One round of one run from one base, to which masks, seals and locks are bound."""

    run: str
    number: int
    base: str

    @property
    def content(self) -> bytes:
        """Return the canonical bytes."""
        return context(self.run, self.number, self.base)

    @property
    def id(self) -> str:
        """Return the name in the journal."""
        return sha256(self.content).hexdigest()


def require_free(of: RunSite, accepted: AcceptedContract, inputs: UpdateInputs, at: RoundContext) -> None:
    """Raise `VaultError` if a burn, or a release of this vault, forbids an update of these inputs in this context."""
    if of.journal.row("burns", "context", context=at.id) is not None:
        raise VaultError(run_refusals.BURNED)
    require_unlocked(of, accepted, inputs, at.id)


def require_unlocked(of: RunSite, accepted: AcceptedContract, inputs: UpdateInputs, context_id: str = "") -> None:
    """Raise `VaultError` if a release of this vault, in another context than this one, forbids these inputs."""
    for purpose in inputs.locks:
        held = of.journal.row("locks", "context, contract, round, plan", weights=inputs.weights, purpose=purpose)
        if held is not None and held[0] != context_id and not _is_moved(of, accepted, inputs, *held):
            raise refused(
                run_refusals.LOCKED,
                f"{accepted.digest[:16]}: weights {inputs.weights[:16]} were released for {purpose} under contract "
                f"{held[1][:16]}",
            )


def lock(of: RunSite, accepted: AcceptedContract, inputs: UpdateInputs, at: RoundContext) -> None:
    """Lock the weights to this context, within `writing`."""
    for purpose in inputs.locks:
        of.journal.delete("locks", weights=inputs.weights, purpose=purpose)
        of.journal.insert(
            "locks",
            weights=inputs.weights,
            purpose=purpose,
            context=at.id,
            contract=accepted.digest,
            round=at.number,
            plan=inputs.plan,
        )


def burn(of: JournalSite, accepted: AcceptedContract, aggregate: str) -> str:
    """Sign that the site released nothing in the round that is next, and never will; forget its own mask.

    It needs the journal alone, and no state, dataset or vault: a hospital can sign it whose machine is lost.
    """
    rows = of.journal.rows("stages", "round, digest", "round DESC", contract=accepted.digest)
    if not rows or accepted.ended == ENDED:
        raise VaultError(run_refusals.OTHER_ROUND)
    at = RoundContext(accepted.run, rows[0][0] + 1, rows[0][1])
    if signed := accepted.mine("burn", at.number):
        return signed.to_json()
    accepted.require_active()
    accepted.require_unsucceeded()
    if of.journal.row("releases", "context", context=at.id) is not None:
        raise VaultError(run_refusals.RELEASED)
    with accepted.writing():
        of.journal.insert("burns", context=at.id)
        of.journal.delete("seeds", context=at.id)
        return accepted.sign("burn", {"aggregate": aggregate}, run=at.run, number=at.number, base=at.base)


def without_vault(site: Site, journal: RunJournal, contract: str) -> tuple[JournalSite, AcceptedContract]:
    """Return a site whose vault does not run, and a contract in its journal, to leave a run or a round.

    No audit log is written: a statement names the newest head that the site's last statement named.
    """

    def log_head() -> tuple[int, str]:
        last = accepted.chains.newest(of.name)
        return (last.statement.log_records, last.statement.log_head) if last else (0, NO_HASH)

    of = JournalSite(site=site, journal=journal, log_head=log_head, now=lambda: datetime.now(UTC))
    accepted = AcceptedContract.load(of, contract)
    return of, accepted


def _is_moved(
    of: RunSite,
    accepted: AcceptedContract,
    inputs: UpdateInputs,
    context_id: str,
    contract: str,
    number: int,
    plan: str,
) -> bool:
    """Tell whether a lock moves to this contract: its cohort is a part of the lock's, and the others have burned.

    A fork counts as a burn: the site is not honest, or its vault was copied. A member that burns what it has released
    opens both sums. They tell no more than one of them, unless a site whose weight was capped weighs more in the
    second: then their difference is its update. So the own weight must be the same.

    Where the staff of all members lifted the lock of a site, which the contract states, that site needs no burn.
    """
    if plan != inputs.plan:
        return False
    locked = AcceptedContract.load(of, contract)
    if locked.own.weight != accepted.own.weight:
        return False
    before, after = _members(locked.contract), _members(accepted.contract)
    burned = {
        site
        for site, signed in locked.chains.of("burn", number).items()
        if RoundContext(signed.statement.run, signed.statement.round, signed.statement.base).id == context_id
    }
    lifted = {at.site for at in set(accepted.contract.lifted) - set(locked.contract.lifted) if at.round == number}
    return after < before and {site for site, _ in before - after} <= burned | locked.forked | lifted


def _members(contract: RunContract) -> set[tuple[str, str]]:
    """Return the members by name and certificate: a site that was installed again is another one."""
    return {(member.site, member.certificate) for member in contract.cohort}
