"""The key domain: one 32-byte secret, and everything that is derived from it.

Derivation is HKDF-SHA256 (RFC 5869) with one label a purpose. R is drawn from its bytes directly, not from
a library's random stream, so that every site gets the same R from the same secret, whatever its NumPy.

A domain of the scheme `more` has R `[n, n]`. One of the scheme `more-frame` has an orthogonal key for frames instead,
n = 1 and no evaluation key: its trainer works on mixed frames, with plain weights and labels.
"""

import hmac
import secrets
from typing import NoReturn, Self

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedpp.cipher.algebra import Matrix
from fedpp.cipher.at_rest import AtRestKey
from fedpp.cipher.evaluation_key import AnyKey, EvaluationKey, PlainNumbers
from fedpp.cipher.params import MAX_CONDITION, SCHEMES, DomainCard, Scheme
from fedpp.errors import ConfigError

SECRET_BYTES = 32
_SALT = b"fedpp key domain 1"
_SUMMED = 12  # uniform words in one nearly normal number


class KeyDomain:
    """The domain secret; cannot be printed, copied or pickled by accident, and never leaves the secret zone."""

    __slots__ = ("_derived", "_epoch", "_n", "_scheme", "_secret")

    def __init__(self, secret: bytes, *, n: int, epoch: int, scheme: Scheme = "more") -> None:
        """Hold a 32-byte secret for ciphertexts of n slots, of which the scheme `more-frame` has one."""
        if len(secret) != SECRET_BYTES:
            raise ConfigError(f"a domain secret has {SECRET_BYTES} bytes, got {len(secret)}")
        if scheme not in SCHEMES:
            raise ConfigError(f"a domain's scheme is one of {', '.join(SCHEMES)}, got {scheme!r:.40}")
        if scheme == "more" and not 2 <= n <= 8:
            raise ConfigError(f"a domain has 2 to 8 slots, got n = {n}")
        if scheme == "more-frame" and n != 1:
            raise ConfigError(f"a domain of the scheme more-frame has one slot, got n = {n}: leave n out")
        self._secret = secret
        self._n = n
        self._epoch = epoch
        self._scheme = scheme
        self._derived: dict[tuple[str, int], bytes] = {}

    @classmethod
    def generate(cls, *, n: int | None = None, scheme: Scheme = "more") -> Self:
        """Draw a new, independent secret from the operating system; by default of 2 slots, or of the frame form's 1."""
        slots = {"more": 2, "more-frame": 1}[scheme] if n is None else n
        return cls(secrets.token_bytes(SECRET_BYTES), n=slots, epoch=1, scheme=scheme)

    @property
    def n(self) -> int:
        """Return the number of slots."""
        return self._n

    @property
    def scheme(self) -> Scheme:
        """Return the scheme: `more` for rows, `more-frame` for mixed frames."""
        return self._scheme

    def derive(self, label: str, length: int = 32) -> bytes:
        """Return the subkey of a purpose: HKDF-SHA256 of the secret under this label and epoch.

        n tells the schemes apart, too: it is 1 with `more-frame` alone.
        """
        if (label, length) not in self._derived:  # pseudonyms ask for the same one again and again
            info = f"{label}|epoch={self._epoch}|n={self._n}".encode()
            key = HKDF(algorithm=SHA256(), length=length, salt=_SALT, info=info).derive(self._secret)
            self._derived[label, length] = key
        return self._derived[label, length]

    def card(self) -> DomainCard:
        """Return the public card."""
        certifying = Ed25519PrivateKey.from_private_bytes(self.derive("certifying key"))
        public = certifying.public_key().public_bytes_raw().hex()
        return DomainCard(self.derive("id", 16).hex(), self._epoch, self._scheme, self._n, public)

    def matrix(self) -> Matrix:
        """Return R `[n, n]`, uniform in [-1, 1) and redrawn until its condition is at most 10.

        With `more-frame` it is `[[1]]`, whose algebra is that of plain numbers: weights and labels are such.
        """
        if self._scheme == "more-frame":
            return np.ones((1, 1))
        for attempt in range(1000):
            words = np.frombuffer(self.derive(f"matrix {attempt}", 8 * self._n**2), dtype="<u8")
            r: Matrix = ((words >> 11) * 2.0**-52 - 1.0).reshape(self._n, self._n)
            if np.linalg.cond(r) <= MAX_CONDITION:
                return r
        raise ConfigError(f"no matrix of condition {MAX_CONDITION} found for n = {self._n}")

    def frame_key(self, kind: str, size: int) -> Matrix:
        """Return the orthogonal K `[size, size]` by which a `more-frame` domain mixes rows of this kind and size.

        It is Q of the QR decomposition of a nearly normal matrix, with the signs that make R's diagonal positive: that
        Q is unique, so machines agree on it but for rounding. Law: `K K^T == 1`.
        """
        if self._scheme != "more-frame":
            raise ConfigError(f"a domain of the scheme {self._scheme} has no frame key: make one of more-frame")
        # More bytes than HKDF gives. Sums of uniform words are nearly normal, and unlike a logarithm exact everywhere.
        key, zeros = self.derive(f"frame key {kind} {size}"), bytes(2 * _SUMMED * size**2)
        stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(zeros)
        words = np.frombuffer(stream, "<i2").reshape(size, size, _SUMMED)
        q, r = np.linalg.qr((words + 0.5).sum(axis=-1))
        k: Matrix = q * np.sign(np.diag(r))
        return k

    def evaluation_key(self) -> EvaluationKey:
        """Return what the trainer of a member site needs; with `more-frame` that is none, and a `ConfigError`."""
        if self._scheme == "more-frame":
            raise ConfigError("a domain of the scheme more-frame has no evaluation key: its trainer needs none")
        return EvaluationKey(self.card().fingerprint, self.matrix())

    def computing_key(self) -> AnyKey:
        """Return what a trainer computes with: the evaluation key, or with `more-frame` plain numbers."""
        return PlainNumbers(self.card().fingerprint) if self._scheme == "more-frame" else self.evaluation_key()

    def pseudonym(self, kind: str, identifier: str) -> str:
        """Return 32 hex digits for a patient's or sequence's identifier: HMAC-SHA256 under the domain."""
        key = self.derive(f"pseudonym {kind}")
        # A file's name, which an identifier may be, need not be UTF-8.
        return hmac.digest(key, identifier.encode(errors="surrogateescape"), "sha256").hex()[:32]

    def initial_seed(self, seed: int) -> int:
        """Return the seed of a run's initial weights, which nobody outside the domain can tell.

        That keeps the run's seed from telling the weights, and not the key from who sees their rows (docs/threats.md).
        """
        return int.from_bytes(self.derive(f"initial weights {seed}", 8), "little")

    def at_rest_key(self) -> AtRestKey:
        """Return what seals and opens the domain's datasets at rest."""
        return AtRestKey(self.card().fingerprint, self.derive("at rest"))

    def secret_bytes(self) -> bytes:
        """Return the secret itself: for the sealed file alone."""
        return self._secret

    @property
    def epoch(self) -> int:
        """Return the epoch; a rotation draws a new secret and counts it up."""
        return self._epoch

    def __repr__(self) -> str:
        """Name the domain and nothing of its secret."""
        return f"KeyDomain(card={self.card().fingerprint[:16]}, secret=<hidden>)"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        raise TypeError("a key domain is not pickled or copied: seal it with fedpp.keys.store")
