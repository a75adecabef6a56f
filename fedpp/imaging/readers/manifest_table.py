"""Table of images: `manifest.csv` with columns path, patient, label, and optionally time, sequence and split.

The rows of a patient, or of a patient's `sequence` if there is that column, are one sequence in the order of time, or
of the table where there are no times.
Files are images; DICOM has a reader of its own. No message quotes a cell: if a table's columns are shifted, any cell
may identify a patient.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from pathlib import Path
from unicodedata import normalize

from fedpp.config.run_config import SPLITS
from fedpp.errors import RawDataError, UnusableFileError
from fedpp.imaging.image_values import Depth
from fedpp.imaging.images import SUFFIXES, header_of, is_image, read_pages
from fedpp.imaging.label_texts import is_no_label, label_texts
from fedpp.imaging.readers.image_files import of_one_scale
from fedpp.imaging.reasons import Doubt, Reason
from fedpp.imaging.sequence import FrameFile, FrameFiles, ImageSequence, Refuse, last_known, refuse
from fedpp.imaging.tables import NO_IMAGE, Line, file_inside, is_file, read_table

MANIFEST = "manifest.csv"
COLUMNS = ("path", "patient", "label")
OPTIONAL = ("time", "sequence", "split")
_TIMES = """
    date datetime date_time timestamp day days time(days) time_days timepoint time_point visit visit_date visitdate
    study_date studydate exam_date examdate scan_date scandate acquisition_date acquisitiondate datum zeit zeitpunkt
