"""Folders of frames: `index.csv` with columns sequence, patient, label, and one folder of images a sequence.

A frame folder is named by `sequence`; its images are ordered by the numbers in their names. An optional column
`time` is for several folders of one sequence: folders `sequence/time`, in the order of time.
"""

from pathlib import Path

from fedpp.errors import RawDataError, UnusableFileError
from fedpp.imaging.images import SUFFIXES, is_image, natural, read_image
from fedpp.imaging.readers.folders import files_in
from fedpp.imaging.reasons import Reason
from fedpp.imaging.sequence import FrameFile, FrameFiles, ImageSequence, Refuse, refuse
from fedpp.imaging.tables import Line, file_inside, is_folder, read_table

INDEX = "index.csv"
COLUMNS = ("sequence", "patient", "label")


def read_frame_folders(folder: Path, refuse: Refuse = refuse) -> list[ImageSequence]:
    """Return the sequences of an index; raise `RawDataError` for a table that does not fit.

    A folder that is missing, or holds no image, goes to `refuse`, and is skipped if that returns.
    """
    sequences = []
    for sequence, parts in _grouped(_rows(folder / INDEX)).items():
        files = [file for row in parts for file in _files(folder, _folder(folder, row, len(parts)), refuse)]
        frames = FrameFiles([FrameFile(file, 1, read_image) for file in files])
        if files:
            sequences.append(ImageSequence(sequence, parts[0]["patient"], parts[0]["label"] or None, frames))
    if not sequences:
        raise RawDataError(f"{folder / INDEX} names no sequence whose folder exists")
    return sequences


def unlisted(folder: Path) -> int:
    """Return the number of folders that a readable index does not list."""
    listed = {Path(row["sequence"]).parts[:1] for _, row in _rows(folder / INDEX)}
    return sum(below.is_dir() and (below.name,) not in listed for below in folder.iterdir())


def _rows(index: Path) -> list[Line]:
    rows = read_table(index, COLUMNS, "names no sequence: add a line for each")
    for line, row in rows:
        if not row["sequence"] or not row["patient"]:
            raise RawDataError(f"{index}, line {line}: sequence and patient must not be empty")
        if file_inside(index.parent, f"{row['sequence']}/{row.get('time') or ''}") is None:
            raise RawDataError(f"{index}, line {line}: sequence leads out of {index.parent}: move its folder there")
    return rows


def _grouped(rows: list[Line]) -> dict[str, list[dict[str, str]]]:
    groups: dict[str, list[Line]] = {}
    for line, row in rows:
        groups.setdefault(row["sequence"], []).append((line, row))
    for parts in groups.values():
        lines = ", ".join(str(line) for line, _ in parts)  # not names, which may identify a patient
        if len({(row["patient"], row["label"]) for _, row in parts}) > 1:
            raise RawDataError(f"{INDEX} gives one sequence more than one patient or label, lines {lines}")
        if len(parts) > 1 and len({row.get("time") for _, row in parts}) < len(parts):
            raise RawDataError(f"{INDEX} names one sequence twice, lines {lines}: give each part a time of its own")
    return {
        sequence: sorted((row for _, row in parts), key=lambda row: natural(row.get("time") or ""))
        for sequence, parts in groups.items()
    }


def _folder(root: Path, row: dict[str, str], parts: int) -> Path:
    """Return the folder of images: the sequence's, or the part's if there are several parts or it exists."""
    folder = root / row["sequence"]
    dated = root / f"{row['sequence']}/{row.get('time') or ''}"
    return dated if parts > 1 or is_folder(dated) else folder


def _files(root: Path, folder: Path, refuse: Refuse) -> list[Path]:
    if not is_folder(folder):
        missing = f"{root / INDEX} names {folder}, which is missing: restore or remove it"
        refuse(folder, UnusableFileError(missing, Reason.MISSING))
        return []
    refused: list[Path] = []

    def record(what: Path, error: UnusableFileError) -> None:
        refused.append(what)
        refuse(what, error)

    files = [file for file in files_in(folder, record) if is_image(file)]
    if not files and not refused:
        empty = f"{folder} holds no image ({', '.join(sorted(SUFFIXES))})"
        refuse(folder, UnusableFileError(empty, Reason.EMPTY))
    return sorted(files, key=lambda file: natural(file.name))
