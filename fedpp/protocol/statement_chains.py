"""Chains of statements of one run contract: all that each member has signed under it, in order and without a gap.

A vault keeps them, and so does the coordinator. Whatever comes in is compared with them, before its signatures are
verified: statements that are known are skipped, a gap is asked for, and two statements where a site may sign one are a
proof against it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from fedpp.errors import FederationError, ForkError, MissingLinksError
from fedpp.protocol.finding_counts import longest_text
from fedpp.protocol.membership import Certificate
from fedpp.protocol.run_contract import NO_HASH, RunContract
from fedpp.protocol.run_statements import (
    OF_ROUND,
    Purpose,
    RunStatement,
    SignedStatement,
    require_coin,
    run_id,
)

MAX_REPORTS = 8  # of a member: one at the end of a run, and again where more rounds followed
MAX_NEW = 256  # statements of a member in one list: others follow in another


class StatementChains:
    """The members' chains under one contract."""

    def __init__(self, contract: RunContract, certificates: Mapping[str, Certificate]) -> None:
        """Start without statements; the certificates are those that `RunContract.certified` returned."""
        self.contract, self._certificates = contract, certificates
        self._chains = {site: _Chain(contract) for site in contract.names}

    @classmethod
    def from_json(cls, contract: RunContract, certificates: Mapping[str, Certificate], text: str) -> Self:
        """Read what `to_json` returned and verify it anew; raise `FederationError` for anything else."""
        chains = cls(contract, certificates)
        chains._add(listed(text))
        return chains

    @classmethod
    def restored(
        cls, contract: RunContract, certificates: Mapping[str, Certificate], statements: Iterable[SignedStatement]
    ) -> Self:
        """Return the chains of statements that this program verified before it stored them, in each site's order.

        Their signatures are not verified again, which would take a third of a millisecond each.
        """
        chains = cls(contract, certificates)
        for signed in statements:
            chains._chains[contract.member(signed.statement.site).site].append(signed)
        return chains

    def to_json(self) -> str:
        """Return all statements as one JSON list, those of a site in order."""
        return f"[{','.join(signed.to_json() for signed in self.after({}))}]"

    def take(self, statements: Sequence[SignedStatement]) -> list[SignedStatement]:
        """Add statements, in any order, and return those that were not known; raise, and add none, if one is refused.

        Raises `MissingLinksError` where others come before them, `ForkError` for a second one where a site may sign
        one, and `FederationError` for a list that is too long, names a place twice, or has one that is not genuine.
        """
        self.require_few(len(statements))
        return self._add(statements)

    def require_few(self, count: int, lists: int = 1) -> None:
        """Raise `FederationError` for more statements than as many lists have, before one of them is even parsed."""
        most = lists * MAX_NEW * self.contract.n
        if count > most:
            raise FederationError(f"a list of {count} statements is too long: at most {most} in one request")

    def of(self, purpose: Purpose, number: int = 0) -> dict[str, SignedStatement]:
        """Return the statements of a purpose and round by site, as far as they are known."""
        key = purpose, number
        return {site: chain.by_purpose[key] for site, chain in self._chains.items() if key in chain.by_purpose}

    def all_of(self, purpose: Purpose, number: int = 0) -> dict[str, SignedStatement]:
        """Return the statements of a purpose and round of all members; raise `MissingLinksError` if one has none."""
        found = self.of(purpose, number)
        missing = {site: place for site, place in self.places.items() if site not in found}
        if missing:
            raise MissingLinksError(missing)
        return found

    def newest(self, site: str) -> SignedStatement | None:
        """Return the last statement of a site that is known."""
        chain = self._chains[self.contract.member(site).site].signed
        return chain[-1] if chain else None

    @property
    def places(self) -> dict[str, int]:
        """Return the place of each site's next statement."""
        return {site: len(chain.signed) for site, chain in self._chains.items()}

    def after(self, places: Mapping[str, int]) -> list[SignedStatement]:
        """Return the statements of each site from this place on; all of a site that is not named."""
        return [signed for site, chain in self._chains.items() for signed in chain.signed[places.get(site, 0) :]]

    def run_id(self) -> str:
        """Return the run's name; raise `MissingLinksError` unless all members' coins are known."""
        coins = self.all_of("coin")  # each follows the site's acceptance
        return run_id(self.contract.digest, self.of("accept"), coins)

    def _add(self, statements: Sequence[SignedStatement]) -> list[SignedStatement]:
        new = self._unknown(statements)
        for signed in new:
            self._verify(signed)
        before = self.places
        try:
            for signed in new:
                self._chains[signed.statement.site].append(signed)
            self._require_run(new)
        except FederationError:
            for site, place in before.items():
                self._chains[site].truncate(place)
            raise
        return new

    def _unknown(self, statements: Sequence[SignedStatement]) -> list[SignedStatement]:
        """Return those that are not known, in the order of their chains; raise for gaps and for second ones."""
        given: dict[tuple[str, int], SignedStatement] = {}
        for signed in statements:
            of = signed.statement
            if of.contract != self.contract.digest or of.site not in self._chains:
                raise FederationError(
                    f"a statement ({of.purpose}) of {of.site} is of another contract, or another site"
                )
            if (of.site, of.place) in given:
                raise FederationError(f"a list of statements names place {of.place} of {of.site} twice")
            given[of.site, of.place] = signed
        new = {key: signed for key, signed in given.items() if not self._is_known(signed)}
        missing = {site: place for site, place in self.places.items() if _has_gap(site, place, new)}
        if missing:
            raise MissingLinksError(missing)
        return [new[key] for key in sorted(new)]

    def _is_known(self, signed: SignedStatement) -> bool:
        chain, place = self._chains[signed.statement.site].signed, signed.statement.place
        if place >= len(chain):
            return False
        if chain[place].digest != signed.digest:
            self._verify(signed)
            raise _fork(chain[place], signed)
        return True

    def _verify(self, signed: SignedStatement) -> None:
        signed.require(self._certificates[signed.statement.site])

    def _require_run(self, new: Sequence[SignedStatement]) -> None:
        """Raise `FederationError` unless new statements name the run that all coins make."""
        named = {signed.statement.run for signed in new} - {NO_HASH}
        if named and named != {self.run_id()}:
            raise FederationError(f"statements name run {sorted(named)!r:.100}, the contract's is {self.run_id()}")


