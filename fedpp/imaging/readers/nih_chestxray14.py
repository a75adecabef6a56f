"""Chest X-rays in the layout of NIH ChestX-ray14: `Data_Entry_2017.csv` beside `images/00000001_000.png`.

Source: Wang et al., ChestX-ray8 (CVPR 2017). The images may be in one folder or in several (`images_001/images`), and
only a part of what the table names. Follow-ups are numbered in the order of time, but have no dates.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from fedpp.errors import RawDataError, UnusableFileError
from fedpp.imaging.images import is_image
from fedpp.imaging.labels import label_of
from fedpp.imaging.readers.folders import files_below, files_in
from fedpp.imaging.readers.image_files import images_among
from fedpp.imaging.readers.studies import View, findings_of, sequences_of, tables_in
from fedpp.imaging.reasons import Reason
from fedpp.imaging.sequence import ImageSequence, Label, Refuse, refuse
from fedpp.imaging.splits import UNDIVIDED
from fedpp.imaging.tables import NO_IMAGE, header, read_table
from fedpp.texts import counted

IMAGE, LABELS, FOLLOW_UP, PATIENT = COLUMNS = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID")
NOTHING = "No Finding"
FINDINGS = (
    NOTHING,
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
ALIASES = {
    "Pleural Effusion": "Effusion",
    "Pleural Thickening": "Pleural_Thickening",
}  # CheXpert's, and a usual one
LISTS = {"train_val_list.txt": UNDIVIDED, "test_list.txt": "test"}
_NAME = re.compile(r"([0-9]{8})_([0-9]{3})")
_NUMBER = re.compile(r"([0-9]{1,9})(?:\.0*)?")


def is_nih_chestxray14(root: Path) -> bool:
    """Tell by its tables' headers whether a folder has the layout; False for one that cannot be listed."""
    return bool(_tables(root))


def named_as_nih(files: Iterable[Path]) -> bool:
    """Tell whether all images, of which there is one, are named as those of ChestX-ray14."""
    images = [file for file in files if is_image(file)]
    return bool(images) and all(_NAME.fullmatch(file.stem) for file in images)


def patient_named(file: Path) -> str:
    """Return the patient whom an image's name tells, or ""."""
    name = _NAME.match(file.name)
    return str(int(name[1])) if name else ""


def read_nih_chestxray14(
    root: Path, *, target: str = "Pleural Effusion", refuse: Refuse = refuse
) -> tuple[list[ImageSequence], str]:
    """Return one sequence for each patient, with the patient's split if there are lists of them, and a remark.

    Images are in the order of follow-ups. Labels are those of `read_chexpert`, and none is unknown. An image that the
    table does not name, or that is missing of a patient of whom others are there, goes to `refuse`, and is skipped if
    that returns. Raises `ConfigError` for an unknown finding, `RawDataError` for tables that do not fit.
    """
    findings = findings_of(target, (*FINDINGS, *ALIASES))
    table, files = _table(root), _files(root, refuse)
    patients: dict[str, list[View]] = {}
    missing: dict[str, list[tuple[str, str]]] = {}  # places of lines, and what they name
    named: set[str] = set()
    for line, row in read_table(table, COLUMNS, NO_IMAGE):
        where, name = f"{table}, line {line}", Path(row[IMAGE]).stem
        if name in named:
            raise RawDataError(f"{where} names an image for the second time: remove one of the lines")
        named.add(name)
        patient, follow_up, number = _numbers(where, row, name)
        label = _label(where, row[LABELS], findings)
        if name in files:
            view = View((follow_up,), number, files[name], frontal=True, label=label)
            patients.setdefault(str(patient), []).append(view)
        else:
            missing.setdefault(str(patient), []).append((where, name))
    _refuse_missing(root, {patient: missing[patient] for patient in patients if patient in missing}, refuse)
    _refuse_unlisted(table, [files[name] for name in sorted(files.keys() - named)], refuse)
    sequences = sequences_of(root, patients, "all", refuse)
    splits = _splits(root, {patient: [view.file for view in views] for patient, views in patients.items()})
    assigned = [replace(sequence, split=splits.get(sequence.patient)) for sequence in sequences]
    return assigned, _remark(splits, len(missing.keys() - patients))


def _tables(root: Path) -> list[Path]:
    return [table for table in tables_in(root) if set(COLUMNS) <= header(table, COLUMNS)]


