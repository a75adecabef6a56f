"""The key domain: what is derived, and that it does not slip out."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from members import DOMAIN_CA, flips, founded

from fedpp.cipher.domain_card import DomainCard
from fedpp.cipher.evaluation_key import EvaluationKey
from fedpp.errors import ConfigError, KeyFileError
from fedpp.keys.domain_ca import DomainCA
from fedpp.keys.key_domain import KeyDomain


def test_derivation_has_golden_values():
    """The same secret gives the same card, matrix and pseudonyms in every version and on every machine."""
    domain = KeyDomain.of_secret(bytes(range(32)), n=2)
    assert domain.card().fingerprint == GOLDEN_FINGERPRINT
    assert [x.hex() for x in domain.matrix().reshape(-1)] == GOLDEN_MATRIX
    assert domain.pseudonym("patient", "A-17") == GOLDEN_PSEUDONYM


def test_the_frame_forms_derivation_has_golden_values():
    """A `more-frame` domain has the same card in every version, and the same frame keys but for rounding."""
    domain = KeyDomain.of_secret(bytes(range(32)), n=1, scheme="more-frame")
    assert domain.card().fingerprint == GOLDEN_FRAME_FINGERPRINT
    np.testing.assert_allclose(domain.frame_key("patches", 16)[0, :4], GOLDEN_FRAME_KEY, rtol=1e-12)


@given(st.sampled_from(["rows", "patches"]), st.integers(1, 64), st.binary(min_size=32, max_size=32))
@settings(max_examples=30)
def test_frame_keys_are_orthogonal(kind: str, size: int, secret: bytes):
    """K K^T == 1 for any kind, size and secret, and K is the same whenever it is asked for."""
    domain = KeyDomain.of_secret(secret, n=1, scheme="more-frame")
    k = domain.frame_key(kind, size)
    np.testing.assert_allclose(k @ k.T, np.eye(size), atol=1e-13)
    np.testing.assert_array_equal(domain.frame_key(kind, size), k)


def test_frame_keys_mix_all_pixels_and_separate():
    """No entry of K stands out, as in a random rotation; another kind, size, secret or key epoch gives another K."""
    domain = KeyDomain.of_secret(bytes(32), n=1, scheme="more-frame")
    k = domain.frame_key("patches", 64)
    assert np.abs(k).max() < 6 / 64**0.5
    np.testing.assert_allclose(((k * 8) ** 4).mean(), 3.0, atol=0.3)  # kurtosis of a normal entry
    others = [
        domain.frame_key("rows", 64),
        domain.frame_key("patches", 65)[:64, :64],
        KeyDomain.of_secret(bytes(31) + b"\1", n=1, scheme="more-frame").frame_key("patches", 64),
        KeyDomain.of_secret(bytes(32), n=1, key_epoch=2, scheme="more-frame").frame_key("patches", 64),
    ]
    for other in others:
        assert abs(np.corrcoef(k.reshape(-1), other.reshape(-1))[0, 1]) < 0.1


def test_a_frame_domain_gives_the_trainer_no_key(domain: KeyDomain):
    """It has plain numbers for rows and no evaluation key; a domain of rows has no frame key."""
    frame = founded(scheme="more-frame")
    assert (frame.scheme, frame.n, frame.card().scheme, frame.card().n) == ("more-frame", 1, "more-frame", 1)
    np.testing.assert_array_equal(frame.matrix(), [[1.0]])
    with pytest.raises(ConfigError, match="no evaluation key"):
        frame.evaluation_key()
    with pytest.raises(ConfigError, match="no frame key"):
        domain.frame_key("patches", 16)
    assert (domain.scheme, founded().n, founded(n=3).n) == ("more", 2, 3)


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_matrix_is_well_conditioned(n: int):
    """R has a condition of at most 10, for any secret."""
    for number in range(20):
        assert np.linalg.cond(KeyDomain.of_secret(bytes([number] * 32), n=n).matrix()) <= 10


def test_secrets_key_epochs_and_purposes_separate():
    """Another secret, key epoch, number of slots or kind of pseudonym gives unrelated values."""
    domains = [
        KeyDomain.of_secret(bytes(32), n=2),
        KeyDomain.of_secret(bytes(31) + b"\1", n=2),
        KeyDomain.of_secret(bytes(32), n=2, key_epoch=2),
        KeyDomain.of_secret(bytes(32), n=3),
    ]
    assert len({d.card().fingerprint for d in domains}) == 4
    assert len({d.pseudonym("patient", "x") for d in domains} | {domains[0].pseudonym("sequence", "x")}) == 5
    assert domains[0].derive("a") != domains[0].derive("b")
    assert len({d.initial_seed(seed) for d in domains for seed in (0, 1)}) == 8


def test_keys_do_not_slip_out(domain: KeyDomain):
    """Neither key can be printed, pickled or copied; its repr holds no key material."""
    for key in (domain, domain.evaluation_key(), domain.at_rest_key()):
        shown = f"{key!r} {key!s}"
        assert domain.secret_bytes().hex() not in shown
        assert domain.derive("at rest").hex() not in shown
        for value in domain.matrix().reshape(-1):
            assert f"{value:.6f}"[:8] not in shown
        for leak in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="not pickled or copied"):
                leak(key)
        with pytest.raises(TypeError):
            vars(key)


def test_evaluation_key_survives_its_file(tmp_path, domain: KeyDomain):
    """A saved key is read back equal, has mode 0600, is never overwritten, and holds no secret of the domain."""
    key, path = domain.evaluation_key(), tmp_path / "trainer" / "domain.eval"
    key.save(path)
    assert EvaluationKey.load(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert domain.secret_bytes().hex() not in path.read_text()
    with pytest.raises(FileExistsError):
        key.save(path)
    path.write_text(path.read_text().replace("fedpp-evaluation-key-1", "fedpp-evaluation-key-9"))
    with pytest.raises(KeyFileError, match="keygen"):
        EvaluationKey.load(path)


def test_a_changed_card_is_refused(tmp_path, domain: KeyDomain):
    """A card round-trips, and any changed field breaks its fingerprint."""
    card = domain.card()
    assert DomainCard.from_json(card.to_json()) == card
    for field, other in (("key_epoch", 2), ("n", 3), ("id", "0" * 32), ("ca_key", "0" * 64)):
        text = card.to_json().replace(
            f'"{field}": {json_value(getattr(card, field))}', f'"{field}": {json_value(other)}'
        )
        assert text != card.to_json()
        with pytest.raises(KeyFileError, match="altered"):
            DomainCard.from_json(text)
    with pytest.raises(KeyFileError, match="cannot read"):
        DomainCard.load(tmp_path / "none")


def test_a_card_of_an_unknown_scheme_is_refused():
    """A whole card of a scheme that this program does not know is refused by name, and one of either scheme is read."""
    for scheme in ("more", "more-frame"):
        card = founded(scheme=scheme).card()
        assert DomainCard.from_json(card.to_json()) == card
    later = replace(card, scheme="more-later")
    with pytest.raises(KeyFileError, match="'more-later'.*knows more, more-frame"):
        DomainCard.from_json(later.to_json())


def test_every_changed_byte_of_a_card_is_refused(domain: KeyDomain):
    """Two bits of each byte are flipped, white space among them: no other text is read as a card."""
    for flip in flips(domain.card().to_json().encode()):
        with pytest.raises(KeyFileError, match="domain card"):
            DomainCard.from_json(flip.content.decode("latin-1"))


@pytest.mark.parametrize(
    "change", [{"key_epoch": 0}, {"key_epoch": "1"}, {"n": True}, {"id": "A" * 32}, {"ca_key": "0"}]
)
def test_a_card_with_values_of_another_kind_is_refused(domain: KeyDomain, change: dict[str, object]):
    """A card with a valid fingerprint is refused if a value has the wrong type or range."""
    with pytest.raises(KeyFileError, match="not a domain card"):
        DomainCard.from_json(replace(domain.card(), **change).to_json())


def test_founded_domains_are_independent_of_their_ca_key():
    """Two domains of one CA have nothing else in common; what members have does not give the CA key."""
    first, second = founded(), founded()
    assert first.card().ca_key == second.card().ca_key == DOMAIN_CA.public_key
    assert len({first.card().id, second.card().id, first.derive("a"), second.derive("a")}) == 4
    assert DomainCA(first.ca_seed()).public_key != DOMAIN_CA.public_key
    assert DomainCA(KeyDomain.of_secret(bytes(32), n=2).ca_seed()).public_key == (
        KeyDomain.of_secret(bytes(32), n=2).card().ca_key
    )


def test_a_successor_is_the_next_key_epoch_under_an_independent_secret():
    """Id, scheme and n stay; all derived keys are new, except for the splits' pseudonyms."""
    old = founded()
    new, other = old.successor("1" * 64), old.successor("1" * 64)
    assert replace(new.card(), key_epoch=1, ca_key=DOMAIN_CA.public_key) == old.card()
    assert (new.key_epoch, new.card().ca_key) == (2, "1" * 64)
    assert (
        len({d.derive("at rest") for d in (old, new, other)} | {d.matrix().tobytes() for d in (old, new, other)}) == 6
    )
    assert new.pseudonym("split", "x") == old.pseudonym("split", "x")
    assert old.secret_bytes()[:32] not in new.secret_bytes()
    again = KeyDomain.from_secret_bytes(new.secret_bytes(), new.card())
    assert again.pseudonym("patient", "x") == new.pseudonym("patient", "x")


