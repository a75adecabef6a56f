r"""Sealed states: global states encrypted under a domain key while they are stored at the coordinator.

::

    {"about":...,"domain":...,"format":"fedpp-sealed-1","salt":...}\n     one line of canonical JSON, in clear
    records: length (4 bytes, little-endian), AES-256-GCM of at most 1 MiB

The key is HKDF-SHA256 of the domain's sealing key under the file's random salt, bound to the whole first line. A
record's nonce is its number and whether it is the last: records cannot be moved, removed or cut off. Both directions
stream, a record at a time.
"""

import json
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedpp.errors import DomainMismatchError, MaskError
from fedpp.key_material import Redacted, subkey
from fedpp.values import canonical

FORMAT = "fedpp-sealed-1"
RECORD_BYTES = 2**20
_TAG_BYTES, _LENGTH_BYTES, _SALT_BYTES = 16, 4, 32
_LONGEST_HEADER = 2**14


def is_sealed(content: bytes) -> bool:
    """Tell whether content begins with the first line of a sealed state, of any domain, complete or not."""
    line, end, _ = content[:_LONGEST_HEADER].partition(b"\n")
    return _facts(line + end) is not None


class StateSealer(Redacted):
    """Seals and unseals the states of one key epoch of one domain."""

    __slots__ = ("_domain", "_key")
    instead = "derive it from the domain"

    def __init__(self, domain: str, key: bytes) -> None:
        """Hold the sealing key of the domain of this fingerprint."""
        self._domain, self._key = domain, key

    def seal(self, about: str, content: Iterable[bytes]) -> Iterator[bytes]:
        """Yield sealed bytes of a content; `about` is authenticated and stays in clear.

        Law: `unseal(seal(about, content))` is `about` and the content.
        """
        salt = secrets.token_hex(_SALT_BYTES)
        header = canonical({"about": about, "domain": self._domain, "format": FORMAT, "salt": salt}) + b"\n"
        cipher = self._cipher(header, salt)
        yield header
        for number, (record, last) in enumerate(_records(content)):
            sealed = cipher.encrypt(_nonce(number, last=last), record, None)
            yield len(sealed).to_bytes(_LENGTH_BYTES, "little") + sealed

    def unseal(self, blocks: Iterable[bytes]) -> tuple[str, Iterator[bytes]]:
        """Return `about` and the content of sealed bytes; raise `MaskError` where anything was changed.

        The end is checked when it is reached: until then the content is authentic, but may be incomplete.
        """
        reader = _Reader(blocks)
        header = reader.line()
        facts = _facts(header)
        if facts is None:
            raise _damaged("its first line is missing or another")
        about, domain, salt = facts
        if domain != self._domain:
            raise DomainMismatchError(
                f"the sealed state belongs to domain {domain[:16]}, this vault to {self._domain[:16]}: "
                "use a state of this domain and key epoch"
            )
        return about, self._contents(self._cipher(header, salt), reader)

    def _contents(self, cipher: AESGCM, reader: "_Reader") -> Iterator[bytes]:
        number, last = 0, False
        while not last:
            length = int.from_bytes(reader.exactly(_LENGTH_BYTES), "little")
            if not _TAG_BYTES <= length <= RECORD_BYTES + _TAG_BYTES:
                raise _damaged(f"record {number} has {length} bytes")
            sealed = reader.exactly(length)
            last = reader.at_end()
            try:
                yield cipher.decrypt(_nonce(number, last=last), sealed, None)
            except InvalidTag:
                raise _damaged(f"record {number} was altered, or a record is missing") from None
            number += 1

    def _cipher(self, header: bytes, salt: str) -> AESGCM:
        return AESGCM(subkey(self._key, salt=salt.encode(), info=header))

    def public_name(self) -> str:
        """Return the start of the domain's fingerprint."""
        return f"domain={self._domain[:16]}, "


def _facts(header: bytes) -> tuple[str, str, str] | None:
    """Return `about`, domain and salt of a first line, or None if it is not one."""
    try:
        values: Any = json.loads(header)
        about, domain, salt = values["about"], values["domain"], values["salt"]
        whole = canonical({"about": about, "domain": domain, "format": FORMAT, "salt": salt}) + b"\n" == header
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return (about, domain, salt) if whole and all(isinstance(text, str) for text in (about, domain, salt)) else None


class _Reader:
    """Bytes that arrive in blocks, read by length."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks, self._held = iter(blocks), bytearray()

    def line(self) -> bytes:
        while (end := self._held.find(b"\n")) < 0:
            if len(self._held) > _LONGEST_HEADER or not self._more():
                raise _damaged("its first line is missing or another")
        return self._take(end + 1)

    def exactly(self, length: int) -> bytes:
        while len(self._held) < length:
            if not self._more():
                raise _damaged("its end is missing")
        return self._take(length)

    def at_end(self) -> bool:
        return not self._held and not self._more()

    def _more(self) -> bool:
        for block in self._blocks:
            if block:
                self._held += block
                return True
        return False

    def _take(self, length: int) -> bytes:
        taken = bytes(self._held[:length])
        del self._held[:length]
        return taken


def _records(content: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield records of one size; the last may be shorter, or empty."""
    held = bytearray()
    for block in content:
        held += block
        while len(held) > RECORD_BYTES:
            yield bytes(held[:RECORD_BYTES]), False
            del held[:RECORD_BYTES]
    yield bytes(held), True


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(8, "little") + int(last).to_bytes(4, "little")


def _damaged(how: str) -> MaskError:
    return MaskError(f"not a sealed state, or it was altered: {how}; get it from the coordinator again")
