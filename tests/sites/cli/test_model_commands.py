"""`fedpp-site lookup`: names behind pseudonyms, the page of the worst errors, and the log of who asked."""

import csv
import io
import json
import re
import stat
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from chexpert_folder import write_hospitals
from hospital import error_of, found, keys, site

from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.keys import key_store
from fedpp.keys.passphrase import from_file
from sites.vault.audit.audit_log import AuditLog, Signer

SMALL = ("--size", 8, "--frames", 2)
NOBODY = "0" * 32
HEADING = "pseudonym\tpatient\tsequence"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a hospital with a dataset of eight patients, unsealed, and predictions of it."""
    folder = found(tmp_path_factory.mktemp("site"), patients=8)
    site("ingest", folder / "raw" / "hospital-1", *keys(folder), "--out", folder / "data", *SMALL, "--no-at-rest")
    rows = [
        {
            "sequence": row["id"].decode(),
            "patient": row["patient"].decode(),
            "split": "test",
            "frames": int(row["length"]),
            "label": ("growing", "stable")[number % 2],
            "probabilities": {"stable": 0.9, "growing": 0.1} if number < 6 else {"stable": 0.2, "growing": 0.8},
        }
        for number, row in enumerate(EncryptedDataset.open(folder / "data").sequences)
    ]
    (folder / "predictions.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def log(folder: Path) -> Path:
    """Return the path of the domain's log of lookups, which is not there."""
    log = folder / "domain" / "lookups.log"
    log.unlink(missing_ok=True)
    return log


def raw(folder: Path) -> tuple[object, ...]:
    return "lookup", folder / "raw" / "hospital-1", *keys(folder)


