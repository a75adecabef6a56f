"""Domain CA: the signing key that certifies the members of a key domain.

The CA key is drawn beside the domain secret and is not derived from it: every member has the secret, and only the site
that founded or rotated the domain has the CA key. The domain card holds its public half.
"""

import secrets
from dataclasses import asdict
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedpp.cipher.domain_card import DomainCard
from fedpp.errors import KeyFileError
from fedpp.key_material import Redacted
from fedpp.keys.site_identity import MembershipRequest
from fedpp.protocol.membership import Certificate, is_signed, signed
from fedpp.values import canonical

SEED_BYTES = 32


class DomainCA(Redacted):
    """The CA key of one key epoch of one domain."""

    __slots__ = ("_key", "_seed")
    instead = "seal it with fedpp.keys.key_store"

    def __init__(self, seed: bytes) -> None:
        """Hold a 32-byte Ed25519 seed."""
        if len(seed) != SEED_BYTES:
            raise KeyFileError(f"a CA key has {SEED_BYTES} bytes, got {len(seed)}: restore its file")
        self._seed, self._key = seed, Ed25519PrivateKey.from_private_bytes(seed)

    @classmethod
    def generate(cls) -> Self:
        """Draw a new key from the operating system."""
        return cls(secrets.token_bytes(SEED_BYTES))

    @property
    def public_key(self) -> str:
        """Return the public half, in hex."""
        return self._key.public_key().public_bytes_raw().hex()

    def certify(self, request: MembershipRequest, card: DomainCard) -> Certificate:
        """Return the certificate of the requesting site as a member of the domain of this card."""
        member = request.member_of(card.fingerprint)
        return Certificate(member, self.sign("certificate", member.content()))

    def succession(self, old: DomainCard, new: DomainCard) -> str:
        """Return the signature, in hex, by which the old key epoch names the new one; this key is the old epoch's."""
        return self.sign("succession", _succession(old, new))

    def sign(self, purpose: str, content: bytes) -> str:
        """Return a signature, in hex."""
        return self._key.sign(signed(purpose, content)).hex()

    def seed_bytes(self) -> bytes:
        """Return the seed, for the sealed file only."""
        return self._seed

    def public_name(self) -> str:
        """Return the start of the public key."""
        return f"public_key={self.public_key[:16]}, "


def succeeds(old: DomainCard, new: DomainCard, signature: str) -> bool:
    """Tell whether the old key epoch named the new one: whoever trusts the old card may then trust the new."""
    same = (old.id, old.scheme, old.n) == (new.id, new.scheme, new.n) and new.key_epoch > old.key_epoch
    return same and is_signed(old.ca_key, signature, "succession", _succession(old, new))


def _succession(old: DomainCard, new: DomainCard) -> bytes:
    return canonical({"old": asdict(old), "new": asdict(new)})
