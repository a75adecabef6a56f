"""The sealed key file, and tampering with it."""

import json
from pathlib import Path

import pytest

from fedpp.cipher.evaluation_key import EvaluationKey
from fedpp.cipher.params import DomainCard
from fedpp.errors import KeyFileError
from fedpp.keys import store
from fedpp.keys.domain import KeyDomain

PASSPHRASE = b"correct horse battery"


@pytest.fixture(scope="module")
def sealed() -> bytes:
    return store.seal(KeyDomain(bytes(range(32)), n=3, epoch=4), PASSPHRASE, log2_cost=10)


def test_unseal_inverts_seal(sealed: bytes):
    """The secret, n and epoch come back; the file holds no secret in clear; sealing twice differs."""
    domain = store.unseal(sealed, PASSPHRASE, "key")
    assert (domain.secret_bytes(), domain.n, domain.epoch) == (bytes(range(32)), 3, 4)
    assert bytes(range(32)).hex().encode() not in sealed
    assert store.seal(domain, PASSPHRASE, log2_cost=10) != sealed


def test_wrong_passphrase_is_refused(sealed: bytes):
    """A passphrase that differs in one character does not open."""
    with pytest.raises(KeyFileError, match="wrong passphrase, or the file was altered"):
        store.unseal(sealed, PASSPHRASE[:-1] + b"Y", "key")


def test_every_changed_value_is_refused(sealed: bytes):
    """Two bits of each byte are flipped: unless the values are the same, the file does not open."""
    for position in range(len(sealed) - 1):
        for bit in (0, 5):
            flipped = bytearray(sealed)
            flipped[position] ^= 1 << bit
            if is_same_json(bytes(flipped), sealed):
                continue  # hexadecimal in capitals is the same value
            with pytest.raises(KeyFileError):
                store.unseal(bytes(flipped), PASSPHRASE, "key")


def is_same_json(a: bytes, b: bytes) -> bool:
    try:
        return json.loads(a.lower()) == json.loads(b.lower())
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("field", "value"),
    [("format", "fedpp-domain-key-2"), ("n", 2), ("epoch", 5), ("scrypt", [30, 8, 1]), ("scrypt", [10, 8, 99])],
)
def test_a_changed_header_is_refused(sealed: bytes, field: str, value: object):
    """The header is authenticated, and costs that would exhaust the machine are refused unread."""
    with pytest.raises(KeyFileError):
        store.unseal(json.dumps({**json.loads(sealed), field: value}).encode(), PASSPHRASE, "key")


def test_create_writes_a_folder_that_opens_and_never_overwrites(tmp_path: Path):
    """A domain folder has key, evaluation key and card that fit; modes are private; a second create changes nothing."""
    domain = KeyDomain.generate()
    store.create(tmp_path, domain, PASSPHRASE)
    assert store.open_domain(tmp_path, PASSPHRASE).secret_bytes() == domain.secret_bytes()
    assert EvaluationKey.load(tmp_path / store.EVALUATION_KEY) == domain.evaluation_key()
    assert DomainCard.load(tmp_path / store.CARD) == domain.card()
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in (store.SECRET_KEY, store.EVALUATION_KEY)}
    assert set(modes.values()) == {0o600}
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o700
    before = (tmp_path / store.SECRET_KEY).read_bytes()
    with pytest.raises(KeyFileError, match="not overwritten"):
        store.create(tmp_path, KeyDomain.generate(), PASSPHRASE)
    assert (tmp_path / store.SECRET_KEY).read_bytes() == before


def test_passphrase_files_are_checked(tmp_path: Path):
    """The first line counts; missing, short and readable-by-others files are refused with what to do."""
    path = tmp_path / "passphrase"
    with pytest.raises(KeyFileError, match="cannot read"):
        store.read_passphrase(path)
    path.write_bytes(PASSPHRASE + b"\nsecond line\n")
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        store.read_passphrase(path)
    path.chmod(0o600)
    assert store.read_passphrase(path) == PASSPHRASE
    path.write_bytes(b"short\n")
    with pytest.raises(KeyFileError, match="at least 12"):
        store.read_passphrase(path)
