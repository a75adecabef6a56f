"""Counts of training labels, and the weights of the loss that balance them: `positive-weight: 0`.

Of one label a sequence, the number of training sequences of each class; of several findings, for each finding in how
many it is absent, and in how many present. Sites count alike in all runs; what a run uses is the sum of its sites. The
weights are in force from round 2 on, since round 1 opens the sum.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fedpp.config.task import Task
from fedpp.errors import FederationError
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts

LabelCounts = tuple[int, ...]

LABELS = "labels"  # key beside those of evaluation counts
MAX_WEIGHT = 100.0  # of a class: a rarer one would make single steps of training


def size(task: Task) -> int:
    """Return how many counts a task's labels have."""
    return 2 * len(task.classes) if task.multi_label else len(task.classes)


def of_counts(counts: AnyCounts) -> LabelCounts:
    """Return the labels of the sequences that evaluation counts are of, whatever was predicted."""
    of_each = counts.findings if isinstance(counts, FindingCounts) else (counts,)
    return tuple(sum(row) for of in of_each for row in of.confusion)


def total(labels: Sequence[LabelCounts]) -> LabelCounts:
    """Return the counts of several sites together."""
    return tuple(map(sum, zip(*labels, strict=True)))


def require(labels: Sequence[int], task: Task, examples: int) -> LabelCounts:
    """Return the counts of so many training sequences; raise `FederationError` for what these cannot have.

    Each sequence has one class; a finding may be unknown.
    """
    parts = _parts(labels, task)
    whole = all(type(count) is int and count >= 0 for count in labels) and len(labels) == size(task)
    if not whole or any(sum(of) > examples or (sum(of) < examples and not task.multi_label) for of in parts):
        raise FederationError(
            f"the labels of {examples} training sequences of {len(task.classes)} classes cannot be counted as "
            f"{list(labels)!r:.80}: use one fedpp at all sites"
        )
    return tuple(labels)


def with_labels(counts: AnyCounts, labels: LabelCounts | None) -> dict[str, Any]:
    """Return evaluation counts fit for JSON, with the labels that were counted beside them, if they were."""
    return {**counts.to_mapping(), **({} if labels is None else {LABELS: list(labels)})}


def read_labels(values: Mapping[str, Any], kind: type[AnyCounts]) -> tuple[AnyCounts, LabelCounts | None]:
    """Read what `with_labels` returned; the labels are not compared with any task (`require`)."""
    labels = values.get(LABELS)
    if labels is not None and not (isinstance(labels, list) and all(type(count) is int for count in labels)):
        raise FederationError(f"labels are counted by whole numbers, got {labels!r:.80}: use one fedpp at all sites")
    counts = kind.from_mapping({name: value for name, value in values.items() if name != LABELS})
    return counts, None if labels is None else tuple(labels)


def class_weights(task: Task, positive_weight: float, labels: LabelCounts | None) -> tuple[float, ...]:
    """Return the weight of each class, or of each finding that is present, in the loss of a round of training.

    A positive weight of 0 balances the labels: a class weighs as many times as much as the first one as it is rarer,
    and a finding that is present as one that is absent, within `MAX_WEIGHT`. Without labels, and where either was never
    seen, the weight is 1.
    """
    if positive_weight:
        first = () if task.multi_label else (1.0,)
        return first + (positive_weight,) * (len(task.classes) - len(first))
    if labels is None:
        return (1.0,) * len(task.classes)
    weights = [[_weight(of[0], count) for count in of] for of in _parts(labels, task)]
    return tuple(of[1] for of in weights) if task.multi_label else tuple(weights[0])


def described(labels: LabelCounts, task: Task) -> str:
    """Return the counts and their weights in words."""
    parts = zip(task.classes, _parts(labels, task), strict=True) if task.multi_label else ()
    counted = [f"{name} {present} of {absent + present}" for name, (absent, present) in parts]
    if not task.multi_label:
        counted = [f"{name} {count}" for name, count in zip(task.classes, labels, strict=True)]
    weights = ", ".join(f"{weight:.4g}" for weight in class_weights(task, 0.0, labels))
    return f"training labels {', '.join(counted)}; weights {weights} from round 2"


def _parts(labels: Sequence[int], task: Task) -> list[Sequence[int]]:
    """Return the counts of which each sequence is in one at most: of the classes, or of each finding."""
    step = 2 if task.multi_label else max(1, len(labels))
    return [labels[start : start + step] for start in range(0, len(labels), step)]


def _weight(reference: int, count: int) -> float:
    return min(max(reference / count, 1 / MAX_WEIGHT), MAX_WEIGHT) if reference and count else 1.0
