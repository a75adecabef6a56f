r"""Container format: a magic line, a header of facts, raw bytes, and a digest that detects damage.

::

    fedpp-state-1\n    magic: the name of the format, and its version
    {"round":3,...}\n  header: one line of canonical JSON
    ...                content
    32 bytes           SHA-256 of everything before

One value has one text: a header that is written in another way is damaged. The digest detects accidents, not attackers.
Content is never copied: it is written from, and read as, views of the buffers it lives in.
"""

import json
import os
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, BinaryIO

from fedpp.values import canonical

Content = bytes | memoryview
Facts = dict[str, Any]

DIGEST_BYTES = 32
MAX_HEADER = 2**20  # bytes, unless a reader allows more


def parts(format_: str, facts: Mapping[str, Any], *content: Content) -> Iterator[Content]:
    """Yield the parts of a container, to be joined or written one after another.

    Law: `unpack(format_, b"".join(parts(format_, facts, *content)))` is `facts` and the joined content.
    """
    digest = sha256()
    for part in (head(format_, facts), *content):
        digest.update(part)
        yield part
    yield digest.digest()


def head(format_: str, facts: Mapping[str, Any]) -> bytes:
    """Return the magic line and the header."""
    return format_.encode() + b"\n" + canonical(facts) + b"\n"


def unpack(format_: str, container: Content, max_header: int = MAX_HEADER) -> tuple[Facts, memoryview]:
    """Return the facts and a view of the content; raise `ValueError` for a damaged container or another format."""
    view = memoryview(container)
    begin, size, end, most = b"", 0, -1, len(format_) + 1 + max_header
    while end < 0 and size < most:  # a header is seldom as long as it may be: no megabyte is copied for it
        size = min(max(2 * size, 2**12), most)
        begin = bytes(view[:size])
        end = begin.find(b"\n", begin.find(b"\n") + 1)
    facts, start = _facts(format_, begin[: end + 1 or None])
    if len(view) < start + DIGEST_BYTES or sha256(view[:-DIGEST_BYTES]).digest() != view[-DIGEST_BYTES:]:
        raise ValueError("it is damaged: its digest does not fit")
    return facts, view[start:-DIGEST_BYTES]


def read(
    format_: str, file: BinaryIO, wanted: Mapping[str, Any] | None = None, max_header: int = MAX_HEADER
) -> tuple[Facts, bytes]:
    """Return the facts and the content of an open file; raise `ValueError` as `unpack` does.

    With `wanted`, the content is read only if the header has these facts; otherwise `LookupError` is raised.
    """
    begin = file.readline(64)
    begin += file.readline(max_header)
    facts, start = _facts(format_, begin)
    if wanted is not None and not wanted.items() <= facts.items():
        raise LookupError("its header has other facts")
    content = file.read(max(0, os.fstat(file.fileno()).st_size - start - DIGEST_BYTES))
    digest = sha256(begin)
    digest.update(content)
    if file.read() != digest.digest():
        raise ValueError("it is damaged: its digest does not fit")
    return facts, content


def _facts(format_: str, begin: bytes) -> tuple[Facts, int]:
    """Return the facts in a magic line and header, and their length."""
    magic, _, header = begin.partition(b"\n")
    if magic != format_.encode():
        raise ValueError(f"it has the format {magic[:40].decode(errors='replace')!r}, this program reads {format_}")
    try:
        facts = json.loads(header)
        whole = isinstance(facts, dict) and head(format_, facts) == begin
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise ValueError("it is damaged: its header is not a line of canonical JSON")
    return facts, len(begin)
