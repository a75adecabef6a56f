"""Membership invitation: a domain secret, sealed to one hospital, in a file that may be sent by ordinary mail.

The domain CA makes it for one membership request. HPKE (RFC 9180: X25519, HKDF-SHA256, AES-256-GCM) seals the secret to
the site's receiving key and binds it to the domain card, the site's certificate and the succession; the CA key signs
the whole. The receiver must verify that the card is the right one: by its verification phrase on the telephone, or
because the key epoch that the site is a member of named it as its successor.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidTag

from fedpp.cipher import key_file
from fedpp.cipher.domain_card import DomainCard
from fedpp.errors import DomainMismatchError, FedppError, KeyFileError
from fedpp.keys.domain_ca import DomainCA, succeeds
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.site_identity import MembershipRequest, SiteIdentity
from fedpp.protocol.membership import Certificate, is_signed
from fedpp.values import canonical

FORMAT = "fedpp-invitation-1"


@dataclass(frozen=True)
class Invitation:
    """A domain secret, sealed to the site that the certificate names."""

    card: DomainCard
    certificate: Certificate
    succession: str  # signature of this key epoch by the one before, hex; empty for a new member
    sealed: str = ""  # HPKE encapsulated key and ciphertext, hex
    signature: str = ""  # by the CA key over all other fields, hex

    @classmethod
    def make(cls, domain: KeyDomain, domain_ca: DomainCA, to: MembershipRequest, *, succession: str = "") -> Self:
        """Certify the requesting site as a member, and seal the domain secret to it."""
        card = domain.card()
        if domain_ca.public_key != card.ca_key:
            raise DomainMismatchError("this CA key is not the domain's: use the folder that founded this key epoch")
        bound = cls(card, domain_ca.certify(to, card), succession)
        sealed = replace(bound, sealed=to.seal(domain.secret_bytes(), bound.content()).hex())
        return replace(sealed, signature=domain_ca.sign("invitation", sealed.content()))

    def accept(self, identity: SiteIdentity) -> KeyDomain:
        """Return the domain; raise `KeyFileError` if the invitation is for another site, or was altered.

        Law: `Invitation.make(domain, domain_ca, identity.request()).accept(identity)` is the domain.
        """
        card, member = self.card, self.certificate.member
        if not is_signed(card.ca_key, self.signature, "invitation", self.content()):
            raise KeyFileError("the invitation was altered: its signature does not fit its card; ask for it again")
        self.certificate.require(card.ca_key, card.fingerprint)
        if member != identity.member_of(card.fingerprint):
            raise KeyFileError(
                f"the invitation is for {member.site}, with other keys than those of {identity.name} here"
            )
        try:
            secret = identity.unseal(bytes.fromhex(self.sealed), replace(self, sealed="").content())
            return KeyDomain.from_secret_bytes(secret, card)
        except (InvalidTag, ValueError, TypeError, FedppError):
            raise KeyFileError("this site's identity cannot decrypt the invitation: ask for it again") from None

    def follows(self, old: DomainCard) -> bool:
        """Tell whether the key epoch of the old card named this invitation's as its successor."""
        return succeeds(old, self.card, self.succession)

    def content(self) -> bytes:
        """Return what is signed; without `sealed`, what the sealed secret is bound to."""
        return canonical(self._values())

    def to_json(self) -> str:
        """Return the file's text."""
        return canonical({**self._values(), "signature": self.signature}).decode() + "\n"

    @classmethod
    def from_json(cls, text: str, name: str) -> Self:
        """Read what `to_json` returned; raise `KeyFileError` for anything else. `name` is for the message."""
        try:
            values = json.loads(text)
            invitation = cls(
                DomainCard.from_json(values["card"]),
                Certificate.from_json(values["certificate"]),
                *(values[field] for field in ("succession", "sealed", "signature")),
            )
            whole = invitation.to_json() == text
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, FedppError):
            whole = False
        if not whole:
            raise KeyFileError(
                f"{name} is not an invitation, or was altered: name the file that `fedpp-site invite` wrote, "
                "or ask for it again"
            )
        return invitation

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an invitation file."""
        text = key_file.read_text(path, "invitation", "name the file that `fedpp-site invite` wrote")
        return cls.from_json(text, str(path))

    def _values(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "card": self.card.to_json(),
            "certificate": self.certificate.to_json(),
            "succession": self.succession,
            "sealed": self.sealed,
        }
