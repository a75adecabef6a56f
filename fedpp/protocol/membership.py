"""Membership of a key domain: a site's certificate, and the statement that it signs when it joins a run.

A certificate binds a site's public name to its keys, in one key epoch of one domain. The domain CA signs it: its public
key stands in the domain card, and only the founder of the domain holds the private key. So a member, who knows the
domain secret, cannot impersonate another. Signatures are Ed25519 (RFC 8032), each over the name of
its purpose and the canonical JSON of what is signed.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Annotated
from unicodedata import normalize

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fedpp.errors import FederationError
from fedpp.protocol.coordinator_identity import CoordinatorIdentity, CoordinatorNames
from fedpp.texts import INVISIBLE
from fedpp.values import Declared, Flat, Rule, hexadecimal, is_hex, rule, whole

PROTOCOL = 2  # of the messages between coordinator and sites
NONCE_BYTES = 32  # of a run
MAX_AGE = timedelta(days=14)  # of a proof that a site counts another by
CLOCK_SKEW = timedelta(hours=1)  # between two hospitals
LONGEST_NAME = 200  # bytes
_P = 2**255 - 19
_RUN_NUMBER = re.compile(r"0|[1-9][0-9]{0,19}")


def signed(purpose: str, content: bytes) -> bytes:
    """Return what is signed for a purpose, so that no signature serves another."""
    return f"fedpp {purpose} 1".encode() + b"\0" + content


def is_signed(public_key: str, signature: str, purpose: str, content: bytes) -> bool:
    """Tell whether the holder of this Ed25519 key (hex) signed this content for this purpose (one text, lower case)."""
    try:
        key, value = bytes.fromhex(public_key), bytes.fromhex(signature)
        Ed25519PublicKey.from_public_bytes(key).verify(value, signed(purpose, content))
        if is_weak(key):
            return False
    except (InvalidSignature, ValueError, TypeError):
        return False
    return value.hex() == signature


@lru_cache(1024)  # keys: it takes longer than to verify a signature
def is_weak(public_key: bytes) -> bool:
    """Tell whether an Ed25519 key is of small order: anybody can make signatures under it.

    Its point is taken to Curve25519 by u = (1 + y) / (1 - y) (RFC 7748, section 4.1), where `is_weak_to_agree` tells.
    """
    y = int.from_bytes(public_key, "little") % 2**255
    u = (1 + y) * pow(1 - y, _P - 2, _P) % _P
    return is_weak_to_agree(u.to_bytes(32, "little"))


def is_weak_to_agree(public_key: bytes) -> bool:
    """Tell whether an X25519 key is of small order: whatever is agreed with it is zero (RFC 7748, section 6.1)."""
    try:
        X25519PrivateKey.from_private_bytes(bytes(32)).exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError:
        return True
    return False


def is_site_name(value: object) -> bool:
    """Tell whether a value can be a site's public name, shown to people.

    It is printable, in Unicode's form NFKC, without spaces around it and without what does not show, and has at most
    200 bytes of UTF-8.
    """
    return (
        isinstance(value, str)
        and value.isprintable()
        and 0 < len(value.encode()) <= LONGEST_NAME
        and value == value.strip() == normalize("NFKC", value)
        and not INVISIBLE.search(value)
    )


def same_name(one: str, other: str) -> bool:
    """Tell whether people could confuse two names: they differ in the case of letters at most."""
    return normalize("NFKC", one).casefold() == normalize("NFKC", other).casefold()


def is_run_number(value: object) -> bool:
    """Tell whether a value is Flower's number of a run, 64 bits, as decimal text."""
    return isinstance(value, str) and _RUN_NUMBER.fullmatch(value) is not None and int(value) < 2**64


SITE_NAME = rule(f"a site's name, printable, in Unicode's form NFKC, of at most {LONGEST_NAME} bytes", is_site_name)
Hash = Annotated[str, hexadecimal()]


def _key_rule(weak: Callable[[bytes], bool]) -> Rule:
    allowed = "a public key of 64 hexadecimal digits in lower case, not of small order"
    return rule(allowed, lambda value: is_hex(value) and not weak(bytes.fromhex(value)))


