"""Sites that join a masked run by a revision, or return to it as others: what the coordinator does, and refuses."""

import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from coordinator_runs import Crashed
from flwr.app import RecordDict
from masked_cohort import CARD, MaskedGrid, Node, config, log_of, model_of
from run_hospitals import Hospital, certified

from coordinator.__main__ import main
from coordinator.operator.run_commands import plan_change
from coordinator.server import app
from coordinator.server.masked.abandonment import GivenUp
from coordinator.server.run_state import CohortChange, RunState, StoppedError
from fedpp.config.contract_limits import RunLimits
from fedpp.errors import FederationError
from fedpp.protocol import masked_messages as masked
from fedpp.protocol.run_contract import certificate_hash
from fedpp.protocol.run_record import RECORD
from sites.vault.masked_runs.run_endorsements import endorse

Usual = Callable[[], RecordDict]
NEVER = datetime(2100, 1, 1, tzinfo=UTC)


def paused_in_round_2(old: list[Node], out: Path) -> None:
    """Carry out a run until its last site goes away in the second round."""
    grid = MaskedGrid(old)

    def leaves_in_round_2(content: RecordDict, usual: Usual) -> RecordDict | None:
        if masked.RoundRequest.read(content).round == 1:
            return usual()
        grid.away.add(len(old))
        return None

    old[-1].instead[masked.TRAIN] = leaves_in_round_2
    with pytest.raises(FederationError, match="still missing is"):
        app.federate(grid, config(out, sites=len(old), wait_seconds=0.1, round_seconds=0.1))
    old[-1].instead.clear()


def endorsing(node: Node, log: Callable[[], str]) -> None:
    """Let a site's staff endorse the state that the coordinator's log names, once its vault has refused."""

    def accept(_: RecordDict, usual: Usual) -> RecordDict:
        (state,) = set(re.findall(r"endorse --state ([0-9a-f]{64})", log()))
        if node.asked.count(masked.ACCEPT_RUN) > 1:
            endorse(node.of.folder, node.of.site, state, NEVER)
        return usual()

    node.instead[masked.ACCEPT_RUN] = accept


def test_a_site_joins_a_run(five: list[Node], tmp_path: Path) -> None:
    """Its staff endorses the state that the log names; it gets it sealed from a member, and the change is counted."""
    out, new = tmp_path / "out", five[4]
    paused_in_round_2(five[:4], out)
    RunState(out).plan(CohortChange(joining=("Xenia",)))
    endorsing(new, lambda: log_of(out))
    record = app.federate(MaskedGrid(five), config(out, sites=4))
    contract = model_of(out).contract
    model_of(out).require(CARD.ca_key)
    assert (contract.revision, contract.start_round, contract.changes) == (1, 1, 1)
    assert contract.names == ("East", "North", "South", "West", "Xenia")
    assert record.certified == contract.names
    assert [of.together.examples for of in record.rounds] == [10, 10]
    assert set(record.datasets) == set(contract.names)
    assert masked.LOAD in new.asked
    assert "revision 1: the run continues with Xenia from round 1; changes by few sites so far: 1" in log_of(out)
    assert main(["report", str(out)]) == 0
    assert "HOSPITALS LEFT OR JOINED DURING THE RUN: 1 such" in (out / "report.html").read_text()


def test_a_restored_site_takes_its_own_place(five: list[Node], tmp_path: Path) -> None:
    """Its vault has a new certificate and an empty folder of runs: it leaves and joins, and both are counted."""
    out, old = tmp_path / "out", five[4].of
    paused_in_round_2(five, out)
    again = Hospital("Xenia", certified("Xenia", 99), old.dataset, tmp_path / "again", old.limits).open()
    nodes = [*five[:4], Node(again)]
    endorsing(nodes[4], lambda: log_of(out))
    RunState(out).plan(CohortChange(("Xenia",), ("Xenia",)))
    record = app.federate(MaskedGrid(nodes), config(out, sites=5))
    again.journal.close()
    model = model_of(out)
    model.require(CARD.ca_key)
    assert model.contract.member("Xenia").certificate == certificate_hash(again.site.certificate)
    assert (model.contract.changes, record.changes, len(record.certified)) == (2, 2, 5)
    assert masked.TRAIN not in five[4].asked[five[4].asked.index(masked.STEP) + 2 :]


