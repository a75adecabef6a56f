"""A site's own identity, its recipient's file, and the words of a fingerprint."""

import copy
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from members import EAST, WEST, flips

from fedpp.cipher.verification_phrase import same, words
from fedpp.errors import ConfigError, KeyFileError
from fedpp.keys.site_identity import MembershipRequest, SiteIdentity
from fedpp.protocol.membership import is_signed

GOLDEN = ROOT / "tests" / "vectors" / "keys-2"


def test_an_identity_has_golden_values():
    """The same seed gives the same recipient's file, to the byte, in every version."""
    assert EAST.recipient().to_json() == (GOLDEN / "site.recipient").read_text()


@given(st.binary(max_size=100), st.sampled_from(["a", "b"]))
def test_a_signature_is_of_one_key_one_purpose_and_one_content(content: bytes, purpose: str):
    """What was signed verifies, and nothing else does."""
    signature = EAST.sign(purpose, content)
    assert is_signed(EAST.signing_key, signature, purpose, content)
    assert not is_signed(WEST.signing_key, signature, purpose, content)
    assert not is_signed(EAST.signing_key, signature, purpose + "c", content)
    assert not is_signed(EAST.signing_key, signature, purpose, content + b"\0")
    assert not is_signed(EAST.signing_key, signature[:-2], purpose, content)
    assert not is_signed("no key", signature, purpose, content)


def test_two_sites_agree_on_a_secret():
    """Each computes it of its own seed and the other's public key; a third has another."""
    assert EAST.agree(WEST.receiving_key) == WEST.agree(EAST.receiving_key)
    third = SiteIdentity("West", bytes([4] * 32))
    assert third.agree(EAST.receiving_key) != WEST.agree(EAST.receiving_key)


def test_an_identity_does_not_slip_out():
    """It cannot be printed, pickled or copied."""
    assert EAST.seed_bytes().hex() not in f"{EAST!r} {EAST!s} {EAST.recipient()!r}"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled or copied"):
            leak(EAST)


@pytest.mark.parametrize("name", ["", " East", "Ea\nst", "E" * 201, "Ea\u202est"])
def test_names_that_mislead_are_refused(name: str):
    """A name is shown in reports and on terminals: it is printable, and not padded."""
    with pytest.raises(ConfigError, match="a site's name is"):
        SiteIdentity(name, bytes(32))


def test_every_changed_byte_of_a_recipient_is_refused():
    """Two bits of each byte are flipped: no other file is read as a recipient."""
    for flip in flips(EAST.recipient().to_json().encode()):
        with pytest.raises(KeyFileError, match="^it "):
            MembershipRequest.from_json(flip.content.decode("latin-1"), "it")


def test_a_recipient_with_exchanged_keys_is_refused():
    """Who exchanges one key for his own cannot sign for the other."""
    for change in ({"receiving_key": WEST.receiving_key}, {"signing_key": WEST.signing_key}, {"site": "West"}):
        with pytest.raises(KeyFileError, match="it was altered"):
            MembershipRequest.from_json(replace(EAST.recipient(), **change).to_json(), "it")


def test_a_missing_recipient_is_named(tmp_path: Path):
    """The file that was given is in the error."""
    with pytest.raises(KeyFileError, match="cannot read the recipient .*none"):
        MembershipRequest.load(tmp_path / "none")


def test_words_are_proquints():
    """The published examples: 127.0.0.1 is lusab-babad, 63.84.220.193 gutih-tugad."""
    assert words("7f0000013f54dcc17f00") == "lusab-babad-gutih-tugad-lusab"


@given(st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_words_tell_fingerprints_apart(first: bytes, second: bytes):
    """Equal words are of equal fingerprints, however they are spoken and written."""
    assert (words(first.hex()) == words(second.hex())) == (first == second)
    meant = words(first.hex())
    assert same(meant.upper().replace("-", "  "), meant)
    assert same(words(second.hex()), meant) == (first == second)
    assert not same("", meant)
