"""Secret files sealed under a passphrase, and tampering with them."""

import copy
import json
import pickle

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from members import SECRET_WORDS, cheap, flips

from fedpp.errors import KeyFileError
from fedpp.keys.sealed_secret import Passphrase

FORMAT, FACTS, SECRET = "a-format-1", {"site": "East"}, bytes(range(32))


@pytest.fixture(scope="module")
def sealed() -> bytes:
    return cheap().seal(FORMAT, FACTS, SECRET)


@given(st.dictionaries(st.sampled_from(["site", "n"]), st.text() | st.integers(0, 9)), st.binary(max_size=300))
def test_unseal_inverts_seal(facts: dict[str, object], secret: bytes):
    """Facts and secret come back, and no secret of eight bytes or more appears in the file."""
    content = cheap().seal(FORMAT, facts, secret)
    assert cheap().unseal(FORMAT, content, "key") == (facts, secret)
    assert len(secret) < 8 or secret.hex().encode() not in content


def test_sealing_twice_differs(sealed: bytes):
    """Salt and nonce are drawn anew."""
    assert cheap().seal(FORMAT, FACTS, SECRET) != sealed
    passphrase = cheap()
    assert passphrase.seal(FORMAT, FACTS, SECRET) != passphrase.seal(FORMAT, FACTS, SECRET)


def test_wrong_passphrase_is_refused(sealed: bytes):
    """A passphrase that differs in one character is refused."""
    with pytest.raises(KeyFileError, match="^key cannot be decrypted: wrong passphrase, or the file was altered$"):
        cheap(SECRET_WORDS[:-1] + b"Y").unseal(FORMAT, sealed, "key")


def test_every_changed_byte_is_refused(sealed: bytes):
    """Two bits of each byte are flipped, including those that only change the case of a digit: each is refused."""
    for flip in flips(sealed):
        with pytest.raises(KeyFileError, match="^key "):
            cheap().unseal(FORMAT, flip.content, "key")


def test_every_cut_is_refused(sealed: bytes):
    """A file that is cut or longer is refused."""
    for content in (*(sealed[:end] for end in range(len(sealed))), sealed + b"\n"):
        with pytest.raises(KeyFileError, match="^key "):
            cheap().unseal(FORMAT, content, "key")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("format", "a-format-2", "has format 'a-format-2', this program reads a-format-1"),
        ("site", "West", "was altered|cannot be decrypted"),
        ("scrypt", [30, 8, 1], "has scrypt parameters"),
        ("scrypt", [10, 8, 99], "has scrypt parameters"),
        ("scrypt", 10, "is damaged"),
        ("salt", "00", "is damaged"),
    ],
)
def test_a_changed_header_is_refused(sealed: bytes, field: str, value: object, reason: str):
    """The header is authenticated, and costs that would exhaust the machine are refused before scrypt runs."""
    values = {**json.loads(sealed), field: value}
    content = json.dumps(values, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    with pytest.raises(KeyFileError, match=reason):
        cheap().unseal(FORMAT, content, "key")


def test_the_format_stays():
    """A file that version 1 of the format wrote can be unsealed in every version."""
    golden = (ROOT / "tests" / "vectors" / "keys-2" / "site.key").read_bytes()
    assert cheap().unseal("fedpp-site-key-1", golden, "key") == ({"site": "East"}, bytes([1] * 32))


def test_a_passphrase_does_not_leak():
    """It cannot be printed, pickled or copied."""
    passphrase = Passphrase(SECRET_WORDS)
    assert SECRET_WORDS.decode() not in f"{passphrase!r} {passphrase!s}"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled or copied"):
            leak(passphrase)
