"""What a round makes of the sites' updates: their sum, or what a strategy of Flower makes of them."""

from collections.abc import Callable, Mapping
from statistics import median
from typing import Protocol

from fedpp.masking.ring import Words
from fedpp.masking.rounds import Contribution, Round, Sum

from .run_folder import Checkpoint

FAR = 5.0  # times the others' median norm: an update that is longer is told of


class Aggregation(Protocol):
    """The updates of one attempt at a round: 1. `add` each as it comes; 2. `result`; 3. `memory`."""

    def __len__(self) -> int:
        """Return how many updates were added."""

    def add(self, part: Contribution, tag: int, words: Words) -> None:
        """Add a site's update."""

    def total(self) -> Sum:
        """Return whose updates were added, in the order of the sites' names."""

    def flagged(self) -> Mapping[str, str]:
        """Return whose update is odd, and why; it was added all the same."""

    def result(self) -> tuple[str, Words]:
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
