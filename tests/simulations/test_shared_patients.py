"""Patients of several hospitals, found by pseudonym alone, and the tests that they spoil."""

from pathlib import Path

import numpy as np
import pytest

from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.imaging.labels import ClassMap
from fedpp.imaging.preparation import Preparation
from fedpp.imaging.sequence import ImageSequence
from fedpp.imaging.splits import SplitPlan
from fedpp.ingest.ingestion import IngestSettings, ingest
from fedpp.keys.key_domain import KeyDomain
from simulations.comparison import also_tested_elsewhere, shared, trained_and_tested

NORTH = {"ann": "train", "bob": "test", "cem": "train", "dan": "validation", "eva": "train", "fay": "test"}
SOUTH = {"ann": "test", "bob": "test", "cem": "validation", "gus": "train", "fay": "train"}
WEST = {"eva": "train", "hal": "test"}


def datasets(folder: Path, domain: KeyDomain, hospitals: list[dict[str, str]]) -> list[EncryptedDataset]:
    """Ingest two sequences a patient, in the given splits."""
    opened = []
    for number, splits in enumerate(hospitals):
        sequences = [
            ImageSequence(str(i), patient, None, [np.full((2, 2), float(i))], split=split)
            for patient, split in splits.items()
            for i in range(2)
        ]
        out = folder / str(number)
        settings = IngestSettings(Preparation("float32", 1, 2, 2), SplitPlan())
        ingest(sequences, out, domain=domain, class_map=ClassMap(()), settings=settings)
        opened.append(EncryptedDataset.open(out))
    return opened


def named(domain: KeyDomain, *patients: str) -> set[bytes]:
    return {domain.pseudonym("patient", patient).encode() for patient in patients}


@pytest.mark.parametrize(
    ("hospitals", "both", "spoilt"),
    [
        ([NORTH], (), []),
        ([NORTH, SOUTH], ("ann", "bob", "cem", "fay"), [("ann",), ("fay",)]),
        ([NORTH, SOUTH, WEST], ("ann", "bob", "cem", "eva", "fay"), [("ann",), ("fay",), ()]),
        ([SOUTH, WEST], (), [(), ()]),
    ],
)
def test_patients_are_found_at_their_hospitals(tmp_path, domain, hospitals, both, spoilt):
    """A patient of several hospitals counts once; both sequences of one trained here and tested elsewhere are found."""
    opened = datasets(tmp_path, domain, hospitals)
    assert shared(opened) == named(domain, *both)
    assert trained_and_tested(opened) == sum(map(len, spoilt))
    for dataset, positions, patients in zip(opened, also_tested_elsewhere(opened), spoilt or [()], strict=True):
        assert len(positions) == 2 * len(patients)
        assert set(dataset.sequences["patient"][positions].tolist()) == named(domain, *patients)
        assert set(positions) <= set(dataset.indices("train"))
