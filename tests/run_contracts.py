"""A cohort of a masked run for tests: identities, certificates, a contract, and the chains that its members sign."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from run_specs import RUN_SPEC

from fedpp.keys.domain_ca import DomainCA
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.site_identity import SiteIdentity
from fedpp.protocol.membership import Certificate
from fedpp.protocol.run_contract import NO_HASH, CohortMember, RunContract, capped_weights, certificate_hash
from fedpp.protocol.run_statements import (
    BEFORE_RUN,
    OF_ROUND,
    Purpose,
    RunStatement,
    SignedStatement,
    coin_hash,
    run_id,
)
from fedpp.protocol.statement_chains import StatementChains

DOMAIN = KeyDomain.of_secret(bytes([9] * 32), n=2)
CA = DomainCA(DOMAIN.ca_seed())
CARD = DOMAIN.card()
EXPIRES = 1_900_000_000  # in 2030


def hashed(text: str) -> str:
    """Return the SHA-256 of a text, in hex."""
    return sha256(text.encode()).hexdigest()


def identities(count: int) -> list[SiteIdentity]:
    """Return so many site identities, in the order of their names."""
    return [SiteIdentity(f"Site {number:02}", bytes([number + 1] * 32)) for number in range(count)]


@dataclass
class Cohort:
    """Members of a run, who sign what tests want them to."""

    members: Sequence[SiteIdentity]
    changes: dict[str, Any] = field(default_factory=dict)  # of the contract
    sizes: Sequence[int] = ()  # training sequences; by default 3, 4, 5, ...
    signed: dict[str, list[SignedStatement]] = field(default_factory=dict)

    @classmethod
    def of(cls, count: int, **changes: Any) -> "Cohort":
        """Return a cohort of so many members, with these changes of its contract."""
        return cls(identities(count), changes)

    @cached_property
    def certificates(self) -> dict[str, Certificate]:
        """Return the certificates by site."""
        return {member.name: CA.certify(member.request(), CARD) for member in self.members}

    @cached_property
    def contract(self) -> RunContract:
        """Return the contract."""
        sizes = self.sizes or range(3, 3 + len(self.members))
        weights = capped_weights([min(size, RUN_SPEC.bounds.max_examples) for size in sizes])
        cohort = tuple(
            CohortMember(name, certificate_hash(certificate), (size, 2, 2), (size, 2, 2), weight)
            for (name, certificate), size, weight in zip(self.certificates.items(), sizes, weights, strict=True)
        )
        spec = RUN_SPEC.changed(domain=CARD.fingerprint, sites=len(self.members), examples=sum(weights))
        usual = {"colluders": 0 if len(self.members) == 2 else 1, "rounds": 3, "expires": EXPIRES}
        values = {"spec": spec, "nonce": hashed("nonce"), "bundle": hashed("bundle"), "cohort": cohort}
        return RunContract(**{**values, **usual, **self.changes})

    def key(self, site: str) -> X25519PrivateKey:
        """Return a member's private key of the run."""
        return X25519PrivateKey.from_private_bytes(bytes.fromhex(hashed(f"key of {site}")))

    def coin(self, site: str) -> str:
        """Return a member's coin."""
        return hashed(f"coin of {site}")

    @cached_property
    def run(self) -> str:
        """Return the run's name, once all members have signed their coins."""
        chains = self.chains()
        return run_id(self.contract.digest, chains.of("accept"), chains.of("coin"))

    def statement(self, site: str, purpose: Purpose, number: int = 0, /, **changes: Any) -> RunStatement:
        """Return what a member would sign next; further names are facts, or other fields of the statement."""
        chain = self.signed.get(site, [])
        values: dict[str, Any] = {
            "purpose": purpose,
            "contract": self.contract.digest,
            "run": NO_HASH if purpose in BEFORE_RUN else changes.pop("run", None) or self.run,
            "site": site,
            "place": len(chain),
            "previous": chain[-1].digest if chain else NO_HASH,
            "log_records": len(chain),
            "log_head": hashed(f"log of {site} at {len(chain)}"),
            "round": number,
            "base": hashed(f"state {number - 1}") if purpose in OF_ROUND else NO_HASH,
        }
        fields = {name: changes.pop(name) for name in list(changes) if name in values}
        return RunStatement(**{**values, **fields}, facts=self._facts(site, purpose, number) | changes)

    def sign(self, site: str, purpose: Purpose, number: int = 0, /, **changes: Any) -> SignedStatement:
        """Return the next statement of a member, signed, and keep it in the member's chain."""
        made = self.signed_by(site, self.statement(site, purpose, number, **changes))
        self.signed.setdefault(site, []).append(made)
        return made

    def signed_by(self, site: str, statement: RunStatement) -> SignedStatement:
        """Return a statement with the signature of this member."""
        (member,) = [member for member in self.members if member.name == site]
        return SignedStatement.by(member.sign, statement)

    def all_sign(self, purpose: Purpose, number: int = 0, /, **changes: Any) -> list[SignedStatement]:
        """Return the next statement of every member."""
        return [self.sign(member.name, purpose, number, **changes) for member in self.members]

    def begin(self) -> "Cohort":
        """Return this cohort after all members accepted, showed their coins and started."""
        for purpose in ("accept", "coin", "start"):
            self.all_sign(purpose)
        return self

    def complete(self, number: int) -> "Cohort":
        """Return this cohort after a round."""
        for purpose in ("train", "release", "step"):
            self.all_sign(purpose, number)
        return self

    def all_signed(self) -> list[SignedStatement]:
        """Return all statements of all members."""
        return [signed for chain in self.signed.values() for signed in chain]

    def chains(self) -> StatementChains:
        """Return the chains of all that was signed."""
        chains = StatementChains(self.contract, self.certificates)
        chains.take(self.all_signed())
        return chains

    def _facts(self, site: str, purpose: Purpose, number: int) -> dict[str, str]:
        coin = self.coin(site)
        return {
            "accept": {
                "key": self.key(site).public_key().public_bytes_raw().hex(),
                "coin_hash": coin_hash(self.contract.digest, site, coin),
            },
            "coin": {"coin": coin},
            "start": {"state": hashed(f"state {number}")},
            "train": {"masked": hashed(f"masked {site} {number}"), "seed": hashed(f"seed {site} {number}")},
            "release": {"aggregate": hashed(f"aggregate {number}"), "tag": "7", "sealed": hashed(f"sealed {site}")},
            "step": {"state": hashed(f"state {number}"), "counts": ""},
            "burn": {"aggregate": hashed(f"aggregate {number}")},
            "abandon": {},
            "report": {"figures": '{"examples":7}'},
        }[purpose]
