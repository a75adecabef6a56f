"""Public layouts of 200 patients: patients, order, labels and splits as their generators say; broken ones refused."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from public_layouts import NIH, Tree, chexpert, class_folders, mimic_cxr, nih_chestxray14, number_of

from fedpp.errors import ConfigError, FedppError, RawDataError, UnusableFileError
from fedpp.imaging.readers.layout import Choices, layout_of, read_sequences
from fedpp.imaging.reasons import Doubt
from fedpp.imaging.sequence import ImageSequence

DEFAULT = Choices()


def numbers(sequence: ImageSequence) -> list[int]:
    return [number_of(frame) for frame in sequence.frames]


def read(tree: Tree, layout: str, choices: Choices = DEFAULT) -> dict[str, ImageSequence]:
    """Read a tree as whatever it is recognised as, which must be `layout`; one sequence a patient."""
    assert layout_of(tree.root) == layout
    sequences, _ = read_sequences(tree.root, choices=choices)
    assert len({s.patient for s in sequences}) == len(sequences)
    return {s.patient: s for s in sequences}


def test_chexpert(tmp_path: Path):
    """Each patient is a sequence of first frontal views in the order of studies, with its findings."""
    tree = chexpert(tmp_path)
    sequences = read(tree, "chexpert")
    assert len(sequences) == 200
    for patient, expected in tree.patients.items():
        assert numbers(sequences[patient]) == expected.images
        assert sequences[patient].labels == tuple(expected.labels)
        assert sequences[patient].doubts == ()


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_mimic_cxr(tmp_path: Path, suffix: str):
    """Each patient is a sequence of frontal views in the order of date and time, with findings and the set's split."""
    tree = mimic_cxr(tmp_path, suffix=suffix)
    sequences = read(tree, "mimic-cxr")
    assert len(sequences) == 200
    for patient, expected in tree.patients.items():
        sequence = sequences[patient]
        assert (numbers(sequence), sequence.labels) == (expected.images, tuple(expected.labels))
        assert (sequence.split, sequence.doubts) == (expected.split, ())
        days = [time - (sequence.times or ())[0] for time in sequence.times or ()]
        seconds = [(time - expected.times[0]).total_seconds() for time in expected.times]
        assert [day * 86400 for day in days] == pytest.approx(seconds, abs=1)


def test_nih_chestxray14(tmp_path: Path):
    """Each patient is a sequence in the order of follow-ups, with all findings and the split of the lists."""
    tree = nih_chestxray14(tmp_path)
    for patient, sequence in read(tree, "nih-chestxray14", Choices(target=",".join(NIH))).items():
        expected = tree.patients[patient]
        assert (numbers(sequence), sequence.split) == (expected.images, expected.split)
        states = [tuple("1" if finding in found else "0" for finding in NIH) for found in expected.labels]  # type: ignore[operator]
        assert sequence.labels == tuple(states)
    assert len(tree.patients) == 200 == len(read(tree, "nih-chestxray14"))


@pytest.mark.parametrize(
    ("target", "finding"),
    [("Pleural Effusion", "Effusion"), ("Effusion", "Effusion"), ("Pleural Thickening", "Pleural_Thickening")],
)
def test_findings_of_nih_have_the_names_of_other_sets(tmp_path: Path, target: str, finding: str):
    """A finding is found by the set's own name, and by CheXpert's, so that hospitals of both can train together."""
    tree = nih_chestxray14(tmp_path, 20)
    for patient, sequence in read(tree, "nih-chestxray14", Choices(target=target)).items():
        of_patient = tree.patients[patient].labels
        assert sequence.labels == tuple(target if finding in found else f"no {target}" for found in of_patient)  # type: ignore[operator]


@pytest.mark.parametrize("splits", [True, False])
def test_class_folders(tmp_path: Path, splits: bool):
    """Each patient is a sequence of each class, in the natural order of names, with the split of the folder."""
    tree = class_folders(tmp_path, splits=splits)
    assert layout_of(tmp_path) == "class-folders"
    sequences = {f"{s.patient} {s.label}": s for s in read_sequences(tmp_path)[0]}
    assert sequences.keys() == tree.patients.keys()
    assert len({s.patient for s in sequences.values()}) == 200
    for key, expected in tree.patients.items():
        assert numbers(sequences[key]) == expected.images
        assert sequences[key].split == expected.split
        assert sequences[key].doubts == ()


def text(name: str, change: Callable[[str], str], encoding: str = "utf-8") -> Callable[[Path], None]:
    """Return a change of the text of a table."""

    def apply(root: Path) -> None:
        (root / name).write_bytes(change((root / name).read_text()).encode(encoding))

    return apply


