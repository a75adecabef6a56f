"""A manifest of images: rows in the order of time, splits by patient, refused in one line without a patient."""

import io
import zlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import DATA
from hypothesis import given
from hypothesis import strategies as st
from raw_images import grey, refused_in_one_line, values

from fedpp.errors import RawDataError
from fedpp.imaging.readers.manifest_table import read_manifest
from fedpp.imaging.reasons import Doubt, Reason
from fedpp.imaging.tables import read_table

HEADER = "path,patient,time,label"


def write(root: Path, *rows: str, header: str = HEADER) -> None:
    root.mkdir(exist_ok=True)
    (root / "manifest.csv").write_text("\n".join((header, *rows)) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with the images 1.png to 4.png, their pixels of that value, and 56.tiff of two pages."""
    folder = tmp_path / "root"
    folder.mkdir()
    for pixel in (1, 2, 3, 4):
        grey(pixel).save(folder / f"{pixel}.png")
    grey(5).save(folder / "56.tiff", save_all=True, append_images=[grey(6)])
    return folder


def test_rows_are_in_the_order_of_time(root: Path):
    """A patient's rows are one sequence by time, whatever their order; days are counted from the first."""
    write(root, "1.png,p,2026-03-01,", "2.png,q,2026-01-01,a", "3.png,p,2026-02-01,b", "4.png,p,2026-02-02T00:00,c")
    with pytest.raises(RawDataError, match="mixes a date and a date-time in one sequence, lines 4, 5"):
        read_manifest(root)
    write(root, "1.png,p,2026-03-01,", "2.png,q,2026-01-01,a", "3.png,p,2026-02-01,b", "4.png,p,2026-02-02,c")
    (p, q), splits = read_manifest(root)
    assert (p.patient, values(p.frames), p.times) == ("p", [3, 4, 1], (0, 1, 28))
    assert (p.labels, p.label) == (("b", "c", None), "c")
    assert (q.patient, q.times, q.labels, q.label) == ("q", (0,), ("a",), "a")
    assert splits is None


@pytest.mark.parametrize(
    ("first", "second", "days"),
    [
        ("2026-01-31", "2026-02-01", 1),
        ("20260131", "20260201", 1),
        ("2026-01-31T09:00", "2026-01-31T21:00", 0.5),
        ("2026-01-31 09:00:00", "2026-02-01 09:00:00.000", 1),
        ("2026-01-31T09:00+02:00", "2026-01-31T09:00Z", 2 / 24),
        ("9", "10.5", 1.5),
        ("-3", " 1e2 ", 103),
        ("0001-01-01T00:00+23:59", "9999-12-31T23:59-23:59", 3652058 + 3 * (24 * 60 - 1) / (24 * 60)),
    ],
)
def test_times_are_days_since_the_first(root: Path, first: str, second: str, days: float):
    """Dates, date-times, with a zone or without, and numbers are days; 9 is before 10.5."""
    write(root, f"2.png,p,{second},", f"1.png,p,{first},")
    (sequence,), _ = read_manifest(root)
    assert values(sequence.frames) == [1, 2]
    assert sequence.times == (0, pytest.approx(days, abs=1e-9))


@given(
    st.lists(st.datetimes(timezones=st.none() | st.just(UTC)), min_size=2, max_size=2).filter(
        lambda pair: (pair[0].tzinfo is None) == (pair[1].tzinfo is None)
    )
)
def test_any_two_moments_are_ordered(tmp_path_factory: pytest.TempPathFactory, moments: list[datetime]):
    """Whatever two moments are written in ISO form, the days between them are Python's."""
    folder = tmp_path_factory.mktemp("moments")
    for name in "ab":
        grey(1).save(folder / f"{name}.png")
    write(folder, *(f"{name}.png,p,{moment.isoformat()}," for name, moment in zip("ab", moments, strict=True)))
    (sequence,), _ = read_manifest(folder)
    early, late = sorted(moments)
    assert sequence.times == (0, pytest.approx((late - early).total_seconds() / 86400))


@pytest.mark.parametrize("days", [["0", "365", "2019"], ["2019", "2020.5"], ["201912", "201913"], ["19", "20"]])
def test_days_that_are_like_a_year_are_days(root: Path, days: list[str]):
    """Numbers are refused as years only where all of the table may be years or months."""
    write(root, *[f"{image}.png,p,{day},a" for image, day in enumerate(days, 1)])
    ((sequence,), _) = read_manifest(root)
    assert sequence.times == tuple(float(day) - float(days[0]) for day in days)


def test_all_pages_are_frames(root: Path):
    """A file of two pages gives two frames with the row's label and time."""
    write(root, "56.tiff,p,2,b", "1.png,p,1,a")
    (sequence,), _ = read_manifest(root)
    assert values(sequence.frames) == [1, 5, 6]
    assert (sequence.labels, sequence.times) == (("a", "b", "b"), (0, 1, 1))


def test_rows_of_one_time_keep_their_order(root: Path):
    """Two images of one time stay in the table's order."""
    write(root, "3.png,p,1,", "1.png,p,1,", "2.png,p,0,")
    assert values(read_manifest(root)[0][0].frames) == [2, 3, 1]


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("path,patient,label", ["3.png,p,a", "1.png,p,", "2.png,q,b"]),
        ("Label;PATH;Patient", ["a;3.png;p", ";1.png;p", "b;2.png;q"]),
    ],
)
def test_a_manifest_may_have_no_times(root: Path, header: str, rows: list[str]):
    """Without a column of times, the order is that of the table, as its writer chose it; no days are known."""
    write(root, *rows, header=header)
    (p, q), splits = read_manifest(root)
    assert [(s.patient, values(s.frames), s.labels, s.times, s.doubts) for s in (p, q)] == [
        ("p", [3, 1], ("a", None), None, ()),
        ("q", [2], ("b",), None, ()),
    ]
    assert splits is None


