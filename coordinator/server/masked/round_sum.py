"""Sum of a round's masked updates, and the tests of it.

The coordinator tests it on its own before it states its hash, since members release their masks for that one alone.
After that the members' tags bind both sides: where they do not fit, the masked updates show whose tag is false.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fedpp.aggregation.linear_check import Carry, ExactSum, SumTest, require_sum, tag
from fedpp.aggregation.ring import EncodedUpdate, Ring
from fedpp.errors import FederationError, MaskError
from fedpp.protocol.run_statements import SignedStatement

from .statement_store import StatementStore


@dataclass(frozen=True)
class RoundSum:
    """The exact sum of all masked updates of a round."""

    ring: Ring
    low: EncodedUpdate
    carry: Carry
    hash: str

    @classmethod
    def of(cls, store: StatementStore, trained: Mapping[str, SignedStatement], ring: Ring, length: int) -> "RoundSum":
        """Add the updates of all members; raise `FederationError` or `MaskError` if this machine damaged one."""
        exact, test = ExactSum(length, ring), SumTest()
        for signed in trained.values():
            values = _stored(store, signed, ring)
            exact.add(values)
            test.add(values)
        test.require(exact.low, exact.carry)
        return cls(ring, exact.low, exact.carry, exact.hash)

    def require_tags(
        self,
        store: StatementStore,
        aggregate: str,
        trained: Mapping[str, SignedStatement],
        released: Mapping[str, SignedStatement],
    ) -> None:
        """Raise `FederationError`, which names the members whose tag is false, unless the tags are those of the sum."""
        tags = {site: int(signed.statement.facts["tag"], 16) for site, signed in released.items()}
        try:
            require_sum(aggregate, self.low, self.carry, list(tags.values()), self.ring, self.low.size)
        except MaskError as error:
            false = [
                site for site, of in trained.items() if tag(aggregate, _stored(store, of, self.ring)) != tags[site]
            ]
            if not false:
                raise FederationError(str(error)) from None
            raise FederationError(
                f"{', '.join(false)} stated a false tag of its masked update: the round cannot be opened, and the run "
                "ends with the last certified state; the update and the statement are kept as a proof"
            ) from None


def _stored(store: StatementStore, signed: SignedStatement, ring: Ring) -> EncodedUpdate:
    values = store.update(signed, ring)
    if values is None:
        raise FederationError(
            f"the masked update of {signed.statement.site} is damaged on this disk: resume with run --resume, which "
            "requests it again"
        )
    return values
