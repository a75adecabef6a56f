"""Secure aggregation: keystream masks and tags for updates, under a key that only the vaults of the domain derive.

Castelluccia, Mykletun & Tsudik 2005: `c = q + F(k) mod 2^b`. F is AES-256-CTR under a fresh subkey for each mask:
HKDF-SHA256 of the domain's mask key over the round and the contribution, which has a random nonce. So no keystream is
used twice, whatever a site restores, copies or retries. Whoever has the key can subtract the sum of the keystreams from
an aggregate of masked updates.

A stream cipher is malleable, so a masked update has a tag: `t = <a, q> + pad mod p`, p = 2^127 - 1, with a secret
vector a for the round and a pad for each contribution (Carter & Wegman 1979). Encoded values are read as signed
numbers, whose sums never wrap in their ring, so tags add up as updates do. An aggregate that was changed, or is of
other contributions than it says, passes its tag with probability 2^-125 at most.
"""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from fedpp.aggregation.ring import CHUNK, EncodedUpdate, Ring
from fedpp.aggregation.round_context import PRIME, Contribution, Round
from fedpp.errors import MaskError
from fedpp.key_material import KEY_BYTES, Redacted, subkey
from fedpp.values import canonical

_SALT = b"fedpp domain mask 1"
_ELEMENT = 16  # bytes of the field
# A row's sum of products is exact in float64: 2048 times a signed 32-bit piece times 11 bits is 2^53 at most.
_PIECES = 2048
_DIGIT_BITS, _DIGITS = 11, 12
_ROWS = 8  # of a matrix product; BLAS computes one this small in the calling thread


class MaskKey(Redacted):
    """The domain's mask key of one key epoch."""

    __slots__ = ("_key",)
    instead = "derive it from the domain"

    def __init__(self, key: bytes) -> None:
        """Hold 32 bytes."""
        if len(key) != KEY_BYTES:
            raise MaskError(f"a mask key has {KEY_BYTES} bytes, got {len(key)}")
        self._key = bytes(key)

    def masker(self, of: Round, part: Contribution) -> "Masker":
        """Return the masker of one update; a part must not serve two, whose difference would show.

        Law: `unmask(r, [p, q], x + y, s + t)` is the sum of two encoded updates, where x and y are their masked forms
        by the maskers of p and q, and s and t their tags.
        """
        return Masker(of, part, *self._stream(of, part), _Tag(self._subkey("tag", of), of.ring))

    def unmask(self, of: Round, parts: Sequence[Contribution], total: EncodedUpdate, tag: int) -> EncodedUpdate:
        """Unmask an aggregate of these contributions in place; raise `MaskError` if its tag does not fit.

        `tag` may be an unreduced sum of tags. `total` becomes the unmasked aggregate, or zeros if the tag does not fit.
        """
        if len({part.site for part in parts}) != len(parts) or not parts:
            raise MaskError("an aggregate has one update from each site that it names, and at least one site")
        strictest = max(parts, key=lambda part: part.min_cohort)
        if len(parts) < strictest.min_cohort:
            raise MaskError(
                f"{strictest.site} requires a cohort of {strictest.min_cohort} sites, this aggregate has {len(parts)}"
            )
        if len(parts) > of.ring.sites or sum(part.examples for part in parts) > of.ring.examples:
            raise MaskError(
                f"an aggregate of {len(parts)} sites and {sum(part.examples for part in parts)} examples exceeds the "
                f"round's {of.ring.sites} and {of.ring.examples}"
            )
        if type(tag) is not int:  # as a float it would be compared to 53 bits
            raise MaskError(f"a tag is a whole number, got {type(tag).__name__}")
        of.ring.require(total)
        if total.shape != (of.length,):
            raise MaskError(f"an aggregate of this round has {of.length} values, got {total.shape}")
        streams, pads = zip(*(self._stream(of, part) for part in parts), strict=True)
        check = _Tag(self._subkey("tag", of), of.ring)
        for start in range(0, of.length, CHUNK):
            values = total[start : start + CHUNK]
            for stream in streams:
                np.subtract(values, stream.take(values.size), out=values)
            check.add(values)
        if (check.value() + sum(pads) - tag) % PRIME:
            total.fill(0)
            raise MaskError(
                "the aggregate does not fit its tag: it was altered, or is of other contributions or another model"
            )
        return total

    def _stream(self, of: Round, part: Contribution) -> tuple["_Stream", int]:
        content = self._subkey("mask", of, part, length=KEY_BYTES + _ELEMENT)
        return _Stream(content[:KEY_BYTES], of.ring), _element(content[KEY_BYTES:])

    def _subkey(self, purpose: str, of: Round, part: Contribution | None = None, length: int = KEY_BYTES) -> bytes:
        info = canonical({"purpose": purpose, "round": of.content(), "part": None if part is None else asdict(part)})
        return subkey(self._key, salt=_SALT, info=info, length=length)


