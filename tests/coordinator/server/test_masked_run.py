"""Masked runs at the coordinator: phases, records, crashes, pauses, and replies that are refused."""

import os
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coordinator_runs import Crashed
from flwr.app import Array, ConfigRecord, Message, RecordDict
from masked_cohort import CARD, MaskedGrid, Node, config, federate, log_of, release
from run_hospitals import DOMAIN, Hospital, opened

from coordinator.__main__ import main
from coordinator.server import app
from coordinator.server.masked import cohort_requests
from coordinator.server.progress import Progress
from coordinator.server.run_state import RunState, StoppedError
from fedpp.aggregation.run_stage import RunStage
from fedpp.config.contract_limits import RunLimits
from fedpp.errors import FederationError, ForkError
from fedpp.keys.sealed_stage import SealedStage
from fedpp.learning.metrics import metrics, operating_point
from fedpp.protocol import masked_messages as masked
from fedpp.protocol import messages
from fedpp.protocol.certified_model import CertifiedModel
from fedpp.protocol.counts import Counts
from fedpp.protocol.run_record import RECORD, FederationRecord
from fedpp.protocol.run_statements import SignedStatement
from fedpp.reporting.report import load_report

EXPIRES = 1_801_000_000
Usual = Callable[[], RecordDict]


@pytest.fixture(autouse=True)
def _quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort_requests, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(cohort_requests, "REPEAT_SECONDS", 0.02)


@pytest.fixture
def cohort(tmp_path: Path) -> Iterator[list[Hospital]]:
    """Return three hospitals."""
    with opened(tmp_path) as made:
        yield made


def fixed(out: Path) -> Path:
    """Return a results folder whose run has a fixed nonce and end, so that its weights can be repeated."""
    RunState(out).fix("ab" * 32, EXPIRES)
    return out


def model_of(out: Path) -> CertifiedModel:
    return CertifiedModel.from_bytes((out / "model.sealed").read_bytes())


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


