"""Lookup tables of DICOM: of the modality, of the values of interest, and of palettes.

DICOM PS3.3 C.11.1 and C.11.2 (LUT Descriptor and Data), C.7.6.3.1.5 and C.7.9 (palettes, also in segments).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from fedpp.imaging.dicom.dicom_tags import TagError, numbers

Values = NDArray[np.float64]
Words = NDArray[np.uint16]

_MAX_ENTRIES = 2**16
_COLOURS = ("Red", "Green", "Blue")


@dataclass(frozen=True)
class Lut:
    """A table: the value that its first entry stands for, its entries, and what the largest entry could be."""

    first: int
    entries: Words
    top: float

    def look_up(self, frame: NDArray[np.generic]) -> Values:
        """Return the entries of a frame's values; those before the first entry have it, those beyond the last its."""
        return self.words(frame).astype(np.float64)

    def words(self, frame: NDArray[np.generic]) -> Words:
        """Return the entries as they are."""
        indices = np.clip(np.rint(frame) - self.first, 0, len(self.entries) - 1).astype(np.int32)
        looked_up: Words = self.entries[indices]
        return looked_up


def lut(image: Dataset, item: Dataset, low: float, high: float) -> Lut:
    """Return a modality or VOI table for values within low .. high; raise `TagError` for a damaged one."""
    return _table(image, item, "LUT", "LUTData", low, high)


def palette(image: Dataset, stored: NDArray[np.generic]) -> tuple[Words, int]:
    """Return the colours `[height, width, 3]` of a palette image and their bits; raise `TagError` for a damaged one."""
    tables = [_colour(image, name, float(stored.min()), float(stored.max())) for name in _COLOURS]
    top = max(table.top for table in tables)
    return np.stack([table.words(stored) for table in tables], axis=-1), 8 if top <= 255 else 16


def _colour(image: Dataset, name: str, low: float, high: float) -> Lut:
    """Return the table of one colour."""
    tag = f"{name}PaletteColorLookupTable"
    segmented = f"Segmented{tag}Data"
    return _table(image, image, tag, segmented if segmented in image else f"{tag}Data", low, high)


def _table(image: Dataset, item: Dataset, tag: str, data: str, low: float, high: float) -> Lut:
    descriptor = numbers(item, f"{tag}Descriptor")
    if len(descriptor) != 3 or None in descriptor:
        raise TagError(f"{tag}Descriptor is not three numbers")
    count, first, depth = (int(part or 0) for part in descriptor)
    count = count % _MAX_ENTRIES or _MAX_ENTRIES
    if not 1 <= depth <= 16:
        raise TagError(f"{tag}Descriptor tells no bits of an entry")
    entries = _entries(image, item, data, count, depth)
    if not count <= len(entries) <= count + 1:  # a table of bytes may be padded
        raise TagError(f"{data} holds another number of entries than {tag}Descriptor says")
    entries = entries[:count]
    return Lut(_first(first, count, low, high), entries, max(2.0**depth - 1, float(entries.max())))


def _first(first: int, count: int, low: float, high: float) -> int:
    """Return the first mapped value: signed or not, since implicit VR does not tell, by which fits the input better."""
    readings = (first, first - _MAX_ENTRIES if first > 0 else first + _MAX_ENTRIES)
    return max(readings, key=lambda start: min(start + count - 1, high) - max(start, low))


def _entries(image: Dataset, item: Dataset, data: str, count: int, depth: int) -> Words:
    """Return the entries of a table: words, or bytes that are packed in words, or segments of either."""
    words = _words(image, item, data)
    if data.startswith("Segmented"):
        parts = _bytes(words) if depth <= 8 else words
        return np.array(list(_expanded([int(part) for part in parts])), np.uint16)
    return _bytes(words) if count > 1 and len(words) == (count + 1) // 2 else words


def _words(image: Dataset, item: Dataset, data: str) -> Words:
    try:
        held = item[data].value
        if isinstance(held, bytes):
            order = ">" if image.original_encoding[1] is False else "<"
            return np.frombuffer(held + b"\0" * (len(held) % 2), f"{order}u2").astype(np.uint16)
        return np.atleast_1d(np.asarray(held, np.int64)).astype(np.uint16)  # of VR SS: the same bits
    except (ArithmeticError, LookupError, TypeError, ValueError):
        raise TagError(f"{data} is missing or no table") from None


def _bytes(words: Words) -> Words:
    """Return the bytes of words, of which the low one comes first."""
    return words.astype("<u2").view(np.uint8).astype(np.uint16)


def _expanded(parts: Sequence[int]) -> Iterator[int]:
    """Yield the entries of a table in segments, discrete or linear: DICOM PS3.3, C.7.9.2."""
    position, last, count = 0, 0, 0
    while position + 2 < len(parts):
        kind, length = parts[position : position + 2]
        count += length
        if kind > 1 or count > _MAX_ENTRIES or (kind == 1 and not position):
            raise TagError("a palette has segments that are damaged, or of a kind that is not read")
        if kind == 0:
            segment = list(parts[position + 2 : position + 2 + length])
        else:
            segment = np.rint(np.linspace(last, parts[position + 2], length + 1)[1:]).astype(int).tolist()
        yield from segment
        last = segment[-1] if segment else last
        position += 2 + (length if kind == 0 else 1)
