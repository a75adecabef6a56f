"""Survey: an issue for each defect and none for clean data, no patient's name, and the page."""

import csv
import io
import json
import os
import re
import stat
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from chexpert_folder import HOSPITALS, VISITS, write_hospitals
from conftest import DATA
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from unprivileged import unprivileged

from fedpp.errors import ConfigError, RawDataError
from fedpp.imaging.account import Account
from fedpp.imaging.readers.layout import Choices, read_sequences
from fedpp.imaging.reasons import Doubt
from fedpp.imaging.sequence import FrameFiles, ImageSequence
from fedpp.survey import duplicates, survey_page
from fedpp.survey import examination as survey
from fedpp.survey.facts import Facts, GapFact, Survey
from fedpp.survey.issues import TEXTS, issues

Rows = list[dict[str, str]]
HOSTILE = "$x^2$<script>alert(1)</script>\"'&amp; ]]> {{ 7 * 6 }}"


def picture(seed: int, size: int = 64) -> np.ndarray:
    """Return an image `[size, size]` of 8 bits with structure, of which no other seed's is like."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def save(file: Path, pixels: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(file)
    return file


def as_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def hospital(root: Path, change: Callable[[Path, Rows], object] = lambda root, rows: None) -> Path:
    """Write six patients of two visits each, two splits, two labels; `change` spoils files and rows."""
    rows: Rows = []
    for patient in range(6):
        for visit in range(2):
            name = f"image{patient}{visit}.png"
            save(root / name, picture(10 * patient + visit))
            rows.append(
                {
                    "path": name,
                    "patient": f"MRN-{patient}",
                    "sequence": "chest",
                    "time": f"2026-0{visit + 1}-0{patient + 1}",
                    "label": "ill" if patient % 2 else "well",
                    "split": "test" if patient >= 4 else "train",
                }
            )
    change(root, rows)
    with (root / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return root


def dicom(file: Path, **tags: object) -> Path:
    """Write a CT image of 64 x 64 pixels with these tags."""
    image = Dataset()
    image.SOPClassUID, image.Modality, image.PatientID = CTImageStorage, "CT", file.stem
    image.SOPInstanceUID = generate_uid(entropy_srcs=[file.name])
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = 64, 64, 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.PixelData = picture(len(list(file.parent.iterdir()))).tobytes()
    for name, value in tags.items():
        setattr(image, name, value)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.save_as(file, enforce_file_format=True)
    return file


def found(seen: Survey) -> dict[str, int]:
    return {issue.kind: issue.count for issue in seen.issues}


def without_charts(seen: Survey) -> Survey:
    """Leave out what is drawn: charts take most of a page's time."""
    return replace(seen, labels=(), lengths={1: 1}, sizes={"64 x 64": 1}, gaps=None)


