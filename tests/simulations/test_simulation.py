"""Small simulated federations with real vault processes, apps, engines and plaintext reference."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chexpert_folder import SPOILT
from conftest import ROOT
from deployment import processes_of

from fedpp.learning.metrics import metrics
from fedpp.protocol.run_record import FederationRecord
from simulations.__main__ import main
from simulations.plaintext_reference import moved

COMMAND = [sys.executable, "-m", "simulations"]
SCENARIO = """
description: A small federation for the tests.
sites: 2
two-sites: accepted
rounds: 2
phantom: {patients: 12, visits: 3, size: 24}
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

VISITS = """
description: Two small hospitals in CheXpert's layout.
sites: 2
two-sites: accepted
reporting: per-site
rounds: 1
hospitals: [north, south]
predict: visit
frames: 3
size: 8
epochs: 1
batch-size: 8
filters: [3, 4]
dense: 5
architecture: cnn
dtype: float64
engine: in-process
plaintext-central: true
local-baseline: true
"""


FINDINGS = (
    VISITS.replace("predict: visit\n", "predict: visit\ntarget: [Consolidation, Pleural Effusion]\ncolour: true\n")
    .replace("local-baseline: true\n", "sensitivity: 0.8\n")
    .replace("rounds: 1", "rounds: 2")
)


FRAME_FORM = SCENARIO.replace(
    "control-draws: 1", "scheme: more-frame\narchitecture: cnn\nvoting: true\nengine: in-process"
).replace("batch-size: 4", "batch-size: 6\nmicro-batch: 4\npositive-weight: 2.0\nlabel-smoothing: 0.1")


FED_ADAM = "strategy: FedAdam\nplaintext-federated: false\n"


def report_of(folder: Path, text: str, *arguments: object) -> dict[str, Any]:
    """Run a scenario in this process, into the folder `run` of this one; return its report."""
    scenario, out = folder / "small.yaml", folder / "run"
    scenario.write_text(text)
    assert main(["run", str(scenario), "--out", str(out), *map(str, arguments)]) == 0
    return json.loads((out / "report.json").read_text())


