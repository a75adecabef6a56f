"""The rules of a round withstand an exhaustive search, and each of them is needed, or known to be redundant."""

import json

import pytest

from simulations.__main__ import main
from simulations.symbolic import exhaustive_search
from simulations.symbolic.exhaustive_search import DEAD_END, FEDERATIONS, PAIR, REDUNDANT, control, controls, searched
from simulations.symbolic.protocol_rules import RULES, Federation

KNOWING = "a colluder chose its part knowing the sum"
FOUND = {
    ("lock",): "two known sums of one base model share a site",
    ("plan in lock",): "two known sums of one base model share a site",
    ("no second mask",): KNOWING,
    ("cohort size",): "a known sum has too few honest sites",
    ("burn before move",): "a known sum has too few honest sites",
    ("counts in vector",): "a known sum has too few honest sites",
    ("counts in digest",): "a state is accepted with counts that its signatures do not cover",
    ("challenge after sum",): "a false sum is stepped",
    ("sum in T",): "a sum that was chosen after the release is stepped",
    ("one T",): KNOWING,
    ("no restore",): KNOWING,
    ("agreed revision",): DEAD_END,
    PAIR: "a known sum mixes base models",
}


@pytest.mark.parametrize("federation", FEDERATIONS, ids=str)
def test_no_order_of_messages_breaks_a_promise(federation: Federation):
    """All schedules of three and four members, one or two of them colluding, end without violation and dead end."""
    assert searched(federation).violation == ""


@pytest.mark.parametrize("off", controls(), ids=" and ".join)
def test_without_a_rule_an_attack_is_found(off: tuple[str, ...]):
    """Each control finds the attack that its rule prevents."""
    assert control(off).violation == FOUND[off]


@pytest.mark.parametrize("rule", REDUNDANT)
def test_a_redundant_rule_can_go_alone(rule: str):
    """Without it nothing is found: the other rules do its work."""
    assert searched(FEDERATIONS[0], (rule,)).violation == ""


def test_every_rule_is_tried():
    """Each rule is in a control, or listed as redundant."""
    assert {rule for off in controls() for rule in off} | set(REDUNDANT) == set(RULES)


def test_the_command_reports_each_search(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """A row for each search; the status is 0, and 1 where a control finds nothing."""
    monkeypatch.setattr("simulations.symbolic.symbolic_command.FEDERATIONS", FEDERATIONS[:1])
    assert main(["symbolic", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 1 + len(FOUND) + len(REDUNDANT)
    assert all(row["as designed"] and row["worlds"] > 0 for row in rows)
    monkeypatch.setattr("simulations.symbolic.symbolic_command.controls", lambda: (("one state",),))
    monkeypatch.setattr(exhaustive_search, "FEDERATIONS", FEDERATIONS[:1])
    assert main(["symbolic"]) == 1
    assert "without one state" in capsys.readouterr().out
