"""A simulated federation, small, with everything real: vault processes, Ray, the two apps, the plaintext twin."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SCENARIO = """
description: A small federation for the tests.
sites: 2
rounds: 2
phantom: {hospitals: 2, patients: 12, visits: 3, size: 24}
classes: [stable, growing]
frames: 3
size: 16
epochs: 1
batch-size: 4
filters: [4, 8]
dense: 8
lstm: 8
control-draws: 1
"""


def simulations(*arguments: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "simulations", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == check, done.stdout + done.stderr
    return done


def test_a_simulation_agrees_with_its_plaintext_twin(tmp_path: Path):
    """In float64 the encrypted federation and the plaintext loop agree to 1e-9, and the report says all of it."""
    scenario = tmp_path / "small.yaml"
    scenario.write_text(SCENARIO)
    out = tmp_path / "run"
    done = simulations("run", scenario, "--dtype", "float64", "--seed", 3, "--out", out)
    report = json.loads((out / "report.json").read_text())
    assert report["parity"]["max_abs_probability_difference"] <= 1e-9
    assert report["parity"]["max_abs_weight_difference"] <= 1e-9
    assert [r["round"] for r in report["rounds"]] == [1, 2]
    assert {len(r["sites"]) for r in report["rounds"]} == {2}
    assert (report["scenario"], report["seed"], report["scheme"], report["n"]) == ("small", 3, "more", 2)
    assert report["final"] == pytest.approx(report["baselines"]["plaintext_federated"], abs=1e-9)
    assert "AUC" in done.stdout
    assert str(out / "report.html") in done.stdout
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert "hospital-2" in page
    again = simulations("run", scenario, "--out", out, check=1)
    assert "--overwrite" in again.stderr.strip().splitlines()[-1]


def test_list_names_the_scenarios():
    """`list` tells every scenario that comes with the project."""
    names = {row["name"] for row in json.loads(simulations("list", "--json").stdout)}
    assert names == {path.stem for path in (ROOT / "simulations" / "scenarios").glob("*.yaml")}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("description: x\nsites: 2\nrounds: 1\nlearnin-rate: 3\n", "unknown learnin_rate"),
        ("sites: 2\n", "missing description"),
        ("{", "cannot read scenario"),
        ("description: x\nsites: 2\nrounds: 1\n", "no data of its own"),
    ],
)
def test_bad_scenarios_are_one_line(tmp_path: Path, text: str, reason: str):
    """Unknown and missing keys, broken YAML and missing data are refused before anything runs."""
    scenario = tmp_path / "bad.yaml"
    scenario.write_text(text)
    done = simulations("run", scenario, "--out", tmp_path / "out", check=1)
    assert reason in done.stderr.strip().splitlines()[-1]
