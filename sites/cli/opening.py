"""What several commands of `fedpp-site` open, and how they print their results."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpp.texts import printable

if TYPE_CHECKING:
    from fedpp.cipher.evaluation_key import AnyKey
    from fedpp.dataset.at_rest import AtRestKey
    from fedpp.dataset.encrypted_dataset import EncryptedDataset
    from fedpp.keys.key_domain import KeyDomain
    from fedpp.keys.sealed_secret import Passphrase


def domain_of(options: argparse.Namespace) -> "KeyDomain":
    """Open the domain secret with its passphrase."""
    from fedpp.keys import key_store

    require_folder(options.domain)
    return key_store.open_domain(options.domain, passphrase_of(options))


def require_folder(domain: Path) -> None:
    """Raise `KeyFileError` for what is no folder."""
    from fedpp.errors import KeyFileError
    from fedpp.keys import key_store

    if (domain / key_store.SITE_KEY).exists() and not (domain / key_store.CARD).exists():
        raise KeyFileError(f"{domain} is a site's identity and no domain: `fedpp-site accept` a share with it first")
    if not domain.is_dir():
        raise KeyFileError(f"{domain} is no domain folder: make one with `fedpp-site keygen`, or name another")


def passphrase_of(options: argparse.Namespace, *, new: bool = False) -> "Passphrase":
    """Read the passphrase from where the options say, or ask at the terminal, twice for a new one."""
    from fedpp.keys import passphrase

    if options.passphrase_file is not None:
        return passphrase.from_file(options.passphrase_file)
    if options.passphrase_fd is not None:
        return passphrase.from_descriptor(options.passphrase_fd)
    return passphrase.from_terminal(new=new)


def trainers_at_rest_key(options: argparse.Namespace) -> "AtRestKey":
    """Return the key of sealed datasets and checkpoints."""
    from fedpp.dataset.at_rest import AtRestKey
    from fedpp.keys.key_store import AT_REST_KEY

    require_folder(options.domain)
    return AtRestKey.load(options.domain / AT_REST_KEY)


def trainers_dataset(options: argparse.Namespace) -> "EncryptedDataset":
    """Open a dataset with what the trainer's folder holds."""
    from fedpp.dataset.encrypted_dataset import EncryptedDataset
    from fedpp.keys.key_store import AT_REST_KEY

    return EncryptedDataset.open_with(options.dataset, options.domain / AT_REST_KEY)


def trainers_key(options: argparse.Namespace, dataset: "EncryptedDataset") -> "AnyKey":
    """Return what the trainer computes with; in the frame form that is no key, and the domain's card tells whose."""
    from fedpp.cipher.domain_card import DomainCard
    from fedpp.dataset.encrypted_dataset import open_key
    from fedpp.keys.key_store import CARD, EVALUATION_KEY

    mixed = dataset.manifest.scheme == "more-frame"
    key = open_key(options.domain / EVALUATION_KEY, dataset.manifest)
    dataset.require_domain(DomainCard.load(options.domain / CARD).fingerprint if mixed else key.domain)
    return key


def show(options: argparse.Namespace, values: dict[str, Any]) -> None:
    """Print results: one JSON object, or a line each."""
    if options.json:
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
