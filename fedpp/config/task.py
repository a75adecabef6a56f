"""Task: the shape and the labels of a dataset's sequences, which all sites of a federation share and a model must fit.

A dataset's manifest, a site's description, a vault's facts and a model specification each embed one.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from fedpp.values import Declared, Listed, text, whole

Gaps = Literal["none", "public", "encrypted"]  # whether a dataset keeps the time between frames, and how

GAPS: tuple[Gaps, ...] = get_args(Gaps)
MAX_SIZE = 2**31  # no image has more rows
MAX_CLASSES = 1000
LONGEST_CLASS = 200  # characters of a class's name
# What to do about a dataset without labels, of which nobody knows any more in which layout its raw data were.
LABELS_NEEDED = (
    "ingest it with labels: the column label of index.csv or manifest.csv, labels.csv beside folders of patients or "
    "DICOM files, another --target of X-rays"
)


@dataclass(frozen=True)
class Task(Declared, label="task"):
    """Sequences `[frames, height, width, channels]`, and the labels to be predicted."""

    frames: Annotated[int, whole(1, MAX_SIZE)]
    height: Annotated[int, whole(1, MAX_SIZE)]
    width: Annotated[int, whole(1, MAX_SIZE)]
    channels: Annotated[int, whole(1, MAX_SIZE)]
    # None for data without labels; the findings of multi-label data.
    classes: Annotated[tuple[Annotated[str, text(LONGEST_CLASS)], ...], Listed(0, MAX_CLASSES, distinct=True)]
    gaps: bool = False  # whether the time between frames is an input; public or encrypted, the network is the same
    multi_label: bool = False  # each class is a finding of its own, present or absent, and any number may be present
    patch: Annotated[int, whole(0, MAX_SIZE)] = 0  # side of the patches that frame mixing mixes; 0: pixels or rows

    def __str__(self) -> str:
        patches = f" in patches of {self.patch} x {self.patch}" if self.patch else ""
        times = "with" if self.gaps else "without"
        shape = f"{self.frames} frames of {self.height} x {self.width} x {self.channels}{patches}, {times} time gaps"
        names = f" ({', '.join(self.classes)})" if self.classes else ""
        return f"{shape}, {len(self.classes)} {'findings' if self.multi_label else 'classes'}{names}"
