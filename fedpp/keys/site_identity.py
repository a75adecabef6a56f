"""A site's own identity: what it signs as itself, and receives sealed to itself alone.

One 32-byte seed; from it, by HKDF-SHA256, an Ed25519 key that signs and an X25519 key that receives. It belongs to one
site, is made there, and never leaves its secret zone. What the domain certifies is its public half, the
`MembershipRequest`.
"""

import json
import secrets
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedpp.cipher import key_file
from fedpp.cipher.verification_phrase import words
from fedpp.errors import ConfigError, FederationError, KeyFileError
from fedpp.protocol.membership import Member, is_signed, is_site_name, signed
from fedpp.values import canonical

SEED_BYTES = 32
RECIPIENT_FORMAT = "fedpp-recipient-1"
_SALT = b"fedpp site identity 1"


class SiteIdentity:
    """The seed of one site; cannot be printed, copied or pickled by accident."""

    __slots__ = ("_name", "_receiving", "_seed", "_signing")

    def __init__(self, name: str, seed: bytes) -> None:
        """Hold a 32-byte seed for the site of this public name."""
        if not is_site_name(name):
            raise ConfigError(
                "a site's name is 1 to 200 bytes of printable characters in the form NFKC, without spaces around, "
                f"got {name!a:.80}"
            )
        if len(seed) != SEED_BYTES:
            raise ConfigError(f"a site's seed has {SEED_BYTES} bytes, got {len(seed)}")
        self._name, self._seed = name, seed
        self._signing = Ed25519PrivateKey.from_private_bytes(self._derive("signing"))
        self._receiving = X25519PrivateKey.from_private_bytes(self._derive("receiving"))

    @classmethod
    def generate(cls, name: str) -> Self:
        """Draw a new seed from the operating system."""
        return cls(name, secrets.token_bytes(SEED_BYTES))

    @property
    def name(self) -> str:
        """Return the site's public name."""
        return self._name

    @property
    def signing_key(self) -> str:
        """Return the public Ed25519 key, in hex."""
        return self._signing.public_key().public_bytes_raw().hex()

    @property
    def receiving_key(self) -> str:
        """Return the public X25519 key, in hex."""
        return self._receiving.public_key().public_bytes_raw().hex()

    def recipient(self) -> "MembershipRequest":
        """Return the public half, signed by the site itself: who made it holds the keys."""
        unsigned = MembershipRequest(self._name, self.signing_key, self.receiving_key, "")
        return MembershipRequest(
            self._name, self.signing_key, self.receiving_key, self.sign("recipient", unsigned.content())
        )

    def member_of(self, domain: str) -> Member:
        """Return what the domain of this fingerprint certifies of this site."""
        return Member(domain, self._name, self.signing_key, self.receiving_key)

    def sign(self, purpose: str, content: bytes) -> str:
        """Return the signature, in hex; law: `is_signed(signing_key, sign(purpose, content), purpose, content)`."""
        return self._signing.sign(signed(purpose, content)).hex()

    def agree(self, public_key: str) -> bytes:
        """Return the secret shared with the holder of an X25519 key (RFC 7748); raise `ValueError` for a weak one."""
        return self._receiving.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(public_key)))

    def seed_bytes(self) -> bytes:
        """Return the seed itself: for the sealed file alone."""
        return self._seed

    def _derive(self, label: str) -> bytes:
        return HKDF(algorithm=SHA256(), length=32, salt=_SALT, info=label.encode()).derive(self._seed)

    def __repr__(self) -> str:
        """Name the site and nothing of its seed."""
        return f"SiteIdentity(name={self._name!r}, seed=<hidden>)"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        raise TypeError("a site's identity is not pickled or copied: seal it with fedpp.keys.key_store")


@dataclass(frozen=True)
class MembershipRequest:
    """The public half of a site's identity: to it, and only to it, a domain secret is sealed."""

    site: str
    signing_key: str  # Ed25519, hex
    receiving_key: str  # X25519, hex
    signature: str  # by the signing key, hex

    @property
    def fingerprint(self) -> str:
        """Return 64 hex digits that identify these keys and this name."""
        return sha256(self.content()).hexdigest()

    @property
    def words(self) -> str:
        """Return five words, by which two people compare the fingerprint on the telephone."""
        return words(self.fingerprint)

    def member_of(self, domain: str) -> Member:
        """Return what the domain of this fingerprint certifies of this site."""
        return Member(domain, self.site, self.signing_key, self.receiving_key)

    def content(self) -> bytes:
        """Return what is signed."""
        facts: dict[str, Any] = {**asdict(self), "format": RECIPIENT_FORMAT}
        del facts["signature"]
        return canonical(facts)

    def to_json(self) -> str:
        """Return the file's text."""
        return canonical({**asdict(self), "format": RECIPIENT_FORMAT}).decode() + "\n"

    @classmethod
    def from_json(cls, text: str, name: str) -> Self:
        """Read what `to_json` returned; raise `KeyFileError` for anything else. `name` is for the message."""
        try:
            values = json.loads(text)
            if values.pop("format") != RECIPIENT_FORMAT:
                raise KeyFileError(f"{name} is no {RECIPIENT_FORMAT} file: name what `fedpp-site recipient` made")
            recipient = cls(**values)
            Member("0" * 64, recipient.site, recipient.signing_key, recipient.receiving_key)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, FederationError):
            raise KeyFileError(f"{name} is no recipient: name what `fedpp-site recipient` made") from None
        if recipient.to_json() != text or not is_signed(
            recipient.signing_key, recipient.signature, "recipient", recipient.content()
        ):
            raise KeyFileError(f"{name} was altered: its signature does not fit; ask the site for it again")
        return recipient

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a recipient's file."""
        return cls.from_json(key_file.read_text(path, "recipient", "name the other site's site.recipient"), str(path))
