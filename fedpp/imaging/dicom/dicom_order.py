"""Order of a patient's DICOM images, by date, time, series, numbers and position; and whether it is a guess.

Dates are read in the spellings of DICOM (PS3.5, 6.2: DA, TM) and in others that have one meaning only. An image whose
date is unknown, and images that only their names tell apart, have a place that is a guess.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path

import numpy as np
import pydicom

from fedpp.imaging.dicom.dicom_tags import TagError, numbers
from fedpp.imaging.natural_order import Key, natural

_YEAR_FIRST = re.compile(r"(\d{4})(?:([-./ ])(\d\d?)\2(\d\d?)|(\d\d)(\d\d))", re.ASCII)
_YEAR_LAST = re.compile(r"(\d\d?)([-./ ])(\d\d?)\2(\d{4})", re.ASCII)
_WITH_CLOCK = re.compile(
    r"(\d{8}|\d{4}-\d\d-\d\d)[T ]?(\d\d:?\d\d[\d:.]*)(?:Z|[-+]\d\d:?\d\d)?", re.ASCII
)  # DT, ISO 8601
_CLOCK = re.compile(r"(\d\d)(?::?(\d\d)(?::?(\d\d)(?:\.(\d{1,6}))?)?)?", re.ASCII)
_FRAME_INDEX = "DimensionIndexValues"
_EVENTS = ("Study", "Series", "Acquisition", "Content")  # the last two are of the image alone
LIFETIME = timedelta(days=36_525)  # dates further apart are none, but stand for unknown ones, such as 1900-01-01


@dataclass(frozen=True)
class Place:
    """An image's place among its patient's; what is None is unknown.

    `moment` is the time of its study, or else of its series, acquisition or content, `taken` that of its acquisition
    or else content; midnight for a date alone, None if date or time cannot be read.
    """

    moment: datetime | None
    day: date | None
    clock: time | None
    study: str
    series: int | None
    series_id: str
    acquisition: int | None
    instance: int | None
    position: float | None
    taken: datetime | None
    file: Path


def place_of(image: pydicom.Dataset, file: Path) -> Place:
    """Return an image's place from its tags; errors for damaged numbers pass through."""
    return Place(
        *_moment(image),
        str(image.get("StudyInstanceUID") or ""),
        _whole(image, "SeriesNumber"),
        str(image.get("SeriesInstanceUID") or ""),
        _whole(image, "AcquisitionNumber"),
        _whole(image, "InstanceNumber"),
        _position(image),
        _moment(image, _EVENTS[2:])[0],
        file,
    )


def in_order(places: Iterable[Place]) -> tuple[list[Place], bool]:
    """Return a patient's places in order, and whether a part of that order is a guess.

    Images of a series, and of a study, stay together. Without a date, studies are in the natural order of their files.
    """
    ranks: dict[str, Key] = {}
    for place in (places := list(places)):
        rank = natural(str(place.file))
        ranks[place.study] = min(rank, ranks.get(place.study, rank))
    ordered = sorted(places, key=lambda place: _key(place, ranks[place.study]))
    days = [place.day for place in ordered if place.day]
    is_certain = all(map(_is_certain, ordered, ordered[1:])) and not any(map(_contradicts, ordered, ordered[1:]))
    return ordered, not is_certain or bool(days and days[-1] - days[0] > LIFETIME)


def frame_order(image: pydicom.Dataset, count: int) -> tuple[list[int], bool]:
    """Return the numbers of a file's frames in their order, and whether that order is a guess.

    Enhanced images may store them in any order, and number them by DimensionIndexValues: DICOM PS3.3, C.7.6.17. Where
    several of these differ from frame to frame, time may be any of them: the stored order then is a guess, unless the
    frames are sorted by them.
    """
    stored = list(range(count))
    contents = [
        content for groups in image.get("PerFrameFunctionalGroupsSequence") or () if (content := _content(groups))
    ]
    if len(contents) != count or len(set(map(len, contents))) > 1:
        return stored, False
    varying = [values for values in zip(*contents, strict=True) if len(set(values)) > 1]
    if len(varying) == 1:
        return sorted(stored, key=lambda frame: varying[0][frame]), False
    indices = list(zip(*varying, strict=True))
    return stored, not any(keys == sorted(keys) for keys in (indices, [index[::-1] for index in indices]))


