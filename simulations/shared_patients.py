"""Patients of more than one hospital, found as the members of a domain find them: by equal pseudonyms."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedpp.dataset.encrypted_dataset import EncryptedDataset

Patients = NDArray[np.bytes_]


def shared(datasets: Sequence[EncryptedDataset]) -> set[bytes]:
    """Return the pseudonyms that two or more datasets hold."""
    held = [set(_patients(dataset).tolist()) for dataset in datasets]
    return {patient for patients in held for patient in patients if sum(patient in other for other in held) > 1}


def also_tested_elsewhere(datasets: Sequence[EncryptedDataset]) -> list[NDArray[np.int64]]:
    """Return for each dataset the positions of those training sequences whose patient another dataset tests."""
    tested = np.concatenate([_patients(dataset, "test") for dataset in datasets])  # none whom it trains on itself
    return [dataset.indices("train")[np.isin(_patients(dataset, "train"), tested)] for dataset in datasets]


def trained_and_tested(datasets: Sequence[EncryptedDataset]) -> int:
    """Count the patients whom one dataset trains on and another tests."""
    positions = zip(datasets, also_tested_elsewhere(datasets), strict=True)
    return len({patient for dataset, indices in positions for patient in dataset.sequences["patient"][indices]})


def _patients(dataset: EncryptedDataset, split: str | None = None) -> Patients:
    patients: Patients = dataset.sequences["patient"]
    return patients if split is None else patients[dataset.indices(split)]
