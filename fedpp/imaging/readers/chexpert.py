"""Chest X-rays in CheXpert's layout: tables of findings beside `patient00001/study1/view1_frontal.jpg`.

Source: Irvin et al., CheXpert (AAAI 2019). Studies are numbered in the order of time, but have no dates.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedpp.errors import RawDataError, UnusableFileError
from fedpp.imaging.images import is_image
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
from fedpp.imaging.sequence import ImageSequence, Refuse, refuse
from fedpp.imaging.tables import NO_IMAGE, file_inside, header, is_file, read_table

PATH, VIEW = "Path", "Frontal/Lateral"
COLUMNS = (PATH, VIEW, *FINDINGS)
_PATH = re.compile(r"(?:.*/)?(patient[0-9]+)/study([0-9]{1,9})/view([0-9]{1,9})([^/]*)", re.DOTALL)
_PATIENT = re.compile("patient[0-9]+")
_PROJECTION = re.compile(r"_(frontal|lateral)\.[^.]+", re.IGNORECASE)  # end of a file's name


def read_chexpert(
    root: Path,
    *,
    target: str = "Pleural Effusion",
    uncertain: Uncertain = "ignore",
    views: Views = "frontal",
    refuse: Refuse = refuse,
) -> list[ImageSequence]:
    """Return one sequence for each patient: the studies ordered by number, labelled by the finding `target`.

    A frame's label is the finding's name where it is present, "no " and its name where it is absent, and None where it
    is blank; `uncertain` sets what -1 becomes. A sequence's label is the last one known. With several findings, a label
    is the tuple of their states, or None where none is known, and a sequence's label holds the last known state of
    each. `views` chooses a study's frames: its first frontal one (a study without one is excluded), its first one, or
    all; without the column Frontal/Lateral, file names tell which is which. A missing file goes to `refuse`, and is
    skipped if that returns. Raises `ConfigError` for an unknown choice, `RawDataError` for tables that do not fit.
    """
    findings = findings_of(target)
    require_choices(uncertain, views)
    patients: dict[str, list[View]] = {}
    for where, patient, view in _rows(root, findings, uncertain):
        if is_file(view.file):
            patients.setdefault(patient, []).append(view)
        else:
            missing = f"{where}: Path names no file below {root}: restore it or remove the line"
            refuse(view.file, UnusableFileError(missing, Reason.MISSING))
    return sequences_of(root, patients, views, refuse)


def is_chexpert(root: Path) -> bool:
    """Tell by its tables' headers whether a folder has CheXpert's layout; False for one that cannot be listed."""
    return any(set(COLUMNS) <= header(table, COLUMNS) for table in tables_in(root))


def named_as_chexpert(files: Iterable[Path]) -> bool:
    """Tell whether any image is named as CheXpert names its images, whatever its tables are."""
    return any(is_image(file) and _PATH.fullmatch(file.as_posix()) for file in files)


def patient_in(path: Path) -> str:
    """Return the patient whom a folder of a path names, or ""."""
    return next((part for part in reversed(path.parts) if _PATIENT.fullmatch(part)), "")


def _tables(root: Path) -> list[Path]:
    """Return the tables with a column of a finding; a table that lacks other columns is refused when it is read."""
    return [table for table in tables_in(root) if header(table, FINDINGS)]


def _rows(root: Path, findings: tuple[str, ...], uncertain: Uncertain) -> Iterator[tuple[str, str, View]]:
    """Yield each row of the tables: its place for messages, the patient and the view."""
    tables = _tables(root)
    if not tables:
        others = ", ".join(table.name for table in tables_in(root))
        raise RawDataError(
            f"{root} holds no table with CheXpert's columns{others and f', but {others}'}: choose the folder with "
            "train.csv, or another layout"
        )
    named: dict[Path, str] = {}
    for table in tables:
        for line, row in read_table(table, (PATH, *findings), NO_IMAGE, (VIEW,)):
            where = f"{table}, line {line}"
            patient, view = _view(root, where, row, findings, uncertain)
            if view.file in named:
                raise RawDataError(f"{where} and {named[view.file]} name the same file: remove one line or table")
            named[view.file] = where
            yield where, patient, view


def _view(
    root: Path, where: str, row: dict[str, str], findings: tuple[str, ...], uncertain: Uncertain
) -> tuple[str, View]:
    path = row[PATH].replace("\\", "/")
    parts = _PATH.fullmatch(path)
    if parts is None:
        raise RawDataError(f"{where}: Path must end like patient00001/study1/view1_frontal.jpg")
    patient, study, number, name = parts.groups()
    label, file = label_in(where, row, findings, uncertain), _file(root, where, path)
    return patient, View((int(study),), int(number), file, _frontal(where, row, name), label)


def _frontal(where: str, row: dict[str, str], name: str) -> bool:
    in_name = _PROJECTION.fullmatch(name)
    projection = row.get(VIEW, in_name[1].title() if in_name else None)
    if projection is None:
        raise RawDataError(f"{where}: neither {VIEW} nor the file's name tells the view: add that column to the table")
    if projection not in {"Frontal", "Lateral"}:
        raise RawDataError(f"{where}: {VIEW} must be Frontal or Lateral")
    return projection == "Frontal"


def _file(root: Path, where: str, name: str) -> Path:
    """Return the file of a `Path`, which may begin with the name of the original of the folder `root`."""
    whole, rest = file_inside(root, name), file_inside(root, name.partition("/")[2])
    if whole is None:
        raise RawDataError(f"{where}: Path leads out of {root}: move the image there")
    return whole if rest is None or is_file(whole) or not is_file(rest) else rest
