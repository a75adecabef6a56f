"""A domain handed on: sealed to one site, certified, and by no other way."""

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
from fedpp.values import canonical

GOLDEN = ROOT / "tests" / "vectors" / "keys-2"


@pytest.fixture(scope="module")
def domain() -> KeyDomain:
    return founded()


@pytest.fixture(scope="module")
def shared(domain: KeyDomain) -> Invitation:
    """Return the domain, shared with West."""
    return Invitation.make(domain, DOMAIN_CA, WEST.recipient())


@pytest.mark.parametrize("scheme", ["more", "more-frame"])
def test_open_inverts_make(scheme: str):
    """The recipient gets the domain, secret and card, and a certificate of it in its own name."""
    domain = founded(scheme=scheme).successor(DOMAIN_CA.public_key)
    made = Invitation.from_json(Invitation.make(domain, DOMAIN_CA, WEST.recipient()).to_json(), "it")
    opened = made.open(WEST)
    assert (opened.secret_bytes(), opened.card()) == (domain.secret_bytes(), domain.card())
    made.certificate.require(domain.card().certifying_key, domain.card().fingerprint)
    assert made.certificate.member == WEST.member_of(domain.card().fingerprint)


def test_a_share_holds_no_secret_in_clear(domain: KeyDomain, shared: Invitation):
    """Neither the secret nor what is derived of it stands in the file, and two shares have nothing sealed in common."""
    text = shared.to_json()
    for secret in (domain.secret_bytes(), domain.derive("at rest"), domain.matrix().tobytes()):
        assert secret.hex() not in text
    again = Invitation.make(domain, DOMAIN_CA, WEST.recipient())
    assert (again.ephemeral, again.sealed) != (shared.ephemeral, shared.sealed)


def test_nobody_else_opens_it(shared: Invitation):
    """Another site, and one that only took the name, are refused by name."""
    for other in (EAST, SiteIdentity("West", bytes([5] * 32))):
        with pytest.raises(KeyFileError, match=f"the share is for West, with other keys than those of {other.name}"):
            shared.open(other)


def test_every_changed_byte_is_refused(shared: Invitation):
    """Two bits of each byte are flipped: none opens, and each is refused as a file that was altered."""
    for flip in flips(shared.to_json().encode()):
        with pytest.raises((KeyFileError, FederationError), match=r"altered|no share"):
            Invitation.from_json(flip.content.decode("latin-1"), "it").open(WEST)


def test_only_the_issuer_makes_one(domain: KeyDomain, shared: Invitation):
    """A member, who has the secret, cannot admit others; nor can it sign what the issuer did not."""
    member = DomainCA(bytes([9] * 32))
    with pytest.raises(DomainMismatchError, match="this certifying key is not the domain's"):
        Invitation.make(domain, member, WEST.recipient())
    forged = replace(shared, signature=member.sign("share", shared.content()))
    with pytest.raises(KeyFileError, match="the share was altered"):
        forged.open(WEST)


def test_a_share_under_an_exchanged_card_has_other_words(domain: KeyDomain, shared: Invitation):
    """Who puts his own domain in the way makes a whole share, whose words are not those that the founder says."""
    attacker = DomainCA(bytes([9] * 32))
    own = KeyDomain(domain.secret_bytes(), replace(domain.card(), certifying_key=attacker.public_key))
    forged = Invitation.make(own, attacker, WEST.recipient())
    assert forged.open(WEST).card() == own.card()
    assert forged.card.words != shared.card.words


def test_an_epoch_names_its_successor_and_no_other(domain: KeyDomain):
    """The old certifying key's signature holds for the next epoch of the same domain alone."""
    later = DomainCA(bytes([6] * 32))
    new = domain.successor(later.public_key)
    old, card = domain.card(), new.card()
    succession = DOMAIN_CA.succession(old, card)
    assert Invitation.make(new, later, WEST.recipient(), succession=succession).follows(old)
    assert not Invitation.make(new, later, WEST.recipient()).follows(old)
    assert not succeeds(old, card, later.succession(old, card))
    assert not succeeds(old, replace(card, certifying_key=DOMAIN_CA.public_key), succession)
    for other in (replace(card, epoch=1), replace(card, id="0" * 32), replace(card, n=3)):
        assert not succeeds(old, other, DOMAIN_CA.succession(old, other))


def test_the_format_stays():
    """A share that version 1 of the format wrote opens in every version."""
    domain = Invitation.load(GOLDEN / "west.share").open(WEST)
    assert domain.card() == DomainCard.load(GOLDEN / "domain.card")
    assert domain.matrix().tobytes().hex() == (GOLDEN / "matrix.hex").read_text().strip()


def test_another_line_end_is_another_file(tmp_path: Path, domain: KeyDomain, shared: Invitation):
    """A file has one writing: a share, a recipient or a card that ends otherwise is none."""
    for kind, text in (
        (Invitation, shared.to_json()),
        (MembershipRequest, WEST.recipient().to_json()),
        (DomainCard, domain.card().to_json()),
    ):
        (tmp_path / "it").write_text(text)
        assert kind.load(tmp_path / "it").to_json() == text
        for content in (text[:-1] + "\r", text[:-1] + "\r\n", text[:-1]):
            (tmp_path / "it").write_bytes(content.encode())
            with pytest.raises(KeyFileError, match=r"altered|damaged|no share"):
                kind.load(tmp_path / "it")


def test_a_file_of_another_kind_is_refused(tmp_path: Path, shared: Invitation):
    """What is no share, or of another format, is refused by the file's name."""
    later = {**json.loads(shared.to_json()), "format": "fedpp-share-9"}
    for content in (b"", b"[]", b"\xff", WEST.recipient().to_json().encode(), canonical(later) + b"\n"):
        (tmp_path / "it").write_bytes(content)
        with pytest.raises(KeyFileError, match=str(tmp_path / "it")):
            Invitation.load(tmp_path / "it")
