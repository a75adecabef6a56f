"""Containers: what is read is what was written, and everything else is refused."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpp import container
from fedpp.container import DIGEST_BYTES, parts, read, unpack

FORMAT, FACTS, CONTENT = (
    "fedpp-test-1",
    {"round": 3, "names": ["a", "b"], "rate": 0.1},
    (b"some", memoryview(b"\nmore")),
)
WHOLE = b"".join(parts(FORMAT, FACTS, *CONTENT))
HEADER_BYTES = len(container.head(FORMAT, FACTS))


@pytest.fixture(params=["memory", "file"])
def opened(request: pytest.FixtureRequest, tmp_path: Path):
    """Return a reader of bytes: from memory, or by way of a file."""

    def from_memory(content: bytes, format_: str = FORMAT, **limits: int) -> tuple[container.Facts, bytes]:
        facts, view = unpack(format_, content, **limits)
        return facts, bytes(view)

    def from_file(content: bytes, format_: str = FORMAT, **limits: int) -> tuple[container.Facts, bytes]:
        (tmp_path / "it").write_bytes(content)
        with (tmp_path / "it").open("rb") as file:
            return read(format_, file, **limits)

    return from_memory if request.param == "memory" else from_file


facts = st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False) | st.lists(st.booleans()))


@given(facts, st.lists(st.binary()))
def test_what_is_read_is_what_was_written(given_facts: container.Facts, content: list[bytes]):
    """For any facts and content, facts and joined content come back; the same values are the same bytes."""
    whole = b"".join(parts(FORMAT, given_facts, *content))
    read_facts, view = unpack(FORMAT, whole)
    assert (read_facts, bytes(view)) == (given_facts, b"".join(content))
    assert b"".join(parts(FORMAT, dict(reversed(given_facts.items())), b"".join(content))) == whole


def test_a_container_has_its_documented_layout(opened):
    """Magic line, header line, content and digest stand in this order."""
    magic, header, rest = WHOLE.split(b"\n", 2)
    assert (magic, header) == (b"fedpp-test-1", b'{"names":["a","b"],"rate":0.1,"round":3}')
    assert rest[:-DIGEST_BYTES] == b"some\nmore"
    assert opened(WHOLE) == (FACTS, b"some\nmore")


def test_every_flipped_byte_is_refused(opened):
    """A flipped bit of magic, header, content or digest is refused."""
    for place in range(len(WHOLE)):
        for bit in (1, 32, 128):
            with pytest.raises(ValueError, match=r"it has the format|it is damaged"):
                opened(WHOLE[:place] + bytes([WHOLE[place] ^ bit]) + WHOLE[place + 1 :])


def test_a_truncated_or_longer_container_is_refused(opened):
    """Cut at any place, or followed by anything, it is damaged."""
    for content in (*(WHOLE[:length] for length in range(len(WHOLE))), WHOLE + b"\0", WHOLE + WHOLE):
        with pytest.raises(ValueError, match=r"it has the format|it is damaged"):
            opened(content)


@pytest.mark.parametrize("format_", ["fedpp-test-2", "fedpp-test-10", "fedpp-test-", "fedpp-state-1", "", "x" * 500])
def test_another_format_or_version_is_named(opened, format_: str):
    """A whole container of another kind or version is refused by its format, whatever the length of that."""
    other = b"".join(parts(format_, FACTS, *CONTENT))
    with pytest.raises(ValueError, match=f"it has the format '{format_[:40]}.*, this program reads fedpp-test-1"):
        opened(other)


@pytest.mark.parametrize(
    "header",
    [b'{"a": 1}', b'{"b":1,"a":1}', b'{"a":1,"a":1}', b"[]", b"7", b"", b"{", b'{"a":1.0e0}', b"[" * 10**5, b"\xff{}"],
)
def test_a_header_has_one_text(opened, header: bytes):
    """A header that is no object, or is written in another way, is damaged, even with a digest that fits."""
    begin = FORMAT.encode() + b"\n" + header + b"\n"
    forged = begin + container.sha256(begin).digest()
    with pytest.raises(ValueError, match=r"its header is not a line of canonical JSON"):
        opened(forged)


def test_a_header_is_read_up_to_a_limit(opened):
    """A longer header than the reader allows is refused; one of that length is read."""
    length = HEADER_BYTES - len(FORMAT) - 1
    assert opened(WHOLE, max_header=length) == (FACTS, b"some\nmore")
    with pytest.raises(ValueError, match="its header is not"):
        opened(WHOLE, max_header=length - 1)


def test_content_is_a_view():
    """Neither writing nor reading copies the content."""
    content = bytearray(b"some")
    assert list(parts(FORMAT, FACTS, memoryview(content)))[1].obj is content
    whole = bytearray(b"".join(parts(FORMAT, FACTS, content)))
    view = unpack(FORMAT, whole)[1]
    whole[HEADER_BYTES] ^= 1
    assert view[0] == content[0] ^ 1


def test_content_of_other_facts_is_not_read(tmp_path: Path):
    """A file whose header has not the wanted facts is refused before its content is read."""
    path = tmp_path / "it"
    path.write_bytes(WHOLE)
    with path.open("rb") as file:
        assert read(FORMAT, file, {"round": 3}) == (FACTS, b"some\nmore")
    for wanted in ({"round": 4}, {"other": 3}):
        with path.open("rb", buffering=0) as file:
            buffered = io.BufferedReader(file, HEADER_BYTES)
            with pytest.raises(LookupError, match="other facts"):
                read(FORMAT, buffered, wanted)
            assert buffered.tell() == HEADER_BYTES
