"""Splits, folds and partitions of sequences by patient, from a seed.

The order of patients comes from a keyed hash, so it depends neither on the order of the input nor on a library's
random numbers. scikit-learn's `StratifiedGroupKFold` (1.9) is not used: it has equal shares only; of 600 random cohorts
20 got folds whose sizes differ by two patients, and 2 with fewer patients of each label than folds were refused; and it
takes 0.25 ms a patient, 16 s for CheXpert's 65,000.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, get_args

from fedpp.errors import ConfigError, RawDataError
from fedpp.imaging.sequence import ImageSequence, Label

Digest = Callable[[str], str]  # hex digest of a text: splits are public, so it must be keyed for real patients
Method = Literal["hashed", "stratified"]

UNDIVIDED = "train or validation"  # split of patients of whom the plan's share is for validation, the rest for training
METHODS: tuple[Method, ...] = get_args(Method)
TINY = 1e-9  # of a patient: shares are decimal fractions, which have no exact binary form


@dataclass(frozen=True)
class SplitPlan:
    """Assignment of patients to "train", "validation" and "test": each is in one split, with all sequences.

    hashed: by thresholds on the digest of seed and patient alone, so that no other patient and no label ever moves
    a patient; shares are met in expectation. stratified: exact shares of all patients, divided among the sets of
    labels by largest remainder, for data that do not grow; a stratum of three patients or more has one in each split
    whose share is not zero. In multi-label data a
    stratum is the patients with the same number of findings ever present: combinations of findings are too many, and
    a patient alone in a stratum is for training.

    With `folds`, test is part `fold` of that number of parts instead of the share `test`, and validation a share of
    the rest; over all values of `fold` each patient is in test once.
    """

    method: Method = "hashed"
    seed: int = 0
    validation: float = 0.15
    test: float = 0.25
    folds: int | None = None
    fold: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.method not in METHODS:
            raise ConfigError(f"split method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.seed < 0:
            raise ConfigError(f"split seed must be at least 0, got {self.seed}")
        if self.folds is None:
            self._check_shares()
        else:
            self._check_folds(self.folds)

    def _check_shares(self) -> None:
        if not (self.validation >= 0 and self.test >= 0 and self.validation + self.test < 1):
            raise ConfigError(f"shares must be at least 0 and below 1 together, got {self.validation} and {self.test}")
        if self.fold:
            raise ConfigError(f"fold {self.fold} needs a number of folds: give both, or neither")

    def _check_folds(self, folds: int) -> None:
        if folds < 2 or not 0 <= self.fold < folds:
            raise ConfigError(f"folds must be at least 2 and fold one of 0 .. folds - 1, got {folds, self.fold}")
        if not 0 <= self.validation < 1:
            raise ConfigError(f"the share of validation must be at least 0 and below 1, got {self.validation}")

    def assign(self, sequences: Sequence[ImageSequence], digest: Digest) -> dict[str, str]:
        """Return the split of each patient; raise `RawDataError` for fewer patients than folds."""
        patients = {sequence.patient for sequence in sequences}
        if self.folds is not None and len(patients) < self.folds:
            raise RawDataError(f"{len(patients)} patients are too few for {self.folds} folds: use fewer folds")
        if self.method == "hashed":
            return {patient: self._hashed(patient, digest) for patient in patients}
        strata = _strata(sequences, self.seed, digest)
        return _stratified(strata, self.validation, self.test) if self.folds is None else self._with_test_fold(strata)

    def _hashed(self, patient: str, digest: Digest) -> str:
        place = _uniform(digest(f"split|{self.seed}|{patient}"))
        if self.folds is None:
            if place < self.test:
                return "test"
            return "validation" if place < self.test + self.validation else "train"
        if int(place * self.folds) == self.fold:
            return "test"
        return "validation" if _uniform(digest(f"validation|{self.seed}|{patient}")) < self.validation else "train"

    def _with_test_fold(self, strata: list[list[str]]) -> dict[str, str]:
        patients = [patient for stratum in strata for patient in stratum]
        tested = {patient for position, patient in enumerate(patients) if position % (self.folds or 1) == self.fold}
        rest = [[patient for patient in stratum if patient not in tested] for stratum in strata]
        return _stratified(rest, self.validation, 0) | dict.fromkeys(tested, "test")


def partition_patients(sequences: Sequence[ImageSequence], parts: int, seed: int) -> list[list[ImageSequence]]:
    """Divide sequences among `parts` simulated sites: whole patients, each stratum's in turn."""
    patients = [patient for stratum in _strata(sequences, seed, _sha256) for patient in stratum]
    if not 1 <= parts <= len(patients):
        raise RawDataError(f"{len(patients)} patients cannot be divided among {parts} sites: use fewer sites")
    part = {patient: position % parts for position, patient in enumerate(patients)}
    return [[s for s in sequences if part[s.patient] == number] for number in range(parts)]


