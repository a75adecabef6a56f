"""Ingest: raw sequences become an encrypted dataset, split by patient, prepared, encrypted and written."""

import json
import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fedpp.config.run_config import SPLITS
from fedpp.config.task import Gaps, Task
from fedpp.dataset.at_rest import AtRestKey
from fedpp.dataset.dataset_manifest import SequenceRecord
from fedpp.dataset.dataset_writer import DatasetWriter
from fedpp.errors import ConfigError, DatasetError, RawDataError
from fedpp.imaging.labels import ClassMap, Target
from fedpp.imaging.preparation import Preparation, gaps
from fedpp.imaging.same_pictures import DigestedFrames, SamePictures
from fedpp.imaging.sequence import FrameFiles, ImageSequence
from fedpp.imaging.splits import UNDIVIDED, SplitPlan
from fedpp.keys.encryption import SequenceCipher
from fedpp.keys.frame_cipher import DEFAULT_PATCH, FrameCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.protocol.counts import UNKNOWN

SAMPLE = 8  # sequences read to estimate the time for all
MIN_SECONDS = 6.0  # of reading: below, starting processes takes longer than they save
BATCH = 8  # sequences that a process reads at a time
AHEAD = 3  # batches per core that are read before they are written

Cipher = SequenceCipher | FrameCipher
Values = NDArray[np.floating]
Digested = tuple[Values, list[int]]  # a prepared sequence, and the digests of the frames that were read for it


@dataclass(frozen=True)
class IngestSettings:
    """What to prepare, how to split, and how to encrypt.

    `patch` is for domains of orthogonal frame mixing: the side of the mixed patches in pixels, or 0 for rows.
    `at_rest` seals the dataset's files, by the domain's key or by another.
    """

    preparation: Preparation
    split: SplitPlan
    gaps: Gaps = "none"
    patch: int = DEFAULT_PATCH
    at_rest: bool | AtRestKey = False


@dataclass(frozen=True)
class IngestSummary:
    """Counts and shapes of a written dataset, without identifiers."""

    dataset: str
    domain: str  # fingerprint of the domain card
    shape: tuple[int, int, int, int]  # frames, height, width, channels
    sequences: dict[str, int]  # per split
    patients: dict[str, int]  # per split
    classes: dict[str, int]  # sequences per class, or with each finding present; empty for unlabelled data
    missing_classes: dict[str, list[str]]  # per split that lacks some: classes, or findings, without a sequence
    findings: dict[str, dict[str, int]]  # multi-label: sequences where each is present, absent, unknown
    same_pictures: dict[str, int]  # pictures of several patients, by kind of issue

    def to_mapping(self) -> dict[str, Any]:
        """Return the summary as JSON values; findings only for multi-label data, and no issues."""
        values = {**asdict(self), "shape": list(self.shape)}
        del values["same_pictures"]
        if not self.findings:
            del values["findings"]
        return values


@dataclass(frozen=True)
class _Entry:
    """A sequence with its public record and its target."""

    record: SequenceRecord
    sequence: ImageSequence
    target: Target | None  # None for unlabelled data


def ingest(
    sequences: Sequence[ImageSequence],
    out: Path,
    *,
    domain: KeyDomain,
    class_map: ClassMap,
    settings: IngestSettings,
    progress: bool = False,
) -> IngestSummary:
    """Write the encrypted dataset `out`, sequences ordered by pseudonym; all of it, or nothing.

    The same sequences and settings give the same dataset, byte for byte, unless it is sealed at rest. Splits in the
    data take precedence over the split plan. The progress bar is shown on a terminal only. Raises `DatasetError` if
    `out` exists, `RawDataError` if there is nothing to write or an image cannot be read.
    """
    _check(sequences, settings.gaps)
    splits = _splits(sequences, settings.split, domain)
    entries = _entries(sequences, splits, class_map, domain)
    cipher, prep = _cipher(domain, settings), settings.preparation
    rows = np.empty((prep.frames, prep.height, prep.width, prep.channels, domain.n), prep.dtype)  # reused
    same = SamePictures()
    bar = tqdm(entries, desc="encrypting", unit="sequence", disable=None if progress else True)
    try:
        with _writer(out, domain, class_map, settings) as writer, bar:
            images = _digested([entry.sequence for entry in entries], prep)
            for entry, (values, digests) in zip(bar, images, strict=True):
                same.add(digests, entry.record.patient, entry.record.split)
                frames = cipher.frames(entry.record.id, values, rows[: len(values)])
                label = _label(cipher, entry, len(class_map.classes))
                writer.add(entry.record, frames, label, _time_gaps(cipher, entry, settings))
    except OSError as error:
        raise DatasetError(f"cannot write the dataset {out}: {error.strerror or type(error).__name__}") from None
    return _summary(out, domain, prep, entries, class_map, same)


