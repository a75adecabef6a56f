"""The certificate of a state: t members on exactly one state of one round, or all of them on the first."""

from collections.abc import Sequence
from typing import Any

import pytest
from members import flips
from run_contracts import Cohort, hashed

from fedpp.errors import FederationError
from fedpp.protocol.run_contract import NO_HASH
from fedpp.protocol.run_statements import SignedStatement
from fedpp.protocol.state_certificate import StateCertificate, needed

COHORT = Cohort.of(5).begin()
COHORT.all_sign("train", 1)
COHORT.all_sign("release", 1)
STEPS = COHORT.all_sign("step", 1, counts='{"examples":7}')
STARTS = [chain[2] for chain in COHORT.signed.values()]


def made(signed: Sequence[SignedStatement] = STEPS) -> StateCertificate:
    return StateCertificate.made_of(COHORT.contract, signed)


def refusal(certificate: StateCertificate, cohort: Cohort = COHORT) -> str:
    with pytest.raises(FederationError) as raised:
        certificate.require(cohort.contract, cohort.certificates)
    assert str(raised.value).isprintable()
    return str(raised.value)


def resigned(signed: SignedStatement, **changes: Any) -> SignedStatement:
    return COHORT.signed_by(signed.statement.site, signed.statement.changed(**changes))


def test_a_certificate_names_the_state_and_what_was_opened():
    """It survives its text, and holds the state, its base, the counts and the signers."""
    certificate = made(STEPS[::-1])
    certificate.require(COHORT.contract, COHORT.certificates)
    assert StateCertificate.from_json(certificate.to_json()) == certificate
    assert (certificate.state, certificate.base, certificate.round) == (hashed("state 1"), hashed("state 0"), 1)
    assert certificate.counts == '{"examples":7}'
    assert certificate.signers == COHORT.contract.names
    first = made(STARTS)
    first.require(COHORT.contract, COHORT.certificates)
    assert (first.state, first.base, first.round, first.counts) == (hashed("state 0"), NO_HASH, 0, "")


def test_t_members_certify_a_round_and_all_of_them_the_first_state():
    """One fewer is refused, when a certificate is made and when it is read."""
    assert [needed(COHORT.contract, number) for number in (0, 1, 5)] == [5, 4, 4]
    for signed, due in ((STEPS, 4), (STARTS, 5)):
        certificate = made(signed)
        made(signed[:due]).require(COHORT.contract, COHORT.certificates)
        with pytest.raises(FederationError, match=f"{due - 1} members signed one state of the round: too few"):
            made(signed[: due - 1])
        too_few = certificate.changed(signed=certificate.signed[: due - 1])
        assert f"{due - 1} members signed it, {due} are needed" in refusal(too_few)
    with pytest.raises(FederationError, match="0 members signed one state"):
        made([])


def test_members_that_signed_another_state_do_not_count():
    """What the others agree on is certified, if they are enough."""
    other = {"facts": {"state": hashed("other"), "counts": '{"examples":7}'}}
    assert made([resigned(STEPS[0], **other), *STEPS[1:]]).signers == COHORT.contract.names[1:]
    with pytest.raises(FederationError, match="3 members signed one state"):
        made([*(resigned(each, **other) for each in STEPS[:2]), *STEPS[2:]])


@pytest.mark.parametrize(
    "change",
    [
        {"facts": {"state": hashed("other"), "counts": '{"examples":7}'}},
        {"facts": {"state": hashed("state 1"), "counts": '{"examples":8}'}},
        {"facts": {"state": hashed("state 1"), "counts": ""}},
        {"base": hashed("other")},
        {"run": hashed("run")},
        {"round": 2},
        {"contract": hashed("c")},
    ],
)
def test_all_statements_are_of_exactly_one_state(change: dict[str, Any]):
    """One of another state, counts, base, run, round or contract spoils a certificate, though its site signed it."""
    certificate = made()
    for number in (0, 4):
        signed = list(certificate.signed)
        signed[number] = resigned(signed[number], **change)
        assert "its statements are not all of the same state, counts and round" in refusal(
            certificate.changed(signed=signed)
        )
    with_change = certificate.changed(signed=[resigned(each, **change) for each in certificate.signed])
    if change.keys() <= {"base"} or change.get("facts", {}).get("state") == hashed("state 1"):
        with_change.require(COHORT.contract, COHORT.certificates)  # all of them say so
    else:
        assert "its statements are not all of the same state" in refusal(with_change)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"contract": hashed("c")}, "it is of contract"),
        ({"state": hashed("other")}, "its statements are not all of the same state"),
        ({"run": hashed("run")}, "its statements are not all of the same state"),
        ({"round": 2}, "its statements are not all of the same state"),
        ({"round": 0}, "its statements are not all of the same state"),
        ({"signed": STARTS}, "its statements are not all of the same state"),
        ({"signed": [*STEPS[:3], STEPS[3], STEPS[3]]}, "its signers must be distinct members"),
        ({"signed": STEPS[::-1]}, "its signers must be distinct members, in the order of their names"),
        ({"signed": [*STEPS[:4], COHORT.signed["Site 04"][3]]}, "its statements are not all of the same state"),
    ],
)
def test_a_certificate_is_of_its_own_statements(change: dict[str, Any], reason: str):
    """No name, number or state of its own, no signer twice, and no statement of another phase."""
    assert reason in refusal(made().changed(**change))


def test_strangers_do_not_sign():
    """A site that is not in the cohort, and a signature of another member, are refused."""
    other = Cohort.of(6)
    stranger = other.signed_by("Site 05", STEPS[4].statement.changed(site="Site 05"))
    assert "its signers must be distinct members" in refusal(made().changed(signed=[*STEPS[:4], stranger]))
    forged = SignedStatement(STEPS[4].statement, STEPS[3].signature)
    assert "of Site 04 was not signed by that site" in refusal(made().changed(signed=[*STEPS[:4], forged]))


def test_every_changed_byte_is_refused():
    """One bit of each byte of a certificate is flipped: none is read, or verified, as another."""
    certificate = made(STEPS[:4])
    for flip in flips(certificate.to_json().encode())[::7]:
        with pytest.raises(FederationError):
            read = StateCertificate.from_json(flip.content.decode("latin-1"))
            read.require(COHORT.contract, COHORT.certificates)


def test_a_certificate_of_another_run_is_refused():
    """The same members, states and rounds under another contract certify nothing here."""
    other = Cohort.of(5, nonce=hashed("another run")).begin().complete(1)
    certificate = StateCertificate.made_of(other.contract, other.chains().of("step", 1).values())
    certificate.require(other.contract, other.certificates)
    assert "it is of contract" in refusal(certificate)
    assert "its statements are not all of the same" in refusal(certificate.changed(contract=COHORT.contract.digest))
