"""Natural order of file names: frame 2 before frame 10, and whether the names give an order at all."""

import re
from collections.abc import Sequence
from itertools import pairwise
from unicodedata import decimal, normalize

Key = tuple[list[tuple[int, str]], list[str]]
_DIGITS = re.compile(r"(\d+)")
_YEAR_LAST = re.compile(  # 31.12.2026 or 12/31/2026, 31.12.26, and 12-2026
    r"(?<!\d)\d{1,2}([-._/ ])\d{1,2}\1\d{4}(?!\d)"
    r"|(?<!\d)(?<!\d\.)(?:0?[1-9]|[12]\d|3[01])\.(?:0?[1-9]|1[0-2])\.\d\d(?!\.?\d)"
    r"|(?<![^\W_])(?<!\d[-./])(?:0?[1-9]|1[0-2])[-./](?:19|20)\d\d(?![-./]?\d)"
)


def natural(text: str) -> Key:
    """Return a sort key by the numbers in a name, of any length and in any script's digits; case does not count."""
    parts = _DIGITS.split(normalize("NFC", text))
    key = [(0, part.casefold()) if place % 2 == 0 else _number(part) for place, part in enumerate(parts)]
    return key, parts  # parts decide between 1 and 01, a and A


def order_is_a_guess(texts: Sequence[str]) -> bool:
    """Tell whether names without suffixes, or times, say no order: words tell them apart, or dates of days first."""
    keys = sorted(natural(text)[0] for text in texts)
    numbered = all(one[::2] == other[::2] and one[1::2] != other[1::2] for one, other in pairwise(keys))
    return len(texts) > 1 and (not numbered or any(map(is_day_first, texts)))


def is_day_first(text: str) -> bool:
    """Tell whether a text has a date that does not sort, like 31.12.2026, 12/31/2026, 31.12.26 or 12-2026."""
    return _YEAR_LAST.search(text) is not None


def _number(digits: str) -> tuple[int, str]:
    plain = "".join(str(decimal(digit)) for digit in digits).lstrip("0")
    return len(plain), plain
