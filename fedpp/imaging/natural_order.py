"""Natural order of file names: frame 2 before frame 10, and whether the names give an order at all."""

import re
from collections.abc import Sequence
from itertools import pairwise
from unicodedata import decimal, normalize

Key = tuple[list[tuple[int, str]], list[str]]
_DIGITS = re.compile(r"(\d+)")
_YEAR_LAST = re.compile(  # 31.12.2026 or 12/31/2026, 31.12.26 or 31.12., 12-2026, and 31122026 or 12312026
    r"(?<!\d)\d{1,2}([-._/ ])\d{1,2}\1\d{4}(?!\d)"
    r"|(?<!\d)(?<!\d\.)(?:0?[1-9]|[12]\d|3[01])\.(?:0?[1-9]|1[0-2])\.(?:\d\d)?(?!\.?\d)"
    r"|(?<![^\W_])(?<!\d[-./])(?:0?[1-9]|1[0-2])[-./](?:19|20)\d\d(?![-./]?\d)"
    r"|(?<!\d)(?:(?:0[1-9]|[12]\d|3[01])(?:0[1-9]|1[0-2])|1[0-2](?:1[3-9]|2\d|3[01])|0[1-9](?:1[3-9]|2\d|3[01]))"
    r"(?:19|20)\d\d(?!\d)"
)
_SHORT_DATE = re.compile(r"(?<!\d)(\d\d)([-/_ ])(\d\d)\2(\d\d)(?!\d)")  # 31-12-26 or 26-12-31
_DECIMAL = re.compile(r"(?<![\d.,])\d+[.,](\d+)(?![.,]?\d)")


def natural(text: str) -> Key:
    """Return a sort key by the numbers in a name, of any length and in any script's digits; case does not count."""
    parts = _DIGITS.split(normalize("NFC", text))
    key = [(0, part.casefold()) if place % 2 == 0 else _number(part) for place, part in enumerate(parts)]
    return key, parts  # parts decide between 1 and 01, a and A


def order_is_a_guess(texts: Sequence[str]) -> bool:
    """Return whether names without suffixes, or times, say no order.

    Words tell them apart, dates begin with the day, or may, or numbers may be decimal: 0.5 and 0.25, or 1.9 and 1.10.
    """
    keys = sorted(natural(text)[0] for text in texts)
    numbered = all(one[::2] == other[::2] and one[1::2] != other[1::2] for one, other in pairwise(keys))
    return len(texts) > 1 and (
        not numbered or any(map(is_day_first, texts)) or _may_be_days(texts) or _may_be_decimal(texts)
    )


def is_day_first(text: str) -> bool:
    """Tell whether a text has a date that does not sort, like 31.12.2026, 12/31/2026, 31.12.26 or 12-2026."""
    return _YEAR_LAST.search(text) is not None


def _may_be_days(texts: Sequence[str]) -> bool:
    """Return whether all texts have dates like 31-12-26, which may begin with the day, and then sort otherwise."""
    found = [_SHORT_DATE.search(text) for text in sorted(texts, key=natural)]
    dates = [(int(date[4]), int(date[3]), int(date[1])) for date in found if date]
    days = [day for _, month, day in dates if 1 <= month <= 12 and 1 <= day <= 31]
    return len(days) == len(texts) and dates != sorted(dates)


def _may_be_decimal(texts: Sequence[str]) -> bool:
    places = [tuple(len(digits) for digits in _DECIMAL.findall(text)) for text in texts]
    return len(set(places)) > 1


def _number(digits: str) -> tuple[int, str]:
    plain = "".join(str(decimal(digit)) for digit in digits).lstrip("0")
    return len(plain), plain