def listed(text: str) -> list[SignedStatement]:
    """Read a JSON list of statements, unverified; raise `FederationError` for anything else."""
    try:
        values = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        values = None
    if not isinstance(values, list):
        raise FederationError("the statements of the run are damaged: use one fedpp everywhere")
    return [SignedStatement.from_mapping(value) for value in values]


class _Chain:
    """One member's statements, in order, and by purpose and round."""

    def __init__(self, contract: RunContract) -> None:
        self.signed: list[SignedStatement] = []
        self.by_purpose: dict[tuple[Purpose, int], SignedStatement] = {}
        self._contract = contract

    def append(self, signed: SignedStatement) -> None:
        """Add the next statement; raise `ForkError` or `FederationError` if it cannot follow those before."""
        of = signed.statement
        for purpose in (of.purpose, *({"release", "burn"} - {of.purpose} if of.purpose in {"release", "burn"} else ())):
            if (purpose, of.round) in self.by_purpose:
                raise _fork(self.by_purpose[purpose, of.round], signed)
        self._require_link(of)
        self._require_order(of)
        if of.purpose == "coin":
            require_coin(self.by_purpose["accept", 0], signed)
        self.signed.append(signed)
        self.by_purpose[of.purpose, of.round] = signed

    def truncate(self, place: int) -> None:
        """Remove the statements from this place on."""
        for signed in self.signed[place:]:
            del self.by_purpose[signed.statement.purpose, signed.statement.round]
        del self.signed[place:]

    def _require_link(self, of: RunStatement) -> None:
        if not self.signed:
            return  # place 0 names none before it
        last = self.signed[-1].statement
        if of.previous != last.digest:
            raise FederationError(f"place {of.place} of {of.site} follows another statement than the one before it")
        if of.log_records < last.log_records:
            raise FederationError(f"the audit log of {of.site} went back to {of.log_records} records: it was cut")
        if of.log_records == last.log_records and of.log_head != last.log_head:
            raise FederationError(f"the audit log of {of.site} has two records {of.log_records}: it was changed")

    def _require_order(self, of: RunStatement) -> None:
        first, last = self._contract.start_round, self._contract.last_round
        if of.purpose == "start" and of.round != first:
            raise FederationError(f"{of.site} starts from round {of.round}, the contract from round {first}")
        if of.purpose in OF_ROUND and not first < of.round <= last:
            raise FederationError(f"{of.site} signed round {of.round}, the contract has {first + 1} to {last}")
        if not self._is_due(of):
            raise FederationError(f"{of.site} signed {of.purpose} of round {of.round} out of order")
        named = self._contract.parent.base if self._contract.parent else NO_HASH
        if of.purpose == "coin" and of.base not in {NO_HASH, named}:
            raise FederationError(f"{of.site} showed a coin for another base than the contract's, {named[:16]}")
        if of.purpose == "report" and not (self._contract.reporting == "per-site" and first <= of.round <= last):
            raise FederationError(f"{of.site} signed a report of round {of.round}, and the contract has none")
        if of.purpose == "report" and sum(purpose == "report" for purpose, _ in self.by_purpose) >= MAX_REPORTS:
            raise FederationError(
                f"{of.site} signed more than {MAX_REPORTS} reports, each as long as all of a run's are"
            )
        if of.purpose == "step" and len(of.facts["counts"]) > (most := longest_text(self._contract.spec.task)):
            raise FederationError(f"the counts that {of.site} signed are longer than {most} characters: no task's are")

    def _is_due(self, of: RunStatement) -> bool:
        """Tell whether a site may sign this after all that it signed before."""
        if of.purpose == "accept" or ("abandon", 0) in self.by_purpose:
            return not self.signed
        if of.purpose == "coin":
            return ("accept", 0) in self.by_purpose
        if of.purpose == "start":
            return ("coin", 0) in self.by_purpose
        if of.purpose == "abandon":
            return bool(self.signed) and all(purpose != "release" for purpose, _ in self.by_purpose)
        if of.purpose == "release" and ("train", of.round) not in self.by_purpose:
            return False
        return ("start", self._contract.start_round) in self.by_purpose


def _has_gap(site: str, place: int, new: Iterable[tuple[str, int]]) -> bool:
    """Tell whether places of a site are new that do not follow those before `place` one by one."""
    given = sorted(at for of, at in new if of == site)
    return given != list(range(place, place + len(given)))


def _fork(one: SignedStatement, other: SignedStatement) -> ForkError:
    return ForkError(one.statement.site, one.to_json(), other.to_json())