def test_a_site_that_cannot_join_is_refused_and_the_run_stays_as_it_was(five: list[Node], tmp_path: Path) -> None:
    """One that is not there, was not admitted, or is a member already: one line, and the next resume needs nothing."""
    out = tmp_path / "out"
    settings = config(out, sites=4, wait_seconds=0.1)
    paused_in_round_2(five[:4], out)
    stranger = Node(Hospital("Xenia", certified("Yves", 98), five[4].of.dataset, tmp_path / "stranger"))
    for nodes, joining, reason in (
        (five[:4], "Xenia", "Xenia cannot join, since it is not connected: see that it runs"),
        (
            [*five[:4], stranger],
            "Xenia",
            "Xenia cannot join, since it was not admitted: ",
        ),
        (five, "West", "West is a member already, with this certificate and these data: leave out --with"),
    ):
        RunState(out).plan(CohortChange(joining=(joining,)))
        with pytest.raises(FederationError, match=reason):
            app.federate(MaskedGrid(nodes), settings)
        assert not RunState(out).change()
    record = app.federate(MaskedGrid(five[:4]), settings)
    assert (len(record.certified), record.changes) == (4, 0)


def crashes(*_: object) -> RecordDict:
    raise Crashed


def test_a_run_that_has_not_started_or_has_ended_takes_in_nobody(five: list[Node], tmp_path: Path) -> None:
    """There is no state to start from, or nothing left to do."""
    out, settings = tmp_path / "out", config(tmp_path / "out", sites=4, rounds=1, wait_seconds=0.1, round_seconds=0.1)
    grid, joining = MaskedGrid(five[:4]), CohortChange(joining=("Xenia",))
    five[0].instead[masked.REVEAL_COIN] = crashes
    with pytest.raises(Crashed):
        app.federate(grid, settings)
    with pytest.raises(FederationError, match="the run has not started: resume it with the sites that are there"):
        plan_change(RunState(out), joining, ())
    five[0].instead.clear()
    app.federate(grid, config(out, sites=4, rounds=1))
    (out / RECORD).unlink()
    plan_change(RunState(out), joining, ())
    with pytest.raises(FederationError, match="the run has ended, and its sites stay as they are"):
        app.federate(MaskedGrid(five), settings)


def test_after_a_refused_revision_another_one_is_made(five: list[Node], tmp_path: Path) -> None:
    """Those that had accepted it abandon it first, and what they signed under it stays out of the next one."""
    out = tmp_path / "out"
    paused_in_round_2(five, out)
    five[1].of.limits = RunLimits(max_changes=0)
    RunState(out).plan(CohortChange(("Xenia",)))
    with pytest.raises(FederationError, match="contract: paused .* North"):
        app.federate(MaskedGrid(five), config(out, sites=5, wait_seconds=0.1, round_seconds=0.1))
    five[1].of.limits = RunLimits(max_changes=2)
    RunState(out).plan(CohortChange(("West",)))
    nodes = [*five[:3], five[4]]
    record = app.federate(MaskedGrid(nodes), config(out, sites=5))
    assert record.certified == ("East", "North", "South", "Xenia")
    assert model_of(out).contract.revision == 1
    assert set(map(tuple, GivenUp(RunState(out)).contracts().values())) == {()}
    assert [len(of.of.journal.rows("contracts", "digest", ended="abandoned")) for of in nodes] == [1, 0, 1, 0]


def test_a_stopped_revision_gives_way_to_another_one(five: list[Node], tmp_path: Path) -> None:
    """The operator stopped it before it started, and changes other sites of the contract before it."""
    out = tmp_path / "out"
    paused_in_round_2(five, out)
    RunState(out).plan(CohortChange(("Xenia",)))
    five[1].instead[masked.ACCEPT_RUN] = lambda *_: RunState(out).stop.touch()
    with pytest.raises(StoppedError):
        app.federate(MaskedGrid(five), config(out, sites=5, wait_seconds=60, round_seconds=0.1))
    five[1].instead.clear()
    RunState(out).clear()
    plan_change(RunState(out), CohortChange(("West",)), ())
    record = app.federate(MaskedGrid([*five[:3], five[4]]), config(out, sites=5))
    assert record.certified == ("East", "North", "South", "Xenia")
    assert model_of(out).contract.revision == 1


def test_members_abandon_what_a_rebuilt_run_does_not_continue(five: list[Node], tmp_path: Path) -> None:
    """A revision that one site refused, and which the lost coordinator had no time to give up."""
    out = tmp_path / "out"
    paused_in_round_2(five, out)
    nonce, five[1].of.limits = RunState(out).nonce(""), RunLimits(max_changes=0)
    RunState(out).plan(CohortChange(("Xenia",)))
    for node in five:
        node.instead[masked.ABANDON] = lambda *_: None
    with pytest.raises(FederationError, match="contract: paused .* North"):
        app.federate(MaskedGrid(five), config(out, sites=5, wait_seconds=0.1, round_seconds=0.1))
    for node in five:
        node.instead.clear()
    shutil.rmtree(out)
    RunState(out).folder.mkdir(parents=True)
    RunState(out).rebuild(nonce)
    record = app.federate(MaskedGrid(five), config(out, sites=5))
    assert (len(record.certified), model_of(out).contract.revision) == (5, 0)
    assert [len(of.of.journal.rows("contracts", "digest", ended="abandoned")) for of in five] == [1, 0, 1, 1, 0]
