"""The sum of a round's updates, word by word as they come: its memory is that of one update, however many sites."""

from collections.abc import Mapping

import numpy as np

from fedpp.learning.gate import norm
from fedpp.masking.ring import Words
from fedpp.masking.rounds import Contribution, Round, Sum
from fedpp.protocol import wire

from .aggregation import far_off


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

    def add(self, part: Contribution, tag: int, words: Words) -> None:
        """Add a site's update."""
        self._due.ring.add(self._words, words)
        self._parts[part.site] = part, tag
        if not self._masked:
            self._norms[part.site] = norm([self._due.ring.decode(words, part.examples)])

    def total(self) -> Sum:
        """Return what the sum is of, in the order of the sites' names."""
        return Sum.of([self._parts[name] for name in sorted(self._parts)])

    def result(self) -> tuple[str, Words]:
        """Return what the sites are sent, and its name in a message."""
        return wire.WORDS, self._words

    def flagged(self) -> Mapping[str, str]:
        """Return whose update is far longer than the others', and by how much; they are in the sum all the same."""
        return far_off(self._norms)

    def memory(self) -> bytes:
        """Return nothing: what the server's optimizer remembers is the sites' own, in the state."""
        return b""
