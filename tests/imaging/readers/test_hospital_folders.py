"""Folders as hospitals hand them over: read as NumPy wrote them, or refused by a message that names no patient."""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from dicom_images import dicom_image, saved
from PIL import Image
from public_layouts import CHEXPERT

from fedpp.errors import FedppError
from fedpp.imaging.account import Account
from fedpp.imaging.readable import readable
from fedpp.imaging.readers.layout import layout_of, read_sequences
from fedpp.imaging.reasons import Reason


@dataclass
class Made:
    """A folder that is being written, with each patient's pictures in the order of time, and the patients' labels."""

    root: Path
    pictures: dict[str, list[np.ndarray]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    files: int = 0

    def pixels(self, patient: str | None) -> np.ndarray:
        """Return the next picture, and remember it as the patient's if it is one's."""
        self.files += 1
        pixels = np.random.default_rng(self.files).integers(0, 256, (32, 32), np.uint8)
        if patient is not None:
            self.pictures.setdefault(patient, []).append(pixels)
        return pixels

    def picture(self, name: str, patient: str | None) -> None:
        """Write a picture; of nobody, it must not be read."""
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.pixels(patient)).save(self.root / name, "PNG")  # whatever its suffix says

    def dicom(self, name: str, patient: str, **tags: object) -> None:
        """Write a picture as DICOM of 8 bits."""
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        number = {"SOPInstanceUID": f"1.2.3.{self.files}", "BitsStored": 8, "HighBit": 7}
        image = dicom_image(self.pixels(patient).astype(np.uint16), PatientID=patient, **number | tags)
        saved(image, self.root / name)

    def text(self, name: str, text: str | bytes = "some text, which is no image") -> None:
        """Write another file."""
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    def table(self, name: str, *rows: Iterable[str], separator: str = ",") -> None:
        """Write a table as Excel saves it: with a byte order mark and Windows's ends of lines."""
        text = io.StringIO()
        csv.writer(text, delimiter=separator).writerows(rows)
        self.text(name, f"\ufeff{text.getvalue()}")


def pacs_export(made: Made) -> None:
    for patient in ("4711", "4712"):
        for study in (1, 2):
            made.dicom(f"DICOM/PAT{patient}/ST{study}/IM0", patient, StudyDate=f"2020010{study}")
    for name in ("DICOMDIR", "README.TXT", "Thumbs.db", "AUTORUN.INF", "autorun.ico", "VIEWER/viewer.exe", "VERSION"):
        made.text(name)


def pacs_export_with_labels(made: Made) -> None:
    pacs_export(made)
    made.table("labels.csv", ["patient", "label"], ["4711", "ill"], ["4712", "well"], separator=";")
    made.labels = {"4711": "ill", "4712": "well"}


def chexpert_small(
    made: Made, *, ill: str = "1.0", separator: str = ",", index: bool = False, above: str = "", slash: str = "/"
) -> None:
    """Write CheXpert-v1.0-small as Kaggle has it, unpacked on macOS; perhaps saved again by Excel or pandas."""
    made.labels = {f"patient0000{patient}": "Pleural Effusion" for patient in (1, 2, 3)}
    for table, patients in (("train", (1, 2)), ("valid", (3,))):
        rows = []
        for patient in patients:
            for study in (1, 2):
                name = f"{table}/patient0000{patient}/study{study}/view1_frontal.jpg"
                made.picture(above + name, f"patient0000{patient}")
                cells = [ill if finding == "Pleural Effusion" else "" for finding in CHEXPERT]
                path = f"CheXpert-v1.0-small/{name}".replace("/", slash)
                rows.append([path, "Female", "60", "Frontal", "AP", *cells])
        header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT]
        numbered = [["", *header], *([str(number), *row] for number, row in enumerate(rows))]
        made.table(f"{table}.csv", *(numbered if index else [header, *rows]), separator=separator)
    for name in ("._train.csv", "__MACOSX/train/._patient00001", "train/.DS_Store"):
        made.text(above + name)


def ultrasound(made: Made) -> None:
    for patient in ("M\u00fcller, Anna", "Schmidt"):
        for number in (1, 2, 10):
            made.picture(f"{patient}/Bild ({number}).JPG", patient)
        for name in ("Befund.pdf", "._Bild (1).JPG", "Desktop.ini"):
            made.text(f"{patient}/{name}")


def visits_of_patients(made: Made) -> None:
    for patient in ("p1", "p2"):
        for visit in ("2019-05-01", "2020-01-31"):
            made.picture(f"{patient}/{visit}/1.png", patient)


def manifest(made: Made, *, slash: str = "/", form: str = "NFC", header: str = "path,patient,time,label") -> None:
    rows = []
    for patient in ("007", "Jos\u00e9"):
        for day in (1, 2):
            made.picture(normalize(form, f"Aufnahmen/{patient}/{day}.png"), patient)
            rows.append([f"Aufnahmen{slash}{patient}{slash}{day}.png", patient, f"2020-01-0{day}", "krank"])
    made.labels = dict.fromkeys(("007", "Jos\u00e9"), "krank")
    made.table("manifest.csv", header.split(","), *rows, separator=";")


