"""Participants of a run: the proofs of membership of all sites, which the coordinator forwards to each of them.

They show a site how many members of its domain, each under its own certificate, signed for this run's nonce. They do
not show whose updates are in an aggregate: the coordinator chooses these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from fedpp.config.run_config import MAX_SITES
from fedpp.errors import FederationError
from fedpp.protocol.coordinator_identity import CoordinatorIdentity
from fedpp.protocol.membership import Proof, Run

if TYPE_CHECKING:
    from flwr.app import ConfigRecord

_TWICE = "the run's list of participants names one member twice"


@dataclass(frozen=True)
class Participants:
    """The proofs of all sites of a run, for one nonce."""

    nonce: str
    proofs: tuple[Proof, ...]

    def others(self, site: str, run: Run, now: datetime) -> int:
        """Return the number of other members that take part; raise `FederationError` unless all of them prove it."""
        members = [(proof.certificate.member.site, proof.certificate.member.signing_key) for proof in self.proofs]
        self.coordinator_of(site)
        if len({name for name, _ in members}) != len(members) or len({key for _, key in members}) != len(members):
            raise FederationError(_TWICE)
        for proof in self.proofs:  # after the names: each has two signatures to verify
            proof.require(run)
            proof.statement.require_fresh(now)
        return len(members) - 1

    def coordinator_of(self, site: str) -> CoordinatorIdentity:
        """Return the coordinator that a site's own proof names; raise `FederationError` if there is none."""
        for proof in self.proofs:
            if proof.certificate.member.site == site:
                return proof.statement.coordinator
        raise FederationError(f"the run's list of participants is without {site}: it did not join this run")

    def to_record(self) -> "ConfigRecord":
        """Return the record that carries them."""
        from flwr.app import ConfigRecord  # a vault, which reads proofs, has no Flower in it

        return ConfigRecord({"nonce": self.nonce, "proofs": [proof.to_json() for proof in self.proofs]})

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read what `to_record` returned; raise `FederationError` for anything else."""
        nonce, texts = record.get("nonce"), record.get("proofs")
        if not isinstance(nonce, str) or not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise FederationError("the run's list of participants does not fit: use one fedpp everywhere")
        return cls.of(nonce, texts)

    @classmethod
    def of(cls, nonce: str, proofs: Sequence[str]) -> Self:
        """Read proofs, JSON; raise `FederationError` for too many, for one that stands twice, and for what is none."""
        if len(proofs) > MAX_SITES:
            raise FederationError(f"the run's list of participants has {len(proofs)} proofs, at most {MAX_SITES} fit")
        if len(set(proofs)) < len(proofs):
            raise FederationError(_TWICE)
        return cls(nonce, tuple(Proof.from_json(text) for text in proofs))
