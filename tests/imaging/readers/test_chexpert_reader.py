"""CheXpert's layout: studies in order, views and uncertain findings as chosen, refused in one line."""

import csv
from collections import Counter
from pathlib import Path

import pytest
from conftest import DATA
from raw_images import refused_in_one_line, values, write_images

from fedpp.errors import ConfigError, NoImageError, RawDataError
from fedpp.imaging.readers.chexpert import is_chexpert, read_chexpert
from fedpp.imaging.readers.studies import COMPETITION, FINDINGS
from fedpp.imaging.visits import by_visit

XRAYS = DATA / "chexpert_layout"
HEADER = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)
COLUMN = HEADER.index("Pleural Effusion")
PRESENT, ABSENT = "Pleural Effusion", "no Pleural Effusion"

Row = tuple[str, str]  # a path, and the finding


def write_table(table: Path, *rows: Row) -> None:
    """Write rows of a path and its effusion; the view is the one that the path's name says."""
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for path, finding in rows:
            view = "Lateral" if "lateral" in path else "Frontal"
            cells = [path, "Female", "57", view, "AP", *[""] * len(FINDINGS)]
            cells[COLUMN] = finding
            writer.writerow(cells)


def write(root: Path, *rows: Row) -> None:
    write_images(root, *(path for path, _ in rows))
    write_table(root / "train.csv", *rows)


VIEWS = (
    ("patient7/study10/view1_frontal.png", "1.0"),
    ("patient7/study2/view2_frontal.png", "0.0"),
    ("patient7/study2/view1_lateral.png", ""),
    ("patient7/study2/view10_frontal.png", "0"),
    ("patient7/study3/view1_lateral.png", "-1.0"),
)


@pytest.mark.parametrize(
    ("site", "patients", "frames", "positive", "longest", "size"),
    [("site_a", 264, 993, 167, 66, 64), ("site_b", 682, 1000, 90, 12, 128)],
)
def test_the_real_sites_are_read(site: str, patients: int, frames: int, positive: int, longest: int, size: int):
    """Every patient is one sequence, every image one frame with its finding; one patient has 66 visits."""
    sequences = read_chexpert(XRAYS / site)
    assert len(sequences) == len({s.patient for s in sequences}) == patients
    assert sum(len(s.frames) for s in sequences) == frames
    assert Counter(label for s in sequences for label in s.labels or ()) == {
        PRESENT: positive,
        ABSENT: frames - positive,
    }
    assert max(len(s.frames) for s in sequences) == longest
    assert all(s.label == (s.labels or ())[-1] for s in sequences)
    assert {frame.shape for s in sequences for frame in s.frames} == {(size, size)}
    assert is_chexpert(XRAYS / site)


@pytest.mark.parametrize(("views", "expected"), [("frontal", [2, 1]), ("first", [3, 5, 1]), ("all", [3, 2, 4, 5, 1])])
def test_studies_and_views_are_in_the_order_of_their_numbers(tmp_path: Path, views, expected: list[float]):
    """Study 2 is before study 10, and a study gives its first frontal view if any, its first, or all."""
    write(tmp_path, *VIEWS)
    (sequence,) = read_chexpert(tmp_path, views=views)
    assert values(sequence.frames) == expected
    assert (sequence.id, sequence.patient, sequence.times) == ("studies", "patient7", None)


@pytest.mark.parametrize(("uncertain", "expected"), [("ones", PRESENT), ("zeros", ABSENT), ("ignore", None)])
def test_findings_become_labels(tmp_path: Path, uncertain, expected: str | None):
    """1 and 0 are known, blank or NaN is not, and -1 is what was chosen; the label is the last one known."""
    findings = ("1.0", "1", " 0.0 ", "", "-1.0", "-1,0", "NaN")
    write(tmp_path, *((f"patient1/study{n}/view1_frontal.png", finding) for n, finding in enumerate(findings)))
    (sequence,) = read_chexpert(tmp_path, uncertain=uncertain)
    assert sequence.labels == (PRESENT, PRESENT, ABSENT, None, expected, expected, None)
    assert sequence.label == (expected or ABSENT)