def rename(name: str, other: str) -> Callable[[Path], object]:
    return lambda root: (root / name).rename(root / other)


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def swapped(line: str, cells: tuple[int, int]) -> str:
    """Return a line with two of its cells swapped."""
    found = line.split(",")
    found[cells[0]], found[cells[1]] = found[cells[1]], found[cells[0]]
    return ",".join(found)


def shifted(table: str, cells: tuple[int, int]) -> str:
    """Return a table of which the third line has two cells swapped."""
    lines = table.splitlines()
    return "\n".join([*lines[:2], swapped(lines[2], cells), *lines[3:]])


def again(table: str) -> str:
    """Return a table with its second line once more at its end."""
    return f"{table}{table.splitlines()[1]}\n"


def cell(table: str, column: str, value: str) -> str:
    """Return a table with another value in the third line."""
    head, second, line, *rest = table.splitlines()
    cells = line.split(",")
    cells[head.split(",").index(column)] = value
    return "\n".join([head, second, ",".join(cells), *rest])


def column(table: str, name: str, change: Callable[[str], str]) -> str:
    """Return a table with a change of each cell of a column."""
    head, *lines = [line.split(",") for line in table.splitlines()]
    place = head.index(name)
    changed = [[*cells[:place], change(cells[place]), *cells[place + 1 :]] for cells in lines]
    return "\n".join(",".join(cells) for cells in (head, *changed))


META, SPLIT, LABELS = (f"mimic-cxr-2.0.0-{kind}.csv" for kind in ("metadata", "split", "chexpert"))
SAME = ""  # in place of a message: read as if nothing had been changed

BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "chexpert: semicolons": ("chexpert", text("train.csv", lambda t: t.replace(",", ";")), SAME),
    "chexpert: tabs": ("chexpert", text("train.csv", lambda t: t.replace(",", "\t")), SAME),
    "chexpert: UTF-16": ("chexpert", text("train.csv", str, "utf-16"), SAME),
    "chexpert: suffix": ("chexpert", rename("train.csv", "train.CSV"), SAME),
    "chexpert: header in capitals": ("chexpert", text("train.csv", lambda t: t.replace("Path", "PATH")), SAME),
    "chexpert: a column of the view renamed": (
        "chexpert",
        lambda root: [
            text(f"{n}.csv", lambda t: t.replace("Frontal/Lateral", "View"))(root) for n in ("train", "valid")
        ],
        SAME,
    ),
    "chexpert: another finding missing": ("chexpert", text("train.csv", lambda t: t.replace("Fracture", "X")), SAME),
    "chexpert: the finding missing": (
        "chexpert",
        text("train.csv", lambda t: t.replace("Pleural Effusion", "Effusion")),
        "train.csv has no column Pleural Effusion",
    ),
    "chexpert: paths renamed": (
        "chexpert",
        text("valid.csv", lambda t: t.replace("Path", "File")),
        "valid.csv has no column Path",
    ),
    "chexpert: no header": (
        "chexpert",
        lambda root: [text(f"{n}.csv", lambda t: t.partition("\n")[2])(root) for n in ("train", "valid")],
        "no table with CheXpert's columns, but train.csv, valid.csv: choose",
    ),
    "chexpert: no table": (
        "chexpert",
        lambda root: [remove(f"{name}.csv")(root) for name in ("train", "valid")],
        "holds no table with CheXpert's columns: choose the folder with train.csv",
    ),
    "chexpert: a spreadsheet": (
        "chexpert",
        lambda root: [rename(f"{name}.csv", f"{name}.xlsx")(root) for name in ("train", "valid")],
        "holds no table with CheXpert's columns",
    ),
    "mimic: semicolons": ("mimic", text(META, lambda t: t.replace(",", ";")), SAME),
    "mimic: UTF-16": ("mimic", text(LABELS, str, "utf-16"), SAME),
    "mimic: NegBio's labels alone": ("mimic", rename(LABELS, "mimic-cxr-2.0.0-negbio.csv"), SAME),
    "mimic: another name of the labels": ("mimic", rename(LABELS, "labels of mine.csv"), SAME),
    "mimic: whole numbers as fractions": (
        "mimic",
        text(LABELS, lambda t: column(column(t, "study_id", "{}.0".format), "subject_id", "{}.0".format)),
        SAME,
    ),
    "mimic: dates with dashes": (
        "mimic",
        text(META, lambda t: column(t, "StudyDate", lambda date: f"{date[:4]}-{date[4:6]}-{date[6:]}")),
        SAME,
    ),
    "mimic: no such day": ("mimic", text(META, lambda t: cell(t, "StudyDate", "21801340")), "are no date"),
    "mimic: no date": ("mimic", text(META, lambda t: cell(t, "StudyDate", "")), "line 3: StudyDate must be like"),
    "mimic: a time of another form": ("mimic", text(META, lambda t: cell(t, "StudyTime", "9:30")), "line 3: StudyDate"),
    "mimic: no time of a day": ("mimic", text(META, lambda t: cell(t, "StudyTime", "250000")), "no time of a day"),
    "mimic: no such study": ("mimic", text(META, lambda t: shifted(t, (1, 2))), "at most nine|another study's folder"),
    "mimic: a column of the metadata renamed": (
        "mimic",
        text(META, lambda t: t.replace("StudyDate", "Date")),
        "metadata.csv has no column StudyDate",
    ),
    "mimic: an image twice": ("mimic", text(META, again), "names an image for the second time"),
    "mimic: a study twice": ("mimic", text(LABELS, again), "names a study for the second time"),
    "mimic: findings of other data": (
        "mimic",
        text(LABELS, lambda t: t.splitlines()[0] + "\n1,2" + 14 * ","),
        "names none of the studies",
    ),
    "mimic: a finding of another form": (
        "mimic",
        text(LABELS, lambda t: cell(t, "Pleural Effusion", "yes")),
        "line 3: Pleural Effusion must be",
    ),
    "mimic: the finding missing": (
        "mimic",
        text(LABELS, lambda t: t.replace("Pleural Effusion", "Effusion")),
        "chexpert.csv has no column Pleural Effusion",
    ),
    "mimic: findings without studies": (
        "mimic",
        lambda root: [rename(LABELS, "labels.csv")(root), text("labels.csv", lambda t: t.replace("study_", ""))(root)],
        "no table with columns subject_id, study_id and findings, but labels.csv",
    ),
    "mimic: two tables of metadata": (
        "mimic",
        lambda root: (root / "more metadata.csv").write_bytes((root / META).read_bytes()),
        "are both tables of metadata",
    ),
    "mimic: an unknown split": ("mimic", text(SPLIT, lambda t: cell(t, "split", "dev")), "split must be one of train,"),
    "mimic: no split of some": ("mimic", text(SPLIT, lambda t: "\n".join(t.splitlines()[:9])), "gives no split to"),
    "mimic: without metadata": ("mimic", remove(META), "has no table of metadata, which tells frontal views"),
    "nih: semicolons": ("nih", text("Data_Entry_2017.csv", lambda t: t.replace(",", ";")), SAME),
    "nih: tabs, UTF-16": ("nih", text("Data_Entry_2017.csv", lambda t: t.replace(",", "\t"), "utf-16"), SAME),
    "nih: another name of the table": ("nih", rename("Data_Entry_2017.csv", "Entries 2020.CSV"), SAME),
    "nih: a column renamed": (
        "nih",
        text("Data_Entry_2017.csv", lambda t: t.replace("Patient ID", "Patient")),
        "looks like NIH ChestX-ray14",
    ),
    "nih: no table": ("nih", remove("Data_Entry_2017.csv"), "looks like NIH ChestX-ray14"),
    "nih: an unknown finding": (
        "nih",
        text("Data_Entry_2017.csv", lambda t: cell(t, "Finding Labels", "Effusion|Covid")),
        "line 3: Finding Labels must be No Finding, or",
    ),
    "nih: no finding and one": (
        "nih",
        text("Data_Entry_2017.csv", lambda t: cell(t, "Finding Labels", "No Finding|Mass")),
        "line 3: Finding Labels must be",
    ),
    "nih: no finding said": (
        "nih",
        text("Data_Entry_2017.csv", lambda t: cell(t, "Finding Labels", "")),
        "line 3: Finding Labels must be",
    ),
    "nih: another patient": (
        "nih",
        text("Data_Entry_2017.csv", lambda t: cell(t, "Patient ID", "9999")),
        "line 3: Patient ID is not the patient of Image Index",
    ),
    "nih: follow-up by word": (
        "nih",
        text("Data_Entry_2017.csv", lambda t: cell(t, "Follow-up #", "first")),
        "line 3: Patient ID and Follow-up # must be",
    ),
    "nih: an image twice": ("nih", text("Data_Entry_2017.csv", again), "names an image for the second time"),
    "nih: one list": ("nih", remove("test_list.txt"), "has train_val_list.txt alone"),
    "nih: a shorter list": (
        "nih",
        text("test_list.txt", lambda t: t.partition("\n")[2]),
        "does not name each image of a patient",
    ),
    "nih: overlapping lists": (
        "nih",
        lambda root: text("test_list.txt", lambda t: f"{t}\n{(root / 'train_val_list.txt').read_text()}")(root),
        "divide the images of a patient",
    ),
}
WRITERS = {"chexpert": chexpert, "mimic": lambda root, n: mimic_cxr(root, n, suffix=".csv"), "nih": nih_chestxray14}


