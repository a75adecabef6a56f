"""Secure aggregation at the vault: it masks updates, unmasks aggregates, and seals and unseals states of the model.

Each mask has a fresh nonce, so that a restored or copied vault repeats none. An aggregate is unmasked if its tag fits,
for a list of enough sites that proved to be members for the run, and for one list a round and attempt: two lists that
differ by one site would disclose that site's update. The unmasked lists are in the audit log and count after a restart;
without a log they are lost. No TensorFlow is loaded here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from itertools import chain
from threading import Lock
from typing import Any

import numpy as np

from fedpp.aggregation.ring import CHUNK, EncodedUpdate
from fedpp.aggregation.round_context import Aggregate, Contribution, Round
from fedpp.config.model_spec import MAX_PARAMETERS
from fedpp.errors import MaskError, VaultError
from fedpp.keys.key_store import Site
from fedpp.protocol.coordinator_identity import CoordinatorNames
from fedpp.protocol.membership import Run
from fedpp.protocol.participants import Participants
from fedpp.vault_api import vault_pb2

from .memory_budget import MemoryBudget
from .vault_calls import Call

MAX_ABOUT_CHARACTERS = 500


@dataclass(frozen=True)
class UnmaskedRound:
    """The list of contributions whose aggregate was unmasked, of a round and attempt."""

    run: str  # nonce
    number: int
    attempt: int
    list: str  # SHA-256


class UnmaskedRounds:
    """The one list of each round and attempt; thread-safe."""

    def __init__(self, past: Iterable[UnmaskedRound] = ()) -> None:
        """Start with the rounds that an audit log records."""
        self._lock = Lock()
        self._lists = {(of.run, of.number, of.attempt): of.list for of in past}

    def admit(self, of: UnmaskedRound) -> None:
        """Add a list; raise `VaultError` if the round has another one."""
        with self._lock:
            if self._lists.setdefault((of.run, of.number, of.attempt), of.list) != of.list:
                raise VaultError(
                    f"round {of.number}, attempt {of.attempt} was unmasked for another list of sites: a second list "
                    "would disclose the updates by which they differ"
                )


class SecureAggregation:
    """A vault's part in the aggregation of updates that the coordinator cannot read."""

    def __init__(self, site: Site, sequences: int, memory: MemoryBudget, past: Iterable[UnmaskedRound] = ()) -> None:
        """Mask updates of at most so many training sequences as this site; aggregates take memory from `memory`."""
        self._site, self._sequences, self._memory = site, sequences, memory
        self._key, self._sealer = site.domain.mask_key(), site.domain.state_sealer()
        self._rounds = UnmaskedRounds(past)

    def mask(
        self, call: Call, requests: Iterator[vault_pb2.MaskRequest], min_other_sites: int
    ) -> Iterator[vault_pb2.MaskReply]:
        """Yield the masked update, and in the end the mask's nonce and tag, without which it is noise."""
        first = next(requests, vault_pb2.MaskRequest())
        of = self._round(first.round)
        if not 1 <= first.examples <= self._sequences:
            raise VaultError(
                f"an update counts at most the {self._sequences} training sequences of this site, got {first.examples}"
            )
        part = Contribution.fresh(self._site.identity.name, first.examples, min_other_sites + 1)
        call.add(run=of.run, round=of.number, attempt=of.attempt, samples=part.examples)
        masker = self._key.masker(of, part)
        for values in _values(chain([first], requests), of):
            yield vault_pb2.MaskReply(values=masker.mask(values).tobytes())
        tag = masker.tag()
        call.reply(of.length * of.ring.bits // 8, mask=part.nonce)
        yield vault_pb2.MaskReply(nonce=part.nonce, tag=f"{tag:x}", min_cohort=part.min_cohort)

    def unmask(
        self, call: Call, requests: Iterator[vault_pb2.UnmaskRequest], min_other_sites: int
    ) -> Iterator[vault_pb2.Block]:
        """Yield an aggregate without its masks; raise `MaskError` or `VaultError` before any value of it."""
        first = next(requests, vault_pb2.UnmaskRequest())
        of, aggregate = self._round(first.round), Aggregate.from_json(first.aggregate)
        digest = sha256(first.aggregate.encode()).hexdigest()
        call.add(run=of.run, round=of.number, attempt=of.attempt, list=digest, samples=aggregate.examples)
        self._require_members(first, of, aggregate, min_other_sites)
        with self._memory.taking(of.length * of.ring.bits // 8):
            values = np.empty(of.length, f"<u{of.ring.bits // 8}")
            filled = 0
            for chunk in _values(chain([first], requests), of):
                values[filled : filled + chunk.size] = chunk
                filled += chunk.size
            self._key.unmask(of, aggregate.parts, values, aggregate.tag)
            # After the tag: an aggregate that does not fit must not exclude the right one.
            self._rounds.admit(UnmaskedRound(of.run, of.number, of.attempt, digest))
            call.reply(values.nbytes)
            for start in range(0, values.size, CHUNK):
                yield vault_pb2.Block(data=values[start : start + CHUNK].tobytes())

    def seal(self, call: Call, requests: Iterator[vault_pb2.SealRequest]) -> Iterator[vault_pb2.Block]:
        """Yield sealed bytes; the last record, without which they cannot be unsealed, after the call is recorded."""
        first = next(requests, vault_pb2.SealRequest())
        _require_about(first.about)
        call.add(about=first.about)
        size, held = 0, b""
        for block in self._sealer.seal(first.about, (request.data for request in chain([first], requests))):
            if held:
                yield vault_pb2.Block(data=held)
            size, held = size + len(block), block
        call.reply(size)
        yield vault_pb2.Block(data=held)

    def unseal(self, call: Call, requests: Iterator[vault_pb2.Block]) -> Iterator[vault_pb2.UnsealReply]:
        """Yield what sealed bytes are about, and their content; the first record proves that both are the domain's."""
        about, content = self._sealer.unseal(request.data for request in requests)
        _require_about(about)
        first = next(content)
        call.reply(len(about), about=about)
        yield vault_pb2.UnsealReply(about=about)
        for data in chain([first], content):
            yield vault_pb2.UnsealReply(data=data)

    def _round(self, text: str) -> Round:
        of, most = Round.from_json(text), MAX_PARAMETERS * self._site.domain.n
        if of.length > most:
            raise VaultError(f"an update of {of.length} values is too large: at most {most}")
        return of

    def _require_members(
        self, first: vault_pb2.UnmaskRequest, of: Round, aggregate: Aggregate, min_other_sites: int
    ) -> None:
        """Refuse an aggregate of too few sites, or of a site that did not prove to be a member for this run."""
        card = self._site.domain.card()
        participants = Participants.of(of.run, first.proofs)
        own = participants.coordinator_of(self._site.identity.name)
        run = Run(card.ca_key, card.fingerprint, of.run, first.run, first.bundle, CoordinatorNames.only(own))
        participants.others(self._site.identity.name, run, datetime.now(UTC))
        known = {proof.certificate.member.site for proof in participants.proofs}
        if strangers := sorted({part.site for part in aggregate.parts} - known):
            raise VaultError(f"the aggregate names {strangers[0]}, which did not prove to be a member for this run")
        min_sites = min_other_sites + 1
        if len(aggregate.parts) < min_sites:
            raise VaultError(
                f"the aggregate is of {len(aggregate.parts)} sites, and the policy requires {min_sites}: "
                "min-other-sites and one more"
            )


def past_unmasked(record: Mapping[str, Any]) -> Iterator[UnmaskedRound]:
    """Yield the round of an audit log's record of `Unmask`, if it was unmasked."""
    if record["method"] == "Unmask" and "bytes" in record:
        yield UnmaskedRound(record["run"], record["round"], record["attempt"], record["list"])


def _require_about(text: str) -> None:
    """Raise `VaultError` for a text that is not one line of a log."""
    if not text or len(text) > MAX_ABOUT_CHARACTERS or not text.isprintable():
        raise VaultError(f"sealed bytes are about something, in 1 to {MAX_ABOUT_CHARACTERS} printable characters")


def _values(requests: Iterator[Any], of: Round) -> Iterator[EncodedUpdate]:
    """Yield values in chunks of one size, except the last; raise `MaskError` if the round has more or fewer."""
    dtype, size = np.dtype(f"<u{of.ring.bits // 8}"), CHUNK * of.ring.bits // 8
    held, left = bytearray(), of.length * of.ring.bits // 8
    for request in requests:
        held += request.values
        left -= len(request.values)
        if left < 0:
            break
        while len(held) >= size:
            yield np.frombuffer(bytes(held[:size]), dtype)
            del held[:size]
    if left:
        raise MaskError(f"an update of this round has {of.length} values, got {'more' if left < 0 else 'fewer'}")
    if held:
        yield np.frombuffer(bytes(held), dtype)