def refusal(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a scenario that is refused; return the last line of its messages."""
    assert main(["run", *map(str, arguments)]) == 1
    return capfd.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_simulation_agrees_with_its_plaintext_reference(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """In float64 the encrypted federation on Ray and the plaintext loop agree to 1e-9, and the report shows it."""
    scenario, out = tmp_path / "small.yaml", tmp_path / "run"
    scenario.write_text(SCENARIO)
    command = [*COMMAND, "run", scenario, "--dtype", "float64", "--seed", "3", "--out", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["parity"]["max_abs_probability_difference"] <= 1e-9
    assert report["parity"]["max_abs_weight_difference"] <= 1e-9
    assert [r["round"] for r in report["rounds"]] == [1, 2]
    assert {len(r["sites"]) for r in report["rounds"]} == {2}
    assert (report["scenario"], report["seed"], report["scheme"], report["n"]) == ("small", 3, "more", 2)
    assert report["final"] == pytest.approx(report["baselines"]["plaintext_federated"], abs=1e-9)
    assert "AUC" in done.stdout
    notes = ("small: ", "waiting ", "admitted ", "contract ", "if this folder", "two sites hide nothing", "round ")
    assert "small: two-sites: accepted" in done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith(notes)] == []
    assert str(out / "report.html") in done.stdout
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert "hospital-2" in page
    assert len(report["parity"]["control_probability_differences"]) == 1
    assert 0 < report["parity"]["control_probability_differences"][0] <= 1e-9
    assert "--overwrite" in refusal(capfd, scenario, "--out", out)


def test_two_folders_are_two_hospitals(chexpert: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Hospitals have their folders' names; visits are predicted, and the report has every baseline."""
    report, out = report_of(tmp_path, VISITS, "--data", chexpert, "--seed", 2), tmp_path / "run"
    lines = capfd.readouterr().out.splitlines()
    assert [(site["name"], site["patients"]) for site in report["sites"]] == [("north", 14), ("south", 23)]
    assert report["shared_patients"] == {
        "patients": 5,
        "trained_and_tested": SPOILT[2][0],
        "central_excluded": SPOILT[2][1],
    }
    assert set(report["baselines"]) == {"plaintext_federated", "plaintext_central", "local_baseline"}
    assert set(report["baselines"]["local_baseline"]) == {"north", "south"}
    record = FederationRecord.load(out / "federation" / "federation.json")
    for site in report["sites"]:
        assert set(site["baselines"]) == {"plaintext_federated", "plaintext_central", "local_baseline"}
        assert site["test"] == pytest.approx(site["baselines"]["plaintext_federated"], abs=1e-6)
        assert site["test"] == metrics(record.test[site["name"]]).to_mapping()
        assert site["gain"]["auc"] == site["test"]["auc"] - site["baselines"]["local_baseline"]["auc"]
    for reported, of in zip(report["rounds"], record.rounds, strict=True):
        assert reported["by_site"] == {name: metrics(of.validation[name]).to_mapping() for name in ("north", "south")}
    assert report["final"] == pytest.approx(report["baselines"]["plaintext_federated"], abs=1e-6)
    assert report["parity"]["max_abs_probability_difference"] <= 1e-9
    assert (report["settings"]["predicted"], report["settings"]["split"]) == ("each visit", "stratified")
    for line in (
        "  all data in one place, plaintext: AUC",
        "  local baseline of south, plaintext: AUC",
        "  patients at several sites: 5",
    ):
        assert any(printed.startswith(line) for printed in lines)
    page = (out / "report.html").read_text()
    assert "Gain of each hospital" in page
    for patient in ("patient00012", "train.csv", "view1"):  # nothing of the raw folder
        assert patient not in page


def test_several_findings_agree_with_plaintext(chexpert: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Coloured and multi-label, ciphertext agrees with the plaintext reference; the report has each finding."""
    report = report_of(tmp_path, FINDINGS, "--data", chexpert)
    lines = capfd.readouterr().out.splitlines()
    assert report["parity"]["max_abs_probability_difference"] <= 1e-9
    assert report["parity"]["max_abs_weight_difference"] <= 1e-9
    assert report["final"] == pytest.approx(report["baselines"]["plaintext_federated"], abs=1e-6)
    assert (report["confusion"], report["operating_point"]) == (None, None)
    assert list(report["findings"]) == ["Consolidation", "Pleural Effusion"]
    tested = sum(site["sequences"]["test"] for site in report["sites"])
    consolidation, effusion = report["findings"].values()
    assert 0 < consolidation["known"] < effusion["known"] == tested
    losses = [finding["loss"] for finding in (consolidation, effusion)]
    assert report["final"]["loss"] == pytest.approx(sum(losses) / 2)
    assert consolidation["operating_point"]["wanted"] == 0.8
    assert any(line.startswith("  Pleural Effusion: AUC ") for line in lines)
    assert "Each of 2 findings is evaluated separately" in (tmp_path / "run" / "report.html").read_text()


def test_list_names_the_scenarios(capfd: pytest.CaptureFixture[str]):
    """`list` has every scenario of the project."""
    assert main(["list", "--json"]) == 0
    names = {row["name"] for row in json.loads(capfd.readouterr().out)}
    assert names == {path.stem for path in (ROOT / "simulations" / "scenarios").glob("*.yaml")}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("description: x\nsites: 2\nrounds: 1\nlearnin-rate: 3\n", "unknown 'learnin-rate'"),
        ("sites: 2\n", "missing description"),
        ("{", "the scenario is not YAML"),
        ("description: x\nsites: 2\nrounds: 1\n", "no data of its own"),
        (
            f"{FRAME_FORM}strategy: FedAdam\nsecure-aggregation: false\n",
            "the plaintext reference has no Flower strategies, got 'FedAdam'",
        ),
        (f"{FRAME_FORM}{FED_ADAM}", "strategy needs secure-aggregation=false"),
        (
            f"{FRAME_FORM}{FED_ADAM}strategy-settings: etta=1\nsecure-aggregation: false\n",
            "got 'etta=1': FedAdam takes eta (float)",
        ),
    ],
)
def test_bad_scenarios_are_one_line(tmp_path: Path, text: str, reason: str, capfd: pytest.CaptureFixture[str]):
    """Unknown and missing keys, broken YAML, missing data and unfit strategies are refused before a folder is made."""
    scenario = tmp_path / "bad.yaml"
    scenario.write_text(text)
    assert reason in refusal(capfd, scenario, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_a_run_is_overwritten(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """`--overwrite` changes no folder but that of a run, and no data inside it."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "scan.dcm").write_bytes(b"precious")
    for data in ([], ["--data", tmp_path / "raw"]):
        assert refusal(capfd, "demo", *data, "--out", tmp_path, "--overwrite").endswith("choose another --out")
    assert "typo does not exist" in refusal(capfd, "demo", "--data", tmp_path / "typo", "--out", tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["raw", "scan.dcm"]


def test_a_terminated_run_leaves_no_vault(tmp_path: Path):
    """SIGTERM ends a run as Ctrl-C does: with one line, and with its vaults, which hold the domain secret."""
    scenario = tmp_path / "small.yaml"
    scenario.write_text(SCENARIO.replace("rounds: 2", "rounds: 1000"))
    command = [*COMMAND, "run", str(scenario), "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if "1000 rounds" in line:
                break
        deadline = time.monotonic() + 60
        while len(processes_of(tmp_path, "-m sites vault")) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(processes_of(tmp_path, "-m sites vault")) == 2
        time.sleep(1)  # while the engine starts
        process.terminate()
        last = process.stderr.read().strip().splitlines()[-1]
        assert process.wait(timeout=60) == 1
    assert last == "simulations run: interrupted"
    assert processes_of(tmp_path) == {}


def test_moved_weights_differ_by_one_unit():
    """Each weight is the next number up or down, and both occur."""
    weights = np.linspace(-1, 1, 1000, dtype=np.float32)
    (near,) = moved([weights], 0)
    assert near.dtype == np.float32
    assert set(near.view(np.int32) - weights.view(np.int32)) == {-1, 1}
    for sign in (-1, 1):  # in both halves some move away from zero, and some towards it
        half = weights * sign > 0
        assert set(np.sign(near[half] - weights[half])) == {-1, 1}


def test_the_frame_form_federates_without_a_key_at_the_trainer(tmp_path: Path):
    """Sites train plain Keras layers on mixed patches: no evaluation key is made, and the report names the scheme."""
    report, out = report_of(tmp_path, FRAME_FORM), tmp_path / "run"
    assert (report["scheme"], report["parity"]) == ("more-frame", None)
    assert {len(r["sites"]) for r in report["rounds"]} == {2}
    assert report["final"]["loss"] > 0
    assert report["baselines"]["plaintext_federated"]["loss"] > 0
    assert not list(out.rglob("*.eval"))
    network = json.loads(json.loads((out / "federation" / "federation.json").read_text())["network"])
    assert (network["patch"], network["architecture"], network["voting"]) == (2, "cnn", True)


def test_a_strategy_of_flower_makes_the_model_of_the_frame_form(tmp_path: Path):
    """Without masking the coordinator takes the median of real updates, the sites accept it, and the report says so."""
    chosen = (
        "strategy: FedTrimmedAvg\nstrategy-settings: beta=0.4\nsecure-aggregation: false\nplaintext-federated: false\n"
    )
    report = report_of(
        tmp_path, f"{FRAME_FORM}{chosen}sites: 3\n".replace("sites: 2\n", "").replace("two-sites: accepted\n", "")
    )
    assert [len(r["sites"]) for r in report["rounds"]] == [3, 3]
    assert report["settings"]["server optimizer"] == "FedTrimmedAvg"
    federation = tmp_path / "run" / "federation"
    record = json.loads((federation / "federation.json").read_text())
    assert (record["settings"]["strategy"], record["settings"]["strategy-settings"]) == ("FedTrimmedAvg", "beta=0.4")
    assert [(of["attempt"], of["excluded"]) for of in record["rounds"]] == [(1, {}), (1, {})]
    assert not (federation / "model.sealed").exists()
