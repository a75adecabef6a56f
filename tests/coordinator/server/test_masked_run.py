"""Masked runs at the coordinator: phases, records, reports, crashes, and damage."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from coordinator_runs import Crashed
from flwr.app import RecordDict
from masked_cohort import CARD, CrashingGrid, MaskedGrid, Node, config, federate, log_of, model_of
from run_hospitals import DOMAIN, Hospital, opened

from coordinator.__main__ import main
from coordinator.server import app
from coordinator.server.progress import Progress
from coordinator.server.run_state import RunState
from fedpp.aggregation.run_stage import RunStage
from fedpp.config.contract_limits import RunLimits
from fedpp.errors import FederationError
from fedpp.keys.sealed_stage import SealedStage
from fedpp.learning.metrics import metrics, operating_point
from fedpp.protocol import masked_messages as masked
from fedpp.protocol.counts import Counts
from fedpp.protocol.run_record import RECORD, FederationRecord
from fedpp.protocol.run_statements import SignedStatement
from fedpp.reporting.report import load_report

EXPIRES = 1_801_000_000
Usual = Callable[[], RecordDict]


def fixed(out: Path) -> Path:
    """Return a results folder whose run has a fixed nonce and end, so that its weights can be repeated."""
    RunState(out).fix("ab" * 32, EXPIRES)
    return out


def state_of(out: Path) -> bytes:
    """Return the weights and moments of a run's result."""
    return SealedStage.unseal(DOMAIN.state_sealer(), [model_of(out).sealed]).stage.state.to_bytes()


def test_a_run_ends_with_a_certified_model_and_the_figures_of_all_sites(cohort: list[Hospital], tmp_path: Path) -> None:
    """Two rounds of training and two closing ones: the model is the members' end state, the counts are of them all."""
    out = tmp_path / "out"
    record = federate([Node(of) for of in cohort], out)
    model = model_of(out)
    model.require(CARD.ca_key)
    end = RunStage.from_bytes(cohort[0].vault.stage(model.contract.digest))
    assert SealedStage.unseal(DOMAIN.state_sealer(), [model.sealed]).stage == end
    assert [(of.number, of.sites) for of in record.rounds] == [(1, record.certified), (2, record.certified)]
    assert record.test_counts() == end.counts
    assert (record.test, record.rounds[0].validation) == ({}, {})
    assert record.rounds[0].together.examples == 3 * cohort[0].dataset.counts()["validation"]
    assert (record.contract, record.certified) == (model.contract.digest, ("East", "North", "South"))
    assert FederationRecord.load(out / RECORD) == record
    assert Progress.load(RunState(out).progress).phase == "completed"
    assert not list((out / "run" / "updates").iterdir())


