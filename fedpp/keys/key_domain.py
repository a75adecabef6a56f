"""Key domain: one 32-byte secret, and every key that is derived from it.

Each key is HKDF-SHA256 (RFC 5869) of the secret under a label for its purpose. R is computed from derived bytes
directly, not with a library's random generator, so every site gets the same R whatever its NumPy version.

A domain of the scheme `more` has R `[n, n]`. One of the scheme `more-frame` (orthogonal frame mixing) has an orthogonal
key for frames instead, n = 1 and no evaluation key: its trainer works on mixed frames, with plain weights and labels.
"""

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedpp.cipher.algebra import Matrix
from fedpp.cipher.domain_card import MAX_CONDITION, SCHEMES, DomainCard, Scheme
from fedpp.cipher.evaluation_key import AnyKey, EvaluationKey, PlainNumbers
from fedpp.dataset.at_rest import AtRestKey
from fedpp.errors import ConfigError
from fedpp.key_material import KEY_BYTES, Redacted, subkey
from fedpp.keys.sealed_state import StateSealer
from fedpp.values import canonical

SECRET_BYTES = 32
PSEUDONYMS = ("patient", "sequence", "split")  # kinds, each with a key of its own
FORMER_BYTES = KEY_BYTES * len(PSEUDONYMS)  # pseudonym keys that later key epochs keep of one
_SALT = b"fedpp key domain 1"
_SUMMED = 12  # uniform integers in one nearly normal number