class Page(HTMLParser):
    """Collects a page's elements and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_clean_data_give_no_issue(tmp_path: Path):
    """Where nothing is wrong nothing is found, and the counts are those that were written."""
    seen = survey.examine(hospital(tmp_path))
    assert seen.issues == ()
    assert (seen.sequences, seen.patients, seen.frames) == (6, 6, 12)
    assert [(label.label, label.sequences, label.patients, label.visits) for label in seen.labels] == [
        ("ill", 3, 3, 6),
        ("well", 3, 3, 6),
    ]
    assert (seen.unlabelled, seen.unlabelled_visits) == (0, 0)
    assert (seen.sizes, seen.lengths) == ({"64 x 64": 12}, {2: 6})
    assert seen.gaps == GapFact.of([31.0] * 6)
    assert seen.recognised.startswith("files listed by manifest.csv, with its splits")
    assert {file.path: file.outcome for file in seen.files if file.outcome != "read"} == {
        "manifest.csv": "read as a table"
    }
    assert survey.summary(seen).endswith("no issues found")


def broken(root: Path, _: Rows) -> None:
    (root / "image00.png").write_bytes(b"no image")
    (root / "image10.png").write_bytes((root / "image10.png").read_bytes()[:900])  # its header is whole


def labelled_by_patient(root: Path, rows: Rows) -> None:
    for number in range(100, 133):
        save(root / f"image{number}.png", picture(number))
        rows.append(rows[0] | {"path": f"image{number}.png", "patient": str(number), "label": str(number)})


def rare(root: Path, rows: Rows) -> None:
    save(root / "rare.png", picture(99))
    rows.append(rows[0] | {"path": "rare.png", "patient": "MRN-9", "label": "rare"})


def contradicting(root: Path, rows: Rows) -> None:
    save(root / "other.png", picture(99))
    rows.append(rows[0] | {"path": "other.png", "sequence": "other", "label": "ill"})


def blank(root: Path, _: Rows) -> None:
    save(root / "image00.png", np.zeros((64, 64)))
    save(root / "image10.png", np.full((64, 64), 7))


def alike(root: Path, rows: Rows) -> None:
    save(root / "other.png", picture(99))
    rows.append(rows[0] | {"path": "other.png", "patient": rows[0]["patient"].lower()})


def in_two_splits(_: Path, rows: Rows) -> None:
    rows[0]["split"] = rows[3]["split"] = "test"


SPOILT: dict[str, tuple[Callable[[Path, Rows], object], dict[str, int]]] = {
    "broken": (broken, {"unreadable": 2}),
    "in_two_splits": (in_two_splits, {"two-splits": 2}),
    "copied": (lambda root, _: save(root / "image20.png", picture(0)), {"same-image": 1}),
    "copied to the test": (
        lambda root, _: save(root / "image40.png", picture(0)),
        {"same-image": 1, "same-image-in-two-splits": 1},
    ),
    "copied nearly": (lambda root, _: save(root / "image20.png", as_jpeg(picture(0), 75)), {"near-duplicate": 1}),
    "blank": (blank, {"blank-image": 2}),
    "unlabelled": (
        lambda _, rows: [rows[visit].update(label="") for visit in (0, 1)],
        {"missing-label": 1, "rare-label": 1},
    ),
    "labelled_by_patient": (labelled_by_patient, {"too-many-labels": 35}),
    "rare": (rare, {"rare-label": 1}),
    "contradicting": (contradicting, {"two-labels": 1}),
    "alike": (alike, {"alike-patients": 2}),
    "without times": (
        lambda _, rows: [rows[visit].update(time="") for visit in (0, 1)],
        {"guessed-order": 1},
    ),
}
# Their tests follow; that of the last is in sites/cli/test_data_commands.py.
ELSEWHERE = {"burned-in-text", "backward-time", "no-image", "two-issuers", "two-birth-dates"}


@pytest.mark.parametrize(("spoil", "expected"), SPOILT.values(), ids=SPOILT)
def test_each_defect_is_found_and_no_other(
    spoil: Callable[[Path, Rows], object], expected: dict[str, int], tmp_path: Path
):
    """A defect gives its issue with its count, named in the text, the page and the JSON value, and no other one."""
    seen = survey.examine(hospital(tmp_path, spoil))
    assert found(seen) == expected
    text, page = survey.summary(seen), Page(survey_page.render(without_charts(seen)))
    record = seen.to_mapping()
    for issue, entry in zip(seen.issues, record["issues"], strict=True):
        assert f"issue {issue.kind}: {issue.what}; {issue.advice}" in text
        assert issue.what in page.text
        assert (entry["kind"], entry["count"], entry["what"]) == (issue.kind, issue.count, issue.what)
        assert "\n" not in issue.what + issue.advice


@pytest.mark.parametrize(
    ("layout", "advice"),
    [
        ("manifest", "fill in the column label of manifest.csv"),
        ("images", "write their labels into labels.csv (patient,label)"),
        ("frames", "fill in the column label of index.csv"),
    ],
)
def test_data_without_labels_are_told_where_their_layout_has_them(layout: str, advice: str, tmp_path: Path):
    """The note says what is missing for, and where to write it; of some sequences it is the advice of an issue."""
    for number in range(2):
        save(tmp_path / f"p{number}" / "0.png", picture(number))
    tables = {"manifest": "path,patient,label", "frames": "sequence,patient,label"}
    rows = {"manifest": "p{0}/0.png,P{0},{1}", "frames": "p{0},P{0},{1}"}
    for labels in (("", ""), ("ill", "")):
        if layout in tables:
            lines = [rows[layout].format(number, label) for number, label in enumerate(labels)]
            table = tmp_path / {"manifest": "manifest.csv", "frames": "index.csv"}[layout]
            table.write_text("\n".join([tables[layout], *lines]))
        elif labels[0]:
            (tmp_path / "labels.csv").write_text("patient,label\np0,ill\np1,\n")
        seen = survey.examine(tmp_path)
        if labels[0]:
            (missing,) = [issue for issue in seen.issues if issue.kind == "missing-label"]
            assert missing.advice == f"{advice}, or ingest with --drop-unlabelled"
        else:
            why = "no model can be trained on these data or tested on them"
            assert f"no sequence has a label, so {why}: {advice}" in seen.notes


def test_every_kind_of_issue_is_tested():
    """No kind is added without a defect that gives it."""
    assert {kind for _, kinds in SPOILT.values() for kind in kinds} | ELSEWHERE == set(TEXTS)


def test_times_before_their_order_are_an_issue():
    """Gaps below zero are counted as such, gaps of zero apart from them."""
    gaps = GapFact.of([-2.0, 0.0, 0.5, 1.0, 40.0, 1000.0])
    assert (gaps.backward, gaps.count) == (1, 6)
    assert gaps.quartiles == (-2.0, 0.125, 0.75, 30.25, 1000.0)
    assert gaps.classes["none"] == 2
    assert gaps.classes["to a day"] == 2
    assert gaps.classes["to 3 months"] == 1
    assert gaps.classes["longer"] == 1
    (issue,) = issues(Facts(gaps=gaps))
    assert (issue.kind, issue.count) == ("backward-time", 1)


@pytest.mark.parametrize(("doubt", "kind"), [(Doubt.ISSUERS, "two-issuers"), (Doubt.BIRTH_DATES, "two-birth-dates")])
def test_a_doubt_about_a_patient_is_an_issue(doubt: Doubt, kind: str, tmp_path: Path):
    """A reader's doubt is counted once for each sequence that has it, and named as an issue alone."""
    account = Account(tmp_path)
    one = ImageSequence("s", "p", None, FrameFiles([]), doubts=(doubt, doubt))
    account.close([one, replace(one, id="t"), replace(one, doubts=())], "dicom")
    (issue,) = issues(Facts(doubts=account.issues()))
    assert (issue.kind, issue.count) == (kind, 2)
    counts = account.counts()
    assert (counts["doubts"], counts["issues"]) == ({}, {kind: 2})


