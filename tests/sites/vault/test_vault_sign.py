"""Signatures of the vault for its site: the statement, and refusals."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import TINY
from members import TOLD
from vaults import serving

from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import ConfigError, FederationError, VaultError
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.site_identity import SiteIdentity
from fedpp.protocol.coordinator_identity import SIMULATED, CoordinatorNames
from fedpp.protocol.membership import NO_BUNDLE, PROTOCOL, Run, Statement
from fedpp.vault_api.vault_client import VaultClient
from simulations.benchmarks.bench_vault import certified
from sites.vault.vault_service import VaultService

NONCE = "0123456789abcdef" * 4
RUN = str(2**64 - 1)


@pytest.fixture
def vault(domain: KeyDomain, dataset: EncryptedDataset, address: str) -> Iterator[VaultClient]:
    """Return a client of a vault that no policy binds."""
    with serving(domain, dataset, address, policy=None), VaultClient(address) as client:
        yield client


def test_a_proof_convinces_a_coordinator(vault: VaultClient, domain: KeyDomain, dataset: EncryptedDataset):
    """The vault signs the site's statement for this run, which verifies with the domain's public card only."""
    proof = vault.sign(NONCE, RUN, PROTOCOL, NO_BUNDLE, TOLD)
    card = domain.card()
    run = Run(card.ca_key, card.fingerprint, NONCE, RUN, NO_BUNDLE, CoordinatorNames.only(TOLD))
    proof.require(run)
    proof.statement.require_fresh(datetime.now(UTC))
    facts = (PROTOCOL, card.fingerprint, "north", dataset.manifest.fingerprint, NO_BUNDLE, TOLD)
    assert proof.statement == Statement(NONCE, RUN, proof.statement.time, *facts)
    for other in ({"nonce": "0" * 64}, {"number": "7"}):
        with pytest.raises(FederationError, match="for another run"):
            proof.require(replace(run, **other))


def test_info_names_the_site(vault: VaultClient):
    """`Info` names the site that the vault signs for."""
    assert vault.info().site == "north"


@pytest.mark.parametrize(
    ("nonce", "run", "protocol", "bundle", "reason"),
    [
        (NONCE, RUN, PROTOCOL + 1, NO_BUNDLE, "the run speaks protocol 3, this vault 2: use one fedpp everywhere"),
        (NONCE[1:], RUN, PROTOCOL, NO_BUNDLE, "statement: nonce must be 64 hexadecimal digits"),
        (NONCE.upper(), RUN, PROTOCOL, NO_BUNDLE, "statement: nonce must be 64 hexadecimal digits"),
        (NONCE, "", PROTOCOL, NO_BUNDLE, "statement: run must be Flower's number of a run, a decimal text, got ''"),
        (NONCE, "07", PROTOCOL, NO_BUNDLE, "statement: run must be Flower's number of a run, a decimal text, got '07'"),
        (NONCE, "٣", PROTOCOL, NO_BUNDLE, "statement: run must be Flower's number of a run"),
        (NONCE, str(2**64), PROTOCOL, NO_BUNDLE, "statement: run must be Flower's number of a run"),
        (NONCE, RUN, PROTOCOL, "", "statement: bundle must be 64 hexadecimal digits in lower case, got ''"),
        (NONCE, RUN, PROTOCOL, "g" * 64, "statement: bundle must be 64 hexadecimal digits"),
        (NONCE, RUN, PROTOCOL, "0" * 65, "statement: bundle must be 64 hexadecimal digits"),
    ],
)
def test_other_values_are_not_signed(vault: VaultClient, nonce: str, run: str, protocol: int, bundle: str, reason: str):
    """A signature is over hashes and this program's protocol only: nobody gets a text of theirs signed."""
    with pytest.raises(VaultError, match=reason) as refused:
        vault.sign(nonce, run, protocol, bundle, SIMULATED)
    assert isinstance(refused.value.__context__, grpc.RpcError)
    assert refused.value.__context__.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_protocol_that_a_message_cannot_carry_is_refused(vault: VaultClient):
    """It is named, and not wrapped around."""
    with pytest.raises(ConfigError, match="from 0 to 2\\*\\*32 - 1, got -1"):
        vault.sign(NONCE, RUN, -1, NO_BUNDLE, SIMULATED)


def test_a_read_only_vault_makes_nothing_under_a_key(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """It refuses weights and signatures, and serves `Info` and `Evaluate`."""
    with serving(domain, dataset, address, read_only=True), VaultClient(address) as client:
        for call in (
            lambda: client.sign(NONCE, RUN, PROTOCOL, NO_BUNDLE, SIMULATED),
            lambda: client.initial_weights(TINY, 0, "float32"),
        ):
            with pytest.raises(VaultError, match="this vault is read-only"):
                call()
        assert client.info().site == "north"
        assert client.evaluate("test", np.zeros((3, 2, 2))).examples == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"certificate": certified(KeyDomain.of_secret(bytes(32), n=2), "north").certificate}, "is for domain"),
        (
            {"identity": SiteIdentity("north", bytes([1]) * 32)},
            "the certificate of north is not for the keys of north",
        ),
    ],
)
def test_an_identity_that_does_not_fit_is_not_served(
    change: dict[str, Any], reason: str, domain: KeyDomain, dataset: EncryptedDataset
):
    """An identity that no coordinator would accept is found before the vault serves."""
    with pytest.raises(FederationError, match=reason):
        VaultService(replace(certified(domain, "north"), **change), dataset)
