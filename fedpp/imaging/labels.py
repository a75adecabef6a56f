"""From the hospital's labels to the numbers of a network's classes; class 0 is the negative one."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from fedpp.errors import ConfigError, RawDataError

from .sequence import ImageSequence

MOST_CLASSES = 32  # class names are public: a column of patients taken for labels must not get that far


@dataclass(frozen=True)
class ClassMap:
    """Names of the classes by number, () for unlabelled data; `negative` stands against all other labels."""

    classes: tuple[str, ...]
    negative: str | None = None

    @classmethod
    def choose(cls, sequences: Iterable[ImageSequence], classes: tuple[str, ...] | None, negative: str | None) -> Self:
        """Return the map that fits the sequences' labels.

        `classes` lists the labels in order; `negative` names one against all the rest; with neither, the
        labels are sorted. Raises `RawDataError` where labels and classes do not fit, `ConfigError` for bad
        choices.
        """
        given = [sequence.label for sequence in sequences]
        labels = sorted({label for label in given if label is not None})
        if classes is not None and negative is not None:
            raise ConfigError("classes and negative were both given: choose one of them")
        if classes is not None and (len(set(classes)) < max(2, len(classes)) or "" in classes):
            raise ConfigError(f"classes must be at least two different labels, got {', '.join(classes)!r}")
        unlabelled = given.count(None)
        if labels and unlabelled:
            raise RawDataError(
                f"{unlabelled} of {len(given)} sequences have no label: label all of them, or --drop-unlabelled"
            )
        if not labels:
            if classes is not None or negative is not None:
                raise RawDataError("classes were chosen, but no sequence has a label: add labels")
            return cls(())
        if negative is not None:
            if negative not in labels:
                raise RawDataError(f"no sequence has the negative label {negative!r}: labels are {_named(labels)}")
            return cls((negative, f"not {negative}"), negative)
        if classes is None:
            return cls(_inferred(labels))
        unknown = sorted(set(labels) - set(classes))
        if unknown:
            raise RawDataError(f"labels {_named(unknown)} are none of the classes {', '.join(classes)}")
        return cls(classes)

    def number(self, label: str | None) -> int:
        """Return a label's class; raise `RawDataError` for a label that is not in the map."""
        if label is not None and self.negative is not None:
            return int(label != self.negative)
        if label is None or label not in self.classes:
            raise RawDataError(f"label {label!r} is none of the classes {', '.join(self.classes)}")
        return self.classes.index(label)


def _inferred(labels: list[str]) -> tuple[str, ...]:
    if len(labels) < 2:
        raise RawDataError(f"all sequences have the label {labels[0]!r}: name the classes, negative first")
    if len(labels) > MOST_CLASSES:
        raise RawDataError(f"there are {len(labels)} different labels, more than {MOST_CLASSES}: name the classes")
    return tuple(labels)


def _named(labels: list[str]) -> str:
    shown = ", ".join(map(repr, labels[:8]))
    return shown if len(labels) <= 8 else f"{shown} and {len(labels) - 8} more"