@given(st.text(max_size=20), st.sampled_from(["patient", "sequence"]))
@settings(max_examples=20)
def test_a_pseudonym_is_renewed_without_its_identifier(identifier: str, kind: str):
    """Law: any earlier key epoch's pseudonym gives the new one's; epochs and successors differ."""
    first = KeyDomain.of_secret(bytes(range(32)), n=2)
    second = first.successor("1" * 64)
    third = second.successor("2" * 64)
    for old in (first, second, third):
        assert third.renewed(kind, old.pseudonym(kind, identifier), old.key_epoch) == third.pseudonym(kind, identifier)
    assert len({d.pseudonym(kind, identifier) for d in (first, second, third)}) == 3
    assert second.pseudonym(kind, identifier) != first.successor("1" * 64).pseudonym(kind, identifier)
    with pytest.raises(ConfigError, match="epoch 2 of a domain does not follow key epoch 3"):
        second.renewed(kind, "0" * 32, 3)


def test_former_pseudonym_keys_must_be_whole():
    """A secret of another size, or with keys of more key epochs than there were, is refused."""
    card = founded().card()
    for content in (bytes(31), bytes(33), bytes(32 + 96)):
        with pytest.raises(ConfigError, match=r"a domain secret has|cannot have the pseudonym keys"):
            KeyDomain.from_secret_bytes(content, card)


