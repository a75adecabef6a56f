"""Limits of `Evaluate`: whole splits of enough patients, a few times a round, and a bounded number of times a day.

Counts of chosen predictions disclose labels and rows (docs/explanation/threats.md): the limits bound the number of
calls, and do not make a single one harmless. Patients are counted and not sequences, since one patient may have many
sequences with the same label.
"""

import threading
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpp.config.site_policy import EvaluationLimits
from fedpp.errors import VaultError
from fedpp.protocol.counts import UNKNOWN

DAY = timedelta(hours=24)
CONCURRENT = timedelta(minutes=1)  # largest difference of the times of calls that run at once
MAX_RUN_CHARACTERS = 64


@dataclass(frozen=True)
class EvaluationCall:
    """Time, run, round and split of a call of `Evaluate`, as the caller states them."""

    time: datetime
    run: str  # empty for a local training, whose epoch is the round
    round: int
    split: str


def past_evaluation(record: Mapping[str, Any]) -> Iterator[EvaluationCall]:
    """Yield the call of an audit log's record of `Evaluate`, if it was admitted."""
    if record["method"] == "Evaluate" and "samples" in record:
        time = datetime.fromisoformat(record["time"])
        yield EvaluationCall(time, record["run"], record["round"], record["split"])


def is_run(text: str) -> bool:
    """Tell whether a text can be a run's name."""
    return len(text) <= MAX_RUN_CHARACTERS and text.isprintable()


def rare(states: NDArray[np.int64], patients: NDArray[np.bytes_], min_patients: int) -> NDArray[np.bool_]:
    """Return which findings [findings] are known for some patients, but for too few.

    `states` [sequences findings] are 1, 0 or `UNKNOWN`; `patients` [sequences] are their patients.
    """
    known = [len(np.unique(patients[of_finding != UNKNOWN])) for of_finding in states.T]
    return np.array([0 < number < min_patients for number in known])


class EvaluationAllowance:
    """Counter of a vault's calls of `Evaluate`, which refuses those beyond the limits; it is thread-safe."""

    def __init__(self, past: Iterable[EvaluationCall] = ()) -> None:
        """Start with the calls that an audit log records, in any order."""
        self._lock = threading.Lock()
        self._recent: list[
            datetime
        ] = []  # sorted; a call that a wrong clock dated later does not count before that time
        self._rounds: Counter[tuple[str, int, str]] = Counter()
        for call in past:
            self._add(call)

    def admit(self, call: EvaluationCall, patients: int, limits: EvaluationLimits) -> None:
        """Count a call for a split of so many patients; raise `VaultError` that names the exceeded limit.

        A split without patients discloses nothing. A local training has no run: its calls are limited by the day only.
        """
        if 0 < patients < limits.min_patients:
            raise VaultError(
                f"split {call.split} has {patients} patients, and counts of fewer than {limits.min_patients} are "
                "not disclosed: ingest with other shares, or set evaluation: min-patients in the policy of the vault"
            )
        if call.round > limits.rounds:
            raise VaultError(
                f"round {call.round} is beyond the {limits.rounds} evaluated here: set evaluation: rounds in the policy"
            )
        with self._lock:
            used = self._rounds[call.run, call.round, call.split] if call.run else 0
            if used >= limits.per_round:
                raise VaultError(
                    f"split {call.split} was evaluated {used} times in round {call.round} of run {call.run}, and "
                    f"{limits.per_round} are allowed: set evaluation: per-round in its policy"
                )
            del self._recent[: bisect_right(self._recent, call.time - DAY)]
            used = bisect_right(self._recent, call.time + CONCURRENT)
            if used >= limits.per_day:
                raise VaultError(
                    f"{used} evaluations were made within 24 hours, and {limits.per_day} are allowed: "
                    "wait, or set evaluation: per-day in its policy"
                )
            self._add(call)

    def _add(self, call: EvaluationCall) -> None:
        insort(self._recent, call.time)
        if call.run:
            self._rounds[call.run, call.round, call.split] += 1
