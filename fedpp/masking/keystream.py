"""The domain mask: additive keystreams and tags, under a key that only the vaults of the domain derive.

Castelluccia, Mykletun & Tsudik 2005: `c = q + F(k) mod 2^b`. F is AES-256-CTR under a subkey of its own for each mask:
HKDF-SHA256 of the domain's mask key over the round and the contribution, in which stands a fresh random nonce. So no
keystream is used twice, whatever a site restores, copies or repeats. Whoever has the key takes the sum of the
keystreams off a sum of words.

A stream cipher is malleable, so a tag comes with the words: `t = <a, q> + pad mod p`, p = 2^127 - 1, with a secret
vector a of the round and a pad of each contribution (Carter & Wegman 1979). Tags add up as words do, and a sum that was
changed by any amount, or is of other contributions than it says, keeps its tag with probability 2^-126.
"""

import secrets
from collections.abc import Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, chain
from typing import Any, NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedpp.errors import MaskError
from fedpp.masking.ring import CHUNK, Ring, Words
from fedpp.protocol.membership import canonical

KEY_BYTES = NONCE_BYTES = 32
PRIME = 2**127 - 1
_SALT = b"fedpp domain mask 1"
_ELEMENT = 16  # bytes of the field
_LIMBS = 4096  # 16-bit pieces of words in one row: sums of their products stay exact in float64, below 2^44
_ROWS = 8  # of a matrix product: so small a one BLAS leaves to the thread that asks for it


@dataclass(frozen=True)
class Round:
    """What a mask is for; sums of masks of different rounds, or attempts, or models, fit no tag."""

    run: str  # the run's nonce, hex
    number: int
    attempt: int
    base: str  # SHA-256 of the global state that the updates start from, hex
    length: int  # words of an update
    ring: Ring

    def content(self) -> dict[str, Any]:
        """Return what subkeys are bound to."""
        return asdict(self)


@dataclass(frozen=True)
class Contribution:
    """Whose mask it is."""

    site: str
    nonce: str  # hex, drawn for this mask alone
    examples: int

    @classmethod
    def fresh(cls, site: str, examples: int) -> "Contribution":
        """Return a contribution under a nonce that nobody had before."""
        return cls(site, secrets.token_hex(NONCE_BYTES), examples)