def test_a_patient_without_a_known_finding_has_no_label(tmp_path: Path):
    """Blank is not negative; another finding is read where it is the target."""
    write(tmp_path, ("patient1/study1/view1_frontal.png", ""))
    assert read_chexpert(tmp_path)[0].label is None
    text = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(text.replace("AP,", "AP,1"))
    assert read_chexpert(tmp_path, target="No Finding")[0].label == "No Finding"


def test_a_patient_without_a_frontal_view_is_left_out(tmp_path: Path):
    """With frontal views only, a patient of lateral ones gives no sequence; with none at all there is nothing."""
    frontal, lateral = ("patient1/study1/view1_frontal.png", "1"), ("patient2/study1/view1_lateral.png", "1")
    write(tmp_path, frontal, lateral)
    assert [s.patient for s in read_chexpert(tmp_path)] == ["patient1"]
    write(tmp_path, lateral)
    with pytest.raises(RawDataError, match="holds no frontal view: choose the views first or all"):
        read_chexpert(tmp_path)


def test_paths_may_begin_with_the_name_of_a_folder(tmp_path: Path):
    """The official paths begin with the data's own folder: it may be `root`, or a folder below it."""
    rows = [(f"CheXpert-v1.0-small/train/patient1/study{n}/view1_frontal.png", "1") for n in (1, 2)]
    write_images(tmp_path, *(path for path, _ in rows))
    for root in (tmp_path, tmp_path / "CheXpert-v1.0-small"):
        write_table(root / "train.csv", *rows)
        assert values(read_chexpert(root)[0].frames) == [1, 2]
    (tmp_path / "CheXpert-v1.0-small").rename(tmp_path / "renamed")
    assert values(read_chexpert(tmp_path / "renamed")[0].frames) == [1, 2]


def test_all_tables_are_read(tmp_path: Path):
    """train.csv and valid.csv go together, other tables are none of ours, and a file in two is refused."""
    rows = [(f"patient{n}/study1/view1_frontal.png", str(n)) for n in (0, 1)]
    write(tmp_path, *rows)
    write_table(tmp_path / "train.csv", rows[0])
    write_table(tmp_path / "valid.csv", rows[1])
    (tmp_path / "other.csv").write_text("Path,Age\nx,1\n")
    assert [(s.patient, s.label) for s in read_chexpert(tmp_path)] == [
        ("patient0", ABSENT),
        ("patient1", PRESENT),
    ]
    write_table(tmp_path / "again.csv", rows[1])
    message = r"valid.csv, line 2 and .*again.csv, line 2 name the same file"
    with refused_in_one_line(message, hidden="patient", besides=str(tmp_path)):
        read_chexpert(tmp_path)


def test_recognised_by_its_header(tmp_path: Path):
    """A folder without such a table is none, whatever else is named .csv."""
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    assert not is_chexpert(tmp_path / "missing")
    with pytest.raises(RawDataError, match="holds no table with CheXpert's columns, but bytes.csv: choose"):
        read_chexpert(tmp_path)
    (tmp_path / "train.csv").write_text("Path,Frontal/Lateral,Edema\n")
    assert not is_chexpert(tmp_path)
    with pytest.raises(RawDataError, match="train.csv has no column Pleural Effusion"):
        read_chexpert(tmp_path)
    write_table(tmp_path / "any.csv")
    assert is_chexpert(tmp_path)


