"""Sealed states: whole or refused, in any blocks, and for their own domain alone."""

import copy
import json
import pickle

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from members import flips, founded

from fedpp.errors import DomainMismatchError, MaskError
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.sealed_state import RECORD_BYTES, Envelope, is_sealed

ENVELOPE = Envelope("ab" * 32, bytes(32))
GOLDEN = ROOT / "tests" / "vectors" / "sealed-state-1"


def sealed(content: bytes, about: str = "it") -> bytes:
    return b"".join(ENVELOPE.close(about, [content]))


def opened(content: bytes, envelope: Envelope = ENVELOPE) -> tuple[str, bytes]:
    about, records = envelope.open([content])
    return about, b"".join(records)


@given(st.lists(st.binary(max_size=40)), st.text(), st.integers(1, 50))
def test_open_inverts_close(blocks: list[bytes], about: str, size: int):
    """In whatever blocks it was closed, and comes back."""
    closed = b"".join(ENVELOPE.close(about, blocks))
    parts = [closed[start : start + size] for start in range(0, len(closed), size)]
    told, records = ENVELOPE.open([b"", *parts, b""])
    assert (told, b"".join(records)) == (about, b"".join(blocks))


@pytest.mark.parametrize("size", [0, RECORD_BYTES - 1, RECORD_BYTES, RECORD_BYTES + 1, 2 * RECORD_BYTES + 7])
def test_records_end_anywhere(size: int):
    """Contents of no, one and several records open to what they were."""
    content = bytes(range(251)) * (size // 251 + 1)
    assert opened(sealed(content[:size])) == ("it", content[:size])


def test_what_is_sealed_is_known_by_its_first_line():
    """Of any domain, and cut anywhere behind that line; a text, or a record, that has the format in it is not."""
    header, end, records = sealed(b"a", "round \u00e9").partition(b"\n")
    for content in (header + end + records, header + end, b"".join(Envelope("cd" * 32, bytes(32)).close("", []))):
        assert is_sealed(content)
    facts = json.loads(header)
    others = [{**facts, "format": "fedpp-sealed-2"}, {**facts, "more": "facts"}, {**facts, "salt": 1}, [facts]]
    lines = [json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + end for value in others]
    for content in (b"", header, b" " + header + end, header + b" " + end, end + header + end, *lines):
        assert not is_sealed(content)


def test_every_changed_byte_is_refused():
    """Two bits of each byte are flipped, and the end is cut anywhere: nothing opens to something else."""
    closed = sealed(b"the global model", "round 1")
    cut = [closed[:length] for length in range(len(closed))]
    for content in (*(flip.content for flip in flips(closed)), *cut, closed + b"\0"):
        with pytest.raises((MaskError, DomainMismatchError)):
            opened(content)


def test_records_keep_their_places():
    """Of three records none can be left out, moved, or be the last of another file."""
    content = b"a" * RECORD_BYTES + b"b" * RECORD_BYTES + b"c"
    header, _, rest = sealed(content).partition(b"\n")
    full = 4 + RECORD_BYTES + 16
    first, second, third = rest[:full], rest[full : 2 * full], rest[2 * full :]
    other = sealed(content).partition(b"\n")[2]
    for records in (
        (first, second),
        (first, third),
        (second, first, third),
        (first, second, third, third),
        (first, second, other[2 * full :]),
    ):
        with pytest.raises(MaskError, match="no sealed state, or it was altered"):
            opened(header + b"\n" + b"".join(records))


def test_the_same_content_is_sealed_anew_each_time():
    """Two sealed forms of one content have salt and bytes of their own, and none of the content's bytes in a row."""
    content = b"w" * 64
    one, other = sealed(content), sealed(content)
    assert one.partition(b"\n")[2] != other.partition(b"\n")[2]
    assert json.loads(one.partition(b"\n")[0])["salt"] != json.loads(other.partition(b"\n")[0])["salt"]
    assert b"wwww" not in one


def test_another_domain_or_epoch_does_not_open_it():
    """It is refused by the domain's name; and a forged name does not help."""
    domain = founded()
    own, later = domain.envelope(), domain.successor("cd" * 32).envelope()
    closed = b"".join(own.close("it", [b"state"]))
    with pytest.raises(DomainMismatchError, match="belongs to domain"):
        later.open([closed])
    fingerprint = domain.card().fingerprint
    same_name = Envelope(fingerprint, bytes(32))
    with pytest.raises(MaskError, match="altered"):
        opened(closed, same_name)


def test_the_format_stays():
    """What version 1 sealed opens in every version."""
    domain = KeyDomain.of_secret(bytes(range(32)), n=2)
    assert opened((GOLDEN / "state.sealed").read_bytes(), domain.envelope()) == ("round 3", b"a golden state")


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"[]\n", b"x" * 20_000, b"\xff\n", b'{"about": 1}\n'])
def test_what_is_none_is_refused(content: bytes):
    """Whatever comes, the answer is one line."""
    with pytest.raises(MaskError, match="no sealed state"):
        opened(content)


def test_an_envelope_does_not_slip_out():
    """It cannot be printed, pickled or copied."""
    assert bytes(32).hex() not in repr(ENVELOPE)
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds a key"):
            leak(ENVELOPE)