def frames(made: Made, slash: str = "/") -> None:
    for number in (1, 2):
        for frame in (9, 10):
            made.picture(f"cine/{number}/{frame}.png", f"p{number}")
        made.labels[f"p{number}"] = "a"
    rows = [[f"cine{slash}{number}", f"p{number}", "a"] for number in (1, 2)]
    made.table("index.csv", ["Sequence", "Patient", "Label"], *rows, separator=";")


def nih_sample(made: Made) -> None:
    columns = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    rows = []
    for patient in (13, 27):
        for follow_up in (2, 10):
            made.picture(f"images/{patient:08}_{follow_up:03}.png", str(patient))
            rows.append([f"{patient:08}_{follow_up:03}.png", "Effusion|Mass", follow_up, patient, "060Y", "M", "PA"])
        made.labels[str(patient)] = "Pleural Effusion"
    made.table("sample_labels.csv", columns.split(","), *rows[::-1])


def masks_in_folders(made: Made) -> None:
    for patient in ("p1", "p2"):
        for number in (1, 2):
            made.picture(f"{patient}/images/{number}.png", patient)
            made.picture(f"{patient}/masks/{number}{'_mask' * (number > 1)}.png", None)


def classes_in_german(made: Made) -> None:
    for label, patient in (("gesund", "patient1"), ("Krank", "patient2")):
        made.picture(f"{label}/{patient}_2.png", patient)
        made.picture(f"{label}/{patient}_10.png", patient)
        made.labels[patient] = label


def labels(text: str, encoding: str = "utf-8") -> Callable[[Made], None]:
    """Return the function that writes two patients, and labels.csv with this text."""

    def write(made: Made) -> None:
        for patient, label in (("001", "ill"), ("002", "well")):
            made.picture(f"{patient}/1.png", patient)
            made.labels[patient] = label
        made.text("labels.csv", text.encode(encoding))

    return write


READ: dict[str, Callable[[Made], None]] = {
    "export of a PACS": pacs_export,
    "export of a PACS with labels": pacs_export_with_labels,
    "CheXpert-small": chexpert_small,
    "CheXpert-small saved by Excel": lambda made: chexpert_small(made, ill="1,0", separator=";"),
    "CheXpert-small saved by pandas": lambda made: chexpert_small(made, index=True),
    "CheXpert-small with backslashes": lambda made: chexpert_small(made, slash="\\"),
    "CheXpert-small below its tables": lambda made: chexpert_small(made, above="CheXpert-v1.0-small/"),
    "sample of ChestX-ray14": nih_sample,
    "stills of ultrasound": ultrasound,
    "visits of patients": visits_of_patients,
    "manifest of Excel": manifest,
    "manifest with backslashes": lambda made: manifest(made, slash="\\"),
    "manifest of a Mac's names": lambda made: manifest(made, form="NFD"),
    "manifest with other columns": lambda made: manifest(made, header="Path,PATIENT,Time,Label"),
    "frames": frames,
    "frames with backslashes": lambda made: frames(made, "\\"),
    "masks in folders": masks_in_folders,
    "classes in German": classes_in_german,
    "labels with empty lines": labels("patient;label\n\n001;ill\n;\n002;well\n;\n;\n"),
    "labels in quotes": labels('\ufeff"patient";"label"\r\n"001";"ill"\r\n"002";"well"'),
    "labels of Unicode text": labels("\ufeffpatient\tlabel\r\n001\till\r\n002\twell", "utf-16-le"),
    "labels with hard blanks": labels("patient,label\u00a0\n001\u00a0,ill\u00a0\n002,\u00a0well"),
    "labels of an old Mac": labels("patient,label\r001,ill\r002,well\r"),
    "labels with more columns": labels("patient;name;born;label\n001;Ann;1990-01-01;ill\n002;Bo;1991-01-01;well"),
    "labels with an empty column": labels("patient;label;\n001;ill;\n002;well;"),
    "labels twice": labels("patient,label\n001,ill\n001,ill\n002,well"),
    "labels with a sum": labels("patient;label\n001;ill\n002;well\nTotal;"),
}


@pytest.mark.parametrize("name", READ)
def test_a_usual_folder_is_read(name: str, tmp_path: Path):
    """Nothing is lost, each patient has the pictures that were written, in their order, and the right label."""
    made = Made(tmp_path)
    READ[name](made)
    account, layout = Account(tmp_path), layout_of(tmp_path)
    sequences = readable(read_sequences(tmp_path, layout, refuse=account)[0], account)
    account.close(sequences, layout)
    account.require(0, skip_unreadable=False)
    shown = {s.patient: [f for of in sequences if of.patient == s.patient for f in of.frames] for s in sequences}
    scale = 255 if layout == "dicom" else 1
    assert {patient: np.rint(np.stack(of) * scale).tolist() for patient, of in shown.items()} == {
        patient: np.stack(of).tolist() for patient, of in made.pictures.items()
    }
    assert {s.patient: s.label for s in sequences if s.label is not None} == made.labels
    assert not any(s.doubts for s in sequences)


