"""Key files in clear: one JSON object each, such as the trainer's keys of mode 0600."""

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

from fedpp.errors import KeyFileError
from fedpp.files import create_exclusively
from fedpp.key_material import Redacted


def read_text(path: Path, what: str, instead: str) -> str:
    """Return a file's text with its line ends unchanged; raise `KeyFileError` that says what to name `instead`."""
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise KeyFileError(f"cannot read the {what} {path}: {error.strerror}: {instead}") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"the {what} {path} is not text: {instead}") from None


class KeyInFile(Redacted):
    """Key of one domain, saved in clear to a file of its own, which is for the trainer.

    Law: `K.load(path).content() == key.content()` after `key.save(path)`.
    """

    __slots__ = ("_domain",)
    instead = "save() it to a file of its own"

    file_format: ClassVar[str]
    kind: ClassVar[str]  # in messages
    usual_name: ClassVar[str]  # of the file

    def __init__(self, domain: str) -> None:
        """Hold a key for the domain of this fingerprint."""
        self._domain = domain

    @property
    def domain(self) -> str:
        """Return the domain's fingerprint."""
        return self._domain

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """Return the key as JSON has it."""

    @classmethod
    @abstractmethod
    def of_values(cls, domain: str, values: dict[str, Any], path: Path) -> Self:
        """Return the key with these values; raise `KeyFileError`, `ValueError`, `TypeError` or `KeyError`."""

    def content(self) -> bytes:
        """Return the key file's content, in clear."""
        return json.dumps({"format": self.file_format, "domain": self._domain, **self.values()}).encode()

    def save(self, path: Path) -> None:
        """Write the key in clear to a new file of mode 0600; raise `FileExistsError` if the file exists."""
        create_exclusively(path, self.content())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key file; raise `KeyFileError` if it is missing, damaged or of another format."""
        try:
            values = json.loads(path.read_text())
            if values["format"] != cls.file_format:
                raise KeyFileError(
                    f"{path} is not a {cls.file_format} file: name the one that keygen wrote, or restore it"
                )
            return cls.of_values(str(values["domain"]), values, path)
        except OSError as error:
            raise KeyFileError(f"cannot read the {cls.kind} {path}: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, RecursionError):
            raise KeyFileError(f"{path} is not an {cls.kind}: name the {cls.usual_name} file") from None

    def public_name(self) -> str:
        """Return the start of the domain's fingerprint."""
        return f"domain={self._domain[:16]}, "
