"""Folders of classes: who is a patient, what is refused, and what only resembles patients."""

from pathlib import Path

import pytest
from conftest import DATA
from raw_images import write_images

from fedpp.errors import RawDataError, UnusableFileError
from fedpp.imaging.readers.layout import layout_of, read_sequences


def found(root: Path, layout: str = "auto") -> set[tuple[str, object, str | None, int]]:
    """Return patient, label, split and number of images of each sequence."""
    return {(s.patient, s.label, s.split, len(s.frames)) for s in read_sequences(root, layout)[0]}


READ = {
    "file names": (
        ["benign/patient1_1.png", "benign/patient1_2.png", "malignant/patient2.png"],
        {("patient1", "benign", None, 2), ("patient2", "malignant", None, 1)},
    ),
    "other forms of file names": (
        ["NORMAL/sub-01_a.png", "Viral Pneumonia/Person 7 virus 3.png", "COVID-19/case_12.png"],
        {
            ("sub01", "NORMAL", None, 1),
            ("person7", "Viral Pneumonia", None, 1),
            ("case12", "COVID-19", None, 1),
        },
    ),
    "patients below": (
        ["healthy/p1/1.png", "healthy/p1/2.png", "glioma_tumor/p2/1.png"],
        {("p1", "healthy", None, 2), ("p2", "glioma_tumor", None, 1)},
    ),
    "patients above": (
        ["1023/benign/1.png", "1023/malignant/1.png", "1024/benign/1.png"],
        {("1023", "benign", None, 1), ("1023", "malignant", None, 1), ("1024", "benign", None, 1)},
    ),
    "one folder above": (
        ["archive/yes/pt1.png", "archive/no/pt2.png"],
        {("pt1", "yes", None, 1), ("pt2", "no", None, 1)},
    ),
    "splits": (
        ["d/train/normal/pt1.png", "d/val/normal/pt2.png", "d/test/pneumonia/pt3.png", "d/train/pneumonia/pt4.png"],
        {
            ("pt1", "normal", "train", 1),
            ("pt2", "normal", "validation", 1),
            ("pt3", "pneumonia", "test", 1),
            ("pt4", "pneumonia", "train", 1),
        },
    ),
    "splits without validation": (
        ["Training/normal/pt1.png", "Testing/pneumonia/pt3.png"],
        {("pt1", "normal", "train or validation", 1), ("pt3", "pneumonia", "test", 1)},
    ),
    "one split": (
        ["train/normal/pt1.png", "train/pneumonia/pt3.png"],
        {("pt1", "normal", None, 1), ("pt3", "pneumonia", None, 1)},
    ),
}


@pytest.mark.parametrize("name", READ)
def test_classes_and_patients_are_recognised(tmp_path: Path, name: str):
    """The class is a folder; the patient is a folder above or below it, or the first part of the file's name."""
    files, expected = READ[name]
    write_images(tmp_path, *files)
    assert layout_of(tmp_path) == "class-folders"
    assert found(tmp_path) == expected


def many(*folders: str, count: int = 30) -> list[str]:
    return [f"{folder}/{number}.png" for folder in folders for number in range(count)]


