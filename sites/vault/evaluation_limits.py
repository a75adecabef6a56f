"""Limits of `Evaluate`: whole splits of enough patients, a few times a round, and a bounded number of times a day.

And of `Sign`: a bounded number of proofs of membership an hour.

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
from fedpp.texts import counted

DAY = timedelta(hours=24)
CONCURRENT = timedelta(minutes=1)  # largest difference of the times of calls that run at once
MAX_RUN_CHARACTERS = 64
HOUR = timedelta(hours=1)
MAX_PROOFS = 240  # in an hour: a coordinator asks for one when the site connects, and again when it resumes a run


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


class _RecentCalls:
    """Times of the calls within a span before now, sorted; a call that a wrong clock dated later counts from then."""

    def __init__(self, span: timedelta, past: Iterable[datetime] = ()) -> None:
        self._span, self._times = span, sorted(past)

    def count(self, now: datetime) -> int:
        del self._times[: bisect_right(self._times, now - self._span)]
        return bisect_right(self._times, now + CONCURRENT)

    def add(self, time: datetime) -> None:
        insort(self._times, time)


def past_proof(record: Mapping[str, Any]) -> Iterator[datetime]:
    """Yield the time of an audit log's record of `Sign`, if a proof was signed."""
    if record["method"] == "Sign" and "nonce" in record:
        yield datetime.fromisoformat(record["time"])


class ProofAllowance:
    """Counter of the proofs of membership that a vault signs, which refuses those beyond the limit; thread-safe."""

    def __init__(self, past: Iterable[datetime] = ()) -> None:
        """Start with the proofs that an audit log records."""
        self._lock, self._recent = threading.Lock(), _RecentCalls(HOUR, past)

    def admit(self, now: datetime) -> None:
        """Count a proof; raise `VaultError` beyond `MAX_PROOFS` within an hour."""
        with self._lock:
            if self._recent.count(now) >= MAX_PROOFS:
                raise VaultError(f"{MAX_PROOFS} proofs of membership were signed within an hour, and no more are: wait")
            self._recent.add(now)


class EvaluationAllowance:
    """Counter of a vault's calls of `Evaluate`, which refuses those beyond the limits; it is thread-safe."""

    def __init__(self, past: Iterable[EvaluationCall] = ()) -> None:
        """Start with the calls that an audit log records, in any order."""
        self._lock = threading.Lock()
        self._recent = _RecentCalls(DAY)
        self._rounds: Counter[tuple[str, int, str]] = Counter()
        for call in past:
            self._add(call)

    def admit(self, call: EvaluationCall, patients: int, limits: EvaluationLimits) -> None:
        """Count a call for a split of so many patients; raise `VaultError` that names the exceeded limit.

        A split without patients discloses nothing. A local training has no run: its calls are limited by the day only.
        """
        if 0 < patients < limits.min_patients:
            raise VaultError(
                f"split {call.split} has {counted(patients, 'patient')}, and counts of fewer than "
                f"{limits.min_patients} are not disclosed: ingest with other shares, or set evaluation: min-patients "
                "in the policy of the vault"
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
            used = self._recent.count(call.time)
            if used >= limits.per_day:
                raise VaultError(
                    f"{used} evaluations were made within 24 hours, and {limits.per_day} are allowed: "
                    "wait, or set evaluation: per-day in its policy"
                )
            self._add(call)

    def _add(self, call: EvaluationCall) -> None:
        self._recent.add(call.time)
        if call.run:
            self._rounds[call.run, call.round, call.split] += 1
