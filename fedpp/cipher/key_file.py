"""Key files in clear: one JSON object each, such as the trainer's keys of mode 0600."""

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
    """Return a file's text with its line ends unchanged; raise `KeyFileError` that says what to name `instead`."""
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise KeyFileError(f"cannot read the {what} {path}: {error.strerror}: {instead}") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"the {what} {path} is not text: {instead}") from None


def read(path: Path, format_: str, parse: Callable[[dict[str, Any]], Key], what: str, name: str) -> Key:
    """Return the key that `parse` makes of a file's content.

    Raises `KeyFileError` for a file that is missing, of another format or damaged; `what` is the expected key, `name`
    the expected file.
    """
    try:
        content = json.loads(path.read_text())
        if content["format"] != format_:
            raise KeyFileError(f"{path} is not a {format_} file: name the one that keygen wrote, or restore it")
        return parse(content)
    except OSError as error:
        raise KeyFileError(f"cannot read the {what} {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise KeyFileError(f"{path} is not an {what}: name the {name} file") from None
