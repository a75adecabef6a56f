"""The key domain: one 32-byte secret, and everything that is derived from it.

Derivation is HKDF-SHA256 (RFC 5869) with one label a purpose. R is drawn from its bytes directly, not from
a library's random stream, so that every site gets the same R from the same secret, whatever its NumPy.

A domain of the scheme `more` has R `[n, n]`. One of the scheme `more-frame` has an orthogonal key for frames instead,
n = 1 and no evaluation key: its trainer works on mixed frames, with plain weights and labels.
"""

import hmac
import secrets
from dataclasses import replace
from typing import NoReturn, Self

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedpp.aggregation.masks import MaskKey
from fedpp.cipher.algebra import Matrix
from fedpp.cipher.domain_card import MAX_CONDITION, SCHEMES, DomainCard, Scheme
from fedpp.cipher.evaluation_key import AnyKey, EvaluationKey, PlainNumbers
from fedpp.dataset.at_rest import AtRestKey
from fedpp.errors import ConfigError
from fedpp.keys.sealed_state import Envelope

SECRET_BYTES = 32
PSEUDONYMS = ("patient", "sequence", "split")  # kinds, each with a key of its own
FORMER_BYTES = 32 * len(PSEUDONYMS)  # what later epochs keep of one
_SALT = b"fedpp key domain 1"
_SUMMED = 12  # uniform words in one nearly normal number


