"""Fixed point in the ring Z_2^k, k = 32 or 64: how updates are written as words, and added.

A site's update times its example count becomes whole numbers; words that carry them add up modulo 2^k, masked or not.
This is all of masking that the coordinator may import: there is no key here.

Bounds on values, examples and sites keep every sum of a round within the ring, so that averaging is exact but for the
rounding of each value, times its examples, to a multiple of `2 ** -fraction` (and to float64, where a word has more
than 53 bits): what would leave the ring is an error, never a wrap.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpp.arrays import pieces
from fedpp.config.run_config import MAX_BOUND, MAX_EXAMPLES, MAX_SITES, MIN_BOUND, Dtype
from fedpp.errors import MaskError

EncodedUpdate = NDArray[np.unsignedinteger[Any]]
Values = NDArray[np.float32 | np.float64]

BITS = (32, 64)
CHUNK = 2**17  # words that are masked at a time: what a step reads and writes stays in the processor's cache


@dataclass(frozen=True)
class Ring:
    """How the updates of one round are written; every site and the coordinator of the round have the same."""

    bits: int
    examples: int  # most examples of all sites of a round together
    sites: int  # most sites of a round
    bound: float  # largest magnitude of a value of an update

    def __post_init__(self) -> None:
        """Refuse what could overflow, or what no round needs."""
        if type(self.bits) is not int or self.bits not in BITS:
            raise MaskError(f"a ring has 32 or 64 bits, got {self.bits!r:.40}")
        for name, value, most in (("examples", self.examples, MAX_EXAMPLES), ("sites", self.sites, MAX_SITES)):
            if type(value) is not int or not 1 <= value <= most:
                raise MaskError(f"a ring's {name} must be a whole number from 1 to {most}, got {value!r:.40}")
        if type(self.bound) is not float or not MIN_BOUND <= self.bound <= MAX_BOUND:
            raise MaskError(f"a ring's bound must be a number from 2^-20 to 2^20, got {self.bound!r:.40}")
        if self.fraction < 0:
            raise MaskError(
                f"sums of {self.examples} examples of values up to {self.bound} leave a ring of {self.bits} bits: "
                "take float64 weights, or a smaller bound"
            )

    @classmethod
    def of(cls, dtype: Dtype, *, examples: int, sites: int, bound: float) -> "Ring":
        """Return the ring for weights of a dtype: one word is as wide as one weight."""
        return cls({"float32": 32, "float64": 64}[dtype], examples, sites, bound)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """Return the words' dtype, little-endian."""
        return np.dtype(f"<u{self.bits // 8}")

    @property
    def fraction(self) -> int:
        """Return f, the largest for which no sum of a round can leave the ring; negative where there is none.

        `(1 + 2^-53) examples * bound * 2^f + sites / 2 < 2^(bits - 1)`: the product of a value and its examples is
        rounded to float64, and then each site's to a whole number.
        """
        largest = 2 ** (self.bits - 1)
        room = largest - 1 - self.sites - (largest >> 53)
        numerator, denominator = self.bound.as_integer_ratio()
        most: int = room * denominator // (self.examples * numerator)
        return most.bit_length() - 1

    def most(self, examples: int) -> int:
        """Return the largest magnitude of a word that `encode` makes of so many examples."""
        return round(self.bound * self._scale(examples))

    def encode(self, values: Values, examples: int, out: EncodedUpdate | None = None) -> EncodedUpdate:
        """Return `rint(values * examples * 2^fraction)` as words, of any shape; raise `MaskError` beyond the bounds.

        Law: `decode(encode(x, k) + encode(y, m), k + m)` is `(k x + m y) / (k + m)`, each x and y rounded once.
        """
        scale = self._scale(examples)
        if values.dtype.kind != "f" or values.itemsize > 8:
            raise MaskError(f"an update has values of float32 or float64, got {values.dtype}")
        words = np.empty(values.shape, self.dtype) if out is None else out
        self.require(words)
        if words.shape != values.shape or not words.flags.c_contiguous:
            raise MaskError(f"words of {values.shape} values need contiguous room of that shape, got {words.shape}")
        for source, target in pieces(values.reshape(-1), words.reshape(-1)):
            # As Python's floats: NumPy rounds a bound to the dtype of what it is compared with. NaN is no value within.
            least, most = float(source.min(initial=0.0)), float(source.max(initial=0.0))
            if not -self.bound <= least <= most <= self.bound:
                # Without the value: it would tell a coordinator that chooses the bound.
                raise MaskError(
                    f"an update has a value beyond {self.bound:g}: lower the learning rate, or raise max-update-value"
                )
            scaled = np.multiply(source, scale, dtype=np.float64)  # float32 would round the product to 24 bits
            np.copyto(target.view(self._signed), np.rint(scaled, out=scaled), casting="unsafe")
        return words

    def decode(self, words: EncodedUpdate, examples: int) -> NDArray[np.float64]:
        """Return the mean update of so many examples: signed words over `examples * 2^fraction`."""
        self.require(words)
        scale = self._scale(examples)
        values = np.empty(words.shape, np.float64)
        for source, target in pieces(words.reshape(-1), values.reshape(-1)):
            np.divide(source.view(self._signed), scale, out=target)
        return values

    def add(self, total: EncodedUpdate, words: EncodedUpdate) -> None:
        """Add words into a total, modulo 2^bits. Law: masks that are added come off in the sum."""
        self.require(words)
        self.require(total)
        if total.shape != words.shape:
            raise MaskError(f"words of shape {words.shape} do not add up with {total.shape}")
        np.add(total, words, out=total)

    def require(self, words: EncodedUpdate) -> None:
        """Raise `MaskError` unless these are words of this ring."""
        if words.dtype != self.dtype:
            raise MaskError(f"words of this round have {self.bits} bits, got {words.dtype}")

    def require_within(self, words: EncodedUpdate, examples: int) -> None:
        """Raise `MaskError` unless every word is one that `encode` can make of so many examples."""
        self.require(words)
        signed, most = words.view(self._signed), self.most(examples)
        if words.size and (int(signed.max()) > most or int(signed.min()) < -most):
            raise MaskError(f"an update of {examples} examples has a word beyond {most}: encode it with this ring")

    def _scale(self, examples: int) -> float:
        """Return `examples * 2^fraction`, which float64 holds exactly."""
        if type(examples) is not int or not 1 <= examples <= self.examples:
            raise MaskError(f"this round counts 1 to {self.examples} examples, got {examples!r:.40}")
        return examples * 2.0**self.fraction

    @property
    def _signed(self) -> np.dtype[np.signedinteger[Any]]:
        return np.dtype(f"<i{self.bits // 8}")
