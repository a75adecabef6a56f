"""Metrics: evaluation counts of predictions, and the figures (AUC, sensitivity, ...) computed from counts.

Precision (the positive predictive value, PPV), the negative predictive value (NPV), sensitivity, specificity and F1 are
of two classes: class 0 is negative, every other class is positive, and the prediction is the most probable class.
Accuracy and loss are of all classes. A multi-label task has figures for each
finding; its own figures are their means over the findings for which they are defined.

An *operating point* is a threshold of the positive score of at most one half: chosen on validation data for a wanted
sensitivity, tested on other data. Where single predictions are at hand, `exact_metrics` needs no bins.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedpp.errors import ConfigError, FederationError
from fedpp.protocol.counts import SCORE_BINS, SCORE_EDGES, UNKNOWN, Counts, Histogram
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts

_TOLERANCE = 1e-5  # of a row's sum: a float32 softmax passes, logits do not
_TINIEST = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Metrics:
    """Figures of predictions; None for a figure that is not defined, such as an AUC without positives."""

    loss: float | None  # mean cross entropy, in nats
    accuracy: float | None
    precision: float | None  # positive predictive value
    sensitivity: float | None
    specificity: float | None
    f1: float | None
    auc: float | None  # of the score 1 - p(class 0)
    missed_diagnosis_rate: float | None  # 1 - sensitivity
    npv: float | None = None  # negative predictive value

    def to_mapping(self) -> dict[str, float | None]:
        """Return the figures by name."""
        return asdict(self)


@dataclass(frozen=True)
class Decisions:
    """Counts of decisions, positive or negative, and their figures.

    They have no accuracy: that is of all classes, with the most probable one as the decision.
    """

    found: int  # true positives
    alarms: int  # false positives
    cleared: int  # true negatives
    missed: int  # false negatives

    @property
    def positives(self) -> int:
        """Return how many examples are positive."""
        return self.found + self.missed

    @property
    def negatives(self) -> int:
        """Return how many examples are negative."""
        return self.cleared + self.alarms

    @property
    def sensitivity(self) -> float | None:
        """Return the share of the positives that are found."""
        return _ratio(self.found, self.positives)

    @property
    def specificity(self) -> float | None:
        """Return the share of the negatives that are cleared."""
        return _ratio(self.cleared, self.negatives)

    def to_mapping(self) -> dict[str, int | float | None]:
        """Return counts and figures by name."""
        return {**asdict(self), **self.figures()}

    def figures(self) -> dict[str, float | None]:
        """Return the figures by name, as in `Metrics`."""
        return {
            "precision": _ratio(self.found, self.found + self.alarms),
            "npv": _ratio(self.cleared, self.cleared + self.missed),
            "sensitivity": self.sensitivity,
            "specificity": self.specificity,
            "f1": _ratio(2 * self.found, 2 * self.found + self.alarms + self.missed),
            "missed_diagnosis_rate": _ratio(self.missed, self.positives),
        }

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned; raise `ValueError` where the figures are not those of the counts."""
        made = cls(**{field.name: values[field.name] for field in fields(cls)})
        if made.to_mapping() != values:
            raise ValueError("the figures of decisions do not follow from their counts")
        return made


