"""The figures agree with scikit-learn's, add up over sites, and are None where nothing is defined."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from fedpp.errors import FederationError
from fedpp.learning.metrics import Metrics, count, metrics
from fedpp.protocol.counts import SCORE_BINS, SCORE_EDGES, Counts

Predictions = tuple[NDArray[np.int64], NDArray[np.float64]]


@st.composite
def predictions(draw: st.DrawFn, classes: int | None = None, least: int = 1) -> Predictions:
    """Draw true classes and probabilities, from undecided to 1e-13, below which scikit-learn clips."""
    number = classes or draw(st.integers(2, 4))
    examples, scale = draw(st.integers(least, 60)), 10 ** draw(st.floats(-4, 1.2))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    exponentials = np.exp(rng.normal(scale=scale, size=(examples, number)).clip(-15, 15))
    return rng.integers(0, number, examples), exponentials / exponentials.sum(axis=1, keepdims=True)


def log_odds(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log-odds of the positive score [examples]."""
    return np.asarray(np.log(probabilities[:, 1:].sum(axis=1)) - np.log(probabilities[:, 0]))


@settings(deadline=None)  # scikit-learn's first call is slow
@given(predictions())
def test_figures_agree_with_scikit_learn(case: Predictions) -> None:
    """Every figure is scikit-learn's; where that has no value, ours is None."""
    labels, p = case
    figures = metrics(count(labels, p))
    truth, predicted = labels > 0, p.argmax(axis=1) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "loss": log_loss(labels, p, labels=range(p.shape[1])),
            "accuracy": accuracy_score(labels, p.argmax(axis=1)),
            "precision": precision_score(truth, predicted, zero_division=np.nan),
            "sensitivity": recall_score(truth, predicted, zero_division=np.nan),
            "specificity": recall_score(~truth, ~predicted, zero_division=np.nan),
            "f1": f1_score(truth, predicted, zero_division=np.nan),
        }
    for name, value in expected.items():
        ours = figures.to_mapping()[name]
        assert (math.nan if ours is None else ours) == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True)
    if figures.sensitivity is not None:
        assert figures.missed_diagnosis_rate == pytest.approx(1 - figures.sensitivity, abs=1e-15)


@settings(deadline=None)  # scikit-learn's first call is slow
@given(predictions(least=2))
def test_auc_is_that_of_the_binned_scores(case: Predictions) -> None:
    """The AUC is scikit-learn's for scores rounded to their bins, and None when a class is absent."""
    labels, p = case
    figures = metrics(count(labels, p))
    if 0 < (labels > 0).sum() < len(labels):
        binned = np.digitize(log_odds(p).clip(-39.9, 39.9), SCORE_EDGES)
        assert figures.auc == pytest.approx(roc_auc_score(labels > 0, binned), abs=1e-12)
    else:
        assert figures.auc is None


@pytest.mark.parametrize("scale", [0.003, 0.1, 1.0, 5.0])
def test_binning_hardly_moves_the_auc(scale: float) -> None:
    """Bins move the AUC of 2000 examples by less than 0.001, whether scores cluster at one half or spread."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 2, 2000)
    positive = 1 / (1 + np.exp(-scale * (rng.normal(size=2000) + labels)))
    p = np.stack([1 - positive, positive], axis=1)
    assert metrics(count(labels, p)).auc == pytest.approx(roc_auc_score(labels, positive), abs=1e-3)


@given(predictions(classes=3, least=2), st.data())
def test_counts_of_parts_add_to_the_counts_of_all(case: Predictions, data: st.DataObject) -> None:
    """However the examples lie at sites, the added counts are those of all examples together."""
    labels, p = case
    cut = data.draw(st.integers(0, len(labels)))
    together, parts = count(labels, p), count(labels[:cut], p[:cut]) + count(labels[cut:], p[cut:])
    assert parts.loss_sum == pytest.approx(together.loss_sum, rel=1e-9, abs=1e-8)
    assert (parts.confusion, parts.positive_scores, parts.negative_scores) == (
        together.confusion,
        together.positive_scores,
        together.negative_scores,
    )


def test_loss_is_careful_at_both_ends() -> None:
    """Nearly certain predictions cost what their complement says; impossible ones cost a finite sum."""
    sure = count([1], [[1e-8, 1 - 1e-8]])
    assert sure.loss_sum == pytest.approx(1e-8, abs=2.0**-30)
    surer = count([0] * 1000, [[1.0, 1e-11]] * 1000)
    assert surer.loss_sum == pytest.approx(1e-8, abs=2.0**-30)
    impossible = count([0], [[0.0, 1.0]])
    assert 700 < impossible.loss_sum < 746


def test_certain_scores_fall_into_the_outer_bins() -> None:
    """Probabilities of exactly 0 and 1 are counted at the ends of the grid."""
    counts = count([1, 0, 1], [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert counts.positive_scores[SCORE_BINS - 1] == 2
    assert counts.negative_scores[0] == 1


def test_undecided_predictions_tie() -> None:
    """A model that says one half, give or take rounding, has an AUC of exactly one half."""
    noise = np.array([1e-16, -1e-16, 2e-16, -2e-16])
    p = np.stack([0.5 + noise, 0.5 - noise], axis=1)
    assert metrics(count([0, 1, 1, 0], p)).auc == 0.5


def test_nothing_is_defined_without_examples() -> None:
    """A test split without sequences has no figure, and none is invented."""
    assert metrics(Counts.zero(2)) == Metrics(None, None, None, None, None, None, None, None)
    assert count([], np.zeros((0, 3))) == Counts.zero(3)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0], [[math.nan, 1.0]], "diverged"),
        ([0], [[math.inf, 0.0]], "diverged"),
        ([0], [[2.5, -1.5]], "softmax"),
        ([0], [[0.6, 0.6]], "softmax"),
        ([0, 1], [[0.5, 0.5]], r"got \(2,\) and \(1, 2\)"),
        ([0], [0.5], r"got \(1,\) and \(1,\)"),
        ([0], [[1.0]], r"got \(1,\) and \(1, 1\)"),
        ([2], [[0.5, 0.5]], "0 to 1, got 2 to 2"),
        ([-1], [[0.5, 0.5]], "0 to 1, got -1 to -1"),
        ([0, 5], [[0.5, 0.5]] * 2, "0 to 1, got 0 to 5"),
        ([0.0], [[0.5, 0.5]], "class numbers, got an array of float64"),
    ],
)
def test_what_is_no_prediction_is_refused(labels: object, probabilities: object, message: str) -> None:
    """Logits, diverged networks and labels of another task are refused in one line."""
    with pytest.raises(FederationError, match=message):
        count(labels, probabilities)  # type: ignore[arg-type]
