"""Run contract: what the members of a masked run sign before it starts, and the weights of their updates in its sums.

It embeds the run specification, and adds who takes part, how many members may collude, how long the run is and what it
opens. All members sign one contract, by its digest; a vault does nothing in a masked run that its contract does not
say. It is public to its members and to the coordinator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from hashlib import sha256
from typing import Annotated, Literal

from fedpp.config.contract_limits import VALIDITY_DAYS
from fedpp.config.run_config import MAX_EXAMPLES, MAX_SITES, MIN_HONEST, SPLITS, Monitor, Reporting
from fedpp.errors import FederationError
from fedpp.protocol.membership import CLOCK_SKEW, SITE_NAME, Certificate, Hash
from fedpp.protocol.run_spec import RunSpec
from fedpp.values import MAX_WHOLE, Declared, Listed, is_hex, number, rule, whole

PROTOCOL = 2  # of masked runs
NO_HASH = "0" * 64  # in place of a hash that there is not yet
FRESH = "fresh"  # initial weights that all members draw together
VALIDITY = timedelta(days=VALIDITY_DAYS)  # of a contract: a run ends then at the latest
CLOSING_ROUNDS = 2  # without training: validation of the last state, test of the chosen one

_OF_SPLITS = Listed(len(SPLITS), len(SPLITS))
_Count = Annotated[int, whole(0, MAX_EXAMPLES)]
_INITIAL = rule(f"{FRESH}, or 64 hexadecimal digits in lower case", lambda value: value == FRESH or is_hex(value))


@dataclass(frozen=True)
class CohortMember(Declared, label="cohort member", error=FederationError):
    """A site of the cohort: its certificate, the sizes of its splits and the weight of its updates."""

    site: Annotated[str, SITE_NAME]
    certificate: Hash  # SHA-256 of its JSON
    sequences: Annotated[tuple[_Count, ...], _OF_SPLITS]  # in the order of SPLITS
    patients: Annotated[tuple[_Count, ...], _OF_SPLITS]
    weight: Annotated[int, whole(1, MAX_EXAMPLES)]  # of its update in the sum of a round


@dataclass(frozen=True)
class Parent(Declared, label="parent", error=FederationError):
    """The state of another run that a revision continues."""

    contract: Hash  # digest
    round: Annotated[int, whole()]
    base: Hash  # digest of the state after that round


@dataclass(frozen=True)
class LiftedLock(Declared, label="lifted lock", error=FederationError):
    """A site that left a run in a round that others had released for, and that it had not burned.

    Its lock was lifted by the staff of all sites that stay: if it, or a copy of its vault, released after all, the
    difference of two sums is its update.
    """

    site: Annotated[str, SITE_NAME]
    round: Annotated[int, whole(1, 2**31)]


@dataclass(frozen=True)
class RunContract(Declared, label="run contract", error=FederationError):
    """The same bytes at all members; its digest stands in everything that they sign and derive.

    A revision continues another contract's run from its `parent` state and keeps the number of that round, so that
    what a site has trained on a state is what it would train again.
    """

    spec: RunSpec
    nonce: Hash  # of the run: the coordinator draws it
    expires: Annotated[int, whole(0, 2**53 - 1)]  # seconds since 1970
    bundle: Hash  # SHA-256 of the app bundle
    cohort: Annotated[tuple[CohortMember, ...], Listed(least=1, most=MAX_SITES)]  # in the order of their names
    colluders: Annotated[int, whole(0, MAX_SITES)]  # members that may collude with the coordinator
    rounds: Annotated[int, whole(1, 2**31)]  # of training
    min_honest: Annotated[int, whole(1, MAX_SITES)] = MIN_HONEST  # honest sites in each sum
    max_step: Annotated[float, number(above=0)] = 4.0  # RMS of a round's step, in learning rates a local step
    monitor: Monitor = "last"  # figure of the validation split by which the result is chosen
    patience: Annotated[int, whole()] = 0  # rounds without a better figure, after which training ends; 0: all rounds
    initial: Annotated[str, _INITIAL] = FRESH  # or the digest of an endorsed model; a revision keeps it
    reporting: Reporting = "aggregate"  # per-site: each site also reports figures of its own
    revision: Annotated[int, whole()] = 0  # how many contracts this run had before
    parent: Parent | None = None  # of a revision
    changes: Annotated[int, whole()] = 0  # of the cohort by few sites, in this run's revisions
    lifted: tuple[LiftedLock, ...] = ()  # in this run's revisions, in the order of their rounds
    privacy: Literal["off"] = "off"  # differential privacy of patients
    protocol: Annotated[int, whole(PROTOCOL, PROTOCOL)] = PROTOCOL

    def __post_init__(self) -> None:
        """Refuse what contradicts itself, or has a second spelling."""
        super().__post_init__()
        if not self.spec.masked:
            raise self._refused("its run specification has secure aggregation off: runs in clear have no contract")
        if list(self.names) != sorted(set(self.names)):
            raise self._refused(f"its cohort must be in the order of distinct names, got {list(self.names)!r:.80}")
        if len({member.certificate for member in self.cohort}) < self.n:
            raise self._refused("its cohort names one certificate twice: each member has its own")
        stated, found = (self.spec.sites, self.spec.examples), (self.n, self.total_weight)
        if stated != found:
            raise self._refused(f"it is of {found[0]} sites that weigh {found[1]}, its run specification of {stated}")
        if (self.parent is None) != (self.revision == 0):
            raise self._refused(f"a revision has a parent and a number from 1, got revision {self.revision}")
        order = [(lock.round, lock.site) for lock in self.lifted]
        if order != sorted(set(order)) or any(number > self.start_round + 1 for number, _ in order):
            raise self._refused(
                f"its lifted locks must be distinct, in order, and of rounds that a revision follows, got {order!r:.80}"
            )
        if self.changes > 3 * self.revision:
            raise self._refused(
                f"a revision has three changes at most, got {self.changes} in {self.revision} revisions"
            )
        if self.lifted and not self.revision:
            raise self._refused("only a revision follows lifted locks, got some in a new run")
        if self.patience and self.monitor == "last":
            raise self._refused(f"patience needs monitor loss or auc, got patience {self.patience} and monitor last")

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of its text, in hex."""
        return sha256(self.to_json().encode()).hexdigest()

    @property
    def n(self) -> int:
        """Return the number of members."""
        return len(self.cohort)

    @property
    def threshold(self) -> int:
        """Return t, the members whose signatures certify a state: any two such groups share an honest site."""
        return (self.n + self.colluders) // 2 + 1

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Return the members' names, in order."""
        return tuple(member.site for member in self.cohort)

    @cached_property
    def total_weight(self) -> int:
        """Return the sum of all weights."""
        return sum(member.weight for member in self.cohort)

    @property
    def start_round(self) -> int:
        """Return the number of the state that the run starts from: 0, and in a revision its parent's."""
        return self.parent.round if self.parent else 0

    @property
    def last_round(self) -> int:
        """Return the largest number that a round may have, the closing ones included."""
        return max(self.rounds, self.start_round) + CLOSING_ROUNDS

    def member(self, site: str) -> CohortMember:
        """Return the member of this name; raise `FederationError` if there is none."""
        for member in self.cohort:
            if member.site == site:
                return member
        raise FederationError(f"{site!r:.80} is not in the cohort of contract {self.digest[:16]}")

    def require(self) -> None:
        """Raise `FederationError` unless its sums hide each honest site among others (`min_honest`, `colluders`).

        Two sites hide nothing from each other: they make a contract without colluders, and no other size does.
        """
        if self.min_honest < MIN_HONEST or self.n < self.min_honest + self.colluders:
            raise self._refused(
                f"{self.n} sites are too few for {self.min_honest} honest and {self.colluders} colluding ones: "
                "secure aggregation needs as many sites as both together, and two honest ones"
            )
        if (self.colluders == 0) != (self.n == 2):
            raise self._refused(
                f"two sites have 0 colluders and more have at least 1, got {self.n} sites and {self.colluders} "
                "colluders: hospitals that need not fear each other can run in clear"
            )
        self._require_shared_splits()
        weights = tuple(member.weight for member in self.cohort)
        due = capped_weights([self.spec.weight(member.sequences[0]) for member in self.cohort])
        if weights != due:
            raise self._refused(f"its weights are {weights!r:.80}, those of its training splits are {due!r:.80}")

    def _require_shared_splits(self) -> None:
        """Refuse a split that too few members have: its counts would be few sites' figures, or one's."""
        needed = 0 if self.reporting == "per-site" else self.min_honest + self.colluders
        for place, split in enumerate(SPLITS):
            having = sum(member.sequences[place] > 0 for member in self.cohort)
            if 0 < having < needed:
                raise self._refused(
                    f"{having} of its sites have a split {split}, and its counts are to hide each of {needed} or more: "
                    "ingest with other shares, so that more sites have it or none, or leave a site out"
                )

    def require_current(self, now: datetime, days: int = VALIDITY.days) -> None:
        """Raise `FederationError` after its end, and for an end that is further away than so many days."""
        left = self.expires - now.timestamp()
        if not 0 < left <= (timedelta(days=days) + CLOCK_SKEW).total_seconds():
            raise self._refused(
                f"it is good until {self.expires} s since 1970, and it is {now.timestamp():.0f} s: start a new run; "
                f"a contract is made for {days} days at most"
            )

    def certified(self, certificates: Sequence[Certificate], ca_key: str) -> Mapping[str, Certificate]:
        """Return the certificates by site; raise `FederationError` unless they are the cohort's, of the spec's domain.

        `ca_key` is the public key of the domain CA. Names and hashes are compared before a signature is verified.
        """
        found = {certificate_hash(certificate): certificate for certificate in certificates[: self.n + 1]}
        named = {certificate.member.site: digest for digest, certificate in found.items()}
        if len(certificates) != self.n or named != {member.site: member.certificate for member in self.cohort}:
            raise self._refused(f"its {self.n} members have other certificates than the {len(certificates)} beside it")
        if len({certificate.member.signing_key for certificate in certificates}) < self.n:
            raise self._refused("two of its members sign with one key: each site has its own identity")
        for certificate in certificates:
            certificate.require(ca_key, self.spec.domain)
        return {certificate.member.site: certificate for certificate in certificates}


@dataclass(frozen=True)
class KnownContract(Declared, label="contract of a run", error=FederationError, longest=2**26):
    """A contract that a member has accepted, with its cohort's certificates, for a coordinator that lost them."""

    contract: RunContract
    certificates: Annotated[tuple[Certificate, ...], Listed(least=1, most=MAX_SITES)]  # in the order of the names


def certificate_hash(certificate: Certificate) -> str:
    """Return the SHA-256 of a certificate's JSON, in hex."""
    return sha256(certificate.to_json().encode()).hexdigest()


def capped_weights(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the weights of updates of so many examples: for 3 sites and more, none above 2/n of all weights together.

    A weight above 2/n of the total is lowered to 2/n of it, rounded down, and so on until none is above. That is the
    largest cap x with `n x <= 2 sum(min(size, x))`. The difference of both sides is concave in x: a bisection finds it.
    """
    n = len(sizes)
    if n < 3:
        return tuple(sizes)
    low, high = 0, min(max(sizes), MAX_WHOLE)
    while low < high:
        cap = (low + high + 1) // 2
        if n * cap <= 2 * sum(min(size, cap) for size in sizes):
            low = cap
        else:
            high = cap - 1
    return tuple(min(size, low) for size in sizes)