@dataclass(frozen=True)
class Member(Declared, label="member", error=FederationError):
    """A site's name and public keys in one key epoch of one domain."""

    domain: Hash  # fingerprint of the domain's card
    site: Annotated[str, SITE_NAME]
    signing_key: Annotated[str, _key_rule(is_weak)]  # Ed25519
    receiving_key: Annotated[str, _key_rule(is_weak_to_agree)]  # X25519: invitations are sealed to it

    def content(self) -> bytes:
        """Return what is signed: the canonical JSON."""
        return self.to_json().encode()


@dataclass(frozen=True)
class Statement(Declared, label="statement", error=FederationError):
    """What a site states about itself to a coordinator, for one run."""

    nonce: Hash  # of the run: the coordinator draws it
    run: Annotated[str, rule("Flower's number of a run, a decimal text", is_run_number)]
    time: Annotated[int, whole(0, 2**53 - 1)]  # when it was signed, seconds since 1970 by the site's clock
    protocol: Annotated[int, whole(0, 2**53 - 1)]
    domain: Hash  # fingerprint of the domain's card
    site: Annotated[str, SITE_NAME]
    dataset: Hash  # fingerprint of the dataset's manifest
    bundle: Hash  # of the app bundle that runs at the site; of nothing in a simulation
    coordinator: CoordinatorIdentity  # as the site knows it

    def content(self) -> bytes:
        """Return what is signed: the canonical JSON."""
        return self.to_json().encode()

    def require_fresh(self, now: datetime) -> None:
        """Raise `FederationError` unless it was signed within `MAX_AGE`, and not later than now."""
        if not -CLOCK_SKEW.total_seconds() <= now.timestamp() - self.time <= MAX_AGE.total_seconds():
            raise FederationError(
                f"the proof of {self.site} is of another time, {self.time} s since 1970: a proof is good for "
                f"{MAX_AGE.days} days; check the clocks, or start the run again"
            )


NO_BUNDLE = sha256(b"").hexdigest()


@dataclass(frozen=True)
class Run:
    """One run of a federation: what a proof must be for."""

    ca_key: str  # of the domain, hex
    domain: str  # fingerprint of its card
    nonce: str
    number: str  # Flower's
    bundle: str  # SHA-256
    coordinator: CoordinatorNames


@dataclass(frozen=True)
class Certificate(Declared, label="certificate", error=FederationError):
    """A member, certified by its domain."""

    member: Annotated[Member, Flat()]
    signature: str  # hex

    def require(self, ca_key: str, domain: str) -> None:
        """Raise `FederationError` unless this domain (its card's fingerprint) made the certificate."""
        if self.member.domain != domain:
            raise FederationError(
                f"the certificate of {self.member.site} is for domain {self.member.domain[:16]}, not {domain[:16]}: "
                "accept the share of this epoch"
            )
        if not is_signed(ca_key, self.signature, "certificate", self.member.content()):
            raise FederationError(
                f"the certificate of {self.member.site} was not made by domain {domain[:16]}: "
                "ask its founder for a share"
            )


@dataclass(frozen=True)
class Proof(Declared, label="proof of membership", error=FederationError):
    """A statement, the signature of the site's identity, and the certificate of that identity."""

    statement: Statement
    signature: str  # hex
    certificate: Certificate

    def require(self, run: Run) -> None:
        """Raise `FederationError` unless a member of the run's domain signed it, in its own name, for this run."""
        member, statement = self.certificate.member, self.statement
        self.certificate.require(run.ca_key, run.domain)
        if not is_signed(member.signing_key, self.signature, "statement", statement.content()):
            raise FederationError(f"the proof of {statement.site} was not signed by the site that {member.site} is")
        if statement.site != member.site:
            raise FederationError(
                f"{member.site} cannot speak as {statement.site}: its certificate is for {member.site}"
            )
        if (statement.domain, statement.nonce, statement.run) != (run.domain, run.nonce, run.number):
            raise FederationError(f"the proof of {statement.site} is for another run: it was replayed")
        run.coordinator.require(statement.site, statement.coordinator)
        if statement.protocol != PROTOCOL:
            raise FederationError(
                f"{statement.site} speaks protocol {statement.protocol}, not {PROTOCOL}: use one fedpp everywhere"
            )
        if statement.bundle != run.bundle:
            raise FederationError(
                f"{statement.site} runs app bundle {statement.bundle[:16]}, the run is of {run.bundle[:16]}: "
                "run the same code everywhere"
            )
