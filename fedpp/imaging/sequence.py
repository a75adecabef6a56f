"""What every reader gives: one patient's images in the order of time, still in clear."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from pathlib import Path
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from fedpp.errors import NoImageError, RawDataError

Frame = NDArray[np.float64]  # [height, width], grey; of a colour image [height, width, 3] where colour is asked for
States = tuple[str | None, ...]  # of several findings: "1" present, "0" absent, None unknown, and not None of each
Label = str | States


class Reader(Protocol):
    """Reads a file that has so many frames, grey ones or, of a colour image, coloured ones; a picklable function."""

    def __call__(self, file: Path, count: int, /, *, colour: bool) -> Sequence[Frame]: ...  # noqa: D102


# What a reader does about a file that it cannot use, which is left out if this returns: no header or a damaged one,
# none where a table names one, no patient, too many pixels. A `NoImageError` is the file's that is no picture at all.
Refuse = Callable[[Path, RawDataError], None]


def refuse(_: Path, error: RawDataError) -> None:
    """Raise the error: the first file that cannot be used ends the reading; one that is no picture does not."""
    if not isinstance(error, NoImageError):
        raise strict(error)


def strict(error: RawDataError) -> RawDataError:
    """Return the error of a file that ends all of the work, with how to go on without that file."""
    return RawDataError(f"{error}; `fedpp-site ingest --skip-unreadable` leaves such files out")


@dataclass(frozen=True, slots=True)
class ImageSequence:
    """One sequence; frames may differ in size. Neither identifiers nor pixels are shown in its repr.

    `labels` and `times` (days since some day), where they are known, go with the frames one by one; `split` is
    the patient's, where the data assign one. Where several findings are asked about, a label is their states.
    """

    id: str = field(repr=False)
    patient: str = field(repr=False)
    label: Label | None
    frames: Sequence[Frame] = field(repr=False)
    labels: tuple[Label | None, ...] | None = None
    times: tuple[float, ...] | None = field(default=None, repr=False)
    split: str | None = None


def last_known(labels: Iterable[Label | None]) -> Label | None:
    """Return the last label that is known; of several findings each one's last known state, whenever that was."""
    known = [label for label in labels if label is not None]
    states = [label for label in known if not isinstance(label, str)]
    if not states:
        return known[-1] if known else None
    by_finding = zip(*reversed(states), strict=True)
    return tuple(next((state for state in finding if state is not None), None) for finding in by_finding)


class DecodedLater(Sequence[Frame]):
    """The frames of one opened file, each decoded when it is asked for, and not kept."""

    def __init__(self, count: int, decode: Callable[[int], Frame]) -> None:
        """Take the number of frames, and what returns the frame of an index."""
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
    """One file of `count` frames, and the function that reads it, which another process can call too."""

    path: Path
    count: int
    reader: Reader

    def read(self, *, colour: bool = False) -> Sequence[Frame]:
        """Return the frames; raise `RawDataError` if the file cannot be read, or holds another number."""
        return self.reader(self.path, self.count, colour=colour)


class FrameFiles(Sequence[Frame]):
    """Frames that are read from their files when they are asked for, and not kept."""

    __slots__ = ("_chosen", "_ends", "_files")

    def __init__(self, files: Sequence[FrameFile], chosen: Sequence[int] | None = None) -> None:
        """Take files, and which of all their frames are meant (ascending), or all of them."""
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
        """Return the frames of these indices, ascending; each file is read once."""
        return list(self._read([self._chosen[index] for index in indices], colour=colour))

    def _read(self, chosen: Sequence[int], *, colour: bool) -> Iterator[Frame]:
        for number, indices in groupby(chosen, key=lambda index: bisect_right(self._ends, index)):
            read = self._files[number].read(colour=colour)
            yield from (read[index - self._start(number)] for index in indices)

    def _start(self, number: int) -> int:
        return self._ends[number] - self._files[number].count