@pytest.mark.parametrize("name", BROKEN)
def test_a_changed_table_is_read_or_refused(tmp_path: Path, name: str):
    """A table that a spreadsheet or a person has changed is read as before where that is certain, else refused."""
    layout, change, message = BROKEN[name]
    tree = WRITERS[layout](tmp_path, 30)
    change(tmp_path)
    if message:
        with pytest.raises(FedppError, match=message) as refused:
            read_sequences(tmp_path)
        assert "\n" not in str(refused.value)
        return
    sequences = {s.patient: s for s in read_sequences(tmp_path)[0]}
    assert sequences.keys() == tree.patients.keys()
    for patient, expected in tree.patients.items():
        assert numbers(sequences[patient]) == expected.images
        if layout != "nih":
            assert sequences[patient].labels == tuple(expected.labels)


def refused_files(tree: Tree, choices: Choices = DEFAULT) -> tuple[list[ImageSequence], Counter[str], str]:
    """Return what is read if files that cannot be used are skipped, how many these are by reason, and what is said."""
    reasons: list[str] = []

    def skip(_: Path, error: UnusableFileError) -> None:
        reasons.append(error.reason)

    sequences, said = read_sequences(tree.root, "auto", choices, skip)
    return sequences, Counter(reasons), said


@pytest.mark.parametrize("layout", ["mimic", "nih"])
def test_what_is_missing_of_a_patient_is_lost_and_whole_patients_are_counted(tmp_path: Path, layout: str):
    """A part of a set has patients less; one image less of a patient, or one that no line names, is refused."""
    tree = WRITERS[layout](tmp_path, 30)
    files = {number_of(np.asarray(Image.open(file))): file for file in tmp_path.rglob("*.[jp][pn]g")}
    whole, part, *_ = (patient for patient, of in tree.patients.items() if len(of.images) > 1)
    for number in tree.patients[part].images[:1]:
        files[number].unlink()
    for number, file in files.items():
        if f"/p{whole}/" in str(file) or number in tree.patients[whole].images:
            file.unlink(missing_ok=True)
    with pytest.raises(UnusableFileError, match="names no (image|file) below .*: restore it or remove the line"):
        read_sequences(tmp_path)
    extra = files[tree.patients[part].images[1]].with_name("99999999_000.jpg")
    tree.image(str(extra.relative_to(tmp_path)))
    sequences, reasons, said = refused_files(tree)
    assert reasons == {"missing, though a table names it": 1, "named by no line of its table": 1}
    assert {s.patient for s in sequences} == tree.patients.keys() - {whole}
    assert "1 patient of its " in said
    (short,) = (s for s in sequences if s.patient == part)
    assert numbers(short) == tree.patients[part].images[1:]


def test_mimic_without_metadata_is_in_the_order_of_numbers(tmp_path: Path):
    """Without dates the order of studies is a guess, and is reported; nothing tells frontal views, so all are read."""
    tree = mimic_cxr(tmp_path, 30, suffix=".csv")
    remove(META)(tmp_path)
    sequences, said = read_sequences(tmp_path, "auto", Choices(views="all"))
    for sequence in sequences:
        files = [file.path for file in sequence.frames.files]  # type: ignore[attr-defined]
        assert files == sorted(tmp_path.glob(f"files/*/p{sequence.patient}/s*/*.jpg"))
        several = len({file.parent for file in files}) > 1
        assert sequence.doubts == ((Doubt.ORDER,) if several else ())
        assert sequence.times is None
    assert len(sequences) == len(tree.patients)
    assert "without a table of metadata the order of studies is that of their numbers" in said


def test_mimic_without_findings_is_unlabelled(tmp_path: Path):
    """Without any table of findings there is nothing to drop, and that is said."""
    mimic_cxr(tmp_path, 10, suffix=".csv")
    remove(LABELS)(tmp_path)
    sequences, said = read_sequences(tmp_path)
    assert {s.label for s in sequences} == {None}
    assert "there is no table of findings" in said


