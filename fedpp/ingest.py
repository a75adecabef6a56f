"""From raw sequences to an encrypted dataset: split by patient, prepare, encrypt, write.

Keys are not imported here: the pseudonym and the encryption functions are handed in.
"""

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
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

from fedpp.cipher.dataset import DatasetWriter, SequenceRecord
from fedpp.cipher.params import DomainCard
from fedpp.config import SPLITS, Dtype
from fedpp.errors import DatasetError, RawDataError
from fedpp.imaging.labels import ClassMap
from fedpp.imaging.preparation import prepare
from fedpp.imaging.sequence import ImageSequence
from fedpp.imaging.splits import split_patients

PARALLEL_FROM = 200  # sequences: below, starting processes takes longer than they save
AHEAD = 8  # sequences a core that are read before they are written

Pseudonym = Callable[[str, str], str]
Rows = NDArray[np.floating]


@dataclass(frozen=True)
class IngestSummary:
    """What was written: counts and shapes only."""

    dataset: str
    domain: str  # fingerprint of the domain's card
    shape: tuple[int, int, int, int]  # frames, height, width, channels
    sequences: dict[str, int]  # of each split
    patients: dict[str, int]  # of each split
    classes: dict[str, int]  # sequences of each class, empty for unlabelled data

    def to_mapping(self) -> dict[str, Any]:
        """Return the summary as values that JSON takes."""
        return {**asdict(self), "shape": list(self.shape)}


def ingest(
    sequences: Sequence[ImageSequence],
    out: Path,
    *,
    card: DomainCard,
    pseudonym: Pseudonym,
    encrypt_frames: Callable[[NDArray[np.float64]], Rows],
    encrypt_labels: Callable[[NDArray[np.int64], int], Rows],
    class_map: ClassMap,
    frames: int,
    height: int,
    width: int,
    seed: int,
    validation: float,
    test: float,
    dtype: Dtype,
    progress: bool,
) -> IngestSummary:
    """Write the encrypted dataset `out`, sequences in the order of their pseudonyms; all of it, or nothing.

    `encrypt_frames` takes `[frames, height, width, 1]` to rows `[frames, height, width, 1, n]`,
    `encrypt_labels` class numbers `[k]` and a number of classes to one-hot rows `[k, classes, n]`. The bar is
    shown on a terminal only. Raises `DatasetError` if `out` exists, `RawDataError` where nothing is to write.
    """
    if not sequences:
        raise RawDataError("there is no sequence to ingest: choose a folder with images")
    splits = {s.patient: s.split for s in sequences if s.split is not None}  # of the data's own
    if not splits:
        splits = split_patients(sequences, seed, validation, test, digest=lambda text: pseudonym("split", text))
    named = sorted(((sequence_pseudonym(pseudonym, s), s) for s in sequences), key=lambda pair: pair[0])
    if len({name for name, _ in named}) < len(named):
        raise RawDataError("two sequences of one patient have the same id: give each its own")
    numbers = [class_map.number(s.label) for _, s in named] if class_map.classes else None
    writer = DatasetWriter(
        out,
        card,
        dtype=dtype,
        frames=frames,
        height=height,
        width=width,
        channels=1,
        classes=class_map.classes,
    )
    bar = tqdm(named, desc="encrypting", unit="sequence", disable=None if progress else True)
    try:
        with writer, bar:
            images = prepared([s for _, s in named], frames, height, width)
            for position, ((name, s), values) in enumerate(zip(bar, images, strict=True)):
                record = SequenceRecord(name, pseudonym("patient", s.patient), len(s.frames), splits[s.patient])
                label = None
                if numbers is not None:
                    label = encrypt_labels(np.array([numbers[position]]), len(class_map.classes))[0]
                writer.add(record, encrypt_frames(values), label)
    except OSError as error:
        raise DatasetError(f"cannot write the dataset {out}: {error.strerror or type(error).__name__}") from None
    used = Counter(numbers or ())
    return IngestSummary(
        str(out),
        card.fingerprint,
        (frames, height, width, 1),
        {split: sum(splits[s.patient] == split for s in sequences) for split in SPLITS},
        {split: sum(assigned == split for assigned in splits.values()) for split in SPLITS},
        {name: used[number] for number, name in enumerate(class_map.classes)},
    )


def prepared(sequences: Sequence[ImageSequence], frames: int, height: int, width: int) -> Iterator[NDArray[np.float64]]:
    """Read and prepare sequences in their order, on all cores if there are many, a bounded number ahead.

    The workers get images and no keys; the caller encrypts.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1 or len(sequences) < PARALLEL_FROM:
        yield from (prepare(sequence, frames, height, width) for sequence in sequences)
        return
    pool = ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=_end_with_parent)
    waiting: deque[Future[NDArray[np.float64]]] = deque()
    try:
        for sequence in sequences:
            waiting.append(pool.submit(prepare, sequence, frames, height, width))
            if len(waiting) >= AHEAD * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise RawDataError("a process that read the images ended by itself: is there enough memory?") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this worker when its parent is gone, even killed: it would wait for work for ever."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()


def sequence_pseudonym(pseudonym: Pseudonym, sequence: ImageSequence) -> str:
    """Return the pseudonym of a sequence, from patient and id in a form that no other pair has."""
    return pseudonym("sequence", json.dumps([sequence.patient, sequence.id]))
