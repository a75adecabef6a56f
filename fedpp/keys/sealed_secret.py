"""Sealed secret files: a secret encrypted under a passphrase with scrypt and AES-256-GCM.

A sealed file is one line of canonical JSON: its format, public facts, the parameters of the encryption, and the sealed
secret. All but the secret is authenticated as associated data, and only the canonical text is read: a file with any
changed byte is refused.
"""

import json
import secrets
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fedpp.errors import KeyFileError
from fedpp.key_material import Redacted
from fedpp.values import canonical

# RFC 7914; 2^17 x 8 needs 128 MiB and about 0.4 s, the interactive profile of OWASP's password storage page.
LOG2_COST, BLOCK_SIZE, PARALLELISM = 17, 8, 1
SALT_BYTES, NONCE_BYTES = 16, 12
_MIN_COST, _MAX_COST = 10, 20  # 2^20 x 8 is 1 GiB


class Passphrase(Redacted):
    """A passphrase, and the keys that scrypt derived from it."""

    __slots__ = ("_keys", "_log2_cost", "_salt", "_text")
    instead = "read it again"

    def __init__(self, text: bytes, *, log2_cost: int | None = None) -> None:
        """Hold the passphrase; each guess at what it seals costs 2^log2_cost, and all it seals shares one salt."""
        self._text, self._log2_cost = text, LOG2_COST if log2_cost is None else log2_cost
        self._salt = secrets.token_bytes(SALT_BYTES)
        self._keys: dict[tuple[bytes, int], bytes] = {}

    def seal(self, format_: str, facts: Mapping[str, Any], secret: bytes) -> bytes:
        """Return the content of a sealed file."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        scrypt = [self._log2_cost, BLOCK_SIZE, PARALLELISM]
        header = {"format": format_, **facts, "scrypt": scrypt, "salt": self._salt.hex(), "nonce": nonce.hex()}
        key = self._key(self._salt, self._log2_cost)
        sealed = AESGCM(key).encrypt(nonce, secret, canonical(header))
        return canonical({**header, "sealed": sealed.hex()}) + b"\n"

    def unseal(self, format_: str, content: bytes, name: str) -> tuple[dict[str, Any], bytes]:
        """Return the facts and the secret of a sealed file; raise `KeyFileError` for any other or changed one.

        Law: `unseal(f, seal(f, facts, secret)) == (facts, secret)`. `name` is for the message.
        """
        try:
            header = json.loads(content)
            if header["format"] != format_:
                raise KeyFileError(f"{name} has format {header['format']!r:.40}, this program reads {format_}")
            sealed = bytes.fromhex(header["sealed"])
            if canonical({**header, "sealed": sealed.hex()}) + b"\n" != content:
                raise KeyFileError(f"{name} was altered: it is not written in the form of a {format_} file; restore it")
            del header["sealed"]
            log2_cost, *rest = header["scrypt"]
            if not (_MIN_COST <= log2_cost <= _MAX_COST and rest == [BLOCK_SIZE, PARALLELISM]):
                raise KeyFileError(
                    f"{name} has scrypt parameters {header['scrypt']!r:.40}, out of range: it is damaged"
                )
            salt, nonce = bytes.fromhex(header["salt"]), bytes.fromhex(header["nonce"])
            if (len(salt), len(nonce)) != (SALT_BYTES, NONCE_BYTES):
                raise KeyFileError(f"{name} is damaged: not a {format_} file")
            secret = AESGCM(self._key(salt, log2_cost)).decrypt(nonce, sealed, canonical(header))
        except InvalidTag:
            raise KeyFileError(f"{name} cannot be decrypted: wrong passphrase, or the file was altered") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise KeyFileError(f"{name} is damaged: not a {format_} file") from None
        facts = {k: v for k, v in header.items() if k not in {"format", "scrypt", "salt", "nonce"}}
        return facts, secret

    def _key(self, salt: bytes, log2_cost: int) -> bytes:
        if (salt, log2_cost) not in self._keys:  # a command opens several files of one folder
            scrypt = Scrypt(salt=salt, length=32, n=2**log2_cost, r=BLOCK_SIZE, p=PARALLELISM)
            self._keys[salt, log2_cost] = scrypt.derive(self._text)
        return self._keys[salt, log2_cost]
