"""Who is a member of a key domain: a site's certificate, and what it signs when it joins a run.

A certificate binds a site's public name to its keys, in one epoch of one domain. The domain's certifying key, whose
public half stands in the domain's card, makes it; only who founded or rotated the domain holds the private half. So a
member, who knows the domain secret, cannot speak as another. Signatures are Ed25519 (RFC 8032), each over the name of
its purpose and the canonical JSON of what is signed.
"""

import json
import re
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Self
from unicodedata import normalize

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fedpp.errors import FederationError
from fedpp.values import canonical, is_hex

PROTOCOL = 1  # of the messages between coordinator and sites
NONCE_BYTES = 32  # of a run
MAX_AGE = timedelta(days=14)  # of a proof that a site counts another by
CLOCK_SKEW = timedelta(hours=1)  # between two hospitals
LONGEST_NAME = 200  # bytes
LONGEST_TEXT = 4096
_P = 2**255 - 19
# Characters that show nothing: Unicode 15's Default_Ignorable_Code_Point, a blank Braille cell, a null notehead.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
_RUN_NUMBER = re.compile(r"0|[1-9][0-9]{0,19}")
HEX_DIGITS = {"domain": 64, "dataset": 64, "bundle": 64, "nonce": 64, "signing_key": 64, "receiving_key": 64}


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


def is_weak(public_key: bytes) -> bool:
    """Tell whether an Ed25519 key is of small order: signatures under it say nothing of who made them.

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
    """Tell whether a value can be a site's public name, which people read.

    It is printable, in Unicode's form NFKC, without spaces around it and without what does not show, and has at most
    200 bytes of UTF-8.
    """
    return (
        isinstance(value, str)
        and value.isprintable()
        and 0 < len(value.encode()) <= LONGEST_NAME
        and value == value.strip() == normalize("NFKC", value)
        and not _UNSEEN.search(value)
    )


def same_name(one: str, other: str) -> bool:
    """Tell whether people could take two names for one: they differ in the case of letters at most."""
    return normalize("NFKC", one).casefold() == normalize("NFKC", other).casefold()


def is_run_number(value: object) -> bool:
    """Tell whether a value is Flower's number of a run, 64 bits, as decimal text."""
    return isinstance(value, str) and _RUN_NUMBER.fullmatch(value) is not None and int(value) < 2**64


def _never(_key: bytes) -> bool:
    return False


_WEAK = {"signing_key": is_weak, "receiving_key": is_weak_to_agree}


@dataclass(frozen=True)
class _Facts:
    """Texts and numbers with a canonical JSON form, which is the only one that is read."""

    def __post_init__(self) -> None:
        """Refuse values of another type or size."""
        for field in fields(self):
            value = getattr(self, field.name)
            digits = HEX_DIGITS.get(field.name)
            if field.name == "site":
                fits = is_site_name(value)
            elif field.name == "run":
                fits = is_run_number(value)
            elif digits is not None:
                fits = is_hex(value, digits) and not _WEAK.get(field.name, _never)(bytes.fromhex(value))
            else:
                fits = type(value) is int and 0 <= value < 2**53
            if not fits:
                raise FederationError(f"{type(self).__name__.lower()}: {field.name} cannot be {value!r:.80}")

    def content(self) -> bytes:
        """Return the canonical JSON."""
        return canonical(asdict(self))


@dataclass(frozen=True)
class Member(_Facts):
    """A site's name and public keys in one epoch of one domain."""

    domain: str  # fingerprint of the domain's card
    site: str  # public name
    signing_key: str  # Ed25519, hex
    receiving_key: str  # X25519, hex: what is sealed to this site is sealed to it


@dataclass(frozen=True)
class Statement(_Facts):
    """What a site says of itself to a coordinator, for one run."""

    nonce: str  # of the run, 64 hex digits: the coordinator draws it
    run: str  # Flower's number of the run, as the site was told it
    time: int  # when it was signed, seconds since 1970 by the site's clock
    protocol: int
    domain: str  # fingerprint of the domain's card
    site: str
    dataset: str  # fingerprint of the dataset's manifest
    bundle: str  # SHA-256 of the app bundle that runs at the site; of nothing in a simulation

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


@dataclass(frozen=True)
class Certificate:
    """A member, certified by its domain."""

    member: Member
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

    def to_json(self) -> str:
        """Return one line of JSON."""
        return canonical({**asdict(self.member), "signature": self.signature}).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` returned; raise `FederationError` for anything else."""
        values = _parsed(text, "a certificate")
        signature = values.pop("signature", "")
        certificate = cls(_made(Member, values), signature)
        if certificate.to_json() != text:
            raise FederationError("a certificate is damaged: ask the domain for it again")
        return certificate


@dataclass(frozen=True)
class Proof:
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
        if statement.protocol != PROTOCOL:
            raise FederationError(
                f"{statement.site} speaks protocol {statement.protocol}, not {PROTOCOL}: use one fedpp everywhere"
            )
        if statement.bundle != run.bundle:
            raise FederationError(
                f"{statement.site} runs app bundle {statement.bundle[:16]}, the run is of {run.bundle[:16]}: "
                "run the same code everywhere"
            )

    def to_json(self) -> str:
        """Return one line of JSON."""
        return canonical(
            {
                "statement": asdict(self.statement),
                "signature": self.signature,
                "certificate": self.certificate.to_json(),
            }
        ).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` returned; raise `FederationError` for anything else."""
        values = _parsed(text, "a proof of membership")
        try:
            statement, signature = values["statement"], values["signature"]
            proof = cls(_made(Statement, statement), signature, Certificate.from_json(values["certificate"]))
        except KeyError:
            raise FederationError("a proof of membership is incomplete: use one fedpp at all sites") from None
        if proof.to_json() != text:
            raise FederationError("a proof of membership is damaged: use one fedpp at all sites")
        return proof


def _parsed(text: str, what: str) -> dict[str, Any]:
    try:
        values = json.loads(text[:LONGEST_TEXT])
    except (ValueError, TypeError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise FederationError(f"{what} is damaged: it is no JSON object")
    return values


def _made(kind: type[Any], values: Any) -> Any:
    try:
        return kind(**values)
    except TypeError:
        raise FederationError(f"a {kind.__name__.lower()} has other fields: use one fedpp at all sites") from None
