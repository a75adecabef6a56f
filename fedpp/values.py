"""Values as text with one spelling: canonical JSON, and hashes, keys, nonces and tags in lower-case hexadecimal."""

import json
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

_DIGITS = re.compile("[0-9a-f]+")
_NUMBER = re.compile("0|[1-9a-f][0-9a-f]*")


def canonical(values: Mapping[str, Any]) -> bytes:
    """Return the one JSON text of these values, as it is signed, hashed and stored."""
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def is_hex(value: object, digits: int = 64) -> TypeGuard[str]:
    """Tell whether a value is a text of so many hexadecimal digits, by default those of 32 bytes."""
    return isinstance(value, str) and len(value) == digits and _DIGITS.fullmatch(value) is not None


def is_hex_number(value: object, digits: int = 32) -> TypeGuard[str]:
    """Tell whether a value is a number of at most so many hexadecimal digits, by default a tag's, the first no zero."""
    return isinstance(value, str) and len(value) <= digits and _NUMBER.fullmatch(value) is not None