@dataclass(frozen=True)
class OperatingPoint:
    """Threshold chosen on validation data, with its decisions on test data.

    It is never above one half, where no sensitivity was wanted: a lower wanted sensitivity does not add misses.
    """

    wanted: float  # minimum sensitivity on the validation data
    threshold: float  # log-odds of the positive score
    probability: float  # the same threshold as a probability
    decisions: Decisions

    @property
    def heading(self) -> str:
        """Return in words which threshold it is, and why."""
        wanted = f"a sensitivity of {self.wanted:g} on validation data"
        if self.threshold >= SCORE_EDGES[SCORE_BINS // 2]:
            return f"threshold {self.probability:.3f}, kept at one half: that reaches {wanted}"
        return f"threshold {self.probability:.3f}, chosen for {wanted}"

    def to_mapping(self) -> dict[str, Any]:
        """Return values fit for JSON."""
        return {**asdict(self), "decisions": self.decisions.to_mapping()}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned."""
        return cls(**{**values, "decisions": Decisions.from_mapping(values["decisions"])})


def count(labels: ArrayLike, probabilities: ArrayLike) -> Counts:
    """Count predictions.

    `labels` [examples] are class numbers, `probabilities` [examples classes] sum to one in each row. A true
    class of probability 0 costs 708 nats, so that sums stay finite. Raises `FederationError` for arrays that are not
    predictions.
    """
    true, p = _checked(np.asarray(labels), np.asarray(probabilities, dtype=np.float64))
    examples, classes = p.shape
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (true, p.argmax(axis=1)), 1)
    with np.errstate(divide="ignore"):
        log_odds = np.log(p[:, 1:].sum(axis=1)) - np.log(p[:, 0])
    return Counts(
        examples,
        math.fsum(_losses(true, p)),
        tuple(tuple(row) for row in confusion.tolist()),
        _histogram(log_odds[true > 0]),
        _histogram(log_odds[true == 0]),
    )


def count_findings(states: ArrayLike, probabilities: ArrayLike) -> FindingCounts:
    """Count predictions of several findings, each over the examples where it is known.

    `states` [examples findings] are 1, 0 or `UNKNOWN`, `probabilities` [examples findings 2] those of absence and
    presence, as `presence` gives them. Raises `FederationError` as `count` does.
    """
    true, p = np.asarray(states), np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 3 or p.shape[2] != 2 or true.shape != p.shape[:2]:
        raise FederationError(
            "predictions need states [examples, findings] and probabilities [examples, findings, 2], "
            f"got {true.shape} and {p.shape}"
        )
    known = true != UNKNOWN
    findings = range(true.shape[1])
    return FindingCounts(len(true), tuple(count(true[known[:, k], k], p[known[:, k], k]) for k in findings))


def softmax(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return probabilities `[.. classes]` of logits of the same shape."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.floating] = e / e.sum(axis=-1, keepdims=True)
    return probabilities


def presence(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the probabilities `[.. findings 2]` of absence and presence: `sigmoid` of a logit is that of presence."""
    return softmax(np.stack([np.zeros_like(logits), logits], axis=-1))


def metrics(counts: AnyCounts) -> Metrics:
    """Return the figures of counts; the AUC is of the binned scores, with ties counted half."""
    if isinstance(counts, FindingCounts):
        return mean_metrics([metrics(finding) for finding in counts.findings])
    matrix = counts.confusion
    return Metrics(
        **decisions(counts).figures(),
        loss=_ratio(counts.loss_sum, counts.examples),
        accuracy=_ratio(sum(matrix[k][k] for k in range(len(matrix))), counts.examples),
        auc=_auc(counts.positive_scores, counts.negative_scores),
    )


def decisions(counts: Counts) -> Decisions:
    """Return the decisions for the most probable class: class 0 is negative, every other one is positive."""
    first = of_class(counts, 0)
    return Decisions(found=first.cleared, alarms=first.missed, cleared=first.found, missed=first.alarms)


def of_class(counts: Counts, number: int) -> Decisions:
    """Return the decisions for the most probable class, with one class as the positive one."""
    row = counts.confusion[number]
    found, called = row[number], sum(of_true[number] for of_true in counts.confusion)
    missed, alarms = sum(row) - found, called - found
    return Decisions(found=found, alarms=alarms, cleared=counts.examples - found - missed - alarms, missed=missed)


def threshold_for(counts: Counts, sensitivity: float) -> float | None:
    """Return the highest threshold up to one half with at least this sensitivity on these counts.

    It is in log-odds of the positive score, one of `SCORE_EDGES`: scores in the bin above it, and higher scores, are
    called positive. Scores of one half share a bin, which is above it. Returns None without positives. Raises
    `ConfigError` for a sensitivity that is not above 0 and at most 1.
    """
    require_share(sensitivity)
    positives = sum(counts.positive_scores)
    for score_bin in reversed(range(SCORE_BINS // 2 + 1)):
        if positives and sum(counts.positive_scores[score_bin:]) / positives >= sensitivity:
            return SCORE_EDGES[score_bin]
    return None


def at_threshold(counts: Counts, threshold: float) -> Decisions:
    """Return the decisions of counts with scores at or above a threshold of `threshold_for` called positive.

    Raises `ConfigError` for a threshold inside a bin, since counts do not say which scores are above it.
    """
    if threshold not in SCORE_EDGES[:-1]:
        raise ConfigError(f"a threshold is the lower edge of a bin of scores, got {threshold}")
    above = slice(SCORE_EDGES.index(threshold), None)
    found, alarms = sum(counts.positive_scores[above]), sum(counts.negative_scores[above])
    positives, negatives = sum(counts.positive_scores), sum(counts.negative_scores)
    return Decisions(found=found, alarms=alarms, cleared=negatives - alarms, missed=positives - found)


def operating_point(validation: Counts, test: Counts, sensitivity: float) -> OperatingPoint | None:
    """Choose the threshold for a sensitivity on validation counts and test it on others; None without positives."""
    threshold = threshold_for(validation, sensitivity)
    if threshold is None:
        return None
    return OperatingPoint(sensitivity, threshold, 1 / (1 + math.exp(-threshold)), at_threshold(test, threshold))


def require_share(sensitivity: float) -> None:
    """Raise `ConfigError` for a wanted sensitivity that is not above 0 and at most 1."""
    if not 0 < sensitivity <= 1:
        raise ConfigError(f"a wanted sensitivity is above 0 and at most 1, got {sensitivity}")


def mean_metrics(of_findings: Sequence[Metrics]) -> Metrics:
    """Return each figure's mean over the findings for which it is defined."""
    values = {field.name: [getattr(figures, field.name) for figures in of_findings] for field in fields(Metrics)}
    defined = {name: [value for value in of_each if value is not None] for name, of_each in values.items()}
    return Metrics(**{name: math.fsum(known) / len(known) if known else None for name, known in defined.items()})


def _checked(
    labels: NDArray[np.generic], probabilities: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or labels.shape != probabilities.shape[:1]:
        raise FederationError(
            "predictions need labels [examples] and probabilities [examples, classes], "
            f"got {labels.shape} and {probabilities.shape}"
        )
    if not np.isfinite(probabilities).all():
        raise FederationError("predictions are not finite: the training diverged; lower the learning rate")
    if (probabilities < 0).any() or (abs(probabilities.sum(axis=1) - 1) > _TOLERANCE).any():
        raise FederationError("predictions must be probabilities that sum to one: apply softmax first")
    if labels.size and not np.issubdtype(labels.dtype, np.integer):
        raise FederationError(f"labels must be class numbers, got an array of {labels.dtype}")
    true = labels.astype(np.int64)
    classes = probabilities.shape[1]
    if ((true < 0) | (true >= classes)).any():
        raise FederationError(f"labels must be 0 to {classes - 1}, got {true.min()} to {true.max()}")
    return true, probabilities


def _losses(true: NDArray[np.int64], p: NDArray[np.float64]) -> NDArray[np.float64]:
    # Close to 1, a probability has lost the digits that its complement still has.
    is_true = np.arange(p.shape[1]) == true[:, np.newaxis]
    chosen, others = p[is_true], np.where(is_true, 0.0, p).sum(axis=1)
    sure = chosen > 0.5
    return np.where(sure, -np.log1p(-np.where(sure, others, 0.0)), -np.log(np.maximum(chosen, _TINIEST)))


def _histogram(log_odds: NDArray[np.float64]) -> Histogram:
    # Only the inner edges separate: what lies beyond the outer ones, infinity included, is in the outer bins.
    bins = np.searchsorted(SCORE_EDGES[1:-1], log_odds, side="right")
    return tuple(np.bincount(bins, minlength=SCORE_BINS).tolist())


def _auc(positives: Histogram, negatives: Histogram) -> float | None:
    twice_won, below = 0, 0
    for positive, negative in zip(positives, negatives, strict=True):
        twice_won += positive * (2 * below + negative)
        below += negative
    return _ratio(twice_won, 2 * sum(positives) * below)


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None