def day_of(text: str) -> date | None:
    """Return the day that a text names in digits, None if it names none, or may name two."""
    if found := _YEAR_FIRST.fullmatch(text):
        return _day(int(found[1]), int(found[3] or found[5]), int(found[4] or found[6]))
    if not (found := _YEAR_LAST.fullmatch(text)):
        return None
    first, separator, second, year = found.groups()
    day_first, month_first = _day(int(year), int(second), int(first)), _day(int(year), int(first), int(second))
    if separator == "." or day_first == month_first:  # with dots nobody writes the month first
        return day_first
    return None if day_first and month_first else day_first or month_first


def _moment(
    image: pydicom.Dataset, events: Iterable[str] = _EVENTS
) -> tuple[datetime | None, date | None, time | None]:
    """Return the time of the first event that has one, its day and its time of day."""
    known = None
    for event in events:
        whole, days, clocks = (str(image.get(f"{event}{part}") or "").strip() for part in ("DateTime", "Date", "Time"))
        days = days or whole
        if both := _WITH_CLOCK.fullmatch(days):
            days, clocks = both[1], clocks or both[2]
        day, clock = day_of(days), _clock(clocks)
        if day and (clock or not clocks):
            return datetime.combine(day, clock or time()), day, clock
        known = known or day
    return None, known, None


def _content(groups: pydicom.Dataset) -> tuple[int, ...]:
    """Return the indices of a frame, () without any."""
    content = groups.get("FrameContentSequence")
    values = content[0].get(_FRAME_INDEX) if content else None
    return () if values is None else tuple(map(int, values)) if isinstance(values, Iterable) else (int(values),)


def _day(year: int, month: int, day: int) -> date | None:
    try:
        return date(year, month, day)
    except ValueError:
        return None


def _clock(text: str) -> time | None:
    found = _CLOCK.fullmatch(text)
    if not found:
        return None
    hour, minute, second = map(int, found.groups(default="0")[:3])
    try:
        return time(hour, minute, min(second, 59), int((found[4] or "").ljust(6, "0")))
    except ValueError:
        return None


def _whole(image: pydicom.Dataset, keyword: str) -> int | None:
    value = image.get(keyword)
    return None if value is None or value == "" else int(value)


def _position(image: pydicom.Dataset) -> float | None:
    """Return a slice's position along the normal of its plane: DICOM PS3.3, C.7.6.2.1.1."""
    try:
        corner, axes = numbers(image, "ImagePositionPatient"), numbers(image, "ImageOrientationPatient")
    except TagError:
        return None
    if len(corner) != 3 or len(axes) != 6 or None in {*corner, *axes}:
        return None
    directions = np.array(axes, np.float64)
    return float(np.dot(np.cross(directions[:3], directions[3:]), np.array(corner, np.float64)).round(3))


def _key(place: Place, rank: Key) -> tuple[object, ...]:
    """Return a sort key; what is unknown comes first."""
    return (
        (place.day or date.min, place.clock or time()),
        (rank, place.study),
        (_known(place.series), place.series_id),
        *(_known(value) for value in (place.acquisition, place.instance, place.position)),
        place.taken or datetime.min,  # noqa: DTZ901  DICOM's times have no zone
        (natural(str(place.file)), str(place.file)),
    )


def _known(value: float | None) -> tuple[bool, float]:
    return value is not None, value or 0


def _is_certain(first: Place, second: Place) -> bool:
    """Tell whether an image is before the next by more than the names of files or identifiers."""
    days, clocks = (first.day, second.day), (first.clock, second.clock)
    if None not in days and (days[0] != days[1] or (None not in clocks and clocks[0] != clocks[1])):
        return True
    if first.study != second.study or days[0] != days[1] or clocks[0] != clocks[1]:
        return False
    series = first.series, second.series
    if series[0] != series[1] or first.series_id != second.series_id:
        return None not in series and series[0] != series[1]
    numbered = ((one.acquisition, one.instance, one.position, one.taken) for one in (first, second))
    differing = next((pair for pair in zip(*numbered, strict=True) if pair[0] != pair[1]), (None, None))
    return None not in differing


def _contradicts(first: Place, second: Place) -> bool:
    """Return whether an image was taken on a later day than the next."""
    return first.taken is not None and second.taken is not None and first.taken.date() > second.taken.date()