class MaskKey:
    """The domain's mask key of one epoch; cannot be printed, copied or pickled by accident."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        """Hold 32 bytes."""
        if len(key) != KEY_BYTES:
            raise MaskError(f"a mask key has {KEY_BYTES} bytes, got {len(key)}")
        self._key = key

    def mask(self, of: Round, part: Contribution, chunks: Iterable[Words]) -> Generator[Words, None, int]:
        """Yield the words of one update masked, chunk by chunk; the generator's value is the tag.

        Chunks have `ring.CHUNK` words but for the last. Law: `unmask(r, [p, q], x + y, s + t)` is the sum of the words,
        where `x, s` and `y, t` are masks of words under p and q. Raises `MaskError` for words beyond the ring's bounds,
        or for more or fewer than the round's.
        """
        stream, pad = self._stream(of, part)
        tag = _Tag(self._subkey("tag", of), of)
        for words in chunks:
            of.ring.require_within(words, part.examples)
            tag.take(words)
            yield words + stream.words(words.size)
        return (tag.value() + pad) % PRIME

    def unmask(self, of: Round, parts: Sequence[Contribution], total: Words, tag: int) -> Words:
        """Take the keystreams of all contributions off a sum of masked words; raise `MaskError` if the tag is another.

        `total` is overwritten, and is of no use where the tag does not fit.
        """
        if len({part.site for part in parts}) != len(parts) or not parts:
            raise MaskError("a sum is of one update of each site that it names, of one site at least")
        if len(parts) > of.ring.sites or sum(part.examples for part in parts) > of.ring.examples:
            raise MaskError(
                f"a sum of {len(parts)} sites and {sum(part.examples for part in parts)} examples is beyond the round's"
                f" {of.ring.sites} and {of.ring.examples}"
            )
        of.ring.require(total)
        if total.shape != (of.length,):
            raise MaskError(f"a sum of this round has {of.length} words, got {total.shape}")
        streams, pads = zip(*(self._stream(of, part) for part in parts), strict=True)
        check = _Tag(self._subkey("tag", of), of)
        for start in range(0, of.length, CHUNK):
            words = total[start : start + CHUNK]
            for stream in streams:
                np.subtract(words, stream.words(words.size), out=words)
            check.take(words)
        if (check.value() + sum(pads) - tag) % PRIME:
            raise MaskError(
                "the sum does not fit its tag: it was altered, or is not of the contributions and the model it names"
            )
        return total

    def _stream(self, of: Round, part: Contribution) -> tuple["_Stream", int]:
        if type(part.examples) is not int or not 1 <= part.examples <= of.ring.examples:
            raise MaskError(f"an update counts 1 to {of.ring.examples} examples, got {part.examples!r:.40}")
        if len(part.nonce) != 2 * NONCE_BYTES:
            raise MaskError(f"a mask's nonce has {2 * NONCE_BYTES} hex digits, got {len(part.nonce)}")
        content = self._subkey("mask", of, part, length=KEY_BYTES + _ELEMENT)
        return _Stream(content[:KEY_BYTES], of.ring), _element(content[KEY_BYTES:])

    def _subkey(self, purpose: str, of: Round, part: Contribution | None = None, length: int = KEY_BYTES) -> bytes:
        info = canonical({"purpose": purpose, "round": of.content(), "part": None if part is None else asdict(part)})
        return HKDF(algorithm=SHA256(), length=length, salt=_SALT, info=info).derive(self._key)

    def __repr__(self) -> str:
        """Name nothing of the key."""
        return "MaskKey(<hidden>)"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        raise TypeError("a mask key is not pickled or copied: derive it from the domain")


class _Stream:
    """The keystream of one mask, as words."""

    def __init__(self, key: bytes, ring: Ring) -> None:
        self._cipher, self._dtype = _aes_ctr(key), ring.dtype

    def words(self, count: int) -> Words:
        return np.frombuffer(self._cipher.update(_ZEROS[: count * self._dtype.itemsize]), self._dtype)


class _Tag:
    """`<a, q>` over the field, where a has the structure `a[row, column] = x[row] y[column]`.

    A change survives if every row's product with y is zero, or else their sum weighted by x is: twice 1 / p at most.
    One row is `_LIMBS` pieces of 16 bits, whose products with the 16-bit pieces of y are one matrix product.
    """

    def __init__(self, key: bytes, of: Round) -> None:
        self._rows = _aes_ctr(key)
        pieces = of.ring.bits // 16
        columns = [self._next() for _ in range(_LIMBS // pieces)]
        shifted = [(y << (16 * piece)) % PRIME for y in columns for piece in range(pieces)]
        content = b"".join(y.to_bytes(_ELEMENT, "little") for y in shifted)
        self._y = np.frombuffer(content, "<u2").reshape(_LIMBS, -1).astype(np.float64)
        self._sign = of.ring.dtype.type(2 ** (of.ring.bits - 1))
        # Words are read as q + 2^(bits - 1), which is not negative: this much too much in each word.
        self._excess = [total << (of.ring.bits - 1) for total in accumulate(columns, initial=0)]
        self._sum = 0

    def take(self, words: Words) -> None:
        """Add the next words, a whole number of rows but for the last time."""
        columns = len(self._excess) - 1
        limbs = np.zeros(-(-words.size // columns) * _LIMBS)
        pieces: NDArray[np.uint16] = (words ^ self._sign).view("<u2")
        limbs[: pieces.size] = pieces
        rows = limbs.reshape(-1, _LIMBS)
        several = [rows[start : start + _ROWS] @ self._y for start in range(0, len(rows), _ROWS)]
        for row, products in enumerate(chain.from_iterable(part.tolist() for part in several)):
            value = sum(int(product) << (16 * piece) for piece, product in enumerate(products))
            count = min(columns, words.size - row * columns)
            self._sum += self._next() * (value - self._excess[count])

    def value(self) -> int:
        return self._sum % PRIME

    def _next(self) -> int:
        return _element(self._rows.update(_ZEROS[:_ELEMENT]))


def _aes_ctr(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()


def _element(content: bytes) -> int:
    return int.from_bytes(content, "little") % PRIME


_ZEROS = memoryview(bytes(CHUNK * 8))
