"""Two nodes of a key domain."""

import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from conftest import write_dataset
from site_nodes import Node, Plaintext, node, run_spec_of

from fedpp.cipher.evaluation_key import AnyKey
from fedpp.config.hyperparameters import Dtype, Hyperparameters
from fedpp.config.model_spec import ModelSpec
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.keys.key_domain import KeyDomain
from sites.client import participation


@pytest.fixture
def sockets() -> Iterator[str]:
    """Return a folder whose path is short enough for a socket, and can be told from all else."""
    with tempfile.TemporaryDirectory(prefix="fedpp-hospital-") as folder:
        yield folder


@pytest.fixture(scope="module")
def trainers(domain: KeyDomain) -> Iterator[None]:
    """Keep the networks of a file's tests: those of the usual run traced, the others, of few steps, eager."""
    made, usual = participation._trainer.__wrapped__, run_spec_of(domain)
    traced = (usual.network, usual.training.hyperparameters, usual.training.dtype)

    @lru_cache(maxsize=16)
    def kept(network: ModelSpec, key: AnyKey, hyperparameters: Hyperparameters, dtype: Dtype) -> Any:
        trainer = made(network, key, hyperparameters, dtype)
        trainer.model.run_eagerly = (network, hyperparameters, dtype) != traced
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(participation, "_trainer", kept)
        yield


@pytest.fixture
def north(trainers: None, tmp_path: Path, sockets: str, dataset: EncryptedDataset, domain: KeyDomain) -> Node:
    """Return a node whose vault does not run."""
    del trainers
    return node(tmp_path / "north", sockets, dataset, domain, "north")


@pytest.fixture
def south(trainers: None, tmp_path: Path, sockets: str, domain: KeyDomain, plaintext: Plaintext) -> Node:
    """Return another one, with other images."""
    del trainers
    lengths = (2, 2, 1, 2, 2, 2, 2, 2, 2, 2, 2)
    dataset = write_dataset(tmp_path / "southern", domain, (plaintext[0] * 0.7 + 0.1, plaintext[1]), lengths=lengths)
    return node(tmp_path / "south", sockets, dataset, domain, "south")


@pytest.fixture
def both(north: Node, south: Node) -> Iterator[list[Node]]:
    """Return two nodes of a domain, beside their vaults."""
    with north.beside_vault(), south.beside_vault():
        yield [north, south]
