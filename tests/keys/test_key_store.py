"""The keys of one site, as a folder that is written once."""

from pathlib import Path

import pytest
from conftest import ROOT
from members import DOMAIN_CA, EAST, WEST, cheap, founded, membership, written

from fedpp.cipher.domain_card import DomainCard
from fedpp.cipher.evaluation_key import EvaluationKey
from fedpp.errors import KeyFileError
from fedpp.keys import key_store
from fedpp.keys.domain_ca import DomainCA
from fedpp.keys.site_identity import SiteIdentity

GOLDEN = ROOT / "tests" / "vectors" / "keys-2"
OURS = {key_store.SECRET_KEY, key_store.SITE_KEY, key_store.EVALUATION_KEY, key_store.AT_REST_KEY}
PUBLIC = {key_store.CARD, key_store.CERTIFICATE, key_store.REQUEST}


def test_found_writes_a_folder_that_opens_and_never_overwrites(tmp_path: Path):
    """A founder's folder has all keys, in private modes; a second founding changes nothing."""
    domain = founded()
    key_store.found(tmp_path, domain, DOMAIN_CA, EAST, cheap())
    assert written(tmp_path) == OURS | PUBLIC | {key_store.CA_KEY}
    opened = key_store.open_site(tmp_path, cheap())
    assert (opened.domain.secret_bytes(), opened.domain.card()) == (domain.secret_bytes(), domain.card())
    assert (opened.identity.name, opened.identity.seed_bytes()) == ("East", EAST.seed_bytes())
    assert key_store.open_domain_ca(tmp_path, cheap()).public_key == domain.card().ca_key
    assert EvaluationKey.load(tmp_path / key_store.EVALUATION_KEY) == domain.evaluation_key()
    assert DomainCard.load(tmp_path / key_store.CARD) == domain.card()
    for name in (*OURS, key_store.CA_KEY):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    for name in PUBLIC:
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o700
    before = {name: (tmp_path / name).read_bytes() for name in written(tmp_path)}
    with pytest.raises(KeyFileError, match="not overwritten"):
        key_store.found(tmp_path, founded(), DOMAIN_CA, EAST, cheap())
    assert {name: (tmp_path / name).read_bytes() for name in written(tmp_path)} == before


def test_a_member_has_no_ca_key(tmp_path: Path):
    """It opens as a member does, and names who admits members."""
    key_store.join(tmp_path, membership(WEST, founded()), cheap())
    assert written(tmp_path) == OURS | PUBLIC
    assert key_store.open_site(tmp_path, cheap()).identity.name == "West"
    with pytest.raises(KeyFileError, match="ca.key: only the site that founded this key epoch invites members"):
        key_store.open_domain_ca(tmp_path, cheap())


def test_a_write_that_fails_leaves_nothing(tmp_path: Path):
    """A file where a folder must be stops it, and what was written before is gone."""
    (tmp_path / "trainer").write_text("in the way")
    with pytest.raises(FileExistsError):
        key_store.found(tmp_path, founded(), DOMAIN_CA, EAST, cheap())
    assert written(tmp_path) == {Path("trainer")}


def test_a_frame_domain_has_no_evaluation_key_on_disk(tmp_path: Path):
    """A `more-frame` domain opens as one; its folder has no `domain.eval`, and one that lies there is not ours."""
    site = membership(EAST, founded(scheme="more-frame"))
    key_store.join(tmp_path / "new", site, cheap())
    assert key_store.open_domain(tmp_path / "new", cheap()).card() == site.domain.card()
    assert written(tmp_path / "new") == (OURS | PUBLIC) - {key_store.EVALUATION_KEY}
    (tmp_path / "old" / "trainer").mkdir(parents=True)
    (tmp_path / "old" / key_store.EVALUATION_KEY).write_text("another domain's")
    with pytest.raises(KeyFileError, match="not overwritten"):
        key_store.join(tmp_path / "old", site, cheap())


