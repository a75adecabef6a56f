"""Two nodes of a key domain."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import write_dataset
from site_nodes import Node, Plaintext, node

from fedpp.cipher.dataset import EncryptedDataset
from fedpp.keys.domain import KeyDomain


@pytest.fixture
def sockets() -> Iterator[str]:
    """Return a folder whose path is short enough for a socket, and can be told from all else."""
    with tempfile.TemporaryDirectory(prefix="fedpp-hospital-") as folder:
        yield folder


@pytest.fixture
def north(tmp_path: Path, sockets: str, dataset: EncryptedDataset, domain: KeyDomain) -> Node:
    """Return a node whose vault does not run."""
    return node(tmp_path / "north", sockets, dataset, domain, "north")


@pytest.fixture
def both(north: Node, tmp_path: Path, sockets: str, domain: KeyDomain, plaintext: Plaintext) -> Iterator[list[Node]]:
    """Return two nodes of a domain, beside their vaults; either may run without masking, too."""
    lengths = (2, 2, 1, 2, 2, 2, 2, 2, 2, 2, 2)
    dataset = write_dataset(tmp_path / "southern", domain, (plaintext[0] * 0.7 + 0.1, plaintext[1]), lengths=lengths)
    south = node(tmp_path / "south", sockets, dataset, domain, "south")
    for each in (north, south):
        each.permit(masking="optional")
    with north.beside_vault(), south.beside_vault():
        yield [north, south]
