"""Splits and partitions: by patient, from a seed alone, every class everywhere."""

from collections import Counter
from random import Random

import pytest
from conftest import DATA
from hypothesis import given
from hypothesis import strategies as st

from fedpp.errors import ConfigError, RawDataError
from fedpp.imaging.layout import read_sequences
from fedpp.imaging.sequence import ImageSequence
from fedpp.imaging.splits import partition_patients, split_patients


def sequences(patients: dict[str, str | None], each: int = 1) -> list[ImageSequence]:
    """Make `each` sequences a patient, of the patient's label."""
    return [ImageSequence(str(i), patient, label, ()) for patient, label in patients.items() for i in range(each)]


def cohort(**sizes: int) -> dict[str, str | None]:
    return {f"{label}{i}": label for label, count in sizes.items() for i in range(count)}


cohorts = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 30), min_size=1).map(lambda d: cohort(**d))


@given(cohorts, st.integers(0, 2**32), st.floats(0.05, 0.45), st.floats(0.05, 0.45))
def test_every_class_of_three_patients_is_in_every_split(patients, seed, validation, test):
    """Each patient has a split, and a class of three or more has one in train, validation and test."""
    splits = split_patients(sequences(patients), seed, validation, test)
    assert set(splits) == set(patients)
    for label, count in Counter(patients.values()).items():
        found = Counter(splits[p] for p in patients if patients[p] == label)
        assert found["train"] >= 1
        if count >= 3:
            assert set(found) == {"train", "validation", "test"}
            assert abs(found["test"] - count * test) <= 1
            assert abs(found["validation"] - count * validation) <= 1


@given(cohorts, st.integers(0, 100), st.integers(0, 100))
def test_the_order_of_the_input_does_not_matter(patients, seed, shuffle):
    """A patient's split depends on the seed and the cohort, not on the order or number of sequences."""
    given_order = sequences(patients, each=2)
    Random(shuffle).shuffle(given_order)
    assert split_patients(given_order, seed) == split_patients(sequences(patients), seed)


def test_the_split_is_the_same_on_every_machine():
    """A seed's split is a fixed one: it comes from SHA-256, not from a library's random numbers."""
    splits = split_patients(sequences(cohort(a=8, b=4)), seed=1)
    held_out = {split: sorted(p for p in splits if splits[p] == split) for split in ("validation", "test")}
    assert held_out == {"validation": ["a7", "b0"], "test": ["a1", "a4", "b1"]}


def test_another_seed_is_another_split():
    """Twenty seeds give more than ten different test sets of a cohort of forty."""
    patients = cohort(a=20, b=20)
    sets = {
        frozenset(p for p, split in split_patients(sequences(patients), seed).items() if split == "test")
        for seed in range(20)
    }
    assert len(sets) > 10


def test_a_share_of_nothing_is_nothing():
    """With shares of 0 all patients are for training."""
    assert set(split_patients(sequences(cohort(a=9)), 0, 0, 0).values()) == {"train"}


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.2), (0.2, 1.0)])
def test_shares_must_leave_patients_for_training(shares):
    """Shares below 0, or of 1 together, are wrong settings."""
    with pytest.raises(ConfigError, match="shares must be at least 0 and below 1 together"):
        split_patients(sequences(cohort(a=9)), 0, *shares)


def test_the_real_ultrasound_is_split_by_patient():
    """30 % of 78 real patients, in four classes and some in two, are for test: each patient in one split only."""
    real, _ = read_sequences(DATA / "ultrasound_sequences")
    splits = split_patients(real, 0, 0.15, 0.3)
    counts = Counter(splits.values())
    assert sum(counts.values()) == 78
    assert 20 <= counts["test"] <= 27
    for split in ("train", "test"):
        assert {s.label for s in real if splits[s.patient] == split} >= {"Regular", "COVID-19", "Bacterial pneumonia"}


@given(cohorts, st.integers(1, 5), st.integers(0, 100))
def test_sites_share_no_patient(patients, parts, seed):
    """A partition holds every sequence once, no patient at two sites, and classes evenly to one patient."""
    if parts > len(patients):
        with pytest.raises(RawDataError, match="cannot be divided"):
            partition_patients(sequences(patients), parts, seed)
        return
    sites = partition_patients(sequences(patients, each=2), parts, seed)
    assert sorted((s.patient, s.id) for site in sites for s in site) == sorted(
        (s.patient, s.id) for s in sequences(patients, each=2)
    )
    members = [{s.patient for s in site} for site in sites]
    assert sum(map(len, members)) == len(set.union(*members))
    for label in set(patients.values()):
        counts = [sum(patients[p] == label for p in site) for site in members]
        assert max(counts) - min(counts) <= 1
