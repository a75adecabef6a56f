"""Splits, folds and partitions by patient, from a seed, stratified on request."""

import hmac
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from hashlib import sha256
from itertools import product
from math import ceil, floor
from random import Random

import pytest
from conftest import DATA
from hypothesis import given
from hypothesis import strategies as st

from fedpp.errors import ConfigError, RawDataError
from fedpp.imaging.readers.layout import read_sequences
from fedpp.imaging.sequence import ImageSequence
from fedpp.imaging.splits import METHODS, Digest, SplitPlan, partition_patients

SPLITS = ("train", "validation", "test")


def plain(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def keyed(key: bytes) -> Digest:
    return lambda text: hmac.digest(key, text.encode(), "sha256").hex()[:32]


def sequences(patients: dict[str, str | None], each: int = 1) -> list[ImageSequence]:
    """Make `each` sequences a patient, of the patient's label."""
    return [ImageSequence(str(i), patient, label, ()) for patient, label in patients.items() for i in range(each)]


def cohort(**sizes: int) -> dict[str, str | None]:
    return {f"{label}{i}": label for label, count in sizes.items() for i in range(count)}


def held_out(splits: dict[str, str]) -> dict[str, list[str]]:
    return {split: sorted(p for p in splits if splits[p] == split) for split in SPLITS[1:]}


cohorts = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 30), min_size=1).map(lambda d: cohort(**d))
folds = st.one_of(st.none(), st.integers(2, 6))
plans = st.builds(
    lambda method, seed, number, fold: SplitPlan(method, seed, folds=number, fold=fold % number if number else 0),
    st.sampled_from(METHODS),
    st.integers(0, 2**32),
    folds,
    st.integers(0, 5),
)


def assigned(plan: SplitPlan, given_sequences: list[ImageSequence], digest: Digest = plain) -> dict[str, str]:
    """Assign, unless there are too few patients for the folds."""
    if plan.folds and len({s.patient for s in given_sequences}) < plan.folds:
        with pytest.raises(RawDataError, match=f"are too few for {plan.folds} folds"):
            plan.assign(given_sequences, digest)
        return {}
    return plan.assign(given_sequences, digest)


@given(cohorts, plans, st.integers(0, 100))
def test_the_order_of_the_input_does_not_matter(patients, plan, shuffle):
    """Every patient has one split, which depends on neither the order nor the number of sequences."""
    shuffled = sequences(patients, each=2)
    Random(shuffle).shuffle(shuffled)
    splits = assigned(plan, shuffled)
    assert splits == assigned(plan, sequences(patients))
    assert set(splits) in (set(patients), set())
    assert set(splits.values()) <= set(SPLITS)


@given(cohorts, plans.filter(lambda plan: plan.method == "hashed"), st.data())
def test_hashed_a_new_patient_never_moves_an_old_one(patients, plan, data):
    """Whatever the other patients and the labels are, a patient's hashed split is the same."""
    whole = plan.assign(sequences(cohort(abcd=6) | patients), plain)
    some = data.draw(st.dictionaries(st.sampled_from(sorted(patients)), st.sampled_from("xyz"), min_size=1))
    part = plan.assign(sequences(cohort(abcd=6) | some), plain)
    assert part.items() <= whole.items()


@pytest.mark.parametrize(
    ("plan", "shares"),
    [
        (SplitPlan(seed=3), {"test": 0.25, "validation": 0.15}),
        (SplitPlan(seed=4, validation=0.3, test=0.1), {"test": 0.1, "validation": 0.3}),
        (SplitPlan(seed=5, test=0, validation=0.5), {"test": 0, "validation": 0.5}),
        (SplitPlan(seed=6, folds=4, fold=3, validation=0.2), {"test": 0.25, "validation": 0.15}),
    ],
)
def test_hashed_shares_are_met_in_expectation(plan, shares):
    """Of 2,000 patients each split has its share, to three standard errors of a draw."""
    counts = Counter(plan.assign(sequences(cohort(a=2000)), plain).values())
    for split, share in shares.items():
        assert abs(counts[split] - 2000 * share) <= 3 * (2000 * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [None, 4])
def test_seed_and_key_choose_the_split(method, number):
    """Another seed, and another key of the digest, is another split; the same ones are the same split."""
    patients = sequences(cohort(a=20, b=20))
    for field in SPLITS[1:]:
        by_seed = {str(held_out(SplitPlan(method, s, folds=number).assign(patients, plain))[field]) for s in range(20)}
        by_key = {
            str(held_out(SplitPlan(method, 0, folds=number).assign(patients, keyed(bytes([k]))))[field])
            for k in range(20)
        }
        assert min(len(by_seed), len(by_key)) > 10


