"""Attacks learn no more than chance, their controls succeed, and the page on threats lists them."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from fedpp.errors import ConfigError
from simulations.__main__ import main
from simulations.attacks import attack_command
from simulations.attacks.attack import Attack, known, replaced, share
from simulations.attacks.attack_list import ATTACKS
from simulations.attacks.deployed_attacks import DEPLOYED_ATTACKS
from simulations.attacks.sum_attacks import reduced

PAGE = ROOT / "docs" / "explanation" / "threats.md"
PROTECTION = (
    ROOT / "fedpp" / "aggregation" / "linear_check.py",
    "    if (sum_tag(aggregate_id, low, carry) - sum(tags)) % PRIME:\n",
    "    if False:\n",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in DEPLOYED_ATTACKS)) for name in ATTACKS]
)
def test_an_attack_learns_no_more_than_chance(name: str):
    """Its control, in which a protection is off, learns enough to show that the attack is a real one."""
    (row,) = attack_command.run([name], short=True)
    assert row["learned"] <= row["chance"] < row["threshold"] <= row["control_learned"]
    assert row["as designed"]


def test_without_a_protection_the_command_fails(tmp_path: Path):
    """In a copy of the repository whose sites step any sum, the attack learns what its control does: status 1."""
    for folder in ("fedpp", "sites", "coordinator", "simulations"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    path, protection, nothing = PROTECTION
    copy = tmp_path / path.relative_to(ROOT)
    assert copy.read_text().count(protection) == 1
    copy.write_text(copy.read_text().replace(protection, nothing))
    command = [sys.executable, "-m", "simulations", "attack", "false-sum-early", "--short", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    (row,) = json.loads(done.stdout)["rows"]
    assert (done.returncode, row["learned"], row["as designed"]) == (1, 1.0, False)


@pytest.mark.parametrize(
    ("learned", "control", "status"), [(0.05, 0.99, 0), (0.06, 0.99, 1), (0.05, 0.98, 1), (math.nan, 0.99, 1)]
)
def test_status_1_where_an_attack_learns_or_a_control_does_not(
    learned: float, control: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """An attack learns at most `chance`, and a control at least `threshold`; what is no number is neither."""
    switches = {"off": False}

    class Switch:
        def __enter__(self) -> None:
            switches["off"] = True

        def __exit__(self, *_: object) -> None:
            switches["off"] = False

    def attempt(_: Any) -> float:
        """Ask whether the protection is off."""
        return control if switches["off"] else learned

    monkeypatch.setattr(attack_command, "ATTACKS", {"known": Attack("G1", attempt, Switch, 0.05, 0.99)})
    assert main(["attack"]) == status
    assert capsys.readouterr().out.startswith("known ")
    assert main(["attack", "known", "--json", "--short"]) == status
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    facts = {"attack", "claim", "tried", "chance", "learned", "threshold", "control_learned", "seconds", "as designed"}
    assert row.keys() == facts
    assert (row["tried"], row["control_learned"]) == ("Ask whether the protection is off.", control)


def test_an_unknown_attack_is_refused():
    """The message names the known ones."""
    with pytest.raises(ConfigError, match=f"unknown attack 'guess': known are {', '.join(ATTACKS)}"):
        list(attack_command.run(["guess"]))


def test_the_page_on_threats_lists_all_attacks():
    """Its table has a row for each attack, with the claim that it tries, and no other name."""
    rows = re.findall(r"^\| `([a-z-]+)` \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == list(ATTACKS)
    assert dict(rows) == {name: attack.claim for name, attack in ATTACKS.items()}


def test_what_is_replaced_comes_back():
    """A control takes a protection away for its own time, also where it fails."""

    class Guard:
        def protect(self) -> bool:
            return True

    with pytest.raises(ZeroDivisionError), replaced((Guard, "protect", lambda _: False)):
        assert not Guard().protect()
        _ = 1 / 0
    assert Guard().protect()
    with pytest.raises(KeyError), replaced((Guard, "protected", None)):
        pass


def test_figures_of_attacks():
    """Values within a hundredth of a standard deviation are known; shares are of all tries."""
    import numpy as np

    truth = np.random.default_rng(0).normal(size=10_000)
    assert known(truth + 0.009 * truth.std(), truth) == 1
    assert known(np.random.default_rng(1).normal(size=10_000), truth) < 0.01
    assert share([True, False]) == 0.5


def test_lattice_reduction_finds_short_vectors():
    """The basis stays one of the same lattice, and its vectors are about as short as can be."""
    prime, factor = 2**61 - 1, 123_456_789_123_456_789
    rows = reduced([[prime, 0, 0], [-factor % prime, 1, 0], [-(factor**2) % prime, 0, 1]])
    assert all((row[0] + row[1] * factor + row[2] * factor**2) % prime == 0 for row in rows)
    assert max(abs(value) for row in rows for value in row) < 4 * round(prime ** (1 / 3))
