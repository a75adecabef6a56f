"""Membership invitations: sealed to one site, certified by the domain CA, refused when altered."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from members import DOMAIN_CA, EAST, WEST, flips, founded

from fedpp.cipher.domain_card import DomainCard
from fedpp.errors import DomainMismatchError, FederationError, KeyFileError
from fedpp.keys.domain_ca import DomainCA, succeeds
from fedpp.keys.invitation import Invitation
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.site_identity import MembershipRequest, SiteIdentity
from fedpp.protocol.membership import Certificate
from fedpp.values import canonical

GOLDEN = ROOT / "tests" / "vectors" / "keys-2"


@pytest.fixture(scope="module")
def domain() -> KeyDomain:
    return founded()


@pytest.fixture(scope="module")
def invitation(domain: KeyDomain) -> Invitation:
    """Return an invitation of West to the domain."""
    return Invitation.make(domain, DOMAIN_CA, WEST.request())


@pytest.mark.parametrize("scheme", ["more", "more-frame"])
def test_accept_inverts_make(scheme: str):
    """The invited site gets the domain, secret and card, and a certificate in its own name."""
    domain = founded(scheme=scheme).successor(DOMAIN_CA.public_key)
    made = Invitation.from_json(Invitation.make(domain, DOMAIN_CA, WEST.request()).to_json(), "it")
    accepted = made.accept(WEST)
    assert (accepted.secret_bytes(), accepted.card()) == (domain.secret_bytes(), domain.card())
    made.certificate.require(domain.card().ca_key, domain.card().fingerprint)
    assert made.certificate.member == WEST.member_of(domain.card().fingerprint)


def test_an_invitation_has_no_secret_in_clear(domain: KeyDomain, invitation: Invitation):
    """Neither the secret nor a key derived from it is in the file, and two invitations have different sealed bytes."""
    text = invitation.to_json()
    for secret in (domain.secret_bytes(), domain.derive("at rest"), domain.matrix().tobytes()):
        assert secret.hex() not in text
    again = Invitation.make(domain, DOMAIN_CA, WEST.request())
    assert again.sealed[:64] != invitation.sealed[:64]  # the encapsulated key
    assert again.sealed[64:] != invitation.sealed[64:]


def test_no_other_site_accepts_it(invitation: Invitation):
    """Another site, and one that only has the same name, are refused by name."""
    for other in (EAST, SiteIdentity("West", bytes([5] * 32))):
        with pytest.raises(
            KeyFileError, match=f"the invitation is for West, with other keys than those of {other.name}"
        ):
            invitation.accept(other)


def test_every_changed_byte_is_refused(invitation: Invitation):
    """Two bits of each byte are flipped: each file is refused as altered."""
    for flip in flips(invitation.to_json().encode()):
        with pytest.raises((KeyFileError, FederationError), match=r"altered|not an invitation"):
            Invitation.from_json(flip.content.decode("latin-1"), "it").accept(WEST)


def test_only_the_domain_ca_makes_one(domain: KeyDomain, invitation: Invitation):
    """A member, who has the secret, can neither invite others nor sign for the domain CA."""
    member = DomainCA(bytes([9] * 32))
    with pytest.raises(DomainMismatchError, match="this CA key is not the domain's"):
        Invitation.make(domain, member, WEST.request())
    forged = replace(invitation, signature=member.sign("invitation", invitation.content()))
    with pytest.raises(KeyFileError, match="the invitation was altered"):
        forged.accept(WEST)


def test_an_invitation_under_an_exchanged_card_has_another_phrase(domain: KeyDomain, invitation: Invitation):
    """An attacker who substitutes a domain makes a valid invitation, but its phrase is not the founder's."""
    attacker = DomainCA(bytes([9] * 32))
    own = KeyDomain(domain.secret_bytes(), replace(domain.card(), ca_key=attacker.public_key))
    forged = Invitation.make(own, attacker, WEST.request())
    assert forged.accept(WEST).card() == own.card()
    assert forged.card.verification_phrase != invitation.card.verification_phrase


def test_an_epoch_names_its_successor_and_no_other(domain: KeyDomain):
    """The old CA key's signature is valid only for the next key epoch of the same domain."""
    later = DomainCA(bytes([6] * 32))
    new = domain.successor(later.public_key)
    old, card = domain.card(), new.card()
    succession = DOMAIN_CA.succession(old, card)
    assert Invitation.make(new, later, WEST.request(), succession=succession).follows(old)
    assert not Invitation.make(new, later, WEST.request()).follows(old)
    assert not succeeds(old, card, later.succession(old, card))
    assert not succeeds(old, replace(card, ca_key=DOMAIN_CA.public_key), succession)
    for other in (replace(card, key_epoch=1), replace(card, id="0" * 32), replace(card, n=3)):
        assert not succeeds(old, other, DOMAIN_CA.succession(old, other))


@pytest.mark.parametrize("change", [{"succession": "00"}, {"certificate": EAST}, {"card": 3}])
def test_the_sealed_secret_is_bound_to_what_the_invitation_says(
    change: dict[str, object], domain: KeyDomain, invitation: Invitation
):
    """Even a domain CA that signs again cannot put a sealed secret under another card, certificate or succession."""
    if "certificate" in change:  # of West's keys, under a later certificate
        member = replace(WEST.member_of(domain.card().fingerprint), site="Western")
        change = {"certificate": Certificate(member, DOMAIN_CA.sign("certificate", member.content()))}
    if "card" in change:
        change = {"card": replace(domain.card(), n=3)}
        change["certificate"] = DOMAIN_CA.certify(WEST.request(), change["card"])
    forged = replace(invitation, **change)
    forged = replace(forged, signature=DOMAIN_CA.sign("invitation", forged.content()))
    identity = SiteIdentity(forged.certificate.member.site, WEST.seed_bytes())
    with pytest.raises(KeyFileError, match="cannot decrypt the invitation"):
        forged.accept(identity)


def test_the_format_stays():
    """An invitation that version 1 of the format wrote is accepted in every version."""
    domain = Invitation.load(GOLDEN / "west.invitation").accept(WEST)
    assert domain.card() == DomainCard.load(GOLDEN / "domain.card")
    assert domain.matrix().tobytes().hex() == (GOLDEN / "matrix.hex").read_text().strip()


def test_another_line_end_is_another_file(tmp_path: Path, domain: KeyDomain, invitation: Invitation):
    """A file has one text: an invitation, a request or a card with another line end is refused."""
    for kind, text in (
        (Invitation, invitation.to_json()),
        (MembershipRequest, WEST.request().to_json()),
        (DomainCard, domain.card().to_json()),
    ):
        (tmp_path / "it").write_text(text)
        assert kind.load(tmp_path / "it").to_json() == text
        for content in (text[:-1] + "\r", text[:-1] + "\r\n", text[:-1]):
            (tmp_path / "it").write_bytes(content.encode())
            with pytest.raises(KeyFileError, match=r"altered|damaged|not an invitation"):
                kind.load(tmp_path / "it")


def test_a_file_of_another_kind_is_refused(tmp_path: Path, invitation: Invitation):
    """What is not an invitation, or of another format, is refused by the file's name."""
    later = {**json.loads(invitation.to_json()), "format": "fedpp-invitation-9"}
    for content in (b"", b"[]", b"\xff", WEST.request().to_json().encode(), canonical(later) + b"\n"):
        (tmp_path / "it").write_bytes(content)
        with pytest.raises(KeyFileError, match=str(tmp_path / "it")):
            Invitation.load(tmp_path / "it")
