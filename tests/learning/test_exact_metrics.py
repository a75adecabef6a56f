"""Exact figures and curves are those of a slow loop over examples and thresholds."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedpp.errors import ConfigError, FederationError
from fedpp.learning.exact_metrics import Predictions, exact_auc, exact_operating_point
from fedpp.learning.metrics import metrics, presence


@st.composite
def predictions(draw: st.DrawFn) -> Predictions:
    """Draw predictions of two or three classes, with ties (sums of binary fractions are exact), 0 and 1."""
    examples, classes = draw(st.integers(1, 40)), draw(st.integers(2, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    step = draw(st.sampled_from([4, 1024]))
    parts = np.sort(rng.integers(0, step + 1, (examples, classes - 1)), axis=1)
    bounds = np.concatenate([np.zeros((examples, 1)), parts, np.full((examples, 1), step)], axis=1)
    labels = rng.integers(0, classes if draw(st.booleans()) else 1, examples)
    return Predictions.of(labels, np.diff(bounds, axis=1) / step)


def score(probabilities: NDArray[np.float64]) -> float:
    """Return the log-odds of one example's positive score."""
    negative, positive = float(probabilities[0]), float(probabilities[1:].sum())
    if not negative or not positive:
        return math.copysign(750.0, positive - negative)
    return math.log(positive) - math.log(negative)


def log_odds(probability: float) -> float:
    """Return the log-odds of a threshold."""
    return math.log(probability / (1 - probability)) if 0 < probability < 1 else math.copysign(750.0, probability - 0.5)


def rates(of: Predictions, threshold: float) -> tuple[int, int, int, int]:
    """Return true positives, false positives, true negatives and false negatives at a threshold, by a loop."""
    cells = {(truth, called): 0 for truth in (True, False) for called in (True, False)}
    for label, p in zip(of.labels, of.probabilities, strict=True):
        cells[bool(label > 0), score(p) >= threshold - 1e-9] += 1
    return cells[True, True], cells[False, True], cells[False, False], cells[True, False]


@given(predictions())
def test_the_auc_is_the_share_of_pairs_in_order(case: Predictions) -> None:
    """Of each positive with each negative the positive is higher, a tie is half; None without a pair."""
    pairs = [
        (score(p), score(q))
        for label, p in zip(case.labels, case.probabilities, strict=True)
        for other, q in zip(case.labels, case.probabilities, strict=True)
        if label > 0 and other == 0
    ]
    won = [0.5 if abs(a - b) < 1e-9 else float(a > b) for a, b in pairs]
    figures = case.metrics()
    assert figures.auc == (pytest.approx(sum(won) / len(won), abs=1e-12) if won else None)
    binned = metrics(case.counts)
    assert {**figures.to_mapping(), "auc": None} == {**binned.to_mapping(), "auc": None}


def test_the_auc_orders_scores_that_share_a_bin() -> None:
    """Scores of 0.7 and 0.7001 are in order, of 1 - 1e-12 and 1 - 1e-13 too; their bins hold both."""
    close = Predictions.of([0, 1], [[0.3, 0.7], [0.2999, 0.7001]])
    sure = Predictions.of([0, 1], [[1.0e-12, 1.0], [0.9e-12, 1.0]])
    assert [metrics(of.counts).auc for of in (close, sure)] == [0.5, 0.5]
    assert [of.metrics().auc for of in (close, sure)] == [1.0, 1.0]


