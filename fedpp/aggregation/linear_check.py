"""Linear check: it binds the coordinator to the exact sum of the masked updates, which each site then tests.

The coordinator adds masked updates as integers (`ExactSum`) and commits to the hash of their sum. Then the challenge is
drawn: a vector `a` modulo the prime p = 2^127 - 1, the keystream of the aggregate's identifier, in which that hash
stands. Each site states the tag `<a, y> mod p` of its own masked update y, and all test that the sum's tag is the sum
of the tags (`require_sum`). A false sum passes with probability 2 / p for each hash that is tried: a difference of two
sums is below 2^80 in each value, so it is no multiple of p, and `a[row, column] = v[row] u[column]` has independent
elements u and v (Carter & Wegman 1979). It detects; it hides nothing, since whoever knows the identifier knows a.

Values are read in 16-bit limbs and u in 22-bit digits, so that every sum of products is exact in float64: 2^14 values
of a row, times 2^16, times 2^22, is 2^52.
"""

import secrets
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import CipherContext
from numpy.typing import NDArray

from fedpp.aggregation.ring import EncodedUpdate, Ring
from fedpp.arrays import pieces
from fedpp.errors import MaskError
from fedpp.key_material import keystream, subkey
from fedpp.protocol.run_statements import TAG_PRIME

PRIME = TAG_PRIME  # 2^127 - 1
ROW = 2**14  # values
CARRY = np.dtype("<u2")  # of a sum, above the ring's bits: enough for 65,536 addends
_SALT = b"fedpp linear check 2"
_ELEMENT = 16  # bytes of the field
_LIMB_BITS, _DIGIT_BITS, _DIGITS = 16, 22, 6
_FACTOR_BITS, _WIDE = 17, 8
_ROWS = 4  # at a time, whose limbs stay in the processor's cache
_PAIR = 2  # rows of a matrix product; BLAS computes one this small in the calling thread

Carry = NDArray[np.unsignedinteger[Any]]


def tag(aggregate_id: str, values: EncodedUpdate) -> int:
    """Return `<a, y> mod p` of a masked update, for the challenge of this aggregate.

    Law: `sum_tag(id, low, carry) == sum(tag(id, y) for y in updates) % PRIME` for the exact sum of the updates.
    """
    return _challenge(aggregate_id).product(values)


def sum_tag(aggregate_id: str, low: EncodedUpdate, carry: Carry) -> int:
    """Return `<a, S> mod p` of an exact sum S, in the ring's bits and the carry above them."""
    return _challenge(aggregate_id).product(low, carry)


def require_sum(
    aggregate_id: str, low: EncodedUpdate, carry: Carry, tags: Sequence[int], ring: Ring, length: int
) -> None:
    """Raise `MaskError` unless this is the sum of updates of this ring and length with these tags, one a site."""
    ring.require(low)
    if low.shape != (length,) or carry.shape != (length,) or carry.dtype != CARRY:
        raise MaskError(f"a sum of this round has {length} values and 16-bit carries, got {low.shape} {carry.shape}")
    if not tags or int(carry.max(initial=0)) >= len(tags):
        raise MaskError(f"a carry of {len(tags)} updates is below their number: the sum is damaged")
    for each in tags:
        require_tag(each)
    if (sum_tag(aggregate_id, low, carry) - sum(tags)) % PRIME:
        raise MaskError("the sum of the masked updates does not fit the sites' tags: it is of other updates")


def require_tag(value: int) -> None:
    """Raise `MaskError` unless this is a number modulo p: no tag has two spellings."""
    if type(value) is not int or not 0 <= value < PRIME:
        raise MaskError("a tag is a whole number below 2^127 - 1: the site's statement is damaged")


def vector_hash(values: EncodedUpdate) -> str:
    """Return the SHA-256 of a vector's length and little-endian values, in hex."""
    return _hash(values)


def sum_hash(low: EncodedUpdate, carry: Carry) -> str:
    """Return the SHA-256 of an exact sum, in hex: the coordinator states it before the challenge is known."""
    return _hash(low, carry)


class ExactSum:
    """The sum of masked updates as integers: `low + 2^bits carry`, both `[length]`, little-endian."""

    def __init__(self, length: int, ring: Ring) -> None:
        """Begin with the sum of no update."""
        self.low: EncodedUpdate = np.zeros(length, ring.dtype)
        self.carry: Carry = np.zeros(length, CARRY)
        self._ring, self._count = ring, 0

    def add(self, values: EncodedUpdate) -> None:
        """Add one update; raise `MaskError` for one of another ring or length, or beyond the ring's sites."""
        self._ring.require(values)
        if values.shape != self.low.shape:
            raise MaskError(f"an update of this round has {self.low.size} values, got {values.shape}")
        if self._count == self._ring.sites:
            raise MaskError(f"a sum of this round has {self._ring.sites} updates: one more was added")
        for some, low, carry in pieces(values, self.low, self.carry):
            np.add(low, some, out=low)
            np.add(carry, low < some, out=carry)
        self._count += 1

    @property
    def hash(self) -> str:
        """Return the hash that commits to the sum."""
        return sum_hash(self.low, self.carry)


