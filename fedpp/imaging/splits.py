"""Who goes where: splits and partitions by patient, from a seed.

The order of patients comes from a hash, so it depends neither on the order of the input nor on a library's
random numbers.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

from fedpp.errors import ConfigError, RawDataError

from .sequence import ImageSequence

Digest = Callable[[str], str]


def _sha256(text: str) -> str:
    return sha256(text.encode(errors="surrogateescape")).hexdigest()


def split_patients(
    sequences: Sequence[ImageSequence],
    seed: int,
    validation: float = 0.15,
    test: float = 0.25,
    *,
    digest: Digest = _sha256,
) -> dict[str, str]:
    """Assign each patient to "train", "validation" or "test", stratified by the patient's labels.

    `validation` and `test` are shares of the patients of each stratum, rounded. A stratum of three patients
    or more has one in each split whose share is not zero; a patient alone is for training. Splits are public:
    give a keyed `digest`, or they tell which of some guessed patients are there.
    """
    if min(validation, test) < 0 or validation + test >= 1:
        raise ConfigError(f"shares must be at least 0 and below 1 together, got {validation} and {test}")
    splits: dict[str, str] = {}
    for patients in _strata(sequences, seed, digest):
        count = len(patients)
        tested, validated = _share(count, test), _share(count, validation)
        while tested + validated >= count:
            tested, validated = (tested - 1, validated) if tested >= validated else (tested, validated - 1)
        for position, patient in enumerate(patients):
            held_out = "test" if position < tested else "validation"
            splits[patient] = held_out if position < tested + validated else "train"
    return splits


def partition_patients(sequences: Sequence[ImageSequence], parts: int, seed: int) -> list[list[ImageSequence]]:
    """Divide sequences among `parts` simulated sites: whole patients, those of each stratum dealt in turn."""
    patients = [patient for stratum in _strata(sequences, seed, _sha256) for patient in stratum]
    if not 1 <= parts <= len(patients):
        raise RawDataError(f"{len(patients)} patients cannot be divided among {parts} sites: use fewer sites")
    part = {patient: position % parts for position, patient in enumerate(patients)}
    return [[s for s in sequences if part[s.patient] == number] for number in range(parts)]


def _share(count: int, share: float) -> int:
    at_least = 1 if share > 0 and count >= 3 else 0
    return max(at_least, int(count * share + 0.5))


def _strata(sequences: Iterable[ImageSequence], seed: int, digest: Digest) -> list[list[str]]:
    """Return the patients of each set of labels, in the seed's order."""
    labels: defaultdict[str, set[str]] = defaultdict(set)
    for sequence in sequences:
        labels[sequence.patient].add(sequence.label or "")
    strata: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for patient in sorted(labels, key=lambda p: (digest(f"{seed}|{p}"), p)):
        strata[tuple(sorted(labels[patient]))].append(patient)
    return [strata[key] for key in sorted(strata)]
