"""Same pictures: images that are equal pixel by pixel, found by a digest of each while it is decoded anyway."""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

import numpy as np

from fedpp.imaging.sequence import Frame, FrameFiles


def digest(frame: Frame) -> int:
    """Return 64 bits of a hash of a frame's size and pixels."""
    state = blake2b(str(frame.shape).encode(), digest_size=8)
    state.update(np.ascontiguousarray(frame, dtype=np.float64).data)
    return int.from_bytes(state.digest())


class DigestedFrames(FrameFiles):
    """Frames of files that add a digest of each frame that is read to `digests`, unless it is of one single value."""

    __slots__ = ("digests",)

    def __init__(self, frames: FrameFiles) -> None:
        """Take the frames, of which nothing is read yet."""
        super().__init__(frames._files, frames._chosen)  # noqa: SLF001  of the same class
        self.digests: list[int] = []

    def _read(self, chosen: Sequence[int], *, colour: bool) -> Iterator[Frame]:
        for frame in super()._read(chosen, colour=colour):
            if frame.min() < frame.max():
                self.digests.append(digest(frame))
            yield frame


class SamePictures:
    """Owners of pictures by their digests, some 100 bytes each: patients, each with a split."""

    def __init__(self) -> None:
        """Start without pictures."""
        self._owners: dict[int, tuple[str, str]] = {}  # the first of each
        self._of_several: set[int] = set()
        self._in_two_splits: set[int] = set()

    def add(self, digests: Iterable[int], patient: str, split: str) -> None:
        """Add the pictures of one sequence."""
        for number in digests:
            first, first_split = self._owners.setdefault(number, (patient, split))
            if first != patient:
                self._of_several.add(number)
            if first_split != split:
                self._in_two_splits.add(number)

    def issues(self) -> dict[str, int]:
        """Return the number of pictures of several patients in one split, and in several splits, if there are any."""
        leaking = len(self._in_two_splits)
        counts = {"same-image-in-two-splits": leaking, "same-image": len(self._of_several - self._in_two_splits)}
        return {kind: count for kind, count in counts.items() if count}
