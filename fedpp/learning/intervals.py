"""Figures with their counts and 95 % confidence intervals: how far a figure of a few examples may be from the truth.

A share (sensitivity, accuracy, ...) has Wilson's score interval (1927). F1 is a function of the share of the true
positives among all that are or are called positive, and has that share's interval. An AUC has Newcombe's score interval
(Statistics in Medicine 2006, method 5), Wilson's counterpart: unlike DeLong's it is no single point where a small test
set is in perfect order. Counts alone give these; they take all examples as independent.

Several examples of one patient are not. With single predictions, an interval is that of fewer examples, by the ratio
of the variance by patient to that of independent examples: for a share Rao and Scott's (Biometrics 1992), for an AUC
that of DeLong et al. (Biometrics 1988) by patient (Obuchowski, Biometrics 1997).

Measured on 1,000 draws of normal scores each, AUC 0.6 to 0.99, 25 to 222 patients, 1 or 4 examples each: the interval
of an AUC holds the true one in 93 to 99 of 100, DeLong's by patient on the logit scale in 88 to 97, and without regard
to patients, 4 examples each, in 64 to 89.
"""

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from fedpp.learning.metrics import Decisions, decisions, metrics
from fedpp.protocol.counts import Counts

LEVEL = 0.95
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
_LEAST = 1e-9  # distance of a sought limit from 0 and 1, where the equation of Newcombe's interval has other roots

Patients = NDArray[np.integer] | NDArray[np.str_]


@dataclass(frozen=True)
class Estimate:
    """A figure, what it was counted from, and its 95 % interval; None where the figure is not defined.

    The figure is `part / whole`; of an AUC these are the positive and all examples.
    """

    value: float | None
    part: int
    whole: int
    low: float | None
    high: float | None

    def to_mapping(self) -> dict[str, float | None]:
        """Return values fit for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None:
            return "not defined"
        return f"{self.value:.3f} (95 % interval {self.low:.3f} to {self.high:.3f}; {self.part} of {self.whole})"


def share(part: int, whole: int, independent: float | None = None) -> Estimate:
    """Return a share with Wilson's interval, of `independent` examples if they are fewer than `whole`."""
    if not whole:
        return Estimate(None, part, whole, None, None)
    low, high = _wilson(part / whole, whole if independent is None else independent)
    return Estimate(part / whole, part, whole, low, high)


def f1_score(found: int, wrong: int, independent: float | None = None) -> Estimate:
    """Return the F1 of true positives and of wrong decisions, `independent` as if so many were independent."""
    of_share = share(found, found + wrong, independent)
    limits = [None if limit is None else 2 * limit / (1 + limit) for limit in (of_share.low, of_share.high)]
    part, whole = 2 * found, 2 * found + wrong
    return Estimate(part / whole if whole else None, part, whole, *limits)


def area(auc: float | None, positives: int, negatives: int, effect: float = 1.0) -> Estimate:
    """Return an AUC with Newcombe's interval, its variance multiplied by the `effect` of patients."""
    if auc is None:
        return Estimate(None, positives, positives + negatives, None, None)
    low, high = _newcombe(auc, positives / effect, negatives / effect)
    return Estimate(auc, positives, positives + negatives, low, high)


def estimates(counts: Counts) -> dict[str, Estimate]:
    """Return the figures of `Metrics` but the loss, by name, with all examples taken as independent."""
    decided = decisions(counts)
    right = sum(row[number] for number, row in enumerate(counts.confusion))
    return {
        "accuracy": share(right, counts.examples),
        **decision_estimates(decided),
        "auc": area(metrics(counts).auc, decided.positives, decided.negatives),
    }


def decision_estimates(of: Decisions) -> dict[str, Estimate]:
    """Return the figures of decisions by name, with all examples taken as independent."""
    return {
        "precision": share(of.found, of.found + of.alarms),
        "npv": share(of.cleared, of.cleared + of.missed),
        "sensitivity": share(of.found, of.positives),
        "specificity": share(of.cleared, of.negatives),
        "f1": f1_score(of.found, of.alarms + of.missed),
        "missed_diagnosis_rate": share(of.missed, of.positives),
    }