def test_a_file_that_fails_late_leaves_nothing_behind(tmp_path: Path):
    """A file whose second page is damaged counts for nothing, and the label of its visit goes with it."""

    def spoil(root: Path, rows: Rows) -> None:
        pages = [Image.fromarray(picture(90 + page)) for page in range(2)]
        pages[0].save(root / "image10.tif", save_all=True, append_images=pages[1:], compression="tiff_lzw")
        content = bytearray((root / "image10.tif").read_bytes())
        content[-900:-700] = b"\xff" * 200
        (root / "image10.tif").write_bytes(content)
        rows[2] |= {"path": "image10.tif", "label": "well"}
        save(root / "image20.png", picture(90))

    raw = hospital(tmp_path, spoil)
    (_, sequence, *_), _ = read_sequences(raw)
    with pytest.raises(RawDataError):
        list(sequence.frames)
    seen = survey.examine(raw)
    assert found(seen) == {"unreadable": 1}
    assert (seen.frames, seen.lengths) == (11, {1: 1, 2: 5})
    assert {label.label: (label.sequences, label.visits) for label in seen.labels} == {"ill": (3, 5), "well": (3, 6)}


def test_a_folder_of_which_nothing_can_be_used_is_still_reported(tmp_path: Path):
    """Each file has its reason, where a reader finds no image at all; a folder without files is refused.

    It is named on the page alone.
    """
    (tmp_path / "a.dcm").write_bytes(b"no image")
    seen = survey.examine(tmp_path)
    assert found(seen) == {"unreadable": 1}
    assert seen.recognised.startswith("nothing was read: ")
    assert "lost: 1 damaged or cut" in survey.summary(seen)
    assert "a.dcm" not in survey.summary(seen) + json.dumps(seen.to_mapping())
    assert "a.dcm" in Page(survey_page.render(seen)).text
    (tmp_path / "a.dcm").unlink()
    with pytest.raises(RawDataError, match="is empty"):
        survey.examine(tmp_path)


