"""Handing a domain on: its secret, sealed to one hospital's X25519 key, in a file that may be sent by any mail.

A share is made by the domain's issuer for one recipient. An ephemeral X25519 key agrees with his (RFC 7748),
HKDF-SHA256 makes a key of it, AES-256-GCM seals the secret, and the certifying key signs the whole. It carries the
domain's card and the recipient's certificate. Who receives one must know that the card is the right one: by five words
on the telephone, or because the epoch that he is a member of named it as its successor.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedpp.cipher import key_file
from fedpp.cipher.domain_card import DomainCard
from fedpp.errors import DomainMismatchError, FedppError, KeyFileError
from fedpp.keys.domain_ca import DomainCA, succeeds
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.site_identity import MembershipRequest, SiteIdentity
from fedpp.protocol.membership import Certificate, is_signed
from fedpp.values import canonical

FORMAT = "fedpp-share-1"
_NONCE = bytes(12)  # each key seals one message


@dataclass(frozen=True)
class Invitation:
    """A domain's secret, sealed to the site that the certificate names."""

    card: DomainCard
    certificate: Certificate
    ephemeral: str  # X25519 public key, hex
    sealed: str  # hex
    succession: str  # the epoch before's signature of this one, hex, or nothing
    signature: str  # of the certifying key over all of it, hex

    @classmethod
    def make(cls, domain: KeyDomain, domain_ca: DomainCA, to: MembershipRequest, *, succession: str = "") -> Self:
        """Seal a domain to a recipient, and certify it as a member."""
        card = domain.card()
        if domain_ca.public_key != card.certifying_key:
            raise DomainMismatchError("this certifying key is not the domain's: take the folder that founded the epoch")
        certificate = domain_ca.certify(to, card)
        own = X25519PrivateKey.generate()
        ephemeral = own.public_key().public_bytes_raw().hex()
        agreed = own.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(to.receiving_key)))
        key = _key(agreed, ephemeral, to.receiving_key)
        sealed = AESGCM(key).encrypt(_NONCE, domain.secret_bytes(), certificate.to_json().encode())
        unsigned = cls(card, certificate, ephemeral, sealed.hex(), succession, "")
        return cls(card, certificate, ephemeral, sealed.hex(), succession, domain_ca.sign("share", unsigned.content()))

    def open(self, identity: SiteIdentity) -> KeyDomain:
        """Return the domain; raise `KeyFileError` if the share is not for this site, or was altered.

        Law: `Share.make(domain, issuer, identity.recipient()).open(identity)` is the domain.
        """
        card, member = self.card, self.certificate.member
        if not is_signed(card.certifying_key, self.signature, "share", self.content()):
            raise KeyFileError("the share was altered: its signature does not fit its card; ask for it again")
        self.certificate.require(card.certifying_key, card.fingerprint)
        if member != identity.member_of(card.fingerprint):
            raise KeyFileError(f"the share is for {member.site}, with other keys than those of {identity.name} here")
        try:
            key = _key(identity.agree(self.ephemeral), self.ephemeral, identity.receiving_key)
            secret = AESGCM(key).decrypt(_NONCE, bytes.fromhex(self.sealed), self.certificate.to_json().encode())
            return KeyDomain.from_secret_bytes(secret, card)
        except (InvalidTag, ValueError, TypeError, FedppError):
            raise KeyFileError("the share does not open with this site's identity: ask for it again") from None

    def follows(self, old: DomainCard) -> bool:
        """Tell whether the epoch of the old card named this share's as its successor."""
        return succeeds(old, self.card, self.succession)

    def content(self) -> bytes:
        """Return what is signed."""
        return canonical(self._values())

    def to_json(self) -> str:
        """Return the file's text."""
        return canonical({**self._values(), "signature": self.signature}).decode() + "\n"

    @classmethod
    def from_json(cls, text: str, name: str) -> Self:
        """Read what `to_json` returned; raise `KeyFileError` for anything else. `name` is for the message."""
        try:
            values = json.loads(text)
            share = cls(
                DomainCard.from_json(values["card"]),
                Certificate.from_json(values["certificate"]),
                *(values[field] for field in ("ephemeral", "sealed", "succession", "signature")),
            )
            whole = share.to_json() == text
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, FedppError):
            whole = False
        if not whole:
            raise KeyFileError(f"{name} is no share, or was altered: name what `fedpp-site share` made, or ask again")
        return share

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a share's file."""
        return cls.from_json(key_file.read_text(path, "share", "name what `fedpp-site share` made"), str(path))

    def _values(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "card": self.card.to_json(),
            "certificate": self.certificate.to_json(),
            "ephemeral": self.ephemeral,
            "sealed": self.sealed,
            "succession": self.succession,
        }


def _key(agreed: bytes, ephemeral: str, receiving: str) -> bytes:
    salt = bytes.fromhex(ephemeral + receiving)
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=b"fedpp share 1").derive(agreed)
