"""Predictions as `fedpp-site predict --json` prints them, and the wrong ones among them, the worst first."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedpp.config.run_config import SPLITS
from fedpp.errors import ConfigError
from fedpp.values import is_hex

PSEUDONYM_DIGITS = 32
STATES = ("absent", "present")  # of a finding
Label = str | Mapping[str, bool | None] | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """One sequence's prediction, under the pseudonyms of sequence and patient; `frames` are those of the sequence.

    Probabilities are those of the classes, the negative one first; where the label is several findings, or None
    beside them, those of each finding's presence.
    """

    sequence: str
    patient: str
    split: str
    frames: int
    label: Label
    probabilities: Mapping[str, float]

    @classmethod
    def of(cls, row: Any) -> Self:
        """Return a row of JSON; raise `ValueError` for anything that `predict` does not print."""
        made = cls(**{name: row[name] for name in cls.__slots__})
        if not (_is_prediction(made) and _is_label(made.label, made.probabilities)):
            raise ValueError
        return made


@dataclass(frozen=True, slots=True)
class Judged:
    """A prediction beside its true label: one label, or one of several findings."""

    prediction: Prediction
    classes: Sequence[str]
    probabilities: Sequence[float]  # of the classes
    true: int  # the number of a class

    @property
    def predicted(self) -> int:
        """Return the number of the most probable class, of equal ones the first, as `evaluate` counts them."""
        return max(range(len(self.classes)), key=self.probabilities.__getitem__)

    @property
    def mistake(self) -> str:
        """Return the kind of error, "" where the prediction is right."""
        if self.predicted == self.true:
            return ""
        return (
            "false positives" if self.true == 0 else "another positive class" if self.predicted else "false negatives"
        )

    @property
    def score(self) -> float:
        """Return the probability of the true label: the lower, the more wrong."""
        return self.probabilities[self.true]


@dataclass(frozen=True)
class Mistakes:
    """The wrong predictions of one kind, the worst first, among `judged` predictions whose true label is of its side.

    `finding` is empty for data of one label.
    """

    finding: str
    kind: str
    classes: Sequence[str]
    judged: int
    wrong: tuple[Judged, ...]


def load(file: Path, text: str) -> list[Prediction]:
    """Return the predictions in the text of a file; raise `ConfigError` that names it for any other text."""
    try:
        rows = [Prediction.of(row) for row in json.loads(text)]
    except (ValueError, TypeError, KeyError, RecursionError):
        rows = []
    if not rows or any(list(row.probabilities) != list(rows[0].probabilities) for row in rows):
        raise ConfigError(f"{file} holds no predictions: write it by `fedpp-site predict ... --json` of this fedpp")
    return rows


def judged(predictions: Iterable[Prediction]) -> dict[str, list[Judged]]:
    """Return the predictions whose label is known, by finding; of one label under ""."""
    by_finding: dict[str, list[Judged]] = {}
    for row in predictions:
        if isinstance(row.label, str):
            classes = tuple(row.probabilities)
            of_one = Judged(row, classes, tuple(row.probabilities.values()), classes.index(row.label))
            by_finding.setdefault("", []).append(of_one)
        for finding, present in row.label.items() if isinstance(row.label, Mapping) else ():
            if present is not None:
                p = row.probabilities[finding]
                by_finding.setdefault(finding, []).append(Judged(row, STATES, (1 - p, p), int(present)))
    return by_finding


def mistakes(finding: str, among: Sequence[Judged]) -> list[Mistakes]:
    """Return false negatives, false positives, and with three classes and more one positive class for another."""
    sides = {"false negatives": True, "false positives": False, "another positive class": True}
    several = len(among[0].classes) > 2
    return [
        Mistakes(
            finding,
            kind,
            among[0].classes,
            sum((one.true > 0) == positive for one in among),
            tuple(sorted((one for one in among if one.mistake == kind), key=_worst)),
        )
        for kind, positive in list(sides.items())[: 3 if several else 2]
    ]


def _worst(one: Judged) -> tuple[float, str]:
    return one.score, one.prediction.sequence


def _is_prediction(row: Prediction) -> bool:
    return (
        is_hex(row.sequence, PSEUDONYM_DIGITS)
        and is_hex(row.patient, PSEUDONYM_DIGITS)
        and row.split in SPLITS
        and type(row.frames) is int
        and row.frames > 0
        and isinstance(row.probabilities, Mapping)
        and len(row.probabilities) > 0
        and all(type(p) in {int, float} and 0 <= p <= 1 for p in row.probabilities.values())
    )


def _is_label(label: Label, known: Mapping[str, float]) -> bool:
    if isinstance(label, Mapping):
        return label.keys() == known.keys() and all(state in {True, False, None} for state in label.values())
    return label is None or (isinstance(label, str) and label in known and len(known) > 1)
