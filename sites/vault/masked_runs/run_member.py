"""Run member: one site's part in masked runs, the state machine of its vault.

    accept, coin, start            once a run, in this order, each after all members' statements of the one before
    train, release, step           once a round, likewise; `load_stage` in place of a step that this site missed
    burn, abandon                  a round, or a run, that this site leaves
    stage, where, sealed_stage, ...  its states and statements, for its trainer and for the coordinator

It trusts no caller: what it signs follows from the contract, its policy, its own data and the members' statements,
which come with each request and are verified and stored first. `simulations.symbolic` searches the same rules for
attacks. One request is processed at a time; a repeated request gets the first reply, byte for byte.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import RLock

import numpy as np
from numpy.typing import NDArray

from fedpp.aggregation.global_state import Vector
from fedpp.aggregation.ring import EncodedUpdate
from fedpp.aggregation.run_stage import RunStage
from fedpp.config.site_policy import SitePolicy
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.keys.key_store import Site
from fedpp.keys.sealed_stage import SealedStage
from fedpp.protocol.run_contract import NO_HASH, KnownContract
from fedpp.protocol.state_certificate import LACKS_STATE

from . import own_report, run_admission, run_locks, run_revisions
from .accepted_contract import AcceptedContract
from .member_rounds import MemberRound, RoundShapes
from .run_journal import RunJournal
from .run_site import LogHead, RunSite, refused
from .run_stages import RunStages

TIDY = timedelta(hours=1)
_WITH_EARLIER = 3  # lists in a request of a revision: statements of the earlier contract, which may have more members
_STAGE_VALUE_BYTES = 33  # of a weight and its moments, in float64, with a seal of 20 bytes for each MiB
_STAGE_FACT_BYTES = 2**25  # at most: counts of a thousand classes


def _now() -> datetime:
    return datetime.now(UTC)


class RunMember:
    """A vault's state machine; thread-safe."""

    def __init__(
        self,
        site: Site,
        dataset: EncryptedDataset,
        journal: RunJournal,
        *,
        policy: Callable[[], SitePolicy],
        log_head: Callable[[], LogHead] = lambda: (0, NO_HASH),
        now: Callable[[], datetime] = _now,
    ) -> None:
        """Take part as this site, with an open journal; `policy` is read for each request."""
        self._of = RunSite(site=site, dataset=dataset, journal=journal, policy=policy, log_head=log_head, now=now)
        self._turn = RLock()
        self._stages = RunStages(self._of)
        self._tidy_at = now()

    def accept(self, contract_json: str, certificates: Sequence[str]) -> str:
        """Sign a run contract, whose cohort has these certificates, if the policy allows it; return the statement."""
        with self._turn:
            return run_admission.accept(self._of, contract_json, certificates)

    def coin(self, contract: str, statements: Sequence[str]) -> str:
        """Reveal the site's coin, once the whole cohort has accepted the contract of this digest."""
        with self._request(contract, statements) as accepted:
            return run_admission.reveal_coin(self._of, accepted, self._stages)

    def start(self, contract: str, statements: Sequence[str]) -> str:
        """Sign the first state, once all coins are known."""
        with self._request(contract, statements) as accepted:
            return run_admission.start(self._of, accepted, self._stages)

    def stage(self, contract: str) -> bytes:
        """Return the newest stage, for this site's trainer: its weights are rows of ciphertext."""
        with self._request(contract) as accepted:
            return self._stages.newest(accepted)[1].to_bytes()

    def shapes(self, contract: str, number: int) -> RoundShapes:
        """Return the shapes of the arrays that the round of this number takes."""
        with self._request(contract) as accepted:
            return MemberRound.of_number(self._of, accepted, self._stages, number).shapes

    def train(
        self,
        contract: str,
        number: int,
        statements: Sequence[str],
        update: Vector | None = None,
        logits: NDArray[np.floating] | None = None,
    ) -> tuple[EncodedUpdate, str] | None:
        """Mask the site's update of a round; return None where the trainer must make one first."""
        with self._request(contract, statements) as accepted:
            return MemberRound.of_number(self._of, accepted, self._stages, number).train(update, logits)

    def release(self, contract: str, number: int, statements: Sequence[str], sum_hash: str) -> tuple[str, bytes]:
        """Release the site's own mask for the sum of this hash, for ever; return statement and sealed mask."""
        with self._request(contract, statements) as accepted:
            return MemberRound.of_number(self._of, accepted, self._stages, number).release(sum_hash)

    def step(
        self,
        contract: str,
        number: int,
        statements: Sequence[str],
        sealed: Sequence[bytes],
        low: EncodedUpdate,
        carry: NDArray[np.uint16],
    ) -> str:
        """Open the sum that all members named, and sign the next state."""
        with self._request(contract, statements) as accepted:
            return MemberRound.of_number(self._of, accepted, self._stages, number).step(sealed, low, carry)

    def where(self, name: str) -> list[str]:
        """Return all statements of the contracts of this nonce, or of this digest, those of a site in order."""
        return [signed.to_json() for of in self._accepted(name) for signed in of.chains.after({})]

    def contracts(self, name: str) -> list[str]:
        """Return the contracts of this nonce, or of this digest, with the certificates of their cohorts."""
        return [
            KnownContract(of.contract, tuple(of.certificates[site] for site in of.contract.names)).to_json()
            for of in self._accepted(name)
        ]

    def _accepted(self, name: str) -> list[AcceptedContract]:
        with self._turn:
            rows = self._of.journal.rows
            found = [*rows("contracts", "digest", "revision", nonce=name), *rows("contracts", "digest", digest=name)]
            return [AcceptedContract.load(self._of, digest) for (digest,) in found]

    def sealed_stage(self, contract: str) -> Iterator[bytes]:
        """Yield the newest stage, sealed for the vaults of the domain."""
        with self._request(contract) as accepted:
            digest, stage = self._stages.newest(accepted)
            chosen = self._stages.chosen(accepted, stage) if stage.due in {"train", "validation"} else None
            content = SealedStage(stage, None if stage.chosen == stage.number else chosen)
        about = f"contract {accepted.digest}, round {stage.number}, state {digest}"
        return content.seal(self._of.site.domain.state_sealer(), about)

    def longest_stage(self, contract: str) -> int:
        """Return a bound of the bytes of a sealed stage of this contract, with the chosen one."""
        with self._request(contract) as accepted:
            values = accepted.contract.spec.network.parameters() * self._of.site.domain.n
        return 2 * (_STAGE_VALUE_BYTES * values + _STAGE_FACT_BYTES)

    def load_stage(self, contract: str, statements: Sequence[str], sealed: Sequence[bytes]) -> None:
        """Take a stage that enough members certified, in place of an older one."""
        with self._request(contract, statements) as accepted:
            accepted.require_active()
            content = SealedStage.unseal(self._of.site.domain.state_sealer(), sealed)
            if not self._is_certified(accepted, content.stage):
                raise refused(LACKS_STATE, f"{contract[:16]}: the sealed state is not a certified one")
            known, chosen = self._stages.known(accepted), content.chosen
            if chosen is not None and not self._is_certified(accepted, chosen):
                chosen = None  # a site that joined does not know who certified it
            own = self._stages.at(accepted, content.stage.number)
            unlike = own is not None and own[0] != content.stage.digest(self._of.digest_key)
            if known is None or content.stage.number > known or (unlike and content.stage.number == known):
                with self._stages.adding(accepted, content.stage, chosen):
                    pass

    def burn(self, contract: str, aggregate: str) -> str:
        """Sign that the site released nothing in the next round, and never will."""
        with self._request(contract) as accepted:
            return run_locks.burn(self._of, accepted, aggregate)

    def abandon(self, contract: str) -> str:
        """Sign that the site leaves a run that it has not trained in, for good."""
        with self._request(contract) as accepted:
            return run_admission.abandon(accepted)

    def report(self, contract: str) -> str:
        """Sign the site's own figures, where the contract has per-site reports."""
        with self._request(contract) as accepted:
            return own_report.report(self._of, accepted, self._stages)

    @contextmanager
    def _request(self, contract: str, statements: Sequence[str] = ()) -> Iterator[AcceptedContract]:
        """Process one request at a time: verify and store the statements that come with it, and yield its contract."""
        with self._turn:
            self._tidy()
            accepted = AcceptedContract.load(self._of, contract)
            accepted.chains.require_few(len(statements), 1 if accepted.contract.parent is None else _WITH_EARLIER)
            signed = [accepted.read(text) for text in statements]
            if accepted.contract.parent is not None:  # its certificates, and the burns by which locks move
                old, parent = accepted.contract.parent.contract, run_revisions.parent_of(self._of, accepted.contract)
                if parent is not None:
                    parent.take([each for each in signed if each.statement.contract == old])
                signed = [each for each in signed if each.statement.contract != old]
            accepted.take(signed)
            yield accepted

    def _tidy(self) -> None:
        """Forget what runs that are over no longer need, at the first request and then once an hour."""
        if self._of.now() >= self._tidy_at:
            with self._of.journal.writing():
                run_admission.forget_ended(self._of)
            self._of.journal.remove_unnamed()
            self._tidy_at = self._of.now() + TIDY

    def _is_certified(self, accepted: AcceptedContract, stage: RunStage) -> bool:
        """Tell whether enough members signed a stage; the one that a revision starts from stands in its contract."""
        parent, digest = accepted.contract.parent, stage.digest(self._of.digest_key)
        if parent is None or stage.number > parent.round:
            return accepted.certificate(stage.number).state == digest
        if stage.number == parent.round:
            return digest == parent.base
        old = run_revisions.parent_of(self._of, accepted.contract)
        return old is not None and self._is_certified(old, stage)
