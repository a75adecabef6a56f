"""From predictions to counts, and from counts to the figures that a clinician reads.

Precision, sensitivity, specificity and F1 see two classes: class 0 is negative, every other is positive, and
a prediction is the most probable class. Accuracy and loss see all classes.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedpp.errors import FederationError
from fedpp.protocol.counts import SCORE_BINS, SCORE_EDGES, Counts, Histogram

_TOLERANCE = 1e-5  # of a row's sum: a float32 softmax passes, logits do not
_TINIEST = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Metrics:
    """The figures of some predictions; None where one is not defined, such as an AUC without positives."""

    loss: float | None  # mean cross entropy, in nats
    accuracy: float | None
    precision: float | None
    sensitivity: float | None
    specificity: float | None
    f1: float | None
    auc: float | None  # of the score 1 - p(class 0)
    missed_diagnosis_rate: float | None  # 1 - sensitivity

    def to_mapping(self) -> dict[str, float | None]:
        """Return the figures by name."""
        return asdict(self)


def count(labels: ArrayLike, probabilities: ArrayLike) -> Counts:
    """Count predictions.

    `labels` [examples] are class numbers, `probabilities` [examples classes] sum to one in each row. A true
    class of probability 0 costs 708 nats, so that sums stay finite. Raises `FederationError` for predictions
    that are none.
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


def softmax(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return probabilities `[examples classes]` of logits of the same shape."""
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.floating] = e / e.sum(axis=1, keepdims=True)
    return probabilities


def metrics(counts: Counts) -> Metrics:
    """Return the figures of these counts; the AUC is that of the scores' bins, ties counting half."""
    matrix = counts.confusion
    true_negatives, negatives = matrix[0][0], sum(matrix[0])
    false_positives, false_negatives = negatives - true_negatives, sum(row[0] for row in matrix[1:])
    positives = counts.examples - negatives
    true_positives = positives - false_negatives
    return Metrics(
        loss=_ratio(counts.loss_sum, counts.examples),
        accuracy=_ratio(sum(matrix[k][k] for k in range(len(matrix))), counts.examples),
        precision=_ratio(true_positives, true_positives + false_positives),
        sensitivity=_ratio(true_positives, positives),
        specificity=_ratio(true_negatives, negatives),
        f1=_ratio(2 * true_positives, 2 * true_positives + false_positives + false_negatives),
        auc=_auc(counts.positive_scores, counts.negative_scores),
        missed_diagnosis_rate=_ratio(false_negatives, positives),
    )


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
