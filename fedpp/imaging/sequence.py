"""Image sequences: one patient's images in the order of time, in plaintext, as every reader returns them."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from pathlib import Path
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from fedpp.errors import NoImageError, UnusableFileError
from fedpp.imaging.reasons import Doubt

Frame = NDArray[np.float64]  # [height, width], grey; [height, width, 3] of a colour image if colour is wanted
States = tuple[str | None, ...]  # of several findings: "1" present, "0" absent, None unknown; not all None
Label = str | States


class Reader(Protocol):
    """Picklable function that reads a file of `count` frames, grey or, of a colour image, in colour."""

    def __call__(self, file: Path, count: int, /, *, colour: bool) -> Sequence[Frame]: ...  # noqa: D102


# Handler of a file that cannot be used, which is skipped if the handler returns: a missing or damaged header, a missing
# file, no patient, too many pixels. `NoImageError` is for a file without a picture.
Refuse = Callable[[Path, UnusableFileError], None]


def refuse(path: Path, error: UnusableFileError) -> None:
    """Raise the error, so that the first unusable file ends the reading; ignore a file without a picture."""
    if not isinstance(error, NoImageError):
        error.path = path
        raise error


def naming(patient_of: Callable[[Path], str], refuse: Refuse) -> Refuse:
    """Return a handler that hands each error on to `refuse` with the patient of its path."""

    def named(path: Path, error: UnusableFileError) -> None:
        error.patient = error.patient or patient_of(path)
        refuse(path, error)

    return named


@dataclass(frozen=True, slots=True)
class ImageSequence:
    """One patient's sequence; frames may differ in size. Its repr shows neither identifiers nor pixels.

    `labels` and `times` (days since a fixed day), where known, have one entry for each frame; `split` is the
    patient's, where the data assign one. A label of multi-label data is the states of the findings. `doubts` are what
    its reader is not sure of.
    """

    id: str = field(repr=False)
    patient: str = field(repr=False)
    label: Label | None
    frames: Sequence[Frame] = field(repr=False)
    labels: tuple[Label | None, ...] | None = None
    times: tuple[float, ...] | None = field(default=None, repr=False)
    split: str | None = None
    doubts: tuple[Doubt, ...] = ()


def last_known(labels: Iterable[Label | None]) -> Label | None:
    """Return the last label that is known; with several findings, the last known state of each."""
    known = [label for label in labels if label is not None]
    states = [label for label in known if not isinstance(label, str)]
    if not states:
        return known[-1] if known else None
    by_finding = zip(*reversed(states), strict=True)
    return tuple(next((state for state in finding if state is not None), None) for finding in by_finding)


class DecodedLater(Sequence[Frame]):
    """Frames of one opened file, each decoded on access and not kept."""

    def __init__(self, count: int, decode: Callable[[int], Frame]) -> None:
        """Take the number of frames, and the function that returns the frame of an index."""
        self._count, self._decode = count, decode

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> list[Frame]: ...
    def __getitem__(self, index: int | slice) -> Frame | list[Frame]:
        if isinstance(index, slice):
            return [self[i] for i in range(self._count)[index]]
        return self._decode(range(self._count)[index])


@dataclass(frozen=True, slots=True)
class FrameFile:
    """One file of `count` frames with the function that reads it; it can be sent to another process."""

    path: Path
    count: int
    reader: Reader

    def read(self, *, colour: bool = False) -> Sequence[Frame]:
        """Return the frames; raise `UnusableFileError` if the file cannot be read, or has another number of frames."""
        return self.reader(self.path, self.count, colour=colour)


class FrameFiles(Sequence[Frame]):
    """Frames of several files, read on access and not kept."""

    __slots__ = ("_chosen", "_ends", "_files")

    def __init__(self, files: Sequence[FrameFile], chosen: Sequence[int] | None = None) -> None:
        """Take files, and the indices of the chosen frames (ascending), or all of them."""
        self._files = tuple(files)
        self._ends = list(accumulate(file.count for file in files))
        self._chosen = range(self._ends[-1] if files else 0) if chosen is None else chosen

    @property
    def files(self) -> tuple[FrameFile, ...]:
        """Return the files that hold the frames."""
        if len(self._chosen) == (self._ends[-1] if self._files else 0):
            return self._files
        return tuple(self._files[i] for i in sorted({bisect_right(self._ends, index) for index in self._chosen}))

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[Frame]:
        return self._read(self._chosen, colour=False)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> "FrameFiles": ...
    def __getitem__(self, index: int | slice) -> "Frame | FrameFiles":
        if isinstance(index, slice):
            return FrameFiles(self._files, self._chosen[index])
        return self.take([range(len(self))[index]])[0]

    def take(self, indices: Sequence[int], *, colour: bool = False) -> list[Frame]:
        """Return the frames of ascending indices; each file is read once."""
        return list(self._read([self._chosen[index] for index in indices], colour=colour))

    def _read(self, chosen: Sequence[int], *, colour: bool) -> Iterator[Frame]:
        for number, indices in groupby(chosen, key=lambda index: bisect_right(self._ends, index)):
            try:
                read = self._files[number].read(colour=colour)
                yield from (read[index - self._start(number)] for index in indices)
            except UnusableFileError as error:
                error.path = self._files[number].path
                raise

    def _start(self, number: int) -> int:
        return self._ends[number] - self._files[number].count
