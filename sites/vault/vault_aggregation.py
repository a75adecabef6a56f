"""The domain mask at the vault: updates are masked, sums are unmasked, states of the model are sealed and opened.

A mask is under a fresh nonce each time, so a vault that was restored or copied repeats nothing. A sum is unmasked where
its tag fits, for a list of enough sites that proved to be members for the run, and for one list a round and attempt:
two lists that differ by one site would show that site's update. Which were unmasked is in the audit log, and counts
after a restart; without a log it is forgotten.
No TensorFlow is loaded here.
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
from fedpp.protocol.membership import Proof, Run
from fedpp.protocol.participants import Participants
from fedpp.vault_api import vault_pb2

from .memory_budget import MemoryBudget
from .vault_calls import Call

LONGEST_ABOUT = 500


@dataclass(frozen=True)
class UnmaskedRound:
    """Of which list the sum of a round and attempt was unmasked."""

    run: str  # nonce
    number: int
    attempt: int
    list: str  # SHA-256


class UnmaskedRounds:
    """One list a round and attempt; many threads may ask at once."""

    def __init__(self, past: Iterable[UnmaskedRound] = ()) -> None:
        """Begin with what an audit log tells of."""
        self._lock = Lock()
        self._lists = {(of.run, of.number, of.attempt): of.list for of in past}

    def admit(self, of: UnmaskedRound) -> None:
        """Note a list; raise `VaultError` if the round's is another."""
        with self._lock:
            if self._lists.setdefault((of.run, of.number, of.attempt), of.list) != of.list:
                raise VaultError(
                    f"round {of.number}, attempt {of.attempt} was unmasked for another list of sites: a second one "
                    "would show what they differ by"
                )


