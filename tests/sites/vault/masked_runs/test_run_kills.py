"""A vault that dies at any write resumes from its journal to the same bits; an older journal is found out."""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import ROOT
from run_hospitals import Coordinator, Hospital, contract_of, opened

from fedpp.errors import FederationError, ForkError, VaultError
from sites.vault.masked_runs import run_refusals
from sites.vault.masked_runs.run_journal import RunJournal

WRITES = 24  # of one site in a run of one round of training: others' statements, its own, and that it forgets its key
ARRAYS = 5  # that it keeps: four states and one update
KILLED = """
import os, signal, sys
from pathlib import Path
from run_hospitals import Coordinator, contract_of, hospitals
from sites.vault.masked_runs.run_journal import RunJournal

class Killed(RunJournal):
    left = int(sys.argv[2])

    def commit(self):
        Killed.left -= 1
        if Killed.left == 0 and sys.argv[3] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        super().commit()
        if Killed.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def renamed(event, arguments):
    if event == "os.rename" and str(cohort[1].folder) in str(arguments[1]):
        Killed.left -= 1
        if Killed.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

cohort = hospitals(Path(sys.argv[1]))
if sys.argv[3] == "renaming":
    sys.addaudithook(renamed)
else:
    cohort[1].restart(Killed)
Coordinator(cohort, contract_of(cohort, rounds=1)).begin().finish()
"""


class PowerLossError(Exception):
    """The vault is gone."""


class DyingJournal(RunJournal):
    """A journal whose process dies at each of its writes, once before it is on the disk and once right after.

    It dies once more while it writes an array, of which a part is left behind.
    """

    commits = 0
    content: ClassVar[list[str]] = []  # of the database, as it is on the disk
    kept: ClassVar[Counter[str]] = Counter()  # tries to keep an array

    def commit(self) -> None:
        """Write on the second try, and die on both."""
        content = list(self._database.iterdump())
        if content == DyingJournal.content:  # nothing new is written
            super().commit()
            return
        DyingJournal.commits += 1
        if DyingJournal.commits % 2 == 0:
            super().commit()
            DyingJournal.content = content
        raise PowerLossError

    def keep(self, *content: bytes | memoryview) -> str:
        """Write an array on the third try, and die on all until then."""
        digest = sha256(b"".join(content)).hexdigest()
        DyingJournal.kept[digest] += 1
        if DyingJournal.kept[digest] == 2:
            (self.folder / "arrays" / f".{digest}.cut_short.tmp").write_bytes(bytes(content[0])[:7])
        if DyingJournal.kept[digest] < 3:
            raise PowerLossError
        name = super().keep(*content)
        if DyingJournal.kept[digest] == 3:
            raise PowerLossError
        return name


class Reviving:
    """A vault that is started again as often as it dies, and is asked the same again."""

    def __init__(self, of: Hospital) -> None:
        self.of = of

    def __getattr__(self, name: str) -> Any:
        def ask(*arguments: Any) -> Any:
            while True:
                try:
                    return getattr(self.of.vault, name)(*arguments)
                except PowerLossError:
                    self.of.restart(DyingJournal)

        return ask