@pytest.mark.parametrize(
    ("plan", "validation", "test"),
    [
        (SplitPlan("stratified", 1), "a7 b0", "a1 a4 b1"),
        (SplitPlan("stratified", 1, folds=3), "a4 b1", "a1 a3 a5 b0"),
        (SplitPlan("hashed", 1), "a0", "a1 a3 a4 a7 b3"),
        (SplitPlan("hashed", 1, folds=3), "a6", "a0 a1 a3 a4 a7 b3"),
    ],
)
def test_the_split_is_the_same_on_every_machine(plan, validation, test):
    """A seed's split is a fixed one: it comes from the digest, not from a library's random numbers."""
    splits = plan.assign(sequences(cohort(a=8, b=4)), plain)
    assert held_out(splits) == {"validation": validation.split(), "test": test.split()}


@given(cohorts, st.integers(0, 2**32), st.floats(0.05, 0.45), st.floats(0.05, 0.45))
def test_stratified_every_class_of_three_patients_is_in_every_split(patients, seed, validation, test):
    """Each patient has a split, and a class of three or more has one in train, validation and test."""
    splits = SplitPlan("stratified", seed, validation, test).assign(sequences(patients), plain)
    assert set(splits) == set(patients)
    for label, count in Counter(patients.values()).items():
        found = Counter(splits[p] for p in patients if patients[p] == label)
        assert found["train"] >= 1
        if count >= 3:
            assert set(found) == set(SPLITS)
            assert abs(found["test"] - count * test) <= 1
            assert abs(found["validation"] - count * validation) <= 1


@pytest.mark.parametrize(
    ("sizes", "validation", "test", "held_out"),
    [
        ((10, 10), 0.15, 0.25, (3, 5)),  # of 1.5 and 2.5 of each stratum
        ((20,), 0.15, 0.25, (3, 5)),
        ((14, 6), 0.15, 0.25, (3, 5)),
        ((7, 7, 6), 0.15, 0.25, (3, 5)),
        ((5, 5), 0.15, 0.25, (2, 3)),  # one of each in every split comes before the share
        ((10,), 0.15, 0.25, (1, 3)),
        ((50, 50), 0.01, 0.57, (2, 57)),
        ((30, 30), 0.1, 0.1, (6, 6)),
        ((10, 10), 0, 0.25, (0, 5)),
        ((6, 6), 0.5, 0, (6, 0)),
        ((2, 2, 2, 2), 0.15, 0.25, (1, 2)),
        ((1, 1, 1), 0.3, 0.3, (0, 0)),
    ],
)
def test_stratified_the_whole_has_its_shares(sizes, validation, test, held_out):
    """Shares are of all patients: rounding within each stratum held out 10 of 20 patients where 8 were asked."""
    patients = cohort(**{"abcd"[number]: size for number, size in enumerate(sizes)})
    for seed in range(3):
        found = Counter(SplitPlan("stratified", seed, validation, test).assign(sequences(patients), plain).values())
        assert (found["validation"], found["test"]) == held_out


percents = st.integers(1, 45)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), percents, percents)
def test_stratified_no_other_numbers_are_nearer_to_the_shares(sizes, of_validation, of_test):
    """Of all numbers for test that leave others their least, none is nearer, in exact arithmetic, to the shares."""
    validation, test = Fraction(of_validation, 100), Fraction(of_test, 100)
    patients = cohort(**{"abcd"[number]: size for number, size in enumerate(sizes)})
    splits = SplitPlan("stratified", 1, of_validation / 100, of_test / 100).assign(sequences(patients), plain)
    found = [sum(splits[p] == "test" for p in patients if patients[p] == "abcd"[n]) for n in range(len(sizes))]

    def least(size: int, share: Fraction) -> int:
        return max(int(size >= 3), floor(size * share))

    whole = sum(sizes)
    quotas = [whole * share for share in (1 - validation - test, validation, test)]
    left = whole - sum(map(floor, quotas))
    last_first = sorted(range(3), key=lambda number: (quotas[number] - floor(quotas[number]), number))[3 - left :]
    asked = floor(quotas[2]) + (2 in last_first)
    ranges = []
    for size in sizes:
        most = max(0, size - 1 - least(size, validation))
        low = min(least(size, test), most)
        ranges.append(range(low, max(low, min(ceil(size * test), most)) + 1))

    def distance(numbers: Sequence[int]) -> tuple[Fraction, Fraction]:
        apart = sum((abs(n - size * test) for n, size in zip(numbers, sizes, strict=True)), Fraction(0))
        return Fraction(abs(sum(numbers) - asked)), apart

    assert distance(found) == min(map(distance, product(*ranges)))


@given(cohorts, st.sampled_from(METHODS), st.integers(2, 6), st.integers(0, 100))
def test_over_all_folds_each_patient_is_tested_once(patients, method, number, seed):
    """K folds test every patient exactly once, whatever the share `test` says, and stratified ones evenly."""
    if len(patients) < number:
        return
    runs = [
        SplitPlan(method, seed, 0.2, 0.9, number, fold).assign(sequences(patients), plain) for fold in range(number)
    ]
    tested = Counter(patient for splits in runs for patient in held_out(splits)["test"])
    assert tested == dict.fromkeys(patients, 1)
    if method == "stratified":
        for members in (set(patients), *({p for p in patients if patients[p] == label} for label in "abcd")):
            sizes = [len(members & set(held_out(splits)["test"])) for splits in runs]
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("method", METHODS)
def test_too_few_patients_for_the_folds_are_refused(method):
    """Three patients cannot be tested in four folds, however many sequences they have."""
    with pytest.raises(RawDataError, match="3 patients are too few for 4 folds: use fewer folds"):
        SplitPlan(method, folds=4).assign(sequences(cohort(a=3), each=5), plain)