class KeyDomain:
    """The domain secret; cannot be printed, copied or pickled by accident, and never leaves the secret zone."""

    __slots__ = ("_card", "_derived", "_former", "_secret")

    def __init__(self, secret: bytes, card: DomainCard, former: tuple[bytes, ...] = ()) -> None:
        """Hold the 32-byte secret of the epoch that the card names, and the pseudonym keys of the epochs before."""
        if len(secret) != SECRET_BYTES:
            raise ConfigError(f"a domain secret has {SECRET_BYTES} bytes, got {len(secret)}")
        if card.scheme not in SCHEMES:
            raise ConfigError(f"a domain's scheme is one of {', '.join(SCHEMES)}, got {card.scheme!r:.40}")
        if card.scheme == "more" and not 2 <= card.n <= 8:
            raise ConfigError(f"a domain has 2 to 8 slots, got n = {card.n}")
        if card.scheme == "more-frame" and card.n != 1:
            raise ConfigError(f"a domain of the scheme more-frame has one slot, got n = {card.n}: leave n out")
        if len(former) > card.epoch - 1 or any(len(keys) != FORMER_BYTES for keys in former):
            raise ConfigError(f"epoch {card.epoch} of a domain cannot have the pseudonym keys of {len(former)} before")
        self._secret, self._card, self._former = secret, card, former
        self._derived: dict[tuple[str, int], bytes] = {}

    @classmethod
    def found(cls, certifying_key: str, *, n: int | None = None, scheme: Scheme = "more") -> Self:
        """Draw a new domain from the operating system, by default of 2 slots, or of the frame form's 1.

        `certifying_key` is the public half, in hex, of the key that says who is a member (`fedpp.keys.domain_ca`).
        """
        slots = {"more": 2, "more-frame": 1}[scheme] if n is None else n
        card = DomainCard(secrets.token_hex(16), 1, scheme, slots, certifying_key)
        return cls(secrets.token_bytes(SECRET_BYTES), card)

    @classmethod
    def of_secret(cls, secret: bytes, *, n: int, epoch: int = 1, scheme: Scheme = "more") -> Self:
        """Return the domain whose card, too, follows from its secret: for simulations, which repeat, and for tests.

        Every member of such a domain can certify others, since `certifying_seed` follows from what members have.
        """
        named = cls(secret, DomainCard("0" * 32, epoch, scheme, n, "0" * 64))
        certifying = Ed25519PrivateKey.from_private_bytes(named.certifying_seed())
        public = certifying.public_key().public_bytes_raw().hex()
        return cls(secret, DomainCard(named.derive("id", 16).hex(), epoch, scheme, n, public))

    def certifying_seed(self) -> bytes:
        """Return the seed of the certifying key of a domain `of_secret`; of any other it certifies nothing."""
        return self.derive("certifying key")

    def successor(self, certifying_key: str) -> "KeyDomain":
        """Draw the domain's next epoch: an independent secret, under the same id, scheme and n.

        It keeps this epoch's pseudonym keys, and no more of its secret: a patient's new pseudonym is made of the old
        one, so that a dataset can be brought into the new epoch without the patient's identifier.
        """
        card = replace(self._card, epoch=self._card.epoch + 1, certifying_key=certifying_key)
        own = b"".join(self.derive(f"pseudonym {kind}") for kind in PSEUDONYMS)
        return KeyDomain(secrets.token_bytes(SECRET_BYTES), card, (*self._former, own))

    @property
    def n(self) -> int:
        """Return the number of slots."""
        return self._card.n

    @property
    def scheme(self) -> Scheme:
        """Return the scheme: `more` for rows, `more-frame` for mixed frames."""
        return self._card.scheme

    def derive(self, label: str, length: int = 32) -> bytes:
        """Return the subkey of a purpose: HKDF-SHA256 of the secret under this label and epoch.

        n tells the schemes apart, too: it is 1 with `more-frame` alone.
        """
        if (label, length) not in self._derived:  # pseudonyms ask for the same one again and again
            info = f"{label}|epoch={self._card.epoch}|n={self._card.n}".encode()
            key = HKDF(algorithm=SHA256(), length=length, salt=_SALT, info=info).derive(self._secret)
            self._derived[label, length] = key
        return self._derived[label, length]

    def card(self) -> DomainCard:
        """Return the public card."""
        return self._card

    def matrix(self) -> Matrix:
        """Return R `[n, n]`, uniform in [-1, 1) and redrawn until its condition is at most 10.

        With `more-frame` it is `[[1]]`, whose algebra is that of plain numbers: weights and labels are such.
        """
        if self._card.scheme == "more-frame":
            return np.ones((1, 1))
        for attempt in range(1000):
            words = np.frombuffer(self.derive(f"matrix {attempt}", 8 * self._card.n**2), dtype="<u8")
            r: Matrix = ((words >> 11) * 2.0**-52 - 1.0).reshape(self._card.n, self._card.n)
            if np.linalg.cond(r) <= MAX_CONDITION:
                return r
        raise ConfigError(f"no matrix of condition {MAX_CONDITION} found for n = {self._card.n}")

    def frame_key(self, kind: str, size: int) -> Matrix:
        """Return the orthogonal K `[size, size]` by which a `more-frame` domain mixes rows of this kind and size.

        It is Q of the QR decomposition of a nearly normal matrix, with the signs that make R's diagonal positive: that
        Q is unique, so machines agree on it but for rounding. Law: `K K^T == 1`.
        """
        if self._card.scheme != "more-frame":
            raise ConfigError(f"a domain of the scheme {self._card.scheme} has no frame key: make one of more-frame")
        # More bytes than HKDF gives. Sums of uniform words are nearly normal, and unlike a logarithm exact everywhere.
        key, zeros = self.derive(f"frame key {kind} {size}"), bytes(2 * _SUMMED * size**2)
        stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(zeros)
        words = np.frombuffer(stream, "<i2").reshape(size, size, _SUMMED)
        q, r = np.linalg.qr((words + 0.5).sum(axis=-1))
        k: Matrix = q * np.sign(np.diag(r))
        return k

    def evaluation_key(self) -> EvaluationKey:
        """Return what the trainer of a member site needs; with `more-frame` that is none, and a `ConfigError`."""
        if self._card.scheme == "more-frame":
            raise ConfigError("a domain of the scheme more-frame has no evaluation key: its trainer needs none")
        return EvaluationKey(self.card().fingerprint, self.matrix())

    def computing_key(self) -> AnyKey:
        """Return what a trainer computes with: the evaluation key, or with `more-frame` plain numbers."""
        return PlainNumbers(self.card().fingerprint) if self._card.scheme == "more-frame" else self.evaluation_key()

    def pseudonym(self, kind: str, identifier: str) -> str:
        """Return 32 hex digits for a patient's or sequence's identifier: HMAC-SHA256 under the domain, epoch by epoch.

        Of the kind `split` the first epoch's stays, so that a rotation moves nobody from one split into another.
        """
        keys = self._pseudonym_keys(kind)
        # A file's name, which an identifier may be, need not be UTF-8.
        return _renamed(keys[:1] if kind == "split" else keys, identifier.encode(errors="surrogateescape"))

    def renewed(self, kind: str, pseudonym: str, epoch: int) -> str:
        """Return this epoch's pseudonym for an earlier epoch's.

        Law: `new.renewed(kind, old.pseudonym(kind, x), old.epoch) == new.pseudonym(kind, x)`.
        """
        if not self.epoch - len(self._former) <= epoch <= self.epoch:
            raise ConfigError(f"epoch {self.epoch} of a domain does not follow on epoch {epoch}")
        keys = self._pseudonym_keys(kind)
        return _renamed(keys[len(keys) - (self.epoch - epoch) :], pseudonym.encode())

    def _pseudonym_keys(self, kind: str) -> list[bytes]:
        """Return a kind's keys, the first epoch's first."""
        start = 32 * PSEUDONYMS.index(kind)
        return [*(keys[start : start + 32] for keys in self._former), self.derive(f"pseudonym {kind}")]

    def initial_seed(self, seed: int) -> int:
        """Return the seed of a run's initial weights, which nobody outside the domain can tell.

        That keeps the run's seed from telling the weights, and not the key from who sees their rows (docs/threats.md).
        """
        return int.from_bytes(self.derive(f"initial weights {seed}", 8), "little")

    def at_rest_key(self) -> AtRestKey:
        """Return what seals and opens the domain's datasets at rest."""
        return AtRestKey(self.card().fingerprint, self.derive("at rest"))

    def mask_key(self) -> MaskKey:
        """Return what masks updates, and unmasks their sums."""
        return MaskKey(self.derive("domain mask"))

    def envelope(self) -> Envelope:
        """Return what seals and opens states of the global model."""
        return Envelope(self.card().fingerprint, self.derive("sealed states"))

    def secret_bytes(self) -> bytes:
        """Return the secret and the former pseudonym keys: for sealed files and shares alone."""
        return b"".join((self._secret, *self._former))

    @classmethod
    def from_secret_bytes(cls, content: bytes, card: DomainCard) -> Self:
        """Return the domain that `secret_bytes` is of; raise `ConfigError` for a wrong size."""
        secret, rest = content[:SECRET_BYTES], content[SECRET_BYTES:]
        former = tuple(rest[start : start + FORMER_BYTES] for start in range(0, len(rest), FORMER_BYTES))
        return cls(secret, card, former)

    @property
    def epoch(self) -> int:
        """Return the epoch; a rotation draws a new secret and counts it up."""
        return self._card.epoch

    def __repr__(self) -> str:
        """Name the domain and nothing of its secret."""
        return f"KeyDomain(card={self.card().fingerprint[:16]}, secret=<hidden>)"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        raise TypeError("a key domain is not pickled or copied: seal it with fedpp.keys.key_store")


def _renamed(keys: list[bytes], name: bytes) -> str:
    for key in keys:
        name = hmac.digest(key, name, "sha256").hex()[:32].encode()
    return name.decode()
