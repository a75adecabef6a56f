"""Errors: the tree of exceptions that fedpp raises on purpose.

::

    FedppError                  one line for the user: what, the value received, what to do
    ├── ConfigError             a setting is unknown, of the wrong type or out of range
    ├── KeyFileError            a key file is missing, damaged, or the passphrase is wrong
    ├── DomainMismatchError     two things of different key domains were put together
    ├── RawDataError            images or tables of the secret zone cannot be read
    │   └── NoImageError        a readable file without an image: a report, a dose, or a copy of another
    ├── DatasetError            an encrypted dataset is damaged or of another format
    ├── ModelError              a model file is damaged or does not fit its specification
    │   └── UpdateCheckError    an update or a new model is outside the bounds of the update check
    ├── VaultError              the vault cannot be reached, or refused
    ├── PolicyError             a site's policy does not allow it
    ├── MaskError               a masked update was altered, or does not fit its round
    └── FederationError         the federation cannot continue: too few sites, a bad reply
        └── UnreachableError    the coordinator does not reply; it may do so later

A message never holds key material, pixels or a patient's identifier.
"""


class FedppError(Exception):
    """Root of all errors that fedpp raises on purpose."""


class ConfigError(FedppError):
    """A setting is unknown, of the wrong type or out of range."""


class KeyFileError(FedppError):
    """A key file is missing, damaged, or the passphrase is wrong."""


class DomainMismatchError(FedppError):
    """Two things of different key domains were put together."""


class RawDataError(FedppError):
    """Images or tables of the secret zone cannot be read."""


class NoImageError(RawDataError):
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


class PolicyError(FedppError):
    """A site's policy does not allow it."""


class MaskError(FedppError):
    """A masked update was altered, or does not fit its round."""


class FederationError(FedppError):
    """The federation cannot continue: too few sites, or a reply that does not fit."""


class UnreachableError(FederationError):
    """The coordinator does not reply; it may do so later."""
