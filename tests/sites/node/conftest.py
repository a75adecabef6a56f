"""A site, and a certificate authority, for the tests of its node."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import vaults
from conftest import write_dataset

from coordinator.operator.coordinator_certificates import ensure
from fedpp.config.run_config import SiteConfig
from fedpp.config.site_policy import starting_text
from fedpp.keys.key_domain import KeyDomain


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, domain: KeyDomain, plaintext: tuple[np.ndarray, np.ndarray]
) -> Iterator[SiteConfig]:
    """Return a site with a tiny dataset, beside its vault."""
    folder = tmp_path_factory.mktemp("site")
    dataset = write_dataset(folder / "dataset", domain, plaintext)
    domain.evaluation_key().save(folder / "domain.eval")
    (folder / "site.yaml").write_text(starting_text(dataset.manifest.fingerprint))
    with tempfile.TemporaryDirectory(prefix="fedpp-") as sockets:
        address = f"unix:{sockets}/run/vault.sock"
        with vaults.serving(domain, dataset, address):
            yield SiteConfig(dataset.path, folder / "domain.eval", address, folder / "site.yaml", folder)


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    """Return the certificate of a new authority."""
    return ensure(tmp_path / "tls", []).ca
