"""From raw sequences to an encrypted dataset: split by patient, prepare, encrypt, write."""

import json
import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fedpp.config.model_spec import Gaps
from fedpp.config.run_config import SPLITS, Dtype
from fedpp.dataset.dataset_manifest import SequenceRecord
from fedpp.dataset.dataset_writer import DatasetWriter
from fedpp.errors import ConfigError, DatasetError, RawDataError
from fedpp.imaging.labels import ClassMap, Target
from fedpp.imaging.preparation import gaps, prepare
from fedpp.imaging.sequence import ImageSequence, strict
from fedpp.imaging.splits import SplitPlan
from fedpp.keys.encryption import SequenceCipher
from fedpp.keys.frame_cipher import DEFAULT_PATCH, FrameCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.protocol.counts import UNKNOWN

SAMPLE = 8  # sequences that are read to estimate how long all will take
POOL_PAYS = 6.0  # seconds of reading: below, starting processes takes longer than they save
TOGETHER = 8  # sequences that a process reads at a time
Cipher = SequenceCipher | FrameCipher

AHEAD = 3  # such parts a core that are read before they are written


@dataclass(frozen=True)
class IngestSummary:
    """What was written: counts and shapes only."""

    dataset: str
    domain: str  # fingerprint of the domain's card
    shape: tuple[int, int, int, int]  # frames, height, width, channels
    sequences: dict[str, int]  # of each split
    patients: dict[str, int]  # of each split
    classes: dict[str, int]  # sequences of each class, or with each finding present; empty for unlabelled data
    absent: dict[str, list[str]]  # of each split that lacks some: the classes, or findings, that it has no sequence of
    findings: dict[str, dict[str, int]]  # of each of several findings: sequences where it is present, absent, unknown

    def to_mapping(self) -> dict[str, Any]:
        """Return the summary as values that JSON takes; findings only if there are several."""
        values = {**asdict(self), "shape": list(self.shape)}
        if not self.findings:
            del values["findings"]
        return values


def ingest(
    sequences: Sequence[ImageSequence],
    out: Path,
    *,
    domain: KeyDomain,
    class_map: ClassMap,
    frames: int,
    height: int,
    width: int,
    plan: SplitPlan,
    dtype: Dtype,
    channels: int = 1,
    time_gaps: Gaps = "none",
    patch: int = DEFAULT_PATCH,
    at_rest: bool = False,
    progress: bool = False,
) -> IngestSummary:
    """Write the encrypted dataset `out`, sequences in the order of their pseudonyms; all of it, or nothing.

    The same sequences and settings give the same dataset, byte for byte, unless it is sealed at rest. `plan` says
    who goes into which split, if the data do not. `channels` is 1 for grey images and 3 for their colours. `patch` is
    for domains of the frame form: the side of the patches that are mixed, or 0 for rows of pixels. The bar is shown on
    a terminal only. Raises `DatasetError` if `out` exists, `RawDataError` where nothing is to write or an
    image cannot be read.
    """
    if not sequences:
        raise RawDataError("there is no sequence to ingest: choose a folder with images")
    if time_gaps != "none" and any(s.times is None for s in sequences):
        without = sum(s.times is None for s in sequences)
        raise RawDataError(
            f"{without} of {len(sequences)} sequences have no times, so no gaps to keep: ingest without --gaps"
        )
    if not all(len(s.frames) for s in sequences):
        raise RawDataError("a sequence has no frame: leave it out")
    splits = _splits(sequences, plan, domain)
    named = sorted(((sequence_pseudonym(domain, s), s) for s in sequences), key=lambda pair: pair[0])
    if len({name for name, _ in named}) < len(named):
        raise RawDataError("two sequences of one patient have the same id: give each its own")
    targets = {name: class_map.target(s.label) for name, s in named} if class_map.classes else {}
    cipher = _cipher(domain, dtype, patch, height, width, time_gaps)
    writer = DatasetWriter(
        out,
        domain.card(),
        dtype=dtype,
        frames=frames,
        height=height,
        width=width,
        channels=channels,
        classes=class_map.classes,
        multi_label=class_map.multi_label,
        gaps=time_gaps,
        patch=patch if domain.scheme == "more-frame" else 0,
        at_rest=domain.at_rest_key() if at_rest else None,
    )
    bar = tqdm(named, desc="encrypting", unit="sequence", disable=None if progress else True)
    try:
        with writer, bar:
            images = prepared([s for _, s in named], frames, height, width, dtype, channels)
            rows = np.empty((frames, height, width, channels, domain.n), dtype)
            for (name, s), values in zip(bar, images, strict=True):
                record = SequenceRecord(name, domain.pseudonym("patient", s.patient), len(s.frames), splits[s.patient])
                label = _label(name, targets.get(name), len(class_map.classes), cipher)
                encrypted = cipher.frames(name, values, rows[: len(values)])
                writer.add(record, encrypted, label, _gaps(s, name, frames, time_gaps, cipher))
    except OSError as error:
        raise DatasetError(f"cannot write the dataset {out}: {error.strerror or type(error).__name__}") from None
    return _summary(out, domain, (frames, height, width, channels), sequences, splits, class_map)


