"""Encryption at rest: authenticated encryption of a dataset's records against theft of a disk (AES-256-GCM).

The key is derived from the domain secret and stored beside the evaluation key, because the trainer reads datasets. It
protects a dataset that is copied, backed up or stolen without that folder.
"""

import hmac
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedpp.cipher import key_file
from fedpp.errors import KeyFileError
from fedpp.files import create_exclusively
from fedpp.key_material import KEY_BYTES, Redacted, subkey

FORMAT = "fedpp-at-rest-key-1"
TAG_BYTES = 16  # what sealing adds to a record


class AtRestKey(Redacted):
    """The domain's at-rest key."""

    __slots__ = ("_domain", "_key")
    instead = "save() it to a file of its own"

    def __init__(self, domain: str, key: bytes) -> None:
        """Hold 32 bytes for the domain of this fingerprint."""
        if len(key) != KEY_BYTES:
            raise KeyFileError(f"an at-rest key has {KEY_BYTES} bytes, got {len(key)}: restore its file")
        self._domain, self._key = domain, key

    @property
    def domain(self) -> str:
        """Return the domain's fingerprint."""
        return self._domain

    def sealer(self, salt: bytes) -> "DatasetSealer":
        """Return what seals the records of the dataset with this salt."""
        infos = (b"fedpp dataset records", b"fedpp dataset manifest")
        return DatasetSealer(*(subkey(self._key, salt=salt, info=info) for info in infos))

    def content(self) -> bytes:
        """Return the key file's content, in clear."""
        return key_file.text(FORMAT, {"domain": self._domain, "key": self._key.hex()})

    def save(self, path: Path) -> None:
        """Write the key in clear to a new file of mode 0600; raise `FileExistsError` if the file exists."""
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

    def public_name(self) -> str:
        """Return the start of the domain's fingerprint."""
        return f"domain={self._domain[:16]}, "


class DatasetSealer:
    """Seals and unseals the records of one dataset, each bound to its kind and index in this dataset."""

    def __init__(self, records: bytes, manifest: bytes) -> None:
        """Hold the two subkeys of one dataset; its salt is unique."""
        self._cipher, self._manifest = AESGCM(records), manifest

    def seal(self, kind: str, index: int, record: bytes) -> bytes:
        """Seal a record; the result is 16 bytes longer. Law: `unseal(k, i, seal(k, i, r)) == r`."""
        return self._cipher.encrypt(_nonce(kind, index), record, None)

    def unseal(self, kind: str, index: int, sealed: bytes) -> bytes | None:
        """Return a record in clear, or None if it was altered or sealed for another dataset, kind or index."""
        try:
            return self._cipher.decrypt(_nonce(kind, index), sealed, None)
        except InvalidTag:
            return None

    def tag(self, manifest: bytes) -> str:
        """Return the HMAC-SHA256 of a manifest, 64 hex digits that only a holder of the key can compute."""
        return hmac.digest(self._manifest, manifest, "sha256").hex()


def _nonce(kind: str, index: int) -> bytes:
    """Return 12 bytes, unique to the record within the dataset; the key is unique to the dataset."""
    return kind[:4].encode().ljust(4, b"\0") + index.to_bytes(8, "little")
