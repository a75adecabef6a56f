"""Step bounds: how far one round may move each weight, in place of sites that withhold updates or reject models.

A site's vault scales its own update to the bound before it is masked, and every vault scales an opened aggregate that
is beyond its own. The bound is on the root mean square (RMS) over the elements of a weight, in each slot: Adam moves an
element by about the learning rate in a step, by sqrt(10) rates at most with its usual constants, so `max_step` 4 binds
no honest training. It limits what an update can do, and is no proof of a good one.

All sites must scale an aggregate to the same bits: sums are made of elementwise additions alone, in one fixed order.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedpp.aggregation.global_state import Rows
from fedpp.aggregation.ring import EncodedUpdate, Ring
from fedpp.arrays import PIECE, are_finite, pieces, spans
from fedpp.cipher.components import Algebra
from fedpp.config.hyperparameters import Training
from fedpp.errors import MaskError, ModelError

Values = NDArray[np.floating]

SLACK = 1 - 2.0**-20  # of the bound: so a scaled update is within it, whatever rounding adds


def local_steps(training: Training, sequences: int) -> int:
    """Return the optimizer steps of one round at a site with so many training sequences."""
    return training.epochs * math.ceil(sequences / training.hyperparameters.batch_size)


def bound(max_step: float, rate: float, steps: float) -> float:
    """Return the largest RMS of a weight's update, in each slot: `max_step` learning rates for each local step."""
    return max_step * rate * steps


def clipped(
    update: Rows, algebra: Algebra, largest: float, max_value: float = math.inf
) -> tuple[dict[str, Values], list[str]]:
    """Scale down what is beyond the bound: a slot of RMS above `largest`, then rows beyond `max_value`.

    Returns rows `[*shape, n]` and the names of the weights that were changed. Laws: rows of all other weights are the
    same arrays, and clipping again changes nothing. Raises `ModelError` for values that are not finite.
    """
    if not are_finite(update.values()):
        raise ModelError("the update holds values that are not finite: lower the learning rate")
    rows: dict[str, Values] = {}
    for name, before in update.items():
        rows[name] = _within_value(_within_rms(before, algebra, largest), max_value)
    return rows, [name for name, after in rows.items() if after is not update[name]]


def require_reachable(aggregate: EncodedUpdate, ring: Ring, weights: Sequence[int]) -> None:
    """Raise `MaskError` if no updates within the ring's bounds, of sites with these weights, have such a sum."""
    ring.require(aggregate)
    most = sum(ring.max_magnitude(weight) for weight in weights)
    signed = aggregate.view(f"<i{ring.bits // 8}")
    if aggregate.size and (int(signed.max()) > most or int(signed.min()) < -most):
        raise MaskError("the opened aggregate is beyond what the cohort's updates can sum to: one of them was altered")


def _within_rms(rows: Values, algebra: Algebra, largest: float) -> Values:
    flat = rows.reshape(-1, algebra.n)
    factors = [_factor(value, largest) for value in _rms(flat, algebra)]
    if all(factor == 1.0 for factor in factors):
        return rows
    result = np.empty(flat.shape, rows.dtype)
    for span in spans(len(flat)):
        slots = algebra.decrypted(flat[span].astype(np.float64))
        result[span] = algebra.encrypted(tuple(slot * by for slot, by in zip(slots, factors, strict=True)))
    return result.reshape(rows.shape)


def _within_value(rows: Values, most: float) -> Values:
    highest = max((float(np.abs(some).max(initial=0.0)) for (some,) in pieces(rows.reshape(-1))), default=0.0)
    return rows if highest <= most else (rows * (most / highest * SLACK)).astype(rows.dtype)


def _factor(rms: float, largest: float) -> float:
    return 1.0 if rms <= largest else largest / rms * SLACK


def _rms(flat: Values, algebra: Algebra) -> list[float]:
    """Return the RMS of each slot of rows `[elements, n]`, the same bits on every machine."""
    highest = [0.0] * algebra.n
    for span in spans(len(flat)):
        for slot, values in enumerate(algebra.decrypted(flat[span].astype(np.float64))):
            highest[slot] = max(highest[slot], float(np.abs(values).max(initial=0.0)))
    sums = [np.zeros(min(PIECE, len(flat))) for _ in highest]
    for span in spans(len(flat)):
        for total, top, values in zip(sums, highest, algebra.decrypted(flat[span].astype(np.float64)), strict=True):
            share = values / (top or 1.0)  # so that no square overflows
            total[: len(share)] += share * share
    return [top * math.sqrt(_sum(total) / max(1, len(flat))) for top, total in zip(highest, sums, strict=True)]


def _sum(values: NDArray[np.float64]) -> float:
    """Return the sum by halves: NumPy's own order of additions differs between machines."""
    while len(values) > 1:
        if len(values) % 2:
            values = np.append(values, 0.0)
        values = values[: len(values) // 2] + values[len(values) // 2 :]
    return float(values[0]) if len(values) else 0.0
