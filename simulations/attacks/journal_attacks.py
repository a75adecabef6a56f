"""Attacks on a vault's memory: its folder of runs is taken back to an earlier day, copied, or opened twice."""

import os
import shutil
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from sqlite3 import Connection, connect

from fedpp.errors import FedppError
from fedpp.protocol.run_statements import SignedStatement
from fedpp.protocol.statement_chains import StatementChains
from sites.vault.masked_runs import run_journal
from sites.vault.masked_runs.accepted_contract import AcceptedContract
from sites.vault.masked_runs.run_journal import RunJournal

from .attack import Attack, granted, replaced, share
from .scene.laboratory import Hospital, Laboratory
from .scene.relaying_coordinator import Coordinator, contract_of

OTHER_SUM = "1" * 64  # its hash


def rollback(laboratory: Laboratory) -> float:
    """A vault's folder is taken back to before its release; it releases for another sum, which peers should take."""
    victim, *others = cohort = laboratory.hospitals(3)
    run = Coordinator(cohort, contract_of(cohort)).begin()
    run.train(1)
    copy = _copied(victim)
    first, _ = victim.vault.release(run.digest, 1, run.statements, run.sum().hash)
    _restored(victim, copy)
    second, _ = victim.vault.release(run.digest, 1, run.statements, OTHER_SUM)
    return share([_takes_both(of, run, first, second) for of in others])


def clone(laboratory: Laboratory) -> float:
    """A vault runs twice, from a copy of its folder, and both mask an update of one round, which peers should take."""
    victim, *others = cohort = laboratory.hospitals(3)
    run = Coordinator(cohort, contract_of(cohort)).begin()
    copy = _copied(victim)
    _, first = run.trained(victim, 1)
    _restored(victim, copy)
    _, second = run.trained(victim, 1)
    for of in others:
        run.keep([run.trained(of, 1)[1]])
    return share([_takes_both(of, run, first, second) for of in others])


def own_later_statement(laboratory: Laboratory) -> float:
    """A restored vault is shown what it signed since, and asked to continue all the same."""
    victim, *_ = cohort = laboratory.hospitals(3)
    run = Coordinator(cohort, contract_of(cohort)).begin()
    run.train(1)
    copy, total = _copied(victim), run.sum()
    run.release(1)
    _restored(victim, copy)
    return float(granted(run.stepped, victim, 1, total.low, total.carry))


def blind_to_forks() -> AbstractContextManager[None]:
    """Let vaults skip a statement whose place they know, whatever it says."""

    def is_known(of: StatementChains, signed: SignedStatement) -> bool:
        return signed.statement.place < of.places[signed.statement.site]

    return replaced((StatementChains, "_is_known", is_known))


def blind_to_itself() -> AbstractContextManager[None]:
    """Let a vault not see that it signed more than its journal says."""
    return replaced((AcceptedContract, "_require_own", lambda *_: None))


def two_processes(laboratory: Laboratory) -> float:
    """A second vault is started on the folder of runs of a vault that runs."""
    hospital = laboratory.hospital("East")
    with suppress(FedppError):
        RunJournal.open(hospital.runs, hospital.site).close()
        return 1.0
    return 0.0


def unlocked_folder() -> AbstractContextManager[None]:
    """Let a folder of runs be opened by several vaults, and its database too: either lock alone stops it."""

    def opened(folder: Path) -> int:
        return os.open(folder, os.O_RDONLY)

    def connected(path: Path) -> Connection:
        return connect(path, isolation_level=None, check_same_thread=False)

    return replaced((run_journal, "lock_folder", opened), (run_journal, "_connected", connected))


def _copied(victim: Hospital) -> Path:
    """Copy a vault's folder of runs, with its audit log, as a backup does."""
    copy = victim.folder / "copy"
    victim.stop()
    shutil.copytree(victim.runs, copy)
    shutil.copy(victim.log, copy / victim.log.name)
    victim.start()
    return copy


def _restored(victim: Hospital, copy: Path) -> None:
    """Put the copy in the place of the folder, and start the vault again."""
    victim.stop()
    shutil.rmtree(victim.runs)
    shutil.copytree(copy, victim.runs)
    shutil.move(victim.runs / victim.log.name, victim.log)
    victim.start()


def _takes_both(of: Hospital, run: Coordinator, first: str, second: str) -> bool:
    """Tell whether a vault still answers when it has been shown two statements in one place."""
    shown = ([*run.statements, statement] for statement in (first, second))
    return all(granted(of.vault.release, run.digest, 1, statements, OTHER_SUM) for statements in shown)


JOURNAL_ATTACKS = {
    "rollback": Attack("G1", rollback, blind_to_forks),
    "rollback-shown": Attack("G1", own_later_statement, blind_to_itself),
    "clone": Attack("G1", clone, blind_to_forks),
    "fork": Attack("G1", two_processes, unlocked_folder),
}