def _summary(
    out: Path,
    domain: KeyDomain,
    shape: tuple[int, int, int, int],
    sequences: Sequence[ImageSequence],
    splits: dict[str, str],
    class_map: ClassMap,
) -> IngestSummary:
    labelled = [(class_map.target(s.label), splits[s.patient]) for s in sequences if class_map.classes]
    used = Counter((number, split) for target, split in labelled for number in _present(target))
    classes = dict(enumerate(class_map.classes))
    absent = {
        split: [name for number, name in classes.items() if not used[number, split]] for split in SPLITS if classes
    }
    by_finding = zip(*(target for target, _ in labelled if isinstance(target, tuple)), strict=True)
    return IngestSummary(
        str(out),
        domain.card().fingerprint,
        shape,
        {split: sum(splits[s.patient] == split for s in sequences) for split in SPLITS},
        {split: sum(assigned == split for assigned in splits.values()) for split in SPLITS},
        {name: sum(used[number, split] for split in SPLITS) for number, name in classes.items()},
        {split: names for split, names in absent.items() if names},
        {
            name: {"present": states.count(1), "absent": states.count(0), "unknown": states.count(UNKNOWN)}
            for name, states in zip(class_map.classes, by_finding, strict=False)
        },
    )


def _present(target: Target) -> list[int]:
    """Return the class's number, or those of the findings that are present."""
    return [target] if isinstance(target, int) else [number for number, state in enumerate(target) if state == 1]


def _cipher(domain: KeyDomain, dtype: Dtype, patch: int, height: int, width: int, time_gaps: Gaps) -> Cipher:
    """Return the domain's cipher; raise `ConfigError` for what it cannot encrypt."""
    if domain.scheme == "more":
        return SequenceCipher(domain, dtype)
    if time_gaps == "encrypted":
        raise ConfigError("the frame form does not encrypt time gaps: ingest with --gaps public, or none")
    cipher = FrameCipher(domain, dtype, "patches" if patch else "rows", patch)
    cipher.check(height, width)
    return cipher


def _splits(sequences: Sequence[ImageSequence], plan: SplitPlan, domain: KeyDomain) -> dict[str, str]:
    """Return each patient's split: the data's own, of all patients or of none, or the plan's."""
    given = {s.patient: s.split for s in sequences if s.split is not None}
    if not given:
        return plan.assign(sequences, lambda text: domain.pseudonym("split", text))
    if any(given.get(s.patient) != s.split for s in sequences):
        raise RawDataError("the data put a patient into no split or into two: give each sequence its patient's split")
    if plan.folds is not None:
        raise RawDataError("the data bring their own splits, so no folds are cut: remove the column split")
    return given


def _label(name: str, target: Target | None, classes: int, cipher: Cipher) -> NDArray[np.floating] | None:
    if target is None:
        return None
    return cipher.label(name, target, classes) if isinstance(target, int) else cipher.findings(name, target)


def _gaps(
    sequence: ImageSequence, name: str, frames: int, time_gaps: Gaps, cipher: Cipher
) -> NDArray[np.floating] | None:
    if time_gaps == "none":
        return None
    values = gaps(sequence, frames)
    return cipher.gaps(name, values) if time_gaps == "encrypted" else values


def prepared(
    sequences: Sequence[ImageSequence], frames: int, height: int, width: int, dtype: Dtype, channels: int = 1
) -> Iterator[NDArray[np.floating]]:
    """Read and prepare sequences in their order, on all cores if it takes long, a bounded number ahead.

    They are rounded to the dtype. The workers get images and no keys; the caller encrypts.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    spent = 0.0
    for number, sequence in enumerate(sequences):
        if cores > 1 and number == SAMPLE and spent / SAMPLE * (len(sequences) - SAMPLE) >= POOL_PAYS:
            yield from _on_all_cores(sequences[number:], cores, frames, height, width, dtype, channels)
            return
        started = time.perf_counter()
        values = _prepared(sequence, frames, height, width, dtype, channels)
        spent += time.perf_counter() - started
        yield values


def _on_all_cores(
    sequences: Sequence[ImageSequence], cores: int, frames: int, height: int, width: int, dtype: Dtype, channels: int
) -> Iterator[NDArray[np.floating]]:
    pool = ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=_end_with_parent)
    waiting: deque[Future[list[NDArray[np.floating]]]] = deque()
    try:
        for first in range(0, len(sequences), TOGETHER):
            part = sequences[first : first + TOGETHER]
            waiting.append(pool.submit(_prepare_part, part, frames, height, width, dtype, channels))
            if len(waiting) >= AHEAD * cores:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise RawDataError("a process that read the images ended by itself: is there enough memory?") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_part(
    sequences: Sequence[ImageSequence], frames: int, height: int, width: int, dtype: Dtype, channels: int
) -> list[NDArray[np.floating]]:
    return [_prepared(sequence, frames, height, width, dtype, channels) for sequence in sequences]


def _prepared(
    sequence: ImageSequence, frames: int, height: int, width: int, dtype: Dtype, channels: int
) -> NDArray[np.floating]:
    try:
        return prepare(sequence, frames, height, width, channels).astype(dtype, copy=False)
    except RawDataError as error:
        raise strict(error) from None


def _end_with_parent() -> None:
    """End this worker when its parent is gone, even killed: it would wait for work for ever."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()


def sequence_pseudonym(domain: KeyDomain, sequence: ImageSequence) -> str:
    """Return the pseudonym of a sequence, from patient and id in a form that no other pair has."""
    return domain.pseudonym("sequence", json.dumps([sequence.patient, sequence.id]))
