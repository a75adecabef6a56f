"""Masked runs that sites leave: contracts that did not start, burns by hand, lifted locks."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, RecordDict
from masked_cohort import MaskedGrid, Node, config, federate, log_of
from run_hospitals import NOW, Hospital

from coordinator.operator.report_command import report_of
from coordinator.operator.run_commands import plan_change
from coordinator.server import app
from coordinator.server.masked.abandonment import GivenUp
from coordinator.server.masked.statement_store import CohortFile
from coordinator.server.run_state import CohortChange, RunState, StoppedError
from fedpp.config.contract_limits import RunLimits
from fedpp.errors import ConfigError, FederationError
from fedpp.protocol import masked_messages as masked
from fedpp.protocol import messages
from fedpp.protocol.run_record import RECORD, FederationRecord
from sites.vault.masked_runs.run_endorsements import lift
from sites.vault.masked_runs.run_locks import burn, without_vault

Usual = Callable[[], RecordDict]


def refusing(*_: object) -> RecordDict:
    return RecordDict({messages.REFUSAL: ConfigRecord({"reason": "its staff is at lunch"})})


def test_refused_runs_block_no_other_one(cohort: list[Hospital], tmp_path: Path) -> None:
    """Three runs whose contract one site refuses: the others are asked to abandon each, and take part in a fourth."""
    for of, limits in zip(cohort, (RunLimits(max_runs=1), RunLimits(), RunLimits(max_rounds=1)), strict=True):
        of.limits = limits
    for number in range(3):
        with pytest.raises(FederationError, match="contract: paused .* South"):
            federate([Node(of) for of in cohort], tmp_path / f"out {number}", wait_seconds=0.1, round_seconds=0.1)
    assert [len(of.journal.rows("contracts", "digest", ended="abandoned")) for of in cohort] == [3, 3, 0]
    cohort[2].limits = RunLimits()
    assert len(federate([Node(of) for of in cohort], tmp_path / "out").certified) == 3


def test_a_run_that_did_not_start_is_resumed_under_another_contract(cohort: list[Hospital], tmp_path: Path) -> None:
    """Also where a member could not be asked to leave the first one: it is asked again."""
    nodes, out, digests = [Node(of) for of in cohort], tmp_path / "out", set()
    nodes[0].instead[masked.ABANDON] = lambda *_: None
    nodes[1].instead[masked.REVEAL_COIN] = refusing
    for _ in range(2):
        with pytest.raises(FederationError, match="coins: paused .* North"):
            federate(nodes, out, wait_seconds=0.1, round_seconds=0.1)
        assert CohortFile(RunState(out)).load() is None
        digests |= set(GivenUp(RunState(out)).contracts())
    assert len(digests) == 2
    assert all(GivenUp(RunState(out)).contracts()[digest] == ["East"] for digest in digests)
    for node in nodes:
        node.instead.clear()
    record = federate(nodes, out)
    assert record.contract not in digests
    assert set(map(tuple, GivenUp(RunState(out)).contracts().values())) == {()}
    assert log_of(out).count("did not start: a resumed run makes another one") == 2


def test_a_stop_before_the_first_round_leaves_no_contract(cohort: list[Hospital], tmp_path: Path) -> None:
    """The members are free for other runs."""
    nodes, out = [Node(of) for of in cohort], tmp_path / "out"
    nodes[2].instead[masked.REVEAL_COIN] = lambda *_: RunState(out).stop.touch()
    with pytest.raises(StoppedError):
        federate(nodes, out, wait_seconds=60, round_seconds=0.1)
    assert all(of.journal.rows("contracts", "digest", ended="") == [] for of in cohort)


def locked_in_round_2(five: list[Node], out: Path) -> MaskedGrid:
    """Carry out a run until its last site is away in the second round, for which the others have released."""
    grid = MaskedGrid(five)

    def leaves_in_round_2(content: RecordDict, usual: Usual) -> RecordDict | None:
        return usual() if masked.ReleaseRequest.read(content).round == 1 else grid.away.add(5)

    five[4].instead[masked.RELEASE] = leaves_in_round_2
    with pytest.raises(FederationError, match="release: paused .* Xenia"):
        app.federate(grid, config(out, sites=5, wait_seconds=0.1, round_seconds=0.1))
    return grid


def leaving(out: Path, *burns: Path, lifted: Sequence[str] = ()) -> None:
    """Leave Xenia out, as `run --resume --without Xenia` does."""
    plan_change(RunState(out), CohortChange(("Xenia",), lifted=tuple(lifted)), burns)


def burned(of: Hospital, out: Path, file: Path) -> Path:
    """Write what `fedpp-site burn --out` writes at a hospital without its vault."""
    cohort = CohortFile(RunState(out)).load()
    assert cohort is not None
    site, accepted = without_vault(of.site, of.journal, cohort.contract.digest)
    burn(site, accepted, "ab" * 32)
    own = [each.to_json() for each in accepted.chains.after({}) if each.statement.site == of.name]
    file.write_text(f"[{','.join(own)}]")
    return file


def test_a_run_continues_without_a_site_that_burned_by_hand(five: list[Node], tmp_path: Path) -> None:
    """Its statement comes in a file; without one the operator reads what to ask for, and nothing is recorded."""
    out = tmp_path / "out"
    grid = locked_in_round_2(five, out)
    with pytest.raises(FederationError, match=r"4 sites have released .* round 2, and Xenia has not burned it: --burn"):
        leaving(out)
    assert not RunState(out).change()
    leaving(out, burned(five[4].of, out, tmp_path / "burn.json"))
    record = app.federate(grid, config(out, sites=5))
    assert (record.certified, record.lifted) == (("East", "North", "South", "West"), ())


def test_a_file_that_burns_nothing_is_refused(five: list[Node], tmp_path: Path) -> None:
    """Another contract, site or statement, a forged one, or no statements at all: one line says what is wrong."""
    out, file = tmp_path / "out", tmp_path / "burn.json"
    locked_in_round_2(five, out)
    burned(five[4].of, out, file)
    signed = json.loads(file.read_text())
    other = [{**each, "statement": {**each["statement"], "contract": "ab" * 32}} for each in signed]
    forged = [*signed[:-1], {**signed[-1], "signature": "ab" * 64}]
    east = json.loads(trained_by_east(five, out))
    cases = {
        "has no statement of the run's contract": [*other],
        "ends with train of round 2 by Xenia: due is a burn": signed[:-1],
        "ends with train of round 2 by East: due is a burn": east,
        "was not signed by that site": forged,
        "are damaged": {},
    }
    for reason, content in cases.items():
        file.write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=f"--burn .*{reason}"):
            leaving(out, file)
    with pytest.raises(ConfigError, match="--burn .*: No such file"):
        leaving(out, tmp_path / "none")
    with pytest.raises(ConfigError, match="are about sites of --without"):
        plan_change(RunState(out), CohortChange(("West",), lifted=("Xenia",)), ())
    assert not RunState(out).change()


def trained_by_east(five: list[Node], out: Path) -> str:
    """Return the statements of a site that stays, up to its masked update of the second round."""
    cohort = CohortFile(RunState(out)).load()
    assert cohort is not None
    _, accepted = without_vault(five[0].of.site, five[0].of.journal, cohort.contract.digest)
    own = [each for each in accepted.chains.after({}) if each.statement.site == "East"]
    return f"[{','.join(each.to_json() for each in own if each.statement.purpose != 'release')}]"


def test_a_run_continues_by_lifted_locks_and_its_record_says_so(five: list[Node], tmp_path: Path) -> None:
    """The staff of all sites that stay lifted the lock of the absent one; before that the revision is refused."""
    out = tmp_path / "out"
    grid = locked_in_round_2(five, out)
    leaving(out, lifted=["Xenia"])
    with pytest.raises(FederationError, match="contract: paused .* East .*has not lifted the lock"):
        app.federate(grid, config(out, sites=5, wait_seconds=0.1, round_seconds=0.1))
    cohort = CohortFile(RunState(out)).load()
    assert cohort is not None
    assert cohort.contract.revision == 0
    for node in five[:4]:
        lift(node.of.folder, node.of.site, cohort.contract.digest, 2, "Xenia", NOW.replace(year=2028))
    leaving(out, lifted=["Xenia"])
    record = app.federate(grid, config(out, sites=5))
    assert (record.certified, record.lifted) == (("East", "North", "South", "West"), ("Xenia, round 2",))
    assert "Xenia has not burned round 2, and its lock was lifted: its update is at risk" in log_of(out)
    limits = report_of(FederationRecord.load(out / RECORD), 0.9).privacy.does_not_protect
    assert limits[3].startswith("A LOCK WAS LIFTED (Xenia, round 2)")


def test_who_has_released_is_left_out_after_the_round(five: list[Node], tmp_path: Path) -> None:
    """Its mask is here: the round is completed without it, and needs no burn."""
    out = tmp_path / "out"
    grid = MaskedGrid(five)
    five[3].instead[masked.RELEASE] = lambda content, usual: (
        usual() if masked.ReleaseRequest.read(content).round == 1 else grid.away.add(4)
    )
    with pytest.raises(FederationError, match="release: paused .* West"):
        app.federate(grid, config(out, sites=5, wait_seconds=0.1, round_seconds=0.1))
    with pytest.raises(FederationError, match="Xenia has released its mask for round 2, which needs it no more"):
        leaving(out)
