"""Fixed-point encoding of updates in the ring Z_2^k, k = 32 or 64, in which they are added.

A site's update times its example count becomes a vector of integers modulo 2^k; these add up, masked or not. The
coordinator may import this module of secure aggregation: it has no keys.

Bounds on values, examples and sites keep every aggregate of a round within the ring. So averaging is exact except that
each value times its examples is rounded to a multiple of `2 ** -fraction` (and to float64, where an integer has more
than 53 bits): a value that would leave the ring is an error, never a wrap.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpp.arrays import pieces
from fedpp.config.hyperparameters import Dtype
from fedpp.config.run_config import MAX_BOUND, MAX_EXAMPLES, MAX_SITES, MIN_BOUND
from fedpp.errors import MaskError

EncodedUpdate = NDArray[np.unsignedinteger[Any]]
Values = NDArray[np.float32 | np.float64]

BITS = (32, 64)
MIN_STEP = 4  # units of an encoded value that one step of training changes it by, about: else it is rounded away
CHUNK = 2**17  # values that are masked at a time: what a step reads and writes stays in the processor's cache


@dataclass(frozen=True)
class Ring:
    """The encoding of one round's updates, the same at every site and at the coordinator."""

    bits: int
    examples: int  # maximum of all sites of a round together
    sites: int  # maximum of a round
    bound: float  # largest magnitude of a value of an update

    def __post_init__(self) -> None:
        """Refuse what could overflow, or is out of range."""
        if type(self.bits) is not int or self.bits not in BITS:
            raise MaskError(f"a ring has 32 or 64 bits, got {self.bits!r:.40}")
        for name, value, highest in (("examples", self.examples, MAX_EXAMPLES), ("sites", self.sites, MAX_SITES)):
            if type(value) is not int or not 1 <= value <= highest:
                raise MaskError(f"a ring's {name} must be a whole number from 1 to {highest}, got {value!r:.40}")
        if type(self.bound) is not float or not MIN_BOUND <= self.bound <= MAX_BOUND:
            raise MaskError(f"a ring's bound must be a number from 2^-20 to 2^20, got {self.bound!r:.40}")
        if self.fraction < 0:
            raise MaskError(
                f"an aggregate of {self.examples} examples of values up to {self.bound} does not fit {self.bits} bits: "
                "use float64 weights, or a smaller bound"
            )

    @classmethod
    def of(cls, dtype: Dtype, *, examples: int, sites: int, bound: float) -> "Ring":
        """Return the ring for weights of a dtype: an encoded value is as wide as a weight."""
        return cls({"float32": 32, "float64": 64}[dtype], examples, sites, bound)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """Return the dtype of encoded values, little-endian."""
        return np.dtype(f"<u{self.bits // 8}")

    @property
    def fraction(self) -> int:
        """Return f, the largest for which no aggregate of a round can leave the ring; negative if there is none.

        `(1 + 2^-53) examples * bound * 2^f + sites / 2 < 2^(bits - 1)`: the product of a value and its examples is
        rounded to float64, and then each site's to a whole number.
        """
        largest = 2 ** (self.bits - 1)
        room = largest - 1 - self.sites - (largest >> 53)
        numerator, denominator = self.bound.as_integer_ratio()
        limit: int = room * denominator // (self.examples * numerator)
        return limit.bit_length() - 1

    def max_magnitude(self, examples: int) -> int:
        """Return the largest magnitude of a value that `encode` returns for so many examples."""
        return round(self.bound * self._scale(examples))

    def encode(self, values: Values, examples: int, out: EncodedUpdate | None = None) -> EncodedUpdate:
        """Return `rint(values * examples * 2^fraction)` in the ring, of any shape; raise `MaskError` beyond the bounds.

        Law: `decode(encode(x, k) + encode(y, m), k + m)` is `(k x + m y) / (k + m)`, each x and y rounded once.
        """
        scale = self._scale(examples)
        if values.dtype.kind != "f" or values.itemsize > 8:
            raise MaskError(f"an update has values of float32 or float64, got {values.dtype}")
        encoded = np.empty(values.shape, self.dtype) if out is None else out
        self.require(encoded)
        if encoded.shape != values.shape or not encoded.flags.c_contiguous:
            raise MaskError(
                f"encoding {values.shape} values needs a contiguous array of that shape, got {encoded.shape}"
            )
        for source, target in pieces(values.reshape(-1), encoded.reshape(-1)):
            # As Python floats: NumPy rounds a bound to the dtype that it is compared with. NaN fails the comparison.
            lowest, highest = float(source.min(initial=0.0)), float(source.max(initial=0.0))
            if not -self.bound <= lowest <= highest <= self.bound:
                # Without the value, which a coordinator that chooses the bound could learn from.
                raise MaskError(
                    f"an update has a value beyond {self.bound:g}: lower the learning rate, or raise max-update-value"
                )
            scaled = np.multiply(source, scale, dtype=np.float64)  # float32 would round the product to 24 bits
            np.copyto(target.view(self._signed), np.rint(scaled, out=scaled), casting="unsafe")
        return encoded

    def decode(self, encoded: EncodedUpdate, examples: int) -> NDArray[np.float64]:
        """Return the mean update of so many examples: signed integers over `examples * 2^fraction`."""
        self.require(encoded)
        scale = self._scale(examples)
        values = np.empty(encoded.shape, np.float64)
        for source, target in pieces(encoded.reshape(-1), values.reshape(-1)):
            np.divide(source.view(self._signed), scale, out=target)
        return values

    def add(self, total: EncodedUpdate, encoded: EncodedUpdate) -> None:
        """Add an encoded update into a total, modulo 2^bits. Law: the sum of masked updates can be unmasked."""
        self.require(encoded)
        self.require(total)
        if total.shape != encoded.shape:
            raise MaskError(f"an update of shape {encoded.shape} cannot be added to one of {total.shape}")
        np.add(total, encoded, out=total)

    def require(self, encoded: EncodedUpdate) -> None:
        """Raise `MaskError` unless this is an encoded update of this ring."""
        if encoded.dtype != self.dtype:
            raise MaskError(f"encoded updates of this round have {self.bits} bits, got {encoded.dtype}")

    def require_within(self, encoded: EncodedUpdate, examples: int) -> None:
        """Raise `MaskError` unless every value is one that `encode` can return for so many examples."""
        self.require(encoded)
        signed, limit = encoded.view(self._signed), self.max_magnitude(examples)
        if encoded.size and (int(signed.max()) > limit or int(signed.min()) < -limit):
            raise MaskError(f"an update of {examples} examples has a value beyond {limit}: encode it with this ring")

    def _scale(self, examples: int) -> float:
        """Return `examples * 2^fraction`, which float64 holds exactly."""
        if type(examples) is not int or not 1 <= examples <= self.examples:
            raise MaskError(f"this round allows 1 to {self.examples} examples, got {examples!r:.40}")
        return examples * 2.0**self.fraction

    @property
    def _signed(self) -> np.dtype[np.signedinteger[Any]]:
        return np.dtype(f"<i{self.bits // 8}")