def _stratified(strata: list[list[str]], validation: float, test: float) -> dict[str, str]:
    """Assign shares of all patients, divided among the strata; a patient alone in a stratum is for training."""
    sizes = [len(patients) for patients in strata]
    whole = sum(sizes)
    _, all_validated, all_tested = _rounded([whole * (1 - validation - test), whole * validation, whole * test], whole)
    kept = [1 + _least(size, validation) for size in sizes]
    tested = _divided(all_tested, test, sizes, kept)
    validated = _divided(all_validated, validation, sizes, [1 + of_test for of_test in tested])
    splits: dict[str, str] = {}
    for patients, of_test, of_validation in zip(strata, tested, validated, strict=True):
        held_out = ["test"] * of_test + ["validation"] * of_validation
        splits |= dict(zip(patients, held_out + ["train"] * (len(patients) - len(held_out)), strict=True))
    return splits


def _divided(whole: int, share: float, sizes: list[int], kept: list[int]) -> list[int]:
    """Return how many patients of each stratum make up `whole`, but for `kept` of each that others need."""
    most = [max(0, size - others) for size, others in zip(sizes, kept, strict=True)]
    counts = [min(_least(size, share), limit) for size, limit in zip(sizes, most, strict=True)]
    rest = [
        size * share - count if count < limit else 0 for size, count, limit in zip(sizes, counts, most, strict=True)
    ]
    for number in _by_remainder(rest)[: max(0, whole - sum(counts))]:
        counts[number] += rest[number] > TINY
    return counts


def _rounded(quotas: list[float], whole: int) -> list[int]:
    """Return whole numbers that add up to `whole`, by largest remainder."""
    counts = [int(quota + TINY) for quota in quotas]
    for number in _by_remainder([quota - count for quota, count in zip(quotas, counts, strict=True)])[
        : whole - sum(counts)
    ]:
        counts[number] += 1
    return counts


def _by_remainder(remainders: list[float]) -> list[int]:
    """Return positions, the largest remainder first; of equal ones the last, which is of test among splits."""
    return sorted(range(len(remainders)), key=lambda number: (round(remainders[number], 9), number), reverse=True)


def _least(size: int, share: float) -> int:
    """Return how many patients of a stratum a split has at least: one of three, and its share rounded down."""
    return max(1 if share > 0 and size >= 3 else 0, int(size * share + TINY))


def _strata(sequences: Iterable[ImageSequence], seed: int, digest: Digest) -> list[list[str]]:
    """Return the patients of each stratum, in the seed's order."""
    labels: defaultdict[str, set[Label]] = defaultdict(set)
    for sequence in sequences:
        labels[sequence.patient].add(sequence.label or "")
    strata: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for patient in sorted(labels, key=lambda p: (digest(f"{seed}|{p}"), p)):
        strata[_stratum(labels[patient])].append(patient)
    return [strata[key] for key in sorted(strata)]


def _stratum(labels: set[Label]) -> tuple[str, ...]:
    """Return a patient's set of labels, or for multi-label data the number of findings ever present."""
    of_findings = [label for label in labels if not isinstance(label, str)]
    if of_findings:
        return (str(sum("1" in states for states in zip(*of_findings, strict=True))),)
    return tuple(sorted(label for label in labels if isinstance(label, str)))


def _uniform(digest: str) -> float:
    """Return a number in [0, 1) from a digest's first 52 bits."""
    return int(digest[:13], 16) / 16**13


def _sha256(text: str) -> str:
    return sha256(text.encode(errors="surrogateescape")).hexdigest()
