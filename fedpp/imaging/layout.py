"""Recognises how raw images are laid out, reads them, and says in one line what it saw."""

import csv
from collections.abc import Iterator
from pathlib import Path

from fedpp.errors import ConfigError, RawDataError

from .dicom import LABELS, is_dicom, read_dicom
from .frame_folders import COLUMNS, INDEX, read_frame_folders
from .sequence import ImageSequence

LAYOUTS = ("auto", "frames", "dicom")


def read_sequences(raw: Path, layout: str = "auto") -> tuple[list[ImageSequence], str]:
    """Return the sequences below `raw`, and one line that says what was recognised and why.

    `layout` is "frames", "dicom" or "auto": frame folders where there is an index.csv with a column
    "sequence", else DICOM where a file carries its mark. Raises `RawDataError` for what cannot be read.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if not raw.exists():
        raise RawDataError(f"{raw} does not exist: name a folder of frame folders, or DICOM")
    if layout == "frames" or (layout == "auto" and _has_frames(raw)):
        if not raw.is_dir():
            raise RawDataError(f"{raw} is not a folder: frame folders stand beside an {INDEX}")
        sequences = read_frame_folders(raw)
        listed = {sequence.id for sequence in sequences}
        others = sum(f.is_dir() and f.name not in listed for f in raw.iterdir())
        ignored = f"; {others} folders that it does not list were ignored" if others else ""
        return sequences, f"frame folders, listed by {INDEX}: {_counts(sequences)}{ignored}"
    if layout == "auto" and raw.is_dir() and not any(is_dicom(file) for file in _files(raw)):
        if (raw / INDEX).exists():
            return read_frame_folders(raw), ""  # raises: it lacks the column
        found = "has neither" if any(raw.iterdir()) else "is empty: it has neither"
        raise RawDataError(f"{raw} {found} an {INDEX} with frame folders nor DICOM files")
    sequences, images, passed = read_dicom(raw)
    kind = "DICOM file" if raw.is_file() else "DICOM folder, by the mark in its files"
    skipped = f"; {passed} DICOM files that are no images were passed over" if passed else ""
    labels = f", labels from {LABELS}" if sequences[0].label is not None else ", without labels"
    return sequences, f"{kind}: {images} image files, {_counts(sequences)}{labels}{skipped}"


def _has_frames(raw: Path) -> bool:
    """Tell whether there is an index.csv of frame folders; other tables may bear that name beside DICOM."""
    try:
        with (raw / INDEX).open(newline="", encoding="utf-8-sig") as content:
            return COLUMNS[0] in next(csv.reader(content), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False


def _files(raw: Path) -> Iterator[Path]:
    return (file for file in raw.rglob("*") if file.is_file())


def _counts(sequences: list[ImageSequence]) -> str:
    patients = len({sequence.patient for sequence in sequences})
    frames = sum(len(sequence.frames) for sequence in sequences)
    return f"{len(sequences)} sequences of {patients} patients, {frames} frames"
