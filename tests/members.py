"""Members of key domains for tests, with passphrases that are cheap to derive keys from."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from fedpp.cipher.domain_card import DomainCard
from fedpp.keys import key_store
from fedpp.keys.domain_ca import DomainCA
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.sealed_secret import Passphrase
from fedpp.keys.site_identity import SiteIdentity
from fedpp.protocol.coordinator_identity import CoordinatorIdentity, CoordinatorNames
from fedpp.protocol.membership import NO_BUNDLE, PROTOCOL, Proof, Run, Statement

SECRET_WORDS = b"correct horse battery"
EAST, WEST = SiteIdentity("East", bytes([1] * 32)), SiteIdentity("West", bytes([2] * 32))
DOMAIN_CA = DomainCA(bytes([3] * 32))
TOLD = CoordinatorIdentity("ca" * 32, "hub.example.org")


def cheap(text: bytes = SECRET_WORDS) -> Passphrase:
    """Return a passphrase whose scrypt takes a millisecond."""
    return Passphrase(text, log2_cost=10)


def founded(**choices: object) -> KeyDomain:
    """Return a domain that `DOMAIN_CA` certifies members of."""
    return KeyDomain.found(DOMAIN_CA.public_key, **choices)


def membership(identity: SiteIdentity, domain: KeyDomain) -> key_store.Site:
    """Return a site as a member of a domain of `DOMAIN_CA`."""
    return key_store.Site(domain, identity, DOMAIN_CA.certify(identity.request(), domain.card()))


def run_of(card: DomainCard, nonce: str, number: str = "1") -> Run:
    """Return a run of this domain, of no bundle."""
    return Run(card.ca_key, card.fingerprint, nonce, number, NO_BUNDLE, CoordinatorNames.only(TOLD))


def proof(identity: SiteIdentity, card: DomainCard, nonce: str, /, **change: object) -> Proof:
    """Return the proof of membership that a site signs now for run 1, its statement with these changes."""
    facts = (PROTOCOL, card.fingerprint, identity.name, "cd" * 32, NO_BUNDLE, TOLD)
    statement = Statement(nonce, "1", int(time.time()), *facts)
    statement = replace(statement, **change)
    signature = identity.sign("statement", statement.content())
    return Proof(statement, signature, DOMAIN_CA.certify(identity.request(), card))


@dataclass(frozen=True)
class Flip:
    """One byte of a file with one of its bits flipped."""

    position: int
    content: bytes


def flips(content: bytes) -> list[Flip]:
    """Return the content with every byte flipped in turn, once in its lowest bit and once in its sixth."""
    return [
        Flip(position, content[:position] + bytes([content[position] ^ bit]) + content[position + 1 :])
        for position in range(len(content))
        for bit in (1, 32)
    ]


def written(folder: Path) -> set[Path]:
    """Return the files of a folder, by relative path."""
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