def below(*folders: str, inside: str = "") -> Callable[[Made], None]:
    """Return the function that writes two patients' pictures into each folder."""

    def write(made: Made) -> None:
        for folder in folders:
            for patient in ("p1", "p2"):
                made.picture(f"{folder}/{inside or patient}/{patient}.png", patient)

    return write


def one_folder_too_high(made: Made) -> None:
    chexpert_small(made)
    (made.root / "CheXpert-v1.0-small").mkdir()
    for path in list(made.root.iterdir()):
        if path.name != "CheXpert-v1.0-small":
            path.rename(made.root / "CheXpert-v1.0-small" / path.name)


def pictures_beside_dicom(made: Made) -> None:
    pacs_export(made)
    made.picture("VIEWER/still.png", "4711")


PARTS = "looks like parts of a set"
WHOLE = "looks like one folder of all images"
REFUSED: dict[str, tuple[Callable[[Made], None], str]] = {
    **{
        ", ".join(names): (below(*names), PARTS)
        for names in (
            ("2019", "2020"),
            ("2020-01-05", "2020-06-05"),
            ("202001", "202002"),
            ("fold1", "fold2"),
            ("visit_1", "visit_2"),
            ("baseline", "follow-up"),
            ("pre", "post"),
            ("CT", "MR"),
            ("left", "right"),
            ("Left Eye", "Right Eye"),
            ("batch 1", "batch 2"),
            ("hospital A", "hospital B"),
            ("frontal", "lateral"),
            ("male", "female"),
            ("BI-RADS 2", "BI-RADS 4"),
            ("grade1", "grade2"),
        )
    },
    "grades": (below("0", "1", "2", "3", "4"), "looks like classes, though not all"),
    "grades of retinopathy": (below("No_DR", "Mild", "Severe"), "looks like classes, though not all"),
    "masks of all": (below("images", "masks"), WHOLE),
    "folders of images": (below("images_001", "images_002"), WHOLE),
    "annotations of all": (below("annotations", "raw"), WHOLE),
    "one folder above the patients": (below("Ultrasound of the thyroid"), WHOLE),
    "CheXpert-small, one folder too high": (one_folder_too_high, "is one folder too high: a folder in it has a table"),
    "pictures beside DICOM": (pictures_beside_dicom, r"1 file would be lost \(1 image that the layout does not read\)"),
    **{
        f"manifest with {column}": (
            lambda made, column=column: manifest(made, header=f"path,patient,{column},label"),
            "which is not read, and none named (time|split): rename it",
        )
        for column in ("Date", "Datum", "time (days)", "Study_Date", "Visit", "set", "Subset")
    },
    "labels below a title": (labels("Export of 2020;\npatient;label\n001;ill\n002;well"), "has no column patient"),
    "labels in Windows's code page": (
        labels("patient,label\n001,\u00fcbel\n002,well", "cp1252"),
        "save it as CSV in UTF-8",
    ),
    "labels of a sheet": (labels("PK\3\4\x14\0\6\0"), "is no text: save it as CSV"),
    "labels of a web page": (labels("<html><table><tr><td>patient</td>"), "has no column patient"),
    "labels without leading zeros": (labels("patient,label\n1,ill\n2,well"), "gives no label to any"),
    "labels in swapped columns": (labels("label,patient\n001,ill\n002,well"), "gives no label to any"),
    "labels with one cell more": (labels("patient;label\n001;ill;\n002;well;"), "more cells than the header"),
    "labels of another name": (labels("PatientID,diagnosis\n001,ill\n002,well"), "has no column patient, label"),
    "labels in two cases": (labels("patient,label\n001,Ill\n002,ill"), "writes one label in several forms"),
    "labels in two forms of a number": (labels("patient,label\n001,1\n002,1.0"), "writes one label in several forms"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_is_refused(name: str, tmp_path: Path):
    """What would be read wrongly ends in one line that says why, and names no patient."""
    write, message = REFUSED[name]
    made = Made(tmp_path)
    write(made)
    account = Account(tmp_path)
    with pytest.raises(FedppError, match=message) as refused:
        layout = layout_of(tmp_path)
        account.close(read_sequences(tmp_path, layout, refuse=account)[0], layout)
        account.require(0, skip_unreadable=False)
    assert "\n" not in str(refused.value)
    assert not any(patient in str(refused.value).split() for patient in made.pictures)


def test_masks_are_counted(tmp_path: Path):
    """Masks in folders are passed over as no image of a patient; without images beside them they are read."""
    made = Made(tmp_path)
    masks_in_folders(made)
    account = Account(tmp_path)
    account.close(read_sequences(tmp_path, "images", refuse=account)[0], "images")
    assert account.counts()["passed_over"] == {Reason.NO_PICTURE: 4}
    for file in tmp_path.glob("*/images/*"):
        file.unlink()
    assert sum(len(s.frames) for s in read_sequences(tmp_path, "images")[0]) == 4
