"""What several commands of `fedpp-site` open, and how they print their results."""

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedpp.cipher.dataset import EncryptedDataset
    from fedpp.cipher.evaluation_key import AnyKey
    from fedpp.cipher.manifest import DatasetManifest
    from fedpp.keys.domain import KeyDomain


def domain_of(options: argparse.Namespace) -> "KeyDomain":
    """Open the domain secret with its passphrase."""
    from fedpp.keys import store

    return store.open_domain(options.domain, store.read_passphrase(options.passphrase_file))


def trainers_dataset(options: argparse.Namespace) -> "EncryptedDataset":
    """Open a dataset with what the trainer's folder holds."""
    from fedpp.cipher.dataset import EncryptedDataset
    from fedpp.keys.store import AT_REST_KEY

    return EncryptedDataset.open_with(options.dataset, options.domain / AT_REST_KEY)


def trainers_key(options: argparse.Namespace, manifest: "DatasetManifest") -> "AnyKey":
    """Return what the trainer computes with; in the frame form that is no key."""
    from fedpp.cipher.evaluation_key import open_key
    from fedpp.keys.store import EVALUATION_KEY

    return open_key(options.domain / EVALUATION_KEY, manifest)


def show(options: argparse.Namespace, values: dict[str, Any]) -> None:
    """Print results: one JSON object, or a line each."""
    if options.json:
        print(json.dumps(values))
        return
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:{width}}  {f'{value:.4f}' if isinstance(value, float) else value}")
