"""Site identity: the keys with which a site signs, and receives what is sealed to it alone.

One 32-byte seed; HKDF-SHA256 derives an Ed25519 key that signs and an X25519 key that receives (HPKE, RFC 9180). It
is made at the site and never leaves its secret zone. Its public half, which the domain CA certifies, is the
`MembershipRequest`.
"""

import json
import secrets
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from fedpp.cipher import key_file
from fedpp.cipher.verification_phrase import phrase
from fedpp.errors import ConfigError, FederationError, KeyFileError
from fedpp.key_material import Redacted, subkey
from fedpp.protocol.membership import Member, is_signed, is_site_name, signed
from fedpp.values import canonical

SEED_BYTES = 32
REQUEST_FORMAT = "fedpp-request-1"
HPKE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_SALT = b"fedpp site identity 1"


class SiteIdentity(Redacted):
    """The seed of one site, and the two private keys derived from it."""

    __slots__ = ("_name", "_receiving", "_seed", "_signing")
    instead = "seal it with fedpp.keys.key_store"

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
        self._signing = Ed25519PrivateKey.from_private_bytes(subkey(seed, salt=_SALT, info=b"signing"))
        self._receiving = X25519PrivateKey.from_private_bytes(subkey(seed, salt=_SALT, info=b"receiving"))

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

    def request(self) -> "MembershipRequest":
        """Return the public half, signed by the site itself as proof that it holds the keys."""
        facts = (self._name, self.signing_key, self.receiving_key)
        return MembershipRequest(*facts, self.sign("request", MembershipRequest(*facts, "").content()))

    def member_of(self, domain: str) -> Member:
        """Return what the domain of this fingerprint certifies of this site."""
        return Member(domain, self._name, self.signing_key, self.receiving_key)

    def sign(self, purpose: str, content: bytes) -> str:
        """Return the signature, in hex; law: `is_signed(signing_key, sign(purpose, content), purpose, content)`."""
        return self._signing.sign(signed(purpose, content)).hex()

    def unseal(self, sealed: bytes, info: bytes) -> bytes:
        """Return what was sealed to this site; raise `InvalidTag` for another site's, or with other `info`.

        Law: `identity.unseal(identity.request().seal(secret, info), info) == secret`.
        """
        return HPKE.decrypt(sealed, self._receiving, info)

    def seed_bytes(self) -> bytes:
        """Return the seed, for the sealed file only."""
        return self._seed

    def public_name(self) -> str:
        """Return the site's name."""
        return f"name={self._name!r}, "


@dataclass(frozen=True)
class MembershipRequest:
    """The public half of a site's identity; a domain secret is sealed to it and to nobody else."""

    site: str
    signing_key: str  # Ed25519, hex
    receiving_key: str  # X25519, hex
    signature: str  # by the signing key, hex

    @property
    def fingerprint(self) -> str:
        """Return 64 hex digits that identify these keys and this name."""
        return sha256(self.content()).hexdigest()

    @property
    def verification_phrase(self) -> str:
        """Return the verification phrase, by which two people compare the fingerprint on the telephone."""
        return phrase(self.fingerprint)

    def member_of(self, domain: str) -> Member:
        """Return what the domain of this fingerprint certifies of this site."""
        return Member(domain, self.site, self.signing_key, self.receiving_key)

    def seal(self, secret: bytes, info: bytes) -> bytes:
        """Seal a secret to this site, bound to public `info`."""
        return HPKE.encrypt(secret, X25519PublicKey.from_public_bytes(bytes.fromhex(self.receiving_key)), info)

    def content(self) -> bytes:
        """Return what is signed."""
        facts: dict[str, Any] = {**asdict(self), "format": REQUEST_FORMAT}
        del facts["signature"]
        return canonical(facts)

    def to_json(self) -> str:
        """Return the file's text."""
        return canonical({**asdict(self), "format": REQUEST_FORMAT}).decode() + "\n"

    @classmethod
    def from_json(cls, text: str, name: str) -> Self:
        """Read what `to_json` returned; raise `KeyFileError` for anything else. `name` is for the message."""
        try:
            values = json.loads(text)
            if values.pop("format") != REQUEST_FORMAT:
                raise KeyFileError(f"{name} is not a {REQUEST_FORMAT} file: name what `fedpp-site request` wrote")
            request = cls(**values)
            request.member_of("0" * 64)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, FederationError):
            raise KeyFileError(f"{name} is not a membership request: name what `fedpp-site request` wrote") from None
        if request.to_json() != text or not is_signed(
            request.signing_key, request.signature, "request", request.content()
        ):
            raise KeyFileError(f"{name} was altered: its signature does not fit; ask the site for it again")
        return request

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a membership request file."""
        text = key_file.read_text(path, "membership request", "name the other site's site.request")
        return cls.from_json(text, str(path))
