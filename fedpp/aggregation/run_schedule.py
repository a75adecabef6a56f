"""Schedule of a masked run: the purpose of its next round, and the state that is its result so far.

It follows from the contract's settings and the opened evaluation counts alone, so every vault and the coordinator
compute it alike. Rounds of training come first; each opens the counts of the state that it starts from. Two rounds
without training end a run: validation of the last state, and test of the chosen one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self

from fedpp.config.run_config import Monitor
from fedpp.errors import FederationError
from fedpp.learning.metrics import metrics
from fedpp.protocol.finding_counts import AnyCounts

Due = Literal["train", "validation", "test", "end"]


_BETTER: dict[Monitor, Callable[[float, float], bool]] = {
    "loss": lambda new, best: new < best,
    "auc": lambda new, best: new > best,
}


@dataclass(frozen=True)
class RunSchedule:
    """Purpose of the next round, and the chosen state; a state has the number of the round of training that made it."""

    due: Due = "train"
    state: int = 0  # number of the last state, whose counts the next round opens
    chosen: int = 0  # number of the state that is the result so far
    value: float | None = None  # its monitored figure, on validation data; None: not known or not defined
    stale: int = 0  # states since the chosen one, without a better figure

    def advanced(self, counts: AnyCounts, *, rounds: int, monitor: Monitor, patience: int) -> Self:
        """Return the schedule after a round that opened these counts.

        After `rounds` of training, or `patience` states without a better figure (0: any number), training is over. A
        figure that is not defined is no better than another one; with monitor `last` each state is chosen.
        """
        if self.due == "end":
            raise FederationError("the run is complete: no round is due")
        if self.due == "test":
            return replace(self, due="end")
        seen = self._validated(counts, monitor)
        if self.due == "validation":
            return replace(seen, due="test")
        state = self.state + 1
        over = state >= rounds or 0 < patience <= seen.stale
        return replace(seen, state=state, due="validation" if over else "train")

    def _validated(self, counts: AnyCounts, monitor: Monitor) -> Self:
        """Return the schedule with the last state chosen, if its counts are better."""
        if monitor == "last":
            return replace(self, chosen=self.state)
        value = getattr(metrics(counts), monitor)
        if self.value is None or (value is not None and _BETTER[monitor](value, self.value)):
            return replace(self, chosen=self.state, value=value, stale=0)
        return replace(self, stale=self.stale + 1)
