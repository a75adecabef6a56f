"""The domain's certifying key: who holds it says who is a member.

It is drawn beside the domain secret and is no part of it: members have the secret, and only who founded the domain, or
rotated it, has this key. Its public half stands in the domain's card.
"""

import secrets
from dataclasses import asdict
from typing import NoReturn, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedpp.cipher.domain_card import DomainCard
from fedpp.errors import KeyFileError
from fedpp.keys.site_identity import MembershipRequest
from fedpp.protocol.membership import Certificate, Member, is_signed, signed
from fedpp.values import canonical

SEED_BYTES = 32


class DomainCA:
    """The certifying key of one epoch of one domain; cannot be printed, copied or pickled by accident."""

    __slots__ = ("_key", "_seed")

    def __init__(self, seed: bytes) -> None:
        """Hold a 32-byte Ed25519 seed."""
        if len(seed) != SEED_BYTES:
            raise KeyFileError(f"a certifying key has {SEED_BYTES} bytes, got {len(seed)}: restore its file")
        self._seed, self._key = seed, Ed25519PrivateKey.from_private_bytes(seed)

    @classmethod
    def generate(cls) -> Self:
        """Draw a new key from the operating system."""
        return cls(secrets.token_bytes(SEED_BYTES))

    @property
    def public_key(self) -> str:
        """Return the public half, in hex."""
        return self._key.public_key().public_bytes_raw().hex()

    def certify(self, recipient: MembershipRequest, card: DomainCard) -> Certificate:
        """Return the certificate of a site as a member of the domain of this card."""
        member = Member(card.fingerprint, recipient.site, recipient.signing_key, recipient.receiving_key)
        return Certificate(member, self.sign("certificate", member.content()))

    def succession(self, old: DomainCard, new: DomainCard) -> str:
        """Return the signature, in hex, by which the old epoch names the new one; the key is the old epoch's."""
        return self.sign("succession", _succession(old, new))

    def sign(self, purpose: str, content: bytes) -> str:
        """Return a signature, in hex."""
        return self._key.sign(signed(purpose, content)).hex()

    def seed_bytes(self) -> bytes:
        """Return the seed itself: for the sealed file alone."""
        return self._seed

    def __repr__(self) -> str:
        """Name the public half and nothing of the seed."""
        return f"DomainCA(public_key={self.public_key[:16]}, seed=<hidden>)"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        raise TypeError("a certifying key is not pickled or copied: seal it with fedpp.keys.key_store")


def succeeds(old: DomainCard, new: DomainCard, signature: str) -> bool:
    """Tell whether a domain's old epoch named the new one: then whoever trusts the old card may trust the new."""
    same = (old.id, old.scheme, old.n) == (new.id, new.scheme, new.n) and new.epoch > old.epoch
    return same and is_signed(old.certifying_key, signature, "succession", _succession(old, new))


def _succession(old: DomainCard, new: DomainCard) -> bytes:
    return canonical({"old": asdict(old), "new": asdict(new)})
