"""Table of images: `manifest.csv` with columns path, patient, time, label, and optionally sequence and split.

The rows of a patient, or of a patient's `sequence` if there is that column, are one sequence in the order of time.
Files are images; DICOM has a reader of its own. No message quotes a cell: if a table's columns are shifted, any cell
may identify a patient.
"""

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from pathlib import Path

from fedpp.config.run_config import SPLITS
from fedpp.errors import RawDataError, UnusableFileError
from fedpp.imaging.images import SUFFIXES, is_image, page_count, read_pages
from fedpp.imaging.reasons import Reason
from fedpp.imaging.sequence import FrameFile, FrameFiles, ImageSequence, Refuse, last_known, refuse
from fedpp.imaging.tables import NO_IMAGE, Line, file_inside, is_file, read_table

MANIFEST = "manifest.csv"
COLUMNS = ("path", "patient", "time", "label")
MAX_DAYS = 1_000_000  # a greater number is no count of days, but a date without dashes, or seconds
_DAY = timedelta(days=1) // timedelta(microseconds=1)


@dataclass(frozen=True)
class _Time:
    """Time of a row; differences are defined between times of one kind."""

    kind: str
    value: float  # since a fixed day; an exact int for dates
    per_day: int  # units of `value`


@dataclass(frozen=True)
class _Image:
    """One image file of one page or more: a row of the table."""

    line: int
    file: Path
    pages: int
    time: _Time
    label: str | None


def read_manifest(root: Path, refuse: Refuse = refuse) -> tuple[list[ImageSequence], dict[str, str] | None]:
    """Return the sequences of a manifest, and the split of each patient if there is a column `split`.

    `path` is relative to `root`; each page of a file is a frame. `time` is an ISO date or date-time, or a number of
    days, one kind within a sequence; rows of one time keep their order. `label` may be empty; a sequence's label is
    the last one known. A file that is missing, or cannot be read as an image, goes to `refuse`, and is skipped if
    that returns. Raises `RawDataError` for a table that does not fit.
    """
    table = root / MANIFEST
    rows = read_table(table, COLUMNS, NO_IMAGE)
    groups: dict[tuple[str, str], list[_Image]] = {}
    named: dict[Path, int] = {}
    for line, row in rows:
        name = row.get("sequence", "images")
        if not row["patient"] or not name:
            raise RawDataError(f"{table}, line {line}: patient and sequence must not be empty")
        file, when = _file(root, line, row), _time(table, line, row["time"])
        if file in named:
            raise RawDataError(f"{table}, lines {named[file]}, {line} name the same file: remove one of them")
        named[file] = line
        try:
            pages = _pages(table, line, file)
        except UnusableFileError as error:
            refuse(file, error)
            continue
        image = _Image(line, file, pages, when, row["label"] or None)
        groups.setdefault((row["patient"], name), []).append(image)
    if not groups:
        raise RawDataError(f"{table} names no image that can be read")
    splits = _splits(table, rows) if "split" in rows[0][1] else None
    return [_sequence(table, name, patient, images) for (patient, name), images in groups.items()], splits


def _file(root: Path, line: int, row: dict[str, str]) -> Path:
    file = file_inside(root, row["path"])
    if file is None:
        raise RawDataError(f"{root / MANIFEST}, line {line}: path leads out of {root}: move the image there")
    return file


def _pages(table: Path, line: int, file: Path) -> int:
    if not is_file(file):
        missing = f"path names no file below {table.parent}: restore it or remove the line"
        raise UnusableFileError(f"{table}, line {line}: {missing}", Reason.MISSING)
    if not is_image(file):
        suffixes = ", ".join(sorted(SUFFIXES))
        message = f"{table}, line {line}: path names no image ({suffixes}): convert it"
        raise UnusableFileError(message, Reason.NO_DECODER)
    return page_count(file)


def _time(table: Path, line: int, text: str) -> _Time:
    for parse in (_date, _date_time, _days):
        with suppress(ValueError):
            return parse(text)
    known = "like 2026-01-31, 2026-01-31T09:30, or a number of days"
    raise RawDataError(f"{table}, line {line}: time must be {known}")


def _date(text: str) -> _Time:
    return _moment("date", datetime.combine(date.fromisoformat(text), time(tzinfo=UTC)))


def _date_time(text: str) -> _Time:
    # digits without "T" or blank are no date-time, though Python accepts them
    moment = datetime.fromisoformat(text if "T" in text or " " in text else "")
    kind = "date-time" if moment.tzinfo is None else "date-time with a zone"
    return _moment(kind, moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _days(text: str) -> _Time:
    number = float(text)
    if not abs(number) <= MAX_DAYS:
        raise ValueError
    return _Time("number", number, 1)


def _moment(kind: str, moment: datetime) -> _Time:
    return _Time(kind, (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1), _DAY)


def _sequence(table: Path, name: str, patient: str, images: list[_Image]) -> ImageSequence:
    for before, after in pairwise(images):
        if before.time.kind != after.time.kind:
            kinds = f"a {before.time.kind} and a {after.time.kind}"
            lines = f"lines {before.line}, {after.line}"
            raise RawDataError(f"{table} mixes {kinds} in one sequence, {lines}: give all its times in one form")
    images = sorted(images, key=lambda image: image.time.value)
    frames = [image for image in images for _ in range(image.pages)]
    first = images[0].time
    return ImageSequence(
        name,
        patient,
        last_known(image.label for image in images),
        FrameFiles([FrameFile(image.file, image.pages, read_pages) for image in images]),
        tuple(frame.label for frame in frames),
        tuple((frame.time.value - first.value) / first.per_day for frame in frames),
    )


def _splits(table: Path, rows: list[Line]) -> dict[str, str]:
    splits: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, row in rows:
        patient, split = row["patient"], row["split"]
        if split not in SPLITS:
            raise RawDataError(f"{table}, line {line}: split must be one of {', '.join(SPLITS)}")
        if splits.setdefault(patient, split) != split:
            raise RawDataError(f"{table}, lines {lines[patient]}, {line} put one patient into two splits: choose one")
        lines.setdefault(patient, line)
    return splits
