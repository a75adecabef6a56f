"""Update check: bounds by which a site withholds its own update, or rejects a new global model.

The sites check, since no coordinator can read a masked update. The bounds are the run's. The `kind` of an
`UpdateCheckError`, the bound and the remedy, is public; its `figures` stay at the site, since a coordinator that
chooses the bounds could otherwise learn values from them.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedpp.aggregation.global_state import Rows
from fedpp.arrays import flat_pieces
from fedpp.errors import ModelError, UpdateCheckError


def require_update(global_rows: Rows, update: Rows, max_norm: float) -> None:
    """Raise `UpdateCheckError` unless an update is finite and within the norm bound, `ModelError` if it does not fit.

    Its Euclidean norm, over all values of all rows, is at most `max_norm` times that of the global model's rows.
    """
    if {name: rows.shape for name, rows in update.items()} != {name: r.shape for name, r in global_rows.items()}:
        raise ModelError("the update has other names or shapes than the global model: use the same fedpp at all sites")
    if bad := sum(some.size - int(np.isfinite(some).sum()) for some in flat_pieces(update.values())):
        raise UpdateCheckError("the update holds values that are not finite: lower the learning rate", f"{bad} of them")
    length, reference = norm(update.values()), norm(global_rows.values())
    if not length <= max_norm * reference:  # NaN is not
        raise UpdateCheckError(
            f"the update's Euclidean norm is more than {max_norm:g} times the global model's: lower the "
            "learning rate, train fewer epochs a round, or raise max-update-norm",
            f"it is {length:.3g}, the model's {reference:.3g}",
        )


def require_no_harm(before: float | None, after: float | None, max_increase: float) -> None:
    """Raise `UpdateCheckError` if the validation loss, in nats, rose by more than `max_increase`, or is not finite.

    None, from a site without validation sequences, passes.
    """
    for loss in (before, after):
        if loss is not None and not math.isfinite(loss):
            raise UpdateCheckError("the validation loss is not a finite number: lower the learning rate", f"{loss}")
    if before is None or after is None:
        return
    if not after - before <= max_increase:
        raise UpdateCheckError(
            f"the validation loss rose by more than {max_increase:g} nats: keep the model of the round before, and "
            "lower the learning rate",
            f"from {before:.3g} to {after:.3g}",
        )


def norm(arrays: Iterable[NDArray[np.floating]]) -> float:
    """Return the Euclidean norm of all arrays together; it overflows only if the norm itself does."""
    largest = squares = 0.0  # the sum of squares is in units of the largest's
    for some in flat_pieces(arrays):
        values = np.abs(some, dtype=np.float64)
        most = float(values.max(initial=0.0))
        if not most < math.inf:
            return most
        if most > largest:
            squares, largest = squares * (largest / most) ** 2, most
        if largest:
            squares += float(np.sum((values / largest) ** 2))
    return largest * math.sqrt(squares)