def test_a_patient_in_two_splits_is_reported_with_the_lines(tmp_path: Path):
    """What the reader of manifests refuses is an issue with its count, and the reader's lines are passed on."""
    seen = survey.examine(hospital(tmp_path, in_two_splits))
    assert "lines 2, 3 put one patient into two splits" in survey.summary(seen)


@pytest.mark.parametrize(
    "copy",
    [
        lambda pixels: as_jpeg(pixels, 90),
        lambda pixels: as_jpeg(pixels, 50),
        lambda pixels: np.clip(pixels * 1.05 + 5, 0, 255),
        lambda pixels: 255 * (pixels / 255) ** 0.8,
        lambda pixels: np.asarray(Image.fromarray(pixels).resize((96, 96))),
    ],
    ids=["JPEG 90", "JPEG 50", "brighter", "gamma", "larger"],
)
def test_a_near_duplicate_of_another_patient_is_found(copy: Callable[[np.ndarray], np.ndarray], tmp_path: Path):
    """A copy under another patient is found however it was treated, named with its original; the patient's own is not.

    All other images of the data differ, and are not named.
    """

    def spoil(root: Path, _: Rows) -> None:
        save(root / "image20.png", copy(picture(0)))
        save(root / "image11.png", copy(picture(10)))  # of the same patient

    (pair,) = survey.examine(hospital(tmp_path, spoil)).duplicates
    assert (pair.first, pair.second) == ("image00.png", "image20.png")
    assert not pair.same
    assert not pair.one_patient
    assert pair.correlation >= duplicates.MIN_CORRELATION


def test_equal_images_of_one_patient_are_a_note(tmp_path: Path):
    """A repeated image of the same patient is a note, not an issue."""
    seen = survey.examine(hospital(tmp_path, lambda root, _: save(root / "image01.png", picture(0))))
    assert not seen.issues
    assert "1 image repeated in another file of the same patient" in seen.notes


def test_copies_of_real_images_are_found_and_real_patients_are_distinguished(tmp_path: Path):
    """Of 20 chest X-rays recompressed under other patients' names all are found, and none is mixed up."""
    real = sorted((DATA / "chexpert_layout" / "site_a").rglob("*.png"))[::50][:20]
    for number, file in enumerate(real):
        pixels = np.asarray(Image.open(file).convert("L"))
        save(tmp_path / f"p{number}" / "a.png", pixels)
        save(tmp_path / f"q{number}" / "b.png", as_jpeg(pixels, 80))
    pairs = [(pair.first, pair.second) for pair in survey.examine(tmp_path).duplicates]
    assert pairs == sorted((f"p{number}/a.png", f"q{number}/b.png") for number in range(len(real)))


