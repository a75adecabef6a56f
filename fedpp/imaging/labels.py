"""Class maps: from a hospital's labels to class numbers, or to the states of several findings."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from fedpp.errors import ConfigError, RawDataError
from fedpp.imaging.sequence import ImageSequence, Label
from fedpp.protocol.counts import UNKNOWN

Target = int | tuple[int, ...]  # the number of a class, 0 the negative one; or of each finding 1, 0 or UNKNOWN

MAX_CLASSES = 32  # class names are public: a column of patients taken for labels must be refused
NAMED = 8  # labels named in a message


@dataclass(frozen=True)
class ClassMap:
    """Names of the classes by number, () for unlabelled data; with `negative`, that label against all others.

    With `multi_label` each class is a finding.
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

        `classes` lists the labels in order; `negative` names one against all the rest; with neither, the labels are
        sorted. `findings` names the findings whose states are the labels of multi-label data. Raises `RawDataError`
        where labels and classes do not fit, `ConfigError` for bad choices.
        """
        labels = [sequence.label for sequence in sequences]
        chosen = classes is not None or negative is not None
        if any(isinstance(label, tuple) for label in labels):
            return cls._multi_label(labels, findings, chosen=chosen)
        _check_choice(classes, negative)
        names = sorted({label for label in labels if isinstance(label, str)})
        if not names:
            return cls._unlabelled(chosen=chosen)
        _require_all(labels)
        if negative is not None:
            return cls._against_the_rest(negative, names)
        return cls._sorted(names) if classes is None else cls._listed(classes, names)

    @classmethod
    def _multi_label(cls, labels: list[Label | None], findings: tuple[str, ...], *, chosen: bool) -> Self:
        _require_all(labels)
        if chosen:
            raise ConfigError("classes and negative are for one label: several findings have their own names")
        return cls(findings, multi_label=True)

    @classmethod
    def _unlabelled(cls, *, chosen: bool) -> Self:
        if chosen:
            raise RawDataError("classes were chosen, but no sequence has a label: add labels")
        return cls(())

    @classmethod
    def _against_the_rest(cls, negative: str, names: list[str]) -> Self:
        if negative not in names:
            raise RawDataError(f"no sequence has the negative label {negative!r}: labels are {_named(names)}")
        return cls((negative, f"not {negative}"), negative)

    @classmethod
    def _listed(cls, classes: tuple[str, ...], names: list[str]) -> Self:
        if unknown := sorted(set(names) - set(classes)):
            raise RawDataError(f"labels {_named(unknown)} are none of the classes {', '.join(classes)}")
        return cls(classes)

    @classmethod
    def _sorted(cls, names: list[str]) -> Self:
        if len(names) < 2:
            raise RawDataError(f"all sequences have the label {names[0]!r}: name the classes, negative first")
        if len(names) > MAX_CLASSES:
            raise RawDataError(f"there are {len(names)} different labels, more than {MAX_CLASSES}: name the classes")
        return cls(tuple(names))

    def target(self, label: Label | None) -> Target:
        """Return a label's training target; raise `RawDataError` for a label outside the map."""
        return self.states(label) if self.multi_label else self.number(label)

    def states(self, label: Label | None) -> tuple[int, ...]:
        """Return each finding's state, 1 present, 0 absent or `UNKNOWN`; raise `RawDataError` for another label."""
        if not isinstance(label, tuple) or len(label) != len(self.classes):
            raise RawDataError(f"a label is no tuple of the states of {', '.join(self.classes)}")
        return tuple(UNKNOWN if state is None else int(state) for state in label)

    def number(self, label: Label | None) -> int:
        """Return a label's class number; raise `RawDataError` for a label outside the map."""
        if isinstance(label, str) and self.negative is not None:
            return int(label != self.negative)
        if not isinstance(label, str) or label not in self.classes:
            raise RawDataError(f"label {label!r} is none of the classes {', '.join(self.classes)}")
        return self.classes.index(label)


def label_names(label: Label | None, findings: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names to count for a label: itself, or the names of its present findings; () without a label."""
    if label is None or isinstance(label, str):
        return () if label is None else (label,)
    return tuple(name for name, state in zip(findings, label, strict=True) if state == "1")


def _check_choice(classes: tuple[str, ...] | None, negative: str | None) -> None:
    if classes is None:
        return
    if negative is not None:
        raise ConfigError("classes and negative were both given: choose one of them")
    if len(set(classes)) < max(2, len(classes)) or "" in classes:
        raise ConfigError(f"classes must be at least two different labels, got {', '.join(classes)!r}")


def _require_all(labels: list[Label | None]) -> None:
    if unlabelled := labels.count(None):
        raise RawDataError(
            f"{unlabelled} of {len(labels)} sequences have no label: label all of them, or --drop-unlabelled"
        )


def _named(labels: list[str]) -> str:
    shown = ", ".join(map(repr, labels[:NAMED]))
    return shown if len(labels) <= NAMED else f"{shown} and {len(labels) - NAMED} more"
