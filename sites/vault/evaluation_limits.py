"""How much `Score` may tell: whole splits of enough patients, a few times a round, a bounded number of times a day.

Counts of chosen predictions give away labels and rows (docs/threats.md): each call is a question, and these limits
bound how many are answered. They do not make a single answer harmless. It is patients that count, and not sequences:
one patient may have many, all of one label.
"""

import threading
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from fedpp.config.site_policy import EvaluationLimits
from fedpp.errors import VaultError
from fedpp.protocol.counts import UNKNOWN

DAY = timedelta(hours=24)
AT_ONCE = timedelta(minutes=1)  # by which calls that run at the same time are dated after each other at most
LONGEST_RUN = 64


@dataclass(frozen=True)
class EvaluationCall:
    """What a call of `Score` says that it is for."""

    time: datetime
    run: str  # nothing for a local training, whose epoch is the round
    round: int
    split: str


def is_run(text: str) -> bool:
    """Tell whether a text can be a run's name."""
    return len(text) <= LONGEST_RUN and text.isprintable()


def rare(states: NDArray[np.int64], patients: NDArray[np.bytes_], least: int) -> NDArray[np.bool_]:
    """Tell which findings are known for too few patients, though for some.

    `states` [sequences findings] are 1, 0 or `UNKNOWN`, `patients` [sequences] whose they are; returns [findings].
    """
    known = [len(np.unique(patients[of_finding != UNKNOWN])) for of_finding in states.T]
    return np.array([0 < number < least for number in known])


class EvaluationAllowance:
    """Counts a vault's calls of `Score` and refuses those beyond the limits; many threads may ask at once."""

    def __init__(self, past: Iterable[EvaluationCall] = ()) -> None:
        """Begin with the calls that an audit log tells of, in any order."""
        self._lock = threading.Lock()
        self._recent: list[datetime] = []  # sorted; what a wrong clock dated later does not count before that time
        self._rounds: Counter[tuple[str, int, str]] = Counter()
        for call in past:
            self._add(call)

    def admit(self, call: EvaluationCall, patients: int, limits: EvaluationLimits) -> None:
        """Count a call for a split of so many patients; raise `VaultError` that names the limit which it exceeds.

        A split without patients tells nothing. A local training has no run to be counted by: its calls are bounded by
        the day alone.
        """
        if 0 < patients < limits.min_patients:
            raise VaultError(
                f"split {call.split} has {patients} patients, and counts of fewer than {limits.min_patients} are "
                "not told: ingest with other shares, or set evaluation: min-patients in the policy of the vault"
            )
        if call.round > limits.rounds:
            raise VaultError(
                f"round {call.round} is beyond the {limits.rounds} scored here: set evaluation: rounds in the policy"
            )
        with self._lock:
            used = self._rounds[call.run, call.round, call.split] if call.run else 0
            if used >= limits.per_round:
                raise VaultError(
                    f"split {call.split} was scored {used} times in round {call.round} of run {call.run}, and "
                    f"{limits.per_round} are allowed: set evaluation: per-round in its policy"
                )
            del self._recent[: bisect_right(self._recent, call.time - DAY)]
            used = bisect_right(self._recent, call.time + AT_ONCE)
            if used >= limits.per_day:
                raise VaultError(
                    f"{used} calls were scored within 24 hours, and {limits.per_day} are allowed: "
                    "wait, or set evaluation: per-day in its policy"
                )
            self._add(call)

    def _add(self, call: EvaluationCall) -> None:
        insort(self._recent, call.time)
        if call.run:
            self._rounds[call.run, call.round, call.split] += 1
