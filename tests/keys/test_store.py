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
    [
        ("format", "fedpp-domain-key-2"),
        ("scheme", "more-frame"),
        ("n", 2),
        ("epoch", 5),
        ("scrypt", [30, 8, 1]),
        ("scrypt", [10, 8, 99]),
    ],
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


def test_a_frame_domain_has_no_evaluation_key_on_disk(tmp_path: Path):
    """A `more-frame` domain opens as one; its folder has no `domain.eval`, and one that lies there is not ours."""
    domain = KeyDomain.generate(scheme="more-frame")
    store.create(tmp_path / "new", domain, PASSPHRASE)
    opened = store.open_domain(tmp_path / "new", PASSPHRASE)
    assert (opened.secret_bytes(), opened.card()) == (domain.secret_bytes(), domain.card())
    written = {path.relative_to(tmp_path / "new") for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert written == {store.SECRET_KEY, store.AT_REST_KEY, store.CARD}
    (tmp_path / "old" / "trainer").mkdir(parents=True)
    (tmp_path / "old" / store.EVALUATION_KEY).write_text("another domain's")
    with pytest.raises(KeyFileError, match="not overwritten"):
        store.create(tmp_path / "old", domain, PASSPHRASE)


def test_a_key_file_from_before_the_schemes_opens():
    """A key file that names no scheme, as version 0.1 wrote it, is of `more`; none can be made of one that names it."""
    domain = store.unseal(BEFORE_SCHEMES, PASSPHRASE, "key")
    assert (domain.secret_bytes(), domain.scheme, domain.n, domain.epoch) == (bytes(range(32)), "more", 2, 1)
    header = json.loads(store.seal(domain, PASSPHRASE, log2_cost=10))
    del header["scheme"]
    with pytest.raises(KeyFileError, match="altered"):
        store.unseal(json.dumps(header).encode(), PASSPHRASE, "key")


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


# The secret bytes(range(32)), n = 2, epoch 1, as it was sealed before key files named a scheme.
BEFORE_SCHEMES = (
    b'{"epoch": 1, "format": "fedpp-domain-key-1", "n": 2, "nonce": "7c33c669897ad5b3223f4c30", "salt": '
    b'"5bc4ad78a9758439c19c52e27644fdef", "scrypt": [10, 8, 1], "sealed": '
    b'"40a2c733931bc384d57afd6a6792d4d2b74276286496a7d1ccc40ef97aa5bdd0feb7ac90ed025c52e4d0a6d20d468a83"}'
)
