"""The domain mask: additive keystreams and tags, under a key that only the vaults of the domain derive.

Castelluccia, Mykletun & Tsudik 2005: `c = q + F(k) mod 2^b`. F is AES-256-CTR under a subkey of its own for each mask:
HKDF-SHA256 of the domain's mask key over the round and the contribution, in which stands a fresh random nonce. So no
keystream is used twice, whatever a site restores, copies or repeats. Whoever has the key takes the sum of the
keystreams off a sum of words.

A stream cipher is malleable, so a tag comes with the words: `t = <a, q> + pad mod p`, p = 2^127 - 1, with a secret
vector a of the round and a pad of each contribution (Carter & Wegman 1979). Words are read as signed numbers, whose
sums a ring keeps from wrapping: so tags add up as words do. A sum that was changed by any amount, or is of other
contributions than it says, keeps its tag with probability 2^-125 at most.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedpp.aggregation.ring import CHUNK, EncodedUpdate, Ring
from fedpp.aggregation.round_context import PRIME, Contribution, Round
from fedpp.errors import MaskError
from fedpp.values import canonical

KEY_BYTES = 32
_SALT = b"fedpp domain mask 1"
_ELEMENT = 16  # bytes of the field
# A row's sum of products is exact in float64: 2048 times a 32-bit signed piece of a word times 11 bits is 2^53 at most.
_PIECES = 2048
_DIGIT_BITS, _DIGITS = 11, 12
_ROWS = 8  # of a matrix product: so small a one BLAS leaves to the thread that asks for it


class MaskKey:
    """The domain's mask key of one epoch; cannot be printed, copied or pickled by accident."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        """Hold 32 bytes."""
        if len(key) != KEY_BYTES:
            raise MaskError(f"a mask key has {KEY_BYTES} bytes, got {len(key)}")
        self._key = bytes(key)

    def masker(self, of: Round, part: Contribution) -> "Masker":
        """Return what masks one update; the part is for it alone: two under one keystream show their difference.

        Law: `unmask(r, [p, q], x + y, s + t)` is the sum of the words that the maskers of p and q made `x, s` and
        `y, t` of, masked words and tags.
        """
        return Masker(of, part, *self._stream(of, part), _Tag(self._subkey("tag", of), of.ring))

    def unmask(self, of: Round, parts: Sequence[Contribution], total: EncodedUpdate, tag: int) -> EncodedUpdate:
        """Take the keystreams of all contributions off a sum of masked words; raise `MaskError` if the tag is another.

        Tags may come as their sum, not reduced. `total` is overwritten: by zeros where the tag does not fit.
        """
        if len({part.site for part in parts}) != len(parts) or not parts:
            raise MaskError("a sum is of one update of each site that it names, of one site at least")
        if len(parts) < max(part.least for part in parts):
            least = max(parts, key=lambda part: part.least)
            raise MaskError(
                f"{least.site} lets its update be seen in a sum of {least.least} sites, this is of {len(parts)}"
            )
        if len(parts) > of.ring.sites or sum(part.examples for part in parts) > of.ring.examples:
            raise MaskError(
                f"a sum of {len(parts)} sites and {sum(part.examples for part in parts)} examples is beyond the round's"
                f" {of.ring.sites} and {of.ring.examples}"
            )
        if type(tag) is not int:  # as a float it would be compared to 53 bits
            raise MaskError(f"a tag is a whole number, got {type(tag).__name__}")
        of.ring.require(total)
        if total.shape != (of.length,):
            raise MaskError(f"a sum of this round has {of.length} words, got {total.shape}")
        streams, pads = zip(*(self._stream(of, part) for part in parts), strict=True)
        check = _Tag(self._subkey("tag", of), of.ring)
        for start in range(0, of.length, CHUNK):
            words = total[start : start + CHUNK]
            for stream in streams:
                np.subtract(words, stream.words(words.size), out=words)
            check.take(words)
        if (check.value() + sum(pads) - tag) % PRIME:
            total.fill(0)
            raise MaskError(
                "the sum does not fit its tag: it was altered, or is not of the contributions and the model it names"
            )
        return total

    def _stream(self, of: Round, part: Contribution) -> tuple["_Stream", int]:
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


