"""Masked runs that pause: sites that are away, replies that are refused, and revisions without a site."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coordinator_runs import Crashed
from flwr.app import Array, ConfigRecord, RecordDict
from masked_cohort import CARD, CrashingGrid, MaskedGrid, Node, config, federate, log_of, model_of, release
from run_hospitals import Hospital, opened

from coordinator.server import app
from coordinator.server.progress import Progress
from coordinator.server.run_state import CohortChange, RunState, StoppedError
from fedpp.config.contract_limits import RunLimits
from fedpp.errors import FederationError, ForkError
from fedpp.protocol import masked_messages as masked
from fedpp.protocol import messages
from fedpp.protocol.run_record import RECORD
from fedpp.protocol.run_statements import SignedStatement

Usual = Callable[[], RecordDict]


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
    """The run waits for it, reports whom it waits for, and continues without an operator."""
    nodes = [Node(of) for of in cohort]
    grid, out, looks = MaskedGrid(nodes), tmp_path / "out", [0]
    known, seen = grid.get_node_ids, []

    def node_ids() -> list[int]:
        looks[0] += bool(grid.away)
        if looks[0] > 5:
            seen.append(Progress.load(RunState(out).progress))
            grid.returned |= grid.away
            grid.away.clear()
            nodes[1].instead.clear()
        return known()

    grid.get_node_ids = node_ids  # type: ignore[method-assign]  # of this grid alone
    nodes[1].instead[masked.RELEASE] = lambda *_: leaves(grid, 2)
    app.federate(grid, config(out, round_seconds=0.1))
    assert "round 1: release: paused, 2 s at most: North" in log_of(out)
    paused = next(of for of in seen if of.phase == "paused")
    assert (paused.awaited, paused.eta, paused.reason[:7]) == (("North",), 0.0, "North (")
    assert Progress.load(RunState(out).progress).reason == ""


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
    RunState(out).plan(CohortChange(("Xenia",)))
    record = app.federate(grid, config(out, sites=5))
    contract = model_of(out).contract
    model_of(out).require(CARD.ca_key)
    assert (contract.revision, contract.start_round, contract.names) == (1, 1, ("East", "North", "South", "West"))
    assert record.certified == contract.names
    assert [of.number for of in record.rounds] == [1, 2]
    assert all(of.seconds for of in record.rounds)
    assert [of.together.examples for of in record.rounds] == [8, 8]  # of model 1 the new cohort's counts were opened
    assert "revision 1: the run continues without Xenia from round 1; changes by few sites so far: 1" in log_of(out)
    assert not RunState(out).change()


def test_a_revision_that_a_site_refuses_leaves_the_run_as_it_was(five: list[Node], tmp_path: Path) -> None:
    """A policy forbids the change: the log says so, and the run continues with all when the site is back."""
    out = tmp_path / "out"
    grid = paused_in_round_2(five, out)
    five[1].of.limits = RunLimits(max_changes=0)
    RunState(out).plan(CohortChange(("Xenia",)))
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
    RunState(out).plan(CohortChange(("Xenia",)))
    while not (out / RECORD).exists():
        grid = CrashingGrid(five, generator.randrange(40))
        grid.away = {5}
        try:
            app.federate(grid, config(out, sites=5))
        except Crashed:
            crashes += 1
    assert crashes > 2
    assert len(model_of(out).certificate.signers) == 4
