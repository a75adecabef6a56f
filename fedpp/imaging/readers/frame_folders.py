"""Folders of frames: `index.csv` with columns sequence, patient, label, and one folder of images a sequence.

A frame folder is named by `sequence`; its images are ordered by the numbers in their names; pages are frames. An
optional column `time` is for several folders of one sequence: folders `sequence/time`, in the order of time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from fedpp.errors import RawDataError, UnusableFileError
from fedpp.imaging.images import SUFFIXES
from fedpp.imaging.label_texts import is_no_label, label_texts
from fedpp.imaging.natural_order import is_day_first, natural, order_is_a_guess
from fedpp.imaging.readers.folders import files_in
from fedpp.imaging.readers.image_files import doubts_of, frame_files, images_among, in_order
from fedpp.imaging.reasons import Doubt, Reason
from fedpp.imaging.sequence import FrameFiles, ImageSequence, Refuse, naming, refuse
from fedpp.imaging.tables import file_inside, is_folder, read_table

INDEX = "index.csv"
COLUMNS = ("sequence", "patient", "label")
OPTIONAL = ("time",)


@dataclass(frozen=True)
class _Part:
    """One folder of a sequence: a row of the table."""

    line: int
    sequence: str
    patient: str
    label: str | None
    time: str
    doubts: tuple[Doubt, ...]


def read_frame_folders(folder: Path, refuse: Refuse = refuse) -> list[ImageSequence]:
    """Return the sequences of an index; raise `RawDataError` for a table that does not fit.

    A folder that is missing, or holds no image, and an image that cannot be read go to `refuse`, and are skipped if
    that returns.
    """
    sequences = []
    groups = _grouped(_rows(folder / INDEX))
    _require_own_folders(folder, groups)
    for sequence, parts in groups.items():
        named = naming(_only(parts[0].patient), refuse)
        by_part = [_images(folder, part, len(parts), named) for part in parts]
        frames = FrameFiles(frame_files([file for images in by_part for file in images], named))
        if frames:
            first, doubts = parts[0], _doubts(parts, by_part)
            sequences.append(ImageSequence(sequence, first.patient, first.label, frames, doubts=doubts))
    if not sequences:
        raise RawDataError(f"{folder / INDEX} names no sequence whose folder holds an image that can be read")
    return sequences


def unlisted(folder: Path) -> int:
    """Return the number of folders that a readable index does not list."""
    listed = {Path(part.sequence).parts[:1] for part in _rows(folder / INDEX)}
    return sum(below.is_dir() and (below.name,) not in listed for below in folder.iterdir())


def _rows(index: Path) -> list[_Part]:
    rows = read_table(index, COLUMNS, "names no sequence: add a line for each", OPTIONAL)
    labels = label_texts(index, [(line, row["label"]) for line, row in rows])
    parts = []
    for (line, row), label in zip(rows, labels, strict=True):
        if not row["sequence"] or not row["patient"]:
            raise RawDataError(f"{index}, line {line}: sequence and patient must not be empty")
        doubts = (Doubt.NO_LABEL,) if is_no_label(row["label"]) else ()
        patient = normalize("NFC", row["patient"])
        parts.append(_Part(line, row["sequence"], patient, label, row.get("time", ""), doubts))
        if file_inside(index.parent, f"{row['sequence']}/{parts[-1].time}") is None:
            raise RawDataError(f"{index}, line {line}: sequence leads out of {index.parent}: move its folder there")
    return parts


def _grouped(rows: list[_Part]) -> dict[str, list[_Part]]:
    groups: dict[str, list[_Part]] = {}
    for row in rows:
        groups.setdefault(row.sequence, []).append(row)
    for parts in groups.values():
        lines = ", ".join(str(part.line) for part in parts)  # not names, which may identify a patient
        if len({(part.patient, part.label) for part in parts}) > 1:
            raise RawDataError(f"{INDEX} gives one sequence more than one patient or label, lines {lines}")
        if len({part.time for part in parts}) < len(parts):
            raise RawDataError(f"{INDEX} names one sequence twice, lines {lines}: give each part a time of its own")
        if len(parts) > 1 and any(not part.time or is_day_first(part.time) for part in parts):
            message = f"{INDEX} gives parts of one sequence no time, or one like 31.12.2026, lines {lines}"
            raise RawDataError(f"{message}: write all of its times like 2026-12-31")
    return {sequence: sorted(parts, key=lambda part: natural(part.time)) for sequence, parts in groups.items()}


def _require_own_folders(root: Path, groups: Mapping[str, list[_Part]]) -> None:
    """Raise `RawDataError` for two lines that name one folder in two ways, such as s1 and s1/."""
    lines: dict[Path, int] = {}
    for part, count in ((part, len(parts)) for parts in groups.values() for part in parts):
        if (first := lines.setdefault(_folder(root, part, count), part.line)) != part.line:
            raise RawDataError(f"{INDEX}, lines {first}, {part.line} name one folder: remove one of them")


def _only(patient: str) -> Callable[[Path], str]:
    return lambda _: patient


def _doubts(parts: list[_Part], by_part: list[list[Path]]) -> tuple[Doubt, ...]:
    guessed = order_is_a_guess([part.time for part in parts]) or any(map(doubts_of, by_part))
    return (*parts[0].doubts, *((Doubt.ORDER,) if guessed else ()))


def _folder(root: Path, part: _Part, parts: int) -> Path:
    """Return the folder of images: the sequence's, or the part's if there are several parts or it exists."""
    dated, whole = (file_inside(root, name) or root / name for name in (f"{part.sequence}/{part.time}", part.sequence))
    return dated if parts > 1 or is_folder(dated) else whole


def _images(root: Path, part: _Part, parts: int, refuse: Refuse) -> list[Path]:
    folder = _folder(root, part, parts)
    if not is_folder(folder):
        missing = f"{root / INDEX}, line {part.line} names no folder below {root}: restore it or remove the line"
        refuse(folder, UnusableFileError(missing, Reason.MISSING))
        return []
    refused: list[Path] = []

    def record(what: Path, error: UnusableFileError) -> None:
        refused.append(what)
        refuse(what, error)

    images = images_among(files_in(folder, record), record)
    if not images and not refused:
        empty = f"{folder} holds no image ({', '.join(sorted(SUFFIXES))})"
        refuse(folder, UnusableFileError(empty, Reason.EMPTY))
    return in_order(images)
