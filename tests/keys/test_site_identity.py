"""Site identities, membership requests, and verification phrases."""

import copy
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st
from members import EAST, WEST, flips

from fedpp.cipher.verification_phrase import phrase, same_phrase
from fedpp.errors import ConfigError, KeyFileError
from fedpp.keys.site_identity import MembershipRequest, SiteIdentity
from fedpp.protocol.membership import is_signed

GOLDEN = ROOT / "tests" / "vectors" / "keys-2"


def test_an_identity_has_golden_values():
    """The same seed gives the same membership request, to the byte, in every version."""
    assert EAST.request().to_json() == (GOLDEN / "site.request").read_text()


@given(st.binary(max_size=100), st.sampled_from(["a", "b"]))
def test_a_signature_is_of_one_key_one_purpose_and_one_content(content: bytes, purpose: str):
    """A signature is valid for its own key, purpose and content only."""
    signature = EAST.sign(purpose, content)
    assert is_signed(EAST.signing_key, signature, purpose, content)
    assert not is_signed(WEST.signing_key, signature, purpose, content)
    assert not is_signed(EAST.signing_key, signature, purpose + "c", content)
    assert not is_signed(EAST.signing_key, signature, purpose, content + b"\0")
    assert not is_signed(EAST.signing_key, signature[:-2], purpose, content)
    assert not is_signed("no key", signature, purpose, content)


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_unseal_inverts_seal(secret: bytes, info: bytes):
    """The requesting site gets the secret; another site, other info and altered bytes are refused."""
    sealed = WEST.request().seal(secret, info)
    assert WEST.unseal(sealed, info) == secret
    altered = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for identity, content, about in ((EAST, sealed, info), (WEST, sealed, info + b"\0"), (WEST, altered, info)):
        with pytest.raises(InvalidTag):
            identity.unseal(content, about)


def test_an_identity_does_not_leak():
    """It cannot be printed, pickled or copied."""
    assert EAST.seed_bytes().hex() not in f"{EAST!r} {EAST!s} {EAST.request()!r}"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled or copied"):
            leak(EAST)


@pytest.mark.parametrize("name", ["", " East", "Ea\nst", "E" * 201, "Ea\u202est"])
def test_names_that_mislead_are_refused(name: str):
    """A name is shown in reports and on terminals, so it is printable and not padded."""
    with pytest.raises(ConfigError, match="a site's name is"):
        SiteIdentity(name, bytes(32))


def test_every_changed_byte_of_a_request_is_refused():
    """Two bits of each byte are flipped: each file is refused."""
    for flip in flips(EAST.request().to_json().encode()):
        with pytest.raises(KeyFileError, match="^it "):
            MembershipRequest.from_json(flip.content.decode("latin-1"), "it")


def test_a_request_with_exchanged_keys_is_refused():
    """An attacker who exchanges one key cannot sign for the other."""
    for change in ({"receiving_key": WEST.receiving_key}, {"signing_key": WEST.signing_key}, {"site": "West"}):
        with pytest.raises(KeyFileError, match="it was altered"):
            MembershipRequest.from_json(replace(EAST.request(), **change).to_json(), "it")


def test_a_missing_request_is_named(tmp_path: Path):
    """The error names the file."""
    with pytest.raises(KeyFileError, match="cannot read the membership request .*none"):
        MembershipRequest.load(tmp_path / "none")


def test_phrases_are_proquints():
    """The published examples: 127.0.0.1 is lusab-babad, 63.84.220.193 gutih-tugad."""
    assert phrase("7f0000013f54dcc17f00") == "lusab-babad-gutih-tugad-lusab"


@given(st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_phrases_tell_fingerprints_apart(first: bytes, second: bytes):
    """Equal phrases mean equal fingerprints, whatever their case and separators."""
    assert (phrase(first.hex()) == phrase(second.hex())) == (first == second)
    expected = phrase(first.hex())
    assert same_phrase(expected.upper().replace("-", "  "), expected)
    assert same_phrase(phrase(second.hex()), expected) == (first == second)
    assert not same_phrase("", expected)
