"""The list of a run's sites, and how much of it one message holds."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import grpc
import numpy as np
import pytest
from flwr.app import ConfigRecord
from members import founded, proof

from fedpp.aggregation.ring import Ring
from fedpp.aggregation.round_context import MAX_ENCODED_VALUES, PRIME, Aggregate, Contribution, Round
from fedpp.config.run_config import MAX_EXAMPLES, MAX_SITES
from fedpp.errors import FederationError
from fedpp.keys.site_identity import SiteIdentity
from fedpp.protocol.coordinator_identity import SIMULATED, CoordinatorNames
from fedpp.protocol.membership import LONGEST_NAME, Proof, Run, is_site_name
from fedpp.protocol.participants import Participants
from fedpp.vault_api import vault_pb2, vault_pb2_grpc
from fedpp.vault_api.vault_channel import MAX_MESSAGE_BYTES
from fedpp.vault_api.vault_client import Membership, VaultClient

NONCE = "ab" * 32


def longest_name(number: int) -> str:
    """Return a name of the most bytes, all but its end of letters that take most room in JSON."""
    end = f"{number:04}"
    return "\u00e9" * ((LONGEST_NAME - len(end)) // 2) + end


class Echo(vault_pb2_grpc.VaultServicer):
    """A server that echoes an update, under the vault's limit of a message."""

    def Unmask(  # noqa: N802
        self, requests: Iterator[vault_pb2.UnmaskRequest], context: grpc.ServicerContext
    ) -> Iterator[vault_pb2.Block]:
        for request in requests:
            yield vault_pb2.Block(data=request.values)


@pytest.fixture
def client(tmp_path) -> Iterator[VaultClient]:
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)])
    vault_pb2_grpc.add_VaultServicer_to_server(Echo(), server)
    server.add_insecure_port(f"unix:{tmp_path}/echo.sock")
    server.start()
    with VaultClient(f"unix:{tmp_path}/echo.sock") as opened:
        yield opened
    server.stop(None).wait()


@pytest.fixture(scope="module")
def proofs() -> tuple[Proof, ...]:
    """Return the proofs of the most sites of a run, under the longest names."""
    card = founded().card()
    sites = [SiteIdentity(longest_name(i), i.to_bytes(32, "big")) for i in range(1, MAX_SITES + 1)]
    assert all(is_site_name(site.name) for site in sites)
    return tuple(proof(site, card, NONCE, run=str(2**64 - 1)) for site in sites)


def test_a_vault_is_sent_the_most_sites_of_a_run(client: VaultClient, proofs: tuple[Proof, ...]):
    """Proofs and the list of a sum of so many sites, under the longest names, are one message that a vault takes."""
    parts = tuple(Contribution(given.statement.site, NONCE, MAX_EXAMPLES, MAX_SITES) for given in proofs)
    total = Aggregate(parts, PRIME - 1).to_json()
    of = Round(NONCE, 2**53, 2**53, NONCE, NONCE, MAX_ENCODED_VALUES, Ring(64, MAX_EXAMPLES, MAX_SITES, 8.0))
    words = np.arange(5, dtype="<u8")
    membership = Membership(Participants(NONCE, proofs), str(2**64 - 1), NONCE)
    np.testing.assert_array_equal(client.unmask(of.to_json(), total, words, membership), words)
    assert Aggregate.from_json(total).parts == parts


def test_the_list_returns_from_its_record(proofs: tuple[Proof, ...]):
    """The most sites are read as they were; one more is refused."""
    given = Participants(NONCE, proofs)
    assert Participants.from_record(given.to_record()) == given
    more = replace(given, proofs=(*proofs, proofs[0])).to_record()
    with pytest.raises(FederationError, match=f"has {MAX_SITES + 1} proofs, at most {MAX_SITES} fit"):
        Participants.from_record(ConfigRecord(more))
    for unfit in ({"nonce": NONCE}, {"nonce": 1, "proofs": []}, {"nonce": NONCE, "proofs": [b""]}):
        with pytest.raises(FederationError, match="the run's list of participants does not fit"):
            Participants.from_record(unfit)


def test_a_list_is_refused_by_its_names_before_any_signature(proofs: tuple[Proof, ...], monkeypatch):
    """A proof that stands twice, or one member under two proofs, costs no verification."""

    def verify(*_: object) -> None:
        raise AssertionError("a signature was verified")

    monkeypatch.setattr(Proof, "require", verify)
    first, second = proofs[:2]
    renewed = replace(first, statement=replace(first.statement, time=first.statement.time + 1))
    run, now = Run("0" * 64, "0" * 64, NONCE, "1", NONCE, CoordinatorNames.only(SIMULATED)), datetime.now(UTC)
    site = first.statement.site
    with pytest.raises(FederationError, match="names one member twice"):
        Participants.of(NONCE, [first.to_json(), second.to_json(), first.to_json()])
    with pytest.raises(FederationError, match="names one member twice"):
        Participants(NONCE, (first, second, renewed)).others(site, run, now)
    with pytest.raises(AssertionError, match="a signature was verified"):
        Participants(NONCE, (first, second)).others(site, run, now)
