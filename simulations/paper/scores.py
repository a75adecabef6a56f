"""From one fold's probabilities to figures, and from figures of several folds to mean, spread and interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpp.learning.exact_metrics import Predictions, exact_auc
from fedpp.learning.metrics import Metrics

from .study import Positions

# The columns of Table 1; all but the AUC by patient are of sequences, decided by the most probable class.
HEADINGS = {
    "accuracy": "Accuracy",
    "precision": "Precision",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "f1": "F1",
    "auc": "AUC",
    "auc_by_patient": "AUC by patient",
    "missed_diagnosis_rate": "Missed diagnoses",
}
FIGURES = tuple(HEADINGS)
MIN_FOLDS = 3  # of an interval: one of two values, with one degree of freedom, says nothing


@dataclass(frozen=True)
class Figures:
    """What a network does on a fold's test sequences, or on its validation sequences."""

    by_sequence: Metrics
    auc_by_patient: float | None

    def __getitem__(self, name: str) -> float | None:
        """Return a figure by its name in `FIGURES`."""
        value: float | None = self.auc_by_patient if name == "auc_by_patient" else getattr(self.by_sequence, name)
        return value

    def to_mapping(self) -> dict[str, float | None]:
        """Return all figures by name."""
        return {**self.by_sequence.to_mapping(), "auc_by_patient": self.auc_by_patient}


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation of a figure over the folds in which it is defined; None where in none."""

    mean: float | None
    spread: float | None  # of one fold there is none
    folds: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Summary":
        """Summarise one figure."""
        known = [value for value in values if value is not None]
        if not known:
            return cls(None, None, 0)
        return cls(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None, len(known))


def figures(
    labels: NDArray[np.int64], patients: NDArray[np.str_], probabilities: NDArray[np.float64], positions: Positions
) -> Figures:
    """Return the figures of the sequences at some positions."""
    true, p = labels[positions], probabilities[positions]
    return Figures(Predictions.of(true, p).metrics(), auc_by_patient(true > 0, patients[positions], 1 - p[:, 0]))


def auc_by_patient(
    positive: NDArray[np.bool_], patients: NDArray[np.str_], scores: NDArray[np.float64]
) -> float | None:
    """Return the AUC of the mean score of each patient; None where there are not both kinds.

    Where a patient's sequences are partly positive there is no label of the patient: each of them counts by itself.
    """
    mixed = np.isin(patients, mixed_patients(positive, patients))
    whole = [patients == patient for patient in np.unique(patients[~mixed])]
    labels = [*(positive[of][0] for of in whole), *positive[mixed]]
    means = [*(scores[of].mean() for of in whole), *scores[mixed]]
    return exact_auc(np.array(labels, bool), np.array(means, np.float64))


def mixed_patients(positive: NDArray[np.bool_], patients: NDArray[np.str_]) -> NDArray[np.str_]:
    """Return the patients who have positive and negative sequences."""
    return np.intersect1d(patients[positive], patients[~positive])


def interval(values: Sequence[float], tested_by_trained: float) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean over folds, Student's t with a corrected variance; None of fewer than three.

    Folds share their training sequences, so their spread is too small. The correction is Nadeau & Bengio's (Machine
    Learning 52, 2003): the variance of the mean is `(1/k + tested/trained) s^2`, and not `s^2 / k`.
    """
    from scipy.stats import t

    if len(values) < MIN_FOLDS:
        return None
    deviation = float(np.std(values, ddof=1))
    half = float(t.ppf(0.975, len(values) - 1)) * math.sqrt(1 / len(values) + tested_by_trained) * deviation
    mean = float(np.mean(values))
    return mean - half, mean + half