class KeyDomain(Redacted):
    """The domain secret of one key epoch; it never leaves the secret zone."""

    __slots__ = ("_card", "_derived", "_former", "_secret")
    instead = "seal it with fedpp.keys.key_store"

    def __init__(self, secret: bytes, card: DomainCard, former: tuple[bytes, ...] = ()) -> None:
        """Hold the 32-byte secret of the key epoch that the card names, and the pseudonym keys of the epochs before."""
        if len(secret) != SECRET_BYTES:
            raise ConfigError(f"a domain secret has {SECRET_BYTES} bytes, got {len(secret)}")
        if card.scheme not in SCHEMES:
            raise ConfigError(f"a domain's scheme is one of {', '.join(SCHEMES)}, got {card.scheme!r:.40}")
        if card.scheme == "more" and not 2 <= card.n <= 8:
            raise ConfigError(f"a domain has 2 to 8 slots, got n = {card.n}")
        if card.scheme == "more-frame" and card.n != 1:
            raise ConfigError(f"a domain of the scheme more-frame has one slot, got n = {card.n}: omit n")
        if len(former) > card.key_epoch - 1 or any(len(keys) != FORMER_BYTES for keys in former):
            raise ConfigError(
                f"key epoch {card.key_epoch} cannot have the pseudonym keys of {len(former)} epochs before it"
            )
        self._secret, self._card, self._former = secret, card, former
        self._derived: dict[tuple[str, int], bytes] = {}

    @classmethod
    def found(cls, ca_key: str, *, n: int | None = None, scheme: Scheme = "more") -> Self:
        """Draw a new domain from the operating system; by default it has 2 slots, and 1 with `more-frame`.

        `ca_key` is the public half, in hex, of the CA key (`fedpp.keys.domain_ca`).
        """
        slots = {"more": 2, "more-frame": 1}[scheme] if n is None else n
        card = DomainCard(secrets.token_hex(16), 1, scheme, slots, ca_key)
        return cls(secrets.token_bytes(SECRET_BYTES), card)

    @classmethod
    def of_secret(cls, secret: bytes, *, n: int, key_epoch: int = 1, scheme: Scheme = "more") -> Self:
        """Return the domain whose card, too, is derived from its secret, for reproducible simulations and for tests.

        Every member of such a domain can certify others, since `ca_seed` is derived from the secret that members have.
        """
        named = cls(secret, DomainCard("0" * 32, key_epoch, scheme, n, "0" * 64))
        public = Ed25519PrivateKey.from_private_bytes(named.ca_seed()).public_key().public_bytes_raw().hex()
        return cls(secret, DomainCard(named.derive("id", 16).hex(), key_epoch, scheme, n, public))

    def ca_seed(self) -> bytes:
        """Return the seed of the CA key of a domain `of_secret`; for other domains it certifies nothing."""
        return self.derive("CA key")

    def successor(self, ca_key: str) -> "KeyDomain":
        """Draw the domain's next key epoch: an independent secret, under the same id, scheme and n.

        It keeps this epoch's pseudonym keys and nothing else of its secret: a patient's new pseudonym is computed from
        the old one, so a dataset can be re-encrypted without the patient's identifier.
        """
        card = replace(self._card, key_epoch=self._card.key_epoch + 1, ca_key=ca_key)
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
        """Return the key for a purpose: HKDF-SHA256 of the secret under this label and the key epoch.

        n tells the schemes apart, too: it is 1 only with `more-frame`.
        """
        if (label, length) not in self._derived:  # pseudonyms need the same one thousands of times
            info = f"{label}|epoch={self._card.key_epoch}|n={self._card.n}".encode()
            self._derived[label, length] = subkey(self._secret, salt=_SALT, info=info, length=length)
        return self._derived[label, length]

    def card(self) -> DomainCard:
        """Return the public card."""
        return self._card

    def matrix(self) -> Matrix:
        """Return R `[n, n]`, uniform in [-1, 1) and redrawn until its condition is at most 10.

        With `more-frame` it is `[[1]]`, whose algebra is that of plain numbers, since weights and labels are plain.
        """
        if self._card.scheme == "more-frame":
            return np.ones((1, 1))
        for draw in range(1000):
            integers = np.frombuffer(self.derive(f"matrix {draw}", 8 * self._card.n**2), dtype="<u8")
            r: Matrix = ((integers >> 11) * 2.0**-52 - 1.0).reshape(self._card.n, self._card.n)
            if np.linalg.cond(r) <= MAX_CONDITION:
                return r
        raise ConfigError(f"no matrix of condition {MAX_CONDITION} found for n = {self._card.n}")

    def frame_key(self, kind: str, size: int) -> Matrix:
        """Return the orthogonal K `[size, size]` with which a `more-frame` domain mixes rows of this kind and size.

        It is Q of the QR decomposition of a nearly normal matrix, with the signs that make R's diagonal positive: that
        Q is unique, so machines agree on it up to rounding. Law: `K K^T == 1`.
        """
        if self._card.scheme != "more-frame":
            raise ConfigError(f"a domain of the scheme {self._card.scheme} has no frame key: use one of more-frame")
        # More bytes than HKDF gives. Sums of uniform integers are nearly normal and, unlike logarithms, always exact.
        key, zeros = self.derive(f"frame key {kind} {size}"), bytes(2 * _SUMMED * size**2)
        stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(zeros)
        integers = np.frombuffer(stream, "<i2").reshape(size, size, _SUMMED)
        q, r = np.linalg.qr((integers + 0.5).sum(axis=-1))
        k: Matrix = q * np.sign(np.diag(r))
        return k

    def evaluation_key(self) -> EvaluationKey:
        """Return the key that a member site's trainer needs; with `more-frame` there is none: raise `ConfigError`."""
        if self._card.scheme == "more-frame":
            raise ConfigError("a domain of the scheme more-frame has no evaluation key: its trainer needs none")
        return EvaluationKey(self.card().fingerprint, self.matrix())

    def computing_key(self) -> AnyKey:
        """Return what the trainer computes with: the evaluation key, or plain numbers with `more-frame`."""
        return PlainNumbers(self.card().fingerprint) if self._card.scheme == "more-frame" else self.evaluation_key()

    def pseudonym(self, kind: str, identifier: str) -> str:
        """Return 32 hex digits for a patient's or sequence's identifier: HMAC-SHA256 with each key epoch's key in turn.

        The kind `split` uses the first epoch's key only, so a rotation does not move patients between splits.
        """
        keys = self._pseudonym_keys(kind)
        # An identifier may be a file name, which need not be UTF-8.
        return _renamed(keys[:1] if kind == "split" else keys, identifier.encode(errors="surrogateescape"))

    def renewed(self, kind: str, pseudonym: str, key_epoch: int) -> str:
        """Return this key epoch's pseudonym for an earlier one's.

        Law: `new.renewed(kind, old.pseudonym(kind, x), old.key_epoch) == new.pseudonym(kind, x)`.
        """
        if not self.key_epoch - len(self._former) <= key_epoch <= self.key_epoch:
            raise ConfigError(f"key epoch {self.key_epoch} of a domain does not follow key epoch {key_epoch}")
        keys = self._pseudonym_keys(kind)
        return _renamed(keys[len(keys) - (self.key_epoch - key_epoch) :], pseudonym.encode())

    def _pseudonym_keys(self, kind: str) -> list[bytes]:
        """Return a kind's keys, the first key epoch's first."""
        start = KEY_BYTES * PSEUDONYMS.index(kind)
        return [*(keys[start : start + KEY_BYTES] for keys in self._former), self.derive(f"pseudonym {kind}")]

    def initial_seed(self, seed: int) -> int:
        """Return the seed of a run's initial weights, which nobody outside the domain can compute.

        The run's seed then does not reveal the weights; whoever sees their rows can still find the key
        (docs/explanation/threats.md).
        """
        return int.from_bytes(self.derive(f"initial weights {seed}", 8), "little")

    def run_seed(self, contract: str, coins: Sequence[str]) -> int:
        """Return the seed of a masked run's initial weights, from its contract's digest and all members' coins.

        No member decides it alone, and nobody outside the domain can compute it.
        """
        return int.from_bytes(self._drawn(b"seed|", contract, coins, 8), "little")

    def run_salt(self, contract: str, coins: Sequence[str]) -> str:
        """Return the salt of a masked run's first state, in hex, so that its digest confirms no guess of the rows."""
        return self._drawn(b"salt|", contract, coins, 32).hex()

    def _drawn(self, what: bytes, contract: str, coins: Sequence[str], length: int) -> bytes:
        info = what + canonical({"coins": list(coins)})
        return subkey(self.derive("run initial weights"), salt=contract.encode(), info=info, length=length)

    def at_rest_key(self) -> AtRestKey:
        """Return the key that seals and unseals the domain's datasets at rest."""
        return AtRestKey(self.card().fingerprint, self.derive("at rest"))

    def state_sealer(self) -> StateSealer:
        """Return what seals and unseals states of the global model."""
        return StateSealer(self.card().fingerprint, self.derive("sealed states"))

    def secret_bytes(self) -> bytes:
        """Return the secret and the former pseudonym keys, for sealed files and invitations only."""
        return b"".join((self._secret, *self._former))

    @classmethod
    def from_secret_bytes(cls, content: bytes, card: DomainCard) -> Self:
        """Return the domain whose `secret_bytes` this is; raise `ConfigError` for a wrong size."""
        secret, rest = content[:SECRET_BYTES], content[SECRET_BYTES:]
        former = tuple(rest[start : start + FORMER_BYTES] for start in range(0, len(rest), FORMER_BYTES))
        return cls(secret, card, former)

    @property
    def key_epoch(self) -> int:
        """Return the key epoch, from 1; a rotation draws a new secret and increments it."""
        return self._card.key_epoch

    def public_name(self) -> str:
        """Return the start of the card's fingerprint."""
        return f"card={self.card().fingerprint[:16]}, "


def _renamed(keys: list[bytes], name: bytes) -> str:
    for key in keys:
        name = hmac.digest(key, name, "sha256").hex()[:32].encode()
    return name.decode()
