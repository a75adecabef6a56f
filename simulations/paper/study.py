"""Study: the data of an experiment as an encrypted dataset and in plaintext, and its folds by patient.

Both zones of a hospital are in one process here: the key derives from the seed and protects nothing.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpp.config.run_config import SPLITS
from fedpp.dataset.at_rest import AtRestKey
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import ConfigError, RawDataError
from fedpp.imaging.account import read_accounted
from fedpp.imaging.labels import ClassMap
from fedpp.imaging.preparation import Preparation, pad
from fedpp.imaging.sequence import ImageSequence
from fedpp.imaging.splits import SplitPlan
from fedpp.imaging.visits import by_visit
from fedpp.ingest.ingestion import IngestSettings, ingest, prepared, sequence_pseudonym
from fedpp.key_material import KEY_BYTES
from fedpp.keys.key_domain import KeyDomain
from fedpp.texts import counted

from .paper_settings import Settings

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """Fold of a cross-validation: positions of sequences; a patient's are all in one of the three parts."""

    seed: int
    number: int  # from 0
    train: Positions
    validation: Positions
    test: Positions


@dataclass(frozen=True)
class Study:
    """Sequences, k of them, in the order of the encrypted dataset."""

    domain: KeyDomain
    dataset: EncryptedDataset
    described: str  # the images in one line
    class_map: ClassMap
    sequences: tuple[ImageSequence, ...]
    frames: NDArray[np.floating]  # plaintext, [k, frames, height, width, channels]
    valid: NDArray[np.bool_]  # [k, frames]
    labels: NDArray[np.int64]  # [k], class numbers
    unlabelled: int  # sequences without a label, which are not used

    @property
    def fingerprint(self) -> str:
        """Return 64 hex digits of the data: the dataset's own change with each sealing."""
        arrays = (self.frames, self.valid, self.labels, self.dataset.sequences)
        return sha256(b"".join([str(self.class_map.classes).encode(), *(a.tobytes() for a in arrays)])).hexdigest()

    @property
    def patients(self) -> NDArray[np.str_]:
        """Return the patients' pseudonyms, [k]."""
        return np.array([self.domain.pseudonym("patient", s.patient) for s in self.sequences])


def prepare_study(settings: Settings, data: Path, folder: Path, note: Callable[[str], None]) -> Study:
    """Read the data, encrypt them into the new folder `folder`, and prepare them in plaintext in the same order.

    `note` is called with descriptions of the data before anything is encrypted.
    """
    read, described = read_accounted(data, settings.layout, settings.choices)
    note(described)
    predicted = by_visit(read, window=settings.frames) if settings.predict == "visit" else read
    labelled = [s for s in predicted if s.label is not None]
    if not labelled:
        raise RawDataError(f"no sequence of {data} has a label, and the experiment needs them: {described}")
    class_map = ClassMap.choose(labelled, settings.classes, settings.negative)
    unlabelled = len(predicted) - len(labelled)
    labelled, others = class_map.taken(labelled)
    if settings.classes is None and settings.negative is None:
        note(f"negative is {class_map.classes[0]!r}, positive {class_map.classes[1]!r}: --negative chooses another")
    if others:
        note(f"left out, as in no class: {counted(sum(others.values()), 'sequence')}")
    seed, dtype = settings.training.seed, settings.training.dtype
    domain = KeyDomain.of_secret(sha256(f"paper's experiment, seed {seed}".encode()).digest(), n=2)
    preparation = Preparation(dtype, settings.frames, settings.size, settings.size, settings.channels)
    # A killed process leaves its files, and the domain's key follows from the seed: this one is in memory alone.
    at_rest = AtRestKey(domain.card().fingerprint, secrets.token_bytes(KEY_BYTES))
    ingest_settings = IngestSettings(preparation, plan(settings, seed, 0), at_rest=at_rest)
    ingest(labelled, folder, domain=domain, class_map=class_map, settings=ingest_settings)
    dataset = EncryptedDataset.open(folder, at_rest)
    by_name = {sequence_pseudonym(domain, s): s for s in labelled}
    ordered = tuple(by_name[name] for name in dataset.ids(np.arange(len(dataset))))
    frames, valid = _plaintext(ordered, preparation)
    numbers = np.array([class_map.number(s.label) for s in ordered])
    return Study(domain, dataset, described, class_map, ordered, frames, valid, numbers, unlabelled)


def plan(settings: Settings, seed: int, number: int) -> SplitPlan:
    """Return the plan of one fold."""
    return SplitPlan("stratified", seed, validation=settings.validation, folds=settings.folds, fold=number)


def folds(study: Study, settings: Settings, seed: int) -> list[Fold]:
    """Return the folds of a seed: whole patients, each in test once; validation is a share of those not in test.

    Raises `ConfigError` for a fold without all classes in training, or without negatives and positives elsewhere.
    """
    made = []
    for number in range(settings.folds):
        sequences = [replace(s, split=None) for s in study.sequences]
        split = plan(settings, seed, number).assign(sequences, lambda text: study.domain.pseudonym("split", text))
        of = np.array([SPLITS.index(split[s.patient]) for s in study.sequences])
        fold = Fold(seed, number, *(np.flatnonzero(of == index) for index in range(len(SPLITS))))
        lacking = [
            f"negative or no positive sequence in {name}"
            for name in SPLITS
            if len(np.unique(study.labels[getattr(fold, name)] > 0)) < 2
        ]
        lacking += [
            f"sequence of {label!r} in train"
            for index, label in enumerate(study.class_map.classes)
            if index not in study.labels[fold.train]
        ]
        if lacking:
            raise ConfigError(
                f"fold {number + 1} of seed {seed} has no {lacking[0]}: use fewer folds, another seed or more patients"
            )
        made.append(fold)
    return made


def _plaintext(
    sequences: Sequence[ImageSequence], preparation: Preparation
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Return frames `[k, frames, height, width, channels]` and which are valid `[k, frames]`."""
    arrays, length = list(prepared(sequences, preparation)), preparation.frames
    frames = np.stack([pad(values.astype(np.float64), length).astype(preparation.dtype) for values in arrays])
    return frames, np.stack([np.arange(length) < len(values) for values in arrays])
