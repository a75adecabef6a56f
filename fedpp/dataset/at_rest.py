"""Authenticated encryption of a dataset at rest, against the thief of a disk: AES-256-GCM, sequence by sequence.

The key is derived from the domain secret and lies beside the evaluation key: the trainer, which reads datasets,
must have it. It protects a dataset that is copied, backed up or stolen without that folder.
"""

import hmac
from pathlib import Path
from typing import NoReturn, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedpp.cipher import key_file
from fedpp.errors import KeyFileError
from fedpp.files import create_exclusively

FORMAT = "fedpp-at-rest-key-1"
KEY_BYTES = 32
TAG_BYTES = 16  # what sealing adds to a record


class AtRestKey:
    """The domain's at-rest key; cannot be printed, copied or pickled by accident."""

    __slots__ = ("_domain", "_key")

    def __init__(self, domain: str, key: bytes) -> None:
        """Hold 32 bytes for the domain of this fingerprint."""
        if len(key) != KEY_BYTES:
            raise KeyFileError(f"an at-rest key has {KEY_BYTES} bytes, got {len(key)}: restore its file")
        self._domain, self._key = domain, key

    @property
    def domain(self) -> str:
        """Return the domain's fingerprint."""
        return self._domain

    def seal(self, salt: bytes) -> "Seal":
        """Return the seal of the dataset that has this salt."""
        return Seal(self._subkey(salt, "records"), self._subkey(salt, "manifest"))

    def content(self) -> bytes:
        """Return the key file's content, in clear."""
        return key_file.text(FORMAT, {"domain": self._domain, "key": self._key.hex()})

    def save(self, path: Path) -> None:
        """Write the key in clear to a new file of mode 0600; raise `FileExistsError` if it is there already."""
        create_exclusively(path, self.content())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key file; raise `KeyFileError` if it is missing, damaged or of another format."""
        return key_file.read(
            path,
            FORMAT,
            lambda content: cls(str(content["domain"]), bytes.fromhex(content["key"])),
            "at-rest key",
            "trainer/domain.rest",
        )

    def _subkey(self, salt: bytes, purpose: str) -> bytes:
        info = f"fedpp dataset {purpose}".encode()
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(self._key)

    def __repr__(self) -> str:
        """Name the domain and nothing of the key."""
        return f"AtRestKey(domain={self._domain[:16]}, key=<hidden>)"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        raise TypeError("an at-rest key is not pickled or copied: save() it to a file of its own")


class Seal:
    """Seals and opens the records of one dataset, each in its own place: another place or dataset does not open it."""

    def __init__(self, records: bytes, manifest: bytes) -> None:
        """Hold the two subkeys of one dataset, whose salt no other has."""
        self._cipher, self._manifest = AESGCM(records), manifest

    def close(self, kind: str, index: int, record: bytes) -> bytes:
        """Return a record sealed, 16 bytes longer. Law: `open(k, i, close(k, i, r)) == r`."""
        return self._cipher.encrypt(_nonce(kind, index), record, None)

    def open(self, kind: str, index: int, sealed: bytes) -> bytes | None:
        """Return a record in clear, or None if it was not sealed so, here, or for this place."""
        try:
            return self._cipher.decrypt(_nonce(kind, index), sealed, None)
        except InvalidTag:
            return None

    def tag(self, manifest: bytes) -> str:
        """Return 64 hex digits that only a holder of the key can make for a manifest."""
        return hmac.digest(self._manifest, manifest, "sha256").hex()


def _nonce(kind: str, index: int) -> bytes:
    """Return 12 bytes that no other record of the dataset has; the key is the dataset's own."""
    return kind[:4].encode().ljust(4, b"\0") + index.to_bytes(8, "little")
