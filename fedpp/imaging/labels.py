"""Class maps: from a hospital's labels to class numbers, or to the states of several findings."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self
from unicodedata import normalize

from fedpp.errors import ConfigError, RawDataError, UsageError
from fedpp.imaging.sequence import ImageSequence, Label
from fedpp.protocol.counts import UNKNOWN
from fedpp.texts import either, printable, suggestion

Target = int | tuple[int, ...]  # the number of a class, 0 the negative one; or of each finding 1, 0 or UNKNOWN

MAX_CLASSES = 32  # class names are public: a column of patients taken for labels must be refused
NAMED = 8  # labels named in a message
ABSENT = "no "  # before the name of a finding: the label of the sequences without it
_ABSENCES = frozenset(("absent", "benign", "control", "healthy", "negative", "no", "no finding", "normal"))
_NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]+)?")


@dataclass(frozen=True)
class ClassMap:
    """Names of the classes by number, () for unlabelled data, and the labels of each: by default its name alone.

    Sequences with other labels are left out (`taken`). With `multi_label` each class is a finding.
    """

    classes: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...] = ()
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

        `classes` lists labels in order, each perhaps with a name (`0=healthy`); `negative` names one against all the
        others, or against those of `classes`; with neither there must be two labels, and that of health or absence, or
        else the first by name, is negative. `findings` names the findings whose states are the labels of multi-label
        data. Raises `RawDataError` where labels and classes do not fit, `ConfigError` for bad choices, and `UsageError`
        where there is a choice to be made.
        """
        labels = [sequence.label for sequence in sequences]
        chosen = classes is not None or negative is not None
        if any(isinstance(label, tuple) for label in labels):
            return cls._multi_label(labels, findings, chosen=chosen)
        counts = Counter(label for label in labels if isinstance(label, str))
        names = None if classes is None else _names(classes, counts)
        if not counts:
            return cls._unlabelled(chosen=chosen)
        _require_all(labels)
        if names is not None:
            _require_listed(names, counts)
        if negative is not None:
            return cls._against_the_rest(
                _written(negative), dict.fromkeys(sorted(counts), "") if names is None else names
            )
        return cls._of_two(counts) if names is None else cls(tuple(names.values()), tuple((label,) for label in names))

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
    def _against_the_rest(cls, negative: str, names: dict[str, str]) -> Self:
        """Return one label against others, which are given with their names, "" for the usual one."""
        others = tuple(label for label in names if label != negative)
        if negative not in names:
            raise RawDataError(f"no sequence has the negative label {negative!r}: labels are {_named(names)}")
        if not others:
            raise RawDataError(f"all sequences have the negative label {negative!r}: list the classes, negative first")
        many = f"{len(others)} other labels"  # so many may be patients
        positive = many if len(others) > MAX_CLASSES else either([names[label] or _name(label) for label in others])
        return cls((names[negative] or _name(negative), positive), ((negative,), others))

    @classmethod
    def _of_two(cls, counts: Counter[str]) -> Self:
        if len(counts) < 2:
            raise RawDataError(f"all sequences have the label {next(iter(counts))!r}: name the classes, negative first")
        if len(counts) > 2:
            shown = f" are {_counted(counts)}" if len(counts) <= MAX_CLASSES else ""
            raise UsageError(
                f"{len(counts)} different labels{shown}: choose --negative LABEL, one against all others, or list "
                "them, the negative one first: --classes LABEL,LABEL,..."
            )
        pair = sorted(counts, key=lambda label: (not _is_absence(label, counts), label))
        return cls(tuple(map(_name, pair)), tuple((label,) for label in pair))

    def taken(self, sequences: Sequence[ImageSequence]) -> tuple[list[ImageSequence], dict[str, int]]:
        """Return the sequences that have a class, and how many are left out by label; raise if none has a class.

        So many labels that they may name patients are counted together.
        """
        if not self.classes or self.multi_label:
            return list(sequences), {}
        known = {label for labels in self._labels for label in labels}
        left_out = Counter(s.label for s in sequences if isinstance(s.label, str) and s.label not in known)
        if len(left_out) > MAX_CLASSES:
            left_out = Counter({f"{len(left_out)} other labels": left_out.total()})
        taken = [s for s in sequences if not isinstance(s.label, str) or s.label in known]
        return taken, {printable(str(label)): count for label, count in sorted(left_out.items(), key=str)}

    @property
    def _labels(self) -> tuple[tuple[str, ...], ...]:
        return self.labels or tuple((name,) for name in self.classes)

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
        for number, labels in enumerate(self._labels):
            if label in labels:
                return number
        raise RawDataError(f"label {label!r} is none of the classes {', '.join(self.classes)}")


