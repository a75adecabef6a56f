"""From the hospital's labels to the numbers of a network's classes, or to the states of several findings."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from fedpp.errors import ConfigError, RawDataError
from fedpp.imaging.sequence import ImageSequence, Label
from fedpp.protocol.counts import UNKNOWN

Target = int | tuple[int, ...]  # the number of a class, 0 the negative one; or of each finding 1, 0 or UNKNOWN

MAX_CLASSES = 32  # class names are public: a column of patients taken for labels must not get that far


@dataclass(frozen=True)
class ClassMap:
    """Names of the classes by number, () for unlabelled data; `negative` stands against all other labels.

    With `multi_label` each class is a finding of its own.
    """

    classes: tuple[str, ...]
    negative: str | None = None
    multi_label: bool = False

    @classmethod
    def choose(
        cls,
        sequences: Iterable[ImageSequence],
        classes: tuple[str, ...] | None,
        negative: str | None,
        findings: tuple[str, ...] = (),
    ) -> Self:
        """Return the map that fits the sequences' labels.

        `classes` lists the labels in order; `negative` names one against all the rest; with neither, the
        labels are sorted. `findings` are the names of those whose states a label is, if it is
        that. Raises `RawDataError` where labels and classes do not fit, `ConfigError` for bad choices.
        """
        given = [sequence.label for sequence in sequences]
        if any(isinstance(label, tuple) for label in given):
            _require_all(given)
            return cls._of_findings(findings, chosen=classes is not None or negative is not None)
        labels = sorted({label for label in given if isinstance(label, str)})
        if classes is not None and negative is not None:
            raise ConfigError("classes and negative were both given: choose one of them")
        if classes is not None and (len(set(classes)) < max(2, len(classes)) or "" in classes):
            raise ConfigError(f"classes must be at least two different labels, got {', '.join(classes)!r}")
        if not labels:
            if classes is not None or negative is not None:
                raise RawDataError("classes were chosen, but no sequence has a label: add labels")
            return cls(())
        _require_all(given)
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

    @classmethod
    def _of_findings(cls, findings: tuple[str, ...], *, chosen: bool) -> Self:
        if chosen:
            raise ConfigError("classes and negative are for one label: several findings have their own names")
        return cls(findings, multi_label=True)

    def target(self, label: Label | None) -> Target:
        """Return what a network is to say of a label; raise `RawDataError` for one that is not in the map."""
        return self.states(label) if self.multi_label else self.number(label)

    def states(self, label: Label | None) -> tuple[int, ...]:
        """Return each finding's state: 1 present, 0 absent, `UNKNOWN`; raise `RawDataError` for another label."""
        if not isinstance(label, tuple) or len(label) != len(self.classes):
            raise RawDataError(f"a label is no tuple of the states of {', '.join(self.classes)}")
        return tuple(UNKNOWN if state is None else int(state) for state in label)

    def number(self, label: Label | None) -> int:
        """Return a label's class; raise `RawDataError` for a label that is not in the map."""
        if isinstance(label, str) and self.negative is not None:
            return int(label != self.negative)
        if not isinstance(label, str) or label not in self.classes:
            raise RawDataError(f"label {label!r} is none of the classes {', '.join(self.classes)}")
        return self.classes.index(label)


def said(label: Label | None, findings: tuple[str, ...]) -> tuple[str, ...]:
    """Return a label as texts to count: itself, or of several findings the names of those that are present."""
    if label is None or isinstance(label, str):
        return (label,) if label is not None else ()
    return tuple(name for name, state in zip(findings, label, strict=True) if state == "1")


def _require_all(labels: list[Label | None]) -> None:
    if unlabelled := labels.count(None):
        raise RawDataError(
            f"{unlabelled} of {len(labels)} sequences have no label: label all of them, or --drop-unlabelled"
        )


def _inferred(labels: list[str]) -> tuple[str, ...]:
    if len(labels) < 2:
        raise RawDataError(f"all sequences have the label {labels[0]!r}: name the classes, negative first")
    if len(labels) > MAX_CLASSES:
        raise RawDataError(f"there are {len(labels)} different labels, more than {MAX_CLASSES}: name the classes")
    return tuple(labels)


def _named(labels: list[str]) -> str:
    shown = ", ".join(map(repr, labels[:8]))
    return shown if len(labels) <= 8 else f"{shown} and {len(labels) - 8} more"