REFUSED = {
    "no patients": (many("benign", "malignant", count=2), "4 of 4 images name no patient: if no two"),
    "some patients": (["benign/patient1.png", "malignant/9.png"], "1 of 2 images name no patient"),
    "names below classes": (["benign/Meier/1.png", "malignant/Meier/2.png"], "have no number, so they may be patients"),
    "an unknown class": (["benign/pt1.png", "Meier/pt2.png"], "looks like classes, though not all"),
    "one class": (["malignant/pt1.png"], "looks like classes, though not all"),
    "numbers of classes": (["0/pt1.png", "1/pt2.png"], "looks like classes, though not all"),
    "splits of patients": (["train/p1/1.png", "test/p2/1.png"], r"looks like splits \(train, test\), not patients"),
    "one split of patients": (["train/p1/1.png", "train/p2/1.png"], r"looks like splits"),
    "splits of unknown classes": (["train/red/1.png", "val/red/2.png", "val/blue/3.png"], "looks like splits"),
    "one folder of all, flat": (many("Images", count=2), "looks like one folder of all images"),
    "one folder of all": (["images/p1/1.png", "images/p2/1.png"], "looks like one folder of all images"),
    "names with many images": (many("Meier", "Schulz"), "looks like classes or patients: a few folders of many"),
    "a patient in two splits": (
        ["train/normal/pt1_1.png", "test/normal/pt1_2.png", "test/pneumonia/pt2.png"],
        "has 1 patient in two of its splits",
    ),
    "one class in two cases": (
        ["train/Normal/pt1.png", "test/normal/pt2.png"],
        "whose names differ in case or blanks only",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_is_refused_without_names(tmp_path: Path, name: str):
    """Folders that are hardly patients are no patients, and the message quotes no folder's name: it may be one's."""
    files, message = REFUSED[name]
    write_images(tmp_path, *files)
    with pytest.raises(RawDataError, match=message) as refused:
        read_sequences(tmp_path)
    assert "Meier" not in str(refused.value)
    assert "\n" not in str(refused.value)


PATIENTS = {
    "numbers": (many("p1", "p2"), 2),
    "numbers alone": (many("1", "2", "3"), 3),
    "names": (["Meier/1.png", "Schulz/1.png"], 2),
    "one patient": (["p1/2020/1.png", "p1/2021/1.png"], 1),
    "many names": (many(*"abcdefghijklmnop", count=25), 16),
    "sequences named as lesions": (["p1/lesion1/1.png", "p1/lesion2/1.png", "p2/lesion1/1.png"], 2),
}


@pytest.mark.parametrize("name", PATIENTS)
def test_folders_of_patients_stay_patients(tmp_path: Path, name: str):
    """Folders with numbers, of few images, or many of them, are patients as ever."""
    files, patients = PATIENTS[name]
    write_images(tmp_path, *files)
    assert layout_of(tmp_path) == "images"
    assert len({patient for patient, *_ in found(tmp_path)}) == patients


def test_a_layout_that_is_named_is_obeyed(tmp_path: Path):
    """Named as class folders, an image that names no patient is one, and that is said; named as images, folders are."""
    write_images(tmp_path, "Meier/9.png", "Meier/10.png", "Schulz/patient3.png")
    sequences, said = read_sequences(tmp_path, "class-folders")
    assert {(s.patient, s.label) for s in sequences} == {
        ("Meier/9.png", "Meier"),
        ("Meier/10.png", "Meier"),
        ("patient3", "Schulz"),
    }
    assert "2 images without a patient in the name, each taken as a patient: the split is by image" in said
    write_images(tmp_path, *many("benign", "malignant", count=2))
    assert {patient for patient, *_ in found(tmp_path, "images")} == {"Meier", "Schulz", "benign", "malignant"}


def test_patients_with_a_table_of_labels_are_no_classes(tmp_path: Path):
    """Where labels.csv names the folders, they are patients, whatever their names are."""
    write_images(tmp_path, "control/1.png", "lesion/1.png")
    (tmp_path / "labels.csv").write_text("patient,label\ncontrol,well\nlesion,ill\n")
    assert found(tmp_path) == {("control", "well", None, 1), ("lesion", "ill", None, 1)}


def test_loose_images_beside_classes_are_refused(tmp_path: Path):
    """An image of no class is not left out."""
    write_images(tmp_path, "benign/pt1.png", "malignant/pt2.png", "pt3.png")
    for layout in ("auto", "class-folders"):
        with pytest.raises(RawDataError, match="holds loose images|no folder for each class with all images"):
            read_sequences(tmp_path, layout)


def test_masks_are_no_images(tmp_path: Path):
    """A mask beside its image is passed over; an image of that name without one is not."""
    write_images(tmp_path, "benign/pt1 (1).png", "benign/pt1 (1)_mask.png", "benign/pt1 (1)_mask_1.png")
    write_images(tmp_path, "malignant/pt2_mask.png")
    passed: list[tuple[str, str]] = []

    def record(path: Path, error: UnusableFileError) -> None:
        passed.append((path.name, error.reason))

    sequences, _ = read_sequences(tmp_path, refuse=record)
    assert [(s.patient, len(s.frames)) for s in sequences] == [("pt1", 1), ("pt2", 1)]
    assert passed == [
        ("pt1 (1)_mask.png", "no image of a patient"),
        ("pt1 (1)_mask_1.png", "no image of a patient"),
    ]


@pytest.mark.parametrize("name", ["Meta.csv", "labels of mine.XLSX", "diagnoses.tsv"])
def test_patients_beside_an_unknown_table_are_refused(tmp_path: Path, name: str):
    """A table that no layout reads may have the labels: it is named, and the layout then decides."""
    write_images(tmp_path, "p1/1.png", "p2/1.png")
    (tmp_path / name).write_text("id,diagnosis\np1,ill\np2,well\n")
    with pytest.raises(RawDataError, match=f"has {name}, of which no layout knows the columns: make it labels.csv"):
        read_sequences(tmp_path)
    assert len(read_sequences(tmp_path, "images")[0]) == 2


def test_dicom_in_folders_of_classes_is_unlabelled_and_that_is_said(tmp_path: Path):
    """Labels of DICOM files are in a table; names of folders are not dropped without a word."""
    for label, name in (("benign", "MR_small.dcm"), ("malignant", "CT_small.dcm")):
        (tmp_path / label).mkdir()
        (tmp_path / label / name).write_bytes((DATA / "dicom" / name).read_bytes())
    said = "folders are named as classes, which are no labels of DICOM files: write labels.csv"
    assert said in read_sequences(tmp_path)[1]
    (tmp_path / "benign").rename(tmp_path / "Meier")
    assert said not in read_sequences(tmp_path)[1]