class Masking:
    """What a vault does for the aggregation of updates that the coordinator cannot read."""

    def __init__(self, site: Site, sequences: int, room: MemoryBudget, past: Iterable[UnmaskedRound] = ()) -> None:
        """Mask as this site, for updates of at most so many training sequences; sums take their memory from `room`."""
        self._site, self._sequences, self._room = site, sequences, room
        self._key, self._envelope = site.domain.mask_key(), site.domain.envelope()
        self._rounds = UnmaskedRounds(past)

    def mask(
        self, call: Call, requests: Iterator[vault_pb2.MaskRequest], min_other_sites: int
    ) -> Iterator[vault_pb2.MaskReply]:
        """Yield the words masked, and in the end the mask's nonce and tag: without them the words are noise."""
        first = next(requests, vault_pb2.MaskRequest())
        of = self._round(first.round)
        if not 1 <= first.examples <= self._sequences:
            raise VaultError(
                f"an update counts at most the {self._sequences} training sequences of this site, got {first.examples}"
            )
        part = Contribution.fresh(self._site.identity.name, first.examples, min_other_sites + 1)
        call.tell(run=of.run, round=of.number, attempt=of.attempt, samples=part.examples)
        masker = self._key.masker(of, part)
        for words in _words(_all(first, requests), of):
            yield vault_pb2.MaskReply(words=masker.mask(words).tobytes())
        tag = masker.tag()
        call.answer(of.length * of.ring.bits // 8, mask=part.nonce)
        yield vault_pb2.MaskReply(nonce=part.nonce, tag=f"{tag:x}", least=part.least)

    def unmask(
        self, call: Call, requests: Iterator[vault_pb2.UnmaskRequest], min_other_sites: int
    ) -> Iterator[vault_pb2.Block]:
        """Yield the words of a sum without its masks; raise `MaskError` or `VaultError` before any of them."""
        first = next(requests, vault_pb2.UnmaskRequest())
        of, total = self._round(first.round), Aggregate.from_json(first.sum)
        digest = sha256(first.sum.encode()).hexdigest()
        call.tell(run=of.run, round=of.number, attempt=of.attempt, list=digest, samples=total.examples)
        self._require_members(first, of, total, min_other_sites)
        with self._room.taking(of.length * of.ring.bits // 8):
            words = np.empty(of.length, f"<u{of.ring.bits // 8}")
            filled = 0
            for chunk in _words(_all(first, requests), of):
                words[filled : filled + chunk.size] = chunk
                filled += chunk.size
            self._key.unmask(of, total.parts, words, total.tag)
            # After the tag: a sum that does not fit must not keep the right one out.
            self._rounds.admit(UnmaskedRound(of.run, of.number, of.attempt, digest))
            call.answer(words.nbytes)
            for start in range(0, words.size, CHUNK):
                yield vault_pb2.Block(data=words[start : start + CHUNK].tobytes())

    def seal(self, call: Call, requests: Iterator[vault_pb2.SealRequest]) -> Iterator[vault_pb2.Block]:
        """Yield bytes sealed; the last record, without which nobody opens it, once the call is recorded."""
        first = next(requests, vault_pb2.SealRequest())
        _require_about(first.about)
        call.tell(about=first.about)
        size, held = 0, b""
        for block in self._envelope.close(first.about, (request.data for request in _all(first, requests))):
            if held:
                yield vault_pb2.Block(data=held)
            size, held = size + len(block), block
        call.answer(size)
        yield vault_pb2.Block(data=held)

    def open(self, call: Call, requests: Iterator[vault_pb2.Block]) -> Iterator[vault_pb2.OpenReply]:
        """Yield what sealed bytes are about, and their content; the first record shows that both are the domain's."""
        about, content = self._envelope.open(request.data for request in requests)
        _require_about(about)
        first = next(content)
        call.answer(len(about), about=about)
        yield vault_pb2.OpenReply(about=about)
        for data in chain([first], content):
            yield vault_pb2.OpenReply(data=data)

    def _round(self, text: str) -> Round:
        of, most = Round.from_json(text), MAX_PARAMETERS * self._site.domain.n
        if of.length > most:
            raise VaultError(f"an update of {of.length} words is too large: at most {most}")
        return of

    def _require_members(
        self, first: vault_pb2.UnmaskRequest, of: Round, total: Aggregate, min_other_sites: int
    ) -> None:
        """Refuse a sum of too few sites, or of one that did not prove to be a member for this run."""
        card = self._site.domain.card()
        run = Run(card.certifying_key, card.fingerprint, of.run, first.run, first.bundle)
        participants = Participants(of.run, tuple(Proof.from_json(text) for text in first.proofs))
        participants.others(self._site.identity.name, run, datetime.now(UTC))
        known = {proof.certificate.member.site for proof in participants.proofs}
        if strangers := sorted({part.site for part in total.parts} - known):
            raise VaultError(f"the sum names {strangers[0]}, which did not prove to be a member for this run")
        least = min_other_sites + 1
        if len(total.parts) < least:
            raise VaultError(
                f"the sum is of {len(total.parts)} sites, and the policy wants {least}: min-other-sites and one more"
            )


def past_unmasked(record: Mapping[str, Any]) -> Iterator[UnmaskedRound]:
    """Yield the round that an audit log's record tells was unmasked, if it was."""
    if record["method"] == "Unmask" and "bytes" in record:
        yield UnmaskedRound(record["run"], record["round"], record["attempt"], record["list"])


def _require_about(text: str) -> None:
    """Refuse what would be more than a line of a log."""
    if not text or len(text) > LONGEST_ABOUT or not text.isprintable():
        raise VaultError(f"what is sealed is about something, in 1 to {LONGEST_ABOUT} printable characters")


def _all(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _words(requests: Iterator[Any], of: Round) -> Iterator[EncodedUpdate]:
    """Yield words in chunks of one size, but for the last; raise `MaskError` if they are not the round's number."""
    dtype, size = np.dtype(f"<u{of.ring.bits // 8}"), CHUNK * of.ring.bits // 8
    held, left = bytearray(), of.length * of.ring.bits // 8
    for request in requests:
        held += request.words
        left -= len(request.words)
        if left < 0:
            break
        while len(held) >= size:
            yield np.frombuffer(bytes(held[:size]), dtype)
            del held[:size]
    if left:
        raise MaskError(f"an update of this round has {of.length} words, got {'more' if left < 0 else 'fewer'}")
    if held:
        yield np.frombuffer(bytes(held), dtype)