class Masker:
    """Masks the words of one update, chunk by chunk, and then tells their tag."""

    def __init__(self, of: Round, part: Contribution, stream: "_Stream", pad: int, tag: "_Tag") -> None:
        self._of, self._part, self._stream, self._pad, self._tag = of, part, stream, pad, tag
        self._left = of.length

    def mask(self, words: EncodedUpdate) -> EncodedUpdate:
        """Return the next words masked: one-dimensional, `ring.CHUNK` of them, or the last.

        Raises `MaskError` for words beyond the ring's bounds, or for more than the round's; what was masked until then
        is of no use.
        """
        due = min(CHUNK, self._left)
        self._of.ring.require_within(words, self._part.examples)
        if not due or words.shape != (due,):
            raise MaskError(f"an update of this round goes on with {due} words, got {words.shape}")
        self._left -= due
        self._tag.take(words)
        return words + self._stream.words(due)

    def tag(self) -> int:
        """Return the tag of all words; raise `MaskError` if some are missing."""
        if self._left:
            raise MaskError(f"an update of this round has {self._of.length} words, and {self._left} are missing")
        return (self._tag.value() + self._pad) % PRIME


class _Stream:
    """The keystream of one mask, as words."""

    def __init__(self, key: bytes, ring: Ring) -> None:
        self._cipher, self._dtype = _aes_ctr(key), ring.dtype

    def words(self, count: int) -> EncodedUpdate:
        return np.frombuffer(self._cipher.update(_ZEROS[: count * self._dtype.itemsize]), self._dtype)


class _Tag:
    """`<a, q>` over the field, where a has the structure `a[row, column] = x[row] y[column]`.

    A change of words is below 2^65 and so no multiple of p. It survives if every row's product with y is zero, or else
    their sum weighted by x is what the tag was changed by: each 3 / 2^128 at most, as elements are 128 bits modulo p.
    One row is `_PIECES` signed pieces of 32 bits; their products with the digits of y are one matrix product.
    """

    def __init__(self, key: bytes, ring: Ring) -> None:
        self._rows = _aes_ctr(key)
        pieces = ring.bits // 32
        self._columns = _PIECES // pieces  # words of a row
        y = self._next(self._columns)
        self._digits = _digits([(element << (32 * piece)) % PRIME for element in y for piece in range(pieces)])
        # The low piece of two is unsigned: it is read as signed, and is so much more than it is read as.
        self._low = 2**31 if pieces == 2 else 0
        self._excess = self._low * sum(y) % PRIME
        self._sum = 0

    def take(self, words: EncodedUpdate) -> None:
        """Add the next words, a whole number of rows but for the last time."""
        for start in range(0, words.size, _ROWS * self._columns):
            some = words[start : start + _ROWS * self._columns]
            if missing := -some.size % self._columns:
                some = np.append(some, np.zeros(missing, some.dtype))
            rows = (some ^ some.dtype.type(self._low)).view("<i4").reshape(-1, _PIECES)
            products = rows.astype(np.float64) @ self._digits
            values = products.astype(np.int64).astype(object) @ _POWERS
            for x, value in zip(self._next(len(values)), values, strict=True):
                self._sum += x * (value + self._excess)

    def value(self) -> int:
        return self._sum % PRIME

    def _next(self, count: int) -> list[int]:
        content = self._rows.update(_ZEROS[: count * _ELEMENT])
        return [_element(content[start : start + _ELEMENT]) for start in range(0, len(content), _ELEMENT)]


def _digits(elements: Sequence[int]) -> NDArray[np.float64]:
    """Return the digits of elements, the lowest first, `elements _DIGITS`."""
    content = b"".join(element.to_bytes(_ELEMENT, "little") for element in elements)
    bits = np.unpackbits(np.frombuffer(content, np.uint8).reshape(-1, _ELEMENT), axis=1, bitorder="little")
    padded = np.pad(bits, ((0, 0), (0, _DIGITS * _DIGIT_BITS - 8 * _ELEMENT)))
    return padded.reshape(-1, _DIGITS, _DIGIT_BITS) @ 2.0 ** np.arange(_DIGIT_BITS)


def _aes_ctr(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()


def _element(content: bytes) -> int:
    return int.from_bytes(content, "little") % PRIME


_POWERS = np.array([1 << (_DIGIT_BITS * digit) for digit in range(_DIGITS)], object)
_ZEROS = memoryview(bytes(CHUNK * 8))
