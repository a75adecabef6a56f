"""The rules of a masked run withstand an exhaustive search, and each of them is needed, or known to be redundant."""

import json
from dataclasses import replace
from typing import Any

import pytest

from simulations.__main__ import main
from simulations.symbolic import exhaustive_search, schedules, symbolic_command
from simulations.symbolic.exhaustive_search import control, limits, search, searched
from simulations.symbolic.federation import Federation, RoundRequest
from simulations.symbolic.protocol_rules import ALL, CONTROLS, FEW, KNOWING, LIMITS, REDUNDANT, RULES
from simulations.symbolic.revision_moves import is_free
from simulations.symbolic.round_game import RoundGame
from simulations.symbolic.schedules import FEDERATIONS
from simulations.symbolic.setting import Setting
from simulations.symbolic.vault_world import Fact, World

SMALL = Federation(4, 1, 1)
HONEST = Federation(4, 1, 0)  # with a copied vault it has these worlds, and more
FIRST = RoundRequest("A", 1, "W", "p", SMALL.cohort)


@pytest.mark.parametrize(
    "federation",
    [pytest.param(of, marks=[pytest.mark.slow] * (of.members > 4 or of == HONEST)) for of in FEDERATIONS],
    ids=str,
)
def test_no_order_of_messages_breaks_a_promise(federation: Federation):
    """All schedules of three to five members, up to two of them colluding, end without violation and dead end.

    Four members have each schedule that five have: with one colluder, with two, and with none but a copied vault.
    """
    assert searched(federation).violation == ""


@pytest.mark.parametrize(("off", "found"), CONTROLS.items(), ids=str)
def test_without_a_rule_an_attack_is_found(off: tuple[str, ...], found: str):
    """Each control finds the attack that its rule prevents."""
    assert control(off, found).violation == found


@pytest.mark.parametrize("off", REDUNDANT, ids=str)
def test_a_redundant_rule_can_go(off: tuple[str, ...]):
    """Without it nothing is found: the other rules do its work."""
    assert searched(SMALL, off).violation == ""


def test_every_rule_is_tried():
    """Each rule alone is a control, or listed as redundant."""
    alone = {rules[0] for rules in (*CONTROLS, *REDUNDANT) if len(rules) == 1}
    assert alone == set(RULES)


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_shown_by_a_search(name: str):
    """What remains with all rules is found, and what would close it is priced."""
    find, found = limits()[name]
    assert find().violation == found


def test_equal_roles_are_searched_once():
    """Which of three equal sites comes first makes no difference: their worlds are counted as combinations."""
    game = RoundGame(Setting(SMALL, {"first": FIRST}, ALL - {"one T"}, variants=1))
    assert search(game).worlds == 10  # of 3 that trained or not 4, released or not 3 more, stepped or not 3 more


@pytest.mark.parametrize(
    ("others", "free"),
    [
        ({"run": "B", "cohort": frozenset({0, 1, 3})}, False),
        ({"run": "B", "plan": "q"}, False),
        ({"run": "B"}, False),
        ({"run": "B", "weights": "V"}, True),
        ({}, True),
    ],
)
def test_a_release_locks_the_weights_of_its_base(others: dict[str, Any], *, free: bool):
    """A site that released is asked nothing else at those weights: no other cohort, plan or context."""
    setting = Setting(SMALL, {"first": FIRST, "other": replace(FIRST, **others)})
    vault = frozenset({Fact("train", "first"), Fact("release", "first")})
    assert is_free(setting, World((vault,) * 3), vault, "other") == free


@pytest.mark.parametrize("burned", [(), (2,), (1,)])
def test_a_lock_moves_to_a_cohort_without_sites_that_burned(burned: tuple[int, ...]):
    """The site that the new cohort leaves out must have burned the context; another's burn does not count."""
    setting = Setting(SMALL, {"first": FIRST, "other": replace(FIRST, run="B", cohort=frozenset({0, 1, 3}))})
    locked = frozenset({Fact("train", "first"), Fact("release", "first")})
    vaults = [locked if site not in burned else frozenset({Fact("burn", "first")}) for site in SMALL.honest]
    assert is_free(setting, World(tuple(vaults)), locked, "other") == (burned == (2,))


def test_a_colluder_that_burns_gives_another_one_the_sum():
    """With two colluders the limit is found in the revision without one of them, and with one colluder nothing."""
    with_two, with_one = Federation(5, 2, 2), Federation(4, 1, 1)
    assert [schedule.limit for schedule in schedules.schedules(with_two) if schedule.limit] == [KNOWING]
    assert not [schedule for schedule in schedules.schedules(with_one) if schedule.limit]


def test_the_command_reports_each_search(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """A row for each search; the status is 0, and 1 where a control finds nothing."""
    for module in (symbolic_command, exhaustive_search):
        monkeypatch.setattr(module, "FEDERATIONS", FEDERATIONS[:1])
    monkeypatch.setattr(symbolic_command, "CONTROLS", {("cohort size",): FEW})
    monkeypatch.setattr(symbolic_command, "REDUNDANT", dict([*REDUNDANT.items()][:1]))
    assert main(["symbolic", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 1 + 1 + 1 + len(LIMITS)
    assert all(row["as designed"] and row["worlds"] > 0 for row in rows)
    monkeypatch.setattr(symbolic_command, "CONTROLS", {("one nonce",): FEW})
    monkeypatch.setattr(symbolic_command, "REDUNDANT", {})
    monkeypatch.setattr(symbolic_command, "limits", dict)
    assert main(["symbolic"]) == 1
    assert "without one nonce" in capsys.readouterr().out