def test_candidates_are_those_of_a_plain_search():
    """Hashes in few bits of each other are found as by comparing all pairs, closest first, of different owners only."""
    generator = np.random.default_rng(3)
    hashes = generator.integers(0, 2**64, (300, 4), dtype=np.uint64)
    for row in range(100):
        flips = generator.choice(256, size=row % 21, replace=False)
        hashes[200 + row] = hashes[row]
        for bit in flips:
            hashes[200 + row, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    owners = np.arange(300)
    owners[205] = owners[5]
    plain = {
        (left, right): int(np.bitwise_count(hashes[left] ^ hashes[right]).sum())
        for left in range(300)
        for right in range(left + 1, 300)
        if owners[left] != owners[right]
    }
    expected = {pair: bits for pair, bits in plain.items() if bits <= duplicates.MAX_DIFFERENT}
    pairs, more = duplicates.candidates(hashes, owners)
    assert set(pairs) == set(expected)
    assert [expected[pair] for pair in pairs] == sorted(expected.values())
    assert not more
    assert len(pairs) > 75


def test_crowded_candidates_are_bounded():
    """Of hashes that look alike the closest pairs are kept, and that there are more is said."""
    generator = np.random.default_rng(4)
    bits = generator.random((1000, 256)) < 0.04
    for row in range(50):
        bits[900 + row] = bits[row]
        bits[900 + row, generator.choice(256, size=row % 6, replace=False)] ^= True
    hashes = np.packbits(bits, axis=1).view(">u8").astype(np.uint64)
    pairs, more = duplicates.candidates(hashes, np.arange(1000))
    assert more
    assert len(pairs) == duplicates.MAX_CANDIDATES
    assert {(row, 900 + row) for row in range(50)} <= set(pairs)


def test_crowded_buckets_are_divided_by_the_next_band():
    """A pair that agrees in two bands only, each of them shared by hundreds of hashes, is found by both together."""
    generator = np.random.default_rng(5)
    bits = generator.random((900, 256)) < 0.5
    for band in (1, 2):
        bits[:, band :: duplicates.BANDS] = np.eye(3, 15, dtype=bool)[np.arange(900) // 3**band % 3]
    bits[891:] = bits[:9]
    bits[891:, [0, *range(3, duplicates.BANDS)]] ^= True
    hashes = np.packbits(bits, axis=1).view(">u8").astype(np.uint64)
    pairs, more = duplicates.candidates(hashes, np.arange(900))
    assert sorted(pairs) == [(row, 891 + row) for row in range(9)]
    assert not more


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({}, ""),
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation is YES"),
        ({"RecognizableVisualFeatures": "YES"}, "RecognizableVisualFeatures is YES"),
        ({"RecognizableVisualFeatures": "YES", "BurnedInAnnotation": "NO"}, "RecognizableVisualFeatures is YES"),
        ({"Modality": "US"}, "Modality is US"),
        ({"Modality": "ES"}, "Modality is ES"),
        ({"Modality": "XC"}, "Modality is XC"),
        ({"Modality": "SC"}, "Modality is SC"),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, ""),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, "secondary capture"),
        ({"SOPClassUID": MultiFrameTrueColorSecondaryCaptureImageStorage}, "secondary capture"),
        ({"ConversionType": "WSD"}, "ConversionType is WSD"),
        ({"ConversionType": "SD"}, "ConversionType is SD"),
        ({"ConversionType": "SYN"}, ""),
        ({"ConversionType": "WSD", "BurnedInAnnotation": "NO"}, ""),
    ],
    ids=str,
)
def test_burnt_in_text_is_suspected_by_tags(tags: dict[str, object], reason: str, tmp_path: Path):
    """Tags that tell of text burnt into an image give an issue and a reason; BurnedInAnnotation NO clears a kind."""
    dicom(tmp_path / "a.dcm")
    dicom(tmp_path / "b.dcm", **tags)
    seen = survey.examine(tmp_path)
    assert found(seen) == ({"burned-in-text": 1} if reason else {})
    clear, suspected = seen.files
    assert (clear.path, clear.suspicion) == ("a.dcm", "")
    assert (suspected.path, suspected.outcome) == ("b.dcm", "read")
    assert reason in suspected.suspicion
    assert bool(reason) == bool(suspected.suspicion)


