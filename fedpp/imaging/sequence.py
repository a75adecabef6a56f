"""What every reader gives: one patient's images in the order of time, still in clear."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, groupby
from typing import overload

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.float64]  # [height, width], grey
Reader = Callable[[], Sequence[Frame]]  # reads one file; picklable, so that another process can call it


@dataclass(frozen=True)
class ImageSequence:
    """One sequence; frames may differ in size. Neither identifiers nor pixels are shown in its repr.

    `labels` and `times` (days since some day), where they are known, go with the frames one by one; `split` is
    the patient's, where the data assign one.
    """

    id: str = field(repr=False)
    patient: str = field(repr=False)
    label: str | None
    frames: Sequence[Frame] = field(repr=False)
    labels: tuple[str | None, ...] | None = None
    times: tuple[float, ...] | None = field(default=None, repr=False)
    split: str | None = None


class FrameFiles(Sequence[Frame]):
    """Frames that are read from their files when they are asked for, and not kept."""

    def __init__(self, files: Sequence[tuple[Reader, int]]) -> None:
        """Take each file's reader and its number of frames."""
        self._files = list(files)
        self._ends = list(accumulate(count for _, count in files))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Frame]:
        for reader, _ in self._files:
            yield from reader()

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> "FrameFiles": ...
    def __getitem__(self, index: int | slice) -> "Frame | FrameFiles":
        if isinstance(index, slice):
            return FrameFiles([(partial(self.take, [i]), 1) for i in range(*index.indices(len(self)))])
        return self.take([range(len(self))[index]])[0]

    def take(self, indices: Sequence[int]) -> list[Frame]:
        """Return the frames of these indices, ascending; each file is read once."""
        frames: list[Frame] = []
        for file, wanted in groupby(indices, key=lambda index: bisect_right(self._ends, index)):
            reader, count = self._files[file]
            read = reader()
            frames += [read[index - self._ends[file] + count] for index in wanted]
        return frames
