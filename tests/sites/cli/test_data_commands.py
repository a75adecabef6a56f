"""Data commands of `fedpp-site`: real sets, killed processes, sealed datasets, and secrecy of identifiers."""

import csv
import json
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import DATA, ROOT
from hospital import error_of, found, keys, site, site_process
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from raw_images import write_images

from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.imaging.readers.dicom_folder import is_dicom
from fedpp.keys import key_store
from fedpp.keys.encryption import decrypt_findings
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.passphrase import from_file

SMALL = ("--size", 8, "--frames", 2)
UNSEALED = ("--no-at-rest",)  # so that what was written can be compared, read and damaged


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a hospital."""
    return found(tmp_path_factory.mktemp("site"), patients=24)


def opened(folder: Path) -> KeyDomain:
    return key_store.open_domain(folder / "domain", from_file(folder / "passphrase"))


def ingested(folder: Path, raw: Path, out: Path, *options: object) -> dict[str, object]:
    done = site("ingest", raw, *keys(folder), "--out", out, *UNSEALED, *options, "--json")
    summary: dict[str, object] = json.loads(done.stdout)
    return summary


def content(dataset: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in dataset.iterdir()}


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_ingest_is_completed_by_the_next(folder: Path, tmp_path: Path, kills: int):
    """Killed at any moment, ingest leaves no dataset, and the next run writes the bytes of an uninterrupted one."""
    raw = folder / "raw" / "hospital-1"
    large = ("--size", 256, "--frames", 3)  # so that it writes for a while
    arguments = ("ingest", raw, *keys(folder), *UNSEALED, *large, "--out")
    started = time.monotonic()
    site(*arguments, tmp_path / "uninterrupted")
    duration = time.monotonic() - started
    uninterrupted, moments, out = content(tmp_path / "uninterrupted"), random.Random(0), tmp_path / "killed" / "out"
    killed = writing = 0
    for number in range(kills):
        command, nowhere = [sys.executable, "-m", "sites", *map(str, (*arguments, out))], subprocess.DEVNULL
        process = subprocess.Popen(command, cwd=ROOT, stderr=nowhere, stdout=nowhere)
        if number % 2:  # while it writes
            deadline = time.monotonic() + 60
            while not (out.parent / ".out.partial").exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.001)
        else:
            time.sleep(moments.uniform(0.3, 1) * duration)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        writing += (out.parent / ".out.partial").exists()
        if out.exists():  # it was done before the signal came
            assert content(out) == uninterrupted
            shutil.rmtree(out)
    assert killed
    assert writing
    site(*arguments, out)
    assert content(out) == uninterrupted
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_no_identifier_of_the_real_sets_leaves_the_secret_zone(folder: Path, tmp_path: Path):
    """No patient, path, file name or text of a table or DICOM tag stands in any byte of an encrypted dataset."""
    for number, (raw, options) in enumerate(
        (
            (DATA / "ultrasound_sequences", ("--negative", "Regular")),
            (DATA / "chexpert_layout" / "site_b", ()),
            (DATA / "breakhis_layout", ()),
            (DATA / "dicom", ("--max-lost", 9)),
            (folder / "raw" / "hospital-1", ()),
        )
    ):
        out = tmp_path / str(number)
        summary = ingested(folder, raw, out, *SMALL, "--at-rest" if number == 4 else "--gaps=none", *options)
        everything = b"".join(content(out).values())
        public = (*summary["classes"], "train", "labels")  # names of classes name labels; words of the format, too
        wanted = {text for text in identifiers(raw) if not any(text in name for name in public)}
        wanted |= {"PHANTOM", "Phantom", "20210104"}
        assert len(wanted) > 20
        assert {text for text in wanted if text.encode() in everything} == set()


def test_three_labels_need_a_choice_and_a_list_leaves_some_out(folder: Path, tmp_path: Path):
    """Without a choice, status 2 and the counts; a list counts what it leaves out; the positive side has a name."""
    raw, labels = tmp_path / "raw", ["well", "ill", "sick", "well"] * 3
    write_images(raw, *(f"p{number}/1.png" for number in range(12)))
    rows = [f"p{number},{label}" for number, label in enumerate(labels)]
    (raw / "labels.csv").write_text("\n".join(["patient,label", *rows]) + "\n")
    refused = site("ingest", raw, *keys(folder), "--out", tmp_path / "none", *SMALL, check=2)
    (line,) = refused.stderr.splitlines()
    assert "3 different labels are 'ill' 3, 'sick' 3, 'well' 6: choose --negative LABEL" in line
    assert not (tmp_path / "none").exists()
    against = ingested(folder, raw, tmp_path / "against", *SMALL, "--negative", "well")
    assert (against["classes"], against["left_out"]) == ({"well": 6, "ill or sick": 6}, {})
    out = ("--out", tmp_path / "listed")
    done = site("ingest", raw, *keys(folder), *out, *SMALL, "--classes", "well=Well,ill", "--json")
    listed = json.loads(done.stdout)
    assert (listed["classes"], listed["left_out"]) == ({"Well": 6, "ill": 3}, {"sick": 3})
    assert sum(EncryptedDataset.open(tmp_path / "listed").counts().values()) == 9
    notes = done.stderr.splitlines()
    assert "the negative class is 'Well', positive is 'ill'" in notes
    assert "left out, as in no class: 3 sequences: sick 3" in notes


def identifiers(raw: Path) -> set[str]:
    """Return what names somebody or something in a folder of raw data: five characters or more, and no bare number.

    Shorter ones and numbers occur by chance among millions of bytes.
    """
    texts: set[str] = set()
    for file in raw.rglob("*"):
        texts |= {file.name, *file.relative_to(raw).parts, file.stem}
        if file.suffix == ".csv" and file.is_file():
            texts |= {cell.strip() for line in file.read_text().splitlines()[1:] for cell in line.split(",")}
        elif file.is_file() and is_dicom(file):
            with suppress(Exception):  # of files that are broken on purpose
                image = pydicom.dcmread(file, stop_before_pixels=True, force=True)
                texts |= {element.value.strip() for element in image.iterall() if isinstance(element.value, str)}
    return {text for text in texts if len(text) >= 5 and not text.replace(".", "").isdecimal()}


def test_splits_and_folds(folder: Path, tmp_path: Path):
    """Stratified splits have exact shares, every patient is in test in one fold of three, and a bad fold is refused."""
    raw = folder / "raw" / "hospital-1"
    even = ingested(folder, raw, tmp_path / "even", *SMALL, "--split", "stratified", "--test", 0.5, "--validation", 0)
    assert even["patients"] == {"train": 12, "validation": 0, "test": 12}
    tested: list[bytes] = []
    for fold in range(3):
        out = tmp_path / f"fold-{fold}"
        ingested(folder, raw, out, *SMALL, "--split", "stratified", "--folds", 3, "--fold", fold)
        dataset = EncryptedDataset.open(out)
        tested += dataset.sequences["patient"][dataset.indices("test")].tolist()
    assert len(tested) == len(set(tested)) == 24
    wrong = ("--folds", 3, "--fold", 3, "--out", tmp_path / "no")
    assert "fold" in error_of("ingest", raw, *keys(folder), *wrong)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--target", "Edema"),
            "target 'Edema' is for layout chexpert or mimic-cxr or nih-chestxray14, these data are read as dicom",
        ),
        (("--layout", "dicom", "--series", "slide"), "series 'slide' is for layout breakhis, these data are read as"),
        (("--stride", 2), "--stride 2 is for --predict visit: add that, or leave --stride out"),
        (("--folds", 4, "--test", 0.5), "--test 0.5 has no effect beside --folds 4, of which part --fold is for"),
        (("--min-length", 4), "no sequence is left: none has 4 visits or more; lower --min-length"),
    ],
)
def test_an_option_without_effect_is_refused(folder: Path, tmp_path: Path, options: tuple[object, ...], said: str):
    """An option that has no effect, or leaves nothing, is refused in one line before anything is written."""
    raw = folder / "raw" / "hospital-1"
    assert said in error_of("ingest", raw, *keys(folder), *SMALL, "--out", tmp_path / "out", *options)
    assert not list(tmp_path.iterdir())


def test_time_gaps_of_dicom_visits(folder: Path, tmp_path: Path):
    """The dates of a patient's visits become gaps of which one is positive, public or as ciphertext, as chosen."""
    raw = folder / "raw" / "hospital-1"
    for kind in ("public", "encrypted"):
        ingested(folder, raw, tmp_path / kind, *SMALL, "--gaps", kind)
    public, encrypted = (EncryptedDataset.open(tmp_path / kind) for kind in ("public", "encrypted"))
    domain = opened(folder)
    numbers = public.gaps(np.arange(24))
    assert (numbers[:, 0] == 0).all()
    assert (numbers[:, 1] > 0.5).all()
    decrypted = encrypted.gaps(np.arange(24)).astype(np.float64) @ domain.matrix()
    np.testing.assert_allclose(decrypted[..., 0], numbers, atol=1e-6)
    assert json.loads(site("inspect", tmp_path / "public", "--json").stdout)["gaps"] == "public"


