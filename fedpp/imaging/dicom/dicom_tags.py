"""Numbers of DICOM's tags, whatever VR they are written with; none of a damaged one."""

import math
import re
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from fedpp.imaging.reasons import Reason

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(E[+-]?\d+)?", re.ASCII | re.IGNORECASE)  # DICOM PS3.5, 6.2: DS and IS


class TagError(ValueError):
    """Tags of an image do not say what its pixels are; the message names tags and quotes no value."""

    def __init__(self, message: str, reason: Reason = Reason.GREY) -> None:
        """Take the message, which follows "it" or "its pixels", and the reason that is counted."""
        super().__init__(message)
        self.reason = reason


def numbers(data: Dataset, keyword: str) -> tuple[float | None, ...]:
    """Return a tag's numbers, None for an empty one, () without the tag; raise `TagError` for what is no number."""
    try:
        value = data.get(keyword)
        if isinstance(value, bytes):  # VR UN
            value = value.decode("ascii")
        parts = value.split("\\") if isinstance(value, str) else value
        many = isinstance(parts, list | tuple | MultiValue)
        return tuple(_number(part) for part in parts) if many else () if parts is None else (_number(parts),)
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError):
        raise TagError(f"{keyword} is no finite number") from None


def text(data: Dataset, keyword: str) -> str:
    """Return a tag's text without blanks around it, "" without the tag; several values as they are stored."""
    value = data.get(keyword)
    return "\\".join(map(str, value)).strip() if isinstance(value, MultiValue) else str(value or "").strip()


def first_number(data: Dataset, keyword: str) -> float | None:
    """Return a tag's first number, None if it has none; raise `TagError` for what is no number."""
    return next(iter(numbers(data, keyword)), None)


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        value = text = value.strip("\0 ")
        if not text:
            return None
        if not _NUMBER.fullmatch(text):
            raise ValueError("no number")
    found = float(value)
    if not math.isfinite(found):
        raise ValueError("not finite")
    return found
