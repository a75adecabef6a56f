"""What a survey tells of raw data, as values; and those that follow from the sequences alone.

Files are named; patients are counted and never named.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import numpy as np

from fedpp.imaging.labels import said
from fedpp.imaging.sequence import ImageSequence

Outcome = Literal["read", "refused", "passed over"]
UNLISTED = "an image in no sequence"  # why a file was passed over
Kind = Literal[
    "unreadable",
    "two-splits",
    "no-image",
    "same-image-in-two-splits",
    "same-image",
    "near-duplicate",
    "burned-in-text",
    "blank-image",
    "missing-label",
    "too-many-labels",
    "rare-label",
    "two-labels",
    "backward-time",
]

# Days from one visit to the next: the end of each class, and its name.
GAPS: tuple[tuple[float, str], ...] = (
    (0.0, "none"),
    (1.0, "to a day"),
    (7.0, "to a week"),
    (31.0, "to a month"),
    (92.0, "to 3 months"),
    (366.0, "to a year"),
    (731.0, "to 2 years"),
    (float("inf"), "longer"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that may be wrong: how often, what, what to do about it, and some files where it is seen.

    Only for what the tables of files and duplicates do not show does it name files.
    """

    kind: Kind
    count: int
    what: str
    advice: str
    where: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileFact:
    """What became of one file; `path` is relative to the raw folder, `reason` why it was refused or passed over."""

    path: str
    outcome: Outcome
    reason: str = ""
    frames: int = 0
    height: int = 0  # of the first frame, in pixels
    width: int = 0
    blank: int = 0  # frames of one value
    dicom: bool = False
    suspicion: str = ""  # why text is to be suspected in the image, by its tags


@dataclass(frozen=True, slots=True)
class LabelFact:
    """How often a label, or one of several findings, occurs; `visits` counts frames with a label of their own."""

    label: str
    sequences: int
    patients: int
    visits: int

    @classmethod
    def of_all(cls, sequences: Sequence[ImageSequence], findings: tuple[str, ...]) -> tuple[Self, ...]:
        """Return the labels by name; `findings` are the names of those whose states a label is, if it is that."""
        held = [(label, s.patient) for s in sequences for label in said(s.label, findings)]
        counts, patients = (Counter(label for label, _ in pairs) for pairs in (held, set(held)))
        visits = Counter(text for s in sequences for label in s.labels or () for text in said(label, findings))
        return tuple(
            cls(printable(label), counts[label], patients[label], visits[label])
            for label in sorted(counts.keys() | visits.keys())
        )


@dataclass(frozen=True, slots=True)
class GapFact:
    """Days between the images of a sequence; pages of one file are one image here."""

    count: int
    backward: int  # below 0
    quartiles: tuple[float, float, float, float, float]  # smallest, three quartiles, greatest
    classes: Mapping[str, int]  # by the names in GAPS

    @classmethod
    def of(cls, days: Sequence[float]) -> Self:
        """Return the fact of these gaps; there must be one at least."""
        values = np.array(days)
        ends = [end for end, _ in GAPS]
        counts = np.bincount(np.searchsorted(ends, values, side="left"), minlength=len(ends)).tolist()
        low, first, middle, third, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
        classes = {name: count for (_, name), count in zip(GAPS, counts, strict=True)}
        return cls(len(values), int((values < 0).sum()), (low, first, middle, third, high), classes)


@dataclass(frozen=True, slots=True)
class DuplicateFact:
    """Two files that share images: how many, and the correlation of the most alike of them."""

    first: str
    second: str
    images: int
    same: bool  # pixel by pixel
    correlation: float
    one_patient: bool
    one_split: bool


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """First, middle and last frame of a sequence, as PNG."""

    label: str | None
    path: str  # of the sequence's first file
    frames: int
    images: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True)
class Survey:
    """All that was seen; frames are those of the files that could be read."""

    raw: str
    recognised: str
    patients: int
    sequences: int
    frames: int
    labels: tuple[LabelFact, ...]
    unlabelled: int  # sequences
    unlabelled_visits: int | None  # None where visits have no labels of their own
    sizes: Mapping[str, int]  # "width x height" -> frames, the most frequent first
    lengths: Mapping[int, int]  # frames of a sequence -> sequences, ascending
    gaps: GapFact | None  # None where no times are known
    duplicates: tuple[DuplicateFact, ...]
    files: tuple[FileFact, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    thumbnails: tuple[Thumbnails, ...] = field(repr=False)

    def count(self, outcome: Outcome) -> int:
        """Return the number of files that were read, refused or passed over."""
        return sum(file.outcome == outcome for file in self.files)

    def to_mapping(self) -> dict[str, Any]:
        """Return all but the thumbnails as values that JSON takes."""
        values = asdict(self)
        del values["thumbnails"]
        plain: dict[str, Any] = _plain(values)
        return plain


def lengths(sequences: Iterable[ImageSequence]) -> dict[int, int]:
    """Return how many sequences are of each length."""
    return dict(sorted(Counter(len(sequence.frames) for sequence in sequences).items()))


def printable(text: str) -> str:
    """Return a text of others on one line, without what a terminal would obey; bad bytes become escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
