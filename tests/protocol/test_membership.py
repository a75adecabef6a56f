"""Certificates and proofs: no member speaks as another, and no signature serves twice."""

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import members
import pytest
from members import DOMAIN_CA, EAST, TOLD, WEST, flips, founded, run_of

from fedpp.cipher.domain_card import DomainCard
from fedpp.errors import FederationError
from fedpp.keys.domain_ca import DomainCA
from fedpp.keys.site_identity import SiteIdentity
from fedpp.protocol.membership import PROTOCOL, Certificate, Proof, is_signed, same_name
from fedpp.values import canonical

NONCE = "ab" * 32


@pytest.fixture(scope="module")
def card() -> DomainCard:
    return founded().card()


def certificate(identity: SiteIdentity, card: DomainCard) -> Certificate:
    return DOMAIN_CA.certify(identity.request(), card)


def proof(identity: SiteIdentity, card: DomainCard, certified: Certificate | None = None, **change: object) -> Proof:
    """Return a proof by this identity, under a certificate by default its own."""
    own = members.proof(identity, card, NONCE, **change)
    return own if certified is None else replace(own, certificate=certified)


def refused(given: Proof, card: DomainCard) -> str:
    with pytest.raises(FederationError) as error:
        given.require(run_of(card, NONCE))
    return str(error.value)


def test_a_member_s_proof_is_accepted(card: DomainCard):
    """It survives its text, and the domain's card is all that is needed to check it."""
    given = proof(EAST, card)
    assert Proof.from_json(given.to_json()) == given
    given.require(run_of(card, NONCE))


def test_a_certificate_for_one_site_is_refused_for_another(card: DomainCard):
    """West can show East's certificate, and say that it is East: it cannot sign as East."""
    stolen = certificate(EAST, card)
    assert "was not signed by the site that East is" in refused(proof(WEST, card, stolen), card)
    assert "was not signed by the site that East is" in refused(proof(WEST, card, stolen, site="East"), card)
    assert refused(proof(WEST, card, site="East"), card) == ("West cannot speak as East: its certificate is for West")


def test_a_certificate_that_a_member_makes_is_refused(card: DomainCard):
    """A member has the secret and not the certifying key: what it signs itself is no certificate."""
    own = DomainCA(WEST.seed_bytes()).certify(SiteIdentity("East", bytes([8] * 32)).request(), card)
    impostor = SiteIdentity("East", bytes([8] * 32))
    assert "was not made by domain" in refused(proof(impostor, card, own), card)
    renamed = replace(certificate(WEST, card), member=replace(WEST.member_of(card.fingerprint), site="East"))
    assert "was not made by domain" in refused(proof(WEST, card, renamed, site="East"), card)


def test_a_revoked_member_s_certificate_is_of_the_old_epoch(card: DomainCard):
    """It names the old card, and no signature makes it another's."""
    later = replace(card, key_epoch=2)
    assert "is for domain" in refused(proof(WEST, later, certificate(WEST, card)), later)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"nonce": "0" * 64}, "is for another run: it was replayed"),
        ({"domain": "0" * 64}, "is for another run"),
        ({"run": "2"}, "is for another run"),
        ({"bundle": "e" * 64}, "East runs app bundle eeeeeeeeeeeeeeee, the run is of e3b0c44298fc1c14"),
        (
            {"coordinator": replace(TOLD, name="other.example.org")},
            "the coordinator as other.example.org of authority cacacacacacacaca, and this run is of hub.example.org, a",
        ),
        ({"coordinator": replace(TOLD, authority="0" * 64)}, "East knows the coordinator as hub.example.org of"),
        ({"protocol": PROTOCOL + 1}, f"speaks protocol {PROTOCOL + 1}, not {PROTOCOL}"),
    ],
)
def test_a_proof_for_something_else_is_refused(card: DomainCard, change: dict[str, object], reason: str):
    """A statement is of one run, one coordinator, one domain, one protocol and one bundle."""
    assert reason in refused(proof(EAST, card, **change), card)


@pytest.mark.parametrize(("days", "good"), [(0, True), (13.9, True), (14.1, False), (-0.03, True), (-0.1, False)])
def test_a_proof_is_good_for_two_weeks(card: DomainCard, days: float, good: bool):
    """An older one, or one of a time to come but for what clocks differ, is refused with its time."""
    now = datetime(2030, 1, 31, tzinfo=UTC)
    statement = proof(EAST, card, time=int((now - timedelta(days=days)).timestamp())).statement
    if good:
        statement.require_fresh(now)
    else:
        with pytest.raises(FederationError, match=f"of another time, {statement.time} s since 1970: .* 14 days"):
            statement.require_fresh(now)


@pytest.mark.parametrize("time", [0, 2**53 - 1])
def test_any_time_that_can_be_said_can_be_judged(card: DomainCard, time: int):
    """A year that no calendar has is refused like another."""
    with pytest.raises(FederationError, match="of another time"):
        proof(EAST, card, time=time).statement.require_fresh(datetime.now(UTC))


