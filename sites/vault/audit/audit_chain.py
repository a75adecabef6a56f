"""Audit chain: the signed records that `sites.vault.audit.audit_log` writes, and their verification without a secret.

A log is lines of canonical JSON, numbered from 0. Each has `time`, `number`, `method` and `outcome`, the SHA-256 of the
line before it, newline included, as `previous`, and a `signature` (Ed25519, purpose "audit record") of all the rest.
The first line states the public key. So no line can be changed, removed or moved without the private key. A cut at the
end is found only with a head noted later, the SHA-256 of a last line: `tail -n 1 FILE | sha256sum`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from fedpp.errors import VaultError
from fedpp.protocol.membership import is_signed
from fedpp.values import canonical

PURPOSE = "audit record"
BEGIN = "begin"  # the method of the first line
MAX_LINE_BYTES = 4096
NO_LINE = "0" * 64
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00")

Record = Mapping[str, Any]


class Chain:
    """Verifier of a log's lines in their order, each against all before it."""

    def __init__(self, name: str) -> None:
        """Start before the first line; `name` is for the messages."""
        self.name = name
        self.count, self.head, self.public_key = 0, NO_LINE, ""
        self.first: Record = {}
        self.last: Record = {}

    def take(self, line: bytes, *, signature: bool = True) -> Record:
        """Return the next line's record; raise `VaultError` that names the bad line and its defect.

        Checking the last signature only is enough: it covers all lines before it.
        """
        record = _record(line)
        if record is None:
            raise self._bad("is not a record in canonical form")
        if record["number"] != self.count:
            raise self._bad(f"has number {record['number']}, expected {self.count}: a line is missing or moved")
        if record["previous"] != self.head:
            raise self._bad("does not match the line before it: one of the two was altered")
        if not self.count:
            self.public_key, self.first = str(record.get("public_key")), record
        self.last, self.count, self.head = record, self.count + 1, sha256(line).hexdigest()
        if signature:
            self.require_signature()
        return record

    def require_signature(self) -> None:
        """Raise `VaultError` unless the last line is signed by the log's key."""
        rest = {name: value for name, value in self.last.items() if name != "signature"}
        if self.count and not is_signed(self.public_key, self.last["signature"], PURPOSE, canonical(rest)):
            self.count -= 1
            raise self._bad("has a signature that is not by the log's key")

    def _bad(self, how: str) -> VaultError:
        return VaultError(f"{self.name}: line {self.count + 1} {how}")


def _record(line: bytes) -> Record | None:
    """Return a line's record, or nothing if it is not in canonical form."""
    try:
        record = json.loads(line) if len(line) <= MAX_LINE_BYTES else None
        if not isinstance(record, dict) or canonical(record) + b"\n" != line:
            return None
    except (ValueError, RecursionError):
        return None
    return record if _has_fields(record) else None


def _has_fields(record: Record) -> bool:
    texts = ("time", "method", "outcome", "previous", "signature")
    fits = all(isinstance(record.get(name), str) for name in texts) and type(record.get("number")) is int
    if not fits or not _TIME.fullmatch(record["time"]):
        return False
    is_first: bool = record["number"] == 0
    return (record["method"] == BEGIN) is is_first and isinstance(record.get("public_key"), str) is is_first


@dataclass(frozen=True)
class Verified:
    """Summary of a verified log."""

    records: int
    first: str  # time of the first record
    last: str
    head: str  # SHA-256 of the last line, to note elsewhere
    public_key: str
    after_known_head: int | None = None  # records after the line with the given hash


def verify(
    path: Path, *, public_key: str | None = None, head: str | None = None, heads: Mapping[int, str] = {}
) -> Verified:
    """Check every line of a log; raise `VaultError` that names the first bad one.

    The log must be signed by `public_key`, if one is given, and must hold the line whose hash is `head`, and after so
    many lines as `heads` say those hashes, which peers remember.
    """
    chain, known = Chain(str(path)), None
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                if is_torn(line, file):
                    raise VaultError(f"{path}: line {chain.count + 1} is torn: {len(line)} bytes without a newline")
                chain.take(line)
                if public_key not in {None, chain.public_key}:
                    raise VaultError(f"{path}: line 1 names the key {chain.public_key[:16]}, the site's is another")
                if heads.get(chain.count, chain.head) != chain.head:
                    raise VaultError(f"{path}: line {chain.count} is another than a peer remembers: the log was forked")
                if chain.head == head:
                    known = chain.count
    except OSError as error:
        raise VaultError(
            f"cannot read the audit log {path}: {error.strerror}: name the file of the vault's --audit-log"
        ) from None
    if not chain.count:
        raise VaultError(f"{path}: line 1 is missing: an audit log is never empty")
    if chain.count < max(heads, default=0):
        raise VaultError(f"{path}: it ends at line {chain.count}, and a peer remembers line {max(heads)}: it was cut")
    return Verified(
        chain.count, chain.first["time"], chain.last["time"], chain.head, chain.public_key, _after(chain, head, known)
    )


def is_torn(line: bytes, file: BinaryIO) -> bool:
    """Tell whether a line is the last one and without its newline, as after a loss of power."""
    return not line.endswith(b"\n") and not file.read(1)


def _after(chain: Chain, head: str | None, known: int | None) -> int | None:
    if head is not None and known is None:
        raise VaultError(f"{chain.name}: no line has the hash {head:.64}: the log was cut, or is another one")
    return None if known is None else chain.count - known
