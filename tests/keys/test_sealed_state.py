"""Sealed states: complete or refused, in any blocks, and for their own domain only."""

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
from fedpp.keys.sealed_state import RECORD_BYTES, StateSealer, is_sealed

SEALER = StateSealer("ab" * 32, bytes(32))
GOLDEN = ROOT / "tests" / "vectors" / "sealed-state-1"


def sealed(content: bytes, about: str = "it") -> bytes:
    return b"".join(SEALER.seal(about, [content]))


def unsealed(content: bytes, sealer: StateSealer = SEALER) -> tuple[str, bytes]:
    about, records = sealer.unseal([content])
    return about, b"".join(records)


@given(st.lists(st.binary(max_size=40)), st.text(), st.integers(1, 50))
def test_unseal_inverts_seal(blocks: list[bytes], about: str, size: int):
    """Content comes back, in whatever blocks it is sealed and unsealed."""
    closed = b"".join(SEALER.seal(about, blocks))
    parts = [closed[start : start + size] for start in range(0, len(closed), size)]
    unsealed, records = SEALER.unseal([b"", *parts, b""])
    assert (unsealed, b"".join(records)) == (about, b"".join(blocks))


@pytest.mark.parametrize("size", [0, RECORD_BYTES - 1, RECORD_BYTES, RECORD_BYTES + 1, 2 * RECORD_BYTES + 7])
def test_records_end_anywhere(size: int):
    """Contents of zero, one and several records come back."""
    content = bytes(range(251)) * (size // 251 + 1)
    assert unsealed(sealed(content[:size])) == ("it", content[:size])


def test_a_sealed_state_is_recognised_by_its_first_line():
    """It may be of any domain and end anywhere after that line; other texts with the format in them are not sealed."""
    header, end, records = sealed(b"a", "round \u00e9").partition(b"\n")
    for content in (header + end + records, header + end, b"".join(StateSealer("cd" * 32, bytes(32)).seal("", []))):
        assert is_sealed(content)
    facts = json.loads(header)
    others = [{**facts, "format": "fedpp-sealed-2"}, {**facts, "more": "facts"}, {**facts, "salt": 1}, [facts]]
    lines = [json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + end for value in others]
    for content in (b"", header, b" " + header + end, header + b" " + end, end + header + end, *lines):
        assert not is_sealed(content)


def test_every_changed_byte_is_refused():
    """Two bits of each byte are flipped, and the end is cut anywhere: each is refused."""
    closed = sealed(b"the global model", "round 1")
    cut = [closed[:length] for length in range(len(closed))]
    for content in (*(flip.content for flip in flips(closed)), *cut, closed + b"\0"):
        with pytest.raises((MaskError, DomainMismatchError)):
            unsealed(content)


def test_records_keep_their_places():
    """Of three records none can be removed, moved, or become the last of another file."""
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
        with pytest.raises(MaskError, match="not a sealed state, or it was altered"):
            unsealed(header + b"\n" + b"".join(records))


def test_sealing_twice_differs():
    """One content sealed twice has different salts and bytes, and no run of the content's bytes."""
    content = b"w" * 64
    one, other = sealed(content), sealed(content)
    assert one.partition(b"\n")[2] != other.partition(b"\n")[2]
    assert json.loads(one.partition(b"\n")[0])["salt"] != json.loads(other.partition(b"\n")[0])["salt"]
    assert b"wwww" not in one


def test_another_domain_or_key_epoch_cannot_unseal():
    """It is refused by the domain's name, and by authentication if the name is forged."""
    domain = founded()
    own, later = domain.state_sealer(), domain.successor("cd" * 32).state_sealer()
    closed = b"".join(own.seal("it", [b"state"]))
    with pytest.raises(DomainMismatchError, match="belongs to domain"):
        later.unseal([closed])
    fingerprint = domain.card().fingerprint
    same_name = StateSealer(fingerprint, bytes(32))
    with pytest.raises(MaskError, match="altered"):
        unsealed(closed, same_name)


def test_the_format_stays():
    """What version 1 sealed can be unsealed in every version."""
    domain = KeyDomain.of_secret(bytes(range(32)), n=2)
    assert unsealed((GOLDEN / "state.sealed").read_bytes(), domain.state_sealer()) == ("round 3", b"a golden state")


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"[]\n", b"x" * 20_000, b"\xff\n", b'{"about": 1}\n'])
def test_other_content_is_refused(content: bytes):
    """Any other content is refused in one line."""
    with pytest.raises(MaskError, match="not a sealed state"):
        unsealed(content)


def test_a_state_sealer_does_not_leak():
    """It cannot be printed, pickled or copied."""
    assert bytes(32).hex() not in repr(SEALER)
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled or copied"):
            leak(SEALER)