def test_a_balanced_run_records_the_training_labels_of_all_sites(
    cohort: list[Hospital], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Log, record and report have their sum, and the weights from it."""
    out = tmp_path / "out"
    record = federate([Node(of) for of in cohort], out, positive_weight=0.0)
    assert record.labels == (9, 9)
    assert FederationRecord.load(out / RECORD) == record
    line = "training labels no 9, yes 9; weights 1, 1 from round 2"
    assert f"round 1: {line}" in log_of(out)
    assert main(["report", str(out)]) == 0
    assert load_report(out / "report.json").settings["balanced loss"] == line
    assert line in capsys.readouterr().err + (out / "report.html").read_text()


def test_a_masked_run_is_reported_from_the_figures_of_all_sites(
    cohort: list[Hospital], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No site has figures of its own in it; the summary, the page and the chosen round's operating point need none."""
    out = tmp_path / "out"
    record = federate([Node(of) for of in cohort], out, monitor="loss")
    assert main(["report", str(out)]) == 0
    report = load_report(out / "report.json")
    assert report.final == metrics(record.test_counts())
    assert [of.by_site for of in report.rounds] == [{}, {}]
    assert [site.test for site in report.sites] == [None] * 3
    chosen = record.rounds[record.chosen - 1] if record.chosen else record.rounds[-1]
    tested = record.test_counts()
    assert isinstance(chosen.counts, Counts)
    assert isinstance(tested, Counts)
    assert report.operating_point == operating_point(chosen.counts, tested, 0.9)
    assert "on 9 test sequences" in (out / "report.html").read_text()
    assert "9 test sequences" in capsys.readouterr().out


def test_a_report_says_that_two_sites_hide_nothing_from_each_other(tmp_path: Path) -> None:
    """Such a run needs the consent of both, and its log and report say what it does not protect."""
    out = tmp_path / "out"
    with opened(tmp_path, 2) as cohort:
        nodes = [Node(of) for of in cohort]
        with pytest.raises(FederationError, match="two sites hide nothing from each other, and two-sites is not"):
            federate(nodes, out, sites=2, rounds=1, wait_seconds=0.1)
        for of in cohort:
            of.limits = RunLimits(two_sites="accepted")
        record = federate(nodes, out, sites=2, rounds=1)
    assert record.certified == ("East", "North")
    assert "two sites hide nothing from each other" in log_of(out)
    assert main(["report", str(out)]) == 0
    assert any(
        line.startswith("TWO HOSPITALS HIDE NOTHING")
        for line in load_report(out / "report.json").privacy.does_not_protect
    )


@pytest.mark.parametrize("site", [0, 2])
def test_a_false_tag_is_found_and_named(cohort: list[Hospital], tmp_path: Path, site: int) -> None:
    """A member states the tag of another vector: nothing is stepped, and the update stays as a proof."""
    nodes, out = [Node(of) for of in cohort], tmp_path / "out"

    def lies(_: RecordDict, usual: Usual) -> RecordDict:
        reply = usual()
        of = SignedStatement.from_json(masked.statement_of(reply)).statement
        false = of.changed(facts={**of.facts, "tag": "7"})
        signed = SignedStatement.by(cohort[site].site.identity.sign, false)
        return masked.stated(signed.to_json(), bytes.fromhex(masked.seed_of(reply)))

    nodes[site].instead[masked.RELEASE] = lies
    for _ in range(2):
        with pytest.raises(FederationError, match=f"^{cohort[site].name} stated a false tag of its masked update"):
            federate(nodes, out)
    assert [node.asked.count(masked.STEP) for node in nodes] == [0, 0, 0]
    assert len(list((out / "run" / "updates").iterdir())) == 3


def test_damage_on_the_disk_is_found_before_the_hash_is_stated(cohort: list[Hospital], tmp_path: Path) -> None:
    """The coordinator requests a damaged update again, and the run ends as it would have."""
    nodes, out = [Node(of) for of in cohort], tmp_path / "out"
    nodes[2].instead[masked.RELEASE] = lambda *_: None
    with pytest.raises(FederationError, match="still missing is South"):
        federate(nodes, out, wait_seconds=0.1, round_seconds=0.1)
    damaged = out / "run" / "updates" / "1"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    nodes[2].instead.clear()
    federate(nodes, out)
    assert [node.asked.count(masked.TRAIN) for node in nodes] == [4, 5, 4]


class CrashingDisk:
    """Disk of this process, whose writes fail once `left` of them were synced: the last one is on it all the same."""

    def __init__(self) -> None:
        self.left = 10**9
        self._sync = os.fsync

    def sync(self, file: int) -> None:
        self._sync(file)
        self.left -= 1
        if self.left < 0:
            raise Crashed


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_resumes_after_any_crash_to_the_same_model(tmp_path: Path, seed: int) -> None:
    """After a kill between any request and reply the next coordinator resumes, and the result is the same."""
    with opened(tmp_path / "whole") as cohort:
        federate([Node(of) for of in cohort], fixed(tmp_path / "whole out"))
    out, generator, crashes = fixed(tmp_path / "out"), random.Random(seed), 0
    with opened(tmp_path / "crashing") as cohort:
        nodes = [Node(of) for of in cohort]
        while not (out / RECORD).exists():
            try:
                app.federate(CrashingGrid(nodes, generator.randrange(40)), config(out))
            except Crashed:
                crashes += 1
    assert crashes > 3
    assert state_of(out) == state_of(tmp_path / "whole out")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_resumes_after_a_crash_at_any_write(
    cohort: list[Hospital], tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coordinator and vaults end at a write of either, and go on: no request depended on what was not on the disk."""
    out, generator, crashes, disk = tmp_path / "out", random.Random(seed), 0, CrashingDisk()
    monkeypatch.setattr(os, "fsync", disk.sync)
    nodes = [Node(of) for of in cohort]
    while not (out / RECORD).exists():
        disk.left = generator.randrange(1, 25)
        try:
            app.federate(MaskedGrid(nodes), config(out))
        except Crashed:
            crashes += 1
            disk.left = 10**9
            for of in cohort:
                of.restart()
    assert crashes > 3
    model_of(out).require(CARD.ca_key)


def test_a_coordinator_that_lost_its_journal_takes_it_from_the_members(cohort: list[Hospital], tmp_path: Path) -> None:
    """Its disk came from a backup: the members are at another round, and it fetches what they signed."""
    nodes, out = [Node(of) for of in cohort], tmp_path / "out"
    record = federate(nodes, out)
    journal = out / "run" / "statements"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:10]) + lines[10][:-40])
    (out / RECORD).unlink()
    again = federate(nodes, out)
    assert (again.counts, again.chosen, again.certified) == (record.counts, record.chosen, record.certified)
    assert "round 1: update: the members have " in log_of(out)
    assert state_of(out)


def test_a_damaged_journal_is_named_and_can_be_taken_from_the_members(cohort: list[Hospital], tmp_path: Path) -> None:
    """A line that is none of a journal's is refused; without the file the run resumes to the same figures."""
    nodes, out = [Node(of) for of in cohort], tmp_path / "out"
    record = federate(nodes, out, rounds=1)
    journal = out / "run" / "statements"
    (out / RECORD).unlink()
    for damage in (b"{}\n", b"5\n", b'{"round":1}\n', b'{"signed"\n'):
        with journal.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(damage)
        with pytest.raises(FederationError, match="statements is damaged: move it away, and resume"):
            federate(nodes, out, rounds=1)
        with journal.open("r+b") as file:
            file.truncate(journal.stat().st_size - len(damage))
    journal.unlink()
    again = federate(nodes, out, rounds=1)
    assert (again.counts, again.chosen, again.certified) == (record.counts, record.chosen, record.certified)
