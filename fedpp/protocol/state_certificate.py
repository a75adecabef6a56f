"""Certificate of a state: the signatures of members that computed it, enough that no two states of a round have one."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Self

from fedpp.errors import FederationError
from fedpp.protocol.membership import Certificate, Hash
from fedpp.protocol.run_contract import RunContract
from fedpp.protocol.run_statements import SignedStatement
from fedpp.values import Declared, Listed, whole

LACKS_STATE = "the certified state is missing here: it is needed, sealed by another member"
"""A vault's refusal where it cannot continue from its own states; the requester then sends it the certified one."""


@dataclass(frozen=True)
class StateCertificate(Declared, label="certificate of a state", error=FederationError, longest=2**26):
    """The `step` statements of t members on one state, or all members' `start` on the one that a run starts from."""

    contract: Hash  # digest
    run: Hash
    round: Annotated[int, whole()]
    state: Hash  # digest
    signed: Annotated[tuple[SignedStatement, ...], Listed(least=1)]  # in the order of the sites' names

    @classmethod
    def made_of(cls, contract: RunContract, statements: Iterable[SignedStatement]) -> Self:
        """Return the certificate that statements of one round make; raise `FederationError` if too few are alike.

        Their signatures are not verified here: `StatementChains` did so.
        """
        alike: dict[object, list[SignedStatement]] = defaultdict(list)
        for signed in statements:
            alike[_stated(signed)].append(signed)
        most = max(alike.values(), key=len, default=[])
        if len(most) < needed(contract, most[0].statement.round if most else contract.start_round):
            raise FederationError(f"{len(most)} members signed one state of the round: too few for a certificate")
        of = most[0].statement
        ordered = tuple(sorted(most, key=lambda signed: signed.statement.site))
        return cls(of.contract, of.run, of.round, of.facts["state"], ordered)

    @property
    def base(self) -> str:
        """Return the digest of the state before; `NO_HASH` for the one that a run starts from."""
        return self.signed[0].statement.base

    @property
    def counts(self) -> str:
        """Return the JSON of the evaluation counts of the base, or nothing."""
        return self.signed[0].statement.facts.get("counts", "")

    @property
    def signers(self) -> tuple[str, ...]:
        """Return the names of the sites that signed, in order."""
        return tuple(signed.statement.site for signed in self.signed)

    def require(self, contract: RunContract, certificates: Mapping[str, Certificate]) -> None:
        """Raise `FederationError` unless enough distinct members of this contract signed exactly this state.

        The certificates are those that `RunContract.certified` returned. Counts and names come before signatures.
        """
        due = "start" if self.round == contract.start_round else "step"
        if self.contract != contract.digest:
            raise self._refused(f"it is of contract {self.contract[:16]}, not {contract.digest[:16]}")
        if list(self.signers) != sorted(set(self.signers)) or not set(self.signers) <= set(contract.names):
            raise self._refused("its signers must be distinct members, in the order of their names")
        if len(self.signed) < needed(contract, self.round):
            raise self._refused(f"{len(self.signed)} members signed it, {needed(contract, self.round)} are needed")
        stated = due, self.contract, self.run, self.round, self.state
        if {_stated(signed) for signed in self.signed} != {(*stated, self.base, self.counts)}:
            raise self._refused("its statements are not all of the same state, counts and round")
        for signed in self.signed:
            signed.require(certificates[signed.statement.site])


def needed(contract: RunContract, number: int) -> int:
    """Return how many members sign the state of a round: all for the one that a run starts from, then t."""
    return contract.n if number == contract.start_round else contract.threshold


def _stated(signed: SignedStatement) -> tuple[object, ...]:
    of = signed.statement
    return (
        of.purpose,
        of.contract,
        of.run,
        of.round,
        of.facts.get("state"),
        of.base,
        of.facts.get("counts", ""),
    )
