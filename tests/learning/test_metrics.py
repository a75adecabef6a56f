"""Figures from counts: equal to scikit-learn's, additive over sites, and None where they are not defined."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from fedpp.errors import ConfigError, FederationError
from fedpp.learning.metrics import (
    Decisions,
    Metrics,
    OperatingPoint,
    at_threshold,
    count,
    count_findings,
    decisions,
    metrics,
    operating_point,
    presence,
    softmax,
    threshold_for,
)
from fedpp.protocol.counts import SCORE_BINS, SCORE_EDGES, UNKNOWN, Counts
from fedpp.protocol.finding_counts import FindingCounts, total

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


@given(predictions())
def test_figures_agree_with_scikit_learn(case: Predictions) -> None:
    """Every figure is scikit-learn's, and None where scikit-learn has no value."""
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
            "npv": precision_score(~truth, ~predicted, zero_division=np.nan),
        }
    for name, value in expected.items():
        ours = figures.to_mapping()[name]
        assert (math.nan if ours is None else ours) == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True)
    if figures.sensitivity is not None:
        assert figures.missed_diagnosis_rate == pytest.approx(1 - figures.sensitivity, abs=1e-15)


@given(predictions(least=2))
def test_auc_is_that_of_the_binned_scores(case: Predictions) -> None:
    """The AUC is scikit-learn's for scores rounded to their bins, and None if a class is absent."""
    labels, p = case
    figures = metrics(count(labels, p))
    if 0 < (labels > 0).sum() < len(labels):
        binned = np.digitize(log_odds(p).clip(-19.9, 19.9), SCORE_EDGES)
        assert figures.auc == pytest.approx(roc_auc_score(labels > 0, binned), abs=1e-12)
    else:
        assert figures.auc is None


