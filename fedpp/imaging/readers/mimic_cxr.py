"""Chest X-rays in MIMIC-CXR-JPG's layout: `files/p10/p10000032/s50414267/<dicom_id>.jpg` beside four tables.

Source: Johnson et al., MIMIC-CXR-JPG 2.1.0 (PhysioNet, 2024). The tables, `.csv` or `.csv.gz`: findings by CheXpert's
labeller or by NegBio, a row a study; metadata with date, time and view, a row an image; and splits. Images are often a
part of what the tables name: whole patients may be missing, single images of a patient may not.
"""

import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import NamedTuple

from fedpp.errors import ConfigError, RawDataError, UnusableFileError
from fedpp.imaging.images import is_image
from fedpp.imaging.readers.folders import files_below
from fedpp.imaging.readers.image_files import images_among
from fedpp.imaging.readers.studies import (
    FINDINGS,
    Uncertain,
    View,
    Views,
    findings_of,
    label_in,
    require_choices,
    sequences_of,
    tables_in,
)
from fedpp.imaging.reasons import Reason
from fedpp.imaging.sequence import ImageSequence, Label, Refuse, refuse
from fedpp.imaging.tables import NO_IMAGE, header, read_table
from fedpp.texts import counted

STUDY = ("subject_id", "study_id")
METADATA = ("dicom_id", *STUDY, "StudyDate", "StudyTime", "ViewPosition")
SPLIT = ("dicom_id", "subject_id", "split")
SPLITS = {"train": "train", "validate": "validation", "test": "test"}
_FRONTAL = (["AP"], ["PA"])  # first word of a view's position
_KINDS = {"metadata": METADATA, "split": SPLIT, "chexpert": STUDY, "negbio": STUDY}  # by name, else by columns
_NAME = re.compile(rf"mimic-cxr-[0-9.]+-({'|'.join(_KINDS)})\.csv(?:\.gz)?", re.IGNORECASE)
_IMAGE = re.compile(r"(?:.*/)?p([0-9]{1,9})/s([0-9]{1,9})/[^/]+", re.DOTALL)
_OFFICIAL = re.compile(r"(?:.*/)?p([0-9]{8})/s([0-9]{8})/[^/]+", re.DOTALL)
_NUMBER = re.compile(r"([0-9]{1,9})(?:\.0*)?")  # programs that know no missing integers write 1.0
_DATE = re.compile(r"([0-9]{4})-?([0-9]{2})-?([0-9]{2})(?:\.0*)?")
_TIME = re.compile(r"([0-9]{1,6})(\.[0-9]*)?")  # HHMMSS without leading zeros
_DAY = 86_400  # seconds


class _Place(NamedTuple):
    """An image by the folders in which it is."""

    subject: int
    study: int
    file: Path


@dataclass(frozen=True)
class _Shot:
    """When and how an image was taken: a row of the metadata."""

    time: float  # days
    frontal: bool


def is_mimic_cxr(root: Path, files: Iterable[Path]) -> bool:
    """Tell whether images are in folders as MIMIC-CXR-JPG names them, or in like ones beside a table of it."""
    below = [file.relative_to(root).as_posix() for file in files if is_image(file)]
    if any(map(_OFFICIAL.fullmatch, below)):
        return True
    return any(map(_IMAGE.fullmatch, below)) and any(set(STUDY) <= header(table, STUDY) for table in tables_in(root))


def read_mimic_cxr(
    root: Path,
    *,
    target: str = "Pleural Effusion",
    uncertain: Uncertain = "ignore",
    views: Views = "frontal",
    refuse: Refuse = refuse,
) -> tuple[list[ImageSequence], str]:
    """Return one sequence for each patient, with the patient's split if there is that table, and a remark.

    Studies are in the order of date and time; without metadata, in that of their numbers, which is a guess. Labels
    and `views` are those of `read_chexpert`; what is AP or PA is frontal. An image that the metadata do not name, or
    that is missing of a patient of whom others are there, goes to `refuse`, and is skipped if that returns. Raises
    `ConfigError` for a choice that is unknown or needs metadata, `RawDataError` for tables that do not fit.
    """
    findings = findings_of(target)
    require_choices(uncertain, views)
    files = files_below(root, refuse)
    places, tables = _places(root, files, refuse), _tables(root, files)
    if views == "frontal" and "metadata" not in tables:
        raise ConfigError(
            f"{root} has no table of metadata, which tells frontal views from lateral ones: add "
            "mimic-cxr-2.0.0-metadata.csv, or choose the views first or all"
        )
    shots, absent = _shots(root, tables.get("metadata"), places, refuse)
    labels = _labels(tables.get("findings"), {(of.subject, of.study) for of in places.values()}, findings, uncertain)
    patients: dict[str, list[View]] = {}
    starts = _starts(places, shots or {})
    for name, place in sorted(places.items()):
        if shots is None or name in shots:
            study = (place.subject, place.study)
            view = _view(place, labels.get(study), starts.get(study), frontal=shots is not None and shots[name].frontal)
            patients.setdefault(str(place.subject), []).append(view)
    sequences = _with_splits(tables.get("split"), sequences_of(root, patients, views, refuse))
    return sequences, _remark(tables, absent)


