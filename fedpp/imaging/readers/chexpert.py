"""Chest X-rays in CheXpert's layout: tables of findings beside `patient00001/study1/view1_frontal.jpg`.

Source: Irvin et al., CheXpert (AAAI 2019). Studies are numbered in the order of time, but have no dates.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal, get_args

from fedpp.errors import ConfigError, RawDataError, UnusableFileError
from fedpp.imaging.images import read_image
from fedpp.imaging.labels import label_of
from fedpp.imaging.readers.folders import files_in
from fedpp.imaging.reasons import Reason
from fedpp.imaging.sequence import FrameFile, FrameFiles, ImageSequence, Label, Refuse, last_known, refuse
from fedpp.imaging.tables import NO_IMAGE, file_inside, header, is_file, read_table

Uncertain = Literal["ones", "zeros", "ignore"]
Views = Literal["frontal", "first", "all"]

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
COLUMNS = ("Path", "Frontal/Lateral", *FINDINGS)
_UNCERTAIN = {"ones": "1", "zeros": "0", "ignore": None}
_PATH = re.compile(r"(?:.*/)?(patient[0-9]+)/study([0-9]{1,9})/view([0-9]{1,9})[^/]*", re.DOTALL)


@dataclass(frozen=True)
class _View:
    """One image of a study: a row of a table."""

    study: int
    number: int
    file: Path
    frontal: bool
    label: Label | None


def findings_of(target: str) -> tuple[str, ...]:
    """Return the findings of a target: one name, several with commas, or "competition" for CheXpert's five.

    Raises `ConfigError` for a name that is not CheXpert's, or that occurs twice.
    """
    findings = COMPETITION if target == "competition" else tuple(name.strip() for name in target.split(","))
    for name in findings:
        if name not in FINDINGS:
            raise ConfigError(f"target must be one of {', '.join(FINDINGS)}, got {name!r}")
    if len(set(findings)) < len(findings):
        raise ConfigError(f"target names a finding twice: {target!r}")
    return findings


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
    all. A missing file goes to `refuse`, and is
    skipped if that returns. Raises `ConfigError` for an unknown choice, `RawDataError` for tables that do not fit.
    """
    findings = findings_of(target)
    _require("uncertain", uncertain, get_args(Uncertain))
    _require("views", views, get_args(Views))
    patients: dict[str, list[_View]] = {}
    for where, patient, view in _rows(root, findings, _UNCERTAIN[uncertain], refuse):
        if is_file(view.file):
            patients.setdefault(patient, []).append(view)
        else:
            missing = f"{where}: Path names no file below {root}: restore it or remove the line"
            refuse(view.file, UnusableFileError(missing, Reason.MISSING))
    if not patients:
        raise RawDataError(f"{root} holds no image that its tables name")
    chosen = {patient: _chosen(images, views) for patient, images in patients.items()}
    sequences = [_sequence(patient, images) for patient, images in chosen.items() if images]
    if not sequences:
        raise RawDataError(f"{root} holds no frontal view: choose the views first or all")
    return sequences


def is_chexpert(root: Path) -> bool:
    """Tell by its tables' headers whether a folder has CheXpert's layout; False for one that cannot be listed."""
    return bool(_tables(root, lambda *_: None))


def _tables(root: Path, refuse: Refuse) -> list[Path]:
    return [
        table for table in files_in(root, refuse) if table.suffix == ".csv" and set(COLUMNS) <= header(table, COLUMNS)
    ]


def _require(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{option} must be one of {', '.join(known)}, got {value!r}")


def _rows(
    root: Path, findings: tuple[str, ...], uncertain: str | None, refuse: Refuse
) -> Iterator[tuple[str, str, _View]]:
    """Yield each row of the tables: its place for messages, the patient and the view."""
    tables = _tables(root, refuse)
    if not tables:
        raise RawDataError(f"{root} holds no table with CheXpert's columns: choose the folder that holds train.csv")
    named: dict[Path, str] = {}
    for table in tables:
        for line, row in read_table(table, COLUMNS, NO_IMAGE):
            where = f"{table}, line {line}"
            patient, view = _view(root, where, row, findings, uncertain)
            if view.file in named:
                raise RawDataError(f"{where} and {named[view.file]} name the same file: remove one line or table")
            named[view.file] = where
            yield where, patient, view


def _view(
    root: Path, where: str, row: dict[str, str], findings: tuple[str, ...], uncertain: str | None
) -> tuple[str, _View]:
    parts = _PATH.fullmatch(row["Path"])
    if parts is None:
        raise RawDataError(f"{where}: Path must end like patient00001/study1/view1_frontal.jpg")
    patient, study, number = parts.groups()
    if row["Frontal/Lateral"] not in {"Frontal", "Lateral"}:
        raise RawDataError(f"{where}: Frontal/Lateral must be Frontal or Lateral")
    frontal = row["Frontal/Lateral"] == "Frontal"
    states = tuple(_state(where, finding, row[finding], uncertain) for finding in findings)
    label = label_of(states, findings)
    return patient, _View(int(study), int(number), _file(root, where, row["Path"]), frontal, label)


def _file(root: Path, where: str, name: str) -> Path:
    """Return the file of a `Path`, which may begin with the name of the original of the folder `root`."""
    whole, rest = file_inside(root, name), file_inside(root, name.partition("/")[2])
    if whole is None:
        raise RawDataError(f"{where}: Path leads out of {root}: move the image there")
    return whole if rest is None or is_file(whole) or not is_file(rest) else rest


def _state(where: str, finding: str, text: str, uncertain: str | None) -> str | None:
    states = {1.0: "1", 0.0: "0", -1.0: uncertain}
    try:
        return states[float(text)] if text else None
    except (ValueError, KeyError):
        raise RawDataError(f"{where}: {finding} must be 1, 0, -1 or empty") from None


def _chosen(images: list[_View], views: Views) -> list[_View]:
    ordered = sorted(images, key=lambda view: (view.study, view.number, view.file))
    if views == "all":
        return ordered
    seen = [view for view in ordered if view.frontal or views == "first"]
    return [next(study) for _, study in groupby(seen, key=lambda view: view.study)]


def _sequence(patient: str, images: list[_View]) -> ImageSequence:
    labels = tuple(view.label for view in images)
    return ImageSequence(
        "studies",
        patient,
        last_known(labels),
        FrameFiles([FrameFile(view.file, 1, read_image) for view in images]),
        labels,
    )