def test_stratified_patients_of_two_classes_are_a_stratum():
    """Those with sequences of both classes are shared out too, whatever the order of their sequences is."""
    mixed = [s for i in range(4) for label in "ab"[:: i % 2 * 2 - 1] for s in sequences({f"mixed{i}": label})]
    splits = SplitPlan("stratified").assign([*sequences(cohort(a=8, b=8)), *mixed], plain)
    assert Counter(splits[f"mixed{i}"] for i in range(4)) == {"train": 2, "validation": 1, "test": 1}


def test_folds_validate_a_share_of_the_rest():
    """Stratified: 20 % of each class's patients that are not tested, so that every class is validated too."""
    patients = cohort(a=40, b=20)
    for fold in range(4):
        splits = SplitPlan("stratified", 0, 0.2, folds=4, fold=fold).assign(sequences(patients), plain)
        assert Counter((patients[p], splits[p]) for p in splits) == {
            ("a", "test"): 10, ("a", "validation"): 6, ("a", "train"): 24,
            ("b", "test"): 5, ("b", "validation"): 3, ("b", "train"): 12,
        }  # fmt: skip


def test_hashed_validation_is_drawn_apart_from_the_fold():
    """Those that a hashed fold holds out for test are no special part of another fold's validation patients."""
    tested = set(held_out(SplitPlan(folds=2, fold=0).assign(sequences(cohort(a=2000)), plain))["test"])
    validated = held_out(SplitPlan(folds=2, fold=1, validation=0.5).assign(sequences(cohort(a=2000)), plain))[
        "validation"
    ]
    share = len(tested & set(validated)) / len(tested)
    assert abs(share - 0.5) < 0.05


@pytest.mark.parametrize("method", METHODS)
def test_a_share_of_nothing_is_nothing(method):
    """With shares of 0 all patients are for training, and no patients are no error."""
    plan = SplitPlan(method, validation=0, test=0)
    assert set(plan.assign(sequences(cohort(a=9)), plain).values()) == {"train"}
    assert plan.assign([], plain) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": 0.5, "test": 0.5}, "shares must be at least 0 and below 1 together, got 0.5 and 0.5"),
        ({"validation": -0.1}, "shares must be"),
        ({"test": 1.0}, "shares must be"),
        ({"test": float("nan")}, "shares must be"),
        ({"seed": -1}, "split seed must be at least 0, got -1"),
        ({"method": "random"}, "split method must be one of hashed, stratified, got 'random'"),
        ({"folds": 1}, "folds must be at least 2"),
        ({"folds": 4, "fold": 4}, r"fold one of 0 .. folds - 1, got \(4, 4\)"),
        ({"folds": 4, "fold": -1}, "folds must be at least 2 and fold one of"),
        ({"fold": 1}, "fold 1 needs a number of folds"),
        ({"folds": 4, "validation": 1.0}, "the share of validation must be at least 0 and below 1, got 1.0"),
    ],
)
def test_bad_plans_are_refused(settings, message):
    """Unknown methods, and seeds, shares and folds out of range, are wrong settings: one line each."""
    with pytest.raises(ConfigError, match=message):
        SplitPlan(**settings)


@pytest.mark.parametrize("method", METHODS)
def test_the_real_ultrasound_is_split_by_patient(method):
    """30 % of 78 real patients, in four classes and some in two, are for test: each patient in one split only."""
    real, _ = read_sequences(DATA / "ultrasound_sequences")
    splits = SplitPlan(method, 0, 0.15, 0.3).assign(real, plain)
    counts = Counter(splits.values())
    assert sum(counts.values()) == 78
    assert 16 <= counts["test"] <= 31
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


def test_several_findings_are_stratified_by_how_many_were_present():
    """Whatever their combination, patients of one number of findings meet the shares, and one of each is held out."""
    findings = [
        ("1", "0", None),
        ("0", "1", "0"),
        (None, None, "1"),
        ("1", "1", "0"),
        ("1", None, "1"),
        ("0", "0", "0"),
    ]
    ever = {f"p{i}": findings[i % 6] for i in range(60)}
    given_ = sequences(ever) + [ImageSequence("x", patient, ("0", "0", "0"), ()) for patient in ever]
    splits = SplitPlan("stratified", 0, validation=0.2, test=0.3).assign(given_, plain)
    for number, size in ((0, 10), (1, 30), (2, 20)):
        stratum = [splits[patient] for patient, states in ever.items() if states.count("1") == number]
        assert Counter(stratum) == {"train": size * 0.5, "validation": size * 0.2, "test": size * 0.3}
