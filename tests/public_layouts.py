"""Trees of tiny images in the layouts of public sets, each with what must be read, which no reader of ours tells."""

import csv
import gzip
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image

_CHEXPERT = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,"
    "Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
_NIH = (
    "Atelectasis,Cardiomegaly,Effusion,Infiltration,Mass,Nodule,Pneumonia,Pneumothorax,Consolidation,Edema,"
    "Emphysema,Fibrosis,Pleural_Thickening,Hernia"
)
CHEXPERT, NIH = _CHEXPERT.split(","), _NIH.split(",")
EFFUSION = ("Pleural Effusion", "no Pleural Effusion", None, None)  # what each of "1.0", "0.0", "-1.0" and "" is
VIEWS = (("frontal",), ("lateral", "frontal"), ("frontal", "lateral", "frontal"))  # of studies
WRITTEN = ("1.0", "0.0", "-1.0", "")


@dataclass
class Patient:
    """What must be read of a patient: the number of each image in the order of time, and the label of each."""

    images: list[int] = field(default_factory=list)
    labels: list[object] = field(default_factory=list)
    times: list[datetime] = field(default_factory=list)
    split: str | None = None

    def add(self, image: int, label: object) -> None:
        """Add an image."""
        self.images.append(image)
        self.labels.append(label)