@pytest.mark.parametrize(("scale", "most"), [(0.01, 0.008), (0.03, 0.003), (0.1, 0.003), (1.0, 0.003), (5.0, 0.003)])
def test_binning_hardly_moves_the_auc(scale: float, most: float) -> None:
    """Bins move the AUC of 2000 examples by less than 0.003, and by more only where scores cluster at one half."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 2, 2000)
    positive = 1 / (1 + np.exp(-scale * (rng.normal(size=2000) + labels)))
    p = np.stack([1 - positive, positive], axis=1)
    assert metrics(count(labels, p)).auc == pytest.approx(roc_auc_score(labels, positive), abs=most)


@given(predictions(classes=3, least=2), st.data())
def test_counts_of_parts_add_to_the_counts_of_all(case: Predictions, data: st.DataObject) -> None:
    """For any distribution of examples over two sites, the sum of counts is that of all examples."""
    labels, p = case
    cut = data.draw(st.integers(0, len(labels)))
    together, parts = count(labels, p), count(labels[:cut], p[:cut]) + count(labels[cut:], p[cut:])
    assert parts.loss_sum == pytest.approx(together.loss_sum, rel=1e-9, abs=1e-8)
    assert (parts.confusion, parts.positive_scores, parts.negative_scores) == (
        together.confusion,
        together.positive_scores,
        together.negative_scores,
    )


def test_the_loss_is_exact_at_both_ends() -> None:
    """The loss of nearly certain predictions is computed from their complement; impossible ones have a finite loss."""
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
    """Probabilities of one half, up to rounding, give an AUC of exactly one half."""
    noise = np.array([1e-16, -1e-16, 2e-16, -2e-16])
    p = np.stack([0.5 + noise, 0.5 - noise], axis=1)
    assert metrics(count([0, 1, 1, 0], p)).auc == 0.5


def test_nothing_is_defined_without_examples() -> None:
    """Without sequences all figures are None."""
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
def test_invalid_predictions_are_rejected(labels: object, probabilities: object, message: str) -> None:
    """Logits, non-finite outputs and labels of another task are rejected in one line."""
    with pytest.raises(FederationError, match=message):
        count(labels, probabilities)


@st.composite
def findings(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draw states and logits of up to four findings, any of them unknown."""
    shape = (draw(st.integers(0, 30)), draw(st.integers(1, 4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.integers(UNKNOWN, 2, shape), rng.normal(scale=3.0, size=shape)


@given(findings())
def test_each_finding_is_counted_where_it_is_known(case: Predictions) -> None:
    """A finding's counts are those of a loop over the examples where it is known; unknown states have no effect."""
    states, logits = case
    counts = count_findings(states, presence(logits))
    assert counts.examples == len(states)
    for k, of_one in enumerate(counts.findings):
        known = [i for i in range(len(states)) if states[i, k] != UNKNOWN]
        pairs = [[1 / (1 + math.exp(logits[i, k])), 1 / (1 + math.exp(-logits[i, k]))] for i in known]
        expected = count([int(states[i, k]) for i in known], np.reshape(pairs, (-1, 2)))
        assert of_one.confusion == expected.confusion
        assert of_one.loss_sum == pytest.approx(expected.loss_sum, abs=1e-8)
    moved = np.where(states == UNKNOWN, 50.0, logits)
    assert count_findings(states, presence(moved)) == counts


@given(findings(), st.data())
def test_finding_counts_of_parts_add_to_those_of_all(case: Predictions, data: st.DataObject) -> None:
    """For any distribution of examples over two sites, each finding's sum of counts is that of all examples."""
    states, logits = case
    cut = data.draw(st.integers(0, len(states)))
    parts = total(count_findings(states[part], presence(logits[part])) for part in (slice(cut), slice(cut, None)))
    together = count_findings(states, presence(logits))
    assert isinstance(parts, FindingCounts)
    assert parts.examples == together.examples
    for a, b in zip(parts.findings, together.findings, strict=True):
        assert (a.confusion, a.positive_scores, a.negative_scores) == (
            b.confusion,
            b.positive_scores,
            b.negative_scores,
        )
        assert a.loss_sum == pytest.approx(b.loss_sum, abs=1e-8)


@given(findings())
def test_figures_of_findings_are_means_where_they_are_defined(case: Predictions) -> None:
    """Each figure is the mean of those of the findings for which it is defined."""
    states, logits = case
    counts = count_findings(states, presence(logits))
    of_each = [metrics(of_one).to_mapping() for of_one in counts.findings]
    for name, value in metrics(counts).to_mapping().items():
        defined = [figures[name] for figures in of_each if figures[name] is not None]
        assert value == (pytest.approx(sum(defined) / len(defined)) if defined else None)


def test_presence_is_the_sigmoid() -> None:
    """It is a softmax against zero, exact at both ends, and never overflows."""
    logits = np.array([[-800.0, -30.0, 0.0, 2.0, 800.0]])
    pairs = presence(logits)
    assert pairs.shape == (1, 5, 2)
    np.testing.assert_allclose(pairs.sum(axis=-1), 1)
    np.testing.assert_allclose(pairs[0, :, 1], [0, 9.357622968839299e-14, 0.5, 1 / (1 + math.exp(-2)), 1], rtol=1e-12)
    np.testing.assert_allclose(pairs, softmax(np.stack([0 * logits, logits], axis=-1)))


@pytest.mark.parametrize(
    ("states", "probabilities", "message"),
    [
        ([[1]], [[0.5, 0.5]], r"got \(1, 1\) and \(1, 2\)"),
        ([[1, 0]], [[[0.5, 0.5]]], r"got \(1, 2\) and \(1, 1, 2\)"),
        ([[1]], [[[0.2, 0.3, 0.5]]], r"got \(1, 1\) and \(1, 1, 3\)"),
        ([[2]], [[[0.5, 0.5]]], "0 to 1, got 2 to 2"),
        ([[1]], [[[0.5, 0.6]]], "sum to one"),
    ],
)
def test_invalid_predictions_of_findings_are_rejected(states: object, probabilities: object, message: str) -> None:
    """Another number of findings, invalid states and logits are rejected in one line."""
    with pytest.raises(FederationError, match=message):
        count_findings(states, probabilities)


wanted = st.sampled_from([0.01, 0.1, 0.5, 0.7, 0.9, 1.0])


@given(predictions(least=2), wanted)
def test_the_threshold_is_the_highest_up_to_one_half_that_reaches_the_sensitivity(
    case: Predictions, sensitivity: float
) -> None:
    """The oracle is scikit-learn's ROC curve of the binned scores, with ties, cut at the bin of one half."""
    labels, p = case
    counts = count(labels, p)
    threshold = threshold_for(counts, sensitivity)
    truth = labels > 0
    if not truth.any():
        assert threshold is None
        return
    bins = np.digitize(log_odds(p).clip(-19.9, 19.9), SCORE_EDGES) - 1
    assert threshold is not None
    chosen = SCORE_EDGES.index(threshold)
    if truth.all():
        assert (bins >= chosen).mean() >= sensitivity
        assert chosen == SCORE_BINS // 2 or sensitivity > (bins > chosen).mean()
        return
    _, sensitivities, thresholds = roc_curve(truth, bins, drop_intermediate=False)
    highest = max(t for s, t in zip(sensitivities, thresholds, strict=True) if s >= sensitivity)
    assert chosen == min(highest, SCORE_BINS // 2)
    assert at_threshold(counts, threshold).missed <= decisions(counts).missed


@given(predictions(), wanted)
def test_figures_at_a_threshold_are_those_of_a_loop(case: Predictions, sensitivity: float) -> None:
    """Scores in the threshold's bin and above are called positive; all figures are those of a loop."""
    labels, p = case
    counts = count(labels, p)
    threshold = threshold_for(counts, sensitivity)
    if threshold is None:
        return
    bins = np.digitize(log_odds(p).clip(-19.9, 19.9), SCORE_EDGES) - 1
    cells = {(t, c): 0 for t in (False, True) for c in (False, True)}
    for label, score_bin in zip(labels, bins, strict=True):
        cells[bool(label > 0), bool(score_bin >= SCORE_EDGES.index(threshold))] += 1
    found, missed, alarms, cleared = (
        cells[key] for key in ((True, True), (True, False), (False, True), (False, False))
    )

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    assert at_threshold(counts, threshold).to_mapping() == {
        "found": found,
        "alarms": alarms,
        "cleared": cleared,
        "missed": missed,
        "precision": share(found, found + alarms),
        "npv": share(cleared, cleared + missed),
        "sensitivity": share(found, found + missed),
        "specificity": share(cleared, cleared + alarms),
        "f1": share(2 * found, 2 * found + alarms + missed),
        "missed_diagnosis_rate": share(missed, found + missed),
    }


def scored(positive: list[float], negative: list[float]) -> Counts:
    """Count predictions of these log-odds."""
    logits = np.array([*positive, *negative])
    return count([1] * len(positive) + [0] * len(negative), presence(logits))


def test_a_point_is_chosen_on_one_set_and_tested_on_another() -> None:
    """Nine of ten positives are at -2 and above: the threshold is there, and the figures are of the test data."""
    validation = scored([-5.0, *[-2.0] * 5, 3.0, 4.0, 5.0, 6.0], [0.0, -1.5])
    test = scored([-4.0, 3.0, 3.0, 3.0], [-5.0, -3.2, 0.0])
    point = operating_point(validation, test, 0.9)
    assert point is not None
    assert -2.7 < point.threshold <= -2.0
    assert point.probability == pytest.approx(1 / (1 + math.exp(-point.threshold)))
    assert (point.decisions.sensitivity, point.decisions.missed) == (0.75, 1)
    assert point.decisions.specificity == pytest.approx(2 / 3)
    assert OperatingPoint.from_mapping(point.to_mapping()) == point
    assert point.heading == f"threshold {point.probability:.3f}, chosen for a sensitivity of 0.9 on validation data"
    lower = operating_point(validation, test, 0.91)
    assert lower is not None
    assert lower.threshold <= -5.0


def test_a_threshold_for_a_low_sensitivity_stays_at_one_half() -> None:
    """Where one half finds more than is wanted no higher threshold is taken, which would only add misses."""
    validation = scored([0.5, 2.0, 3.0, 4.0], [-1.0, 1.0])
    point = operating_point(validation, validation, 0.5)
    assert point is not None
    assert point.decisions == decisions(validation) == Decisions(found=4, alarms=1, cleared=1, missed=0)
    assert point.heading.endswith("kept at one half: that reaches a sensitivity of 0.5 on validation data")


def test_figures_that_do_not_follow_from_their_counts_are_rejected() -> None:
    """A mapping of decisions whose sensitivity is not that of its counts raises an error."""
    mapping = Decisions(found=3, alarms=1, cleared=4, missed=2).to_mapping()
    assert Decisions.from_mapping(mapping) == Decisions(3, 1, 4, 2)
    with pytest.raises(ValueError, match="do not follow"):
        Decisions.from_mapping({**mapping, "sensitivity": 1.0})


def test_without_positives_there_is_no_point() -> None:
    """There is no point without validation positives; without test positives the sensitivity is None."""
    assert operating_point(scored([], [0.0]), scored([1.0], [0.0]), 0.9) is None
    assert operating_point(Counts.zero(2), Counts.zero(2), 0.9) is None
    point = operating_point(scored([1.0], [0.0]), scored([], [-1.0]), 0.9)
    assert point is not None
    assert (point.decisions.sensitivity, point.decisions.specificity) == (None, 1.0)


def test_the_lowest_edge_calls_everything_positive() -> None:
    """A positive with an extremely low score is found only at the lowest threshold, with every negative."""
    counts = scored([300.0, -300.0], [0.0, -200.0, -400.0])
    assert threshold_for(counts, 1.0) == SCORE_EDGES[0]
    assert at_threshold(counts, SCORE_EDGES[0]) == Decisions(found=2, alarms=3, cleared=0, missed=0)


def test_undecided_scores_tie_at_the_threshold() -> None:
    """Scores of one half, up to rounding, are on the same side of a threshold."""
    counts = scored([1e-16, -1e-16, 0.0], [2e-16, -3.0])
    threshold = threshold_for(counts, 0.3)
    assert threshold is not None
    assert at_threshold(counts, threshold).sensitivity == 1.0
    assert at_threshold(counts, threshold).specificity == 0.5


@pytest.mark.parametrize("sensitivity", [0.0, -0.1, 1.01, math.nan])
def test_a_sensitivity_out_of_range_is_rejected(sensitivity: float) -> None:
    """It must be above 0 and at most 1."""
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        threshold_for(Counts.zero(2), sensitivity)


@pytest.mark.parametrize("threshold", [0.5, SCORE_EDGES[-1], math.nan])
def test_a_threshold_inside_a_bin_is_rejected(threshold: float) -> None:
    """Counts do not say which scores are above it."""
    with pytest.raises(ConfigError, match="lower edge of a bin"):
        at_threshold(Counts.zero(2), threshold)
