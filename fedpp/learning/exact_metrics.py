"""Exact metrics: figures and curves of single predictions, computed by scikit-learn.

For a site's secret zone and for experiments in plaintext. Sites exchange evaluation counts only, whose AUC and
thresholds are of binned scores: see `metrics`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from fedpp.learning.assessment import Assessment
from fedpp.learning.intervals import Estimate, Patients, area, f1_score, independent_examples, patient_effect, share
from fedpp.learning.metrics import Decisions, Metrics, OperatingPoint, count, metrics, require_share
from fedpp.protocol.counts import UNKNOWN, Counts
from fedpp.texts import counted

_LARGEST_LOG_ODDS = 750.0  # of float64 probabilities: the smallest positive one has 745; scikit-learn takes no infinity
_CALIBRATION_BINS = 10
ONE_HALF = 0.0  # in log-odds: the threshold where no sensitivity is wanted


@dataclass(frozen=True)
class Curves:
    """ROC, precision-recall and calibration curve of the positive score, class 0 against the rest.

    Thresholds are probabilities. Calibration has up to ten bins of as many examples each.
    """

    false_positive_rate: tuple[float, ...]
    sensitivity: tuple[float, ...]  # beside false_positive_rate
    roc_threshold: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]  # beside precision; the last point, (1, 0), has no threshold
    precision_recall_threshold: tuple[float, ...]
    average_precision: float
    predicted_probability: tuple[float, ...]  # mean of each calibration bin
    observed_share: tuple[float, ...]  # of positives in the same bin

    def to_mapping(self) -> dict[str, Any]:
        """Return values fit for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Predictions:
    """Single predictions: class numbers `labels` [examples] and `probabilities` [examples classes].

    Raises `FederationError` for arrays that are not predictions, as `count` does.
    """

    labels: NDArray[np.integer]
    probabilities: NDArray[np.float64]
    counts: Counts
    patients: Patients

    @classmethod
    def of(cls, labels: ArrayLike, probabilities: ArrayLike, patients: Patients | None = None) -> Self:
        """Check and count predictions; `patients` [examples] are names or numbers, by default all different."""
        counts, p = count(labels, probabilities), np.asarray(probabilities, dtype=np.float64)
        return cls(np.asarray(labels), p, counts, np.arange(counts.examples) if patients is None else patients)

    @classmethod
    def of_findings(
        cls, states: NDArray[np.integer], probabilities: NDArray[np.float64], patients: Patients | None = None
    ) -> list[Self]:
        """Return the predictions of each finding, on the examples where it is known.

        `states` [examples findings] and `probabilities` [examples findings 2] are as in `count_findings`.
        """
        of_whom = np.arange(len(states)) if patients is None else patients
        known = (states != UNKNOWN).T
        return [cls.of(states[of, k], probabilities[of, k], of_whom[of]) for k, of in enumerate(known)]

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Return for each example whether its true class is another than class 0."""
        return self.labels > 0

    @property
    def scores(self) -> NDArray[np.float64]:
        """Return the log-odds of the positive score, which keep the order of scores close to 0 and 1."""
        with np.errstate(divide="ignore"):
            log_odds = np.log(self.probabilities[:, 1:].sum(axis=1)) - np.log(self.probabilities[:, 0])
        clipped: NDArray[np.float64] = np.clip(log_odds, -_LARGEST_LOG_ODDS, _LARGEST_LOG_ODDS)
        return clipped

    def metrics(self) -> Metrics:
        """Return the figures, with the exact AUC."""
        return replace(metrics(self.counts), auc=exact_auc(self.positive, self.scores))

    def decisions(self, threshold: float) -> Decisions:
        """Return the decisions where scores at or above a threshold, in log-odds, are called positive."""
        decided = confusion_matrix(self.positive, self.scores >= threshold, labels=[False, True])
        cleared, alarms, missed, found = decided.ravel().tolist()
        return Decisions(found=found, alarms=alarms, cleared=cleared, missed=missed)

    def assessment(
        self, classes: Sequence[str], *, finding: bool = False, point: OperatingPoint | None = None
    ) -> Assessment:
        """Return all that is said of these predictions, with intervals by patient."""
        predicted, several = self.probabilities.argmax(axis=1), len(classes) > 2 and not finding
        return Assessment(
            tuple(classes),
            self.counts,
            self.metrics(),
            {
                "accuracy": self._share(predicted == self.labels, np.full(len(predicted), fill_value=True)),
                **self._of_decisions(self.positive, predicted > 0),
                "auc": self._area(self.positive, self.scores),
            },
            {name: self._of_class(k, predicted) for k, name in enumerate(classes) if several},
            f"single predictions: {counted(self.counts.examples, 'sequence')} of "
            f"{counted(len(np.unique(self.patients)), 'patient')}; "
            "intervals are by patient",
            finding,
            point,
            self._of_decisions(self.positive, self.scores >= point.threshold) if point else {},
        )

    def _of_class(self, number: int, predicted: NDArray[np.integer]) -> dict[str, Estimate]:
        """Return the figures of one class against all others."""
        true = self.labels == number
        made = self._of_decisions(true, predicted == number)
        return {**made, "auc": self._area(true, self.probabilities[:, number])}

    def _of_decisions(self, positive: NDArray[np.bool_], called: NDArray[np.bool_]) -> dict[str, Estimate]:
        either, found = positive | called, positive & called
        hits, wrong = found[either], int((positive != called).sum())
        return {
            "precision": self._share(positive, called),
            "npv": self._share(~positive, ~called),
            "sensitivity": self._share(called, positive),
            "specificity": self._share(~called, ~positive),
            "f1": f1_score(int(found.sum()), wrong, independent_examples(hits, self.patients[either])),
            "missed_diagnosis_rate": self._share(~called, positive),
        }

    def _share(self, hits: NDArray[np.bool_], among: NDArray[np.bool_]) -> Estimate:
        of = hits[among]
        return share(int(of.sum()), len(of), independent_examples(of, self.patients[among]))

    def _area(self, positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> Estimate:
        auc, positives = exact_auc(positive, scores), int(positive.sum())
        effect = 1.0 if auc is None else patient_effect(positive, scores, self.patients)
        return area(auc, positives, len(positive) - positives, effect)

    def curves(self) -> Curves | None:
        """Return the curves; None unless there are positive and negative examples."""
        if not _both(self.positive):
            return None
        false_positive_rate, sensitivity, roc_threshold = roc_curve(self.positive, self.scores)
        precision, recall, threshold = precision_recall_curve(self.positive, self.scores, drop_intermediate=True)
        probabilities = expit(self.scores)
        share, predicted = calibration_curve(
            self.positive, probabilities, n_bins=_CALIBRATION_BINS, strategy="quantile"
        )
        return Curves(
            false_positive_rate=_numbers(false_positive_rate),
            sensitivity=_numbers(sensitivity),
            roc_threshold=_numbers(expit(roc_threshold)),
            precision=_numbers(precision),
            recall=_numbers(recall),
            precision_recall_threshold=_numbers(expit(threshold)),
            average_precision=float(average_precision_score(self.positive, self.scores)),
            predicted_probability=_numbers(predicted),
            observed_share=_numbers(share),
        )


def exact_auc(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> float | None:
    """Return the area under the ROC curve of scores, ties counted half; None unless both kinds occur."""
    return float(roc_auc_score(positive, scores)) if _both(positive) else None


def exact_operating_point(validation: Predictions, test: Predictions, sensitivity: float) -> OperatingPoint | None:
    """Choose the highest threshold up to one half with a sensitivity on validation predictions; apply it to others.

    The threshold is the score of a validation example, or one half where that reaches the sensitivity. Returns None
    without positives. Raises `ConfigError` for a sensitivity that is not above 0 and at most 1.
    """
    require_share(sensitivity)
    if not validation.positive.any():
        return None
    _, recall, thresholds = precision_recall_curve(validation.positive, validation.scores)
    threshold = min(float(thresholds[recall[:-1] >= sensitivity].max()), ONE_HALF)
    return OperatingPoint(sensitivity, threshold, float(expit(threshold)), test.decisions(threshold))


def _both(positive: NDArray[np.bool_]) -> bool:
    return bool(positive.any() and not positive.all())


def _numbers(values: NDArray[np.floating]) -> tuple[float, ...]:
    return tuple(np.asarray(values, dtype=np.float64).tolist())
