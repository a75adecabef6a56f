"""`fedpp-site` as a hospital uses it: real files, a process for each group of commands, exit statuses, error lines."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA
from hospital import error_of, found, keys, site, site_process

from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.imaging.readers.layout import Choices, read_sequences

pytestmark = pytest.mark.usefixtures("eager")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a hospital."""
    return found(tmp_path_factory.mktemp("site"), patients=12)


def test_a_site_trains_and_evaluates_by_itself(folder: Path):
    """keygen, ingest, inspect, train, evaluate and predict work on one another's results; predict is traced, too."""
    raw = folder / "raw" / "hospital-1"
    shape = ("--size", 16, "--frames", 3, "--split", "stratified")
    taken = site_process("ingest", raw, *keys(folder), "--out", folder / "data", *shape, "--json")
    summary = json.loads(taken.stdout)
    assert sum(summary["sequences"].values()) == 12
    shown = json.loads(site("inspect", folder / "data", "--json").stdout)
    assert shown["shape"] == [3, 16, 16, 1]
    assert shown["checksums"] == "intact"
    assert shown["domain"] == json.loads(site("card", folder / "domain").stdout)["fingerprint"]
    training = ("train", folder / "data", "--domain", folder / "domain", "--epochs", 1, "--seed", 1)
    model = json.loads(site(*training, "--out", folder / "model", "--json").stdout)["model"]
    figures = json.loads(site("evaluate", model, folder / "data", *keys(folder), "--json").stdout)
    assert figures["examples"] == summary["sequences"]["test"]
    curves = figures["curves"]
    assert figures["auc"] == pytest.approx(np.trapezoid(curves["sensitivity"], curves["false_positive_rate"]))
    point = ("evaluate", model, folder / "data", *keys(folder), "--sensitivity", 1)
    chosen = json.loads(site(*point, "--split", "validation", "--json").stdout)["operating_point"]
    assert chosen["decisions"]["sensitivity"] == 1.0
    assert any(line.startswith("threshold ") for line in site(*point).stdout.splitlines())
    rows = json.loads(site("predict", model, folder / "data", *keys(folder), "--json").stdout)
    assert len(rows) == figures["examples"]
    assert {(row["split"], *row["probabilities"]) for row in rows} == {("test", *summary["classes"])}
    assert all(abs(sum(row["probabilities"].values()) - 1) < 1e-9 for row in rows)
    head, *lines = site_process("predict", model, folder / "data", *keys(folder)).stdout.splitlines()
    facts = ("sequence", "patient", "split", "label")
    assert head.split("\t") == [*facts, *(f"P({name})" for name in summary["classes"])]
    assert [line.split("\t")[:4] for line in lines] == [[row[fact] for fact in facts] for row in rows]
    decided = Counter((row["label"], max(row["probabilities"], key=row["probabilities"].get)) for row in rows)
    names, matrix = figures["confusion"]["classes"], figures["confusion"]["matrix"]
    assert [[decided[label, name] for name in names] for label in names] == matrix
    everything = json.loads(site("predict", model, folder / "data", *keys(folder), "--split", "all", "--json").stdout)
    assert [row for row in everything if row["split"] == "test"] == rows
    counted = Counter(row["split"] for row in everything), Counter(row["label"] for row in everything)
    assert counted == ({s: n for s, n in summary["sequences"].items() if n}, summary["classes"])
    assert len({row["patient"] for row in everything}) == sum(summary["patients"].values())
    written = folder / "predictions.json"
    written.write_text(json.dumps(everything))
    wrong = ("lookup", raw, *keys(folder), "--predictions", written, "--page", folder / "errors.html", "--json")
    errors = json.loads(site(*wrong).stdout)["errors"]
    assert sum(errors.values()) == sum(row["label"] != max(p := row["probabilities"], key=p.get) for row in everything)
    assert "not overwritten" in error_of(*training, "--out", folder / "model")
    bare = shutil.copytree(raw, folder / "bare", ignore=shutil.ignore_patterns("labels.csv"))
    site("ingest", bare, *keys(folder), "--out", folder / "bare data", *shape)
    unlabelled = json.loads(site("predict", model, folder / "bare data", *keys(folder), "--json").stdout)
    assert [row["label"] for row in unlabelled] == [None] * 12
    assert {row["sequence"] for row in unlabelled} == {row["sequence"] for row in everything}
    none = error_of("evaluate", model, folder / "bare data", *keys(folder))
    assert "has no labels to evaluate against: `predict` needs none, or ingest it with labels: the column label" in none
    site("ingest", raw, *keys(folder), "--out", folder / "no test", *shape, "--test", 0)
    for command, choices in (("predict", "train, validation or all"), ("evaluate", "train or validation")):
        empty = error_of(command, model, folder / "no test", *keys(folder))
        assert empty.endswith(f"has no sequence in split test: choose --split {choices}")
    site("ingest", raw, *keys(folder), "--out", folder / "no validation", *shape, "--validation", 0)
    chosen = error_of("evaluate", model, folder / "no validation", *keys(folder), "--sensitivity", 0.9)
    assert chosen.endswith("--sensitivity chooses its threshold there: leave it out, or ingest with other shares")


