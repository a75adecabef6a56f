"""A round at one site: it masks its update, releases its own mask for one sum, and steps to the next state.

Each phase checks, stores and only then replies; a repeated request gets the first reply, byte for byte. Which round is
next follows from the state that this vault has, and from the statements that certify it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from fedpp.aggregation import linear_check, pair_masks, round_vector
from fedpp.aggregation.global_state import Vector
from fedpp.aggregation.ring import EncodedUpdate, Ring
from fedpp.aggregation.round_context import ring_of
from fedpp.aggregation.run_stage import RunStage, advanced
from fedpp.errors import FedppError, MaskError, VaultError
from fedpp.key_material import KEY_BYTES, seal, unseal
from fedpp.protocol.label_counts import with_labels
from fedpp.protocol.run_statements import Purpose, SignedStatement, aggregate_id
from fedpp.protocol.state_certificate import LACKS_STATE
from fedpp.values import canonical

from . import own_update, run_refusals
from .accepted_contract import ENDED, AcceptedContract
from .own_report import OwnReport
from .own_update import OwnUpdate, UpdateInputs
from .run_limits import require_allowed
from .run_locks import RoundContext, lock, require_free
from .run_site import RunSite, refused
from .run_stages import RunStages

_RANDOM_BYTES = 32


@dataclass(frozen=True)
class RoundShapes:
    """What arrays a round takes, so that others are refused before they are read."""

    update: tuple[int, ...]  # float64
    logits: tuple[int, ...]  # of the split that is due
    sum: tuple[int, ...]
    dtype: np.dtype[np.unsignedinteger[Any]]  # of the sum's low words


@dataclass(frozen=True)
class MemberRound:
    """The round that follows the newest state of one contract at one site."""

    of: RunSite
    accepted: AcceptedContract
    stages: RunStages
    stage: RunStage  # whose state is the base
    at: RoundContext

    is_past: bool  # the site has the state after it: what it has signed is repeated, and nothing new is signed

    @classmethod
    def of_number(cls, of: RunSite, accepted: AcceptedContract, stages: RunStages, number: int) -> "MemberRound":
        """Return the round of this number; raise `VaultError` unless it is the next one at this vault, or the last."""
        base, stage = stages.newest(accepted)
        if number > stage.number + 1:
            raise VaultError(LACKS_STATE)
        is_past = number == stage.number
        if is_past and (before := stages.at(accepted, number - 1)):
            base, stage = before
        if number != stage.number + 1 or stage.due == "end":
            raise VaultError(run_refusals.OTHER_ROUND)
        return cls(of, accepted, stages, stage, RoundContext(accepted.run, number, base), is_past)

    @cached_property
    def ring(self) -> Ring:
        """Return the ring of the contract's updates."""
        return ring_of(self.accepted.contract.spec)

    @cached_property
    def length(self) -> int:
        """Return the number of values of the round's vector."""
        contract, stage = self.accepted.contract, self.stage
        labels = own_update.opens_labels(contract, stage)
        return round_vector.length(stage.due, contract.spec.network, stage.state.n, labels=labels)

    @cached_property
    def inputs(self) -> UpdateInputs:
        """Return everything that determines the site's update of this round."""
        return own_update.inputs_of(self.of, self.accepted, self.stage)

    @property
    def shapes(self) -> RoundShapes:
        """Return what arrays the round takes."""
        update = self.accepted.contract.spec.network.parameters() * self.stage.state.n
        return RoundShapes((update,), self.of.counts.shape(self.stage.split), (self.length,), self.ring.dtype)

    def train(self, update: Vector | None, logits: NDArray[np.floating] | None) -> tuple[EncodedUpdate, str] | None:
        """Return the masked update and the statement, JSON; None if there is no update yet (`own_update.make`)."""
        if signed := self._mine("train"):
            return self._masked(signed), signed.to_json()
        self._require_open()
        self._require_allowed()
        self._require_certified()
        require_free(self.of, self.accepted, self.inputs, self.at)
        own = own_update.stored(self.of, self.inputs)
        new = own is None
        if own is None:
            own = own_update.make(self.of, self.accepted, self.stage, self.inputs, update, logits)
        if own is None:
            return None
        x = self._encoded(own)
        seed = self._new_seed(x)
        y = self._mask(x, seed)
        facts = {"masked": linear_check.vector_hash(y), "seed": sha256(seed).hexdigest()}
        OwnReport(self.of.journal.folder, self.accepted.contract).add(self.stage, own.counts)
        with self.accepted.writing():
            if new:
                own_update.keep(self.of, self.accepted, self.stage, self.inputs, own)
            self._forget_earlier()
            sealed = self.of.journal.seal(seed, f"seed {self.at.id}")
            number, digest = self.at.number, self.accepted.digest
            self.of.journal.insert("seeds", context=self.at.id, contract=digest, round=number, seed=sealed)
            statement = self._sign("train", facts)
        return y, statement

    def release(self, sum_hash: str) -> tuple[str, bytes]:
        """Name the one sum for which the site's own mask is released, and release it; return statement and seal."""
        trained = self.accepted.chains.all_of("train", self.at.number)
        aggregate = aggregate_id(self.at.content, self.ring.bits, self.length, trained, sum_hash)
        if signed := self._mine("release"):
            return self._released(signed, aggregate)
        self._require_open()
        self._require_allowed()
        if (mine := self._mine("train")) is None:
            raise VaultError(run_refusals.OTHER_ROUND)
        self._require_certified()
        require_free(self.of, self.accepted, self.inputs, self.at)
        y, seed = self._masked(mine), self._seed()
        sealed = _sealed(self.of, seed, self._bound(aggregate, self.of.name))
        facts = {
            "aggregate": aggregate,
            "tag": f"{linear_check.tag(aggregate, y):x}",
            "sealed": sha256(sealed).hexdigest(),
        }
        with self.accepted.writing():
            lock(self.of, self.accepted, self.inputs, self.at)
            self.of.journal.insert("releases", context=self.at.id, aggregate=aggregate, sealed=sealed)
            statement = self._sign("release", facts)
        return statement, sealed

    def step(self, sealed: Sequence[bytes], low: EncodedUpdate, carry: NDArray[np.uint16]) -> str:
        """Open the sum that all members released their masks for, step, and sign the next state."""
        if signed := self._mine("step"):
            return signed.to_json()
        self._require_open()
        trained = self.accepted.chains.all_of("train", self.at.number)
        released = self.accepted.chains.all_of("release", self.at.number)
        aggregate = self._aggregate(trained, released, low, carry)
        opened = self._opened(aggregate, trained, released, sealed, low)
        after = self._after(aggregate, opened)
        labels = after.labels if self.stage.labels is None else None  # those that this round opened
        counts = canonical(with_labels(after.counts, labels)).decode() if after.counts else ""
        with self.stages.adding(self.accepted, after) as digest:
            statement = self._sign("step", {"state": digest, "counts": counts})
            if after.due == "end":
                self.accepted.end(ENDED)
        return statement

    def _mine(self, purpose: Purpose) -> SignedStatement | None:
        signed = self.accepted.mine(purpose, self.at.number)
        if signed is not None and signed.statement.base != self.at.base:
            raise VaultError(run_refusals.OTHER_REQUEST)
        return signed

    def _sign(self, purpose: Purpose, facts: dict[str, str]) -> str:
        at = self.at
        return self.accepted.sign(purpose, facts, run=at.run, number=at.number, base=at.base)

    def _require_open(self) -> None:
        """Raise `VaultError` if the site signs nothing new in this round."""
        self.accepted.require_active()
        self.accepted.require_unsucceeded()
        if self.is_past:
            raise VaultError(run_refusals.OTHER_ROUND)

    def _require_allowed(self) -> None:
        """Raise an error unless the policy allows the contract now, and the vault has the data that it accepted with.

        Sums before and after a change of a few patients would tell what these added.
        """
        require_allowed(self.of, self.accepted.contract)
        row = self.of.journal.row("contracts", "dataset", digest=self.accepted.digest)
        if row != (self.of.dataset.manifest.fingerprint,):
            raise VaultError(run_refusals.OTHER_DATA)

    def _require_certified(self) -> None:
        """Raise an error unless enough members signed the base, exactly as this vault has it."""
        certificate = self.accepted.certificate(self.at.number - 1)
        if (certificate.run, certificate.state) != (self.at.run, self.at.base):
            raise refused(
                run_refusals.UNLIKE,
                f"{self.accepted.digest[:16]}, round {self.at.number - 1}: certified is {certificate.state[:16]}, "
                f"computed {self.at.base[:16]}",
            )

    def _encoded(self, own: OwnUpdate) -> EncodedUpdate:
        try:
            return own.encoded(self.accepted.contract, self.stage, self.accepted.own.weight)
        except FedppError as error:
            raise refused(run_refusals.NO_UPDATE, f"{self.accepted.digest[:16]}: {error}") from None

    def _new_seed(self, x: EncodedUpdate) -> bytes:
        """Return a new b_i: unpredictable even where the system's randomness, or the site's seed, is not."""
        info = b"|".join((self.at.content, linear_check.vector_hash(x).encode(), os.urandom(_RANDOM_BYTES)))
        return self.of.own_secret("own mask", info)

    def _seed(self) -> bytes:
        row = self.of.journal.row("seeds", "seed", context=self.at.id)
        if row is None:
            raise VaultError(run_refusals.BURNED)
        return self.of.journal.unseal(row[0], f"seed {self.at.id}")

    def _masked(self, signed: SignedStatement) -> EncodedUpdate:
        """Return y_i again, the bytes whose hash was signed."""
        own = own_update.stored(self.of, self.inputs)
        if own is None:
            raise VaultError(run_refusals.OTHER_ROUND)
        y = self._mask(self._encoded(own), self._seed())
        if linear_check.vector_hash(y) != signed.statement.facts["masked"]:
            raise refused(run_refusals.NO_UPDATE, f"{self.accepted.digest[:16]}: the masked update is another one now")
        return y

    def _mask(self, x: EncodedUpdate, seed: bytes) -> EncodedUpdate:
        row = self.of.journal.row("contracts", "key", digest=self.accepted.digest)
        if row is None or row[0] is None:
            raise VaultError(run_refusals.OVER)
        key = X25519PrivateKey.from_private_bytes(self.of.journal.unseal(row[0], f"key {self.accepted.digest}"))
        keys = {site: signed.statement.facts["key"] for site, signed in self.accepted.chains.all_of("accept").items()}
        name, content = self.of.name, self.at.content
        pairs = [
            (pair_masks.pair_key(key, bytes.fromhex(public), content, name, site), 1 if name < site else -1)
            for site, public in keys.items()
            if site != name
        ]
        y, start = np.empty_like(x), 0
        for part in pair_masks.masked(x, self.ring, seed, pairs):
            y[start : start + part.size] = part
            start += part.size
        return y

    def _released(self, signed: SignedStatement, aggregate: str) -> tuple[str, bytes]:
        row = self.of.journal.row("releases", "aggregate, sealed", context=self.at.id)
        if row is None or row[0] != aggregate or signed.statement.facts["aggregate"] != aggregate:
            raise refused(run_refusals.OTHER_REQUEST, f"{self.accepted.digest[:16]}: T is {aggregate[:16]}")
        return signed.to_json(), row[1]

    def _bound(self, aggregate: str, site: str) -> bytes:
        return canonical({"aggregate": aggregate, "context": self.at.content.decode(), "site": site})

    def _aggregate(
        self,
        trained: dict[str, SignedStatement],
        released: dict[str, SignedStatement],
        low: EncodedUpdate,
        carry: NDArray[np.uint16],
    ) -> str:
        """Return T; raise `VaultError` unless all members named it, for this sum, whose tag is the sum of theirs."""
        try:
            hashed = linear_check.sum_hash(low, carry)
            aggregate = aggregate_id(self.at.content, self.ring.bits, self.length, trained, hashed)
            facts = [signed.statement.facts for signed in released.values()]
            if any(fact["aggregate"] != aggregate for fact in facts):
                raise MaskError("a member released for another sum")
            tags = [int(fact["tag"], 16) for fact in facts]
            linear_check.require_sum(aggregate, low, carry, tags, self.ring, self.length)
        except FedppError as error:
            raise refused(run_refusals.FALSE_SUM, f"{self.accepted.digest[:16]}: {error}") from None
        return aggregate

    def _opened(
        self,
        aggregate: str,
        trained: dict[str, SignedStatement],
        released: dict[str, SignedStatement],
        sealed: Sequence[bytes],
        low: EncodedUpdate,
    ) -> EncodedUpdate:
        """Return the sum without the masks of all members."""
        names = self.accepted.contract.names
        try:
            if len(sealed) != len(names):
                raise MaskError(f"there are {len(sealed)} sealed masks of {len(names)} members")
            seeds = []
            for site, content in zip(names, sealed, strict=True):
                if sha256(content).hexdigest() != released[site].statement.facts["sealed"]:
                    raise MaskError(f"the sealed mask of {site} is not the one that it signed")
                seed = _unsealed(self.of, content, self._bound(aggregate, site))
                if sha256(seed).hexdigest() != trained[site].statement.facts["seed"]:
                    raise MaskError(f"{site} sealed another mask than the one that it signed")
                seeds.append(seed)
            return pair_masks.unmasked(low, self.ring, seeds)
        except FedppError as error:
            raise refused(run_refusals.FALSE_SUM, f"{self.accepted.digest[:16]}: {error}") from None

    def _after(self, aggregate: str, opened: EncodedUpdate) -> RunStage:
        """Return the next stage."""
        contract, stage = self.accepted.contract, self.stage
        network, weights = contract.spec.network, tuple(member.weight for member in contract.cohort)
        chosen = self.stages.chosen(self.accepted, stage) if stage.due == "validation" else None
        best, due_labels = chosen.state if chosen else None, own_update.opens_labels(contract, stage)
        try:
            mean, counts, labels = round_vector.opened(
                stage.due, network, stage.state.n, opened, weights, self.ring, labels=due_labels
            )
            return advanced(contract, stage, mean, counts, aggregate, self.of.algebra, best, labels)
        except FedppError as error:
            raise refused(run_refusals.NOT_OPENED, f"{self.accepted.digest[:16]}: {error}") from None

    def _forget_earlier(self) -> None:
        """Forget the own masks of closed rounds, within `writing`."""
        for (number,) in self.of.journal.rows("seeds", "round", contract=self.accepted.digest):
            if number < self.at.number:
                self.of.journal.delete("seeds", contract=self.accepted.digest, round=number)


def _sealed(of: RunSite, seed: bytes, bound: bytes) -> bytes:
    """Return a seed sealed for all vaults of the key epoch, bound to its round, sum and site."""
    return seal(of.site.domain.derive("run masks"), seed, bound)


def _unsealed(of: RunSite, sealed: bytes, bound: bytes) -> bytes:
    try:
        seed = unseal(of.site.domain.derive("run masks"), sealed, bound)
    except ValueError:
        raise MaskError("a sealed mask is not of this round, sum, site or domain") from None
    if len(seed) != KEY_BYTES:
        raise MaskError(f"an own mask has a seed of {KEY_BYTES} bytes, got {len(seed)}")
    return seed