@pytest.mark.parametrize(
    ("path", "finding", "message"),
    [
        ("patient666/study1/view1_frontal.png", "2", "line 3: Pleural Effusion must be 1, 0, -1 or empty"),
        ("patient666/study1/view1_frontal.png", "yes", "line 3: Pleural Effusion must be"),
        ("patient666/study1/view1_frontal.png", "inf", "line 3: Pleural Effusion must be"),
        ("patient666/study2/view1_frontal.png", "1", "line 3: Path names no file below .*: restore it"),
        ("patient666/view1_frontal.png", "1", "line 3: Path must end like"),
        ("../patient666/study1/view1_frontal.png", "1", "line 3: Path leads out of"),
        ("x//patient666/study1/view1_frontal.png", "1", "line 3: Path names no file"),
        ("../../patient666/study1/view1_frontal.png", "1", "line 3: Path leads out of"),
        ("/patient666/study1/view1_frontal.png", "1", "line 3: Path leads out of"),
        ("patient666/study" + "9" * 5000 + "/view1_frontal.png", "1", "line 3: Path must end like"),
        ("patient666" + "6" * 5000 + "/study1/view1_frontal.png", "1", "line 3: Path names no file"),
        ("patient0/study1/view1_frontal.png", "1", "line 3 and .*train.csv, line 2 name the same file"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, path: str, finding: str, message: str):
    """A finding, a path or a file that is not understood is named by its line; the patient is not."""
    root = tmp_path / "root"
    there = ("patient0/study1/view1_frontal.png", "1")
    for folder in (root, tmp_path):
        write_images(folder, there[0], "patient666/study1/view1_frontal.png")
    write_table(root / "train.csv", there, (path, finding))
    with refused_in_one_line(message, hidden="666", besides=str(tmp_path)):
        read_chexpert(root)


def test_an_absolute_path_is_refused(tmp_path: Path):
    """A file that is there, but out of the folder, is not read."""
    root, outside = tmp_path / "root", tmp_path / "patient1/study1/view1_frontal.png"
    write_images(tmp_path, "patient1/study1/view1_frontal.png")
    write_table(root / "train.csv", (str(outside), "1"))
    with pytest.raises(RawDataError, match="line 2: Path leads out of"):
        read_chexpert(root)


def test_a_view_that_nothing_tells_is_refused(tmp_path: Path):
    """Without a column of views, the names of all files must tell them."""
    write(tmp_path, ("patient1/study1/view1_frontal.png", "1"), ("patient1/study1/view2_LATERAL.png", "0"))
    table = (tmp_path / "train.csv").read_text().replace("Frontal/Lateral", "View")
    (tmp_path / "train.csv").write_text(table)
    assert values(read_chexpert(tmp_path)[0].frames) == [1]
    write_images(tmp_path, "patient1/study1/view2.png")
    (tmp_path / "train.csv").write_text(table.replace("view2_LATERAL", "view2"))
    with pytest.raises(RawDataError, match="line 3: neither Frontal/Lateral nor the file's name tells the view"):
        read_chexpert(tmp_path)


def test_patients_without_a_frontal_view_are_reported(tmp_path: Path):
    """Each view of such a patient reaches `refuse`, as a file without which nothing is lost."""
    write(tmp_path, ("patient1/study1/view1_frontal.png", "1"), ("patient2/study1/view1_lateral.png", "1"))
    reported: list[tuple[str, type]] = []
    read_chexpert(tmp_path, refuse=lambda path, error: reported.append((path.name, type(error))))
    assert reported == [("view1_lateral.png", NoImageError)]


def test_an_unknown_view_is_refused(tmp_path: Path):
    """A view is frontal or lateral; what else is said of it is not guessed."""
    write(tmp_path, ("patient1/study1/view1_frontal.png", "1"))
    (tmp_path / "train.csv").write_text((tmp_path / "train.csv").read_text().replace("Frontal,", "Oblique,"))
    with pytest.raises(RawDataError, match="line 2: Frontal/Lateral must be Frontal or Lateral"):
        read_chexpert(tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"target": "Edema,Effusion"}, "target must be one of .*, got 'Effusion'"),
        ({"target": "Edema, Edema"}, "target names a finding twice: 'Edema, Edema'"),
        ({"target": "Effusion"}, "target must be one of No Finding, .*, Support Devices, got 'Effusion'"),
        ({"uncertain": "drop"}, "uncertain must be one of ones, zeros, ignore, got 'drop'"),
        ({"views": "lateral"}, "views must be one of frontal, first, all, got 'lateral'"),
    ],
)
def test_unknown_choices_are_refused(tmp_path: Path, option: dict[str, str], message: str):
    """An option's known values are named."""
    with pytest.raises(ConfigError, match=message):
        read_chexpert(tmp_path, **option)


