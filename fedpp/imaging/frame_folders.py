"""Folders of frames: `index.csv` with columns sequence, patient, label, and one folder of images a sequence.

A frame folder is named by `sequence`; its images are ordered by the numbers in their names. An optional column
`time` is for several folders of one sequence: folders `sequence/time`, in the order of time.
"""

from pathlib import Path

from fedpp.errors import RawDataError

from .images import SUFFIXES, is_image, natural, read_image
from .sequence import FrameFile, FrameFiles, ImageSequence
from .tables import Line, read_table

INDEX = "index.csv"
COLUMNS = ("sequence", "patient", "label")


def read_frame_folders(folder: Path) -> list[ImageSequence]:
    """Return the sequences of an index; raise `RawDataError` for a file that is missing or cannot be read."""
    groups = _grouped(_rows(folder / INDEX))
    folders = {sequence: [_folder(folder, row, len(parts)) for row in parts] for sequence, parts in groups.items()}
    for missing in (f for parts in folders.values() for f in parts if not f.is_dir()):
        raise RawDataError(f"{folder / INDEX} names {missing}, which is missing: restore or remove it")
    return [
        ImageSequence(
            sequence,
            parts[0]["patient"],
            parts[0]["label"] or None,
            FrameFiles([FrameFile(file, 1, read_image) for part in folders[sequence] for file in _files(part)]),
        )
        for sequence, parts in groups.items()
    ]


def _rows(index: Path) -> list[Line]:
    rows = read_table(index, lambda names: _check_header(index, names), "index")
    if not rows:
        raise RawDataError(f"{index} names no sequence")
    for line, row in rows:
        if not row["sequence"] or not row["patient"]:
            raise RawDataError(f"{index}, line {line}: sequence and patient must not be empty")
    return rows


def _check_header(index: Path, names: list[str]) -> None:
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        # A table without a header line has a patient's row here: it is quoted only if it looks like a header.
        found = f"it has {', '.join(names)}" if set(COLUMNS) & set(names) else "is its first line a header?"
        raise RawDataError(f"{index} has no column {', '.join(missing)}: {found}")


def _grouped(rows: list[Line]) -> dict[str, list[dict[str, str]]]:
    groups: dict[str, list[Line]] = {}
    for line, row in rows:
        groups.setdefault(row["sequence"], []).append((line, row))
    for parts in groups.values():
        lines = ", ".join(str(line) for line, _ in parts)  # and no names, which may identify a patient
        if len({(row["patient"], row["label"]) for _, row in parts}) > 1:
            raise RawDataError(f"{INDEX} gives one sequence more than one patient or label, lines {lines}")
        if len(parts) > 1 and len({row.get("time") for _, row in parts}) < len(parts):
            raise RawDataError(f"{INDEX} names one sequence twice, lines {lines}: give each part a time of its own")
    return {
        sequence: sorted((row for _, row in parts), key=lambda row: natural(row.get("time") or ""))
        for sequence, parts in groups.items()
    }


def _folder(root: Path, row: dict[str, str], parts: int) -> Path:
    """Return the images' folder: the sequence's, or its part's if there are several or one is there."""
    folder = root / row["sequence"]
    dated = folder / (row.get("time") or "")
    return dated if parts > 1 or dated.is_dir() else folder


def _files(folder: Path) -> list[Path]:
    files = [file for file in folder.iterdir() if is_image(file)]
    if not files:
        raise RawDataError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))})")
    return sorted(files, key=lambda file: natural(file.name))