def json_value(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


@pytest.mark.parametrize(
    ("secret", "n", "scheme"),
    [
        (bytes(31), 2, "more"),
        (bytes(32), 1, "more"),
        (bytes(32), 9, "more"),
        (bytes(32), 2, "more-frame"),
        (bytes(32), 2, "more-later"),
    ],
)
def test_bad_domains_are_refused(secret: bytes, n: int, scheme: str):
    """A short secret, a number of slots out of range, or an unknown scheme is a ConfigError."""
    with pytest.raises(ConfigError, match="domain"):
        KeyDomain.of_secret(secret, n=n, scheme=scheme)


GOLDEN_FINGERPRINT = "59efe55622ad57e71857f80eaafe5d2cd14f7bbbb2941a963b0ac3113400391f"
GOLDEN_MATRIX = ["-0x1.e6921af766596p-1", "-0x1.5e8c1e2917690p-3", "0x1.4951ac3f734a8p-1", "-0x1.e33156a5ad438p-3"]
GOLDEN_PSEUDONYM = "bb19bffcc5b5cdb6767a4224749d1556"
GOLDEN_FRAME_FINGERPRINT = "6209c91a0a5dbbc9cb8ef2e6b0c6564d20c8f3b19ead3e76a97ef396e72a561d"
GOLDEN_FRAME_KEY = [-0.24846901835318547, -0.0008031277464161178, 0.37221425225203886, 0.29434015429279903]
