"""A certified model: contract, members, certificate and sealed state, which one member cannot make alone."""

from dataclasses import replace

import pytest
from members import flips
from run_contracts import CARD, Cohort, hashed

from fedpp.errors import FederationError, ModelError
from fedpp.keys.domain_ca import DomainCA
from fedpp.protocol.certified_model import CertifiedModel, is_certified
from fedpp.protocol.state_certificate import StateCertificate


def model_of(cohort: Cohort, sealed: bytes = b"sealed state") -> CertifiedModel:
    """Return the model of a cohort after its first round."""
    cohort.begin().complete(1)
    certificate = StateCertificate.made_of(cohort.contract, cohort.chains().of("step", 1).values())
    return CertifiedModel(cohort.contract, tuple(cohort.certificates.values()), certificate, sealed)


MODEL = model_of(Cohort.of(3))


def test_a_certified_model_survives_its_bytes():
    """It reads the same, begins as one, and its members certified the state."""
    content = MODEL.to_bytes()
    assert CertifiedModel.from_bytes(content) == MODEL
    assert is_certified(content)
    assert not is_certified(b"another file")
    MODEL.require(CARD.ca_key)


def test_changed_bytes_are_refused():
    """Bits all over the file but the sealed state are flipped, one at a time: nothing is read as another."""
    content = MODEL.to_bytes()
    for flip in flips(content[: -len(MODEL.sealed)])[::97]:
        with pytest.raises((ModelError, FederationError)):
            CertifiedModel.from_bytes(flip.content + MODEL.sealed).require(CARD.ca_key)
    for damaged in (b"", content[:100], b"x" + content):
        with pytest.raises(ModelError, match="not a certified model of a masked run"):
            CertifiedModel.from_bytes(damaged)


def test_another_domain_s_members_certify_nothing():
    """Certificates of members are the domain CA's, in the order of the contract."""
    with pytest.raises(FederationError, match="was not made by domain"):
        MODEL.require(DomainCA(bytes(32)).public_key)
    with pytest.raises(FederationError, match="have other certificates than the 2 beside it"):
        replace(MODEL, certificates=MODEL.certificates[:2]).require(CARD.ca_key)
    with pytest.raises(FederationError, match="it is of contract"):
        replace(MODEL, contract=MODEL.contract.changed(nonce=hashed("other"))).require(CARD.ca_key)


@pytest.mark.parametrize(("count", "changes"), [(1, {"colluders": 0, "min_honest": 1}), (3, {"colluders": 0})])
def test_a_member_certifies_nothing_alone(count: int, changes: dict[str, int]):
    """It can sign a contract with itself alone, or one that needs fewer signatures: no model of it is taken."""
    alone = model_of(Cohort.of(count, **changes))
    alone.certificate.require(alone.contract, {c.member.site: c for c in alone.certificates})
    with pytest.raises(FederationError, match="sites are too few for|two sites have 0 colluders"):
        alone.require(CARD.ca_key)