def rows_of(folder: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads((folder / "predictions.json").read_text())
    return rows


def patients(folder: Path) -> dict[str, str]:
    """Return each patient's name by pseudonym."""
    domain = key_store.open_domain(folder / "domain", from_file(folder / "passphrase"))
    with (folder / "raw" / "hospital-1" / "labels.csv").open() as table:
        return {domain.pseudonym("patient", row["patient"]): row["patient"] for row in csv.DictReader(table)}


def asked(log: Path) -> list[tuple[str, str, list[str]]]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [(line["outcome"], line["shown"], line["pseudonyms"]) for line in lines[1:]]


def test_names_come_from_arguments_standard_input_and_predictions(
    folder: Path, log: Path, monkeypatch: pytest.MonkeyPatch
):
    """All three ways name the same patients, in order, each of them is logged, and the log's signature is verified."""
    rows, names = rows_of(folder), patients(folder)
    sequences = [row["sequence"] for row in rows]
    lines = [HEADING, *("\t".join((row["sequence"], names[row["patient"]], "visits")) for row in rows)]
    assert site(*raw(folder), *sequences, sequences[0]).stdout.splitlines() == lines
    assert site(*raw(folder), "--predictions", folder / "predictions.json").stdout.splitlines() == lines
    heading = "sequence\tpatient\tsplit\tlabel"
    printed = "\n".join([heading, *(f"{name}\tx\ttest" for name in sequences), ""])
    monkeypatch.setattr(sys, "stdin", io.StringIO(printed))
    piped = site(*raw(folder), "--json")
    assert json.loads(piped.stdout) == [
        {"pseudonym": row["sequence"], "patient": names[row["patient"]], "sequence": "visits"} for row in rows
    ]
    assert not any(name in piped.stderr for name in names.values())
    patient, name = next(iter(names.items()))
    assert site(*raw(folder)[:2], patient, *keys(folder)).stdout.splitlines() == [HEADING, f"{patient}\t{name}\t-"]
    assert asked(log) == [("found", "names", sequences)] * 3 + [("found", "names", [patient])]
    assert not any(name in log.read_text() for name in names.values())
    certificate = ("--certificate", folder / "domain" / "site.certificate")
    verified = json.loads(site("audit-log", "verify", log, *certificate, "--json").stdout)
    assert (verified["records"], verified["signed_by"].split(",")[0]) == (5, "founder")
    log.write_text(log.read_text().replace(patient, NOBODY))
    assert "line 5 has a signature that is not" in error_of("audit-log", "verify", log, *certificate)


def test_unknown_pseudonyms_are_named_and_logged(folder: Path, log: Path):
    """Whoever is known is printed; the command fails with the others, of which many are counted."""
    (known, *_), names = rows_of(folder), patients(folder)
    failed = site(*raw(folder), NOBODY, known["patient"], check=1)
    assert failed.stdout.splitlines() == [HEADING, f"{known['patient']}\t{names[known['patient']]}\t-"]
    assert f"has the pseudonym {NOBODY}: name the raw data, --layout and its options as at ingest" in failed.stderr
    many = [f"{number:032x}" for number in range(10)]
    last = site(*raw(folder), *many, check=1).stderr.splitlines()[-1]
    assert f"{many[7]} and 2 more" in last
    assert many[8] not in last
    unknown = [("unknown", "names", [NOBODY]), ("unknown", "names", many)]
    assert asked(log) == [("found", "names", [known["patient"]]), *unknown]


def test_another_domain_knows_nobody(folder: Path, tmp_path: Path):
    """Its key gives the same patients other pseudonyms; the question stands in its own log."""
    site("keygen", "--out", tmp_path / "domain", "--passphrase-file", folder / "passphrase")
    foreign = ("--domain", tmp_path / "domain", "--passphrase-file", folder / "passphrase")
    wanted = rows_of(folder)[0]["patient"]
    failed = site("lookup", folder / "raw" / "hospital-1", *foreign, wanted, check=1)
    assert failed.stdout.splitlines() == [HEADING]
    assert asked(tmp_path / "domain" / "lookups.log") == [("unknown", "names", [wanted])]


def test_the_page_has_the_wrong_ones_and_the_terminal_no_name(folder: Path, log: Path, tmp_path: Path):
    """Mode 0600, the four wrong of eight predictions, each with its patient; stdout and stderr have counts only."""
    names, page = patients(folder), tmp_path / "errors.html"
    given = (*raw(folder), "--predictions", folder / "predictions.json", "--page", page)
    done = site(*given, "--json")
    wrong = [row for row in rows_of(folder) if row["label"] != max(row["probabilities"], key=row["probabilities"].get)]
    expected = {"predictions": 8, "unlabelled": 0, "errors": {"false negatives": 3, "false positives": 1}, "shown": 4}
    assert json.loads(done.stdout) == expected
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert set(re.findall(r"<code>([0-9a-f]{32})</code>", page.read_text())) == {row["sequence"] for row in wrong}
    shown = {name for name in names.values() if f">{name}<" in page.read_text()}
    assert shown == {names[row["patient"]] for row in wrong}
    assert not any(name in done.stdout + done.stderr for name in names.values())
    assert [(outcome, what, set(of)) for outcome, what, of in asked(log)] == [
        ("found", "page", {row["sequence"] for row in wrong})
    ]
    before = page.read_bytes()
    assert "exists: choose another name, or replace it with --overwrite" in error_of(*given)
    assert page.read_bytes() == before
    site(*given, "--overwrite", "--worst", 1)
    assert len(re.findall(r"<code>[0-9a-f]{32}<", page.read_text())) == 2
    assert stat.S_IMODE(page.stat().st_mode) == 0o600


def test_no_page_is_written_of_errors_that_the_raw_data_lack(folder: Path, log: Path, tmp_path: Path):
    """An unknown sequence among those that would be shown ends the command before there is a page."""
    rows = rows_of(folder)
    rows[0]["sequence"] = NOBODY
    (tmp_path / "predictions.json").write_text(json.dumps(rows))
    page = ("--predictions", tmp_path / "predictions.json", "--page", tmp_path / "errors.html")
    failed = site(*raw(folder), *page, check=1)
    assert f"has the pseudonym {NOBODY}: " in failed.stderr
    assert failed.stdout == ""
    assert not (tmp_path / "errors.html").exists()
    assert ("unknown", "page", [NOBODY]) in asked(log)


@pytest.mark.parametrize(
    ("more", "message", "status"),
    [
        ((NOBODY, "MRN-7"), "text 2 of 2 is no pseudonym, 32 hexadecimal digits in lower case: it has 5 characters", 1),
        ((), "standard input holds no pseudonym: `fedpp-site predict` prints them", 1),
        ((NOBODY, "--predictions", "p.json"), "--predictions is in place of pseudonyms, and 1 pseudonym came, too", 2),
        (("--page", "e.html"), "--page shows the errors among --predictions FILE", 2),
        ((NOBODY, "--worst", 3), "--worst is for --page FILE: give that, too", 2),
        ((NOBODY, "--overwrite"), "--overwrite is for --page FILE: give that, too", 2),
        (("--predictions", "none.json"), "cannot read the predictions none.json: No such file or directory", 1),
        ((NOBODY, "--unknown"), "unknown option --unknown", 2),
        ((NOBODY, "--layout", "chexpert"), "hospital-1", 1),
    ],
)
def test_wrong_arguments_end_in_one_line_and_no_record(
    more: tuple[object, ...],
    message: str,
    status: int,
    folder: Path,
    log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Nothing is looked up, so nothing is logged."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    failed = site(*raw(folder), *more, check=status)
    assert message in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert "MRN" not in failed.stderr
    assert failed.stdout == ""
    assert not log.exists()


def test_no_name_is_shown_that_cannot_be_logged(folder: Path, log: Path):
    """While another lookup has the log, or after somebody changed it, nothing is printed."""
    wanted = rows_of(folder)[0]["patient"]
    identity = key_store.open_identity(folder / "domain", from_file(folder / "passphrase"))
    with closing(AuditLog.open(log, Signer.of(identity))):
        busy = site(*raw(folder), wanted, check=1)
    assert busy.stderr.splitlines()[-1] == (
        f"fedpp-site lookup: another lookup is writing {log}: try again when it has ended"
    )
    site(*raw(folder), wanted)
    log.write_text(log.read_text().replace(wanted, NOBODY))
    changed = site(*raw(folder), wanted, check=1)
    assert "has a signature that is not by the log's key" in changed.stderr
    assert busy.stdout + changed.stdout == ""


@pytest.mark.usefixtures("log")
def test_visits_are_found_by_the_options_of_ingest(folder: Path, tmp_path: Path):
    """A visit's pseudonym needs the finding that labels it; whoever asks with another one does not find it."""
    write_hospitals(tmp_path)
    xrays, made = tmp_path / "north", ("--predict", "visit", *SMALL, "--no-at-rest")
    site("ingest", xrays, *keys(folder), "--out", tmp_path / "data", *made)
    dataset = EncryptedDataset.open(tmp_path / "data")
    every = dataset.ids(np.arange(len(dataset)))
    lines = site("lookup", xrays, *keys(folder), *every).stdout.splitlines()[1:]
    named = {tuple(re.fullmatch(r"\w+\t(\w+)\t.* (\d)", line).groups()) for line in lines}
    with (xrays / "train.csv").open() as table:
        rows = [(row["Path"].split("/"), row["Pleural Effusion"]) for row in csv.DictReader(table)]
    assert named == {(patient, study[-1]) for (_, patient, study, _), label in rows if label}
    other = site("lookup", xrays, *keys(folder), *every, "--target", "Consolidation", check=1)
    assert len(other.stdout.splitlines()) == 1 + sum(study != "2" for _, study in named)
    assert "--layout and its options as at ingest" in other.stderr