def test_hostile_text_stays_text(tmp_path: Path):
    """A label and a file name made of markup are shown as they are, in tables, captions and charts, and do nothing."""
    name = "<img src=x onerror=alert(1)>.png"

    def spoil(root: Path, rows: Rows) -> None:
        for row in rows:
            row["label"] = HOSTILE if row["label"] == "ill" else row["label"]
        (root / "image00.png").rename(root / name)
        rows[0]["path"] = name

    seen = survey.examine(hospital(tmp_path, spoil))
    html = survey_page.render(seen)
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert {(attributes["src"] or "")[:22] for tag, attributes in page.tags if tag == "img"} == {
        "data:image/png;base64,"
    }
    assert page.text.count(HOSTILE) >= 3
    assert name in page.text
    assert f"{HOSTILE[:27]}…" in page.text  # in the chart
    assert "<![CDATA[" not in html


def test_text_for_terminals_has_no_controls(tmp_path: Path):
    """Names with line ends, escape sequences and bytes that are no text are escaped on the page and in the account."""
    folder = os.fsencode(tmp_path) + b"/p\xff"
    os.makedirs(folder)  # noqa: PTH103
    bad = Path(os.fsdecode(folder)) / "a\n\x1b[31mred.png"
    bad.write_bytes(b"no image")
    save(tmp_path / "q" / "a.png", picture(1))
    seen = survey.examine(tmp_path)
    shown = "p\\udcff/a\\n\\x1b[31mred.png"
    text = survey.summary(seen)
    assert "red.png" not in text + json.dumps(seen.to_mapping())
    assert all(line.isprintable() for line in text.split("\n"))
    assert shown in Page(survey_page.render(seen)).text
    survey_page.write(tmp_path / "page.html", seen)
    seen.account.write(tmp_path / "account.csv")
    assert shown in (tmp_path / "account.csv").read_text("ascii")


def test_patients_are_counted_and_never_named(tmp_path: Path):
    """No patient's identifier is in the text, the page or the JSON value."""
    seen = survey.examine(hospital(tmp_path, contradicting))
    assert "6 patients" in survey.summary(seen)
    for output in (survey.summary(seen), survey_page.render(seen), json.dumps(seen.to_mapping()), repr(seen)):
        assert "MRN" not in output


def test_a_column_of_patients_taken_for_labels_is_not_listed(tmp_path: Path):
    """Where there are too many labels none is listed in the lines of the survey's own."""
    text = survey.summary(survey.examine(hospital(tmp_path, labelled_by_patient)))
    assert "  35 different labels" in text
    assert "label 1" not in text


def test_the_page_is_private_and_never_replaced_by_accident(tmp_path: Path):
    """The page has mode 0600 whatever the umask, and another survey replaces it only with `overwrite`."""
    seen = without_charts(survey.examine(hospital(tmp_path / "raw")))
    page = tmp_path / "out" / "survey.html"
    before = os.umask(0)
    try:
        survey_page.write(page, seen)
    finally:
        os.umask(before)
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    content = page.read_text()
    other = replace(seen, raw="elsewhere")
    with pytest.raises(ConfigError, match="--overwrite"):
        survey_page.write(page, other)
    assert page.read_text() == content
    survey_page.write(page, other, overwrite=True)
    assert page.read_text() == survey_page.render(other) != content
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert list(page.parent.iterdir()) == [page]


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path):
    """A folder without permission is refused before any image is read, and the page is named, not a temporary file."""
    seen = without_charts(survey.examine(hospital(tmp_path / "raw")))
    with unprivileged(locked=0o555) as folder:
        with pytest.raises(ConfigError, match=f"cannot write {folder}/page.html: .*: choose another --out"):
            survey_page.require_new(folder / "page.html", overwrite=False)
        for page in (folder / "page.html", folder / "below" / "page.html"):
            with pytest.raises(ConfigError, match=f"^cannot write {page}: .*: choose another --out"):
                survey_page.write(page, seen)
    (tmp_path / "page").mkdir()
    with pytest.raises(ConfigError, match=f"^cannot write {tmp_path}/page: Is a directory: choose another --out"):
        survey_page.write(tmp_path / "page", seen, overwrite=True)