def sequence_pseudonym(domain: KeyDomain, sequence: ImageSequence) -> str:
    """Return the pseudonym of a sequence; different pairs of patient and id have different ones."""
    return domain.pseudonym("sequence", json.dumps([sequence.patient, sequence.id]))


def _check(sequences: Sequence[ImageSequence], time_gaps: Gaps) -> None:
    """Raise `RawDataError` for no sequences, or for sequences without frames or needed times."""
    if not sequences:
        raise RawDataError("there is no sequence to ingest: choose a folder with images")
    untimed = sum(sequence.times is None for sequence in sequences)
    if time_gaps != "none" and untimed:
        raise RawDataError(
            f"{untimed} of {len(sequences)} sequences have no times, so no gaps to keep: ingest without --gaps"
        )
    if not all(len(sequence.frames) for sequence in sequences):
        raise RawDataError("a sequence has no frame: remove it")


def _splits(sequences: Sequence[ImageSequence], plan: SplitPlan, domain: KeyDomain) -> dict[str, str]:
    """Return the split of each patient: from the data, for all patients or none, else from the plan.

    The plan also divides the patients whom the data put into training or validation together.
    """
    given = {s.patient: s.split for s in sequences if s.split is not None}
    if not given:
        return plan.assign(sequences, lambda text: domain.pseudonym("split", text))
    if any(given.get(s.patient) != s.split for s in sequences):
        raise RawDataError("the data put a patient into no split or into two: give each sequence its patient's split")
    if plan.folds is not None:
        raise RawDataError("the data bring their own splits, so no folds are cut: remove these splits")
    undivided = [sequence for sequence in sequences if sequence.split == UNDIVIDED]
    return {**given, **replace(plan, test=0).assign(undivided, lambda text: domain.pseudonym("split", text))}


def _entries(
    sequences: Sequence[ImageSequence], splits: dict[str, str], class_map: ClassMap, domain: KeyDomain
) -> list[_Entry]:
    """Return the entries ordered by pseudonym, so that the dataset reveals no order of the raw data."""
    entries = [
        _Entry(
            SequenceRecord(
                sequence_pseudonym(domain, sequence),
                domain.pseudonym("patient", sequence.patient),
                len(sequence.frames),
                splits[sequence.patient],
            ),
            sequence,
            class_map.target(sequence.label) if class_map.classes else None,
        )
        for sequence in sequences
    ]
    if len({entry.record.id for entry in entries}) < len(entries):
        raise RawDataError("two sequences of one patient have the same id: give each its own")
    return sorted(entries, key=lambda entry: entry.record.id)


def _label(cipher: Cipher, entry: _Entry, classes: int) -> Values | None:
    if entry.target is None:
        return None
    name, target = entry.record.id, entry.target
    return cipher.label(name, target, classes) if isinstance(target, int) else cipher.findings(name, target)


def _time_gaps(cipher: Cipher, entry: _Entry, settings: IngestSettings) -> Values | None:
    if settings.gaps == "none":
        return None
    values = gaps(entry.sequence, settings.preparation.frames)
    return cipher.gaps(entry.record.id, values) if settings.gaps == "encrypted" else values


def _cipher(domain: KeyDomain, settings: IngestSettings) -> Cipher:
    """Return the domain's cipher; raise `ConfigError` for what it cannot encrypt."""
    prep, patch = settings.preparation, settings.patch
    if domain.scheme == "more":
        return SequenceCipher(domain, prep.dtype)
    if settings.gaps == "encrypted":
        raise ConfigError("scheme more-frame does not encrypt time gaps: ingest with --gaps public, or none")
    cipher = FrameCipher(domain, prep.dtype, "patches" if patch else "rows", patch)
    cipher.check(prep.height, prep.width)
    return cipher