@pytest.mark.usefixtures("eager")
def test_a_sealed_dataset_is_trained_on_and_verified(folder: Path, tmp_path: Path):
    """Sealed at rest: train and evaluate work with the domain's folder, and verify opens the seal with it only."""
    raw, out = folder / "raw" / "hospital-1", tmp_path / "sealed"
    ingested(folder, raw, out, *SMALL, "--at-rest", "--split", "stratified")
    domain = ("--domain", folder / "domain")
    assert json.loads(site_process("verify", out, *domain, "--json").stdout)["seal"] == "intact"
    assert json.loads(site("verify", out, "--json").stdout)["seal"] == "not checked: that needs --domain"
    training = ("train", out, *domain, "--epochs", 1, "--out", tmp_path / "model", "--json")
    model = json.loads(site(*training).stdout)["model"]
    figures = json.loads(site("evaluate", model, out, *keys(folder), "--json").stdout)
    assert figures["examples"] == len(EncryptedDataset.open(out).indices("test"))
    site("keygen", "--out", tmp_path / "other", "--passphrase-file", folder / "passphrase")
    assert "belongs to domain" in error_of("verify", out, "--domain", tmp_path / "other")


@pytest.mark.parametrize("damage", ["flipped", "truncated", "swapped"])
def test_damage_is_named_before_training(folder: Path, tmp_path: Path, damage: str):
    """A flipped, truncated or swapped shard: verify and train end in one line that names it, and no model is there."""
    raw, out = folder / "raw" / "hospital-1", tmp_path / "data"
    ingested(folder, raw, out, *SMALL)
    shard = out / "frames-00000.npy"
    whole = bytearray(shard.read_bytes())
    if damage == "flipped":
        whole[len(whole) // 2] ^= 1
    elif damage == "truncated":
        del whole[-7:]
    else:
        ingested(folder, raw, tmp_path / "other", *SMALL, "--seed", 1, "--size", 8, "--window", 2)
        whole = bytearray((tmp_path / "other" / shard.name).read_bytes())
    assert bytes(whole) != shard.read_bytes()
    shard.write_bytes(whole)
    assert str(shard) in error_of("verify", out)
    training = ("train", out, "--domain", folder / "domain", "--epochs", 1, "--out", tmp_path / "model")
    assert str(shard) in error_of(*training)
    assert not (tmp_path / "model").exists()


def test_unreadable_and_unlabelled_are_skipped_on_request(folder: Path, tmp_path: Path):
    """One bad file or missing label ends ingest; with the option for it, they are skipped and counted on stderr."""
    raw = DATA / "dicom"
    out = ("--out", tmp_path / "dicom", "--account", tmp_path / "account.csv")
    refused = site("ingest", raw, *keys(folder), *SMALL, *out, check=1)
    *account, line = refused.stderr.splitlines()
    why = "6 without a patient, 2 damaged or cut, 1 with another image's SOPInstanceUID"
    assert f"9 files would be lost ({why}), --max-lost is 0: --account" in line
    assert account[0] == "account: 20 files read, 9 lost, 15 passed over"
    assert not refused.stdout
    assert not (tmp_path / "dicom").exists()
    named = {row["path"]: row for row in csv.DictReader((tmp_path / "account.csv").read_text().splitlines())}
    assert set(named) == {path.relative_to(raw).as_posix() for path in raw.rglob("*") if path.is_file()}
    assert (named["MR_truncated.dcm"]["outcome"], named["MR_truncated.dcm"]["patient"]) == ("lost", "4MR1")
    assert stat.S_IMODE((tmp_path / "account.csv").stat().st_mode) == 0o600
    assert "account.csv exists: choose another name" in error_of("ingest", raw, *keys(folder), *SMALL, *out)
    out = out[:2]
    only = site("ingest", raw, *keys(folder), *SMALL, *out, "--skip-unreadable", check=1).stderr
    assert "7 files would be lost (6 without a patient, 1 with another image's SOPInstanceUID)" in only
    limits = ("--skip-unreadable", "--max-lost", 7)
    done = site("ingest", raw, *keys(folder), *SMALL, *out, *limits, "--json")
    summary = json.loads(done.stdout)
    assert summary["sequences"]["train"] > 0
    assert summary["account"]["lost"] == {
        "without a patient": 6,
        "damaged or cut": 2,
        "with another image's SOPInstanceUID": 1,
    }
    assert "account: 20 files read, 9 lost, 15 passed over\n  lost: 6 without a patient" in done.stderr
    assert not [path.name for path in raw.glob("*.dcm") if path.stem in done.stdout + done.stderr + only]
    table = tmp_path / "half" / "index.csv"
    frames = DATA / "ultrasound_sequences"
    names = sorted(path.name for path in frames.iterdir() if path.is_dir())[:6]
    table.parent.mkdir()
    for name in names:
        (table.parent / name).symlink_to(frames / name)
    rows = [f"{name},{name},{label}" for name, label in zip(names, ["a", "b", "", "a", "b", ""], strict=True)]
    table.write_text("\n".join(["sequence,patient,label", *rows]))
    half = ("ingest", table.parent, *keys(folder), *SMALL, "--out", tmp_path / "labelled")
    assert "2 of 6 sequences have no label" in error_of(*half)
    half = site(*half, "--drop-unlabelled")
    assert "left out, without a label: 2 sequences" in half.stderr


NAMES = st.text(st.sampled_from("ab.\x1b\x07\x7f\x9b\n\r\u202e\u2066\u2028\udcff"), min_size=1, max_size=12)


@settings(max_examples=8)
@given(names=st.lists(NAMES, min_size=4, max_size=4, unique=True))
def test_control_characters_of_names_and_labels_reach_no_terminal(
    names: list[str], folder: Path, tmp_path_factory: pytest.TempPathFactory
):
    """Whatever files, patients and labels are called, survey and ingest print line breaks of their own alone."""
    root = tmp_path_factory.mktemp("names")
    raw = root / f"raw {names[0]}"
    frames = ["0", "1", "2", f"3{names[1]}"]
    for number, name in enumerate(frames):
        (raw / name).mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(raw / name / f"0{names[2]}.png")
    (raw / "3").mkdir()
    (raw / "3" / f"broken {names[2]}.png").write_bytes(b"no image")
    labels = ["well", f"{names[3]} x".replace("\udcff", "").strip()]
    with (raw / "index.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["sequence", "patient", "label"])
        rows.writerows([str(number), f"p{number}", labels[number % 2]] for number in range(4))
    ingest = ("ingest", raw, *keys(folder), *SMALL, "--out", root / f"out {names[0]}")
    done = [
        site("survey", raw, "--out", root / f"{names[0]}.html", check=int(not labels[1].isprintable())),
        site("survey", raw, "--strict", check=1),
        site(*ingest, check=1),
        site(*ingest, "--skip-unreadable", check=int(not labels[1].isprintable())),  # no class has such a name
    ]
    for text in [text for command in done for text in (command.stdout, command.stderr)]:
        assert [line for line in text.split("\n") if not line.isprintable()] == []


def test_the_same_patient_at_two_sites_of_a_domain(folder: Path, tmp_path: Path):
    """The six patients of both X-ray sites have one pseudonym in a domain, and another in another domain."""
    sites = [DATA / "chexpert_layout" / name for name in ("site_a", "site_b")]
    both = set.intersection(*({path.name for path in site_.glob("**/patient*")} for site_ in sites))
    found = []
    for number, raw in enumerate(sites):
        ingested(folder, raw, tmp_path / str(number), *SMALL)
        found.append(set(EncryptedDataset.open(tmp_path / str(number)).sequences["patient"]))
    assert len(both) == len(found[0] & found[1]) == 6
    site("keygen", "--out", tmp_path / "other", "--passphrase-file", folder / "passphrase")
    other = ("--domain", tmp_path / "other", "--passphrase-file", folder / "passphrase")
    site("ingest", sites[0], *other, *SMALL, "--out", tmp_path / "foreign")
    foreign = set(EncryptedDataset.open(tmp_path / "foreign").sequences["patient"])
    assert len(foreign) == len(found[0])
    assert foreign & found[0] == set()


def test_the_competition_s_findings_of_the_real_x_rays(folder: Path, tmp_path: Path):
    """Ingested by visit, each finding is present and absent as often as a plain reading of the table counts."""
    raw = DATA / "chexpert_layout" / "site_a"
    summary = ingested(folder, raw, tmp_path / "five", *SMALL, "--target", "competition", "--predict", "visit")
    lines = [line.split(",") for line in (raw / "train.csv").read_text().splitlines()]
    expected = {}
    for name in ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"):
        cells = [cells[lines[0].index(name)] for cells in lines[1:]]
        present, absent = cells.count("1.0"), cells.count("0.0")
        expected[name] = {"present": present, "absent": absent, "unknown": len(cells) - present - absent}
    assert summary["findings"] == expected
    assert summary["classes"] == {name: counts["present"] for name, counts in expected.items()}
    shown = json.loads(site("inspect", tmp_path / "five", "--json").stdout)
    assert (shown["classes"], shown["multi_label"]) == (list(expected), True)
    domain = opened(folder)
    dataset = EncryptedDataset.open(tmp_path / "five")
    states = decrypt_findings(domain, dataset.labels(np.arange(len(dataset))))
    assert (states == 1).sum(axis=0).tolist() == list(summary["classes"].values())
    one_label = ("--classes", "0,1", "--target", "competition", "--out", tmp_path / "no")
    assert "several findings have their own names" in error_of("ingest", raw, *keys(folder), *one_label)


def test_colours_of_the_real_histology(folder: Path, tmp_path: Path):
    """BreakHis keeps its three channels if they are wanted, X-rays have three equal ones, and grey is the default."""
    raw = DATA / "breakhis_layout"
    assert ingested(folder, raw, tmp_path / "colour", *SMALL, "--colour")["shape"] == [2, 8, 8, 3]
    assert ingested(folder, raw, tmp_path / "grey", *SMALL)["shape"] == [2, 8, 8, 1]
    ingested(folder, DATA / "chexpert_layout" / "site_b", tmp_path / "x-rays", *SMALL, "--colour")
    domain = opened(folder)
    for name, equal in (("colour", False), ("x-rays", True)):
        rows = EncryptedDataset.open(tmp_path / name).frames(np.arange(5)).astype(np.float64)
        pixels = (rows @ domain.matrix())[..., 0]
        assert (np.ptp(pixels, axis=-1).max() < 1e-4) == equal


def test_a_patient_of_the_table_whose_folder_is_gone_is_reported(folder: Path, tmp_path: Path):
    """A survey has an issue, so that --strict fails, and ingest a note, both with a count; no patient is named."""
    raw = tmp_path / "raw"
    for patient in range(6):
        (raw / f"MRN-{patient}").mkdir(parents=True)
        pixels = np.random.default_rng(patient).integers(0, 256, (32, 32), np.uint8)
        Image.fromarray(pixels).save(raw / f"MRN-{patient}" / "1.png")
    labels = "".join(f"MRN-{patient},{'ill' if patient % 2 else 'well'}\n" for patient in range(8))
    (raw / "labels.csv").write_text(f"patient,label\n{labels}")
    strict = site("survey", raw, "--strict", check=1)
    assert "issue no-image: 2 patients in labels.csv of whom no image was read; restore" in strict.stdout
    assert "(no-image)" in strict.stderr
    noted = "note: labels.csv names 2 patients without an image that was read: are folders gone?"
    for number, options in enumerate([("--account", tmp_path / "account.csv"), ("--skip-unreadable",)]):
        done = site("ingest", raw, *keys(folder), "--out", tmp_path / str(number), *SMALL, *options)
        assert noted in done.stderr.splitlines()
        assert "MRN" not in done.stderr + done.stdout
        assert "\ntoo few patients in train (" in done.stderr
    rows = csv.DictReader((tmp_path / "account.csv").read_text().splitlines())
    assert [row["patient"] for row in rows if row["outcome"] == "no file"] == ["MRN-6", "MRN-7"]
    (raw / "labels.csv").write_text("".join(f"{line}\n" for line in f"patient,label\n{labels}".split("\n")[:7]))
    assert "no-image" not in site("survey", raw).stdout
    assert "note" not in site("ingest", raw, *keys(folder), "--out", tmp_path / "all", *SMALL).stderr


def test_what_only_encrypting_finds(folder: Path, tmp_path: Path):
    """A picture of two patients, and one that cannot be decoded, are told without a name, which the account has."""
    raw = tmp_path / "raw"
    for patient in range(6):
        (raw / f"MRN-{patient}").mkdir(parents=True)
        pixels = np.random.default_rng(min(patient, 4)).integers(0, 256, (32, 32), np.uint8)
        Image.fromarray(pixels).save(raw / f"MRN-{patient}" / "picture.png")
    options = ("ingest", raw, *keys(folder), *SMALL)
    done = site(*options, "--out", tmp_path / "whole", "--json")
    account = json.loads(done.stdout)["account"]
    (kind,) = account["issues"]
    assert kind in {"same-image", "same-image-in-two-splits"}
    assert account == {
        "read": 6,
        "tables": 0,
        "lost": {},
        "passed_over": {},
        "doubts": {},
        "issues": {kind: 1},
    }
    assert f"issue {kind}: 1 picture of several patients" in done.stderr
    bad = raw / "MRN-1" / "picture.png"
    content = bad.read_bytes()
    middle = content.index(b"IDAT") + 100
    bad.write_bytes(content[:middle] + bytes(50) + content[middle + 50 :])
    refused = site(*options, "--out", tmp_path / "none", "--account", tmp_path / "account.csv", check=1)
    assert "fedpp-site ingest: 1 file would be lost (1 damaged or cut), --max-lost is 0: " in refused.stderr
    assert "MRN" not in refused.stderr + done.stderr + done.stdout
    assert "picture.png" not in refused.stderr
    assert not (tmp_path / "none").exists()
    rows = list(csv.DictReader((tmp_path / "account.csv").read_text().splitlines()))
    assert [row["patient"] for row in rows if row["outcome"] == "lost"] == ["MRN-1"]
    assert len(rows) == 6
    left = site(*options, "--out", tmp_path / "left", "--skip-unreadable", "--json")
    assert json.loads(left.stdout)["account"]["lost"] == {"damaged or cut": 1}
