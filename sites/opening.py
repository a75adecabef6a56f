"""What several commands of `fedpp-site` open, and how they print their results."""

import argparse
import json
from typing import Any


def domain_of(options: argparse.Namespace) -> Any:
    """Open the domain secret with its passphrase."""
    from fedpp.keys import store

    return store.open_domain(options.domain, store.read_passphrase(options.passphrase_file))


def trainers_dataset(options: argparse.Namespace) -> Any:
    """Open a dataset with what the trainer's folder holds."""
    from fedpp.cipher.at_rest import AtRestKey
    from fedpp.cipher.dataset import EncryptedDataset
    from fedpp.keys.store import AT_REST_KEY

    dataset = EncryptedDataset.open(options.dataset)
    if not dataset.manifest.at_rest:
        return dataset
    return EncryptedDataset.open(options.dataset, AtRestKey.load(options.domain / AT_REST_KEY))


def show(options: argparse.Namespace, values: dict[str, Any]) -> None:
    """Print results: one JSON object, or a line each."""
    if options.json:
        print(json.dumps(values))
        return
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:{width}}  {f'{value:.4f}' if isinstance(value, float) else value}")