def test_the_page_is_whole_and_loads_nothing(tmp_path: Path):
    """The page says where it belongs, has its four charts with a text each, and names no address of another file."""
    seen = survey.examine(hospital(tmp_path, lambda root, _: save(root / "image00.png", picture(0, 80))))
    raw = replace(seen, lengths={1: 4, 2: 2})
    html = survey_page.render(raw)
    page = Page(html)
    assert page.text.index("This page stays in the secret zone") < page.text.index("No issues found")
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert [chart["aria-labelledby"] for chart in charts] == [
        f"{name}-title" for name in ("labels", "lengths", "sizes", "gaps")
    ]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {chart["role"] for chart in charts} == {"img"}
    assert "default-src 'none'" in html
    assert not re.search(r"https?://|@import|<link|<script|url\((?!#)", html)
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    assert html == survey_page.render(raw)


def test_the_json_value_is_whole(tmp_path: Path):
    """What `--json` prints comes back as it went, has every fact but thumbnails and names, and counts every file."""
    seen = survey.examine(hospital(tmp_path, SPOILT["copied"][0]))
    record = seen.to_mapping()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert set(record) == set(Survey.__dataclass_fields__) - {"thumbnails", "raw", "files"}
    assert record["account"] == {
        "read": 12,
        "tables": 1,
        "lost": {},
        "passed_over": {},
        "doubts": {},
        "issues": {},
    }
    assert record["lengths"] == {"2": 6}
    assert record["duplicates"][0] == {
        "images": 1,
        "same": True,
        "correlation": 1.0,
        "one_patient": False,
        "one_split": True,
    }
    assert ".png" not in json.dumps(record)


def test_thumbnails_are_few_small_and_of_every_label(tmp_path: Path):
    """Of many sequences 24 are shown, evenly, and the only one of a label among them; at most 96 pixels a side."""
    for number in range(60):
        save(tmp_path / f"{number:02}" / "0.png", picture(number, 120 if number else 40)[:100])
    labels = "".join(f"{number:02},{'rare' if number == 31 else 'usual'}\n" for number in range(60))
    (tmp_path / "labels.csv").write_text(f"patient,label\n{labels}")
    shown = survey.examine(tmp_path).thumbnails
    assert len(shown) == survey.SHOWN
    assert [thumbnails.path for thumbnails in shown if thumbnails.label == "rare"] == ["31/0.png"]
    numbers = [int(thumbnails.path[:2]) for thumbnails in shown if thumbnails.label == "usual"]
    assert numbers[0] == 0
    assert numbers[-1] == 59
    assert max(np.diff(numbers)) <= 4
    sizes = [Image.open(io.BytesIO(thumbnails.images[0])).size for thumbnails in shown]
    assert sizes[0] == (40, 40)
    assert set(sizes[1:]) == {(96, 80)}


def test_first_middle_and_last_frame_are_shown(tmp_path: Path):
    """The thumbnails of a sequence are its ends and its middle, over the borders of files."""
    shades = [np.full((8, 8), 0), np.full((8, 8), 255)]
    for number in range(5):
        pixels = shades[0].copy()
        pixels[number] = 255
        save(tmp_path / "p" / f"{number}.png", pixels)
    (shown,) = survey.examine(tmp_path).thumbnails
    rows = [int(np.asarray(Image.open(io.BytesIO(image)))[:, 0].argmax()) for image in shown.images]
    assert rows == [0, 2, 4]


