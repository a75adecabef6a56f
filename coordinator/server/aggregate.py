"""Aggregation of a round's updates: their sum in the ring, or the result of a strategy of Flower."""

from collections.abc import Callable, Mapping
from statistics import median
from typing import Protocol

import numpy as np

from fedpp.aggregation.ring import EncodedUpdate
from fedpp.aggregation.round_context import Aggregate, Contribution, Round
from fedpp.aggregation.update_check import norm
from fedpp.protocol import messages

from .run_state import Checkpoint

FLAG_FACTOR = 5.0  # times the others' median norm: a longer update is flagged


class Aggregation(Protocol):
    """Aggregation of one attempt's updates: 1. `add` each as it arrives; 2. `result`; 3. `strategy_state`."""

    def __len__(self) -> int:
        """Return how many updates were added."""

    def add(self, part: Contribution, update: EncodedUpdate) -> None:
        """Add a site's update."""

    def contributions(self) -> Aggregate:
        """Return whose updates were added, in the order of the sites' names."""

    def flagged(self) -> Mapping[str, str]:
        """Return the sites whose update is odd, and why; they are aggregated all the same."""

    def result(self) -> tuple[str, EncodedUpdate]:
        """Return name and content of the array for the sites; raise `FederationError` if there is none."""

    def strategy_state(self) -> bytes:
        """Return the state that the next round's aggregation needs if the sites accept this one's model."""


MakeAggregation = Callable[[Round, Checkpoint], Aggregation]  # for the attempt due, after this last accepted round


def outliers(norms: Mapping[str, float]) -> Mapping[str, str]:
    """Return the sites whose update is far longer than the others', and by how much."""
    found = {}
    for name, length in sorted(norms.items()):
        others = [of for other, of in norms.items() if other != name]
        if len(others) > 1 and length > FLAG_FACTOR * median(others):
            found[name] = f"its update's norm is {length:.3g}, the median of the others' {median(others):.3g}"
    return found


class RingSum:
    """Sum of encoded updates modulo 2^32 or 2^64; it does not depend on the order in which they arrive."""

    def __init__(self, due: Round) -> None:
        """Start with zero."""
        self._due = due
        self._sum = np.zeros(due.length, due.ring.dtype)
        self._parts: dict[str, Contribution] = {}
        self._norms: dict[str, float] = {}

    def __len__(self) -> int:
        """Return how many updates were added."""
        return len(self._parts)

    def add(self, part: Contribution, update: EncodedUpdate) -> None:
        """Add a site's update."""
        self._due.ring.add(self._sum, update)
        self._parts[part.site] = part
        self._norms[part.site] = norm([self._due.ring.decode(update, part.examples)])

    def contributions(self) -> Aggregate:
        """Return whose updates the sum has, in the order of the sites' names."""
        return Aggregate(tuple(self._parts[name] for name in sorted(self._parts)))

    def result(self) -> tuple[str, EncodedUpdate]:
        """Return the name and content of the array that the sites are sent."""
        return messages.WORDS, self._sum

    def flagged(self) -> Mapping[str, str]:
        """Return the sites whose update is far longer than the others', and by how much; the sum includes them."""
        return outliers(self._norms)

    def strategy_state(self) -> bytes:
        """Return nothing: the server optimizer runs at the sites, and its moments are in the global state."""
        return b""