def weights(cohort: list[Hospital]) -> str:
    """Return the digest of the weights that a run ends with, which all its hospitals have."""
    stages = Coordinator(cohort, contract_of(cohort, rounds=1)).begin().finish()
    assert len({stage.to_bytes() for stage in stages}) == 1
    return stages[0].state.digest


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the digest of the weights of a run without a death."""
    with opened(tmp_path_factory.mktemp("undisturbed")) as cohort:
        return weights(cohort)


def test_a_death_before_and_after_each_write_changes_no_bit(cohort: list[Hospital], undisturbed: str):
    """Asked again, a vault that starts anew each time comes to the same weights."""
    DyingJournal.commits = 0
    DyingJournal.kept.clear()
    dying = cohort[1]
    dying.restart(DyingJournal)
    shown = Hospital.seen(dying, Reviving(dying))
    assert weights([cohort[0], shown, cohort[2]]) == undisturbed
    assert (DyingJournal.commits, len(DyingJournal.kept)) == (2 * WRITES, ARRAYS)
    dying.restart()
    named = {name for table in ("updates", "stages") for (name,) in dying.journal.rows(table, "file") if name}
    assert {path.name for path in (dying.folder / "arrays").iterdir()} == named  # no write that did not end


@pytest.mark.parametrize(
    ("write", "moment"),
    [
        *((7, "before"), (9, "after"), (11, "before"), (13, "after"), (3, "renaming")),
        *(
            pytest.param(*of, marks=pytest.mark.slow)
            for of in (
                *((2, "after"), (8, "before"), (10, "after"), (22, "before")),
                *((number, "renaming") for number in (1, 2, 4, 5, 6)),
            )
        ),
    ],
)
def test_a_killed_process_and_a_coordinator_that_lost_everything_go_on(
    tmp_path: Path, undisturbed: str, write: int, moment: str
):
    """After SIGKILL the vaults' journals are enough: a new coordinator asks them and ends the run alike."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(write), moment]
    assert subprocess.run(command, env=environment, check=False, cwd=ROOT).returncode == -signal.SIGKILL
    with opened(tmp_path) as cohort:
        run = Coordinator(cohort, contract_of(cohort, rounds=1))
        for of in cohort:
            run.keep(of.vault.where(run.contract.nonce))
        stages = run.begin().finish()
        assert {stage.state.digest for stage in stages} == {undisturbed}


def restored(of: Hospital, copy: Path) -> None:
    """Put an older copy of a hospital's folder of runs back."""
    of.journal.close()
    shutil.rmtree(of.folder)
    shutil.copytree(copy, of.folder)
    of.open()


def copied(of: Hospital, to: Path) -> Path:
    """Copy a hospital's folder of runs, its vault ended meanwhile."""
    of.journal.close()
    shutil.copytree(of.folder, to)
    of.open()
    return to


def test_peers_find_out_a_restored_journal_as_a_fork(cohort: list[Hospital], tmp_path: Path):
    """What it signs again in a place where it has signed is a proof against it."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
    first = cohort[0]
    copy = copied(first, tmp_path / "copy")
    run.train(1)
    before = [text for text in run.statements if '"site":"East"' not in text]
    own = [text for text in run.statements if '"site":"East"' in text]
    cohort[1].vault.release(run.digest, 1, run.statements, run.sum().hash)
    restored(first, copy)
    _, second = run.trained(Hospital.seen(first, Forgetful(first, before)), 1)
    assert second not in own
    with pytest.raises(ForkError, match="East signed two statements") as proof:
        cohort[1].vault.release(run.digest, 1, [second], run.sum().hash)
    assert set(proof.value.proof) == {own[-1], second}


class Forgetful:
    """A restored vault, which is not shown what it has signed."""

    def __init__(self, of: Hospital, statements: list[str]) -> None:
        self.of, self.statements = of, statements

    def train(self, digest: str, number: int, _: list[str], *arrays: Any) -> Any:
        return self.of.vault.train(digest, number, self.statements, *arrays)

    def stage(self, digest: str) -> bytes:
        return self.of.vault.stage(digest)


def test_a_restored_vault_that_sees_its_own_statements_signs_nothing_more(cohort: list[Hospital], tmp_path: Path):
    """It leaves the run for good, also after another restart; a forged statement of it does not stop it."""
    run = Coordinator(cohort, contract_of(cohort, rounds=1)).begin()
    first = cohort[0]
    copy = copied(first, tmp_path / "copy")
    run.train(1)
    restored(first, copy)
    forged = run.statements[-3].replace('"signature":"', '"signature":"00')[:-3] + '"}'
    with pytest.raises(FederationError):
        first.vault.train(run.digest, 1, [forged])
    with pytest.raises(VaultError, match=run_refusals.RESTORED):
        first.vault.train(run.digest, 1, run.statements)
    first.restart()
    for phase in (first.vault.coin, first.vault.start):
        assert phase(run.digest, [])  # what it has signed it repeats
    with pytest.raises(VaultError, match=run_refusals.RESTORED):
        first.vault.train(run.digest, 1, [], first.update(1), first.logits(1, "validation"))
