"""Start of a masked run at one site, in three phases: it accepts the contract, reveals its coin, and signs the state.

The coins of all members decide the initial weights, and each was committed to before any was known. So nobody, who can
only repeat a start, finds a contract whose fresh weights serve them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedpp.aggregation.global_state import GlobalState, initial
from fedpp.aggregation.run_stage import RunStage
from fedpp.errors import VaultError
from fedpp.learning.initial_weights import encrypted_initial_weights
from fedpp.protocol.membership import Certificate
from fedpp.protocol.run_contract import FRESH, NO_HASH, RunContract
from fedpp.protocol.run_statements import coin_hash
from fedpp.protocol.state_certificate import LACKS_STATE

from . import run_refusals
from .accepted_contract import ABANDONED, ACTIVE, RESTORED, SUCCEEDED, AcceptedContract
from .run_endorsements import endorsed_state
from .run_limits import require_limits, require_starts
from .run_revisions import (
    base_of,
    leave_parent,
    parent_of,
    require_continuing,
    require_endorsements,
    require_successor,
    require_vouched,
)
from .run_site import JournalSite, RunSite
from .run_stages import RunStages


def accept(of: RunSite, text: str, certificates: Sequence[str]) -> str:
    """Sign a contract that fits this site and its policy; return the statement, JSON.

    The contract, an ephemeral key and the statement are stored as one; a repeated request gets the same.
    """
    contract = RunContract.from_json(text)
    if of.journal.row("contracts", "digest", digest=contract.digest) is not None:
        known = AcceptedContract.load(of, contract.digest)
        known.require_active()
        if signed := known.mine("accept"):
            return signed.to_json()
    few = certificates[: contract.n + 1]  # one more than it may have is refused; thousands take minutes to parse
    members = contract.certified([Certificate.from_json(each) for each in few], of.site.domain.card().ca_key)
    require_limits(of, contract, parent_of(of, contract))
    require_successor(of, contract)
    require_endorsements(of, contract)
    stored = json.dumps([members[site].to_json() for site in contract.names])
    key = X25519PrivateKey.generate()
    accepted = AcceptedContract(of, contract, members)
    with accepted.writing():
        forget_ended(of)
        of.journal.insert(
            "contracts",
            digest=contract.digest,
            nonce=contract.nonce,
            revision=contract.revision,
            parent=contract.parent.contract if contract.parent else "",
            text=text,
            certificates=stored,
            dataset=of.dataset.manifest.fingerprint,
            accepted=int(of.now().timestamp()),
            key=of.journal.seal(key.private_bytes_raw(), f"key {contract.digest}"),
        )
        facts = {
            "key": key.public_key().public_bytes_raw().hex(),
            "coin_hash": coin_hash(contract.digest, of.name, _coin(of, contract)),
        }
        statement = accepted.sign("accept", facts)
    of.journal.remove_unnamed()
    return statement


def reveal_coin(of: RunSite, accepted: AcceptedContract, stages: RunStages) -> str:
    """Reveal the site's coin, once all members have accepted; return the statement, JSON.

    In a revision it names the base if this site was in the run before, has its certificate, and no lock that forbids
    the next round; the site then stops working on the old run.
    """
    if signed := accepted.mine("coin"):
        return signed.to_json()
    accepted.require_active()
    accepted.chains.all_of("accept")
    require_starts(of)
    require_continuing(of, accepted, stages)
    named, known = accepted.contract.parent, parent_of(of, accepted.contract)
    with accepted.writing():
        of.journal.update("contracts", {"started": int(of.now().timestamp())}, digest=accepted.digest)
        base = NO_HASH if named is None or known is None else named.base
        return accepted.sign("coin", {"coin": _coin(of, accepted.contract)}, base=base)


def start(of: RunSite, accepted: AcceptedContract, stages: RunStages) -> str:
    """Make the first state, once all coins are known, and sign its digest; return the statement, JSON."""
    first = accepted.contract.start_round
    if signed := accepted.mine("start", first):
        return signed.to_json()
    accepted.require_active()
    require_vouched(accepted)
    require_endorsements(of, accepted.contract)
    run, stage = accepted.run, _first_stage(of, accepted, stages)
    with stages.adding(accepted, stage, stages.chosen(accepted, stage)) as digest:
        leave_parent(of, accepted)
        return accepted.sign("start", {"state": digest}, run=run, number=first)


def abandon(accepted: AcceptedContract) -> str:
    """Sign that the site leaves the run for good; it can sign another successor of the same run then.

    A site that has masked an update stays, unless another member has left: then the run can never release.
    """
    if signed := accepted.mine("abandon"):
        return signed.to_json()
    accepted.require_active()
    own = {of.statement.purpose for of in accepted.chains.after({}) if of.statement.site == accepted.own.site}
    if "release" in own or ("train" in own and not accepted.chains.of("abandon")):
        raise VaultError(run_refusals.TRAINED)
    with accepted.writing():
        accepted.end(ABANDONED)
        return accepted.sign("abandon", {})


def forget_ended(of: JournalSite) -> None:
    """Forget keys, own masks, updates and states that no run needs any more, within `writing`.

    A run that has ended keeps its last states until it expires, for who asks again. One that a revision has replaced
    keeps them until the revision has a state of its own: another revision may still start from them.
    """
    known = {row[0]: _Known(*row) for row in of.journal.rows("contracts", "digest, nonce, parent, text, ended")}
    now, needed = of.now().timestamp(), set()
    for digest, contract in known.items():
        over = contract.expires <= now
        revisions = [each for each in known.values() if each.parent == digest and each.ended != ABANDONED]
        if not over and (contract.ended == ACTIVE or (contract.ended == SUCCEEDED and not revisions)):
            needed.add(_origin(known, digest))
        if over or contract.ended != ACTIVE:
            of.journal.update("contracts", {"key": None}, digest=digest)
            of.journal.delete("seeds", contract=digest)
        left = contract.ended in {ABANDONED, RESTORED} or any(_has_stepped(of, known, each) for each in revisions)
        if over or left:
            of.journal.delete("stages", contract=digest)
    for (nonce,) in of.journal.rows("updates", "DISTINCT nonce"):
        if nonce not in needed:
            of.journal.delete("updates", nonce=nonce)


@dataclass(frozen=True)
class _Known:
    """A contract in the journal."""

    digest: str
    nonce: str
    parent: str
    text: str
    ended: str

    @cached_property
    def expires(self) -> int:
        return RunContract.from_json(self.text).expires


def _origin(known: Mapping[str, _Known], digest: str) -> str:
    """Return the nonce under which the updates of a run are stored (`AcceptedContract.origin`)."""
    while known[digest].parent in known:
        digest = known[digest].parent
    return known[digest].nonce


def _has_stepped(of: JournalSite, known: Mapping[str, _Known], revision: _Known) -> bool:
    """Tell whether this site has a later state of a revision, or of its own revisions, than its first one."""
    start = RunContract.from_json(revision.text).start_round
    later = [each for each in known.values() if each.parent == revision.digest and each.ended != ABANDONED]
    numbers = [number for (number,) in of.journal.rows("stages", "round", contract=revision.digest)]
    return max(numbers, default=start) > start or any(_has_stepped(of, known, each) for each in later)


def _coin(of: RunSite, contract: RunContract) -> str:
    """Return the site's coin for a contract: unpredictable, and the same at each request."""
    return of.own_secret("coin", contract.digest.encode()).hex()


def _first_stage(of: RunSite, accepted: AcceptedContract, stages: RunStages) -> RunStage:
    if accepted.contract.parent is None:
        return RunStage(_initial_state(of, accepted))
    if (stage := base_of(of, accepted, stages)) is None:
        raise VaultError(LACKS_STATE)
    return stage


def _initial_state(of: RunSite, accepted: AcceptedContract) -> GlobalState:
    """Return the state of the endorsed model, or that which all vaults derive from the domain's key and all coins."""
    spec, domain = accepted.contract.spec, of.site.domain
    coins = accepted.chains.all_of("coin")
    drawn = [coins[site].statement.facts["coin"] for site in accepted.contract.names]
    own_salt = domain.run_salt(accepted.digest, drawn)
    if accepted.contract.initial != FRESH:
        return endorsed_state(of, accepted.contract.initial, spec.server_optimizer, own_salt)
    seed = domain.run_seed(accepted.digest, drawn)
    return initial(
        encrypted_initial_weights(spec.network, seed, domain.computing_key()),
        network=spec.network,
        domain=spec.domain,
        dtype=spec.training.dtype,
        classes=spec.network.task.classes,
        rule=spec.server_optimizer,
        salt=own_salt,
    )