def test_a_sequence_without_its_times_is_in_an_order_that_is_a_guess(root: Path):
    """Where others have times, the order of the table is one guess of many; one image is in order."""
    write(root, "3.png,p,,", "56.tiff,q,,", "1.png,p, ,", "2.png,r,5,")
    p, q, r = read_manifest(root)[0]
    assert [(values(s.frames), s.times, s.doubts) for s in (p, q, r)] == [
        ([3, 1], None, (Doubt.ORDER,)),
        ([5, 6], None, ()),
        ([2], (0,), ()),
    ]


def test_an_image_without_a_time_among_others_is_refused(root: Path):
    """It has no place in the order: it goes to `refuse`, and the others are read if that returns."""
    write(root, "3.png,secret,2,", "1.png,secret,,", "2.png,secret,1,")
    with refused_in_one_line("line 3: time is empty, and not that of others .*: complete it", hidden="secret"):
        read_manifest(root)
    refused: dict[str, str] = {}
    (sequence,), _ = read_manifest(root, lambda path, error: refused.update({path.name: error.reason}))
    assert (values(sequence.frames), sequence.times, sequence.doubts) == ([2, 3], (0, 1), ())
    assert refused == {"1.png": Reason.NO_TIME}


def test_a_patient_in_two_unicode_forms_is_one(root: Path):
    """What looks and is the same is one patient, with one split."""
    write(root, "1.png,M\u00fcller,1,,train", "2.png,Mu\u0308ller,2,,train", header=HEADER + ",split")
    (sequence,), splits = read_manifest(root)
    assert (values(sequence.frames), splits) == ([1, 2], {"M\u00fcller": "train"})
    write(root, "1.png,M\u00fcller,1,,train", "2.png,Mu\u0308ller,2,,test", header=HEADER + ",split")
    with pytest.raises(RawDataError, match="put one patient into two splits"):
        read_manifest(root)