def test_mimic_studies_stay_whole_and_equal_times_are_a_guess(tmp_path: Path):
    """Images of one study that were taken at different times are one study; two studies of one time have no order."""
    tree = Tree(tmp_path, np.random.default_rng(5))
    times = {("50000002", "b"): 120000, ("50000002", "a"): 110000, ("50000001", "c"): 113000, ("50000003", "d"): 110000}
    rows: list[list[object]] = []
    for (study, dicom), time in times.items():
        tree.image(f"files/p10/p10000001/s{study}/{dicom}.jpg")
        rows.append([dicom, "10000001", study, "20200101", time, "AP"])
    tree.table(META, ["dicom_id", "subject_id", "study_id", "StudyDate", "StudyTime", "ViewPosition"], rows[:3])
    sequences, _, _ = refused_files(tree)
    assert (numbers(sequences[0]), sequences[0].doubts) == ([1, 2], ())
    tree.table(META, ["dicom_id", "subject_id", "study_id", "StudyDate", "StudyTime", "ViewPosition"], rows)
    sequences, _, _ = refused_files(tree)
    assert (numbers(sequences[0]), sequences[0].doubts) == ([1, 3, 2], (Doubt.ORDER,))


@pytest.mark.parametrize(
    ("view", "frontal"),
    [
        ("PA", True),
        ("AP", True),
        ("AP AXIAL", True),
        ("pa", True),
        ("LL", False),
        ("XTABLE LATERAL", False),
        ("", False),
    ],
)
def test_mimic_views_that_are_frontal(tmp_path: Path, view: str, frontal: bool):
    """AP and PA are frontal in any position of the patient; a view that is not said is none."""
    tree = mimic_cxr(tmp_path, 5, suffix=".csv")
    text(META, lambda t: column(t, "ViewPosition", lambda _: view))(tmp_path)
    if not frontal:
        with pytest.raises(RawDataError, match="holds no frontal view"):
            read_sequences(tmp_path)
        return
    assert len(read_sequences(tmp_path)[0]) == len(tree.patients)


def test_mimic_one_folder_too_low_is_refused(tmp_path: Path):
    """The folder `files` has no tables: the one above is named."""
    mimic_cxr(tmp_path, 5)
    with pytest.raises(RawDataError, match="one folder too low: its tables are in"):
        read_sequences(tmp_path / "files", "auto", Choices(views="all"))


def test_a_set_below_the_folder_is_named(tmp_path: Path):
    """One folder too high, no table is found, but the message says so."""
    mimic_cxr(tmp_path / "mimic-cxr-jpg" / "2.0.0", 5)
    with pytest.raises(RawDataError, match="is too high: the tables are in .*2.0.0, name that folder"):
        read_sequences(tmp_path / "mimic-cxr-jpg", "auto", Choices(views="all"))
    nih_chestxray14(tmp_path / "other" / "nih", 5)
    with pytest.raises(RawDataError, match="one folder too high: a folder in it has a table of findings"):
        layout_of(tmp_path / "other")


def test_nih_in_one_folder_without_lists(tmp_path: Path):
    """All images may be in one folder; without lists the patients have no split."""
    tree = nih_chestxray14(tmp_path, 30)
    for file in list(tmp_path.glob("images_*/images/*.png")):
        (tmp_path / "images").mkdir(exist_ok=True)
        file.rename(tmp_path / "images" / file.name)
    for name in ("train_val_list.txt", "test_list.txt"):
        remove(name)(tmp_path)
    sequences = read(tree, "nih-chestxray14")
    assert {s.split for s in sequences.values()} == {None}
    assert all(numbers(sequences[patient]) == expected.images for patient, expected in tree.patients.items())


@pytest.mark.parametrize(
    ("choices", "layout", "message"),
    [
        (Choices(target="Effusion"), "mimic", "target must be one of No Finding, Enlarged"),
        (Choices(target="Fracture"), "nih", "target must be one of No Finding, Atelectasis"),
        (Choices(views="all"), "nih", "views 'all' is for layout chexpert or mimic-cxr, these data are read as nih"),
        (Choices(uncertain="ones"), "nih", "uncertain 'ones' is for layout chexpert or mimic-cxr"),
        (Choices(series="slide"), "mimic", "series 'slide' is for layout breakhis"),
    ],
)
def test_a_choice_that_a_layout_does_not_have_is_refused(tmp_path: Path, choices: Choices, layout: str, message: str):
    """The message says which findings or layouts there are."""
    WRITERS[layout](tmp_path, 5)
    with pytest.raises(ConfigError, match=message):
        read_sequences(tmp_path, "auto", choices)
