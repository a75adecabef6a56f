"""Revisions at one site: a run continues from a certified state with other members, under a contract of their own.

The old run stays alive until this site holds all coins of the new one. A site is in one successor of a run at a time,
and may abandon it until it has trained there.
"""

from fedpp.aggregation.run_stage import RunStage
from fedpp.errors import FederationError, VaultError
from fedpp.protocol.new_contract import require_revision
from fedpp.protocol.run_contract import FRESH, RunContract

from . import own_update, run_refusals
from .accepted_contract import ABANDONED, RESTORED, SUCCEEDED, AcceptedContract
from .run_endorsements import LIFTED, lock_id, require_endorsed
from .run_locks import require_unlocked
from .run_site import RunSite, refused
from .run_stages import RunStages


def parent_of(of: RunSite, contract: RunContract) -> AcceptedContract | None:
    """Return the contract that a revision continues; None for a new run, and where this site joins one."""
    if contract.parent is None or of.journal.row("contracts", "digest", digest=contract.parent.contract) is None:
        return None
    return AcceptedContract.load(of, contract.parent.contract)


def _before(of: RunSite, contract: RunContract) -> list[RunContract]:
    """Return the contracts that a contract of this site revised, as far back as this site was in them."""
    parent = parent_of(of, contract)
    return [] if parent is None else [parent.contract, *_before(of, parent.contract)]


def require_successor(of: RunSite, contract: RunContract) -> None:
    """Raise an error unless a revision is the only one that this site is in, of a run that it was in, or joins.

    Where the revision says that the lock of an absent site was lifted, this site's own staff must have lifted it.
    """
    if contract.parent is None:
        return
    for digest, ended in of.journal.rows("contracts", "digest, ended", parent=contract.parent.contract):
        if ended != ABANDONED:
            raise FederationError(
                f"this vault has accepted another revision of that run, {digest[:16]}: it abandons that one first"
            )
    parent = parent_of(of, contract)
    known = parent.contract.lifted if parent else ()
    for at in contract.lifted:
        if at not in known and at.round > contract.start_round:
            require_endorsed(of, lock_id(contract.parent.contract, at.round, at.site), LIFTED)
    if parent is not None and parent.ended == RESTORED:
        raise VaultError(run_refusals.RESTORED)


def require_endorsements(of: RunSite, contract: RunContract) -> None:
    """Raise `VaultError` unless this site's staff endorses, now, what a run starts from that the site does not know.

    That is the initial model of a new run that draws none, and the state of a run that the site joins.
    """
    if contract.parent is None and contract.initial != FRESH:
        require_endorsed(of, contract.initial)
    if contract.parent is not None and parent_of(of, contract) is None:
        require_endorsed(of, contract.parent.base)


def require_continuing(of: RunSite, accepted: AcceptedContract, stages: RunStages) -> None:
    """Raise an error unless a revision continues a run of this site from its certified state, and no lock forbids it.

    A site that joins the run has no lock of its base, since it released nothing there.
    """
    contract, parent = accepted.contract, parent_of(of, accepted.contract)
    if contract.parent is None:
        return
    if parent is not None:
        certificate, earlier = parent.certificate(contract.parent.round), _before(of, parent.contract)
        require_revision(contract, parent.contract, certificate, earlier)
    stage = base_of(of, accepted, stages)
    if stage is not None:
        if stage.due == "end":
            raise VaultError(run_refusals.OVER)
        require_unlocked(of, accepted, own_update.inputs_of(of, accepted, stage))


def require_vouched(accepted: AcceptedContract) -> None:
    """Raise `VaultError` unless an honest site has verified the base of a revision, which one that joins cannot.

    So one more of the members has to have been in the run before than may collude. Without that, colluders could make
    a run of their own, and have others join it at weights of their choice.
    """
    if (named := accepted.contract.parent) is None:
        return
    vouching = [site for site, signed in accepted.chains.all_of("coin").items() if signed.statement.base == named.base]
    if len(vouching) <= accepted.contract.colluders:
        raise refused(run_refusals.UNVERIFIED, f"{accepted.digest[:16]}: its base is known to {vouching!r:.200} alone")


def base_of(of: RunSite, accepted: AcceptedContract, stages: RunStages) -> RunStage | None:
    """Return the stage that a revision starts from, if this site has it: from the old run, or loaded into the new."""
    named = accepted.contract.parent
    if named is None:
        return None
    parent = parent_of(of, accepted.contract)
    for known in (accepted, *([] if parent is None else [parent])):
        found = stages.at(known, named.round)
        if found is not None and found[0] == named.base:
            return found[1]
    return None


def leave_parent(of: RunSite, accepted: AcceptedContract) -> None:
    """Leave the old run for good, and forget its own masks, within `writing`."""
    parent = parent_of(of, accepted.contract)
    if parent is not None:
        parent.end(SUCCEEDED)
        of.journal.delete("seeds", contract=parent.digest)