def label_names(label: Label | None, findings: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names to count for a label: itself, or the names of its present findings; () without a label."""
    if label is None or isinstance(label, str):
        return () if label is None else (label,)
    return tuple(name for name, state in zip(findings, label, strict=True) if state == "1")


def label_of(states: tuple[str | None, ...], findings: tuple[str, ...]) -> Label | None:
    """Return the label of the findings' states ("1", "0", None): of one finding its name, or that it is absent.

    Of several findings it is their states, or None where none is known.
    """
    if len(states) > 1:
        return None if set(states) == {None} else states
    return None if states[0] is None else findings[0] if states[0] == "1" else _without(findings[0])


def _without(finding: str) -> str:
    """Return the label of the sequences without a finding; those not of "No Finding" have one."""
    return "any finding" if finding.casefold() == "no finding" else ABSENT + finding


def _name(label: str) -> str:
    """Return the name of a label's class: a number alone says nothing on a page of figures."""
    return f"label {label}" if _NUMBER.fullmatch(label) else label


def _is_absence(label: str, among: Iterable[str]) -> bool:
    """Tell whether a label says that nothing is found: a word for it, or "no" before another label."""
    return label.casefold() in _ABSENCES or label in {ABSENT + other for other in among}


def _names(classes: tuple[str, ...], known: Iterable[str]) -> dict[str, str]:
    """Return the names of the listed labels, which may stand after `=`; raise `ConfigError` for bad ones."""
    written = [_written(text) for text in classes]
    listed = [(text, _name(text)) if "=" not in text or text in known else _pair(text) for text in written]
    labels, names = ({pair[number] for pair in listed} for number in range(2))
    if min(len(labels), len(names)) < max(2, len(classes)) or "" in labels | names:
        raise ConfigError(f"classes must be at least two different labels, got {', '.join(classes)!r}")
    return dict(listed)


def _pair(text: str) -> tuple[str, str]:
    label, _, name = text.partition("=")
    return label.strip(), name.strip()


def _written(text: str) -> str:
    """Return a label as tables' labels are read."""
    return " ".join(normalize("NFC", text).split())


def _require_listed(names: Iterable[str], counts: Counter[str]) -> None:
    """Raise `RawDataError` for a list that leaves out all sequences, or some by what looks like a mistyped label."""
    others = sorted(set(counts) - set(names))
    if len(others) == len(counts):
        raise RawDataError(f"no sequence has one of the classes {', '.join(names)}: labels are {_named(others)}")
    for absent in sorted(set(names) - set(counts)):
        numbers = [label for label in others if _NUMBER.fullmatch(label) and _NUMBER.fullmatch(absent)]
        if meant := suggestion(absent, others) or (numbers and f", but {_named(numbers)}"):
            raise RawDataError(f"no sequence has the label {absent!r}{meant}: write labels as the data do")


def _require_all(labels: list[Label | None]) -> None:
    if unlabelled := labels.count(None):
        raise RawDataError(
            f"{unlabelled} of {len(labels)} sequences have no label: label all of them, or --drop-unlabelled"
        )


def _named(labels: Iterable[str]) -> str:
    shown = list(map(repr, labels))
    more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
    return ", ".join(shown[:NAMED]) + more


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{label!r} {count}" for label, count in sorted(counts.items()))