class SumTest:
    """The coordinator's test of its own sum, before it commits to it: damage in memory or on a disk shows here.

    Sums of rows, each column times a number that is drawn for this sum alone and leaves nowhere. A flipped bit is found
    always, other damage but for one case in 2^17. They are exact in 64 bits: 2^14 values, times 2^32, times 2^17.
    """

    def __init__(self) -> None:
        """Draw the numbers."""
        drawn = np.frombuffer(secrets.token_bytes(8 * ROW), np.uint64)
        self._factors = drawn % np.uint64(2**_FACTOR_BITS - 1) + np.uint64(1)
        self._sums: list[int] = []

    def add(self, values: EncodedUpdate) -> None:
        """Count an update that was added, as it was received."""
        sums = self._of(values)
        self._sums = [total + of for total, of in zip(self._sums or [0] * len(sums), sums, strict=True)]

    def require(self, low: EncodedUpdate, carry: Carry) -> None:
        """Raise `MaskError` unless this is the sum of the updates that were counted."""
        sums = zip(self._of(low), self._of(carry), strict=True)
        if [small + (high << (8 * low.itemsize)) for small, high in sums] != self._sums:
            raise MaskError("the sum of the masked updates is wrong: test this machine's memory and disk")

    def _of(self, values: NDArray[np.unsignedinteger[Any]]) -> list[int]:
        """Return the integer `sum(factor[column] * values[row, column])` of each row."""
        sums: list[int] = []
        for start in range(0, values.size, _ROWS * ROW):
            some = _whole_rows(values[start : start + _ROWS * ROW])
            halves = some.view("<u4") if some.itemsize == _WIDE else some
            table = halves.reshape(-1, ROW, halves.size // some.size)
            of_half = [np.multiply(half, self._factors).sum(axis=1).tolist() for half in np.moveaxis(table, 2, 0)]
            sums += [
                sum(part << (32 * place) for place, part in enumerate(parts)) for parts in zip(*of_half, strict=True)
            ]
        return sums


class _Challenge:
    """The vector a of a key: the elements u of its columns, as digits `[ROW, _DIGITS]`, and v of its rows."""

    def __init__(self, key: bytes) -> None:
        columns, self._rows = (subkey(key, salt=_SALT, info=info) for info in (b"columns", b"rows"))
        self._digits = _digits(keystream(columns).update(bytes(ROW * _ELEMENT)))

    def product(self, values: EncodedUpdate, carry: Carry | None = None) -> int:
        """Return `<a, values + 2^bits carry> mod p`."""
        total, rows = 0, keystream(self._rows)
        for start in range(0, values.size, _ROWS * ROW):
            some = slice(start, start + _ROWS * ROW)
            sums = _row_sums(values[some], self._digits)
            if carry is not None:
                above = _row_sums(carry[some], self._digits)
                sums = [low + (high << (8 * values.itemsize)) for low, high in zip(sums, above, strict=True)]
            total += sum(v * value for v, value in zip(_elements(rows, len(sums)), sums, strict=True))
        return total % PRIME


def _challenge(aggregate_id: str) -> _Challenge:
    return _Challenge(bytes.fromhex(aggregate_id))


def _elements(stream: CipherContext, count: int) -> Iterator[int]:
    content = stream.update(bytes(count * _ELEMENT))
    return (int.from_bytes(content[at : at + _ELEMENT], "little") for at in range(0, len(content), _ELEMENT))


def _row_sums(values: NDArray[np.unsignedinteger[Any]], digits: NDArray[np.float64]) -> list[int]:
    """Return the integer `sum(u[column] * values[row, column])` of each row; the last one is filled up with zeros."""
    limbs = _whole_rows(values).view("<u2").reshape(-1, ROW, values.itemsize // 2)
    rows, _, count = limbs.shape
    of_limb = np.empty((rows, count, ROW))
    for limb in range(count):  # one after another, which is faster than one transposed copy
        of_limb[:, limb] = limbs[:, :, limb]
    products = of_limb.reshape(-1, min(_PAIR, count), ROW) @ digits
    joined = products.astype(np.int64).reshape(rows, count, _DIGITS).astype(object) @ _POWERS
    return [sum(part << (_LIMB_BITS * limb) for limb, part in enumerate(row)) for row in joined.tolist()]


def _whole_rows(values: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.unsignedinteger[Any]]:
    """Return the values without a gap between them, filled up with zeros to whole rows."""
    if missing := -values.size % ROW:
        values = np.append(values, np.zeros(missing, values.dtype))
    return np.ascontiguousarray(values)


def _digits(content: bytes) -> NDArray[np.float64]:
    """Return the digits `[elements, _DIGITS]` of 128-bit elements, the lowest first; they need not be below p."""
    low, high = np.frombuffer(content, "<u8").reshape(-1, 2).T
    mask = np.uint64(2**_DIGIT_BITS - 1)
    across = (low >> np.uint64(2 * _DIGIT_BITS)) | (high << np.uint64(64 - 2 * _DIGIT_BITS))
    above = (high >> np.uint64(shift) for shift in (2, 24, 46))  # the digits 3 to 5 begin at the bits 66, 88 and 110
    digits = (low, low >> np.uint64(_DIGIT_BITS), across, *above)
    return np.stack([(digit & mask).astype(np.float64) for digit in digits]).T


def _hash(*arrays: NDArray[np.unsignedinteger[Any]]) -> str:
    digest = sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.size}\n".encode())
        for (some,) in pieces(array):
            digest.update(np.ascontiguousarray(some).data)
    return digest.hexdigest()


_POWERS = np.array([1 << (_DIGIT_BITS * digit) for digit in range(_DIGITS)], object)
