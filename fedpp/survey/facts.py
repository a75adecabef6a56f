"""Facts of a survey: what was measured on raw files and sequences, and the survey's result as one value.

Files are named; patients are counted and never named.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

from fedpp.imaging.account import Account, Outcome
from fedpp.imaging.labels import MAX_CLASSES, label_names
from fedpp.imaging.sequence import ImageSequence
from fedpp.texts import printable

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
class Issue:
    """A possible defect of the data: how often it occurs, what it is, what to do, and some files that have it.

    Files are named only where the tables of files and duplicates do not show the issue.
    """

    kind: str  # a key of `fedpp.survey.issues.TEXTS`
    count: int
    what: str
    advice: str
    where: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileFact:
    """Outcome of reading one file; `path` is relative to the raw folder, `reason` says why it was not read."""

    path: str
    outcome: Outcome
    reason: str = ""
    frames: int = 0
    height: int = 0  # of the first frame, in pixels
    width: int = 0
    blank: int = 0  # frames of one single value
    dicom: bool = False
    suspicion: str = ""  # why its tags make text in the image likely


@dataclass(frozen=True, slots=True)
class LabelFact:
    """Frequency of a label, or of one of several findings; `visits` counts frames with a label of their own."""

    label: str
    sequences: int
    patients: int
    visits: int

    @classmethod
    def of_all(cls, sequences: Sequence[ImageSequence], findings: tuple[str, ...]) -> tuple[Self, ...]:
        """Return the labels by name; `findings` names the findings of multi-label data."""
        held = [(label, s.patient) for s in sequences for label in label_names(s.label, findings)]
        counts, patients = (Counter(label for label, _ in pairs) for pairs in (held, set(held)))
        visits = Counter(text for s in sequences for label in s.labels or () for text in label_names(label, findings))
        return tuple(
            cls(printable(label), counts[label], patients[label], visits[label])
            for label in sorted(counts.keys() | visits.keys())
        )


@dataclass(frozen=True, slots=True)
class GapFact:
    """Days between consecutive images of a sequence; pages of one file are one image here."""

    count: int
    backward: int  # below 0
    quartiles: tuple[float, float, float, float, float]  # smallest, three quartiles, greatest
    classes: Mapping[str, int]  # by the names in GAPS

    @classmethod
    def of(cls, days: Sequence[float]) -> Self:
        """Return the statistics of at least one gap."""
        values = np.array(days)
        ends = [end for end, _ in GAPS]
        counts = np.bincount(np.searchsorted(ends, values, side="left"), minlength=len(ends)).tolist()
        low, first, middle, third, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
        classes = {name: count for (_, name), count in zip(GAPS, counts, strict=True)}
        return cls(len(values), int((values < 0).sum()), (low, first, middle, third, high), classes)


@dataclass(frozen=True, slots=True)
class DuplicateFact:
    """Two files that share images: how many, and the highest correlation among them."""

    first: str
    second: str
    images: int
    same: bool  # pixel by pixel
    correlation: float
    one_patient: bool
    one_split: bool


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """First, middle and last frame of a sequence as PNG."""

    label: str | None
    path: str  # of the sequence's first file
    frames: int
    images: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True)
class Facts:
    """Measurements of an examination, from which issues and notes follow."""

    sequences: Sequence[ImageSequence] = ()  # without what could not be read
    first_files: Sequence[str] = ()  # of each sequence
    labels: tuple[LabelFact, ...] = ()
    files: tuple[FileFact, ...] = ()
    duplicates: tuple[DuplicateFact, ...] = ()
    gaps: GapFact | None = None  # None without times
    sizes: Mapping[str, int] = field(default_factory=dict)  # "width x height" -> frames, the most frequent first
    patients_in_two_splits: int = 0  # by the data's own table
    patients_without_images: int = 0  # named in the table of labels
    more_near_duplicates: bool = False  # too many were proposed: some may be missing
    layout: str = "auto"
    doubts: Mapping[str, int] = field(default_factory=dict)  # of the account, by kind of issue
    unnamed: int = 0  # images that no table names


@dataclass(frozen=True)
class Survey:
    """Result of a survey; frames are those of the files that could be read."""

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
    gaps: GapFact | None  # None without times
    duplicates: tuple[DuplicateFact, ...]
    files: tuple[FileFact, ...]
    issues: tuple[Issue, ...]
    notes: tuple[str, ...]
    thumbnails: tuple[Thumbnails, ...] = field(repr=False)
    account: Account = field(repr=False, compare=False)

    def count(self, outcome: Outcome) -> int:
        """Return the number of files of an outcome."""
        return sum(file.outcome == outcome for file in self.files)

    def to_mapping(self) -> dict[str, Any]:
        """Return counts and statistics as JSON values; no file and no patient is named.

        Labels are left out where there are so many that they may name patients.
        """
        plain = ("recognised", "patients", "sequences", "frames", "unlabelled", "unlabelled_visits", "sizes", "lengths")
        values = {
            **{name: getattr(self, name) for name in plain},
            "labels": [asdict(label) for label in self.labels] if len(self.labels) <= MAX_CLASSES else [],
            "gaps": self.gaps and asdict(self.gaps),
            "duplicates": [_without(pair, "first", "second") for pair in self.duplicates],
            "issues": [_without(issue, "where") for issue in self.issues],
            "notes": self.notes,
            "account": self.account.counts(),
        }
        mapping: dict[str, Any] = json.loads(json.dumps(values))
        return mapping


def _without(fact: Issue | DuplicateFact, *names: str) -> dict[str, Any]:
    return {name: value for name, value in asdict(fact).items() if name not in names}


def lengths(sequences: Iterable[ImageSequence]) -> dict[int, int]:
    """Return how many sequences are of each length."""
    return dict(sorted(Counter(len(sequence.frames) for sequence in sequences).items()))