def test_a_statement_changed_after_signing_is_refused(card: DomainCard):
    """Dataset and bundle are what the vault signed."""
    given = proof(EAST, card)
    for change in ({"dataset": "0" * 64}, {"bundle": "0" * 64}):
        altered = replace(given, statement=replace(given.statement, **change))
        assert "was not signed by the site" in refused(altered, card)


def test_a_statement_of_protocol_1_is_refused_in_one_line(card: DomainCard):
    """It names no coordinator, so it could be replayed at another one."""
    given = proof(EAST, card).to_mapping()
    del given["statement"]["coordinator"]
    with pytest.raises(FederationError, match=r"^proof of membership: statement: missing coordinator; known are .*$"):
        Proof.from_json(canonical(given).decode())


def test_every_changed_byte_is_refused(card: DomainCard):
    """Two bits of each byte of certificate and proof are flipped: each is an error of ours, and none is accepted."""
    for made in (proof(EAST, card), certificate(EAST, card)):
        text = made.to_json().encode()
        for flip in flips(text):
            with pytest.raises(FederationError):
                read = type(made).from_json(flip.content.decode("latin-1"))
                if isinstance(read, Proof):
                    read.require(run_of(card, NONCE))
                else:
                    read.require(card.ca_key, card.fingerprint)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "[" * 5000, '{"a": 1' + " " * 5000 + "}"])
def test_what_is_no_json_of_ours_is_refused(text: str):
    """Whatever a coordinator or a site sends, the error is one line."""
    for kind in (Proof, Certificate):
        with pytest.raises(FederationError):
            kind.from_json(text)


LONGEST = "\N{HOSPITAL}" * 50  # 200 bytes
UNSEEN = [
    "Ea\u200bst",
    "Ea\u115fst",
    "Ea\ufe0fst",
    "Ea\u2800st",
    "Ea\u034fst",
    "Ea\U000e0101st",
    "Ea\U0001d159st",
    "Ea\u3164st",
]
OTHER_FORMS = [
    "\uff25ast",
    "Ea\u017ft",
    "Hospital \u2460",
    "Ho\u0302pital",
]  # of NFKC's East, East, Hospital 1, Hôpital


@pytest.mark.parametrize(
    "value", ["\x1b[31mEast", " East", "", 7, None, "E" * 201, LONGEST + "E", *UNSEEN, *OTHER_FORMS]
)
def test_names_that_mislead_are_refused(card: DomainCard, value: object):
    """A certificate's name is shown to people: it is printable, and not padded."""
    given = certificate(EAST, card)
    text = canonical({**asdict(given.member), "site": value, "signature": given.signature}).decode()
    with pytest.raises(FederationError, match="site must be"):
        Certificate.from_json(text)


@pytest.mark.parametrize("name", [LONGEST, "H\u00f4pital Saint-Louis", "\u75c5\u9662", "\\" * 200])
def test_a_name_of_any_language_fits_into_a_proof(name: str):
    """The longest as well: a proof is never longer than what is read."""
    domain = founded().card()
    made = proof(SiteIdentity(name, bytes(32)), domain)
    assert Proof.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("one", "other", "same"), [("East", "EAST", True), ("Stra\u00dfe", "STRASSE", True), ("E", "W", False)]
)
def test_names_are_the_same_that_differ_in_case(one: str, other: str, same: bool):
    """A certificate tells members apart by names that people read aloud."""
    assert same_name(one, other) == same_name(other, one) == same


# The eight points of small order of Curve25519 in Edwards form, and writings of them that are not canonical.
P = 2**255 - 19
_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
SMALL = sorted({y | sign << 255 for y in (0, 1, P - 1, P, P + 1, _ORDER_8, P - _ORDER_8) for sign in (0, 1)})


@pytest.mark.parametrize("y", SMALL)
def test_a_signing_key_of_small_order_is_refused(y: int, card: DomainCard):
    """Under such a key one signature fits many messages; no certificate may hold it, and nothing is signed by it."""
    key = y.to_bytes(32, "little").hex()
    with pytest.raises(FederationError, match="signing-key must be"):
        replace(EAST.member_of(card.fingerprint), signing_key=key)
    for point in SMALL:  # s = 0 and R of small order: OpenSSL accepts some of these
        signature = (point.to_bytes(32, "little") + bytes(32)).hex()
        assert not any(is_signed(key, signature, "statement", bytes([message])) for message in range(16))


@pytest.mark.parametrize("u", [0, 1, P - 1, P, P + 1])
def test_a_receiving_key_of_small_order_is_refused(u: int, card: DomainCard):
    """What is agreed with such a key anybody knows (RFC 7748, section 6.1)."""
    with pytest.raises(FederationError, match="receiving-key must be"):
        replace(EAST.member_of(card.fingerprint), receiving_key=u.to_bytes(32, "little").hex())


def test_certificates_have_one_text(card: DomainCard):
    """Another writing of the same values is refused, so that no two texts are one certificate."""
    text = certificate(EAST, card).to_json()
    with pytest.raises(FederationError, match="damaged"):
        Certificate.from_json(json.dumps(json.loads(text)))
