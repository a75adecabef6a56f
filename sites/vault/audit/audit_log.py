"""Audit log of the vault: one signed line a call, on the disk before the call's reply leaves.

`sites.vault.audit.audit_chain` defines its form. Calls that reach no method (an unknown name, a missing message, too
many at once) are not logged, nor are health checks. A cut at the log's end is found only with a head that was noted
elsewhere.
"""

import fcntl
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Self

from fedpp.errors import LogInUseError, VaultError
from fedpp.files import sync_folder
from fedpp.keys.site_identity import SiteIdentity
from fedpp.values import canonical

from .audit_chain import BEGIN, MAX_LINE_BYTES, PURPOSE, Chain, Record, is_torn

MODE = 0o640
LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Signer:
    """Signing key of a log's lines."""

    public_key: str  # Ed25519, hex
    sign: Callable[[bytes], str]  # returns hex

    @classmethod
    def of(cls, identity: SiteIdentity) -> Self:
        """Return the site's identity as a signer."""
        return cls(identity.signing_key, lambda content: identity.sign(PURPOSE, content))


class AuditLog:
    """An open log, locked against other processes.

    The lock is a file beside it, for its owner alone: the log's group may read it, and whoever can open a file can hold
    its lock, and keep a vault from starting.
    """

    def __init__(self, path: Path, descriptor: int, lock: int, signer: Signer) -> None:
        """Keep what `open` checked."""
        self._path, self._file, self._lock, self._signer = path, descriptor, lock, signer
        self._chain = Chain(str(path))
        self._size = self._synced = 0  # bytes written, and bytes of these on the disk
        self._broken, self._failing = "", False
        self._writing, self._syncing = threading.Lock(), threading.Lock()

    @classmethod
    def open(cls, path: Path, signer: Signer, seen: Callable[[Record], None] = lambda _: None) -> Self:
        """Open or create a log, and pass each of its records to `seen`.

        A last line without a newline, as after a loss of power, is cut, and a record states its bytes. Raises
        `VaultError` for any other damage and for a log of another key, `LogInUseError` where another process has it
        open.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
            try:
                lock = os.open(path.with_name(f".{path.name}.lock"), LOCK_FLAGS, 0o600)
            except OSError:
                os.close(descriptor)
                raise
        except OSError as error:
            raise VaultError(f"cannot open the audit log {path}, or its lock beside it: {error.strerror}") from None
        log = cls(path, descriptor, lock, signer)
        try:
            log._begin(seen)
        except BaseException:
            log.close()
            raise
        return log

    @property
    def writable(self) -> bool:
        """Tell whether the last call could be logged."""
        return not self._broken and not self._failing

    @property
    def head(self) -> tuple[int, str]:
        """Return the number of records, and the hash of the newest line."""
        with self._writing:
            return self._chain.count, self._chain.head

    def append(self, facts: Record) -> None:
        """Add number, time and chain to a record, write and sync it; raise `VaultError` if that fails."""
        with self._writing:
            if self._broken:
                raise VaultError(self._broken)
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            record = {**facts, "time": now, "number": self._chain.count, "previous": self._chain.head}
            line = canonical({**record, "signature": self._signer.sign(canonical(record))}) + b"\n"
            self._failing = True
            self._write(line)
            self._failing = False
            self._chain.count, self._chain.head = self._chain.count + 1, sha256(line).hexdigest()
            end = self._size
        with self._syncing:  # the first thread syncs for all that wrote meanwhile
            if self._synced < end and self._broken:  # the system reports a failure once, to the first thread
                raise VaultError(self._broken)
            if self._synced < end:
                written = self._size
                try:
                    os.fdatasync(self._file)
                except OSError as error:
                    self._broken = f"the audit log cannot be written ({error.strerror}): restart the vault"
                    raise VaultError(self._broken) from None
                self._synced = written

    def close(self) -> None:
        """Unlock the log for another vault; calls that still run are refused."""
        with self._writing, self._syncing:
            self._broken = "the audit log is closed: the vault is stopping"
            os.close(self._file)
            os.close(self._lock)

    def _begin(self, seen: Callable[[Record], None]) -> None:
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise VaultError(f"the audit log {self._path} is no file: name one")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LogInUseError(f"another vault writes to the audit log {self._path}: give each its own") from None
        torn = self._read(seen)
        if not self._chain.count:
            os.fchmod(self._file, MODE)
            self.append({"method": BEGIN, "outcome": "started", "public_key": self._signer.public_key})
            sync_folder(self._path.parent)
        elif self._chain.public_key != self._signer.public_key:
            raise VaultError(
                f"the audit log {self._path} is signed by another key, {self._chain.public_key[:16]}, and this vault "
                f"would sign by {self._signer.public_key[:16]}: start a new log"
            )
        if torn:
            self.append({"method": "cut", "outcome": "a last line without a newline was cut", "bytes": torn})

    def _read(self, seen: Callable[[Record], None]) -> int:
        """Check the lines, cut a torn last one, and return its bytes."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                if is_torn(line, file):
                    os.ftruncate(self._file, self._size)
                    return len(line)
                seen(self._chain.take(line, signature=not self._chain.count))
                self._size += len(line)
        self._chain.require_signature()
        return 0

    def _is_at_its_path(self, own: os.stat_result) -> bool:
        try:
            return os.path.samestat(own, os.lstat(self._path))
        except FileNotFoundError:
            return False

    def _require_unaltered(self) -> None:
        own = os.fstat(self._file)
        if own.st_size != self._size:
            self._broken = f"the audit log {self._path} was altered by another program: restart the vault"
        elif not self._is_at_its_path(own):
            self._broken = f"the audit log {self._path} was moved or replaced: put it back, and restart the vault"
        if self._broken:
            raise VaultError(self._broken)

    def _write(self, line: bytes) -> None:
        """Write a line, or leave the file as it was."""
        if len(line) > MAX_LINE_BYTES:
            raise VaultError(f"a record of {len(line)} bytes is too long for the audit log")
        try:
            self._require_unaltered()
            written, reason = os.write(self._file, line), "no space for a whole line"
        except OSError as error:
            written, reason = 0, error.strerror or str(error)
        if written != len(line):
            try:
                os.ftruncate(self._file, self._size)
            except OSError as error:
                self._broken = (
                    f"the audit log has an incomplete line, which cannot be cut ({error.strerror}): restart the vault"
                )
            raise VaultError(f"the audit log cannot be written ({reason}): all calls are refused until it can")
        self._size += written
