"""What a round makes of the sites' updates: their sum, or what a strategy of Flower makes of them."""

from collections.abc import Callable, Mapping
from statistics import median
from typing import Protocol

import numpy as np

from fedpp.aggregation.ring import EncodedUpdate
from fedpp.aggregation.round_context import Aggregate, Contribution, Round
from fedpp.aggregation.update_check import norm
from fedpp.protocol import messages

from .run_state import Checkpoint

FAR = 5.0  # times the others' median norm: an update that is longer is told of


class Aggregation(Protocol):
    """The updates of one attempt at a round: 1. `add` each as it comes; 2. `result`; 3. `memory`."""

    def __len__(self) -> int:
        """Return how many updates were added."""

    def add(self, part: Contribution, tag: int, words: EncodedUpdate) -> None:
        """Add a site's update."""

    def total(self) -> Aggregate:
        """Return whose updates were added, in the order of the sites' names."""

    def flagged(self) -> Mapping[str, str]:
        """Return whose update is odd, and why; it was added all the same."""

    def result(self) -> tuple[str, EncodedUpdate]:
        """Return what the sites are sent, and its name in a message; raise `FederationError` if nothing comes of it."""

    def memory(self) -> bytes:
        """Return what the aggregation of the next round has to know, should the sites adopt this one's model."""


Begin = Callable[[Round, Checkpoint], Aggregation]  # of what is due, after this last round


def far_off(norms: Mapping[str, float]) -> Mapping[str, str]:
    """Return whose update is far longer than the others', by site, and by how much."""
    found = {}
    for name, length in sorted(norms.items()):
        others = [of for other, of in norms.items() if other != name]
        if len(others) > 1 and length > FAR * median(others):
            found[name] = f"its update's norm is {length:.3g}, the median of the others' {median(others):.3g}"
    return found


class RingSum:
    """Updates added up modulo 2^32 or 2^64; nothing depends on the order in which they come."""

    def __init__(self, due: Round, *, masked: bool) -> None:
        """Begin with zero; words that are not masked are looked at."""
        self._due, self._masked = due, masked
        self._words = np.zeros(due.length, due.ring.dtype)
        self._parts: dict[str, tuple[Contribution, int]] = {}
        self._norms: dict[str, float] = {}

    def __len__(self) -> int:
        """Return how many updates were added."""
        return len(self._parts)

    def add(self, part: Contribution, tag: int, words: EncodedUpdate) -> None:
        """Add a site's update."""
        self._due.ring.add(self._words, words)
        self._parts[part.site] = part, tag
        if not self._masked:
            self._norms[part.site] = norm([self._due.ring.decode(words, part.examples)])

    def total(self) -> Aggregate:
        """Return what the sum is of, in the order of the sites' names."""
        return Aggregate.of([self._parts[name] for name in sorted(self._parts)])

    def result(self) -> tuple[str, EncodedUpdate]:
        """Return what the sites are sent, and its name in a message."""
        return messages.WORDS, self._words

    def flagged(self) -> Mapping[str, str]:
        """Return whose update is far longer than the others', and by how much; they are in the sum all the same."""
        return far_off(self._norms)

    def memory(self) -> bytes:
        """Return nothing: what the server's optimizer remembers is the sites' own, in the state."""
        return b""
