"""Key material: subkeys, keystreams and sealed secrets, and a base class for objects that must not leak a key."""

import os
from typing import TYPE_CHECKING, ClassVar, NoReturn

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

KEY_BYTES = 32
_NONCE_BYTES = 12


def subkey(key: bytes, *, salt: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """Derive a key for one purpose from another: HKDF-SHA256 (RFC 5869)."""
    from cryptography.hazmat.primitives.hashes import SHA256  # for which --help must not wait
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(key)


def keystream(key: bytes) -> "CipherContext":
    """Return the cipher whose output for zeros is the keystream of a key: AES-256-CTR, its counter from 0.

    A key must serve one stream only, since the difference of two texts under one stream is that of the texts.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # for which --help must not wait

    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()


def seal(key: bytes, content: bytes, bound: bytes) -> bytes:
    """Return a short secret under AES-256-GCM, behind a random nonce of 12 bytes; `bound` is authenticated with it.

    Law: `unseal(key, seal(key, content, bound), bound) == content`.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # for which --help must not wait

    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, content, bound)


def unseal(key: bytes, sealed: bytes, bound: bytes) -> bytes:
    """Return what `seal` sealed; raise `ValueError` if it was altered, or is of another key or binding."""
    from cryptography.exceptions import InvalidTag  # for which --help must not wait
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound)
    except InvalidTag:
        raise ValueError("the authentication tag of sealed bytes does not fit") from None


class Redacted:
    """An object that holds key material: it cannot be printed, pickled or copied by accident."""

    __slots__ = ()

    instead: ClassVar[str]  # what to do in place of pickling or copying

    def public_name(self) -> str:
        """Return what its representation may show."""
        return ""

    def __repr__(self) -> str:
        """Show the public name and nothing of the key."""
        return f"{type(self).__name__}({self.public_name()}<hidden>)"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        raise TypeError(f"{type(self).__name__} holds key material and is not pickled or copied: {self.instead}")
