"""What keeps decoys small: slots share the rounding of their ciphertext, and a decoy that grows takes the message's.

A decoy network has nothing to gain, and nothing else holds it back. Three bounds do, each the identity, to the bit,
on the message always and on decoys within it; docs/numerics.md says what was measured.
"""

from collections.abc import Sequence
from math import prod, sqrt

import numpy as np
from keras import ops
from numpy.typing import NDArray

from fedpp.arrays import pieces
from fedpp.cipher.components import Algebra, Ciphertext, Tensor

Rows = NDArray[np.floating]

DECOY_BOUND = 4.0  # of a weight, in units of what its initialiser draws: with Adam decoys grow to 1.7, at most 2.3
DECOY_LABEL = 2.0  # decoy labels are one-hot; beyond this they are cut, for a gradient grows with its label
DECOY_WEIGHT = 2.0**-4  # of a decoy's loss; measured: at 1 float32 loses up to three bits of the message's gradient


def shares(algebra: Algebra, rows: Rows, bound: float = DECOY_BOUND) -> tuple[float, ...]:
    """Return what is left of each decoy of a weight, rows `[*shape, n]`, when it is taken into its bound: 1 within."""
    squares: list[list[float]] = []  # of each piece, by decoy
    with np.errstate(over="ignore"):
        for (some,) in pieces(rows.reshape(-1, algebra.n)):
            decoys = algebra.to_slots(algebra.from_rows(some.astype(np.float64)))[1:]
            squares.append([float(np.sum(decoy * decoy)) for decoy in decoys])
    limit, lengths = _limit(rows.shape[:-1], bound), (sqrt(sum(of)) for of in zip(*squares, strict=True))
    return tuple(limit / length if length > limit else 1.0 for length in lengths)


def scaled(algebra: Algebra, weight: Ciphertext, factors: Sequence[float]) -> Ciphertext:
    """Return a weight with its decoys times these factors. Law: the message's slot is the weight's.

    Where all are 1 it is the weight to the bit.
    """
    if all(factor == 1.0 for factor in factors):
        return weight
    message, *decoys = algebra.to_slots(weight)
    gone = (decoy * (1.0 - factor) for decoy, factor in zip(decoys, factors, strict=True))
    over = algebra.from_slots((np.zeros_like(message), *gone))
    return tuple(part - more for part, more in zip(weight, over, strict=True))


def excess(decoy: Tensor, bound: float) -> Tensor:
    """Return what one decoy slot of a weight has too much: 0 up to a root mean square of `bound` initial deviations.

    Of a norm, and not of each value: what the next layer sees is as large as the norm lets it be, and a single large
    weight harms nothing.
    """
    return decoy - shrunk(decoy, norm([decoy]), _limit(decoy.shape, bound))


def initial_deviation(shape: Sequence[int]) -> float:
    """Return the root mean square of Glorot's initial weights of a kernel `[*receptive, in, out]`; 1 for a vector."""
    if len(shape) < 2:
        return 1.0
    *receptive, inputs, outputs = shape
    return sqrt(2.0 / (prod(receptive) * (inputs + outputs)))


def norm(values: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of tensors taken together."""
    return ops.sqrt(sum(ops.sum(value * value) for value in values))


def shrunk(value: Tensor, length: Tensor, limit: float) -> Tensor:
    """Scale a value by what takes a norm of this length to the limit; leave it as it is, to the bit, within."""
    return ops.where(length > limit, value * (limit / length), value)


def _limit(shape: Sequence[int], bound: float) -> float:
    """Return the largest norm of a decoy of a weight."""
    return bound * initial_deviation(shape) * sqrt(prod(shape))
