"""Curves of opened evaluation counts: ROC, precision-recall and calibration of scores that are known by bin only."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from fedpp.learning.exact_metrics import Curves
from fedpp.protocol.counts import SCORE_BINS, SCORE_EDGES, Counts

_GROUPS = 10  # of the calibration curve, as in `exact_metrics`


def binned_curves(counts: Counts) -> Curves | None:
    """Return the curves of counts, None unless there are positive and negative examples.

    Thresholds are the lower edges of bins, as `threshold_for` chooses them; an example's probability is taken as that
    of the middle of its bin. Adjacent bins are one point of the calibration curve, up to a tenth of the examples.
    """
    kinds = np.array([counts.positive_scores, counts.negative_scores], dtype=np.float64)
    if not kinds.any(axis=1).all():
        return None
    positive, scores = np.repeat([True, False], SCORE_BINS), np.tile(SCORE_EDGES[:-1], 2)
    weights = kinds.ravel()
    false_positive_rate, sensitivity, roc_threshold = roc_curve(positive, scores, sample_weight=weights)
    precision, recall, threshold = precision_recall_curve(
        positive, scores, sample_weight=weights, drop_intermediate=True
    )
    predicted, observed = _calibration(kinds)
    return Curves(
        false_positive_rate=tuple(false_positive_rate.tolist()),
        sensitivity=tuple(sensitivity.tolist()),
        roc_threshold=tuple(expit(roc_threshold).tolist()),
        precision=tuple(precision.tolist()),
        recall=tuple(recall.tolist()),
        precision_recall_threshold=tuple(expit(threshold).tolist()),
        average_precision=float(average_precision_score(positive, scores, sample_weight=weights)),
        predicted_probability=tuple(predicted.tolist()),
        observed_share=tuple(observed.tolist()),
    )


def _calibration(kinds: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean predicted probability and share of positives of groups of bins; `kinds` is `[2 bins]`."""
    edges, of_bin = np.array(SCORE_EDGES), kinds.sum(axis=0)
    middle_rank = (np.cumsum(of_bin) - of_bin / 2) / of_bin.sum()
    group = np.minimum((middle_rank * _GROUPS).astype(np.int64), _GROUPS - 1)
    probability = expit((edges[:-1] + edges[1:]) / 2)
    total, sure, positive = (np.bincount(group, of, _GROUPS) for of in (of_bin, of_bin * probability, kinds[0]))
    filled = total > 0
    return sure[filled] / total[filled], positive[filled] / total[filled]