def _table(root: Path) -> Path:
    tables = _tables(root)
    if len(tables) == 1:
        return tables[0]
    columns = ", ".join(COLUMNS)
    if tables:
        raise RawDataError(f"{root} has {len(tables)} tables with the columns {columns}: keep one of them")
    others = ", ".join(table.name for table in tables_in(root))
    raise RawDataError(
        f"{root} has no table with the columns {columns}{others and f' ({others} lacks some)'}: name the folder that "
        "has Data_Entry_2017.csv"
    )


def _files(root: Path, refuse: Refuse) -> dict[str, Path]:
    """Return the images below `root` by their names without suffix."""
    files: dict[str, Path] = {}
    for file in images_among(files_below(root, refuse), refuse):
        if file.stem in files:
            repeated = f"{file} and {files[file.stem]} have one name: remove one of them"
            refuse(file, UnusableFileError(repeated, Reason.REPEATED))
        else:
            files[file.stem] = file
    return files


def _numbers(where: str, row: Mapping[str, str], name: str) -> tuple[int, int, int]:
    """Return the numbers of the patient, the follow-up, and the image among the patient's."""
    patient, follow_up = _NUMBER.fullmatch(row[PATIENT]), _NUMBER.fullmatch(row[FOLLOW_UP])
    if patient is None or follow_up is None:
        raise RawDataError(f"{where}: {PATIENT} and {FOLLOW_UP} must be whole numbers of at most nine digits")
    official = _NAME.fullmatch(name)
    if official and int(official[1]) != int(patient[1]):
        raise RawDataError(f"{where}: {PATIENT} is not the patient of {IMAGE}: is the row out of place?")
    return int(patient[1]), int(follow_up[1]), int(official[2]) if official else 0


def _label(where: str, text: str, findings: tuple[str, ...]) -> Label | None:
    present = {name.strip() for name in text.split("|")}
    if not present <= set(FINDINGS) or (NOTHING in present and len(present) > 1):
        raise RawDataError(f"{where}: {LABELS} must be {NOTHING}, or others of {', '.join(FINDINGS)}, with | between")
    states = tuple(str(int(ALIASES.get(finding, finding) in present)) for finding in findings)
    return label_of(states, findings)


def _refuse_missing(root: Path, lines: Mapping[str, Iterable[tuple[str, str]]], refuse: Refuse) -> None:
    for patient, of_patient in lines.items():
        for where, name in of_patient:
            missing = f"{where}: {IMAGE} names no file below {root}: restore it or remove the line"
            refuse(root / f"{name}.png", UnusableFileError(missing, Reason.MISSING, patient))


def _refuse_unlisted(table: Path, files: Iterable[Path], refuse: Refuse) -> None:
    for file in files:
        unlisted = f"{table} has no line for {file}: restore the line or remove the image"
        refuse(file, UnusableFileError(unlisted, Reason.UNLISTED))


def _splits(root: Path, files: Mapping[str, list[Path]]) -> dict[str, str]:
    """Return the split of each patient, {} without lists; raise `RawDataError` for lists that do not fit.

    `files` are those of each patient.
    """
    lists = {file.name.lower(): file for file in files_in(root, lambda *_: None) if file.name.lower() in LISTS}
    if lists and len(lists) < len(LISTS):
        raise RawDataError(f"{root} has {', '.join(lists)} alone: add the other of {', '.join(LISTS)}, or remove it")
    images = {name: _listed(file) for name, file in lists.items()}
    splits = {}
    for patient, of_patient in files.items() if images else ():
        stems = {file.stem for file in of_patient}
        assigned = [split for name, split in LISTS.items() if stems & images[name]]
        if len(assigned) != 1 or not stems <= set().union(*images.values()):
            what = "does not name each image of a patient" if len(assigned) < 2 else "divide the images of a patient"
            raise RawDataError(f"{root}: {' and '.join(LISTS)} {what}: complete or remove them")
        splits[patient] = assigned[0]
    return splits


def _listed(file: Path) -> set[str]:
    """Return the names of the images in a list, without suffix."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise RawDataError(f"cannot read the list {file}: {error.strerror}: check its permissions") from None
    except UnicodeDecodeError:
        raise RawDataError(f"cannot read the list {file}: it is not UTF-8, save it as such") from None
    return {Path(line.strip()).stem for line in lines if line.strip()}


def _remark(splits: Mapping[str, str], absent: int) -> str:
    """Return what is known of the splits, and of patients who are not here."""
    lists = "with its lists as splits, validation being a share of the first" if splits else ""
    missing = f"{counted(absent, 'patient')} of its table without an image here" if absent else ""
    return ", ".join(filter(None, (lists, missing)))