@dataclass
class Tree:
    """A folder that is being written, and its patients."""

    root: Path
    random: np.random.Generator
    patients: dict[str, Patient] = field(default_factory=dict)
    written: int = 0
    shown: dict[int, tuple[str, object]] = field(default_factory=dict)  # patient and label of each image
    files: dict[Path, str] = field(default_factory=dict)  # their patients

    def image(self, name: str, patient: str = "", label: object = None) -> int:
        """Write the next image, and return its number, which its pixels show."""
        number, self.written = self.written, self.written + 1
        self.shown[number], self.files[self.root / name] = (patient, label), patient
        pixels = np.repeat(np.array([[number // 250, number % 250]], np.uint8), 8, axis=1).repeat(8, axis=0)
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(self.root / name, quality=100)  # a JPEG's blocks are flat: nothing is lost
        return number

    def table(self, name: str, header: Iterable[str], rows: list[list[object]]) -> None:
        """Write rows in any order, compressed if the name ends in .gz."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows[i] for i in self.random.permutation(len(rows)))
        content = text.getvalue().encode()
        (self.root / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)

    def numbers(self, count: int, below: int) -> list[int]:
        """Return different numbers in any order."""
        return [int(number) for number in self.random.choice(below, count, replace=False)]


def number_of(pixels: np.ndarray) -> int:
    """Return the number that an image shows."""
    return round(float(pixels[0, 0])) * 250 + round(float(pixels[0, -1]))


def chexpert(root: Path, patients: int = 200, *, seed: int = 1) -> Tree:
    """Write CheXpert: studies numbered past 9, lateral views, findings that are blank or uncertain."""
    tree = Tree(root, np.random.default_rng(seed))
    rows: dict[str, list[list[object]]] = {"train": [], "valid": []}
    for patient in range(1, patients + 1):
        table = "valid" if patient % 10 == 0 else "train"
        name = f"patient{patient:05d}"
        tree.patients[name] = expected = Patient()
        for study in sorted(tree.numbers(1 + patient % 3, 14)):
            finding, first = int(tree.random.integers(4)), True
            for view, projection in enumerate(VIEWS[study % 3], 1):
                path = f"{table}/{name}/study{study + 1}/view{view}_{projection}.jpg"
                number = tree.image(path, name, EFFUSION[finding])
                if projection == "frontal" and first:
                    first = False
                    expected.add(number, EFFUSION[finding])
                cells = [WRITTEN[finding] if of == "Pleural Effusion" else "" for of in CHEXPERT]
                row = [f"CheXpert-v1.0-small/{path}", "Female", 60, projection.title(), "AP", *cells]
                rows[table].append(row)
    for table, of_table in rows.items():
        if not of_table:
            continue
        tree.table(f"{table}.csv", ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT], of_table)
    return tree


def mimic_cxr(root: Path, patients: int = 200, *, suffix: str = ".csv.gz", seed: int = 2) -> Tree:
    """Write MIMIC-CXR-JPG: numbers of studies in no order of time, times without leading zeros, two views a study."""
    tree = Tree(root, np.random.default_rng(seed))
    findings, metadata, splits = [], [], []
    for subject in tree.numbers(patients, 9_000_000):
        patient = f"1{subject:07d}"
        split = ("train", "validate", "test")[int(tree.random.choice(3, p=(0.7, 0.1, 0.2)))]
        tree.patients[patient] = expected = Patient(split=split.replace("validate", "validation"))
        when = datetime(2180, 1, 1, tzinfo=UTC) + timedelta(days=int(tree.random.integers(5000)))
        for study in tree.numbers(1 + subject % 4, 9_000_000):
            when += timedelta(seconds=int(tree.random.integers(1, 4_000_000)))
            finding = int(tree.random.integers(4))
            cells = [WRITTEN[finding] if name == "Pleural Effusion" else "" for name in sorted(CHEXPERT)]
            findings.append([patient, f"5{study:07d}", *cells])
            for view in ("LATERAL", "PA" if study % 2 else "AP"):
                dicom = "-".join(f"{part:08x}" for part in tree.random.integers(2**32, size=5))
                name = f"files/p{patient[:2]}/p{patient}/s5{study:07d}/{dicom}.jpg"
                number = tree.image(name, patient, EFFUSION[finding])
                time = f"{int(when.strftime('%H%M%S'))}.{int(tree.random.integers(1000)):03d}"
                metadata.append([dicom, patient, f"5{study:07d}", view, f"{when:%Y%m%d}", time])
                splits.append([dicom, f"5{study:07d}", patient, split])
                if view != "LATERAL":
                    expected.add(number, EFFUSION[finding])
                    expected.times.append(when)
    names = ["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"]
    tree.table(f"mimic-cxr-2.0.0-metadata{suffix}", names, metadata)
    tree.table(f"mimic-cxr-2.0.0-chexpert{suffix}", ["subject_id", "study_id", *sorted(CHEXPERT)], findings)
    tree.table(f"mimic-cxr-2.0.0-split{suffix}", ["dicom_id", "study_id", "subject_id", "split"], splits)
    return tree


def nih_chestxray14(root: Path, patients: int = 200, *, seed: int = 3) -> Tree:
    """Write ChestX-ray14: images in twelve folders, several findings an image, lists of training and test."""
    tree = Tree(root, np.random.default_rng(seed))
    rows: list[list[object]] = []
    lists: dict[str, list[str]] = {"train_val_list.txt": [], "test_list.txt": []}
    for patient in range(1, patients + 1):
        tested = bool(tree.random.random() < 0.25)
        tree.patients[str(patient)] = expected = Patient(split="test" if tested else "train or validation")
        for follow_up in range(1 + patient % 12):
            name = f"{patient:08d}_{follow_up:03d}.png"
            found = [NIH[i] for i in sorted(tree.numbers(int(tree.random.integers(4)), len(NIH)))]
            label = EFFUSION["Effusion" not in found]
            number = tree.image(f"images_{1 + patient % 12:03d}/images/{name}", str(patient), label)
            expected.add(number, set(found))
            rows.append([name, "|".join(found) or "No Finding", follow_up, patient, 60, "M", "PA", 8, 8, 0.1, 0.1, ""])
            lists["test_list.txt" if tested else "train_val_list.txt"].append(name)
    names = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    tree.table("Data_Entry_2017.csv", f"{names},OriginalImage[Width,Height],PixelSpacing[x,y],".split(","), rows)
    for name, images in lists.items():
        (root / name).write_text("\n".join(images))
    return tree


def class_folders(root: Path, patients: int = 200, *, splits: bool = True, seed: int = 4) -> Tree:
    """Write folders of classes, below splits or not: some patients have images of two classes."""
    tree = Tree(root, np.random.default_rng(seed))
    classes = ("benign", "malignant", "normal")
    for patient in range(1, patients + 1):
        split = ("train", "val", "test")[int(tree.random.choice(3, p=(0.7, 0.1, 0.2)))]
        for label in {classes[patient % 3], classes[patient % 7 % 3]}:
            key = f"patient{patient} {label}"
            tree.patients[key] = expected = Patient(split=split.replace("val", "validation") if splits else None)
            for image in sorted(tree.numbers(1 + patient % 3, 30)):
                name = f"{label}/patient{patient}_{image}.png"
                name = f"{split}/{name}" if splits else name
                expected.add(tree.image(name, f"patient{patient}", label), label)
    return tree