def _writer(out: Path, domain: KeyDomain, class_map: ClassMap, settings: IngestSettings) -> DatasetWriter:
    prep = settings.preparation
    task = Task(
        prep.frames,
        prep.height,
        prep.width,
        prep.channels,
        class_map.classes,
        gaps=settings.gaps != "none",
        multi_label=class_map.multi_label,
        patch=settings.patch if domain.scheme == "more-frame" else 0,
    )
    return DatasetWriter(
        out,
        domain.card(),
        task,
        prep.dtype,
        encrypted_gaps=settings.gaps == "encrypted",
        at_rest=domain.at_rest_key() if settings.at_rest is True else settings.at_rest or None,
    )


def _summary(
    out: Path,
    domain: KeyDomain,
    prep: Preparation,
    entries: Sequence[_Entry],
    class_map: ClassMap,
    same: SamePictures,
) -> IngestSummary:
    splits = {entry.record.patient: entry.record.split for entry in entries}
    classes = dict(enumerate(class_map.classes))
    used = Counter((number, entry.record.split) for entry in entries for number in _present(entry.target))
    missing = {
        split: [name for number, name in classes.items() if not used[number, split]] for split in SPLITS if classes
    }
    states = zip(*(entry.target for entry in entries if isinstance(entry.target, tuple)), strict=True)
    return IngestSummary(
        str(out),
        domain.card().fingerprint,
        (prep.frames, prep.height, prep.width, prep.channels),
        {split: sum(entry.record.split == split for entry in entries) for split in SPLITS},
        {split: sum(assigned == split for assigned in splits.values()) for split in SPLITS},
        {name: sum(used[number, split] for split in SPLITS) for number, name in classes.items()},
        {split: names for split, names in missing.items() if names},
        {
            name: {"present": of_one.count(1), "absent": of_one.count(0), "unknown": of_one.count(UNKNOWN)}
            for name, of_one in zip(class_map.classes, states, strict=False)
        },
        same.issues(),
    )


def _present(target: Target | None) -> list[int]:
    """Return the number of the class, or those of the present findings."""
    if target is None or isinstance(target, int):
        return [] if target is None else [target]
    return [number for number, state in enumerate(target) if state == 1]


def prepared(sequences: Sequence[ImageSequence], preparation: Preparation) -> Iterator[Values]:
    """Read and prepare sequences in their order, on all cores if it takes long, a bounded number ahead.

    The workers get images and no keys; the caller encrypts.
    """
    return (values for values, _ in _digested(sequences, preparation))


def _digested(sequences: Sequence[ImageSequence], preparation: Preparation) -> Iterator[Digested]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    spent = 0.0
    for number, sequence in enumerate(sequences):
        if cores > 1 and number == SAMPLE and spent / SAMPLE * (len(sequences) - SAMPLE) >= MIN_SECONDS:
            yield from _on_all_cores(sequences[number:], preparation, cores)
            return
        started = time.perf_counter()
        values = _prepared(sequence, preparation)
        spent += time.perf_counter() - started
        yield values


def _on_all_cores(sequences: Sequence[ImageSequence], preparation: Preparation, cores: int) -> Iterator[Digested]:
    pool = ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=_end_with_parent)
    waiting: deque[Future[list[Digested]]] = deque()
    try:
        for first in range(0, len(sequences), BATCH):
            waiting.append(pool.submit(_prepared_batch, sequences[first : first + BATCH], preparation))
            if len(waiting) >= AHEAD * cores:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise RawDataError("a process that read the images ended by itself: is there enough memory?") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _prepared_batch(sequences: Sequence[ImageSequence], preparation: Preparation) -> list[Digested]:
    return [_prepared(sequence, preparation) for sequence in sequences]


def _prepared(sequence: ImageSequence, preparation: Preparation) -> Digested:
    if not isinstance(sequence.frames, FrameFiles):
        return preparation.of(sequence), []
    frames = DigestedFrames(sequence.frames)
    return preparation.of(replace(sequence, frames=frames)), frames.digests


def _end_with_parent() -> None:
    """End this worker when its parent is gone, even killed: it would wait for work for ever."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()
