"""Errors: the tree of exceptions that fedpp raises on purpose.

::

    FedppError                  one line for the user: what, the value received, what to do
    ├── ConfigError             a setting is unknown, of the wrong type or out of range
    │   └── UsageError          a choice must be made that only the user can make: a command ends with 2
    ├── KeyFileError            a key file is missing, damaged, or the passphrase is wrong
    ├── DomainMismatchError     two things of different key domains were put together
    ├── RawDataError            images or tables of the secret zone cannot be read
    │   └── UnusableFileError   one file or folder of the raw data cannot be used, and is lost if it is skipped
    │       └── NoImageError    it holds no image of a patient, or a copy: nothing is lost without it
    ├── DatasetError            an encrypted dataset is damaged or of another format
    ├── ModelError              a model file is damaged or does not fit its specification
    │   └── UpdateCheckError    an update or a new model is outside the bounds of the update check
    ├── VaultError              the vault cannot be reached, or refused
    │   └── LogInUseError       another process writes to the same audit log
    ├── PolicyError             a site's policy does not allow it
    ├── MaskError               a masked update was altered, or does not fit its round
    └── FederationError         the federation cannot continue: too few sites, a bad reply
        ├── ForkError           a site signed two statements of which it may sign one
        ├── MissingLinksError   statements of a run are missing before those that are given
        └── UnreachableError    the coordinator does not reply; it may do so later

A message never holds key material, pixels or a patient's identifier.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self


class FedppError(Exception):
    """Root of all errors that fedpp raises on purpose."""


class ConfigError(FedppError):
    """A setting is unknown, of the wrong type or out of range."""


class UsageError(ConfigError):
    """A choice must be made that only the user can make, on the command line: a command ends with status 2."""


class KeyFileError(FedppError):
    """A key file is missing, damaged, or the passphrase is wrong."""


class DomainMismatchError(FedppError):
    """Two things of different key domains were put together."""


class RawDataError(FedppError):
    """Images or tables of the secret zone cannot be read."""


class UnusableFileError(RawDataError):
    """One file or folder of the raw data cannot be used; its message names it, its `reason` does not."""

    def __init__(self, message: str, reason: str, patient: str = "") -> None:
        """Take message and patient, if known, for the secret zone, and the kind of fault, which may be shown."""
        super().__init__(message)
        self.reason, self.patient = reason, patient
        self.path: Path | None = None  # of the file, where it is known

    def __reduce__(self) -> tuple[type[Self], tuple[str, str], dict[str, Any]]:
        """Return what makes the error anew in another process: workers read images, too."""
        return type(self), (str(self), self.reason), self.__dict__


class NoImageError(UnusableFileError):
    """A file is readable, but adds no image of a patient: a report, a dose, a segmentation, a copy of another file."""


class DatasetError(FedppError):
    """An encrypted dataset is damaged or of another format."""


class ModelError(FedppError):
    """A model file is damaged or does not fit its specification."""


class UpdateCheckError(ModelError):
    """An update or a new model is outside the bounds of a site's update check; only the kind may leave the site."""

    def __init__(self, kind: str, figures: str) -> None:
        """Take the kind, which may leave the site, and the figures, which may not."""
        super().__init__(f"{kind} ({figures})")
        self.kind = kind


class VaultError(FedppError):
    """The vault cannot be reached, or refused."""


class LogInUseError(VaultError):
    """Another process writes to the same audit log."""


class PolicyError(FedppError):
    """A site's policy does not allow it."""


class MaskError(FedppError):
    """A masked update was altered, or does not fit its round."""


class FederationError(FedppError):
    """The federation cannot continue: too few sites, or a reply that does not fit."""


class ForkError(FederationError):
    """A site signed two statements of which it may sign one: both together are a proof against it."""

    def __init__(self, site: str, one: str, other: str) -> None:
        """Take the site's name, and the JSON of both signed statements."""
        super().__init__(f"{site} signed two statements of which it may sign one: its vault was copied or restored")
        self.site, self.proof = site, (one, other)


class MissingLinksError(FederationError):
    """Statements of a run are missing before those that are given; the message names them for another program."""

    _BEGIN = "the run's statements are missing from these places of their chains: "

    def __init__(self, places: Mapping[str, int]) -> None:
        """Take the place in its chain from which each site's statements are missing."""
        super().__init__(self._BEGIN + json.dumps(dict(places), sort_keys=True))
        self.places = dict(places)

    @classmethod
    def of_text(cls, text: str) -> Self | None:
        """Return the error whose message stands in a text, such as another program's refusal, or None."""
        _, begin, rest = text.partition(cls._BEGIN)
        try:
            places = json.JSONDecoder().raw_decode(rest)[0] if begin else None
        except (ValueError, RecursionError):
            return None
        if not isinstance(places, dict) or any(type(place) is not int or place < 0 for place in places.values()):
            return None
        return cls(places)


class UnreachableError(FederationError):
    """The coordinator does not reply; it may do so later."""
