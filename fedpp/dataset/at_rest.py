"""Encryption at rest: authenticated encryption of a dataset's records against theft of a disk (AES-256-GCM).

The key is derived from the domain secret and stored beside the evaluation key, because the trainer reads datasets. It
protects a dataset that is copied, backed up or stolen without that folder.
"""

import hmac
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedpp.cipher.key_file import KeyInFile
from fedpp.errors import KeyFileError
from fedpp.key_material import KEY_BYTES, subkey

TAG_BYTES = 16  # what sealing adds to a record


class AtRestKey(KeyInFile):
    """The domain's at-rest key."""

    __slots__ = ("_key",)
    file_format = "fedpp-at-rest-key-1"
    kind = "at-rest key"
    usual_name = "trainer/domain.rest"

    def __init__(self, domain: str, key: bytes) -> None:
        """Hold 32 bytes for the domain of this fingerprint."""
        super().__init__(domain)
        if len(key) != KEY_BYTES:
            raise KeyFileError(f"an at-rest key has {KEY_BYTES} bytes, got {len(key)}: restore its file")
        self._key = key

    def sealer(self, salt: bytes) -> "DatasetSealer":
        """Return what seals the records of the dataset with this salt."""
        infos = (b"fedpp dataset records", b"fedpp dataset manifest")
        return DatasetSealer(*(subkey(self._key, salt=salt, info=info) for info in infos))

    def values(self) -> dict[str, Any]:
        """Return the key as JSON has it."""
        return {"key": self._key.hex()}

    @classmethod
    def of_values(cls, domain: str, values: dict[str, Any], path: Path) -> Self:  # noqa: ARG003  the other key's message names it
        """Return the key of what `values` returned; raise `KeyFileError` for another number of bytes."""
        return cls(domain, bytes.fromhex(values["key"]))


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