@given(predictions())
def test_curves_are_those_of_every_threshold(case: Predictions) -> None:
    """Each point of both curves is the loop's at its threshold; calibration is the observed share of sorted parts."""
    curves = case.curves()
    if curves is None:
        assert exact_auc(case.positive, case.scores) is None
        return
    positives, negatives = int(case.positive.sum()), int((~case.positive).sum())
    for alarms, found, p in zip(curves.false_positive_rate, curves.sensitivity, curves.roc_threshold, strict=True):
        threshold = math.inf if found == alarms == 0 else log_odds(p)
        true_positives, false_positives, _, _ = rates(case, threshold)
        assert (found * positives, alarms * negatives) == pytest.approx((true_positives, false_positives))
    assert (curves.precision[-1], curves.recall[-1]) == (1.0, 0.0)
    area = 0.0
    points = list(zip(curves.precision, curves.recall, curves.precision_recall_threshold, strict=False))
    for precision, recall, p in points:
        true_positives, false_positives, _, missed = rates(case, log_odds(p))
        assert precision == pytest.approx(true_positives / (true_positives + false_positives))
        assert recall == pytest.approx(true_positives / (true_positives + missed))
    recall = 0.0
    for threshold in sorted({score(p) for p in case.probabilities}, reverse=True):
        true_positives, false_positives, _, _ = rates(case, threshold)
        area += (true_positives / positives - recall) * true_positives / (true_positives + false_positives)
        recall = true_positives / positives
    assert curves.average_precision == pytest.approx(area)
    assert json.loads(json.dumps(curves.to_mapping(), allow_nan=False))["recall"] == list(curves.recall)


def test_calibration_compares_prediction_with_observation() -> None:
    """Of ten parts of equal size each has its mean prediction and its share of positives."""
    rng = np.random.default_rng(3)
    p = np.sort(rng.uniform(0.01, 0.99, 1000))
    labels = (rng.uniform(size=1000) < p).astype(int)
    curves = Predictions.of(labels, np.stack([1 - p, p], axis=1)).curves()
    assert curves is not None
    parts = np.split(np.arange(1000), 10)
    assert curves.predicted_probability == pytest.approx([p[part].mean() for part in parts], abs=1e-9)
    assert curves.observed_share == pytest.approx([labels[part].mean() for part in parts], abs=1e-9)


@given(predictions(), predictions(), st.sampled_from([0.01, 0.5, 0.7, 0.9, 1.0]))
def test_the_operating_point_is_the_highest_score_up_to_one_half_that_reaches_the_sensitivity(
    validation: Predictions, test: Predictions, sensitivity: float
) -> None:
    """Every validation score is tried from the highest; decisions on the test examples are a loop's."""
    point = exact_operating_point(validation, test, sensitivity)
    positives = int(validation.positive.sum())
    if not positives:
        assert point is None
        return
    tried = sorted({score(p) for p in validation.probabilities}, reverse=True)
    expected = min(0.0, next(t for t in tried if rates(validation, t)[0] / positives >= sensitivity))
    assert point is not None
    assert (point.wanted, point.threshold) == (sensitivity, pytest.approx(expected))
    assert point.probability == pytest.approx(1 / (1 + math.exp(-min(700.0, max(-700.0, expected)))))
    found, alarms, cleared, missed = rates(test, expected)

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    assert (point.decisions.sensitivity, point.decisions.specificity) == (
        share(found, found + missed),
        share(cleared, cleared + alarms),
    )


def test_findings_are_taken_where_they_are_known() -> None:
    """An unknown state is in no finding's predictions."""
    states = np.array([[1, -1], [0, 1], [-1, 0]])
    logits = np.array([[2.0, 9.0], [-1.0, 0.5], [7.0, -0.5]])
    first, second = Predictions.of_findings(states, presence(logits))
    assert (first.labels.tolist(), second.labels.tolist()) == ([1, 0], [1, 0])
    np.testing.assert_allclose(first.scores, [2.0, -1.0])
    np.testing.assert_allclose(second.scores, [0.5, -0.5])


def test_what_is_no_prediction_is_rejected() -> None:
    """Logits and sensitivities beyond 0 and 1 raise the errors of `count` and of `threshold_for`."""
    with pytest.raises(FederationError, match="softmax"):
        Predictions.of([0], [[2.5, -1.5]])
    one = Predictions.of([1], [[0.5, 0.5]])
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        exact_operating_point(one, one, 0.0)