def independent_examples(hits: NDArray[np.bool_], patients: Patients) -> float:
    """Return of how many independent examples a share of hits has the same variance, by patient (Rao and Scott).

    They are at most all, and where all examples are alike as many as patients.
    """
    total, patient = len(hits), np.unique(patients, return_inverse=True)[1]
    number = int(patient.max()) + 1 if total else 0
    if number == total:
        return float(total)
    each = float(hits.mean() * (1 - hits.mean()))
    if not each or number < 2:
        return float(number)
    variance = _sum_variance(hits - hits.mean(), patient)
    return min(float(total), each * total**2 / variance) if variance else float(total)


def patient_effect(positive: NDArray[np.bool_], scores: NDArray[np.float64], patients: Patients) -> float:
    """Return by how much the variance of an AUC by patient exceeds that of independent examples; at least 1.

    Where a variance is zero, or not defined, it is the mean number of examples of a patient.
    """
    number = len(np.unique(patients))
    if number == len(positive):
        return 1.0
    most = len(positive) / number
    alone = auc_variance(positive, scores, np.arange(len(positive)))
    by_patient = auc_variance(positive, scores, patients)
    return max(1.0, by_patient / alone) if alone and by_patient else most


def auc_variance(positive: NDArray[np.bool_], scores: NDArray[np.float64], patients: Patients) -> float | None:
    """Return DeLong's variance of an AUC by patient (Obuchowski), None with fewer than two patients of a kind."""
    patient, level = (np.unique(of, return_inverse=True)[1] for of in (patients, scores))
    kinds = [np.bincount(level[kind], minlength=int(level.max()) + 1) for kind in (positive, ~positive)]
    counts = [int(kind.sum()) for kind in kinds]
    if any(len(np.unique(patient[kind])) < 2 for kind in (positive, ~positive)):
        return None
    won = (np.cumsum(kinds[1]) - kinds[1] / 2)[level] / counts[1]  # share of the negatives below, of each example
    lost = 1 - (np.cumsum(kinds[0]) - kinds[0] / 2)[level] / counts[0]  # and of the positives above
    auc = won[positive].mean()
    above, below = np.where(positive, won - auc, 0), np.where(positive, 0, lost - auc)
    return (
        _sum_variance(above[positive], patient[positive]) / counts[0] ** 2
        + _sum_variance(below[~positive], patient[~positive]) / counts[1] ** 2
        + 2 * _sum_covariance(above, below, patient) / (counts[0] * counts[1])
    )


def _sum_variance(deviations: NDArray[np.float64], patient: NDArray[np.integer]) -> float:
    """Return the variance of a sum over patients of deviations from a mean."""
    return _sum_covariance(deviations, deviations, patient)


def _sum_covariance(one: NDArray[np.float64], other: NDArray[np.float64], patient: NDArray[np.integer]) -> float:
    number = len(np.unique(patient))
    return float(np.bincount(patient, one) @ np.bincount(patient, other)) * number / (number - 1)


def _wilson(value: float, number: float) -> tuple[float, float]:
    """Return the limits p with |value - p| = z sqrt(p (1 - p) / number)."""
    middle = (value + _Z**2 / (2 * number)) / (1 + _Z**2 / number)
    half = _Z / (1 + _Z**2 / number) * math.sqrt(value * (1 - value) / number + _Z**2 / (4 * number**2))
    return (0.0 if value == 0 else max(0.0, middle - half)), (1.0 if value == 1 else min(1.0, middle + half))


def _newcombe(auc: float, positives: float, negatives: float) -> tuple[float, float]:
    """Return the limits t with |auc - t| = z sqrt(V(t)), V the variance of an AUC of t by exponential scores."""
    from scipy.optimize import brentq

    mean = (positives + negatives) / 2 - 1

    def distance(t: float) -> float:
        spread = t * (1 - t) * (1 + mean * (1 - t) / (2 - t) + mean * t / (1 + t))
        return (t - auc) ** 2 - _Z**2 * spread / (positives * negatives)

    lowest, highest = min(auc, 1 - _LEAST), max(auc, _LEAST)
    low = float(brentq(distance, _LEAST, lowest)) if auc > _LEAST and distance(_LEAST) > 0 else 0.0
    high = float(brentq(distance, highest, 1 - _LEAST)) if auc < 1 - _LEAST and distance(1 - _LEAST) > 0 else 1.0
    return low, high
