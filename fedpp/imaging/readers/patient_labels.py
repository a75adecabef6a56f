"""Labels of patients for layouts without labels of their own: an optional `labels.csv` (patient, label)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedpp.errors import RawDataError
from fedpp.imaging.sequence import ImageSequence
from fedpp.imaging.tables import read_table

LABELS = "labels.csv"


def read_labels(folder: Path) -> dict[str, str]:
    """Return the label of each patient in the folder's table, {} without one; raise `RawDataError` for a bad table."""
    file = folder / LABELS
    if not file.is_file():
        return {}
    empty = "gives no label: complete it, or remove it for unlabelled images"
    rows = [(row["patient"], row["label"]) for _, row in read_table(file, ("patient", "label"), empty)]
    labels = dict(rows)
    if len(set(rows)) > len(labels):
        raise RawDataError(f"{file} gives one patient two labels: keep one")
    return labels


def without_images(sequences: Sequence[ImageSequence], folder: Path) -> int:
    """Return the number of patients in the folder's table who have no sequence: their folders may be missing."""
    return len(read_labels(folder).keys() - {sequence.patient for sequence in sequences})


def labelled(sequences: Sequence[ImageSequence], folder: Path) -> list[ImageSequence]:
    """Return the sequences with their patients' labels, None where the table has none.

    Raises `RawDataError` for a table that fits none of the patients; the message names no patient.
    """
    labels = read_labels(folder)
    found = [replace(sequence, label=labels.get(sequence.patient) or None) for sequence in sequences]
    if labels and all(sequence.label is None for sequence in found):
        raise RawDataError(f"{folder / LABELS} gives no label to any of the patients in {folder}: complete it")
    return found
