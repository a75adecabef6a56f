"""Stages of a run at one vault: the states that it computed or was given, on its disk and, the newest, in memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedpp.aggregation.run_stage import RunStage
from fedpp.errors import VaultError
from fedpp.protocol.state_certificate import LACKS_STATE

from .accepted_contract import AcceptedContract
from .run_site import RunSite


class RunStages:
    """The newest stage of each contract, and the chosen one for as long as its test may follow."""

    def __init__(self, of: RunSite) -> None:
        """Read nothing yet."""
        self._of = of
        self._newest: dict[str, tuple[str, RunStage]] = {}

    def newest(self, accepted: AcceptedContract) -> tuple[str, RunStage]:
        """Return digest and stage; raise `VaultError` if there is none yet."""
        if accepted.digest not in self._newest:
            rows = self._of.journal.rows("stages", "digest, file", "round DESC", contract=accepted.digest)
            if not rows:
                accepted.require_active()
                raise VaultError(LACKS_STATE)
            self._newest = {accepted.digest: (rows[0][0], RunStage.from_bytes(self._of.journal.read(rows[0][1])))}
        return self._newest[accepted.digest]

    def at(self, accepted: AcceptedContract, number: int) -> tuple[str, RunStage] | None:
        """Return digest and stage after a round, if it is still there."""
        row = self._of.journal.row("stages", "digest, file", contract=accepted.digest, round=number)
        return None if row is None else (row[0], RunStage.from_bytes(self._of.journal.read(row[1])))

    def chosen(self, accepted: AcceptedContract, stage: RunStage) -> RunStage | None:
        """Return the stage of a stage's chosen state, also from the contracts that this one revises."""
        found = self.at(accepted, stage.chosen)
        while found is None and (parent := accepted.contract.parent) is not None:
            if self._of.journal.row("contracts", "digest", digest=parent.contract) is None:
                return None
            accepted = AcceptedContract.load(self._of, parent.contract)
            found = self.at(accepted, stage.chosen)
        return None if found is None else found[1]

    def known(self, accepted: AcceptedContract) -> int | None:
        """Return the number of the newest stage, or None."""
        rows = self._of.journal.rows("stages", "round", "round DESC", contract=accepted.digest)
        return int(rows[0][0]) if rows else None

    @contextmanager
    def adding(self, accepted: AcceptedContract, stage: RunStage, chosen: RunStage | None = None) -> Iterator[str]:
        """Store a stage, and what is written within, as one; yield its digest.

        Of earlier stages the base is kept, for repeated requests, and the chosen one, which may be given.
        """
        journal, key = self._of.journal, self._of.digest_key
        new = {each.number: each for each in (chosen, stage) if each is not None}
        rows = {number: (each.digest(key), journal.keep(each.to_bytes())) for number, each in new.items()}
        kept = {stage.chosen, stage.number - 1} - rows.keys()
        with accepted.writing():
            for (number,) in journal.rows("stages", "round", contract=accepted.digest):
                if number not in kept:
                    journal.delete("stages", contract=accepted.digest, round=number)
            for number, (digest, file) in rows.items():
                journal.insert("stages", contract=accepted.digest, round=number, digest=digest, file=file)
            yield rows[stage.number][0]
        self._newest = {accepted.digest: (rows[stage.number][0], stage)}
        journal.remove_unnamed()