def subject_in(path: Path) -> str:
    """Return the subject whom a folder of a path names, the last one of p10/p10000032, or ""."""
    found = [name for part in path.parts if (name := re.fullmatch("p([0-9]{1,9})", part))]
    return str(int(found[-1][1])) if found else ""


def _places(root: Path, files: Iterable[Path], refuse: Refuse) -> dict[str, _Place]:
    """Return the images below `root` by their `dicom_id`."""
    places: dict[str, _Place] = {}
    for file in images_among(files, refuse):
        parts = _IMAGE.fullmatch(file.relative_to(root).as_posix())
        if parts is None:
            continue
        if file.stem in places:
            repeated = f"{file} and {places[file.stem].file} have one dicom_id: remove one of them"
            refuse(file, UnusableFileError(repeated, Reason.REPEATED))
            continue
        places[file.stem] = _Place(int(parts[1]), int(parts[2]), file)
    if not places:
        raise RawDataError(f"{root} holds no image like files/p10/p10000032/s50414267/<dicom_id>.jpg: name its folder")
    return places


def _tables(root: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Return the tables of metadata, of splits and of findings, CheXpert's rather than NegBio's, as far as they exist.

    Raises `RawDataError` for two tables of one kind, and for tables of which none has findings.
    """
    found: dict[str, Path] = {}
    others = []
    for table in tables_in(root):
        kind = _kind(table)
        if kind is None:
            others.append(table.name)
        elif kind in found and table.name.removesuffix(".gz") != found[kind].name:
            raise RawDataError(f"{found[kind]} and {table.name} are both tables of {kind}: keep one of them")
        else:
            found.setdefault(kind, table)
    for labeller in ("negbio", "chexpert"):
        if labeller in found:
            found["findings"] = found.pop(labeller)
    if "findings" not in found:
        _require_no_other(root, others, files)
    return found


def _kind(table: Path) -> str | None:
    """Return what a table holds, by its official name, else by its columns."""
    if name := _NAME.fullmatch(table.name):
        return name[1].lower()
    for kind in ("metadata", "split"):
        if set(_KINDS[kind]) <= header(table, _KINDS[kind]):
            return kind
    return "chexpert" if set(STUDY) <= header(table, STUDY) and header(table, FINDINGS) else None


def _require_no_other(root: Path, others: list[str], files: Iterable[Path]) -> None:
    """Raise `RawDataError` if findings may be in another table, or in another folder: they are not dropped."""
    if below := [file.parent for file in files if file.parent != root and _NAME.fullmatch(file.name)]:
        raise RawDataError(f"{root} is too high: the tables are in {below[0]}, name that folder")
    if any(_NAME.fullmatch(table.name) for table in tables_in(root.parent)):
        raise RawDataError(f"{root} is one folder too low: its tables are in {root.parent}, name that folder")
    if others:
        raise RawDataError(
            f"{root} has no table with columns subject_id, study_id and findings, but {', '.join(others)}: restore "
            "mimic-cxr-2.0.0-chexpert.csv, or remove the others for unlabelled images"
        )


def _shots(
    root: Path, table: Path | None, places: Mapping[str, _Place], refuse: Refuse
) -> tuple[dict[str, _Shot] | None, int]:
    """Return the shots of a table by `dicom_id`, and how many of its patients have no image here.

    None without a table. Images of others that are missing, and images that it does not name, go to `refuse`.
    """
    if table is None:
        return None, 0
    here = {place.subject for place in places.values()}
    shots: dict[str, _Shot] = {}
    absent: set[int] = set()
    for line, row in read_table(table, METADATA, NO_IMAGE):
        where, name = f"{table}, line {line}", row["dicom_id"]
        subject, study = (_number(where, column, row[column]) for column in STUDY)
        if name in shots:
            raise RawDataError(f"{where} names an image for the second time: remove one of the lines")
        if name in places and (subject, study) != places[name][:2]:
            raise RawDataError(f"{where}: the image is in another study's folder: is a row or a file out of place?")
        if name in places:
            shots[name] = _Shot(_days(where, row), row["ViewPosition"].upper().split()[:1] in _FRONTAL)
        elif subject in here:
            missing = f"{where}: dicom_id names no image below {root}: restore it or remove the line"
            refuse(root / f"{name}.jpg", UnusableFileError(missing, Reason.MISSING, str(subject)))
        else:
            absent.add(subject)
    for name in sorted(places.keys() - shots):
        unlisted = f"{table} has no line for {places[name].file}: restore the line or remove the image"
        refuse(places[name].file, UnusableFileError(unlisted, Reason.UNLISTED))
    return shots, len(absent)


def _number(where: str, column: str, text: str) -> int:
    number = _NUMBER.fullmatch(text)
    if number is None:
        raise RawDataError(f"{where}: {column} must be a whole number of at most nine digits")
    return int(number[1])


def _days(where: str, row: Mapping[str, str]) -> float:
    day, time = _DATE.fullmatch(row["StudyDate"]), _TIME.fullmatch(row["StudyTime"])
    if day is None or time is None:
        raise RawDataError(f"{where}: StudyDate must be like 21800506, and StudyTime like 93015 or 213014.531")
    hour, minute, second = (int(time[1].zfill(6)[i : i + 2]) for i in (0, 2, 4))
    try:
        days = date(*map(int, day.groups())).toordinal()
    except ValueError:
        days = 0
    if not days or hour > 23 or minute > 59 or second > 59:
        raise RawDataError(f"{where}: StudyDate and StudyTime are no date and no time of a day")
    return days + (hour * 3600 + minute * 60 + second + float(f"0{time[2] or '.0'}")) / _DAY


def _labels(
    table: Path | None, studies: AbstractSet[tuple[int, int]], findings: tuple[str, ...], uncertain: Uncertain
) -> dict[tuple[int, int], Label | None]:
    """Return the label of each study that a table of findings names, {} without one; others have none."""
    labels: dict[tuple[int, int], Label | None] = {}
    for line, row in read_table(table, (*STUDY, *findings), NO_IMAGE) if table else ():
        where = f"{table}, line {line}"
        study = (_number(where, STUDY[0], row[STUDY[0]]), _number(where, STUDY[1], row[STUDY[1]]))
        if study in labels:
            raise RawDataError(f"{where} names a study for the second time: remove one of the lines")
        if study in studies:
            labels[study] = label_in(where, row, findings, uncertain)
    if table and not labels:
        raise RawDataError(f"{table} names none of the studies of which there are images: is it of other data?")
    return labels


def _starts(places: Mapping[str, _Place], shots: Mapping[str, _Shot]) -> dict[tuple[int, int], float]:
    """Return the time of each study, which is that of its first image."""
    starts: dict[tuple[int, int], float] = {}
    for name, shot in shots.items():
        study = (places[name].subject, places[name].study)
        starts[study] = min(shot.time, starts.get(study, shot.time))
    return starts


def _view(place: _Place, label: Label | None, start: float | None, *, frontal: bool) -> View:
    """Return a view; those of one study are in the order of their names, which is no order of time."""
    study = (place.study,) if start is None else (start, place.study)
    return View(study, 0, place.file, frontal, label, start, ordered=start is not None)


def _with_splits(table: Path | None, sequences: list[ImageSequence]) -> list[ImageSequence]:
    """Return the sequences with their patients' splits; as they are without a table."""
    if table is None:
        return sequences
    splits: dict[str, str] = {}
    for line, row in read_table(table, SPLIT, NO_IMAGE):
        where = f"{table}, line {line}"
        patient = str(_number(where, SPLIT[1], row[SPLIT[1]]))
        split = SPLITS.get(row["split"].lower())
        if split is None:
            raise RawDataError(f"{where}: split must be one of {', '.join(SPLITS)}")
        if splits.setdefault(patient, split) != split:
            raise RawDataError(f"{where} puts a patient into a second split: choose one")
    if unassigned := sum(sequence.patient not in splits for sequence in sequences):
        raise RawDataError(f"{table} gives no split to {counted(unassigned, 'patient')}: complete it, or remove it")
    return [replace(sequence, split=splits[sequence.patient]) for sequence in sequences]


def _remark(tables: Mapping[str, Path], absent: int) -> str:
    """Return what is known of the order, the labels and the splits."""
    remarks = [
        f"findings of {tables['findings'].name}" if "findings" in tables else "there is no table of findings",
        "" if "metadata" in tables else "without a table of metadata the order of studies is that of their numbers",
        "with its splits" if "split" in tables else "",
        f"{counted(absent, 'patient')} of its metadata without an image here" if absent else "",
    ]
    return ", ".join(filter(None, remarks))
