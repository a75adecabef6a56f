"""Domain folders, passphrases and datasets: the options of `fedpp-site` that name them, and how they are opened."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpp.cli import natural, path
from fedpp.errors import ConfigError, KeyFileError
from fedpp.texts import printable

if TYPE_CHECKING:
    from fedpp.cipher.domain_card import DomainCard
    from fedpp.cipher.evaluation_key import AnyKey
    from fedpp.dataset.at_rest import AtRestKey
    from fedpp.dataset.encrypted_dataset import EncryptedDataset
    from fedpp.keys.key_domain import KeyDomain
    from fedpp.keys.sealed_secret import Passphrase


@dataclass(frozen=True)
class PassphraseSource:
    """Where a passphrase is read: a file, an open file descriptor, or else the terminal."""

    file: Path | None = None
    descriptor: int | None = None

    def read(self, *, new: bool = False) -> "Passphrase":
        """Return the passphrase; at the terminal a new one is asked for twice."""
        from fedpp.keys import passphrase

        if self.file is not None:
            return passphrase.from_file(self.file)
        if self.descriptor is not None:
            return passphrase.from_descriptor(self.descriptor)
        return passphrase.from_terminal(new=new)


def add_passphrase(to: argparse.ArgumentParser) -> None:
    """Add the option `passphrase`, a `PassphraseSource`."""
    given = to.add_mutually_exclusive_group()
    given.add_argument(
        "--passphrase-file",
        dest="passphrase",
        type=lambda text: PassphraseSource(file=path(text)),
        default=PassphraseSource(),
        metavar="FILE",
        help="file of mode 0600 whose first line is the passphrase",
    )
    given.add_argument(
        "--passphrase-fd",
        dest="passphrase",
        type=lambda text: PassphraseSource(descriptor=natural(text)),
        metavar="N",
        help="open file descriptor of the passphrase (default: ask at the terminal)",
    )


def add_domain(to: argparse.ArgumentParser, *, passphrase: bool = True) -> None:
    """Add the domain's folder, and the passphrase if a command opens its secret."""
    to.add_argument("--domain", type=path, required=True, help="domain folder, from `keygen` or `accept`")
    if passphrase:
        add_passphrase(to)


def open_domain(domain: Path, passphrase: PassphraseSource) -> "KeyDomain":
    """Open the domain secret with its passphrase."""
    from fedpp.keys import key_store

    require_folder(domain)
    return key_store.open_domain(domain, passphrase.read())


def require_folder(domain: Path) -> None:
    """Raise `KeyFileError` unless this is the folder of a domain."""
    from fedpp.keys import key_store

    if (domain / key_store.SITE_KEY).exists() and not (domain / key_store.CARD).exists():
        raise KeyFileError(f"{domain} is a site's identity and no domain: `fedpp-site accept` an invitation first")
    if not domain.is_dir():
        raise KeyFileError(f"{domain} is no domain folder: make one with `fedpp-site keygen`, or name another")


def card_of(domain: Path) -> "DomainCard":
    """Return the public card in a domain folder."""
    from fedpp.cipher.domain_card import DomainCard
    from fedpp.keys.key_store import CARD

    return DomainCard.load(domain / CARD)


def require_new(out: Path) -> None:
    """Raise `ConfigError` if there is something that would be overwritten."""
    if out.exists():
        raise ConfigError(f"{out} is there already: choose another --out, nothing is overwritten")


def trainers_at_rest_key(domain: Path) -> "AtRestKey":
    """Return the trainer's key of sealed datasets and checkpoints."""
    from fedpp.dataset.at_rest import AtRestKey
    from fedpp.keys.key_store import AT_REST_KEY

    require_folder(domain)
    return AtRestKey.load(domain / AT_REST_KEY)


def trainers_dataset(dataset: Path, domain: Path) -> "EncryptedDataset":
    """Open a dataset with the trainer's keys."""
    from fedpp.dataset.encrypted_dataset import EncryptedDataset
    from fedpp.keys.key_store import AT_REST_KEY

    return EncryptedDataset.open_with(dataset, domain / AT_REST_KEY)


def trainers_key(domain: Path, dataset: "EncryptedDataset") -> "AnyKey":
    """Return the key by which the trainer computes: an evaluation key, or none but its domain in the frame form."""
    from fedpp.dataset.encrypted_dataset import open_key
    from fedpp.keys.key_store import EVALUATION_KEY

    mixed = dataset.manifest.scheme == "more-frame"
    key = open_key(domain / EVALUATION_KEY, dataset.manifest)
    dataset.require_domain(card_of(domain).fingerprint if mixed else key.domain)
    return key


def show(values: dict[str, Any], *, as_json: bool) -> None:
    """Print results: one JSON object, or a line each."""
    if as_json:
        print(json.dumps(values))
        return
    width = max(map(len, values))
    for name, value in values.items():
        print(printable(f"{name:{width}}  {_shown(value)}"))


def _shown(value: object) -> str:
    if value is None:
        return "undefined"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)