def test_one_frame_at_a_time_is_in_memory(tmp_path: Path):
    """A file of many pages is looked at without all of them in memory."""
    pages = [Image.fromarray(picture(number, 256)) for number in range(40)]
    (tmp_path / "p").mkdir()
    pages[0].save(tmp_path / "p" / "a.tif", save_all=True, append_images=pages[1:])
    decoded = 40 * 256 * 256 * 8
    tracemalloc.start()
    seen = survey.examine(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen.frames == 40
    assert peak < decoded / 2


def test_a_bar_is_for_terminals_only(tmp_path: Path, capfd):
    """Without a terminal nothing is printed while it looks."""
    survey.examine(hospital(tmp_path), progress=True)
    assert capfd.readouterr() == ("", "")


@cache
def examined(name: str) -> Survey:
    """Return the survey of a real set."""
    return survey.examine(DATA / name)


REAL = {
    "ultrasound_sequences": (124, 78, 1984, {"two-labels": 1}),
    "chexpert_layout/site_a": (264, 264, 993, {}),
    "breakhis_layout": (73, 45, 493, {"two-labels": 1}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_sets_are_counted_and_judged(name: str, tmp_path: Path):
    """Sequences, patients and images are those of the sets; no two real patients are taken for one another."""
    sequences, patients, frames, expected = REAL[name]
    seen = examined(name)
    assert (seen.sequences, seen.patients, seen.frames) == (sequences, patients, frames)
    assert seen.count("read") == frames
    assert not seen.count("lost")
    assert found(seen) == expected
    survey_page.write(tmp_path / "survey.html", seen)
    assert (tmp_path / "survey.html").stat().st_size < 1_500_000


def test_the_slide_of_two_diagnoses_is_named():
    """Slide 13412, which BreakHis files as ductal and as lobular carcinoma, both malignant, is what is found."""
    (issue,) = examined("breakhis_layout").issues
    assert (issue.kind, issue.count) == ("two-labels", 1)
    assert {re.findall(r"SOB_M_([DL]C)_14-(\d+)", file)[0] for file in issue.where} == {
        ("DC", "13412"),
        ("LC", "13412"),
    }


def test_labels_of_the_real_sequences():
    """The balance of the real ultrasound set is that of its description."""
    seen = examined("ultrasound_sequences")
    assert {label.label: label.sequences for label in seen.labels} == {
        "Regular": 59,
        "Bacterial pneumonia": 37,
        "COVID-19": 22,
        "Viral pneumonia": 6,
    }
    assert seen.lengths == {16: 124}


def test_every_real_dicom_file_is_in_the_table():
    """All 43 files are listed: read with their frames and size, or not read with a reason."""
    seen = survey.examine(DATA / "dicom")
    files = {file.path: file for file in seen.files}
    table = list(csv.DictReader((DATA / "dicom" / "index.csv").read_text().splitlines()))
    assert {row["file"] for row in table} == {path for path in files if path.endswith(".dcm")}
    assert len(table) == 43
    page = Page(survey_page.render(seen)).text
    for row in table:
        file = files[row["file"]]
        assert file.path in page
        if file.outcome == "read":
            size = (int(float(row[column])) for column in ("frames", "rows", "cols"))
            assert (file.frames, file.height, file.width) == tuple(size)
        else:
            assert file.reason
            assert file.reason in page
    assert files["examples_ybr_color.dcm"].frames == 30
    assert "Modality is US" in files["examples_ybr_color.dcm"].suspicion
    assert files["no_meta.dcm"].outcome == "lost"


def test_several_findings_are_counted_by_name(tmp_path: Path) -> None:
    """Each counts the sequences, patients and visits where it is present, and pages name those of a sample."""
    write_hospitals(tmp_path)
    seen = survey.examine(tmp_path / "north", "chexpert", Choices("Consolidation,Pleural Effusion"))
    counts = {fact.label: (fact.sequences, fact.patients) for fact in seen.labels}
    even = sum(patient % 2 == 0 for patient in HOSPITALS["north"])
    ill = sum(patient % 3 == 0 or VISITS[patient % 3] == 3 for patient in HOSPITALS["north"])
    assert counts == {"Consolidation": (even, even), "Pleural Effusion": (ill, ill)}
    assert {shown.label for shown in seen.thumbnails} == {
        "none",
        "Consolidation",
        "Pleural Effusion",
        "Consolidation, Pleural Effusion",
    }
    survey_page.write(tmp_path / "page.html", seen, overwrite=False)
    assert "Consolidation, Pleural Effusion" in (tmp_path / "page.html").read_text()
