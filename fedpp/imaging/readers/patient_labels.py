"""Labels of patients for layouts without labels of their own: an optional `labels.csv` (patient, label)."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

from fedpp.errors import RawDataError
from fedpp.imaging.label_texts import is_no_label, label_texts
from fedpp.imaging.readers.folders import files_in
from fedpp.imaging.reasons import Doubt
from fedpp.imaging.sequence import ImageSequence
from fedpp.imaging.tables import Line, read_table

LABELS = "labels.csv"
_MISNAMED = re.compile(r"labels?\.(csv|tsv|txt|xlsx?|ods)(\.gz)?", re.IGNORECASE)


def without_images(sequences: Sequence[ImageSequence], folder: Path) -> set[str]:
    """Return the patients in the folder's table who have no sequence: their folders may be missing."""
    return {_patient(row["patient"]) for _, row in _rows(folder)} - {_patient(s.patient) for s in sequences}


def labelled(sequences: Sequence[ImageSequence], folder: Path) -> list[ImageSequence]:
    """Return the sequences with their patients' labels, None where the table has none.

    A patient is found in whatever Unicode form the name is written. One whose cell says by a word that there is no
    label is a doubt. Raises `RawDataError` for a bad table, or one that fits none of the patients; the message names
    no patient.
    """
    rows = _rows(folder)
    labels = _labels(folder / LABELS, rows)
    doubtful = {_patient(row["patient"]) for _, row in rows if is_no_label(row["label"])}
    found = [
        replace(
            sequence,
            label=labels.get(_patient(sequence.patient)),
            doubts=(*sequence.doubts, *[Doubt.NO_LABEL] * (_patient(sequence.patient) in doubtful)),
        )
        for sequence in sequences
    ]
    if rows and all(sequence.label is None for sequence in found):
        raise RawDataError(f"{folder / LABELS} gives no label to any of the patients in {folder}: complete it")
    return found


def _rows(folder: Path) -> list[Line]:
    """Return the rows of the folder's table, none without one."""
    empty = "gives no label: complete it, or remove it for unlabelled images"
    table = folder / LABELS
    if table.is_file():
        return read_table(table, ("patient", "label"), empty)
    if others := [file.name for file in files_in(folder, lambda *_: None) if _MISNAMED.fullmatch(file.name)]:
        raise RawDataError(
            f"{folder} has {others[0]}, but labels are read from {LABELS} alone: save it under that name"
        )
    return []


def _labels(table: Path, rows: list[Line]) -> dict[str, str | None]:
    """Return the label of each patient."""
    labels: dict[str, str | None] = {}
    lines: dict[str, int] = {}
    texts = label_texts(table, [(line, row["label"]) for line, row in rows])
    for (line, row), label in zip(rows, texts, strict=True):
        patient = _patient(row["patient"])
        if not patient:
            raise RawDataError(f"{table}, line {line}: patient must not be empty")
        if labels.setdefault(patient, label) != label:
            raise RawDataError(f"{table}, lines {lines[patient]}, {line} give one patient two labels: keep one")
        lines.setdefault(patient, line)
    return labels


def _patient(text: str) -> str:
    """Return a patient's identifier in the form in which identifiers are compared."""
    return normalize("NFC", text)
