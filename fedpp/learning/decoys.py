"""Bounds of decoys: they keep decoy slots small, so that rounding does not destroy the message's slot.

All slots of a ciphertext share its rounding error, which grows with the largest slot. A decoy network learns noise and
would grow without limit. Each of the three bounds leaves the message, and decoys within the bound, unchanged bit for
bit. Measurements: docs/explanation/numerics.md.
"""

from collections.abc import Sequence
from math import prod, sqrt

import numpy as np
from keras import ops
from numpy.typing import NDArray

from fedpp.arrays import pieces
from fedpp.cipher.components import Algebra, Ciphertext, Tensor

Rows = NDArray[np.floating]

DECOY_BOUND = 4.0  # of a weight, in initial standard deviations: with Adam decoys grow to 1.7, at most 2.3
DECOY_LABEL = 2.0  # decoy labels are one-hot; larger ones are clipped, since a gradient grows with its label
DECOY_WEIGHT = 2.0**-4  # factor of a decoy's loss; at 1, float32 loses up to three bits of the message's gradient


def shares(algebra: Algebra, rows: Rows, bound: float = DECOY_BOUND) -> tuple[float, ...]:
    """Return the factor that scales each decoy of a weight, rows `[*shape, n]`, into its bound; 1 within the bound."""
    squares: list[list[float]] = []  # of each piece, by decoy
    with np.errstate(over="ignore"):
        for (some,) in pieces(rows.reshape(-1, algebra.n)):
            decoys = algebra.to_slots(algebra.from_rows(some.astype(np.float64)))[1:]
            squares.append([float(np.sum(decoy * decoy)) for decoy in decoys])
    limit, lengths = _limit(rows.shape[:-1], bound), (sqrt(sum(of)) for of in zip(*squares, strict=True))
    return tuple(limit / length if length > limit else 1.0 for length in lengths)


def scaled(algebra: Algebra, weight: Ciphertext, factors: Sequence[float]) -> Ciphertext:
    """Return a weight with its decoys multiplied by these factors. Law: the message's slot does not change.

    If all factors are 1, the result equals the weight bit for bit.
    """
    if all(factor == 1.0 for factor in factors):
        return weight
    message, *decoys = algebra.to_slots(weight)
    removed = (decoy * (1.0 - factor) for decoy, factor in zip(decoys, factors, strict=True))
    difference = algebra.from_slots((np.zeros_like(message), *removed))
    return tuple(part - more for part, more in zip(weight, difference, strict=True))


def excess(decoy: Tensor, bound: float) -> Tensor:
    """Return what to subtract from a decoy slot of a weight: 0 up to a root mean square of `bound` initial deviations.

    The bound is on the norm, not on single values: the norm limits the next layer's input, and a single large weight
    does no harm.
    """
    return decoy - shrunk(decoy, norm([decoy]), _limit(decoy.shape, bound))


def initial_deviation(shape: Sequence[int]) -> float:
    """Return the root mean square of Glorot's initial weights of a kernel `[*receptive, in, out]`; 1 for a vector."""
    if len(shape) < 2:
        return 1.0
    *receptive, inputs, outputs = shape
    return sqrt(2.0 / (prod(receptive) * (inputs + outputs)))


def norm(values: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of several tensors as one vector."""
    return ops.sqrt(sum(ops.sum(value * value) for value in values))


def shrunk(value: Tensor, length: Tensor, limit: float) -> Tensor:
    """Scale a value by `limit / length`; return it unchanged, bit for bit, if the length is within the limit."""
    return ops.where(length > limit, value * (limit / length), value)


def _limit(shape: Sequence[int], bound: float) -> float:
    """Return the largest norm of a decoy of a weight."""
    return bound * initial_deviation(shape) * sqrt(prod(shape))
