"""The errors that fedpp raises on purpose.

::

    FedppError                  one line for the user: what, the value received, what to do
    ├── ConfigError             a setting is unknown, of the wrong type or out of range
    ├── KeyFileError            a key file is missing, damaged, or the passphrase is wrong
    ├── DomainMismatchError     two things of different key domains were put together
    ├── RawDataError            images or tables of the secret zone cannot be read
    │   └── NoImageError        a file is whole, and no picture: a report, a dose, or another file once more
    ├── DatasetError            an encrypted dataset is damaged or of another format
    ├── ModelError              a model file is damaged or does not fit its network
    ├── VaultError              the vault cannot be reached, or refused
    ├── PolicyError             a site's policy does not allow it
    ├── MaskError               masked words were altered, or do not fit their round
    └── FederationError         the federation cannot go on: too few sites, a bad reply
        └── UnreachableError    the coordinator does not answer; it may do so later

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
    """A file is whole, and adds no picture of a patient: a report, a dose, a segmentation, another file once more."""


class DatasetError(FedppError):
    """An encrypted dataset is damaged or of another format."""


class ModelError(FedppError):
    """A model file is damaged or does not fit its network."""


class UpdateCheckError(ModelError):
    """A site's gate keeps an update back, or a model out; the kind may be told to others, the figures not."""

    def __init__(self, kind: str, figures: str) -> None:
        """Say both."""
        super().__init__(f"{kind} ({figures})")
        self.kind = kind


class VaultError(FedppError):
    """The vault cannot be reached, or refused."""


class PolicyError(FedppError):
    """A site's policy does not allow it."""


class MaskError(FedppError):
    """Masked words were altered, or do not fit their round."""


class FederationError(FedppError):
    """The federation cannot go on: too few sites, or a reply that does not fit."""


class UnreachableError(FederationError):
    """The coordinator does not answer; it may do so later."""
