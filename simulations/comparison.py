"""Comparison of a simulated federation with its baselines, and the patients whom its sites share.

Patients of several hospitals are found as the members of a domain find them: by equal pseudonyms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.learning.exact_metrics import Predictions
from fedpp.reporting.report_results import Baselines, Parity, SharedPatients, SiteBaselines

Patients = NDArray[np.bytes_]


@dataclass(frozen=True)
class Comparison:
    """Figures of a scenario's baselines, and the distance of ciphertext from the plaintext reference."""

    patients: SharedPatients
    together: Baselines = field(default_factory=Baselines)  # on all test splits
    by_site: Mapping[str, SiteBaselines] = field(default_factory=dict)  # on each site's own
    parity: Parity | None = None
    tested: tuple[Predictions, ...] = ()  # the federation's, of all test splits: of the label, or of each finding


def shared(datasets: Sequence[EncryptedDataset]) -> set[bytes]:
    """Return the pseudonyms in two or more datasets."""
    held = [set(_patients(dataset).tolist()) for dataset in datasets]
    return {patient for patients in held for patient in patients if sum(patient in other for other in held) > 1}


def also_tested_elsewhere(datasets: Sequence[EncryptedDataset]) -> list[NDArray[np.int64]]:
    """Return each dataset's positions of training sequences whose patient is in another dataset's test split."""
    tested = np.concatenate([_patients(dataset, "test") for dataset in datasets])
    return [dataset.indices("train")[np.isin(_patients(dataset, "train"), tested)] for dataset in datasets]


def trained_and_tested(datasets: Sequence[EncryptedDataset]) -> int:
    """Count the patients in one dataset's training split and another's test split."""
    positions = zip(datasets, also_tested_elsewhere(datasets), strict=True)
    return len({patient for dataset, indices in positions for patient in dataset.sequences["patient"][indices]})


def _patients(dataset: EncryptedDataset, split: str | None = None) -> Patients:
    patients: Patients = dataset.sequences["patient"]
    return patients if split is None else patients[dataset.indices(split)]
