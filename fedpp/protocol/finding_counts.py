"""Evaluation counts of a multi-label task: for each finding, over the sequences where it is known."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Self, cast

from fedpp.config.task import Task
from fedpp.errors import FederationError
from fedpp.protocol.counts import SCORE_BINS, Counts, MappedCounts

_EXAMPLES = "examples"
_LONGEST_NUMBER, _LONGEST_NAMES = 24, 128  # characters of a number in JSON, and of the names of one finding's counts


@dataclass(frozen=True)
class FindingCounts:
    """Evaluation counts of predictions for `examples` sequences, one for each finding in the dataset's order.

    A sequence where a finding is unknown is in none of its counts. Raises `FederationError` for figures that
    contradict each other.
    """

    examples: int
    findings: tuple[Counts, ...]  # of 2 classes each: absent, present

    def __post_init__(self) -> None:
        """Refuse counts of no finding, of other classes, or of more examples than there are."""
        if type(self.examples) is not int:
            raise FederationError(f"counts need whole numbers as 'examples', got {type(self.examples).__name__}")
        if not self.findings or any(len(counts.confusion) != 2 for counts in self.findings):
            raise FederationError("counts of findings need those of 2 classes, absent and present, for each")
        known = max(counts.examples for counts in self.findings)
        if known > self.examples:
            raise FederationError(f"counts do not add up: a finding is known in {known} of {self.examples} examples")

    @classmethod
    def zero(cls, findings: int) -> Self:
        """Return the counts of no example, the neutral element of addition."""
        return cls(0, (Counts.zero(2),) * findings)

    def __add__(self, other: Self) -> Self:
        """Return the counts of both sets of examples together, finding by finding."""
        if len(self.findings) != len(other.findings):
            raise FederationError(
                f"counts of {len(self.findings)} and of {len(other.findings)} findings cannot be added: "
                "ingest all sites with the same findings"
            )
        return type(self)(self.examples + other.examples, tuple(map(add, self.findings, other.findings)))

    def to_mapping(self) -> MappedCounts:
        """Return flat numbers and lists, fit for JSON and for a MetricRecord: each finding's under its number."""
        mapped: MappedCounts = {_EXAMPLES: self.examples}
        for number, counts in enumerate(self.findings):
            mapped |= {f"{number}-{name}": value for name, value in counts.to_mapping().items()}
        return mapped

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> Self:
        """Read what `to_mapping` returned; raise `FederationError` for anything else."""
        by_finding: dict[str, dict[str, object]] = {}
        for key, value in values.items():
            if key != _EXAMPLES:
                number, _, name = key.partition("-")
                by_finding.setdefault(number, {})[name] = value
        numbers = [str(number) for number in range(len(by_finding))]
        unknown = sorted(set(by_finding) - set(numbers))
        if unknown or _EXAMPLES not in values:
            wrong = f"unknown {unknown[0]!r:.40}" if unknown else f"missing {_EXAMPLES!r}"
            raise FederationError(f"counts of findings do not fit: {wrong}; use one fedpp at all sites")
        found = tuple(Counts.from_mapping(by_finding[number]) for number in numbers)
        return cls(cast("int", values[_EXAMPLES]), found)  # its own check refuses another kind


AnyCounts = Counts | FindingCounts


def longest_text(task: Task) -> int:
    """Return a bound of the characters of the JSON of a task's counts."""
    classes = 2 if task.multi_label else len(task.classes)
    each = (2 + classes * classes + 2 * SCORE_BINS) * _LONGEST_NUMBER + _LONGEST_NAMES
    return _LONGEST_NAMES + each * (len(task.classes) if task.multi_label else 1)


def total(counts: Iterable[AnyCounts]) -> AnyCounts:
    """Return the counts of all examples together; there must be some of one kind."""
    return reduce(add, counts)