def test_visits_of_x_rays_are_predicted(folder: Path):
    """Windows of visits are ingested with the label of their newest; the layout and the negative class are reported."""
    raw = DATA / "chexpert_layout" / "site_a"
    size = ("--size", 8, "--frames", 2, "--window", 3, "--stride", 2, "--min-length", 2)
    done = site("ingest", raw, *keys(folder), "--out", folder / "visits", "--predict", "visit", *size, "--json")
    summary = json.loads(done.stdout)
    histories = [s.labels for s in read_sequences(raw)[0]]
    expected = [labels[last] for labels in histories for last in range(len(labels) - 1, 0, -2)]
    assert sum(summary["sequences"].values()) == len(expected)
    assert summary["classes"] == {name: expected.count(name) for name in ("no Pleural Effusion", "Pleural Effusion")}
    recognised, *account = done.stderr.splitlines()  # keys are random: a small split may lack a class, and be noted
    assert recognised.startswith("CheXpert, by the header of its table")
    assert account[0].startswith("account: ")
    positive = "the negative class is 'no Pleural Effusion', positive is 'Pleural Effusion'"
    assert account.count(f"{positive}: --negative or --classes choose another") == 1
    whole = site("ingest", raw, *keys(folder), "--out", folder / "edema", "--size", 8, "--target", "Edema", "--json")
    edema = [s.label for s in read_sequences(raw, "chexpert", Choices(target="Edema"))[0]]
    assert json.loads(whole.stdout)["classes"] == {name: edema.count(name) for name in ("no Edema", "Edema")}
    longer = ("--predict", "visit", "--window", 99, "--min-length", 99, "--out", folder / "none")
    none = error_of("ingest", raw, *keys(folder), *longer)
    assert "none has 99 visits or more, of which the newest is labelled; lower --min-length" in none
    assert edema != [s.label for s in read_sequences(raw)[0]]


def test_a_diverged_training_writes_no_model(folder: Path):
    """Weights that become non-finite end in an error, without a model."""
    raw = folder / "raw" / "hospital-1"
    site("ingest", raw, *keys(folder), "--out", folder / "diverging", "--size", 16, "--frames", 2)
    training = ("train", folder / "diverging", "--domain", folder / "domain", "--epochs", 2, "--learning-rate", 1e38)
    *epochs, error = site(*training, "--out", folder / "diverged", check=1).stderr.splitlines()
    assert all(line.startswith("epoch ") for line in epochs)
    assert "is not finite" in error
    assert "in epoch" in error
    assert error.endswith("lower the learning rate")
    assert not list((folder / "diverged").iterdir())


def test_the_real_multi_frame_file_is_ingested(folder: Path):
    """A 30-frame colour ultrasound, JPEG in YBR, becomes one unlabelled sequence."""
    out = folder / "ybr"
    file = DATA / "dicom" / "examples_ybr_color.dcm"
    done = site("ingest", file, *keys(folder), "--out", out, "--json")
    assert sum(json.loads(done.stdout)["sequences"].values()) == 1
    assert "note: no sequence has a label, so no model can be trained on these data or tested on them: " in done.stderr
    assert EncryptedDataset.open(out).sequences["length"].tolist() == [30]


