"""Labels of patients, for layouts that have no place for them: an optional `labels.csv` (patient, label) beside."""

from pathlib import Path

from fedpp.errors import RawDataError

from .tables import read_table

LABELS = "labels.csv"


def read_labels(folder: Path) -> dict[str, str]:
    """Return the label of each patient in the folder's table, nothing without a table; raise `RawDataError`."""
    file = folder / LABELS
    if not file.is_file():
        return {}
    rows = [(row["patient"], row["label"]) for _, row in read_table(file, lambda names: _check_header(file, names))]
    labels = dict(rows)
    if not labels:
        raise RawDataError(f"{file} gives no label: complete it, or remove it for unlabelled images")
    if len(set(rows)) > len(labels):
        raise RawDataError(f"{file} gives one patient two labels: keep one")
    return labels


def label_of(labels: dict[str, str], patient: str, path: Path) -> str | None:
    """Return a patient's label, None if nobody has one; raise `RawDataError`, without the patient, if it is missing."""
    if labels and not labels.get(patient):
        raise RawDataError(f"{path / LABELS} gives no label to one of the patients in {path}: complete it")
    return labels.get(patient)


def _check_header(file: Path, names: list[str]) -> None:
    if not {"patient", "label"} <= set(names):
        raise RawDataError(f"{file} needs the columns patient and label")