def test_a_patient_may_have_several_sequences(root: Path):
    """With a column `sequence` it is the sequence's id; two patients may use one name."""
    write(root, "1.png,p,1,,left", "2.png,p,x,,right", "3.png,q,1,,left", header=HEADER + ",sequence")
    with pytest.raises(RawDataError, match="line 3: time must be like 2026-01-31"):
        read_manifest(root)
    write(root, "1.png,p,1,,left", "2.png,p,2026-01-01,,right", "3.png,q,1,,left", header=HEADER + ",sequence")
    sequences, _ = read_manifest(root)
    assert [(s.patient, s.id) for s in sequences] == [("p", "left"), ("p", "right"), ("q", "left")]


def test_splits_are_those_of_the_table(root: Path):
    """With a column `split` each patient's is returned, and one in two splits is refused by its lines."""
    rows = ("1.png,secret,1,,train", "2.png,q,1,,test", "3.png,secret,2,,train", "4.png,r,1,,validation")
    write(root, *rows, header=HEADER + ",split")
    assert read_manifest(root)[1] == {"secret": "train", "q": "test", "r": "validation"}
    write(root, *rows[:3], "4.png,secret,3,,test", header=HEADER + ",split")
    with pytest.raises(RawDataError, match="lines 2, 5 put one patient into two splits") as refused:
        read_manifest(root)
    assert "secret" not in str(refused.value)


def test_blanks_do_not_make_another_patient(root: Path):
    """Spaces around names and values are no part of them, a byte order mark is none, and empty rows are none."""
    write(root, "1.png, P1 ,1, a", " 2.png ,P1, 2 ,a ", ",,,,,", "", header="\ufeffpath, patient ,time,label")
    ((sequence,), _) = read_manifest(root)
    assert (sequence.patient, sequence.labels) == ("P1", ("a", "a"))


def test_other_columns_are_ignored(root: Path):
    """Columns that are not needed, in any order, do no harm."""
    write(root, "x,a,1,p,1.png,", header="note,label,time,patient,path,")
    ((sequence,), _) = read_manifest(root)
    assert (sequence.id, sequence.patient, sequence.label) == ("images", "p", "a")


def test_paths_stay_inside(root: Path):
    """A path may go down and up again, be absolute, or a link of the folder's owner, as long as it stays below."""
    (root / "deep").mkdir()
    grey(9).save(root.parent / "outside.png")
    (root / "link.png").symlink_to(root.parent / "outside.png")
    write(root, "deep/../1.png,p,1,", f"{root / '2.png'},p,2,", "link.png,p,3,")
    assert values(read_manifest(root)[0][0].frames) == [1, 2, 9]
    for path in ("../outside.png", "deep/../../outside.png", str(root.parent / "outside.png")):
        write(root, f"{path},p,1,")
        with pytest.raises(RawDataError, match="line 2: path leads out of"):
            read_manifest(root)