class CrashingGrid(MaskedGrid):
    """Grid that fails after so many calls of the coordinator; a reply that was pulled then is lost."""

    def __init__(self, nodes: Iterable[Node], calls: int) -> None:
        super().__init__(list(nodes))
        self.left = calls

    def _call(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crashed

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self._call()
        pushed = super().push_messages(messages)
        self._call()
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        pulled = super().pull_messages(message_ids)
        self._call()
        return pulled


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


def test_a_run_pauses_for_a_site_that_is_offline_and_resumes_when_it_is_back(
    cohort: list[Hospital], tmp_path: Path
) -> None:
    """In each phase: the site is named, nothing is lost, and the run ends as if it had been there."""
    out, nodes = tmp_path / "out", [Node(of) for of in cohort]
    grid = MaskedGrid(nodes)
    for kind in (masked.REVEAL_COIN, masked.TRAIN, masked.RELEASE, masked.STEP):
        nodes[2].instead[kind] = lambda *_: leaves(grid, 3)
        with pytest.raises(FederationError, match=r"still missing is South \(.*see that it runs, and resume"):
            app.federate(grid, config(out, wait_seconds=0.1, round_seconds=0.1))
        assert Progress.load(RunState(out).progress).phase == "failed"
        grid.away.clear()
        nodes[2].instead.clear()
    record = app.federate(grid, config(out))
    assert record.certified == ("East", "North", "South")
    assert log_of(out).count("paused, 0 s at most: South") == 4
    assert [node.asked.count(masked.TRAIN) for node in nodes] == [4, 4, 5]


def leaves(grid: MaskedGrid, node: int) -> None:
    """Take a node away without a reply."""
    grid.away.add(node)


def test_a_site_that_comes_back_during_the_pause_is_asked_again(cohort: list[Hospital], tmp_path: Path) -> None:
    """The run waits for it, and continues without an operator."""
    nodes = [Node(of) for of in cohort]
    grid, out, looks = MaskedGrid(nodes), tmp_path / "out", [0]
    known = grid.get_node_ids

    def node_ids() -> list[int]:
        looks[0] += bool(grid.away)
        if looks[0] > 5:
            grid.returned |= grid.away
            grid.away.clear()
            nodes[1].instead.clear()
        return known()

    grid.get_node_ids = node_ids  # type: ignore[method-assign]  # of this grid alone
    nodes[1].instead[masked.RELEASE] = lambda *_: leaves(grid, 2)
    app.federate(grid, config(out, round_seconds=0.1))
    assert "round 1: release: paused, 2 s at most: North" in log_of(out)


def test_a_stop_ends_a_paused_run(cohort: list[Hospital], tmp_path: Path) -> None:
    """An operator need not wait for the end of the pause."""
    nodes, out = [Node(of) for of in cohort], tmp_path / "out"
    nodes[0].instead[masked.TRAIN] = lambda *_: stopped(out)
    with pytest.raises(StoppedError):
        app.federate(MaskedGrid(nodes), config(out, wait_seconds=60, round_seconds=0.1))
    assert Progress.load(RunState(out).progress).phase == "stopped"


def stopped(out: Path) -> None:
    RunState(out).stop.touch()


def refusing(_: RecordDict, usual: Usual) -> RecordDict:
    del usual
    return RecordDict({messages.REFUSAL: ConfigRecord({"reason": "its staff is at lunch"})})


def another_update(_: RecordDict, usual: Usual) -> RecordDict:
    """Reply with another masked update than was signed."""
    reply = usual()
    values = np.frombuffer(reply[messages.ARRAYS][masked.MASKED].numpy().tobytes(), "<u8").copy()
    values[0] += 1
    return masked.stated(masked.statement_of(reply), arrays={masked.MASKED: Array(values)})


def forged(_: RecordDict, usual: Usual) -> RecordDict:
    """Reply with a signature that is not the site's."""
    reply = usual()
    signed = SignedStatement.from_json(masked.statement_of(reply))
    other = signed.changed(signature=signed.signature[::-1]).to_json()
    arrays = dict(reply[messages.ARRAYS]) if messages.ARRAYS in reply else None
    return masked.stated(other, arrays=arrays)


def another_seed(_: RecordDict, usual: Usual) -> RecordDict:
    reply = usual()
    return masked.stated(masked.statement_of(reply), bytes.fromhex(masked.seed_of(reply))[::-1])


def empty(_: RecordDict, usual: Usual) -> RecordDict:
    usual()
    return RecordDict()


@pytest.mark.parametrize(
    ("kind", "instead", "reason"),
    [
        (masked.ACCEPT_RUN, refusing, "contract: South: its staff is at lunch"),
        (masked.START_RUN, forged, "first state: South: a statement (start) of South was not signed by that site"),
        (masked.TRAIN, another_update, "round 1: update: South: its masked update is another one than it signed"),
        (masked.TRAIN, forged, "round 1: update: South: a statement (train) of South was not signed by that site"),
        (masked.RELEASE, another_seed, "round 1: release: South: its sealed seed is another one than it signed"),
        (masked.RELEASE, empty, "round 1: release: South: a message came without statement"),
    ],
)
def test_a_reply_that_is_refused_is_named_and_its_site_asked_again(
    cohort: list[Hospital], tmp_path: Path, kind: str, instead: Any, reason: str
) -> None:
    """One site's reply does not fit: the run names it, waits, and continues once the site replies as it should."""
    nodes, out = [Node(of) for of in cohort], tmp_path / "out"

    def twice(content: RecordDict, usual: Usual) -> RecordDict:
        if nodes[2].asked.count(kind) > 2:
            return usual()
        reply: RecordDict = instead(content, usual)
        return reply

    nodes[2].instead[kind] = twice
    record = federate(nodes, out, rounds=1)
    assert reason in log_of(out)
    assert log_of(out).count(reason) == 1
    assert len(record.certified) == 3


def test_a_second_statement_in_one_place_ends_the_run_with_the_proof(cohort: list[Hospital], tmp_path: Path) -> None:
    """A site whose vault was copied signs twice: the run stops at once, and both statements are kept."""
    nodes, out = [Node(of) for of in cohort], tmp_path / "out"

    def again(_: RecordDict, usual: Usual) -> RecordDict:
        reply = usual()
        if nodes[2].asked.count(masked.TRAIN) == 1:
            return reply
        first = SignedStatement.from_json(masked.statement_of(reply)).statement
        second = first.changed(facts={**first.facts, "seed": "ab" * 32})
        signed = SignedStatement.by(cohort[2].site.identity.sign, second)
        return masked.stated(signed.to_json(), arrays=dict(reply[messages.ARRAYS]))

    nodes[2].instead[masked.TRAIN] = again
    nodes[1].instead[masked.TRAIN] = lambda *_: None
    with pytest.raises(FederationError, match="still missing is North"):
        federate(nodes, out, wait_seconds=0.1, round_seconds=0.1)
    for update in (out / "run" / "updates").iterdir():
        update.unlink()
    with pytest.raises(ForkError, match="South signed two statements of which it may sign one"):
        federate(nodes, out, wait_seconds=0.1, round_seconds=0.1)
    proof = (out / "run" / "evidence").read_text().splitlines()
    assert {SignedStatement.from_json(text).statement.facts["seed"] for text in proof} > {"ab" * 32}


def test_a_member_that_missed_a_step_is_given_the_state(tmp_path: Path) -> None:
    """Three of four sites certify a round; the fourth continues from their state, without an operator."""
    out = tmp_path / "out"
    with opened(tmp_path, 4) as cohort:
        nodes = [Node(of) for of in cohort]

        def misses(content: RecordDict, usual: Usual) -> RecordDict:
            is_first = masked.StepRequest.read(content).round == 1
            return refusing(content, usual) if is_first else usual()

        nodes[2].instead[masked.STEP] = misses
        record = federate(nodes, out, sites=4, rounds=1)
    assert len(record.certified) == 4
    assert "round 2: validation counts: South has the certified state again, from East" in log_of(out)


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


def test_a_member_that_lacks_statements_is_sent_them(cohort: list[Hospital], tmp_path: Path) -> None:
    """A request that did not say enough is followed by one that does."""
    nodes, out = [Node(of) for of in cohort], tmp_path / "out"

    def forgets(content: RecordDict, usual: Usual) -> RecordDict:
        if nodes[2].asked.count(masked.RELEASE) > 1:
            return usual()
        first = masked.ReleaseRequest.read(content).to_mapping()
        less = masked.ReleaseRequest.from_mapping({**first, "statements": first["statements"][:1]})
        return release(cohort[2], RecordDict({messages.CONFIG: less.to_record()}))

    nodes[2].instead[masked.RELEASE] = forgets
    federate(nodes, out, rounds=1)
    assert "round 1: release: South: it lacks earlier statements" in log_of(out)
    assert "paused" not in log_of(out)


@pytest.fixture
def five(tmp_path: Path) -> Iterator[list[Node]]:
    """Return the nodes of five hospitals, whose policies allow a change of so small a cohort."""
    with opened(tmp_path, 5) as made:
        for of in made:
            of.limits = RunLimits(max_changes=2)
        yield [Node(of) for of in made]


def paused_in_round_2(nodes: list[Node], out: Path) -> MaskedGrid:
    """Carry out a run until its last site is away in the second round; return the grid of the others."""
    grid = MaskedGrid(nodes)

    def leaves_in_round_2(content: RecordDict, usual: Usual) -> RecordDict | None:
        return usual() if masked.RoundRequest.read(content).round == 1 else leaves(grid, 5)

    nodes[4].instead[masked.TRAIN] = leaves_in_round_2
    with pytest.raises(FederationError, match="still missing is Xenia"):
        app.federate(grid, config(out, sites=5, wait_seconds=0.1, round_seconds=0.1))
    return grid


def test_a_run_continues_without_a_site(five: list[Node], tmp_path: Path) -> None:
    """From the last certified state, under a contract of the others, who trained their updates once."""
    out = tmp_path / "out"
    grid = paused_in_round_2(five, out)
    RunState(out).leave_out(["Xenia"])
    record = app.federate(grid, config(out, sites=5))
    contract = model_of(out).contract
    model_of(out).require(CARD.ca_key)
    assert (contract.revision, contract.start_round, contract.names) == (1, 1, ("East", "North", "South", "West"))
    assert record.certified == contract.names
    assert [of.number for of in record.rounds] == [1, 2]
    assert all(of.seconds for of in record.rounds)
    assert [of.together.examples for of in record.rounds] == [8, 8]  # of model 1 the new cohort's counts were opened
    assert "revision 1: the run continues without Xenia from round 1; changes by few sites so far: 1" in log_of(out)
    assert RunState(out).left_out() == []


def test_a_revision_that_a_site_refuses_leaves_the_run_as_it_was(five: list[Node], tmp_path: Path) -> None:
    """A policy forbids the change: the log says so, and the run continues with all when the site is back."""
    out = tmp_path / "out"
    grid = paused_in_round_2(five, out)
    five[1].of.limits = RunLimits(max_changes=0)
    RunState(out).leave_out(["Xenia"])
    with pytest.raises(FederationError, match="contract: paused .* North"):
        app.federate(grid, config(out, sites=5, wait_seconds=0.1, round_seconds=0.1))
    assert "revision 1 was not accepted: a resumed run has all its sites again" in log_of(out)
    grid.away.clear()
    five[4].instead.clear()
    record = app.federate(grid, config(out, sites=5))
    assert len(record.certified) == 5
    assert model_of(out).contract.revision == 0


def test_a_revision_is_resumed_after_a_crash_at_any_call(five: list[Node], tmp_path: Path) -> None:
    """Also between its contract and its first round."""
    out, generator, crashes = tmp_path / "out", random.Random(1), 0
    paused_in_round_2(five, out)
    RunState(out).leave_out(["Xenia"])
    while not (out / RECORD).exists():
        grid = CrashingGrid(five, generator.randrange(40))
        grid.away = {5}
        try:
            app.federate(grid, config(out, sites=5))
        except Crashed:
            crashes += 1
    assert crashes > 2
    assert len(model_of(out).certificate.signers) == 4
