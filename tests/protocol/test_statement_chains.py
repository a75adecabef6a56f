"""Chains of statements: contiguous, of one contract and run, and two statements where one is due are a proof."""

import pytest
from run_contracts import Cohort, hashed

from fedpp.errors import FederationError, ForkError, MissingLinksError
from fedpp.protocol.statement_chains import StatementChains


def empty(cohort: Cohort) -> StatementChains:
    return StatementChains(cohort.contract, cohort.certificates)


def test_all_that_members_sign_in_a_run_is_taken_in_any_order():
    """Two rounds of three members, in one list or in two, and once more without an effect."""
    cohort = Cohort.of(3).begin().complete(1).complete(2)
    chains, signed = empty(cohort), cohort.all_signed()
    assert len(chains.take(signed[::-1])) == len(signed) == 27
    assert chains.take(signed) == []
    assert chains.after({}) == signed
    assert chains.run_id() == cohort.run
    assert StatementChains.from_json(cohort.contract, cohort.certificates, chains.to_json()).after({}) == signed


def test_a_second_statement_at_a_place_is_a_proof():
    """The error holds both, and nothing of the list is kept."""
    cohort = Cohort.of(3).begin()
    chains = cohort.chains()
    other = cohort.statement("Site 01", "train", 1, masked=hashed("other"))
    one = cohort.sign("Site 01", "train", 1)
    chains.take([one])
    with pytest.raises(ForkError) as raised:
        chains.take([cohort.signed_by("Site 01", other)])
    assert raised.value.proof == (one.to_json(), cohort.signed_by("Site 01", other).to_json())


def test_a_gap_is_asked_for():
    """The error names the first place that is missing of each site."""
    cohort = Cohort.of(3).begin()
    chains = cohort.chains()
    cohort.complete(1)
    with pytest.raises(MissingLinksError) as raised:
        chains.take([cohort.signed["Site 00"][4], cohort.signed["Site 02"][5]])
    assert raised.value.places == {"Site 00": 3, "Site 02": 3}
    assert MissingLinksError.of_text(f"refused: {raised.value} (7)").places == raised.value.places


def test_a_signature_of_another_site_is_refused():
    """A member cannot sign for another."""
    cohort = Cohort.of(3)
    statement = cohort.statement("Site 00", "accept")
    with pytest.raises(FederationError, match="was not signed by that site"):
        empty(cohort).take([cohort.signed_by("Site 01", statement)])
