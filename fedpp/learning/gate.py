"""A site's gate: what it does not send, and what it does not adopt. No coordinator can look into a masked update.

Messages are public: they say a value and what to do, and nothing of who or where.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedpp.errors import ModelError
from fedpp.learning.global_state import Rows


def require_update(global_rows: Rows, update: Rows, most_norm: float) -> None:
    """Raise `ModelError` unless an update is finite and not too long.

    Its Euclidean norm, over all values of all rows, is at most `most_norm` times that of the global model's rows.
    """
    if {name: rows.shape for name, rows in update.items()} != {name: r.shape for name, r in global_rows.items()}:
        raise ModelError("the update has other names or shapes than the global model: use one fedpp at all sites")
    if not all(np.isfinite(rows).all() for rows in update.values()):
        raise ModelError("the update holds values that are not finite: lower the learning rate")
    length, reference = norm(update.values()), norm(global_rows.values())
    if not length <= most_norm * reference:  # NaN is not
        ratio = f"{length / reference:.3g} times" if reference else f"{length:.3g} against"
        raise ModelError(
            f"the update's Euclidean norm is {ratio} the global model's, and {most_norm:g} times is the most: "
            "lower the learning rate, train fewer epochs a round, or raise the bound"
        )


def require_no_harm(before: float | None, after: float | None, most_rise: float) -> None:
    """Raise `ModelError` if the validation loss, in nats, rose by more than `most_rise`, or is not finite.

    None, where a site has no validation sequences, passes.
    """
    for loss in (before, after):
        if loss is not None and not math.isfinite(loss):
            raise ModelError(f"the validation loss is {loss}, not a finite number: lower the learning rate")
    if before is None or after is None:
        return
    if not after - before <= most_rise:
        raise ModelError(
            f"the validation loss rose by {after - before:.3g} nats, from {before:.3g}, and {most_rise:g} is the most: "
            "keep the model of the round before, and lower the learning rate"
        )


def norm(arrays: Iterable[NDArray[np.floating]]) -> float:
    """Return the Euclidean norm of arrays taken together, which overflows only where the norm itself does."""
    values = [np.asarray(array, np.float64) for array in arrays]
    largest = max((float(np.abs(array).max(initial=0.0)) for array in values), default=0.0)
    if not 0 < largest < math.inf:
        return largest
    return largest * math.sqrt(sum(float(np.sum((array / largest) ** 2)) for array in values))
