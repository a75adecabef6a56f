"""`python -m coordinator report`: made from the federation's record alone, overwrites nothing unasked."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coordinator_runs import LocalGrid, Site, config, describe, refusal

from coordinator.__main__ import main
from coordinator.server.app import federate
from fedpp.learning.metrics import count, metrics, operating_point
from fedpp.protocol.counts import Counts
from fedpp.protocol.run_record import FederationRecord
from fedpp.reporting.report import load_report
from simulations.benchmarks.simulated_client import findings

LATE = refusal(reason="its disk is full")


def federated(out: Path, *sites: Site) -> FederationRecord:
    """Run a federation into this folder."""
    return federate(LocalGrid(sites), config(out, sites=len(sites)))


def write(out: Path, record: FederationRecord) -> None:
    """Write another record into a folder."""
    (out / "federation.json").write_text(json.dumps(record.to_mapping()))


def test_a_report_is_made_from_the_record_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each site has its figures of every round and of the test, and exclusions have their reason."""
    record = federated(tmp_path, Site(describe("a")), Site(describe("b")), Site(describe("c"), {"train": LATE}))
    kept = {path.name for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"run {record.run}: 3 sites, 2 rounds, 3 test sequences"
    assert printed[-1] == f"report: {tmp_path / 'report.html'}"
    assert {path.name for path in tmp_path.iterdir()} == kept | {"report.json", "report.html"}

    report = load_report(tmp_path / "report.json")
    assert (report.mode, report.scheme, report.n, report.seed, report.dtype) == ("deployment", "more", 2, 0, "float64")
    assert [(site.name, site.patients, site.sequences) for site in report.sites] == [
        (name, 6, {"train": 3, "validation": 2, "test": 1}) for name in "abc"
    ]
    assert {site.name: site.test for site in report.sites} == {s: metrics(counts) for s, counts in record.test.items()}
    assert report.final == metrics(record.test_counts())
    for reported, of in zip(report.rounds, record.rounds, strict=True):
        assert (reported.round, reported.sites, reported.seconds, reported.attempt) == (
            of.number,
            ("a", "b"),
            of.seconds,
            1,
        )
        assert reported.by_site == {name: metrics(of.validation[name]) for name in "abc"}
        assert reported.validation == metrics(of.together)
        assert reported.excluded == {"c": f"round {of.number}: update: its disk is full"}
    assert report.confusion is not None
    assert report.confusion.classes == ("no", "yes")
    assert dict(record.settings).items() <= dict(report.settings).items()
    assert (report.baselines.to_mapping(), report.parity, report.shared_patients) == ({}, None, None)
    assert "SECURE AGGREGATION WAS OFF" in report.privacy.protects[1]
    page = (tmp_path / "report.html").read_text()
    assert "its disk is full" in page
    assert "Gain of each hospital" not in page


@pytest.mark.parametrize("present", ["report.json", "report.html"])
def test_an_existing_report_is_kept(present: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Either file is enough to refuse, before anything is read; --overwrite replaces both."""
    (tmp_path / present).write_text("precious")
    assert main(["report", str(tmp_path)]) == 1
    refused = capsys.readouterr()
    assert refused.err == f"coordinator report: {tmp_path} holds {present} already: --overwrite replaces them\n"
    assert refused.out == ""
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(present, "precious")]
    federated(tmp_path, Site(describe("a")), Site(describe("b")))
    assert main(["report", str(tmp_path), "--overwrite"]) == 0
    assert load_report(tmp_path / "report.json").mode == "deployment"
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_a_local_baseline_is_reported_beside_the_federation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If the record has its counts, the site's row has them, too; other sites have none."""
    record = federated(tmp_path, Site(describe("a")), Site(describe("b")))
    tested = record.test["b"]
    assert isinstance(tested, Counts)
    ((negatives, alarms), (missed, found)) = tested.confusion
    all_right = replace(tested, confusion=((negatives + alarms, 0), (0, missed + found)))
    all_wrong = replace(tested, confusion=((0, negatives + alarms), (missed + found, 0)))
    write(tmp_path, replace(record, test={**record.test, "b": all_wrong}, local_baseline={"b": all_right}))
    capsys.readouterr()
    assert main(["report", str(tmp_path)]) == 0
    a, b = load_report(tmp_path / "report.json").sites
    assert (a.gain, a.baselines.to_mapping()) == (None, {})
    assert b.baselines.local_baseline == metrics(all_right)
    assert b.gain is not None
    assert (b.gain.accuracy, b.gain.outcome) == (-1.0, "worse")
    assert "  local baseline of b: AUC not defined on its own tests (federated not defined: WORSE in accuracy)" in (
        capsys.readouterr().out.splitlines()
    )


def test_findings_have_names_and_points(tmp_path: Path) -> None:
    """In a multi-label federation each finding has its figures, under its name."""
    shape = {"classes": ("Edema", "Fracture"), "multi_label": True}
    federated(tmp_path, *(Site(describe(name, **shape)) for name in "ab"))
    assert main(["report", str(tmp_path), "--sensitivity", "0.7"]) == 0
    report = load_report(tmp_path / "report.json")
    assert list(report.findings) == ["Edema", "Fracture"]
    edema = findings(2).findings[0]
    expected = operating_point(edema + edema, findings(1).findings[0] + findings(1).findings[0], 0.7)
    assert report.findings["Edema"].operating_point == expected
    assert report.settings["wanted sensitivity"] == 0.7


def test_a_threshold_is_chosen_on_the_last_round_s_validation(tmp_path: Path) -> None:
    """On all sites' validation patients together, after the last round, and applied to the test patients."""
    record = federated(tmp_path, Site(describe("a")), Site(describe("b")))
    early, low, high, tests = (
        count(np.array([1, 0]), np.array([[1 - p, p], [0.9, 0.1]])) for p in (0.2, 0.4, 0.6, 0.95)
    )
    first, last = record.rounds
    rounds = (
        replace(first, validation={"a": early, "b": early}),
        replace(last, validation={"a": high, "b": low}),
    )
    write(tmp_path, replace(record, rounds=rounds, test={"a": tests}))
    assert main(["report", str(tmp_path)]) == 0
    point = load_report(tmp_path / "report.json").operating_point
    assert point == operating_point(high + low, tests, 0.9)
    assert point is not None
    assert 0.3 < point.probability <= 0.4


@pytest.mark.parametrize(("sensitivity", "status"), [("0", 2), ("1.1", 2), ("nan", 2), ("1", 0)])
def test_a_sensitivity_is_a_share(sensitivity: str, status: int, tmp_path: Path) -> None:
    """Other values are wrong usage."""
    federated(tmp_path, Site(describe("a")), Site(describe("b")))
    command = ["report", str(tmp_path), f"--sensitivity={sensitivity}"]
    if status:
        with pytest.raises(SystemExit) as exit_:
            main(command)
        assert exit_.value.code == status
    else:
        assert main(command) == status


def test_a_folder_without_a_record_has_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without a finished federation is refused in one line, and is not changed."""
    assert main(["report", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"coordinator report: cannot read the federation's record {tmp_path / 'federation.json'}: "
        "No such file or directory: a run writes it when it ends\n"
    )
    assert list(tmp_path.iterdir()) == []
    record = federated(tmp_path, Site(describe("a")), Site(describe("b")))
    before = {path.name for path in tmp_path.iterdir()}
    for changes in ({"rounds": ()}, {"sites": ()}, {"test": {}}):
        write(tmp_path, replace(record, **changes))  # type: ignore[arg-type]
        capsys.readouterr()
        assert main(["report", str(tmp_path)]) == 1
        assert "has no site, no round or no test: it is not a finished run" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == before