def test_a_root_may_be_the_present_folder(root: Path, monkeypatch: pytest.MonkeyPatch):
    """From inside the folder, `.` is read as the folder is, and guarded as well."""
    monkeypatch.chdir(root)
    write(root, "1.png,p,1,")
    assert values(read_manifest(Path())[0][0].frames) == [1]
    grey(9).save(root.parent / "outside.png")
    write(root, "../outside.png,p,1,")
    with pytest.raises(RawDataError, match="line 2: path leads out of"):
        read_manifest(Path())


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("path,patient,time", ["1.png,secret,1"], "has no column label, it has path, patient: is"),
        ("1.png,secret,1,a", ["2.png,secret,2,a"], "has no column .*, it has none of those expected"),
        (HEADER.replace(",", "|"), ["1.png|secret|1|a"], "is its first line a header, with commas"),
        (HEADER + ",patient", ["1.png,secret,1,a,secret"], "has two columns of one name"),
        (HEADER, [], "names no image"),
        (HEADER, [",,,"], "names no image"),
        (HEADER, ["1.png,,1,a"], "line 2: patient and sequence must not be empty"),
        (HEADER + ",sequence", ["1.png,secret,1,a,"], "line 2: patient and sequence must not be empty"),
        (HEADER, ["", "1.png,secret,1,a", "secret,1.png,2,a"], "line 4: path names no file below"),
        (HEADER, [",secret,1,a"], "line 2: path names no file below"),
        (HEADER, ["1.png/x,secret,1,a"], "line 2: path names no file below"),
        (HEADER, ["secret" * 1000 + ",secret,1,a"], "line 2: path names no file below"),
        (HEADER, ["1.png\0,secret,1,a"], "line 2 is no text"),
        (HEADER, ["manifest.csv,secret,1,a"], "line 2: path names no image .*: convert it"),
        (HEADER, ["text.png,secret,1,a"], "cannot read the image .*text.png"),
        (HEADER, ["1.png,secret,1,a", "./1.png,secret,2,a"], "lines 2, 3 name the same file"),
        (HEADER, ["1.png,secret,1,a", "2.png,secret,2026-01-01,a"], "mixes a number and a date .*, lines 2, 3"),
        (HEADER, ["1.png,secret,2026-01-01T00:00,a", "2.png,secret,2026-01-01T00:00Z,a"], "date-time with a zone"),
        (HEADER, ["1.png,1,secret,a"], "line 2: time must be like"),
        (HEADER, ["1.png,secret,nan,a"], "line 2: time must be like"),
        (HEADER, ["1.png,secret,1_0,a"], "line 2: time must be like"),
        (HEADER, ["1.png,secret,31.01.2026,a"], "line 2: time must be like"),
        (HEADER, ["1.png,secret,01/02/2026,a"], "line 2: time must be like"),
        (HEADER, ["1.png,secret,2026-02-30,a"], "line 2: time must be like"),
        (HEADER, ["1.png,secret,20261301,a"], "line 2: time must be like"),
        (HEADER, ["1.png,secret,1612011000000,a"], "line 2: time must be like"),
        (HEADER, ["1.png,secret,2021,a", "2.png,secret,2019,a"], "line 2: time looks like a year .* .2 such lines"),
        (HEADER, ["1.png,secret,2021.0,a", "2.png,x,2020-01-31,a"], "line 2: time looks like a year .* .1 such lines"),
        (HEADER, ["1.png,secret,,a", "2.png,x,201912,a"], "line 3: time looks like a year or a month"),
        (HEADER, ["1.png,x,secret,1,a"], "line 2 has more cells than the header .*quote a cell"),
        (HEADER, ["1.png,secret,1," + "a" * 200_000], "line 2 has more than 100000 characters"),
        (HEADER + ",split", ["1.png,secret,1,a,secret"], "line 2: split must be one of train, validation, test"),
        (HEADER + ",split", ["1.png,secret,1,a,"], "line 2: split must be one of train, validation, test"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(root: Path, header: str, rows: list[str], message: str):
    """A column, row, path, time or split that does not fit is named by its line; no cell is shown."""
    (root / "text.png").write_text("no image")
    write(root, *rows, header=header)
    with refused_in_one_line(message, hidden="secret"):
        read_manifest(root)


def test_a_missing_manifest_is_refused(tmp_path: Path):
    """Without a manifest, or with one of other bytes than text, there is one line."""
    with pytest.raises(RawDataError, match="has no manifest.csv"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.csv").write_bytes(b"path,\xff")
    with pytest.raises(RawDataError, match="cannot read the table"):
        read_manifest(tmp_path)


def test_dicom_is_left_to_its_own_reader(root: Path):
    """A DICOM file is no image here, whatever its name."""
    (root / "cine.png").write_bytes((DATA / "dicom" / "examples_ybr_color.dcm").read_bytes())
    write(root, "cine.png,p,1,")
    with pytest.raises(RawDataError, match="cannot read the image"):
        read_manifest(root)


def animated(frames: int, claimed: int) -> bytes:
    """Return an animated PNG that has some frames and claims another number, its checksum right."""
    content = io.BytesIO()
    grey(1).save(content, "PNG", save_all=True, append_images=[grey(i + 2) for i in range(frames - 1)])
    before, after = content.getvalue().split(b"acTL")
    claim = b"acTL" + claimed.to_bytes(4, "big") + after[4:8]
    return before + claim + zlib.crc32(claim).to_bytes(4, "big") + after[12:]


def test_pages_that_a_header_only_claims_are_refused(root: Path, recwarn: pytest.WarningsRecorder):
    """A file with fewer pages than its header says is refused when it is used, one of too many at once."""
    write(root, "1.png,p,1,")
    (root / "1.png").write_bytes(animated(3, 3))
    assert values(read_manifest(root)[0][0].frames) == [1, 2, 3]
    (root / "1.png").write_bytes(animated(3, 5))
    with pytest.raises(RawDataError, match=r"1.png"):
        read_manifest(root)[0][0].frames[4]
    (root / "1.png").write_bytes(animated(3, 5_001))
    with pytest.raises(RawDataError, match=r"1.png claims 5001 pages, more than 5000"):
        read_manifest(root)
    assert not recwarn.list


def test_a_file_that_has_changed_is_refused(root: Path):
    """Pages that are gone since the manifest was read end in a refusal, not in fewer frames."""
    write(root, "56.tiff,p,1,")
    (sequence,), _ = read_manifest(root)
    grey(1).save(root / "56.tiff")
    with pytest.raises(RawDataError, match=r"56.tiff holds 1 pages, not the 2 of its header"):
        sequence.frames[1]


def test_lines_are_those_of_the_file(tmp_path: Path):
    """Empty lines count: an editor finds the line that a message names."""
    (tmp_path / "t.csv").write_text("a,b\n\nx,1\n,\nz,2\n")
    assert read_table(tmp_path / "t.csv", ("a",), "") == [(3, {"a": "x"}), (5, {"a": "z"})]


def test_a_file_that_cannot_be_used_is_refused_and_skipped(root: Path):
    """A file that is missing, no image or damaged goes to `refuse`; if that returns, the others are read."""
    (root / "text.png").write_text("no image")
    (root / "notes.txt").write_text("no image")
    rows = ("1.png,p,1,a", "gone.png,p,2,b", "text.png,p,3,c", "notes.txt,q,1,a", "2.png,p,4,d")
    write(root, *rows)
    refusals: dict[str, str] = {}
    ((sequence,), _) = read_manifest(root, lambda path, error: refusals.update({path.name: str(error)}))
    assert (values(sequence.frames), sequence.labels, sequence.times) == ([1, 2], ("a", "d"), (0, 3))
    assert list(refusals) == ["gone.png", "text.png", "notes.txt"]
    assert "line 3: path names no file" in refusals["gone.png"]
    write(root, *rows[1:4])
    with pytest.raises(RawDataError, match="names no image that can be read"):
        read_manifest(root, lambda *_: None)
    write(root, "1.png,p,1,a", "../1.png,p,2,a")
    with pytest.raises(RawDataError, match="leads out of"):
        read_manifest(root, lambda *_: None)


def test_pages_are_decoded_one_by_one(root: Path):
    """A file that lacks its last pages gives the first: no page is decoded for another's sake."""
    write(root, "1.png,p,1,")
    (root / "1.png").write_bytes(animated(3, 5))
    ((sequence,), _) = read_manifest(root)
    assert values(sequence.frames[:3]) == [1, 2, 3]
    with pytest.raises(RawDataError, match=r"1\.png"):
        sequence.frames[4]
