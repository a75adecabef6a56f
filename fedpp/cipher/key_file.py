"""Key files that are text: public ones, and the trainer's, a JSON object each, in clear and of mode 0600."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fedpp.errors import KeyFileError

Key = TypeVar("Key")


def text(format_: str, content: dict[str, Any]) -> bytes:
    """Return a key file's content."""
    return json.dumps({"format": format_, **content}).encode()


def read_text(path: Path, what: str, instead: str) -> str:
    """Return a file's text as it lies, line ends and all; raise `KeyFileError` that says what to name instead."""
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise KeyFileError(f"cannot read the {what} {path}: {error.strerror}: {instead}") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"the {what} {path} is no text: {instead}") from None


def read(path: Path, format_: str, parse: Callable[[dict[str, Any]], Key], what: str, name: str) -> Key:
    """Return the key that `parse` makes of a file's content.

    Raises `KeyFileError` for a file that is missing, of another format or damaged; `what` is the key that it should
    hold, `name` the file that is meant.
    """
    try:
        content = json.loads(path.read_text())
        if content["format"] != format_:
            raise KeyFileError(f"{path} is not a {format_} file: name the one that keygen made, or restore it")
        return parse(content)
    except OSError as error:
        raise KeyFileError(f"cannot read the {what} {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise KeyFileError(f"{path} is not an {what}: name the {name} file") from None