@pytest.mark.parametrize("name", ["MR_truncated.dcm", "no_meta.dcm", "empty", "csv"])
def test_bad_input_ends_with_one_line_and_writes_nothing(folder: Path, tmp_path: Path, name: str):
    """Damaged DICOM, an empty folder and a table that names a missing file: exit 1, the account, nothing written."""
    raw = DATA / "dicom" / name
    if name == "empty":
        raw = tmp_path / "empty"
        raw.mkdir()
    if name == "csv":
        raw = tmp_path / "frames"
        raw.mkdir()
        (raw / "index.csv").write_text("sequence,patient,label\ns1,p1,a\n")
    *account, line = (
        site("ingest", raw, *keys(folder), "--out", tmp_path / "out", "--account", tmp_path / "names", check=1)
        .stderr.strip()
        .splitlines()
    )
    assert line.startswith("fedpp-site ingest: ")
    assert (account == []) == (name == "empty")
    named = "s1" if name == "csv" else raw
    assert name == "empty" or f",{named}," in (tmp_path / "names").read_text()
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_wrong_usage_and_wrong_keys(folder: Path, tmp_path: Path):
    """Wrong usage exits 2; a wrong passphrase, an existing domain and an unknown label exit 1 with what to do."""
    for wrong, said in (
        (("ingest",), "required: raw"),
        (("nonsense",), "invalid choice: 'nonsense'"),
        (("inspect", ""), "must name a file or a folder, got ''"),
        (
            ("evaluate", "m", "d", *keys(folder), "--sensitivity", 90),
            "must be a number, above 0 and at most 1, got '90'",
        ),
        (
            ("train", "d", "--domain", "k", "--out", "o", "--learning-rate", -1),
            "must be a finite number above 0, got '-1'",
        ),
        (("train", "d", "--domain", "k", "--out", "o", "--learning-rate", "x"), "a finite number above 0, got 'x'"),
        (("train", "d", "--domain", "k", "--out", "o", "--epochs", "two"), "whole number from 1 to 1000, got 'two'"),
    ):
        (line,) = site(*wrong, check=2).stderr.splitlines()
        assert said in line
        assert line.endswith("(--help lists what it takes)")
    wrong = tmp_path / "wrong"
    wrong.write_text("a passphrase that is wrong\n")
    wrong.chmod(0o600)
    raw = folder / "raw" / "hospital-1"
    out = ("--out", tmp_path / "out")
    domain = ("--domain", folder / "domain")
    assert "wrong passphrase" in error_of("ingest", raw, *domain, "--passphrase-file", wrong, *out)
    assert "not overwritten" in error_of("keygen", "--out", folder / "domain", "--passphrase-file", wrong)
    failed = site("ingest", raw, *keys(folder), *out, "--negative", "healthy", check=1)
    assert "negative label" in failed.stderr.splitlines()[-1]
    assert error_of("inspect", tmp_path / "none").startswith("fedpp-site inspect: cannot read")


def test_findings_are_trained_and_evaluated(folder: Path, tmp_path: Path):
    """Metrics are printed for each finding, with the operating point of a sensitivity if one is given."""
    raw, out = DATA / "chexpert_layout" / "site_a", tmp_path / "data"
    ingest = ("ingest", raw, *keys(folder), "--out", out, "--size", 8, "--frames", 1, "--target", "competition")
    summary = json.loads(site(*ingest, "--predict", "visit", "--stride", 4, "--json").stdout)
    training = ("train", out, "--domain", folder / "domain", "--epochs", 1, "--architecture", "cnn", "--json")
    model = json.loads(site(*training, "--out", tmp_path / "model").stdout)["model"]
    evaluate = ("evaluate", model, out, *keys(folder))
    plain = json.loads(site(*evaluate, "--json").stdout)
    figures = json.loads(site(*evaluate, "--sensitivity", 0.8, "--json").stdout)
    assert list(figures["findings"]) == list(summary["classes"])
    assert figures["examples"] == summary["sequences"]["test"]
    for name, finding in figures["findings"].items():
        point = finding.pop("operating_point")
        assert finding | {"remarks": []} == plain["findings"][name] | {"remarks": []}
        assert finding["known"] == figures["examples"]
        assert point is None or (point["wanted"], set(point["intervals"]) < set(finding)) == (0.8, True)
    aucs = [finding["auc"] for finding in figures["findings"].values() if finding["auc"] is not None]
    assert figures["auc"] == pytest.approx(sum(aucs) / len(aucs))
    table = site(*evaluate, "--sensitivity", 0.8).stdout
    assert all(any(line.startswith(name) for line in table.splitlines()) for name in figures["findings"])
    rows = json.loads(site("predict", model, out, *keys(folder), "--json").stdout)
    assert {tuple(row["probabilities"]) for row in rows} == {tuple(figures["findings"])}
    for name, finding in figures["findings"].items():
        assert [row["label"][name] for row in rows].count(True) == sum(finding["confusion"]["matrix"][1])
    assert all(0 < p < 1 for row in rows for p in row["probabilities"].values())
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    wrong = ("lookup", raw, *keys(folder), "--predictions", tmp_path / "rows.json", "--target", "competition")
    errors = json.loads(site(*wrong, "--page", tmp_path / "errors.html", "--json").stdout)["errors"]
    for name, finding in figures["findings"].items():
        (_, alarms), (missed, _) = finding["confusion"]["matrix"]
        assert errors[name] == {"false negatives": missed, "false positives": alarms}