"""
_OTHER_NAMES = {  # what may be an optional column, which is not passed over
    **dict.fromkeys(_TIMES.split(), "time"),
    **dict.fromkeys(("set", "subset", "partition", "splits"), "split"),
}
_YEAR = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])?(\.0*)?", re.ASCII)  # also with a month
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
    depth: Depth
    time: _Time | None
    label: str | None
    doubts: frozenset[Doubt]


def read_manifest(root: Path, refuse: Refuse = refuse) -> tuple[list[ImageSequence], dict[str, str] | None]:
    """Return the sequences of a manifest, and the split of each patient if there is a column `split`.

    `path` is relative to `root`; each page of a file is a frame. `time` is an ISO date or date-time, or a number of
    days, one kind within a sequence; rows of one time keep their order. Without a column `time` the order is that of
    the table; so it is, as a doubt, for a sequence whose times are all empty. `label` may be empty; a sequence's label
    is the last one known. A file that is missing, cannot be read as an image, or has no time while others of its
    sequence have one, goes to `refuse`, and is skipped if that returns. Raises `RawDataError` for a table that does
    not fit.
    """
    table = root / MANIFEST
    rows = read_table(table, COLUMNS, NO_IMAGE, OPTIONAL, _OTHER_NAMES)
    _require_days(table, rows)
    groups: dict[tuple[str, str], list[_Image]] = {}
    named: dict[Path, int] = {}
    labels = label_texts(table, [(line, row["label"]) for line, row in rows])
    for (line, row), label in zip(rows, labels, strict=True):
        patient, name = normalize("NFC", row["patient"]), row.get("sequence", "images")
        if not patient or not name:
            raise RawDataError(f"{table}, line {line}: patient and sequence must not be empty")
        file, when = _file(root, line, row), _time(table, line, row.get("time"))
        if file in named:
            raise RawDataError(f"{table}, lines {named[file]}, {line} name the same file: remove one of them")
        named[file] = line
        try:
            pages, depth = _header(table, line, file)
        except UnusableFileError as error:
            error.patient = patient
            refuse(file, error)
            continue
        groups.setdefault((patient, name), []).append(_Image(line, file, pages, depth, when, label, _doubts(row)))
    if not groups:
        raise RawDataError(f"{table} names no image that can be read")
    splits = _splits(table, rows) if "split" in rows[0][1] else None
    ordered = {key: _ordered(table, _of_one_scale(images, refuse), refuse) for key, images in groups.items()}
    return [_sequence(name, patient, *images) for (patient, name), images in ordered.items() if images[0]], splits


def _of_one_scale(images: list[_Image], refuse: Refuse) -> list[_Image]:
    files = {FrameFile(image.file, image.pages, read_pages): image.depth for image in images}
    kept = {file.path for file in of_one_scale(files, refuse)}
    return [image for image in images if image.file in kept]


def _file(root: Path, line: int, row: dict[str, str]) -> Path:
    file = file_inside(root, row["path"])
    if file is None:
        raise RawDataError(f"{root / MANIFEST}, line {line}: path leads out of {root}: move the image there")
    return file


def _header(table: Path, line: int, file: Path) -> tuple[int, Depth]:
    if not is_file(file):
        missing = f"path names no file below {table.parent}: restore it or remove the line"
        raise UnusableFileError(f"{table}, line {line}: {missing}", Reason.MISSING)
    if not is_image(file):
        suffixes = ", ".join(sorted(SUFFIXES))
        message = f"{table}, line {line}: path names no image ({suffixes}): convert it"
        raise UnusableFileError(message, Reason.NO_DECODER)
    return header_of(file)


def _doubts(row: dict[str, str]) -> frozenset[Doubt]:
    """Return the doubts about a row: a word for no label, and no time where the table has a column of times."""
    found = {Doubt.NO_LABEL: is_no_label(row["label"]), Doubt.ORDER: row.get("time") == ""}
    return frozenset(doubt for doubt, there in found.items() if there)


def _require_days(table: Path, rows: list[Line]) -> None:
    """Raise `RawDataError` if all numbers among the times may be years, or years and months, and so no days."""
    numbers = [(line, time) for line, row in rows if (time := row.get("time", "")).replace(".", "", 1).isdecimal()]
    numbers = [(line, time) for line, time in numbers if float(time) <= MAX_DAYS]  # others are dates without dashes
    if numbers and all(_YEAR.fullmatch(time) for _, time in numbers):
        line = numbers[0][0]
        raise RawDataError(
            f"{table}, line {line}: time looks like a year or a month, which would be read as a number of days "
            f"({len(numbers)} such lines): write dates like 2026-01-31, or days since the patient's first image"
        )


def _time(table: Path, line: int, text: str | None) -> _Time | None:
    if not text:
        return None
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
    number = float(text.replace("_", "?"))  # which Python accepts
    if not abs(number) <= MAX_DAYS:
        raise ValueError
    return _Time("number", number, 1)


def _moment(kind: str, moment: datetime) -> _Time:
    return _Time(kind, (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1), _DAY)


def _sequence(name: str, patient: str, images: list[_Image], times: list[float] | None) -> ImageSequence:
    frames = [image for image in images for _ in range(image.pages)]
    doubts = {doubt for image in images for doubt in image.doubts} - ({Doubt.ORDER} if len(images) == 1 else set())
    return ImageSequence(
        name,
        patient,
        last_known(image.label for image in images),
        FrameFiles([FrameFile(image.file, image.pages, read_pages) for image in images]),
        tuple(frame.label for frame in frames),
        None
        if times is None
        else tuple(time for image, time in zip(images, times, strict=True) for _ in range(image.pages)),
        doubts=tuple(sorted(doubts)),
    )


def _ordered(table: Path, images: list[_Image], refuse: Refuse) -> tuple[list[_Image], list[float] | None]:
    """Return a sequence's images in the order of time, and the days of each since the first.

    Images without a time have no place in it, and go to `refuse`. If none has a time, the order is the table's.
    """
    timed = [(image.time, image) for image in images if image.time]
    if not timed:
        return images, None
    for image in images:
        if not image.time:
            message = f"{table}, line {image.line}: time is empty, and not that of others of its sequence: complete it"
            refuse(image.file, UnusableFileError(message, Reason.NO_TIME))
    for (before, image), (after, other) in pairwise(timed):
        if before.kind != after.kind:
            what = f"a {before.kind} and a {after.kind} in one sequence, lines {image.line}, {other.line}"
            raise RawDataError(f"{table} mixes {what}: give all its times in one form")
    timed = sorted(timed, key=lambda pair: pair[0].value)
    first = timed[0][0]
    return [image for _, image in timed], [(time.value - first.value) / first.per_day for time, _ in timed]


def _splits(table: Path, rows: list[Line]) -> dict[str, str]:
    splits: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, row in rows:
        patient, split = normalize("NFC", row["patient"]), row["split"]
        if split not in SPLITS:
            raise RawDataError(f"{table}, line {line}: split must be one of {', '.join(SPLITS)}")
        if splits.setdefault(patient, split) != split:
            raise RawDataError(f"{table}, lines {lines[patient]}, {line} put one patient into two splits: choose one")
        lines.setdefault(patient, line)
    return splits