class Masker:
    """Masks one encoded update chunk by chunk, and then returns its tag."""

    def __init__(self, of: Round, part: Contribution, stream: "_Stream", pad: int, tag: "_Tag") -> None:
        self._of, self._part, self._stream, self._pad, self._tag = of, part, stream, pad, tag
        self._left = of.length

    def mask(self, encoded: EncodedUpdate) -> EncodedUpdate:
        """Mask the next chunk of an encoded update: one-dimensional, `ring.CHUNK` values, or the rest.

        Raises `MaskError` for values beyond the ring's bounds, or for more than the round's; then the masker must not
        be used any more.
        """
        due = min(CHUNK, self._left)
        self._of.ring.require_within(encoded, self._part.examples)
        if not due or encoded.shape != (due,):
            raise MaskError(f"the next chunk of this update has {due} values, got {encoded.shape}")
        self._left -= due
        self._tag.add(encoded)
        return encoded + self._stream.take(due)

    def tag(self) -> int:
        """Return the tag of the whole update; raise `MaskError` if values are missing."""
        if self._left:
            raise MaskError(f"an update of this round has {self._of.length} values, and {self._left} are missing")
        return (self._tag.value() + self._pad) % PRIME


class _Stream:
    """The keystream of one mask, as ring values."""

    def __init__(self, key: bytes, ring: Ring) -> None:
        self._cipher, self._dtype = _aes_ctr(key), ring.dtype

    def take(self, count: int) -> EncodedUpdate:
        return np.frombuffer(self._cipher.update(_ZEROS[: count * self._dtype.itemsize]), self._dtype)


class _Tag:
    """`<a, q>` over the field, where a has the structure `a[row, column] = x[row] y[column]`.

    A change of a value is below 2^65 and so not a multiple of p. It passes if every row's product with y is zero, or if
    their sum weighted by x equals the change of the tag: 3 / 2^128 each at most, as elements are 128 bits modulo p.
    One row is `_PIECES` signed pieces of 32 bits; their products with the digits of y are one matrix product.
    """

    def __init__(self, key: bytes, ring: Ring) -> None:
        self._rows = _aes_ctr(key)
        pieces = ring.bits // 32
        self._columns = _PIECES // pieces  # values of a row
        y = self._next(self._columns)
        self._digits = _digits([(element << (32 * piece)) % PRIME for element in y for piece in range(pieces)])
        # The low piece of two is unsigned but read as signed: it is this much more than it is read as.
        self._low = 2**31 if pieces == 2 else 0
        self._excess = self._low * sum(y) % PRIME
        self._sum = 0

    def add(self, encoded: EncodedUpdate) -> None:
        """Add the next values, a whole number of rows except in the last call."""
        for start in range(0, encoded.size, _ROWS * self._columns):
            some = encoded[start : start + _ROWS * self._columns]
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
    """Return the digits `[elements, _DIGITS]` of elements, the lowest first."""
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
