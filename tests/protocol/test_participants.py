"""The list of a run's sites, and how much of it one message holds."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from flwr.app import ConfigRecord
from members import founded, proof

from fedpp.config.run_config import MAX_SITES
from fedpp.errors import FederationError
from fedpp.keys.site_identity import SiteIdentity
from fedpp.protocol.coordinator_identity import SIMULATED, CoordinatorNames
from fedpp.protocol.membership import LONGEST_NAME, Proof, Run, is_site_name
from fedpp.protocol.participants import Participants

NONCE = "ab" * 32


def longest_name(number: int) -> str:
    """Return a name of the most bytes, all but its end of letters that take most room in JSON."""
    end = f"{number:04}"
    return "\u00e9" * ((LONGEST_NAME - len(end)) // 2) + end


@pytest.fixture(scope="module")
def proofs() -> tuple[Proof, ...]:
    """Return the proofs of the most sites of a run, under the longest names."""
    card = founded().card()
    sites = [SiteIdentity(longest_name(i), i.to_bytes(32, "big")) for i in range(1, MAX_SITES + 1)]
    assert all(is_site_name(site.name) for site in sites)
    return tuple(proof(site, card, NONCE, run=str(2**64 - 1)) for site in sites)


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