def test_parts_of_two_sites_do_not_open_together(tmp_path: Path):
    """A certificate of another site, or of another domain, is refused by name."""
    domain = founded()
    for name, site in (
        ("e", membership(EAST, domain)),
        ("w", membership(WEST, domain)),
        ("o", membership(EAST, founded())),
    ):
        key_store.join(tmp_path / name, site, cheap())
    own = (tmp_path / "e" / key_store.CERTIFICATE).read_bytes()
    for other, reason in (("w", "of West is not for the keys of East"), ("o", "is for domain")):
        (tmp_path / "e" / key_store.CERTIFICATE).write_bytes((tmp_path / other / key_store.CERTIFICATE).read_bytes())
        with pytest.raises(KeyFileError, match=reason):
            key_store.open_site(tmp_path / "e", cheap())
    for content in (own[:-2], own.replace(b"East", b"West"), b"\xff", b""):
        (tmp_path / "e" / key_store.CERTIFICATE).write_bytes(content)
        with pytest.raises(KeyFileError, match="site.certificate"):
            key_store.open_site(tmp_path / "e", cheap())


def test_members_are_noted_once_and_are_those_that_were_certified(tmp_path: Path):
    """The issuer's folder lists who got a share, by name; what somebody else put there is refused by name."""
    domain, other = founded(), SiteIdentity("Centre", bytes([7] * 32))
    key_store.found(tmp_path, domain, DOMAIN_CA, EAST, cheap())
    for identity in (WEST, other, WEST):
        key_store.add_member(tmp_path, identity.request(), membership(identity, domain).certificate)
    assert key_store.members(tmp_path) == [other.request(), WEST.request()]
    planted = SiteIdentity("Mallory", bytes([8] * 32)).request()
    (tmp_path / "members" / f"{planted.fingerprint[:16]}.request").write_text(planted.to_json())
    with pytest.raises(KeyFileError, match="cannot read the certificate of a member"):
        key_store.members(tmp_path)
    for certificate in (
        membership(WEST, domain).certificate,
        DomainCA(bytes([9] * 32)).certify(planted, domain.card()),
    ):
        (tmp_path / "members" / f"{planted.fingerprint[:16]}.certificate").write_text(certificate.to_json())
        with pytest.raises(KeyFileError, match="is not a certificate of Mallory by this domain"):
            key_store.members(tmp_path)


def test_a_new_site_has_an_identity_alone(tmp_path: Path):
    """What is public of it is in `site.request`; a second identity is refused."""
    key_store.create_identity(tmp_path, WEST, cheap())
    assert written(tmp_path) == {key_store.SITE_KEY, key_store.REQUEST}
    assert key_store.open_identity(tmp_path, cheap()).seed_bytes() == WEST.seed_bytes()
    with pytest.raises(KeyFileError, match="not overwritten"):
        key_store.create_identity(tmp_path, EAST, cheap())
    with pytest.raises(KeyFileError, match="cannot read the domain key"):
        key_store.open_domain(tmp_path, cheap())


def test_the_formats_stay():
    """Sealed files that their first version wrote open in every version."""
    site = key_store.Site(key_store.unseal((GOLDEN / "domain.key").read_bytes(), cheap(), "key"), EAST, None)
    assert site.domain.card() == DomainCard.load(GOLDEN / "domain.card")
    assert site.domain.matrix().tobytes().hex() == (GOLDEN / "matrix.hex").read_text().strip()
    assert site.domain.pseudonym("patient", "A-17") == (GOLDEN / "pseudonym").read_text().strip()


def test_an_older_key_file_is_refused_by_its_format():
    """Version 1 held the certifying key's secret, too: every member could admit others."""
    with pytest.raises(KeyFileError, match="has format 'fedpp-domain-key-1', this program reads fedpp-domain-key-2"):
        key_store.unseal(b'{"format": "fedpp-domain-key-1"}', cheap(), "key")
