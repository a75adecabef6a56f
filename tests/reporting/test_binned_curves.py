"""Curves of opened counts: those that scikit-learn draws of one example a count, at its bin."""

import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

from fedpp.learning.exact_metrics import Predictions
from fedpp.learning.metrics import count, metrics
from fedpp.protocol.counts import SCORE_BINS, SCORE_EDGES, Counts
from fedpp.reporting.binned_curves import binned_curves


def predictions(examples: int, distance: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and probabilities of two overlapping normal distributions of log-odds."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(examples) % 3 == 0).astype(int)
    scores = generator.normal(distance * (labels - 0.5), 1)
    positive = 1 / (1 + np.exp(-scores))
    return labels, np.stack([1 - positive, positive], axis=1)


def one_by_one(counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Return label and bin of each counted example."""
    bins = np.arange(SCORE_BINS)
    kinds = [np.repeat(bins, counts.negative_scores), np.repeat(bins, counts.positive_scores)]
    return np.repeat([0, 1], [len(kind) for kind in kinds]), np.concatenate(kinds)


@pytest.mark.parametrize(("examples", "distance"), [(12, 1.0), (30, 0.0), (400, 2.0), (5000, 9.0)])
def test_curves_are_those_of_single_examples_at_their_bins(examples: int, distance: float) -> None:
    """ROC, precision-recall and average precision equal scikit-learn's of the expanded counts."""
    counts = count(*predictions(examples, distance, seed=examples))
    labels, bins = one_by_one(counts)
    curves = binned_curves(counts)
    assert curves is not None
    false_positive_rate, sensitivity, _ = roc_curve(labels, bins)
    assert curves.false_positive_rate == pytest.approx(false_positive_rate)
    assert curves.sensitivity == pytest.approx(sensitivity)
    precision, recall, _ = precision_recall_curve(labels, bins, drop_intermediate=True)
    assert curves.precision == pytest.approx(precision)
    assert curves.recall == pytest.approx(recall)
    assert curves.average_precision == pytest.approx(average_precision_score(labels, bins))
    assert auc(curves.false_positive_rate, curves.sensitivity) == pytest.approx(metrics(counts).auc)
    edges = 1 / (1 + np.exp(-np.array(SCORE_EDGES[:-1])))
    assert np.abs(edges - np.array(curves.roc_threshold[1:])[:, None]).min(axis=1).max() < 1e-12


def test_binned_curves_are_close_to_exact_ones() -> None:
    """Of 2,000 predictions the bins move no point of the ROC curve by more than 0.05, and the area by 0.002."""
    labels, probabilities = predictions(2000, 2.0, seed=1)
    exact, binned = Predictions.of(labels, probabilities).curves(), binned_curves(count(labels, probabilities))
    assert exact is not None
    assert binned is not None
    grid = np.linspace(0, 1, 101)
    lines = [np.interp(grid, of.false_positive_rate, of.sensitivity) for of in (exact, binned)]
    assert np.abs(lines[0] - lines[1]).max() < 0.05
    assert abs(np.trapezoid(lines[0], grid) - np.trapezoid(lines[1], grid)) < 0.002


def test_calibration_says_the_share_of_positives_of_each_tenth() -> None:
    """Calibrated predictions lie near the diagonal, and the points' shares are those of their examples."""
    generator = np.random.default_rng(3)
    probability = generator.uniform(0.02, 0.98, 20_000)
    labels = (generator.uniform(size=20_000) < probability).astype(int)
    curves = binned_curves(count(labels, np.stack([1 - probability, probability], axis=1)))
    assert curves is not None
    assert len(curves.observed_share) >= 8
    for predicted, observed in zip(curves.predicted_probability, curves.observed_share, strict=True):
        near = labels[np.abs(probability - predicted) < 0.03].mean()
        assert observed == pytest.approx(near, abs=0.03)
        assert observed == pytest.approx(predicted, abs=0.04)


@pytest.mark.parametrize("label", [0, 1])
def test_one_sided_counts_have_no_curves(label: int) -> None:
    """Without positives, or without negatives, no curve is defined."""
    assert binned_curves(count([label] * 3, [[0.5, 0.5]] * 3)) is None