def test_a_missing_file_is_refused_and_skipped(tmp_path: Path):
    """A file that is not there goes to `refuse`; if that returns, the others are read, another view in its place."""
    rows = [
        ("patient1/study1/view1_frontal.png", "1"),
        ("patient1/study1/view2_frontal.png", "0"),
        ("patient1/study2/view1_frontal.png", "1"),
        ("patient2/study1/view1_frontal.png", "1"),
    ]
    write(tmp_path, *rows)
    for gone in (0, 3):
        (tmp_path / rows[gone][0]).unlink()
    refusals: list[str] = []
    (sequence,) = read_chexpert(tmp_path, refuse=lambda path, error: refusals.append(f"{path} {error}"))
    assert (sequence.patient, values(sequence.frames), sequence.labels) == ("patient1", [2, 3], (ABSENT, PRESENT))
    assert [line.split()[0] for line in refusals] == [str(tmp_path / rows[gone][0]) for gone in (0, 3)]
    assert "line 2: Path names no file" in refusals[0]
    write_table(tmp_path / "train.csv", rows[0])
    with pytest.raises(RawDataError, match="holds no image that its tables name"):
        read_chexpert(tmp_path, refuse=lambda *_: None)


def write_findings(root: Path, *rows: tuple[str, dict[str, str]]) -> None:
    """Write images, and a table of the findings that are named; all others are blank."""
    write_images(root, *(path for path, _ in rows))
    with (root / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, HEADER, restval="")
        writer.writeheader()
        writer.writerows({"Path": path, "Frontal/Lateral": "Frontal", **findings} for path, findings in rows)


STUDIES = (
    ("patient1/study1/view1_frontal.png", {"Edema": "1.0", "Fracture": "0.0"}),
    ("patient1/study2/view1_frontal.png", {}),
    ("patient1/study3/view1_frontal.png", {"Edema": "-1.0", "Cardiomegaly": "1"}),
    ("patient2/study1/view1_frontal.png", {"Pneumonia": "1"}),
)


@pytest.mark.parametrize(("uncertain", "third"), [("ignore", None), ("ones", "1"), ("zeros", "0")])
def test_several_findings_are_a_tuple_of_their_states(tmp_path: Path, uncertain, third: str | None):
    """In the order of the target; an image without any is unlabelled, a sequence holds the last one known of each."""
    write_findings(tmp_path, *STUDIES)
    first, second = read_chexpert(tmp_path, target="Edema, Fracture,Cardiomegaly", uncertain=uncertain)
    assert first.labels == (("1", "0", None), None, (third, None, "1"))
    assert first.label == (third or "1", "0", "1")
    assert (second.labels, second.label) == ((None,), None)


def test_a_visit_keeps_what_is_unknown_of_it(tmp_path: Path):
    """A visit is used if one of its findings is known, and an earlier visit's are not carried over to it."""
    write_findings(tmp_path, *STUDIES)
    windows = by_visit(read_chexpert(tmp_path, target="Edema,Fracture,Cardiomegaly"), window=3)
    assert [(s.patient, len(s.frames), s.label) for s in windows] == [
        ("patient1", 1, ("1", "0", None)),
        ("patient1", 3, (None, None, "1")),
    ]


@pytest.mark.parametrize("site", ["site_a", "site_b"])
def test_the_competition_s_findings_are_those_of_the_real_table(site: str):
    """Of each finding as many images are positive, negative and unknown as a plain reading of the table counts."""
    with (XRAYS / site / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [Counter(row[name].replace(".0", "") or None for row in rows) for name in COMPETITION]
    labels = [label for s in read_chexpert(XRAYS / site, target="competition") for label in s.labels or ()]
    assert len(labels) == len(rows)
    assert [Counter(states) for states in zip(*labels, strict=True)] == expected
    assert all(counts["1"] > 0 for counts in expected)
